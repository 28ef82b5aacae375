"""What both ends of the control socket speak.

A stream of frames each way: a length in four octets, most significant first, and that many octets of JSON, always an
object.  npppyd speaks first::

    npppyd     {"hello": "npppyd", "version": 1, "npppy": "0.1.0"}
    client     {"hello": "npppyctl", "version": 1}
    client     {"command": "session", "filters": {"realm": "LOCAL"}}
    npppyd     {"rows": [{...}, ...]}       any number of times
    npppyd     {"done": {...}}              the end; what it holds is the command's

``{"error": "text"}`` may stand in the place of any frame of npppyd's and is its last.  A connection carries one
command; a client that sends more, or closes, ends the command.  One that closes only its own side of the connection
brings "capture" to its end, with a "done" as always.

npppyctl imports this module, and starts faster for what it does not import.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: A frame, or a row in one.
Message = dict[str, "Any"]

SOCKET = "/var/run/npppyd.sock"

#: Raised with every change that an older program would misread.  More keys, rows and commands are not such a change.
VERSION = 1

#: Octets of JSON in a frame of a client's, and of npppyd's.
MAX_REQUEST = 64 * 1024
MAX_REPLY = 1024 * 1024

HEADER = 4


class ProtocolError(Exception):
    """The other side does not keep to the protocol."""


class RequestError(Exception):
    """A request that asks for what there is not; the message is for the user."""


#: Plain ASCII: the lone surrogates of a name that is not UTF-8 come through as escapes.
_json = json.JSONEncoder(separators=(",", ":"))


def encode(message: Message) -> bytes:
    return _json.encode(message).encode()


def frame(payload: bytes, limit: int) -> bytes:
    """*payload* behind its length.  Raises ValueError above *limit*."""
    if len(payload) > limit:
        raise ValueError(f"a frame of {len(payload)} octets, the limit is {limit}")
    return len(payload).to_bytes(HEADER, "big") + payload


def payload_length(header: bytes, limit: int) -> int:
    length = int.from_bytes(header, "big")
    if length > limit:
        raise ProtocolError(f"a frame of {length} octets, the limit is {limit}")
    return length


def decode(payload: bytes) -> Message:
    """The object in a frame.  Raises :class:`ProtocolError`, whatever the payload."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        # ValueError: not UTF-8, not JSON, or an integer of thousands of digits.
        raise ProtocolError("not JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("not a JSON object")
    return message


def check_hello(message: Message, us: str) -> None:
    """Raises :class:`ProtocolError` unless *message* is the greeting of a program that speaks our version."""
    if not isinstance(message.get("hello"), str):
        raise ProtocolError("no hello")
    version = message.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ProtocolError(
            f"{us} speaks version {VERSION} of the control protocol, the other side version {str(version)[:20]}"
        )
