"""What the sessions of a killed npppyd had counted in the end, as far as its maps are pinned."""

from __future__ import annotations

import errno
import logging
import mmap
import operator
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Final, NamedTuple

from ..base import Counters, Leftovers
from .layout import SESSION, STATS, Record
from .libbpf import MMAPABLE, BpfError, wait_for_programs
from .migrate import OLDER
from .pins import Edition

log = logging.getLogger("npppy.pipex")

_NOW: Final = {"slots": SESSION, "stats": STATS}
_LOST: Final = "pipex: what the sessions of an earlier npppyd have counted is lost: %s"


class _Array(NamedTuple):
    """The values of a map, one behind the other."""

    record: Record
    entries: int
    octets: mmap.mmap | bytes

    def members(self, slot: int) -> tuple[int, ...]:
        return self.record.unpack_from(self.octets, slot * self.record.size)


def read_counters(editions: Sequence[Edition], leftovers: Leftovers) -> None:
    """Read what *editions*, the oldest first, tell, after their programs have been detached.  What cannot be is logged.

    Had the newest been about to take an older one over, the programs of both have counted.
    """
    newest = editions[-1]
    if newest.version not in OLDER:
        log.warning(_LOST, f"the layout of {newest.path} is not known")
        return
    try:
        # Until then one may count yet.
        wait_for_programs()
        with ExitStack() as stack:
            slots = _open(newest, "slots", stack)
            stats = [
                _open(edition, "stats", stack)
                for edition in editions
                # Somebody may have been about to remove an older one, and had moved what is there.
                if edition.version in OLDER and (edition is newest or (edition.path / "stats").exists())
            ]
            _read(slots, stats, leftovers)
    except BpfError as error:
        log.warning(_LOST, error)


def _open(edition: Edition, name: str, stack: ExitStack) -> _Array:
    record = (_NOW | OLDER[edition.version])[name]
    item = stack.enter_context(closing(edition.map(name)))
    if item.value_size != record.size:
        raise BpfError(f"read {item}", errno.EINVAL, f"its values have {item.value_size} octets, not {record.size}")
    if item.flags & MMAPABLE:
        return _Array(record, item.max_entries, stack.enter_context(closing(item.mapped())))
    return _Array(record, item.max_entries, b"".join(value for _, value in item.items()))


def _read(slots: _Array, stats: Sequence[_Array], leftovers: Leftovers) -> None:
    known = list(slots.record.offsets)
    described = operator.itemgetter(*map(known.index, ("generation", "kind", "ppp_id")))
    # When the sessions in *closed* were last active: one may have been in several slots.
    last: dict[int, int] = {}
    for slot in range(slots.entries):
        generation, kind, ppp_id = described(slots.members(slot))
        if not kind:
            # Nobody ever had it.
            continue
        counters, active = _counted(stats, slot)
        if generation:
            leftovers.open[ppp_id] = counters
        elif active >= last.get(ppp_id, 0):
            leftovers.closed[ppp_id], last[ppp_id] = counters, active
    for ppp_id in leftovers.open:
        leftovers.closed.pop(ppp_id, None)


def _counted(stats: Sequence[_Array], slot: int) -> tuple[Counters, int]:
    """And when it was last active, in nanoseconds."""
    counters, active = Counters(), 0
    for array in stats:
        if slot < array.entries:
            found = dict(zip(array.record.offsets, array.members(slot), strict=True))
            counters = counters.plus(Counters(*(found[name] for name in Counters._fields)))
            active = max(active, found["active_ns"])
    return counters, active
