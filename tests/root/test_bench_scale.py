"""``make bench``, of many sessions at a time: that it measures.  How fast anything is, is not asked here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import count, growth, storm
from bench.asking import lag, measure
from bench.carriers import CARRIERS, L2TP, PPPOE
from bench.cgroup import MemoryGroup
from bench.figures import BenchError
from bench.lab import THEIRS, Lab
from bench.prober import answered, padi
from bench.sessions import METHOD, idle
from npppy.pppoe import codec

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the bench runs, which has more time."""
    for module in ("count", "growth", "sessions"):
        monkeypatch.setattr(f"bench.{module}.SETTLED", 0.1)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {THEIRS})
    yield
    os.sched_setaffinity(0, before)


def test_a_question_and_its_answer() -> None:
    mac, ours = bytes.fromhex("024e50000001"), bytes.fromhex("024e50000002")
    asked = codec.decode_discovery(padi(mac, 77))
    assert (asked.code, asked.source) == (codec.Code.PADI, mac)
    assert asked.first(codec.Tag.SERVICE_NAME) == b""
    uniq = asked.first(codec.Tag.HOST_UNIQ)
    assert uniq is not None
    for tags, number in (([(codec.Tag.HOST_UNIQ, uniq)], 77), ([(codec.Tag.HOST_UNIQ, b"77")], None)):
        pado = codec.discovery_frame(mac, ours, codec.Code.PADO, 0, codec.encode_tags(tags))
        assert answered(pado) == number
    # Its own question is no answer.
    assert answered(padi(mac, 77)) is None


def test_who_is_kept_waiting_is_noticed() -> None:
    with Lab() as lab:
        daemon = lab.npppyd(users=1, method=METHOD)

        def stop() -> None:
            with daemon.stopped():
                time.sleep(0.2)
            time.sleep(0.1)

        assert lag(lab, stop) > 0.15


def test_who_is_not_answered_is_noticed() -> None:
    with Lab() as lab:
        daemon = lab.npppyd(users=1, method=METHOD)
        with daemon.stopped(), pytest.raises(BenchError, match="were not answered"):
            lag(lab, lambda: time.sleep(0.1))


def test_asking() -> None:
    figures = {it.name: it for it in measure((2, 3))}
    questions = ("ctl.brief", "ctl.all", "metrics.scrape", "metrics.sessions")
    names = {f"{question}.{sessions}" for question in questions for sessions in (2, 3)}
    assert figures.keys() == names | {f"{name}.lag" for name in names}
    for name, figure in figures.items():
        assert figure.value > 0
        assert figure.target is None
        assert (figure.baseline is not None) == name.endswith(".lag")


def test_growth() -> None:
    ratio, cost = growth.setup(2, 4, 3, 2)
    assert (ratio.name, cost.name) == ("growth.setup.4", "growth.setup.4.cost")
    assert cost.baseline is not None
    assert ratio.value == pytest.approx(cost.value / cost.baseline)
    assert ratio.target is None


@pytest.mark.parametrize("carrier", CARRIERS)
def test_leaks(carrier: str) -> None:
    (figure,) = growth.leak(CARRIERS[carrier], 2, 6)
    assert figure.name == f"leak.{carrier}"
    assert figure.target is None


def test_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.sessions.KEEPALIVE", 1)
    (figure,) = idle(PPPOE, 60, 1)
    assert figure.name == "idle.60"
    assert figure.value > 0


ROWS = ("", ".packets", ".astray", ".silent", ".memory")


def test_count_within_a_limit() -> None:
    figures = {it.name: it.value for it in count.limited(10, 0.5)}
    assert figures.keys() == {f"count.128mb.10{row}" for row in ROWS}
    assert figures["count.128mb.10"] == 10
    # Not quite as many as there are to be, where others need the processor.
    assert figures["count.128mb.10.packets"] > 0.1 * count.TRAFFIC
    assert figures["count.128mb.10.astray"] == figures["count.128mb.10.silent"] == 0


