"""Back end ``ebpf``: programs in the kernel carry the sessions, and Python what they leave."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final, NamedTuple

from ...config.model import Interface
from ...l2tp.encap import L2tpEncap
from ...pppoe.call import PppoeEncap
from ...pptp.encap import PptpEncap
from ...tun.device import TunError
from ...tun.netlink import NetlinkError
from ..base import Attached, FlowSpec, Leftovers, Memory, PipexState
from ..user import UserBackend
from . import carriers, layout
from .carriers import Wire
from .flow import EbpfFlow
from .ipsec import Diversion
from .layout import CONFIG, U32
from .libbpf import BpfError
from .maps import PINS, PipexMaps
from .mirror import EbpfMirror
from .nics import Nics
from .pins import remove, usable
from .plumbing import OUTER_HOP, OUTER_HOP6, NpxInterface, teardown

log = logging.getLogger("npppy.pipex")

#: Least seconds between two Echo-Replies of a session.
ECHO_INTERVAL: Final = 0.1

_CARRIED: Final = ("STACK_UP", "STACK_DOWN", "FAST_UP", "FAST_DOWN")

#: VLAN tags that the programs read.
_TAGS: Final = 2
#: Seconds for which we remember whether L2TP and PPTP can leave by the stack.
_OUTWARD: Final = 1.0


class _Shared(NamedTuple):
    """The devices of a shared interface: which entry of config, and the indexes of the pair."""

    entry: int
    npx0: int
    npx1: int
    npx: NpxInterface
    #: Why L2TP and PPTP cannot leave by the stack, by version of IP, and until when that holds.
    outward: dict[int, tuple[str, float]]


class EbpfBackend(UserBackend):
    """The flows of one routing domain, and where programs are attached."""

    def __init__(self, maps: PipexMaps, pins: Path | None = None) -> None:
        """For :meth:`open`."""
        super().__init__()
        self.maps = maps
        self._pins = pins
        self._own = {program.id: program for program in maps.programs.values()}
        self.nics = Nics(maps, self._own)
        self._diversion = Diversion((pins or PINS).name, OUTER_HOP, OUTER_HOP6)
        # Shared interfaces by name.
        self._shared: dict[str, _Shared] = {}
        self._full = False

    @classmethod
    def open(
        cls, capacity: int, pins: Path | None = PINS, *, keep: bool = False, leftovers: Leftovers | None = None
    ) -> EbpfBackend:
        """Load the programs, for *capacity* sessions, and end what an earlier process has left.

        *leftovers* is given what its sessions had counted.  With *keep* they go on instead, with what is attached, and
        are in the maps; if that cannot be, that is logged, and they end.  Raises :class:`BpfError`,
        :class:`~npppy.tun.netlink.NetlinkError` or :class:`OSError`.
        """
        maps = None
        if keep and pins is not None:
            try:
                maps = PipexMaps.take_over(capacity, pins)
            except (BpfError, OSError) as error:
                log.error("pipex: the sessions of an earlier npppyd end: %s", error)
        if maps is None:
            for line in teardown(pins, leftovers):
                log.info("pipex: left by an earlier npppyd: %s", line)
            maps = PipexMaps(capacity, pins)
        try:
            return cls(maps, pins)
        except (NetlinkError, OSError):
            maps.close()
            teardown(pins)
            raise

    def close(self) -> None:
        """Detach all, and leave nothing.  Flows and shared interfaces are closed before."""
        self._diversion.close()
        self.nics.close()
        if self._pins is not None and usable(self._pins):
            remove(self._pins)
        self.maps.close()

    # Devices.

    def open_interface(self, interface: Interface, mtu: int, aggregates: Iterable[IPv4Network]) -> NpxInterface:
        """Make the devices of an ``interface`` line, with the programs attached; then :meth:`attach` it.

        *mtu* is the largest of any session.  To be called on the event loop.  Raises :class:`TunError`.
        """
        maps = self.maps
        used = {shared.entry for shared in self._shared.values()}
        free = next((index for index in range(layout.SHARED_MAX) if index not in used), None)
        if free is None:
            raise TunError(f"{interface.name}: there are {layout.SHARED_MAX} shared interfaces already")
        npx = NpxInterface.open(interface, mtu, aggregates)
        npx0, npx1 = npx.npx0, npx.npx1
        try:
            npx.attach(maps.programs, self._own)
            # What is redirected to npx0 comes to pipex_core.
            for device in (npx0, npx1):
                self.nics.admit(device.ifindex)
            interval = int(ECHO_INTERVAL * 1e9)
            entry = CONFIG.pack(
                layout.VERSION, npx0.ifindex, npx1.ifindex, npx.ifindex, npx0.mac, npx1.mac, interval, bytes(28)
            )
            maps.config.put(U32.pack(free), entry)
        except BpfError as error:
            npx.close()
            raise TunError(f"{interface.name}: {error}") from error
        self._shared[interface.name] = _Shared(free, npx0.ifindex, npx1.ifindex, npx, {})
        return npx

    def detach(self, name: str) -> None:
        """The interface goes: to be called before its devices are closed."""
        shared = self._shared.pop(name, None)
        if shared is not None:
            self.maps.config.put(U32.pack(shared.entry), bytes(CONFIG.size))
            for ifindex in (shared.npx0, shared.npx1):
                self.maps.devs.delete(U32.pack(ifindex))
        super().detach(name)

    def attach_access(self, name: str, ifindex: int) -> None:
        """Carry sessions of an interface on which there are subscribers; it may be a VLAN device.

        To be called again whenever anything is new of it.  Raises :class:`BpfError`, which says so if the interface
        has an XDP program of somebody else; then Python carries what comes there.
        """
        self.nics.attach_access(name, ifindex)

    def detach_access(self, name: str) -> None:
        """Do so no more.  The interface may be gone, or never have been attached."""
        self.nics.detach_access(name)

    def attach_core(self, name: str, ifindex: int, mac: bytes) -> None:
        """Let packets of fast sessions leave by an interface, and take them in there without the stack.

        *mac* is its own address.  To be called again whenever anything is new of it.  Raises :class:`BpfError`, also
        for a driver that has no XDP of its own: each packet would cost more than is saved.
        """
        self.nics.attach_core(name, ifindex, mac)

    def detach_core(self, name: str) -> None:
        """Do so no more.  The interface may be gone, or never have been attached."""
        self.nics.detach_core(name)

    def follow_core(self, wanted: bool, tunnelled: bool = False) -> None:
        """Let fast packets pass by all interfaces by which they may, as these are now; if not *wanted*, by none.

        And with *tunnelled*, take L2TP and PPTP in by those.  To be called again on any news of links and addresses.
        What cannot be is logged, once.
        """
        ours = {ifindex for shared in self._shared.values() for ifindex in (shared.npx0, shared.npx1)}
        self.nics.follow_core(wanted, ours, tunnelled)
        if tunnelled:
            for name in self._shared:
                self._why_not_outward(name, 4)

    # Sessions.

    def add(self, spec: FlowSpec, now: float) -> EbpfFlow:
        """Carry the data of a session, on an interface that is attached.

        What the kernel cannot carry, Python does.  Raises :class:`ConflictError` if its address or network is taken by
        another flow.
        """
        flow = EbpfFlow(spec, self.interfaces[spec.interface], self._table, now, self.maps)
        self._table.add(spec.address, spec.networks4(), flow, spec.networks6)
        if not spec.offload or isinstance(wire := self._wire(spec.interface, spec.encap), str):
            return flow
        shared = self._shared[spec.interface]
        try:
            flow.enter(spec, wire, shared.npx, shared.entry, now)
        except BpfError as error:
            if not self._full:
                log.error("pipex: ppp=%d is carried by Python, and others may be: %s", spec.session, error)
            self._full = True
        else:
            self._full = False
            if isinstance(spec.encap, L2tpEncap) and spec.encap.ipsec:
                flow.divert(self._diversion, spec.encap, shared.npx0)
        return flow

    def why_not(self, interface: str, encap: object) -> str:
        wire = self._wire(interface, encap)
        if isinstance(wire, str):
            return wire
        if self.maps.used >= self.maps.capacity:
            return f"the maps have room for {self.maps.capacity} sessions, and are full"
        return ""

    def _wire(self, interface: str, encap: object) -> Wire | str:
        """How frames of a session look, or why the programs cannot make them."""
        shared = self._shared.get(interface)
        if isinstance(encap, PppoeEncap):
            place = self.nics.place(encap.port.interface)
            if place is None:
                return self.nics.why_not(encap.port.interface)
            if shared is None:
                return f"{interface} is not there"
            if len(carriers.tags(place, encap)) > _TAGS:
                return f"its frames have more than {_TAGS} VLAN tags"
            return carriers.pppoe(place, encap)
        if isinstance(encap, L2tpEncap):
            if shared is None:
                return f"{interface} is not there"
            six = len(encap.local) == 16
            if six and encap.local[0] == 0xFE and encap.local[1] & 0xC0 == 0x80:
                return "the stack forwards nothing between addresses of a link"
            why = self._why_not_outward(interface, 6 if six else 4) or (encap.ipsec and self._diversion.why_not())
            return why or carriers.l2tp(encap, shared.npx.npx0.mac, shared.npx.npx1.mac)
        if isinstance(encap, PptpEncap):
            if shared is None:
                return f"{interface} is not there"
            why = self._why_not_outward(interface, 4)
            return why or carriers.pptp(encap, shared.npx.npx0.mac, shared.npx.npx1.mac)
        return "the programs do not know its carrier"

    def _why_not_outward(self, interface: str, version: int) -> str:
        """Why tunnels over this version of IP could not leave by the stack; "" if it can.  News are logged."""
        shared, now = self._shared[interface], time.monotonic()
        before, until = shared.outward.get(version, ("", 0.0))
        if now < until:
            return before
        found = shared.npx.why_not_outward(version)
        shared.outward[version] = found, now + _OUTWARD
        if found and found != before:
            log.error("iface=%s pipex: Python carries tunnels over IPv%d: %s", interface, version, found)
        elif before and not found:
            log.info("iface=%s pipex: the kernel can carry tunnels over IPv%d now", interface, version)
        return found

    def state(self) -> PipexState:
        maps = self.maps
        shared = (
            Attached(name=name, role="shared", mode=npx.mode, note=f"{npx.npx0.name}, {npx.npx1.name}")
            for name, npx in ((name, shared.npx) for name, shared in self._shared.items())
        )
        used: dict[str, int | None] = {
            "slots": maps.used,
            "stats": maps.used,
            "seqs": maps.used,
            "buckets": 2 * maps.used,
            "config": len(self._shared),
            "devs": len(list(maps.devs.keys())),
            "nics": len(list(maps.nics.keys())),
            # These have no entries that come and go.
            "counts": None,
            "events": None,
            "mppe_works": None,
        }
        totals = maps.totals()
        return PipexState(
            backend="ebpf",
            capacity=maps.capacity,
            interfaces=(*self.nics.attached(), *shared),
            paths={name: totals[name] for name in _CARRIED},
            reasons={name: count for name, count in totals.items() if name not in _CARRIED},
            maps={
                name: Memory(octets=octets, entries=maps.entries(name), used=used.get(name, 0))
                for name, octets in maps.memory().items()
            },
            closed=self._table.closed,
        )

    def tags(self, encap: object) -> bytes:
        if not isinstance(encap, PppoeEncap):
            return b""
        place = self.nics.place(encap.port.interface)
        tags = carriers.tags(place, encap) if place is not None else ()
        return b"".join(struct.pack(">HH", *tag) for tag in tags)

    def mirror(self) -> EbpfMirror:
        """What the block MIRROR has copied; for one reader at a time."""
        return EbpfMirror(self.maps)

