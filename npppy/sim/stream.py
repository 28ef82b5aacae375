"""Data through all sessions at a rate: pings that say whose they are, and whose replies are checked octet by octet.

Each session in turn sends an echo request, with a mark, the run, the subscriber's number, the packet's, the time, and a
filling that depends on both numbers.  What is known of a packet is in the packet: a session keeps a few numbers only,
however many are on their way.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import shake_128
from ipaddress import IPv4Address

from ..pipex.base import Counters
from ..pipex.ip import HEADER, ICMP, checksum
from .subscriber import Subscriber
from .tally import Stray, Tally
from .traffic import Traffic

log = logging.getLogger("npppy.sim")

#: Seconds that the last packets have to come back.
GRACE = 1.0
#: Packets sent in one go, between which replies are read.
BURST = 64
#: Seconds between two goes: the event loop's timers know nothing finer.
PERIOD = 0.001
#: Seconds that sending may be late; what is due for longer is not sent any more.
LATE = 0.1
#: Packets of a session behind the latest that came back, of which it is known whether they did.
WINDOW = 4096
#: Octets that MPPE adds in front of a packet, which count for the peer's MRU.
MPPE = 4

# Behind Type, Code and Checksum: identifier and sequence number of ICMP; mark and run; subscriber; packet; time.
_FIELDS = struct.Struct("!HHQIQd")
_pack, _unpack = _FIELDS.pack, _FIELDS.unpack_from
_MARK = b"npsm"
_REQUEST, _REPLY = b"\x08\0", b"\0\0"
_FRONT = 20 + 4
_HEAD = _FRONT + _FIELDS.size

#: The least octets of such a packet.
MIN_SIZE = _HEAD

# The filling is one of so many pieces of a table; those of neighbours are far apart in it (the golden section).
_SPOTS, _STRIDE = 4093, 2530


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is to be sent."""

    #: Octets of an IP packet: MIN_SIZE or more.
    size: int
    #: Packets a second, of all sessions together; more than 0.
    rate: float
    #: Who answers; None: the concentrator, by the address that it has in IPCP.
    target: IPv4Address | None = None
    #: Tells this run from others on the same wire: 32 bits.
    run: int = 0


class Pacer:
    """Makes the sessions that are up send, in turn.  *clock* is the one that :meth:`poll` is given the time of."""

    def __init__(self, data: Data, tally: Tally, clock: Callable[[], float]) -> None:
        self.data = data
        self.tally = tally
        self.clock = clock
        self.label = int.from_bytes(_MARK + data.run.to_bytes(4, "big"), "big")
        #: Octets of filling; the table that it is cut out of; and the sums of its pieces, modulo 0xFFFF.
        self.fill = data.size - _HEAD
        self.table = shake_128(_MARK).digest(_SPOTS + self.fill)
        self.sums = [0xFFFF - checksum(self.table[spot : spot + self.fill]) for spot in range(_SPOTS)]
        #: All that could come back has, or is given up.
        self.done = False
        #: The time, in GRACE seconds.
        self.epoch = 0
        # The sessions that are up, and whose turn it is.
        self._ring: list[Stream] = []
        self._turn = 0
        # When the next packet is due; None: there was nobody to send it.
        self._due: float | None = None
        # When to give up what has not come back; None: sending goes on.
        self._until: float | None = None

    def stream(self, subscriber: Subscriber) -> Stream:
        """The data of a session, for as long as it lives."""
        return Stream(self, subscriber)

    def poll(self, now: float) -> float | None:
        """Send what is due; returns when to call again at the latest, None: not before something has happened."""
        self.epoch = int(now / GRACE)
        if self._until is not None:
            if self.done:
                return None
            if self.tally.outstanding and now < self._until:
                return self._until
            self._settle(now)
            return None
        ring = self._ring
        if not ring:
            self._due = None
            return None
        if self._due is None:
            self._due = now
        rate, tally = self.data.rate, self.tally
        if self._due > now:
            return max(self._due, now + PERIOD)
        owed = int((now - self._due) * rate) + 1
        most = max(BURST, int(rate * LATE))
        if owed > most:
            tally.behind += owed - most
            self._due += (owed - most) / rate
            owed = most
        count = min(owed, BURST)
        self._due += count / rate
        if tally.first_sent is None:
            tally.first_sent = now
        turn = self._turn
        for _ in range(count):
            # Sending may take a session out of the ring: where encryption is being agreed anew, for one.
            if not ring:
                break
            turn = turn + 1 if turn + 1 < len(ring) else 0
            ring[turn].send()
        self._turn = turn
        tally.last_sent = now
        return max(self._due, now + PERIOD) if count == owed else now

    def stop(self, now: float) -> None:
        """Send nothing more.  :attr:`done` follows, at the latest in GRACE seconds."""
        if self._until is None:
            self._until = now + GRACE

    def _settle(self, now: float) -> None:
        self.done = True
        for stream in self._ring:
            stream.settle(now, cut=False)
        self._ring.clear()

    # The streams.

    @property
    def stopped(self) -> bool:
        """Nothing more is sent."""
        return self._until is not None

    def join(self, stream: Stream) -> None:
        """A session is up; its place in the ring is its own to keep."""
        stream.place = len(self._ring)
        self._ring.append(stream)

    def leave(self, stream: Stream) -> bool:
        """A session is not up any more; False: it was not in the ring."""
        place, ring = stream.place, self._ring
        if not (0 <= place < len(ring) and ring[place] is stream):
            return False
        last = ring.pop()
        if last is not stream:
            ring[place] = last
            last.place = place
        stream.place = -1
        return True


