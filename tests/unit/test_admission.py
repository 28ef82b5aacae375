"""Admission with an event loop and a clock of the test's own: a turn is a turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from npppy.admission import FLOOR, GRACE, LAG, PLENTY, SHARE, TRICKLE, YOUNG, Admission, Queue, UnderWay


class Loop:
    """What is to be called in the next turn."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.now = 100.0
        self.admission = Admission(self.soon.append, lambda: self.now)

    def turn(self) -> None:
        due, self.soon[:] = list(self.soon), []
        for call in due:
            call()

    @property
    def idle(self) -> bool:
        return not self.soon


class Door:
    """A gate, and how often it was moved."""

    def __init__(self) -> None:
        self.is_open = True
        self.moves = 0

    def open(self) -> None:
        assert not self.is_open
        self.is_open = True
        self.moves += 1

    def shut(self) -> None:
        assert self.is_open
        self.is_open = False
        self.moves += 1


def door(loop: Loop) -> Door:
    made = Door()
    loop.admission.join(made)
    return made


class Calls:
    """A queue, and what has begun of it."""

    def __init__(self, loop: Loop, limit: int = 10000, each: int = 10000) -> None:
        self.begun: list[tuple[str, str]] = []
        self.times: list[float] = []
        self.queue: Queue[str, str] = Queue(loop.admission, self._begin, limit, each)

    def _begin(self, owner: str, request: str, now: float) -> None:
        self.begun.append((owner, request))
        self.times.append(now)


def test_without_pressure_nothing_turns() -> None:
    loop = Loop()
    gate = door(loop)
    loop.admission.tick(0.0, PLENTY)
    loop.admission.took(5)
    assert loop.idle
    assert gate.is_open
    assert not loop.admission.closed
    assert loop.admission.share == SHARE


def test_it_opens_with_the_first_turn_without_pressure() -> None:
    loop = Loop()
    first, second = door(loop), door(loop)
    loop.admission.press()
    # Nothing happens within the turn: what else can be read in it, is.
    assert first.is_open
    loop.turn()
    assert (first.is_open, second.is_open, loop.admission.closed) == (False, False, True)
    loop.admission.press()
    loop.turn()
    assert not first.is_open
    loop.turn()
    assert (first.is_open, second.is_open, loop.admission.closed) == (True, True, False)
    assert loop.idle
    assert loop.admission.closures == 1
    assert first.moves == 2


def test_pressed_twice_is_looked_at_once() -> None:
    loop = Loop()
    loop.admission.press()
    loop.admission.press()
    assert len(loop.soon) == 1


def test_under_pressure_without_end_gates_open_now_and_then() -> None:
    loop = Loop()
    gate, opened = door(loop), 0
    for _ in range(10 * GRACE):
        loop.admission.press()
        loop.turn()
        opened += gate.is_open
    assert opened == 10


def test_a_gate_that_comes_or_goes_meanwhile() -> None:
    loop = Loop()
    old = door(loop)
    loop.admission.press()
    loop.turn()
    new = door(loop)
    assert not new.is_open
    loop.admission.leave(old)
    loop.turn()
    assert new.is_open
    assert not old.is_open


def test_logins_that_wait_let_a_few_in_each_tick_and_more_when_they_do_not() -> None:
    loop = Loop()
    gate, admission = door(loop), loop.admission
    # So many have begun in this tick; half of it seems to be enough, and less if it is not.
    admission.took(100)
    for quota in (50, 25, 12, 6, TRICKLE, TRICKLE):
        admission.tick(2 * LAG, PLENTY)
        loop.turn()
        assert gate.is_open
        left = quota
        while left:
            assert not admission.full
            assert admission.share == min(left, SHARE)
            admission.took(admission.share)
            left -= min(left, SHARE)
            loop.turn()
        assert admission.full
        assert not gate.is_open
        # There is nothing to do before the next tick.
        assert loop.idle
    quotas = []
    for _ in range(9):
        admission.tick(LAG / 2, PLENTY)
        loop.turn()
        quotas.append(admission._left)
        admission.took(admission._left)
        loop.turn()
        assert not gate.is_open
    assert quotas == [8, 16, 32, 64, 128, 256, 512, 1024, PLENTY]
    admission.tick(0.0, PLENTY)
    loop.turn()
    assert gate.is_open
    assert admission.share == SHARE
    assert loop.idle


