"""The maps and programs of pipex, loaded: the slots of sessions in them, their counters, and pins."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import struct
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from ...control.protocol import SOCKET
from ...fifo import Fifo
from ..base import Count
from .layout import BUCKET, COUNT_RECORD, COUNTERS, MIRROR, OBJECT, SEQ, STATS, TIMES, U32
from .libbpf import LOCKED, BpfError, Map, Object, Program
from .migrate import Legacy
from .pins import editions, publish, remove, usable

log = logging.getLogger("npppy.pipex")

#: Where pins are, of the daemon with the usual control socket.
PINS: Final = Path("/sys/fs/bpf/npppy")

#: How many entries maps have for each session, and for each slot; of others the object says it.
_MAPS: Final = {
    "sessions": (1, 0),
    "hosts4": (1, 0),
    # A trie takes memory for what is in it alone.
    "nets4": (4, 0),
    "nets6": (2, 0),
    "slots": (0, 1),
    "stats": (0, 1),
    "seqs": (0, 1),
    "buckets": (0, 2),
    "mppe": (2, 0),
}
_PROGRAMS: Final = ("pipex_access", "pipex_core", "pipex_nic", "pipex_miss", "pipex_order", "pipex_ack")
#: A slot that was given back rests until so many others have been taken, for there are so many more than sessions: no
#: program still runs then that may have found the session before.
_RESTING: Final = 256
_GENERATIONS: Final = 0xFFFFFFFF

#: The largest burst, in octets: a bucket counts nano-octets in 64 bits.
BURST_MAX: Final = 18 * 10**9

#: Of SESSION: generation and blocks.
_SLOT: Final = struct.Struct("=II")
#: Of SEQ: in and acked.
_ACKNOWLEDGED: Final = struct.Struct("=II")
#: The generation of a slot that nobody has.
_FREE: Final = bytes(4)
_NO_STATS: Final = bytes(STATS.size)


def check_limit(rate: int, burst: int) -> None:
    """Raises :class:`BpfError` if a bucket cannot have them: see struct pipex_bucket."""
    if not 0 < rate < 1 << 63 or not 0 < burst <= BURST_MAX:
        raise BpfError(f"hold a rate of {rate} with a burst of {burst} octets", errno.EINVAL)


def default_pins(control: str) -> Path:
    """Where the daemon with this control socket has its pins, so that no two fight over them."""
    path = os.path.realpath(control)
    if path == os.path.realpath(SOCKET):
        return PINS
    # A name of bpffs has no dots, and no more than 255 octets.  The path as far as it goes, for who looks on.
    readable = re.sub(r"[^0-9A-Za-z]+", "_", path.removesuffix(".sock"))[-100:].strip("_")
    return PINS.with_name(f"{PINS.name}-{readable}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}")


class PipexMaps:
    """The maps, by name, and the slots."""

    def __init__(self, capacity: int, pins: Path | None = None) -> None:
        """Load the programs for *capacity* sessions.

        With *pins*, all is pinned there, in the place of what was; where it cannot be, that is logged.  Raises
        :class:`BpfError`.
        """
        self._load(capacity, {})
        if pins is not None:
            try:
                if usable(pins):
                    remove(pins)
                publish(pins, self._object.maps, self.programs)
            except (BpfError, OSError) as error:
                log.warning(
                    "pipex: %s; so when npppyd is killed, no later one can go on with its sessions, and only root can "
                    "end them",
                    error,
                )

    @classmethod
    def take_over(cls, capacity: int, pins: Path) -> PipexMaps | None:
        """Load the programs likewise, with the entries that are pinned, and put its programs where theirs are attached.

        No packet is lost, and no count.  None if nothing is pinned.  Raises :class:`BpfError` or :class:`OSError` if
        what is there cannot be taken over, or not wholly: then all of it is to be removed.
        """
        if not usable(pins) or not editions(pins):
            return None
        maps = cls.__new__(cls)
        with Legacy(pins) as legacy:
            maps._load(capacity, legacy.shared(_sizes(capacity)))
            try:
                legacy.copy(maps._object.maps)
                publish(pins, maps._object.maps, maps.programs)
                legacy.replace(maps.programs)
                legacy.copy_keys(maps._object.maps)
                legacy.move_counters(maps._object.maps)
                legacy.remove()
                maps._occupy()
            except (BpfError, OSError):
                maps.close()
                raise
        return maps

    def _load(self, capacity: int, shared: Mapping[str, Map]) -> None:
        """Load the object, with maps of *shared* for its own."""
        self.capacity = capacity
        self._slots = capacity + _RESTING
        sizes = {name: entries for name, entries in _sizes(capacity).items() if name not in shared}
        self._object = Object(OBJECT, sizes=sizes, reuse=shared)
        maps = self._object.maps
        try:
            self._stats = maps["stats"].mapped()
            self._seqs = maps["seqs"].mapped()
        except BpfError:
            self._object.close()
            raise
        self.programs: dict[str, Program] = {name: self._object.programs[name] for name in _PROGRAMS}
        self.sessions = maps["sessions"]
        self.hosts4 = maps["hosts4"]
        self.nets4 = maps["nets4"]
        self.nets6 = maps["nets6"]
        self.slots = maps["slots"]
        self.buckets = maps["buckets"]
        self.mppe = maps["mppe"]
        self.counts = maps["counts"]
        self.config = maps["config"]
        self.devs = maps["devs"]
        self.nics = maps["nics"]
        self.events = maps["events"]
        self._freed = Fifo("I")
        # How many were taken from there.
        self._reused = 0
        #: Slots from here on were never used.
        self._fresh = 0
        self._generation = 0
        # By slot, as far as there ever was one.
        self._generations = array("I")

    def close(self) -> None:
        """Close the maps and the programs.  What is attached goes on, with the entries that are there."""
        # No slot rests any more.
        self._reused += len(self._freed)
        self._stats.close()
        self._seqs.close()
        self._object.close()

    # Slots.

    def take(self) -> tuple[int, int]:
        """A slot and its new generation; the slot is -1 where there is none left."""
        if self.used >= self.capacity:
            return -1, 0
        if self._fresh < self._slots:
            slot = self._fresh
            self._fresh += 1
        else:
            slot = self._freed.pop()
            self._reused += 1
        # One number for all: so no two sessions have the same within four thousand million.
        self._generation = self._generation % _GENERATIONS + 1
        if slot == len(self._generations):
            self._generations.append(self._generation)
        else:
            self._generations[slot] = self._generation
        return slot, self._generation

    def generation(self, slot: int) -> int:
        """That of the session in a slot."""
        return self._generations[slot]

    def fill(self, slot: int, session: bytes, now: int) -> None:
        """Describe a session, before anything leads to it, and begin its counters at 0; *now* in nanoseconds."""
        self._stats[slot * STATS.size : (slot + 1) * STATS.size] = _NO_STATS
        TIMES.pack_into(self._stats, slot * STATS.size + STATS.offsets["active_ns"], now, now)
        self.slots.put(U32.pack(slot), session)

    def limit(self, slot: int, way: int, rate: int, burst: int) -> None:
        """Give the bucket of a way, 0 up and 1 down, its rate in octets a second and its burst in octets, full.

        Raises :class:`BpfError` if they cannot be.
        """
        check_limit(rate, burst)
        self.buckets.put(U32.pack(2 * slot + way), BUCKET.pack(rate, burst, 0, 0, 0, 0), LOCKED)

    def bucket(self, slot: int, way: int) -> tuple[int, ...]:
        """The members of struct pipex_bucket, of the same moment."""
        record = self.buckets.get(U32.pack(2 * slot + way), LOCKED)
        assert record is not None, "arrays have all their elements"
        return BUCKET.unpack(record)

    def free(self, slot: int) -> int:
        """Give a slot back that nothing leads to any more; returns its number for :meth:`rests`."""
        # All but the generation stays: a program that runs yet may have found the session, and reads it to the end.
        self.slots.put(U32.pack(slot), _FREE + self.session(slot)[len(_FREE) :])
        self._freed.append(slot)
        return self._reused + len(self._freed)

    def rests(self, number: int) -> bool:
        """Whether a slot has not been taken again since :meth:`free`."""
        return self._reused < number

    def session(self, slot: int) -> bytes:
        """What :meth:`fill` put there."""
        found = self.slots.get(U32.pack(slot))
        assert found is not None, "arrays have all their elements"
        return found

    def stats(self, slot: int) -> tuple[int, ...]:
        """The members of struct pipex_stats."""
        return STATS.unpack_from(self._stats, slot * STATS.size)

    def sequence(self, slot: int) -> tuple[int, ...]:
        """The members of struct pipex_seq."""
        return SEQ.unpack_from(self._seqs, slot * SEQ.size)

    def set_sequence(self, slot: int, numbers: Iterable[int]) -> None:
        """Begin with these, before anything leads to the session."""
        SEQ.pack_into(self._seqs, slot * SEQ.size, *numbers)

    def acknowledged(self, slot: int) -> tuple[int, int]:
        """Of PPTP, one more than the highest number of the peer, and than the last that was acknowledged."""
        expected, acked = _ACKNOWLEDGED.unpack_from(self._seqs, slot * SEQ.size + SEQ.offsets["in"])
        return expected, acked

    def expect(self, slot: int, number: int) -> None:
        """Of PPTP, this number comes next from the peer."""
        U32.pack_into(self._seqs, slot * SEQ.size + SEQ.offsets["in"], number)

    @property
    def used(self) -> int:
        """Slots that sessions have."""
        return self._fresh - len(self._freed)

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

    def entries(self, name: str) -> int:
        """How many entries a map has room for."""
        size: int = self._object.maps[name].max_entries
        return size

    def _occupy(self) -> None:
        """Find the slots that are in use, of maps that were taken over."""
        used = {}
        for key, value in self.slots.items():
            generation, blocks = _SLOT.unpack_from(value)
            if not generation:
                continue
            used[U32.unpack(key)[0]] = generation
            if blocks & MIRROR:
                # Nobody captures any more.
                self.slots.put(key, value[:4] + U32.pack(blocks & ~MIRROR) + value[8:])
        self._fresh = max(used, default=-1) + 1
        self._freed = Fifo("I", (slot for slot in range(self._fresh) if slot not in used))
        self._generation = max(used.values(), default=0)
        self._generations.extend(used.get(slot, 0) for slot in range(self._fresh))


def _sizes(capacity: int) -> dict[str, int]:
    """The entries of maps, by name, where the object does not say it."""
    slots = capacity + _RESTING
    return {name: capacity * each + slots * slot for name, (each, slot) in _MAPS.items()}
