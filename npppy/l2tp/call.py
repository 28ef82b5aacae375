"""A call of an LNS: what a LAC, or a host that is its own, connects to PPP (RFC 2661 section 7.4.2)."""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ..config.model import L2tpOptions
from ..ppp.cause import Cause
from ..ppp.link import IN, NOBODY, OUT, Caller, Link, Proxy, Tap, Upper
from ..reorder import WAIT, Reorder
from . import causes, codec
from .codec import Attr, Data, Message, Type, u16, u32
from .encap import L2tpEncap, Sequence
from .tunnel import Leg, Tunnel

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger("npppy.l2tp")

#: Seconds that a LAC may take to connect a call.
CONNECT = 60.0
#: The largest MRU: IPv6, UDP, L2TP and PPP headers must fit into a datagram, too.
MAX_MRU = 65535 - 40 - 8 - 12 - 4
#: The same over IPv6, where nobody on the way may cut a datagram in pieces: of 1500 octets, the headers are no more.
MAX_MRU6 = 1500 - 40 - 8 - 12 - 4
#: Late by no more than so many messages, an IP packet still passes (as in npppd).
LATE = 64

#: RFC 2661 section 4.4.4: Framing Type, asynchronous alone.
_ASYNCHRONOUS = 2
_ADDRESS_CONTROL = b"\xff\x03"
_IP = (b"\x00\x21", b"\x00\x57")
#: Where Length and Ns are in a header of ours.
_LENGTH_AT, _NS_AT = 2, 8
_length = struct.Struct("!H").pack_into
#: Of a text that a peer sends: what RADIUS can say (RFC 2865 section 5).
_TEXT = 253


class Facts(NamedTuple):
    """What the LAC says of the call, of use to who looks on."""

    calling_number: str = ""
    called_number: str = ""
    #: bit/s
    tx_speed: int = 0
    rx_speed: int = 0


_NO_FACTS = Facts()


