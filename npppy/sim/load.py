"""When subscribers come and go: all of them, at a rate or as fast as they are answered; a while later all go again.

No I/O: a shell calls :meth:`Load.poll` after everything that has happened, and when the time has come that it names.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..ppp.cause import Cause
from ..ppp.link import Call, Upper
from ..wheel import Wheel
from .report import Report
from .subscriber import Credentials, Subscriber
from .traffic import Traffic

#: Sessions ended in one go, between which the event loop does its other work.
BATCH = 64
#: Seconds between two of them.
PAUSE = 0.005


class Ending(enum.Enum):
    """How subscribers go."""

    #: LCP's Terminate-Request, then the carrier's way.
    LCP = "lcp"
    #: The carrier's way alone: a PADT, or a CDN.
    CALL = "call"
    #: Without a word.
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    sessions: int
    #: Set-ups begun a second; 0: as many as *window* lets.
    rate: float = 0.0
    #: Without a rate, set-ups under way at a time; in any case, ends under way at a time.
    window: int = 256
    #: Seconds that all stay up, once the last one is and all traffic is done; infinity: until stopped.
    hold: float = 0.0
    ending: Ending = Ending.LCP
    #: The number of the first subscriber.
    first: int = 1


class Owner(Protocol):
    """Whose call it is."""

    def connected(self, call: Call, now: float) -> Upper:
        """There is a call: returns the PPP that speaks on it, which may send at once."""

    def failed(self, reason: str, now: float) -> None:
        """There will be none; *reason* says why in a few words."""


class Dial(Protocol):
    """A carrier's attempt at a call, and the call."""

    def dial(self, now: float) -> None:
        """Begin; the line is told how it ends."""

    def forget(self) -> None:
        """Stop, without a word to anybody."""

    def facts(self) -> dict[str, object]:
        """What the carrier knows of a call that there is, for who looks on."""


class Makers(Protocol):
    """What a load needs of the carrier and of the traffic."""

    def dial(self, line: Line) -> Dial:
        """How a line reaches the concentrator."""

    def traffic(self, subscriber: Subscriber) -> Traffic:
        """What a subscriber does when it is up for the first time."""


#: Hears of "up" and "down" and of the line.
Listener = Callable[[str, "Line"], Any]


class Line:
    """One subscriber, from its dialling to its end."""

    __slots__ = ("_load", "began", "credentials", "dial", "number", "reason", "subscriber", "traffic", "up_at")

    def __init__(self, load: Load, number: int, credentials: Credentials) -> None:
        self.number = number
        self.credentials = credentials
        self.began = 0.0
        #: When it came up first; None: not yet.
        self.up_at: float | None = None
        #: Why it has ended; "" as long as it has not.
        self.reason = ""
        self.subscriber: Subscriber | None = None
        self.traffic: Traffic | None = None
        self._load = load
        #: How it reaches the concentrator.
        self.dial = load.makers.dial(self)

    def start(self, now: float) -> None:
        self.began = now
        self.dial.dial(now)

    @property
    def done(self) -> bool:
        """Its traffic is at its end."""
        return self.traffic is None or self.traffic.done

    def end(self, ending: Ending, now: float) -> None:
        """Go; :meth:`ended` follows, at once or later."""
        subscriber = self.subscriber
        reason = "interrupted" if self.up_at is None else "done"
        if subscriber is None:
            self.dial.forget()
            self.failed(reason, now)
        elif ending is Ending.NONE:
            self.dial.forget()
            subscriber.gone(Cause.USER_REQUEST, reason, now)
        elif ending is Ending.LCP:
            subscriber.end(reason, now)
        else:
            subscriber.abandon(reason, now)

    # The carrier.

    def connected(self, call: Call, now: float) -> Upper:
        load = self._load
        subscriber = Subscriber(self.number, call, self.credentials, self, load.wheel, load.rng, now)
        self.subscriber = subscriber
        return subscriber

    def failed(self, reason: str, now: float) -> None:
        self.ended(reason, now)

    # The subscriber.

    def up(self, now: float) -> None:
        subscriber = self.subscriber
        assert subscriber is not None
        first = self.traffic is None
        if self.traffic is None:
            self.up_at = now
            self.traffic = self._load.makers.traffic(subscriber)
        subscriber.flow = self.traffic
        self.traffic.start(now)
        # Who hears of it may use the session at once.
        if first:
            self._load.line_up(self, now)

    def ended(self, reason: str, now: float) -> None:
        self.reason = reason
        if self.traffic is not None:
            self.traffic.finish()
        self._load.line_ended(self)

    def malformed(self, reason: str) -> None:
        self._load.report.malformed[reason] += 1


