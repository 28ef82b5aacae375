"""npppysim's LAC against the LNS: calls over tunnels, proxy authentication, sequence numbers, and ends (RFC 2661)."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any

import pytest

from npppy.config.model import AuthMethod
from npppy.l2tp import causes, codec
from npppy.l2tp.codec import Attr, Message, Type, u16, u32
from npppy.l2tp.tunnel import Tunnel
from npppy.ppp.cause import Cause
from npppy.sim.l2tp import Lac, LacCall
from npppy.sim.load import Ending, Plan, Stage

from .ppp_pair import Quality
from .sim_world import L2tpWorld

HOLDING = Stage.HOLDING
SECRET = {"secrets": ((None, "hush"),)}


def holding(world: L2tpWorld, seconds: float = 30) -> None:
    assert world.run(seconds, until=lambda: world.load.stage is HOLDING), world.load.stage


def calls(world: L2tpWorld) -> list[LacCall]:
    found = [call for tunnel in world.lac.tunnels.values() for call in tunnel.calls.values()]
    return [call for call in found if isinstance(call, LacCall)]


def data(datagrams: list[tuple[int, bytes]]) -> dict[tuple[int, int], list[codec.Data]]:
    """Headers of data messages, by tunnel and session of their recipient."""
    found = defaultdict(list)
    for _, datagram in datagrams:
        if datagram[0] < 0x80:
            header = codec.decode_data(datagram)
            found[header.tunnel_id, header.session_id].append(header)
    return found


def frames(datagrams: list[tuple[int, bytes]]) -> list[bytes]:
    """PPP frames, from their Protocol on."""
    heads = ((datagram, codec.decode_data(datagram)) for _, datagram in datagrams if datagram[0] < 0x80)
    return [datagram[head.start + 2 : head.end] for datagram, head in heads]


def messages(datagrams: list[tuple[int, bytes]], kind: Type) -> list[tuple[codec.Control, Message]]:
    found = []
    for _, datagram in datagrams:
        if datagram[0] >= 0x80 and (packet := codec.decode_control(datagram)).body:
            message = codec.decode_message(packet.body, b"hush")
            if message.type == kind:
                found.append((packet, message))
    return found


@pytest.mark.parametrize("ending", Ending)
@pytest.mark.parametrize("tunnels", [1, 7, 100])
def test_all_come_up_and_go(tunnels: int, ending: Ending) -> None:
    world = L2tpWorld(Plan(sessions=100, ending=ending, hold=1), tunnels=tunnels, pings=2)
    holding(world)
    assert world.report.good
    assert (world.report.up, world.report.pings_answered) == (100, 200)
    assert len({line.subscriber.address for line in world.lines.values() if line.subscriber}) == 100
    assert len(world.lns.tunnels) == len(world.lac.tunnels) == tunnels
    spread = {len(tunnel.calls) for tunnel in world.lns.tunnels.values()}
    assert spread <= {100 // tunnels, -(-100 // tunnels)}
    world.finished()
    assert not world.report.failed
    assert not world.report.lost
    # An LNS that was not told finds out by itself.
    world.run(60)
    world.nothing_left()
    assert sorted(world.events) == sorted((event, n) for n in range(1, 101) for event in ("up", "down"))
    if ending is not Ending.NONE:
        assert not world.lac.service.drops
        # All ended by CDN, before the tunnels did.
        ended = messages(world.up_datagrams, Type.CDN)
        assert len({(packet.tunnel_id, packet.session_id) for packet, _ in ended}) == 100


def test_each_is_who_it_says() -> None:
    world = L2tpWorld(Plan(sessions=10, first=41, hold=5))
    holding(world)
    found = {session.call.link.caller.calling_number: session for session in world.rig.engine.sessions.values()}
    for number in range(41, 51):
        session, line = found[f"line {number}"], world.lines[number]
        assert line.subscriber is not None
        assert session.address == line.subscriber.address
        assert session.call.link.caller.called_number == f"0800-{number}"
        facts = line.dial.facts()
        assert facts["concentrator"] == "192.0.2.1:1701"
        assert facts["local_port"] == 50000
        assert session.call.id == facts["peer_session_id"]  # type: ignore[attr-defined]
        assert session.call.peer_id == facts["session_id"]  # type: ignore[attr-defined]
        assert session.call.tunnel.id == facts["peer_tunnel_id"]  # type: ignore[attr-defined]
        assert session.call.tunnel.peer_id == facts["tunnel_id"]  # type: ignore[attr-defined]
    world.finished()
    world.nothing_left()


def test_tunnels_take_the_ports_in_turn() -> None:
    world = L2tpWorld(Plan(sessions=12, hold=1), tunnels=6, ports=3)
    holding(world)
    ports = Counter(tunnel.endpoint.peer_port for tunnel in world.lns.tunnels.values())
    assert ports == {50000: 2, 50001: 2, 50002: 2}
    world.finished()
    world.nothing_left()


def test_tunnels_come_when_their_first_call_does() -> None:
    world = L2tpWorld(Plan(sessions=20, rate=2, hold=1), tunnels=5)
    world.run(0.1)
    assert [len(world.lac.tunnels), len(world.lns.tunnels)] == [1, 1]
    world.run(1)
    assert len(world.lac.tunnels) == 3
    holding(world)
    assert len(world.lac.tunnels) == 5
    world.finished()
    world.nothing_left()


def test_hidden_avps_and_a_secret() -> None:
    options = {**SECRET, "hidden_avps": True}
    world = L2tpWorld(Plan(sessions=20), tunnels=3, lac=options, rig={"carrier": options})
    world.finished()
    assert world.report.good
    assert not any(b"line 7" in datagram for _, datagram in world.up_datagrams)
    assert all(message.fault is None for _, message in messages(world.up_datagrams, Type.ICRQ))
    world.nothing_left()


# What comes first.


def test_data_comes_behind_its_iccn() -> None:
    """A full control window holds an ICCN back; what came before it would be lost, and repeated after seconds."""
    world = L2tpWorld(Plan(sessions=300, window=300), quality=Quality(fastest=0.02, slowest=0.02))
    held = 0

    def done() -> bool:
        nonlocal held
        held = max(held, sum(map(len, world.lac._held.values())))
        return world.done

    assert world.run(60, until=done)
    assert world.report.good
    assert held > 20
    connected: set[tuple[int, int]] = set()
    for sent in world.up_datagrams:
        connected |= {(packet.tunnel_id, packet.session_id) for packet, _ in messages([sent], Type.ICCN)}
        assert data([sent]).keys() <= connected
    assert len(connected) == 300
    assert not any(service.drops for service in world.lns.services.values())
    world.nothing_left()


def test_data_of_the_lns_tells_that_it_has_the_iccn(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come in one batch with the acknowledgement that let the ICCN go, before anybody has looked at that."""
    monkeypatch.setattr(Lac, "hold", lambda self, call, now: None)
    world = L2tpWorld(Plan(sessions=5))
    world.finished()
    assert world.report.good


