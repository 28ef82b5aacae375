"""How pipex finds and encapsulates the data of a call."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Keeper(Protocol):
    """Has the kernel send what else would get its numbers here."""

    def inject(self, frame: bytes) -> None:
        """Send a frame, from the PPP Protocol field on; it may be lost, as everything may, but keeps its order.

        An empty one is an acknowledgment alone.
        """

    def look(self) -> tuple[int, int]:
        """What *expected* and *acked* are now."""

    def note(self, number: int) -> None:
        """Give *expected* another value, after packets that the kernel has not seen."""


class Sequence:
    """The sequence and acknowledgment numbers of a call (RFC 2637 section 4.1), while nobody else keeps them.

    All have 32 bits.
    """

    __slots__ = ("acked", "expected", "keeper", "out", "peer_acked")

    def __init__(self) -> None:
        #: Of the next packet to the peer, and one more than the highest that has come from it.
        self.out = 0
        self.expected = 0
        #: One more than the highest that we have acknowledged, and than the highest that the peer has.
        self.acked = 0
        self.peer_acked = 0
        #: Set while the kernel counts, and the four above do not hold.
        self.keeper: Keeper | None = None


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
