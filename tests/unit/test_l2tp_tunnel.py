"""Control connections, from both ends (RFC 2661 sections 5 and 7)."""

from __future__ import annotations

import pytest

from npppy.l2tp import codec
from npppy.l2tp.codec import Attr, Type, u16
from npppy.l2tp.tunnel import CYCLE, State
from npppy.ppp.cause import Cause
from tests.unit.l2tp_net import LAC, LNS, Net
from tests.unit.pppoe_fake import IP_PACKET, LCP_REQUEST, FakePpp

ELSEWHERE = bytes((9, 9, 9, 9))


def test_a_tunnel_and_a_call_come_up() -> None:
    net, ppp = Net(), FakePpp()
    lns, lac = net.lns(ppp), net.lac()
    tunnel = lac.ask()
    net.run(1)
    assert tunnel.state is State.ESTABLISHED
    (theirs,) = lns.tunnels.values()
    assert theirs.state is State.ESTABLISHED
    assert (theirs.id, theirs.peer_id) == (tunnel.peer_id, tunnel.id)
    assert theirs.peer_name == "lac.example"
    call = lac.call(tunnel)
    net.run(1)
    assert call.connected
    (session,) = ppp.sessions
    assert session.call.link.caller.calling_number == "4711"
    assert session.call.link.caller.called_number == "0800"
    assert session.call.link.caller.tx_speed == 10_000_000
    session.call.send(LCP_REQUEST)
    session.call.send(LCP_REQUEST)
    net.run(1)
    assert call.frames == [(0, b"\xff\x03" + LCP_REQUEST), (1, b"\xff\x03" + LCP_REQUEST)]


def established(net: Net, **options: object):  # type: ignore[no-untyped-def]
    """An LNS with these options, a LAC, the LAC's end of a tunnel, and PPP."""
    ppp = FakePpp()
    lns, lac = net.lns(ppp, **options), net.lac()
    tunnel = lac.ask()
    net.run(1)
    assert tunnel.state is State.ESTABLISHED
    return lns, lac, tunnel, ppp


def messages(net: Net, source: bytes) -> list[tuple[int, codec.Control]]:
    """The control messages from an address that are no ZLBs: type and header."""
    found = []
    for (address, _), _, datagram in net.sent:
        if address == source and datagram[0] >= 0x80:
            packet = codec.decode_control(datagram)
            if packet.body:
                found.append((codec.decode_message(packet.body, b"").type, packet))
    return found


def stop_reason(lac: object) -> str:
    ((_, reason),) = lac.closed_for  # type: ignore[attr-defined]
    return str(reason)


# The secret.


def test_both_prove_that_they_know_the_secret() -> None:
    net, secrets = Net(), ((None, "s3cret"),)
    lns, lac = net.lns(secrets=secrets), net.lac(secrets=secrets)
    tunnel = lac.ask()
    net.run(1)
    assert tunnel.state is State.ESTABLISHED
    assert [tunnel.state for tunnel in lns.tunnels.values()] == [State.ESTABLISHED]


def test_hidden_avps() -> None:
    net, secrets, ppp = Net(), ((None, "s3cret"),), FakePpp()
    net.lns(ppp, secrets=secrets, hidden_avps=True)
    lac = net.lac(secrets=secrets, hidden_avps=True)
    tunnel = lac.ask()
    net.run(1)
    assert lac.call(tunnel)
    assert not net.run(1)
    (session,) = ppp.sessions
    assert session.call.link.caller.calling_number == "4711"
    assert not [datagram for _, _, datagram in net.sent if b"4711" in datagram]


