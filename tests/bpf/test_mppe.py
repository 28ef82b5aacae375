"""MPPE: the programs do with packets what npppy.ppp.mppe does, in whatever they come and leave."""

from __future__ import annotations

import functools
import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.keys import Keys
from npppy.pipex.ebpf.layout import U32
from npppy.pipex.ebpf.libbpf import Run
from npppy.ppp.mppe import STRENGTHS, Mppe, Place, Receiver, Sender
from tests.unit.ippackets import ip, udp

from . import call, tunnel
from .frames import LCP, PPP_IP, PPP_IP6, ethernet, ip6, padded, ppp, udp6
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
    OURS,
    PASS,
    PEER,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SLOT,
    Rig,
    from_stack,
    session_frame,
    to_stack,
)

pytestmark = pytest.mark.root

MASTER: Final = bytes(range(16)), bytes(range(100, 116))
BLOCKS: Final = ALL | layout.MPPE
PROTOCOL: Final = 0x00FD
COUNTS: Final = 0x1000
#: An emulated processor gets so much less to do.
PART: Final = 8 if os.environ.get("NPPPY_GUEST") == "tcg" else 1

PACKET = udp(ADDRESS, REMOTE, b"data")
PACKET6 = udp6(ADDRESS6, REMOTE6, b"data")
#: Of which the frame is long enough for Ethernet.
LONG = ip(ADDRESS, REMOTE, bytes(40))
BACK = udp(REMOTE, ADDRESS, b"data")
BACK6 = udp6(REMOTE6, ADDRESS6, b"data")


class Carrier(NamedTuple):
    """How a session is made, and what is between its frames and its PPP packets."""

    make: Callable[[Rig, int], None]
    #: A frame of the peer, for a PPP packet and the count of those that were.
    wrap: Callable[[bytes, int], bytes]
    #: The PPP packet, of a frame for the peer.
    unwrap: Callable[[Run], bytes]


def _pppoe(done: Run) -> bytes:
    assert done.verdict == REDIRECT
    assert done.data[:14] == PEER + OURS + b"\x88\x64"
    (length,) = struct.unpack_from(">H", done.data, 18)
    assert len(done.data) == max(20 + length, 60)
    return done.data[20 : 20 + length]


def _stacked(done: Run) -> bytes:
    assert done.verdict == PASS
    return done.data[12:]


CARRIERS: Final = {
    "PPPoE": Carrier(
        lambda rig, blocks: rig.session(blocks), lambda packet, _: padded(session_frame(packet)), _pppoe
    ),
    "L2TP": Carrier(
        lambda rig, blocks: tunnel.tunnel(rig, blocks, sequenced=True),
        lambda packet, number: tunnel.outer(
            tunnel.datagram(tunnel.message(tunnel.HDLC + packet, tunnel.LENGTH | tunnel.SEQUENCE | 2, ns=number))
        ),
        lambda done: tunnel.checked(_stacked(done), six=False, checksum=False, sequenced=True)[1],
    ),
    "PPTP": Carrier(
        lambda rig, blocks: call.call(rig, blocks),
        lambda packet, number: tunnel.outer(call.gre(tunnel.HDLC + packet, number=number)),
        lambda done: call.checked(_stacked(done))[2],
    ),
}


class Budget:
    """More than the programs do, and nothing that goes round."""

    def take(self, now: float, changes: int) -> bool:
        return changes < 500


