"""Latencies that are counted in buckets come out as they went in, within two percent."""

from __future__ import annotations

import pickle
import random

import pytest

from npppy.sim.histogram import UNIT, Histogram

WANTED = (1, 10, 50, 90, 99, 99.9, 100)


def exact(times: list[float], percent: float) -> float:
    """The least of *times* that so many percent are not above."""
    ranked = sorted(times)
    return next(time for place, time in enumerate(ranked, 1) if place * 100 >= percent * len(ranked) - 1e-6)


def of(times: list[float]) -> Histogram:
    histogram = Histogram()
    for time in times:
        histogram.add(time)
    return histogram


@pytest.mark.parametrize("seed", range(20))
def test_percentiles_are_within_two_percent(seed: int) -> None:
    chance = random.Random(seed)
    spread = chance.choice((0.1, 1.0, 3.0))
    times = [min(1000, chance.lognormvariate(chance.uniform(-9, 0), spread)) for _ in range(chance.randrange(1, 3000))]
    for percent, found in zip(WANTED, of(times).percentiles(WANTED), strict=True):
        assert found == pytest.approx(exact(times, percent), rel=0.02, abs=UNIT)


def test_every_length_is_within_two_percent() -> None:
    time = UNIT
    while time < 1700:
        (found,) = of([time, time * 2]).percentiles((50,))
        assert abs(found - time) <= 0.01 * time
        time *= 1.003


def test_several_counts_put_together_are_one() -> None:
    chance = random.Random(7)
    parts = [[chance.expovariate(1000) for _ in range(count)] for count in (0, 1, 500, 20)]
    whole = Histogram()
    for part in parts:
        whole.merge(pickle.loads(pickle.dumps(of(part))))
    together = of([time for part in parts for time in part])
    assert whole.count == together.count == 521
    assert whole.longest == together.longest
    assert whole.percentiles(WANTED) == together.percentiles(WANTED)


def test_extremes() -> None:
    assert Histogram().percentiles(WANTED) == []
    assert Histogram().longest == 0
    histogram = of([0.0, -1.0, 1e-12, 1e9])
    assert histogram.count == 4
    assert histogram.longest == 1e9
    least, most = histogram.percentiles((50, 100))
    assert least <= 2 * UNIT
    assert 1000 < most < 1e9
