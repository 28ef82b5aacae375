"""Reliable delivery of control messages: RFC 2661 section 5.8 and appendix A.

A sliding window each way over a tunnel's datagrams.  There is one channel a tunnel and there are thousands of tunnels,
so that a channel at rest holds no container: the queue and the messages kept for later exist while they are needed.

The session id of a message's header rides along: it is the peer's id of the session that the message is about.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Protocol

from npppy.wheel import TICK, Timed, Wheel

#: How many messages the peer may have under way to us: the Receive Window Size that we advertise.
RECEIVE_WINDOW = 16

#: Seconds from the first transmission of a message until the peer is given up: 1 + 2 + 4 + 8 + 16 (section 5.8).
BOUND = 31.0

#: Messages that wait at the most.  A peer that makes us answer more without acknowledging any is given up.
QUEUE_LIMIT = 0x10000

# The peer's window until it is known (section 4.4.3, Receive Window Size), and how much we use of a wider one: some
# peers advertise thousands, and a burst of that size would not fit their socket's buffer.
_WINDOW = 4
_WIDEST = 128

# Larger messages are not kept when they come out of order, so that a hostile peer cannot have us hold a megabyte.
_LARGEST_HELD = 2048

# Seconds until a retransmission: at first, at least, at most (section 5.8: a cap must be no less than 8), and what of a
# backed-off value may outlive the message.
_INITIAL = 1.0
_FLOOR = 0.5
_CAP = 8.0
_CARRIED = 2.0


class Owner(Protocol):
    """The tunnel that a channel belongs to.  It must not call the channel from within ``transmit``."""

    def transmit(self, session_id: int, ns: int, nr: int, body: bytes) -> None:
        """Send a control message now; an empty body is a ZLB."""

    def undelivered(self, now: float) -> None:
        """The peer has not acknowledged a message within its bound; the channel is closed."""


class _Message:
    """One that waits to be sent or acknowledged."""

    __slots__ = ("body", "deadline", "sent_at", "session_id")

    def __init__(self, session_id: int, body: bytes, bound: float) -> None:
        self.session_id = session_id
        self.body = body
        # Until the first transmission the bound itself, from then on the time at which it ends.
        self.deadline = bound
        # When it was sent; -1 if it, or one before it, had to be sent again.
        self.sent_at = -1.0


class Channel(Timed):
    """Both directions of one control connection."""

    __slots__ = (
        "_acks",
        "_backoff",
        "_cwnd",
        "_flight",
        "_front",
        "_held",
        "_owner",
        "_queue",
        "_rttvar",
        "_sent",
        "_srtt",
        "_ssthresh",
        "_wheel",
        "ack_due",
        "closed",
        "next_nr",
        "retransmissions",
        "window",
    )

    def __init__(self, owner: Owner, wheel: Wheel) -> None:
        super().__init__()
        self._owner = owner
        self._wheel = wheel
        #: The peer's Receive Window Size, 0 to 65535; 0, which is invalid, counts as 1.
        self.window = _WINDOW
        #: Something came that has to be acknowledged, and nothing has left since.
        self.ack_due = False
        #: Nothing is sent or taken any more.
        self.closed = False
        #: The Ns that is expected next from the peer.
        self.next_nr = 0
        #: How many messages were sent again.
        self.retransmissions = 0
        # The queue holds what is not acknowledged.  Its front has the Ns _front; its first _sent messages have been
        # sent at least once, and of these the first _flight are deemed under way: a timeout takes all to be lost.
        self._queue: deque[_Message] | None = None
        self._front = 0
        self._sent = 0
        self._flight = 0
        # By Ns, what came before its turn.
        self._held: dict[int, tuple[int, bytes]] | None = None
        # Appendix A.  The slow start threshold begins as the peer's window, which is not known yet: no limit.
        self._cwnd = 1
        self._ssthresh = 0xFFFF
        self._acks = 0
        # RFC 6298, in seconds; no sample yet: -1.
        self._srtt = -1.0
        self._rttvar = 0.0
        self._backoff = 0

    @property
    def next_ns(self) -> int:
        """The Ns that the next new message gets, and that a ZLB shows."""
        return (self._front + self._sent) & 0xFFFF

    @property
    def cwnd(self) -> int:
        """How many messages may be under way: the congestion window, within the peer's."""
        return min(self._cwnd, max(self.window, 1), _WIDEST)

    @property
    def queued(self) -> int:
        """How many messages are not acknowledged, sent or not."""
        return len(self._queue) if self._queue is not None else 0

    @property
    def unsent(self) -> int:
        """How many messages wait for their first transmission: the last of them gets the Ns next_ns + unsent - 1."""
        return len(self._queue) - self._sent if self._queue is not None else 0

    @property
    def idle(self) -> bool:
        """Whether everything was acknowledged."""
        return self._queue is None

    @property
    def rto(self) -> float:
        """Seconds until what is sent now would be sent again."""
        base = _INITIAL if self._srtt < 0 else max(self._srtt + max(4 * self._rttvar, TICK), _FLOOR)
        return min(base * (1 << min(self._backoff, 8)), _CAP)

    def send(self, session_id: int, body: bytes, now: float, bound: float = BOUND) -> None:
        """Queue a message, whose *body* is not empty, and send what the windows allow.

        The peer is given up *bound* seconds after the first transmission.  On a closed channel nothing happens.
        """
        if self.closed:
            return
        queue = self._queue
        if queue is None:
            queue = self._queue = deque()
        elif len(queue) >= QUEUE_LIMIT:
            # Deaf until the next tick, which gives the peer up: this is called from within the owner.
            self.closed = True
            self.ack_due = False
            queue[0].deadline = now
            self._wheel.arm(self, now)
            return
        queue.append(_Message(session_id, body, bound))
        self._pump(queue, now)

    def receive(self, session_id: int, ns: int, nr: int, body: bytes, now: float) -> list[tuple[int, bytes]]:
        """Take the header and the body of a control message; return, in order, those that are to be handled now.

        There are none after a ZLB, a duplicate, or a message that is before its turn.  *ns* and *nr*: any 16 bits.
        """
        if self.closed:
            return []
        # Before the Nr, which may let messages go that then carry the acknowledgement.
        ready = self._take(session_id, ns, body) if body else []
        # What this acknowledges: less or more than what was sent is old or wrong.
        count = (nr - self._front) & 0xFFFF
        if 0 < count <= self._sent:
            self._acknowledged(count, now)
        return ready

    def is_next(self, ns: int, nr: int, body: bytes) -> bool:
        """Whether this is the message that is expected next, from somebody who knows what we have sent."""
        return bool(body) and ns == self.next_nr and (nr - self._front) & 0xFFFF <= self._sent

    def resend(self, now: float) -> None:
        """Send the oldest message that is not acknowledged once more: the peer asks for it by repeating its own."""
        if self._queue is not None and self._sent:
            message = self._queue[0]
            message.sent_at = -1.0
            self.retransmissions += 1
            self.ack_due = False
            self._owner.transmit(message.session_id, self._front, self.next_nr, message.body)

    def flush(self, now: float) -> None:
        """Send a ZLB if an acknowledgement is due and no message has carried it."""
        if self.ack_due:
            self.ack_due = False
            self._owner.transmit(0, self.next_ns, self.next_nr, b"")

    def quit(self) -> None:
        """Drop what waits: the peer has ended the connection, and wants no more than acknowledgements."""
        self._wheel.disarm(self)
        self._front = self.next_ns
        self._queue = None
        self._sent = self._flight = 0

    def close(self) -> None:
        """Drop everything, with no message to the peer.  May be called twice."""
        self._wheel.disarm(self)
        self.closed = True
        self.ack_due = False
        self._queue = self._held = None
        self._sent = self._flight = 0

    def expire(self, now: float) -> None:
        queue = self._queue
        assert queue is not None  # the timer runs while something is queued
        if now >= queue[0].deadline:
            self.close()
            self._owner.undelivered(now)
            return
        self._ssthresh = max(self.cwnd // 2, 1)
        self._cwnd = 1
        self._acks = 0
        self._backoff += 1
        # Karn: an acknowledgement of any of these could be that of either transmission.
        for message in islice(queue, self._sent):
            message.sent_at = -1.0
        self._flight = 0
        self._pump(queue, now)

    def _take(self, session_id: int, ns: int, body: bytes) -> list[tuple[int, bytes]]:
        """Put a message in its place among those that came; return what is in order now."""
        ahead = (ns - self.next_nr) & 0xFFFF
        if RECEIVE_WINDOW <= ahead < 0x8000:
            # Beyond the window that we gave: not acknowledged and not kept.
            return []
        # A duplicate, the last 32768 numbers, must be acknowledged again: the acknowledgement may have been lost.
        self.ack_due = True
        if ahead >= 0x8000:
            return []
        held = self._held
        if ahead:
            if len(body) <= _LARGEST_HELD:
                if held is None:
                    held = self._held = {}
                held.setdefault(ns, (session_id, body))
            return []
        ready = [(session_id, body)]
        expected = (ns + 1) & 0xFFFF
        if held is not None:
            while (message := held.pop(expected, None)) is not None:
                ready.append(message)
                expected = (expected + 1) & 0xFFFF
            if not held:
                self._held = None
        self.next_nr = expected
        return ready

    def _acknowledged(self, count: int, now: float) -> None:
        """The peer has the first *count* messages, at least one, of those that were sent."""
        queue = self._queue
        assert queue is not None  # _sent counts some of them
        for _ in range(count):
            message = queue.popleft()
        self._front = (self._front + count) & 0xFFFF
        self._sent -= count
        self._flight = max(self._flight - count, 0)
        if message.sent_at >= 0:
            self._sample(now - message.sent_at)
        else:
            # Karn: backed off until there is a sample, or a path slower than the timeout would never give one; but not
            # by so much that fewer than five retransmissions fit into the next message's bound.
            while self._backoff and self.rto > _CARRIED:
                self._backoff -= 1
        # Appendix A: by one for each acknowledgement in slow start, by 1/cwnd for each after that.
        if self._cwnd < self._ssthresh:
            self._cwnd += 1
        else:
            self._acks += 1
            if self._acks >= self._cwnd:
                self._acks = 0
                self._cwnd += 1
        self._cwnd = self.cwnd
        self._wheel.disarm(self)
        if queue:
            self._pump(queue, now)
        else:
            self._queue = None

    def _sample(self, seconds: float) -> None:
        """RFC 6298 section 2: a round trip was measured."""
        if self._srtt < 0:
            self._srtt = seconds
            self._rttvar = seconds / 2
        else:
            self._rttvar += (abs(self._srtt - seconds) - self._rttvar) / 4
            self._srtt += (seconds - self._srtt) / 8
        self._backoff = 0

    def _pump(self, queue: deque[_Message], now: float) -> None:
        """Send what the windows allow, for the first time or again.  Afterwards the timer runs."""
        room = min(self.cwnd, len(queue))
        while self._flight < room:
            index = self._flight
            message = queue[index]
            if index < self._sent:
                self.retransmissions += 1
            else:
                self._sent += 1
                message.sent_at = now
                message.deadline += now
                # Nr acknowledges all before it: the earlier deadline of a later message is that of those before, too.
                # So the front has the earliest of all.
                while index and queue[index - 1].deadline > message.deadline:
                    index -= 1
                    queue[index].deadline = message.deadline
            ns = (self._front + self._flight) & 0xFFFF
            self._flight += 1
            self.ack_due = False
            self._owner.transmit(message.session_id, ns, self.next_nr, message.body)
        deadline = queue[0].deadline
        if not self.due:
            self._wheel.arm(self, min(now + self.rto, deadline))
        elif deadline < self.due * TICK:
            self._wheel.arm(self, deadline)
