"""One PPPoE session, as PPP sees it and as its access port does."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..port import Port
from ..ppp.cause import Cause
from ..ppp.link import NOBODY, OUT, Caller, Link, Tap, Upper
from . import codec
from .codec import AccessLine

if TYPE_CHECKING:
    from .access import AccessPort
    from .service import Service, Terms

log = logging.getLogger("npppy.pppoe")

#: LCP options of no use on Ethernet: ACCM, PFC, ACFC, FCS-Alternatives (RFC 2516 section 7).
UNWANTED = frozenset((2, 7, 8, 9))

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

    __slots__ = (
        "_line",
        "_link",
        "_port",
        "_terms",
        "_transmit",
        "counted",
        "key",
        "request",
        "service",
        "slot",
        "upper",
    )

    def __init__(
        self,
        port: AccessPort,
        service: Service,
        terms: Terms,
        line: AccessLine,
        request: Request,
        session_id: int,
        transmit: Transmit,
    ) -> None:
        #: What the port finds it by, and all that is kept of peer and SESSION_ID: a frame of the peer before LENGTH.
        self.key = codec.session_header(port.mac, request[0], session_id)
        self.service = service
        #: Its PADR, until LCP has been heard of: the same PADR gets the same PADS.
        self.request: Request | None = request
        #: Where the journal has it; -1: nowhere.
        self.slot = -1
        self.upper: Upper = NOBODY
        self._port = port
        self._terms = terms
        self._line = line
        # Until it rests.
        self._link: Link | None = None
        self._link = self.link
        self._transmit = transmit
        #: Whether limits count it.
        self.counted = True
        service.count(self.mac)

    @property
    def mac(self) -> bytes:
        """The peer's."""
        return self.key[6:12]

    @property
    def session_id(self) -> int:
        return int.from_bytes(self.key[16:], "big")

    @property
    def link(self) -> Link:
        if self._link is not None:
            return self._link
        port, terms, mac = self._port, self._terms, self.mac
        return Link(
            tunnel=terms.tunnel,
            caller=Caller(
                text=mac.hex(":"),
                mac=mac,
                port=port.port,
                nas=port.nas,
                service=terms.name,
                circuit_id=self._line.circuit_id,
                remote_id=self._line.remote_id,
            ),
            max_mru=terms.max_mru,
            unwanted=UNWANTED,
            encap=PppoeEncap(port.port, port.mac, mac, self.session_id),
        )

    def restrict(self, max_mru: int, now: float) -> None:
        """The path allows no larger MRU any more."""
        if max_mru < self._terms.max_mru:
            self._terms = self._terms._replace(max_mru=max_mru)
            self._link = None
            self.upper.changed(self.link, now)

    def padt(self) -> bytes:
        """The frame that ends the session at the peer."""
        return codec.discovery_frame(self.mac, self._port.mac, codec.Code.PADT, self.session_id, b"")

    # What PPP asks for.

    def send(self, frame: bytes) -> None:
        key = self.key
        frame = b"".join((key[6:12], key[:6], key[12:], _length(len(frame)), frame))
        if self.service.dump_out:
            self._port.dump("SendSession", frame)
        if self._port.taps:
            self._port.tapped(OUT, key, frame)
        self._transmit(frame)

    __call__ = send

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

    def rest(self) -> None:
        self._link = None

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
        if self.counted:
            self.counted = False
            self.service.discount(self.mac)

    def forget(self) -> None:
        """Leave nothing behind."""
        self._port.remove(self)
        # PPP holds the call and the call PPP: part, so that both go at once.
        self.upper = NOBODY
        self._transmit = _nowhere

    def __str__(self) -> str:
        return f"pppoe port={self._port.port} session={self.session_id} mac={self.mac.hex(':')}"
