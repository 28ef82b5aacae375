from __future__ import annotations

import tracemalloc
from collections import deque
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from npppy import pool as module
from npppy.config.model import AddressRange, Ipcp, Where
from npppy.pool import AddressSpace, Pool, PoolExhausted

WHERE = Where("npppd.conf", 1, 1)


def number(text: str) -> int:
    return int(IPv4Address(text))


def ipcp(*ranges: str, allow: bool = True) -> Ipcp:
    """Ranges as ``10.0.0.0/24``, ``10.0.0.1-10.0.0.9`` or ``10.0.0.1``, with ``static`` behind."""
    pieces = []
    for text in ranges:
        spec, _, kind = text.partition(" ")
        if "/" in spec:
            network = IPv4Network(spec)
            first, last = network[0], network[-1]
        else:
            start, _, end = spec.partition("-")
            first, last = IPv4Address(start), IPv4Address(end or start)
        pieces.append(AddressRange(first=first, last=last, dynamic=kind != "static"))
    return Ipcp(name="POOL", where=WHERE, ranges=tuple(pieces), allow_user_selected_address=allow)


def make(*ranges: str, space: AddressSpace | None = None, reserved: tuple[str, ...] = ()) -> Pool:
    # An empty space is false.
    return Pool(ipcp(*ranges), AddressSpace() if space is None else space, map(IPv4Address, reserved))


def drain(pool: Pool) -> list[str]:
    got = []
    while True:
        try:
            got.append(str(IPv4Address(pool.allocate())))
        except PoolExhausted:
            return got


class TestAllocate:
    def test_every_address(self):
        pool = make("10.0.0.254-10.0.1.1", "10.0.3.0/30")
        assert pool.size == 8
        assert drain(pool) == [
            *("10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"),
            *("10.0.3.0", "10.0.3.1", "10.0.3.2", "10.0.3.3"),
        ]
        assert pool.used == 8

    def test_exhausted_names_the_pool(self):
        pool = make("10.0.0.1")
        pool.allocate()
        with pytest.raises(PoolExhausted, match="ipcp POOL: all 1 addresses are in use"):
            pool.allocate()

    def test_without_ranges(self):
        pool = make()
        assert pool.size == 0
        assert pool.aggregates() == []
        with pytest.raises(PoolExhausted):
            pool.allocate()

    def test_reserved(self):
        pool = make("10.0.0.0/30", reserved=("10.0.0.1", "192.0.2.1"))
        assert pool.size == 3
        assert drain(pool) == ["10.0.0.0", "10.0.0.2", "10.0.0.3"]

    def test_static_ranges_are_not_given_out(self):
        pool = make("10.0.0.0/31 static", "10.0.0.4/31")
        assert pool.size == 2
        assert drain(pool) == ["10.0.0.4", "10.0.0.5"]

    def test_overlapping_pieces(self):
        pool = make("10.0.0.2-10.0.0.5", "10.0.0.0/30", "10.0.0.4", "10.0.0.6")
        assert pool.size == 7
        assert drain(pool) == [f"10.0.0.{n}" for n in range(7)]

    def test_a_piece_within_another(self):
        assert drain(make("10.0.0.0/29", "10.0.0.2-10.0.0.3")) == [f"10.0.0.{n}" for n in range(8)]

    def test_the_last_address_there_is(self):
        assert drain(make("255.255.255.254-255.255.255.255")) == ["255.255.255.254", "255.255.255.255"]

    def test_fresh_before_released_and_those_in_order(self):
        pool = make("10.0.0.0/29")
        first = [pool.allocate() for _ in range(5)]
        for index in (3, 0, 4):
            pool.release(first[index])
        assert drain(pool) == [*(f"10.0.0.{n}" for n in (5, 6, 7)), *(f"10.0.0.{n}" for n in (3, 0, 4))]

    def test_many_released_come_before_fresh(self, monkeypatch):
        """What is remembered of a large pool is bounded, and still nothing is lost."""
        monkeypatch.setattr(module, "MAX_WAITING", 3)
        pool = make("10.0.0.0/29")
        for address in [pool.allocate() for _ in range(4)]:
            pool.release(address)
        assert drain(pool) == [f"10.0.0.{n}" for n in (0, 1, 4, 5, 6, 7, 2, 3)]

    def test_large_pools_are_not_materialised(self):
        tracemalloc.start()
        try:
            pool = make("10.0.0.0/8", "0.0.0.0/0 static")
            for _ in range(25_000):
                pool.allocate()
            assert pool.size == 1 << 24
            assert pool.used == 25_000
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()


