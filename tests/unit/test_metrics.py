"""What Prometheus is told: each number where it belongs, in pieces, in its format."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npppy import __version__, metrics
from npppy.config.model import AuthMethod
from npppy.metrics import Family, Histogram, Metrics, escape
from npppy.pipex.base import Counters
from npppy.ppp.cause import Cause
from npppy.ppp.session import Session
from npppy.ppp.station import Phase
from tests.unit.metrics_rig import Parts, read, value
from tests.unit.ppp_pair import Pair
from tests.unit.ppp_rig import Rig

OF = {"tunnel": "PPPOE", "protocol": "pppoe", "realm": "LOCAL"}
UP = {"path": "python", "direction": "up"}
CONF = Path(__file__).parents[2] / "conf"


def dial(**options: Any) -> tuple[Pair, Metrics]:
    """A session, and what is told of it; nothing has happened to it yet."""
    pair = Pair(**options)
    return pair, Parts(pair.rig.engine).metrics()


def promtool(*arguments: str, page: str = "") -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("needs promtool: Debian's package prometheus")
    done = subprocess.run([tool, *arguments], input=page, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Sessions, as they come and go.


def test_a_session_is_counted_as_it_comes_and_goes() -> None:
    pair, told = dial()
    samples = read(told.totals())
    assert value(samples, "npppy_sessions", **OF) == 0
    assert value(samples, "npppy_sessions_started_total", **OF) == 0
    assert value(samples, "npppy_sessions_half_open") == 1
    assert pair.run(60, until=lambda: pair.both_up)
    samples = read(told.totals())
    assert value(samples, "npppy_sessions", **OF) == 1
    assert value(samples, "npppy_sessions_started_total", **OF) == 1
    assert value(samples, "npppy_sessions_half_open") == 0
    pair.session.end(Cause.IDLE_TIMEOUT, "idle", pair.rig.now)
    samples = read(told.totals())
    assert value(samples, "npppy_sessions", **OF) == 0
    assert value(samples, "npppy_sessions_started_total", **OF) == 1
    assert value(samples, "npppy_sessions_ended_total", **OF, cause="Idle-Timeout") == 1
    assert not any(name == "npppy_sessions_failed_total" for name, _ in samples)


def test_one_that_negotiates_anew_is_the_same() -> None:
    pair, told = dial()
    assert pair.run(60, until=lambda: pair.both_up)
    pair.session.negotiate_anew(pair.rig.now)
    assert pair.session.phase is not Phase.UP
    assert value(read(told.totals()), "npppy_sessions", **OF) == 1
    assert pair.run(60, until=lambda: pair.both_up)
    samples = read(told.totals())
    assert value(samples, "npppy_sessions", **OF) == value(samples, "npppy_sessions_started_total", **OF) == 1


def test_a_login_that_is_refused() -> None:
    pair, told = dial(user="mallory", demand=(AuthMethod.PAP,))
    assert pair.run(60, until=lambda: pair.both_dead)
    samples = read(told.totals())
    assert value(samples, "npppy_logins_refused_total", realm="LOCAL") == 1
    failed = {labels: count for (name, labels), count in samples.items() if name == "npppy_sessions_failed_total"}
    assert list(failed.values()) == [1]
    ((labels, _),) = failed.items()
    assert dict(labels).keys() == {"tunnel", "protocol", "cause"}


def test_frames_that_are_malformed() -> None:
    pair, told = dial()
    pair.session.receive(b"\xc0", pair.rig.now)
    reasons = [dict(labels)["reason"] for name, labels in read(told.totals()) if name == "npppy_ppp_malformed_total"]
    assert len(reasons) == 1


# All the rest.


@pytest.fixture
def full() -> Parts:
    return Parts(Rig().engine).fill()


def test_every_part_has_its_say(full: Parts) -> None:
    samples = read(full.metrics().totals())
    at = {"server": "192.0.2.1:1812", "kind": "auth"}
    assert value(samples, "npppy_radius_requests_total", **at) == 15
    assert value(samples, "npppy_radius_logins_total", **at, answer="accept") == 11
    assert value(samples, "npppy_radius_logins_total", **at, answer="reject") == 3
    assert value(samples, "npppy_radius_errors_total", **at, reason="id") == 4
    # One of the two that are the same for the network answers; the slower counts.
    assert value(samples, "npppy_radius_up", **at) == 1
    assert value(samples, "npppy_radius_rtt_seconds", **at) == 0.0025
    other = {"server": "[2001:db8::1]:1813", "kind": "acct"}
    assert value(samples, "npppy_radius_up", **other) == 0
    assert value(samples, "npppy_radius_queued", **other) == 7
    assert value(samples, "npppy_radius_outstanding", **other) == 3
    logins = [dict(labels) for name, labels in samples if name == "npppy_radius_logins_total"]
    assert {labels["kind"] for labels in logins} == {"auth"}
    assert value(samples, "npppy_accounting_records", realm="R") == 12
    assert value(samples, "npppy_accounting_oldest_seconds") == 90
    assert value(samples, "npppy_accounting_delivered_total") == 7
    assert value(samples, "npppy_accounting_spool_writable") == 0
    dae = {"client": "192.0.2.10"}
    assert value(samples, "npppy_radius_dae_requests_total", **dae, request="disconnect") == 5
    assert value(samples, "npppy_radius_dae_answers_total", **dae, request="disconnect", answer="ack") == 4
    assert value(samples, "npppy_radius_dae_answers_total", **dae, request="coa", answer="nak") == 1
    assert value(samples, "npppy_radius_dae_discarded_total", **dae, reason="code") == 2
    assert value(samples, "npppy_radius_dae_discarded_total", client="", reason="stranger") == 3
    assert value(samples, "npppy_pool_addresses", pool="POOL") == 254
    assert value(samples, "npppy_pool_addresses_used", pool="POOL") == 17
    assert value(samples, "npppy_drops_total", port="eth1.7", protocol="pppoe", reason="cookie") == 3
    assert value(samples, "npppy_drops_total", tunnel="LAC", protocol="l2tp", reason="malformed") == 8
    assert value(samples, "npppy_drops_total", protocol="pptp", reason="session") == 9
    assert value(samples, "npppy_tunnels", tunnel="LAC", protocol="l2tp") == 4
    assert value(samples, "npppy_tunnels", tunnel="VPN", protocol="pptp") == 5
    assert value(samples, "npppy_tunnel_calls", tunnel="VPN", protocol="pptp") == 0
    assert value(samples, "npppy_admission_closed") == 1
    assert value(samples, "npppy_admission_closures_total") == 6
    assert value(samples, "npppy_admission_waiting") == 11
    assert value(samples, "npppy_pipex_packets_total", path="stack", direction="up") == 100
    assert value(samples, "npppy_pipex_bytes_total", path="fast", direction="down") == 300
    assert value(samples, "npppy_pipex_bytes_total", path="python", direction="up") == 50
    assert value(samples, "npppy_pipex_packets_total", path="python", direction="down") == 7
    assert value(samples, "npppy_pipex_drops_total", reason="filter") == 1
    assert value(samples, "npppy_pipex_punts_total", reason="control") == 2
    assert value(samples, "npppy_pipex_punts_total", reason="user_up") == 5
    assert value(samples, "npppy_pipex_events_total", event="tx_fail") == 4
    assert value(samples, "npppy_pipex_map_bytes", map="sessions") == 4096
    assert value(samples, "npppy_pipex_sessions_max") == 1024
    assert value(samples, "npppy_control_connections") == 2
    python = ".".join(map(str, sys.version_info[:3]))
    assert value(samples, "npppy_build_info", version=__version__, python=python) == 1


def test_the_process() -> None:
    told = Parts(Rig().engine).metrics()
    before = read(told.totals())
    assert 1e6 < value(before, "process_resident_memory_bytes") < value(before, "process_virtual_memory_bytes")
    assert 1e9 < value(before, "process_start_time_seconds") < 1e10
    assert value(before, "process_cpu_seconds_total") <= value(read(told.totals()), "process_cpu_seconds_total")


def test_lag_is_a_histogram() -> None:
    told = Parts(Rig().engine).metrics()
    for seconds in (0.0, 0.001, 0.0011, 0.3, 7.0):
        told.lag.observe(seconds)
    samples = read(told.totals())
    counts = [value(samples, "npppy_loop_lag_seconds_bucket", le=le) for le in ("0.001", "0.002", "0.2", "0.5", "+Inf")]
    assert counts == [2, 3, 3, 4, 5]
    assert value(samples, "npppy_loop_lag_seconds_count") == 5
    assert value(samples, "npppy_loop_lag_seconds_sum") == pytest.approx(7.3021)
    assert list(Histogram.BOUNDS) == sorted(Histogram.BOUNDS)


def test_answers_are_counted() -> None:
    told = Parts(Rig().engine).metrics()
    for path, status in (("/metrics", 200), ("/metrics", 200), ("", 404)):
        told.answered(path, status)
    told.full()
    samples = read(told.totals())
    assert value(samples, "npppy_scrapes_total", path="/metrics", status="200") == 2
    assert value(samples, "npppy_scrapes_total", path="", status="404") == 1
    assert value(samples, "npppy_scrape_connections_refused_total") == 1


class Carried:
    """A flow, as far as this asks of it."""

    def __init__(self, packets: int) -> None:
        self.packets = packets
        self.carried = bool(packets % 2)

    def by_python(self) -> Counters:
        return Counters(in_packets=self.packets, in_bytes=10 * self.packets)


def test_what_python_carries_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ends while all are looked at is in neither, this time."""
    monkeypatch.setattr(metrics, "UserFlow", Carried)
    rig = Rig()
    parts = Parts(rig.engine)
    told = parts.metrics()
    flows = [SimpleNamespace(flow=Carried(count)) for count in (3, 4, 6)]
    rig.engine.sessions = dict(enumerate(flows))  # type: ignore[arg-type]

    def python() -> tuple[float, ...]:
        samples = read(told.totals())
        return tuple(value(samples, f"npppy_pipex_{what}_total", **UP) for what in ("packets", "bytes"))

    assert python() == (13, 130)
    samples = read(told.totals())
    assert value(samples, "npppy_pipex_sessions", carrier="kernel") == 1
    assert value(samples, "npppy_pipex_sessions", carrier="python") == 2
    del rig.engine.sessions[1]
    assert python() == (13, 130)
    parts.state = replace(parts.state, closed=Counters(in_packets=4, in_bytes=40))
    flows[0].flow.packets = 5
    assert python() == (15, 150)


