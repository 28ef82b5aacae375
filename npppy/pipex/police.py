"""Limits of a rate, as operators and servers give them, made into token buckets."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from .base import Police

#: Seconds of a rate that may pass at once where no burst is given, and octets at least: ten whole packets.
BURST_TIME: Final = 0.1
LEAST_BURST: Final = 15_000
#: Octets; what the programs can count with.
MOST_BURST: Final = 18 * 10**9

#: Bits a second.
LEAST_RATE: Final = 8_000
MOST_RATE: Final = 10**12


def default_burst(octets: int) -> int:
    """The burst in octets of a rate in octets a second."""
    return max(int(octets * BURST_TIME), LEAST_BURST)


@lru_cache(maxsize=1024)
def nearest(rate: int, burst: int = 0) -> Police | None:
    """The bucket that is nearest to a rate in bit/s and a burst in octets, neither of them negative.

    A rate of 0 is no limit, a burst of 0 the one that fits the rate.  Those of one plan are all the same object.
    """
    if not rate:
        return None
    octets = min(max(rate, LEAST_RATE), MOST_RATE) // 8
    return Police(octets, min(max(burst, LEAST_BURST), MOST_BURST) if burst else default_burst(octets))
