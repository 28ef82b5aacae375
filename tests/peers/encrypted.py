"""What encrypted sessions are tested with: how pppd demands them, a tap of the wire, and paths that lose on purpose."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from npppy.ppp import proto
from tests.peers.lab import MODES, WORLD, Lab, Pppd, inside, run, until

MEGABYTE = 1 << 20
#: The long run has larger files, and every back end; the other one does with those that have least in common, or with
#: one of them where it is not what matters.
LONG = bool(os.environ.get("NPPPY_GUEST_ALL"))
SIZE = (20 if LONG else 2) * MEGABYTE


def back_ends(*some: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("lab", MODES if LONG else some, indirect=True)


BACK_ENDS = back_ends("user", "fast")
USER, FAST = back_ends("user"), back_ends("fast")

#: By name: what pppd is told, the options of the tunnel, and what pppd calls it in the end.
KINDS = {
    "128": ("require-mppe-128", "", "128-bit stateless"),
    "40": ("require-mppe-40", "", "40-bit stateless"),
    "128-stateful": ("require-mppe-128 mppe-stateful", "mppe-key-state stateful", "128-bit stateful"),
    "40-stateful": ("require-mppe-40 mppe-stateful", "mppe-key-state stateful", "40-bit stateful"),
}

#: What goes in the clear, by the RFCs (RFC 3078 section 3.3), and an encrypted session has.
CONTROL = {proto.LCP, proto.CHAP, proto.EAP, proto.CCP, proto.IPCP, proto.IPV6CP}

#: What packets are called that are late, forged or played back.
UNREADABLE = frozenset({"undecryptable", "encrypted-too-early", "clear-text"})


class Frame(NamedTuple):
    """A PPP frame that was seen on the wire."""

    #: From the subscriber.
    up: bool
    protocol: int
    #: From the Protocol field on, which has two octets.
    ppp: bytes
    #: What it came in.
    ethernet: bytes


class Tap:
    """All PPP frames on sub0, from now on, both ways; of whatever carrier."""

    def __init__(self, lab: Lab) -> None:
        self.frames: list[Frame] = []
        self._lab = lab
        self._socket = lab.wire(lab.sub, "sub0")
        self._socket.settimeout(0.1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        lab.finally_(self._end)

    def _read(self) -> None:
        mac = self._lab.mac(self._lab.sub, "sub0")
        while True:
            try:
                ethernet = self._socket.recv(65535)
            except TimeoutError:
                if self._stopping.is_set():
                    return
                continue
            ppp = unwrapped(ethernet)
            if ppp:
                protocol = int.from_bytes(ppp[:2], "big")
                self.frames.append(Frame(ethernet[6:12] == mac, protocol, ppp, ethernet))

    def _end(self) -> None:
        self._stopping.set()
        self._thread.join()

    def stop(self) -> list[Frame]:
        """Returns what it has seen."""
        time.sleep(0.15)
        self._end()
        return self.frames


def unwrapped(ethernet: bytes) -> bytes:
    """The PPP frame in PPPoE, PPTP or L2TP, from its Protocol field on; empty: there is none."""
    kind, ppp = ethernet[12:14], b""
    if kind == b"\x88\x64":
        ppp = ethernet[20 : 20 + int.from_bytes(ethernet[18:20], "big")]
    elif kind == b"\x08\x00":
        header = 14 + (ethernet[14] & 15) * 4
        packet = ethernet[14 : 14 + int.from_bytes(ethernet[16:18], "big")][header - 14 :]
        if ethernet[23] == 47:
            ppp = _gre(packet)
        elif ethernet[23] == 17 and b"\x06\xa5" in (packet[:2], packet[2:4]):
            ppp = _l2tp(packet[8:])
    if ppp.startswith(b"\xff\x03"):
        ppp = ppp[2:]
    return b"\0" + ppp if ppp and ppp[0] & 1 else ppp


def _gre(packet: bytes) -> bytes:
    flags = int.from_bytes(packet[:2], "big")
    sequence, acknowledgment = flags & 0x1000, flags & 0x80
    return packet[8 + (4 if sequence else 0) + (4 if acknowledgment else 0) :] if sequence else b""


def _l2tp(message: bytes) -> bytes:
    flags = int.from_bytes(message[:2], "big")
    if flags & 0x8000:
        return b""
    at = 6 + (2 if flags & 0x4000 else 0) + (4 if flags & 0x0800 else 0)
    if flags & 0x0200:
        at += 2 + int.from_bytes(message[at : at + 2], "big")
    return message[at:]


def encrypted_only(frames: Iterable[Frame], *secrets: bytes) -> Counter[bool]:
    """Nothing of users is in the clear, nor any of *secrets*; returns the count of encrypted packets, by `up`."""
    counts: Counter[bool] = Counter()
    for frame in frames:
        if frame.protocol == proto.COMPRESSED:
            counts[frame.up] += 1
            # The bit for "encrypted" (RFC 3078 section 3.1).
            assert frame.ppp[2] & 0x10, frame
        else:
            assert frame.protocol in CONTROL, frame
        for secret in secrets:
            assert secret not in frame.ethernet, frame
    return counts


def impaired(lab: Lab, *netem: str) -> None:
    """Both ways of the subscriber's link pass netem: on what comes, since XDP sends past the queues of ours."""
    if "ifb0" not in run("ip", "-n", lab.sub, "-br", "link"):
        lab.ip(lab.sub, "link add ifb0 type ifb", "link set ifb0 up txqueuelen 1000")
        run("tc", "-n", lab.sub, "qdisc", "add", "dev", "sub0", "clsact")
        match = ("protocol", "all", "prio", "1", "matchall", "action", "mirred", "egress", "redirect", "dev", "ifb0")
        run("tc", "-n", lab.sub, "filter", "add", "dev", "sub0", "ingress", *match)
    for name in ("sub0", "ifb0"):
        run("tc", "-n", lab.sub, "qdisc", "replace", "dev", name, "root", "netem", "limit", "10000", *netem)


