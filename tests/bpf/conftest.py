from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from npppy.pipex.ebpf.layout import OBJECT
from npppy.pipex.ebpf.libbpf import Object

from .rig import SIZES, Rig

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Frames are not readable."""
    return f"{len(val)}-octets" if isinstance(val, bytes) else None


def _check(code: int) -> None:
    assert code == 0, os.strerror(ctypes.get_errno())


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    """The tests of a module are in a network namespace of their own, which vanishes with what is in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _check(LIBC.unshare(CLONE_NEWNET))
    try:
        yield
    finally:
        _check(LIBC.setns(home, CLONE_NEWNET))
        os.close(home)


@pytest.fixture(scope="module")
def loaded(namespace: None) -> Iterator[Object]:
    with Object(OBJECT, sizes=SIZES) as loaded:
        yield loaded


@pytest.fixture
def rig(loaded: Object) -> Rig:
    """The programs over maps that hold one shared interface and no session."""
    return Rig(loaded)
