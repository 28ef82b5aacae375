"""Back end ``ebpf``: programs in the kernel carry the sessions, and Python what they leave."""

from __future__ import annotations

import errno
import logging
from collections.abc import Container, Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from ...config.model import Interface
from ...pppoe.call import PppoeEncap
from ...tun.device import TunError
from ..base import FlowSpec
from ..user import UserBackend
from . import layout
from .attach import attach_tc, attach_xdp, detach_xdp
from .flow import EbpfFlow
from .layout import CONFIG, NIC, U32
from .libbpf import BpfError, Ring
from .maps import PINS, PipexMaps, remove_pins
from .plumbing import NpxInterface, keep_vlan_tags, teardown

log = logging.getLogger("npppy.pipex")

#: Least seconds between two Echo-Replies of a session.
ECHO_INTERVAL: Final = 0.1

_PATHS: Final = ("STACK_UP", "STACK_DOWN", "FAST_UP", "FAST_DOWN", "USER_UP", "USER_DOWN")


class EbpfBackend(UserBackend):
    """The flows of one routing domain, and where programs are attached."""

    def __init__(self, maps: PipexMaps, pins: Path | None = None, *, fast: bool = False) -> None:
        """For :meth:`open`."""
        super().__init__()
        self.maps = maps
        #: Whether new sessions go from NIC to NIC where they can.
        self.fast = fast
        self._pins = pins
        self._own = {program.id: program for program in maps.programs.values()}
        # Interface index by name, and whether we have had VLAN tags kept in frames.
        self._access: dict[str, tuple[int, bool]] = {}
        self._core: dict[str, int] = {}
        # Shared interfaces by name: which entry of config, and the index of npx1.
        self._shared: dict[str, tuple[int, int]] = {}
        self._full = False

    @classmethod
    def open(cls, capacity: int, pins: Path | None = PINS, *, fast: bool = False) -> EbpfBackend:
        """Load the programs, for *capacity* sessions, and end what an earlier process has left.

        Raises :class:`BpfError`, :class:`~npppy.tun.netlink.NetlinkError` or :class:`OSError`.
        """
        for line in teardown(pins, keep=True):
            log.info("pipex: left by an earlier npppyd: %s", line)
        maps = PipexMaps(capacity, pins)
        if maps.adopted and (ended := maps.clear()):
            log.info("pipex: left by an earlier npppyd: %d sessions removed", ended)
        return cls(maps, pins, fast=fast)

    def close(self) -> None:
        """Detach all, and leave nothing.  Flows and shared interfaces are closed before."""
        for name in list(self._access):
            self.detach_access(name)
        for name in list(self._core):
            self.detach_core(name)
        if self._pins is not None and self._pins.is_dir():
            remove_pins(self._pins)
        self.maps.close()

    # Devices.

    def open_interface(self, interface: Interface, mtu: int, aggregates: Iterable[IPv4Network]) -> NpxInterface:
        """Make the devices of an ``interface`` line, with the programs attached; then :meth:`attach` it.

        *mtu* is the largest of any session.  To be called on the event loop.  Raises :class:`TunError`.
        """
        maps = self.maps
        used = {index for index, _ in self._shared.values()}
        free = next((index for index in range(layout.SHARED_MAX) if index not in used), None)
        if free is None:
            raise TunError(f"{interface.name}: there are {layout.SHARED_MAX} shared interfaces already")
        npx = NpxInterface.open(interface, mtu, aggregates)
        npx0, npx1 = npx.npx0, npx.npx1
        try:
            mode = attach_xdp(npx1.name, npx1.ifindex, maps.programs["pipex_core"], self._own)
            attach_tc(npx1.name, npx1.ifindex, maps.programs["pipex_miss"])
            self._admit(npx1.ifindex)
            interval = int(ECHO_INTERVAL * 1e9)
            entry = CONFIG.pack(
                layout.VERSION, npx0.ifindex, npx1.ifindex, npx.ifindex, npx0.mac, npx1.mac, interval
            )
            maps.config.put(U32.pack(free), entry)
        except BpfError as error:
            npx.close()
            raise TunError(f"{interface.name}: {error}") from error
        self._shared[interface.name] = free, npx1.ifindex
        log.info("iface=%s pipex on %s, XDP %s on %s", interface.name, npx0.name, mode, npx1.name)
        return npx

    def detach(self, name: str) -> None:
        """The interface goes: to be called before its devices are closed."""
        shared = self._shared.pop(name, None)
        if shared is not None:
            index, ifindex = shared
            self.maps.config.put(U32.pack(index), bytes(CONFIG.size))
            self.maps.devs.delete(U32.pack(ifindex))
        super().detach(name)

    def attach_access(self, name: str, ifindex: int) -> None:
        """Carry sessions of an interface on which there are subscribers.

        To be called again when it has another index.  Raises :class:`BpfError`, which says so if the interface has an
        XDP program of somebody else; then Python carries what comes there.
        """
        if self._access.get(name, (0,))[0] == ifindex:
            return
        self._attach(name, ifindex, "pipex_access", self._core)
        try:
            changed = keep_vlan_tags(name, keep=True)
        except OSError as error:
            # Drivers that cannot, and that do not take tags away.
            log.debug("iface=%s cannot keep VLAN tags: %s", name, error)
            changed = False
        self._access[name] = ifindex, changed

    def detach_access(self, name: str) -> None:
        """Do so no more.  The interface may be gone, or never have been attached."""
        if name not in self._access:
            return
        ifindex, changed = self._access.pop(name)
        self._detach(name, ifindex)
        if changed:
            try:
                keep_vlan_tags(name, keep=False)
            except OSError as error:
                log.debug("iface=%s cannot take VLAN tags away again: %s", name, error)

    def attach_core(self, name: str, ifindex: int, mac: bytes) -> None:
        """Let packets of fast sessions leave by an interface, and take them in there without the stack.

        *mac* is its own address.  To be called again when it has another index.  Raises :class:`BpfError`.
        """
        if self._core.get(name) == ifindex:
            return
        self._attach(name, ifindex, "pipex_nic", self._access)
        self.maps.nics.put(U32.pack(ifindex), NIC.pack(mac, 0))
        self._core[name] = ifindex

    def detach_core(self, name: str) -> None:
        """Do so no more.  The interface may be gone, or never have been attached."""
        if name not in self._core:
            return
        ifindex = self._core.pop(name)
        self._detach(name, ifindex)
        self.maps.nics.delete(U32.pack(ifindex))

    # Sessions.

    def add(self, spec: FlowSpec, now: float) -> EbpfFlow:
        """Carry the data of a session, on an interface that is attached.

        What the kernel cannot carry, Python does.  Raises :class:`ConflictError` if its address or network is taken by
        another flow.
        """
        flow = EbpfFlow(spec, self.interfaces[spec.interface], self._table, now, self.maps)
        self._table.add(spec.address, spec.prefixlen, flow)
        if not spec.offload or not isinstance(spec.encap, PppoeEncap):
            return flow
        access = self._access.get(spec.encap.port.interface)
        shared = self._shared.get(spec.interface)
        if access is None or shared is None:
            return flow
        try:
            flow.enter(spec, access[0], shared[0], self.fast, now)
        except BpfError as error:
            if not self._full:
                log.error("pipex: ppp=%d is carried by Python, and others may be: %s", spec.session, error)
            self._full = True
        else:
            self._full = False
        return flow

    def paths(self) -> dict[str, tuple[int, int]]:
        """Packets and octets by the way they took, since the programs were loaded."""
        totals = self.maps.totals()
        return {name: totals[name] for name in _PATHS}

    def reasons(self) -> dict[str, tuple[int, int]]:
        """The same by the reason why they were dropped, or left to npppyd."""
        return {name: count for name, count in self.maps.totals().items() if name not in _PATHS}

    def ring(self) -> Ring:
        """What the block MIRROR has copied: records with the head :data:`.layout.EVENT`; for one reader at a time."""
        return Ring(self.maps.events)

    # How it is done.

    def _attach(self, name: str, ifindex: int, program: str, others: Container[str]) -> None:
        if name in others:
            raise BpfError(f"attach program {program} to {name}", errno.EBUSY, "it is both access and core")
        self._admit(ifindex)
        try:
            mode = attach_xdp(name, ifindex, self.maps.programs[program], self._own)
        except BpfError:
            self.maps.devs.delete(U32.pack(ifindex))
            raise
        log.info("iface=%s pipex: XDP %s", name, mode)

    def _detach(self, name: str, ifindex: int) -> None:
        try:
            detach_xdp(name, ifindex, self._own)
        except BpfError as error:
            if error.code != errno.ENODEV:
                log.error("iface=%s %s", name, error)
        self.maps.devs.delete(U32.pack(ifindex))

    def _admit(self, ifindex: int) -> None:
        """Let frames be redirected to an interface."""
        self.maps.devs.put(U32.pack(ifindex), U32.pack(ifindex).ljust(self.maps.devs.value_size, b"\0"))