class Stream(Traffic):
    """The packets of one session."""

    __slots__ = (
        "_back",
        "_epoch",
        "_first",
        "_gaps",
        "_head",
        "_mark",
        "_next",
        "_number",
        "_older",
        "_pacer",
        "_received",
        "_since",
        "_subscriber",
        "_top",
        "place",
    )

    def __init__(self, pacer: Pacer, subscriber: Subscriber) -> None:
        super().__init__()
        self._pacer = pacer
        self._subscriber = subscriber
        self._number = subscriber.number
        #: In the pacer's ring; -1: it is not there.
        self.place = -1
        # What every request begins with, up to ICMP's checksum; and the addresses of a reply.
        self._head = b""
        self._back = b""
        # The number of the next packet, that of the first one since the session is up, and that behind the highest one
        # that has come back; and bit n says that packet n + 1 below this one has not.
        self._next = self._first = self._top = self._gaps = 0
        # Replies, and the time, since the session is up.
        self._received = 0
        self._since = 0.0
        # The first packets of an epoch and of the one before it, or if there were none, of the same; and the epoch.
        self._mark = self._older = self._epoch = 0

    def start(self, now: float) -> None:
        pacer, subscriber = self._pacer, self._subscriber
        data, tally = pacer.data, pacer.tally
        self._since = now
        if pacer.stopped:
            return
        target = subscriber.concentrator if data.target is None else int(data.target)
        # The reply is as large.
        room = min(subscriber.mru, subscriber.peer_mru) - (0 if subscriber.mppe is None else MPPE)
        if not target or data.size > room:
            tally.unable["the concentrator has told no address" if not target else f"packets have {room} octets"] += 1
            return
        ours, theirs = subscriber.address.to_bytes(4, "big"), target.to_bytes(4, "big")
        # Don't Fragment, a lifetime of 64.
        front = b"\x45\0" + data.size.to_bytes(2, "big") + b"\0\0\x40\0\x40" + bytes((ICMP,))
        self._head = front + checksum(front + ours + theirs).to_bytes(2, "big") + ours + theirs + _REQUEST
        self._back = theirs + ours
        self._first = self._top = self._older = self._mark = self._next
        self._gaps = self._received = 0
        tally.sessions += 1
        pacer.join(self)

    def send(self) -> None:
        pacer = self._pacer
        tally, number, sequence = pacer.tally, self._number, self._next
        now, epoch = pacer.clock(), pacer.epoch
        if epoch != self._epoch:
            self._older = self._mark if epoch == self._epoch + 1 else sequence
            self._mark, self._epoch = sequence, epoch
        self._next = sequence + 1
        fields = _pack(number & 0xFFFF, sequence & 0xFFFF, pacer.label, number, sequence, now)
        spot = (number * _STRIDE + sequence) % _SPOTS
        # As npppy.pipex.ip.checksum has it; Type is 8.
        total = (0x800 + int.from_bytes(fields, "big") + pacer.sums[spot]) % 0xFFFF or 0xFFFF
        check = (0xFFFF - total).to_bytes(2, "big")
        tally.sent += 1
        tally.octets_sent += pacer.data.size
        self._subscriber.send_ip(b"".join((self._head, check, fields, pacer.table[spot : spot + pacer.fill])))

    def input(self, packet: bytes, now: float) -> None:
        pacer = self._pacer
        if len(packet) != pacer.data.size or packet[12:22] != self._back + _REPLY:
            self._odd(packet)
            return
        identifier, low, label, number, sequence, sent = _unpack(packet, _FRONT)
        if number != self._number or label != pacer.label:
            self._odd(packet)
            return
        tally = pacer.tally
        spot = (number * _STRIDE + sequence) % _SPOTS
        if (
            packet[_HEAD:] != pacer.table[spot : spot + pacer.fill]
            # Both checksums: that of the IP header, and that of ICMP.
            or (int.from_bytes(packet[:_HEAD], "big") + pacer.sums[spot]) % 0xFFFF
            or packet[0] != 0x45
            or packet[2:4] != self._head[2:4]
            or packet[9] != ICMP
            or identifier != number & 0xFFFF
            or low != sequence & 0xFFFF
        ):
            tally.corrupt += 1
            return
        if sent < self._since or pacer.done:
            # Of before it negotiated anew or dialled again, or too late: accounted for.
            tally.stale += 1
            return
        if sequence >= self._next:
            tally.corrupt += 1
            return
        top = self._top
        if sequence >= top:
            self._top = sequence + 1
            if self._gaps or sequence > top:
                # The highest one is bit 0, which is 0.
                skipped = min(sequence - top, WINDOW)
                self._gaps = (self._gaps << skipped + 1 | (2 << skipped) - 2) & _WINDOW
        else:
            bit = 1 << min(top - 1 - sequence, WINDOW)
            if not self._gaps & bit:
                tally.repeated += 1
                return
            self._gaps ^= bit
            tally.reordered += 1
        self._received += 1
        tally.received += 1
        tally.octets_received += len(packet)
        tally.latency.add(pacer.clock() - sent)

    def _odd(self, packet: bytes) -> None:
        """What is not a reply to this session, or not a whole one."""
        tally = self._pacer.tally
        header = HEADER[packet[0]] if packet else 0
        if header + 8 > len(packet) or packet[9] != ICMP or packet[header : header + 2] != _REPLY or packet[6] & 0x3F:
            tally.other += 1
            return
        if (
            header != 20
            or len(packet) < _HEAD
            or checksum(packet[:20])
            or checksum(packet[20:])
            or packet[28:32] != _MARK
        ):
            tally.corrupt += 1
            return
        _, _, label, number, sequence, sent = _unpack(packet, _FRONT)
        back = self._back
        if packet[16:20] == back[4:]:
            if number == self._number and label == self._pacer.label:
                # Of another size, or of somebody whom nobody has asked.
                tally.corrupt += 1
                return
            if sent < self._since:
                tally.stale += 1
                return
        stray = Stray(self._number, number, sequence, label == self._pacer.label)
        if tally.stray(stray):
            facts = " ".join(f"{name}={value}" for name, value in stray._asdict().items())
            log.warning("%s layer=traffic logtype=WrongDelivery", facts)

    def settle(self, now: float, *, cut: bool) -> None:
        """Account for what has not come back: lost; with *cut*, cut off if it was sent in this epoch or the last."""
        tally = self._pacer.tally
        missing = self._next - self._first - self._received
        if not self._next - self._first:
            tally.unserved += 1
        elif missing:
            ago = int(now / GRACE) - self._epoch
            recent = self._older if ago < 1 else self._mark if ago == 1 else self._next
            short = self._next - max(self._top, recent) if cut else 0
            tally.cut += short
            tally.lost += missing - short
            if missing > short and not self._received:
                tally.silent += 1

    def counters(self) -> Counters:
        return Counters(in_packets=self._received, in_bytes=self._received * self._pacer.data.size)

    by_python = counters

    def close(self) -> Counters:
        pacer = self._pacer
        if pacer.leave(self):
            self.settle(pacer.clock(), cut=True)
        return self.counters()


_WINDOW = (1 << WINDOW) - 1
