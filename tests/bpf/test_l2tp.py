"""Data of L2TP: what comes from the peer, in the clear and decrypted."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import U32
from npppy.pipex.ebpf.libbpf import Object, Ring, Run
from tests.unit.ippackets import ip, tcp, tcp_sum, udp, words

from .frames import LCP, PPP_IP, PPP_IP6, echo, ethernet, ip6, ppp, udp6
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
    OUR_MAGIC,
    PASS,
    PEER_MAGIC,
    PPP_ID,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SESSION_ID,
    SLOT,
    Rig,
    tags,
    to_stack,
)
from .tunnel import (
    HDLC,
    LAC_PORT,
    LENGTH,
    OFFSET,
    OUTER,
    PORT,
    PRIORITY,
    SEQUENCE,
    TUNNEL,
    data,
    datagram,
    framed,
    message,
    numbers,
    outer,
    tunnel,
)

pytestmark = pytest.mark.root

PACKET = udp(ADDRESS, REMOTE, b"data")
PACKET6 = udp6(ADDRESS6, REMOTE6, b"data")
#: Where messages come in: on a NIC with subscribers of PPPoE, on another; and on npx1, decrypted.
WHERE = ("pipex_access", "pipex_nic", "pipex_core")


class Up:
    """A program that takes messages in."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig = rig
        self.name = name

    def __call__(self, frame: bytes) -> Run:
        if self.name == "pipex_core":
            frame = OUTER + frame[6:]
        return self.rig.programs[self.name].run(frame)

    def passes(self, frame: bytes) -> None:
        """As it is."""
        done = self(frame)
        assert done.verdict == PASS
        assert done.data[6:] == frame[6:]


@pytest.fixture(params=WHERE)
def up(rig: Rig, request: pytest.FixtureRequest) -> Up:
    return Up(rig, request.param)


@pytest.fixture(params=WHERE[:2])
def nic(rig: Rig, request: pytest.FixtureRequest) -> Up:
    return Up(rig, request.param)


class TestForms:
    @pytest.mark.parametrize("six", [False, True])
    @pytest.mark.parametrize("flags", [2, LENGTH | 2, SEQUENCE | 2, OFFSET | 2, LENGTH | SEQUENCE | OFFSET | 2])
    @pytest.mark.parametrize("hdlc", [HDLC, b""])
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_header(self, up: Up, six: bool, flags: int, hdlc: bytes, packet: bytes) -> None:
        """Each with the usual Protocol field, and with one of one octet."""
        tunnel(up.rig, six=six)
        number = PPP_IP if packet is PACKET else PPP_IP6
        for protocol in (number.to_bytes(2, "big"), bytes((number,))):
            frame = outer(datagram(message(hdlc + protocol + packet, flags, offset=b"12345"), six=six))
            done = up(frame)
            assert (done.verdict, done.data) == (REDIRECT, to_stack(packet))
        assert up.rig.counted() == {"STACK_UP": (2, 2 * len(packet))}
        stats = up.rig.stats()
        assert (stats["in_packets"], stats["in_bytes"]) == (2, 2 * len(packet))
        assert stats.keys() == {"in_packets", "in_bytes", "active_ns", "heard_ns"}

    @pytest.mark.parametrize("flags", [0x37F2 & ~SEQUENCE & ~OFFSET, PRIORITY | 2])
    def test_other_bits(self, up: Up, flags: int) -> None:
        """Those that are reserved are ignored (RFC 2661 section 3.1)."""
        tunnel(up.rig)
        assert up(outer(datagram(message(framed(PACKET), flags)))).data == to_stack(PACKET)

    @pytest.mark.parametrize("size", [0, 1, 2, 7, 200, 1000])
    def test_offset(self, up: Up, size: int) -> None:
        tunnel(up.rig)
        for flags in (OFFSET | 2, OFFSET | LENGTH | 2):
            frame = outer(datagram(message(framed(PACKET), flags, offset=bytes(size))))
            assert up(frame).data == to_stack(PACKET)

    @pytest.mark.parametrize("identifiers", [(), (7,), (7, 8)])
    @pytest.mark.parametrize("six", [False, True])
    def test_tags(self, nic: Up, six: bool, identifiers: tuple[int, ...]) -> None:
        """Whichever, since the address is ours."""
        tunnel(nic.rig, six=six)
        packet = datagram(message(framed(PACKET)), six=six)
        assert nic(outer(packet, tags(*identifiers))).data == to_stack(PACKET)

    @pytest.mark.parametrize("padding", [1, 46])
    def test_padding(self, up: Up, padding: int) -> None:
        """Behind the IP packet, behind the message, and behind the packet in it."""
        tunnel(up.rig)
        sound = message(framed(PACKET), LENGTH | 2)
        for frame in (
            outer(datagram(sound)) + bytes(padding),
            outer(datagram(sound + bytes(padding))),
            outer(datagram(message(framed(PACKET) + bytes(padding)))),
        ):
            done = up(frame)
            assert (done.verdict, done.data) == (REDIRECT, to_stack(PACKET) + bytes(padding))
        assert up.rig.stats()["in_bytes"] == 3 * len(PACKET)

    def test_whole_mtu(self, up: Up) -> None:
        tunnel(up.rig, sequenced=True)
        packet = udp(ADDRESS, REMOTE, bytes(1500 - 28))
        frame = outer(datagram(message(framed(packet), LENGTH | SEQUENCE | OFFSET | 2, offset=bytes(64))))
        assert up(frame).data == to_stack(packet)


