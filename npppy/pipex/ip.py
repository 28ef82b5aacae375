"""IP packets: headers, checksums, fragments, the MSS of TCP, and what counts as idle.

The functions take packets whose header is sound.  Of IPv4: its length, of at least 20 octets, is :data:`HEADER` of the
first octet, and no more than Total Length, which is the length of the packet.  Of IPv6: it has :data:`HEADER6` octets,
and Payload Length is what the packet has behind them.  Extension headers are not looked behind, as in back end
``ebpf``.
"""

from __future__ import annotations

from typing import Final

ICMP: Final = 1
IGMP: Final = 2
TCP: Final = 6
UDP: Final = 17
FRAGMENT6: Final = 44
ICMP6: Final = 58

#: Every link carries packets of so many octets (RFC 791 section 3.2).
MIN_MTU: Final = 68
#: The first address of classes D and E: multicast, reserved, broadcast.
CLASS_D: Final = 0xE0000000

#: In the flags and Fragment Offset field.
DF: Final = 0x4000
MF: Final = 0x2000
OFFSET: Final = 0x1FFF

#: The octets of a header by its first octet, version and IHL; more than any packet has where they are wrong.
HEADER: Final = tuple((first & 15) * 4 if first >> 4 == 4 and first & 15 >= 5 else 0x10000 for first in range(256))

#: The octets of an IPv6 header, and those of the smallest MTU that a link may have (RFC 8200 section 5).
HEADER6: Final = 40
MIN_MTU6: Final = 1280

_TCP_SYN: Final = 0x02
_TCP_EOL: Final = 0
_TCP_NOP: Final = 1
_TCP_MSS: Final = 2

_WITH_PORTS: Final = (TCP, UDP)
# Domain, BOOTP, NTP, NetBIOS names, RIP: what hosts send by themselves.
_IDLE_PORTS: Final = frozenset((53, 67, 68, 123, 137, 520))
_ICMP_ECHO: Final = (0, 8)
_ICMP6_ECHO: Final = (128, 129)


def checksum(data: bytes) -> int:
    """The Internet checksum of *data* (RFC 1071), 0 where *data* holds a right one."""
    value = int.from_bytes(data + b"\0" if len(data) & 1 else data, "big")
    # 2**16 is 1 modulo 0xFFFF, so the remainder is the ones' complement sum of the 16-bit words; of its two zeros
    # a sum has the one of all ones, unless all words are 0.
    return 0xFFFF - (value % 0xFFFF or 0xFFFF) if value else 0xFFFF


def idle(packet: bytes, header: int) -> bool:
    """Whether npppd's idle-timeout runs on in spite of *packet*, whose header has *header* octets."""
    if packet[6] & 0x3F or packet[7]:
        # A fragment: somebody has much to send.
        return False
    protocol = packet[9]
    if protocol in _WITH_PORTS:
        return len(packet) < header + 8 or _idle_ports(packet, header)
    if protocol == ICMP:
        return len(packet) < header + 8 or packet[header] not in _ICMP_ECHO
    return protocol == IGMP


def idle6(packet: bytes) -> bool:
    """The same of IPv6."""
    protocol = packet[6]
    if protocol in _WITH_PORTS:
        return len(packet) < HEADER6 + 8 or _idle_ports(packet, HEADER6)
    return protocol == ICMP6 and (len(packet) < HEADER6 + 8 or packet[HEADER6] not in _ICMP6_ECHO)


def _idle_ports(packet: bytes, at: int) -> bool:
    # Most ports are above all of ours, which the high octets tell.
    return (packet[at] < 3 and (packet[at] << 8 | packet[at + 1]) in _IDLE_PORTS) or (
        packet[at + 2] < 3 and (packet[at + 2] << 8 | packet[at + 3]) in _IDLE_PORTS
    )


def link_scope6(packet: bytes) -> bool:
    """Whether an IPv6 *packet* is between the peer and us alone: link-local addresses, multicast."""
    return (
        packet[24] == 0xFF
        or (packet[8] == 0xFE and packet[9] & 0xC0 == 0x80)
        or (packet[24] == 0xFE and packet[25] & 0xC0 == 0x80)
    )


