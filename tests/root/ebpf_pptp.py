"""The lab of back end ebpf with a PPTP peer in the place of the PPPoE subscriber.

    peer: sub0, 192.0.2.2  --acc0: 192.0.2.1  concentrator  core0--  the world

The peer is a raw socket of GRE; there is no PPTP engine: what the programs leave to npppyd is taken apart here.  What
is on the wire is made and read here, too, by nothing that is tested.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any, NamedTuple

from npppy.config.model import Interface
from npppy.pipex.base import FlowSpec
from npppy.pipex.ebpf import nics
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.flow import EbpfFlow
from npppy.pipex.ebpf.nics import NO_TRANSMIT
from npppy.pipex.ebpf.plumbing import NpxInterface
from npppy.ppp.mppe import Mppe
from npppy.pptp.encap import PptpEncap, Sequence
from tests.root.ebpf_lab import (
    IP,
    IP6,
    MPPE,
    OURS,
    PEER,
    POOL,
    THEIRS,
    Lab,
    Namespace,
    gro,
    interface,
    packet_socket,
    sh,
)
from tests.unit.ippackets import words

HERE, THERE = "192.0.2.1", "192.0.2.2"
HDLC = b"\xff\x03"
#: IP's protocol number, and GRE's for PPP.
GRE, PPP = 47, 0x880B


def calls(number: int) -> tuple[int, int]:
    """Our call id of a session, and the peer's."""
    return 0x5600 + number, 0x6500 + number


def gre(
    call_id: int, sequence: int | None, ack: int | None, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    """A packet of enhanced GRE; *payload* begins with Address and Control, or without."""
    flags = 0x2001 | (sequence is not None and 0x1000) | (ack is not None and 0x0080)
    head = struct.pack(">HHHH", flags, PPP, len(payload) if length is None else length, call_id)
    for number in (sequence, ack):
        if number is not None:
            head += struct.pack(">I", number & 0xFFFFFFFF)
    return head + payload


def packet(source: str, destination: str, data: bytes, *, more: int = 0) -> bytes:
    """An IPv4 packet with GRE, in a frame from the peer; *more* is the field of fragments."""
    ends = ip_address(source).packed + ip_address(destination).packed
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), 7, more, 64, GRE, 0) + ends
    return OURS + THEIRS + b"\x08\0" + head[:10] + struct.pack(">H", 0xFFFF ^ words(head)) + head[12:] + data


class Outgoing(NamedTuple):
    """A packet to the peer; without a sequence number it only acknowledges."""

    call_id: int
    sequence: int | None
    ack: int
    ppp: bytes


def unpack(data: bytes) -> Outgoing:
    """Enhanced GRE from the kernel, all of whose header must be right to the octet."""
    flags, protocol, length, call_id = struct.unpack(">HHHH", data[:8])
    assert protocol == PPP
    if flags == 0x2081:
        (ack,) = struct.unpack(">I", data[8:12])
        assert (length, len(data)) == (0, 12)
        return Outgoing(call_id, None, ack, b"")
    assert flags == 0x3081
    sequence, ack = struct.unpack(">II", data[8:16])
    assert length == len(data) - 16
    assert data[16:18] == HDLC
    return Outgoing(call_id, sequence, ack, data[18:])


def read(frame: bytes) -> Outgoing:
    """A frame for the peer, all of whose headers must be right to the octet."""
    assert frame[:16] == THEIRS + OURS + b"\x08\0\x45\0"
    size, _, fragment, ttl, protocol = struct.unpack(">HHHBB", frame[16:24])
    assert (fragment, ttl, protocol) == (0, 64, GRE)
    assert words(frame[14:34]) == 0xFFFF
    assert frame[26:34] == ip_address(HERE).packed + ip_address(THERE).packed
    # Padded, or not: who sends on a real wire sees to that.
    assert len(frame) in (14 + size, max(14 + size, 60))
    return unpack(frame[34 : 14 + size])


