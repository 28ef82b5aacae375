"""What PPP asks of a realm, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..config.model import Realm
from ..ppp.link import Caller
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


Proof = Pap | Chap | MsChapV1 | MsChapV2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A login."""

    session: int
    #: None: no realm is for this name; the login fails like any other.
    realm: Realm | None
    #: As the peer sent it.
    username: str
    #: What the realm looks up: without what its strip options take off.
    account: str
    proof: Proof
    caller: Caller
    #: The carrier's ``callnum-check``.
    check_calling_number: bool = False
    #: Whether MPPE wants keys, where the proof can give some.
    keys: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Wrong user, wrong password, or not allowed: the peer cannot tell which.  *reason* is for our log only."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No answer could be had.  *reason* is for our log only."""

    reason: str


Answer = Accept | Reject | Failed


class Pending(Protocol):
    """A login under way."""

    def cancel(self) -> None:
        """The session has gone; do not answer."""


class Authenticator(Protocol):
    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> Pending | None:
        """Check a login and call *done* once with the answer and the time, now or later.

        Returns None if *done* has been called already.
        """
