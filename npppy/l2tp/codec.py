"""Messages of L2TPv2 (RFC 2661 sections 3.1 and 4), control and data, read and written from either side."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..cursor import Cursor, Malformed
from ..ppp.proto import PAP
from ..text import dump
from .secret import reveal

# Section 3.1: the first 16 bits of a message.  Its reserved bits are ignored.
_CONTROL = 0x8000
_LENGTH = 0x4000
_SEQUENCE = 0x0800
_OFFSET = 0x0200
_VERSION = 0x000F
VERSION = 2
# What tells how the header goes on, and what that is in the two forms of data messages that we send.
_FORM = _CONTROL | _LENGTH | _SEQUENCE | _OFFSET | _VERSION
_PLAIN = _LENGTH | VERSION
_SEQUENCED = _LENGTH | _SEQUENCE | VERSION

# Section 4.1: the first 16 bits of an AVP.
_MANDATORY = 0x8000
_HIDDEN = 0x4000
_RESERVED = 0x3C00
_SIZE = 0x03FF
_AVP_LEN = 6
#: Octets that the value of an AVP may have.
MAX_VALUE = _SIZE - _AVP_LEN
#: Octets that we let an Error Message have.
_MAX_TEXT = 255

_WORDS = struct.Struct("!HHHHHH")
_AVP = struct.Struct("!HHH")
#: AVPs of a message that is small.
_FEW = 8


class Type(enum.IntEnum):
    """Message types (section 3.2)."""

    SCCRQ = 1
    SCCRP = 2
    SCCCN = 3
    STOP_CCN = 4
    HELLO = 6
    OCRQ = 7
    OCRP = 8
    OCCN = 9
    ICRQ = 10
    ICRP = 11
    ICCN = 12
    CDN = 14
    WEN = 15
    SLI = 16


class Attr(enum.IntEnum):
    """Attribute types of vendor 0: section 4.4, and what other RFCs add."""

    MESSAGE_TYPE = 0
    RESULT_CODE = 1
    PROTOCOL_VERSION = 2
    FRAMING_CAPABILITIES = 3
    BEARER_CAPABILITIES = 4
    TIE_BREAKER = 5
    FIRMWARE_REVISION = 6
    HOST_NAME = 7
    VENDOR_NAME = 8
    ASSIGNED_TUNNEL_ID = 9
    RECEIVE_WINDOW_SIZE = 10
    CHALLENGE = 11
    Q931_CAUSE_CODE = 12
    CHALLENGE_RESPONSE = 13
    ASSIGNED_SESSION_ID = 14
    CALL_SERIAL_NUMBER = 15
    MINIMUM_BPS = 16
    MAXIMUM_BPS = 17
    BEARER_TYPE = 18
    FRAMING_TYPE = 19
    CALLED_NUMBER = 21
    CALLING_NUMBER = 22
    SUB_ADDRESS = 23
    TX_CONNECT_SPEED = 24
    PHYSICAL_CHANNEL_ID = 25
    INITIAL_RECEIVED_LCP_CONFREQ = 26
    LAST_SENT_LCP_CONFREQ = 27
    LAST_RECEIVED_LCP_CONFREQ = 28
    PROXY_AUTHEN_TYPE = 29
    PROXY_AUTHEN_NAME = 30
    PROXY_AUTHEN_CHALLENGE = 31
    PROXY_AUTHEN_ID = 32
    PROXY_AUTHEN_RESPONSE = 33
    CALL_ERRORS = 34
    ACCM = 35
    RANDOM_VECTOR = 36
    PRIVATE_GROUP_ID = 37
    RX_CONNECT_SPEED = 38
    SEQUENCING_REQUIRED = 39
    # RFC 3301: ATM access networks.
    RX_MINIMUM_BPS = 40
    RX_MAXIMUM_BPS = 41
    SERVICE_CATEGORY = 42
    SERVICE_NAME = 43
    CALLING_SUB_ADDRESS = 44
    VPI_VCI_IDENTIFIER = 45
    # RFC 3145.
    PPP_DISCONNECT_CAUSE = 46
    # RFC 3308: differentiated services of the control connection and of a session.
    CONTROL_CONNECTION_DS = 47
    SESSION_DS = 48
    # RFC 3437: LCP at the LAC as the LNS would have it.
    LCP_WANT_OPTIONS = 49
    LCP_ALLOW_OPTIONS = 50
    LNS_LAST_SENT_LCP_CONFREQ = 51
    LNS_LAST_RECEIVED_LCP_CONFREQ = 52
    # RFC 3573.
    MODEM_ON_HOLD_CAPABLE = 53
    # RFC 3817.
    PPPOE_RELAY_RESPONSE_CAPABILITY = 56
    PPPOE_RELAY_FORWARD_CAPABILITY = 57
    # RFC 4951.
    FAILOVER_CAPABILITY = 76
    # RFC 5515.
    CONNECT_SPEED_UPDATE_ENABLE = 98


class Rule(NamedTuple):
    """What holds for an AVP."""

    #: It is sent with the M bit.
    mandatory: bool
    #: It may be hidden.
    hideable: bool
    #: Octets of its value, not hidden.
    least: int
    most: int = MAX_VALUE


def _rules() -> dict[int, Rule]:
    yes, no = True, False
    rules: dict[int, Rule] = {
        Attr.MESSAGE_TYPE: Rule(yes, no, 2, 2),
        Attr.RESULT_CODE: Rule(yes, no, 2),
        Attr.PROTOCOL_VERSION: Rule(yes, no, 2, 2),
        Attr.FRAMING_CAPABILITIES: Rule(yes, yes, 4, 4),
        Attr.BEARER_CAPABILITIES: Rule(yes, yes, 4, 4),
        Attr.TIE_BREAKER: Rule(no, no, 8, 8),
        Attr.FIRMWARE_REVISION: Rule(no, yes, 2, 2),
        # The RFC wants at least one octet, but a peer without a name does no harm.
        Attr.HOST_NAME: Rule(yes, no, 0),
        Attr.VENDOR_NAME: Rule(no, yes, 0),
        Attr.ASSIGNED_TUNNEL_ID: Rule(yes, yes, 2, 2),
        Attr.RECEIVE_WINDOW_SIZE: Rule(yes, no, 2, 2),
        Attr.CHALLENGE: Rule(yes, yes, 1),
        Attr.Q931_CAUSE_CODE: Rule(yes, no, 3),
        Attr.CHALLENGE_RESPONSE: Rule(yes, yes, 16, 16),
        Attr.ASSIGNED_SESSION_ID: Rule(yes, yes, 2, 2),
        Attr.CALL_SERIAL_NUMBER: Rule(yes, yes, 4, 4),
        Attr.MINIMUM_BPS: Rule(yes, yes, 4, 4),
        Attr.MAXIMUM_BPS: Rule(yes, yes, 4, 4),
        Attr.BEARER_TYPE: Rule(yes, yes, 4, 4),
        Attr.FRAMING_TYPE: Rule(yes, yes, 4, 4),
        Attr.CALLED_NUMBER: Rule(yes, yes, 0),
        Attr.CALLING_NUMBER: Rule(yes, yes, 0),
        Attr.SUB_ADDRESS: Rule(yes, yes, 0),
        Attr.TX_CONNECT_SPEED: Rule(yes, yes, 4, 4),
        Attr.PHYSICAL_CHANNEL_ID: Rule(no, yes, 4, 4),
        Attr.INITIAL_RECEIVED_LCP_CONFREQ: Rule(no, yes, 0),
        Attr.LAST_SENT_LCP_CONFREQ: Rule(no, yes, 0),
        Attr.LAST_RECEIVED_LCP_CONFREQ: Rule(no, yes, 0),
        Attr.PROXY_AUTHEN_TYPE: Rule(no, yes, 2, 2),
        Attr.PROXY_AUTHEN_NAME: Rule(no, yes, 0),
        Attr.PROXY_AUTHEN_CHALLENGE: Rule(no, yes, 1),
        Attr.PROXY_AUTHEN_ID: Rule(no, yes, 2, 2),
        Attr.PROXY_AUTHEN_RESPONSE: Rule(no, yes, 0),
        Attr.CALL_ERRORS: Rule(yes, yes, 26, 26),
        Attr.ACCM: Rule(yes, yes, 10, 10),
        Attr.RANDOM_VECTOR: Rule(yes, no, 0),
        Attr.PRIVATE_GROUP_ID: Rule(no, yes, 0),
        Attr.RX_CONNECT_SPEED: Rule(no, yes, 4, 4),
        Attr.SEQUENCING_REQUIRED: Rule(yes, no, 0, 0),
        Attr.PPP_DISCONNECT_CAUSE: Rule(no, yes, 5),
    }
    # The rest informs, or says what the peer could do: known so that a peer that sets the M bit on one is served.
    # Those are not here that change what a message means (RFC 4951 Tunnel Recovery) or belong to messages that we
    # do not know: who insists on such a one is told that it cannot be had.
    for attribute in Attr:
        rules.setdefault(int(attribute), Rule(no, yes, 0))
    return rules


#: RFC 2661 section 4.4: the M bit of each AVP, whether it may be hidden, and its length.
RULES = _rules()

#: Section 6: what must be in a message besides the Message Type.
REQUIRED: dict[int, tuple[Attr, ...]] = {
    Type.SCCRQ: (Attr.PROTOCOL_VERSION, Attr.HOST_NAME, Attr.FRAMING_CAPABILITIES, Attr.ASSIGNED_TUNNEL_ID),
    Type.SCCRP: (Attr.PROTOCOL_VERSION, Attr.FRAMING_CAPABILITIES, Attr.HOST_NAME, Attr.ASSIGNED_TUNNEL_ID),
    Type.SCCCN: (),
    Type.STOP_CCN: (Attr.ASSIGNED_TUNNEL_ID, Attr.RESULT_CODE),
    Type.HELLO: (),
    Type.OCRQ: (
        Attr.ASSIGNED_SESSION_ID,
        Attr.CALL_SERIAL_NUMBER,
        Attr.MINIMUM_BPS,
        Attr.MAXIMUM_BPS,
        Attr.BEARER_TYPE,
        Attr.FRAMING_TYPE,
        Attr.CALLED_NUMBER,
    ),
    Type.OCRP: (Attr.ASSIGNED_SESSION_ID,),
    Type.OCCN: (Attr.TX_CONNECT_SPEED, Attr.FRAMING_TYPE),
    Type.ICRQ: (Attr.ASSIGNED_SESSION_ID, Attr.CALL_SERIAL_NUMBER),
    Type.ICRP: (Attr.ASSIGNED_SESSION_ID,),
    Type.ICCN: (Attr.TX_CONNECT_SPEED, Attr.FRAMING_TYPE),
    Type.CDN: (Attr.RESULT_CODE, Attr.ASSIGNED_SESSION_ID),
    Type.WEN: (Attr.CALL_ERRORS,),
    Type.SLI: (Attr.ACCM,),
}

# Without which nothing can be done.  Deployed peers leave out some of the others, Framing Capabilities and Call Serial
# Number among them; what ends a tunnel or call is found by its header as well.
_VITAL: dict[int, Attr] = {
    Type.SCCRQ: Attr.ASSIGNED_TUNNEL_ID,
    Type.SCCRP: Attr.ASSIGNED_TUNNEL_ID,
    Type.OCRQ: Attr.ASSIGNED_SESSION_ID,
    Type.OCRP: Attr.ASSIGNED_SESSION_ID,
    Type.ICRQ: Attr.ASSIGNED_SESSION_ID,
    Type.ICRP: Attr.ASSIGNED_SESSION_ID,
}

# General Error Codes (section 4.4.2).
_ERROR_LENGTH = 2
_ERROR_VALUE = 3
_ERROR_VENDOR = 6
_ERROR_UNKNOWN = 8

_NAMES: dict[int, str] = {kind: "StopCCN" if kind is Type.STOP_CCN else kind.name for kind in Type}


class Control(NamedTuple):
    """A control message as the channel sees it."""

    #: Of the recipient.
    tunnel_id: int
    session_id: int
    ns: int
    nr: int
    #: Its AVPs; empty: a ZLB, which only acknowledges.
    body: bytes


def decode_control(datagram: bytes) -> Control:
    """Read the header of a control message; what lies behind its Length is padding.

    Raises :class:`~npppy.cursor.Malformed` if it is none, or not of version 2.
    """
    if len(datagram) < _WORDS.size:
        raise Malformed("short")
    flags, length, tunnel_id, session_id, ns, nr = _WORDS.unpack_from(datagram)
    if flags & _VERSION != VERSION:
        raise Malformed("version")
    if flags & (_CONTROL | _LENGTH | _SEQUENCE | _OFFSET) != _CONTROL | _LENGTH | _SEQUENCE:
        raise Malformed("flags")
    if not _WORDS.size <= length <= len(datagram):
        raise Malformed("length")
    return Control(tunnel_id, session_id, ns, nr, datagram[_WORDS.size : length])


def control(tunnel_id: int, session_id: int, ns: int, nr: int, body: bytes) -> bytes:
    """A control message around encoded AVPs; *body* b"": a ZLB."""
    flags = _CONTROL | _LENGTH | _SEQUENCE | VERSION
    return _WORDS.pack(flags, _WORDS.size + len(body), tunnel_id, session_id, ns, nr) + body


class Data(NamedTuple):
    """Where in a data message is what."""

    #: Of the recipient.
    tunnel_id: int
    session_id: int
    #: -1: none.
    ns: int
    #: The PPP frame is datagram[start:end]; it may begin with Address and Control.
    start: int
    end: int


def decode_data(datagram: bytes) -> Data:
    """Read the header of a data message.  Raises :class:`~npppy.cursor.Malformed`."""
    # Run for every packet that pipex does not take, so without a Cursor; first the two forms that peers really send.
    size = len(datagram)
    if size >= 12:
        flags, end, tunnel_id, session_id, ns, _ = _WORDS.unpack_from(datagram)
        form = flags & _FORM
        if form == _SEQUENCED and 12 <= end <= size:
            return Data(tunnel_id, session_id, ns, 12, end)
        if form == _PLAIN and 8 <= end <= size:
            return Data(tunnel_id, session_id, -1, 8, end)
    # "need" is what the header has at least, and is compared before anything is read.
    if size < 6:
        raise Malformed("short")
    flags = datagram[0] << 8 | datagram[1]
    if flags & (_CONTROL | _VERSION) != VERSION:
        raise Malformed("version")
    at = 2
    need = 6
    end = size
    if flags & _LENGTH:
        at = 4
        need = 8
        end = datagram[2] << 8 | datagram[3]
        if end > size:
            raise Malformed("length")
    ns = -1
    if flags & _SEQUENCE:
        need += 4
    if flags & _OFFSET:
        need += 2
    if need > end:
        raise Malformed("short")
    if flags & _SEQUENCE:
        ns = datagram[at + 4] << 8 | datagram[at + 5]
    start = need
    if flags & _OFFSET:
        start += datagram[need - 2] << 8 | datagram[need - 1]
        if start > end:
            raise Malformed("offset")
    return Data(datagram[at] << 8 | datagram[at + 1], datagram[at + 2] << 8 | datagram[at + 3], ns, start, end)


def data_header(tunnel_id: int, session_id: int, sequenced: bool) -> bytes:
    """The header of data messages, with Length at 2 and, if *sequenced*, Ns at 8 to be filled in."""
    if sequenced:
        return _WORDS.pack(_SEQUENCED, 0, tunnel_id, session_id, 0, 0)
    return _WORDS.pack(_PLAIN, 0, tunnel_id, session_id, 0, 0)[:8]


class Fault(NamedTuple):
    """Why the session of a message, or its tunnel, cannot go on."""

    attribute: int
    vendor: int
    #: The General Error Code (section 4.4.2), for a Result Code of 2.
    error: int
    text: str


class Message:
    """What a control message says."""

    __slots__ = ("avps", "fault", "mandatory", "type")

    def __init__(self, kind: int, mandatory: bool) -> None:
        #: A :class:`Type`, or another number.
        self.type = kind
        #: The M bit of the Message Type AVP.
        self.mandatory = mandatory
        #: Values of vendor 0, revealed, by :class:`Attr`; the first of each, and only those of a right length.
        self.avps: dict[int, bytes] = {}
        #: The first thing that the sender insists on and that cannot be had, or that is wrong, or missing and vital.
        self.fault: Fault | None = None

    @property
    def name(self) -> str:
        return _NAMES.get(self.type) or f"type {self.type}"

    def part(self, attributes: Mapping[Attr, int]) -> Message:
        """The same message with these AVPs alone, each with as many octets at the most: for one that is kept.

        One that is small is itself.
        """
        avps = self.avps.values()
        if len(avps) <= _FEW and sum(map(len, avps)) <= sum(attributes.values()):
            return self
        found = Message(self.type, self.mandatory)
        found.avps = {key: value[:size] for key, size in attributes.items() if (value := self.avps.get(key))}
        return found

    def u16(self, attribute: Attr, default: int) -> int:
        """The number in an AVP of 2 octets; *default* without one."""
        value = self.avps.get(attribute, b"")
        return int.from_bytes(value, "big") if len(value) == 2 else default

    def u32(self, attribute: Attr, default: int) -> int:
        """The number in an AVP of 4 octets; *default* without one."""
        value = self.avps.get(attribute, b"")
        return int.from_bytes(value, "big") if len(value) == 4 else default

    def text(self, attribute: Attr, default: str) -> str:
        """An AVP as text, *default* without one.  It is the peer's: to be escaped before it is logged."""
        value = self.avps.get(attribute)
        return default if value is None else value.decode("utf-8", "replace")

    def missing(self) -> list[Attr]:
        """What section 6 wants in the message and is not there, vital or not."""
        return [attribute for attribute in REQUIRED.get(self.type, ()) if attribute not in self.avps]