class LnsCall(Leg):
    """A session.  It rests here for days, so it holds what sending needs and nothing of how it came to be."""

    __slots__ = (
        "_asynchronous",
        "_conf",
        "_facts",
        "_link",
        "_reorder",
        "connected",
        "counted",
        "engine",
        "sequence",
        "upper",
    )

    #: What is needed of an ICRQ, and of how many octets.
    ASKED: ClassVar = {Attr.ASSIGNED_SESSION_ID: 2, Attr.CALLING_NUMBER: _TEXT, Attr.CALLED_NUMBER: _TEXT}

    def __init__(self, engine: Engine, tunnel: Tunnel, session_id: int, message: Message) -> None:
        super().__init__(tunnel, session_id)
        self.engine = engine
        self.peer_id = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
        self.upper: Upper = NOBODY
        # A reload gives the tunnel another one.
        self._conf = tunnel.service.tunnel
        self._facts = _facts(
            message.text(Attr.CALLING_NUMBER, "")[:_TEXT], message.text(Attr.CALLED_NUMBER, "")[:_TEXT]
        )
        # Until it rests.
        self._link: Link | None = None
        # None: data has no sequence numbers.
        self.sequence: Sequence | None = None
        self._reorder: Reorder | None = None
        #: Whether PPP has it, or is about to.
        self.connected = False
        self._asynchronous = False
        #: Whether limits count it.
        self.counted = True

    @property
    def link(self) -> Link:
        return self._link or self._make_link()

    def _make_link(self, proxy: Proxy | None = None) -> Link:
        tunnel, facts = self.tunnel, self._facts
        return Link(
            tunnel=self._conf,
            caller=Caller(
                text=str(tunnel.endpoint),
                calling_number=facts.calling_number,
                called_number=facts.called_number,
                tx_speed=facts.tx_speed,
                rx_speed=facts.rx_speed,
            ),
            max_mru=MAX_MRU if len(tunnel.endpoint.peer) == 4 else MAX_MRU6,
            encap=self._encap(),
            over=tunnel,
            call_id=self.id,
            proxy=proxy,
        )

    # What the tunnel asks for.

    def control(self, message: Message, now: float) -> None:
        kind = message.type
        if kind == Type.ICCN and not self.connected:
            self._connect(message, now)
        elif kind == Type.WEN:
            # Counters of the LAC's line, each of 32 bits (RFC 2661 section 4.4.6).
            value = message.avps.get(Attr.CALL_ERRORS, b"")[2:26]
            crc, framing, hardware, buffer, timeout, alignment = struct.unpack("!6I", value.ljust(24, b"\0"))
            if self.tunnel.may_log(now):
                log.info(
                    "%s WAN errors crc=%d framing=%d hardware=%d buffer=%d timeout=%d alignment=%d",
                    *(self, crc, framing, hardware, buffer, timeout, alignment),
                )
        elif kind == Type.SLI:
            # A LAC's to obey, and it tells ACCMs of a line that we do not have.
            log.debug("%s SLI ignored", self)
        else:
            self.tunnel.service.drops["state"] += 1
            upper = self.upper
            self.clear(Cause.NAS_ERROR, now, (causes.CDN_ERROR, causes.ERROR_VENDOR), f"{message.name} out of place")
            self._leave()
            upper.gone(Cause.NAS_ERROR, f"{message.name} out of place", now)

    def data(self, datagram: bytes, data: Data, now: float) -> None:
        engine = self.engine
        if engine.taps:
            engine.tapped(self, IN, datagram)
        start, end = data.start, data.end
        if datagram[start : start + 2] == _ADDRESS_CONTROL:
            start += 2
        frame = datagram[start:end]
        sequence = self.sequence
        if data.ns < 0 or sequence is None or sequence.keeper is not None:
            # Without numbers; or the kernel has looked at them, and passes on what is not for it.
            self.upper.receive(frame, now)
        else:
            self._in_order(sequence, data.ns, frame, now)

    def ended(self, cause: Cause, reason: str, now: float) -> None:
        upper = self.upper
        self._leave()
        log.debug("%s Ended cause=%s reason=%s", self, cause.title, reason)
        upper.gone(cause, reason, now)

    def moved(self, now: float) -> None:
        if self.connected:
            self._link = None
            self.upper.changed(self.link, now, moved=True)

    def expire(self, now: float) -> None:
        if self.connected:
            assert self._reorder is not None
            assert self.sequence is not None
            for frame in self._reorder.release(self.sequence):
                self.upper.receive(frame, now)
        else:
            self.give_up("not-connected", "not connected in time", (causes.CDN_ADMINISTRATIVE, 0), now)

    # Setting up.

    def answer(self, now: float) -> None:
        """Send ICRP."""
        self.tunnel.send(self.peer_id, Type.ICRP, [(Attr.ASSIGNED_SESSION_ID, u16(self.id))], now)
        self.engine.wheel.arm(self, now + CONNECT)

    def _connect(self, message: Message, now: float) -> None:
        """ICCN: PPP may begin."""
        options = self.tunnel.service.options
        self.engine.wheel.disarm(self)
        self.engine.waiting.pop(self, None)
        proxy = _proxy(message, options)
        if proxy is not None and not options.accept_dialin:
            reason = "a LAC's LCP is not wanted (l2tp-accept-dialin no)"
            self.give_up("refused", reason, (causes.CDN_ADMINISTRATIVE, 0), now)
            return
        if options.data_use_seq or Attr.SEQUENCING_REQUIRED in message.avps:
            self.sequence = Sequence()
            if options.data_reorder:
                self._reorder = Reorder(options.data_reorder, 0xFFFF)
        self.connected = True
        speed = message.u32(Attr.TX_CONNECT_SPEED, 0)
        self._facts = _facts(*self._facts[:2], speed, message.u32(Attr.RX_CONNECT_SPEED, speed))
        # With nothing in it, the peer waits for us to negotiate anew.
        begin_anew = proxy is not None and options.force_lcp_renegotiation
        self._link = self._make_link(Proxy() if begin_anew else proxy)
        self._asynchronous = message.u32(Attr.FRAMING_TYPE, 0) == _ASYNCHRONOUS
        upper = self.engine.open_session(self, now)
        if self.tunnel.calls.get(self.id) is not self:
            # PPP has ended it already.
            return
        if upper is None:
            self.give_up("refused", "no session possible now", (causes.CDN_TEMPORARY, 0), now)
            return
        self.upper = upper
        if proxy is not None:
            # What was negotiated by proxy is used up.
            self._link = None
        log.debug("%s Connected peer-session=%d tunnel=%s", self, self.peer_id, self._conf.name)

    def give_up(self, drop: str, reason: str, result: tuple[int, int], now: float) -> None:
        """End the call, of which PPP does not know; *drop* is what counts it."""
        self.tunnel.service.drops[drop] += 1
        if self.tunnel.may_log(now):
            log.info('%s Refused reason="%s"', self, reason)
        self.clear(Cause.NAS_REQUEST, now, result, reason)
        self._leave()

    def _encap(self) -> L2tpEncap:
        tunnel = self.tunnel
        at, options = tunnel.endpoint, self._conf.carrier
        assert isinstance(options, L2tpOptions)
        return L2tpEncap(
            local=at.local,
            local_port=at.local_port,
            peer=at.peer,
            peer_port=at.peer_port,
            tunnel_id=tunnel.id,
            session_id=self.id,
            peer_tunnel_id=tunnel.peer_id,
            peer_session_id=self.peer_id,
            mark=at.mark,
            ipsec=options.require_ipsec or at.mark != 0,
            checksum=options.udp_checksum,
            sequence=self.sequence,
        )

    # Data.

    def _in_order(self, sequence: Sequence, ns: int, frame: bytes, now: float) -> None:
        """RFC 2661 section 5.4: nothing is asked for again, but what comes late may be put in its place."""
        ahead = (ns - sequence.expected) & 0xFFFF
        reorder = self._reorder
        if ahead >= 0x8000:
            if ahead >= 0x10000 - LATE and frame[:2] in _IP:
                # IP does not mind; a control protocol would take it for something new.
                self.upper.receive(frame, now)
            else:
                self.tunnel.service.drops["late"] += 1
                if ahead < 0x10000 - LATE:
                    # It may be the first of a peer that counts anew, and those after it are not to be late.
                    sequence.expected = (ns + 1) & 0xFFFF
        elif reorder is None:
            sequence.expected = (ns + 1) & 0xFFFF
            self.upper.receive(frame, now)
        else:
            for ready in reorder.receive(sequence, ns, frame):
                self.upper.receive(ready, now)
            if self._reorder is None:
                # That was the end of it.
                return
            if not reorder.held:
                self.engine.wheel.disarm(self)
            elif not self.due:
                self.engine.wheel.arm(self, now + WAIT)

    # What PPP asks for.

    def send(self, frame: bytes) -> None:
        sequence = self.sequence
        if sequence is not None and sequence.keeper is not None:
            sequence.keeper.inject(frame)
            return
        header = bytearray(codec.data_header(self.tunnel.peer_id, self.peer_id, sequence is not None))
        _length(header, _LENGTH_AT, len(header) + 2 + len(frame))
        if sequence is not None:
            _length(header, _NS_AT, sequence.ns)
            sequence.ns = (sequence.ns + 1) & 0xFFFF
        datagram = b"".join((header, _ADDRESS_CONTROL, frame))
        if self.engine.taps:
            self.engine.tapped(self, OUT, datagram)
        self.tunnel.transmit_data(datagram)

    __call__ = send

    def close(self, cause: Cause) -> None:
        if self.tunnel.calls.get(self.id) is self:
            log.debug("%s Closed cause=%s", self, cause.title)
            self.clear(cause, self.engine.now)
            self._leave()

    def ending(self) -> None:
        if self.counted:
            self.counted = False
            self.tunnel.service.sessions -= 1

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        """RFC 2661 section 6.14: a LAC that escapes characters for an asynchronous line is told which."""
        if self._asynchronous:
            value = u16(0) + u32(send_accm) + u32(receive_accm)
            self.tunnel.send(self.peer_id, Type.SLI, [(Attr.ACCM, value)], self.engine.now)

    def rest(self) -> None:
        self._link = None

    def tap(self, tap: Tap | None) -> None:
        taps = self.engine.taps
        if tap is None:
            taps.pop(self, None)
        else:
            taps[self] = tap

    def _leave(self) -> None:
        """Leave nothing behind."""
        self.ending()
        self.upper = NOBODY
        self._reorder = None
        self.engine.waiting.pop(self, None)
        tap = self.engine.taps.pop(self, None)
        if tap is not None:
            tap.gone()

    def __str__(self) -> str:
        return f"l2tp ctrl={self.tunnel.id} call={self.id} peer={self.tunnel.endpoint}"


