"""Packets a second through pipex's back end ``user``, by itself and, as root, over a tun device.

    python bench/pipex_user.py [seconds for each figure]
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import uvloop

from npppy.config.model import Interface, Ipcp, Where
from npppy.pipex.base import FlowSpec
from npppy.pipex.ip import checksum
from npppy.pipex.user import UserBackend, UserFlow
from npppy.tun.device import TunInterface

PEER = int(IPv4Address("10.0.0.2"))
FAR = int(IPv4Address("198.51.100.1"))
_CLONE_NEWNET = 0x40000000


def packet(source: int, destination: int, size: int, protocol: int = 17) -> bytes:
    """A packet of *size* octets, from port 40000 to 40001; a SYN with an MSS of 1460, if it is TCP."""
    head = b"\x45\0" + size.to_bytes(2, "big") + b"\0\0\0\0\x40" + bytes((protocol,))
    addresses = source.to_bytes(4, "big") + destination.to_bytes(4, "big")
    ports = (40000).to_bytes(2, "big") + (40001).to_bytes(2, "big")
    tcp = bytes(8) + b"\x60\x02" + bytes(6) + b"\x02\x04\x05\xb4" if protocol == 6 else b""
    data = (ports + tcp).ljust(size - 20, b"\0")
    return head + checksum(head + b"\0\0" + addresses).to_bytes(2, "big") + addresses + data


def rate(name: str, call: Callable[[], object], seconds: float) -> None:
    """Print how often a second *call* can be made: the best of five runs."""
    best = 0.0
    for _ in range(5):
        count = 0
        start = time.perf_counter()
        end = start + seconds / 5
        while (now := time.perf_counter()) < end:
            for _ in range(1000):
                call()
            count += 1000
        best = max(best, count / (now - start))
    show(name, best)


def show(name: str, value: float) -> None:
    print(f"{name:<40} {value:>12,.0f} packets/s")


def flow(backend: UserBackend, address: int, **options: bool) -> UserFlow:
    spec = FlowSpec(
        session=1, domain=0, interface="tun0", address=address, mtu=1400, mru=1400, send=lambda frame: None, **options
    )
    return backend.add(spec, 0.0)


def logic(seconds: float) -> None:
    backend = UserBackend()
    shared = backend.attach("tun0", PEER - 1, lambda packet: None, lambda packet: None)
    plain = flow(backend, PEER)
    both = flow(backend, PEER + 1, ingress_filter=True, mss_adjust=True)
    for size in (64, 1400):
        up, down = packet(PEER, FAR, size), packet(FAR, PEER, size)
        rate(f"user.logic.up.{size}", lambda up=up: plain.input(up, 1.0), seconds)
        rate(f"user.logic.down.{size}", lambda down=down: shared.deliver(down, 1.0), seconds)
    up, down = packet(PEER + 1, FAR, 1400), packet(FAR, PEER + 1, 1400)
    rate("user.logic.up.1400 filter, mss", lambda: both.input(up, 1.0), seconds)
    rate("user.logic.down.1400 filter, mss", lambda: shared.deliver(down, 1.0), seconds)
    syn_up, syn_down = packet(PEER + 1, FAR, 64, 6), packet(FAR, PEER + 1, 64, 6)
    rate("user.logic.up.64 syn clamped", lambda: both.input(syn_up, 1.0), seconds)
    rate("user.logic.down.64 syn clamped", lambda: shared.deliver(syn_down, 1.0), seconds)
    for n in range(10_000):
        flow(backend, PEER + 0x10000 + n)
    last = packet(FAR, PEER + 0x10000 + 9999, 64)
    rate("user.logic.down.64 of 10,000 sessions", lambda: shared.deliver(last, 1.0), seconds)
    large = packet(FAR, PEER, 1500)
    rate("user.logic.down.1500 fragmented", lambda: shared.deliver(large, 1.0), seconds)


async def device(seconds: float) -> None:
    """The same with the system calls: what peers send ends in the kernel, as nothing routes it on."""
    where = Where("bench", 1, 1)
    interface = Interface(
        name="tun0", where=where, address=IPv4Address(PEER - 1), ipcp=Ipcp(name="bench", where=where)
    )
    tun = TunInterface.open(interface, 1500, [IPv4Network((PEER, 32))])
    backend = UserBackend()
    shared = backend.attach("tun0", PEER - 1, tun.write, tun.emit)
    session = flow(backend, PEER)
    tun.start(shared.deliver)
    for size in (64, 1400):
        up = packet(PEER, FAR, size)
        rate(f"user.tun.up.{size}", lambda up=up: session.input(up, 1.0), seconds)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for size in (64, 1400):
        # A socket of this process fills the device's queue, which does not count; emptying it does, event loop and all.
        spent, done, data = 0.0, 0, bytes(size - 28)
        while spent < seconds:
            before = session.counters().out_packets
            for _ in range(256):
                sender.sendto(data, (str(IPv4Address(PEER)), 40001))
            start = time.perf_counter()
            while session.counters().out_packets < before + 256:
                await asyncio.sleep(0)
            spent += time.perf_counter() - start
            done += 256
        show(f"user.tun.down.{size}", done / spent)
    sender.close()
    tun.close()


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    logic(seconds)
    if os.geteuid() == 0 and ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0:
        uvloop.run(device(seconds))
    else:
        print("not root: without the tun device")


if __name__ == "__main__":
    main()
