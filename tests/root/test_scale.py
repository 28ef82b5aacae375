"""Thousands of subscribers at once, by npppysim: they come up, carry data, are listed, go, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from tests.effort import THOROUGH
from tests.peers.lab import OURS, WORLD, Lab, Program, run, until

pytestmark = pytest.mark.root

SESSIONS = 2000
#: Where it is not the number that is looked at.
FEWER = 500
POOL = IPv4Network("10.66.0.0/20")
USERS = "".join(f"user{number}:password=secret{number % 7}:\n" for number in range(1, SESSIONS + 1))
#: A silent subscriber is found out within seconds.
KEEPALIVE = """
    negotiation-timeout 5
    lcp-keepalive yes
    lcp-keepalive-interval 2
    lcp-keepalive-retry-interval 1
    lcp-keepalive-max-retries 2
"""


#: In Python, too, in the long run (make test-full).
MODES = ["user", "ebpf"] if THOROUGH else ["ebpf"]


@pytest.fixture(params=MODES)
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = Lab(tmp_path, os.getpid(), request.param)
    try:
        lab.build()
        yield lab
        for name, log in lab.logs():
            assert "Traceback" not in log, name
            assert " ERROR " not in log, name
    finally:
        lab.close()


class Holdings:
    """What npppyd has open and in use, to be compared with what it had."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        # npppyd has started, but the routes of its pools are made in the next turns.
        until(lambda: str(POOL) in self._look()[1], "all routes are there")
        self.before = self._look()

    def _look(self) -> tuple[list[str], str]:
        kinds = []
        for link in Path(f"/proc/{self.lab.daemon.process.pid}/fd").iterdir():
            # A number may be of another socket now; what kind of file it is, and how many there are, may not differ.
            # One that is closed while we look is not open any more.
            with contextlib.suppress(FileNotFoundError):
                kinds.append(os.readlink(link).partition(":")[0])
        kinds.sort()
        return kinds, run("ip", "-n", self.lab.bng, "route", "show")

    def same(self) -> None:
        # Not Lab.empties(), which tells of each session that is left.
        until(self.lab.is_empty, f"nothing is left of the sessions: {self.lab.status()}")
        until(lambda: self._look() == self.before, f"descriptors and routes as before: {self.before} {self._look()}")
        assert self.lab.sessions(state="any") == []


def simulate(lab: Lab, sessions: int, *options: str) -> Program:
    credentials = lab.where / "credentials"
    credentials.write_text("".join(f"user{n}:secret{n % 7}\n" for n in range(1, SESSIONS + 1)))
    argv = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "sub0", "--report", "json"]
    argv += ["--sessions", str(sessions), "--credentials", str(credentials), *options]
    program = Program("npppysim", lab.sub, argv, lab.where / f"npppysim-{len(lab.programs)}.log")
    lab.programs.append(program)
    return program


@pytest.mark.parametrize("method", ["pap", "chap", "mschapv2"])
def test_two_thousand_sessions(lab: Lab, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    lab.start(f"authentication-method {method}", ipcp=f"pool-address {POOL}", users=USERS)
    holdings = Holdings(lab)
    simulator = simulate(lab, SESSIONS, "--auth", method, "--ping", WORLD, "--hold", "inf")

    def all_up() -> bool:
        assert simulator.running, simulator.log
        # The bare count first: listing them all costs the daemon time that the set-ups need.
        return lab.status()["bound"] == SESSIONS and all(row["out_packets"] for row in lab.sessions())

    until(all_up, f"{SESSIONS} sessions with a ping each")
    rows = lab.sessions()
    assert {row["username"] for row in rows} == {f"user{number}" for number in range(1, SESSIONS + 1)}
    addresses = {IPv4Address(row["address"]) for row in rows}
    assert len(addresses) == len(rows) == SESSIONS
    assert all(address in POOL or str(address).startswith("10.64.0.") for address in addresses)
    assert len({row["tunnel_from"] for row in rows}) == SESSIONS
    assert all((row["in_packets"], row["out_packets"]) == (1, 1) for row in rows)
    # npppyctl shows each of them on a line, under two lines of title.
    assert len(lab.ctl("session", "brief").splitlines()) == SESSIONS + 2

    assert simulator.stop(signal.SIGINT) == 0
    facts = simulator.objects[-1]
    assert facts["up"] == facts["pings"]["answered"] == SESSIONS
    assert not facts["lost"]
    assert not facts["malformed"]
    holdings.same()
    with capsys.disabled():
        print(f"\n{SESSIONS} sessions, {method}: {facts['rate']:.0f} set-ups/s")


@pytest.mark.parametrize("way", ["padt", "none"])
def test_subscribers_that_do_not_say_goodbye(lab: Lab, way: str) -> None:
    """A PADT ends a session at once; those that fall silent are found by LCP echoes."""
    lab.start(KEEPALIVE, ipcp=f"pool-address {POOL}", users=USERS)
    holdings = Holdings(lab)
    simulator = simulate(lab, FEWER, "--auth", "chap", "--terminate", way)
    assert simulator.exits() == 0
    assert simulator.objects[-1]["up"] == FEWER
    holdings.same()
    cause = {"padt": "User-Request", "none": "Lost-Carrier"}[way]
    assert len(re.findall(rf"TUNNELUSAGE .* cause={cause} ", lab.daemon.log)) == FEWER


def test_all_are_cleared(lab: Lab) -> None:
    """npppyctl clear all: every subscriber hears of it."""
    lab.start(ipcp=f"pool-address {POOL}", users=USERS)
    holdings = Holdings(lab)
    simulator = simulate(lab, FEWER, "--auth", "chap", "--hold", "inf")
    until(lambda: lab.status()["bound"] == FEWER and len(lab.sessions()) == FEWER, "all sessions are up")
    assert f"{FEWER} sessions" in lab.ctl("clear", "all")
    assert simulator.exits() == 0
    assert sum(simulator.objects[-1]["lost"].values()) == FEWER
    holdings.same()


def test_many_reconnect_at_once(lab: Lab) -> None:
    """Half of the set-ups are cut short by a second wave of the same hosts, as after a power cut."""
    lab.start(KEEPALIVE, ipcp=f"pool-address {POOL}", users=USERS)
    holdings = Holdings(lab)
    first = simulate(lab, FEWER, "--auth", "mschapv2", "--hold", "inf")
    until(lambda: lab.status()["bound"] >= FEWER // 2, "half of them are up")
    first.kill()
    second = simulate(lab, FEWER, "--auth", "mschapv2", "--ping", OURS)
    assert second.exits() == 0, second.log
    assert second.objects[-1]["up"] == FEWER
    holdings.same()
