"""RFC 2661 section 5.8 and appendix A, rule by rule."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npppy.l2tp import channel as module
from npppy.l2tp.channel import BOUND, QUEUE_LIMIT, RECEIVE_WINDOW, Channel
from npppy.wheel import TICK, Wheel

START = 1000.0


class Rig:
    """A channel, its owner and its clock; what it sends is kept as (seconds since the start, session, Ns, Nr, body)."""

    def __init__(self, window: int = 16, front: int = 0, expected: int = 0) -> None:
        self.now = START
        self.wheel = Wheel(START)
        self.sent: list[tuple[float, int, int, int, bytes]] = []
        self.dead: list[float] = []
        self.channel = Channel(self, self.wheel)
        self.channel.window = window
        self.channel._front = front
        self.channel.next_nr = expected

    def transmit(self, session_id: int, ns: int, nr: int, body: bytes) -> None:
        self.sent.append((self.now - START, session_id, ns, nr, body))

    def undelivered(self, now: float) -> None:
        assert self.channel.closed
        self.dead.append(now - START)
        self.channel.close()

    def run(self, seconds: float) -> None:
        """Let time pass, tick by tick."""
        end = self.now + seconds
        while self.now < end:
            self.now += TICK
            self.wheel.advance(self.now)

    def send(self, *bodies: bytes, session_id: int = 0, bound: float = BOUND) -> None:
        for body in bodies:
            self.channel.send(session_id, body, self.now, bound)

    def many(self, count: int) -> None:
        self.send(*(b"%d" % number for number in range(count)))

    def receive(self, ns: int, nr: int = 0, body: bytes = b"x", session_id: int = 0) -> list[tuple[int, bytes]]:
        return self.channel.receive(session_id, ns, nr, body, self.now)

    def ack(self, nr: int) -> None:
        assert self.receive(0, nr, b"") == []

    def flush(self) -> None:
        self.channel.flush(self.now)

    def taken(self) -> list[tuple[int, int, bytes]]:
        """(Ns, Nr, body) of what was sent since the last call."""
        taken = [(ns, nr, body) for _, _, ns, nr, body in self.sent]
        self.sent.clear()
        return taken

    def numbers(self) -> list[int]:
        return [ns for ns, _, _ in self.taken()]


# Numbers, acknowledgements, order.


def test_lock_step() -> None:
    """Appendix B.1, both sides."""
    lac, lns = Rig(), Rig()
    lac.send(b"SCCRQ")
    assert lac.taken() == [(0, 0, b"SCCRQ")]
    assert lns.receive(0, 0, b"SCCRQ") == [(0, b"SCCRQ")]
    lns.send(b"SCCRP")
    lns.flush()
    assert lns.taken() == [(0, 1, b"SCCRP")]
    assert lac.receive(0, 1, b"SCCRP") == [(0, b"SCCRP")]
    assert lac.channel.idle
    lac.send(b"SCCCN")
    lac.flush()
    assert lac.taken() == [(1, 1, b"SCCCN")]
    assert lns.receive(1, 1, b"SCCCN") == [(0, b"SCCCN")]
    lns.flush()
    lns.flush()
    assert lns.taken() == [(1, 2, b"")]
    lac.ack(2)
    lac.flush()
    assert lac.taken() == []
    for rig in (lac, lns):
        assert rig.channel.idle
        assert not rig.channel.ack_due
        assert len(rig.wheel) == 0
        rig.run(60)
        assert rig.sent == []
        assert rig.dead == []


def test_lost_reply() -> None:
    """Appendix B.2, the LNS: ICRP is lost, ICRQ comes again."""
    lns = Rig(front=1, expected=2)
    assert lns.receive(2, 1, b"ICRQ", session_id=0) == [(0, b"ICRQ")]
    lns.send(b"ICRP", session_id=77)
    assert lns.sent == [(0.0, 77, 1, 3, b"ICRP")]
    lns.taken()
    assert lns.receive(2, 1, b"ICRQ") == []
    lns.flush()
    assert lns.taken() == [(2, 3, b"")]
    lns.run(1.25)
    assert lns.taken() == [(1, 3, b"ICRP")]
    assert lns.receive(3, 2, b"ICCN", session_id=5) == [(5, b"ICCN")]
    lns.flush()
    assert lns.taken() == [(2, 4, b"")]
    assert lns.channel.retransmissions == 1


def test_a_zlb_takes_no_number_and_is_not_acknowledged() -> None:
    rig = Rig()
    for ns in (0, 1, 5, 40000):
        assert rig.receive(ns, 0, b"") == []
    assert rig.channel.next_nr == 0
    assert not rig.channel.ack_due
    rig.receive(0)
    rig.flush()
    rig.send(b"a")
    assert rig.taken() == [(0, 1, b""), (0, 1, b"a")]


@pytest.mark.parametrize("late", [0, 1, 15, 32784, 40000, 65535])
def test_duplicates_are_acknowledged_again(late: int) -> None:
    """The example of section 5.8: 15 was received last."""
    rig = Rig(expected=16)
    assert rig.receive(late) == []
    assert rig.channel._held is None
    assert rig.channel.ack_due
    rig.flush()
    assert rig.taken() == [(0, 16, b"")]


@pytest.mark.parametrize("far", [16 + RECEIVE_WINDOW, 5000, 32783])
def test_beyond_our_window_is_dropped(far: int) -> None:
    rig = Rig(expected=16)
    rig.send(b"a")
    assert rig.receive(far, nr=1) == []
    assert not rig.channel.ack_due
    assert rig.channel._held is None
    assert rig.channel.next_nr == 16
    # Its Nr counts all the same.
    assert rig.channel.idle


def test_the_last_place_of_our_window_is_kept() -> None:
    rig = Rig(expected=16)
    assert rig.receive(16 + RECEIVE_WINDOW - 1, body=b"last") == []
    for ns in range(16, 16 + RECEIVE_WINDOW - 2):
        assert len(rig.receive(ns)) == 1
    assert rig.receive(16 + RECEIVE_WINDOW - 2, body=b"gap") == [(0, b"gap"), (0, b"last")]
    assert rig.channel.next_nr == 16 + RECEIVE_WINDOW


def test_out_of_order_is_handed_over_in_order() -> None:
    rig = Rig()
    assert rig.receive(3, body=b"3", session_id=30) == []
    assert rig.channel.ack_due
    rig.flush()
    assert rig.taken() == [(0, 0, b"")]
    assert rig.receive(1, body=b"1", session_id=10) == []
    # The first to come stays.
    assert rig.receive(1, body=b"other", session_id=11) == []
    assert rig.receive(0, body=b"0") == [(0, b"0"), (10, b"1")]
    assert rig.channel.next_nr == 2
    assert rig.receive(2, body=b"2") == [(0, b"2"), (30, b"3")]
    assert rig.channel.next_nr == 4
    assert rig.channel._held is None
    rig.flush()
    assert rig.taken() == [(0, 4, b"")]


def test_a_large_message_out_of_order_waits_for_its_retransmission() -> None:
    rig = Rig()
    large = bytes(module._LARGEST_HELD + 1)
    assert rig.receive(1, body=large) == []
    assert rig.channel._held is None
    assert len(rig.receive(0)) == 1
    assert rig.receive(1, body=large) == [(0, large)]


def test_numbers_wrap() -> None:
    rig = Rig(front=65534, expected=65534)
    assert rig.receive(0, 65534, b"c") == []
    assert rig.receive(65535, 65534, b"b") == []
    assert rig.receive(65534, 65534, b"a") == [(0, b"a"), (0, b"b"), (0, b"c")]
    assert rig.channel.next_nr == 1
    for expected, nr in ((65534, 65535), (65535, 0), (0, 1)):
        rig.send(b"m")
        assert rig.taken() == [(expected, 1, b"m")]
        assert rig.channel.next_ns == nr
        rig.ack(nr)
        assert rig.channel.idle
    assert rig.receive(65535, 1) == []
    assert rig.channel.ack_due
    # One by one, and many under way.
    rig = opened(front=65532)
    assert rig.numbers() == [65532, 65533, 65534, 65535, 0, 1, 2, 3]
    rig.channel.next_nr = 65535
    rig.receive(65535, nr=0)
    assert rig.channel.next_nr == 0
    assert rig.taken() == [(4, 0, b"8"), (5, 0, b"9")]


def test_a_message_carries_the_acknowledgement() -> None:
    rig = Rig()
    rig.receive(0)
    rig.receive(1)
    rig.send(b"a")
    rig.flush()
    assert rig.taken() == [(0, 2, b"a")]
    # A queued message that the Nr of what came lets go does, too.
    rig.send(b"b")
    rig.receive(2, nr=1)
    rig.flush()
    assert rig.taken() == [(1, 3, b"b")]


def test_a_message_that_may_not_leave_yet_carries_nothing() -> None:
    rig = Rig()
    rig.send(b"a", b"b")
    rig.receive(0)
    rig.flush()
    assert rig.taken() == [(0, 0, b"a"), (1, 1, b"")]


# Acknowledgements of ours, and the windows.


def opened(window: int = 16, front: int = 0) -> Rig:
    """A rig whose congestion window is 8 and that has sent the numbers front + 7 and on, eight of them, of ten."""
    rig = Rig(window=window, front=(front - 7) & 0xFFFF)
    for number in range(7):
        rig.send(b"m")
        rig.ack((front - 6 + number) & 0xFFFF)
    assert rig.channel.cwnd == min(8, window)
    rig.taken()
    rig.many(10)
    return rig


def test_part_of_the_window() -> None:
    rig = opened()
    assert rig.numbers() == list(range(8))
    assert rig.channel.queued == 10
    rig.ack(3)
    assert rig.channel.queued == 7
    assert rig.numbers() == [8, 9]
    rig.ack(10)
    assert rig.channel.idle
    assert len(rig.wheel) == 0


@pytest.mark.parametrize("front", [0, 65530, 30000])
@pytest.mark.parametrize("offset", [0, -1, -100, -30000, 9, 10, 11, 5000, 32768])
def test_an_nr_that_is_not_of_ours_is_ignored(front: int, offset: int) -> None:
    """Eight were sent and two wait: only 1 to 8 from the front on mean something."""
    rig = opened(front=front)
    rig.taken()
    rig.ack((front + offset) & 0xFFFF)
    assert rig.channel.queued == 10
    assert rig.sent == []
    rig.ack((front + 8) & 0xFFFF)
    assert rig.channel.queued == 2


def test_an_nr_counts_though_the_message_is_a_duplicate() -> None:
    rig = Rig(expected=5)
    rig.send(b"a")
    assert rig.receive(4, nr=1) == []
    assert rig.channel.idle


@pytest.mark.parametrize("window", [0, 1])
def test_the_smallest_window(window: int) -> None:
    rig = Rig(window=window)
    rig.many(3)
    for number in range(3):
        assert rig.numbers() == [number]
        assert rig.channel.cwnd == 1
        rig.ack(number + 1)
    assert rig.channel.idle


def test_four_until_the_window_is_known_and_never_a_burst_of_thousands() -> None:
    rig = Rig()
    assert Channel(rig, rig.wheel).window == 4
    rig = Rig(window=65535)
    rig.many(1000)
    acked = 0
    while not rig.channel.idle:
        sent = len(rig.sent)
        assert sent - acked <= module._WIDEST
        rig.ack(acked + 1)
        acked += 1
    assert rig.channel.cwnd == module._WIDEST


def test_a_window_that_shrinks_holds_new_messages_back() -> None:
    rig = opened()
    rig.taken()
    rig.channel.window = 2
    rig.ack(5)
    assert rig.sent == []
    rig.ack(7)
    assert rig.numbers() == [8]


def test_slow_start() -> None:
    """One at first, and one more for each acknowledgement, up to the peer's window."""
    rig = Rig(window=6)
    rig.many(40)
    assert rig.numbers() == [0]
    seen = []
    for number in range(8):
        rig.ack(number + 1)
        seen.append(rig.channel.cwnd)
    assert seen == [2, 3, 4, 5, 6, 6, 6, 6]
    # Two for each acknowledgement while the window grows, then one.
    assert rig.numbers() == list(range(1, 14))


