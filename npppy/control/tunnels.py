"""The commands about control connections, L2TP's and PPTP's: ``tunnel`` and ``clear-tunnel``."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ..config.model import Protocol
from ..l2tp.tunnel import Tunnel
from ..ppp.cause import Cause
from ..pptp.connection import Connection
from ..text import printable
from .protocol import Message, RequestError, encode
from .sessions import CLEAR_SLICE, SLICE, slices

if TYPE_CHECKING:
    from ..l2tp.engine import Engine as L2tpEngine
    from ..pptp.engine import Engine as PptpEngine
    from .server import ControlServer, Reply

log = logging.getLogger("npppy.control")

T = TypeVar("T", Tunnel, Connection)

#: What the filter calls the states of either protocol, which are given by their titles.
_STATES: Final = {
    "established": ("established",),
    "half-open": ("wait-ctl-request", "wait-ctl-reply", "wait-ctl-conn"),
    "closing": ("wait-stop-reply", "closing"),
}

#: What operators end has ended so.
_REASON: Final = "an operator cleared it"


class Kind(ABC, Generic[T]):
    """The control connections of one protocol."""

    protocol: Protocol

    @abstractmethod
    def tunnels(self) -> Mapping[int, T]:
        """By our ids, of which no other protocol has the same."""

    @abstractmethod
    def blocks(self) -> Container[str]:
        """The names of the tunnel blocks."""

    @abstractmethod
    def row(self, tunnel: T) -> Message:
        """What only this protocol has."""

    @abstractmethod
    def stop(self, tunnel: T, now: float) -> None:
        """End it, and its sessions."""


class L2tpTunnels(Kind[Tunnel]):
    protocol = Protocol.L2TP

    def __init__(self, engine: Callable[[], L2tpEngine]) -> None:
        self._engine = engine

    def tunnels(self) -> Mapping[int, Tunnel]:
        return self._engine().tunnels

    def blocks(self) -> Container[str]:
        return self._engine().services

    def row(self, tunnel: Tunnel) -> Message:
        channel = tunnel.channel
        return {
            "peer_tunnel_id": tunnel.peer_id,
            "window": channel.window,
            "cwnd": channel.cwnd,
            "queued": channel.queued,
            "retransmissions": channel.retransmissions,
            "next_ns": channel.next_ns,
            "next_nr": channel.next_nr,
            "mark": tunnel.endpoint.mark,
        }

    def stop(self, tunnel: Tunnel, now: float) -> None:
        self._engine().stop((tunnel,), _REASON, Cause.ADMIN_RESET, now)


class PptpTunnels(Kind[Connection]):
    protocol = Protocol.PPTP

    def __init__(self, engine: Callable[[], PptpEngine]) -> None:
        self._engine = engine

    def tunnels(self) -> Mapping[int, Connection]:
        return self._engine().connections

    def blocks(self) -> Container[str]:
        return self._engine().services

    def row(self, tunnel: Connection) -> Message:
        return {"peer_vendor": tunnel.peer_vendor, "echo_pending": tunnel.echo_pending}

    def stop(self, tunnel: Connection, now: float) -> None:
        self._engine().stop((tunnel,), _REASON, Cause.ADMIN_RESET, now)


class TunnelFilter:
    """Which tunnels a request means: those that match all of its filters.  Raises :class:`RequestError`."""

    __slots__ = ("given", "id", "name", "peer", "protocol", "states")

    def __init__(self, filters: object) -> None:
        if not isinstance(filters, dict):
            raise RequestError("the filters are not an object")
        self.given = filters
        self.id: int | None = None
        #: An address, packed.
        self.peer: bytes | None = None
        self.name: str | None = None
        #: In small letters.
        self.protocol: str | None = None
        self.states: Container[str] | None = None
        for name, value in filters.items():
            if name not in ("id", "peer", "name", "protocol", "state"):
                raise RequestError(f"unknown filter {name[:40]!r}")
            if name == "id":
                if type(value) is not int:
                    raise RequestError("filter id: not a number")
                self.id = value
            elif not isinstance(value, str):
                raise RequestError(f"filter {name}: not a string")
            elif name == "name":
                self.name = value
            elif name == "protocol":
                self.protocol = value.lower()
            elif name == "peer":
                try:
                    self.peer = ip_address(value).packed
                except ValueError:
                    raise RequestError("filter peer: not an address") from None
            elif value in _STATES:
                self.states = _STATES[value]
            else:
                raise RequestError(f"filter state: not one of {', '.join(_STATES)}")

    def kinds(self, kinds: Sequence[Kind[Any]]) -> Sequence[Kind[Any]]:
        """Those of which there may be any."""
        if self.protocol is None:
            return kinds
        found = [kind for kind in kinds if kind.protocol.title.lower() == self.protocol]
        if not found:
            words = ", ".join(kind.protocol.title.lower() for kind in kinds)
            raise RequestError(f"filter protocol: not one of {words}")
        return found

    def matches(self, tunnel: Tunnel | Connection) -> bool:
        return (
            (self.id is None or tunnel.id == self.id)
            and (self.peer is None or tunnel.endpoint.peer == self.peer)
            and (self.name is None or tunnel.service.tunnel.name == self.name)
            and (self.states is None or tunnel.state.title in self.states)
        )

    def candidates(self, tunnels: Mapping[int, Any]) -> Sequence[int]:
        """Of *tunnels*, those of this moment that may match."""
        return list(tunnels) if self.id is None else (self.id,)

    def __str__(self) -> str:
        return " and ".join(f"{name} {printable(str(value)[:80])}" for name, value in self.given.items())


def row(kind: Kind[T], tunnel: T, now: float) -> Message:
    """A tunnel as it travels, and as ``npppyctl -j`` prints it; the names are documented and stay."""
    at = tunnel.endpoint
    return {
        "tunnel_id": tunnel.id,
        "protocol": kind.protocol.title,
        "state": tunnel.state.title,
        "tunnel": tunnel.service.tunnel.name,
        "peer": str(at),
        "peer_name": tunnel.peer_name,
        "local": _place(at.local, at.local_port),
        "start": round(time.time() - (now - tunnel.began), 3),
        "duration": round(now - tunnel.began, 3),
        "sessions": len(tunnel.calls),
        **kind.row(tunnel),
    }


def _place(address: bytes, port: int) -> str:
    return f"{ip_address(address)}:{port}" if len(address) == 4 else f"[{ip_address(address)}]:{port}"


class TunnelCommands:
    """The handlers, which :meth:`register` hands over."""

    def __init__(
        self, l2tp: Callable[[], L2tpEngine], pptp: Callable[[], PptpEngine], clock: Callable[[], float]
    ) -> None:
        """*l2tp* and *pptp* tell who has the tunnels, once the control server runs."""
        self._kinds: Sequence[Kind[Any]] = (L2tpTunnels(l2tp), PptpTunnels(pptp))
        self._clock = clock

    def register(self, control: ControlServer) -> None:
        control.register("tunnel", self.tunnel)
        control.register("clear-tunnel", self.clear)

    async def tunnel(self, request: Message, reply: Reply) -> Message:
        wanted = TunnelFilter(request.get("filters", {}))
        for kind in wanted.kinds(self._kinds):
            tunnels = kind.tunnels()
            async for part in slices(wanted.candidates(tunnels), SLICE):
                now = self._clock()
                found = (tunnel for number in part if (tunnel := tunnels.get(number)) is not None)
                await reply.rows([row(kind, tunnel, now) for tunnel in found if wanted.matches(tunnel)])
        return {}

    async def clear(self, request: Message, reply: Reply) -> Message:
        """Ends what matches; an id, a peer or a tunnel block that does not exist is an error."""
        # Nothing said is not "all".
        wanted = TunnelFilter(request.get("filters"))
        kinds = wanted.kinds(self._kinds)
        if wanted.name is not None and not any(wanted.name in kind.blocks() for kind in kinds):
            titles = " or ".join(kind.protocol.title for kind in kinds)
            raise RequestError(f'there is no {titles} tunnel block "{printable(wanted.name[:80])}"')
        found = stopped = sessions = 0
        try:
            for kind in kinds:
                tunnels = kind.tunnels()
                async for part in slices(wanted.candidates(tunnels), CLEAR_SLICE):
                    for number in part:
                        tunnel = tunnels.get(number)
                        if tunnel is None or not wanted.matches(tunnel):
                            continue
                        found += 1
                        if tunnel.state.title not in _STATES["closing"]:
                            stopped += 1
                            sessions += len(tunnel.calls)
                            kind.stop(tunnel, self._clock())
        finally:
            # Also for one that was broken off half-way.
            log.info(
                "%s command=clear-tunnel filters=%s tunnels=%d sessions=%d",
                reply,
                encode(wanted.given).decode(),
                stopped,
                sessions,
            )
        if not found and (wanted.id is not None or wanted.peer is not None):
            raise RequestError(f"there is no tunnel with {wanted}")
        return {"tunnels": stopped, "sessions": sessions}
