"""npppyd's end of the control socket: who may connect, and which command goes where."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from .. import __version__
from ..text import printable
from .info import Subject
from .protocol import (
    HEADER,
    MAX_REPLY,
    MAX_REQUEST,
    VERSION,
    Message,
    ProtocolError,
    RequestError,
    check_hello,
    decode,
    encode,
    frame,
    payload_length,
)
from .sessions import SessionCommands

log = logging.getLogger("npppy.control")

#: Connections at one time.
MAX_CLIENTS = 64

#: Seconds a client may take to greet and to say what it wants.
REQUEST_TIMEOUT = 10

#: Seconds that a command which its client has stopped may take to its end.
STOP_TIMEOUT = 10

#: Rows are gathered to frames of about this size, in octets.
BATCH = 64 * 1024

#: <asm-generic/socket.h>; the socket module lacks it.
SO_PEERGROUPS = 59


class Peer(NamedTuple):
    """The process at the other end, as the kernel saw it when it connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """Who has connected.  *sock* may be what a transport shows as its socket."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        # The groups of the process itself: no name service is asked, none can block the event loop.
        groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError:
        # More than 256 groups, or a kernel before 4.13: the primary one has to do.
        groups = b""
    return Peer(pid, uid, gid, frozenset(struct.unpack(f"{len(groups) // 4}I", groups)))


def permitted(peer: Peer, own_uid: int, group: int | None) -> bool:
    return peer.uid in (0, own_uid) or (group is not None and (peer.gid == group or group in peer.groups))


class Reply:
    """The way back to one client."""

    def __init__(self, writer: asyncio.StreamWriter, name: str) -> None:
        self._writer = writer
        self._name = name
        #: Called when the client has said all, which means that it wants the command to come to its end, and waits for
        #: that.  A command that has not set it is broken off.
        self.stop: Callable[[], object] | None = None

    def __str__(self) -> str:
        """What log lines about the client begin with."""
        return self._name

    async def rows(self, rows: Iterable[Message]) -> None:
        """Send *rows*; waits while the client does not take what it has been sent."""
        batch: list[bytes] = []
        size = 0
        for row in rows:
            text = encode(row)
            if batch and size + len(text) > BATCH:
                self._send_rows(batch)
                batch, size = [], 0
            batch.append(text)
            size += len(text) + 1
        if batch:
            self._send_rows(batch)
        await self._writer.drain()

    def _send_rows(self, batch: list[bytes]) -> None:
        self._writer.write(frame(b'{"rows":[' + b",".join(batch) + b"]}", MAX_REPLY))

    def send(self, message: Message) -> None:
        self._writer.write(frame(encode(message), MAX_REPLY))


#: Carries out a command: sends rows, if any, and returns the result, {} for none.  It raises
#: :class:`~npppy.control.protocol.RequestError` for what the client is to be told, and is cancelled when the client
#: goes away, unless it has set :attr:`Reply.stop`.
Handler = Callable[[Message, Reply], Awaitable[Message]]


class ControlServer:
    """Listens on a unix stream socket at *path*.

    root, our own user and, if given, the members of *group* may use it; the file gets *mode* and *group*.
    """

    def __init__(self, subject: Subject, path: str | os.PathLike[str], *, group: int | None = None, mode: int = 0o660):
        self._path = os.fspath(path)
        self._group = group
        self._mode = mode
        self._handlers: dict[str, Handler] = {}
        self._server: asyncio.Server | None = None
        #: Device and inode of our socket's file.
        self._file: tuple[int, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        #: Clients turned away, and frames that broke the protocol.
        self.refused = 0
        self.malformed = 0
        commands = SessionCommands(subject)
        self.register("session", commands.session)
        self.register("clear", commands.clear)
        self.register("monitor", commands.monitor)

    def register(self, command: str, handler: Handler) -> None:
        """Let *handler* carry out ``{"command": command, ...}``.  Raises ValueError if there is one already."""
        if command in self._handlers:
            raise ValueError(f"control command {command!r} is registered twice")
        self._handlers[command] = handler

    @property
    def clients(self) -> int:
        """Connections at this moment."""
        return len(self._tasks)

    async def start(self) -> None:
        """Listen.  Raises OSError, also where another daemon answers on the socket or the file is no socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._remove_stale()
            sock.bind(self._path)
            status = os.stat(self._path)
            self._file = (status.st_dev, status.st_ino)
            # Nobody can connect before we listen, so nobody sees the file with other rights than these.
            os.chown(self._path, -1, -1 if self._group is None else self._group)
            os.chmod(self._path, self._mode)
            self._server = await asyncio.start_unix_server(self._connected, sock=sock)
        except OSError as error:
            sock.close()
            self._unlink()
            raise OSError(error.errno, f"control socket {self._path}: {error.strerror or error}") from None

    async def close(self) -> None:
        """Stop listening, break off what clients have under way, and remove the socket if it is still ours."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        # A connection accepted a moment ago may not have a task yet.
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._unlink()

    def _remove_stale(self) -> None:
        try:
            status = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise OSError(errno.EEXIST, "there is a file that is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(self._path)
            except ConnectionRefusedError:
                os.unlink(self._path)
                return
            except BlockingIOError:
                # Its queue is full: somebody is there.
                pass
        raise OSError(errno.EADDRINUSE, "another npppyd answers on it")

    def _unlink(self) -> None:
        """Remove the socket's file, unless another daemon has put its own in its place."""
        if self._file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._file:
                os.unlink(self._path)
        self._file = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = peer_of(writer.get_extra_info("socket"))
        reply = Reply(writer, f"control pid={peer.pid} uid={peer.uid}")
        task = asyncio.current_task()
        assert task is not None
        try:
            if self._closed:
                return
            if not permitted(peer, os.geteuid(), self._group):
                self._refuse(reply, "permission denied")
            elif self.clients >= MAX_CLIENTS:
                self._refuse(reply, f"npppyd has {MAX_CLIENTS} control connections already")
            else:
                self._tasks.add(task)
                await self._serve(reader, reply)
            # What is left to send goes out first: drain() now waits for all of it.
            writer.transport.set_write_buffer_limits(0)
            await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            # The client has gone, or we are closing; nobody waits for this task's result.
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, reply: Reply) -> None:
        reply.send({"hello": "npppyd", "version": VERSION, "npppy": __version__})
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                hello = await _receive(reader)
                if hello is None:
                    return
                check_hello(hello, "npppyd")
                request = await _receive(reader)
            if request is not None:
                await self._carry_out(request, reader, reply)
        except TimeoutError:
            self._refuse(reply, f"no command in {REQUEST_TIMEOUT} seconds")
        except ProtocolError as error:
            self.malformed += 1
            log.warning("%s malformed reason=%r", reply, str(error))
            reply.send({"error": str(error)})
        except RequestError as error:
            reply.send({"error": str(error)})

    def _refuse(self, reply: Reply, reason: str) -> None:
        self.refused += 1
        log.warning("%s refused reason=%r", reply, reason)
        reply.send({"error": reason})

    async def _carry_out(self, request: Message, reader: asyncio.StreamReader, reply: Reply) -> None:
        """Raises ConnectionError if the client goes away, or says more, before the command has ended."""
        command = request.get("command")
        handler = self._handlers.get(command) if isinstance(command, str) else None
        if handler is None:
            raise RequestError(f'npppyd knows no command "{printable(str(command)[:40])}"')
        work = asyncio.ensure_future(self._guarded(handler, request, reply))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and reply.stop is not None and gone.exception() is None and not gone.result():
                reply.stop()
                await asyncio.wait((work,), timeout=STOP_TIMEOUT)
            if not work.done():
                raise ConnectionResetError("the client has gone")
            work.result()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _guarded(self, handler: Handler, request: Message, reply: Reply) -> None:
        try:
            reply.send({"done": await handler(request, reply)})
        except (RequestError, ConnectionError):
            raise
        except Exception:
            # A mistake of ours ends this command, never the daemon.
            log.exception("%s command=%s failed", reply, request["command"])
            raise RequestError("internal error; npppyd's log has the details") from None


async def _receive(reader: asyncio.StreamReader) -> Message | None:
    """The next frame; None where the client closes instead.  Raises :class:`ProtocolError`."""
    try:
        header = await reader.readexactly(HEADER)
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise ProtocolError("the connection ended within a frame") from None
    try:
        payload = await reader.readexactly(payload_length(header, MAX_REQUEST))
    except asyncio.IncompleteReadError:
        raise ProtocolError("the connection ended within a frame") from None
    return decode(payload)
