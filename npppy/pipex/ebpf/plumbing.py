"""The devices that sessions' packets pass, and the removal of all that npppy has left in the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Container, Iterable, Mapping
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Final, NamedTuple

from ...tun.device import TunInterface, look_at_forwarding
from ...tun.netlink import ACCEPT_LOCAL, FORWARDING, RP_FILTER, SCOPE_HOST, Netlink, NetlinkError, RouteQueue
from ..base import Leftovers
from . import ipsec
from .attach import EGRESS, Own, attach_tc, attach_xdp, detach_xdp, open_tc, xdp_program
from .layout import FRAME, FRAME_TYPE, NIC, STRIPPED, U32, fields, inject
from .leftovers import read_counters
from .libbpf import BpfError, Map, Program
from .maps import PINS
from .migrate import OLDER
from .pins import Edition, editions, others_programs, own_programs, remove, usable

log = logging.getLogger("npppy.pipex")

#: Written about npx devices that are ours, before the name of the shared interface.
ALIAS: Final = "npppy "
#: Frames that npppyd has the programs encapsulate are so much longer than the IP packet in them, which is no longer
#: than a session's MTU: so npx0 takes more than packets of IP may have there.
_HEAD: Final = FRAME.size + 2
#: With more, in octets, a veth device takes only generic XDP: a frame must fit in a page of 4096.
NATIVE_MTU: Final = 3488 - _HEAD
#: Addresses of our own of npx0 and npx1: nobody else is on their wire.
_NPX0_MAC: Final = b"\x02npx\0\0"
_NPX1_MAC: Final = b"\x02npx\0\1"
#: The next hop of all routes to npx0.  Without one, the kernel would keep a neighbour entry for each subscriber, and
#: beyond some thousand throw one away for every packet.  Nobody has it: the dummy address of RFC 7600.
_NEXT_HOP: Final = IPv4Address("192.0.0.8")
#: The next hops on npx0 for L2TP packets that have been decrypted (see pipex_core), and their MAC address.  The other
#: one is out of the discard-only prefix of RFC 6666.
OUTER_HOP: Final = IPv4Address("192.0.0.9")
OUTER_HOP6: Final = IPv6Address("100::9")
_OUTER_MAC: Final = b"\x02npx\0\2"
#: An L2TP packet has no more octets than this beyond those of the IP packet in it.
_OUTER: Final = 100
#: Of npx1, only to have one: without, the loose form of rp_filter too drops what leaves by the stack.  Nothing from
#: outside is for it.
_LOOPBACK: Final = IPv4Address("127.110.112.120")
#: An interface with a smaller MTU has no IPv6.
_LEAST_MTU: Final = 1280
_DEVICES: Final = Path("/sys/class/net")
_CONF: Final = "/proc/sys/net/ipv{}/conf/{}/{}"

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
_OUTWARD: Final = _NPX1_MAC + _NPX0_MAC + FRAME_TYPE.to_bytes(2, "big")


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
    #: Frames that were to be encapsulated, and could not be sent.
    lost: int = 0
    _inject: socket.socket
    _outward: socket.socket
    _mtu: int
    _programs: Mapping[str, Program] | None = None
    _own: Own
    #: Whether each processor sends by a queue of its own, of the kernel's choice; whether pipex_order chooses.
    _own_queues: bool = False
    _ordered: bool = False
    _acknowledges: bool = False

    def write(self, packet: bytes) -> None:
        """Give the kernel a packet, as received on npx0.  Raises :class:`OSError` where it is not taken."""
        kind = _ETHERTYPE_IP if packet[0] >> 4 == 4 else _ETHERTYPE_IPV6
        self._inject.sendmsg((_NPX0_MAC + _NPX1_MAC + kind, packet))

    def encapsulate(self, slot: int, generation: int, frame: bytes) -> None:
        """Have the programs send *frame*, from its PPP Protocol field on, to the peer of the session in a slot.

        One that cannot be sent is counted.
        """
        try:
            self._outward.send(_OUTWARD + inject(slot, generation, frame))
        except OSError:
            self.lost += 1

    def why_not_outward(self, version: int) -> str:
        """Why packets of this version of IP would not leave from npx1 by the stack; "" if they do.

        What others have changed at npx1 is put right.
        """
        if not self._why_not_outward(version):
            return ""
        self._open_outward()
        return self._why_not_outward(version)

    def attach(self, programs: Mapping[str, Program], own: Own) -> None:
        """Let the programs work: from now on packets pass.  Raises :class:`BpfError`."""
        npx1 = self.npx1
        # There may be programs later: to make their place then would cost packets.
        open_tc(self.npx0.name, self.npx0.ifindex)
        # First what takes over all that the other one leaves.
        attach_tc(npx1.name, npx1.ifindex, programs["pipex_miss"])
        mode = attach_xdp(npx1.name, npx1.ifindex, programs["pipex_core"], own)
        self._programs, self._own = programs, own
        self.mode = mode
        text = "iface=%s pipex on %s, XDP %s on %s"
        if mode != "native":
            text += f", which is slower: the MTU of {self._mtu} is more than {NATIVE_MTU}"
        log.info(text, self.name, self.npx0.name, mode, npx1.name)

    def keep_order(self) -> None:
        """Have frames with numbers leave in their order, whichever processors send them, from now on.

        Not to be called before there is to be such a session: to look for those takes time of all packets.  Raises
        :class:`BpfError`.
        """
        if self._ordered:
            return
        assert self._programs is not None
        npx0, npx1 = self.npx0, self.npx1
        try:
            # With generic XDP there would be no NAPI, which has one processor at a time treat what is in a queue.
            ethtool(npx1.name, _SGRO, 1)
            attach_tc(npx0.name, npx0.ifindex, self._programs["pipex_order"], EGRESS)
            if self._own_queues:
                # The kernel's choice would come first; that of pipex_order is the same, but for such frames.
                _write_xps(npx0, False)
        except OSError as error:
            raise BpfError(f"keep numbered frames in order on {npx0.name}", error.errno or 0) from error
        self._ordered = True

    def acknowledge(self) -> None:
        """Have what PPTP brings acknowledged in time, from now on.  Likewise, raises :class:`BpfError`."""
        if not self._acknowledges:
            assert self._programs is not None
            attach_tc(self.npx0.name, self.npx0.ifindex, self._programs["pipex_ack"])
            self._acknowledges = True

    def set_mtu(self, mtu: int) -> None:
        """Give the devices another MTU, in octets.  Failure is logged."""
        mtu = max(mtu, _LEAST_MTU)
        if mtu == self._mtu:
            return
        programs = self._programs
        again = programs is not None and max(mtu, self._mtu) > NATIVE_MTU
        try:
            if again:
                # What passes meanwhile, Python carries.
                detach_xdp(self.npx1.name, self.npx1.ifindex, self._own)
            self._set_up(mtu)
            if self._routes is not None:
                self._routes.set_mtu(mtu)
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
        self._outward.close()
        super().close()

    def _configure(self, mtu: int, aggregates: Iterable[IPv4Network]) -> None:
        netlink, aggregates = self._netlink, tuple(aggregates)
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
            self._keep_to_processor(npx0)
            for device, ifindex in ((npx0.name, npx0.ifindex), (npx1.name, npx1.ifindex), (self.name, self.ifindex)):
                netlink.no_link_local(device, ifindex)
            self._set_up(max(mtu, _LEAST_MTU))
            netlink.add_address(npx0.name, npx0.ifindex, self.address)
            netlink.add_neighbour(npx0.name, npx0.ifindex, OUTER_HOP, _OUTER_MAC)
            self._add_hop6()
            netlink.add_address(npx1.name, npx1.ifindex, _LOOPBACK, SCOPE_HOST)
            self._open_outward()
            for network in aggregates:
                netlink.add_route(npx0.name, npx0.ifindex, network, _NEXT_HOP, self._mtu)
            self._inject, self._outward = _sender(npx1.name), _sender(npx0.name)
        except (NetlinkError, OSError):
            netlink.delete_link(names[0], socket.if_nametoindex(names[0]))
            raise
        self._routes = RouteQueue(netlink, npx0.name, npx0.ifindex, _NEXT_HOP, self._mtu, aggregates)
        look_at_forwarding(npx0.name)

    def _keep_to_processor(self, device: Device) -> None:
        """Have the kernel choose no queue by a hash."""
        try:
            _write_xps(device, True)
            self._own_queues = True
        except OSError as error:
            log.info("iface=%s its queues are chosen by a hash, which costs some time: %s", device.name, error)

    def _add_hop6(self) -> None:
        try:
            self._netlink.add_neighbour(self.npx0.name, self.npx0.ifindex, OUTER_HOP6, _OUTER_MAC)
        except NetlinkError as error:
            # Where IPv6 is switched off, nothing comes by it.
            log.debug("iface=%s %s", self.name, error)

    def _set_up(self, mtu: int) -> None:
        self._mtu = mtu
        netlink = self._netlink
        netlink.set_up(self.name, self.ifindex, mtu)
        # What npx0 sends, npx1 must take: packets of L2TP too, which have been decrypted.
        for device, most in ((self.npx1, mtu + _OUTER), (self.npx0, mtu + _HEAD)):
            netlink.set_up(device.name, device.ifindex, most, arp=False)
        # Of IPv4 the routes say it.
        _write_conf(6, self.npx0.name, "mtu", mtu)

    def _open_outward(self) -> None:
        """Let the stack forward what the programs pass at npx1, which has our own source address."""
        npx1 = self.npx1
        try:
            self._netlink.switch4(npx1.name, npx1.ifindex, {FORWARDING: 1, ACCEPT_LOCAL: 1, RP_FILTER: 0})
        except (NetlinkError, OSError) as error:
            log.error("iface=%s %s", self.name, error)
        # The first is for the look-up of what leaves past the stack.  The second Linux has from 6.17 on; before,
        # net.ipv6.conf.all.forwarding alone decides.
        for switch in ("forwarding", "force_forwarding"):
            _write_conf(6, npx1.name, switch, 1)

    def _why_not_outward(self, version: int) -> str:
        npx1 = self.npx1.name
        if version == 6:
            if _conf(6, npx1, "disable_ipv6") == 1:
                return f"net.ipv6.conf.{npx1}.disable_ipv6 is 1"
            if _conf(6, "all", "forwarding") == 0 and not _conf(6, npx1, "force_forwarding"):
                return "net.ipv6.conf.all.forwarding is 0: set it to 1"
            return ""
        for switch in ("forwarding", "accept_local"):
            if _conf(4, npx1, switch) == 0:
                return f"net.ipv4.conf.{npx1}.{switch} is 0"
        # The larger of the two holds.
        filters = {name: _conf(4, name, "rp_filter") or 0 for name in ("all", npx1)}
        name = max(filters, key=filters.__getitem__)
        if filters[name] == 1:
            return f"net.ipv4.conf.{name}.rp_filter is 1: set it to 2 or 0"
        return ""


def _sender(name: str) -> socket.socket:
    """A socket that sends frames by an interface."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
    made.bind((name, 0))
    return made


