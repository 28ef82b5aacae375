"""``radius``: logins and accounts by FreeRADIUS, with conf/freeradius as it is shipped.

The server is in the namespace behind npppyd, on the core of all others.  Its users are rows of its database; addresses
are npppyd's.  The database is in memory where nothing else is said: on a disk of this machine each account that the
server syncs would interrupt npppyd's core, and the kernel would take that time for npppyd's.  npppyd's spool is on a
disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .figures import ROOT, BenchError, Figure
from .lab import GATEWAY, LOCAL, OURS, PATIENCE, PATIENCE_SESSION, THEIRS, Lab, Program, credentials, pinned, until
from .sessions import METHODS

AUTH, ACCT, SECRET = 1812, 1813, "radius-secret"
#: Requests that radclient makes, of a server with its database in memory and on disk.
REQUESTS, DISK_REQUESTS = 5000, 1000
#: How many of them are under way: as many as npppysim's set-ups.
WINDOW = 256
#: The method where it makes no difference.
METHOD = "pap"
#: Files that are in memory.
MEMORY = "/dev/shm"

_SERVER = f"""address {GATEWAY} port %d secret "{SECRET}" """
_LOGINS = f"""radius {{
    authentication-server {{
        {_SERVER % AUTH}
    }}
"""
#: Realms in npppd.conf: without and with accounts.
LOGINS = f"{_LOGINS}}}"
ACCOUNTS = f"""{_LOGINS}
    accounting-server {{
        {_SERVER % ACCT}
    }}
}}"""

_CLIENTS = f"""client all {{
    ipv4addr = 0.0.0.0/0
    secret = "{SECRET}"
    require_message_authenticator = yes
}}
"""


class FreeRadius(Program):
    """A server in the network namespace that this thread is in, with a database of its own in *place*."""

    def __init__(self, directory: Path, place: Path) -> None:
        directory.mkdir()
        self.serving = False
        self._database = place / "npppy.db"
        config = directory / "raddb"
        shutil.copytree(ROOT / "conf" / "freeradius", config)
        (config / "clients.conf").write_text(_CLIENTS)
        settings = config / "settings.conf"
        text = settings.read_text()
        for name, value in (
            ("auth_port", AUTH),
            ("acct_port", ACCT),
            ("run_as", "root"),
            ("logdir", directory),
            ("run_dir", directory),
            ("database", self._database),
        ):
            text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
            if count != 1:
                raise BenchError(f"{settings.name} of conf/freeradius does not say {name} once")
        settings.write_text(text)
        super().__init__("freeradius", ["freeradius", "-f", "-l", "/dev/stderr", "-d", str(config)])

    def heard(self, line: bytes) -> None:
        if b"Ready to process requests" in line:
            self.serving = True

    def wait_ready(self) -> None:
        def ready() -> bool:
            self.check()
            return self.serving

        until(ready, "FreeRADIUS serves")

    def add(self, users: Iterable[tuple[str, str]]) -> None:
        """Let it know users, name and password each."""
        insert = "INSERT INTO radcheck (username, attribute, op, value) VALUES (?, 'Cleartext-Password', ':=', ?)"
        with self._open() as db:
            db.executemany(insert, users)

    def wait_accounts(self, count: int, *, ended: bool) -> None:
        """Until it has accounts of so many sessions, which have ended all, or none has."""
        query = "SELECT count(*) FROM radacct WHERE (acctstoptime IS NOT NULL) = ?"
        with self._open() as db:

            def complete() -> bool:
                self.check()
                (found,) = db.execute(query, (ended,)).fetchone()
                return bool(found >= count)

            until(complete, f"{count} accounts are there", PATIENCE + PATIENCE_SESSION * count)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._database, timeout=PATIENCE)) as connection, connection:
            yield connection


class RadiusLab(Lab):
    def freeradius(self, users: int, *, disk: bool = False, core: int = THEIRS) -> FreeRadius:
        """Start a server with so many users on this core; *disk*: with its database beside npppyd's files."""
        directory = self.directory / "freeradius"
        place = directory if disk else Path(tempfile.mkdtemp(prefix=f"npppy-bench-{os.getpid()}-", dir=MEMORY))
        if not disk:
            self._stack.callback(shutil.rmtree, place, ignore_errors=True)
        with self.net, pinned(core):
            server = FreeRadius(directory, place)
        self._start(server)
        server.wait_ready()
        server.add(credentials(1, users))
        return server


class _Run(NamedTuple):
    #: Seconds of npppyd's processor time.
    spent: float
    #: Set-ups a second by the wall, accounts included.
    rate: float


