"""What the secret of a tunnel is for: hidden AVPs (RFC 2661 section 4.3) and tunnel authentication (section 5.1.1)."""

from __future__ import annotations

from hashlib import md5

from ..cursor import Malformed

_BLOCK = 16


def hide(attribute: int, value: bytes, secret: bytes, vector: bytes, padding: bytes = b"") -> bytes:
    """The Attribute Value of a hidden AVP: 2 octets longer than *value* and *padding*.

    *vector* is the value of the Random Vector AVP that goes before it, and *padding* is random, to mask the length.
    """
    clear = len(value).to_bytes(2, "big") + value + padding
    hidden = bytearray()
    mask = _first_mask(attribute, secret, vector)
    for at in range(0, len(clear), _BLOCK):
        block = _xor(clear[at : at + _BLOCK], mask)
        hidden += block
        mask = md5(secret + block).digest()
    return bytes(hidden)


def reveal(attribute: int, hidden: bytes, secret: bytes, vector: bytes) -> bytes:
    """The value that :func:`hide` has hidden, without its padding.

    Raises :class:`~npppy.cursor.Malformed` if the length inside is wrong, as it is for another secret or vector in
    nearly all cases.
    """
    clear = bytearray()
    mask = _first_mask(attribute, secret, vector)
    for at in range(0, len(hidden), _BLOCK):
        block = hidden[at : at + _BLOCK]
        clear += _xor(block, mask)
        mask = md5(secret + block).digest()
    if len(clear) < 2:
        raise Malformed("hidden length")
    end = 2 + int.from_bytes(clear[:2], "big")
    if end > len(clear):
        raise Malformed("hidden length")
    return bytes(clear[2:end])


def challenge_response(message_type: int, secret: bytes, challenge: bytes) -> bytes:
    """The 16 octets of a Challenge Response AVP in a message of that type (section 4.4.3): SCCRP or SCCCN."""
    return md5(bytes((message_type,)) + secret + challenge).digest()


def _first_mask(attribute: int, secret: bytes, vector: bytes) -> bytes:
    return md5(attribute.to_bytes(2, "big") + secret + vector).digest()


def _xor(block: bytes, mask: bytes) -> bytes:
    """*block*, of at most 16 octets, under as much of *mask*."""
    size = len(block)
    return (int.from_bytes(block, "big") ^ int.from_bytes(mask[:size], "big")).to_bytes(size, "big")
