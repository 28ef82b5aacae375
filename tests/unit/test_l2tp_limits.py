"""What strangers can make an LNS keep, log and forget."""

from __future__ import annotations

import logging

import pytest

from npppy.l2tp import codec
from npppy.l2tp.call import CONNECT
from npppy.l2tp.codec import Attr, Type, u16, u32
from npppy.l2tp.engine import MAX_WAITING, STRANGERS, Engine
from npppy.l2tp.orphans import MEMORY, Ghosts, read_record, record
from npppy.l2tp.service import Endpoint
from npppy.l2tp.tunnel import CYCLE, State
from npppy.ppp.cause import Cause
from npppy.reorder import WAIT
from tests.unit.l2tp_net import LAC, LNS, Net, block
from tests.unit.pppoe_fake import FakeJournal, FakePpp
from tests.unit.test_l2tp_call import Rig, cdn, numbered
from tests.unit.test_l2tp_tunnel import established, moved

# What may be logged at once, and in the few seconds that a test takes.
FEW = STRANGERS[1] + 10 * STRANGERS[0]


def lines(caplog: pytest.LogCaptureFixture) -> int:
    """Of the LNS: the LAC logs, too."""
    mine = [record for record in caplog.records if record.name == "npppy.l2tp" and record.levelno >= logging.INFO]
    return sum("peer=198.51.100.7:" in record.getMessage() for record in mine)


# Log lines.


def wen(rig: Rig) -> None:
    call = rig.call()
    for _ in range(2 * FEW):
        rig.tunnel.send(call.peer_id, Type.WEN, [(Attr.CALL_ERRORS, bytes(26))], rig.net.now)
        rig.net.run(0.001)


def calls_come_and_go(rig: Rig) -> None:
    rig.net.delay = (0.0001, 0.0001)
    for _ in range(2 * FEW):
        call = rig.lac.call(rig.tunnel)
        rig.net.run(0.0005)
        call.clear(Cause.USER_REQUEST, rig.net.now)
        rig.net.run(0.0005)


def refused_calls(rig: Rig) -> None:
    rig.net.delay = (0.0001, 0.0001)
    for _ in range(2 * FEW):
        rig.lac.call(rig.tunnel, last_sent_lcp_confreq=b"\x01\x04\x05\xdc")
        rig.net.run(0.001)


def moves(rig: Rig) -> None:
    rig.net.delay = (0.0001, 0.0001)
    for number in range(2 * FEW):
        moved(rig.net, 5000 + number % 100)
        rig.tunnel.send(0, Type.HELLO, [], rig.net.now)
        rig.net.run(0.001)


