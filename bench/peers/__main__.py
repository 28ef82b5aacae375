"""``python -m bench.peers``: npppyd and Debian's servers under the same load, as tables.

l2tpns runs on this machine's kernel; those that need PPP in the kernel run in a guest (see guest.py).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from npppy.pipex.ebpf.libbpf import BpfError

from ..__main__ import compile_all, interrupted, warn_if_busy
from ..figures import BenchError, commit, machine
from ..lab import OURS, THEIRS
from . import guest
from .measure import Sizes, memory, packets, setup
from .rows import Row, table

NAMES = ("npppyd", "l2tpns")
PARTS = ("setup", "memory", "packets")
#: That of those who need PPP in the kernel.
GUEST = "guest"
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


def rows(name: str, part: str, sizes: Sizes) -> Iterator[Row]:
    """What one of the two on this kernel does, in the same order for both."""
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


def main() -> int:
    """0 if all was measured, whatever came out; 1 if a measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="See bench/README.md.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join((*PARTS, GUEST))} (all)")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", choices=NAMES, help="one of the two, and no guest")
    given = parser.parse_args()
    if unknown := set(given.parts) - {*PARTS, GUEST}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if given.only and GUEST in given.parts:
        parser.error("--only is of the parts on this kernel")
    if os.geteuid():
        parser.error("needs root")
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, interrupted)
    os.sched_setaffinity(0, {THEIRS})
    names = (given.only,) if given.only else NAMES
    parts = given.parts or (PARTS if given.only else (*PARTS, GUEST))
    try:
        return _measure(names, parts, given.quick)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _measure(names: Sequence[str], parts: Sequence[str], quick: bool) -> int:
    print(f"{machine()}, commit {commit()}", flush=True)
    if OURS == THEIRS:
        print("one core for all: what is measured by the wall is an LNS and its peers together")
    warn_if_busy()
    compile_all()
    here = [part for part in parts if part != GUEST]
    measured = not here or _compare(names, here, QUICK if quick else FULL)
    if GUEST in parts:
        measured &= guest.run(quick)
    warn_if_busy()
    return 0 if measured else 1


def _compare(names: Sequence[str], parts: Iterable[str], sizes: Sizes) -> bool:
    """Print a table of the two; whether all was measured."""
    found: list[list[Row]] = [[] for _ in names]
    measured = True
    for part in parts:
        try:
            fresh = []
            for name in names:
                print(f"  {part}, {name} ...", file=sys.stderr, flush=True)
                fresh.append(list(rows(name, part, sizes)))
        except (BenchError, BpfError, OSError) as error:
            print(f"bench: {part} failed: {error}", file=sys.stderr)
            measured = False
            continue
        for before, after in zip(found, fresh, strict=True):
            before.extend(after)
    print(table(found, names))
    print(NOTES)
    return measured


if __name__ == "__main__":
    sys.exit(main())
