"""What PPP asks of a realm, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Final, Protocol

from ..config.model import Mppe, Realm
from ..pipex.base import Police
from ..ppp.link import Caller, Link
from ..ppp.mppe import Keys


@dataclass(frozen=True, slots=True)
class Pap:
    """RFC 1334 section 2."""

    password: bytes


@dataclass(frozen=True, slots=True)
class Chap:
    """RFC 1994, algorithm MD5."""

    identifier: int
    challenge: bytes
    #: 16 octets
    response: bytes


@dataclass(frozen=True, slots=True)
class MsChapV1:
    """RFC 2433 section 6, the NT response; only a LAC has one for us."""

    identifier: int
    #: 8 octets
    challenge: bytes
    #: 24 octets
    nt_response: bytes


@dataclass(frozen=True, slots=True)
class MsChapV2:
    """RFC 2759 section 4."""

    identifier: int
    #: 16 octets
    challenge: bytes
    #: 16 octets
    peer_challenge: bytes
    #: 24 octets
    nt_response: bytes


@dataclass(frozen=True, slots=True)
class Eap:
    """A packet of EAP from the peer (RFC 3748 section 4), a Response, for a server to look into (RFC 3579)."""

    packet: bytes = field(repr=False)


Proof = Pap | Chap | MsChapV1 | MsChapV2 | Eap


def names(realm: Realm, username: str) -> tuple[str, str]:
    """What servers are told, and what a users file has; see :class:`Request`."""
    user = username
    if realm.strip_nt_domain:
        user = user.partition("\\")[2] or user
    if realm.strip_atmark_realm:
        user = user.rpartition("@")[0] or user
    return user, (user.removesuffix(realm.username_suffix) or user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A login."""

    #: The ppp id.
    session: int
    #: Names the session in RADIUS for ever: no other one of this daemon, before or after, has it.
    acct_session_id: str
    #: None: no realm is for this name; the login fails like any other.
    realm: Realm | None
    #: As the peer sent it.
    username: str
    #: What a users file has: without what the realm's strip options take off, and without its suffix.
    account: str
    #: What a server is told: without what the strip options take off, unless it comes by EAP.
    user: str
    proof: Proof
    link: Link
    #: The carrier's ``callnum-check``.
    check_calling_number: bool = False
    #: Whether MPPE wants keys, where the proof can give some.
    keys: bool = False
    #: What the server said with its last Challenge, or with an Accept whose Profile says *reauthenticate*.
    state: bytes = field(default=b"", repr=False)
    #: The peer's IPv4 address, when a session that is up logs in again; 0: it has none yet.
    address: int = 0
    #: Octets of a packet that the peer takes, which is to bound a server's EAP (RFC 3579 section 2.4).
    mtu: int = 0

    @property
    def caller(self) -> Caller:
        return self.link.caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a realm says of a session for as long as it lives, unless it is said anew.  It is never changed in place.

    Most sessions have nothing of it, and share one.
    """

    #: Replaces the name that the peer gave, in accounting and for who looks on; "": nothing does.
    username: str = ""
    #: To be in every accounting record, in this order.
    classes: tuple[bytes, ...] = ()
    #: Seconds from the time that data may pass; 0: no limit.
    session_timeout: int = 0
    #: What happens then: the peer logs in anew, with *state*; else the session ends (RFC 2865 section 5.29).
    reauthenticate: bool = False
    state: bytes = field(default=b"", repr=False)
    #: Seconds; 0: no limit; None: the tunnel's.
    idle_timeout: int | None = None
    #: Seconds between interim records; 0: none; None: the realm's.
    interim: int | None = None
    filter_id: str = ""
    #: Octets that a packet to the peer may have at most (Framed-MTU); 0: what LCP has agreed.
    mtu: int = 0
    police_up: Police | None = None
    police_down: Police | None = None
    #: Attributes of IPv6, by their names, as they came.
    ip6: tuple[tuple[str, bytes], ...] = ()


NO_PROFILE: Final = Profile()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """The user is who it says.  Addresses are integers."""

    #: A fixed address; None: the NAS chooses.
    address: int | None = None
    #: The peer may choose its address, where the pool allows that.
    address_by_peer: bool = False
    #: Prefix length of the network behind the peer.
    prefixlen: int = 32
    dns: tuple[int, ...] | None = None
    nbns: tuple[int, ...] | None = None
    #: MS-CHAPv2: the authenticator's response, "S=" and 40 hexadecimal digits (RFC 2759 section 5).
    authenticator_response: str = ""
    #: For MPPE; None: there are none, or nobody asked.
    keys: Keys | None = field(default=None, repr=False)
    #: Whether data must be encrypted (REQUIRED), may be (YES) or is not (NO); None: the tunnel says.
    mppe: Mppe | None = None
    #: The lengths of keys, in bits, that may be used; None: the tunnel says.
    mppe_key_lengths: frozenset[int] | None = None
    #: The ``ipcp`` block whose pool the address is from; "": that of the interface.
    pool: str = ""
    #: More networks behind the peer, none of them twice.
    routes: tuple[IPv4Network, ...] = ()
    #: Sessions that the user may have at once; 0: no limit of its own.
    port_limit: int = 0
    #: For the peer to read.
    message: str = ""
    #: The packet of EAP that tells the peer, if it came by EAP.
    eap: bytes = field(default=b"", repr=False)
    profile: Profile = NO_PROFILE
    #: Who has answered, as Acct-Authentic says it: 1 RADIUS, 2 local (RFC 2866 section 5.6).
    authentic: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Wrong user, wrong password, or not allowed: the peer cannot tell which.  *reason* is for our log only."""

    reason: str
    #: For the peer to read.
    message: str = ""
    #: MS-CHAPv2: what a server wants the peer to be told, "E=691 R=0 ..." (RFC 2759 section 6).
    mschap_error: str = ""
    #: The packet of EAP that tells the peer.
    eap: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """EAP goes on: the peer is to answer this packet, and that goes to the server with the *state*."""

    eap: bytes = field(repr=False)
    state: bytes = field(repr=False)
    #: Seconds that the peer has for its answer; 0: as long as EAP gives it (RFC 2869 section 2.3.2).
    timeout: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No answer could be had.  *reason* is for our log only."""

    reason: str
    #: Whether no server has said anything, so that another realm may be asked.
    unanswered: bool = False


Answer = Accept | Reject | Failed | Challenge


class Pending(Protocol):
    """A login under way."""

    def cancel(self) -> None:
        """The session has gone; do not answer."""


class Authenticator(Protocol):
    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> Pending | None:
        """Check a login and call *done* once with the answer and the time, now or later.

        Returns None if *done* has been called already.
        """
