"""The sockets of simulated PPTP clients: a TCP connection each, and for GRE one socket for each address of ours."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import cast

from ..buffers import set_buffers
from ..pptp.connection import Connection
from ..pptp.service import Endpoint
from . import filter
from .pptp import Pns, Trunk
from .wire import BATCH, BUFFER

# <linux/in.h>; the socket module does not have them.
_IP_MTU_DISCOVER = 10
_PMTUDISC_DONT = 0
_IP_BIND_ADDRESS_NO_PORT = 24
# <linux/tcp.h>
_TCP_REPAIR = 19

#: An IPv4 address and a port.
Place = tuple[IPv4Address, int]


class Sockets:
    """From the addresses of *bind* in turn to *server*; without any, from that which the routes say.

    TCP has *timeout* seconds to connect.  *heard* says which GRE packets are.
    """

    def __init__(
        self, server: Place, bind: Sequence[IPv4Address], timeout: float, heard: Sequence[filter.Instruction]
    ) -> None:
        """Raises :class:`OSError`; GRE is for root."""
        #: Packets that could not be sent or received, by the name of the error.
        self.drops: Counter[str] = Counter()
        self._server = server
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._view = memoryview(bytearray(65535))
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[Endpoint, _Stream] = {}
        self._sources = tuple(dict.fromkeys(bind)) or (_source(server),)
        #: By the address that they are bound to.
        self._gre: dict[bytes, socket.socket] = {}
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        try:
            for source in self._sources:
                self._gre[source.packed] = _open_gre(source, server[0], heard)
        except OSError:
            self.close()
            raise

    def start(self, pns: Pns, clock: Callable[[], float], after: Callable[[], None]) -> None:
        """Hand all that comes to *pns*, with the time, and call *after* behind the last of a batch."""
        self._pns = pns
        self.clock = clock
        self.after = after
        for sock in self._gre.values():
            self._loop.add_reader(sock.fileno(), self._readable, sock)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for stream in list(self._streams.values()):
            stream.close()
        for sock in self._gre.values():
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._gre.clear()

    # Data.

    def transmit(self, endpoint: Endpoint, packet: bytes) -> None:
        """Send now or never; the protocols repeat what is lost."""
        try:
            self._gre[endpoint.local].send(packet)
        except OSError as error:
            self.drops["send-" + errno.errorcode.get(error.errno or 0, "error")] += 1

    def _readable(self, sock: socket.socket) -> None:
        now = self.clock()
        view, receive, read = self._view, self._pns.receive, sock.recv_into
        heard = False
        try:
            for _ in range(BATCH):
                size = read(view)
                heard = True
                # A raw socket has the IP header before it.
                start = (view[0] & 15) * 4
                receive(bytes(view[16:20]), bytes(view[12:16]), bytes(view[start:size]), now)
        except BlockingIOError:
            pass
        except OSError as error:
            # ECONNREFUSED or ENOPROTOOPT: nobody takes GRE there.
            self.drops["receive-" + errno.errorcode.get(error.errno or 0, "error")] += 1
        if not heard:
            # libuv takes an error, which sending may have met before us, as the end of a socket and polls it no more.
            self._loop.remove_reader(sock.fileno())
            self._loop.add_reader(sock.fileno(), self._readable, sock)
        self.after()

    # Control.

    def connect(self, trunk: Trunk) -> None:
        """Set up TCP for a trunk."""
        task = self._loop.create_task(self._connect(trunk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, trunk: Trunk) -> None:
        source = self._sources[trunk.number % len(self._sources)]
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # The port is chosen by where it goes, so that there are as many of them for each server.
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((str(source), 0))
            async with asyncio.timeout(self._timeout):
                await self._loop.sock_connect(sock, (str(self._server[0]), self._server[1]))
            await self._loop.create_connection(lambda: _Stream(self, self._pns, trunk, sock), sock=sock)
        except OSError as error:
            sock.close()
            reason = os.strerror(error.errno) if error.errno else "not connected in time"
            self._pns.unreachable(trunk, reason, self.clock())
            self.after()
        except asyncio.CancelledError:
            sock.close()
            raise

    def hush(self, endpoint: Endpoint) -> None:
        """Have a connection closed without a word when it is."""
        stream = self._streams.get(endpoint)
        if stream is not None:
            stream.hush()

    def opened(self, endpoint: Endpoint, stream: _Stream) -> None:
        self._streams[endpoint] = stream

    def closed(self, endpoint: Endpoint) -> None:
        self._streams.pop(endpoint, None)


class _Stream(asyncio.Protocol):
    """A TCP connection (:class:`npppy.pptp.connection.Stream`)."""

    def __init__(self, sockets: Sockets, pns: Pns, trunk: Trunk, sock: socket.socket) -> None:
        self._sockets = sockets
        self._pns = pns
        self._trunk = trunk
        self._sock = sock
        self._connection: Connection | None = None
        self._endpoint: Endpoint
        self._transport: asyncio.Transport

    # What the connection asks for.

    def send(self, octets: bytes) -> None:
        self._transport.write(octets)

    def finish(self) -> None:
        if not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.abort()

    def hush(self) -> None:
        """The other end shall not hear of it when it is closed, but as of a host that has no power."""
        self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        (local, local_port), (peer, peer_port) = (
            transport.get_extra_info(name)[:2] for name in ("sockname", "peername")
        )
        endpoint = Endpoint(IPv4Address(local).packed, local_port, IPv4Address(peer).packed, peer_port)
        self._endpoint = endpoint
        self._sockets.opened(endpoint, self)
        self._connection = self._pns.connected(self._trunk, endpoint, self, self._sockets.clock())
        if self._connection is None:
            self.close()
        self._sockets.after()

    def data_received(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.receive(data, self._sockets.clock())
            self._sockets.after()

    def connection_lost(self, error: Exception | None) -> None:
        self._sockets.closed(self._endpoint)
        if self._connection is not None:
            code = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(code) if code else "the server has closed the connection"
            self._connection.lost(reason, self._sockets.clock())
            self._sockets.after()


def can_hush() -> bool:
    """Whether :meth:`Sockets.hush` is allowed."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        except PermissionError:
            return False
    return True


def _open_gre(source: IPv4Address, server: IPv4Address, heard: Sequence[filter.Instruction]) -> socket.socket:
    """A socket that gets what comes from the server to this address, and is to be heard."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_INET, kind, socket.IPPROTO_GRE)
    try:
        filter.attach(sock, heard)
        set_buffers(sock, BUFFER)
        # On a narrow path large data goes in fragments.
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        sock.bind((str(source), 0))
        sock.connect((str(server), 0))
    except OSError:
        sock.close()
        raise
    return sock


def _source(server: Place) -> IPv4Address:
    """The address of ours that the routes choose."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((str(server[0]), server[1]))
        return IPv4Address(probe.getsockname()[0])
