"""Captures: each frame of a session once, whoever carries it, and none of another."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest

from npppy.l2tp.frame import ethernet
from npppy.l2tp.service import Endpoint
from npppy.pipex import capture as module
from npppy.pipex.capture import Capture, CaptureError, Captures
from npppy.pipex.user import UserBackend
from npppy.ppp import proto
from npppy.ppp.cause import Cause
from npppy.ppp.link import IN, OUT
from npppy.ppp.station import Phase
from npppy.pppoe.codec import Code, Discovery
from tests.unit.ippackets import udp
from tests.unit.pipex_fake import AC, HOST, IP, FakeKernel, World


def captures(world: World) -> Captures:
    return Captures(world.rig.engine, lambda: world.backend)


def begin(all_: Captures, world: World, *, snaplen: int = 65535, count: int | None = None) -> Capture:
    return all_.open(world.session.id, snaplen=snaplen, count=count)


def taken(capture: Capture) -> list[tuple[int, bytes]]:
    """What a client would have been sent, after all that was copied has been read."""
    capture._captures.read(time.monotonic_ns())
    return [(frame.way, frame.data) for frame in capture.take(10**6)]


def down(number: int = 0) -> bytes:
    return udp("192.0.2.1", "10.0.0.2", number.to_bytes(4, "big"))


def up(number: int = 0) -> bytes:
    return udp("10.0.0.2", "192.0.2.1", number.to_bytes(4, "big"))


@pytest.fixture(params=["kernel", "python"])
def world(request: pytest.FixtureRequest) -> World:
    return World(FakeKernel() if request.param == "kernel" else UserBackend("for a test"))


async def test_a_whole_life(world: World) -> None:
    """From before the first word of LCP to the PADT, data between."""
    world.dial()
    capture = begin(captures(world), world)
    before = len(world.wire)
    world.negotiate()
    assert world.session.phase is Phase.UP
    for number in range(3):
        world.send(IP + up(number))
        world.arrives(down(number))
    world.control(proto.LCP, proto.ECHO_REQUEST, 7, b"peer")
    world.settle()
    world.rig.engine.disconnect(world.session.id, world.rig.now)
    world.settle()
    frames = taken(capture)
    assert sorted(frames) == sorted(world.wire[before:])
    assert frames[-1][1][15] == Code.PADT
    assert capture.ended == "the session has ended"
    capture.close()
    assert not world.rig.engine.wishes
    assert not world.port.taps


@pytest.mark.parametrize("how", ["padt", "port", "abandon", "terminate"])
async def test_the_last_frames(world: World, how: str) -> None:
    world.up()
    capture = begin(captures(world), world)
    before = len(world.wire)
    if how == "padt":
        padt = Discovery(AC, HOST, Code.PADT, world.sid).encode() + bytes(40)
        world.wire.append((IN, padt))
        world.port.receive(padt, world.rig.now)
    elif how == "port":
        world.port.close(Cause.LOST_CARRIER, "test", world.rig.now, padt=True)
    elif how == "abandon":
        world.session.abandon(Cause.NAS_ERROR, "test", world.rig.now)
    else:
        world.control(proto.LCP, proto.TERMINATE_REQUEST, 1)
        world.settle()
        world.rig.wait(60)
    assert capture.ended
    assert taken(capture) == world.wire[before:]
    capture.close()


async def test_other_sessions_are_not_in_it() -> None:
    world = World()
    world.up()
    capture = begin(captures(world), world)
    mine = world.session
    world.up()
    assert world.session is not mine
    world.send(IP + up())
    world.arrives(udp("192.0.2.1", "10.0.0.3"))
    assert taken(capture) == []
    capture.close()


async def test_what_the_kernel_has_copied_python_is_not_shown_again() -> None:
    """Control frames of a session that the kernel carries are in the ring buffer and come to Python too."""
    world = World()
    world.up()
    capture = begin(captures(world), world)
    world.control(proto.LCP, proto.ECHO_REQUEST, 1, b"peer")
    world.control(proto.LCP, proto.ECHO_REQUEST, 1, b"peer")
    frames = world.wire[-2:]
    world.settle()
    assert [data for way, data in taken(capture) if way == IN] == [data for _, data in frames]
    # Alike, but never copied: the kernel had no room.
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    kernel.flows[world.session.id].mirrored = False
    world.control(proto.LCP, proto.ECHO_REQUEST, 1, b"peer")
    world.settle()
    assert [data for way, data in taken(capture) if way == IN] == [frames[0][1]]
    capture.close()


async def test_a_copy_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied and not passed on must not hide a frame that is alike, long after."""
    world = World()
    world.up()
    capture = begin(captures(world), world)
    world.send(IP + up())
    assert len(taken(capture)) == 1
    flow = world.session.flow
    assert flow is not None
    world.rig.engine.wish(world.session.id, user=True)
    world.session.open_flow(world.rig.now)
    later = time.monotonic_ns() + module._PATIENCE
    monkeypatch.setattr(time, "monotonic_ns", lambda: later)
    world.send(IP + up())
    world.settle()
    assert taken(capture) == [world.wire[-1]]
    capture.close()


