"""npppyctl tunnel and clear tunnel, over a real socket and real tunnels of L2TP and PPTP."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from npppy import ctl
from npppy.config.model import L2tpOptions, PptpOptions, Protocol
from npppy.control.server import ControlServer
from npppy.control.sessions import CLEAR_SLICE, SLICE
from npppy.control.subject import EngineSubject
from npppy.control.tunnels import TunnelCommands, TunnelFilter
from npppy.l2tp.engine import Engine
from npppy.l2tp.service import Endpoint
from npppy.l2tp.tunnel import State, Tunnel
from npppy.ppp.cause import Cause
from npppy.ppp.mppe import Keys, Mode, Mppe
from npppy.pptp import connection as pptp
from npppy.pptp import engine as pptp_engine
from npppy.pptp.codec import Type
from tests.unit import pptp_net
from tests.unit.control_fake import FakeSubject, ask
from tests.unit.l2tp_net import LAC, LNS, LacCall, Net, PlainLac
from tests.unit.ppp_rig import Rig
from tests.unit.pppoe_fake import FakePpp

NAT = bytes.fromhex("20010db8000000000000000000000007")
LNS6 = bytes.fromhex("20010db8000000000000000000000001")


class World:
    """An LNS and a PAC, and who has tunnels to them."""

    def __init__(self) -> None:
        self.pptp = pptp_net.Net()
        self.dialled = FakePpp()
        self.pac = self.pptp.pac(self.dialled)
        self.pns = self.pptp.pns()
        self.net = Net()
        self.ppp = FakePpp()
        self.lns = self.net.lns(self.ppp, sccrq_limit=0)
        self.lac = self.net.lac()

    def up(self, lac: PlainLac | None = None, calls: int = 0) -> tuple[Tunnel, list[LacCall]]:
        """Our end of a new tunnel, and the other end of its calls."""
        lac = lac or self.lac
        theirs = lac.ask()
        self.net.run(1)
        assert theirs.state is State.ESTABLISHED
        tunnel = self.lns.tunnels[theirs.peer_id]
        ringing = [lac.call(theirs) for _ in range(calls)]
        self.net.run(1)
        assert len(tunnel.calls) == calls
        return tunnel, ringing

    def dial(self, calls: int = 0) -> tuple[pptp.Connection, list[pptp_net.PnsCall]]:
        """Our end of a new PPTP connection, and the other end of its calls; for L2TP no time passes."""
        theirs = self.pns.connect(self.pac)
        connection = list(self.pac.connections.values())[-1]
        self.pptp.run(1)
        made = [self.pns.call(theirs) for _ in range(calls)]
        self.pptp.run(1)
        assert connection.state is pptp.State.ESTABLISHED
        assert len(connection.calls) == calls
        return connection, made

    def half_open(self) -> Tunnel:
        """We have answered, and nobody hears it."""
        lac = self.net.lac(bytes((203, 0, 113, 9)), 32768)
        lac.hostname = "\x1b]0;behind a NAT"
        del self.net.nodes[bytes((203, 0, 113, 9)), 32768]
        before = set(self.lns.tunnels)
        lac.ask()
        self.net.run(0.5)
        (number,) = set(self.lns.tunnels) - before
        return self.lns.tunnels[number]


@pytest.fixture(autouse=True)
def _time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("npppy.control.tunnels.time", SimpleNamespace(time=lambda: 1_700_000_000.0))
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
    TunnelCommands(lambda: world.lns, lambda: world.pac, lambda: world.net.now).register(server)
    await server.start()
    yield server
    await server.close()


async def npppyctl(path: Path, line: str) -> int:
    return await asyncio.to_thread(ctl.run, ["-s", str(path), *line.split()])


TITLE = """\
Id         Peer  Proto State            Sessions Peer                      Host Name
---------- ----- ----- ---------------- -------- ------------------------- -------------------------
"""


async def test_brief(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tunnel, _ = world.up(calls=3)
    waiting = world.half_open()
    world.dial(calls=2)
    world.pptp.raw(world.pac)
    assert await npppyctl(path, "tunnel brief") == 0
    ids, ids2 = f"{tunnel.id:10d} {tunnel.peer_id:5d}", f"{waiting.id:10d} {waiting.peer_id:5d}"
    shown = f"""\
{TITLE}{ids} L2TP  established             3 198.51.100.7:1701         lac.example
{ids2} L2TP  wait-ctl-conn           0 203.0.113.9:32768         \\x1b]0;behind a NAT
     65536     - PPTP  established             2 198.51.100.7:40001        pns.example
     65537     - PPTP  wait-ctl-request        0 198.51.100.7:40000        -