# Single sessions.


class Stub(SimpleNamespace):
    """A session at rest."""


def many(count: int, user: str = "user{}") -> dict[int, Any]:
    link = SimpleNamespace(caller=SimpleNamespace(text="02:00:00:00:00:01"))
    tunnel = SimpleNamespace(name="ACCESS", protocol=SimpleNamespace(value="pppoe"))
    return {
        number: Stub(
            id=number,
            phase=Phase.UP,
            up_since=990.5,
            username=user.format(number),
            profile=SimpleNamespace(username=""),
            realm=SimpleNamespace(name="LOCAL"),
            tunnel=tunnel,
            call=SimpleNamespace(link=link),
            ip=f"10.0.{number >> 8}.{number & 255}",
            flow=None,
            counters=lambda number=number: Counters(number, 2, 3, 4, 5, 2**63 + number),
        )
        for number in range(count)
    }


def page(sessions: dict[int, Any]) -> tuple[Rig, Metrics]:
    rig = Rig()
    rig.engine.sessions = sessions
    return rig, Parts(rig.engine).metrics()


def test_a_session_has_its_numbers() -> None:
    pair, told = dial()
    assert read(told.sessions()) == {}
    assert pair.run(60, until=lambda: pair.both_up)
    pair.check_up()
    text = "".join(told.sessions())
    samples = read(text)
    expected = {"user": "alice", "realm": "LOCAL", "tunnel": "PPPOE", "protocol": "pppoe", "address": pair.session.ip}
    assert value(samples, "npppy_session_info", id="0", **expected, **{"from": "02:00:00:00:00:01"}) == 1
    counters = pair.session.counters()
    for name in Counters._fields:
        assert value(samples, f"npppy_session_{name}_total", id="0") == getattr(counters, name)
    assert counters.in_packets == 1
    assert value(samples, "npppy_session_uptime_seconds", id="0") == pytest.approx(1000 - (pair.session.up_since or 0))


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1234])
def test_sessions_are_whole_at_the_ends_of_pieces(count: int) -> None:
    _, told = page(many(count))
    samples = read(told.sessions())
    assert len(samples) == 8 * count
    for number in range(count):
        assert value(samples, "npppy_session_in_bytes_total", id=str(number)) == number
        assert value(samples, "npppy_session_out_packets_total", id=str(number)) == 5
        assert value(samples, "npppy_session_uptime_seconds", id=str(number)) == 9.5


