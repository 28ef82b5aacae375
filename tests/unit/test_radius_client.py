"""Requests over all tries and servers: failover, health, reload, storms; and over real sockets."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

import pytest
import uvloop

from npppy.aaa.radius.client import Client
from npppy.aaa.radius.packet import Code, Pair, encode_reply, parse
from npppy.aaa.radius.server import IDLE
from npppy.aaa.radius.socket import opener
from npppy.config.model import Radius, RadiusServers
from npppy.wheel import TICK, Wheel
from tests.unit.radius_net import LOCAL, SECRET, Ask, Host, Net, block, config, entry

A, B, C = entry("192.0.2.10"), entry("192.0.2.11"), entry("192.0.2.12")


def nets(**options: object) -> tuple[Net, RadiusServers, Host, Host, Host]:
    servers = block(A, B, C, **options)
    world = Net(servers)
    return world, servers, world.host(A), world.host(B), world.host(C)


def who(ask: Ask) -> str:
    """The last octet of the server that has answered."""
    return str(ask.server).rpartition(".")[2].partition(":")[0]


# Which server.


def test_the_first_server_has_them_all() -> None:
    world, servers, _a, b, _ = nets()
    asks = [world.ask(servers) for _ in range(10)]
    world.run()
    assert {who(ask) for ask in asks} == {"10"}
    assert b.requests == []


def test_a_login_goes_on_to_the_next_server() -> None:
    world, servers, a, b, _ = nets(max_tries=3)
    a.silent = True
    ask = world.ask(servers)
    world.run(5)
    assert who(ask) == "11"
    assert len(a.requests) == 3
    assert len(b.requests) == 1
    # It was made anew.
    assert ask.built == 2
    assert a.requests[0].authenticator != b.requests[0].authenticator
    # The others know it already, and that the second one is there.
    later = [world.ask(servers) for _ in range(5)]
    world.run()
    assert {who(ask) for ask in later} == {"11"}
    assert len(a.of(Code.ACCESS_REQUEST)) == 3


def test_a_refusing_server_costs_no_time() -> None:
    world, servers, a, _b, _ = nets()
    a.refusing = True
    ask = world.ask(servers)
    world.run()
    assert who(ask) == "11"
    assert ask.at == 1000


def test_a_server_that_is_slow_keeps_the_login() -> None:
    world, servers, a, b, _ = nets(max_tries=3)
    a.delay = 2.6
    ask = world.ask(servers)
    world.run(5)
    assert who(ask) == "10"
    assert b.requests == []


@pytest.mark.parametrize(("failovers", "answer"), [(0, ""), (1, ""), (2, "12")])
def test_only_so_many_failovers(failovers: int, answer: str) -> None:
    world, servers, a, b, _c = nets(max_tries=2, max_failovers=failovers)
    a.silent = b.silent = True
    ask = world.ask(servers)
    world.run(10)
    assert who(ask) == answer if answer else ask.reason
    assert len(b.of(Code.ACCESS_REQUEST)) == (2 if failovers else 0)
    assert world.idle()


def test_a_server_known_dead_is_no_failover() -> None:
    world, servers, a, b, c = nets(max_tries=1, max_failovers=1)
    a.silent = True
    world.ask(servers)
    world.run(2)
    a.silent, b.silent, c.silent = False, True, True
    # B, C; then A, which is dead as far as one knows.
    ask = world.ask(servers)
    world.run(5)
    assert who(ask) == "10"


def test_priorities() -> None:
    spare, first, second = entry("192.0.2.10", priority=5), entry("192.0.2.11"), entry("192.0.2.12", priority=1)
    servers = block(spare, first, second, max_tries=1, max_failovers=2)
    world = Net(servers)
    ask = world.ask(servers)
    world.run(1)
    assert who(ask) == "11"
    world.host(first).silent = world.host(second).silent = True
    world.host(first).status_server = True
    ask = world.ask(servers)
    world.run(5)
    assert who(ask) == "10"
    # As soon as it is there again, it has them.
    world.host(first).silent = False
    world.run(20)
    ask = world.ask(servers)
    world.run()
    assert who(ask) == "11"


def test_who_has_taken_over_keeps_them() -> None:
    world, servers, a, _b, _ = nets(max_tries=1)
    a.silent = True
    world.ask(servers)
    world.run(2)
    world.ask(servers)
    world.run()
    a.silent = False
    world.run(20)
    assert world.state(0).state == "up"
    ask = world.ask(servers)
    world.run()
    assert who(ask) == "11"


def test_servers_take_turns() -> None:
    world, servers, _a, b, _c = nets(balance=True, max_tries=1)
    asks = [world.ask(servers) for _ in range(30)]
    world.run(1)
    assert Counter(map(who, asks)) == {"10": 10, "11": 10, "12": 10}
    b.silent = True
    asks = [world.ask(servers) for _ in range(30)]
    world.run(3)
    assert "11" not in Counter(map(who, asks))
    asks = [world.ask(servers) for _ in range(30)]
    world.run()
    assert Counter(map(who, asks)) == {"10": 15, "12": 15}


def test_a_login_stays_with_who_has_challenged() -> None:
    world, servers, a, b, c = nets(balance=True, max_tries=1)
    ask = world.ask(servers)
    world.run()
    for _ in range(5):
        again = world.ask(servers, pin=ask.server)
        world.run()
        assert again.server is ask.server
    world.run(1)
    # Unless that is gone.
    for host in (a, b, c):
        host.silent = host is world.hosts[ask.server.address, 1812]  # type: ignore[union-attr]
    again = world.ask(servers, pin=ask.server)
    world.run(3)
    assert again.reply is not None
    assert again.server is not ask.server
    # Dead, it is not even asked.
    count = sum(len(host.of(Code.ACCESS_REQUEST)) for host in (a, b, c) if host.silent)
    again = world.ask(servers, pin=ask.server)
    world.run()
    assert again.reply is not None
    assert sum(len(host.of(Code.ACCESS_REQUEST)) for host in (a, b, c) if host.silent) == count


def test_no_server_at_all() -> None:
    world = Net()
    ask = world.ask(block())
    assert not ask.done
    world.run(0.5)
    assert ask.reason == "no server"


# Time.


def test_the_deadline_is_over_all_tries_and_servers() -> None:
    world, servers, a, b, c = nets(max_tries=5, max_failovers=2)
    a.silent = b.silent = c.silent = True
    ask = world.ask(servers, deadline=7)
    world.run(20)
    assert ask.reason == "no answer from 192.0.2.11:1812"
    assert 1007 <= ask.at <= 1007 + 2 * TICK
    assert c.requests == []
    assert world.idle()


def test_a_deadline_before_the_last_try_shows_the_server_dead() -> None:
    world, servers, a, *_ = nets(max_tries=10)
    a.silent = True
    world.ask(servers, deadline=3)
    world.run(4)
    assert world.state().state == "probing"
    ask = world.ask(servers, deadline=3)
    world.run()
    assert who(ask) == "11"


# Health.


def test_others_that_are_answered_keep_a_server_alive() -> None:
    """One request that a server does not like is not its death."""
    world, servers, a, _b, _ = nets(max_tries=2)
    usual = a.answer
    a.answer = lambda request: b"" if request.text("User-Name") == "poison" else usual(request)  # type: ignore[method-assign]
    poison = Ask(world)
    poison.sends = [("User-Name", "poison")]
    world.client.request(servers, "auth", poison, world.now)
    for _ in range(10):
        ask = world.ask(servers)
        world.run(0.5)
        assert who(ask) == "10"
    assert who(poison) == "11"
    assert world.state(0).state == "up"
    assert world.state(0).timeouts == 1


def test_a_dead_server_is_asked_and_comes_back() -> None:
    world, servers, a, _b, _ = nets(max_tries=1, dead_time=1000)
    a.silent = True
    world.ask(servers)
    world.run(2)
    assert world.state(0).state == "probing"
    assert world.state(0).since == 1000 + 1e9 + 1.125
    world.run(40)
    probes = a.of(Code.STATUS_SERVER)
    assert 2 <= len(probes) <= 6
    # None is like another (RFC 5997 section 4.2), and none comes from where another came.
    assert len({probe.authenticator for probe in probes}) == len(probes)
    assert probes[0].names() == ["Message-Authenticator", "NAS-IP-Address"]
    assert len(world.opened()) <= 2
    # Nobody else is sent there.
    ask = world.ask(servers)
    world.run()
    assert who(ask) == "11"
    a.silent = False
    world.run(15)
    assert world.state(0).state == "up"
    count = len(a.of(Code.STATUS_SERVER))
    world.run(100)
    assert len(a.of(Code.STATUS_SERVER)) == count
    # A server's accounts are of logins only.
    assert world.state(0).accepts == 0


def test_an_answer_to_status_server_need_not_be_signed() -> None:
    """FreeRADIUS 3.2.1 has no way to sign it; of logins it is wanted all the same."""
    world, servers, a, *_ = nets(max_tries=1)
    a.silent = True
    world.ask(servers)
    world.run(2)
    a.silent = a.signed = False
    world.run(15)
    assert world.state(0).state == "up"
    ask = world.ask(block(A, max_tries=1))
    world.run(2)
    assert ask.reason


def test_two_servers_are_not_asked_at_the_same_time() -> None:
    world, servers, a, b, _ = nets(max_tries=1, max_failovers=2)
    a.silent = b.silent = True
    times: dict[str, list[float]] = {"a": [], "b": []}
    world.ask(servers)
    world.run(3)
    for _ in range(400):
        before = len(a.datagrams), len(b.datagrams)
        world.run(TICK)
        if len(a.datagrams) > before[0]:
            times["a"].append(world.now)
        if len(b.datagrams) > before[1]:
            times["b"].append(world.now)
    gaps = {round(later - earlier, 3) for row in times.values() for earlier, later in itertools.pairwise(row)}
    assert len(gaps) > 2
    assert all(7 < gap < 14 for gap in gaps)


def test_a_server_that_knows_no_status_server_is_tried_by_a_login() -> None:
    servers = block(A, entry("192.0.2.11", priority=1), max_tries=1, dead_time=30)
    world = Net(servers)
    a = world.host(A)
    a.silent, a.status_server = True, False
    world.ask(servers)
    world.run(29)
    count = len(a.of(Code.ACCESS_REQUEST))
    ask = world.ask(servers)
    world.run(0.5)
    assert who(ask) == "11"
    world.run(5)
    # One of them looks, the others do not wait for that.
    asks = [world.ask(servers) for _ in range(5)]
    world.run(0.5)
    assert [ask.done for ask in asks].count(False) == 1
    assert len(a.of(Code.ACCESS_REQUEST)) == count + 1
    world.run(2)
    assert {who(ask) for ask in asks} == {"11"}
    a.silent = False
    world.run(31)
    ask = world.ask(servers)
    world.run()
    assert who(ask) == "10"
    assert world.state(0).state == "up"


def test_without_status_server_nobody_asks() -> None:
    plain = entry("192.0.2.10", status_server=False)
    servers = block(plain, B, max_tries=1, dead_time=30)
    world = Net(servers)
    a = world.host(plain)
    a.silent = True
    world.ask(servers)
    world.run(20)
    assert world.state(0).state == "dead"
    assert a.of(Code.STATUS_SERVER) == []


def test_with_all_dead_the_one_dead_longest_is_tried() -> None:
    world, servers, a, b, c = nets(max_tries=1, max_failovers=5, dead_time=10_000)
    for host in (a, b, c):
        host.silent = True
        host.status_server = False
    world.ask(servers)
    world.run(5)
    assert [state.state for state in world.client.state()] == ["probing"] * 3
    counts = [len(host.of(Code.ACCESS_REQUEST)) for host in (a, b, c)]
    assert counts == [1, 1, 1]
    ask = world.ask(servers)
    world.run(0.5)
    assert len(a.of(Code.ACCESS_REQUEST)) == 2
    b.silent = False
    # And then the others: none of that is a failover.
    world.run(2)
    assert who(ask) == "11"


def test_who_waits_for_a_server_that_dies_goes_elsewhere() -> None:
    world, servers, a, b, _ = nets(max_outstanding=1, max_tries=2, max_failovers=0)
    a.silent = True
    first = world.ask(servers)
    waiting = [world.ask(servers) for _ in range(20)]
    b.delay = 0.05
    world.run(5)
    assert first.reason
    # They were never sent to the first one, so that is no failover.
    assert {who(ask) for ask in waiting} == {"11"}
    assert world.idle()


def test_who_waits_for_the_only_server_waits_on() -> None:
    servers = block(A, max_outstanding=1, max_tries=2)
    world = Net(servers)
    world.host(A).silent = True
    asks = [world.ask(servers) for _ in range(5)]
    world.run(3)
    assert [ask.done for ask in asks] == [True, False, False, False, False]
    assert world.state().state == "probing"
    world.host(A).silent = False
    world.run(5)
    assert all(ask.reply is not None for ask in asks[2:])
    assert world.idle()


@pytest.mark.parametrize("error", [errno.ENETUNREACH, errno.EADDRNOTAVAIL])
def test_with_no_route_at_all_nobody_hangs(error: int) -> None:
    world, servers, *_ = nets(max_outstanding=3, max_failovers=5)
    world.error = error if error == errno.ENETUNREACH else 0
    world.no_sockets = error if error == errno.EADDRNOTAVAIL else 0
    asks = [world.ask(servers, flow=at % 3) for at in range(2000)]
    world.run(1)
    assert all(ask.reason for ask in asks)
    assert world.idle()
    assert world.opened() == []
    world.error = world.no_sockets = 0
    world.run(30)
    assert [state.state for state in world.client.state()] == ["up"] * 3
    ask = world.ask(servers)
    world.run()
    assert ask.reply is not None


def test_the_server_goes_and_comes_back_in_a_storm() -> None:
    servers = block(A, max_tries=3, dead_time=5, max_outstanding=300)
    world = Net(servers)
    host = world.host(A)
    host.delay = 0.2
    asks = []
    for second in range(30):
        host.silent = 5 <= second < 12
        host.refusing = 12 <= second < 15
        asks += [world.ask(servers, flow=at, deadline=20) for at in range(100)]
        world.run(1)
    world.run(30)
    assert all(ask.done for ask in asks)
    answered = sum(ask.reply is not None for ask in asks)
    assert answered >= 15 * 100
    assert all(ask.reply is not None for ask in asks[-500:])
    assert world.idle()
    world.run(3 * IDLE)
    assert world.opened() == []


# Storms.


def test_five_thousand_logins_at_once() -> None:
    servers = block(A, timeout=9)
    world = Net(servers)
    host = world.host(A)
    host.delay = 0.2
    asks = [world.ask(servers, flow=at % 500) for at in range(5000)]
    assert world.state().outstanding == servers.max_outstanding
    world.run(2)
    assert all(ask.reply is not None for ask in asks)
    assert max(ask.at for ask in asks) <= 1000 + 5 * (0.2 + TICK)
    assert len(host.datagrams) == 5000
    assert world.state().bad == {}
    assert world.idle()
    assert len(world.sockets) == 4
    world.run(3 * IDLE)
    assert world.opened() == []


def test_a_storm_of_logins_that_go_away() -> None:
    servers = block(A, timeout=9, max_outstanding=512)
    world = Net(servers)
    host = world.host(A)
    host.delay = 0.2
    for round_ in range(10):
        asks = [world.ask(servers, flow=at % 50) for at in range(2000)]
        world.run(0.125 * (round_ % 4))
        for ask in asks:
            ask.cancel()
    world.run(1)
    assert world.idle()
    assert len(world.opened()) <= 4
    ask = world.ask(servers)
    world.run(1)
    assert ask.reply is not None
    world.run(3 * IDLE)
    assert world.opened() == []
    assert len(world.wheel) == 0


# Reload.


def test_a_reload_keeps_what_is_known_of_servers() -> None:
    world, servers, a, b, _ = nets(max_tries=1)
    a.silent = True
    world.ask(servers)
    world.run(2)
    changed = block(A, entry("192.0.2.11", require_message_authenticator=False), timeout=5)
    world.client.configure(config(changed), world.now)
    states = {str(state.address): state for state in world.client.state()}
    # The third had nothing to do any more.
    assert states.keys() == {"192.0.2.10", "192.0.2.11"}
    assert states["192.0.2.10"].state == "probing"
    assert states["192.0.2.11"].answers == 1
    b.signed = False
    ask = world.ask(changed)
    world.run()
    assert who(ask) == "11"


def test_a_login_in_flight_outlives_its_server_in_the_configuration() -> None:
    world, servers, a, _b, _c = nets(max_outstanding=2)
    a.delay = 0.5
    asks = [world.ask(servers) for _ in range(6)]
    world.run(0.25)
    world.client.configure(config(block(C)), world.now)
    # B was idle, A is not.
    assert [str(state.address) for state in world.client.state()] == ["192.0.2.10", "192.0.2.12"]
    world.run(3)
    assert {who(ask) for ask in asks} == {"10"}
    assert [str(state.address) for state in world.client.state()] == ["192.0.2.12"]
    assert world.opened() == []


def test_a_login_of_the_old_configuration_may_begin_after_the_new_one() -> None:
    """An exchange of EAP goes on with its realm as it was."""
    world, servers, _a, *_ = nets()
    ask = world.ask(servers)
    world.run()
    world.client.configure(config(block(C)), world.now)
    again = world.ask(servers, pin=ask.server)
    world.run(1)
    assert who(again) == "10"
    assert [str(state.address) for state in world.client.state()] == ["192.0.2.12"]
    assert world.opened() == []


def test_servers_removed_while_dead() -> None:
    world, servers, a, *_ = nets(max_tries=1)
    a.silent = True
    ask = world.ask(servers)
    world.run(30)
    assert ask.done
    world.client.configure(config(block(C)), world.now)
    assert [str(state.address) for state in world.client.state()] == ["192.0.2.12"]
    count = len(a.datagrams)
    world.run(200)
    assert len(a.datagrams) == count
    assert world.opened() == []
    assert len(world.wheel) == 0


def test_another_secret_is_another_server() -> None:
    world, _servers, a, *_ = nets(max_tries=1)
    a.secret = b"new"
    a.code = Code.ACCESS_ACCEPT
    ask = world.ask(block(A, max_tries=1))
    world.run(2)
    assert ask.reason
    changed = block(entry("192.0.2.10", secret="new"))
    world.client.configure(config(changed), world.now)
    ask = world.ask(changed)
    world.run()
    assert who(ask) == "10"


def test_status_server_switched_by_a_reload() -> None:
    world = Net(block(A, max_tries=1))
    a = world.host(A)
    a.silent = True
    world.ask(block(A, max_tries=1))
    world.run(2)
    world.client.configure(config(block(entry("192.0.2.10", status_server=False))), world.now)
    count = len(a.datagrams)
    world.run(30)
    assert len(a.datagrams) == count
    assert world.state().state == "dead"
    world.client.configure(config(block(A)), world.now)
    world.run(15)
    assert len(a.datagrams) == count + 1


# Accounting.


def test_accounting_has_servers_of_its_own() -> None:
    where = entry("192.0.2.10", port=1813)
    auth, acct = block(A), block(where, max_tries=1)
    world = Net(auth, acct=acct)
    ask = world.ask(acct, "acct")
    ask.sends = [("Acct-Status-Type", 1)]
    world.run()
    assert ask.reply is not None
    assert ask.reply.code == Code.ACCOUNTING_RESPONSE
    world.run(1)
    world.host(where).silent = True
    world.ask(acct, "acct")
    world.run(2)
    assert [(state.kind, state.state) for state in world.client.state()] == [("auth", "up"), ("acct", "probing")]
    world.accounting = True
    world.host(where).silent = False
    world.run(20)
    assert world.state(1).state == "up"


def test_an_access_accept_is_no_answer_to_a_record() -> None:
    acct = block(entry("192.0.2.10", port=1813))
    world = Net(acct=acct)
    host = world.host(acct.servers[0])
    host.spoil = lambda data: encode_reply(host.requests[-1], Code.ACCESS_ACCEPT, (), SECRET.encode())
    ask = world.ask(acct, "acct")
    ask.sends = [("Acct-Status-Type", 1)]
    world.run()
    assert not ask.done
    assert world.state().bad == {"code": 1}


# Addresses.


def test_the_addresses_of_the_nas() -> None:
    addresses = ip_address("203.0.113.5"), ip_address("2001:db8::5")
    servers = block(A)
    world = Net(servers, radius=Radius(nas_addresses=addresses))
    world.ask(servers)
    world.run()
    request = world.host(A).requests[0]
    assert request.integer("NAS-IP-Address") == int(addresses[0])
    assert request.octets("NAS-IPv6-Address") == addresses[1].packed


def test_the_source_is_of_the_server_s_family() -> None:
    six = entry("2001:db8::10")
    sources = ip_address("2001:db8::99"), ip_address("192.0.2.99")
    servers = block(A, six, balance=True, source=sources)
    world = Net(servers)
    for _ in range(2):
        world.ask(servers)
    world.run()
    assert {(server.to[0].version, server.local) for server in world.sockets} == {(4, sources[1]), (6, sources[0])}
    assert LOCAL[4] not in sources


# Real sockets, on loopback.


class Real:
    """A client on the event loop, and the wheel turned by hand."""

    def __init__(self) -> None:
        self.wheel = Wheel(time.monotonic())
        self.now = time.monotonic()
        self.client = Client(self.wheel, bytes, opener(time.monotonic), time.time)

    async def until(self, ask: Ask) -> None:
        async with asyncio.timeout(60):
            while not ask.done:
                self.wheel.advance(time.monotonic())
                await asyncio.sleep(0.01)

    def ask(self, servers: RadiusServers) -> Ask:
        self.now = time.monotonic()
        self.client.configure(config(servers), self.now)
        ask = Ask(self)  # type: ignore[arg-type]
        self.client.request(servers, "auth", ask, self.now)
        return ask


LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@LOOPS
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_over_real_sockets(host: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(over_real_sockets(host))


async def over_real_sockets(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as stranger:
        server.bind((host, 0))
        stranger.bind((host, 0))
        server.setblocking(False)
        port = server.getsockname()[1]
        servers = block(entry(host, port=port), timeout=30)
        real = Real()
        ask = real.ask(servers)
        async with asyncio.timeout(60):
            while True:
                try:
                    data, peer = server.recvfrom(4096)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.01)
        request = parse(data)
        name: Pair = ("Reply-Message", "right")
        reply = encode_reply(request, Code.ACCESS_ACCEPT, [name], SECRET.encode())
        # From another address, though right in all else: the kernel drops it.
        stranger.sendto(encode_reply(request, Code.ACCESS_ACCEPT, [], SECRET.encode()), peer)
        server.sendto(reply[:-1], peer)
        server.sendto(reply, peer)
        await real.until(ask)
        assert ask.reply is not None
        assert ask.reply.text("Reply-Message") == "right"
        assert real.client.state()[0].bad == {"malformed": 1}
        assert ("NAS-IPv6-Address" in request) == (":" in host)
        real.client.close()


@LOOPS
def test_a_port_where_nobody_listens_and_then_somebody(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(a_port_where_nobody_listens_and_then_somebody())


async def a_port_where_nobody_listens_and_then_somebody() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    servers = block(entry("127.0.0.1", port=port), timeout=30, dead_time=1)
    real = Real()
    for _ in range(3):
        ask = real.ask(servers)
        await real.until(ask)
        assert ask.reason == f"ECONNREFUSED at 127.0.0.1:{port}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", port))
        ask = real.ask(servers)
        server.settimeout(60)
        data, peer = server.recvfrom(4096)
        server.sendto(encode_reply(parse(data), Code.ACCESS_REJECT, [], SECRET.encode()), peer)
        await real.until(ask)
        assert ask.reply is not None
    real.client.close()


@LOOPS
def test_a_socket_is_read_after_an_error(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """libuv forgets a socket that had one; what is still to come by it must be read all the same."""

    class Ear:
        def __init__(self) -> None:
            self.errors: list[int] = []
            self.heard: list[bytes] = []

        def received(self, data: bytes, now: float) -> None:
            self.heard.append(data)

        def unreachable(self, error: int, now: float) -> None:
            self.errors.append(error)

    async def listen() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
        ear = Ear()
        ours = opener(time.monotonic)(ip_address("127.0.0.1"), port, ip_address("127.0.0.1"), ear)
        async with asyncio.timeout(60):
            for count in range(1, 4):
                assert ours.send(b"anybody?") == 0
                while len(ear.errors) < count:
                    await asyncio.sleep(0.01)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.bind(("127.0.0.1", port))
                server.settimeout(60)
                assert ours.send(b"and now?") == 0
                server.sendto(b"here", server.recvfrom(100)[1])
                while not ear.heard:
                    await asyncio.sleep(0.01)
        assert ear.errors == [errno.ECONNREFUSED] * 3
        assert ear.heard == [b"here"]
        ours.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(listen())
