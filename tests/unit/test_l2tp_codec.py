"""Messages of L2TP, by the sections of RFC 2661."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.cursor import Malformed
from npppy.l2tp import codec, secret
from npppy.l2tp.codec import Attr, Control, Data, Fault, Hiding, Message, Type, u16, u32

SECRET = b"shared"
VECTOR = bytes(range(100, 116))
M, H = 0x8000, 0x4000


def avp(attribute: int, value: bytes = b"", flags: int = M, vendor: int = 0) -> bytes:
    return struct.pack("!HHH", flags | 6 + len(value), vendor, attribute) + value


def body(kind: int, *avps: bytes, flags: int = M) -> bytes:
    return avp(0, u16(kind), flags) + b"".join(avps)


def read(kind: int, *avps: bytes, key: bytes = b"", flags: int = M) -> Message:
    return codec.decode_message(body(kind, *avps, flags=flags), key)


# Section 3.1: control messages.


def test_control() -> None:
    datagram = codec.control(0x1234, 0x5678, 1, 2, body(Type.HELLO))
    assert datagram.hex() == "c802" "0014" "1234" "5678" "0001" "0002" "8008" "0000" "0000" "0006"
    assert codec.decode_control(datagram) == Control(0x1234, 0x5678, 1, 2, datagram[12:])


def test_zlb() -> None:
    datagram = codec.control(7, 0, 65535, 3, b"")
    assert len(datagram) == 12
    assert codec.decode_control(datagram) == Control(7, 0, 65535, 3, b"")


def test_control_is_padded() -> None:
    assert codec.decode_control(codec.control(7, 0, 1, 3, b"") + bytes(9)) == Control(7, 0, 1, 3, b"")


@pytest.mark.parametrize("flags", [0xC802 | 1 << bit for bit in (13, 12, 10, 8, 7, 6, 5, 4)])
def test_control_reserved_bits_and_priority_are_ignored(flags: int) -> None:
    datagram = struct.pack("!HHHHHH", flags, 12, 1, 2, 3, 4)
    assert codec.decode_control(datagram) == Control(1, 2, 3, 4, b"")


@pytest.mark.parametrize(
    ("flags", "length", "why"),
    [
        (0xC801, 12, "version"),
        (0xC803, 12, "version"),
        (0xC800, 12, "version"),
        (0x4802, 12, "flags"),
        (0x8802, 12, "flags"),
        (0xC002, 12, "flags"),
        (0xCA02, 12, "flags"),
        (0xC802, 13, "length"),
        (0xC802, 11, "length"),
        (0xC802, 0, "length"),
        (0xC802, 65535, "length"),
    ],
)
def test_control_malformed(flags: int, length: int, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        codec.decode_control(struct.pack("!HHHHHH", flags, length, 1, 2, 3, 4))


def test_control_short() -> None:
    datagram = codec.control(1, 2, 3, 4, body(Type.HELLO))
    for size in range(len(datagram)):
        with pytest.raises(Malformed):
            codec.decode_control(datagram[:size])


# Section 3.1: data messages.


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("0002 000a 000b", Data(10, 11, -1, 6, 9)),
        ("4002 000b 000a 000b", Data(10, 11, -1, 8, 11)),
        ("0802 000a 000b 0005 ffff", Data(10, 11, 5, 10, 13)),
        ("4802 000f 000a 000b ffff 0000", Data(10, 11, 0xFFFF, 12, 15)),
        ("0202 000a 000b 0000", Data(10, 11, -1, 8, 11)),
        ("0202 000a 000b 0002 dead", Data(10, 11, -1, 10, 13)),
        ("4a02 0013 000a 000b 0001 0000 0002 dead", Data(10, 11, 1, 16, 19)),
        # Priority, and bits that are reserved.
        ("0102 000a 000b", Data(10, 11, -1, 6, 9)),
        ("34f2 000a 000b", Data(10, 11, -1, 6, 9)),
    ],
)
def test_data(header: str, expected: Data) -> None:
    frame = bytes.fromhex("c02109")
    datagram = bytes.fromhex(header) + frame
    data = codec.decode_data(datagram)
    assert data == expected
    assert datagram[data.start : data.end] == frame


def test_data_behind_length_is_padding() -> None:
    assert codec.decode_data(bytes.fromhex("4002 000a 0001 0002 c021 000000")) == Data(1, 2, -1, 8, 10)


def test_data_without_a_frame() -> None:
    assert codec.decode_data(bytes.fromhex("4002 0008 0001 0002")) == Data(1, 2, -1, 8, 8)
    assert codec.decode_data(bytes.fromhex("4202 000e 0001 0002 0004 aaaaaaaa 00")) == Data(1, 2, -1, 14, 14)


@pytest.mark.parametrize(
    ("datagram", "why"),
    [
        ("", "short"),
        ("0002 0001 00", "short"),
        ("0001 0001 0002", "version"),
        ("0003 0001 0002", "version"),
        ("8002 0001 0002", "version"),
        ("4002 0007 0001 0002", "short"),
        ("4002 0000 0001 0002", "short"),
        ("4002 0009 0001 0002", "length"),
        ("4002 0006 0001", "short"),
        ("0802 0001 0002 0003 00", "short"),
        ("4802 000b 0001 0002 0003 0004", "short"),
        ("0202 0001 0002 00", "short"),
        ("0202 0001 0002 0001", "offset"),
        ("0202 0001 0002 ffff 0000", "offset"),
        # npppd compares Offset Size with the whole message: it must fit in what is left.
        ("4202 000e 0001 0002 0005 aaaaaaaa", "offset"),
    ],
)
def test_data_malformed(datagram: str, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        codec.decode_data(bytes.fromhex(datagram))


@pytest.mark.parametrize("sequenced", [False, True])
def test_data_header(sequenced: bool) -> None:
    header = bytearray(codec.data_header(0x1234, 0x5678, sequenced))
    assert header.hex() == ("4802 0000 1234 5678 0000 0000" if sequenced else "4002 0000 1234 5678").replace(" ", "")
    frame = b"\xff\x03\xc0\x21\x01"
    struct.pack_into("!H", header, 2, len(header) + len(frame))
    if sequenced:
        struct.pack_into("!H", header, 8, 513)
    data = codec.decode_data(bytes(header) + frame)
    assert data == Data(0x1234, 0x5678, 513 if sequenced else -1, len(header), len(header) + 5)


# Section 4.4: each AVP.


class Row(NamedTuple):
    """An AVP as the RFC has it: its M bit, whether it may be hidden, and the lengths that its value may have."""

    mandatory: bool
    hideable: bool
    sizes: range


ANY = range(1018)


def at_least(size: int) -> range:
    return range(size, 1018)


def just(size: int) -> range:
    return range(size, size + 1)


#: Read from section 4.4 again; Length there counts 6 octets of header.
TABLE = {
    0: Row(True, False, just(2)),
    1: Row(True, False, at_least(2)),
    2: Row(True, False, just(2)),
    3: Row(True, True, just(4)),
    4: Row(True, True, just(4)),
    5: Row(False, False, just(8)),
    6: Row(False, True, just(2)),
    7: Row(True, False, ANY),
    8: Row(False, True, ANY),
    9: Row(True, True, just(2)),
    10: Row(True, False, just(2)),
    11: Row(True, True, at_least(1)),
    12: Row(True, False, at_least(3)),
    13: Row(True, True, just(16)),
    14: Row(True, True, just(2)),
    15: Row(True, True, just(4)),
    16: Row(True, True, just(4)),
    17: Row(True, True, just(4)),
    18: Row(True, True, just(4)),
    19: Row(True, True, just(4)),
    21: Row(True, True, ANY),
    22: Row(True, True, ANY),
    23: Row(True, True, ANY),
    24: Row(True, True, just(4)),
    25: Row(False, True, just(4)),
    26: Row(False, True, ANY),
    27: Row(False, True, ANY),
    28: Row(False, True, ANY),
    29: Row(False, True, just(2)),
    30: Row(False, True, ANY),
    31: Row(False, True, at_least(1)),
    32: Row(False, True, just(2)),
    33: Row(False, True, ANY),
    34: Row(True, True, just(26)),
    35: Row(True, True, just(10)),
    36: Row(True, False, ANY),
    37: Row(False, True, ANY),
    38: Row(False, True, just(4)),
    39: Row(True, False, just(0)),
    # RFC 3145.
    46: Row(False, True, at_least(5)),
}
#: Of other RFCs: noted, whatever they hold.
NOTED = {40, 41, 42, 43, 44, 45, 47, 48, 49, 50, 51, 52, 53, 56, 57, 76, 98}
SIZES = [*range(81), 255, 1016, 1017]


def good(attribute: int, size: int) -> bool:
    if attribute in NOTED:
        return True
    return size in TABLE[attribute].sizes and (attribute, size) != (1, 3)


def test_table_is_whole() -> None:
    assert set(Attr) == set(codec.RULES) == set(TABLE) | NOTED
    for attribute, row in TABLE.items():
        assert codec.RULES[attribute][:2] == row[:2], attribute
    for attribute in NOTED:
        assert not codec.RULES[attribute].mandatory


@pytest.mark.parametrize("attribute", [attribute for attribute in Attr if attribute != Attr.MESSAGE_TYPE])
def test_lengths(attribute: Attr) -> None:
    """A wrong one is a fault under the M bit; without it the AVP is ignored, and the message stands (section 7.1)."""
    for size in SIZES:
        value = b"\x01" * size
        for flags in (M, 0):
            message = read(Type.HELLO, avp(attribute, value, flags), avp(Attr.TIE_BREAKER, b"12345678", 0))
            if good(attribute, size):
                assert message.fault is None
                assert message.avps[attribute] == value
            else:
                assert message.avps.get(attribute, b"12345678") == b"12345678"
                if flags:
                    assert message.fault is not None
                    assert message.fault[:3] == (attribute, 0, 2)
                    assert f"length {size}" in message.fault.text
                else:
                    assert message.fault is None
            assert Attr.TIE_BREAKER in message.avps


@pytest.mark.parametrize("attribute", [a for a in Attr if a not in (Attr.MESSAGE_TYPE, Attr.RANDOM_VECTOR)])
def test_lengths_hidden(attribute: Attr) -> None:
    """The length that counts is the one inside; also of those that must not be hidden, which does no harm."""
    for size in range(81):
        value = b"\x01" * size
        hidden = avp(attribute, secret.hide(attribute, value, SECRET, VECTOR, bytes(size % 5)), M | H)
        message = read(Type.HELLO, avp(36, VECTOR), hidden, key=SECRET)
        if good(attribute, size):
            assert message.fault is None
            assert message.avps[attribute] == value
        else:
            assert message.fault is not None
            assert message.fault[:3] == (attribute, 0, 2)
            assert attribute not in message.avps


@pytest.mark.parametrize("attribute", [Attr.ASSIGNED_TUNNEL_ID, Attr.ASSIGNED_SESSION_ID])
def test_identifiers_are_not_0(attribute: Attr) -> None:
    message = read(Type.STOP_CCN, avp(attribute, u16(0)))
    assert message.fault is not None
    assert message.fault[:3] == (attribute, 0, 3)
    assert attribute not in message.avps
    assert read(Type.STOP_CCN, avp(attribute, u16(0), 0)).fault is None


# Sections 4.1 and 4.2: unknown AVPs.


@pytest.mark.parametrize(
    ("attribute", "vendor", "flags"),
    [(20, 0, 0), (77, 0, 0), (59, 0, 0), (65535, 0, 0), (1, 9, 0), (9, 311, 0), (1, 3561, 0)]
    + [(Attr.HOST_NAME, 0, 1 << bit) for bit in (10, 11, 12, 13)],
)
def test_unknown(attribute: int, vendor: int, flags: int) -> None:
    """A vendor's, one that nobody knows, or one with a reserved bit: the M bit decides."""
    after = avp(Attr.HOST_NAME, b"lac")
    message = read(Type.SCCCN, avp(attribute, b"\x00\x01", flags, vendor), after)
    assert message.fault is None
    assert message.avps == {Attr.MESSAGE_TYPE: u16(Type.SCCCN), Attr.HOST_NAME: b"lac"}
    message = read(Type.SCCCN, avp(attribute, b"\x00\x01", flags | M, vendor), after)
    assert message.fault is not None
    assert message.fault[:3] == (attribute, vendor, 8)
    # Section 4.4.2: the attribute in human readable text.
    assert f"attribute {attribute}" in message.fault.text
    assert message.text(Attr.HOST_NAME, "") == "lac"


