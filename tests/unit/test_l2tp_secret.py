"""Hidden AVPs and tunnel authentication, by RFC 2661 sections 4.3 and 4.4.3.

What is expected is worked out here block by block, as the section has it, and not by the code under test.
"""

from __future__ import annotations

from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.cursor import Malformed
from npppy.l2tp.codec import Attr
from npppy.l2tp.secret import challenge_response, hide, reveal

SECRET = b"the secret"
VECTOR = bytes(range(0x10, 0x20))
ATTRIBUTE = Attr.PROXY_AUTHEN_RESPONSE


def xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=False))


def test_one_octet() -> None:
    """A subformat under 16 octets: b1 = MD5(AV + S + RV), as much of it as there is to hide."""
    b1 = md5(b"\x00\x21" + SECRET + VECTOR).digest()
    assert hide(ATTRIBUTE, b"A", SECRET, VECTOR, b"") == xor(b"\x00\x01A", b1)


def test_without_a_value() -> None:
    b1 = md5(b"\x00\x21" + SECRET + VECTOR).digest()
    hidden = hide(ATTRIBUTE, b"", SECRET, VECTOR, b"")
    assert hidden == b1[:2]
    assert reveal(ATTRIBUTE, hidden, SECRET, VECTOR) == b""


def test_exactly_one_block() -> None:
    b1 = md5(b"\x00\x21" + SECRET + VECTOR).digest()
    assert hide(ATTRIBUTE, b"fourteen bytes", SECRET, VECTOR, b"") == xor(b"\x00\x0efourteen bytes", b1)


def test_three_blocks() -> None:
    """bi = MD5(S + c(i-1)), c(i) = pi xor bi."""
    value = bytes(range(40))
    plain = b"\x00\x28" + value
    b1 = md5(b"\x00\x21" + SECRET + VECTOR).digest()
    c1 = xor(plain[:16], b1)
    b2 = md5(SECRET + c1).digest()
    c2 = xor(plain[16:32], b2)
    b3 = md5(SECRET + c2).digest()
    c3 = xor(plain[32:], b3)
    hidden = hide(ATTRIBUTE, value, SECRET, VECTOR, b"")
    assert hidden == c1 + c2 + c3
    assert len(hidden) == 42


def test_a_vector_as_octets() -> None:
    """The same by md5sum(1): 0007 "s" 00..0f hides "npppy"."""
    b1 = bytes.fromhex("945511489532651f7fa9792ffcdd29ce")
    hidden = hide(7, b"npppy", b"s", bytes(range(16)), b"")
    assert hidden == bytes(a ^ b for a, b in zip(b"\x00\x05npppy", b1, strict=False))


@pytest.mark.parametrize("size", [0, 1, 13, 14, 15, 16, 17, 29, 30, 31, 32, 40, 300])
@pytest.mark.parametrize("padding", [0, 1, 12, 15, 16, 33])
def test_chain(size: int, padding: int) -> None:
    """All lengths about the borders of blocks, with padding, which is hidden as the value is."""
    value = bytes((7 * i) & 0xFF for i in range(size))
    pad = bytes((11 * i + 1) & 0xFF for i in range(padding))
    plain = size.to_bytes(2, "big") + value + pad
    expected = b""
    mask = md5(ATTRIBUTE.to_bytes(2, "big") + SECRET + VECTOR).digest()
    while len(expected) < len(plain):
        block = xor(plain[len(expected) : len(expected) + 16], mask)
        expected += block
        mask = md5(SECRET + block).digest()
    hidden = hide(ATTRIBUTE, value, SECRET, VECTOR, pad)
    assert hidden == expected
    assert reveal(ATTRIBUTE, hidden, SECRET, VECTOR) == value


def test_padding_of_the_rfc() -> None:
    """Section 4.3: 4 octets and 12 of padding make an AVP of 24, of which 6 are its header."""
    assert len(hide(Attr.CALL_SERIAL_NUMBER, bytes(4), SECRET, VECTOR, bytes(12))) == 24 - 6


def test_attribute_secret_and_vector_matter() -> None:
    value = b"0123456789"
    hidden = hide(30, value, SECRET, VECTOR, b"")
    others = {
        hide(31, value, SECRET, VECTOR, b""),
        hide(30, value, SECRET + b"x", VECTOR, b""),
        hide(30, value, SECRET, VECTOR[::-1], b""),
        hide(30, value, SECRET, b"", b""),
        hidden,
    }
    assert len(others) == 5


@pytest.mark.parametrize("inner", [1, 2, 15, 0xFFFF])
def test_length_inside_too_long(inner: int) -> None:
    b1 = md5(b"\x00\x21" + SECRET + VECTOR).digest()
    with pytest.raises(Malformed):
        reveal(ATTRIBUTE, xor(inner.to_bytes(2, "big"), b1), SECRET, VECTOR)
    longer = xor(inner.to_bytes(2, "big") + bytes(inner if inner < 14 else 14), b1)
    if inner <= 14:
        assert len(reveal(ATTRIBUTE, longer, SECRET, VECTOR)) == inner
    else:
        with pytest.raises(Malformed):
            reveal(ATTRIBUTE, longer, SECRET, VECTOR)


@pytest.mark.parametrize("hidden", [b"", b"\x00"])
def test_no_room_for_the_length_inside(hidden: bytes) -> None:
    with pytest.raises(Malformed):
        reveal(ATTRIBUTE, hidden, SECRET, VECTOR)


@given(st.integers(0, 0xFFFF), st.binary(max_size=100), st.binary(max_size=40), st.binary(max_size=40), st.binary())
def test_reveal_undoes_hide(attribute: int, value: bytes, secret: bytes, vector: bytes, padding: bytes) -> None:
    assert reveal(attribute, hide(attribute, value, secret, vector, padding), secret, vector) == value


def test_challenge_response() -> None:
    """Section 4.4.3: as CHAP's (RFC 1994 section 4.1), with the message type, 2 or 3, for its Identifier."""
    challenge = bytes(range(16))
    assert challenge_response(2, SECRET, challenge) == md5(b"\x02" + SECRET + challenge).digest()
    assert challenge_response(3, SECRET, challenge) == md5(b"\x03" + SECRET + challenge).digest()
    # printf '\003secretc' | md5sum
    assert challenge_response(3, b"secret", b"c").hex() == "8d32a041f28f96b4aa1885bf8bf61fcb"
