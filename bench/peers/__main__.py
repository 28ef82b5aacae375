"""``python -m bench.peers``: npppyd and Debian's l2tpns under the same load, as a table."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from npppy.pipex.ebpf.libbpf import BpfError

from ..__main__ import compile_all, interrupted, warn_if_busy
from ..figures import BenchError, commit, machine, number
from ..lab import OURS, THEIRS
from .measure import Sizes, memory, packets, setup

NAMES = ("npppyd", "l2tpns")
PARTS = ("setup", "memory", "packets")
METHODS = ("pap", "chap")

FULL = Sizes(setup=2000, runs=3, tunnels=100, many=20_000, memory=10_000, packets=10_000, time=1.0)
QUICK = Sizes(setup=500, runs=1, tunnels=20, many=2000, memory=2000, packets=2000, time=0.3)

#: What is not the same for both.
NOTES = """\
l2tpns asks FreeRADIUS, on this machine, of which no time is counted; npppyd has the same users in a file.
Set-ups: "of a core" by the processor time of the LNS alone, which has a core to itself; by the wall, npppysim and
FreeRADIUS share the other one, and are most of what is measured.
Memory: by a memory cgroup in which the LNS was started.  l2tpns has tables for 59,999 sessions from its start, npppyd
BPF maps for as many as its pool has addresses: "of tables" is one session's share of these.
Packets: l2tpns carries them in its process, on its core, offered 1,000,000/s from the other one; npppyd in the kernel,
on the core of the generator, which does all there is to do.  Each packet is checked at the far end."""


class Row(NamedTuple):
    what: str
    unit: str
    value: float


def rows(name: str, part: str, sizes: Sizes) -> Iterator[Row]:
    """What one of the two does, in the same order for both."""
    if part == "setup":
        for method in METHODS:
            for tunnels in (1, sizes.tunnels):
                found = setup(name, method, sizes, tunnels)
                what = f"set-ups, {method}, {tunnels} tunnel{'s' if tunnels > 1 else ''}"
                yield Row(what, "/s of a core", found.core)
                yield Row(what, "/s by the wall", found.wall)
        found = setup(name, METHODS[0], replace(sizes, setup=sizes.many, runs=1), 1)
        yield Row(f"set-ups, {METHODS[0]}, of {sizes.many:,} sessions", "/s of a core", found.core)
    elif part == "memory":
        took = memory(name, sizes)
        yield Row("memory without a session or tables", "MiB", took.base / (1 << 20))
        yield Row("memory of a session, of tables", "KiB", took.share / 1024)
        yield Row("memory of a session, beside these", "KiB", took.growth / 1024)
        yield Row("memory of a session", "KiB", (took.share + took.growth) / 1024)
    else:
        for (way, size), rate in packets(name, sizes).items():
            yield Row(f"packets {way}, {size} octets, {sizes.packets:,} sessions", "/s", rate)


def table(found: Sequence[Sequence[Row]], names: Sequence[str]) -> str:
    """The rows of those, side by side."""
    lines = [("", "", *names, "" if len(names) == 1 else "ratio")]
    for both in zip(*found, strict=True):
        first, *others = both
        ratio = f"{first.value / others[0].value:.2f}" if others else ""
        lines.append((first.what, first.unit, *(number(row.value) for row in both), ratio))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = "<<" + ">" * (len(widths) - 2)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    """0 if all was measured, whatever came out; 1 if a measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="See bench/README.md.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", choices=NAMES, help="one of the two")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if os.geteuid():
        parser.error("needs root")
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, interrupted)
    os.sched_setaffinity(0, {THEIRS})
    names = (given.only,) if given.only else NAMES
    try:
        return _measure(names, given.parts or PARTS, QUICK if given.quick else FULL)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _measure(names: Sequence[str], parts: Iterable[str], sizes: Sizes) -> int:
    print(f"{machine()}, commit {commit()}", flush=True)
    if OURS == THEIRS:
        print("one core for all: what is measured by the wall is an LNS and its peers together")
    warn_if_busy()
    compile_all()
    found: list[list[Row]] = [[] for _ in names]
    failed = False
    for part in parts:
        try:
            fresh = []
            for name in names:
                print(f"  {part}, {name} ...", file=sys.stderr, flush=True)
                fresh.append(list(rows(name, part, sizes)))
        except (BenchError, BpfError, OSError) as error:
            print(f"bench: {part} failed: {error}", file=sys.stderr)
            failed = True
            continue
        for before, after in zip(found, fresh, strict=True):
            before.extend(after)
    warn_if_busy()
    print(table(found, names))
    print(NOTES)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
