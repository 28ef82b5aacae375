"""A frame of a session on one line.  It shows no password: a line is easily pasted somewhere."""

from __future__ import annotations

import socket

from ..cursor import Cursor, Malformed
from ..ppp import proto
from ..pppoe.codec import DISCOVERY, SESSION, Code
from ..pptp import gre
from ..text import printable

_TAGS = (0x8100, 0x88A8)
_ETHER_IP, _ETHER_IPV6 = 0x0800, 0x86DD

# Of an L2TP header (RFC 2661 section 3.1).
_CONTROL, _LENGTH, _SEQUENCE, _OFFSET, _VERSION = 0x8000, 0x4000, 0x0800, 0x0200, 0x000F
# Of PPTP's GRE (RFC 2637 section 4.1): the bits that give it its form, and those of them that are set.
_GRE_FORM, _GRE_ENHANCED = 0xE807, 0x2001

_DISCOVERY = {code.value: code.name for code in Code}
_PROTOCOLS = {number: name.upper() for number, name in proto.NAMES.items()} | {proto.IPV6: "IPV6"}
_CODES = {
    proto.CONFIGURE_REQUEST: "ConfReq",
    proto.CONFIGURE_ACK: "ConfAck",
    proto.CONFIGURE_NAK: "ConfNak",
    proto.CONFIGURE_REJECT: "ConfRej",
    proto.TERMINATE_REQUEST: "TermReq",
    proto.TERMINATE_ACK: "TermAck",
    proto.CODE_REJECT: "CodeRej",
}
_LCP_CODES = _CODES | {
    proto.PROTOCOL_REJECT: "ProtRej",
    proto.ECHO_REQUEST: "EchoReq",
    proto.ECHO_REPLY: "EchoRep",
    proto.DISCARD_REQUEST: "DiscReq",
    proto.IDENTIFICATION: "Ident",
    proto.TIME_REMAINING: "TimeRem",
}
_CCP_CODES = _CODES | {proto.RESET_REQUEST: "ResetReq", proto.RESET_ACK: "ResetAck"}
_CONFIGURE = range(proto.CONFIGURE_REQUEST, proto.CONFIGURE_REJECT + 1)
_PAP = {1: "AuthReq", 2: "AuthAck", 3: "AuthNak"}
_CHAP = {1: "Challenge", 2: "Response", 3: "Success", 4: "Failure"}
_EAP = {1: "Request", 2: "Response", 3: "Success", 4: "Failure"}
#: Types of EAP that are met with PPP (RFC 3748 section 5, RFC 5216, and the registry).
_EAP_TYPES = {
    1: "identity",
    2: "notification",
    3: "nak",
    4: "md5",
    5: "otp",
    6: "gtc",
    13: "tls",
    21: "ttls",
    25: "peap",
    26: "mschapv2",
}

_LCP_OPTIONS = {proto.OPT_MRU: "mru", proto.OPT_ACCM: "accm", proto.OPT_AUTH: "auth", proto.OPT_MAGIC: "magic"}
_IPCP_OPTIONS = {
    proto.OPT_ADDRESS: "address",
    proto.OPT_DNS1: "dns1",
    proto.OPT_DNS2: "dns2",
    proto.OPT_NBNS1: "nbns1",
    proto.OPT_NBNS2: "nbns2",
}
_CCP_OPTIONS = {proto.OPT_MPPE: "mppe"}
_AUTH = {b"\xc0\x23": "pap", b"\xc2\x23\x05": "chap-md5", b"\xc2\x23\x81": "mschapv2", b"\xc2\x27": "eap"}

_ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_ICMP6 = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
}
_FLAGS = "FSRPAUEW"


def summary(data: bytes, length: int) -> tuple[str, str]:
    """The protocol of a frame, and what it says; of its *length* octets *data* may have only the first."""
    broken = "truncated" if len(data) < length else "malformed"
    try:
        return _frame(Cursor(data), broken)
    except Malformed:
        return "?", broken


def _frame(cursor: Cursor, broken: str) -> tuple[str, str]:
    cursor.take(12)
    kind = cursor.u16()
    while kind in _TAGS:
        cursor.u16()
        kind = cursor.u16()
    if kind in (_ETHER_IP, _ETHER_IPV6):
        return _packet(cursor, kind, broken)
    if kind not in (DISCOVERY, SESSION):
        return f"0x{kind:04x}", ""
    cursor.u8()
    code = cursor.u8()
    session = cursor.u16()
    if kind == DISCOVERY:
        return _DISCOVERY.get(code, f"0x{code:02x}"), f"session {session}"
    return _ppp(cursor, cursor.u16(), broken)


