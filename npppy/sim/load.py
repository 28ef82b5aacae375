"""When subscribers come and go: all of them, at a rate or as fast as they are answered; a while later all go again.

Meanwhile some go at random and dial again, those that were lost may dial again, and power cuts take all at once.

No I/O: a shell calls :meth:`Load.poll` after everything that has happened, and when the time has come that it names.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Protocol

from ..ppp.cause import Cause
from ..ppp.link import Call, Upper
from ..wheel import Wheel
from .report import Report, Round
from .subscriber import Credentials, Subscriber
from .traffic import Traffic

#: Sessions ended in one go, between which the event loop does its other work.
BATCH = 64
#: Seconds between two of them.
PAUSE = 0.005
#: Who dials again does so after a time that is so much longer or shorter than planned.
JITTER = 0.25
#: Subscribers drawn at random until one is found that is up.
DRAWS = 32


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
    #: While all hold: sessions a second, on average, that end and are dialled again at once; and how they end, in turn
    #: at random.
    churn: float = 0.0
    churn_by: tuple[Ending, ...] = (Ending.LCP,)
    #: How often all have their power cut after *hold* seconds, and are dialled anew.
    reconnects: int = 0
    #: Seconds, give or take JITTER of them, after which those dial again that have failed or were lost; 0: they do not.
    redial: float = 0.0


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

    def vanish(self) -> None:
        """The same as if its power had been cut: what it alone has of connections falls silent, too."""

    def facts(self) -> dict[str, object]:
        """What the carrier knows of a call that there is, for who looks on."""


class Makers(Protocol):
    """What a load needs of the carrier, of the traffic, and of others that run along with it."""

    def dial(self, line: Line) -> Dial:
        """How a line reaches the concentrator."""

    def traffic(self, subscriber: Subscriber) -> Traffic:
        """What a subscriber does when it is up for the first time."""

    def cut(self, now: float) -> None:
        """The power has been cut: there are no calls any more, and what they had in common falls silent, too."""

    def gathered(self, now: float) -> float | None:
        """All are up: since when all are elsewhere, too; None: they are not yet, and the load is to be polled then."""

    def settled(self, now: float) -> bool:
        """All is to end: whether what is on its way has come back, or is given up.  If not, poll the load then."""


#: Hears of "up" and "down" and of the line.
Listener = Callable[[str, "Line"], Any]


class Line:
    """One subscriber, from its dialling to its end."""

    __slots__ = (
        "_load",
        "again",
        "began",
        "credentials",
        "dial",
        "leaving",
        "number",
        "reason",
        "subscriber",
        "traffic",
        "up_at",
    )

    def __init__(self, load: Load, number: int, credentials: Credentials) -> None:
        self.number = number
        self.credentials = credentials
        self.began = 0.0
        #: When it came up first; None: not yet.
        self.up_at: float | None = None
        #: Why it has ended; "" as long as it has not.
        self.reason = ""
        #: It goes because we want it to; and it is to dial again then.
        self.leaving = False
        self.again = False
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
        self.leaving = True
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

    def vanish(self, now: float) -> None:
        """Go without a word, as if the power had been cut; :meth:`ended` follows at once."""
        self.leaving = True
        self.dial.vanish()
        if self.subscriber is None:
            self.failed("power cut", now)
        else:
            self.subscriber.gone(Cause.USER_REQUEST, "power cut", now)

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
            self.traffic.finish(ours=self.leaving)
        self._load.line_ended(self, now)

    def malformed(self, reason: str) -> None:
        self._load.report.malformed[reason] += 1


class Stage(enum.IntEnum):
    DIALLING = 0
    #: All are up or have failed; their traffic goes on, or others are not so far yet.
    TRAFFIC = 1
    HOLDING = 2
    #: All is over but for what is on its way.
    SETTLING = 3
    ENDING = 4
    DONE = 5


class Lot(enum.IntEnum):
    """What has become of a subscriber since all were dialled, or dialled anew."""

    NEW = 0
    #: It has come up.
    CAME = 1
    #: It has come up, and then failed to come back.
    STRAYED = 2


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
        #: Subscribers that were dialled since the beginning, or since the last power cut.
        self.started = 0
        #: Begun, and neither up nor ended.
        self.under_way = 0
        self._plan = plan
        self._credentials = credentials
        self._listener = listener
        self._began = 0.0
        # A Lot for each subscriber, and how many of them are not NEW.
        self._lots = bytearray(plan.sessions)
        self._came = 0
        # When to dial a subscriber again, with its number.
        self._back: list[tuple[float, int]] = []
        # Lines whose traffic may still go on; the first is known not to be done.
        self._busy: deque[Line] = deque()
        self._hold_until = 0.0
        # When the next session is to end and be dialled again.
        self._churn_at = math.inf
        self._waiting: deque[Line] = deque()
        self._ending: set[Line] = set()
        #: How those end that are there.
        self.how = plan.ending

    @property
    def up(self) -> int:
        """Sessions that are there."""
        return len(self.lines) - self.under_way

    def poll(self, now: float) -> float | None:
        """Do what is due; returns when to call again at the latest, None: not before something has happened."""
        while True:
            stage = self.stage
            due = self._step(now)
            if self.stage is stage:
                break
        if self._back and (due is None or self._back[0][0] < due):
            due = self._back[0][0]
        return due

    def _step(self, now: float) -> float | None:
        while self._back and self._back[0][0] <= now:
            self._begin(heappop(self._back)[1], now)
        quiet = self._quiet()
        match self.stage:
            case Stage.DIALLING:
                return self._dial(now)
            case Stage.TRAFFIC:
                began = self.makers.gathered(now) if quiet else None
                if began is not None:
                    self.stage = Stage.HOLDING
                    self._hold_until = began + self._plan.hold
                    self._churn_at = began + self._interval()
            case Stage.HOLDING:
                return self._hold(now)
            case Stage.SETTLING:
                if self.makers.settled(now):
                    self.stop()
            case Stage.ENDING:
                return self._end(now)
        return None

    def finish(self) -> None:
        """Let no more begin, wait for what is on its way, and end all that is there as planned."""
        if self.stage < Stage.SETTLING:
            self.stage = Stage.SETTLING
            report, lines = self.report, self.lines.values()
            report.held = sum(line.up_at is not None and not line.leaving for line in lines)
            # Who has never come up yet is not away.
            back = sum(line.again or (line.up_at is None and self._was_up(line.number)) for line in lines)
            report.away = back + sum(self._was_up(number) for _, number in self._back)
            self._back.clear()

    def stop(self, ending: Ending | None = None) -> None:
        """End all that is there at once, by *ending* or as planned; what has not begun does not begin any more."""
        self.finish()
        self.stage = Stage.ENDING
        self.how = ending or self._plan.ending
        self._waiting = deque(self.lines.values())
        self._ending.clear()

    # Dialling.

    def _dial(self, now: float) -> float | None:
        plan = self._plan
        if not self.started:
            self._began = now
        while self.started < plan.sessions:
            if plan.rate:
                due = self._began + self.started / plan.rate
                if now < due:
                    return due
            elif self.under_way >= plan.window:
                return None
            self.started += 1
            self._begin(plan.first + self.started - 1, now)
        # Who dials again until it is answered has not failed.
        if self._came == plan.sessions if plan.redial else not self.under_way:
            self.stage = Stage.TRAFFIC
        return None

    def _begin(self, number: int, now: float) -> None:
        self.under_way += 1
        self.report.dialled(now)
        line = self.lines[number] = Line(self, number, self._credentials(number))
        line.start(now)

    def _quiet(self) -> bool:
        busy = self._busy
        while busy and (busy[0].reason or busy[0].done):
            busy.popleft()
        return not busy

    # While all hold.

    def _hold(self, now: float) -> float | None:
        plan = self._plan
        again = len(self.report.rounds) <= plan.reconnects
        if now >= self._hold_until and again:
            self._cut(now)
            return None
        if now >= self._hold_until or not (self.lines or self._back or again):
            self.finish()
            return None
        while self._churn_at <= now:
            self._churn_at += self._interval()
            self._churn(now)
        due = min(self._hold_until, self._churn_at)
        return due if due < math.inf else None

    def _cut(self, now: float) -> None:
        """The power has gone, and is back."""
        for line in list(self.lines.values()):
            line.vanish(now)
        self._back.clear()
        self.makers.cut(now)
        if self._plan.redial:
            self.report.strayed -= self._lots.count(Lot.STRAYED)
        self.report.rounds.append(Round())
        self._lots = bytearray(self._plan.sessions)
        self._came = self.started = 0
        self.stage = Stage.DIALLING

    def _churn(self, now: float) -> None:
        """End a session that is up."""
        plan = self._plan
        for _ in range(DRAWS):
            line = self.lines.get(plan.first + int(self._chance() * plan.sessions))
            if line is not None and line.up_at is not None and not line.leaving:
                line.again = True
                self.report.churned += 1
                how = plan.churn_by[int(self._chance() * len(plan.churn_by))]
                if how is Ending.NONE:
                    line.vanish(now)
                else:
                    line.end(how, now)
                return

    def _chance(self) -> float:
        """From 0 to less than 1."""
        return int.from_bytes(self.rng(6), "big") / (1 << 48)

    def _interval(self) -> float:
        """Seconds between two sessions that end, each of which does so whatever the others do."""
        churn = self._plan.churn
        return -math.log(1 - self._chance()) / churn if churn else math.inf

    # The end.

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

    def _place(self, line: Line) -> int:
        return line.number - self._plan.first

    def _was_up(self, number: int) -> bool:
        """Whether a subscriber has come up before."""
        return self._lots[number - self._plan.first] > Lot.NEW

    def line_up(self, line: Line, now: float) -> None:
        """For the first time."""
        self.under_way -= 1
        place = self._place(line)
        lot = self._lots[place]
        self._lots[place] = Lot.CAME
        self._came += lot == Lot.NEW
        self.report.strayed -= lot == Lot.STRAYED
        self.report.came_up(line.began, now, first=lot == Lot.NEW)
        if not line.done:
            self._busy.append(line)
        self._listener("up", line)

    def line_ended(self, line: Line, now: float) -> None:
        del self.lines[line.number]
        report, place = self.report, self._place(line)
        if line.up_at is None:
            self.under_way -= 1
            if not line.leaving or self._lots[place] == Lot.NEW:
                report.failed[line.reason] += 1
            if not line.leaving and self._lots[place] == Lot.CAME:
                self._lots[place] = Lot.STRAYED
                report.strayed += 1
        elif not line.leaving:
            report.lost[line.reason] += 1
        self._ending.discard(line)
        if self.stage < Stage.SETTLING:
            if line.again:
                heappush(self._back, (now, line.number))
            elif self._plan.redial and not line.leaving:
                wait = self._plan.redial * (1 + JITTER * (2 * self._chance() - 1))
                heappush(self._back, (now + wait, line.number))
        self._listener("down", line)
