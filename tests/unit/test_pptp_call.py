"""PPTP calls: how they are set up and cleared in every state, and what they carry."""

from __future__ import annotations

import logging
import struct

import pytest

from npppy.ppp.cause import Cause
from npppy.ppp.link import IN, NOBODY, OUT
from npppy.pptp import codec, gre
from npppy.pptp.call import PptpCall
from npppy.pptp.codec import Type
from npppy.pptp.connection import Leg, State
from npppy.pptp.encap import PptpEncap
from npppy.pptp.engine import Engine
from npppy.pptp.gre import ACK_PACKETS
from npppy.pptp.sweeper import ACKS
from npppy.reorder import WAIT
from tests.unit.pppoe_fake import IP_PACKET, LCP_REQUEST, FakePpp
from tests.unit.pptp_net import PAC, PNS, Kernel, Net, call, numbers
from tests.unit.test_pptp_connection import drops, is_clean


def made(leg: Leg) -> PptpCall:
    assert isinstance(leg, PptpCall)
    return leg


# Setting up.


def test_outgoing_call() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection = net.started(pac)
    raw.say(
        Type.OUTGOING_CALL_REQUEST,
        call_id=0x1234,
        serial=7,
        window=3,
        framing=3,
        bearer=3,
        phone_number_length=3,
        phone_number=b"0815",
    )
    reply = raw.hears(Type.OUTGOING_CALL_REPLY).numbers
    assert reply == {
        "call_id": reply["call_id"],
        "peer_call_id": 0x1234,
        "result": 1,
        "error": 0,
        "cause": 0,
        "speed": 10_000_000,
        "window": 64,
        "delay": 0,
        "channel": 0,
    }
    one = made(pac.calls[reply["call_id"]])
    link = one.link
    assert link.tunnel.name == "PPTP"
    assert (link.caller.text, link.caller.called_number) == ("198.51.100.7:40000", "081")
    # The peer's window is not enforced unless told to be.
    assert link.encap == PptpEncap(PAC, PNS, one.id, 0x1234, 0, one.window)
    assert ppp.sessions[0].call is one
    assert str(one) == f"pptp ctrl={connection.id} call={one.id} peer=198.51.100.7:40000"


def test_the_peers_window() -> None:
    net = Net()
    pac = net.pac(send_window=True)
    raw, connection = net.started(pac)
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=1, window=3)
    one = made(connection.calls[1])
    assert (one.link.encap.window, one.window.limit) == (3, 3)
    for _ in range(5):
        one.send(IP_PACKET)
    one.send(LCP_REQUEST)
    assert numbers(net.sent) == [(number, -1) for number in range(4)]
    assert drops(pac) == {"window": 2}


def test_call_ids() -> None:
    """They are neither 0 nor in order, and none returns early; those of peers may be anything."""
    net = Net()
    pac = net.pac()
    raw, connection = net.started(pac)
    seen: list[int] = []
    for number in range(300):
        one = call(raw, connection, number % 3 * 0x7FFF)
        seen.append(one.id)
        raw.say(Type.CALL_CLEAR_REQUEST, call_id=number % 3 * 0x7FFF)
        raw.hears(Type.CALL_DISCONNECT_NOTIFY)
    assert len(set(seen)) == 300
    assert all(1 <= number <= 0xFFFF for number in seen)
    assert seen != sorted(seen)


def test_the_same_id_again() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, one = net.called(pac, 7)
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=7)
    reply = raw.hears(Type.OUTGOING_CALL_REPLY).numbers
    assert (reply["result"], reply["error"], reply["peer_call_id"], reply["call_id"]) == (2, 5, 7, 0)
    assert connection.calls == {7: one}
    assert drops(pac) == {"call-id": 1}
    assert not ppp.sessions[0].ended


def test_several_calls() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, first = net.called(pac, 1)
    second = call(raw, connection, 2)
    made(second).send(LCP_REQUEST)
    assert gre.decode(net.sent[-1][2]).call_id == 2
    raw.say(Type.CALL_CLEAR_REQUEST, call_id=1)
    assert raw.hears(Type.CALL_DISCONNECT_NOTIFY).numbers["call_id"] == first.id
    assert connection.calls == {2: second}
    raw.close()
    net.run(0.1)
    assert [session.ended[0][0] for session in ppp.sessions] == [Cause.USER_REQUEST, Cause.LOST_CARRIER]
    assert is_clean(pac)


