"""The Password Authentication Protocol, RFC 1334 section 2: the authenticator and the peer."""

from __future__ import annotations

from ..aaa.base import Accept, Answer, Pap, Proof, Reject
from ..wheel import Timed
from . import proto
from .login import LoginHost, PeerHost, parse

AUTHENTICATE_REQUEST = 1
AUTHENTICATE_ACK = 2
AUTHENTICATE_NAK = 3


def _packet(code: int, identifier: int, message: bytes) -> bytes:
    return bytes((code, identifier)) + (5 + len(message)).to_bytes(2, "big") + bytes((len(message),)) + message


class PapServer:
    """Waits for the peer's Authenticate-Request and answers it."""

    __slots__ = ("_answer", "_identifier", "host")

    def __init__(self, host: LoginHost) -> None:
        self.host = host
        self._identifier: int | None = None
        self._answer = b""

    def start(self, now: float) -> None:
        """The peer speaks first (section 2)."""

    def stop(self) -> None:
        """Nothing to stop: the session bounds the wait."""

    def receive(self, packet: bytes, now: float) -> None:
        """Raises :class:`npppy.cursor.Malformed`."""
        code, identifier, cursor = parse(packet)
        if code != AUTHENTICATE_REQUEST:
            return
        username = cursor.take(cursor.u8())
        password = cursor.take(cursor.u8())
        if self._answer:
            # Section 2.2.1: our answer was lost; the same one goes out again.
            self.host.send(proto.PAP, self._answer[:1] + bytes((identifier,)) + self._answer[2:])
        elif self._identifier is None:
            self._identifier = identifier
            self.host.login(username, Pap(password), now)
        else:
            # The answer is being looked for: it goes to the latest request.
            self._identifier = identifier

    def resume(self, identifier: int, password: bytes) -> Proof:
        """A LAC has had an Authenticate-Request, and it is ours to answer."""
        self._identifier = identifier
        return Pap(password)

    def answer(self, answer: Answer, now: float) -> None:
        accepted = isinstance(answer, Accept)
        code = AUTHENTICATE_ACK if accepted else AUTHENTICATE_NAK
        message = b"OK" if accepted else b"Unknown username or password"
        if isinstance(answer, Accept | Reject) and answer.message:
            message = answer.message.encode()[:255]
        self._answer = _packet(code, self._identifier or 0, message)
        self.host.send(proto.PAP, self._answer)


class PapClient(Timed):
    """Sends Authenticate-Request until it is answered."""

    __slots__ = ("_tries", "host", "identifier", "request")

    def __init__(self, host: PeerHost) -> None:
        super().__init__()
        self.host = host
        self.identifier = host.random(1)[0]
        name, password = host.credentials()
        self.request = bytes((len(name),)) + name + bytes((len(password),)) + password
        self._tries = 0

    def start(self, now: float) -> None:
        self._tries = 10
        self.expire(now)

    def stop(self) -> None:
        self.host.wheel.disarm(self)

    def expire(self, now: float) -> None:
        if not self._tries:
            self.host.authenticated(False, "no answer", now)
            return
        self._tries -= 1
        self.identifier = (self.identifier + 1) & 0xFF
        self.host.wheel.arm(self, now + 3)
        header = bytes((AUTHENTICATE_REQUEST, self.identifier)) + (4 + len(self.request)).to_bytes(2, "big")
        self.host.send(proto.PAP, header + self.request)

    def receive(self, packet: bytes, now: float) -> None:
        """Raises :class:`npppy.cursor.Malformed`."""
        code, identifier, cursor = parse(packet)
        if code not in (AUTHENTICATE_ACK, AUTHENTICATE_NAK) or identifier != self.identifier:
            return
        # Some authenticators leave Msg-Length out.
        message = cursor.take(cursor.u8()) if cursor else b""
        self.stop()
        self.host.authenticated(code == AUTHENTICATE_ACK, message.decode("latin-1"), now)
