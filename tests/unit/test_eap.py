"""EAP (RFC 3748) as the authenticator, which passes it on to a server (RFC 3579 section 2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from npppy.aaa.base import Accept, Answer, Challenge, Eap, Failed, Reject, Request
from npppy.aaa.radius.request import told_name
from npppy.config.model import AuthMethod, Mppe
from npppy.ppp import eap, proto
from npppy.ppp.cause import Cause
from npppy.ppp.mppe import Keys
from npppy.ppp.station import Phase

from .ppp_rig import Line, Rig

REQUEST, RESPONSE, SUCCESS, FAILURE = 1, 2, 3, 4
IDENTITY, NOTIFICATION, NAK, MD5 = 1, 2, 3, 4


def packet(code: int, identifier: int, data: bytes = b"") -> bytes:
    return bytes((code, identifier)) + (4 + len(data)).to_bytes(2, "big") + data


class Server:
    """Answers as it is told; without a word left it keeps the login waiting."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.cancelled = 0
        self._done: Callable[[Answer, float], None] | None = None

    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> Server | None:
        assert self._done is None, "one at a time"
        self.requests.append(request)
        self._done = done
        if self.answers:
            self.say(self.answers.pop(0), now)
            return None
        return self

    def say(self, answer: Answer, now: float) -> None:
        assert self._done is not None
        done, self._done = self._done, None
        done(answer, now)

    def cancel(self) -> None:
        self.cancelled += 1
        self._done = None

    @property
    def heard(self) -> list[bytes]:
        """The packets of the peer."""
        return [request.proof.packet for request in self.requests if isinstance(request.proof, Eap)]


class Peer:
    """A session in which EAP has been agreed on, and the identity is asked for."""

    def __init__(self, *answers: Answer, realm: dict[str, Any] | None = None, **tunnel: Any) -> None:
        settings: dict[str, Any] = {"authentication_methods": (AuthMethod.EAP,)}
        self.rig = Rig(realm={"type": "radius"} | (realm or {}), **(settings | tunnel))
        self.server = Server(*answers)
        self.rig.engine.aaa = self.server
        self.line: Line = self.rig.line()
        self.line.open_lcp()
        self.session = self.line.session
        self.asked = self.take()

    def take(self) -> list[bytes]:
        return self.line.take(proto.EAP)

    def give(self, code: int, identifier: int, data: bytes = b"") -> list[bytes]:
        """Send a packet; returns what comes back."""
        self.line.give(proto.EAP, code, identifier, data)
        return self.take()

    @property
    def identifier(self) -> int:
        """Of the first Request."""
        return self.asked[0][1]

    def identify(self, name: bytes = b"alice") -> list[bytes]:
        return self.give(RESPONSE, self.identifier, bytes((IDENTITY,)) + name)

    def ended(self, cause: Cause) -> None:
        self.rig.wait(10)
        assert self.line.closed is cause
        self.rig.nothing_left()


def challenge(
    identifier: int, data: bytes = b"\x04\x10" + bytes(16), *, state: bytes = b"s", timeout: int = 0
) -> Challenge:
    return Challenge(eap=packet(REQUEST, identifier, data), state=state, timeout=timeout)


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    logger = logging.getLogger("npppy")
    before, logger.propagate = logger.propagate, True
    yield
    logger.propagate = before


# The identity.


def test_it_is_asked_for_by_lcp_and_then_by_an_identity_request() -> None:
    rig = Rig(authentication_methods=(AuthMethod.EAP,))
    line = rig.line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1)
    assert b"\x03\x04\xc2\x27" in line.find(proto.LCP, proto.CONFIGURE_REQUEST)[1]
    assert Peer().asked == [packet(REQUEST, Peer().identifier, b"\x01")]


def test_a_peer_without_eap_gets_the_next_method() -> None:
    rig = Rig(authentication_methods=(AuthMethod.EAP, AuthMethod.CHAP))
    line = rig.line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1)
    identifier, _ = line.find(proto.LCP, proto.CONFIGURE_REQUEST)
    line.give(proto.LCP, proto.CONFIGURE_NAK, identifier, b"\x03\x05\xc2\x23\x05")
    line.ack(proto.LCP)
    assert line.session.auth is AuthMethod.CHAP
    assert [p[0] for p in line.take(proto.CHAP)] == [1]


def test_a_request_is_repeated_as_it_is_and_not_for_ever() -> None:
    peer = Peer(negotiation_timeout=60)
    peer.rig.wait(29.9)
    again = peer.take()
    assert again == peer.asked * 9
    peer.rig.wait(3.2)
    # Section 4.1: neither Success nor Failure for a peer that says nothing.
    assert peer.take() == []
    assert peer.session.reason == "no EAP response"
    peer.ended(Cause.USER_ERROR)