def test_large_counters_are_exact() -> None:
    _, told = page(many(3))
    assert f'npppy_session_out_errors_total{{id="2"}} {2**63 + 2}\n' in "".join(told.sessions())


def test_only_sessions_that_are_up() -> None:
    sessions = many(3)
    sessions[0].up_since = None
    sessions[1].phase = Phase.TERMINATE
    _, told = page(sessions)
    assert {dict(labels)["id"] for _, labels in read(told.sessions())} == {"2"}


def test_sessions_may_come_and_go_meanwhile() -> None:
    rig, told = page(many(1500))
    text = ""
    for number, piece in enumerate(told.sessions()):
        text += piece
        rig.engine.sessions.pop(1499 - number, None)
        rig.engine.sessions[9000 + number] = None  # type: ignore[assignment]
    assert len(read(text)) == 8 * 1500


def test_no_piece_is_large() -> None:
    _, told = page(many(3000))
    pieces = list(told.sessions())
    assert max(map(len, pieces)) < 65536
    assert len(pieces) > 3000 / metrics.READ + 8 * 3000 / metrics.LINES
    # That of the daemon has a piece for so many sessions, too.
    assert len(list(told.totals())) > 3000 / metrics.LINES


# The format.


@pytest.mark.parametrize(
    "name", ["plain", 'a"b', "a\\b", "a\nb", "\\n", "naïve", "日本", "a}b{c=", "\x00\x1b\r\t", " # HELP ", "\x85\u2028"]
)
def test_any_name_comes_through(name: str) -> None:
    samples = read(str(Family("npppy_x", "gauge", "About.").add(1, user=name)))
    assert samples == {("npppy_x", (("user", name),)): 1}
    _, told = page(many(1, name.replace("{", "{{").replace("}", "}}")))
    users = [dict(labels)["user"] for sample, labels in read(told.sessions()) if sample == "npppy_session_info"]
    assert users == [name]


