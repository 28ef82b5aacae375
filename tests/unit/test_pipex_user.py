from __future__ import annotations

import errno
import random
import sys
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from npppy.pipex import user
from npppy.pipex.base import Backend, ConflictError, Counters, Flow, FlowSpec, Police
from npppy.pipex.user import SharedInterface, UserBackend, UserFlow
from tests.bpf.frames import ICMP6, ip6, tcp6, tcp6_sum, udp6

from .ippackets import ip, number, reassemble, tcp, tcp_sum, udp, words

HERE, PEER, FAR = "10.0.0.1", "10.0.0.2", "198.51.100.1"
PREFIX6, PEER6, FAR6 = "2001:db8:1::/56", "2001:db8:1:7::2", "2001:db8:ffff::1"
MSS_1460 = b"\x02\x04\x05\xb4"
DF = 0x4000


class Rig:
    """A back end whose device and peers are lists."""

    def __init__(self) -> None:
        self.backend = UserBackend()
        self.written: list[bytes] = []
        self.emitted: list[bytes] = []
        self.frames: list[bytes] = []
        self.shared = self.backend.attach("tun0", number(HERE), self.written.append, self.emitted.append)

    def flow(self, address: str = PEER, **options: Any) -> UserFlow:
        options = {"mtu": 1400, "mru": 1300, "send": self.frames.append} | options
        spec = FlowSpec(session=1, domain=0, interface="tun0", address=number(address), **options)
        return self.backend.add(spec, 1.0)

    def flow6(self, *networks: str, address: str = "0.0.0.0", **options: Any) -> UserFlow:
        """One that has IPv6; of IPv4 it has an address only if that is given."""
        prefixes = [IPv6Network(text) for text in networks or (PREFIX6,)]
        networks6 = tuple((prefix.network_address.packed, prefix.prefixlen) for prefix in prefixes)
        return self.flow(address, networks6=networks6, **options)

    def down(self, packet: bytes, now: float = 2.0) -> None:
        self.shared.deliver(packet, now)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_protocols(rig):
    backend: Backend = rig.backend
    flow: Flow = rig.flow()
    assert backend
    assert flow


