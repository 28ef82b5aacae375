"""The packet sockets that a segment of simulated hosts is on."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import Counter
from collections.abc import Callable

from ..buffers import set_buffers
from ..pppoe import codec
from . import filter

#: Frames taken from a socket before others get their turn.
BATCH = 128
#: Octets of kernel buffer a socket: all subscribers may be answered at once.
BUFFER = 32 << 20

# <linux/if_packet.h>; the socket module does not have them.
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_PROMISC = 1


class Wire:
    """Both EtherTypes of PPPoE on an interface, of which it hears what is sent to the MAC addresses of *span*.

    These are the first and the last, as numbers; without them it is the interface's own.  Raises OSError if they cannot
    be had.
    """

    def __init__(self, interface: str, span: tuple[int, int] | None) -> None:
        #: Frames that could not be sent, by the name of the error.
        self.drops: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()
        self._discovery = _open(interface, codec.DISCOVERY, span)
        try:
            self._session = _open(interface, codec.SESSION, span)
            if span is not None:
                request = struct.pack("IHH8x", socket.if_nametoindex(interface), _PACKET_MR_PROMISC, 0)
                self._session.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        except OSError:
            self._discovery.close()
            raise
        #: The interface's own MAC address.
        self.mac: bytes = self._discovery.getsockname()[4]

    def start(
        self, receive: Callable[[bytes, float], None], clock: Callable[[], float], after: Callable[[], None]
    ) -> None:
        """Hand every frame to *receive*, with the time, and call *after* behind the last one of a batch."""
        self._receive = receive
        self._clock = clock
        self._after = after
        for sock in (self._discovery, self._session):
            self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        for sock in (self._discovery, self._session):
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def _readable(self) -> None:
        now = self._clock()
        heard = False
        # Discovery first: what a concentrator sends right behind its PADS must find the session there.
        for sock in (self._discovery, self._session):
            try:
                for _ in range(BATCH):
                    self._receive(sock.recv(65536), now)
                    heard = True
            except BlockingIOError:
                pass
            except OSError as error:
                # ENETDOWN, once for each time that the interface goes down.
                self.drops["receive-" + errno.errorcode.get(error.errno or 0, "error")] += 1
        if not heard:
            # libuv takes an error, which sending may have met before us, as the end of a socket and polls it no more.
            for sock in (self._discovery, self._session):
                self._loop.remove_reader(sock.fileno())
                self._loop.add_reader(sock.fileno(), self._readable)
        self._after()

    def transmit(self, frame: bytes) -> None:
        """Send now or never; the protocols repeat what is lost."""
        try:
            (self._session if frame[13] == codec.SESSION & 0xFF else self._discovery).send(frame)
        except OSError as error:
            self.drops["send-" + errno.errorcode.get(error.errno or 0, "error")] += 1


def _open(interface: str, ethertype: int, span: tuple[int, int] | None) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        set_buffers(sock, BUFFER)
        if span is not None:
            # Before the first frame comes.
            filter.attach(sock, filter.hosts(*span))
        sock.bind((interface, ethertype))
    except OSError:
        sock.close()
        raise
    return sock
