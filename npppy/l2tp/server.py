"""The socket shell of L2TP: a UDP socket for every address and port that a tunnel listens on."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from ..config.model import Address, L2tpOptions, Protocol, Tunnel
from ..journal import Journal
from ..ppp.cause import Cause
from ..ppp.link import Call, Upper
from ..wheel import Wheel
from .engine import Engine
from .orphans import Ghosts
from .service import Endpoint, Service

log = logging.getLogger("npppy.l2tp")

#: Datagrams taken from a socket before others get their turn.
BATCH = 64
#: Octets of kernel buffer a socket.
BUFFER = 4 << 20
#: The largest datagram.
_LARGEST = 65535

# <asm-generic/socket.h>, <linux/in.h> and <linux/in6.h>; the socket module does not have them.
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MARK = 36
_SO_RCVMARK = 75
_IP_PKTINFO = 8
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_IP_PMTUDISC_DONT = 0

#: Interface, the address of ours, the destination in the header.
_PKTINFO4 = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16si")
_MARK = struct.Struct("=I")
_ANCILLARY = socket.CMSG_SPACE(_PKTINFO6.size) + socket.CMSG_SPACE(_MARK.size)
_NO_ADDRESS = bytes(4)

#: An address and a port.
Place = tuple[Address, int]


class ListenError(Exception):
    """An address cannot be listened on; the message says which, and why."""


class _Listener:
    """One socket."""

    def __init__(self, engine: Engine, place: Place, service: Service, clock: Callable[[], float]) -> None:
        """Raises :class:`OSError`."""
        address, port = place
        self.place = place
        self.service = service
        self._engine = engine
        self._clock = clock
        self._buffer = bytearray(_LARGEST)
        self._view = memoryview(self._buffer)
        six = address.version == 6
        self._family = socket.AF_INET6 if six else socket.AF_INET
        self._sock = sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if six:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
                # Data is as large as it is: on a narrow path it goes in fragments (RFC 2661 section 8.1).
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
            _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
            except OSError as error:
                # Before Linux 5.19: peers behind one NAT and under IPsec are not told apart.
                log.info("l2tp listen=%s Marks are not received: %s", self, error.strerror)
            sock.bind((str(address), port))
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
        engine, service, transmit = self._engine, self.service, self.transmit
        receive, buffers, view = self._sock.recvmsg_into, [self._buffer], self._view
        now = self._clock()
        try:
            for _ in range(BATCH):
                size, ancillary, _, source = receive(buffers, _ANCILLARY)
                endpoint = self._endpoint(ancillary, source)
                if endpoint is not None:
                    engine.receive(service, endpoint, bytes(view[:size]), transmit, now)
        except BlockingIOError:
            pass
        except OSError as error:
            log.info("l2tp listen=%s Receive failed: %s", self, error.strerror)
            # libuv takes an error as the end of the socket and waits for it no more.
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_reader(self._sock.fileno(), self._readable)
        engine.flush(now)

    def _endpoint(self, ancillary: list[tuple[int, int, bytes]], source: tuple[str, int]) -> Endpoint | None:
        local, mark = b"", 0
        for level, kind, value in ancillary:
            if kind == _IP_PKTINFO and level == socket.IPPROTO_IP:
                local = _PKTINFO4.unpack(value)[1]
            elif kind == socket.IPV6_PKTINFO and level == socket.IPPROTO_IPV6:
                local = _PKTINFO6.unpack(value)[0]
            elif kind == _SO_MARK and level == socket.SOL_SOCKET:
                (mark,) = _MARK.unpack(value)
        port = self.place[1]
        if not local or local == _NO_ADDRESS or not source[1]:
            return None
        if self._family == socket.AF_INET:
            return Endpoint(local, port, socket.inet_aton(source[0]), source[1], mark)
        scope = source[3] if len(source) > 3 else 0
        peer = socket.inet_pton(socket.AF_INET6, source[0].partition("%")[0])
        return Endpoint(local, port, peer, source[1], mark, scope)

    def transmit(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send now or never: what a full queue or a lost route takes, is repeated or lost as on any path."""
        ancillary: list[tuple[int, int, bytes]] = []
        address: tuple[str, int] | tuple[str, int, int, int]
        if len(endpoint.peer) == 4:
            ancillary.append((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, endpoint.local, _NO_ADDRESS)))
            address = socket.inet_ntoa(endpoint.peer), endpoint.peer_port
        else:
            info = _PKTINFO6.pack(endpoint.local, endpoint.scope)
            ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info))
            host = socket.inet_ntop(socket.AF_INET6, endpoint.peer)
            address = host, endpoint.peer_port, 0, endpoint.scope
        if endpoint.mark:
            ancillary.append((socket.SOL_SOCKET, _SO_MARK, _MARK.pack(endpoint.mark)))
        try:
            self._sock.sendmsg((datagram,), ancillary, 0, address)
        except OSError as error:
            self.service.drops["send-" + errno.errorcode.get(error.errno or 0, "error")] += 1

    def __str__(self) -> str:
        address, port = self.place
        return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def _set_buffer(sock: socket.socket, forced: int, plain: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
    except PermissionError:
        # Without CAP_NET_ADMIN, as much as net.core allows.
        sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)


