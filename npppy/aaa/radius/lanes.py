"""What is under way to accounting servers, and what is known of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ...config.model import Address, RadiusServers
from .client import Exchange
from .packet import ENCODED, Pair, Received
from .spool import Record

if TYPE_CHECKING:
    from .delivery import Delivery
    from .server import Server

#: Seconds from the failure of a lane to the first attempt at it.
FIRST_PAUSE: Final = 1.0

_LONGEST_DELAY = 0xFFFFFFFF


class Flight(Exchange):
    """A record under way."""

    __slots__ = ("delivery", "followed", "fresh", "herald", "lane", "number", "probe", "record")

    def __init__(
        self, delivery: Delivery, lane: Lane, record: Record, flow: Hashable, deadline: float, fresh: bool, herald: bool
    ) -> None:
        super().__init__(flow, deadline)
        self.delivery = delivery
        self.lane = lane
        self.record = record
        self.fresh = fresh
        self.herald = herald
        #: The lane was down.
        self.probe = lane.down
        #: Others of its session may wait for it.
        self.followed = not fresh
        lane.left += 1
        self.number = lane.left

    def pairs(self, now: float) -> list[Pair]:
        delay = int(self.delivery.wall()) - self.record.event
        return [(ENCODED, self.record.attributes), ("Acct-Delay-Time", min(max(delay, 0), _LONGEST_DELAY))]

    def answered(self, reply: Received, server: Server, now: float) -> None:
        self.delivery.answered(self, now)

    def failed(self, reason: str, now: float) -> None:
        self.delivery.failed(self, reason, now)


class Lane:
    """Realms that share a server."""

    __slots__ = (
        "ahead",
        "answers",
        "barriers",
        "caught",
        "cursor",
        "down",
        "eager",
        "flying",
        "fresh",
        "heard",
        "herald",
        "left",
        "misses",
        "pause",
        "probe_at",
        "realms",
        "retrying",
    )

    def __init__(self, realms: Mapping[str, RadiusServers]) -> None:
        self.realms = realms
        #: Under way, by session.
        self.flying: dict[int, Flight] = {}
        #: Those of them that are new, and those that were sent in vain before.
        self.fresh = self.retrying = 0
        #: More that were sent in vain may be due.
        self.eager = False
        self.herald: Flight | None = None
        #: All records up to this one are under way, or due later, or behind one of their session that is.
        self.cursor = 0
        #: There is none beyond it.
        self.caught = False
        #: How many have left and how many were answered, and the last to leave of those.
        self.left = self.answers = self.heard = 0
        self.down = False
        #: When a lane that is down is tried next, and how long the next pause is.
        self.probe_at = 0.0
        self.pause = FIRST_PAUSE
        #: Accounting-On and -Off that wait, and how many records the first of them waits for.
        self.barriers: list[Record] = []
        self.ahead = 0
        #: Attempts in vain since the last answer.
        self.misses = 0

    @property
    def servers(self) -> set[tuple[Address, int]]:
        return {(server.address, server.port) for conf in self.realms.values() for server in conf.servers}

    @property
    def limit(self) -> int | None:
        """Only older records may go; None: all may."""
        return self.barriers[0].seq if self.barriers else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """A lane, for who looks on."""

    realms: tuple[str, ...]
    #: Nothing has been answered of late.
    down: bool
    outstanding: int
    #: Answers, over all.
    answers: int
    #: It waits to say Accounting-On or -Off, or for the answer.
    barrier: bool


def groups(realms: Mapping[str, RadiusServers]) -> list[list[str]]:
    """The names of realms, together where they share a server."""
    groups: list[tuple[list[str], set[tuple[Address, int]]]] = []
    for name, conf in realms.items():
        names, servers = [name], {(server.address, server.port) for server in conf.servers}
        apart = []
        for group in groups:
            if servers.isdisjoint(group[1]):
                apart.append(group)
            else:
                names = group[0] + names
                servers |= group[1]
        groups = [*apart, (names, servers)]
    return [names for names, _ in groups]