def test_no_more_begin_in_a_tick_than_may_be_under_way() -> None:
    loop = Loop()
    gate, admission = door(loop), loop.admission
    for room, most in ((100, 100), (0, FLOOR), (PLENTY, PLENTY)):
        admission.tick(0.0, room)
        loop.turn()
        assert gate.is_open
        admission.took(most - 1)
        loop.turn()
        assert gate.is_open
        assert admission.share == 1
        admission.took(1)
        loop.turn()
        assert not gate.is_open
        assert loop.idle


def test_set_ups_under_way_are_those_of_the_last_seconds() -> None:
    under_way = UnderWay()
    for _ in range(PLENTY):
        under_way.begin(100.5)
    assert under_way.room(100.9) == 0
    under_way.end(100.5)
    assert under_way.room(101.0) == 1
    under_way.end(100.5, 101.0)
    assert under_way.room(101.5) == 2
    # Those that never finish.
    assert under_way.room(100.5 + YOUNG) == 2
    assert under_way.room(102.0 + YOUNG) == PLENTY
    # One that began before that ends now.
    under_way.end(100.5, 110.0)
    assert under_way.room(110.0) == PLENTY


def test_where_more_come_up_more_may_be_under_way() -> None:
    under_way = UnderWay()
    for number in range(3 * PLENTY):
        now = 100 + number / PLENTY
        under_way.begin(now)
        under_way.end(now, now)
    assert under_way.room(103.0) == 3 * PLENTY
    assert under_way.room(103.0 + YOUNG + 1) < 3 * PLENTY
    assert under_way.room(110.0) == PLENTY


def test_fewer_than_may_begin_leave_it_open() -> None:
    loop = Loop()
    gate = door(loop)
    for _ in range(3):
        loop.admission.tick(2 * LAG, PLENTY)
        loop.turn()
        loop.admission.took(TRICKLE - 1)
        loop.turn()
        assert gate.is_open
        assert loop.idle


