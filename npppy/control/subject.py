"""The daemon as the control server sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import AddressValueError, IPv4Address

from ..l2tp.encap import L2tpEncap
from ..pipex.base import NO_WISH, Flow
from ..pipex.user import UserFlow
from ..ppp.engine import Engine
from ..ppp.session import Session
from ..ppp.station import Phase
from .info import Listener, SessionInfo

#: Stands in for the ids of a session that L2TP does not carry.
_NO_IDS = L2tpEncap(b"", 0, b"", 0, tunnel_id=0, session_id=0, peer_tunnel_id=0, peer_session_id=0)


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
            listener(event, describe(session, now))

        self._engine.listeners.append(hear)
        return lambda: self._engine.listeners.remove(hear)


def describe(session: Session, now: float) -> SessionInfo:
    login, site, link = session.login_of, session.site, session.call.link
    ids = link.encap if isinstance(link.encap, L2tpEncap) else _NO_IDS
    wish = session.engine.wishes.get(session.id, NO_WISH)
    since = session.started if session.up_since is None else session.up_since
    return SessionInfo(
        ppp_id=session.id,
        state=session.phase.name.lower() if session.phase < Phase.DEAD else "terminate",
        username=session.username,
        realm=login.realm.name if login else "",
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
        police_down=wish.police_down,
        police_up=wish.police_up,
        tunnel_id=ids.tunnel_id,
        peer_tunnel_id=ids.peer_tunnel_id,
        session_id=ids.session_id,
        peer_session_id=ids.peer_session_id,
        calling_number=link.caller.calling_number,
        called_number=link.caller.called_number,
    )


def carrier(flow: Flow | None) -> str:
    """See :attr:`.info.SessionInfo.pipex`."""
    if flow is None:
        return ""
    return "ebpf" if isinstance(flow, UserFlow) and flow.carried else "user"
