"""CHAP with MD5 (RFC 1994) and with MS-CHAPv2 (RFC 2759): the authenticator and the peer."""

from __future__ import annotations

import hmac
from hashlib import md5

from ..aaa.base import Accept, Answer, Chap, Failed, MsChapV2, Proof, Reject
from ..config.model import AuthMethod
from ..wheel import Timed
from . import mschap, proto
from .login import LoginHost, PeerHost, parse
from .mppe import Keys, keys_from_mschap

CHALLENGE = 1
RESPONSE = 2
SUCCESS = 3
FAILURE = 4

#: Challenges are sent this often, this many seconds apart, as npppd.
TRIES = 10
INTERVAL = 3

#: A challenge of ours, in octets: what RFC 2759 section 3 demands, and ample for MD5.
CHALLENGE_LENGTH = 16


#: Of a server's text, so many octets are passed on: peers have buffers.
_MESSAGE = 200


def _packet(code: int, identifier: int, data: bytes) -> bytes:
    return bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big") + data


class ChapServer(Timed):
    """Challenges the peer and tells it how it did."""

    __slots__ = ("_answer", "_challenge", "_identifier", "_responded", "_tries", "host", "method")

    def __init__(self, host: LoginHost, method: AuthMethod) -> None:
        super().__init__()
        self.host = host
        self.method = method
        self._identifier = host.random(1)[0]
        self._challenge = host.random(CHALLENGE_LENGTH)
        self._tries = TRIES
        self._responded = False
        self._answer = b""

    def start(self, now: float) -> None:
        self.expire(now)

    def stop(self) -> None:
        self.host.wheel.disarm(self)

    def expire(self, now: float) -> None:
        if not self._tries:
            self.host.login_failed("no CHAP response", now)
            return
        self._tries -= 1
        self.host.wheel.arm(self, now + INTERVAL)
        # A retransmission is the same Challenge: a slow peer's Response to it still counts (RFC 1994 section 4.1).
        data = bytes((CHALLENGE_LENGTH,)) + self._challenge + self.host.chap_name()
        self.host.send(proto.CHAP, _packet(CHALLENGE, self._identifier, data))

    def receive(self, packet: bytes, now: float) -> None:
        """Raises :class:`npppy.cursor.Malformed`."""
        code, identifier, cursor = parse(packet)
        if code != RESPONSE or identifier != self._identifier:
            return
        value = cursor.take(cursor.u8())
        username = cursor.rest()
        if self._answer:
            # RFC 1994 section 4.2: a Response that comes again gets the same answer again.
            self.host.send(proto.CHAP, self._answer)
            return
        if self._responded:
            return
        self._responded = True
        self.stop()
        self.host.login(username, self._proof(value), now)

    def resume(self, identifier: int, challenge: bytes, value: bytes) -> Proof:
        """A LAC has sent a Challenge and had a Response, which is ours to answer; *value* is the Response's."""
        self._identifier, self._challenge, self._responded = identifier, challenge, True
        return self._proof(value)

    def _proof(self, value: bytes) -> Proof:
        if self.method is AuthMethod.CHAP:
            # A value of another length than MD5's is wrong, not malformed: no one may tell the two apart.
            return Chap(self._identifier, self._challenge, value)
        # RFC 2759 section 4: peer challenge 16, reserved 8, NT response 24, flags 1.
        fields = value if len(value) == 49 else bytes(49)
        return MsChapV2(self._identifier, self._challenge, fields[:16], fields[24:48])

    def answer(self, answer: Answer, now: float) -> None:
        code = SUCCESS if isinstance(answer, Accept) else FAILURE
        self._answer = _packet(code, self._identifier, self._message(answer))
        self.host.send(proto.CHAP, self._answer)

    def _message(self, answer: Answer) -> bytes:
        text = answer.message.encode()[:_MESSAGE] if isinstance(answer, Accept | Reject) else b""
        if self.method is AuthMethod.CHAP:
            return text or (b"OK" if isinstance(answer, Accept) else b"FAILED")
        if isinstance(answer, Accept):
            return answer.authenticator_response.encode() + b" M=" + (text or b"Welcome")
        if isinstance(answer, Reject) and answer.mschap_error:
            return answer.mschap_error.encode()
        # RFC 2759 section 6, without M=: npppd leaves it out for the sake of peers that hang on it.  R=0: no retry.
        # 691 is a wrong name or password, 930 no answer from the server that knows.
        error = 930 if isinstance(answer, Failed) else 691
        challenge = self.host.random(CHALLENGE_LENGTH).hex().upper()
        return f"E={error} R=0 C={challenge} V=3".encode()


class ChapClient(Timed):
    """Answers challenges, and checks that an MS-CHAPv2 authenticator knows the password too."""

    __slots__ = ("_answered", "_expected", "_identifier", "_response", "_tries", "host", "keys", "method")

    def __init__(self, host: PeerHost, method: AuthMethod) -> None:
        super().__init__()
        self.host = host
        self.method = method
        self._identifier = -1
        # The Challenge whose Success or Failure has come.
        self._answered = -1
        self._response = b""
        self._expected = ""
        self._tries = 0
        #: What our answer gives for MPPE; None: it is not one that does.
        self.keys: Keys | None = None

    def start(self, now: float) -> None:
        """The authenticator speaks first."""

    def stop(self) -> None:
        self.host.wheel.disarm(self)

    def expire(self, now: float) -> None:
        # RFC 1994 section 4.2: the Success may have been lost, and comes again for a repeated Response.
        if not self._tries:
            self.host.authenticated(False, "no answer", now)
            return
        self._tries -= 1
        self.host.wheel.arm(self, now + INTERVAL)
        self.host.send(proto.CHAP, self._response)

    def receive(self, packet: bytes, now: float) -> None:
        """Raises :class:`npppy.cursor.Malformed`."""
        code, identifier, cursor = parse(packet)
        if code == CHALLENGE:
            self._respond(identifier, cursor.take(cursor.u8()))
            if self._answered == identifier:
                # An old Challenge that was late: its answer is known.
                self.host.send(proto.CHAP, self._response)
            else:
                self._tries = TRIES
                self.expire(now)
        elif code in (SUCCESS, FAILURE) and identifier == self._identifier:
            self._answered = identifier
            self.stop()
            message = cursor.rest().decode("latin-1")
            success = code == SUCCESS
            if success and not hmac.compare_digest(message[: len(self._expected)].encode(), self._expected.encode()):
                # RFC 2759 section 5: end the link.
                success, message = False, "the authenticator does not know the password"
            self.host.authenticated(success, message, now)

    def _respond(self, identifier: int, challenge: bytes) -> None:
        name, password = self.host.credentials()
        if self.method is AuthMethod.CHAP:
            value = md5(bytes((identifier,)) + password + challenge).digest()
        else:
            if identifier == self._identifier:
                # The same Challenge again: another peer challenge would make the answer to the first one wrong.
                return
            account = mschap.without_domain(name)
            peer_challenge = self.host.random(CHALLENGE_LENGTH)
            response = mschap.nt_response(challenge, peer_challenge, account, password)
            self._expected = mschap.authenticator_response(password, response, peer_challenge, challenge, account)
            self.keys = keys_from_mschap(mschap.nt_password_hash(password), response, server=False)
            value = peer_challenge + bytes(8) + response + b"\x00"
        self._identifier = identifier
        self._response = _packet(RESPONSE, identifier, bytes((len(value),)) + value + name)
