"""What tests see of a path: who answers a probe, and what becomes of a stream of numbered packets."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
import time
from pathlib import Path
from typing import NamedTuple

from npppy.ppp import options, proto
from npppy.pppoe import codec
from tests.peers.lab import PATIENCE, SO_RCVBUFFORCE, Lab, Pppd, inside, until

# linux/in.h
_IP_MTU_DISCOVER = 10
_IP_RECVERR = 11
_IP_RECVTTL = 12
_IP_RECVTOS = 13
#: DF not set; and set, whatever the kernel has learnt of the path.
_PMTUDISC_DONT = 0
_PMTUDISC_PROBE = 3
#: struct sock_extended_err, and the struct sockaddr_in of who sent it.
_EXTENDED_ERR = struct.Struct("=IBBBxII")
_OFFENDER = struct.Struct("=HH4s8x")

#: A port where nobody listens.
CLOSED = 33434

#: Types and codes of ICMP (RFC 792, RFC 1812 section 5.2.7.1).
NO_ROUTE = (3, 0)
HOST_UNREACHABLE = (3, 1)
PORT_UNREACHABLE = (3, 3)
FRAGMENTATION_NEEDED = (3, 4)
PROHIBITED = (3, 13)
TIME_EXCEEDED = (11, 0)


class Answer(NamedTuple):
    """An ICMP error."""

    sender: str
    #: Type and code.
    what: tuple[int, int]
    #: The MTU of the next hop, where that is what it is about.
    mtu: int = 0


def probe(lab: Lab, namespace: str, address: str, *, ttl: int = 64, size: int = 32, df: bool = False) -> Answer:
    """The error that an UDP packet of *size* octets brings about, IP header included; there must be one."""
    with lab.datagrams(namespace) as sock:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE if df else _PMTUDISC_DONT)
        sock.connect((address, CLOSED))
        payload = bytes(index & 0xFF for index in range(size - 28))
        poll = select.poll()
        poll.register(sock, 0)

        def answered() -> bool:
            # Some kernels send one a second only about what has no route, whatever icmp_ratelimit says.  And sending
            # may tell of an error that came meanwhile.
            with contextlib.suppress(OSError):
                sock.send(payload)
            return bool(poll.poll(1500))

        until(answered, f"an error about a packet to {address} with TTL {ttl}")
        quoted, ancillary, _, _ = sock.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
    ((_, _, data),) = ancillary
    _, _, kind, code, mtu, _ = _EXTENDED_ERR.unpack_from(data)
    _, _, sender = _OFFENDER.unpack_from(data, _EXTENDED_ERR.size)
    # It is about this packet, and quotes it as it was.
    assert quoted == payload[: len(quoted)]
    assert quoted
    return Answer(socket.inet_ntoa(sender), (kind, code), mtu)


def traceroute(lab: Lab, namespace: str, address: str) -> list[str]:
    """Who is on the way, by UDP and by ICMP probes, which must agree."""
    hops: list[str] = []
    while not hops or hops[-1] != address:
        ttl = len(hops) + 1
        answer = probe(lab, namespace, address, ttl=ttl)
        pinged = lab.try_ping(namespace, address, "-t", str(ttl))
        if answer.sender == address:
            assert answer.what == PORT_UNREACHABLE
            assert " 1 received" in pinged
        else:
            assert answer.what == TIME_EXCEEDED
            assert f"From {answer.sender} icmp_seq=1 Time to live exceeded" in pinged
        hops.append(answer.sender)
        assert len(hops) < 9
    return hops


class Datagram(NamedTuple):
    data: bytes
    #: Who sent it.
    sender: str
    ttl: int
    tos: int


class Receiver:
    """An UDP socket that tells how packets came."""

    def __init__(self, lab: Lab, namespace: str) -> None:
        sock = self.socket = lab.datagrams(namespace)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        sock.bind(("0.0.0.0", 0))
        self.port = int(sock.getsockname()[1])

    def take(self) -> Datagram:
        data, ancillary, _, (sender, _) = self.socket.recvmsg(65535, 128)
        values = {kind: int.from_bytes(value, "little") for _, kind, value in ancillary}
        return Datagram(data, sender, values[socket.IP_TTL], values[socket.IP_TOS])


def send(
    lab: Lab, namespace: str, to: tuple[str, int], data: bytes = b"", *, source: str = "", ttl: int = 64, tos: int = 0
) -> None:
    """One UDP packet."""
    with lab.datagrams(namespace) as sock:
        sock.bind((source, 0))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        sock.sendto(data, to)


def addresses(answer: str, mark: str) -> list[str]:
    """Those that ping shows behind *mark*: of Record Route, or of Timestamp."""
    return re.findall(r"\t(\d+\.\S+)", answer[answer.index(mark) :])


def ask_anew(lab: Lab, pppd: Pppd, layer: str) -> None:
    """A Configure-Request of LCP or IPCP in pppd's name, which never begins again by itself."""
    if layer == "LCP":
        protocol, wishes = proto.LCP, [(proto.OPT_MRU, (1492).to_bytes(2, "big")), (proto.OPT_MAGIC, b"npp!")]
    else:
        protocol, wishes = proto.IPCP, [(proto.OPT_ADDRESS, socket.inet_aton(pppd.address))]
    body = options.encode(wishes)
    packet = protocol.to_bytes(2, "big") + b"\x01\x77" + (len(body) + 4).to_bytes(2, "big") + body
    ours, theirs = lab.mac(lab.bng, "eth1"), lab.mac(lab.sub, "sub0")
    lab.wire(lab.sub, "sub0").send(codec.session_frame(ours, theirs, pppd.session_id, packet))


