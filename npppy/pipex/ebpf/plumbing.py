"""The devices that sessions' packets pass, and the removal of all that npppy has left in the kernel."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Container, Iterable, Mapping
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, NamedTuple

from ...tun.device import TunInterface, look_at_forwarding
from ...tun.netlink import Netlink, NetlinkError, RouteQueue
from .attach import Own, attach_tc, attach_xdp, detach_xdp, xdp_program
from .layout import NIC, STRIPPED, U32, fields
from .libbpf import BpfError, Map, Program
from .maps import PINS
from .migrate import OLDER
from .pins import Edition, editions, others_programs, own_programs, remove, usable

log = logging.getLogger("npppy.pipex")

#: Written about npx devices that are ours, before the name of the shared interface.
ALIAS: Final = "npppy "
#: With more, in octets, a veth device takes only generic XDP: a frame must fit in a page of 4096.
NATIVE_MTU: Final = 3488
#: Addresses of our own of npx0 and npx1: nobody else is on their wire.
_NPX0_MAC: Final = b"\x02npx\0\0"
_NPX1_MAC: Final = b"\x02npx\0\1"
#: The next hop of all routes to npx0.  Without one, the kernel would keep a neighbour entry for each subscriber, and
#: beyond some thousand throw one away for every packet.  Nobody has it: the dummy address of RFC 7600.
_NEXT_HOP: Final = IPv4Address("192.0.0.8")

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL: Final = 0x8946
_GDRVINFO: Final = 0x03
_STXCSUM: Final = 0x17
_GFLAGS: Final = 0x25
_SFLAGS: Final = 0x26
_SGRO: Final = 0x2C
_RXVLAN: Final = 1 << 8

_IFREQ: Final = struct.Struct("16sP16x")
_ETHTOOL: Final = struct.Struct("=II")
_DRIVER: Final = struct.Struct("=I32s160x")
_ETHERTYPE_IP: Final = b"\x08\x00"
_ETHERTYPE_IPV6: Final = b"\x86\xdd"


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
    #: How programs are attached: native or generic; "": they are not.
    mode: str = ""
    _inject: socket.socket
    _mtu: int
    _programs: Mapping[str, Program] | None = None
    _own: Own

    def write(self, packet: bytes) -> None:
        """Give the kernel a packet, as received on npx0.  Raises :class:`OSError` where it is not taken."""
        kind = _ETHERTYPE_IP if packet[0] >> 4 == 4 else _ETHERTYPE_IPV6
        self._inject.sendmsg((_NPX0_MAC + _NPX1_MAC + kind, packet))

    def attach(self, programs: Mapping[str, Program], own: Own) -> None:
        """Let the programs work: from now on packets pass.  Raises :class:`BpfError`."""
        npx1 = self.npx1
        # First what takes over all that the other one leaves.
        attach_tc(npx1.name, npx1.ifindex, programs["pipex_miss"])
        mode = attach_xdp(npx1.name, npx1.ifindex, programs["pipex_core"], own)
        self._programs, self._own = programs, own
        self.mode = mode
        text = "iface=%s pipex on %s, XDP %s on %s"
        if mode != "native":
            text += f", which is slower: the MTU of {self._mtu} is more than {NATIVE_MTU}"
        log.info(text, self.name, self.npx0.name, mode, npx1.name)

    def set_mtu(self, mtu: int) -> None:
        """Give the devices another MTU, in octets.  Failure is logged."""
        if mtu == self._mtu:
            return
        programs = self._programs
        again = programs is not None and max(mtu, self._mtu) > NATIVE_MTU
        try:
            if again:
                # What passes meanwhile, Python carries.
                detach_xdp(self.npx1.name, self.npx1.ifindex, self._own)
            self._set_up(mtu)
        except (BpfError, NetlinkError, OSError) as error:
            log.error("iface=%s %s", self.name, error)
        if again:
            assert programs is not None
            try:
                self.attach(programs, self._own)
            except BpfError as error:
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
        try:
            self.npx0 = npx0 = Device(names[0], netlink.link(names[0]).ifindex, _NPX0_MAC)
            self.npx1 = npx1 = Device(names[1], netlink.link(names[1]).ifindex, _NPX1_MAC)
            netlink.set_alias(npx0.name, npx0.ifindex, ALIAS + self.name)
            # An offloaded layer-4 checksum would leave as it is before the offload; and only with GRO, which brings
            # NAPI, does npx0 take frames that XDP redirects to it.
            ethtool(npx0.name, _STXCSUM, 0)
            ethtool(npx0.name, _SGRO, 1)
            self.ifindex = netlink.link(self.name).ifindex
            _keep_to_processor(npx0)
            for device, ifindex in ((npx0.name, npx0.ifindex), (npx1.name, npx1.ifindex), (self.name, self.ifindex)):
                netlink.no_link_local(device, ifindex)
            self._set_up(mtu)
            netlink.add_address(npx0.name, npx0.ifindex, self.address)
            for network in aggregates:
                netlink.add_route(npx0.name, npx0.ifindex, network, _NEXT_HOP)
            self._inject = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
            self._inject.bind((npx1.name, 0))
        except (NetlinkError, OSError):
            netlink.delete_link(names[0], socket.if_nametoindex(names[0]))
            raise
        self._routes = RouteQueue(netlink, npx0.name, npx0.ifindex, _NEXT_HOP)
        look_at_forwarding(npx0.name)

    def _set_up(self, mtu: int) -> None:
        self._mtu = mtu
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


def driver(name: str) -> str:
    """The name of an interface's driver; empty where there is none to ask."""
    argument = ctypes.create_string_buffer(_DRIVER.pack(_GDRVINFO, b""), _DRIVER.size)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, _IFREQ.pack(os.fsencode(name), ctypes.addressof(argument)))
    except OSError:
        return ""
    found: bytes = _DRIVER.unpack(argument.raw)[1]
    return found.rstrip(b"\0").decode(errors="replace")


