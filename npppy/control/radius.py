"""The command about RADIUS: ``radius``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .protocol import Message

if TYPE_CHECKING:
    from ..aaa.radius.accounting import Accountant
    from ..aaa.radius.client import Client
    from ..aaa.radius.dae_server import DaeServer
    from .server import ControlServer, Reply


class RadiusCommands:
    """The handler, which :meth:`register` hands over."""

    def __init__(
        self,
        client: Callable[[], Client],
        accountant: Callable[[], Accountant],
        dae: Callable[[], DaeServer],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """The first three tell who knows, once the control server runs; *wall* the seconds since the Epoch."""
        self._client = client
        self._accountant = accountant
        self._dae = dae
        self._wall = wall

    def register(self, control: ControlServer) -> None:
        control.register("radius", self.radius)

    async def radius(self, request: Message, reply: Reply) -> Message:
        """Rows for servers, for realms with records that wait, and for clients of dynamic authorization."""
        accounts, dae = self._accountant().state(), self._dae()
        rows: list[dict[str, Any]] = [
            {"what": "server", **asdict(state), "address": str(state.address), "since": round(state.since, 3)}
            for state in self._client().state()
        ]
        rows += [
            {"what": "records", "realm": realm, "records": count, "orphaned": realm in accounts.orphaned}
            for realm, count in sorted(accounts.waiting.items())
        ]
        rows += [{"what": "client", **asdict(client)} for client in dae.state()]
        await reply.rows(rows)
        return {
            "spool": "" if accounts.spool is None else str(accounts.spool),
            "records": sum(accounts.waiting.values()),
            "oldest": max(0, round(self._wall() - accounts.oldest)) if accounts.oldest else 0,
            "delivered": accounts.delivered,
            "failures": accounts.failures,
            "replaced": accounts.replaced,
            "trouble": accounts.trouble,
            "listen": dae.listening(),
            "strangers": dae.dae.strangers,
            "lost": dict(dae.lost),
        }
