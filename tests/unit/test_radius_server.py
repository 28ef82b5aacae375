"""One RADIUS server: its identifiers, its sockets, who waits for it, and each way in which its replies are wrong."""

from __future__ import annotations

import errno
from collections import Counter
from hashlib import md5

import pytest

from npppy.aaa.radius.packet import Code, encode_reply, parse
from npppy.aaa.radius.server import IDENTIFIERS, IDLE
from npppy.config.model import RadiusServers
from tests.unit.radius_net import SECRET, Ask, FakeSocket, Host, Net, block, entry, unreadable

ONE = entry()


def net(**options: object) -> tuple[Net, RadiusServers, Host]:
    servers = block(ONE, **options)
    made = Net(servers)
    return made, servers, made.host(ONE)


def test_a_login_is_answered() -> None:
    world, servers, host = net()
    host.delay = 0.03
    ask = world.ask(servers)
    world.run(1)
    assert ask.reply is not None
    assert ask.reply.code == Code.ACCESS_ACCEPT
    assert str(ask.server) == "192.0.2.10:1812"
    state = world.state()
    assert (state.kind, state.state, state.requests, state.answers, state.accepts) == ("auth", "up", 1, 1, 1)
    assert (state.outstanding, state.queued, state.sockets, state.retransmissions) == (0, 0, 1, 0)
    assert state.last_rtt_ms > 0
    assert state.bad == {}


@pytest.mark.parametrize("code", [Code.ACCESS_REJECT, Code.ACCESS_CHALLENGE])
def test_other_answers_are_answers(code: Code) -> None:
    world, servers, host = net()
    host.code = code
    ask = world.ask(servers)
    world.run()
    assert ask.reply is not None
    assert ask.reply.code == code
    state = world.state()
    assert (state.rejects, state.challenges) == ((1, 0) if code == Code.ACCESS_REJECT else (0, 1))


def test_a_transmission_is_repeated_as_it_was() -> None:
    world, servers, host = net(max_tries=3)
    host.silent = True
    ask = world.ask(servers)
    world.run(1.5)
    host.silent = False
    world.run(1)
    assert ask.reply is not None
    assert len(host.datagrams) == 3
    assert len({(id(socket), data) for socket, data in host.datagrams}) == 1
    assert ask.built == 1
    assert world.state().retransmissions == 2
    # Nobody knows which of them was answered (RFC 6298 section 3).
    assert world.state().rtt_ms == 0


def test_a_slow_server_is_waited_for() -> None:
    world, servers, host = net(max_tries=3)
    host.delay = 2.6
    ask = world.ask(servers)
    world.run(5)
    assert ask.reply is not None
    assert ask.at - 1000 < 2.8
    # The second and third answer, to nobody.
    assert world.state().bad == {"unexpected": 2}
    assert world.state().state == "up"


def test_a_silent_server() -> None:
    world, servers, host = net(max_tries=3)
    host.silent = True
    ask = world.ask(servers)
    world.run(4)
    assert ask.reason == "no answer from 192.0.2.10:1812"
    assert len(host.datagrams) == 3
    assert world.idle()
    state = world.state()
    assert (state.timeouts, state.state) == (1, "probing")


def test_a_refusing_server_is_given_up_at_once() -> None:
    world, servers, host = net(max_tries=3)
    host.refusing = True
    asks = [world.ask(servers) for _ in range(5)]
    world.run(0.5)
    assert {ask.reason for ask in asks} == {"ECONNREFUSED at 192.0.2.10:1812"}
    assert len([data for _, data in host.datagrams if data[0] == 1]) == 5
    assert world.idle()
    assert world.opened() == []


# What a reply may be wrong in.


def _stale(data: bytes) -> bytes:
    """Made for another request."""
    return data[:4] + bytes(16) + data[20:]


def _identifier(data: bytes) -> bytes:
    return data[:1] + bytes((data[1] ^ 0x80,)) + data[2:]


def _accounting(data: bytes) -> bytes:
    return b"\x05" + data[1:]


def _short(data: bytes) -> bytes:
    return data[:-1]


def _garbage(data: bytes) -> bytes:
    return b"\xff" * 40


WRONG = [
    (_stale, "authenticator"),
    (_identifier, "unexpected"),
    (_accounting, "code"),
    (_short, "malformed"),
    (_garbage, "malformed"),
    (lambda data: b"", "malformed"),
]


@pytest.mark.parametrize(("spoil", "why"), WRONG, ids=range(len(WRONG)))
def test_a_reply_that_is_wrong_is_waited_past(spoil: object, why: str) -> None:
    world, servers, host = net(max_tries=3)
    host.spoil = spoil  # type: ignore[assignment]
    ask = world.ask(servers)
    world.run(0.5)
    assert not ask.done
    assert world.state().bad == {why: 1}
    host.spoil = lambda data: data
    world.run(1)
    assert ask.reply is not None
    assert world.idle()


