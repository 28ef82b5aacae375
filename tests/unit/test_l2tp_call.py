"""Calls of an LNS (RFC 2661 section 7.4.2), their data, and what is told to PPP."""

from __future__ import annotations

import random

import pytest

from npppy.l2tp import codec
from npppy.l2tp.call import CONNECT, LnsCall
from npppy.l2tp.codec import Attr, Type, u16, u32
from npppy.l2tp.engine import Engine
from npppy.l2tp.tunnel import State, Tunnel
from npppy.ppp.cause import Cause
from npppy.ppp.link import IN, OUT, Proxy
from npppy.reorder import WAIT
from tests.unit.l2tp_net import LAC, LNS, LacCall, Net, PlainLac
from tests.unit.pppoe_fake import IP_PACKET, LCP_REQUEST, FakePpp, FakeUpper


class Rig:
    """An LNS, a LAC, and a tunnel between them."""

    def __init__(self, **options: object) -> None:
        self.net = Net()
        self.ppp = FakePpp()
        self.lns: Engine = self.net.lns(self.ppp, **options)
        self.lac: PlainLac = self.net.lac()
        self.tunnel: Tunnel = self.lac.ask()
        self.net.run(1)
        assert self.tunnel.state is State.ESTABLISHED

    def call(self, **avps: bytes) -> LacCall:
        call = self.lac.call(self.tunnel, **avps)
        self.net.run(1)
        return call

    def up(self, **avps: bytes) -> tuple[LacCall, FakeUpper]:
        call = self.call(**avps)
        assert call.connected
        return call, self.ppp.sessions[-1]

    @property
    def ours(self) -> Tunnel:
        (tunnel,) = self.lns.tunnels.values()
        return tunnel

    @property
    def drops(self) -> dict[str, int]:
        return self.lns.services["L2TP"].drops

    def send(self, call: LacCall, frame: bytes, ns: int = -1, *, offset: int = -1, length: bool = True) -> None:
        """A data message of the LAC, as it likes to have its headers."""
        flags = 2 | (0x4000 if length else 0) | (0x0800 if ns >= 0 else 0) | (0x0200 if offset >= 0 else 0)
        header = u16(self.tunnel.peer_id) + u16(call.peer_id)
        if ns >= 0:
            header += u16(ns) + u16(0)
        if offset >= 0:
            header += u16(offset) + bytes(offset)
        size = 2 + (2 if length else 0) + len(header) + len(frame)
        datagram = u16(flags) + (u16(size) if length else b"") + header + frame
        self.net.put((LAC, 1701), (LNS, 1701), datagram)
        self.net.run(0.05)


def cdn(call: LacCall) -> tuple[Cause, str]:
    assert call.why is not None
    return call.why


# Setting up and ending.


def test_a_call_that_is_not_connected_in_time() -> None:
    rig = Rig()
    call = rig.lac.call(rig.tunnel)
    call.control = lambda message, now: None  # type: ignore[method-assign]
    rig.net.run(CONNECT + 1)
    assert cdn(call)[1].startswith("CDN received: administrative reasons")
    assert not rig.ours.calls
    assert not rig.ppp.sessions
    assert rig.lns.services["L2TP"].sessions == 0


def test_ppp_refuses() -> None:
    rig = Rig()
    rig.ppp.refuse = True
    call = rig.call()
    assert cdn(call) == (Cause.USER_REQUEST, "CDN received: no facilities now (no session possible now)")
    assert not rig.ours.calls


def test_ppp_closes_before_it_has_taken_the_call() -> None:
    rig = Rig()
    rig.ppp.close_first = True
    call = rig.call()
    assert cdn(call)[1].startswith("CDN received")
    assert not rig.ours.calls


