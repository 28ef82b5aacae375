"""What the tests on this machine's own kernel share."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

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
