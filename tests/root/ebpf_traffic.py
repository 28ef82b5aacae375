"""Frames by the hundred thousand a second, and a far end that looks at each of them.

Frames of one size lie side by side, so that one octet of all of them is a slice with a stride: such columns are set and
compared by the thousand at once.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct

from tests.root.ebpf_lab import CORE, NEXT, Namespace, sh
from tests.unit.ippackets import words

#: A host behind the world, who never answers.
FAR = "203.0.113.1"

#: Frames a system call.
BATCH = 256

# <linux/if_packet.h>, <asm-generic/socket.h>; the socket module does not have them.
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_QDISC_BYPASS = 20
_PACKET_IGNORE_OUTGOING = 23
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_MEMINFO = 55
#: Octets that wait for a sink before senders do.
_WAITING = 64 << 20
#: Of a control message with the time: its header, and struct timespec.
_CONTROL = 32

_LIBC = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _MsgHdr(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _MMsgHdr(ctypes.Structure):
    _fields_ = [("header", _MsgHdr), ("length", ctypes.c_uint)]


#: struct mmsghdr in words of 32 bits, and the place of its length there.
_WORDS = ctypes.sizeof(_MMsgHdr) // 4
_LENGTH = _MMsgHdr.length.offset // 4


def _messages(octets: bytearray, size: int, control: bytearray | None = None) -> ctypes.Array[_MMsgHdr]:
    """One for each *size* octets."""
    count = len(octets) // size
    base = ctypes.addressof(ctypes.c_char.from_buffer(octets))
    controls = ctypes.addressof(ctypes.c_char.from_buffer(control)) if control else 0
    parts = (_IoVec * count)(*((base + number * size, size) for number in range(count)))
    messages = (_MMsgHdr * count)()
    for number, message in enumerate(messages):
        message.header.iov = ctypes.pointer(parts[number])
        message.header.iovlen = 1
        if control:
            message.header.control = controls + number * _CONTROL
            message.header.controllen = _CONTROL
    return messages


def from_world(packet: bytes) -> bytes:
    """The frame in which an IPv4 packet comes to core0."""
    return CORE + NEXT + b"\x08\0" + packet


def to_world(packet: bytes) -> bytes:
    """The frame in which it leaves there."""
    return NEXT + CORE + b"\x08\0" + packet


def hop(packet: bytes) -> bytes:
    """An IPv4 packet without options as a router leaves it."""
    head = packet[:8] + bytes((packet[8] - 1,)) + packet[9:10] + b"\0\0" + packet[12:20]
    return head[:10] + (0xFFFF ^ words(head)).to_bytes(2, "big") + head[12:] + packet[20:]


def dropped(*names: str) -> int:
    """Frames for which the links of these interfaces had no room."""
    links = json.loads(sh("ip -j -s link show"))
    return sum(link["stats64"]["tx"]["dropped"] for link in links if link["ifname"] in names)


class Sender:
    """Sends frames out of an interface, from as many threads as one likes."""

    def __init__(self, namespace: Namespace, interface: str, frames: list[bytes]) -> None:
        """*frames*: of one size."""
        self.size = len(frames[0])
        self.count = len(frames)
        assert {len(frame) for frame in frames} == {self.size}
        #: All of them, to be changed between two calls of :meth:`send`, or while it runs.
        self.octets = bytearray(b"".join(frames))
        self._messages = _messages(self.octets, self.size)
        with namespace:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sock.bind((interface, 0))
        # By the queue of the processor that sends; and who sends hears of a full queue.
        self._sock.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 32 << 20)

    def send(self, first: int = 0, count: int = 0) -> None:
        """Send *count* frames, without any all, the first of them *first*; none is lost on this interface's link."""
        end = first + (count or self.count)
        size, fd = ctypes.sizeof(_MMsgHdr), self._sock.fileno()
        base = ctypes.addressof(self._messages)
        while first < end:
            done = _LIBC.sendmmsg(fd, ctypes.c_void_p(base + first * size), min(end - first, BATCH), 0)
            if done > 0:
                first += done
            elif ctypes.get_errno() != errno.ENOBUFS:
                raise OSError(ctypes.get_errno(), "sendmmsg")

    def close(self) -> None:
        self._sock.close()


class Sink:
    """Takes the frames that an interface receives: one way of traffic."""

    def __init__(
        self, namespace: Namespace, interface: str, protocol: int, size: int, *, udp: bool = False, stamps: bool = False
    ) -> None:
        """Frames of *protocol* have *size* octets each.

        With *udp* those are no others than UDP in IPv4; with *stamps* it is known when each came.
        """
        self._size = size
        #: The frames of the last :meth:`read`, *size* octets and one for each.
        self.octets = bytearray((size + 1) * BATCH)
        self._control = bytearray(_CONTROL * BATCH) if stamps else None
        self._times = memoryview(self._control or b"").cast("q")
        self._messages = _messages(self.octets, size + 1, self._control)
        self._lengths = memoryview(self._messages).cast("B").cast("I")[_LENGTH::_WORDS]
        self.count = 0
        with namespace:
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self.sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 * _WAITING)
        if stamps:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if udp:
            # Load octet 23, return all if it is 17, else nothing.
            code = struct.pack("HBBI" * 4, 0x30, 0, 0, 23, 0x15, 0, 1, 17, 6, 0, 0, 0xFFFF, 6, 0, 0, 0)
            program = ctypes.create_string_buffer(code)
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 4, ctypes.addressof(program)))
        with namespace:
            self.sock.bind((interface, protocol))

    def read(self) -> int:
        """Take what has come, at most BATCH frames, into :attr:`octets`; returns how many, perhaps 0."""
        count = _LIBC.recvmmsg(self.sock.fileno(), self._messages, BATCH, 0, None)
        if count < 0:
            assert ctypes.get_errno() == errno.EAGAIN, os.strerror(ctypes.get_errno())
            count = 0
        self.count = count
        assert set(self._lengths[:count]) <= {self._size}, "a frame of another size"
        return count

    def columns(self, at: int, count: int) -> list[bytes]:
        """Of all frames that were read last, one octet and those behind it."""
        stride = self._size + 1
        return [bytes(self.octets[place : self.count * stride : stride]) for place in range(at, at + count)]

    def stamps(self) -> list[float]:
        """When they came, in seconds of the system's clock."""
        seconds, nanoseconds = (self._times[place : self.count * 4 : 4].tolist() for place in (2, 3))
        return [second + nanosecond * 1e-9 for second, nanosecond in zip(seconds, nanoseconds, strict=True)]

    def full(self) -> bool:
        """Whether so much waits to be read that senders had better wait too."""
        (octets,) = struct.unpack("I", self.sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4))
        return bool(octets > _WAITING)

    def lost(self) -> int:
        """Frames that there was no room for, since the last call."""
        return int(struct.unpack("II", self.sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])

    def close(self) -> None:
        self.sock.close()
