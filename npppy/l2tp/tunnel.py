"""A control connection: how it is set up, kept and ended (RFC 2661 sections 5 and 7.2), from either end of it.

What its calls are is the business of who makes them: an LNS's are in :mod:`.call`.
"""

from __future__ import annotations

import enum
import hmac
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

from ..cursor import Malformed
from ..pipex.icmp import RateLimit
from ..ppp.cause import Cause
from ..ppp.link import TunnelEnds
from ..text import printable
from ..wheel import Timed, Wheel
from . import causes, codec, secret
from .channel import RECEIVE_WINDOW, Channel
from .codec import Attr, Data, Message, Type, u16, u32
from .service import Endpoint, Service, Transmit

log = logging.getLogger("npppy.l2tp")

#: RFC 2661 section 4.4.3: version 1, revision 0.
VERSION = b"\x01\x00"
#: Section 4.4.3, Framing Capabilities: synchronous and asynchronous.
FRAMING = 3
FIRMWARE = 1
CHALLENGE_LENGTH = 16
#: Octets of a Random Vector, as section 4.3 recommends.
VECTOR_LENGTH = 16

#: Seconds of a whole cycle of retransmissions (section 5.8): so long a tunnel may take to be established, and so long
#: one that has ended acknowledges what comes again (section 5.7).
CYCLE = 31.0
#: Seconds that a tunnel without calls stays, as in npppd.
IDLE = 16.0
#: Characters of a peer's name that are kept.
NAME = 253
#: RFC 2868 section 3.1.
_TUNNEL_TYPE = 3
#: Messages that set tunnels up, by the state in which one is expected, and those about calls.
_SETUP = frozenset((Type.SCCRQ, Type.SCCRP, Type.SCCCN))
_CALL = frozenset(
    (Type.OCRQ, Type.OCRP, Type.OCCN, Type.ICRQ, Type.ICRP, Type.ICCN, Type.CDN, Type.WEN, Type.SLI)
)

Avps = list[tuple[Attr, bytes]]


class State(enum.IntEnum):
    """RFC 2661 section 7.2.1, and what comes after."""

    WAIT_REPLY = 0
    WAIT_CONN = 1
    ESTABLISHED = 2
    #: Our StopCCN is under way, or the peer's has come: only acknowledgements are of interest.
    CLOSING = 3

    @property
    def title(self) -> str:
        return ("wait-ctl-reply", "wait-ctl-conn", "established", "closing")[self]


class Leg(Timed, ABC):
    """A call of a tunnel, of whichever kind."""

    __slots__ = ("id", "peer_id", "tunnel")

    def __init__(self, tunnel: Tunnel, session_id: int) -> None:
        super().__init__()
        self.tunnel = tunnel
        #: The session id that we gave it, and the peer's; 0: not known yet.
        self.id = session_id
        self.peer_id = 0

    @abstractmethod
    def control(self, message: Message, now: float) -> None:
        """A message about this call, neither a CDN nor one with a fault."""

    @abstractmethod
    def data(self, datagram: bytes, data: Data, now: float) -> None:
        """A data message.  Whatever it holds, this does not raise."""

    @abstractmethod
    def ended(self, cause: Cause, reason: str, now: float) -> None:
        """The call has gone, and its tunnel has forgotten it: nothing can be sent any more."""

    def moved(self, now: float) -> None:
        """The tunnel's endpoint is another one."""

    def clear(self, cause: Cause, now: float, result: tuple[int, int] | None = None, message: str = "") -> None:
        """Send a CDN and forget the call.  :meth:`ended` is not called."""
        code, error = result or causes.RESULTS.get(cause, (causes.CDN_ADMINISTRATIVE, 0))
        avps = [
            (Attr.RESULT_CODE, codec.result_code(code, error, message)),
            (Attr.ASSIGNED_SESSION_ID, u16(self.id)),
            (Attr.PPP_DISCONNECT_CAUSE, causes.disconnect_cause(cause)),
        ]
        self.tunnel.send(self.peer_id, Type.CDN, avps, now)
        self.tunnel.remove(self, now)


