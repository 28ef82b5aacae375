"""PAP (RFC 1334), CHAP (RFC 1994) and MS-CHAPv2 (RFC 2759) as the authenticator."""

from __future__ import annotations

import logging
from hashlib import md5

import pytest

from npppy.config.model import AuthMethod
from npppy.ppp import mschap, proto
from npppy.ppp.cause import Cause
from npppy.ppp.station import Phase

from .ppp_rig import USERS, Line, Rig


def rig_for(method: AuthMethod) -> tuple[Rig, Line]:
    rig = Rig(authentication_methods=(method,))
    line = rig.line()
    line.open_lcp()
    return rig, line


def challenge(line: Line) -> tuple[int, bytes, bytes]:
    identifier, data = line.find(proto.CHAP, 1)
    length = data[0]
    return identifier, data[1 : 1 + length], data[1 + length :]


def respond_md5(line: Line, user: str, password: bytes) -> bytes:
    identifier, value, _ = challenge(line)
    digest = md5(bytes((identifier,)) + password + value).digest()
    line.give(proto.CHAP, 2, identifier, b"\x10" + digest + user.encode())
    return (line.take(proto.CHAP) or [b""])[-1]


def respond_ms(line: Line, user: str, password: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    identifier, value, _ = challenge(line)
    peer = bytes(range(16))
    response = mschap.nt_response(value, peer, mschap.without_domain(user.encode()), password)
    line.give(proto.CHAP, 2, identifier, b"\x31" + peer + bytes(8) + response + b"\0" + user.encode())
    return (line.take(proto.CHAP) or [b""])[-1], response, peer, value


def test_pap_accepts() -> None:
    _, line = rig_for(AuthMethod.PAP)
    assert line.pap() == b"\x02\x01\x00\x07\x02OK"
    assert line.session.phase is Phase.NETWORK


def test_pap_repeated_request_gets_the_same_answer() -> None:
    rig, line = rig_for(AuthMethod.PAP)
    first = line.pap()
    line.give(proto.PAP, 1, 9, b"\x05alice\x05other")
    assert line.take(proto.PAP) == [first[:1] + b"\x09" + first[2:]]
    assert len(rig.aaa.requests) == 1


@pytest.mark.parametrize("user", ["alice", "mallory", ""])
def test_pap_refusals_look_the_same(user: str) -> None:
    rig, line = rig_for(AuthMethod.PAP)
    answer = line.pap(user, b"wrong")
    assert answer == b"\x03\x01\x00\x21\x1cUnknown username or password"
    # The answer leaves first, then LCP is terminated.
    assert [p[0] for p in line.take(proto.LCP)][-1] == proto.TERMINATE_REQUEST
    rig.wait(10)
    assert line.closed is Cause.USER_ERROR
    rig.nothing_left()


@pytest.mark.parametrize("password", [b"wonder", b"wonderlandx", b"", b"Wonderland"])
def test_the_whole_password_counts(password: bytes) -> None:
    _, line = rig_for(AuthMethod.PAP)
    assert line.pap("alice", password)[0] == 3


def test_chap_md5_accepts() -> None:
    rig, line = rig_for(AuthMethod.CHAP)
    assert line.sent
    answer = respond_md5(line, "alice", USERS["alice"])
    assert (answer[0], answer[4:]) == (3, b"OK")
    assert rig.aaa.requests[0].account == "alice"


def test_chap_challenge_has_our_name_and_is_repeated_the_same() -> None:
    rig, line = rig_for(AuthMethod.CHAP)
    first = challenge(line)
    assert first[2] == b"bng"
    assert len(first[1]) == 16
    rig.wait(3.3)
    assert challenge(line) == first


def test_chap_name_option() -> None:
    rig = Rig(authentication_methods=(AuthMethod.CHAP,), chap_name="concentrator")
    line = rig.line()
    line.open_lcp()
    assert challenge(line)[2] == b"concentrator"


def test_chap_without_response_ends() -> None:
    rig, line = rig_for(AuthMethod.CHAP)
    rig.wait(60)
    assert len([p for p in line.take(proto.CHAP) if p[0] == 1]) <= 10
    assert line.closed is not None
    rig.nothing_left()


def test_chap_section_4_2_a_repeated_response_gets_the_same_answer() -> None:
    rig, line = rig_for(AuthMethod.CHAP)
    identifier, value, _ = challenge(line)
    digest = md5(bytes((identifier,)) + USERS["alice"] + value).digest()
    for _ in range(2):
        line.give(proto.CHAP, 2, identifier, b"\x10" + digest + b"alice")
    first, second = line.take(proto.CHAP)
    assert first == second
    assert len(rig.aaa.requests) == 1


def test_chap_response_with_another_identifier_is_discarded() -> None:
    _, line = rig_for(AuthMethod.CHAP)
    identifier, value, _ = challenge(line)
    digest = md5(bytes((identifier,)) + USERS["alice"] + value).digest()
    line.give(proto.CHAP, 2, identifier ^ 1, b"\x10" + digest + b"alice")
    assert line.take(proto.CHAP) == []


@pytest.mark.parametrize(("user", "password"), [("alice", b"wrong"), ("mallory", b"wonderland"), ("", b"")])
def test_chap_refusals_look_the_same(user: str, password: bytes) -> None:
    _, line = rig_for(AuthMethod.CHAP)
    answer = respond_md5(line, user, password)
    assert (answer[0], answer[4:]) == (4, b"FAILED")
    assert line.session.phase is Phase.TERMINATE


@pytest.mark.parametrize("length", [0, 1, 15, 17, 49, 200])
def test_a_chap_response_of_the_wrong_length_is_refused(length: int) -> None:
    for method in (AuthMethod.CHAP, AuthMethod.MSCHAPV2):
        if method is AuthMethod.MSCHAPV2 and length == 49:
            continue
        _, line = rig_for(method)
        identifier, _, _ = challenge(line)
        line.give(proto.CHAP, 2, identifier, bytes((length,)) + bytes(length) + b"alice")
        (answer,) = line.take(proto.CHAP)
        assert answer[0] == 4


def test_a_chap_response_shorter_than_its_value_size_is_malformed() -> None:
    rig, line = rig_for(AuthMethod.CHAP)
    identifier, _, _ = challenge(line)
    line.give(proto.CHAP, 2, identifier, b"\x10short")
    assert rig.engine.malformed["short"] == 1
    assert line.session.phase is Phase.AUTHENTICATE


@pytest.mark.parametrize("user", ["alice", "CORP\\alice"])
def test_mschapv2_proves_both_sides(user: str) -> None:
    _, line = rig_for(AuthMethod.MSCHAPV2)
    answer, response, peer, value = respond_ms(line, user, USERS["alice"])
    assert answer[0] == 3
    expected = mschap.authenticator_response(USERS["alice"], response, peer, value, b"alice")
    assert answer[4:].decode().split(" M=")[0] == expected


@pytest.mark.parametrize(("user", "password"), [("alice", b"wrong"), ("mallory", b"wonderland")])
def test_mschapv2_error_string(user: str, password: bytes) -> None:
    _, line = rig_for(AuthMethod.MSCHAPV2)
    answer = respond_ms(line, user, password)[0]
    words = answer[4:].decode().split()
    assert answer[0] == 4
    assert words[:2] == ["E=691", "R=0"]
    assert words[2].startswith("C=")
    assert len(words[2]) == 34
    assert words[3:] == ["V=3"]


def test_mschapv2_error_930_when_nobody_can_tell() -> None:
    rig, line = rig_for(AuthMethod.MSCHAPV2)
    rig.aaa.fail = True
    assert respond_ms(line, "alice", USERS["alice"])[0][4:].startswith(b"E=930 R=0 ")


def test_the_negotiation_bound_stands_still_while_a_server_is_asked() -> None:
    rig, line = rig_for(AuthMethod.PAP)
    rig.aaa.hold = True
    assert line.pap() == b""
    rig.wait(300)
    assert line.session.phase is Phase.AUTHENTICATE
    rig.aaa.waiting.pop()(rig.now)
    assert line.session.phase is Phase.NETWORK
    rig.wait(29)
    assert line.session.phase is Phase.NETWORK
    rig.wait(12)
    rig.nothing_left()


def test_a_login_in_flight_is_cancelled_when_the_call_goes() -> None:
    rig, line = rig_for(AuthMethod.PAP)
    rig.aaa.hold = True
    line.pap()
    line.session.gone(Cause.LOST_CARRIER, "PADT", rig.now)
    assert rig.aaa.cancelled == 1
    rig.nothing_left()


def test_a_login_in_flight_is_cancelled_by_renegotiation() -> None:
    rig, line = rig_for(AuthMethod.PAP)
    rig.aaa.hold = True
    line.pap()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 9, b"")
    assert rig.aaa.cancelled == 1
    rig.aaa.hold = False
    line.ack(proto.LCP)
    assert line.pap()[0] == 2


