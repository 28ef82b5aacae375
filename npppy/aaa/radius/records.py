"""What accounting records say (RFC 2866, RFC 2869, RFC 2867)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Final

from ...config.model import Radius
from ...pipex.base import Counters
from ...ppp.cause import Cause
from .packet import Pair, encode_attributes
from .request import session_pairs
from .spool import START, STOP

if TYPE_CHECKING:
    from ...ppp.session import Session

#: Octets of the facts of a session: a packet has room for them and for what comes to them.
MAX_FACTS: Final = 3800
_MAX_NAME = 253
_MAX_INTEGER = 0xFFFFFFFF

_STATUS, _SESSION_TIME, _TERMINATE_CAUSE, _TIMESTAMP = 40, 46, 49, 55
_USAGE = (42, 52, 47, 43, 53, 48)
# An attribute that is an integer: its type, its length, its value.
_HEAD = struct.Struct(">BBIBBI")
_BODY = struct.Struct(">" + 7 * "BBI")
_CAUSE = struct.Struct(">BBI")


def facts(session: Session, radius: Radius) -> bytes:
    """What all records of a session say.  It must be up."""
    name = session.name.encode("utf-8", "surrogateescape")[:_MAX_NAME].decode("utf-8", "surrogateescape")
    pairs = session_pairs(session.call.link, session.id, session.acct_session_id, name, radius)
    pairs.append(("Acct-Authentic", session.authentic))
    if session.address:
        pairs.append(("Framed-IP-Address", session.address))
        pairs.append(("Framed-IP-Netmask", int(IPv4Network((0, session.prefixlen)).netmask)))
    encoded = encode_attributes(pairs)
    # Of what the servers have given there may be more than they would take back; Class is what they bill by.
    more: list[Pair] = [("Class", value) for value in session.profile.classes]
    if session.profile.filter_id:
        more.append(("Filter-Id", session.profile.filter_id))
    # By way of the peer (RFC 2865 section 5.22).
    more += [("Framed-Route", f"{network} 0.0.0.0 1") for network in session.routes]
    for pair in more:
        attribute = encode_attributes((pair,))
        if len(encoded) + len(attribute) <= MAX_FACTS:
            encoded += attribute
    return encoded


def start(event: int, common: bytes) -> bytes:
    """A Start; *event* is in seconds since the Epoch, *common* are the facts."""
    return _head(START, event) + common


def usage(
    kind: int, event: int, common: bytes, seconds: float, counters: Counters, cause: Cause | None = None
) -> bytes:
    """An Interim-Update or a Stop: how long the session has lasted, and what has come from the peer and gone to it."""
    values: list[int] = []
    for octets, packets in (
        (counters.in_bytes, counters.in_packets),
        (counters.out_bytes, counters.out_packets),
    ):
        # Gigawords: RFC 2869 section 5.1.  Packets have none, and wrap.
        values += (octets & _MAX_INTEGER, octets >> 32 & _MAX_INTEGER, packets & _MAX_INTEGER)
    body = [_SESSION_TIME, 6, min(max(int(seconds), 0), _MAX_INTEGER)]
    for code, value in zip(_USAGE, values, strict=True):
        body += (code, 6, value)
    record = _head(kind, event) + common + _BODY.pack(*body)
    return record if kind != STOP or cause is None else record + _CAUSE.pack(_TERMINATE_CAUSE, 6, cause)


def barrier(kind: int, event: int, boot: int, radius: Radius) -> bytes:
    """Accounting-On and -Off.  No session has their Acct-Session-Id, which none may be without."""
    pairs: list[Pair] = [("NAS-Identifier", radius.nas_id), ("Acct-Session-Id", f"{boot:08x}")]
    return _head(kind, event) + encode_attributes(pairs)


def _head(kind: int, event: int) -> bytes:
    return _HEAD.pack(_STATUS, 6, kind, _TIMESTAMP, 6, event & _MAX_INTEGER)
