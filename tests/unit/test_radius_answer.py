"""What answers of servers make of a session."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from npppy.aaa.base import NO_PROFILE, Accept, Challenge, Chap, Eap, Failed, MsChapV2, Profile, Reject, Request
from npppy.aaa.radius.answer import CHANGEABLE, Unusable, accept, challenge, profile_changes, reject
from npppy.aaa.radius.packet import DICTIONARY, Code, Pair, Value
from npppy.config.model import Mppe
from npppy.config.users import User
from npppy.cursor import Malformed
from npppy.pipex.base import Police
from npppy.pipex.police import nearest
from npppy.ppp.mppe import Keys

from .radius_attr import reply, request, salted

V2 = MsChapV2(7, b"c" * 16, b"p" * 16, b"r" * 24)
S = b"S=" + b"0123456789ABCDEF" * 2 + b"01234567"
SUCCESS: Pair = ("MS-CHAP2-Success", b"\7" + S)
EAP = Eap(b"\2\5\0\6\4x")


def ip(text: str) -> int:
    return int(IPv4Address(text))


def accepted(*pairs: Pair, asked: Request | None = None, user: User | None = None) -> Accept:
    answer = accept(reply(Code.ACCESS_ACCEPT, *pairs), asked or request(), user)
    assert isinstance(answer, Accept), answer
    return answer


def refused(*pairs: Pair, asked: Request | None = None) -> str:
    answer = accept(reply(Code.ACCESS_ACCEPT, *pairs), asked or request())
    assert isinstance(answer, Reject), answer
    return answer.reason


def test_nothing() -> None:
    """As npppd: who says nothing of an address leaves it to the peer."""
    answer = accepted()
    assert answer == Accept(address_by_peer=True, authentic=1)
    assert answer.profile is NO_PROFILE


def test_all() -> None:
    answer = accepted(
        ("Service-Type", 2),
        ("Framed-Protocol", 1),
        ("Framed-IP-Address", ip("10.0.0.9")),
        ("Framed-IP-Netmask", ip("255.255.255.248")),
        ("Framed-Route", "192.168.1.0/24 0.0.0.0 1"),
        ("Framed-Route", "172.16.0.0"),
        ("Framed-Pool", "gold"),
        ("Framed-MTU", 1400),
        ("MS-Primary-DNS-Server", ip("192.0.2.1")),
        ("MS-Secondary-DNS-Server", ip("192.0.2.2")),
        ("MS-Primary-NBNS-Server", ip("192.0.2.3")),
        ("Session-Timeout", 3600),
        ("Termination-Action", 1),
        ("State", b"later"),
        ("Idle-Timeout", 600),
        ("Acct-Interim-Interval", 300),
        ("Class", b"one"),
        ("Class", b"\0two"),
        ("Filter-Id", "2000/1000"),
        ("Port-Limit", 2),
        ("Reply-Message", "Hello,"),
        ("Reply-Message", "Alice"),
        ("User-Name", "alice.real"),
        ("Framed-IPv6-Prefix", b"\0\x40\x20\x01\x0d\xb8\0\0\0\0"),
        ("Delegated-IPv6-Prefix", b"\0\x38\x20\x01\x0d\xb8\1\0\0"),
        ("Chargeable-User-Identity", b"cui"),
        ("Framed-Compression", 1),
    )
    assert answer == Accept(
        address=ip("10.0.0.9"),
        prefixlen=29,
        routes=(IPv4Network("192.168.1.0/24"), IPv4Network("172.16.0.0/16")),
        pool="gold",
        dns=(ip("192.0.2.1"), ip("192.0.2.2")),
        nbns=(ip("192.0.2.3"),),
        port_limit=2,
        message="Hello, Alice",
        authentic=1,
        profile=Profile(
            username="alice.real",
            classes=(b"one", b"\0two"),
            session_timeout=3600,
            reauthenticate=True,
            state=b"later",
            idle_timeout=600,
            interim=300,
            filter_id="2000/1000",
            mtu=1400,
            police_down=nearest(2_000_000),
            police_up=nearest(1_000_000),
            ip6=(
                ("Framed-IPv6-Prefix", b"\0\x40\x20\x01\x0d\xb8\0\0\0\0"),
                ("Delegated-IPv6-Prefix", b"\0\x38\x20\x01\x0d\xb8\1\0\0"),
            ),
        ),
    )


def test_address_words() -> None:
    """RFC 2865 section 5.8."""
    answer = accepted(("Framed-IP-Address", 0xFFFFFFFF), ("Framed-IP-Netmask", ip("255.255.255.0")))
    assert (answer.address, answer.address_by_peer, answer.prefixlen) == (None, True, 32)
    answer = accepted(("Framed-IP-Address", 0xFFFFFFFE))
    assert (answer.address, answer.address_by_peer) == (None, False)
    answer = accepted(("Framed-IP-Address", ip("10.0.0.1")), ("Framed-IP-Netmask", 0xFFFFFFFF))
    assert (answer.address, answer.address_by_peer, answer.prefixlen) == (ip("10.0.0.1"), False, 32)


def test_users_file() -> None:
    """It has the address where the server names none."""
    user = User(name="alice", address=ip("10.1.0.1"), prefixlen=28)
    answer = accepted(user=user)
    assert (answer.address, answer.prefixlen, answer.address_by_peer) == (ip("10.1.0.1"), 28, False)
    answer = accepted(("Framed-IP-Address", ip("10.0.0.1")), user=user)
    assert (answer.address, answer.prefixlen) == (ip("10.0.0.1"), 32)
    assert accepted(("Framed-IP-Address", 0xFFFFFFFE), user=user).address is None
    answer = accepted(("Framed-Pool", "gold"), user=user)
    assert (answer.address, answer.pool) == (None, "gold")
    assert accepted(user=User(name="alice")).address_by_peer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Service-Type", 1),
        ("Service-Type", 6),
        ("Framed-Protocol", 2),
        ("Framed-IP-Address", 0),
        ("Framed-IP-Address", 0x7F000001),
        ("Framed-IP-Address", 0xE0000001),
        ("Framed-MTU", 63),
        ("Framed-MTU", 65536),
        ("Framed-Route", ""),
        ("Framed-Route", "default"),
        ("Framed-Route", "0.0.0.0/0 0.0.0.0 1"),
        ("Framed-Route", "10.0.0.0/33"),
        ("Framed-Route", "10.0.0.0/"),
        ("Framed-Route", "10.0.0.0/0"),
        ("Framed-Route", "10.0.0.0/-8"),
        ("Framed-Route", "127.0.0.0/8"),
        ("Framed-Route", "10.0.0/24"),
        ("Mikrotik-Rate-Limit", "fast"),
    ],
)
def test_unusable(name: str, value: Value) -> None:
    """RFC 2865 section 1.1: an Accept of what we do not have is a Reject."""
    assert name in refused((name, value))


@pytest.mark.parametrize("netmask", ["0.0.0.0", "255.0.255.0", "0.0.0.255"])
def test_netmask(netmask: str) -> None:
    assert "Framed-IP-Netmask" in refused(("Framed-IP-Address", ip("10.0.0.1")), ("Framed-IP-Netmask", ip(netmask)))


def test_routes() -> None:
    """Each once, and none that the address has."""
    texts = ["10.0.0.0/29 10.0.0.1 1 2 -1 3 400", "10.0.0.0/29", "10.0.0.7/29", " 11.1.1.1\t1", "192.168.5.0"]
    texts.append("10.9.9.9/32")
    answer = accepted(*(("Framed-Route", text) for text in texts))
    assert [str(route) for route in answer.routes] == ["10.0.0.0/29", "11.0.0.0/8", "192.168.5.0/24", "10.9.9.9/32"]
    own: list[Pair] = [("Framed-IP-Address", ip("10.0.0.1")), ("Framed-IP-Netmask", ip("255.255.255.248"))]
    assert accepted(*own, ("Framed-Route", "10.0.0.0/29")).routes == ()


def test_name_servers() -> None:
    assert accepted(("MS-Primary-DNS-Server", 0)).dns == ()
    assert accepted(("MS-Secondary-DNS-Server", 5)).dns == (5,)
    assert accepted(("MS-Secondary-DNS-Server", 5)).nbns is None


def test_username() -> None:
    """What is as it was told is nothing new; with EAP the Identity was told, which no strip option has changed."""
    assert accepted(("User-Name", "alice@isp")).profile is NO_PROFILE
    assert accepted(("User-Name", b"al\xff")).profile.username == "al\udcff"
    assert accepted(("User-Name", "DOM\\alice@isp"), asked=request(EAP)).profile.username == "DOM\\alice@isp"
    assert accepted(asked=request(EAP)).profile.username == "DOM\\alice@isp"
    assert accepted(("User-Name", "alice"), asked=request(EAP)).profile.username == "alice"


@pytest.mark.parametrize(("interval", "expected"), [(0, 0), (1, 60), (59, 60), (60, 60), (86400, 86400)])
def test_interim(interval: int, expected: int) -> None:
    assert accepted(("Acct-Interim-Interval", interval)).profile.interim == expected


def test_class() -> None:
    most: list[Pair] = [("Class", b"x" * 128)] * 16
    assert len(accepted(*most).profile.classes) == 16
    assert "Class" in refused(*most, ("Class", b"x"))
    assert accepted(("Class", b""), ("Class", b"x")).profile.classes == (b"x",)


def test_termination() -> None:
    """The State is for a server that is to be asked again (RFC 2865 section 5.29)."""
    assert accepted(("State", b"x"), ("Session-Timeout", 5)).profile == Profile(session_timeout=5)
    assert accepted(("State", b"x"), ("Termination-Action", 0)).profile == NO_PROFILE
    assert accepted(("Termination-Action", 1)).profile == Profile(reauthenticate=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Framed-IP-Address", b"\x0a\0\0"),
        ("Framed-IP-Netmask", b"\xff" * 8),
        ("Session-Timeout", b"\0\0\1"),
        ("Idle-Timeout", b""),
        ("Acct-Interim-Interval", b"60"),
        ("Framed-MTU", b"\5\xdc"),
        ("Port-Limit", b"\1"),
        ("MS-Primary-DNS-Server", b"\x0a"),
        ("MS-MPPE-Encryption-Policy", b"\1"),
        ("Service-Type", b"\2"),
        ("Termination-Action", b"\0" * 5),
        ("WISPr-Bandwidth-Max-Up", b"\1\2\3"),
    ],
)
def test_malformed(name: str, value: bytes) -> None:
    """It is discarded, not obeyed in part."""
    with pytest.raises(Malformed):
        accept(reply(Code.ACCESS_ACCEPT, (name, value)), request())


# MS-CHAPv2 and MPPE


def test_mschap_success() -> None:
    answer = accepted(SUCCESS, asked=request(V2))
    assert answer.authenticator_response == S.decode()
    assert accepted(SUCCESS).authenticator_response == ""


@pytest.mark.parametrize(
    "value",
    [
        *(None, b"", b"\7", S, b"\6" + S, b"\7" + S[:-1], b"\7" + S + b"0", b"\7" + S + b"\n"),
        *(b"\7s" + S[1:], b"\7" + b"x" * 42),
    ],
)
def test_mschap_success_wrong(value: bytes | None) -> None:
    """The peer could not know us by it."""
    pairs: list[Pair] = [] if value is None else [("MS-CHAP2-Success", value)]
    answer = accept(reply(Code.ACCESS_ACCEPT, *pairs), request(V2))
    assert isinstance(answer, Failed)
    assert "MS-CHAP2-Success" in answer.reason
    assert not answer.unanswered


def keys(send: bytes, receive: bytes) -> list[Pair]:
    return [("MS-MPPE-Send-Key", salted(send)), ("MS-MPPE-Recv-Key", salted(receive))]


def test_keys() -> None:
    both = keys(b"s" * 16, b"r" * 16)
    assert accepted(SUCCESS, *both, asked=request(V2, keys=True)).keys == Keys(b"s" * 16, b"r" * 16)
    assert accepted(SUCCESS, *both, asked=request(V2)).keys is None
    assert accepted(*both, asked=request(Chap(1, b"c", b"r" * 16), keys=True)).keys is None
    long = keys(b"s" * 16 + b"x" * 16, b"r" * 16 + b"x" * 16)
    assert accepted(*long, asked=request(EAP, keys=True)).keys == Keys(b"s" * 16, b"r" * 16)
    assert accepted(*both, asked=request(EAP, keys=True)).keys == Keys(b"s" * 16, b"r" * 16)


@pytest.mark.parametrize(
    "pairs", [keys(b"s" * 16, b"")[:1], keys(b"s" * 15, b"r" * 16), keys(b"s" * 16, b"r" * 32), keys(b"", b""), []]
)
def test_keys_wrong(pairs: list[Pair]) -> None:
    assert accepted(SUCCESS, *pairs, asked=request(V2, keys=True)).keys is None


def test_keys_malformed() -> None:
    for value in (b"", b"\x80\1" + b"x" * 15, b"\x80\1" + b"x" * 33):
        answer = reply(Code.ACCESS_ACCEPT, SUCCESS, ("MS-MPPE-Send-Key", value), ("MS-MPPE-Recv-Key", value))
        with pytest.raises(Malformed):
            accept(answer, request(V2, keys=True))


@pytest.mark.parametrize(
    ("policy", "types", "expected"),
    [
        (None, None, (None, None)),
        (1, None, (Mppe.YES, None)),
        (1, 6, (Mppe.YES, frozenset((40, 128)))),
        (1, 4, (Mppe.YES, frozenset((128,)))),
        (2, 14, (Mppe.REQUIRED, frozenset((40, 56, 128)))),
        (2, None, (Mppe.REQUIRED, None)),
        (1, 0, (Mppe.NO, None)),
        (None, 4, (None, frozenset((128,)))),
    ],
)
def test_policy(policy: int | None, types: int | None, expected: object) -> None:
    values = (("MS-MPPE-Encryption-Policy", policy), ("MS-MPPE-Encryption-Types", types))
    answer = accepted(*((name, value) for name, value in values if value is not None))
    assert (answer.mppe, answer.mppe_key_lengths) == expected


def test_policy_contradicts_itself() -> None:
    assert "MS-MPPE" in refused(("MS-MPPE-Encryption-Policy", 2), ("MS-MPPE-Encryption-Types", 0))


# Rejects and challenges


def test_reject() -> None:
    answer = reject(reply(Code.ACCESS_REJECT, ("Reply-Message", 'go "away"\n'), ("Reply-Message", b"\xff")), request())
    assert answer == Reject(reason='rejected by the server: "go \\"away\\"\\x0a \ufffd"', message='go "away"\n \ufffd')
    # Whoever passes it on can write it.
    answer.message.encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\7E=691 R=1 C=00112233445566778899AABBCCDDEEFF V=3", "E=691 R=0 C=00112233445566778899AABBCCDDEEFF V=3"),
        (b"\7E=691 R=1 V=3 M=No", "E=691 R=0 V=3 M=No"),
        (b"\7E=648 R=0 V=3", "E=648 R=0 V=3"),
        (b"\7E=691", "E=691"),
        # Not to be passed on; what we say ourselves does.
        (b"E=691 R=1", ""),
        (b"\7no", ""),
        (b"\7E=691 R=0\0", ""),
        (b"", ""),
    ],
)
def test_mschap_error(value: bytes, expected: str) -> None:
    answer = reject(reply(Code.ACCESS_REJECT, ("MS-CHAP-Error", value)), request(V2))
    assert answer.mschap_error == expected
    assert reject(reply(Code.ACCESS_REJECT, ("MS-CHAP-Error", value)), request()).mschap_error == ""


def test_eap() -> None:
    """Of any length, and as it is."""
    said = b"\1\6\2\x58\r" + bytes(595)
    answer = challenge(
        reply(Code.ACCESS_CHALLENGE, ("EAP-Message", said), ("State", b"handle"), ("Session-Timeout", 30)), request(EAP)
    )
    assert answer == Challenge(eap=said, state=b"handle", timeout=30)
    assert accepted(("EAP-Message", b"\3\5\0\4"), asked=request(EAP)).eap == b"\3\5\0\4"
    assert reject(reply(Code.ACCESS_REJECT, ("EAP-Message", b"\4\5\0\4")), request(EAP)).eap == b"\4\5\0\4"
    # Who did not speak it is not answered in it.
    assert accepted(("EAP-Message", b"\3\5\0\4")).eap == b""


def test_challenge_is_a_reject() -> None:
    """RFC 2865 section 4.4."""
    asks = reply(Code.ACCESS_CHALLENGE, ("Reply-Message", "token?"), ("State", b"x"), ("EAP-Message", b"\1\6\0\5\4"))
    assert isinstance(challenge(asks, request()), Reject)
    assert isinstance(challenge(reply(Code.ACCESS_CHALLENGE, ("State", b"x")), request(EAP)), Reject)


# What changes while a session is up


def changed(old: Profile, *pairs: Pair) -> Profile:
    return profile_changes(reply(Code.ACCESS_ACCEPT, *pairs), old)


FULL = Profile(
    username="alice.real",
    classes=(b"one",),
    session_timeout=3600,
    reauthenticate=True,
    state=b"later",
    idle_timeout=600,
    interim=300,
    filter_id="2000/1000",
    mtu=1400,
    police_up=nearest(1_000_000),
    police_down=nearest(2_000_000),
    ip6=(("Framed-IPv6-Pool", b"six"),),
)


@pytest.mark.parametrize(
    ("pairs", "changes"),
    [
        ([], {}),
        ([("Class", b"a"), ("Class", b"b")], {"classes": (b"a", b"b")}),
        ([("Session-Timeout", 0)], {"session_timeout": 0}),
        ([("Idle-Timeout", 5)], {"idle_timeout": 5}),
        ([("Termination-Action", 0)], {"reauthenticate": False, "state": b""}),
        ([("Acct-Interim-Interval", 0)], {"interim": 0}),
        ([("Filter-Id", "walled")], {"filter_id": "walled"}),
        ([("Filter-Id", "0/64")], {"filter_id": "0/64", "police_down": None, "police_up": nearest(64_000)}),
        ([("WISPr-Bandwidth-Max-Up", 80_000)], {"police_up": Police(10_000, 15_000)}),
        # These say which session is meant, and what cannot change while it is up.
        ([("User-Name", "bob"), ("Framed-IP-Address", 5), ("Framed-MTU", 500), ("State", b"x")], {}),
    ],
)
def test_changes(pairs: list[Pair], changes: dict[str, Any]) -> None:
    """Only what a packet names."""
    assert changed(FULL, *pairs) == dataclasses.replace(FULL, **changes)
    if not changes:
        assert changed(FULL, *pairs) is FULL


def test_changes_wrong() -> None:
    with pytest.raises(Unusable) as caught:
        changed(FULL, ("Mikrotik-Rate-Limit", "fast"))
    assert caught.value.name == "Mikrotik-Rate-Limit"
    with pytest.raises(Malformed):
        changed(FULL, ("Idle-Timeout", b"1"))


def test_changeable() -> None:
    """Each of them changes something, and has a name."""
    values: dict[str, Value] = {
        "Class": b"x",
        "Filter-Id": "1/1",
        "Mikrotik-Rate-Limit": "1M",
        "Cisco-AVPair": "ip:sub-qos-policy-out=5000000",
        "Termination-Action": 0,
    }
    for name in CHANGEABLE:
        assert name in DICTIONARY
        assert changed(FULL, (name, values.get(name, 61))) != FULL, name
