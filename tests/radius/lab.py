"""Debian's FreeRADIUS with conf/freeradius, and npppyd with all its carriers before it (see tests/peers/lab.py).

The servers are in `net`, the world, at 192.0.2.2 and 2001:db8:2::2; npppyd is in `bng` and asks from 192.0.2.1.
Subscribers are npppysim's, in `sub`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from tests.peers.lab import MODES, PATIENCE, UPLINK, WORLD, Lab, Program, inside, run, until, written
from tests.radius import fake

CONF = Path(__file__).parents[2] / "conf" / "freeradius"

SECRET = fake.SECRET.decode()
AUTH, ACCT, DAE = 18120, 18130, 37990

#: Where servers are by IPv6, and npppyd.
WORLD6, UPLINK6 = "2001:db8:2::2", "2001:db8:2::1"

#: Where L2TP and PPTP are served, and where they come from.
SERVED, AFAR = "198.51.100.1", "198.51.100.2"

CARRIERS = {
    "pppoe": ("--interface", "sub0"),
    "l2tp": ("--server", SERVED, "--calling-number", "5550{n}", "--called-number", "5559"),
    "pptp": ("--server", SERVED, "--called-number", "5559"),
}

#: By carrier, what NAS-Port-Type says (RFC 2865 section 5.41, RFC 4603).
PORT_TYPES = {"pppoe": "PPPoEoE", "l2tp": "Virtual", "pptp": "Virtual"}


class FreeRadius:
    """A server in a namespace, with its own copy of conf/freeradius and its own database; :meth:`start` it.

    *settings* are names and values of settings.conf that are not those of the example.
    """

    def __init__(self, where: Path, namespace: str, **settings: object) -> None:
        self.where = where
        self.namespace = namespace
        self.process: Program | None = None
        self._raddb = where / "raddb"
        self._log = where / "freeradius.log"
        self.database = where / "npppy.db"
        shutil.copytree(CONF, self._raddb)
        self.set(
            auth_port=AUTH,
            acct_port=ACCT,
            run_as="root",
            logdir=where,
            run_dir=where,
            database=self.database,
            seconds_to_refuse=0,
            **settings,
        )
        clients = ""
        for name, network in (("ip4", "ipv4addr = 0.0.0.0/0"), ("ip6", "ipv6addr = ::/0")):
            more = f'secret = "{SECRET}"\n\trequire_message_authenticator = yes\n'
            clients += f"client {name} {{\n\t{network}\n\t{more}}}\n"
        (self._raddb / "clients.conf").write_text(clients)

    def set(self, **settings: object) -> None:
        """Change lines of settings.conf, for the next start."""
        path = self._raddb / "settings.conf"
        text = path.read_text()
        for name, value in settings.items():
            text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
            assert count == 1, name
        path.write_text(text)

    def start(self) -> FreeRadius:
        argv = ["freeradius", "-f", "-l", "stdout", "-d", str(self._raddb)]
        self.process = Program("freeradius", self.namespace, argv, self._log)
        try:
            until(self._serves, "FreeRADIUS answers")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.running:
            self.process.stop(number)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()

    @property
    def log(self) -> str:
        return written(self._log)

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.running, "FreeRADIUS has ended"
        return all(self.status(port) for port in (AUTH, ACCT))

    def status(self, port: int) -> bool:
        """Whether it answers Status-Server (RFC 5997) now."""
        with inside(self.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", port))
            sock.settimeout(0.05)
            try:
                sock.send(fake.request(fake.STATUS_SERVER, 1, (), fake.SECRET))
                answer = sock.recv(4096)
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.01)
                return False
        assert answer[0] in (fake.ACCESS_ACCEPT, fake.ACCOUNTING_RESPONSE)
        return True

    # The database.

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=PATIENCE)) as connection, connection:
            connection.row_factory = sqlite3.Row
            yield connection

    def user(
        self, name: str, password: str, *, check: Mapping[str, object] = {}, reply: Iterable[tuple[str, object]] = ()
    ) -> None:
        """A user; what the server looks into, and what stands in an Access-Accept."""
        self.users([(name, password)], check=check, reply=reply)

    def users(
        self,
        users: Iterable[tuple[str, str]],
        *,
        check: Mapping[str, object] = {},
        reply: Iterable[tuple[str, object]] = (),
    ) -> None:
        checks, replies = [], []
        for name, password in users:
            checks.append((name, "Cleartext-Password", ":=", password))
            checks += [(name, attribute, ":=", str(value)) for attribute, value in check.items()]
            replies += [(name, attribute, "+=", str(value)) for attribute, value in reply]
        with self._open() as db:
            db.executemany("INSERT INTO radcheck (username, attribute, op, value) VALUES (?, ?, ?, ?)", checks)
            db.executemany("INSERT INTO radreply (username, attribute, op, value) VALUES (?, ?, ?, ?)", replies)

    def pool(self, name: str, first: str, count: int) -> None:
        """Addresses for users with a Pool-Name."""
        start = int(IPv4Address(first))
        rows = [(name, str(IPv4Address(start + n))) for n in range(count)]
        with self._open() as db:
            db.executemany("INSERT INTO radippool (pool_name, framedipaddress) VALUES (?, ?)", rows)

    def accounts(self, **fields: object) -> list[dict[str, Any]]:
        """The rows of radacct with these values, by start; times are seconds since the epoch."""
        where = " AND ".join(f"{field} = ?" for field in fields) or "1"
        with self._open() as db:
            rows = db.execute(f"SELECT * FROM radacct WHERE {where} ORDER BY radacctid", tuple(fields.values()))
            return [dict(row) for row in rows]

    def account(self, **fields: object) -> dict[str, Any]:
        """The one row."""
        (row,) = self.accounts(**fields)
        return row

    def open_accounts(self) -> list[dict[str, Any]]:
        return [row for row in self.accounts() if row["acctstoptime"] is None]

    def lease_end(self, address: str) -> int:
        """Until when an address is taken, in seconds since the Epoch."""
        with self._open() as db:
            rows = db.execute("SELECT strftime('%s', expiry_time) FROM radippool WHERE framedipaddress = ?", (address,))
            return int(rows.fetchone()[0])

    def leases(self) -> dict[str, str]:
        """The addresses that are taken, and the Acct-Session-Id of the session that has each."""
        with self._open() as db:
            rows = db.execute("SELECT framedipaddress, pool_key FROM radippool WHERE expiry_time > datetime('now')")
            return {row["framedipaddress"]: row["pool_key"] for row in rows}


def radclient(
    namespace: str, place: str, code: str, attributes: str, secret: str = SECRET, *, patience: float = PATIENCE
) -> tuple[int, str]:
    """Debian's radclient sends a request, once; its exit status (0: an answer that says yes), and what it shows."""
    argv = ["ip", "netns", "exec", namespace, "radclient", "-x", "-r", "1", "-t", str(patience), place, code, secret]
    done = subprocess.run(argv, input=attributes, capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


_CONFIG = """
{top}
radius nas-id "{name}"
radius spool "{where}/spool.db"
radius dae listen on {uplink} port {dae}
radius dae listen on {uplink6} port {dae}
radius dae client {world} secret "{secret}"
radius dae client {world6} secret "{secret}"
tunnel ETHER protocol pppoe {{
    listen on interface eth1
    {pipex}
    {tunnel}
}}
tunnel LNS protocol l2tp {{
    listen on {served}
    {pipex}
    mppe no
    {tunnel}
}}
tunnel PNS protocol pptp {{
    listen on {served}
    {pipex}
    mppe yes
    {tunnel}
}}
ipcp POOL {{
    pool-address {pool}
    {ipcp}
}}
interface tun0 address 10.64.0.1 ipcp POOL
{more}
authentication RADIUS type radius {{
    authentication-server {{
        {auth}
    }}
    accounting-server {{
        {acct}
    }}
    {realm}
}}
bind tunnel from ETHER authenticated by RADIUS to tun0
bind tunnel from LNS authenticated by RADIUS to tun0
bind tunnel from PNS authenticated by RADIUS to tun0
"""

#: What npppyd is told of a server: its answers take no second here.
PATIENT = "timeout 5\nmax-tries 3"
HASTY = "timeout 1\nmax-tries 2\ndead-time 1"

ALL_METHODS = "authentication-method pap chap mschapv2"


def server(address: str = WORLD, port: int = AUTH, more: str = PATIENT, *, extra: str = "") -> str:
    """The lines of one server."""
    return f'address {address} port {port} secret "{SECRET}" {extra}\n{more}'


class RadiusLab(Lab):
    """npppyd with PPPoE, L2TP and PPTP, and realms of type radius."""

    #: The NAS-Identifier, and the lab's own pool.
    name = "bng"
    pool = "10.64.0.2-10.64.0.254"

    def build(self) -> None:
        super().build()
        self.ip(self.bng, f"address add {SERVED}/24 dev eth1", f"address add {UPLINK6}/64 dev up0 nodad")
        self.ip(self.sub, f"address add {AFAR}/24 dev sub0")
        self.ip(self.net, f"address add {WORLD6}/64 dev host0 nodad")
        self._closing: list[Any] = []
        # Several threads may dial.
        self._sims = itertools.count()

    def close(self) -> None:
        for one in self._closing:
            one.close()
        super().close()

    def configure(
        self,
        *,
        auth: str = "",
        acct: str = "",
        realm: str = "",
        tunnel: str = ALL_METHODS,
        ipcp: str = "pool-address 10.65.0.0/16 for static",
        top: str = "",
        more: str = "",
    ) -> None:
        """Write the configuration; without *auth* and *acct*, FreeRADIUS is both servers."""
        self._conf.write_text(
            _CONFIG.format(
                top=top,
                name=self.name,
                where=self.where,
                uplink=UPLINK,
                world=WORLD,
                uplink6=UPLINK6,
                world6=WORLD6,
                dae=DAE,
                secret=SECRET,
                pipex=MODES[self.mode],
                served=SERVED,
                pool=self.pool,
                ipcp=ipcp,
                tunnel=tunnel,
                auth=auth or server(),
                acct=acct or server(port=ACCT),
                realm=realm,
                more=more,
            )
        )

    def serve(self, **rest: Any) -> None:
        """Start npppyd, configured so."""
        self.configure(**rest)
        self.start_again()

    def freeradius(self, **settings: object) -> FreeRadius:
        """A server that has been started; *settings*: see :class:`FreeRadius`."""
        where = self.where / f"radius-{len(self._closing)}"
        where.mkdir()
        made = FreeRadius(where, self.net, **settings)
        self._closing.append(made)
        return made.start()

    def fake(self, manner: fake.Manner, **rest: Any) -> fake.FakeServer:
        """Another kind of server, beside it."""
        made = fake.FakeServer(manner, namespace=self.net, **{"address": WORLD, **rest})
        self._closing.append(made)
        return made

    def is_empty(self) -> bool:
        """As elsewhere; but sockets and servers have timers of their own, and no server may be asked any more."""
        status = self.status()
        held = [status[what] for what in ("sessions", "half_open", "bound", "addresses", "journal")]
        under_way = [row["outstanding"] + row["queued"] for row in self.servers()]
        return not any(held) and not any(under_way) and (self.mode == "user" or not any(self.entries().values()))

    def logs(self) -> Iterator[tuple[str, str]]:
        yield from super().logs()
        for one in self._closing:
            if isinstance(one, FreeRadius):
                yield "freeradius", one.log

    # Subscribers.

    def simulate(self, carrier: str, *options: str, auth: str = "", namespace: str = "") -> Sim:
        """npppysim, which dials by a carrier."""
        argv = [sys.executable, "-m", "npppy.sim.main", carrier, *CARRIERS[carrier], "--report", "json", "--events"]
        if auth:
            argv += ["--auth", auth]
        log = self.where / f"npppysim-{next(self._sims)}.log"
        program = Sim("npppysim", namespace or self.sub, [*argv, *options], log)
        self.programs.append(program)
        return program

    def user(self, carrier: str, name: str, password: str, *options: str, auth: str = "pap") -> Sim:
        """One subscriber, which stays until it is stopped."""
        return self.simulate(carrier, "--user", name, "--password", password, "--hold", "inf", *options, auth=auth)

    def servers(self) -> list[dict[str, Any]]:
        """What npppyctl radius shows of the servers."""
        return [row for row in self.ask("radius")[0] if row["what"] == "server"]

    def server(self, port: int) -> dict[str, Any]:
        """The one of a port."""
        (row,) = [row for row in self.servers() if row["port"] == port]
        return row

    def dae(self, code: str, attributes: str, *, secret: str = SECRET, place: str = "") -> tuple[int, str]:
        """A request by radclient from the world: "disconnect" or "coa"."""
        return radclient(self.net, place or f"{UPLINK}:{DAE}", code, attributes, secret)

    def dae_is_silent(self, attributes: str, *, secret: str = SECRET, namespace: str = "") -> None:
        """A request to disconnect is not answered, but counted; nothing is waited for longer than that takes."""
        namespace = namespace or self.net
        status, shown = radclient(namespace, f"{UPLINK}:{DAE}", "disconnect", attributes, secret, patience=0.3)
        assert status != 0
        assert "No reply from server" in shown


class Sim(Program):
    """npppysim with --events --report json."""

    @property
    def ups(self) -> list[dict[str, Any]]:
        return [line for line in self.objects if line.get("event") == "up"]

    def up(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many are up."""

        def all_up() -> bool:
            running = self.running
            found = len(self.ups)
            assert running or found >= count, f"{found} of {count} came up: {self.log[-3000:]}"
            return found >= count

        until(all_up, f"{count} sessions of npppysim are up")
        return self.ups

    @property
    def summary(self) -> dict[str, Any]:
        """What it says in the end."""
        self.exits()
        return self.objects[-1]

    def refused(self) -> dict[str, int]:
        """It ends, and none came up; why, as it sees it, and how often."""
        facts = self.summary
        assert facts["up"] == 0
        return dict(facts["failed"])


def authority(where: Path) -> dict[str, Path]:
    """A certificate authority, and what it has signed for a server and for the user "alice": files, by name."""
    made = {}
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "server", "alice"):
        key, certificate = made[f"{name}.key"], made[f"{name}.pem"] = where / f"{name}.key", where / f"{name}.pem"
        signer = () if name == "ca" else ("-CA", str(made["ca.pem"]), "-CAkey", str(made["ca.key"]))
        # What TLS servers and clients each must be good for (RFC 5216 section 5.3).
        use = {"server": "serverAuth", "alice": "clientAuth"}.get(name)
        usage = ("-addext", f"extendedKeyUsage={use}", "-addext", "basicConstraints=CA:FALSE") if use else ()
        run(
            *("openssl", "req", "-x509", *curve, "-keyout", str(key), "-out", str(certificate)),
            *("-subj", f"/CN={name}", *signer, *usage),
        )
    return made


def netns(name: str) -> None:
    """A namespace with a loopback interface."""
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
