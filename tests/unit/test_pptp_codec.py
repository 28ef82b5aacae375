"""PPTP's control messages: every layout, every length, and the stream that they come in."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.cursor import Malformed
from npppy.pptp import codec
from npppy.pptp.codec import LAYOUTS, LENGTHS, MAX_LEN, Type

#: RFC 2637 sections 2.1 to 2.15, counted by hand.
OCTETS = {
    Type.START_REQUEST: 156,
    Type.START_REPLY: 156,
    Type.STOP_REQUEST: 16,
    Type.STOP_REPLY: 16,
    Type.ECHO_REQUEST: 16,
    Type.ECHO_REPLY: 20,
    Type.OUTGOING_CALL_REQUEST: 168,
    Type.OUTGOING_CALL_REPLY: 32,
    Type.INCOMING_CALL_REQUEST: 220,
    Type.INCOMING_CALL_REPLY: 24,
    Type.INCOMING_CALL_CONNECTED: 28,
    Type.CALL_CLEAR_REQUEST: 16,
    Type.CALL_DISCONNECT_NOTIFY: 148,
    Type.WAN_ERROR_NOTIFY: 40,
    Type.SET_LINK_INFO: 24,
}

#: As pptp-linux begins, and as a PAC answers; the texts are shorter here than they are there.
START_REQUEST = (
    bytes.fromhex("009c 0001 1a2b3c4d 0001 0000 0100 0000 00000003 00000003 ffff 0001")
    + b"local".ljust(64, b"\0")
    + b"cananian".ljust(64, b"\0")
)
OUTGOING_CALL_REPLY = bytes.fromhex(
    "0020 0001 1a2b3c4d 0008 0000 1234 0007 01 00 0000 00989680 0040 0000 00000000"
)


def header(length: int, kind: int = 1, magic: int = codec.MAGIC, number: int = 5) -> bytes:
    return struct.pack("!HHIHH", length, kind, magic, number, 0)


def test_octets() -> None:
    assert LENGTHS == OCTETS


def test_from_the_wire() -> None:
    message = codec.decode(START_REQUEST)
    assert message is not None
    assert message.type is Type.START_REQUEST
    assert message.numbers == {
        "version": 0x0100,
        "framing": 3,
        "bearer": 3,
        "max_channels": 0xFFFF,
        "firmware": 1,
    }
    assert (message.text("host_name"), message.text("vendor_name")) == (b"local", b"cananian")


def test_to_the_wire() -> None:
    """The speed has all of its 32 bits, in their order."""
    values = {"call_id": 0x1234, "peer_call_id": 7, "result": 1, "speed": 10_000_000, "window": 64}
    assert codec.encode(Type.OUTGOING_CALL_REPLY, **values) == OUTGOING_CALL_REPLY


def test_texts_have_their_place() -> None:
    octets = codec.encode(Type.START_REPLY, host_name=b"h" * 200, vendor_name=b"v")
    assert octets[28:92] == b"h" * 63 + b"\0"
    assert octets[92:] == b"v" + bytes(63)
    with pytest.raises(TypeError):
        codec.encode(Type.STOP_REPLY, speed=1)


@given(st.sampled_from(list(Type)), st.data())
def test_round_trip(kind: Type, data: st.DataObject) -> None:
    numbers, texts = {}, {}
    for name, size in LAYOUTS[kind]:
        if size > 4:
            texts[name] = data.draw(st.binary(max_size=size - 1)).rstrip(b"\0")
        elif name:
            numbers[name] = data.draw(st.integers(0, (1 << 8 * size) - 1))
    octets = codec.encode(kind, **numbers, **texts)
    assert codec.split(octets, 0) == len(octets) == LENGTHS[kind]
    message = codec.decode(octets)
    assert message is not None
    assert message.type is kind
    assert message.numbers == numbers
    assert {name: value.rstrip(b"\0") for name, value in message.texts.items()} == texts


def test_reserved_fields_are_not_looked_at() -> None:
    octets = bytearray(codec.encode(Type.CALL_CLEAR_REQUEST, call_id=3))
    octets[10:12] = octets[14:16] = b"\xff\xff"
    message = codec.decode(bytes(octets))
    assert message is not None
    assert message.numbers == {"call_id": 3}


@pytest.mark.parametrize("kind", list(Type))
def test_every_wrong_length(kind: Type) -> None:
    for length in range(MAX_LEN + 8):
        octets = header(length, number=kind) + bytes(MAX_LEN)
        if length == OCTETS[kind]:
            assert codec.split(octets, 0) == length
        else:
            with pytest.raises(Malformed):
                codec.split(octets, 0)


@pytest.mark.parametrize(
    "octets",
    [
        header(7),
        header(11),
        header(0),
        header(MAX_LEN + 1, number=99),
        header(0xFFFF, number=99),
        header(16, magic=0x4D3C2B1A),
        header(16, kind=0),
        header(16, kind=3),
        header(7, kind=2),
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_out_of_step(octets: bytes) -> None:
    with pytest.raises(Malformed):
        codec.split(octets, 0)


@pytest.mark.parametrize(
    "octets", [header(12, number=99), header(MAX_LEN, number=16), header(8, kind=2), header(60, kind=2)]
)
def test_unknown_ones(octets: bytes) -> None:
    """Neither a type that is not defined nor a Management Message brings the stream out of step."""
    size = struct.unpack("!H", octets[:2])[0]
    octets = octets.ljust(size, b"x")[:size]
    assert codec.split(octets, 0) == size
    assert codec.decode(octets) is None


@pytest.mark.parametrize("kind", list(Type))
def test_not_there_yet(kind: Type) -> None:
    octets = codec.encode(kind)
    for size in range(len(octets)):
        assert codec.split(octets[:size], 0) == 0
    with pytest.raises(Malformed):
        codec.decode(octets[:-1])


@given(st.lists(st.sampled_from(list(Type)), max_size=8), st.data())
def test_a_stream(kinds: list[Type], data: st.DataObject) -> None:
    """Messages come out as they went in, wherever the stream is cut."""
    stream = b"".join(map(codec.encode, kinds))
    rest, found = b"", []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        rest, stream = rest + stream[:size], stream[size:]
        at = 0
        while end := codec.split(rest, at):
            message = codec.decode(rest[at:end])
            assert message is not None
            found.append(message.type)
            at = end
        rest = rest[at:]
    assert found == kinds
    assert not rest
