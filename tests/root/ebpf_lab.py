"""A concentrator in a network namespace of its own, a subscriber in another, and the world in a third.

    subscriber: sub0 (raw frames), ppp0 (its kernel)  --acc0  concentrator  core0--  core1: 198.51.100.2, the world

There is no PPP engine: sessions are given to the back end by hand.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any

from npppy.config.model import Interface, Ipcp, Where
from npppy.pipex.base import FlowSpec
from npppy.pipex.ebpf import nics, plumbing
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.flow import EbpfFlow
from npppy.pipex.ebpf.libbpf import XDP, Program, library
from npppy.pipex.ebpf.nics import NO_TRANSMIT
from npppy.pipex.ebpf.plumbing import NpxInterface, ethtool
from npppy.port import Port
from npppy.ppp.mppe import Mppe
from npppy.pppoe.call import PppoeEncap

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
WHERE = Where("npppd.conf", 1, 1)
GATEWAY, PEER, WORLD = "10.0.0.1", "10.0.0.2", "198.51.100.2"
POOL = IPv4Network("10.0.0.0/16")
OURS, THEIRS = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
#: Of core0, and of core1.
CORE, NEXT = b"\x02\0\0\0\x0c\x01", b"\x02\0\0\0\x0c\x02"
SESSION = b"\x88\x64\x11\x00"
IP = b"\x00\x21"
IP6 = b"\x00\x57"
MPPE = b"\x00\xfd"


def sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    # Of what succeeds ip(8) may have a warning, as that a namespace is just gone.
    return done.stdout if check else done.stdout + done.stderr


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


def interface(name: str = "tun0", address: str = GATEWAY) -> Interface:
    return Interface(name=name, where=WHERE, address=IPv4Address(address), ipcp=Ipcp(name="POOL", where=WHERE))


class Namespace:
    """A network namespace that nobody has named; ``with`` puts this thread into it."""

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        assert LIBC.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        # Nothing but what a test sends.
        for which in ("default", "all"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
        sh("ip link set lo up")
        assert LIBC.setns(home, CLONE_NEWNET) == 0
        os.close(home)
        self._homes: list[int] = []

    def __enter__(self) -> Namespace:
        self._homes.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        assert LIBC.setns(self.fd, CLONE_NEWNET) == 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        home = self._homes.pop()
        assert LIBC.setns(home, CLONE_NEWNET) == 0
        os.close(home)

    def close(self) -> None:
        os.close(self.fd)

    async def start(self, command: list[str], **more: Any) -> asyncio.subprocess.Process:
        """In the folder of the sources."""
        home = Path(__file__).parents[2]
        with self:
            return await asyncio.create_subprocess_exec(*command, cwd=home, **more)

    async def run(self, command: str) -> tuple[int, str]:
        process = await self.start(command.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    def socket(self, kind: int, address: tuple[str, int] | None = None) -> socket.socket:
        with self:
            made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address:
            made.bind(address)
        return made


def packet_socket(name: str, protocol: int = 0x0003) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    made.bind((name, protocol))
    made.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    return made


def frame(session: int, ppp: bytes, *, tags: bytes = b"", source: bytes = THEIRS, to: bytes = OURS) -> bytes:
    """From the peer; *ppp* begins with its Protocol field."""
    return to + source + tags + SESSION + struct.pack(">HH", session, len(ppp)) + ppp


class Subscriber:
    """A thread that is the PPPoE of the subscriber's kernel: from ppp0 to sub0 and back, for one session."""

    def __init__(self, namespace: Namespace, session: int, mtu: int, mppe: Mppe | None = None) -> None:
        with namespace:
            sh("ip tuntap add dev ppp0 mode tun")
            self._tun = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(self._tun, 0x400454CA, struct.pack("16sH22x", b"ppp0", 0x1001))
            sh(f"ip address add {PEER}/32 dev ppp0")
            sh(f"ip link set ppp0 up mtu {mtu}")
            sh("ip route add default dev ppp0")
            self._wire = packet_socket("sub0", 0x8864)
        self._session = session
        self._mppe = mppe
        self._stop, self._stopped = os.pipe()
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        for fd in (self._stop, self._stopped, self._tun):
            os.close(fd)
        self._wire.close()

    def _run(self) -> None:
        header = OURS + THEIRS + SESSION + self._session.to_bytes(2, "big")
        back = THEIRS + OURS + header[12:]
        while True:
            ready, _, _ = select.select([self._tun, self._wire, self._stop], [], [])
            if self._stop in ready:
                return
            if self._tun in ready:
                packet = os.read(self._tun, 65536)
                self.sent.append(packet)
                ppp = (IP if packet[0] >> 4 == 4 else IP6) + packet
                if self._mppe is not None:
                    ppp = self._mppe.send.encrypt(ppp)
                self._wire.send(header + len(ppp).to_bytes(2, "big") + ppp)
            if self._wire in ready:
                data = self._wire.recv(65536)
                ppp = data[20 : 20 + int.from_bytes(data[18:20], "big")]
                if self._mppe is not None and data[:18] == back and ppp[:2] == MPPE:
                    plain = self._mppe.receive.decrypt(ppp[2:])
                    assert plain is not None
                    ppp = plain
                if data[:18] == back and ppp[:2] in (IP, IP6):
                    packet = ppp[2:]
                    self.received.append(packet)
                    os.write(self._tun, packet)


