"""The maps and programs of pipex, loaded: the slots of sessions in them, their counters, and pins."""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

from .layout import BUCKET, COUNT_RECORD, COUNTERS, OBJECT, SESSION, STATS, TIMES, U32, VERSION
from .libbpf import LOCKED, BpfError, Map, Object, Program, unpin

log = logging.getLogger("npppy.pipex")

#: Where pins are, in a directory for each version.
PINS: Final = Path("/sys/fs/bpf/npppy")

#: Maps, and how many entries they have for each session, and for each slot; 0: as the object says.
_MAPS: Final = {
    "sessions": (1, 0),
    "hosts4": (1, 0),
    "nets4": (1, 0),
    "nets6": (1, 0),
    "slots": (0, 1),
    "stats": (0, 1),
    "buckets": (0, 2),
    "counts": (0, 0),
    "config": (0, 0),
    "devs": (0, 0),
    "nics": (0, 0),
    "events": (0, 0),
}
_PROGRAMS: Final = ("pipex_access", "pipex_core", "pipex_nic", "pipex_miss")
#: A slot that was given back rests until so many others were, and there are so many more than sessions: no program
#: still runs then that may have found the session before.
_RESTING: Final = 256
_GENERATIONS: Final = 0xFFFFFFFF
_PROGRAM_PIN: Final = "prog_"

#: The largest burst, in octets: a bucket counts nano-octets in 64 bits.
BURST_MAX: Final = 18 * 10**9

_FREE: Final = bytes(SESSION.size)
_NO_STATS: Final = bytes(STATS.size)


class Count(NamedTuple):
    packets: int
    octets: int


