"""Calls that may not begin yet, at engines and with peers of the tests' own; and logins that RADIUS has no time for."""

from __future__ import annotations

from collections.abc import Callable

from npppy.admission import LAG, SHARE, Admission
from npppy.config.model import L2tpOptions
from npppy.l2tp import codec as l2tp_codec
from npppy.l2tp.call import LnsCall
from npppy.l2tp.codec import Attr
from npppy.l2tp.engine import Engine as Lns
from npppy.l2tp.tunnel import State
from npppy.pptp import causes
from npppy.pptp.codec import Type
from npppy.pptp.connection import Connection
from npppy.pptp.connection import State as ConnectionState
from npppy.pptp.engine import GO_ON, LONG, REST
from npppy.pptp.engine import Engine as Pac
from npppy.wheel import TICK
from tests.unit import l2tp_net, pptp_net, radius_net
from tests.unit.pppoe_fake import FakeJournal, FakePpp


class Gatekeeper(Admission):
    """Turns when it is told to."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []
        super().__init__(self.due.append, lambda: 1000.0)

    def turn(self) -> None:
        due, self.due[:] = list(self.due), []
        for call in due:
            call()

    def shut(self) -> None:
        self.press()
        self.turn()
        assert self.closed


def lns(net: l2tp_net.Net, keeper: Gatekeeper, **options: object) -> tuple[Lns, FakePpp]:
    ppp = FakePpp()
    journal = FakeJournal()
    engine = Lns(
        [l2tp_net.block(**options)], ppp.open, net.rng, net.wheel, journal, "lns.example", admission=keeper
    )
    net.join(engine, engine.services["L2TP"], l2tp_net.LNS)
    return engine, ppp


def up(net: l2tp_net.Net, lac: l2tp_net.PlainLac) -> l2tp_net.Connection:
    tunnel = lac.ask()
    net.run(1)
    assert tunnel.state is State.ESTABLISHED
    return tunnel


def test_an_icrq_waits_acknowledged_and_what_has_begun_goes_on() -> None:
    net, keeper = l2tp_net.Net(), Gatekeeper()
    _engine, ppp = lns(net, keeper)
    lac = net.lac()
    tunnel = up(net, lac)
    keeper.shut()
    # More than a window has room for.
    calls = [lac.call(tunnel) for _ in range(40)]
    net.run(1)
    assert tunnel.channel.idle
    assert tunnel.channel.retransmissions == 0
    assert keeper.waiting == 40
    assert not ppp.sessions
    keeper.turn()
    # They have been answered, and their ICCNs come while others may not begin.
    keeper.press()
    keeper.turn()
    net.run(1)
    assert len(ppp.sessions) == SHARE
    assert [call.connected for call in calls] == [True] * SHARE + [False] * (40 - SHARE)
    for _ in range(3):
        keeper.turn()
    net.run(1)
    assert len(ppp.sessions) == 40
    assert not keeper.due


def test_a_call_that_is_given_up_does_not_begin() -> None:
    net, keeper = l2tp_net.Net(), Gatekeeper()
    engine, ppp = lns(net, keeper)
    lac = net.lac()
    tunnel = up(net, lac)
    keeper.shut()
    calls = [lac.call(tunnel) for _ in range(3)]
    calls[1].clear(l2tp_net.Cause.USER_REQUEST, net.now)
    net.run(1)
    assert keeper.waiting == 2
    keeper.turn()
    net.run(1)
    assert [call.connected for call in calls] == [True, False, True]
    assert len(ppp.sessions) == 2
    assert not engine.services["L2TP"].drops


def test_the_calls_of_a_tunnel_that_ends_do_not_begin() -> None:
    net, keeper = l2tp_net.Net(), Gatekeeper()
    engine, ppp = lns(net, keeper)
    lac = net.lac()
    first, second = up(net, lac), up(net, lac)
    keeper.shut()
    for tunnel in (first, second):
        lac.call(tunnel)
    net.run(1)
    first.stop(1, 0, "enough", net.now)
    net.run(1)
    assert keeper.waiting == 1
    engine.shut(net.now)
    assert keeper.waiting == 0
    keeper.turn()
    net.run(1)
    assert not ppp.sessions


def test_what_has_changed_while_a_call_waited_counts() -> None:
    net, keeper = l2tp_net.Net(), Gatekeeper()
    engine, ppp = lns(net, keeper)
    service = engine.services["L2TP"]
    lac = net.lac()
    tunnel = up(net, lac)
    keeper.shut()
    calls = [lac.call(tunnel) for _ in range(2)]
    net.run(1)
    service.configure(service.tunnel, L2tpOptions(session_limit=1))
    keeper.turn()
    net.run(1)
    assert len(ppp.sessions) == 1
    assert calls[1].why is not None
    assert service.drops["session-limit"] == 1


def test_who_waits_for_a_call_has_a_tunnel_that_stays() -> None:
    net, keeper = l2tp_net.Net(), Gatekeeper()
    engine, ppp = lns(net, keeper)
    lac = net.lac()
    tunnel = up(net, lac)
    keeper.shut()
    call = lac.call(tunnel)
    net.run(100)
    assert tunnel.state is State.ESTABLISHED
    keeper.turn()
    net.run(1)
    assert len(ppp.sessions) == 1
    keeper.shut()
    call.clear(l2tp_net.Cause.USER_REQUEST, net.now)
    lac.call(tunnel).clear(l2tp_net.Cause.USER_REQUEST, net.now)
    net.run(100)
    assert not engine.tunnels


def test_of_a_request_that_waits_only_what_is_needed_is_kept() -> None:
    """A message may have 64 KiB."""
    message = l2tp_codec.Message(l2tp_codec.Type.ICRQ, True)
    attributes = (Attr.ASSIGNED_SESSION_ID, Attr.CALLING_NUMBER, Attr.SUB_ADDRESS, Attr.PRIVATE_GROUP_ID)
    message.avps = dict.fromkeys(attributes, b"\x01\x02" * 500)
    kept = message.part(LnsCall.ASKED)
    assert kept.type == message.type
    assert {key: len(value) for key, value in kept.avps.items()} == {
        Attr.ASSIGNED_SESSION_ID: 2,
        Attr.CALLING_NUMBER: 253,
    }
    small = l2tp_codec.Message(l2tp_codec.Type.ICRQ, True)
    small.avps = {Attr.ASSIGNED_SESSION_ID: b"\1\2", Attr.BEARER_TYPE: bytes(4)}
    assert small.part(LnsCall.ASKED) is small


def test_more_than_a_tunnel_may_have_do_not_wait() -> None:
    net, keeper = l2tp_net.Net(), Gatekeeper()
    engine, ppp = lns(net, keeper, session_limit=3)
    lac = net.lac()
    tunnel = up(net, lac)
    lac.call(tunnel)
    net.run(1)
    keeper.shut()
    calls = [lac.call(tunnel) for _ in range(4)]
    net.run(1)
    assert keeper.waiting == 2
    assert [call.why is None for call in calls] == [True, True, False, False]
    assert engine.services["L2TP"].drops["session-limit"] == 2
    keeper.turn()
    net.run(1)
    assert len(ppp.sessions) == 3


def test_a_call_too_many_is_refused() -> None:
    net, keeper = l2tp_net.Net(), Gatekeeper()
    engine, _ = lns(net, keeper)
    assert engine.asking is not None
    engine.asking._limit = 2
    lac = net.lac()
    tunnel = up(net, lac)
    keeper.shut()
    calls = [lac.call(tunnel) for _ in range(3)]
    net.run(1)
    assert [call.why is None for call in calls] == [True, True, False]
    assert "no facilities now" in str(calls[2].why)
    assert engine.services["L2TP"].drops["busy"] == 1


class Server:
    """A PAC, and whom it does not read from."""

    def __init__(self, keeper: Gatekeeper, **options: object) -> None:
        self.net = pptp_net.Net()
        self.ppp = FakePpp()
        self.resting: set[Connection] = set()
        blocks = [pptp_net.block(**options)]
        net = self.net
        self.pac = Pac(
            blocks, self.ppp.open, net.rng, net.wheel, "pac.example", net.transmit, keeper, self.throttle
        )
        net.node(pptp_net.PAC, self.pac)

    def throttle(self, connection: Connection, resting: bool) -> None:
        assert (connection in self.resting) is not resting
        (self.resting.add if resting else self.resting.remove)(connection)


def ask(raw: pptp_net.Raw, call_id: int) -> None:
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=call_id, window=64)


def test_an_outgoing_call_request_waits() -> None:
    keeper = Gatekeeper()
    server = Server(keeper, half_open_limit=1)
    raw, connection = server.net.started(server.pac)
    keeper.shut()
    for call_id in (7, 8, 9):
        ask(raw, call_id)
    raw.say(Type.CALL_CLEAR_REQUEST, call_id=8)
    assert not raw.messages()
    assert keeper.waiting == 2
    # It has asked: another one does not take its place.
    server.net.started(server.pac, port=40001)
    server.net.started(server.pac, port=40002)
    keeper.turn()
    server.net.run(0.1)
    replies = raw.messages()
    assert [reply.numbers["peer_call_id"] for reply in replies] == [7, 9]
    assert list(connection.calls) == [7, 9]
    assert dict(connection.service.drops) == {"half-open-limit": 1}


def test_a_connection_with_many_requests_is_not_read_for_a_while() -> None:
    keeper = Gatekeeper()
    server = Server(keeper)
    raw, connection = server.net.started(server.pac)
    keeper.shut()
    for call_id in range(REST + 2):
        ask(raw, call_id)
        assert (connection in server.resting) is (call_id >= REST - 1)
    while connection in server.resting:
        keeper.turn()
    assert 0 < keeper.waiting <= GO_ON
    keeper.turn()
    assert len(server.ppp.sessions) == REST + 2
    assert not server.resting
    assert not keeper.due


def test_a_connection_that_gives_its_calls_up_is_read_again() -> None:
    keeper = Gatekeeper()
    server = Server(keeper)
    raw, connection = server.net.started(server.pac)
    keeper.shut()
    for call_id in range(REST):
        ask(raw, call_id)
    assert connection in server.resting
    for call_id in range(REST - GO_ON):
        raw.say(Type.CALL_CLEAR_REQUEST, call_id=call_id)
    assert not server.resting


def test_no_connection_is_left_alone_for_long() -> None:
    """Else the peer's Echo-Requests would have no answer, and its sessions, which are up, would end."""
    keeper = Gatekeeper()
    server = Server(keeper)
    raw, connection = server.net.started(server.pac)
    other, quiet = server.net.started(server.pac, port=40001)
    keeper.shut()
    for call_id in range(5 * REST):
        ask(raw, call_id)
        if connection not in server.resting:
            since = server.net.now
    ask(other, 0)
    server.net.run(since + LONG - 1 - server.net.now)
    keeper.turn()
    assert server.resting == {connection}
    server.net.run(2)
    keeper.turn()
    assert not server.resting
    # Nor again, before it has but few.
    ask(raw, 5 * REST)
    assert not server.resting
    while keeper.waiting > GO_ON:
        keeper.turn()
    for call_id in range(REST):
        ask(raw, 1000 + call_id)
    assert server.resting == {connection}
    assert quiet.calls


