"""The commands about the data path, as npppyd carries them out."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from npppy.config.model import PipexChoice
from npppy.control.pipex import PipexCommands
from npppy.control.server import ControlServer
from npppy.control.sessions import SLICE
from npppy.control.subject import EngineSubject
from npppy.pipex import capture as capture_module
from npppy.pipex.base import Counters, Police, Wish
from npppy.pipex.null import NullBackend
from npppy.pipex.police import LEAST_BURST, MOST_BURST
from npppy.pipex.user import UserBackend, UserFlow
from npppy.ppp import proto
from npppy.ppp.link import IN
from npppy.ppp.station import Phase
from tests.unit.control_fake import Client, ask, until
from tests.unit.ippackets import udp
from tests.unit.pipex_fake import IP, FakeKernel, KernelFlow, World

Ask = Callable[..., Any]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "npppyd.sock"


@pytest_asyncio.fixture
async def commands(world: World, path: Path) -> AsyncIterator[PipexCommands]:
    def clock() -> float:
        return world.rig.now

    server = ControlServer(EngineSubject(world.rig.engine, clock), path)
    commands = PipexCommands(world.rig.engine, lambda: world.backend, clock)
    commands.register(server)
    await server.start()
    yield commands
    await server.close()


async def done(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    rows, last = await ask(path, request)
    assert not rows
    assert list(last) == ["done"], last
    return dict(last["done"])


async def refused(path: Path, request: dict[str, Any]) -> str:
    rows, last = await ask(path, request)
    assert not rows
    assert list(last) == ["error"], last
    return str(last["error"])


def flow_of(world: World) -> KernelFlow:
    flow = world.session.flow
    assert isinstance(flow, KernelFlow)
    return flow


def police(ppp_id: int, down: Any = 10_000_000, up: Any = 2_000_000, **more: Any) -> dict[str, Any]:
    return {"command": "pipex", "ppp_id": ppp_id, "police": {"down": down, "up": up, **more}}


def carry(ppp_id: int, who: str) -> dict[str, Any]:
    return {"command": "pipex", "ppp_id": ppp_id, "carry": who}


def renegotiate(world: World) -> None:
    """LCP begins anew, and all above with it."""
    before = world.session.flow
    world.negotiate()
    assert world.session.phase is Phase.UP
    assert world.session.flow is not before


# Limits


async def test_police(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.up()
    answer = await done(path, police(session.id))
    assert answer == {
        "ppp_id": session.id,
        "pipex": "ebpf",
        "rate_down": 10_000_000,
        "burst_down": 125_000,
        "rate_up": 2_000_000,
        "burst_up": 25_000,
    }
    assert flow_of(world).limits == (Police(250_000, 25_000), Police(1_250_000, 125_000))
    rows, _ = await ask(path, {"command": "session"})
    assert [{name: row[name] for name in answer} for row in rows] == [answer]
    # Of one way only, and lifted.
    assert (await done(path, police(session.id, up=0)))["rate_up"] == 0
    assert flow_of(world).limits == (None, Police(1_250_000, 125_000))
    assert (await done(path, {**police(session.id), "police": None}))["rate_down"] == 0
    assert flow_of(world).limits == (None, None)
    assert not world.rig.engine.wishes


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        ({"down": 8_000}, Police(1_000, LEAST_BURST)),
        ({"down": 1_200_000}, Police(150_000, 15_000)),
        ({"down": 1_200_080}, Police(150_010, 15_001)),
        ({"down": 10**12}, Police(125 * 10**9, 125 * 10**8)),
        ({"down": 10**6, "burst_down": 1492}, Police(125_000, 1492)),
        ({"down": 10**6, "burst_down": MOST_BURST}, Police(125_000, MOST_BURST)),
    ],
)
async def test_bursts(
    world: World, commands: PipexCommands, path: Path, request_: dict[str, int], limit: Police
) -> None:
    session = world.up()
    await done(path, police(session.id, **{"up": 0, **request_}))
    assert flow_of(world).limits == (None, limit)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"down": 7_999}, "a rate of 7999 bit/s: it may be 8000 to 1000000000000, or 0 for no limit"),
        ({"up": 10**12 + 1}, "a rate of 1000000000001 bit/s"),
        ({"up": -1}, "a rate of -1 bit/s"),
        ({"down": "10M"}, "not a number"),
        ({"down": True}, "not a number"),
        ({"down": None}, "not a number"),
        ({"burst_up": 1.5}, "not a number"),
        ({"burst_down": 1491}, "a burst of 1491 octets: it may be 1492, which is the largest packet, to 18000000000"),
        ({"burst_up": MOST_BURST + 1}, "a burst of 18000000001 octets"),
    ],
)
async def test_limits_that_cannot_be(
    world: World, commands: PipexCommands, path: Path, values: dict[str, Any], why: str
) -> None:
    session = world.up()
    assert why in await refused(path, police(session.id, **values))
    assert flow_of(world).limits == (None, None)
    assert not world.rig.engine.wishes


@pytest.mark.parametrize(("mru", "least"), [(1400, 1492), (1500, 1492), (9000, 1492)])
async def test_a_burst_lets_any_packet_pass_that_may_be_agreed(mru: int, least: int) -> None:
    """The link's bound is 1492; within it, LCP may agree on what the tunnel says, or on nothing, which is 1500."""
    world = World(mru=mru)
    session = world.up()
    commands = PipexCommands(world.rig.engine, lambda: world.backend, lambda: world.rig.now)
    with pytest.raises(Exception, match=f"it may be {least}"):
        await commands.pipex(police(session.id, burst_up=least - 1), None)  # type: ignore[arg-type]
    await commands.pipex(police(session.id, burst_up=least), None)  # type: ignore[arg-type]


