"""Data of PPTP: what comes from the peer."""

from __future__ import annotations

import random
import sys
import time

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import U32
from npppy.pipex.ebpf.libbpf import Run
from tests.unit.ippackets import ip, tcp, tcp_sum, udp, words

from .call import (
    ACKNOWLEDGMENT,
    DATA,
    KEY,
    NICS,
    PAC,
    PNS,
    PPP,
    SEQUENCE,
    call,
    data,
    gre,
    numbers,
    stamp,
)
from .frames import LCP, PPP_IP, PPP_IP6, echo, ethernet, ppp, udp6
from .rig import (
    ADDRESS,
    ADDRESS6,
    ALL,
    DROP,
    GENERATION,
    MTU,
    NPX0,
    NPX1,
    OUR_MAGIC,
    PASS,
    PEER_MAGIC,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SESSION_ID,
    SLOT,
    Rig,
    tags,
    to_stack,
)
from .tunnel import HDLC, framed, outer

pytestmark = pytest.mark.root

PACKET = udp(ADDRESS, REMOTE, b"data")
PACKET6 = udp6(ADDRESS6, REMOTE6, b"data")
ALL_FLAGS = DATA | ACKNOWLEDGMENT
#: An acknowledgment alone.
BARE = KEY | ACKNOWLEDGMENT
MASK = 0xFFFFFFFF
SECOND = 10**9


class Up:
    """A program that takes packets in."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig = rig
        self._program = rig.programs[name]

    def __call__(self, frame: bytes) -> Run:
        return self._program.run(frame)

    def passes(self, frame: bytes) -> None:
        """As it is."""
        done = self(frame)
        assert (done.verdict, done.data) == (PASS, frame)


@pytest.fixture(params=NICS)
def up(rig: Rig, request: pytest.FixtureRequest) -> Up:
    # Acknowledged just now: so few packets bring no acknowledgment.
    stamp(rig, ack_ns=time.monotonic_ns())
    return Up(rig, request.param)


def counted(up: Up) -> dict[str, int]:
    """What is not a time that a test has set."""
    return {name: value for name, value in up.rig.stats().items() if name not in ("ack_ns", "heard_ns", "active_ns")}


def marked(packet: bytes, slot: int = SLOT, generation: int = GENERATION) -> bytes:
    """To the stack, with an acknowledgment for the peer to follow."""
    source = b"\6" + slot.to_bytes(3, "big") + (generation & 0xFFFF).to_bytes(2, "big")
    return NPX0 + source + to_stack(packet)[12:]


class TestForms:
    @pytest.mark.parametrize("flags", [DATA, ALL_FLAGS])
    @pytest.mark.parametrize("hdlc", [HDLC, b""])
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_header(self, up: Up, flags: int, hdlc: bytes, packet: bytes) -> None:
        """Each with the usual Protocol field, and with one of one octet."""
        call(up.rig)
        number = PPP_IP if packet is PACKET else PPP_IP6
        for at, protocol in enumerate((number.to_bytes(2, "big"), bytes((number,)))):
            done = up(outer(gre(hdlc + protocol + packet, flags, number=at)))
            assert (done.verdict, done.data) == (REDIRECT, to_stack(packet))
        assert up.rig.counted() == {"STACK_UP": (2, 2 * len(packet))}
        assert counted(up) == {"in_packets": 2, "in_bytes": 2 * len(packet)}
        assert numbers(up.rig) == (0, 2, 0, 0)

    @pytest.mark.parametrize("identifiers", [(), (7,), (7, 8)])
    def test_tags(self, up: Up, identifiers: tuple[int, ...]) -> None:
        """Whichever, since the address is ours."""
        call(up.rig)
        assert up(outer(gre(framed(PACKET)), tags(*identifiers))).data == to_stack(PACKET)

    @pytest.mark.parametrize("padding", [1, 46])
    def test_padding(self, up: Up, padding: int) -> None:
        """Behind the IP packet, behind GRE's payload, and behind the packet in it."""
        call(up.rig)
        size = len(framed(PACKET))
        for number, frame in enumerate(
            (
                data(PACKET) + bytes(padding),
                outer(gre(framed(PACKET) + bytes(padding), length=size, number=1)),
                outer(gre(framed(PACKET) + bytes(padding), number=2)),
            )
        ):
            done = up(frame)
            assert (number, done.verdict, done.data) == (number, REDIRECT, to_stack(PACKET) + bytes(padding))
        assert up.rig.stats()["in_bytes"] == 3 * len(PACKET)

    def test_whole_mtu(self, up: Up) -> None:
        call(up.rig)
        packet = udp(ADDRESS, REMOTE, bytes(1500 - 28))
        assert up(data(packet, ack=0)).data == to_stack(packet)

    def test_of_several_behind_one_address(self, up: Up) -> None:
        """NAT: the call id alone says whose it is."""
        call(up.rig)
        call(up.rig, slot=SLOT + 1, session_id=SESSION_ID + 1, address="10.0.0.3", network6="2001:db8:2::/48")
        assert up(data(PACKET)).data == to_stack(PACKET)
        other = udp("10.0.0.3", REMOTE)
        assert up(data(other, 5, call_id=SESSION_ID + 1)).verdict == REDIRECT
        assert [up.rig.stats(slot)["in_packets"] for slot in (SLOT, SLOT + 1)] == [1, 1]
        assert [numbers(up.rig, slot)[1] for slot in (SLOT, SLOT + 1)] == [1, 6]
        # Each only from its own address.
        assert up(data(other, 1)).verdict == DROP
        assert up.rig.reasons()["DROP_FILTER"] == 1


