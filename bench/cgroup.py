"""A memory cgroup, of version 1 or 2: what the kernel says that a process takes, its own share included."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from .figures import BenchError


class _Files(NamedTuple):
    """What each version calls it."""

    usage: str
    peak: str
    limit: str
    #: No more than that with swap: of version 1 both together, of version 2 swap alone.
    swap: str
    #: Where a line says "oom_kill" and how often.
    events: str
    #: How its table of parts calls what processes have of their own, and pages of files.
    anonymous: str
    cache: str


_FILES = {
    "cgroup": _Files(
        usage="memory.usage_in_bytes",
        peak="memory.max_usage_in_bytes",
        limit="memory.limit_in_bytes",
        swap="memory.memsw.limit_in_bytes",
        events="memory.oom_control",
        anonymous="rss",
        cache="cache",
    ),
    "cgroup2": _Files(
        usage="memory.current",
        peak="memory.peak",
        limit="memory.max",
        swap="memory.swap.max",
        events="memory.events",
        anonymous="anon",
        cache="file",
    ),
}


class Parts(NamedTuple):
    """Octets, which make up what :meth:`MemoryGroup.usage` says."""

    #: What processes have of their own: heap, stacks.
    user: int
    #: Pages of files, tmpfs among them; the kernel takes them back when it has to, but for tmpfs's.
    files: int
    #: What the kernel holds for them: maps, sockets, page tables, and what of its steps of charging is not used up.
    kernel: int


class _Mount(NamedTuple):
    kind: str
    #: Where it is mounted, and where in it this process is; None: outside of it.
    place: Path
    own: Path | None


def _mounts() -> list[_Mount]:
    """All mounts of cgroups that have the controller of memory."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            groups["cgroup2"] = path
        elif "memory" in controllers.split(","):
            groups["cgroup"] = path
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        first, _, second = line.partition(" - ")
        root, place = first.split()[3:5]
        kind, _, options = second.split()
        if kind not in groups or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        if kind == "cgroup2" and "memory" not in (Path(place) / "cgroup.controllers").read_text().split():
            continue
        own = None
        with contextlib.suppress(ValueError):
            own = Path(place) / Path(groups[kind]).relative_to(root)
        found.append(_Mount(kind, Path(place), own))
    return found


class MemoryGroup:
    """A group of its own; a context manager, which removes it when its processes have ended.

    It is made at the top of the hierarchy, or, where that is not allowed, below the group of this process.

    *limit*: octets that its processes may take at the most, the kernel's part for them included, without swap; None: no
    limit but those of all.  Where they need more, the kernel ends one of them: see :meth:`oom_kills`.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._stack = contextlib.ExitStack()
        self._files = _FILES["cgroup2"]
        #: Where it is, once entered.
        self.path = Path()

    def __enter__(self) -> Self:
        name = f"npppy-bench-{os.getpid()}"
        failure: object = "there is none on this machine"
        for kind, place, own in _mounts():
            for home in dict.fromkeys((place, own)):
                if home is None:
                    continue
                try:
                    with contextlib.ExitStack() as stack:
                        if kind == "cgroup2":
                            self._enable(home, home == own, name, stack)
                        self._files = _FILES[kind]
                        self.path = home / name
                        self.path.mkdir()
                        stack.callback(self.path.rmdir)
                        if self._limit is not None:
                            self._set_limit(self._limit)
                        self._stack = stack.pop_all()
                        return self
                except OSError as error:
                    failure = error
        raise BenchError(f"cannot make a memory cgroup: {failure}")

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _enable(home: Path, ours: bool, name: str, stack: contextlib.ExitStack) -> None:
        """Let groups within *home* count memory, as long as the stack lives."""
        control = home / "cgroup.subtree_control"
        if "memory" in control.read_text().split():
            return
        try:
            control.write_text("+memory")
        except OSError as error:
            # Only the root may have both processes and groups that count: ours move to one beside the new one.
            if error.errno != errno.EBUSY or not ours:
                raise
            beside = home / f"{name}-others"
            beside.mkdir()
            stack.callback(beside.rmdir)
            stack.callback(_move, beside, home)
            _move(home, beside)
            control.write_text("+memory")
        stack.callback(control.write_text, "-memory")

    def _set_limit(self, limit: int) -> None:
        (self.path / self._files.limit).write_text(str(limit))
        swap = self.path / self._files.swap
        # There is none without swap.
        if swap.exists():
            swap.write_text("0" if self._files is _FILES["cgroup2"] else str(limit))

    @property
    def version(self) -> int:
        """Of cgroups: 1 or 2."""
        return 2 if self._files is _FILES["cgroup2"] else 1

    @property
    def enter(self) -> Sequence[str]:
        """A command that runs the one behind it in the group, from its first page on."""
        return ("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.path / "cgroup.procs"))

    def usage(self) -> int:
        """Octets.  Of version 1 without what waits in queues of TCP."""
        return self._number(self._files.usage)

    def held(self) -> int:
        """Octets of usage without pages of files that are on a disk: they come and go as the kernel likes."""
        table, usage = self._table("memory.stat"), self.usage()
        return usage - table[self._files.cache] + table["shmem"]

    def peak(self) -> int:
        """The most octets that there ever were.  Raises :class:`BenchError` with a kernel that does not know."""
        return self._number(self._files.peak)

    def oom_kills(self) -> int:
        """How many of its processes the kernel has ended because the limit left no room."""
        return self._table(self._files.events)["oom_kill"]

    def parts(self) -> Parts:
        table, usage = self._table("memory.stat"), self.usage()
        user, files = table[self._files.anonymous], table[self._files.cache]
        return Parts(user, files, usage - user - files)

    def _number(self, name: str) -> int:
        try:
            return int((self.path / name).read_text())
        except FileNotFoundError:
            raise BenchError(f"this kernel has no {name}") from None

    def _table(self, name: str) -> dict[str, int]:
        lines = (line.split() for line in (self.path / name).read_text().splitlines())
        return {key: int(value) for key, value in lines}


def _move(old: Path, new: Path) -> None:
    """All processes of a group to another."""
    for process in (old / "cgroup.procs").read_text().split():
        # It may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError):
            (new / "cgroup.procs").write_text(process)
