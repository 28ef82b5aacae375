"""Taking over, under traffic, what an earlier npppyd has left: its sessions, counters and attached programs.

It may have had another layout, or maps for another number of sessions.  In this order, so that a process killed
anywhere leaves what the next one can go on from, and no packet is lost:

1. Load the programs.  They share the maps that are as they were; of the others they have new ones, and the entries are
   copied.  Nobody changes those meanwhile: the process that did is dead, and programs only count.  Where they give
   sequence numbers, the new ones begin further on.
2. Publish the new edition (see pins.py).  Killed before, it has changed nothing, and the next process begins anew from
   the old edition; killed later, the next one takes over the new one.
3. Put the new programs in the place of those of any older edition, each by itself, at once.  Meanwhile old and new ones
   run side by side, with the same sessions, each counting in maps of their own.
4. When no old program runs any more, copy the keys of MPPE, where the maps are not the same: of two that encrypt by one
   key, the peer would take the second one's packets for replayed.  Until then those sessions' packets are dropped.
   And move what was counted: each counter is moved at once, by a program, while the new programs count on.  What was
   moved is 0, so that this may be done again.
5. Remove the older editions.

A slot keeps its number and generation all the time.  A token bucket that was copied forgets what passed between 1
and 3.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Final

from .attach import attach_tc, replace_xdp
from .layout import CONFIG, MPPE_KEYS, SEQ, SESSION, STATS, U32, VERSION, Record
from .libbpf import XDP, BpfError, Map, Program, wait_for_programs
from .pins import editions, own_programs, remove_before

log = logging.getLogger("npppy.pipex")

#: The values of maps in older versions, where they were others.  Members of a name that we have too mean the same; what
#: is new begins as 0.
OLDER: Final[dict[int, dict[str, Record]]] = {
    1: {
        "slots": Record(
            "generation:I blocks:I ppp_id:I domain:I kind:B payload:B prefixlen4:B prefixlen6:B address4:4s "
            "address6:16s mtu:H mru:H magic:4s peer_magic:4s ifindex:I encap_len:H length_at:H encap:80s shared:H "
            "spare:34s"
        ),
        "stats": Record(
            "in_bytes:Q in_packets:Q in_errors:Q out_bytes:Q out_packets:Q out_errors:Q active_ns:Q heard_ns:Q "
            "echo_ns:Q looped:Q stack_ns:Q"
        ),
        "config": Record("version:I npx0:I npx1:I tun:I npx0_mac:6s npx1_mac:6s echo_interval_ns:I"),
    },
    2: {
        "slots": Record(
            "generation:I blocks:I address4:4s ifindex:I mtu:H mru:H shared:H encap_len:H length_at:H flags:H kind:B "
            "payload:B prefixlen4:B zero:B encap:96s ppp_id:I domain:I magic:4s peer_magic:4s mark:I next:8s "
            "outer_at:H seq_at:H spare:32s"
        ),
        "stats": Record(
            "in_bytes:Q in_packets:Q out_bytes:Q out_packets:Q active_ns:Q heard_ns:Q stack_ns:Q echo_ns:Q "
            "in_errors:Q out_errors:Q looped:Q spare1:Q spare2:Q spare3:Q spare4:Q spare5:Q"
        ),
        "config": Record("version:I npx0:I npx1:I tun:I npx0_mac:6s npx1_mac:6s echo_interval_ns:I spare:28s"),
    },
    # What 4 has more is where this one has zeros.
    3: {"config": CONFIG},
    VERSION: {},
}
_NOW: Final = {"slots": SESSION, "stats": STATS, "config": CONFIG}
#: Maps that versions before this one have not.
_SINCE: Final = {"seqs": 3, "mppe": 4}
#: Maps whose entries are npppyd's own: they change only when it says so.
_TABLES: Final = ("sessions", "hosts4", "nets4", "nets6", "slots", "buckets", "config", "devs", "nics")
#: Maps that programs of two editions may share.  The ring buffer is not: nobody may ever have read the old one.
_SHARED: Final = (*_TABLES, "counts", "stats", "seqs", "mppe")
#: So many sequence numbers are left out where old and new programs have maps of their own: those that old ones may use
#: until they are replaced.  To the peer that many messages have been lost, and none comes twice or late.
_LEAP: Final = 4096
#: Those of every version.
_PROGRAMS: Final = frozenset(("pipex_access", "pipex_core", "pipex_nic", "pipex_miss"))
_XDP_PASS: Final = 2


class Legacy:
    """All editions that are pinned, of which the newest can be taken over."""

    def __init__(self, pins: Path) -> None:
        """Raises :class:`BpfError` if it cannot."""
        self._pins = pins
        self._editions = editions(pins)
        self._programs = own_programs(pins)
        self._maps: dict[str, Map] = {}
        newest = self._editions[-1]
        try:
            for edition in self._editions:
                if edition.version not in OLDER:
                    raise BpfError(f"take {edition.path} over", errno.EPROTONOSUPPORT, "its layout is not known")
            self._records = OLDER[newest.version]
            for name in _SHARED:
                if newest.version >= _SINCE.get(name, 0):
                    self._maps[name] = newest.map(name)
            missing = _PROGRAMS - {program.name for program in self._programs.values()}
            if missing:
                raise BpfError(f"take {newest.path} over", errno.ENOENT, ", ".join(sorted(missing)))
        except BpfError:
            self.close()
            raise

    def close(self) -> None:
        """Closing again does nothing."""
        for item in (*self._maps.values(), *self._programs.values()):
            item.close()

    def __enter__(self) -> Legacy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def shared(self, sizes: Mapping[str, int]) -> dict[str, Map]:
        """The maps that programs of ours can use as they are, if they are to have as many entries as *sizes* says."""
        return {
            name: item
            for name, item in self._maps.items()
            if name not in self._records and sizes.get(name, item.max_entries) == item.max_entries
        }

    def copy(self, maps: Mapping[str, Map]) -> None:
        """Copy the entries of the other maps.  Raises :class:`BpfError`, as where there is not room for all."""
        for name in _TABLES:
            old, new = self._maps[name], maps[name]
            if old.id == new.id:
                continue
            record = self._records.get(name)
            nothing = bytes(old.octets)
            entries = [(key, value) for key, value in old.items() if value != nothing]
            if record is not None:
                entries = [(key, _renewed(record, _NOW[name], value)) for key, value in entries]
            for key, value in entries:
                new.put(key, value)
        # Last, since the old programs go on counting.
        numbers = self._maps.get("seqs")
        if numbers is not None and numbers.id != maps["seqs"].id:
            known = dict(numbers.items())
            for key in _used(maps):
                out, *others = SEQ.unpack(known[key])
                maps["seqs"].put(key, SEQ.pack(out + _LEAP & 0xFFFFFFFF, *others))

    def replace(self, programs: Mapping[str, Program]) -> None:
        """Put *programs* in the place of ours wherever one is attached, and wait until none of the old ones runs.

        Raises :class:`BpfError`.
        """
        for ifindex, name in socket.if_nameindex():
            try:
                replaced = replace_xdp(name, ifindex, programs, self._programs)
                if replaced == "pipex_core":
                    attach_tc(name, ifindex, programs["pipex_miss"])
            except BpfError as error:
                # It may have gone meanwhile.
                if error.code != errno.ENODEV:
                    raise
        wait_for_programs()

    def copy_keys(self, maps: Mapping[str, Map]) -> None:
        """Copy the keys that programs of any older edition have used, of the sessions there are.

        Raises :class:`BpfError`.
        """
        generations = {key: value[: U32.size] for key, value in maps["slots"].items()}
        new = maps["mppe"]
        # The newest first: its programs have used them last.
        for edition in reversed(self._editions):
            if edition.version < _SINCE["mppe"]:
                continue
            try:
                old = edition.map("mppe")
            except BpfError as error:
                if error.code != errno.ENOENT:
                    raise
                # As below.
                continue
            with closing(old):
                for key, value in old.items() if old.id != new.id else ():
                    slot = U32.pack(U32.unpack(key)[0] // 2)
                    at = MPPE_KEYS.offsets["generation"]
                    if value[at : at + U32.size] == generations.get(slot) and new.get(key) is None:
                        new.put(key, value)

    def move_counters(self, maps: Mapping[str, Map]) -> None:
        """Add what programs of any older edition have counted.  Raises :class:`BpfError`."""
        slots = _used(maps)
        for edition in self._editions:
            try:
                old = edition.map("stats")
            except BpfError as error:
                if error.code != errno.ENOENT:
                    raise
                # Somebody was about to remove it, and had moved them.
                continue
            try:
                if old.id != maps["stats"].id:
                    _move(old, (_NOW | OLDER[edition.version])["stats"], maps["stats"], slots)
            finally:
                old.close()

    def remove(self) -> None:
        """Remove the pins of the older editions.  Raises :class:`OSError`."""
        remove_before(self._pins)


def _used(maps: Mapping[str, Map]) -> list[bytes]:
    """The slots that sessions have."""
    return [key for key, value in maps["slots"].items() if any(value[: U32.size])]


def _renewed(old: Record, new: Record, value: bytes) -> bytes:
    """An entry in our layout."""
    known = dict(zip(old.offsets, old.unpack(value), strict=True))
    if "version" in known:
        known["version"] = VERSION
    blank = zip(new.offsets, new.unpack(bytes(new.size)), strict=True)
    return new.pack(*(known.get(name, nothing) for name, nothing in blank))


def _move(old: Map, record: Record, new: Map, slots: Iterable[bytes]) -> None:
    """Move the counters of slots from one map to another, in which programs count meanwhile."""
    mover = Program.load(XDP, "pipex_move", _mover(old, record, new))
    try:
        for slot in slots:
            # As long as an Ethernet header, since the kernel wants that.
            mover.run(slot.ljust(14, b"\0"))
    finally:
        mover.close()


def _mover(old: Map, record: Record, new: Map) -> bytes:
    """The instructions of a program that does so for the slot that a frame begins with.

    Counters are added, of times the later one stays.
    """
    code = _finder(old, new)
    for name, to in STATS.offsets.items():
        at = record.offsets.get(name)
        if at is None:
            continue
        if name.endswith("_ns"):
            code += [
                _instruction(0x79, 1, 7, at),
                _instruction(0x79, 2, 8, to),
                _instruction(0x3D, 2, 1, 1),  # unless later
                _instruction(0x7B, 8, 1, to),
            ]
        else:
            code += [
                _instruction(0xB7, 1),
                _instruction(0xDB, 7, 1, at, 0xE1),  # exchange
                _instruction(0xDB, 8, 1, to),  # add
            ]
    return b"".join((*code, *_LEAVE))


def _finder(old: Map, new: Map) -> list[bytes]:
    """The instructions that have r7 and r8 point to the slot's elements."""
    code = [
        _instruction(0x61, 2, 1),  # r2 = data
        _instruction(0x61, 3, 1, 4),  # r3 = its end
        _instruction(0xBF, 4, 2),
        _instruction(0x07, 4, value=4),
        _instruction(0x3D, 3, 4, 2),  # unless r3 >= r2 + 4
        *_LEAVE,
        _instruction(0x61, 1, 2),
        _instruction(0x63, 10, 1, -4),  # the slot
    ]
    for found, item in ((7, old), (8, new)):
        code += [
            _instruction(0x18, 1, 1, value=item.fd),
            _instruction(0),
            _instruction(0xBF, 2, 10),
            _instruction(0x07, 2, value=-4),
            _instruction(0x85, value=1),  # bpf_map_lookup_elem
            _instruction(0x55, 0, offset=2),  # unless there is one
            *_LEAVE,
            _instruction(0xBF, found, 0),
        ]
    return code


def _instruction(operation: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """struct bpf_insn"""
    return struct.pack("<BBhi", operation, source << 4 | target, offset, value)


_LEAVE: Final = (_instruction(0xB7, 0, value=_XDP_PASS), _instruction(0x95))
