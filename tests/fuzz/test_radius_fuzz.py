"""Noise to the parser of RADIUS, and to the sockets of its client."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st

from npppy.aaa.radius.packet import (
    DICTIONARY,
    Code,
    Received,
    encode_reply,
    encode_request,
    parse,
    verify_reply,
    verify_request,
)
from npppy.aaa.radius.server import IDLE
from npppy.cursor import Malformed
from tests.unit.radius_net import SECRET, Net, block, entry

KEY = SECRET.encode()
RANDOM = bytes(range(16))
NAMES = sorted(DICTIONARY.attributes)

attributes = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=20)).map(
            lambda made: bytes(made[:2]) + made[2]
        ),
        st.tuples(st.integers(0, 255), st.binary(max_size=253)).map(
            lambda made: bytes((made[0], len(made[1]) + 2)) + made[1]
        ),
        # Of a vendor that we know.
        st.tuples(st.sampled_from([9, 311, 3561, 10055, 14122, 14988]), st.binary(max_size=40)).map(
            lambda made: bytes((26, len(made[1]) + 6)) + made[0].to_bytes(4, "big") + made[1]
        ),
    ),
    max_size=20,
).map(b"".join)


def ask_all(read: Received) -> None:
    """Everything that may be asked of a packet."""
    assert len(read.data) >= 20
    assert len(read.names()) == len(read.pairs())
    verify_reply(read, RANDOM, KEY, require=True)
    verify_reply(read, RANDOM, KEY, require=False)
    verify_request(read, KEY)
    for name in [*NAMES, *read.names(), "Attr-999"]:
        assert (name in read) == (read.octets(name) is not None) == bool(read.all_octets(name))
        read.text(name)
        read.all_texts(name)
        read.joined(name)
        asked: tuple[Callable[[str], object], ...] = read.integer, read.salted
        for ask in asked:
            if name in DICTIONARY.attributes:
                try:
                    ask(name)
                except Malformed:
                    pass


@given(st.binary(max_size=200))
def test_any_octets(data: bytes) -> None:
    try:
        ask_all(parse(data))
    except Malformed:
        pass


@given(st.sampled_from(list(Code)), attributes, st.binary(max_size=20))
@example(Code.ACCESS_ACCEPT, b"\x1a\x02", b"")
@example(Code.ACCESS_ACCEPT, b"\x1a\x06\0\0\x01\x37", b"")
def test_any_attributes(code: Code, body: bytes, padding: bytes) -> None:
    size = 20 + len(body)
    try:
        ask_all(parse(bytes((code, 1)) + size.to_bytes(2, "big") + RANDOM + body + padding))
    except Malformed:
        pass


@given(
    st.sampled_from([Code.ACCESS_REQUEST, Code.ACCOUNTING_REQUEST, Code.COA_REQUEST]),
    st.lists(st.tuples(st.sampled_from(NAMES), st.one_of(st.integers(), st.text(), st.binary(max_size=300)))),
)
def test_what_is_written_can_be_read(code: Code, pairs: list[tuple[str, int | str | bytes]]) -> None:
    try:
        data = encode_request(code, 3, RANDOM, pairs, KEY)
    except ValueError:
        return
    read = parse(data)
    # A second Message-Authenticator is never made; one of ours always comes first.
    assert verify_request(read, KEY) == ""
    written = [name for name, _ in pairs]
    if "EAP-Message" not in written:
        assert read.names() == ([] if code != Code.ACCESS_REQUEST else ["Message-Authenticator"]) + written


def test_noise_at_the_sockets() -> None:
    """Replies cut, spoiled, repeated, of others, and no replies at all: each login ends once, and nothing is lost."""
    rng = Random(2865)
    servers = block(entry("192.0.2.10"), entry("192.0.2.11"), max_tries=2, max_outstanding=40, dead_time=3)
    world = Net(servers)
    asks = []
    for _ in range(300):
        for _ in range(rng.randrange(4)):
            asks.append(world.ask(servers, flow=rng.randrange(4), deadline=rng.uniform(0.2, 9)))
        for host in world.hosts.values():
            host.silent = rng.random() < 0.5
            host.delay = rng.uniform(0, 3)
            host.signed = rng.random() < 0.9
        for _ in range(rng.randrange(8)):
            host = rng.choice(list(world.hosts.values()))
            if not host.datagrams:
                continue
            socket, data = rng.choice(host.datagrams[-60:])
            request = parse(data)
            made = bytearray(encode_reply(request, rng.choice([*Code][1:6]), [("Class", rng.randbytes(9))], KEY))
            what = rng.randrange(5)
            if what == 0:
                made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
            elif what == 1:
                del made[rng.randrange(len(made)) :]
            elif what == 2:
                made = bytearray(rng.randbytes(rng.randrange(80)))
            elif what == 3:
                made += rng.randbytes(rng.randrange(9))
            socket.deliver(bytes(made))
        if rng.random() < 0.1:
            rng.choice(world.sockets).fail(rng.choice([111, 113])) if world.sockets else None
        if asks and rng.random() < 0.2:
            gone = asks.pop(rng.randrange(len(asks)))
            gone.cancel()
        world.run(rng.uniform(0, 0.5))
    for host in world.hosts.values():
        host.silent, host.delay, host.signed = False, 0.0, True
    world.run(30)
    assert all(ask.done for ask in asks)
    assert any(ask.reply is not None for ask in asks)
    assert world.idle()
    ask = world.ask(servers)
    world.run()
    assert ask.reply is not None
    world.run(3 * IDLE)
    assert world.opened() == []
    assert len(world.wheel) == 0
    bad = {why for state in world.client.state() for why in state.bad}
    assert {"malformed", "unexpected", "authenticator", "code"} <= bad
