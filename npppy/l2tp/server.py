"""The socket shell of L2TP: two UDP sockets for every address and port that a tunnel listens on.

One of them is for SCCRQ alone, and is not read while there is more to do than can be done.  Hosts repeat what gets no
answer, so that of those little has to be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from ..admission import Admission
from ..buffers import set_buffers
from ..config.model import Address, L2tpOptions, Protocol, Tunnel
from ..entrance import Entrance, Room
from ..journal import Journal
from ..ppp.cause import Cause
from ..ppp.link import Call, Upper
from ..wheel import Wheel
from .codec import Type
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
_SO_MARK = 36
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_MEMINFO = 55
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
#: What SO_MEMINFO tells: the last of it is how many datagrams were dropped.
_MEMINFO = struct.Struct("=9I")

# <linux/filter.h>
_LOAD_BYTE, _LOAD_HALF, _AND, _JUMP_EQUAL, _RETURN = 0x30, 0x28, 0x54, 0x15, 0x06
# Which socket a datagram is for, the second one being for SCCRQ: what has T and L, no tunnel id, and that Message Type
# in its first AVP, behind a header of 12 octets.  What is shorter is for the first.
_CHOICE = (
    (_LOAD_BYTE, 0, 0, 0),
    (_AND, 0, 0, 0xC0),
    (_JUMP_EQUAL, 0, 5, 0xC0),
    (_LOAD_HALF, 0, 0, 4),
    (_JUMP_EQUAL, 0, 3, 0),
    (_LOAD_HALF, 0, 0, 18),
    (_JUMP_EQUAL, 0, 1, Type.SCCRQ),
    (_RETURN, 0, 0, 1),
    (_RETURN, 0, 0, 0),
)
_CODE = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _CHOICE))
_PROGRAM = struct.pack("HP", len(_CHOICE), ctypes.addressof(_CODE))

#: An address and a port.
Place = tuple[Address, int]


class ListenError(Exception):
    """An address cannot be listened on; the message says which, and why."""


class _Listener:
    """The two sockets of a place."""

    def __init__(
        self,
        engine: Engine,
        place: Place,
        service: Service,
        clock: Callable[[], float],
        admission: Admission,
        entrance: Entrance,
    ) -> None:
        """Raises :class:`OSError`."""
        self.place = place
        self.service = service
        self._engine = engine
        self._clock = clock
        self._admission = admission
        self._entrance = entrance
        # SCCRQs that the kernel had no room for, as far as that is known.
        self._dropped = 0
        self._buffer = bytearray(_LARGEST)
        self._view = memoryview(self._buffer)
        self._family = socket.AF_INET6 if place[0].version == 6 else socket.AF_INET
        with contextlib.ExitStack() as opened:
            self._sock = opened.enter_context(self._open())
            # Only now may the place be shared, and only with what says so, too: with nobody else's.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._begin = opened.enter_context(self._open(socket.SO_REUSEPORT))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, _PROGRAM)
            opened.pop_all()
        self._room = Room(self._begin, admission, clock())
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock.fileno(), self._readable)
        entrance.add(self._begin.fileno(), self._begun)

    def _open(self, *options: int) -> socket.socket:
        """A socket with *options* of the socket level.  Raises :class:`OSError`."""
        address, port = self.place
        sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            for option in options:
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
            if self._family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
                # Data is as large as it is: on a narrow path it goes in fragments (RFC 2661 section 8.1).
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            set_buffers(sock, BUFFER)
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
            except OSError as error:
                # Before Linux 5.19: peers behind one NAT and under IPsec are not told apart.
                log.info("l2tp listen=%s Marks are not received: %s", self, error.strerror)
            sock.bind((str(address), port))
        except OSError:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Close the sockets."""
        self._entrance.remove(self._begin.fileno())
        self._begin.close()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        now = self._clock()
        if self._take(self._sock, BATCH, now) == BATCH:
            self._admission.press()
        self._engine.flush(now)

    def _begun(self, count: int) -> int:
        """There are SCCRQs."""
        now = self._clock()
        taken = self._take(self._begin, count, now)
        self._engine.flush(now)
        self._room.took(taken, now)
        dropped = _MEMINFO.unpack(self._begin.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
        if dropped != self._dropped:
            self.service.drops["busy"] += (dropped - self._dropped) & 0xFFFFFFFF
            self._dropped = dropped
        return taken

    def _take(self, sock: socket.socket, count: int, now: float) -> int:
        """Read up to *count* datagrams; returns how many there were."""
        engine, service, transmit = self._engine, self.service, self.transmit
        receive, buffers, view = sock.recvmsg_into, [self._buffer], self._view
        taken = 0
        # Much that comes at once comes from the same peer.
        before: object = None
        endpoint: Endpoint | None = None
        try:
            while taken < count:
                size, ancillary, _, source = receive(buffers, _ANCILLARY)
                taken += 1
                if (ancillary, source) != before:
                    before = ancillary, source
                    endpoint = self._endpoint(ancillary, source)
                if endpoint is not None:
                    engine.receive(service, endpoint, bytes(view[:size]), transmit, now)
        except BlockingIOError:
            pass
        except OSError as error:
            log.info("l2tp listen=%s Receive failed: %s", self, error.strerror)
            if sock is self._sock:
                # libuv takes an error as the end of the socket and waits for it no more.
                self._loop.remove_reader(sock.fileno())
                self._loop.add_reader(sock.fileno(), self._readable)
        return taken

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


class L2tpServer:
    """L2TP on the addresses of all L2TP tunnels.

    *open_session* is :meth:`npppy.ppp.engine.Engine.open`, *clock* the monotonic clock, *rng* gives random octets;
    *admission* says when tunnels and calls may begin.  It must run in the event loop.
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
        admission: Admission,
    ) -> None:
        """Raises :class:`ListenError`."""
        self._clock = clock
        self._admission = admission
        ghosts = Ghosts(wheel, journal.remove)
        for orphan in journal.orphans(Protocol.L2TP):
            ghosts.add(orphan.slot, orphan.interface, orphan.frame)
        self.engine = Engine(tunnels, open_session, rng, wheel, journal, hostname, ghosts, admission)
        self._entrance = Entrance(admission, self.engine.asking)
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
            listener = self._listeners[place] = _Listener(
                self.engine, place, service, self._clock, self._admission, self._entrance
            )
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
        self._entrance.close()

    def _listener(self, local: bytes, port: int) -> _Listener | None:
        """The socket that has an address of ours."""
        found = self._listeners.get((ip_address(local), port))
        return found or self._listeners.get((ip_address(bytes(len(local))), port))

    def _transmit(self, endpoint: Endpoint, datagram: bytes) -> None:
        """From an address of ours, by whichever socket."""
        listener = self._listener(endpoint.local, endpoint.local_port)
        if listener is not None:
            listener.transmit(endpoint, datagram)
