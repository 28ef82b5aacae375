"""EAP between a peer and a server that both send anything: what gets through is sound, and it ends."""

from __future__ import annotations

import random

import pytest

from npppy.aaa.base import Accept, Answer, Challenge, Eap, Failed, Reject
from npppy.ppp import eap
from npppy.ppp.station import Phase
from tests.effort import some
from tests.fuzz.test_parsers import mutated
from tests.unit.test_eap import FAILURE, REQUEST, RESPONSE, SUCCESS, Peer, packet


class World:
    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.peer = Peer(negotiation_timeout=source.choice((30, 255)))
        #: How often either side does what it must not.
        self.malice = source.choice((0.0, 0.05, 0.5))
        self.known = 0
        #: What the peer was sent last that it must answer, and the last word.
        self.request = b""
        self.result = b""
        #: A Response to it has gone to the server.
        self.answered = False
        self.accepted = False
        self.look(self.peer.asked)

    def packet(self, *codes: int) -> bytes:
        """One that may be right, or may have been."""
        source = self.source
        identifier = self.request[1] if self.request and not self.odd else source.randrange(256)
        data = source.choice((b"\x01alice", b"\x01bob", b"\x03\x04", b"\x04\x10" + bytes(16), b"\x0d" + bytes(900)))
        if self.odd:
            data = data[: source.randrange(2)] + source.randbytes(source.randrange(2100))
        whole = packet(source.choice(codes if self.odd else codes[:1]), identifier, data)
        return mutated(whole, source) if self.odd else whole

    @property
    def odd(self) -> bool:
        return self.source.random() < self.malice

    def answer(self) -> Answer:
        source = self.source
        what = source.random()
        self.accepted = False
        if what < 0.97:
            request = self.packet(REQUEST, RESPONSE, SUCCESS)
            return Challenge(eap=request, state=source.randbytes(4), timeout=source.choice((0, 0, 1, 100)))
        if what < 0.99:
            self.accepted = True
            return Accept(eap=source.choice((b"", self.packet(SUCCESS, FAILURE, REQUEST, 9))))
        return source.choice((Failed(reason="x"), Reject(reason="x", eap=self.packet(FAILURE, SUCCESS))))

    def step(self) -> None:
        peer, source = self.peer, self.source
        what = source.random()
        if what < 0.6:
            peer.line.give_raw(b"\xc2\x27" + self.packet(RESPONSE, REQUEST, SUCCESS, FAILURE, 0, 77))
        elif what < 0.9 and self.waiting:
            peer.server.say(self.answer(), peer.rig.now)
        else:
            peer.rig.wait(source.random() * 6)
        self.look(peer.take())

    @property
    def waiting(self) -> bool:
        return self.peer.server._done is not None

    def look(self, sent: list[bytes]) -> None:
        """At what has got through."""
        session, server = self.peer.session, self.peer.server
        for request in server.requests[self.known :]:
            assert isinstance(request.proof, Eap)
            response = request.proof.packet
            assert response[0] == RESPONSE
            assert response[1] == self.request[1]
            assert 5 <= len(response) == int.from_bytes(response[2:4], "big") <= eap.MAX_RESPONSE
            assert len(request.username) <= eap.MAX_NAME
            assert request.username == server.requests[0].username
            assert not self.answered, "one Response to a Request"
            self.answered = True
        self.known = len(server.requests)
        assert self.known <= eap.MAX_ROUNDS
        for data in sent:
            assert len(data) == int.from_bytes(data[2:4], "big") <= session.peer_mru
            assert not self.result, "nothing follows the last word"
            if data[0] == REQUEST:
                assert len(data) > 4
                # It is the same again, or the answer to what the server was told.
                assert data == self.request or self.answered or not self.request
                assert not self.waiting
                self.answered = False
                self.request = data
            else:
                assert data[0] in (SUCCESS, FAILURE)
                assert len(data) == 4
                self.result = data
        assert (session.phase is Phase.NETWORK) <= self.accepted


@pytest.mark.parametrize("seed", range(some(300, 5)))
def test_eap(seed: int) -> None:
    world = World(random.Random(seed))
    session = world.peer.session
    for _ in range(500):
        if session.phase is not Phase.AUTHENTICATE:
            break
        world.step()
    assert session.phase is not Phase.AUTHENTICATE or world.waiting
    if session.phase in (Phase.AUTHENTICATE, Phase.NETWORK):
        session.gone(session.cause, "test", world.peer.rig.now)
    world.peer.rig.wait(120)
    world.peer.rig.nothing_left()


def test_all_of_it_is_reached() -> None:
    """Else the test above says little."""
    ends = set()
    most = 0
    for seed in range(120):
        world = World(random.Random(seed))
        for _ in range(500):
            if world.peer.session.phase is not Phase.AUTHENTICATE:
                break
            world.step()
        most = max(most, world.known)
        ends.add((world.result[:1], world.peer.session.reason.split(" of ")[0]))
    assert most == eap.MAX_ROUNDS
    assert {code for code, _ in ends} >= {b"\x03", b"\x04", b""}
    reasons = {reason for _, reason in ends}
    assert reasons >= {
        "",
        "a name that is too long",
        "an EAP response",
        "the server's EAP request",
        "the server's challenge has no EAP request",
        f"EAP does not end after {eap.MAX_ROUNDS} rounds",
    }