class PptpLab(Lab):
    """Back end ebpf, and a peer at acc0."""

    def __init__(self) -> None:
        super().__init__()
        sh(f"ip address add {HERE}/24 dev acc0")
        sh(f"ip neighbour add {THERE} dev acc0 lladdr {THEIRS.hex(':')} nud permanent")
        with self.subscriber:
            sh(f"ip address add {THERE}/24 dev sub0")
            sh(f"ip neighbour add {HERE} dev sub0 lladdr {OURS.hex(':')} nud permanent")
            self.raw.close()
            #: All that leaves to the peer, and its own frames.
            self.raw = packet_socket("sub0", 0x0800)
        self.raw.settimeout(60)
        #: npppyd's socket; what it has got that is not data of a session, and how much that was.
        self.server = self.gre(self.home, HERE)
        self.server.setblocking(False)
        self.packets: list[bytes] = []
        self.taken = 0
        self.delivered = 0
        #: The peer's socket.
        self.client = self.gre(self.subscriber, THERE)
        self.client.settimeout(60)

    def gre(self, namespace: Namespace, address: str) -> socket.socket:
        with namespace:
            made = socket.socket(socket.AF_INET, socket.SOCK_RAW, GRE)
            made.bind((address, 0))
        made.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        return made

    async def open(self, capacity: int = 100, pins: Path | None = None, **more: Any) -> EbpfBackend:
        """The back end, with tun0; PPTP may come in by any interface, fast if *fast*."""
        nics.NO_TRANSMIT = NO_TRANSMIT - {"veth"} if self.gro else NO_TRANSMIT
        fast = more.pop("fast", False)
        self.backend = EbpfBackend.open(capacity, pins, **more)
        self.npx = self.add_interface(interface())
        self.backend.follow_core(fast, True)
        asyncio.get_running_loop().add_reader(self.server, self._readable)
        return self.backend

    def add_interface(self, line: Interface, routes: tuple[IPv4Network, ...] = (POOL,)) -> NpxInterface:
        npx = super().add_interface(line, routes)
        deliver = npx._deliver
        assert deliver is not None

        def count(packet: bytes, now: float) -> None:
            self.delivered += 1
            deliver(packet, now)

        npx._deliver = count
        return npx

    def seen(self, tun: str = "tun0") -> int:
        """Packets that Python has got by the tun."""
        return self.delivered

    def call(
        self,
        number: int = 1,
        address: str = PEER,
        *,
        sequence: Sequence | None = None,
        mppe: Mppe | None = None,
        window: int = 0,
        **more: Any,
    ) -> EbpfFlow:
        """A session of the peer, whose numbers begin at 0 unless there are others."""
        assert self.backend is not None
        ours, theirs = calls(number)
        numbers = sequence or Sequence()
        ends = ip_address(HERE).packed, ip_address(THERE).packed

        def send(ppp: bytes) -> None:
            """What the carrier does."""
            if numbers.keeper is not None:
                numbers.keeper.inject(ppp)
                return
            data = gre(theirs, numbers.out, numbers.expected - 1, HDLC + ppp)
            numbers.out = numbers.out + 1 & 0xFFFFFFFF
            numbers.acked = numbers.expected
            self.server.sendto(data, (THERE, 0))

        values = {
            "session": number,
            "domain": 0,
            "interface": "tun0",
            "address": int(ip_address(address)),
            "mtu": 1400,
            "mru": 1400,
            "send": self.encrypted(number, mppe, send),
            "encap": PptpEncap(*ends, ours, theirs, window, numbers),
            "mppe": mppe,
        }
        flow = self.flows[number] = self.backend.add(FlowSpec(**values | more), time.monotonic())
        self.send = send
        self.sequence = numbers
        return flow

    def _readable(self) -> None:
        """What npppyd does with packets that the programs have left to it."""
        try:
            while True:
                data = self.server.recv(65536)
                assert data[0] == 0x45
                self.outer(data[20:])
        except BlockingIOError:
            pass

    def outer(self, data: bytes) -> None:
        """A packet in Python's hands."""
        flags, _, length, call_id = struct.unpack(">HHHH", data[:8])
        at = 8 + (flags & 0x1000 and 4) + (flags & 0x0080 and 4)
        ppp = data[at : at + length].removeprefix(HDLC)
        if self.take(call_id - calls(0)[0], ppp):
            self.taken += 1
        else:
            self.packets.append(data)

    def up(self, ppp: bytes, sequence: int | None, number: int = 1, ack: int | None = None) -> None:
        """The peer sends a frame of a session."""
        self.client.sendto(gre(calls(number)[0], sequence, ack, HDLC + ppp), (HERE, 0))

    async def frame(self) -> bytes:
        """The next frame with GRE that is for the peer."""
        return await asyncio.to_thread(self._frame_out)

    def _frame_out(self) -> bytes:
        while True:
            data = self.raw.recv(65536)
            if data[:6] == THEIRS and data[23] == GRE:
                return data

    async def outgoing(self) -> Outgoing:
        """The next packet for the peer, in a frame that is right to the octet."""
        return read(await self.frame())

    async def data(self) -> Outgoing:
        """The next that has data."""
        while True:
            found = await self.outgoing()
            if found.sequence is not None:
                return found

    def close(self) -> None:
        super().close()
        self.server.close()
        self.client.close()


