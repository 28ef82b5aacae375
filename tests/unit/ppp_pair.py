"""The concentrator and a subscriber, joined by a link that may lose, double and reorder frames, on a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from npppy.config.model import AuthMethod
from npppy.pipex.base import Counters, Police
from npppy.ppp.cause import Cause
from npppy.ppp.link import Caller, Link, Upper
from npppy.ppp.session import Session
from npppy.ppp.station import Phase, Station
from npppy.sim.subscriber import Credentials, Subscriber

from .ppp_rig import UNWANTED, USERS, Rig

#: Quick enough that an end which has gone unnoticed is found within a minute.
KEEPALIVE: dict[str, Any] = {
    "lcp_keepalive": True,
    "lcp_keepalive_interval": 10,
    "lcp_keepalive_retry_interval": 5,
    "lcp_keepalive_max_retries": 3,
}


@dataclass
class Quality:
    """How bad a link is: two probabilities, and the seconds that a frame takes at least and at most."""

    loss: float = 0.0
    double: float = 0.0
    fastest: float = 0.001
    slowest: float = 0.001


class Channel:
    """Carries frames, as well as its quality lets it, and keeps the time of a rig.

    *after* is called behind everything that has happened; it may name a time at which it is to be called again.
    """

    def __init__(self, rig: Rig, seed: int, quality: Quality, after: Callable[[], float | None]) -> None:
        self.rig = rig
        self.quality = quality
        #: How many frames were given to it, and which one of them, from 1, it loses whatever its quality.
        self.carried = 0
        self.lose = 0
        self._after = after
        self._random = random.Random(seed)
        self._flying: list[tuple[float, int, Callable[[], None]]] = []
        self._copies = 0
        # When the last of what comes in order does.
        self._at = 0.0

    @property
    def idle(self) -> bool:
        """Nothing is on its way."""
        return not self._flying

    def carry(self, deliver: Callable[[], None]) -> None:
        quality = self.quality
        self.carried += 1
        if self.carried == self.lose or self._random.random() < quality.loss:
            return
        for _ in range(2 if self._random.random() < quality.double else 1):
            self._copies += 1
            delay = self._random.uniform(quality.fastest, quality.slowest)
            heapq.heappush(self._flying, (self.rig.now + delay, self._copies, deliver))

    def deliver(self, deliver: Callable[[], None]) -> None:
        """In order, once and for certain, as TCP does, if anything at all comes through."""
        if self.quality.loss < 1:
            self._copies += 1
            self._at = max(self._at, self.rig.now + self.quality.fastest)
            heapq.heappush(self._flying, (self._at, self._copies, deliver))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass until *until* holds; False if it has not come to that."""
        rig = self.rig
        end = rig.now + seconds
        wanted = self._after()
        while not until():
            times = [when for when in (rig.wheel.next(), wanted) if when is not None]
            if self._flying:
                times.append(self._flying[0][0])
            if not times or min(times) > end:
                rig.now = end
                return until()
            rig.now = max(rig.now, min(times))
            while self._flying and self._flying[0][0] <= rig.now:
                heapq.heappop(self._flying)[2]()
                self._after()
            rig.advance()
            wanted = self._after()
        return True


class End:
    """One end of the link: a call that carries frames, and its own end, to the other side.

    As with PPPoE, closing it says so once, and what comes for a closed end is answered by saying so again.
    """

    def __init__(self, pair: Pair, link: Link) -> None:
        self.pair = pair
        self.link = link
        self.other: End
        self.upper: Upper | None = None
        self.open = True
        #: All that this end has sent, lost or not.
        self.sent: list[bytes] = []

    def send(self, frame: bytes) -> None:
        assert self.open, "sent on a call that is closed"
        self.sent.append(frame)
        self.pair.channel.carry(lambda: self.other.receive(frame))

    def close(self, cause: Cause) -> None:
        assert self.open, "closed twice"
        self.open = False
        self.pair.channel.carry(self.other.told)

    def __call__(self, frame: bytes) -> None:
        self.send(frame)

    def rest(self) -> None:
        pass

    def ending(self) -> None:
        pass

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        """Of no interest to PPPoE."""

    def receive(self, frame: bytes) -> None:
        if self.open:
            assert self.upper is not None
            self.upper.receive(frame, self.pair.rig.now)
        else:
            self.pair.channel.carry(self.other.told)

    def told(self) -> None:
        """The other end is closed."""
        if self.open:
            self.open = False
            assert self.upper is not None
            self.upper.gone(Cause.LOST_CARRIER, "PADT received", self.pair.rig.now)


