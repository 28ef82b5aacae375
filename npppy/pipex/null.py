"""Back end ``null``: counts what comes and drops it, so that the control plane can be tested by itself."""

from __future__ import annotations

from .base import Counters, FlowSpec, PipexState, Police
from .lookup import Table


class NullFlow:
    __slots__ = ("_active", "_bytes", "_packets", "_spec", "_table")

    def __init__(self, spec: FlowSpec, table: Table[NullFlow], now: float) -> None:
        self._spec = spec
        self._table: Table[NullFlow] | None = table
        self._active = now
        self._bytes = 0
        self._packets = 0

    def input(self, packet: bytes, now: float) -> None:
        self._bytes += len(packet)
        self._packets += 1
        self._active = now

    input6 = input

    def counters(self) -> Counters:
        return Counters(in_bytes=self._bytes, in_packets=self._packets)

    by_python = counters

    def police(self, up: Police | None, down: Police | None) -> None:
        """It limits nothing."""

    def last_active(self) -> float:
        return self._active

    def heard(self) -> float:
        return 0.0

    def close(self) -> Counters:
        if self._table is not None:
            self._table.remove(self._spec.address, self._spec.networks4(), self._spec.networks6)
            self._table = None
        return self.counters()

    def late(self) -> Counters:
        return Counters()


class NullBackend:
    """Every packet counts as activity; nothing is ever sent."""

    def __init__(self) -> None:
        self._table: Table[NullFlow] = Table()

    def __len__(self) -> int:
        """How many flows there are."""
        return len(self._table.hosts)

    def why_not(self, interface: str, encap: object) -> str:
        return "back end null"

    def state(self) -> PipexState:
        return PipexState(backend="null", reason="what peers send is counted and dropped")

    def mirror(self) -> None:
        return None

    def tags(self, encap: object) -> bytes:
        return b""

    def add(self, spec: FlowSpec, now: float) -> NullFlow:
        flow = NullFlow(spec, self._table, now)
        self._table.add(spec.address, spec.networks4(), flow, spec.networks6)
        return flow
