"""npppysim as PPTP clients, on real sockets against npppyd: its options, and thousands of calls with their GRE."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.effort import some
from tests.peers.lab import OURS, WORLD, Program, run, until
from tests.peers.pptp_lab import PAC as CLIENT
from tests.peers.pptp_lab import PNS as SERVER
from tests.peers.pptp_lab import PptpLab

pytestmark = pytest.mark.root

SESSIONS = some(5000, 5)
USERS = "".join(f"user{number}:password=secret{number % 7}:\n" for number in range(1, SESSIONS + 1))
POOL = "pool-address 10.66.0.0/18"
#: A server takes so many connections of one address, unless it is told to take more.
MANY = "pptp-peer-limit 0\npptp-half-open-limit 65535"


class SimLab(PptpLab):
    """Without pptp-linux, which alone would write to syslog."""

    def _collect(self) -> None:
        (self.where / "syslog").touch()


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SimLab]:
    lab = SimLab(tmp_path, os.getpid(), getattr(request, "param", "user"))
    try:
        lab.build()
        yield lab
        lab.is_sound()
        for name, log in lab.logs():
            assert "Traceback" not in log, name
    finally:
        lab.close()


def simulate(lab: SimLab, *options: str, first: int = 1) -> Program:
    credentials = lab.where / f"credentials-{first}"
    credentials.write_text("".join(f"user{n}:secret{n % 7}\n" for n in range(first, SESSIONS + 1)))
    argv = [sys.executable, "-m", "npppy.sim.main", "pptp", "--server", SERVER, "--report", "json", "--events"]
    argv += ["--credentials", str(credentials), "--first", str(first), *options]
    program = Program("npppysim", lab.sub, argv, lab.where / f"npppysim-{len(lab.programs)}.log")
    lab.programs.append(program)
    return program


def ups(program: Program) -> list[dict[str, Any]]:
    return [line for line in program.objects if line.get("event") == "up"]


def all_good(simulator: Program, sessions: int, tunnels: int) -> dict[str, Any]:
    """All came up, pinged and went; returns the summary."""
    assert simulator.exits() == 0, simulator.log
    facts = simulator.objects[-1]
    assert facts["up"] == facts["pings"]["sent"] == facts["pings"]["answered"] == sessions
    assert not facts["lost"]
    assert not facts["malformed"]
    assert not facts["drops"]
    up = ups(simulator)
    assert len({line["address"] for line in up}) == sessions
    assert len({line["peer_call_id"] for line in up}) == sessions
    spread = Counter(line["local_port"] for line in up)
    assert len(spread) == tunnels
    assert set(spread.values()) == {sessions // tunnels}
    return facts


@pytest.mark.parametrize(("lab", "tunnels"), [("user", 1), ("ebpf", 200)], indirect=["lab"])
@pytest.mark.parametrize(
    ("server", "options", "mppe"),
    [
        ("mppe no", "", None),
        ("mppe no", "--auth chap,pap --mppe no", None),
        ("", "", "128bits,stateless"),
        ("mppe-key-length 40", "--mppe required", "40bits,stateless"),
        ("", "--mppe-key-length 56 --mppe-key-state stateful", "56bits,stateful"),
        ("pptp-data-reorder 8\npptp-send-window yes", "--receive-window 3", "128bits,stateless"),
    ],
    ids=str,
)
def test_two_hundred_calls(lab: SimLab, server: str, options: str, mppe: str | None, tunnels: int) -> None:
    lab.start(f"{MANY}\n{server}", ipcp=POOL, users=USERS)
    simulator = simulate(lab, "--sessions", "200", "--tunnels", str(tunnels), "--ping", OURS, *options.split())
    all_good(simulator, 200, tunnels)
    assert {line["mppe"] for line in ups(simulator)} == {mppe}
    lab.empties()


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
@pytest.mark.parametrize(("tunnels", "mppe"), [(SESSIONS, "no"), (500, "required")])
def test_thousands_of_calls(lab: SimLab, tunnels: int, mppe: str, capsys: pytest.CaptureFixture[str]) -> None:
    lab.start(f"{MANY}\nmppe {mppe}", ipcp=POOL, users=USERS)
    options = ["--mppe", mppe, *([] if mppe == "required" else ["--auth", "chap"])]
    simulator = simulate(
        lab, "--sessions", str(SESSIONS), "--tunnels", str(tunnels), "--ping", WORLD, "--hold", "inf", *options
    )

    def all_up() -> bool:
        assert simulator.running, simulator.log
        return lab.status()["bound"] == SESSIONS

    until(all_up, f"{SESSIONS} sessions")
    until(lambda: len(ups(simulator)) == SESSIONS, "npppysim knows of them")
    rows = lab.sessions()
    assert {row["username"] for row in rows} == {f"user{number}" for number in range(1, SESSIONS + 1)}
    assert {row["address"] for row in rows} == {line["address"] for line in ups(simulator)}
    assert lab.entries()["sessions"] == SESSIONS
    # It has carried the pings, but for those that were quicker than npppyd's word to the kernel.
    paths = lab.paths()
    assert min(paths[f"{lab.way}_UP"], paths[f"{lab.way}_DOWN"]) > SESSIONS // 2
    assert simulator.stop(signal.SIGINT) == 0
    facts = all_good(simulator, SESSIONS, tunnels)
    assert {line["mppe"] for line in ups(simulator)} == {None if mppe == "no" else "128bits,stateless"}
    lab.empties()
    with capsys.disabled():
        print(f"\n{SESSIONS} calls, {tunnels} connections, mppe {mppe}: {facts['rate']:.0f} set-ups/s")


@pytest.mark.parametrize("lab", ["user", "ebpf"], indirect=True)
def test_clients_behind_one_address(lab: SimLab) -> None:
    """Two simulators, as if behind a NAT, and a third of another address; call ids keep all that is theirs apart."""
    other = "198.51.100.3"
    lab.ip(lab.sub, f"address add {other}/24 dev sub0")
    lab.start("", ipcp=POOL, users=USERS)
    options = ("--sessions", "40", "--ping", OURS, "--ping-count", "5", "--ping-interval", "0.1", "--hold", "inf")
    simulators = [simulate(lab, *options, first=first) for first in (1, 101)]
    simulators.append(simulate(lab, *options, "--bind", CLIENT, "--bind", other, first=201))
    until(lambda: all(len(ups(simulator)) == 40 for simulator in simulators), "all are up")
    hosts = Counter(row["tunnel_from"].split(":")[0] for row in lab.sessions())
    assert hosts == {CLIENT: 100, other: 20}
    until(lambda: all(row["in_packets"] == 5 for row in lab.sessions()), "all have sent their pings")
    for simulator in simulators:
        assert simulator.stop(signal.SIGINT) == 0, simulator.log
        facts = simulator.objects[-1]
        assert facts["pings"]["answered"] == 200
        # Each sees what is for the others.
        assert set(facts["drops"]) <= {"session"}
    lab.empties()


def test_several_addresses_and_ports(lab: SimLab) -> None:
    """One of them takes in another."""
    lab.rewrite(listen=f"0.0.0.0,{SERVER},{SERVER} port 1724")
    (lab.where / "npppd-users").write_text(USERS)
    (lab.where / "npppd-users").chmod(0o600)
    lab.start_again()
    other = "198.51.100.4"
    lab.ip(lab.bng, f"address add {other}/24 dev eth1")
    for server in (SERVER, f"{SERVER}:1724", other):
        simulator = simulate(lab, "--server", server, "--sessions", "2", "--ping", OURS)
        all_good(simulator, 2, 2)
        assert {line["concentrator"].partition(":")[0] for line in ups(simulator)} == {server.partition(":")[0]}
    lab.empties()


def test_a_tun_device(lab: SimLab) -> None:
    lab.start(users=USERS)
    simulator = simulate(lab, "--tun", "--hold", "inf")
    (line,) = until(lambda: ups(simulator), "it is up")
    assert line["mppe"] == "128bits,stateless"
    lab.ping(lab.sub, WORLD, "-I", line["address"], "-s", "1372")
    assert simulator.stop() == 0
    assert "from 10." not in run("ip", "-n", lab.sub, "rule", "show")


@pytest.mark.parametrize(
    ("way", "reason"),
    [("lcp", "the peer terminated LCP"), ("clear", "Call-Clear-Request received"), ("none", "")],
)
def test_ways_to_go(lab: SimLab, way: str, reason: str) -> None:
    lab.start(users=USERS)
    assert simulate(lab, "--sessions", "30", "--tunnels", "3", "--terminate", way).exits() == 0
    lab.empties()
    assert len(re.findall(rf'TUNNELUSAGE .* reason="{reason}', lab.daemon.log)) == 30


def test_a_server_that_ends_takes_the_calls_along(lab: SimLab) -> None:
    lab.start(users=USERS)
    simulator = simulate(lab, "--sessions", "30", "--tunnels", "3", "--hold", "inf")
    until(lambda: len(ups(simulator)) == 30, "all are up")
    lab.daemon.stop()
    assert simulator.exits() == 0
    assert sum(simulator.objects[-1]["lost"].values()) == 30


def test_a_server_that_is_killed(lab: SimLab) -> None:
    lab.start(users=USERS)
    simulator = simulate(lab, "--sessions", "30", "--hold", "inf")
    until(lambda: len(ups(simulator)) == 30, "all are up")
    lab.daemon.kill()
    assert simulator.exits() == 0
    assert sum(simulator.objects[-1]["lost"].values()) == 30


def test_nobody_is_there(lab: SimLab) -> None:
    lab.start(users=USERS)
    simulator = simulate(lab, "--sessions", "3", "--server", f"{SERVER}:1724")
    assert simulator.exits() == 1
    assert simulator.objects[-1]["failed"] == {"Connection refused": 3}
