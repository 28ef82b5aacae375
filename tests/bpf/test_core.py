"""pipex_core and pipex_miss: what comes from the stack."""

from __future__ import annotations

import struct

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import U32
from tests.unit.ippackets import ip, udp

from .frames import ARP, IP, IP6, ethernet, ip6, padded, udp6
from .rig import (
    ADDRESS,
    ADDRESS6,
    ALL,
    DROP,
    GENERATION,
    LO,
    MTU,
    NPX0,
    NPX1,
    PASS,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SLOT,
    TUN,
    Rig,
    from_stack,
    tags,
    to_peer,
)

pytestmark = pytest.mark.root

PACKET = udp(REMOTE, ADDRESS, b"data")
PACKET6 = udp6(REMOTE6, ADDRESS6, b"data")
TC_SHOT, TC_REDIRECT = 2, 7


class TestEncapsulation:
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    @pytest.mark.parametrize("identifiers", [(), (7,), (7, 8)])
    def test_tags(self, rig: Rig, identifiers: tuple[int, ...], packet: bytes) -> None:
        rig.session(vlans=identifiers)
        done = rig.down(from_stack(packet))
        assert (done.verdict, done.data) == (REDIRECT, to_peer(packet, tags(*identifiers)))
        assert rig.counted() == {"STACK_DOWN": (1, len(packet))}

    @pytest.mark.parametrize("size", [28, 29, 46, 1399, MTU])
    def test_sizes(self, rig: Rig, size: int) -> None:
        rig.session(vlans=(7, 8))
        packet = udp(REMOTE, ADDRESS, bytes(range(256)) * 6)[:size]
        packet = ip(REMOTE, ADDRESS, packet[20:])
        assert rig.down(from_stack(packet)).data == to_peer(packet, tags(7, 8))

    def test_padding(self, rig: Rig) -> None:
        """LENGTH is that of the packet, what lies behind stays behind."""
        rig.session()
        frame = to_peer(PACKET).rstrip(b"\0")
        for octets in range(60):
            done = rig.down(from_stack(PACKET) + b"p" * octets)
            assert done.data == padded(frame + b"p" * octets)
        assert rig.stats()["out_bytes"] == 60 * len(PACKET)

    @pytest.mark.parametrize("length", range(14, layout.ENCAP_MAX + 1))
    def test_any_length(self, rig: Rig, length: int) -> None:
        """Other carriers have other headers; LENGTH goes where the session says."""
        encap = bytes(range(100, 100 + length))
        rig.session(encap=encap, encap_len=length, length_at=3)
        done = rig.down(from_stack(PACKET))
        assert done.verdict == REDIRECT
        length_field = (len(PACKET) + 2).to_bytes(2, "big")
        assert done.data == padded(encap[:3] + length_field + encap[5:] + b"\0\x21" + PACKET)

    @pytest.mark.parametrize(("length", "at"), [(0, 0), (13, 0), (97, 0), (65535, 0), (20, 19), (96, 95), (96, 65535)])
    def test_record_that_is_wrong(self, rig: Rig, length: int, at: int) -> None:
        rig.session(encap_len=length, length_at=at)
        assert rig.down(from_stack(PACKET)).verdict == DROP
        assert rig.reasons() == {"TX_FAIL": 1}
        assert rig.stats()["out_errors"] == 1
        assert "out_packets" not in rig.stats()

    @pytest.mark.parametrize("length", [14, 20, 96])
    def test_length_comes_last(self, rig: Rig, length: int) -> None:
        rig.session(encap_len=length, length_at=length - 2)
        frame = rig.down(from_stack(PACKET)).data
        assert frame[length - 2 :].rstrip(b"\0") == (len(PACKET) + 2).to_bytes(2, "big") + b"\0\x21" + PACKET

    def test_nowhere_to_go(self, rig: Rig) -> None:
        rig.session(ifindex=0)
        assert rig.down(from_stack(PACKET)).verdict == DROP
        assert rig.counted() == {"TX_FAIL": (1, len(PACKET))}

    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_driver_that_takes_none(self, rig: Rig, packet: bytes) -> None:
        """pipex_miss sends the frame, to the interface whose index is in front of it."""
        rig.session(ifindex=0x01020304, vlans=(7,))
        done = rig.down(from_stack(packet))
        in_front = struct.pack("=III", 0x01020304, 0, 0x7078706E)
        assert (done.verdict, done.data) == (PASS, in_front + to_peer(packet, tags(7)))
        assert rig.counted() == {"STACK_DOWN": (1, len(packet))}


