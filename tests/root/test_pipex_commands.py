"""npppyctl pipex and npppyctl capture, against npppyd as a process and npppysim's subscribers."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from npppy.pppoe.codec import BROADCAST, DISCOVERY, SESSION, Code, Discovery, Tag, decode_discovery, session_frame
from tests.peers.lab import MODES, OURS, PATIENCE, WORLD, Lab, Program, inside, run, until
from tests.root.ebpf_lab import attach_foreign, foreign_program
from tests.unit.test_ctl_pipex import pcap

pytestmark = pytest.mark.root

ALICE = ("--user", "alice", "--password", "wonderland")
LCP_REQUEST = bytes.fromhex("c02101c8000a05060badcafe")

_numbers = itertools.count(os.getpid() * 100)


@pytest.fixture(params=MODES)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, next(_numbers), request.param)
    try:
        lab.build()
        yield lab
        lab.is_sound()
    finally:
        lab.close()


ONE_KERNEL = pytest.mark.parametrize("lab", ["ebpf"], indirect=True)


def subscribers(lab: Lab, count: int = 1) -> list[dict[str, Any]]:
    """So many sessions, each with a device; returns them as npppyd shows them."""
    lab.start()
    argv = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "sub0", *ALICE, "--tun", "--hold", "inf"]
    more = ["--sessions", str(count), "--events", "--report", "json"]
    program = Program("npppysim", lab.sub, [*argv, *more], lab.where / "npppysim.log")
    lab.programs.append(program)
    program.says('"event": "up"', count)
    return lab.sessions()


def pings(lab: Lab, session: dict[str, Any], *options: str, count: int = 3, to: str = WORLD) -> int:
    """How many of so many pings were answered."""
    # A ping that has had an answer to another waits for no longer than that took, twice over.
    said = [lab.try_ping(lab.sub, to, "-I", session["address"], *options) for _ in range(count)]
    return sum(" 1 received" in text for text in said)


def flood(lab: Lab, session: dict[str, Any], count: int) -> int:
    """The same with large ones, each sent as soon as the one before is answered or a hundredth of a second is over."""
    argv = ["ping", "-q", "-f", "-c", str(count), "-W", "1", "-s", "1000", "-I", session["address"], WORLD]
    done = subprocess.run(
        ["ip", "netns", "exec", lab.sub, *argv], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    said = re.search(r"(\d+) received", done.stdout)
    assert said is not None, done.stderr
    return int(said[1])


class Npppyctl(Program):
    """npppyctl capture, and the file that it writes."""

    def __init__(self, lab: Lab, ppp_id: int, *options: str) -> None:
        self.lab = lab
        number = sum(isinstance(program, Npppyctl) for program in lab.programs)
        self.file = lab.where / f"capture-{number}.pcap"
        words = ["capture", "ppp-id", str(ppp_id), *options, "-w", str(self.file)]
        argv = [sys.executable, "-m", "npppy.ctl", "-s", str(lab.socket), *words]
        super().__init__(f"capture-{number}", lab.bng, argv, lab.where / f"capture-{number}.log")
        lab.programs.append(self)
        lab.daemon.says(rf"control pid={self.process.pid} .*capture ppp id={ppp_id} begins")

    def frames(self) -> list[bytes]:
        """After its end."""
        assert self.exits() == 0, self.log
        return [data for _, _, data in pcap(self.file.read_bytes())]


class Wire:
    """The subscribers' end of the wire: all PPPoE frames that pass there, both ways."""

    def __init__(self, lab: Lab) -> None:
        self.socket = lab.wire(lab.sub, "sub0")
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        self.ours = lab.mac(lab.bng, "eth1")
        self._sent: list[bytes] = []

    def send(self, frame: bytes) -> None:
        # A packet socket is not given what it has sent itself.
        self._sent.append(frame)
        self.socket.send(frame)

    def frames(self, session_id: int) -> list[bytes]:
        """Those of a session that have passed since the last time."""
        passed, self._sent = self._sent, []
        self.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                passed.append(self.socket.recv(2000))
        kinds = (DISCOVERY.to_bytes(2, "big"), SESSION.to_bytes(2, "big"))
        return [data for data in passed if data[12:14] in kinds and data[16:18] == session_id.to_bytes(2, "big")]

    def next(self, wanted: Callable[[bytes], bool]) -> bytes:
        self.socket.settimeout(PATIENCE)
        while True:
            frame = self.socket.recv(2000)
            if wanted(frame):
                return frame


def wire_of(lab: Lab, session: dict[str, Any]) -> tuple[Wire, int, bytes]:
    """The wire, the SESSION_ID of a session and the MAC address of its peer."""
    wire = Wire(lab)
    assert pings(lab, session, count=1) == 1
    peer = bytes.fromhex(session["tunnel_from"].replace(":", ""))
    frame = wire.next(lambda data: data[6:12] == peer and data[12:14] == b"\x88\x64")
    return wire, int.from_bytes(frame[16:18], "big"), peer