def _facts(calling_number: str, called_number: str, tx_speed: int = 0, rx_speed: int = 0) -> Facts:
    """One for all calls of which nothing is said."""
    facts = Facts(calling_number, called_number, tx_speed, rx_speed)
    return _NO_FACTS if facts == _NO_FACTS else facts


def _proxy(message: Message, options: L2tpOptions) -> Proxy | None:
    """What the LAC has negotiated; None: nothing."""
    avps = message.avps
    # As npppd: Last Sent LCP CONFREQ tells; hosts that are their own LAC send a Proxy Authen Type of "none" without it.
    if not avps.get(Attr.LAST_SENT_LCP_CONFREQ):
        return None
    return Proxy(
        initial_received=avps.get(Attr.INITIAL_RECEIVED_LCP_CONFREQ, b""),
        last_sent=avps[Attr.LAST_SENT_LCP_CONFREQ],
        last_received=avps.get(Attr.LAST_RECEIVED_LCP_CONFREQ, b""),
        auth_type=message.u16(Attr.PROXY_AUTHEN_TYPE, 0),
        name=avps.get(Attr.PROXY_AUTHEN_NAME, b""),
        challenge=avps.get(Attr.PROXY_AUTHEN_CHALLENGE, b""),
        # A reserved octet, then the number.
        identifier=message.u16(Attr.PROXY_AUTHEN_ID, 0) & 0xFF,
        response=avps.get(Attr.PROXY_AUTHEN_RESPONSE, b""),
        renegotiable=options.lcp_renegotiation,
    )