class TestNotOurs:
    @pytest.mark.parametrize(
        "packet",
        [
            # Control, other versions, nothing or too little.
            datagram(message(framed(PACKET), 0xC802)),
            datagram(message(framed(PACKET), 0x8002)),
            datagram(message(framed(PACKET), 0)),
            datagram(message(framed(PACKET), 3)),
            datagram(message(framed(PACKET), 0xA)),
            datagram(b""),
            datagram(b"\0\2\xfe\xdc\x12"),
            datagram(b"\x40\2\0\x08\xfe\xdc\x12"),
            datagram(message(framed(PACKET)), length=13),
            datagram(message(framed(PACKET)), length=0),
            datagram(message(framed(PACKET)), length=9 + len(message(framed(PACKET)))),
            datagram(message(framed(PACKET)), protocol=115),
            datagram(message(framed(PACKET)), options=b"\1\1\1\0"),
            datagram(message(framed(PACKET)), flags=0x2000),
            datagram(message(framed(PACKET)), flags=0x00B9),
            b"\x46" + datagram(message(framed(PACKET)))[1:],
            b"\x55" + datagram(message(framed(PACKET)))[1:],
            # A wrong header checksum.
            datagram(message(framed(PACKET)))[:10] + b"\xde\xad" + datagram(message(framed(PACKET)))[12:],
            ip("203.0.113.5", "192.0.2.1", b"\0\2"),
            datagram(message(framed(PACKET)), six=True, following=0),
            datagram(message(framed(PACKET)), six=True, following=44),
            datagram(message(framed(PACKET)), six=True, length=0),
            datagram(message(framed(PACKET)), six=True, first=0x50),
            ip6("2001:db8:c:1::5", "2001:db8:c::1", b""),
            # Another's ids.
            datagram(message(framed(PACKET), ids=(TUNNEL + 1, SESSION_ID))),
            datagram(message(framed(PACKET), ids=(TUNNEL, SESSION_ID + 1))),
            datagram(message(framed(PACKET), ids=(SESSION_ID, TUNNEL)), six=True),
        ],
    )
    @pytest.mark.parametrize("identifiers", [(), (7, 8)])
    def test_passes(self, nic: Up, packet: bytes, identifiers: tuple[int, ...]) -> None:
        """Uncounted: on a NIC there is much else."""
        tunnel(nic.rig)
        nic.passes(outer(packet, tags(*identifiers)))
        assert not nic.rig.counted()
        assert not nic.rig.stats()

    def test_three_tags(self, nic: Up) -> None:
        tunnel(nic.rig)
        nic.passes(outer(datagram(message(framed(PACKET))), ((5, 0x88A8), (6, 0x8100), (7, 0x8100))))

    @pytest.mark.parametrize("six", [False, True])
    def test_cut_off(self, up: Up, six: bool) -> None:
        """At whichever octet: no verdict but one that it may have, and nothing goes up."""
        tunnel(up.rig, six=six)
        frame = outer(datagram(message(framed(PACKET), LENGTH | SEQUENCE | OFFSET | 2, offset=b"12"), six=six))
        for size in range(14, len(frame)):
            assert up(frame[:size]).verdict in (PASS, DROP)
        assert "STACK_UP" not in up.rig.counted()

    @pytest.mark.parametrize("generation", [0, GENERATION - 1])
    def test_reused_slot(self, up: Up, generation: int) -> None:
        tunnel(up.rig, generation=generation)
        up.passes(data(PACKET))
        assert up.rig.reasons() == {"PUNT_STALE": 1}

    def test_unknown_when_decrypted(self, rig: Rig) -> None:
        """It is L2TP for sure."""
        tunnel(rig)
        frame = outer(datagram(message(framed(PACKET), ids=(TUNNEL, 1))))
        Up(rig, "pipex_core").passes(frame)
        assert rig.reasons() == {"PUNT_UNKNOWN": 1}

    def test_pppoe_beside_it(self, rig: Rig) -> None:
        """A key of the one is none of the other."""
        rig.session()
        frame = outer(datagram(message(framed(PACKET), ids=(LO, SESSION_ID))))
        Up(rig, "pipex_access").passes(frame)
        assert not rig.counted()


