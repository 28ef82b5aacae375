"""The automaton of RFC 1661 section 4, shared by every control protocol.

:data:`TABLE` is section 4.1 as it is printed.  A control protocol derives from :class:`Fsm`, says what it wants and
what it grants, and hears of This-Layer-Up, -Down and -Finished.
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

from ..config.model import FsmLimits
from ..cursor import Cursor, Malformed
from ..wheel import Timed, Wheel
from . import options, proto
from .options import Option


class State(enum.IntEnum):
    INITIAL = 0
    STARTING = 1
    CLOSED = 2
    STOPPED = 3
    CLOSING = 4
    STOPPING = 5
    REQ_SENT = 6
    ACK_RCVD = 7
    ACK_SENT = 8
    OPENED = 9


# Actions, a slash, the next state.
_ROWS = """
      0       1          2          3                4       5     6            7          8            9
Up    2       irc,scr/6  -          -                -       -     -            -          -            -
Down  -       -          0          tls/1            0       1     1            1          1            tld/1
Open  tls/1   1          irc,scr/6  3                5       5     6            7          8            9
Close 0       tlf/0      2          2                4       4     irc,str/4    irc,str/4  irc,str/4    tld,irc,str/4
TO+   -       -          -          -                str/4   str/5 scr/6        scr/6      scr/8        -
TO-   -       -          -          -                tlf/2   tlf/3 tlf/3        tlf/3      tlf/3        -
RCR+  -       -          sta/2      irc,scr,sca/8    4       5     sca/8        sca,tlu/9  sca/8        tld,scr,sca/8
RCR-  -       -          sta/2      irc,scr,scn/6    4       5     scn/6        scn/7      scn/6        tld,scr,scn/6
RCA   -       -          sta/2      sta/3            4       5     irc/7        scr/6      irc,tlu/9    tld,scr/6
RCN   -       -          sta/2      sta/3            4       5     irc,scr/6    scr/6      irc,scr/8    tld,scr/6
RTR   -       -          sta/2      sta/3            sta/4   sta/5 sta/6        sta/6      sta/6        tld,zrc,sta/5
RTA   -       -          2          3                tlf/2   tlf/3 6            6          8            tld,scr/6
RUC   -       -          scj/2      scj/3            scj/4   scj/5 scj/6        scj/7      scj/8        scj/9
RXJ+  -       -          2          3                4       5     6            6          8            9
RXJ-  -       -          tlf/2      tlf/3            tlf/2   tlf/3 tlf/3        tlf/3      tlf/3        tld,irc,str/5
RXR   -       -          2          3                4       5     6            7          8            ser/9
"""


def _read_table() -> dict[str, tuple[tuple[tuple[str, ...], State] | None, ...]]:
    table: dict[str, tuple[tuple[tuple[str, ...], State] | None, ...]] = {}
    for line in _ROWS.strip().splitlines()[1:]:
        event, *cells = line.split()
        row: list[tuple[tuple[str, ...], State] | None] = []
        for cell in cells:
            actions, _, state = cell.rpartition("/")
            row.append(None if cell == "-" else (tuple(actions.split(",")) if actions else (), State(int(state))))
        table[event] = tuple(row)
    return table


#: event -> state -> (actions, next state), or None where the event cannot happen.
TABLE = _read_table()

#: The states in which the restart timer runs (section 4.1).
TIMED = frozenset({State.CLOSING, State.STOPPING, State.REQ_SENT, State.ACK_RCVD, State.ACK_SENT})


class Host(Protocol):
    """What a control protocol needs of the session that it negotiates for."""

    #: The largest packet that the peer takes.
    peer_mru: int

    @property
    def wheel(self) -> Wheel:
        """Where the restart timer runs."""

    def send(self, protocol: int, payload: bytes) -> None:
        """Send a packet to the peer."""

    def random(self, count: int) -> bytes:
        """Random octets."""

    def log(self, level: int, text: str) -> None:
        """A log line of the session; *text* begins with the layer."""

    def remark(self, text: str, now: float) -> None:
        """The same, for what the peer can bring about at will: it is not written more often than is useful."""


class Fsm(Timed):
    """One control protocol of one session, while it is negotiated."""

    __slots__ = (
        "_awaiting",
        "_passive",
        "_reject",
        "_rejects",
        "_reply",
        "host",
        "identifier",
        "limits",
        "naks_received",
        "naks_sent",
        "request",
        "restarts",
        "state",
    )

    protocol: ClassVar[int]

    def __init__(self, host: Host, limits: FsmLimits, state: State = State.INITIAL) -> None:
        super().__init__()
        self.host = host
        self.limits = limits
        self.state = state
        #: Of the last request that we sent.
        self.identifier = host.random(1)[0]
        #: The options of the Configure-Request that is out.
        self.request = b""
        #: The restart counter (section 4.6); whoever is in Opened has come there with a full one.
        self.restarts = limits.max_configure
        self.naks_sent = 0
        self.naks_received = 0
        # The request has had no answer: a second one, late or doubled, means nothing.
        self._awaiting = False
        self._passive = False
        #: The answer to the packet that is being handled: code, identifier, data.
        self._reply = (0, 0, b"")
        self._reject = b""
        #: The identifier of the last Code-Reject: it must not be that of the request that is out.
        self._rejects = 0

    @property
    def name(self) -> str:
        return proto.NAMES[self.protocol]

    # What a control protocol supplies.

    @abstractmethod
    def wanted(self) -> bytes:
        """The options of our Configure-Request."""

    @abstractmethod
    def judge(self, wishes: list[Option], now: float) -> tuple[list[Option], list[Option]]:
        """What of a Configure-Request is not granted: (options to Nak, with our values; options to reject)."""

    @abstractmethod
    def naked(self, hints: list[Option], now: float) -> None:
        """The peer wants other values in our Configure-Request."""

    @abstractmethod
    def rejected(self, refused: list[Option], now: float) -> None:
        """The peer does not know or want these options of our Configure-Request."""

    @abstractmethod
    def layer_up(self, now: float) -> None:
        """This-Layer-Up."""

    @abstractmethod
    def layer_down(self, now: float) -> None:
        """This-Layer-Down."""

    @abstractmethod
    def layer_finished(self, now: float) -> None:
        """This-Layer-Finished."""

    def extra(self, code: int, identifier: int, data: bytes, now: float) -> bool:
        """A code beyond Code-Reject; False if it is unknown."""
        return False

    # What the session calls.

    def open(self, now: float) -> None:
        self.event("Open", now)

    def up(self, now: float) -> None:
        self.event("Up", now)

    def up_passive(self, now: float) -> None:
        """The layer below is up, and the peer speaks first.

        RFC 1661 section 4.2 allows to wait in Stopped.  What is sent to a peer before it listens is lost, and costs it
        its restart timer; so our first request leaves with our first answer, or after one silent restart timer.
        """
        self.state = State.STOPPED
        self._passive = True
        self.host.wheel.arm(self, now + self.limits.timeout)

    def speak(self, now: float) -> None:
        """Wait no more for the peer to speak first."""
        self._passive = False
        self.state = State.STARTING
        self.event("Up", now)

    def ask_again(self, now: float) -> None:
        """The peer may not have listened until now: a request that has no answer yet is repeated at once."""
        if self.state in (State.REQ_SENT, State.ACK_SENT):
            self.event("TO+", now)

    def close(self, now: float) -> None:
        self.event("Close", now)

    def down(self, now: float) -> None:
        self.event("Down", now)

    def stop(self) -> None:
        """The session has no more use for the automaton: whatever still happens to it means nothing."""
        self.host.wheel.disarm(self)
        self.state = State.INITIAL

    def protocol_rejected(self, now: float) -> None:
        """The peer does not speak this protocol: RXJ-, section 4.3."""
        self.event("RXJ-", now)

    def expire(self, now: float) -> None:
        if self._passive:
            self.speak(now)
        else:
            self.event("TO+" if self.restarts > 0 else "TO-", now)

    def receive(self, packet: bytes, now: float) -> None:
        """A packet of this protocol, from its Code on.  Raises :class:`Malformed`."""
        cursor = Cursor(packet)
        code, identifier, length = cursor.u8(), cursor.u8(), cursor.u16()
        if length < 4:
            raise Malformed(f"{self.name}-length")
        # What is beyond Length is padding (section 5).
        data = cursor.take(length - 4)
        if self.state <= State.STARTING:
            return
        if code == proto.CONFIGURE_REQUEST:
            self._configure_request(identifier, data, now)
        elif code in (proto.CONFIGURE_ACK, proto.CONFIGURE_NAK, proto.CONFIGURE_REJECT):
            self._configure_answer(code, identifier, data, now)
        elif code == proto.TERMINATE_REQUEST:
            self._reply = (proto.TERMINATE_ACK, identifier, data)
            self.event("RTR", now)
        elif code == proto.TERMINATE_ACK:
            self.event("RTA", now)
        elif code == proto.CODE_REJECT:
            self._code_reject(data, now)
        elif not self.extra(code, identifier, data, now):
            self._reject = packet[:length]
            self.event("RUC", now)

    def _configure_request(self, identifier: int, data: bytes, now: float) -> None:
        wishes = options.decode(data)
        if self.state in (State.CLOSED, State.CLOSING, State.STOPPING):
            # The outcome does not matter there, and must not change what was agreed.
            self._reply = (proto.TERMINATE_ACK, identifier, b"")
            self.event("RCR+", now)
            return
        nak, reject = self.judge(wishes, now)
        if nak and not reject and self.naks_sent >= self.limits.max_nak_loop:
            # Section 4.6, Max-Failure: what does not converge is rejected, and nothing is appended any more.
            asked = {kind for kind, _ in wishes}
            reject = [(kind, value) for kind, value in wishes if kind in {k for k, _ in nak}]
            nak = [option for option in nak if option[0] in asked]
        if reject:
            self._reply = (proto.CONFIGURE_REJECT, identifier, options.encode(reject))
        elif nak:
            self.naks_sent += 1
            self._reply = (proto.CONFIGURE_NAK, identifier, options.encode(nak))
        else:
            self.naks_sent = 0
            self._reply = (proto.CONFIGURE_ACK, identifier, data)
        self.event("RCR-" if reject or nak else "RCR+", now)

    def _configure_answer(self, code: int, identifier: int, data: bytes, now: float) -> None:
        if identifier != self.identifier or not self._awaiting:
            return
        self._reply = (proto.TERMINATE_ACK, identifier, b"")
        if code == proto.CONFIGURE_ACK:
            if data != self.request:
                raise Malformed(f"{self.name}-ack")
            self._awaiting = False
            self.naks_received = 0
            self.event("RCA", now)
            return
        answer = options.decode(data)
        self._awaiting = False
        self.naks_received += 1
        if code == proto.CONFIGURE_REJECT or self.naks_received > self.limits.max_nak_loop:
            self.rejected(answer, now)
        else:
            self.naked(answer, now)
        self.event("RCN", now)

    def _code_reject(self, data: bytes, now: float) -> None:
        code = data[0] if data else 0
        self.host.remark(f"layer={self.name} logtype=CodeReject code={code}", now)
        # Section 4.3: RXJ- where the code is one that the protocol cannot do without.
        self.event("RXJ-" if proto.CONFIGURE_REQUEST <= code <= proto.CODE_REJECT else "RXJ+", now)

    # The automaton.

    def event(self, event: str, now: float) -> None:
        """Let *event* happen; one that cannot happen in this state is ignored."""
        cell = TABLE[event][self.state]
        if cell is None:
            return
        actions, state = cell
        # The state changes first, so that an action which comes back in here finds things as they are.
        self.state = state
        if state not in TIMED and self.due and not (self._passive and state is State.STOPPED):
            self.host.wheel.disarm(self)
            self._passive = False
        for action in actions:
            ACTIONS[action](self, now)

    def _irc(self, now: float) -> None:
        closing = self.state in (State.CLOSING, State.STOPPING)
        self.restarts = self.limits.max_terminate if closing else self.limits.max_configure

    def _zrc(self, now: float) -> None:
        self.restarts = 0
        self._start_timer(now)

    def _scr(self, now: float) -> None:
        self.restarts -= 1
        self.identifier = (self.identifier + 1) & 0xFF
        self.request = self.wanted()
        self._awaiting = True
        self._start_timer(now)
        self.packet(proto.CONFIGURE_REQUEST, self.identifier, self.request)

    def _str(self, now: float) -> None:
        self.restarts -= 1
        self.identifier = (self.identifier + 1) & 0xFF
        self._awaiting = False
        self._start_timer(now)
        self.packet(proto.TERMINATE_REQUEST, self.identifier, b"")

    def _answer(self, now: float) -> None:
        self.packet(*self._reply)

    def _scj(self, now: float) -> None:
        self._rejects = (self._rejects + 1) & 0xFF
        # Cut to what the peer takes (section 5.6).
        self.packet(proto.CODE_REJECT, self._rejects, self._reject[: self.host.peer_mru - 4])

    def _tlu(self, now: float) -> None:
        self.layer_up(now)

    def _tld(self, now: float) -> None:
        self.layer_down(now)

    def _tlf(self, now: float) -> None:
        self.layer_finished(now)

    def _nothing(self, now: float) -> None:
        pass

    def _start_timer(self, now: float) -> None:
        self._passive = False
        self.host.wheel.arm(self, now + self.limits.timeout)

    def packet(self, code: int, identifier: int, data: bytes) -> None:
        """Send a packet of this protocol."""
        header = bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big")
        self.host.send(self.protocol, header + data)


#: Section 4.4.  This-Layer-Started is nothing to us: the layer below starts by itself.  Echoes are the session's.
ACTIONS: dict[str, Callable[[Fsm, float], None]] = {
    "irc": Fsm._irc,
    "zrc": Fsm._zrc,
    "scr": Fsm._scr,
    "sca": Fsm._answer,
    "scn": Fsm._answer,
    "str": Fsm._str,
    "sta": Fsm._answer,
    "scj": Fsm._scj,
    "ser": Fsm._nothing,
    "tlu": Fsm._tlu,
    "tld": Fsm._tld,
    "tls": Fsm._nothing,
    "tlf": Fsm._tlf,
}
