"""A tunnel block as peers meet it: its options, its limits and what they count; and where peers are."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, NamedTuple

from ..config.model import PptpOptions, Tunnel

if TYPE_CHECKING:
    from .connection import Connection


class Endpoint(NamedTuple):
    """A peer, and where it speaks to; addresses have 4 octets."""

    local: bytes
    local_port: int
    peer: bytes
    peer_port: int

    @property
    def host(self) -> str:
        """The peer's address."""
        return str(IPv4Address(self.peer))

    def __str__(self) -> str:
        return _text(self)


@lru_cache(maxsize=1024)
def _text(endpoint: Endpoint) -> str:
    return f"{endpoint.host}:{endpoint.peer_port}"


class Service:
    """A ``tunnel`` block.  A reload changes it under its connections."""

    __slots__ = ("connections", "drops", "half_open", "options", "peers", "sessions", "tunnel")

    def __init__(self, tunnel: Tunnel, options: PptpOptions) -> None:
        #: Connections that have had no call yet, the oldest first.
        self.half_open: dict[Connection, None] = {}
        #: Connections by the peer's address, and in all.
        self.peers: dict[bytes, int] = {}
        self.connections = 0
        self.sessions = 0
        #: Messages and packets dropped and requests refused, by reason.
        self.drops: Counter[str] = Counter()
        self.configure(tunnel, options)

    def configure(self, tunnel: Tunnel, options: PptpOptions) -> None:
        """Take over new options."""
        self.tunnel = tunnel
        self.options = options

    def refuses(self, peer: bytes) -> bool:
        """Has a host as many connections as it may have?"""
        limit = self.options.peer_limit
        return bool(limit) and self.peers.get(peer, 0) >= limit

    @property
    def is_full(self) -> bool:
        """Are as many connections half open as may be?"""
        limit = self.options.half_open_limit
        return bool(limit) and len(self.half_open) >= limit

    def begun(self, connection: Connection) -> None:
        """There is a connection."""
        peer = connection.endpoint.peer
        self.half_open[connection] = None
        self.peers[peer] = self.peers.get(peer, 0) + 1
        self.connections += 1

    def ended(self, connection: Connection) -> None:
        """It is not there any more."""
        peer = connection.endpoint.peer
        self.half_open.pop(connection, None)
        self.connections -= 1
        left = self.peers[peer] - 1
        if left:
            self.peers[peer] = left
        else:
            del self.peers[peer]
