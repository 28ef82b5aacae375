"""``growth`` and ``leak``: whether a set-up costs more where there are many sessions, and whether those that went left
anything."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from npppy.sim.pptp import CALL_IDS

from .carriers import FEW, PPTP, Carrier
from .cgroup import MemoryGroup
from .figures import Figure
from .lab import Lab, Npppyd, until
from .sessions import METHOD, SETTLED

#: Sessions beside which set-ups have a target, and what it is: their cost, over that beside FEW_SESSIONS.
MANY_SESSIONS, FEW_SESSIONS, GROWTH = 50_000, 500, 1.2
#: Seconds between echoes that are armed, and never sent.
FAR = 86400

#: Set-ups after which npppyd has all that it keeps, as numbers of two octets come again then, and all of them; the
#: target is octets for each of those between.  The steps by which a memory cgroup is charged, 64 pages a processor, are
#: 5 of them with two processors; no object is smaller than 16.
WARM, WORN, LEAK = 70_000, 170_000, 8.0
#: Sessions that come up before all go.
ROUND = 5000
#: How they go, in turn.
_ENDINGS = {"pppoe": ("lcp", "padt"), "l2tp": ("lcp", "cdn"), "pptp": ("lcp", "clear")}


class _Crowd:
    """An npppyd with so many sessions, of subscribers who have gone without a word, and with *more* users."""

    def __init__(self, lab: Lab, count: int, more: int) -> None:
        self._lab = lab
        self._more = more
        self._first = count + 1
        self._daemon = lab.npppyd(users=count + more, method=METHOD, keepalive=FAR)
        subscribers = lab.dial(self._daemon, count, METHOD)
        subscribers.wait_up()
        subscribers.end()

    def setup(self) -> float:
        """Microseconds of npppyd's processor time for each of the others, who come up and go again."""
        daemon = self._daemon
        daemon.wait_idle()
        before = daemon.cpu()
        subscribers = self._lab.dial(daemon, self._more, METHOD, "--terminate", "lcp", first=self._first)
        subscribers.wait_up()
        spent = daemon.cpu() - before
        subscribers.end()
        return spent / self._more * 1e6


def setup(few: int, many: int, more: int, pairs: int) -> Iterator[Figure]:
    """*more* set-ups beside *few* sessions and beside *many*, in turn, of two npppyds, one of which is idle."""
    with contextlib.ExitStack() as stack:
        crowds = [_Crowd(stack.enter_context(Lab()), count, more) for count in (few, many)]
        for crowd in crowds:
            # What is done for the first time is not asked for.
            crowd.setup()
        found = [[crowd.setup() for crowd in crowds] for _ in range(pairs)]
    ratios = " ".join(f"{large / small:.3f}" for small, large in found)
    print(f"    growth.setup: {ratios}", file=sys.stderr, flush=True)
    # Not medians: what is done now and then for all of them, such as looking for garbage, belongs to it.
    small, large = (sum(column) / pairs for column in zip(*found, strict=True))
    full = (few, many) == (FEW_SESSIONS, MANY_SESSIONS)
    name = "growth.setup" if full else f"growth.setup.{many}"
    target = GROWTH if full else None
    yield Figure(name=name, value=large / small, unit=f"of that at {few}", target=target, better="lower")
    yield Figure(name=f"{name}.cost", value=large, unit="us", better="lower", baseline=small)


def leak(carrier: Carrier, warm: int, worn: int) -> Iterator[Figure]:
    """Octets that npppyd has more after *worn* set-ups than after *warm*, for each of those between; all have gone."""
    each = min(ROUND, warm)
    with MemoryGroup() as group, Lab(carrier) as lab:
        daemon = lab.npppyd(users=each, method=METHOD, enter=group.enter)
        usage = []
        for count in (warm, worn):
            while daemon.started < count:
                _come_and_go(lab, daemon, carrier, each)
            time.sleep(SETTLED)
            usage.append(group.held())
        value = (usage[1] - usage[0]) / (worn - warm)
        target = LEAK if (warm, worn) == (WARM, WORN) else None
        yield Figure(name=f"leak.{carrier.name}", value=value, unit="octets", target=target, better="lower")


def _come_and_go(lab: Lab, daemon: Npppyd, carrier: Carrier, count: int) -> None:
    way = _ENDINGS[carrier.name][daemon.started // count % 2]
    # The same users with other addresses.  Of PPTP it is the call ids, of which there are fewer.
    first = daemon.started % (CALL_IDS - count) if carrier is PPTP else daemon.started
    options = (*carrier.tunnels(FEW), "--terminate", way, "--first", str(1 + first))
    subscribers = lab.dial(daemon, count, METHOD, *options, first=1)
    subscribers.wait_up()
    subscribers.end()

    def empty() -> bool:
        daemon.check()
        return not daemon.state()["sessions"]

    until(empty, "all sessions have gone")