def keep_vlan_tags(name: str, ifindex: int, nics: Map) -> None:
    """Have frames keep their VLAN tags on reception, where programs see them.

    If that is a change, *nics* has a note of it, for who takes it back.  Raises :class:`OSError` or :class:`BpfError`.
    """
    flags = ethtool(name, _GFLAGS, 0)
    if flags & _RXVLAN:
        # The note first: we may be killed.
        nics.put(U32.pack(ifindex), NIC.pack(bytes(6), STRIPPED))
        ethtool(name, _SFLAGS, flags & ~_RXVLAN)


def take_vlan_tags(name: str, ifindex: int, nics: Map) -> bool:
    """Take that back, if there is a note that it was a change; returns whether there is.  Raises likewise."""
    note = nics.get(U32.pack(ifindex))
    if note is None or not fields(NIC, note)["flags"] & STRIPPED:
        return False
    ethtool(name, _SFLAGS, ethtool(name, _GFLAGS, 0) | _RXVLAN)
    nics.delete(U32.pack(ifindex))
    return True


def remove_pairs(netlink: Netlink, interface: str = "") -> list[str]:
    """Remove npx devices that are ours, those of a shared interface or all that no programs work on.

    Returns their names.
    """
    removed = []
    devices = {name: ifindex for ifindex, name in socket.if_nameindex()}
    for name, ifindex in devices.items():
        if not name.startswith("npx"):
            continue
        alias = netlink.alias(name)
        if interface:
            ours = alias == ALIAS + interface
        else:
            peer = f"npx{int(name[3:]) + 1}" if name[3:].isdecimal() else ""
            ours = alias.startswith(ALIAS) and not (peer in devices and xdp_program(peer, devices[peer]))
        if ours:
            netlink.delete_link(name, ifindex)
            removed.append(name)
    return removed