class TestUp:
    def test_passes(self, rig):
        flow = rig.flow()
        packet = udp(PEER, FAR, b"hello")
        flow.input(packet, 2.0)
        assert rig.written == [packet]
        assert flow.counters() == Counters(in_bytes=len(packet), in_packets=1)
        assert flow.last_active() == 2.0

    def test_trims_padding(self, rig):
        """The Ethernet frame under PPPoE has at least 60 octets."""
        flow = rig.flow()
        packet = udp(PEER, FAR)
        flow.input(packet + bytes(18), 2.0)
        assert rig.written == [packet]
        assert flow.counters() == Counters(in_bytes=28, in_packets=1)

    def test_header_with_options(self, rig):
        flow = rig.flow()
        packet = ip(PEER, FAR, b"data", options=bytes(40))
        flow.input(packet, 2.0)
        assert rig.written == [packet]

    @pytest.mark.parametrize("size", [0, 1, 235, 236, 1380, 9000, 65515])
    def test_any_size(self, rig, size):
        flow = rig.flow(mtu=65535)
        up, down = ip(PEER, FAR, bytes(size)), ip(FAR, PEER, bytes(size))
        flow.input(up, 2.0)
        rig.down(down)
        assert rig.written == [up]
        assert rig.frames == [b"\x00\x21" + down]
        assert flow.counters() == Counters(20 + size, 1, 0, 20 + size, 1, 0)

    def test_nothing_but_a_header(self, rig):
        flow = rig.flow()
        flow.input(ip(PEER, FAR, options=bytes(40)), 2.0)
        rig.down(ip(FAR, PEER, options=bytes(40)))
        assert flow.counters() == Counters(60, 1, 0, 60, 1, 0)

    @pytest.mark.parametrize(
        "packet",
        [
            b"",
            b"\x45",
            udp(PEER, FAR)[:19],
            b"\x65" + udp(PEER, FAR)[1:],  # version 6
            b"\x05" + udp(PEER, FAR)[1:],
            b"\x44" + udp(PEER, FAR)[1:],  # a header of 16 octets
            b"\x4f" + udp(PEER, FAR)[1:],  # of 60, in a packet of 28
            ip(PEER, FAR, bytes(30), options=bytes(12))[:31],
            udp(PEER, FAR, b"hello")[:-1],  # shorter than it says
            b"\x45\0\0\x13" + udp(PEER, FAR)[4:],  # a total of less than a header
            b"\x46\0\0\x17" + udp(PEER, FAR)[4:],
            b"\x45\0\0\0" + udp(PEER, FAR)[4:],
        ],
    )
    def test_malformed(self, rig, packet):
        flow = rig.flow()
        flow.input(packet, 2.0)
        assert rig.written == []
        assert flow.counters() == Counters(in_errors=1)
        assert flow.last_active() == 1.0

    def test_ingress_filter(self, rig):
        flow = rig.flow(ingress_filter=True)
        flow.input(udp("10.0.0.3", FAR), 2.0)
        assert flow.counters() == Counters(in_errors=1)
        assert flow.last_active() == 1.0
        flow.input(udp(PEER, FAR), 3.0)
        assert flow.counters() == Counters(in_bytes=28, in_packets=1, in_errors=1)

    def test_ingress_filter_of_a_network(self, rig):
        flow = rig.flow("10.8.1.1", prefixlen=24, ingress_filter=True)
        for source in ("10.8.1.0", "10.8.1.255"):
            flow.input(udp(source, FAR), 2.0)
        for source in ("10.8.0.255", "10.8.2.0", "0.0.0.0"):
            flow.input(udp(source, FAR), 2.0)
        assert flow.counters()[1:3] == (2, 3)

    def test_ingress_filter_of_further_networks(self, rig):
        """As many as there are, but not what another has of them."""
        networks = tuple(map(IPv4Network, ("192.0.2.0/24", "198.51.100.9/32")))
        flow = rig.flow(networks=networks, ingress_filter=True)
        other = rig.flow("192.0.2.7", networks=(IPv4Network("192.0.2.64/28"),), ingress_filter=True)
        for source, own, others in (
            (PEER, True, False),
            ("192.0.2.0", True, False),
            ("192.0.2.255", True, False),
            ("198.51.100.9", True, False),
            ("192.0.2.7", False, True),
            ("192.0.2.70", False, True),
            ("192.0.3.0", False, False),
            ("198.51.100.8", False, False),
            ("0.0.0.0", False, False),
        ):
            for one, passes in ((flow, own), (other, others)):
                rig.written.clear()
                one.input(udp(source, FAR), 2.0)
                assert len(rig.written) == passes, source
        assert flow.counters()[1:3] == (4, 5)

    def test_no_filter(self, rig):
        flow = rig.flow()
        flow.input(udp("192.0.2.77", FAR), 2.0)
        assert len(rig.written) == 1

    def test_write_failure_is_an_error(self, rig):
        def full(packet: bytes) -> None:
            raise BlockingIOError(errno.EAGAIN, "full")

        rig.shared.write = full
        flow = rig.flow()
        flow.input(udp(PEER, FAR), 2.0)
        assert flow.counters() == Counters(in_errors=1)
        assert flow.last_active() == 1.0

    def test_mss(self, rig):
        """What the peer announces is limited to what reaches it."""
        rig.flow(mss_adjust=True).input(tcp(PEER, FAR, options=MSS_1460) + bytes(7), 2.0)
        (packet,) = rig.written
        assert packet[42:44] == (1360).to_bytes(2, "big")
        assert tcp_sum(packet) == 0xFFFF
        rig.flow("10.0.0.3").input(tcp("10.0.0.3", FAR, options=MSS_1460), 2.0)
        assert rig.written[1][42:44] == b"\x05\xb4"

    def test_mss_is_tcp_only(self, rig):
        packet = ip(PEER, FAR, tcp(PEER, FAR, options=MSS_1460)[20:], protocol=17)
        rig.flow(mss_adjust=True).input(packet, 2.0)
        assert rig.written == [packet]


