"""The blocks: MSS, idle, police, echo. What concerns one way only is in test_access and test_core."""

from __future__ import annotations

import random
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.libbpf import Run
from npppy.pipex.ip import clamp_mss, clamp_mss6, idle, idle6
from tests.unit.ippackets import ip, tcp, tcp_sum, udp

from .frames import FRAGMENT, HOP_OPTIONS, ICMP, ICMP6, IGMP, LCP, TCP, UDP, echo, ip6, ppp, tcp6, tcp6_sum, udp6
from .rig import (
    ADDRESS,
    ADDRESS6,
    ALL,
    DROP,
    MRU,
    MTU,
    OUR_MAGIC,
    OURS,
    PASS,
    PEER,
    PEER_MAGIC,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SLOT,
    Rig,
    data,
    from_stack,
    session_frame,
    tags,
    to_peer,
    to_stack,
)

pytestmark = pytest.mark.root

UP, DOWN = 0, 1
SECOND = 1_000_000_000


def up(rig: Rig, packet: bytes) -> bytes:
    """The packet as it reaches the stack."""
    done = rig.up(data(packet))
    assert done.verdict == REDIRECT
    assert done.data[:14] == to_stack(packet)[:14]
    return done.data[14:]


def down(rig: Rig, packet: bytes) -> bytes:
    """The packet as it reaches the peer."""
    done = rig.down(from_stack(packet))
    assert done.verdict == REDIRECT
    assert done.data[:22] == to_peer(packet)[:22]
    return done.data[22:]


