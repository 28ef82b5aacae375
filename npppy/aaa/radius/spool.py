"""Accounting records on disk, in SQLite: they wait here until a server has answered.

Besides the queue there are the sessions that are open, with what they had used when that was last written down, so that
they get their Stop when the daemon has died.

What is to be written gathers during one turn of the event loop, and :meth:`Spool.flush` writes it as one transaction.
That puts it into the kernel's hands, where it outlives the process.  A thread brings it to the disk, where it outlives
the machine: it syncs the write-ahead log, and now and then copies that into the file.  What cannot be written stays in
memory, where all that read here find it, and is tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...pipex.base import Counters
from .spool_file import Syncer, UnknownError, connect, damaged, hold, put_aside

log = logging.getLogger("npppy.radius")

#: Seconds from one attempt to write to the next when the disk does not take it.
RETRY: Final = 1.0

#: Octets and packets in and out: of the whole session, and of what is not in the kernel.
_COUNTERS: Final = struct.Struct(">8Q")

#: Acct-Status-Type (RFC 2866 section 5.1).
START: Final = 1
STOP: Final = 2
INTERIM_UPDATE: Final = 3
ACCOUNTING_ON: Final = 7
ACCOUNTING_OFF: Final = 8

_COLUMNS: Final = "seq, realm, key, kind, event, tries, due, attributes"


class Record(NamedTuple):
    """A record that waits."""

    #: In the order in which they were made.
    seq: int
    realm: str
    #: The session; records with the same one are to be delivered in order.
    key: int
    #: Acct-Status-Type
    kind: int
    #: When it was made, in seconds since the Epoch.
    event: int
    #: How often a server that was there has not answered it.
    tries: int
    #: Seconds since the Epoch at which it is to be sent again; 0: it has never been sent in vain.
    due: float
    #: As in a packet: all but Acct-Delay-Time and the addresses of the NAS.
    attributes: bytes


class Open(NamedTuple):
    """A session that has had a Start and no Stop."""

    realm: str
    #: When it began, in seconds since the Epoch.
    since: float
    #: Seconds between interim records; 0: there are none.
    interval: int
    #: The attributes that all its records have in common.
    facts: bytes


class Used(NamedTuple):
    """What a session had used."""

    #: When that was, in seconds since the Epoch, and the seconds that it had lasted then.
    at: float
    seconds: float
    #: Whether its data path was open.
    flowing: bool
    #: Of the whole session, and what of it was not in the kernel's maps: of data paths closed, and by Python.
    counters: Counters
    closed: Counters


class Abandoned(NamedTuple):
    """An open session, as an earlier run of the daemon has left it."""

    key: int
    session: Open
    used: Used
    #: The last sign of life of its daemon, in seconds since the Epoch.
    alive: float
    #: It belongs to the run before this one.
    latest: bool

    @property
    def ppp_id(self) -> int:
        """Modulo 2^32."""
        return self.key & 0xFFFFFFFF


def session_key(boot: int, ppp_id: int) -> int:
    """A session of any run of the daemon, as an integer of SQLite: 64 bits with a sign."""
    key = (boot & 0xFFFFFFFF) << 32 | ppp_id & 0xFFFFFFFF
    return key - (1 << 64) if key >> 63 else key


class Spool:
    """The spool in *path*; with None, it is in memory only.  *wall* is the time in seconds since the Epoch.

    Raises :class:`.spool_file.HeldError` while another daemon has it.
    """

    def __init__(self, path: Path | None, wall: float) -> None:
        self.path = path
        #: Called after a file that was found damaged while we run has been put aside: it has taken all with it.
        self.renewed: Callable[[], object] | None = None
        #: Records that wait, by realm.
        self.depth: Counter[str] = Counter()
        #: The last record that was made.  Counted from the time, so that a file that can only be opened later has no
        #: record of the same number.
        self.last = int(wall * 1e6)
        #: The number of this run of the daemon.
        self.boot = 0
        #: Why it cannot be written; "": it can, as far as we know.
        self.trouble = ""
        self._again = 0.0
        self._db: sqlite3.Connection | None = None
        # What is not written yet; it overrides what is.
        self._added: dict[int, Record] = {}
        self._keys: dict[int, list[int]] = {}
        self._done: set[int] = set()
        self._woken: set[str] = set()
        self._opened: dict[int, Open | None] = {}
        self._used: dict[int, Used] = {}
        self._boots: list[tuple[int, float]] = []
        self._alive = 0.0
        self._syncer: Syncer | None = None
        self._held = -1
        if path is not None:
            self._held = hold(path)
            self._open(path)
            self._syncer = Syncer(path)

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        self._again = 0.0
        self.flush(0.0)
        if self._syncer is not None:
            self._syncer.close()
            self._syncer = None
        self._close()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _close(self) -> None:
        if self._db is not None:
            # What it cannot copy into the file, the next start finds in the log.
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    # Runs of the daemon.

    def new_boot(self, random: Callable[[int], bytes], wall: float) -> int:
        """Choose a number of 32 bits for this run of the daemon, which no earlier one has had."""
        taken = {boot for (boot,) in self._query("SELECT id FROM boot")}
        # The last one is for the keys of records that belong to no session, that in the middle for what is no key.
        taken |= {0, 1 << 31, 0xFFFFFFFF}
        boot = 0
        while boot in taken:
            boot = int.from_bytes(random(4), "big")
        self.boot = boot
        self._boots.append((boot, wall))
        return boot

    def alive(self, wall: float) -> None:
        """The daemon is there; the next start asks when it last was."""
        self._alive = wall

    def abandoned(self) -> Iterator[Abandoned]:
        """The sessions that earlier runs have left open.  They may be shut and flushed while one goes through them."""
        alive = dict(self._query("SELECT id, alive FROM boot ORDER BY n"))
        alive.pop(self.boot, None)
        latest = next(reversed(alive), 0)
        last = -(1 << 63)
        while rows := self._query(
            "SELECT key, realm, since, interval, facts, at, seconds, flowing, counters "
            "FROM open LEFT JOIN used USING (key) WHERE key > ? ORDER BY key LIMIT 256",
            (last,),
        ):
            last = rows[-1][0]
            for key, realm, since, interval, facts, at, seconds, flowing, packed in rows:
                boot = key >> 32 & 0xFFFFFFFF
                if boot == self.boot or key in self._opened:
                    continue
                used = Used(since, 0.0, True, Counters(), Counters())
                if packed is not None:
                    used = Used(at, seconds, bool(flowing), *_unpack(packed))
                seen = max(alive.get(boot, used.at), used.at)
                yield Abandoned(key, Open(realm, since, interval, facts), used, seen, boot == latest)

    # Sessions.

    def open(self, key: int, session: Open) -> None:
        """A session has begun, or what is known of it has changed."""
        self._opened[key] = session

    def session(self, key: int) -> Open | None:
        """What was said of a session that is open; None: nothing."""
        if key in self._opened:
            return self._opened[key]
        rows = self._query("SELECT realm, since, interval, facts FROM open WHERE key = ?", (key,))
        return Open(*rows[0]) if rows else None

    def use(self, key: int, used: Used) -> None:
        """What a session that is open has used."""
        self._used[key] = used

    def shut(self, key: int) -> None:
        """A session has ended."""
        self._opened[key] = None
        self._used.pop(key, None)

    # Records.

    def add(self, realm: str, key: int, kind: int, event: int, attributes: bytes) -> Record:
        """A new record, which is there until it is :meth:`done`; *key* 0: it belongs to no session."""
        self.last += 1
        record = Record(self.last, realm, key or -self.last, kind, event, 0, 0.0, attributes)
        self.put(record)
        self.depth[realm] += 1
        return record

    def put(self, record: Record) -> None:
        """Write a record as it is now."""
        self._drop(record.seq)
        self._added[record.seq] = record
        self._keys.setdefault(record.key, []).append(record.seq)

    def done(self, record: Record) -> None:
        """A record has been delivered, or is of no use any more.  To be called once."""
        self.depth[record.realm] -= 1
        self._drop(record.seq)
        self._done.add(record.seq)

    def _drop(self, seq: int) -> None:
        """Take back what was to be written of a record."""
        record = self._added.pop(seq, None)
        if record is not None:
            mine = self._keys[record.key]
            mine.remove(seq)
            if not mine:
                del self._keys[record.key]

    def wake(self, realms: Collection[str]) -> None:
        """Whatever is to be sent again in these realms is to be so at once."""
        self._woken.update(realms)
        for seq, record in self._added.items():
            if record.due and record.realm in realms:
                self._added[seq] = record._replace(due=1.0)

    def get(self, seq: int) -> Record | None:
        found = self._select("seq = ?", (seq,))
        return found[0] if found else self._added.get(seq)

    def first(self, realm: str, key: int) -> int:
        """The first record of a session that waits; 0: there is none."""
        rows = self._query("SELECT seq FROM queue WHERE realm = ? AND key = ? ORDER BY seq", (realm, key))
        written = next((seq for (seq,) in rows if not self._stale(seq)), 0)
        return min((*self._keys.get(key, ()), *((written,) if written else ())), default=0)

    def scan(self, realms: Collection[str], after: int, count: int) -> tuple[list[Record], int]:
        """Records of some realms that have never been sent in vain, among the next *count* of all or so.

        Returns how far that was, too.
        """
        rows = self._query(f"SELECT {_COLUMNS} FROM queue WHERE seq > ? ORDER BY seq LIMIT ?", (after, count))
        upto = rows[-1][0] if len(rows) == count else self.last
        found = [row for row in map(Record._make, rows) if not self._stale(row.seq)]
        if self._added:
            found += [record for seq, record in self._added.items() if after < seq <= upto]
            found.sort()
        return [record for record in found if not record.due and record.realm in realms], upto

    def resting(self, realms: Collection[str], wall: float, count: int) -> list[Record]:
        """Records of some realms that are to be sent again by now, about *count*; the longest overdue first."""
        marks = ", ".join("?" * len(realms))
        rows = self._query(
            f"SELECT {_COLUMNS} FROM queue INDEXED BY queue_due "
            f"WHERE due > 0 AND due <= ? AND realm IN ({marks}) ORDER BY due LIMIT ?",
            (wall, *realms, count + len(self._added) + len(self._done)),
        )
        found = [record for record in map(Record._make, rows) if not self._stale(record.seq)]
        return found + [record for record in self._added.values() if 0 < record.due <= wall and record.realm in realms]

    def count_before(self, realms: Collection[str], seq: int, tries: int) -> int:
        """Records of some realms, older than *seq*, that have been sent in vain fewer times than *tries*."""
        marks = ", ".join("?" * len(realms))
        where = f"realm IN ({marks}) AND seq < ?"
        # Indices alone tell most of it; what was sent in vain is little.
        ((count,),) = self._query(
            f"SELECT count(*) FROM queue INDEXED BY queue_session WHERE {where}", (*realms, seq)
        ) or [(0,)]
        late = self._query(
            f"SELECT seq, tries FROM queue INDEXED BY queue_due WHERE due > 0 AND {where}", (*realms, seq)
        )
        count -= sum(other_tries >= tries for other, other_tries in late if not self._stale(other))
        for other in self._added.keys() | self._done:
            count -= len(self._query(f"SELECT seq FROM queue WHERE {where} AND seq = ?", (*realms, seq, other)))
        return int(count) + sum(
            other < seq and record.tries < tries and record.realm in realms for other, record in self._added.items()
        )

    def barriers(self) -> list[Record]:
        """The Accounting-On and -Off that wait, the oldest first."""
        found = self._select("kind >= 7", ())
        return sorted(found + [record for record in self._added.values() if record.kind >= ACCOUNTING_ON])

    def of_session(self, realm: str, key: int) -> list[Record]:
        """All records of a session."""
        found = self._select("realm = ? AND key = ?", (realm, key))
        return found + [self._added[seq] for seq in self._keys.get(key, ())]

    def oldest(self) -> int:
        """When the oldest record was made, in seconds since the Epoch; 0: none waits."""
        rows = self._query("SELECT event FROM queue ORDER BY seq LIMIT 1")
        record = next(iter(self._added.values()), None)
        return rows[0][0] if rows else record.event if record is not None else 0

    def restore(self, record: Record) -> None:
        """Put a record back that the file has taken with it, if it had got there."""
        if record.seq not in self._added:
            self.put(record)
            self.depth[record.realm] += 1

    def _stale(self, seq: int) -> bool:
        """What is written of a record does not hold any more."""
        return seq in self._added or seq in self._done

    def _select(self, where: str, values: tuple[Any, ...]) -> list[Record]:
        rows = self._query(f"SELECT {_COLUMNS} FROM queue WHERE {where}", values)
        return [record for record in map(Record._make, rows) if not self._stale(record.seq)]

    def _query(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """All rows; none if the file cannot be read."""
        if self._db is None:
            return []
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            self._failed(error)
            return []

    # Writing.

    @property
    def dirty(self) -> bool:
        """Is there something to write?"""
        return bool(
            self._added
            or self._done
            or self._opened
            or self._used
            or self._woken
            or self._boots
            or (self._alive and self.boot)
        )

    def flush(self, now: float) -> bool:
        """Write all that is to be written; False: that failed, and it is kept."""
        if not self.dirty:
            return True
        if self.path is None or (self.trouble and now < self._again):
            return False
        self._again = now + RETRY
        if self._db is None:
            self._open(self.path)
        if self._db is None:
            return False
        try:
            self._write(self._db)
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            self._failed(error)
            return False
        urgent = bool(self._added or self._done or self._opened)
        for gathered in (self._added, self._keys, self._done, self._woken, self._opened, self._used, self._boots):
            gathered.clear()
        self._alive = 0.0
        if self._syncer is not None:
            self._syncer.wrote(urgent)
        if self.trouble:
            self.trouble = ""
            log.info("spool file=%s can be written again records=%d", self.path, self.depth.total())
        return True

    def _write(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        if self._boots:
            db.executemany("INSERT OR IGNORE INTO boot (id, alive) VALUES (?, ?)", self._boots)
        if self._alive:
            db.execute("UPDATE boot SET alive = ? WHERE id = ?", (self._alive, self.boot))
        if self._woken:
            marks = ", ".join("?" * len(self._woken))
            db.execute(
                f"UPDATE queue INDEXED BY queue_due SET due = 1 WHERE due > 0 AND due > 1 AND realm IN ({marks})",
                tuple(self._woken),
            )
        if self._added:
            db.executemany("INSERT OR REPLACE INTO queue VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._added.values())
        if self._opened:
            rows = [(key, *row) for key, row in self._opened.items() if row is not None]
            if rows:
                db.executemany("INSERT OR REPLACE INTO open VALUES (?, ?, ?, ?, ?)", rows)
            gone = [(key,) for key, row in self._opened.items() if row is None]
            if gone:
                db.executemany("DELETE FROM open WHERE key = ?", gone)
                db.executemany("DELETE FROM used WHERE key = ?", gone)
        if self._used:
            used = [(key, *row[:3], _pack(row.counters, row.closed)) for key, row in self._used.items()]
            db.executemany("INSERT OR REPLACE INTO used VALUES (?, ?, ?, ?, ?)", used)
        if self._done:
            db.executemany("DELETE FROM queue WHERE seq = ?", [(seq,) for seq in self._done])
        db.execute("COMMIT")

    def _failed(self, error: sqlite3.Error) -> None:
        """The file cannot be used as it is; one that is damaged is put aside."""
        if damaged(error) and self.path is not None:
            self._close()
            if self._put_aside(self.path, str(error)):
                self._open(self.path)
                if self.renewed is not None:
                    self.renewed()
                return
        self._in_trouble(error)

    def _in_trouble(self, error: Exception) -> None:
        if not self.trouble:
            log.error("spool file=%s cannot be used, records are kept in memory: %s", self.path, error)
        self.trouble = str(error) or type(error).__name__

    # The file.

    def _open(self, path: Path) -> None:
        try:
            try:
                self._db, depth, last = connect(path)
            except UnknownError as error:
                if not self._put_aside(path, str(error)):
                    return
                self._db, depth, last = connect(path)
        except (sqlite3.Error, OSError, UnknownError) as error:
            self._in_trouble(error)
            return
        self.last = max(self.last, last)
        self.depth = depth
        for record in self._added.values():
            self.depth[record.realm] += 1

    def _put_aside(self, path: Path, why: str) -> bool:
        try:
            with self._syncer.lock if self._syncer is not None else contextlib.nullcontext():
                put_aside(path, why)
        except OSError as error:
            self._in_trouble(error)
            return False
        return True


def _pack(*sets: Counters) -> bytes:
    return _COUNTERS.pack(*_numbers(sets))


def _numbers(sets: Iterable[Counters]) -> Iterable[int]:
    for counters in sets:
        yield from (counters.in_bytes, counters.in_packets, counters.out_bytes, counters.out_packets)


def _unpack(packed: bytes) -> tuple[Counters, Counters]:
    numbers = _COUNTERS.unpack(packed)
    whole, closed = numbers[:4], numbers[4:]
    return (
        Counters(in_bytes=whole[0], in_packets=whole[1], out_bytes=whole[2], out_packets=whole[3]),
        Counters(in_bytes=closed[0], in_packets=closed[1], out_bytes=closed[2], out_packets=closed[3]),
    )
