"""The daemon as the control server sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import NamedTuple

from ..l2tp.encap import L2tpEncap
from ..pipex.base import Flow
from ..pipex.user import UserFlow
from ..ppp.engine import Engine
from ..ppp.link import Call, Link
from ..ppp.session import Session
from ..ppp.station import Phase
from ..pptp.call import PptpCall
from .info import Listener, SessionInfo


class _Ids(NamedTuple):
    """As in :class:`.info.SessionInfo`."""

    tunnel_id: int = 0
    peer_tunnel_id: int = 0
    session_id: int = 0
    peer_session_id: int = 0


_NO_IDS = _Ids()
_STATES = {phase: phase.name.lower() for phase in Phase} | {Phase.DEAD: "terminate"}


class EngineSubject:
    """A :class:`npppy.control.info.Subject` over the PPP engine."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def session_ids(self) -> Sequence[int]:
        return list(self._engine.sessions)

    def session(self, ppp_id: int) -> SessionInfo | None:
        session = self._engine.sessions.get(ppp_id)
        return None if session is None else describe(session, self._clock())

    def find(self, *, address: str | None = None, username: str | None = None) -> Sequence[int] | None:
        if address is not None:
            try:
                found = self._engine.by_address(int(IPv4Address(address)))
            except AddressValueError:
                return []
            return [] if found is None else [found.id]
        return None

    def disconnect(self, ppp_id: int) -> bool:
        return self._engine.disconnect(ppp_id, self._clock())

    def listen(self, listener: Listener) -> Callable[[], None]:
        def hear(event: str, session: Session, now: float) -> None:
            if event != "change":
                listener(event, describe(session, now))

        self._engine.listeners.append(hear)
        return lambda: self._engine.listeners.remove(hear)


def describe(session: Session, now: float) -> SessionInfo:
    realm, site, link = session.realm, session.site, session.call.link
    ids = _ids(session.call, link)
    mppe_out, mppe_in = map(str, session.mppe.modes) if session.mppe is not None else ("", "")
    police_up, police_down = session.limits
    since = session.started if session.up_since is None else session.up_since
    return SessionInfo(
        ppp_id=session.id,
        state=_STATES[session.phase],
        username=session.profile.username or session.username,
        realm=realm.name if realm else "",
        interface=site.conf.name if site else "",
        address=session.ip,
        mru=session.peer_mru,
        protocol=session.tunnel.protocol.title,
        tunnel=session.tunnel.name,
        tunnel_from=link.caller.text,
        start=time.time() - (now - since),
        duration=now - since,
        counters=session.counters(),
        pipex=carrier(session.flow),
        police_down=police_down,
        police_up=police_up,
        tunnel_id=ids.tunnel_id,
        peer_tunnel_id=ids.peer_tunnel_id,
        session_id=ids.session_id,
        peer_session_id=ids.peer_session_id,
        calling_number=link.caller.calling_number,
        called_number=link.caller.called_number,
        mppe_in=mppe_in,
        mppe_out=mppe_out,
        acct_session_id=session.acct_session_id if realm and realm.type == "radius" else "",
        routes=tuple(map(str, session.routes)) if session.routes else (),
        filter_id=session.profile.filter_id,
        session_timeout=session.profile.session_timeout,
        idle_timeout=session.profile.idle_timeout or 0,
    )


def _ids(call: Call, link: Link) -> _Ids:
    encap = link.encap
    if isinstance(encap, L2tpEncap):
        return _Ids(encap.tunnel_id, encap.peer_tunnel_id, encap.session_id, encap.peer_session_id)
    if isinstance(call, PptpCall):
        return _Ids(call.connection.id, 0, call.id, call.peer_id)
    return _NO_IDS


def carrier(flow: Flow | None) -> str:
    """See :attr:`.info.SessionInfo.pipex`."""
    if flow is None:
        return ""
    return "ebpf" if isinstance(flow, UserFlow) and flow.carried else "user"