def test_session_limit() -> None:
    net = Net()
    pac = net.pac(session_limit=2)
    raw, connection, first = net.called(pac, 1)
    call(raw, connection, 2)
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=3)
    reply = raw.hears(Type.OUTGOING_CALL_REPLY).numbers
    assert (reply["result"], reply["error"], reply["peer_call_id"]) == (2, 4, 3)
    assert drops(pac) == {"session-limit": 1}
    # One that PPP is ending does not count.
    made(first).ending()
    assert pac.services["PPTP"].sessions == 1
    call(raw, connection, 4)
    raw.close()
    net.run(0.1)
    assert is_clean(pac)


def test_no_id_left() -> None:
    net = Net()
    pac = net.pac()
    raw, connection, one = net.called(pac, 1)
    for _ in range(65533):
        pac.new_id()
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=3)
    reply = raw.hears(Type.OUTGOING_CALL_REPLY).numbers
    assert (reply["result"], reply["error"]) == (2, 4)
    # Until one is free again.
    raw.say(Type.CALL_CLEAR_REQUEST, call_id=1)
    raw.hears(Type.CALL_DISCONNECT_NOTIFY)
    assert call(raw, connection, 3).id == one.id


def test_ppp_refuses() -> None:
    net = Net()
    ppp = FakePpp()
    ppp.refuse = True
    pac = net.pac(ppp)
    raw, connection = net.started(pac)
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=3)
    reply = raw.hears(Type.OUTGOING_CALL_REPLY).numbers
    assert (reply["result"], reply["error"], reply["peer_call_id"]) == (2, 4, 3)
    assert not connection.calls
    assert not pac.calls
    assert drops(pac) == {"refused": 1}
    raw.close()
    net.run(0.1)
    assert is_clean(pac)


def test_ppp_sends_and_closes_at_once() -> None:
    """Nothing leaves before the answer, and there is one answer."""
    net = Net()
    ppp = FakePpp()
    ppp.send_first, ppp.close_first = LCP_REQUEST, True
    pac = net.pac(ppp)
    raw, connection = net.started(pac)
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=3)
    reply = raw.hears(Type.OUTGOING_CALL_REPLY).numbers
    assert (reply["result"], reply["error"]) == (2, 6)
    assert not net.sent
    assert not connection.calls


def test_while_shutting_down() -> None:
    net = Net()
    pac = net.pac()
    raw, _ = net.started(pac)
    pac._closing = True
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=3)
    assert raw.hears(Type.OUTGOING_CALL_REPLY).numbers["result"] == 7


def test_incoming_call() -> None:
    net = Net()
    pac = net.pac()
    raw, connection = net.started(pac)
    raw.say(Type.INCOMING_CALL_REQUEST, call_id=0x4711, dialing_number=b"1")
    reply = raw.hears(Type.INCOMING_CALL_REPLY).numbers
    assert (reply["result"], reply["error"], reply["peer_call_id"], reply["call_id"]) == (3, 0, 0x4711, 0)
    raw.say(Type.INCOMING_CALL_CONNECTED, peer_call_id=0)
    assert not raw.messages()
    assert not connection.calls
    assert drops(pac) == {"incoming": 1, "call": 1}


# Clearing: accel-ppp's CVE-2021-42054 and CVE-2021-42870.


def clear(call_id: int) -> bytes:
    return codec.encode(Type.CALL_CLEAR_REQUEST, call_id=call_id)


def ask(call_id: int) -> bytes:
    return codec.encode(Type.OUTGOING_CALL_REQUEST, call_id=call_id)


def test_clear_before_the_connection() -> None:
    net = Net()
    pac = net.pac()
    raw, _ = net.raw(pac)
    raw.send(clear(7))
    net.run(0.1)
    assert raw.ended
    assert not raw.messages()
    assert is_clean(pac)


