"""The automaton against the table of RFC 1661 section 4.1, every pair of state and event, by packets, calls and timers.

The table here is the RFC's own print; that of npppy/ppp/fsm.py was typed apart from it.
"""

from __future__ import annotations

from collections import Counter

import pytest

from npppy.config.model import FsmLimits
from npppy.ppp import proto
from npppy.ppp.fsm import Fsm, State
from npppy.ppp.options import Option
from npppy.wheel import TICK, Wheel

RFC_1661 = """
      |    0         1         2         3         4         5
Events| Initial   Starting  Closed    Stopped   Closing   Stopping
------+-----------------------------------------------------------
 Up   |    2     irc,scr/6     -         -         -         -
 Down |    -         -         0       tls/1       0         1
 Open |  tls/1       1     irc,scr/6     3r        5r        5r
 Close|    0       tlf/0       2         2         4         4
      |
  TO+ |    -         -         -         -       str/4     str/5
  TO- |    -         -         -         -       tlf/2     tlf/3
      |
 RCR+ |    -         -       sta/2 irc,scr,sca/8   4         5
 RCR- |    -         -       sta/2 irc,scr,scn/6   4         5
 RCA  |    -         -       sta/2     sta/3       4         5
 RCN  |    -         -       sta/2     sta/3       4         5
      |
 RTR  |    -         -       sta/2     sta/3     sta/4     sta/5
 RTA  |    -         -         2         3       tlf/2     tlf/3
      |
 RUC  |    -         -       scj/2     scj/3     scj/4     scj/5
 RXJ+ |    -         -         2         3         4         5
 RXJ- |    -         -       tlf/2     tlf/3     tlf/2     tlf/3
      |
 RXR  |    -         -         2         3         4         5

      |    6         7         8           9
Events| Req-Sent  Ack-Rcvd  Ack-Sent    Opened
------+-----------------------------------------
 Up   |    -         -         -           -
 Down |    1         1         1         tld/1
 Open |    6         7         8           9r
 Close|irc,str/4 irc,str/4 irc,str/4 tld,irc,str/4
      |
  TO+ |  scr/6     scr/6     scr/8         -
  TO- |  tlf/3p    tlf/3p    tlf/3p        -
      |
 RCR+ |  sca/8   sca,tlu/9   sca/8   tld,scr,sca/8
 RCR- |  scn/6     scn/7     scn/6   tld,scr,scn/6
 RCA  |  irc/7     scr/6x  irc,tlu/9   tld,scr/6x
 RCN  |irc,scr/6   scr/6x  irc,scr/8   tld,scr/6x
      |
 RTR  |  sta/6     sta/6     sta/6   tld,zrc,sta/5
 RTA  |    6         6         8       tld,scr/6
      |
 RUC  |  scj/6     scj/7     scj/8       scj/9
 RXJ+ |    6         6         8           9
 RXJ- |  tlf/3     tlf/3     tlf/3   tld,irc,str/5
      |
 RXR  |    6         7         8         ser/9
"""

LIMITS = FsmLimits(timeout=3, max_configure=10, max_terminate=2)

#: The codes of what is sent, by action; Configure-Nak for all that is not granted.
SENT = {1: "scr", 2: "sca", 3: "scn", 5: "str", 6: "sta", 7: "scj"}


def rfc_cells() -> list[tuple[State, str, str]]:
    """(state, event, cell) of the table, footnotes left out."""
    cells = []
    states: list[State] = []
    for line in RFC_1661.splitlines():
        head, bar, rest = line.partition("|")
        if not bar or not rest.strip():
            continue
        if not head.strip():
            states = [State(int(number)) for number in rest.split()]
        elif head != "Events":
            for state, cell in zip(states, rest.split(), strict=True):
                cells.append((state, head.strip(), cell.rstrip("rpx")))
    return cells


