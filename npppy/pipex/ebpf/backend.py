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
from ..base import Counters, FlowSpec, Police
from ..ip import MIN_MTU
from ..lookup import Table
from ..user import SharedInterface, UserBackend, UserFlow
from . import layout
from .attach import attach_tc, attach_xdp, detach_xdp
from .layout import CONFIG, NIC, REF, SESSION, STATS, U32
from .libbpf import NOEXIST, BpfError, Map, Ring
from .maps import PINS, PipexMaps, remove_pins
from .plumbing import NpxInterface, keep_vlan_tags, teardown

log = logging.getLogger("npppy.pipex")

#: Least seconds between two Echo-Replies of a session.
ECHO_INTERVAL: Final = 0.1

_PATHS: Final = ("STACK_UP", "STACK_DOWN", "FAST_UP", "FAST_DOWN", "USER_UP", "USER_DOWN")
_ACTIVE: Final = list(STATS.offsets).index("active_ns")
_HEARD: Final = list(STATS.offsets).index("heard_ns")
_LOOPED: Final = list(STATS.offsets).index("looped")
_NOTHING: Final = Counters()
_NO_ADDRESS6: Final = bytes(16)
_SPARE: Final = bytes(34)


class EbpfFlow(UserFlow):
    """The data of one session in the kernel's hands; what the programs leave to Python goes as in back end ``user``."""

    __slots__ = ("_domain", "_gone", "_key", "_maps", "generation", "slot")

    def __init__(
        self, spec: FlowSpec, interface: SharedInterface, table: Table[UserFlow], now: float, maps: PipexMaps
    ) -> None:
        super().__init__(spec, interface, table, now)
        self._maps = maps
        self._domain = spec.domain
        self._key = b""
        #: What the kernel had counted when it gave the session back.
        self._gone: tuple[int, ...] = _NOTHING
        #: Its place in the maps; -1 where the kernel has no part in it.
        self.slot = -1
        self.generation = 0

    @property
    def carried(self) -> bool:
        """Whether the kernel carries it now."""
        return self.slot >= 0 and not self.blocks & layout.USER

    @property
    def blocks(self) -> int:
        """What the programs do with its packets, as bits of :mod:`.layout`; 0 where the kernel has no part in it."""
        if self.slot < 0:
            return 0
        blocks: int = U32.unpack_from(self._maps.session(self.slot), SESSION.offsets["blocks"])[0]
        return blocks

    def counters(self) -> Counters:
        """What the kernel and Python have carried."""
        kernel = self._maps.stats(self.slot) if self.slot >= 0 else self._gone
        return Counters(
            self._in_bytes + kernel[0],
            self._in_packets + kernel[1],
            self._in_errors + kernel[2],
            self._out_bytes + kernel[3],
            self._out_packets + kernel[4],
            self._out_errors + kernel[5],
        )

    def last_active(self) -> float:
        if self.slot >= 0:
            return max(self._active, self._maps.stats(self.slot)[_ACTIVE] * 1e-9)
        return self._active

    def heard(self) -> float:
        """When the kernel last saw a frame of the peer, on the monotonic clock; 0 where it does not look."""
        return self._maps.stats(self.slot)[_HEARD] * 1e-9 if self.slot >= 0 else 0.0

    def looped(self) -> int:
        """Echo-Requests with our own magic number, which the kernel has passed on."""
        return self._maps.stats(self.slot)[_LOOPED] if self.slot >= 0 else 0

    def set_blocks(self, put: int, remove: int = 0) -> bool:
        """Have the programs do more with its packets, or less; no packet is lost over it.

        False where the kernel has no part in the session.
        """
        if self.slot < 0:
            return False
        session = bytearray(self._maps.session(self.slot))
        at = SESSION.offsets["blocks"]
        U32.pack_into(session, at, U32.unpack_from(session, at)[0] & ~remove | put)
        # Nothing but these bits changes: a program that looks while the kernel copies sees some of them before others.
        self._maps.slots.put(U32.pack(self.slot), bytes(session))
        return True

    def to_user(self) -> bool:
        """Have Python carry it from the next packet on; limits of its rate do not hold there."""
        return self.set_blocks(layout.USER)

    def to_ebpf(self) -> bool:
        """Have the kernel carry it again."""
        return self.set_blocks(0, layout.USER)

    def police(self, up: Police | None, down: Police | None) -> bool:
        """Limit the rate from the peer and that to it, or lift a limit.

        False where the kernel has no part in the session.  Raises :class:`BpfError` for a rate or burst that cannot
        be.
        """
        if self.slot < 0:
            return False
        put = 0
        for way, limit, block in ((0, up, layout.POLICE_UP), (1, down, layout.POLICE_DOWN)):
            if limit is not None:
                self._maps.limit(self.slot, way, limit.rate, limit.burst)
                put |= block
        return self.set_blocks(put, layout.POLICE_UP | layout.POLICE_DOWN)

    def close(self) -> Counters:
        """Further packets from the peer are errors.  Closing again does nothing."""
        if self.slot >= 0:
            self.leave()
        return super().close()

    def enter(self, spec: FlowSpec, ifindex: int, shared: int, fast: bool, now: float) -> None:
        """Give the session to the kernel.  Raises :class:`BpfError`; then Python has it as before."""
        maps, encap = self._maps, spec.encap
        port = encap.port
        blocks = layout.COUNT | layout.IDLE | layout.IP4
        if spec.ingress_filter:
            blocks |= layout.FILTER
        if spec.mss_adjust:
            blocks |= layout.MSS
        if spec.echo:
            blocks |= layout.ECHO
        if fast:
            blocks |= layout.FAST
        header, length_at = layout.pppoe_encapsulation(port.outer, port.inner, encap.mac, encap.peer, encap.session_id)
        self._key = layout.pppoe_key(ifindex, port.outer, port.inner, encap.peer, encap.session_id)
        slot, generation = maps.take()
        if slot < 0:
            raise BpfError(f"carry more than {maps.capacity} sessions", errno.ENOSPC)
        ref = REF.pack(slot, generation)
        done = []
        try:
            for way, limit in ((0, spec.police_up), (1, spec.police_down)):
                if limit is not None:
                    maps.limit(slot, way, limit.rate, limit.burst)
                    blocks |= (layout.POLICE_UP, layout.POLICE_DOWN)[way]
            session = SESSION.pack(
                generation,
                blocks,
                spec.session & 0xFFFFFFFF,
                spec.domain,
                layout.PPPOE,
                layout.PAYLOAD_PPP,
                spec.prefixlen,
                0,
                spec.address.to_bytes(4, "big"),
                _NO_ADDRESS6,
                max(spec.mtu, MIN_MTU),
                max(spec.mru, MIN_MTU),
                spec.magic.to_bytes(4, "big"),
                spec.peer_magic.to_bytes(4, "big"),
                ifindex,
                len(header),
                length_at,
                header,
                shared,
                _SPARE,
            )
            maps.fill(slot, session, int(now * 1e9))
            for item, key in self._entries():
                item.put(key, ref, NOEXIST)
                done.append((item, key))
        except BpfError:
            for item, key in done:
                item.delete(key)
            maps.free(slot)
            raise
        self.slot = slot
        self.generation = generation

    def leave(self) -> None:
        """Take the session back for good."""
        maps, slot = self._maps, self.slot
        for item, key in self._entries():
            item.delete(key)
        stats = maps.stats(slot)
        self._gone = stats[:6]
        self._active = max(self._active, stats[_ACTIVE] * 1e-9)
        self.slot = -1
        maps.free(slot)

    def _entries(self) -> list[tuple[Map, bytes]]:
        """What leads to its slot.  The way down comes first: the peer's first packet may be answered at once."""
        maps = self._maps
        entries = [(maps.hosts4, layout.host4(self._domain, self._address)), (maps.sessions, self._key)]
        if self._prefixlen < 32:
            entries.insert(0, (maps.nets4, layout.net4(self._domain, self._address, self._prefixlen)))
        return entries


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