class TestMss:
    # What the peer announces, it is to get; what it gets announced, it may send.
    UP, DOWN = MTU - 40, MRU - 40

    @pytest.mark.parametrize("tcp_flags", [0x02, 0x12, 0xC2])
    def test_both_ways(self, rig: Rig, tcp_flags: int) -> None:
        rig.session()
        for announced in (0, 536, self.UP - 1, self.UP, self.UP + 1, self.DOWN, self.DOWN + 1, 8960, 65535):
            options = b"\2\4" + announced.to_bytes(2, "big")
            found = up(rig, tcp(ADDRESS, REMOTE, options=options, tcp_flags=tcp_flags))
            assert found == tcp(
                ADDRESS, REMOTE, options=b"\2\4" + min(announced, self.UP).to_bytes(2, "big"), tcp_flags=tcp_flags
            )
            found = down(rig, tcp(REMOTE, ADDRESS, options=options, tcp_flags=tcp_flags))
            assert found == tcp(
                REMOTE, ADDRESS, options=b"\2\4" + min(announced, self.DOWN).to_bytes(2, "big"), tcp_flags=tcp_flags
            )

    def test_ip6(self, rig: Rig) -> None:
        rig.session()
        for announced in (1220, self.UP - 20, self.UP - 19, self.UP, self.DOWN, 8940):
            options = b"\1\1\2\4" + announced.to_bytes(2, "big") + b"\1\0"
            found = up(rig, tcp6(ADDRESS6, REMOTE6, options=options))
            lower = min(announced, self.UP - 20).to_bytes(2, "big")
            assert found == tcp6(ADDRESS6, REMOTE6, options=b"\1\1\2\4" + lower + b"\1\0")
            found = down(rig, tcp6(REMOTE6, ADDRESS6, options=options))
            lower = min(announced, self.DOWN - 20).to_bytes(2, "big")
            assert found == tcp6(REMOTE6, ADDRESS6, options=b"\1\1\2\4" + lower + b"\1\0")

    @pytest.mark.parametrize("before", range(37))
    def test_place(self, rig: Rig, before: int) -> None:
        """Behind any number of NOPs, on odd octets too; the checksum stays right."""
        rig.session()
        options = (b"\1" * before + b"\2\4\x05\xb4").ljust(40, b"\0")
        found = up(rig, tcp(ADDRESS, REMOTE, options=options, data=b"odd"))
        assert found[40 + before : 44 + before] == b"\2\4" + self.UP.to_bytes(2, "big")
        assert tcp_sum(found) == 0xFFFF
        found = up(rig, tcp6(ADDRESS6, REMOTE6, options=options, data=b"odd"))
        assert found[60 + before : 64 + before] == b"\2\4" + (self.UP - 20).to_bytes(2, "big")
        assert tcp6_sum(found) == 0xFFFF

    def test_behind_ip_options(self, rig: Rig) -> None:
        rig.session()
        found = up(rig, tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4", ip_options=b"\1" * 40))
        assert found[80:84] == b"\2\4" + self.UP.to_bytes(2, "big")
        assert tcp_sum(found) == 0xFFFF

    @pytest.mark.parametrize(
        "packet",
        [
            tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4", tcp_flags=0x10),
            tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4", tcp_flags=0x05),
            tcp(ADDRESS, REMOTE),
            tcp(ADDRESS, REMOTE, data=b"\2\4\x05\xb4"),
            # Not behind the end of the options, nor in one that is too long or of no length.
            tcp(ADDRESS, REMOTE, options=b"\0\1\1\1\2\4\x05\xb4"),
            tcp(ADDRESS, REMOTE, options=b"\3\0\1\1\2\4\x05\xb4"),
            tcp(ADDRESS, REMOTE, options=b"\3\1\1\1\2\4\x05\xb4"),
            tcp(ADDRESS, REMOTE, options=b"\3\xff\1\1\2\4\x05\xb4"),
            tcp(ADDRESS, REMOTE, options=b"\3\x29\1\1\2\4\x05\xb4"),
            tcp(ADDRESS, REMOTE, options=b"\2\6\x05\xb4\1\1\1\1"),
            tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4", offset=5),
            tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4", offset=0),
            # Fragments but the first have no header of TCP.
            tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4", flags=0x0001),
            tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4", flags=0x2100),
            ip(ADDRESS, REMOTE, tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4")[20:], protocol=UDP),
            ip(ADDRESS, REMOTE, tcp(ADDRESS, REMOTE)[20:39], protocol=TCP),
            ip(ADDRESS, REMOTE, protocol=TCP),
        ],
    )
    def test_left_alone(self, rig: Rig, packet: bytes) -> None:
        rig.session()
        assert up(rig, packet) == packet

    def test_padding_is_no_option(self, rig: Rig) -> None:
        """Total Length cuts the option in two: what lies behind is not of the packet."""
        rig.session()
        whole = tcp(ADDRESS, REMOTE, options=b"\2\4\x05\xb4")
        for octets in range(1, 5):
            cut = ip(ADDRESS, REMOTE, whole[20 : len(whole) - octets], protocol=TCP)
            frame = data(cut) + whole[len(whole) - octets :]
            assert rig.up(frame).data == to_stack(cut) + whole[len(whole) - octets :]

    def test_off(self, rig: Rig) -> None:
        rig.session(ALL & ~layout.MSS)
        for packet in (tcp(ADDRESS, REMOTE, options=b"\2\4\xff\xff"), tcp6(ADDRESS6, REMOTE6, options=b"\2\4\xff\xff")):
            assert up(rig, packet) == packet
        for packet in (tcp(REMOTE, ADDRESS, options=b"\2\4\xff\xff"), tcp6(REMOTE6, ADDRESS6, options=b"\2\4\xff\xff")):
            assert down(rig, packet) == packet

    @pytest.mark.parametrize("mtu", [0, 40, 59, 60])
    def test_mtu_that_has_no_room(self, rig: Rig, mtu: int) -> None:
        rig.session(mtu=mtu)
        packet = tcp6(ADDRESS6, REMOTE6, options=b"\2\4\xff\xff")
        assert up(rig, packet) == packet

    def test_as_the_data_path_in_python(self, rig: Rig) -> None:
        chance = random.Random(2)
        rig.session()
        kinds = (0, 1, 1, 1, 2, 2, 3, 8)
        for _ in range(3000):
            options = b""
            while len(options) < 40 and chance.random() < 0.9:
                kind = chance.choice(kinds)
                length = chance.choice((0, 1, 2, 3, 4, 4, 4, 10, chance.randrange(256)))
                options += bytes((kind,)) if kind < 2 else bytes((kind, length)) + chance.randbytes(min(length, 9))
            options = options[:40]
            options += b"\1" * (-len(options) % 4)
            packet = tcp(
                ADDRESS,
                REMOTE,
                options=options,
                tcp_flags=chance.choice((0x02, 0x12, 0x10)),
                data=chance.randbytes(chance.randrange(8)),
                offset=chance.choice((None, None, None, chance.randrange(16))),
                flags=chance.choice((0, 0, 0, 0x4000, 0x2000, 0x0001)),
                ip_options=b"\1" * chance.choice((0, 0, 4, 40)),
            )
            if chance.random() < 0.2:
                cut = packet[: chance.randrange(20 + (packet[0] & 15) * 4 - 20, len(packet) + 1)]
                packet = cut[:2] + len(cut).to_bytes(2, "big") + cut[4:]
            assert up(rig, packet) == clamp_mss(packet, (packet[0] & 15) * 4, self.UP), packet.hex()

    def test_as_the_data_path_in_python6(self, rig: Rig) -> None:
        chance = random.Random(4)
        rig.session()
        for _ in range(1000):
            options = chance.choice((b"", b"\1", b"\1\1\1", b"\3\3\7", b"\4\2\1\1", chance.randbytes(4)))
            options += b"\2\4" + chance.randbytes(2)
            options += b"\1" * (-len(options) % 4)
            packet = tcp6(ADDRESS6, REMOTE6, options=options, tcp_flags=chance.choice((0x02, 0x12, 0x10)))
            if chance.random() < 0.2:
                packet = ip6(ADDRESS6, REMOTE6, packet[40 : chance.randrange(40, len(packet))], following=TCP)
            if chance.random() < 0.1:
                packet = packet[:6] + bytes((chance.choice((UDP, FRAGMENT)),)) + packet[7:]
            expected = clamp_mss6(packet, self.UP - 20) if packet[6] == TCP else packet
            assert up(rig, packet) == expected, packet.hex()


class TestIdle:
    def active(self, rig: Rig, packet: bytes) -> bool:
        """Whether a packet of the peer counts as activity."""
        rig.session()
        assert rig.up(data(packet)).verdict == REDIRECT
        return "active_ns" in rig.stats()

    @pytest.mark.parametrize("port", [53, 67, 68, 123, 137, 520, 52, 54, 443, 65535, 53 + 256])
    @pytest.mark.parametrize("second", [False, True])
    def test_ports(self, rig: Rig, port: int, second: bool) -> None:
        ports = (40000, port) if second else (port, 40000)
        packet = udp(ADDRESS, REMOTE, ports=ports)
        assert self.active(rig, packet) == (not idle(packet, 20))
        rig.maps["stats"].put(layout.U32.pack(SLOT), bytes(layout.STATS.size))
        assert self.active(rig, udp6(ADDRESS6, REMOTE6, ports=ports)) == (not idle(packet, 20))

    @pytest.mark.parametrize(
        ("kind", "active"), [(128, True), (129, True), (1, False), (2, False), (133, False), (8, False), (0, False)]
    )
    def test_icmp6(self, rig: Rig, kind: int, active: bool) -> None:
        packet = ip6(ADDRESS6, REMOTE6, bytes((kind,)) + bytes(7), following=ICMP6)
        assert self.active(rig, packet) == active

    @pytest.mark.parametrize(
        ("packet", "active"),
        [
            (ip6(ADDRESS6, REMOTE6, bytes(7), following=ICMP6), False),
            (ip6(ADDRESS6, REMOTE6, bytes(7), following=UDP), False),
            (ip6(ADDRESS6, REMOTE6, bytes(7), following=TCP), False),
            (ip6(ADDRESS6, REMOTE6, bytes(8), following=FRAGMENT), True),
            (ip6(ADDRESS6, REMOTE6, bytes(8), following=HOP_OPTIONS), True),
            # Numbers that mean something in the other family only.
            (ip6(ADDRESS6, REMOTE6, bytes(8), following=ICMP), True),
            (ip6(ADDRESS6, REMOTE6, bytes(8), following=IGMP), True),
            (ip(ADDRESS, REMOTE, bytes(8), protocol=ICMP6), True),
        ],
    )
    def test_other(self, rig: Rig, packet: bytes, active: bool) -> None:
        assert self.active(rig, packet) == active

    def test_as_the_data_path_in_python(self, rig: Rig) -> None:
        chance = random.Random(3)
        key = layout.U32.pack(SLOT)
        nothing = bytes(layout.STATS.size)
        rig.session()
        for _ in range(3000):
            packet = ip(
                ADDRESS,
                REMOTE,
                struct.pack(">HH", *(chance.choice((53, 67, 68, 123, 137, 520, 80, 309, 0x0800)) for _ in range(2)))
                + chance.randbytes(chance.randrange(0, 9)),
                protocol=chance.choice((ICMP, IGMP, TCP, UDP, 47, 58)),
                options=b"\1" * chance.choice((0, 0, 4, 40)),
                flags=chance.choice((0, 0, 0, 0x4000, 0x2000, 0x0001, 0x8000)),
            )
            header = (packet[0] & 15) * 4
            if chance.random() < 0.3:
                cut = packet[: chance.randrange(header, len(packet) + 1)]
                packet = cut[:2] + len(cut).to_bytes(2, "big") + cut[4:]
            rig.maps["stats"].put(key, nothing)
            assert rig.up(data(packet)).verdict == REDIRECT
            assert ("active_ns" in rig.stats()) == (not idle(packet, header)), packet.hex()

    def test_as_the_data_path_in_python6(self, rig: Rig) -> None:
        chance = random.Random(5)
        key = layout.U32.pack(SLOT)
        rig.session()
        for _ in range(2000):
            ports = (chance.choice((53, 67, 68, 123, 137, 520, 80, 309, 0x8000, 0x8100, 0x8700)) for _ in range(2))
            data6 = struct.pack(">HH", *ports) + bytes(chance.randrange(0, 9))
            following = chance.choice((ICMP, IGMP, TCP, UDP, ICMP6, FRAGMENT, HOP_OPTIONS, 47))
            packet = ip6(ADDRESS6, REMOTE6, data6[: chance.randrange(1, 16)], following=following)
            rig.maps["stats"].put(key, bytes(layout.STATS.size))
            assert rig.up(data(packet)).verdict == REDIRECT
            assert ("active_ns" in rig.stats()) == (not idle6(packet)), packet.hex()

    def test_down(self, rig: Rig) -> None:
        rig.session()
        down(rig, udp(REMOTE, ADDRESS, ports=(53, 40000)))
        down(rig, udp6(REMOTE6, ADDRESS6, ports=(53, 40000)))
        assert "active_ns" not in rig.stats()
        before = time.monotonic_ns()
        down(rig, udp6(REMOTE6, ADDRESS6))
        assert before - SECOND < rig.stats()["active_ns"] <= time.monotonic_ns()

    def test_off(self, rig: Rig) -> None:
        rig.session(ALL & ~layout.IDLE)
        up(rig, udp(ADDRESS, REMOTE))
        down(rig, udp(REMOTE, ADDRESS))
        assert "active_ns" not in rig.stats()


class TestPolice:
    BOTH = ALL | layout.POLICE_UP | layout.POLICE_DOWN

    def verdict(self, rig: Rig, way: int, size: int) -> int:
        if way == UP:
            return rig.up(data(udp(ADDRESS, REMOTE, bytes(size - 28)))).verdict
        return rig.down(from_stack(udp6(REMOTE6, ADDRESS6, bytes(size - 48)))).verdict

    @pytest.mark.parametrize("way", [UP, DOWN])
    def test_burst_and_no_more(self, rig: Rig, way: int) -> None:
        """A bucket as it is written first is full.  An octet a second hardly fills it again."""
        rig.session(self.BOTH)
        rig.bucket(way, rate=1, burst=1000)
        assert [self.verdict(rig, way, size) for size in (600, 401, 400, 60)] == [REDIRECT, DROP, REDIRECT, DROP]
        assert rig.reasons()["DROP_POLICE"] == 2
        stats = rig.stats()
        names = ("in_packets", "in_errors") if way == UP else ("out_packets", "out_errors")
        assert [stats[name] for name in names] == [2, 2]

    @pytest.mark.parametrize("way", [UP, DOWN])
    def test_ways_and_slots_apart(self, rig: Rig, way: int) -> None:
        rig.session(self.BOTH)
        for slot in range(8):
            for other in (UP, DOWN):
                rig.bucket(other, slot, rate=1, burst=100_000)
        rig.bucket(way, rate=1, burst=100)
        assert self.verdict(rig, way, 500) == DROP
        assert self.verdict(rig, 1 - way, 500) == REDIRECT

    @pytest.mark.parametrize(("way", "block"), [(UP, layout.POLICE_UP), (DOWN, layout.POLICE_DOWN)])
    def test_a_flag_each_way(self, rig: Rig, way: int, block: int) -> None:
        rig.bucket(way, rate=1, burst=100)
        rig.session(self.BOTH & ~block)
        assert self.verdict(rig, way, 500) == REDIRECT
        rig.session(ALL | block)
        assert self.verdict(rig, way, 500) == DROP

    def test_no_rate_no_limit(self, rig: Rig) -> None:
        rig.session(self.BOTH)
        assert self.verdict(rig, UP, 1400) == self.verdict(rig, DOWN, 1400) == REDIRECT

    def tokens(self, rig: Rig, way: int = UP) -> int:
        value = rig.maps["buckets"].get(layout.U32.pack(2 * SLOT + way))
        assert value is not None
        return int(layout.fields(layout.BUCKET, value)["tokens"])

    @pytest.mark.parametrize("rate", [1000, 125_000, 12_500_000_000])
    @pytest.mark.parametrize("seconds", [1, 10])
    def test_filled_by_time(self, rig: Rig, rate: int, seconds: int) -> None:
        """rate x time, exact to the nanosecond, for rates from 8 kb/s to 100 Gb/s."""
        rig.session(self.BOTH)
        burst = min(18_000_000_000, rate * 100)
        before = time.monotonic_ns()
        # A guest may not have run for so long.
        stamp = max(1, before - seconds * SECOND)
        rig.bucket(UP, rate=rate, burst=burst, stamp_ns=stamp)
        self.verdict(rig, UP, 100)
        after = time.monotonic_ns()
        low = min((before - stamp) * rate, burst * SECOND)
        high = min((after - stamp) * rate, burst * SECOND)
        assert low <= self.tokens(rig) + 100 * SECOND <= high

    @pytest.mark.parametrize("rate", [1, 12_500_000_000, 2**64 - 1])
    def test_never_more_than_the_burst(self, rig: Rig, rate: int) -> None:
        rig.session(self.BOTH)
        for burst in (1500, 18_000_000_000):
            rig.bucket(UP, rate=rate, burst=burst, tokens=2**64 - 1, stamp_ns=1)
            assert self.verdict(rig, UP, 100) == REDIRECT
            assert self.tokens(rig) == (burst - 100) * SECOND

    def test_several_processors(self, rig: Rig) -> None:
        """Each packet takes its tokens, also of one that cannot be sent, and so can be run again and again."""
        rig.session(self.BOTH, encap_len=0)
        rig.bucket(DOWN, rate=1, burst=10**9)
        packet = from_stack(udp(REMOTE, ADDRESS))
        before = time.monotonic_ns()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: rig.programs["pipex_core"].run(packet, repeat=500_000), range(4)))
        assert rig.stats()["out_errors"] == 2_000_000
        added = self.tokens(rig, DOWN) - (10**9 - 2_000_000 * 28) * SECOND
        assert 0 <= added <= time.monotonic_ns() - before

    def test_a_stamp_of_another_processor(self, rig: Rig) -> None:
        """It may be a little later than our own clock: nothing is added, and the stamp stays."""
        rig.session(self.BOTH)
        later = time.monotonic_ns() + 1000 * SECOND
        rig.bucket(UP, rate=10**9, burst=2000, tokens=150 * SECOND, stamp_ns=later)
        assert [self.verdict(rig, UP, 100) for _ in range(2)] == [REDIRECT, DROP]
        assert self.tokens(rig) == 50 * SECOND


