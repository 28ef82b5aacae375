"""Data of L2TP: what leaves for the peer, of the stack and of npppyd, and past the stack."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import U32
from npppy.pipex.ebpf.libbpf import Object, Ring, Run
from tests.unit.ippackets import ip, tcp, udp

from .frames import IP, IP6, LCP, ethernet, ppp, udp6
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
)
from .tunnel import LAC, LAC6, checked, numbers, tunnel

pytestmark = pytest.mark.root

PACKET = udp(REMOTE, ADDRESS, b"data")
PACKET6 = udp6(REMOTE6, ADDRESS6, b"data")
CONTROL = ppp(LCP, b"\5\7\0\4")
#: IPv6 outside; UDP's checksum; sequence numbers.  IPv6 always has a checksum.
FORMS = [(six, check or six, sequenced) for six in (False, True) for check in (False, True) for sequenced in (0, 1)]
#: Of metadata.
MAGIC = 0x7078706E


def data(packet: bytes) -> bytes:
    return (b"\0\x21" if packet[0] >> 4 == 4 else b"\0\x57") + packet


def for_the_stack(done: Run, mark: int = 0) -> bytes:
    """The frame of L2TP that pipex_core has passed, with metadata for pipex_miss in front of it."""
    assert done.verdict == PASS
    assert struct.unpack_from("=III", done.data) == (0, mark, MAGIC)
    frame = done.data[12:]
    assert frame[:12] == NPX1 + NPX0
    return frame


def injected(frame: bytes, generation: int = GENERATION, slot: int = SLOT, again: int = 0) -> bytes:
    body = layout.inject(slot, generation, frame)
    return ethernet(NPX1, NPX0, layout.FRAME_TYPE, body[:10] + struct.pack("=H", again) + body[12:])


@pytest.mark.parametrize(("six", "checksum", "sequenced"), FORMS)
class TestForms:
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_data(self, rig: Rig, six: bool, checksum: bool, sequenced: bool, packet: bytes) -> None:
        tunnel(rig, six=six, checksum=checksum, sequenced=sequenced, out=7)
        for ns in (7, 8):
            frame = for_the_stack(rig.down(from_stack(packet)))
            found = checked(frame, six=six, checksum=checksum, sequenced=sequenced)
            assert found == (ns if sequenced else -1, data(packet))
        assert rig.counted() == {"STACK_DOWN": (2, 2 * len(packet))}
        stats = rig.stats()
        assert stats.keys() == {"out_packets", "out_bytes", "active_ns"}
        assert (stats["out_packets"], stats["out_bytes"]) == (2, 2 * len(packet))
        assert numbers(rig) == (9 if sequenced else 7, 0)

    def test_sizes(self, rig: Rig, six: bool, checksum: bool, sequenced: bool) -> None:
        """All that the sum is made of: each length to 1,100, and the largest ones."""
        tunnel(rig, six=six, checksum=checksum, sequenced=sequenced, mtu=3400)
        octets = bytes(at * 7 % 251 for at in range(3400))
        for size in (*range(20, 1100), *range(MTU - 4, MTU + 1), 2047, 2048, 2049, 3072, 3399, 3400):
            packet = ip(REMOTE, ADDRESS, octets[: size - 20])
            frame = for_the_stack(rig.down(from_stack(packet)))
            assert checked(frame, six=six, checksum=checksum, sequenced=sequenced)[1] == data(packet)

    def test_injected(self, rig: Rig, six: bool, checksum: bool, sequenced: bool) -> None:
        """In one row with data, and not counted as such."""
        tunnel(rig, six=six, checksum=checksum, sequenced=sequenced, out=0xFFFE)
        for number, packet in enumerate((CONTROL, ppp(0x8021, bytes(1000)), b"\xc0\x21", CONTROL)):
            for padding in (0, 20):
                frame = for_the_stack(rig.down(injected(packet) + bytes(padding)))
                ns, found = checked(frame, six=six, checksum=checksum, sequenced=sequenced, padding=padding)
                assert found == packet
                assert ns == (0xFFFE + 2 * number + bool(padding) & 0xFFFF if sequenced else -1)
        assert not rig.counted()
        assert not rig.stats()


class TestNumbers:
    def test_wrap(self, rig: Rig) -> None:
        tunnel(rig, sequenced=True, out=0xFFFE)
        found = []
        for frame in (from_stack(PACKET), injected(CONTROL), from_stack(PACKET6), injected(CONTROL)):
            found.append(checked(for_the_stack(rig.down(frame)), six=False, checksum=False, sequenced=True)[0])
        assert found == [0xFFFE, 0xFFFF, 0, 1]
        tunnel(rig, sequenced=True, out=0xFFFFFFFF)
        found = [checked(for_the_stack(rig.down(injected(CONTROL))), six=False, checksum=False, sequenced=True)[0]]
        assert (found, numbers(rig)) == ([0xFFFF], (0, 0))

    def test_what_does_not_leave_takes_none(self, rig: Rig) -> None:
        tunnel(rig, ALL & ~layout.IP6 | layout.POLICE_DOWN, sequenced=True)
        rig.bucket(1, rate=1, burst=1)
        for packet in (PACKET, PACKET6):
            assert rig.down(from_stack(packet)).verdict == DROP
        assert rig.down(from_stack(ip(REMOTE, ADDRESS, bytes(MTU), flags=0x4000))).verdict == PASS
        assert numbers(rig) == (0, 0)

    def test_identification(self, rig: Rig) -> None:
        """Somebody may cut the packet in pieces."""
        tunnel(rig)
        found = {for_the_stack(rig.down(from_stack(PACKET)))[18:20] for _ in range(20)}
        assert len(found) > 15


class TestOrder:
    """The queue that pipex_order chooses is not to be seen here: see tests/root."""

    def test_once_more(self, rig: Rig) -> None:
        """To npx0 by the stack, and nothing has been done but that; the next time, it is sent."""
        tunnel(rig, sequenced=True, out=5)
        rig.config(npx0=66)
        done = rig.down(injected(CONTROL, again=1))
        assert (done.verdict, done.data[:12]) == (PASS, struct.pack("=III", 66, 0, MAGIC))
        assert done.data[12:] == injected(CONTROL)
        assert (numbers(rig), rig.counted()) == ((5, 0), {})
        assert checked(for_the_stack(rig.down(done.data[12:])), six=False, checksum=False, sequenced=True)[0] == 5

    def test_nobody_to_be_sent_to(self, rig: Rig) -> None:
        tunnel(rig, sequenced=True, shared=layout.SHARED_MAX)
        assert rig.down(injected(CONTROL, again=1)).verdict == DROP
        assert rig.reasons() == {"TX_FAIL": 1}

    @pytest.mark.parametrize("frame", [from_stack(PACKET), from_stack(PACKET6), injected(CONTROL)])
    def test_untouched(self, rig: Rig, frame: bytes) -> None:
        """Whole or not, and of somebody or nobody; other programs may follow."""
        for sequenced in (False, True):
            tunnel(rig, sequenced=sequenced)
            # Without its whole header, nobody runs a program over a packet of IP.
            for size in range(14 if frame[12] == 0x88 else 34 if frame[12] == 8 else 54, len(frame) + 1):
                done = rig.programs["pipex_order"].run(frame[:size])
                assert (done.verdict, done.data) == (0xFFFFFFFF, frame[:size])
        assert (rig.stats(), rig.counted()) == ({}, {})


class TestInjected:
    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            (injected(CONTROL, GENERATION - 1), "PUNT_STALE"),
            (injected(CONTROL, 0), "PUNT_STALE"),
            (injected(CONTROL, slot=SLOT + 1), "PUNT_STALE"),
            (injected(CONTROL, slot=16), "PUNT_STALE"),
            (injected(CONTROL, slot=0xFFFFFFFF), "PUNT_STALE"),
            (injected(b""), "DROP_MALFORMED"),
            (injected(b"\xc0"), "DROP_MALFORMED"),
            (injected(CONTROL)[:-1], "DROP_MALFORMED"),
            *((injected(CONTROL)[:size], "DROP_MALFORMED") for size in range(14, 28)),
        ],
    )
    def test_dropped(self, rig: Rig, frame: bytes, reason: str) -> None:
        tunnel(rig, sequenced=True)
        assert rig.down(frame).verdict == DROP
        assert rig.counted() == {reason: (1, len(frame))}
        assert not rig.stats()
        assert numbers(rig) == (0, 0)

    def test_record_that_is_wrong(self, rig: Rig) -> None:
        tunnel(rig, encap_len=97)
        assert rig.down(injected(CONTROL)).verdict == DROP
        assert rig.reasons() == {"TX_FAIL": 1}

    def test_whatever_the_blocks(self, rig: Rig) -> None:
        """npppyd knows what it sends; also while it has all of the session."""
        rig.bucket(1, rate=1, burst=1)
        for blocks in (0, ALL | layout.USER, layout.POLICE_DOWN, ALL | layout.IPSEC):
            tunnel(rig, blocks)
            frame = for_the_stack(rig.down(injected(CONTROL)))
            assert checked(frame, six=False, checksum=False, sequenced=False) == (-1, CONTROL)

    def test_of_pppoe(self, rig: Rig) -> None:
        rig.session()
        done = rig.down(injected(CONTROL))
        assert (done.verdict, done.data[20:28]) == (REDIRECT, CONTROL + b"\0\0")


class TestToTheStack:
    @pytest.mark.parametrize("mark", [0, 1, 0xFFFFFFFF])
    @pytest.mark.parametrize("blocks", [ALL, ALL | layout.IPSEC])
    def test_mark(self, rig: Rig, blocks: int, mark: int) -> None:
        tunnel(rig, blocks, mark=mark)
        for frame in (from_stack(PACKET), injected(CONTROL)):
            for_the_stack(rig.down(frame), mark)

    def test_whatever_interface(self, rig: Rig) -> None:
        tunnel(rig, ifindex=LO)
        for_the_stack(rig.down(from_stack(PACKET)))

    @pytest.mark.parametrize(
        "packet",
        [udp(REMOTE, ADDRESS, bytes(MTU - 27)), udp6(REMOTE6, ADDRESS6, bytes(MTU - 47))],
    )
    def test_too_big(self, rig: Rig, packet: bytes) -> None:
        tunnel(rig)
        done = rig.down(from_stack(packet))
        assert (done.verdict, done.data) == (PASS, from_stack(packet))
        assert rig.reasons() == {"PUNT_TOOBIG": 1}

    def test_user(self, rig: Rig) -> None:
        tunnel(rig, ALL | layout.USER)
        done = rig.down(from_stack(PACKET))
        assert (done.verdict, done.data) == (PASS, from_stack(PACKET))
        assert rig.reasons() == {"USER_DOWN": 1}

    def test_mss(self, rig: Rig) -> None:
        """Before the sum is made."""
        tunnel(rig, checksum=True)
        frame = for_the_stack(rig.down(from_stack(tcp(REMOTE, ADDRESS, options=b"\2\4\xff\xff"))))
        _, packet = checked(frame, six=False, checksum=True, sequenced=False)
        assert packet[2 + 42 : 2 + 44] == (MRU - 40).to_bytes(2, "big")

    @pytest.mark.parametrize("six", [False, True])
    def test_mirror(self, loaded: Object, rig: Rig, six: bool) -> None:
        """Outer headers too."""
        ring = Ring(loaded.maps["events"])
        ring.consume(lambda _: None)
        tunnel(rig, ALL | layout.MIRROR, six=six, sequenced=True)
        frames = [for_the_stack(rig.down(frame)) for frame in (from_stack(PACKET), injected(CONTROL))]
        found: list[bytes] = []
        ring.consume(found.append)
        ring.close()
        for record, frame in zip(found, frames, strict=True):
            event = layout.fields(layout.EVENT, record[: layout.EVENT.size])
            assert (event["ppp_id"], event["way"], event["length"]) == (PPP_ID, layout.DOWN, len(frame))
            assert record[layout.EVENT.size :][: len(frame)] == frame

    @pytest.mark.parametrize("sum_", [0xFFFF, 0])
    def test_sum_of_nothing(self, rig: Rig, sum_: int) -> None:
        """A sum of 0 would mean that there is none (RFC 768)."""
        tunnel(rig, checksum=True)
        frame = for_the_stack(rig.down(from_stack(udp(REMOTE, ADDRESS, b"\0\0"))))
        had = int.from_bytes(frame[40:42], "big")
        # What makes the sum of all the rest 0xFFFF.
        frame = for_the_stack(rig.down(from_stack(udp(REMOTE, ADDRESS, (had ^ sum_ ^ 0xFFFF).to_bytes(2, "big")))))
        checked(frame, six=False, checksum=True, sequenced=False)
        if sum_ == 0xFFFF:
            assert frame[40:42] == b"\xff\xff"


# Past the stack.

FAST = ALL | layout.FAST
HOP, HOP6, NEXT = "192.0.2.2", "2001:db8:c::2", b"\x02\0\0\0\x0c\x02"
CORE = b"\x02\0\0\0\x0c\x01"
ROUTES = f"""
link add core0 address {CORE.hex(":")} type veth peer name core1
link add side0 type veth peer name side1
link set lo up
link set core0 up
link set core1 up
link set side0 up
link set side1 up
address add 192.0.2.1/24 dev core0
address add 192.0.3.1/24 dev side0
address add 2001:db8:c::1/64 dev core0 nodad
address add 2001:db8:e::1/64 dev side0 nodad
neighbour add {HOP} lladdr {NEXT.hex(":")} dev core0 nud permanent
neighbour add {HOP6} lladdr {NEXT.hex(":")} dev core0 nud permanent
neighbour add 192.0.3.2 lladdr {NEXT.hex(":")} dev side0 nud permanent
neighbour add 2001:db8:e::2 lladdr {NEXT.hex(":")} dev side0 nud permanent
route add {LAC}/32 via {HOP}
route add {LAC6}/128 via {HOP6}
"""


def run(command: str) -> None:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"


@pytest.fixture(scope="module")
def world(loaded: Object) -> None:
    for line in ROUTES.strip().splitlines():
        run(line)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")


@pytest.fixture
def fast(rig: Rig, world: None) -> Iterator[Rig]:
    """A session that has used the stack just now, and devices to forward to; lo is npx1, and a core NIC."""
    rig.redirect_to(LO, socket.if_nametoindex("core0"))
    rig.maps["nics"].put(U32.pack(LO), CORE + b"\0\0")
    used(rig)
    return rig


def used(rig: Rig, seconds_ago: int = 0) -> None:
    stamp = bytearray(layout.STATS.size)
    at = layout.STATS.offsets["outer_ns"]
    stamp[at : at + 8] = struct.pack("=q", time.monotonic_ns() - seconds_ago * 10**9)
    rig.maps["stats"].put(U32.pack(SLOT), bytes(stamp))


def one_hop_less(packet: bytes) -> bytes:
    if packet[0] >> 4 == 6:
        return udp6(REMOTE6, ADDRESS6, packet[48:])[:7] + b"\x3f" + packet[8:]
    return ip(REMOTE, ADDRESS, packet[20:], ttl=63)


def from_core(packet: bytes) -> bytes:
    return ethernet(CORE, NEXT, IP if packet[0] >> 4 == 4 else IP6, packet)


class TestFast:
    @pytest.mark.parametrize(("six", "checksum", "sequenced"), FORMS)
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_from_npx1(self, fast: Rig, six: bool, checksum: bool, sequenced: bool, packet: bytes) -> None:
        tunnel(fast, FAST, six=six, checksum=checksum, sequenced=sequenced, out=9)
        for ns, frame, expected in ((9, from_stack(packet), data(packet)), (10, injected(CONTROL), CONTROL)):
            done = fast.down(frame)
            assert (done.verdict, done.data[:12]) == (REDIRECT, NEXT + CORE)
            found = checked(done.data, six=six, checksum=checksum, sequenced=sequenced, hops=64)
            assert found == (ns if sequenced else -1, expected)
        assert fast.counted() == {"STACK_DOWN": (1, len(packet))}

    @pytest.mark.parametrize(("six", "checksum", "sequenced"), FORMS)
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_from_a_core_nic(self, fast: Rig, six: bool, checksum: bool, sequenced: bool, packet: bytes) -> None:
        tunnel(fast, FAST, six=six, checksum=checksum, sequenced=sequenced)
        for padding in (0, 30):
            done = fast.programs["pipex_nic"].run(from_core(packet) + bytes(padding))
            assert (done.verdict, done.data[:12]) == (REDIRECT, NEXT + CORE)
            found = checked(done.data, six=six, checksum=checksum, sequenced=sequenced, hops=64)
            assert found[1] == data(one_hop_less(packet))
        assert fast.counted() == {"FAST_DOWN": (2, 2 * len(packet))}

    def by_the_stack(self, rig: Rig, packet: bytes = PACKET, six: bool = False, mark: int = 0) -> None:
        before = rig.stats()
        done = rig.programs["pipex_nic"].run(from_core(packet))
        assert (done.verdict, done.data) == (PASS, from_core(packet))
        assert rig.stats() == before
        for frame, expected in ((from_stack(packet), data(packet)), (injected(CONTROL), CONTROL)):
            found = for_the_stack(rig.down(frame), mark)
            assert checked(found, six=six, checksum=six, sequenced=False)[1] == expected

    @pytest.mark.parametrize("six", [False, True])
    def test_not_fast(self, fast: Rig, six: bool) -> None:
        tunnel(fast, ALL, six=six)
        self.by_the_stack(fast, six=six)

    @pytest.mark.parametrize("six", [False, True])
    def test_the_stack_is_to_encrypt(self, fast: Rig, six: bool) -> None:
        """It would leave in the clear."""
        tunnel(fast, FAST | layout.IPSEC, six=six)
        self.by_the_stack(fast, six=six)
        tunnel(fast, FAST, six=six, mark=7)
        self.by_the_stack(fast, six=six, mark=7)

    @pytest.mark.parametrize("six", [False, True])
    @pytest.mark.parametrize(
        ("away", "back"),
        [
            ("neighbour del {hop} dev core0", "neighbour add {hop} lladdr 02:00:00:00:0c:02 dev core0 nud permanent"),
            ("route del {lac}", "route add {lac} via {hop}"),
            ("route replace {lac} via {side}", "route replace {lac} via {hop}"),
            ("route replace blackhole {lac}", "route replace {lac} via {hop}"),
        ],
    )
    def test_no_way(self, fast: Rig, six: bool, away: str, back: str) -> None:
        """No neighbour, no route, an interface that takes none from us, as a VLAN, a black hole: the stack knows."""
        hop, lac, side = (HOP6, LAC6, "2001:db8:e::2") if six else (HOP, LAC, "192.0.3.2")
        tunnel(fast, FAST, six=six)
        if six and "blackhole" in away:
            run(f"route del {lac}")
        run(away.format(hop=hop, lac=lac, side=side))
        try:
            self.by_the_stack(fast, six=six)
        finally:
            if six and "blackhole" in away:
                run(f"route del blackhole {lac}")
                back = back.replace("replace", "add")
            run(back.format(hop=hop, lac=lac))

    @pytest.mark.parametrize("six", [False, True])
    def test_too_big_for_the_route(self, fast: Rig, six: bool) -> None:
        """The stack cuts it in pieces."""
        tunnel(fast, FAST, six=six)
        overhead = (40 if six else 20) + 8 + 8 + 4
        run("link set core0 mtu 1400")
        try:
            fits = ip(REMOTE, ADDRESS, bytes(1400 - overhead - 20))
            assert fast.down(from_stack(fits)).verdict == REDIRECT
            assert fast.programs["pipex_nic"].run(from_core(fits)).verdict == REDIRECT
            big = ip(REMOTE, ADDRESS, bytes(1401 - overhead - 20))
            assert fast.programs["pipex_nic"].run(from_core(big)).verdict == PASS
            frame = for_the_stack(fast.down(from_stack(big)))
            assert checked(frame, six=six, checksum=six, sequenced=False)[1] == data(big)
        finally:
            run("link set core0 mtu 1500")

    def test_too_big_encrypted(self, fast: Rig) -> None:
        """MPPE has four octets of its own."""
        tunnel(fast, FAST | layout.MPPE)
        key = pack(layout.MPPE_KEYS, generation=GENERATION, size=16)
        fast.maps["mppe"].put(U32.pack(2 * SLOT + layout.DOWN), key)
        overhead = 20 + 8 + 8 + 4 + 4
        run("link set core0 mtu 1400")
        try:
            for size, verdict in ((1400 - overhead, REDIRECT), (1401 - overhead, PASS)):
                packet = ip(REMOTE, ADDRESS, bytes(size - 20))
                for frame in (from_stack(packet), injected(data(packet))):
                    assert fast.down(frame).verdict == verdict
                assert fast.programs["pipex_nic"].run(from_core(packet)).verdict == verdict
        finally:
            run("link set core0 mtu 1500")

    @pytest.mark.parametrize("six", [False, True])
    def test_rules(self, fast: Rig, six: bool) -> None:
        """They see of it what they would see in the stack."""
        tunnel(fast, FAST, six=six)
        family = "-6" if six else "-4"
        source = str(ip_address("2001:db8:c::1" if six else "192.0.2.1"))
        for rule, caught in (
            ("iif lo", True),
            ("iif core0", False),
            (f"from {source}", True),
            (f"to {HOP6 if six else HOP}", False),
            ("ipproto 17 dport 40001", True),
            ("ipproto 17 sport 1701", True),
            ("ipproto 17 dport 1701", False),
            ("ipproto 6", False),
        ):
            run(f"{family} rule add {rule} blackhole pref 100")
            try:
                assert fast.down(from_stack(PACKET)).verdict == (PASS if caught else REDIRECT), rule
            finally:
                run(f"{family} rule del pref 100")

    def test_through_the_stack_now_and_then(self, fast: Rig) -> None:
        """So that the kernel looks after the neighbour; what the core NIC leaves over it pipex_core sends so."""
        tunnel(fast, FAST)
        for seconds_ago in (1_000_000, 11):
            used(fast, seconds_ago)
            for _ in range(2):
                assert fast.programs["pipex_nic"].run(from_core(PACKET)).verdict == PASS
            for_the_stack(fast.down(from_stack(PACKET)))
            assert fast.programs["pipex_nic"].run(from_core(PACKET)).verdict == REDIRECT
            assert fast.down(from_stack(PACKET)).verdict == REDIRECT
        used(fast, 8)
        assert fast.down(from_stack(PACKET)).verdict == REDIRECT

    def test_mirror(self, loaded: Object, fast: Rig) -> None:
        """As it leaves."""
        ring = Ring(loaded.maps["events"])
        ring.consume(lambda _: None)
        tunnel(fast, FAST | layout.MIRROR)
        frame = fast.down(from_stack(PACKET)).data
        found: list[bytes] = []
        ring.consume(found.append)
        ring.close()
        (record,) = found
        assert record[layout.EVENT.size :][: len(frame)] == frame

    def test_no_shared_interface(self, fast: Rig) -> None:
        tunnel(fast, FAST, shared=99)
        self.by_the_stack(fast)

    def test_dropped_after_all(self, fast: Rig) -> None:
        tunnel(fast, FAST | layout.POLICE_DOWN, sequenced=True)
        fast.bucket(1, rate=1, burst=1)
        assert fast.programs["pipex_nic"].run(from_core(PACKET)).verdict == DROP
        assert numbers(fast) == (0, 0)
