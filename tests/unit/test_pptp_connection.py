"""PPTP control connections: how they begin, stay and end, and how many there may be."""

from __future__ import annotations

import logging

import pytest

from npppy.ppp.cause import Cause
from npppy.pptp import codec
from npppy.pptp.codec import MAGIC, Type
from npppy.pptp.connection import IDLE, SETUP, STOP, Connection, State
from npppy.pptp.engine import Engine
from npppy.pptp.service import Endpoint
from tests.unit.pppoe_fake import FakePpp
from tests.unit.pptp_net import PAC, PNS, PORT, End, Net, Raw, block, call


def drops(pac: Engine) -> dict[str, int]:
    return dict(pac.services["PPTP"].drops)


def is_clean(pac: Engine) -> bool:
    service = pac.services["PPTP"]
    return not (
        pac.connections
        or pac.calls
        or pac.taps
        or service.half_open
        or service.peers
        or service.connections
        or service.sessions
    )


# Setting up.


def test_start() -> None:
    net = Net()
    pac = net.pac(hostname="pac.example", vendor_name="npppy of Example")
    raw, connection = net.raw(pac)
    assert connection is not None
    raw.say(Type.START_REQUEST, version=0x0100, framing=3, bearer=3, host_name=b"client", vendor_name=b"x")
    reply = raw.hears(Type.START_REPLY)
    assert reply.numbers == {
        "version": 0x0100,
        "result": 1,
        "error": 0,
        "framing": 2,
        "bearer": 2,
        "max_channels": 4,
        "firmware": 1,
    }
    # The vendor's field has the vendor's name.
    assert (reply.text("host_name"), reply.text("vendor_name")) == (b"pac.example", b"npppy of Example")
    assert connection.state is State.ESTABLISHED
    assert connection.peer_name == "client"


def test_names_that_are_not_set() -> None:
    net = Net()
    raw, _ = net.raw(net.pac())
    raw.say(Type.START_REQUEST, version=0x0100)
    reply = raw.hears(Type.START_REPLY)
    assert (reply.text("host_name"), reply.text("vendor_name")) == (b"pac.example", b"")


@pytest.mark.parametrize("version", [0x0101, 0x0200, 0xFFFF])
def test_a_later_version_is_told_ours(version: int) -> None:
    net = Net()
    raw, connection = net.raw(net.pac())
    raw.say(Type.START_REQUEST, version=version)
    reply = raw.hears(Type.START_REPLY).numbers
    assert (reply["version"], reply["result"]) == (0x0100, 1)
    assert connection is not None
    assert connection.state is State.ESTABLISHED


@pytest.mark.parametrize("version", [0, 1, 0x00FF])
def test_an_earlier_version(version: int) -> None:
    net = Net()
    pac = net.pac()
    raw, _ = net.raw(pac)
    raw.say(Type.START_REQUEST, version=version)
    assert raw.hears(Type.START_REPLY).numbers["result"] == 5
    assert raw.ended
    net.run(STOP + 1)
    assert is_clean(pac)


def test_one_who_says_nothing() -> None:
    net = Net()
    pac = net.pac()
    raw, _ = net.raw(pac)
    net.run(SETUP - 1)
    assert not raw.ended
    net.run(2)
    assert raw.ended
    assert is_clean(pac)


@pytest.mark.parametrize("kind", [kind for kind in Type if kind not in (Type.START_REQUEST, Type.STOP_REQUEST)])
def test_before_the_start(kind: Type) -> None:
    net = Net()
    pac = net.pac()
    raw, _ = net.raw(pac)
    raw.say(kind)
    assert not raw.messages()
    assert raw.ended
    assert is_clean(pac)


def test_a_second_start() -> None:
    net = Net()
    pac = net.pac()
    raw, connection = net.started(pac)
    raw.say(Type.START_REQUEST, version=0x0100)
    assert raw.hears(Type.STOP_REQUEST).numbers["reason"] == 1
    assert connection.state is State.WAIT_STOP


@pytest.mark.parametrize("seed", range(5))
def test_two_engines(seed: int) -> None:
    """A PNS of ours and a PAC of ours, whose octets come in pieces of any size."""
    net = Net(seed)
    net.chop = True
    pac = net.pac()
    pns = net.pns()
    one = pns.up(pac)
    net.run(1000)
    assert one.why is None
    pns.stop([one.connection], "done", Cause.USER_REQUEST, net.now)
    assert one.why is not None
    net.run(2 * STOP)
    assert is_clean(pac)
    assert is_clean(pns)


