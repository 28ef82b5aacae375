"""What npppyd leaves in the BPF file system for its successor.

    npppy/v2_7/sessions, slots, ...       maps of layout 2
    npppy/v2_7/prog_pipex_access, ...     programs that work on them
    npppy/new/...                         the same, while it is being made

Each process that loads the programs has a directory of its own, an edition, numbered on.  It appears whole, by being
renamed, and from then on its maps are those that hold, whatever programs are attached where.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from .layout import VERSION
from .libbpf import BpfError, Map, Program

log = logging.getLogger("npppy.pipex")

_EDITION: Final = re.compile(r"v(\d+)(?:_(\d+))?")
_NEW: Final = "new"
_PROGRAM: Final = "prog_"

#: Where the kernel's documentation wants it, and systemd has it.
_BPFFS: Final = Path("/sys/fs/bpf")
# linux/magic.h; sys/mount.h: nosuid, nodev, noexec
_BPF_FS_MAGIC: Final = 0xCAFE4A11
_MOUNT_FLAGS: Final = 2 | 4 | 8
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Edition(NamedTuple):
    number: int
    #: Of the layout.
    version: int
    path: Path

    def map(self, name: str) -> Map:
        """Raises :class:`BpfError`."""
        return Map.pinned(str(self.path / name))


def usable(pins: Path | None) -> bool:
    """Whether we may see and change what is there."""
    return pins is not None and os.access(pins, os.R_OK | os.W_OK | os.X_OK)


def editions(pins: Path) -> list[Edition]:
    """The oldest first; the last one's maps hold."""
    found = []
    for path in pins.iterdir():
        if match := _EDITION.fullmatch(path.name):
            found.append(Edition(int(match[2] or 0), int(match[1]), path))
    return sorted(found)


def own_programs(pins: Path | None) -> dict[int, Program]:
    """Programs of all editions by the kernel's number; the caller's to close.  What is damaged is logged."""
    found: dict[int, Program] = {}
    if pins is None or not usable(pins):
        return found
    for edition in editions(pins):
        for path in edition.path.glob(f"{_PROGRAM}*"):
            try:
                program = Program.pinned(str(path))
            except BpfError as error:
                log.warning("pipex: %s", error)
            else:
                found[program.id] = program
    return found


def others_programs(pins: Path | None) -> Container[int]:
    """The kernel's numbers of the programs that other daemons have pinned beside us, as far as we may look."""
    found: set[int] = set()
    if pins is None or not os.access(pins.parent, os.R_OK | os.X_OK):
        return found
    for other in pins.parent.glob("npppy*"):
        if other != pins:
            programs = own_programs(other)
            found.update(programs)
            for program in programs.values():
                program.close()
    return found


def publish(pins: Path, maps: Mapping[str, Map], programs: Mapping[str, Program]) -> None:
    """Pin maps and programs as the newest edition.  Raises :class:`BpfError`, and then there is none."""
    what = f"pin maps at {pins}"
    new = pins / _NEW
    try:
        _mount(pins)
        pins.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove(new)
        new.mkdir(mode=0o700)
        try:
            if not _is_bpffs(new):
                raise BpfError(what, errno.EOPNOTSUPP, "that is no BPF file system")
            for name, item in maps.items():
                item.pin(str(new / name))
            for name, program in programs.items():
                program.pin(str(new / f"{_PROGRAM}{name}"))
            number = max((edition.number for edition in editions(pins)), default=0) + 1
            new.rename(pins / f"v{VERSION}_{number}")
        except (BpfError, OSError):
            _remove(new)
            raise
    except OSError as error:
        raise BpfError(what, error.errno or errno.EIO) from None


def remove(pins: Path) -> int:
    """Remove all that is pinned; returns how many pins there were.

    The newest edition goes last: what an interruption leaves has either that whole, or no other.
    """
    count = remove_before(pins)
    for edition in editions(pins):
        count += _remove(edition.path)
    if not any(pins.iterdir()):
        pins.rmdir()
    return count


def remove_before(pins: Path) -> int:
    """The same for all but the newest edition."""
    return _remove(pins / _NEW) + sum(_remove(edition.path) for edition in editions(pins)[:-1])


def _remove(directory: Path) -> int:
    if not directory.is_dir():
        return 0
    count = sum(len(files) for _, _, files in os.walk(directory))
    shutil.rmtree(directory)
    return count


def _is_bpffs(path: Path) -> bool:
    about = ctypes.create_string_buffer(256)
    found = _libc.statfs(os.fsencode(path), about) == 0
    return found and int.from_bytes(about.raw[:4], "little") == _BPF_FS_MAGIC


def _mount(pins: Path) -> None:
    """See to it that there is a BPF file system.  Raises :class:`OSError` if there cannot be one."""
    if not pins.is_relative_to(_BPFFS) or _is_bpffs(_BPFFS):
        return
    if _libc.mount(b"bpf", os.fsencode(_BPFFS), b"bpf", ctypes.c_ulong(_MOUNT_FLAGS), b"mode=0700"):
        raise OSError(ctypes.get_errno(), "mount")
    log.info("pipex: BPF file system mounted at %s", _BPFFS)
