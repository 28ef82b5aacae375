"""RADIUS servers and the network to them, on a virtual clock."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random

from npppy.aaa.radius.client import Client, Exchange
from npppy.aaa.radius.packet import Code, Pair, Received, encode_reply, parse, verify_request
from npppy.aaa.radius.server import Receiver, Server, ServerState
from npppy.config.model import Address, Config, Radius, RadiusServer, RadiusServers, Realm, Where
from npppy.cursor import Malformed
from npppy.wheel import TICK, Wheel

SECRET = "opensesame"
LOCAL = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}


def entry(text: str = "192.0.2.10", port: int = 1812, **options: object) -> RadiusServer:
    return replace(RadiusServer(address=ip_address(text), port=port, secret=SECRET), **options)  # type: ignore[arg-type]


def block(*servers: RadiusServer, **options: object) -> RadiusServers:
    """Time-outs of a second, unless *options* say otherwise."""
    return replace(RadiusServers(servers=servers, timeout=1), **options)  # type: ignore[arg-type]


def config(*blocks: RadiusServers, acct: RadiusServers | None = None, radius: Radius | None = None) -> Config:
    """A realm for each of *blocks*."""
    where = Where(Path("npppd.conf"), 1, 1)
    realms = tuple(
        Realm(name=f"R{at}", where=where, type="radius", authentication=servers, accounting=acct or RadiusServers())
        for at, servers in enumerate(blocks)
    )
    return Config(file=Path("npppd.conf"), realms=realms, radius=radius or Radius())


class Host:
    """A server: what it does with a request is *behave*, which gives the reply or nothing."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.secret = SECRET.encode()
        #: Seconds until it answers.
        self.delay = 0.0
        self.silent = False
        #: Nobody listens there: an ICMP error comes back.
        self.refusing = False
        self.status_server = True
        self.reply: Iterable[Pair] = ()
        self.code = Code.ACCESS_ACCEPT
        self.signed = True
        #: What it does with the octets of a reply.
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.requests: list[Received] = []
        #: All that has come, retransmissions too, with where from.
        self.datagrams: list[tuple[FakeSocket, bytes]] = []

    def take(self, socket: FakeSocket, data: bytes) -> None:
        self.datagrams.append((socket, data))
        if self.refusing:
            self.net.later(0.0, lambda: socket.fail(errno.ECONNREFUSED))
            return
        request = parse(data)
        assert verify_request(request, self.secret) == "" or self.secret != SECRET.encode()
        self.requests.append(request)
        if self.silent or (request.code == Code.STATUS_SERVER and not self.status_server):
            return
        answer = self.spoil(self.answer(request))
        self.net.later(self.delay, lambda: socket.deliver(answer))

    def answer(self, request: Received) -> bytes:
        code = self.code
        if request.code == Code.ACCOUNTING_REQUEST or (request.code == Code.STATUS_SERVER and self.net.accounting):
            code = Code.ACCOUNTING_RESPONSE
        elif request.code == Code.STATUS_SERVER:
            code = Code.ACCESS_ACCEPT
        return encode_reply(request, code, self.reply, self.secret, message_authenticator=self.signed)

    def of(self, code: Code) -> list[Received]:
        return [request for request in self.requests if request.code == code]


class FakeSocket:
    def __init__(self, net: Net, address: Address, port: int, source: Address | None, receiver: Receiver) -> None:
        self.net = net
        self.to = address, port
        self.receiver = receiver
        self.local = source or LOCAL[address.version]
        self.open = True
        #: What sending says; 0: it is sent.
        self.error = 0

    def send(self, data: bytes) -> int:
        assert self.open
        error = self.error or self.net.error
        if not error and self.to in self.net.hosts:
            self.net.hosts[self.to].take(self, data)
        return error

    def close(self) -> None:
        assert self.open
        self.open = False

    def deliver(self, data: bytes) -> None:
        if self.open:
            self.receiver.received(data, self.net.now)

    def fail(self, error: int) -> None:
        if self.open:
            self.receiver.unreachable(error, self.net.now)