def test_the_server_is_told_who_it_is_and_what_the_peer_takes() -> None:
    peer = Peer(realm={"strip_atmark_realm": True, "strip_nt_domain": True})
    peer.identify(b"CORP\\alice@isp")
    (request,) = peer.server.requests
    assert (request.username, request.account) == ("CORP\\alice@isp", "alice")
    # RFC 3579 section 2.1: User-Name is the identity, whatever the realm takes off.
    assert told_name(request) == "CORP\\alice@isp"
    assert (request.state, request.mtu) == (b"", 1492)
    assert peer.server.heard == [packet(RESPONSE, peer.identifier, b"\x01CORP\\alice@isp")]


def test_what_lies_behind_the_end_of_a_packet_is_not_passed_on() -> None:
    peer = Peer()
    whole = packet(RESPONSE, peer.identifier, b"\x01alice")
    peer.line.give_raw(b"\xc2\x27" + whole + b"padding")
    assert peer.server.heard == [whole]


def test_a_name_may_be_empty() -> None:
    peer = Peer()
    peer.identify(b"")
    assert [request.username for request in peer.server.requests] == [""]


@pytest.mark.parametrize("length", [253, 254, 1400])
def test_pppd_cve_2020_8597_a_name_longer_than_its_place(length: int) -> None:
    peer = Peer()
    back = peer.identify(b"A" * length)
    if length == 253:
        assert len(peer.server.requests) == 1
        return
    assert back == [packet(FAILURE, peer.identifier)]
    assert peer.server.requests == []
    assert "too long" in peer.session.reason
    peer.ended(Cause.USER_ERROR)


@pytest.mark.parametrize("data", [b"\x03\x04", b"\x04\x10" + bytes(16), b"\x02"])
def test_only_an_identity_answers_the_first_request(data: bytes) -> None:
    peer = Peer()
    assert peer.give(RESPONSE, peer.identifier, data) == []
    assert peer.server.requests == []
    peer.identify()
    assert len(peer.server.requests) == 1


# Rounds.


def test_a_login_of_three_rounds() -> None:
    peer = Peer(challenge(7, state=b"one"), challenge(8, b"\x04\x01x", state=b"two"), Accept(eap=packet(SUCCESS, 8)))
    assert peer.identify() == [packet(REQUEST, 7, b"\x04\x10" + bytes(16))]
    # The peer may want another method (section 5.3.1), which is between it and the server.
    assert peer.give(RESPONSE, 7, b"\x03\x04") == [packet(REQUEST, 8, b"\x04\x01x")]
    assert peer.give(RESPONSE, 8, b"\x04\x01y") == [packet(SUCCESS, 8)]
    assert peer.session.phase is Phase.NETWORK
    assert [request.state for request in peer.server.requests] == [b"", b"one", b"two"]
    assert {request.username for request in peer.server.requests} == {"alice"}
    assert peer.server.heard[1:] == [packet(RESPONSE, 7, b"\x03\x04"), packet(RESPONSE, 8, b"\x04\x01y")]
    # From here on it is a session like any other.
    assert peer.line.open_ipcp()
    assert peer.session.phase is Phase.UP
    assert peer.session.auth_server is None


def test_a_notification_is_passed_on() -> None:
    peer = Peer(challenge(7, b"\x02hurry"))
    assert peer.identify() == [packet(REQUEST, 7, b"\x02hurry")]
    peer.give(RESPONSE, 7, b"\x02")
    assert peer.server.heard[-1] == packet(RESPONSE, 7, b"\x02")


@pytest.mark.parametrize(
    ("code", "identifier"), [(RESPONSE, 6), (RESPONSE, 8), (REQUEST, 7), (SUCCESS, 7), (FAILURE, 7), (5, 7), (0, 7)]
)
def test_what_does_not_answer_the_last_request_is_discarded(code: int, identifier: int) -> None:
    peer = Peer(challenge(7))
    peer.identify()
    assert peer.give(code, identifier, b"\x04\x01x") == []
    assert len(peer.server.requests) == 1
    peer.give(RESPONSE, 7, b"\x04\x01x")
    assert len(peer.server.requests) == 2


def test_the_first_response_stands_while_the_server_is_asked() -> None:
    peer = Peer()
    peer.identify()
    assert peer.identify() == []
    assert peer.identify(b"bob") == []
    # Nor is the peer asked meanwhile.
    peer.rig.wait(200)
    assert peer.take() == []
    assert [request.username for request in peer.server.requests] == ["alice"]
    peer.server.say(challenge(7), peer.rig.now)
    assert peer.take() == [packet(REQUEST, 7, b"\x04\x10" + bytes(16))]
    # A late duplicate of the first one.
    assert peer.identify() == []
    assert len(peer.server.requests) == 1


