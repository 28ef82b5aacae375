"""Identifiers of 16 bits: PPPoE sessions of an access port, L2TP tunnels."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2s

from .fifo import Fifo

#: 0 stands for no session (RFC 2516 section 5; RFC 2661 section 3.1: no tunnel), 0xFFFF is reserved (RFC 2516
#: section 4).
FORBIDDEN = (0, 0xFFFF)


class SessionIds:
    """Gives out 65,534 identifiers: none can be told from those before it, none returns early.

    New ones come by a keyed permutation of a counter, a Feistel network of four rounds over 16 bits; when all have
    been used, the one that was released first comes first.
    """

    __slots__ = ("_counter", "_key", "_released")

    def __init__(self, rng: Callable[[int], bytes]) -> None:
        self._key = rng(16)
        self._counter = 0
        self._released = Fifo("H")

    def take(self) -> int:
        """An identifier that is not in use; 0 if there is none."""
        while self._counter <= 0xFFFF:
            session_id = self._permute(self._counter)
            self._counter += 1
            if session_id not in FORBIDDEN:
                return session_id
        return self._released.pop() if self._released else 0

    def release(self, session_id: int) -> None:
        """*session_id* is not in use any more."""
        self._released.append(session_id)

    def _permute(self, value: int) -> int:
        left, right = value >> 8, value & 0xFF
        for turn in range(4):
            mask = blake2s(bytes((turn, right)), key=self._key, digest_size=1).digest()[0]
            left, right = right, left ^ mask
        return left << 8 | right