def test_clear_without_a_call() -> None:
    net = Net()
    pac = net.pac()
    raw, connection = net.started(pac)
    for call_id in (0, 7, 0xFFFF):
        raw.send(clear(call_id))
    net.run(0.1)
    assert not raw.messages()
    assert connection.state is State.ESTABLISHED
    assert drops(pac) == {"call": 3}


def test_clear_with_the_request() -> None:
    """In one segment: the call is answered, and cleared."""
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, _ = net.started(pac)
    raw.send(ask(7) + clear(7) + clear(7) + ask(7) + clear(7))
    net.run(0.1)
    kinds = [Type.OUTGOING_CALL_REPLY, Type.CALL_DISCONNECT_NOTIFY]
    messages = raw.messages()
    assert [message.type for message in messages] == kinds * 2
    assert messages[1].numbers["call_id"] == messages[0].numbers["call_id"]
    assert [session.ended for session in ppp.sessions] == [[(Cause.USER_REQUEST, "Call-Clear-Request received")]] * 2
    assert drops(pac) == {"call": 1}
    assert not pac.calls


def test_clear_of_a_refused_call() -> None:
    net = Net()
    ppp = FakePpp()
    ppp.refuse = True
    pac = net.pac(ppp)
    raw, _ = net.started(pac)
    raw.send(ask(7) + clear(7))
    net.run(0.1)
    assert raw.hears(Type.OUTGOING_CALL_REPLY).numbers["result"] == 2
    assert drops(pac) == {"refused": 1, "call": 1}


def test_clear() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, one = net.called(pac, 7)
    raw.say(Type.CALL_CLEAR_REQUEST, call_id=7)
    notify = raw.hears(Type.CALL_DISCONNECT_NOTIFY)
    assert notify.numbers == {"call_id": one.id, "result": 4, "error": 0, "cause": 0}
    assert notify.text("statistics") == b""
    assert ppp.sessions[0].ended == [(Cause.USER_REQUEST, "Call-Clear-Request received")]
    raw.say(Type.CALL_CLEAR_REQUEST, call_id=7)
    assert not raw.messages()
    assert made(one).upper is NOBODY
    # What still has the call, cannot do anything with it.
    made(one).send(LCP_REQUEST)
    made(one).close(Cause.USER_REQUEST)
    made(one).ending()
    net.run(1)
    assert not raw.messages()
    assert not net.sent
    # The id is free again, and not for data of the old one.
    again = call(raw, connection, 7)
    net.deliver(PNS, PAC, gre.encode(one.id, 1, -1, LCP_REQUEST))
    assert dict(pac.drops) == {"session": 1}
    assert again.id != one.id
    raw.close()
    net.run(0.1)
    assert is_clean(pac)


def test_clear_after_ours() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, _, one = net.called(pac, 7)
    made(one).close(Cause.IDLE_TIMEOUT)
    raw.say(Type.CALL_CLEAR_REQUEST, call_id=7)
    assert raw.hears(Type.CALL_DISCONNECT_NOTIFY).numbers["result"] == 3
    assert not ppp.sessions[0].ended
    assert drops(pac) == {"call": 1}


@pytest.mark.parametrize("waiting", [True, False])
def test_clear_after_the_connection(waiting: bool) -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, _ = net.called(pac, 7)
    if waiting:
        pac.stop([connection], "cleared", Cause.ADMIN_RESET, net.now)
    else:
        raw.send(codec.encode(Type.STOP_REQUEST, reason=1))
    raw.send(clear(7) + ask(7) + clear(7))
    net.run(0.1)
    assert [message.type for message in raw.messages()] == [Type.STOP_REQUEST if waiting else Type.STOP_REPLY]
    net.run(10)
    assert is_clean(pac)
    assert [len(session.ended) for session in ppp.sessions] == [1]


def test_clear_from_another_connection() -> None:
    net = Net()
    pac = net.pac()
    _, _, one = net.called(pac, 7)
    other, _ = net.started(pac, port=40001)
    other.say(Type.CALL_CLEAR_REQUEST, call_id=7)
    other.say(Type.CALL_CLEAR_REQUEST, call_id=one.id)
    other.say(Type.SET_LINK_INFO, peer_call_id=one.id)
    assert not other.messages()
    assert drops(pac) == {"call": 3}
    assert pac.calls[one.id] is one