def _conf(version: int, name: str, switch: str) -> int | None:
    """What net.ipv4.conf or net.ipv6.conf shows for an interface, or for "all"; None where it cannot be seen."""
    try:
        return int(Path(_CONF.format(version, name, switch)).read_text())
    except OSError:
        return None


def _write_conf(version: int, name: str, switch: str, value: int) -> None:
    """Set it, if there is such a thing and we may."""
    with contextlib.suppress(OSError):
        Path(_CONF.format(version, name, switch)).write_text(str(value))


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
        note(nics, ifindex, flags=STRIPPED)
        ethtool(name, _SFLAGS, flags & ~_RXVLAN)


def take_vlan_tags(name: str, ifindex: int, nics: Map) -> bool:
    """Take that back, if there is a note that it was a change; returns whether there is.  Raises likewise."""
    found = nics.get(U32.pack(ifindex))
    if found is None or not fields(NIC, found)["flags"] & STRIPPED:
        return False
    ethtool(name, _SFLAGS, ethtool(name, _GFLAGS, 0) | _RXVLAN)
    note(nics, ifindex, flags=0)
    return True


def note(nics: Map, ifindex: int, **what: object) -> None:
    """Change what *nics* says of an interface; one of which nothing is said is not there.  Raises :class:`BpfError`."""
    key = U32.pack(ifindex)
    found = nics.get(key)
    said = fields(NIC, found or bytes(NIC.size)) | what
    record = NIC.pack(*said.values())
    if any(record):
        nics.put(key, record)
    elif found is not None:
        nics.delete(key)


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