def clamp_mss(packet: bytes, header: int, limit: int) -> bytes:
    """A TCP *packet* with its MSS option lowered to *limit*, or itself, if it has none or a lower one."""
    if packet[6] & 0x1F or packet[7] or len(packet) < header + 20 or not packet[header + 13] & _TCP_SYN:
        return packet
    return _clamp(packet, header, limit)


def clamp_mss6(packet: bytes, limit: int) -> bytes:
    """The same of IPv6."""
    if len(packet) < HEADER6 + 20 or not packet[HEADER6 + 13] & _TCP_SYN:
        return packet
    return _clamp(packet, HEADER6, limit)


def _clamp(packet: bytes, header: int, limit: int) -> bytes:
    size = len(packet)
    end = min(header + (packet[header + 12] >> 4) * 4, size)
    at = header + 20
    while at + 4 <= end:
        kind = packet[at]
        if kind == _TCP_NOP:
            at += 1
            continue
        length = packet[at + 1]
        if kind == _TCP_MSS and length == 4:
            return _replace16(packet, at + 2, limit, header + 16) if _u16(packet, at + 2) > limit else packet
        if kind == _TCP_EOL or length < 2:
            break
        at += length
    return packet


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """*packet*, which is larger, in fragments of at most *mtu* octets (:data:`MIN_MTU` or more): RFC 791 section 3.2.

    Empty if *packet* is a fragment itself that ends beyond the 65,535 octets of any packet.
    """
    header = HEADER[packet[0]]
    flags = _u16(packet, 6)
    if (flags & OFFSET) * 8 + len(packet) - header > 0xFFFF:
        return []
    head = packet[:header]
    fragments = []
    at = header
    while at < len(packet):
        room = mtu - len(head)
        more = flags & MF
        if at + room < len(packet):
            room &= ~7
            more = MF
        data = packet[at : at + room]
        offset = (flags & OFFSET) + (at - header) // 8
        fragments.append(_with_header(head, len(head) + len(data), flags & ~(MF | OFFSET) | more | offset) + data)
        if at == header:
            options = _copied_options(packet, header)
            head = bytes((0x45 + len(options) // 4,)) + packet[1:20] + options
        at += len(data)
    return fragments


def _with_header(head: bytes, total: int, flags: int) -> bytes:
    """*head* with another Total Length and flags field, and the right checksum."""
    head = head[:2] + total.to_bytes(2, "big") + head[4:6] + flags.to_bytes(2, "big") + head[8:10] + b"\0\0" + head[12:]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:]


def _copied_options(packet: bytes, header: int) -> bytes:
    """The options that every fragment has: those with the copied flag (RFC 791 section 3.1), padded."""
    options = b""
    at = 20
    while at < header and (kind := packet[at]):
        if kind == 1:
            at += 1
            continue
        length = packet[at + 1] if at + 1 < header else 0
        if length < 2 or at + length > header:
            break
        if kind & 0x80:
            options += packet[at : at + length]
        at += length
    return options + bytes(-len(options) % 4)


def _replace16(packet: bytes, at: int, value: int, check: int) -> bytes:
    """*packet* with *value* at *at* and its checksum, at *check*, before it, corrected by RFC 1624 equation 3."""
    old = _u16(packet, at)
    new = value
    if at - check & 1:
        # The value straddles two of the words that the checksum adds up.
        old = old >> 8 | (old & 0xFF) << 8
        new = new >> 8 | (new & 0xFF) << 8
    total = (0xFFFF ^ _u16(packet, check)) + (0xFFFF ^ old) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    corrected = (0xFFFF ^ total).to_bytes(2, "big")
    return packet[:check] + corrected + packet[check + 2 : at] + value.to_bytes(2, "big") + packet[at + 2 :]


def _u16(packet: bytes, at: int) -> int:
    return packet[at] << 8 | packet[at + 1]