@pytest.mark.parametrize("cause", Cause)
def test_ppp_ends_the_call(cause: Cause) -> None:
    rig = Rig()
    call, session = rig.up()
    session.call.ending()
    assert rig.lns.services["L2TP"].sessions == 0
    session.call.close(cause)
    rig.net.run(1)
    assert call.why is not None
    assert not rig.ours.calls
    assert not session.ended
    # Nothing can be sent any more, nor ended again.
    session.call.close(cause)
    rig.net.run(1)
    # RFC 3145
    sent = [codec.decode_control(datagram) for (at, _), _, datagram in rig.net.sent if at == LNS and datagram[0] > 127]
    found = [codec.decode_message(packet.body, b"") for packet in sent if packet.body]
    (message,) = [message for message in found if message.type == Type.CDN]
    value = message.avps[Attr.PPP_DISCONNECT_CAUSE]
    expected = {Cause.USER_REQUEST: (3, 1), Cause.LOST_CARRIER: (8, 1), Cause.ADMIN_RESET: (1, 0)}
    if cause in expected:
        assert (value[1], value[4]) == expected[cause]
    assert value[5:].decode() == cause.title


def test_the_peer_hangs_up() -> None:
    rig = Rig()
    call, session = rig.up()
    call.clear(Cause.USER_ERROR, rig.net.now, (3, 0), "enough")
    rig.net.run(1)
    assert session.ended == [(Cause.USER_REQUEST, "CDN received: administrative reasons (enough)")]
    assert not rig.ours.calls


def test_the_peer_hangs_up_before_it_knows_our_number() -> None:
    rig = Rig()
    call = rig.lac.call(rig.tunnel)
    call.peer_id = 0
    call.clear(Cause.LOST_CARRIER, rig.net.now)
    rig.net.run(1)
    assert not rig.ours.calls
    assert not rig.ppp.sessions


def test_the_session_limit() -> None:
    rig = Rig(session_limit=2)
    calls = [rig.call() for _ in range(3)]
    assert [call.connected for call in calls] == [True, True, False]
    assert cdn(calls[2])[1] == "CDN received: no facilities now (too many sessions)"
    assert rig.drops["session-limit"] == 1


def test_outgoing_calls_are_for_lacs() -> None:
    rig = Rig()
    call = rig.lac.call(rig.tunnel)
    rig.net.run(1)
    avps = [
        (Attr.ASSIGNED_SESSION_ID, u16(4242)),
        (Attr.CALL_SERIAL_NUMBER, u32(1)),
        (Attr.MINIMUM_BPS, u32(1)),
        (Attr.MAXIMUM_BPS, u32(2)),
        (Attr.BEARER_TYPE, u32(1)),
        (Attr.FRAMING_TYPE, u32(1)),
        (Attr.CALLED_NUMBER, b"12"),
    ]
    rig.tunnel.send(0, Type.OCRQ, avps, rig.net.now)
    rig.net.run(1)
    assert rig.drops["outgoing"] == 1
    sent = [codec.decode_control(datagram) for (at, _), _, datagram in rig.net.sent if at == LNS and datagram[0] > 127]
    last = [packet for packet in sent if packet.body][-1]
    assert last.session_id == 4242
    message = codec.decode_message(last.body, b"")
    assert (message.type, message.avps[Attr.RESULT_CODE][:2]) == (Type.CDN, u16(5))
    # The other call does not mind.
    assert call.connected
    assert rig.tunnel.state is State.ESTABLISHED


@pytest.mark.parametrize("kind", [Type.ICRP, Type.ICCN, Type.ICRQ, Type.OCCN])
def test_messages_out_of_place_end_the_call_and_not_the_tunnel(kind: Type) -> None:
    rig = Rig()
    call, session = rig.up()
    avps = [(Attr.ASSIGNED_SESSION_ID, u16(9)), (Attr.CALL_SERIAL_NUMBER, u32(1))]
    avps += [(Attr.TX_CONNECT_SPEED, u32(1)), (Attr.FRAMING_TYPE, u32(1))]
    rig.tunnel.send(call.peer_id, kind, avps, rig.net.now)
    rig.net.run(1)
    assert [cause for cause, _ in session.ended] == [Cause.NAS_ERROR]
    assert call.why is not None
    assert rig.tunnel.state is State.ESTABLISHED