# Sequence numbers (section 5.4).


def numbers(count: int, sequenced: bool) -> list[int]:
    return list(range(count)) if sequenced else [-1] * count


@pytest.mark.parametrize("lns", [False, True])
@pytest.mark.parametrize("required", [False, True])
def test_sequence_numbers(required: bool, lns: bool) -> None:
    world = L2tpWorld(
        Plan(sessions=10, hold=1),
        tunnels=2,
        wishes={"sequencing": required},
        rig={"carrier": {"data_use_seq": lns}},
        pings=3,
    )
    world.finished()
    assert world.report.good
    assert not world.lac.service.drops
    for headers in data(world.down_datagrams).values():
        assert [header.ns for header in headers] == numbers(len(headers), lns or required)
    for headers in data(world.up_datagrams).values():
        found = [header.ns for header in headers]
        if not required:
            # The LAC does as the LNS does, and so begins without.
            assert found.pop(0) == -1
        assert found == numbers(len(found), lns or required)
    world.nothing_left()


def one_call(**more: Any) -> tuple[L2tpWorld, LacCall]:
    world = L2tpWorld(Plan(sessions=1, hold=float("inf")), rig={"carrier": {"data_use_seq": False}}, **more)
    holding(world)
    (call,) = calls(world)
    world.up_datagrams.clear()
    return world, call


def echo(world: L2tpWorld, call: LacCall, ns: int) -> int | None:
    """What the subscriber answers to an LCP Echo-Request with this Ns has this one; None: no answer."""
    assert world.lines[1].subscriber is not None
    magic = world.lines[1].subscriber.peer_magic.to_bytes(4, "big")
    return send(world, call, ns, b"\xff\x03\xc0\x21\x09\x01\x00\x08" + magic)


