"""Random and mutated frames: nothing is raised but Malformed by the codec, and nothing at all by the port."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from npppy.cursor import Malformed
from npppy.ppp.cause import Cause
from npppy.pppoe.codec import (
    BROADCAST,
    AccessLine,
    Code,
    Discovery,
    Tag,
    access_line,
    decode_discovery,
    decode_session,
    encode_access_line,
    session_frame,
)
from tests.effort import some
from tests.unit.pppoe_fake import AC, HOST, LCP_REQUEST, Bench, tunnel

ROUNDS = some(100_000, 10)


def seeds(bench: Bench) -> list[bytes]:
    """Good frames to begin with."""
    line = encode_access_line(AccessLine(b"dslam1 atm 1/1:8.35", b"line 7"))
    tags = (
        (Tag.SERVICE_NAME, b"gold"),
        (Tag.HOST_UNIQ, b"\x01\x02\x03\x04"),
        (Tag.AC_COOKIE, bench.cookie()),
        (Tag.RELAY_SESSION_ID, bytes(12)),
        (Tag.PPP_MAX_PAYLOAD, b"\x05\xdc"),
        (Tag.VENDOR_SPECIFIC, line),
        (Tag.END_OF_LIST, b""),
    )
    sid, _ = bench.dial()
    return [
        Discovery(BROADCAST, HOST, Code.PADI, 0, tags).encode(),
        Discovery(AC, HOST, Code.PADR, 0, tags).encode(),
        Discovery(AC, HOST, Code.PADR, 0, ((Tag.SERVICE_NAME, b""), *tags[1:3])).encode(),
        Discovery(AC, HOST, Code.PADT, sid, tags[1:3]).encode(),
        Discovery(AC, HOST, Code.PADO, 0, tags).encode(),
        Discovery(AC, HOST, Code.PADS, sid, tags).encode(),
        session_frame(AC, HOST, sid, LCP_REQUEST),
        session_frame(AC, HOST, sid, b"") + bytes(40),
    ]


def mutate(rng: random.Random, frame: bytes) -> bytes:
    """A frame of which little is different; mostly behind the addresses, where it matters."""
    data = bytearray(frame)
    for _ in range(rng.randrange(4)):
        kind = rng.randrange(6)
        at = rng.randrange(14 if rng.random() < 0.9 else 0, max(len(data), 15))
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randrange(8))
        elif kind == 2:
            del data[at : at + rng.randrange(8)]
        elif at < len(data):
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), (data[at] + 1) & 0xFF))
    return bytes(data)


def test_receive_never_raises() -> None:
    bench = Bench(tunnel(service_names=("gold", "silver"), session_limit=50, mru=1500), mtu=1508)
    rng = random.Random(2516)
    good = seeds(bench)
    for number in range(ROUNDS):
        if number % 10 == 0:
            frame = rng.randbytes(rng.randrange(80))
        elif number % 10 == 1:
            # Random behind a header that is let in.
            frame = AC + HOST + rng.choice((b"\x88\x63\x11", b"\x88\x64\x11")) + rng.randbytes(rng.randrange(60))
        else:
            frame = mutate(rng, rng.choice(good))
        for answer in bench.feed(frame):
            assert len(answer) <= 14 + 1500
        if number % 500 == 0:
            # Time and sessions go on, so that cookies and identifiers stay good.
            bench.pass_time(1.0)
            for call in list(bench.port.calls.values()):
                call.close(Cause.USER_REQUEST)
            bench.ppp.sessions.clear()
            good = seeds(bench)
    # The frames went deep: sessions were opened and closed, and dropped for many reasons.
    assert {"malformed", "cookie", "service", "destination", "session", "code"} <= bench.drops.keys()
    for call in list(bench.port.calls.values()):
        call.close(Cause.USER_REQUEST)
    assert bench.is_clean()


@given(st.binary(max_size=200))
def test_codec_raises_nothing_but_malformed(data: bytes) -> None:
    for prefix in (b"", AC + HOST + b"\x88\x63\x11", AC + HOST + b"\x88\x64\x11\x00\x00\x01"):
        for decode in (decode_discovery, decode_session):
            try:
                decode(prefix + data)
            except Malformed:
                pass
    try:
        access_line([data, b"\x00\x00\x0d\xe9" + data])
    except Malformed:
        pass


@given(st.binary(max_size=120))
def test_what_is_read_is_within_the_frame(data: bytes) -> None:
    frame = AC + HOST + b"\x88\x63\x11\x09\x00\x00" + len(data).to_bytes(2, "big") + data
    try:
        packet = decode_discovery(frame)
    except Malformed:
        return
    assert sum(4 + len(value) for _, value in packet.tags) <= len(data)
    # What was read can be written, and reads the same again.
    assert decode_discovery(packet.encode()) == packet
