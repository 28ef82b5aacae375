"""Sessions that a LAC has begun for us (RFC 2661 section 4.4.5), and links that change under a session."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from hashlib import md5
from typing import Any

import pytest

from npppy.aaa.base import MsChapV1, Pap
from npppy.aaa.local import verify
from npppy.config.model import AuthMethod
from npppy.pipex.base import FlowSpec
from npppy.ppp import mschap, options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.fsm import State
from npppy.ppp.lcp import LcpPolicy
from npppy.ppp.link import Caller, Link, Proxy
from npppy.ppp.proxy import UnacceptableError, accept
from npppy.ppp.station import Phase

from .ppp_rig import USERS, Line, Rig

METHODS = (AuthMethod.MSCHAPV2, AuthMethod.CHAP, AuthMethod.PAP)
NOBODY_ASKED = 0xFFFFFFFF

MRU = (proto.OPT_MRU, (1400).to_bytes(2, "big"))
MAGIC = (proto.OPT_MAGIC, b"\x01\x02\x03\x04")
PEER_MAGIC = (proto.OPT_MAGIC, b"peer")
AUTH_PAP, AUTH_CHAP, AUTH_MS = (
    (proto.OPT_AUTH, value) for value in (b"\xc0\x23", b"\xc2\x23\x05", b"\xc2\x23\x80")
)

CHALLENGE = b"challenge of the LAC"
MS_CHALLENGE = b"eight oc"


def lcp(*wishes: tuple[int, bytes]) -> bytes:
    return options.encode(wishes)


def pap(**changes: Any) -> Proxy:
    proxy = Proxy(
        initial_received=lcp(PEER_MAGIC, (200, b"x")),
        last_sent=lcp(MRU, AUTH_PAP, MAGIC),
        last_received=lcp(PEER_MAGIC),
        auth_type=3,
        name=b"alice",
        identifier=77,
        response=USERS["alice"],
    )
    return replace(proxy, **changes)


def text(**changes: Any) -> Proxy:
    return replace(pap(auth_type=1, identifier=0, last_sent=lcp(MRU, MAGIC)), **changes)


def chap(password: bytes = USERS["alice"], **changes: Any) -> Proxy:
    return replace(
        pap(
            last_sent=lcp(MRU, AUTH_CHAP, MAGIC),
            auth_type=2,
            challenge=CHALLENGE,
            response=md5(b"\x4d" + password + CHALLENGE).digest(),
        ),
        **changes,
    )


def ms_chap(password: bytes = USERS["alice"], flag: bytes = b"\x01", **changes: Any) -> Proxy:
    response = mschap.challenge_response(MS_CHALLENGE, mschap.nt_password_hash(password))
    return replace(
        pap(
            last_sent=lcp(MRU, AUTH_MS, MAGIC),
            auth_type=5,
            challenge=MS_CHALLENGE,
            response=bytes(24) + response + flag,
        ),
        **changes,
    )


class Called(Line):
    """A call of a LAC; what LCP has agreed is in *opened*."""

    def __init__(self, rig: Rig, proxy: Proxy, **link: Any) -> None:
        self.opened: list[tuple[int, int, bool, bool]] = []
        caller = Caller(text="192.0.2.1:1701")
        settings = {"tunnel": rig.tunnel, "caller": caller, "max_mru": 1460, "proxy": proxy}
        super().__init__(rig, Link(**(settings | link)))

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        self.opened.append((send_accm, receive_accm, pfc, acfc))


def rig_for(*methods: AuthMethod, **tunnel: Any) -> Rig:
    return Rig(authentication_methods=methods or METHODS, lcp_keepalive=False, **({"mru": 1400} | tunnel))


def answers(line: Line) -> list[tuple[int, int, bytes]]:
    """Protocol, identifier and the packet's code with its message, of what was sent to authenticate."""
    auth = (proto.PAP, proto.CHAP)
    return [(number, packet[1], packet[:1] + packet[4:]) for number, packet in line.sent if number in auth]