def send(world: L2tpWorld, call: LacCall, ns: int, frame: bytes) -> int | None:
    """The Ns of the answer to a frame of the LNS's."""
    flags, numbers = (0x4802, u16(ns) + bytes(2)) if ns >= 0 else (0x4002, b"")
    ids = u16(call.tunnel.id) + u16(call.id)
    datagram = u16(flags) + u16(8 + len(numbers) + len(frame)) + ids + numbers + frame
    world.up_datagrams.clear()
    world.lac.receive(world.lac.service, call.tunnel.endpoint, datagram, world._up, world.rig.now)
    ((headers),) = data(world.up_datagrams).values() or ([],)
    return headers[0].ns if headers else None


def test_the_lns_switches_numbers_on_and_off() -> None:
    world, call = one_call()
    assert echo(world, call, -1) == -1
    assert echo(world, call, 0) == 0
    assert echo(world, call, 1) == 1
    assert echo(world, call, -1) == -1
    # Where it left off.
    assert echo(world, call, 2) == 2
    assert not world.lac.service.drops
    assert echo(world, call, 5) == 3
    assert world.lac.service.drops == {"missing": 2}
    assert echo(world, call, 4) is None
    assert world.lac.service.drops == {"missing": 2, "late": 1}
    # IP does not mind; what is older than that is of another time.
    flow = world.lines[1].traffic
    assert flow is not None
    before = flow.counters().in_packets
    for ns, count in ((4, 1), (0x10000 + 6 - 65, 1), (5, 2)):
        send(world, call, ns, b"\x00\x21" + bytes(20))
        assert flow.counters().in_packets == before + count
    call._expected = 0xFFFF
    assert echo(world, call, 0xFFFF) == 4
    assert echo(world, call, 0) == 5


def test_numbers_that_are_required_must_be_there() -> None:
    world, call = one_call(wishes={"sequencing": True})
    before = call._expected
    assert echo(world, call, before) is not None
    assert echo(world, call, -1) is None
    assert world.lac.service.drops == {"unsequenced": 1}


# In place of the LNS (section 4.4.5).


@pytest.mark.parametrize("method", [AuthMethod.CHAP, AuthMethod.PAP])
def test_proxy_authentication(method: AuthMethod) -> None:
    world = L2tpWorld(
        Plan(sessions=20, hold=20), wishes={"proxy": method}, rig={"carrier": {"accept_dialin": True}}, pings=1
    )
    holding(world)
    assert world.report.good
    # Neither LCP nor a login was on the way; only the LNS's answers, and echoes.
    assert not any(frame[:3] == b"\xc0\x21\x01" for frame in frames(world.up_datagrams + world.down_datagrams))
    assert not any(frame[:2] in (b"\xc2\x23", b"\xc0\x23") for frame in frames(world.up_datagrams))
    assert sum(frame[:2] in (b"\xc2\x23", b"\xc0\x23") for frame in frames(world.down_datagrams)) == 20
    # Both keep to what was negotiated: echoes find their magic numbers right.
    world.run(15)
    assert not world.report.lost
    world.finished()
    world.nothing_left()


@pytest.mark.parametrize("method", [AuthMethod.CHAP, AuthMethod.PAP])
@pytest.mark.parametrize(
    "rig",
    [
        {"carrier": {"force_lcp_renegotiation": True}},
        {"mru": 1300},
        {"authentication_methods": (AuthMethod.MSCHAPV2,)},
    ],
    ids=str,
)
def test_the_lns_negotiates_anew(method: AuthMethod, rig: dict[str, Any]) -> None:
    rig = {**rig, "carrier": {"accept_dialin": True, **rig.get("carrier", {})}}
    world = L2tpWorld(Plan(sessions=20, hold=1), wishes={"proxy": method}, rig=rig, pings=1)
    holding(world)
    assert world.report.good
    requests = sum(frame[:3] == b"\xc0\x21\x01" for frame in frames(world.down_datagrams))
    assert requests >= 20
    assert max(world.report.setup_times) < 1
    world.finished()
    world.nothing_left()


def test_an_answer_that_was_lost_is_asked_for() -> None:
    """The subscriber goes on where the LAC stopped: its Response is repeated until there is an answer."""
    world = L2tpWorld(
        Plan(sessions=1, hold=1), wishes={"proxy": AuthMethod.CHAP}, rig={"carrier": {"accept_dialin": True}}
    )
    down = world._down

    def lossy(endpoint: Any, datagram: bytes) -> None:
        if datagram[0] < 0x80 and b"\xc2\x23\x03" in datagram and world.rig.now < 1002:
            return
        down(endpoint, datagram)

    world._down = lossy  # type: ignore[method-assign]
    holding(world)
    assert world.report.good
    # What the LNS has begun meanwhile takes another restart timer.
    assert 3 <= world.report.setup_times[0] < 7
    world.finished()
    world.nothing_left()


