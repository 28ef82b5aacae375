"""``setup`` and ``rest``: what sessions cost as they come up, and while they are there."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator

from .carriers import FEW, PPPOE, Carrier
from .cgroup import MemoryGroup
from .figures import Figure
from .kernel import map_memory
from .lab import Lab, Npppyd, Subscribers

METHODS = ("pap", "chap", "mschapv2")
#: Where the method makes no difference.
METHOD = "mschapv2"

#: Seconds between the LCP echoes of a session, when there are any.
KEEPALIVE = 30
#: Seconds after which npppyd has done what it does by itself: it has looked at the users file, in a thread of its own.
SETTLED = 3.0
#: Subscribers that are dialled a second, at the most, where it matters when their echoes are due.
DIALLED = 1000
#: What npppyd may take with so many sessions.
IDLE = {"idle.10000": 1.0, "idle.50000": 3.0}


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


def idle(carrier: Carrier, count: int, seconds: float) -> Iterator[Figure]:
    """So many sessions at rest, watched for so long."""
    with Lab(carrier) as lab:
        daemon = lab.npppyd(users=count, method=METHOD, keepalive=KEEPALIVE)
        time.sleep(SETTLED)
        subscribers, figure = _watch(lab, daemon, count, seconds, KEEPALIVE)
        subscribers.end()
        yield figure


def _watch(lab: Lab, daemon: Npppyd, count: int, seconds: float, every: int) -> tuple[Subscribers, Figure]:
    """Dial so many, and watch npppyd with them."""
    carrier = lab.carrier
    # In a whole number of intervals: the echoes are spread evenly over them then.
    time_to_dial = every * math.ceil(count / (every * DIALLED))
    subscribers = lab.dial(daemon, count, METHOD, *carrier.tunnels(FEW), "--rate", str(count / time_to_dial))
    subscribers.wait_up()
    before, began = daemon.cpu(), time.monotonic()
    time.sleep(seconds)
    share = (daemon.cpu() - before) / (time.monotonic() - began)
    name = f"idle.{count}" if carrier is PPPOE else f"idle.{carrier.name}.{count}"
    figure = Figure(name=name, value=share * 100, unit="% of a core", target=IDLE.get(name), better="lower")
    return subscribers, figure


def rest(
    carrier: Carrier, idle: int, seconds: float, memory: int, *, own: bool = False, every: int = KEEPALIVE
) -> Iterator[Figure]:
    """Sessions at rest: *idle* of them, watched for *seconds*, then *memory*, which is as many or more.

    *idle* may be 0; *own*: each session has a tunnel of its own; *every*: seconds between the echoes of each.
    """
    with MemoryGroup() as group, Lab(carrier) as lab:
        daemon = lab.npppyd(users=memory, method=METHOD, keepalive=every, enter=group.enter)
        time.sleep(SETTLED)
        empty = group.held()
        maps, capacity = map_memory(daemon.process.pid)

        dialled = []
        if idle:
            subscribers, figure = _watch(lab, daemon, idle, seconds, every)
            dialled.append(subscribers)
            yield figure
        if memory > idle:
            more = memory - idle
            subscribers = lab.dial(daemon, more, METHOD, *carrier.tunnels(more if own else FEW))
            subscribers.wait_up()
            dialled.append(subscribers)
            time.sleep(SETTLED)
        each = (group.held() - empty) / memory / 1024
        if capacity:
            each += maps / capacity / 1024
        for subscribers in dialled:
            # Raises if a session was lost meanwhile.
            subscribers.end()
        name = f"memory.{carrier.name}." + ("tunnel" if own else "session") + carrier.variant
        target = None if own or carrier.variant else 3
        yield Figure(name=name, value=each, unit="KiB", target=target, better="lower")
