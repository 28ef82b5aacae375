"""Figures: what was measured, what it should be, and where it was measured."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class BenchError(Exception):
    """A measurement failed; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    name: str
    value: float
    unit: str
    #: None: no target is set for it.
    target: float | None = None
    #: "higher" or "lower".
    better: str
    #: The same by other means in the same run, to compare with; None: there is no such thing.
    baseline: float | None = None

    @property
    def met(self) -> bool:
        assert self.target is not None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


@functools.cache
def machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


@functools.cache
def commit() -> str | None:
    """What is checked out, with "-dirty" if files have changed since; None if that cannot be said."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def append(path: Path, figure: Figure) -> None:
    """Add a line of JSON to the file."""
    with path.open("a") as file:
        file.write(json.dumps(_facts(figure) | {"machine": machine(), "commit": commit()}) + "\n")


def document(figures: Iterable[Figure], **facts: object) -> str:
    """All of them as a JSON object, with *facts* beside what is known of each run."""
    rows = []
    for figure in figures:
        row = _facts(figure)
        row["ratio"] = round(figure.value / figure.target, 4) if figure.target else None
        row["met"] = None if figure.target is None else figure.met
        rows.append(row)
    return json.dumps({"machine": machine(), "commit": commit(), **facts, "figures": rows}, indent=1)


def _facts(figure: Figure) -> dict[str, Any]:
    return {key: round(it, 4) if isinstance(it, float) else it for key, it in asdict(figure).items()}


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def table(figures: Iterable[Figure]) -> str:
    """For people, with the machine at its head."""
    rows = [("figure", "value", "unit", "target", "ratio", "", "baseline", "ratio")]
    for figure in figures:
        target, baseline = figure.target, figure.baseline
        rows.append(
            (
                figure.name,
                number(figure.value),
                figure.unit,
                number(target),
                f"{figure.value / target:.2f}" if target else "",
                "" if target is None else "met" if figure.met else "missed",
                number(baseline),
                f"{figure.value / baseline:.2f}" if baseline else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Words to the left, numbers to the right.
    sides = "<><>><>>"
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join((f"{machine()}, commit {commit()}", "", *lines))
