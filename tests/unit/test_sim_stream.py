"""Data through sessions at a rate: what is sent, how replies are judged, and how it adds up."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any, cast

import pytest

from npppy.sim.stream import BURST, GRACE, LATE, MIN_SIZE, WINDOW, Data, Pacer, Stream
from npppy.sim.subscriber import Subscriber
from npppy.sim.tally import FEW, Tally

from .sim_world import TARGET, echo_reply

TOTALS = ("sent", "received", "lost", "cut", "wrong", "corrupt", "repeated", "reordered", "stale", "other")


class Peer:
    """As much of a subscriber as data needs."""

    def __init__(self, number: int, send: Callable[[Peer, bytes], None]) -> None:
        self.number = number
        self.address = 0x0A010000 + number
        self.concentrator = TARGET
        self.mru = self.peer_mru = 1492
        self.mppe: object | None = None
        self._send = send

    def send_ip(self, packet: bytes) -> None:
        self._send(self, packet)


class Net:
    """Sessions, and a host that answers after *delay* seconds what *answer* gives it; time is virtual."""

    def __init__(self, *, size: int = 64, rate: float = 100.0, delay: float = 0.01, **data: Any) -> None:
        self.now = 1000.0
        self.delay = delay
        self.tally = Tally()
        self.pacer = Pacer(Data(size=size, rate=rate, **data), self.tally, lambda: self.now)
        self.peers: dict[int, Peer] = {}
        self.streams: dict[int, Stream] = {}
        #: All that was sent: the time, who did, and what.
        self.sent: list[tuple[float, int, bytes]] = []
        self.flying: list[tuple[float, int, bytes]] = []
        #: From a packet to what comes back, to whom.
        self.answer: Callable[[int, bytes], list[tuple[int, bytes]]] = lambda number, packet: [
            (number, echo_reply(packet))
        ]

    def stream(self, number: int) -> Stream:
        peer = self.peers[number] = Peer(number, self._take)
        self.streams[number] = self.pacer.stream(cast(Subscriber, peer))
        return self.streams[number]

    def up(self, *numbers: int) -> None:
        for number in numbers:
            self.stream(number).start(self.now)

    def _take(self, peer: Peer, packet: bytes) -> None:
        self.sent.append((self.now, peer.number, packet))
        for number, reply in self.answer(peer.number, packet):
            self.flying.append((self.now + self.delay, number, reply))

    def come(self, number: int, packet: bytes) -> None:
        self.streams[number].input(packet, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = self.pacer.poll(self.now)
            times = [when for when in (due, *(when for when, *_ in self.flying[:1])) if when is not None]
            if not times or min(times) > end:
                self.now = end
                return
            self.now = max(self.now, min(times))
            while self.flying and self.flying[0][0] <= self.now:
                _, number, packet = self.flying.pop(0)
                # A session that is not up has no data path.
                if self.streams[number].place >= 0:
                    self.come(number, packet)

    def finish(self) -> None:
        self.pacer.stop(self.now)
        self.run(2 * GRACE)
        assert self.pacer.done
        assert not self.tally.outstanding

    def counts(self) -> dict[str, int]:
        """Those that are not 0."""
        return {name: count for name in TOTALS if (count := getattr(self.tally, name))}


def sums(data: bytes) -> int:
    """The ones' complement sum, as RFC 1071 has it."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def resum(packet: bytes) -> bytes:
    """*packet* with right checksums."""
    head = packet[:10] + b"\0\0" + packet[12:20]
    body = packet[20:22] + b"\0\0" + packet[24:]
    head = head[:10] + (0xFFFF - sums(head)).to_bytes(2, "big") + head[12:]
    return head + body[:2] + (0xFFFF - sums(body)).to_bytes(2, "big") + body[4:]


# What is sent.