class TestClaim:
    def test_wish(self):
        pool = make("10.0.0.0/30", "10.0.1.0/30 static", reserved=("10.0.0.1",))
        assert pool.claim(number("10.0.0.2"), fixed=False)
        assert pool.used == 1
        for refused in ("10.0.0.2", "10.0.0.1", "10.0.1.1", "10.0.2.1", "0.0.0.0"):
            assert not pool.claim(number(refused), fixed=False)
        assert drain(pool) == ["10.0.0.0", "10.0.0.3"]

    def test_wish_is_not_allowed(self):
        pool = Pool(ipcp("10.0.0.0/30", allow=False), AddressSpace())
        assert not pool.claim(number("10.0.0.2"), fixed=False)
        assert pool.claim(number("10.0.0.2"), fixed=True)

    def test_fixed(self):
        pool = make("10.0.0.0/30", "10.0.1.0/30 static", reserved=("10.0.0.1", "192.0.2.1"))
        for granted in ("10.0.0.2", "10.0.1.1", "192.0.2.2"):
            assert pool.claim(number(granted), fixed=True)
        for refused in ("10.0.0.2", "10.0.0.1", "192.0.2.1"):
            assert not pool.claim(number(refused), fixed=True)
        assert pool.used == 1

    @pytest.mark.parametrize(
        "address", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.254", "255.255.255.255"]
    )
    def test_not_a_host(self, address):
        assert not make().claim(number(address), fixed=True)

    def test_not_an_address(self):
        assert not make().claim(1 << 32, fixed=True)
        assert not make().claim(-1, fixed=True)

    def test_claimed_fresh_then_released(self):
        """It has been in use: it comes after those that never were, and only once."""
        pool = make("10.0.0.0/30")
        pool.claim(number("10.0.0.1"), fixed=True)
        pool.release(number("10.0.0.1"))
        assert drain(pool) == [f"10.0.0.{n}" for n in (0, 2, 3, 1)]

    def test_released_then_claimed(self):
        pool = make("10.0.0.0/31")
        assert len(drain(pool)) == 2
        for n in (0, 1):
            pool.release(number(f"10.0.0.{n}"))
        assert pool.claim(number("10.0.0.0"), fixed=False)
        assert drain(pool) == ["10.0.0.1"]
        pool.release(number("10.0.0.0"))
        assert drain(pool) == ["10.0.0.0"]


class TestSpace:
    def test_two_pools(self):
        space = AddressSpace()
        one = make("10.0.0.0/30", space=space)
        two = make("10.0.0.2-10.0.0.5", space=space)
        assert drain(two) == [f"10.0.0.{n}" for n in (2, 3, 4, 5)]
        assert (one.used, two.used, len(space)) == (2, 4, 4)
        assert drain(one) == ["10.0.0.0", "10.0.0.1"]
        # Whoever releases it, both may give it out again.
        one.release(number("10.0.0.3"))
        two.release(number("10.0.0.2"))
        assert drain(one) == ["10.0.0.3", "10.0.0.2"]
        assert drain(two) == []
        two.release(number("10.0.0.3"))
        assert drain(two) == ["10.0.0.3"]

    def test_release_of_what_is_not_in_use(self):
        pool = make("10.0.0.0/30")
        with pytest.raises(KeyError):
            pool.release(number("10.0.0.0"))
        assert pool.used == 0
        assert len(drain(pool)) == 4

    def test_adopt(self):
        """A session that lives through a reload keeps its address, whatever it is."""
        space = AddressSpace()
        assert space.adopt(number("10.0.0.0"))
        assert not space.adopt(number("10.0.0.0"))
        pool = make("10.0.0.0/30", space=space, reserved=("10.0.0.2",))
        assert space.adopt(number("10.0.0.2"))
        assert space.adopt(number("192.0.2.1"))
        assert number("192.0.2.1") in space
        assert pool.used == 1
        assert drain(pool) == ["10.0.0.1", "10.0.0.3"]
        for address in ("10.0.0.0", "10.0.0.2", "192.0.2.1"):
            space.release(number(address))
        assert drain(pool) == ["10.0.0.0"]

    def test_reload(self):
        space = AddressSpace()
        old = make("10.0.0.0/29", space=space)
        held = [old.allocate() for _ in range(4)]
        old.release(held[1])
        old.release(held[0])
        new = make("10.0.0.0/30", "10.0.9.0/31", space=space)
        old.close()
        assert (new.size, new.used) == (6, 2)
        # The order of release is known from the old pool.
        assert drain(new) == ["10.0.9.0", "10.0.9.1", "10.0.0.1", "10.0.0.0"]
        old.release(held[2])
        assert new.used == 5
        assert drain(new) == ["10.0.0.2"]
        # The old one hears of nothing any more.
        assert old.used == 2