def detach_all(own: Own, others: Container[int] = ()) -> list[str]:
    """Detach our programs, but those of *others*, from all interfaces of this network namespace; returns their names.

    *others* has the kernel's numbers.  Raises :class:`BpfError`.
    """
    found = []
    for ifindex, name in socket.if_nameindex():
        try:
            if xdp_program(name, ifindex) not in others and detach_xdp(name, ifindex, own):
                found.append(name)
        except BpfError as error:
            # It may have gone meanwhile.
            if error.code != errno.ENODEV:
                raise
    return found


def teardown(pins: Path | None = PINS) -> list[str]:
    """Remove all that the daemon with these pins, or one without any, ever attached in this network namespace.

    Programs that other daemons have pinned beside *pins*, or somebody else has attached, stay.  Says what it has
    removed, a line each.  Raises :class:`BpfError`, :class:`NetlinkError` or :class:`OSError`; then call it again.
    """
    own = own_programs(pins)
    netlink = Netlink()
    try:
        done = [f"XDP program detached from {name}" for name in detach_all(own, others_programs(pins))]
        done += [f"device {name} removed" for name in remove_pairs(netlink)]
    finally:
        netlink.close()
        for program in own.values():
            program.close()
    if pins is not None and usable(pins):
        if found := editions(pins):
            done += _take_back(found[-1])
        if count := remove(pins):
            done.append(f"{count} pins removed from {pins}")
    return done


def end_leftovers(pins: Path | None) -> None:
    """Tear down what an earlier npppyd has left, where this one has no use for it.  What cannot be is logged."""
    try:
        for line in teardown(pins):
            log.info("pipex: left by an earlier npppyd: %s", line)
    except (BpfError, NetlinkError, OSError) as error:
        # Without libbpf, say, there is hardly anything.
        level = logging.ERROR if pins is not None and pins.exists() else logging.DEBUG
        log.log(level, "pipex: what an earlier npppyd may have left stays: %s", error)


def _take_back(edition: Edition) -> list[str]:
    """What the maps of a killed process still tell: its sessions, and what it has changed at interfaces."""
    done: list[str] = []
    with ExitStack() as stack:
        try:
            sessions, nics = (stack.enter_context(closing(edition.map(name))) for name in ("sessions", "nics"))
            if count := len(list(sessions.keys())):
                done.append(f"{count} sessions ended")
        except BpfError as error:
            log.warning("pipex: %s", error)
            return done
        for ifindex, name in socket.if_nameindex() if edition.version in OLDER else ():
            try:
                if take_vlan_tags(name, ifindex, nics):
                    done.append(f"VLAN offload of {name} switched on again")
            except (BpfError, OSError) as error:
                log.warning("iface=%s pipex: cannot switch VLAN offload on again: %s", name, error)
    return done


def _keep_to_processor(device: Device) -> None:
    """Have each processor send by a queue of its own, as far as there are, for the kernel to choose none by a hash."""
    queues = Path(f"/sys/class/net/{device.name}/queues")
    try:
        # A sandbox may show the devices of another network namespace.
        if int((queues.parent / "ifindex").read_text()) != device.ifindex:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for number, queue in enumerate(sorted(queues.glob("tx-*"), key=lambda path: int(path.name[3:]))):
            # Words of 32 bits, the highest first.
            words = [f"{1 << number % 32:x}", *["00000000"] * (number // 32)]
            (queue / "xps_cpus").write_text(",".join(words))
    except OSError as error:
        log.info("iface=%s its queues are chosen by a hash, which costs some time: %s", device.name, error)


def _free_names() -> tuple[str, str]:
    """Names for the next pair: npx0 and npx1, or the first two further on that nobody has."""
    taken = {name for _, name in socket.if_nameindex()}
    number = 0
    while {f"npx{number}", f"npx{number + 1}"} & taken:
        number += 2
    return f"npx{number}", f"npx{number + 1}"
