"""Python's collector of cycles, kept from walking over sessions that are there to stay.

A full collection looks at each object there is: at 50,000 sessions it would hold the event loop for a quarter of a
second and more.  What belongs to a session holds no cycle once it has ended, so it goes without the collector; that
needs to look only at what is new.
"""

from __future__ import annotations

import gc

#: Sessions that come before they, too, are put out of the collector's sight.  It takes a millisecond or two.
BATCH = 500


class Garbage:
    """To be made when the daemon has read its configuration, and before there are sessions."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made = 0
        gc.collect()
        gc.freeze()

    def look(self, made: int) -> None:
        """*made*: the sessions that there have been so far."""
        if made - self._made >= BATCH:
            self._made = made
            # What is cyclic garbage by now must not stay for ever.
            gc.collect()
            gc.freeze()
