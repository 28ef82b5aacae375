"""npppyctl radius, over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from npppy import ctl
from npppy.aaa.radius.accounting import AccountingState
from npppy.aaa.radius.packet import Code
from npppy.aaa.radius.server import ServerState
from npppy.control.radius import RadiusCommands
from npppy.control.server import ControlServer
from tests.unit.control_fake import START, FakeSubject
from tests.unit.dae_rig import Bench, signed

UP = ServerState(
    kind="auth",
    address=ip_address("192.0.2.1"),
    port=1812,
    state="up",
    since=START - 60,
    rtt_ms=1.2345,
    last_rtt_ms=0.96,
    requests=1000,
    retransmissions=3,
    answers=998,
    accepts=900,
    rejects=90,
    challenges=8,
    timeouts=2,
    bad={},
    outstanding=4,
    queued=5,
    sockets=2,
)
DEAD = ServerState(
    kind="acct",
    address=ip_address("2001:db8::1"),
    port=1813,
    state="dead",
    since=0.0,
    rtt_ms=0.0,
    last_rtt_ms=0.0,
    requests=7,
    retransmissions=14,
    answers=0,
    accepts=0,
    rejects=0,
    challenges=0,
    timeouts=7,
    bad={"authenticator": 2, "\x1bmalformed": 1},
    outstanding=0,
    queued=0,
    sockets=1,
)


class World:
    """What the daemon has of RADIUS: nothing at first."""

    def __init__(self) -> None:
        # The client
        self.servers: list[ServerState] = []
        # Accounting
        self.delivered = self.failures = self.replaced = 0
        self.path: Path | None = None
        self.depth: Counter[str] = Counter()
        self.trouble = ""
        self.event = 0
        # Dynamic authorization
        self.bench = Bench(dae={"clients": ()})
        self.dae = self.bench.dae
        self.lost: Counter[str] = Counter()
        self.places: list[str] = []

    def listening(self) -> list[str]:
        return self.places

    def state(self) -> list[Any]:
        return self.dae.state()


class FakeAccountant:
    def __init__(self, world: World) -> None:
        self._world = world

    def state(self) -> AccountingState:
        world = self._world
        return AccountingState(
            spool=world.path,
            lanes=(),
            waiting={realm: count for realm, count in world.depth.items() if count},
            orphaned=("OTHER",),
            oldest=world.event,
            delivered=world.delivered,
            failures=world.failures,
            replaced=world.replaced,
            trouble=world.trouble,
        )


class FakeClient:
    def __init__(self, world: World) -> None:
        self._world = world

    def state(self) -> list[ServerState]:
        return self._world.servers


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "npppyd.sock"


@pytest_asyncio.fixture(autouse=True)
async def server(world: World, path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(FakeSubject(), path)
    client, accountant, dae = FakeClient(world), FakeAccountant(world), world
    commands = RadiusCommands(lambda: client, lambda: accountant, lambda: dae, lambda: START)  # type: ignore[arg-type, return-value]
    commands.register(server)
    await server.start()
    yield server
    await server.close()


async def npppyctl(path: Path, line: str) -> int:
    async with asyncio.timeout(60):
        return await asyncio.to_thread(ctl.run, ["-s", str(path), *line.split()])


def busy(world: World) -> None:
    world.servers = [UP, DEAD]
    world.path = Path("/var/spool/npppy/radius.db")
    world.depth.update({"RADIUS": 12, "OTHER": 3, "EMPTY": 0})
    world.event = int(START) - 7261
    world.delivered, world.failures, world.replaced = 1000, 7, 2
    world.trouble = "disk\x1b full"
    world.places = ["0.0.0.0:3799", "[::]:3799"]
    world.lost["ENETUNREACH"] = 1
    bench = world.bench
    bench.reconfigure(clients=((ip_address("192.0.2.10"), "a secret of ours"), (ip_address("2001:db8::10"), "b")))
    bench.users("alice", 2)
    bench.disconnect(("User-Name", "carol"))
    bench.change(("User-Name", "alice"), ("Session-Timeout", 60))
    request = signed(Code.COA_REQUEST, [("User-Name", "alice")], identifier=77)
    bench.put(request)
    bench.put(request)
    bench.put(request[:-1])
    bench.put(request, ip_address("192.0.2.66"))


SHOWN = """\
Server              For   State  Since                RTT ms  Last  Requests  Again  Lost  Sent  Queue
192.0.2.1:1812      auth  up     2023/11/14 22:12:20     1.2   1.0      1000      3     2     4      5
[2001:db8::1]:1813  acct  dead   -                       0.0   0.0         7     14     7     0      0