async def test_limits_outlive_negotiation_but_not_the_session(
    world: World, commands: PipexCommands, path: Path
) -> None:
    session = world.up()
    await done(path, police(session.id))
    limits = flow_of(world).limits
    renegotiate(world)
    assert flow_of(world).limits == limits
    world.rig.engine.disconnect(session.id, world.rig.now)
    world.settle()
    assert session.phase is Phase.DEAD
    assert not world.rig.engine.wishes
    world.up()
    assert flow_of(world).limits == (None, None)


async def test_python_holds_limits_too(path: Path) -> None:
    world = World(UserBackend("for a test"))
    session = world.up()
    commands = PipexCommands(world.rig.engine, lambda: world.backend, lambda: world.rig.now)
    request = police(session.id, down=8_000, up=8_000)
    answer = await commands.pipex(request, None)  # type: ignore[arg-type]
    assert (answer["pipex"], answer["rate_up"]) == ("user", 8_000)
    flow = session.flow
    assert flow is not None
    for _ in range(20):
        world.send(IP + udp("10.0.0.2", "192.0.2.1", bytes(1000)))
    world.settle()
    assert flow.counters().in_packets == LEAST_BURST // 1028


# Who carries it


async def test_to_python_and_back(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.up()
    flow = flow_of(world)
    assert (await done(path, carry(session.id, "user")))["pipex"] == "user"
    assert flow.user
    assert (await done(path, carry(session.id, "user")))["pipex"] == "user"
    rows, _ = await ask(path, {"command": "session"})
    assert [row["pipex"] for row in rows] == ["user"]
    assert (await done(path, carry(session.id, "ebpf")))["pipex"] == "ebpf"
    assert (await done(path, carry(session.id, "ebpf")))["pipex"] == "ebpf"
    assert flow_of(world) is flow, "the same flow all the time: no packet is lost"
    assert not world.rig.engine.wishes


async def test_what_an_operator_took_back_stays_so(world: World, commands: PipexCommands, path: Path) -> None:
    """After a negotiation the kernel has no part in it, and takes it when it is told to."""
    session = world.up()
    await done(path, carry(session.id, "user"))
    renegotiate(world)
    assert not flow_of(world).inside
    world.send(IP + udp("10.0.0.2", "192.0.2.1"))
    world.settle()
    before = session.counters()
    assert before.in_packets == 1
    assert (await done(path, carry(session.id, "ebpf")))["pipex"] == "ebpf"
    assert flow_of(world).carried
    assert session.counters() == before
    renegotiate(world)
    assert flow_of(world).carried


@pytest.mark.parametrize(
    ("tunnel", "why"),
    [
        ({"pipex": PipexChoice.NO}, "tunnel PPPOE says pipex no"),
        ({"pipex": PipexChoice.USER}, "tunnel PPPOE says pipex user"),
        ({"dump_in": frozenset(("ip",))}, "tunnel PPPOE has the packets dumped"),
        ({"dump_out": frozenset(("ip", "lcp"))}, "tunnel PPPOE has the packets dumped"),
    ],
)
async def test_a_tunnel_may_forbid_the_kernel(tunnel: dict[str, Any], why: str) -> None:
    world = World(**tunnel)
    session = world.up()
    commands = PipexCommands(world.rig.engine, lambda: world.backend, lambda: world.rig.now)
    with pytest.raises(Exception, match=f"the kernel cannot carry ppp id {session.id}: {why}"):
        await commands.pipex(carry(session.id, "ebpf"), None)  # type: ignore[arg-type]
    assert not flow_of(world).inside


async def test_why_the_kernel_cannot(world: World, commands: PipexCommands, path: Path) -> None:
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    kernel.capacity = 0
    session = world.up()
    cannot = f"the kernel cannot carry ppp id {session.id}"
    assert await refused(path, carry(session.id, "ebpf")) == f"{cannot}: the maps are full"
    kernel.refusal = "eth1 has no program"
    assert await refused(path, carry(session.id, "ebpf")) == f"{cannot}: eth1 has no program"
    assert session.phase is Phase.UP
    # It says that it can, and does not.
    kernel.refusal, kernel.why_not = "", lambda *_: ""  # type: ignore[method-assign]
    assert "has not taken" in await refused(path, carry(session.id, "ebpf"))
    kernel.capacity = 1
    assert (await done(path, carry(session.id, "ebpf")))["pipex"] == "ebpf"


async def test_back_end_user(path: Path) -> None:
    world = World(UserBackend("the kernel is too old"))
    session = world.up()
    commands = PipexCommands(world.rig.engine, lambda: world.backend, lambda: world.rig.now)
    with pytest.raises(Exception, match="back end user: the kernel is too old"):
        await commands.pipex(carry(session.id, "ebpf"), None)  # type: ignore[arg-type]
    assert (await commands.pipex(carry(session.id, "user"), None))["pipex"] == "user"  # type: ignore[arg-type]


# Requests that make no sense


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"ppp_id": 99, "carry": "user"}, "there is no session with ppp id 99"),
        ({"ppp_id": "1", "carry": "user"}, "ppp_id: not a number"),
        ({"ppp_id": True, "carry": "user"}, "ppp_id: not a number"),
        ({"ppp_id": None, "carry": "user"}, "ppp_id: not a number"),
        ({"ppp_id": 0}, "nothing to change: neither police nor carry"),
        ({"ppp_id": 0, "carry": "null"}, "nothing to change: neither police nor carry"),
        ({"ppp_id": 0, "police": []}, "police: not an object"),
        ({"ppp_id": 0, "police": {}}, "a rate or a burst is not a number"),
    ],
)
async def test_senseless(
    world: World, commands: PipexCommands, path: Path, request_: dict[str, Any], why: str
) -> None:
    world.up()
    assert await refused(path, {"command": "pipex", **request_}) == why


