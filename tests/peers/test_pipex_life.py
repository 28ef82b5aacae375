"""What the kernel carries, through all that befalls a session: keepalives, idle time, renegotiation, its end."""

from __future__ import annotations

import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.peers.lab import EVERY_MODE, KERNEL_MODES, QUICK, TELLS, WORLD, Lab, inside, until
from tests.peers.probes import Stream, ask_anew, renegotiate
from tests.peers.test_data import MEGABYTE, transfer

pytestmark = pytest.mark.guest


class Asked:
    """Counts the LCP Echo-Requests from npppyd on the wire."""

    def __init__(self, lab: Lab) -> None:
        self._wire = lab.wire(lab.sub, "sub0")
        self._wire.setblocking(False)
        self._start = lab.mac(lab.sub, "sub0") + lab.mac(lab.bng, "eth1")
        self._count = 0

    def count(self) -> int:
        while True:
            try:
                frame = self._wire.recv(2048)
            except BlockingIOError:
                return self._count
            if frame.startswith(self._start) and frame[20:23] == b"\xc0\x21\x09":
                self._count += 1


@KERNEL_MODES
def test_who_sends_is_not_asked(lab: Lab) -> None:
    """Nor given up while his kernel sends, though his pppd hangs; who only listens is asked."""
    lab.start(f"{QUICK}\nlcp-keepalive-interval 1\nlcp-keepalive-retry-interval 1\nlcp-keepalive-max-retries 1")
    pppd = lab.dial_up()
    asked = Asked(lab)
    pppd.send(signal.SIGSTOP)
    up = Stream(lab, lab.sub, lab.net, WORLD)
    up.flows_for(3)
    assert asked.count() == 0
    assert not up.stop()
    Stream(lab, lab.net, lab.sub, pppd.address)
    until(asked.count, "an Echo-Request")
    assert lab.ended("Lost-Carrier") == "no answer to 1 LCP echoes"
    lab.empties()
    pppd.send(signal.SIGCONT)
    pppd.exits()


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_who_asks_is_not_asked(lab: Lab) -> None:
    """pppd has its answers from the kernel, if that can send them; Python sees none of it then."""
    lab.start("lcp-keepalive-interval 2")
    pppd = lab.dial_up("debug", "lcp-echo-interval", "1", "lcp-echo-failure", "1")
    asked = Asked(lab)
    before = lab.paths()
    pppd.says(r"sent \[LCP EchoReq .*\]\nrcvd \[LCP EchoRep", 4)
    assert asked.count() == 0
    taken = lab.paths() - before
    if TELLS:
        assert taken["ECHO"] >= 3
        assert taken["PUNT_CONTROL"] == 0
    # Its clock is that of the last packet, not of the last answer.
    pppd.send(signal.SIGSTOP)
    until(asked.count, "an Echo-Request")
    pppd.send(signal.SIGCONT)


@EVERY_MODE
@pytest.mark.parametrize("layer", ["LCP", "IPCP"])
def test_renegotiation_under_traffic(lab: Lab, layer: str) -> None:
    lab.start()
    pppd = lab.dial_up()
    peer = pppd.address
    streams = [Stream(lab, lab.sub, lab.net, WORLD), Stream(lab, lab.net, lab.sub, peer)]
    for number in (2, 3):
        for stream in streams:
            stream.flows()
        renegotiate(lab, pppd, layer, number)
    before = lab.paths()
    for stream in streams:
        stream.flows(30)
    taken = lab.paths() - before
    if lab.mode != "user":
        assert min(taken[f"{lab.way}_UP"], taken[f"{lab.way}_DOWN"]) >= 25
    for stream in streams:
        lost = stream.stop()
        # While negotiations go on, and not before or after.
        assert not lost & {*stream.sent[:10], *stream.sent[-20:]}
    assert (lab.session()["ppp_id"], lab.session()["address"]) == (0, peer)


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
@pytest.mark.parametrize("layer", ["LCP", "IPCP"])
def test_no_data_while_it_is_negotiated(lab: Lab, layer: str) -> None:
    lab.start()
    pppd = lab.dial_up()
    lab.ping(lab.net, pppd.address)
    pppd.send(signal.SIGSTOP)
    ask_anew(lab, pppd, layer)
    until(lambda: lab.entries()["sessions"] == 0, "the end of the data")
    lab.try_ping(lab.net, pppd.address, "-W", "0.2")
    assert lab.sessions(state="any")[0]["out_packets"] == 1
    pppd.send(signal.SIGCONT)
    pppd.says("local  IP address", 2)
    lab.ip(lab.sub, "route replace default dev ppp0")
    lab.ping(lab.net, pppd.address)
    assert lab.session()["out_packets"] == 2