async def test_memory_of_copies_is_bounded() -> None:
    world = World()
    world.up()
    capture = begin(captures(world), world)
    for number in range(module._RECENT + 10):
        world.send(IP + up(number))
    taken(capture)
    assert len(capture._watch._recent) == module._RECENT
    capture.close()


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_each_frame_is_there_once(seed: int) -> None:
    """The session moves between kernel and Python, negotiates anew and ends, while frames wait in sockets."""
    world = World()
    rng = random.Random(seed)
    engine = world.rig.engine
    session = world.dial()
    if rng.random() < 0.5:
        world.negotiate()
    if rng.random() < 0.5:
        # A frame that is under way as the capture begins may be in it or not.
        world.control(proto.LCP, proto.ECHO_REQUEST, 200, b"peer")
        world.settle()
    capture = begin(captures(world), world)
    start = len(world.wire)
    seen: list[tuple[int, bytes]] = []
    world.negotiate()
    for number in range(300):
        match rng.randrange(12):
            case 0 | 1 | 2:
                world.send(IP + up(number), bytes(rng.randrange(9)))
            case 3 | 4 | 5:
                world.arrives(down(number))
            case 6:
                world.control(proto.LCP, proto.ECHO_REQUEST, number & 0xFF, b"peer")
            case 7 if rng.random() < 0.2:
                world.control(proto.LCP, proto.CONFIGURE_REQUEST, number & 0xFF, b"")
            case 8 if session.flow is not None:
                user = rng.random() < 0.5
                engine.wish(session.id, user=user)
                if user:
                    session.flow.to_user()  # type: ignore[attr-defined]
                elif not session.flow.to_ebpf():  # type: ignore[attr-defined]
                    session.open_flow(world.rig.now)
            case 9 | 10:
                if world.socket:
                    world.read()
            case _:
                if world.inbox:
                    world.answer()
        if rng.random() < 0.1:
            seen += taken(capture)
    world.settle()
    engine.disconnect(session.id, world.rig.now)
    world.settle()
    assert session.phase is Phase.DEAD
    seen += taken(capture)
    missing = Counter(world.wire[start:]) - Counter(seen)
    twice = Counter(seen) - Counter(world.wire[start:])
    assert (missing, twice) == (Counter(), Counter())
    capture.close()


async def test_order_is_that_of_time() -> None:
    world = World()
    world.up()
    capture = begin(captures(world), world)
    for number in range(50):
        world.send(IP + up(number))
        world.control(proto.LCP, proto.ECHO_REQUEST, number, b"peer")
        world.settle()
    frames = capture.take(1000)
    assert len(frames) == 150
    assert [frame.ns for frame in frames] == sorted(frame.ns for frame in frames)
    capture.close()


