from __future__ import annotations

import pytest

from npppy.pipex.icmp import (
    FRAGMENTATION_NEEDED,
    HOST_UNREACHABLE,
    RateLimit,
    too_big6,
    unreachable,
    unreachable6,
)
from tests.bpf.frames import FRAGMENT, ICMP6, ip6, udp6

from .ippackets import ip, number, udp, words

HERE = number("10.0.0.1")
FAR, PEER = "198.51.100.1", "10.0.0.9"


def error(packet: bytes) -> bytes | None:
    return unreachable(packet, HERE, HOST_UNREACHABLE)


def test_host_unreachable():
    packet = udp(FAR, PEER, b"hello")
    answer = error(packet)
    assert answer is not None
    assert answer[0] == 0x45
    assert answer[1] == 0xC0  # RFC 1812 section 4.3.2.5
    assert int.from_bytes(answer[2:4], "big") == len(answer)
    assert answer[8] == 64
    assert answer[9] == 1
    assert answer[12:16] == HERE.to_bytes(4, "big")
    assert answer[16:20] == packet[12:16]
    assert words(answer[:20]) == 0xFFFF
    assert words(answer[20:]) == 0xFFFF
    assert answer[20:22] == bytes((3, 1))
    assert answer[24:28] == bytes(4)
    assert answer[28:] == packet


def test_fragmentation_needed():
    """RFC 1191 section 4: the MTU is in the low half of the unused field."""
    packet = ip(FAR, PEER, bytes(1480), flags=0x4000)
    answer = unreachable(packet, HERE, FRAGMENTATION_NEEDED, 1400)
    assert answer is not None
    assert answer[20:22] == bytes((3, 4))
    assert answer[24:28] == (1400).to_bytes(4, "big")
    assert words(answer[20:]) == 0xFFFF


@pytest.mark.parametrize("size", [0, 1, 500, 519, 520, 521, 1480])
def test_at_most_576_octets(size):
    packet = ip(FAR, PEER, bytes(size))
    answer = error(packet)
    assert answer is not None
    assert len(answer) == min(28 + len(packet), 576)
    assert packet.startswith(answer[28:])
    assert words(answer[20:]) == 0xFFFF


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12, 1, 2, 6, 7, 19, 30, 37, 40, 255])
def test_never_about_icmp_errors(kind):
    """RFC 1812 section 4.3.2.7; types that nobody knows may be errors."""
    assert error(ip(FAR, PEER, bytes((kind,)) + bytes(7), protocol=1)) is None


@pytest.mark.parametrize("kind", [0, 8, 9, 10, 13, 14, 15, 16, 17, 18])
def test_about_icmp_queries(kind):
    assert error(ip(FAR, PEER, bytes((kind,)) + bytes(7), protocol=1)) is not None


def test_icmp_behind_options():
    assert error(ip(FAR, PEER, bytes((3,)) + bytes(7), protocol=1, options=b"\x08" * 4)) is None
    assert error(ip(FAR, PEER, bytes((8,)) + bytes(7), protocol=1, options=b"\x03" * 4)) is not None


def test_icmp_without_a_type():
    assert error(ip(FAR, PEER, protocol=1)) is None


def test_first_fragments_only():
    assert error(ip(FAR, PEER, bytes(8), flags=0x2000)) is not None
    for flags in (0x0001, 0x2001, 0x0100, 0x1FFF):
        assert error(ip(FAR, PEER, bytes(8), flags=flags)) is None


@pytest.mark.parametrize("destination", ["224.0.0.0", "239.255.255.255", "240.0.0.1", "255.255.255.255"])
def test_never_about_packets_for_many(destination):
    assert error(udp(FAR, destination)) is None


