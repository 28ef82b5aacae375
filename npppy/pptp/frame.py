"""Data as it is on the wire, for who looks on."""

from __future__ import annotations

import struct

from ..pipex.ip import checksum
from ..ppp.link import IN
from .service import Endpoint

#: The IP protocol of GRE.
GRE = 47


def ethernet(endpoint: Endpoint, way: int, packet: bytes) -> bytes:
    """The frame that brings a GRE packet from the peer, or to it, with addresses of 0 for Ethernet."""
    local, peer = endpoint.local, endpoint.peer
    source, destination = (peer, local) if way == IN else (local, peer)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(packet), 0, 0, 64, GRE, 0, source, destination)
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return bytes(12) + b"\x08\x00" + header + packet
