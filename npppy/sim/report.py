"""What came of a run: counted while it goes on, told at its end."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .tally import Tally

#: The percentiles of times that are told.
PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class Round:
    """All subscribers come up once: at the beginning, and again each time that their power was cut."""

    #: How many of them have.
    up: int = 0
    #: When the first was dialled, and when the last came up, on the monotonic clock; None: not yet.
    began: float | None = None
    last: float | None = None

    @property
    def seconds(self) -> float:
        return self.last - self.began if self.began is not None and self.last is not None else 0.0

    @property
    def rate(self) -> float:
        """Sessions a second, from the first dialling to the last session up; 0 if that cannot be said."""
        return self.up / self.seconds if self.seconds > 0 else 0.0

    def merge(self, other: Round) -> None:
        self.up += other.up
        begun = [when for when in (self.began, other.began) if when is not None]
        lasts = [when for when in (self.last, other.last) if when is not None]
        self.began, self.last = min(begun, default=None), max(lasts, default=None)

    def facts(self) -> dict[str, Any]:
        return {"up": self.up, "seconds": round(self.seconds, 3), "rate": round(self.rate, 1)}


class Report:
    """Times are on the monotonic clock, in seconds.  Those of several processes can be merged."""

    def __init__(self, sessions: int) -> None:
        #: How many sessions were asked for.
        self.sessions = sessions
        #: Set-ups that were begun, that came to a session, and that did not, by reason.
        self.tried = 0
        self.up = 0
        self.failed: Counter[str] = Counter()
        #: Sessions that were ended by the other side, by reason.
        self.lost: Counter[str] = Counter()
        #: Sessions that were ended to be dialled again.
        self.churned = 0
        #: Subscribers that had come up and then failed to come back, those that came back yet later not counted.
        self.strayed = 0
        #: When all were told to go: how many were up, and how many were about to come back.
        self.held = 0
        self.away = 0
        #: The first one, and one for each time that all were cut.
        self.rounds = [Round()]
        self.setup_times = array("d")
        self.pings_sent = 0
        self.pings_answered = 0
        #: Sent right before we ended the session.
        self.pings_cut = 0
        #: Echo Replies that were for somebody else, or not what was sent.
        self.pings_wrong = 0
        #: Right ones that came again: networks do that.
        self.pings_repeated = 0
        self.ping_times = array("d")
        #: Of the data that went through the sessions; None: there was none.
        self.traffic: Tally | None = None
        #: Frames of the concentrator that break their format.
        self.malformed: Counter[str] = Counter()
        #: What the carrier dropped, by reason.
        self.drops: Counter[str] = Counter()

    def dialled(self, now: float) -> None:
        """A subscriber has begun."""
        self.tried += 1
        if self.rounds[-1].began is None:
            self.rounds[-1].began = now

    def came_up(self, began: float, now: float, *, first: bool = True) -> None:
        """A set-up that began at *began* has come to a session, which is its subscriber's *first* of this round."""
        self.up += 1
        self.setup_times.append(now - began)
        if first:
            self.rounds[-1].up += 1
            self.rounds[-1].last = now

    def ping_answered(self, seconds: float) -> None:
        self.pings_answered += 1
        self.ping_times.append(seconds)

    def merge(self, other: Report) -> None:
        """Add what another process, which ran at the same time, has counted of its own subscribers."""
        self.sessions += other.sessions
        self.tried += other.tried
        self.up += other.up
        self.churned += other.churned
        self.strayed += other.strayed
        self.held += other.held
        self.away += other.away
        self.pings_sent += other.pings_sent
        self.pings_answered += other.pings_answered
        self.pings_cut += other.pings_cut
        self.pings_wrong += other.pings_wrong
        self.pings_repeated += other.pings_repeated
        self.setup_times += other.setup_times
        self.ping_times += other.ping_times
        if other.traffic is not None:
            self.traffic = self.traffic or Tally()
            self.traffic.merge(other.traffic)
        for mine, theirs in (
            (self.failed, other.failed),
            (self.lost, other.lost),
            (self.malformed, other.malformed),
            (self.drops, other.drops),
        ):
            mine.update(theirs)
        self.rounds += [Round() for _ in other.rounds[len(self.rounds) :]]
        for ours, its in zip(self.rounds, other.rounds, strict=False):
            ours.merge(its)

    @property
    def good(self) -> bool:
        """All came up, each time, none failed to come back, and what they sent came back, too."""
        return (
            all(each.up == self.sessions for each in self.rounds)
            and not self.strayed
            and self.pings_answered + self.pings_cut == self.pings_sent
            and not self.pings_wrong
            and (self.traffic is None or self.traffic.good)
        )

    def summary(self) -> dict[str, Any]:
        """As JSON shows it; npppysim(1) says what each of it is.  Times are in milliseconds, but for ``seconds``."""
        first = self.rounds[0]
        return {
            "sessions": self.sessions,
            "tried": self.tried,
            "up": self.up,
            "failed": dict(self.failed),
            "lost": dict(self.lost),
            "churned": self.churned,
            "strayed": self.strayed,
            "held": self.held,
            "away": self.away,
            "seconds": round(first.seconds, 3),
            "rate": round(first.rate, 1),
            "reconnects": [each.facts() for each in self.rounds[1:]],
            "setup_ms": milliseconds(self.setup_times),
            "pings": {
                "sent": self.pings_sent,
                "answered": self.pings_answered,
                "cut": self.pings_cut,
                "wrong": self.pings_wrong,
                "repeated": self.pings_repeated,
                "rtt_ms": milliseconds(self.ping_times),
            },
            "traffic": None if self.traffic is None else self.traffic.as_dict(),
            "malformed": dict(self.malformed),
            "drops": dict(self.drops),
        }

    def as_json(self) -> str:
        return json.dumps(self.summary())

    def as_text(self) -> str:
        """A few lines for people."""
        facts = self.summary()
        first = self.rounds[0]
        told: list[tuple[str, str]] = [("sessions", f"{first.up} of {self.sessions} up")]
        again = self.tried > self.sessions
        if again:
            told.append(("set-ups", f"{self.tried} tried, {self.up} came up"))
        for title, reasons in (
            ("failed", self.failed),
            ("lost", self.lost),
            ("malformed", self.malformed),
            ("dropped", self.drops),
        ):
            told += [(title, f"{count} {reason}") for reason, count in reasons.most_common()]
        if self.churned:
            told.append(("churned", f"{self.churned} ended and dialled again"))
        if self.strayed:
            told.append(("strayed", f"{self.strayed} failed to come back"))
        if again or self.away:
            told.append(("at the end", f"{self.held} up, {self.away} away"))
        if first.up:
            told.append(("rate", f"{first.rate:.1f} sessions/s in {first.seconds:.3f} s"))
        for each in self.rounds[1:]:
            text = f"{each.up} of {self.sessions} up, {each.rate:.1f} sessions/s in {each.seconds:.3f} s"
            told.append(("reconnect", text))
        if self.up:
            told.append(("set-up", _times(facts["setup_ms"])))
        if self.pings_sent:
            text = f"{self.pings_sent} sent, {self.pings_answered} answered, {self.pings_wrong} wrong"
            told.append(("pings", text))
        if self.pings_answered:
            told.append(("round trip", _times(facts["pings"]["rtt_ms"])))
        if self.traffic is not None:
            told += self.traffic.as_lines()
        return "\n".join(f"{title:<11}{text}" for title, text in told)


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
