"""IPv4 packets for tests, and checks that share nothing with what they check."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address


def number(address: str) -> int:
    return int(IPv4Address(address))


def words(data: bytes) -> int:
    """The ones' complement sum of RFC 1071, word by word: 0xFFFF over what carries a right checksum."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip(
    source: str,
    destination: str,
    data: bytes = b"",
    *,
    protocol: int = 17,
    options: bytes = b"",
    flags: int = 0,
    identification: int = 0x1234,
    ttl: int = 64,
) -> bytes:
    """*flags* is the field with DF, MF and the offset."""
    size = 20 + len(options) + len(data)
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45 + len(options) // 4,
        0,
        size,
        identification,
        flags,
        ttl,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(destination).packed,
    )
    head += options
    return head[:10] + (0xFFFF ^ words(head)).to_bytes(2, "big") + head[12:] + data


def udp(source: str, destination: str, data: bytes = b"", *, ports: tuple[int, int] = (40000, 40001)) -> bytes:
    return ip(source, destination, struct.pack(">HHHH", *ports, 8 + len(data), 0) + data)


def tcp(
    source: str,
    destination: str,
    *,
    options: bytes = b"",
    tcp_flags: int = 0x02,
    data: bytes = b"",
    offset: int | None = None,
    ports: tuple[int, int] = (40000, 40001),
    ip_options: bytes = b"",
    flags: int = 0,
    window: int = 65535,
) -> bytes:
    """With a right checksum; *offset* is the Data Offset in words, where it is to be wrong."""
    words_of_header = 5 + len(options) // 4 if offset is None else offset
    head = struct.pack(">HHIIBBHHH", *ports, 7, 0, words_of_header << 4, tcp_flags, window, 0, 0)
    segment = head + options + data
    check = 0xFFFF ^ words(pseudo(source, destination, len(segment)) + segment)
    segment = segment[:16] + check.to_bytes(2, "big") + segment[18:]
    return ip(source, destination, segment, protocol=6, options=ip_options, flags=flags)


def pseudo(source: str, destination: str, size: int) -> bytes:
    return IPv4Address(source).packed + IPv4Address(destination).packed + struct.pack(">HH", 6, size)


def tcp_sum(packet: bytes) -> int:
    """0xFFFF if the TCP checksum of *packet* is right."""
    header = (packet[0] & 15) * 4
    segment = packet[header:]
    return words(packet[12:20] + struct.pack(">HH", 6, len(segment)) + segment)


def reassemble(fragments: Iterable[bytes]) -> bytes:
    """What a host makes of *fragments* (RFC 791 section 3.2), in any order, or an error."""
    parts = {}
    end = None
    first = b""
    for piece in fragments:
        header = (piece[0] & 15) * 4
        assert words(piece[:header]) == 0xFFFF
        size, _, field = struct.unpack(">HHH", piece[2:8])
        assert size == len(piece)
        offset = (field & 0x1FFF) * 8
        parts[offset] = piece[header:]
        if not field & 0x2000:
            end = offset + size - header
        if offset == 0:
            first = piece[:header]
    data = b""
    for offset in sorted(parts):
        assert offset == len(data), "hole or overlap"
        data += parts[offset]
    assert end == len(data)
    return first + data
