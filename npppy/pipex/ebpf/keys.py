"""The keys of MPPE while the kernel moves them: of a session an element of the map ``mppe`` for each way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...ppp.mppe import Mppe, Place, Receiver, Sender
from .layout import DOWN, MPPE_KEYS, U32, UP
from .libbpf import EXIST, LOCKED, Map

_COUNTS: Final = 0x1000
#: Keys that are left to programs that still run as they are taken back: few processors can be in there at once.
SKIPPED: Final = 4
_PLACES: Final = list(MPPE_KEYS.offsets)
_NUMBER, _LATE, _END, _KEY, _LATE_KEY = map(_PLACES.index, ("count", "late", "end", "key", "late_key"))


class Keys:
    """Those of a session; what comes in may also be decrypted by Python: see :class:`npppy.ppp.mppe.Shared`."""

    __slots__ = ("_generation", "_item", "_mppe", "_slot")

    def __init__(self, item: Map, slot: int, generation: int, mppe: Mppe) -> None:
        self._item = item
        self._slot = slot
        self._generation = generation
        self._mppe = mppe

    def put(self) -> None:
        """Write them, before anything leads to the session.  Raises :class:`BpfError`."""
        send, receive = self._mppe
        self._item.put(self._at(DOWN), self._record(send, Place(send.key, send.count)))
        self._item.put(self._at(UP), self._record(receive, receive.place))

    def lend(self, inject: Callable[[bytes], None]) -> None:
        """From now on they are the kernel's to move, and *inject* has it send a frame."""
        self._mppe.send.inject = inject
        self._mppe.receive.shared = self

    def take_back(self) -> None:
        """Have them as the kernel left them; for when nothing leads to the session any more."""
        send, receive = self._mppe
        send.key, send.count = self._read(DOWN, send)[:2]
        # One that the kernel has put off may yet take the next key, and no key is for two packets.  To the peer it is
        # as if packets were lost.
        for _ in range(SKIPPED):
            send.skip()
        receive.place = self.read()
        send.inject = receive.shared = None
        self.remove()

    def remove(self) -> None:
        """Remove the elements, as far as there are any."""
        for way in (UP, DOWN):
            self._item.delete(self._at(way))

    def read(self) -> Place:
        return self._read(UP, self._mppe.receive)

    def write(self, place: Place, before: Place) -> None:
        number = self.read().number
        # The kernel may have gone further meanwhile.  If not, what seems to be a step back is a long way forward.
        if number == before.number or (place.number - number) % _COUNTS < _COUNTS // 2:
            self._item.put(self._at(UP), self._record(self._mppe.receive, place), EXIST | LOCKED)

    def _at(self, way: int) -> bytes:
        return U32.pack(2 * self._slot + way)

    def _read(self, way: int, whose: Sender | Receiver) -> Place:
        record = self._item.get(self._at(way), LOCKED)
        assert record is not None, "nobody but us removes elements"
        found = MPPE_KEYS.unpack(record)
        size = whose.strength.size
        return Place(found[_KEY][:size], found[_NUMBER], found[_LATE_KEY][:size], found[_LATE], found[_END])

    def _record(self, whose: Sender | Receiver, place: Place) -> bytes:
        key, number, late_key, late, end = place
        strength = whose.strength
        salt = len(strength.salt)
        return MPPE_KEYS.pack(
            *(0, self._generation, number, late, end, strength.size, salt, whose.start, key, late_key)
        )
