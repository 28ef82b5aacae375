"""The commands about L2TP's control connections: ``tunnel`` and ``clear-tunnel``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from ..l2tp.tunnel import State, Tunnel
from ..ppp.cause import Cause
from ..text import printable
from .protocol import Message, RequestError, encode
from .sessions import CLEAR_SLICE, SLICE, slices

if TYPE_CHECKING:
    from ..l2tp.engine import Engine
    from .server import ControlServer, Reply

log = logging.getLogger("npppy.control")

#: What the filter calls the states.
_STATES: Final = {
    "established": (State.ESTABLISHED,),
    "half-open": (State.WAIT_REPLY, State.WAIT_CONN),
    "closing": (State.CLOSING,),
}


class TunnelFilter:
    """Which tunnels a request means: those that match all of its filters.  Raises :class:`RequestError`."""

    __slots__ = ("given", "id", "name", "peer", "states")

    def __init__(self, filters: object) -> None:
        if not isinstance(filters, dict):
            raise RequestError("the filters are not an object")
        self.given = filters
        self.id: int | None = None
        #: An address, packed.
        self.peer: bytes | None = None
        self.name: str | None = None
        self.states: tuple[State, ...] = tuple(State)
        for name, value in filters.items():
            if name not in ("id", "peer", "name", "state"):
                raise RequestError(f"unknown filter {name[:40]!r}")
            if name == "id":
                if type(value) is not int:
                    raise RequestError("filter id: not a number")
                self.id = value
            elif not isinstance(value, str):
                raise RequestError(f"filter {name}: not a string")
            elif name == "name":
                self.name = value
            elif name == "peer":
                try:
                    self.peer = ip_address(value).packed
                except ValueError:
                    raise RequestError("filter peer: not an address") from None
            elif value in _STATES:
                self.states = _STATES[value]
            else:
                raise RequestError(f"filter state: not one of {', '.join(_STATES)}")

    def matches(self, tunnel: Tunnel) -> bool:
        return (
            (self.id is None or tunnel.id == self.id)
            and (self.peer is None or tunnel.endpoint.peer == self.peer)
            and (self.name is None or tunnel.service.tunnel.name == self.name)
            and tunnel.state in self.states
        )

    def candidates(self, engine: Engine) -> Sequence[int]:
        """The tunnels of this moment that may match."""
        return list(engine.tunnels) if self.id is None else (self.id,)

    def __str__(self) -> str:
        return " and ".join(f"{name} {printable(str(value)[:80])}" for name, value in self.given.items())


def row(tunnel: Tunnel, now: float) -> Message:
    """A tunnel as it travels, and as ``npppyctl -j`` prints it; the names are documented and stay."""
    at, channel = tunnel.endpoint, tunnel.channel
    return {
        "tunnel_id": tunnel.id,
        "peer_tunnel_id": tunnel.peer_id,
        "state": tunnel.state.title,
        "tunnel": tunnel.service.tunnel.name,
        "peer": str(at),
        "peer_name": tunnel.peer_name,
        "local": _place(at.local, at.local_port),
        "start": round(time.time() - (now - tunnel.began), 3),
        "duration": round(now - tunnel.began, 3),
        "sessions": len(tunnel.calls),
        "window": channel.window,
        "cwnd": channel.cwnd,
        "queued": channel.queued,
        "retransmissions": channel.retransmissions,
        "next_ns": channel.next_ns,
        "next_nr": channel.next_nr,
        "mark": at.mark,
    }


def _place(address: bytes, port: int) -> str:
    return f"{ip_address(address)}:{port}" if len(address) == 4 else f"[{ip_address(address)}]:{port}"


class TunnelCommands:
    """The handlers, which :meth:`register` hands over."""

    def __init__(self, engine: Callable[[], Engine], clock: Callable[[], float]) -> None:
        """*engine* tells who has the tunnels, once the control server runs."""
        self._engine = engine
        self._clock = clock

    def register(self, control: ControlServer) -> None:
        control.register("tunnel", self.tunnel)
        control.register("clear-tunnel", self.clear)

    async def tunnel(self, request: Message, reply: Reply) -> Message:
        wanted = TunnelFilter(request.get("filters", {}))
        engine = self._engine()
        async for part in slices(wanted.candidates(engine), SLICE):
            now = self._clock()
            await reply.rows(
                [
                    row(tunnel, now)
                    for number in part
                    if (tunnel := engine.tunnels.get(number)) is not None and wanted.matches(tunnel)
                ]
            )
        return {}

    async def clear(self, request: Message, reply: Reply) -> Message:
        """Ends what matches; an id, a peer or a tunnel block that does not exist is an error."""
        # Nothing said is not "all".
        wanted = TunnelFilter(request.get("filters"))
        engine = self._engine()
        if wanted.name is not None and wanted.name not in engine.services:
            raise RequestError(f'there is no L2TP tunnel block "{printable(wanted.name[:80])}"')
        found = tunnels = sessions = 0
        try:
            async for part in slices(wanted.candidates(engine), CLEAR_SLICE):
                for number in part:
                    tunnel = engine.tunnels.get(number)
                    if tunnel is None or not wanted.matches(tunnel):
                        continue
                    found += 1
                    if tunnel.state is not State.CLOSING:
                        tunnels += 1
                        sessions += len(tunnel.calls)
                        engine.stop((tunnel,), "an operator cleared it", Cause.ADMIN_RESET, self._clock())
        finally:
            # Also for one that was broken off half-way.
            log.info(
                "%s command=clear-tunnel filters=%s tunnels=%d sessions=%d",
                reply,
                encode(wanted.given).decode(),
                tunnels,
                sessions,
            )
        if not found and (wanted.id is not None or wanted.peer is not None):
            raise RequestError(f"there is no tunnel with {wanted}")
        return {"tunnels": tunnels, "sessions": sessions}