class TestLookUp:
    def miss(self, rig: Rig, packet: bytes, reason: str) -> None:
        done = rig.down(from_stack(packet))
        assert (done.verdict, done.data) == (PASS, from_stack(packet))
        assert rig.counted() == {reason: (1, len(packet))}
        assert not rig.stats()

    @pytest.mark.parametrize("packet", [udp(REMOTE, "10.0.0.3"), udp6(REMOTE6, "2001:db8:2::1")])
    def test_unknown(self, rig: Rig, packet: bytes) -> None:
        rig.session()
        self.miss(rig, packet, "PUNT_UNKNOWN")

    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    @pytest.mark.parametrize("generation", [0, GENERATION - 1, GENERATION + 1])
    def test_reused_slot(self, rig: Rig, generation: int, packet: bytes) -> None:
        rig.session(generation=generation)
        self.miss(rig, packet, "PUNT_STALE")

    def test_another_domain(self, rig: Rig) -> None:
        rig.session()
        rig.maps["hosts4"].delete(layout.host4(0, 0x0A000002))
        rig.maps["hosts4"].put(layout.host4(1, 0x0A000002), layout.REF.pack(SLOT, GENERATION))
        self.miss(rig, PACKET, "PUNT_UNKNOWN")

    def test_longest_network(self, rig: Rig) -> None:
        for slot in range(4):
            rig.session(
                slot=slot,
                session_id=slot + 1,
                address=f"10.0.{slot}.2",
                network6=f"2001:db8:{slot}::/48",
                encap=bytes((slot,)) * 14,
                encap_len=14,
                length_at=0,
            )
        rig.route4("192.0.2.0/24", 1)
        rig.route4("192.0.2.128/25", 2)
        rig.route4("10.0.0.0/8", 3)
        rig.route6("2001:db8:2:ff00::/56", 1)
        rig.route6("2001:db8:2:ff01::7/128", 3)
        rig.route6("::/0", 3)
        for address, slot in [
            ("10.0.0.2", 0),
            ("10.0.1.2", 1),
            ("10.0.1.3", 3),
            ("192.0.2.127", 1),
            ("192.0.2.128", 2),
            ("2001:db8::1", 0),
            ("2001:db8:2::1", 2),
            ("2001:db8:2:ff01::1", 1),
            ("2001:db8:2:ff01::7", 3),
            ("2001:db8:2:ff01::6", 1),
            ("2001:db8:2:fe01::1", 2),
            ("2001:db9::", 3),
        ]:
            packet = udp6(REMOTE6, address) if ":" in address else udp(REMOTE, address)
            done = rig.down(from_stack(packet))
            assert (done.verdict, done.data[6]) == (REDIRECT, slot), address
        assert rig.down(from_stack(udp(REMOTE, "192.0.3.1"))).verdict == PASS

    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_user(self, rig: Rig, packet: bytes) -> None:
        rig.session(ALL | layout.USER)
        self.miss(rig, packet, "USER_DOWN")


class TestTooBig:
    @pytest.mark.parametrize(
        "packet",
        [
            udp(REMOTE, ADDRESS, bytes(MTU - 27)),
            ip(REMOTE, ADDRESS, bytes(MTU - 19), flags=0x4000),
            udp6(REMOTE6, ADDRESS6, bytes(MTU - 47)),
        ],
    )
    def test_to_npppyd(self, rig: Rig, packet: bytes) -> None:
        rig.session()
        assert len(packet) == MTU + 1
        done = rig.down(from_stack(packet))
        assert (done.verdict, done.data) == (PASS, from_stack(packet))
        assert rig.counted() == {"PUNT_TOOBIG": (1, MTU + 1)}
        assert not rig.stats()

    @pytest.mark.parametrize(
        "packet", [udp(REMOTE, ADDRESS, bytes(MTU - 28)), udp6(REMOTE6, ADDRESS6, bytes(MTU - 48))]
    )
    def test_just_fits(self, rig: Rig, packet: bytes) -> None:
        rig.session()
        assert rig.down(from_stack(packet)).data == to_peer(packet)

    def test_policed(self, rig: Rig) -> None:
        """What npppyd sends in pieces takes its tokens here, and what it only answers takes none."""
        rig.session(ALL | layout.POLICE_DOWN)
        rig.bucket(1, rate=1, burst=MTU + 28)
        for packet in (ip(REMOTE, ADDRESS, bytes(MTU - 19), flags=0x4000), udp6(REMOTE6, ADDRESS6, bytes(MTU))):
            assert rig.down(from_stack(packet)).verdict == PASS
        big, small = udp(REMOTE, ADDRESS, bytes(MTU - 27)), udp(REMOTE, ADDRESS)
        assert [rig.down(from_stack(packet)).verdict for packet in (big, big, small)] == [PASS, DROP, DROP]
        assert rig.reasons() == {"PUNT_TOOBIG": 3, "DROP_POLICE": 2}
        assert rig.stats() == {"out_errors": 2}


