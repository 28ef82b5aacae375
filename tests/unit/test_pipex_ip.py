from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.pipex.ip import HEADER, checksum, clamp_mss, clamp_mss6, fragment, idle, idle6, link_scope6
from tests.bpf.frames import FRAGMENT, HOP_OPTIONS, ICMP6, ip6, tcp6, tcp6_sum, udp6

from .ippackets import ip, reassemble, tcp, tcp_sum, udp, words

A, B = "10.0.0.2", "198.51.100.1"
A6, B6 = "2001:db8:1::2", "2001:db8:ffff::1"
MSS_1460 = b"\x02\x04\x05\xb4"


def mss_of(packet: bytes, at: int) -> int:
    return int.from_bytes(packet[at : at + 2], "big")


def test_header_lengths():
    assert HEADER[0x45] == 20
    assert HEADER[0x4F] == 60
    for first in (0x44, 0x40, 0x55, 0x65, 0x00, 0x35):
        assert HEADER[first] > 65535


@given(st.binary(max_size=80))
def test_checksum(data):
    assert checksum(data) == 0xFFFF ^ words(data)


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\xff\xff", b"\0\1\xff\xfe", b"\xff\xff\xff\xff", b"\x12"])
def test_checksum_zeros(data):
    assert checksum(data) == 0xFFFF ^ words(data)


class TestIdle:
    """npppd's ip_is_idle_packet."""

    @pytest.mark.parametrize("port", [53, 67, 68, 123, 137, 520])
    def test_ports(self, port):
        for ports in ((port, 40000), (40000, port)):
            assert idle(udp(A, B, b"x", ports=ports), 20)
            assert idle(tcp(A, B, ports=ports), 20)

    @pytest.mark.parametrize("port", [0, 1, 22, 52, 54, 69, 138, 443, 519, 521, 256 + 53, 512 + 53, 768 + 53, 65535])
    def test_other_ports(self, port):
        for ports in ((port, 40000), (40000, port), (port, port)):
            assert not idle(udp(A, B, b"x", ports=ports), 20)
            assert not idle(tcp(A, B, ports=ports), 20)

    def test_options_shift_ports(self):
        packet = ip(A, B, struct.pack(">HHHH", 53, 40000, 8, 0), options=bytes(4))
        assert idle(packet, 24)

    @pytest.mark.parametrize(("kind", "expected"), [(0, False), (8, False), (3, True), (5, True), (11, True)])
    def test_icmp(self, kind, expected):
        assert idle(ip(A, B, bytes((kind,)) + bytes(7), protocol=1), 20) is expected

    def test_too_short_to_tell(self):
        assert idle(ip(A, B, b"\x08" + bytes(6), protocol=1), 20)
        assert idle(ip(A, B, struct.pack(">HH", 1, 2) + bytes(3)), 20)
        assert idle(ip(A, B), 20)

    def test_just_long_enough(self):
        assert not idle(udp(A, B), 20)

    def test_igmp(self):
        assert idle(ip(A, B, bytes(8), protocol=2), 20)

    def test_other_protocols(self):
        assert not idle(ip(A, B, protocol=47), 20)

    def test_fragments_are_not_idle(self):
        for flags in (0x2000, 0x0001, 0x0100, 0x1FFF):
            assert not idle(ip(A, B, struct.pack(">HHHH", 53, 53, 8, 0), flags=flags), 20)
        assert idle(ip(A, B, struct.pack(">HHHH", 53, 53, 8, 0), flags=0x4000), 20)


