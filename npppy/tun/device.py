"""The tun device: made, configured, read and written.

Three lines join one to the data path::

    tun = TunInterface.open(interface, mtu, pool.aggregates())
    shared = backend.attach(tun.name, int(tun.address), tun.write, tun.emit)
    tun.start(shared.deliver)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Self

from ..config.model import Interface
from .netlink import Netlink, NetlinkError, RouteQueue, forwarding

log = logging.getLogger("npppy.tun")

_DEVICE: Final = "/dev/net/tun"
#: Packets read in one go, between which the event loop serves others.
_BATCH: Final = 64

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("16sH22x")
#: linux/icmpv6.h
_ICMP6_FILTER: Final = 1


class TunError(Exception):
    """The device cannot be had; the message says why."""


class TunInterface:
    """A tun device of our own, with its address and routes; it vanishes with us."""

    def __init__(
        self,
        name: str,
        address: IPv4Address,
        fd: int,
        emitter: socket.socket,
        emitter6: socket.socket | None,
        netlink: Netlink,
    ) -> None:
        """For :meth:`open`."""
        self.name = name
        self.address = address
        self._fd = fd
        self._emitter = emitter
        self._emitter6 = emitter6
        self._netlink = netlink
        self._loop = asyncio.get_running_loop()
        self._routes: RouteQueue | None = None
        self._deliver: Callable[[bytes, float], None] | None = None

    @classmethod
    def open(cls, interface: Interface, mtu: int, aggregates: Iterable[IPv4Network]) -> Self:
        """Make the device of an ``interface`` line, with routes for *aggregates*.

        *mtu* is the largest MTU of any session, in octets.  To be called on the event
        loop.  Raises :class:`TunError`.
        """
        name = interface.name
        with contextlib.ExitStack() as undo:
            fd = open_device(name)
            undo.callback(os.close, fd)
            try:
                # Our own packets go out like any other of this host: as if from a peer, the kernel would take their
                # source, its own address, for a forged one.
                emitter = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
                undo.callback(emitter.close)
                emitter6 = _open_emitter6()
                if emitter6 is not None:
                    undo.callback(emitter6.close)
                netlink = Netlink()
                undo.callback(netlink.close)
                tun = cls(name, interface.address, fd, emitter, emitter6, netlink)
                tun._configure(mtu, aggregates)
            except (NetlinkError, OSError) as error:
                raise TunError(f"{name}: {error}") from error
            undo.pop_all()
        return tun

    def start(self, deliver: Callable[[bytes, float], None]) -> None:
        """Hand *deliver* the packets that the kernel routes to the device, with the time."""
        self._deliver = deliver
        self._loop.add_reader(self._fd, self._readable)

    def write(self, packet: bytes) -> None:
        """Give the kernel a packet, as received by the device.  Raises :class:`OSError` where it is not taken."""
        os.write(self._fd, packet)

    def emit(self, packet: bytes) -> None:
        """Send a packet from this host; if it is IPv6, the kernel gives it source and checksum, and it is ICMPv6.

        Raises :class:`OSError` where it cannot be sent.
        """
        if packet[0] >> 4 == 4:
            self._emitter.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
            return
        if self._emitter6 is None:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        self._emitter6.sendto(packet[40:], (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0))

    def set_mtu(self, mtu: int) -> None:
        """Give the device another MTU, in octets.  Failure is logged."""
        try:
            self._netlink.set_up(self.name, self._netlink.link(self.name).ifindex, mtu)
        except (NetlinkError, OSError) as error:
            log.error("iface=%s %s", self.name, error)

    def add_route(self, network: IPv4Network) -> None:
        """Route *network* to the device, soon.  Failure is logged."""
        if self._routes is not None:
            self._routes.add(network)

    def remove_route(self, network: IPv4Network) -> None:
        """Do so no more.  Failure is logged."""
        if self._routes is not None:
            self._routes.remove(network)

    def close(self) -> None:
        """Remove the device; its routes go with it.  Writing fails from now on; closing again does nothing."""
        if self._fd < 0:
            return
        if self._routes is not None:
            self._routes.close()
            self._routes = None
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        # The number may soon be another file's.
        self._fd = -1
        self._emitter.close()
        if self._emitter6 is not None:
            self._emitter6.close()
        self._netlink.close()

    def _configure(self, mtu: int, aggregates: Iterable[IPv4Network]) -> None:
        netlink = self._netlink
        ifindex = netlink.link(self.name).ifindex
        netlink.add_address(self.name, ifindex, self.address)
        netlink.set_up(self.name, ifindex, mtu)
        for network in aggregates:
            netlink.add_route(self.name, ifindex, network)
        self._routes = RouteQueue(netlink, self.name, ifindex)
        look_at_forwarding(self.name)

    def _readable(self) -> None:
        assert self._deliver is not None
        now = time.monotonic()
        for _ in range(_BATCH):
            try:
                # A packet is never larger than the MTU, which others may raise.
                packet = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                # Unless the last packet made somebody close us, somebody has removed the device.
                if self._fd >= 0:
                    log.error("iface=%s cannot read from the device: %s", self.name, error.strerror)
                    self._loop.remove_reader(self._fd)
                return
            self._deliver(packet, now)


def _open_emitter6() -> socket.socket | None:
    """A socket that ICMPv6 is sent by, and none received; None in a kernel without IPv6.  Raises :class:`OSError`."""
    try:
        emitter = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    # A bit for each type.
    emitter.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, b"\xff" * 32)
    return emitter


def look_at_forwarding(name: str) -> None:
    """Warn if the kernel does not route what comes from an interface."""
    try:
        if not forwarding(name):
            log.warning("iface=%s net.ipv4.ip_forward is 0: the kernel does not route what peers send", name)
    except OSError as error:
        # A sandbox may hide /proc/sys.
        log.info("iface=%s cannot tell whether the kernel routes what peers send: %s", name, error)


def open_device(name: str) -> int:
    """A descriptor of a new tun device."""
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reasons = {
            errno.ENOENT: "is the tun module there?",
            errno.ENODEV: "is the tun module there?",
            errno.EACCES: "not permitted",
            errno.EPERM: "not permitted in this container or unit",
        }
        hint = reasons.get(error.errno or 0)
        raise TunError(f"{name}: cannot open {_DEVICE}: {error.strerror}" + (f" ({hint})" if hint else "")) from error
    try:
        encoded = os.fsencode(name)
        if name in (known for _, known in socket.if_nameindex()):
            # A persistent tun device of somebody else's would let us in.
            raise TunError(f"{name}: an interface of this name exists already")
        if not 0 < len(encoded) < 16 or "%" in name:
            raise TunError(f"{name}: not a name for an interface")
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(encoded, _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            hint = " (CAP_NET_ADMIN is needed)" if error.errno == errno.EPERM else ""
            raise TunError(f"{name}: cannot make the tun device: {error.strerror}{hint}") from error
    except TunError:
        os.close(fd)
        raise
    return fd