def decode_message(body: bytes, secret: bytes) -> Message:
    """Read the AVPs of a control message that is no ZLB; *secret* b"": the tunnel has none, so nothing is hidden.

    What is wrong with an AVP is a :attr:`Message.fault` if it has the M bit, and else the AVP is ignored (sections 4.1
    and 7.1).  Raises :class:`~npppy.cursor.Malformed` if it cannot be told where AVPs end, or what the message is.
    """
    cursor = Cursor(body)
    flags, vendor, attribute, value = _next(cursor)
    if flags & (_RESERVED | _HIDDEN) or vendor or attribute != Attr.MESSAGE_TYPE or len(value) != 2:
        raise Malformed("message type")
    message = Message(int.from_bytes(value, "big"), bool(flags & _MANDATORY))
    avps = message.avps
    avps[Attr.MESSAGE_TYPE] = value
    fault: Fault | None = None
    vector: bytes | None = None
    while cursor:
        flags, vendor, attribute, value = _next(cursor)
        rule = RULES.get(attribute)
        error, problem = 0, ""
        if rule is None or vendor or flags & _RESERVED:
            error, problem = _ERROR_UNKNOWN, "unknown"
        elif flags & _HIDDEN:
            if attribute == Attr.RANDOM_VECTOR:
                error, problem = _ERROR_VALUE, "hidden"
            elif not secret:
                error, problem = _ERROR_UNKNOWN, "hidden, and there is no secret"
            elif vector is None:
                error, problem = _ERROR_VALUE, "hidden, and there is no random vector"
            else:
                try:
                    value = reveal(attribute, value, secret, vector)
                except Malformed:
                    error, problem = _ERROR_LENGTH, "hidden by another secret, or its length is wrong"
        if rule is not None and not error:
            error, problem = _check(attribute, value, rule)
        if not error:
            if attribute == Attr.RANDOM_VECTOR:
                vector = value
            avps.setdefault(attribute, value)
        elif flags & _MANDATORY and fault is None:
            fault = Fault(attribute, vendor, error, f"{_title(attribute, vendor)}: {problem}")
    if message.type not in _NAMES:
        # Section 4.4.1: one that need not be understood may be ignored, with all that is in it.
        text = f"unknown message type {message.type}"
        fault = Fault(Attr.MESSAGE_TYPE, 0, _ERROR_UNKNOWN, text) if message.mandatory else None
    elif fault is None:
        vital = _VITAL.get(message.type)
        if vital is not None and vital not in avps:
            fault = Fault(vital, 0, _ERROR_VENDOR, f"{_title(vital, 0)}: missing")
    message.fault = fault
    result = avps.get(Attr.RESULT_CODE, b"")
    if len(result) == 4 and not result[0] and not result[1]:
        # Windows 2000 takes the Result Code for a number of 4 octets; as 0 is reserved, it is no Error Code.
        avps[Attr.RESULT_CODE] = result[2:]
    return message


