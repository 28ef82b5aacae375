"""CCP: two of them always agree on the best that both can, whatever the link does; and with peers as they are."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest

from npppy.config.model import FsmLimits
from npppy.cursor import Malformed
from npppy.ppp import options, proto
from npppy.ppp.ccp import Ccp
from npppy.ppp.fsm import State
from npppy.ppp.mppe import Keys, Mode, Mppe
from npppy.wheel import Wheel

H, M, S, L, D, C = 0x01000000, 0x80, 0x40, 0x20, 0x10, 0x01
BITS = {128: S, 56: M, 40: L}
LIMITS = FsmLimits()
MASTERS = Keys(bytes(16), bytes(16))


@dataclass(frozen=True)
class Policy:
    lengths: tuple[int, ...] = (128, 56, 40)
    states: tuple[str, ...] = ("stateless", "stateful")

    def common(self, other: Policy) -> Mode | None:
        """What both should end with."""
        for bits in self.lengths:
            for state in self.states:
                if bits in other.lengths and state in other.states:
                    return Mode(bits, state == "stateful")
        return None


ALL = Policy()
STATES = (("stateless",), ("stateful",), ("stateless", "stateful"))
POLICIES = [
    Policy(lengths, states)
    for size in (1, 2, 3)
    for lengths in itertools.combinations((128, 56, 40), size)
    for states in STATES
]


@dataclass
class Side:
    """A CCP, what it is for, and where what it sends goes."""

    wheel: Wheel
    policy: Policy
    rng: random.Random
    limits: FsmLimits = LIMITS
    peer_mru: int = 1500
    #: What the owner has heard.
    said: list[str] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ccp = self.make()

    def make(self, state: State = State.INITIAL, agreed: Mppe | None = None) -> Ccp:
        policy = self.policy
        return Ccp(self, self.limits, self, policy.lengths, policy.states, state, agreed)

    def send(self, protocol: int, payload: bytes) -> None:
        assert protocol == proto.CCP
        self.sent.append(payload)

    def random(self, count: int) -> bytes:
        return self.rng.randbytes(count)

    def log(self, level: int, text: str) -> None:
        """Nobody reads it."""

    def remark(self, text: str, now: float) -> None:
        """Nobody reads it."""

    def ccp_up(self, now: float) -> None:
        self.said.append("up")

    def ccp_down(self, now: float) -> None:
        self.said.append("down")

    def ccp_finished(self, now: float) -> None:
        self.said.append("finished")

    def ccp_silent(self, now: float) -> None:
        self.said.append("silent")

    def reset_requested(self) -> None:
        self.said.append("reset")


class Two:
    """Two of them, on a link and on a virtual clock."""

    def __init__(self, *policies: Policy, seed: int = 1, loss: float = 0.0, double: float = 0.0, slow: float = 0.01):
        self.now = 1000.0
        self.wheel = Wheel(self.now)
        self.rng = random.Random(seed)
        self.sides = [Side(self.wheel, policy, self.rng) for policy in policies]
        self.loss, self.double, self.slow = loss, double, slow
        self.flying: list[tuple[float, int, int, bytes]] = []
        self.number = 0
        #: Whether one of them has lost its patience and rejected the option.
        self.rejected = False

    def start(self) -> None:
        for side in self.sides:
            side.ccp.open(self.now)
            side.ccp.up(self.now)

    def carry(self) -> None:
        for index, side in enumerate(self.sides):
            sent, side.sent = side.sent, []
            for packet in sent:
                self.rejected |= packet[0] == proto.CONFIGURE_REJECT
                for _ in range((self.rng.random() >= self.loss) + (self.rng.random() < self.double)):
                    self.number += 1
                    when = self.now + self.rng.uniform(0.001, self.slow)
                    heapq.heappush(self.flying, (when, self.number, 1 - index, packet))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.carry()
            times = [when for when in (self.wheel.next(), self.flying[0][0] if self.flying else None) if when]
            if not times or min(times) > end:
                break
            self.now = max(self.now, min(times))
            while self.flying and self.flying[0][0] <= self.now:
                _, _, index, packet = heapq.heappop(self.flying)
                self.sides[index].ccp.receive(packet, self.now)
                self.carry()
            self.wheel.advance(self.now)
        self.now = end

    def check(self) -> None:
        """Both are open, and know the same of each way."""
        one, other = (side.ccp for side in self.sides)
        assert one.state is other.state is State.OPENED
        assert one.sent == other.received
        assert one.received == other.sent


@pytest.mark.parametrize("one", POLICIES, ids=str)
def test_any_two_agree_on_the_best_that_both_can(one: Policy) -> None:
    for other in POLICIES:
        two = Two(one, other)
        two.start()
        # No timer has to help.
        two.run(0.5)
        two.check()
        assert two.sides[0].ccp.sent == two.sides[0].ccp.received == one.common(other)
        assert two.sides[0].said == two.sides[1].said == ["up"]


@pytest.mark.parametrize("one", POLICIES, ids=str)
def test_any_two_agree_on_a_bad_link(one: Policy) -> None:
    strongest = 0
    for seed, other in enumerate(POLICIES):
        two = Two(one, other, seed=seed, loss=0.15, double=0.15, slow=1.0)
        two.start()
        two.run(40)
        two.loss = two.double = 0.0
        two.run(100)
        if State.STOPPED in (side.ccp.state for side in two.sides):
            # It has given up, and a session would be told.
            continue
        two.check()
        best = one.common(other)
        for mode in (two.sides[0].ccp.sent, two.sides[0].ccp.received):
            # Patience may run out with Naks that are lost; there is nothing between the best and nothing.
            assert mode == best or (mode is None and two.rejected)
            strongest += mode == best
    assert strongest >= 2 * len(POLICIES) - 4


@pytest.mark.parametrize("again", [0, 1])
def test_agreeing_anew_from_rest(again: int) -> None:
    """One begins again, and wants something else by now; the other has been dropped and is made of what was agreed."""
    for one, other, new in itertools.product(POLICIES[::4], POLICIES[::5], POLICIES[::4]):
        two = Two(one, other)
        two.start()
        two.run(0.5)
        best = one.common(other)
        if best is None:
            continue
        side, rest = two.sides[again], two.sides[1 - again]
        rest.ccp = rest.make(State.OPENED, Mppe.begin(MASTERS, best, best))
        rest.said.clear()
        side.policy = new
        side.ccp = side.make()
        side.ccp.open(two.now)
        side.ccp.up(two.now)
        two.run(0.5)
        two.check()
        assert side.ccp.sent == side.ccp.received == new.common(rest.policy)
        assert rest.said == ["down", "up"]


# Peers written by hand.


class Bench:
    def __init__(self, policy: Policy = ALL) -> None:
        self.now = 1000.0
        self.wheel = Wheel(self.now)
        self.side = Side(self.wheel, policy, random.Random(1))
        self.ccp = self.side.ccp
        self.ccp.open(self.now)
        self.ccp.up(self.now)

    @property
    def said(self) -> list[str]:
        return self.side.said

    def give(self, code: int, identifier: int, data: bytes = b"") -> None:
        packet = bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big") + data
        self.ccp.receive(packet, self.now)

    def take(self) -> list[tuple[int, int, bytes]]:
        """Code, identifier, data of what was sent since the last look."""
        sent, self.side.sent = self.side.sent, []
        for packet in sent:
            assert int.from_bytes(packet[2:4], "big") == len(packet)
        return [(packet[0], packet[1], packet[4:]) for packet in sent]

    def only(self) -> tuple[int, int, bytes]:
        (packet,) = self.take()
        return packet

    def ask(self, *wishes: int | tuple[int, bytes]) -> tuple[int, bytes]:
        """A Configure-Request; returns code and data of the answer."""
        data = options.encode(option(wish) for wish in wishes)
        self.give(proto.CONFIGURE_REQUEST, 77, data)
        (answer,) = [packet for packet in self.take() if packet[1] == 77 and packet[0] in (2, 3, 4)]
        return answer[0], answer[2]

    def answer(self, code: int, *wishes: int | tuple[int, bytes]) -> bytes:
        """Answer the request that is out, as it is with Ack; returns the next one, if there is one."""
        (request,) = [packet for packet in self.take() if packet[0] == proto.CONFIGURE_REQUEST]
        data = request[2] if code == proto.CONFIGURE_ACK else options.encode(option(wish) for wish in wishes)
        self.give(code, request[1], data)
        following = [packet[4:] for packet in self.side.sent if packet[0] == proto.CONFIGURE_REQUEST]
        return following[-1] if following else b""

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.wheel.next()) is not None and due <= end:
            self.now = max(self.now, due)
            self.wheel.advance(self.now)
        self.now = end

    def open(self) -> None:
        assert self.ask(S | H)[0] == proto.CONFIGURE_ACK
        identifier = self.ccp.identifier
        self.give(proto.CONFIGURE_ACK, identifier, self.ccp.request)
        self.take()
        assert self.ccp.state is State.OPENED


def option(wish: int | tuple[int, bytes]) -> tuple[int, bytes]:
    return (proto.OPT_MPPE, wish.to_bytes(4, "big")) if isinstance(wish, int) else wish


def mppe(wish: int) -> bytes:
    return options.encode([option(wish)])


def test_all_that_we_can_is_asked_for() -> None:
    for policy in POLICIES:
        code, _, data = Bench(policy).only()
        wish = sum(BITS[bits] for bits in policy.lengths) | (H if "stateless" in policy.states else 0)
        assert (code, data) == (proto.CONFIGURE_REQUEST, mppe(wish))


@pytest.mark.parametrize(
    ("wish", "granted"),
    [
        # Windows: all there is, with MPPC.
        (H | M | S | L | C, S | H),
        (M | S | L | C, S | H),
        (H | M | S | L | D | C, S | H),
        # Linux.
        (H | S | L, S | H),
        # MPPC alone; the obsolete bit alone; nothing; stateless mode of nothing; bits that nobody knows.
        (C, S | H),
        (D, S | H),
        (0, S | H),
        (H, S | H),
        (0xFFFFFFFF, S | H),
        (0xFEFFFF0E, S | H),
        (M | L | H, M | H),
        (L | C | H, L | H),
        (M | H | 0x00010000, M | H),
        (S | H | D, S | H),
        (S | H | 0x80000000, S | H),
    ],
)
def test_what_is_not_one_mode_is_naked_to_the_best(wish: int, granted: int) -> None:
    bench = Bench()
    assert bench.ask(wish) == (proto.CONFIGURE_NAK, mppe(granted))
    assert bench.ccp.sent is None
    assert bench.ask(granted) == (proto.CONFIGURE_ACK, mppe(granted))
    bench = Bench()
    bench.answer(proto.CONFIGURE_ACK)
    assert bench.ask(granted) == (proto.CONFIGURE_ACK, mppe(granted))
    assert bench.said == ["up"]


@pytest.mark.parametrize(
    ("policy", "wish", "granted"),
    [
        (Policy((128,)), L | H, S | H),
        (Policy((40,)), S | H, L | H),
        (Policy((56, 40)), S | L | H, L | H),
        (Policy((128, 40)), M | H, S | H),
        (Policy((128, 40)), M | L | H, L | H),
        (Policy(states=("stateful",)), S | H, S),
        (Policy(states=("stateful",)), S | L | M | H, S),
        (Policy(states=("stateless",)), S, S | H),
    ],
)
def test_what_is_not_allowed_is_naked(policy: Policy, wish: int, granted: int) -> None:
    bench = Bench(policy)
    assert bench.ask(wish) == (proto.CONFIGURE_NAK, mppe(granted))
    assert bench.ask(granted) == (proto.CONFIGURE_ACK, mppe(granted))


def test_stateful_mode_is_granted_to_one_that_insists() -> None:
    bench = Bench()
    assert bench.ask(S | L) == (proto.CONFIGURE_NAK, mppe(S | H))
    assert bench.ask(S) == (proto.CONFIGURE_NAK, mppe(S | H))
    assert bench.ask(S) == (proto.CONFIGURE_ACK, mppe(S))
    assert bench.ccp.sent == Mode(128, stateful=True)
    # Not where it is not allowed.
    bench = Bench(Policy(states=("stateless",)))
    for _ in range(LIMITS.max_nak_loop):
        assert bench.ask(S) == (proto.CONFIGURE_NAK, mppe(S | H))
    assert bench.ask(S) == (proto.CONFIGURE_REJECT, mppe(S))
    assert bench.ccp.sent is None


@pytest.mark.parametrize("other", [(26, b"\x78\0"), (21, b"\x2f"), (1, b""), (17, b"\0\1\3"), (0, b"\0x")])
def test_compression_is_rejected(other: tuple[int, bytes]) -> None:
    bench = Bench()
    assert bench.ask(other) == (proto.CONFIGURE_REJECT, options.encode([other]))
    # Beside what can be granted, too: deflate and BSD as pppd asks for them.
    assert bench.ask(S | H, other) == (proto.CONFIGURE_REJECT, options.encode([other]))
    assert bench.ask(other, S | L | H) == (proto.CONFIGURE_REJECT, options.encode([other]))
    assert bench.ask(S | H) == (proto.CONFIGURE_ACK, mppe(S | H))


@pytest.mark.parametrize("value", [b"", b"\1", b"\1\0\0", b"\1\0\0\x40\0", bytes(16)])
def test_an_option_of_a_wrong_length_is_rejected(value: bytes) -> None:
    bench = Bench()
    assert bench.ask((18, value)) == (proto.CONFIGURE_REJECT, options.encode([(18, value)]))
    # A hint of a wrong length is none.
    bench = Bench()
    before = bench.ccp.wanted()
    assert bench.answer(proto.CONFIGURE_NAK, (18, value)) == before


def test_a_request_for_nothing_is_shown_what_there_is() -> None:
    bench = Bench()
    bench.answer(proto.CONFIGURE_ACK)
    for _ in range(LIMITS.max_nak_loop):
        assert bench.ask() == (proto.CONFIGURE_NAK, mppe(S | H))
    assert bench.ask() == (proto.CONFIGURE_ACK, b"")
    assert bench.said == ["up"]
    assert bench.ccp.sent is None
    assert bench.ccp.received == Mode(128, stateful=False)


def test_modes_that_contradict_each_other_are_not_granted() -> None:
    bench = Bench()
    for wishes in ((S | H, L | H), (L | H, S | H), (S, S | H)):
        code, _ = bench.ask(*wishes)
        assert code != proto.CONFIGURE_ACK


@pytest.mark.parametrize(
    ("hint", "wish"),
    [
        (S | H, S | H),
        (L | H, L | H),
        (M | H, M | H),
        # The strongest of two.
        (S | L | H, S | H),
        (M | L | H, M | H),
        (S, S),
        # With what we do not do.
        (S | H | C | D, S | H),
        # Modes without a length are about the modes.
        (0, S | M | L),
        (H | C, S | M | L | H),
    ],
)
def test_hints_are_taken_up(hint: int, wish: int) -> None:
    bench = Bench()
    assert bench.answer(proto.CONFIGURE_NAK, hint) == mppe(wish)


@pytest.mark.parametrize(
    ("policy", "hint", "wish"),
    [
        (Policy((128,)), L | H, S | H),
        (Policy((128, 40)), M | H, S | L | H),
        (Policy((128,), ("stateless",)), S, S | H),
        (Policy((128,), ("stateful",)), S | H, S),
    ],
)
def test_hints_that_are_not_allowed_are_not_taken_up(policy: Policy, hint: int, wish: int) -> None:
    bench = Bench(policy)
    for _ in range(LIMITS.max_nak_loop):
        assert bench.answer(proto.CONFIGURE_NAK, hint) == mppe(wish)
    # There is no agreement, and one of them has to say so.
    assert bench.answer(proto.CONFIGURE_NAK, hint) == b""
    bench.answer(proto.CONFIGURE_ACK)
    assert bench.ask(S)[0] in (proto.CONFIGURE_ACK, proto.CONFIGURE_NAK)
    assert bench.ccp.received is None


@pytest.mark.parametrize("hints", [(), ((26, b"\x78\0"),), ((18, b"\0"),)])
def test_hints_that_help_nobody_come_to_an_end(hints: tuple[tuple[int, bytes], ...]) -> None:
    bench = Bench()
    for _ in range(LIMITS.max_nak_loop):
        assert bench.answer(proto.CONFIGURE_NAK, *hints) == mppe(S | M | L | H)
    assert bench.answer(proto.CONFIGURE_NAK, *hints) == b""
    bench.answer(proto.CONFIGURE_ACK)
    assert bench.ask(S | H)[0] == proto.CONFIGURE_ACK
    assert bench.said == ["up"]
    assert bench.ccp.received is None


def test_the_option_is_rejected() -> None:
    bench = Bench()
    assert bench.answer(proto.CONFIGURE_REJECT, S | M | L | H) == b""
    assert bench.only()[0] == proto.CONFIGURE_REQUEST
    bench.give(proto.CONFIGURE_ACK, bench.ccp.identifier, b"")
    assert bench.ask(S | H)[0] == proto.CONFIGURE_ACK
    assert (bench.said, bench.ccp.sent, bench.ccp.received) == (["up"], Mode(128, stateful=False), None)


def test_an_answer_counts_once_and_for_its_request() -> None:
    bench = Bench()
    _, identifier, data = bench.only()
    bench.give(proto.CONFIGURE_NAK, identifier + 1 & 0xFF, mppe(L | H))
    assert bench.take() == []
    with pytest.raises(Malformed):
        bench.give(proto.CONFIGURE_ACK, identifier, mppe(L | H))
    bench.give(proto.CONFIGURE_NAK, identifier, mppe(L | H))
    bench.give(proto.CONFIGURE_NAK, identifier, mppe(S | H))
    bench.give(proto.CONFIGURE_REJECT, identifier, data)
    assert bench.only()[2] == mppe(L | H)


def test_reset() -> None:
    bench = Bench()
    # Before it is open there is nothing to reset.
    bench.take()
    bench.give(proto.RESET_REQUEST, 9)
    assert (bench.said, bench.take()) == ([], [])
    bench.open()
    bench.said.clear()
    bench.give(proto.RESET_REQUEST, 9, b"whatever")
    assert (bench.said, bench.only()) == (["reset"], (proto.RESET_ACK, 9, b""))
    bench.ccp.request_reset()
    code, identifier, data = bench.only()
    assert (code, data) == (proto.RESET_REQUEST, b"")
    # The Ack may come or not, and be refused or not.
    bench.give(proto.RESET_ACK, identifier)
    bench.give(proto.RESET_ACK, identifier + 1 & 0xFF, b"x")
    bench.give(proto.CODE_REJECT, 1, bytes((proto.RESET_ACK, 9, 0, 4)))
    bench.give(proto.CODE_REJECT, 1, bytes((proto.RESET_REQUEST, identifier, 0, 4)))
    assert bench.take() == []
    assert bench.said == ["reset"]
    assert bench.ccp.state is State.OPENED
    bench.ccp.request_reset()
    assert bench.only()[1] != identifier


def test_terminated() -> None:
    bench = Bench()
    bench.open()
    bench.give(proto.TERMINATE_REQUEST, 4, b"bye")
    assert bench.only() == (proto.TERMINATE_ACK, 4, b"bye")
    assert bench.said == ["up", "down"]
    # It does not begin again by itself.
    bench.give(proto.CONFIGURE_REQUEST, 5, mppe(S | H))
    assert bench.take() == []
    bench.wait(5)
    assert bench.said == ["up", "down", "finished"]


@pytest.mark.parametrize("code", range(1, 8))
def test_a_code_that_it_cannot_do_without_is_rejected(code: int) -> None:
    bench = Bench()
    bench.give(proto.CODE_REJECT, 1, bytes((code, 1, 0, 4)))
    assert bench.said == ["finished"]


@pytest.mark.parametrize("code", [0, 8, 9, 10, 11, 12, 13, 16, 99, 255])
def test_unknown_codes_are_rejected(code: int) -> None:
    bench = Bench()
    bench.take()
    bench.give(code, 5, b"data")
    sent, _, data = bench.only()
    assert (sent, data) == (proto.CODE_REJECT, bytes((code, 5, 0, 8)) + b"data")


def test_the_protocol_is_rejected() -> None:
    bench = Bench()
    bench.ccp.protocol_rejected(bench.now)
    assert bench.said == ["finished"]
    bench = Bench()
    bench.open()
    bench.ccp.protocol_rejected(bench.now)
    assert bench.said == ["up", "down"]
    bench.wait(10)
    assert bench.said == ["up", "down", "finished"]


def test_silence() -> None:
    bench = Bench()
    bench.wait(29)
    assert set(bench.said) == {"silent"}
    assert [packet[0] for packet in bench.take()] == [proto.CONFIGURE_REQUEST] * 10
    bench.wait(3)
    assert "finished" in bench.said
    bench.wait(100)
    assert bench.take() == []
    # Who has said something is not silent.
    for code, data in ((proto.CONFIGURE_REQUEST, mppe(S | H)), (proto.CONFIGURE_NAK, mppe(S | H))):
        bench = Bench()
        bench.give(code, bench.ccp.identifier, data)
        bench.wait(20)
        assert bench.said == []


# Linux.


class Pppd:
    """pppd 2.4.9: *strengths* are those of require-mppe, and *stateful* is mppe-stateful."""

    def __init__(self, strengths: int, *, stateful: bool) -> None:
        self.strengths = strengths
        self.stateful = stateful
        self.request = strengths | H
        self.acked: int | None = None
        self.granted: int | None = None
        #: It closes LCP.
        self.closed = ""
        #: Its requests, in order.
        self.asked = [self.request]

    def judge(self, wishes: list[tuple[int, bytes]]) -> tuple[int, list[tuple[int, bytes]]]:
        """Its ccp_reqci()."""
        if not wishes:
            # Nothing refused; but it is up without MPPE then, which ccp_up() does not stand.
            self.closed = "up without MPPE"
            return proto.CONFIGURE_ACK, []
        ((kind, value),) = wishes
        wish = int.from_bytes(value, "big")
        assert kind == proto.OPT_MPPE
        granted, code = wish & (H | S | L), proto.CONFIGURE_ACK
        if granted != wish:
            code = proto.CONFIGURE_NAK
        if not wish & H and not self.stateful:
            code = proto.CONFIGURE_REJECT
        elif granted & S and granted & L:
            code = proto.CONFIGURE_NAK
            granted &= ~L if self.strengths & S else ~S
        elif granted & (S | L) and not granted & self.strengths:
            code = proto.CONFIGURE_REJECT
        elif not granted & (S | L):
            code, granted = proto.CONFIGURE_NAK, self.strengths | H
        if code == proto.CONFIGURE_ACK:
            self.granted = wish
        return code, wishes if code == proto.CONFIGURE_REJECT else [option(granted)]

    def naked(self, hints: list[tuple[int, bytes]]) -> None:
        """Its ccp_nakci()."""
        ((_, value),) = hints
        hint = int.from_bytes(value, "big")
        if not (hint & H or self.stateful) or hint & ~(self.request | H) or not hint & (S | L):
            self.closed = "negotiation failed"
        self.request = hint

    def talk(self, bench: Bench) -> None:
        """Until nobody has anything to say."""
        bench.give(proto.CONFIGURE_REQUEST, 1, mppe(self.request))
        identifier = 1
        for _ in range(100):
            packets = bench.take()
            if not packets or self.closed:
                return
            for code, number, data in packets:
                found = options.decode(data)
                if code == proto.CONFIGURE_REQUEST:
                    answer, values = self.judge(found)
                    bench.give(answer, number, options.encode(values))
                elif number != identifier:
                    continue
                elif code == proto.CONFIGURE_ACK:
                    self.acked = self.request
                elif code == proto.CONFIGURE_REJECT:
                    self.closed = "peer refused"
                else:
                    self.naked(found)
                    identifier += 1
                    self.asked.append(self.request)
                    bench.give(proto.CONFIGURE_REQUEST, identifier, mppe(self.request))
        raise AssertionError("they do not come to an end")


@pytest.mark.parametrize("strengths", [S | L, S, L])
@pytest.mark.parametrize("stateful", [False, True])
def test_pppd(strengths: int, stateful: bool) -> None:
    lengths: Collection[int] = [bits for bits in (128, 40) if BITS[bits] & strengths]
    linux = Policy(tuple(lengths), STATES[2] if stateful else STATES[0])
    for policy in POLICIES:
        bench, peer = Bench(policy), Pppd(strengths, stateful=stateful)
        peer.talk(bench)
        best = policy.common(linux)
        if best is None:
            assert peer.closed or bench.ccp.sent is None or bench.ccp.received is None
            continue
        assert not peer.closed, f"{policy}: {peer.closed}"
        assert bench.said == ["up"]
        assert bench.ccp.sent == bench.ccp.received == best
        agreed = BITS[best.bits] | (0 if best.stateful else H)
        assert peer.acked == peer.granted == agreed
        # Stateless mode is what it offers first, and stateful mode what it takes.
        assert peer.asked[0] & H
