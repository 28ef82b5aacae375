"""What L2TP calls carry: files both ways, packets that are large, numbers, a path that loses and reorders."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.peers.l2tp_lab import LAC, LNS, L2tpLab
from tests.peers.lab import EVERY_MODE, KERNEL_MODES, OURS, QUICK, WORLD, announced_mss, inside, run, until
from tests.peers.probes import Receiver, Stream, tcp_timeouts
from tests.peers.test_data import MEGABYTE, transfer

pytestmark = pytest.mark.guest

LAB = L2tpLab

#: How xl2tpd carries data itself.
USERSPACE = "force userspace = yes"


def numbered(lab: L2tpLab) -> bool:
    """Whether the subscriber's kernel sends sequence numbers, as it does once it has seen ours."""
    with inside(lab.sub):
        text = Path("/proc/thread-self/net/pppol2tp").read_text()
    # l2tp_ppp.c, pppol2tp_seq_session_show: MTU and MRU, whether they are demanded, and whether they are sent.
    match = re.search(r"\n +\d+/\d+/[R-]/([S-])/(?:LAC|LNS) ", text)
    assert match, text
    return match[1] == "S"


def discards(lab: L2tpLab) -> int:
    """Errors that the subscriber's kernel has counted, out-of-order data among them."""
    with inside(lab.sub):
        text = Path("/proc/thread-self/net/pppol2tp").read_text()
    # Of the session: Nr/Ns, tx packets/octets/errors, rx packets/octets/errors.
    match = re.search(r"\n +\d+/\d+ \d+/\d+/\d+ \d+/\d+/(\d+)\n", text)
    assert match, text
    return int(match[1])


@EVERY_MODE
@pytest.mark.parametrize("sequence", ["yes", "no"])
def test_files_both_ways(lab: L2tpLab, sequence: str) -> None:
    lab.start(f"tcp-mss-adjust yes\ningress-filter yes\nl2tp-data-use-seq {sequence}")
    peer = lab.dial_l2tp_up().address
    lab.ping(lab.sub, WORLD)
    assert numbered(lab) == (sequence == "yes")
    before = lab.paths()
    size = 4 * MEGABYTE
    up = lab.connect(lab.sub, WORLD, lab.listen(lab.net))
    assert announced_mss(up[1]) == 1320
    transfer(*up, size)
    transfer(*lab.connect(lab.net, peer, lab.listen(lab.sub)), size)
    session = lab.session()
    assert session["in_bytes"] > size
    assert session["out_bytes"] > size
    assert session["in_errors"] == session["out_errors"] == 0
    assert discards(lab) == 0
    assert tcp_timeouts(lab.sub) + tcp_timeouts(lab.net) < 5
    taken = lab.paths() - before
    if lab.mode != "user":
        assert min(taken[f"{lab.way}_UP"], taken[f"{lab.way}_DOWN"]) > size // 1460
    assert lab.drops == {}


@pytest.mark.parametrize("lab", ["user", "fast"], indirect=True)
@pytest.mark.parametrize("sequence", ["yes", "no"])
def test_a_peer_in_user_space(lab: L2tpLab, sequence: str) -> None:
    """Numbers of ours it takes, until it loses more than ten, which is as good as all: so no file has some."""
    lab.start(f"l2tp-data-use-seq {sequence}")
    peer = lab.dial_l2tp_up(globals=USERSPACE).address
    lab.ping(lab.sub, WORLD, "-s", "1332", count=3)
    lab.ping(lab.net, peer, "-s", "1332", count=3)
    if sequence == "yes":
        return
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), MEGABYTE)
    transfer(*lab.connect(lab.net, peer, lab.listen(lab.sub)), MEGABYTE)
    session = lab.session()
    assert session["in_errors"] == session["out_errors"] == 0