class TestNotOurs:
    @pytest.mark.parametrize(
        "packet",
        [
            # Other forms of GRE; each bit that is to be 0, and those that are to be set.
            *(gre(framed(PACKET), DATA ^ 1 << bit) for bit in range(16) if 1 << bit not in (SEQUENCE, ACKNOWLEDGMENT)),
            gre(framed(PACKET), protocol=0x0800),
            gre(framed(PACKET), protocol=PPP + 1),
            gre(framed(PACKET), 0),
            ip(PNS, PAC, b"", protocol=47),
            ip(PNS, PAC, b"\x30\1\x88\x0b\0\0\x12", protocol=47),
            # Fragments, options, other protocols, and a wrong header checksum.
            ip(PNS, PAC, gre(framed(PACKET))[20:], protocol=47, flags=0x2000),
            ip(PNS, PAC, gre(framed(PACKET))[20:], protocol=47, flags=0x00B9),
            gre(framed(PACKET), options=b"\1\1\1\0"),
            ip(PNS, PAC, gre(framed(PACKET))[20:], protocol=46),
            gre(framed(PACKET))[:10] + b"\xde\xad" + gre(framed(PACKET))[12:],
            # Another's call.
            gre(framed(PACKET), call_id=SESSION_ID + 1),
            gre(framed(PACKET), call_id=0x3412),
        ],
    )
    @pytest.mark.parametrize("identifiers", [(), (7, 8)])
    def test_passes(self, up: Up, packet: bytes, identifiers: tuple[int, ...]) -> None:
        """Uncounted: on a NIC there is much else."""
        call(up.rig)
        before = up.rig.stats()
        up.passes(outer(packet, tags(*identifiers)))
        assert not up.rig.counted()
        assert up.rig.stats() == before
        assert numbers(up.rig) == (0, 0, 0, 0)

    def test_cut_off(self, up: Up) -> None:
        """At whichever octet: no verdict but one that it may have, and nothing goes up."""
        call(up.rig)
        frame = data(PACKET, ack=1)
        for size in range(14, len(frame)):
            assert up(frame[:size]).verdict in (PASS, DROP)
        assert "STACK_UP" not in up.rig.counted()

    @pytest.mark.parametrize("generation", [0, GENERATION - 1])
    def test_reused_slot(self, up: Up, generation: int) -> None:
        call(up.rig, generation=generation)
        up.passes(data(PACKET))
        assert up.rig.reasons() == {"PUNT_STALE": 1}

    def test_keys_of_others(self, rig: Rig) -> None:
        """A key of PPPoE, or of L2TP in a tunnel 0, is none of PPTP."""
        rig.session()
        rig.maps["sessions"].put(layout.l2tp_key(0, SESSION_ID), layout.REF.pack(SLOT, GENERATION))
        Up(rig, "pipex_access").passes(data(PACKET))
        assert not rig.counted()