def test_the_congestion_window_stops_at_the_peers() -> None:
    """It does not grow in secret while the peer's holds it back."""
    rig = Rig(window=2)
    rig.many(20)
    for number in range(10):
        rig.ack(number + 1)
    rig.channel.window = 16
    assert rig.channel.cwnd == 2


def test_one_acknowledgement_of_many_counts_once() -> None:
    rig = opened()
    rig.ack(8)
    assert rig.channel.cwnd == 9


def test_congestion_avoidance() -> None:
    rig = opened()
    rig.run(1.25)
    # Half is remembered, and one is sent again.
    assert rig.channel.cwnd == 1
    assert rig.channel.retransmissions == 1
    seen = []
    for number in range(4 + 5 + 6):
        rig.send(b"more")
        rig.ack(number + 1)
        seen.append(rig.channel.cwnd)
    assert seen == [2, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6]
    # Half of six, and what was counted towards seven is forgotten.
    rig.run(0.625)
    assert rig.channel.cwnd == 1
    seen = []
    for number in range(15, 15 + 6):
        rig.ack(number + 1)
        seen.append(rig.channel.cwnd)
    assert seen == [2, 3, 3, 3, 4, 4]


def test_half_of_a_window_of_one_is_one() -> None:
    rig = Rig()
    rig.many(9)
    rig.run(4)
    seen = []
    for number in range(6):
        rig.ack(number + 1)
        seen.append(rig.channel.cwnd)
    assert seen == [2, 2, 3, 3, 3, 4]