def test_unknown_and_hidden() -> None:
    """It cannot even be told what is inside."""
    message = read(Type.SCCCN, avp(200, b"\x00\x01", H), key=SECRET)
    assert message.fault is None
    message = read(Type.SCCCN, avp(200, b"\x00\x01", M | H), key=SECRET)
    assert message.fault == Fault(200, 0, 8, "attribute 200: unknown")


@pytest.mark.parametrize("attribute", sorted(NOTED))
def test_other_rfcs_are_no_unknown_avps(attribute: int) -> None:
    assert read(Type.ICRQ, avp(14, u16(1)), avp(attribute, b"anything")).fault is None


def test_first_fault_counts() -> None:
    message = read(Type.SCCRQ, avp(9, b""), avp(200), avp(10, b""))
    assert message.fault is not None
    assert message.fault.attribute == 9


def test_first_of_a_kind_counts() -> None:
    message = read(Type.ICRQ, avp(14, u16(5)), avp(14, u16(6)), avp(22, b"12"), avp(22, b"34"))
    assert message.u16(Attr.ASSIGNED_SESSION_ID, 0) == 5
    assert message.text(Attr.CALLING_NUMBER, "") == "12"


def test_what_is_ignored_is_not_the_first() -> None:
    message = read(Type.ICRQ, avp(14, b"\x05", 0), avp(14, u16(6)))
    assert message.fault is None
    assert message.u16(Attr.ASSIGNED_SESSION_ID, 0) == 6


