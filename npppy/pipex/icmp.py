"""ICMP errors about packets that cannot be delivered, and how often they are sent."""

from __future__ import annotations

from typing import Final

from .ip import CLASS_D, FRAGMENT6, HEADER, HEADER6, ICMP, ICMP6, MIN_MTU6, checksum

#: Codes of Destination Unreachable (RFC 792).
HOST_UNREACHABLE: Final = 1
FRAGMENTATION_NEEDED: Final = 4

_REDIRECT: Final = 5

#: RFC 1812 section 4.3.2.3.
_MAX_SIZE: Final = 576
#: Echo, router discovery, timestamp, information and mask: all but these may be errors, so they get none.
_QUERIES: Final = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18))

_UNREACHABLE6: Final = 1
_ADDRESS_UNREACHABLE6: Final = 3
_PACKET_TOO_BIG: Final = 2
_REDIRECT6: Final = 137
#: Those below are errors.
_FIRST_QUERY6: Final = 128
#: Hop-by-hop, routing and destination options.
_OPTIONS6: Final = (0, 43, 60)


def redirects(packet: bytes, header: int) -> bool:
    """Whether *packet*, of ICMP, is a redirect: that another peer, whom a peer has packets for, is on the same link.

    So says the stack of a shared interface, to which it looks so.  Those of others are never forwarded (RFC 1812
    section 5.2.7.2).
    """
    return not (packet[6] & 0x1F or packet[7]) and len(packet) > header and packet[header] == _REDIRECT


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


def unreachable6(packet: bytes) -> bytes | None:
    """The packet that tells the sender of *packet*, an IPv6 one, that nobody has its destination.

    Its source and its checksum are left 0, for who sends it: RFC 4443 section 2.2 wants the source that any other
    packet to there would have.  None if there must be no error about *packet* (section 2.4 e).
    """
    return _error6(packet, _UNREACHABLE6, _ADDRESS_UNREACHABLE6, 0)


def too_big6(packet: bytes, mtu: int) -> bytes | None:
    """The same if *packet* is larger than *mtu*, that of the next hop (RFC 4443 section 3.2)."""
    return _error6(packet, _PACKET_TOO_BIG, 0, mtu)


def _error6(packet: bytes, kind: int, code: int, mtu: int) -> bytes | None:
    source = packet[8:24]
    # In ::/64 there are the unspecified address, loopback and IPv4 addresses, but no hosts.  Nothing of the link is
    # to be forwarded; and nothing for many, about which a packet that is too big would have an error, comes this way.
    if not any(source[:8]) or source[0] == 0xFF or (source[0] == 0xFE and source[1] & 0xC0 == 0x80):
        return None
    if packet[24] == 0xFF or _is_error6(packet):
        return None
    message = bytes((kind, code, 0, 0)) + mtu.to_bytes(4, "big") + packet[: MIN_MTU6 - HEADER6 - 8]
    front = b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes((ICMP6, 64))
    return front + bytes(16) + source + message


def _is_error6(packet: bytes) -> bool:
    """Whether an IPv6 packet is an ICMP error or redirect, or may be one."""
    at, following, later = HEADER6, packet[6], False
    while following in _OPTIONS6 or following == FRAGMENT6:
        if len(packet) < at + 8:
            return True
        size = 8
        if following == FRAGMENT6:
            later = later or packet[at + 2] > 0 or packet[at + 3] > 7
        else:
            size += packet[at + 1] * 8
        following = packet[at]
        at += size
    if following != ICMP6:
        return False
    return later or len(packet) <= at or packet[at] < _FIRST_QUERY6 or packet[at] == _REDIRECT6


class RateLimit:
    """A bucket of *burst* tokens that fills at *rate* a second."""

    __slots__ = ("burst", "last", "rate", "tokens")

    def __init__(self, rate: float, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        #: How many there were when the last was taken, or asked for.
        self.tokens = float(burst)
        self.last = 0.0

    def is_of(self, limit: tuple[float, int] | None) -> bool:
        """Whether it has that rate and burst."""
        return (self.rate, self.burst) == limit

    def take(self, now: float, count: int = 1) -> bool:
        """Take tokens, if there are so many."""
        # Who has the time from elsewhere may be a little behind.
        if now > self.last:
            self.tokens = min(self.burst, self.tokens + (now - self.last) * self.rate)
            self.last = now
        if self.tokens < count:
            return False
        self.tokens -= count
        return True
