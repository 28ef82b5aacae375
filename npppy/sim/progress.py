"""How a run goes on: a line on a terminal, with what happens now."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable

from .load import Load, Stage

#: Seconds between two looks.
INTERVAL = 0.25
#: Seconds that "now" is.
WINDOW = 1.5

#: Numbers by name.  All but ``stage`` may be added up over processes.
Snapshot = dict[str, int]


def snapshot(load: Load) -> Snapshot:
    report = load.report
    found = {
        "stage": load.stage,
        "sessions": report.sessions,
        "round": len(report.rounds),
        "came": report.rounds[-1].up,
        "set-ups": report.up,
        "up": load.up,
        "dialling": load.under_way,
        "failed": report.failed.total(),
        "lost": report.lost.total(),
        "churned": report.churned,
        "pinged": report.pings_sent,
        "answered": report.pings_answered,
    }
    if report.traffic is not None:
        found |= {"sent": report.traffic.sent, "received": report.traffic.received, "gone": report.traffic.lost}
    return found


def together(found: Iterable[Snapshot]) -> Snapshot:
    """Of several processes; the stage is that of the last of them."""
    whole: Snapshot = {}
    for each in found:
        for name, number in each.items():
            if name in ("stage", "round") and name in whole:
                whole[name] = min(whole[name], number)
            else:
                whole[name] = whole.get(name, 0) + number
    return whole


class Progress:
    """A line on standard error, which is a terminal."""

    def __init__(self) -> None:
        # What was there, and when.
        self._past: deque[tuple[float, Snapshot]] = deque()

    def show(self, found: Snapshot, now: float) -> None:
        line = self.line(found, now)
        # One that goes on in the next row could not be overwritten; a terminal of which nothing is known has 0 columns.
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        sys.stderr.write("\r\x1b[K" + (line[: columns - 1] if columns else line))
        sys.stderr.flush()

    def clear(self) -> None:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    def line(self, found: Snapshot, now: float) -> str:
        past = self._past
        past.append((now, found))
        while len(past) > 2 and past[1][0] <= now - WINDOW:
            past.popleft()
        seconds, before = now - past[0][0], past[0][1]

        def rate(name: str) -> str:
            return f"{(found[name] - before[name]) / seconds if seconds > 0 else 0.0:.0f}/s"

        told = [f"{found['up']} up ({rate('set-ups')})", f"{found['dialling']} dialling"]
        if found["stage"] == Stage.DIALLING:
            told.insert(0, f"{found['came']} of {found['sessions']} came up")
        told += [f"{found[name]} {name} ({rate(name)})" for name in ("failed", "lost", "churned") if found[name]]
        if found["pinged"]:
            told.append(f"{found['answered']} of {found['pinged']} pings answered")
        if "sent" in found:
            told.append(f"{rate('sent')} packets sent, {rate('received')} received, {found['gone']} lost")
        stage = Stage(found["stage"]).name.lower()
        again = f" {found['round'] - 1}" if found["round"] > 1 else ""
        return f"{stage}{again}: " + ", ".join(told)
