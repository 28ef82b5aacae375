"""The command about RADIUS: ``radius``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .protocol import Message

if TYPE_CHECKING:
    from ..aaa.radius.client import Client
    from ..aaa.radius.dae_server import DaeServer
    from ..aaa.radius.spool import Spool
    from .server import ControlServer, Reply


class RadiusCommands:
    """The handler, which :meth:`register` hands over."""

    def __init__(
        self,
        client: Callable[[], Client],
        spool: Callable[[], Spool],
        dae: Callable[[], DaeServer],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """The first three tell who knows, once the control server runs; *wall* the seconds since the Epoch."""
        self._client = client
        self._spool = spool
        self._dae = dae
        self._wall = wall

    def register(self, control: ControlServer) -> None:
        control.register("radius", self.radius)

    async def radius(self, request: Message, reply: Reply) -> Message:
        """Rows for servers, for realms with records that wait, and for clients of dynamic authorization."""
        spool, dae = self._spool(), self._dae()
        rows: list[dict[str, Any]] = [
            {"what": "server", **asdict(state), "address": str(state.address), "since": round(state.since, 3)}
            for state in self._client().state()
        ]
        rows += [
            {"what": "records", "realm": realm, "records": count}
            for realm, count in sorted(spool.depth.items())
            if count
        ]
        rows += [{"what": "client", **asdict(client)} for client in dae.state()]
        await reply.rows(rows)
        oldest = spool.oldest()
        return {
            "spool": "" if spool.path is None else str(spool.path),
            "records": spool.depth.total(),
            "oldest": max(0, round(self._wall() - oldest)) if oldest else 0,
            "trouble": spool.trouble,
            "listen": dae.listening(),
            "strangers": dae.dae.strangers,
            "lost": dict(dae.lost),
        }
