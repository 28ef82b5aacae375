"""PPTP from the PNS's side (RFC 2637): control connections, and in them a call for each subscriber.  No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..config import model
from ..ppp.cause import Cause
from ..ppp.link import NOBODY, Call, Caller, Link, Tap, Upper
from ..pptp import causes, codec
from ..pptp.call import MAX_MRU
from ..pptp.codec import Message, Type
from ..pptp.connection import STOP, Connection, Leg, State, Stream
from ..pptp.engine import Engine, Transmit
from ..pptp.gre import WINDOW, Packet, Window
from ..pptp.service import Endpoint
from ..wheel import Wheel
from .load import Owner

#: What subscribers' lines may run at, in bit/s.
MIN_SPEED, MAX_SPEED = 300, 100_000_000
#: Packets of a call that are kept when they overtake the Outgoing-Call-Reply, which takes another way.
EARLY = 4
#: Call ids are 1 to this.
CALL_IDS = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What all calls ask for."""

    #: The PPP options of the subscribers, and the PPTP options of their end.
    tunnel: model.Tunnel
    #: The receive window that the server is told, in packets.
    window: int = WINDOW


class Trunk:
    """One of the control connections that calls are spread over, and those that come in its place when it dies."""

    __slots__ = ("connecting", "connection", "number", "waiting")

    def __init__(self, number: int) -> None:
        self.number = number
        self.connection: Connection | None = None
        #: Whether TCP is being set up, and the calls that wait for that.
        self.connecting = False
        self.waiting: dict[PnsCall, None] = {}


class Pns(Engine):
    """Spreads calls evenly over *tunnels* connections, which come when the first of their calls does.

    *connect* begins to set up TCP for a trunk, of which :meth:`connected` or :meth:`unreachable` is told; *hush* makes
    TCP close a connection without a word when it does.  *whole* is as :func:`call_id` has it.
    """

    def __init__(
        self,
        wishes: Wishes,
        connect: Callable[[Trunk], None],
        hush: Callable[[Endpoint], None],
        transmit: Transmit,
        tunnels: int,
        rng: Callable[[int], bytes],
        wheel: Wheel,
        hostname: str,
        whole: int,
    ) -> None:
        super().__init__([wishes.tunnel], _no_session, rng, wheel, hostname, transmit)
        self.wishes = wishes
        self.connect = connect
        self._hush = hush
        self._whole = whole
        (self.service,) = self.services.values()
        self._trunks = [Trunk(number) for number in range(tunnels)]
        # Calls whose call id is that of one which the server has not said yet to be over.
        self._queued: dict[int, PnsCall] = {}
        # How often a subscriber has gone without a word, if it has.
        self._generations: dict[int, int] = {}

    def call(self, number: int, called: str, owner: Owner) -> PnsCall:
        """A new call, for subscriber *number*, with a Phone Number or none.

        Connection and call id come from the subscriber's number: connections stay evenly filled, and several simulators
        at one address need not meet in one call id.
        """
        trunk = self._trunks[(number - 1) % len(self._trunks)]
        return PnsCall(self, trunk, number, called, owner)

    # Connections.

    def connected(self, trunk: Trunk, endpoint: Endpoint, stream: Stream, now: float) -> Connection | None:
        """TCP is there; None: nobody needs it any more."""
        trunk.connecting = False
        waiting, trunk.waiting = trunk.waiting, {}
        if not waiting:
            return None
        connection = trunk.connection = self.dial(self.service, endpoint, stream, now)
        for call in waiting:
            call.join(connection, now)
        return connection

    def unreachable(self, trunk: Trunk, reason: str, now: float) -> None:
        """There is no TCP connection to be had."""
        trunk.connecting = False
        waiting, trunk.waiting = trunk.waiting, {}
        for call in waiting:
            call.ended(Cause.LOST_CARRIER, reason, now)

    def call_id(self, number: int) -> int:
        return call_id(number, self._generations.get(number, 0), self._whole)

    def vanished(self, number: int) -> None:
        """A subscriber has gone without a word."""
        self._generations[number] = self._generations.get(number, 0) + 1

    def vanish(self, connection: Connection, now: float) -> None:
        """Who is at this end of a connection, which has no calls any more, has lost its power."""
        self._hush(connection.endpoint)
        connection.discard("power cut", Cause.LOST_CARRIER, now)

    def cut(self, now: float) -> None:
        """All have."""
        for connection in list(self.connections.values()):
            self.vanish(connection, now)

    def established(self, connection: Connection, now: float) -> None:
        for call in list(connection.calls.values()):
            assert isinstance(call, PnsCall)
            call.ring(now)

    # Calls.

    def add(self, call: PnsCall, now: float) -> None:
        """There is a call."""
        self.calls[call.id] = call
        call.connection.add(call)
        self._sweeper.start(now)

    def queue(self, call: PnsCall, number: int) -> bool:
        """Have a call wait until its number is free; False: the one that has it stays."""
        other = self.calls[number]
        if number in self._queued or not isinstance(other, PnsCall) or not other.leaving:
            return False
        self._queued[number] = call
        return True

    def unqueue(self, call: PnsCall) -> None:
        number = self.call_id(call.number)
        if self._queued.get(number) is call:
            del self._queued[number]

    def release(self, call: Leg) -> None:
        del self.calls[call.id]
        self._sweeper.forget(call)
        queued = self._queued.pop(call.id, None)
        if queued is not None:
            queued.dial(self.now)