def teardown(pins: Path | None = PINS, leftovers: Leftovers | None = None) -> list[str]:
    """Remove all that the daemon with these pins, or one without any, ever attached in this network namespace.

    Programs that other daemons have pinned beside *pins*, or somebody else has attached, stay.  Says what it has
    removed, a line each; *leftovers* is given what the sessions had counted in the end.  Raises :class:`BpfError`,
    :class:`NetlinkError` or :class:`OSError`; then call it again.
    """
    own = own_programs(pins)
    netlink = Netlink()
    try:
        done = [f"XDP program detached from {name}" for name in detach_all(own, others_programs(pins))]
        done += [f"device {name} removed" for name in remove_pairs(netlink)]
        done += ipsec.teardown((pins or PINS).name)
    finally:
        netlink.close()
        for program in own.values():
            program.close()
    if pins is not None and usable(pins):
        if found := editions(pins):
            done += _take_back(found[-1])
            if leftovers is not None:
                read_counters(found, leftovers)
        if count := remove(pins):
            done.append(f"{count} pins removed from {pins}")
    return done


def end_leftovers(pins: Path | None, leftovers: Leftovers | None = None) -> None:
    """Tear down what an earlier npppyd has left, where this one has no use for it.  What cannot be is logged."""
    try:
        for line in teardown(pins, leftovers):
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


def _write_xps(device: Device, own: bool) -> None:
    """Have each processor send by a queue of its own, as far as there are, or none.  Raises :class:`OSError`."""
    queues = _DEVICES / device.name / "queues"
    # A sandbox may show the devices of another network namespace.
    if int((queues.parent / "ifindex").read_text()) != device.ifindex:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for number, queue in enumerate(sorted(queues.glob("tx-*"), key=lambda path: int(path.name[3:]))):
        # Words of 32 bits, the highest first.
        words = [f"{1 << number % 32:x}", *["00000000"] * (number // 32)]
        (queue / "xps_cpus").write_text(",".join(words) if own else "0")


def _free_names() -> tuple[str, str]:
    """Names for the next pair: npx0 and npx1, or the first two further on that nobody has."""
    taken = {name for _, name in socket.if_nameindex()}
    number = 0
    while {f"npx{number}", f"npx{number + 1}"} & taken:
        number += 2
    return f"npx{number}", f"npx{number + 1}"
