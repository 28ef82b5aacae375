"""The collector of cycles: what it still looks at, and that what is garbage goes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from npppy.garbage import BATCH, Garbage


class Knot:
    """A cycle."""

    def __init__(self) -> None:
        self.end = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_is_looked_at_no_more() -> None:
    before = Knot()
    Garbage()
    gone = weakref.ref(before)
    del before
    gc.collect()
    assert gone() is not None


def test_what_is_garbage_already_goes() -> None:
    before = Knot()
    gone = weakref.ref(before)
    del before
    Garbage()
    assert gone() is None


def test_after_some_sessions_what_is_new_is_put_away_too() -> None:
    garbage = Garbage()
    garbage.look(BATCH - 1)
    there = gc.get_freeze_count()
    kept, lost = Knot(), Knot()
    gone = weakref.ref(lost)
    del lost
    garbage.look(BATCH)
    assert gone() is None
    assert gc.get_freeze_count() > there
    assert kept.end is kept
    there = gc.get_freeze_count()
    Knot()
    garbage.look(BATCH + 1)
    assert gc.get_freeze_count() == there