def call_id(number: int, generation: int, whole: int) -> int:
    """That of subscriber *number*, one of *whole* with numbers in a row.

    A call that has ended without a word is still there for the server, which would take another one of its id and
    address for the same.  So the next *generation* has the *whole* next ids, while there are as many.
    """
    return (number - 1 + generation % (CALL_IDS // whole) * whole) % CALL_IDS + 1


def _no_session(call: Call, now: float) -> None:
    """There are no sessions of a PAC."""


class PnsCall(Leg):
    """One subscriber's outgoing call (RFC 2637 section 3.2.4.2): from the wish for it to its end."""

    __slots__ = ("_called", "_early", "_owner", "_pns", "_trunk", "link", "number", "upper")

    def __init__(self, pns: Pns, trunk: Trunk, number: int, called: str, owner: Owner) -> None:
        # It is a leg, and the rest of Leg is there, as soon as it has joined a connection.
        self.id = 0
        self.upper: Upper = NOBODY
        self._pns = pns
        self._trunk = trunk
        #: The subscriber's.
        self.number = number
        self._called = called
        self._owner = owner
        # What has come before the reply; None: no reply is waited for any more.
        self._early: list[tuple[Packet, bytes]] | None = []

    # Dialling.

    def dial(self, now: float) -> None:
        trunk = self._trunk
        connection = trunk.connection
        if connection is not None and connection.state <= State.ESTABLISHED:
            self.join(connection, now)
            return
        trunk.waiting[self] = None
        if not trunk.connecting:
            trunk.connecting = True
            self._pns.connect(trunk)

    def join(self, connection: Connection, now: float) -> None:
        """There is a connection: be one of its calls."""
        number = self._pns.call_id(self.number)
        if number in self._pns.calls:
            if not self._pns.queue(self, number):
                self._leave("no call id left", now)
            return
        super().__init__(connection, number, Window())
        self.link = Link(
            tunnel=self._pns.wishes.tunnel, caller=Caller(text=str(connection.endpoint)), max_mru=MAX_MRU
        )
        self._pns.add(self, now)
        if connection.state is State.ESTABLISHED:
            self.ring(now)

    def ring(self, now: float) -> None:
        """The connection is established: ask for the call."""
        called = self._called.encode()
        self.connection.send(
            Type.OUTGOING_CALL_REQUEST,
            call_id=self.id,
            serial=self.id,
            minimum_bps=MIN_SPEED,
            maximum_bps=MAX_SPEED,
            bearer=codec.ANALOG | codec.DIGITAL,
            framing=codec.ASYNCHRONOUS | codec.SYNCHRONOUS,
            window=self._pns.wishes.window,
            phone_number_length=len(called),
            phone_number=called,
        )
        self._pns.wheel.arm(self, now + self.link.tunnel.negotiation_timeout)

    def expire(self, now: float) -> None:
        """The server has not answered: neither that we want the call, nor that we do not."""
        if self._early is not None:
            self.connection.send(Type.CALL_CLEAR_REQUEST, call_id=self.id)
        self.connection.remove(self, now)
        self._leave("no Outgoing-Call-Reply", now)

    def control(self, message: Message, now: float) -> None:
        numbers = message.numbers
        early = self._early
        if message.type == Type.OUTGOING_CALL_REPLY and early is not None:
            self._pns.wheel.disarm(self)
            if numbers["result"] != causes.OK:
                self.connection.remove(self, now)
                text = causes.outgoing_text(numbers["result"], numbers["error"])
                self._leave(f"Outgoing-Call-Reply received: {text}", now)
                return
            self.peer_id = numbers["call_id"]
            self._early = None
            self.upper = self._owner.connected(self, now)
            for header, packet in early:
                self.data(header, packet, now)
        elif message.type not in (Type.SET_LINK_INFO, Type.WAN_ERROR_NOTIFY):
            # Those two are about lines with characters to escape, or with errors.
            self.connection.service.drops["state"] += 1

    # Data.

    def data(self, header: Packet, packet: bytes, now: float) -> None:
        early = self._early
        if early is None:
            super().data(header, packet, now)
        elif len(early) < EARLY:
            early.append((header, packet))

    def receive(self, ppp: bytes, now: float) -> None:
        self.upper.receive(ppp, now)

    def send(self, frame: bytes) -> None:
        self.transmit(frame, self._pns.now)

    __call__ = send

    # The call.

    def facts(self) -> dict[str, object]:
        endpoint = self.connection.endpoint
        return {
            "ctrl_id": self.connection.id,
            "call_id": self.id,
            "peer_call_id": self.peer_id,
            "local_port": endpoint.local_port,
            "concentrator": str(endpoint),
        }

    @property
    def _there(self) -> bool:
        return self._pns.calls.get(self.id) is self

    @property
    def leaving(self) -> bool:
        """It has been a call, and is one for the server only."""
        return self._early is None and self.upper is NOBODY

    def close(self, cause: Cause) -> None:
        """Ask for the end; the call stays until the server has said that it is over, and data of it means nothing."""
        if self._there and self.upper is not NOBODY:
            self.connection.send(Type.CALL_CLEAR_REQUEST, call_id=self.id)
            self._pns.wheel.arm(self, self._pns.now + STOP)
        self.upper = NOBODY

    def ending(self) -> None:
        """Nothing is counted here."""

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        """We send neither way, and take both."""

    def rest(self) -> None:
        """It is kept as it is."""

    def tap(self, tap: Tap | None) -> None:
        """Subscribers are watched on the wire."""

    def ended(self, cause: Cause, reason: str, now: float) -> None:
        self._leave(reason, now)

    def forget(self) -> None:
        self._trunk.waiting.pop(self, None)
        self._pns.unqueue(self)
        if self._there:
            self.connection.remove(self, self._pns.now)
        self._early = None
        self.upper = NOBODY

    def vanish(self) -> None:
        there = self._there
        self.forget()
        self._pns.vanished(self.number)
        if there and not self.connection.calls:
            self._pns.vanish(self.connection, self._pns.now)

    def _leave(self, reason: str, now: float) -> None:
        """It is over, which was not the subscriber's will, unless it has left already."""
        early, self._early = self._early, None
        upper, self.upper = self.upper, NOBODY
        if upper is not NOBODY:
            upper.gone(Cause.LOST_CARRIER, reason, now)
        elif early is not None:
            self._owner.failed(reason, now)