ACCEPTED = [
    pytest.param(pap(), [(proto.PAP, 77, b"\x02\x02OK")], "PAP", id="pap"),
    pytest.param(chap(), [(proto.CHAP, 77, b"\x03OK")], "CHAP-MD5", id="chap"),
    pytest.param(ms_chap(), [(proto.CHAP, 77, b"\x03Welcome")], "MS-CHAP", id="mschap"),
    pytest.param(text(), [], "TEXT", id="text"),
]


@pytest.mark.parametrize(("proxy", "expected", "title"), ACCEPTED)
def test_a_session_begins_where_the_lac_stopped(
    proxy: Proxy, expected: list[tuple[int, int, bytes]], title: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("npppy").propagate = True
    rig = rig_for()
    with caplog.at_level(logging.INFO, logger="npppy"):
        line = Called(rig, proxy)
        session = line.session
        # At once: the peer waits for its answer, and nothing was said of LCP.
        assert session.phase is Phase.NETWORK
        assert answers(line) == expected
        assert line.take(proto.LCP) == []
        assert (session.mru, session.peer_mru) == (1400, 1400)
        assert (session.magic, session.peer_magic) == (0x01020304, int.from_bytes(b"peer", "big"))
        assert line.opened == [(NOBODY_ASKED, NOBODY_ASKED, False, False)]
        assert line.open_ipcp() != 0
        assert session.phase is Phase.UP
        assert session.lcp is session.ipcp is session.auth_server is None
        session.end(Cause.ADMIN_RESET, "test", rig.now)
    lines = [record.getMessage() for record in caplog.records]
    (start,) = (line for line in lines if "TUNNELSTART" in line)
    assert f"auth={title} " in start
    assert start.endswith(" iface=tun0 dialin_proxy=yes")
    (usage,) = (line for line in lines if "TUNNELUSAGE" in line)
    assert f"auth={title} " in usage
    assert not any(USERS["alice"].decode() in line for line in lines)
    rig.wait(20)
    rig.nothing_left()


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [
        (pap(response=b"wrong"), [(proto.PAP, 77, b"\x03\x1cUnknown username or password")]),
        (pap(response=b""), [(proto.PAP, 77, b"\x03\x1cUnknown username or password")]),
        (pap(name=b""), [(proto.PAP, 77, b"\x03\x1cUnknown username or password")]),
        (pap(name=b"\xff\0\x1b[0m" * 60), [(proto.PAP, 77, b"\x03\x1cUnknown username or password")]),
        (text(response=b"wrong"), []),
        (chap(b"wrong"), [(proto.CHAP, 77, b"\x04FAILED")]),
        (chap(response=b"short"), [(proto.CHAP, 77, b"\x04FAILED")]),
        (chap(response=bytes(1000)), [(proto.CHAP, 77, b"\x04FAILED")]),
        (chap(identifier=78), [(proto.CHAP, 78, b"\x04FAILED")]),
        (ms_chap(b"wrong"), [(proto.CHAP, 77, b"\x04E=691 R=0 V=2")]),
    ],
)
def test_a_login_that_fails_is_answered_and_ends_the_session(
    proxy: Proxy, expected: list[tuple[int, int, bytes]]
) -> None:
    rig = rig_for()
    line = Called(rig, proxy)
    assert answers(line) == expected
    assert line.session.phase is Phase.TERMINATE
    # Whatever the LAC may think of renegotiation: the user was heard.
    assert [packet[0] for packet in line.take(proto.LCP)] == [proto.TERMINATE_REQUEST]
    rig.wait(20)
    assert line.closed is Cause.USER_ERROR
    rig.nothing_left()


def test_a_server_that_is_silent() -> None:
    rig = rig_for()
    rig.aaa.fail = True
    line = Called(rig, ms_chap())
    assert answers(line) == [(proto.CHAP, 77, b"\x04E=930 R=0 V=2")]
    assert line.session.cause is Cause.SERVICE_UNAVAILABLE