def test_a_wrong_secret() -> None:
    world, servers, host = net(max_tries=2)
    host.secret = b"other"
    ask = world.ask(servers)
    world.run(3)
    assert ask.reason == "no answer from 192.0.2.10:1812"
    assert world.state().bad["authenticator"] == 2
    # What does not count, shows nothing of the server.
    assert world.state().state == "probing"
    assert world.idle()


def test_a_reply_without_message_authenticator() -> None:
    world, servers, host = net()
    host.signed = False
    ask = world.ask(servers)
    world.run(0.5)
    assert not ask.done
    assert world.state().bad == {"no-message-authenticator": 1}
    old = block(entry(require_message_authenticator=False))
    ask = world.ask(old)
    world.run()
    assert ask.reply is not None


@pytest.mark.parametrize("attribute", [b"\x08\x00", b"\x08\x01", b"\x1a\x08\0\0\x01\x37\x10\x01", b"\x08\xff\1\2\3\4"])
def test_malformed_attributes_of_the_server(attribute: bytes) -> None:
    """Authentic, but not a packet: as if it had not come."""
    world, servers, host = net(max_tries=1)

    def spoil(data: bytes) -> bytes:
        request = host.requests[-1]
        body = data[20:] + attribute
        head = data[:2] + (20 + len(body)).to_bytes(2, "big")
        return head + md5(head + request.authenticator + body + SECRET.encode()).digest() + body

    host.spoil = spoil
    ask = world.ask(servers)
    world.run(0.5)
    assert not ask.done
    assert world.state().bad == {"malformed": 1}
    world.run(2)
    assert ask.reason
    assert world.idle()


def test_attributes_that_the_login_cannot_read() -> None:
    world, servers, _host = net(max_tries=2)
    ask = world.ask(servers)
    ask.picky = unreadable
    world.run(0.5)
    assert not ask.done
    assert world.state().bad == {"attribute": 1}
    ask.picky = lambda reply: None
    world.run(1)
    assert ask.reply is not None
    # It is there, whatever it says.
    assert world.state().state == "up"
    assert world.idle()


def test_a_mistake_in_a_login_is_not_one_of_the_server() -> None:
    world, servers, _host = net()
    ask = world.ask(servers)

    def fall(reply: object) -> None:
        raise KeyError("mistake")

    ask.picky = fall
    world.run()
    assert world.idle()
    other = world.ask(servers)
    world.run()
    assert other.reply is not None


def test_two_logins_have_their_own_answers() -> None:
    world, servers, host = net()
    host.silent = True
    asks = [world.ask(servers), world.ask(servers)]
    # In the other order.
    for socket, data in reversed(host.datagrams):
        request = parse(data)
        socket.deliver(encode_reply(request, Code.ACCESS_ACCEPT, [("Class", data[1:2])], SECRET.encode()))
    for ask, (_, data) in zip(asks, host.datagrams, strict=True):
        assert ask.reply is not None
        assert ask.reply.octets("Class") == data[1:2]


def test_the_authenticator_is_never_the_same() -> None:
    world, servers, host = net()
    for _ in range(300):
        world.ask(servers)
        world.run()
    assert len({request.authenticator for request in host.requests}) == 300
    # One after the other, the first socket does.
    assert len(world.sockets) == 1
    assert Counter(request.identifier for request in host.requests).most_common(1)[0][1] == 2


# Identifiers and sockets.


def test_more_requests_than_identifiers() -> None:
    world, servers, host = net(max_outstanding=1000)
    host.delay = 0.2
    asks = [world.ask(servers) for _ in range(1000)]
    assert world.state().outstanding == 1000
    assert len(world.opened()) == 4
    pairs = {(id(socket), data[1]) for socket, data in host.datagrams}
    assert len(pairs) == 1000
    world.run(1)
    assert all(ask.reply is not None for ask in asks)
    assert world.idle()
    world.run(2 * IDLE)
    assert world.opened() == []


def test_what_is_too_much_waits() -> None:
    world, servers, host = net(max_outstanding=10)
    host.delay = 0.2
    asks = [world.ask(servers) for _ in range(35)]
    assert (world.state().outstanding, world.state().queued) == (10, 25)
    world.run(0.25)
    assert (world.state().outstanding, world.state().queued) == (10, 15)
    world.run(1)
    assert all(ask.reply is not None for ask in asks)
    assert world.idle()


