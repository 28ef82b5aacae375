"""The file of the spool: opened, put aside when it is not ours to read, and brought to the disk by a thread."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

log = logging.getLogger("npppy.radius")

_APPLICATION: Final = int.from_bytes(b"nppy", "big")
_VERSION: Final = 1
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
-- One row a start of the daemon; alive is its last sign of life.
CREATE TABLE boot (n INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE, alive REAL NOT NULL);
-- Sessions that have had a Start and no Stop.
CREATE TABLE open (
    key INTEGER PRIMARY KEY, realm TEXT NOT NULL, since REAL NOT NULL, interval INTEGER NOT NULL, facts BLOB NOT NULL
);
-- What they had used; apart from them, since it is written over and over.
CREATE TABLE used (
    key INTEGER PRIMARY KEY, at REAL NOT NULL, seconds REAL NOT NULL, flowing INTEGER NOT NULL,
    counters BLOB NOT NULL
);
CREATE TABLE queue (
    seq INTEGER PRIMARY KEY, realm TEXT NOT NULL, key INTEGER NOT NULL, kind INTEGER NOT NULL,
    event INTEGER NOT NULL, tries INTEGER NOT NULL, due REAL NOT NULL, attributes BLOB NOT NULL
);
CREATE INDEX queue_session ON queue (realm, key);
CREATE INDEX queue_due ON queue (due) WHERE due > 0;
CREATE INDEX queue_barrier ON queue (seq) WHERE kind >= 7;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
COMMIT;
"""

#: Seconds until a record is safe from a crash of the machine, and until the log is copied into the file.
SYNC: Final = 1.0
CHECKPOINT: Final = 30.0
#: Octets of the log from which it is copied at once, and the loop made to wait while the last of it is.
TRUNCATE: Final = 64 << 20
#: Seconds that the loop waits at most for the thread.
_BUSY: Final = 2.0
#: Octets of the largest file that is looked through for damage at a start; that takes 0.2 s.
_CHECKED: Final = 64 << 20


class UnknownError(Exception):
    """A file that we did not write, or that is damaged."""


class HeldError(Exception):
    """Another daemon has the file, and would be robbed of its sessions; the message names it."""


def hold(path: Path) -> int:
    """Keep other daemons away from a file for as long as the returned descriptor is open; -1: that cannot be done.

    Raises :class:`HeldError`.
    """
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        # Not the file itself: whoever closes that once loses SQLite's locks on it.
        held = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        # What is wrong there is wrong with the file, too, and said there.
        return -1
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise HeldError(f"{path}: held by another daemon") from None
    return held


def connect(path: Path) -> tuple[sqlite3.Connection, Counter[str], int]:
    """Open the file, or begin one; returns how many records it has of each realm, and the last one of all, too.

    Raises :class:`UnknownError`, :class:`sqlite3.Error`, :class:`OSError`.
    """
    path.parent.mkdir(mode=0o755, exist_ok=True)
    try:
        # What SQLite makes beside the file has the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        os.chmod(path, 0o600)
    db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None)
    try:
        ((application,),) = db.execute("PRAGMA application_id")
        ((version,),) = db.execute("PRAGMA user_version")
        ((tables,),) = db.execute("SELECT count(*) FROM sqlite_master")
        new = not (application or version or tables)
        if not new and (application, version) != (_APPLICATION, _VERSION):
            raise UnknownError(f"application {application:#x}, version {version}")
        if not new and path.stat().st_size <= _CHECKED:
            ((check,),) = db.execute("PRAGMA quick_check(1)")
            if check != "ok":
                raise UnknownError(str(check).replace("\n", " "))
        # A record has a few hundred octets, and each page that it touches is written.
        db.execute("PRAGMA page_size = 2048")
        db.execute("PRAGMA journal_mode = WAL")
        # No sync but one when the log begins anew: without that, a crash of the machine could mix an old one with it.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA cache_size = -1024")
        if new:
            db.executescript(_SCHEMA)
        depth = Counter(dict(db.execute("SELECT realm, count(*) FROM queue GROUP BY realm").fetchall()))
        ((last,),) = db.execute("SELECT max(seq) FROM queue").fetchall()
    except sqlite3.Error as error:
        db.close()
        if damaged(error):
            raise UnknownError(str(error)) from error
        raise
    except BaseException:
        db.close()
        raise
    return db, depth, last or 0


def put_aside(path: Path, why: str) -> None:
    """Keep a file that is not ours to read under another name.  Raises :class:`OSError`."""
    aside = path.with_name(path.name + ".unknown")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.unknown.{count}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    log.warning("spool file=%s Unknown content or version, put aside as %s: %s", path, aside, why)


def damaged(error: sqlite3.Error) -> bool:
    """Is it the file that is wrong?"""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Syncer:
    """The thread that brings to the disk what has been written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: To be held while the file is put aside.
        self.lock = threading.Lock()
        self._stop = threading.Event()
        self._written = threading.Event()
        self._urgent = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def wrote(self, urgent: bool) -> None:
        """Something has been written; what is not *urgent* has time until the log is copied."""
        self._urgent |= urgent
        self._written.set()

    def close(self) -> None:
        self._stop.set()
        self._written.set()
        self._thread.join()

    def _run(self) -> None:
        trouble = False
        copied = time.monotonic()
        while self._written.wait() and not self._stop.wait(SYNC):
            self._written.clear()
            late = time.monotonic() >= copied + CHECKPOINT
            if not (late or self._urgent):
                continue
            self._urgent = False
            try:
                with self.lock:
                    copied = time.monotonic() if _sync(self._path, late) else copied
                trouble = False
            except (OSError, sqlite3.Error) as error:
                if not trouble:
                    log.error("spool file=%s cannot be synced: %s", self._path, error)
                trouble = True


def _sync(path: Path, late: bool) -> bool:
    """Sync the log, or copy it into the file; returns whether it has been copied."""
    wal = f"{path}-wal"
    large = os.path.getsize(wal) > TRUNCATE
    if not (late or large):
        fd = os.open(wal, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
        return False
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=_BUSY, isolation_level=None, uri=True)
    try:
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        if large:
            # Writers who never pause keep the log from being begun anew, so they are made to, for a few milliseconds.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        db.close()
    return True
