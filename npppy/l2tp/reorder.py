"""Data messages that came too early, kept until those before them have come or are given up."""

from __future__ import annotations

from .encap import Sequence

#: Seconds that a message may be kept.
WAIT = 0.25


class Reorder:
    """Of one call: at most *size* messages."""

    __slots__ = ("_size", "held")

    def __init__(self, size: int) -> None:
        self._size = size
        #: By Ns.
        self.held: dict[int, bytes] = {}

    def receive(self, sequence: Sequence, ns: int, frame: bytes) -> list[bytes]:
        """A message that is not late; returns those whose turn it is, which moves ``sequence.expected``."""
        self.held.setdefault(ns, frame)
        ready = self._run(sequence)
        if len(self.held) > self._size:
            ready += self._skip(sequence)
        return ready

    def release(self, sequence: Sequence) -> list[bytes]:
        """Give up what is missing: returns all that is kept, in order."""
        ready = []
        while self.held:
            ready += self._skip(sequence)
        return ready

    def _skip(self, sequence: Sequence) -> list[bytes]:
        """Give up what is missing before the first that is kept."""
        sequence.expected = min(self.held, key=lambda ns: (ns - sequence.expected) & 0xFFFF)
        return self._run(sequence)

    def _run(self, sequence: Sequence) -> list[bytes]:
        ready = []
        while (frame := self.held.pop(sequence.expected, None)) is not None:
            ready.append(frame)
            sequence.expected = (sequence.expected + 1) & 0xFFFF
        return ready
