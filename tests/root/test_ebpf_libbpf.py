"""libbpf by ctypes: maps, programs, errors."""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from npppy.pipex.ebpf import libbpf
from npppy.pipex.ebpf.layout import OBJECT
from npppy.pipex.ebpf.libbpf import EXIST, NOEXIST, BpfError, Map, Object, Program
from tests.root.ebpf_lab import foreign_program

pytestmark = pytest.mark.root

KEYS = [bytes(12) + struct.pack(">II", 0, number) for number in range(3000)]
VALUES = [struct.pack("=II", number, 1) for number in range(3000)]


@pytest.fixture
def loaded() -> Iterator[Object]:
    with Object(OBJECT, sizes={"sessions": 5000}) as made:
        yield made


@pytest.fixture
def sessions(loaded: Object) -> Map:
    return loaded.maps["sessions"]


def test_elements(sessions: Map) -> None:
    assert (sessions.key_size, sessions.value_size, sessions.max_entries) == (20, 8, 5000)
    assert sessions.get(KEYS[0]) is None
    sessions.put(KEYS[0], VALUES[7], NOEXIST)
    with pytest.raises(BpfError, match="cannot write to map sessions: File exists") as caught:
        sessions.put(KEYS[0], VALUES[8], NOEXIST)
    assert caught.value.code == errno.EEXIST
    with pytest.raises(BpfError, match="No such file"):
        sessions.put(KEYS[1], VALUES[8], EXIST)
    assert sessions.get(KEYS[0]) == VALUES[7]
    assert sessions.delete(KEYS[0])
    assert not sessions.delete(KEYS[0])


def test_wrong_sizes(sessions: Map) -> None:
    """Never more octets for the kernel to read than there are."""
    for key in (b"", KEYS[0][:-1], KEYS[0] + b"x"):
        with pytest.raises(ValueError, match=f"map sessions: key of {len(key)} octets"):
            sessions.get(key)
        with pytest.raises(ValueError, match="octets"):
            sessions.put(key, VALUES[0])
        with pytest.raises(ValueError, match="octets"):
            sessions.delete(key)
    with pytest.raises(ValueError, match="value of 7"):
        sessions.put(KEYS[0], VALUES[0][:-1])
    with pytest.raises(ValueError, match="octets"):
        sessions.put_many(KEYS[0] * 2, VALUES[0])
    with pytest.raises(ValueError, match="octets"):
        sessions.delete_many(KEYS[0][:-1])


def test_bulk(sessions: Map) -> None:
    """More than one system call takes."""
    sessions.put_many(b"".join(KEYS), b"".join(VALUES))
    expected = dict(zip(KEYS, VALUES, strict=True))
    assert dict(sessions.items()) == expected
    assert len(sessions.items()) == 3000
    assert set(sessions.keys()) == expected.keys()
    sessions.delete_many(b"".join(KEYS[:2999]))
    assert sessions.items() == [(KEYS[2999], VALUES[2999])]
    with pytest.raises(BpfError, match="cannot delete 2 elements from map sessions"):
        sessions.delete_many(KEYS[0] + KEYS[2999])
    sessions.put_many(b"", b"")
    sessions.delete_many(b"")


def test_every_kind_of_map_is_read(loaded: Object) -> None:
    """Hashes, arrays, tries, device maps and those per processor."""
    for name, item in loaded.maps.items():
        if name != "events":
            arrays = 0 if item.type in (1, 11, 25) else item.max_entries
            assert len(item.items()) == arrays, name
    loaded.maps["devs"].put(struct.pack("=I", 1), struct.pack("=I", 1))
    assert loaded.maps["devs"].items() == [(struct.pack("=I", 1), struct.pack("=I", 1))]
    loaded.maps["nets4"].put(struct.pack("=II4s", 56, 0, b"\x0a\0\0\0"), VALUES[5])
    assert loaded.maps["nets4"].get(struct.pack("=II4s", 64, 0, b"\x0a\0\0\x09")) == VALUES[5]
    assert len(loaded.maps["nets4"].items()) == 1


def test_memory(loaded: Object) -> None:
    """What is written on one side is seen on the other."""
    stats = loaded.maps["stats"]
    with stats.mapped() as memory:
        memory[stats.value_size * 3 : stats.value_size * 3 + 4] = b"abcd"
        assert (stats.get(struct.pack("=I", 3)) or b"")[:4] == b"abcd"
        stats.put(struct.pack("=I", 4), b"x" * stats.value_size)
        assert memory[stats.value_size * 4 : stats.value_size * 5] == b"x" * stats.value_size
    with pytest.raises(BpfError, match="cannot map map buckets into memory"):
        loaded.maps["buckets"].mapped()


def test_run(loaded: Object) -> None:
    frame = bytes(12) + b"\x08\x06" + bytes(46)
    for ifindex in (0, socket.if_nametoindex("lo")):
        run = loaded.programs["pipex_access"].run(frame, ifindex)
        assert (run.verdict, run.data) == (2, frame)
        assert loaded.programs["pipex_miss"].run(frame, ifindex).verdict == 2
    with pytest.raises(BpfError, match="cannot run program pipex_access"):
        loaded.programs["pipex_access"].run(b"short")


def test_programs(loaded: Object) -> None:
    program = loaded.programs["pipex_core"]
    again = Program.by_id(program.id)
    assert (again.name, again.tag, again.id) == ("pipex_core", program.tag, program.id)
    again.close()
    again.close()
    other = foreign_program()
    assert other.name == "somebodys"
    other.close()
    with pytest.raises(BpfError, match=f"cannot get program id {other.id}"):
        Program.by_id(other.id)


def test_missing_object(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match=r"cannot open the BPF object \S+/none.o: No such file or directory"):
        Object(str(tmp_path / "none.o"))
    with pytest.raises(BpfError, match="cannot find map nonsense in"):
        Object(OBJECT, sizes={"nonsense": 1})


def test_refused_program(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error has the end of what the verifier says; nothing stays open."""
    data = Path(OBJECT).read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    (strings,) = struct.unpack_from("<Q", data, offset + names * size + 24)
    for at in range(offset, offset + count * size, size):
        name, _, _, _, start = struct.unpack_from("<IIQQQ", data, at)
        if data[strings + name :].startswith(b"tc\0"):
            # r0 = r9, in which there is nothing
            data = data[:start] + b"\xbf\x90" + bytes(6) + data[start + 8 :]
    (tmp_path / "bad.o").write_bytes(data)
    before = len(list(Path("/proc/self/fd").iterdir()))
    caplog.set_level(logging.DEBUG, "npppy.bpf")
    with pytest.raises(BpfError, match=r"cannot load the BPF object \S+/bad.o: .*(?s:.*)R9 !read_ok") as caught:
        Object(str(tmp_path / "bad.o"))
    assert "pipex_miss" in caught.value.detail
    assert caught.value.detail.count("\n") < 20
    assert any("BEGIN PROG LOAD LOG" in line for line in caplog.messages)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_load_is_not_talkative(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "npppy.bpf")
    with Object(OBJECT):
        assert len(caplog.messages) < 10


def test_closed(loaded: Object) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Object(OBJECT) as other:
        held = len(other.maps) + len(other.programs)
        assert len(list(Path("/proc/self/fd").iterdir())) == before + held
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "_LIBRARY", "libbpf.so.0815")
    with pytest.raises(BpfError, match=r"cannot use libbpf.so.0815 \(Debian: apt install libbpf1\)"):
        libbpf.library.__wrapped__()
