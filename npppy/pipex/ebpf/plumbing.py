"""The devices that sessions' packets pass, and the removal of all that npppy has left in the kernel."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final, NamedTuple

from ...tun.device import TunInterface, look_at_forwarding
from ...tun.netlink import Netlink, NetlinkError, RouteQueue
from .attach import Own, detach_xdp
from .libbpf import BpfError
from .maps import PINS, pinned_programs, remove_pins

log = logging.getLogger("npppy.pipex")

#: Written about npx devices that are ours, before the name of the shared interface.
_ALIAS: Final = "npppy "
#: Addresses of our own of npx0 and npx1: nobody else is on their wire.
_NPX0_MAC: Final = b"\x02npx\0\0"
_NPX1_MAC: Final = b"\x02npx\0\1"

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL: Final = 0x8946
_STXCSUM: Final = 0x17
_GFLAGS: Final = 0x25
_SFLAGS: Final = 0x26
_SGRO: Final = 0x2C
_RXVLAN: Final = 1 << 8

_IFREQ: Final = struct.Struct("16sP16x")
_ETHTOOL: Final = struct.Struct("=II")
_ETHERTYPE_IP: Final = b"\x08\x00"


class Device(NamedTuple):
    name: str
    ifindex: int
    mac: bytes


class NpxInterface(TunInterface):
    """A shared interface whose packets programs carry: npx0 and npx1, and a tun for what they leave to Python.

    The address and the routes are those of npx0.  Until programs are attached, npx1 lets nothing pass.
    """

    #: The side of the IP stack, and that of the programs.
    npx0: Device
    npx1: Device
    #: Index of the tun.
    ifindex: int
    _inject: socket.socket

    def write(self, packet: bytes) -> None:
        """Give the kernel a packet, as received on npx0.  Raises :class:`OSError` where it is not taken."""
        self._inject.sendmsg((_NPX0_MAC + _NPX1_MAC + _ETHERTYPE_IP, packet))

    def set_mtu(self, mtu: int) -> None:
        """Give the devices another MTU, in octets.  Failure is logged."""
        try:
            self._set_up(mtu)
        except (NetlinkError, OSError) as error:
            log.error("iface=%s %s", self.name, error)

    def close(self) -> None:
        """Remove the devices; routes go with them.  Writing fails from now on; closing again does nothing."""
        if self._fd < 0:
            return
        try:
            self._netlink.delete_link(self.npx0.name, self.npx0.ifindex)
        except NetlinkError as error:
            log.error("iface=%s %s", self.name, error)
        self._inject.close()
        super().close()

    def _configure(self, mtu: int, aggregates: Iterable[IPv4Network]) -> None:
        netlink = self._netlink
        remove_pairs(netlink, self.name)
        names = _free_names()
        netlink.add_veth(names[0], _NPX0_MAC, names[1], _NPX1_MAC, os.cpu_count() or 1)
        self.npx0 = npx0 = Device(names[0], netlink.link(names[0]).ifindex, _NPX0_MAC)
        self.npx1 = npx1 = Device(names[1], netlink.link(names[1]).ifindex, _NPX1_MAC)
        try:
            netlink.set_alias(npx0.name, npx0.ifindex, _ALIAS + self.name)
            # An offloaded layer-4 checksum would leave as it is before the offload; and only with GRO, which brings
            # NAPI, does npx0 take frames that XDP redirects to it.
            ethtool(npx0.name, _STXCSUM, 0)
            ethtool(npx0.name, _SGRO, 1)
            self.ifindex = netlink.link(self.name).ifindex
            for device, ifindex in ((npx0.name, npx0.ifindex), (npx1.name, npx1.ifindex), (self.name, self.ifindex)):
                netlink.no_link_local(device, ifindex)
            self._set_up(mtu)
            netlink.add_address(npx0.name, npx0.ifindex, self.address)
            for network in aggregates:
                netlink.add_route(npx0.name, npx0.ifindex, network)
            self._inject = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
            self._inject.bind((npx1.name, 0))
        except (NetlinkError, OSError):
            netlink.delete_link(npx0.name, npx0.ifindex)
            raise
        self._routes = RouteQueue(netlink, npx0.name, npx0.ifindex)
        look_at_forwarding(npx0.name)

    def _set_up(self, mtu: int) -> None:
        netlink = self._netlink
        netlink.set_up(self.name, self.ifindex, mtu)
        for device in (self.npx1, self.npx0):
            netlink.set_up(device.name, device.ifindex, mtu, arp=False)


def ethtool(name: str, command: int, value: int) -> int:
    """An ethtool request that takes or gives a number.  Raises :class:`OSError`."""
    argument = ctypes.create_string_buffer(_ETHTOOL.pack(command, value), _ETHTOOL.size)
    request = _IFREQ.pack(os.fsencode(name), ctypes.addressof(argument))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
    found: int = _ETHTOOL.unpack(argument.raw)[1]
    return found


def keep_vlan_tags(name: str, keep: bool) -> bool:
    """Whether frames keep their VLAN tags on reception, where programs see them; returns whether that is a change."""
    flags = ethtool(name, _GFLAGS, 0)
    wanted = flags & ~_RXVLAN if keep else flags | _RXVLAN
    if wanted == flags:
        return False
    ethtool(name, _SFLAGS, wanted)
    return True


def remove_pairs(netlink: Netlink, interface: str = "") -> list[str]:
    """Remove npx devices that are ours, all or those of a shared interface; returns their names."""
    removed = []
    for ifindex, name in socket.if_nameindex():
        if not name.startswith("npx"):
            continue
        alias = netlink.alias(name)
        if alias == _ALIAS + interface if interface else alias.startswith(_ALIAS):
            netlink.delete_link(name, ifindex)
            removed.append(name)
    return removed


def detach_all(own: Own) -> list[str]:
    """Detach our programs from all interfaces of this network namespace; returns their names."""
    found = []
    for ifindex, name in socket.if_nameindex():
        try:
            if detach_xdp(name, ifindex, own):
                found.append(name)
        except BpfError as error:
            # It may have gone meanwhile.
            if error.code != errno.ENODEV:
                raise
    return found


def teardown(pins: Path | None = PINS, *, keep: bool = False) -> list[str]:
    """Remove all that npppy ever attached in this network namespace, but for pins if they are to be kept.

    Says what it has removed, a line each.  Raises :class:`BpfError`, :class:`NetlinkError` or :class:`OSError`.
    """
    if pins is not None and not os.access(pins, os.R_OK | os.W_OK | os.X_OK):
        pins = None
    own = pinned_programs(pins) if pins is not None else {}
    netlink = Netlink()
    try:
        done = [f"XDP program detached from {name}" for name in detach_all(own)]
        done += [f"device {name} removed" for name in remove_pairs(netlink)]
    finally:
        netlink.close()
        for program in own.values():
            program.close()
    if pins is not None and not keep and (count := remove_pins(pins)):
        done.append(f"{count} pins removed from {pins}")
    return done


def _free_names() -> tuple[str, str]:
    """Names for the next pair: npx0 and npx1, or the first two further on that nobody has."""
    taken = {name for _, name in socket.if_nameindex()}
    number = 0
    while {f"npx{number}", f"npx{number + 1}"} & taken:
        number += 2
    return f"npx{number}", f"npx{number + 1}"
