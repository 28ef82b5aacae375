"""``make bench-peers``: npppyd beside Debian's l2tpns, xl2tpd and pppoe-server, under the same load."""