def test_a_server_may_ask_the_same_again() -> None:
    """RFC 3579 section 2.2: it had no use for the Response, and the peer sends it once more."""
    peer = Peer(challenge(7), challenge(7), challenge(7))
    (asked,) = peer.identify()
    for _ in range(2):
        assert peer.give(RESPONSE, 7, b"\x04\x01x") == [asked]
    assert peer.server.heard[1] == peer.server.heard[2]


def test_the_servers_time_is_for_one_request_alone() -> None:
    peer = Peer(challenge(7, timeout=20), challenge(8), negotiation_timeout=100)
    peer.identify()
    peer.rig.wait(19.8)
    assert peer.take() == []
    peer.rig.wait(0.5)
    assert [p[1] for p in peer.take()] == [7]
    peer.give(RESPONSE, 7, b"\x04\x01x")
    peer.rig.wait(3.3)
    assert [p[1] for p in peer.take()] == [8]


def test_the_servers_time_is_given_even_beyond_the_bound_on_the_negotiation() -> None:
    peer = Peer(challenge(7, b"\x06token?", timeout=90), negotiation_timeout=30)
    peer.identify()
    peer.rig.wait(89)
    assert peer.session.phase is Phase.AUTHENTICATE
    peer.rig.wait(12)
    assert peer.session.phase is Phase.DEAD
    peer.rig.nothing_left()


def test_peer_and_server_do_not_go_on_for_ever() -> None:
    peer = Peer(*(challenge(n & 0xFF) for n in range(1000, 1200)))
    (asked,) = peer.identify()
    rounds = 1
    while peer.session.phase is Phase.AUTHENTICATE:
        back = peer.give(RESPONSE, asked[1], b"\x0d\x00")
        rounds += 1
        asked = back[-1]
    assert asked[0] == FAILURE
    assert len(peer.server.requests) == eap.MAX_ROUNDS == rounds - 1
    peer.ended(Cause.USER_ERROR)


def test_a_response_that_radius_cannot_carry() -> None:
    peer = Peer(challenge(7))
    peer.identify()
    assert peer.give(RESPONSE, 7, b"\x0d" + bytes(eap.MAX_RESPONSE)) == [packet(FAILURE, 7)]
    assert len(peer.server.requests) == 1
    peer.ended(Cause.USER_ERROR)


@pytest.mark.parametrize(
    "data", [b"", b"\x02", b"\x02\x07\0", b"\x02\x07\0\x03", b"\x02\x07\0\x04", b"\x02\x07\0\x09\x04x"]
)
def test_malformed_packets_are_counted_and_dropped(data: bytes) -> None:
    peer = Peer(challenge(7))
    peer.identify()
    peer.line.give_raw(b"\xc2\x27" + data)
    assert peer.rig.engine.malformed.total() == 1
    assert peer.take() == []
    assert peer.session.phase is Phase.AUTHENTICATE
    assert len(peer.server.requests) == 1


# What the server says.


@pytest.mark.parametrize(
    "data",
    [
        b"",
        packet(REQUEST, 7),
        packet(REQUEST, 7, b"\x04\x01x")[:-1],
        packet(RESPONSE, 7, b"\x04\x01x"),
        packet(SUCCESS, 7),
        packet(FAILURE, 7),
        b"\x01\x07\x00\x03\x04",
        packet(REQUEST, 7, b"\x0d" + bytes(1492 - 4)),
    ],
)
def test_a_challenge_that_is_none_does_not_reach_the_peer(data: bytes) -> None:
    peer = Peer(Challenge(eap=data, state=b"s"))
    assert peer.identify() == [packet(FAILURE, peer.identifier)]
    assert "the server's" in peer.session.reason
    peer.ended(Cause.USER_ERROR)


