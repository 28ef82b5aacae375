"""Access ports: where subscribers are."""

from __future__ import annotations

from typing import NamedTuple


class Port(NamedTuple):
    """An interface and the VLAN tags on it: what a carrier on Ethernet answers on."""

    interface: str
    #: VLAN identifiers 1 to 4094, or None where the frame has no such tag.
    outer: int | None = None
    inner: int | None = None

    def __str__(self) -> str:
        return ".".join([self.interface, *(str(tag) for tag in (self.outer, self.inner) if tag is not None)])