@pytest.mark.parametrize("size", [MIN_SIZE, MIN_SIZE + 1, 64, 101, 1400, 1492])
@pytest.mark.parametrize("number", [1, 65535, 65536, 1 << 24])
def test_requests_are_echo_requests(size: int, number: int) -> None:
    net = Net(size=size)
    net.up(number)
    net.run(3)
    assert len(net.sent) > 299
    for sequence, (_, _, packet) in enumerate(net.sent):
        assert len(packet) == size == int.from_bytes(packet[2:4], "big")
        assert packet[:2] == b"\x45\0"
        assert packet[8:10] == b"\x40\x01"
        assert packet[12:20] == (0x0A010000 + number).to_bytes(4, "big") + TARGET.to_bytes(4, "big")
        assert packet[20:22] == b"\x08\0"
        assert packet[24:28] == (number & 0xFFFF).to_bytes(2, "big") + sequence.to_bytes(2, "big")
        assert sums(packet[:20]) == sums(packet[20:]) == 0xFFFF
    net.finish()
    assert net.tally.received == len(net.sent)
    assert net.tally.octets_sent == net.tally.octets_received == len(net.sent) * size


def test_fillings_differ() -> None:
    net = Net(size=200, rate=1000)
    net.up(*range(1, 11))
    net.run(1)
    assert len({packet[MIN_SIZE:] for _, _, packet in net.sent}) > 0.9 * len(net.sent)


def test_a_target_elsewhere() -> None:
    net = Net(target=IPv4Address("198.51.100.9"))
    net.up(1)
    net.run(1)
    assert {packet[16:20] for _, _, packet in net.sent} == {bytes((198, 51, 100, 9))}
    net.finish()
    assert net.tally.good


@pytest.mark.parametrize("rate", [0.5, 3.0, 100.0, 999.0, 1000.0, 33333.0])
def test_the_rate_is_that_of_all_together(rate: float) -> None:
    net = Net(rate=rate)
    net.up(*range(1, 8))
    seconds = 12 if rate < 10 else 3
    net.run(seconds)
    assert len(net.sent) == pytest.approx(rate * seconds, abs=2 + rate * 0.002)
    assert not net.tally.behind
    # In turn.
    shares = Counter(number for _, number, _ in net.sent)
    assert max(shares.values()) - min(shares.get(number, 0) for number in range(1, 8)) <= 1
    assert net.tally.rate == pytest.approx(rate, rel=0.01)


def test_it_is_those_that_are_up_who_send() -> None:
    net = Net(rate=1000)
    net.up(*range(1, 11))
    net.run(1)
    for number in (1, 10, 4):
        net.streams[number].close()
    net.sent.clear()
    net.run(0.7)
    shares = Counter(number for _, number, _ in net.sent)
    assert shares.keys() == {2, 3, 5, 6, 7, 8, 9}
    assert max(shares.values()) - min(shares.values()) <= 1
    net.streams[4].start(net.now)
    net.sent.clear()
    net.run(0.8)
    assert Counter(number for _, number, _ in net.sent)[4] == 100


def test_nobody_up_owes_nothing() -> None:
    net = Net(rate=1000)
    net.run(60)
    net.up(1)
    net.run(1)
    assert len(net.sent) == pytest.approx(1000, abs=2)
    net.streams[1].close()
    net.run(60)
    net.streams[1].start(net.now)
    net.run(1)
    assert len(net.sent) == pytest.approx(2000, abs=4)
    assert not net.tally.behind


def test_who_is_late_sends_in_short_goes_and_says_what_was_left_out() -> None:
    rate = 10000.0
    net = Net(rate=rate)
    net.up(1, 2)
    net.run(1)
    sent = len(net.sent)
    # Nothing was done for three seconds.
    net.now += 3
    due = net.pacer.poll(net.now)
    assert len(net.sent) - sent == BURST
    assert due == net.now
    goes = 1
    while net.pacer.poll(net.now) == net.now:
        goes += 1
    late = len(net.sent) - sent
    assert late == pytest.approx(rate * LATE, abs=2)
    assert goes == pytest.approx(rate * LATE / BURST, abs=2)
    assert late + net.tally.behind == pytest.approx(3 * rate, abs=3)


def test_sending_may_end_the_session() -> None:
    net = Net(rate=1000)
    net.up(1, 2, 3)
    net.answer = lambda number, packet: net.streams[number].close() and []
    net.run(1)
    assert len(net.sent) == 3
    assert net.tally.cut == 3


# What comes back.


def test_all_that_comes_back_as_it_was_sent_is_good() -> None:
    net = Net(delay=0.025)
    net.up(*range(1, 4))
    net.run(10)
    net.finish()
    assert net.counts() == {"sent": len(net.sent), "received": len(net.sent)}
    assert (net.tally.sessions, net.tally.silent, net.tally.unserved) == (3, 0, 0)
    assert net.tally.good
    assert set(net.tally.as_dict()["latency_ms"]) == {"p50", "p90", "p99", "p99.9", "max"}
    for value in net.tally.as_dict()["latency_ms"].values():
        assert value == pytest.approx(25, rel=0.02)


