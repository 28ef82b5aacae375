"""One PPPoE session, as PPP sees it and as its access port does."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..port import Port
from ..ppp.cause import Cause
from ..ppp.link import NOBODY, OUT, Link, Tap, Upper
from . import codec

if TYPE_CHECKING:
    from .access import AccessPort
    from .service import Service

log = logging.getLogger("npppy.pppoe")

#: What tells a PADR from another of the same host: MAC, AC-Cookie, Host-Uniq, Relay-Session-Id.
Request = tuple[bytes, bytes, bytes | None, bytes | None]

Transmit = Callable[[bytes], None]

_length = struct.Struct("!H").pack


class PppoeEncap(NamedTuple):
    """How pipex finds and encapsulates a session."""

    port: Port
    #: Our MAC address and the peer's.
    mac: bytes
    peer: bytes
    session_id: int


def _nowhere(frame: bytes) -> None:
    """RFC 2516 section 5.5: after a PADT no PPP packet is sent."""


class PppoeCall:
    """A session.  It rests here for days, so it holds what sending needs and nothing of its discovery."""

    __slots__ = ("_counted", "_header", "_port", "_transmit", "link", "request", "service", "slot", "upper")

    def __init__(
        self, port: AccessPort, service: Service, link: Link, request: Request, session_id: int, transmit: Transmit
    ) -> None:
        self.link = link
        self.service = service
        #: Its PADR, until LCP has been heard of: the same PADR gets the same PADS.
        self.request: Request | None = request
        #: Where the journal has it; -1: nowhere.
        self.slot = -1
        self.upper: Upper = NOBODY
        self._port = port
        self._transmit = transmit
        self._counted = True
        service.count(link.caller.mac)
        # All of a session frame before LENGTH.
        self._header = codec.session_header(link.caller.mac, port.mac, session_id)

    @property
    def key(self) -> bytes:
        """What the port finds it by: the peer's MAC address and the SESSION_ID."""
        return self._header[:6] + self._header[16:18]

    @property
    def session_id(self) -> int:
        return int.from_bytes(self._header[16:18], "big")

    def padt(self) -> bytes:
        """The frame that ends the session at the peer."""
        header = self._header
        return codec.discovery_frame(header[:6], header[6:12], codec.Code.PADT, self.session_id, b"")

    # What PPP asks for.

    def send(self, frame: bytes) -> None:
        frame = b"".join((self._header, _length(len(frame)), frame))
        if self.service.dump_out:
            self._port.dump("SendSession", frame)
        if self._port.taps:
            self._port.tapped(OUT, self.key, frame)
        self._transmit(frame)

    def close(self, cause: Cause) -> None:
        if self._port.calls.get(self.key) is self:
            # Before PPP has taken the call there was no PADS, and the peer knows of no session.
            confirmed = self.upper is not NOBODY
            log.debug("%s Closed cause=%s", self, cause.title)
            if confirmed:
                self._port.send_discovery(self.padt())
            self.forget()

    def ending(self) -> None:
        self.discount()

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        """Of no interest here: RFC 2516 section 7 forbids what the options are about."""

    def tap(self, tap: Tap | None) -> None:
        taps = self._port.taps
        if tap is None:
            taps.pop(self.key, None)
        else:
            taps[self.key] = tap

    # What the port asks for.

    def opened(self, upper: Upper, transmit: Transmit, slot: int) -> None:
        """PPP has taken the call."""
        self.upper = upper
        self.slot = slot
        self._transmit = transmit

    def end(self, cause: Cause, reason: str, now: float, *, padt: bool) -> None:
        """End the call from below and tell PPP; with a PADT if the peer can and must be told."""
        upper = self.upper
        log.debug("%s Ended cause=%s reason=%s", self, cause.title, reason)
        if padt:
            self._port.send_discovery(self.padt())
        self.forget()
        upper.gone(cause, reason, now)

    def discount(self) -> None:
        """Count no more, once: the host may have another session in its place."""
        if self._counted:
            self._counted = False
            self.service.discount(self.link.caller.mac)

    def forget(self) -> None:
        """Leave nothing behind."""
        self._port.remove(self)
        # PPP holds the call and the call PPP: part, so that both go at once.
        self.upper = NOBODY
        self._transmit = _nowhere

    def __str__(self) -> str:
        return f"pppoe port={self._port.port} session={self.session_id} mac={self.link.caller.text}"