class Bench:
    """A host that keeps what it is told."""

    def __init__(self) -> None:
        self.peer_mru = 1500
        self.now = 1000.0
        self.wheel = Wheel(self.now)
        self.done: list[str] = []

    def send(self, protocol: int, payload: bytes) -> None:
        self.done.append(SENT[payload[0]])
        assert int.from_bytes(payload[2:4], "big") == len(payload)

    def random(self, count: int) -> bytes:
        return bytes(count)

    def log(self, level: int, text: str) -> None: ...

    def remark(self, text: str, now: float) -> None: ...


class Probe(Fsm):
    """A protocol of no options that grants what it is told to grant."""

    protocol = proto.IPCP

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, LIMITS)
        self.bench = bench
        self.grants = True

    def wanted(self) -> bytes:
        return b"\x03\x02"

    def judge(self, wishes: list[Option], now: float) -> tuple[list[Option], list[Option]]:
        return ([], []) if self.grants else ([(1, b"")], [])

    def naked(self, hints: list[Option], now: float) -> None: ...

    def rejected(self, refused: list[Option], now: float) -> None: ...

    def layer_up(self, now: float) -> None:
        self.bench.done.append("tlu")

    def layer_down(self, now: float) -> None:
        self.bench.done.append("tld")

    def layer_finished(self, now: float) -> None:
        self.bench.done.append("tlf")

    # What happens to it.

    def packet_in(self, code: int, data: bytes = b"", identifier: int = 200) -> None:
        self.receive(bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big") + data, self.bench.now)

    def happen(self, event: str) -> None:
        now = self.bench.now
        if event in ("Up", "Down", "Open", "Close"):
            {"Up": self.up, "Down": self.down, "Open": self.open, "Close": self.close}[event](now)
        elif event in ("TO+", "TO-"):
            self.restarts = COUNTER if event == "TO+" else 0
            self.bench.now += LIMITS.timeout + TICK
            self.bench.wheel.advance(self.bench.now)
        elif event in ("RCR+", "RCR-"):
            self.grants = event == "RCR+"
            self.packet_in(proto.CONFIGURE_REQUEST)
        elif event in ("RCA", "RCN"):
            # The answer to the request that is out, whether or not one has been heard already: the table speaks of
            # those that are valid.  What is late or doubled is not (see below).
            self._awaiting = True
            answer = proto.CONFIGURE_ACK if event == "RCA" else proto.CONFIGURE_NAK
            self.request = self.request or self.wanted()
            self.packet_in(answer, self.request, self.identifier)
        elif event == "RXR":
            # Echoes are the session's, which answers them when LCP is Opened (test_lcp.py, section 5.8).
            self.event(event, now)
        else:
            code, data = {
                "RTR": (proto.TERMINATE_REQUEST, b"bye"),
                "RTA": (proto.TERMINATE_ACK, b""),
                "RUC": (99, b""),
                "RXJ+": (proto.CODE_REJECT, b"\x0c\x01\x00\x04"),
                "RXJ-": (proto.CODE_REJECT, b"\x01\x01\x00\x04"),
            }[event]
            self.packet_in(code, data)


#: A restart counter that no action sets.
COUNTER = 77

#: How each state is come by.
ROADS = {
    State.INITIAL: "",
    State.STARTING: "Open",
    State.CLOSED: "Up",
    State.STOPPED: "Open Up TO-",
    State.CLOSING: "Open Up Close",
    State.STOPPING: "Open Up RCR+ RCA RTR",
    State.REQ_SENT: "Open Up",
    State.ACK_RCVD: "Open Up RCA",
    State.ACK_SENT: "Open Up RCR+",
    State.OPENED: "Open Up RCR+ RCA",
}


def bring(state: State) -> Probe:
    probe = Probe(Bench())
    for event in ROADS[state].split():
        probe.happen(event)
    assert probe.state is state
    probe.restarts = COUNTER
    # Some time of the restart timer has gone, so that one sees it start anew.
    probe.bench.now += 1
    probe.bench.done.clear()
    return probe


def test_the_table_is_whole() -> None:
    cells = rfc_cells()
    assert len(cells) == 160
    assert len({cell[:2] for cell in cells}) == 160


@pytest.mark.parametrize(("state", "event", "cell"), rfc_cells())
def test_section_4_1(state: State, event: str, cell: str) -> None:
    probe = bring(state)
    bench, due = probe.bench, probe.due
    runs = State.CLOSING <= state <= State.ACK_SENT
    assert bool(due) is runs, "the restart timer runs in states 4 to 8"
    if event.startswith("TO") and not runs:
        assert cell == "-"
        return
    probe.happen(event)
    if cell == "-":
        assert (probe.state, bench.done, probe.due, probe.restarts) == (state, [], due, COUNTER)
        return
    actions, _, number = cell.rpartition("/")
    expected = [action for action in actions.split(",") if action]
    # In any order, says the RFC.  Neither This-Layer-Started nor Echo-Reply is the automaton's to show.
    seen = Counter(bench.done)
    assert seen == Counter(action for action in expected if action not in ("irc", "zrc", "tls", "ser"))
    assert probe.state == int(number)
    # The restart counter.
    start = {"irc": LIMITS.max_terminate if "str" in expected else LIMITS.max_configure, "zrc": 0}
    counter = next((start[action] for action in expected if action in start), 0 if event == "TO-" else COUNTER)
    assert probe.restarts == counter - seen["scr"] - seen["str"]
    # The restart timer.
    if not State.CLOSING <= probe.state <= State.ACK_SENT:
        assert probe.due == 0
    elif {"scr", "str", "zrc"} & set(expected):
        assert probe.due == int((bench.now + LIMITS.timeout) / TICK) + 1
    else:
        assert probe.due == due
    assert len(bench.wheel) == bool(probe.due)


@pytest.mark.parametrize("state", [state for state in State if state >= State.CLOSED])
@pytest.mark.parametrize("code", [proto.CONFIGURE_ACK, proto.CONFIGURE_NAK, proto.CONFIGURE_REJECT])
def test_answers_to_nothing_are_silently_discarded(state: State, code: int) -> None:
    """Sections 5.2 to 5.4: an answer must match the last request; a second one to it, or to none, is no event."""
    probe = bring(state)
    if state in (State.REQ_SENT, State.ACK_SENT):
        probe.packet_in(code, probe.request, probe.identifier ^ 1)
    else:
        for identifier in (probe.identifier, probe.identifier ^ 1):
            if state is State.STOPPED and identifier == probe.identifier:
                # The request that was never answered is still out.
                continue
            probe.packet_in(code, probe.request, identifier)
    assert (probe.state, probe.bench.done) == (state, [])


@pytest.mark.parametrize("event", ["RTR", "RTA", "RUC", "RXJ+"])
def test_waiting_for_the_peer_in_stopped(event: str) -> None:
    """Section 4.2 lets an implementation wait; what is no request does not end the wait, and its end is a request."""
    probe = Probe(Bench())
    probe.open(probe.bench.now)
    probe.up_passive(probe.bench.now)
    assert probe.state is State.STOPPED
    probe.happen(event)
    assert probe.state is State.STOPPED
    probe.bench.done.clear()
    probe.bench.now += LIMITS.timeout + TICK
    probe.bench.wheel.advance(probe.bench.now)
    assert (probe.state, probe.bench.done) == (State.REQ_SENT, ["scr"])


def test_a_stopped_automaton_does_nothing() -> None:
    for state in State:
        probe = bring(state)
        probe.stop()
        for event in ("RCR+", "RCR-", "RTR", "RUC", "RXJ-", "Close", "Down"):
            probe.happen(event)
        assert probe.bench.done == []
        assert len(probe.bench.wheel) == 0