def test_nothing_is_hidden_before_the_peer_is_known() -> None:
    """xl2tpd cannot reveal anything in an SCCRP."""
    net, secrets = Net(), ((None, "s3cret"),)
    net.lns(secrets=secrets, hidden_avps=True)
    net.lac(secrets=secrets, hidden_avps=True).ask()
    net.run(1)
    vectors = {}
    for source in (LAC, LNS):
        for kind, packet in messages(net, source):
            vectors[kind] = Attr.RANDOM_VECTOR in codec.decode_message(packet.body, b"").avps
    assert vectors == {Type.SCCRQ: False, Type.SCCRP: False, Type.SCCCN: True}


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        ("right", "wrong", "tunnel authentication failed"),
        ("right", None, "the peer wants tunnel authentication: no l2tp-secret"),
        (None, "wrong", "StopCCN received: not authorized"),
    ],
)
def test_another_secret(ours: str | None, theirs: str | None, why: str) -> None:
    net = Net()
    lns = net.lns(secrets=((None, ours),) if ours else ())
    lac = net.lac(secrets=((None, theirs),) if theirs else ())
    tunnel = lac.ask()
    net.run(5)
    assert tunnel.state is State.CLOSING
    assert stop_reason(lac).startswith(why)
    net.run(CYCLE + 1)
    assert not lns.tunnels
    assert not lac.tunnels
    assert lns.services["L2TP"].half_open == 0


def test_secrets_by_address() -> None:
    from ipaddress import ip_network

    net = Net()
    net.lns(secrets=((None, "other"), (ip_network("198.51.100.0/24"), "mine")))
    lac = net.lac(secrets=((None, "mine"),))
    tunnel = lac.ask()
    net.run(1)
    assert tunnel.state is State.ESTABLISHED


# Losses.


def test_a_repeated_sccrq_has_the_sccrp_sent_again() -> None:
    net = Net()
    lns, lac = net.lns(), net.lac()
    # All that the LNS says is lost, for a while.
    net.nat = lambda source, destination: None if source[0] == LNS else source
    lac.ask()
    net.run(0.9)
    assert [kind for kind, _ in messages(net, LNS)] == [Type.SCCRP]
    net.run(0.3)
    # The LAC's repetition, after a second, has an answer of its own, beside what the LNS repeats by itself.
    assert [kind for kind, _ in messages(net, LNS)].count(Type.SCCRP) >= 2
    assert len(lns.tunnels) == 1
    net.nat = None
    net.run(10)
    assert [tunnel.state for tunnel in lns.tunnels.values()] == [State.ESTABLISHED]


def test_a_peer_that_is_gone_is_noticed_by_hello() -> None:
    net = Net()
    lns, lac, tunnel, ppp = established(net, hello_interval=60, hello_timeout=30)
    call = lac.call(tunnel)
    net.run(1)
    assert call.connected
    net.nodes.pop((LAC, 1701))
    net.run(59 + 30 + 3)
    assert [ended for session in ppp.sessions for ended in session.ended] == [
        (Cause.LOST_CARRIER, "the peer does not answer")
    ]
    assert not lns.tunnels
    assert lns.services["L2TP"].sessions == 0


def test_hello_keeps_a_tunnel() -> None:
    net = Net()
    _lns, lac, tunnel, ppp = established(net, hello_interval=60)
    lac.call(tunnel)
    net.run(600)
    kinds = [kind for kind, _ in messages(net, LNS)]
    assert 8 <= kinds.count(Type.HELLO) <= 10
    assert tunnel.state is State.ESTABLISHED
    assert not ppp.sessions[0].ended


def test_data_spares_the_hello() -> None:
    net = Net()
    _lns, lac, tunnel, ppp = established(net, hello_interval=60)
    call = lac.call(tunnel)
    net.run(1)
    for _ in range(20):
        frame = codec.data_header(tunnel.peer_id, call.peer_id, False)
        datagram = frame[:2] + (len(frame) + len(IP_PACKET)).to_bytes(2, "big") + frame[4:] + IP_PACKET
        net.put((LAC, 1701), (LNS, 1701), datagram)
        net.run(30)
    assert Type.HELLO not in [kind for kind, _ in messages(net, LNS)]
    assert ppp.sessions[0].frames == [IP_PACKET] * 20


# The end.


def test_a_tunnel_without_calls_is_closed() -> None:
    net = Net()
    lns, lac, _tunnel, _ = established(net)
    net.run(20)
    assert stop_reason(lac) in ("StopCCN received: cleared (no calls)", "no calls")
    net.run(CYCLE)
    assert not lns.tunnels
    assert not lac.tunnels


