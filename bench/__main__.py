"""``python -m bench``: measure, print every figure against its target, and keep them."""

from __future__ import annotations

import argparse
import compileall
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

from npppy.pipex.ebpf.libbpf import BpfError

from . import asking, blocks, count, growth, mppe, packets, radius, sessions, storm, tcp
from .carriers import CARRIERS, L2TP, MPPE, PPPOE, PPTP, Carrier
from .figures import ROOT, BenchError, Figure, append, commit, document, machine, table
from .lab import OURS, THEIRS

PARTS = ("setup", "radius", "rest", "ctl", "growth", "leak", "count", "storm", "pipex", "blocks", "tcp")

#: The share of the machine that others may have before we say so.
QUIET = 0.05


class Growth(NamedTuple):
    """Sessions beside which set-ups are measured, how many each time, and how often."""

    few: int
    many: int
    more: int
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.  Times are in seconds."""

    setup: int
    setup_runs: int
    idle: int
    idle_time: float
    #: Between the echoes of each.
    idle_every: int
    #: A second time, with this many; 0: not.
    idle_large: int
    memory: int
    listed: tuple[int, ...]
    growth: Growth
    #: Set-ups after which memory is looked at, and again.
    leak: tuple[int, int]
    #: Sessions in 128 MB, and without a limit, and how long all stay.
    count: tuple[int, int]
    count_time: float
    #: Sessions before a storm, how long it lasts, and how often there are both.
    storm: tuple[int, float, int]
    packets: packets.Effort
    #: All rows of L2TP and PPTP.
    whole: bool


FULL = Sizes(
    setup=2000,
    setup_runs=3,
    idle=10_000,
    idle_time=60.0,
    idle_every=sessions.KEEPALIVE,
    idle_large=50_000,
    memory=10_000,
    listed=(10_000, 50_000),
    growth=Growth(growth.FEW_SESSIONS, growth.MANY_SESSIONS, 500, 9),
    leak=(growth.WARM, growth.WORN),
    count=(count.SMALL, count.LARGE),
    count_time=45.0,
    storm=(1000, 8.0, 3),
    packets=packets.Effort(
        many=10_000, pairs=7, kernel_time=0.25, user_time=0.5, delivered=1_000_000, encrypted=1_000_000
    ),
    whole=True,
)
QUICK = Sizes(
    setup=500,
    setup_runs=1,
    idle=250,
    idle_time=5.0,
    idle_every=5,
    idle_large=0,
    memory=1000,
    listed=(2000,),
    growth=Growth(growth.FEW_SESSIONS, 2000, 250, 3),
    leak=(500, 1500),
    count=(500, 500),
    count_time=1.0,
    storm=(300, 2.0, 1),
    packets=packets.Effort(
        many=1000, pairs=2, kernel_time=0.1, user_time=0.2, delivered=200_000, encrypted=50_000
    ),
    whole=False,
)


def figures(part: str, carriers: Sequence[Carrier], sizes: Sizes) -> Iterator[Figure]:
    """Of a part, as far as it is about these carriers."""
    if part == "setup":
        for carrier in carriers:
            for method in sessions.METHODS:
                yield from sessions.setup(carrier, method, sizes.setup, sizes.setup_runs)
        if L2TP in carriers:
            yield from sessions.setup(L2TP, sessions.METHOD, sizes.setup, sizes.setup_runs, own=True)
        if PPTP in carriers:
            yield from sessions.setup(PPTP, sessions.METHOD, sizes.setup, sizes.setup_runs, own=True)
            yield from sessions.setup(MPPE, sessions.METHOD, sizes.setup, sizes.setup_runs)
    elif part == "rest":
        if PPPOE in carriers:
            yield from sessions.base()
            yield from sessions.rest(PPPOE, sizes.idle, sizes.idle_time, sizes.memory, every=sizes.idle_every)
            if sizes.idle_large:
                yield from sessions.idle(PPPOE, sizes.idle_large, sizes.idle_time)
        for carrier in carriers:
            if carrier is not PPPOE:
                yield from sessions.rest(carrier, sizes.idle if sizes.whole else 0, sizes.idle_time, sizes.memory)
                if sizes.whole:
                    yield from sessions.rest(carrier, 0, 0, sizes.memory, own=True)
        if PPTP in carriers and sizes.whole:
            yield from sessions.rest(MPPE, 0, 0, sizes.memory)
    elif part == "leak":
        for carrier in carriers:
            if carrier is PPPOE or sizes.whole:
                yield from growth.leak(carrier, *sizes.leak)
    elif part == "storm":
        for carrier in carriers:
            if carrier is PPPOE or sizes.whole:
                yield from storm.measure(carrier, *sizes.storm)
            if carrier is not PPPOE and sizes.whole:
                yield from storm.measure(carrier, *sizes.storm, own=True)
        if PPPOE in carriers and sizes.whole:
            yield from storm.radius(*sizes.storm)
    elif part == "pipex":
        for carrier in carriers:
            if sizes.whole:
                yield from packets.measure(carrier, sizes.packets)
            else:
                some = packets.TARGETS, packets.SIZES[:1]
                yield from packets.measure(carrier, sizes.packets, *some, one=carrier is PPPOE)
        if L2TP in carriers and sizes.whole:
            yield from packets.variants(sizes.packets)
        if PPTP in carriers:
            yield from mppe.measure(sizes.packets, tuple(packets.TARGETS) if sizes.whole else ("fast",))
    elif PPPOE not in carriers:
        return
    elif part == "radius":
        yield from radius.measure(sizes.setup, sizes.setup_runs, sizes.whole)
    elif part == "ctl":
        yield from asking.measure(sizes.listed)
    elif part == "growth":
        yield from growth.setup(*sizes.growth)
    elif part == "count":
        yield from count.limited(sizes.count[0], sizes.count_time)
        yield from count.machine(sizes.count[1], sizes.count_time)
    elif part == "blocks":
        yield from blocks.measure(sizes.packets)
    else:
        yield from tcp.measure(sizes.packets)


def _busy() -> float:
    """The share of the machine's processors that is used at the moment."""

    def look() -> tuple[int, int]:
        # proc(5): user, nice, system, idle, iowait, ...
        times = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(times) - times[3] - times[4], sum(times)

    used, total = look()
    time.sleep(1)
    used_now, total_now = look()
    return (used_now - used) / (total_now - total)


