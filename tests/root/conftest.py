"""What the tests on this machine's own kernel share."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.ebpf_lab import Lab, bpffs
from tests.root.ebpf_process import nobodys_bpffs

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def netns() -> Iterator[None]:
    """This thread, and what it starts, in a new network namespace, which vanishes with what is in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert _LIBC.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _LIBC.setns(home, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(home)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Back end ebpf in namespaces, without a PPP engine; some tests have a lab of their own."""
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    with bpffs(tmp_path) as directory:
        yield directory


@pytest.fixture
def nobodys_pins() -> Iterator[Path]:
    """One that belongs to an ordinary user."""
    with nobodys_bpffs() as directory:
        yield directory
