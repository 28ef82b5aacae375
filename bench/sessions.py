"""``setup``, ``memory``, ``idle`` and ``ctl``: what sessions cost as they come up, and while they are there."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from .carriers import FEW, PPPOE, Carrier
from .cgroup import MemoryGroup
from .figures import ROOT, BenchError, Figure
from .kernel import map_memory
from .lab import THEIRS, Lab, Npppyd, Subscribers, pinned

METHODS = ("pap", "chap", "mschapv2")
#: Where the method makes no difference.
METHOD = "mschapv2"

#: Seconds between the LCP echoes of a session, when there are any.
KEEPALIVE = 30
#: Seconds after which npppyd has done what it does by itself: it has looked at the users file, in a thread of its own.
SETTLED = 3.0
#: How often the sessions are listed.
LISTINGS = 5


def setup(carrier: Carrier, method: str, sessions: int, runs: int, own: bool = False) -> Iterator[Figure]:
    """Set-ups a second of npppyd's processor time, and of the clock on the wall; a new npppyd for each run.

    *own*: each session has a tunnel of its own.
    """
    rates, walls = zip(*[_setup(carrier, method, sessions, own) for _ in range(runs)], strict=True)
    name = f"setup.{carrier.name}.{method}{carrier.variant}" + ".tunnels" * own
    target = None if own or carrier.variant else 2000
    yield Figure(name=name, value=statistics.median(rates), unit="set-ups/s of a core", target=target, better="higher")
    yield Figure(name=f"{name}.wall", value=statistics.median(walls), unit="set-ups/s", better="higher")


def _setup(carrier: Carrier, method: str, sessions: int, own: bool) -> tuple[float, float]:
    with Lab(carrier) as lab:
        daemon = lab.npppyd(users=sessions, method=method)
        before = daemon.cpu()
        subscribers = lab.dial(daemon, sessions, method, *carrier.tunnels(sessions if own else FEW))
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


def rest(carrier: Carrier, idle: int, seconds: float, memory: int, own: bool = False) -> Iterator[Figure]:
    """Sessions at rest: *idle* of them, watched for *seconds*, then *memory*, which is as many or more.

    *idle* may be 0; *own*: each session has a tunnel of its own.
    """
    with MemoryGroup() as group, Lab(carrier) as lab:
        daemon = lab.npppyd(users=memory, method=METHOD, keepalive=KEEPALIVE, enter=group.enter)
        time.sleep(SETTLED)
        empty = group.usage()
        maps, capacity = map_memory(daemon.process.pid)

        def dial(count: int, *options: str) -> Subscribers:
            tunnels = carrier.tunnels(count if own else FEW)
            subscribers = lab.dial(daemon, count, METHOD, *tunnels, *options)
            subscribers.wait_up()
            return subscribers

        dialled = []
        if idle:
            # As many a second as they will send echoes: these are spread evenly over the interval then.
            dialled.append(dial(idle, "--rate", str(idle / KEEPALIVE)))
            before, began = daemon.cpu(), time.monotonic()
            time.sleep(seconds)
            share = (daemon.cpu() - before) / (time.monotonic() - began)
            name = f"idle.{idle}" if carrier is PPPOE else f"idle.{carrier.name}.{idle}"
            target = 1.0 if name == "idle.10000" else None
            yield Figure(name=name, value=share * 100, unit="% of a core", target=target, better="lower")

        if memory > idle:
            dialled.append(dial(memory - idle))
            time.sleep(SETTLED)
        each = (group.usage() - empty) / memory / 1024
        if capacity:
            each += maps / capacity / 1024
        for subscribers in dialled:
            # Raises if a session was lost meanwhile.
            subscribers.end()
        name = f"memory.{carrier.name}." + ("tunnel" if own else "session") + carrier.variant
        target = None if own or carrier.variant else 3
        yield Figure(name=name, value=each, unit="KiB", target=target, better="lower")


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
