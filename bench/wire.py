"""Packets: programs in the kernel that send frames, and that check and count them where they arrive.

The generator is an XDP program that BPF_PROG_TEST_RUN has run again and again on pages of its own.  What it redirects
leaves an interface as frames leave a driver, 64 at a time; they and all that becomes of them are the work of one core,
the generator's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from npppy.pipex.ebpf.libbpf import Object, library
from npppy.pipex.ip import checksum

from .figures import BenchError
from .kernel import attach, ksoftirqd
from .lab import THEIRS, Namespace, until

#: Compiled from wire.c by ``make bpf``.
OBJECT = str(Path(__file__).parent / "bpf" / "wire.o")

#: Of wire.c: octets in which frames of a stream may differ, as many as most streams need, and those at their end which
#: the kernel compares.
HEAD, SHORT, TAIL = 96, 72, 16
#: Streams that may be loaded at once, and frames of each.
STREAMS = 2
FRAMES = (1 << 15) // STREAMS
#: Octets of a part of the reel, of a frame on it at the most, and that frames on it begin at multiples of.
_PART, _FRAME, _ALIGNED = 1 << 20, 1536, 64

#: Right frames of a run that are compared whole.
_KEPT = 8
#: Frames before those that count, and seconds of a steady stream before it counts.
_WARM_UP = 50_000
_SETTLED = 0.1
#: Seconds in which what was sent arrives, if it does.
_LATE = 2.0

_SENDING = struct.Struct("=IIIIIIIIQ")
_PLAYING = struct.Struct("=IIIII")
_ARRIVING = struct.Struct(f"=IIII{TAIL}s{HEAD}sII2sHI")
_TALLY = struct.Struct("=QQ")
_NUMBER = struct.Struct("=I")
_FIRST = bytes(4)
_PATTERN = bytes(range(256)) * 8

_LIVE_FRAMES = 1 << 1  # BPF_F_TEST_XDP_LIVE_FRAMES
_FOREVER = 0x7FFFFFFF


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts"""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


def udp(source: str, destination: str, size: int, ttl: int, number: int) -> bytes:
    """An IPv4 packet of *size* octets, at least 48, with right checksums; its data begin with its number."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    ports, length = b"\x9c\x40\x9c\x41", (size - 20).to_bytes(2, "big")
    data = _data(size - 28, number)
    check = checksum(addresses + b"\0\x11" + length + ports + length + b"\0\0" + data)
    return _ip4(addresses, 17, size, ttl) + ports + length + check.to_bytes(2, "big") + data


def tcp(source: str, destination: str, size: int, ttl: int, number: int) -> bytes:
    """The same with a segment of TCP, in mid-stream."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    length = (size - 20).to_bytes(2, "big")
    # Ports, sequence number and acknowledgement; a header of 20 octets, ACK, window.
    front, back = b"\x9c\x40\x9c\x41" + bytes(8) + b"\x50\x10\xff\xff", b"\0\0" + _data(size - 40, number)
    check = checksum(addresses + b"\0\6" + length + front + b"\0\0" + back)
    return _ip4(addresses, 6, size, ttl) + front + check.to_bytes(2, "big") + back


def _data(size: int, number: int) -> bytes:
    return _NUMBER.pack(number) + _PATTERN[: size - _NUMBER.size]


def _ip4(addresses: bytes, protocol: int, size: int, ttl: int) -> bytes:
    head = b"\x45\0" + size.to_bytes(2, "big") + b"\0\0\x40\0" + bytes((ttl, protocol))
    return head + checksum(head + b"\0\0" + addresses).to_bytes(2, "big") + addresses


def ethernet(destination: bytes, source: bytes, packet: bytes) -> bytes:
    return destination + source + b"\x08\0" + packet


@dataclass(frozen=True, slots=True)
class Stream:
    """Frames that leave one interface, and what they have become where they arrive at another, in the same order.

    All have one length; they differ in their first :data:`HEAD` octets only, which the generator writes anew in each
    frame, and in which they have their number.
    """

    start: tuple[Namespace, str]
    sent: Sequence[bytes]
    end: tuple[Namespace, str]
    arriving: Sequence[bytes]
    #: Where an arriving frame has its number; 0: in what is encrypted, and then there is one frame.
    number_at: int
    #: Octets of an arriving frame that may be anything.
    loose: tuple[slice, ...] = ()
    #: Where a frame that is sent counts, in so many octets, 2 or 4, how often it was, from what it has there at first;
    #: 0: nowhere.
    count_at: int = 0
    count_size: int = 2
    #: Whether all of :data:`HEAD` is to be written anew in each frame that is sent: it is made in the page of one that
    #: was sent before, and has since become something else there.
    anew: bool = False
    #: Of the right frames that arrive, one of so many is looked at whole.
    every: int = 1
    #: Looks at such a frame before it is compared; raises :class:`BenchError`.
    inspect: Callable[[bytes], None] | None = None

    @property
    def mask(self) -> bytes:
        """The octets of its head that are compared, as ones."""
        mask = bytearray(b"\xff" * HEAD)
        for part in self.loose:
            mask[part] = bytes(len(mask[part]))
        return bytes(mask)


