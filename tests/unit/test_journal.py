"""The journal outlives the daemon, whatever ends it."""

from __future__ import annotations

import logging
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from npppy.config.model import Protocol
from npppy.journal import Journal, JournalError, Orphan

PADT = bytes.fromhex("02000000010102ac00000001886311a712340000")
PPPOE = Protocol.PPPOE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def frames(orphans: list[Orphan]) -> list[tuple[str, bytes]]:
    return [(orphan.interface, orphan.frame) for orphan in orphans]


def test_what_is_not_removed_is_found_again(path: Path) -> None:
    first = Journal(path)
    slots = [first.add(PPPOE, f"eth{number}", PADT + bytes([number])) for number in range(5)]
    assert len(set(slots)) == 5
    first.remove(slots[1])
    first.remove(slots[3])
    assert len(first) == 3
    first.close()

    second = Journal(path)
    orphans = second.orphans(PPPOE)
    assert frames(orphans) == [(f"eth{number}", PADT + bytes([number])) for number in (0, 2, 4)]
    # They are told of once, but stay until they have been ended: this process may die as well.
    assert second.orphans(PPPOE) == []
    assert len(second) == 3
    second.remove(orphans[0].slot)
    second.close()
    third = Journal(path)
    assert frames(third.orphans(PPPOE)) == [("eth2", PADT + b"\2"), ("eth4", PADT + b"\4")]
    third.close()


def test_carriers_have_their_own(path: Path) -> None:
    first = Journal(path)
    for kind in Protocol:
        first.add(kind, "eth0", kind.value.encode())
    first.close()
    second = Journal(path)
    assert [frames(second.orphans(kind)) for kind in Protocol] == [[("eth0", kind.value.encode())] for kind in Protocol]
    second.close()


def test_new_calls_leave_orphans_alone(path: Path) -> None:
    first = Journal(path)
    for number in range(3):
        first.add(PPPOE, "eth0", bytes([number]))
    first.remove(1)
    first.close()
    second = Journal(path)
    new = [second.add(PPPOE, "eth1", b"new") for _ in range(2)]
    orphans = second.orphans(PPPOE)
    assert not {orphan.slot for orphan in orphans} & set(new)
    assert frames(orphans) == [("eth0", b"\0"), ("eth0", b"\2")]
    second.close()


def test_limits_of_a_record(path: Path) -> None:
    book = Journal(path)
    book.add(PPPOE, "i" * 15, bytes(40))
    book.add(PPPOE, "e", b"")
    with pytest.raises(ValueError, match="does not fit"):
        book.add(PPPOE, "i" * 16, PADT)
    with pytest.raises(ValueError, match="does not fit"):
        book.add(PPPOE, "eth0", bytes(41))
    book.close()
    book = Journal(path)
    assert frames(book.orphans(PPPOE)) == [("i" * 15, bytes(40)), ("e", b"")]
    book.close()


def test_it_grows_and_uses_slots_again(path: Path) -> None:
    book = Journal(path)
    size = path.stat().st_size
    slots = [book.add(PPPOE, "eth0", number.to_bytes(4, "big")) for number in range(5000)]
    assert slots == list(range(5000))
    grown = path.stat().st_size
    assert grown > 4 * size
    for slot in slots[::2]:
        book.remove(slot)
    again = [book.add(PPPOE, "eth0", b"again") for _ in range(2500)]
    assert sorted(again) == slots[::2]
    assert len(book) == 5000
    assert path.stat().st_size == grown
    book.close()
    book = Journal(path)
    found = {orphan.frame for orphan in book.orphans(PPPOE)}
    assert found == {number.to_bytes(4, "big") for number in range(1, 5000, 2)} | {b"again"}
    assert book.add(PPPOE, "eth0", PADT) == 5000
    book.close()


def test_removing_what_is_not_there_is_harmless(path: Path) -> None:
    book = Journal(path)
    slot = book.add(PPPOE, "eth0", PADT)
    for wrong in (-1, 7, 10**6):
        book.remove(wrong)
    book.remove(slot)
    book.remove(slot)
    assert len(book) == 0
    assert [book.add(PPPOE, "eth0", PADT) for _ in range(2)] == [0, 1]
    book.close()
    book.remove(0)


def test_without_a_file_it_keeps_nothing() -> None:
    book = Journal(None)
    assert book.add(PPPOE, "eth0", PADT) == -1
    book.remove(-1)
    assert book.orphans(PPPOE) == []
    assert len(book) == 0
    book.close()


