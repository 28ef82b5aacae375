"""Requests to the RADIUS servers of a realm, over all tries and servers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Final

from ...config.model import Address, Config, RadiusServer, RadiusServers, Realm
from ...wheel import Wheel
from .packet import Code, Pair, Received
from .server import Context, Kind, OpenSocket, Server, ServerState, Transaction

_CODES: Final[dict[Kind, Code]] = {"auth": Code.ACCESS_REQUEST, "acct": Code.ACCOUNTING_REQUEST}


class Exchange(ABC):
    """A request and its answer.

    *flow* is what it shares its turn with, where requests must wait: those of an access port, of a tunnel.  *deadline*
    ends it over all tries and servers.  *pin* is the server that it is for, where another would not understand it.

    :meth:`answered` and :meth:`failed` are called from the event loop's sockets and timers only: never while a request
    is made or cancelled.  Exactly one of them is, once.
    """

    __slots__ = ("_course", "deadline", "flow", "pin")

    def __init__(self, flow: Hashable, deadline: float, pin: Server | None = None) -> None:
        self.flow = flow
        self.deadline = deadline
        self.pin = pin
        self._course: _Course | None = None

    @abstractmethod
    def pairs(self, now: float) -> list[Pair]:
        """The attributes, anew for each server; the client adds its addresses.

        A :class:`ValueError` fails the exchange, as does what does not fit.
        """

    @abstractmethod
    def answered(self, reply: Received, server: Server, now: float) -> None:
        """A reply that counts.

        Raises :class:`npppy.cursor.Malformed` for one whose attributes do not make sense: it is discarded, and the
        right one is waited for.
        """

    @abstractmethod
    def failed(self, reason: str, now: float) -> None:
        """There is no answer.  *reason* is for our log."""

    def cancel(self) -> None:
        """Nothing is called any more.  Harmless at any time."""
        course, self._course = self._course, None
        if course is not None:
            course.cancel()


@dataclass(slots=True)
class _Group:
    """What a realm says of its servers of one kind."""

    servers: RadiusServers
    #: With what the realm says of each, by priority, then as they stand in the file.
    members: list[tuple[Server, RadiusServer]]
    options: dict[Server, RadiusServer] = field(init=False)
    #: The one that has them all; None: not chosen yet.
    current: Server | None = None
    #: Counts the turns.
    turn: int = 0

    def __post_init__(self) -> None:
        self.options = dict(self.members)

    def choose(self, tried: Collection[Server], now: float) -> Server | None:
        """The server that is to be asked next."""
        members = [(server, options) for server, options in self.members if server not in tried]
        best = [(options.priority, server) for server, options in members if server.usable(now)]
        if not best:
            return min((server for server, _ in members), key=lambda server: server.died, default=None)
        alive = [server for priority, server in best if priority == best[0][0]]
        if self.servers.balance:
            self.turn += 1
            return alive[self.turn % len(alive)]
        # Those that do not take turns leave all to one, until it dies (npppd).
        if self.current not in alive:
            if tried:
                return alive[0]
            self.current = alive[0]
        return self.current


class _Course(Transaction):
    """An exchange on its way, at one server after the other."""

    __slots__ = (
        "_client",
        "_exchange",
        "_failovers",
        "_group",
        "_reason",
        "_tried",
        "dead_time",
        "deadline",
        "require",
    )

    def __init__(self, kind: Kind, group: _Group, exchange: Exchange, client: Client) -> None:
        super().__init__(_CODES[kind], exchange.flow, group.servers.timeout)
        self._group = group
        self._exchange = exchange
        self._client = client
        self._tried: set[Server] = set()
        self._failovers = 0
        self._reason = ""
        self.dead_time = group.servers.dead_time
        self.deadline = exchange.deadline
        self.require = False

    def begin(self, now: float) -> None:
        """Go to the first server."""
        pin = self._exchange.pin
        if pin is not None and pin in self._group.options and not pin.dead:
            self._go(pin, now)
        else:
            self._go_on(now)

    def _go(self, server: Server, now: float) -> None:
        # Of accounting, the Response Authenticator is enough: what it says cannot be made to say something else.
        if self.code == Code.ACCESS_REQUEST:
            self.require = self._group.options[server].require_message_authenticator
        self._tried.add(server)
        if server.closed:
            self._client.reopen(server)
        server.submit(self, now)

    def moved(self, server: Server, now: float) -> None:
        """Go to a server, as if it were the first one; that may be the same, if there is no better."""
        self._tried.discard(server)
        self._go_on(now)

    def _go_on(self, now: float) -> None:
        server = self._group.choose(self._tried, now)
        if server is None:
            self._fail(self._reason or "no server", now)
        else:
            self._go(server, now)

    def lost(self, reason: str, now: float) -> None:
        """Go to the next server, if there may be one."""
        self._reason = reason
        server = self._group.choose(self._tried, now)
        if server is not None and not server.dead:
            self._failovers += 1
        if server is None or self._failovers > self._group.servers.max_failovers:
            self._fail(reason, now)
        else:
            self._go(server, now)

    def unfit(self, reason: str, now: float) -> None:
        self._fail(reason, now)

    def _fail(self, reason: str, now: float) -> None:
        """Say so with the next tick: who asks again at once must not do so for ever."""
        self._reason = reason
        self._client.wheel.arm(self, now)

    def expire(self, now: float) -> None:
        server = self.server
        if server is not None:
            reason = server.time_out(self, now, tries=self._group.servers.max_tries)
            if not reason:
                return
            if now < self.deadline:
                self.lost(reason, now)
                return
            self._reason = reason
        self._exchange._course = None
        self._exchange.failed(self._reason, now)

    def pairs(self, now: float) -> list[Pair]:
        return self._exchange.pairs(now)

    def answered(self, reply: Received, now: float) -> None:
        exchange, server = self._exchange, self.server
        assert server is not None
        exchange.answered(reply, server, now)
        # Within the call it may have been asked anew.
        if exchange._course is self:
            exchange._course = None

    def cancel(self) -> None:
        if self.server is not None:
            self.server.withdraw(self)
        else:
            self._client.wheel.disarm(self)


def _blocks(realm: Realm) -> tuple[tuple[Kind, RadiusServers], ...]:
    return ("auth", realm.authentication), ("acct", realm.accounting)


class Client:
    """The RADIUS client of the daemon: all servers of all realms.

    *random* gives random octets, *open_socket* is :func:`.socket.opener`'s, *wall* the time of day in seconds of the
    epoch.  Servers are made when they are first asked for, so that a login that began before a reload ends as it began.
    """

    def __init__(
        self,
        wheel: Wheel,
        random: Callable[[int], bytes],
        open_socket: OpenSocket,
        wall: Callable[[], float],
    ) -> None:
        self.wheel = wheel
        self._context = Context(wheel, random, open_socket, wall, self._nas, self._drop)
        self._servers: dict[Hashable, Server] = {}
        self._groups: dict[tuple[Kind, RadiusServers], _Group] = {}
        # NAS-IP-Address and NAS-IPv6-Address, if they are configured.
        self._addresses: tuple[Address, ...] = ()

    def configure(self, config: Config, now: float) -> None:
        """Take over a configuration.  Servers that stay keep their state; others go when they are done."""
        self._addresses = config.radius.nas_addresses
        for server in self._servers.values():
            server.wanted = False
        wanted: dict[tuple[Kind, RadiusServers], _Group] = {}
        uses: dict[Server, list[tuple[RadiusServer, int]]] = {}
        for realm in config.realms:
            for kind, servers in _blocks(realm):
                group = self._group(kind, servers)
                wanted[kind, servers] = group
                for server, options in group.members:
                    uses.setdefault(server, []).append((options, servers.max_outstanding))
        self._groups = wanted
        for server, all_uses in uses.items():
            server.wanted = True
            server.limit = max(limit for _, limit in all_uses)
            server.prober.configure(any(options.status_server for options, _ in all_uses), now)
        for server in list(self._servers.values()):
            server.rest()

    def request(self, servers: RadiusServers, kind: Kind, exchange: Exchange, now: float) -> None:
        """Put *exchange* on its way to one of *servers*."""
        course = exchange._course = _Course(kind, self._group(kind, servers), exchange, self)
        course.begin(now)

    def state(self) -> list[ServerState]:
        """All servers."""
        return [server.state() for server in self._servers.values()]

    def lag(self, now: float) -> float:
        """Seconds that a login would wait for its turn at the most, at servers that answer."""
        return max((server.lag(now) for server in self._servers.values() if server.kind == "auth"), default=0.0)

    def close(self) -> None:
        """Forget all exchanges, and close all sockets."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self._groups.clear()

    def _group(self, kind: Kind, servers: RadiusServers) -> _Group:
        group = self._groups.get((kind, servers))
        if group is None:
            members = [(self._server(kind, options, servers), options) for options in servers.servers]
            members.sort(key=lambda member: member[1].priority)
            group = self._groups[kind, servers] = _Group(servers, members)
        return group

    def _server(self, kind: Kind, options: RadiusServer, servers: RadiusServers) -> Server:
        address, port = options.address, options.port
        source = next((source for source in servers.source if source.version == address.version), None)
        key = kind, address, port, options.secret, source
        server = self._servers.get(key)
        if server is None:
            secret = options.secret.encode("utf-8", "surrogateescape")
            server = self._servers[key] = Server(self._context, key, kind, address, port, secret, source)
            server.limit = servers.max_outstanding
            # If the configuration does not name it, it may not even be asked.
            self.wheel.arm(server, 0.0)
        return server

    def reopen(self, server: Server) -> None:
        """A request goes to a server that seemed to be of no use any more."""
        server.closed = False
        self._servers.setdefault(server.key, server)

    def _drop(self, server: Server) -> None:
        """Nothing needs it any more."""
        server.close()
        if self._servers.get(server.key) is server:
            del self._servers[server.key]
        self._groups = {key: group for key, group in self._groups.items() if server not in group.options}

    def _nas(self, local: Address) -> list[Pair]:
        return [
            ("NAS-IP-Address", int(address)) if address.version == 4 else ("NAS-IPv6-Address", address.packed)
            for address in self._addresses or (local,)
        ]
