"""Whether and how the data of a link is encrypted: CCP while it negotiates, MPPE once it has, and what goes wrong."""

from __future__ import annotations

import enum
from typing import Protocol

from ..config.model import Mppe as Choice
from ..config.model import Tunnel
from ..pipex.base import Flow
from ..pipex.icmp import RateLimit
from . import proto
from .ccp import Ccp
from .fsm import Host, State
from .mppe import Keys, Mppe

#: Seconds between two Reset-Requests: the first may take so long to be heard.
RESET_INTERVAL = 0.5

#: A peer of which nothing can be decrypted for so many seconds, in so many packets, is out of step for good.
DEAF, DEAF_PACKETS = 30, 16
#: So is one that rejects, so often in so many seconds, protocols that it was never sent.
STRANGE, STRANGE_INTERVAL = 16, 300

_ASKS = bytes((proto.CONFIGURE_REQUEST,))


class PrivacyHost(Host, Protocol):
    """The link."""

    #: How data is encrypted; set before :meth:`data_may_pass`.
    mppe: Mppe | None
    #: What carries it.
    flow: Flow | None

    def data_may_pass(self, now: float) -> None:
        """CCP has come to an end."""

    def data_must_stop(self, now: float) -> None:
        """It negotiates anew.  What is encrypted is still so until this returns."""

    def negotiate_anew(self, now: float) -> None:
        """Begin with LCP, and so with another login."""

    def settle(self) -> None:
        """There may be nothing left to do for the automata."""

    def unprotected(self, reason: str, now: float) -> None:
        """Data must be encrypted and cannot be."""

    def out_of_step(self, reason: str, now: float) -> None:
        """What the peer encrypts cannot be decrypted any more."""


class _Stage(enum.IntEnum):
    #: CCP is to say, and no data passes until it has.
    OPEN = 0
    #: Data goes in the clear.
    CLEAR = 1
    ENCRYPTED = 2


