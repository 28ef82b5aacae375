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
from typing import NoReturn

from npppy.pipex.ebpf.libbpf import BpfError

from . import blocks, mppe, packets, radius, sessions, tcp
from .carriers import CARRIERS, L2TP, MPPE, PPPOE, PPTP, Carrier
from .figures import ROOT, BenchError, Figure, append, commit, machine, table
from .lab import OURS, THEIRS

PARTS = ("setup", "radius", "rest", "ctl", "pipex", "blocks", "tcp")

#: The share of the machine that others may have before we say so.
QUIET = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.  Times are in seconds."""

    setup: int
    setup_runs: int
    idle: int
    idle_time: float
    memory: int
    listed: tuple[int, ...]
    packets: packets.Effort
    #: All rows of L2TP and PPTP.
    whole: bool


FULL = Sizes(
    setup=2000,
    setup_runs=3,
    idle=10_000,
    idle_time=60.0,
    memory=10_000,
    listed=(10_000, 50_000),
    packets=packets.Effort(many=10_000, pairs=7, kernel_time=0.25, user_time=0.5, encrypted=1_000_000),
    whole=True,
)
QUICK = Sizes(
    setup=500,
    setup_runs=1,
    idle=1000,
    idle_time=10.0,
    memory=2000,
    listed=(2000,),
    packets=packets.Effort(many=2000, pairs=3, kernel_time=0.1, user_time=0.2, encrypted=100_000),
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
            yield from sessions.rest(PPPOE, sizes.idle, sizes.idle_time, sizes.memory)
        for carrier in carriers:
            if carrier is not PPPOE:
                yield from sessions.rest(carrier, sizes.idle if sizes.whole else 0, sizes.idle_time, sizes.memory)
                if sizes.whole:
                    yield from sessions.rest(carrier, 0, 0, sizes.memory, own=True)
        if PPTP in carriers and sizes.whole:
            yield from sessions.rest(MPPE, 0, 0, sizes.memory)
    elif part == "pipex":
        for carrier in carriers:
            yield from packets.measure(carrier, sizes.packets, carrier is PPPOE or sizes.whole)
        if L2TP in carriers and sizes.whole:
            yield from packets.variants(sizes.packets)
        if PPTP in carriers:
            yield from mppe.measure(sizes.packets, tuple(packets.TARGETS) if sizes.whole else ("fast",))
    elif PPPOE not in carriers:
        return
    elif part == "radius":
        yield from radius.measure(sizes.setup, sizes.setup_runs)
    elif part == "ctl":
        yield from sessions.listing(sizes.listed)
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


def warn_if_busy() -> None:
    """Say so if this machine has something else to do."""
    busy = _busy()
    if busy > QUIET:
        print(f"others take {busy:.0%} of this machine: figures by the wall mean little, those of a core are too low")


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
    alone = "that alone; radius, ctl, blocks and tcp are of pppoe"
    parser.add_argument("--carrier", choices=tuple(CARRIERS), help=alone)
    parser.add_argument("--quick", action="store_true", help="less of everything: three minutes at most")
    parser.add_argument("--sessions", type=int, metavar="N", help="so many in parts setup, radius, pipex and blocks")
    parser.add_argument("--pairs", type=int, metavar="N", help="so many pairs of runs in parts pipex, blocks and tcp")
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
        return _measure(given.parts or PARTS, carriers, sizes, given.results)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _measure(parts: Sequence[str], carriers: Sequence[Carrier], sizes: Sizes, results: Path) -> int:
    print(f"{machine()}, commit {commit()}", flush=True)
    if OURS == THEIRS:
        print("one core for all: what is measured by the wall is npppyd and its peers together")
    warn_if_busy()
    compile_all()
    began = time.monotonic()
    found: list[Figure] = []
    failed = False
    for part in parts:
        print(f"  {part} ...", file=sys.stderr, flush=True)
        try:
            for figure in figures(part, carriers, sizes):
                found.append(figure)
                append(results, figure)
        except (BenchError, BpfError, OSError) as error:
            print(f"bench: {part} failed: {error}", file=sys.stderr)
            failed = True
    warn_if_busy()
    print(table(found))
    print(f"{time.monotonic() - began:.0f} s; kept in {results}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
