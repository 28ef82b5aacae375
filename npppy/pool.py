"""Addresses for peers: which are in use, and which is next.

The daemon has one :class:`AddressSpace` for each routing domain and one :class:`Pool` for each ``ipcp`` block.
Addresses are integers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from itertools import chain

from .config.model import AddressRange, Ipcp
from .fifo import Fifo

#: So many released addresses wait at most while there are some that were never given out.  It bounds the memory of a
#: large pool, and no address is used again before so many others have come back.
MAX_WAITING = 32768

#: Places of no use in the midst of a queue before it is made anew.
_SLACK = 4096


class PoolExhausted(Exception):
    """All addresses of a pool are in use; the message names it."""


class AddressSpace:
    """The addresses in use in one routing domain, whichever pool they are from, or from none."""

    __slots__ = ("_pools", "_used")

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._pools: list[Pool] = []

    def __contains__(self, address: int) -> bool:
        """Whether *address* is in use."""
        return address in self._used

    def __len__(self) -> int:
        """How many addresses are in use."""
        return len(self._used)

    def adopt(self, address: int) -> bool:
        """Mark the address of a session that lives already, whatever the pools say; False if it was in use."""
        if address in self._used:
            return False
        self._used.add(address)
        # Pools may overlap, so each of them is told; there are few.
        for pool in self._pools:
            pool._taken(address)
        return True

    def release(self, address: int) -> None:
        """*address* is free again.  Raises :class:`KeyError` if it was not in use."""
        self._used.remove(address)
        for pool in self._pools:
            pool._freed(address)


class _Ranges:
    """A set of addresses as disjoint ranges in rising order."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[AddressRange]) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted((int(piece.first), int(piece.last)) for piece in ranges):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def __contains__(self, address: int) -> bool:
        index = bisect_right(self._firsts, address) - 1
        return index >= 0 and address <= self._lasts[index]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(range(first, last + 1) for first, last in self.pairs())

    def __len__(self) -> int:
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def pairs(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)


class _Waiting:
    """Free addresses that have been in use, in the order in which they were released."""

    __slots__ = ("_queue", "_stale", "_stales")

    def __init__(self) -> None:
        self._queue = Fifo("I")
        # Those that were taken out of turn: of so many of their places, the first ones, they have gone.
        self._stale: dict[int, int] = {}
        self._stales = 0

    def __len__(self) -> int:
        return len(self._queue) - self._stales

    def __iter__(self) -> Iterator[int]:
        stale = self._stale.copy()
        for address in self._queue:
            if stale.get(address):
                stale[address] -= 1
            else:
                yield address

    def add(self, address: int) -> None:
        self._queue.append(address)

    def first(self) -> int:
        """Who has waited longest; there is one."""
        queue, stale = self._queue, self._stale
        while count := stale.pop(queue.first, 0):
            address = queue.pop()
            self._stales -= 1
            if count > 1:
                stale[address] = count - 1
        return queue.first

    def remove(self, address: int) -> None:
        """One that waits waits no more."""
        if self.first() == address:
            self._queue.pop()
            return
        self._stale[address] = self._stale.get(address, 0) + 1
        self._stales += 1
        if self._stales >= _SLACK and self._stales * 2 >= len(self._queue):
            self._queue = Fifo("I", self)
            self._stales = 0
            self._stale.clear()


class Pool:
    """The addresses of an ``ipcp`` block.

    Those that were never given out come first, in rising order, then the least recently released.  Every address of
    a range is used, .0 and .255 as well, but for the *reserved* ones: those of our own interfaces.

    A reload makes the new pools in the same space before it closes the old ones: they learn from the space what is
    in use, and from the old pools what was released when.
    """

    __slots__ = (
        "_all",
        "_dynamic",
        "_early",
        "_fresh",
        "_ipcp",
        "_passed",
        "_released",
        "_reserved",
        "_space",
        "size",
        "used",
    )

    def __init__(self, ipcp: Ipcp, space: AddressSpace, reserved: Iterable[IPv4Address] = ()) -> None:
        self._ipcp = ipcp
        self._space = space
        self._reserved = frozenset(map(int, reserved))
        self._all = _Ranges(ipcp.ranges)
        self._dynamic = _Ranges(piece for piece in ipcp.ranges if piece.dynamic)
        self._fresh = iter(self._dynamic)
        # So far that has come.
        self._passed = -1
        # Free addresses that have been in use; and which addresses have been before that had come to them.
        self._released = _Waiting()
        self._early: set[int] = set()
        #: How many addresses there are to give out, and how many of those are in use.
        self.size = len(self._dynamic) - sum(address in self._dynamic for address in self._reserved)
        self.used = sum(map(self._gives, space._used))
        for other in space._pools:
            for address in filter(self._gives, other._released):
                if address not in self._early:
                    self._early.add(address)
                    self._released.add(address)
        space._pools.append(self)

    @property
    def name(self) -> str:
        """Of its ipcp block."""
        return self._ipcp.name

    def close(self) -> None:
        """The configuration has another pool now.  What it gave out may still be released."""
        self._space._pools.remove(self)

    def allocate(self) -> int:
        """An address that is in use from now on.  Raises :class:`PoolExhausted`."""
        fresh = self._next_fresh() if len(self._released) < MAX_WAITING else None
        if fresh is not None:
            self._space.adopt(fresh)
            self._passed = fresh
            return fresh
        if not self._released:
            raise PoolExhausted(f"ipcp {self._ipcp.name}: all {self.size} addresses are in use")
        address = self._released.first()
        self._space.adopt(address)
        return address

    def claim(self, address: int, *, fixed: bool) -> bool:
        """Take this very address, if that is possible.

        The *fixed* address of a user may be a dynamic or a static one, or outside of all pools.  A peer's own wish is
        granted from the dynamic ones only, where ``allow-user-selected-address`` says so.
        """
        if address in self._space or address in self._reserved:
            return False
        if fixed:
            # Not 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3 (RFC 1122 section 3.2.1.3).
            if address >> 24 in (0, 127) or not 0 <= address < 0xE0000000:
                return False
        elif address not in self._dynamic or not self._ipcp.allow_user_selected_address:
            return False
        return self._space.adopt(address)

    def release(self, address: int) -> None:
        """*address* is free again, wherever it came from.  Raises :class:`KeyError` if it was not in use."""
        self._space.release(address)

    def covers(self, address: int) -> bool:
        """Whether *address* is within :meth:`aggregates`, so that it needs no route of its own."""
        return address in self._all

    def aggregates(self) -> list[IPv4Network]:
        """The fewest networks that make up the static and dynamic ranges, for routes."""
        return [
            network
            for first, last in self._all.pairs()
            for network in summarize_address_range(IPv4Address(first), IPv4Address(last))
        ]

    def _gives(self, address: int) -> bool:
        return address in self._dynamic and address not in self._reserved

    def _next_fresh(self) -> int | None:
        for address in self._fresh:
            # It may have been claimed, and perhaps released, before its turn has come.
            if address not in self._early and address not in self._space and address not in self._reserved:
                return address
            self._early.discard(address)
            self._passed = address
        return None

    def _taken(self, address: int) -> None:
        if self._gives(address):
            self.used += 1
            if address <= self._passed or address in self._early:
                self._released.remove(address)

    def _freed(self, address: int) -> None:
        if self._gives(address):
            self.used -= 1
            self._released.add(address)
            if address > self._passed:
                self._early.add(address)