class L2tpServer:
    """L2TP on the addresses of all L2TP tunnels.

    *open_session* is :meth:`npppy.ppp.engine.Engine.open`, *clock* the monotonic clock, *rng* gives random octets.  It
    must run in the event loop.
    """

    def __init__(
        self,
        tunnels: Sequence[Tunnel],
        open_session: Callable[[Call, float], Upper | None],
        rng: Callable[[int], bytes],
        wheel: Wheel,
        clock: Callable[[], float],
        journal: Journal,
        hostname: str,
    ) -> None:
        """Raises :class:`ListenError`."""
        self._clock = clock
        ghosts = Ghosts(wheel, journal.remove)
        for orphan in journal.orphans(Protocol.L2TP):
            ghosts.add(orphan.slot, orphan.interface, orphan.frame)
        self.engine = Engine(tunnels, open_session, rng, wheel, journal, hostname, ghosts)
        self._listeners: dict[Place, _Listener] = {}
        try:
            for place, service in self._places(tunnels).items():
                self._listen(place, service)
        except ListenError:
            self._close_sockets()
            raise
        if len(ghosts):
            log.info("l2tp Ending old tunnels=%d", len(ghosts))
            ghosts.start(self._transmit, clock())

    def _places(self, tunnels: Sequence[Tunnel]) -> dict[Place, Service]:
        return {
            place: self.engine.services[tunnel.name]
            for tunnel in tunnels
            if isinstance(tunnel.carrier, L2tpOptions)
            for place in tunnel.carrier.listen
        }

    def _listen(self, place: Place, service: Service) -> None:
        try:
            listener = self._listeners[place] = _Listener(self.engine, place, service, self._clock)
        except OSError as error:
            where = f"{place[0]} port {place[1]}"
            raise ListenError(f"{service.tunnel.where}: cannot listen on {where}: {error.strerror}") from error
        log.info("l2tp listen=%s Listening tunnel=%s", listener, service.tunnel.name)

    def reconfigure(self, tunnels: Sequence[Tunnel]) -> None:
        """Take over a new configuration: new calls get it; the tunnels of what is not in it any more end.

        An address that cannot be listened on is logged.
        """
        engine, now = self.engine, self._clock()
        names = {tunnel.name for tunnel in tunnels if isinstance(tunnel.carrier, L2tpOptions)}
        for name in engine.services.keys() - names:
            engine.drop_service(name, now)
        engine.configure(tunnels)
        wanted = self._places(tunnels)
        for place, listener in list(self._listeners.items()):
            if wanted.get(place) is not listener.service:
                gone = [tunnel for tunnel in engine.tunnels.values() if tunnel.transmits_by(listener.transmit)]
                engine.stop(gone, "address no longer listened on", Cause.ADMIN_RESET, now)
                del self._listeners[place]
                listener.close()
                log.info("l2tp listen=%s Closed", listener)
        for place, service in wanted.items():
            if place not in self._listeners:
                try:
                    self._listen(place, service)
                except ListenError as error:
                    log.error("%s", error)

    def outer(self, packet: bytes, now: float) -> None:
        """An IP packet to one of our addresses that has come past the sockets, after IPsec: a data message."""
        six = packet[0] >> 4 == 6
        at = 40 if six else (packet[0] & 15) * 4
        if len(packet) < at + 8:
            return
        source, destination = (packet[8:24], packet[24:40]) if six else (packet[12:16], packet[16:20])
        sport, dport, size = struct.unpack_from("!HHH", packet, at)
        listener = self._listener(destination, dport)
        if listener is not None:
            endpoint = Endpoint(destination, dport, source, sport)
            self.engine.decrypted(listener.service, endpoint, packet[at + 8 : at + size], now)

    def shut(self) -> None:
        """End all tunnels; their peers may take some time to say so, and the sockets stay until :meth:`close`."""
        self.engine.shut(self._clock())

    def close(self) -> None:
        """Close all sockets."""
        self.shut()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def _listener(self, local: bytes, port: int) -> _Listener | None:
        """The socket that has an address of ours."""
        found = self._listeners.get((ip_address(local), port))
        return found or self._listeners.get((ip_address(bytes(len(local))), port))

    def _transmit(self, endpoint: Endpoint, datagram: bytes) -> None:
        """From an address of ours, by whichever socket."""
        listener = self._listener(endpoint.local, endpoint.local_port)
        if listener is not None:
            listener.transmit(endpoint, datagram)