@EVERY_MODE
def test_the_usual_mru(lab: L2tpLab) -> None:
    """1360: what is outside stays within 1500, and nothing is cut."""
    lab.start()
    peer = lab.dial_l2tp_up().address
    wire = lab.wire(lab.sub, "sub0")
    lab.ping(lab.sub, WORLD, "-M", "do", "-s", "1332")
    lab.ping(lab.net, peer, "-M", "do", "-s", "1332")
    assert "Frag needed and DF set (mtu = 1360)" in lab.try_ping(lab.net, peer, "-M", "do", "-s", "1333")
    # Inside, hosts and routers cut.
    lab.ping(lab.sub, WORLD, "-M", "dont", "-s", "4000")
    lab.ping(lab.net, peer, "-M", "dont", "-s", "4000")
    assert fragments(wire) == {False: 16}


def fragments(wire) -> Counter[bool]:  # type: ignore[no-untyped-def]
    """Of large IPv4 packets between LAC and LNS: how many were fragments."""
    counts: Counter[bool] = Counter()
    wire.settimeout(0.2)
    while True:
        try:
            frame = wire.recv(2048)
        except TimeoutError:
            return counts
        if frame[12:14] == b"\x08\x00" and frame[23] == 17 and len(frame) > 600:
            counts[bool(int.from_bytes(frame[20:22], "big") & 0x3FFF)] += 1


@EVERY_MODE
def test_an_mru_that_has_the_outer_packets_cut(lab: L2tpLab) -> None:
    lab.start("mru 1500")
    peer = lab.dial_l2tp_up("mru 1500", "mtu 1500").address
    assert lab.session()["mru"] == 1500
    wire = lab.wire(lab.sub, "sub0")
    lab.ping(lab.sub, WORLD, "-M", "do", "-s", "1472", count=3)
    lab.ping(lab.net, peer, "-M", "do", "-s", "1472", count=3)
    session = lab.session()
    assert (session["in_packets"], session["out_packets"]) == (6, 6)
    assert (session["in_bytes"], session["out_bytes"]) == (6 * 1500, 6 * 1500)
    # The other halves are small.
    assert fragments(wire) == {True: 12}
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), MEGABYTE)
    transfer(*lab.connect(lab.net, peer, lab.listen(lab.sub)), MEGABYTE)
    session = lab.session()
    assert session["in_errors"] == session["out_errors"] == 0


@pytest.mark.parametrize("lab", ["user", "fast"], indirect=True)
def test_an_outer_path_that_is_narrow(lab: L2tpLab) -> None:
    """Our own link is narrower than a packet: what goes out is cut, and not refused."""
    lab.start()
    peer = lab.dial_l2tp_up().address
    lab.ip(lab.bng, "link set eth1 mtu 1200")
    lab.ip(lab.sub, "link set sub0 mtu 1200")
    lab.ping(lab.net, peer, "-M", "do", "-s", "1332", count=3)
    lab.ping(lab.sub, WORLD, "-M", "do", "-s", "1332", count=3)
    assert lab.session()["out_errors"] == 0


def netem(lab: L2tpLab, *options: str) -> None:
    """On both ends of the subscriber's link."""
    for namespace, name in ((lab.sub, "sub0"), (lab.bng, "eth1")):
        run("tc", "-n", namespace, "qdisc", "replace", "dev", name, "root", "netem", *options)