def _packet(cursor: Cursor, kind: int, broken: str) -> tuple[str, str]:
    """IP with what carries PPP."""
    if kind == _ETHER_IP:
        header = (cursor.u8() & 15) * 4
        cursor.take(5)
        fragment = cursor.u16() & 0x1FFF
        cursor.u8()
        protocol = cursor.u8()
        cursor.take(header - 10)
    else:
        cursor.take(6)
        protocol, fragment = cursor.u8(), 0
        cursor.take(33)
    if fragment:
        return "IP", f"protocol {protocol}, fragment at {fragment * 8}"
    if protocol == socket.IPPROTO_GRE:
        return _pptp(cursor, broken)
    if protocol == socket.IPPROTO_UDP:
        return _l2tp(cursor, broken)
    return "IP", f"protocol {protocol}"


def _pptp(cursor: Cursor, broken: str) -> tuple[str, str]:
    """Enhanced GRE."""
    flags, protocol = cursor.u16(), cursor.u16()
    if flags & _GRE_FORM != _GRE_ENHANCED or protocol != gre.PROTOCOL:
        return "GRE", f"protocol 0x{protocol:04x}"
    size, call = cursor.u16(), cursor.u16()
    numbers = f" seq={cursor.u32()}" if flags & gre.SEQUENCE else ""
    if flags & gre.ACKNOWLEDGMENT:
        numbers += f" ack={cursor.u32()}"
    if not size:
        return "GRE", f"call {call}{numbers}"
    name, text = _framed(cursor, size, broken)
    return name, f"{text}{numbers}"


def _l2tp(cursor: Cursor, broken: str) -> tuple[str, str]:
    """UDP and an L2TP message."""
    cursor.take(4)
    # To the end of UDP; further on there may be less.
    size = cursor.u16() - 8
    cursor.u16()
    begin = len(cursor)
    flags = cursor.u16()
    if flags & _VERSION != 2:
        return "UDP", f"{size} octets"
    if flags & _LENGTH:
        size = min(size, cursor.u16())
    tunnel, session = cursor.u16(), cursor.u16()
    numbers = f" ns={cursor.u16()} nr={cursor.u16()}" if flags & _SEQUENCE else ""
    if flags & _CONTROL:
        return "L2TP", f"tunnel {tunnel} session {session}{numbers}"
    if flags & _OFFSET:
        cursor.take(cursor.u16())
    name, text = _framed(cursor, size - (begin - len(cursor)), broken)
    return name, f"{text}{numbers.partition(' nr=')[0]}"


def _framed(cursor: Cursor, length: int, broken: str) -> tuple[str, str]:
    """A frame of *length* octets, which may have Address and Control before its Protocol field."""
    if cursor.data.startswith(b"\xff\x03", cursor.pos, cursor.end):
        cursor.u16()
        length -= 2
    return _ppp(cursor, length, broken)


def _ppp(cursor: Cursor, length: int, broken: str) -> tuple[str, str]:
    """A frame of *length* octets, from its Protocol field on; what lies behind is padding."""
    ppp = cursor.sub(max(min(length, len(cursor)), 0))
    whole, begin = len(ppp) == length, ppp.pos
    protocol = ppp.u8()
    if not protocol & 1:
        protocol = protocol << 8 | ppp.u8()
    try:
        text = _payload(protocol, ppp, length - (ppp.pos - begin)) if whole or broken == "truncated" else broken
    except Malformed:
        text = "malformed" if whole else broken
    return _PROTOCOLS.get(protocol, f"0x{protocol:04x}"), text


def _payload(protocol: int, cursor: Cursor, length: int) -> str:
    """What follows the Protocol field: *length* octets, of which there may be less."""
    if protocol == proto.IP:
        return _ip(cursor)
    if protocol == proto.IPV6:
        return _ip6(cursor)
    if protocol == proto.COMPRESSED:
        return _mppe(cursor, length)
    if protocol not in (proto.LCP, proto.IPCP, proto.PAP, proto.CHAP, proto.EAP, proto.IPV6CP, proto.CCP):
        return ""
    code, identifier = cursor.u8(), cursor.u8()
    body = cursor.sub(cursor.u16() - 4)
    if protocol == proto.PAP:
        return f"{_PAP.get(code, f'code {code}')} id={identifier}{_pap(code, body)}"
    if protocol == proto.CHAP:
        return f"{_CHAP.get(code, f'code {code}')} id={identifier}{_chap(code, body)}"
    if protocol == proto.EAP:
        return f"{_EAP.get(code, f'code {code}')} id={identifier}{_eap(code, body)}"
    name = {proto.LCP: _LCP_CODES, proto.CCP: _CCP_CODES}.get(protocol, _CODES).get(code, f"code {code}")
    text = f"{name} id={identifier}"
    if code in _CONFIGURE:
        return text + "".join(f" {option}" for option in _options(protocol, body))
    if protocol == proto.LCP and code in (proto.ECHO_REQUEST, proto.ECHO_REPLY, proto.DISCARD_REQUEST):
        return f"{text} magic=0x{body.u32():08x}"
    if protocol == proto.LCP and code == proto.PROTOCOL_REJECT:
        return f"{text} protocol=0x{body.u16():04x}"
    if code == proto.TERMINATE_REQUEST and len(body):
        return f'{text} "{printable(body.rest())}"'
    return text


