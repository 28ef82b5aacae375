"""Random and mutated L2TP messages: the codec raises nothing but Malformed, whatever it is given."""

from __future__ import annotations

import random
import struct
from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.cursor import Malformed
from npppy.l2tp import codec, secret
from npppy.l2tp.codec import Attr, Hiding, Message, Type, u16, u32
from tests.effort import some

SECRET = b"between us"
VECTOR = bytes(range(16))
ROUNDS = some(60_000, 10)
M, H = 0x8000, 0x4000

SCCRQ = [
    (Attr.PROTOCOL_VERSION, b"\x01\x00"),
    (Attr.HOST_NAME, b"lac.example"),
    (Attr.FRAMING_CAPABILITIES, u32(3)),
    (Attr.ASSIGNED_TUNNEL_ID, u16(4711)),
    (Attr.RECEIVE_WINDOW_SIZE, u16(8)),
    (Attr.CHALLENGE, bytes(16)),
    (Attr.TIE_BREAKER, bytes(8)),
]
ICCN = [
    (Attr.TX_CONNECT_SPEED, u32(100_000_000)),
    (Attr.FRAMING_TYPE, u32(1)),
    (Attr.LAST_SENT_LCP_CONFREQ, bytes.fromhex("010405d40304c023")),
    (Attr.PROXY_AUTHEN_TYPE, u16(3)),
    (Attr.PROXY_AUTHEN_NAME, b"alice"),
    (Attr.PROXY_AUTHEN_ID, u16(1)),
    (Attr.PROXY_AUTHEN_RESPONSE, b"a password of more than one block"),
    (Attr.SEQUENCING_REQUIRED, b""),
]
CDN = [
    (Attr.RESULT_CODE, codec.result_code(2, 6, "it is late")),
    (Attr.ASSIGNED_SESSION_ID, u16(3)),
    (Attr.Q931_CAUSE_CODE, b"\x00\x10\x45gone"),
    (Attr.PPP_DISCONNECT_CAUSE, b"\x00\x03\xc0\x21\x01ended"),
]


def _hide(attribute: int, value: bytes, vector: bytes) -> bytes:
    return secret.hide(attribute, value, SECRET, vector, bytes(attribute % 7))


def bodies() -> list[bytes]:
    """Good messages to begin with, each in clear and hidden."""
    return [
        codec.encode_message(kind, avps, hiding)
        for kind, avps in ((Type.SCCRQ, SCCRQ), (Type.ICCN, ICCN), (Type.CDN, CDN))
        for hiding in (None, Hiding(VECTOR, _hide))
    ]


def datagrams() -> list[bytes]:
    frame = b"\xff\x03\xc0\x21\x01\x01\x00\x04"
    return [
        *(codec.control(1, 2, 3, 4, body) for body in bodies()),
        codec.control(1, 0, 3, 4, b""),
        b"\x00\x02\x00\x01\x00\x02" + frame,
        b"\x4a\x02\x00\x1a\x00\x01\x00\x02\x00\x03\x00\x00\x00\x04pads" + frame,
        codec.data_header(1, 2, True) + frame,
        codec.data_header(1, 2, False) + frame,
    ]


def read(body: bytes, key: bytes = SECRET) -> Message | None:
    """The message, used as its readers do; None: it is malformed."""
    try:
        message = codec.decode_message(body, key)
    except Malformed:
        return None
    for attribute in Attr:
        assert 0 <= message.u16(attribute, 0) <= 0xFFFF
        assert 0 <= message.u32(attribute, 0) <= 0xFFFFFFFF
        message.text(attribute, "").encode()
    for number, value in message.avps.items():
        rule = codec.RULES[number]
        # Windows 2000's Result Code is written anew.
        assert rule.least <= len(value) <= rule.most
    assert set(message.missing()).isdisjoint(message.avps)
    assert message.name
    if message.fault is not None:
        assert 1 <= message.fault.error <= 8
        message.fault.text.encode()
    return message


def take(datagram: bytes) -> None:
    """A datagram, as npppyd takes it."""
    codec.shown(datagram)
    try:
        data = codec.decode_data(datagram)
    except Malformed:
        pass
    else:
        assert 6 <= data.start <= data.end <= len(datagram)
        assert -1 <= data.ns <= 0xFFFF
    try:
        control = codec.decode_control(datagram)
    except Malformed:
        return
    assert len(control.body) <= len(datagram) - 12
    if control.body:
        read(control.body)


def mutate(rng: random.Random, octets: bytes) -> bytes:
    """The same but for a little."""
    data = bytearray(octets)
    for _ in range(rng.randrange(1, 4)):
        kind = rng.randrange(6)
        at = rng.randrange(max(len(data), 1))
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randrange(8))
        elif kind == 2:
            del data[at : at + rng.randrange(8)]
        elif at < len(data):
            data[at] = rng.choice((0, 1, 5, 6, 0x40, 0x7F, 0x80, 0xC0, 0xFF, rng.randrange(256), (data[at] + 1) & 0xFF))
    return bytes(data)


def test_mutated_datagrams() -> None:
    rng = random.Random(2661)
    good = datagrams()
    for datagram in good:
        take(datagram)
    for number in range(ROUNDS):
        if number % 10 == 0:
            datagram = rng.randbytes(rng.randrange(60))
        elif number % 10 == 1:
            flags = rng.choice((b"\xc8\x02", b"\x00\x02", b"\x4a\x02", b"\x48\x02"))
            datagram = flags + rng.randbytes(rng.randrange(60))
        else:
            datagram = mutate(rng, rng.choice(good))
        take(datagram)


