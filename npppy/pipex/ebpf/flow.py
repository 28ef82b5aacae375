"""A session's place in the maps: what the kernel carries of it, and what it has counted."""

from __future__ import annotations

import errno
import operator
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from ...l2tp.encap import L2tpEncap
from ..base import Counters, FlowSpec, Police
from ..icmp import RateLimit
from ..ip import MIN_MTU
from ..lookup import Table
from ..user import SharedInterface, UserFlow
from . import carriers, layout
from .carriers import Sequence, Wire
from .ipsec import Diversion
from .keys import Keys
from .layout import BUCKET, REF, SESSION, STATS, U32
from .libbpf import LOCKED, NOEXIST, BpfError, Map
from .maps import PipexMaps, check_limit
from .plumbing import NpxInterface

_PLACES: Final = list(STATS.offsets)
_COUNTED: Final = operator.itemgetter(*map(_PLACES.index, Counters._fields))
_ACTIVE: Final = _PLACES.index("active_ns")
_HEARD: Final = _PLACES.index("heard_ns")
_LOOPED: Final = _PLACES.index("looped")
_NO_NEXT: Final = bytes(REF.size)
_SPARE: Final = bytes(24)
_POLICE: Final = layout.POLICE_UP | layout.POLICE_DOWN
#: Octets that MPPE adds.
_MPPE: Final = 4


class _Gone(NamedTuple):
    """What the kernel had counted when it gave a session back, and the slot that rests since."""

    counted: Counters
    slot: int
    #: For :meth:`PipexMaps.rests`.
    number: int


_NOT_YET: Final = _Gone(Counters(), -1, 0)


