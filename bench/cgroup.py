"""A memory cgroup, of version 1 or 2: what the kernel says that a process takes, its own share included."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .figures import BenchError


def _mounts() -> list[tuple[str, Path, list[str]]]:
    """Kind, place and options of all mounts of cgroups."""
    found = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            found.append((kind, Path(place), options.split(",")))
    return found


class MemoryGroup:
    """A group of its own, without a limit; a context manager, which removes it when its processes have ended."""

    def __init__(self) -> None:
        self._enabled_at: Path | None = None
        self._usage = ""
        self._path = Path()

    def __enter__(self) -> MemoryGroup:
        name = f"npppy-bench-{os.getpid()}"
        try:
            for kind, place, options in _mounts():
                if kind == "cgroup" and "memory" in options:
                    self._usage = "memory.usage_in_bytes"
                elif kind == "cgroup2" and "memory" in (place / "cgroup.controllers").read_text().split():
                    self._usage = "memory.current"
                    self._enable(place / "cgroup.subtree_control")
                else:
                    continue
                self._path = place / name
                self._path.mkdir()
                return self
        except OSError as error:
            self._disable()
            raise BenchError(f"cannot make a memory cgroup: {error}") from None
        raise BenchError("there is no memory cgroup on this machine")

    def __exit__(self, *_: object) -> None:
        self._path.rmdir()
        self._disable()

    def _enable(self, control: Path) -> None:
        if "memory" not in control.read_text().split():
            control.write_text("+memory")
            self._enabled_at = control

    def _disable(self) -> None:
        if self._enabled_at is not None:
            self._enabled_at.write_text("-memory")

    @property
    def enter(self) -> Sequence[str]:
        """A command that runs the one behind it in the group, from its first page on."""
        return ("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._path / "cgroup.procs"))

    def usage(self) -> int:
        """Octets."""
        return int((self._path / self._usage).read_text())
