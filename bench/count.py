"""``count``: how many sessions there are at a time, with keepalives, and traffic that is verified; and all of them
again, when they have gone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .carriers import FEW, L2TP, PPPOE, PPTP, Carrier
from .cgroup import MemoryGroup
from .figures import BenchError, Figure
from .lab import PATIENCE, PATIENCE_SESSION, Lab, Npppyd, Subscribers, until
from .sessions import KEEPALIVE, METHOD, SETTLED

#: What is to be reached: in 128 MB, and on a machine without a limit.
SMALL, LARGE = 25_000, 100_000
LIMIT = 128 << 20
#: How often all come and go.
ROUNDS = 2
#: Packets of 64 octets a second, of all sessions together.
TRAFFIC = 5000
#: Interfaces with subscribers by PPPoE, where there are other carriers beside it.
LINKS = 3


@dataclass(slots=True)
class _Round:
    """What came of it."""

    #: The most sessions that there were at a time, and those that went then, though nobody ended them.
    up: int = 0
    lost: int = 0
    packets: int = 0
    astray: int = 0
    #: Sessions that had no packet.
    silent: int = 0
    #: Whether it came to its end, and so what it counted is known.
    whole: bool = False

    def add(self, report: dict[str, Any]) -> None:
        """The report of a npppysim that has ended."""
        traffic = report["traffic"]
        self.lost += sum(report["lost"].values())
        self.packets += traffic["received"]
        self.astray += sum(traffic[what] for what in ("lost", "wrong", "corrupt", "repeated"))
        self.silent += traffic["silent"] + traffic["unserved"]


def limited(sessions: int, seconds: float) -> Iterator[Figure]:
    """PPPoE in a memory cgroup with a limit; all stay for so long each time."""
    rounds: list[_Round] = []
    with MemoryGroup(LIMIT) as group, Lab() as lab:
        settings = f"set max-session {sessions}\n"
        daemon = lab.npppyd(users=sessions, method=METHOD, keepalive=KEEPALIVE, settings=settings, enter=group.enter)
        try:
            _rounds(lab, daemon, [PPPOE], sessions, seconds, rounds)
        except BenchError:
            # How many there was room for is the figure then.
            if not group.oom_kills():
                raise
        usage = group.peak()
    name = _name("count.128mb", sessions, SMALL)
    yield from _figures(name, rounds, seconds, SMALL if sessions == SMALL else None)
    yield Figure(name=f"{name}.memory", value=usage / (1 << 20), unit="MiB", better="lower")


def machine(sessions: int, seconds: float) -> Iterator[Figure]:
    """All carriers, PPPoE on several interfaces, in one npppyd without a limit."""
    listen = "\n    ".join(f"listen on interface eth{1 + n}" for n in range(LINKS))
    served = replace(PPPOE, options=PPPOE.options.replace("listen on interface eth1", listen))
    ways = [replace(PPPOE, dial=("pppoe", "--interface", f"sub{n}")) for n in range(LINKS)]
    rounds: list[_Round] = []
    with MemoryGroup() as group, Lab(served, L2TP, PPTP, links=LINKS) as lab:
        settings = f"set max-session {sessions}\n"
        daemon = lab.npppyd(users=sessions, method=METHOD, keepalive=KEEPALIVE, settings=settings, enter=group.enter)
        _rounds(lab, daemon, [*ways, L2TP, PPTP], sessions, seconds, rounds)
        usage = group.peak()
    name = _name("count.machine", sessions, LARGE)
    yield from _figures(name, rounds, seconds, LARGE if sessions == LARGE else None)
    yield Figure(name=f"{name}.memory", value=usage / (1 << 20), unit="MiB", better="lower")


def _name(name: str, sessions: int, full: int) -> str:
    return name if sessions == full else f"{name}.{sessions}"


def _figures(name: str, rounds: Sequence[_Round], seconds: float, target: int | None) -> Iterator[Figure]:
    """Of all rounds together, but for the sessions: those of the worst."""
    stayed = min(it.up - it.lost for it in rounds)
    yield Figure(name=name, value=stayed, unit="sessions", target=target, better="higher")
    if not all(it.whole for it in rounds):
        return
    packets, due = sum(it.packets for it in rounds), int(TRAFFIC * seconds * len(rounds))
    yield Figure(name=f"{name}.packets", value=packets, unit="packets", target=due, better="higher")
    astray, silent = sum(it.astray for it in rounds), sum(it.silent for it in rounds)
    yield Figure(name=f"{name}.astray", value=astray, unit="packets", target=0, better="lower")
    yield Figure(name=f"{name}.silent", value=silent, unit="sessions", target=0, better="lower")


def _rounds(
    lab: Lab, daemon: Npppyd, ways: Sequence[Carrier], sessions: int, seconds: float, rounds: list[_Round]
) -> None:
    """So many sessions, spread over these, come, stay and go, and again."""
    each = sessions // len(ways)
    time.sleep(SETTLED)
    for _ in range(ROUNDS):
        found = _Round()
        rounds.append(found)
        before = daemon.started
        dialled: list[Subscribers] = []
        try:
            for way in ways:
                options = (*way.tunnels(FEW), "--terminate", "lcp", "--traffic", f"64@{TRAFFIC // len(ways)}")
                # The same in each round.
                first = 1 + each * len(dialled)
                dialled.append(lab.dial(daemon, each, METHOD, *options, carrier=way, first=first))
                dialled[-1].wait_up()
            _stay(daemon, dialled, seconds)
        finally:
            found.up = daemon.started - before
        for subscribers in dialled:
            *_, report = subscribers.end(strict=False)
            found.add(report)
        until(lambda: _empty(daemon), "all have gone", PATIENCE + PATIENCE_SESSION * sessions)
        found.whole = True


def _stay(daemon: Npppyd, dialled: Sequence[Subscribers], seconds: float) -> None:
    """What they write is read meanwhile."""
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        for program in (daemon, *dialled):
            program.check()
        time.sleep(0.1)


def _empty(daemon: Npppyd) -> bool:
    daemon.check()
    return not daemon.state()["sessions"]