_HOLE = """
table netdev hole {
    chain down {
        type filter hook ingress device sub0 priority 0
        PATTERN counter drop
    }
}
"""
_PATTERNS = {"PPPoE": "ether type 0x8864", "PPTP": "ip protocol gre", "L2TP": "udp sport 1701"}


class Hole:
    """A subscriber's link that loses all that goes one way, and counts it."""

    def __init__(self, lab: Lab, up: bool) -> None:
        self._lab, self._up = lab, up
        if up:
            # A queue that drops; a filter would tell the sender.
            run("tc", "-n", lab.sub, "qdisc", "replace", "dev", "sub0", "root", "netem", "loss", "100%")
        else:
            rules = _HOLE.replace("PATTERN", _PATTERNS[lab.session()["protocol"]])
            run("ip", "netns", "exec", lab.sub, "nft", "-f", "-", input=rules)

    @property
    def lost(self) -> int:
        if self._up:
            (queue,) = json.loads(run("tc", "-n", self._lab.sub, "-s", "-j", "qdisc", "show", "dev", "sub0"))
            return int(queue["drops"])
        words = run("ip", "netns", "exec", self._lab.sub, "nft", "list", "chain", "netdev", "hole", "down").split()
        return int(words[words.index("packets") + 1])

    def close(self) -> None:
        if self._up:
            run("tc", "-n", self._lab.sub, "qdisc", "delete", "dev", "sub0", "root")
        else:
            run("ip", "netns", "exec", self._lab.sub, "nft", "delete", "table", "netdev", "hole")


@contextlib.contextmanager
def hole(lab: Lab, up: bool) -> Iterator[Hole]:
    made = Hole(lab, up)
    try:
        yield made
    finally:
        made.close()


def lose(lab: Lab, pppd: Pppd, count: int, *, up: bool) -> None:
    """*count* packets in a row are lost behind the encryption, one way."""
    if up:
        lab.ip(lab.sub, f"link set {pppd.interface} txqueuelen 1000")
        source, address = lab.sub, WORLD
    else:
        source, address = lab.net, pppd.address
    with lab.datagrams(source) as sock, hole(lab, up) as lossy:
        sock.connect((address, 9))
        while (missing := count - lossy.lost) > 0:
            for _ in range(min(missing, 100)):
                # Nobody is there to answer; what an answer says is of no interest.
                with contextlib.suppress(OSError):
                    sock.send(b"lost")
            time.sleep(0.01)


def answers(lab: Lab, pppd: Pppd) -> bool:
    """Whether one ping arrives, each way."""
    return all(
        " 1 received" in lab.try_ping(namespace, address, "-W", "0.4")
        for namespace, address in ((lab.sub, WORLD), (lab.net, pppd.address))
    )


def recovers(lab: Lab, pppd: Pppd) -> None:
    """The session that there was carries packets again, and loses no more."""
    until(lambda: answers(lab, pppd), "an answer, both ways")
    lab.ping(lab.sub, WORLD, count=5)
    lab.ping(lab.net, pppd.address, count=5)
    assert lab.session()["ppp_id"] == 0


def raw(namespace: str, source: str, target: str, protocol: int = 47) -> socket.socket:
    """A socket for packets of another protocol, forged ones among them."""
    with inside(namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    sock.bind((source, 0))
    sock.connect((target, 0))
    return sock