class Session:
    """One that encrypts, the peer at its other end, and in Python the same again."""

    def __init__(
        self, rig: Rig, carrier: str = "PPPoE", bits: int = 128, blocks: int = BLOCKS, count: int = 0
    ) -> None:
        self.rig = rig
        self.carrier = CARRIERS[carrier]
        self.carrier.make(rig, blocks)
        strength = STRENGTHS[bits]
        up, down = MASTER
        budget: Any = Budget()
        self.peer = Sender(strength, up, stateful=False)
        self.receiver = Receiver(strength, up, stateful=False, budget=budget)
        self.sender = Sender(strength, down, stateful=False)
        left = Receiver(strength, up, stateful=False, budget=budget)
        ours = Mppe(Sender(strength, down, stateful=False), left)
        self.peer.count = self.sender.count = ours.send.count = count
        self.receiver.place = left.place = left.place._replace(number=count)
        self.keys = Keys(rig.maps["mppe"], SLOT, GENERATION, ours)
        self.keys.put()
        self.keys.lend(lambda frame: None)
        #: What the programs leave to npppyd.
        self.left = left
        self.number = 0

    def frame(self, packet: bytes) -> bytes:
        """Of the peer, with a PPP packet."""
        self.number += 1
        return self.carrier.wrap(packet, self.number - 1)

    def up(self, packet: bytes) -> Run:
        return self.rig.up(self.frame(packet))

    def passes(self, packet: bytes) -> None:
        """A PPP packet of the peer is left to npppyd as it is, and no key has been changed."""
        before, frame = self.keys.read(), self.frame(packet)
        done = self.rig.up(frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert self.keys.read() == before

    def drops(self, packet: bytes) -> None:
        before = self.keys.read()
        assert self.up(packet).verdict == DROP
        assert self.keys.read() == before

    def arrives(self, packet: bytes, plain: bytes) -> None:
        """It may bring padding with it, and PPTP a mark."""
        done = self.up(packet)
        expected = to_stack(plain)
        assert done.verdict == REDIRECT
        assert (done.data[:6], done.data[12 : len(expected)]) == (expected[:6], expected[12:])

    def down(self, frame: bytes) -> bytes:
        """The PPP packet that is sent, of a frame of npx0's."""
        return self.carrier.unwrap(self.rig.down(frame))

    def failed(self, ago: float, quiet: float = 0) -> None:
        """Packets have gone to npppyd, so many seconds ago, and the last that could be decrypted has come before."""
        now = time.monotonic_ns()
        call.stamp(self.rig, fail_ns=now - int(ago * 1e9), decrypted_ns=now - int(quiet * 1e9))

    def skip(self, packets: int) -> list[bytes]:
        """What the peer has sent, and has not come."""
        return [self.peer.encrypt(clear(PACKET)) for _ in range(packets)]


def clear(packet: bytes) -> bytes:
    return ppp(PPP_IP if packet[0] >> 4 == 4 else PPP_IP6, packet)


def place(found: Place) -> Place:
    """What of it counts."""
    return found if found.late != found.end else Place(found.key, found.number)


def whole(packet: bytes) -> bytes:
    """An IP packet without what follows it."""
    at, more = (2, 0) if packet[:1] < b"\x60" else (4, 40)
    return packet[: more + int.from_bytes(packet[at : at + 2], "big")]


def injected(packet: bytes, generation: int = GENERATION) -> bytes:
    return ethernet(NPX1, NPX0, layout.FRAME_TYPE, layout.inject(SLOT, generation, packet))


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def session(rig: Rig) -> Session:
    return Session(rig)


def random_packet(rng: random.Random, source: str, destination: str, source6: str, destination6: str) -> bytes:
    size = rng.choice((rng.randrange(8, 120), rng.randrange(8, 1400)))
    data = struct.pack(">HHHH", 40000, 40001, size, 0) + rng.randbytes(size - 8)
    if rng.random() < 0.3:
        return ip6(source6, destination6, data)
    options = b"\1" * (4 * rng.randrange(1, 11)) if rng.random() < 0.1 else b""
    return ip(source, destination, data, options=options)


class Stream:
    """Of random packets of the peer, as they come: some late, some again, some forged."""

    def __init__(self, peer: Sender, seed: str) -> None:
        self.rng = random.Random(seed)
        self.peer = peer
        self.kept: list[bytes] = []
        self.sent: list[bytes] = [b"\0\xfd\x90\0"]

    def _new(self) -> bytes:
        packet = clear(random_packet(self.rng, ADDRESS, REMOTE, ADDRESS6, REMOTE6))
        if self.rng.random() < 0.1:
            # A Protocol field of one octet.
            packet = packet[1:]
        if packet[:1] == b"\x21" and self.rng.random() < 0.1:
            packet += bytes(self.rng.randrange(1, 20))
        self.sent = [*self.sent[-400:], self.peer.encrypt(packet)]
        return self.sent[-1]

    def _skip(self, packets: int) -> bytes:
        self.kept = [*self.kept, *(self._new() for _ in range(packets))][-300:]
        return self._new()

    def __iter__(self) -> Iterator[bytes]:
        rng = self.rng
        while True:
            what = rng.random()
            if what < 0.6:
                yield self._new()
            elif what < 0.7:
                yield self._skip(rng.randrange(1, 12))
            elif what < 0.71:
                yield self._skip(rng.choice((254, 255, 256, 257, rng.randrange(12, 400))))
            elif what < 0.85 and self.kept:
                yield self.kept.pop(rng.randrange(len(self.kept)) if rng.random() < 0.5 else 0)
            elif what < 0.9:
                yield rng.choice(self.sent)
            else:
                yield self._forged()

    def _forged(self) -> bytes:
        """Of one that is right, or would be."""
        rng = self.rng
        packet = bytearray(rng.choice(self.sent) if rng.random() < 0.5 else self._new())
        what = rng.randrange(4)
        if what == 0:
            # In what is looked at, or, of a packet that has been or is late, nowhere.
            packet[rng.randrange(2, min(len(packet), 26))] ^= 1 << rng.randrange(8)
        elif what == 1:
            count = (self.peer.count + rng.randrange(-300, 300)) % COUNTS
            packet[2:4] = (0x9000 | count).to_bytes(2, "big")
        elif what == 2:
            del packet[rng.randrange(2, len(packet)) :]
        else:
            packet[4:] = rng.randbytes(len(packet) - 4)
        return bytes(packet)


class TestAsPython:
    """10,000 packets of a random row in all."""

    @pytest.mark.parametrize(("bits", "packets"), [(128, 2200), (56, 600), (40, 2200)])
    def test_up(self, rig: Rig, carrier: str, bits: int, packets: int) -> None:
        """What programs and npppyd do together is what Python does alone; so are the keys, after each packet."""
        # IPv6 has no checksum: a forged source is none of MPPE's.
        session = Session(rig, carrier, bits, BLOCKS & ~layout.FILTER)
        stream = iter(Stream(session.peer, f"{carrier} {bits}"))
        found = {REDIRECT: 0, DROP: 0, PASS: 0}
        for _ in range(packets // len(CARRIERS) // PART):
            packet = next(stream)
            expected = session.receiver.decrypt(packet[2:])
            session.failed(ago=1)
            frame = session.frame(packet)
            done = rig.up(frame)
            found[done.verdict] += 1
            if done.verdict == REDIRECT:
                plain = done.data[14:]
            else:
                assert done.data == frame
                plain = (session.left.decrypt(packet[2:]) or b"")[2:] if done.verdict == PASS else b""
            assert whole(plain) == whole(expected[2:] if expected is not None else b"")
            assert place(session.keys.read()) == place(session.receiver.place)
        assert PART > 1 or min(found.values()) > packets // len(CARRIERS) // 50, found

    @pytest.mark.parametrize(("bits", "packets"), [(128, 2200), (56, 600), (40, 2200)])
    def test_down(self, rig: Rig, carrier: str, bits: int, packets: int) -> None:
        session = Session(rig, carrier, bits)
        rng = random.Random(f"{carrier} {bits}")
        for _ in range(packets // len(CARRIERS) // PART):
            packet = random_packet(rng, REMOTE, ADDRESS, REMOTE6, ADDRESS6)
            frame = from_stack(packet) if rng.random() < 0.5 else injected(clear(packet))
            assert session.down(frame) == session.sender.encrypt(clear(packet))
        value = rig.maps["mppe"].get(U32.pack(2 * SLOT + layout.DOWN))
        assert value is not None
        kept = layout.fields(layout.MPPE_KEYS, value)
        size = session.sender.strength.size
        assert (kept["key"][:size], kept["count"]) == (session.sender.key, session.sender.count)


class TestUp:
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_arrives(self, rig: Rig, carrier: str, packet: bytes) -> None:
        """And is counted as what it is, IP."""
        session = Session(rig, carrier)
        for _ in range(3):
            session.arrives(session.peer.encrypt(clear(packet)), packet)
        assert rig.counted() == {"STACK_UP": (3, 3 * len(packet))}
        stats = rig.stats()
        assert (stats["in_packets"], stats["in_bytes"]) == (3, 3 * len(packet))
        assert "fail_ns" not in stats

    def test_sizes(self, session: Session) -> None:
        """Each to some turns of RC4, and the largest ones."""
        for size in (*range(20, 400 // PART + 100), *range(MTU - 8, MTU + 1), 2042, 2043, 2044, 2045):
            packet = ip(ADDRESS, REMOTE, random.Random(size).randbytes(size - 20))
            session.arrives(session.peer.encrypt(clear(packet)), packet)
        session.passes(session.peer.encrypt(clear(ip(ADDRESS, REMOTE, bytes(2046 - 20)))))

    @pytest.mark.parametrize("cut", [b"\x21", b"\x57"])
    def test_protocol_of_one_octet(self, session: Session, cut: bytes) -> None:
        packet = PACKET if cut == b"\x21" else PACKET6
        session.arrives(session.peer.encrypt(cut + packet), packet)
        session.arrives(session.peer.encrypt(clear(packet)), packet)

    @pytest.mark.parametrize("name", ["L2TP", "PPTP"])
    def test_outer_protocol_of_one_octet(self, rig: Rig, name: str) -> None:
        session = Session(rig, name)
        session.arrives(session.peer.encrypt(clear(PACKET))[1:], PACKET)

    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    def test_in_the_clear(self, rig: Rig, carrier: str, packet: bytes) -> None:
        session = Session(rig, carrier)
        session.drops(clear(packet))
        assert rig.reasons() == {"DROP_CLEAR": 1}
        assert rig.stats()["in_errors"] == 1

    @pytest.mark.parametrize("packet", [ppp(LCP, b"\x0d\1\0\4"), ppp(0x80FD, b"\1\1\0\4"), ppp(0x8021, b"\1\1\0\4")])
    def test_control(self, rig: Rig, carrier: str, packet: bytes) -> None:
        """In the clear, which is its place (RFC 3078 section 3)."""
        Session(rig, carrier).passes(packet)
        assert rig.reasons() == {"PUNT_CONTROL": 1}

    def test_without_the_block(self, rig: Rig, carrier: str) -> None:
        session = Session(rig, carrier, blocks=ALL)
        session.passes(session.peer.encrypt(clear(PACKET)))
        session.arrives(clear(LONG), LONG)

    def test_all_to_npppyd(self, rig: Rig, carrier: str) -> None:
        session = Session(rig, carrier, blocks=BLOCKS | layout.USER)
        packet = session.peer.encrypt(clear(PACKET))
        session.passes(packet)
        assert rig.reasons() == {"USER_UP": 1}
        assert session.left.decrypt(packet[2:]) == clear(PACKET)
        rig.maps["slots"].put(U32.pack(SLOT), bytes(layout.SESSION.size))
        session.carrier.make(rig, BLOCKS)
        session.number = 0
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)

    @pytest.mark.parametrize(
        "packet",
        [
            ip6("fe80::2", "ff02::2", b"\x85" + bytes(7), following=58),
            udp6("fe80::2", "fe80::1"),
            udp6(ADDRESS6, "ff02::1:2"),
        ],
    )
    def test_of_the_link(self, session: Session, packet: bytes) -> None:
        """npppyd decrypts what is for it, and meanwhile others pass."""
        first = session.peer.encrypt(clear(packet))
        session.passes(first)
        assert session.rig.reasons() == {"PUNT_CONTROL": 1}
        assert "fail_ns" not in session.rig.stats()
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)
        assert session.left.decrypt(first[2:]) == clear(packet)
        assert session.left.decrypt(first[2:]) is None
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)

    def test_filter(self, session: Session) -> None:
        """What has been decrypted is looked at like all else."""
        assert session.up(session.peer.encrypt(clear(udp("10.0.0.3", REMOTE)))).verdict == DROP
        assert session.rig.reasons() == {"DROP_FILTER": 1}

    @pytest.mark.parametrize("bits", [0x8000, 0x1000, 0, 0x6000])
    def test_bits(self, session: Session, bits: int) -> None:
        packet = session.peer.encrypt(clear(PACKET))
        session.passes(packet[:2] + bits.to_bytes(2, "big") + packet[4:])
        # B and C say nothing.
        packet = session.peer.encrypt(clear(LONG))
        session.arrives(packet[:2] + b"\xf0" + packet[3:], LONG)

    def test_any_octets(self, rig: Rig, carrier: str) -> None:
        """Of all lengths, and such as are cut short."""
        session = Session(rig, carrier)
        rng = random.Random(carrier)
        good = session.peer.encrypt(clear(PACKET))
        for size in range(2, 70):
            session.failed(ago=1)
            session.passes(b"\0\xfd\x90\0"[:size] + rng.randbytes(max(size - 4, 0)))
            if size < len(good):
                session.failed(ago=1)
                session.passes(good[:size])
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)


class TestOrder:
    @pytest.mark.parametrize("packets", [1, 3, 7, 8, 9])
    def test_count_goes_round(self, rig: Rig, packets: int) -> None:
        """Also in the middle of what has been left out, and of what comes late."""
        session = Session(rig, count=COUNTS - 4)
        skipped = session.skip(packets)
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)
        for packet in skipped:
            assert session.up(packet).verdict == REDIRECT
        for _ in range(8):
            session.arrives(session.peer.encrypt(clear(LONG)), LONG)
        assert session.keys.read()[:2] == (session.peer.key, packets + 5)

    def test_again(self, session: Session) -> None:
        packets = [session.peer.encrypt(clear(LONG)) for _ in range(3)]
        for packet in packets:
            session.arrives(packet, LONG)
        for packet in packets:
            session.drops(packet)
        assert session.rig.reasons() == {"STACK_UP": 3, "DROP_LATE": 3}
        assert session.rig.stats()["in_errors"] == 3

    def test_late(self, session: Session) -> None:
        """Those that were left out may come; what those before them may, that came still later, is forgotten."""
        packets = session.skip(5)
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)
        for at in (0, 2, 4):
            assert session.up(packets[at]).verdict == REDIRECT
        for at in range(5):
            session.drops(packets[at])
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)

    @pytest.mark.parametrize("bits", STRENGTHS)
    def test_as_many_as_can_be(self, rig: Rig, bits: int) -> None:
        session = Session(rig, bits=bits)
        session.skip(255)
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)
        session.skip(256)
        packet = session.peer.encrypt(clear(LONG))
        session.passes(packet)
        assert session.left.decrypt(packet[2:]) == clear(LONG)
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)

    def test_half_round(self, session: Session) -> None:
        """Beyond, it is late; but if nothing else comes npppyd may see whether it is from ahead."""
        session.skip(2047)
        session.failed(ago=1)
        session.passes(session.peer.encrypt(clear(LONG)))
        session.failed(ago=1)
        session.drops(session.peer.encrypt(clear(LONG)))
        session.failed(ago=1, quiet=0.9)
        session.drops(session.peer.encrypt(clear(LONG)))
        session.failed(ago=1, quiet=1.1)
        session.passes(session.peer.encrypt(clear(LONG)))
        session.failed(ago=0, quiet=1.1)
        session.drops(session.peer.encrypt(clear(LONG)))


