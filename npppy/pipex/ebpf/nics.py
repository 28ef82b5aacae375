"""The NICs that programs are attached to: which they are, and what their drivers can do.

An access interface may be a VLAN device, where XDP is slow and where nothing can be redirected to.  Then the program is
attached to the device below it, once for all VLANs there, and sessions have the tags.

A driver that has no XDP of its own runs programs by the kernel's generic code, which may redirect to any device.  But
only some drivers take frames that others redirect to them, and a veth device does only while its peer has GRO or a
program: what it does not take is lost without a word.  So the map ``devs`` has only the devices that are known to take
frames.  The others get theirs by their own queues (see leave() in pipex.c), and are no way out for fast packets.

L2TP and PPTP may come by any interface that has an address, whichever the peer was told: so each of those has a
program, by the generic code where the driver has no XDP, and the one of core interfaces does both.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from typing import Final, NamedTuple

from ...tun.netlink import LinkInfo, Netlink, NetlinkError, XdpFeatures
from ..base import Attached
from .attach import GENERIC, NATIVE, Own, attach_xdp, detach_xdp
from .layout import U32
from .libbpf import BpfError, Map
from .maps import PipexMaps
from .plumbing import ALIAS, driver, keep_vlan_tags, note, take_vlan_tags

log = logging.getLogger("npppy.pipex")

#: VLAN tags that the programs read.
_TAGS: Final = 2
#: Before Linux 6.3 drivers do not tell what they take.  These have XDP, but take no frames; whether a veth device does
#: is its peer's affair, and by default it does not.
NO_TRANSMIT: Final = frozenset(("veth", "ixgbevf", "mlx4_core", "nfp", "nicvf"))


#: Native XDP of these runs on their ports, and a frame seems to have come in by one of those.
_BONDS: Final = frozenset(("bond", "team"))

# What an interface has a program for.
_ACCESS: Final = "access"
_CORE: Final = "core"
_TUNNEL: Final = "tunnel"


class Place(NamedTuple):
    """Where XDP sees the frames of an interface, and by which tags it knows them."""

    #: The interface that has the program.
    name: str
    ifindex: int
    #: EtherType and number of each tag, the outermost first.
    tags: tuple[tuple[int, int], ...] = ()


class _Nic:
    """An interface with a program of ours."""

    __slots__ = ("kind", "mode", "name", "transmits", "users")

    def __init__(self, info: LinkInfo) -> None:
        self.name = info.name
        self.kind = info.kind
        #: native or generic.
        self.mode = ""
        #: Whether it is in devs; None: not known yet.
        self.transmits: bool | None = None
        #: What for, and the names for which it was attached: itself, or VLANs of it.
        self.users: set[tuple[str, str]] = set()

    @property
    def program(self) -> str:
        """The one that it is to have."""
        return "pipex_access" if any(use == _ACCESS for use, _ in self.users) else "pipex_nic"


class Nics:
    """The interfaces of a back end at which frames come in and go out."""

    def __init__(self, maps: PipexMaps, own: Own) -> None:
        """Raises :class:`NetlinkError` or :class:`OSError`."""
        self._maps = maps
        self._own = own
        self._netlink = Netlink()
        self._features = XdpFeatures()
        self._following = False
        #: By index.
        self._nics: dict[int, _Nic] = {}
        self._access: dict[str, Place] = {}
        self._core: dict[str, int] = {}
        self._tunnels: dict[str, Place] = {}
        #: Interfaces that cannot be core, as they were when that was found out, by index.
        self._refused: dict[int, LinkInfo] = {}
        #: Why access interfaces, and those of tunnels, have no program, by name.
        self._failed: dict[str, str] = {}
        self._failed_tunnels: dict[str, str] = {}

    def close(self) -> None:
        """Detach all."""
        for name in list(self._access):
            self.detach_access(name)
        for name in list(self._core):
            self.detach_core(name)
        for name in list(self._tunnels):
            self._detach_tunnel(name)
        self._features.close()
        self._netlink.close()

    def attached(self) -> Iterator[Attached]:
        """All of them, those included that could not be attached."""
        tunnels = dict(self._tunnels)
        for name, place in self._access.items():
            nic = self._nics[place.ifindex]
            notes = _notes(name, place)
            if not nic.transmits:
                notes.append("takes no frames from XDP")
            role = _ACCESS if tunnels.pop(name, None) is None else f"{_ACCESS}, {_TUNNEL}"
            yield Attached(name=name, role=role, mode=nic.mode, note=", ".join(notes))
        for name, why in self._failed.items():
            yield Attached(name=name, role=_ACCESS, note=why)
        for name, ifindex in self._core.items():
            role = _CORE if tunnels.pop(name, None) is None else f"{_CORE}, {_TUNNEL}"
            yield Attached(name=name, role=role, mode=self._nics[ifindex].mode)
        for name, place in tunnels.items():
            mode = self._nics[place.ifindex].mode
            yield Attached(name=name, role=_TUNNEL, mode=mode, note=", ".join(_notes(name, place)))
        for name, why in self._failed_tunnels.items():
            yield Attached(name=name, role=_TUNNEL, note=why)

    def why_not(self, name: str) -> str:
        """Why an access interface has no program; "" if it has."""
        return "" if name in self._access else self._failed.get(name, f"{name} has no program of ours")

    def place(self, name: str) -> Place | None:
        """Where an access interface has its program; None: it has none."""
        return self._access.get(name)

    def attach_access(self, name: str, ifindex: int) -> None:
        """See :meth:`.backend.EbpfBackend.attach_access`."""
        try:
            place = find_place(self._netlink, name, ifindex)
            if self._access.get(name, place) != place:
                self.detach_access(name)
            for core in [core for core, index in self._core.items() if index == place.ifindex]:
                log.info("iface=%s pipex: subscribers are there, so it is no core interface any more", core)
                self.detach_core(core)
            self._hold(place.ifindex, _ACCESS, name)
        except BpfError as error:
            self.detach_access(name)
            self._failed[name] = str(error)
            raise
        self._failed.pop(name, None)
        if name not in self._access:
            self._access[name] = place
            if place.name != name:
                log.info("iface=%s pipex: carried on %s, VLAN %s", name, place.name, _tags(place))
            self._change_tags(keep_vlan_tags, place.ifindex)

    def detach_access(self, name: str) -> None:
        """See :meth:`.backend.EbpfBackend.detach_access`."""
        self._failed.pop(name, None)
        place = self._access.pop(name, None)
        if place is not None:
            self._release(place.ifindex, _ACCESS, name)

    def follow_core(self, wanted: bool, ours: Container[int], tunnelled: bool = False) -> None:
        """See :meth:`.backend.EbpfBackend.follow_core`; *ours* are the indexes of our own devices."""
        try:
            found = {nic.ifindex: nic for nic in core_candidates(self._netlink, ours)} if wanted or tunnelled else {}
        except (NetlinkError, OSError) as error:
            log.error("pipex: %s", error)
            return
        # First what takes no other mode.
        self._follow_core(found if wanted else {})
        self._follow_tunnels(found.values() if tunnelled else ())

    def _follow_core(self, found: Mapping[int, LinkInfo]) -> None:
        # A program of ours that is there for something else is no news.
        found = {ifindex: nic._replace(xdp=0) if ifindex in self._nics else nic for ifindex, nic in found.items()}
        for name, ifindex in list(self._core.items()):
            if ifindex not in found or found[ifindex].name != name:
                self.detach_core(name)
        self._refused = {ifindex: nic for ifindex, nic in self._refused.items() if found.get(ifindex) == nic}
        for nic in found.values():
            if nic.ifindex not in self._refused:
                try:
                    self.attach_core(nic.name, nic.ifindex, nic.mac)
                except BpfError as error:
                    self._refused[nic.ifindex] = nic
                    log.info("iface=%s pipex: what comes in here goes through the stack: %s", nic.name, error)

    def _follow_tunnels(self, found: Collection[LinkInfo]) -> None:
        names = {nic.name for nic in found}
        for name in [name for name in self._tunnels if name not in names]:
            self._detach_tunnel(name)
        failed, self._failed_tunnels = self._failed_tunnels, {}
        for nic in found:
            try:
                self._attach_tunnel(nic)
            except BpfError as error:
                self._detach_tunnel(nic.name)
                self._failed_tunnels[nic.name] = why = str(error)
                if failed.get(nic.name) != why:
                    log.info("iface=%s pipex: what tunnels bring here, Python carries: %s", nic.name, why)

    def _attach_tunnel(self, nic: LinkInfo) -> None:
        name = nic.name
        place = find_place(self._netlink, name, nic.ifindex)
        if self._tunnels.get(name, place) != place:
            self._detach_tunnel(name)
        self._hold(place.ifindex, _TUNNEL, name)
        if name not in self._tunnels:
            self._tunnels[name] = place
            if place.tags:
                self._change_tags(keep_vlan_tags, place.ifindex)

    def _detach_tunnel(self, name: str) -> None:
        place = self._tunnels.pop(name, None)
        if place is not None:
            self._release(place.ifindex, _TUNNEL, name)

    def attach_core(self, name: str, ifindex: int, mac: bytes) -> None:
        """See :meth:`.backend.EbpfBackend.attach_core`."""
        if any(place.ifindex == ifindex for place in self._access.values()):
            raise BpfError(f"use {name} as a core interface", errno.EBUSY, "subscribers are there")
        if self._core.get(name, ifindex) != ifindex:
            self.detach_core(name)
        self._core[name] = ifindex
        try:
            self._hold(ifindex, _CORE, name)
            note(self._maps.nics, ifindex, mac=mac)
        except BpfError:
            self.detach_core(name)
            raise

    def detach_core(self, name: str) -> None:
        """See :meth:`.backend.EbpfBackend.detach_core`."""
        ifindex = self._core.pop(name, None)
        if ifindex is not None:
            note(self._maps.nics, ifindex, mac=bytes(6))
            self._release(ifindex, _CORE, name)

    def admit(self, ifindex: int) -> None:
        """Let frames be redirected to an interface."""
        self._maps.devs.put(U32.pack(ifindex), U32.pack(ifindex).ljust(self._maps.devs.value_size, b"\0"))

    # How it is done.

    def _hold(self, ifindex: int, use: str, user: str) -> None:
        """Have a program at an interface, for *user* from now on.  What somebody has changed meanwhile is seen to."""
        nic = self._nics.get(ifindex)
        if nic is None:
            nic = _Nic(_look(self._netlink, ifindex, f"attach a program to {user}"))
        if not self._following:
            self._following = True
            self._features.follow(self._changed)
        before = nic.users
        nic.users = before | {(use, user)}
        try:
            self._attach(nic, ifindex, native=use == _CORE)
        except BpfError:
            nic.users = before
            raise
        self._nics[ifindex] = nic
        try:
            self._admit(ifindex)
        except BpfError:
            self._release(ifindex, use, user)
            raise

    def _attach(self, nic: _Nic, ifindex: int, *, native: bool = False) -> None:
        """Let an interface have the program that it is to have."""
        program = self._maps.programs[nic.program]
        if native and nic.mode == "generic":
            raise BpfError(f"attach {program} to {nic.name}", errno.EOPNOTSUPP)
        modes = (NATIVE,) if native else (GENERIC,) if nic.kind in _BONDS else (NATIVE, GENERIC)
        mode = attach_xdp(nic.name, ifindex, program, self._own, modes)
        if mode != nic.mode:
            nic.mode = mode
            log.info("iface=%s pipex: XDP %s", nic.name, mode)

    def _release(self, ifindex: int, use: str, user: str) -> None:
        nic = self._nics.get(ifindex)
        if nic is None:
            # It could not be had.
            return
        before = nic.program
        nic.users = nic.users - {(use, user)}
        if nic.users:
            if nic.program != before:
                try:
                    self._attach(nic, ifindex)
                except BpfError as error:
                    log.error("iface=%s %s", nic.name, error)
            return
        del self._nics[ifindex]
        self._maps.devs.delete(U32.pack(ifindex))
        try:
            detach_xdp(nic.name, ifindex, self._own)
        except BpfError as error:
            if error.code != errno.ENODEV:
                log.error("iface=%s %s", nic.name, error)
            self._maps.nics.delete(U32.pack(ifindex))
            return
        self._change_tags(take_vlan_tags, ifindex)

    def _change_tags(self, change: Callable[[str, int, Map], object], ifindex: int) -> None:
        try:
            # It may have another name by now.
            change(socket.if_indextoname(ifindex), ifindex, self._maps.nics)
        except (BpfError, OSError) as error:
            # Drivers that cannot, and that do not take tags away.
            log.debug("interface %d: cannot change whether VLAN tags are kept: %s", ifindex, error)

    def _changed(self, ifindex: int) -> None:
        """An interface's driver can do more or less than before; 0: any."""
        for index in [ifindex] if ifindex else list(self._nics):
            if index in self._nics:
                self._admit(index)

    def _admit(self, ifindex: int) -> None:
        """Let frames be redirected to an interface of ours if its driver takes them, else not."""
        nic = self._nics[ifindex]
        try:
            transmits = self._features.transmits(ifindex)
        except NetlinkError as error:
            # It has gone; its link event will say so.
            log.debug("iface=%s %s", nic.name, error)
            return
        if transmits is None:
            transmits = nic.mode == "native" and driver(nic.name) not in NO_TRANSMIT
        before, nic.transmits = nic.transmits, transmits
        if transmits:
            # Also if it is there: the kernel removes an interface that goes, and one that comes may have its index.
            self.admit(ifindex)
            if before is False:
                log.info("iface=%s pipex: takes frames from XDP now", nic.name)
            return
        self._maps.devs.delete(U32.pack(ifindex))
        if before is False:
            return
        hint = ", but may with 'ethtool -K PEER gro on' at the other end" if nic.kind == "veth" else ""
        log.info("iface=%s pipex: takes no frames from XDP%s: they leave by its queue, which is slower", nic.name, hint)