@pytest.mark.parametrize("source", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.0", "240.0.0.1", "255.255.255.255"])
def test_never_to_what_is_no_host(source):
    assert error(udp(source, PEER)) is None


HERE6, FAR6, PEER6 = "2001:db8::1", "2001:db8:ffff::1", "2001:db8:1::9"


def test_address_unreachable6():
    packet = udp6(FAR6, PEER6, b"hello")
    # All but what its sender fills in: source and checksum.
    assert unreachable6(packet) == ip6("::", FAR6, bytes((1, 3, 0, 0)) + bytes(4) + packet, following=ICMP6)


def test_packet_too_big6():
    packet = ip6(FAR6, PEER6, bytes(100))
    body = bytes((2, 0, 0, 0)) + (1492).to_bytes(4, "big") + packet
    assert too_big6(packet, 1492) == ip6("::", FAR6, body, following=ICMP6)


@pytest.mark.parametrize("size", [0, 1, 1191, 1192, 1193, 1460, 9000])
def test_at_most_1280_octets6(size):
    """RFC 4443 section 3.2: as much of the packet as fits the smallest MTU there is."""
    packet = ip6(FAR6, PEER6, bytes(size))
    answer = too_big6(packet, 1280)
    assert answer is not None
    assert len(answer) == min(48 + len(packet), 1280)
    assert packet.startswith(answer[48:])
    assert int.from_bytes(answer[4:6], "big") == len(answer) - 40


@pytest.mark.parametrize("kind", [*range(128), 137])
def test_never_about_icmp6_errors(kind):
    """RFC 4443 section 2.4 (e.1, e.2)."""
    message = bytes((kind,)) + bytes(7)
    assert unreachable6(ip6(FAR6, PEER6, message, following=ICMP6)) is None
    options = bytes((ICMP6, 0)) + bytes(6)
    for header in (0, 43, 60, FRAGMENT):
        assert unreachable6(ip6(FAR6, PEER6, options + message, following=header)) is None
    long = bytes((60, 1)) + bytes(14) + options
    assert unreachable6(ip6(FAR6, PEER6, long + message, following=0)) is None


@pytest.mark.parametrize("kind", [128, 129, 133, 135, 255])
def test_about_icmp6_queries(kind):
    message = bytes((kind,)) + bytes(7)
    assert unreachable6(ip6(FAR6, PEER6, message, following=ICMP6)) is not None
    options = bytes((ICMP6, 0)) + bytes(6)
    for header in (0, 43, 60, FRAGMENT):
        assert unreachable6(ip6(FAR6, PEER6, options + message, following=header)) is not None
    # Types of a longer header's inside do not count.
    long = bytes((ICMP6, 1)) + bytes(14)
    assert unreachable6(ip6(FAR6, PEER6, long + message, following=0)) is not None


@pytest.mark.parametrize("offset", [8, 0x100, 0xFFF8])
@pytest.mark.parametrize("more", [0, 1])
def test_later_fragments6(offset, more):
    """What they carry is not seen: of ICMP it may be an error's."""
    for inside, expected in ((ICMP6, False), (17, True)):
        header = bytes((inside, 0)) + (offset | more).to_bytes(2, "big") + bytes(4)
        packet = ip6(FAR6, PEER6, header + b"\x80" + bytes(7), following=FRAGMENT)
        assert (too_big6(packet, 1280) is not None) is expected


def test_first_fragments6():
    for more in (0, 1):
        header = bytes((ICMP6, 0, 0, more)) + bytes(4)
        assert too_big6(ip6(FAR6, PEER6, header + b"\x80", following=FRAGMENT), 1280) is not None


@pytest.mark.parametrize("data", [b"", b"\x3a", bytes((ICMP6, 0, 0, 0, 0, 0, 0)), bytes((60, 255)) + bytes(6)])
def test_headers_cut_off6(data):
    assert unreachable6(ip6(FAR6, PEER6, data, following=0)) is None


def test_icmp6_without_a_type():
    assert unreachable6(ip6(FAR6, PEER6, following=ICMP6)) is None


@pytest.mark.parametrize("source", ["::", "::1", "::ffff:198.51.100.1", "ff02::1", "ff0e::1", "fe80::1", "febf::1"])
def test_never_to_what_is_no_host6(source):
    assert unreachable6(udp6(source, PEER6)) is None
    assert too_big6(udp6(source, PEER6), 1280) is None


def test_to_other_sources6():
    for source in ("64:ff9b::1", "fec0::1", "fd00::1", "::1:0:0:0:1"):
        assert unreachable6(udp6(source, PEER6)) is not None


def test_never_about_packets_for_many6():
    assert unreachable6(udp6(FAR6, "ff0e::1")) is None


class TestRateLimit:
    def test_many_at_once(self):
        """As octets are, of which a packet has all or none."""
        limit = RateLimit(100, 1000)
        assert [limit.take(1.0, count) for count in (600, 401, 400, 1)] == [True, False, True, False]
        assert [limit.take(2.0, count) for count in (101, 100, 1)] == [False, True, False]

    def test_time_that_is_behind(self):
        limit = RateLimit(100, 1000)
        assert limit.take(10.0, 1000)
        assert not limit.take(5.0, 1)
        assert [limit.take(11.0, count) for count in (100, 1)] == [True, False]

    def test_burst_then_rate(self):
        limit = RateLimit(10, 3)
        assert [limit.take(100.0) for _ in range(5)] == [True, True, True, False, False]
        assert not limit.take(100.05)
        assert limit.take(100.15)
        assert not limit.take(100.15)
        assert sum(limit.take(101.0 + n / 100) for n in range(100)) == pytest.approx(3 + 10, abs=1)

    def test_never_more_than_the_burst(self):
        limit = RateLimit(1000, 3)
        limit.take(1.0)
        assert sum(limit.take(1e6) for _ in range(10)) == 3

    def test_a_start_at_any_time(self):
        limit = RateLimit(10, 2)
        assert limit.take(0.0)
        assert limit.take(0.0)
        assert not limit.take(0.0)