# Retransmission.


def test_backoff_and_bound() -> None:
    """After 1, 2, 4, 8 and 8 seconds, each to within a tick; 31 seconds after the first the peer is given up."""
    rig = Rig()
    rig.send(b"a", session_id=9)
    rig.receive(0)
    rig.receive(1)
    rig.run(60)
    times = [time for time, *_ in rig.sent]
    for time, wanted, late in zip(times, (0, 1, 3, 7, 15, 23), range(6), strict=True):
        assert wanted <= time <= wanted + late * TICK
    # The same Ns, the session's id, and the Nr of now.
    assert [row[1:] for row in rig.sent] == [(9, 0, 0, b"a")] + [(9, 0, 2, b"a")] * 5
    assert len(rig.dead) == 1
    assert BOUND <= rig.dead[0] <= BOUND + TICK
    assert rig.channel.retransmissions == 5
    assert rig.channel.idle
    assert len(rig.wheel) == 0


@pytest.mark.parametrize("bound", [0.25, 2.0, 10.0])
def test_a_bound_of_its_own(bound: float) -> None:
    rig = Rig()
    rig.send(b"a", bound=bound)
    rig.run(60)
    assert len(rig.dead) == 1
    assert bound <= rig.dead[0] <= bound + TICK


@pytest.mark.parametrize("bounds", [(31, 5), (31, 0.25), (5, 31), (31, 20, 5, 25)])
def test_the_earliest_bound_counts(bounds: tuple[float, ...]) -> None:
    rig = opened()
    rig.ack(8)
    rig.ack(10)
    start = rig.now - START
    for bound in bounds:
        rig.send(b"m", bound=bound)
    rig.run(60)
    assert len(rig.dead) == 1
    assert min(bounds) <= rig.dead[0] - start <= min(bounds) + TICK