class Privacy:
    """Of a link that has keys, from its authentication on."""

    __slots__ = (
        "_asked",
        "_budget",
        "_heard_at",
        "_packets",
        "_reset",
        "_since",
        "_stage",
        "_strange",
        "_strange_since",
        "ccp",
        "host",
        "keys",
        "lengths",
        "must",
        "tunnel",
    )

    def __init__(
        self,
        host: PrivacyHost,
        tunnel: Tunnel,
        keys: Keys,
        *,
        must: bool,
        lengths: frozenset[int] | None = None,
        budget: RateLimit | None = None,
    ) -> None:
        """*must*: data never goes in the clear; *lengths* are those of the tunnel that may be used, None: all of them.

        *budget* is that of :class:`npppy.ppp.mppe.Receiver`.
        """
        self.host = host
        self.tunnel = tunnel
        self.keys = keys
        self.must = must
        self.lengths = lengths
        self.ccp: Ccp | None = None
        self._budget = budget
        self._stage = _Stage.OPEN
        # The identifier of the peer's last Configure-Request.
        self._asked = b""
        # Of packets that could not be decrypted: where the receiver was at the first, when that was, and how many; and
        # when a Reset-Request was last sent.
        self._heard_at = -1
        self._since = 0.0
        self._packets = 0
        self._reset = -RESET_INTERVAL
        self._strange = 0
        self._strange_since = 0.0

    @property
    def pending(self) -> bool:
        """Whether data must wait."""
        return self._stage is _Stage.OPEN

    @property
    def _used(self) -> bool:
        """Whether the peer has encrypted packets, and so has all that it asks for."""
        mppe, flow = self.host.mppe, self.host.flow
        if mppe is None:
            return False
        return mppe.receive.position > 0 or (flow is not None and flow.counters().in_packets > 0)

    def settle(self) -> bool:
        """Drop CCP's automaton if it has nothing left to do; False: it has."""
        if self.ccp is not None and self.ccp.state is State.OPENED:
            self.ccp = None
        return self.ccp is None

    def start(self, now: float) -> None:
        """Negotiate."""
        ccp = self.ccp = self._make_ccp(State.INITIAL)
        ccp.open(now)
        ccp.up(now)

    def stop(self) -> None:
        """LCP is not open any more."""
        if self.ccp is not None:
            self.ccp.stop()
            self.ccp = None

    def receive(self, packet: bytes, now: float) -> None:
        """A packet of CCP.  Raises :class:`npppy.cursor.Malformed`."""
        if packet[:1] == _ASKS:
            if self._used:
                # CCP that negotiates anew begins the same row of keys again: what was heard before could be played
                # back, and one key would be for two packets.  Anybody may have sent this; a new login gives new keys.
                # What was asked for before is only late.
                if packet[1:2] != self._asked:
                    self.host.negotiate_anew(now)
                return
            self._asked = packet[1:2]
        self._revive().receive(packet, now)
        self.host.settle()

    def rejected(self, now: float) -> None:
        """The peer does not speak CCP."""
        self._revive().protocol_rejected(now)

    def undecrypted(self, mppe: Mppe, now: float) -> None:
        """A packet has come that cannot be decrypted, or was before; *mppe* is the link's."""
        heard_at = mppe.receive.position
        if heard_at != self._heard_at:
            # Something has been decrypted in between.
            self._heard_at, self._since, self._packets = heard_at, now, 0
        self._packets += 1
        if self._packets >= DEAF_PACKETS and now >= self._since + DEAF:
            self.host.out_of_step(f"nothing of the peer could be decrypted for {DEAF} s", now)
        elif mppe.receive.wants_reset and now >= self._reset + RESET_INTERVAL:
            self._reset = now
            self._revive().request_reset()
            self.host.settle()

    def misread(self, now: float) -> None:
        """The peer has rejected a protocol that it was not sent.

        Its coherency count has gone round while packets were lost, and it decrypts by another key; all that comes out
        is a protocol for Linux (ppp_mppe.c), which never finds out.
        """
        if now >= self._strange_since + STRANGE_INTERVAL:
            self._strange, self._strange_since = 0, now
        self._strange += 1
        if self._strange >= STRANGE:
            self.host.out_of_step("the peer decrypts by another key", now)

    # What CCP says.

    def ccp_up(self, now: float) -> None:
        ccp = self.ccp
        assert ccp is not None
        if ccp.sent is None or ccp.received is None:
            self._clear("CCP has opened without MPPE", now)
            return
        host = self.host
        # It may be that data has passed in the clear until now.
        mppe = host.mppe = Mppe.begin(self.keys, ccp.sent, ccp.received, self._budget)
        self._stage, self.must = _Stage.ENCRYPTED, True
        self._heard_at = -1
        host.remark(f"layer=ccp logtype=Opened {title(mppe)}", now)
        host.data_may_pass(now)

    def ccp_down(self, now: float) -> None:
        """CCP leaves Opened: it negotiates anew, or it ends."""
        if self._stage is _Stage.ENCRYPTED:
            self._stage = _Stage.OPEN
            self.host.data_must_stop(now)
            self.host.mppe = None

    def ccp_finished(self, now: float) -> None:
        """There is no agreement, and nothing more is done for one."""
        self._clear("CCP came to no agreement", now)

    def ccp_silent(self, now: float) -> None:
        """The peer has let a restart timer pass without a word of CCP.

        One that never speaks it, as it should to refuse it, is not to wait until we have given up.
        """
        if self._stage is _Stage.OPEN and not self.must:
            self._stage = _Stage.CLEAR
            self.host.data_may_pass(now)

    def reset_requested(self) -> None:
        """The peer has lost its way in what we encrypt."""
        if self.host.mppe is not None:
            self.host.mppe.send.reset()

    def _clear(self, reason: str, now: float) -> None:
        """Encryption cannot be had."""
        if self.must:
            self.host.unprotected(reason, now)
            return
        self.host.remark(f'layer=ccp logtype=Closed reason="{reason}"', now)
        self.stop()
        if self._stage is _Stage.OPEN:
            self._stage = _Stage.CLEAR
            self.host.data_may_pass(now)
        self.host.settle()

    def _revive(self) -> Ccp:
        """CCP's automaton: the one that there is, or as it was when it was dropped or given up."""
        if self.ccp is None:
            self.ccp = self._make_ccp(State.OPENED if self._stage is _Stage.ENCRYPTED else State.STOPPED)
        return self.ccp

    def _make_ccp(self, state: State) -> Ccp:
        tunnel, lengths = self.tunnel, self.tunnel.mppe_key_lengths
        if self.lengths is not None:
            lengths = tuple(length for length in lengths if length in self.lengths)
        return Ccp(self.host, tunnel.ccp, self, lengths, tunnel.mppe_key_states, state, self.host.mppe)


def wanted(tunnel: Tunnel) -> bool:
    """Whether data is to be encrypted where that can be."""
    return tunnel.mppe is not Choice.NO


def required(tunnel: Tunnel) -> bool:
    """Whether data is to be encrypted in any case."""
    return tunnel.mppe is Choice.REQUIRED


def title(mppe: Mppe | None) -> str:
    """As npppd's log lines have it."""
    if mppe is None:
        return "mppe=no"
    send, receive = mppe.modes
    return f"mppe=yes mppe_in={receive} mppe_out={send}"