def renegotiate(lab: Lab, pppd: Pppd, layer: str, times: int) -> None:
    """Have LCP or IPCP, and what lies above, come up once more, which are the *times* that it then was."""
    ask_anew(lab, pppd, layer)
    pppd.says(r"local  IP address (\S+)", times)
    lab.ip(lab.sub, f"route replace default dev {pppd.interface}")


def tcp_timeouts(namespace: str) -> int:
    """How often a kernel has sent again since nothing came back, instead of being told."""
    with inside(namespace):
        lines = [line.split() for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()]
    names, values = (line for line in lines if line[0] == "TcpExt:")
    return int(values[names.index("TCPTimeouts")])


class Stream:
    """Numbered datagrams, some hundred a second, that nobody answers."""

    def __init__(self, lab: Lab, source: str, target: str, address: str) -> None:
        """From the namespace *source* to *address* in *target*, until stopped, or the end of the test."""
        #: Those that the sender's kernel took, and those that arrived.
        self.sent: list[int] = []
        self.got: list[int] = []
        self._sender = lab.datagrams(source)
        self._receiver = Receiver(lab, target)
        self._receiver.socket.settimeout(0.1)
        self._to = (address, self._receiver.port)
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]
        lab.finally_(self._abandon)
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        number = 0
        while not self._stopping.wait(0.005):
            number += 1
            if self._try(number):
                self.sent.append(number)
        # One may be lost, since some tests lose some.
        while not self._ended.wait(0.02):
            self._try(0)

    def _try(self, number: int) -> bool:
        try:
            self._sender.sendto(struct.pack("!I", number), self._to)
        except OSError:
            # No route while its session is not up, or an ICMP error.
            return False
        return True

    def _receive(self) -> None:
        while not self._ended.is_set():
            try:
                number = int.from_bytes(self._receiver.take().data, "big")
            except TimeoutError:
                continue
            if not number:
                self._ended.set()
            else:
                self.got.append(number)

    def _abandon(self) -> None:
        self._stopping.set()
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def flows(self, count: int = 20) -> None:
        """Wait until so many more have arrived."""
        before = len(self.got)
        until(lambda: len(self.got) >= before + count, f"{count} packets to {self._to[0]}")

    def flows_for(self, seconds: float) -> None:
        """Let that time pass, in which packets arrive."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.flows(5)

    def stop(self) -> set[int]:
        """Returns those that were lost; none came twice."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"nothing arrives any more at {self._to[0]}"
        assert len(set(self.got)) == len(self.got)
        return set(self.sent) - set(self.got)