@pytest.mark.parametrize("flood", [wen, calls_come_and_go, refused_calls, moves])
def test_nobody_in_a_tunnel_fills_the_log(flood: object, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    with caplog.at_level(logging.INFO):
        flood(rig)  # type: ignore[operator]
    assert STRANGERS[1] / 2 < lines(caplog) < FEW


def test_tunnels_that_come_and_go_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    net.delay = (0.0001, 0.0001)
    net.lns()
    lac = net.lac()
    with caplog.at_level(logging.INFO):
        for _ in range(FEW):
            tunnel = lac.ask()
            net.run(0.001)
            lac.stop([tunnel], "enough", Cause.ADMIN_RESET, net.now)
            net.run(0.001)
    assert STRANGERS[1] < lines(caplog) < FEW


def test_who_knows_the_secret_is_no_stranger(caplog: pytest.LogCaptureFixture) -> None:
    net, secrets = Net(), ((None, "s3cret"),)
    lns = net.lns(secrets=secrets)
    lac = net.lac(secrets=secrets)
    tunnel = lac.ask()
    net.run(1)
    assert tunnel.state is State.ESTABLISHED
    while lns.strangers.take(net.now):
        pass
    with caplog.at_level(logging.INFO):
        lns.stop(lns.tunnels.values(), "enough", Cause.ADMIN_RESET, net.now)
    assert "enough" in caplog.text


def test_the_name_of_a_peer_is_not_kept_whole() -> None:
    net = Net()
    lns = net.lns()
    lac = net.lac(hostname="x" * 1000)
    lac.ask()
    net.run(1)
    (tunnel,) = lns.tunnels.values()
    assert tunnel.peer_name == "x" * 253


# What is kept.


def sccrq(number: int) -> bytes:
    avps = [(Attr.HOST_NAME, b"x"), (Attr.ASSIGNED_TUNNEL_ID, u16(number))]
    return codec.control(0, 0, 0, 0, codec.encode_message(Type.SCCRQ, avps))


def test_forged_requests_keep_nobody_out() -> None:
    """The oldest of too many half-open tunnels makes room: forged ones never get any further."""
    net = Net()
    lns = net.lns(half_open_limit=10)
    for number in range(100):
        net.put((bytes((10, 0, 0, number)), 1701), (LNS, 1701), sccrq(77))
        net.run(0.02)
    assert len(lns.tunnels) == 10
    assert lns.services["L2TP"].half_open == 10
    assert len(lns.services["L2TP"].pending) == 10
    tunnel = net.lac().ask()
    net.run(0.2)
    assert tunnel.state is State.ESTABLISHED
    assert lns.services["L2TP"].drops["half-open-limit"] == 91
    net.run(3 * CYCLE)
    assert not lns.tunnels
    assert lns.services["L2TP"].half_open == 0
    assert not net.wheel


def test_the_limit_of_an_address_is_kept_by_dropping() -> None:
    """Nobody is answered more often than that in another's name."""
    net = Net()
    lns = net.lns(half_open_peer_limit=10)
    for number in range(100):
        net.put((LAC, 1701), (LNS, 1701), sccrq(number + 1))
    net.run(0.5)
    assert sum(destination == (LAC, 1701) for _, destination, _ in net.sent) == 10
    assert lns.services["L2TP"].drops["half-open-peer-limit"] == 90


def test_faulty_requests_are_not_all_answered() -> None:
    """Or we would be a mirror."""
    net = Net()
    net.lns()
    avps = [(Attr.HOST_NAME, b"x"), (Attr.ASSIGNED_TUNNEL_ID, u16(77))]
    body = codec.encode_message(Type.SCCRQ, avps) + b"\x80\x06\x00\x09\x00\x01"
    for _ in range(2 * FEW):
        net.put((LAC, 1701), (LNS, 1701), codec.control(0, 0, 0, 0, body))
    net.run(1)
    assert STRANGERS[1] <= len(net.sent) <= FEW


def test_calls_that_are_never_connected_are_bounded() -> None:
    rig = Rig()
    calls = [rig.lac.call(rig.tunnel) for _ in range(MAX_WAITING + 5)]
    for call in calls:
        call.control = lambda message, now: None  # type: ignore[method-assign]
    rig.net.run(20)
    assert len(rig.ours.calls) == MAX_WAITING
    assert rig.drops["waiting-limit"] == 5
    assert [call for call in calls if call.why is not None] == calls[:5]
    assert cdn(calls[0])[1] == "CDN received: no facilities now (too many calls that are not connected)"
    rig.net.run(CONNECT)
    assert not rig.ours.calls
    assert rig.lns.services["L2TP"].sessions == 0
    assert not rig.lns.waiting


def test_connected_calls_do_not_wait() -> None:
    rig = Rig()
    for _ in range(3):
        rig.up()
    assert not rig.lns.waiting
    call = rig.lac.call(rig.tunnel)
    call.control = lambda message, now: None  # type: ignore[method-assign]
    rig.net.run(1)
    assert len(rig.lns.waiting) == 1
    rig.lns.stop([rig.ours], "enough", Cause.ADMIN_RESET, rig.net.now)
    assert not rig.lns.waiting


def test_a_session_that_is_ending_counts_no_more() -> None:
    rig = Rig(session_limit=1)
    _, session = rig.up()
    assert not rig.call().connected
    session.call.ending()
    assert rig.call().connected
    assert not rig.call().connected


# What is left.


@pytest.mark.parametrize("late", [True, False])
def test_nothing_waits_for_a_call_that_ended_in_the_midst_of_its_packets(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """PPP may end the call on any packet, while others are held for one that is missing."""
    rig = Rig(data_reorder=8)
    call, session = rig.up()
    rig.send(call, numbered(2), 2)
    rig.send(call, numbered(4), 4)
    if late:
        rig.net.run(WAIT)
    session.receive = lambda frame, now: session.call.close(Cause.USER_REQUEST)  # type: ignore[method-assign]
    rig.send(call, numbered(0), 0)
    rig.send(call, numbered(1), 1)
    rig.net.run(2 * WAIT)
    assert not rig.ours.calls
    assert "failed" not in caplog.text


def test_a_tunnel_of_ours_that_moved_leaves_nothing() -> None:
    net = Net()
    _lns, lac, tunnel, _ = established(net)
    endpoint = tunnel.endpoint._replace(peer_port=4711)
    body = codec.encode_message(Type.HELLO, [])
    packet = codec.control(tunnel.id, 0, tunnel.channel.next_nr, tunnel.channel.next_ns, body)
    lac.receive(lac.services["L2TP"], endpoint, packet, net.transmit, net.now)
    assert tunnel.endpoint == endpoint
    tunnel.discard("enough", net.now)
    assert not lac._dialled
    assert not lac._established
    assert not lac.tunnels


def test_after_the_peers_goodbye_nothing_is_repeated() -> None:
    rig = Rig()
    call, _ = rig.up()
    rig.net.nat = lambda source, destination: None if source[0] == LNS else source
    rig.ours.send(call.id, Type.SLI, [(Attr.ACCM, bytes(10))], rig.net.now)
    rig.ours.send(call.id, Type.SLI, [(Attr.ACCM, bytes(10))], rig.net.now)
    rig.lac.stop([rig.tunnel], "enough", Cause.ADMIN_RESET, rig.net.now)
    rig.net.run(0.5)
    ours = rig.ours
    assert ours.state is State.CLOSING
    assert not rig.lns.busy
    before = len(rig.net.sent)
    rig.net.run(10)
    packets = [codec.decode_control(datagram) for (at, _), _, datagram in rig.net.sent[before:] if at == LNS]
    # The goodbye is acknowledged whenever it comes, by what no number is taken for.
    assert packets
    assert {(packet.ns, packet.nr, packet.body) for packet in packets} == {
        (ours.channel.next_ns, ours.channel.next_nr, b"")
    }


# Old tunnels.


class Killed:
    """An LNS that was killed, with a LAC that does not know yet, and what is to start in its place."""

    def __init__(self, calls: int = 1, **options: object) -> None:
        self.rig = rig = Rig(**options)
        for _ in range(calls):
            rig.up()
        self.net, self.lac, self.tunnel = rig.net, rig.lac, rig.tunnel
        self.journal = rig.lns._journal
        assert isinstance(self.journal, FakeJournal)
        assert len(self.journal.records) == 1
        # It sends no more, and its timers are no more.
        for tunnel in rig.lns.tunnels.values():
            tunnel.channel.close()
            self.net.wheel.disarm(tunnel)
        self.net.nodes.pop((LNS, 1701))

    def start(self) -> None:
        self.ghosts = Ghosts(self.net.wheel, self.journal.remove)
        for slot, (name, octets) in self.journal.records.items():
            self.ghosts.add(slot, name, octets)
        self.lns = Engine(
            [block()], FakePpp().open, self.net.rng, self.net.wheel, self.journal, "lns.example", self.ghosts
        )
        self.net.join(self.lns, self.lns.services["L2TP"], LNS)
        self.ghosts.start(self.net.transmit, self.net.now)

    @property
    def why(self) -> list[str]:
        return [reason for _, reason in self.lac.closed_for]


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_lns_ends_its_tunnels_when_it_is_back(seed: int) -> None:
    killed = Killed()
    killed.net.dice.seed(seed)
    killed.start()
    killed.net.run(0.1)
    assert killed.why == ["StopCCN received: cleared (restarted)"]
    assert not killed.ghosts
    assert not killed.journal.records
    killed.net.run(CYCLE + 1)
    assert not killed.lac.tunnels


@pytest.mark.parametrize("seed", range(10))
def test_losses_do_not_keep_a_tunnel_of_a_killed_lns(seed: int) -> None:
    """At the latest with the LAC's next HELLO, or what it repeats."""
    killed = Killed()
    killed.net.dice.seed(seed)
    killed.net.loss, killed.net.double = 0.4, 0.2
    killed.start()
    killed.net.run(120)
    assert len(killed.why) == 1
    assert killed.why[0] in ("StopCCN received: cleared (restarted)", "the peer does not answer")
    killed.net.run(MEMORY)
    assert not killed.ghosts
    assert not killed.journal.records


def test_a_peer_that_was_away_learns_it_later() -> None:
    killed = Killed()
    node = killed.net.nodes.pop((LAC, 1701))
    killed.start()
    killed.net.run(30)
    killed.net.nodes[LAC, 1701] = node
    assert len(killed.ghosts) == 1
    killed.net.run(60)
    assert killed.why == ["StopCCN received: cleared (restarted)"]
    assert not killed.journal.records


def test_after_very_many_messages_the_peer_is_told_when_it_speaks() -> None:
    """Half of all numbers further, 0 is not one that the peer has had."""
    killed = Killed()
    channel = killed.tunnel.channel
    channel.next_nr = 40000
    killed.start()
    killed.net.run(59)
    killed.net.run(5)
    assert killed.why == ["StopCCN received: cleared (restarted)"]
    assert not killed.journal.records


def test_nobody_else_is_told_about_an_old_tunnel() -> None:
    killed = Killed()
    killed.net.nodes.pop((LAC, 1701))
    killed.start()
    killed.net.run(5)
    before = len(killed.net.sent)
    body = codec.encode_message(Type.HELLO, [])
    killed.net.put((bytes((9, 9, 9, 9)), 1701), (LNS, 1701), codec.control(killed.tunnel.peer_id, 0, 5, 5, body))
    killed.net.run(5)
    assert len(killed.net.sent) == before
    assert len(killed.ghosts) == 1


def test_the_numbers_of_old_tunnels_are_passed_over_and_not_lost() -> None:
    net = Net()
    ghosts = Ghosts(net.wheel, lambda slot: None)
    lns = net.lns()
    lns._ghosts = ghosts
    ids = list(range(10, 20))
    given_back: list[int] = []
    lns._ids = type(  # type: ignore[assignment]
        "Ids", (), {"take": lambda self: ids.pop(0) if ids else 0, "release": lambda self, n: given_back.append(n)}
    )()
    for number in (10, 11):
        ghosts.add(number, *record(Endpoint(LNS, 1701, LAC, 1701), number, 5))
    net.put((LAC, 1701), (LNS, 1701), sccrq(5))
    net.run(0.1)
    assert list(lns.tunnels) == [12]
    assert given_back == [10, 11]


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(LNS, 1701, LAC, 5555),
        Endpoint(LNS, 1701, LAC, 5555, 0xFFFFFFFF),
        Endpoint(b"\x20" * 16, 1701, b"\x30" * 16, 1701),
        Endpoint(b"\xfe\x80" + bytes(14), 1701, b"\xfe\x80" + bytes(13) + b"1", 1701, 0, 7),
        Endpoint(b"\xfe\x80" + bytes(14), 1701, b"\xfe\x80" + bytes(13) + b"1", 1701, 0xFFFFFFFF, 0xFFFFFF),
    ],
)
def test_the_journal_keeps_all_that_is_needed_to_reach_a_peer(endpoint: Endpoint) -> None:
    name, octets = record(endpoint, 0xFFFE, 0xFFFF)
    assert len(name) <= 15
    assert len(octets) <= 40
    assert read_record(name, octets) == (endpoint, 0xFFFE, 0xFFFF)