def test_flows_take_turns() -> None:
    world, servers, host = net(max_outstanding=1)
    storm = [world.ask(servers, flow="storm") for _ in range(100)]
    host.silent = True
    world.run()
    host.silent = False
    quiet = [world.ask(servers, flow=at) for at in range(3)]
    # The server takes one at a time, and answers a tick later.
    host.delay = 0.125
    world.run(3)
    assert all(ask.reply is not None for ask in quiet)
    first = sum(ask.done and ask.at <= max(other.at for other in quiet) for ask in storm)
    assert first <= 5
    world.run(100)
    assert all(ask.done for ask in storm)
    assert world.idle()


def test_who_waits_too_long_for_a_turn() -> None:
    world, servers, host = net(max_outstanding=1, timeout=30)
    host.silent = True
    first, second = world.ask(servers, deadline=100), world.ask(servers, deadline=5)
    world.run(6)
    assert second.reason == "no turn at 192.0.2.10:1812"
    assert not first.done
    assert world.state().queued == 0
    assert len(host.datagrams) == 1


def test_cancelled_requests_give_their_identifiers_back() -> None:
    world, servers, host = net(max_outstanding=256, max_tries=1)
    host.silent = True
    for _ in range(20):
        asks = [world.ask(servers) for _ in range(300)]
        for ask in asks:
            ask.cancel()
            ask.cancel()
    world.run(0.2)
    assert world.idle()
    assert len(world.opened()) <= 2
    host.silent = False
    ask = world.ask(servers)
    world.run()
    assert ask.reply is not None
    world.run(2 * IDLE)
    assert world.opened() == []


def test_an_identifier_is_not_used_again_while_an_answer_may_come() -> None:
    world, servers, host = net(max_outstanding=256, timeout=5)
    host.silent = True
    gone = world.ask(servers)
    world.run()
    gone.cancel()
    socket, data = host.datagrams[0]
    others = [world.ask(servers) for _ in range(256)]
    world.run()
    assert (id(socket), data[1]) not in {(id(where), what[1]) for where, what in host.datagrams[1:]}
    # Its answer comes late, and is nobody's.
    socket.deliver(encode_reply(parse(data), Code.ACCESS_ACCEPT, (), SECRET.encode()))
    assert not gone.done
    assert not any(ask.done for ask in others)
    assert world.state().bad == {"unexpected": 1}


def test_an_answer_to_who_had_the_identifier_before() -> None:
    """With no other left, it is used all the same: the authenticator tells."""
    world, servers, host = net(max_outstanding=1, timeout=100)
    host.silent = True
    for _ in range(2 * IDENTIFIERS):
        world.ask(servers).cancel()
        world.run(0.125)
    ask = world.ask(servers, deadline=200)
    world.run()
    assert len(world.opened()) == 2
    socket, data = host.datagrams[0]
    assert (id(socket), data[1]) == (id(host.datagrams[-1][0]), host.datagrams[-1][1][1])
    socket.deliver(encode_reply(parse(data), Code.ACCESS_REJECT, (), SECRET.encode()))
    assert not ask.done
    assert world.state().bad == {"authenticator": 1}
    host.silent = False
    world.run(101)
    assert ask.reply is not None


def test_a_duplicate_answer() -> None:
    world, servers, host = net()
    ask = world.ask(servers)
    world.run()
    socket, data = host.datagrams[0]
    reply = encode_reply(parse(data), Code.ACCESS_ACCEPT, (), SECRET.encode())
    socket.deliver(reply)
    assert ask.done
    assert world.state().bad == {"unexpected": 1}


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.EAGAIN])
def test_a_full_queue_is_a_lost_datagram(error: int) -> None:
    world, servers, _host = net()
    world.error = error
    ask = world.ask(servers)
    world.run(0.5)
    assert not ask.done
    world.error = 0
    world.run(1)
    assert ask.reply is not None
    assert world.state().bad == {f"send-{errno.errorcode[error]}": 1}
    assert world.idle()


@pytest.mark.parametrize("error", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EINVAL])
def test_a_lost_route(error: int) -> None:
    world, servers, _host = net(max_outstanding=100)
    world.error = error
    asks = [world.ask(servers, flow=at % 7) for at in range(1000)]
    assert not any(ask.done for ask in asks)
    world.run(0.5)
    assert {ask.reason for ask in asks} == {f"{errno.errorcode[error]} at 192.0.2.10:1812"}
    assert world.idle()
    assert world.opened() == []
    world.error = 0
    ask = world.ask(servers)
    world.run()
    assert ask.reply is not None


def test_the_route_is_lost_between_transmissions() -> None:
    world, servers, host = net(max_outstanding=2)
    host.silent = True
    asks = [world.ask(servers) for _ in range(5)]
    world.run(0.5)
    world.error = errno.ENETUNREACH
    world.run(2)
    assert all(ask.reason for ask in asks)
    assert world.idle()
    assert world.opened() == []