class TestDown:
    def test_passes(self, rig):
        flow = rig.flow()
        packet = udp(FAR, PEER, b"hello")
        rig.down(packet)
        assert rig.frames == [b"\x00\x21" + packet]
        assert flow.counters() == Counters(out_bytes=len(packet), out_packets=1)
        assert flow.last_active() == 2.0

    def test_each_to_its_own(self, rig):
        one: list[bytes] = []
        two: list[bytes] = []
        rig.flow("10.0.0.2", send=one.append)
        rig.flow("10.8.0.1", prefixlen=16, send=two.append)
        rig.down(udp(FAR, "10.0.0.2"))
        rig.down(udp(FAR, "10.8.255.255"))
        assert len(one) == len(two) == 1

    def test_further_networks(self, rig):
        flow = rig.flow("10.8.0.1", prefixlen=24, networks=(IPv4Network("192.0.2.0/24"), IPv4Network("10.8.0.0/24")))
        for count, address in enumerate(("10.8.0.255", "192.0.2.0", "192.0.2.255"), 1):
            rig.down(udp(FAR, address))
            assert flow.counters().out_packets == count
        rig.down(udp(FAR, "192.0.3.0"))
        assert rig.shared.unknown == 1
        with pytest.raises(ConflictError, match=r"network 192\.0\.2\.0/24 is taken"):
            rig.flow("10.9.0.1", networks=(IPv4Network("192.0.2.0/24"),))
        flow.close()
        rig.flow("10.9.0.1", networks=(IPv4Network("192.0.2.0/24"), IPv4Network("10.8.0.0/24")))
        # Without an address nothing of IPv4 is its own.
        six = rig.flow6(networks=(IPv4Network("192.0.4.0/24"),))
        rig.down(udp(FAR, "192.0.4.1"))
        assert (rig.shared.unknown, six.counters().out_packets) == (2, 0)

    def test_all_interfaces_of_the_domain(self, rig):
        """Which device the kernel took does not matter, nor do two of them give one address twice."""
        other = rig.backend.attach("tun1", number("10.9.0.1"), rig.written.append, rig.emitted.append)
        rig.flow()
        other.deliver(udp(FAR, PEER), 2.0)
        assert len(rig.frames) == 1
        with pytest.raises(ConflictError):
            rig.backend.add(
                FlowSpec(
                    session=2, domain=0, interface="tun1", address=number(PEER), mtu=1400, mru=1400, send=print
                ),
                1.0,
            )
        # An error comes from the device that the packet came by.
        other.deliver(udp(FAR, "10.0.0.77"), 2.0)
        assert rig.emitted[0][12:16] == number("10.9.0.1").to_bytes(4, "big")
        rig.backend.detach("tun1")
        assert list(rig.backend.interfaces) == ["tun0"]

    def test_idle(self, rig):
        flow = rig.flow()
        rig.down(udp(FAR, PEER, ports=(53, 40000)))
        flow.input(udp(PEER, FAR, ports=(40000, 53)), 2.0)
        assert flow.last_active() == 1.0
        assert flow.counters()[:2] == (28, 1)
        rig.down(udp(FAR, PEER, ports=(54, 40000)))
        assert flow.last_active() == 2.0

    @pytest.mark.parametrize(
        "packet",
        [
            b"",
            udp(FAR, PEER)[:19],
            ip6(FAR6, PEER6, b"x", length=2),
            ip6(FAR6, PEER6, b"xx", length=1),
            ip6(FAR6, PEER6, length=1)[:39],
            udp6(FAR6, "ff02::1"),
            udp6(FAR6, "fe80::2"),
            udp6("febf::1", PEER6),
            udp(FAR, PEER) + b"\0",
            udp(FAR, PEER, b"x")[:-1],
            b"\x4f" + udp(FAR, PEER)[1:],
            udp(FAR, "224.0.0.0"),
            udp(FAR, "239.1.2.3"),
            udp(FAR, "255.255.255.255"),
        ],
    )
    def test_ignored(self, rig, packet):
        rig.flow("192.0.2.1", prefixlen=0, networks6=((bytes(16), 0),))
        rig.down(packet)
        assert rig.shared.ignored == 1
        assert rig.shared.unknown == 0
        assert rig.frames == rig.emitted == []

    def test_redirects_are_ignored(self, rig):
        """The stack sends them to a peer that talks to another, as if both were on one link."""
        flow = rig.flow()
        rig.down(ip(HERE, PEER, b"\x05\x01" + bytes(34), protocol=1))
        assert rig.shared.ignored == 1
        assert flow.counters() == Counters()
        for packet in (
            ip(HERE, PEER, b"\x05\x01" + bytes(34), protocol=1, flags=0x0001),
            ip(HERE, PEER, b"\x05\x01" + bytes(34), protocol=17),
            ip(HERE, PEER, b"\x03\x01" + bytes(34), protocol=1),
            ip(HERE, PEER, protocol=1),
        ):
            rig.down(packet)
        assert flow.counters().out_packets == 4

    def test_unknown(self, rig):
        packet = udp(FAR, "10.0.0.3", b"hello")
        rig.down(packet)
        assert rig.shared.unknown == 1
        (error,) = rig.emitted
        assert error[20:22] == bytes((3, 1))
        assert error[12:20] == number(HERE).to_bytes(4, "big") + number(FAR).to_bytes(4, "big")
        assert error[28:] == packet
        assert rig.shared.icmp_errors == 1
        assert rig.written == []

    def test_no_error_about_an_error(self, rig):
        rig.down(ip(FAR, "10.0.0.3", b"\x03\x01" + bytes(30), protocol=1))
        assert rig.shared.unknown == 1
        assert rig.emitted == []

    def test_errors_are_limited(self, rig):
        for _ in range(user.ICMP_BURST + 50):
            rig.down(udp(FAR, "10.0.0.3"))
        assert rig.shared.unknown == user.ICMP_BURST + 50
        assert len(rig.emitted) == rig.shared.icmp_errors == user.ICMP_BURST
        rig.down(udp(FAR, "10.0.0.3"), 3.0)
        assert len(rig.emitted) == user.ICMP_BURST + 1
        # Path MTU discovery has its own bucket.
        rig.flow()
        rig.down(ip(FAR, PEER, bytes(1390), flags=DF))
        assert rig.emitted[-1][21] == 4

    def test_error_that_cannot_be_sent(self, rig):
        def unroutable(packet: bytes) -> None:
            raise OSError(errno.ENETUNREACH, "no route")

        rig.shared.emit = unroutable
        rig.down(udp(FAR, "10.0.0.3"))
        assert rig.shared.unknown == 1
        assert rig.shared.icmp_errors == 0

    def test_fits_exactly(self, rig):
        rig.flow()
        rig.down(ip(FAR, PEER, bytes(1380), flags=DF))
        assert [len(frame) for frame in rig.frames] == [1402]

    def test_too_big(self, rig):
        flow = rig.flow()
        rig.down(ip(FAR, PEER, bytes(1381), flags=DF))
        assert rig.frames == []
        assert flow.counters() == Counters(out_errors=1)
        assert flow.last_active() == 1.0
        (error,) = rig.emitted
        assert error[20:22] == bytes((3, 4))
        assert error[24:28] == (1400).to_bytes(4, "big")
        assert words(error[20:]) == 0xFFFF

    def test_fragments(self, rig):
        flow = rig.flow(mtu=576)
        packet = ip(FAR, PEER, bytes(range(256)) * 5)
        rig.down(packet)
        assert all(frame[:2] == b"\x00\x21" and len(frame) <= 578 for frame in rig.frames)
        assert reassemble(frame[2:] for frame in rig.frames)[20:] == packet[20:]
        assert flow.counters() == Counters(out_bytes=1280 + 3 * 20, out_packets=3)
        assert flow.last_active() == 2.0
        assert rig.emitted == []

    def test_what_cannot_be_fragmented(self, rig):
        flow = rig.flow()
        rig.down(ip(FAR, PEER, bytes(1400), flags=0x1FFF))
        assert rig.frames == []
        assert flow.counters() == Counters(out_errors=1)

    def test_mss(self, rig):
        """What the far end announces is limited to what we take from the peer: our own MRU."""
        rig.flow(mss_adjust=True)
        rig.down(tcp(FAR, PEER, options=MSS_1460, tcp_flags=0x12))
        (frame,) = rig.frames
        assert frame[44:46] == (1260).to_bytes(2, "big")
        assert tcp_sum(frame[2:]) == 0xFFFF
        rig.flow("10.0.0.3")
        rig.down(tcp(FAR, "10.0.0.3", options=MSS_1460))
        assert rig.frames[1][44:46] == b"\x05\xb4"

    def test_absurd_mtu(self, rig):
        """RFC 791: there is no link with less than 68 octets."""
        rig.flow(mtu=1, mru=0, mss_adjust=True)
        rig.down(ip(FAR, PEER, bytes(100)))
        assert [len(frame) - 2 for frame in rig.frames] == [68, 68, 24]


