"""The spool: what it holds is there again after anything."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from npppy.aaa.radius import spool_file as module
from npppy.aaa.radius.spool import (
    ACCOUNTING_ON,
    INTERIM_UPDATE,
    START,
    STOP,
    Abandoned,
    Open,
    Record,
    Spool,
    Used,
    session_key,
)
from npppy.aaa.radius.spool_file import HeldError
from npppy.pipex.base import Counters

WALL = 1_700_000_000.0


class Book:
    """Opens one spool after the other in the same place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open: list[Spool] = []

    def __call__(self, wall: float = WALL) -> Spool:
        spool = Spool(self.path, wall)
        self.open.append(spool)
        return spool


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    book = Book(tmp_path / "npppyd.spool")
    yield book
    for spool in book.open:
        spool.close()


def waiting(spool: Spool, *realms: str) -> list[Record]:
    found, _ = spool.scan(realms or ("isp",), 0, 10_000)
    return found


def test_a_record_is_there_until_it_is_done(book: Book) -> None:
    spool = book()
    one = spool.add("isp", 7, START, 100, b"one")
    two = spool.add("isp", 7, STOP, 200, b"two")
    assert spool.depth == {"isp": 2}
    assert spool.flush(0.0)
    assert waiting(spool) == [one, two]
    assert spool.first("isp", 7) == one.seq
    spool.done(one)
    # Before it is written, too.
    assert waiting(spool) == [two]
    assert spool.first("isp", 7) == two.seq
    spool.flush(0.0)
    spool.close()
    again = book()
    assert waiting(again) == [two]
    assert again.depth == {"isp": 1}
    assert again.add("isp", 8, START, 300, b"three").seq > two.seq


def test_what_was_not_flushed_is_written_at_the_close(book: Book) -> None:
    spool = book()
    record = spool.add("isp", 7, START, 100, b"one")
    spool.close()
    assert waiting(book()) == [record]


def test_the_file_is_ours_alone(book: Book) -> None:
    old = os.umask(0)
    try:
        spool = book()
        spool.add("isp", 7, START, 100, b"one")
        spool.flush(0.0)
    finally:
        os.umask(old)
    for suffix in ("", "-wal", "-shm"):
        assert stat.S_IMODE(os.stat(f"{book.path}{suffix}").st_mode) == 0o600
    spool.close()
    os.chmod(book.path, 0o644)
    book()
    assert stat.S_IMODE(os.stat(book.path).st_mode) == 0o600


def test_records_that_were_sent_in_vain_come_when_they_are_due(book: Book) -> None:
    spool = book()
    one = spool.add("isp", 7, START, 100, b"one")
    two = spool.add("isp", 8, START, 100, b"two")
    spool.flush(0.0)
    late = one._replace(tries=1, due=WALL + 10)
    spool.put(late)
    for _ in range(2):
        assert waiting(spool) == [two]
        assert spool.resting(("isp",), WALL + 9, 10) == []
        assert spool.resting(("isp",), WALL + 10, 10) == [late]
        assert spool.resting(("other",), WALL + 10, 10) == []
        assert spool.first("isp", 7) == one.seq
        spool.flush(0.0)
    spool.wake(("isp",))
    spool.flush(0.0)
    assert spool.resting(("isp",), WALL, 10) == [late._replace(due=1.0)]
    assert spool.depth == {"isp": 2}


def test_records_are_counted_up_to_a_barrier(book: Book) -> None:
    spool = book()
    one = spool.add("isp", 7, START, 100, b"one")
    spool.add("other", 9, START, 100, b"other")
    on = spool.add("isp", 0, ACCOUNTING_ON, 100, b"on")
    spool.add("isp", 8, START, 100, b"two")
    for _ in range(2):
        assert spool.barriers() == [on]
        assert spool.count_before(("isp",), on.seq, 5) == 1
        assert spool.count_before(("isp", "other"), on.seq, 5) == 2
        spool.flush(0.0)
    spool.put(one._replace(tries=5, due=WALL))
    assert spool.count_before(("isp",), on.seq, 5) == 0
    spool.flush(0.0)
    assert spool.count_before(("isp",), on.seq, 5) == 0