@pytest.mark.parametrize("kind", [Type.WEN, Type.SLI])
def test_notices_are_understood(kind: Type) -> None:
    rig = Rig()
    call, session = rig.up()
    value = bytes(26) if kind is Type.WEN else bytes(10)
    rig.tunnel.send(call.peer_id, kind, [(Attr.CALL_ERRORS if kind is Type.WEN else Attr.ACCM, value)], rig.net.now)
    rig.net.run(1)
    assert not session.ended
    assert rig.ours.state is State.ESTABLISHED


def test_an_unknown_message_ends_the_tunnel_only_if_it_must_be_understood() -> None:
    rig = Rig()
    _call, session = rig.up()
    body = b"\x00\x08\0\0\0\0" + u16(99)
    rig.tunnel.channel.send(0, body, rig.net.now)
    rig.net.run(1)
    assert rig.drops["message-type"] == 1
    assert rig.ours.state is State.ESTABLISHED
    rig.tunnel.channel.send(0, b"\x80" + body[1:], rig.net.now)
    rig.net.run(1)
    assert session.ended == [(Cause.NAS_REQUEST, "unknown message type 99")]
    assert rig.tunnel.state is State.CLOSING


def test_a_fault_in_a_message_of_a_call_ends_the_call_alone() -> None:
    rig = Rig()
    call, session = rig.up()
    other, _ = rig.up()
    body = codec.encode_message(Type.WEN, [(Attr.CALL_ERRORS, bytes(26))]) + b"\x80\x06\x00\x09\x00\x01"
    rig.tunnel.channel.send(call.peer_id, body, rig.net.now)
    rig.net.run(1)
    assert session.ended == [(Cause.NAS_ERROR, "attribute 1 of vendor 9: unknown")]
    assert cdn(call)[1].startswith("CDN received: general error, unknown mandatory AVP")
    assert other.why is None
    assert rig.tunnel.state is State.ESTABLISHED


# What PPP is told.


CHAP = {
    "last_sent_lcp_confreq": b"\x03\x05\xc2\x23\x05",
    "last_received_lcp_confreq": b"\x05\x06abcd",
    "proxy_authen_type": u16(2),
    "proxy_authen_name": b"alice",
    "proxy_authen_challenge": b"0123456789abcdef",
    "proxy_authen_id": u16(7),
    "proxy_authen_response": bytes(16),
}


def test_proxy_avps() -> None:
    rig = Rig(accept_dialin=True)
    proxies = []
    take = rig.ppp.open
    rig.lns.open_session = lambda call, now: (proxies.append(call.link.proxy), take(call, now))[1]  # type: ignore[func-returns-value]
    rig.up(**CHAP)
    assert proxies == [
        Proxy(
            last_sent=CHAP["last_sent_lcp_confreq"],
            last_received=CHAP["last_received_lcp_confreq"],
            auth_type=2,
            name=b"alice",
            challenge=b"0123456789abcdef",
            identifier=7,
            response=bytes(16),
        )
    ]
    # It is used up, and not kept.
    assert rig.ppp.sessions[0].call.link.proxy is None


def test_proxy_avps_are_not_wanted() -> None:
    rig = Rig()
    call = rig.call(**CHAP)
    assert "l2tp-accept-dialin" in cdn(call)[1]
    assert not rig.ppp.sessions


def test_an_authentication_type_of_none_alone_is_no_proxy() -> None:
    rig = Rig()
    _, session = rig.up(proxy_authen_type=u16(4))
    assert session.call.link.proxy is None


def test_force_lcp_renegotiation() -> None:
    rig = Rig(accept_dialin=True, force_lcp_renegotiation=True)
    proxies = []
    take = rig.ppp.open
    rig.lns.open_session = lambda call, now: (proxies.append(call.link.proxy), take(call, now))[1]  # type: ignore[func-returns-value]
    rig.up(**CHAP)
    assert proxies == [Proxy()]


