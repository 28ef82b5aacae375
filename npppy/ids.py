"""Identifiers of 16 bits: PPPoE sessions of an access port, L2TP tunnels."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from hashlib import blake2s

#: 0 stands for no session (RFC 2516 section 5; RFC 2661 section 3.1: no tunnel), 0xFFFF is reserved (RFC 2516
#: section 4).
FORBIDDEN = (0, 0xFFFF)

#: Released identifiers that are passed over before they are cut off the list.
_SLACK = 4096


class SessionIds:
    """Gives out 65,534 identifiers: none can be told from those before it, none returns early.

    New ones come by a keyed permutation of a counter, a Feistel network of four rounds over 16 bits; when all have
    been used, the one that was released first comes first.
    """

    __slots__ = ("_counter", "_head", "_key", "_released")

    def __init__(self, rng: Callable[[int], bytes]) -> None:
        self._key = rng(16)
        self._counter = 0
        # A queue: what stands before _head has been given out.
        self._released = array("H")
        self._head = 0

    def take(self) -> int:
        """An identifier that is not in use; 0 if there is none."""
        while self._counter <= 0xFFFF:
            session_id = self._permute(self._counter)
            self._counter += 1
            if session_id not in FORBIDDEN:
                return session_id
        if self._head == len(self._released):
            return 0
        session_id = self._released[self._head]
        self._head += 1
        if self._head >= _SLACK and self._head * 2 >= len(self._released):
            del self._released[: self._head]
            self._head = 0
        return session_id

    def release(self, session_id: int) -> None:
        """*session_id* is not in use any more."""
        self._released.append(session_id)

    def _permute(self, value: int) -> int:
        left, right = value >> 8, value & 0xFF
        for turn in range(4):
            mask = blake2s(bytes((turn, right)), key=self._key, digest_size=1).digest()[0]
            left, right = right, left ^ mask
        return left << 8 | right