class TestPeer:
    @pytest.mark.parametrize("six", [False, True])
    @pytest.mark.parametrize("bit", range(8))
    def test_another(self, up: Up, six: bool, bit: int) -> None:
        """Whoever it is, wherever it goes to: each octet of addresses and ports counts."""
        tunnel(up.rig, six=six)
        packet = datagram(message(framed(PACKET)), six=six)
        first, stop = (8, 44) if six else (12, 24)
        for at in range(first, stop):
            changed = bytearray(packet)
            changed[at] ^= 1 << bit
            if not six:
                changed[10:12] = b"\0\0"
                changed[10:12] = (0xFFFF ^ words(bytes(changed[:20]))).to_bytes(2, "big")
            assert up(outer(bytes(changed))).verdict == DROP
        assert up.rig.reasons() == {"DROP_FILTER": stop - first}
        assert up.rig.stats() == {"in_errors": stop - first}

    def test_of_the_other_version(self, up: Up) -> None:
        for six in (False, True):
            tunnel(up.rig, six=six)
            assert up(data(PACKET, not six)).verdict == DROP
        assert up.rig.reasons() == {"DROP_FILTER": 2}


class TestIpsec:
    @pytest.mark.parametrize("six", [False, True])
    def test_in_the_clear(self, nic: Up, six: bool) -> None:
        """The stack's policy drops it."""
        tunnel(nic.rig, ALL | layout.IPSEC, six=six)
        nic.passes(data(PACKET, six))
        assert not nic.rig.counted()
        assert not nic.rig.stats()

    @pytest.mark.parametrize("six", [False, True])
    @pytest.mark.parametrize("blocks", [ALL, ALL | layout.IPSEC])
    def test_decrypted(self, rig: Rig, six: bool, blocks: int) -> None:
        tunnel(rig, blocks, six=six)
        assert Up(rig, "pipex_core")(data(PACKET, six)).data == to_stack(PACKET)

    @pytest.mark.parametrize("octet", range(6))
    def test_to_another_station_on_npx(self, rig: Rig, octet: int) -> None:
        """Only what was sent there has been decrypted; all else is on its way to a peer."""
        tunnel(rig, ALL | layout.IPSEC)
        other = bytearray(OUTER)
        other[octet] ^= 0x40
        frame = bytes(other) + data(PACKET)[6:]
        done = rig.down(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert rig.reasons() == {"PUNT_UNKNOWN": 1}


class TestToNpppyd:
    @pytest.mark.parametrize("protocol", [0x8021, 0x8057, 0xC023, 0xC223, LCP, 0x80FD, 0x00FD, 0x4021])
    def test_other_protocols(self, up: Up, protocol: int) -> None:
        tunnel(up.rig)
        frame = outer(datagram(message(HDLC + ppp(protocol, b"\1\1\0\4"), LENGTH | 2)))
        up.passes(frame)
        assert up.rig.counted() == {"PUNT_CONTROL": (1, len(frame))}
        assert up.rig.stats().keys() == {"heard_ns"}

    @pytest.mark.parametrize("protocol", [b"\x2d", b"\x2f", b"\xfd"])
    def test_of_one_octet(self, up: Up, protocol: bytes) -> None:
        tunnel(up.rig)
        up.passes(outer(datagram(message(HDLC + protocol + bytes(20)))))
        assert up.rig.reasons() == {"PUNT_CONTROL": 1}

    @pytest.mark.parametrize(
        ("source", "destination"), [("fe80::1", "ff02::2"), (ADDRESS6, "fe80::2"), (ADDRESS6, "ff02::1:2")]
    )
    def test_of_the_link(self, up: Up, source: str, destination: str) -> None:
        tunnel(up.rig)
        for flags in (2, LENGTH | OFFSET | 2):
            up.passes(outer(datagram(message(framed(udp6(source, destination)), flags, offset=b"123"))))
        assert up.rig.reasons() == {"PUNT_CONTROL": 2}

    @pytest.mark.parametrize("payload", [framed(PACKET), framed(PACKET6), HDLC + ppp(LCP, bytes(8)), b"", b"\xff"])
    def test_user(self, up: Up, payload: bytes) -> None:
        tunnel(up.rig, ALL | layout.USER)
        frame = outer(datagram(message(payload)))
        up.passes(frame)
        assert up.rig.counted() == {"USER_UP": (1, len(frame))}
        assert up.rig.stats().keys() == {"heard_ns"}


class TestMalformed:
    @pytest.mark.parametrize(
        "packet",
        [
            datagram(message(b"")),
            datagram(message(b"\xff")),
            datagram(message(b"\xff\x03")),
            datagram(message(b"\xff\x03\0")),
            datagram(message(b"\xff\x02\0\x21" + PACKET)),
            datagram(message(b"\0")),
            datagram(message(framed(PACKET), SEQUENCE | 2)[:7]),
            datagram(message(framed(PACKET), SEQUENCE | 2)[:9]),
            datagram(message(b"", SEQUENCE | 2)),
            datagram(message(b"", OFFSET | 2)),
            datagram(message(framed(PACKET), OFFSET | 2, skip=4 + len(PACKET))),
            datagram(message(framed(PACKET), OFFSET | 2, skip=2047)),
            datagram(message(framed(PACKET), OFFSET | 2, skip=2048)),
            datagram(message(framed(PACKET), OFFSET | 2, skip=0xFFFF)),
            datagram(message(framed(PACKET), LENGTH | 2, length=0)),
            datagram(message(framed(PACKET), LENGTH | 2, length=8)),
            datagram(message(framed(PACKET), LENGTH | 2, length=11)),
            datagram(message(framed(PACKET), LENGTH | 2, length=12)),
            datagram(message(framed(PACKET), LENGTH | 2, length=11 + len(PACKET))),
            datagram(message(framed(PACKET), LENGTH | 2, length=13 + len(PACKET))),
            datagram(message(framed(PACKET), LENGTH | 2, length=0xFFFF)),
            datagram(message(framed(PACKET), LENGTH | OFFSET | 2, offset=b"123", length=20)),
            datagram(message(framed(PACKET[:-1]))),
            datagram(message(framed(PACKET[:19]))),
            datagram(message(framed(b"\x55" + PACKET[1:], PPP_IP))),
            datagram(message(framed(PACKET6, PPP_IP))),
            datagram(message(framed(PACKET, PPP_IP6))),
            datagram(message(framed(PACKET6[:-1]))),
        ],
    )
    def test_dropped(self, up: Up, packet: bytes) -> None:
        tunnel(up.rig)
        for frame in (outer(packet), outer(packet) + bytes(70)):
            assert up(frame).verdict == DROP
        assert up.rig.reasons() == {"DROP_MALFORMED": 2}
        assert up.rig.stats().keys() == {"heard_ns", "in_errors"}

    def test_noise(self, up: Up) -> None:
        """Nothing that anybody can send ends in anything but a verdict, or reaches another's counters."""
        chance = random.Random(1)
        tunnel(up.rig, ALL | layout.POLICE_UP, sequenced=True)
        tunnel(up.rig, slot=SLOT + 1, session_id=SESSION_ID + 1, address="10.0.0.3", network6="2001:db8:2::/48")
        sound = [
            outer(datagram(message(framed(packet), flags, offset=b"123", ns=1)))
            for packet in (PACKET, PACKET6)
            for flags in (2, LENGTH | SEQUENCE | OFFSET | 2)
        ]
        for _ in range(3000):
            frame = bytearray(chance.choice(sound))
            for _ in range(chance.randrange(1, 4)):
                frame[chance.randrange(42, len(frame))] = chance.randrange(256)
            frame = frame[: chance.choice((len(frame), chance.randrange(14, len(frame) + 1)))]
            assert up(bytes(frame)).verdict in (DROP, PASS, REDIRECT)
        assert not up.rig.stats(SLOT + 1)
        assert up.rig.reasons().keys() >= {"DROP_MALFORMED", "DROP_FILTER", "STACK_UP", "PUNT_CONTROL"}


class TestBlocks:
    """As with PPPoE: see test_blocks.py."""

    @pytest.mark.parametrize(("packet", "block"), [(PACKET, layout.IP4), (PACKET6, layout.IP6)])
    def test_of_a_protocol_that_is_not_open(self, up: Up, packet: bytes, block: int) -> None:
        tunnel(up.rig, ALL & ~block)
        assert up(data(packet)).verdict == DROP
        assert up.rig.reasons() == {"DROP_PROTOCOL": 1}

    def test_filter(self, up: Up) -> None:
        tunnel(up.rig)
        assert up(data(udp("10.0.0.9", REMOTE))).verdict == DROP
        assert up(data(udp6("2001:db8:9::1", REMOTE6))).verdict == DROP
        assert up.rig.reasons() == {"DROP_FILTER": 2}

    def test_police(self, up: Up) -> None:
        tunnel(up.rig, ALL | layout.POLICE_UP)
        up.rig.bucket(0, rate=1, burst=len(PACKET))
        assert [up(data(PACKET)).verdict for _ in range(2)] == [REDIRECT, DROP]

    def test_mss(self, up: Up) -> None:
        tunnel(up.rig)
        done = up(data(tcp(ADDRESS, REMOTE, options=b"\2\4\xff\xff")))
        assert done.data[14 + 42 : 14 + 44] == (MTU - 40).to_bytes(2, "big")
        assert tcp_sum(done.data[14:58]) == 0xFFFF

    def test_heard(self, up: Up) -> None:
        tunnel(up.rig)
        before = time.monotonic_ns()
        up(outer(datagram(message(b""))))
        assert before - 20_000_000 < up.rig.stats()["heard_ns"] <= time.monotonic_ns()


class TestSequence:
    def send(self, up: Up, ns: int) -> int:
        return up(outer(datagram(message(framed(PACKET), SEQUENCE | 2, ns=ns)))).verdict

    @pytest.mark.parametrize("first", [0, 0x7FF0, 0xFFF0])
    def test_in_order(self, up: Up, first: int) -> None:
        tunnel(up.rig, sequenced=True, expected=first)
        for ns in range(first, first + 40):
            assert self.send(up, ns & 0xFFFF) == REDIRECT
            assert numbers(up.rig) == (0, ns + 1 & 0xFFFF)

    @pytest.mark.parametrize("expected", [0, 30, 100, 0x8000, 0xFFFF])
    def test_late(self, up: Up, expected: int) -> None:
        tunnel(up.rig, sequenced=True, expected=expected)
        for behind in (1, 64):
            assert self.send(up, expected - behind & 0xFFFF) == REDIRECT
            assert numbers(up.rig) == (0, expected)
        assert up.rig.reasons() == {"STACK_UP": 2}

    @pytest.mark.parametrize("behind", [65, 1000, 0x7FFF])
    def test_from_far_behind(self, up: Up, behind: int) -> None:
        """Dropped, and the next one is in order: the peer may have begun anew."""
        tunnel(up.rig, sequenced=True, expected=100)
        first = 100 - behind & 0xFFFF
        assert self.send(up, first) == DROP
        assert numbers(up.rig) == (0, first + 1 & 0xFFFF)
        assert self.send(up, first + 1 & 0xFFFF) == REDIRECT
        assert up.rig.reasons() == {"DROP_LATE": 1, "STACK_UP": 1}
        assert up.rig.stats()["in_errors"] == 1

    @pytest.mark.parametrize("expected", [0, 100, 0xFFF0])
    def test_lost(self, up: Up, expected: int) -> None:
        for ahead in (1, 100, 0x7FFF):
            tunnel(up.rig, sequenced=True, expected=expected)
            assert self.send(up, expected + ahead & 0xFFFF) == REDIRECT
            assert numbers(up.rig) == (0, expected + ahead + 1 & 0xFFFF)

    def test_whatever_it_holds(self, up: Up) -> None:
        """Control takes a number too, also while npppyd has the session."""
        control = HDLC + ppp(0x8021, b"\1\1\0\4")
        for blocks in (ALL, ALL | layout.USER):
            tunnel(up.rig, blocks, sequenced=True, expected=5)
            assert up(outer(datagram(message(control, SEQUENCE | 2, ns=5)))).verdict == PASS
            assert numbers(up.rig) == (0, 6)
            assert up(outer(datagram(message(control, SEQUENCE | 2, ns=0xFF00)))).verdict == DROP

    def test_without(self, up: Up) -> None:
        """Of either side: nobody has said which number is the first."""
        tunnel(up.rig, expected=1000)
        assert self.send(up, 0) == REDIRECT
        assert numbers(up.rig) == (0, 1000)
        tunnel(up.rig, sequenced=True, expected=1000)
        assert up(data(PACKET)).verdict == REDIRECT
        assert numbers(up.rig) == (0, 1000)

    def test_of_the_slot(self, up: Up) -> None:
        tunnel(up.rig, sequenced=True, slot=0)
        self.send(up, 0)
        assert [numbers(up.rig, slot)[1] for slot in range(16)] == [1] + [0] * 15


def lcp(packet: bytes, **form: int) -> bytes:
    return outer(datagram(message(HDLC + ppp(LCP, packet), LENGTH | 2, **form)))


class TestEcho:
    @pytest.fixture(autouse=True)
    def _open(self, up: Up) -> None:
        up.rig.config(echo_interval_ns=0)
        tunnel(up.rig)

    @pytest.mark.parametrize("extra", [b"", b"1", bytes(range(200)) * 7])
    @pytest.mark.parametrize("six", [False, True])
    def test_answered(self, up: Up, six: bool, extra: bytes) -> None:
        """As what npppyd sends is: on npx0, for pipex_core, which gives it its number."""
        tunnel(up.rig, six=six)
        for flags in (2, LENGTH | SEQUENCE | OFFSET | 2):
            up.rig.maps["stats"].put(U32.pack(SLOT), bytes(layout.STATS.size))
            form = message(HDLC + ppp(LCP, echo(9, PEER_MAGIC, extra)), flags, offset=b"1")
            done = up(outer(datagram(form, six=six)))
            frame = ppp(LCP, echo(10, OUR_MAGIC, extra))
            expected = ethernet(NPX1, NPX0, layout.FRAME_TYPE, layout.inject(SLOT, GENERATION, frame))
            assert (done.verdict, done.data) == (REDIRECT, expected)
            assert up.rig.stats().keys() == {"heard_ns", "echo_ns"}
        assert up.rig.reasons() == {"ECHO": 2}

    def test_numbered(self, up: Up) -> None:
        """Then npx0 has to send it by the queue of the session, which it may not be in yet."""
        tunnel(up.rig, sequenced=True)
        frame = layout.inject(SLOT, GENERATION, ppp(LCP, echo(10, OUR_MAGIC)))
        frame = frame[:10] + (1).to_bytes(2, sys.byteorder) + frame[12:]
        assert up(lcp(echo(9, PEER_MAGIC))).data == ethernet(NPX1, NPX0, layout.FRAME_TYPE, frame)

    def test_padding_stays_behind(self, up: Up) -> None:
        done = up(lcp(echo(9, PEER_MAGIC)) + bytes(20))
        expected = layout.inject(SLOT, GENERATION, ppp(LCP, echo(10, OUR_MAGIC)))
        assert done.data == ethernet(NPX1, NPX0, layout.FRAME_TYPE, expected) + bytes(20)

    def test_noted(self, up: Up) -> None:
        assert up(lcp(echo(10, PEER_MAGIC))).verdict == DROP
        assert up.rig.reasons() == {"ECHO": 1}

    def test_rate(self, up: Up) -> None:
        up.rig.config(echo_interval_ns=4 * 10**9)
        up.rig.maps["stats"].put(U32.pack(SLOT), bytes(layout.STATS.size))
        now = time.monotonic_ns()
        stamp = bytearray(layout.STATS.size)
        at = layout.STATS.offsets["echo_ns"]
        stamp[at : at + 8] = now.to_bytes(8, "little")
        up.rig.maps["stats"].put(U32.pack(SLOT), bytes(stamp))
        assert up(lcp(echo(9, PEER_MAGIC))).verdict == DROP
        assert up.rig.reasons() == {"DROP_POLICE": 1}

    @pytest.mark.parametrize(
        "packet",
        [
            b"",
            echo(9, PEER_MAGIC)[:7],
            echo(9, PEER_MAGIC, length=9),
            echo(9, PEER_MAGIC, b"x", length=8),
            echo(9, OUR_MAGIC),
            echo(10, PEER_MAGIC + 1),
            echo(1, PEER_MAGIC),
            echo(9, PEER_MAGIC, bytes(MTU - 7)),
        ],
    )
    def test_to_npppyd(self, up: Up, packet: bytes) -> None:
        up.passes(lcp(packet))
        assert up.rig.reasons() == {"PUNT_CONTROL": 1}

    def test_while_lcp_is_closed(self, up: Up) -> None:
        tunnel(up.rig, ALL & ~layout.ECHO)
        up.passes(lcp(echo(9, PEER_MAGIC)))

    def test_npx0_takes_none(self, up: Up) -> None:
        up.rig.config(npx0=LO + 1, echo_interval_ns=0)
        up.passes(lcp(echo(9, PEER_MAGIC)))
        up.rig.config(npx0=LO, echo_interval_ns=0)
        assert up(lcp(echo(9, PEER_MAGIC))).verdict == REDIRECT

    def test_no_shared_interface(self, up: Up) -> None:
        tunnel(up.rig, shared=99)
        up.passes(lcp(echo(9, PEER_MAGIC)))


class TestMirror:
    @pytest.fixture
    def ring(self, loaded: Object) -> Iterator[Ring]:
        ring = Ring(loaded.maps["events"])
        ring.consume(lambda _: None)
        yield ring
        ring.close()

    @pytest.mark.parametrize("identifiers", [(), (7, 8)])
    @pytest.mark.parametrize("six", [False, True])
    def test_whole(self, nic: Up, ring: Ring, six: bool, identifiers: tuple[int, ...]) -> None:
        """Outer headers too, whatever becomes of it; but nothing that is another's."""
        tunnel(nic.rig, ALL | layout.MIRROR, six=six)
        frames = [
            outer(datagram(message(payload, LENGTH | 2), six=six), tags(*identifiers))
            for payload in (framed(PACKET), framed(udp("10.9.9.9", REMOTE)), HDLC + ppp(0x8021, b"\1\1\0\4"), b"")
        ]
        for frame in frames:
            nic(frame)
        nic(outer(datagram(message(framed(PACKET)), six=six, ports=(LAC_PORT + 1, PORT))))
        found: list[bytes] = []
        ring.consume(found.append)
        events = [layout.fields(layout.EVENT, record[: layout.EVENT.size]) for record in found]
        assert {(event["ppp_id"], event["way"]) for event in events} == {(PPP_ID, layout.UP)}
        assert [event["length"] for event in events] == [len(frame) for frame in frames]
        for record, frame in zip(found, frames, strict=True):
            assert record[layout.EVENT.size :][: len(frame)] == frame