def test_a_lac_of_asynchronous_lines_is_told_the_accm() -> None:
    rig = Rig()
    call, session = rig.up(framing_type=u32(2))
    session.call.lcp_opened(send_accm=0x000A0000, receive_accm=0xFFFFFFFF, pfc=True, acfc=True)
    rig.net.run(1)
    assert [message.avps[Attr.ACCM] for message in call.messages if message.type == Type.SLI] == [
        bytes.fromhex("0000 000a0000 ffffffff")
    ]


def test_a_lac_of_synchronous_lines_is_not() -> None:
    rig = Rig()
    call, session = rig.up()
    session.call.lcp_opened(send_accm=0, receive_accm=0, pfc=False, acfc=False)
    rig.net.run(1)
    assert Type.SLI not in [message.type for message in call.messages]


# Data.


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("offset", [-1, 0, 3])
@pytest.mark.parametrize("header", [b"", b"\xff\x03"])
def test_every_form_of_header(length: bool, offset: int, header: bytes) -> None:
    rig = Rig(data_use_seq=False)
    call, session = rig.up()
    rig.send(call, header + LCP_REQUEST, offset=offset, length=length)
    rig.send(call, header + LCP_REQUEST, 7, offset=offset, length=length)
    assert session.frames == [LCP_REQUEST] * 2


def test_without_sequence_numbers() -> None:
    rig = Rig(data_use_seq=False)
    call, session = rig.up()
    session.call.send(LCP_REQUEST)
    rig.net.run(1)
    assert call.frames == [(-1, b"\xff\x03" + LCP_REQUEST)]
    assert session.call.link.encap.sequence is None


def test_sequencing_required() -> None:
    rig = Rig(data_use_seq=False)
    call, session = rig.up(sequencing_required=b"")
    session.call.send(LCP_REQUEST)
    rig.net.run(1)
    assert call.frames == [(0, b"\xff\x03" + LCP_REQUEST)]


def test_numbers_wrap() -> None:
    rig = Rig()
    call, session = rig.up()
    lns = session.call
    assert isinstance(lns, LnsCall)
    assert lns.sequence is not None
    lns.sequence.ns = lns.sequence.expected = 65535
    lns.send(LCP_REQUEST)
    lns.send(LCP_REQUEST)
    rig.net.run(1)
    assert [ns for ns, _ in call.frames] == [65535, 0]
    for ns in (65535, 0, 1):
        rig.send(call, LCP_REQUEST, ns)
    assert len(session.frames) == 3


def test_late_packets_pass_if_they_are_ip() -> None:
    rig = Rig()
    call, session = rig.up()
    for ns in (0, 1, 5, 3, 100):
        rig.send(call, IP_PACKET, ns)
    assert len(session.frames) == 5
    rig.send(call, LCP_REQUEST, 99)
    assert len(session.frames) == 5
    rig.send(call, IP_PACKET, 101 - 64)
    assert len(session.frames) == 6
    rig.send(call, IP_PACKET, 101 - 65)
    assert len(session.frames) == 6
    assert rig.drops["late"] == 2


def test_a_peer_that_counts_anew() -> None:
    rig = Rig()
    call, session = rig.up()
    for ns in (30000, 30001, 0, 1, 2, 3):
        rig.send(call, LCP_REQUEST, ns)
    assert len(session.frames) == 5
    assert rig.drops["late"] == 1


def test_what_the_kernel_numbers_is_injected() -> None:
    rig = Rig()
    call, session = rig.up()
    injected: list[bytes] = []

    class Kernel:
        def inject(self, frame: bytes) -> None:
            injected.append(frame)

    session.call.link.encap.sequence.keeper = Kernel()
    session.call.send(LCP_REQUEST)
    rig.net.run(1)
    assert injected == [LCP_REQUEST]
    assert not call.frames
    # It has looked at what comes, too.
    rig.send(call, LCP_REQUEST, 40000)
    rig.send(call, LCP_REQUEST, 3)
    assert len(session.frames) == 2


