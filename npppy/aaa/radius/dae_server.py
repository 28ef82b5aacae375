"""The socket shell of dynamic authorization: a UDP socket for every address and port that it listens on."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from ...config.model import Address, Radius
from .dae import ClientState, Dae

if TYPE_CHECKING:
    from ...ppp.engine import Engine

log = logging.getLogger("npppy.radius")

#: Datagrams taken from a socket before others get their turn.
BATCH: Final = 32
#: The largest packet (RFC 2865 section 3), and what tells that there was more.
_LARGEST: Final = 4097

# <linux/in.h>; the socket module does not have it.
_IP_PKTINFO: Final = 8

#: Interface, the address of ours, the destination in the header.
_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16si")
_ANCILLARY: Final = socket.CMSG_SPACE(_PKTINFO6.size)

#: An address and a port.
Place = tuple[Address, int]
_Ancillary = list[tuple[int, int, bytes]]


class ListenError(Exception):
    """An address cannot be listened on; the message says which, and why."""


def is_local(address: Address) -> bool:
    """Whether *address* is one of this machine's."""
    if address.is_unspecified or address.is_multicast:
        return False
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


class _Listener:
    """One socket."""

    def __init__(self, server: DaeServer, place: Place) -> None:
        """Raises :class:`OSError`."""
        address, port = place
        self.place = place
        self._server = server
        six = address.version == 6
        family = socket.AF_INET6 if six else socket.AF_INET
        self._sock = sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # An answer leaves from where its request came to, or nobody takes it for one.
            if six:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.bind((str(address), port))
        except OSError:
            sock.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Close the socket.  Answers that are still to come are lost."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        server, now = self._server, self._server.clock()
        try:
            for _ in range(BATCH):
                data, ancillary, _, source = self._sock.recvmsg(_LARGEST, _ANCILLARY)
                if source[1]:
                    host = ip_address(source[0].partition("%")[0])
                    server.dae.receive(data, host, source[1], partial(self._send, source, _back(ancillary)), now)
        except BlockingIOError:
            pass
        except OSError as error:
            log.info("dae listen=%s Receive failed: %s", self, error.strerror)
            # libuv takes an error as the end of the socket and waits for it no more.
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_reader(self._sock.fileno(), self._readable)
        server.work()

    def _send(self, to: tuple[str, int], by: _Ancillary, packet: bytes) -> None:
        """Send now or never: what is lost, its client asks for again."""
        try:
            self._sock.sendmsg((packet,), by, 0, to)
        except OSError as error:
            # Also where a reload has closed the socket since.
            self._server.lost[errno.errorcode.get(error.errno or 0, "error")] += 1

    def __str__(self) -> str:
        address, port = self.place
        return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def _back(ancillary: _Ancillary) -> _Ancillary:
    """What an answer is sent with, from what its request came with."""
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            return [(level, kind, _PKTINFO4.pack(0, _PKTINFO4.unpack(value)[1], bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            local, interface = _PKTINFO6.unpack(value)
            # Only a link-local address needs its interface; any other route may be another way by now.
            scope = interface if ip_address(local).is_link_local else 0
            return [(level, kind, _PKTINFO6.pack(local, scope))]
    return []


class DaeServer:
    """Dynamic authorization on all addresses that it listens on.  It must run in the event loop."""

    def __init__(
        self, radius: Radius, engine: Engine, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        """*clock* is the monotonic clock, *wall* tells the seconds since the Epoch.  Raises :class:`ListenError`."""
        self.clock = clock
        self.dae = Dae(engine, wall, is_local)
        #: Answers that could not be sent, by the name of the error.
        self.lost: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()
        self._working: asyncio.Handle | None = None
        self._listeners: dict[Place, _Listener] = {}
        self.dae.configure(radius)
        try:
            for place in radius.dae.listen:
                self._listen(place)
        except ListenError:
            self.close()
            raise

    def _listen(self, place: Place) -> None:
        try:
            listener = self._listeners[place] = _Listener(self, place)
        except OSError as error:
            raise ListenError(f"radius dae: cannot listen on {place[0]} port {place[1]}: {error.strerror}") from error
        log.info("dae listen=%s Listening", listener)

    def reconfigure(self, radius: Radius) -> None:
        """Take over a new configuration.  An address that cannot be listened on is logged."""
        self.dae.configure(radius)
        for place in self._listeners.keys() - set(radius.dae.listen):
            listener = self._listeners.pop(place)
            listener.close()
            log.info("dae listen=%s Closed", listener)
        for place in radius.dae.listen:
            if place not in self._listeners:
                try:
                    self._listen(place)
                except ListenError as error:
                    log.error("%s", error)

    def listening(self) -> list[str]:
        """Where we do, as address:port."""
        return [str(listener) for listener in self._listeners.values()]

    def state(self) -> list[ClientState]:
        """What each client has asked for."""
        return self.dae.state()

    def work(self) -> None:
        """Have the rest of what has come done in slices, each in a turn of its own of the loop."""
        if self._working is None and self.dae.busy:
            self._working = self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._working = None
        self.dae.work(self.clock())
        self.work()

    def close(self) -> None:
        """Close all sockets.  What has not been answered is not."""
        if self._working is not None:
            self._working.cancel()
            self._working = None
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
