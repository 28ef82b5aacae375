"""The shape of npppysim's load: sessions that come and go at random, that dial again, and power cuts."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from typing import Any

import pytest

from npppy.ppp.cause import Cause
from npppy.pppoe.codec import Code
from npppy.sim.load import JITTER, Ending, Line, Plan, Stage
from npppy.sim.report import Report

from .ppp_pair import Quality
from .sim_world import Bed, L2tpWorld, PptpWorld, World

#: Each carrier, with its subscribers apart and with many of them in a tunnel.
WORLDS: dict[str, tuple[type[Bed], dict[str, Any]]] = {
    "pppoe": (World, {}),
    "pppoe-one-mac": (World, {"one_mac": True}),
    "l2tp": (L2tpWorld, {"tunnels": 3}),
    "pptp": (PptpWorld, {}),
    "pptp-shared": (PptpWorld, {"tunnels": 3}),
}
BEDS = pytest.mark.parametrize("kind", WORLDS)


def bed(kind: str, plan: Plan, **more: Any) -> Bed:
    make, options = WORLDS[kind]
    return make(plan, **options, **more)


def reached(world: Bed, stage: Stage, seconds: float = 60.0) -> None:
    assert world.run(seconds, until=lambda: world.load.stage is stage), world.load.stage


def pppoe_codes(world: World) -> Counter[int]:
    return Counter(frame[15] for frame in world.up_frames if frame[12:14] == b"\x88\x63")


# Churn.


# Not of those who share a control connection without a word, which main refuses: the server would still have the call.
@pytest.mark.parametrize(
    ("kind", "ending"),
    [(kind, ending) for kind in WORLDS for ending in Ending if (kind, ending) != ("pptp-shared", Ending.NONE)],
)
def test_churn(kind: str, ending: Ending) -> None:
    world = bed(kind, Plan(sessions=40, hold=60, churn=3, churn_by=(ending,)))
    reached(world, Stage.ENDING, 100)
    report = world.report
    # The count of a Poisson process: 180, give or take a few times its root.
    assert 120 < report.churned < 240
    assert report.tried == 40 + report.churned
    assert report.held + report.away == 40
    assert report.away <= 3
    world.finished()
    assert report.good
    assert not report.failed
    assert not report.lost
    assert report.rounds[0].up == 40
    assert {number for _, number in world.events} == set(range(1, 41))
    # A concentrator that was not told finds out by itself.
    world.run(100)
    world.nothing_left()


def test_churn_comes_at_random_intervals_and_to_anybody() -> None:
    world = World(Plan(sessions=20, hold=200, churn=5))
    gone: list[float] = []
    numbers: Counter[int] = Counter()

    def listen(event: str, line: Line) -> None:
        if event == "down" and world.load.stage is Stage.HOLDING:
            gone.append(world.rig.now)
            numbers[line.number] += 1

    world.load._listener = listen
    reached(world, Stage.ENDING, 300)
    gaps = [after - before for before, after in itertools.pairwise(gone)]
    # Exponential: as much spread as mean, and nothing that is evenly spaced.
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.15)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.25)
    assert set(numbers) == set(range(1, 21))
    assert max(numbers.values()) < 3 * min(numbers.values())


def test_churn_by_several_ways_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = (Ending.LCP, Ending.CALL, Ending.NONE)
    world = World(Plan(sessions=20, hold=60, churn=5, churn_by=ways))
    asked: Counter[str] = Counter()
    end, vanish = Line.end, Line.vanish

    def counted_end(line: Line, ending: Ending, now: float) -> None:
        asked[ending.value] += 1
        end(line, ending, now)

    def counted_vanish(line: Line, now: float) -> None:
        asked["vanish"] += 1
        vanish(line, now)

    monkeypatch.setattr(Line, "end", counted_end)
    monkeypatch.setattr(Line, "vanish", counted_vanish)
    reached(world, Stage.HOLDING)
    world.run(59)
    # Each of them is a third, more or less.
    assert sum(asked.values()) == world.report.churned > 200
    assert set(asked) == {"lcp", "call", "vanish"}
    assert min(asked.values()) > 60


def test_who_is_dialling_again_is_away_and_has_not_failed() -> None:
    world = World(Plan(sessions=30, hold=10, churn=4, churn_by=(Ending.NONE,), ending=Ending.CALL))
    reached(world, Stage.HOLDING)
    world.run(7)
    world.channel.quality = Quality(loss=1.0)
    world.finished(30)
    report = world.report
    assert report.away > 3
    assert report.held == 30 - report.away
    assert not report.failed
    assert report.good


def test_who_does_not_come_back_has_gone_astray() -> None:
    world = World(Plan(sessions=10, hold=200, churn=1, churn_by=(Ending.CALL,)))
    reached(world, Stage.HOLDING)
    world.channel.quality = Quality(loss=1.0)
    world.run(60)
    report = world.report
    assert report.strayed == report.failed["no PADO"] > 0
    world.load.stop(Ending.CALL)
    world.finished()
    assert not report.good


def test_churn_ends_with_the_hold_and_is_no_hindrance_to_it() -> None:
    world = World(Plan(sessions=10, hold=10, churn=2))
    reached(world, Stage.HOLDING)
    began = world.rig.now
    reached(world, Stage.ENDING)
    assert world.rig.now - began == pytest.approx(10, abs=0.2)
    churned = world.report.churned
    world.finished()
    assert world.report.churned == churned


def test_lines_that_have_ended_are_not_kept() -> None:
    world = World(Plan(sessions=5, hold=100, churn=10), pings=1)
    reached(world, Stage.HOLDING)
    world.run(90)
    assert world.report.churned > 500
    assert len(world.load._busy) < 20


# Power cuts.


@BEDS
@pytest.mark.parametrize("rate", [0.0, 20.0])
def test_reconnect(kind: str, rate: float) -> None:
    world = bed(kind, Plan(sessions=40, hold=5, reconnects=2, rate=rate, window=40))
    world.finished()
    report = world.report
    assert report.good
    assert (report.tried, report.up, report.held) == (120, 120, 40)
    assert not report.failed
    assert not report.lost
    assert [each.up for each in report.rounds] == [40, 40, 40]
    for each in report.rounds:
        assert each.seconds == pytest.approx(39 / rate if rate else 0, abs=0.5)
    facts = report.summary()
    assert len(facts["reconnects"]) == 2
    assert all(each["up"] == 40 for each in facts["reconnects"])
    world.run(100)
    world.nothing_left()


@pytest.mark.parametrize("kind", ["pppoe", "l2tp", "pptp"])
def test_a_power_cut_is_silent(kind: str) -> None:
    world = bed(kind, Plan(sessions=10, hold=5, reconnects=1))
    reached(world, Stage.HOLDING)
    world.run(4.9)
    carried = world.channel.carried
    cut = False

    def look() -> bool:
        nonlocal cut
        cut = len(world.report.rounds) == 2
        return cut

    # The moment before the first one dials again: nothing has been sent.
    dial = world.load._dial
    sent: list[int] = []

    def watch(now: float) -> float | None:
        if not sent:
            sent.append(world.channel.carried)
        return dial(now)

    world.load._dial = watch  # type: ignore[method-assign]
    assert world.run(10, until=look)
    assert sent == [carried]
    if isinstance(world, World):
        assert Code.PADT not in pppoe_codes(world)
    if isinstance(world, PptpWorld):
        old = world.pipes[:10]
        assert all(pipe.hushed and not pipe.open for pipe in old)
        # The server still believes in them.
        assert all(pipe.other.open for pipe in old)
    assert len(world.rig.engine.sessions) == 10


def test_the_hold_of_each_round_begins_when_all_are_up() -> None:
    world = World(Plan(sessions=21, hold=30, reconnects=1, rate=10))
    began = world.rig.now
    reached(world, Stage.ENDING, 100)
    assert world.rig.now - began == pytest.approx(2 * (2 + 30), abs=0.5)


def test_stopped_before_the_power_cut() -> None:
    world = World(Plan(sessions=10, hold=30, reconnects=5))
    reached(world, Stage.HOLDING)
    world.load.finish()
    world.finished(10)
    assert len(world.report.rounds) == 1
    assert world.report.good


def test_churn_and_power_cuts_together() -> None:
    world = World(Plan(sessions=30, hold=20, reconnects=2, churn=5, churn_by=(Ending.LCP, Ending.NONE)))
    world.finished()
    report = world.report
    assert report.good
    assert [each.up for each in report.rounds] == [30] * 3
    # Who was away when the power went has not been dialled again by churn.
    assert 90 + report.churned - 9 <= report.tried <= 90 + report.churned
    assert not report.failed
    assert not report.lost
    world.run(100)
    world.nothing_left()


# Dialling again.


@BEDS
def test_those_that_were_lost_dial_again(kind: str) -> None:
    world = bed(kind, Plan(sessions=12, hold=60, redial=4))
    reached(world, Stage.HOLDING)
    at = world.rig.now
    for session in list(world.rig.engine.sessions.values())[:5]:
        session.end(Cause.ADMIN_RESET, "test", at)
    assert world.run(20, until=lambda: world.load.up == 7 and world.load.under_way == 0)
    assert world.report.lost.total() == 5
    assert world.run(20, until=lambda: world.load.up == 12)
    # After four seconds, more or less, and not all at once.
    began = sorted(line.began - at for line in world.load.lines.values())[-5:]
    assert 4 * (1 - JITTER) <= began[0] < began[-1] <= 4 * (1 + JITTER) + 4
    assert len(set(began)) == 5
    world.finished()
    assert world.report.good
    assert (world.report.tried, world.report.held) == (17, 12)
    world.run(100)
    world.nothing_left()


def test_those_that_have_failed_dial_until_they_come_up() -> None:
    world = World(Plan(sessions=10, hold=1, redial=5), quality=Quality(loss=1.0))
    world.run(100)
    assert world.load.stage is Stage.DIALLING
    # A PADI is repeated for half a minute.
    assert 20 <= world.report.failed["no PADO"] <= 40
    world.channel.quality = Quality()
    world.finished()
    assert world.report.good
    assert world.report.rounds[0].up == 10
    assert world.report.tried == 10 + world.report.failed.total()


def test_who_was_never_up_is_not_away() -> None:
    world = World(Plan(sessions=10, hold=1, redial=5), quality=Quality(loss=1.0))
    assert world.run(60, until=lambda: world.report.failed.total() == 10)
    world.load.finish()
    assert not world.report.away


def test_without_a_redial_they_stay_away() -> None:
    world = World(Plan(sessions=10, hold=60))
    reached(world, Stage.HOLDING)
    for session in list(world.rig.engine.sessions.values())[:5]:
        session.end(Cause.ADMIN_RESET, "test", world.rig.now)
    world.finished()
    assert (world.report.tried, world.report.held) == (10, 5)


def test_who_has_gone_astray_and_comes_back_has_not() -> None:
    world = World(Plan(sessions=10, hold=400, churn=1, churn_by=(Ending.CALL,), redial=5))
    reached(world, Stage.HOLDING)
    world.channel.quality = Quality(loss=1.0)
    assert world.run(90, until=lambda: world.report.strayed > 2)
    world.channel.quality = Quality()
    assert world.run(100, until=lambda: not world.report.strayed)
    world.finished(500)
    assert world.report.good


def test_all_lost_and_none_to_come_back_ends_it() -> None:
    world = World(Plan(sessions=3, hold=math.inf))
    reached(world, Stage.HOLDING)
    for session in list(world.rig.engine.sessions.values()):
        session.end(Cause.ADMIN_RESET, "test", world.rig.now)
    world.finished(10)
    again = World(Plan(sessions=3, hold=100, redial=10))
    reached(again, Stage.HOLDING)
    for session in list(again.rig.engine.sessions.values()):
        session.end(Cause.ADMIN_RESET, "test", again.rig.now)
    again.run(3)
    assert not again.load.lines
    assert again.load.stage is Stage.HOLDING
    again.finished()
    assert again.report.held == 3


# With others.


def test_it_holds_when_all_are_gathered_and_ends_when_all_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Plan(sessions=3, hold=5))
    answer: list[float | None] = [None]
    settled: list[bool] = [False]
    monkeypatch.setattr(world, "gathered", lambda now: answer[0])
    monkeypatch.setattr(world, "settled", lambda now: settled[0])
    world.run(50)
    assert world.load.stage is Stage.TRAFFIC
    # Since two seconds ago, somebody else says.
    answer[0] = world.rig.now - 2
    reached(world, Stage.SETTLING, 3.5)
    world.run(50)
    assert world.load.stage is Stage.SETTLING
    assert world.load.up == 3
    settled[0] = True
    world.finished(10)


def test_reports_of_several_are_put_together() -> None:
    reports = []
    for first, delay in ((1, 0.0), (11, 0.05)):
        # Nothing overtakes: the first ping comes right behind what makes the session.
        quality = Quality(fastest=0.001 + delay, slowest=0.001 + delay)
        world = World(Plan(sessions=10, first=first, hold=10, churn=2, reconnects=1), pings=2, quality=quality)
        world.finished()
        reports.append(world.report)
    whole = Report(0)
    for report in reports:
        whole.merge(report)
    one, other = reports
    assert whole.good
    assert whole.sessions == 20
    assert (whole.tried, whole.up) == (one.tried + other.tried, one.up + other.up)
    assert whole.churned == one.churned + other.churned > 10
    assert len(whole.setup_times) == whole.up
    assert [each.up for each in whole.rounds] == [20, 20]
    # All begin at the same time, and it lasts as long as the slower one.
    assert whole.rounds[0].began == one.rounds[0].began == other.rounds[0].began
    assert whole.pings_cut == one.pings_cut + other.pings_cut > 0
    assert whole.rounds[0].seconds == max(one.rounds[0].seconds, other.rounds[0].seconds)
    other.failed["no PADO"] += 2
    other.rounds[0].up -= 2
    whole = Report(0)
    whole.merge(one)
    assert whole.good
    whole.merge(other)
    assert not whole.good
    assert whole.failed == {"no PADO": 2}