class Reentrant(FakePpp):
    """PPP that uses the call as it is told that it has gone."""

    def open(self, call: PptpCall, now: float):  # type: ignore[no-untyped-def, override]
        session = super().open(call, now)
        assert session is not None

        def gone(cause: Cause, reason: str, now: float) -> None:
            session.ended.append((cause, reason))
            call.ending()
            call.send(LCP_REQUEST)
            call.close(cause)
            call.tap(None)

        session.gone = gone  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize("how", ["clear", "disconnect", "stop", "lost", "noise", "shut", "echo"])
def test_every_end_with_a_ppp_that_does_what_it_may_not(how: str) -> None:
    net = Net()
    ppp = Reentrant()
    pac = net.pac(ppp)
    raw, connection, _ = net.called(pac, 7)
    call(raw, connection, 8)
    if how == "clear":
        raw.send(clear(7) + clear(8))
    elif how == "disconnect":
        raw.send(b"".join(codec.encode(Type.CALL_DISCONNECT_NOTIFY, call_id=call_id) for call_id in (7, 8)))
    elif how == "stop":
        raw.send(codec.encode(Type.STOP_REQUEST, reason=1))
    elif how == "lost":
        raw.close()
    elif how == "noise":
        raw.send(b"noise")
    elif how == "shut":
        pac.shut(net.now)
    else:
        raw.send(codec.encode(Type.ECHO_REPLY, identifier=99))
    net.run(10)
    assert [len(session.ended) for session in ppp.sessions] == [1, 1]
    assert not net.sent
    assert not pac.calls
    raw.close()
    net.run(1)
    assert is_clean(pac)


# The end, by us.


@pytest.mark.parametrize(
    ("cause", "result", "error"),
    [
        (Cause.USER_REQUEST, 1, 0),
        (Cause.LOST_CARRIER, 1, 0),
        (Cause.USER_ERROR, 2, 6),
        (Cause.NAS_ERROR, 2, 6),
        (Cause.SERVICE_UNAVAILABLE, 2, 4),
        (Cause.IDLE_TIMEOUT, 3, 0),
        (Cause.SESSION_TIMEOUT, 3, 0),
        (Cause.ADMIN_RESET, 3, 0),
        (Cause.ADMIN_REBOOT, 3, 0),
    ],
)
def test_closed_by_ppp(cause: Cause, result: int, error: int) -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, one = net.called(pac, 7)
    made(one).close(cause)
    made(one).close(cause)
    net.run(0.1)
    notify = raw.hears(Type.CALL_DISCONNECT_NOTIFY).numbers
    assert notify == {"call_id": one.id, "result": result, "error": error, "cause": 0}
    assert not ppp.sessions[0].ended
    assert not pac.calls
    assert connection.state is State.ESTABLISHED


@pytest.mark.parametrize(
    ("result", "cause"), [(1, Cause.LOST_CARRIER), (4, Cause.USER_REQUEST), (0, Cause.USER_REQUEST)]
)
def test_disconnected_by_the_peer(result: int, cause: Cause) -> None:
    """It is for a PAC to say, but some PNSs do."""
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, _ = net.called(pac, 7)
    raw.say(Type.CALL_DISCONNECT_NOTIFY, call_id=7, result=result)
    assert not raw.messages()
    assert [ended[0] for ended in ppp.sessions[0].ended] == [cause]
    assert not connection.calls


def test_a_pns_hears_of_it() -> None:
    net = Net()
    pac = net.pac()
    pns = net.pns()
    one = pns.up(pac)
    made(pac.calls[one.peer_id]).close(Cause.ADMIN_RESET)
    net.run(1)
    assert one.why == (Cause.USER_REQUEST, "Call-Disconnect-Notify received: administrative reasons")
    assert not pns.calls


# Other messages.