class TestUp6:
    def test_passes(self, rig):
        flow = rig.flow6()
        packet = udp6(PEER6, FAR6, b"hello")
        flow.input6(packet, 2.0)
        assert rig.written == [packet]
        assert flow.counters() == Counters(in_bytes=len(packet), in_packets=1)
        assert flow.last_active() == 2.0

    def test_trims_padding(self, rig):
        flow = rig.flow6()
        packet = ip6(PEER6, FAR6)
        flow.input6(packet + bytes(6), 2.0)
        assert rig.written == [packet]
        assert flow.counters() == Counters(in_bytes=40, in_packets=1)

    @pytest.mark.parametrize(
        "packet",
        [
            b"",
            b"\x60",
            ip6(PEER6, FAR6)[:39],
            ip6(PEER6, FAR6, b"x", length=2),
            ip6(PEER6, FAR6, b"x", length=0xFFFF),
            ip6(PEER6, FAR6, b"x", first=0x50),
            ip6(PEER6, FAR6, b"x", first=0x45),
            # npppyd's own business with the peer.
            udp6("fe80::2", "ff02::2"),
            udp6("fe80::2", FAR6),
            udp6(PEER6, "fe80::1"),
            udp6(PEER6, "ff0e::1"),
        ],
    )
    def test_not_passed(self, rig, packet):
        flow = rig.flow6()
        flow.input6(packet, 2.0)
        assert rig.written == []
        assert flow.counters() == Counters(in_errors=1)
        assert flow.last_active() == 1.0

    def test_ingress_filter(self, rig):
        """As many prefixes as there are, but not what another has of them."""
        flow = rig.flow6(PREFIX6, "fd00:1::/64", address=PEER, ingress_filter=True)
        other = rig.flow6("2001:db8:1:7::/64", ingress_filter=True)
        for source, own, others in (
            ("2001:db8:1:6::2", True, False),
            ("2001:db8:1:ff::2", True, False),
            ("fd00:1::ffff", True, False),
            ("2001:db8:1:7::2", False, True),
            ("2001:db8:1:100::2", False, False),
            ("fd00:1:0:1::1", False, False),
            ("::", False, False),
        ):
            for one, passes in ((flow, own), (other, others)):
                rig.written.clear()
                one.input6(udp6(source, FAR6), 2.0)
                assert len(rig.written) == passes, source
        assert flow.counters()[1:3] == (3, 4)

    def test_no_filter(self, rig):
        rig.flow6().input6(udp6("2001:db8:9::1", FAR6), 2.0)
        assert len(rig.written) == 1

    def test_without_a_prefix(self, rig):
        """It has not negotiated IPv6."""
        flow = rig.flow()
        flow.input6(udp6(PEER6, FAR6), 2.0)
        assert rig.written == []
        assert flow.counters() == Counters(in_errors=1)

    @pytest.mark.parametrize("ingress_filter", [False, True])
    def test_without_an_address(self, rig, ingress_filter):
        """No source is the peer's in IPv4."""
        flow = rig.flow6(ingress_filter=ingress_filter)
        for source in (PEER, "0.0.0.0", "255.255.255.255"):
            flow.input(udp(source, FAR), 2.0)
        assert rig.written == []
        assert flow.counters() == Counters(in_errors=3)

    def test_write_failure_is_an_error(self, rig):
        def full(packet: bytes) -> None:
            raise BlockingIOError(errno.EAGAIN, "full")

        rig.shared.write = full
        flow = rig.flow6()
        flow.input6(udp6(PEER6, FAR6), 2.0)
        assert flow.counters() == Counters(in_errors=1)
        assert flow.last_active() == 1.0

    def test_mss(self, rig):
        rig.flow6(mss_adjust=True).input6(tcp6(PEER6, FAR6, options=MSS_1460) + bytes(7), 2.0)
        (packet,) = rig.written
        assert packet[62:64] == (1340).to_bytes(2, "big")
        assert tcp6_sum(packet) == 0xFFFF
        rig.flow6("fd00::/64").input6(tcp6(PEER6, FAR6, options=MSS_1460), 2.0)
        assert rig.written[1][62:64] == b"\x05\xb4"

    def test_idle(self, rig):
        flow = rig.flow6()
        flow.input6(udp6(PEER6, FAR6, ports=(40000, 53)), 2.0)
        assert flow.last_active() == 1.0
        assert flow.counters().in_packets == 1


