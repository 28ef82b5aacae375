"""The shape of npppysim's load, on real sockets against npppyd: several processes, churn, power cuts, redialling."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.effort import THOROUGH
from tests.peers.l2tp_lab import LNS, L2tpLab
from tests.peers.lab import OURS, PATIENCE, QUICK, Lab, Program, until
from tests.peers.pptp_lab import PNS, PptpLab

pytestmark = pytest.mark.root

SESSIONS = 200
USERS = "".join(f"user{number}:password=secret:\n" for number in range(1, SESSIONS + 1))
POOL = "pool-address 10.66.0.0/18"
#: Sessions of before a power cut are found out within seconds.
KEEPALIVE = f"""
    lcp-keepalive yes
    lcp-keepalive-interval 2
    lcp-keepalive-retry-interval 1
    lcp-keepalive-max-retries 2
    {QUICK}
"""


class SimLab(PptpLab):
    """Without pptp-linux, which alone would write to syslog."""

    def _collect(self) -> None:
        (self.where / "syslog").touch()


#: The lab of a carrier, what npppyd is told for it, and whom npppysim dials.
LABS: dict[str, tuple[type[Lab], str, tuple[str, ...]]] = {
    "pppoe": (Lab, "", ("--interface", "sub0")),
    "l2tp": (L2tpLab, "", ("--server", LNS, "--tunnels", "4")),
    "pptp": (SimLab, "pptp-peer-limit 0", ("--server", PNS)),
}
EVERY = pytest.mark.parametrize("lab", LABS, indirect=True)


@pytest.fixture(params=["pppoe"])
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = LABS[request.param][0](tmp_path, os.getpid(), "user" if request.param == "pptp" else "ebpf")
    try:
        lab.build()
        yield lab
        lab.is_sound()
        for name, log in lab.logs():
            assert "Traceback" not in log, name
    finally:
        lab.close()


def carrier(lab: Lab) -> str:
    return next(name for name, (kind, _, _) in LABS.items() if type(lab) is kind)


def start(lab: Lab, more: str = "") -> None:
    lab.start(f"{LABS[carrier(lab)][1]}\n{more}", ipcp=POOL, users=USERS)


def simulate(lab: Lab, *options: str) -> Program:
    name = carrier(lab)
    argv = [sys.executable, "-m", "npppy.sim.main", name, *LABS[name][2], "--report", "json", "--events"]
    argv += ["--sessions", str(SESSIONS), "--password", "secret", *options]
    program = Program("npppysim", lab.sub, argv, lab.where / f"npppysim-{len(lab.programs)}.log")
    lab.programs.append(program)
    return program


def events(program: Program, kind: str) -> Counter[int]:
    """How many there were of each subscriber."""
    return Counter(line["number"] for line in program.objects if line.get("event") == kind)


def children(program: Program) -> list[int]:
    pid = program.process.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def all_gone(lab: Lab) -> None:
    """npppyd has found out what it was not told; a tunnel that nobody is at the other end of takes longer."""
    until(lambda: not lab.status()["sessions"], "no sessions are left")
    assert lab.status()["addresses"] == 0


# Several processes.


@EVERY
def test_workers_share_a_load(lab: Lab) -> None:
    start(lab)
    simulator = simulate(lab, "--workers", "3", "--ping", OURS, "--hold", "inf")
    until(lambda: len(events(simulator, "up")) == SESSIONS, "all are up")
    assert len(children(simulator)) == 3
    assert {row["username"] for row in lab.sessions()} == {f"user{n}" for n in range(1, SESSIONS + 1)}
    assert simulator.stop(signal.SIGINT) == 0, simulator.log
    facts = simulator.objects[-1]
    assert facts["up"] == facts["tried"] == facts["held"] == facts["pings"]["answered"] == SESSIONS
    assert not facts["lost"]
    # No process sees what is for the others.
    assert not facts["drops"]
    assert events(simulator, "up") == events(simulator, "down") == Counter(range(1, SESSIONS + 1))
    lab.empties()


def test_workers_hear_nothing_of_others(lab: Lab) -> None:
    """Frames to addresses that a process has not, before its own and behind them, are not for it."""
    start(lab)
    first = simulate(lab, "--sessions", "40", "--hold", "inf", "--ping", OURS)
    second = simulate(
        lab, "--sessions", "40", "--first", "41", "--hold", "inf", "--ping", OURS, "--workers", "2", "--user", "user%d"
    )
    until(lambda: len(events(first, "up")) == len(events(second, "up")) == 40, "all are up")
    for simulator in (first, second):
        assert simulator.stop() == 0
        assert not simulator.objects[-1]["drops"]


def test_a_signal_to_all_of_them_counts_once(lab: Lab) -> None:
    """A terminal sends it to the whole group: they take leave all the same."""
    start(lab)
    simulator = simulate(lab, "--workers", "2", "--hold", "inf")
    until(lambda: len(events(simulator, "up")) == SESSIONS, "all are up")
    for pid in (*children(simulator), simulator.process.pid):
        os.kill(pid, signal.SIGINT)
    assert simulator.exits() == 0
    lab.empties()
    assert len(re.findall(r"TUNNELUSAGE .* cause=User-Request ", lab.daemon.log)) == SESSIONS


def test_a_worker_that_dies_is_the_end_of_all(lab: Lab) -> None:
    start(lab)
    simulator = simulate(lab, "--workers", "3", "--hold", "inf")
    until(lambda: len(events(simulator, "up")) == SESSIONS, "all are up")
    pids = children(simulator)
    os.kill(pids[1], signal.SIGKILL)
    assert simulator.exits() == 2
    assert "npppysim: worker 2 (subscribers 67 to 133) was killed by SIGKILL" in simulator.log
    assert all(map(gone, pids))


def test_workers_do_not_outlive_their_parent(lab: Lab) -> None:
    start(lab)
    simulator = simulate(lab, "--workers", "3", "--hold", "inf")
    until(lambda: len(events(simulator, "up")) == SESSIONS, "all are up")
    pids = children(simulator)
    assert len(pids) == 3
    simulator.kill()
    until(lambda: all(map(gone, pids)), "none is left behind")


def test_workers_that_cannot_have_their_sockets(lab: Lab) -> None:
    argv = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "nonesuch0", "--sessions", "9"]
    done = subprocess.run([*argv, "--workers", "3"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.startswith("npppysim: ")
    assert "Traceback" not in done.stderr


def test_progress_of_all_workers_is_shown_on_a_terminal(lab: Lab) -> None:
    start(lab)
    ours, theirs = os.openpty()
    argv = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "sub0", "--password", "secret"]
    argv += ["--sessions", "100", "--workers", "2", "--hold", "1.5", "--churn", "20/s", "--traffic", "64@200"]
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{lab.sub}", *argv], stdout=subprocess.PIPE, stderr=theirs, timeout=PATIENCE
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert re.search(r"holding: \d+ up \(\d+/s\), \d+ dialling, \d+ churned \(\d+/s\)", shown)
    assert re.search(r"[1-9]\d*/s packets sent", shown)
    # It is wiped away behind it.
    assert shown.endswith("\r\x1b[K")
    assert b"sessions   100 of 100 up" in done.stdout


# Coming and going.


# With all that follows it takes minutes: all of it is for the long run.
SOME = EVERY if THOROUGH else pytest.mark.parametrize("lab", ["pppoe", "pptp"], indirect=True)
CHURN = [("pppoe", "1"), ("pppoe", "2"), ("l2tp", "2"), ("pptp", "2")] if THOROUGH else [("pppoe", "1"), ("l2tp", "2")]


@pytest.mark.parametrize(("lab", "workers"), CHURN, indirect=["lab"])
def test_churn(lab: Lab, workers: str) -> None:
    start(lab, KEEPALIVE)
    call = {"pppoe": "padt", "l2tp": "cdn", "pptp": "clear"}[carrier(lab)]
    ways = ("--churn-by", f"lcp,{call},none", "--terminate", call)
    simulator = simulate(lab, "--workers", workers, "--churn", "50/s", *ways, "--hold", "4")
    assert simulator.exits() == 0, simulator.log
    facts = simulator.objects[-1]
    assert 130 < facts["churned"] < 270
    assert facts["held"] + facts["away"] == SESSIONS
    # At the end some may not have gone yet, and so do not dial again.
    assert facts["churned"] - facts["away"] <= facts["tried"] - SESSIONS <= facts["churned"]
    assert not facts["lost"]
    assert not facts["failed"]
    assert set(events(simulator, "up")) == set(range(1, SESSIONS + 1))
    all_gone(lab)


@SOME
def test_power_cuts(lab: Lab) -> None:
    """All are gone without a word, and come back at once; what npppyd had of them before goes by itself."""
    start(lab, KEEPALIVE)
    simulator = simulate(lab, "--workers", "2", "--reconnect", "2", "--hold", "2", "--ping", OURS)
    assert simulator.exits() == 0, simulator.log
    facts = simulator.objects[-1]
    assert facts["tried"] == facts["up"] == facts["pings"]["answered"] == 3 * SESSIONS
    assert facts["held"] == SESSIONS
    assert [each["up"] for each in facts["reconnects"]] == [SESSIONS] * 2
    assert not facts["lost"]
    ups, downs = events(simulator, "up"), events(simulator, "down")
    assert set(ups.values()) == set(downs.values()) == {3}
    all_gone(lab)
    # Nobody has said goodbye but at the end.
    assert len(re.findall(r"TUNNELUSAGE .* cause=User-Request ", lab.daemon.log)) == SESSIONS
    assert len(re.findall("TUNNELUSAGE ", lab.daemon.log)) == 3 * SESSIONS


@EVERY
def test_those_that_were_lost_dial_again(lab: Lab) -> None:
    start(lab)
    simulator = simulate(lab, "--workers", "2", "--redial", "1", "--hold", "inf")
    until(lambda: len(events(simulator, "up")) == SESSIONS, "all are up")
    assert f"{SESSIONS} sessions" in lab.ctl("clear", "all")
    until(lambda: events(simulator, "down").total() == SESSIONS, "all were told")
    until(lambda: events(simulator, "up").total() == 2 * SESSIONS, "all are up again")
    assert lab.status()["bound"] == SESSIONS
    assert simulator.stop() == 0
    facts = simulator.objects[-1]
    assert sum(facts["lost"].values()) == SESSIONS
    assert (facts["held"], facts["up"]) == (SESSIONS, 2 * SESSIONS)
    lab.empties()


def test_those_that_have_failed_dial_until_they_are_let_in(lab: Lab) -> None:
    start(lab)
    # It refuses them, for a while.
    (lab.where / "npppd-users").write_text(USERS.replace("secret", "other"))
    lab.daemon.send(signal.SIGHUP)
    lab.daemon.says("reloaded")
    simulator = simulate(lab, "--redial", "1", "--hold", "1")
    until(lambda: len(events(simulator, "down")) == SESSIONS, "all have failed")
    (lab.where / "npppd-users").write_text(USERS)
    lab.daemon.send(signal.SIGHUP)
    lab.daemon.says("reloaded", 2)
    assert simulator.exits() == 0, simulator.log
    facts = simulator.objects[-1]
    assert facts["held"] == SESSIONS
    assert facts["failed"].keys() == {"authentication failed"}
    assert facts["failed"]["authentication failed"] >= SESSIONS
    lab.empties()


@EVERY
def test_all_of_it_at_once_with_data(lab: Lab) -> None:
    start(lab, KEEPALIVE)
    more = ("--traffic", "100@500", "--churn", "20/s", "--reconnect", "1", "--redial", "1", "--hold", "3")
    simulator = simulate(lab, "--workers", "2", *more)
    assert simulator.exits() == 0, simulator.log
    facts = simulator.objects[-1]
    assert facts["churned"] > 60
    assert facts["reconnects"][0]["up"] == SESSIONS
    traffic = facts["traffic"]
    # 500 a second for 3 seconds and more, but for those that a busy machine was too late for.
    assert traffic["sent"] + traffic["behind"] > 2000
    assert traffic["sent"] > 200
    assert traffic["sent"] == traffic["received"] + traffic["cut"]
    assert not traffic["wrong"]
    assert not traffic["corrupt"]