def test_an_answer_that_takes_time_and_a_peer_that_repeats_itself() -> None:
    rig = rig_for()
    rig.aaa.hold = True
    line = Called(rig, pap())
    line.give(proto.PAP, 1, 78, b"\x05alice\x0awonderland")
    assert line.sent == []
    assert len(rig.aaa.requests) == 1
    rig.aaa.waiting.pop()(rig.now)
    # The answer is to the latest request, and to any that comes now.
    assert answers(line) == [(proto.PAP, 78, b"\x02\x02OK")]
    line.take()
    line.give(proto.PAP, 1, 79, b"\x05alice\x0awonderland")
    assert answers(line) == [(proto.PAP, 79, b"\x02\x02OK")]


def test_a_response_that_comes_again_gets_the_same_answer() -> None:
    rig = rig_for()
    line = Called(rig, chap())
    first = answers(line)
    line.take()
    line.give(proto.CHAP, 2, 77, b"\x10" + bytes(16) + b"alice")
    assert answers(line) == first
    assert len(rig.aaa.requests) == 1


def test_a_call_that_goes_while_a_server_is_asked() -> None:
    rig = rig_for()
    rig.aaa.hold = True
    line = Called(rig, chap())
    line.session.gone(Cause.LOST_CARRIER, "CDN", rig.now)
    assert rig.aaa.cancelled == 1
    rig.nothing_left()


def test_what_lcp_has_agreed() -> None:
    rig = rig_for(mru=1460)
    line = Called(
        rig,
        pap(
            last_sent=lcp((1, b"\x05\x00"), (2, b"\x00\x0a\x00\x00"), AUTH_PAP, MAGIC, (7, b""), (8, b"")),
            last_received=lcp((1, b"\x04\x00"), (2, bytes(4)), PEER_MAGIC, (7, b""), (8, b"")),
        ),
    )
    assert (line.session.mru, line.session.peer_mru) == (1280, 1024)
    assert line.opened == [(0, 0x000A0000, True, True)]


@pytest.mark.parametrize(
    ("received", "mru", "expected"),
    [
        # What goes to the peer is bounded by what the tunnel allows and the path carries, whatever the peer takes.
        (lcp(), 1460, 1460),
        (lcp((1, b"\x23\x28")), 1460, 1460),
        (lcp((1, b"\x23\x28")), 1300, 1300),
        (lcp((1, b"\x02\x00")), 1460, 512),
    ],
)
def test_the_mru_of_the_peer(received: bytes, mru: int, expected: int) -> None:
    rig = rig_for(mru=mru)
    line = Called(rig, pap(last_sent=lcp((1, b"\x03\xe8"), AUTH_PAP), last_received=received))
    assert line.session.phase is Phase.NETWORK
    assert (line.session.mru, line.session.peer_mru) == (1000, expected)


def test_without_magic_numbers() -> None:
    rig = rig_for()
    line = Called(rig, pap(last_sent=lcp(MRU, AUTH_PAP), last_received=b""))
    line.open_ipcp()
    assert (line.session.magic, line.session.peer_magic) == (0, 0)
    line.give(proto.LCP, proto.ECHO_REQUEST, 5, bytes(4) + b"hello")
    assert line.take(proto.LCP) == [b"\x0a\x05\x00\x0d\0\0\0\0hello"]


def test_echoes_carry_the_numbers_of_the_lac() -> None:
    rig = rig_for()
    line = Called(rig, pap())
    line.open_ipcp()
    line.give(proto.LCP, proto.ECHO_REQUEST, 5, b"peer")
    assert line.take(proto.LCP) == [b"\x0a\x05\x00\x08\x01\x02\x03\x04"]


# What is not accepted.