class PipexMaps:
    """The maps, by name, and the slots."""

    def __init__(self, capacity: int, pins: Path | None = None, path: str = OBJECT) -> None:
        """Load the object at *path* for *capacity* sessions.

        With *pins*, all is pinned there in a directory of this version; where it cannot be, that is logged.  If that
        has maps of this very size, they are taken over with their entries; other versions, and maps of another size,
        are removed.  Raises :class:`BpfError`.
        """
        self.capacity = capacity
        #: Whether the entries are those of an earlier process.
        self.adopted = False
        self._slots = capacity + _RESTING
        sizes = {
            name: capacity * each + self._slots * slot for name, (each, slot) in _MAPS.items() if each or slot
        }
        old: dict[str, Map] = {}
        if pins is not None and os.access(pins, os.R_OK | os.W_OK | os.X_OK):
            old = _take_over(pins, sizes)
        try:
            try:
                self._object = Object(path, sizes={} if old else sizes, reuse=old)
                self.adopted = bool(old)
            except BpfError as error:
                if not old:
                    raise
                log.warning("pipex: what is pinned at %s is not ours, and removed: %s", pins, error)
                assert pins is not None
                remove_pins(pins)
                self._object = Object(path, sizes=sizes)
        finally:
            for item in old.values():
                item.close()
        maps = self._object.maps
        self.programs: dict[str, Program] = {name: self._object.programs[name] for name in _PROGRAMS}
        self.sessions = maps["sessions"]
        self.hosts4 = maps["hosts4"]
        self.nets4 = maps["nets4"]
        self.nets6 = maps["nets6"]
        self.slots = maps["slots"]
        self.buckets = maps["buckets"]
        self.counts = maps["counts"]
        self.config = maps["config"]
        self.devs = maps["devs"]
        self.nics = maps["nics"]
        self.events = maps["events"]
        self._stats = maps["stats"].mapped()
        self._freed: deque[int] = deque()
        #: Slots from here on were never used.
        self._fresh = 0
        self._generation = 0
        if self.adopted:
            self._occupy()
        if pins is not None:
            try:
                self._pin(pins)
            except BpfError as error:
                log.warning("pipex: %s: no npppyd that is started later can take the maps over", error)

    def close(self) -> None:
        """Close the maps and the programs.  What is attached goes on, with the entries that are there."""
        self._stats.close()
        self._object.close()

    # Slots.

    def take(self) -> tuple[int, int]:
        """A slot and its new generation; the slot is -1 where there is none left."""
        if self.used >= self.capacity:
            return -1, 0
        if len(self._freed) > _RESTING or self._fresh == self._slots:
            slot = self._freed.popleft()
        else:
            slot = self._fresh
            self._fresh += 1
        # One number for all: so no two sessions have the same within four thousand million.
        self._generation = self._generation % _GENERATIONS + 1
        return slot, self._generation

    def fill(self, slot: int, session: bytes, now: int) -> None:
        """Describe a session, before anything leads to it, and begin its counters at 0; *now* in nanoseconds."""
        self._stats[slot * STATS.size : (slot + 1) * STATS.size] = _NO_STATS
        TIMES.pack_into(self._stats, slot * STATS.size + STATS.offsets["active_ns"], now, now)
        self.slots.put(U32.pack(slot), session)

    def limit(self, slot: int, way: int, rate: int, burst: int) -> None:
        """Give the bucket of a way, 0 up and 1 down, its rate in octets a second and its burst in octets, full.

        Raises :class:`BpfError` if they cannot be: see struct pipex_bucket.
        """
        if not 0 < rate < 1 << 63 or not 0 < burst <= BURST_MAX:
            raise BpfError(f"hold a rate of {rate} with a burst of {burst} octets", errno.EINVAL)
        self.buckets.put(U32.pack(2 * slot + way), BUCKET.pack(rate, burst, 0, 0, 0, 0), LOCKED)

    def free(self, slot: int) -> None:
        """Give a slot back that nothing leads to any more."""
        self.slots.put(U32.pack(slot), _FREE)
        self._freed.append(slot)

    def session(self, slot: int) -> bytes:
        """What :meth:`fill` put there."""
        found = self.slots.get(U32.pack(slot))
        assert found is not None, "arrays have all their elements"
        return found

    def stats(self, slot: int) -> tuple[int, ...]:
        """The members of struct pipex_stats."""
        return STATS.unpack_from(self._stats, slot * STATS.size)

    @property
    def used(self) -> int:
        """Slots that sessions have."""
        return self._fresh - len(self._freed)

    def clear(self) -> int:
        """Remove all sessions and interfaces, as what an earlier process has left; returns how many there were."""
        for item in (self.sessions, self.hosts4, self.nets4, self.nets6):
            for key, _ in item.items():
                item.delete(key)
        for item in (self.devs, self.nics):
            for key in list(item.keys()):
                item.delete(key)
        for index in range(self.config.max_entries):
            self.config.put(U32.pack(index), bytes(self.config.octets))
        ended = self.used
        resting = set(self._freed)
        for slot in range(self._fresh):
            if slot not in resting:
                self.free(slot)
        return ended

    # For who looks on.

    def totals(self) -> dict[str, Count]:
        """What the programs counted, over all processors and since they were loaded, by enum pipex_counter."""
        found = {}
        for index, name in enumerate(COUNTERS):
            values = self.counts.get(U32.pack(index)) or b""
            pairs = list(COUNT_RECORD.iter_unpack(values))
            found[name] = Count(sum(packets for packets, _ in pairs), sum(octets for _, octets in pairs))
        return found

    def memory(self) -> dict[str, int]:
        """Octets of kernel memory by map, as the kernel reckons them."""
        found = {}
        for name, item in self._object.maps.items():
            with open(f"/proc/self/fdinfo/{item.fd}") as file:
                found[name] = sum(int(line.split()[1]) for line in file if line.startswith("memlock:"))
        return found

    def _occupy(self) -> None:
        """Slots that are in use, in maps that were taken over."""
        entries = [(U32.unpack(key)[0], U32.unpack_from(value)[0]) for key, value in self.slots.items()]
        used = {slot: generation for slot, generation in entries if generation}
        self._fresh = max(used, default=-1) + 1
        self._freed.extend(slot for slot in range(self._fresh) if slot not in used)
        self._generation = max(used.values(), default=0)

    def _pin(self, pins: Path) -> None:
        directory = pins / f"v{VERSION}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BpfError(f"pin maps at {directory}", error.errno or 0) from None
        for name in _MAPS:
            if not (directory / name).exists():
                self._object.maps[name].pin(str(directory / name))
        for name, program in self.programs.items():
            unpin(str(directory / f"{_PROGRAM_PIN}{name}"))
            program.pin(str(directory / f"{_PROGRAM_PIN}{name}"))


def pinned_programs(pins: Path) -> dict[int, Program]:
    """Programs of any version that are pinned, by the kernel's number; the caller's to close."""
    found = {}
    for path in pins.glob(f"v*/{_PROGRAM_PIN}*"):
        program = Program.pinned(str(path))
        found[program.id] = program
    return found


def remove_pins(pins: Path, keep: Path | None = None) -> int:
    """Remove the pins of all versions, but those in the directory *keep*; returns how many there were."""
    count = 0
    for directory in list(pins.glob("v*")):
        if directory == keep:
            continue
        for path in list(directory.iterdir()):
            path.unlink()
            count += 1
        directory.rmdir()
    if keep is None and pins.is_dir():
        pins.rmdir()
    return count


def _take_over(pins: Path, sizes: dict[str, int]) -> dict[str, Map]:
    """The pinned maps, if they are as they should be; else they are removed, and there are none."""
    directory = pins / f"v{VERSION}"
    remove_pins(pins, keep=directory)
    if not directory.is_dir():
        return {}
    found: dict[str, Map] = {}
    try:
        for name in _MAPS:
            found[name] = Map.pinned(str(directory / name))
            if sizes.get(name, found[name].max_entries) != found[name].max_entries:
                raise BpfError(f"take {found[name]} over", 0, f"it has {found[name].max_entries} entries")
    except BpfError as error:
        log.warning("pipex: what is pinned at %s is removed: %s", directory, error)
        for item in found.values():
            item.close()
        remove_pins(pins)
        return {}
    return found
