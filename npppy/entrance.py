"""The sockets that bring nothing but beginnings: they are read while admission is open."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Final

from .admission import Admission, Waiting
from .buffers import set_receive

#: Seconds that a beginning may wait: most hosts wait longer for an answer, and do not repeat themselves sooner.  One
#: that is not kept may cost its host seconds of silence, one that is older an answer that nobody waits for.
PATIENCE: Final = 4.0
#: Beginnings that may wait, at the least, at the most, and before it is known how many are taken in a second.
LEAST: Final = 256
MOST: Final = 16384
FIRST: Final = 8192
#: Octets that one of them takes of what a buffer is said to have, which is half of what it may have.
SIZE: Final = 448

#: Reads up to so many beginnings from a socket; returns how many there were.
Read = Callable[[int], int]


class Entrance:
    """A gate for sockets, which share its turns evenly; the event loop has one descriptor for all of them.

    What comes to them while it is shut waits in the kernel, as far as there is room.  Behind it is *queue*, if there is
    one.  It must be made in the event loop.
    """

    def __init__(self, admission: Admission, queue: Waiting | None = None) -> None:
        self._admission = admission
        self._readers: dict[int, Read] = {}
        self._epoll = select.epoll()
        self._loop = asyncio.get_running_loop()
        self.open()
        admission.join(self, queue)

    def add(self, fd: int, read: Read) -> None:
        """A socket; *read* is told how many beginnings may be taken from it."""
        self._readers[fd] = read
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """A socket is of no interest any more.  To be called before it is closed."""
        del self._readers[fd]
        self._epoll.unregister(fd)

    def open(self) -> None:
        self._loop.add_reader(self._epoll.fileno(), self._readable)

    def shut(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())

    def close(self) -> None:
        """Forget all sockets; they are the caller's to close."""
        self._admission.leave(self)
        self.shut()
        self._epoll.close()

    def _readable(self) -> None:
        share = self._admission.share
        # The kernel goes on with those that were not among the first.
        events = self._epoll.poll(0, share)
        taken = 0
        for fd, _ in events:
            # Reading one may have been the end of another.
            read = self._readers.get(fd)
            if read is not None:
                taken += read(max(share // len(events), 1))
        self._admission.took(taken)


class Room:
    """How many beginnings may wait in the buffer of a socket: as many as will have their turn in time."""

    __slots__ = ("_admission", "_busy", "_closures", "_count", "_since", "_sock", "_taken")

    def __init__(self, sock: socket.socket, admission: Admission, now: float) -> None:
        self._sock = sock
        self._admission = admission
        self._count = 0
        # The closures that are known of.
        self._closures = admission.closures
        # Beginnings since a time, and whether some had to wait meanwhile.
        self._taken, self._since, self._busy = 0, now, False
        self._set(FIRST)

    def took(self, count: int, now: float) -> None:
        """So many have been read."""
        self._busy |= self._closures != self._admission.closures
        self._closures = self._admission.closures
        self._taken += count
        if now >= self._since + 1.0:
            # A longer time had idle parts, which say nothing.
            if self._busy and now < self._since + 1.5:
                rate = self._taken / (now - self._since)
                self._set(max(LEAST, self._count // 2, min(int(rate * PATIENCE), MOST)))
            self._taken, self._since, self._busy = 0, now, False

    def _set(self, count: int) -> None:
        if count == self._count:
            return
        self._count = count
        set_receive(self._sock, count * SIZE)
