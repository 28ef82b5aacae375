from __future__ import annotations

import random
import sys
from collections import deque

import pytest

from npppy.fifo import Fifo


def test_order() -> None:
    source = random.Random(3)
    queue, model = Fifo("I", (7, 8)), deque((7, 8))
    for _ in range(100_000):
        # Now it grows, now it shrinks.
        if model and source.random() < source.choice((0.2, 0.7)):
            assert queue.first == model[0]
            assert queue.pop() == model.popleft()
        else:
            number = source.getrandbits(32)
            queue.append(number)
            model.append(number)
        assert len(queue) == len(model)
    assert list(queue) == list(model)


def test_empty() -> None:
    queue = Fifo("H")
    assert not queue
    queue.append(1)
    queue.pop()
    assert list(queue) == []
    with pytest.raises(IndexError):
        queue.pop()


def test_it_does_not_grow() -> None:
    queue = Fifo("I", range(100))
    for number in range(100_000):
        queue.append(number)
        queue.pop()
    assert sys.getsizeof(queue._items) < 50_000