def test_no_more_sockets() -> None:
    world, servers, host = net(max_outstanding=600)
    world.no_sockets = errno.EMFILE
    ask = world.ask(servers)
    world.run(0.5)
    assert ask.reason == "EMFILE at 192.0.2.10:1812"
    assert world.idle()
    world.no_sockets = 0
    host.delay = 0.1
    asks = [world.ask(servers) for _ in range(256)]
    world.no_sockets = errno.EMFILE
    more = [world.ask(servers) for _ in range(3)]
    world.run(0.5)
    assert all(ask.reply is not None for ask in asks)
    assert all(ask.reason for ask in more)
    assert world.idle()


def test_the_sockets_of_a_dead_server_are_not_used_again() -> None:
    """What is wrong may be our address, or a firewall's idea of the port."""
    world, servers, host = net(max_tries=1)
    world.ask(servers)
    world.run(1)
    host.silent = True
    ask = world.ask(servers)
    world.run(2)
    assert ask.reason
    old = host.datagrams[0][0]
    assert not old.open
    host.silent = False
    world.run(30)
    ask = world.ask(servers)
    world.run()
    assert ask.reply is not None
    assert host.datagrams[-1][0] is not old
    world.run(3 * IDLE)
    assert world.opened() == []


def test_unfit_requests_fail() -> None:
    world, servers, _host = net()
    ask = world.ask(servers)
    bad = Ask(world)
    bad.sends = [("User-Name", "x" * 300)]
    world.client.request(servers, "auth", bad, world.now)
    assert not bad.done
    world.run(0.5)
    assert bad.reason == "User-Name too long"
    assert ask.reply is not None
    assert world.idle()
    assert world.state().state == "up"


def test_a_mistake_in_a_request_is_not_one_of_the_server() -> None:
    world, servers, _host = net()

    class Broken(Ask):
        def pairs(self, now: float) -> list[tuple[str, int | str | bytes]]:
            raise KeyError("mistake")

    broken = Broken(world)
    world.client.request(servers, "auth", broken, world.now)
    world.run(0.5)
    assert broken.reason == "attributes failed"
    assert world.idle()


def test_a_login_that_is_cancelled_by_its_own_answer() -> None:
    world, servers, _host = net()
    ask = world.ask(servers)
    ask.picky = lambda reply: ask.cancel()
    world.run(0.5)
    assert ask.reply is not None
    assert world.idle()


def test_a_login_that_asks_again_in_its_own_answer() -> None:
    world, servers, _host = net(max_outstanding=1)
    again: list[Ask] = []
    ask = world.ask(servers)
    ask.picky = lambda reply: again.append(world.ask(servers))
    world.run(0.5)
    assert ask.reply is not None
    assert again[0].reply is not None
    assert world.idle()


def test_a_login_that_fails_asks_again_without_end() -> None:
    """Whoever does it, the loop goes on."""
    world, servers, _host = net()
    world.error = errno.ENETUNREACH

    class Stubborn(Ask):
        times = 0

        def failed(self, reason: str, now: float) -> None:
            self.times += 1
            self.net.client.request(servers, "auth", self, now)

    ask = Stubborn(world, deadline=1000)
    world.client.request(servers, "auth", ask, world.now)
    world.run(10)
    assert 0 < ask.times <= 81
    ask.cancel()
    world.run(1)
    assert world.idle()


def test_nas_addresses() -> None:
    six = entry("2001:db8::10")
    world = Net(block(ONE), block(six))
    world.ask(block(ONE))
    world.ask(block(six))
    world.run()
    assert world.host(ONE).requests[0].integer("NAS-IP-Address") == 0xC0000201
    assert "NAS-IPv6-Address" not in world.host(ONE).requests[0]
    address = world.host(six).requests[0].octets("NAS-IPv6-Address")
    assert address is not None
    assert address.hex() == "20010db8000000000000000000000001"


def test_closing_closes_all() -> None:
    world, servers, host = net(max_outstanding=300)
    host.silent = True
    asks = [world.ask(servers) for _ in range(400)]
    world.run(0.5)
    world.client.close()
    assert world.opened() == []
    assert len(world.wheel) == 0
    for ask in asks:
        ask.cancel()
    world.run(100)
    assert not any(ask.done for ask in asks)


def test_the_socket_closes_within_its_own_call() -> None:
    """The answer is the last thing that a socket was there for."""
    world, servers, host = net(max_tries=1)
    host.silent = True
    slow = world.ask(servers, deadline=60)
    world.run(0.5)
    socket: FakeSocket = host.datagrams[0][0]
    other = world.ask(servers, deadline=60)
    world.run(0.75)
    # The server is dead by the first, and the second goes on by the retired socket.
    assert slow.reason
    assert socket.open
    reply = encode_reply(parse(host.datagrams[1][1]), Code.ACCESS_ACCEPT, (), SECRET.encode())
    socket.deliver(reply)
    assert other.reply is not None
    assert not socket.open
    assert world.state().state == "up"
