"""``make bench-peers``: what it sees of l2tpns is so.  How fast anything is, is not asked here."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import Iterator
from itertools import islice

import pytest

from bench.carriers import L2TP_PORT, LAC, LNS
from bench.lab import THEIRS
from bench.peers.__main__ import NAMES, rows
from bench.peers.l2tpns import SESSIONS, L2tpns
from bench.peers.lab import Lns, PeerLab
from bench.peers.measure import Sizes
from bench.peers.rows import Row, table

pytestmark = pytest.mark.root

MISSING = [name for name in ("l2tpns", "freeradius") if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]


def avp(kind: int, value: bytes) -> bytes:
    return struct.pack("!HHH", 0x8000 | 6 + len(value), 0, kind) + value


def need_l2tpns() -> None:
    if MISSING and not os.environ.get("NPPPY_REQUIRE_ALL"):
        pytest.skip(f"there is no {' and no '.join(MISSING)}: scripts/packages peers")


@pytest.fixture
def lns() -> Iterator[tuple[PeerLab, Lns]]:
    need_l2tpns()
    with PeerLab("l2tpns") as lab:
        yield lab, lab.start(10, "chap")


def test_l2tpns_serves_and_tells(lns: tuple[PeerLab, Lns]) -> None:
    lab, peer = lns
    assert isinstance(peer.program, L2tpns)
    with lab.sub, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LAC, L2TP_PORT))
        sock.settimeout(60)
        body = avp(0, b"\0\1") + avp(2, b"\1\0") + avp(3, bytes((0, 0, 0, 3))) + avp(7, b"lac") + avp(9, b"\0\x4d")
        sock.sendto(struct.pack("!HHHHHH", 0xC802, 12 + len(body), 0, 0, 0, 0) + body, (LNS, L2TP_PORT))
        answer = sock.recv(1500)
    # A control message for our tunnel 77, its first, with ours acknowledged: an SCCRP.
    assert struct.unpack_from("!HHHHHH", answer) == (0xC802, len(answer), 77, 0, 0, 1)
    assert answer[12:20] == avp(0, b"\0\2")
    assert " lac " in peer.program.show("show tunnels")
    assert peer.program.sessions() == 0
    octets, capacity = peer.tables()
    # Tables for all sessions, of which each has some hundred octets.
    assert capacity == SESSIONS
    assert octets > 100 * SESSIONS
    assert peer.program.cpu() > 0


SMALL = Sizes(setup=3, runs=1, tunnels=2, many=3, memory=3, packets=3, time=0.05)


@pytest.mark.parametrize("part", ["setup", "memory", "packets"])
def test_both_are_asked_the_same(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each packet that is counted has been looked at; see the tests of the bench."""
    need_l2tpns()
    monkeypatch.setattr("bench.peers.measure.SETTLED", 0.1)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {THEIRS})
    try:
        ours, theirs = (list(islice(rows(name, part, SMALL), 2)) for name in NAMES)
    finally:
        os.sched_setaffinity(0, before)
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    # Three sessions may take no page more.
    assert all(row.value > 0 or row.unit == "KiB" for row in ours + theirs)


def test_side_by_side() -> None:
    ours = [Row("packets", "/s", 3000.0), Row("x", "KiB", 0.5)]
    theirs = [Row("packets", "/s", 1500.0), Row("x", "KiB", 2.0)]
    others = [Row("packets", "/s", 30.0), Row("x", "KiB", 400.0)]
    assert [line.split() for line in table([ours, theirs, others], ("a", "b", "c")).splitlines()] == [
        ["a", "b", "ratio", "c", "ratio"],
        ["packets", "/s", "3,000", "1,500", "2", "30", "100"],
        ["x", "KiB", "0.5", "2", "0.25", "400", "0.00125"],
    ]
    assert [line.split() for line in table([ours], ("a",)).splitlines()][1:] == [
        ["packets", "/s", "3,000"],
        ["x", "KiB", "0.5"],
    ]