def test_routers_may_lower_the_lifetime_and_mark_the_packet() -> None:
    net = Net()
    net.up(1)

    def carry(number: int, packet: bytes) -> list[tuple[int, bytes]]:
        reply = echo_reply(packet)
        return [(number, resum(b"\x45\xb8" + reply[2:8] + b"\x3d" + reply[9:]))]

    net.answer = carry
    net.run(1)
    net.finish()
    assert net.tally.good


def test_what_does_not_come_back_is_lost() -> None:
    net = Net()
    net.up(1, 2)
    net.answer = lambda number, packet: [(number, echo_reply(packet))] if number == 1 else []
    net.run(10)
    net.pacer.stop(net.now)
    net.run(GRACE - 0.01)
    assert not net.pacer.done
    net.finish()
    assert net.tally.lost == sum(number == 2 for _, number, _ in net.sent)
    assert net.tally.received == sum(number == 1 for _, number, _ in net.sent)
    assert net.tally.silent == 1
    assert not net.tally.good


def test_the_end_comes_as_soon_as_all_is_back() -> None:
    net = Net(delay=0.2)
    net.up(1)
    net.run(1)
    began = net.now
    net.pacer.stop(began)
    assert net.pacer.poll(began) == began + GRACE
    net.run(0.25)
    assert net.pacer.done
    # Too late for another one to begin.
    sent = len(net.sent)
    net.up(2)
    net.run(1)
    assert len(net.sent) == sent
    assert net.tally.sessions == 1


def test_what_comes_back_within_the_grace_is_not_lost() -> None:
    net = Net(delay=GRACE * 0.9)
    net.up(1)
    net.run(2)
    net.finish()
    assert net.tally.good


def test_what_comes_back_after_it_is_lost_once() -> None:
    net = Net(delay=GRACE * 1.5)
    net.up(1)
    net.run(3)
    net.finish()
    found = net.tally
    assert found.received + found.lost == found.sent
    assert found.stale == pytest.approx(50, abs=1)
    assert not found.outstanding


def test_nor_does_it_come_to_who_negotiates_anew_meanwhile() -> None:
    net = Net(delay=GRACE * 0.5)
    net.up(1)
    net.run(3)
    net.pacer.stop(net.now)
    net.streams[1].close()
    net.streams[1].start(net.now)
    net.streams[1].place = 0
    net.run(2 * GRACE)
    assert net.tally.cut == net.tally.stale == pytest.approx(50, abs=1)
    assert not net.tally.outstanding


@pytest.mark.parametrize("addressed", [True, False])
def test_what_comes_to_another_session_is_found_out(addressed: bool) -> None:
    """Whether it still says whom it is for, or has been given the address of who got it."""
    net = Net()
    net.up(7, 9)

    def swap(number: int, packet: bytes) -> list[tuple[int, bytes]]:
        other = 16 - number
        reply = echo_reply(packet)
        if not addressed:
            reply = resum(reply[:16] + (0x0A010000 + other).to_bytes(4, "big") + reply[20:])
        return [(other, reply)]

    net.answer = swap
    net.run(1)
    net.finish()
    assert net.counts() == {"sent": len(net.sent), "lost": len(net.sent), "wrong": len(net.sent)}
    assert net.tally.silent == 2
    assert len(net.tally.strays) == FEW
    assert {(stray.subscriber, stray.owner) for stray in net.tally.strays} == {(7, 9), (9, 7)}
    assert all(stray.same_run for stray in net.tally.strays)
    assert not net.tally.good
    told = [text for title, text in net.tally.as_lines() if title == "wrong"]
    assert "packet 0 of subscriber 7 came to 9" in told


def test_a_packet_of_another_run_is_wrong() -> None:
    ours, theirs = Net(run=1), Net(run=2, size=100)
    ours.up(1)
    theirs.up(1)
    theirs.answer = lambda number, packet: ours.come(1, echo_reply(packet)) or []
    theirs.run(0.005)
    assert ours.counts() == {"wrong": 1}
    assert not ours.tally.strays[0].same_run
    assert ("wrong", "packet 0 of subscriber 1 of another run came to 1") in ours.tally.as_lines()