def test_requests_repeated_while_a_server_is_asked_are_not_asked_again() -> None:
    rig, line = rig_for(AuthMethod.PAP)
    rig.aaa.hold = True
    line.pap()
    line.give(proto.PAP, 1, 2, b"\x05alice\x0awonderland")
    rig.aaa.waiting.pop()(rig.now)
    assert line.take(proto.PAP)[0][:2] == b"\x02\x02", "the answer goes to the latest request"
    assert len(rig.aaa.requests) == 1


@pytest.mark.parametrize(
    ("realm", "name", "account"),
    [
        ({}, "CORP\\alice", "alice"),
        ({"strip_nt_domain": False}, "CORP\\alice", "CORP\\alice"),
        ({}, "alice@isp", "alice@isp"),
        ({"strip_atmark_realm": True}, "alice@isp", "alice"),
        ({"username_suffix": "@isp"}, "alice@isp", "alice"),
        ({"username_suffix": "@isp"}, "@isp", None),
        ({"username_suffix": "@isp"}, "alice@other", None),
    ],
)
def test_which_account_a_name_means(realm: dict[str, object], name: str, account: str | None) -> None:
    rig = Rig(realm=realm)
    login = rig.engine.find_login(rig.tunnel, name)
    assert (login.account if login else None) == account


def test_a_name_without_a_realm_is_refused_like_any_other() -> None:
    rig = Rig(realm={"username_suffix": "@isp"})
    line = rig.line()
    line.open_lcp()
    assert line.pap("alice", USERS["alice"])[0] == 3
    assert rig.aaa.requests[0].realm is None


def test_neither_password_nor_forged_lines_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("npppy").propagate = True
    with caplog.at_level(logging.DEBUG, logger="npppy"):
        rig = Rig(dump_in=frozenset({"pap", "lcp"}), dump_out=frozenset({"pap"}))
        line = rig.line()
        line.open_lcp()
        line.pap('eve"\nppp id=1 logtype=TUNNELSTART user="', b"hunter2secret")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "hunter2secret" not in text
    assert b"hunter2secret".hex(" ", 2) not in text
    assert not any("\n" in record.getMessage() for record in caplog.records)
    assert 'user="eve\\"\\x0appp' in text
