"""The sockets that requests go out by: UDP, each connected to one server, on the event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_address

from ...config.model import Address
from .packet import MAX_PACKET
from .server import OpenSocket, Receiver

log = logging.getLogger("npppy.radius")

#: Datagrams taken from a socket before others get their turn.
BATCH = 64
#: Octets of kernel buffer: as many answers as a socket has identifiers, and some more.
BUFFER = 1 << 20

# <linux/in.h> and <linux/in6.h>; the socket module does not have them.
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_IP_PMTUDISC_DONT = 0


class UdpSocket:
    """A connected socket: the kernel drops what is not from the server, and tells of ICMP errors."""

    __slots__ = ("_clock", "_loop", "_receiver", "_sock", "local")

    def __init__(
        self, address: Address, port: int, source: Address | None, receiver: Receiver, clock: Callable[[], float]
    ) -> None:
        """Raises :class:`OSError`."""
        self._receiver = receiver
        self._clock = clock
        six = address.version == 6
        family = socket.AF_INET6 if six else socket.AF_INET
        self._sock = sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # EAP's requests may be longer than a path is wide: they go in fragments.
            if six:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            if source is not None:
                sock.bind((str(source), 0))
            sock.connect((str(address), port))
            #: Where requests come from.
            self.local = ip_address(sock.getsockname()[0])
        except OSError:
            sock.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, data: bytes) -> int:
        """Returns 0 or the error's number, which may be of a datagram before."""
        try:
            self._sock.send(data)
        except OSError as error:
            return error.errno or -1
        return 0

    def close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        sock, receiver, now = self._sock, self._receiver, self._clock()
        try:
            for _ in range(BATCH):
                receiver.received(sock.recv(MAX_PACKET + 1), now)
                # An answer may have been the last one that the socket was there for.
                if sock.fileno() < 0:
                    return
        except BlockingIOError:
            pass
        except OSError as error:
            # libuv takes an error as the end of the socket and waits for it no more.
            self._loop.remove_reader(sock.fileno())
            self._loop.add_reader(sock.fileno(), self._readable)
            receiver.unreachable(error.errno or -1, now)


def opener(clock: Callable[[], float]) -> OpenSocket:
    """What opens sockets for a :class:`.client.Client`, in the running event loop.  *clock* is the monotonic clock."""

    def open_socket(address: Address, port: int, source: Address | None, receiver: Receiver) -> UdpSocket:
        return UdpSocket(address, port, source, receiver, clock)

    return open_socket