class TestDown6:
    def test_passes(self, rig):
        flow = rig.flow6()
        packet = udp6(FAR6, PEER6, b"hello")
        rig.down(packet)
        assert rig.frames == [b"\x00\x57" + packet]
        assert flow.counters() == Counters(out_bytes=len(packet), out_packets=1)
        assert flow.last_active() == 2.0

    def test_longest_prefix(self, rig):
        one: list[bytes] = []
        two: list[bytes] = []
        rig.flow6(send=one.append)
        rig.flow6("2001:db8:1:7::/64", "fd00::/8", send=two.append)
        for destination in ("2001:db8:1:6::1", "2001:db8:1:7::1", "fd12::1"):
            rig.down(udp6(FAR6, destination))
        assert (len(one), len(two)) == (1, 2)

    def test_idle(self, rig):
        flow = rig.flow6()
        rig.down(udp6(FAR6, PEER6, ports=(53, 40000)))
        assert flow.last_active() == 1.0

    def test_unknown(self, rig):
        packet = udp6(FAR6, "2001:db8:2::1", b"hello")
        rig.down(packet)
        assert (rig.shared.unknown, rig.shared.icmp_errors) == (1, 1)
        body = bytes((1, 3, 0, 0)) + bytes(4) + packet
        assert rig.emitted == [ip6("::", FAR6, body, following=ICMP6)]

    def test_fits_exactly(self, rig):
        rig.flow6()
        rig.down(ip6(FAR6, PEER6, bytes(1360)))
        assert [len(frame) for frame in rig.frames] == [1402]

    def test_too_big(self, rig):
        flow = rig.flow6()
        packet = ip6(FAR6, PEER6, bytes(1361))
        rig.down(packet)
        assert rig.frames == []
        assert flow.counters() == Counters(out_errors=1)
        assert flow.last_active() == 1.0
        (error,) = rig.emitted
        assert len(error) == 1280
        assert error[24:40] == packet[8:24]
        assert error[40:] == bytes((2, 0, 0, 0)) + (1400).to_bytes(4, "big") + packet[:1232]

    def test_errors_are_limited(self, rig):
        """By the limits that there are for IPv4."""
        rig.flow6(address=PEER)
        for _ in range(user.ICMP_BURST):
            rig.down(udp6(FAR6, "2001:db8:2::1"))
            rig.down(ip6(FAR6, PEER6, bytes(1390)))
        assert len(rig.emitted) == 2 * user.ICMP_BURST
        for packet in (
            udp6(FAR6, "2001:db8:2::1"),
            ip6(FAR6, PEER6, bytes(1390)),
            ip(FAR, PEER, bytes(1390), flags=DF),
        ):
            rig.down(packet)
        assert len(rig.emitted) == rig.shared.icmp_errors == 2 * user.ICMP_BURST

    def test_mss(self, rig):
        rig.flow6(mss_adjust=True)
        rig.down(tcp6(FAR6, PEER6, options=MSS_1460, tcp_flags=0x12))
        (frame,) = rig.frames
        assert frame[64:66] == (1240).to_bytes(2, "big")
        assert tcp6_sum(frame[2:]) == 0xFFFF
        rig.flow6("fd00::/64")
        rig.down(tcp6(FAR6, "fd00::1", options=MSS_1460))
        assert rig.frames[1][64:66] == b"\x05\xb4"

    def test_mtu_without_room(self, rig):
        """No MSS below 0 is made of it."""
        rig.flow6(mtu=60, mru=60, mss_adjust=True)
        rig.down(tcp6(FAR6, PEER6, options=b"\x02\x04\0\x09"))
        assert rig.frames[0][64:66] == (8).to_bytes(2, "big")


