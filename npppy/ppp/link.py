"""The seam between a carrier and PPP.

A carrier makes a *call* for each session it has set up and opens a PPP session on it
(:meth:`npppy.ppp.engine.Engine.open`).  From then on

- PPP calls the call's :class:`Call` methods;
- the carrier calls the session's :class:`Upper` methods.

Frames that cross the seam begin with the PPP Protocol field: Address, Control and FCS are the carrier's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

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
    #: Where the peer has reached us, where there is no number: our MAC address or IP address.
    nas: str = ""
    #: The service that was asked for.
    service: str = ""
    #: TR-101 access line identification (TR-101 section 3.9.3, R-124).
    circuit_id: bytes = b""
    remote_id: bytes = b""
    #: Of the caller's line, to the caller and from it, in bit/s; 0: not known.
    tx_speed: int = 0
    rx_speed: int = 0


class TunnelEnds(NamedTuple):
    """The tunnel that a call came by, as RADIUS tells it (RFC 2868)."""

    #: Tunnel-Type: 1 PPTP, 3 L2TP.
    type: int
    #: Addresses as text; the client is the peer.
    client: str
    server: str
    #: What the ends call themselves; "": nothing.
    client_name: str = ""
    server_name: str = ""
    #: The tunnel: ``L2TP-CTRL-7`` (npppd).
    name: str = ""


class Over(Protocol):
    """A tunnel."""

    @property
    def ends(self) -> TunnelEnds: ...


@dataclass(frozen=True, slots=True)
class Proxy:
    """What a LAC has negotiated with the peer (RFC 2661 section 4.4.5).  Nothing of it has been checked.

    With nothing in it, it says that the peer is waiting for us to negotiate anew.
    """

    #: Options of Configure-Requests of LCP: the peer's first one, and those that were acknowledged.
    initial_received: bytes = b""
    last_sent: bytes = b""
    last_received: bytes = b""
    #: Proxy Authen Type: 1 text, 2 CHAP, 3 PAP, 4 none, 5 MS-CHAPv1.
    auth_type: int = 0
    name: bytes = b""
    challenge: bytes = b""
    #: 0 to 255
    identifier: int = 0
    #: A password or a response to the challenge.
    response: bytes = field(default=b"", repr=False)
    #: What cannot be accepted is negotiated anew; else it ends the session.
    renegotiable: bool = True


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
    #: The tunnel that it came by; None: none, the peer is on a link of ours.
    over: Over | None = None
    #: The call within the tunnel, by the id that we gave it.
    call_id: int = 0
    #: None: LCP begins from nothing, and the peer speaks first.  Of no use once PPP has taken the call.
    proxy: Proxy | None = None

    # Both are made when somebody asks: most tunnels have one call, and it rests for days.

    @property
    def ends(self) -> TunnelEnds | None:
        return None if self.over is None else self.over.ends

    @property
    def call_name(self) -> str:
        """The call as npppd names it, ``L2TP-CALL-7``; "": there is no tunnel."""
        return "" if self.over is None else f"{self.tunnel.protocol.value.upper()}-CALL-{self.call_id}"


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

    @property
    def link(self) -> Link:
        """It may be made anew each time once the session is at rest: not for what is done with every frame."""

    def send(self, frame: bytes) -> None:
        """Send a frame, from its Protocol field on.  It is lost silently where the carrier cannot send now."""

    def __call__(self, frame: bytes) -> None:
        """The same: so who only sends needs nothing but the call, and no method bound to it for days."""

    def close(self, cause: Cause) -> None:
        """PPP has finished; tell the peer and forget the call.  The session is not called again."""

    def ending(self) -> None:
        """PPP begins to end the session: no limit counts it any more.  :meth:`close` follows unless the call goes."""

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        """LCP is open, also one that a LAC has negotiated: L2TP and PPTP may have to tell their peer.

        *send_accm* is what the peer has asked to be escaped in what goes to it, *receive_accm* what we have asked it to
        escape; 0xffffffff where nobody asked.  With *pfc* and *acfc* the peer may leave out the first octet of the
        Protocol field, and Address and Control.
        """

    def rest(self) -> None:
        """Nothing is negotiated any more: what can be made anew need not be kept."""

    def tap(self, tap: Tap | None) -> None:
        """Let *tap* look on at all frames that pass the carrier, both ways, in place of another; None: nobody."""


class Upper(Protocol):
    """What a carrier asks of PPP."""

    def receive(self, frame: bytes, now: float) -> None:
        """A frame has come, from its Protocol field on.  Whatever it holds, this does not raise."""

    def gone(self, cause: Cause, reason: str, now: float) -> None:
        """The call has gone; do not send or close.  *reason* is for the log."""

    def changed(self, link: Link, now: float, *, moved: bool = False) -> None:
        """The path, its MTU or its speed have changed; *link* is the call's already.

        *moved*: what the data path has been told of the carrier is no longer so.
        """


class _Nobody:
    """Stands in for PPP before it has taken the call and after it has ended."""

    def receive(self, frame: bytes, now: float) -> None:
        """Nobody listens."""

    def gone(self, cause: Cause, reason: str, now: float) -> None:
        """Nobody listens."""

    def changed(self, link: Link, now: float, *, moved: bool = False) -> None:
        """Nobody listens."""


NOBODY = _Nobody()
