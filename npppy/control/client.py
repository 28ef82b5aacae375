"""npppyctl's end of the control socket."""

from __future__ import annotations

import contextlib
import socket

from .protocol import (
    HEADER,
    MAX_REPLY,
    MAX_REQUEST,
    VERSION,
    ProtocolError,
    check_hello,
    decode,
    encode,
    frame,
    payload_length,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .protocol import Message

#: Seconds to wait for npppyd's greeting.
HELLO_TIMEOUT = 10


class ControlError(Exception):
    """npppyd could not be asked, or refused; the message is for the user."""


class Answer:
    """What npppyd says to one command: iterate over the rows, a list at a time, then read :attr:`done`.

    *endless*: npppyd ends such a command only by closing the connection, which is no error then.
    """

    def __init__(self, sock: socket.socket, *, endless: bool = False) -> None:
        self._sock = sock
        self._endless = endless
        self.done: Message = {}

    def __iter__(self) -> Iterator[list[Message]]:
        while (message := receive(self._sock)) is not None:
            if "rows" in message:
                yield message["rows"]
            elif "done" in message:
                self.done = message["done"]
                return
        if not self._endless:
            raise ControlError("npppyd closed the connection before the end")

    def stop(self) -> None:
        """Ask npppyd to bring ``capture`` to its end; what it has gathered still comes.  For a signal handler."""
        with contextlib.suppress(OSError):
            # npppyd may have closed it.
            self._sock.shutdown(socket.SHUT_WR)


class Connection:
    """A connection to npppyd, for one command.  Raises :class:`ControlError`."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(HELLO_TIMEOUT)
        try:
            self._sock.connect(path)
        except OSError as error:
            hint = "; is npppyd running?" if isinstance(error, (FileNotFoundError, ConnectionRefusedError)) else ""
            raise ControlError(f"cannot connect to {path}: {error.strerror or error}{hint}") from None
        # npppyd speaks first, so that its refusal is read and not lost to a broken pipe.
        hello = receive(self._sock)
        if hello is None:
            raise ControlError("npppyd closed the connection")
        try:
            check_hello(hello, "npppyctl")
        except ProtocolError as error:
            raise ControlError(str(error)) from None
        self._sock.settimeout(None)

    def ask(self, request: Message, *, endless: bool = False) -> Answer:
        try:
            greeting = frame(encode({"hello": "npppyctl", "version": VERSION}), MAX_REQUEST)
            # SIGPIPE is for standard output.
            self._sock.sendall(greeting + frame(encode(request), MAX_REQUEST), socket.MSG_NOSIGNAL)
        except ValueError:
            raise ControlError("the command is too long") from None
        except OSError as error:
            raise ControlError(f"npppyd: {error.strerror}") from None
        return Answer(self._sock, endless=endless)

    def close(self) -> None:
        self._sock.close()


def receive(sock: socket.socket) -> Message | None:
    """The next frame; None at the end of the stream.  Raises :class:`ControlError` for one that says "error"."""
    try:
        header = _receive_exactly(sock, HEADER)
        if not header:
            return None
        length = payload_length(header, MAX_REPLY)
        payload = _receive_exactly(sock, length)
        if len(header) < HEADER or len(payload) < length:
            raise ControlError("npppyd closed the connection within a frame")
        message = decode(payload)
    except ProtocolError as error:
        raise ControlError(f"npppyd does not speak the control protocol: {error}") from None
    except TimeoutError:
        raise ControlError(f"npppyd did not answer in {HELLO_TIMEOUT} seconds") from None
    except OSError as error:
        raise ControlError(f"npppyd: {error.strerror}") from None
    if "error" in message:
        raise ControlError(str(message["error"]))
    return message


def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    """*count* octets, fewer where the stream ends."""
    parts = []
    while count and (part := sock.recv(min(count, 65536))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