class TestPeer:
    @pytest.mark.parametrize("bit", range(8))
    def test_another(self, up: Up, bit: int) -> None:
        """Whoever it is, wherever it goes to: each octet of the addresses counts."""
        call(up.rig)
        for at in range(12, 20):
            changed = bytearray(gre(framed(PACKET), ALL_FLAGS, ack=7))
            changed[at] ^= 1 << bit
            changed[10:12] = b"\0\0"
            changed[10:12] = (0xFFFF ^ words(bytes(changed[:20]))).to_bytes(2, "big")
            assert up(outer(bytes(changed))).verdict == DROP
        assert up.rig.reasons() == {"DROP_FILTER": 8}
        assert counted(up) == {"in_errors": 8}
        assert numbers(up.rig) == (0, 0, 0, 0)


class TestToNpppyd:
    @pytest.mark.parametrize("protocol", [0x8021, 0x8057, 0xC023, 0xC223, LCP, 0x80FD, 0x4021])
    def test_other_protocols(self, up: Up, protocol: int) -> None:
        call(up.rig)
        frame = outer(gre(HDLC + ppp(protocol, b"\1\1\0\4"), ALL_FLAGS, number=9))
        up.passes(frame)
        assert up.rig.counted() == {"PUNT_CONTROL": (1, len(frame))}
        assert numbers(up.rig) == (0, 10, 0, 0)

    @pytest.mark.parametrize(
        ("source", "destination"), [("fe80::1", "ff02::2"), (ADDRESS6, "fe80::2"), (ADDRESS6, "ff02::1:2")]
    )
    def test_of_the_link(self, up: Up, source: str, destination: str) -> None:
        call(up.rig)
        up.passes(data(udp6(source, destination)))
        assert up.rig.reasons() == {"PUNT_CONTROL": 1}

    @pytest.mark.parametrize("payload", [framed(PACKET), framed(PACKET6), HDLC + ppp(LCP, bytes(8)), b"\xff"])
    def test_user(self, up: Up, payload: bytes) -> None:
        """Its numbers count here nevertheless."""
        call(up.rig, ALL | layout.USER, out=5)
        frame = outer(gre(payload, ALL_FLAGS, number=7, ack=4))
        up.passes(frame)
        assert up.rig.counted() == {"USER_UP": (1, len(frame))}
        assert numbers(up.rig) == (5, 8, 0, 5)


class TestMalformed:
    @pytest.mark.parametrize(
        "packet",
        [
            gre(b"\xff"),
            gre(b"\xff\x03"),
            gre(b"\xff\x03\0"),
            gre(b"\xff\x02\0\x21" + PACKET),
            gre(b"\0"),
            gre(framed(PACKET), length=len(PACKET) + 3),
            gre(framed(PACKET), length=len(PACKET) + 5),
            gre(framed(PACKET), length=0xFFFF),
            gre(framed(PACKET), length=3),
            gre(framed(PACKET[:-1])),
            gre(framed(PACKET[:19])),
            gre(framed(b"\x55" + PACKET[1:], PPP_IP)),
            gre(framed(PACKET6, PPP_IP)),
            gre(framed(PACKET, PPP_IP6)),
            # A payload without a number.
            gre(framed(PACKET), KEY),
            gre(framed(PACKET), BARE),
            # Cut off within the numbers.
            ip(PNS, PAC, gre(b"", DATA)[20:29], protocol=47),
            ip(PNS, PAC, gre(b"", BARE)[20:31], protocol=47),
        ],
    )
    def test_dropped(self, up: Up, packet: bytes) -> None:
        call(up.rig)
        for frame in (outer(packet), outer(packet) + bytes(70)):
            assert up(frame).verdict == DROP
        assert up.rig.reasons() == {"DROP_MALFORMED": 2}
        assert counted(up) == {"in_errors": 2}

    def test_noise(self, up: Up) -> None:
        """Nothing that anybody can send ends in anything but a verdict, or reaches another's counters."""
        chance = random.Random(1)
        call(up.rig, ALL | layout.POLICE_UP)
        call(up.rig, slot=SLOT + 1, session_id=SESSION_ID + 1, address="10.0.0.3", network6="2001:db8:2::/48")
        sound = [data(packet, 1, ack) for packet in (PACKET, PACKET6) for ack in (None, 1)]
        for _ in range(3000):
            frame = bytearray(chance.choice(sound))
            for _ in range(chance.randrange(1, 4)):
                frame[chance.randrange(42, len(frame))] = chance.randrange(256)
            frame = frame[: chance.choice((len(frame), chance.randrange(14, len(frame) + 1)))]
            assert up(bytes(frame)).verdict in (DROP, PASS, REDIRECT)
        assert not up.rig.stats(SLOT + 1)
        assert up.rig.reasons().keys() >= {"DROP_MALFORMED", "DROP_FILTER", "DROP_LATE", "STACK_UP", "PUNT_CONTROL"}