def test_a_connection_that_is_stopped_is_read() -> None:
    keeper = Gatekeeper()
    server = Server(keeper)
    raw, _ = server.net.started(server.pac)
    keeper.shut()
    for call_id in range(REST):
        ask(raw, call_id)
    assert server.resting
    server.pac.shut(server.net.now)
    assert not server.resting


def test_who_waits_for_a_call_has_a_connection_that_stays() -> None:
    keeper = Gatekeeper()
    server = Server(keeper)
    raw, connection = server.net.started(server.pac)
    keeper.shut()
    ask(raw, 7)
    for _ in range(10):
        server.net.run(20)
        raw.say(Type.ECHO_REQUEST, identifier=1)
    assert connection.state is ConnectionState.ESTABLISHED
    raw.say(Type.CALL_CLEAR_REQUEST, call_id=7)
    for _ in range(10):
        server.net.run(20)
        raw.say(Type.ECHO_REQUEST, identifier=1)
    assert connection.id not in server.pac.connections


def test_the_calls_of_a_connection_that_ends_do_not_begin() -> None:
    keeper = Gatekeeper()
    server = Server(keeper)
    raw, _ = server.net.started(server.pac)
    keeper.shut()
    for call_id in range(REST):
        ask(raw, call_id)
    raw.close()
    server.net.run(1)
    assert not keeper.waiting
    keeper.turn()
    assert not server.ppp.sessions
    assert not server.pac.connections
    assert not server.resting