def test_stop_ends_the_calls_and_is_acknowledged_again_and_again() -> None:
    net = Net()
    lns, lac, tunnel, ppp = established(net)
    lac.call(tunnel)
    net.run(1)
    # No acknowledgement arrives: the StopCCN comes again and again, and once is enough.
    net.nat = lambda source, destination: None if source[0] == LNS else source
    lac.stop([tunnel], "enough", Cause.ADMIN_RESET, net.now)
    net.run(20)
    assert [ended for session in ppp.sessions for ended in session.ended] == [
        (Cause.LOST_CARRIER, "StopCCN received: cleared (enough)")
    ]
    assert [kind for kind, _ in messages(net, LAC)].count(Type.STOP_CCN) >= 4
    net.nat = None
    net.run(12)
    assert tunnel.channel.idle
    net.run(2 * CYCLE)
    assert not lac.tunnels
    assert not lns.tunnels


def test_shutting_down() -> None:
    net = Net()
    lns, lac, tunnel, _ppp = established(net)
    lac.call(tunnel)
    net.run(1)
    lns.shut(net.now)
    assert lns.busy
    net.run(1)
    assert not lns.busy
    assert stop_reason(lac) == "StopCCN received: it is being shut down (shutting down)"
    lac.ask()
    net.run(1)
    assert lns.services["L2TP"].drops["closing"] == 1


def test_a_peer_that_starts_anew_with_the_same_number() -> None:
    net = Net()
    lns, lac, tunnel, ppp = established(net)
    lac.call(tunnel)
    net.run(CYCLE)
    again = net.lac()
    again._ids = type("Ids", (), {"take": lambda self: tunnel.id, "release": lambda self, number: None})()  # type: ignore[assignment]
    fresh = again.ask()
    net.run(1)
    assert fresh.state is State.ESTABLISHED
    assert [ended for session in ppp.sessions for ended in session.ended] == [
        (Cause.LOST_CARRIER, "the peer has started anew")
    ]
    assert len(lns.tunnels) == 1


# Limits.


def test_half_open_tunnels_of_an_address_are_bounded() -> None:
    net = Net()
    lns = net.lns(half_open_peer_limit=3)
    net.nat = lambda source, destination: None if source[0] == LNS else source
    lacs = [net.lac(port=4000 + number) for number in range(5)]
    for lac in lacs:
        lac.ask()
    net.run(0.5)
    service = lns.services["L2TP"]
    assert len(lns.tunnels) == service.half_open == 3
    assert service.drops["half-open-peer-limit"] >= 2
    other = net.lac(address=bytes((198, 51, 100, 8)))
    other.ask()
    net.run(0.5)
    assert service.half_open == 4
    for lac in lacs:
        net.nodes.pop((LAC, lac.at.local_port))
    net.nodes.pop((other.at.local, 1701))
    net.run(3 * CYCLE)
    assert not lns.tunnels
    assert service.half_open == 0
    assert not service.pending


def test_half_open_tunnels_in_all_are_bounded() -> None:
    net = Net()
    lns = net.lns(half_open_limit=10)
    for number in range(50):
        lac = net.lac(address=bytes((10, 0, 0, number)))
        lac.ask()
        net.nodes.pop((lac.at.local, 1701))
    net.run(0.5)
    assert len(lns.tunnels) == 10
    assert lns.services["L2TP"].drops["half-open-limit"] == 40


def test_sccrq_limit() -> None:
    net = Net()
    lns = net.lns(sccrq_limit=5)
    for number in range(50):
        lac = net.lac(address=bytes((10, 0, 0, number)))
        lac.ask()
    net.run(0.05)
    assert len(lns.tunnels) == 5
    assert lns.services["L2TP"].drops["sccrq-limit"] == 45


