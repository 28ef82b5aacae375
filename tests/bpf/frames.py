"""Frames and IPv6 packets for tests; those of IPv4 are tests.unit.ippackets'."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

from tests.unit.ippackets import words

IP, IP6, ARP, DISCOVERY, SESSION = 0x0800, 0x86DD, 0x0806, 0x8863, 0x8864
C_TAG, S_TAG, OLD_TAG = 0x8100, 0x88A8, 0x9100

PPP_IP, PPP_IP6, LCP = 0x0021, 0x0057, 0xC021

ICMP, IGMP, TCP, UDP, ICMP6 = 1, 2, 6, 17, 58
HOP_OPTIONS, FRAGMENT = 0, 44

#: Identifier, and perhaps another TPID or priority bits: (identifier,), (identifier, TPID) ...
Tags = tuple[int, ...]


def ethernet(destination: bytes, source: bytes, kind: int, payload: bytes, tags: tuple[Tags, ...] = ()) -> bytes:
    """*tags* from the outermost in: (TCI, TPID)."""
    head = b"".join(struct.pack(">HH", tpid, tci) for tci, tpid in tags)
    return destination + source + head + kind.to_bytes(2, "big") + payload


def padded(frame: bytes) -> bytes:
    """As Ethernet wants short frames."""
    return frame.ljust(60, b"\0")


def ppp(protocol: int, payload: bytes) -> bytes:
    return protocol.to_bytes(2, "big") + payload


def pppoe(session_id: int, frame: bytes, *, first: int = 0x11, code: int = 0, length: int | None = None) -> bytes:
    """The PPPoE header and a PPP frame; *length* where LENGTH is to be wrong, or the frame to be padded."""
    return struct.pack(">BBHH", first, code, session_id, len(frame) if length is None else length) + frame


def echo(code: int, magic: int, data: bytes = b"", *, identifier: int = 7, length: int | None = None) -> bytes:
    size = 8 + len(data) if length is None else length
    return struct.pack(">BBHI", code, identifier, size, magic) + data


def ip6(
    source: str,
    destination: str,
    data: bytes = b"",
    *,
    following: int = UDP,
    limit: int = 64,
    length: int | None = None,
    first: int = 0x60,
    flow: int = 0,
) -> bytes:
    """*following* is Next Header, *length* Payload Length where it is to be wrong."""
    return (
        bytes((first,))
        + flow.to_bytes(3, "big")
        + struct.pack(">HBB", len(data) if length is None else length, following, limit)
        + IPv6Address(source).packed
        + IPv6Address(destination).packed
        + data
    )


def udp6(source: str, destination: str, data: bytes = b"", *, ports: tuple[int, int] = (40000, 40001)) -> bytes:
    return ip6(source, destination, struct.pack(">HHHH", *ports, 8 + len(data), 0) + data)


def tcp6(source: str, destination: str, *, options: bytes = b"", tcp_flags: int = 2, data: bytes = b"") -> bytes:
    """With a right checksum."""
    head = struct.pack(">HHIIBBHHH", 40000, 40001, 7, 0, 5 + len(options) // 4 << 4, tcp_flags, 65535, 0, 0)
    segment = head + options + data
    check = 0xFFFF ^ words(pseudo6(source, destination, len(segment)) + segment)
    return ip6(source, destination, segment[:16] + check.to_bytes(2, "big") + segment[18:], following=TCP)


def pseudo6(source: str, destination: str, size: int) -> bytes:
    return IPv6Address(source).packed + IPv6Address(destination).packed + struct.pack(">II", size, TCP)


def tcp6_sum(packet: bytes) -> int:
    """0xFFFF if the TCP checksum of *packet* is right."""
    return words(packet[8:40] + struct.pack(">II", len(packet) - 40, TCP) + packet[40:])