class TestBlocks:
    """As with PPPoE: see test_blocks.py."""

    @pytest.mark.parametrize(("packet", "block"), [(PACKET, layout.IP4), (PACKET6, layout.IP6)])
    def test_of_a_protocol_that_is_not_open(self, up: Up, packet: bytes, block: int) -> None:
        call(up.rig, ALL & ~block)
        assert up(data(packet)).verdict == DROP
        assert up.rig.reasons() == {"DROP_PROTOCOL": 1}

    def test_filter(self, up: Up) -> None:
        call(up.rig)
        assert up(data(udp("10.0.0.9", REMOTE))).verdict == DROP
        assert up(data(udp6("2001:db8:9::1", REMOTE6), 1)).verdict == DROP
        assert up.rig.reasons() == {"DROP_FILTER": 2}

    def test_police(self, up: Up) -> None:
        call(up.rig, ALL | layout.POLICE_UP)
        up.rig.bucket(0, rate=1, burst=len(PACKET))
        assert [up(data(PACKET, number)).verdict for number in range(2)] == [REDIRECT, DROP]

    def test_mss(self, up: Up) -> None:
        call(up.rig)
        done = up(data(tcp(ADDRESS, REMOTE, options=b"\2\4\xff\xff")))
        assert done.data[14 + 42 : 14 + 44] == (MTU - 40).to_bytes(2, "big")
        assert tcp_sum(done.data[14:58]) == 0xFFFF


class TestSequence:
    @pytest.mark.parametrize("first", [0, 0x7FFFFFF0, 0xFFFFFFF0])
    def test_in_order(self, up: Up, first: int) -> None:
        call(up.rig, expected=first)
        for number in range(first, first + 40):
            assert up(data(PACKET, number & MASK)).verdict == REDIRECT
            assert numbers(up.rig)[1] == number + 1 & MASK

    @pytest.mark.parametrize("protocol", [PPP_IP, PPP_IP6])
    @pytest.mark.parametrize("expected", [0, 30, 100, 0x80000000, MASK])
    def test_late(self, up: Up, expected: int, protocol: int) -> None:
        """It does not matter to IP."""
        call(up.rig, expected=expected)
        packet = PACKET if protocol == PPP_IP else PACKET6
        for behind in (1, 64):
            assert up(data(packet, expected - behind & MASK)).verdict == REDIRECT
            assert numbers(up.rig) == (0, expected, expected, 0)
        assert up.rig.reasons() == {"STACK_UP": 2}

    @pytest.mark.parametrize("protocol", [LCP, 0x8021, 0x80FD, 0x4021])
    @pytest.mark.parametrize("behind", [1, 64])
    def test_late_control(self, up: Up, behind: int, protocol: int) -> None:
        """It would be out of order."""
        call(up.rig, expected=5)
        frame = HDLC + ppp(protocol, echo(9, PEER_MAGIC))
        assert up(outer(gre(frame, number=5 - behind & MASK))).verdict == DROP
        assert up.rig.reasons() == {"DROP_LATE": 1}
        assert counted(up) == {"in_errors": 1}
        assert numbers(up.rig) == (0, 5, 5, 0)
        assert up(outer(gre(frame, number=5))).verdict != DROP

    @pytest.mark.parametrize("behind", [65, 1000, 0x7FFFFFFF])
    def test_from_far_behind(self, up: Up, behind: int) -> None:
        """Dropped, and the next one is in order: the peer may have begun anew."""
        call(up.rig, expected=100)
        first = 100 - behind & MASK
        assert up(data(PACKET, first)).verdict == DROP
        assert numbers(up.rig)[1] == first + 1 & MASK
        assert up(data(PACKET, first + 1 & MASK)).verdict == REDIRECT
        assert up.rig.reasons() == {"DROP_LATE": 1, "STACK_UP": 1}
        assert up.rig.stats()["in_errors"] == 1

    @pytest.mark.parametrize("expected", [0, 100, 0xFFFFFFF0])
    @pytest.mark.parametrize("ahead", [1, 5000, 0x7FFFFFFF])
    def test_lost(self, up: Up, expected: int, ahead: int) -> None:
        call(up.rig, expected=expected)
        assert up(data(PACKET, expected + ahead & MASK)).verdict == REDIRECT
        assert numbers(up.rig)[1] == expected + ahead + 1 & MASK

    def test_of_the_slot(self, up: Up) -> None:
        call(up.rig, slot=0)
        up(data(PACKET))
        assert [numbers(up.rig, slot)[1] for slot in range(16)] == [1] + [0] * 15


