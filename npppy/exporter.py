"""HTTP for Prometheus: a few pages, each made piece by piece while the event loop does its other work.

It answers GET and HEAD, one request a connection, and reads nothing of a request but its first line and the names of
its headers.  What a client can make us keep is a head of bounded size, a page's next piece, and what the page keeps of
sessions; and all that for a bounded time.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from typing import Final, NamedTuple

from .config.model import Address
from .metrics import CONTENT_TYPE

log = logging.getLogger("npppy.metrics")

#: Connections at one time, and those for which one page is being made.
MAX_CLIENTS: Final = 16
MAX_PAGES: Final = 4
#: Connections that wait to be accepted.
BACKLOG: Final = 128
#: Octets of a request, up to the empty line.
MAX_HEAD: Final = 8192
#: Seconds that a client may take to ask, and to take its page.
REQUEST_TIMEOUT: Final = 10
PAGE_TIMEOUT: Final = 60
#: Seconds, and octets, for which a client may still talk when it has its answer.
LINGER: Final = 1
LINGER_OCTETS: Final = 65536
#: Seconds without accepting connections when there is nothing left to accept them with.
PAUSE: Final = 1.0
#: Pieces of a page are sent together when there are so many characters.
CHUNK: Final = 16384

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_METHODS: Final = ("GET", "HEAD")

# RFC 9110 section 5.6.2, and RFC 9112 sections 3 and 5.
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE: Final = re.compile(rb"(%s) ([!-~]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_FIELD: Final = re.compile(rb"(%s):[\t -~\x80-\xff]*" % _TOKEN)

#: An address and a port.
Place = tuple[Address, int]
Page = Callable[[], Iterator[str]]


class ListenError(Exception):
    """Addresses cannot be listened on; the message says which, and why."""


class HttpError(Exception):
    """A request that is answered with *status*."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Request(NamedTuple):
    """A request, as far as it matters."""

    method: str
    #: Without a query.
    path: str
    #: Of HTTP/1.
    minor: int


def parse(head: bytes) -> Request:
    """A request, up to its empty line and without it.  Raises :class:`HttpError`, whatever the octets."""
    first, *fields = head.split(b"\r\n")
    match = _LINE.fullmatch(first)
    if match is None:
        raise HttpError(400, "this is no request of HTTP")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1":
        raise HttpError(505, "HTTP/1.1 is spoken here")
    names = []
    for field in fields:
        found = _FIELD.fullmatch(field)
        if found is None:
            raise HttpError(400, "a header is malformed")
        names.append(found[1].lower())
    # RFC 9112 section 3.2.
    if names.count(b"host") != 1 and (minor != "0" or b"host" in names):
        raise HttpError(400, "there must be one header Host")
    if method not in _METHODS:
        raise HttpError(405, "only GET and HEAD are answered")
    if target.lower().startswith("http://"):
        # Its absolute form: RFC 9112 section 3.2.2.
        target = "/" + target[len("http://") :].partition("/")[2]
    return Request(method, target.partition("?")[0], int(minor))