# Section 4.1: where AVPs end.


@pytest.mark.parametrize("size", range(6))
def test_avp_length_under_its_header(size: int) -> None:
    """accel-ppp took the difference for a number without a sign."""
    for flags in (0, M, H, M | H):
        with pytest.raises(Malformed):
            read(Type.SCCRQ, struct.pack("!HHH", flags | size, 0, 7) + b"name")


@pytest.mark.parametrize("size", [8, 9, 100, 1023])
def test_avp_goes_beyond_the_message(size: int) -> None:
    for flags in (0, M):
        with pytest.raises(Malformed):
            read(Type.SCCRQ, struct.pack("!HHH", flags | size, 0, 7) + b"n")


def test_truncated() -> None:
    whole = body(Type.SCCRQ, avp(2, b"\x01\x00"), avp(7, b"lac"), avp(3, u32(3)), avp(9, u16(77)))
    ends = {8, 16, 25, 35, 43}
    for size in range(len(whole) + 1):
        if size in ends:
            codec.decode_message(whole[:size], b"")
        else:
            with pytest.raises(Malformed):
                codec.decode_message(whole[:size], b"")


# Section 4.4.1: the message type.


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        avp(7, b"lac"),
        avp(7, b"lac") + body(Type.SCCRQ),
        avp(0, b"\x01"),
        avp(0, b"\x00\x00\x01"),
        avp(0),
        avp(0, u16(1), M | H),
        avp(0, u16(1), M | 0x0400),
        avp(0, u16(1), M, 9),
    ],
)
def test_message_type_comes_first(octets: bytes) -> None:
    with pytest.raises(Malformed):
        codec.decode_message(octets, SECRET)


