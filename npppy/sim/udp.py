"""The UDP sockets of a simulated LAC, each connected to its LNS."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address

from ..buffers import set_buffers
from ..config.model import Address
from ..l2tp.service import Endpoint, Transmit
from .wire import BATCH, BUFFER

# <linux/in.h> and <linux/in6.h>; the socket module does not have them.
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_DONT = 0

#: An address and a port.
Place = tuple[Address, int]
#: Gets the endpoint, a datagram of it, what sends there, and the time.
Receive = Callable[[Endpoint, bytes, Transmit, float], None]


class Sockets:
    """*count* sockets to *server*, from the places of *bind* in turn, of which port 0 is any; without any, from any."""

    def __init__(self, server: Place, bind: Sequence[Place], count: int) -> None:
        """Raises :class:`OSError`."""
        #: Datagrams that could not be sent or received, by the name of the error.
        self.drops: Counter[str] = Counter()
        self.ways: list[tuple[Endpoint, Transmit]] = []
        self._loop = asyncio.get_running_loop()
        self._view = memoryview(bytearray(65535))
        self._sockets: list[socket.socket] = []
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        try:
            for number in range(count):
                sock = _connect(server, bind[number % len(bind)] if bind else None)
                self._sockets.append(sock)
                self.ways.append((_endpoint(sock), partial(self._transmit, sock.send)))
        except OSError:
            self.close()
            raise

    def start(self, receive: Receive, clock: Callable[[], float], after: Callable[[], None]) -> None:
        """Hand every datagram to *receive*, with the time, and call *after* behind the last one of a batch."""
        self._receive = receive
        self._clock = clock
        self._after = after
        for sock, way in zip(self._sockets, self.ways, strict=True):
            self._loop.add_reader(sock.fileno(), self._readable, sock, *way)

    def close(self) -> None:
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    def _readable(self, sock: socket.socket, endpoint: Endpoint, transmit: Transmit) -> None:
        now = self._clock()
        view, receive, read = self._view, self._receive, sock.recv_into
        heard = False
        try:
            for _ in range(BATCH):
                size = read(view)
                heard = True
                receive(endpoint, bytes(view[:size]), transmit, now)
        except BlockingIOError:
            pass
        except OSError as error:
            # ECONNREFUSED: nobody listens there.
            self.drops["receive-" + errno.errorcode.get(error.errno or 0, "error")] += 1
        if not heard:
            # libuv takes an error, which sending may have met before us, as the end of a socket and polls it no more.
            self._loop.remove_reader(sock.fileno())
            self._loop.add_reader(sock.fileno(), self._readable, sock, endpoint, transmit)
        self._after()

    def _transmit(self, send: Callable[[bytes], int], endpoint: Endpoint, datagram: bytes) -> None:
        """Send now or never; the protocols repeat what is lost."""
        try:
            send(datagram)
        except OSError as error:
            self.drops["send-" + errno.errorcode.get(error.errno or 0, "error")] += 1


def _connect(server: Place, local: Place | None) -> socket.socket:
    six = server[0].version == 6
    family = socket.AF_INET6 if six else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        set_buffers(sock, BUFFER)
        # On a narrow path large data goes in fragments (RFC 2661 section 8.1).
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        if local is not None:
            sock.bind((str(local[0]), local[1]))
        sock.connect((str(server[0]), server[1]))
    except OSError:
        sock.close()
        raise
    return sock


def _endpoint(sock: socket.socket) -> Endpoint:
    (local, local_port), (peer, peer_port) = sock.getsockname()[:2], sock.getpeername()[:2]
    return Endpoint(_packed(local), local_port, _packed(peer), peer_port)


def _packed(address: str) -> bytes:
    """An address, without the interface of a link-local one."""
    return ip_address(address.partition("%")[0]).packed
