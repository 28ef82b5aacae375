"""Why connections and calls end, or are refused (RFC 2637 sections 2.2 to 2.16)."""

from __future__ import annotations

from ..ppp.cause import Cause

# Result Codes of all replies.
OK = 1
GENERAL_ERROR = 2
# Of Start-Control-Connection-Reply.
START_VERSION = 5
# Of Outgoing-Call-Reply and of Incoming-Call-Reply.
OUTGOING_DO_NOT_ACCEPT = 7
INCOMING_DO_NOT_ACCEPT = 3

# Reasons of Stop-Control-Connection-Request.
STOP_NONE = 1
STOP_PROTOCOL = 2
STOP_SHUTDOWN = 3

# Result Codes of Call-Disconnect-Notify.
LOST_CARRIER = 1
ADMIN_SHUTDOWN = 3
REQUEST = 4

# General Error Codes.
NO_RESOURCE = 4
BAD_CALL_ID = 5
PAC_ERROR = 6

_STOP = {1: "none", 2: "another protocol version", 3: "it is being shut down"}
_DISCONNECT = {1: "loss of carrier", 2: "general error", 3: "administrative reasons", 4: "request"}
_OUTGOING = {
    1: "connected",
    2: "general error",
    3: "no carrier",
    4: "busy",
    5: "no dial tone",
    6: "not established in time",
    7: "not accepted",
}
_ERRORS = {
    1: "no control connection",
    2: "bad format",
    3: "bad value",
    4: "no resource",
    5: "bad call id",
    6: "PAC error",
}

#: Result and Error Code of a Call-Disconnect-Notify of ours.
RESULTS = {
    Cause.USER_REQUEST: (LOST_CARRIER, 0),
    Cause.LOST_CARRIER: (LOST_CARRIER, 0),
    Cause.PORT_ERROR: (LOST_CARRIER, 0),
    Cause.USER_ERROR: (GENERAL_ERROR, PAC_ERROR),
    Cause.NAS_ERROR: (GENERAL_ERROR, PAC_ERROR),
    Cause.SERVICE_UNAVAILABLE: (GENERAL_ERROR, NO_RESOURCE),
}


def result(cause: Cause) -> tuple[int, int]:
    """What a Call-Disconnect-Notify says of a cause."""
    return RESULTS.get(cause, (ADMIN_SHUTDOWN, 0))


def stop_text(reason: int) -> str:
    """A text about the reason of a Stop-Control-Connection-Request."""
    return _STOP.get(reason, f"reason {reason}")


def disconnect_text(code: int, error: int) -> str:
    """A text about the codes of a Call-Disconnect-Notify."""
    return _with_error(_DISCONNECT.get(code, f"result {code}"), error)


def outgoing_text(code: int, error: int) -> str:
    """A text about the codes of an Outgoing-Call-Reply."""
    return _with_error(_OUTGOING.get(code, f"result {code}"), error)


def _with_error(text: str, error: int) -> str:
    return f"{text}, {_ERRORS.get(error, f'error {error}')}" if error else text
