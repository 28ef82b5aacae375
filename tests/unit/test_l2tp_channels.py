"""RFC 2661 section 5.8 and appendix A: two channels, and a bad network between them."""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from npppy.l2tp.channel import BOUND, Channel
from npppy.wheel import TICK, Wheel

START = 1000.0


class End:
    """One of two; what arrives is handled as a tunnel would: all of a batch, then an acknowledgement."""

    def __init__(self, world: World, name: int, window: int, front: int, expected: int) -> None:
        self.world = world
        self.name = name
        self.channel = Channel(self, world.wheel)
        self.channel.window = window
        self.channel._front = front
        self.channel.next_nr = expected
        self.front = front
        self.most = max(window, 1)
        self.sent: list[tuple[int, bytes]] = []
        self.bounds: list[float] = []
        self.first: dict[int, float] = {}
        self.received: list[tuple[int, bytes]] = []
        self.acked = 0
        self.dead: float | None = None

    def send(self, session_id: int, bound: float) -> None:
        body = b"%d %d" % (self.name, len(self.sent))
        if self.dead is None:
            self.sent.append((session_id, body))
            self.bounds.append(bound)
            self.channel.send(session_id, body, self.world.now, bound)

    def transmit(self, session_id: int, ns: int, nr: int, body: bytes) -> None:
        if body:
            index = (ns - self.front) & 0xFFFF
            assert self.sent[index] == (session_id, body)
            # Never before its turn, never beyond the peer's window.
            assert index in self.first or index == len(self.first)
            assert self.acked <= index < self.acked + self.most
            self.first.setdefault(index, self.world.now)
        else:
            assert ns == (self.front + len(self.first)) & 0xFFFF
        assert nr == self.channel.next_nr
        self.world.carry(1 - self.name, (session_id, ns, nr, body))

    def take(self, packet: tuple[int, int, int, bytes]) -> None:
        session_id, ns, nr, body = packet
        if self.dead is None:
            count = (nr - self.front) & 0xFFFF
            if self.acked < count <= len(self.first):
                self.acked = count
            self.received += self.channel.receive(session_id, ns, nr, body, self.world.now)

    def undelivered(self, now: float) -> None:
        assert self.dead is None
        self.dead = now
        # Exactly when the earliest bound of those under way has passed, to within two ticks.
        due = min(self.first[index] + self.bounds[index] for index in self.first if index >= self.acked)
        assert due <= now <= due + 2 * TICK


class World:
    def __init__(self, rng: Random, loss: float, again: float, delay: float, windows: tuple[int, int]) -> None:
        self.now = START
        self.rng = rng
        self.loss = loss
        self.again = again
        self.delay = delay
        self.wheel = Wheel(START)
        self.packets: list[tuple[float, int, int, tuple[int, int, int, bytes]]] = []
        self.count = 0
        # Near the wrap, more often than not.
        fronts = [rng.choice((0, 1, 32760, 65500, 65535)) for _ in range(2)]
        self.ends = [End(self, name, windows[1 - name], fronts[name], fronts[1 - name]) for name in range(2)]

    def carry(self, to: int, packet: tuple[int, int, int, bytes]) -> None:
        for _ in range(2 if self.rng.random() < self.again else 1):
            if self.rng.random() >= self.loss:
                self.count += 1
                heappush(self.packets, (self.now + self.rng.random() * self.delay, self.count, to, packet))

    def run(self, work: list[tuple[float, int, int, float]]) -> None:
        """Until nothing happens any more; *work*: when, which end, a session id and a bound."""
        work = sorted(work, reverse=True)
        while work or self.packets or len(self.wheel):
            assert self.now < START + 10000
            self.now += TICK / 2
            while work and START + work[-1][0] <= self.now:
                _, name, session_id, bound = work.pop()
                self.ends[name].send(session_id, bound)
            while self.packets and self.packets[0][0] <= self.now:
                _, _, name, packet = heappop(self.packets)
                self.ends[name].take(packet)
            for end in self.ends:
                end.channel.flush(self.now)
            self.wheel.advance(self.now)

    def check(self) -> None:
        for end, other in (self.ends, self.ends[::-1]):
            assert other.received == end.sent[: len(other.received)]
            assert end.channel.idle
            assert end.channel.queued == 0
            if end.dead is None:
                assert other.received == end.sent
                assert end.acked == len(end.sent)


windows = st.sampled_from([0, 1, 2, 4, 16])
jobs = st.lists(
    st.tuples(
        st.floats(0, 20), st.integers(0, 1), st.integers(0, 65535), st.sampled_from([BOUND, BOUND, BOUND, 12.0, 3.0])
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), pair=st.tuples(windows, windows), work=jobs, delay=st.sampled_from([0.0, 0.5, 2.0]))
def test_once_and_in_order_or_given_up_in_time(
    seed: int, pair: tuple[int, int], work: list[tuple[float, int, int, float]], delay: float
) -> None:
    """30 % lost, 10 % duplicated, and reordered by up to *delay* seconds."""
    world = World(Random(seed), 0.3, 0.1, delay, pair)
    world.run(work)
    world.check()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), pair=st.tuples(windows, windows), work=jobs)
def test_nothing_is_sent_again_where_nothing_is_lost(
    seed: int, pair: tuple[int, int], work: list[tuple[float, int, int, float]]
) -> None:
    """Duplicates and reordering alone, with round trips under the least timeout."""
    world = World(Random(seed), 0.0, 0.3, 0.15, pair)
    world.run(work)
    world.check()
    for end in world.ends:
        assert end.dead is None
        assert end.channel.retransmissions == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), work=jobs.filter(bool))
def test_nobody_there(seed: int, work: list[tuple[float, int, int, float]]) -> None:
    world = World(Random(seed), 1.0, 0.0, 0.0, (4, 4))
    world.run(work)
    world.check()
    for name, end in enumerate(world.ends):
        assert (end.dead is not None) == any(job[1] == name for job in work)


def test_a_bad_path_mostly_works() -> None:
    """With 30 % lost each way, of 100 tunnels with ten messages each way most live; six transmissions fail seldom."""
    alive = 0
    for seed in range(100):
        world = World(Random(seed), 0.3, 0.05, 0.3, (4, 4))
        world.run([(number / 10, number % 2, 0, BOUND) for number in range(20)])
        world.check()
        alive += all(end.dead is None for end in world.ends)
    assert alive >= 75
