"""What the control socket shows of the daemon, and may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..pipex.base import Counters, Police


@dataclass(slots=True, kw_only=True)
class SessionInfo:
    """A session as commands and events show it.  Nobody changes it: to make a frozen one takes three times as long."""

    ppp_id: int
    #: "up" once IPCP is open; before: the phase it is in ("establish", "authenticate", "network"); "terminate" after.
    state: str
    username: str
    realm: str
    #: The configured name of the shared interface; "" before one is chosen.
    interface: str
    #: Dotted, "" without one.
    address: str
    #: The peer's MRU.
    mru: int
    #: PPPoE, L2TP or PPTP.
    protocol: str
    #: The name of the tunnel block.
    tunnel: str
    #: A MAC address, or host:port.
    tunnel_from: str
    #: Seconds since the epoch.
    start: float
    #: Seconds.
    duration: float
    counters: Counters
    #: Who carries its data: "ebpf" or "user"; "" before there is any.
    pipex: str = ""
    #: Limits of its rates.
    police_down: Police | None = None
    police_up: Police | None = None
    #: L2TP's ids, ours and the peer's; 0: none.  PPTP's control connection has only a number, which we have given it.
    tunnel_id: int = 0
    peer_tunnel_id: int = 0
    session_id: int = 0
    peer_session_id: int = 0
    #: Telephone numbers, or "".
    calling_number: str = ""
    called_number: str = ""
    #: How the data that comes from the peer is encrypted, and what goes to it: "128bits,stateless", or "".
    mppe_in: str = ""
    mppe_out: str = ""
    #: What RADIUS calls the session by; "": it has not heard of it.
    acct_session_id: str = ""
    #: Networks behind the peer, beside its own.
    routes: tuple[str, ...] = ()
    filter_id: str = ""
    #: What its realm says, in seconds; 0: nothing.
    session_timeout: int = 0
    idle_timeout: int = 0


#: Called with "start" or "stop" and the session.
Listener = Callable[[str, SessionInfo], None]


class Subject(Protocol):
    """What the control server asks of the daemon.  Nothing here takes longer than its result is large."""

    def session_ids(self) -> Sequence[int]:
        """All sessions at this moment, half-open ones included."""

    def session(self, ppp_id: int) -> SessionInfo | None:
        """None: it has gone since."""

    def find(self, *, address: str | None = None, username: str | None = None) -> Sequence[int] | None:
        """The sessions with this address or user name, through an index; None where there is none to use."""

    def disconnect(self, ppp_id: int) -> bool:
        """End a session (Admin-Reset); False if there is none."""

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hear of sessions that come up and go; returns what ends it."""