@pytest.mark.parametrize("name", ["", "x", ".1", "1.2.3", "eth0"])
def test_records_that_are_none(name: str) -> None:
    removed: list[int] = []
    ghosts = Ghosts(Net().wheel, removed.append)
    _, octets = record(Endpoint(LNS, 1701, LAC, 1701), 1, 2)
    ghosts.add(7, name, octets)
    ghosts.add(8, "0", octets[:-1])
    assert removed == [7, 8]
    assert not len(ghosts)


# SCCRP.


def test_another_version_in_the_reply() -> None:
    """RFC 2661 section 7.2.1: the originator looks at it, too."""
    net = Net()
    lac = net.lac()
    tunnel = lac.ask()
    net.run(0.1)
    avps = [
        (Attr.PROTOCOL_VERSION, b"\x02\x00"),
        (Attr.FRAMING_CAPABILITIES, u32(3)),
        (Attr.HOST_NAME, b"x"),
        (Attr.ASSIGNED_TUNNEL_ID, u16(9)),
    ]
    net.put((LNS, 1701), (LAC, 1701), codec.control(tunnel.id, 0, 0, 1, codec.encode_message(Type.SCCRP, avps)))
    net.run(0.1)
    assert tunnel.state is State.CLOSING
    (stop,) = [
        message
        for (at, _), _, datagram in net.sent
        if at == LAC
        and (packet := codec.decode_control(datagram)).body
        and (message := codec.decode_message(packet.body, b"")).type == Type.STOP_CCN
    ]
    assert stop.avps[Attr.RESULT_CODE][:4] == u16(5) + b"\x01\x00"
