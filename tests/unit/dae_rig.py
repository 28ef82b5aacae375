"""Dynamic authorization on a bench: real sessions, and a client that is a few lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from typing import Any

from npppy.aaa.base import Accept, Profile
from npppy.aaa.radius.dae import Dae
from npppy.aaa.radius.packet import Code, Pair, Received, encode_request, parse, verify_reply
from npppy.config.model import Address, AddressRange, Radius
from npppy.config.model import Dae as DaeConfig
from tests.unit.ppp_rig import Line, Rig

SECRET = b"a secret of ours"
CLIENT = ip_address("192.0.2.10")
OTHER = ip_address("2001:db8::10")
#: What this machine has, besides what it may be configured to call itself.
LOCAL = {ip_address("192.0.2.1"), ip_address("2001:db8::1")}
WALL = 1_700_000_000.0
POOL = {"ranges": (AddressRange(first=IPv4Address("10.0.0.1"), last=IPv4Address("10.0.63.254")),)}


def signed(code: Code, pairs: Iterable[Pair], identifier: int = 1, secret: bytes = SECRET, sign: bool = True) -> bytes:
    return encode_request(code, identifier, bytes(16), pairs, secret, message_authenticator=sign)


class Bench(Rig):
    """*dae* are settings of ``radius dae``, *radius* of ``radius``; others are those of a :class:`Rig`."""

    def __init__(
        self, *, dae: dict[str, Any] | None = None, radius: dict[str, Any] | None = None, **others: Any
    ) -> None:
        super().__init__(**({"ipcp": POOL} | others))
        clients = tuple((client, SECRET.decode()) for client in (CLIENT, OTHER))
        self.radius = Radius(**({"dae": DaeConfig(**({"clients": clients} | (dae or {})))} | (radius or {})))
        self.dae = Dae(self.engine, lambda: WALL + self.now - 1000.0, LOCAL.__contains__)
        self.dae.configure(self.radius)
        self.answers: list[bytes] = []
        self.asked = 0

    def reconfigure(self, **dae: Any) -> None:
        self.radius = replace(self.radius, dae=replace(self.radius.dae, **dae))
        self.dae.configure(self.radius)

    def users(self, user: str, count: int, profile: Profile | None = None) -> list[Line]:
        """Sessions of a user that are up."""
        if profile is not None:
            self.aaa.accept[user] = Accept(profile=profile)
        return [self.up(user) for _ in range(count)]

    def put(self, data: bytes, source: Address = CLIENT, port: int = 40000) -> None:
        """A packet comes; nothing else is done yet."""
        self.dae.receive(data, source, port, self.answers.append, self.now)

    def finish(self) -> int:
        """Do what is left; returns how many turns that took."""
        turns = 0
        while self.dae.busy:
            self.dae.work(self.now)
            turns += 1
        return turns

    def answer(self, request: bytes, secret: bytes = SECRET, finish: bool = True) -> Received:
        """The one answer to *request*, which is right."""
        if finish:
            self.finish()
        (packet,) = self.answers
        self.answers.clear()
        received = parse(packet)
        assert received.identifier == request[1]
        assert verify_reply(received, request[4:20], secret, require=True) == ""
        assert received.names()[0] == "Message-Authenticator"
        return received

    def ask(self, code: Code, *pairs: Pair, **options: Any) -> Received:
        """A new request, and its answer."""
        self.asked += 1
        request = signed(code, pairs, identifier=self.asked % 256, **options)
        self.put(request)
        return self.answer(request)

    def disconnect(self, *pairs: Pair) -> int:
        """How a Disconnect-Request ends: 0 or the Error-Cause."""
        return outcome(self.ask(Code.DISCONNECT_REQUEST, *pairs), Code.DISCONNECT_ACK, Code.DISCONNECT_NAK)

    def change(self, *pairs: Pair) -> int:
        return outcome(self.ask(Code.COA_REQUEST, *pairs), Code.COA_ACK, Code.COA_NAK)


def outcome(answer: Received, ack: Code, nak: Code) -> int:
    error = answer.integer("Error-Cause") or 0
    assert answer.code == (nak if error else ack)
    assert answer.integer("Acct-Terminate-Cause") == (6 if answer.code is Code.DISCONNECT_ACK else None)
    return error