@pytest.mark.parametrize("kind", [0, 5, 13, 17, 20, 255, 65535])
def test_unknown_message_type(kind: int) -> None:
    """Under its M bit the tunnel must be cleared; without, the message may be ignored, with all that is in it."""
    message = read(kind, avp(200))
    assert (message.type, message.mandatory, message.name) == (kind, True, f"type {kind}")
    assert message.fault == Fault(0, 0, 8, f"unknown message type {kind}")
    message = read(kind, avp(200), flags=0)
    assert (message.type, message.mandatory, message.fault) == (kind, False, None)


@pytest.mark.parametrize("kind", list(Type))
def test_known_message_type(kind: Type) -> None:
    message = read(kind, flags=0)
    assert message.type == kind
    assert message.name == ("StopCCN" if kind is Type.STOP_CCN else kind.name)


# Section 4.3: hidden AVPs.


def test_hidden() -> None:
    hidden = secret.hide(22, b"0123", SECRET, VECTOR, b"pad")
    message = read(Type.ICRQ, avp(36, VECTOR), avp(14, u16(3)), avp(22, hidden, M | H), key=SECRET)
    assert message.fault is None
    assert message.text(Attr.CALLING_NUMBER, "") == "0123"


def test_the_nearest_random_vector_counts() -> None:
    other = bytes(5)
    message = read(
        Type.ICRQ,
        avp(36, VECTOR),
        avp(14, secret.hide(14, u16(3), SECRET, VECTOR, b""), M | H),
        avp(36, other),
        avp(22, secret.hide(22, b"0123", SECRET, other, b""), M | H),
        avp(21, secret.hide(21, b"99", SECRET, other, b""), M | H),
        key=SECRET,
    )
    assert message.fault is None
    assert message.u16(Attr.ASSIGNED_SESSION_ID, 0) == 3
    assert message.text(Attr.CALLING_NUMBER, "") == "0123"
    assert message.text(Attr.CALLED_NUMBER, "") == "99"


