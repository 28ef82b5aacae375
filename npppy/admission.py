"""Admission: when more comes than can be served, what has begun is finished first, and what has not waits.

Whoever reads what belongs to set-ups under way, or to sessions that are there, tells when it could not read all of it
in one turn of the event loop (:meth:`Admission.press`).  As long as that is so, nothing new is taken: gates are shut.

Where the subscribers are the slow ones, nothing waits to be read, and yet no more should begin: :class:`UnderWay` says
how many may.  Half-open sessions older than some seconds are not counted: hosts that never finish cost nothing once
they are silent; and while they go on beginning, others begin at a rate of FLOOR.

No I/O: a shell hands in the event loop's ``call_soon`` and its clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

#: Beginnings taken in a turn of the event loop, by a gate and by a queue.  Where more than so many owners have
#: requests that wait, there need be no others.
SHARE: Final = 16
#: Gates that are shut are open for one turn of so many: neither a flood of other things nor what waits keeps all out.
GRACE: Final = 16
#: Beginnings taken in a tick, at the least and at the most, while logins wait too long: those that need no such login
#: are not to wait for it.
TRICKLE: Final = 4
MANY: Final = 1024
#: Beginnings taken in a tick though too many set-ups are under way, which may all be of one who finishes none: so many
#: that where nobody does, the time for negotiation ends them (npppd.conf(5): 30 seconds), and not the engine's limit.
FLOOR: Final = 32
#: Seconds that a login may have to wait for its turn at a RADIUS server before there are enough of them.
LAG: Final = 0.5
#: Seconds for which a set-up counts as under way: after three a message is repeated (RFC 1661 section 4.6).
YOUNG: Final = 3
#: As many set-ups may always be under way.
PLENTY: Final = 2048
#: Requests that wait in a queue, and of an owner.  One more of an owner that has none there is always taken.
LIMIT: Final = 16384
EACH: Final = LIMIT // 2

_Owner = TypeVar("_Owner")
_Request = TypeVar("_Request")


class Gate(Protocol):
    """Where beginnings come in.  Both are called when the state changes, never by what a gate itself calls."""

    def open(self) -> None:
        """Take beginnings, no more than :attr:`Admission.share` in a turn."""

    def shut(self) -> None:
        """Take none."""


class Waiting(Protocol):
    """Requests that have been read before they may begin."""

    def serve(self, count: int, now: float) -> None:
        """Begin so many, if there are."""

    @property
    def crowded(self) -> bool:
        """Whether those that wait are too many for others to come."""

    def __len__(self) -> int:
        """How many there are."""


class Admission:
    """Whether beginnings are taken.  *soon* has a function called in the next turn of the event loop."""

    def __init__(self, soon: Callable[[Callable[[], None]], object], clock: Callable[[], float]) -> None:
        #: Whether beginnings have to wait.
        self.closed = False
        #: How often that has begun; what goes on has an end, for a turn, with each that gates are open for.
        self.closures = 0
        #: Beginnings that a gate may take in this turn.
        self.share = SHARE
        self._soon = soon
        self._clock = clock
        # The queue behind each, and those that are shut.
        self._gates: dict[Gate, Waiting | None] = {}
        self._shut: set[Gate] = set()
        self._queues: list[Waiting] = []
        self._turning = False
        self._pressed = False
        # Beginnings of this tick, how many more there may be, and how many logins allow; None: as many as one likes.
        self._taken, self._left = 0, PLENTY
        self._quota: int | None = None
        self._turns = 0

    def join(self, gate: Gate, queue: Waiting | None = None) -> None:
        """A new gate, which is open.  What comes in by it may have to wait again, in *queue*."""
        self._gates[gate] = queue
        if self.closed:
            self._set(gate, False)

    def leave(self, gate: Gate) -> None:
        """There is no such gate any more."""
        del self._gates[gate]
        self._shut.discard(gate)

    def press(self) -> None:
        """There is more to be read than fits into a turn."""
        self._pressed = True
        self._again()

    def tick(self, lag: float, room: int) -> None:
        """So many seconds a login has to wait for others, and so many set-ups more may be under way."""
        quota, taken, self._taken = self._quota, self._taken, 0
        if lag > LAG:
            quota = self._quota = max((taken if quota is None else min(taken, quota)) // 2, TRICKLE)
        elif quota is not None:
            quota = self._quota = 2 * quota if quota < MANY else None
        # Most of what comes may be hosts that only ask, and then others: they are not to use up what there is for long.
        most = max(room, FLOOR)
        spent, self._left = self._spent, most if quota is None else min(quota, most)
        if spent:
            self._again()

    def took(self, count: int) -> None:
        """So many have begun."""
        self._taken += count
        self._left -= count
        if self._left < SHARE:
            self._again()

    @property
    def _spent(self) -> bool:
        """Whether as many have begun in this tick as may."""
        return self._left <= 0

    @property
    def full(self) -> bool:
        """Whether no more may begin now."""
        return self.closed or self._spent

    @property
    def waiting(self) -> int:
        """Requests that wait in queues."""
        return sum(map(len, self._queues))

    def enqueue(self, queue: Waiting) -> None:
        """A new queue."""
        self._queues.append(queue)

    def serve(self) -> None:
        """Something has come to wait in a queue."""
        self._again()

    def _again(self) -> None:
        if not self._turning:
            self._turning = True
            self._soon(self._turn)

    def _turn(self) -> None:
        """Between two looks at what can be read."""
        self._turning = False
        pressed, self._pressed = self._pressed, False
        self._turns += 1
        grace = self._turns % GRACE == 0
        # What is read next is read by all: who presses then shuts the gates behind this turn.
        is_open = grace if pressed else not self._spent
        self.share = SHARE if self._spent else min(SHARE, self._left)
        if self.closed == is_open:
            self.closed = not is_open
            self.closures += self.closed
        for gate, queue in self._gates.items():
            self._set(gate, is_open and (grace or queue is None or not queue.crowded))
        try:
            if is_open:
                for queue in self._queues:
                    queue.serve(self.share, self._clock())
        finally:
            # A mistake in one of them does not keep the others waiting.
            if pressed or (is_open and (self.waiting or self._shut)):
                self._again()

    def _set(self, gate: Gate, is_open: bool) -> None:
        if is_open and gate in self._shut:
            self._shut.remove(gate)
            gate.open()
        elif not is_open and gate not in self._shut:
            self._shut.add(gate)
            gate.shut()


class UnderWay:
    """Set-ups that have begun in the last seconds and have come to no end, good or bad.  Times are monotonic."""

    __slots__ = ("_begun", "_up")

    def __init__(self) -> None:
        # Those of a second that are under way, and those that came up in it.
        self._begun: Counter[int] = Counter()
        self._up: Counter[int] = Counter()

    def begin(self, now: float) -> None:
        """A set-up begins."""
        second = int(now)
        if second not in self._begun:
            self._forget(now)
        self._begun[second] += 1

    def end(self, began: float, up: float | None = None) -> None:
        """The set-up that began at *began* is over, with a session that came up at *up* or without one."""
        second = int(began)
        if second in self._begun:
            self._begun[second] -= 1
        if up is not None:
            self._up[int(up)] += 1

    def room(self, now: float) -> int:
        """How many more may be under way: as many as come up in that time can, and some in any case."""
        self._forget(now)
        return max(0, max(PLENTY, self._up.total()) - self._begun.total())

    def _forget(self, now: float) -> None:
        """What is past is of no interest."""
        for counts in (self._begun, self._up):
            for second in [second for second in counts if second < now - YOUNG - 1]:
                del counts[second]


class Queue(Generic[_Owner, _Request]):
    """Requests that wait to begin: those of an owner in order, owners in turns.

    *begin* begins one.  Owners are tunnels, or whatever has requests that are known by a number of its own.
    """

    __slots__ = ("_admission", "_begin", "_count", "_each", "_flows", "_limit")

    def __init__(
        self,
        admission: Admission,
        begin: Callable[[_Owner, _Request, float], None],
        limit: int = LIMIT,
        each: int = EACH,
    ) -> None:
        self._admission = admission
        self._begin = begin
        self._limit = limit
        self._each = each
        self._count = 0
        # An owner goes to the end of the row when it has had its turn.
        self._flows: dict[_Owner, dict[int, _Request]] = {}
        admission.enqueue(self)

    def __len__(self) -> int:
        return self._count

    @property
    def crowded(self) -> bool:
        return len(self._flows) > SHARE

    def waits(self, owner: _Owner) -> int:
        """How many requests of an owner wait."""
        return len(self._flows.get(owner, ()))

    def passes(self) -> bool:
        """Whether a new request may begin at once, as it does then; else it must wait, and not before others."""
        if self._count or self._admission.full:
            return False
        self._admission.took(1)
        return True

    def put(self, owner: _Owner, number: int, request: _Request) -> bool:
        """Let a request wait; False: there is no room.  One that waits already keeps its place."""
        flow = self._flows.get(owner)
        if flow is None:
            self._flows[owner] = {number: request}
        elif number in flow:
            return True
        elif self._count >= self._limit or len(flow) >= self._each:
            return False
        else:
            flow[number] = request
        self._count += 1
        self._admission.serve()
        return True

    def withdraw(self, owner: _Owner, number: int) -> bool:
        """Forget a request; False: it does not wait."""
        flow = self._flows.get(owner)
        if flow is None or number not in flow:
            return False
        del flow[number]
        self._count -= 1
        if not flow:
            del self._flows[owner]
        return True

    def forget(self, owner: _Owner) -> None:
        """Forget all requests of an owner, who may have none."""
        self._count -= len(self._flows.pop(owner, ()))

    def serve(self, count: int, now: float) -> None:
        """Begin so many, one of each owner in turn."""
        flows = self._flows
        for _ in range(min(count, self._count)):
            # What has begun may have been the end of others.
            if not flows:
                return
            owner = next(iter(flows))
            flow = flows.pop(owner)
            number = next(iter(flow))
            request = flow.pop(number)
            if flow:
                flows[owner] = flow
            self._count -= 1
            self._admission.took(1)
            self._begin(owner, request, now)
