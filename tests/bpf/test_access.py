"""pipex_access: what comes from the peer."""

from __future__ import annotations

import random
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Network

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import U32
from tests.unit.ippackets import ip, udp

from .frames import (
    ARP,
    C_TAG,
    DISCOVERY,
    IP,
    LCP,
    OLD_TAG,
    PPP_IP,
    PPP_IP6,
    S_TAG,
    SESSION,
    ethernet,
    ip6,
    ppp,
    pppoe,
    udp6,
)
from .rig import (
    ADDRESS,
    ADDRESS6,
    ALL,
    DROP,
    GENERATION,
    LO,
    OURS,
    PASS,
    PEER,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SESSION_ID,
    SLOT,
    Rig,
    data,
    session_frame,
    tags,
    to_stack,
)

pytestmark = pytest.mark.root

PACKET = udp(ADDRESS, REMOTE, b"data")
PACKET6 = udp6(ADDRESS6, REMOTE6, b"data")


class TestNotOurs:
    """What is no frame of a session passes as it is, and is not counted."""

    @pytest.mark.parametrize(
        "frame",
        [
            bytes(14),
            ethernet(OURS, PEER, IP, PACKET),
            ethernet(OURS, PEER, ARP, bytes(46)),
            ethernet(b"\xff" * 6, PEER, DISCOVERY, bytes(46)),
            ethernet(OURS, PEER, SESSION, bytes(0)),
            ethernet(OURS, PEER, SESSION, b"\x11\0\x12\x34\0"),
            ethernet(OURS, PEER, C_TAG, b""),
            ethernet(OURS, PEER, C_TAG, b"\0\7\x88"),
            ethernet(OURS, PEER, SESSION, b"\x11\0\x12", tags(7)),
            ethernet(OURS, PEER, S_TAG, b"\0\7\x81\0\0\7"),
            ethernet(OURS, PEER, SESSION, pppoe(SESSION_ID, ppp(PPP_IP, PACKET)), ((5, S_TAG), (6, C_TAG), (7, C_TAG))),
            session_frame(ppp(PPP_IP, PACKET), first=0x12),
            session_frame(ppp(PPP_IP, PACKET), first=0x21),
            session_frame(ppp(PPP_IP, PACKET), code=0xA7),
        ],
    )
    def test_passes(self, rig: Rig, frame: bytes) -> None:
        rig.session()
        done = rig.up(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert not rig.counted()
        assert not rig.stats()


class TestLookUp:
    def test_found(self, rig: Rig) -> None:
        rig.session()
        done = rig.up(data(PACKET))
        assert (done.verdict, done.data) == (REDIRECT, to_stack(PACKET))
        assert rig.counted() == {"STACK_UP": (1, len(PACKET))}

    @pytest.mark.parametrize(
        "frame",
        [
            data(PACKET, session_id=SESSION_ID + 1),
            data(PACKET, source=b"\x02\0\0\0\0\3"),
            data(PACKET, vlans=tags(7)),
            data(PACKET, vlans=tags(7, 8)),
        ],
    )
    def test_unknown(self, rig: Rig, frame: bytes) -> None:
        rig.session()
        done = rig.up(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert rig.counted() == {"PUNT_UNKNOWN": (1, len(frame))}
        assert not rig.stats()

    def test_unknown_on_another_port(self, rig: Rig) -> None:
        rig.session(port=LO + 1)
        assert rig.up(data(PACKET)).verdict == PASS
        assert rig.reasons() == {"PUNT_UNKNOWN": 1}

    @pytest.mark.parametrize("generation", [0, GENERATION - 1, GENERATION + 1])
    def test_reused_slot(self, rig: Rig, generation: int) -> None:
        rig.session(generation=generation)
        done = rig.up(data(PACKET))
        assert (done.verdict, done.data) == (PASS, data(PACKET))
        assert rig.reasons() == {"PUNT_STALE": 1}
        assert not rig.stats()

    def test_slot_that_is_none(self, rig: Rig) -> None:
        rig.session()
        key = layout.pppoe_key(LO, None, None, PEER, SESSION_ID)
        rig.maps["sessions"].put(key, layout.REF.pack(rig.maps["slots"].max_entries, GENERATION))
        assert rig.up(data(PACKET)).verdict == PASS
        assert rig.reasons() == {"PUNT_STALE": 1}

    @pytest.mark.parametrize("octet", range(6))
    def test_for_another_station(self, rig: Rig, octet: int) -> None:
        rig.session()
        other = bytearray(OURS)
        other[octet] ^= 0x40
        frame = data(PACKET, destination=bytes(other))
        done = rig.up(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert not rig.counted()
        assert not rig.stats()

    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    @pytest.mark.parametrize("identifiers", [(), (7,), (7, 8), (4094, 1)])
    def test_tags(self, rig: Rig, identifiers: tuple[int, ...], packet: bytes) -> None:
        rig.session(vlans=identifiers)
        done = rig.up(data(packet, vlans=tags(*identifiers)))
        assert (done.verdict, done.data) == (REDIRECT, to_stack(packet))

    @pytest.mark.parametrize("outer", [C_TAG, S_TAG, OLD_TAG])
    @pytest.mark.parametrize("inner", [C_TAG, S_TAG, OLD_TAG])
    def test_any_tpid_and_priority(self, rig: Rig, outer: int, inner: int) -> None:
        rig.session(vlans=(7, 8))
        done = rig.up(data(PACKET, vlans=((0xB007, outer), (0xF008, inner))))
        assert (done.verdict, done.data) == (REDIRECT, to_stack(PACKET))

    def test_tags_in_the_other_order(self, rig: Rig) -> None:
        rig.session(vlans=(7, 8))
        assert rig.up(data(PACKET, vlans=tags(8, 7))).verdict == PASS
        assert rig.up(data(PACKET, vlans=tags(7))).verdict == PASS
        assert rig.up(data(PACKET)).verdict == PASS

    def test_priority_tag_is_no_vlan(self, rig: Rig) -> None:
        rig.session()
        assert rig.up(data(PACKET, vlans=tags(0xE000))).data == to_stack(PACKET)

    def test_shared_interface(self, rig: Rig) -> None:
        rig.config(5, npx0_mac=b"abcdef", npx1_mac=b"ghijkl")
        rig.session(shared=5)
        assert rig.up(data(PACKET)).data == b"abcdefghijkl\x08\0" + PACKET

    def test_shared_interface_that_is_none(self, rig: Rig) -> None:
        rig.session(shared=99)
        assert rig.up(data(PACKET)).verdict == DROP


class TestToNpppyd:
    @pytest.mark.parametrize("protocol", [0x8021, 0x8057, 0xC023, 0xC223, LCP, 0x80FD, 0x00FD, 0x002D, 0x4021, 0x2100])
    def test_control_and_other_protocols(self, rig: Rig, protocol: int) -> None:
        rig.session()
        frame = session_frame(ppp(protocol, b"\1\1\0\4"))
        done = rig.up(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert rig.counted() == {"PUNT_CONTROL": (1, len(frame))}
        assert rig.stats().keys() == {"heard_ns"}

    @pytest.mark.parametrize(
        ("source", "destination"),
        [
            ("fe80::1", "ff02::2"),
            ("fe80::1", REMOTE6),
            ("febf::1", REMOTE6),
            (ADDRESS6, "fe80::2"),
            (ADDRESS6, "ff02::1:2"),
            (ADDRESS6, "ff0e::1"),
            ("::", "ff02::1:ff00:1"),
        ],
    )
    @pytest.mark.parametrize("identifiers", [(), (7,), (7, 8)])
    def test_of_the_link(self, rig: Rig, source: str, destination: str, identifiers: tuple[int, ...]) -> None:
        rig.session(vlans=identifiers)
        frame = data(udp6(source, destination), vlans=tags(*identifiers))
        done = rig.up(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert rig.reasons() == {"PUNT_CONTROL": 1}

    @pytest.mark.parametrize(
        ("source", "destination"), [(ADDRESS6, "fec0::1"), ("fec0::1", REMOTE6), ("fe00::", "fd00::")]
    )
    def test_not_of_the_link(self, rig: Rig, source: str, destination: str) -> None:
        rig.session(ALL & ~layout.FILTER)
        assert rig.up(data(udp6(source, destination))).verdict == REDIRECT

    @pytest.mark.parametrize("payload", [ppp(PPP_IP, PACKET), ppp(PPP_IP6, PACKET6), ppp(LCP, bytes(8)), b"", b"\0"])
    def test_user(self, rig: Rig, payload: bytes) -> None:
        rig.session(ALL | layout.USER)
        frame = session_frame(payload)
        done = rig.up(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert rig.counted() == {"USER_UP": (1, len(frame))}
        assert rig.stats().keys() == {"heard_ns"}


class TestMalformed:
    @pytest.mark.parametrize(
        "frame",
        [
            session_frame(b""),
            session_frame(b"", length=2),
            session_frame(b"\0"),
            session_frame(b"\0", length=2),
            session_frame(ppp(PPP_IP, PACKET), length=0),
            session_frame(ppp(PPP_IP, PACKET), length=1),
            session_frame(ppp(PPP_IP, PACKET), length=len(PACKET) + 3),
            session_frame(ppp(PPP_IP, PACKET), length=0xFFFF),
            # LENGTH leaves nothing, or less than a header, or than the packet says.
            session_frame(ppp(PPP_IP, PACKET), length=2),
            session_frame(ppp(PPP_IP, PACKET), length=21),
            session_frame(ppp(PPP_IP, PACKET), length=len(PACKET) + 1),
            session_frame(ppp(PPP_IP, PACKET[:19])),
            session_frame(ppp(PPP_IP, PACKET[:-1])),
            session_frame(ppp(PPP_IP, PACKET6)),
            session_frame(ppp(PPP_IP, b"\x44" + PACKET[1:])),
            session_frame(ppp(PPP_IP, b"\x55" + PACKET[1:])),
            # A header longer than the packet, a Total Length shorter than the header.
            session_frame(ppp(PPP_IP, b"\x4f" + PACKET[1:])),
            session_frame(ppp(PPP_IP, PACKET[:2] + b"\0\x13" + PACKET[4:])),
            session_frame(ppp(PPP_IP, PACKET[:2] + b"\0\0" + PACKET[4:])),
            session_frame(ppp(PPP_IP6, PACKET6), length=41),
            session_frame(ppp(PPP_IP6, PACKET6[:39])),
            session_frame(ppp(PPP_IP6, PACKET6[:-1])),
            session_frame(ppp(PPP_IP6, PACKET)),
            session_frame(ppp(PPP_IP6, b"\x50" + PACKET6[1:])),
            session_frame(ppp(PPP_IP6, ip6(ADDRESS6, REMOTE6, bytes(8), length=9))),
        ],
    )
    @pytest.mark.parametrize("identifiers", [(), (7, 8)])
    def test_dropped(self, rig: Rig, frame: bytes, identifiers: tuple[int, ...]) -> None:
        rig.session(vlans=identifiers)
        tagged = ethernet(frame[:6], frame[6:12], SESSION, frame[14:], tags(*identifiers))
        assert rig.up(tagged).verdict == DROP
        assert rig.reasons() == {"DROP_MALFORMED": 1}
        assert rig.stats().keys() == {"heard_ns", "in_errors"}
        assert rig.stats()["in_errors"] == 1

    def test_errors_are_counted_by_the_block(self, rig: Rig) -> None:
        rig.session(ALL & ~layout.COUNT)
        assert rig.up(session_frame(b"")).verdict == DROP
        assert rig.stats().keys() == {"heard_ns"}

    def test_noise(self, rig: Rig) -> None:
        """Nothing that a peer can send ends in anything but a verdict, or reaches another's counters."""
        chance = random.Random(1)
        rig.session(ALL | layout.POLICE_UP)
        rig.session(slot=SLOT + 1, session_id=SESSION_ID + 1, address="10.0.0.3", network6="2001:db8:2::/48")
        sound = [data(PACKET), data(PACKET6), session_frame(ppp(LCP, bytes(8)))]
        for _ in range(3000):
            frame = bytearray(chance.choice(sound))
            for _ in range(chance.randrange(1, 4)):
                frame[chance.randrange(14, len(frame))] = chance.randrange(256)
            frame = frame[: chance.randrange(14, len(frame) + 1)]
            assert rig.up(bytes(frame)).verdict in (DROP, PASS, REDIRECT)
        assert not rig.stats(SLOT + 1)
        assert rig.reasons().keys() >= {"DROP_MALFORMED", "DROP_FILTER", "STACK_UP", "PUNT_CONTROL"}


class TestPayload:
    @pytest.mark.parametrize(("packet", "block"), [(PACKET, layout.IP4), (PACKET6, layout.IP6)])
    def test_of_a_protocol_that_is_not_open(self, rig: Rig, packet: bytes, block: int) -> None:
        rig.session(ALL & ~block)
        assert rig.up(data(packet)).verdict == DROP
        assert rig.reasons() == {"DROP_PROTOCOL": 1}
        assert rig.stats()["in_errors"] == 1

    @pytest.mark.parametrize(("packet", "block"), [(PACKET, layout.IP4), (PACKET6, layout.IP6)])
    def test_no_other_block_is_needed(self, rig: Rig, packet: bytes, block: int) -> None:
        rig.session(block)
        assert rig.up(data(packet)).data == to_stack(packet)
        assert rig.stats().keys() == {"heard_ns"}

    @pytest.mark.parametrize("packet", [PACKET, PACKET6, ip(ADDRESS, REMOTE), ip6(ADDRESS6, REMOTE6)])
    @pytest.mark.parametrize("padding", [0, 1, 18, 600])
    def test_padding(self, rig: Rig, packet: bytes, padding: int) -> None:
        """Behind the PPPoE payload or within: the stack cuts it off, and no octet of it is counted."""
        rig.session()
        for frame in (data(packet) + bytes(padding), data(packet + bytes(padding))):
            done = rig.up(frame)
            assert (done.verdict, done.data) == (REDIRECT, to_stack(packet) + bytes(padding))
        assert rig.counted() == {"STACK_UP": (2, 2 * len(packet))}
        assert rig.stats()["in_bytes"] == 2 * len(packet)

    def test_options_and_fragments(self, rig: Rig) -> None:
        rig.session()
        for packet in (
            ip(ADDRESS, REMOTE, b"rest", options=b"\1" * 40),
            ip(ADDRESS, REMOTE, b"first", flags=0x2000),
            ip(ADDRESS, REMOTE, b"later", flags=0x00B9),
            ip6(ADDRESS6, REMOTE6, bytes(8), following=44),
        ):
            assert rig.up(data(packet)).data == to_stack(packet)

    def test_whole_mtu(self, rig: Rig) -> None:
        rig.session()
        packet = udp(ADDRESS, REMOTE, bytes(1492 - 28))
        assert rig.up(data(packet)).data == to_stack(packet)

    def test_nowhere_to_go(self, rig: Rig) -> None:
        rig.session()
        rig.redirect_to()
        assert rig.up(data(PACKET)).verdict == DROP
        assert rig.counted() == {"TX_FAIL": (1, len(PACKET))}


class TestCounters:
    def test_in(self, rig: Rig) -> None:
        rig.session()
        for packet in (PACKET, PACKET6, PACKET):
            rig.up(data(packet))
        total = 2 * len(PACKET) + len(PACKET6)
        stats = rig.stats()
        assert (stats["in_packets"], stats["in_bytes"]) == (3, total)
        assert not stats.keys() & {"in_errors", "out_packets", "out_bytes", "out_errors", "echo_ns", "looped"}
        assert rig.counted() == {"STACK_UP": (3, total)}

    def test_by_several_processors(self, rig: Rig) -> None:
        """None is lost, of what is dropped before the frame is touched, and so can be run again and again."""
        rig.session(ALL & ~layout.IP4)
        frame = data(PACKET)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: rig.programs["pipex_access"].run(frame, repeat=500_000), range(4)))
        assert rig.stats()["in_errors"] == 2_000_000
        assert rig.counted() == {"DROP_PROTOCOL": (2_000_000, 2_000_000 * len(frame))}

    def test_of_the_slot(self, rig: Rig) -> None:
        rig.session(slot=0)
        rig.up(data(PACKET))
        assert rig.stats(0)["in_packets"] == 1
        assert not any(rig.stats(slot) for slot in range(1, 16))

    def test_heard(self, rig: Rig) -> None:
        """On the monotonic clock, by a clock that ticks 100 times a second or more."""
        rig.session()
        before = time.monotonic_ns()
        rig.up(session_frame(ppp(0x8021, b"\1\1\0\4")))
        assert before - 20_000_000 < rig.stats()["heard_ns"] <= time.monotonic_ns()

    def test_is_seen_in_the_mapped_array(self, rig: Rig) -> None:
        rig.session()
        with rig.maps["stats"].mapped() as mapped:
            rig.up(data(PACKET))
            at = SLOT * layout.STATS.size
            assert struct.unpack_from("=QQ", mapped, at) == (len(PACKET), 1)

    def test_a_block_added_while_the_session_is_up(self, rig: Rig) -> None:
        rig.session(layout.IP4)
        rig.up(data(PACKET))
        assert "in_packets" not in rig.stats()
        key = U32.pack(SLOT)
        record = rig.maps["slots"].get(key)
        assert record is not None
        at = layout.SESSION.offsets["blocks"]
        blocks = U32.pack(layout.IP4 | layout.COUNT)
        rig.maps["slots"].put(key, record[:at] + blocks + record[at + 4 :])
        rig.up(data(PACKET))
        assert rig.stats()["in_packets"] == 1


class TestFilter:
    @pytest.mark.parametrize(
        ("length", "source", "passes"),
        [
            (32, "10.0.0.2", True),
            (32, "10.0.0.3", False),
            (32, "10.0.0.0", False),
            (32, "138.0.0.2", False),
            (31, "10.0.0.3", True),
            (31, "10.0.0.4", False),
            (24, "10.0.0.255", True),
            (24, "10.0.1.2", False),
            (8, "10.255.1.2", True),
            (8, "11.0.0.2", False),
            (1, "127.0.0.1", True),
            (1, "128.0.0.1", False),
            (0, "255.255.255.255", True),
        ],
    )
    def test_ip4(self, rig: Rig, length: int, source: str, passes: bool) -> None:
        rig.session(prefixlen4=length)
        done = rig.up(data(udp(source, REMOTE)))
        assert done.verdict == (REDIRECT if passes else DROP)
        assert rig.reasons() == ({"STACK_UP": 1} if passes else {"DROP_FILTER": 1})
        assert rig.stats().get("in_errors", 0) == (not passes)
        assert rig.stats().get("in_packets", 0) == passes
        assert ("active_ns" in rig.stats()) == passes

    def test_ip4_of_several_networks(self, rig: Rig) -> None:
        """As of IPv6, below; addresses come before networks."""
        rig.session()
        rig.route4("192.0.2.0/24")
        rig.route4("198.51.100.7/32")
        rig.session(slot=SLOT + 1, session_id=SESSION_ID + 1, address="192.0.2.9")
        rig.route4("192.0.2.64/28", slot=SLOT + 1)
        rig.route4("203.0.113.0/24", generation=GENERATION - 1)
        for session_id, source, passes in (
            (SESSION_ID, "10.0.0.2", True),
            (SESSION_ID, "192.0.2.1", True),
            (SESSION_ID, "198.51.100.7", True),
            (SESSION_ID, "198.51.100.6", False),
            (SESSION_ID, "192.0.2.9", False),
            (SESSION_ID, "192.0.2.65", False),
            (SESSION_ID + 1, "192.0.2.9", True),
            (SESSION_ID + 1, "192.0.2.65", True),
            (SESSION_ID + 1, "192.0.2.1", False),
            (SESSION_ID + 1, "10.0.0.2", False),
            (SESSION_ID, "203.0.113.1", False),
        ):
            verdict = rig.up(data(udp(source, REMOTE), session_id=session_id)).verdict
            assert verdict == (REDIRECT if passes else DROP), (session_id, source)

    @pytest.mark.parametrize("length", [*range(129)])
    def test_ip6(self, rig: Rig, length: int) -> None:
        """Any bit within the prefix counts, none behind it."""
        prefix = 0x2001_0DB8_A5A5_A5A5_A5A5_A5A5_A5A5_A5A5
        network = IPv6Network((prefix, length), strict=False)
        rig.session(network6=str(network))
        template = bytearray(PACKET6)
        for bit in range(3, 128):
            source = (prefix ^ 1 << 127 - bit).to_bytes(16, "big")
            if source[0] == 0:
                continue
            template[8:24] = source
            passes = bit >= length
            assert rig.up(data(bytes(template))).verdict == (REDIRECT if passes else DROP), bit
        template[8:24] = prefix.to_bytes(16, "big")
        assert rig.up(data(bytes(template))).verdict == REDIRECT

    def test_ip6_of_several_prefixes(self, rig: Rig) -> None:
        """A session may use all of its own, and nothing of them that another has."""
        rig.session(network6="2001:db8:1::/48")
        rig.route6("2001:db8:7:7::/64")
        rig.session(slot=SLOT + 1, session_id=SESSION_ID + 1, address="10.0.0.3", network6="2001:db8:1:5::/64")
        rig.route6("2001:db8:8::/48", generation=GENERATION - 1)
        for session_id, source, passes in (
            (SESSION_ID, "2001:db8:1:4::1", True),
            (SESSION_ID, "2001:db8:1:5::1", False),
            (SESSION_ID + 1, "2001:db8:1:5::1", True),
            (SESSION_ID + 1, "2001:db8:1:4::1", False),
            (SESSION_ID, "2001:db8:7:7::1", True),
            (SESSION_ID + 1, "2001:db8:7:7::1", False),
            (SESSION_ID, "2001:db8:7:8::1", False),
            # Its predecessor's in the slot.
            (SESSION_ID, "2001:db8:8::1", False),
        ):
            verdict = rig.up(data(udp6(source, REMOTE6), session_id=session_id)).verdict
            assert verdict == (REDIRECT if passes else DROP), (session_id, source)

    def test_off(self, rig: Rig) -> None:
        rig.session(ALL & ~layout.FILTER)
        assert rig.up(data(udp("10.0.0.9", REMOTE))).verdict == REDIRECT
        assert rig.up(data(udp6("2001:db8:9::1", REMOTE6))).verdict == REDIRECT
