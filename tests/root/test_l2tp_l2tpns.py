"""Debian's l2tpns as an ISP's LAC: it takes the calls of npppysim, and forwards them to npppyd by a tunnel of its own.

    lan --------- sub ========= bng ---- net
     l2tpns        npppysim      npppyd

It negotiates LCP with a subscriber until it knows the name, and says nothing of that to npppyd, which negotiates anew.
From then on it does not look at data, but asks either side for LCP echoes of its own accord, with magic number 0 and
the priority bit of L2TP; both get the answers.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers.l2tpns import L2tpns
from npppy.l2tp.codec import decode_data
from tests.peers.l2tp_lab import LNS, L2tpLab
from tests.peers.lab import WORLD, Program, inside, until
from tests.root.test_sim_l2tp import simulate, ups

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not shutil.which("l2tpns", path="/usr/sbin:/usr/bin:/sbin:/bin"),
        reason="there is no l2tpns: scripts/packages test",
    ),
]

#: l2tpns's address, and where it sends from as a LAC; the subscribers' one.
LAC, LAC_PORT = "203.0.113.2", 65432
HOME = "203.0.113.1"
SESSIONS = 5
USERS = "".join(f"user{number}:password=secret{number % 7}:\n" for number in range(1, SESSIONS + 1))
SECRET = "hush"

#: It challenges npppyd by the secret of its setforward, and answers with the one of all its tunnels: they are the same.
#: It writes numbers of its control messages over Ns and Nr of data.
CONFIG = f"""
l2tp-secret "{SECRET}"
l2tp-data-use-seq no
lcp-timeout 1
"""

#: It forwards whose name has "user" in it.  It repeats a Configure-Request after a second, and not three.  What it
#: forwards is no sign of life to it: sessions would end.
FORWARD = f"""
setforward "user" {LNS} 1701 "{SECRET}"
set ppp_restart_time 1
set idle_echo_timeout 86400
"""


class Inside:
    """A namespace by its name, which can be entered again and again."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._visit = inside(self._name)
        self._visit.__enter__()

    def __exit__(self, *error: object) -> None:
        self._visit.__exit__(None, None, None)


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[L2tpLab]:
    lab = L2tpLab(tmp_path, os.getpid(), request.param)
    try:
        lab.build()
        lab.ip(lab.sub, f"address add {HOME}/24 dev home0")
        lab.ip(lab.lan, f"address add {LAC}/24 dev lan0", f"route add default via {HOME}")
        lab.ip(lab.bng, f"route add {LAC} via 198.51.100.2")
        yield lab
        lab.is_sound()
        for name, log in lab.logs():
            assert "Traceback" not in log, name
    finally:
        lab.close()


def start(lab: L2tpLab, method: str, config: str = "") -> L2tpns:
    """Start l2tpns and npppyd."""
    # It echoes to who has been silent for 3 s, when all are up.
    where = lab.where / "l2tpns"
    lac = L2tpns(Inside(lab.lan), where, LAC, method=method, secret=SECRET, keepalive=3, more=FORWARD)
    lab.finally_(lac.close)
    lab.start(f"{CONFIG}{config}\nauthentication-method {method}", users=USERS)
    lac.wait_ready()
    return lac


def call(lab: L2tpLab, method: str, *options: str, sessions: int = SESSIONS) -> Program:
    """Have subscribers call, who stay; wait until they are up, and their pings are answered."""
    traffic = ["--ping", WORLD, "--hold", "inf", *options]
    simulator = simulate(
        lab, "--sessions", str(sessions), "--auth", method, "--secret", SECRET, *traffic, server=LAC
    )

    def all_up() -> bool:
        assert simulator.running, simulator.log
        return len(ups(simulator)) == sessions

    until(all_up, f"{sessions} calls through l2tpns")
    return simulator


def frames(wire: socket.socket) -> Iterator[tuple[bool, int, bytes]]:
    """What has come by so far of data between l2tpns and npppyd: whether that is to get it, session id, PPP frame."""
    while True:
        try:
            frame = wire.recv(2048)
        except BlockingIOError:
            return
        ports = frame[34:36], frame[36:38]
        ours, theirs = (port.to_bytes(2, "big") for port in (1701, LAC_PORT))
        # UDP over IPv4 without options, and L2TP with the T bit clear.
        if frame[12:15] == b"\x08\x00\x45" and frame[23] == 17 and set(ports) == {ours, theirs} and frame[42] < 0x80:
            datagram = frame[42:]
            data = decode_data(datagram)
            yield ports[1] == ours, data.session_id, datagram[data.start : data.end].removeprefix(b"\xff\x03")


def order(lab: L2tpLab, command: str) -> str:
    """A command that l2tpns's administrator gives; returns the answer."""
    with inside(lab.lan):
        line = socket.create_connection(("127.0.0.1", 23), timeout=60)
    with line:
        answer = b""
        for words, prompt in ((b"", b"> "), (b"enable\r\n", b"# "), (command.encode() + b"\r\n", b"# ")):
            line.sendall(words)
            answer = b""
            while not answer.endswith(prompt):
                part = line.recv(4096)
                assert part, answer
                answer += part
    return answer.decode(errors="replace")