class TestMemory:
    def test_released_addresses_cost_little(self):
        """As many as may wait, over and over, and with one that is claimed each time that it is released."""
        pool = make("10.0.0.0/8")
        held = [pool.allocate() for _ in range(20_000)]
        tracemalloc.start()
        try:
            for address in held:
                pool.release(address)
            for _ in range(50_000):
                again = pool.allocate()
                pool.release(again)
                assert pool.claim(held[0], fixed=True)
                pool.release(held[0])
            grown = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert grown < 1_000_000, grown


class TestRoutes:
    def test_aggregates(self):
        pool = make("10.0.0.0/24", "10.0.1.0-10.0.1.255 static", "192.0.2.1-192.0.2.4", "192.0.2.3")
        assert pool.aggregates() == [
            IPv4Network("10.0.0.0/23"),
            *map(IPv4Network, ("192.0.2.1/32", "192.0.2.2/31", "192.0.2.4/32")),
        ]
        for covered in ("10.0.0.0", "10.0.1.255", "192.0.2.4"):
            assert pool.covers(number(covered))
        for outside in ("9.255.255.255", "10.0.2.0", "192.0.2.0", "192.0.2.5"):
            assert not pool.covers(number(outside))

    def test_everything(self):
        assert make("0.0.0.0/0").aggregates() == [IPv4Network("0.0.0.0/0")]


BASE = number("10.0.0.0")
#: Overlapping pieces and pools, a static part, and a reserved address.
PIECES = (
    ("10.0.0.2-10.0.0.6", "10.0.0.5-10.0.0.9", "10.0.0.12-10.0.0.13 static"),
    ("10.0.0.8-10.0.0.11", "10.0.0.0", "10.0.0.13"),
)
DYNAMIC = ([2, 3, 4, 5, 6, 7, 8, 9], [0, 8, 9, 10, 11, 13])
RESERVED = 4


class Model(RuleBasedStateMachine):
    """Two pools against one list of addresses each, kept in the order in which they are to be given out."""

    def __init__(self) -> None:
        super().__init__()
        self.space = AddressSpace()
        self.pools = [make(*pieces, space=self.space, reserved=(f"10.0.0.{RESERVED}",)) for pieces in PIECES]
        self.orders = [deque(n for n in dynamic if n != RESERVED) for dynamic in DYNAMIC]
        self.used: set[int] = set()

    @initialize(slack=st.sampled_from((1, 4, 4096)))
    def places(self, slack: int) -> None:
        """How soon a queue of released ones is made anew."""
        module._SLACK = slack

    def teardown(self) -> None:
        module._SLACK = 4096

    def _take(self, n: int) -> None:
        assert n not in self.used
        self.used.add(n)
        for order in self.orders:
            if n in order:
                order.remove(n)

    @rule(which=st.integers(0, 1))
    def allocate(self, which: int) -> None:
        if not self.orders[which]:
            with pytest.raises(PoolExhausted):
                self.pools[which].allocate()
            return
        expected = self.orders[which][0]
        assert self.pools[which].allocate() - BASE == expected
        self._take(expected)

    @rule(which=st.integers(0, 1), n=st.integers(0, 15), fixed=st.booleans())
    def claim(self, which: int, n: int, fixed: bool) -> None:
        possible = n not in self.used and n != RESERVED and (fixed or n in DYNAMIC[which])
        assert self.pools[which].claim(BASE + n, fixed=fixed) == possible
        if possible:
            self._take(n)

    @rule(n=st.integers(0, 15))
    def adopt(self, n: int) -> None:
        assert self.space.adopt(BASE + n) == (n not in self.used)
        if n not in self.used:
            self._take(n)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), which=st.integers(0, 1))
    def release(self, data: st.DataObject, which: int) -> None:
        n = data.draw(st.sampled_from(sorted(self.used)))
        self.pools[which].release(BASE + n)
        self.used.remove(n)
        for order, dynamic in zip(self.orders, DYNAMIC, strict=True):
            if n in dynamic and n != RESERVED:
                order.append(n)

    @invariant()
    def counts(self) -> None:
        assert len(self.space) == len(self.used)
        for pool, order in zip(self.pools, self.orders, strict=True):
            assert pool.size - pool.used == len(order)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
