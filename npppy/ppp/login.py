"""What the authentication protocols ask of a session, on either side."""

from __future__ import annotations

from typing import Protocol

from ..aaa.base import Answer, Pending, Proof
from ..cursor import Cursor
from .fsm import Host


def parse(packet: bytes) -> tuple[int, int, Cursor]:
    """Code, identifier and data of an authentication packet.  Raises :class:`npppy.cursor.Malformed`."""
    cursor = Cursor(packet)
    code, identifier, length = cursor.u8(), cursor.u8(), cursor.u16()
    return code, identifier, cursor.sub(length - 4)


class Asking:
    """A login under way."""

    __slots__ = ("again", "pending", "since", "state")

    def __init__(self, state: bytes = b"", *, again: bool = False) -> None:
        #: What the server wants to have back with the peer's answer.
        self.state = state
        #: Whether a session that is up must say again who it is.
        self.again = again
        self.pending: Pending | None = None
        #: When it was handed over.
        self.since = 0.0


class LoginHost(Host, Protocol):
    """The authenticator's session."""

    def login(self, username: bytes, proof: Proof, now: float) -> None:
        """Check a login; the answer comes by the protocol's ``answer``."""

    def login_failed(self, reason: str, now: float) -> None:
        """The peer did not answer."""

    def chap_name(self) -> bytes:
        """The name in a Challenge."""


class PeerHost(Host, Protocol):
    """The session of a peer that must authenticate itself."""

    def credentials(self) -> tuple[bytes, bytes]:
        """Name and password, at most 255 octets each."""

    def authenticated(self, success: bool, message: str, now: float) -> None:
        """How it went."""


class Server(Protocol):
    """The authenticator's side of an authentication protocol."""

    def start(self, now: float) -> None: ...

    def stop(self) -> None: ...

    def receive(self, packet: bytes, now: float) -> None:
        """Raises :class:`npppy.cursor.Malformed`."""

    def answer(self, answer: Answer, now: float) -> None:
        """Tell the peer how its login ended."""


class Client(Protocol):
    """The peer's side of an authentication protocol."""

    def start(self, now: float) -> None: ...

    def stop(self) -> None: ...

    def receive(self, packet: bytes, now: float) -> None:
        """Raises :class:`npppy.cursor.Malformed`."""
