"""The lab of back end ebpf with an L2TP peer in the place of the PPPoE subscriber.

    peer: sub0, 192.0.2.2, 2001:db8:2::2  --acc0: 192.0.2.1, 2001:db8:2::1  concentrator  core0--  the world

The peer is a UDP socket, or raw frames; there is no L2TP engine: what the programs leave to npppyd is taken apart here.
What is on the wire is made and read here, too, by nothing that is tested.
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
from npppy.l2tp.encap import L2tpEncap, Sequence
from npppy.pipex.base import FlowSpec
from npppy.pipex.ebpf import nics
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.flow import EbpfFlow
from npppy.pipex.ebpf.nics import NO_TRANSMIT
from npppy.pipex.ebpf.plumbing import NpxInterface
from npppy.ppp.mppe import Mppe
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

#: Of npppyd and of the peer, by version of IP.
HERE = {4: "192.0.2.1", 6: "2001:db8:2::1"}
THERE = {4: "192.0.2.2", 6: "2001:db8:2::2"}
#: The port of npppyd, and the peer's, which is behind a NAT.
PORT, THEIR_PORT = 1701, 31701
#: Ids of call 1: ours, and the peer's.  The tunnel is one for all.
TUNNEL, THEIR_TUNNEL = 0x1234, 0x4321


def session(number: int) -> tuple[int, int]:
    """Our session id of a call, and the peer's."""
    return 0x5600 + number, 0x6500 + number


def message(
    tunnel: int, session: int, ppp: bytes, ns: int | None = None, *, length: bool = True, offset: int | None = None
) -> bytes:
    """An L2TP data message; *ppp* begins with Address and Control, or without."""
    flags = 2 | (length and 0x4000) | (ns is not None and 0x0800) | (offset is not None and 0x0200)
    rest = struct.pack(">HH", tunnel, session)
    if ns is not None:
        rest += struct.pack(">HH", ns, 0)
    if offset is not None:
        rest += struct.pack(">H", offset) + b"\xee" * offset
    rest += ppp
    size = struct.pack(">H", 4 + len(rest)) if length else b""
    return struct.pack(">H", flags) + size + rest


def datagram(source: str, sport: int, destination: str, dport: int, data: bytes, *, more: int = 0) -> bytes:
    """An IP packet with UDP, in a frame from the peer; IPv4 with *more* as the field of fragments."""
    ends = ip_address(source).packed + ip_address(destination).packed
    udp = struct.pack(">HHHH", sport, dport, 8 + len(data), 0)
    check = 0xFFFF ^ words(ends + struct.pack(">HH", 17, 8 + len(data)) + udp + data)
    udp = udp[:6] + struct.pack(">H", check or 0xFFFF) + data
    if len(ends) == 32:
        return OURS + THEIRS + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(udp), 17, 64) + ends + udp
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 7, more, 64, 17, 0) + ends
    return OURS + THEIRS + b"\x08\0" + head[:10] + struct.pack(">H", 0xFFFF ^ words(head)) + head[12:] + udp


class Outer(NamedTuple):
    """What is in a frame with UDP."""

    ends: tuple[str, int, str, int]
    checksum: bool
    data: bytes


def read(frame: bytes) -> Outer:
    """A frame for the peer, all of whose headers must be right to the octet."""
    assert frame[:12] == THEIRS + OURS
    if frame[12:14] == b"\x08\0":
        assert frame[14:16] == b"\x45\0"
        size, _, fragment, ttl, protocol = struct.unpack(">HHHBB", frame[16:24])
        assert (fragment, ttl, protocol) == (0, 64, 17)
        assert words(frame[14:34]) == 0xFFFF
        ends, packet = frame[26:34], frame[34 : 14 + size]
    else:
        assert frame[12:14] == b"\x86\xdd"
        first, size, protocol, hops = struct.unpack(">IHBB", frame[14:22])
        assert (first, protocol, hops) == (6 << 28, 17, 64)
        ends, packet = frame[22:54], frame[54 : 54 + size]
    sport, dport, length, check = struct.unpack(">HHHH", packet[:8])
    assert length == len(packet)
    if check:
        assert words(ends + struct.pack(">HH", 17, length) + packet) == 0xFFFF
    else:
        assert len(ends) == 8
    half = len(ends) // 2
    source, destination = str(ip_address(ends[:half])), str(ip_address(ends[half:]))
    return Outer((source, sport, destination, dport), check != 0, packet[8:])


