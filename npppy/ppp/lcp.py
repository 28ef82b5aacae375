"""The Link Control Protocol: options (RFC 1661 section 6) and its own packets (sections 5.7 to 5.9, RFC 1570)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from ..config.model import AuthMethod, FsmLimits
from ..text import printable
from . import proto
from .fsm import Fsm, Host, State
from .options import Option, encode

#: The Authentication-Protocol option of each method (RFC 1661 section 6.2; RFC 3748 section 3.1).
AUTH_OPTIONS = {
    AuthMethod.PAP: b"\xc0\x23",
    AuthMethod.CHAP: b"\xc2\x23\x05",
    AuthMethod.MSCHAPV2: b"\xc2\x23\x81",
    AuthMethod.EAP: b"\xc2\x27",
}
AUTH_METHODS = {value: method for method, value in AUTH_OPTIONS.items()}

#: Configure-Requests of our own seen in a row before the link is taken for looped back (RFC 1661 section 6.4).
MAX_LOOPS = 5

#: What is escaped without an option that says so: all control characters (RFC 1662 section 7.1).  We ask for nothing
#: else: it concerns lines that are others'.
DEFAULT_ACCM = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class LcpPolicy:
    """What LCP asks for and grants."""

    #: Our MRU.
    mru: int
    #: The largest MRU that the peer may have.
    max_mru: int
    #: What the peer must authenticate by, first choice first; empty: it need not.
    demand: tuple[AuthMethod, ...] = ()
    #: What we authenticate ourselves by, first choice first; empty: we do not.
    offer: tuple[AuthMethod, ...] = ()
    #: Option types neither asked for nor granted.
    unwanted: frozenset[int] = frozenset()


class LcpHost(Host, Protocol):
    """The session: it keeps what LCP has agreed, and hears of its layer."""

    #: Our MRU as agreed; the peer's is the host's peer_mru.
    mru: int
    #: Magic numbers; 0: none was agreed.
    magic: int
    peer_magic: int
    #: How the peer authenticates itself to us.
    auth: AuthMethod | None
    #: How we authenticate ourselves to the peer.
    peer_auth: AuthMethod | None

    def lcp_up(self, now: float) -> None: ...

    def lcp_down(self, now: float) -> None: ...

    def lcp_finished(self, now: float) -> None: ...

    def lcp_failed(self, reason: str, now: float) -> None:
        """No agreement is possible; the session closes LCP."""

    def protocol_rejected(self, protocol: int, now: float) -> None:
        """The peer does not know *protocol*."""


class Lcp(Fsm):
    __slots__ = (
        "_demand",
        "_loops",
        "_mru",
        "_peer",
        "accm",
        "acfc",
        "magic_wanted",
        "pfc",
        "policy",
    )

    protocol = proto.LCP
    host: LcpHost

    def __init__(self, host: LcpHost, limits: FsmLimits, policy: LcpPolicy, state: State = State.INITIAL) -> None:
        super().__init__(host, limits, state)
        self.policy = policy
        self._mru: int | None = policy.mru
        self._demand = list(policy.demand)
        self._loops = 0
        self.magic_wanted = True
        self.pfc = proto.OPT_PFC not in policy.unwanted
        self.acfc = proto.OPT_ACFC not in policy.unwanted
        #: The peer's, from its last request that we granted.
        self.accm = DEFAULT_ACCM
        # What the peer's request says, until we acknowledge it: MRU, magic number, our authentication.
        self._peer: tuple[int, int, AuthMethod | None] = (proto.DEFAULT_MRU, 0, None)
        if state is State.INITIAL:
            host.magic = self._random_magic()

    def _random_magic(self) -> int:
        return int.from_bytes(self.host.random(4), "big") or 1

    # Our requests.

    def wanted(self) -> bytes:
        wants: list[Option] = []
        if self._mru is not None:
            wants.append((proto.OPT_MRU, self._mru.to_bytes(2, "big")))
        if self._demand:
            wants.append((proto.OPT_AUTH, AUTH_OPTIONS[self._demand[0]]))
        if self.magic_wanted:
            wants.append((proto.OPT_MAGIC, self.host.magic.to_bytes(4, "big")))
        if self.pfc:
            wants.append((proto.OPT_PFC, b""))
        if self.acfc:
            wants.append((proto.OPT_ACFC, b""))
        return encode(wants)

    def naked(self, hints: list[Option], now: float) -> None:
        for kind, value in hints:
            if kind == proto.OPT_MRU and len(value) == 2:
                mru = int.from_bytes(value, "big")
                if proto.MIN_MRU <= mru <= self.policy.mru:
                    self._mru = mru
            elif kind == proto.OPT_MAGIC:
                self.host.magic = self._random_magic()
            elif kind == proto.OPT_AUTH:
                self._next_method(AUTH_METHODS.get(value), now)
            elif kind == proto.OPT_PFC:
                self.pfc = False
            elif kind == proto.OPT_ACFC:
                self.acfc = False

    def rejected(self, refused: list[Option], now: float) -> None:
        for kind, _ in refused:
            if kind == proto.OPT_MRU:
                self._mru = None
            elif kind == proto.OPT_MAGIC:
                self.magic_wanted = False
            elif kind == proto.OPT_AUTH:
                self._next_method(None, now)
            elif kind == proto.OPT_PFC:
                self.pfc = False
            elif kind == proto.OPT_ACFC:
                self.acfc = False

    def _next_method(self, hint: AuthMethod | None, now: float) -> None:
        """The peer refuses the method we ask for: take its hint if that is allowed, or the next in order."""
        if not self._demand:
            return
        refused = self._demand.pop(0)
        if hint in self._demand and hint is not None:
            # What stands before the hint remains, behind it: the peer may know more than it says.
            self._demand.remove(hint)
            self._demand.insert(0, hint)
        if not self._demand:
            self.host.log(logging.INFO, f"layer=lcp logtype=Failure the peer refuses {refused.value}")
            self.host.lcp_failed("no authentication method in common", now)

    # The peer's requests.

    def judge(self, wishes: list[Option], now: float) -> tuple[list[Option], list[Option]]:
        policy = self.policy
        nak: list[Option] = []
        reject: list[Option] = []
        mru, magic, auth, accm = proto.DEFAULT_MRU, 0, None, DEFAULT_ACCM
        for kind, value in wishes:
            if kind in policy.unwanted:
                reject.append((kind, value))
            elif kind == proto.OPT_MRU:
                mru = int.from_bytes(value, "big") if len(value) == 2 else 0
                if not proto.MIN_MRU <= mru <= policy.max_mru:
                    nak.append((kind, policy.max_mru.to_bytes(2, "big")))
            elif kind == proto.OPT_MAGIC:
                magic = int.from_bytes(value, "big") if len(value) == 4 else 0
                other = (kind, self._random_magic().to_bytes(4, "big"))
                if self._looped(magic, now):
                    # Nothing else of our own request is worth an answer, which we would only hear ourselves.
                    return [other], []
                if not magic:
                    nak.append(other)
            elif kind == proto.OPT_AUTH and policy.offer:
                auth = AUTH_METHODS.get(value)
                if auth not in policy.offer:
                    nak.append((kind, AUTH_OPTIONS[policy.offer[0]]))
            elif kind in (proto.OPT_PFC, proto.OPT_ACFC):
                if value:
                    nak.append((kind, b""))
            elif kind == proto.OPT_ACCM and len(value) == 4:
                accm = int.from_bytes(value, "big")
            else:
                reject.append((kind, value))
        # Of no effect unless this request is granted: nothing opens the layer before the next one is judged.
        self._peer, self.accm = (mru, magic, auth), accm
        return nak, reject

    def _looped(self, magic: int, now: float) -> bool:
        if not self.magic_wanted or magic != self.host.magic:
            self._loops = 0
            return False
        self._loops += 1
        if self._loops == MAX_LOOPS:
            self.host.lcp_failed("looped back", now)
        return True

    # Layer events.

    def layer_up(self, now: float) -> None:
        host = self.host
        mru, host.peer_magic, host.peer_auth = self._peer
        # Without an MRU option the peer takes 1,500 octets, but the path may not.
        host.peer_mru = min(mru, self.policy.max_mru)
        host.mru = proto.DEFAULT_MRU if self._mru is None else self._mru
        host.auth = self._demand[0] if self._demand else None
        if not self.magic_wanted:
            host.magic = 0
        host.lcp_up(now)

    def layer_down(self, now: float) -> None:
        if not self.host.magic:
            self.host.magic = self._random_magic()
        self.host.lcp_down(now)

    def layer_finished(self, now: float) -> None:
        self.host.lcp_finished(now)

    # Packets of LCP alone.  Echo-Request and -Reply are the session's: it answers without this automaton.

    def extra(self, code: int, identifier: int, data: bytes, now: float) -> bool:
        if code == proto.PROTOCOL_REJECT:
            if self.state is State.OPENED and len(data) >= 2:
                self.host.protocol_rejected(int.from_bytes(data[:2], "big"), now)
            return True
        if code == proto.IDENTIFICATION:
            # Magic number, then the peer's words (RFC 1570 section 1.1), of which the first ones will do.
            self.host.remark(f'layer=lcp logtype=Identification "{printable(data[4:132])}"', now)
        # Discard-Request is for no one; Time-Remaining is the peer's own affair (RFC 1570 section 1.2).
        return code in (
            proto.ECHO_REQUEST,
            proto.ECHO_REPLY,
            proto.DISCARD_REQUEST,
            proto.IDENTIFICATION,
            proto.TIME_REMAINING,
        )