def test_pressure_while_logins_wait() -> None:
    loop = Loop()
    gate = door(loop)
    for _ in range(GRACE // 2):
        loop.admission.tick(2 * LAG, PLENTY)
        loop.admission.press()
        loop.turn()
        assert not gate.is_open


def test_a_request_that_passes_counts() -> None:
    loop = Loop()
    calls = Calls(loop)
    loop.admission.tick(2 * LAG, PLENTY)
    loop.turn()
    assert [calls.queue.passes() for _ in range(TRICKLE + 1)] == [True] * TRICKLE + [False]
    calls.queue.put("a", 1, "a1")
    loop.turn()
    assert not calls.begun
    loop.admission.tick(0, PLENTY)
    loop.turn()
    assert calls.begun == [("a", "a1")]
    assert loop.admission._left == 2 * TRICKLE - 1


def test_what_waits_begins_in_order_and_owners_take_turns() -> None:
    loop = Loop()
    calls = Calls(loop)
    loop.admission.press()
    loop.turn()
    assert not calls.queue.passes()
    for number in range(3):
        assert calls.queue.put("a", number, f"a{number}")
    assert calls.queue.put("b", 0, "b0")
    assert loop.admission.waiting == len(calls.queue) == 4
    assert not calls.begun
    loop.now = 101.0
    loop.turn()
    assert calls.begun == [("a", "a0"), ("b", "b0"), ("a", "a1"), ("a", "a2")]
    assert calls.times == [101.0] * 4
    assert loop.idle
    assert calls.queue.passes()


def test_no_more_than_a_share_begins_in_a_turn_and_those_who_come_stay_behind() -> None:
    loop = Loop()
    calls = Calls(loop)
    loop.admission.press()
    loop.turn()
    for number in range(SHARE + 2):
        calls.queue.put("a", number, str(number))
    loop.turn()
    assert len(calls.begun) == SHARE
    # It is open, but others are before it.
    assert not loop.admission.closed
    assert not calls.queue.passes()
    calls.queue.put("a", 99, "99")
    loop.admission.press()
    loop.turn()
    assert len(calls.begun) == SHARE
    loop.turn()
    assert [request for _, request in calls.begun[SHARE:]] == [str(SHARE), str(SHARE + 1), "99"]
    assert loop.idle


def test_a_request_that_is_repeated_keeps_its_place() -> None:
    loop = Loop()
    calls = Calls(loop)
    loop.admission.press()
    loop.turn()
    for number in (1, 2, 1):
        assert calls.queue.put("a", number, str(number))
    loop.turn()
    assert calls.begun == [("a", "1"), ("a", "2")]


def test_withdrawn_and_forgotten() -> None:
    loop = Loop()
    calls = Calls(loop)
    loop.admission.press()
    loop.turn()
    for owner in "abc":
        for number in range(2):
            calls.queue.put(owner, number, f"{owner}{number}")
    assert calls.queue.withdraw("a", 0)
    assert not calls.queue.withdraw("a", 0)
    assert calls.queue.withdraw("a", 1)
    assert not calls.queue.withdraw("x", 1)
    calls.queue.forget("b")
    calls.queue.forget("b")
    assert (len(calls.queue), calls.queue.waits("a"), calls.queue.waits("c")) == (2, 0, 2)
    loop.turn()
    assert calls.begun == [("c", "c0"), ("c", "c1")]


def test_what_begins_may_be_the_end_of_others() -> None:
    loop = Loop()
    begun: list[str] = []

    def begin(owner: str, request: str, now: float) -> None:
        begun.append(request)
        queue.forget("b")

    queue: Queue[str, str] = Queue(loop.admission, begin)
    loop.admission.press()
    loop.turn()
    queue.put("a", 1, "a1")
    queue.put("b", 1, "b1")
    queue.put("b", 2, "b2")
    loop.turn()
    assert begun == ["a1"]
    assert len(queue) == 0
    assert loop.idle


def test_a_mistake_in_one_does_not_stop_the_others() -> None:
    loop = Loop()
    begun: list[str] = []

    def begin(owner: str, request: str, now: float) -> None:
        begun.append(request)
        if request == "1":
            raise RuntimeError

    queue: Queue[str, str] = Queue(loop.admission, begin)
    loop.admission.press()
    loop.turn()
    for number in (1, 2):
        queue.put("a", number, str(number))
    with pytest.raises(RuntimeError):
        loop.turn()
    loop.turn()
    assert begun == ["1", "2"]


def test_who_fills_a_queue_keeps_nobody_else_out_of_it() -> None:
    loop = Loop()
    calls = Calls(loop, limit=5)
    loop.admission.press()
    loop.turn()
    assert [calls.queue.put("greedy", number, "") for number in range(7)] == [True] * 5 + [False] * 2
    assert calls.queue.put("modest", 1, "modest")
    assert not calls.queue.put("modest", 2, "")
    loop.turn()
    assert calls.begun[1] == ("modest", "modest")


def test_an_owner_has_its_part_of_a_queue() -> None:
    loop = Loop()
    calls = Calls(loop, each=3)
    loop.admission.press()
    loop.turn()
    assert [calls.queue.put("greedy", number, "") for number in range(5)] == [True] * 3 + [False] * 2
    # One that waits already has not asked for more.
    assert calls.queue.put("greedy", 0, "")
    assert [calls.queue.put("modest", number, "") for number in range(3)] == [True] * 3
    loop.turn()
    assert len(calls.begun) == 6


def test_where_many_wait_already_their_gate_stays_shut_but_for_its_turns() -> None:
    loop = Loop()
    calls, gate, other = Calls(loop), Door(), door(loop)
    loop.admission.join(gate, calls.queue)
    loop.admission.press()
    loop.turn()
    owners = 5 * SHARE
    for owner in range(owners):
        for number in range(30):
            calls.queue.put(str(owner), number, "")
    opened = turns = 0
    while len(calls.queue) > owners:
        loop.admission.tick(0.0, PLENTY)
        loop.turn()
        turns += 1
        opened += gate.is_open
        assert other.is_open
    assert turns // GRACE <= opened <= turns // GRACE + 1
    while not loop.idle:
        loop.admission.tick(0.0, PLENTY)
        loop.turn()
    assert gate.is_open
    assert len(calls.begun) == owners * 30


def test_a_queue_is_served_under_pressure_too_now_and_then() -> None:
    loop = Loop()
    calls = Calls(loop)
    loop.admission.press()
    loop.turn()
    calls.queue.put("a", 1, "a1")
    for _ in range(GRACE):
        loop.admission.press()
        loop.turn()
    assert calls.begun == [("a", "a1")]
