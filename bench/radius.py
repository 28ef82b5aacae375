"""``radius``: logins and accounts by FreeRADIUS, with conf/freeradius as it is shipped.

The server is in the namespace behind npppyd, on the core of all others.  Its users are rows of its database; addresses
are npppyd's.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .figures import ROOT, BenchError, Figure
from .lab import GATEWAY, LOCAL, OURS, PATIENCE, PATIENCE_SESSION, THEIRS, Lab, Program, credentials, pinned, until
from .sessions import METHODS

AUTH, ACCT, SECRET = 1812, 1813, "radius-secret"
#: Requests that the server is asked by radclient, and how many of them are under way: as many as npppysim's set-ups.
REQUESTS, WINDOW = 2000, 256
#: The method where it makes no difference.
METHOD = "pap"

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
    """A server in the network namespace that this thread is in, with a database of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.serving = False
        self._database = directory / "npppy.db"
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


class _Lab(Lab):
    def freeradius(self, users: int) -> FreeRadius:
        with self.net, pinned(THEIRS):
            server = FreeRadius(self.directory / "freeradius")
        self._start(server)
        server.wait_ready()
        server.add(credentials(1, users))
        return server


class _Run(NamedTuple):
    #: Seconds of npppyd's processor time.
    spent: float
    #: Set-ups a second by the wall, accounts included.
    rate: float


def _run(realm: str, method: str, sessions: int, *, ended: bool = False) -> _Run:
    """Dial so many, and with *ended* hang up all."""
    with _Lab() as lab:
        server = None if realm == LOCAL else lab.freeradius(sessions)
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
        if not ended:
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


def measure(sessions: int, runs: int) -> Iterator[Figure]:
    """So many logins by each method, so often; medians.  Each run has a new npppyd and a new server."""
    for method in METHODS:
        local, radius = [], []
        for _ in range(runs):
            local.append(_run(LOCAL, method, sessions).spent)
            radius.append(_run(ACCOUNTS, method, sessions))
        rate = statistics.median(run.rate for run in radius)
        yield Figure(name=f"radius.login.{method}", value=rate, unit="logins/s", better="higher")
        base = statistics.median(local) / sessions * 1e6
        more = statistics.median(run.spent for run in radius) / sessions * 1e6 - base
        yield Figure(name=f"radius.cpu.{method}", value=more, unit="us", better="lower", baseline=base)
    without, accounted = (
        statistics.median(_run(realm, METHOD, sessions, ended=True).spent for _ in range(runs))
        for realm in (LOGINS, ACCOUNTS)
    )
    # A Start and a Stop.
    record = (accounted - without) / (2 * sessions) * 1e6
    yield Figure(name="radius.accounting.record", value=record, unit="us", better="lower")
    yield from _alone()


def _alone() -> Iterator[Figure]:
    """What the server does without npppyd, asked by radclient from npppyd's place and core."""
    with _Lab() as lab:
        lab.freeradius(REQUESTS + 1)
        for kind, port, requests in (("auth", AUTH, _logins()), ("acct", ACCT, _starts())):
            one, *others = requests
            # The first is answered while radclient and the server find their files.
            idle = _ask(lab, kind, port, [one])
            took = _ask(lab, kind, port, others) - idle
            yield Figure(name=f"radius.freeradius.{kind}", value=REQUESTS / took, unit="requests/s", better="higher")


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


def _logins() -> list[str]:
    return [
        f'User-Name = "{name}"\nUser-Password = "{word}"\nMessage-Authenticator = 0x00\n{_PORT.format(number=number)}'
        for number, (name, word) in enumerate(credentials(1, REQUESTS + 1))
    ]


def _starts() -> list[str]:
    return [
        f'User-Name = "{name}"\nAcct-Status-Type = Start\nFramed-IP-Address = 10.64.0.2\n{_PORT.format(number=number)}'
        for number, (name, _) in enumerate(credentials(1, REQUESTS + 1))
    ]
