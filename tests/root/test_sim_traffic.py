"""npppysim's data against npppyd: all of it comes back, and what a network does to some of it is found out."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.ip import checksum
from npppy.sim.stream import GRACE
from tests.peers.l2tp_lab import LNS, L2tpLab
from tests.peers.lab import SO_RCVBUFFORCE, WORLD, Lab, Program, inside, until
from tests.peers.pptp_lab import PNS as PAC
from tests.peers.pptp_lab import PptpLab

pytestmark = pytest.mark.root


class QuietPptpLab(PptpLab):
    """Without pptp-linux, which alone would write to syslog."""

    def _collect(self) -> None:
        (self.where / "syslog").touch()


#: What makes a lab, and how its subscribers reach npppyd.
CARRIERS: dict[str, tuple[Callable[[Path, int, str], Lab], tuple[str, ...], str]] = {
    "pppoe": (Lab, ("pppoe", "--interface", "sub0"), ""),
    "l2tp": (L2tpLab, ("l2tp", "--server", LNS, "--tunnels", "3"), ""),
    "sequenced": (L2tpLab, ("l2tp", "--server", LNS, "--sequencing"), ""),
    "mppe": (QuietPptpLab, ("pptp", "--server", PAC, "--mppe", "required", "--tunnels", "4"), "mppe required"),
    "stateful": (
        QuietPptpLab,
        ("pptp", "--server", PAC, "--mppe", "required", "--mppe-key-state", "stateful"),
        "mppe required\nmppe-key-state stateful",
    ),
}


class Site:
    """A lab with npppyd, and npppysim in it."""

    def __init__(self, carrier: str, mode: str, where: Path) -> None:
        make, self.words, self.options = CARRIERS[carrier]
        self.lab = make(where, os.getpid(), mode)

    def start(self) -> None:
        self.lab.build()
        self.lab.start(self.options)

    def simulate(self, *options: str, namespace: str = "", words: tuple[str, ...] = ()) -> Program:
        lab = self.lab
        argv = [sys.executable, "-m", "npppy.sim.main", *(words or self.words), "--report", "json", "--events"]
        argv += ["--user", "alice", "--password", "wonderland", *options]
        program = Program("npppysim", namespace or lab.sub, argv, lab.where / f"npppysim-{len(lab.programs)}.log")
        lab.programs.append(program)
        return program


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(*request.param, tmp_path)
    cores = os.sched_getaffinity(0)
    # Who moves to another core while packets wait in the queue of this one overtakes them.
    os.sched_setaffinity(0, {max(cores)})
    try:
        made.start()
        yield made
        made.lab.is_sound()
        for name, log in made.lab.logs():
            assert "Traceback" not in log, name
    finally:
        made.lab.close()
        os.sched_setaffinity(0, cores)


#: Packets that npppyd itself may reorder as sessions begin.
EARLY = 30

EVERY = pytest.mark.parametrize(
    "site", [(carrier, mode) for carrier in CARRIERS for mode in ("user", "ebpf")], indirect=True, ids="-".join
)
PPPOE = pytest.mark.parametrize("site", [("pppoe", "ebpf")], indirect=True, ids="-".join)


def addresses(program: Program) -> dict[int, int]:
    """Of the subscribers that are up, by number."""
    return {line["number"]: int(IPv4Address(line["address"])) for line in program.objects if line.get("event") == "up"}


def outcome(program: Program, status: int) -> dict[str, Any]:
    """What came of the traffic, with the program's *status*."""
    assert program.exits() == status, program.log
    found: dict[str, Any] = program.objects[-1]["traffic"]
    assert found["sent"] == found["received"] + found["lost"] + found["cut"]
    return found


def nothing_wrong(found: dict[str, Any]) -> None:
    for name in ("lost", "cut", "wrong", "corrupt", "repeated", "stale", "other", "silent", "unserved"):
        assert not found[name], (name, found)
    # A session's first packets may be overtaken by the next ones, which the kernel carries already.
    assert found["reordered"] <= EARLY
    assert found["received"] == found["sent"]


@EVERY
def test_all_comes_back(site: Site) -> None:
    comes_back(site, "--traffic-to", WORLD)


@pytest.mark.parametrize("site", [("pppoe", "ebpf"), ("mppe", "user")], indirect=True, ids="-".join)
def test_all_comes_back_from_the_concentrator(site: Site) -> None:
    comes_back(site)