class TestAcknowledged:
    """What the peer acknowledges."""

    @pytest.mark.parametrize("start", [0, 0x7FFFFFF8, 0xFFFFFFF8])
    @pytest.mark.parametrize(
        ("ack", "expected"), [(-1, 0), (0, 1), (5, 6), (9, 10), (10, 0), (100, 0), (-2, 0), (1 << 31, 0)]
    )
    def test_alone_and_riding(self, up: Up, start: int, ack: int, expected: int) -> None:
        """One that makes no sense is passed over."""
        for frame in (outer(gre(b"", BARE, ack=start + ack & MASK)), data(PACKET, ack=start + ack & MASK)):
            call(up.rig, out=start + 10 & MASK, peer_acked=start)
            up(frame)
            assert numbers(up.rig)[3] == start + expected & MASK
        assert up.rig.reasons() == {"ACK_UP": 1, "STACK_UP": 1}
        # No window, so nothing of it is noted.
        assert "window_ns" not in up.rig.stats()

    @pytest.mark.parametrize("padding", [0, 14])
    @pytest.mark.parametrize("blocks", [ALL, ALL | layout.USER])
    def test_alone(self, up: Up, blocks: int, padding: int) -> None:
        """It ends here, and says that the peer lives."""
        call(up.rig, blocks, out=1)
        stamp(up.rig)
        assert up(outer(gre(b"", BARE)) + bytes(padding)).verdict == DROP
        assert up.rig.counted() == {"ACK_UP": (1, 46 + padding)}
        assert up.rig.stats().keys() == {"heard_ns"}
        assert numbers(up.rig) == (1, 0, 0, 1)

    def test_a_number_and_nothing_else(self, up: Up) -> None:
        call(up.rig)
        assert up(outer(gre(b"", number=3))).verdict == DROP
        assert numbers(up.rig)[1] == 4
        assert counted(up) == {}

    def test_window(self, up: Up) -> None:
        call(up.rig, out=1, window=3)
        before = time.monotonic_ns()
        up(outer(gre(b"", BARE)))
        noted = up.rig.stats()["window_ns"]
        assert before - 20_000_000 < noted <= time.monotonic_ns()
        stamp(up.rig)
        up(outer(gre(b"", BARE)))
        assert "window_ns" not in up.rig.stats()