class Wire:
    """The generator, and sinks at interfaces; a context manager."""

    def __init__(self, ends: Iterable[tuple[Namespace, str]], reel: int = 1) -> None:
        """Sinks at *ends*; room for *reel* MiB of frames to :meth:`play`."""
        self._ends = list(ends)
        self._parts = reel
        self._stack = contextlib.ExitStack()
        self._streams: list[Stream] = []

    def __enter__(self) -> Wire:
        with contextlib.ExitStack() as stack:
            self._object = stack.enter_context(Object(OBJECT, sizes={"reel": self._parts}))
            self._maps = self._object.maps
            self._reel = stack.enter_context(self._maps["reel"].mapped())
            for end in self._ends:
                attach(*end, self._object.programs["sink"])
                stack.callback(attach, *end, None)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(self, *streams: Stream) -> None:
        """Make ready for these, and for no others."""
        self._streams = list(streams)
        for place, stream in enumerate(streams):
            for name, frames in (("sent", stream.sent), ("expected", stream.arriving)):
                if len(frames) > FRAMES or not _alike(frames, HEAD):
                    raise BenchError("too many frames for a stream, or they differ where they must not")
                keys = b"".join(_NUMBER.pack(place * FRAMES + number) for number in range(len(frames)))
                self._maps[name].put_many(keys, b"".join(frame[:HEAD].ljust(HEAD, b"\0") for frame in frames))

    def rate(self, stream: Stream, seconds: float) -> float:
        """Frames that arrive in a second of the generator's core, of which it takes about so many."""
        with self._chosen(stream):
            each = self._send(stream, _WARM_UP) / _WARM_UP
        before = self._right()
        elapsed = self._send(stream, max(_WARM_UP, int(seconds / each)))
        return (self._right() - before) / elapsed

    def room(self, size: int) -> int:
        """Frames of *size* octets that may be played at once."""
        return self._parts * _on_a_part(size)

    def play(self, stream: Stream, frames: Iterable[bytes]) -> float:
        """Send each of *frames*, whose like the stream has, once: all must arrive.

        Returns how many do in a second of the generator's core.
        """
        size = len(stream.sent[0])
        stride = _stride(size)
        source, count = iter(frames), 0
        for at in range(0, self._parts * _PART, _PART):
            part = list(itertools.islice(source, _on_a_part(size)))
            if any(len(frame) != size for frame in part):
                raise BenchError("frames are not as long as those of their stream")
            octets = b"".join(frame.ljust(stride, b"\0") for frame in part)
            self._reel[at : at + len(octets)] = octets
            count += len(part)
        if next(source, None) is not None:
            raise BenchError("there are too many frames")
        return self._play(stream, stride, count)

    def repeat(self, stream: Stream, count: int) -> float:
        """Send the first frame of the stream so often, every octet of it; else likewise."""
        (frame,) = stream.sent
        self._reel[: len(frame)] = frame
        return self._play(stream, 0, count)

    def _play(self, stream: Stream, stride: int, count: int) -> float:
        namespace, interface = stream.start
        with namespace:
            ifindex = socket.if_nametoindex(interface)
        self._maps["playing"].put(_FIRST, _PLAYING.pack(ifindex, len(stream.sent[0]), stride, 0, 0))
        with self._chosen(stream):
            before = self._right()
            elapsed = self._send(stream, count, "play")
            # What was put off, and is done only now, counts too.
            since = ksoftirqd(THEIRS)
            until(lambda: self._right() >= before + count, f"all of {count} packets arrive", _LATE)
        return count / (elapsed + ksoftirqd(THEIRS) - since)

    def deliver(self, stream: Stream, count: int) -> int:
        """Send until *count* have arrived; returns how many have."""
        with self._chosen(stream):
            before = self._right()
            arrived = 0
            while arrived < count:
                self._send(stream, count - arrived)
                last, arrived = arrived, self._right() - before
                if arrived == last:
                    raise BenchError(f"of {count} packets only {arrived} arrive")
        return arrived

    def sustained(self, stream: Stream, seconds: float, rate: float, clock: Callable[[], float]) -> tuple[float, float]:
        """Send *rate* frames a second for so long; returns how many arrive, a second by the wall and by *clock*."""
        thread = threading.Thread(target=self._send, args=(stream, _FOREVER))
        with self._chosen(stream, int(1e9 / rate)), _nudging(thread):
            started = self._right()
            thread.start()
            until(lambda: self._right() > started, "a packet arrives")
            time.sleep(_SETTLED)
            before, began, clock_began = self._right(), time.perf_counter(), clock()
            time.sleep(seconds)
            until(lambda: self._right() > before and clock() > clock_began, "a packet arrives")
            arrived, ended, clock_ended = self._right() - before, time.perf_counter(), clock()
        return arrived / (ended - began), arrived / (clock_ended - clock_began)

    @contextlib.contextmanager
    def _chosen(self, stream: Stream, interval: int = 0) -> Iterator[None]:
        """With this stream; the first frames that arrive meanwhile are compared whole.

        *interval*: nanoseconds between two frames, 0 for none.
        """
        first = self._streams.index(stream) * FRAMES
        namespace, interface = stream.start
        with namespace:
            ifindex = socket.if_nametoindex(interface)
        head = HEAD if stream.anew else _head(stream.sent)
        sending = ifindex, first, len(stream.sent), interval, head, stream.count_at, stream.count_size, 0, 0
        self._maps["sending"].put(_FIRST, _SENDING.pack(*sending))
        frame = stream.arriving[0]
        place = first, len(stream.arriving), len(frame), stream.number_at, frame[-TAIL:], stream.mask
        namespace, interface = stream.end
        with namespace:
            kept = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            kept.bind((interface, int.from_bytes(frame[12:14], "big")))
        with kept:
            head = _head(stream.arriving)
            end = frame[12:14], head, 0
            self._maps["arriving"].put(_FIRST, _ARRIVING.pack(*place, _KEPT, stream.every, *end))
            yield
            _compare(kept, stream)
            self._maps["arriving"].put(_FIRST, _ARRIVING.pack(*place, 0, 1, *end))

    def _send(self, stream: Stream, count: int, program_name: str = "generate") -> float:
        """Returns the seconds of this core that it took, and that forwarding took."""
        program = self._object.programs[program_name]
        frame = stream.sent[0]
        options = _TestRun(sz=ctypes.sizeof(_TestRun), data_in=frame, data_size_in=len(frame), repeat=count)
        options.flags = _LIVE_FRAMES
        before = ksoftirqd(THEIRS)
        # In the network namespace from whose interface it is to redirect.
        with stream.start[0]:
            code = library().bpf_prog_test_run_opts(program.fd, ctypes.byref(options))
        if code == -errno.EINTR and count == _FOREVER:
            return 0.0
        if code:
            raise BenchError(f"cannot run the generator: {os.strerror(-code)}")
        # The kernel tells the time of one frame, less what is below a nanosecond.
        return (float(options.duration) + 0.5) * count * 1e-9 + ksoftirqd(THEIRS) - before

    def _right(self) -> int:
        """Frames that have arrived as they should, ever.  Raises :class:`BenchError` if some did otherwise."""
        tallies = _TALLY.iter_unpack(self._maps["tallies"].get(_FIRST) or b"")
        right, wrong = (sum(column) for column in zip(*tallies, strict=True))
        if wrong:
            raise BenchError(f"{wrong} packets came out otherwise than they went in")
        return int(right)


