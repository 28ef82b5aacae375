"""``storm``: ten times as many subscribers a second as npppyd can serve, against what it can.

npppysim needs as much processor time for a set-up as npppyd does.  So npppyd shares its core with programs that do
nothing: it has one part of some, and npppysim the whole of another core.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .carriers import FEW, PPPOE, PPTP, Carrier
from .figures import BenchError, Figure
from .lab import LOCAL, OURS, Lab, Npppyd, Subscribers, pinned, until
from .radius import ACCOUNTS, RadiusLab

#: Programs that do nothing.
OTHERS = 19
#: Seconds that those may need who come one by one.
SLOWLY = 300.0
#: How many times the capacity comes, and what of the capacity there must be then.
FACTOR, LEFT = 10, 0.9
METHOD = "chap"
#: Those that are dialled at a time to see how many can be served: always enough, and none waits until it asks again.
WINDOW = 32
#: Seconds between the echoes of a session, and between those that are not answered: three, and it is given up.
KEEPALIVE, RETRY = 10, 1
#: Seconds after which a storm is one.
BEGUN = 2.0
#: Seconds after which those have been given up who were not heard in the storm.
GIVEN_UP = 4.0 * RETRY
#: Addresses of PPTP's clients with a connection each: where one has thousands of them, the kernel needs long to find a
#: port for another.
MORE = [f"10.99.0.{number}" for number in range(11, 19)]
#: The most subscribers of a storm: what there are ids and ports for.
MOST = 40_000


@dataclass(frozen=True, slots=True)
class _Rate:
    """Set-ups a second of npppyd's processor time, and by the wall."""

    core: float
    wall: float


class _Watch:
    """Set-ups from now on."""

    def __init__(self, daemon: Npppyd) -> None:
        self._daemon = daemon
        self._before = self._look()

    def _look(self) -> tuple[int, float, float]:
        self._daemon.check()
        return self._daemon.started, self._daemon.cpu(), time.monotonic()

    def rate(self) -> _Rate:
        up, spent, took = (now - then for now, then in zip(self._look(), self._before, strict=True))
        if not spent:
            raise BenchError("there were too few subscribers to see how many can be served")
        return _Rate(up / spent, up / took)


@contextlib.contextmanager
def _slowed() -> Iterator[None]:
    """npppyd's core has others to serve."""
    with contextlib.ExitStack() as stack:
        for _ in range(OTHERS):
            with pinned(OURS):
                command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", "while True: pass"]
                other = stack.enter_context(subprocess.Popen(command))
            stack.callback(other.kill)
        yield


@dataclass(frozen=True, slots=True)
class _Pair:
    """What could be served, what was served in a storm, and how many sessions went that nobody had ended."""

    calm: _Rate
    storm: _Rate
    lost: int


def measure(carrier: Carrier, calm: int, seconds: float, pairs: int, *, own: bool = False) -> Iterator[Figure]:
    """*calm*: subscribers of before; by half as many it is found out how many a second can be served.

    *seconds*: of the storm.  All that *pairs* times.  *own*: each has a tunnel of its own.
    """
    found = []
    for _ in range(pairs):
        with Lab(carrier) as lab:
            found.append(_pair(lab, LOCAL, calm, seconds, own))
    yield from _figures(f"storm.{carrier.name}" + ".tunnels" * own, found)


def radius(calm: int, seconds: float, pairs: int) -> Iterator[Figure]:
    """The same by PPPoE, with logins and accounts by FreeRADIUS."""
    found = []
    for _ in range(pairs):
        with RadiusLab(PPPOE) as lab:
            # Not where npppysim would take it the time that it needs.
            lab.freeradius(MOST, core=OURS)
            found.append(_pair(lab, ACCOUNTS, calm, seconds, False))
    yield from _figures("storm.radius", found)