async def test_not_up(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.dial()
    assert await refused(path, police(session.id)) == f"ppp id {session.id} is not up"
    world.negotiate()
    world.rig.engine.disconnect(session.id, world.rig.now)
    assert session.phase is Phase.TERMINATE
    assert await refused(path, carry(session.id, "user")) == f"ppp id {session.id} is not up"
    assert not world.rig.engine.wishes


async def test_the_log_says_who_did_what(
    world: World, commands: PipexCommands, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = world.up()
    with caplog.at_level(logging.INFO, "npppy.control"):
        await done(path, police(session.id))
    (line,) = [message for message in caplog.messages if "command=pipex" in message]
    assert line.startswith("control pid=")
    assert line.endswith(
        f"command=pipex ppp_id={session.id} pipex=ebpf rate_down=10000000 burst_down=125000 "
        "rate_up=2000000 burst_up=25000"
    )


# pipex


async def test_show(world: World, commands: PipexCommands, path: Path) -> None:
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    first = world.up()
    world.up()
    await done(path, carry(first.id, "user"))
    session, world.session = world.session, first
    flow = first.flow
    assert isinstance(flow, UserFlow)
    flow.input(udp("10.0.0.2", "192.0.2.1"), 0.0)
    session.end(session.cause, "test", world.rig.now)
    world.rig.wait(60)
    world.dial()
    assert await done(path, {"command": "pipex"}) == {
        "backend": "ebpf",
        "reason": "",
        "capacity": 100,
        "sessions": {"ebpf": 0, "user": 1},
        "tunnels": {"PPPOE": {"pipex": "yes", "forward": "stack"}},
        "interfaces": [
            {"name": "eth1", "use": "access", "xdp": "native", "note": ""},
            {
                "name": "eth2",
                "use": "access",
                "xdp": "",
                "note": "eth2 has an XDP program that is not ours: 'x', id 3",
            },
            {"name": "tun0", "use": "shared", "xdp": "native", "note": "npx0, npx1"},
        ],
        "paths": {
            "stack": {"up": {"packets": 1, "octets": 100}, "down": {"packets": 2, "octets": 200}},
            "python": {"up": {"packets": 1, "octets": 28}, "down": {"packets": 0, "octets": 0}},
        },
        "punts": {"control": {"packets": 4, "octets": 400}, "user-up": {"packets": 5, "octets": 500}},
        "drops": {"filter": {"packets": 3, "octets": 300}, "police": {"packets": 0, "octets": 0}},
        "other": {"mirror-lost": {"packets": 6, "octets": 600}},
        "maps": {
            "sessions": {"used": 1, "entries": 100, "octets": 1000},
            "nets4": {"used": 0, "entries": 100, "octets": 10},
            "events": {"used": None, "entries": 262144, "octets": 2000},
        },
        "memory": 3010,
    }


async def test_what_python_has_carried_is_not_forgotten() -> None:
    """The sum goes on when a session ends or negotiates anew."""
    world = World(UserBackend("for a test"))
    commands = PipexCommands(world.rig.engine, lambda: world.backend, lambda: world.rig.now)

    async def python() -> Any:
        return (await commands.pipex({}, None))["paths"]["python"]["up"]  # type: ignore[arg-type]

    for number in range(1, 4):
        if number == 2:
            renegotiate(world)
        else:
            world.up()
        world.send(IP + udp(world.session.ip, "192.0.2.1"))
        world.settle()
        assert await python() == {"packets": number, "octets": 28 * number}
    world.rig.engine.disconnect(world.session.id, world.rig.now)
    world.settle()
    assert await python() == {"packets": 3, "octets": 84}


async def test_show_lets_others_have_their_turn(
    world: World, commands: PipexCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = world.up()
    world.rig.engine.sessions.update((number, session) for number in range(1000, 1000 + 3 * SLICE))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    answer = await commands.pipex({}, None)  # type: ignore[arg-type]
    task.cancel()
    assert answer["sessions"]["ebpf"] == 3 * SLICE + 1
    assert turns >= 3


async def test_show_while_sessions_come_and_go(world: World, commands: PipexCommands) -> None:
    """A session that ends during the walk is not there any more."""
    session = world.up()
    sessions = world.rig.engine.sessions
    sessions.update((number, session) for number in range(1000, 1000 + 3 * SLICE))
    asking = asyncio.ensure_future(commands.pipex({}, None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    for number in range(1000 + SLICE, 1000 + 3 * SLICE):
        del sessions[number]
    assert SLICE <= (await asking)["sessions"]["ebpf"] < 3 * SLICE


async def test_show_of_null() -> None:
    world = World()
    backend = NullBackend()
    world.rig.site.backend = backend
    session = world.up()
    commands = PipexCommands(world.rig.engine, lambda: backend, lambda: world.rig.now)
    answer = await commands.pipex({}, None)  # type: ignore[arg-type]
    assert (answer["backend"], answer["reason"]) == ("null", "what peers send is counted and dropped")
    assert answer["sessions"] == {"ebpf": 0, "user": 1}
    assert (answer["maps"], answer["memory"], answer["drops"]) == ({}, 0, {})
    with pytest.raises(Exception, match="back end null carries nothing"):
        await commands.pipex(police(session.id), None)  # type: ignore[arg-type]
    # It copies nothing either, but frames that pass Python are there.
    capture = commands.captures.open(session.id, snaplen=100, count=None)
    world.control(proto.LCP, proto.ECHO_REQUEST, 1, b"peer")
    world.settle()
    assert len(capture.take(10)) == 2
    capture.close()


async def test_show_before_there_is_a_configuration(world: World, commands: PipexCommands) -> None:
    world.rig.engine.config = None
    assert (await commands.pipex({}, None))["tunnels"] == {}  # type: ignore[arg-type]


# capture


async def begun(path: Path, ppp_id: int, **more: Any) -> Client:
    client = await Client.ask(path, {"command": "capture", "ppp_id": ppp_id, **more})
    assert await client.receive() == {"rows": [{"event": "begin", "ppp_id": ppp_id}]}
    return client


async def frames_of(client: Client) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows to the end, and the end."""
    *parts, last = await client.rest()
    client.close()
    return [row for part in parts for row in part["rows"]], last


async def test_capture(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.up()
    client, other = await begun(path, session.id), await begun(path, session.id, snaplen=40)
    start = len(world.wire)
    world.send(IP + udp("10.0.0.2", "192.0.2.1", bytes(100)))
    world.arrives(udp("192.0.2.1", "10.0.0.2", bytes(100)))
    world.rig.engine.disconnect(session.id, world.rig.now)
    world.settle()
    wire = [("in" if way == IN else "out", frame) for way, frame in world.wire[start:]]
    rows, last = await frames_of(client)
    assert last == {"done": {"frames": 5, "lost": 0, "ended": "the session has ended"}}
    assert [(row["way"], base64.b64decode(row["data"])) for row in rows] == wire
    assert [row["length"] for row in rows] == [len(frame) for _, frame in wire]
    assert [row["ns"] for row in rows] == sorted(row["ns"] for row in rows)
    rows, _ = await frames_of(other)
    assert [base64.b64decode(row["data"]) for row in rows] == [frame[:40] for _, frame in wire]
    assert [row["length"] for row in rows] == [len(frame) for _, frame in wire]
    assert len(commands.captures) == 0


async def test_times_are_those_of_the_clock_on_the_wall(
    world: World, commands: PipexCommands, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    monkeypatch.setattr("time.monotonic_ns", lambda: 10**9)
    session = world.up()
    client = await begun(path, session.id, count=1)
    world.arrives(udp("192.0.2.1", "10.0.0.2"))
    rows, _ = await frames_of(client)
    assert [row["ns"] for row in rows] == [10**18]


async def test_capture_of_so_many_frames(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.up()
    client = await begun(path, session.id, count=3)
    for _ in range(5):
        world.arrives(udp("192.0.2.1", "10.0.0.2"))
    rows, last = await frames_of(client)
    assert len(rows) == 3
    assert last["done"] == {"frames": 3, "lost": 0, "ended": "as many frames as were asked for"}


async def test_capture_ends_with_its_client(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.up()
    client = await begun(path, session.id)
    assert len(commands.captures) == 1
    client.close()
    await until(lambda: len(commands.captures) == 0)
    assert not world.rig.engine.wishes
    assert not flow_of(world).mirrored


async def test_a_client_that_stops_is_told_the_rest(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.up()
    client = await begun(path, session.id)
    for _ in range(300):
        world.arrives(udp("192.0.2.1", "10.0.0.2"))
    commands.captures.read(2**63)
    client.writer.write_eof()
    rows, last = await frames_of(client)
    assert len(rows) == 300
    assert last == {"done": {"frames": 300, "lost": 0, "ended": "interrupted"}}
    assert len(commands.captures) == 0


async def test_a_client_that_stops_and_does_not_read(
    world: World, commands: PipexCommands, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets some time, and not for ever."""
    monkeypatch.setattr("npppy.control.server.STOP_TIMEOUT", 0)
    session = world.up()
    client = await begun(path, session.id)
    for _ in range(3000):
        world.arrives(udp("192.0.2.1", "10.0.0.2", bytes(1000)))
    commands.captures.read(2**63)
    client.writer.write_eof()
    await until(lambda: len(commands.captures) == 0)
    client.close()


async def test_a_client_that_says_more_is_cut_off(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.up()
    client = await begun(path, session.id)
    client.writer.write(b"more")
    assert await client.receive() is None
    client.close()
    await until(lambda: len(commands.captures) == 0)


async def test_what_is_lost_is_told(
    world: World, commands: PipexCommands, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "QUEUE", 3 * 300)
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    session = world.up()
    client = await begun(path, session.id)
    kernel.lost += 4
    for _ in range(10):
        world.arrives(udp("192.0.2.1", "10.0.0.2"))
    # Three more frames.
    world.rig.engine.disconnect(session.id, world.rig.now)
    world.settle()
    rows, last = await frames_of(client)
    lost = {row["slow"]: row["count"] for row in rows if row.get("event") == "lost"}
    assert lost == {"npppyctl": 10, "npppyd": 4}
    assert last["done"]["lost"] == 14
    assert last["done"]["frames"] == len(rows) - 2 == 3


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({}, "ppp_id: not a number"),
        ({"ppp_id": 99}, "there is no session with ppp id 99"),
        ({"ppp_id": 0, "count": -1}, "count: not a number"),
        ({"ppp_id": 0, "count": "1"}, "count: not a number"),
        ({"ppp_id": 0, "snaplen": 1.0}, "snaplen: not a number"),
        ({"ppp_id": 0, "snaplen": 2**32}, "snaplen: not a number"),
    ],
)
async def test_captures_that_cannot_be(
    world: World, commands: PipexCommands, path: Path, request_: dict[str, Any], why: str
) -> None:
    world.up()
    assert await refused(path, {"command": "capture", **request_}) == why
    assert len(commands.captures) == 0


# What a session asks of the data path


def test_a_wish_of_a_session_that_is_gone_is_not_kept(world: World) -> None:
    session = world.up()
    engine = world.rig.engine
    engine.wish(session.id, user=True)
    engine.wish(session.id, mirror=True)
    assert engine.wishes == {session.id: Wish(user=True, mirror=True)}
    engine.disconnect(session.id, world.rig.now)
    world.settle()
    assert not engine.wishes
    engine.wish(session.id, user=True)
    assert not engine.wishes


def test_counters_go_on_when_a_flow_is_opened_anew(world: World) -> None:
    session = world.up()
    flow = flow_of(world)
    flow._counted().in_packets = 5
    assert session.open_flow(world.rig.now)
    assert flow_of(world) is not flow
    assert session.counters() == Counters(in_packets=5)
