"""Copies of frames that the block MIRROR makes."""

from __future__ import annotations

import os
from collections.abc import Callable

from .layout import COUNT_RECORD, COUNTERS, EVENT, U32
from .libbpf import Map, Ring
from .maps import PipexMaps

_LOST = U32.pack(COUNTERS.index("MIRROR_LOST"))


class EbpfMirror:
    """A :class:`npppy.pipex.base.Mirror` over the map ``events``."""

    def __init__(self, maps: PipexMaps) -> None:
        """Raises :class:`.libbpf.BpfError`."""
        # Of its own, since the maps may be closed before it is.
        self._counts = Map(os.dup(maps.counts.fd), "counts")
        self._ring = Ring(maps.events)
        self._lost_before = self._total()

    def fileno(self) -> int:
        return self._ring.fileno()

    def read(self, until: int, take: Callable[[int, int, int, int, bytes], object]) -> None:
        def record(data: bytes) -> bool:
            _, ppp_id, _, way, length, ns = EVENT.unpack_from(data)
            take(ppp_id, way, ns, length, data[EVENT.size :][:length])
            return bool(ns >= until)

        self._ring.consume(record)

    def lost(self) -> int:
        return self._total() - self._lost_before

    def close(self) -> None:
        self._ring.close()
        self._counts.close()

    def _total(self) -> int:
        """Over all processors."""
        return sum(packets for packets, _ in COUNT_RECORD.iter_unpack(self._counts.get(_LOST) or b""))