def test_the_bound_is_counted_from_the_first_transmission() -> None:
    rig = Rig(window=1)
    rig.send(b"a", b"b")
    rig.run(20)
    rig.ack(1)
    rig.run(30.5)
    assert rig.dead == []
    rig.run(1)
    assert len(rig.dead) == 1
    assert 51 <= rig.dead[0] <= 51 + 2 * TICK


def test_after_a_timeout_only_as_much_as_the_window_allows_is_sent_again() -> None:
    rig = opened()
    rig.taken()
    rig.run(1.25)
    assert rig.numbers() == [0]
    rig.ack(1)
    assert rig.numbers() == [1, 2]
    # The peer had kept the others.
    rig.ack(8)
    assert rig.numbers() == [8, 9]
    assert rig.channel.retransmissions == 3


def test_progress_starts_the_timer_again() -> None:
    rig = opened()
    rig.taken()
    for number in range(8):
        rig.run(0.375)
        rig.ack(number + 1)
    assert rig.numbers() == [8, 9]
    assert rig.channel.retransmissions == 0


def test_the_timeout_follows_the_path() -> None:
    """RFC 6298: 1 second, then the smoothed round trip and four times its variance, half a second at the least."""
    rig = Rig()
    assert rig.channel.rto == 1.0
    rig.send(b"a")
    rig.run(0.75)
    rig.ack(1)
    assert rig.channel.rto == 0.75 + 4 * 0.375
    rig.send(b"b")
    rig.run(0.25)
    rig.ack(2)
    # rttvar 3/4 * 0.375 + 1/4 * 0.5, srtt 7/8 * 0.75 + 1/8 * 0.25
    assert rig.channel.rto == pytest.approx(0.6875 + 4 * 0.40625)
    for number in range(2, 40):
        rig.send(b"c")
        rig.ack(number + 1)
    assert rig.channel.rto == 0.5