class TestClamp:
    def test_lowers(self):
        packet = tcp(A, B, options=MSS_1460)
        clamped = clamp_mss(packet, 20, 1360)
        assert mss_of(clamped, 42) == 1360
        assert tcp_sum(clamped) == 0xFFFF
        assert len(clamped) == len(packet)
        # Nothing else has changed.
        assert clamped[:36] + clamped[38:42] + clamped[44:] == packet[:36] + packet[38:42] + packet[44:]

    @pytest.mark.parametrize("limit", [1460, 1461, 65535])
    def test_only_lowers(self, limit):
        packet = tcp(A, B, options=MSS_1460)
        assert clamp_mss(packet, 20, limit) is packet

    def test_syn_ack(self):
        assert mss_of(clamp_mss(tcp(A, B, options=MSS_1460, tcp_flags=0x12), 20, 1000), 42) == 1000

    def test_not_a_syn(self):
        packet = tcp(A, B, options=MSS_1460, tcp_flags=0x10)
        assert clamp_mss(packet, 20, 1000) is packet

    def test_first_fragment_only(self):
        first = tcp(A, B, options=MSS_1460, flags=0x2000)
        assert mss_of(clamp_mss(first, 20, 1000), 42) == 1000
        for flags in (0x0001, 0x2001, 0x0100):
            later = tcp(A, B, options=MSS_1460, flags=flags)
            assert clamp_mss(later, 20, 1000) is later

    def test_odd_place(self):
        """RFC 1624 works on words; an option behind a NOP straddles two."""
        packet = tcp(A, B, options=b"\x01" + MSS_1460 + bytes(3))
        clamped = clamp_mss(packet, 20, 536)
        assert mss_of(clamped, 43) == 536
        assert tcp_sum(clamped) == 0xFFFF

    def test_two_carries(self):
        """A sum whose carry makes another carry; only an odd place has one."""
        options = b"\x01\x02\x04\x02\x00" + bytes(3)
        bare = tcp(A, B, options=options, window=0)
        window = (words(bare[36:38]) + 0x102 - 0xFFFF) % 0xFFFF
        packet = tcp(A, B, options=options, window=window)
        assert packet[36:38] == b"\xfe\xfd"
        clamped = clamp_mss(packet, 20, 0xFF)
        assert mss_of(clamped, 43) == 0xFF
        assert tcp_sum(clamped) == 0xFFFF

    def test_behind_other_options(self):
        options = b"\x04\x02\x08\x0a" + bytes(8) + b"\x03\x03\x07\x01" + MSS_1460
        clamped = clamp_mss(tcp(A, B, options=options, ip_options=bytes(8)), 28, 1300)
        assert mss_of(clamped, len(clamped) - 2) == 1300
        assert tcp_sum(clamped) == 0xFFFF

    def test_end_of_options(self):
        packet = tcp(A, B, options=bytes(4) + MSS_1460)
        assert clamp_mss(packet, 20, 1000) is packet

    def test_payload_is_not_options(self):
        """npppd looks at 16 times the Data Offset, and so into the data of a SYN."""
        packet = tcp(A, B, options=b"\x01" * 4, data=MSS_1460 + bytes(40))
        assert clamp_mss(packet, 20, 1000) is packet
        packet = tcp(A, B, data=MSS_1460 + bytes(40))
        assert clamp_mss(packet, 20, 1000) is packet
        # The option begins within the header and ends beyond it.
        packet = tcp(A, B, options=b"\x01\x01\x02\x04", data=b"\x05\xb4")
        assert clamp_mss(packet, 20, 1000) is packet

    @pytest.mark.parametrize("offset", range(16))
    def test_any_data_offset(self, offset):
        packet = tcp(A, B, options=b"\x01" * 8 + MSS_1460, offset=offset)
        clamped = clamp_mss(packet, 20, 1000)
        assert (clamped is not packet) == (offset >= 8)

    @pytest.mark.parametrize(
        "options",
        [
            b"\x08\x00\x00\x00" + MSS_1460,  # a length of 0 would go on for ever
            b"\x08\x01\x00\x00" + MSS_1460,
            b"\x08\xff\x00\x00" + MSS_1460,  # beyond the header
            b"\x02\x03\x05\xb4" + MSS_1460[:3] + b"\0",  # an MSS of a wrong length hides what follows
            b"\x01\x01\x01\x02",  # cut off
        ],
    )
    def test_broken_options(self, options):
        packet = tcp(A, B, options=options)
        assert clamp_mss(packet, 20, 1000) is packet

    def test_truncated(self):
        whole = tcp(A, B, options=MSS_1460)
        for size in range(20, len(whole)):
            cut = whole[:size]
            assert clamp_mss(cut, 20, 1000) is cut

    @given(
        st.lists(st.sampled_from([b"\x01", b"\x04\x02", b"\x03\x03\x07", MSS_1460, b"\x02\x04\xff\xff"]), max_size=8),
        st.integers(28, 65535),
        st.binary(max_size=9),
    )
    def test_against_a_full_checksum(self, options, limit, data):
        joined = b"".join(options)[:40]
        joined += bytes(-len(joined) % 4)
        packet = tcp(A, B, options=joined, data=data)
        clamped = clamp_mss(packet, 20, limit)
        assert tcp_sum(clamped) == 0xFFFF
        assert len(clamped) == len(packet)

    def test_a_wrong_checksum_stays_wrong(self):
        packet = bytearray(tcp(A, B, options=MSS_1460))
        packet[36] ^= 0x55
        assert tcp_sum(clamp_mss(bytes(packet), 20, 1000)) != 0xFFFF


