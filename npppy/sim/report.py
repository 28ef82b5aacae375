"""What came of a run: counted while it goes on, told at its end."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

#: The percentiles of times that are told.
PERCENTILES = (50, 90, 99)


class Report:
    """Times are on the monotonic clock, in seconds."""

    def __init__(self, sessions: int) -> None:
        #: How many sessions were asked for.
        self.sessions = sessions
        #: Those that came up, those that did not by reason, and those that came up and were ended by the other side.
        self.up = 0
        self.failed: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.first_dial: float | None = None
        self.last_up: float | None = None
        self.setup_times = array("d")
        self.pings_sent = 0
        self.pings_answered = 0
        #: Echo Replies that were for somebody else, or not what was sent.
        self.pings_wrong = 0
        #: Right ones that came again: networks do that.
        self.pings_repeated = 0
        self.ping_times = array("d")
        #: Frames of the concentrator that break their format.
        self.malformed: Counter[str] = Counter()
        #: What the carrier dropped, by reason.
        self.drops: Counter[str] = Counter()

    def dialled(self, now: float) -> None:
        """A subscriber has begun."""
        if self.first_dial is None:
            self.first_dial = now

    def came_up(self, began: float, now: float) -> None:
        """A subscriber that began at *began* is up for the first time."""
        self.up += 1
        self.last_up = now
        self.setup_times.append(now - began)

    def ping_answered(self, seconds: float) -> None:
        self.pings_answered += 1
        self.ping_times.append(seconds)

    @property
    def good(self) -> bool:
        """All sessions came up, and all pings were answered by the right packet."""
        return self.up == self.sessions and self.pings_answered == self.pings_sent and not self.pings_wrong

    @property
    def rate(self) -> float:
        """Set-ups a second, from the first dialling to the last session up; 0 if that cannot be said."""
        if self.first_dial is None or self.last_up is None or self.last_up <= self.first_dial:
            return 0.0
        return self.up / (self.last_up - self.first_dial)

    def summary(self) -> dict[str, Any]:
        """As JSON shows it.  Times are in milliseconds."""
        began, ended = self.first_dial, self.last_up
        return {
            "sessions": self.sessions,
            "up": self.up,
            "failed": dict(self.failed),
            "lost": dict(self.lost),
            "seconds": round(ended - began, 3) if began is not None and ended is not None else 0.0,
            "rate": round(self.rate, 1),
            "setup_ms": milliseconds(self.setup_times),
            "pings": {
                "sent": self.pings_sent,
                "answered": self.pings_answered,
                "wrong": self.pings_wrong,
                "repeated": self.pings_repeated,
                "rtt_ms": milliseconds(self.ping_times),
            },
            "malformed": dict(self.malformed),
            "drops": dict(self.drops),
        }

    def as_json(self) -> str:
        return json.dumps(self.summary())

    def as_text(self) -> str:
        """A few lines for people."""
        facts = self.summary()
        lines = [f"sessions   {self.up} of {self.sessions} up"]
        for title, reasons in (
            ("failed", self.failed),
            ("lost", self.lost),
            ("malformed", self.malformed),
            ("dropped", self.drops),
        ):
            lines += [f"{title:<10} {count} {reason}" for reason, count in reasons.most_common()]
        if self.up:
            lines.append(f"rate       {facts['rate']} sessions/s in {facts['seconds']} s")
            lines.append(f"set-up     {_times(facts['setup_ms'])}")
        if self.pings_sent:
            lines.append(
                f"pings      {self.pings_sent} sent, {self.pings_answered} answered, {self.pings_wrong} wrong"
            )
        if self.pings_answered:
            lines.append(f"round trip {_times(facts['pings']['rtt_ms'])}")
        return "\n".join(lines)


def milliseconds(times: Sequence[float]) -> dict[str, float]:
    """Percentiles and the maximum of *times* in seconds, as milliseconds; empty without any."""
    if not times:
        return {}
    ranked = sorted(times)
    found = {f"p{p}": ranked[min(len(ranked) - 1, len(ranked) * p // 100)] for p in PERCENTILES}
    found["max"] = ranked[-1]
    return {name: round(value * 1000, 1) for name, value in found.items()}


def _times(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value} ms" for name, value in found.items())