@KERNEL_MODES
def test_idle_timeout(lab: Lab) -> None:
    """What hosts send by themselves does not keep a session; all else does, either way."""
    limit = 2
    lab.start(f"{QUICK}\nidle-timeout {limit}")
    pppd = lab.dial_up()
    for source, target, address in ((lab.sub, lab.net, WORLD), (lab.net, lab.sub, pppd.address)):
        stream = Stream(lab, source, target, address)
        stream.flows_for(limit + 0.5)
        assert not stream.stop()
    last = time.monotonic()
    # NTP and domain names, to and from their ports.
    quiet = [
        (lab.datagrams(lab.sub), (WORLD, 123)),
        (lab.datagrams(lab.net), (pppd.address, 40000)),
        (lab.datagrams(lab.sub), (WORLD, 53)),
    ]
    quiet[1][0].bind(("0.0.0.0", 53))
    for sock, to in quiet:
        # Nobody answers by an error, which would not count either.
        sock.connect(to)
    sent = 0

    def over() -> bool:
        nonlocal sent
        if "cause=Idle-Timeout" in lab.daemon.log:
            return True
        for sock, _ in quiet:
            try:
                sock.send(b"\0" * 48)
                sent += 1
            except OSError:
                # The ICMP error about the one before.
                pass
        return False

    until(over, "the end of the session")
    assert sent > 10
    assert limit - 1 < time.monotonic() - last < limit + 5
    pppd.exits()
    lab.empties()


@KERNEL_MODES
def test_pppd_counts_the_same(lab: Lab) -> None:
    lab.start("tcp-mss-adjust yes")
    pppd = lab.dial_up()

    def link() -> list[int]:
        """Packets received and sent, as pppd's kernel counts them."""
        with inside(lab.sub):
            (line,) = re.findall(r"ppp0: *(.*)", Path("/proc/thread-self/net/dev").read_text())
        return [int(line.split()[index]) for index in (1, 9)]

    before = link()
    listener = lab.listen(lab.net)
    # So little under way at once that no wire has to drop any.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    transfer(*lab.connect(lab.sub, WORLD, listener), 4 * MEGABYTE)
    # The other way no TCP, whose segments GRO would join before they are counted.
    down = Stream(lab, lab.net, lab.sub, pppd.address)
    down.flows(100)
    assert not down.stop()
    for size in ("0", "1464", "4000"):
        lab.ping(lab.sub, WORLD, "-s", size)
        lab.ping(lab.net, pppd.address, "-s", size)
    session = lab.session()
    received, sent = (now - then for now, then in zip(link(), before, strict=True))
    assert (session["out_packets"], session["in_packets"]) == (received, sent)
    shown = lab.ctl("session", "packets").splitlines()[-1].split()
    assert {str(session["in_packets"]), str(session["out_packets"])} <= set(shown)
    pppd.stop()
    octets = pppd.says(r"Sent (\d+) bytes, received (\d+) bytes").groups()
    assert octets == (str(session["in_bytes"]), str(session["out_bytes"]))
    lab.ended("User-Request")
    assert f"data_in={octets[0]}bytes,{sent}packets data_out={octets[1]}bytes,{received}packets" in lab.daemon.log


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_many_times(lab: Lab) -> None:
    """Sessions that come and go in every way leave nothing."""
    keepalive = "lcp-keepalive-interval 1\nlcp-keepalive-retry-interval 1\nlcp-keepalive-max-retries 1"
    lab.start(
        f"{QUICK}\ningress-filter yes\n{keepalive}", top="set user-max-session 2\nset duplicate-session replace"
    )
    for _ in range(2):
        office, bob, *others = [
            lab.dial(user=user, password=password).up()
            for user, password in (
                ("office", "red:brick"),
                ("bob", "builder"),
                *[("alice", "wonderland")] * 3,
            )
        ]
        until(lambda: len(lab.sessions()) == 4, "four sessions, the oldest of alice having made way")
        assert others[0].exits()
        for pppd in (office, bob, *others[1:]):
            lab.ip(lab.sub, f"route replace default dev {pppd.interface}")
            lab.ping(lab.sub, WORLD)
            lab.ping(lab.net, pppd.address)
        assert lab.entries() == {"sessions": 4, "hosts4": 4, "nets4": 1, "nets6": 0, "slots": 4}
        office.send(signal.SIGTERM)
        bob.kill()
        others[1].send(signal.SIGHUP)
        lab.clear(address=others[2].address)
        for pppd in (office, *others[1:]):
            pppd.exits()
        lab.empties()
    maps = lab.ask("pipex")[1]["maps"]
    assert not any(maps[name]["used"] for name in ("sessions", "hosts4", "nets4", "nets6", "slots", "stats", "buckets"))
    taken = lab.paths()
    assert taken["PUNT_STALE"] == taken["TX_FAIL"] == taken["DROP_MALFORMED"] == 0