def test_a_scan_goes_on_from_where_it_was(book: Book) -> None:
    spool = book()
    records = [spool.add("isp" if n % 2 else "other", n, START, n, b"x") for n in range(1, 41)]
    spool.flush(0.0)
    seen, at = [], 0
    while at < spool.last:
        found, at = spool.scan(("isp",), at, 7)
        seen += found
    assert seen == [record for record in records if record.realm == "isp"]


def opened(facts: bytes = b"facts", interval: int = 0) -> Open:
    return Open("isp", WALL, interval, facts)


def test_open_sessions_are_found_by_the_next_run(book: Book) -> None:
    spool = book()
    boot = spool.new_boot(lambda count: b"\xfe\xdc\xba\x98", WALL)
    assert boot == 0xFEDCBA98
    used = Used(
        WALL + 60,
        60,
        False,
        Counters(in_bytes=1 << 40, in_packets=5, out_bytes=7, out_packets=3),
        Counters(in_bytes=1, in_packets=2, out_bytes=3, out_packets=4),
    )
    for ppp_id in (1, 2, 3):
        spool.open(session_key(boot, ppp_id), opened())
    spool.flush(0.0)
    spool.use(session_key(boot, 1), used)
    spool.shut(session_key(boot, 3))
    spool.open(session_key(boot, 2), opened(b"new facts", 300))
    assert spool.session(session_key(boot, 2)) == opened(b"new facts", 300)
    assert list(spool.abandoned()) == []
    spool.alive(WALL + 70)
    spool.flush(0.0)
    assert spool.session(session_key(boot, 1)) == opened()
    assert spool.session(session_key(boot, 3)) is None
    spool.close()

    again = book()
    answers = iter((b"\xfe\xdc\xba\x98", bytes(4), b"\xff\xff\xff\xff", b"\0\0\0\1"))
    assert again.new_boot(lambda count: next(answers), WALL + 100) == 1
    one, two = again.abandoned()
    assert one == Abandoned(session_key(boot, 1), opened(), used, WALL + 70, True)
    assert (one.ppp_id, two.ppp_id) == (1, 2)
    assert two == Abandoned(
        session_key(boot, 2), opened(b"new facts", 300), Used(WALL, 0.0, True, Counters(), Counters()), WALL + 70, True
    )
    again.shut(one.key)
    again.flush(0.0)
    again.close()

    third = book()
    third.new_boot(lambda count: b"\0\0\0\2", WALL + 200)
    (left,) = third.abandoned()
    # That of a run before the last, whose counters in the kernel are not there any more.
    assert (left.ppp_id, left.latest) == (2, False)


