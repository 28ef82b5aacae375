"""Acknowledgments that no data has carried: one timer for all calls."""

from __future__ import annotations

from collections.abc import Mapping

from ..wheel import Timed, Wheel
from .connection import Leg

#: Seconds between looks, and acknowledgments sent at one: never a packet rate, whatever the number of calls.
INTERVAL = 0.5
ACKS = 256
#: A call that the kernel carries is looked at once in so many looks: what waits there is less than a window, and has
#: come less than a quarter of a second after what was acknowledged.
TURNS = 8


class Sweeper(Timed):
    """Acknowledges what has come last and was not acknowledged for an interval.

    That is the end of a burst only: in the middle of one, it is the packets that bring acknowledgments about.  At every
    look it goes through the calls that owe, and of those that the kernel carries through some.
    """

    __slots__ = ("_calls", "_owing", "_turn", "_wheel")

    def __init__(self, calls: Mapping[int, Leg], wheel: Wheel) -> None:
        super().__init__()
        self._calls = calls
        self._wheel = wheel
        # What each expected at the last look at it; -1: there has been none.
        self._owing: dict[Leg, int] = {}
        self._turn = 0

    def start(self, now: float) -> None:
        """There is a call."""
        if not self.due:
            self._wheel.arm(self, now + INTERVAL)

    def owes(self, call: Leg) -> None:
        """A call that the kernel does not carry has something to acknowledge."""
        self._owing.setdefault(call, -1)

    def forget(self, call: Leg) -> None:
        """The call has gone."""
        self._owing.pop(call, None)

    def expire(self, now: float) -> None:
        owing, turn = self._owing, self._turn
        self._turn = (turn + 1) % TURNS
        due = []
        for call in self._calls.values():
            if call.id % TURNS == turn and (keeper := call.window.keeper) is not None:
                expected, acked = keeper.look()
                if expected == acked:
                    owing.pop(call, None)
                elif owing.get(call) == expected:
                    due.append(call)
                else:
                    owing[call] = expected
        for call, seen in list(owing.items()):
            window = call.window
            if window.keeper is not None:
                continue
            if not window.owes:
                del owing[call]
            elif seen == window.expected:
                due.append(call)
            else:
                owing[call] = window.expected
        for call in due[:ACKS]:
            call.acknowledge(now)
        if self._calls:
            self._wheel.arm(self, now + INTERVAL)
