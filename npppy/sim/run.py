"""The shell around a load: event loop, clock, signals, progress."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from ..wheel import Wheel
from .access import Access
from .load import Dial, Ending, Line, Load, Plan, Stage
from .report import Report
from .subscriber import Credentials, Subscriber
from .traffic import Pinger, Traffic
from .tun import TunTraffic

log = logging.getLogger("npppy.sim")

#: Seconds between two looks at the progress.
PROGRESS = 0.5
#: Seconds that a carrier may take to take leave.
FAREWELL = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pings:
    target: IPv4Address
    count: int
    interval: float
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All there is to a run."""

    plan: Plan
    access: Access
    credentials: Callable[[int], Credentials]
    pings: Pings | None = None
    tun: bool = False
    #: A JSON object on standard output for each session that comes up or goes.
    events: bool = False


class Run:
    """One load by one carrier.  Raises OSError if its sockets cannot be had."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._loop = asyncio.get_running_loop()
        self._clock = time.monotonic
        self._wheel = Wheel(self._clock())
        self._done = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.report = Report(setup.plan.sessions)
        # Seconds that the carrier may take to take leave, and when it began to; None: it has not.
        self._farewell = FAREWELL
        self._left: float | None = None
        # Nothing here is worth guessing; secrets would cost a system call each time.
        rng = random.Random().randbytes
        self._carrier = setup.access.open(self._wheel, rng)
        self._load = Load(setup.plan, setup.credentials, self, self.report, self._wheel, rng, self._event)

    async def run(self) -> Report:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._interrupt)
        self._carrier.start(self._clock, self._turn)
        progress = self._loop.create_task(self._progress()) if sys.stderr.isatty() else None
        try:
            self._turn()
            await self._done.wait()
        finally:
            if progress is not None:
                progress.cancel()
                sys.stderr.write("\r\x1b[K")
            self._carrier.close()
            self.report.drops.update(self._carrier.drops)
        return self.report

    def _turn(self) -> None:
        """Something has happened, or the time has come."""
        now = self._clock()
        self._wheel.advance(now)
        due = self._load.poll(now)
        if self._load.stage is Stage.DONE:
            if self._left is None:
                self._left = now
                if self._load.how is Ending.NONE:
                    self._farewell = 0.0
                else:
                    self._carrier.shut(now)
            due = self._left + self._farewell
            if now >= due or not self._carrier.busy:
                self._done.set()
                return
        if self._timer is not None:
            self._timer.cancel()
        times = [when for when in (due, self._wheel.next()) if when is not None]
        self._timer = self._loop.call_later(max(0.0, min(times) - now), self._turn) if times else None

    def _interrupt(self) -> None:
        """The first signal ends all in good order, the second one without waiting for answers."""
        again = self._load.stage in (Stage.ENDING, Stage.DONE)
        if again:
            self._farewell = 0.0
        if self._load.stage is not Stage.DONE:
            self._load.stop(Ending.CALL if again else None)
        self._turn()

    # What the load asks for.

    def dial(self, line: Line) -> Dial:
        return self._carrier.dial(line)

    def traffic(self, subscriber: Subscriber) -> Traffic:
        if self._setup.tun:
            return TunTraffic(subscriber)
        pings = self._setup.pings
        if pings is None:
            return Traffic()
        return Pinger(
            subscriber,
            int(pings.target),
            self._wheel,
            self.report,
            count=pings.count,
            interval=pings.interval,
            size=pings.size,
        )

    # What is told.

    def _event(self, event: str, line: Line) -> None:
        if not self._setup.events and not log.isEnabledFor(logging.INFO):
            return
        facts: dict[str, object] = {"event": event, "number": line.number}
        facts["user"] = line.credentials.name.decode(errors="replace")
        subscriber = line.subscriber
        if event == "up":
            assert subscriber is not None
            assert line.up_at is not None
            facts |= {
                "address": str(IPv4Address(subscriber.address)),
                "dns": [str(IPv4Address(address)) for address in subscriber.dns],
                "mru": subscriber.mru,
                "peer_mru": subscriber.peer_mru,
                "mppe": None if subscriber.mppe is None else str(subscriber.mppe.modes[0]),
                **line.dial.facts(),
                "ms": round((line.up_at - line.began) * 1000, 1),
            }
        else:
            facts["reason"] = line.reason
        if self._setup.events:
            print(json.dumps(facts), flush=True)
        else:
            log.info("subscriber=%d %s", line.number, " ".join(f"{key}={value}" for key, value in facts.items()))

    async def _progress(self) -> None:
        while True:
            report, load = self.report, self._load
            sys.stderr.write(
                f"\r\x1b[K{load.stage.name.lower()}: {load.started} of {report.sessions} begun, {report.up} came up, "
                f"{report.failed.total()} failed, {report.lost.total()} lost, {len(load.lines)} there, "
                f"{report.pings_answered} of {report.pings_sent} pings answered"
            )
            sys.stderr.flush()
            await asyncio.sleep(PROGRESS)
