"""Packets: a generator of one frame again and again, and a far end that checks and counts each one."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time

from npppy.pipex.ip import checksum

from .figures import BenchError
from .lab import Namespace

#: Frames a system call.
_BATCH = 64

# <linux/if_packet.h>, <asm-generic/socket.h>; the socket module does not have them.
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE = 32
# <linux/filter.h>
_LOAD_LENGTH, _LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x80, 0x20, 0x15, 0x06
#: Octets at the front of each frame that the kernel compares.
_CHECKED = 96

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


def udp(source: str, destination: str, size: int, ttl: int) -> bytes:
    """An IPv4 packet of *size* octets, at least 28, with right checksums."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = b"\x45\0" + size.to_bytes(2, "big") + b"\0\0\x40\0" + bytes((ttl, 17))
    head += checksum(head + b"\0\0" + addresses).to_bytes(2, "big") + addresses
    ports, length = b"\x9c\x40\x9c\x41", (size - 20).to_bytes(2, "big")
    data = bytes(number & 0xFF for number in range(size - 28))
    check = checksum(addresses + b"\0\x11" + length + ports + length + b"\0\0" + data)
    return head + ports + length + check.to_bytes(2, "big") + data


def ethernet(destination: bytes, source: bytes, packet: bytes) -> bytes:
    return destination + source + b"\x08\0" + packet


class Generator:
    """Sends *frame* out of an interface, as fast as it goes."""

    def __init__(self, namespace: Namespace, interface: str, frame: bytes) -> None:
        with namespace:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sock.bind((interface, 0))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 32 << 20)
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        self._iovec = _IoVec(ctypes.addressof(self._frame), len(frame))
        self._messages = (_MMsgHdr * _BATCH)()
        for message in self._messages:
            message.header.iov = ctypes.pointer(self._iovec)
            message.header.iovlen = 1

    def run(self, seconds: float) -> int:
        """Send for so long; returns how many frames left."""
        count, descriptor, end = 0, self._sock.fileno(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            sent = _LIBC.sendmmsg(descriptor, self._messages, _BATCH, 0)
            if sent < 0:
                raise BenchError(f"cannot send: {os.strerror(ctypes.get_errno())}")
            count += sent
        return count

    def close(self) -> None:
        self._sock.close()


class Sink:
    """Counts the frames on an interface that are *frame*.

    A socket filter in the kernel compares the length, the first octets and the last ones; the first frames that come
    are kept, and compared whole by :meth:`verify`.
    """

    def __init__(self, namespace: Namespace, interface: str, frame: bytes) -> None:
        self._frame = frame
        tests = [(_LOAD_LENGTH, 0, len(frame))]
        for at in (*range(0, min(_CHECKED, len(frame) - 4), 4), len(frame) - 4):
            tests.append((_LOAD_WORD, at, int.from_bytes(frame[at : at + 4], "big")))
        program = []
        for number, (load, at, value) in enumerate(tests):
            # If it differs, on to the last instruction.
            program += [(load, 0, 0, at), (_JUMP_EQUAL, 0, (len(tests) - number) * 2 - 1, value)]
        program += [(_RETURN, 0, 0, 0xFFFF), (_RETURN, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
        with namespace:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        # Nobody reads it while it counts, so it is full at once, and the kernel only counts.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
        )
        with namespace:
            self._sock.bind((interface, int.from_bytes(frame[12:14], "big")))

    def count(self) -> int:
        """Frames since the last call, those included that the socket had no room for."""
        statistics = self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("II", statistics)[0])

    def verify(self) -> None:
        """Raises :class:`BenchError` unless frames have come that are right in every octet."""
        kept = []
        try:
            while True:
                kept.append(self._sock.recv(65536))
        except BlockingIOError:
            pass
        if not kept or any(frame != self._frame for frame in kept):
            raise BenchError("what comes out is not what went in")

    def close(self) -> None:
        self._sock.close()