class TestEcho:
    def ask(self, rig: Rig, code: int, magic: int, rest: bytes = b"", **header: int) -> Run:
        return rig.up(session_frame(ppp(LCP, echo(code, magic, rest, **header))))

    @pytest.mark.parametrize("identifiers", [(), (7,), (7, 8)])
    @pytest.mark.parametrize("rest", [b"", b"what is sent comes back", bytes(MTU - 8)])
    def test_answered(self, rig: Rig, rest: bytes, identifiers: tuple[int, ...]) -> None:
        rig.session(vlans=identifiers)
        padding = bytes(16)
        done = rig.up(
            session_frame(ppp(LCP, echo(9, PEER_MAGIC, rest, identifier=99)), vlans=tags(*identifiers)) + padding
        )
        answer = session_frame(
            ppp(LCP, echo(10, OUR_MAGIC, rest, identifier=99)),
            vlans=tags(*identifiers),
            source=OURS,
            destination=PEER,
        )
        assert (done.verdict, done.data) == (REDIRECT, answer + padding)
        assert rig.reasons() == {"ECHO": 1}
        stats = rig.stats()
        assert stats.keys() == {"heard_ns", "echo_ns"}
        assert stats["heard_ns"] == stats["echo_ns"]

    def test_driver_that_takes_none(self, rig: Rig) -> None:
        """Frames from XDP: a veth device without GRO at its peer would lose also what it is to send back itself."""
        rig.session()
        rig.redirect_to()
        done = self.ask(rig, 9, PEER_MAGIC)
        assert (done.verdict, done.data) == (PASS, session_frame(ppp(LCP, echo(9, PEER_MAGIC))))
        assert rig.reasons() == {"PUNT_CONTROL": 1}

    def test_without_magic_numbers(self, rig: Rig) -> None:
        """Where one side has none, its field is 0, and no request can be ours come back."""
        rig.session(magic=bytes(4), peer_magic=bytes(4))
        done = self.ask(rig, 9, 0)
        assert done.verdict == REDIRECT
        assert done.data[22:] == echo(10, 0)
        assert self.ask(rig, 10, 0).verdict == DROP

    def test_looped(self, rig: Rig) -> None:
        rig.session()
        done = self.ask(rig, 9, OUR_MAGIC)
        assert (done.verdict, done.data) == (PASS, session_frame(ppp(LCP, echo(9, OUR_MAGIC))))
        assert rig.stats()["looped"] == 1
        assert rig.reasons() == {"PUNT_CONTROL": 1}

    def test_rate(self, rig: Rig) -> None:
        rig.config(echo_interval_ns=4 * SECOND)
        rig.session()
        assert [self.ask(rig, 9, PEER_MAGIC).verdict for _ in range(3)] == [REDIRECT, DROP, DROP]
        assert rig.reasons() == {"ECHO": 1, "DROP_POLICE": 2}
        assert "in_errors" not in rig.stats()
        # As if it had been 4 s ago.
        stats = rig.stats()
        names = layout.STATS.offsets
        stats["echo_ns"] = stats["echo_ns"] - 4 * SECOND & 2**64 - 1
        record = [stats.get(name, 0) for name in names]
        rig.maps["stats"].put(layout.U32.pack(SLOT), layout.STATS.pack(*record))
        assert self.ask(rig, 9, PEER_MAGIC).verdict == REDIRECT

    def test_reply(self, rig: Rig) -> None:
        rig.session()
        assert self.ask(rig, 10, PEER_MAGIC).verdict == DROP
        assert rig.reasons() == {"ECHO": 1}
        assert rig.stats().keys() == {"heard_ns"}

    @pytest.mark.parametrize("magic", [0, OUR_MAGIC, PEER_MAGIC ^ 1])
    def test_reply_of_another(self, rig: Rig, magic: int) -> None:
        rig.session()
        done = self.ask(rig, 10, magic)
        assert (done.verdict, done.data) == (PASS, session_frame(ppp(LCP, echo(10, magic))))

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\x09\x07\0\x04",
            echo(9, PEER_MAGIC)[:7],
            echo(9, PEER_MAGIC, length=7),
            echo(9, PEER_MAGIC, length=0),
            echo(9, PEER_MAGIC, length=9),
            echo(10, PEER_MAGIC, length=9),
            # Padding within PPP: npppyd's to answer.
            echo(9, PEER_MAGIC, b"\0", length=8),
            echo(9, PEER_MAGIC, bytes(MTU - 7)),
            *(echo(code, PEER_MAGIC) for code in range(16) if code not in (9, 10)),
        ],
    )
    def test_left_to_npppyd(self, rig: Rig, payload: bytes) -> None:
        rig.session()
        frame = session_frame(ppp(LCP, payload))
        done = rig.up(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert rig.reasons() == {"PUNT_CONTROL": 1}
        assert rig.stats().keys() == {"heard_ns"}

    def test_cut_off_by_length(self, rig: Rig) -> None:
        """What lies behind LENGTH is no part of the packet."""
        rig.session()
        whole = ppp(LCP, echo(9, PEER_MAGIC))
        assert rig.up(session_frame(whole, length=9)).verdict == PASS

    def test_off(self, rig: Rig) -> None:
        """As while LCP is not open."""
        rig.session(ALL & ~layout.ECHO)
        assert self.ask(rig, 9, PEER_MAGIC).verdict == PASS
        assert self.ask(rig, 10, PEER_MAGIC).verdict == PASS
        assert rig.reasons() == {"PUNT_CONTROL": 2}

    def test_of_another_station(self, rig: Rig) -> None:
        rig.session()
        frame = session_frame(ppp(LCP, echo(9, PEER_MAGIC)), destination=PEER)
        assert rig.up(frame).verdict == PASS
        assert not rig.counted()