Server              For   Answers  Accepts  Rejects  Challenges  Not counted
192.0.2.1:1812      auth      998      900       90           8  -
[2001:db8::1]:1813  acct        0        0        0           0  authenticator=2, \\x1bmalformed=1

Spool: /var/spool/npppy/radius.db, records that wait: 15, the oldest for 7261 sec (2 hours and 1 minute)
Delivered: 1000, attempts in vain: 7, replaced by later ones: 2
It cannot be written: disk\\x1b full

Realm   Records  Note
OTHER         3  it has no server any more
RADIUS       12  -

Dynamic authorization: listening 0.0.0.0:3799, [::]:3799, packets from strangers: 1, answers not sent: ENETUNREACH=1

Client        Disconnect  ACK  NAK  CoA  ACK  NAK  Repeated  Waiting  Errors        Discarded
192.0.2.10             1    0    1    2    1    1         1        0  503=1, 402=1  malformed=1
2001:db8::10           0    0    0    0    0    0         0        0  -             -
"""


async def test_all_of_it(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy(world)
    assert await npppyctl(path, "radius") == 0
    assert capsys.readouterr() == (SHOWN, "")


async def test_nothing_of_it(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await npppyctl(path, "rad") == 0
    assert capsys.readouterr().out == (
        "Spool: in memory, records that wait: 0\n"
        "Dynamic authorization: listening nowhere, packets from strangers: 0\n"
    )


async def test_json(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy(world)
    assert await npppyctl(path, "-j radius") == 0
    *rows, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["what"] for row in rows] == ["server"] * 2 + ["records"] * 2 + ["client"] * 2
    assert rows[0] == {
        "what": "server",
        "kind": "auth",
        "address": "192.0.2.1",
        "port": 1812,
        "state": "up",
        "since": START - 60,
        "rtt_ms": 1.2345,
        "last_rtt_ms": 0.96,
        "requests": 1000,
        "retransmissions": 3,
        "answers": 998,
        "accepts": 900,
        "rejects": 90,
        "challenges": 8,
        "timeouts": 2,
        "bad": {},
        "outstanding": 4,
        "queued": 5,
        "sockets": 2,
    }
    assert rows[3] == {"what": "records", "realm": "RADIUS", "records": 12, "orphaned": False}
    assert rows[4] == {
        "what": "client",
        "address": "192.0.2.10",
        "disconnects": 1,
        "disconnect_acks": 0,
        "disconnect_naks": 1,
        "changes": 2,
        "change_acks": 1,
        "change_naks": 1,
        "duplicates": 1,
        "waiting": 0,
        "errors": {"503": 1, "402": 1},
        "discarded": {"malformed": 1},
    }
    assert done == {
        "spool": "/var/spool/npppy/radius.db",
        "records": 15,
        "oldest": 7261,
        "delivered": 1000,
        "failures": 7,
        "replaced": 2,
        "trouble": "disk\x1b full",
        "listen": ["0.0.0.0:3799", "[::]:3799"],
        "strangers": 1,
        "lost": {"ENETUNREACH": 1},
    }


async def test_words(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await npppyctl(path, "radius all") == 1
    assert "superfluous argument: all" in capsys.readouterr().err
