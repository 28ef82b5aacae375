"""The accountant: turns what becomes of sessions into records, so that each has its Start and its Stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...config.model import Config, Radius, Realm
from ...pipex.base import Counters, Leftovers
from ...pipex.user import UserFlow
from ...ppp.cause import Cause
from ...wheel import Timed, Wheel
from . import records
from .delivery import Delivery
from .lanes import LaneState
from .rounds import Rounds
from .spool import (
    ACCOUNTING_OFF,
    ACCOUNTING_ON,
    INTERIM_UPDATE,
    START,
    STOP,
    Abandoned,
    Open,
    Record,
    Spool,
    Used,
    session_key,
)

if TYPE_CHECKING:
    from ...ppp.engine import Engine
    from ...ppp.session import Session
    from .client import Client

log = logging.getLogger("npppy.radius")

#: Seconds from one writing down of a session's counters to the next: of one that the kernel carries, whose counters
#: outlive us, and of one that Python does.
CHECK: Final = 60
QUICK: Final = 10
#: Seconds from a Start to the first look: Python has carried what came before the kernel had the session.
FIRST: Final = 2
#: Interim records that are made in a second, and counters that are written down.
MAX_INTERIMS: Final = 500
MAX_CHECKS: Final = 2000
#: Seconds after which no processor counts packets of a session that has ended.
SETTLE: Final = 0.02
#: Sessions of an earlier run that are ended in one transaction.
_SLICE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountingState:
    """Accounting, for who looks on."""

    #: The file of the spool; None: it is in memory.
    spool: Path | None
    lanes: tuple[LaneState, ...]
    #: Records that wait, by realm.
    waiting: dict[str, int]
    #: Realms whose records wait although no server is configured for them.
    orphaned: tuple[str, ...]
    #: Since when the oldest record waits, in seconds since the Epoch; 0: none does.
    oldest: int
    #: Records delivered, attempts in vain, and interim records that were replaced, since the start.
    delivered: int
    failures: int
    replaced: int
    #: Why the spool cannot be written; "": it can.
    trouble: str


class Accountant(Timed):
    """Accounting for all realms.

    *wall* tells the seconds since the Epoch, *clock* the time on the monotonic clock, *random* so many octets, and
    *later* calls what it is given at the end of this turn of the event loop.

    At the start: :meth:`recover`, then :meth:`configure`, before there can be a session.  At the end: :meth:`shut` when
    all sessions have ended, and :meth:`close` once it is not :attr:`busy` any more, or there is no more time.
    """

    __slots__ = (
        "_checks",
        "_clock",
        "_ended",
        "_engine",
        "_interims",
        "_on",
        "_open",
        "_radius",
        "_random",
        "_spool",
        "_wall",
        "_wheel",
        "delivery",
    )

    def __init__(
        self,
        *,
        engine: Engine,
        client: Client,
        spool: Spool,
        wheel: Wheel,
        wall: Callable[[], float],
        clock: Callable[[], float],
        random: Callable[[int], bytes],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        super().__init__()
        self.delivery = Delivery(spool, client, wall, clock, later)
        self._engine = engine
        self._spool = spool
        self._wheel = wheel
        self._wall = wall
        self._clock = clock
        self._random = random
        self._radius = Radius()
        self._interims = Rounds()
        self._checks = Rounds()
        self._ended = _Ended(self)
        # Servers have been told that we are there.
        self._on = False
        # Sessions that have had a Start and no Stop.
        self._open = 0
        spool.renewed = self._renewed
        engine.listeners.append(self._notified)

    def recover(self, leftovers: Leftovers) -> int:
        """End the sessions that earlier runs of the daemon have left open; returns how many there were.

        *leftovers* is what the kernel had still counted of those of the last run, which it has carried until now.
        """
        count = 0
        wall = self._wall()
        for left in self._spool.abandoned():
            counters, until = _recovered(left, leftovers, wall)
            seconds = left.used.seconds + max(until - left.used.at, 0)
            stop = records.usage(STOP, int(until), left.session.facts, seconds, counters, Cause.NAS_REBOOT)
            self._spool.add(left.session.realm, left.key, STOP, int(until), stop)
            self._spool.shut(left.key)
            count += 1
            if count % _SLICE == 0:
                self._spool.flush(self._clock())
        self._spool.flush(self._clock())
        if count:
            log.info("accounting sessions=%d of an earlier run have got their Stop", count)
        return count

    def configure(self, config: Config) -> None:
        """Take a configuration."""
        self._radius = config.radius
        self.delivery.limit = config.radius.spool_limit
        self.delivery.configure({realm.name: realm.accounting for realm in config.realms if _accounted(realm)})
        if not self._on:
            # Not to servers that a reload brings: they may have the database of those before, with live sessions.
            self._on = True
            self._barriers(ACCOUNTING_ON)
        self._rouse()

    def shut(self) -> None:
        """All sessions have ended: say so."""
        self._barriers(ACCOUNTING_OFF)

    @property
    def busy(self) -> bool:
        """Is there a record that a server would take now?"""
        return self.delivery.busy

    def close(self) -> None:
        """Send nothing any more, and close the spool."""
        self._wheel.disarm(self)
        self._wheel.disarm(self._ended)
        self._ended.expire(self._clock())
        self._engine.listeners.remove(self._notified)
        self.delivery.close()
        self._spool.close()

    def state(self) -> AccountingState:
        delivery, spool = self.delivery, self._spool
        waiting = {realm: count for realm, count in spool.depth.items() if count > 0}
        lanes = tuple(delivery.state())
        known = {realm for lane in lanes for realm in lane.realms}
        return AccountingState(
            spool=spool.path,
            lanes=lanes,
            waiting=waiting,
            orphaned=tuple(realm for realm in waiting if realm not in known),
            oldest=spool.oldest(),
            delivered=delivery.delivered,
            failures=delivery.failures,
            replaced=delivery.replaced,
            trouble=spool.trouble,
        )

    def _barriers(self, kind: int) -> None:
        event = int(self._wall())
        record = records.barrier(kind, event, self._engine.boot, self._radius)
        for lane in self.delivery.lanes:
            # Realms that share servers say it once.
            self.delivery.add(next(iter(lane.realms)), 0, kind, event, record)

    # Sessions.

    def _notified(self, event: str, session: Session, now: float) -> None:
        realm = session.realm
        if realm is None or not _accounted(realm):
            return
        if event == "start":
            self._start(session, realm, now)
        elif event == "stop":
            self._stop(session, realm, now)
        elif event == "change":
            self._change(session, realm, now)

    def _key(self, session: Session) -> int:
        return session_key(self._engine.boot, session.id)

    def _start(self, session: Session, realm: Realm, now: float) -> None:
        key, wall, interval = self._key(session), self._wall(), _interval(session, realm)
        facts = records.facts(session, self._radius)
        self._spool.open(key, Open(realm.name, wall, interval, facts))
        self.delivery.add(realm.name, key, START, int(wall), records.start(int(wall), facts), _flow(session))
        self._open += 1
        self._rouse()
        if interval:
            self._interims.add(session.id, self._spread(interval, now))
        self._checks.add(session.id, int(now) + FIRST)

    def _stop(self, session: Session, realm: Realm, now: float) -> None:
        """The Stop is written now, and sent when the last packets have been counted."""
        key, event, seconds = self._key(session), int(self._wall()), _age(session, now)
        facts = self._facts(session, key)
        stop = records.usage(STOP, event, facts, seconds, session.counters(), session.cause)
        record = self.delivery.add(realm.name, key, STOP, event, stop, hold=True)
        if not self._ended.waiting:
            self._wheel.arm(self._ended, now + SETTLE)
        self._ended.waiting.append((session, record, facts, seconds))
        self._spool.shut(key)
        self._open -= 1
        self._interims.forget(session.id)
        self._checks.forget(session.id)

    def _change(self, session: Session, realm: Realm, now: float) -> None:
        """Its records are to say something else from now on, or come at another pace, or its data path is another."""
        key, old, interval = self._key(session), self._spool.session(self._key(session)), _interval(session, realm)
        facts = records.facts(session, self._radius)
        since = self._wall() - _age(session, now) if old is None else old.since
        if old is None or (old.facts, old.interval) != (facts, interval):
            self._spool.open(key, Open(realm.name, since, interval, facts))
        self._check(session, now)
        self.delivery.soon()
        if old is None or old.interval != interval:
            self._interims.move(session.id, self._spread(interval, now) if interval else 0)

    def _facts(self, session: Session, key: int) -> bytes:
        known = self._spool.session(key)
        return records.facts(session, self._radius) if known is None else known.facts

    def _interim(self, session: Session, realm: Realm, now: float) -> None:
        key, event = self._key(session), int(self._wall())
        used = self._check(session, now)
        record = records.usage(INTERIM_UPDATE, event, self._facts(session, key), used.seconds, used.counters)
        self.delivery.add(realm.name, key, INTERIM_UPDATE, event, record, _flow(session))

    def _check(self, session: Session, now: float) -> Used:
        """Write down what a session has used."""
        used = Used(
            self._wall(),
            _age(session, now),
            session.flow is not None,
            session.counters(),
            session.closed_counters(),
        )
        self._spool.use(self._key(session), used)
        return used

    def _spread(self, interval: int, now: float) -> int:
        """A second within the coming *interval*, any of them."""
        return int(now) + 1 + int.from_bytes(self._random(4), "big") % interval

    def _renewed(self) -> None:
        """The spool has begun anew: a session that is not in it would have no Stop if we died."""
        now, wall = self._clock(), self._wall()
        for session in self._engine.sessions.values():
            realm = _open_in(session)
            if realm is not None:
                facts, since = records.facts(session, self._radius), wall - _age(session, now)
                self._spool.open(self._key(session), Open(realm.name, since, _interval(session, realm), facts))
                self._check(session, now)
        self.delivery.renewed()

    # Once a second.

    def _rouse(self) -> None:
        """See to it, as long as there is anything to see to."""
        if (self.delivery.lanes or self._open) and not self.due:
            self._wheel.arm(self, self._clock() + 1)

    def expire(self, now: float) -> None:
        self._rouse()
        sessions = self._engine.sessions
        left = MAX_INTERIMS
        for ppp_id, second in self._interims.due(now):
            session = sessions.get(ppp_id)
            realm = _open_in(session)
            if session is None or realm is None:
                continue
            interval = _interval(session, realm)
            self._interims.add(ppp_id, _next(second, interval, now))
            self._interim(session, realm, now)
            left -= 1
            if not left:
                break
        left = MAX_CHECKS
        for ppp_id, second in self._checks.due(now):
            session = sessions.get(ppp_id)
            if session is None or _open_in(session) is None:
                continue
            kernel = isinstance(session.flow, UserFlow) and session.flow.carried
            pace = CHECK if kernel else QUICK
            if _age(session, now) > 2 * FIRST:
                self._checks.add(ppp_id, _next(second, pace, now))
            else:
                self._checks.add(ppp_id, self._spread(pace, now))
                if kernel and not any(session.closed_counters()):
                    continue
            self._check(session, now)
            left -= 1
            if not left:
                break
        if self._open:
            self._spool.alive(self._wall())
        self.delivery.tick(now)


class _Ended(Timed):
    """Sessions that have ended this moment."""

    __slots__ = ("_accountant", "waiting")

    def __init__(self, accountant: Accountant) -> None:
        super().__init__()
        self._accountant = accountant
        #: With their Stops as they are written, and what those were made of.
        self.waiting: list[tuple[Session, Record, bytes, float]] = []

    def expire(self, now: float) -> None:
        waiting, self.waiting = self.waiting, []
        for session, record, facts, seconds in waiting:
            stop = records.usage(STOP, record.event, facts, seconds, session.final_counters(), session.cause)
            self._accountant.delivery.let_go(record, stop, _flow(session))


def _recovered(left: Abandoned, leftovers: Leftovers, wall: float) -> tuple[Counters, float]:
    """What an abandoned session has used, and until when, in seconds since the Epoch."""
    used = left.used
    kept, until = (leftovers.open.get(left.ppp_id), wall) if left.latest else (None, wall)
    if kept is None:
        until = left.alive
        # Of a data path that was closed when that was written down, all is in it.
        kept = leftovers.closed.get(left.ppp_id) if left.latest and used.flowing else None
    if kept is None:
        return used.counters, until
    return Counters(*map(max, used.counters, used.closed.plus(kept))), until


def _accounted(realm: Realm) -> bool:
    return realm.type == "radius" and bool(realm.accounting.servers)


def _open_in(session: Session | None) -> Realm | None:
    """The realm that a session has had a Start in, and no Stop."""
    if session is None or session.up_since is None or session.realm is None:
        return None
    realm = session.realm
    return realm if _accounted(realm) else None


def _interval(session: Session, realm: Realm) -> int:
    """Seconds between interim records; 0: there are none."""
    own = session.profile.interim
    return realm.accounting_interim if own is None else own


def _next(second: int, interval: int, now: float) -> int:
    """The next time, without those that we were too late for."""
    return max(second + interval, int(now) + 1)


def _age(session: Session, now: float) -> float:
    """Seconds that it has lasted."""
    return 0.0 if session.up_since is None else now - session.up_since


def _flow(session: Session) -> str:
    """New records of different tunnels take turns."""
    return session.tunnel.name