"""
    assert capsys.readouterr() == (shown, "")


async def test_one_that_we_ask_for_has_no_name_yet(
    world: World, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = Endpoint(LNS6, 1701, NAT, 1024)
    tunnel = world.lns.dial(world.lns.services["L2TP"], at, lambda endpoint, datagram: None, world.net.now)
    assert tunnel is not None
    assert await npppyctl(path, "tunnel brief") == 0
    shown = f"{TITLE}{tunnel.id:10d}     0 L2TP  wait-ctl-reply          0 [2001:db8::7]:1024        -\n"
    assert capsys.readouterr() == (shown, "")


async def test_all(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tunnel, _ = world.up(calls=2)
    waiting = world.half_open()
    waiting.endpoint = waiting.endpoint._replace(mark=5)
    world.net.run(3)
    assert await npppyctl(path, "tunnel all") == 0
    assert waiting.channel.retransmissions
    # Of the first: SCCRP and two ICRPs; SCCRQ, SCCCN, two ICRQs and two ICCNs.
    shown = f"""\
Tunnel Id = {tunnel.id}
          Tunnel Id               : {tunnel.id}
          Peer's Tunnel Id        : {tunnel.peer_id}
          Tunnel Name             : L2TP
          Tunnel Protocol         : L2TP
          State                   : established
          Peer                    : 198.51.100.7:1701
          Peer's Host Name        : lac.example
          Local Address           : 192.0.2.1:1701
          Start Time              : 2023/11/14 22:13:14
          Elapsed Time            : 5 sec\x20
          Sessions                : 2
          Peer's Window           : 16
          Congestion Window       : {tunnel.channel.cwnd}
          Queued Messages         : 0
          Retransmissions         : 0
          Next Ns                 : 3
          Next Nr                 : 6

Tunnel Id = {waiting.id}
          Tunnel Id               : {waiting.id}
          Peer's Tunnel Id        : {waiting.peer_id}
          Tunnel Name             : L2TP
          Tunnel Protocol         : L2TP
          State                   : wait-ctl-conn
          Peer                    : 203.0.113.9:32768
          Peer's Host Name        : \\x1b]0;behind a NAT
          Local Address           : 192.0.2.1:1701
          Start Time              : 2023/11/14 22:13:16
          Elapsed Time            : 3 sec\x20
          Sessions                : 0
          Peer's Window           : 16
          Congestion Window       : 1
          Queued Messages         : 1
          Retransmissions         : {waiting.channel.retransmissions}
          Next Ns                 : 1
          Next Nr                 : 1
          Mark of its SA          : 5
"""
    assert capsys.readouterr() == (shown, "")


async def test_all_of_pptp(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection, _ = world.dial(calls=2)
    options = connection.service.options
    world.net.now = world.pptp.now
    for line in ("", "          Echo-Request            : not answered yet\n"):
        assert await npppyctl(path, "tunnel all") == 0
        elapsed = int(world.net.now - connection.began)
        shown = f"""\
