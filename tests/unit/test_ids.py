"""SESSION_IDs of a port."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

from npppy.ids import SessionIds


def ids(seed: int = 1) -> SessionIds:
    return SessionIds(random.Random(seed).randbytes)


def test_all_are_given_out_once_but_0_and_ffff() -> None:
    pool = ids()
    assert sorted(pool.take() for _ in range(65534)) == list(range(1, 65535))
    assert pool.take() == 0
    assert pool.take() == 0


def test_the_order_depends_on_the_key_and_is_no_counting() -> None:
    pool, other = ids(1), ids(2)
    order = [pool.take() for _ in range(200)]
    assert order != [other.take() for _ in range(200)]
    steps = {(b - a) % 65536 for a, b in pairwise(order)}
    # A counter has one step, a linear generator few.
    assert len(steps) > 190


def test_a_released_one_returns_only_after_all_others() -> None:
    pool = ids()
    taken = [pool.take() for _ in range(100)]
    for session_id in taken[:50]:
        pool.release(session_id)
    rest = [pool.take() for _ in range(65534 - 100)]
    assert not set(rest) & set(taken)
    # Then the one that was released first comes first.
    assert [pool.take() for _ in range(50)] == taken[:50]
    assert pool.take() == 0


def test_first_released_first_out_for_long() -> None:
    pool = ids()
    live = [pool.take() for _ in range(65534)]
    rng = random.Random(3)
    rng.shuffle(live)
    queue = deque(live[:30000])
    for session_id in queue:
        pool.release(session_id)
    for _ in range(100000):
        expected = queue.popleft()
        assert pool.take() == expected
        pool.release(expected)
        queue.append(expected)
    # What was passed over is cut off from time to time.
    assert len(pool._released) <= 2 * 30000 + 4096