def test_a_challenge_as_large_as_the_peer_takes_and_padding_behind_it() -> None:
    request = packet(REQUEST, 7, b"\x0d" + bytes(1492 - 5))
    assert Peer(Challenge(eap=request + b"more", state=b"s")).identify() == [request]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Accept(eap=packet(SUCCESS, 9)), packet(SUCCESS, 9)),
        (Accept(eap=packet(SUCCESS, 9) + b"x"), packet(SUCCESS, 9)),
        (Accept(), packet(SUCCESS, 7)),
        (Accept(eap=b"\x03\x07\x00\x05x"), packet(SUCCESS, 7)),
        (Accept(eap=packet(REQUEST, 8, b"\x01")), packet(SUCCESS, 7)),
        (Reject(reason="no", eap=packet(FAILURE, 9)), packet(FAILURE, 9)),
        (Reject(reason="no"), packet(FAILURE, 7)),
        (Reject(reason="no", eap=b"\x04"), packet(FAILURE, 7)),
        (Failed(reason="no server"), packet(FAILURE, 7)),
        # RFC 3579 section 2.6.3: neither our decision nor the server's word is changed for the other.
        (Accept(eap=packet(FAILURE, 7)), packet(FAILURE, 7)),
        (Reject(reason="no", eap=packet(SUCCESS, 7)), packet(SUCCESS, 7)),
    ],
)
def test_how_it_ends(answer: Answer, told: bytes, caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(challenge(7), answer)
    peer.identify()
    with caplog.at_level(logging.WARNING, "npppy"):
        assert peer.give(RESPONSE, 7, b"\x04\x01x") == [told]
    accepted = isinstance(answer, Accept)
    assert peer.session.phase is (Phase.NETWORK if accepted else Phase.TERMINATE)
    assert ("Contradiction" in caplog.text) is ((told[0] == SUCCESS) is not accepted)
    # It is told once: Success and Failure are not repeated (section 4.2).
    assert peer.give(RESPONSE, 7, b"\x04\x01x") == []
    peer.rig.wait(5)
    assert peer.take() == []
    if not accepted:
        peer.ended(Cause.SERVICE_UNAVAILABLE if isinstance(answer, Failed) else Cause.USER_ERROR)


def test_the_peer_is_not_told_of_success_that_we_cannot_keep() -> None:
    peer = Peer(Accept(eap=packet(SUCCESS, 7)), mppe=Mppe.REQUIRED)
    assert peer.identify() == [packet(FAILURE, peer.identifier)]
    assert "no keys" in peer.session.reason


def test_keys_of_the_server_encrypt() -> None:
    keys = Keys(bytes(range(16)), bytes(range(16, 32)))
    peer = Peer(Accept(eap=packet(SUCCESS, 7), keys=keys), mppe=Mppe.REQUIRED)
    assert peer.identify() == [packet(SUCCESS, 7)]
    assert [p[0] for p in peer.line.take(proto.CCP)] == [proto.CONFIGURE_REQUEST]


def test_a_realm_that_does_not_do_eap_refuses_as_any_other() -> None:
    peer = Peer(Reject(reason="realm LOCAL does not do EAP"))
    assert peer.identify() == [packet(FAILURE, peer.identifier)]
    peer.ended(Cause.USER_ERROR)


# What happens meanwhile.


def test_the_call_goes_while_the_server_is_asked() -> None:
    peer = Peer()
    peer.identify()
    peer.session.gone(Cause.LOST_CARRIER, "PADT", peer.rig.now)
    assert peer.server.cancelled == 1
    peer.rig.nothing_left()


def test_the_call_goes_while_the_peer_is_asked() -> None:
    peer = Peer(challenge(7))
    peer.identify()
    peer.session.gone(Cause.LOST_CARRIER, "PADT", peer.rig.now)
    peer.rig.nothing_left()


def test_renegotiation_begins_anew() -> None:
    peer = Peer(challenge(7, state=b"one"))
    peer.identify()
    peer.line.give(proto.LCP, proto.CONFIGURE_REQUEST, 9)
    peer.line.ack(proto.LCP)
    asked = peer.take()
    assert [(p[0], p[4]) for p in asked] == [(REQUEST, IDENTITY)]
    assert peer.give(RESPONSE, 7 if asked[0][1] != 7 else 8, b"\x04\x01x") == []
    peer.give(RESPONSE, asked[0][1], b"\x01alice")
    # What the server gave us belongs to the conversation before.
    assert [request.state for request in peer.server.requests] == [b"", b""]


def test_a_peer_that_rejects_the_protocol() -> None:
    peer = Peer()
    peer.line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, b"\xc2\x27" + peer.asked[0])
    assert peer.session.reason == "the peer rejects eap"
    peer.ended(Cause.USER_ERROR)


def test_eap_that_was_not_agreed_on_says_nothing() -> None:
    rig = Rig()
    line = rig.line()
    line.open_lcp()
    line.give(proto.EAP, RESPONSE, 1, b"\x01alice")
    assert line.take() == []
    assert rig.aaa.requests == []
    assert line.pap()[0] == 2


def test_pap_and_chap_are_not_heard_where_eap_was_agreed_on() -> None:
    peer = Peer()
    assert peer.line.pap() == b""
    peer.line.give(proto.CHAP, 2, peer.identifier, b"\x10" + bytes(16) + b"alice")
    assert peer.server.requests == []


def test_what_a_token_card_says_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "npppy"):
        peer = Peer(challenge(7, b"\x06password?"), dump_in=frozenset({"eap"}), dump_out=frozenset({"eap"}))
        peer.identify()
        peer.give(RESPONSE, 7, b"\x06hunter2secret")
    assert len(peer.server.requests) == 2
    assert "proto=eap" in caplog.text
    dumps = caplog.text.replace(" ", "")
    assert b"alice".hex() in dumps
    assert b"hunter2secret".hex() not in dumps
    assert "hunter2secret" not in repr(peer.server.requests)