Tunnel Id = 65536
          Tunnel Id               : 65536
          Tunnel Name             : PPTP
          Tunnel Protocol         : PPTP
          State                   : established
          Peer                    : 198.51.100.7:40001
          Peer's Host Name        : pns.example
          Peer's Vendor Name      : {options.vendor_name}
          Local Address           : 192.0.2.1:1723
          Start Time              : {time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(1_700_000_000 - elapsed))}
          Elapsed Time            : {elapsed} sec\x20
          Sessions                : 2
{line}"""
        assert capsys.readouterr() == (shown, "")
        # The peer falls silent, and is asked whether it is there.
        connection.expire(world.net.now + options.echo_interval)


async def test_json(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tunnel, _ = world.up(calls=1)
    assert await npppyctl(path, "-j tunnel brief") == 0
    line = capsys.readouterr().out
    assert await npppyctl(path, "-j tunnel all") == 0
    assert capsys.readouterr().out == line
    assert json.loads(line) == {
        "tunnel_id": tunnel.id,
        "protocol": "L2TP",
        "peer_tunnel_id": tunnel.peer_id,
        "state": "established",
        "tunnel": "L2TP",
        "peer": "198.51.100.7:1701",
        "peer_name": "lac.example",
        "local": "192.0.2.1:1701",
        "start": 1_699_999_998.01,
        "duration": 1.99,
        "sessions": 1,
        "window": 16,
        "cwnd": tunnel.channel.cwnd,
        "queued": 0,
        "retransmissions": 0,
        "next_ns": 2,
        "next_nr": 4,
        "mark": 0,
    }
    check_manual(json.loads(line))


async def test_json_of_pptp(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, connection = world.pptp.raw(world.pac)
    assert connection is not None
    raw.say(Type.START_REQUEST, version=0x0100, host_name=b"pns\x1b", vendor_name=b"Linux\xff")
    world.net.now = connection.began + 1.5
    assert await npppyctl(path, "-j tunnel all") == 0
    row = json.loads(capsys.readouterr().out)
    assert row == {
        "tunnel_id": 65536,
        "protocol": "PPTP",
        "state": "established",
        "tunnel": "PPTP",
        "peer": "198.51.100.7:40000",
        "peer_name": "pns\x1b",
        "peer_vendor": "Linux?",
        "local": "192.0.2.1:1723",
        "start": 1_699_999_998.5,
        "duration": 1.5,
        "sessions": 0,
        "echo_pending": False,
    }
    check_manual(row)


def check_manual(row: dict[str, Any]) -> None:
    manual = (Path(ctl.__file__).parents[1] / "conf" / "npppyctl.8").read_text()
    for name in row:
        assert f"\n.It Cm {name}\n" in manual, name


PPTP = {"pptp-up", "pptp-half-open", "pptp-stopping", "pptp-closing"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", {"up", "half-open", "closing", *PPTP}),
        ("state established", {"up", "pptp-up"}),
        ("state half-open", {"half-open", "pptp-half-open"}),
        ("state closing", {"closing", "pptp-stopping", "pptp-closing"}),
        ("peer 198.51.100.7", {"up", "closing", *PPTP}),
        ("peer 198.51.100.7 protocol l2tp", {"up", "closing"}),
        ("protocol l2tp", {"up", "half-open", "closing"}),
        ("protocol PPTP", PPTP),
        ("protocol pptp state established", {"pptp-up"}),
        ("name PPTP", PPTP),
        ("name PPTP protocol l2tp", set()),
        ("id {pptp-up}", {"pptp-up"}),
        ("id {pptp-up} protocol l2tp", set()),
        ("id {up} protocol pptp", set()),
        ("id 4294967295", set()),
        ("peer 198.51.100.7 state established name L2TP", {"up"}),
        ("peer 198.51.100.8", set()),
        ("peer ::1", set()),
        ("name L2TP", {"up", "half-open", "closing"}),
        ("name l2tp", set()),
        ("id {up}", {"up"}),
        ("id {half-open}", {"half-open"}),
        ("id {half-open} peer 198.51.100.7", set()),
        ("id 0", set()),
    ],
)
async def test_filters(
    world: World, path: Path, words: str, found: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    closing, _ = world.up()
    stopping, _ = world.dial()
    tunnels: dict[str, Any] = {
        "up": world.up()[0],
        "half-open": world.half_open(),
        "closing": closing,
        "pptp-up": world.dial()[0],
        "pptp-half-open": world.pptp.raw(world.pac)[1],
        "pptp-stopping": stopping,
    }
    # Of this one the other end is the test, which does not close.
    raw, tunnels["pptp-closing"] = world.pptp.started(world.pac, port=40010)
    raw.say(Type.STOP_REQUEST, reason=1)
    closing.stop(1, 0, "enough", world.net.now)
    stopping.stop(1, "enough", Cause.ADMIN_RESET, world.pptp.now)
    ids = {name: str(tunnel.id) for name, tunnel in tunnels.items()}
    assert len(set(ids.values())) == 7
    assert await npppyctl(path, f"-j tunnel brief {words.format(**ids)}") == 0
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert {row["tunnel_id"] for row in rows} == {tunnels[name].id for name in found}


async def test_no_tunnel_no_output(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("tunnel brief", "tunnel all", "-j tunnel all"):
        assert await npppyctl(path, line) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ([], "the filters are not an object"),
        (None, "the filters are not an object"),
        ({"color": "red"}, "unknown filter 'color'"),
        ({"id": "7"}, "filter id: not a number"),
        ({"id": True}, "filter id: not a number"),
        ({"id": None}, "filter id: not a number"),
        ({"peer": 7}, "filter peer: not a string"),
        ({"peer": "10.1"}, "filter peer: not an address"),
        ({"name": ["L2TP"]}, "filter name: not a string"),
        ({"state": "up"}, "filter state: not one of established, half-open, closing"),
        ({"protocol": "pppoe"}, "filter protocol: not one of l2tp, pptp"),
        ({"protocol": 7}, "filter protocol: not a string"),
    ],
)
@pytest.mark.parametrize("command", ["tunnel", "clear-tunnel"])
async def test_bad_filters_do_nothing(world: World, path: Path, command: str, filters: Any, said: str) -> None:
    tunnel, _ = world.up()
    connection, _ = world.dial()
    assert await ask(path, {"command": command, "filters": filters}) == ([], {"error": said})
    assert tunnel.state is State.ESTABLISHED
    assert connection.state is pptp.State.ESTABLISHED


# clear


@pytest.mark.parametrize(
    ("words", "cleared", "printed"),
    [
        ("all", {"large", "small", "half-open"}, "Successfully disconnected 3 tunnels with 4 sessions.\n"),
        ("id {small}", {"small"}, "Successfully disconnected 1 tunnel with 1 session.\n"),
        ("id {half-open}", {"half-open"}, "Successfully disconnected 1 tunnel with no session.\n"),
        ("peer 198.51.100.7", {"large", "small"}, "Successfully disconnected 2 tunnels with 4 sessions.\n"),
        ("peer 198.51.100.7 id {large}", {"large"}, "Successfully disconnected 1 tunnel with 3 sessions.\n"),
        ("name L2TP", {"large", "small", "half-open"}, "Successfully disconnected 3 tunnels with 4 sessions.\n"),
        ("state half-open", {"half-open"}, "Successfully disconnected 1 tunnel with no session.\n"),
        ("state closing", set(), "No tunnel to disconnect.\n"),
    ],
)
async def test_clear(
    world: World, path: Path, words: str, cleared: set[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    large, calls = world.up(calls=3)
    small, more = world.up(calls=1)
    tunnels = {"large": large, "small": small, "half-open": world.half_open()}
    ids = {name: str(tunnel.id) for name, tunnel in tunnels.items()}
    assert await npppyctl(path, f"clear tunnel {words.format(**ids)}") == 0
    assert capsys.readouterr() == (printed, "")
    assert {name for name, tunnel in tunnels.items() if tunnel.state is State.CLOSING} == cleared
    # The peer learns it by a StopCCN, and the sessions end as those that npppyctl clears.
    world.net.run(1)
    ended = {"large": calls, "small": more}
    for name, legs in ended.items():
        for leg in legs:
            assert (leg.why is not None and "StopCCN received" in leg.why[1]) == (name in cleared)
    assert [cause for session in world.ppp.sessions for cause, _ in session.ended] == [Cause.ADMIN_RESET] * sum(
        len(ended.get(name, [])) for name in cleared
    )


@pytest.mark.parametrize(
    ("words", "cleared", "printed"),
    [
        ("all", {"l2tp", "two", "one", "half-open"}, "Successfully disconnected 4 tunnels with 4 sessions.\n"),
        ("protocol pptp", {"two", "one", "half-open"}, "Successfully disconnected 3 tunnels with 3 sessions.\n"),
        ("protocol l2tp", {"l2tp"}, "Successfully disconnected 1 tunnel with 1 session.\n"),
        ("id {two}", {"two"}, "Successfully disconnected 1 tunnel with 2 sessions.\n"),
        ("id {half-open}", {"half-open"}, "Successfully disconnected 1 tunnel with no session.\n"),
        ("name PPTP", {"two", "one", "half-open"}, "Successfully disconnected 3 tunnels with 3 sessions.\n"),
        ("name L2TP", {"l2tp"}, "Successfully disconnected 1 tunnel with 1 session.\n"),
        ("state half-open", {"half-open"}, "Successfully disconnected 1 tunnel with no session.\n"),
        ("state closing", set(), "No tunnel to disconnect.\n"),
    ],
)
async def test_clear_pptp(
    world: World, path: Path, words: str, cleared: set[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tunnel, _ = world.up(calls=1)
    two, calls = world.dial(calls=2)
    one, more = world.dial(calls=1)
    _, waiting = world.pptp.raw(world.pac)
    assert waiting is not None
    tunnels: dict[str, Any] = {"l2tp": tunnel, "two": two, "one": one, "half-open": waiting}
    ids = {name: str(tunnel.id) for name, tunnel in tunnels.items()}
    assert await npppyctl(path, f"clear tunnel {words.format(**ids)}") == 0
    assert capsys.readouterr() == (printed, "")
    ended = {"l2tp"} if tunnel.state is State.CLOSING else set()
    ended |= {name for name in ("two", "one", "half-open") if tunnels[name].state > pptp.State.ESTABLISHED}
    assert ended == cleared
    # The peer is told, and closes; the sessions end as those that npppyctl clears.
    world.pptp.run(1)
    assert {two.state, one.state} <= {pptp.State.GONE, pptp.State.ESTABLISHED}
    for name, legs in {"two": calls, "one": more}.items():
        for leg in legs:
            assert (leg.why is not None and "Stop-Control-Connection-Request" in leg.why[1]) == (name in cleared)
    lost = sum(len(legs) for name, legs in {"two": calls, "one": more}.items() if name in cleared)
    assert [cause for session in world.dialled.sessions for cause, _ in session.ended] == [Cause.ADMIN_RESET] * lost


def test_connections_have_numbers_that_tunnels_do_not(world: World) -> None:
    """From 65536 to 4294967295, and on from the beginning, but for those in use."""
    assert [world.dial()[0].id for _ in range(2)] == [65536, 65537]
    world.pac._next = pptp_engine.LAST
    numbers = [world.dial()[0].id for _ in range(2)]
    assert numbers == [4294967295, 65538]
    assert sorted(world.pac.connections) == [65536, 65537, 65538, 4294967295]


async def test_clear_twice(world: World, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is closing still is there, and has nothing left to be told."""
    tunnel, _ = world.up()
    assert await npppyctl(path, f"-j clear tunnel id {tunnel.id}") == 0
    assert await npppyctl(path, f"clear tunnel id {tunnel.id}") == 0
    assert capsys.readouterr() == ('{"tunnels": 1, "sessions": 0}\nNo tunnel to disconnect.\n', "")


