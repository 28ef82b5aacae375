"""A queue of numbers, at a few octets each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

#: Places before the head that are kept before they are cut off.
_SLACK = 4096


class Fifo:
    """Who came first goes first."""

    __slots__ = ("_head", "_items")

    def __init__(self, typecode: str, items: Iterable[int] = ()) -> None:
        """*typecode*: of :class:`array.array`; what a number may be."""
        self._items = array(typecode, items)
        # What stands before has gone.
        self._head = 0

    def append(self, number: int) -> None:
        self._items.append(number)

    def pop(self) -> int:
        """The first one, which goes; there is one."""
        number = self._items[self._head]
        self._head += 1
        if self._head >= _SLACK and self._head * 2 >= len(self._items):
            del self._items[: self._head]
            self._head = 0
        return number

    @property
    def first(self) -> int:
        """It stays; there is one."""
        return self._items[self._head]

    def __len__(self) -> int:
        return len(self._items) - self._head

    def __iter__(self) -> Iterator[int]:
        return iter(self._items[self._head :])