async def test_a_copy_that_is_late_goes_where_it_belongs() -> None:
    world = World()
    world.up()
    all_ = captures(world)
    capture = begin(all_, world)
    for ns in (100, 300, 200, 250, 50):
        all_._copied(world.session.id, OUT, ns, 60, bytes(60))
    assert [frame.ns for frame in capture.take(10)] == [50, 100, 200, 250, 300]
    capture.close()


async def test_vlan_tags() -> None:
    """What the carrier shows without its tags is captured as the kernel sees it, and still known."""
    kernel = FakeKernel()
    kernel.vlan = bytes.fromhex("88a8006481000007")
    world = World(kernel)
    world.up()
    capture = begin(captures(world), world)
    world.send(IP + up())
    world.control(proto.LCP, proto.ECHO_REQUEST, 1, b"peer")
    world.settle()
    frames = taken(capture)
    assert [way for way, _ in frames] == [IN, IN, OUT]
    assert {data[12:20] for _, data in frames} == {kernel.vlan}
    assert [data[:12] + data[20:] for _, data in frames] == [frame for _, frame in world.wire[-3:]]
    capture.close()


async def test_a_session_that_comes_up_is_copied_from_its_first_packet() -> None:
    world = World()
    world.dial()
    capture = begin(captures(world), world)
    world.negotiate()
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    assert kernel.flows[world.session.id].mirrored
    capture.close()
    assert not kernel.flows[world.session.id].mirrored
    assert not world.port.taps
    assert not world.rig.engine.wishes
    assert not kernel.mirrors


# Limits.


async def test_count_and_snaplen(world: World) -> None:
    world.up()
    all_ = captures(world)
    few, short = begin(all_, world, count=2), begin(all_, world, snaplen=30)
    for number in range(3):
        world.arrives(down(number))
    all_.read(time.monotonic_ns())
    assert few.ended == "as many frames as were asked for"
    assert not short.ended
    assert [len(frame.data) for frame in few.take(10)] == [54, 54]
    frames = short.take(10)
    assert [(len(frame.data), frame.length) for frame in frames] == [(30, 54)] * 3
    few.close()
    short.close()


async def test_a_slow_client_loses_frames_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE", 5 * (54 + module._OVERHEAD))
    world = World()
    world.up()
    all_ = captures(world)
    slow, quick = begin(all_, world), begin(all_, world)
    for number in range(8):
        world.arrives(down(number))
        assert len(taken(quick)) == 1
    assert slow.take_lost() == (3, 0)
    assert len(taken(slow)) == 5
    world.arrives(down(9))
    assert len(taken(slow)) == 1
    assert slow.take_lost() == (0, 0)
    slow.close()
    quick.close()


async def test_once_one_is_lost_all_are_until_the_gap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE", 2 * (54 + module._OVERHEAD))
    world = World()
    world.up()
    capture = begin(captures(world), world)
    for number in range(3):
        world.arrives(down(number))
    assert len(taken(capture)) == 2
    world.arrives(down(3))
    assert taken(capture) == []
    assert capture.take_lost() == (2, 0)
    world.arrives(down(4))
    assert len(taken(capture)) == 1
    capture.close()


async def test_copies_that_the_kernel_lost() -> None:
    world = World()
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    kernel.lost = 5
    world.up()
    all_ = captures(world)
    first = begin(all_, world)
    kernel.lost = 7
    second = begin(all_, world)
    kernel.lost = 8
    assert (first.take_lost(), second.take_lost()) == ((0, 3), (0, 1))
    assert (first.take_lost(), second.take_lost()) == ((0, 0), (0, 0))
    first.close()
    second.close()
    third = begin(all_, world)
    assert third.take_lost() == (0, 0)
    third.close()


