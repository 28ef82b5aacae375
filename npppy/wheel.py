"""The one timing wheel: all timers of all sessions, and one timer of the event loop.

An object that waits derives from :class:`Timed`; it has one deadline, which :meth:`Wheel.arm` sets and moves.  Time is
a monotonic clock in seconds, handed in, so that tests run an hour of timers in a millisecond.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from heapq import heapify, heappop, heappush

log = logging.getLogger("npppy.wheel")

#: Seconds a tick: the precision of every timer.  A power of two, so that ticks convert to seconds and back exactly.
TICK = 0.125

# Of the buckets that there are before one looks for empty ones: more than five minutes of them.
_SWEEP = 4096


class Timed(ABC):
    """Something with one deadline."""

    __slots__ = ("due",)

    #: The tick at which :meth:`expire` is called; 0 while not armed.
    due: int

    def __init__(self) -> None:
        self.due = 0

    @abstractmethod
    def expire(self, now: float) -> None:
        """The deadline has passed.  The object is not armed any more."""


class Wheel:
    """Deadlines in buckets of one tick.  Arming, disarming and expiring are O(1), but for the first of a tick."""

    __slots__ = ("_buckets", "_room", "_ticks", "tick")

    def __init__(self, now: float) -> None:
        #: The last tick that was served.
        self.tick = int(now / TICK)
        # By tick, with the tick's own number: one object for all that wait for it.  An insertion-ordered dict stands in
        # for a set, so that what was armed first expires first.
        self._buckets: dict[int, tuple[int, dict[Timed, None]]] = {}
        self._ticks: list[int] = []
        # So many buckets there may be before the empty ones are swept out.
        self._room = _SWEEP

    def arm(self, timed: Timed, when: float) -> None:
        """Set the deadline of *timed* to the time *when*, in place of the one it had."""
        self.disarm(timed)
        # Rounded up: nothing expires early.
        due = max(int(when / TICK) + 1, self.tick + 1)
        found = self._buckets.get(due)
        if found is None:
            if len(self._buckets) >= self._room:
                self._sweep()
            self._buckets[due] = due, {timed: None}
            heappush(self._ticks, due)
        else:
            due, bucket = found
            bucket[timed] = None
        timed.due = due

    def disarm(self, timed: Timed) -> None:
        """Forget the deadline of *timed*, if it has one."""
        found = self._buckets.get(timed.due)
        timed.due = 0
        if found is not None:
            bucket = found[1]
            del bucket[timed]
            if not bucket:
                # Else it would keep the room that it has had for all.
                bucket.clear()

    def advance(self, now: float) -> None:
        """Expire all that is due at *now*.  What expiring arms anew comes at the next tick, not in this call."""
        target = int(now / TICK)
        ticks = self._ticks
        while ticks and ticks[0] <= target:
            due = heappop(ticks)
            self.tick = due
            for timed in self._buckets.pop(due)[1]:
                # Expiring one may have disarmed or moved another of the same tick.
                if timed.due == due:
                    timed.due = 0
                    try:
                        timed.expire(now)
                    except Exception:
                        # A mistake in one session must not stop the clock of all others.
                        log.exception("timer of %s failed", type(timed).__name__)
        self.tick = max(self.tick, target)

    def next(self) -> float | None:
        """The time of the earliest deadline, or None.  It may be early where the deadline was moved."""
        ticks = self._ticks
        while ticks and not self._buckets[ticks[0]][1]:
            del self._buckets[heappop(ticks)]
        return ticks[0] * TICK if ticks else None

    def _sweep(self) -> None:
        """Drop the buckets that disarming has emptied: deadlines far away may come and go for days."""
        self._buckets = {due: bucket for due, bucket in self._buckets.items() if bucket[1]}
        self._ticks[:] = self._buckets
        heapify(self._ticks)
        self._room = max(_SWEEP, 2 * len(self._buckets))

    def __len__(self) -> int:
        """How many deadlines are set."""
        return sum(len(bucket) for _, bucket in self._buckets.values())