class Host(Protocol):
    """Who has tunnels."""

    wheel: Wheel
    rng: Callable[[int], bytes]
    #: Of the machine.
    hostname: str
    #: May something be logged that a stranger has brought about?
    strangers: RateLimit

    def established(self, tunnel: Tunnel, now: float) -> None:
        """Calls may be made."""

    def closed(self, tunnel: Tunnel, reason: str, now: float) -> None:
        """The tunnel is of no use any more, but for acknowledgements; its calls have ended."""

    def forget(self, tunnel: Tunnel) -> None:
        """Nothing comes of it any more."""

    def incoming(self, tunnel: Tunnel, message: Message, now: float) -> None:
        """An ICRQ or an OCRQ without a fault, whose Assigned Session ID is not 0: accept it, or refuse it."""

    def given_up(self, tunnel: Tunnel, theirs: int) -> None:
        """The peer does not want a call any more that has the Assigned Session ID *theirs*, and may not be known."""

    def waits(self, tunnel: Tunnel) -> bool:
        """Whether the peer waits for a call that is neither accepted nor refused yet."""

    def owes(self, tunnel: Tunnel) -> None:
        """There is something to acknowledge: to be flushed after this batch of datagrams."""


class Tunnel(Timed):
    """A control connection with a peer."""

    __slots__ = (
        "_challenge",
        "_empty",
        "_heard",
        "_host",
        "_secret",
        "_transmit",
        "began",
        "calls",
        "channel",
        "endpoint",
        "id",
        "peer_id",
        "peer_name",
        "serial",
        "service",
        "slot",
        "state",
        "tie_breaker",
    )

    def __init__(
        self, host: Host, service: Service, endpoint: Endpoint, transmit: Transmit, tunnel_id: int, now: float
    ) -> None:
        super().__init__()
        self._host = host
        self.service = service
        self.endpoint = endpoint
        self._transmit = transmit
        #: The tunnel id that we gave it, and the peer's; 0: not known yet.
        self.id = tunnel_id
        self.peer_id = 0
        #: The peer's Host Name.
        self.peer_name = ""
        self.state = State.WAIT_REPLY
        self.channel = Channel(self, host.wheel)
        self.calls: dict[int, Leg] = {}
        #: Of the next call that we ask for.
        self.serial = 0
        #: Where the journal has it; -1: nowhere.
        self.slot = -1
        self.began = now
        #: Of our SCCRQ; empty where we have sent none.
        self.tie_breaker = b""
        self._secret = service.secret_for(endpoint)
        # What the peer is to prove that it knows the secret by; empty: it need not.
        self._challenge = host.rng(CHALLENGE_LENGTH) if self._secret else b""
        # When a message of the peer last came, and when the last call went.
        self._heard = now
        self._empty = now
        host.wheel.arm(self, now + CYCLE)

    # Setting up.

    def dial(self, now: float) -> None:
        """Ask the peer for the tunnel."""
        self.tie_breaker = self._host.rng(8)
        avps = self._introduction()
        avps.append((Attr.TIE_BREAKER, self.tie_breaker))
        self.send(0, Type.SCCRQ, avps, now)

    def accept(self, packet: codec.Control, message: Message, now: float) -> None:
        """The peer asks for the tunnel, by an SCCRQ without a fault."""
        self.state = State.WAIT_CONN
        self.channel.receive(0, packet.ns, packet.nr, packet.body, now)
        self._learn(message)
        avps = self._introduction()
        if self._is_ours(message, now) and self._answer(message, Type.SCCRP, avps, now):
            self.send(0, Type.SCCRP, avps, now)

    @property
    def _name(self) -> str:
        """Our Host Name."""
        return self.service.options.hostname or self._host.hostname

    def _introduction(self) -> Avps:
        options = self.service.options
        avps = [
            (Attr.PROTOCOL_VERSION, VERSION),
            (Attr.HOST_NAME, self._name.encode()),
            (Attr.FRAMING_CAPABILITIES, u32(FRAMING)),
            (Attr.ASSIGNED_TUNNEL_ID, u16(self.id)),
            (Attr.FIRMWARE_REVISION, u16(FIRMWARE)),
            (Attr.RECEIVE_WINDOW_SIZE, u16(RECEIVE_WINDOW)),
        ]
        if options.vendor_name:
            avps.append((Attr.VENDOR_NAME, options.vendor_name.encode()))
        if self._challenge:
            avps.append((Attr.CHALLENGE, self._challenge))
        return avps

    def _learn(self, message: Message) -> None:
        self.peer_id = message.u16(Attr.ASSIGNED_TUNNEL_ID, 0)
        self.peer_name = message.text(Attr.HOST_NAME, "")[:NAME]
        self.channel.window = message.u16(Attr.RECEIVE_WINDOW_SIZE, 4)

    def _is_ours(self, message: Message, now: float) -> bool:
        """Is it our version of the protocol?  If not, the tunnel ends."""
        if message.avps.get(Attr.PROTOCOL_VERSION, VERSION)[:1] == VERSION[:1]:
            return True
        # Section 4.4.2: the Error Code says which one is.
        self.stop(causes.STOP_VERSION, int.from_bytes(VERSION, "big"), "another protocol version", now)
        return False

    def _answer(self, message: Message, answer: Type, avps: Avps, now: float) -> bool:
        """Add the response to a challenge of the peer; False: that cannot be, and the tunnel ends."""
        challenge = message.avps.get(Attr.CHALLENGE)
        if challenge is None:
            return True
        if not self._secret:
            self.stop(causes.STOP_NOT_AUTHORIZED, 0, "the peer wants tunnel authentication: no l2tp-secret", now)
            return False
        avps.append((Attr.CHALLENGE_RESPONSE, secret.challenge_response(answer, self._secret, challenge)))
        return True

    def _is_authentic(self, message: Message, now: float) -> bool:
        """Does the message answer our challenge?  If not, the tunnel ends."""
        if not self._challenge:
            return True
        expected = secret.challenge_response(message.type, self._secret, self._challenge)
        if hmac.compare_digest(expected, message.avps.get(Attr.CHALLENGE_RESPONSE, b"")):
            return True
        self.service.drops["secret"] += 1
        self.stop(causes.STOP_NOT_AUTHORIZED, 0, "tunnel authentication failed", now)
        return False

    def _replied(self, message: Message, now: float) -> None:
        """SCCRP."""
        self._learn(message)
        avps: Avps = []
        if (
            self._is_ours(message, now)
            and self._is_authentic(message, now)
            and self._answer(message, Type.SCCCN, avps, now)
        ):
            self.send(0, Type.SCCCN, avps, now)
            self._establish(now)

    def _establish(self, now: float) -> None:
        self.state = State.ESTABLISHED
        self._challenge = b""
        if self.may_log(now):
            log.info("%s Established host=\"%s\" peer-id=%d", self, printable(self.peer_name), self.peer_id)
        self._empty = now
        self._arm(now)
        self._host.established(self, now)

    # Messages.

    def send(self, session_id: int, kind: Type, avps: Avps, now: float, bound: float = CYCLE) -> None:
        """Send a control message; *session_id* is the peer's."""
        hiding = None
        # Not before the peer has shown that it knows the secret: xl2tpd looks for it when it is challenged.
        if self.service.options.hidden_avps and self._secret and kind not in (Type.SCCRQ, Type.SCCRP):
            hiding = codec.Hiding(self._host.rng(VECTOR_LENGTH), self._hide)
        self.channel.send(session_id, codec.encode_message(kind, avps, hiding), now, bound)

    def _hide(self, attribute: int, value: bytes, vector: bytes) -> bytes:
        # Section 4.3: padding hides the length.
        return secret.hide(attribute, value, self._secret, vector, self._host.rng(self._host.rng(1)[0] & 15))

    def transmit(self, session_id: int, ns: int, nr: int, body: bytes) -> None:
        """For the channel."""
        datagram = codec.control(self.peer_id, session_id, ns, nr, body)
        if self.service.options.ctrl_out_pktdump:
            self.dump("SendCtrl", datagram)
        self._transmit(self.endpoint, datagram)

    def transmit_data(self, datagram: bytes) -> None:
        """Send a data message."""
        if self.service.options.data_out_pktdump:
            self.dump("SendData", datagram)
        self._transmit(self.endpoint, datagram)

    def transmits_by(self, transmit: Transmit) -> bool:
        """Is *transmit* what sends its datagrams?"""
        return self._transmit == transmit

    def undelivered(self, now: float) -> None:
        """For the channel: the peer does not acknowledge."""
        if self.state is State.CLOSING:
            self._gone()
        else:
            if self.may_log(now):
                log.info("%s Timeout state=%s", self, self.state.title)
            self._close("the peer does not answer", Cause.LOST_CARRIER, now)
            self._gone()

    def receive(self, packet: codec.Control, now: float) -> None:
        """A control message from the endpoint."""
        self._heard = now
        channel = self.channel
        for session_id, body in channel.receive(packet.session_id, packet.ns, packet.nr, packet.body, now):
            self._deliver(session_id, body, now)
        if channel.ack_due:
            self._host.owes(self)

    def heard(self, now: float) -> None:
        """A data message has come: nobody need ask whether the peer is there."""
        self._heard = now

    def _deliver(self, session_id: int, body: bytes, now: float) -> None:
        if self.state is State.CLOSING:
            return
        try:
            message = codec.decode_message(body, self._secret)
        except Malformed as error:
            # Section 7.1: what cannot be read is the end of the tunnel, for both to know where they are.
            self.service.drops["malformed"] += 1
            self.stop(causes.STOP_ERROR, 2, f"malformed message: {error}", now)
            return
        log.debug("%s Recv%s session=%d", self, message.name, session_id)
        kind = message.type
        if kind == Type.STOP_CCN:
            self._stopped(message, now)
        elif kind in _CALL:
            self._about_call(session_id, message, now)
        elif message.fault is not None:
            fault = message.fault
            self.service.drops["fault"] += 1
            self.stop(causes.STOP_ERROR, fault.error, fault.text, now)
        elif kind == Type.SCCRP and self.state is State.WAIT_REPLY:
            self._replied(message, now)
        elif kind == Type.SCCCN and self.state is State.WAIT_CONN:
            if self._is_authentic(message, now):
                self._establish(now)
        elif kind in _SETUP:
            self.stop(causes.STOP_FSM, 0, f"{message.name} in state {self.state.title}", now)
        elif kind != Type.HELLO:
            # The sender does not insist on it, or there would be a fault.
            self.service.drops["message-type"] += 1

    def _about_call(self, session_id: int, message: Message, now: float) -> None:
        kind = message.type
        if self.state is not State.ESTABLISHED:
            self.stop(causes.STOP_FSM, 0, f"{message.name} in state {self.state.title}", now)
            return
        call = self.calls.get(session_id) if session_id else None
        if kind in (Type.ICRQ, Type.OCRQ) and call is None:
            self._asked(message, now)
        elif kind == Type.CDN:
            # One who does not know our session id yet names only its own (section 4.4.4).
            if call is None and not session_id:
                theirs = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
                call = next((call for call in self.calls.values() if theirs and call.peer_id == theirs), None)
                self._host.given_up(self, theirs)
            if call is not None:
                self._cleared(call, message, now)
        elif call is None:
            # The call has gone meanwhile; or there never was one, of which the peer is told where it can be.
            self.service.drops["session"] += 1
            theirs = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
            if kind in (Type.ICRP, Type.OCRP) and theirs:
                self.refuse(theirs, (causes.CDN_ERROR, causes.ERROR_SESSION_ID), "no such call", now)
        elif message.fault is not None:
            fault = message.fault
            self.service.drops["fault"] += 1
            self.remove(call, now)
            self._refuse(call.peer_id, call.id, (causes.CDN_ERROR, fault.error), fault.text, now)
            call.ended(Cause.NAS_ERROR, fault.text, now)
        else:
            call.control(message, now)

    def _asked(self, message: Message, now: float) -> None:
        """A call is asked for."""
        theirs = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
        fault = message.fault
        if fault is None:
            self._host.incoming(self, message, now)
            return
        self.service.drops["fault"] += 1
        if theirs:
            self.refuse(theirs, (causes.CDN_ERROR, fault.error), fault.text, now)
        else:
            # Nobody could be told which call it is.
            self.stop(causes.STOP_ERROR, fault.error, fault.text, now)

    def refuse(self, peer_id: int, result: tuple[int, int], text: str, now: float) -> None:
        """Refuse the call to which the peer gave this session id."""
        self._refuse(peer_id, 0, result, text, now)

    def _refuse(self, peer_id: int, session_id: int, result: tuple[int, int], text: str, now: float) -> None:
        log.debug("%s Refused peer-session=%d reason=%s", self, peer_id, text)
        avps = [
            (Attr.RESULT_CODE, codec.result_code(*result, text)),
            (Attr.ASSIGNED_SESSION_ID, u16(session_id)),
        ]
        self.send(peer_id, Type.CDN, avps, now)

    def _cleared(self, call: Leg, message: Message, now: float) -> None:
        """CDN."""
        result, text = causes.read_result(message.avps.get(Attr.RESULT_CODE, b""), stop=False)
        more = causes.read_disconnect_cause(message.avps.get(Attr.PPP_DISCONNECT_CAUSE, b""))
        if more and self.may_log(now):
            log.info("%s session=%d %s", self, call.id, more)
        self.remove(call, now)
        # A carrier that is lost is seen by a LAC of lines; what dials by itself says that it hangs up.
        cause = Cause.LOST_CARRIER if result == causes.CDN_CARRIER else Cause.USER_REQUEST
        call.ended(cause, f"CDN received: {text}", now)

    # Calls.

    def new_id(self) -> int:
        """A session id for a call; 0: there is none left."""
        if len(self.calls) >= 0xF000:
            return 0
        while True:
            number = int.from_bytes(self._host.rng(2), "big")
            if number and number not in self.calls:
                return number

    def add(self, call: Leg) -> None:
        self.calls[call.id] = call

    def remove(self, call: Leg, now: float) -> None:
        """Forget a call."""
        self._host.wheel.disarm(call)
        del self.calls[call.id]
        if not self.calls and self.state is State.ESTABLISHED:
            self._empty = now
            self._arm(now)

    # Time.

    def expire(self, now: float) -> None:
        if self.state is State.CLOSING:
            self._gone()
        elif self.state is not State.ESTABLISHED:
            self.stop(causes.STOP_CLEAR, 0, f"not established within {CYCLE:g} s", now)
        elif not self.calls and now >= self._empty + IDLE and not self._host.waits(self):
            self.stop(causes.STOP_CLEAR, 0, "no calls", now)
        else:
            if now >= self._empty + IDLE:
                # Those that wait have as long from now on.
                self._empty = now
            options = self.service.options
            if now >= self._heard + options.hello_interval:
                # What is unanswered already does as well.
                if self.channel.idle:
                    self.send(0, Type.HELLO, [], now, float(options.hello_timeout))
                self._heard = now
            self._arm(now)

    def _arm(self, now: float) -> None:
        due = self._heard + self.service.options.hello_interval
        if not self.calls:
            due = min(due, self._empty + IDLE)
        self._host.wheel.arm(self, max(due, now))

    # The end.

    def stop(self, result: int, error: int, reason: str, now: float, cause: Cause = Cause.NAS_REQUEST) -> None:
        """Send a StopCCN, and end all calls."""
        if self.state is State.CLOSING:
            return
        avps = [(Attr.ASSIGNED_TUNNEL_ID, u16(self.id)), (Attr.RESULT_CODE, codec.result_code(result, error, reason))]
        if not self.peer_id and self.state is State.WAIT_REPLY:
            # Nobody knows of it yet.
            self._close(reason, cause, now)
            self._gone()
            return
        self.send(0, Type.STOP_CCN, avps, now)
        self._close(reason, cause, now)

    def _stopped(self, message: Message, now: float) -> None:
        _, text = causes.read_result(message.avps.get(Attr.RESULT_CODE, b""), stop=True)
        self._close(f"StopCCN received: {text}", Cause.LOST_CARRIER, now)
        self.channel.quit()
        self.channel.flush(now)

    def discard(self, reason: str, now: float) -> None:
        """Give it up without a word: the peer does so, too."""
        if self.state is not State.CLOSING:
            self._close(reason, Cause.LOST_CARRIER, now)
        self._gone()

    def replaced(self, now: float) -> None:
        """The peer has started anew, and knows nothing of this one."""
        self.discard("the peer has started anew", now)

    def _close(self, reason: str, cause: Cause, now: float) -> None:
        """End all calls, and be there for no more than acknowledgements."""
        if self.may_log(now):
            log.info("%s Closed state=%s sessions=%d reason=\"%s\"", self, self.state.title, len(self.calls), reason)
        self.state = State.CLOSING
        calls, self.calls = self.calls, {}
        self._host.closed(self, reason, now)
        for call in calls.values():
            self._host.wheel.disarm(call)
            call.ended(cause, reason, now)
        self._host.wheel.arm(self, now + CYCLE)

    def _gone(self) -> None:
        self.channel.close()
        self._host.wheel.disarm(self)
        self._host.forget(self)

    # What others ask for.

    @property
    def ends(self) -> TunnelEnds:
        at = self.endpoint
        return TunnelEnds(
            type=_TUNNEL_TYPE,
            client=at.host,
            server=str(ip_address(at.local)),
            client_name=self.peer_name,
            server_name=self._name,
            name=f"L2TP-CTRL-{self.id}",
        )

    def move(self, endpoint: Endpoint, now: float) -> None:
        """The peer is somewhere else now."""
        if self.may_log(now):
            log.info("%s Moved to=%s", self, endpoint)
        self.endpoint = endpoint
        for call in list(self.calls.values()):
            call.moved(now)

    def may_log(self, now: float) -> bool:
        """May something be logged that the peer can bring about at will?  Always, if it knows the secret."""
        return bool(self._secret and self.state is State.ESTABLISHED) or self._host.strangers.take(now)

    def dump(self, what: str, datagram: bytes) -> None:
        """``pktdump``."""
        log.debug("%s %s len=%d\n%s", self, what, len(datagram), codec.shown(datagram))

    def __str__(self) -> str:
        return f"l2tp ctrl={self.id} peer={self.endpoint}"
