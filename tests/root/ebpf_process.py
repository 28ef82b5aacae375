"""Other processes that use back end ebpf and die, and what they leave."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from npppy.pipex.ebpf.libbpf import Map, Program, library
from tests.root.ebpf_lab import bpffs

ROOT = Path(__file__).parents[2]
#: CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF
CAPABILITIES = "12, 13, 38, 39"
NOBODY = 65534
#: What changes something in the kernel: of libbpf, and of module os.
CHANGES = (
    "bpf_object__load",
    "bpf_obj_pin",
    "bpf_map_update_elem",
    "bpf_map_delete_elem",
    "bpf_prog_test_run_opts",
    "bpf_xdp_attach",
    "bpf_tc_attach",
)
FILES = ("mkdir", "rename", "unlink", "rmdir")

#: For another process: a lab in the devices that are there, and fewer rights.
PROLOGUE = """
import asyncio, ctypes, logging, os, struct, sys
from pathlib import Path
from npppy.pipex.ebpf.maps import PipexMaps
from npppy.pipex.ebpf.plumbing import teardown
from npppy.pipex.ebpf.probe import choose, why_not
from tests.root.ebpf_lab import *

def capabilities(*numbers, user=0):
    libc = ctypes.CDLL(None)
    if user:
        # A tun device that all may open, as most systems have it; in a mount namespace of our own.
        assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
        assert libc.mount(b"tmpfs", b"/dev/net", b"tmpfs", 0, None) == 0
        os.mknod("/dev/net/tun", 0o20666, os.makedev(10, 200))
        os.chmod("/dev/net/tun", 0o666)
        assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    mask = sum(1 << number for number in numbers)
    data = struct.pack("<6I", mask & 0xFFFFFFFF, mask & 0xFFFFFFFF, 0, mask >> 32, mask >> 32, 0)
    assert libc.capset(struct.pack("<Ii", 0x20080522, 0), data) == 0

def existing_lab():
    lab = Lab.__new__(Lab)
    lab.flows, lab.mppe, lab.pump, lab.ifindex = {}, {}, None, socket.if_nametoindex("acc0")
    lab.access = packet_socket("acc0", 0x8864)
    return lab
"""


def process(body: str, more: str = "") -> subprocess.CompletedProcess[str]:
    """Run the body of a coroutine in another process, with a lab of its own in the devices that are there."""
    script = f"""{PROLOGUE}
{more}
async def main():
    lab = existing_lab()
    {body}
asyncio.run(main())
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)


#: Has a process kill itself at its so-maniest change to the kernel.
BOMB = f"""
from npppy.pipex.ebpf.libbpf import library

def bomb(act, steps):
    left = steps
    def burning(function):
        def call(*arguments, **more):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), 9)
            left -= 1
            return function(*arguments, **more)
        return call
    for name in {CHANGES}:
        setattr(library(), name, burning(getattr(library(), name)))
    for name in {FILES}:
        setattr(os, name, burning(getattr(os, name)))
    act()
    os._exit(0)
"""


@contextmanager
def nobodys_bpffs() -> Iterator[Path]:
    """A directory for the pins of an ordinary user, who may not look into pytest's."""
    with tempfile.TemporaryDirectory() as name, bpffs(Path(name)) as pins:
        home = pins.parent / "home"
        home.mkdir()
        os.chown(home, NOBODY, NOBODY)
        for path in (home, pins.parent):
            path.chmod(0o755)
        yield home / "npppy"


def alive(kind: str, number: int) -> bool:
    """Whether the kernel still has a program (prog) or a map of this number."""
    fd = getattr(library(), f"bpf_{kind}_get_fd_by_id")(ctypes.c_uint32(number))
    if fd >= 0:
        os.close(fd)
    return bool(fd != -errno.ENOENT)


def pinned(pins: Path) -> tuple[set[int], set[int]]:
    """The kernel's numbers of all programs and of all maps that are pinned."""
    programs, maps = set(), set()
    for path in pins.glob("v*/*"):
        item = (Program if path.name.startswith("prog_") else Map).pinned(str(path))
        (programs if isinstance(item, Program) else maps).add(item.id)
        item.close()
    return programs, maps