UNACCEPTABLE = [
    # Nothing, or what no LCP would have agreed to.
    (Proxy(), "no LCP"),
    (pap(last_sent=b"", last_received=b""), "no LCP"),
    (pap(last_sent=b""), "our MRU of 1500"),
    (pap(last_sent=lcp(AUTH_PAP, MAGIC)), "our MRU of 1500"),
    (pap(last_sent=lcp((1, b"\x05\x79"), AUTH_PAP)), "our MRU of 1401"),
    (pap(last_sent=lcp((1, b"\x01\xf3"), AUTH_PAP)), "our MRU of 499"),
    (pap(last_received=lcp((1, b"\x01\xf3"))), "the peer's MRU of 499"),
    (pap(last_received=lcp((1, bytes(2)))), "the peer's MRU of 0"),
    (pap(last_received=lcp(MAGIC)), "looped back"),
    (pap(last_received=lcp(PEER_MAGIC, AUTH_PAP)), "the peer wants us to authenticate ourselves"),
    (pap(last_received=lcp((17, b"\x05\xdc"))), "LCP option 17"),
    (pap(last_sent=lcp(MRU, AUTH_PAP, (19, b"\x01endpoint"))), "LCP option 19"),
    # Garbage.
    (pap(last_sent=lcp(MRU, AUTH_PAP) + b"\x05"), "malformed LCP options: short"),
    (pap(last_sent=b"\x01\x00"), "malformed LCP options: option-length"),
    (pap(last_sent=b"\x01\x01"), "malformed LCP options: option-length"),
    (pap(last_received=b"\x01\xff\x05"), "malformed LCP options: short"),
    (pap(last_received=bytes(range(200, 250))), "malformed LCP options: short"),
    (pap(last_received=b"\x07\x02" * 65), "malformed LCP options: too-many-options"),
    (pap(last_sent=lcp(MRU, AUTH_PAP, MRU)), "an LCP option twice"),
    (pap(last_sent=lcp((1, b"\x05"), AUTH_PAP)), "LCP option 1 with a wrong value"),
    (pap(last_received=lcp((1, b"\x05\x78\0"))), "LCP option 1 with a wrong value"),
    (pap(last_received=lcp((2, b"\0"))), "LCP option 2 with a wrong value"),
    (pap(last_received=lcp((5, b"\x01\x02"))), "LCP option 5 with a wrong value"),
    (pap(last_sent=lcp(MRU, AUTH_PAP, (5, bytes(4)))), "LCP option 5 with a wrong value"),
    (pap(last_sent=lcp(MRU, AUTH_PAP, (7, b"\0"))), "LCP option 7 with a wrong value"),
    (pap(last_received=lcp((8, b"\0"))), "LCP option 8 with a wrong value"),
    # Authentication.
    *((pap(auth_type=number), f"Proxy Authen Type {number}") for number in (0, 4, 6, 65535)),
    (pap(last_sent=lcp(MRU)), "PAP, which is not what LCP has agreed"),
    (pap(last_sent=lcp(MRU, AUTH_CHAP)), "PAP, which is not what LCP has agreed"),
    (pap(last_sent=lcp(MRU, (3, b""))), "PAP, which is not what LCP has agreed"),
    (pap(last_sent=lcp(MRU, (3, b"\xc0\x23\0"))), "PAP, which is not what LCP has agreed"),
    (text(last_sent=lcp(MRU, AUTH_PAP)), "TEXT, which is not what LCP has agreed"),
    (chap(last_sent=lcp(MRU, (3, b"\xc2\x23\x81"))), "CHAP-MD5, which is not what LCP has agreed"),
    (chap(challenge=b""), "CHAP-MD5 without a challenge or a response of use"),
    (chap(response=b""), "CHAP-MD5 without a challenge or a response of use"),
    (ms_chap(challenge=b""), "MS-CHAP without a challenge or a response of use"),
    (ms_chap(challenge=bytes(7)), "MS-CHAP without a challenge or a response of use"),
    (ms_chap(challenge=bytes(16)), "MS-CHAP without a challenge or a response of use"),
    (ms_chap(response=b""), "MS-CHAP without a challenge or a response of use"),
    (ms_chap(response=bytes(48)), "MS-CHAP without a challenge or a response of use"),
    (ms_chap(response=bytes(49) + b"\x01"), "MS-CHAP without a challenge or a response of use"),
    # The LAN Manager's response is refused.
    (ms_chap(flag=b"\0"), "MS-CHAP without a challenge or a response of use"),
]