def test_a_refusal() -> None:
    net = Net()
    pac = net.pac(peer_limit=1)
    pns = net.pns()
    pns.connect(pac)
    refused = pns.connect(pac)
    net.run(1)
    assert refused.state is State.GONE
    assert drops(pac) == {"peer-limit": 1}


def test_a_pac_of_another_version() -> None:
    net = Net()
    pns = net.pns()
    # The test is the PAC.
    raw = Raw(net)


    end = End(net)
    net.join(raw, end)
    connection = pns.dial(pns.services["PPTP"], Endpoint(PNS, 4000, PAC, PORT), end, net.now)
    end.connection = connection
    net.run(0.1)
    assert raw.hears(Type.START_REQUEST).numbers["version"] == 0x0100
    raw.say(Type.START_REPLY, version=0x0001, result=1)
    assert raw.hears(Type.STOP_REQUEST).numbers["reason"] == 2
    raw.say(Type.STOP_REPLY, result=1)
    assert connection.state is State.GONE
    assert raw.ended


# Echo.


def test_echo_of_the_peer() -> None:
    net = Net()
    raw, _ = net.started(net.pac())
    raw.say(Type.ECHO_REQUEST, identifier=0xCAFEBABE)
    assert raw.hears(Type.ECHO_REPLY).numbers == {"identifier": 0xCAFEBABE, "result": 1, "error": 0}


def test_our_echo() -> None:
    net = Net()
    pac = net.pac(echo_interval=10, echo_timeout=5)
    raw, connection, _ = net.called(pac)
    for _ in range(20):
        net.run(11)
        identifier = raw.hears(Type.ECHO_REQUEST).numbers["identifier"]
        raw.say(Type.ECHO_REPLY, identifier=identifier, result=1)
    assert connection.state is State.ESTABLISHED


def test_our_echo_without_an_answer() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp, echo_interval=10, echo_timeout=5)
    raw, _, _ = net.called(pac)
    net.run(11)
    raw.hears(Type.ECHO_REQUEST)
    net.run(3)
    assert not raw.ended
    net.run(2)
    assert raw.ended
    assert ppp.sessions[0].ended == [(Cause.LOST_CARRIER, "the peer does not answer")]
    assert is_clean(pac)


def test_whatever_comes_shows_that_the_peer_is_there() -> None:
    net = Net()
    pac = net.pac(echo_interval=10, echo_timeout=5)
    raw, connection, _ = net.called(pac)
    for _ in range(10):
        net.run(9)
        raw.say(Type.ECHO_REQUEST, identifier=1)
        raw.hears(Type.ECHO_REPLY)
    net.run(11)
    raw.hears(Type.ECHO_REQUEST)
    raw.say(Type.ECHO_REQUEST, identifier=1)
    net.run(5)
    assert connection.state is State.ESTABLISHED


@pytest.mark.parametrize("asked", [True, False])
def test_an_echo_reply_with_a_wrong_identifier(asked: bool) -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp, echo_interval=10)
    raw, _, _ = net.called(pac)
    if asked:
        net.run(11)
        raw.hears(Type.ECHO_REQUEST)
    raw.say(Type.ECHO_REPLY, identifier=0x12345678, result=1)
    assert raw.hears(Type.STOP_REQUEST).numbers["reason"] == 1
    assert len(ppp.sessions[0].ended) == 1
    assert drops(pac) == {"echo": 1}


@pytest.mark.parametrize(("interval", "timeout"), [(0, 60), (10, 0)])
def test_echo_off(interval: int, timeout: int) -> None:
    """Without an interval nobody is asked; without a timeout nobody need answer."""
    net = Net()
    pac = net.pac(echo_interval=interval, echo_timeout=timeout)
    raw, connection, _ = net.called(pac)
    net.run(605)
    # The clock has ticks, and so each takes a little longer.
    assert len(raw.messages()) == (59 if interval else 0)
    assert connection.state is State.ESTABLISHED


# The end.


@pytest.mark.parametrize("reason", [0, 1, 2, 3, 255])
def test_stopped_by_the_peer(reason: int) -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, _ = net.called(pac)
    raw.say(Type.STOP_REQUEST, reason=reason)
    assert raw.hears(Type.STOP_REPLY).numbers == {"result": 1, "error": 0}
    assert raw.ended
    assert [cause for cause, _ in ppp.sessions[0].ended] == [Cause.USER_REQUEST]
    assert not connection.calls
    # It stays for the peer to close, but not for long, and says nothing more.
    assert connection.state is State.CLOSING
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=9)
    assert not raw.messages()
    raw.close()
    net.run(0.1)
    assert is_clean(pac)


