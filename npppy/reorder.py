"""Packets of a call that came too early, kept until those before them have come or are given up."""

from __future__ import annotations

from typing import Protocol

#: Seconds that a packet may be kept.
WAIT = 0.25


class Expecting(Protocol):
    #: The number of the next packet.
    expected: int


class Reorder:
    """Of one call: at most *size* packets, whose numbers have as many bits as *mask*."""

    __slots__ = ("_mask", "_size", "held")

    def __init__(self, size: int, mask: int) -> None:
        self._size = size
        self._mask = mask
        #: By number.
        self.held: dict[int, bytes] = {}

    def receive(self, sequence: Expecting, number: int, frame: bytes) -> list[bytes]:
        """A packet that is not late; returns those whose turn it is, which moves ``sequence.expected``."""
        self.held.setdefault(number, frame)
        ready = self._run(sequence)
        if len(self.held) > self._size:
            ready += self._skip(sequence)
        return ready

    def release(self, sequence: Expecting) -> list[bytes]:
        """Give up what is missing: returns all that is kept, in order."""
        ready = []
        while self.held:
            ready += self._skip(sequence)
        return ready

    def _skip(self, sequence: Expecting) -> list[bytes]:
        """Give up what is missing before the first that is kept."""
        sequence.expected = min(self.held, key=lambda number: (number - sequence.expected) & self._mask)
        return self._run(sequence)

    def _run(self, sequence: Expecting) -> list[bytes]:
        ready = []
        while (frame := self.held.pop(sequence.expected, None)) is not None:
            ready.append(frame)
            sequence.expected = (sequence.expected + 1) & self._mask
        return ready