class Exporter:
    """Serves pages, by their paths, on all addresses that it listens on.  It must run in the event loop."""

    def __init__(self, pages: Mapping[str, Page], count: Callable[[str, int], object], full: Callable[[], object]):
        """*count* is told the path and the status of each answer, *full* that there was no room for a connection."""
        self._pages = pages
        self._count = count
        self._full = full
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[Place, _Listener] = {}
        # Those that have not asked yet, the oldest first, are among all.
        self._clients: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.Task[None], None] = {}
        # Pages that are being made, by their paths: those that slow clients have of a large one are nothing to others.
        self._making: Counter[str] = Counter()

    def listen(self, places: Iterable[Place]) -> None:
        """Listen there, and nowhere else any more.  Raises :class:`ListenError` if one cannot be had."""
        wanted = dict.fromkeys(places)
        for place in self._listeners.keys() - wanted.keys():
            self._listeners.pop(place).close()
            log.info("metrics listen=%s Closed", _shown(place))
        failed = []
        for place in wanted.keys() - self._listeners.keys():
            try:
                self._listeners[place] = _Listener(self._loop, place, self._connected)
            except OSError as error:
                failed.append(f"cannot listen on {_shown(place)}: {error.strerror}")
            else:
                log.info("metrics listen=%s Listening", _shown(place))
        if failed:
            raise ListenError(f"metrics-listen: {'; '.join(failed)}")

    def listening(self) -> list[Place]:
        """Where it does, the port being the real one where 0 was asked for."""
        return [(place[0], listener.port) for place, listener in self._listeners.items()]

    def close(self) -> None:
        """Listen no more, and break off all answers."""
        self.listen(())
        for task in self._clients:
            task.cancel()

    def _connected(self, sock: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            self._full()
            if not self._silent:
                sock.close()
                return
            # It has had the most time.  To refuse the new one instead would let anybody keep all others out.
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._serve(sock))
        self._clients.add(task)
        self._silent[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._silent.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A mistake of ours ends this answer, never the daemon.
            log.error("metrics: an answer failed", exc_info=error)

    async def _serve(self, sock: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        request = None
        # One who is slow, or has gone, is left.
        with closing(sock), suppress(OSError, TimeoutError):
            try:
                head = await self._head(sock)
                if not head:
                    return
                request = parse(head)
                self._silent.pop(task, None)
                async with asyncio.timeout(PAGE_TIMEOUT):
                    await self._answer(sock, request)
            except HttpError as error:
                await self._refuse(sock, request, error)
            await _linger(sock)

    async def _head(self, sock: socket.socket) -> bytes:
        """What comes before the empty line; nothing if the client goes without a word."""
        data = bytearray()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                while (end := data.find(b"\r\n\r\n")) < 0:
                    if len(data) >= MAX_HEAD:
                        raise HttpError(431, f"a request has {MAX_HEAD} octets at the most")
                    part = await self._loop.sock_recv(sock, MAX_HEAD - len(data))
                    if not part:
                        if data:
                            raise HttpError(400, "the request is not complete")
                        return b""
                    data += part
        except TimeoutError:
            raise HttpError(408, f"no request in {REQUEST_TIMEOUT} seconds") from None
        return bytes(data[:end])

    async def _refuse(self, sock: socket.socket, request: Request | None, error: HttpError) -> None:
        self._count(request.path if request is not None and request.path in self._pages else "", error.status)
        body = f"{error}\n".encode()
        extra = f"Allow: {', '.join(_METHODS)}\r\n" if error.status == 405 else ""
        head = _head(error.status, f"{extra}Content-Length: {len(body)}\r\n")
        if request is not None and request.method == "HEAD":
            body = b""
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await self._loop.sock_sendall(sock, head + body)

    async def _answer(self, sock: socket.socket, request: Request) -> None:
        """Raises :class:`HttpError` before anything is sent."""
        page = self._pages.get(request.path)
        if page is None:
            raise HttpError(404, f"there are {', '.join(self._pages)}")
        if self._making[request.path] >= MAX_PAGES:
            raise HttpError(503, f"{MAX_PAGES} clients are being given this page")
        self._count(request.path, 200)
        # The end of a page for HTTP/1.0 is that of the connection (RFC 9112 section 6.3).
        chunked = request.minor > 0
        await self._loop.sock_sendall(sock, _head(200, _CHUNKED if chunked else ""))
        if request.method == "HEAD":
            return
        self._making[request.path] += 1
        try:
            await self._send(sock, _ours(page()), chunked)
        finally:
            self._making[request.path] -= 1

    async def _send(self, sock: socket.socket, pieces: Iterator[str], chunked: bool) -> None:
        waiting: list[bytes] = []
        size = 0
        for piece in pieces:
            if piece:
                waiting.append(piece.encode("utf-8", "replace"))
                size += len(waiting[-1])
            if size >= CHUNK:
                await self._loop.sock_sendall(sock, _chunk(waiting, size) if chunked else b"".join(waiting))
                waiting.clear()
                size = 0
            # Whatever comes meanwhile has its turn.
            await asyncio.sleep(0)
        last = _chunk(waiting, size) if chunked and size else b"".join(waiting)
        await self._loop.sock_sendall(sock, last + _NO_MORE if chunked else last)


def _ours(pieces: Iterator[str]) -> Iterator[str]:
    """The same; what fails here is no matter of the client's."""
    try:
        yield from pieces
    except OSError as error:
        raise RuntimeError(f"the page could not be made: {error}") from error


class _Listener:
    """A socket that connections come to."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, place: Place, connected: Callable[[socket.socket], object]
    ) -> None:
        """Raises :class:`OSError`."""
        address, port = place
        self._loop = loop
        self._place = place
        self._connected = connected
        self._pausing: asyncio.TimerHandle | None = None
        six = address.version == 6
        family = socket.AF_INET6 if six else socket.AF_INET
        self._sock = sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # Connections of an earlier npppyd may still be in their last state.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if six:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((str(address), port))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        self.port: int = sock.getsockname()[1]
        self._resume()

    def close(self) -> None:
        """Connections that there are stay."""
        if self._pausing is not None:
            self._pausing.cancel()
        else:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _acceptable(self) -> None:
        for _ in range(MAX_CLIENTS):
            try:
                sock = self._sock.accept()[0]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # Whoever waits, waits on; meanwhile nothing is tried in vain.
                    log.warning("metrics listen=%s Accept failed: %s", _shown(self._place), error.strerror)
                    self._loop.remove_reader(self._sock.fileno())
                    self._pausing = self._loop.call_later(PAUSE, self._resume)
                    return
                # It has gone already (accept(2)).
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connected(sock)

    def _resume(self) -> None:
        self._pausing = None
        self._loop.add_reader(self._sock.fileno(), self._acceptable)


_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_CHUNKED: Final = "Transfer-Encoding: chunked\r\n"
_NO_MORE: Final = b"0\r\n\r\n"


def _head(status: int, extra: str) -> bytes:
    kind = CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8"
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n{extra}"
    return f"{head}Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode()


def _chunk(parts: Iterable[bytes], size: int) -> bytes:
    """RFC 9112 section 7.1; *size* is not 0."""
    return b"".join((b"%x\r\n" % size, *parts, b"\r\n"))


async def _linger(sock: socket.socket) -> None:
    """Let the client take its answer: to close while it still talks would take that from it (RFC 9112 section 9.6)."""
    sock.shutdown(socket.SHUT_WR)
    loop, left = asyncio.get_running_loop(), LINGER_OCTETS
    async with asyncio.timeout(LINGER):
        while left > 0 and (part := await loop.sock_recv(sock, 4096)):
            left -= len(part)


def _shown(place: Place) -> str:
    address, port = place
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
