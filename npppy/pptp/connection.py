"""A control connection: how it is set up, kept and ended (RFC 2637 section 3), from either end of it.

What its calls are is the business of who makes them: a PAC's are in :mod:`.call`.
"""

from __future__ import annotations

import enum
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Protocol

from ..cursor import Malformed
from ..pipex.icmp import RateLimit
from ..ppp.cause import Cause
from ..ppp.link import TunnelEnds
from ..reorder import WAIT
from ..text import dump, printable
from ..wheel import Timed, Wheel
from . import causes, codec, gre
from .codec import Message, Type
from .gre import Packet, Window
from .service import Endpoint, Service

log = logging.getLogger("npppy.pptp")

#: Seconds that a peer may take to begin, or to answer that we do (section 3.1.4).
SETUP = 60.0
#: Seconds that a connection without calls stays.
IDLE = 60.0
#: Seconds that a peer may take to answer a Stop-Control-Connection-Request, or to close, as in npppd.
STOP = 3.0
#: Maximum Channels, and Firmware Revision, of which npppd and others make as little.
MAX_CHANNELS = 4
FIRMWARE = 1
#: RFC 2868 section 3.1.
_TUNNEL_TYPE = 1


class State(enum.IntEnum):
    """Section 3.1."""

    #: For the peer's Start-Control-Connection-Request, and for its answer to ours.
    WAIT_REQUEST = 0
    WAIT_REPLY = 1
    ESTABLISHED = 2
    #: For the answer to our Stop-Control-Connection-Request.
    WAIT_STOP = 3
    #: All has been said: the peer is to close.
    CLOSING = 4
    GONE = 5

    @property
    def title(self) -> str:
        return ("wait-ctl-request", "wait-ctl-reply", "established", "wait-stop-reply", "closing", "gone")[self]


class Stream(Protocol):
    """The TCP connection.  None of these raises or calls back."""

    def send(self, octets: bytes) -> None:
        """Send; a peer that does not read loses the connection, as does one that has gone."""

    def finish(self) -> None:
        """Nothing more is sent, and what was is still delivered."""

    def close(self) -> None:
        """Close it, now."""


class Leg(Timed, ABC):
    """A call of a connection, at whichever end."""

    __slots__ = ("connection", "id", "peer_id", "window")

    def __init__(self, connection: Connection, call_id: int, window: Window) -> None:
        super().__init__()
        self.connection = connection
        #: The call id that we gave it, by which its data comes, and the peer's.
        self.id = call_id
        self.peer_id = 0
        self.window = window

    @abstractmethod
    def control(self, message: Message, now: float) -> None:
        """A message about this call, but for a Call-Clear-Request or a Call-Disconnect-Notify."""

    @abstractmethod
    def receive(self, ppp: bytes, now: float) -> None:
        """A PPP frame, from its Protocol field on, which is in order.  Whatever it holds, this does not raise."""

    @abstractmethod
    def ended(self, cause: Cause, reason: str, now: float) -> None:
        """The call has gone, and its connection has forgotten it: nothing can be sent any more."""

    def transmit(self, ppp: bytes, now: float) -> None:
        """Send a PPP frame, from its Protocol field on; a full window of the peer loses it."""
        window = self.window
        if window.keeper is not None:
            window.keeper.inject(ppp)
            return
        packet = window.wrap(self.peer_id, ppp, now)
        if packet is None:
            self.connection.service.drops["window"] += 1
        else:
            self.connection.host.carry(self, packet)

    def data(self, header: Packet, packet: bytes, now: float) -> None:
        """A packet for this call, from its peer."""
        window = self.window
        ppp = gre.frame(packet, header) if header.sequence >= 0 else b""
        if window.keeper is not None:
            # The kernel has looked at the numbers, and passes on what is not for it.
            if ppp:
                if window.passed_on(header.sequence):
                    self.acknowledge(now)
                self.receive(ppp, now)
            return
        if header.acknowledgment >= 0:
            window.acknowledged(header.acknowledgment, now)
        if not ppp:
            return
        ready = window.receive(header.sequence, ppp)
        if ready is None:
            self.connection.service.drops["late"] += 1
        else:
            self._pass(ready, now)

    def acknowledge(self, now: float) -> None:
        """Acknowledge all that has come, without data."""
        window = self.window
        if window.keeper is not None:
            window.keeper.inject(b"")
        else:
            self.connection.host.carry(self, window.acknowledgment(self.peer_id, now))

    def expire(self, now: float) -> None:
        window = self.window
        if window.reorder is not None:
            self._pass(window.reorder.release(window), now)

    def _pass(self, ready: list[bytes], now: float) -> None:
        host, window = self.connection.host, self.window
        for ppp in ready:
            self.receive(ppp, now)
            if host.calls.get(self.id) is not self:
                # That was the end of it.
                return
        if window.reorder is not None:
            if not window.reorder.held:
                host.wheel.disarm(self)
            elif not self.due:
                host.wheel.arm(self, now + WAIT)
        # What has been sent in answer has acknowledged as well; or the kernel does so from now on.
        if window.keeper is None and window.owes:
            if window.must_acknowledge(now):
                self.acknowledge(now)
            else:
                host.owes(self)