def test_data_of_others() -> None:
    rig = Rig()
    call, session = rig.up()
    good = rig.tunnel.peer_id, call.peer_id
    for source, tunnel_id, session_id in (
        ((LAC, 4711), *good),
        ((bytes(4), 1701), *good),
        ((LAC, 1701), good[0] ^ 1, good[1]),
        ((LAC, 1701), good[0], good[1] ^ 1),
    ):
        datagram = codec.data_header(tunnel_id, session_id, False)
        rig.net.put(source, (LNS, 1701), datagram[:2] + u16(8 + len(IP_PACKET)) + datagram[4:] + IP_PACKET)
        rig.net.run(0.1)
    assert not session.frames
    assert (rig.drops["endpoint"], rig.drops["session"]) == (2, 2)


def test_a_full_control_window_holds_no_data() -> None:
    rig = Rig()
    call, session = rig.up()
    # No control message of the LNS reaches the LAC, and so none is acknowledged.
    rig.net.nat = lambda source, destination: source
    held = rig.net.put
    rig.net.put = lambda source, destination, datagram: (  # type: ignore[method-assign]
        None if source[0] == LNS and datagram[0] > 127 else held(source, destination, datagram)
    )
    for _ in range(100):
        rig.ours.send(call.id, Type.SLI, [(Attr.ACCM, bytes(10))], rig.net.now)
    assert rig.ours.channel.queued == 100
    for _ in range(50):
        session.call.send(IP_PACKET)
    rig.net.run(0.1)
    assert len(call.frames) == 50


# Reordering.


def numbered(number: int) -> bytes:
    return IP_PACKET + u16(number)


def test_reordering_puts_what_is_early_in_its_place() -> None:
    rig = Rig(data_reorder=8)
    call, session = rig.up()
    for ns in (0, 2, 1, 5, 4, 3, 6):
        rig.send(call, numbered(ns), ns)
    assert session.frames == [numbered(ns) for ns in range(7)]


def test_reordering_waits_no_longer_than_its_time() -> None:
    rig = Rig(data_reorder=8)
    call, session = rig.up()
    for ns in (0, 2, 4):
        rig.send(call, numbered(ns), ns)
    assert session.frames == [numbered(0)]
    rig.net.run(WAIT + 0.2)
    assert session.frames == [numbered(ns) for ns in (0, 2, 4)]
    # The one that was given up comes late after all.
    rig.send(call, numbered(3), 3)
    assert session.frames[-1] == numbered(3)


def test_reordering_holds_no_more_than_it_may() -> None:
    rig = Rig(data_reorder=4)
    call, session = rig.up()
    for ns in (0, 2, 3, 4, 5):
        rig.send(call, numbered(ns), ns)
    assert session.frames == [numbered(0)]
    rig.send(call, numbered(6), 6)
    assert session.frames == [numbered(ns) for ns in (0, 2, 3, 4, 5, 6)]


@pytest.mark.parametrize("seed", range(20))
def test_reordering_by_dice(seed: int) -> None:
    """Whatever comes, nothing comes twice, and what is ahead by less than is held comes in order."""
    dice = random.Random(seed)
    rig = Rig(data_reorder=8)
    call, session = rig.up()
    order = sorted(range(200), key=lambda number: number + dice.uniform(0, 4))
    for number in order:
        rig.send(call, numbered(number), number)
    assert session.frames == [numbered(number) for number in range(200)]


# Taps.


class Watcher:
    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.is_gone = False

    def frame(self, way: int, frame: bytes) -> None:
        self.frames.append((way, frame))

    def gone(self) -> None:
        self.is_gone = True


def test_a_tap_sees_frames_as_they_are_on_the_wire() -> None:
    rig = Rig()
    call, session = rig.up()
    watcher = Watcher()
    session.call.tap(watcher)
    session.call.send(LCP_REQUEST)
    rig.send(call, b"\xff\x03" + LCP_REQUEST, 0)
    assert [way for way, _ in watcher.frames] == [OUT, IN]
    out = watcher.frames[0][1]
    assert out[12:14] == b"\x08\x00"
    assert (out[26:30], out[30:34]) == (LNS, LAC)
    assert out.endswith(b"\xff\x03" + LCP_REQUEST)
    session.call.close(Cause.USER_REQUEST)
    assert watcher.is_gone
