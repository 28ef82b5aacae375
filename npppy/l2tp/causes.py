"""Why calls end: from Acct-Terminate-Cause to CDN's Result Code and PPP Disconnect Cause, and back."""

from __future__ import annotations

from ..cursor import Cursor, Malformed
from ..ppp.cause import Cause
from ..text import printable

# RFC 2661 section 4.4.2: Result Codes of StopCCN.
STOP_CLEAR = 1
STOP_ERROR = 2
STOP_NOT_AUTHORIZED = 4
STOP_VERSION = 5
STOP_SHUTDOWN = 6
STOP_FSM = 7

# The same of CDN.
CDN_CARRIER = 1
CDN_ERROR = 2
CDN_ADMINISTRATIVE = 3
CDN_TEMPORARY = 4
CDN_PERMANENT = 5

# General Error Codes.
ERROR_SESSION_ID = 5
ERROR_VENDOR = 6

_STOP = {
    1: "cleared",
    2: "general error",
    3: "the control channel exists already",
    4: "not authorized",
    5: "protocol version",
    6: "it is being shut down",
    7: "FSM error",
}
_CDN = {
    1: "loss of carrier",
    2: "general error",
    3: "administrative reasons",
    4: "no facilities now",
    5: "no facilities",
    6: "invalid destination",
    7: "no carrier",
    8: "busy",
    9: "no dial tone",
    10: "not established in time",
    11: "no framing",
}
_ERRORS = {
    1: "no control connection",
    2: "wrong length",
    3: "value out of range",
    4: "insufficient resources",
    5: "invalid session",
    6: "vendor-specific error",
    7: "try another",
    8: "unknown mandatory AVP",
}

#: Result and Error Code of a CDN of ours.
RESULTS = {
    Cause.USER_REQUEST: (CDN_CARRIER, 0),
    Cause.LOST_CARRIER: (CDN_CARRIER, 0),
    Cause.PORT_ERROR: (CDN_CARRIER, 0),
    Cause.USER_ERROR: (CDN_ERROR, ERROR_VENDOR),
    Cause.NAS_ERROR: (CDN_ERROR, ERROR_VENDOR),
    Cause.SERVICE_UNAVAILABLE: (CDN_TEMPORARY, 0),
}

#: RFC 3145 section 2: Disconnect Code and Direction, 1 where the peer was the reason and 2 where we were.
_DISCONNECT = {
    Cause.USER_REQUEST: (3, 1),
    Cause.IDLE_TIMEOUT: (3, 2),
    Cause.SESSION_TIMEOUT: (3, 2),
    Cause.LOST_CARRIER: (8, 1),
    Cause.PORT_ERROR: (7, 0),
    Cause.ADMIN_RESET: (1, 0),
    Cause.ADMIN_REBOOT: (1, 0),
    Cause.PORT_PREEMPTED: (1, 0),
    Cause.NAS_REQUEST: (1, 0),
}


def disconnect_cause(cause: Cause) -> bytes:
    """The value of a PPP Disconnect Cause Code AVP (RFC 3145 section 2): code, protocol, direction, message."""
    code, direction = _DISCONNECT.get(cause, (0, 0))
    return code.to_bytes(2, "big") + bytes(2) + bytes((direction,)) + cause.title.encode()


def read_result(value: bytes, *, stop: bool) -> tuple[int, str]:
    """Result Code and a text about a Result Code AVP."""
    cursor = Cursor(value)
    try:
        result = cursor.u16()
        text = (_STOP if stop else _CDN).get(result, f"result {result}")
        if cursor:
            error = cursor.u16()
            if error:
                text += f", {_ERRORS.get(error, f'error {error}')}"
    except Malformed:
        return 0, "no reason given"
    if cursor:
        text += f" ({printable(cursor.rest()[:128])})"
    return result, text


def read_disconnect_cause(value: bytes) -> str:
    """A text about a PPP Disconnect Cause Code AVP."""
    cursor = Cursor(value)
    try:
        code, protocol, direction = cursor.u16(), cursor.u16(), cursor.u8()
    except Malformed:
        return ""
    text = printable(cursor.rest()[:128])
    return f'disconnect code={code} protocol=0x{protocol:04x} direction={direction} message="{text}"'
