"""npppyd as Prometheus sees it: its pages against npppyctl's account, a server of Debian's that asks, and reloads."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.ebpf.maps import default_pins
from tests.root.test_daemon import CONFIG, PATIENCE, Npppyd, links, wait_for
from tests.unit.metrics_rig import Samples, read, value

pytestmark = pytest.mark.root

__all__ = ["links"]

HERE = "127.0.0.1"
PORT = 11701
LISTEN = f"metrics-listen {HERE}\n"
SESSIONS = 20
OF = {"tunnel": "ACCESS", "protocol": "pppoe", "realm": "LOCAL"}
EXAMPLE = Path(__file__).parents[2] / "conf" / "prometheus.yml"
#: Where it serves its own answers.
SERVER = 19090


@pytest.fixture(params=["user", "ebpf"])
def npppyd(links: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Npppyd]:
    daemon = Npppyd(tmp_path, request.param)
    daemon.write(LISTEN + CONFIG)
    try:
        yield daemon
        assert not daemon.logged("Traceback")
    finally:
        end(daemon.process)
        shutil.rmtree(default_pins(str(daemon.socket)), ignore_errors=True)


def end(process: subprocess.Popen[Any] | None) -> None:
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()


@contextmanager
def dialled(npppyd: Npppyd) -> Iterator[None]:
    """Subscribers that are up, and have pinged npppyd; at the end they go with a PADT."""
    command = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "cpe", "--sessions", str(SESSIONS)]
    command += ["--user", "alice", "--password", "wonderland", "--hold", "inf", "--ping", "10.64.0.1"]
    process = subprocess.Popen([*command, "--terminate", "padt"], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: [row["out_packets"] for row in rows(npppyd)] == [1] * SESSIONS, "all are answered")
        yield
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    finally:
        end(process)


def rows(npppyd: Npppyd) -> list[dict[str, Any]]:
    return [json.loads(line) for line in npppyd.ctl("-j session all").stdout.splitlines()]


def get(path: str, host: str = HERE, port: int = PORT) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
        return answer.read().decode()
    finally:
        connection.close()


def totals() -> Samples:
    return read(get("/metrics"))


def check(text: str) -> None:
    """promtool has nothing to say."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def refused(port: int = PORT) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((HERE, port)) != 0


def test_sessions_are_told_as_npppyctl_has_them(npppyd: Npppyd) -> None:
    npppyd.start()
    assert value(totals(), "npppy_sessions", **OF) == 0
    with dialled(npppyd):
        page = get("/metrics")
        check(page)
        samples = read(page)
        assert value(samples, "npppy_sessions", **OF) == SESSIONS
        assert value(samples, "npppy_sessions_started_total", **OF) == SESSIONS
        assert value(samples, "npppy_pool_addresses", pool="POOL") == 255
        assert value(samples, "npppy_pool_addresses_used", pool="POOL") == SESSIONS
        kernel = SESSIONS if npppyd.pipex == "ebpf" else 0
        assert value(samples, "npppy_pipex_sessions", carrier="kernel") == kernel
        assert value(samples, "npppy_pipex_sessions", carrier="python") == SESSIONS - kernel
        assert value(samples, "npppy_build_info", **version()) == 1
        assert carried(samples) == SESSIONS

        page = get("/sessions")
        check(page)
        samples = read(page)
        for row in rows(npppyd):
            session = {"id": str(row["ppp_id"])}
            for name in ("in_bytes", "in_packets", "in_errors", "out_bytes", "out_packets", "out_errors"):
                assert value(samples, f"npppy_session_{name}_total", **session) == row[name]
            assert row["in_packets"] == row["out_packets"] == 1
            assert 0 <= value(samples, "npppy_session_uptime_seconds", **session) <= row["duration"]
            where = {"address": row["address"], "from": row["tunnel_from"]}
            assert value(samples, "npppy_session_info", **session, user="alice", **OF, **where) == 1
        assert len(samples) == 8 * SESSIONS
        assert "wonderland" not in page

    wait_for(lambda: value(totals(), "npppy_sessions", **OF) == 0, "they have gone")
    samples = totals()
    assert value(samples, "npppy_sessions_started_total", **OF) == SESSIONS
    assert value(samples, "npppy_sessions_ended_total", **OF, cause="User-Request") == SESSIONS
    # What they have moved is not forgotten with them.
    assert carried(samples) == SESSIONS
    assert read(get("/sessions")) == {}