@pytest.mark.parametrize(
    ("avps", "key", "error"),
    [
        ([avp(36, VECTOR)], b"", 8),
        ([], SECRET, 3),
        ([], b"", 8),
        ([avp(36, VECTOR)], b"another", 2),
        ([avp(36, VECTOR[::-1])], SECRET, 2),
    ],
)
def test_cannot_be_revealed(avps: list[bytes], key: bytes, error: int) -> None:
    """No secret, another one, no vector, another one."""
    hidden = secret.hide(22, b"0123", SECRET, VECTOR, b"")
    message = read(Type.ICRQ, *avps, avp(14, u16(3)), avp(22, hidden, M | H), key=key)
    assert message.fault is not None
    assert message.fault[:3] == (22, 0, error)
    assert Attr.CALLING_NUMBER not in message.avps
    message = read(Type.ICRQ, *avps, avp(14, u16(3)), avp(22, hidden, H), key=key)
    assert message.fault is None
    assert Attr.CALLING_NUMBER not in message.avps


def test_random_vector_cannot_be_hidden() -> None:
    hidden = secret.hide(36, b"new", SECRET, VECTOR, b"")
    message = read(Type.HELLO, avp(36, VECTOR), avp(36, hidden, M | H), key=SECRET)
    assert message.fault is not None
    assert message.fault[:3] == (36, 0, 3)
    message = read(
        Type.HELLO,
        avp(36, VECTOR),
        avp(36, hidden, H),
        avp(8, secret.hide(8, b"x", SECRET, VECTOR, b""), H),
        key=SECRET,
    )
    assert message.fault is None
    assert message.avps[Attr.VENDOR_NAME] == b"x"


# Section 6: what must be in messages.


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [
        (Type.SCCRQ, Attr.ASSIGNED_TUNNEL_ID),
        (Type.SCCRP, Attr.ASSIGNED_TUNNEL_ID),
        (Type.ICRQ, Attr.ASSIGNED_SESSION_ID),
        (Type.ICRP, Attr.ASSIGNED_SESSION_ID),
        (Type.OCRQ, Attr.ASSIGNED_SESSION_ID),
        (Type.OCRP, Attr.ASSIGNED_SESSION_ID),
    ],
)
def test_vital(kind: Type, attribute: Attr) -> None:
    """Nothing comes of a message that does not say what to call its sender; the rest one can do without."""
    message = read(kind, avp(7, b"lac"))
    assert message.fault is not None
    assert message.fault[:3] == (attribute, 0, 6)
    assert "missing" in message.fault.text
    # One that is wrong, and may be ignored, is missing.
    assert read(kind, avp(attribute, b"\x01", 0)).fault == message.fault
    assert read(kind, avp(attribute, u16(1))).fault is None


