"""The journal of live calls: what ends each of them, kept where a killed daemon's successor finds it.

A file of fixed-size records, mapped into memory, so that writing one is no system call.  What was stored before a
``kill -9`` is in the kernel's hands and stays; a record is written before its flag, so it is there whole or not at all,
and a check sum keeps what a crash of the machine left of it from being sent.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import zlib
from array import array
from pathlib import Path
from typing import NamedTuple

from .config.model import Protocol

log = logging.getLogger("npppy.journal")

_MAGIC = b"npppyjnl"
_VERSION = 1
# Magic, version, octets of a record.
_HEADER = struct.Struct("<8sII48x")
# Kind, octets of the frame, interface, frame.  Before it stand a flag of one octet and a check sum of four.
_PAYLOAD = struct.Struct("<BBx16s40s")
_CHECK = struct.Struct("<I")
_RECORD_LEN = 64
_FREE = 0
_IN_USE = 0xA5
#: Octets that a frame, and the name of an interface, may have.
MAX_FRAME = 40
MAX_INTERFACE = 15
#: Records that a new file has room for; it doubles when they are used up.
_START = 1024

_KINDS = {Protocol.PPPOE: 1, Protocol.L2TP: 2, Protocol.PPTP: 3}


class JournalError(Exception):
    """The journal cannot be used; the message names the file."""


class Orphan(NamedTuple):
    """A call that an earlier process has left behind."""

    slot: int
    interface: str
    #: Sent on the interface, it ends the call.
    frame: bytes


class Journal:
    """The journal in *path*, or with None one that keeps nothing.

    Raises :class:`JournalError` if another daemon holds it, or if the file cannot be opened.
    """

    __slots__ = ("_capacity", "_fd", "_freed", "_fresh", "_full", "_map", "_orphans", "path")

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._fd = -1
        self._capacity = 0
        # Slots from _fresh on have never been used; freed ones are used again first, the last one first.
        self._fresh = 0
        self._freed = array("I")
        self._orphans: dict[int, list[Orphan]] = {}
        self._full = False
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                self.close()
                raise JournalError(f"{path}: {error.strerror}") from error
            except JournalError:
                self.close()
                raise

    def add(self, kind: Protocol, interface: str, frame: bytes) -> int:
        """Record a call: *frame*, at most 40 octets, sent on *interface* ends it.

        Returns what :meth:`remove` wants; -1 if the call could not be recorded, which is logged once.
        """
        name = os.fsencode(interface)
        if len(frame) > MAX_FRAME or len(name) > MAX_INTERFACE:
            raise ValueError(f"does not fit into a record: {interface!r}, {len(frame)} octets")
        if self._map is None:
            return -1
        if self._freed:
            slot = self._freed.pop()
        elif self._fresh < self._capacity or self._grow(self._map):
            slot = self._fresh
            self._fresh += 1
        else:
            return -1
        payload = _PAYLOAD.pack(_KINDS[kind], len(frame), name, frame)
        at = _place(slot)
        self._map[at + 1 : at + _RECORD_LEN] = _CHECK.pack(zlib.crc32(payload)) + payload
        self._map[at] = _IN_USE
        return slot

    def remove(self, slot: int) -> None:
        """The call has ended.  A slot that is not in use, -1 among them, is passed over."""
        if self._map is not None and 0 <= slot < self._fresh:
            at = _place(slot)
            if self._map[at] == _IN_USE:
                self._map[at] = _FREE
                self._freed.append(slot)

    def orphans(self, kind: Protocol) -> list[Orphan]:
        """The calls of a carrier that an earlier process left, once.  Remove each when it has been ended."""
        return self._orphans.pop(_KINDS[kind], [])

    def __len__(self) -> int:
        """Records in use, orphans included."""
        return self._fresh - len(self._freed)

    def __bool__(self) -> bool:
        """An empty journal is still one."""
        return True

    def close(self) -> None:
        """Let go of the file; what is in it stays."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(f"{path}: held by another daemon") from error
        os.fchmod(self._fd, 0o600)
        size = os.fstat(self._fd).st_size
        header = os.pread(self._fd, _HEADER.size, 0)
        if header.strip(b"\0") and header != _HEADER.pack(_MAGIC, _VERSION, _RECORD_LEN):
            self._put_aside(path)
            size = 0
        self._capacity = max(_START, (size - _HEADER.size) // _RECORD_LEN)
        size = _place(self._capacity)
        # Room on the disk is taken now: a store into a mapped page that has none would be the end of the process.
        os.posix_fallocate(self._fd, 0, size)
        self._map = mmap.mmap(self._fd, size)
        self._map[: _HEADER.size] = _HEADER.pack(_MAGIC, _VERSION, _RECORD_LEN)
        self._load(self._map)

    def _put_aside(self, path: Path) -> None:
        """Keep a copy of a file that is not ours to read, and begin anew in its place: the lock is on the file."""
        aside = path.with_name(path.name + ".unknown")
        with (
            os.fdopen(os.dup(self._fd), "rb") as old,
            open(aside, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as new,
        ):
            new.write(old.read())
        os.ftruncate(self._fd, 0)
        log.warning("journal file=%s Unknown content or version, put aside as %s", path, aside)

    def _load(self, records: mmap.mmap) -> None:
        """Find out what is in use, and free what makes no sense."""
        damaged = 0
        used = []
        for slot in range(self._capacity):
            at = _place(slot)
            if records[at] == _FREE:
                continue
            payload = records[at + 1 + _CHECK.size : at + _RECORD_LEN]
            kind, length, name, frame = _PAYLOAD.unpack(payload)
            (check,) = _CHECK.unpack_from(records, at + 1)
            if records[at] != _IN_USE or check != zlib.crc32(payload) or length > MAX_FRAME:
                records[at] = _FREE
                damaged += 1
                continue
            used.append(slot)
            self._orphans.setdefault(kind, []).append(
                Orphan(slot, os.fsdecode(name.rstrip(b"\0")), frame[:length])
            )
        self._fresh = used[-1] + 1 if used else 0
        # The lowest on top.
        self._freed.extend(sorted(set(range(self._fresh)).difference(used), reverse=True))
        if damaged:
            log.warning("journal file=%s Damaged records=%d", self.path, damaged)

    def _grow(self, records: mmap.mmap) -> bool:
        """Double the file; False if that cannot be had."""
        capacity = self._capacity * 2
        try:
            os.posix_fallocate(self._fd, 0, _place(capacity))
            records.resize(_place(capacity))
        except OSError as error:
            if not self._full:
                self._full = True
                log.warning("journal file=%s Cannot grow, new calls are not recorded: %s", self.path, error.strerror)
            return False
        self._capacity = capacity
        return True


def _place(slot: int) -> int:
    """Where a slot is in the file."""
    return _HEADER.size + slot * _RECORD_LEN