def test_set_link_info(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing comes of it, and none is ever sent."""
    caplog.set_level(logging.DEBUG, "npppy.pptp")
    net = Net()
    raw, _, one = net.called(net.pac())
    raw.say(Type.SET_LINK_INFO, peer_call_id=one.id, send_accm=0xFFFFFFFF, receive_accm=0xFFFFFFFF)
    assert "ignored" not in caplog.text
    raw.say(Type.SET_LINK_INFO, peer_call_id=one.id, send_accm=0xA0000, receive_accm=0xFFFFFFFF)
    assert "Set-Link-Info ignored send-accm=000a0000 receive-accm=ffffffff" in caplog.text
    made(one).lcp_opened(send_accm=0, receive_accm=0, pfc=True, acfc=True)
    net.run(1)
    assert not raw.messages()


def test_wan_error_notify(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "npppy.pptp")
    net = Net()
    raw, _, one = net.called(net.pac(), 7)
    raw.say(Type.WAN_ERROR_NOTIFY, peer_call_id=7, crc=1, framing=2, hardware=3, buffer=4, timeout=5, alignment=6)
    errors = "crc=1 framing=2 hardware=3 buffer=4 timeout=5 alignment=6"
    assert caplog.messages[-1] == f"{one} WAN errors {errors}"


def test_what_a_pns_is_told() -> None:
    net = Net()
    pac = net.pac()
    raw, connection, one = net.called(pac, 7)
    for kind in (Type.OUTGOING_CALL_REPLY, Type.INCOMING_CALL_REPLY, Type.INCOMING_CALL_CONNECTED):
        raw.say(kind, peer_call_id=7)
    assert drops(pac) == {"state": 3}
    assert connection.calls == {7: one}


# Data.


def test_data() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    pns = net.pns()
    one = pns.up(pac)
    other = made(pac.calls[one.peer_id])
    del net.sent[:]
    one.transmit(LCP_REQUEST, net.now)
    net.run(0.1)
    other.send(IP_PACKET)
    net.run(0.1)
    assert ppp.sessions[0].frames == [LCP_REQUEST]
    assert one.frames == [IP_PACKET]
    # The first is acknowledged at once, and so is the first that comes back.
    assert numbers(net.sent) == [(0, -1), (-1, 0), (0, 0), (-1, 0)]
    source, destination, packet = net.sent[2]
    assert (source, destination) == (PAC, PNS)
    assert packet == struct.pack("!HHHHII", 0x3081, 0x880B, 2 + len(IP_PACKET), one.id, 0, 0) + b"\xff\x03" + IP_PACKET


def test_an_answer_acknowledges() -> None:
    """What PPP sends in answer carries the acknowledgment: none goes alone."""
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    one = net.pns().up(pac)
    other = made(pac.calls[one.peer_id])
    ppp.sessions[0].receive = lambda frame, now: other.send(frame)  # type: ignore[method-assign]
    one.transmit(LCP_REQUEST, net.now)
    net.run(0.011)
    assert numbers(net.sent) == [(0, -1), (0, 0)]


def test_every_form_of_data() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    _, _, one = net.called(pac, 7)
    for number, payload in enumerate((b"\xff\x03\xc0\x21", b"\xc0\x21", b"\x21\x45", b"\xff\x03\x21\x45")):
        net.deliver(PNS, PAC, struct.pack("!HHHHI", 0x3001, 0x880B, len(payload), one.id, number) + payload)
    assert ppp.sessions[0].frames == [b"\xc0\x21", b"\xc0\x21", b"\x21\x45", b"\x21\x45"]
    # Without a payload.
    net.deliver(PNS, PAC, struct.pack("!HHHHI", 0x3001, 0x880B, 0, one.id, 99))
    net.deliver(PNS, PAC, struct.pack("!HHHHI", 0x3001, 0x880B, 2, one.id, 99) + b"\xff\x03")
    net.deliver(PNS, PAC, struct.pack("!HHHHI", 0x2081, 0x880B, 0, one.id, 99))
    assert len(ppp.sessions[0].frames) == 4
    assert one.window.expected == 4


def test_whose_data_it_is() -> None:
    """Our call id says, and the addresses must be its."""
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    _, _, one = net.called(pac, 7)
    packet = gre.encode(one.id, 0, -1, LCP_REQUEST)
    net.deliver(bytes((198, 51, 100, 8)), PAC, packet)
    pac.receive(bytes((192, 0, 2, 2)), PNS, packet, net.now)
    assert drops(pac) == {"endpoint": 2}
    net.deliver(PNS, PAC, gre.encode(one.id ^ 1, 0, -1, LCP_REQUEST))
    net.deliver(PNS, PAC, b"\x30\x81")
    assert dict(pac.drops) == {"session": 1, "malformed": 1}
    assert not ppp.sessions[0].frames


def test_clients_behind_one_address() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    calls = [net.pns().up(pac) for _ in range(3)]
    for number, one in enumerate(calls):
        one.transmit(IP_PACKET + bytes((number,)), net.now)
    net.run(0.1)
    assert [session.frames for session in ppp.sessions] == [[IP_PACKET + bytes((number,))] for number in range(3)]
    for number, one in enumerate(calls):
        made(pac.calls[one.peer_id]).send(LCP_REQUEST + bytes((number,)))
    net.run(0.1)
    # The NAT tells them apart by their own call ids, which in this net may coincide only by chance.
    assert [one.frames for one in calls] == [[LCP_REQUEST + bytes((number,))] for number in range(3)]


def test_late_data() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    _, _, one = net.called(pac, 7)
    for number, frame in ((5, LCP_REQUEST), (3, LCP_REQUEST), (4, IP_PACKET)):
        net.deliver(PNS, PAC, gre.encode(one.id, number, -1, frame))
    assert ppp.sessions[0].frames == [LCP_REQUEST, IP_PACKET]
    assert drops(pac) == {"late": 1}


def test_reordering() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp, data_reorder=4)
    _, _, one = net.called(pac, 7)
    frames = [LCP_REQUEST + bytes((number,)) for number in range(10)]

    def put(*order: int) -> None:
        for number in order:
            net.deliver(PNS, PAC, gre.encode(one.id, number, -1, frames[number]))

    put(0, 2, 3, 1)
    assert ppp.sessions[0].frames == frames[:4]
    put(6, 5)
    assert ppp.sessions[0].frames == frames[:4]
    net.run(WAIT + 0.2)
    assert ppp.sessions[0].frames == frames[:4] + frames[5:7]
    put(4)
    assert drops(pac) == {"late": 1}
    put(9)
    made(one).close(Cause.ADMIN_RESET)
    net.run(1)
    assert len(ppp.sessions[0].frames) == 6


# Acknowledgments.


def test_a_burst_is_acknowledged() -> None:
    net = Net()
    pac = net.pac()
    _, _, one = net.called(pac, 7)
    for number in range(100):
        net.deliver(PNS, PAC, gre.encode(one.id, number, -1, IP_PACKET))
    # The first, then one of sixteen.
    assert [ack for _, ack in numbers(net.sent)] == [0, *range(ACK_PACKETS, 100, ACK_PACKETS)]
    net.run(2)
    # The rest by the sweep, once.
    assert numbers(net.sent)[-1] == (-1, 99)
    assert len(net.sent) == 1 + 99 // ACK_PACKETS + 1
    net.run(60)
    assert len(net.sent) == 1 + 99 // ACK_PACKETS + 1


def test_uploads_are_not_a_packet_rate() -> None:
    """Of many that each have had one packet, some are acknowledged in each sweep, and all in the end."""
    net = Net()
    pac = net.pac()
    raw, connection = net.started(pac)
    calls = [call(raw, connection, number) for number in range(600)]
    for number in range(2):
        for one in calls:
            net.deliver(PNS, PAC, gre.encode(one.id, number, -1, IP_PACKET))
    del net.sent[:]
    most = 0
    for _ in range(32):
        before = len(net.sent)
        net.run(0.125)
        most = max(most, len(net.sent) - before)
    assert most == ACKS
    assert len(net.sent) == 600
    assert {gre.decode(packet).call_id for _, _, packet in net.sent} == set(range(600))


def test_an_acknowledgment_waits_for_data_to_ride_on() -> None:
    net = Net()
    pac = net.pac()
    _, _, one = net.called(pac, 7)
    for number in range(5):
        net.deliver(PNS, PAC, gre.encode(one.id, 2 * number, -1, IP_PACKET))
        net.deliver(PNS, PAC, gre.encode(one.id, 2 * number + 1, -1, IP_PACKET))
        del net.sent[:]
        net.run(0.45)
        assert not net.sent
        net.run(0.8)
        assert numbers(net.sent) == [(-1, 2 * number + 1)]


def test_one_that_has_gone_is_not_acknowledged() -> None:
    net = Net()
    pac = net.pac()
    _, _, one = net.called(pac, 7)
    for number in range(2):
        net.deliver(PNS, PAC, gre.encode(one.id, number, -1, IP_PACKET))
    del net.sent[:]
    made(one).close(Cause.ADMIN_RESET)
    assert not pac._sweeper._owing
    net.run(3)
    assert not net.sent


@pytest.mark.parametrize("how", ["closed", "carried"])
def test_what_a_frame_may_bring_about(how: str) -> None:
    """PPP closes the call as it gets a frame, or has the kernel carry it: no acknowledgment follows from here."""
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    _, _, one = net.called(pac, 7)
    kernels = []

    def receive(frame: bytes, now: float) -> None:
        if how == "closed":
            made(one).close(Cause.USER_ERROR)
        else:
            kernels.append(Kernel(one))

    ppp.sessions[0].receive = receive  # type: ignore[method-assign]
    net.deliver(PNS, PAC, gre.encode(one.id, 0, -1, LCP_REQUEST))
    net.run(3)
    assert not net.sent
    assert not any(kernel.injected for kernel in kernels)
    assert not pac._sweeper._owing


def test_nothing_at_rest() -> None:
    """A call at rest owes nothing; without calls there is no timer but the connection's."""
    net = Net()
    pac = net.pac(echo_interval=0)
    raw, _, one = net.called(pac, 7)
    net.deliver(PNS, PAC, gre.encode(one.id, 0, -1, IP_PACKET))
    net.deliver(PNS, PAC, gre.encode(one.id, 1, -1, IP_PACKET))
    assert pac._sweeper._owing
    net.run(3)
    assert not pac._sweeper._owing
    raw.close()
    net.run(3)
    assert len(net.wheel) == 0


# Taps and dumps.


class FakeTap:
    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.over = False

    def frame(self, way: int, frame: bytes) -> None:
        self.frames.append((way, frame))

    def gone(self) -> None:
        self.over = True


def test_a_tap() -> None:
    net = Net()
    pac = net.pac()
    raw, connection, one = net.called(pac, 7)
    two = call(raw, connection, 8)
    tap = FakeTap()
    made(one).tap(tap)
    net.deliver(PNS, PAC, gre.encode(one.id, 0, -1, LCP_REQUEST))
    net.deliver(PNS, PAC, gre.encode(two.id, 0, -1, LCP_REQUEST))
    assert [way for way, _ in tap.frames] == [IN, OUT]
    _, frame = tap.frames[0]
    assert frame[:14] == bytes(12) + b"\x08\x00"
    assert (frame[14], frame[23], frame[26:30], frame[30:34]) == (0x45, 47, PNS, PAC)
    assert frame[34:] == gre.encode(one.id, 0, -1, LCP_REQUEST)
    assert tap.frames[1][1][26:34] == PAC + PNS
    made(one).close(Cause.ADMIN_RESET)
    assert tap.over
    assert not pac.taps


def test_dumps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "npppy.pptp")
    net = Net()
    _, _, one = net.called(net.pac(data_in_pktdump=True, data_out_pktdump=True))
    net.deliver(PNS, PAC, gre.encode(one.id, 0, -1, LCP_REQUEST))
    made(one).send(b"\xc0\x23\x01\x01\x00\x0c\x01u\x05secret")
    assert f"{one} RecvData len=20\n0000  30 01 88 0b" in caplog.text
    assert f"{one} SendData len=" in caplog.text
    assert b"secret".hex(" ") not in caplog.text


def test_an_engine_without_tunnels() -> None:
    net = Net()
    engine = Engine([], FakePpp().open, net.rng, net.wheel, "h", net.transmit)
    engine.receive(PAC, PNS, gre.encode(1, 0, -1, LCP_REQUEST), net.now)
    engine.shut(net.now)
    assert not engine.busy