def test_sccrqs_with_a_fault_leave_nothing() -> None:
    net = Net()
    lns = net.lns()
    # An AVP that nobody knows, and that must be understood.
    body = codec.encode_message(Type.SCCRQ, [(Attr.HOST_NAME, b"x"), (Attr.ASSIGNED_TUNNEL_ID, u16(77))])
    body += b"\x80\x06\x00\x09\x00\x01"
    net.put((LAC, 1701), (LNS, 1701), codec.control(0, 0, 0, 0, body))
    net.run(1)
    assert not lns.tunnels
    ((kind, packet),) = messages(net, LNS)
    assert (kind, packet.tunnel_id, packet.ns, packet.nr) == (Type.STOP_CCN, 77, 0, 1)
    assert b"attribute 1 of vendor 9" in packet.body


# Simultaneous tunnels (section 4.4.3, Tie Breaker).


@pytest.mark.parametrize("seed", range(6))
def test_of_two_tunnels_at_once_one_stays(seed: int) -> None:
    net = Net(seed)
    a = net.lac()
    b = net.lac(address=LNS)
    a.at = a.at._replace(peer=LNS)
    b.at = b.at._replace(peer=LAC)
    one, other = a.ask(), b.ask()
    net.run(5)
    lower = one if one.tie_breaker < other.tie_breaker else other
    assert lower.state is State.ESTABLISHED
    assert [len(a.tunnels), len(b.tunnels)] == [1, 1]


# Another place (l2tp-peer-rebind).


def moved(net: Net, port: int = 1701, address: bytes = LAC) -> None:
    """A NAT gives what the LAC sends another source, and brings what goes there back."""
    net.nat = lambda source, destination: (address, port) if source[0] == LAC else source
    net.nodes[address, port] = net.nodes[LAC, 1701]


def test_a_nat_that_has_forgotten() -> None:
    net = Net()
    lns, lac, tunnel, ppp = established(net)
    call = lac.call(tunnel)
    net.run(1)
    moved(net, 5555)
    # Data alone does not move it.
    frame = codec.data_header(tunnel.peer_id, call.peer_id, False)
    net.put((LAC, 1701), (LNS, 1701), frame[:2] + (8 + len(IP_PACKET)).to_bytes(2, "big") + frame[4:] + IP_PACKET)
    net.run(1)
    (session,) = ppp.sessions
    assert not session.frames
    assert lns.services["L2TP"].drops["endpoint"] == 1
    tunnel.send(0, Type.HELLO, [], net.now)
    net.run(1)
    (theirs,) = lns.tunnels.values()
    assert (theirs.endpoint.peer, theirs.endpoint.peer_port) == (LAC, 5555)
    assert [link.encap.peer_port for link in session.links] == [5555]
    assert session.links[0].caller.text == "198.51.100.7:5555"
    assert tunnel.channel.idle


@pytest.mark.parametrize(
    ("rebind", "address", "port", "moves"),
    [("no", LAC, 5555, False), ("port", ELSEWHERE, 1701, False), ("address", ELSEWHERE, 1701, True)],
)
def test_who_may_move(rebind: str, address: bytes, port: int, moves: bool) -> None:
    from npppy.config.model import Rebind

    net = Net()
    lns, lac, tunnel, _ = established(net, peer_rebind=Rebind(rebind))
    lac.call(tunnel)
    net.run(1)
    moved(net, port, address)
    tunnel.send(0, Type.HELLO, [], net.now)
    net.run(1)
    (theirs,) = lns.tunnels.values()
    assert ((theirs.endpoint.peer, theirs.endpoint.peer_port) == (address, port)) is moves


@pytest.mark.parametrize("ns", [0, 1, 5, 40000])
def test_numbers_that_are_not_the_next_ones_move_nothing(ns: int) -> None:
    net = Net()
    lns, lac, tunnel, _ = established(net)
    lac.call(tunnel)
    net.run(1)
    (theirs,) = lns.tunnels.values()
    assert theirs.channel.next_nr != ns
    body = codec.encode_message(Type.HELLO, [])
    net.put((LAC, 666), (LNS, 1701), codec.control(theirs.id, 0, ns, theirs.channel.next_ns, body))
    net.run(1)
    assert theirs.endpoint.peer_port == 1701
