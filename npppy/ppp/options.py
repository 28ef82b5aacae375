"""Configuration options: type, length, data (RFC 1661 section 6)."""

from __future__ import annotations

from collections.abc import Iterable

from ..cursor import Cursor, Malformed

Option = tuple[int, bytes]

#: No option comes more than once in a request (RFC 1661 section 6), and no protocol has as many.  The answer to a
#: packet of more could be larger than a frame.
MAX_OPTIONS = 64


def decode(data: bytes) -> list[Option]:
    """The options of a Configure packet.  Raises :class:`Malformed`."""
    cursor = Cursor(data)
    options: list[Option] = []
    while cursor:
        kind, length = cursor.u8(), cursor.u8()
        if length < 2:
            raise Malformed("option-length")
        if len(options) == MAX_OPTIONS:
            raise Malformed("too-many-options")
        options.append((kind, cursor.take(length - 2)))
    return options


def encode(options: Iterable[Option]) -> bytes:
    return b"".join(bytes((kind, len(data) + 2)) + data for kind, data in options)