class TestPolice:
    """The limits of back end ebpf, in Python."""

    LIMIT = Police(rate=1000, burst=1500)

    @pytest.mark.parametrize("six", [False, True])
    def test_up(self, rig, six):
        flow = rig.flow6(address=PEER, police_up=self.LIMIT)
        put = flow.input6 if six else flow.input
        small, large = (ip6(PEER6, FAR6, bytes(n - 40)) if six else ip(PEER, FAR, bytes(n - 20)) for n in (500, 1000))
        put(large + bytes(9), 2.0)
        put(large, 2.0)
        put(small, 2.0)
        assert rig.written == [large, small]
        assert flow.counters()[1:3] == (2, 1)
        put(large, 2.9)
        assert len(rig.written) == 2
        put(large, 3.1)
        assert len(rig.written) == 3
        # Not the other way.
        for _ in range(3):
            rig.down(udp(FAR, PEER, bytes(1000)))
        assert len(rig.frames) == 3

    @pytest.mark.parametrize("six", [False, True])
    def test_down(self, rig, six):
        flow = rig.flow6(address=PEER, police_down=self.LIMIT)
        packet = udp6(FAR6, PEER6, bytes(952)) if six else udp(FAR, PEER, bytes(972))
        for now in (2.0, 2.0, 2.4, 2.6):
            rig.down(packet, now)
        assert len(rig.frames) == 2
        assert flow.counters()[3:] == (2000, 2, 2)
        for _ in range(3):
            flow.input(udp(PEER, FAR, bytes(1000)), 2.0)
        assert len(rig.written) == 3

    def test_of_what_is_not_sent(self, rig):
        """A packet in pieces is charged once, and one that is too big not at all."""
        flow = rig.flow6(address=PEER, mtu=1280, police_down=self.LIMIT)
        rig.down(ip(FAR, PEER, bytes(1400), flags=DF))
        rig.down(ip6(FAR6, PEER6, bytes(1400)))
        rig.down(ip(FAR, PEER, bytes(1480)))
        assert len(rig.frames) == 2
        rig.down(ip(FAR, PEER))
        assert len(rig.frames) == 2
        assert flow.counters()[3:] == (1520, 2, 3)

    def test_forged_packets_take_no_tokens(self, rig):
        flow = rig.flow(ingress_filter=True, police_up=self.LIMIT)
        for _ in range(5):
            flow.input(udp("10.0.0.9", FAR, bytes(1000)), 2.0)
        flow.input(udp(PEER, FAR, bytes(1000)), 2.0)
        assert len(rig.written) == 1

    def test_while_up(self, rig):
        """A new limit begins with its burst; without one all passes."""
        flow = rig.flow(police_up=self.LIMIT, police_down=self.LIMIT)
        for limit, passed in ((self.LIMIT, 1), (None, 3), (Police(rate=1, burst=2100), 2)):
            flow.police(limit, None)
            rig.written.clear()
            for _ in range(3):
                flow.input(udp(PEER, FAR, bytes(972)), 2.0)
            assert len(rig.written) == passed
        flow.police(None, self.LIMIT)
        for _ in range(3):
            rig.down(udp(FAR, PEER, bytes(972)))
        assert len(rig.frames) == 1


    def test_the_same_again(self, rig):
        """What does not change goes on with the tokens that it has."""
        flow = rig.flow(police_up=self.LIMIT, police_down=self.LIMIT)
        flow.input(udp(PEER, FAR, bytes(972)), 2.0)
        rig.down(udp(FAR, PEER, bytes(972)))
        for up, down in ((self.LIMIT, self.LIMIT), (self.LIMIT, Police(1000, 1501)), (Police(1001, 1500), None)):
            flow.police(up, down)
            flow.input(udp(PEER, FAR, bytes(972)), 2.0)
            rig.down(udp(FAR, PEER, bytes(972)))
        # A new limit begins with its burst.
        assert (len(rig.written), len(rig.frames)) == (2, 3)
        assert flow.counters()[2::3] == (2, 1)