class TestDropped:
    @pytest.mark.parametrize(
        "frame",
        [
            bytes(14),
            ethernet(NPX1, NPX0, ARP, bytes(46)),
            ethernet(NPX1, NPX0, 0x8864, bytes(46)),
            ethernet(NPX1, NPX0, IP, PACKET[:19]),
            ethernet(NPX1, NPX0, IP6, PACKET6[:39]),
            # Router solicitations of npx0 and the like, and whoever broadcasts to the pool.
            ethernet(b"\x33\x33\0\0\0\2", NPX0, IP6, udp6("fe80::1", "ff02::2")),
            ethernet(b"\x01\0\x5e\0\0\1", NPX0, IP, udp(REMOTE, "224.0.0.1")),
            ethernet(b"\xff" * 6, NPX0, IP, PACKET),
        ],
    )
    def test_not_for_a_peer(self, rig: Rig, frame: bytes) -> None:
        rig.session()
        rig.route6("::/0")
        rig.route4("0.0.0.0/0")
        assert rig.down(frame).verdict == DROP
        assert rig.counted() == {"DROP_PROTOCOL": (1, len(frame))}
        assert not rig.stats()

    @pytest.mark.parametrize(
        "packet",
        [
            PACKET[:-1],
            b"\x44" + PACKET[1:],
            b"\x4f" + PACKET[1:],
            b"\x65" + PACKET[1:],
            PACKET[:2] + b"\0\x13" + PACKET[4:],
            PACKET[:2] + b"\xff\xff" + PACKET[4:],
        ],
    )
    def test_malformed(self, rig: Rig, packet: bytes) -> None:
        rig.session()
        assert rig.down(ethernet(NPX1, NPX0, IP, packet)).verdict == DROP
        assert rig.reasons() == {"DROP_MALFORMED": 1}
        assert rig.stats() == {"out_errors": 1}

    @pytest.mark.parametrize("packet", [PACKET6[:-1], b"\x40" + PACKET6[1:], ip6(REMOTE6, ADDRESS6, length=1)])
    def test_malformed6(self, rig: Rig, packet: bytes) -> None:
        rig.session()
        assert rig.down(ethernet(NPX1, NPX0, IP6, packet)).verdict == DROP
        assert rig.reasons() == {"DROP_MALFORMED": 1}
        assert rig.stats() == {"out_errors": 1}

    def test_redirects(self, rig: Rig) -> None:
        """The stack sends them to a peer that talks to another, as if both were on one link."""
        rig.session(ALL | layout.POLICE_DOWN)
        rig.bucket(1, rate=1, burst=100)
        redirect = b"\x05\x01" + bytes(34)
        assert rig.down(from_stack(ip(REMOTE, ADDRESS, redirect, protocol=1))).verdict == DROP
        assert rig.counted() == {"DROP_PROTOCOL": (1, 56)}
        assert not rig.stats()
        rig.session()
        for packet in (
            ip(REMOTE, ADDRESS, redirect, protocol=1, flags=0x0001),
            ip(REMOTE, ADDRESS, redirect, protocol=17),
            ip(REMOTE, ADDRESS, b"\x03\x01" + bytes(34), protocol=1),
            ip6(REMOTE6, ADDRESS6, redirect, following=1),
        ):
            assert rig.down(from_stack(packet)).verdict == REDIRECT

    @pytest.mark.parametrize(("packet", "block"), [(PACKET, layout.IP4), (PACKET6, layout.IP6)])
    def test_of_a_protocol_that_is_not_open(self, rig: Rig, packet: bytes, block: int) -> None:
        rig.session(ALL & ~block)
        assert rig.down(from_stack(packet)).verdict == DROP
        assert rig.reasons() == {"DROP_PROTOCOL": 1}
        assert rig.stats() == {"out_errors": 1}


class TestCounters:
    def test_out(self, rig: Rig) -> None:
        rig.session()
        for packet in (PACKET, PACKET6, PACKET):
            rig.down(from_stack(packet))
        stats = rig.stats()
        assert stats.keys() == {"out_packets", "out_bytes", "active_ns"}
        assert (stats["out_packets"], stats["out_bytes"]) == (3, 2 * len(PACKET) + len(PACKET6))

    @pytest.mark.parametrize(("packet", "block"), [(PACKET, layout.IP4), (PACKET6, layout.IP6)])
    def test_no_other_block_is_needed(self, rig: Rig, packet: bytes, block: int) -> None:
        rig.session(block)
        assert rig.down(from_stack(packet)).data == to_peer(packet)
        assert not rig.stats()


class TestMiss:
    """pipex_miss, on what pipex_core passes."""

    def verdict(self, rig: Rig, frame: bytes, ifindex: int = LO) -> int:
        return rig.programs["pipex_miss"].run(frame, ifindex).verdict

    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_to_the_tun(self, rig: Rig, packet: bytes) -> None:
        assert self.verdict(rig, from_stack(packet)) == TC_REDIRECT

    def test_never_into_the_stack(self, rig: Rig) -> None:
        for kind in (ARP, 0x8864, 0x8863):
            assert self.verdict(rig, ethernet(NPX1, NPX0, kind, bytes(46))) == TC_SHOT

    @pytest.mark.parametrize("shared", [0, 1, 15])
    def test_interface_of_its_own(self, rig: Rig, shared: int) -> None:
        for index in range(16):
            rig.config(index, npx1=LO if index == shared else 1000 + index, tun=TUN)
        assert self.verdict(rig, from_stack(PACKET)) == TC_REDIRECT
        rig.config(shared, npx1=999)
        assert self.verdict(rig, from_stack(PACKET)) == TC_SHOT

    def test_nothing_configured(self, rig: Rig) -> None:
        for index in range(16):
            rig.maps["config"].put(U32.pack(index), bytes(layout.CONFIG.size))
        assert self.verdict(rig, from_stack(PACKET)) == TC_SHOT