@pytest.mark.parametrize(
    "kind", [Type.SCCCN, Type.STOP_CCN, Type.HELLO, Type.OCCN, Type.ICCN, Type.CDN, Type.WEN, Type.SLI]
)
def test_nothing_vital(kind: Type) -> None:
    assert read(kind).fault is None


def test_missing() -> None:
    """What section 6 wants is told, whether it is vital or not."""
    message = read(Type.SCCRQ, avp(9, u16(1)), avp(7))
    assert message.missing() == [Attr.PROTOCOL_VERSION, Attr.FRAMING_CAPABILITIES]
    assert read(Type.ICCN).missing() == [Attr.TX_CONNECT_SPEED, Attr.FRAMING_TYPE]
    assert read(Type.CDN).missing() == [Attr.RESULT_CODE, Attr.ASSIGNED_SESSION_ID]
    assert len(read(Type.OCRQ).missing()) == 7
    assert read(Type.HELLO).missing() == []
    assert read(99).missing() == []
    assert set(codec.REQUIRED) == set(Type)


# Section 4.4.2: results.


def test_result_code() -> None:
    assert codec.result_code(3) == b"\x00\x03"
    assert codec.result_code(2, 8) == b"\x00\x02\x00\x08"
    assert codec.result_code(2, 8, "no ☎") == b"\x00\x02\x00\x08no \xe2\x98\x8e"
    assert codec.result_code(1, message="bye") == b"\x00\x01\x00\x00bye"


def test_result_text_is_cut_between_characters() -> None:
    value = codec.result_code(2, 6, "ü" * 300)
    assert value[4:].decode() == "ü" * 127
    assert codec.result_code(2, 6, "a\udcff")[4:] == b"a?"


@pytest.mark.parametrize("kind", [Type.CDN, Type.STOP_CCN])
def test_result_code_of_windows_2000(kind: Type) -> None:
    """A number of 4 octets, as npppd has met it."""
    assert read(kind, avp(1, u32(3))).avps[Attr.RESULT_CODE] == u16(3)
    assert read(kind, avp(1, u16(2) + u16(6))).avps[Attr.RESULT_CODE] == u16(2) + u16(6)
    assert read(kind, avp(1, u16(0) + u16(6) + b"x")).avps[Attr.RESULT_CODE] == u16(0) + u16(6) + b"x"


# What a message is asked for.


def test_accessors() -> None:
    message = read(Type.ICCN, avp(24, u32(1_000_000_000)), avp(29, u16(3), 0), avp(30, b"\xffu\n", 0))
    assert message.u32(Attr.TX_CONNECT_SPEED, 0) == 1_000_000_000
    assert message.u32(Attr.RX_CONNECT_SPEED, 5) == 5
    assert message.u16(Attr.PROXY_AUTHEN_TYPE, 0) == 3
    assert message.u16(Attr.PROXY_AUTHEN_ID, 4) == 4
    # Not as long as asked for.
    assert message.u16(Attr.TX_CONNECT_SPEED, 6) == 6
    assert message.u32(Attr.PROXY_AUTHEN_TYPE, 6) == 6
    assert message.text(Attr.PROXY_AUTHEN_NAME, "") == "\ufffdu\n"
    assert message.text(Attr.CALLING_NUMBER, "-") == "-"


# Writing.


def test_encode() -> None:
    octets = codec.encode_message(Type.SCCRQ, [(Attr.HOST_NAME, b"lns"), (Attr.TIE_BREAKER, b"12345678")])
    assert octets == body(Type.SCCRQ, avp(7, b"lns"), avp(5, b"12345678", 0))


def test_encode_mandatory_bits() -> None:
    for attribute, row in TABLE.items():
        octets = codec.encode_message(Type.HELLO, [(Attr(attribute), b"v")])
        assert octets[8:] == avp(attribute, b"v", M if row.mandatory else 0)


def padded(attribute: int, value: bytes, vector: bytes) -> bytes:
    return secret.hide(attribute, value, SECRET, vector, b"padding")