class Net:
    """The clock, the sockets, the servers by their address and port, and a client."""

    def __init__(self, *blocks: RadiusServers, acct: RadiusServers | None = None, radius: Radius | None = None) -> None:
        self.now = 1000.0
        self.wheel = Wheel(self.now)
        self.sockets: list[FakeSocket] = []
        self.hosts: dict[tuple[Address, int], Host] = {}
        self.error = 0
        #: What opening a socket says.
        self.no_sockets = 0
        self.accounting = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self.rng = Random(7)
        self.client = Client(self.wheel, self.rng.randbytes, self.open, lambda: self.now + 1e9)
        for servers in [*blocks, *([acct] if acct else [])]:
            for server in servers.servers:
                self.hosts.setdefault((server.address, server.port), Host(self))
        if blocks:
            self.client.configure(config(*blocks, acct=acct, radius=radius), self.now)

    def open(self, address: Address, port: int, source: Address | None, receiver: Receiver) -> FakeSocket:
        if self.no_sockets:
            raise OSError(self.no_sockets, "no")
        socket = FakeSocket(self, address, port, source, receiver)
        self.sockets.append(socket)
        return socket

    def host(self, server: RadiusServer) -> Host:
        return self.hosts[server.address, server.port]

    def later(self, delay: float, act: Callable[[], None]) -> None:
        self._serial += 1
        self._events.append((self.now + delay, self._serial, act))

    def run(self, seconds: float = 0.0) -> None:
        """Let time pass; what is due now happens in any case."""
        end = self.now + seconds
        while True:
            self._happen()
            if self.now >= end:
                break
            self.now = min(self.now + TICK, end)
            self._happen()
            self.wheel.advance(self.now)

    def _happen(self) -> None:
        while due := sorted((event for event in self._events if event[0] <= self.now), key=lambda event: event[:2]):
            self._events = [event for event in self._events if event[0] > self.now]
            for _, _, act in due:
                act()

    def opened(self) -> list[FakeSocket]:
        return [socket for socket in self.sockets if socket.open]

    def ask(self, servers: RadiusServers, kind: str = "auth", **options: object) -> Ask:
        ask = Ask(self, **options)  # type: ignore[arg-type]
        self.client.request(servers, kind, ask, self.now)  # type: ignore[arg-type]
        return ask

    def state(self, at: int = 0) -> ServerState:
        return self.client.state()[at]

    def idle(self) -> bool:
        """Whether nothing is under way, and every identifier has come back."""
        return all(not state.outstanding and not state.queued for state in self.client.state())


class Ask(Exchange):
    """An exchange that remembers what became of it."""

    def __init__(self, net: Net, flow: object = "flow", deadline: float = 60.0, pin: Server | None = None) -> None:
        super().__init__(flow, net.now + deadline, pin)
        self.net = net
        self.sends: list[Pair] = [("User-Name", "bob"), ("User-Password", b"builder")]
        #: What is wrong with a reply.
        self.picky: Callable[[Received], None] = lambda reply: None
        self.reply: Received | None = None
        self.server: Server | None = None
        self.reason = ""
        self.at = 0.0
        self.built = 0

    def pairs(self, now: float) -> list[Pair]:
        self.built += 1
        return self.sends

    def answered(self, reply: Received, server: Server, now: float) -> None:
        self.picky(reply)
        assert not self.done
        self.reply, self.server, self.at = reply, server, now

    def failed(self, reason: str, now: float) -> None:
        assert not self.done
        assert reason
        self.reason, self.at = reason, now

    @property
    def done(self) -> bool:
        return self.reply is not None or bool(self.reason)


def unreadable(reply: Received) -> None:
    """For :attr:`Ask.picky`."""
    raise Malformed("Framed-IP-Address")