class TestAcknowledging:
    """What is to be acknowledged in time."""

    @pytest.mark.parametrize("start", [0, 0xFFFFFFF8])
    def test_sixteen(self, up: Up, start: int) -> None:
        """One of so many brings an acknowledgment with it."""
        call(up.rig, expected=start)
        found = []
        for number in range(start, start + 64):
            done = up(data(PACKET, number & MASK))
            assert done.verdict == REDIRECT
            assert done.data in (to_stack(PACKET), marked(PACKET))
            found.append(done.data == marked(PACKET))
        assert found == ([False] * 15 + [True]) * 4
        assert numbers(up.rig)[1:3] == (start + 64 & MASK,) * 2

    @pytest.mark.parametrize(("since", "due"), [(SECOND, True), (50_000_000, False), (-SECOND, False)])
    def test_a_quarter_of_a_second(self, up: Up, since: int, due: bool) -> None:
        call(up.rig)
        stamp(up.rig, ack_ns=time.monotonic_ns() - since)
        assert up(data(PACKET)).data == (marked(PACKET) if due else to_stack(PACKET))
        assert numbers(up.rig)[1:3] == (1, 1 if due else 0)
        assert up(data(PACKET, 1)).data == to_stack(PACKET)

    def test_nothing_new(self, up: Up) -> None:
        """Something late, say."""
        call(up.rig, expected=10)
        stamp(up.rig)
        assert up(data(PACKET, 5)).data == to_stack(PACKET)

    @pytest.mark.parametrize("rest", [0, 0x123456, 0xFFFFFF])
    def test_slot_and_generation(self, up: Up, rest: int) -> None:
        generation = rest << 16 & MASK | 0xABCD
        call(up.rig, slot=15, generation=generation)
        up.rig.maps["sessions"].put(layout.pptp_key(SESSION_ID), layout.REF.pack(15, generation))
        up.rig.route6("2001:db8:1:100::/56", 15, generation)
        assert up(data(PACKET)).data == marked(PACKET, 15, 0xABCD)

    def test_dropped(self, up: Up) -> None:
        """What does not go on brings nothing with it; the next one does."""
        call(up.rig)
        stamp(up.rig)
        assert up(data(udp("10.0.0.9", REMOTE))).verdict == DROP
        assert numbers(up.rig)[1:3] == (1, 0)
        assert up(data(PACKET, 1)).data == marked(PACKET)


def lcp(packet: bytes, **form: int) -> bytes:
    return outer(gre(HDLC + ppp(LCP, packet), **form))


class TestEcho:
    @pytest.fixture(autouse=True)
    def _open(self, up: Up) -> None:
        up.rig.config(echo_interval_ns=0)
        call(up.rig)

    @pytest.mark.parametrize("extra", [b"", b"1", bytes(range(200)) * 7])
    def test_answered(self, up: Up, extra: bytes) -> None:
        """As what npppyd sends is: on npx0, by the queue of its session, for pipex_core, which gives it its number."""
        for number in range(2):
            up.rig.maps["stats"].put(U32.pack(SLOT), bytes(layout.STATS.size))
            done = up(lcp(echo(9, PEER_MAGIC, extra), flags=ALL_FLAGS, number=number))
            body = layout.inject(SLOT, GENERATION, ppp(LCP, echo(10, OUR_MAGIC, extra)))
            body = body[:10] + (1).to_bytes(2, sys.byteorder) + body[12:]
            assert (done.verdict, done.data) == (REDIRECT, ethernet(NPX1, NPX0, layout.FRAME_TYPE, body))
            assert up.rig.stats().keys() == {"heard_ns", "echo_ns"}
        assert up.rig.reasons() == {"ECHO": 2}

    def test_noted(self, up: Up) -> None:
        """Its frame goes to have it acknowledged: otherwise npppyd would have to, for each that it has asked."""
        done = up(lcp(echo(10, PEER_MAGIC)))
        body = layout.inject(SLOT, GENERATION, b"")
        body = body[:10] + (1).to_bytes(2, sys.byteorder)
        assert done.verdict == REDIRECT
        assert done.data.startswith(ethernet(NPX1, NPX0, layout.FRAME_TYPE, body))
        assert up.rig.reasons() == {"ECHO": 1}

    def test_noted_without_a_way(self, up: Up) -> None:
        up.rig.config(echo_interval_ns=0, npx0=4711)
        assert up(lcp(echo(10, PEER_MAGIC))).verdict == DROP
        assert up.rig.reasons() == {"ECHO": 1}

    @pytest.mark.parametrize("packet", [b"", echo(9, OUR_MAGIC), echo(10, PEER_MAGIC + 1), echo(1, PEER_MAGIC)])
    def test_to_npppyd(self, up: Up, packet: bytes) -> None:
        up.passes(lcp(packet))
        assert up.rig.reasons() == {"PUNT_CONTROL": 1}
