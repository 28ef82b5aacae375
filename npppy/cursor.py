"""The one bounds-checked reader of every format that carries lengths.

PPPoE tags, configuration options, AVPs and the rest are read through :class:`Cursor`, so that a length which
points past its container is one error type, raised in one place.
"""

from __future__ import annotations


class Malformed(Exception):
    """A packet breaks its format.  Carriers catch it in one place, count it by reason and drop the packet."""


class Cursor:
    """Reads big-endian fields from ``data[start:end]``; every read past the end raises :class:`Malformed`."""

    __slots__ = ("data", "end", "pos")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data = data
        self.pos = start
        self.end = len(data) if end is None else end
        if not 0 <= start <= self.end <= len(data):
            raise Malformed("short")

    def __len__(self) -> int:
        """Octets left."""
        return self.end - self.pos

    # Each of these has the check in itself: a set-up reads a hundred fields, and calls cost more than the reading.

    def u8(self) -> int:
        pos = self.pos
        if pos >= self.end:
            raise Malformed("short")
        self.pos = pos + 1
        return self.data[pos]

    def u16(self) -> int:
        pos = self.pos
        if pos + 2 > self.end:
            raise Malformed("short")
        self.pos = pos + 2
        return self.data[pos] << 8 | self.data[pos + 1]

    def u32(self) -> int:
        pos = self.pos
        if pos + 4 > self.end:
            raise Malformed("short")
        self.pos = pos + 4
        return int.from_bytes(self.data[pos : pos + 4], "big")

    def take(self, count: int) -> bytes:
        """The next *count* octets."""
        pos = self.pos
        if count < 0 or pos + count > self.end:
            raise Malformed("short")
        self.pos = pos + count
        return self.data[pos : pos + count]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.end - self.pos)

    def sub(self, count: int) -> Cursor:
        """A cursor over the next *count* octets, for a nested length."""
        pos = self.pos
        if count < 0 or pos + count > self.end:
            raise Malformed("short")
        self.pos = pos + count
        return Cursor(self.data, pos, pos + count)
