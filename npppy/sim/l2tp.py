"""L2TP from the LAC's side (RFC 2661): tunnels, and in them a call for each subscriber.  No I/O."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..config import model
from ..config.model import AuthMethod
from ..cursor import Cursor
from ..l2tp import causes
from ..l2tp.call import LATE, MAX_MRU
from ..l2tp.codec import Attr, Data, Message, Type, u16, u32
from ..l2tp.engine import Engine
from ..l2tp.service import Endpoint, Transmit
from ..l2tp.tunnel import Avps, Leg, State, Tunnel
from ..ppp import proto
from ..ppp.cause import Cause
from ..ppp.lcp import AUTH_OPTIONS
from ..ppp.link import NOBODY, Call, Caller, Link, Proxy, Tap, Upper
from ..ppp.options import encode
from ..wheel import Wheel
from .load import Owner

#: What subscribers' lines are said to run at, in bit/s, both ways.
SPEED = 100_000_000
#: Octets of a CHAP Challenge of ours.
CHALLENGE_LENGTH = 16

# RFC 2661 section 4.4.4: Framing Type, synchronous.
_SYNCHRONOUS = 1
# Section 4.4.5: Proxy Authen Type.
_AUTHEN_TYPES = {AuthMethod.CHAP: 2, AuthMethod.PAP: 3}
# Section 4.4.2: "call was not established within time allotted by LAC".
_TOO_LATE = (10, 0)

# Section 3.1: T=0, L, version 2, with and without S.  Tunnel and session id are four octets in one; what follows them
# is [Ns, Nr,] and Address and Control of PPP.
_PLAIN = struct.Struct("!HH4s2s")
_NUMBERED = struct.Struct("!HH4sHH2s")
_PLAIN_FLAGS, _NUMBERED_FLAGS = 0x4002, 0x4802
_ADDRESS_CONTROL = b"\xff\x03"

_CHAP = proto.CHAP.to_bytes(2, "big")
_IP = proto.IP.to_bytes(2, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What all calls ask for."""

    #: The PPP options of the subscribers, and the LAC's own.
    tunnel: model.Tunnel
    #: Require sequence numbers on data; else there are some where the LNS sends some.
    sequencing: bool = False
    #: Negotiate LCP, and begin to authenticate the subscriber in this way (not MS-CHAPv2), in the LNS's place.
    proxy: AuthMethod | None = None


class _NoJournal:
    """A LAC that is killed is forgotten."""

    def add(self, kind: model.Protocol, interface: str, frame: bytes) -> int:
        return -1

    def remove(self, slot: int) -> None:
        """Nothing is there."""


class Trunk:
    """One of the tunnels that calls are spread over, and those that come in its place when it dies."""

    __slots__ = ("_tunnel", "endpoint", "link", "transmit")

    def __init__(self, wishes: Wishes, endpoint: Endpoint, transmit: Transmit) -> None:
        self.endpoint = endpoint
        self.transmit = transmit
        #: Of its calls.
        self.link = Link(tunnel=wishes.tunnel, caller=Caller(text=str(endpoint)), max_mru=MAX_MRU)
        self._tunnel: Tunnel | None = None

    def open(self, lac: Lac, now: float) -> Tunnel | None:
        """The tunnel, which is dialled if it is not there; None: there is no tunnel id left."""
        if self._tunnel is None or self._tunnel.state is State.CLOSING:
            self._tunnel = lac.dial(lac.service, self.endpoint, self.transmit, now)
        return self._tunnel


class Lac(Engine):
    """Spreads calls evenly over *tunnels* tunnels, which come when the first of their calls does.

    *ways* are the sockets of this host, used in turn: the endpoint, which has the LNS's address, and what sends there.
    """

    def __init__(
        self,
        wishes: Wishes,
        ways: Sequence[tuple[Endpoint, Transmit]],
        tunnels: int,
        rng: Callable[[int], bytes],
        wheel: Wheel,
        hostname: str,
    ) -> None:
        super().__init__([wishes.tunnel], _no_session, rng, wheel, _NoJournal(), hostname)
        self.wishes = wishes
        (self.service,) = self.services.values()
        self._trunks = [Trunk(wishes, *ways[number % len(ways)]) for number in range(tunnels)]
        # Calls whose ICCN a full window holds back, with its Ns.
        self._held: dict[Tunnel, deque[tuple[int, LacCall]]] = {}

    def call(self, number: int, calling: str, called: str, owner: Owner) -> LacCall:
        """A new call, for subscriber *number*, with Calling Number and Called Number; empty ones are not sent.

        A subscriber is always in the same of the tunnels, so that they stay evenly filled.
        """
        trunk = self._trunks[(number - 1) % len(self._trunks)]
        return LacCall(self, trunk, calling, called, owner)

    def cut(self, now: float) -> None:
        """The LAC's power has been cut: it knows nothing of its tunnels any more."""
        for tunnel in list(self.tunnels.values()):
            tunnel.discard("power cut", now)

    def established(self, tunnel: Tunnel, now: float) -> None:
        super().established(tunnel, now)
        for call in list(tunnel.calls.values()):
            assert isinstance(call, LacCall)
            call.ring(now)

    def closed(self, tunnel: Tunnel, reason: str, now: float) -> None:
        super().closed(tunnel, reason, now)
        self._held.pop(tunnel, None)

    def waits(self, tunnel: Tunnel) -> bool:
        """None does: each is refused at once."""
        return False

    def incoming(self, tunnel: Tunnel, message: Message, now: float) -> None:
        """The LNS wants a call: subscribers take none."""
        self.service.drops["calls-of-the-lns"] += 1
        theirs = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
        tunnel.refuse(theirs, (causes.CDN_PERMANENT, 0), "no calls to subscribers", now)

    def hold(self, call: LacCall, now: float) -> None:
        """Let PPP begin as soon as the ICCN, which was the last message, has left.

        Data does not wait for the control window, and an LNS drops what comes before the ICCN.
        """
        channel = call.tunnel.channel
        if channel.unsent:
            ns = (channel.next_ns + channel.unsent - 1) & 0xFFFF
            self._held.setdefault(call.tunnel, deque()).append((ns, call))
        else:
            call.begin(now)

    def flush(self, now: float) -> None:
        super().flush(now)
        for tunnel, held in list(self._held.items()):
            # Those before next_ns have left.
            while held and (held[0][0] - tunnel.channel.next_ns) & 0xFFFF >= 0x8000:
                held.popleft()[1].begin(now)
            if not held:
                self._held.pop(tunnel, None)


