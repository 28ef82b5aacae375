"""Whatever a server answers, it is made into something that PPP can obey, or it is discarded."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from npppy.aaa.base import NO_PROFILE, Accept, Chap, Eap, Failed, MsChapV2, Pap, Profile, Reject, Request
from npppy.aaa.radius import rates
from npppy.aaa.radius.answer import CHANGEABLE, Unusable, accept, challenge, profile_changes, reject
from npppy.aaa.radius.packet import DICTIONARY, Code, Pair, Received, encode_request, parse
from npppy.aaa.radius.request import access_pairs
from npppy.config.model import Radius
from npppy.config.options import usable
from npppy.cursor import Malformed
from npppy.pipex.police import LEAST_BURST, LEAST_RATE, MOST_BURST, MOST_RATE
from tests.unit.radius_attr import ethernet, reply, request, tunnelled

NAMES = sorted(name for name in DICTIONARY.attributes if name not in ("Message-Authenticator", "Vendor-Specific"))
OBEYED = sorted(
    CHANGEABLE
    | {
        *("Service-Type", "Framed-Protocol", "Framed-IP-Address", "Framed-IP-Netmask", "Framed-Route", "Framed-Pool"),
        *("Framed-MTU", "Port-Limit", "Reply-Message", "User-Name", "State", "EAP-Message", "MS-CHAP-Error"),
        *("MS-Primary-DNS-Server", "MS-Secondary-NBNS-Server", "MS-CHAP2-Success", "MS-MPPE-Send-Key"),
        *("MS-MPPE-Recv-Key", "MS-MPPE-Encryption-Policy", "MS-MPPE-Encryption-Types", "Framed-IPv6-Prefix"),
    }
)
WORDS = st.lists(
    st.sampled_from(
        [
            *"0123456789/: kMGs.-,()=",
            *("10.0.0.0", "1000", "E=691 R=1", "rate-limit ", "input ", "output ", "ip:sub-qos-policy-out="),
            *("qos-policy-in=", "police(", "access-group "),
        ]
    ),
    max_size=12,
).map("".join)
VALUES = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda number: number.to_bytes(4, "big")),
    st.sampled_from([2, 1, 0, 6, 1400, 0xFFFFFFFE, 0xFFFFFF00]).map(lambda number: number.to_bytes(4, "big")),
    WORDS.map(str.encode),
    st.binary(max_size=60),
    st.binary(min_size=40).map(lambda octets: b"\7S=" + octets.hex().encode()[:40]),
)
PAIRS = st.lists(st.tuples(st.sampled_from(OBEYED), VALUES), max_size=8)
PROOFS = [
    Pap(b"x"),
    Chap(7, b"c" * 16, b"r" * 16),
    MsChapV2(7, b"c" * 16, b"p" * 16, b"r" * 24),
    Eap(b"\2\5\0\6\4x"),
]
ASKED = st.sampled_from([request(proof, keys=True) for proof in PROOFS])


def check_profile(profile: Profile) -> None:
    assert profile.interim is None or profile.interim == 0 or profile.interim >= 60
    assert all(profile.classes)
    assert sum(map(len, profile.classes)) <= 2048
    assert profile.mtu == 0 or 64 <= profile.mtu <= 65535
    for police in (profile.police_up, profile.police_down):
        if police is not None:
            assert LEAST_RATE // 8 <= police.rate <= MOST_RATE // 8
            assert LEAST_BURST <= police.burst <= MOST_BURST


def check(answer: Accept, asked: Request) -> None:
    assert answer.address is None or usable(answer.address, answer.address)
    assert answer.address is None or not answer.address_by_peer
    assert 1 <= answer.prefixlen <= 32
    assert len(set(answer.routes)) == len(answer.routes)
    assert all(route.prefixlen for route in answer.routes)
    assert answer.keys is None or set(map(len, answer.keys)) == {16}
    assert bool(answer.authenticator_response) is isinstance(asked.proof, MsChapV2)
    assert len(answer.authenticator_response) in (0, 42)
    answer.message.encode()
    check_profile(answer.profile)


def read(packet: Received, asked: Request) -> None:
    with contextlib.suppress(Malformed):
        answer = accept(packet, asked)
        assert isinstance(answer, Accept | Reject | Failed)
        if isinstance(answer, Accept):
            check(answer, asked)
    refusal = reject(packet, asked)
    refusal.message.encode()
    assert "R=1" not in refusal.mschap_error.split()
    assert refusal.mschap_error.isprintable()
    assert refusal.reason.isprintable()
    with contextlib.suppress(Malformed):
        challenge(packet, asked)
    with contextlib.suppress(Malformed, Unusable):
        check_profile(profile_changes(packet, NO_PROFILE))


@given(PAIRS, ASKED)
@settings(max_examples=600)
def test_answers(pairs: list[Pair], asked: Request) -> None:
    read(reply(Code.ACCESS_ACCEPT, *pairs), asked)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=40)), max_size=6), ASKED)
@settings(max_examples=200)
def test_all_attributes(pairs: list[Pair], asked: Request) -> None:
    """Also those that we do not obey, which change nothing."""
    packet = reply(Code.ACCESS_ACCEPT, *pairs)
    read(packet, asked)
    with contextlib.suppress(Malformed, Unusable):
        changed = profile_changes(packet, NO_PROFILE)
        assert changed is NO_PROFILE or not CHANGEABLE.isdisjoint(packet.names())


@given(st.one_of(WORDS, st.text(max_size=60)))
@settings(max_examples=400)
def test_rates(text: str) -> None:
    rates.filter_id(text)
    rates.cisco(text)
    with contextlib.suppress(Unusable):
        rates.mikrotik(text)


@given(st.text(max_size=400), st.binary(max_size=63), st.binary(max_size=63), st.sampled_from(PROOFS), st.booleans())
@settings(max_examples=200)
def test_requests(number: str, circuit: bytes, remote: bytes, proof: object, tunnel: bool) -> None:
    """Whatever a peer says of itself fits."""
    number = number.encode("utf-8", "replace").decode()[:253]
    facts = {"calling_number": number, "called_number": number, "circuit_id": circuit, "remote_id": remote}
    asked = request(proof, tunnelled(**facts) if tunnel else ethernet(**facts, service=number))  # type: ignore[arg-type]
    radius = Radius(nas_port_id="{calling}{called}{circuit}{remote}{service}{id}")
    for template in (radius, replace(radius, nas_port_id="")):
        pairs = access_pairs(asked, template)
        packet = parse(encode_request(Code.ACCESS_REQUEST, 1, bytes(16), pairs, b"secret"))
        assert packet.text("User-Name")
