"""The frames of PPPoE (RFC 2516 section 4), read and written from either side."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..cursor import Cursor, Malformed

#: EtherTypes (RFC 2516 section 4).
DISCOVERY = 0x8863
SESSION = 0x8864

BROADCAST = b"\xff" * 6

#: Octets of the Ethernet header and of PPPoE's own.
ETHERNET_LEN = 14
PPPOE_LEN = 6

#: What a discovery packet may fill: RFC 2516 section 7, an Ethernet payload of 1500 octets.
MAX_PAYLOAD = 1500

#: VER and TYPE, 1 each.
VER_TYPE = 0x11

#: Vendor-Specific: the Broadband Forum, once the DSL Forum (TR-101 R-124).
BBF_VENDOR = 3561
#: Both identifiers have at most 63 octets (TR-101 R-124, RFC 4679 section 3.3).
MAX_LINE_ID = 63

_TAG = struct.Struct("!HH")
_HEADER = struct.Struct("!6s6sHBBHH")


class Code(enum.IntEnum):
    """CODE of a discovery packet."""

    PADI = 0x09
    PADO = 0x07
    PADR = 0x19
    PADS = 0x65
    PADT = 0xA7


class Tag(enum.IntEnum):
    """TAG_TYPE: RFC 2516 appendix A, RFC 4638 section 4."""

    END_OF_LIST = 0x0000
    SERVICE_NAME = 0x0101
    AC_NAME = 0x0102
    HOST_UNIQ = 0x0103
    AC_COOKIE = 0x0104
    VENDOR_SPECIFIC = 0x0105
    RELAY_SESSION_ID = 0x0110
    PPP_MAX_PAYLOAD = 0x0120
    SERVICE_NAME_ERROR = 0x0201
    AC_SYSTEM_ERROR = 0x0202
    GENERIC_ERROR = 0x0203


@dataclass(frozen=True, slots=True)
class Discovery:
    """A discovery frame, without its VLAN tags."""

    destination: bytes
    source: bytes
    code: int
    session_id: int = 0
    #: (type, value) in the order of the packet, unknown types included, what follows End-Of-List not.
    tags: tuple[tuple[int, bytes], ...] = ()

    def first(self, tag: Tag) -> bytes | None:
        """The value of the first tag of a type, None without one."""
        for found, value in self.tags:
            if found == tag:
                return value
        return None

    def all(self, tag: Tag) -> list[bytes]:
        """The values of all tags of a type."""
        return [value for found, value in self.tags if found == tag]

    def encode(self) -> bytes:
        """The frame, not padded to the minimum of Ethernet."""
        return discovery_frame(self.destination, self.source, self.code, self.session_id, encode_tags(self.tags))


def encode_tags(tags: Iterable[tuple[int, bytes]]) -> bytes:
    """A TAG list; no value may exceed 65,535 octets."""
    return b"".join([_TAG.pack(tag, len(value)) + value for tag, value in tags])


def discovery_frame(destination: bytes, source: bytes, code: int, session_id: int, payload: bytes) -> bytes:
    """A discovery frame around an encoded TAG list."""
    return _HEADER.pack(destination, source, DISCOVERY, VER_TYPE, code, session_id, len(payload)) + payload


def decode_discovery(frame: bytes) -> Discovery:
    """Read a discovery frame.

    Raises :class:`Malformed` if it is not one, if LENGTH goes beyond the frame (what lies behind LENGTH is padding),
    or if a tag goes beyond LENGTH.
    """
    cursor = _open(frame, DISCOVERY)
    code = cursor.u8()
    session_id = cursor.u16()
    cursor = cursor.sub(cursor.u16())
    tags = []
    while len(cursor):
        tag = cursor.u16()
        length = cursor.u16()
        if tag == Tag.END_OF_LIST:
            break
        tags.append((tag, cursor.take(length)))
    return Discovery(frame[:6], frame[6:12], code, session_id, tuple(tags))


def session_header(destination: bytes, source: bytes, session_id: int) -> bytes:
    """What stands before LENGTH in every frame of a session."""
    return _HEADER.pack(destination, source, SESSION, VER_TYPE, 0, session_id, 0)[:-2]


def session_frame(destination: bytes, source: bytes, session_id: int, ppp: bytes) -> bytes:
    """A session frame around a PPP frame that begins with its Protocol field."""
    return session_header(destination, source, session_id) + struct.pack("!H", len(ppp)) + ppp


class Session(NamedTuple):
    """A session frame, without its VLAN tags."""

    destination: bytes
    source: bytes
    session_id: int
    #: From the Protocol field on.
    ppp: bytes


def decode_session(frame: bytes) -> Session:
    """Read a session frame; raises :class:`Malformed` as :func:`decode_discovery` does."""
    cursor = _open(frame, SESSION)
    if cursor.u8() != 0:
        raise Malformed("code")
    session_id = cursor.u16()
    return Session(frame[:6], frame[6:12], session_id, cursor.take(cursor.u16()))


def _open(frame: bytes, ethertype: int) -> Cursor:
    """A cursor at CODE."""
    cursor = Cursor(frame)
    cursor.take(12)
    if cursor.u16() != ethertype:
        raise Malformed("ethertype")
    if cursor.u8() != VER_TYPE:
        raise Malformed("version")
    return cursor


class AccessLine(NamedTuple):
    """What an access node says of the line (TR-101 section 3.9.3)."""

    circuit_id: bytes = b""
    remote_id: bytes = b""


_NO_LINE = AccessLine()


def access_line(vendor_tags: Iterable[bytes]) -> AccessLine:
    """The access line as the values of the Vendor-Specific tags tell it; other vendors' are ignored.

    The access node adds its tag behind those of the host, so the last one counts.  Raises :class:`Malformed` for a
    sub-tag that goes beyond its tag, or an identifier of more than 63 octets.
    """
    line = _NO_LINE
    for value in vendor_tags:
        cursor = Cursor(value)
        if len(cursor) < 4 or cursor.u32() != BBF_VENDOR:
            continue
        line = _NO_LINE
        while len(cursor):
            kind = cursor.u8()
            content = cursor.take(cursor.u8())
            if kind not in (1, 2):
                continue
            if len(content) > MAX_LINE_ID:
                raise Malformed("access line")
            line = line._replace(circuit_id=content) if kind == 1 else line._replace(remote_id=content)
    return line


def encode_access_line(line: AccessLine) -> bytes:
    """The value of a Vendor-Specific tag that says *line*."""
    parts = [struct.pack("!I", BBF_VENDOR)]
    for kind, content in enumerate(line, 1):
        if content:
            parts.append(bytes((kind, len(content))) + content)
    return b"".join(parts)


def max_payload(value: bytes | None) -> int:
    """What a PPP-Max-Payload tag asks for (RFC 4638 section 4); 0: nothing, or no tag of the right size."""
    return int.from_bytes(value, "big") if value is not None and len(value) == 2 else 0
