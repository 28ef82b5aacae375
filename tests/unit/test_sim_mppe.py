"""npppysim's subscribers that encrypt, by every carrier, against sessions that do, may or must."""

from __future__ import annotations

from typing import Any

import pytest

from npppy.config.model import AuthMethod, Mppe
from npppy.l2tp import codec as l2tp
from npppy.ppp.mppe import Mode
from npppy.pptp import gre
from npppy.sim.load import Plan, Stage

from .ppp_pair import Quality
from .sim_world import Bed, L2tpWorld, PptpWorld, World

NO, YES, REQUIRED = Mppe
MSCHAP = {"authentication_methods": (AuthMethod.MSCHAPV2,)}
WORLDS: dict[str, type[World] | type[L2tpWorld] | type[PptpWorld]] = {
    "pppoe": World, "l2tp": L2tpWorld, "pptp": PptpWorld
}  # fmt: skip


def make(carrier: str, plan: Plan, theirs: dict[str, Any], ours: dict[str, Any], **rest: Any) -> Bed:
    """*theirs*: the subscribers' options; *ours*: the concentrator's."""
    return WORLDS[carrier](plan, options=MSCHAP | theirs, rig=MSCHAP | ours, **rest)


def protocols(world: Bed) -> set[int]:
    """Of all frames that went over the wire, either way."""
    if isinstance(world, PptpWorld):
        packets = [(packet, gre.decode(packet)) for packet in world.up_packets + world.down_packets]
        frames = [gre.frame(packet, header) for packet, header in packets if header.sequence >= 0]
    elif isinstance(world, L2tpWorld):
        datagrams = [datagram for _, datagram in world.up_datagrams + world.down_datagrams if datagram[0] < 0x80]
        frames = [datagram[l2tp.decode_data(datagram).start + 2 :] for datagram in datagrams]
    else:
        assert isinstance(world, World)
        frames = [frame[20:] for frame in world.up_frames + world.down_frames if frame[12:14] == b"\x88\x64"]
    return {int.from_bytes(frame[:2], "big") for frame in frames}


def holding(world: Bed, seconds: float = 60) -> None:
    assert world.run(seconds, until=lambda: world.load.stage in (Stage.HOLDING, Stage.DONE)), world.load.stage


@pytest.mark.parametrize("carrier", WORLDS)
@pytest.mark.parametrize("ours", Mppe)
@pytest.mark.parametrize("theirs", Mppe)
def test_who_wants_what(carrier: str, theirs: Mppe, ours: Mppe) -> None:
    world = make(carrier, Plan(sessions=5, hold=1), {"mppe": theirs}, {"mppe": ours}, pings=3)
    holding(world)
    clear = 0x21 in protocols(world)
    encrypted = 0xFD in protocols(world)
    if NO not in (theirs, ours):
        assert (clear, encrypted) == (False, True)
        assert world.report.good
        assert world.report.pings_answered == 15
    elif REQUIRED in (theirs, ours):
        assert (clear, encrypted) == (False, False)
        assert world.report.up == 0
        assert world.report.failed.total() == 5
    else:
        assert (clear, encrypted) == (True, False)
        assert world.report.good
    for line in world.lines.values():
        if line.subscriber is not None and not line.reason:
            assert (line.subscriber.mppe is not None) is encrypted
    world.finished()
    world.run(120)
    world.nothing_left()