class Peer:
    """A thread that is the PAC and the PPP of the peer's kernel: from ppp0 to its socket and back, for call 1.

    It acknowledges with what it sends, and each 16 packets.
    """

    def __init__(self, lab: PptpLab, mtu: int, mppe: Mppe | None = None) -> None:
        with lab.subscriber:
            sh("ip tuntap add dev ppp0 mode tun")
            self._tun = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(self._tun, 0x400454CA, struct.pack("16sH22x", b"ppp0", 0x1001))
            sh(f"ip address add {PEER}/32 dev ppp0")
            sh(f"ip link set ppp0 up mtu {mtu}")
            sh("ip route add default dev ppp0")
            gro("sub0")
        self._lab = lab
        self._mppe = mppe
        self._stop, self._stopped = os.pipe()
        self.sent = 0
        self.received: list[bytes] = []
        #: Sequence numbers that came, acknowledgments of ours, and how many of those came alone.
        self.numbers: list[int] = []
        self.acks: list[int] = []
        self.alone = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        for fd in (self._stop, self._stopped, self._tun):
            os.close(fd)

    def _run(self) -> None:
        lab, mppe = self._lab, self._mppe
        owed = 0
        while True:
            ready, _, _ = select.select([self._tun, lab.client, self._stop], [], [])
            if self._stop in ready:
                return
            ack = self.numbers[-1] if self.numbers else None
            if self._tun in ready:
                packet = os.read(self._tun, 65536)
                ppp = (IP if packet[0] >> 4 == 4 else IP6) + packet
                # Whoever looks at it is in another thread.
                self.sent += 1
                lab.up(mppe.send.encrypt(ppp) if mppe is not None else ppp, self.sent - 1, ack=ack)
                owed = 0
            if lab.client in ready:
                data = unpack(lab.client.recv(65536)[20:])
                self.acks.append(data.ack)
                if data.sequence is None:
                    self.alone += 1
                    continue
                self.numbers.append(data.sequence)
                owed += 1
                if owed == 16:
                    lab.client.sendto(gre(calls(1)[0], None, data.sequence), (HERE, 0))
                    owed = 0
                ppp = data.ppp
                if mppe is not None and ppp[:2] == MPPE:
                    plain = mppe.receive.decrypt(ppp[2:])
                    assert plain is not None
                    ppp = plain
                if ppp[:2] in (IP, IP6):
                    self.received.append(ppp[2:])
                    os.write(self._tun, ppp[2:])


@contextmanager
def pptp_lab() -> Iterator[PptpLab]:
    made = PptpLab()
    try:
        yield made
    finally:
        made.close()
