"""The socket shell of PPPoE: three packet sockets for every interface that a tunnel listens on.

Those that begin have one of their own, which is not read while there is more to do than can be done.  What comes to it
then is not lost to its host, which asks again: nothing that is old would be of use to it.
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

from ..admission import Admission
from ..buffers import set_buffers
from ..config.model import Protocol, Tunnel
from ..entrance import Entrance, Room
from ..journal import Journal
from ..port import Port
from ..ppp.cause import Cause
from ..ppp.link import Call, Upper
from ..wheel import Wheel
from . import codec
from .access import AccessPort
from .engine import Engine

log = logging.getLogger("npppy.pppoe")

#: Frames taken from the sockets of a kind before others get their turn, and from one of them at least.
BATCH = 64
LEAST = 8
#: Octets of kernel buffer a socket: some thousands of PADR, or of PADT.
BUFFER = 4 << 20
#: Seconds that an interface may block the frame that ends an orphan.
ORPHAN_TIMEOUT = 2.0

# <asm-generic/socket.h> and <linux/if_packet.h>; the socket module does not have them.
_SO_ATTACH_FILTER = 26
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
#: Frames, with those that there was no room for; those.
_STATISTICS = struct.Struct("=II")

# <linux/filter.h>: offsets of what the kernel knows of a packet.
_PKTTYPE = 0xFFFFF000 + 4
_IFINDEX = 0xFFFFF000 + 8
_VLAN_TAG_PRESENT = 0xFFFFF000 + 48
_LOAD, _LOAD_BYTE, _LOAD_LENGTH, _JUMP_EQUAL, _JUMP_ABOVE, _RETURN = 0x20, 0x30, 0x80, 0x15, 0x25, 0x06
_Instruction = tuple[int, int, int, int]
#: Where a discovery packet has its code.
_CODE_AT = codec.ETHERNET_LEN + 1


def _attach_filter(sock: socket.socket, ifindex: int, padi: bool | None) -> None:
    """Only frames to our address or to all, and without a VLAN tag; of these PADI alone, or all but PADI, or all.

    By the time that a frame reaches a socket of one EtherType, the kernel has taken its tag off.  What tells is the
    VLAN device, which the frame is for now though it came by ours; or the type OTHERHOST, where there is no such
    device.  An answer would go into the wrong VLAN.
    """
    instructions: tuple[_Instruction, ...] = (
        (_LOAD, 0, 0, _IFINDEX),
        (_JUMP_EQUAL, 0, 6, ifindex),
        (_LOAD_BYTE, 0, 0, _PKTTYPE),
        (_JUMP_EQUAL, 1, 0, socket.PACKET_HOST),
        (_JUMP_EQUAL, 0, 3, socket.PACKET_BROADCAST),
        (_LOAD_BYTE, 0, 0, _VLAN_TAG_PRESENT),
        (_JUMP_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, 0xFFFF),
        (_RETURN, 0, 0, 0),
    )
    if padi is not None:
        # What is too short to have a code is malformed, which is for the others to count.
        kind: tuple[_Instruction, ...] = (
            (_LOAD_LENGTH, 0, 0, 0),
            (_JUMP_ABOVE, 0, 2 if padi else 3, _CODE_AT),
            (_LOAD_BYTE, 0, 0, _CODE_AT),
            (_JUMP_EQUAL, 1 if padi else 0, 0 if padi else 1, codec.Code.PADI),
            (_RETURN, 0, 0, 0),
        )
        instructions = kind + instructions
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))
    program = struct.pack("HP", len(instructions), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _open(interface: str, ifindex: int, ethertype: int, padi: bool | None = None) -> socket.socket:
    """A packet socket for one EtherType on one interface; *padi*: for PADI alone, or all others.  Raises OSError."""
    # With protocol 0 nothing comes in until it is bound, and by then the filter is there.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        _attach_filter(sock, ifindex, padi)
        set_buffers(sock, BUFFER)
        sock.bind((interface, ethertype))
    except OSError:
        sock.close()
        raise
    return sock


class _Listener:
    """An interface that is there: its sockets, and its access port in the engine."""

    def __init__(
        self,
        engine: Engine,
        entrance: Entrance,
        admission: Admission,
        name: str,
        ifindex: int,
        mac: bytes,
        mtu: int,
        up: bool,
        clock: Callable[[], float],
    ) -> None:
        """Raises OSError if the interface has gone again."""
        self.ifindex = ifindex
        #: Frames taken from a socket in a turn.
        self.batch = BATCH
        self._is_up = up
        self._engine = engine
        self._entrance = entrance
        self._admission = admission
        self._clock = clock
        self.port = Port(name)
        with contextlib.ExitStack() as opened:
            self._begin = opened.enter_context(_open(name, ifindex, codec.DISCOVERY, True))
            self._discovery = opened.enter_context(_open(name, ifindex, codec.DISCOVERY, False))
            self._session = opened.enter_context(_open(name, ifindex, codec.SESSION))
            opened.pop_all()
        self._room = Room(self._begin, admission, clock())
        self._access = self._open_port(mac, mtu)
        self._loop = asyncio.get_running_loop()
        for sock in (self._discovery, self._session):
            self._loop.add_reader(sock.fileno(), self._readable, sock)
        entrance.add(self._begin.fileno(), self._begun)

    def _open_port(self, mac: bytes, mtu: int) -> AccessPort:
        return self._engine.port_up(self.port, mac, mtu, self.transmit, self._clock())

    def update(self, mac: bytes, mtu: int, up: bool) -> None:
        """The interface has these now."""
        access = self._access
        if up != self._is_up:
            self._is_up = up
            log.info("pppoe port=%s Link up=%s", self.port, _yes(up))
        if mac != access.mac:
            # The sessions' peers know us by the old address, from which we can still send.
            log.warning("pppoe port=%s MAC changed old=%s new=%s", self.port, access.mac.hex(":"), mac.hex(":"))
            self._engine.port_down(self.port, "MAC address changed", self._clock(), padt=True)
            self._access = self._open_port(mac, mtu)
        elif mtu != access.mtu:
            log.info("pppoe port=%s MTU changed old=%d new=%d", self.port, access.mtu, mtu)
            access.set_mtu(mtu, self._clock())

    def close(self) -> None:
        """Close the sockets; the engine knows already."""
        for sock in (self._discovery, self._session):
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._entrance.remove(self._begin.fileno())
        self._begin.close()

    @property
    def _size(self) -> int:
        """Octets of a frame, with room for the headers; a longer one is none that we could have let the peer send."""
        return max(self._access.mtu, codec.MAX_PAYLOAD) + 64

    def _readable(self, sock: socket.socket) -> None:
        receive, size, now = self._access.receive, self._size, self._clock()
        heard = False
        try:
            for _ in range(self.batch):
                receive(sock.recv(size), now)
                heard = True
            self._admission.press()
            return
        except BlockingIOError:
            if heard:
                return
        except OSError as error:
            # ENETDOWN, once for each time that the interface goes down.  The socket works on when it is up again;
            # if it has vanished, its link event will say so.
            log.info("pppoe port=%s Receive failed: %s", self.port, error.strerror)
        # libuv takes an error, which sending may have met before us, as the end of the socket and waits for it no more.
        self._loop.remove_reader(sock.fileno())
        self._loop.add_reader(sock.fileno(), self._readable, sock)

    def _begun(self, count: int) -> int:
        """There are PADIs."""
        receive, size, now = self._access.receive, self._size, self._clock()
        taken = 0
        try:
            while taken < count:
                receive(self._begin.recv(size), now)
                taken += 1
        except BlockingIOError:
            pass
        except OSError as error:
            log.debug("pppoe port=%s Receive failed: %s", self.port, error.strerror)
        self._room.took(taken, now)
        # Since they were last asked for.
        _, lost = _STATISTICS.unpack(self._begin.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size))
        if lost:
            self._access.drops["busy"] += lost
        return taken

    def transmit(self, frame: bytes) -> None:
        """Send now or never: what a full queue or a dead link loses, PPP and the peer repeat."""
        try:
            # Each frame by the socket of its EtherType, which the kernel writes on the packet.
            (self._session if frame[13] == codec.SESSION & 0xFF else self._discovery).send(frame)
        except OSError as error:
            drops = self._access.drops
            drops["send-" + errno.errorcode.get(error.errno or 0, "error")] += 1


class PppoeServer:
    """PPPoE on the interfaces of all PPPoE tunnels.

    *open_session* is :meth:`npppy.ppp.engine.Engine.open`, *clock* the monotonic clock, *rng* gives random octets;
    *admission* says when sessions may begin.  The daemon tells it of links by :meth:`link_event`; it must run in the
    event loop.
    """

    def __init__(
        self,
        tunnels: Sequence[Tunnel],
        open_session: Callable[[Call, float], Upper | None],
        rng: Callable[[int], bytes],
        wheel: Wheel,
        clock: Callable[[], float],
        journal: Journal,
        admission: Admission,
    ) -> None:
        self.engine = Engine(tunnels, open_session, rng, wheel, journal)
        self._clock = clock
        self._admission = admission
        self._entrance = Entrance(admission)
        self._listeners: dict[str, _Listener] = {}

    def interfaces(self) -> frozenset[str]:
        """The interfaces whose links it wants to hear of."""
        return self.engine.interfaces()

    def link_event(self, name: str, ifindex: int, mac: bytes, mtu: int, up: bool, present: bool) -> None:
        """An interface is as said: from the first look at it, and whenever something changes.  *mac* has 6 octets.

        One that is not *present* has vanished, and its sessions end.  One that is not *up* keeps them: links flap, and
        LCP finds out what did not survive.
        """
        listener = self._listeners.get(name)
        if listener is not None and not (present and listener.ifindex == ifindex):
            self._down(name, "interface vanished", Cause.LOST_CARRIER, padt=False)
            listener = None
        if not present or name not in self.interfaces():
            return
        if listener is not None:
            listener.update(mac, mtu, up)
            return
        if len(mac) != 6:
            log.error("pppoe interface=%s Not an Ethernet interface", name)
            return
        try:
            self._listeners[name] = _Listener(
                self.engine, self._entrance, self._admission, name, ifindex, mac, mtu, up, self._clock
            )
        except OSError as error:
            # It comes back with the next event, if it does.
            log.error("pppoe interface=%s Cannot listen: %s", name, error.strerror)
            return
        self._balance()
        log.info("pppoe interface=%s Listening mac=%s mtu=%d up=%s", name, mac.hex(":"), mtu, _yes(up))

    def reconfigure(self, tunnels: Sequence[Tunnel]) -> None:
        """Take over a new configuration.

        New sessions get it.  Interfaces and tunnels that are not in it any more end their sessions; those that are new
        begin with their next :meth:`link_event`, which the caller sees to.
        """
        self.engine.reconfigure(tunnels, self._clock())
        for name in self._listeners.keys() - self.interfaces():
            self._forget(name)

    def close(self) -> None:
        """End what sessions PPP has left, and close all sockets."""
        for name in list(self._listeners):
            self._down(name, "shutting down", Cause.ADMIN_REBOOT, padt=True)
        self._entrance.close()

    def _down(self, name: str, reason: str, cause: Cause, *, padt: bool) -> None:
        self.engine.port_down(self._listeners[name].port, reason, self._clock(), cause=cause, padt=padt)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._listeners.pop(name).close()
        self._balance()
        log.info("pppoe interface=%s Closed", name)

    def _balance(self) -> None:
        """Read no more in a turn from many interfaces than from one: who is to wait is told so in time."""
        for listener in self._listeners.values():
            listener.batch = max(BATCH // len(self._listeners), LEAST)


def end_orphans(journal: Journal) -> int:
    """Send the PADTs of the sessions that an earlier process left; returns how many there were.

    To be called once, before anything is given to new sessions.  It may block for a moment.
    """
    by_interface: dict[str, list[bytes]] = {}
    orphans = journal.orphans(Protocol.PPPOE)
    for orphan in orphans:
        by_interface.setdefault(orphan.interface, []).append(orphan.frame)
    for name, frames in by_interface.items():
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
                sock.bind((name, 0))
                sock.settimeout(ORPHAN_TIMEOUT)
                for frame in frames:
                    sock.send(frame)
        except OSError as error:
            # The interface has gone with its sessions, or is down: a session frame will bring the PADT.
            log.warning("pppoe interface=%s Cannot end %d old sessions: %s", name, len(frames), error)
        else:
            log.info("pppoe interface=%s Ended old sessions=%d", name, len(frames))
    for orphan in orphans:
        journal.remove(orphan.slot)
    return len(orphans)