def say(line: str) -> None:
    """To who watches; standard output is for what came of it."""
    print(line, file=sys.stderr, flush=True)


def warn_if_busy() -> None:
    """Say so if this machine has something else to do."""
    busy = _busy()
    if busy > QUIET:
        say(f"others take {busy:.0%} of this machine: figures by the wall mean little, those of a core are too low")


def compile_all() -> None:
    """An npppyd that compiles itself has more memory than it needs, which its sessions then seem not to take."""
    compileall.compile_dir(ROOT / "npppy", quiet=1)


def interrupted(number: int, frame: object) -> NoReturn:
    """A handler of signals that end us in order."""
    raise KeyboardInterrupt


def main() -> int:
    """0 if all was measured, whatever came out; 1 if a measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure npppy; see bench/README.md.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (all)")
    alone = "that alone; setup, rest, leak, storm and pipex know of others than pppoe"
    parser.add_argument("--carrier", choices=tuple(CARRIERS), help=alone)
    parser.add_argument("--quick", action="store_true", help="less of everything: about three minutes")
    parser.add_argument("--sessions", type=int, metavar="N", help="so many in parts setup, radius, pipex and blocks")
    parser.add_argument("--pairs", type=int, metavar="N", help="so many pairs of runs in parts pipex, blocks and tcp")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object, instead of the table")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results.jsonl", metavar="FILE")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if os.geteuid():
        parser.error("needs root")
    sizes = QUICK if given.quick else FULL
    if given.sessions:
        sizes = replace(sizes, setup=given.sessions, packets=replace(sizes.packets, many=given.sessions))
    if given.pairs:
        sizes = replace(sizes, packets=replace(sizes.packets, pairs=given.pairs))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    # npppyd has a core to itself.
    os.sched_setaffinity(0, {THEIRS})
    try:
        carriers = [CARRIERS[given.carrier]] if given.carrier else list(CARRIERS.values())
        return _measure(given.parts or PARTS, carriers, sizes, given)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _measure(parts: Sequence[str], carriers: Sequence[Carrier], sizes: Sizes, given: argparse.Namespace) -> int:
    say(f"{machine()}, commit {commit()}")
    if OURS == THEIRS:
        say("one core for all: what is measured by the wall is npppyd and its peers together")
    warn_if_busy()
    compile_all()
    began = time.monotonic()
    found: list[Figure] = []
    failed = []
    for part in parts:
        say(f"  {part} ...")
        begun = time.monotonic()
        try:
            for figure in figures(part, carriers, sizes):
                found.append(figure)
                append(given.results, figure)
        except (BenchError, BpfError, OSError) as error:
            say(f"bench: {part} failed: {error}")
            failed.append(part)
        say(f"  {part}: {time.monotonic() - begun:.0f} s")
    warn_if_busy()
    took = time.monotonic() - began
    if given.json:
        print(document(found, quick=given.quick, seconds=round(took), failed=failed))
    else:
        print(table(found))
        print(f"{took:.0f} s; kept in {given.results}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
