"""The socket shell of PPTP: a TCP socket for every address and port that a tunnel listens on, and one for all GRE."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

from ..admission import Admission
from ..buffers import set_buffers
from ..config.model import Address, PptpOptions, Tunnel
from ..entrance import Entrance
from ..ppp.cause import Cause
from ..ppp.link import Call, Upper
from ..wheel import Wheel
from . import gre
from .connection import Connection
from .engine import Engine
from .service import Endpoint, Service

log = logging.getLogger("npppy.pptp")

#: Packets taken, and streams served, before others get their turn.
BATCH = 64
#: Octets taken from a stream at once.
READ = 4096
#: Octets that wait for a peer to read, beyond those that the kernel keeps for it.
UNREAD = 16384
#: The same for each call that there has been at a time: all of them may end at once, which a message says of each.
UNREAD_CALL = 256
#: Octets of kernel buffer a stream, either way: a message has some hundred.
STREAM_BUFFER = 16384
#: Octets of kernel buffer for GRE.
GRE_BUFFER = 4 << 20
#: Connections that wait to be accepted: after an outage all come at once.
BACKLOG = 4096
#: Seconds without accepting after descriptors or memory have run out.
PAUSE = 1.0
#: The largest IP packet.
_LARGEST = 65535

# <asm-generic/socket.h> and <linux/in.h>; the socket module does not have them.
_SO_ATTACH_FILTER = 26
_IP_PKTINFO = 8
_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_DONT = 0
# Interface, the address of ours, the destination in the header.
_PKTINFO = struct.Struct("=i4s4s")

# <linux/filter.h>
_LOAD_HEADER_LENGTH, _LOAD_HALF, _AND, _JUMP_EQUAL, _RETURN = 0xB1, 0x48, 0x54, 0x15, 0x06
# PPP in version 1 of GRE, which is what follows the IP header.
_FILTER = (
    (_LOAD_HEADER_LENGTH, 0, 0, 0),
    (_LOAD_HALF, 0, 0, 0),
    (_AND, 0, 0, 7),
    (_JUMP_EQUAL, 0, 3, gre.VERSION),
    (_LOAD_HALF, 0, 0, 2),
    (_JUMP_EQUAL, 0, 1, gre.PROTOCOL),
    (_RETURN, 0, 0, 0xFFFFFFFF),
    (_RETURN, 0, 0, 0),
)
#: What accept(2) says when there is nothing left to accept with.
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

#: An address and a port.
Place = tuple[Address, int]
_ANY = IPv4Address(0)


class ListenError(Exception):
    """An address cannot be listened on, or GRE be had; the message says which, and why."""


class _Stream:
    """A TCP connection that has been accepted."""

    __slots__ = ("_finishing", "_resting", "_streams", "_unsent", "connection", "fd")

    connection: Connection

    def __init__(self, streams: _Streams, fd: int) -> None:
        self._streams = streams
        #: -1: closed.
        self.fd = fd
        self._unsent = bytearray()
        self._finishing = False
        self._resting = False

    def send(self, octets: bytes) -> None:
        if self.fd < 0:
            return
        if self._unsent:
            if len(self._unsent) + len(octets) > UNREAD + UNREAD_CALL * self.connection.most:
                self.connection.service.drops["unread"] += 1
                # The end of the stream is the next thing that is read, and ends the connection.
                self._shutdown(socket.SHUT_RDWR)
            else:
                self._unsent += octets
            return
        try:
            sent = os.write(self.fd, octets)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The peer has gone, as reading will find.
            return
        if sent < len(octets):
            self._unsent += octets[sent:]
            self._wait()

    def flush(self) -> None:
        """The peer has read something."""
        if self.fd < 0:
            return
        try:
            del self._unsent[: os.write(self.fd, self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._wait()
            if self._finishing:
                self._shutdown(socket.SHUT_WR)

    def rest(self, resting: bool) -> None:
        """Read no more for now, but for the end of the stream; or go on."""
        self._resting = resting
        if self.fd >= 0:
            self._wait()

    def _wait(self) -> None:
        """Wait for what is of interest now."""
        events = select.EPOLLRDHUP if self._resting else select.EPOLLIN
        self._streams.epoll.modify(self.fd, events | select.EPOLLOUT if self._unsent else events)

    def finish(self) -> None:
        self._finishing = True
        if not self._unsent:
            self._shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self.fd >= 0:
            del self._streams.streams[self.fd]
            # epoll forgets it with that.
            os.close(self.fd)
            self.fd = -1
            # Each holds the other: part, so that both go at once.
            del self.connection

    def _shutdown(self, how: int) -> None:
        if self.fd < 0:
            return
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, self.fd)
        try:
            sock.shutdown(how)
        except OSError as error:
            # The peer has gone.
            log.debug("%s Shutdown failed: %s", self.connection, error.strerror)
        finally:
            sock.detach()


class _Streams:
    """All of them, of all listeners: the event loop has one descriptor for them."""

    def __init__(self, clock: Callable[[], float], admission: Admission) -> None:
        self._clock = clock
        self._admission = admission
        self.streams: dict[int, _Stream] = {}
        self.epoll = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.epoll.fileno(), self._readable)

    def add(self, stream: _Stream, now: float) -> None:
        """Its connection is there."""
        self.streams[stream.fd] = stream
        try:
            self.epoll.register(stream.fd, select.EPOLLIN)
        except OSError as error:
            stream.connection.lost(error.strerror or "cannot be waited for", now)

    def close(self) -> None:
        for stream in list(self.streams.values()):
            stream.close()
        self._loop.remove_reader(self.epoll.fileno())
        self.epoll.close()

    def _readable(self) -> None:
        now = self._clock()
        ready = self.epoll.poll(0, BATCH)
        if len(ready) == BATCH:
            self._admission.press()
        for fd, events in ready:
            stream = self.streams.get(fd)
            if stream is not None and events & select.EPOLLOUT:
                stream.flush()
            if stream is None or not events & ~select.EPOLLOUT:
                continue
            try:
                octets = os.read(fd, READ)
            except BlockingIOError:
                continue
            except OSError as error:
                stream.connection.lost(error.strerror or "read error", now)
                continue
            if octets:
                stream.connection.receive(octets, now)
            else:
                stream.connection.lost("closed by the peer", now)


class _Listener:
    """One listening socket."""

    def __init__(
        self,
        engine: Engine,
        streams: _Streams,
        place: Place,
        service: Callable[[Place], Service | None],
        clock: Callable[[], float],
        entrance: Entrance,
    ) -> None:
        """*service* tells who serves an address of ours.  Raises :class:`OSError`."""
        address, port = place
        self.place = place
        self._engine = engine
        self._streams = streams
        self._service = service
        self._clock = clock
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._sock = sock = socket.socket(socket.AF_INET, kind)
        try:
            # The connections of an earlier run may still be closing.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # What is accepted has these, too.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STREAM_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BUFFER)
            sock.bind((str(address), port))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        self._pausing: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._entrance = entrance
        entrance.add(sock.fileno(), self._acceptable)

    def close(self) -> None:
        """Close the socket; what was accepted stays."""
        if self._pausing is not None:
            self._pausing.cancel()
        else:
            self._entrance.remove(self._sock.fileno())
        self._sock.close()

    def _acceptable(self, count: int) -> int:
        now = self._clock()
        for taken in range(count):
            try:
                sock, (peer, peer_port) = self._sock.accept()
            except BlockingIOError:
                return taken
            except OSError as error:
                self._failed(error)
                if error.errno in _EXHAUSTED:
                    log.error("pptp listen=%s Accept failed: %s", self, error.strerror)
                    self._pause()
                    return taken
                # One that has gone again.
                continue
            try:
                sock.setblocking(False)
                local, local_port = sock.getsockname()
            except OSError as error:
                self._failed(error)
                sock.close()
                continue
            endpoint = Endpoint(socket.inet_aton(local), local_port, socket.inet_aton(peer), peer_port)
            stream = _Stream(self._streams, sock.fileno())
            service = self._service((IPv4Address(local), local_port))
            connection = self._engine.accept(service, endpoint, stream, now) if service is not None else None
            if connection is None:
                sock.close()
            else:
                stream.connection = connection
                sock.detach()
                self._streams.add(stream, now)
        return count

    def _failed(self, error: OSError) -> None:
        self._engine.drops["accept-" + errno.errorcode.get(error.errno or 0, "error")] += 1

    def _pause(self) -> None:
        """Whoever waits, waits on; meanwhile nothing is tried in vain."""
        self._entrance.remove(self._sock.fileno())
        self._pausing = self._loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        self._pausing = None
        self._entrance.add(self._sock.fileno(), self._acceptable)

    def __str__(self) -> str:
        address, port = self.place
        return f"{address}:{port}"


class _Gre:
    """The socket for the data of all calls."""

    def __init__(self, engine: Engine, clock: Callable[[], float], admission: Admission) -> None:
        """Raises :class:`OSError`."""
        self._engine = engine
        self._clock = clock
        self._admission = admission
        self._view = memoryview(bytearray(_LARGEST))
        self._sock = sock = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_GRE
        )
        try:
            code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER))
            program = struct.pack("HP", len(_FILTER), ctypes.addressof(code))
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            # Data is as large as it is: on a narrow path it goes in fragments.
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            set_buffers(sock, GRE_BUFFER)
        except OSError:
            sock.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Close the socket."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        view, receive, now = self._view, self._engine.receive, self._clock()
        try:
            for _ in range(BATCH):
                size = self._sock.recv_into(view)
                # With its IP header, which the kernel has looked at.
                start = (view[0] & 15) * 4
                receive(bytes(view[16:20]), bytes(view[12:16]), bytes(view[start:size]), now)
            self._admission.press()
        except BlockingIOError:
            pass
        except OSError as error:
            log.info("pptp Receive failed: %s", error.strerror)
            # libuv takes an error as the end of the socket and waits for it no more.
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def transmit(self, endpoint: Endpoint, packet: bytes) -> None:
        """Send now or never: what a full queue or a lost route takes, is lost as on any path."""
        source = (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, endpoint.local, bytes(4)))
        try:
            self._sock.sendmsg((packet,), (source,), 0, (socket.inet_ntoa(endpoint.peer), 0))
        except OSError as error:
            self._engine.drops["send-" + errno.errorcode.get(error.errno or 0, "error")] += 1


class PptpServer:
    """PPTP on the addresses of all PPTP tunnels.

    *open_session* is :meth:`npppy.ppp.engine.Engine.open`, *clock* the monotonic clock, *rng* gives random octets;
    *admission* says when connections and calls may begin.  It must run in the event loop.  TCP connections end with the
    process: there is nothing that a successor must end.
    """

    def __init__(
        self,
        tunnels: Sequence[Tunnel],
        open_session: Callable[[Call, float], Upper | None],
        rng: Callable[[int], bytes],
        wheel: Wheel,
        clock: Callable[[], float],
        hostname: str,
        admission: Admission,
    ) -> None:
        """Raises :class:`ListenError`."""
        self._clock = clock
        self._admission = admission
        self.engine = Engine(tunnels, open_session, rng, wheel, hostname, self._transmit, admission, _throttle)
        self._streams = _Streams(clock, admission)
        self._entrance = Entrance(admission, self.engine.asking)
        # Who serves an address; one that is not there is served by who has 0.0.0.0.
        self._services = self._places(tunnels)
        self._listeners: dict[Place, _Listener] = {}
        self._gre: _Gre | None = None
        try:
            self._have_gre(tunnels)
            for place in self._sockets():
                self._listen(place)
        except ListenError:
            self._close_sockets()
            raise

    def _places(self, tunnels: Sequence[Tunnel]) -> dict[Place, Service]:
        return {
            place: self.engine.services[tunnel.name]
            for tunnel in tunnels
            if isinstance(tunnel.carrier, PptpOptions)
            for place in tunnel.carrier.listen
        }

    def _have_gre(self, tunnels: Sequence[Tunnel]) -> None:
        """Have the socket for GRE, where there is a tunnel that may need it."""
        tunnel = next((tunnel for tunnel in tunnels if isinstance(tunnel.carrier, PptpOptions)), None)
        if tunnel is None or self._gre is not None:
            return
        # Each connection has a descriptor.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        try:
            self._gre = _Gre(self.engine, self._clock, self._admission)
        except OSError as error:
            raise ListenError(f"{tunnel.where}: cannot listen for GRE: {error.strerror}") from error

    def _service(self, place: Place) -> Service | None:
        return self._services.get(place) or self._services.get((_ANY, place[1]))

    def _sockets(self) -> list[Place]:
        """Where to listen: the socket of 0.0.0.0 has what comes to the others, too."""
        return [place for place in self._services if place[0] == _ANY or (_ANY, place[1]) not in self._services]

    def _listen(self, place: Place) -> None:
        service = self._services[place]
        try:
            listener = _Listener(self.engine, self._streams, place, self._service, self._clock, self._entrance)
        except OSError as error:
            where = f"{place[0]} port {place[1]}"
            raise ListenError(f"{service.tunnel.where}: cannot listen on {where}: {error.strerror}") from error
        self._listeners[place] = listener
        log.info("pptp listen=%s Listening tunnel=%s", listener, service.tunnel.name)

    def reconfigure(self, tunnels: Sequence[Tunnel]) -> None:
        """Take over a new configuration: new calls get it; the connections of what is not in it any more end.

        An address that cannot be listened on is logged.
        """
        engine, now = self.engine, self._clock()
        names = {tunnel.name for tunnel in tunnels if isinstance(tunnel.carrier, PptpOptions)}
        for name in engine.services.keys() - names:
            engine.drop_service(name, now)
        engine.configure(tunnels)
        self._services = self._places(tunnels)
        wanted = self._sockets()
        for place in self._listeners.keys() - wanted:
            listener = self._listeners.pop(place)
            listener.close()
            log.info("pptp listen=%s Closed", listener)
        gone = []
        for stream in self._streams.streams.values():
            connection = stream.connection
            at = connection.endpoint
            if self._service((IPv4Address(at.local), at.local_port)) is not connection.service:
                gone.append(connection)
        engine.stop(gone, "address no longer listened on", Cause.ADMIN_RESET, now)
        try:
            self._have_gre(tunnels)
        except ListenError as error:
            log.error("%s", error)
            return
        for place in wanted:
            if place not in self._listeners:
                try:
                    self._listen(place)
                except ListenError as error:
                    log.error("%s", error)
        if not engine.services:
            self._close_gre()

    def shut(self) -> None:
        """End all connections; their peers may take some time to say so, and the sockets stay until :meth:`close`."""
        self.engine.shut(self._clock())

    def close(self) -> None:
        """Close all sockets."""
        self.shut()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._entrance.close()
        self._streams.close()
        self._close_gre()

    def _close_gre(self) -> None:
        if self._gre is not None:
            self._gre.close()
            self._gre = None

    def _transmit(self, endpoint: Endpoint, packet: bytes) -> None:
        if self._gre is not None:
            self._gre.transmit(endpoint, packet)


def _throttle(connection: Connection, resting: bool) -> None:
    stream = connection.stream
    assert isinstance(stream, _Stream)
    stream.rest(resting)
