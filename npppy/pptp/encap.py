"""How pipex finds and encapsulates the data of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Sequence:
    """The sequence and acknowledgment numbers of a call (RFC 2637 section 4.1), while nobody else keeps them.

    All have 32 bits.
    """

    __slots__ = ("acked", "expected", "inject", "look", "note", "out", "peer_acked")

    def __init__(self) -> None:
        #: Of the next packet to the peer, and one more than the highest that has come from it.
        self.out = 0
        self.expected = 0
        #: One more than the highest that we have acknowledged, and than the highest that the peer has.
        self.acked = 0
        self.peer_acked = 0
        #: Set while the kernel counts, and the four above do not hold.  A frame, from the PPP Protocol field on, is
        #: given to it instead of being sent; it may be lost, as everything may, but is never sent out of order.  An
        #: empty one is an acknowledgment alone.
        self.inject: Callable[[bytes], None] | None = None
        #: Set together with it: what *expected* and *acked* are now; and gives *expected* another value, after packets
        #: that the kernel has not seen.
        self.look: Callable[[], tuple[int, int]] | None = None
        self.note: Callable[[int], None] | None = None


class PptpEncap(NamedTuple):
    """The headers of a call's data, outer addresses included."""

    #: 4 octets each.
    local: bytes
    peer: bytes
    #: By this the peer's packets are known, and by that ours.
    call_id: int
    peer_call_id: int
    #: Of the peer's, how many packets of data may be without acknowledgment; 0: that is not looked at.
    window: int
    sequence: Sequence