class Data(NamedTuple):
    """A data message to the peer."""

    session: int
    ns: int | None
    ppp: bytes


def unpack(data: bytes) -> Data:
    """A data message to the peer, all of whose header must be right to the octet."""
    flags, length, tunnel, number = struct.unpack(">HHHH", data[:8])
    assert (length, tunnel) == (len(data), THEIR_TUNNEL)
    if flags == 0x4002:
        ns, rest = None, data[8:]
    else:
        assert flags == 0x4802
        ns, nr = struct.unpack(">HH", data[8:12])
        assert nr == 0
        rest = data[12:]
    assert rest[:2] == b"\xff\x03"
    return Data(number, ns, rest[2:])


class L2tpLab(Lab):
    """Back end ebpf, and a peer at acc0."""

    def __init__(self, version: int = 4) -> None:
        super().__init__()
        self.version = version
        self.local, self.peer = HERE[version], THERE[version]
        self._switch_on_ipv6(acc0=HERE[6])
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        sh(f"ip address add {HERE[4]}/24 dev acc0")
        for address in THERE.values():
            sh(f"ip neighbour add {address} dev acc0 lladdr {THEIRS.hex(':')} nud permanent")
        with self.subscriber:
            self._switch_on_ipv6(sub0=THERE[6])
            sh(f"ip address add {THERE[4]}/24 dev sub0")
            for address in HERE.values():
                sh(f"ip neighbour add {address} dev sub0 lladdr {OURS.hex(':')} nud permanent")
            self.raw.close()
            #: All that leaves to the peer, and its own frames.
            self.raw = packet_socket("sub0", 0x86DD if version == 6 else 0x0800)
        self.raw.settimeout(60)
        #: npppyd's socket; what it has got that is not data of a session, and how much that was.
        self.server = self.udp(self.home, self.local, PORT)
        if version == 4:
            self.server.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        self.server.setblocking(False)
        self.messages: list[tuple[bytes, tuple[str, int]]] = []
        self.taken = 0
        self.delivered = 0
        #: The peer's socket.
        self.client = self.udp(self.subscriber, self.peer, THEIR_PORT)
        self.client.settimeout(60)

    def _switch_on_ipv6(self, **addresses: str) -> None:
        for name in ("all", "default", *addresses):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")
        for name, address in addresses.items():
            sh(f"ip -6 address add {address}/64 dev {name} nodad")

    def udp(self, namespace: Namespace, address: str, port: int) -> socket.socket:
        with namespace:
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((address, port))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        return made

    async def open(self, capacity: int = 100, pins: Path | None = None, **more: Any) -> EbpfBackend:
        """The back end, with tun0; L2TP may come in by any interface, fast if *fast*."""
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
            # But for what the kernel says by itself to others of the link, as a router.
            if packet[0] >> 4 == 4 or packet[24] != 0xFF:
                self.delivered += 1
            deliver(packet, now)

        npx._deliver = count
        return npx

    def seen(self, tun: str = "tun0") -> int:
        """Packets that Python has got by the tun."""
        return self.delivered

    def call(self, number: int = 1, address: str = PEER, *, sequence: Sequence | None = None, **more: Any) -> EbpfFlow:
        """A session of the peer."""
        assert self.backend is not None
        ours, theirs = session(number)
        port = more.pop("port", THEIR_PORT)
        encap = L2tpEncap(
            *(ip_address(self.local).packed, PORT, ip_address(self.peer).packed, port),
            *(TUNNEL, ours, THEIR_TUNNEL, theirs),
            **{key: more.pop(key) for key in ("mark", "ipsec", "checksum") if key in more},
            sequence=sequence,
        )

        def send(ppp: bytes) -> None:
            """What the carrier does."""
            if sequence is None:
                ns = None
            elif sequence.keeper is not None:
                sequence.keeper.inject(ppp)
                return
            else:
                ns = sequence.ns
                sequence.ns = ns + 1 & 0xFFFF
            self.server.sendto(message(THEIR_TUNNEL, theirs, b"\xff\x03" + ppp, ns), (self.peer, port))

        values = {
            "session": number,
            "domain": 0,
            "interface": "tun0",
            "address": int(ip_address(address)),
            "mtu": 1400,
            "mru": 1400,
            "send": self.encrypted(number, more.get("mppe"), send),
            "encap": encap,
        }
        flow = self.flows[number] = self.backend.add(FlowSpec(**values | more), time.monotonic())
        self.send = send
        return flow

    def _readable(self) -> None:
        """What npppyd does with messages that the programs have left to it."""
        try:
            while True:
                data, source = self.server.recvfrom(65536)
                self.outer(data, source[:2])
        except BlockingIOError:
            pass

    def outer(self, data: bytes, source: tuple[str, int]) -> None:
        """A message in Python's hands."""
        flags, _, _, number = struct.unpack(">HHHH", data[:8])
        ppp = data[(14 if flags & 0x0800 else 10) :]
        if not flags & 0x8000 and self.take(number - session(0)[0], ppp):
            self.taken += 1
        else:
            self.messages.append((data, source))

    def up(self, ppp: bytes, ns: int | None = None, number: int = 1, **more: Any) -> None:
        """The peer sends a frame of a session."""
        self.client.sendto(message(TUNNEL, session(number)[0], b"\xff\x03" + ppp, ns, **more), (self.local, PORT))

    async def frame(self) -> bytes:
        """The next frame with UDP that is for the peer."""
        return await asyncio.to_thread(self._frame)

    def _frame(self) -> bytes:
        while True:
            data = self.raw.recv(65536)
            if data[:6] == THEIRS and data[23 if data[12] == 8 else 20] == 17:
                return data

    async def data(self) -> Data:
        """The next data message for the peer, in a frame that is right to the octet."""
        outer = read(await self.frame())
        assert outer.ends == (self.local, PORT, self.peer, THEIR_PORT)
        return unpack(outer.data)

    def close(self) -> None:
        super().close()
        self.server.close()
        self.client.close()


