"""The timing wheel against a list of deadlines."""

from __future__ import annotations

import logging
import random
import tracemalloc

import pytest

from npppy.wheel import TICK, Timed, Wheel


class Alarm(Timed):
    def __init__(self, log: list[tuple[Alarm, float]]) -> None:
        super().__init__()
        self.log = log

    def expire(self, now: float) -> None:
        self.log.append((self, now))


def test_expires_once_not_early_and_within_two_ticks() -> None:
    log: list[tuple[Alarm, float]] = []
    wheel = Wheel(100.0)
    alarm = Alarm(log)
    wheel.arm(alarm, 103.0)
    now = 100.0
    while now < 110:
        now += 0.05
        wheel.advance(now)
    assert len(log) == 1
    assert 103.0 <= log[0][1] <= 103.0 + 2 * TICK
    assert len(wheel) == 0


def test_moved_and_disarmed() -> None:
    log: list[tuple[Alarm, float]] = []
    wheel = Wheel(0.0)
    moved, dropped = Alarm(log), Alarm(log)
    wheel.arm(moved, 1)
    wheel.arm(moved, 5)
    wheel.arm(dropped, 1)
    wheel.disarm(dropped)
    wheel.disarm(dropped)
    wheel.advance(2)
    assert log == []
    wheel.advance(6)
    assert [alarm for alarm, _ in log] == [moved]
    assert wheel.next() is None


def test_one_that_expires_may_disarm_or_move_its_neighbour() -> None:
    wheel = Wheel(0.0)
    log: list[tuple[Alarm, float]] = []

    class Killer(Timed):
        def expire(self, now: float) -> None:
            wheel.disarm(victim)
            wheel.arm(mover, now + 10)
            wheel.arm(self, now + 1)

    killer, victim, mover = Killer(), Alarm(log), Alarm(log)
    for timed in (killer, victim, mover):
        wheel.arm(timed, 1)
    wheel.advance(1.2)
    assert log == []
    wheel.disarm(killer)
    wheel.advance(20)
    assert [alarm for alarm, _ in log] == [mover]


def test_one_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Timed):
        def expire(self, now: float) -> None:
            raise ZeroDivisionError

    log: list[tuple[Alarm, float]] = []
    wheel, alarm = Wheel(0.0), Alarm(log)
    logging.getLogger("npppy").propagate = True
    for timed in (Broken(), alarm, Broken()):
        wheel.arm(timed, 1)
    wheel.advance(2)
    assert len(log) == 1
    assert "timer of Broken failed" in caplog.text


def test_against_a_naive_model() -> None:
    rng = random.Random(7)
    wheel, log = Wheel(0.0), []
    alarms = [Alarm(log) for _ in range(50)]
    model: dict[Alarm, float] = {}
    now = 0.0
    for _ in range(5000):
        alarm = rng.choice(alarms)
        if rng.random() < 0.3:
            wheel.disarm(alarm)
            model.pop(alarm, None)
        else:
            model[alarm] = now + rng.random() * 30
            wheel.arm(alarm, model[alarm])
        now += rng.random() * 0.5
        log.clear()
        wheel.advance(now)
        for fired, _ in log:
            assert model.pop(fired) <= now
        assert all(when > now - 2 * TICK for when in model.values())
        assert len(wheel) == len(model)
        upcoming = wheel.next()
        assert upcoming is None or upcoming <= min(model.values(), default=upcoming) + 2 * TICK


def test_the_time_of_the_next_deadline_is_late_enough_for_it() -> None:
    """A shell that sleeps until then finds it due, whatever the rounding."""
    for tick in range(1, 20000):
        wheel = Wheel(0.0)
        log: list[tuple[Alarm, float]] = []
        wheel.arm(Alarm(log), tick * TICK)
        due = wheel.next()
        assert due is not None
        wheel.advance(due)
        assert len(log) == 1


def test_deadlines_cost_little_and_those_that_are_gone_nothing() -> None:
    """Measured: 40 octets for each that waits, in a dict, and no number of its own."""
    wheel = Wheel(100.0)
    alarms = [Alarm([]) for _ in range(2000)]
    tracemalloc.start()
    try:
        for alarm in alarms:
            wheel.arm(alarm, 160.0)
            wheel.arm(alarm, 130.0)
        waiting = tracemalloc.get_traced_memory()[0]
        assert len({id(alarm.due) for alarm in alarms}) == 1
        for alarm in alarms:
            wheel.disarm(alarm)
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert waiting / len(alarms) < 80
    assert left < 2000