def _stride(size: int) -> int:
    """From one frame on the reel to the next."""
    return -(-size // _ALIGNED) * _ALIGNED


def _on_a_part(size: int) -> int:
    """Frames on a part of the reel, the last of which begins where even the longest would fit."""
    return (_PART - _FRAME) // _stride(size) + 1


def _alike(frames: Sequence[bytes], start: int) -> bool:
    """From that octet on."""
    return len({frame[start:] for frame in frames}) == 1


def _head(frames: Sequence[bytes]) -> int:
    """Octets of them in which they differ, as the kernel wants to know it."""
    return SHORT if _alike(frames, SHORT) else HEAD


def _compare(kept: socket.socket, stream: Stream) -> None:
    """Raises :class:`BenchError` unless frames have been kept that are right in every octet."""
    at, count = stream.number_at, 0
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = kept.recv(65536)
            if len(frame) == len(stream.arriving[0]):
                if stream.inspect is not None:
                    stream.inspect(frame)
                expected = stream.arriving[_NUMBER.unpack_from(frame, at)[0] if at else 0]
                count += _tight(frame, stream) == _tight(expected, stream)
    if count != _KEPT:
        raise BenchError("what comes out is not what went in")


def _tight(frame: bytes, stream: Stream) -> bytes:
    """A frame without what may be anything."""
    octets = bytearray(frame)
    for part in stream.loose:
        octets[part] = bytes(len(octets[part]))
    return bytes(octets)


@contextlib.contextmanager
def _nudging(thread: threading.Thread) -> Iterator[None]:
    """End *thread* at the end, which is in a system call that any signal interrupts."""
    old = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        yield
    finally:
        while thread.is_alive():
            assert thread.ident is not None
            signal.pthread_kill(thread.ident, signal.SIGUSR1)
            thread.join(0.02)
        signal.signal(signal.SIGUSR1, old)
