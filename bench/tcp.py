"""``tcp``: what TCP of real kernels moves through a session, against the same without PPP.

    inside ====== outside ..... sub0 ====== eth1     The subscriber's kernel has no PPPoE here, so two XDP programs of
        (subscriber's namespace)        (npppyd's)   wire.c put it around what leaves, and take it off what comes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator

from npppy.pipex.ebpf.libbpf import Object
from npppy.pipex.ebpf.plumbing import ethtool

from .carriers import Session
from .figures import BenchError, Figure
from .kernel import attach, check_untimed
from .lab import GATEWAY, OURS, PLAIN, SET_GRO, THEIRS, UPLINK, Lab, pinned
from .packets import TARGETS, WAYS, Bed, Effort, dial, tell_pairs
from .wire import OBJECT, ethernet

#: Octets a system call.
_PIECE = 1 << 20
#: Seconds before it counts: TCP finds its rate.
_WARM_UP = 0.2
_PATIENCE = 10.0
_PORT = 5001
_MTU = 1492

_CPE = struct.Struct("=II22sH14s2x")
_INSIDE, _OUTSIDE = b"\x02bench", b"\x02BENCH"
# linux/ethtool.h
_SET_CHECKSUM = 0x17


class _Subscriber:
    """The subscriber's end of a session, and of a link without PPP."""

    def __init__(self, lab: Lab, session: Session, stack: contextlib.ExitStack) -> None:
        self._session = session
        self._macs = lab.macs
        self.plain = str(PLAIN[2])
        lab.sub.ip(
            f"link add inside address {_INSIDE.hex(':')} type veth peer name outside address {_OUTSIDE.hex(':')}",
            f"link set outside up mtu {_MTU}",
            f"link set inside up mtu {_MTU} arp off",
            f"address add {session.address}/32 dev inside",
            f"address add {self.plain}/32 dev inside",
            f"route add {GATEWAY} dev inside",
        )
        lab.net.ip(*(f"route add {address} via {UPLINK}" for address in (session.address, self.plain)))
        # Frames on the wires are of their MTU and carry checksums, as on Ethernet.
        for namespace, names in ((lab.sub, ("sub0", "inside")), (lab.bng, ("eth1", "up0")), (lab.net, ("host0",))):
            with namespace:
                for name in names:
                    ethtool(name, _SET_CHECKSUM, 0)
        programs = stack.enter_context(Object(OBJECT))
        self._cpes = programs.maps["cpes"]
        with lab.sub:
            ethtool("inside", SET_GRO, 1)
            self._indexes = socket.if_nametoindex("sub0"), socket.if_nametoindex("outside")
        for name, program in (("outside", "cpe_out"), ("sub0", "cpe_in")):
            attach(lab.sub, name, programs.programs[program])
            stack.callback(attach, lab.sub, name, None)

    def use(self, pppoe: bool) -> str:
        """Take the session, or the plain link; returns the subscriber's address there."""
        session = self._session
        header = session.up(self._macs, b"")
        if not pppoe:
            header = ethernet(self._macs.eth1, self._macs.sub0, b"").ljust(len(header), b"\0")
        inward = ethernet(_INSIDE, _OUTSIDE, b"")
        self._cpes.put(bytes(4), _CPE.pack(*self._indexes, header, pppoe, inward))
        return session.address if pppoe else self.plain


def measure(effort: Effort) -> Iterator[Figure]:
    """Through the stack and from NIC to NIC, each against the plain link in turn."""
    check_untimed()
    for kind in TARGETS:
        with Lab() as lab, contextlib.ExitStack() as stack:
            daemon = lab.npppyd(users=1, method="pap", pipex="ebpf", forward=kind)
            sessions = dial(lab, daemon, 1)
            bed = Bed(lab, daemon, kind, stack, sinks=False)
            subscriber = _Subscriber(lab, sessions[0], stack)
            for way in WAYS:
                runs = []
                for _ in range(effort.pairs):
                    rate = _run(lab, subscriber.use(pppoe=True), way, effort.user_time)
                    with bed.daemon.stopped(), bed.attached.without():
                        runs.append((rate, _run(lab, subscriber.use(pppoe=False), way, effort.user_time)))
                if bed.reached.count():
                    raise daemon.error("does not leave the packets to the kernel")
                name = f"tcp.{kind}.{way}"
                tell_pairs(name, [ours / plain for ours, plain in runs])
                rate, baseline = map(statistics.median, zip(*runs, strict=True))
                yield Figure(name=name, value=rate, unit="Gb/s", better="higher", baseline=baseline)


def _run(lab: Lab, address: str, way: str, seconds: float) -> float:
    """Gb/s of data between the subscriber and the host."""
    with contextlib.ExitStack() as stack:
        with lab.net:
            server = stack.enter_context(socket.create_server((GATEWAY, _PORT)))
        with lab.sub:
            near = stack.enter_context(socket.create_connection((GATEWAY, _PORT), _PATIENCE, (address, 0)))
        server.settimeout(_PATIENCE)
        far = stack.enter_context(server.accept()[0])
        far.settimeout(_PATIENCE)
        source, receiver = (near, far) if way == "up" else (far, near)
        sender = _Sender(source)
        sender.start()
        buffer = bytearray(_PIECE)

        def receive(seconds: float) -> int:
            octets, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end and (some := receiver.recv_into(buffer)):
                octets += some
            return octets

        # Not on the sender's core, which does the work of all kernels on the way.
        with pinned(OURS):
            try:
                total = receive(_WARM_UP)
                began = time.perf_counter()
                total += (counted := receive(seconds))
                elapsed = time.perf_counter() - began
            finally:
                sender.done.set()
            total += receive(_PATIENCE)
        sender.join()
        if sender.failure or total != sender.octets:
            raise BenchError(f"{total} of {sender.octets} octets arrived: {sender.failure or 'the rest is lost'}")
        return counted * 8e-9 / elapsed


class _Sender(threading.Thread):
    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self.done = threading.Event()
        self.octets = 0
        self.failure: OSError | None = None

    def run(self) -> None:
        os.sched_setaffinity(0, {THEIRS})
        data = bytes(_PIECE)
        try:
            while not self.done.is_set():
                self._sock.sendall(data)
                self.octets += len(data)
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.failure = error