@pytest.mark.parametrize("size", [MIN_SIZE, 64, 91])
def test_every_bit_counts(size: int) -> None:
    net = Net(size=size, rate=1)
    net.up(1)
    net.answer = lambda number, packet: []
    net.run(0.5)
    ((_, _, packet),) = net.sent
    reply = echo_reply(packet)
    for bit in range(len(reply) * 8):
        damaged = bytearray(reply)
        damaged[bit // 8] ^= 1 << bit % 8
        net.come(1, bytes(damaged))
        found = net.counts()
        assert "received" not in found, bit
        assert "wrong" not in found, bit
        assert found.get("corrupt", 0) + found.get("other", 0) == bit + 1
    # All but those that are not what they were by their first octets.
    assert net.tally.corrupt > len(reply) * 8 - 60
    net.come(1, reply)
    assert net.tally.received == 1


@pytest.mark.parametrize(
    "twist",
    [
        lambda reply: reply[:-1],
        lambda reply: reply + b"\0",
        lambda reply: reply[:40],
        lambda reply: reply[:32],
        lambda reply: reply[:28],
        lambda reply: resum(reply[:-1] + bytes((reply[-1] ^ 1,))),
        # The packet's number, in one of its places and in both.
        lambda reply: resum(reply[:47] + bytes((reply[47] ^ 1,)) + reply[48:]),
        lambda reply: resum(reply[:27] + bytes((reply[27] ^ 1,)) + reply[28:47] + bytes((reply[47] ^ 1,)) + reply[48:]),
        lambda reply: resum(b"\x46" + reply[1:]),
        lambda reply: resum(reply[:2] + b"\0\x3c" + reply[4:]),
        lambda reply: resum(reply[:9] + b"\x11" + reply[10:]),
        lambda reply: resum(reply[:24] + b"\x12\x34" + reply[26:]),
        lambda reply: resum(reply[:26] + b"\x12\x34" + reply[28:]),
        lambda reply: resum(reply[:12] + b"\1\2\3\4" + reply[16:]),
        lambda reply: resum(reply[:28] + b"mine" + reply[32:]),
    ],
)
def test_right_checksums_are_not_all(twist: Callable[[bytes], bytes]) -> None:
    net = Net()
    net.up(1)
    net.answer = lambda number, packet: [(number, twist(echo_reply(packet)))]
    net.run(1)
    net.finish()
    assert net.counts() == {"sent": len(net.sent), "lost": len(net.sent), "corrupt": len(net.sent)}


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        bytes(64),
        b"\x60" + bytes(63),
        b"\x4f" + bytes(63),
        resum(b"\x45\0\0\x40\0\0\0\0\x40\x01\0\0" + bytes(8) + b"\x03\x01" + bytes(42)),
        resum(b"\x45\0\0\x40\0\0\0\0\x40\x11\0\0" + bytes(52)),
        resum(b"\x45\0\0\x40\0\0\x20\0\x40\x01\0\0" + bytes(52)),
    ],
)
def test_others_are_no_replies(packet: bytes) -> None:
    net = Net()
    net.up(1)
    net.come(1, packet)
    assert net.counts() == {"other": 1}


@pytest.mark.parametrize("size", [64, 100])
def test_random_packets_do_no_harm(size: int) -> None:
    net = Net(rate=1)
    net.up(1)
    chance = random.Random(3)
    whole = resum(b"\x45\0\0\x40\0\0\0\0\x40\x01\0\0" + bytes(52))
    for _ in range(3000):
        kept = chance.randrange(size)
        net.come(1, whole[:kept] + chance.randbytes(size - kept))
    assert net.tally.other + net.tally.corrupt == 3000


def test_what_was_never_sent_is_corrupt() -> None:
    ours, theirs = Net(), Net()
    ours.up(1)
    theirs.up(1)
    theirs.answer = lambda number, packet: ours.come(1, echo_reply(packet)) or []
    theirs.run(0.5)
    assert ours.counts() == {"corrupt": len(theirs.sent)}