@pytest.mark.parametrize(("lab", "method"), [("user", "pap"), ("ebpf", "chap")], indirect=["lab"])
def test_calls_that_it_forwards(lab: L2tpLab, method: str) -> None:
    start(lab, method)
    wire = lab.wire(lab.sub, "sub0")
    wire.setblocking(False)
    pings = 4
    simulator = call(lab, method, "--ping-count", str(pings), "--ping-interval", "0.1")

    # All by one tunnel, which l2tpns has been authenticated for and has authenticated npppyd.
    rows = lab.sessions()
    assert {row["username"] for row in rows} == {f"user{number}" for number in range(1, SESSIONS + 1)}
    assert {row["address"] for row in rows} == {line["address"] for line in ups(simulator)}
    assert {row["tunnel_from"] for row in rows} == {f"{LAC}:{LAC_PORT}"}
    tunnel = lab.tunnel()
    assert (tunnel["peer_name"], tunnel["sessions"]) == ("l2tpns", SESSIONS)

    assert " dialin_proxy=yes" not in lab.daemon.log

    def pinged() -> bool:
        return all(row["in_packets"] == row["out_packets"] == pings for row in lab.sessions())

    until(pinged, "all pings, and their answers")

    # npppyd ends one.
    lab.clear(username="user2")
    lab.ended("Admin-Reset")

    # l2tpns has no magic number, and gets an answer to each echo, which has ours.
    found = re.findall(r"ppp id=(\d+) layer=lcp logtype=Opened .* magic=(\w{8})/", lab.daemon.log)
    magics = {int(number): bytes.fromhex(magic) for number, magic in found}
    peers = {row["session_id"]: row for row in rows if row["username"] != "user2"}
    asked: dict[int, bytes] = {}
    answers: list[tuple[int, bytes]] = []

    def answered() -> bool:
        for to_us, session, frame in frames(wire):
            if to_us and session in peers and frame[:3] == b"\xc0\x21\x09":
                assert frame[4:] == b"\x00\x08" + bytes(4)
                asked[peers[session]["peer_session_id"]] = frame[3:4] + b"\x00\x08" + magics[peers[session]["ppp_id"]]
            elif not to_us and frame[:3] == b"\xc0\x21\x0a":
                answers.append((session, frame[3:]))
        return len(asked) == len(peers) and set(asked.items()) <= set(answers)

    until(answered, "answers to l2tpns's echoes")
    assert len(answers) == len(set(answers))
    if lab.mode != "user":
        paths = lab.paths()
        assert paths["ECHO"] >= len(peers)
        # The first ones may have come before the kernel knew of the sessions.
        assert min(paths["STACK_UP"], paths["STACK_DOWN"]) >= SESSIONS * (pings - 2)

    # The subscribers end the others.
    simulator.send(signal.SIGINT)
    assert simulator.exits() == 0, simulator.log
    *events, facts = simulator.objects
    ends = {event["user"]: event["reason"] for event in events if event["event"] == "down"}
    assert ends.pop("user2") == "terminated by the concentrator"
    assert ends == dict.fromkeys(("user1", "user3", "user4", "user5"), "done")
    assert facts["pings"]["sent"] == facts["pings"]["answered"] == pings * SESSIONS
    assert not facts["malformed"]
    lab.daemon.says(r'TUNNELUSAGE .* reason="the peer terminated LCP"', SESSIONS - 1)
    lab.hung_up()
    # They were its sessions alone.
    assert lab.tunnel()["tunnel_id"] == tunnel["tunnel_id"]


@pytest.mark.parametrize("lab", ["fast"], indirect=True)
def test_it_ends_them(lab: L2tpLab) -> None:
    lac = start(lab, "chap", "l2tp-hello-interval 1\nl2tp-hello-timeout 2")
    call(lab, "chap")
    tunnel = lab.tunnel()

    # One call: a CDN.
    (row,) = lab.sessions(username="user3")
    order(lab, f"drop session {row['peer_session_id']}")
    assert lab.ended("User-Request") == "CDN received: administrative reasons"
    assert {row["username"] for row in lab.sessions()} == {"user1", "user2", "user4", "user5"}

    # The tunnel, a StopCCN.
    order(lab, f"drop tunnel {tunnel['peer_tunnel_id']}")
    lab.daemon.says(r'TUNNELUSAGE .* reason="StopCCN received', SESSIONS - 1)
    lab.hung_up()

    # The next subscriber has it dial anew, and it answers hellos, until it is killed.
    call(lab, "chap", sessions=1)
    assert lab.tunnel()["tunnel_id"] != tunnel["tunnel_id"]
    lac.process.kill()
    # The others that have lost their carrier had the first tunnel.
    assert lab.ended("Lost-Carrier", SESSIONS) == "the peer does not answer"
    lab.hung_up()