class Peer:
    """A thread that is the LAC and the PPP of the peer's kernel: from ppp0 to its socket and back, for call 1."""

    def __init__(self, lab: L2tpLab, mtu: int, *, sequenced: bool = False, mppe: Mppe | None = None) -> None:
        with lab.subscriber:
            sh("ip tuntap add dev ppp0 mode tun")
            self._tun = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(self._tun, 0x400454CA, struct.pack("16sH22x", b"ppp0", 0x1001))
            sh(f"ip address add {PEER}/32 dev ppp0")
            sh(f"ip link set ppp0 up mtu {mtu}")
            sh("ip route add default dev ppp0")
            gro("sub0")
        self._lab = lab
        self._sequenced = sequenced
        self._mppe = mppe
        self._stop, self._stopped = os.pipe()
        self.sent = 0
        self.received: list[bytes] = []
        self.numbers: list[int | None] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        for fd in (self._stop, self._stopped, self._tun):
            os.close(fd)

    def _run(self) -> None:
        lab = self._lab
        while True:
            ready, _, _ = select.select([self._tun, lab.client, self._stop], [], [])
            if self._stop in ready:
                return
            if self._tun in ready:
                packet = os.read(self._tun, 65536)
                ppp = (IP if packet[0] >> 4 == 4 else IP6) + packet
                if self._mppe is not None:
                    ppp = self._mppe.send.encrypt(ppp)
                lab.up(ppp, self.sent & 0xFFFF if self._sequenced else None)
                self.sent += 1
            if lab.client in ready:
                data = unpack(lab.client.recv(65536))
                self.numbers.append(data.ns)
                ppp = data.ppp
                if self._mppe is not None and ppp[:2] == MPPE:
                    plain = self._mppe.receive.decrypt(ppp[2:])
                    assert plain is not None
                    ppp = plain
                if ppp[:2] in (IP, IP6):
                    self.received.append(ppp[2:])
                    os.write(self._tun, ppp[2:])


@contextmanager
def l2tp_lab(version: int) -> Iterator[L2tpLab]:
    made = L2tpLab(version)
    try:
        yield made
    finally:
        made.close()
