"""Captures: all frames of one session, control and data, both ways, as they are on the access wire.

What the carrier shows of L2TP has outer headers like those on the wire, with what it cannot know made up.

They come from two places.  The programs of back end ``ebpf`` copy what they see to a ring buffer (block MIRROR), and
the carrier shows what passes Python.  A frame of the peer that the programs leave to Python is in both; it is known by
its octets, and the copy, whose time is that of arrival, is the one that stays.  Frames that Python sends pass no
program, and those that the programs send do not pass Python.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..ppp.link import IN
from .base import Backend, Mirror
from .ebpf.libbpf import BpfError
from .user import UserFlow

if TYPE_CHECKING:
    from ..ppp.engine import Engine
    from ..ppp.session import Session

log = logging.getLogger("npppy.pipex")

#: Captures at one time, and octets of frames that wait for the client of each.
MAX_CAPTURES: Final = 8
QUEUE: Final = 4 << 20
#: What a frame that waits costs beside its octets.
_OVERHEAD: Final = 200

#: Copies of frames of the peer, a session, that Python may still be shown too; and nanoseconds after which not.
_RECENT: Final = 4096
_PATIENCE: Final = 5 * 10**9
#: Octets of a frame that it is known by; a copy has at least so many, if the frame has.
_KNOWN_BY: Final = 1500

_TAGS: Final = (b"\x81\x00", b"\x88\xa8")
#: Octets of IP and UDP, by EtherType.
_OUTER: Final = {b"\x08\x00": 20 + 8, b"\x86\xdd": 40 + 8}


class CaptureError(Exception):
    """A session cannot be captured; the message says why."""


class Frame(NamedTuple):
    """A frame of a session."""

    #: On the monotonic clock.
    ns: int
    #: :data:`~npppy.ppp.link.IN` or :data:`~npppy.ppp.link.OUT`.
    way: int
    #: Octets on the wire, of which *data* may have fewer.
    length: int
    data: bytes


class Capture:
    """What one client is shown of a session."""

    def __init__(self, captures: Captures, watch: _Watch, snaplen: int, count: int | None) -> None:
        """For :meth:`Captures.open`."""
        self._captures = captures
        self._watch = watch
        self._snaplen = snaplen
        self._left = count
        self._frames: deque[Frame] = deque()
        self._octets = 0
        self._lost = 0
        self._copies_lost = captures.copies_lost()
        self._wake = asyncio.Event()
        #: Why nothing more will come; "" while it may.
        self.ended = ""

    def put(self, frame: Frame) -> None:
        """Keep a frame for the client, or count it lost where too many wait."""
        if self.ended:
            return
        if len(frame.data) > self._snaplen:
            frame = frame._replace(data=frame.data[: self._snaplen])
        size = len(frame.data) + _OVERHEAD
        self._wake.set()
        # Once one is lost all are, until the queue is empty: so the gap is told where it is.
        if self._lost or self._octets + size > QUEUE:
            self._lost += 1
            return
        # Copies may come a moment late, as processors and the carrier race.
        at = len(self._frames)
        while at and self._frames[at - 1].ns > frame.ns:
            at -= 1
        self._frames.insert(at, frame)
        self._octets += size
        if self._left is not None:
            self._left -= 1
            if not self._left:
                self.end("as many frames as were asked for")

    def end(self, reason: str) -> None:
        """Nothing more comes."""
        self.ended = reason
        self._wake.set()

    async def wait(self) -> None:
        """Until there is something to take, or something was lost, or it has ended."""
        await self._wake.wait()
        self._wake.clear()

    def take(self, count: int) -> list[Frame]:
        """At most *count* frames, the oldest first."""
        frames = [self._frames.popleft() for _ in range(min(count, len(self._frames)))]
        self._octets -= sum(len(frame.data) + _OVERHEAD for frame in frames)
        return frames

    def take_lost(self) -> tuple[int, int]:
        """How many frames were lost since the last time: because the client is slow; and, of all sessions that are
        captured, by the kernel, because we are."""
        lost, self._lost = self._lost, 0
        total = self._captures.copies_lost()
        copies, self._copies_lost = total - self._copies_lost, total
        return lost, copies

    def close(self) -> None:
        """Capture no more.  To be called once."""
        self._captures.close(self, self._watch)


class _Watch:
    """A session that is captured; it looks on at its call (:class:`npppy.ppp.link.Tap`)."""

    def __init__(self, captures: Captures, session: Session) -> None:
        self.session = session
        self.captures: list[Capture] = []
        self.is_gone = False
        self._all = captures
        # Copies of frames of the peer that Python has not been shown, by what they are known by: how many alike, and
        # when the last was made.
        self._recent: OrderedDict[int, tuple[int, int]] = OrderedDict()

    # What the carrier calls.

    def frame(self, way: int, frame: bytes) -> None:
        now = time.monotonic_ns()
        # First what was there before.
        self._all.read(now)
        if way == IN and self._was_copied(frame, now):
            return
        tags = self._all.tags(self.session)
        if tags:
            frame = frame[:12] + tags + frame[12:]
        self.put(Frame(now, way, len(frame), frame))

    def gone(self) -> None:
        self.is_gone = True
        for capture in self.captures:
            capture.end("the session has ended")

    # What the kernel has copied.

    def copied(self, frame: Frame) -> None:
        if frame.way == IN:
            recent, key = self._recent, _known_by(frame.data)
            alike, last = recent.pop(key, (0, 0))
            recent[key] = (alike + 1 if last > frame.ns - _PATIENCE else 1), frame.ns
            if len(recent) > _RECENT:
                recent.popitem(last=False)
        self.put(frame)

    def _was_copied(self, frame: bytes, now: int) -> bool:
        """Whether the kernel has copied a frame that Python is shown now."""
        if not self._recent:
            return False
        key = _known_by(frame)
        alike, last = self._recent.get(key, (0, 0))
        if not alike or last <= now - _PATIENCE:
            return False
        if alike > 1:
            self._recent[key] = alike - 1, last
        else:
            del self._recent[key]
        return True

    def put(self, frame: Frame) -> None:
        for capture in self.captures:
            capture.put(frame)


class Captures:
    """All captures.  It reads the ring buffer on the event loop, while there is one."""

    def __init__(self, engine: Engine, backend: Callable[[], Backend]) -> None:
        """*backend* tells what carries the data at this moment."""
        self._engine = engine
        self._backend = backend
        self._watches: dict[int, _Watch] = {}
        # What the mirror is of, and the mirror itself, while anything is captured.
        self._mirrored: Backend | None = None
        self._mirror: Mirror | None = None
        # Of mirrors that are closed.
        self._lost = 0

    def __len__(self) -> int:
        return sum(len(watch.captures) for watch in self._watches.values())

    def open(self, ppp_id: int, *, snaplen: int, count: int | None) -> Capture:
        """Capture a session from now on, up or not yet: *count* frames, or until :meth:`Capture.close`.

        Raises :class:`CaptureError`.
        """
        session = self._engine.sessions.get(ppp_id)
        if session is None:
            raise CaptureError(f"there is no session with ppp id {ppp_id}")
        if len(self) >= MAX_CAPTURES:
            raise CaptureError(f"there are {MAX_CAPTURES} captures already")
        self._open_mirror()
        # What was copied for an earlier capture of it, and nobody has taken.
        self.read(time.monotonic_ns())
        watch = self._watches.get(ppp_id)
        if watch is None:
            watch = self._watches[ppp_id] = _Watch(self, session)
            self._engine.wish(ppp_id, mirror=True)
            if isinstance(session.flow, UserFlow):
                session.flow.mirror(True)
            session.call.tap(watch)
        capture = Capture(self, watch, snaplen, count)
        watch.captures.append(capture)
        return capture

    def close(self, capture: Capture, watch: _Watch) -> None:
        """For :meth:`Capture.close`."""
        watch.captures.remove(capture)
        if watch.captures:
            return
        session = watch.session
        del self._watches[session.id]
        self._engine.wish(session.id, mirror=False)
        if not watch.is_gone:
            session.call.tap(None)
            if isinstance(session.flow, UserFlow):
                session.flow.mirror(False)
        if not self._watches:
            self._close_mirror()

    def copies_lost(self) -> int:
        """Copies that the kernel had no room for, of all sessions that were captured."""
        return self._lost + (self._mirror.lost() if self._mirror is not None else 0)

    def tags(self, session: Session) -> bytes:
        """The VLAN tags that frames of a session have on the wire and the carrier does not show."""
        return self._backend().tags(session.call.link.encap)

    def read(self, until: int) -> None:
        """Take what was copied until then, in nanoseconds on the monotonic clock."""
        backend = self._backend()
        if backend is not self._mirrored:
            # The data path was made anew, and those sessions that were up have ended.
            try:
                self._open_mirror()
            except BpfError as error:
                self._mirrored = backend
                log.error("pipex: captures lack what the kernel carries: %s", error)
        if self._mirror is not None:
            self._mirror.read(until, self._copied)

    def _copied(self, ppp_id: int, way: int, ns: int, length: int, data: bytes) -> None:
        watch = self._watches.get(ppp_id)
        if watch is not None:
            watch.copied(Frame(ns, way, length, data))

    def _open_mirror(self) -> None:
        backend = self._backend()
        if backend is self._mirrored:
            return
        self._close_mirror()
        self._mirror = backend.mirror()
        self._mirrored = backend
        if self._mirror is not None:
            asyncio.get_running_loop().add_reader(self._mirror.fileno(), self._readable)

    def _close_mirror(self) -> None:
        if self._mirror is not None:
            asyncio.get_running_loop().remove_reader(self._mirror.fileno())
            self._lost += self._mirror.lost()
            self._mirror.close()
        self._mirror = self._mirrored = None

    def _readable(self) -> None:
        self.read(time.monotonic_ns())


def _known_by(frame: bytes) -> int:
    """A frame, but for what the carrier is not shown of it: VLAN tags; or all outside of L2TP."""
    at = 12
    while frame[at : at + 2] in _TAGS:
        at += 4
    end = at + _KNOWN_BY
    if outer := _OUTER.get(frame[at : at + 2]):
        at += 2 + outer
        # What lies behind is padding.
        end = min(end, at - 8 + int.from_bytes(frame[at - 4 : at - 2], "big"))
    return hash(frame[at:end])