def _figures(name: str, pairs: list[_Pair]) -> Iterator[Figure]:
    ratio = statistics.median(pair.storm.wall / pair.calm.wall for pair in pairs)
    yield Figure(name=name, value=ratio, unit="of capacity", target=LEFT, better="higher")
    calm, storm = [pair.calm for pair in pairs], [pair.storm for pair in pairs]
    walls = statistics.median(rate.wall for rate in storm), statistics.median(rate.wall for rate in calm)
    yield Figure(name=f"{name}.wall", value=walls[0], unit="set-ups/s", better="higher", baseline=walls[1])
    cores = statistics.median(rate.core for rate in storm), statistics.median(rate.core for rate in calm)
    unit = "set-ups/s of a core"
    yield Figure(name=f"{name}.core", value=cores[0], unit=unit, better="higher", baseline=cores[1])
    lost = sum(pair.lost for pair in pairs)
    yield Figure(name=f"{name}.lost", value=lost, unit="sessions", target=0, better="lower")


def _pair(lab: Lab, realm: str, calm: int, seconds: float, own: bool) -> _Pair:
    users = 0 if realm == ACCOUNTS else MOST
    daemon = lab.npppyd(users=users, method=METHOD, keepalive=KEEPALIVE, retry=RETRY, realm=realm)

    addresses = []
    if own and lab.carrier is PPTP:
        addresses = [word for address in MORE for word in ("--bind", address)]
        for address in MORE:
            lab.sub.ip(f"address add {address}/24 dev sub0")

    def dial(count: int, *options: str) -> Subscribers:
        return lab.dial(daemon, count, METHOD, *lab.carrier.tunnels(count if own else FEW), *addresses, *options)

    before = dial(calm)
    until(lambda: _up(daemon, before) >= calm, "the first sessions are up", SLOWLY)
    # They have echoes from now on, as in the storm.
    _go_on(daemon, before, KEEPALIVE)
    with _slowed():
        few = calm // 2
        more = dial(few, "--window", str(WINDOW))
        until(lambda: _up(daemon, more) >= calm + few // 10, "the next sessions come up", SLOWLY)
        watch = _Watch(daemon)
        until(lambda: _up(daemon, more) >= calm + few - few // 10, "nearly all sessions are up", SLOWLY)
        capacity = watch.rate()
        calm += few
        until(lambda: _up(daemon, more) >= calm, "all sessions are up", SLOWLY)

        rate = FACTOR * capacity.wall
        # It goes on until it has been found out what npppysim could.
        count = int(rate * (BEGUN + seconds + GIVEN_UP))
        if count > MOST - calm:
            raise BenchError(f"a storm of {rate:.0f} subscribers a second takes more than {MOST - calm} of them")
        storm = dial(count, "--rate", str(rate))
        # It has begun when the first of them is up.
        until(lambda: _up(daemon, storm) > calm, "the storm has begun")
        began = time.monotonic()
        time.sleep(BEGUN)
        watch = _Watch(daemon)
        _go_on(daemon, storm, seconds)
        found = watch.rate()
        _go_on(daemon, storm, GIVEN_UP)
        wanted = min(rate * (time.monotonic() - began), count)
        *_, of_storm = storm.end(strict=False)
        reports = [of_storm, *(those.end(strict=False)[-1] for those in (before, more))]
        if of_storm["tried"] < LEFT * wanted:
            raise BenchError(f"npppysim cannot dial {rate:.0f} subscribers a second")
    return _Pair(capacity, found, sum(sum(_lost(report).values()) for report in reports))


def _up(daemon: Npppyd, subscribers: Subscribers) -> int:
    """How many have come up so far, of all."""
    daemon.check()
    subscribers.check()
    return daemon.started


def _go_on(daemon: Npppyd, subscribers: Subscribers, seconds: float) -> None:
    """What they write is read meanwhile."""
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        _up(daemon, subscribers)
        time.sleep(0.05)


def _lost(report: dict[str, Any]) -> dict[str, int]:
    """Sessions that went though nobody ended them, by reason."""
    lost: dict[str, int] = report["lost"]
    return lost