@pytest.mark.parametrize("seed", range(30))
def test_repeated_lost_and_reordered_by_any_network(seed: int) -> None:
    """Against a model that remembers every packet."""
    chance = random.Random(seed)
    loss, double, late = (chance.choice((0, 0.02, 0.5)) for _ in range(3))
    spread = chance.choice((3, 100, WINDOW - 1))
    net = Net(rate=1000)
    net.up(1)
    replies: list[tuple[float, bytes]] = []

    def keep(number: int, packet: bytes) -> list[tuple[int, bytes]]:
        place = len(net.sent)
        if chance.random() >= loss:
            for _ in range(2 if chance.random() < double else 1):
                replies.append((place + (chance.uniform(0, spread) if chance.random() < late else 0), packet))
        return []

    net.answer = keep
    net.run(8)
    replies.sort(key=lambda reply: reply[0])
    seen: set[int] = set()
    repeated = reordered = 0
    highest = -1
    numbers = {packet: number for number, (_, _, packet) in enumerate(net.sent)}
    for _, packet in replies:
        number = numbers[packet]
        if number in seen:
            repeated += 1
        else:
            reordered += number < highest
        seen.add(number)
        highest = max(highest, number)
        net.come(1, echo_reply(packet))
    net.finish()
    assert net.tally.received == len(seen)
    assert net.tally.repeated == repeated
    assert net.tally.reordered == reordered
    assert net.tally.lost == len(net.sent) - len(seen)


def test_beyond_the_window_nothing_is_known() -> None:
    net = Net(rate=1000)
    net.up(1)
    net.answer = lambda number, packet: []
    net.run(10)
    replies = [echo_reply(packet) for _, _, packet in net.sent]
    net.come(1, replies[0])
    net.come(1, replies[WINDOW + 5])
    for place in (6, 5):
        net.come(1, replies[place])
    assert (net.tally.received, net.tally.reordered, net.tally.repeated) == (3, 1, 1)
    net.come(1, replies[-1])
    assert net.tally.received == 4


# Sessions that end.


def test_what_is_on_its_way_when_a_session_ends_is_cut_off() -> None:
    net = Net(delay=0.5, rate=10)
    net.up(1, 2)
    net.run(5.01)
    net.streams[1].close()
    on_their_way = sum(number == 1 and when > net.now - 0.5 for when, number, _ in net.sent)
    assert net.tally.cut == on_their_way > 1
    assert not net.tally.lost
    net.streams[1].finish()
    net.run(1)
    net.finish()
    assert net.tally.cut + net.tally.received == net.tally.sent
    assert net.tally.good


def test_what_was_sent_long_before_it_ends_is_lost() -> None:
    """A session that carries nothing any more, as its end shows only later."""
    net = Net(rate=10)
    net.up(1)
    net.run(5)
    net.answer = lambda number, packet: []
    net.run(20)
    net.streams[1].close()
    assert 10 <= net.tally.cut <= 20
    assert net.tally.lost == pytest.approx(200 - net.tally.cut, abs=1)


@pytest.mark.parametrize(("after", "cut"), [(0.1, 1), (0.9, 1), (2.1, 0), (9.9, 0)])
def test_one_packet_now_and_then(after: float, cut: int) -> None:
    net = Net(rate=0.1)
    net.up(1)
    net.run(11)
    net.now += 8
    net.answer = lambda number, packet: []
    net.run(1 + after)
    assert len(net.sent) == 3
    net.streams[1].close()
    assert net.counts() == {"sent": 3, "received": 2} | ({"cut": 1} if cut else {"lost": 1})
    assert not net.tally.silent


def test_of_two_packets_far_apart_the_latest_is_cut_off() -> None:
    net = Net(rate=0.1)
    net.up(1)
    net.answer = lambda number, packet: []
    net.run(10.5)
    assert len(net.sent) == 2
    net.streams[1].close()
    assert net.counts() == {"sent": 2, "cut": 1, "lost": 1}
    assert net.tally.silent == 1


def test_gaps_are_lost_however_a_session_ends() -> None:
    net = Net(rate=100)
    net.up(1)
    net.answer = lambda number, packet: [] if len(net.sent) % 5 == 1 else [(number, echo_reply(packet))]
    net.run(0.999)
    net.streams[1].close()
    assert net.tally.lost == pytest.approx(20, abs=1)
    assert net.tally.cut <= 2