def test_the_timeout_has_a_cap() -> None:
    rig = Rig()
    rig.channel._sample(20.0)
    assert rig.channel.rto == 8.0
    rig.send(b"a")
    rig.run(60)
    assert [round(time) for time, *_ in rig.sent] == [0, 8, 16, 24]


def test_karn() -> None:
    """What was sent twice is no sample, and the backed-off timeout stays until there is one."""
    rig = Rig()
    rig.send(b"a")
    rig.run(1.75)
    assert rig.numbers() == [0, 0]
    assert rig.channel.rto == 2.0
    rig.ack(1)
    assert rig.channel._srtt == -1
    assert rig.channel.rto == 2.0
    rig.send(b"b")
    rig.run(1.75)
    assert rig.numbers() == [1]
    rig.ack(2)
    assert rig.channel._srtt == 1.75
    assert rig.channel.rto == 1.75 + 4 * 0.875


def test_a_message_behind_one_that_was_sent_again_is_no_sample() -> None:
    rig = opened()
    before = rig.channel._srtt
    rig.run(1.25)
    rig.ack(8)
    assert rig.channel._srtt == before


def test_not_more_than_two_seconds_of_backoff_outlive_the_message() -> None:
    """So that the next one has its five retransmissions, too."""
    rig = Rig()
    rig.send(b"a", b"b")
    rig.run(20)
    assert rig.channel.rto == 8.0
    rig.ack(1)
    assert rig.channel.rto == 2.0
    rig.taken()
    rig.run(60)
    assert rig.numbers() == [1] * 5
    assert len(rig.dead) == 1


def test_the_front_is_sent_once_more_on_demand() -> None:
    rig = Rig()
    rig.channel.resend(rig.now)
    assert rig.sent == []
    rig.send(b"a", b"b", session_id=3)
    rig.receive(0)
    rig.run(0.5)
    rig.channel.resend(rig.now)
    rig.flush()
    assert rig.sent == [(0.0, 3, 0, 0, b"a"), (0.5, 3, 0, 1, b"a")]
    assert rig.channel.retransmissions == 1
    # Neither the timer nor the windows have changed, and Karn's rule holds.
    rig.run(0.625)
    assert [row[0] for row in rig.sent] == [0.0, 0.5, 1.125]
    rig = Rig()
    rig.send(b"a")
    rig.channel.resend(rig.now)
    rig.ack(1)
    assert rig.channel._srtt == -1


def test_the_next_message_of_one_who_knows_the_numbers() -> None:
    rig = opened(front=65532)
    rig.channel.next_nr = 65535
    for nr, valid in ((65531, False), (65532, True), (65535, True), (0, True), (4, True), (5, False), (32768, False)):
        assert rig.channel.is_next(65535, nr, b"m") == valid
        assert not rig.channel.is_next(65535, nr, b"")
        assert not rig.channel.is_next(65534, nr, b"m")
        assert not rig.channel.is_next(0, nr, b"m")


