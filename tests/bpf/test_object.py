"""The object itself: what it was made of, what the kernel thinks of it, and whether Python sees it as C does."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import OBJECT
from npppy.pipex.ebpf.libbpf import Object, library

ROOT = Path(__file__).resolve().parents[2]

RECORDS = {
    "pipex_key": layout.KEY,
    "pipex_ref": layout.REF,
    "pipex_host4": layout.HOST4,
    "pipex_net4": layout.NET4,
    "pipex_net6": layout.NET6,
    "pipex_session": layout.SESSION,
    "pipex_stats": layout.STATS,
    "pipex_seq": layout.SEQ,
    "pipex_bucket": layout.BUCKET,
    "pipex_count": layout.COUNT_RECORD,
    "pipex_config": layout.CONFIG,
    "pipex_mppe": layout.MPPE_KEYS,
}
#: In struct bpf_prog_info.
VERIFIED_AT = 216


def check(root: Path) -> str:
    """What scripts/bpf says; make lint sees to it that there is a compiler where there must be one."""
    environment = {name: value for name, value in os.environ.items() if name != "NPPPY_REQUIRE_ALL"}
    done = subprocess.run([root / "scripts/bpf", "check"], env=environment, capture_output=True, text=True)
    assert bool(done.stderr) == bool(done.returncode)
    return done.stderr


def test_made_of_these_sources() -> None:
    assert not check(ROOT)


def test_a_source_that_moved(tmp_path: Path) -> None:
    """The check notices a changed source, a new one, and another object."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/bpf", tmp_path / "scripts")
    for folder in ("npppy/pipex/bpf", "bench/bpf"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    assert not check(tmp_path)
    for path, text in (
        ("npppy/pipex/bpf/mss.h", b"/* more */\n"),
        ("npppy/pipex/bpf/new.h", b""),
        ("npppy/pipex/bpf/pipex.o", b"\0"),
        ("bench/bpf/wire.c", b"/* more */\n"),
    ):
        file = tmp_path / path
        old = file.read_bytes() if file.exists() else None
        file.write_bytes((old or b"") + text)
        assert "make bpf" in check(tmp_path)
        if old is None:
            file.unlink()
        else:
            file.write_bytes(old)


def members(path: str = OBJECT) -> dict[str, tuple[int, dict[str, int]]]:
    """Size and offsets of members of each struct, from the object's BTF."""
    elf = Path(path).read_bytes()
    (sections_at,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, sections_at + index * size) for index in range(count)]
    (btf,) = (
        elf[section[4] : section[4] + section[5]]
        for section in sections
        if elf[sections[names][4] + section[0] :].startswith(b".BTF\0")
    )
    head, types_at, types_len, strings_at, strings_len = struct.unpack_from("<IIIII", btf, 4)
    strings = btf[head + strings_at :][:strings_len]
    types = btf[head + types_at :][:types_len]

    def text(at: int) -> str:
        return strings[at : strings.index(b"\0", at)].decode()

    # Octets behind the head of a type by its kind: for all, and for each of its members.
    extra = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 19: (0, 12)}
    found = {}
    at = 0
    while at < len(types):
        name, info, bytes_ = struct.unpack_from("<III", types, at)
        at += 12
        kind, members = info >> 24 & 31, info & 0xFFFF
        fixed, each = extra.get(kind, (0, 0))
        if kind == 4:
            entries = [struct.unpack_from("<III", types, at + number * 12) for number in range(members)]
            found[text(name)] = (bytes_, {text(entry[0]): (entry[2] & 0xFFFFFF) // 8 for entry in entries})
        at += fixed + each * members
    return found


def test_python_has_the_layout_of_c() -> None:
    known = members()
    for name, record in RECORDS.items():
        size, offsets = known[name]
        assert record.size == size, name
        assert {field: at for field, at in record.offsets.items() if field in offsets} == offsets, name


def test_python_has_the_numbers_of_c() -> None:
    header = (Path(OBJECT).parent / "pipex.h").read_text()
    flags = dict(re.findall(r"#define PIPEX_(\w+)\s+\(1u << (\d+)\)", header))
    assert len(flags) == 15
    for name, bit in flags.items():
        assert getattr(layout, name) == 1 << int(bit), name
    body = re.search(r"enum pipex_counter \{(.*?)\};", header, re.S)
    assert body is not None
    counters = re.findall(r"PIPEX_C_(\w+),", re.sub(r"/\*.*?\*/", "", body[1]))
    assert tuple(counters) == layout.COUNTERS
    assert f"#define PIPEX_VERSION {layout.VERSION}\n" in header
    assert f"#define PIPEX_ENCAP_MAX {layout.ENCAP_MAX}\n" in header


@pytest.mark.root
def test_programs_and_maps(loaded: Object) -> None:
    assert loaded.programs.keys() == {
        *("pipex_access", "pipex_core", "pipex_nic", "pipex_miss", "pipex_order", "pipex_ack"),
    }
    assert loaded.maps.keys() == {
        *("sessions", "hosts4", "nets4", "nets6", "slots", "stats", "seqs", "buckets", "counts", "config", "devs"),
        *("nics", "events", "mppe", "mppe_works"),
    }


@pytest.mark.root
def test_easy_to_verify(loaded: Object) -> None:
    """A twentieth of what the verifier bears: other kernels' see more or less states."""
    for name, program in loaded.programs.items():
        info = ctypes.create_string_buffer(VERIFIED_AT + 4)
        size = ctypes.c_uint32(len(info))
        assert library().bpf_obj_get_info_by_fd(program.fd, info, ctypes.byref(size)) == 0
        (verified,) = struct.unpack_from("I", info.raw, VERIFIED_AT)
        assert 0 < verified < 50_000, name
