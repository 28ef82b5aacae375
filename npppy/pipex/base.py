"""The interface of pipex's back ends.

A back end takes over the data of a session once its IPCP is open (:meth:`Backend.add`) and gives it back when the
session ends or negotiates anew (:meth:`Flow.close`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Counters(NamedTuple):
    """What went through a session; *in* is from the peer.  Octets are those of the IP packets."""

    in_bytes: int = 0
    in_packets: int = 0
    in_errors: int = 0
    out_bytes: int = 0
    out_packets: int = 0
    out_errors: int = 0

    def plus(self, other: Counters) -> Counters:
        return Counters(*(a + b for a, b in zip(self, other, strict=True)))


class Police(NamedTuple):
    """A token bucket for one way of a session."""

    #: Octets of IP packets a second, more than 0.
    rate: int
    #: Octets that may pass at once, no fewer than a packet has.
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSpec:
    """A session as its data path sees it."""

    session: int
    #: The routing domain; today there is one, number 0.
    domain: int
    #: The name of the shared interface.
    interface: str
    #: The peer's IPv4 address.
    address: int
    #: Prefix length of the network behind the peer; 32: the peer alone.
    prefixlen: int = 32
    #: The largest IP packet that the peer takes (its MRU), and that we take from it (ours).
    mtu: int
    mru: int
    ingress_filter: bool = False
    mss_adjust: bool = False
    #: Sends a frame, from its PPP Protocol field on, to the peer.
    send: Callable[[bytes], None]
    #: How the carrier encapsulates, for back ends that do it themselves.
    encap: Any = None
    #: Whether the kernel may carry it, as far as the back end can.
    offload: bool = True
    #: Whether the back end may answer LCP's Echo-Request, and the two magic numbers that it needs then.
    echo: bool = False
    magic: int = 0
    peer_magic: int = 0
    #: Limits, which only the kernel holds.
    police_up: Police | None = None
    police_down: Police | None = None


class Flow(Protocol):
    """The data of one session, in the hands of a back end."""

    def input(self, packet: bytes, now: float) -> None:
        """An IPv4 packet from the peer that reached Python."""

    def counters(self) -> Counters:
        """Never goes backwards."""

    def last_active(self) -> float:
        """When the last packet passed that counts as activity (npppd's idle-timeout), on the monotonic clock."""

    def close(self) -> Counters:
        """Stop, and remove what belongs to the session; returns the last counters."""


class Backend(Protocol):
    def add(self, spec: FlowSpec, now: float) -> Flow:
        """Carry the data of a session.

        Raises :class:`ConflictError` if its address or network is taken by another flow.
        """


class ConflictError(Exception):
    """Two sessions with one address or network; the message names it."""