@pytest.mark.parametrize(("proxy", "reason"), UNACCEPTABLE)
def test_what_cannot_be_accepted_is_negotiated_anew(proxy: Proxy, reason: str) -> None:
    rig = rig_for()
    line = Called(rig, proxy)
    # Nobody was asked, nothing was answered, and we speak first: the peer is through with LCP.
    assert rig.aaa.requests == []
    assert [(number, packet[0]) for number, packet in line.sent] == [(proto.LCP, proto.CONFIGURE_REQUEST)]
    assert line.opened == []
    asked = dict(line.ack(proto.LCP))
    assert asked[proto.OPT_MRU] == (1400).to_bytes(2, "big")
    assert asked[proto.OPT_AUTH] == b"\xc2\x23\x81"
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, lcp(PEER_MAGIC))
    assert line.session.phase is Phase.AUTHENTICATE
    line.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()


@pytest.mark.parametrize(("proxy", "reason"), UNACCEPTABLE)
def test_or_ends_the_session(proxy: Proxy, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("npppy").propagate = True
    rig = rig_for()
    with caplog.at_level(logging.INFO, logger="npppy"):
        line = Called(rig, replace(proxy, renegotiable=False))
    # Without a word to the peer: the LAC ends the call.
    assert line.sent == []
    assert line.closed is Cause.USER_ERROR
    assert line.session.reason == f"what the LAC has negotiated cannot be accepted: {reason}"
    assert any(reason in record.getMessage() for record in caplog.records)
    rig.nothing_left()


@pytest.mark.parametrize(
    ("proxy", "methods"),
    [
        (pap(), (AuthMethod.MSCHAPV2, AuthMethod.CHAP)),
        (text(), (AuthMethod.MSCHAPV2, AuthMethod.CHAP)),
        (chap(), (AuthMethod.MSCHAPV2, AuthMethod.PAP)),
        (ms_chap(), (AuthMethod.CHAP, AuthMethod.PAP)),
    ],
)
def test_methods_that_the_tunnel_does_not_offer(proxy: Proxy, methods: tuple[AuthMethod, ...]) -> None:
    rig = rig_for(*methods)
    line = Called(rig, replace(proxy, renegotiable=False))
    assert line.closed is Cause.USER_ERROR
    assert line.session.reason.endswith("which this tunnel does not offer")
    line = Called(rig, proxy)
    assert dict(line.ack(proto.LCP))[proto.OPT_AUTH] in (b"\xc2\x23\x81", b"\xc2\x23\x05")


def test_options_that_the_carrier_forbids() -> None:
    rig = rig_for()
    line = Called(rig, pap(last_received=lcp((7, b"")), renegotiable=False), unwanted=frozenset({7}))
    assert line.session.reason.endswith("LCP option 7")


def test_garbage() -> None:
    """Whatever a LAC says: a session, a new negotiation, or an end; never an exception."""
    source = random.Random(2661)
    policy = LcpPolicy(mru=1400, max_mru=1460, demand=METHODS)
    pieces = [MRU, MAGIC, PEER_MAGIC, AUTH_PAP, AUTH_CHAP, AUTH_MS, (2, bytes(4)), (7, b""), (8, b""), (200, b"x")]
    outcomes: set[object] = set()
    for number in range(3000):

        def junk() -> bytes:
            data = lcp(*source.sample(pieces, source.randrange(5)))
            if source.random() < 0.3 and data:
                at = source.randrange(len(data))
                data = data[:at] + source.randbytes(source.randrange(3)) + data[at + source.randrange(3) :]
            return data

        whole = source.choice((pap, chap, ms_chap, text))()
        proxy = replace(
            whole,
            last_sent=whole.last_sent if source.random() < 0.6 else junk(),
            last_received=whole.last_received if source.random() < 0.3 else junk(),
            auth_type=whole.auth_type if source.random() < 0.8 else source.randrange(7),
            challenge=whole.challenge if source.random() < 0.8 else source.randbytes(source.randrange(40)),
            response=whole.response if source.random() < 0.8 else source.randbytes(source.randrange(80)),
            name=source.choice((b"alice", b"bob", b"", b"\xff" * 300)),
            renegotiable=source.random() < 0.5,
        )
        try:
            accept(proxy, policy)
            accepted = True
        except UnacceptableError:
            accepted = False
        rig = rig_for()
        line = Called(rig, proxy)
        session = line.session
        outcomes.add((accepted, session.phase))
        if accepted:
            assert session.phase in (Phase.NETWORK, Phase.TERMINATE)
            assert 500 <= session.peer_mru <= 1400
            assert 500 <= session.mru <= 1400
        else:
            assert rig.aaa.requests == []
            assert session.phase is (Phase.ESTABLISH if proxy.renegotiable else Phase.DEAD)
        if session.phase is not Phase.DEAD:
            session.gone(Cause.LOST_CARRIER, "test", rig.now)
        rig.nothing_left()
        if number == 2999:
            assert len(outcomes) == 4


# Afterwards, it is a session like any other.


@pytest.mark.parametrize("proxy", [pap(), chap(), ms_chap(), text()])
def test_a_peer_may_negotiate_anew(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    rig = rig_for(AuthMethod.PAP, AuthMethod.CHAP, AuthMethod.MSCHAPV2)
    line = Called(rig, proxy)
    address = line.open_ipcp()
    line.take()
    # The automaton is gone, and comes back as one that is open.
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 9, lcp((1, b"\x04\x00"), (proto.OPT_MAGIC, b"new!")))
    asked = dict(line.ack(proto.LCP))
    assert asked[proto.OPT_MAGIC] == b"\x01\x02\x03\x04"
    assert asked[proto.OPT_AUTH] == b"\xc0\x23"
    session = line.session
    assert (session.phase, session.peer_mru, session.auth) == (Phase.AUTHENTICATE, 1024, AuthMethod.PAP)
    assert line.opened[1:] == [(NOBODY_ASKED, NOBODY_ASKED, True, True)]
    assert line.pap()[0] == 2
    assert line.open_ipcp() == address
    assert session.phase is Phase.UP
    assert session._auth_title == "PAP"


def test_a_peer_may_end_it() -> None:
    rig = rig_for()
    line = Called(rig, chap())
    line.open_ipcp()
    line.take()
    line.give(proto.LCP, proto.TERMINATE_REQUEST, 9)
    assert [packet[0] for packet in line.take(proto.LCP)] == [proto.TERMINATE_ACK]
    rig.wait(20)
    assert line.closed is Cause.USER_REQUEST
    rig.nothing_left()


def test_another_user_after_renegotiation_ends_it() -> None:
    rig = rig_for(AuthMethod.PAP)
    line = Called(rig, pap())
    line.open_ipcp()
    line.open_lcp()
    line.pap("bob")
    assert line.session.reason == "another user after renegotiation"


def test_the_bound_on_negotiation_holds_for_ipcp() -> None:
    rig = rig_for(negotiation_timeout=30)
    line = Called(rig, pap())
    rig.wait(29)
    assert line.session.phase is Phase.NETWORK
    rig.wait(20)
    assert line.closed is Cause.LOST_CARRIER
    rig.nothing_left()


def test_an_old_configure_ack_means_nothing() -> None:
    rig = rig_for()
    line = Called(rig, pap())
    for code in (proto.CONFIGURE_ACK, proto.CONFIGURE_NAK, proto.CONFIGURE_REJECT):
        for identifier in range(256):
            line.give(proto.LCP, code, identifier, lcp(MRU, AUTH_PAP, MAGIC))
    assert line.session.phase is Phase.NETWORK
    assert line.session.lcp is not None
    assert line.session.lcp.state is State.OPENED
    assert line.take(proto.LCP) == []


def test_a_full_pool_is_told_to_the_peer() -> None:
    rig = rig_for()
    for name in (b"alice", b"bob", b"alice"):
        assert Called(rig, pap(name=name, response=USERS[name.decode()])).session.phase is Phase.NETWORK
    line = Called(rig, chap())
    assert [answer[2][:1] for answer in answers(line)] == [b"\x04"]
    assert line.session.cause is Cause.SERVICE_UNAVAILABLE


def test_secrets_do_not_show() -> None:
    assert "wonderland" not in repr(pap())


# MS-CHAPv1 itself.


def test_the_example_of_rfc_2433() -> None:
    """Appendix B.2."""
    challenge = bytes.fromhex("102DB5DF085D3041")
    response = bytes.fromhex("4E9D3C8F9CFD385D5BF4D3246791956CA4C351AB409A3D61")
    assert verify(MsChapV1(1, challenge, response), "anybody", b"MyPw") == ""
    assert verify(MsChapV1(1, challenge, response), "anybody", b"mypw") is None
    assert verify(MsChapV1(1, challenge, response[:-1]), "anybody", b"MyPw") is None
    assert verify(MsChapV1(1, challenge, b""), "anybody", b"MyPw") is None
    assert verify(Pap(b"MyPw"), "anybody", b"MyPw") == ""


# Links that change, and frames with a short Protocol field.


class Flows:
    """A back end that keeps what it is told."""

    def __init__(self, rig: Rig) -> None:
        self.specs: list[FlowSpec] = []
        self._add = rig.backend.add
        rig.backend.add = self.add  # type: ignore[method-assign]

    def add(self, spec: FlowSpec, now: float) -> Any:
        self.specs.append(spec)
        return self._add(spec, now)


def test_the_data_path_follows_the_peer() -> None:
    rig = rig_for()
    flows = Flows(rig)
    line = Called(rig, pap(), encap=("192.0.2.1", 1701))
    # Before there is data, nobody need be told.
    line.link = replace(line.link, encap=("192.0.2.1", 1702))
    line.session.changed(line.link, rig.now, moved=True)
    assert flows.specs == []
    line.open_ipcp()
    line.session.receive(b"\x00\x21" + bytes(20), rig.now)
    line.take()
    # Another speed is nothing to the data path.
    line.link = replace(line.link, encap=("192.0.2.1", 1702), caller=replace(line.link.caller, tx_speed=1000))
    line.session.changed(line.link, rig.now)
    assert [spec.encap for spec in flows.specs] == [("192.0.2.1", 1702)]
    line.link = replace(line.link, encap=("192.0.2.9", 4500))
    line.session.changed(line.link, rig.now, moved=True)
    assert [spec.encap for spec in flows.specs] == [("192.0.2.1", 1702), ("192.0.2.9", 4500)]
    # The peer hears nothing of it, and no count is lost.
    assert (line.sent, line.session.phase, line.closed) == ([], Phase.UP, None)
    assert len(rig.backend) == 1
    assert line.session.counters().in_packets == 1
    line.session.receive(b"\x00\x21" + bytes(20), rig.now)
    assert line.session.counters().in_packets == 2
    line.session.end(Cause.ADMIN_RESET, "test", rig.now)
    # One that is ending follows nobody.
    line.session.changed(replace(line.link, encap=None), rig.now, moved=True)
    assert len(flows.specs) == 2
    rig.wait(20)
    rig.nothing_left()


def test_a_path_that_shrinks_as_it_moves_is_told_once() -> None:
    rig = rig_for()
    flows = Flows(rig)
    line = Called(rig, pap(), encap=1)
    line.open_ipcp()
    line.link = replace(line.link, encap=2, max_mru=1200)
    line.session.changed(line.link, rig.now, moved=True)
    assert line.session.flow is None
    line.ack(proto.LCP)
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 5, lcp(PEER_MAGIC))
    line.session.end(Cause.ADMIN_RESET, "test", rig.now)
    assert [spec.encap for spec in flows.specs] == [1]


def test_data_with_a_compressed_protocol_field() -> None:
    rig = rig_for(dump_in=frozenset({"ipcp"}))
    line = Called(rig, pap(last_sent=lcp(MRU, AUTH_PAP, (7, b""), (8, b""))))
    line.open_ipcp()
    for frame in (b"\x21" + bytes(20), b"\x00\x21" + bytes(21)):
        line.session.receive(frame, rig.now)
    counters = line.session.counters()
    assert (counters.in_packets, counters.in_bytes) == (2, 41)
    # Without a flow it goes nowhere, and nothing breaks.
    line.session.end(Cause.ADMIN_RESET, "test", rig.now)
    for frame in (b"\x21" + bytes(20), b"\x21", b"", b"\x00", b"\x01"):
        line.session.receive(frame, rig.now)
