"""From a destination to a flow: hosts by a hash, networks behind peers by longest prefix."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Generic, TypeVar

from .base import ConflictError

_F = TypeVar("_F")


def mask(prefixlen: int) -> int:
    """The netmask of a prefix length, 0 to 32."""
    return 0xFFFFFFFF << 32 - prefixlen & 0xFFFFFFFF


class Table(Generic[_F]):
    """Flows by address.  A look-up costs one hash for a host, and one more for each prefix length that is present."""

    __slots__ = ("_networks", "_order", "hosts")

    def __init__(self) -> None:
        #: By address; the packet path looks here first.
        self.hosts: dict[int, _F] = {}
        self._networks: dict[int, dict[int, _F]] = {}
        # (netmask, networks), the longest prefix first.
        self._order: list[tuple[int, dict[int, _F]]] = []

    def add(self, address: int, prefixlen: int, flow: _F) -> None:
        """Raises :class:`ConflictError` if the address, or the very same network, has a flow."""
        if address in self.hosts:
            raise ConflictError(f"address {IPv4Address(address)} is taken")
        if prefixlen < 32:
            network = address & mask(prefixlen)
            networks = self._networks.get(prefixlen, {})
            if network in networks:
                raise ConflictError(f"network {IPv4Address(network)}/{prefixlen} is taken")
            networks[network] = flow
            self._networks[prefixlen] = networks
            self._sort()
        self.hosts[address] = flow

    def remove(self, address: int, prefixlen: int) -> None:
        """Forget what :meth:`add` put there."""
        del self.hosts[address]
        if prefixlen < 32:
            networks = self._networks[prefixlen]
            del networks[address & mask(prefixlen)]
            if not networks:
                del self._networks[prefixlen]
                self._sort()

    def network(self, address: int) -> _F | None:
        """The flow with the longest network that *address* is in."""
        for netmask, networks in self._order:
            flow = networks.get(address & netmask)
            if flow is not None:
                return flow
        return None

    def _sort(self) -> None:
        self._order = [(mask(length), self._networks[length]) for length in sorted(self._networks, reverse=True)]
