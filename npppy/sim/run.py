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
from typing import Protocol

from ..wheel import Wheel
from .access import Access
from .load import Dial, Ending, Line, Load, Plan, Stage
from .progress import INTERVAL, Progress, Snapshot, snapshot
from .report import Report
from .stream import Data, Pacer
from .subscriber import Credentials, Subscriber
from .tally import Tally
from .traffic import Pinger, Traffic
from .tun import TunTraffic

log = logging.getLogger("npppy.sim")

#: Seconds that a carrier may take to take leave.
FAREWELL = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pings:
    target: IPv4Address
    count: int = 1
    #: Seconds.
    interval: float = 1.0
    #: Octets of payload.
    size: int = 56


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All there is to a run."""

    plan: Plan
    access: Access
    credentials: Callable[[int], Credentials]
    pings: Pings | None = None
    #: What goes through all sessions together.
    data: Data | None = None
    tun: bool = False
    #: A JSON object on standard output for each session that comes up or goes.
    events: bool = False


class Leader(Protocol):
    """Who leads several processes, each of which has a run."""

    def lead(self, run: Run) -> None:
        """Call its methods when it is time."""

    def ready(self) -> None:
        """This one is as far as the others are to be: :meth:`Run.met` follows when they are."""

    def tell(self, found: Snapshot) -> None:
        """How it goes on."""


class Run:
    """One load by one carrier.  Raises OSError if its sockets cannot be had."""

    def __init__(self, setup: Setup, leader: Leader | None = None) -> None:
        self._setup = setup
        self._leader = leader
        # Since when all are as far as this one; None: they are not, or have not been asked.
        self._since: float | None = None
        self._asked = False
        self._met = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._clock = time.monotonic
        self._wheel = Wheel(self._clock())
        self._done = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.report = Report(setup.plan.sessions)
        # Seconds that the carrier may take to take leave, and when it began to; None: it has not.
        self._farewell = FAREWELL
        self._left: float | None = None
        self._pacer: Pacer | None = None
        if setup.data is not None:
            self.report.traffic = Tally()
            self._pacer = Pacer(setup.data, self.report.traffic, self._clock)
        # Nothing here is worth guessing; secrets would cost a system call each time.
        rng = random.Random().randbytes
        plan = setup.plan
        self._carrier = setup.access.open(range(plan.first, plan.first + plan.sessions), self._wheel, rng)
        self._load = Load(setup.plan, setup.credentials, self, self.report, self._wheel, rng, self._event)

    async def run(self) -> Report:
        if self._leader is None:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, self.interrupt)
        else:
            self._leader.lead(self)
        progress = self._loop.create_task(self._progress())
        try:
            # None begins before all have what they need.
            while self.gathered(self._clock()) is None and self._load.stage is Stage.DIALLING:
                await self._met.wait()
            self._met.set()
            self._carrier.start(self._clock, self._turn)
            self._turn()
            await self._done.wait()
        finally:
            progress.cancel()
            self._carrier.close()
            self.report.drops.update(self._carrier.drops)
        return self.report

    def _turn(self) -> None:
        """Something has happened, or the time has come."""
        now = self._clock()
        self._wheel.advance(now)
        due = self._load.poll(now)
        soon = self._send(now)
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
        times = [when for when in (due, soon, self._wheel.next()) if when is not None]
        self._timer = self._loop.call_later(max(0.0, min(times) - now), self._turn) if times else None

    def _send(self, now: float) -> float | None:
        pacer = self._pacer
        if pacer is None:
            return None
        if self._load.stage >= Stage.SETTLING:
            pacer.stop(now)
        return pacer.poll(now)

    # What the user or the leader wants.

    def interrupt(self) -> None:
        """The first time, all ends in good order, the second time without waiting for answers."""
        if self._load.stage < Stage.SETTLING:
            self._load.finish()
        else:
            self._farewell = 0.0
            if self._load.stage is not Stage.DONE:
                self._load.stop(Ending.CALL)
        self._go_on()

    def met(self, since: float) -> None:
        """All are as far as this one, on the monotonic clock *since* then."""
        self._since = since
        self._go_on()

    def _go_on(self) -> None:
        if self._met.is_set():
            self._turn()
        self._met.set()

    # What the load asks for.

    def dial(self, line: Line) -> Dial:
        return self._carrier.dial(line)

    def traffic(self, subscriber: Subscriber) -> Traffic:
        if self._setup.tun:
            return TunTraffic(subscriber)
        if self._pacer is not None:
            return self._pacer.stream(subscriber)
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

    def cut(self, now: float) -> None:
        self._carrier.cut(now)

    def gathered(self, now: float) -> float | None:
        if self._leader is None:
            return now
        since, self._since = self._since, None
        if since is None and not self._asked:
            self._leader.ready()
        self._asked = since is None
        return since

    def settled(self, now: float) -> bool:
        self._send(now)
        return self._pacer is None or self._pacer.done

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
            # In one piece: there may be several of us.
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()
        else:
            log.info("subscriber=%d %s", line.number, " ".join(f"{key}={value}" for key, value in facts.items()))

    async def _progress(self) -> None:
        """Let who looks on know how it goes."""
        shown = Progress() if self._leader is None and sys.stderr.isatty() else None
        try:
            while self._leader is not None or shown is not None:
                found = snapshot(self._load)
                if shown is not None:
                    shown.show(found, self._clock())
                if self._leader is not None:
                    self._leader.tell(found)
                await asyncio.sleep(INTERVAL)
        finally:
            if shown is not None:
                shown.clear()
