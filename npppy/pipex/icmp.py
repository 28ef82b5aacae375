"""ICMP errors about packets that cannot be delivered, and how often they are sent."""

from __future__ import annotations

from typing import Final

from .ip import CLASS_D, HEADER, ICMP, checksum

#: Codes of Destination Unreachable (RFC 792).
HOST_UNREACHABLE: Final = 1
FRAGMENTATION_NEEDED: Final = 4

#: RFC 1812 section 4.3.2.3.
_MAX_SIZE: Final = 576
#: Echo, router discovery, timestamp, information and mask: all but these may be errors, so they get none.
_QUERIES: Final = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18))


def unreachable(packet: bytes, source: int, code: int, mtu: int = 0) -> bytes | None:
    """The packet that tells the sender of *packet* why it was dropped; it comes from the address *source*.

    *packet* has a sound header; *mtu* is the next hop's, for :data:`FRAGMENTATION_NEEDED` (RFC 1191 section 4).
    None if there must be no error about *packet* (RFC 1812 section 4.3.2.7): it is an error itself, a fragment other
    than the first, for many hosts, or from an address that is no host's.
    """
    sender = int.from_bytes(packet[12:16], "big")
    if sender >> 24 in (0, 127) or sender >= CLASS_D or packet[16] >= CLASS_D >> 24:
        return None
    if packet[6] & 0x1F or packet[7]:
        return None
    if packet[9] == ICMP:
        header = HEADER[packet[0]]
        if len(packet) <= header or packet[header] not in _QUERIES:
            return None
    quoted = packet[: _MAX_SIZE - 28]
    body = mtu.to_bytes(4, "big") + quoted
    head = bytes((3, code))
    message = head + checksum(head + b"\0\0" + body).to_bytes(2, "big") + body
    # Precedence 6, internetwork control (section 4.3.2.5).  With DF set the Identification means nothing (RFC 6864).
    front = b"\x45\xc0" + (20 + len(message)).to_bytes(2, "big") + b"\0\0\x40\0\x40\x01"
    addresses = source.to_bytes(4, "big") + packet[12:16]
    return front + checksum(front + b"\0\0" + addresses).to_bytes(2, "big") + addresses + message


class RateLimit:
    """A bucket of *burst* tokens that fills at *rate* a second."""

    __slots__ = ("_burst", "_last", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._last = 0.0

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
