"""Where the two are measured: the lab of ``make bench`` for L2TP, with one of them in the middle.

Either has a core to itself.  npppysim and FreeRADIUS share the other one, and belong to neither's account.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..carriers import L2TP, LNS, SECRET, L2tpSession, Session
from ..kernel import map_memory
from ..lab import OURS, THEIRS, Lab, Npppyd, Subscribers, credentials, pinned
from .l2tpns import L2tpns
from .radius import FreeRadius


class Lns(NamedTuple):
    """npppyd or l2tpns."""

    program: Npppyd | L2tpns
    #: Octets of what it has made for all the sessions that it could have, and how many these are.
    tables: Callable[[], tuple[int, int]]


class Load(Subscribers):
    """npppysim, which says itself what is up: l2tpns does not."""

    _told = 0
    _heard = 0

    def _up(self) -> int:
        while part := os.pread(self.out.fileno(), 1 << 20, self._told):
            whole = part.rfind(b"\n") + 1
            if not whole:
                break
            self._told += whole
            self._heard += part.count(b'"event": "up"', 0, whole)
        return self._heard


def _without_length(told: dict[str, Any]) -> Session:
    session = L2TP.session(told)
    assert isinstance(session, L2tpSession)
    return session._replace(length=False)


class PeerLab(Lab):
    """The lab for npppyd or for l2tpns, whose data has no Length."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(L2TP if name == "npppyd" else replace(L2TP, session=_without_length))

    def start(self, users: int, method: str, *, keepalive: int = 0, enter: Sequence[str] = ()) -> Lns:
        """Start it with so many users, and wait until it serves."""
        if self.name == "npppyd":
            daemon = self.npppyd(users=users, method=method, keepalive=keepalive, enter=enter)
            return Lns(daemon, lambda: map_memory(daemon.process.pid))
        with self.bng, pinned(THEIRS):
            radius = FreeRadius(self.directory / "radius", credentials(1, users))
        self._start(radius)
        radius.wait_ready()
        with pinned(OURS):
            peer = L2tpns(
                self.bng,
                self.directory / "l2tpns",
                LNS,
                method=method,
                secret=SECRET,
                keepalive=keepalive,
                enter=enter,
            )
        self._start(peer)
        peer.wait_ready()
        return Lns(peer, peer.tables)

    def call(self, lns: Lns, count: int, method: str, *, tunnels: int = 1) -> Subscribers:
        """Dial so many subscribers through so many tunnels, each from a port of its own."""
        options = ("--events", "--ports", "distinct", *self.carrier.tunnels(tunnels))
        return self.dial(lns.program, count, method, *options, kind=Subscribers if self.name == "npppyd" else Load)