class TestFailures:
    """npppyd gets one each 10 ms, at the most, and so often one may have many keys worked out."""

    def test_pause(self, session: Session) -> None:
        packet = session.peer.encrypt(clear(PACKET))
        forged = packet[:4] + bytes(len(packet) - 4)
        session.failed(ago=1)
        session.passes(forged)
        # That was now, but for what the clock lacks.
        assert abs(session.rig.stats()["fail_ns"] - time.monotonic_ns()) < 10**9
        session.failed(ago=-1)
        session.drops(forged)
        assert session.rig.reasons() == {"PUNT_CONTROL": 1, "DROP_MALFORMED": 1}
        assert session.rig.stats()["in_errors"] == 1
        assert session.up(packet).verdict == REDIRECT

    def test_few_steps(self, session: Session) -> None:
        session.failed(ago=-1)
        session.skip(7)
        session.arrives(session.peer.encrypt(clear(LONG)), LONG)
        session.skip(8)
        packet = session.peer.encrypt(clear(LONG))
        session.drops(packet)
        session.failed(ago=1)
        session.arrives(packet, LONG)


class TestDown:
    @pytest.mark.parametrize("packet", [BACK, BACK6])
    def test_leaves(self, rig: Rig, carrier: str, packet: bytes) -> None:
        session = Session(rig, carrier)
        for _ in range(3):
            assert session.down(from_stack(packet)) == session.sender.encrypt(clear(packet))
        assert rig.counted() == {"STACK_DOWN": (3, 3 * len(packet))}
        stats = rig.stats()
        assert (stats["out_packets"], stats["out_bytes"]) == (3, 3 * len(packet))

    def test_sizes(self, rig: Rig, carrier: str) -> None:
        session = Session(rig, carrier)
        for size in (*range(20, 400 // PART + 100), *range(MTU - 8, MTU + 1)):
            packet = ip(REMOTE, ADDRESS, random.Random(size).randbytes(size - 20))
            assert session.down(from_stack(packet)) == session.sender.encrypt(clear(packet))

    def test_too_large(self, rig: Rig, carrier: str) -> None:
        """Nobody's MTU is so large: not in the clear, at least."""
        session = Session(rig, carrier)
        assert len(session.down(injected(clear(ip(REMOTE, ADDRESS, bytes(2045 - 20)))))) == 2051
        done = rig.down(injected(clear(ip(REMOTE, ADDRESS, bytes(2046 - 20)))))
        assert done.verdict == DROP
        assert rig.reasons() == {"TX_FAIL": 1}

    def test_injected(self, rig: Rig, carrier: str) -> None:
        """Control protocols leave in the clear, IP does not; both with what pads the frame."""
        session = Session(rig, carrier)
        for packet in (ppp(LCP, b"\x0d\1\0\4"), ppp(0x80FD, b"\5\1\0\4"), ppp(0x8021, bytes(600))):
            assert session.down(injected(packet)) == packet
        for packet in (clear(BACK), clear(BACK6), ppp(PPP_IP, b""), ppp(PPP_IP6, bytes(1400))):
            assert session.down(injected(packet)) == session.sender.encrypt(packet)

    def test_count_goes_round(self, rig: Rig) -> None:
        session = Session(rig, count=COUNTS - 3)
        for _ in range(6):
            assert session.down(from_stack(BACK)) == session.sender.encrypt(clear(BACK))

    def test_from_nic_to_nic(self, session: Session) -> None:
        rig, core = session.rig, b"\x02\0\0\0\x0c\x01"
        rig.session(BLOCKS | layout.FAST)
        rig.maps["nics"].put(U32.pack(LO), struct.pack("=6sH", core, 0))
        for packet in (udp6(REMOTE6, ADDRESS6, b"data"), udp6(REMOTE6, ADDRESS6, bytes(900))):
            less = packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
            done = rig.programs["pipex_nic"].run(ethernet(core, PEER, 0x86DD, packet))
            assert session.carrier.unwrap(done) == session.sender.encrypt(clear(less))
        assert rig.reasons() == {"FAST_DOWN": 2}


class TestAnotherSession:
    """An element that is not of this session: its successor's, or none."""

    @pytest.mark.parametrize("there", [False, True])
    def test_up(self, session: Session, there: bool) -> None:
        packet = session.peer.encrypt(clear(PACKET))
        other = Keys(session.rig.maps["mppe"], SLOT, GENERATION + 1, session.keys._mppe)
        session.keys.remove()
        if there:
            other.put()
        done = session.up(packet)
        assert done.verdict == PASS
        assert not there or other.read().number == 0

    @pytest.mark.parametrize("there", [False, True])
    def test_down(self, session: Session, there: bool) -> None:
        session.keys.remove()
        if there:
            Keys(session.rig.maps["mppe"], SLOT, GENERATION + 1, session.keys._mppe).put()
        for frame in (from_stack(BACK), injected(clear(BACK))):
            assert session.rig.down(frame).verdict == DROP
        assert session.rig.reasons() == {"TX_FAIL": 2}


class Meeting:
    """Of two processes, again and again."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 16)
        self.at = [memoryview(self.shared).cast("Q")[place : place + 1] for place in (0, 1)]

    def meet(self, who: int) -> None:
        ours, other = self.at[who], self.at[not who]
        ours[0] += 1
        while other[0] < ours[0]:
            os.sched_yield()


def at_once(work: Callable[[Callable[[], None]], list[bytes]]) -> list[list[bytes]]:
    """What comes of *work*, done by two processors at once, as far as there are two; it may have them meet."""
    meeting = Meeting()
    found = []
    processors = sorted(os.sched_getaffinity(0))[:2]
    for who, processor in enumerate((processors[0], processors[-1])):
        take, give = os.pipe()
        child = os.fork()
        if not child:
            # What is left of the test is not this process's.
            try:
                os.close(take)
                os.sched_setaffinity(0, {processor})
                meet = functools.partial(meeting.meet, who)
                meet()
                with open(give, "wb") as out:
                    for octets in work(meet):
                        out.write(struct.pack("=H", len(octets)) + octets)
            finally:
                # If it was too early.
                meeting.at[who][0] = 1 << 32
                os._exit(0)
        os.close(give)
        found.append((child, take))
    results = []
    for child, take in found:
        with open(take, "rb") as file:
            data = file.read()
        os.waitpid(child, 0)
        items, at = [], 0
        while at < len(data):
            (size,) = struct.unpack_from("=H", data, at)
            items.append(data[at + 2 : at + 2 + size])
            at += 2 + size
        results.append(items)
    return results


class TestAtOnce:
    def test_down(self, session: Session) -> None:
        """No key is used twice, and none left out."""
        each = 1500 // PART
        frame = from_stack(BACK)
        results = at_once(lambda meet: [session.down(frame) for _ in range(each)])
        found = sorted((packet for packets in results for packet in packets), key=lambda packet: packet[2:4])
        assert found == [session.sender.encrypt(clear(BACK)) for _ in range(2 * each)]

    def test_up(self, session: Session) -> None:
        """What comes to both is taken once."""
        packets = [session.frame(session.peer.encrypt(clear(PACKET))) for _ in range(1500 // PART)]

        def work(meet: Callable[[], None]) -> list[bytes]:
            verdicts = []
            for packet in packets:
                meet()
                verdicts.append(bytes((session.rig.up(packet).verdict,)))
            return verdicts

        results = at_once(work)
        assert len(results[0]) == len(results[1]) == len(packets)
        for both in zip(*results, strict=True):
            assert set(both) == {bytes((DROP,)), bytes((REDIRECT,))}


class TestProcessors:
    """As from NIC to NIC, where nothing has all packets of a session take one way."""

    @pytest.mark.parametrize(("carrier", "before", "octets"), [("L2TP", 6, 2), ("PPTP", 10, 4)])
    def test_order(self, rig: Rig, carrier: str, before: int, octets: int) -> None:
        """Sequence numbers and counts are in one order: who puts packets in order by the former decrypts them all."""
        Session(rig, carrier)
        frame = from_stack(ip(REMOTE, ADDRESS, bytes(1300)))
        sent: list[tuple[int, int]] = []

        def send(processor: int) -> None:
            os.sched_setaffinity(0, {processor})
            for _ in range(20000 // PART):
                done = rig.down(frame)
                # PPP; in front of it are Address and Control, and two numbers, of which the first is this one.
                at = done.data.index(b"\xff\x03\0\xfd") + 2
                number = int.from_bytes(done.data[at - before : at - before + octets], "big")
                sent.append((number, int.from_bytes(done.data[at + 2 : at + 4], "big") % COUNTS))

        # A machine with one has it do both: then there is nothing to swap.
        processors = (sorted(os.sched_getaffinity(0)) * 2)[:2]
        threads = [threading.Thread(target=send, args=(each,)) for each in processors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(sent) == [(number, number % COUNTS) for number in range(2 * (20000 // PART))]