def find_place(netlink: Netlink, name: str, ifindex: int) -> Place:
    """Where XDP sees the frames of an interface.  Raises :class:`BpfError` if it does nowhere."""
    what = f"carry sessions of {name}"
    tags: list[tuple[int, int]] = []
    info = _look(netlink, ifindex, what)
    while info.kind == "vlan":
        tags.insert(0, (info.protocol, info.vlan))
        if info.elsewhere:
            raise BpfError(what, errno.EOPNOTSUPP, f"the device below {info.name} is in another network namespace")
        if len(tags) > _TAGS:
            raise BpfError(what, errno.EOPNOTSUPP, f"its frames have more than {_TAGS} VLAN tags")
        info = _look(netlink, info.lower, what)
    return Place(info.name, info.ifindex, tuple(tags))


def core_candidates(netlink: Netlink, ours: Container[int] = ()) -> list[LinkInfo]:
    """The interfaces by which packets of fast sessions may come and go: Ethernet, up, with an address for the world.

    Left out are *ours*, by index, and what belongs to a bridge, a bond or a VRF.  Raises :class:`NetlinkError`.
    """
    addressed = netlink.addressed()
    return [
        info
        for info in netlink.infos()
        if info.ethernet
        and info.up
        and len(info.mac) == 6
        and not info.master
        and info.ifindex in addressed
        and info.ifindex not in ours
        # Another npppyd's.
        and not info.alias.startswith(ALIAS)
    ]


def _look(netlink: Netlink, ifindex: int, what: str) -> LinkInfo:
    try:
        info = netlink.info(ifindex)
    except (NetlinkError, OSError) as error:
        raise BpfError(what, errno.EIO, str(error)) from error
    if info is None:
        raise BpfError(what, errno.ENODEV)
    return info


def _notes(name: str, place: Place) -> list[str]:
    return [f"on {place.name}, VLAN {_tags(place)}"] if place.name != name else []


def _tags(place: Place) -> str:
    return ".".join(str(number) for _, number in place.tags)
