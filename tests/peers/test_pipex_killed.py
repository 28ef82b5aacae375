"""npppyd is killed: what the kernel carries goes on, until somebody ends it."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from npppy.pppoe import codec
from tests.peers.lab import KERNEL_MODES, OURS, PATIENCE, WORLD, Exit, Lab, run, until
from tests.peers.probes import Receiver, Stream, send
from tests.peers.test_data import MEGABYTE
from tests.unit.ippackets import udp

pytestmark = [pytest.mark.guest, KERNEL_MODES]


class Transfer:
    """Half of a file is sent at once, the other half when told."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self._sender, self._receiver = sender, receiver
        self._data = random.Random(1).randbytes(4 * MEGABYTE)
        self._digest = sha256()
        self._half(0)

    def _half(self, number: int) -> None:
        size = len(self._data) // 2
        part = self._data[number * size : (number + 1) * size]
        sending = threading.Thread(target=self._sender.sendall, args=(part,), daemon=True)
        sending.start()
        while size:
            received = self._receiver.recv(min(size, 1 << 18))
            assert received
            self._digest.update(received)
            size -= len(received)
        sending.join()

    def finish(self) -> None:
        self._half(1)
        assert self._digest.digest() == sha256(self._data).digest()


def teardown(lab: Lab, status: int = 0) -> list[str]:
    """npppyd --teardown; returns the lines that it says."""
    argv = [sys.executable, "-m", "npppy.daemon", "--teardown", "-s", str(lab.socket)]
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{lab.bng}", *argv], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == status, done.stderr
    return (done.stderr if status else done.stdout).splitlines()


def links(lab: Lab) -> dict[str, str]:
    """The concentrator's interfaces, and their XDP programs."""
    found = json.loads(run("ip", "-n", lab.bng, "-d", "-j", "link", "show"))
    return {link["ifname"]: link.get("xdp", {}).get("prog", {}).get("name", "") for link in found}


@pytest.mark.tcg
def test_data_goes_on(lab: Lab) -> None:
    clean = links(lab)
    lab.start("tcp-mss-adjust yes")
    pppd = lab.dial_up()
    lab.ping(lab.sub, WORLD)
    attached = links(lab)
    assert attached["eth1"] == "pipex_access"
    assert attached["up0"] == ("pipex_nic" if lab.mode == "fast" else "")
    files = [
        Transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net))),
        Transfer(*lab.connect(lab.net, pppd.address, lab.listen(lab.sub))),
    ]
    streams = [Stream(lab, lab.sub, lab.net, WORLD), Stream(lab, lab.net, lab.sub, pppd.address)]
    for stream in streams:
        stream.flows()
    # Not while it runs.
    assert teardown(lab, status=1)[0].endswith("held by another daemon")
    lab.daemon.stop(signal.SIGKILL)
    for stream in streams:
        stream.flows(50)
        assert not stream.stop()
    for file in files:
        file.finish()
    # New connections too.
    lab.ping(lab.net, pppd.address)
    lab.ping(lab.sub, OURS)
    assert pppd.running
    assert not lab.has_link(lab.bng, "tun0")

    said = teardown(lab)
    assert "device npx0 removed" in said
    assert "1 sessions ended" in said
    assert links(lab) == clean
    assert not lab.pins.exists()
    assert not list(Path("/sys/fs/bpf").iterdir())
    assert teardown(lab) == []
    assert " 0 received" in lab.try_ping(lab.sub, WORLD, "-W", "0.2")
    # Its successor tells the peer.
    lab.start_again()
    lab.daemon.says(r"interface=eth1 Ended old sessions=1")
    assert pppd.exits() == Exit.HANGUP
    lab.dial_up()
    lab.ping(lab.sub, WORLD, count=2)


def test_a_successor_ends_what_it_finds(lab: Lab) -> None:
    """Before anybody else has the address, nothing goes either way by the old session any more."""
    lab.start()
    old = lab.dial_up(user="bob", password="builder")
    lab.ping(lab.sub, WORLD)
    wire = lab.wire(lab.sub, "sub0")
    receiver = Receiver(lab, lab.net)
    ours, theirs, name = lab.mac(lab.bng, "eth1"), lab.mac(lab.sub, "sub0"), old.session_id

    def by_the_old(text: bytes) -> None:
        """The peer goes on as if it had missed its PADT."""
        packet = udp(old.address, WORLD, text, ports=(4000, receiver.port))
        wire.send(codec.session_frame(ours, theirs, name, b"\x00\x21" + packet))

    down = Stream(lab, lab.net, lab.sub, old.address)
    down.flows()
    by_the_old(b"before")
    assert receiver.take().data == b"before"
    lab.daemon.stop(signal.SIGKILL)
    down.flows()
    by_the_old(b"meanwhile")
    assert receiver.take().data == b"meanwhile"

    lab.start_again()
    lab.daemon.says(r"interface=eth1 Ended old sessions=1")
    lab.daemon.says(r"pipex: left by an earlier npppyd: 1 sessions ended")
    assert old.exits() == Exit.HANGUP
    by_the_old(b"after")
    new = lab.dial_up(user="bob", password="builder")
    assert new.address == old.address
    by_the_old(b"then")
    down.flows()
    # Neither has a session.
    until(lambda: lab.status()["drops"]["eth1"].get("session") == 2, "the frames of the old session")
    send(lab, lab.sub, (WORLD, receiver.port), b"of the new")
    assert receiver.take().data == b"of the new"

    wire.setblocking(False)
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frames.append(wire.recv(2048))
    sent = [frame for frame in frames if frame.startswith(theirs + ours)]
    ids = [(frame[12:14], int.from_bytes(frame[16:18], "big")) for frame in sent]
    given = ids.index((b"\x88\x63", new.session_id))
    assert (b"\x88\x64", name) in ids[:given]
    assert (b"\x88\x64", new.session_id) in ids[given:]
    assert (b"\x88\x64", name) not in ids[given:]
