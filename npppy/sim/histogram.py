"""Times, counted by how long they were: quickly, in little room, and so that several counts can be put together."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, frexp

#: Seconds; anything shorter counts as this.
UNIT = 1e-7
#: Buckets to each doubling: a time is off by at most half a bucket, which is 1/128 of it.
STEPS = 64
#: Doublings of UNIT, up to almost half an hour; anything longer counts as the longest.
DOUBLINGS = 34

_LAST = DOUBLINGS * STEPS - 1


class Histogram:
    """Of seconds, log-linear."""

    __slots__ = ("_counts", "count", "longest")

    def __init__(self) -> None:
        self.count = 0
        #: The longest time, exactly.
        self.longest = 0.0
        self._counts = [0] * (_LAST + 1)

    def add(self, seconds: float) -> None:
        self.count += 1
        if seconds > self.longest:
            self.longest = seconds
        # frexp gives [1/2, 1) and a power of two.
        part, power = frexp(seconds * 1e7)
        index = (power - 2) * STEPS + int(part * 128)
        self._counts[0 if index < 0 else index if index <= _LAST else _LAST] += 1

    def merge(self, other: Histogram) -> None:
        self.count += other.count
        self.longest = max(self.longest, other.longest)
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]

    def percentiles(self, wanted: Sequence[float]) -> list[float]:
        """Of rising percentages above 0, the times that so many were not longer than; [] if there were none."""
        if not self.count:
            return []
        found = []
        index, seen = 0, self._counts[0]
        for percent in wanted:
            rank = min(self.count, ceil(percent * self.count / 100))
            while seen < rank:
                index += 1
                seen += self._counts[index]
            power, step = divmod(index, STEPS)
            middle = UNIT * 2.0**power * (1 + (step + 0.5) / STEPS)
            found.append(min(middle, self.longest))
        return found
