"""A session's place in the maps: what the kernel carries of it, and what it has counted."""

from __future__ import annotations

import errno
from typing import Final

from ..base import Counters, FlowSpec, Police
from ..ip import MIN_MTU
from ..lookup import Table
from ..user import SharedInterface, UserFlow
from . import layout
from .layout import REF, SESSION, STATS, U32
from .libbpf import NOEXIST, BpfError, Map
from .maps import PipexMaps

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
