"""Control messages of PPTP (RFC 2637 section 2), read and written from either side."""

from __future__ import annotations

import enum
from typing import NamedTuple

from ..cursor import Cursor, Malformed

#: Section 1.4: what every message has behind its first four octets.
MAGIC = 0x1A2B3C4D
#: PPTP Message Type.
CONTROL, MANAGEMENT = 1, 2
#: Octets of the header that all messages have, and of the one that control messages do.
HEADER_LEN = 8
CONTROL_HEADER_LEN = 12
#: Octets that a message may have whose type we do not know: of those that there are, the longest has 220.
MAX_LEN = 1024
#: Protocol Version: version 1, revision 0.
VERSION = 0x0100
#: Framing and bearer, as capabilities and as types.
ASYNCHRONOUS, SYNCHRONOUS = 1, 2
ANALOG, DIGITAL = 1, 2


class Type(enum.IntEnum):
    """Control Message Type."""

    START_REQUEST = 1
    START_REPLY = 2
    STOP_REQUEST = 3
    STOP_REPLY = 4
    ECHO_REQUEST = 5
    ECHO_REPLY = 6
    OUTGOING_CALL_REQUEST = 7
    OUTGOING_CALL_REPLY = 8
    INCOMING_CALL_REQUEST = 9
    INCOMING_CALL_REPLY = 10
    INCOMING_CALL_CONNECTED = 11
    CALL_CLEAR_REQUEST = 12
    CALL_DISCONNECT_NOTIFY = 13
    WAN_ERROR_NOTIFY = 14
    SET_LINK_INFO = 15

    @property
    def title(self) -> str:
        """As the RFC spells it: ``Call-Clear-Request``."""
        return self.name.replace("_", "-").title().replace("Wan-", "WAN-")


#: A reserved field: sent as 0, and not looked at, as it is what a later version would use.
_RESERVED = ""
_Field = tuple[str, int]

_START: tuple[_Field, ...] = (
    ("framing", 4),
    ("bearer", 4),
    ("max_channels", 2),
    ("firmware", 2),
    ("host_name", 64),
    ("vendor_name", 64),
)
#: What follows the header of each message: fields, and their octets.  Up to four they are a number, else octets.
LAYOUTS: dict[Type, tuple[_Field, ...]] = {
    Type.START_REQUEST: (("version", 2), (_RESERVED, 2), *_START),
    Type.START_REPLY: (("version", 2), ("result", 1), ("error", 1), *_START),
    Type.STOP_REQUEST: (("reason", 1), (_RESERVED, 1), (_RESERVED, 2)),
    Type.STOP_REPLY: (("result", 1), ("error", 1), (_RESERVED, 2)),
    Type.ECHO_REQUEST: (("identifier", 4),),
    Type.ECHO_REPLY: (("identifier", 4), ("result", 1), ("error", 1), (_RESERVED, 2)),
    Type.OUTGOING_CALL_REQUEST: (
        ("call_id", 2),
        ("serial", 2),
        ("minimum_bps", 4),
        ("maximum_bps", 4),
        ("bearer", 4),
        ("framing", 4),
        ("window", 2),
        ("delay", 2),
        ("phone_number_length", 2),
        (_RESERVED, 2),
        ("phone_number", 64),
        ("subaddress", 64),
    ),
    Type.OUTGOING_CALL_REPLY: (
        ("call_id", 2),
        ("peer_call_id", 2),
        ("result", 1),
        ("error", 1),
        ("cause", 2),
        ("speed", 4),
        ("window", 2),
        ("delay", 2),
        ("channel", 4),
    ),
    Type.INCOMING_CALL_REQUEST: (
        ("call_id", 2),
        ("serial", 2),
        ("bearer", 4),
        ("channel", 4),
        ("dialed_number_length", 2),
        ("dialing_number_length", 2),
        ("dialed_number", 64),
        ("dialing_number", 64),
        ("subaddress", 64),
    ),
    Type.INCOMING_CALL_REPLY: (
        ("call_id", 2),
        ("peer_call_id", 2),
        ("result", 1),
        ("error", 1),
        ("window", 2),
        ("delay", 2),
        (_RESERVED, 2),
    ),
    Type.INCOMING_CALL_CONNECTED: (
        ("peer_call_id", 2),
        (_RESERVED, 2),
        ("speed", 4),
        ("window", 2),
        ("delay", 2),
        ("framing", 4),
    ),
    Type.CALL_CLEAR_REQUEST: (("call_id", 2), (_RESERVED, 2)),
    Type.CALL_DISCONNECT_NOTIFY: (
        ("call_id", 2),
        ("result", 1),
        ("error", 1),
        ("cause", 2),
        (_RESERVED, 2),
        ("statistics", 128),
    ),
    Type.WAN_ERROR_NOTIFY: (
        ("peer_call_id", 2),
        (_RESERVED, 2),
        ("crc", 4),
        ("framing", 4),
        ("hardware", 4),
        ("buffer", 4),
        ("timeout", 4),
        ("alignment", 4),
    ),
    Type.SET_LINK_INFO: (("peer_call_id", 2), (_RESERVED, 2), ("send_accm", 4), ("receive_accm", 4)),
}

