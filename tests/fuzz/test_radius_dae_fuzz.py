"""Whatever comes to the server of dynamic authorization, it survives; and what is authentic has one answer."""

from __future__ import annotations

import logging
import random
from hashlib import md5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npppy.aaa.radius.packet import Code, parse, verify_reply
from tests.unit.dae_rig import SECRET, WALL, Bench, signed

REQUESTS = st.sampled_from((Code.DISCONNECT_REQUEST, Code.COA_REQUEST))
#: Types of attributes, those that mean something more often.
TYPES = st.one_of(
    st.sampled_from((1, 4, 5, 6, 8, 11, 18, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 44, 55, 85, 87, 89, 95, 97)),
    st.integers(0, 255),
)
VALUES = st.one_of(
    st.sampled_from((b"alice", b"bob", b"npppd", b"\0\0\0\1", b"\0\0\0\2", bytes((10, 0, 0, 2)), b"eth1")),
    st.builds(lambda age: int(WALL - age).to_bytes(4, "big"), st.integers(-1000, 1000)),
    # Rates of Mikrotik and of Cisco, and what only looks like them.
    st.builds(
        lambda vendor, kind, value: vendor.to_bytes(4, "big") + bytes((kind, len(value) + 2)) + value,
        st.sampled_from((9, 311, 3561, 10055, 14122, 14988, 99)),
        st.integers(0, 20),
        st.one_of(
            st.sampled_from((b"1M/10M", b"0/0", b"\0\1\0\0", b"ip:qos-policy-in=1000000")), st.binary(max_size=40)
        ),
    ),
    st.binary(max_size=60),
)


def authentic(code: int, identifier: int, body: bytes) -> bytes:
    head = bytes((code, identifier)) + (20 + len(body)).to_bytes(2, "big")
    return head + md5(head + bytes(16) + body + SECRET).digest() + body


@pytest.fixture(scope="module")
def bench() -> Bench:
    bench = Bench()
    bench.users("alice", 3)
    bench.users("bob", 2)
    return bench


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_octets(bench: Bench, octets: bytes) -> None:
    bench.put(octets)
    assert bench.answers == []
    assert bench.engine.bound == 5


@given(REQUESTS, st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=30)), max_size=4), st.binary(max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_octets_that_are_signed(code: Code, attributes: list[tuple[int, bytes]], rest: bytes) -> None:
    """The lengths of attributes may be anything, too."""
    body = b"".join(bytes((kind, len(value) + 2)) + value for kind, value in attributes) + rest
    bench = Bench()
    bench.up()
    bench.put(authentic(code, 1, body))
    bench.finish()
    assert len(bench.answers) == (0 if sum(bench.dae.state()[0].discarded.values()) else 1)


@given(REQUESTS, st.lists(st.tuples(TYPES, VALUES), max_size=8), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_attributes(code: Code, attributes: list[tuple[int, bytes]], named: bool) -> None:
    bench = Bench()
    bench.users("alice", 2)
    bench.up("bob")
    if named:
        attributes = [(1, b"alice"), *attributes]
    body = b"".join(bytes((kind, len(value) + 2)) + value for kind, value in attributes)
    request = authentic(code, 7, body)
    problems: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("npppy.radius"), logging.Handler(logging.ERROR)
    handler.emit = problems.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    before = [session.profile for session in bench.engine.sessions.values()]
    try:
        bench.put(request)
        bench.finish()
    finally:
        logger.removeHandler(handler)
    assert problems == [], "a mistake of ours"
    state = bench.dae.state()[0]
    if state.discarded:
        assert bench.answers == []
    else:
        (packet,) = bench.answers
        answer = parse(packet)
        assert verify_reply(answer, request[4:20], SECRET, require=True) == ""
        assert answer.all_octets("Proxy-State") == [value for kind, value in attributes if kind == 33]
        if answer.code in (Code.DISCONNECT_ACK, Code.COA_ACK):
            return
        assert answer.code == code + 2
        assert answer.integer("Error-Cause") in (401, 402, 403, 404, 405, 407, 503)
    assert bench.engine.bound == 3, "what is not granted is not done"
    assert [session.profile for session in bench.engine.sessions.values()] == before


def test_one_bit_is_enough() -> None:
    """No octet of a request may be another."""
    bench = Bench()
    bench.up()
    request = signed(Code.DISCONNECT_REQUEST, [("User-Name", "alice"), ("Event-Timestamp", int(WALL))])
    source = random.Random(5176)
    for at in range(len(request)):
        spoilt = bytearray(request)
        spoilt[at] ^= 1 << source.randrange(8)
        bench.put(bytes(spoilt))
    assert bench.answers == []
    assert bench.engine.bound == 1
    assert sum(bench.dae.state()[0].discarded.values()) == len(request)