# The end, and memory.


def test_closed() -> None:
    rig = Rig()
    rig.send(b"a", b"b")
    rig.receive(1)
    rig.channel.close()
    rig.channel.close()
    rig.taken()
    rig.send(b"c")
    assert rig.receive(0, nr=1) == []
    rig.flush()
    rig.run(60)
    assert rig.sent == []
    assert rig.dead == []
    assert rig.channel.queued == 0
    assert len(rig.wheel) == 0


def test_a_peer_that_asks_and_never_acknowledges(monkeypatch: pytest.MonkeyPatch) -> None:
    assert QUEUE_LIMIT >= 65535  # an answer, or an end, for each session that there can be
    monkeypatch.setattr(module, "QUEUE_LIMIT", 100)
    rig = Rig()
    rig.many(100)
    assert not rig.channel.closed
    rig.send(b"one more")
    assert rig.dead == []
    # An acknowledgement is too late: the message is lost.
    rig.ack(1)
    rig.send(b"another")
    rig.run(0.25)
    assert rig.dead == [TICK]
    assert rig.numbers() == [0]
    assert len(rig.wheel) == 0


def test_a_channel_at_rest_is_one_small_object() -> None:
    rig = Rig()
    count = 1000
    channels: list[Channel | None] = [None] * count
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for index in range(count):
            channel = channels[index] = Channel(rig, rig.wheel)
            # Busy for a while, with samples, and at rest again.
            for number in range(3):
                channel.send(0, b"m", START + number)
                channel.send(0, b"n", START + number)
                channel.receive(0, 2 * number + 1, 2 * number + 1, b"y", START + number)
                channel.receive(0, 2 * number, 2 * number + 2, b"x", START + number + 0.375)
            channel.flush(START)
        rig.sent.clear()
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert all(channel is not None and channel.idle for channel in channels)
    assert not hasattr(channels[0], "__dict__")
    held = gc.get_referents(channels[0])
    assert {type(item) for item in held if item is not Channel} <= {Rig, Wheel, int, float, bool, type(None)}
    # The object, and two floats of 24 octets.
    print(f"{each:.0f} octets a channel")
    assert each < 300


# Whatever the peer says.

numbers = st.one_of(st.integers(0, 65535), st.integers(0, 40), st.integers(65500, 65535))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), numbers, numbers, st.booleans()),
        st.tuples(st.just("send"), st.just(0), st.just(0), st.just(False)),
        st.tuples(st.just("wait"), st.integers(1, 24), st.just(0), st.just(False)),
        st.tuples(st.just("window"), st.integers(0, 65535), st.just(0), st.just(False)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(front=st.sampled_from([0, 65530]), expected=st.sampled_from([0, 65530]), script=steps)
def test_hostile_numbers(front: int, expected: int, script: list[tuple[str, int, int, bool]]) -> None:
    rig = Rig(front=front, expected=expected)
    channel = rig.channel
    # What was sent and acknowledged, without wrap, and what has to be handed over next.
    sends = acked = 0
    order = expected
    for what, first, second, full in script:
        out = 1 + max(((row[2] - front) & 0xFFFF for row in rig.sent if row[4]), default=-1)
        if channel.closed:
            break
        if what == "send":
            sends += 1
            rig.send(b"m")
        elif what == "wait":
            rig.run(first * TICK)
        elif what == "window":
            channel.window = first
        else:
            count = (second - front) & 0xFFFF
            if acked < count <= out:
                acked = count
            ahead = (first - order) & 0xFFFF
            ready = rig.receive(first, second, b"%d" % first if full else b"")
            assert bool(ready) == (full and ahead == 0)
            for _, body in ready:
                assert int(body) == order
                order = (order + 1) & 0xFFFF
            if full and ahead >= 0x8000 and channel.ack_due:
                rig.flush()
                assert rig.sent[-1][2:] == (channel.next_ns, order, b"")
        assert channel.next_nr == order
        assert len(channel._held or ()) < RECEIVE_WINDOW
        assert channel.closed or channel.queued == sends - acked
    rig.run(200)
    assert channel.idle
    assert len(rig.wheel) == 0