def test_stopped_by_a_peer_that_does_not_close() -> None:
    net = Net()
    pac = net.pac()
    raw, _ = net.raw(pac)
    raw.send(codec.encode(Type.STOP_REQUEST, reason=1) * 2)
    net.run(0.1)
    raw.hears(Type.STOP_REPLY)
    net.run(STOP + 0.5)
    assert is_clean(pac)


@pytest.mark.parametrize("answers", [True, False])
def test_stopped_by_us(answers: bool) -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, _ = net.called(pac)
    pac.shut(net.now)
    net.run(0.1)
    assert raw.hears(Type.STOP_REQUEST).numbers["reason"] == 3
    assert [cause for cause, _ in ppp.sessions[0].ended] == [Cause.ADMIN_REBOOT]
    assert pac.busy
    raw.say(Type.ECHO_REQUEST, identifier=1)
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=9)
    assert not raw.messages()
    if answers:
        raw.say(Type.STOP_REPLY, result=1)
    else:
        assert connection.state is State.WAIT_STOP
        net.run(STOP + 0.5)
    assert raw.ended
    assert not pac.busy
    assert is_clean(pac)
    # Nothing new comes in.
    assert net.raw(pac)[1] is None


def test_both_stop_at_once() -> None:
    net = Net()
    pac = net.pac()
    pns = net.pns()
    one = pns.up(pac)
    pac.stop(list(pac.connections.values()), "cleared", Cause.ADMIN_RESET, net.now)
    pns.stop([one.connection], "done", Cause.USER_REQUEST, net.now)
    net.run(STOP + 1)
    assert is_clean(pac)
    assert is_clean(pns)


def test_the_stream_breaks() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, connection, leg = net.called(pac)
    raw.close()
    net.run(0.1)
    assert [cause for cause, _ in ppp.sessions[0].ended] == [Cause.LOST_CARRIER]
    assert is_clean(pac)
    # Whoever still has it, cannot do harm with it.
    connection.lost("again", net.now)
    connection.receive(codec.encode(Type.ECHO_REQUEST), net.now)
    connection.stop(1, "again", Cause.ADMIN_RESET, net.now)
    leg.close(Cause.USER_REQUEST)  # type: ignore[attr-defined]
    leg.send(b"\xc0\x21")  # type: ignore[attr-defined]
    assert is_clean(pac)


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x00\x0b\x00\x01" + MAGIC.to_bytes(4, "big"),
        b"\x00\x10\x00\x01\x4d\x3c\x2b\x1a\x00\x05\x00\x00",
        b"\x00\x11\x00\x01" + MAGIC.to_bytes(4, "big") + b"\x00\x05\x00\x00",
        b"\xff\xff\x00\x01",
        b"\x00\x10\x00\x03" + MAGIC.to_bytes(4, "big"),
    ],
)
@pytest.mark.parametrize("started", [True, False])
def test_out_of_step(octets: bytes, started: bool) -> None:
    """RFC 2637 section 1.4: that is the end, at once; what came before it counts."""
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    if started:
        raw, _, _ = net.called(pac)
        raw.send(codec.encode(Type.ECHO_REQUEST, identifier=5) + octets)
    else:
        raw, _ = net.raw(pac)
        raw.send(octets)
    net.run(0.1)
    assert raw.ended
    assert [message.type for message in raw.messages()] == ([Type.ECHO_REPLY] if started else [])
    assert drops(pac) == {"malformed": 1}
    assert is_clean(pac)
    assert len(ppp.sessions) == started
    assert all(len(session.ended) == 1 for session in ppp.sessions)


def test_unknown_messages_are_passed_over() -> None:
    net = Net()
    pac = net.pac()
    raw, connection = net.started(pac)
    magic = MAGIC.to_bytes(4, "big")
    raw.send(b"\x00\x0c\x00\x01" + magic + b"\x00\x10\x00\x00")
    raw.send(b"\x00\x0e\x00\x01" + magic + b"\x00\x00\x00\x00xx")
    raw.send(b"\x00\x08\x00\x02" + magic)
    raw.send(b"\x00\x20\x00\x02" + magic + bytes(24))
    raw.say(Type.ECHO_REQUEST, identifier=5)
    raw.hears(Type.ECHO_REPLY)
    assert drops(pac) == {"message-type": 4}
    assert connection.state is State.ESTABLISHED