def test_mutated_bodies() -> None:
    """Behind a header that is right, where more of them come through."""
    rng = random.Random(1999)
    good = bodies()
    seen = set()
    for _ in range(ROUNDS):
        message = read(mutate(rng, rng.choice(good)))
        seen.add("malformed" if message is None else message.fault and message.fault.error)
    # They reach all that can be wrong: lengths, values, what is missing, what is unknown, and nothing.
    assert {"malformed", None, 2, 3, 6, 8} <= seen


@given(st.binary(max_size=200), st.binary(max_size=10))
def test_any_octets(octets: bytes, key: bytes) -> None:
    take(octets)
    read(octets, key)
    read(b"\x80\x08\x00\x00\x00\x00\x00\x01" + octets, key)
    for attribute in (0, 33, 65535):
        try:
            value = secret.reveal(attribute, octets, key, VECTOR)
        except Malformed:
            continue
        assert len(value) <= len(octets) - 2


@pytest.mark.parametrize("body", bodies(), ids=lambda body: f"{len(body)} octets")
def test_truncated(body: bytes) -> None:
    """Cut off anywhere, with and without a header that says so."""
    whole = codec.control(1, 2, 3, 4, body)
    for size in range(len(whole)):
        take(whole[:size])
        if size >= 12:
            take(whole[:2] + u16(size) + whole[4:size])
            read(whole[12:size])
            read(whole[12:size], b"")


@pytest.mark.parametrize("attribute", [*Attr, 20, 59, 77, 1000, 65535])
def test_every_attribute_with_every_length(attribute: int) -> None:
    """Lengths from 0 to 80 octets and at the limit, in clear and hidden, with the M bit and without."""
    head = struct.pack("!HHHH", M | 8, 0, 0, Type.SCCRQ) + struct.pack("!HHH", M | 22, 0, 36) + VECTOR
    tail = struct.pack("!HHHH", M | 8, 0, Attr.ASSIGNED_TUNNEL_ID, 5)
    for size in [*range(81), 500, 1015, 1016, 1017]:
        octets = bytes((size + i) & 0xFF for i in range(size))
        hidden = secret.hide(attribute, octets, SECRET, VECTOR, b"")[:1017]
        for value, flags in ((octets, 0), (octets, M), (octets, H), (octets, M | H), (hidden, H), (hidden, M | H)):
            avp = struct.pack("!HHH", flags | 6 + len(value), 0, attribute) + value
            for key in (SECRET, b""):
                message = read(head + avp + tail, key)
                # It can be told where AVPs end, so what follows is read, and without the M bit all is well.
                assert message is not None
                assert message.avps.get(Attr.ASSIGNED_TUNNEL_ID)
                assert flags & M or message.fault is None


@pytest.mark.parametrize("attribute", list(Attr))
def test_every_attribute_with_a_length_that_lies(attribute: Attr) -> None:
    """Under the header's own 6 octets, and past the end."""
    head = struct.pack("!HHHH", M | 8, 0, 0, Type.SCCRQ)
    for left in range(12):
        for size in [*range(6), *range(7 + left, 90), 1023]:
            for flags in (0, M, H, M | H, 0x0400):
                avp = struct.pack("!HHH", flags | size, 0, attribute) + bytes(left)
                assert read(head + avp) is None
        for size in range(1, 6):
            assert read(head + struct.pack("!HHH", M | 6, 0, Attr.SEQUENCING_REQUIRED) + avp[:size]) is None


def chain(attribute: int, clear: bytes) -> bytes:
    """RFC 2661 section 4.3, for a length inside that is not the value's."""
    hidden = b""
    mask = md5(attribute.to_bytes(2, "big") + SECRET + VECTOR).digest()
    while len(hidden) < len(clear):
        block = bytes(a ^ b for a, b in zip(clear[len(hidden) : len(hidden) + 16], mask, strict=False))
        hidden += block
        mask = md5(SECRET + block).digest()
    return hidden


@pytest.mark.parametrize("inner", [*range(60), 1015, 1016, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
def test_length_inside_hidden_avps(inner: int) -> None:
    """accel-ppp trusted it."""
    head = struct.pack("!HHHH", M | 8, 0, 0, Type.ICRQ) + struct.pack("!HHH", M | 22, 0, 36) + VECTOR
    for size in range(48):
        hidden = chain(22, inner.to_bytes(2, "big") + b"x" * size)
        message = read(head + struct.pack("!HHH", M | H | 6 + len(hidden), 0, 22) + hidden)
        assert message is not None
        if inner <= size:
            assert message.avps[Attr.CALLING_NUMBER] == b"x" * inner
        else:
            assert Attr.CALLING_NUMBER not in message.avps
            assert message.fault is not None
            assert message.fault.error == 2


def test_every_data_header() -> None:
    """All flags, with all lengths of what follows."""
    for high in range(0x80):
        for size in range(2, 24):
            datagram = bytes((high, 2)) + bytes(i % 5 for i in range(size - 2))
            take(datagram)
            # A Length that is right, and one that is one too long.
            take(datagram[:2] + u16(size) + datagram[4:])
            take(datagram[:2] + u16(size + 1) + datagram[4:])


def test_many_avps() -> None:
    """As many as a datagram holds, none of which is the last of another."""
    head = struct.pack("!HHHH", M | 8, 0, 0, Type.HELLO)
    message = read(head + struct.pack("!HHH", 6, 0, 999) * 10_000)
    assert message is not None
    assert message.avps == {Attr.MESSAGE_TYPE: u16(Type.HELLO)}
