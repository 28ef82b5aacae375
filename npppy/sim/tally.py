"""What came of the data that went through sessions: counted while it goes on, put together, told at the end."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from .histogram import Histogram

#: The percentiles of latency that are told.
PERCENTILES = (50, 90, 99, 99.9)
#: Packets in wrong sessions that are told one by one.
FEW = 8


class Stray(NamedTuple):
    """A packet that came in a session which it was not for."""

    #: The subscriber that got it, and the one whose it was, in the same run or in another one.
    subscriber: int
    owner: int
    sequence: int
    same_run: bool


class Tally:
    """Counts of packets, but where something else is said.  May be pickled, and put together by :meth:`merge`.

    A session that negotiates anew counts as another one.
    """

    __slots__ = (
        "behind",
        "corrupt",
        "cut",
        "first_sent",
        "last_sent",
        "latency",
        "lost",
        "octets_received",
        "octets_sent",
        "other",
        "received",
        "reordered",
        "repeated",
        "sent",
        "sessions",
        "silent",
        "stale",
        "strays",
        "unable",
        "unserved",
        "wrong",
    )

    def __init__(self) -> None:
        self.sent = 0
        #: Right replies, each counted once.
        self.received = 0
        #: Without a reply, and those of them that were sent right before their session ended.
        self.lost = 0
        self.cut = 0
        #: Replies of other sessions, those that are not what was sent, and right ones that came again.
        self.wrong = 0
        self.corrupt = 0
        self.repeated = 0
        #: Right ones behind a later one.
        self.reordered = 0
        #: Replies to a session of before, which had this one's address.
        self.stale = 0
        #: What is no reply to a ping: errors, fragments, what somebody else has sent.
        self.other = 0
        #: Due, and not sent, because there was no time.
        self.behind = 0
        #: Of IP packets, sent and rightly received.
        self.octets_sent = 0
        self.octets_received = 0
        #: Sessions that took part; of these, those where some were lost and nothing came back, and those that went, or
        #: saw the end, before it was their turn.
        self.sessions = 0
        self.silent = 0
        self.unserved = 0
        #: Sessions that cannot carry such packets, by reason.
        self.unable: Counter[str] = Counter()
        self.latency = Histogram()
        #: The first few that went wrong.
        self.strays: list[Stray] = []
        #: On the monotonic clock, which all processes of a machine share; None: nothing was sent yet.
        self.first_sent: float | None = None
        self.last_sent = 0.0

    def stray(self, stray: Stray) -> bool:
        """Count a packet that came in the wrong session; whether it is one of the first few."""
        self.wrong += 1
        if len(self.strays) >= FEW:
            return False
        self.strays.append(stray)
        return True

    @property
    def outstanding(self) -> int:
        """Sent, and neither back nor given up."""
        return self.sent - self.received - self.lost - self.cut

    @property
    def good(self) -> bool:
        """Something was sent, all of it that could come back did, as it was sent and where it belongs."""
        return bool(self.sent) and not (self.lost or self.wrong or self.corrupt or self.unable)

    @property
    def seconds(self) -> float:
        """From the first packet sent to the last one."""
        return 0.0 if self.first_sent is None else self.last_sent - self.first_sent

    @property
    def rate(self) -> float:
        """Packets sent a second."""
        return (self.sent - 1) / self.seconds if self.seconds > 0 else 0.0

    def merge(self, other: Tally) -> None:
        """Add what another process has counted."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unable += other.unable
        self.latency.merge(other.latency)
        self.strays = (self.strays + other.strays)[:FEW]
        times = [time for time in (self.first_sent, other.first_sent) if time is not None]
        self.first_sent = min(times, default=None)
        self.last_sent = max(self.last_sent, other.last_sent)

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it.  Latency is in milliseconds."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "unable": dict(self.unable),
            "strays": [stray._asdict() for stray in self.strays],
            "seconds": round(self.seconds, 3),
            "rate": round(self.rate, 1),
            "latency_ms": self._latency(),
        }

    def _latency(self) -> dict[str, float]:
        """Percentiles and the maximum, in milliseconds; empty if nothing came back."""
        latency = self.latency
        if not latency.count:
            return {}
        times = zip(PERCENTILES, latency.percentiles(PERCENTILES), strict=True)
        found = {f"p{percent:g}": round(seconds * 1000, 3) for percent, seconds in times}
        return found | {"max": round(latency.longest * 1000, 3)}

    def as_lines(self) -> list[tuple[str, str]]:
        """(title, text) of a summary for people."""
        lines = [
            (
                "packets",
                f"{self.sent} sent ({self.rate:.1f}/s), {self.received} received, {self.lost} lost, {self.cut} cut, "
                f"{self.wrong} wrong, {self.corrupt} corrupt, {self.repeated} repeated, {self.reordered} reordered",
            ),
            ("octets", f"{self.octets_sent} sent, {self.octets_received} received"),
            ("carried by", f"{self.sessions} sessions, {self.silent} silent, {self.unserved} unserved"),
        ]
        if self.latency.count:
            lines.append(("latency", ", ".join(f"{name} {value} ms" for name, value in self._latency().items())))
        for title, count in (("stale", self.stale), ("other", self.other), ("behind", self.behind)):
            if count:
                lines.append((title, f"{count} packets"))
        lines += [("unable", f"{count} sessions: {reason}") for reason, count in self.unable.most_common()]
        for stray in self.strays:
            whose = f"{stray.owner}" if stray.same_run else f"{stray.owner} of another run"
            lines.append(("wrong", f"packet {stray.sequence} of subscriber {whose} came to {stray.subscriber}"))
        return lines


_COUNTS = (
    "sent",
    "received",
    "lost",
    "cut",
    "wrong",
    "corrupt",
    "repeated",
    "reordered",
    "stale",
    "other",
    "behind",
    "octets_sent",
    "octets_received",
    "sessions",
    "silent",
    "unserved",
)