def test_count_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there was room for."""
    monkeypatch.setattr(count, "LIMIT", 34 << 20)
    figures = {it.name: it.value for it in count.limited(5000, 0.1)}
    assert 0 < figures["count.128mb.5000"] < 5000


def test_count_of_all_carriers() -> None:
    figures = {it.name: it.value for it in count.machine(10, 0.5)}
    assert figures.keys() == {f"count.machine.10{row}" for row in ROWS}
    assert figures["count.machine.10"] == 10
    assert figures["count.machine.10.packets"] > 0
    assert figures["count.machine.10.astray"] == figures["count.machine.10.silent"] == 0


@pytest.mark.parametrize("kind", ["pppoe", "l2tp", pytest.param("radius", marks=pytest.mark.long)])
def test_storm(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storm, "OTHERS", 4)
    monkeypatch.setattr(storm, "BEGUN", 0.1)
    monkeypatch.setattr(storm, "GIVEN_UP", 0.1)
    monkeypatch.setattr(storm, "FACTOR", 2)
    monkeypatch.setattr(storm, "MOST", 2000)
    carrier = CARRIERS.get(kind)
    found = storm.measure(carrier, 300, 0.3, 1, own=kind == "l2tp") if carrier else storm.radius(300, 0.3, 1)
    figures = {it.name: it for it in found}
    name = f"storm.{kind}" + ".tunnels" * (kind == "l2tp")
    assert figures.keys() == {name, f"{name}.wall", f"{name}.core", f"{name}.lost"}
    wall = figures[f"{name}.wall"]
    assert wall.baseline is not None
    assert figures[name].value == pytest.approx(wall.value / wall.baseline)
    assert figures[name].target == 0.9
    assert figures[f"{name}.lost"].value == 0


def test_storms_are_medians_of_pairs() -> None:
    rates = [(100, 90), (200, 100), (150, 120)]
    pairs = [storm._Pair(storm._Rate(calm * 20, calm), storm._Rate(wild * 20, wild), 1) for calm, wild in rates]
    figures = {it.name: (it.value, it.baseline) for it in storm._figures("it", pairs)}
    assert figures == {"it": (0.8, None), "it.wall": (100, 150), "it.core": (2000, 3000), "it.lost": (3, None)}


def test_figures_as_json(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "bench", "--quick", "--json", "--results", str(results)]
    command += ["--carrier", "l2tp", "--sessions", "5", "setup", "ctl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told.keys() == {"machine", "commit", "quick", "seconds", "failed", "figures"}
    assert told["quick"] is True
    assert told["failed"] == []
    assert "Linux" in told["machine"]
    kept = [json.loads(line) for line in results.read_text().splitlines()]
    for row, line in zip(told["figures"], kept, strict=True):
        target = row["target"]
        assert row.pop("met") is (None if target is None else row["value"] >= target)
        assert row.pop("ratio") == (None if target is None else pytest.approx(row["value"] / target, abs=1e-4))
        assert row == {key: line[key] for key in row}
    assert {row["name"] for row in told["figures"]} >= {"setup.l2tp.pap", "setup.l2tp.pap.wall"}


def test_groups_know_their_limit() -> None:
    with MemoryGroup(64 << 20) as group:
        done = subprocess.run([*group.enter, "python3", "-c", "x = bytearray(1 << 27)"], capture_output=True)
        assert done.returncode < 0
        assert group.oom_kills() == 1


def test_subscribers_come_again() -> None:
    """Whose numbers have been used."""
    with Lab(L2TP) as lab:
        daemon = lab.npppyd(users=2, method=METHOD)
        for _ in range(2):
            subscribers = lab.dial(daemon, 2, METHOD, "--terminate", "lcp", first=1)
            subscribers.wait_up()
            *_, report = subscribers.end()
            assert report["up"] == 2
        assert daemon.state()["sessions"] == 0
