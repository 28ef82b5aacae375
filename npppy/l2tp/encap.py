"""How pipex finds and encapsulates the data of a call."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Keeper(Protocol):
    """Has the kernel send what else would get its numbers here."""

    def inject(self, frame: bytes) -> None:
        """Send a frame, from the PPP Protocol field on; it may be lost, as everything may, but keeps its order."""


class Sequence:
    """The sequence numbers of a call's data (RFC 2661 section 5.4), while nobody else keeps them."""

    __slots__ = ("expected", "keeper", "ns")

    def __init__(self, ns: int = 0, expected: int = 0) -> None:
        #: Ns of the next message to the peer, and the one after the highest that has come from it; 16 bits each.
        self.ns = ns
        self.expected = expected
        #: Set while the kernel counts, and the two above do not hold.
        self.keeper: Keeper | None = None


class L2tpEncap(NamedTuple):
    """The headers of a call's data, outer addresses and ports included."""

    #: Addresses of 4 or of 16 octets.
    local: bytes
    local_port: int
    peer: bytes
    peer_port: int
    #: By these the peer's messages are known, and by those ours.
    tunnel_id: int
    session_id: int
    peer_tunnel_id: int
    peer_session_id: int
    #: Of what leaves: which of several security associations is this peer's; 0: none.
    mark: int = 0
    #: Only what has been decrypted is the peer's.
    ipsec: bool = False
    #: UDP has a checksum; over IPv6 it always has.
    checksum: bool = False
    #: None: data has no sequence numbers.
    sequence: Sequence | None = None
