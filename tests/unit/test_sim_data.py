"""npppysim's data through real sessions, by every carrier, on a virtual clock: what is lost, and what is cut off."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from typing import Any

import pytest

from npppy.config.model import AuthMethod, Mppe
from npppy.sim.load import Ending, Plan, Stage
from npppy.sim.main import UsageError, setup
from npppy.sim.options import parser
from npppy.sim.run import Setup
from npppy.sim.stream import Data
from npppy.sim.tally import Tally

from .ppp_pair import Quality
from .sim_world import TARGET, Bed, L2tpWorld, PptpWorld, World, echo_reply
from .test_sim_stream import resum

MSCHAP = {"authentication_methods": (AuthMethod.MSCHAPV2,), "mppe": Mppe.REQUIRED}
WORLDS: dict[str, tuple[type[World] | type[L2tpWorld] | type[PptpWorld], dict[str, Any]]] = {
    "pppoe": (World, {}),
    "l2tp": (L2tpWorld, {}),
    "pptp": (PptpWorld, {}),
    "mppe": (PptpWorld, {"rig": MSCHAP, "options": MSCHAP}),
    "stateful": (World, {"rig": MSCHAP | {"mppe_key_states": ("stateful",)}, "options": MSCHAP}),
}
EVERY = pytest.mark.parametrize("carrier", WORLDS)


def make(carrier: str, plan: Plan, *, size: int = 100, rate: float = 200, **rest: Any) -> Bed:
    kind, options = WORLDS[carrier]
    return kind(plan, data=Data(size=size, rate=rate, target=IPv4Address(TARGET), run=7), **options, **rest)


def tally(world: Bed) -> Tally:
    found = world.report.traffic
    assert found is not None
    assert found.sent == found.received + found.lost + found.cut + found.outstanding
    return found


@EVERY
@pytest.mark.parametrize("ending", Ending)
def test_all_comes_back(carrier: str, ending: Ending) -> None:
    world = make(carrier, Plan(sessions=20, hold=5, ending=ending), quality=Quality(fastest=0.02, slowest=0.02))
    world.finished()
    found = tally(world)
    assert found.received == found.sent >= 1000
    assert not any((found.cut, found.lost, found.wrong, found.corrupt, found.repeated, found.stale, found.other))
    assert (found.sessions, found.silent, found.unserved) == (20, 0, 0)
    assert world.report.good
    assert found.as_dict()["latency_ms"]["p50"] == pytest.approx(40, rel=0.02)
    world.run(60)
    world.nothing_left()


@EVERY
def test_to_the_concentrator_itself(carrier: str) -> None:
    """By default, who answers is found out when the session comes up."""
    kind, options = WORLDS[carrier]
    world = kind(Plan(sessions=3, hold=1), data=Data(size=64, rate=100), **options)
    answered: set[bytes] = set()

    def note(packet: bytes) -> bytes:
        answered.add(packet[12:16])
        return packet

    world.mirror.twist = note
    world.finished()
    assert tally(world).received == tally(world).sent > 90
    assert answered == {IPv4Address("10.0.0.1").packed}


@EVERY
def test_a_signal_in_the_middle_loses_nothing(carrier: str) -> None:
    world = make(carrier, Plan(sessions=5, hold=float("inf")), quality=Quality(fastest=0.2, slowest=0.2))
    world.run(20)
    assert world.load.stage is Stage.HOLDING
    assert tally(world).outstanding
    world.load.finish()
    world.finished(10)
    found = tally(world)
    assert found.received == found.sent
    assert world.report.good


@pytest.mark.parametrize("ending", [Ending.LCP, Ending.CALL, Ending.NONE])
@pytest.mark.parametrize("carrier", ["pppoe", "l2tp", "pptp"])
def test_sessions_that_come_and_go(carrier: str, ending: Ending) -> None:
    """What was on its way in a session that ended was neither lost nor delivered wrongly."""
    plan = Plan(sessions=20, hold=20, churn=2, churn_by=(ending,))
    world = make(carrier, plan, quality=Quality(fastest=0.05, slowest=0.05))
    world.finished()
    found = tally(world)
    assert world.report.churned > 20
    assert found.cut > 0
    assert not any((found.lost, found.wrong, found.corrupt, found.silent))
    assert found.sessions == 20 + world.report.churned - world.report.away
    assert world.report.good


@pytest.mark.parametrize("carrier", ["pppoe", "l2tp", "pptp"])
def test_power_cuts(carrier: str) -> None:
    world = make(carrier, Plan(sessions=10, hold=5, reconnects=2), quality=Quality(fastest=0.05, slowest=0.05))
    world.finished()
    found = tally(world)
    assert 0 < found.cut < 100
    assert not any((found.lost, found.wrong, found.corrupt, found.silent))
    assert found.sessions == 30


@EVERY
def test_negotiating_anew(carrier: str) -> None:
    world = make(carrier, Plan(sessions=5, hold=float("inf")), quality=Quality(fastest=0.05, slowest=0.05))
    assert world.run(20, until=lambda: world.load.stage is Stage.HOLDING)
    world.run(3)
    subscriber = world.lines[3].subscriber
    assert subscriber is not None
    subscriber.changed(subscriber.call.link, world.rig.now)
    world.run(3)
    world.load.finish()
    world.finished()
    found = tally(world)
    assert 0 < found.cut < 10
    assert not any((found.lost, found.wrong, found.corrupt, found.silent))
    assert found.sessions == 6


def test_a_session_that_goes_deaf_has_lost_what_it_sent() -> None:
    world = make("pppoe", Plan(sessions=4, hold=float("inf")))
    assert world.run(20, until=lambda: world.load.stage is Stage.HOLDING)
    world.run(3)
    deaf = next(iter(world.mirror.flows))
    world.mirror.twist = lambda packet: None if int.from_bytes(packet[16:20], "big") == deaf else packet
    world.run(10)
    (number,) = (number for number, session in world.rig.engine.sessions.items() if session.address == deaf)
    assert world.rig.engine.disconnect(number, world.rig.now)
    world.run(1)
    found = tally(world)
    # 50 a second, of which those of the last second or two are cut.
    assert 50 <= found.cut <= 102
    assert 395 <= found.lost <= 455
    assert not found.silent
    world.load.finish()
    world.finished()
    assert not world.report.good


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("carrier", ["pppoe", "l2tp", "pptp", "mppe"])
def test_on_a_bad_wire_all_is_accounted_for(carrier: str, seed: int) -> None:
    chance = random.Random(seed)
    world = make(carrier, Plan(sessions=10, hold=10), seed=seed, rate=300)
    assert world.run(60, until=lambda: world.load.stage is Stage.HOLDING)
    loss, double = chance.choice((0, 0.05)), chance.choice((0, 0.1))
    world.channel.quality = Quality(loss=loss, double=double, slowest=chance.choice((0.001, 0.2)))
    world.finished()
    found = tally(world)
    assert not found.outstanding
    assert not any((found.wrong, found.corrupt, found.silent))
    if not loss:
        assert found.lost == 0 or carrier == "mppe"
    else:
        assert 0.05 < found.lost / found.sent < 0.2 or carrier == "mppe"
    # MPPE takes nothing twice.
    assert bool(found.repeated) == (bool(double) and carrier != "mppe")


@pytest.mark.parametrize("addressed", [True, False])
@EVERY
def test_replies_in_each_other_s_sessions(carrier: str, addressed: bool) -> None:
    world = make(carrier, Plan(sessions=4, hold=float("inf")))
    assert world.run(20, until=lambda: world.load.stage is Stage.HOLDING)
    world.run(1)
    mirror = world.mirror
    one, other, *_ = mirror.flows
    begun = tally(world).sent

    def swap(packet: bytes) -> bytes | None:
        address = int.from_bytes(packet[16:20], "big")
        there = {one: other, other: one}.get(address)
        if there is None:
            return packet
        if not addressed:
            packet = resum(packet[:16] + there.to_bytes(4, "big") + packet[20:])
        mirror.flows[there].spec.send(b"\x00\x21" + packet)
        return None

    mirror.twist = swap
    world.run(2)
    world.load.finish()
    world.finished()
    found = tally(world)
    assert found.wrong == found.lost == pytest.approx((found.sent - begun) / 2, abs=2)
    assert not any((found.corrupt, found.stale, found.cut))
    numbers = {line.subscriber.address: number for number, line in world.lines.items() if line.subscriber}
    pair = (numbers[one], numbers[other])
    assert {(stray.subscriber, stray.owner) for stray in found.strays} == {pair, pair[::-1]}
    assert not world.report.good


def test_too_large_for_the_sessions() -> None:
    world = make("pppoe", Plan(sessions=3, hold=1), size=1493)
    world.finished()
    assert tally(world).unable == {"packets have 1492 octets": 3}
    assert not world.report.good


def test_all_sessions_have_failed() -> None:
    world = make("pppoe", Plan(sessions=3, hold=5), password=b"wrong")
    world.finished(20)
    assert not tally(world).sent
    assert not world.report.good


# The command line.


def chosen(*words: str) -> Setup:
    return setup(parser().parse_args(["pppoe", "--interface", "eth0", *words]))


def test_what_is_asked_for() -> None:
    data = chosen("--traffic", "1400@2.5", "--traffic-to", "192.0.2.7").data
    assert data is not None
    assert (data.size, data.rate, data.target) == (1400, 2.5, IPv4Address("192.0.2.7"))
    runs = set()
    for _ in range(3):
        data = chosen("--traffic", "56@1000000").data
        assert data is not None
        assert data.target is None
        runs.add(data.run)
    assert len(runs) > 1
    assert chosen().data is None


@pytest.mark.parametrize("word", ["55@1", "65536@1", "64@0", "64@-1", "64@inf", "64@nan", "64", "@1", "64@", "x@1", ""])
def test_what_is_no_traffic(word: str) -> None:
    with pytest.raises(SystemExit):
        chosen("--traffic", word)


@pytest.mark.parametrize("other", [("--ping", "192.0.2.1"), ("--tun",)])
def test_one_kind_of_traffic_at_a_time(other: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        chosen("--traffic", "64@1", *other)


def test_a_target_without_traffic() -> None:
    with pytest.raises(UsageError):
        chosen("--traffic-to", "192.0.2.1")


def test_a_host_answers_with_what_it_was_sent() -> None:
    """The test's own host, against a packet that is worked out by hand."""
    packet = resum(b"\x45\0\0\x1e\0\0\x40\0\x40\x01\0\0\x0a\0\0\1\x0a\0\0\2\x08\0\0\0\0\1\0\2hi")
    reply = echo_reply(packet)
    assert reply[12:20] == packet[16:20] + packet[12:16]
    assert reply == resum(reply)
    assert reply[20:22] + reply[24:] == b"\0\0" + packet[24:]
