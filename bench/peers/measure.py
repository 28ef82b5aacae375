"""The same questions to npppyd and to l2tpns."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import NamedTuple

from ..cgroup import MemoryGroup
from ..figures import BenchError
from ..packets import SIZES, WAYS, Frames
from ..sessions import SETTLED
from ..wire import Wire
from .l2tpns import L2tpns
from .lab import Lns, PeerLab

#: Packets a second that an LNS is offered which carries them in a process: more than it takes.
OFFERED = 1_000_000


class Setup(NamedTuple):
    """Set-ups a second of the LNS's processor time, and by the wall."""

    core: float
    wall: float


class Memory(NamedTuple):
    """Octets: of the LNS without a session; of each session, by how the group grows; of tables, a session's share."""

    base: float
    growth: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.  Times are in seconds."""

    setup: int
    runs: int
    tunnels: int
    #: Sessions of the one run that sees whether set-ups get slower with their number.
    many: int
    memory: int
    packets: int
    time: float


def setup(name: str, method: str, sizes: Sizes, tunnels: int) -> Setup:
    """The median of some runs, with a new LNS for each."""
    runs = [_setup(name, method, sizes.setup, tunnels) for _ in range(sizes.runs)]
    return Setup(*map(statistics.median, zip(*runs, strict=True)))


def _setup(name: str, method: str, sessions: int, tunnels: int) -> Setup:
    with PeerLab(name) as lab:
        lns = lab.start(sessions, method)
        before = lns.program.cpu()
        load = lab.call(lns, sessions, method, tunnels=tunnels)
        load.wait_up()
        spent = lns.program.cpu() - before
        _all_there(lns, sessions)
        *_, summary = load.end()
        return Setup(sessions / spent, summary["rate"])


def memory(name: str, sizes: Sizes) -> Memory:
    """What a memory cgroup says in which the LNS was started, and nothing else."""
    sessions = sizes.memory
    with MemoryGroup() as group, PeerLab(name) as lab:
        lns = lab.start(sessions, "pap", enter=group.enter)
        time.sleep(SETTLED)
        empty = group.held()
        tables, capacity = lns.tables()
        load = lab.call(lns, sessions, "pap")
        load.wait_up()
        _all_there(lns, sessions)
        time.sleep(SETTLED)
        growth = (group.held() - empty) / sessions
        load.end()
        return Memory(empty - tables, growth, tables / capacity if capacity else 0.0)


def _all_there(lns: Lns, sessions: int) -> None:
    """l2tpns's own account, beside npppysim's."""
    if isinstance(lns.program, L2tpns) and (found := lns.program.sessions()) != sessions:
        raise BenchError(f"l2tpns has {found} sessions of {sessions}")


def packets(name: str, sizes: Sizes) -> dict[tuple[str, int], float]:
    """Packets a second by way and size, each of any of the sessions."""
    with PeerLab(name) as lab:
        lns = lab.start(sizes.packets, "pap")
        load = lab.call(lns, sizes.packets, "pap")
        load.wait_up()
        sessions = load.leave()
        frames = Frames(lab)
        found = {}
        with Wire([(lab.sub, "sub0"), (lab.net, "host0")]) as wire:
            for way in WAYS:
                for size in SIZES:
                    stream = frames.sessions(way, size, sessions)
                    wire.load(stream)
                    if isinstance(lns.program, L2tpns):
                        rate, _ = wire.sustained(stream, sizes.time, OFFERED, lns.program.cpu)
                        # What waits in queues is for nobody's figure.
                        time.sleep(0.2)
                    else:
                        rate = wire.rate(stream, sizes.time)
                    found[way, size] = rate
                    lns.program.check()
        return found
