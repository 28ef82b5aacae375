"""Frames of PPPoE, by the sections of RFC 2516 and RFC 4638."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.cursor import Malformed
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
    max_payload,
    session_frame,
)

AC = bytes.fromhex("02ac00000001")
HOST = bytes.fromhex("020000000101")


def raw(payload: str, *, length: int | None = None, version: str = "11", ethertype: str = "8863") -> bytes:
    """A PADI around a payload in hexadecimal."""
    data = bytes.fromhex(payload)
    size = len(data) if length is None else length
    return BROADCAST + HOST + bytes.fromhex(f"{ethertype}{version}090000{size:04x}") + data


def test_appendix_b_padi() -> None:
    frame = raw("01010000")
    assert frame.hex() == "ffffffffffff0200000001018863" "1109" "0000" "0004" "01010000"
    assert decode_discovery(frame) == Discovery(BROADCAST, HOST, Code.PADI, 0, ((Tag.SERVICE_NAME, b""),))


def test_appendix_b_pado() -> None:
    pado = Discovery(HOST, AC, Code.PADO, 0, ((Tag.SERVICE_NAME, b""), (Tag.AC_NAME, b"Go RedBack - eshshesshoot")))
    frame = pado.encode()
    assert frame[:20].hex() == "020000000101" "02ac00000001" "8863" "1107" "0000" "0021"
    assert decode_discovery(frame) == pado


def test_appendix_b_lcp() -> None:
    frame = session_frame(AC, HOST, 0x1234, bytes.fromhex("c0210101000a0506deadbeef"))
    assert frame.hex() == "02ac00000001" "020000000101" "8864" "1100" "1234" "000c" "c0210101000a0506deadbeef"
    assert decode_session(frame) == (AC, HOST, 0x1234, bytes.fromhex("c0210101000a0506deadbeef"))


@given(
    code=st.sampled_from(Code),
    session_id=st.integers(0, 0xFFFF),
    tags=st.lists(st.tuples(st.integers(1, 0xFFFF), st.binary(max_size=40)), max_size=12),
    padding=st.integers(0, 46),
)
def test_all_codes_read_as_written(code: Code, session_id: int, tags: list[tuple[int, bytes]], padding: int) -> None:
    packet = Discovery(HOST, AC, code, session_id, tuple(tags))
    assert decode_discovery(packet.encode() + bytes(padding)) == packet


def test_section_4_length_beyond_the_frame_is_malformed() -> None:
    with pytest.raises(Malformed):
        decode_discovery(raw("01010000", length=5))
    with pytest.raises(Malformed):
        decode_session(session_frame(AC, HOST, 1, b"\xc0\x21abc")[:-1])


def test_section_4_what_lies_behind_length_is_padding() -> None:
    assert decode_discovery(raw("01010000" + "ff" * 42, length=4)).tags == ((Tag.SERVICE_NAME, b""),)
    assert decode_session(session_frame(AC, HOST, 1, b"\xc0\x21") + bytes(40)).ppp == b"\xc0\x21"


@pytest.mark.parametrize("version", ["10", "01", "21", "12", "00"])
def test_section_4_other_versions_and_types(version: str) -> None:
    with pytest.raises(Malformed):
        decode_discovery(raw("01010000", version=version))
    frame = bytearray(session_frame(AC, HOST, 1, b"\xc0\x21"))
    frame[14] = int(version, 16)
    with pytest.raises(Malformed):
        decode_session(bytes(frame))


def test_each_stage_has_its_ethertype() -> None:
    with pytest.raises(Malformed):
        decode_discovery(raw("01010000", ethertype="8864"))
    with pytest.raises(Malformed):
        decode_session(raw("01010000"))


def test_section_6_session_code_is_zero() -> None:
    frame = bytearray(session_frame(AC, HOST, 1, b"\xc0\x21"))
    frame[15] = 0xA7
    with pytest.raises(Malformed):
        decode_session(bytes(frame))


@pytest.mark.parametrize("payload", ["01", "0101", "010100", "01010001", "0101000461", "0101000001030004414243"])
def test_section_5_tag_cut_short(payload: str) -> None:
    with pytest.raises(Malformed):
        decode_discovery(raw(payload))


def test_every_prefix_of_a_frame_is_malformed_or_shorter() -> None:
    frame = Discovery(AC, HOST, Code.PADR, 0, ((Tag.SERVICE_NAME, b"isp"), (Tag.HOST_UNIQ, b"abcd"))).encode()
    for end in range(len(frame)):
        with pytest.raises(Malformed):
            decode_discovery(frame[:end])


def test_appendix_a_end_of_list_ends_the_list() -> None:
    packet = decode_discovery(raw("01010000" "00000000" "0103000141"))
    assert packet.tags == ((Tag.SERVICE_NAME, b""),)
    # What is behind it need not even be tags.
    assert decode_discovery(raw("01010000" "00000000" "ffffff")).tags == packet.tags


def test_section_5_unknown_tags_and_order() -> None:
    packet = decode_discovery(raw("7fff0003010203" "0103000141" "01010002" "6162" "01010000"))
    assert packet.first(Tag.HOST_UNIQ) == b"A"
    assert packet.all(Tag.SERVICE_NAME) == [b"ab", b""]
    assert packet.first(Tag.RELAY_SESSION_ID) is None


def test_rfc4638_section_4_value() -> None:
    assert max_payload(b"\x05\xdc") == 1500
    assert [max_payload(value) for value in (None, b"", b"\x05", b"\x05\xdc\x00")] == [0, 0, 0, 0]


def test_tr101_access_line() -> None:
    line = AccessLine(b"dslam1 atm 1/1:8.35", b"line 7")
    value = encode_access_line(line)
    assert value[:4] == bytes.fromhex("00000de9")
    assert access_line([value]) == line
    assert access_line([]) == AccessLine()
    # Sub-tags of other kinds stand in between, as an access node that tells line rates has them.
    assert access_line([value + bytes.fromhex("810400000400") + b"\xfe\x00"]) == line


def test_tr101_other_vendors_are_ignored() -> None:
    assert access_line([b"\x00\x00\x00\x09\x01\xff", b"", b"\x00\x0d\xe9"]) == AccessLine()


def test_tr101_the_access_node_has_the_last_word() -> None:
    forged = encode_access_line(AccessLine(b"another's line", b"another"))
    assert access_line([forged, encode_access_line(AccessLine(b"mine", b""))]) == AccessLine(b"mine", b"")


@pytest.mark.parametrize("tail", [b"\x01", b"\x01\x05abcd", b"\x02\xff", b"\x01" + bytes([64]) + b"x" * 64])
def test_tr101_nested_lengths(tail: bytes) -> None:
    with pytest.raises(Malformed):
        access_line([bytes.fromhex("00000de9") + tail])