class TestFragment:
    @pytest.mark.parametrize("size", [1, 7, 8, 9, 48, 49, 555, 1480, 9000])
    @pytest.mark.parametrize("mtu", [68, 69, 75, 576, 1499])
    def test_reassembles(self, size, mtu):
        packet = ip(A, B, random.Random(size).randbytes(size))
        fragments = fragment(packet, mtu)
        assert all(len(piece) <= mtu for piece in fragments)
        random.Random(mtu).shuffle(fragments)
        whole = reassemble(fragments)
        assert whole[20:] == packet[20:]
        assert all(piece[4:6] == packet[4:6] and piece[8:10] == packet[8:10] for piece in fragments)
        assert all(piece[12:20] == packet[12:20] for piece in fragments)

    def test_as_few_as_possible(self):
        assert [len(piece) for piece in fragment(ip(A, B, bytes(1480)), 1499)] == [1492, 28]
        assert [len(piece) for piece in fragment(ip(A, B, bytes(1480)), 576)] == [572, 572, 396]

    def test_options_by_copied_flag(self):
        """RFC 791 section 3.1: Record Route is in the first fragment only, Router Alert and LSRR in all."""
        alert, route, source = b"\x94\x04\0\0", b"\x07\x07\x04" + bytes(4), b"\x83\x07\x04\x0a\0\0\x01"
        packet = ip(A, B, bytes(range(200)), options=alert + b"\x01" + route + source + b"\x00")
        first, *later = fragment(packet, 100)
        assert first[20:40] == packet[20:40]
        assert len(later) > 1
        for piece in later:
            assert (piece[0] & 15) * 4 == 32
            assert piece[20:32] == alert + source + b"\0"
        whole = reassemble([first, *later])
        assert whole[40:] == packet[40:]

    @pytest.mark.parametrize("options", [b"\x94\x00\0\0", b"\x94\x01\0\0", b"\x94\x05\0\0", b"\x01\x01\x01\x94"])
    def test_broken_options(self, options):
        packet = ip(A, B, bytes(300), options=options)
        fragments = fragment(packet, 100)
        assert all(piece[0] == 0x45 for piece in fragments[1:])
        assert reassemble(fragments)[24:] == packet[24:]

    def test_shortest_option(self):
        later = fragment(ip(A, B, bytes(100), options=b"\x01\x99\x02\x00"), 68)[1]
        assert later[:1] == b"\x46"
        assert later[20:24] == b"\x99\x02\0\0"

    def test_largest_header(self):
        packet = ip(A, B, bytes(range(64)), options=(b"\x94\x04\0\0" * 10))
        fragments = fragment(packet, 68)
        assert [len(piece) for piece in fragments] == [68] * 8
        assert reassemble(fragments)[60:] == packet[60:]

    def test_a_fragment_again(self):
        data = random.Random(1).randbytes(3000)
        packet = ip(A, B, data)
        twice = [smaller for piece in fragment(packet, 1500) for smaller in fragment(piece, 576)]
        assert reassemble(twice)[20:] == data
        # More Fragments stays on what is not the end of the whole.
        assert sum(not piece[6] & 0x20 for piece in twice) == 1

    def test_beyond_the_largest_packet(self):
        """An offset that does not fit would wrap into another place of the packet, or into the flags."""
        assert fragment(ip(A, B, bytes(1400), flags=0x1FFF), 576) == []
        assert fragment(ip(A, B, bytes(1400), flags=(0x10000 - 1400) // 8), 576) == []
        assert fragment(ip(A, B, bytes(1400), flags=(0x10000 - 1408) // 8), 576)
        assert fragment(ip(A, B, bytes(1535), flags=8000), 576)
        assert fragment(ip(A, B, bytes(1536), flags=8000), 576) == []

    def test_other_flag_bits(self):
        pieces = fragment(ip(A, B, bytes(100), flags=0x8000), 68)
        assert [piece[6] & 0xE0 for piece in pieces] == [0xA0, 0xA0, 0x80]


class TestIdle6:
    """The same as of IPv4; behind extension headers is something to do."""

    @pytest.mark.parametrize("port", [53, 67, 68, 123, 137, 520, 52, 443, 53 + 256, 65535])
    def test_ports(self, port):
        for ports in ((port, 40000), (40000, port)):
            assert idle6(udp6(A6, B6, ports=ports)) is idle(udp(A, B, ports=ports), 20)

    @pytest.mark.parametrize(("kind", "expected"), [(128, False), (129, False), (1, True), (8, True), (135, True)])
    def test_icmp(self, kind, expected):
        assert idle6(ip6(A6, B6, bytes((kind,)) + bytes(7), following=ICMP6)) is expected

    @pytest.mark.parametrize(
        ("packet", "expected"),
        [
            (ip6(A6, B6, b"\x80" + bytes(6), following=ICMP6), True),
            (ip6(A6, B6, struct.pack(">HH", 1, 2) + bytes(3)), True),
            (ip6(A6, B6), True),
            (ip6(A6, B6, b"\x11" + bytes(7) + struct.pack(">HHHH", 53, 53, 8, 0), following=FRAGMENT), False),
            (ip6(A6, B6, bytes(8), following=HOP_OPTIONS), False),
            (ip6(A6, B6, bytes(8), following=1), False),
            (ip6(A6, B6, bytes(8), following=2), False),
        ],
    )
    def test_other(self, packet, expected):
        assert idle6(packet) is expected


class TestClampMss6:
    @pytest.mark.parametrize("before", range(37))
    def test_lowered(self, before):
        options = (b"\x01" * before + MSS_1460).ljust(40, b"\0")
        found = clamp_mss6(tcp6(A6, B6, options=options, data=b"odd"), 1400)
        assert found == tcp6(A6, B6, options=options.replace(b"\x05\xb4", b"\x05\x78"), data=b"odd")
        assert tcp6_sum(found) == 0xFFFF

    @pytest.mark.parametrize(
        "packet",
        [
            tcp6(A6, B6, options=b"\x02\x04\x05\x78"),
            tcp6(A6, B6, options=MSS_1460, tcp_flags=0x10),
            tcp6(A6, B6),
            ip6(A6, B6, tcp6(A6, B6)[40:59], following=6),
            ip6(A6, B6, following=6),
        ],
    )
    def test_left_alone(self, packet):
        assert clamp_mss6(packet, 1400) is packet


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (A6, B6, False),
        ("fe80::1", B6, True),
        ("febf:ffff::1", B6, True),
        ("fec0::1", "fe00::1", False),
        (A6, "fe80::1", True),
        (A6, "febf::1", True),
        (A6, "ff02::1", True),
        (A6, "ff0e::1", True),
        ("ff02::1", "fd00::1", False),
    ],
)
def test_link_scope(source, destination, expected):
    assert link_scope6(udp6(source, destination)) is expected
