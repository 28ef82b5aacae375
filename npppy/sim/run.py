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

from ..pppoe.codec import AccessLine
from ..wheel import Wheel
from .load import Dial, Ending, Line, Load, Plan, Stage
from .pppoe import Host, Segment, Wishes
from .report import Report
from .subscriber import Credentials, Subscriber
from .traffic import Pinger, Traffic
from .tun import TunTraffic
from .wire import Wire

log = logging.getLogger("npppy.sim")

#: Seconds between two looks at the progress.
PROGRESS = 0.5


def fill(template: str, number: int) -> str:
    """*template* for one subscriber: ``%d`` and ``{n}`` stand for its number."""
    return template.replace("%d", str(number)).replace("{n}", str(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pings:
    target: IPv4Address
    count: int
    interval: float
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ethernet:
    """How the hosts of a PPPoE segment differ."""

    interface: str
    #: A subscriber's MAC address is this and its number; None: all have the interface's own.
    mac_base: int | None
    #: None: each has its number; empty: none is sent.
    host_uniq: bytes | None = None
    #: Templates.
    circuit_id: str = ""
    remote_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All there is to a run."""

    plan: Plan
    wishes: Wishes
    ethernet: Ethernet
    credentials: Callable[[int], Credentials]
    pings: Pings | None = None
    tun: bool = False
    #: A JSON object on standard output for each session that comes up or goes.
    events: bool = False


class Run:
    """One load on one wire.  Raises OSError if the interface cannot be had."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._loop = asyncio.get_running_loop()
        self._clock = time.monotonic
        self._wheel = Wheel(self._clock())
        self._done = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.report = Report(setup.plan.sessions)
        self._wire = Wire(setup.ethernet.interface, promiscuous=setup.ethernet.mac_base is not None)
        self._segment = Segment(setup.wishes, self._wire.transmit, self._wheel)
        # Nothing here is worth guessing; secrets would cost a system call each time.
        rng = random.Random().randbytes
        self._load = Load(setup.plan, setup.credentials, self, self.report, self._wheel, rng, self._event)

    async def run(self) -> Report:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._interrupt)
        self._wire.start(self._segment.receive, self._clock, self._turn)
        progress = self._loop.create_task(self._progress()) if sys.stderr.isatty() else None
        try:
            self._turn()
            await self._done.wait()
        finally:
            if progress is not None:
                progress.cancel()
                sys.stderr.write("\r\x1b[K")
            self._wire.close()
            self.report.drops.update(self._wire.drops + self._segment.drops)
        return self.report

    def _turn(self) -> None:
        """Something has happened, or the time has come."""
        now = self._clock()
        self._wheel.advance(now)
        due = self._load.poll(now)
        if self._load.stage is Stage.DONE:
            self._done.set()
            return
        if self._timer is not None:
            self._timer.cancel()
        times = [when for when in (due, self._wheel.next()) if when is not None]
        self._timer = self._loop.call_later(max(0.0, min(times) - now), self._turn) if times else None

    def _interrupt(self) -> None:
        """The first signal ends all in good order, the second one without waiting for answers."""
        self._load.stop(Ending.PADT if self._load.stage is Stage.ENDING else None)
        self._turn()

    # What the load asks for.

    def dial(self, line: Line) -> Dial:
        ethernet, number = self._setup.ethernet, line.number
        base = ethernet.mac_base
        mac = self._wire.mac if base is None else (base + number).to_bytes(6, "big")
        uniq = number.to_bytes(4, "big") if ethernet.host_uniq is None else ethernet.host_uniq or None
        access_line = AccessLine(fill(ethernet.circuit_id, number).encode(), fill(ethernet.remote_id, number).encode())
        return self._segment.host(mac, uniq, access_line, line)

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
            call = subscriber.call
            assert isinstance(call, Host)
            facts |= {
                "address": str(IPv4Address(subscriber.address)),
                "dns": [str(IPv4Address(address)) for address in subscriber.dns],
                "mru": subscriber.mru,
                "peer_mru": subscriber.peer_mru,
                "mac": call.mac.hex(":"),
                "session_id": call.session_id,
                "concentrator": call.link.caller.text,
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