def _run(realm: str, method: str, sessions: int, *, ended: bool = False, disk: bool = False) -> _Run:
    """Dial so many, and with *ended* hang up all; *disk*: where the server's database is."""
    with RadiusLab() as lab:
        server = None if realm == LOCAL else lab.freeradius(sessions, disk=disk)
        accounts = server if realm == ACCOUNTS else None
        daemon = lab.npppyd(users=0 if server else sessions, method=method, realm=realm)
        daemon.wait_idle()
        before = daemon.cpu()
        subscribers = lab.dial(daemon, sessions, method, "--terminate", "lcp" if ended else "none")
        subscribers.wait_up()
        up = time.monotonic()
        if accounts:
            accounts.wait_accounts(sessions, ended=False)
        late = time.monotonic() - up
        daemon.wait_idle()
        spent = daemon.cpu() - before
        *_, summary = subscribers.end()
        if ended:
            if accounts:
                accounts.wait_accounts(sessions, ended=True)
            daemon.wait_idle()
            spent = daemon.cpu() - before
        daemon.check()
        return _Run(spent, sessions / (sessions / summary["rate"] + late))


def measure(sessions: int, runs: int, whole: bool = True) -> Iterator[Figure]:
    """So many logins by each method, so often; medians.  Each run has a new npppyd and a new server.

    Not *whole*: by one method, with nothing on a disk, and without what the server does by itself.
    """
    for method in METHODS if whole else (METHOD,):
        local, radius = zip(
            *[(_run(LOCAL, method, sessions), _run(ACCOUNTS, method, sessions)) for _ in range(runs)], strict=True
        )
        yield _rate(f"radius.login.{method}", radius)
        base = _cost(local, sessions)
        more = _cost(radius, sessions) - base
        yield Figure(name=f"radius.cpu.{method}", value=more, unit="us", better="lower", baseline=base)
    if whole:
        yield _rate(f"radius.login.{METHOD}.disk", [_run(ACCOUNTS, METHOD, sessions, disk=True) for _ in range(runs)])
    without, accounted = (
        _cost([_run(realm, METHOD, sessions, ended=True) for _ in range(runs)], sessions)
        for realm in (LOGINS, ACCOUNTS)
    )
    # A Start and a Stop.
    record = (accounted - without) / 2
    yield Figure(name="radius.accounting.record", value=record, unit="us", better="lower")
    if whole:
        yield from _alone()


def _rate(name: str, runs: Sequence[_Run]) -> Figure:
    return Figure(name=name, value=statistics.median(run.rate for run in runs), unit="logins/s", better="higher")


def _cost(runs: Sequence[_Run], sessions: int) -> float:
    """Microseconds of npppyd for a session."""
    return statistics.median(run.spent for run in runs) / sessions * 1e6


def _alone() -> Iterator[Figure]:
    """What the server does without npppyd, asked by radclient from npppyd's place and core."""
    for kind, port, ask, count, disk in (
        ("auth", AUTH, _login, REQUESTS, False),
        ("acct", ACCT, _start, REQUESTS, False),
        ("acct", ACCT, _start, DISK_REQUESTS, True),
    ):
        requests = [ask(number, *user) for number, user in enumerate(credentials(1, count + 1))]
        with RadiusLab() as lab:
            lab.freeradius(len(requests), disk=disk)
            # The first is answered while radclient and the server find their files.
            idle = _ask(lab, kind, port, requests[:1])
            took = _ask(lab, kind, port, requests[1:]) - idle
        name = f"radius.freeradius.{kind}" + ".disk" * disk
        yield Figure(name=name, value=count / took, unit="requests/s", better="higher")


def _ask(lab: Lab, kind: str, port: int, requests: list[str]) -> float:
    """How many seconds radclient takes."""
    listed = lab.directory / "requests"
    listed.write_text("\n".join(requests))
    command = ["radclient", "-q", "-p", str(WINDOW), "-r", "1", "-t", str(PATIENCE), "-f", str(listed)]
    with lab.bng, pinned(OURS):
        began = time.monotonic()
        done = subprocess.run([*command, f"{GATEWAY}:{port}", kind, SECRET], capture_output=True, text=True)
        took = time.monotonic() - began
    if done.returncode:
        raise BenchError(f"radclient: {done.stdout}{done.stderr}")
    return took


_PORT = """NAS-Identifier = "npppy"
NAS-Port = {number}
NAS-Port-Id = "eth1"
Service-Type = Framed-User
Framed-Protocol = PPP
Calling-Station-Id = "02:4e:50:00:00:00"
Acct-Session-Id = "{number:016x}"
"""


def _login(number: int, name: str, word: str) -> str:
    facts = _PORT.format(number=number)
    return f'User-Name = "{name}"\nUser-Password = "{word}"\nMessage-Authenticator = 0x00\n{facts}'


def _start(number: int, name: str, word: str) -> str:
    facts = _PORT.format(number=number)
    return f'User-Name = "{name}"\nAcct-Status-Type = Start\nFramed-IP-Address = 10.64.0.2\n{facts}'