class TestLife:
    def test_late(self, rig):
        """Nothing is counted after the end but what comes then."""
        flow = rig.flow()
        flow.input(udp(PEER, FAR), 2.0)
        assert flow.close() == Counters(28, 1)
        assert flow.late() == Counters()

    def test_conflict(self, rig):
        flow = rig.flow()
        with pytest.raises(ConflictError, match=r"10\.0\.0\.2"):
            rig.flow()
        flow.close()
        rig.flow()

    def test_unknown_interface(self, rig):
        rig.backend.detach("tun0")
        with pytest.raises(KeyError):
            rig.flow()

    def test_close(self, rig):
        flow = rig.flow("10.8.0.1", prefixlen=24)
        flow.input(udp("10.8.0.1", FAR), 2.0)
        assert flow.close() == Counters(in_bytes=28, in_packets=1)
        rig.down(udp(FAR, "10.8.0.1"))
        rig.down(udp(FAR, "10.8.0.9"))
        assert rig.shared.unknown == 2
        assert rig.frames == []
        # The address may be somebody else's by now.
        flow.input(udp("10.8.0.1", FAR), 3.0)
        assert len(rig.written) == 1
        successor = rig.flow("10.8.0.1", prefixlen=24)
        assert flow.close() == Counters(in_bytes=28, in_packets=1, in_errors=1)
        rig.down(udp(FAR, "10.8.0.9"))
        assert successor.counters().out_packets == 1

    def test_close6(self, rig):
        flow = rig.flow6(PREFIX6, "fd00::/64")
        with pytest.raises(ConflictError, match=r"network fd00::/64 is taken"):
            rig.flow6("fd00::/64")
        flow.close()
        for destination in (PEER6, "fd00::1"):
            rig.down(udp6(FAR6, destination))
        assert rig.shared.unknown == 2
        flow.input6(udp6(PEER6, FAR6), 3.0)
        assert rig.written == []
        successor = rig.flow6("fd00::/64")
        assert flow.close() == Counters(in_errors=1)
        rig.down(udp6(FAR6, "fd00::1"))
        assert successor.counters().out_packets == 1

    def test_close_while_delivering(self, rig):
        """The carrier may find out on sending that the session has gone."""
        flow = rig.flow(mtu=576, send=lambda frame: flow.close())
        rig.down(ip(FAR, PEER, bytes(2000)))
        assert rig.shared.unknown == 0

    def test_small(self, rig):
        assert not hasattr(rig.flow(), "__dict__")
        assert sys.getsizeof(rig.flow("10.0.0.3")) <= 200


