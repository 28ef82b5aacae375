"""The vendors' forms of rates, made into limits.

Where a packet has several, each way is limited by the first of these that says something of it:

1. Mikrotik-Rate-Limit, ``rx[/tx] [burst rates [thresholds [times [priority [least rates]]]]]``, seen from the NAS: *rx*
   is from the peer.  Bits a second; ``k``, ``M`` and ``G`` stand for thousands, millions and thousands of millions.
2. Cisco-AVPair: ``lcp:interface-config#1=rate-limit output RATE BURST ...`` and ``ip:qos-policy-out=add-class(sub,
   (class-default),police(RATE,BURST,...))``, each with ``input`` or ``in`` for what comes from the peer; also
   ``sub-qos-policy-out=RATE``.  Bits a second, and octets.  What names a policy of the NAS, or limits but some of the
   packets (``access-group``), says nothing here.
3. Filter-Id as accel-ppp reads it: ``DOWN/UP``, or one rate for both ways, in kbit/s or with a unit of ``B``, ``K``,
   ``M`` or ``G``; and the ``rate-limit`` of a Cisco-AVPair.  Any other is the name of a filter.  Rates for some hours
   of the day, ``1,DOWN/UP``, say nothing.
4. RP-Downstream-Speed-Limit and RP-Upstream-Speed-Limit, kbit/s.
5. PPPD-Downstream-Speed-Limit and PPPD-Upstream-Speed-Limit, kbit/s.
6. WISPr-Bandwidth-Max-Down and WISPr-Bandwidth-Max-Up, bit/s.

A rate of 0 is no limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ...pipex.base import Police
from ...pipex.police import nearest
from ...text import printable
from .packet import Received

#: The ways, by their fields in a Profile, and what limits them; None: nothing does.
Limits = dict[str, Police | None]

UP: Final = "police_up"
DOWN: Final = "police_down"

_UNITS: Final = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3}

_NUMBER: Final = r"(\d{1,15})([bkmg]?)"
# What follows a blank is not looked at (accel-ppp); behind a single number it makes a name of it.
_SIMPLE: Final = re.compile(rf"{_NUMBER}(?:[/\\:]{_NUMBER}(?:[ \t].*)?)?", re.ASCII | re.IGNORECASE)
_RATE_LIMIT: Final = re.compile(r"\brate-limit +(input|output) +(\d{1,15})(?: +(\d{1,15}))?(?: |\Z)", re.ASCII)
_POLICY: Final = re.compile(
    r"\b(?:sub-)?qos-policy-(in|out)=(?:(\d{1,15})\Z|.*\bpolice\((\d{1,15})(?:,(\d{1,15}))?[,)])", re.ASCII
)
_PAIR: Final = re.compile(r"(\d{1,15})([kmg]?)(?:/(\d{1,15})([kmg]?))?", re.ASCII | re.IGNORECASE)
_PRIORITY: Final = re.compile(r"[1-8](?:/[1-8])?")
_TIMES: Final = re.compile(r"(\d{1,6})s?(?:/(\d{1,6})s?)?", re.ASCII)


class Unusable(ValueError):
    """An attribute has a value that cannot be obeyed."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name


def limits(received: Received) -> Limits:
    """What a packet says of rates; a way that it says nothing of is left out.

    Raises :class:`npppy.cursor.Malformed`, and :class:`Unusable`.
    """
    found: Limits = {}
    # The last one counts.
    found |= _whole(received, "WISPr-Bandwidth-Max-", "Down", "Up", 1)
    found |= _whole(received, "PPPD-", "Downstream-Speed-Limit", "Upstream-Speed-Limit", 1000)
    found |= _whole(received, "RP-", "Downstream-Speed-Limit", "Upstream-Speed-Limit", 1000)
    found |= _texts(received, "Filter-Id", filter_id)
    found |= _texts(received, "Cisco-AVPair", cisco)
    found |= _texts(received, "Mikrotik-Rate-Limit", mikrotik)
    return found


def _whole(received: Received, prefix: str, down: str, up: str, unit: int) -> Limits:
    found = {}
    for way, name in ((DOWN, prefix + down), (UP, prefix + up)):
        rate = received.integer(name)
        if rate is not None:
            found[way] = nearest(rate * unit)
    return found


def _texts(received: Received, name: str, read: Callable[[str], Limits]) -> Limits:
    found: Limits = {}
    if name in received:
        for text in received.all_texts(name):
            found |= read(text)
    return found


def filter_id(text: str) -> Limits:
    """Of accel-ppp."""
    match = _SIMPLE.fullmatch(text.strip())
    if match is None:
        return cisco(text)
    down = _bits(match[1], match[2] or "k")
    up = down if match[3] is None else _bits(match[3], match[4] or "k")
    return {DOWN: nearest(down), UP: nearest(up)}


def cisco(text: str) -> Limits:
    match = _RATE_LIMIT.search(text)
    if match is not None:
        way, rate, burst = match.groups()
    else:
        match = _POLICY.search(text)
        if match is None:
            return {}
        way, alone, rate, burst = match.groups()
        rate = rate or alone
    return {UP if way in ("input", "in") else DOWN: nearest(int(rate), int(burst or 0))}


def mikrotik(text: str) -> Limits:
    """A queue with a burst passes *burst rate* until the mean over *time* has come to *threshold*.

    What it passes beyond *rate* until then is what the bucket holds.
    """
    words = text.split()
    if not words:
        return {UP: None, DOWN: None}
    try:
        if len(words) > 6:
            raise ValueError("too many words")
        rates, *rest = (_pair(word) for word in words[:3])
        bursts = rest[0] if rest else rates
        thresholds = rest[1] if len(rest) > 1 else rates
        times = _times(words[3]) if len(words) > 3 else (1, 1)
        if len(words) > 4 and not _PRIORITY.fullmatch(words[4]):
            raise ValueError("the priority")
        if len(words) > 5:
            _pair(words[5])
    except ValueError as error:
        why = f'"{printable(text[:100])}" cannot be read: {error}'
        raise Unusable("Mikrotik-Rate-Limit", why) from None
    found: Limits = {}
    for way, rate, peak, threshold, time in zip((UP, DOWN), rates, bursts, thresholds, times, strict=True):
        burst = (peak - rate) * threshold * time // (8 * peak) if peak > rate else 0
        found[way] = nearest(rate, burst)
    return found


def _bits(number: str, unit: str) -> int:
    return int(number) * _UNITS[unit.lower()]


def _pair(word: str) -> tuple[int, int]:
    match = _PAIR.fullmatch(word)
    if match is None:
        raise ValueError(f'"{printable(word)}"')
    first = _bits(match[1], match[2])
    return first, first if match[3] is None else _bits(match[3], match[4])


def _times(word: str) -> tuple[int, int]:
    match = _TIMES.fullmatch(word)
    if match is None:
        raise ValueError(f'"{printable(word)}"')
    return int(match[1]), int(match[2] or match[1])
