"""What operators do to the data path of a session that is up, with traffic in it."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.peers.lab import EVERY_MODE, KERNEL_MODES, QUICK, WORLD, Lab, run, until
from tests.peers.probes import Receiver, Stream, renegotiate

pytestmark = pytest.mark.guest


@KERNEL_MODES
def test_between_the_kernel_and_python(lab: Lab) -> None:
    """No packet is lost over it, and none comes twice."""
    lab.start("tcp-mss-adjust yes\ningress-filter yes")
    peer = lab.dial_up().address
    lab.ping(lab.sub, WORLD)
    streams = [Stream(lab, lab.sub, lab.net, WORLD), Stream(lab, lab.net, lab.sub, peer)]
    for _ in range(5):
        for carry, path in (("user", "USER"), ("ebpf", lab.way)):
            assert lab.ask("pipex", ppp_id=0, carry=carry)[1]["pipex"] == carry
            before = lab.paths()
            for stream in streams:
                stream.flows(5)
            taken = lab.paths() - before
            assert min(taken[f"{path}_UP"], taken[f"{path}_DOWN"]) >= 4
    for stream in streams:
        assert not stream.stop()
    session = lab.session()
    assert (session["in_packets"], session["out_packets"]) >= (len(streams[0].got), len(streams[1].got))
    assert session["in_errors"] == session["out_errors"] == 0


@KERNEL_MODES
def test_a_wish_holds(lab: Lab) -> None:
    """Also when all is negotiated anew."""
    lab.start()
    pppd = lab.dial_up()
    lab.ask("pipex", ppp_id=0, carry="user")
    renegotiate(lab, pppd, "LCP", 2)
    assert lab.entries()["sessions"] == 0
    lab.ping(lab.sub, WORLD, count=2)
    assert lab.ask("pipex", ppp_id=0, carry="ebpf")[1]["pipex"] == "ebpf"
    assert lab.entries()["sessions"] == 1
    before = lab.paths()
    lab.ping(lab.sub, WORLD, count=3)
    taken = lab.paths() - before
    assert taken["STACK_UP"] + taken["FAST_UP"] == 3
    assert taken["USER_UP"] == taken["PUNT_UNKNOWN"] == 0


@EVERY_MODE
def test_police(lab: Lab) -> None:
    lab.start()
    peer = lab.dial_up().address
    lab.ping(lab.sub, WORLD)
    ways = [(lab.sub, WORLD, Receiver(lab, lab.net)), (lab.net, peer, Receiver(lab, lab.sub))]

    def arrive() -> list[int]:
        """How many arrive of 30 packets of 1000 octets, each way."""
        counts = []
        for source, address, receiver in ways:
            with lab.datagrams(source) as sock:
                for _ in range(30):
                    sock.sendto(bytes(972), (address, receiver.port))
                # It is small enough.
                sock.sendto(b"the last", (address, receiver.port))
            sizes = iter(lambda receiver=receiver: len(receiver.take().data), len(b"the last"))
            counts.append(len(list(sizes)))
        return counts

    assert arrive() == [30, 30]
    # The least rate: a thousand octets a second.
    lab.ask("pipex", ppp_id=0, police={"up": 8000, "burst_up": 20_500, "down": 8000, "burst_down": 10_500})
    up, down = arrive()
    assert 20 <= up < 25
    assert 10 <= down < 15
    lab.ask("pipex", ppp_id=0, police=None)
    assert arrive() == [30, 30]
    session = lab.session()
    assert (session["in_errors"], session["out_errors"]) == (30 - up, 30 - down)


@KERNEL_MODES
def test_capture(lab: Lab, tmp_path: Path) -> None:
    """Data that the kernel carries and control frames that Python does, in one file; each once."""
    lab.start(f"{QUICK}\nlcp-keepalive no")
    pppd = lab.dial_up()
    peer = pppd.address
    lab.ping(lab.sub, WORLD)
    file = tmp_path / "session.pcap"
    words = ("-m", "npppy.ctl", "-s", str(lab.socket), "capture", "ppp-id", "0", "-w", str(file))
    capture = lab.program("capture", lab.bng, sys.executable, *words)
    until(lambda: file.exists() and file.stat().st_size, "the beginning of the capture")
    lab.ping(lab.sub, WORLD, count=4)
    lab.ping(lab.net, peer, "-s", "1464", count=3)
    pppd.stop()
    assert capture.exits() == 0
    fields = [("-e", name) for name in ("ip.src", "icmp.type", "ip.len", "pppoe.code", "ppp.code")]
    argv = ["tshark", "-n", "-r", str(file), "-T", "fields", "-E", "separator=,", *itertools.chain(*fields)]
    assert Counter(run(*argv).split()) == {
        f"{peer},8,84,0x00,": 4,
        f"{WORLD},0,84,0x00,": 4,
        f"{WORLD},8,1492,0x00,": 3,
        f"{peer},0,1492,0x00,": 3,
        # Terminate-Request, Terminate-Ack, PADT.
        ",,,0x00,5": 1,
        ",,,0x00,6": 1,
        ",,,0xa7,": 1,
    }