@pytest.mark.parametrize("boot", [b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\x80\0\0\1"])
def test_a_session_may_be_shut_while_one_goes_through_them(book: Book, boot: bytes) -> None:
    spool = book()
    number = spool.new_boot(lambda count: boot, WALL)
    for ppp_id in range(1000):
        spool.open(session_key(number, ppp_id), opened())
    spool.close()
    again = book()
    again.new_boot(lambda count: b"\0\0\0\2", WALL)
    ended = []
    for left in again.abandoned():
        again.shut(left.key)
        again.flush(0.0)
        ended.append(left.ppp_id)
    assert ended == list(range(1000))
    assert list(again.abandoned()) == []


def test_what_is_not_ours_is_put_aside(book: Book, caplog: pytest.LogCaptureFixture) -> None:
    book.path.write_bytes(b"bills of another program " * 200)
    spool = book()
    aside = book.path.with_name("npppyd.spool.unknown")
    assert aside.read_bytes().startswith(b"bills of another")
    assert "put aside" in caplog.text
    record = spool.add("isp", 7, START, 100, b"one")
    assert spool.flush(0.0)
    spool.close()
    assert waiting(book()) == [record]


@pytest.mark.parametrize("pragma", ["user_version = 77", "application_id = 5"])
def test_another_version_is_put_aside_with_its_log_and_nothing_overwritten(book: Book, pragma: str) -> None:
    for _ in range(2):
        spool = book()
        spool.add("isp", 7, START, 100, b"one")
        spool.close()
        with sqlite3.connect(book.path) as db:
            db.execute(f"PRAGMA {pragma}")
        db.close()
    assert waiting(book()) == []
    for name in ("npppyd.spool.unknown", "npppyd.spool.unknown.2"):
        with sqlite3.connect(book.path.with_name(name)) as db:
            assert db.execute("SELECT attributes FROM queue").fetchall() == [(b"one",)]
        db.close()


def test_a_damaged_file_is_put_aside(book: Book) -> None:
    spool = book()
    for n in range(200):
        spool.add("isp", n, START, n, bytes(300))
    spool.close()
    with open(book.path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for page in range(2, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    spool = book()
    assert spool.depth.total() == 0
    assert book.path.with_name("npppyd.spool.unknown").stat().st_size == size
    spool.add("isp", 7, START, 100, b"one")
    assert spool.flush(0.0)


def test_damage_that_shows_later_costs_nothing_that_is_known(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    # A large file is not looked through.
    monkeypatch.setattr(module, "_CHECKED", 0)
    spool = book()
    for n in range(200):
        spool.add("isp", n, START, n, bytes(300))
    spool.close()
    spool = book()
    kept = waiting(spool)[0]
    spool.close()
    spool = book()
    with open(book.path, "r+b") as file:
        for page in range(1, file.seek(0, os.SEEK_END) // 4096):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    new = spool.add("isp", 7, START, 100, b"new")
    spool.renewed = lambda: [spool.restore(record) for record in (kept, new)]
    for now in range(3):
        spool.flush(float(now))
        waiting(spool)
    assert waiting(spool) == [kept, new]
    assert spool.depth.total() == 2
    assert not spool.trouble
    spool.close()
    assert waiting(book()) == [kept, new]


def test_the_disk_is_full_and_is_not_any_more(book: Book, caplog: pytest.LogCaptureFixture) -> None:
    spool = book()
    first = spool.add("isp", 1, START, 1, b"first")
    spool.flush(0.0)
    assert spool._db is not None
    ((pages,),) = spool._db.execute("PRAGMA page_count")
    spool._db.execute(f"PRAGMA max_page_count = {pages}")
    kept = [spool.add("isp", n, START, n, bytes(2000)) for n in range(2, 30)]
    assert not spool.flush(10.0)
    stop = spool.add("isp", 2, STOP, 99, b"stop")
    for now in (10.1, 11.5, 13.0):
        assert not spool.flush(now)
    assert caplog.text.count("kept in memory") == 1
    assert spool.trouble
    # All is as if it had been written.
    assert waiting(spool) == [first, *kept, stop]
    assert spool.first("isp", 2) == kept[0].seq
    spool.done(kept[0])
    spool.done(first)
    assert spool.first("isp", 2) == stop.seq
    assert waiting(spool) == [*kept[1:], stop]
    late = kept[1]._replace(tries=2, due=WALL)
    spool.put(late)
    assert spool.resting(("isp",), WALL, 5) == [late]
    assert spool.depth.total() == 28
    spool._db.execute("PRAGMA max_page_count = 100000")
    # Not tried at every turn of the loop.
    assert not spool.flush(13.5)
    assert spool.flush(14.0)
    assert not spool.trouble
    assert waiting(spool) == [*kept[2:], stop]
    spool.close()
    again = book()
    assert again.depth.total() == 28
    assert waiting(again) == [*kept[2:], stop]
    assert again.resting(("isp",), WALL, 5) == [late]


def test_a_place_that_cannot_be_written_to_and_then_can(tmp_path: Path) -> None:
    path = tmp_path / "far" / "later" / "npppyd.spool"
    earlier = Spool(tmp_path / "npppyd.spool", WALL)
    old = earlier.add("isp", 1, START, 1, b"old")
    earlier.close()
    spool = Spool(path, WALL + 1)
    try:
        record = spool.add("isp", 7, START, 100, b"one")
        assert not spool.flush(0.0)
        assert waiting(spool) == [record]
        path.parent.mkdir(parents=True)
        (tmp_path / "npppyd.spool").rename(path)
        assert spool.flush(2.0)
        # What was there, and what has come, are two records.
        assert waiting(spool) == [old, record]
        assert spool.depth.total() == 2
    finally:
        spool.close()


def test_in_memory_only(book: Book) -> None:
    spool = Spool(None, WALL)
    assert spool.new_boot(lambda count: b"\0\0\0\5", WALL) == 5
    record = spool.add("isp", 7, START, 100, b"one")
    assert not spool.flush(0.0)
    assert not spool.trouble
    assert waiting(spool) == [record]
    spool.done(record)
    assert waiting(spool) == []
    spool.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from npppy.aaa.radius.spool import START, STOP, Open, Spool, session_key
spool = Spool(Path(sys.argv[1]), 1.7e9)
boot = spool.new_boot(os.urandom, 1.7e9)
for n in range(100):
    key = session_key(boot, n)
    spool.open(key, Open("isp", 1.7e9, 0, b"facts"))
    start = spool.add("isp", key, START, n, b"start")
    if n % 2:
        spool.shut(key)
        spool.add("isp", key, STOP, n, b"stop")
    spool.flush(0.0)
    if n % 4 == 0:
        spool.done(start)
spool.flush(0.0)
spool.add("isp", 1, START, 0, b"lost: its turn was not over")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_lost_nothing(book: Book) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(book.path)], check=False)
    assert ended.returncode == -9
    spool = book()
    assert spool.depth.total() == 125
    assert len(waiting(spool)) == 125
    assert not any(record.attributes.startswith(b"lost") for record in waiting(spool))
    spool.new_boot(os.urandom, WALL)
    assert [left.ppp_id for left in spool.abandoned()] == list(range(0, 100, 2))


ENDLESS = """
import os, sys
from pathlib import Path
from npppy.aaa.radius.spool import START, STOP, Open, Spool, session_key
spool = Spool(Path(sys.argv[1]), 1.7e9)
boot = spool.new_boot(os.urandom, 1.7e9)
spool.flush(0.0)
n = 0
while True:
    key = session_key(boot, n)
    spool.open(key, Open("isp", 1.7e9, 0, b"facts"))
    start = spool.add("isp", key, START, n, b"start")
    spool.flush(0.0)
    os.write(1, b"s")
    spool.shut(key)
    spool.add("isp", key, STOP, n, b"stop")
    spool.flush(0.0)
    os.write(1, b"e")
    n += 1
"""


@pytest.mark.parametrize("wanted", [1, 200, 3001])
def test_killed_at_any_point(book: Book, wanted: int) -> None:
    """Whatever had been reported is there, and a session is open or has its Stop."""
    child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(book.path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = 0
    while told < wanted:
        told += len(child.stdout.read(wanted - told))
    child.kill()
    child.wait()
    told += len(child.stdout.read())
    child.stdout.close()
    spool = book()
    records = waiting(spool)
    assert told <= len(records) <= told + 1
    spool.new_boot(os.urandom, WALL)
    left = [session.key for session in spool.abandoned()]
    stopped = [record.key for record in records if record.kind == STOP]
    assert sorted(left + stopped) == sorted(record.key for record in records if record.kind == START)


def test_one_that_is_locked_for_long_is_trouble_and_no_damage(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY", 0.01)
    spool = book()
    other = sqlite3.connect(book.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    record = spool.add("isp", 7, START, 100, b"one")
    assert not spool.flush(0.0)
    assert spool.trouble
    other.execute("ROLLBACK")
    other.close()
    assert spool.flush(2.0)
    assert waiting(spool) == [record]


def test_what_is_written_gets_to_the_disk_and_the_log_stays_small(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(module, "SYNC", 0.0)
    monkeypatch.setattr(module, "TRUNCATE", 1 << 20)
    real = module._sync

    def sync(path: Path, late: bool) -> bool:
        copied = real(path, late)
        synced.append(copied)
        return copied

    monkeypatch.setattr(module, "_sync", sync)
    spool = book()
    wal = Path(f"{book.path}-wal")
    count, size, shrunk = 0, 0, False
    while not (shrunk and False in synced):
        count += 1
        assert count < 200_000
        spool.done(spool.add("isp", count, INTERIM_UPDATE, count, bytes(400)))
        spool.add("isp", count, INTERIM_UPDATE, count, bytes(400))
        spool.flush(0.0)
        shrunk |= wal.stat().st_size < size
        size = wal.stat().st_size
    spool.close()
    assert len(waiting(book(), "isp")) == min(count, 10_000)


def test_two_daemons_do_not_share_a_file(tmp_path: Path) -> None:
    """The second would end the sessions of the first."""
    path = tmp_path / "npppyd.spool"
    spool = Spool(path, WALL)
    with pytest.raises(HeldError, match=r"npppyd\.spool: held by another daemon"):
        Spool(path, WALL)
    spool.close()
    Spool(path, WALL).close()
