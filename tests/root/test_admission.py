"""npppyd under a storm of hosts: what has begun is finished first, what is there stays, and nobody is kept out."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from npppy.admission import GRACE, SHARE
from npppy.entrance import FIRST
from npppy.pppoe.codec import BROADCAST, Code, Discovery, Tag, decode_discovery
from npppy.pppoe.server import BATCH
from tests.peers.lab import Lab, Program, inside, until

pytestmark = pytest.mark.root

_ETH_P_PPPOE_DISCOVERY = 0x8863
_SO_RCVBUFFORCE = 33
PATIENCE = 60.0
SUBSCRIBERS = 300
USERS = "".join(f"user{number}:password=secret{number % 7}:\n" for number in range(1, SUBSCRIBERS + 1))
#: Who does not answer for three seconds is lost.
KEEPALIVE = """
    lcp-keepalive yes
    lcp-keepalive-interval 1
    lcp-keepalive-retry-interval 1
    lcp-keepalive-max-retries 2
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, os.getpid(), "user")
    try:
        lab.build()
        lab.start(KEEPALIVE, ipcp="pool-address 10.66.0.0/20", users=USERS)
        yield lab
        lab.is_sound()
    finally:
        lab.close()


class Hosts:
    """Hosts beside the subscribers, as many as one likes: they do discovery, and are silent then."""

    def __init__(self, lab: Lab) -> None:
        with inside(lab.sub):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
            self._sock.bind(("sub0", _ETH_P_PPPOE_DISCOVERY))
        self._sock.setblocking(False)
        #: Codes of what has come, in order.
        self.heard: list[int] = []
        self.cookies: dict[bytes, tuple[bytes, bytes]] = {}

    @staticmethod
    def mac(number: int) -> bytes:
        return bytes.fromhex("0666") + number.to_bytes(4, "big")

    def padi(self, *numbers: int) -> None:
        for number in numbers:
            packet = Discovery(BROADCAST, self.mac(number), Code.PADI, 0, ((Tag.SERVICE_NAME, b""),))
            self._sock.send(packet.encode())

    def padr(self, *numbers: int) -> None:
        for number in numbers:
            concentrator, cookie = self.cookies[self.mac(number)]
            tags = ((Tag.SERVICE_NAME, b""), (Tag.AC_COOKIE, cookie))
            self._sock.send(Discovery(concentrator, self.mac(number), Code.PADR, 0, tags).encode())

    def listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self._sock.recv(4096)
                if frame[6:8] == b"\x06\x66" or frame[:2] != b"\x06\x66":
                    # Ours, or a subscriber's.
                    continue
                packet = decode_discovery(frame)
                self.heard.append(packet.code)
                cookie = packet.first(Tag.AC_COOKIE)
                if cookie is not None:
                    self.cookies[packet.destination] = packet.source, cookie

    def wait(self, code: Code, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.heard.count(code) < count:
            assert time.monotonic() < deadline, Counter(self.heard)
            self.listen()
            time.sleep(0.005)

    def prepare(self, count: int) -> None:
        """So many have had their PADO, the last of them having number *count* - 1."""
        for start in range(0, count, 50):
            self.padi(*range(start, start + 50))
            self.wait(Code.PADO, start + 50)
        self.heard.clear()

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def hosts(lab: Lab) -> Iterator[Hosts]:
    made = Hosts(lab)
    yield made
    made.close()


@contextlib.contextmanager
def stopped(lab: Lab) -> Iterator[None]:
    """npppyd has no time at all."""
    lab.daemon.send(signal.SIGSTOP)
    try:
        yield
    finally:
        lab.daemon.send(signal.SIGCONT)


def simulate(lab: Lab, first: int, sessions: int, *options: str) -> Program:
    credentials = lab.where / "credentials"
    credentials.write_text("".join(f"user{n}:secret{n % 7}\n" for n in range(1, SUBSCRIBERS + 1)))
    argv = [sys.executable, "-m", "npppy.sim.main", "pppoe", "--interface", "sub0", "--report", "json"]
    argv += ["--sessions", str(sessions), "--first", str(first), "--credentials", str(credentials), *options]
    program = Program("npppysim", lab.sub, argv, lab.where / f"npppysim-{first}.log")
    lab.programs.append(program)
    return program


def drops(lab: Lab) -> dict[str, int]:
    return lab.status()["drops"].get("eth1", {})


def test_set_ups_under_way_come_before_new_ones(lab: Lab, hosts: Hosts) -> None:
    """Of all that has come meanwhile, PADR are read before PADI, though these came first."""
    under_way, count = 10 * BATCH, FIRST + 3000
    hosts.prepare(under_way)
    with stopped(lab):
        hosts.padi(*range(under_way, under_way + count))
        hosts.padr(*range(under_way))
    hosts.wait(Code.PADS, under_way)
    # Its host asks again.
    hosts.padi(1)
    hosts.wait(Code.PADO, 100)
    until(lambda: lab.status()["closures"] and not lab.status()["busy"], "the gates are open again")
    # By the next one npppyd learns how many the kernel has dropped, which that may have been one of.
    hosts.padi(1)

    def all_answered() -> bool:
        hosts.listen()
        return hosts.heard.count(Code.PADO) == count + 2 - drops(lab)["busy"]

    until(all_answered, "all that were not dropped are answered")
    last = len(hosts.heard) - hosts.heard[::-1].index(Code.PADS)
    # In the first turn, while it was not known yet, in the turn that gates have in any case, and in the last one.
    assert hosts.heard[:last].count(Code.PADO) <= SHARE * (2 + -(-under_way // BATCH // GRACE))
    # The kernel reckons a PADI more or less as we do.
    assert 1000 < drops(lab)["busy"] < 5000
    assert lab.status()["half_open"] == under_way


def test_a_storm_ends_no_session_and_stops_no_set_up(lab: Lab, hosts: Hosts) -> None:
    """Hosts ask without end, and for nothing; subscribers come up meanwhile, and those who are up stay."""
    early = simulate(lab, 1, 100, "--hold", "inf")
    until(lambda: lab.status()["bound"] == 100, "100 sessions")
    late = simulate(lab, 101, 200, "--window", "32", "--hold", "4")
    number = 0
    while late.running:
        # Now and then it has no time for a moment.
        with stopped(lab) if number % 5000 == 0 else contextlib.nullcontext():
            hosts.padi(*range(number, number + 500))
        number += 500
        hosts.listen()
        time.sleep(0.02)
    assert late.process.returncode == 0, late.log
    assert late.objects[-1]["up"] == 200
    assert not late.objects[-1]["failed"]
    assert not late.objects[-1]["lost"]
    assert early.stop(signal.SIGINT) == 0
    assert not early.objects[-1]["lost"]
    assert lab.status()["closures"] > 0
    assert hosts.heard.count(Code.PADO) > 100
    until(lambda: not lab.status()["busy"], "the gates are open again")


def test_hosts_that_never_finish_keep_nobody_out(lab: Lab, hosts: Hosts) -> None:
    silent = 400
    hosts.prepare(silent)
    with stopped(lab):
        hosts.padr(*range(silent))
    hosts.wait(Code.PADS, silent)
    assert lab.status()["half_open"] == silent
    simulator = simulate(lab, 1, 50)
    assert simulator.exits() == 0, simulator.log
    # They have been there all the time, and nobody had to ask twice.
    assert lab.status()["half_open"] == silent
    assert not lab.status()["busy"]
    assert "busy" not in drops(lab)