class Lab:
    """The three namespaces, and the back end in the middle one, in which the thread is."""

    #: Whether acc0 and core0 take frames, which kernels before 6.3 do not tell: their other ends have GRO.
    gro = True

    def __init__(self) -> None:
        self.home = Namespace()
        self.subscriber = Namespace()
        self.world = Namespace()
        self.home.__enter__()
        self.flows: dict[int, EbpfFlow] = {}
        #: Of sessions that encrypt; and how many packets Python has decrypted, and how many it could not.
        self.mppe: dict[int, Mppe] = {}
        self.decrypted = self.undecrypted = 0
        self.pump: Subscriber | None = None
        self.npx: NpxInterface | None = None
        self.backend: EbpfBackend | None = None
        # One for each processor, as NICs have them.
        queues = f"numtxqueues {os.cpu_count()} numrxqueues {os.cpu_count()}"
        for name, mac, peer, peer_mac in (("acc0", OURS, "sub0", THEIRS), ("core0", CORE, "core1", NEXT)):
            ends = f"{name} {queues} address {mac.hex(':')} type veth peer name {peer} {queues}"
            sh(f"ip link add {ends} address {peer_mac.hex(':')}")
        self._move("sub0", self.subscriber)
        self._move("core1", self.world)
        sh("ip link set acc0 up")
        sh("ip address add 198.51.100.1/24 dev core0")
        sh("ip link set core0 up")
        with self.subscriber:
            sh("ip link set sub0 up")
            self.raw = packet_socket("sub0", 0x8864)
            # A device that frames are redirected to needs NAPI at its peer.
            gro("sub0")
        with self.world:
            sh(f"ip address add {WORLD}/24 dev core1")
            sh("ip link set core1 up")
            sh("ip route add default via 198.51.100.1")
            gro("core1")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self.ifindex = socket.if_nametoindex("acc0")
        # The daemon's packet socket.
        self.access = packet_socket("acc0", 0x8864)
        self.access.setblocking(False)
        self.control: list[bytes] = []

    def _move(self, name: str, namespace: Namespace) -> None:
        with namespace:
            waiting = subprocess.Popen(["sleep", "60"])
        sh(f"ip link set {name} netns {waiting.pid}")
        waiting.kill()
        waiting.wait()

    async def open(self, capacity: int = 100, pins: Path | None = None, **more: Any) -> EbpfBackend:
        """The back end, with tun0 and acc0 attached."""
        nics.NO_TRANSMIT = NO_TRANSMIT - {"veth"} if self.gro else NO_TRANSMIT
        self.backend = EbpfBackend.open(capacity, pins, **more)
        self.npx = self.add_interface(interface())
        self.backend.attach_access(socket.if_indextoname(self.ifindex), self.ifindex)
        asyncio.get_running_loop().add_reader(self.access, self._frame)
        return self.backend

    def add_interface(self, line: Interface, routes: tuple[IPv4Network, ...] = (POOL,)) -> NpxInterface:
        assert self.backend is not None
        npx = self.backend.open_interface(line, 1492, routes)
        shared = self.backend.attach(npx.name, int(npx.address), npx.write, npx.emit)
        npx.start(shared.deliver)
        return npx

    def add(self, session: int, address: str = PEER, **more: Any) -> EbpfFlow:
        """A session of the subscriber."""
        assert self.backend is not None
        port = more.pop("port", Port(socket.if_indextoname(self.ifindex)))
        mac = more.pop("mac", THEIRS)
        mppe = more.get("mppe")

        def send(ppp: bytes) -> None:
            self.access.send(THEIRS + OURS + SESSION + struct.pack(">HH", session, len(ppp)) + ppp)

        values: dict[str, Any] = {
            "session": session,
            "domain": 0,
            "interface": "tun0",
            "address": int(IPv4Address(address)),
            "mtu": 1492,
            "mru": 1492,
            "send": self.encrypted(session, mppe, send),
            "encap": PppoeEncap(port, OURS, mac, session),
        }
        flow = self.flows[session] = self.backend.add(FlowSpec(**values | more), time.monotonic())
        return flow

    def _frame(self) -> None:
        """What the daemon does with frames that the programs have left to it."""
        try:
            while True:
                data = self.access.recv(65536)
                session, length = struct.unpack(">HH", data[16:20])
                if not self.take(session, data[20 : 20 + length]):
                    self.control.append(data)
        except BlockingIOError:
            pass

    def encrypted(self, session: int, mppe: Mppe | None, send: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """What sends a session's data; *send* sends a frame."""
        if mppe is None:
            self.mppe.pop(session, None)
            return send
        self.mppe[session] = mppe
        sender = mppe.send

        def encrypt(ppp: bytes) -> None:
            if sender.inject is not None:
                sender.inject(ppp)
            else:
                send(sender.encrypt(ppp))

        return encrypt

    def take(self, session: int, ppp: bytes) -> bool:
        """What PPP does with a frame in Python's hands; False: it is no data of a session."""
        flow, mppe, now = self.flows.get(session), self.mppe.get(session), time.monotonic()
        if flow is not None and mppe is not None and ppp[:2] == MPPE:
            plain = mppe.receive.decrypt(ppp[2:], now)
            if plain is None:
                self.undecrypted += 1
                return True
            self.decrypted += 1
            ppp = plain
        elif mppe is not None:
            return False
        if flow is None or ppp[:2] not in (IP, IP6):
            return False
        (flow.input if ppp[:2] == IP else flow.input6)(ppp[2:], now)
        return True

    def far(self) -> None:
        """There are more networks behind the world; it never has to be asked for its address."""
        sh(f"ip route add 203.0.113.0/24 via {WORLD}")
        sh(f"ip neighbour add {WORLD} lladdr {NEXT.hex(':')} dev core0 nud permanent")

    def serve(self, name: str) -> None:
        """Subscribers are on another interface from now on, of our address."""
        self.access.close()
        self.ifindex = socket.if_nametoindex(name)
        self.access = packet_socket(name, 0x8864)
        self.access.setblocking(False)

    async def transfer(self, *, up: bool, world: bool = True) -> int:
        """Data in bulk between the subscriber's kernel and the world's, or ours; returns how many octets."""
        address = WORLD if world else GATEWAY
        server = (self.world if world else self.home).socket(socket.SOCK_STREAM, (address, 5000))
        server.listen()
        client = self.subscriber.socket(socket.SOCK_STREAM)
        client.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(client, (address, 5000)), 10)
        server.settimeout(60)
        accepted, _ = server.accept()
        sender, receiver = (client, accepted) if up else (accepted, client)
        sender.setblocking(True)
        receiver.setblocking(True)
        data = random.Random(1).randbytes(1 << 20) * 4

        def receive() -> bytes:
            whole = hashlib.sha256()
            while piece := receiver.recv(1 << 16):
                whole.update(piece)
            return whole.digest()

        def send() -> None:
            sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)

        async with asyncio.timeout(60):
            _, digest = await asyncio.gather(asyncio.to_thread(send), asyncio.to_thread(receive))
        assert digest == hashlib.sha256(data).digest()
        for made in (server, client, accepted):
            made.close()
        return len(data)

    def seen(self, tun: str = "tun0") -> int:
        """Packets that the kernel has given to Python by the tun."""
        stats = json.loads(sh(f"ip -j -s link show {tun}"))[0]["stats64"]
        return int(stats["tx"]["packets"]) + int(stats["tx"]["dropped"])

    def close(self) -> None:
        if self.pump is not None:
            self.pump.close()
        if self.npx is not None and self.npx._fd >= 0:
            for flow in self.flows.values():
                flow.close()
            self.close_interface(self.npx)
        if self.backend is not None:
            self.backend.close()
        self.access.close()
        self.raw.close()
        self.home.__exit__(None, None, None)
        for namespace in (self.home, self.subscriber, self.world):
            namespace.close()

    def close_interface(self, npx: NpxInterface) -> None:
        assert self.backend is not None
        self.backend.detach(npx.name)
        npx.close()


