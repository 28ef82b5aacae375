"""Frames of a session copied to the ring buffer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.libbpf import Object, Ring
from tests.unit.ippackets import tcp, udp

from .frames import LCP, PPP_IP, echo, ppp, udp6
from .rig import (
    ADDRESS,
    ADDRESS6,
    ALL,
    DROP,
    GENERATION,
    MTU,
    OUR_MAGIC,
    PEER_MAGIC,
    PPP_ID,
    REDIRECT,
    REMOTE,
    REMOTE6,
    Rig,
    data,
    from_stack,
    session_frame,
    tags,
    to_peer,
)

pytestmark = pytest.mark.root

UP, DOWN = 0, 1
MIRROR = ALL | layout.MIRROR
SMALL, LARGE = 256 - layout.EVENT.size, 2048 - layout.EVENT.size


class Reader:
    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def frames(self) -> list[tuple[int, bytes]]:
        """Way and frame of each record; of a long frame as much as there is."""
        found = []
        for record in self.records():
            event = layout.fields(layout.EVENT, record[: layout.EVENT.size])
            assert (event["kind"], event["ppp_id"], event["generation"]) == (layout.EVENT_MIRROR, PPP_ID, GENERATION)
            found.append((event["way"], record[layout.EVENT.size :][: event["length"]]))
        return found

    def records(self) -> list[bytes]:
        found: list[Any] = []
        self._ring.consume(found.append)
        return found


@pytest.fixture
def reader(loaded: Object) -> Iterator[Reader]:
    ring = Ring(loaded.maps["events"])
    made = Reader(ring)
    made.records()
    yield made
    ring.close()


@pytest.mark.parametrize("identifiers", [(), (7, 8)])
def test_both_ways(rig: Rig, reader: Reader, identifiers: tuple[int, ...]) -> None:
    """As they are on the access network, tags included."""
    rig.session(MIRROR, vlans=identifiers)
    vlans = tags(*identifiers)
    frames = []
    for packet in (udp(ADDRESS, REMOTE, b"up"), udp6(ADDRESS6, REMOTE6, b"up")):
        frames.append((UP, data(packet, vlans=vlans) + b"padding"))
        rig.up(frames[-1][1])
    for packet in (udp(REMOTE, ADDRESS, b"down"), udp6(REMOTE6, ADDRESS6, b"down")):
        frames.append((DOWN, to_peer(packet, vlans)))
        rig.down(from_stack(packet))
    assert reader.frames() == frames


def test_as_received_and_as_sent(rig: Rig, reader: Reader) -> None:
    """Before the MSS is lowered on the way in, after it on the way out."""
    rig.session(MIRROR)
    rig.up(data(tcp(ADDRESS, REMOTE, options=b"\2\4\xff\xff")))
    rig.down(from_stack(tcp(REMOTE, ADDRESS, options=b"\2\4\xff\xff")))
    (_, inward), (_, outward) = reader.frames()
    assert inward[-4:] == b"\2\4\xff\xff"
    assert outward[-4:] != b"\2\4\xff\xff"


def test_what_goes_no_further(rig: Rig, reader: Reader) -> None:
    """Control frames, what is dropped, and both of an echo."""
    rig.session(MIRROR)
    frames = [
        session_frame(ppp(0x8021, b"\1\1\0\4")),
        session_frame(b""),
        data(udp("10.9.9.9", REMOTE)),
        session_frame(ppp(LCP, echo(10, PEER_MAGIC))),
    ]
    for frame in frames:
        rig.up(frame)
    assert reader.frames() == [(UP, frame) for frame in frames]
    assert rig.up(session_frame(ppp(LCP, echo(9, PEER_MAGIC)))).verdict == REDIRECT
    (first, asked), (second, answered) = reader.frames()
    assert (first, second) == (UP, DOWN)
    assert asked[22:] == echo(9, PEER_MAGIC)
    assert answered == session_frame(ppp(LCP, echo(10, OUR_MAGIC)), source=asked[:6], destination=asked[6:12])


def test_to_npppyd(rig: Rig, reader: Reader) -> None:
    """What npppyd carries it mirrors on the way out; on the way in all frames come by here."""
    rig.session(MIRROR | layout.USER)
    rig.up(data(udp(ADDRESS, REMOTE)))
    rig.down(from_stack(udp(REMOTE, ADDRESS)))
    rig.session(MIRROR)
    rig.down(from_stack(udp(REMOTE, ADDRESS, bytes(MTU))))
    assert reader.frames() == [(UP, data(udp(ADDRESS, REMOTE)))]


def test_not_what_is_dropped_on_the_way_out(rig: Rig, reader: Reader) -> None:
    rig.session(MIRROR & ~layout.IP4)
    assert rig.down(from_stack(udp(REMOTE, ADDRESS))).verdict == DROP
    assert not reader.frames()


def test_only_with_the_flag(rig: Rig, reader: Reader) -> None:
    rig.session()
    rig.up(data(udp(ADDRESS, REMOTE)))
    rig.down(from_stack(udp(REMOTE, ADDRESS)))
    assert not reader.records()


def test_time(rig: Rig, reader: Reader) -> None:
    rig.session(MIRROR)
    before = time.monotonic_ns()
    rig.up(data(udp(ADDRESS, REMOTE)))
    (record,) = reader.records()
    assert before <= layout.fields(layout.EVENT, record[: layout.EVENT.size])["ns"] <= time.monotonic_ns()


@pytest.mark.parametrize("size", [22, SMALL - 1, SMALL, SMALL + 1, 1514, LARGE - 1, LARGE, LARGE + 1, 3000])
def test_sizes(rig: Rig, reader: Reader, size: int) -> None:
    rig.session(MIRROR)
    frame = session_frame(ppp(PPP_IP, bytes(range(256)) * 12))[:size]
    rig.up(frame)
    (record,) = reader.records()
    assert len(record) == (256 if size <= SMALL else 2048)
    event = layout.fields(layout.EVENT, record[: layout.EVENT.size])
    assert event["length"] == size
    assert record[layout.EVENT.size :][:size] == frame[:LARGE]


def test_nobody_reads(rig: Rig, reader: Reader) -> None:
    """A full ring buffer loses the copy, never the packet."""
    rig.session(MIRROR)
    frame = data(udp(ADDRESS, REMOTE, bytes(1400)))
    room = rig.maps["events"].max_entries // (2048 + 8)
    for _ in range(room + 10):
        assert rig.up(frame).verdict == REDIRECT
    lost = rig.reasons()["MIRROR_LOST"]
    assert 10 <= lost <= 11
    assert len(reader.frames()) == room + 10 - lost
    rig.up(frame)
    assert len(reader.frames()) == 1
