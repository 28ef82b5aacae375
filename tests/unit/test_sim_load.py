"""npppysim's loads against the concentrator: who comes up, what is counted, and that nothing is left."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, cast

import pytest

from npppy.config.model import AuthMethod
from npppy.ppp.cause import Cause
from npppy.sim.load import Ending, Plan, Stage
from npppy.sim.report import Report
from npppy.sim.subscriber import Subscriber
from npppy.sim.traffic import Pinger
from npppy.wheel import TICK, Wheel

from .ppp_pair import Quality
from .sim_world import LARGE_POOL, METHODS, TARGET, World, echo_reply


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", Ending)
def test_all_come_up_and_go(method: AuthMethod, ending: Ending) -> None:
    plan = Plan(sessions=100, ending=ending, hold=1)
    world = World(plan, options={"authentication_methods": (method,)}, pings=2)
    assert world.run(30, until=lambda: world.load.stage is Stage.HOLDING)
    assert world.report.good
    assert (world.report.up, world.report.pings_answered) == (100, 200)
    assert len({line.subscriber.address for line in world.lines.values() if line.subscriber}) == 100
    world.finished()
    assert not world.report.failed
    assert not world.report.lost
    # A concentrator that was not told finds out by itself.
    world.run(60)
    world.nothing_left()
    assert sorted(world.events) == sorted((event, n) for n in range(1, 101) for event in ("up", "down"))


def test_each_is_who_and_where_it_says() -> None:
    world = World(Plan(sessions=10, first=41, hold=5))
    assert world.run(3, until=lambda: world.load.stage is Stage.HOLDING)
    sessions = {session.call.link.caller.mac: session for session in world.rig.engine.sessions.values()}
    for number in range(41, 51):
        subscriber = world.lines[number].subscriber
        assert subscriber is not None
        session = sessions[bytes.fromhex("024e50000000")[:5] + bytes((number,))]
        assert session.address == subscriber.address
        assert session.call.link.caller.circuit_id == b"circuit %d" % number
        assert session.call.link.caller.remote_id == b"remote %d" % number
    world.finished()
    world.run(10)
    world.nothing_left()


def test_one_mac_address_for_all() -> None:
    world = World(Plan(sessions=50), one_mac=True, pings=1)
    world.finished()
    assert world.report.good
    world.run(10)
    world.nothing_left()


def test_without_a_rate_the_window_bounds_what_is_under_way() -> None:
    world = World(Plan(sessions=100, window=7), quality=Quality(fastest=0.01, slowest=0.03))
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, sum(line.up_at is None for line in world.load.lines.values()))
        return world.load.stage is not Stage.DIALLING

    assert world.run(60, until=look)
    assert most == 7
    assert world.report.up == 100


@pytest.mark.parametrize("rate", [3.0, 50.0, 1000.0])
def test_with_a_rate_they_begin_when_their_time_has_come(rate: float) -> None:
    world = World(Plan(sessions=60, rate=rate, window=1))
    world.finished()
    first = world.lines[1].began
    for number, line in world.lines.items():
        # No earlier, and no later than the next thing that happens.
        assert -1e-9 <= line.began - (first + (number - 1) / rate) < 1e-9
    assert world.report.good


def test_the_summary_says_the_rate_from_the_first_padi_to_the_last_up() -> None:
    world = World(Plan(sessions=31, rate=10))
    world.finished()
    facts = world.report.summary()
    assert facts["seconds"] == pytest.approx(3.0, abs=0.1)
    assert facts["rate"] == pytest.approx(31 / 3.0, abs=0.3)


def test_hold_begins_when_the_last_is_up_and_all_pings_are_answered() -> None:
    world = World(Plan(sessions=20, rate=10, hold=60), pings=3)
    began = world.rig.now
    assert world.run(300, until=lambda: world.load.stage is Stage.ENDING)
    assert world.rig.now - began == pytest.approx(1.9 + 2 + 60, abs=0.3)
    assert len(world.load.lines) == 20


def test_held_forever_until_stopped() -> None:
    world = World(Plan(sessions=20, hold=float("inf")))
    world.run(3600)
    assert world.load.stage is Stage.HOLDING
    assert len(world.rig.engine.sessions) == 20
    world.load.stop()
    world.finished(5)
    assert world.report.good
    world.run(10)
    world.nothing_left()


@pytest.mark.parametrize("after", [0.0, 0.03, 0.06, 0.1, 0.2])
@pytest.mark.parametrize("ending", [Ending.LCP, Ending.CALL])
def test_stopped_in_the_middle(after: float, ending: Ending) -> None:
    """Whatever a subscriber is doing when it is told to stop, it stops, and those to come do not come."""
    world = World(Plan(sessions=200, window=20, ending=ending), quality=Quality(fastest=0.01, slowest=0.02))
    world.run(after)
    world.load.stop()
    world.finished(15)
    report = world.report
    assert not report.good
    assert report.up + report.failed["interrupted"] == world.load.started < 200
    world.run(100)
    world.nothing_left()


def test_stopped_twice_does_not_wait() -> None:
    world = World(Plan(sessions=50, hold=float("inf")))
    world.run(2)
    world.channel.quality = Quality(loss=1.0)
    world.load.stop()
    world.run(1)
    assert not world.done
    world.load.stop(Ending.CALL)
    world.finished(1)
    assert not world.segment.hosts


def test_ended_by_the_concentrator_is_lost_and_not_failed() -> None:
    world = World(Plan(sessions=10, hold=60))
    assert world.run(5, until=lambda: world.load.stage is Stage.HOLDING)
    for ppp_id in (0, 3):
        assert world.rig.engine.disconnect(ppp_id, world.rig.now)
    world.run(1)
    assert world.report.lost == {"terminated by the concentrator": 2}
    assert len(world.load.lines) == 8
    world.finished()
    assert world.report.lost.total() == 2
    assert world.report.good


def test_a_concentrator_that_vanishes_is_missed() -> None:
    world = World(Plan(sessions=5, hold=float("inf")))
    world.run(2)
    world.channel.quality = Quality(loss=1.0)
    world.run(60)
    assert world.report.lost == {"no answer to LCP echoes": 5}
    world.finished(1)


# Failures, and their reasons.


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"password": b"wrong"}, "authentication failed"),
        ({"user": "nobody"}, "authentication failed"),
        ({"wishes": {"ac_name": "elsewhere"}}, "no PADO of the concentrator asked for"),
        ({"wishes": {"service_name": "gold"}, "rig": {"carrier": {"accept_any_service": False}}}, "no PADO"),
        ({"quality": Quality(loss=1.0)}, "no PADO"),
    ],
)
def test_reasons(made: dict[str, Any], reason: str) -> None:
    world = World(Plan(sessions=3), **made)
    world.finished()
    assert world.report.failed == {reason: 3}
    assert not world.report.good
    world.run(60)
    world.nothing_left()


def test_a_session_limit_is_told_by_the_pads() -> None:
    world = World(Plan(sessions=5, hold=5), one_mac=True, rig={"carrier": {"session_limit": 3}})
    assert world.run(4, until=lambda: world.load.stage is Stage.HOLDING)
    assert world.report.up == 3
    assert world.report.failed == {"AC-System-Error: too many sessions of this host": 2}


def test_an_exhausted_pool_fails_those_that_come_too_late() -> None:
    (some,) = LARGE_POOL["ranges"]
    few = replace(some, last=IPv4Address("10.1.0.4"))
    world = World(Plan(sessions=10, hold=5), rig={"ipcp": {"ranges": (few,)}})
    assert world.run(60, until=lambda: world.load.stage is Stage.HOLDING)
    assert world.report.up == 4
    assert world.report.failed.total() == 6
    world.finished()
    world.run(60)
    world.nothing_left()


# Bad wires.


@pytest.mark.parametrize("seed", range(12))
def test_on_a_bad_wire_all_come_up_or_fail_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    quality = Quality(
        loss=chance.uniform(0, 0.25), double=chance.uniform(0, 0.2), slowest=chance.choice((0.001, 0.1, 1.0))
    )
    methods = (chance.choice(METHODS),)
    plan = Plan(sessions=40, ending=chance.choice(list(Ending)))
    world = World(plan, seed=seed, quality=quality, options={"authentication_methods": methods}, pings=1)
    world.finished()
    report = world.report
    assert report.up + report.failed.total() == 40
    assert report.up >= 25
    assert not report.pings_wrong
    assert not report.malformed
    world.channel.quality = Quality()
    world.run(200)
    world.nothing_left()


def test_discovery_makes_good_for_any_lost_frame() -> None:
    for lost in range(1, 5):
        world = World(Plan(sessions=1))
        world.channel.lose = lost
        world.finished(8)
        assert world.report.good, f"frame {lost}"


# Pings.


@pytest.mark.parametrize(("interval", "cut"), [(0.25, 3), (0.5, 2), (5.0, 1)])
def test_pings_on_their_way_when_the_session_ends_are_cut_off(interval: float, cut: int) -> None:
    class Silent:
        number, address = 1, 0x0A010001

        def send_ip(self, packet: bytes) -> None:
            """Nobody answers."""

    wheel, report = Wheel(0.0), Report(1)
    pinger = Pinger(cast(Subscriber, Silent()), 0x0A000001, wheel, report, count=100, interval=interval)
    pinger.start(0.0)
    for tick in range(1, 100):
        wheel.advance(tick * TICK)
    pinger.finish(ours=True)
    assert report.pings_cut == cut


def test_a_reply_in_the_wrong_session_is_found_out() -> None:
    world = World(Plan(sessions=2, hold=float("inf")), pings=1)
    # Each reply goes to the other subscriber, with its address set right: only the payload tells.
    mirror = world.mirror
    held: dict[int, bytes] = {}

    def swap(packet: bytes) -> bytes | None:
        held[int.from_bytes(packet[16:20], "big")] = packet
        if len(held) == 2:
            (one, first), (other, second) = held.items()
            mirror.flows[one].spec.send(b"\x00\x21" + _readdressed(second, one))
            mirror.flows[other].spec.send(b"\x00\x21" + _readdressed(first, other))
        return None

    mirror.twist = swap
    world.run(10)
    assert (world.report.pings_sent, world.report.pings_answered, world.report.pings_wrong) == (2, 0, 2)
    assert not world.report.good


def _readdressed(packet: bytes, address: int) -> bytes:
    request = packet[:12] + address.to_bytes(4, "big") + TARGET.to_bytes(4, "big") + b"\x08\0" + packet[22:]
    return echo_reply(request)


@pytest.mark.parametrize("damage", ["payload", "truncated", "twice", "source", "none"])
def test_pings_are_looked_at_to_the_last_octet(damage: str) -> None:
    world = World(Plan(sessions=1, hold=float("inf")), pings=1)

    def twist(packet: bytes) -> bytes | None:
        if damage == "payload":
            return packet[:-1] + b"!"
        if damage == "truncated":
            return packet[:-1]
        if damage == "source":
            return packet[:12] + b"\x01\x02\x03\x04" + packet[16:]
        if damage == "twice":
            (flow,) = world.mirror.flows.values()
            flow.spec.send(b"\x00\x21" + packet)
        return None if damage == "none" else packet

    world.mirror.twist = twist
    world.run(10)
    assert world.load.stage is Stage.HOLDING
    report = world.report
    assert (report.pings_answered, report.pings_wrong) == {"twice": (1, 0), "none": (0, 0)}.get(damage, (0, 1))
    assert report.pings_repeated == (damage == "twice")
    assert report.good == (damage == "twice")


def test_other_packets_are_no_replies() -> None:
    world = World(Plan(sessions=1, hold=float("inf")))
    world.run(2)
    (line,) = world.lines.values()
    assert line.subscriber is not None
    pinger = Pinger(line.subscriber, TARGET, world.rig.wheel, world.report)
    for packet in (b"", b"\x45", b"\x60" + bytes(60), b"\x45" + bytes(60), b"\x4f" + bytes(20)):
        pinger.input(packet, 0.0)
    assert world.report.pings_wrong == 0
    assert pinger.counters().in_packets == 5


def test_pings_go_on_after_negotiating_anew() -> None:
    world = World(Plan(sessions=1, hold=float("inf")), pings=5)
    world.run(1.5)
    (line,) = world.lines.values()
    assert line.subscriber is not None
    line.subscriber.changed(line.subscriber.call.link, world.rig.now)
    world.run(20)
    assert world.report.pings_sent == world.report.pings_answered == 5
    assert world.events == [("up", 1)]
    assert world.load.stage is Stage.HOLDING


def test_what_the_concentrator_gets_wrong_is_counted() -> None:
    world = World(Plan(sessions=1, hold=float("inf")))
    world.run(2)
    (call,) = world.port.calls.values()
    call.send(b"\xc0\x21\x01")
    world.run(1)
    assert world.report.malformed == {"short": 1}


def test_the_concentrator_may_end_a_session_in_any_phase() -> None:
    for step in range(30):
        world = World(Plan(sessions=1, hold=float("inf")), quality=Quality(fastest=0.01, slowest=0.01))
        world.run(step * 0.01)
        for session in list(world.rig.engine.sessions.values()):
            session.end(Cause.ADMIN_RESET, "test", world.rig.now)
        world.run(20)
        if world.load.stage is not Stage.HOLDING:
            assert world.done
            assert world.report.failed.total() + world.report.lost.total() == 1
            world.run(100)
            world.nothing_left()