def test_negotiating_anew() -> None:
    net = Net(delay=0.2, rate=100)
    net.up(1)
    net.run(3)
    before = net.tally.sent
    net.streams[1].close()
    cut = net.tally.cut
    assert cut == pytest.approx(20, abs=1)
    net.run(0.1)
    net.peers[1].address += 1000
    net.streams[1].start(net.now)
    net.run(3)
    net.finish()
    assert net.tally.cut == cut
    assert net.tally.sent == pytest.approx(before + 300, abs=2)
    # All but those of the time in between have come to the right subscriber, but are for an address that is not its own
    # any more.
    assert net.tally.wrong == pytest.approx(cut / 2, abs=1)
    assert net.tally.received == net.tally.sent - cut
    assert net.tally.sessions == 2


def test_replies_to_who_had_the_address_before() -> None:
    net = Net(delay=0.2, rate=100)
    net.up(1)
    net.run(3)
    net.streams[1].close()
    net.up(2)
    net.peers[2].address = net.peers[1].address
    net.streams[2].start(net.now)
    net.flying = [(when, 2, packet) for when, _, packet in net.flying]
    net.run(3)
    net.finish()
    assert net.tally.stale == net.tally.cut == pytest.approx(20, abs=1)
    assert not net.tally.wrong
    # While both have it, they get each other's.
    net = Net(delay=0.2, rate=100)
    net.stream(2)
    net.up(1)
    net.peers[2].address = net.peers[1].address
    net.streams[2].start(net.now)
    net.answer = lambda number, packet: [(2, echo_reply(packet))]
    net.run(3)
    assert net.tally.wrong > 100
    assert not net.tally.stale


def test_a_subscriber_that_dials_again() -> None:
    """It begins to count anew; what comes for its session of before is not its own."""
    net = Net(delay=0.2, rate=100)
    net.up(1)
    net.run(3)
    net.streams[1].close()
    net.up(1)
    net.run(3)
    net.finish()
    assert net.tally.stale == net.tally.cut == pytest.approx(20, abs=1)
    assert net.tally.received == net.tally.sent - net.tally.cut
    assert net.tally.good


def test_those_whose_turn_never_came() -> None:
    net = Net(rate=2)
    net.up(*range(1, 11))
    net.run(2.2)
    for number in (9, 10):
        net.streams[number].close()
    net.finish()
    assert (net.tally.sent, net.tally.sessions, net.tally.unserved, net.tally.silent) == (5, 10, 5, 0)
    assert net.tally.good


@pytest.mark.parametrize(
    ("fact", "value", "reason"),
    [
        ("concentrator", 0, "the concentrator has told no address"),
        ("mru", 99, "packets have 99 octets"),
        ("peer_mru", 98, "packets have 98 octets"),
        ("mppe", object(), "packets have 1488 octets"),
    ],
)
def test_sessions_that_cannot(fact: str, value: object, reason: str) -> None:
    net = Net(size=1492 if fact == "mppe" else 100)
    stream = net.stream(1)
    setattr(net.peers[1], fact, value)
    stream.start(net.now)
    net.run(5)
    net.finish()
    assert net.tally.unable == {reason: 1}
    assert not net.sent
    assert not net.tally.good
    stream.close()
    assert not net.tally.sessions


# Several processes.


def test_tallies_are_put_together() -> None:
    nets = [Net(delay=0.001 * (index + 1)) for index in range(3)]
    for index, net in enumerate(nets):
        net.up(index + 1, 50)
        if index == 2:
            net.answer = lambda number, packet: [(99 - number - 46, echo_reply(packet))]
            net.stream(99 - 3 - 46).start(net.now)
        net.run(index + 1)
        net.finish()
    whole = Tally()
    for net in nets:
        whole.merge(pickle.loads(pickle.dumps(net.tally)))
    for name in (*TOTALS, "sessions", "silent", "octets_sent", "octets_received", "behind"):
        assert getattr(whole, name) == sum(getattr(net.tally, name) for net in nets), name
    assert whole.latency.count == whole.received > 0
    assert whole.latency.longest == max(net.tally.latency.longest for net in nets)
    assert whole.first_sent == 1000.0
    assert whole.seconds == max(net.tally.seconds for net in nets)
    assert whole.good == all(net.tally.good for net in nets)
    assert len(whole.strays) <= FEW


def test_a_summary_without_anything() -> None:
    tally = Tally()
    facts = tally.as_dict()
    assert facts["sent"] == facts["rate"] == facts["seconds"] == 0
    assert facts["latency_ms"] == {}
    assert tally.as_lines()
    assert not tally.good
