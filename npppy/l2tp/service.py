"""A tunnel block as peers meet it: its options, its limits and what they count; and where peers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from ..config.model import L2tpOptions, Tunnel
from ..pipex.icmp import RateLimit


class Endpoint(NamedTuple):
    """A peer, and where it speaks to; addresses have 4 octets or 16."""

    local: bytes
    local_port: int
    peer: bytes
    peer_port: int
    #: Of the security association that it came by (SO_MARK); 0: none.
    mark: int = 0
    #: The interface of a link-local address; 0: none.
    scope: int = 0

    @property
    def host(self) -> str:
        """The peer's address."""
        return str(ip_address(self.peer))

    def __str__(self) -> str:
        return _text(self)


@lru_cache(maxsize=1024)
def _text(endpoint: Endpoint) -> str:
    # Kept, since all calls of a tunnel have it.
    host, port = endpoint.host, endpoint.peer_port
    return f"{host}:{port}" if len(endpoint.peer) == 4 else f"[{host}]:{port}"


#: Sends a datagram to a peer, now or never; neither raises nor calls back.
Transmit = Callable[[Endpoint, bytes], None]


class Service:
    """A ``tunnel`` block.  A reload changes it under its tunnels."""

    __slots__ = ("_sccrq", "drops", "dump", "half_open", "options", "pending", "sessions", "tunnel", "tunnels")

    def __init__(self, tunnel: Tunnel, options: L2tpOptions) -> None:
        #: Tunnels that are not established yet, in all and by address.
        self.half_open = 0
        self.pending: dict[bytes, int] = {}
        self.tunnels = 0
        self.sessions = 0
        #: Messages dropped and requests refused, by reason.
        self.drops: Counter[str] = Counter()
        self._sccrq: RateLimit | None = None
        self.configure(tunnel, options)

    def configure(self, tunnel: Tunnel, options: L2tpOptions) -> None:
        """Take over new options."""
        self.tunnel = tunnel
        self.options = options
        #: Whether any pktdump option is set.
        self.dump = (
            options.ctrl_in_pktdump or options.ctrl_out_pktdump or options.data_in_pktdump or options.data_out_pktdump
        )
        self._sccrq = RateLimit(options.sccrq_limit, options.sccrq_limit) if options.sccrq_limit else None

    def secret_for(self, endpoint: Endpoint) -> bytes:
        """The secret that we share with a peer; empty: none."""
        if not self.options.secrets:
            return b""
        return (self.options.secret_for(endpoint.host) or "").encode()

    @property
    def is_full(self) -> bool:
        """Are as many tunnels half open as may be?"""
        return self.half_open >= self.options.half_open_limit

    def refuses(self, peer: bytes, now: float) -> str:
        """Why a host may not open another tunnel now; "" if it may."""
        options = self.options
        if self.pending.get(peer, 0) >= options.half_open_peer_limit:
            return "half-open-peer-limit"
        if self._sccrq is not None and not self._sccrq.take(now):
            return "sccrq-limit"
        return ""

    def begun(self, peer: bytes) -> None:
        """A tunnel is half open."""
        self.half_open += 1
        self.pending[peer] = self.pending.get(peer, 0) + 1

    def settled(self, peer: bytes) -> None:
        """A tunnel is half open no more."""
        self.half_open -= 1
        left = self.pending[peer] - 1
        if left:
            self.pending[peer] = left
        else:
            del self.pending[peer]
