"""Data messages as they are on the wire, for who looks on."""

from __future__ import annotations

import struct

from ..pipex.ip import checksum
from ..ppp.link import IN
from .service import Endpoint

_UDP = struct.Struct("!HHHH")
_UDP_NUMBER = 17


def ethernet(endpoint: Endpoint, way: int, datagram: bytes) -> bytes:
    """The frame that brings a datagram from the peer, or to it, with addresses of 0 for Ethernet."""
    local, peer = (endpoint.local, endpoint.local_port), (endpoint.peer, endpoint.peer_port)
    (source, sport), (destination, dport) = (peer, local) if way == IN else (local, peer)
    size = _UDP.size + len(datagram)
    pseudo = source + destination + struct.pack("!HH", _UDP_NUMBER, size)
    check = checksum(pseudo + _UDP.pack(sport, dport, size, 0) + datagram) or 0xFFFF
    udp = _UDP.pack(sport, dport, size, check) + datagram
    if len(source) == 4:
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 0, 0, 64, _UDP_NUMBER, 0, source, destination)
        header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
        return bytes(12) + b"\x08\x00" + header + udp
    header = struct.pack("!IHBB16s16s", 6 << 28, size, _UDP_NUMBER, 64, source, destination)
    return bytes(12) + b"\x86\xdd" + header + udp