def carried(samples: Samples) -> float:
    """Packets from subscribers: some may have come before the kernel had their session."""
    return sum(
        count
        for (name, labels), count in samples.items()
        if name == "npppy_pipex_packets_total" and ("direction", "up") in labels
    )


def version() -> dict[str, str]:
    from npppy import __version__

    return {"version": __version__, "python": ".".join(map(str, sys.version_info[:3]))}


def test_logins_that_are_refused(npppyd: Npppyd) -> None:
    npppyd.start()
    command = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "cpe", "--user", "alice"]
    subprocess.run([*command, "--password", "wrong", "--sessions", "3"], capture_output=True, timeout=PATIENCE)
    samples = totals()
    assert value(samples, "npppy_logins_refused_total", realm="LOCAL") == 3
    failed = [count for (name, _), count in samples.items() if name == "npppy_sessions_failed_total"]
    assert failed == [3]


def test_a_reload_moves_it(npppyd: Npppyd) -> None:
    npppyd.start()
    assert totals()
    npppyd.reload(f"metrics-listen {HERE}:11702\nmetrics-listen [::1]\n{CONFIG}")
    assert refused()
    assert read(get("/metrics", port=11702))
    assert read(get("/metrics", host="::1"))
    # Nobody has this address.
    npppyd.reload(f"metrics-listen 192.0.2.200\n{LISTEN}{CONFIG}")
    assert npppyd.logged("metrics-listen: cannot listen on 192.0.2.200:11701: Cannot assign requested address")
    assert totals()
    npppyd.reload(CONFIG)
    assert refused()
    assert npppyd.answers()


def test_it_does_not_start_where_it_cannot_listen(npppyd: Npppyd) -> None:
    with socket.create_server((HERE, PORT)):
        npppyd.start()
        assert npppyd.stop() == 1
    assert npppyd.logged(f"npppyd: metrics-listen: cannot listen on {HERE}:{PORT}: Address already in use")


def test_slow_and_silent_clients_are_nothing_to_others(npppyd: Npppyd) -> None:
    npppyd.start()
    with dialled(npppyd):
        clients = []
        for number in range(60):
            client = socket.create_connection((HERE, PORT))
            clients.append(client)
            # One half says nothing, the other asks and reads nothing.
            if number % 2:
                client.sendall(b"GET /sessions HTTP/1.1\r\nHost: a\r\n\r\n")
        samples = totals()
        assert value(samples, "npppy_scrape_connections_refused_total") > 0
        assert npppyd.answers()
        for client in clients:
            client.close()
    assert npppyd.stop() == 0


def query(text: str) -> list[dict[str, Any]]:
    path = "/api/v1/query?" + urllib.parse.urlencode({"query": text})
    connection = http.client.HTTPConnection(HERE, SERVER, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = json.load(connection.getresponse())
    finally:
        connection.close()
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def ready() -> bool:
    try:
        return query("vector(1)") != []
    except (OSError, http.client.HTTPException, ValueError):
        return False


@pytest.mark.parametrize("npppyd", ["ebpf"], indirect=True)
def test_prometheus_with_our_example(npppyd: Npppyd, tmp_path: Path) -> None:
    npppyd.start()
    config = tmp_path / "prometheus.yml"
    config.write_text(re.sub(r"(?m)^(    scrape_(?:interval|timeout)): .*$", r"\1: 1s", EXAMPLE.read_text()))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with dialled(npppyd), (tmp_path / "prometheus.log").open("wb") as log:
        server = subprocess.Popen([*command, f"--web.listen-address={HERE}:{SERVER}"], stdout=log, stderr=log)
        try:
            wait_for(ready, "Prometheus answers")
            wait_for(lambda: len(query("up == 1")) == 2, "it has asked for both pages")
            ((_, up),) = [result["value"] for result in query("sum by (tunnel) (npppy_sessions)")]
            assert int(up) == SESSIONS
            assert len(query("npppy_session_in_bytes_total > 0")) == SESSIONS
            # The questions of the example are such as it understands.
            questions = re.findall(r"^#   (.+?)(?:  +\S.*)?$", EXAMPLE.read_text(), re.MULTILINE)
            assert len(questions) == 7
            for question in questions:
                assert isinstance(query(question), list)
            joined = "npppy_session_out_bytes_total * on (instance, id) group_left (user) npppy_session_info"
            assert {result["metric"]["user"] for result in query(joined)} == {"alice"}
        finally:
            end(server)
