"""The NICs that programs are attached to: which they are, and what their drivers can do.

An access interface may be a VLAN device, where XDP is slow and where nothing can be redirected to.  Then the program is
attached to the device below it, once for all VLANs there, and sessions have the tags.

A driver that has no XDP of its own runs programs by the kernel's generic code, which may redirect to any device.  But
only some drivers take frames that others redirect to them, and a veth device does only while its peer has GRO or a
program: what it does not take is lost without a word.  So the map ``devs`` has only the devices that are known to take
frames.  The others get theirs by their own queues (see leave() in pipex.c), and are no way out for fast packets.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Container, Iterator
from typing import Final, NamedTuple

from ...tun.netlink import LinkInfo, Netlink, NetlinkError, XdpFeatures
from ..base import Attached
from .attach import GENERIC, NATIVE, Own, attach_xdp, detach_xdp
from .layout import NIC, U32
from .libbpf import BpfError, Map
from .maps import PipexMaps
from .plumbing import ALIAS, driver, keep_vlan_tags, take_vlan_tags

log = logging.getLogger("npppy.pipex")

#: VLAN tags that the programs read.
_TAGS: Final = 2
#: Before Linux 6.3 drivers do not tell what they take.  These have XDP, but take no frames; whether a veth device does
#: is its peer's affair, and by default it does not.
NO_TRANSMIT: Final = frozenset(("veth", "ixgbevf", "mlx4_core", "nfp", "nicvf"))


#: Native XDP of these runs on their ports, and a frame seems to have come in by one of those.
_BONDS: Final = frozenset(("bond", "team"))


class Place(NamedTuple):
    """Where XDP sees the frames of an access interface, and by which tags it knows them."""

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
        #: The names for which it was attached: itself, or VLANs of it.
        self.users: set[str] = set()


class Nics:
    """The access and core interfaces of a back end."""

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
        #: Interfaces that cannot be core, as they were when that was found out, by index.
        self._refused: dict[int, LinkInfo] = {}
        #: And of access interfaces, by name.
        self._failed: dict[str, str] = {}

    def close(self) -> None:
        """Detach all."""
        for name in list(self._access):
            self.detach_access(name)
        for name in list(self._core):
            self.detach_core(name)
        self._features.close()
        self._netlink.close()

    def attached(self) -> Iterator[Attached]:
        """The access interfaces, those included that could not be attached, and the core interfaces."""
        for name, place in self._access.items():
            nic = self._nics[place.ifindex]
            notes = [f"on {place.name}, VLAN {_tags(place)}"] if place.name != name else []
            if not nic.transmits:
                notes.append("takes no frames from XDP")
            yield Attached(name=name, role="access", mode=nic.mode, note=", ".join(notes))
        for name, why in self._failed.items():
            yield Attached(name=name, role="access", note=why)
        for name, ifindex in self._core.items():
            yield Attached(name=name, role="core", mode=self._nics[ifindex].mode)

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
            nic = self._hold(place.ifindex, "pipex_access", name)
        except BpfError as error:
            self.detach_access(name)
            self._failed[name] = str(error)
            raise
        self._failed.pop(name, None)
        if name not in self._access:
            self._access[name] = place
            if place.name != name:
                log.info("iface=%s pipex: carried on %s, VLAN %s", name, place.name, _tags(place))
            if len(nic.users) == 1:
                self._change_tags(keep_vlan_tags, place.ifindex)

    def detach_access(self, name: str) -> None:
        """See :meth:`.backend.EbpfBackend.detach_access`."""
        self._failed.pop(name, None)
        place = self._access.pop(name, None)
        if place is not None:
            self._release(place.ifindex, name)

    def follow_core(self, wanted: bool, ours: Container[int]) -> None:
        """See :meth:`.backend.EbpfBackend.follow_core`; *ours* are the indexes of our own devices."""
        try:
            found = {nic.ifindex: nic for nic in core_candidates(self._netlink, ours)} if wanted else {}
        except (NetlinkError, OSError) as error:
            log.error("pipex: %s", error)
            return
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

    def attach_core(self, name: str, ifindex: int, mac: bytes) -> None:
        """See :meth:`.backend.EbpfBackend.attach_core`."""
        if any(place.ifindex == ifindex for place in self._access.values()):
            raise BpfError(f"use {name} as a core interface", errno.EBUSY, "subscribers are there")
        if self._core.get(name, ifindex) != ifindex:
            self.detach_core(name)
        self._core[name] = ifindex
        try:
            self._hold(ifindex, "pipex_nic", name, native=True)
            self._maps.nics.put(U32.pack(ifindex), NIC.pack(mac, 0))
        except BpfError:
            self.detach_core(name)
            raise

    def detach_core(self, name: str) -> None:
        """See :meth:`.backend.EbpfBackend.detach_core`."""
        ifindex = self._core.pop(name, None)
        if ifindex is not None:
            self._maps.nics.delete(U32.pack(ifindex))
            self._release(ifindex, name)

    def admit(self, ifindex: int) -> None:
        """Let frames be redirected to an interface."""
        self._maps.devs.put(U32.pack(ifindex), U32.pack(ifindex).ljust(self._maps.devs.value_size, b"\0"))

    # How it is done.

    def _hold(self, ifindex: int, program: str, user: str, *, native: bool = False) -> _Nic:
        """Have a program at an interface, for *user* from now on.  What somebody has changed meanwhile is seen to."""
        nic = self._nics.get(ifindex)
        if nic is None:
            nic = _Nic(_look(self._netlink, ifindex, f"attach program {program} to {user}"))
        if not self._following:
            self._following = True
            self._features.follow(self._changed)
        modes = (NATIVE,) if native else (GENERIC,) if nic.kind in _BONDS else (NATIVE, GENERIC)
        mode = attach_xdp(nic.name, ifindex, self._maps.programs[program], self._own, modes)
        if mode != nic.mode:
            nic.mode = mode
            log.info("iface=%s pipex: XDP %s", nic.name, mode)
        self._nics[ifindex] = nic
        nic.users.add(user)
        try:
            self._admit(ifindex)
        except BpfError:
            self._release(ifindex, user)
            raise
        return nic

    def _release(self, ifindex: int, user: str) -> None:
        nic = self._nics.get(ifindex)
        if nic is None:
            # It could not be had.
            return
        nic.users.discard(user)
        if nic.users:
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


def _tags(place: Place) -> str:
    return ".".join(str(number) for _, number in place.tags)
