"""npppyd beside Debian's servers with a pppd for each session, in a guest whose kernel has PPP.

:func:`run` starts a guest, and ``python -m bench.peers.guest`` is what runs in it.  There is one processor, which
npppysim is on, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from npppy.pipex.ebpf.libbpf import BpfError
from tests.guest import harness

from ..carriers import L2TP, PPPOE, Carrier
from ..cgroup import MemoryGroup
from ..figures import BenchError, machine
from ..kernel import map_memory
from ..lab import Lab, Npppyd, credentials, until
from ..sessions import SETTLED
from .lab import Load
from .pppd import PppdServer, PppoeServer, Xl2tpd
from .rows import Row, table

METHOD = "chap"
#: Set-ups under way at a time.  With more, pppoe-server has PADRs repeated.
WINDOW = 16
#: Seconds that all sessions may take, and so much longer for each; of npppysim's, what one of them may.
PATIENCE, PATIENCE_SESSION, TIMEOUT = 60.0, 1.0, 300
#: Of pppds for a session each.
SPARE = 1.25

#: What is not the same for all, and what to make of it.
NOTES = """\
(kernel), (user): what carries the data of pppoe-server and of xl2tpd; of npppyd the kernel does.
"of a core": by the processor time of the server and all its pppds.  By the wall nothing is said: npppysim is on that
core, too, and a pppd comes too late for its subscriber's first LCP request, of which the next one is 3 s away.
Memory: by a memory cgroup that the server was started in, npppyd's maps and all pppds included.
pppd looks its user up in a file, line by line; npppyd has read it before."""


class Server(NamedTuple):
    name: str
    #: None: npppyd.
    kind: type[PppdServer] | None = None
    #: Whether the kernel carries its data.
    kernel: bool = True


SERVERS: tuple[tuple[Carrier, tuple[Server, ...]], ...] = (
    (
        PPPOE,
        (Server("npppyd"), Server("pppoe-server (kernel)", PppoeServer), Server("(user)", PppoeServer, False)),
    ),
    (L2TP, (Server("npppyd"), Server("xl2tpd (kernel)", Xl2tpd), Server("(user)", Xl2tpd, False))),
)


class Sizes(NamedTuple):
    #: Of a server with pppds, and of npppyd, which would be done with as many before the guest's clock had moved.
    sessions: int
    ours: int
    runs: int


FULL, QUICK = Sizes(96, 3000, 3), Sizes(48, 600, 1)


class Found(NamedTuple):
    """Set-ups for a second of the server's processor time, and octets a session."""

    rate: float
    memory: float


class Group(MemoryGroup):
    """One that has what a server starts in it, too, and ends when that has."""

    def __exit__(self, *ended: object) -> None:
        until(lambda: not self._table("cgroup.events")["populated"], "all processes of a server have ended")
        super().__exit__(*ended)

    def cpu(self) -> float:
        """Seconds of processor time that its processes have used, those that have ended as well."""
        return self._table("cpu.stat")["usage_usec"] / 1e6


class PppdLoad(Load):
    def wait_up(self) -> None:
        def up() -> bool:
            self._server.check()
            self.check()
            return self._up() >= self._count

        until(up, f"{self._count} sessions are up", PATIENCE + PATIENCE_SESSION * self._count)


class PppdLab(Lab):
    def start(self, server: Server, users: int, enter: Sequence[str]) -> Npppyd | PppdServer:
        """Start it with so many users, and wait until it serves."""
        if server.kind is None:
            return self.npppyd(users=users, method=METHOD, enter=enter)
        program = server.kind(
            self.bng,
            self.directory / "ppp",
            list(credentials(1, users)),
            method=METHOD,
            kernel=server.kernel,
            enter=enter,
        )
        self._start(program)
        program.wait_ready()
        return program


def measure(carrier: Carrier, server: Server, sessions: int) -> Found:
    """A new server, and so many sessions of it, through one tunnel if there are any."""
    with Group() as group, PppdLab(carrier) as lab:
        program = lab.start(server, sessions, group.enter)
        time.sleep(SETTLED)
        empty, before = group.held(), group.cpu()
        tables = 0.0
        if isinstance(program, Npppyd):
            octets, capacity = map_memory(program.process.pid)
            tables = octets / capacity if capacity else 0.0
        options = ("--events", "--window", str(WINDOW), "--timeout", str(TIMEOUT), *carrier.tunnels(1))
        load = lab.dial(program, sessions, METHOD, *options, kind=PppdLoad)
        load.wait_up()
        spent = group.cpu() - before
        if not spent:
            raise BenchError(f"{sessions} sessions of {server.name} are too few for the guest's clock")
        time.sleep(SETTLED)
        memory = group.held() - empty
        if isinstance(program, PppdServer):
            sessions = _pppds(program, server, sessions)
        load.end()
        return Found(sessions / spent, memory / sessions + tables)


def _pppds(program: PppdServer, server: Server, sessions: int) -> int:
    """How many there are for so many sessions: pppoe-server starts one for each PADR, also for one that is repeated."""
    found, carried = program.sessions(), program.in_kernel()
    if not sessions <= found <= sessions * SPARE:
        raise BenchError(f"{server.name} has {found} sessions of {sessions}")
    if carried < sessions if server.kernel else carried:
        raise BenchError(f"{server.name}: of {found} sessions the kernel carries {carried}")
    return found


def rows(found: Sequence[Found]) -> Iterator[Row]:
    """The median of some runs."""
    rate, memory = map(statistics.median, zip(*found, strict=True))
    yield Row("set-ups", "/s of a core", rate)
    yield Row("memory of a session", "KiB", memory / 1024)


def compare(carrier: Carrier, servers: Sequence[Server], sizes: Sizes) -> str:
    """A table of them.  They take turns."""
    found: list[list[Found]] = [[] for _ in servers]
    for run in range(sizes.runs):
        for server, own in zip(servers, found, strict=True):
            print(f"  {carrier.name}, run {run + 1}, {server.name} ...", file=sys.stderr, flush=True)
            own.append(measure(carrier, server, sizes.sessions if server.kind else sizes.ours))
    return table([list(rows(own)) for own in found], [server.name for server in servers])


def run(quick: bool) -> bool:
    """Start a guest for it; whether all was measured."""
    sys.stdout.flush()
    # An emulated one takes ten times as long for less.
    timeout = 3600 if "tcg" in harness.kinds() else 1200
    argv = [sys.executable, "-m", "bench.peers.guest", *["--quick"] * quick]
    return harness.run(argv, timeout=timeout) == 0


def main() -> int:
    """0 if all was measured; 1 if a measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.guest", description="See bench/README.md.")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    given = parser.parse_args()
    kind = os.environ.get("NPPPY_GUEST")
    if not kind:
        parser.error("runs in a guest: make bench-peers")
    sizes = QUICK if given.quick or kind == "tcg" else FULL
    print(f"in a guest ({kind}): {machine()}")
    print(f"{sizes.sessions} sessions, of npppyd {sizes.ours:,}, {WINDOW} at a time", flush=True)
    status = 0
    for carrier, servers in SERVERS:
        try:
            print(compare(carrier, servers, sizes), flush=True)
        except (BenchError, BpfError, OSError) as error:
            print(f"bench: {carrier.name} failed: {error}", file=sys.stderr, flush=True)
            status = 1
    print(NOTES)
    return status


if __name__ == "__main__":
    sys.exit(main())