def test_one_without_calls() -> None:
    net = Net()
    pac = net.pac(echo_interval=0)
    raw, connection = net.started(pac)
    net.run(IDLE / 2)
    leg = call(raw, connection, 7)
    net.run(3 * IDLE)
    assert connection.state is State.ESTABLISHED
    raw.messages()
    raw.say(Type.CALL_CLEAR_REQUEST, call_id=7)
    assert raw.hears(Type.CALL_DISCONNECT_NOTIFY).numbers["call_id"] == leg.id
    net.run(IDLE - 1)
    assert connection.state is State.ESTABLISHED
    raw.messages()
    net.run(2)
    assert raw.messages()[-1].type is Type.STOP_REQUEST


# Limits.


def test_connections_of_one_address() -> None:
    net = Net()
    pac = net.pac(peer_limit=2)
    raws = [net.raw(pac) for _ in range(2)]
    assert net.raw(pac)[1] is None
    assert net.raw(pac, bytes((198, 51, 100, 8)))[1] is not None
    raws[0][0].close()
    net.run(0.1)
    assert net.raw(pac)[1] is not None
    assert drops(pac) == {"peer-limit": 1}


def test_half_open_ones() -> None:
    """Of connections without a call there are only so many, and the oldest goes; those with one stay."""
    net = Net()
    pac = net.pac(half_open_limit=2)
    kept, with_call, _ = net.called(pac)
    first, _ = net.raw(pac)
    second, _ = net.started(pac)
    assert len(pac.services["PPTP"].half_open) == 2
    third, _ = net.raw(pac)
    net.run(0.1)
    assert first.ended
    assert not second.ended
    fourth, connection = net.started(pac)
    assert second.ended
    call(fourth, connection, 3)
    net.raw(pac)
    net.run(0.1)
    assert not any(raw.ended for raw in (kept, third, fourth))
    assert with_call.state is State.ESTABLISHED
    assert drops(pac) == {"half-open-limit": 2}


def test_a_tunnel_block_goes() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    raw, _, _ = net.called(pac)
    service = pac.services["PPTP"]
    pac.drop_service("PPTP", net.now)
    net.run(0.1)
    assert raw.hears(Type.STOP_REQUEST).numbers["reason"] == 1
    raw.say(Type.STOP_REPLY, result=1)
    assert not pac.connections
    assert (service.connections, service.sessions) == (0, 0)
    assert [cause for cause, _ in ppp.sessions[0].ended] == [Cause.ADMIN_RESET]


def test_new_options() -> None:
    net = Net()
    pac = net.pac()
    raw, connection, _ = net.called(pac)
    pac.configure([block(echo_interval=5)])
    assert connection.service.options.echo_interval == 5
    net.run(61)
    raw.messages()
    net.run(6)
    raw.messages()


# The log.


def test_dumps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "npppy.pptp")
    net = Net()
    raw, connection = net.started(net.pac(ctrl_in_pktdump=True, ctrl_out_pktdump=True))
    raw.say(Type.ECHO_REQUEST, identifier=0xCAFE)
    lines = caplog.text.split("\n")
    assert f"{connection} RecvCtrl len=16" in "\n".join(lines)
    assert f"{connection} SendCtrl len=20" in "\n".join(lines)
    assert any(line.startswith("0000  00 10 00 01 1a 2b 3c 4d 00 05 00 00 00 00 ca fe") for line in lines)


def test_names_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "npppy.pptp")
    net = Net()
    raw, connection = net.raw(net.pac())
    raw.say(Type.START_REQUEST, version=0x0100, host_name=b'a"b\n\xffc', vendor_name=b"\x1b[0m")
    assert isinstance(connection, Connection)
    assert str(connection) == f"pptp ctrl={connection.id} peer=198.51.100.7:40000"
    assert caplog.messages == [f'{connection} Established host="a\\"b\\x0a\\xffc" vendor="\\x1b[0m"']


def test_a_storm_is_not_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "npppy.pptp")
    net = Net()
    pac = net.pac()
    for _ in range(3000):
        _, connection = net.raw(pac)
        assert connection is not None
        connection.receive(b"noise", net.now)
    assert len(caplog.messages) <= 1100
    assert drops(pac)["malformed"] == 3000