async def test_who_cannot_be_captured() -> None:
    world = World()
    world.up()
    all_ = captures(world)
    with pytest.raises(CaptureError, match="no session with ppp id 77"):
        all_.open(77, snaplen=100, count=None)
    many = [begin(all_, world) for _ in range(module.MAX_CAPTURES)]
    assert len(all_) == module.MAX_CAPTURES
    with pytest.raises(CaptureError, match="8 captures already"):
        begin(all_, world)
    many.pop().close()
    many.append(begin(all_, world))
    for capture in many:
        capture.close()
    assert len(all_) == 0


# The ring buffer.


async def test_it_is_read_while_anybody_captures() -> None:
    world = World()
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    world.up()
    all_ = captures(world)
    first, second = begin(all_, world), begin(all_, world)
    assert len(kernel.mirrors) == 1
    for capture in (first, second):
        world.send(IP + up())
        async with asyncio.timeout(60):
            while not (frames := capture.take(10)):
                await capture.wait()
        assert len(frames) == 1
        second.take(10)
        if capture is first:
            first.close()
    second.close()
    assert not kernel.mirrors


async def test_what_was_left_from_an_earlier_capture_is_not_in_the_next() -> None:
    world = World()
    world.up()
    all_ = captures(world)
    other = world.session
    world.up()
    keeper = all_.open(other.id, snaplen=100, count=None)
    first = begin(all_, world)
    world.send(IP + up(1))
    first.close()
    second = begin(all_, world)
    assert taken(second) == []
    world.send(IP + up(2))
    assert taken(second) == [world.wire[-1]]
    second.close()
    keeper.close()


async def test_another_back_end_takes_over() -> None:
    """After a reload the session, still half-open, is carried by another kernel."""
    world = World()
    old = world.backend
    assert isinstance(old, FakeKernel)
    world.dial()
    capture = begin(captures(world), world)
    world.backend = world.rig.site.backend = new = FakeKernel()
    start = len(world.wire)
    old.lost = 2
    world.negotiate()
    new.lost = 3
    assert capture.take_lost() == (0, 5)
    world.send(IP + up())
    assert (len(old.mirrors), len(new.mirrors)) == (0, 1)
    assert sorted(taken(capture)) == sorted(world.wire[start:])
    capture.close()


def test_frames_cost_one_look_while_nobody_captures() -> None:
    """The table of taps is empty then, and nothing is called."""
    world = World()
    world.up()

    def tapped(*_: Any) -> None:
        raise AssertionError("nobody looks on")

    world.port.__class__.tapped, kept = tapped, world.port.__class__.tapped  # type: ignore[method-assign]
    try:
        world.control(proto.LCP, proto.ECHO_REQUEST, 1, b"peer")
        world.settle()
        world.rig.engine.disconnect(world.session.id, world.rig.now)
        world.settle()
    finally:
        world.port.__class__.tapped = kept  # type: ignore[method-assign]
    assert world.session.phase is Phase.DEAD


@pytest.mark.parametrize(("octets", "made_up"), [(4, (22, 24, 41)), (16, (21, 61))])
def test_l2tp_on_the_wire_is_what_the_carrier_shows(octets: int, made_up: tuple[int, ...]) -> None:
    """Outside of the message the carrier has to make much up: time to live, checksums."""
    at = Endpoint(bytes(octets), 1701, b"\1" * octets, 4000)
    shown = ethernet(at, IN, b"\x40\2\0\x12" + bytes(4) + b"\xff\3\xc0\x21\x09\1\0\4")
    wire = bytearray(shown)
    wire[:12] = HOST + AC
    for place in made_up:
        wire[place] ^= 0x55
    wire[12:12] = b"\x81\0\0\7"
    assert module._known_by(bytes(wire) + bytes(9)) == module._known_by(shown)
    wire[-1] ^= 1
    assert module._known_by(bytes(wire)) != module._known_by(shown)
