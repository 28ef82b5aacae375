"""When the counters of sessions are looked at, for interim records and for the spool."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from heapq import heappop, heappush


class Rounds:
    """Who is due in which second: eight octets a session.  One that has ended is passed over by who asks."""

    __slots__ = ("_moved", "_seconds", "_slots")

    def __init__(self) -> None:
        self._slots: dict[int, array[int]] = {}
        self._seconds: list[int] = []
        # Those that were given another time: their only entry that counts.  0: none does.
        self._moved: dict[int, int] = {}

    def add(self, ppp_id: int, second: int) -> None:
        """*ppp_id*, which has no entry, is due in a second of the monotonic clock."""
        slot = self._slots.get(second)
        if slot is None:
            slot = self._slots[second] = array("Q")
            heappush(self._seconds, second)
        slot.append(ppp_id)
        if ppp_id in self._moved:
            self._moved[ppp_id] = second

    def move(self, ppp_id: int, second: int) -> None:
        """It is due then, not when it was to be; 0: not at all."""
        self._moved[ppp_id] = second
        if second:
            self.add(ppp_id, second)

    def forget(self, ppp_id: int) -> None:
        """It has ended."""
        self._moved.pop(ppp_id, None)

    def due(self, now: float) -> Iterator[tuple[int, int]]:
        """Take those that are due, with their seconds, the longest overdue first; stop at any time."""
        while self._seconds and self._seconds[0] <= now:
            second = self._seconds[0]
            slot = self._slots[second]
            while slot:
                ppp_id = slot.pop()
                if self._moved.get(ppp_id, second) == second:
                    yield ppp_id, second
            del self._slots[second]
            heappop(self._seconds)