class EbpfFlow(UserFlow):
    """The data of one session in the kernel's hands; what the programs leave to Python goes as in back end ``user``."""

    __slots__ = ("_diverted", "_gone", "_keys", "_maps", "_npx", "_sequence", "_user", "slot")

    def __init__(
        self, spec: FlowSpec, interface: SharedInterface, table: Table[UserFlow], now: float, maps: PipexMaps
    ) -> None:
        super().__init__(spec, interface, table, now)
        self._maps = maps
        self._gone = _NOT_YET
        # Whether an operator wants Python to carry it: known here so that a listing costs no system call a session.
        self._user = False
        # The numbers of L2TP and PPTP, which the kernel gives all frames while it has the session, whoever carries its
        # data: so there is never a moment when both do.  Likewise it encrypts all of its data.
        self._sequence: Sequence | None = None
        self._keys: Keys | None = None
        # By which frames are given to the kernel.
        self._npx: NpxInterface | None = None
        # Ends the diversion of what IPsec has decrypted.
        self._diverted: Callable[[], None] | None = None
        #: Its place in the maps; -1 where the kernel has no part in it.
        self.slot = -1

    @property
    def carried(self) -> bool:
        """Whether the kernel carries it now."""
        return self.slot >= 0 and not self._user

    @property
    def blocks(self) -> int:
        """What the programs do with its packets, as bits of :mod:`.layout`; 0 where the kernel has no part in it."""
        if self.slot < 0:
            return 0
        blocks: int = U32.unpack_from(self._maps.session(self.slot), SESSION.offsets["blocks"])[0]
        return blocks

    def counters(self) -> Counters:
        """What the kernel and Python have carried."""
        kernel = _COUNTED(self._maps.stats(self.slot)) if self.slot >= 0 else self._gone.counted
        return Counters(*kernel) if self._tally is None else self.by_python().plus(Counters(*kernel))

    def late(self) -> Counters:
        """What programs have counted since that had found the session before it was closed."""
        if not self._maps.rests(self._gone.number):
            return Counters()
        return Counters(*_COUNTED(self._maps.stats(self._gone.slot))).minus(self._gone.counted)

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
        """Have Python carry it from the next packet on."""
        if self.carried:
            self.set_blocks(layout.USER)
            self._user = True
            # The tokens move too: two buckets would fill twice as fast.
            self._police_up, self._police_down = self._bucket(0), self._bucket(1)
        return self.slot >= 0

    def to_ebpf(self) -> bool:
        """Have the kernel carry it again."""
        if self.slot >= 0:
            for way, bucket in enumerate((self._police_up, self._police_down)):
                if bucket is not None:
                    tokens, stamp = int(bucket.tokens * 1e9), int(bucket.last * 1e9)
                    record = BUCKET.pack(int(bucket.rate), bucket.burst, tokens, stamp, 0, 0)
                    self._maps.buckets.put(U32.pack(2 * self.slot + way), record, LOCKED)
            self.set_blocks(0, layout.USER)
            self._user = False
            self._police_up = self._police_down = None
        return self.slot >= 0

    def mirror(self, on: bool) -> None:
        self.set_blocks(layout.MIRROR if on else 0, layout.MIRROR)

    def entries(self) -> tuple[str, ...]:
        if self.slot < 0:
            return ()
        hosts4 = ("hosts4",) if self._address else ()
        keys = ("mppe", "mppe") if self._keys is not None else ()
        networks = ("nets6",) * len(self._networks6) + ("nets4",) * len(self._networks)
        return (*networks, *hosts4, *keys, "sessions")

    def police(self, up: Police | None, down: Police | None) -> None:
        """Limit the rate from the peer and that to it, or lift a limit.  A new limit begins with its burst.

        Raises :class:`BpfError` for a rate or burst that cannot be; then nothing has changed.
        """
        if self.slot >= 0:
            before = self.blocks
            blocks = self._limit(self.slot, up, down, before)
            if before & _POLICE != blocks:
                self.set_blocks(blocks, _POLICE)
        if not self.carried:
            super().police(up, down)

    def close(self) -> Counters:
        """Further packets from the peer are errors.  Closing again does nothing."""
        if self.slot >= 0:
            self.leave()
        return super().close()

    def enter(self, spec: FlowSpec, wire: Wire, npx: NpxInterface, shared: int, now: float) -> None:
        """Give the session to the kernel.  Raises :class:`BpfError`; then Python has it as before.

        Its shared interface is *npx*, entry *shared* of the map ``config``.
        """
        maps, header = self._maps, wire.header
        blocks = layout.COUNT | layout.IDLE | wire.blocks
        if spec.address:
            blocks |= layout.IP4
        if spec.networks6:
            blocks |= layout.IP6
        if spec.ingress_filter:
            blocks |= layout.FILTER
        if spec.mss_adjust:
            blocks |= layout.MSS
        if spec.echo:
            blocks |= layout.ECHO
        if spec.fast:
            blocks |= layout.FAST
        if spec.mirror:
            blocks |= layout.MIRROR
        if spec.mppe is not None:
            blocks |= layout.MPPE
        slot, generation = maps.take()
        if slot < 0:
            raise BpfError(f"carry more than {maps.capacity} sessions", errno.ENOSPC)
        ref = REF.pack(slot, generation)
        keys = Keys(maps.mppe, slot, generation, spec.mppe) if spec.mppe is not None else None
        done = []
        try:
            if wire.sequence is not None or keys is not None:
                npx.keep_order()
            if wire.kind == layout.PPTP:
                npx.acknowledge()
            blocks |= self._limit(slot, spec.police_up, spec.police_down)
            session = SESSION.pack(
                generation,
                blocks,
                spec.address.to_bytes(4, "big"),
                wire.ifindex,
                min(max(spec.mtu, MIN_MTU), wire.mtu - (_MPPE if keys is not None else 0)),
                max(spec.mru, MIN_MTU),
                shared,
                len(header),
                wire.length_at,
                wire.flags,
                wire.kind,
                layout.PAYLOAD_PPP,
                spec.prefixlen,
                0,
                header,
                spec.session & 0xFFFFFFFF,
                spec.domain,
                spec.magic.to_bytes(4, "big"),
                spec.peer_magic.to_bytes(4, "big"),
                wire.mark,
                _NO_NEXT,
                wire.outer_at,
                wire.seq_at,
                wire.tunnel_id,
                wire.session_id.to_bytes(2, "big"),
                wire.window,
                _SPARE,
            )
            maps.fill(slot, session, int(now * 1e9))
            if sequence := wire.sequence:
                maps.set_sequence(slot, carriers.numbers(sequence))
            if keys is not None:
                keys.put()
            for item, key in self._entries(session):
                item.put(key, ref, NOEXIST)
                done.append((item, key))
        except BpfError:
            for item, key in done:
                item.delete(key)
            maps.free(slot)
            if done:
                # Packets may have found it.
                self._take_back(slot, wire.sequence, keys)
            elif keys is not None:
                keys.remove()
            raise
        self.slot = slot
        self._police_up = self._police_down = None
        self._sequence = sequence
        self._keys = keys
        self._npx = npx
        if sequence is not None:
            carriers.lend(sequence, self)
        if keys is not None:
            keys.lend(self.inject)

    # Who numbers or encrypts asks for this while the kernel does it (npppy.pptp.encap.Keeper).

    def inject(self, frame: bytes) -> None:
        assert self._npx is not None
        self._npx.encapsulate(self.slot, self._maps.generation(self.slot), frame)

    def look(self) -> tuple[int, int]:
        return self._maps.acknowledged(self.slot)

    def note(self, number: int) -> None:
        self._maps.expect(self.slot, number)

    def divert(self, diversion: Diversion, encap: L2tpEncap, npx0: int) -> None:
        """Have what comes under IPsec diverted to npx0, an index, for as long as the kernel has the session."""
        at = encap.local, encap.local_port, encap.tunnel_id, encap.session_id, encap.mark
        diversion.add(*at, npx0)
        self._diverted = partial(diversion.remove, *at)

    def leave(self) -> None:
        """Take the session back for good."""
        if self._diverted is not None:
            self._diverted()
            self._diverted = None
        maps, slot = self._maps, self.slot
        for item, key in self._entries(maps.session(slot)):
            item.delete(key)
        self.slot = -1
        number = maps.free(slot)
        # Last, when hardly any program runs any more that has found the session before: see late().
        stats = maps.stats(slot)
        self._gone = _Gone(Counters(*_COUNTED(stats)), slot, number)
        self._active = max(self._active, stats[_ACTIVE] * 1e-9)
        self._take_back(slot, self._sequence, self._keys)
        self._sequence = self._keys = None

    def _take_back(self, slot: int, sequence: Sequence | None, keys: Keys | None) -> None:
        """Have numbers and keys as the kernel has left them in a slot that nothing leads to any more."""
        if sequence is not None:
            carriers.take_back(sequence, self._maps.sequence(slot))
        if keys is not None:
            keys.take_back()

    def _limit(self, slot: int, up: Police | None, down: Police | None, before: int = 0) -> int:
        """Fill the buckets, but those that the blocks of *before* look at and that are as they are to be.

        Returns the blocks that look at them.
        """
        blocks = 0
        for limit in (up, down):
            if limit is not None:
                check_limit(*limit)
        for way, limit, block in ((0, up, layout.POLICE_UP), (1, down, layout.POLICE_DOWN)):
            if limit is not None:
                blocks |= block
                if not before & block or self._maps.bucket(slot, way)[:2] != limit:
                    self._maps.limit(slot, way, *limit)
        return blocks

    def _bucket(self, way: int) -> RateLimit | None:
        """What is left in the kernel's bucket of a way, 0 up and 1 down; None: there is no limit."""
        if not self.blocks & (layout.POLICE_UP, layout.POLICE_DOWN)[way]:
            return None
        rate, burst, tokens, stamp, _, _ = self._maps.bucket(self.slot, way)
        bucket = RateLimit(rate, burst)
        # One that nothing has taken from is full.
        if stamp:
            bucket.tokens, bucket.last = tokens * 1e-9, stamp * 1e-9
        return bucket

    def _entries(self, session: bytes) -> list[tuple[Map, bytes]]:
        """What leads to its slot, in which *session* is.

        The way down comes first: the peer's first packet may be answered at once.
        """
        maps = self._maps
        domain = self._plan.domain
        entries = [(maps.nets6, layout.net6(domain, *network)) for network in self._networks6]
        entries += [(maps.nets4, layout.net4(domain, *network)) for network in self._networks]
        if self._address:
            entries.append((maps.hosts4, layout.host4(domain, self._address)))
        # Not kept: it costs less to have it found again than to hold it for days.
        entries.append((maps.sessions, layout.key_of(session)))
        return entries