# Failures, and their reasons.


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"password": b"wrong"}, "authentication failed"),
        (
            {
                "password": b"wrong",
                "wishes": {"proxy": AuthMethod.CHAP},
                "rig": {"carrier": {"accept_dialin": True}},
            },
            "authentication failed",
        ),
        (
            {"wishes": {"proxy": AuthMethod.CHAP}},
            "CDN received: administrative reasons (a LAC's LCP is not wanted (l2tp-accept-dialin no))",
        ),
        (
            {"lac": SECRET},
            "StopCCN received: not authorized (the peer wants tunnel authentication: no l2tp-secret)",
        ),
        ({"lac": SECRET, "rig": {"carrier": {"secrets": ((None, "other"),)}}}, "tunnel authentication failed"),
        ({"quality": Quality(loss=1.0)}, "not established within 31 s"),
    ],
)
def test_reasons(made: dict[str, Any], reason: str) -> None:
    world = L2tpWorld(Plan(sessions=3), **made)
    world.finished()
    assert world.report.failed == {reason: 3}
    assert not world.report.good
    world.run(60)
    world.nothing_left()


def test_a_session_limit_is_told_by_the_cdn() -> None:
    world = L2tpWorld(Plan(sessions=10, hold=5), tunnels=2, rig={"carrier": {"session_limit": 3}})
    holding(world)
    assert world.report.up == 6
    assert world.report.failed == {"CDN received: no facilities now (too many sessions)": 4}
    world.finished()
    world.nothing_left()


def test_an_lns_that_does_not_reply_to_calls() -> None:
    world = L2tpWorld(Plan(sessions=3), options={"negotiation_timeout": 5})
    world.lns.incoming = lambda tunnel, message, now: None  # type: ignore[method-assign]
    world.finished()
    assert world.report.failed == {"no ICRP": 3}
    cdns = messages(world.up_datagrams, Type.CDN)
    assert [message.avps[Attr.RESULT_CODE][:2] for _, message in cdns] == [u16(10)] * 3
    world.nothing_left()


def test_what_is_out_of_place_ends_the_call() -> None:
    world, call = one_call()
    (tunnel,) = world.lns.tunnels.values()
    tunnel.send(call.id, Type.ICCN, [(Attr.TX_CONNECT_SPEED, u32(1)), (Attr.FRAMING_TYPE, u32(1))], world.rig.now)
    world.run(1)
    assert world.report.lost == {"ICCN out of place": 1}
    assert not world.rig.engine.sessions


def test_sli_is_taken() -> None:
    world, call = one_call()
    (tunnel,) = world.lns.tunnels.values()
    tunnel.send(call.id, Type.SLI, [(Attr.ACCM, bytes(10))], world.rig.now)
    world.run(1)
    assert not world.report.lost


@pytest.mark.parametrize("kind", [Type.ICRQ, Type.OCRQ])
def test_subscribers_take_no_calls(kind: Type) -> None:
    world, _ = one_call()
    (tunnel,) = world.lns.tunnels.values()
    avps = [(attribute, u32(1)) for attribute in codec.REQUIRED[kind] if attribute is not Attr.ASSIGNED_SESSION_ID]
    tunnel.send(0, kind, [(Attr.ASSIGNED_SESSION_ID, u16(4711)), *avps], world.rig.now)
    world.run(1)
    ((packet, message),) = messages(world.up_datagrams, Type.CDN)
    assert packet.session_id == 4711
    assert causes.read_result(message.avps[Attr.RESULT_CODE], stop=False)[0] == causes.CDN_PERMANENT
    assert world.lac.service.drops == {"calls-of-the-lns": 1}
    assert world.report.up == 1


# Ends.


def test_ended_by_the_lns_is_lost() -> None:
    world = L2tpWorld(Plan(sessions=10, hold=60), tunnels=3)
    holding(world)
    engine = world.rig.engine
    assert engine.disconnect(0, world.rig.now)
    victim = engine.sessions[1]
    victim.abandon(Cause.ADMIN_RESET, "cleared", world.rig.now)
    world.run(5)
    assert world.report.lost == {
        "terminated by the concentrator": 1,
        "CDN received: administrative reasons": 1,
    }
    world.finished()
    world.nothing_left()