class Host(Protocol):
    """Who has connections."""

    wheel: Wheel
    rng: Callable[[int], bytes]
    #: Of the machine.
    hostname: str
    #: May something be logged that a stranger has brought about?
    strangers: RateLimit

    @property
    def calls(self) -> Mapping[int, Leg]:
        """All calls of all connections, by our call id."""

    def established(self, connection: Connection, now: float) -> None:
        """Calls may be made."""

    def forget(self, connection: Connection) -> None:
        """The connection has gone."""

    def release(self, call: Leg) -> None:
        """The call has gone from its connection."""

    def asked(self, connection: Connection, message: Message, now: float) -> None:
        """An Outgoing-Call-Request: accept it, or refuse it."""

    def given_up(self, connection: Connection, theirs: int) -> bool:
        """The peer does not want the call any more that it has given this id; False: it was not waiting."""

    def waits(self, connection: Connection) -> bool:
        """Whether the peer waits for a call that is neither accepted nor refused yet."""

    def closed(self, connection: Connection) -> None:
        """Its calls have ended, and there will be no others."""

    def carry(self, call: Leg, packet: bytes) -> None:
        """Send a GRE packet of a call."""

    def owes(self, call: Leg) -> None:
        """There is something to acknowledge, if no data does so within a second."""


class Connection(Timed):
    """A control connection with a peer."""

    __slots__ = (
        "_asked",
        "_echo",
        "_empty",
        "_heard",
        "_rest",
        "began",
        "calls",
        "dialled",
        "endpoint",
        "host",
        "id",
        "most",
        "peer_name",
        "peer_vendor",
        "service",
        "state",
        "stream",
    )

    def __init__(
        self, host: Host, service: Service, endpoint: Endpoint, stream: Stream, number: int, now: float
    ) -> None:
        super().__init__()
        self.host = host
        self.service = service
        self.endpoint = endpoint
        self.stream = stream
        #: For operators; a connection has no number in the protocol.
        self.id = number
        #: The peer's Host Name and Vendor Name.
        self.peer_name = ""
        self.peer_vendor = ""
        self.state = State.WAIT_REQUEST
        #: Is it we who ask for calls, the PNS?
        self.dialled = False
        #: By the call id that the PNS has given.
        self.calls: dict[int, Leg] = {}
        #: The most calls that it has had at a time.
        self.most = 0
        self.began = now
        # The beginning of a message, of which more is to come.
        self._rest = b""
        # When a message last came, when the last call went, and when we asked whether the peer is there; 0: we do not.
        self._heard = now
        self._empty = now
        self._asked = 0.0
        # Of our last Echo-Request.
        self._echo = 0
        host.wheel.arm(self, now + SETUP)

    # Setting up.

    def dial(self, now: float) -> None:
        """Ask the peer, to which TCP has connected us."""
        self.state = State.WAIT_REPLY
        self.dialled = True
        self.send(Type.START_REQUEST, **self._introduction())

    @property
    def _name(self) -> str:
        """Our Host Name."""
        return self.service.options.hostname or self.host.hostname

    @property
    def ends(self) -> TunnelEnds:
        at = self.endpoint
        return TunnelEnds(
            type=_TUNNEL_TYPE,
            client=at.host,
            server=str(IPv4Address(at.local)),
            client_name=self.peer_name,
            server_name=self._name,
            name=f"PPTP-CTRL-{self.id}",
        )

    def _introduction(self) -> dict[str, int | bytes]:
        options = self.service.options
        return {
            "version": codec.VERSION,
            "framing": codec.SYNCHRONOUS,
            "bearer": codec.DIGITAL,
            "firmware": FIRMWARE,
            "host_name": self._name.encode(),
            "vendor_name": options.vendor_name.encode(),
        }

    def _requested(self, message: Message, now: float) -> None:
        """Start-Control-Connection-Request."""
        introduction = self._introduction() | {"max_channels": MAX_CHANNELS}
        if message.numbers["version"] < codec.VERSION:
            self.service.drops["version"] += 1
            self.send(Type.START_REPLY, **introduction, result=causes.START_VERSION)
            self._finish("another protocol version", Cause.NAS_REQUEST, now)
            return
        # Section 3.1.2: to a later version ours is told, and the peer decides.
        self.send(Type.START_REPLY, **introduction, result=causes.OK)
        self._establish(message, now)

    def _replied(self, message: Message, now: float) -> None:
        """Start-Control-Connection-Reply."""
        numbers = message.numbers
        if numbers["result"] != causes.OK:
            self.discard(f"refused: result {numbers['result']}, error {numbers['error']}", Cause.LOST_CARRIER, now)
        elif numbers["version"] != codec.VERSION:
            self.stop(causes.STOP_PROTOCOL, "another protocol version", Cause.NAS_REQUEST, now)
        else:
            self._establish(message, now)

    def _establish(self, message: Message, now: float) -> None:
        self.state = State.ESTABLISHED
        # Clients of one kind all say the same.
        self.peer_name = sys.intern(message.text("host_name").decode("utf-8", "surrogateescape"))
        self.peer_vendor = message.text("vendor_name").decode("utf-8", "surrogateescape")
        if self.may_log(now):
            name, vendor = printable(self.peer_name), printable(self.peer_vendor)
            log.info('%s Established host="%s" vendor="%s"', self, name, vendor)
        self._empty = now
        self._arm(now)
        self.host.established(self, now)

    # The stream.

    def send(self, kind: Type, **values: int | bytes) -> None:
        """Send a message, of which fields that are not named are 0."""
        octets = codec.encode(kind, **values)
        if self.service.options.ctrl_out_pktdump:
            log.debug("%s SendCtrl len=%d\n%s", self, len(octets), dump(octets))
        log.debug("%s Send %s", self, kind.title)
        self.stream.send(octets)

    def receive(self, octets: bytes, now: float) -> None:
        """The next octets of the stream.  Whatever they are, this does not raise."""
        octets = self._rest + octets
        at = 0
        try:
            # What is handled may be the end of the connection.
            while self.state < State.CLOSING and (end := codec.split(octets, at)):
                message = octets[at:end]
                at = end
                if self.service.options.ctrl_in_pktdump:
                    log.debug("%s RecvCtrl len=%d\n%s", self, len(message), dump(message))
                self._deliver(codec.decode(message), now)
        except Malformed as error:
            self.service.drops["malformed"] += 1
            # Section 1.4: a stream that is out of step is closed at once.
            self.discard(f"malformed message: {error}", Cause.NAS_ERROR, now)
        if self.state < State.CLOSING:
            self._rest = octets[at:]

    def lost(self, reason: str, now: float) -> None:
        """The TCP connection has gone."""
        self.discard(reason, Cause.LOST_CARRIER, now)

    def _deliver(self, message: Message | None, now: float) -> None:
        self._heard = now
        self._asked = 0.0
        if message is None:
            # Of a later version, or a Management Message, of which there are none.
            self.service.drops["message-type"] += 1
            return
        kind, state = message.type, self.state
        log.debug("%s Recv %s", self, kind.title)
        if kind == Type.STOP_REQUEST:
            self.send(Type.STOP_REPLY, result=causes.OK)
            text = causes.stop_text(message.numbers["reason"])
            self._finish(f"Stop-Control-Connection-Request received: {text}", Cause.USER_REQUEST, now)
        elif state is State.WAIT_STOP:
            if kind == Type.STOP_REPLY:
                self._gone()
        elif state is State.WAIT_REQUEST and kind == Type.START_REQUEST:
            self._requested(message, now)
        elif state is State.WAIT_REPLY and kind == Type.START_REPLY:
            self._replied(message, now)
        elif state is not State.ESTABLISHED or kind in (Type.START_REQUEST, Type.START_REPLY, Type.STOP_REPLY):
            self.service.drops["state"] += 1
            self.stop(causes.STOP_NONE, f"{kind.title} in state {state.title}", Cause.NAS_ERROR, now)
        elif kind == Type.ECHO_REQUEST:
            self.send(Type.ECHO_REPLY, identifier=message.numbers["identifier"], result=causes.OK)
        elif kind == Type.ECHO_REPLY:
            if message.numbers["identifier"] != self._echo:
                # As npppd: the two do not agree on what has been said.
                self.service.drops["echo"] += 1
                self.stop(causes.STOP_NONE, "Echo-Reply with a wrong identifier", Cause.NAS_ERROR, now)
        else:
            self._about_call(message, now)

    def _about_call(self, message: Message, now: float) -> None:
        kind, numbers = message.type, message.numbers
        if kind == Type.OUTGOING_CALL_REQUEST:
            self.host.asked(self, message, now)
            return
        if kind == Type.INCOMING_CALL_REQUEST:
            # It is a PAC that has lines to be called on, and we are none of its PNSs.
            self.service.drops["incoming"] += 1
            theirs, result = numbers["call_id"], causes.INCOMING_DO_NOT_ACCEPT
            self.send(Type.INCOMING_CALL_REPLY, peer_call_id=theirs, result=result)
            return
        call: Leg | None
        if kind == Type.SET_LINK_INFO:
            call = self.host.calls.get(numbers["peer_call_id"])
            call = call if call is not None and call.connection is self else None
        elif kind == Type.CALL_DISCONNECT_NOTIFY:
            call = self._theirs(numbers["call_id"])
        else:
            # All others name the PNS's.
            call = self.calls.get(numbers["call_id" if kind == Type.CALL_CLEAR_REQUEST else "peer_call_id"])
        if call is None:
            # It waits to begin, or has gone meanwhile, or there never was one.
            if kind != Type.CALL_CLEAR_REQUEST or not self.host.given_up(self, numbers["call_id"]):
                self.service.drops["call"] += 1
        elif kind == Type.CALL_CLEAR_REQUEST:
            self.clear(call, causes.REQUEST, 0, now)
            call.ended(Cause.USER_REQUEST, "Call-Clear-Request received", now)
        elif kind == Type.CALL_DISCONNECT_NOTIFY:
            result = numbers["result"]
            self.remove(call, now)
            cause = Cause.LOST_CARRIER if result == causes.LOST_CARRIER else Cause.USER_REQUEST
            text = causes.disconnect_text(result, numbers["error"])
            call.ended(cause, f"Call-Disconnect-Notify received: {text}", now)
        else:
            call.control(message, now)

    def _theirs(self, call_id: int) -> Leg | None:
        """The call to which the peer has given a call id."""
        if not self.dialled:
            return self.calls.get(call_id)
        return next((call for call in self.calls.values() if call.peer_id == call_id), None)

    # Calls.

    def add(self, call: Leg) -> None:
        """There is a call, of which the call id is known that the PNS has given."""
        self.calls[call.id if self.dialled else call.peer_id] = call
        self.most = max(self.most, len(self.calls))
        self.service.half_open.pop(self, None)

    def remove(self, call: Leg, now: float) -> None:
        """Forget a call."""
        self.host.wheel.disarm(call)
        del self.calls[call.id if self.dialled else call.peer_id]
        self.host.release(call)
        if not self.calls and self.state is State.ESTABLISHED:
            self._empty = now
            self._arm(now)

    def clear(self, call: Leg, result: int, error: int, now: float) -> None:
        """Send a Call-Disconnect-Notify and forget the call; :meth:`Leg.ended` is not called."""
        self.send(Type.CALL_DISCONNECT_NOTIFY, call_id=call.id, result=result, error=error)
        self.remove(call, now)

    # Time.

    def expire(self, now: float) -> None:
        options = self.service.options
        if self.state is not State.ESTABLISHED:
            reason = "not closed in time" if self.state > State.ESTABLISHED else f"not established within {SETUP:g} s"
            self.discard(reason, Cause.LOST_CARRIER, now)
        elif self._asked and now >= self._asked + options.echo_timeout:
            self.discard("the peer does not answer", Cause.LOST_CARRIER, now)
        elif not self.calls and now >= self._empty + IDLE and not self.host.waits(self):
            self.stop(causes.STOP_NONE, "no calls", Cause.NAS_REQUEST, now)
        else:
            if now >= self._empty + IDLE:
                # Those that wait have as long from now on.
                self._empty = now
            if options.echo_interval and not self._asked and now >= self._heard + options.echo_interval:
                self._echo = (self._echo + 1) & 0xFFFFFFFF
                self.send(Type.ECHO_REQUEST, identifier=self._echo)
                self._heard = now
                self._asked = now if options.echo_timeout else 0.0
            self._arm(now)

    def _arm(self, now: float) -> None:
        options = self.service.options
        dues = []
        if self._asked:
            dues.append(self._asked + options.echo_timeout)
        elif options.echo_interval:
            dues.append(self._heard + options.echo_interval)
        if not self.calls:
            dues.append(self._empty + IDLE)
        if dues:
            self.host.wheel.arm(self, min(dues))
        else:
            self.host.wheel.disarm(self)

    # The end.

    def stop(self, code: int, reason: str, cause: Cause, now: float) -> None:
        """Send a Stop-Control-Connection-Request, and end all calls."""
        if self.state is State.ESTABLISHED or (self.state is State.WAIT_REPLY and code == causes.STOP_PROTOCOL):
            self.send(Type.STOP_REQUEST, reason=code)
            self._close(State.WAIT_STOP, reason, cause, now)
            self.host.wheel.arm(self, now + STOP)
        elif self.state < State.ESTABLISHED:
            # Nothing has been agreed upon that could be stopped.
            self.discard(reason, cause, now)

    def discard(self, reason: str, cause: Cause, now: float) -> None:
        """Close it without a word, and end all calls."""
        if self.state is State.GONE:
            return
        if self.state < State.WAIT_STOP:
            self._close(State.GONE, reason, cause, now)
        self._gone()

    def _finish(self, reason: str, cause: Cause, now: float) -> None:
        """All is said: end all calls, and let the peer hear the last of it."""
        if self.state < State.WAIT_STOP:
            self._close(State.CLOSING, reason, cause, now)
        self.state = State.CLOSING
        self.stream.finish()
        self.host.wheel.arm(self, now + STOP)

    def _close(self, state: State, reason: str, cause: Cause, now: float) -> None:
        if self.may_log(now):
            log.info('%s Closed state=%s sessions=%d reason="%s"', self, self.state.title, len(self.calls), reason)
        self.state = state
        self.host.closed(self)
        calls, self.calls = self.calls, {}
        for call in calls.values():
            self.host.wheel.disarm(call)
            self.host.release(call)
        for call in calls.values():
            call.ended(cause, reason, now)

    def _gone(self) -> None:
        self.state = State.GONE
        self._rest = b""
        self.host.wheel.disarm(self)
        self.stream.close()
        self.host.forget(self)

    @property
    def echo_pending(self) -> bool:
        """Has nothing come since our last Echo-Request?  Only where an answer is waited for."""
        return self._asked > 0

    def may_log(self, now: float) -> bool:
        """May something be logged that anybody can bring about at will?"""
        return self.host.strangers.take(now)

    def __str__(self) -> str:
        return f"pptp ctrl={self.id} peer={self.endpoint}"