# XDP takes its packets past the queue of the interface, where netem is.
@pytest.mark.parametrize(
    ("lab", "sequence", "reorder"), [("user", "yes", 16), ("ebpf", "yes", 0), ("ebpf", "no", 0)], indirect=["lab"]
)
def test_a_path_that_loses(lab: L2tpLab, sequence: str, reorder: int) -> None:
    """1 % of both control and data, and files arrive unaltered.

    Not while it logs in: pppd waits for ever for CHAP's Success, which nobody repeats.
    """
    lab.start(f"l2tp-data-use-seq {sequence}\nl2tp-data-reorder {reorder}")
    peer = lab.dial_l2tp_up().address
    netem(lab, "loss", "1%")
    # Behind a number that is missing Linux drops the next five, too: as many as TCP repeats of a handshake.
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net), b"go"), MEGABYTE // 4)
    transfer(*lab.connect(lab.net, peer, lab.listen(lab.sub), b"go"), MEGABYTE // 4)


@pytest.mark.parametrize("lab", ["user", "ebpf"], indirect=True)
def test_a_path_that_reorders(lab: L2tpLab) -> None:
    """What comes late still passes, each way as it may: Linux' L2TP drops it if it has numbers."""
    lab.start("l2tp-data-use-seq no")
    peer = lab.dial_l2tp_up().address
    netem(lab, "delay", "20ms", "reorder", "75%")
    streams = [Stream(lab, lab.sub, lab.net, WORLD), Stream(lab, lab.net, lab.sub, peer)]
    for stream in streams:
        stream.flows(100)
    for stream in streams:
        assert not stream.stop()
        assert stream.got != sorted(stream.got)


@EVERY_MODE
@pytest.mark.parametrize("reorder", [0, 16])
def test_numbers_on_a_path_that_reorders(lab: L2tpLab, reorder: int) -> None:
    """Up, where it is npppyd that looks at the numbers: late IP packets pass, or are put in their place."""
    lab.start(f"l2tp-data-reorder {reorder}")
    lab.dial_l2tp_up()
    lab.ping(lab.sub, WORLD)
    assert numbered(lab)
    run("tc", "-n", lab.sub, "qdisc", "replace", "dev", "sub0", "root", "netem", "delay", "20ms", "reorder", "75%")
    stream = Stream(lab, lab.sub, lab.net, WORLD)
    stream.flows(100)
    assert not stream.stop()
    if reorder and lab.mode == "user":
        assert stream.got == sorted(stream.got)
    else:
        assert stream.got != sorted(stream.got)


@KERNEL_MODES
def test_between_the_kernel_and_python(lab: L2tpLab) -> None:
    """No packet is lost over it, none comes twice, and the numbers go on: the subscriber's kernel checks them."""
    lab.start("tcp-mss-adjust yes\ningress-filter yes")
    peer = lab.dial_l2tp_up().address
    lab.ping(lab.sub, WORLD)
    assert numbered(lab)
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
    assert discards(lab) == 0


@pytest.mark.parametrize("lab", ["user", "fast"], indirect=True)
def test_keepalives_of_both(lab: L2tpLab) -> None:
    """LCP echoes between data, all in one order of numbers."""
    keepalive = "lcp-keepalive-interval 1\nlcp-keepalive-retry-interval 1\nlcp-keepalive-max-retries 1"
    lab.start(keepalive)
    xl2tpd = lab.dial_l2tp_up("debug", "lcp-echo-interval 1", "lcp-echo-failure 2")
    stream = Stream(lab, lab.net, lab.sub, xl2tpd.address)
    xl2tpd.ppp_says(r"sent \[LCP EchoReq .*\]\nrcvd \[LCP EchoRep", 3)
    assert not stream.stop()
    assert discards(lab) == 0
    assert lab.session()["ppp_id"] == 0


@EVERY_MODE
def test_police(lab: L2tpLab) -> None:
    lab.start()
    peer = lab.dial_l2tp_up().address
    lab.ping(lab.sub, WORLD)
    ways = [(lab.sub, WORLD, Receiver(lab, lab.net)), (lab.net, peer, Receiver(lab, lab.sub))]

    def arrive() -> list[int]:
        """How many arrive of 90 packets of 1000 octets, each way."""
        counts = []
        for source, address, receiver in ways:
            with lab.datagrams(source) as sock:
                for _ in range(90):
                    sock.sendto(bytes(972), (address, receiver.port))
                # It is small enough.
                sock.sendto(b"the last", (address, receiver.port))
            sizes = iter(lambda receiver=receiver: len(receiver.take().data), len(b"the last"))
            counts.append(len(list(sizes)))
        return counts

    lab.ask("pipex", ppp_id=0, police={"up": 8000, "burst_up": 80_500, "down": 8000, "burst_down": 70_500})
    up, down = arrive()
    assert 80 <= up < 85
    assert 70 <= down < 75
    lab.ask("pipex", ppp_id=0, police=None)
    assert arrive() == [90, 90]
    session = lab.session()
    assert (session["in_errors"], session["out_errors"]) == (90 - up, 90 - down)
    # What is not sent gets no number.
    assert discards(lab) == 0


@pytest.mark.parametrize("lab", ["user", "ebpf"], indirect=True)
def test_capture(lab: L2tpLab, tmp_path: Path) -> None:
    """Data and PPP's control frames in one file, each once, as they are on the wire."""
    lab.start(f"{QUICK}\nlcp-keepalive no")
    xl2tpd = lab.dial_l2tp_up()
    peer = xl2tpd.address
    lab.ping(lab.sub, WORLD)
    file = tmp_path / "session.pcap"
    words = ("-m", "npppy.ctl", "-s", str(lab.socket), "capture", "ppp-id", "0", "-w", str(file))
    capture = lab.program("capture", lab.bng, sys.executable, *words)
    until(lambda: file.exists() and file.stat().st_size, "the beginning of the capture")
    lab.ping(lab.sub, WORLD, count=4)
    lab.ping(lab.net, peer, "-s", "1332", count=3)
    xl2tpd.hang_up()
    assert capture.exits() == 0
    fields = [("-e", name) for name in ("ip.src", "udp.srcport", "icmp.type", "ip.len", "ppp.code")]
    argv = ["tshark", "-n", "-r", str(file), "-T", "fields", "-E", "separator=;"]
    # What the subscriber's kernel sends has no Length.
    up, down = 20 + 8 + 10 + 4, 20 + 8 + 12 + 4
    assert Counter(run(*argv, *itertools.chain(*fields)).split()) == {
        f"{LAC},{peer};1701;8;{84 + up},84;": 4,
        f"{LNS},{WORLD};1701;0;{84 + down},84;": 4,
        f"{LNS},{WORLD};1701;8;{1360 + down},1360;": 3,
        f"{LAC},{peer};1701;0;{1360 + up},1360;": 3,
        # Terminate-Request, Terminate-Ack.
        f"{LAC};1701;;{16 + up};5": 1,
        f"{LNS};1701;;{16 + down};6": 1,
    }
    assert "Malformed" not in run("tshark", "-n", "-r", str(file), "-V")


@EVERY_MODE
def test_who_may_send_for_a_session(lab: L2tpLab) -> None:
    """Data with the right numbers from another port or address is not the peer's."""
    lab.start("l2tp-data-use-seq no\nl2tp-data-in-pktdump no")
    lab.dial_l2tp_up()
    lab.ping(lab.sub, WORLD, count=2)
    tunnel, session = lab.tunnel()["tunnel_id"], lab.session()
    echo = b"\xff\x03\xc0\x21\x09\x01\x00\x08\x00\x00\x00\x00"
    header = bytes((0, 2)) + tunnel.to_bytes(2, "big") + session["session_id"].to_bytes(2, "big")
    lab.ip(lab.sub, "address add 198.51.100.9/24 dev sub0")
    before = lab.session()
    for source in ("198.51.100.9", LAC):
        with lab.datagrams(lab.sub) as sock:
            sock.bind((source, 0))
            for _ in range(3):
                sock.sendto(header + echo, (LNS, 1701))
                sock.sendto(header + b"\xff\x03\x00\x21" + bytes(40), (LNS, 1701))
    time.sleep(0.3)
    assert lab.session()["in_packets"] == before["in_packets"]
    lab.ping(lab.sub, OURS)
    assert lab.session()["in_packets"] == before["in_packets"] + 1
