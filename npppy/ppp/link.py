"""The seam between a carrier and PPP.

A carrier makes a *call* for each session it has set up and opens a PPP session on it
(:meth:`npppy.ppp.engine.Engine.open`).  From then on

- PPP calls the call's :class:`Call` methods;
- the carrier calls the session's :class:`Upper` methods.

Frames that cross the seam begin with the PPP Protocol field: Address, Control and FCS are the carrier's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ..config.model import Tunnel
from ..port import Port
from .cause import Cause


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as far as the carrier knows."""

    #: The ``Tunnel From`` column of npppctl: a MAC address, or host:port.
    text: str
    mac: bytes = b""
    port: Port | None = None
    calling_number: str = ""
    called_number: str = ""
    #: The service that was asked for.
    service: str = ""
    #: TR-101 access line identification (TR-101 section 3.9.3, R-124).
    circuit_id: bytes = b""
    remote_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Link:
    """What PPP must know of the call that carries it.  It never changes; a link that does is given anew."""

    tunnel: Tunnel
    caller: Caller
    #: The largest MRU that the path allows, either way.
    max_mru: int
    #: LCP option types that are neither asked for nor granted (RFC 2516 section 7).
    unwanted: frozenset[int] = frozenset()
    #: How pipex finds and encapsulates the session; its type is the carrier's.
    encap: Any = None


#: The ways of a frame: from the peer, and to it.
IN, OUT = 0, 1


class Tap(Protocol):
    """Looks on at the frames of a call."""

    def frame(self, way: int, frame: bytes) -> None:
        """A frame as it is on the wire, but for VLAN tags; before anything is done about it."""

    def gone(self) -> None:
        """The call has gone; nothing follows."""


class Call(Protocol):
    """What PPP and captures ask of a carrier."""

    link: Link

    def send(self, frame: bytes) -> None:
        """Send a frame, from its Protocol field on.  It is lost silently where the carrier cannot send now."""

    def close(self, cause: Cause) -> None:
        """PPP has finished; tell the peer and forget the call.  The session is not called again."""

    def ending(self) -> None:
        """PPP begins to end the session: no limit counts it any more.  :meth:`close` follows unless the call goes."""

    def lcp_opened(self, *, accm: int, pfc: bool, acfc: bool) -> None:
        """LCP is open with these options: L2TP and PPTP may have to tell their peer."""

    def tap(self, tap: Tap | None) -> None:
        """Let *tap* look on at all frames that pass the carrier, both ways, in place of another; None: nobody."""


class Upper(Protocol):
    """What a carrier asks of PPP."""

    def receive(self, frame: bytes, now: float) -> None:
        """A frame has come, from its Protocol field on.  Whatever it holds, this does not raise."""

    def gone(self, cause: Cause, reason: str, now: float) -> None:
        """The call has gone; do not send or close.  *reason* is for the log."""

    def changed(self, link: Link, now: float) -> None:
        """The path, its MTU or its speed have changed."""