def foreign_program(verdict: int = 2) -> Program:
    """An XDP program of somebody else, that passes everything on."""
    lib = library()
    # r0 = verdict; exit
    code = struct.pack("<BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)
    arguments = (ctypes.c_char_p(b"somebodys"), ctypes.c_char_p(b"GPL"), ctypes.c_char_p(code), ctypes.c_size_t(2))
    fd = lib.bpf_prog_load(XDP, *arguments, None)
    assert fd >= 0
    return Program(fd)


def attach_foreign(name: str, program: Program) -> None:
    flags = 1 << 2  # XDP_FLAGS_DRV_MODE
    assert library().bpf_xdp_attach(socket.if_nametoindex(name), program.fd, flags, None) == 0


def gro(name: str) -> None:
    """Switch GRO on."""
    ethtool(name, 0x2C, 1)


def xdp(name: str) -> str:
    """The name of the XDP program of an interface."""
    link = json.loads(sh(f"ip -j -d link show {name}"))[0]
    found: str = link.get("xdp", {}).get("prog", {}).get("name", "")
    return found


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


@contextmanager
def sysfs(path: Path) -> Iterator[None]:
    """What it shows of devices is of this network namespace, as it is for npppyd."""
    assert LIBC.mount(b"sysfs", os.fsencode(path), b"sysfs", 0, None) == 0, os.strerror(ctypes.get_errno())
    before, plumbing._DEVICES = plumbing._DEVICES, path / "class/net"  # type: ignore[misc]
    try:
        yield
    finally:
        plumbing._DEVICES = before  # type: ignore[misc]
        assert LIBC.umount(os.fsencode(path)) == 0


@contextmanager
def bpffs(path: Path) -> Iterator[Path]:
    """A directory for pins, on a BPF file system of our own."""
    assert LIBC.mount(b"bpf", os.fsencode(path), b"bpf", 0, None) == 0, os.strerror(ctypes.get_errno())
    try:
        yield path / "npppy"
    finally:
        assert LIBC.umount(os.fsencode(path)) == 0
