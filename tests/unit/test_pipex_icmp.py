from __future__ import annotations

import pytest

from npppy.pipex.icmp import FRAGMENTATION_NEEDED, HOST_UNREACHABLE, RateLimit, unreachable

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


class TestRateLimit:
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