def _next(cursor: Cursor) -> tuple[int, int, int, bytes]:
    """The next AVP: its first 16 bits, Vendor ID, Attribute Type and Value."""
    flags, vendor, attribute = _AVP.unpack(cursor.take(_AVP_LEN))
    # A length under that of its own header makes this one negative, and that is refused.
    return flags, vendor, attribute, cursor.take((flags & _SIZE) - _AVP_LEN)


def _check(attribute: int, value: bytes, rule: Rule) -> tuple[int, str]:
    """What is wrong with a value: an error code and a text, or 0."""
    size = len(value)
    # There is half an Error Code in a Result Code of 3 octets.
    if not rule.least <= size <= rule.most or (attribute == Attr.RESULT_CODE and size == 3):
        return _ERROR_LENGTH, f"length {size}"
    if attribute in (Attr.ASSIGNED_TUNNEL_ID, Attr.ASSIGNED_SESSION_ID) and value == b"\0\0":
        return _ERROR_VALUE, "0"
    return 0, ""


def _title(attribute: int, vendor: int) -> str:
    if vendor:
        return f"attribute {attribute} of vendor {vendor}"
    if attribute in RULES:
        return f"attribute {attribute} ({Attr(attribute).name.replace('_', ' ').lower()})"
    return f"attribute {attribute}"


