"""From a destination to a flow: hosts by a hash, networks behind peers by longest prefix."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Generic, TypeVar

from .base import ConflictError, Counters, Network4, Network6

_F = TypeVar("_F")


def mask(prefixlen: int, bits: int = 32) -> int:
    """The netmask of a prefix length, 0 to *bits*, which is what an address has."""
    return (1 << bits) - (1 << bits - prefixlen)


class Networks(Generic[_F]):
    """Flows by network.  A look-up costs one hash for each prefix length that is present."""

    __slots__ = ("_bits", "_by_length", "_order")

    def __init__(self, bits: int) -> None:
        """*bits*: what an address has."""
        self._bits = bits
        self._by_length: dict[int, dict[int, _F]] = {}
        # (netmask, networks), the longest prefix first.
        self._order: list[tuple[int, dict[int, _F]]] = []

    def add(self, address: int, prefixlen: int, flow: _F) -> None:
        """Raises :class:`ConflictError` if the very same network has a flow."""
        network = address & mask(prefixlen, self._bits)
        networks = self._by_length.get(prefixlen)
        if networks is None:
            networks = self._by_length[prefixlen] = {}
            self._sort()
        elif network in networks:
            name = IPv4Address(network) if self._bits == 32 else IPv6Address(network)
            raise ConflictError(f"network {name}/{prefixlen} is taken")
        networks[network] = flow

    def remove(self, address: int, prefixlen: int) -> None:
        networks = self._by_length[prefixlen]
        del networks[address & mask(prefixlen, self._bits)]
        if not networks:
            del self._by_length[prefixlen]
            self._sort()

    def find(self, address: int) -> _F | None:
        """The flow with the longest network that *address* is in."""
        for netmask, networks in self._order:
            flow = networks.get(address & netmask)
            if flow is not None:
                return flow
        return None

    def _sort(self) -> None:
        lengths = sorted(self._by_length, reverse=True)
        self._order = [(mask(length, self._bits), self._by_length[length]) for length in lengths]


class Table(Generic[_F]):
    """Flows by address."""

    __slots__ = ("_networks", "_networks6", "closed", "hosts", "network", "network6")

    def __init__(self) -> None:
        #: What flows had carried when they were closed.
        self.closed = Counters()
        #: By IPv4 address, networks of one address among them; the packet path looks here first.
        self.hosts: dict[int, _F] = {}
        self._networks: Networks[_F] = Networks(32)
        self._networks6: Networks[_F] = Networks(128)
        #: The flow with the longest network that an address is in.
        self.network = self._networks.find
        self.network6 = self._networks6.find

    def add(
        self, address: int, networks: Iterable[Network4], flow: _F, networks6: Iterable[Network6] = ()
    ) -> None:
        """*address* is 0 where there is none of IPv4; *networks* are those behind it.

        Raises :class:`ConflictError` if the address, or the very same network, has a flow; then nothing is added.
        """
        if address in self.hosts:
            raise ConflictError(f"address {IPv4Address(address)} is taken")
        if address:
            self.hosts[address] = flow
        done: list[Network4] = []
        done6: list[Network6] = []
        try:
            for network in networks:
                self._add(*network, flow)
                done.append(network)
            for network6 in networks6:
                self._networks6.add(int.from_bytes(network6[0], "big"), network6[1], flow)
                done6.append(network6)
        except ConflictError:
            self.remove(address, done, done6)
            raise

    def remove(self, address: int, networks: Iterable[Network4], networks6: Iterable[Network6] = ()) -> None:
        """Forget what :meth:`add` put there."""
        if address:
            del self.hosts[address]
        for network, length in networks:
            if length == 32:
                del self.hosts[network]
            else:
                self._networks.remove(network, length)
        for octets, length in networks6:
            self._networks6.remove(int.from_bytes(octets, "big"), length)

    def leads_to(self, flow: _F, address: int) -> bool:
        """Whether packets for an IPv4 address are for that flow."""
        return (self.hosts.get(address) or self.network(address)) is flow

    def _add(self, network: int, length: int, flow: _F) -> None:
        if length < 32:
            self._networks.add(network, length, flow)
        elif network in self.hosts:
            raise ConflictError(f"network {IPv4Address(network)}/32 is taken")
        else:
            self.hosts[network] = flow
