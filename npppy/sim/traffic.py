"""What subscribers do with their sessions: nothing, or pings whose replies are checked."""

from __future__ import annotations

from ..pipex.base import Counters, Police
from ..pipex.ip import HEADER, ICMP, checksum
from ..wheel import Timed, Wheel
from .report import Report
from .subscriber import Subscriber

_ECHO_REQUEST = b"\x08\0"
_ECHO_REPLY = b"\0\0"
_MARK = b"npppysim"

#: The payload of a ping begins with a mark, the subscriber's number and the request's.
MIN_PING = len(_MARK) + 8 + 4
#: Seconds that a reply may take, where the session ends meanwhile.
_ON_ITS_WAY = 1.0


class Traffic(Timed):
    """A subscriber's data path: a :class:`npppy.pipex.base.Flow` that counts what comes, and may send.

    Closing it, as negotiating anew does, stops it until it is started again.
    """

    __slots__ = ("_bytes", "_packets", "done")

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0
        self._packets = 0
        #: Nothing more is to be waited for.
        self.done = True

    def expire(self, now: float) -> None:
        """One that only listens waits for nothing, and is never armed."""

    def start(self, now: float) -> None:
        """The subscriber is up, for the first time or again."""

    def input(self, packet: bytes, now: float) -> None:
        self._bytes += len(packet)
        self._packets += 1

    def input6(self, packet: bytes, now: float) -> None:
        """Nobody has asked for IPv6."""

    def counters(self) -> Counters:
        return Counters(in_bytes=self._bytes, in_packets=self._packets)

    by_python = counters

    def police(self, up: Police | None, down: Police | None) -> None:
        """Limits are the concentrator's."""

    def heard(self) -> float:
        return 0.0

    def last_active(self) -> float:
        """Nobody ends a subscriber for being idle."""
        return 0.0

    def close(self) -> Counters:
        return self.counters()

    def late(self) -> Counters:
        """It counts nothing more."""
        return Counters()

    def finish(self, *, ours: bool = False) -> None:
        """The subscriber has gone for good; *ours*: it was told to by us."""


class Pinger(Traffic):
    """Sends *count* ICMP echo requests to *target*, *interval* seconds apart, and waits as long for the last reply.

    The payload, of *size* octets, tells the subscriber and the request: a reply that was meant for another session, or
    that is not what was sent, is counted as wrong.
    """

    __slots__ = ("_count", "_interval", "_open", "_report", "_sent", "_size", "_subscriber", "_target", "_wheel")

    def __init__(
        self,
        subscriber: Subscriber,
        target: int,
        wheel: Wheel,
        report: Report,
        *,
        count: int = 1,
        interval: float = 1.0,
        size: int = 56,
    ) -> None:
        super().__init__()
        self.done = False
        self._subscriber = subscriber
        self._target = target.to_bytes(4, "big")
        self._wheel = wheel
        self._report = report
        self._count = count
        self._interval = interval
        self._size = max(size, MIN_PING)
        self._sent = 0
        # When the requests without a reply were sent.
        self._open: dict[int, float] = {}

    def start(self, now: float) -> None:
        if not self.done:
            self.expire(now)

    def close(self) -> Counters:
        self._wheel.disarm(self)
        return self.counters()

    def finish(self, *, ours: bool = False) -> None:
        latest = self._open.get(self._sent)
        if ours and not self.done and latest is not None:
            # Their replies had time yet.
            self._report.pings_cut += sum(sent > latest - _ON_ITS_WAY for sent in self._open.values())

    def expire(self, now: float) -> None:
        if self._sent == self._count:
            self.done = True
            return
        self._sent += 1
        self._open[self._sent] = now
        self._report.pings_sent += 1
        self._wheel.arm(self, now + self._interval)
        self._subscriber.send_ip(self._packet(self._sent))

    def input(self, packet: bytes, now: float) -> None:
        super().input(packet, now)
        header = HEADER[packet[0]] if packet else 0
        if header + 8 > len(packet) or packet[9] != ICMP or packet[header : header + 2] != _ECHO_REPLY:
            return
        sequence = int.from_bytes(packet[header + 6 : header + 8], "big")
        if (
            not 0 < sequence <= self._sent
            or packet[12:20] != self._target + self._subscriber.address.to_bytes(4, "big")
            or packet[header:] != self._message(_ECHO_REPLY, sequence)
        ):
            self._report.pings_wrong += 1
            return
        sent = self._open.pop(sequence, None)
        if sent is None:
            self._report.pings_repeated += 1
            return
        self._report.ping_answered(now - sent)
        if self._sent == self._count and not self._open:
            self.done = True
            self._wheel.disarm(self)

    def _message(self, kind: bytes, sequence: int) -> bytes:
        number = self._subscriber.number
        payload = (_MARK + number.to_bytes(8, "big") + sequence.to_bytes(4, "big")).ljust(self._size, b".")
        rest = (number & 0xFFFF).to_bytes(2, "big") + sequence.to_bytes(2, "big") + payload
        return kind + checksum(kind + b"\0\0" + rest).to_bytes(2, "big") + rest

    def _packet(self, sequence: int) -> bytes:
        message = self._message(_ECHO_REQUEST, sequence)
        front = b"\x45\0" + (20 + len(message)).to_bytes(2, "big") + b"\0\0\x40\0\x40\x01"
        addresses = self._subscriber.address.to_bytes(4, "big") + self._target
        return front + checksum(front + b"\0\0" + addresses).to_bytes(2, "big") + addresses + message
