"""npppysim's PPTP clients against the server: connections, calls, numbers, and ends (RFC 2637)."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from npppy.ppp.cause import Cause
from npppy.pptp import codec, gre
from npppy.pptp.codec import Message, Type
from npppy.pptp.connection import Connection
from npppy.sim.load import Ending, Plan, Stage
from npppy.sim.pptp import CALL_IDS, PnsCall

from .ppp_pair import Quality
from .sim_world import PptpWorld


def holding(world: PptpWorld, seconds: float = 30) -> None:
    assert world.run(seconds, until=lambda: world.load.stage is Stage.HOLDING), world.load.stage


def calls(world: PptpWorld) -> list[PnsCall]:
    return [call for call in world.pns.calls.values() if isinstance(call, PnsCall)]


def messages(octets: bytes, kind: Type) -> list[Message]:
    found, at = [], 0
    while at < len(octets):
        end = codec.split(octets, at)
        message = codec.decode(octets[at:end])
        if message is not None and message.type is kind:
            found.append(message)
        at = end
    return found


def of_clients(world: PptpWorld, kind: Type) -> list[Message]:
    return [message for pipe in world.pipes for message in messages(pipe.sent, kind)]


def of_server(world: PptpWorld, kind: Type) -> list[Message]:
    return [message for pipe in world.pipes for message in messages(pipe.other.sent, kind)]


@pytest.mark.parametrize("ending", Ending)
@pytest.mark.parametrize("tunnels", [1, 7, None])
def test_all_come_up_and_go(tunnels: int | None, ending: Ending) -> None:
    world = PptpWorld(Plan(sessions=100, ending=ending, hold=1), tunnels=tunnels, pings=2)
    holding(world)
    assert world.report.good
    assert (world.report.up, world.report.pings_answered) == (100, 200)
    assert len({line.subscriber.address for line in world.lines.values() if line.subscriber}) == 100
    count = tunnels or 100
    assert len(world.server.connections) == len(world.pns.connections) == count
    spread = {len(connection.calls) for connection in world.server.connections.values()}
    assert spread <= {100 // count, -(-100 // count)}
    world.finished()
    assert not world.report.failed
    assert not world.report.lost
    # A server that was not told finds out by itself, and clients without calls hang up.
    world.run(120)
    world.nothing_left()
    assert sorted(world.events) == sorted((event, n) for n in range(1, 101) for event in ("up", "down"))
    if ending is not Ending.NONE:
        assert not world.pns.drops
        assert not world.pns.service.drops
        # Each asked for the end of its call, and was told of it.
        for kind, found in (
            (Type.CALL_CLEAR_REQUEST, of_clients(world, Type.CALL_CLEAR_REQUEST)),
            (Type.CALL_DISCONNECT_NOTIFY, of_server(world, Type.CALL_DISCONNECT_NOTIFY)),
        ):
            assert len(found) == 100, kind
        assert len(of_clients(world, Type.STOP_REQUEST)) == len(of_server(world, Type.STOP_REPLY)) == count


def test_each_is_who_it_says() -> None:
    world = PptpWorld(Plan(sessions=10, first=41, hold=5))
    holding(world)
    found = {session.call.link.caller.called_number: session for session in world.rig.engine.sessions.values()}
    for number in range(41, 51):
        session, line = found[f"0800-{number}"], world.lines[number]
        assert line.subscriber is not None
        assert session.address == line.subscriber.address
        facts = line.dial.facts()
        assert facts["concentrator"] == "192.0.2.1:1723"
        assert facts["call_id"] == number
        assert session.call.link.caller.text == f"198.51.100.7:{facts['local_port']}"
        assert session.call.id == facts["peer_call_id"]  # type: ignore[attr-defined]
        assert session.call.peer_id == facts["call_id"]  # type: ignore[attr-defined]
    world.finished()
    world.nothing_left()


def test_what_calls_ask_for() -> None:
    world = PptpWorld(Plan(sessions=3), tunnels=1, wishes={"window": 5}, clients={"hostname": "me"})
    world.finished()
    (start,) = of_clients(world, Type.START_REQUEST)
    assert start.text("host_name") == b"me"
    asked = of_clients(world, Type.OUTGOING_CALL_REQUEST)
    assert [message.numbers["call_id"] for message in asked] == [1, 2, 3]
    assert {message.numbers["window"] for message in asked} == {5}
    assert [message.text("phone_number") for message in asked] == [b"0800-1", b"0800-2", b"0800-3"]
    assert [message.numbers["phone_number_length"] for message in asked] == [6, 6, 6]


def test_numbers_on_data() -> None:
    """Each call counts from 0, without a gap, and all that came is acknowledged."""
    world = PptpWorld(Plan(sessions=5, hold=3), pings=20)
    holding(world)
    world.finished()
    for packets in (world.up_packets, world.down_packets):
        found: dict[int, list[int]] = {}
        last: dict[int, int] = {}
        for packet in packets:
            header = gre.decode(packet)
            if header.sequence >= 0:
                found.setdefault(header.call_id, []).append(header.sequence)
            last[header.call_id] = max(last.get(header.call_id, -1), header.acknowledgment)
        assert len(found) == 5
        for numbers in found.values():
            assert numbers == list(range(len(numbers)))
            assert len(numbers) > 20
        # But for what came with the last words.
        assert min(last.values()) > 20


def test_what_comes_at_the_end_of_a_burst_is_acknowledged() -> None:
    world = PptpWorld(Plan(sessions=5, hold=10), options={"lcp_keepalive": False}, rig={"lcp_keepalive": False})
    holding(world)
    world.run(2)
    assert not any(call.window.owes for call in world.pns.calls.values())
    assert not any(call.window.owes for call in world.server.calls.values())


def test_calls_that_come_later_have_a_new_connection() -> None:
    world = PptpWorld(Plan(sessions=20, rate=2, hold=1), tunnels=1)
    world.run(4.25)
    world.server.stop(world.server.connections.values(), "an operator wants it so", Cause.ADMIN_RESET, world.rig.now)
    holding(world)
    assert world.report.up == 20
    assert world.report.lost == {"Stop-Control-Connection-Request received: none": 9}
    assert len(world.pipes) == 2
    world.finished()
    world.nothing_left()


def test_a_connection_comes_when_its_first_call_does() -> None:
    world = PptpWorld(Plan(sessions=20, rate=2, hold=1), tunnels=5)
    world.run(0.1)
    assert len(world.server.connections) == 1
    world.run(1)
    assert len(world.server.connections) == 3
    world.finished()
    assert len(world.pipes) == 5
    world.nothing_left()


# Servers that will not.


def test_nobody_is_there() -> None:
    world = PptpWorld(Plan(sessions=5), tunnels=2)
    world.unreachable = "Connection refused"
    world.finished()
    assert world.report.failed == {"Connection refused": 5}
    world.nothing_left()


def test_too_many_connections_of_one_address() -> None:
    world = PptpWorld(Plan(sessions=5, window=1, hold=1), rig={"carrier": {"peer_limit": 3}})
    holding(world)
    assert world.report.up == 3
    assert world.report.failed == {"the other end has closed the connection": 2}
    world.finished()
    world.nothing_left()


def test_too_many_calls_of_one_connection() -> None:
    world = PptpWorld(Plan(sessions=5, window=1, hold=1), tunnels=1, rig={"carrier": {"session_limit": 3}})
    holding(world)
    assert world.report.up == 3
    assert world.report.failed == {"Outgoing-Call-Reply received: general error, no resource": 2}
    world.finished()
    world.nothing_left()


def test_a_server_that_says_nothing() -> None:
    world = PptpWorld(Plan(sessions=3), tunnels=1)
    world.run(0.0015)
    world.channel.quality = Quality(loss=1.0)
    world.finished(100)
    assert world.report.failed == {"not established within 60 s": 3}


def test_a_server_that_forgets_a_call() -> None:
    world = PptpWorld(Plan(sessions=2), tunnels=1)
    world.server.asked = lambda connection, message, now: None  # type: ignore[method-assign]
    world.finished(100)
    assert world.report.failed == {"no Outgoing-Call-Reply": 2}
    # It has been told that nobody waits for it any more.
    assert len(of_clients(world, Type.CALL_CLEAR_REQUEST)) == 2
    world.nothing_left()


def test_a_server_that_does_not_let_go_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    world = PptpWorld(Plan(sessions=2, hold=1, ending=Ending.CALL))
    holding(world)
    monkeypatch.setattr(Connection, "_about_call", lambda connection, message, now: None)
    world.finished()
    assert not world.report.failed
    assert not world.report.lost
    world.run(10)
    assert not world.pns.calls


def test_calls_to_clients_are_refused() -> None:
    world = PptpWorld(Plan(sessions=1, hold=60))
    holding(world)
    (connection,) = world.server.connections.values()
    connection.send(Type.INCOMING_CALL_REQUEST, call_id=4711)
    connection.send(Type.OUTGOING_CALL_REQUEST, call_id=4712)
    world.run(1)
    (incoming,) = of_clients(world, Type.INCOMING_CALL_REPLY)
    (outgoing,) = of_clients(world, Type.OUTGOING_CALL_REPLY)
    assert (incoming.numbers["peer_call_id"], outgoing.numbers["peer_call_id"]) == (4711, 4712)
    assert incoming.numbers["result"] != 1
    assert outgoing.numbers["result"] != 1
    assert not world.report.lost


def test_what_is_about_lines_is_taken() -> None:
    world = PptpWorld(Plan(sessions=1, hold=60))
    holding(world)
    (connection,) = world.server.connections.values()
    connection.send(Type.SET_LINK_INFO, peer_call_id=1, send_accm=1, receive_accm=2)
    connection.send(Type.WAN_ERROR_NOTIFY, peer_call_id=1, crc=3)
    connection.send(Type.OUTGOING_CALL_REPLY, call_id=9, peer_call_id=1, result=1)
    world.run(1)
    assert not world.report.lost
    assert world.pns.service.drops == {"state": 1}
    (call,) = calls(world)
    assert call.peer_id == next(iter(world.server.calls))


# Call ids.


def test_numbers_that_are_one_call_id() -> None:
    """They are there at the same time, as no run has them: it is refused."""
    world = PptpWorld(Plan(sessions=1, hold=60))
    holding(world)
    told: list[str] = []

    class Owner:
        def connected(self, call: Any, now: float) -> Any:
            raise AssertionError

        def failed(self, reason: str, now: float) -> None:
            told.append(reason)

    world.pns.call(1 + CALL_IDS, "", Owner()).dial(world.rig.now)
    world.run(1)
    assert told == ["no call id left"]
    assert world.report.up == 1


def test_call_ids_are_in_range() -> None:
    world = PptpWorld(Plan(sessions=4, first=CALL_IDS - 1, hold=1))
    holding(world)
    assert {call.id for call in calls(world)} == {65534, 65535, 1, 2}
    world.finished()
    world.nothing_left()


# Data that overtakes the reply.


def test_data_before_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may begin at once, and its reply comes by TCP: nothing is lost, and the answer is of the right call."""
    world = PptpWorld(Plan(sessions=10, hold=1), quality=Quality(fastest=0.01, slowest=0.01))
    deliver = world.channel.deliver
    # GRE is quicker.
    monkeypatch.setattr(world.channel, "deliver", lambda what: deliver(lambda: deliver(what)))
    asked = world.server.asked

    def eager(connection: Connection, message: Message, now: float) -> None:
        asked(connection, message, now)
        # LCP with a code that there is not.
        connection.calls[message.numbers["call_id"]].transmit(b"\xc0\x21\x63\x07\0\x04", now)

    monkeypatch.setattr(world.server, "asked", eager)
    holding(world)
    assert not world.pns.drops
    assert max(world.report.setup_times) < 1
    headers = [(packet, gre.decode(packet)) for packet in world.up_packets]
    assert {header.call_id for _, header in headers} == set(world.server.calls)
    # Code-Reject.
    answers = [header.call_id for packet, header in headers if gre.frame(packet, header)[:3] == b"\xc0\x21\x07"]
    assert sorted(answers) == sorted(world.server.calls)