def renegotiate(lab: Lab, wire: Wire, session_id: int, peer: bytes) -> None:
    """A Configure-Request as if from the subscriber, which takes npppyd's answer for the same."""
    opened = len(re.findall("layer=ipcp logtype=Opened", lab.daemon.log))
    wire.send(session_frame(wire.ours, peer, session_id, LCP_REQUEST))
    lab.daemon.says("layer=ipcp logtype=Opened", opened + 1)
    until(lab.sessions, "it is up again")


def test_a_capture_is_what_is_on_the_wire(lab: Lab) -> None:
    """Data and control, while the session negotiates anew and moves between kernel and Python, to the PADT."""
    (session,) = subscribers(lab)
    ppp_id = str(session["ppp_id"])
    wire, session_id, peer = wire_of(lab, session)
    capture = Npppyctl(lab, session["ppp_id"])
    wire.frames(session_id)
    assert pings(lab, session) == 3
    assert pings(lab, session, "-s", "1464") == 3
    renegotiate(lab, wire, session_id, peer)
    assert pings(lab, session) == 3
    for who in ("user", "ebpf"):
        if lab.mode != "user" or who == "user":
            lab.ctl("pipex", "ppp-id", ppp_id, who)
            assert pings(lab, session) == 3
    lab.ctl("clear", "ppp-id", ppp_id)
    frames = capture.frames()
    assert "frames captured: the session has ended" in capture.log
    expected = wire.frames(session_id)
    assert Counter(frames) == Counter(expected)
    kinds = Counter(frame[20:23] for frame in frames)
    assert kinds[b"\x80\x21\1"] >= 2, "IPCP has been negotiated"
    assert kinds[b"\x00\x21\x45"] == 2 * (12 if lab.mode == "user" else 15)
    assert frames[-1][15] == Code.PADT
    tshark(capture.file, len(frames))


def tshark(file: Path, count: int) -> None:
    """It reads so many frames, and finds none of them malformed."""
    if shutil.which("tshark") is None:
        pytest.skip("needs tshark")
    fields = ("-T", "fields", "-e", "frame.time_epoch", "-e", "frame.protocols")
    rows = run("tshark", "-r", str(file), *fields).splitlines()
    assert len(rows) == count
    times = [float(row.split()[0]) for row in rows]
    assert times == sorted(times)
    assert all(re.search(r"eth:ethertype:pppoe[ds]", row) for row in rows)
    assert run("tshark", "-r", str(file), "-Y", "_ws.malformed || ip.checksum.status == 0") == ""


def test_a_capture_may_begin_before_the_session_is_up(lab: Lab) -> None:
    lab.start()
    wire = Wire(lab)
    host = b"\x02\0\0\0\0\x99"

    def ask(code: Code, *tags: tuple[int, bytes]) -> Discovery:
        to = BROADCAST if code is Code.PADI else wire.ours
        wire.send(Discovery(to, host, code, 0, ((Tag.SERVICE_NAME, b""), *tags)).encode())
        return decode_discovery(wire.next(lambda data: data[:6] == host))

    cookie = ask(Code.PADI).first(Tag.AC_COOKIE)
    assert cookie
    session_id = ask(Code.PADR, (Tag.AC_COOKIE, cookie)).session_id
    capture = Npppyctl(lab, 0)
    wire.frames(session_id)
    wire.send(session_frame(wire.ours, host, session_id, LCP_REQUEST))
    wire.send(Discovery(wire.ours, host, Code.PADT, session_id).encode().ljust(60, b"\0"))
    frames = capture.frames()
    expected = wire.frames(session_id)
    assert Counter(frames) == Counter(expected)
    assert {frame[20:23] for frame in frames[:-1]} == {b"\xc0\x21\1", b"\xc0\x21\2"}
    assert len(frames[-1]) == 60
    assert frames[-1][15] == Code.PADT


@ONE_KERNEL
def test_nothing_is_lost_without_a_word(lab: Lab) -> None:
    """A flood: what is not in the file is counted."""
    first, second = subscribers(lab, 2)
    wire, session_id, _ = wire_of(lab, first)
    capture = Npppyctl(lab, first["ppp_id"])
    other = Npppyctl(lab, second["ppp_id"])
    wire.frames(session_id)
    before = lab.sessions(ppp_id=first["ppp_id"])[0]
    assert flood(lab, first, 5000) > 4000
    after = lab.sessions(ppp_id=first["ppp_id"])[0]
    passed = sum(after[way] - before[way] for way in ("in_packets", "out_packets"))
    capture.send(signal.SIGINT)
    frames = capture.frames()
    captured, *lost = map(int, re.findall(r"(\d+) (?:frames captured|lost)", capture.log))
    assert captured == len(frames)
    assert captured + sum(lost) == passed
    assert captured > 0
    assert not Counter(frames) - Counter(wire.frames(session_id))
    other.send(signal.SIGTERM)
    assert other.frames() == []


