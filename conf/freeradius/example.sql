-- The users of npppd-users, for a new database:  sqlite3 /var/lib/freeradius/npppy.db <example.sql

-- All of the group "subscribers": an address of the pool "main", one session at a time, and an interim record every ten
-- minutes.
INSERT INTO radgroupcheck (groupname, attribute, op, value) VALUES
	('subscribers', 'Pool-Name', ':=', 'main'),
	('subscribers', 'Simultaneous-Use', ':=', '1');
INSERT INTO radgroupreply (groupname, attribute, op, value) VALUES
	('subscribers', 'Acct-Interim-Interval', ':=', '600');

INSERT INTO radcheck (username, attribute, op, value) VALUES
	('alice', 'Cleartext-Password', ':=', 'wonderland'),
	('bob', 'Cleartext-Password', ':=', 'builder'),
	('office', 'Cleartext-Password', ':=', 'red:brick');
INSERT INTO radusergroup (username, groupname) VALUES
	('alice', 'subscribers'),
	('bob', 'subscribers'),
	('office', 'subscribers');

-- An address of his own; a network behind; 10 Mbit/s up and 100 Mbit/s down.
INSERT INTO radreply (username, attribute, op, value) VALUES
	('bob', 'Framed-IP-Address', ':=', '10.65.0.7'),
	('office', 'Framed-IP-Address', ':=', '10.65.0.65'),
	('office', 'Framed-Route', ':=', '10.65.0.64/28 0.0.0.0 1'),
	('alice', 'Mikrotik-Rate-Limit', ':=', '10M/100M');

-- 10.64.0.2 to 10.64.0.254, which all concentrators share.
INSERT INTO radippool (pool_name, framedipaddress)
WITH RECURSIVE hosts(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM hosts WHERE n < 254)
SELECT 'main', '10.64.0.' || n FROM hosts;