def test_encode_hidden() -> None:
    hiding = Hiding(VECTOR, padded)
    octets = codec.encode_message(
        Type.SCCRQ, [(Attr.HOST_NAME, b"lns"), (Attr.ASSIGNED_TUNNEL_ID, u16(9)), (Attr.CHALLENGE, b"c")], hiding
    )
    assert octets == body(
        Type.SCCRQ,
        avp(7, b"lns"),
        avp(36, VECTOR),
        avp(9, secret.hide(9, u16(9), SECRET, VECTOR, b"padding"), M | H),
        avp(11, secret.hide(11, b"c", SECRET, VECTOR, b"padding"), M | H),
    )


def test_encode_hides_all_that_may_be() -> None:
    """And needs no Random Vector where there is nothing."""
    hiding = Hiding(VECTOR, padded)
    for attribute, row in TABLE.items():
        octets = codec.encode_message(Type.SLI, [(Attr(attribute), b"v")], hiding)
        flags = M if row.mandatory else 0
        if row.hideable:
            hidden = avp(attribute, padded(attribute, b"v", VECTOR), flags | H)
            assert octets[8:] == avp(36, VECTOR) + hidden
        else:
            assert octets[8:] == avp(attribute, b"v", flags)


def test_encode_too_long() -> None:
    whole = codec.encode_message(Type.SCCRQ, [(Attr.HOST_NAME, bytes(1017))])
    assert codec.decode_message(whole, b"").avps[Attr.HOST_NAME] == bytes(1017)
    with pytest.raises(ValueError, match="attribute 7"):
        codec.encode_message(Type.SCCRQ, [(Attr.HOST_NAME, bytes(1018))])
    with pytest.raises(ValueError, match="attribute 22"):
        codec.encode_message(Type.ICRQ, [(Attr.CALLING_NUMBER, bytes(1010))], Hiding(VECTOR, padded))


values = st.binary(max_size=60)


@given(
    st.sampled_from(list(Type)),
    st.dictionaries(st.sampled_from([a for a in Attr if codec.RULES[a].least == 0 and a not in (36, 39)]), values),
    st.booleans(),
)
def test_decode_undoes_encode(kind: Type, avps: dict[Attr, bytes], hidden: bool) -> None:
    hiding = Hiding(VECTOR, padded) if hidden else None
    message = codec.decode_message(codec.encode_message(kind, avps.items(), hiding), SECRET)
    assert message.type == kind
    assert message.mandatory
    found = dict(message.avps)
    found.pop(Attr.RANDOM_VECTOR, None)
    assert found == {Attr.MESSAGE_TYPE: u16(kind), **avps}


# Dumps.


def test_shown() -> None:
    assert codec.shown(codec.control(1, 2, 3, 4, avp(0, u16(6)))) == (
        "0000  c8 02 00 14 00 01 00 02 00 03 00 04 80 08 00 00\n0010  00 00 00 06"
    )
    assert codec.shown(b"") == ""


def test_shown_without_passwords() -> None:
    """Neither what a LAC has heard, nor what a host says."""
    told = codec.encode_message(Type.ICCN, [(Attr.PROXY_AUTHEN_RESPONSE, b"pass"), (Attr.PROXY_AUTHEN_ID, u16(9))])
    dump = codec.shown(codec.control(1, 2, 3, 4, told))
    assert dump.endswith("00 0a 00 00 00 21 ** ** ** ** 00 08\n0020  00 00 00 20 00 09")
    # Cut off within the password.
    dump = codec.shown(codec.control(1, 2, 3, 4, told[:-10]))
    assert dump.endswith("00 0a 00 00 00 21 ** **")
    pap = b"\xc0\x23\x01\x01\x00\x0b\x01u\x04pass"
    for frame in (pap, b"\xff\x03" + pap):
        dump = codec.shown(b"\x00\x02\x00\x01\x00\x02" + frame)
        assert dump.replace("\n0010 ", "").endswith("c0 23" + " **" * 11)
    lcp = codec.shown(bytes.fromhex("0002 0001 0002 c021 0101"))
    assert lcp == "0000  00 02 00 01 00 02 c0 21 01 01"
    # What cannot be read may be anything.
    assert set(codec.shown(b"\x00\x03" + pap)[6:]) == {"*", " "}
