"""The Compression Control Protocol (RFC 1962), for MPPE alone (RFC 3078 section 2); both sides of it are the same."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ..config.model import FsmLimits
from . import proto
from .fsm import Fsm, Host, State
from .mppe import Mode, Mppe
from .options import Option, encode

# Bits of the option (RFC 3078 section 2).
_STATELESS = 0x01000000
_BITS = {128: 0x40, 56: 0x80, 40: 0x20}
_STRENGTHS = 0xE0

#: Stateful mode is granted to a peer that asks for it so often although we want the other one.
_INSISTS = 2


class Owner(Protocol):
    """Who hears of the layer."""

    def ccp_up(self, now: float) -> None: ...

    def ccp_down(self, now: float) -> None: ...

    def ccp_finished(self, now: float) -> None:
        """There is no agreement, and nothing more is done for one."""

    def ccp_silent(self, now: float) -> None:
        """The peer has let a restart timer pass without a word of CCP."""

    def reset_requested(self) -> None:
        """Stateful mode: the peer has lost its way."""


class Ccp(Fsm):
    """Negotiates how each way is encrypted: as strongly as both can, stateless if possible."""

    __slots__ = ("_allowed", "_heard", "_insisted", "_stateful", "_stateless", "_wish", "owner", "sent")

    protocol = proto.CCP

    def __init__(
        self,
        host: Host,
        limits: FsmLimits,
        owner: Owner,
        lengths: Collection[int],
        states: Collection[str],
        state: State = State.INITIAL,
        agreed: Mppe | None = None,
    ) -> None:
        """*lengths* of keys are allowed, and *states* "stateless" and "stateful"; *agreed*: for one in Opened."""
        super().__init__(host, limits, state)
        self.owner = owner
        self._allowed = sum(_BITS[length] for length in lengths)
        self._stateless, self._stateful = "stateless" in states, "stateful" in states
        self._heard = False
        self._insisted = 0
        # The option that we ask for; 0: none.
        self._wish = self._all()
        #: How we are to encrypt: what has been granted to the peer.
        self.sent: Mode | None = None
        if agreed is not None:
            self.sent, received = agreed.modes
            self._wish = _option(received)

    def _all(self) -> int:
        """All that we can (section 2.1); without stateless mode, stateful is asked for by its absence."""
        return self._allowed | (_STATELESS if self._stateless else 0)

    @property
    def received(self) -> Mode | None:
        """How the peer encrypts: what it has granted to us, once the layer is up."""
        return _mode(self._wish)

    def wanted(self) -> bytes:
        return encode([(proto.OPT_MPPE, self._wish.to_bytes(4, "big"))] if self._wish else [])

    def naked(self, hints: list[Option], now: float) -> None:
        self._heard = True
        for kind, value in hints:
            # What has been rejected is not asked for again.
            if kind == proto.OPT_MPPE and len(value) == 4 and self._wish:
                hint = int.from_bytes(value, "big")
                common = _strongest(hint & self._allowed)
                # What we cannot do is not taken up; asking again, up to the limits, is all that is left.
                if common:
                    self._wish = common | self._state(hint & _STATELESS)
                elif not hint & _STRENGTHS:
                    self._wish = self._wish & _STRENGTHS | self._state(hint & _STATELESS)

    def _state(self, stateless: int) -> int:
        """The bit for what the peer wishes, as far as it is allowed."""
        return _STATELESS if (stateless and self._stateless) or not self._stateful else 0

    def rejected(self, refused: list[Option], now: float) -> None:
        self._heard = True
        # We ask for nothing else; and so Naks that help nobody come to an end.
        self._wish = 0

    def judge(self, wishes: list[Option], now: float) -> tuple[list[Option], list[Option]]:
        self._heard = True
        wish = 0
        reject = []
        for kind, value in wishes:
            # Deflate and all else are not for us, and no option may come twice.
            if kind != proto.OPT_MPPE or len(value) != 4 or wish:
                reject.append((kind, value))
            else:
                wish = int.from_bytes(value, "big")
        if not wish and not self._wish:
            # It has rejected what we would suggest.
            self.sent = None
            return [], reject
        common = wish & self._allowed
        grant = _strongest(common or self._allowed)
        if wish & _STATELESS and self._stateless:
            grant |= _STATELESS
        elif not self._stateful or (self._stateless and self._insisted < _INSISTS):
            # What it has not asked for; stateful mode is what is chosen last.
            self._insisted += wish != 0
            grant |= _STATELESS
        if grant == wish:
            self.sent = _mode(grant)
            return [], reject
        self.sent = None
        return [(proto.OPT_MPPE, grant.to_bytes(4, "big"))], reject

    def extra(self, code: int, identifier: int, data: bytes, now: float) -> bool:
        if code == proto.RESET_REQUEST:
            if self.state is State.OPENED:
                self.owner.reset_requested()
                # RFC 1962 section 3.1 has it so, though MPPE needs no answer: pppd waits a second for it before it asks
                # again.
                self.packet(proto.RESET_ACK, identifier, b"")
            return True
        return code == proto.RESET_ACK

    def request_reset(self) -> None:
        """Ask the peer to begin its tables anew; without data (RFC 3078 section 8.2)."""
        self.identifier = (self.identifier + 1) & 0xFF
        self.packet(proto.RESET_REQUEST, self.identifier, b"")

    def expire(self, now: float) -> None:
        super().expire(now)
        if not self._heard:
            self.owner.ccp_silent(now)

    def layer_up(self, now: float) -> None:
        self.owner.ccp_up(now)

    def layer_down(self, now: float) -> None:
        # What was agreed is of no concern to what is agreed next.
        self._wish, self._insisted = self._all(), 0
        self.owner.ccp_down(now)

    def layer_finished(self, now: float) -> None:
        self.owner.ccp_finished(now)


def _strongest(bits: int) -> int:
    return next((bit for bit in _BITS.values() if bits & bit), 0)


def _mode(option: int) -> Mode | None:
    """Of an option that has been granted."""
    bit = _strongest(option)
    return next((Mode(length, not option & _STATELESS) for length, value in _BITS.items() if value == bit), None)


def _option(mode: Mode) -> int:
    return _BITS[mode.bits] | (0 if mode.stateful else _STATELESS)