def comes_back(site: Site, *target: str) -> None:
    for traffic, packets in (("64@1000", 500), ("1300@300", 150)):
        found = outcome(site.simulate("--sessions", "30", "--traffic", traffic, "--hold", "1", *target), 0)
        nothing_wrong(found)
        assert found["sessions"] == 30
        assert found["sent"] + found["behind"] > packets
        assert found["octets_sent"] == found["octets_received"] == found["sent"] * int(traffic.partition("@")[0])
        latency = found["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


@PPPOE
def test_packets_that_sessions_cannot_carry(site: Site) -> None:
    program = site.simulate("--sessions", "3", "--mru", "1400", "--traffic", "1401@100", "--hold", "1")
    assert program.exits() == 1
    found = program.objects[-1]["traffic"]
    assert (found["sent"], found["unable"]) == (0, {"packets have 1400 octets": 3})


class Host:
    """Answers in the kernel's place: *answer* makes the replies of what has come, (to whom, message)."""

    def __init__(self, lab: Lab, answer: Callable[[int, bytes], list[tuple[int, bytes]]]) -> None:
        lab.sysctl(lab.net, "net/ipv4/icmp_echo_ignore_all", 1)
        self._answer = answer
        with inside(lab.net):
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        lab.finally_(self._end)

    def _serve(self) -> None:
        while packet := self._sock.recv(65536):
            if packet[20:22] == b"\x08\0":
                for address, message in self._answer(int.from_bytes(packet[12:16], "big"), reply(packet[20:])):
                    self._sock.sendto(message, (str(IPv4Address(address)), 0))

    def _end(self) -> None:
        # It is connectionless, and wakes up nevertheless.
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._sock.close()


def reply(message: bytes) -> bytes:
    """An echo reply, with the right checksum."""
    rest = b"\0\0" + message[4:]
    return b"\0\0" + checksum(b"\0\0" + rest).to_bytes(2, "big") + message[4:]


TOGETHER = pytest.mark.parametrize(
    "site", [("pppoe", "ebpf"), ("l2tp", "ebpf"), ("mppe", "ebpf"), ("mppe", "user")], indirect=True, ids="-".join
)


@TOGETHER
@pytest.mark.parametrize("workers", ["2"])
def test_sessions_that_come_and_go_lose_nothing(site: Site, workers: str) -> None:
    options = ("--sessions", "40", "--tunnels", "40") if site.words[0] == "pptp" else ("--sessions", "40")
    program = site.simulate(
        *options, "--traffic", "100@500", "--churn", "20", "--churn-by", "lcp", "--hold", "4", "--workers", workers
    )
    found = outcome(program, 0)
    assert program.objects[-1]["churned"] > 30
    assert found["sessions"] > 70
    assert found["received"] + found["cut"] == found["sent"]
    assert found["sent"] + found["behind"] > 1500
    # A session has a few packets on their way at most.
    assert found["cut"] < found["sent"] / 4
    for name in ("wrong", "corrupt", "repeated", "silent"):
        assert not found[name], (name, found)
    # On a machine that is short of time, a packet may be on its way for longer than one that was cut off may be.
    assert not found["lost"] or found["latency_ms"]["max"] > GRACE * 1000, found


@TOGETHER
def test_a_host_that_errs(site: Site) -> None:
    """It leaves some out, spoils some, repeats some, and gives one session's to another one."""
    done: dict[str, int] = dict.fromkeys(("lost", "corrupt", "repeated", "wrong", "reordered"), 0)
    count = 0
    held: list[tuple[int, bytes]] = []
    known: list[int] = []

    def answer(address: int, message: bytes) -> list[tuple[int, bytes]]:
        nonlocal count
        count += 1
        if address not in known:
            known.append(address)
        turn = count % 97
        if turn == 10:
            done["lost"] += 1
            return []
        if turn == 20:
            done["corrupt"] += 1
            spoilt = message[:30] + bytes((message[30] ^ 4,)) + message[31:]
            return [(address, spoilt)]
        if turn == 30:
            done["repeated"] += 1
            return [(address, message), (address, message)]
        if turn == 40 and len(known) > 1:
            done["wrong"] += 1
            return [(next(other for other in known if other != address), message)]
        if turn == 50 and not held:
            # Behind the next one of its session.
            held.append((address, message))
            return []
        if held and held[0][0] == address:
            done["reordered"] += 1
            return [(address, message), held.pop()]
        return [(address, message)]

    Host(site.lab, answer)
    program = site.simulate(
        "--sessions", "7", "--traffic", "200@1500", "--traffic-to", WORLD, "--hold", "3"
    )
    found = outcome(program, 1)
    assert min(done.values()) > 0
    assert done["reordered"] <= found.pop("reordered") <= done.pop("reordered") + EARLY
    done["lost"] += done["corrupt"] + done["wrong"] + len(held)
    assert {name: found[name] for name in done} == done
    assert not any(found[name] for name in ("cut", "stale", "other", "silent"))
    assert all(stray["same_run"] and stray["subscriber"] != stray["owner"] for stray in found["strays"])
    assert 0 < len(found["strays"]) <= found["wrong"]


@PPPOE
def test_one_session_whose_packets_vanish(site: Site) -> None:
    program = site.simulate(
        "--sessions", "5", "--traffic", "64@500", "--traffic-to", WORLD, "--hold", "2", "--rate", "20"
    )
    until(lambda: 2 in addresses(program), "the second is up")
    # The world does not know it.
    site.lab.ip(site.lab.net, f"route add blackhole {IPv4Address(addresses(program)[2])}")
    found = outcome(program, 1)
    # Its own; it may have had replies before that.
    assert 0 < found["lost"] < found["sent"] / 4
    assert found["silent"] <= 1
    assert not any(found[name] for name in ("wrong", "corrupt", "repeated"))


class Switch:
    """Carries PPPoE between two interfaces of `sub`, *far* and *near*; what goes towards *near* by way of *twist*."""

    def __init__(self, lab: Lab, far: str, near: str, twist: Callable[[bytes], bytes]) -> None:
        self._twist = twist
        self._over = False
        ends = [lab.wire(lab.sub, name) for name in (far, near)]
        for end in ends:
            end.settimeout(0.1)
        self._threads = [
            threading.Thread(target=self._carry, args=(*ends, True), daemon=True),
            threading.Thread(target=self._carry, args=(*reversed(ends), False), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        lab.finally_(self._end)

    def _carry(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        while not self._over:
            try:
                frame, address = source.recvfrom(65536)
            except TimeoutError:
                continue
            if address[2] != socket.PACKET_OUTGOING and frame[12:13] == b"\x88":
                sink.send(self._twist(frame) if down else frame)

    def _end(self) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()


@PPPOE
def test_a_network_that_confuses_two_sessions(site: Site) -> None:
    """Whole PPPoE frames, addressed to one subscriber's session, come as those of another one's."""
    lab = site.lab
    sessions: dict[int, bytes] = {}
    swapped: dict[bytes, int] = {}
    confused = threading.Event()

    def twist(frame: bytes) -> bytes:
        subscriber = frame[5]
        if frame[12:14] == b"\x88\x64":
            sessions[subscriber] = frame[:6] + frame[16:18]
            other = sessions.get({3: 4, 4: 3}.get(subscriber, 0))
            if other and confused.is_set() and frame[20:22] == b"\x00\x21":
                swapped[frame] = subscriber
                return other[:6] + frame[6:16] + other[6:] + frame[18:]
        return frame

    for end, namespace in (("home0", lab.sub), ("lan0", lab.lan), ("sub0", lab.sub)):
        lab.ip(namespace, f"link set {end} promisc on")
    Switch(lab, "sub0", "home0", twist)
    words = ("pppoe", "--interface", "lan0")
    program = site.simulate(
        "--sessions", "6", "--traffic", "100@600", "--hold", "3", namespace=lab.lan, words=words
    )
    until(lambda: len(addresses(program)) == 6, "all are up")
    confused.set()
    found = outcome(program, 1)
    assert found["wrong"] == found["lost"] == len(swapped) > 100
    assert not any(found[name] for name in ("cut", "corrupt", "repeated", "other", "stale")), found
    assert found["reordered"] <= EARLY
    assert {(stray["subscriber"], stray["owner"]) for stray in found["strays"]} == {(3, 4), (4, 3)}
    assert re.search(r"subscriber=3 owner=4 .* logtype=WrongDelivery", program.log)