class Stage(enum.Enum):
    DIALLING = 0
    #: All are up or have failed; their traffic goes on.
    TRAFFIC = 1
    HOLDING = 2
    ENDING = 3
    DONE = 4


class Load:
    """Runs a plan.  *credentials* gives those of a subscriber by its number."""

    def __init__(
        self,
        plan: Plan,
        credentials: Callable[[int], Credentials],
        makers: Makers,
        report: Report,
        wheel: Wheel,
        rng: Callable[[int], bytes],
        listener: Listener,
    ) -> None:
        self.makers = makers
        self.report = report
        self.wheel = wheel
        self.rng = rng
        self.stage = Stage.DIALLING
        #: Those that have begun and not ended, by number.
        self.lines: dict[int, Line] = {}
        self.started = 0
        self._plan = plan
        self._credentials = credentials
        self._listener = listener
        # Begun, and neither up nor ended.
        self._under_way = 0
        self._began = 0.0
        # Lines whose traffic may still go on; the first is known not to be done.
        self._busy: deque[Line] = deque()
        self._hold_until = 0.0
        self._waiting: deque[Line] = deque()
        self._ending: set[Line] = set()
        #: How those end that are there.
        self.how = plan.ending

    def poll(self, now: float) -> float | None:
        """Do what is due; returns when to call again at the latest, None: not before something has happened."""
        due: float | None = None
        if self.stage is Stage.DIALLING:
            due = self._dial(now)
        if self.stage is Stage.TRAFFIC and self._quiet():
            self.stage = Stage.HOLDING
            self._hold_until = now + self._plan.hold
        if self.stage is Stage.HOLDING:
            if now >= self._hold_until or not self.lines:
                self.stop()
            elif self._hold_until < float("inf"):
                due = self._hold_until
        if self.stage is Stage.ENDING:
            due = self._end(now)
        return due

    def stop(self, ending: Ending | None = None) -> None:
        """End all that is there, by *ending* or as planned; what has not begun does not begin any more."""
        self.stage = Stage.ENDING
        self.how = ending or self._plan.ending
        self._waiting = deque(self.lines.values())
        self._ending.clear()

    def _dial(self, now: float) -> float | None:
        plan = self._plan
        if not self.started:
            self._began = now
        while self.started < plan.sessions:
            if plan.rate:
                due = self._began + self.started / plan.rate
                if now < due:
                    return due
            elif self._under_way >= plan.window:
                return None
            number = plan.first + self.started
            self.started += 1
            self._under_way += 1
            self.report.dialled(now)
            line = self.lines[number] = Line(self, number, self._credentials(number))
            line.start(now)
        if not self._under_way:
            self.stage = Stage.TRAFFIC
        return None

    def _quiet(self) -> bool:
        busy = self._busy
        while busy and (busy[0].reason or busy[0].done):
            busy.popleft()
        return not busy

    def _end(self, now: float) -> float | None:
        for _ in range(BATCH):
            if not self._waiting or len(self._ending) >= self._plan.window:
                break
            line = self._waiting.popleft()
            if not line.reason:
                self._ending.add(line)
                line.end(self.how, now)
        if not self.lines:
            self.stage = Stage.DONE
            return None
        return now + PAUSE if self._waiting and len(self._ending) < self._plan.window else None

    # The lines.

    def line_up(self, line: Line, now: float) -> None:
        """For the first time."""
        self._under_way -= 1
        self.report.came_up(line.began, now)
        self._busy.append(line)
        self._listener("up", line)

    def line_ended(self, line: Line) -> None:
        del self.lines[line.number]
        if line.up_at is None:
            self._under_way -= 1
            self.report.failed[line.reason] += 1
        elif line not in self._ending:
            self.report.lost[line.reason] += 1
        self._ending.discard(line)
        self._listener("down", line)