class Sink:
    """A subscriber's data path: keeps what comes."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.closed = False

    def input(self, packet: bytes, now: float) -> None:
        self.packets.append(packet)

    def counters(self) -> Counters:
        return Counters(in_packets=len(self.packets))

    def heard(self) -> float:
        return 0.0

    def last_active(self) -> float:
        return 0.0

    def by_python(self) -> Counters:
        return self.counters()

    def late(self) -> Counters:
        return Counters()

    def police(self, up: Police | None, down: Police | None) -> None:
        """It limits nothing."""

    def close(self) -> Counters:
        self.closed = True
        return self.counters()


class Pair:
    """A session and its subscriber.

    *user* and *password* are what the subscriber says; *rig* goes to the concentrator's side, *theirs* to the
    subscriber's tunnel options.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        demand: tuple[AuthMethod, ...] = (AuthMethod.CHAP,),
        offer: tuple[AuthMethod, ...] | None = None,
        user: str = "alice",
        password: bytes | None = None,
        quality: Quality | None = None,
        max_mru: int = 1492,
        lose: int = 0,
        rig: dict[str, Any] | None = None,
        theirs: dict[str, Any] | None = None,
    ) -> None:
        self.rig = Rig(authentication_methods=demand, **(KEEPALIVE | (rig or {})))
        self.rig.engine.random = random.Random(f"concentrator {seed}").randbytes
        self.channel = Channel(self.rig, seed, quality or Quality(), self._look)
        self.channel.lose = lose
        self.run = self.channel.run
        #: Why the subscriber ended; one reason at the end.
        self.reasons: list[str] = []
        self.ups = 0
        # When an end was last up, or began.
        self._fine: dict[Station, float] = {}
        caller = Caller(text="02:00:00:00:00:01", mac=b"\x02\0\0\0\0\x01")
        link = Link(tunnel=self.rig.tunnel, caller=caller, max_mru=max_mru, unwanted=UNWANTED)
        dialler = replace(
            self.rig.tunnel, **({"authentication_methods": demand if offer is None else offer} | (theirs or {}))
        )
        self.near = End(self, link)
        self.far = End(self, replace(link, tunnel=dialler))
        self.near.other, self.far.other = self.far, self.near
        session = self.rig.engine.open(self.near, self.rig.now)
        assert session is not None
        self.session: Session = session
        self.near.upper = session
        secret = USERS.get(user, b"guess") if password is None else password
        rng = random.Random(f"subscriber {seed}").randbytes
        self.subscriber = Subscriber(
            0, self.far, Credentials(user.encode(), secret), self, self.rig.wheel, rng, self.rig.now
        )
        self.far.upper = self.subscriber

    # Watch

    def up(self, now: float) -> None:
        self.ups += 1
        self.subscriber.flow = Sink()

    def ended(self, reason: str, now: float) -> None:
        self.reasons.append(reason)

    def malformed(self, reason: str) -> None:
        raise AssertionError(f"the concentrator sent a malformed frame: {reason}")

    def _look(self) -> None:
        """Neither end may be anything but up for longer than negotiation and termination may take."""
        for station, tunnel in ((self.session, self.near.link.tunnel), (self.subscriber, self.far.link.tunnel)):
            now = self.rig.now
            bound = tunnel.negotiation_timeout + tunnel.lcp.max_terminate * tunnel.lcp.timeout + 1
            if station.phase in (Phase.UP, Phase.DEAD):
                self._fine[station] = now
            assert now - self._fine.setdefault(station, now) <= bound, f"{station} hangs in {station.phase!r}"

    # What became of it

    @property
    def both_up(self) -> bool:
        """Up, and nothing under way that could change it."""
        return (
            self.session.phase is Phase.UP
            and self.subscriber.phase is Phase.UP
            and self.session.lcp is self.session.ipcp is self.subscriber.lcp is self.subscriber.ipcp is None
            and self.channel.idle
        )

    @property
    def both_dead(self) -> bool:
        return self.session.phase is self.subscriber.phase is Phase.DEAD

    @property
    def decided(self) -> bool:
        return self.both_up or self.both_dead

    def check_up(self) -> None:
        """Both ends agree on what they have agreed."""
        session, subscriber = self.session, self.subscriber
        assert subscriber.address == session.address
        assert session.address in self.rig.space
        assert self.rig.engine.by_address(session.address) is session
        assert subscriber.dns == tuple(session.servers[kind] for kind in (129, 131) if kind in session.servers)
        assert (session.mru, session.peer_mru) == (subscriber.peer_mru, subscriber.mru)
        assert (session.magic, session.peer_magic) == (subscriber.peer_magic, subscriber.magic)
        assert session.magic != subscriber.magic
        assert session.auth is subscriber.peer_auth
        assert self.rig.engine.half_open == 0
        # Data passes both ways, once a frame.
        flow = subscriber.flow
        assert isinstance(flow, Sink)
        packets = session.counters().in_packets
        subscriber.send_ip(b"\x45up")
        self.near.send(b"\x00\x21\x45down")
        assert self.run(5, until=lambda: self.channel.idle)
        assert flow.packets[-1:] == [b"\x45down"]
        assert session.counters().in_packets == packets + 1

    def nothing_left(self) -> None:
        assert self.session.phase is Phase.DEAD
        assert self.subscriber.phase is Phase.DEAD
        assert self.session.lcp is self.session.ipcp is self.session.flow is self.session.auth_server is None
        assert self.subscriber.lcp is self.subscriber.ipcp is self.subscriber.flow is None
        assert self.subscriber.auth_client is None
        assert len(self.reasons) == 1
        assert not self.near.open
        assert not self.far.open
        assert len(self.rig.backend) == 0
        self.rig.nothing_left()