def test_octets_that_are_not_utf8() -> None:
    assert escape("a\udcffb\udc80") == "a?b?"


def test_no_secret_is_told(full: Parts) -> None:
    pair, _ = dial()
    assert pair.run(60, until=lambda: pair.both_up)
    full.engine = pair.rig.engine
    told = full.metrics()
    assert "wonderland" not in "".join(told.totals()) + "".join(told.sessions())


def test_promtool_has_nothing_to_say(full: Parts) -> None:
    told = full.metrics()
    told.answered("/metrics", 200)
    pair, others = dial(user="mallory")
    assert pair.run(60, until=lambda: pair.both_dead)
    promtool("check", "metrics", page="".join(told.totals()))
    promtool("check", "metrics", page="".join(others.totals()))
    _, sessions = page(many(20))
    promtool("check", "metrics", page="".join(sessions.sessions()))


def test_promtool_takes_the_example() -> None:
    promtool("check", "config", str(CONF / "prometheus.yml"))


# The manual.


def test_every_metric_is_in_the_manual(full: Parts) -> None:
    pair, told = dial()
    assert pair.run(60, until=lambda: pair.both_up)
    texts = "".join(told.sessions())
    told.answered("/metrics", 200)
    pair.session.end(Cause.ADMIN_RESET, "", pair.rig.now)
    full.engine.failed["X", pair.rig.tunnel.protocol, Cause.USER_ERROR] += 1
    full.engine.refused[""] += 1
    full.engine.malformed["x"] += 1
    texts += "".join(full.metrics().totals()) + "".join(told.totals())
    manual = (CONF / "npppyd.8").read_text()
    section = manual[manual.index(".Sh METRICS") :].partition(".Sh LOG LINES")[0]
    words = set(re.findall(r"[\w*]+", section))
    families = [word[:-1] for word in words if word.endswith("_*")]
    names = set(re.findall(r"^# TYPE (\S+)", texts, re.MULTILINE))
    assert len(names) > 50
    for name in names:
        family = max((family for family in families if name.startswith(family)), key=len, default="")
        assert name in words or name.removeprefix(family) in words or family == "process_", name
    for word in words:
        if word.startswith("npppy_") and not word.endswith("*"):
            assert word in names, word


def test_the_example_asks_for_what_there_is() -> None:
    text = (CONF / "prometheus.yml").read_text()
    manual = (CONF / "npppyd.8").read_text()
    for name in re.findall(r"npppy_\w+", text):
        known = name.removesuffix("_bucket")
        short = re.sub(r"^npppy_(radius|accounting|pipex)_", "", known)
        assert known in manual or short in manual
    assert "11701" in text


def test_it_hears_of_a_session_for_little() -> None:
    """The listener is told of profiles that change, too, and does nothing then."""
    pair, told = dial()
    assert pair.run(60, until=lambda: pair.both_up)
    session: Session = pair.session
    pair.rig.engine.notify("change", session, pair.rig.now)
    assert value(read(told.totals()), "npppy_sessions_started_total", **OF) == 1
