"""Two engines over a network that loses, doubles and disorders: all comes up, or fails cleanly and within its bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npppy.l2tp.call import CONNECT
from npppy.l2tp.tunnel import CYCLE, State
from npppy.ppp.cause import Cause
from tests.unit.l2tp_net import LNS, LacCall, Net
from tests.unit.pppoe_fake import FakePpp

#: Seconds in which a tunnel is established or has failed: a cycle for each of its two ends, and one timer's precision.
BOUND = 2 * CYCLE + 1


def bad(seed: int, loss: float = 0.3, double: float = 0.2, spread: float = 0.6) -> Net:
    net = Net(seed)
    net.loss, net.double, net.delay = loss, double, (0.01, 0.01 + spread)
    return net


@pytest.mark.parametrize("seed", range(20))
def test_tunnels_come_up_or_fail_within_their_bound(seed: int) -> None:
    net, ppp = bad(seed), FakePpp()
    lns = net.lns(ppp, half_open_peer_limit=1000, secrets=((None, "s3cret"),))
    lac = net.lac(secrets=((None, "s3cret"),))
    tunnels = [lac.ask() for _ in range(40)]
    net.run(BOUND)
    # Up; or the LAC knows that it is not.
    assert {tunnel.state for tunnel in tunnels} <= {State.ESTABLISHED, State.CLOSING}
    assert not any(tunnel.state < State.ESTABLISHED for tunnel in lns.tunnels.values())
    assert lns.services["L2TP"].half_open == 0
    # Without calls they all go again, and leave nothing.
    net.run(3 * BOUND)
    assert not lns.tunnels
    assert not lac.tunnels
    assert not lns._half_open
    assert not lns._established
    assert not lac._dialled
    assert not net.wheel


@pytest.mark.parametrize("seed", range(10))
def test_most_come_up_in_spite_of_it(seed: int) -> None:
    """Of tunnels that need three messages, each sent five times at least, hardly one fails at 30 % loss."""
    net = bad(seed)
    net.lns(half_open_peer_limit=1000)
    lac = net.lac()
    tunnels = [lac.ask() for _ in range(40)]
    done = set()
    for _ in range(40):
        net.run(0.5)
        done |= {tunnel.id for tunnel in tunnels if tunnel.state is State.ESTABLISHED}
    assert len(done) >= 36


@pytest.mark.parametrize("seed", range(10))
def test_calls_in_a_storm(seed: int) -> None:
    net, ppp = bad(seed), FakePpp()
    lns = net.lns(ppp)
    lac = net.lac()
    tunnel = lac.ask()
    while tunnel.state < State.ESTABLISHED:
        net.run(0.25)
    assert tunnel.state is State.ESTABLISHED, "with this seed it does not come up: choose another"
    calls = [lac.call(tunnel) for _ in range(15)]
    net.run(CONNECT + BOUND)
    net.loss, net.double = 0.0, 0.0
    net.run(BOUND)
    # Each end has the other's number; a call that was not connected in time, neither has.
    live = [call for call in calls if call.why is None]
    if tunnel.state is State.ESTABLISHED:
        ours = lns.tunnels[tunnel.peer_id]
        assert {(call.id, call.peer_id) for call in ours.calls.values()} == {(call.peer_id, call.id) for call in live}
        assert live
    net.loss, net.double = 0.3, 0.2
    for call in live[::2]:
        call.clear(Cause.USER_REQUEST, net.now)
    net.run(BOUND)
    lns.stop(lns.tunnels.values(), "enough", Cause.ADMIN_RESET, net.now)
    net.run(3 * BOUND)
    assert all(len(session.ended) == 1 for session in ppp.sessions)
    assert not lns.tunnels
    assert not lac.tunnels
    assert lns.services["L2TP"].sessions == 0
    assert not net.wheel


class Model:
    """What both ends must agree about when the network is good again."""

    def __init__(self, seed: int) -> None:
        self.net = Net(seed)
        self.ppp = FakePpp()
        self.lns = self.net.lns(self.ppp, half_open_peer_limit=1000)
        self.lac = self.net.lac()
        self.calls: list[LacCall] = []

    def step(self, what: str, number: int) -> None:
        net = self.net
        up = [tunnel for tunnel in self.lac.tunnels.values() if tunnel.state is State.ESTABLISHED]
        if what == "ask":
            self.lac.ask()
        elif what == "call" and up:
            self.calls.append(self.lac.call(up[number % len(up)]))
        elif what == "hang up":
            live = [call for call in self.calls if call.connected and call.tunnel.calls.get(call.id) is call]
            if live:
                live[number % len(live)].clear(Cause.USER_REQUEST, net.now)
        elif what == "close":
            live = [session for session in self.ppp.sessions if not session.ended]
            if live:
                live[number % len(live)].call.close(Cause.ADMIN_RESET)
        elif what == "stop" and up:
            self.lac.stop([up[number % len(up)]], "enough", Cause.ADMIN_RESET, net.now)
        elif what == "storm":
            net.loss, net.double, net.delay = 0.3, 0.2, (0.01, 0.5)
        elif what == "calm":
            net.loss, net.double, net.delay = 0.0, 0.0, (0.01, 0.01)
        elif what == "wait":
            net.run(number / 4)

    def settle(self) -> None:
        self.step("calm", 0)
        self.net.run(2 * BOUND)


STEPS = st.sampled_from(["ask", "call", "call", "call", "hang up", "close", "stop", "storm", "calm", "wait", "wait"])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(STEPS, st.integers(0, 40)), max_size=60))
def test_both_ends_agree_in_the_end(seed: int, steps: list[tuple[str, int]]) -> None:
    model = Model(seed)
    for what, number in steps:
        model.step(what, number)
    model.settle()
    lns, lac = model.lns, model.lac
    theirs = {(tunnel.id, tunnel.peer_id): tunnel for tunnel in lac.tunnels.values()}
    ours = {(tunnel.peer_id, tunnel.id): tunnel for tunnel in lns.tunnels.values()}
    assert theirs.keys() == ours.keys()
    for key, tunnel in theirs.items():
        mine = ours[key]
        assert tunnel.state is mine.state is State.ESTABLISHED
        assert {(call.id, call.peer_id) for call in tunnel.calls.values()} == {
            (call.peer_id, call.id) for call in mine.calls.values()
        }
        assert tunnel.channel.idle
        assert mine.channel.idle
    assert lns.services["L2TP"].sessions == sum(len(tunnel.calls) for tunnel in lns.tunnels.values())
    assert lns.services["L2TP"].half_open == 0


def test_the_lns_alone_answers_no_more_than_it_is_asked() -> None:
    """What comes of one forged SCCRQ is bounded: the answer and its repetitions, and nothing is left."""
    net = Net()
    lns, lac = net.lns(), net.lac()
    lac.ask()
    net.nodes.pop((lac.at.local, 1701))
    net.run(BOUND)
    assert not lns.tunnels
    answers = [datagram for (at, _), _, datagram in net.sent if at == LNS]
    assert len(answers) <= 12
