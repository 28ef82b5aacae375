"""All connections and calls of all PPTP tunnel blocks.  No I/O: a shell feeds it, and sends for it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address

from ..admission import Admission, Queue
from ..config import model
from ..config.model import PptpOptions
from ..cursor import Malformed
from ..ids import SessionIds
from ..pipex.icmp import RateLimit
from ..ppp.cause import Cause
from ..ppp.link import IN, OUT, Call, Tap, Upper
from ..wheel import TICK, Wheel
from . import causes, gre
from .call import PptpCall
from .codec import Message, Type
from .connection import Connection, Leg, Stream
from .frame import ethernet
from .service import Endpoint, Service
from .sweeper import Sweeper

log = logging.getLogger("npppy.pptp")

#: Log lines a second, and at once, about what peers do that have not logged in.
STRANGERS = (100, 1000)

#: Connections are numbered from here on, so that no number is a tunnel id of L2TP as well, and within 32 bits.
FIRST, LAST = 1 << 16, (1 << 32) - 1

#: Requests of a connection that wait before no more are read from it, and those that may be left when it is read again.
#: What has begun does not need it.
REST, GO_ON = 32, 8
#: Seconds after which it is read again in any case, until it has no more than that: there may be sessions that are up,
#: and a peer has its Echo-Requests answered within a minute (RFC 2637 section 3.1.4).
LONG = 20.0

#: Sends a GRE packet to a peer, now or never; neither raises nor calls back.
Transmit = Callable[[Endpoint, bytes], None]
#: Stops reading from the peer of a connection, or goes on; it does not call back.
Throttle = Callable[["Connection", bool], None]


class Engine:
    """The connections: those that peers have made, and those of :meth:`dial`.

    *admission* says when a call may begin; None: at any time.  Until then its Outgoing-Call-Request waits.
    """

    def __init__(
        self,
        tunnels: Sequence[model.Tunnel],
        open_session: Callable[[Call, float], Upper | None],
        rng: Callable[[int], bytes],
        wheel: Wheel,
        hostname: str,
        transmit: Transmit,
        admission: Admission | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.open_session = open_session
        self.rng = rng
        self.wheel = wheel
        self.hostname = hostname
        self._transmit = transmit
        #: By name of their block.
        self.services: dict[str, Service] = {}
        #: By their numbers, and calls by our call id.
        self.connections: dict[int, Connection] = {}
        self.calls: dict[int, Leg] = {}
        #: Who looks on at calls.
        self.taps: dict[Call, Tap] = {}
        #: GRE packets that belong to no call, and connections that could not be accepted, by reason.
        self.drops: Counter[str] = Counter()
        self.strangers = RateLimit(*STRANGERS)
        self._ids = SessionIds(rng)
        self._next = FIRST
        self._closing = False
        self._sweeper = Sweeper(self.calls, wheel)
        #: Calls that may not begin yet.
        self.asking = Queue(admission, self._begin) if admission is not None else None
        self._throttle = throttle
        # Connections that are not read, since when; and those that have been left alone for long enough.
        self._resting: dict[Connection, float] = {}
        self._awake: set[Connection] = set()
        self.configure(tunnels)

    def configure(self, tunnels: Sequence[model.Tunnel]) -> None:
        """Take over tunnel blocks; those that are gone are for :meth:`drop_service`."""
        for tunnel in tunnels:
            if isinstance(tunnel.carrier, PptpOptions):
                service = self.services.get(tunnel.name)
                if service is None:
                    self.services[tunnel.name] = Service(tunnel, tunnel.carrier)
                else:
                    service.configure(tunnel, tunnel.carrier)

    @property
    def now(self) -> float:
        """The time, as far as the wheel has come."""
        return self.wheel.tick * TICK

    # Connections.

    def accept(self, service: Service, endpoint: Endpoint, stream: Stream, now: float) -> Connection | None:
        """A peer has connected; None: it may not, and *stream* is the caller's to close.

        To be followed by :meth:`Connection.receive`, and by :meth:`Connection.lost` at its end.
        """
        refusal = "closing" if self._closing else "peer-limit" if service.refuses(endpoint.peer) else ""
        if refusal:
            service.drops[refusal] += 1
            return None
        if service.is_full:
            # It has had the most time.  To refuse the new one instead would let anybody keep all others out.
            service.drops["half-open-limit"] += 1
            oldest = next(iter(service.half_open))
            oldest.discard("too many connections without calls", Cause.NAS_REQUEST, now)
        return self._open(service, endpoint, stream, now)

    def dial(self, service: Service, endpoint: Endpoint, stream: Stream, now: float) -> Connection:
        """TCP has connected us to a peer: ask for calls there."""
        connection = self._open(service, endpoint, stream, now)
        connection.dial(now)
        return connection

    def _open(self, service: Service, endpoint: Endpoint, stream: Stream, now: float) -> Connection:
        number = self._number()
        connection = self.connections[number] = Connection(self, service, endpoint, stream, number, now)
        service.begun(connection)
        return connection

    def _number(self) -> int:
        """A number that no connection has."""
        while True:
            number = self._next
            self._next = number + 1 if number < LAST else FIRST
            if number not in self.connections:
                return number

    def established(self, connection: Connection, now: float) -> None:
        """Calls are the peer's to ask for."""

    def closed(self, connection: Connection) -> None:
        if self.asking is not None:
            self.asking.forget(connection)
            # How the peer takes it, and that it has gone, is to be read.
            self._pace(connection)

    def waits(self, connection: Connection) -> bool:
        return self.asking is not None and self.asking.waits(connection) > 0

    def forget(self, connection: Connection) -> None:
        del self.connections[connection.id]
        connection.service.ended(connection)

    # Calls.

    def asked(self, connection: Connection, message: Message, now: float) -> None:
        theirs = message.numbers["call_id"]
        if connection.dialled or self._closing:
            # It is PACs that have lines to dial out by; and we shall not be one for long.
            self._refuse(connection, theirs, "outgoing", causes.OUTGOING_DO_NOT_ACCEPT, 0)
        elif theirs in connection.calls:
            self._refuse(connection, theirs, "call-id", causes.GENERAL_ERROR, causes.BAD_CALL_ID)
        elif self.asking is None or self.asking.passes():
            self._begin(connection, message, now)
        elif _has_all(connection, self.asking.waits(connection)):
            self._refuse(connection, theirs, "session-limit", causes.GENERAL_ERROR, causes.NO_RESOURCE)
        elif self.asking.put(connection, theirs, message):
            # It is not its fault that it has had no call yet.
            connection.service.half_open.pop(connection, None)
            self._pace(connection)
        else:
            self._refuse(connection, theirs, "busy", causes.GENERAL_ERROR, causes.NO_RESOURCE)

    def given_up(self, connection: Connection, theirs: int) -> bool:
        if self.asking is None or not self.asking.withdraw(connection, theirs):
            return False
        self._pace(connection)
        return True

    def _pace(self, connection: Connection) -> None:
        """Read no more from a connection than can be followed."""
        if self.asking is None or self._throttle is None:
            return
        waiting, now = self.asking.waits(connection), self.now
        if waiting <= GO_ON:
            self._awake.discard(connection)
            if self._resting.pop(connection, None) is not None:
                self._throttle(connection, False)
        elif waiting >= REST and connection not in self._resting and connection not in self._awake:
            self._resting[connection] = now
            self._throttle(connection, True)
        # Those behind the first have not been there for as long.
        first = next(iter(self._resting), None)
        if first is not None and now >= self._resting[first] + LONG:
            del self._resting[first]
            self._awake.add(first)
            self._throttle(first, False)

    def _begin(self, connection: Connection, message: Message, now: float) -> None:
        """Answer an Outgoing-Call-Request."""
        if self._resting or self._awake:
            self._pace(connection)
        service = connection.service
        theirs = message.numbers["call_id"]
        if _has_all(connection):
            self._refuse(connection, theirs, "session-limit", causes.GENERAL_ERROR, causes.NO_RESOURCE)
        elif not (number := self.new_id()):
            self._refuse(connection, theirs, "call-ids", causes.GENERAL_ERROR, causes.NO_RESOURCE)
        else:
            call = PptpCall(self, connection, number, message)
            self.calls[number] = call
            connection.add(call)
            service.sessions += 1
            self._sweeper.start(now)
            call.connect(now)

    def _refuse(self, connection: Connection, theirs: int, drop: str, result: int, error: int) -> None:
        log.debug("%s Refused peer-call=%d reason=%s", connection, theirs, drop)
        connection.service.drops[drop] += 1
        connection.send(Type.OUTGOING_CALL_REPLY, peer_call_id=theirs, result=result, error=error)

    def new_id(self) -> int:
        """A call id; 0: there is none left."""
        return self._ids.take()

    def release(self, call: Leg) -> None:
        del self.calls[call.id]
        self._ids.release(call.id)
        self._sweeper.forget(call)

    # Data.

    def receive(self, local: bytes, peer: bytes, packet: bytes, now: float) -> None:
        """A GRE packet from an address to one of ours, 4 octets each.  Whatever it holds, this does not raise."""
        try:
            header = gre.decode(packet)
        except Malformed as error:
            self.drops["malformed"] += 1
            log.debug("pptp peer=%s Malformed reason=%s", IPv4Address(peer), error)
            return
        call = self.calls.get(header.call_id)
        if call is None:
            self.drops["session"] += 1
            return
        connection = call.connection
        if (connection.endpoint.peer, connection.endpoint.local) != (peer, local):
            connection.service.drops["endpoint"] += 1
            return
        if self.taps:
            self._tapped(call, IN, packet)
        if connection.service.options.data_in_pktdump:
            log.debug("%s RecvData len=%d\n%s", call, len(packet), gre.shown(packet))
        call.data(header, packet, now)

    def carry(self, call: Leg, packet: bytes) -> None:
        connection = call.connection
        if self.taps:
            self._tapped(call, OUT, packet)
        if connection.service.options.data_out_pktdump:
            log.debug("%s SendData len=%d\n%s", call, len(packet), gre.shown(packet))
        self._transmit(connection.endpoint, packet)

    def owes(self, call: Leg) -> None:
        self._sweeper.owes(call)

    def _tapped(self, call: Leg, way: int, packet: bytes) -> None:
        """Show a packet of a call, if somebody looks on at it."""
        tap = self.taps.get(call) if isinstance(call, PptpCall) else None
        if tap is not None:
            tap.frame(way, ethernet(call.connection.endpoint, way, packet))

    # The end.

    def stop(self, connections: Iterable[Connection], reason: str, cause: Cause, now: float) -> None:
        """End connections, and their calls."""
        code = causes.STOP_SHUTDOWN if cause is Cause.ADMIN_REBOOT else causes.STOP_NONE
        for connection in list(connections):
            connection.stop(code, reason, cause, now)

    def drop_service(self, name: str, now: float) -> None:
        """A tunnel block is gone from the configuration."""
        service = self.services.pop(name)
        mine = [connection for connection in self.connections.values() if connection.service is service]
        self.stop(mine, "tunnel no longer offered", Cause.ADMIN_RESET, now)

    def shut(self, now: float) -> None:
        """Take nothing new any more, and end all connections."""
        self._closing = True
        self.stop(self.connections.values(), "shutting down", Cause.ADMIN_REBOOT, now)

    @property
    def busy(self) -> bool:
        """Whether a peer has not said yet that it knows of the end."""
        return bool(self.connections)


def _has_all(connection: Connection, more: int = 0) -> bool:
    """Has it, with *more*, as many sessions as ``pptp-session-limit`` allows?  Those that are ending do not count."""
    limit = connection.service.options.session_limit
    if not limit or len(connection.calls) + more < limit:
        return False
    return more + sum(isinstance(call, PptpCall) and call.counted for call in connection.calls.values()) >= limit