class Hiding(NamedTuple):
    """How AVPs of a message are hidden."""

    #: What goes into its Random Vector AVP: random octets, 16 of them are recommended.
    vector: bytes
    #: Of attribute type, value and vector the hidden value; of at most :data:`MAX_VALUE` octets.
    hide: Callable[[int, bytes, bytes], bytes]


def encode_message(kind: Type, avps: Iterable[tuple[Attr, bytes]], hiding: Hiding | None = None) -> bytes:
    """The AVPs of a message, Message Type first; with *hiding* all are hidden that may be.

    Raises ValueError for a value, or a hidden value, of more than :data:`MAX_VALUE` octets.
    """
    parts = [_AVP.pack(_MANDATORY | _AVP_LEN + 2, 0, Attr.MESSAGE_TYPE), u16(kind)]
    announced = False
    for attribute, value in avps:
        rule = RULES[attribute]
        flags = _MANDATORY if rule.mandatory else 0
        if hiding is not None and rule.hideable:
            if not announced:
                announced = True
                _append(parts, _MANDATORY, Attr.RANDOM_VECTOR, hiding.vector)
            flags |= _HIDDEN
            value = hiding.hide(attribute, value, hiding.vector)
        _append(parts, flags, attribute, value)
    return b"".join(parts)


def _append(parts: list[bytes], flags: int, attribute: int, value: bytes) -> None:
    if len(value) > MAX_VALUE:
        raise ValueError(f"attribute {attribute} has {len(value)} octets")
    parts.append(_AVP.pack(flags | _AVP_LEN + len(value), 0, attribute))
    parts.append(value)