def test_limits(lab: Lab) -> None:
    """They hold, whoever carries the session, and after it has negotiated anew."""
    (session,) = subscribers(lab)
    ppp_id = str(session["ppp_id"])
    wire, session_id, peer = wire_of(lab, session)
    assert flood(lab, session, 50) > 40
    said = lab.ctl("pipex", "ppp-id", ppp_id, "police", "8k/1G", "burst", "2k/100k")
    assert "down 8 kbit/s, burst 2000; up 1 Gbit/s, burst 100000" in said
    assert flood(lab, session, 50) < 25
    renegotiate(lab, wire, session_id, peer)
    assert lab.session()["rate_down"] == 8000
    assert flood(lab, session, 50) < 25
    lab.ctl("pipex", "ppp-id", ppp_id, "user")
    assert flood(lab, session, 50) < 25
    lab.ctl("pipex", "ppp-id", ppp_id, "police", "off")
    assert flood(lab, session, 50) > 40
    if lab.mode != "user":
        assert json.loads(lab.ctl("-j", "pipex"))["drops"]["police"]["packets"] > 0


def test_what_is_shown(lab: Lab) -> None:
    first, second = subscribers(lab, 2)
    number = str(first["ppp_id"])
    lab.ctl("pipex", "ppp-id", number, "user")
    assert pings(lab, first, count=2, to=OURS) == 2
    assert pings(lab, second, count=3, to=OURS) == 3
    shown = json.loads(lab.ctl("-j", "pipex"))
    python, stack = shown["paths"]["python"], shown["paths"].get("stack")
    if lab.mode == "user":
        assert (shown["backend"], shown["sessions"]) == ("user", {"ebpf": 0, "user": 2})
        assert python["up"] == python["down"] == {"packets": 5, "octets": 5 * 84}
        assert stack is None
        error = subprocess_error(lab, "pipex", "ppp-id", number, "ebpf")
        assert error == f"npppyctl: the kernel cannot carry ppp id {number}: tunnel ACCESS says pipex user\n"
        return
    assert (shown["backend"], shown["reason"], shown["sessions"]) == ("ebpf", "", {"ebpf": 1, "user": 1})
    assert shown["tunnels"] == {"ACCESS": {"pipex": "ebpf", "forward": "stack" if lab.mode == "ebpf" else "fast"}}
    assert python["up"] == python["down"] == {"packets": 2, "octets": 2 * 84}
    # What is for the concentrator itself goes through the stack in any mode.
    assert stack["up"] == stack["down"] == {"packets": 3, "octets": 3 * 84}
    assert shown["punts"]["user-up"]["packets"] == 2
    places = {(row["name"], row["use"], row["xdp"]) for row in shown["interfaces"]}
    core = {("up0", "core", "native")} if lab.mode == "fast" else set()
    assert places == {("eth1", "access", "native"), ("tun0", "shared", "native")} | core
    maps = shown["maps"]
    assert [maps[name]["used"] for name in ("sessions", "hosts4", "nets4", "slots", "buckets")] == [2, 2, 0, 2, 4]
    assert shown["memory"] == sum(item["octets"] for item in maps.values()) > 100_000
    text = lab.ctl("pipex")
    assert "Sessions: 1 carried by the kernel, room for " in text
    lab.ctl("pipex", "ppp-id", number, "ebpf")
    assert {row["pipex"] for row in lab.sessions()} == {"ebpf"}
    assert "Carried By              : the kernel" in lab.ctl("session", "all", "ppp-id", number)


def subprocess_error(lab: Lab, *words: str) -> str:
    argv = [sys.executable, "-m", "npppy.ctl", "-s", str(lab.socket), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    return done.stderr


def test_a_program_of_somebody_else(tmp_path: Path) -> None:
    """Python carries the sessions, and npppyctl says why."""
    lab = Lab(tmp_path, next(_numbers), "ebpf")
    try:
        lab.build()
        with inside(lab.bng):
            attach_foreign("eth1", foreign_program())
        (session,) = subscribers(lab)
        assert session["pipex"] == "user"
        assert pings(lab, session) == 3
        shown = json.loads(lab.ctl("-j", "pipex"))
        (row,) = [row for row in shown["interfaces"] if row["name"] == "eth1"]
        assert (row["use"], row["xdp"]) == ("access", "")
        assert "eth1 has an XDP program that is not ours" in row["note"]
        assert "eth1 has an XDP program that is not ours" in lab.ctl("pipex")
        error = subprocess_error(lab, "pipex", "ppp-id", str(session["ppp_id"]), "ebpf")
        assert "the kernel cannot carry" in error
        assert "eth1 has an XDP program that is not ours" in error
        capture = Npppyctl(lab, session["ppp_id"], "-c", "6")
        assert pings(lab, session) == 3
        assert len(capture.frames()) == 6
    finally:
        lab.close()