def _options(protocol: int, body: Cursor) -> list[str]:
    found = []
    names = {proto.LCP: _LCP_OPTIONS, proto.IPCP: _IPCP_OPTIONS, proto.CCP: _CCP_OPTIONS}.get(protocol, {})
    while len(body):
        kind = body.u8()
        value = body.take(body.u8() - 2)
        name = names.get(kind, f"option{kind}")
        if name == "mru" and len(value) == 2:
            shown = str(int.from_bytes(value, "big"))
        elif name == "auth":
            shown = _AUTH.get(value, value.hex())
        elif protocol == proto.IPCP and kind in _IPCP_OPTIONS and len(value) == 4:
            shown = socket.inet_ntoa(value)
        else:
            shown = f"0x{value.hex()}" if value else ""
        found.append(f"{name}={shown}" if shown else name)
    return found


def _mppe(cursor: Cursor, length: int) -> str:
    """RFC 3078 section 3.1; what is encrypted stays so."""
    head = cursor.u16()
    flags = "".join(letter for bit, letter in enumerate("ABCD") if head & 0x8000 >> bit)
    return f"flags={flags or 'none'} count={head & 0x0FFF}, {length - 2} octets"


def _pap(code: int, body: Cursor) -> str:
    text = printable(body.take(body.u8()))
    return f' user="{text}"' if code == 1 else f' "{text}"'


def _chap(code: int, body: Cursor) -> str:
    if code in (1, 2):
        body.take(body.u8())
        return f' name="{printable(body.rest())}"'
    return f' "{printable(body.rest())}"'


def _eap(code: int, body: Cursor) -> str:
    if code not in (1, 2):
        return ""
    kind = body.u8()
    name = _EAP_TYPES.get(kind, f"type {kind}")
    if kind in (1, 2) and len(body):
        return f' {name} "{printable(body.rest())}"'
    return f" {name}, {len(body)} octets" if len(body) else f" {name}"


def _ip(cursor: Cursor) -> str:
    first = cursor.u8()
    cursor.u8()
    total = cursor.u16()
    cursor.u16()
    fragment = cursor.u16()
    cursor.u8()
    protocol = cursor.u8()
    cursor.u16()
    source, destination = socket.inet_ntoa(cursor.take(4)), socket.inet_ntoa(cursor.take(4))
    header = (first & 15) * 4
    cursor.take(header - 20)
    if fragment & 0x1FFF:
        return f"{source} > {destination} protocol {protocol}, fragment at {(fragment & 0x1FFF) * 8}"
    more = ", first fragment" if fragment & 0x2000 else ""
    return _transport(source, destination, protocol, cursor, total - header) + more


def _ip6(cursor: Cursor) -> str:
    cursor.u32()
    size = cursor.u16()
    protocol = cursor.u8()
    cursor.u8()
    source, destination = (socket.inet_ntop(socket.AF_INET6, cursor.take(16)) for _ in range(2))
    return _transport(source, destination, protocol, cursor, size)


def _transport(source: str, destination: str, protocol: int, cursor: Cursor, size: int) -> str:
    ends = f"{source} > {destination}"
    if protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        names = _ICMP if protocol == socket.IPPROTO_ICMP else _ICMP6
        kind, code = cursor.u8(), cursor.u8()
        return f"{ends} ICMP {names.get(kind, f'type {kind}')}{f' code {code}' if code else ''}, {size} octets"
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return f"{ends} protocol {protocol}, {size} octets"
    between = ":" if "." in source else "."
    ends = f"{source}{between}{cursor.u16()} > {destination}{between}{cursor.u16()}"
    if protocol == socket.IPPROTO_UDP:
        return f"{ends} UDP, {size - 8} octets"
    cursor.take(8)
    header, flags = (cursor.u8() >> 4) * 4, cursor.u8()
    shown = "".join(letter for bit, letter in enumerate(_FLAGS) if flags & 1 << bit)
    return f"{ends} TCP {shown or 'none'}, {size - header} octets"