def _no_session(call: Call, now: float) -> None:
    """There are no sessions of an LNS."""


class LacCall(Leg):
    """One subscriber's incoming call (RFC 2661 section 7.4.1): from the wish for it to its end."""

    __slots__ = (
        "_called",
        "_calling",
        "_early",
        "_expected",
        "_ids",
        "_lac",
        "_ns",
        "_owner",
        "_sequenced",
        "_trunk",
        "link",
        "upper",
    )

    def __init__(self, lac: Lac, trunk: Trunk, calling: str, called: str, owner: Owner) -> None:
        # It is a leg, and the rest of Leg is there, as soon as it is dialled: no earlier is a tunnel needed.
        self.link = trunk.link
        self.upper: Upper = NOBODY
        self._lac = lac
        self._trunk = trunk
        self._calling = calling
        self._called = called
        self._owner = owner
        # The peer's tunnel and session id in a data message; empty until we may send some.
        self._ids = b""
        # The subscriber's last frame until then.
        self._early = b""
        # Whether we number data; the Ns of our next message, and of the LNS's.
        self._sequenced = lac.wishes.sequencing
        self._ns = 0
        self._expected = 0

    # Dialling.

    def dial(self, now: float) -> None:
        tunnel = self._trunk.open(self._lac, now)
        number = tunnel.new_id() if tunnel is not None else 0
        if tunnel is None or not number:
            self._owner.failed("no tunnel or session id left", now)
            return
        super().__init__(tunnel, number)
        tunnel.add(self)
        if tunnel.state is State.ESTABLISHED:
            self.ring(now)

    def ring(self, now: float) -> None:
        """The tunnel is there: send ICRQ."""
        tunnel = self.tunnel
        tunnel.serial += 1
        avps = [(Attr.ASSIGNED_SESSION_ID, u16(self.id)), (Attr.CALL_SERIAL_NUMBER, u32(tunnel.serial))]
        for attribute, number in ((Attr.CALLED_NUMBER, self._called), (Attr.CALLING_NUMBER, self._calling)):
            if number:
                avps.append((attribute, number.encode()))
        tunnel.send(0, Type.ICRQ, avps, now)
        self._lac.wheel.arm(self, now + self.link.tunnel.negotiation_timeout)

    def expire(self, now: float) -> None:
        self.clear(Cause.LOST_CARRIER, now, _TOO_LATE)
        self._leave("no ICRP", now)

    def control(self, message: Message, now: float) -> None:
        kind = message.type
        if kind == Type.ICRP and not self.peer_id:
            self._lac.wheel.disarm(self)
            self.peer_id = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
            self._connect(now)
        elif kind != Type.SLI:
            # SLI is for lines with characters to escape.
            reason = f"{message.name} out of place"
            self.clear(Cause.NAS_ERROR, now, (causes.CDN_ERROR, causes.ERROR_VENDOR), reason)
            self._leave(reason, now)

    def _connect(self, now: float) -> None:
        """Send ICCN."""
        wishes = self._lac.wishes
        avps = [
            (Attr.TX_CONNECT_SPEED, u32(SPEED)),
            (Attr.FRAMING_TYPE, u32(_SYNCHRONOUS)),
        ]
        if wishes.sequencing:
            avps.append((Attr.SEQUENCING_REQUIRED, b""))
        if wishes.proxy is not None:
            avps += self._negotiate(wishes.proxy, now)
        self.tunnel.send(self.peer_id, Type.ICCN, avps, now)
        self._ids = u16(self.tunnel.peer_id) + u16(self.peer_id)
        self._lac.hold(self, now)

    def begin(self, now: float) -> None:
        """The ICCN has left: PPP may begin, if it has not and the call is still there."""
        if self.upper is NOBODY and self.tunnel.calls.get(self.id) is self:
            self.upper = self._owner.connected(self, now)

    # In place of the LNS (section 4.4.5).

    def _negotiate(self, method: AuthMethod, now: float) -> Avps:
        """LCP has been negotiated: have the subscriber authenticate itself, and say so."""
        mru = (proto.OPT_MRU, self.link.tunnel.mru.to_bytes(2, "big"))
        theirs = encode([mru, (proto.OPT_MAGIC, self._magic(b"\x01"))])
        ours = encode([mru, (proto.OPT_AUTH, AUTH_OPTIONS[method]), (proto.OPT_MAGIC, self._magic(b"\x02"))])
        self.link = replace(self._trunk.link, proxy=Proxy(theirs, ours, theirs))
        self.upper = self._owner.connected(self, now)
        self.link = self._trunk.link
        avps = [
            (Attr.INITIAL_RECEIVED_LCP_CONFREQ, theirs),
            (Attr.LAST_SENT_LCP_CONFREQ, ours),
            (Attr.LAST_RECEIVED_LCP_CONFREQ, theirs),
            (Attr.PROXY_AUTHEN_TYPE, u16(_AUTHEN_TYPES[method])),
        ]
        if method is AuthMethod.CHAP:
            challenge = self._lac.rng(CHALLENGE_LENGTH)
            avps.append((Attr.PROXY_AUTHEN_CHALLENGE, challenge))
            data = bytes((len(challenge),)) + challenge + self._lac.hostname.encode()
            code = 1
            head = bytes((code, self._lac.rng(1)[0])) + u16(4 + len(data))
            self.upper.receive(_CHAP + head + data, now)
        # Either way there is an answer: protocol, code, identifier, length, and two fields.
        cursor = Cursor(self._early, 3)
        identifier = cursor.u8()
        cursor.u16()
        first = cursor.take(cursor.u8())
        name, answer = (cursor.rest(), first) if method is AuthMethod.CHAP else (first, cursor.take(cursor.u8()))
        self._early = b""
        avps += [
            (Attr.PROXY_AUTHEN_NAME, name),
            (Attr.PROXY_AUTHEN_ID, u16(identifier)),
            (Attr.PROXY_AUTHEN_RESPONSE, answer),
        ]
        return avps

    def _magic(self, first: bytes) -> bytes:
        """A magic number: that of the other end, and 0, begin otherwise."""
        return first + self._lac.rng(3)

    # Data.

    def data(self, datagram: bytes, data: Data, now: float) -> None:
        if self.upper is NOBODY and self._ids:
            # The acknowledgement that has let ICCN go was in the same batch.
            self.begin(now)
        start, ns = data.start, data.ns
        if datagram[start : start + 2] == _ADDRESS_CONTROL:
            start += 2
        if ns < 0:
            if self._lac.wishes.sequencing:
                # Section 5.4: numbers must be there at all times.
                self._lac.service.drops["unsequenced"] += 1
                return
            self._sequenced = False
        else:
            # Section 5.4: it is for the LNS to say whether there are numbers.
            self._sequenced = True
            ahead = (ns - self._expected) & 0xFFFF
            if ahead < 0x8000:
                if ahead:
                    self._lac.service.drops["missing"] += ahead
                self._expected = (ns + 1) & 0xFFFF
            elif ahead < 0x10000 - LATE or datagram[start : start + 2] != _IP:
                # IP does not mind; a control protocol would take it for something new.
                self._lac.service.drops["late"] += 1
                return
        self.upper.receive(datagram[start : data.end], now)

    def send(self, frame: bytes) -> None:
        ids = self._ids
        if not ids:
            self._early = frame
            return
        if self._sequenced:
            ns = self._ns
            self._ns = (ns + 1) & 0xFFFF
            header = _NUMBERED.pack(_NUMBERED_FLAGS, 14 + len(frame), ids, ns, 0, _ADDRESS_CONTROL)
        else:
            header = _PLAIN.pack(_PLAIN_FLAGS, 10 + len(frame), ids, _ADDRESS_CONTROL)
        self.tunnel.transmit_data(header + frame)

    __call__ = send

    # The call.

    def facts(self) -> dict[str, object]:
        tunnel = self.tunnel
        return {
            "tunnel_id": tunnel.id,
            "session_id": self.id,
            "peer_tunnel_id": tunnel.peer_id,
            "peer_session_id": self.peer_id,
            "local_port": tunnel.endpoint.local_port,
            "concentrator": self.link.caller.text,
        }

    def close(self, cause: Cause) -> None:
        if self.tunnel.calls.get(self.id) is self:
            self.clear(cause, self._lac.now)
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
        if self.tunnel.calls.get(self.id) is self:
            self.tunnel.remove(self, self._lac.now)
        self.upper = NOBODY

    # Its LAC has power.
    vanish = forget

    def _leave(self, reason: str, now: float) -> None:
        """It is over, which was not the subscriber's will."""
        upper, self.upper = self.upper, NOBODY
        if upper is NOBODY:
            self._owner.failed(reason, now)
        else:
            upper.gone(Cause.LOST_CARRIER, reason, now)