def test_a_tunnel_that_is_stopped_takes_its_calls_along() -> None:
    world = L2tpWorld(Plan(sessions=12, hold=60), tunnels=4)
    holding(world)
    victims = list(world.lns.tunnels.values())[:2]
    world.lns.stop(victims, "an operator wants it so", Cause.ADMIN_RESET, world.rig.now)
    world.run(1)
    assert world.report.lost == {"StopCCN received: cleared (an operator wants it so)": 6}
    assert len(world.load.lines) == 6
    world.finished()
    assert world.report.good
    world.nothing_left()


def test_an_lns_that_vanishes_is_missed() -> None:
    world = L2tpWorld(Plan(sessions=6, hold=float("inf")), tunnels=2, options={"lcp_keepalive": False})
    holding(world)
    world.channel.quality = Quality(loss=1.0)
    world.run(100)
    assert world.report.lost == {"the peer does not answer": 6}
    world.finished(1)
    world.run(100)
    world.nothing_left()


def test_calls_that_come_later_have_a_new_tunnel() -> None:
    world = L2tpWorld(Plan(sessions=20, rate=2, hold=1))
    world.run(4)
    (tunnel,) = world.lns.tunnels.values()
    world.lns.stop([tunnel], "once", Cause.ADMIN_RESET, world.rig.now)
    holding(world)
    # One was on its way.
    assert world.report.up + world.report.failed.total() == 20
    assert set(world.report.lost) | set(world.report.failed) == {"StopCCN received: cleared (once)"}
    assert (world.report.lost.total(), world.report.failed.total()) == (8, 1)
    assert len(messages(world.up_datagrams, Type.SCCRQ)) == 2
    world.finished()
    world.nothing_left()


@pytest.mark.parametrize("after", [0.0, 0.03, 0.06, 0.1, 0.2])
@pytest.mark.parametrize("ending", [Ending.LCP, Ending.CALL])
def test_stopped_in_the_middle(after: float, ending: Ending) -> None:
    plan = Plan(sessions=200, window=20, ending=ending)
    world = L2tpWorld(plan, quality=Quality(fastest=0.01, slowest=0.02), tunnels=10)
    world.run(after)
    world.load.stop()
    world.finished(15)
    assert not world.report.good
    assert world.report.up + world.report.failed["interrupted"] == world.load.started < 200
    world.run(100)
    world.nothing_left()


def test_no_session_id_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tunnel, "new_id", lambda tunnel: 0 if tunnel.calls else 1)
    world = L2tpWorld(Plan(sessions=3))
    world.finished()
    assert world.report.failed == {"no tunnel or session id left": 2}
    assert world.report.up == 1
    world.nothing_left()


# Bad networks, and worse ones.


@pytest.mark.parametrize("seed", range(8))
def test_on_a_bad_network_all_come_up_or_fail_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    quality = Quality(
        loss=chance.uniform(0, 0.15), double=chance.uniform(0, 0.2), slowest=chance.choice((0.001, 0.1, 0.5))
    )
    proxy = chance.choice((None, AuthMethod.CHAP, AuthMethod.PAP))
    world = L2tpWorld(
        Plan(sessions=40, ending=chance.choice(list(Ending))),
        seed=seed,
        quality=quality,
        tunnels=chance.choice((1, 5, 40)),
        wishes={"proxy": proxy, "sequencing": chance.random() < 0.5},
        rig={"carrier": {"accept_dialin": True, "data_use_seq": chance.random() < 0.5}},
        pings=1,
    )
    world.finished()
    report = world.report
    assert report.up + report.failed.total() == 40
    assert report.up >= 25
    assert not report.pings_wrong
    assert not report.malformed
    world.channel.quality = Quality()
    world.run(200)
    world.nothing_left()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_does_not_raise(seed: int) -> None:
    """Datagrams of a real LNS, some of them broken."""
    chance = random.Random(seed)
    world = L2tpWorld(Plan(sessions=30, hold=1), tunnels=3)
    receive = world.lac.receive

    def breaking(service: Any, endpoint: Any, datagram: bytes, transmit: Any, now: float) -> None:
        broken = bytearray(datagram)
        if chance.random() < 0.2:
            for _ in range(chance.randint(1, 4)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            if chance.random() < 0.3:
                del broken[chance.randrange(len(broken)) :]
        receive(service, endpoint, bytes(broken), transmit, now)

    world.lac.receive = breaking  # type: ignore[method-assign]
    world.finished()
    assert world.report.up + world.report.failed.total() == 30
    assert world.lac.service.drops