async def test_clear_all_of_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("all", "name L2TP"):
        assert await npppyctl(path, f"clear tunnel {words}") == 0
    assert capsys.readouterr() == ("No tunnel to disconnect.\n" * 2, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("id 0", "there is no tunnel with id 0"),
        ("peer 10.0.0.1", "there is no tunnel with peer 10.0.0.1"),
        ("peer 198.51.100.7 state half-open", "there is no tunnel with peer 198.51.100.7 and state half-open"),
        ("id 65536 protocol l2tp", "there is no tunnel with id 65536 and protocol l2tp"),
        ("name PPPOE", 'there is no L2TP or PPTP tunnel block "PPPOE"'),
        ("name L2TP protocol pptp", 'there is no PPTP tunnel block "L2TP"'),
        ("name \x1b", 'there is no L2TP or PPTP tunnel block "\\x1b"'),
    ],
)
async def test_what_is_unknown_is_named(
    world: World, path: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tunnel, _ = world.up()
    assert await asyncio.to_thread(ctl.run, ["-s", str(path), "clear", "tunnel", *words.split(" ")]) == 1
    assert capsys.readouterr() == ("", f"npppyctl: {said}\n")
    assert tunnel.state is State.ESTABLISHED


async def test_clear_is_logged(world: World, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world.up(calls=1)
    caplog.set_level(logging.INFO, "npppy.control")
    await ask(path, {"command": "clear-tunnel", "filters": {"peer": "198.51.100.7"}})
    (line,) = (record.getMessage() for record in caplog.records if record.name == "npppy.control")
    assert line.startswith("control pid=")
    assert line.endswith('command=clear-tunnel filters={"peer":"198.51.100.7"} tunnels=1 sessions=1')


@pytest.mark.parametrize(("command", "most"), [("tunnel", SLICE), ("clear-tunnel", CLEAR_SLICE)])
async def test_others_run_meanwhile(
    world: World, path: Path, command: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = world.lns.services["L2TP"]
    for number in range(2000):
        at = Endpoint(LNS, 1701, LAC, 10000 + number)
        assert world.lns.dial(service, at, lambda endpoint, datagram: None, world.net.now)
    turn, looks = 0, Counter[int]()
    matches = TunnelFilter.matches

    def look(self: TunnelFilter, tunnel: Tunnel) -> bool:
        looks[turn] += 1
        return matches(self, tunnel)

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(TunnelFilter, "matches", look)
    turns = asyncio.create_task(count())
    rows, last = await ask(path, {"command": command, "filters": {}})
    turns.cancel()
    assert (len(rows), last) == {
        "tunnel": (2000, {"done": {}}),
        "clear-tunnel": (0, {"done": {"tunnels": 2000, "sessions": 0}}),
    }[command]
    assert sum(looks.values()) == 2000
    assert max(looks.values()) <= most


# Sessions


async def test_a_session_shows_its_ids_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig(name="L2TP", protocol=Protocol.L2TP, carrier=L2tpOptions())
    net = Net()
    ppp: Any = rig.engine
    lns: Engine = net.lns(ppp)
    lac = net.lac()
    theirs = lac.ask()
    net.run(1)
    call = lac.call(theirs)
    net.run(1)
    (tunnel,) = lns.tunnels.values()
    (ours,) = tunnel.calls.values()
    server = ControlServer(EngineSubject(rig.engine, lambda: rig.now), tmp_path / "sock")
    await server.start()
    assert await npppyctl(tmp_path / "sock", "session all state any") == 0
    shown = capsys.readouterr().out
    assert await npppyctl(tmp_path / "sock", "-j session all state any") == 0
    row = json.loads(capsys.readouterr().out)
    await server.close()
    tail = f"""\
          Tunnel Id               : {tunnel.id}, peer's {theirs.id}
          Session Id              : {ours.id}, peer's {call.id}
          Calling Number          : 4711
          Called Number           : 0800
          State                   : establish
"""
    assert shown.endswith(tail)
    fields = {
        "tunnel_id": tunnel.id,
        "peer_tunnel_id": theirs.id,
        "session_id": ours.id,
        "peer_session_id": call.id,
        "calling_number": "4711",
        "called_number": "0800",
    }
    assert {name: row.get(name) for name in fields} == fields
    assert not {"mppe_in", "mppe_out"} & set(row)
    check_manual(row)


async def test_a_session_over_pptp_shows_its_ids_and_its_encryption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(name="PPTP", protocol=Protocol.PPTP, carrier=PptpOptions())
    net = pptp_net.Net()
    ppp: Any = rig.engine
    pac = net.pac(ppp)
    call = net.pns().up(pac)
    (connection,) = pac.connections.values()
    (ours,) = pac.calls.values()
    (session,) = rig.engine.sessions.values()
    server = ControlServer(EngineSubject(rig.engine, lambda: rig.now), tmp_path / "sock")
    await server.start()
    assert await npppyctl(tmp_path / "sock", "-j session all state any protocol pptp") == 0
    clear = json.loads(capsys.readouterr().out)
    session.mppe = Mppe.begin(Keys(bytes(16), bytes(16)), Mode(40, True), Mode(128, False))
    assert await npppyctl(tmp_path / "sock", "session all state any") == 0
    shown = capsys.readouterr().out
    assert await npppyctl(tmp_path / "sock", "-j session all state any") == 0
    row = json.loads(capsys.readouterr().out)
    await server.close()
    tail = f"""\
          Tunnel Id               : 65536
          Session Id              : {ours.id}, peer's {call.id}
          MPPE                    : in 128bits,stateless; out 40bits,stateful
          State                   : establish
"""
    assert shown.endswith(tail)
    fields = {"tunnel_id": connection.id, "session_id": ours.id, "peer_session_id": call.id}
    mppe = {"mppe_in": "128bits,stateless", "mppe_out": "40bits,stateful"}
    assert {name: row.get(name) for name in fields | mppe} == fields | mppe
    assert {name: clear.get(name) for name in fields} == fields
    assert not {"peer_tunnel_id", *mppe} & set(clear)
    check_manual(row)