#: Octets of each message, its header included.
LENGTHS: dict[int, int] = {
    kind: CONTROL_HEADER_LEN + sum(size for _, size in layout) for kind, layout in LAYOUTS.items()
}


class Message(NamedTuple):
    """A message: its fields by name, those of up to four octets as numbers."""

    type: Type
    numbers: dict[str, int]
    texts: dict[str, bytes]

    def text(self, name: str) -> bytes:
        """What stands in a field of text before the first octet of 0."""
        return self.texts[name].partition(b"\0")[0]


def split(octets: bytes, start: int) -> int:
    """Where in a stream the message ends that begins at *start*; 0: it is not there as a whole yet.

    Raises :class:`Malformed` as soon as it cannot be one; the stream is out of step then (section 1.4).
    """
    there = len(octets) - start
    if there < 2:
        return 0
    cursor = Cursor(octets, start)
    length = cursor.u16()
    if not HEADER_LEN <= length <= MAX_LEN:
        raise Malformed("length")
    if there < HEADER_LEN:
        return 0
    kind = cursor.u16()
    if cursor.u32() != MAGIC:
        raise Malformed("magic cookie")
    if kind == CONTROL:
        if length < CONTROL_HEADER_LEN:
            raise Malformed("length")
        if there < CONTROL_HEADER_LEN:
            return 0
        if LENGTHS.get(cursor.u16(), length) != length:
            raise Malformed("length")
    elif kind != MANAGEMENT:
        raise Malformed("message type")
    return start + length if there >= length else 0


def decode(octets: bytes) -> Message | None:
    """A message as :func:`split` has cut it; None: one that we do not know.  Raises :class:`Malformed`."""
    cursor = Cursor(octets)
    cursor.u16()
    kind = cursor.u16()
    cursor.u32()
    number = cursor.u16() if kind == CONTROL else 0
    if number not in LENGTHS:
        return None
    cursor.u16()
    message = Message(Type(number), {}, {})
    for name, size in LAYOUTS[message.type]:
        value = cursor.take(size)
        if size > 4:
            message.texts[name] = value
        elif name:
            message.numbers[name] = int.from_bytes(value, "big")
    return message


def encode(kind: Type, **values: int | bytes) -> bytes:
    """A message; fields that are not named are 0.  A text that is too long is cut, and ends in an octet of 0."""
    parts = [
        LENGTHS[kind].to_bytes(2, "big"),
        CONTROL.to_bytes(2, "big"),
        MAGIC.to_bytes(4, "big"),
        kind.to_bytes(2, "big"),
        bytes(2),
    ]
    for name, size in LAYOUTS[kind]:
        value = values.pop(name, 0)
        if isinstance(value, int):
            parts.append(value.to_bytes(size, "big"))
        else:
            parts.append(value[: size - 1].ljust(size, b"\0"))
    if values:
        raise TypeError(f"{kind.title} has no {', '.join(values)}")
    return b"".join(parts)