def u16(number: int) -> bytes:
    """The value of an AVP of 2 octets."""
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    """The value of an AVP of 4 octets."""
    return number.to_bytes(4, "big")


def result_code(result: int, error: int = 0, message: str = "") -> bytes:
    """The value of a Result Code AVP (section 4.4.2); of *message* no more than 255 octets are sent."""
    if not error and not message:
        return u16(result)
    text = message.encode("utf-8", "replace")[:_MAX_TEXT]
    # Not half a character at the end.
    return u16(result) + u16(error) + text.decode("utf-8", "ignore").encode()


def shown(datagram: bytes) -> str:
    """A dump of a message, 16 octets a line, without the passwords that are in it."""
    return dump(datagram, _passwords(datagram))


def _passwords(datagram: bytes) -> list[tuple[int, int]]:
    """Where in a message passwords are, or what may be some."""
    if datagram[:1] >= b"\x80":
        return _responses(datagram)
    try:
        data = decode_data(datagram)
    except Malformed:
        return [(0, len(datagram))]
    at = data.start
    if datagram[at : at + 2] == b"\xff\x03":
        at += 2
    return [(at + 2, data.end)] if datagram[at : at + 2] == u16(PAP) else []


def _responses(datagram: bytes) -> list[tuple[int, int]]:
    """Where the values of Proxy Authen Response AVPs are."""
    found = []
    cursor = Cursor(datagram, min(_WORDS.size, len(datagram)))
    try:
        while cursor:
            _, vendor, attribute, value = _next(cursor)
            if not vendor and attribute == Attr.PROXY_AUTHEN_RESPONSE:
                found.append((cursor.pos - len(value), cursor.pos))
    except Malformed:
        # From here on it cannot be told.
        found.append((cursor.pos, len(datagram)))
    return found