def test_a_call_too_many_is_refused_by_pptp() -> None:
    keeper = Gatekeeper()
    server = Server(keeper)
    assert server.pac.asking is not None
    server.pac.asking._limit = 1
    raw, connection = server.net.started(server.pac)
    keeper.shut()
    ask(raw, 7)
    ask(raw, 8)
    refusal = raw.hears(Type.OUTGOING_CALL_REPLY).numbers
    assert (refusal["peer_call_id"], refusal["result"], refusal["error"]) == (
        8,
        causes.GENERAL_ERROR,
        causes.NO_RESOURCE,
    )
    assert connection.service.drops["busy"] == 1


def radius(**options: object) -> tuple[radius_net.Net, radius_net.Host, Callable[[], None]]:
    entry = radius_net.entry("192.0.2.10")
    servers = radius_net.block(entry, max_outstanding=1, **options)
    net = radius_net.Net(servers)
    return net, net.host(entry), lambda: [net.ask(servers) for _ in range(20)] and None


def test_logins_that_wait_for_a_server_that_answers() -> None:
    net, host, ask_all = radius()
    host.delay = 2 * TICK
    ask_all()
    # Nothing is known of it yet.
    assert net.client.lag(net.now) == 0
    net.run(1)
    queued = net.state().queued
    assert 10 < queued < 19
    assert net.client.lag(net.now) == queued * 2 * TICK > LAG
    net.run(10)
    assert net.idle()
    assert net.client.lag(net.now) == 0


def test_logins_that_wait_for_a_server_that_is_silent() -> None:
    """It holds nobody up who needs another one."""
    net, host, ask_all = radius(timeout=30)
    host.delay = TICK
    ask_all()
    net.run(1)
    assert net.client.lag(net.now) > LAG
    host.silent = True
    net.run(1.5)
    assert net.state().queued
    assert net.client.lag(net.now) == 0