def test_hostile_packets(rig):
    """Neither way does anything raise, and the stack and the peers see sound packets only."""
    rng = random.Random(42)
    flows = [
        rig.flow6(address=PEER, ingress_filter=True, mss_adjust=True),
        rig.flow("10.8.0.1", prefixlen=16, mtu=100, mru=100, mss_adjust=True),
    ]
    seeds = [
        udp(PEER, FAR, b"hello"),
        udp(FAR, PEER, bytes(200)),
        tcp(PEER, FAR, options=b"\x01" + MSS_1460 + b"\x01\x01\x00"),
        tcp(FAR, "10.8.3.4", options=MSS_1460 + b"\x04\x02\x01\x01", data=bytes(80)),
        ip(FAR, "10.8.0.1", bytes(90), options=b"\x94\x04\0\0\x07\x07\x04\0\0\0\0\0"),
        ip(FAR, "10.0.0.9", b"\x08\0" + bytes(6), protocol=1),
        udp6(PEER6, FAR6, b"hello"),
        udp6(FAR6, PEER6, bytes(200)),
        tcp6(FAR6, PEER6, options=MSS_1460, data=bytes(80)),
        udp6(FAR6, "2001:db8:2::1"),
        ip6(FAR6, "2001:db8:2::1", bytes((ICMP6, 0, 0, 0)) + bytes(20), following=44),
    ]
    choice, randrange = rng.choice, rng.randrange
    for step in range(100_000):
        if step % 8 == 0:
            packet = rng.randbytes(randrange(80))
        else:
            mutated = bytearray(choice(seeds))
            for _ in range(randrange(1, 4)):
                # Mostly the headers.
                mutated[randrange(min(len(mutated), 48))] = randrange(256)
            packet = bytes(mutated[: randrange(len(mutated)) if step % 5 == 0 else None])
        for flow in flows:
            flow.input(packet, float(step))
            flow.input6(packet, float(step))
        rig.shared.deliver(packet, float(step))
        for passed in (*rig.written, *(frame[2:] for frame in rig.frames), *rig.emitted):
            if passed[0] >> 4 == 6:
                assert len(passed) == 40 + int.from_bytes(passed[4:6], "big")
                continue
            header = (passed[0] & 15) * 4
            assert passed[0] >> 4 == 4
            assert 20 <= header <= len(passed) == int.from_bytes(passed[2:4], "big")
        for lists in (rig.written, rig.frames, rig.emitted):
            lists.clear()
    totals = flows[0].counters().plus(flows[1].counters())
    # The test has reached everything.
    assert all(count > 100 for count in (*totals, rig.shared.unknown, rig.shared.ignored, rig.shared.icmp_errors))


def test_interface_is_shared(rig):
    assert isinstance(rig.shared, SharedInterface)
    assert rig.backend.interfaces == {"tun0": rig.shared}
