"""EAP (RFC 3748): the authenticator, which passes on what the peer and a RADIUS server say to each other (RFC 3579).

Of a packet the header is checked; what the method means by it is between the two (RFC 3748 section 2.3).
"""

from __future__ import annotations

import logging

from ..aaa.base import Accept, Answer, Challenge, Eap, Failed
from ..cursor import Malformed
from ..wheel import Timed
from . import proto
from .login import LoginHost, parse

REQUEST = 1
RESPONSE = 2
SUCCESS = 3
FAILURE = 4

#: The Type that asks the peer who it is (section 5.1).
IDENTITY = 1

#: A Request is sent this often, this many seconds apart where the server says nothing of it, as a CHAP Challenge.
TRIES = 10
INTERVAL = 3

#: The Responses of one login: no peer and server go on for ever.  EAP-TLS takes one for each fragment of a certificate.
MAX_ROUNDS = 100

#: Octets of a name: what User-Name holds (RFC 2865 section 5).
MAX_NAME = 253

#: Octets of a Response: what a packet of RADIUS holds beside all else, of 4096 (RFC 2865 section 3).
MAX_RESPONSE = 2048


def _packet(code: int, identifier: int, data: bytes = b"") -> bytes:
    return bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big") + data


def _sound(packet: bytes, *codes: int) -> bytes:
    """A server's packet without what lies behind its end; nothing if it has none of these codes, or a wrong length."""
    try:
        code, _, cursor = parse(packet)
    except Malformed:
        return b""
    # A Request has a Type at least; Success and Failure have nothing (sections 4.1 and 4.2).
    if code not in codes or (code == REQUEST) is not bool(len(cursor)):
        return b""
    return packet[: cursor.end]


class EapServer(Timed):
    """Asks the peer who it is, and then what the server asks."""

    __slots__ = ("_asking", "_name", "_request", "_rounds", "_tries", "_wait", "host")

    def __init__(self, host: LoginHost) -> None:
        super().__init__()
        self.host = host
        # The Request that is, or was, to be answered.
        self._request = _packet(REQUEST, host.random(1)[0], bytes((IDENTITY,)))
        # Whether its Response is yet to come.
        self._asking = False
        self._wait: float = INTERVAL
        self._tries = 0
        self._rounds = 0
        # From the first Response; RFC 3579 section 2.1 wants it with all.
        self._name: bytes | None = None

    def start(self, now: float) -> None:
        self._ask(self._request, INTERVAL, now)

    def stop(self) -> None:
        self._asking = False
        self.host.wheel.disarm(self)

    def _ask(self, request: bytes, wait: float, now: float) -> None:
        self._request, self._wait = request, wait
        self._asking, self._tries = True, TRIES
        self.expire(now)

    def expire(self, now: float) -> None:
        if not self._tries:
            # Section 4.1: no Failure for one that does not answer.
            self.host.login_failed("no EAP response", now)
            return
        self._tries -= 1
        self.host.wheel.arm(self, now + self._wait)
        self.host.send(proto.EAP, self._request)

    def receive(self, packet: bytes, now: float) -> None:
        """Raises :class:`npppy.cursor.Malformed`."""
        code, identifier, cursor = parse(packet)
        # Sections 4.1 and 4.3: all else than the first Response to the last Request is discarded, as is what comes
        # while the server is asked.
        if code != RESPONSE or identifier != self._request[1] or not self._asking:
            return
        kind = cursor.u8()
        if self._name is None:
            # The only Request that is ours alone, and it must not be answered by a Nak (section 5.1).
            if kind != IDENTITY:
                return
            name = cursor.rest()
            if len(name) > MAX_NAME:
                self._refuse("a name that is too long", now)
                return
            self._name = name
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            self._refuse(f"EAP does not end after {MAX_ROUNDS} rounds", now)
        elif cursor.end > MAX_RESPONSE:
            self._refuse(f"an EAP response of {cursor.end} octets", now)
        else:
            self.stop()
            self.host.login(self._name, Eap(packet[: cursor.end]), now)

    def answer(self, answer: Answer, now: float) -> None:
        if isinstance(answer, Challenge):
            request = _sound(answer.eap, REQUEST)
            if not request:
                self._refuse("the server's challenge has no EAP request", now)
            elif len(request) > self.host.peer_mru:
                # EAP has no fragments (section 3.1), and the server knows from Framed-MTU what the peer takes.
                self._refuse(f"the server's EAP request of {len(request)} octets is more than the peer takes", now)
            else:
                self._ask(request, answer.timeout or INTERVAL, now)
            return
        accepted = isinstance(answer, Accept)
        result = b"" if isinstance(answer, Failed) else _sound(answer.eap, SUCCESS, FAILURE)
        if result and (result[0] == SUCCESS) is not accepted:
            # RFC 3579 section 2.6.3: we go by the packet of RADIUS, and the peer by what is in it, which is not ours to
            # set right.
            does, says = ("accepts", "failure") if accepted else ("rejects", "success")
            self.host.log(logging.WARNING, f"layer=eap logtype=Contradiction the server {does}, and says {says}")
        self.host.send(proto.EAP, result or self._result(accepted))

    def _result(self, accepted: bool) -> bytes:
        """Success or Failure, where no server has said it; it has the Response's identifier (section 4.2)."""
        return _packet(SUCCESS if accepted else FAILURE, self._request[1])

    def _refuse(self, reason: str, now: float) -> None:
        self.host.send(proto.EAP, self._result(accepted=False))
        self.host.login_failed(reason, now)
