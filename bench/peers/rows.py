"""What was measured of several, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..figures import number


class Row(NamedTuple):
    what: str
    unit: str
    value: float


def table(found: Sequence[Sequence[Row]], names: Sequence[str]) -> str:
    """The rows of those, side by side; behind each other one's value is that of the first over it."""
    lines = [("", "", names[0], *(cell for name in names[1:] for cell in (name, "ratio")))]
    for row in zip(*found, strict=True):
        first, *others = row
        cells = [first.what, first.unit, number(first.value)]
        for other in others:
            cells += number(other.value), number(first.value / other.value)
        lines.append(tuple(cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = "<<" + ">" * (len(widths) - 2)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )
