"""npppysim on real packet sockets against npppyd: its options, its tun devices, its signals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.lab import OURS, PATIENCE, WORLD, Lab, Program, run, until

pytestmark = pytest.mark.root

ALICE = ("--user", "alice", "--password", "wonderland")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, os.getpid(), "ebpf")
    try:
        lab.build()
        yield lab
    finally:
        lab.close()


def simulate(lab: Lab, *options: str) -> Program:
    argv = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "sub0", "--report", "json", "--events"]
    program = Program("npppysim", lab.sub, [*argv, *ALICE, *options], lab.where / f"npppysim-{len(lab.programs)}.log")
    lab.programs.append(program)
    return program


def ups(program: Program) -> list[dict[str, Any]]:
    return [line for line in program.objects if line.get("event") == "up"]


@pytest.mark.parametrize(
    "options",
    [
        ("--macs", "one"),
        ("--host-uniq", "none"),
        ("--host-uniq", "c0ffee"),
        ("--rate", "50", "--auth", "mschapv2,chap"),
        ("--circuit-id", "eth 0/%d", "--remote-id", "{n}", "--service-name", "", "--echo-interval", "1"),
        ("--ping-size", "1464", "--ping-count", "3", "--ping-interval", "0.2"),
    ],
    ids=" ".join,
)
def test_options(lab: Lab, options: tuple[str, ...]) -> None:
    lab.start()
    simulator = simulate(lab, "--sessions", "20", "--ping", OURS, *options)
    assert simulator.exits() == 0, simulator.log
    up = ups(simulator)
    assert sorted(line["number"] for line in up) == list(range(1, 21))
    assert len({line["address"] for line in up}) == 20
    macs = {line["mac"] for line in up}
    assert macs == {lab.mac(lab.sub, "sub0").hex(":")} if "one" in options else len(macs) == 20
    until(lab.is_empty, "nothing is left")


def test_baby_giants(lab: Lab) -> None:
    """RFC 4638: with room on the wire, whole Ethernet payloads go through."""
    lab.ip(lab.sub, "link set sub0 mtu 1508")
    lab.ip(lab.bng, "link set eth1 mtu 1508")
    lab.start("mru 1500")
    simulator = simulate(lab, "--max-payload", "1500", "--ping", WORLD, "--ping-size", "1472")
    assert simulator.exits() == 0, simulator.log
    (up,) = ups(simulator)
    assert (up["mru"], up["peer_mru"]) == (1500, 1500)


def test_tun_devices(lab: Lab) -> None:
    lab.start()
    simulator = simulate(lab, "--sessions", "3", "--tun", "--hold", "inf")
    until(lambda: len(ups(simulator)) == 3, "three are up")
    for line in ups(simulator):
        lab.ping(lab.sub, WORLD, "-I", line["address"])
        assert lab.has_link(lab.sub, f"sim{line['number']}")
    counters = {row["address"]: (row["in_packets"], row["out_packets"]) for row in lab.sessions()}
    assert set(counters.values()) == {(1, 1)}
    # One that the concentrator ends loses its device; the others keep theirs.
    (first,) = [row for row in lab.sessions() if row["address"] == ups(simulator)[0]["address"]]
    lab.ctl("clear", "ppp-id", str(first["ppp_id"]))
    gone = ups(simulator)[0]["number"]
    until(lambda: not lab.has_link(lab.sub, f"sim{gone}"), "its device is gone")
    assert sum(lab.has_link(lab.sub, f"sim{number}") for number in (1, 2, 3)) == 2
    assert simulator.stop(signal.SIGINT) == 0
    assert not any(lab.has_link(lab.sub, f"sim{number}") for number in (1, 2, 3))
    assert "from 10." not in run("ip", "-n", lab.sub, "rule", "show")


def test_rules_of_one_that_was_killed_are_no_hindrance(lab: Lab) -> None:
    lab.start(users="alice:password=wonderland:framed-ip-address=10.65.0.7:\n")
    first = simulate(lab, "--tun", "--hold", "inf")
    until(lambda: ups(first), "it is up")
    first.kill()
    assert run("ip", "-n", lab.sub, "rule", "show").count("from 10.65.0.7") == 1
    # Nobody is there to agree to an end: a new npppyd knows nothing of the session any more.
    lab.daemon.stop(signal.SIGKILL)
    lab.start_again()
    second = simulate(lab, "--tun", "--hold", "inf")
    until(lambda: ups(second), "it is up again")
    lab.ping(lab.sub, WORLD, "-I", "10.65.0.7")
    assert run("ip", "-n", lab.sub, "rule", "show").count("from 10.65.0.7") == 1
    assert second.stop() == 0
    assert "from 10.65.0.7" not in run("ip", "-n", lab.sub, "rule", "show")


def test_the_second_signal_does_not_wait(lab: Lab) -> None:
    lab.start()
    simulator = simulate(lab, "--sessions", "5", "--hold", "inf")
    until(lambda: len(ups(simulator)) == 5, "five are up")
    lab.daemon.send(signal.SIGSTOP)
    assert said_goodbye(lab, simulator) == 5
    lab.daemon.send(signal.SIGCONT)


def said_goodbye(lab: Lab, simulator: Program) -> int:
    """Interrupt it, and once more as it says goodbye to npppyd, which must not answer; how often it has in all."""
    with contextlib.closing(lab.wire(lab.sub, "sub0")) as wire:
        wire.settimeout(PATIENCE)

        def terminate_request() -> bool:
            frame, address = wire.recvfrom(2000)
            return address[2] == socket.PACKET_OUTGOING and b"\xc0\x21\x05" in frame

        simulator.send(signal.SIGTERM)
        while not terminate_request():
            pass
        simulator.send(signal.SIGTERM)
        assert simulator.exits() == 0
        # Each would be said again three seconds later, and the session given up after three more.
        wire.settimeout(0)
        count = 1
        with contextlib.suppress(BlockingIOError):
            while True:
                count += terminate_request()
    return count


def test_progress_is_shown_on_a_terminal(lab: Lab) -> None:
    lab.start()
    ours, theirs = os.openpty()
    argv = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "sub0", *ALICE, "--hold", "1.2"]
    argv = ["ip", "netns", "exec", lab.sub, *argv]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=theirs, timeout=PATIENCE)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "holding: 1 up" in shown
    assert b"sessions   1 of 1 up" in done.stdout


def test_it_hears_again_after_its_interface_went_down_and_up(lab: Lab) -> None:
    lab.start()
    simulator = simulate(lab, "--sessions", "3", "--hold", "inf")
    until(lambda: len(ups(simulator)) == 3, "all are up")
    lab.ip(lab.sub, "link set sub0 down")
    lab.ip(lab.sub, "link set sub0 up")
    until(lambda: "state UP" in run("ip", "-n", lab.sub, "link", "show", "sub0"), "the link is back")
    assert "disconnected 3 sessions" in lab.ctl("clear", "all")
    until(lambda: sum(line.get("event") == "down" for line in simulator.objects) == 3, "they were told")