def test_a_second_daemon_is_told_so(path: Path) -> None:
    first = Journal(path)
    with pytest.raises(JournalError, match=f"{path}: held by another daemon"):
        Journal(path)
    first.add(PPPOE, "eth0", PADT)
    first.close()
    Journal(path).close()


def test_a_path_that_does_not_work(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="No such file"):
        Journal(tmp_path / "none" / "journal")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(JournalError):
        Journal(tmp_path / "link")
    assert not (tmp_path / "target").exists()


def test_only_its_owner_may_read_it(path: Path) -> None:
    path.touch(0o666)
    path.chmod(0o666)
    Journal(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"x", b"npppyjnl" + bytes(10), b"GIF89a" * 100, b"npppyjnl\x02" + bytes(4096)])
def test_an_unknown_version_is_put_aside(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(content)
    book = Journal(path)
    assert book.orphans(PPPOE) == []
    book.add(PPPOE, "eth0", PADT)
    book.close()
    aside = path.with_name("journal.unknown")
    assert aside.read_bytes() == content
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert "put aside" in caplog.text
    book = Journal(path)
    assert frames(book.orphans(PPPOE)) == [("eth0", PADT)]
    book.close()


def test_damaged_records_are_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = Journal(path)
    for number in range(64):
        book.add(PPPOE, "eth0", PADT + bytes([number]))
    book.close()
    data = bytearray(path.read_bytes())
    # One octet in each of all but the last, at each place of a record in turn.
    for number in range(63):
        data[64 + number * 64 + number] ^= 0x40
    path.write_bytes(data)
    book = Journal(path)
    assert frames(book.orphans(PPPOE)) == [("eth0", PADT + b"\x3f")]
    assert "Damaged records=63" in caplog.text
    assert len(book) == 1
    book.close()
    caplog.clear()
    Journal(path).close()
    assert not caplog.records


@pytest.mark.parametrize("size", [0, 64, 65, 64 + 63, 64 + 64 * 3, 64 + 64 * 3 + 1])
def test_a_file_cut_short(path: Path, size: int) -> None:
    book = Journal(path)
    for number in range(10):
        book.add(PPPOE, "eth0", bytes([number + 1]) * 40)
    book.close()
    os.truncate(path, size)
    book = Journal(path)
    left = max(0, (size - 64) // 64)
    assert [orphan.frame for orphan in book.orphans(PPPOE)] == [bytes([number + 1]) * 40 for number in range(left)]
    assert book.add(PPPOE, "eth0", PADT) == left
    book.close()


def test_random_content_is_survived(path: Path) -> None:
    rng = random.Random(1)
    header = b"npppyjnl" + (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(48)
    for _ in range(20):
        path.write_bytes(header + rng.randbytes(rng.randrange(200_000)))
        book = Journal(path)
        assert book.orphans(PPPOE) == []
        book.close()


def test_a_full_disk_ends_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    book = Journal(path)

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    slots = [book.add(PPPOE, "eth0", PADT) for _ in range(1030)]
    assert slots == [*range(1024), *[-1] * 6]
    assert caplog.text.count("Cannot grow") == 1
    book.remove(slots[5])
    assert book.add(PPPOE, "eth0", PADT) == 5
    book.close()


# Adds and removes for ever, and says what has certainly happened.
_WRITER = """
import sys
from pathlib import Path
from npppy.config.model import Protocol
from npppy.journal import Journal
book = Journal(Path(sys.argv[1]))
number = 0
while True:
    slot = book.add(Protocol.PPPOE, "eth0", number.to_bytes(20, "big") * 2)
    if number % 3 == 0:
        book.remove(slot)
    number += 1
    if number % 500 == 0:
        print(number, flush=True)
"""


def test_kill_9_leaves_whole_records(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        done = [int(writer.stdout.readline()) for _ in range(8)]
        writer.send_signal(signal.SIGKILL)
        done += map(int, writer.stdout.read().split())
        writer.wait()
        writer.stdout.close()

        book = Journal(path)
        numbers = []
        for orphan in book.orphans(PPPOE):
            assert orphan.frame[:20] == orphan.frame[20:]
            numbers.append(int.from_bytes(orphan.frame[:20], "big"))
        book.close()
        certain = {number for number in range(done[-1]) if number % 3}
        assert certain <= set(numbers)
        # The very last one may not have been removed yet.
        assert len([number for number in numbers if number % 3 == 0]) <= 1
        assert not caplog.records


def test_logs_nothing_in_peace(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        book = Journal(path)
        book.remove(book.add(PPPOE, "eth0", PADT))
        book.close()
    assert not caplog.records