# Ends.


def test_ended_by_the_server_is_lost() -> None:
    world = PptpWorld(Plan(sessions=10, hold=60))
    holding(world)
    engine = world.rig.engine
    assert engine.disconnect(0, world.rig.now)
    engine.sessions[1].abandon(Cause.ADMIN_RESET, "cleared", world.rig.now)
    world.run(5)
    assert world.report.lost == {
        "terminated by the concentrator": 1,
        "Call-Disconnect-Notify received: administrative reasons": 1,
    }
    world.finished()
    world.nothing_left()


def test_tcp_that_dies_takes_its_calls_along() -> None:
    world = PptpWorld(Plan(sessions=12, hold=60), tunnels=4)
    holding(world)
    pipe = world.pipes[0]
    assert pipe.connection is not None
    pipe.connection.lost("Connection reset by peer", world.rig.now)
    pipe.close()
    world.run(1)
    assert world.report.lost == {"Connection reset by peer": 3}
    assert len(world.rig.engine.sessions) == 9
    world.finished()
    assert world.report.good
    world.nothing_left()


def test_a_server_that_vanishes_is_missed() -> None:
    world = PptpWorld(Plan(sessions=6, hold=float("inf")), tunnels=2, options={"lcp_keepalive": False})
    holding(world)
    world.channel.quality = Quality(loss=1.0)
    world.run(125)
    assert world.report.lost == {"the peer does not answer": 6}


