"""``setup``, ``memory``, ``idle`` and ``ctl``: what sessions cost as they come up, and while they are there."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from .cgroup import MemoryGroup
from .figures import ROOT, BenchError, Figure
from .kernel import map_memory
from .lab import THEIRS, Lab, Npppyd, pinned

METHODS = ("pap", "chap", "mschapv2")
#: Where the method makes no difference.
METHOD = "mschapv2"

#: Seconds between the LCP echoes of a session, when there are any.
KEEPALIVE = 30
#: Seconds after which npppyd has done what it does by itself: it has looked at the users file, in a thread of its own.
SETTLED = 3.0
#: How often the sessions are listed.
LISTINGS = 5


def setup(method: str, sessions: int, runs: int) -> Iterator[Figure]:
    """Set-ups a second of npppyd's processor time, and of the clock on the wall; a new npppyd for each run."""
    rates, walls = zip(*[_setup(method, sessions) for _ in range(runs)], strict=True)
    name = f"setup.pppoe.{method}"
    yield Figure(name=name, value=statistics.median(rates), unit="set-ups/s of a core", target=2000, better="higher")
    yield Figure(name=f"{name}.wall", value=statistics.median(walls), unit="set-ups/s", better="higher")


def _setup(method: str, sessions: int) -> tuple[float, float]:
    with Lab() as lab:
        daemon = lab.npppyd(users=sessions, method=method)
        before = daemon.cpu()
        subscribers = lab.dial(daemon, sessions, method)
        subscribers.wait_up()
        spent = daemon.cpu() - before
        *_, summary = subscribers.end()
        return sessions / spent, summary["rate"]


def base() -> Iterator[Figure]:
    """npppyd without a session, and with one user."""
    with MemoryGroup() as group, Lab() as lab:
        daemon = lab.npppyd(users=1, method=METHOD, enter=group.enter)
        time.sleep(SETTLED)
        # The maps are made for all the sessions that there may be, and are a part of those.
        usage = group.usage() - map_memory(daemon.process.pid)[0]
        yield Figure(name="memory.base", value=usage / (1 << 20), unit="MiB", target=40, better="lower")


def rest(idle: int, seconds: float, memory: int) -> Iterator[Figure]:
    """Sessions at rest: *idle* of them, watched for *seconds*, then *memory*, which is as many or more."""
    with MemoryGroup() as group, Lab() as lab:
        daemon = lab.npppyd(users=memory, method=METHOD, keepalive=KEEPALIVE, enter=group.enter)
        time.sleep(SETTLED)
        empty = group.usage()
        maps, capacity = map_memory(daemon.process.pid)

        # As many a second as they will send echoes: these are spread evenly over the interval then.
        subscribers = [lab.dial(daemon, idle, METHOD, "--rate", str(idle / KEEPALIVE))]
        subscribers[0].wait_up()
        before, began = daemon.cpu(), time.monotonic()
        time.sleep(seconds)
        share = (daemon.cpu() - before) / (time.monotonic() - began)
        target = 1.0 if idle == 10_000 else None
        yield Figure(name=f"idle.{idle}", value=share * 100, unit="% of a core", target=target, better="lower")

        if memory > idle:
            subscribers.append(lab.dial(daemon, memory - idle, METHOD))
            subscribers[1].wait_up()
            time.sleep(SETTLED)
        each = (group.usage() - empty) / memory / 1024
        if capacity:
            each += maps / capacity / 1024
        for dialled in subscribers:
            # Raises if a session was lost meanwhile.
            dialled.end()
        yield Figure(name="memory.pppoe.session", value=each, unit="KiB", target=3, better="lower")


def listing(counts: Sequence[int]) -> Iterator[Figure]:
    """How long ``npppyctl session brief`` takes with so many sessions, rising numbers of them."""
    with Lab() as lab:
        # Nobody asks the subscribers, so nobody notices that they have gone, and their work slows nothing down.
        daemon = lab.npppyd(users=counts[-1], method=METHOD)
        for count in counts:
            subscribers = lab.dial(daemon, count - daemon.started, METHOD)
            subscribers.wait_up()
            subscribers.end()
            took = statistics.median(_list(daemon, count) for _ in range(LISTINGS))
            target = 2.0 if count == 50_000 else None
            yield Figure(name=f"ctl.brief.{count}", value=took, unit="s", target=target, better="lower")


def _list(daemon: Npppyd, count: int) -> float:
    command = [sys.executable, "-m", "npppy.ctl", "-s", str(daemon.socket), "session", "brief"]
    with pinned(THEIRS):
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, cwd=ROOT)
        took = time.monotonic() - began
    # A line each, and a title of two.
    lines = done.stdout.count(b"\n") - 2
    if done.returncode or lines != count:
        raise BenchError(f"npppyctl lists {lines} of {count} sessions: {done.stderr.decode(errors='replace')}")
    return took
