"""npppysim as a LAC, on real sockets against npppyd: its options, and thousands of calls."""

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
from tests.peers.l2tp_lab import LAC, LNS, LNS6, L2tpLab
from tests.peers.lab import OURS, WORLD, Program, run, until
from tests.root.test_sim import said_goodbye

pytestmark = pytest.mark.root

SESSIONS = some(5000, 5)
USERS = "".join(f"user{number}:password=secret{number % 7}:\n" for number in range(1, SESSIONS + 1))
POOL = "pool-address 10.66.0.0/18"
#: An LNS takes few tunnels of one address at a time, unless it is told to.
MANY = "l2tp-half-open-peer-limit 1024"


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[L2tpLab]:
    lab = L2tpLab(tmp_path, os.getpid(), getattr(request, "param", "user"))
    try:
        lab.build()
        yield lab
        lab.is_sound()
        for name, log in lab.logs():
            assert "Traceback" not in log, name
    finally:
        lab.close()


def simulate(lab: L2tpLab, *options: str, server: str = LNS) -> Program:
    credentials = lab.where / "credentials"
    credentials.write_text("".join(f"user{n}:secret{n % 7}\n" for n in range(1, SESSIONS + 1)))
    argv = [sys.executable, "-m", "npppy.sim.main", "l2tp", "--server", server, "--report", "json", "--events"]
    argv += ["--credentials", str(credentials), *options]
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
    spread = Counter(line["peer_tunnel_id"] for line in up)
    assert len(spread) == tunnels
    assert set(spread.values()) == {sessions // tunnels}
    return facts


@pytest.mark.parametrize(("lab", "tunnels"), [("user", 1), ("ebpf", 50)], indirect=["lab"])
@pytest.mark.parametrize(
    ("lns", "options"),
    [
        ("", ""),
        ("", "--sequencing --auth mschapv2"),
        ("l2tp-data-use-seq no", ""),
        ("l2tp-data-use-seq no", "--sequencing"),
        ("l2tp-accept-dialin yes", "--proxy chap"),
        ("l2tp-accept-dialin yes\nauthentication-method pap", "--proxy pap"),
        ("l2tp-accept-dialin yes\nl2tp-force-lcp-renegotiation yes", "--proxy chap"),
        ('l2tp-secret "hush"\nl2tp-hidden-avps yes', "--secret hush --hidden-avps"),
    ],
    ids=str,
)
def test_two_hundred_calls(lab: L2tpLab, lns: str, options: str, tunnels: int) -> None:
    lab.start(f"{MANY}\n{lns}", ipcp=POOL, users=USERS)
    simulator = simulate(lab, "--sessions", "200", "--tunnels", str(tunnels), "--ping", OURS, *options.split())
    all_good(simulator, 200, tunnels)
    by_proxy = " dialin_proxy=yes" in lab.daemon.log
    assert by_proxy == ("--proxy" in options and "renegotiation" not in lns)
    lab.empties()


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
@pytest.mark.parametrize(
    ("tunnels", "sequencing"),
    [
        (1, "no"),
        (500, "yes"),
        pytest.param(1, "yes", marks=pytest.mark.long),
        pytest.param(500, "no", marks=pytest.mark.long),
    ],
)
def test_thousands_of_calls(
    lab: L2tpLab, tunnels: int, sequencing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.start(f"{MANY}\nl2tp-data-use-seq {sequencing}", ipcp=POOL, users=USERS)
    options = ["--sequencing"] if sequencing == "yes" else []
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
    assert simulator.stop(signal.SIGINT) == 0
    facts = all_good(simulator, SESSIONS, tunnels)
    lab.empties()
    with capsys.disabled():
        print(f"\n{SESSIONS} calls, {tunnels} tunnels, sequencing {sequencing}: {facts['rate']:.0f} set-ups/s")


def test_subscribers_on_their_own(lab: L2tpLab) -> None:
    """Each has a tunnel and a port of its own, as behind a NAT; and several addresses."""
    other = "198.51.100.3"
    lab.ip(lab.sub, f"address add {other}/24 dev sub0")
    lab.start(MANY, ipcp=POOL, users=USERS)
    options = ("--sessions", "40", "--tunnels", "40", "--ping", OURS, "--hold", "inf")
    simulator = simulate(lab, *options, "--ports", "distinct", "--bind", LAC, "--bind", other)
    until(lambda: len(ups(simulator)) == 40, "all are up")
    rows = lab.sessions()
    assert len({row["tunnel_from"] for row in rows}) == 40
    hosts, ports = zip(*(row["tunnel_from"].split(":") for row in rows), strict=True)
    assert Counter(hosts) == {LAC: 20, other: 20}
    assert set(map(int, ports)) == {line["local_port"] for line in ups(simulator)}
    assert simulator.stop() == 0
    lab.empties()


def test_ipv6_and_a_port_that_is_chosen(lab: L2tpLab) -> None:
    lab.rewrite(listen=f"{LNS6} port 1702")
    (lab.where / "npppd-users").write_text(USERS)
    (lab.where / "npppd-users").chmod(0o600)
    lab.start_again()
    options = ("--sessions", "20", "--tunnels", "2", "--ping", OURS, "--calling-number", "n%d", "--called-number", "0")
    simulator = simulate(lab, *options, "--bind", "[2001:db8::2]:1701", server=f"[{LNS6}]:1702")
    all_good(simulator, 20, 2)
    assert {line["local_port"] for line in ups(simulator)} == {1701}
    lab.empties()


def test_a_tun_device(lab: L2tpLab) -> None:
    lab.start(users=USERS)
    simulator = simulate(lab, "--tun", "--hold", "inf")
    (line,) = until(lambda: ups(simulator), "it is up")
    lab.ping(lab.sub, WORLD, "-I", line["address"])
    assert simulator.stop() == 0
    assert "from 10." not in run("ip", "-n", lab.sub, "rule", "show")


#: A silent subscriber is found out within seconds.
KEEPALIVE = """
    lcp-timeout 1
    lcp-keepalive yes
    lcp-keepalive-interval 1
    lcp-keepalive-retry-interval 1
    lcp-keepalive-max-retries 1
"""


@pytest.mark.parametrize(
    ("way", "reason"), [("lcp", "the peer terminated LCP"), ("cdn", "CDN received"), ("none", "no answer to 1 LCP ")]
)
def test_ways_to_go(lab: L2tpLab, way: str, reason: str) -> None:
    lab.start(KEEPALIVE, users=USERS)
    assert simulate(lab, "--sessions", "30", "--tunnels", "3", "--terminate", way).exits() == 0
    lab.hung_up()
    assert len(re.findall(rf'TUNNELUSAGE .* reason="{reason}', lab.daemon.log)) == 30


def test_an_lns_that_ends_takes_the_calls_along(lab: L2tpLab) -> None:
    lab.start(users=USERS)
    simulator = simulate(lab, "--sessions", "30", "--tunnels", "3", "--hold", "inf")
    until(lambda: len(ups(simulator)) == 30, "all are up")
    lab.daemon.stop()
    assert simulator.exits() == 0
    assert sum(simulator.objects[-1]["lost"].values()) == 30


def test_the_second_signal_does_not_wait(lab: L2tpLab) -> None:
    lab.start(users=USERS)
    simulator = simulate(lab, "--sessions", "5", "--hold", "inf")
    until(lambda: len(ups(simulator)) == 5, "five are up")
    lab.daemon.send(signal.SIGSTOP)
    assert said_goodbye(lab, simulator) == 5
    lab.daemon.send(signal.SIGCONT)