@pytest.mark.parametrize("after", [0.0, 0.03, 0.06, 0.1, 0.2])
@pytest.mark.parametrize("ending", [Ending.LCP, Ending.CALL])
@pytest.mark.parametrize("tunnels", [10, None])
def test_stopped_in_the_middle(after: float, ending: Ending, tunnels: int | None) -> None:
    plan = Plan(sessions=200, window=20, ending=ending)
    world = PptpWorld(plan, quality=Quality(fastest=0.01, slowest=0.02), tunnels=tunnels)
    world.run(after)
    world.load.stop()
    world.finished(15)
    assert not world.report.good
    assert world.report.up + world.report.failed["interrupted"] == world.load.started < 200
    world.run(100)
    world.nothing_left()


# Bad networks, and worse ones.


@pytest.mark.parametrize("seed", range(8))
def test_on_a_bad_network_all_come_up_or_fail_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    quality = Quality(
        loss=chance.uniform(0, 0.15), double=chance.uniform(0, 0.2), slowest=chance.choice((0.001, 0.1, 0.5))
    )
    world = PptpWorld(
        Plan(sessions=40, ending=chance.choice(list(Ending))),
        seed=seed,
        quality=quality,
        tunnels=chance.choice((1, 5, None)),
        rig={"carrier": {"data_reorder": chance.choice((0, 8)), "send_window": chance.random() < 0.5}},
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
    """Packets and messages of a real server, some of them broken."""
    chance = random.Random(seed)
    world = PptpWorld(Plan(sessions=30, hold=1))
    receive = world.pns.receive

    def broken(octets: bytes) -> bytes:
        if chance.random() >= 0.1:
            return octets
        damaged = bytearray(octets)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        return bytes(damaged)

    def breaking(local: bytes, peer: bytes, packet: bytes, now: float) -> None:
        receive(local, peer, broken(packet), now)

    world.pns.receive = breaking  # type: ignore[method-assign]
    world.run(0.0001)
    for pipe in world.pipes:
        take = pipe._take
        pipe._take = lambda octets, take=take: take(broken(octets))  # type: ignore[method-assign, misc]
    world.finished()
    assert world.report.up + world.report.failed.total() == 30
    assert world.pns.drops + world.pns.service.drops
    assert Counter(event for event, _ in world.events)["up"] == world.report.up