@pytest.mark.parametrize(
    ("theirs", "ours", "agreed"),
    [
        ((128, 56, 40), (128, 56, 40), 128),
        ((56, 40), (128, 56, 40), 56),
        ((128, 56, 40), (40,), 40),
        ((128, 40), (56, 40), 40),
        ((128,), (56, 40), 0),
    ],
)
@pytest.mark.parametrize(
    ("their_states", "our_states", "stateful"),
    [
        ("stateless stateful", "stateless stateful", False),
        ("stateful", "stateless stateful", True),
        ("stateless stateful", "stateful", True),
        ("stateful", "stateful", True),
        ("stateless", "stateless", False),
        ("stateless", "stateful", None),
    ],
)
def test_what_is_agreed(
    theirs: tuple[int, ...],
    ours: tuple[int, ...],
    agreed: int,
    their_states: str,
    our_states: str,
    stateful: bool | None,
) -> None:
    world = make(
        "pptp",
        Plan(sessions=2, hold=1),
        {"mppe": REQUIRED, "mppe_key_lengths": theirs, "mppe_key_states": tuple(their_states.split())},
        {"mppe": REQUIRED, "mppe_key_lengths": ours, "mppe_key_states": tuple(our_states.split())},
        pings=600,
    )
    world.run(700, until=lambda: world.load.stage is Stage.HOLDING)
    if not agreed or stateful is None:
        assert world.report.up == 0
        assert 0xFD not in protocols(world)
    else:
        assert world.report.good
        assert world.report.pings_answered == 1200
        for line in world.lines.values():
            assert line.subscriber is not None
            assert line.subscriber.mppe is not None
            assert line.subscriber.mppe.modes == (Mode(agreed, stateful), Mode(agreed, stateful))
    assert 0x21 not in protocols(world)
    world.finished()
    world.run(120)
    world.nothing_left()


@pytest.mark.parametrize("method", [AuthMethod.CHAP, AuthMethod.PAP])
def test_without_keys(method: AuthMethod) -> None:
    methods = {"authentication_methods": (method,)}
    world = World(Plan(sessions=1), options=methods | {"mppe": YES}, rig=methods | {"mppe": YES}, pings=1)
    world.finished()
    assert world.report.good
    assert 0xFD not in protocols(world)
    world = World(Plan(sessions=1), options=methods | {"mppe": REQUIRED}, rig=methods | {"mppe": YES})
    world.finished()
    assert world.report.failed == {"no encryption: authentication gives no keys": 1}
    world.run(30)
    world.nothing_left()


@pytest.mark.parametrize("carrier", WORLDS)
@pytest.mark.parametrize("state", ["stateless", "stateful"])
def test_lcp_anew(carrier: str, state: str) -> None:
    """The subscriber authenticates itself again, has other keys, and nothing went in the clear meanwhile."""
    states = {"mppe": YES, "mppe_key_states": (state,)}
    world = make(carrier, Plan(sessions=3, hold=60), states, states, pings=40)
    world.run(10)
    for session in list(world.rig.engine.sessions.values()):
        session.changed(session.call.link, world.rig.now)
    world.run(50, until=lambda: world.load.stage is Stage.HOLDING)
    assert world.report.up == 3
    assert not world.report.lost
    assert world.report.pings_answered >= 3 * 38
    assert 0x21 not in protocols(world)
    world.finished()
    world.run(120)
    world.nothing_left()


@pytest.mark.parametrize("carrier", WORLDS)
@pytest.mark.parametrize("state", ["stateless", "stateful"])
def test_on_a_bad_network(carrier: str, state: str) -> None:
    """What is lost takes little along, and nobody stays deaf."""
    # An echo that a ping has overtaken is late and dropped, where there are numbers.
    states = {"mppe": REQUIRED, "mppe_key_states": (state,), "lcp_keepalive": False}
    quality = Quality(loss=0.02, double=0.02, slowest=0.01)
    world = make(carrier, Plan(sessions=10, hold=1), states, states, quality=quality, pings=300)
    assert world.run(400, until=lambda: world.load.stage is Stage.HOLDING)
    assert world.report.up == 10
    assert not world.report.lost
    assert not world.report.pings_wrong
    assert world.report.pings_answered > (2700 if state == "stateless" else 2000)
    assert 0x21 not in protocols(world)
    world.channel.quality = Quality()
    world.finished()
    world.run(200)
    world.nothing_left()
