"""Data of PPTP: what leaves for the peer, of the stack and of npppyd, and past the stack; and acknowledgments alone."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import U32
from npppy.pipex.ebpf.libbpf import Object, Ring, Run
from tests.unit.ippackets import ip, tcp, udp

from .call import NICS, PNS, call, checked, data, gre, numbers, stamp
from .frames import IP, LCP, ethernet, ppp, udp6
from .rig import (
    ADDRESS,
    ADDRESS6,
    ALL,
    DROP,
    GENERATION,
    LO,
    MRU,
    MTU,
    NPX0,
    NPX1,
    PASS,
    PPP_ID,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SLOT,
    Rig,
    from_stack,
    pack,
    to_stack,
)
from .tunnel import outer

pytestmark = pytest.mark.root

PACKET = udp(REMOTE, ADDRESS, b"data")
PACKET6 = udp6(REMOTE6, ADDRESS6, b"data")
#: From the peer.
SENT = udp(ADDRESS, REMOTE, b"data")
CONTROL = ppp(LCP, b"\5\7\0\4")
#: Of metadata.
MAGIC = 0x7078706E
MASK = 0xFFFFFFFF
SECOND = 10**9


def payload(packet: bytes) -> bytes:
    return (b"\0\x21" if packet[0] >> 4 == 4 else b"\0\x57") + packet


def for_the_stack(done: Run, mark: int = 0) -> bytes:
    """The frame that pipex_core has passed, with metadata for pipex_miss in front of it."""
    assert done.verdict == PASS
    assert struct.unpack_from("=III", done.data) == (0, mark, MAGIC)
    frame = done.data[12:]
    assert frame[:12] == NPX1 + NPX0
    return frame


def injected(frame: bytes, generation: int = GENERATION, slot: int = SLOT) -> bytes:
    return ethernet(NPX1, NPX0, layout.FRAME_TYPE, layout.inject(slot, generation, frame))


def copied(packet: bytes = SENT, slot: int = SLOT, generation: int = GENERATION) -> bytes:
    """A packet of the peer that brings an acknowledgment with it, as npx0 sends it back."""
    source = b"\6" + slot.to_bytes(3, "big") + (generation & 0xFFFF).to_bytes(2, "big")
    return NPX0 + source + to_stack(packet)[12:]


class TestForm:
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_data(self, rig: Rig, packet: bytes) -> None:
        call(rig, out=7, expected=100)
        for number in (7, 8):
            assert checked(for_the_stack(rig.down(from_stack(packet)))) == (number, 99, payload(packet))
        assert rig.counted() == {"STACK_DOWN": (2, 2 * len(packet))}
        stats = rig.stats()
        assert stats.keys() == {"out_packets", "out_bytes", "active_ns"}
        assert (stats["out_packets"], stats["out_bytes"]) == (2, 2 * len(packet))
        assert numbers(rig) == (9, 100, 100, 0)

    def test_sizes(self, rig: Rig) -> None:
        call(rig, mtu=3400)
        octets = bytes(at * 7 % 251 for at in range(3400))
        for size in (*range(20, 60), *range(MTU - 4, MTU + 1), 2047, 2048, 3400):
            packet = ip(REMOTE, ADDRESS, octets[: size - 20])
            assert checked(for_the_stack(rig.down(from_stack(packet))))[2] == payload(packet)

    def test_injected(self, rig: Rig) -> None:
        """In one row with data, and not counted as such."""
        call(rig, out=0xFFFFFFFE, expected=0)
        for number, packet in enumerate((CONTROL, ppp(0x8021, bytes(1000)), b"\xc0\x21", CONTROL)):
            for padding in (0, 20):
                frame = for_the_stack(rig.down(injected(packet) + bytes(padding)))
                found = checked(frame, padding=padding)
                assert found == (0xFFFFFFFE + 2 * number + bool(padding) & MASK, MASK, packet)
        assert not rig.counted()
        assert not rig.stats()

    def test_identification(self, rig: Rig) -> None:
        """Somebody may cut the packet in pieces."""
        call(rig)
        found = {for_the_stack(rig.down(from_stack(PACKET)))[18:20] for _ in range(20)}
        assert len(found) > 15

    def test_what_does_not_leave_takes_no_number(self, rig: Rig) -> None:
        call(rig, ALL & ~layout.IP6 | layout.POLICE_DOWN, expected=9, acked=3)
        rig.bucket(1, rate=1, burst=1)
        for packet in (PACKET, PACKET6):
            assert rig.down(from_stack(packet)).verdict == DROP
        assert rig.down(from_stack(ip(REMOTE, ADDRESS, bytes(MTU), flags=0x4000))).verdict == PASS
        assert numbers(rig) == (0, 9, 3, 0)

    def test_mss(self, rig: Rig) -> None:
        call(rig)
        packet = checked(for_the_stack(rig.down(from_stack(tcp(REMOTE, ADDRESS, options=b"\2\4\xff\xff")))))[2]
        assert packet[2 + 42 : 2 + 44] == (MRU - 40).to_bytes(2, "big")

    def test_mark(self, rig: Rig) -> None:
        call(rig, mark=0xABCD)
        for frame in (from_stack(PACKET), injected(CONTROL), injected(b""), copied()):
            checked(for_the_stack(rig.down(frame), 0xABCD))

    def test_mirror(self, loaded: Object, rig: Rig) -> None:
        """Outer headers too, and acknowledgments."""
        ring = Ring(loaded.maps["events"])
        ring.consume(lambda _: None)
        call(rig, ALL | layout.MIRROR)
        ways = (from_stack(PACKET), injected(CONTROL), injected(b""), copied())
        frames = [for_the_stack(rig.down(frame)) for frame in ways]
        found: list[bytes] = []
        ring.consume(found.append)
        ring.close()
        for record, frame in zip(found, frames, strict=True):
            event = layout.fields(layout.EVENT, record[: layout.EVENT.size])
            assert (event["ppp_id"], event["way"], event["length"]) == (PPP_ID, layout.DOWN, len(frame))
            assert record[layout.EVENT.size :][: len(frame)] == frame


class TestRiding:
    def test_noted(self, rig: Rig) -> None:
        """Once: later packets say nothing new."""
        call(rig, expected=10, acked=3)
        before = time.monotonic_ns()
        assert checked(for_the_stack(rig.down(from_stack(PACKET))))[1] == 9
        assert numbers(rig)[1:3] == (10, 10)
        assert before - 20_000_000 < rig.stats()["ack_ns"] <= time.monotonic_ns()
        stamp(rig)
        assert checked(for_the_stack(rig.down(injected(CONTROL))))[1] == 9
        assert "ack_ns" not in rig.stats()

    @pytest.mark.parametrize("name", NICS)
    def test_both_ways(self, rig: Rig, name: str) -> None:
        """While data flows to the peer, no packet brings an acknowledgment of its own with it."""
        call(rig)
        stamp(rig, ack_ns=time.monotonic_ns())
        for number in range(100):
            assert rig.programs[name].run(data(SENT, number)).data == to_stack(SENT)
            if number % 10 == 9:
                assert checked(for_the_stack(rig.down(from_stack(PACKET))))[1] == number


class TestAlone:
    @pytest.mark.parametrize("size", [20, 33, 46, 200, 1500])
    @pytest.mark.parametrize("expected", [0, 1, 0x12345678])
    def test_of_a_packet(self, rig: Rig, size: int, expected: int) -> None:
        """Of which nothing is left: see checked."""
        call(rig, expected=expected, acked=expected - 5 & MASK, out=9)
        packet = ip(ADDRESS, REMOTE, b"x" * (size - 20))
        before = time.monotonic_ns()
        assert checked(for_the_stack(rig.down(copied(packet)))) == (-1, expected - 1 & MASK, b"")
        assert numbers(rig) == (9, expected, expected, 0)
        assert rig.counted() == {"ACK_DOWN": (1, 46)}
        assert rig.stats().keys() == {"ack_ns"}
        assert before - 20_000_000 < rig.stats()["ack_ns"]

    @pytest.mark.parametrize("padding", [0, 34])
    def test_of_npppyd(self, rig: Rig, padding: int) -> None:
        call(rig, expected=7, acked=3)
        assert checked(for_the_stack(rig.down(injected(b"") + bytes(padding)))) == (-1, 6, b"")
        assert numbers(rig) == (0, 7, 7, 0)
        assert rig.reasons() == {"ACK_DOWN": 1}

    @pytest.mark.parametrize("name", NICS)
    def test_from_end_to_end(self, rig: Rig, name: str) -> None:
        """What pipex_access says, pipex_core reads."""
        call(rig)
        up = rig.programs[name].run(data(SENT, 41))
        assert checked(for_the_stack(rig.down(up.data))) == (-1, 41, b"")

    @pytest.mark.parametrize("blocks", [0, ALL | layout.USER, layout.POLICE_DOWN])
    def test_whatever_the_blocks(self, rig: Rig, blocks: int) -> None:
        rig.bucket(1, rate=1, burst=1)
        call(rig, blocks, window=1, out=9)
        for frame in (copied(), injected(b"")):
            checked(for_the_stack(rig.down(frame)))

    @pytest.mark.parametrize(
        "frame",
        [
            copied(generation=GENERATION - 1),
            copied(generation=0),
            copied(slot=SLOT + 1),
            copied(slot=16),
            copied(slot=1 << 16 | SLOT),
            copied(slot=0xFFFFFF),
            injected(b"", GENERATION - 1),
            injected(b"", slot=SLOT + 1),
            injected(b"", slot=0xFFFFFFFF),
        ],
    )
    def test_of_nobody(self, rig: Rig, frame: bytes) -> None:
        call(rig)
        assert rig.down(frame).verdict == DROP
        assert rig.counted() == {"PUNT_UNKNOWN": (1, len(frame))}

    @pytest.mark.parametrize("generation", [1 << 16, 7 << 16 | 5])
    def test_generation(self, rig: Rig, generation: int) -> None:
        """Of which the frame has 16 bits."""
        call(rig, generation=generation, slot=0)
        checked(for_the_stack(rig.down(copied(slot=0, generation=generation))))
        assert rig.down(copied(slot=0, generation=generation + 1)).verdict == DROP
        # A slot that nobody has.
        rig.maps["slots"].put(U32.pack(0), bytes(layout.SESSION.size))
        assert rig.down(copied(slot=0, generation=0)).verdict == DROP

    def test_of_another_kind(self, rig: Rig) -> None:
        rig.session()
        for frame in (copied(), injected(b"")):
            assert rig.down(frame).verdict == DROP
        assert rig.reasons() == {"DROP_MALFORMED": 2}

    def test_source_of_the_stack(self, rig: Rig) -> None:
        """A packet to a peer is data, with whichever other source address."""
        call(rig)
        frame = from_stack(PACKET)
        for first in (0, 2, 4, 7, 0x16, 0x86):
            done = rig.down(frame[:6] + bytes((first,)) + frame[7:])
            assert checked(for_the_stack(done))[2] == payload(PACKET)

    @pytest.mark.parametrize("frame", [copied(), from_stack(PACKET), injected(CONTROL)])
    def test_pipex_ack(self, rig: Rig, frame: bytes) -> None:
        """What it does to others is to be seen in tests/root; itself, it changes nothing."""
        call(rig)
        done = rig.programs["pipex_ack"].run(frame)
        assert (done.verdict, done.data) == (0xFFFFFFFF, frame)


class TestWindow:
    """Of the peer, if the session has one."""

    def outstanding(self, rig: Rig, number: int, start: int = 0, **changes: int) -> None:
        call(rig, out=start + number & MASK, peer_acked=start, **changes)

    @pytest.mark.parametrize("start", [0, 0xFFFFFFFE])
    @pytest.mark.parametrize("window", [1, 3, 64, 0xFFFF])
    def test_full(self, rig: Rig, window: int, start: int) -> None:
        stamp(rig, window_ns=time.monotonic_ns())
        self.outstanding(rig, window - 1, start, window=window)
        for frame, size in ((from_stack(PACKET), len(PACKET)), (injected(payload(PACKET6)), len(PACKET6) + 2)):
            if frame == from_stack(PACKET):
                checked(for_the_stack(rig.down(frame)))
            before = rig.stats().get("out_errors", 0)
            assert rig.down(frame).verdict == DROP
            assert rig.counted()["DROP_WINDOW"][1] >= size
            assert rig.stats()["out_errors"] == before + 1
        assert numbers(rig) == (start + window & MASK, 0, 0, start)
        # Control passes, and takes its number.
        checked(for_the_stack(rig.down(injected(CONTROL))))
        assert rig.down(from_stack(PACKET)).verdict == DROP
        # What the peer has acknowledged makes room.
        ack = outer(gre(b"", 0x2081, ack=start + window & MASK))
        assert rig.up(ack).verdict == DROP
        checked(for_the_stack(rig.down(from_stack(PACKET))))

    def test_not_looked_at(self, rig: Rig) -> None:
        self.outstanding(rig, 1 << 31)
        checked(for_the_stack(rig.down(from_stack(PACKET))))
        assert "window_ns" not in rig.stats()

    @pytest.mark.parametrize("since", [1_100_000_000, 10**15])
    def test_lost(self, rig: Rig, since: int) -> None:
        """After a second without an acknowledgment all counts as lost, and the window is open again."""
        now = time.monotonic_ns()
        stamp(rig, window_ns=max(now - since, 0))
        self.outstanding(rig, 3, window=3)
        for _ in range(3):
            checked(for_the_stack(rig.down(from_stack(PACKET))))
        assert rig.down(from_stack(PACKET)).verdict == DROP
        assert numbers(rig) == (6, 0, 0, 3)
        assert now - 20_000_000 < rig.stats()["window_ns"]

    def test_not_lost_yet(self, rig: Rig) -> None:
        stamp(rig, window_ns=time.monotonic_ns() - 500_000_000)
        self.outstanding(rig, 3, window=3)
        assert rig.down(from_stack(PACKET)).verdict == DROP

    def test_begin(self, rig: Rig) -> None:
        """The second begins with the first packet that is not acknowledged, however long nothing was sent."""
        self.outstanding(rig, 0, window=2)
        for expected in (PASS, PASS, DROP):
            assert rig.down(from_stack(PACKET)).verdict == expected


# Past the stack.

FAST = ALL | layout.FAST
HOP, NEXT = "192.0.2.2", b"\x02\0\0\0\x0c\x02"
CORE = b"\x02\0\0\0\x0c\x01"
ROUTES = f"""
link add core0 address {CORE.hex(":")} type veth peer name core1
link set lo up
link set core0 up
link set core1 up
address add 192.0.2.1/24 dev core0
address add 198.51.100.254/24 dev core0
neighbour add {HOP} lladdr {NEXT.hex(":")} dev core0 nud permanent
neighbour add {REMOTE} lladdr {NEXT.hex(":")} dev core0 nud permanent
route add {PNS}/32 via {HOP}
"""


def run(command: str) -> None:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"


@pytest.fixture(scope="module")
def world(loaded: Object) -> None:
    for line in ROUTES.strip().splitlines():
        run(line)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


@pytest.fixture
def fast(rig: Rig, world: None) -> Iterator[Rig]:
    """A session that has used the stack just now, and devices to forward to; lo is npx1, and a core NIC."""
    core = socket.if_nametoindex("core0")
    rig.redirect_to(LO, core)
    rig.maps["nics"].put(U32.pack(LO), CORE + b"\0\0")
    used(rig)
    return rig


def used(rig: Rig) -> None:
    now = time.monotonic_ns()
    rig.maps["stats"].put(U32.pack(SLOT), pack(layout.STATS, outer_ns=now, stack_ns=now, ack_ns=now))


class TestFast:
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_from_npx1(self, fast: Rig, packet: bytes) -> None:
        call(fast, FAST, out=9, expected=6)
        ways = ((from_stack(packet), 9, payload(packet)), (injected(CONTROL), 10, CONTROL), (injected(b""), -1, b""))
        for frame, number, expected in (*ways, (copied(), -1, b"")):
            done = fast.down(frame)
            assert (done.verdict, done.data[:12]) == (REDIRECT, NEXT + CORE)
            assert checked(done.data, hops=64) == (number, 5, expected)

    @pytest.mark.parametrize("padding", [0, 30])
    def test_from_a_core_nic(self, fast: Rig, padding: int) -> None:
        call(fast, FAST, out=9, expected=6)
        done = fast.programs["pipex_nic"].run(ethernet(CORE, NEXT, IP, PACKET) + bytes(padding))
        assert (done.verdict, done.data[:12]) == (REDIRECT, NEXT + CORE)
        assert checked(done.data, hops=64) == (9, 5, payload(ip(REMOTE, ADDRESS, PACKET[20:], ttl=63)))
        assert fast.counted() == {"FAST_DOWN": (1, len(PACKET))}

    @pytest.mark.parametrize("name", NICS)
    def test_to_a_core_nic(self, fast: Rig, name: str) -> None:
        """All but what brings an acknowledgment with it."""
        call(fast, FAST)
        for number in range(32):
            done = fast.programs[name].run(data(SENT, number))
            if number % 16 == 15:
                assert done.data == copied()
            else:
                assert (done.verdict, done.data[:12]) == (REDIRECT, NEXT + CORE)
        assert fast.reasons() == {"FAST_UP": 30, "STACK_UP": 2}

    def test_window(self, fast: Rig) -> None:
        call(fast, FAST, window=1)
        frame = ethernet(CORE, NEXT, IP, PACKET)
        assert [fast.programs["pipex_nic"].run(frame).verdict for _ in range(2)] == [REDIRECT, DROP]
        assert fast.reasons() == {"FAST_DOWN": 1, "DROP_WINDOW": 1}

    @pytest.mark.parametrize(
        ("rule", "caught"),
        # The last are the first words of GRE, where UDP has its ports.
        [("ipproto 47", True), ("ipproto 17", False), ("sport 12417", False), ("dport 34827", False)],
    )
    def test_rules(self, fast: Rig, rule: str, caught: bool) -> None:
        """They see of it what they would see in the stack."""
        call(fast, FAST)
        run(f"rule add {rule} blackhole pref 100")
        try:
            assert fast.down(from_stack(PACKET)).verdict == (PASS if caught else REDIRECT)
        finally:
            run("rule del pref 100")
