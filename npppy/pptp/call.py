"""A call of a PAC: what a PNS, which is a host that dials, connects to PPP (RFC 2637 section 3.2.4.1)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..ppp.cause import Cause
from ..ppp.link import NOBODY, Caller, Link, Tap, Upper
from . import causes, gre
from .codec import Message, Type
from .connection import Connection, Leg
from .encap import PptpEncap
from .gre import Window

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger("npppy.pptp")

#: The largest MRU: IP, GRE and PPP headers must fit into a packet, too.
MAX_MRU = 65535 - 20 - 16 - 4
#: Of the line that there is not, in bit/s.
CONNECT_SPEED = 10_000_000
#: What an ACCM is where nobody has asked for one (RFC 2637 section 2.15).
_NO_ACCM = 0xFFFFFFFF


class PptpCall(Leg):
    """A session.  It rests here for days, so it holds what sending needs and nothing of how it came to be."""

    __slots__ = ("_called", "_conf", "_link", "connected", "counted", "engine", "upper")

    def __init__(self, engine: Engine, connection: Connection, call_id: int, message: Message) -> None:
        options, numbers = connection.service.options, message.numbers
        limit = numbers["window"] if options.send_window else 0
        super().__init__(connection, call_id, Window(limit, options.data_reorder))
        self.engine = engine
        self.peer_id = numbers["call_id"]
        self.upper: Upper = NOBODY
        called = message.texts["phone_number"][: numbers["phone_number_length"]].partition(b"\0")[0]
        self._called = called.decode("utf-8", "replace")
        # A reload gives the connection another one.
        self._conf = connection.service.tunnel
        # Until it rests.
        self._link: Link | None = None
        self._link = self.link
        #: Has the peer been told that there is the call?
        self.connected = False
        #: Whether limits count it.
        self.counted = True

    @property
    def link(self) -> Link:
        if self._link is not None:
            return self._link
        connection, window = self.connection, self.window
        at = connection.endpoint
        return Link(
            tunnel=self._conf,
            caller=Caller(text=str(at), called_number=self._called),
            max_mru=MAX_MRU,
            encap=PptpEncap(at.local, at.peer, self.id, self.peer_id, window.limit, window),
            over=connection,
            call_id=self.id,
        )

    # What the connection asks for.

    def connect(self, now: float) -> None:
        """Let PPP have it, and answer the Outgoing-Call-Request."""
        upper = self.engine.open_session(self, now)
        if self.engine.calls.get(self.id) is not self:
            # PPP has ended it already.
            return
        if upper is None:
            self.connection.service.drops["refused"] += 1
            self._clear(causes.GENERAL_ERROR, causes.NO_RESOURCE)
            self._leave()
            return
        self.upper = upper
        self.connected = True
        self._answer(causes.OK, 0)
        log.debug("%s Connected peer-call=%d tunnel=%s", self, self.peer_id, self._conf.name)

    def _answer(self, result: int, error: int) -> None:
        """Send Outgoing-Call-Reply."""
        self.connection.send(
            Type.OUTGOING_CALL_REPLY,
            call_id=self.id,
            peer_call_id=self.peer_id,
            result=result,
            error=error,
            speed=CONNECT_SPEED,
            window=gre.WINDOW,
        )

    def control(self, message: Message, now: float) -> None:
        numbers = message.numbers
        if message.type == Type.SET_LINK_INFO:
            # There is no asynchronous line on which characters would be escaped.
            send, receive = numbers["send_accm"], numbers["receive_accm"]
            if send != _NO_ACCM or receive != _NO_ACCM:
                log.debug("%s Set-Link-Info ignored send-accm=%08x receive-accm=%08x", self, send, receive)
        elif message.type == Type.WAN_ERROR_NOTIFY:
            if self.connection.may_log(now):
                counters = ("crc", "framing", "hardware", "buffer", "timeout", "alignment")
                errors = " ".join(f"{name}={numbers[name]}" for name in counters)
                log.info("%s WAN errors %s", self, errors)
        else:
            # What only a PNS is told.
            self.connection.service.drops["state"] += 1

    def receive(self, ppp: bytes, now: float) -> None:
        self.upper.receive(ppp, now)

    def ended(self, cause: Cause, reason: str, now: float) -> None:
        upper = self.upper
        self._leave()
        log.debug("%s Ended cause=%s reason=%s", self, cause.title, reason)
        upper.gone(cause, reason, now)

    # What PPP asks for.

    def send(self, frame: bytes) -> None:
        if self.connected:
            self.transmit(frame, self.engine.now)

    __call__ = send

    def close(self, cause: Cause) -> None:
        if self.engine.calls.get(self.id) is self:
            log.debug("%s Closed cause=%s", self, cause.title)
            self._clear(*causes.result(cause))
            self._leave()

    def _clear(self, result: int, error: int) -> None:
        """Tell the peer, and have the connection forget it."""
        if self.connected:
            self.connection.clear(self, result, error, self.engine.now)
        else:
            if result != causes.GENERAL_ERROR:
                result, error = causes.OUTGOING_DO_NOT_ACCEPT, 0
            self._answer(result, error)
            self.connection.remove(self, self.engine.now)

    def ending(self) -> None:
        if self.counted:
            self.counted = False
            self.connection.service.sessions -= 1

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        """Set-Link-Info is for a PAC with lines, and some routers that track PPTP take it badly (as in npppd)."""

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
        self.connected = False
        self.upper = NOBODY
        tap = self.engine.taps.pop(self, None)
        if tap is not None:
            tap.gone()

    def __str__(self) -> str:
        return f"pptp ctrl={self.connection.id} call={self.id} peer={self.connection.endpoint}"
