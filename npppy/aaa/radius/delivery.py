"""Brings what is in the spool to the servers, at least once and in order.

Realms that share an accounting server share a *lane*.  Through a lane that is up go

- new records at once, where none of their session wait and the lane has no barrier;
- the backlog, a bounded number at a time, from the oldest on;
- those that were sent in vain, once they are due.

A record that has failed, as has all that left after it, takes the lane down; then a probe at a time goes, each another
record, until any is answered.  One that has failed while a later one was answered has only itself to blame.  After
some attempts its session and the barriers do not wait for it any more; it is tried on, with the longest pause.

Accounting-On and -Off are barriers: what is older goes before them, what is younger after (RFC 2866 section 5.1: for
the server they end every session that there is).  One that is never answered would keep all others back, and so would
a record before it.  That is found out by a *herald*: a younger record that is sent after it, and once more in its turn.
The barrier is given up then, since late it does harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Final

from ...config.model import RadiusServers
from .lanes import FIRST_PAUSE, Flight, Lane, LaneState, groups
from .spool import ACCOUNTING_ON, INTERIM_UPDATE, START, Record, Spool

if TYPE_CHECKING:
    from .client import Client

log = logging.getLogger("npppy.radius")

#: New records of a lane that are under way at once; those beyond are backlog.
FRESH: Final = 1024
#: Records of the backlog that are under way at once, over all lanes, and those among them that were sent in vain.
WINDOW: Final = 64
RETRIES: Final = 32
#: Records of the backlog in a second: some tenths of a processor, the rest is for logins.
RATE: Final = 5000
#: Rows of the queue that are gone through in one turn of the loop.
ROWS: Final = 512
#: Seconds from an attempt to the next, the first and the longest, of a record; and the longest of a lane that is down.
PAUSE: Final = (5.0, 60.0)
PROBE_PAUSE: Final = 10.0
#: Attempts, while the server has answered others, after which nothing waits for a record.
PATIENCE: Final = 5
#: Attempts in vain, one after the other, after which a herald goes along, if there is a barrier; and those at the
#: barrier, while the herald is answered, before it is given up.
HERALD: Final = 2
BARRIER_PATIENCE: Final = 3
#: Seconds that a record may wait for its turn, besides what all tries at all servers take.
_TURN: Final = 60.0


class Delivery:
    """All lanes.  *wall* tells the seconds since the Epoch, *clock* the time on the monotonic clock.

    *later* calls what it is given at the end of this turn of the event loop.
    """

    def __init__(
        self,
        spool: Spool,
        client: Client,
        wall: Callable[[], float],
        clock: Callable[[], float],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.spool = spool
        self.wall = wall
        self.lanes: list[Lane] = []
        #: Records that wait, beyond which an interim record takes the place of those before.
        self.limit = 0
        #: Records delivered, attempts that failed, and records that were given up for something better.
        self.delivered = self.failures = self.replaced = 0
        self._client = client
        self._clock = clock
        self._later = later
        self._lane_of: dict[str, Lane] = {}
        # New ones that are not written yet.
        self._new: list[tuple[Lane, Record, Hashable]] = []
        # Not to be sent yet, by their number.
        self._held: dict[int, Record] = {}
        # Sessions whose next record is not left to the scan.
        self._next: list[tuple[Lane, str, int]] = []
        self._catching = 0
        # Records of the backlog that may yet be sent in this second.
        self._tokens = RATE
        self._at = 0.0
        self._scheduled = False

    # From the accountant.

    def configure(self, realms: Mapping[str, RadiusServers]) -> None:
        """Take the realms with accounting servers."""
        old, self.lanes, self._lane_of = self.lanes, [], {}
        barriers = self.spool.barriers()
        for names in groups(realms):
            conf = {name: realms[name] for name in names}
            lane = next((lane for lane in old if lane.realms.keys() == conf.keys()), None)
            if lane is None:
                lane = Lane(conf)
                lane.barriers = [record for record in barriers if record.realm in conf]
                self._count(lane)
                self._wake(lane)
            changed, lane.realms = lane.realms != conf, conf
            if changed and lane.down:
                self._up(lane)
            self.lanes.append(lane)
            for name in names:
                self._lane_of[name] = lane
        for lane in old:
            if lane not in self.lanes:
                self._stop(lane)
        # Those of other lanes are found by the scan.
        self._new = [entry for entry in self._new if entry[0] in self.lanes]
        self._next = [entry for entry in self._next if entry[0] in self.lanes]
        for name, count in self.spool.depth.items():
            if count and name not in self._lane_of:
                log.warning("realm %s has no accounting server any more, records=%d wait for one", name, count)
        self.soon()

    def add(
        self, realm: str, key: int, kind: int, event: int, attributes: bytes, flow: Hashable = None, hold: bool = False
    ) -> Record:
        """A new record, to be sent as soon as may be; with *hold*, once it is :meth:`let_go`."""
        spool, lane = self.spool, self._lane_of.get(realm)
        if kind == INTERIM_UPDATE and self.limit and spool.depth.total() >= self.limit:
            for record in spool.of_session(realm, key):
                if record.kind == kind and not (lane is not None and self._aloft(lane, record)):
                    self.replaced += 1
                    self._done(lane, record)
        record = spool.add(realm, key, kind, event, attributes)
        self.soon()
        if hold:
            self._held[record.seq] = record
        elif lane is not None:
            if kind >= ACCOUNTING_ON:
                lane.barriers.append(record)
                lane.caught = False
                if len(lane.barriers) == 1:
                    self._count(lane)
            self._new.append((lane, record, flow))
        return record

    def let_go(self, record: Record, attributes: bytes, flow: Hashable) -> None:
        """Send a record that was held, with other attributes perhaps."""
        del self._held[record.seq]
        if attributes != record.attributes:
            record = record._replace(attributes=attributes)
            self.spool.put(record)
        lane = self._lane_of.get(record.realm)
        if lane is None:
            return
        if record.seq <= lane.cursor:
            # The scan has passed it by.
            self._next.append((lane, record.realm, record.key))
        else:
            self._new.append((lane, record, flow))
        self.soon()

    def soon(self) -> None:
        """There is something to do before the loop waits."""
        if not self._scheduled:
            self._scheduled = True
            self._later(self._turn)

    def tick(self, now: float) -> None:
        """To be called about once a second."""
        self._tokens = RATE
        before, self._at = self._at, self.wall()
        if self._at < before:
            # The clock of the machine has been set back: what is due then would wait for that.
            for lane in self.lanes:
                self._wake(lane)
        alive = {
            (state.address, state.port)
            for state in (self._client.state() if any(lane.down for lane in self.lanes) else ())
            if state.kind == "acct" and state.state == "up"
        }
        for lane in self.lanes:
            if lane.down and not alive.isdisjoint(lane.servers):
                # It has answered something: it is there again, whatever comes of our records.
                self._up(lane)
            lane.eager = True
        self.soon()

    @property
    def busy(self) -> bool:
        """Does a server take records at present, and is there one left for it?"""
        return bool(self._new or self._held) or any(
            not lane.down and (lane.flying or lane.barriers or not lane.caught) for lane in self.lanes
        )

    def state(self) -> list[LaneState]:
        return [
            LaneState(
                realms=tuple(lane.realms),
                down=lane.down,
                outstanding=len(lane.flying) + (lane.herald is not None),
                answers=lane.answers,
                barrier=bool(lane.barriers),
            )
            for lane in self.lanes
        ]

    def renewed(self) -> None:
        """The file has taken all with it, but for what we have."""
        records = dict(self._held)
        for lane in self.lanes:
            records |= {flight.record.seq: flight.record for flight in lane.flying.values()}
            records |= {record.seq: record for record in lane.barriers}
        for record in records.values():
            self.spool.restore(record)
        for lane in self.lanes:
            self._count(lane)
        self.soon()

    def close(self) -> None:
        """Send nothing any more; what is not delivered stays in the spool."""
        for lane in self.lanes:
            self._stop(lane)
        self.lanes.clear()
        self._lane_of.clear()

    # From the client.

    def answered(self, flight: Flight, now: float) -> None:
        lane = flight.lane
        self._land(flight)
        lane.answers += 1
        lane.heard = max(lane.heard, flight.number)
        if lane.down:
            self._up(lane)
        if not flight.herald:
            self.delivered += 1
            lane.misses = 0
            self._done(lane, flight.record)
            if flight.followed:
                self._next.append((lane, flight.record.realm, flight.record.key))
        self.soon()

    def failed(self, flight: Flight, reason: str, now: float) -> None:
        lane, record = flight.lane, flight.record
        self._land(flight)
        self.soon()
        if flight.herald:
            return
        self.failures += 1
        lane.misses += 1
        life = lane.heard > flight.number
        if lane.down:
            if flight.probe:
                lane.probe_at = now + lane.pause
                lane.pause = min(lane.pause * 2, PROBE_PAUSE)
        elif not life:
            log.warning("accounting realm=%s No answer, records wait: %s", ",".join(lane.realms), reason)
            lane.down = True
            lane.pause = FIRST_PAUSE
            lane.probe_at = now + lane.pause
        tries = record.tries + life
        due = self.wall() + min(PAUSE[0] * 2 ** min(tries, 8), PAUSE[1])
        barrier = lane.barriers[0] if lane.barriers else None
        if barrier is not None and barrier.seq == record.seq:
            if tries >= BARRIER_PATIENCE:
                log.warning("accounting realm=%s No answer to Accounting-On or -Off, given up", record.realm)
                self._done(lane, record)
                return
            lane.barriers[0] = record = record._replace(tries=tries, due=due)
        elif tries == PATIENCE > record.tries:
            log.warning("accounting realm=%s record=%d No answer, others pass it: %s", record.realm, record.seq, reason)
            self._ahead(lane, record)
            # A session of its own.
            self._next.append((lane, record.realm, record.key))
            record = record._replace(key=-record.seq)
        self.spool.put(record._replace(tries=tries, due=due))

    # A turn of the loop.

    def _turn(self) -> None:
        self._scheduled = False
        now = self._clock()
        # Nothing is sent that would be forgotten.
        self.spool.flush(now)
        new, self._new = self._new, []
        for lane, record, flow in new:
            self._send_new(lane, record, flow, now)
        following, self._next = self._next, []
        for lane, realm, key in following:
            self._follow(lane, realm, key, now)
        for lane in self.lanes:
            if lane.eager:
                self._retry(lane, now)
            self._scan(lane, now)
            self._raise_barrier(lane, now)

    def _send_new(self, lane: Lane, record: Record, flow: Hashable, now: float) -> None:
        if lane.caught:
            other = lane.flying.get(record.key)
            if other is not None:
                other.followed = True
            elif not lane.down and lane.fresh < FRESH and not lane.barriers and self._first(record):
                self._fly(lane, record, flow, now, fresh=True)
            else:
                lane.caught = False
                return
            lane.cursor = max(lane.cursor, record.seq)
        elif (
            not lane.down
            and lane.fresh < FRESH
            and not lane.barriers
            and record.key not in lane.flying
            and self._first(record)
        ):
            # Past the backlog, which will find it under way or gone.
            self._fly(lane, record, flow, now, fresh=True)

    def _first(self, record: Record) -> bool:
        return record.kind == START or self.spool.first(record.realm, record.key) == record.seq

    def _follow(self, lane: Lane, realm: str, key: int, now: float) -> None:
        """What waits behind a record that is delivered, unless the scan comes to it anyway."""
        seq = self.spool.first(realm, key)
        if not seq or seq > lane.cursor or seq in self._held:
            return
        record = self.spool.get(seq)
        if record is None or record.due:
            return
        if key in lane.flying:
            lane.flying[key].followed = True
        elif lane.down:
            # The scan does not come back.
            self.spool.put(record._replace(due=self.wall()))
            self.soon()
        else:
            self._fly(lane, record, None, now)

    def _scan(self, lane: Lane, now: float) -> None:
        """Send the backlog, from where we are on."""
        if lane.caught or self._resting(lane, now):
            return
        limit = lane.limit
        room = 1 if lane.down else self._room
        rows = ROWS
        while room > 0 and not lane.caught and (limit is None or lane.cursor < limit - 1):
            if rows <= 0:
                self.soon()
                return
            count = min(rows, 2 * room + 8)
            rows -= count
            found, upto = self.spool.scan(lane.realms, lane.cursor, count)
            for record in found:
                if limit is not None and record.seq >= limit:
                    break
                lane.cursor = record.seq
                other = lane.flying.get(record.key)
                if record.seq in self._held:
                    continue
                if other is not None:
                    other.followed = True
                elif self.spool.first(record.realm, record.key) == record.seq:
                    self._fly(lane, record, None, now)
                    room -= 1
                    if not room:
                        return
            lane.cursor = upto if limit is None else min(upto, limit - 1)
            lane.caught = lane.cursor >= self.spool.last

    def _resting(self, lane: Lane, now: float) -> bool:
        """Must a lane that is down wait, for the next attempt or for the answer to this one?"""
        return lane.down and (now < lane.probe_at or len(lane.flying) > lane.retrying)

    def _retry(self, lane: Lane, now: float) -> None:
        """Send again what is due."""
        lane.eager = False
        if lane.down and now < lane.probe_at:
            return
        limit = lane.limit
        room = min((1 if lane.down else RETRIES) - lane.retrying, self._room)
        if room <= 0:
            return
        for record in self.spool.resting(lane.realms, self.wall(), RETRIES + lane.retrying):
            if record.kind >= ACCOUNTING_ON or (limit is not None and record.seq > limit):
                continue
            if record.key not in lane.flying and self.spool.first(record.realm, record.key) == record.seq:
                self._fly(lane, record, None, now)
                self._send_herald(lane, now)
                room -= 1
                if not room:
                    break

    def _raise_barrier(self, lane: Lane, now: float) -> None:
        """Send Accounting-On or -Off, if nothing is before it."""
        if not lane.barriers or lane.ahead:
            return
        barrier = lane.barriers[0]
        if barrier.key in lane.flying or barrier.due > self.wall() or (lane.down and now < lane.probe_at):
            return
        self._fly(lane, barrier, None, now)
        self._send_herald(lane, now)

    def _send_herald(self, lane: Lane, now: float) -> None:
        """See whether the server answers what has to wait."""
        if lane.barriers and lane.misses >= HERALD and lane.herald is None:
            found, _ = self.spool.scan(lane.realms, lane.barriers[0].seq, ROWS)
            herald = next((record for record in found if record.kind < ACCOUNTING_ON), None)
            if herald is not None:
                self._fly(lane, herald, None, now, herald=True)

    def _fly(
        self, lane: Lane, record: Record, flow: Hashable, now: float, *, fresh: bool = False, herald: bool = False
    ) -> None:
        servers = lane.realms[record.realm]
        deadline = now + servers.timeout * servers.max_tries * (1 + servers.max_failovers) + _TURN
        flight = Flight(self, lane, record, flow, deadline, fresh, herald)
        if herald:
            lane.herald = flight
        else:
            lane.flying[record.key] = flight
            lane.fresh += fresh
            lane.retrying += record.due > 0
            self._catching += not fresh
            self._tokens -= not fresh
        self._client.request(servers, "acct", flight, now)

    def _land(self, flight: Flight) -> None:
        lane = flight.lane
        if flight.herald:
            lane.herald = None
            return
        del lane.flying[flight.record.key]
        lane.fresh -= flight.fresh
        lane.retrying -= flight.record.due > 0
        self._catching -= not flight.fresh
        lane.eager |= flight.record.due > 0

    def _stop(self, lane: Lane) -> None:
        for flight in (*lane.flying.values(), *((lane.herald,) if lane.herald else ())):
            flight.cancel()
            self._land(flight)

    @property
    def _room(self) -> int:
        """How many records of the backlog may go."""
        return min(WINDOW - self._catching, self._tokens)

    def _up(self, lane: Lane) -> None:
        """Send as if it had never been down."""
        log.info("accounting realm=%s Answers again records=%d", ",".join(lane.realms), self._depth(lane))
        lane.down = False
        self._wake(lane)

    def _wake(self, lane: Lane) -> None:
        """Whatever is to be sent again is so at once."""
        lane.eager = True
        self.spool.wake(lane.realms)
        if lane.barriers:
            lane.barriers[0] = lane.barriers[0]._replace(due=min(lane.barriers[0].due, 1.0))

    def _depth(self, lane: Lane) -> int:
        return sum(self.spool.depth[name] for name in lane.realms)

    def _aloft(self, lane: Lane, record: Record) -> bool:
        flight = lane.flying.get(record.key)
        return flight is not None and flight.record.seq == record.seq

    # Barriers.

    def _done(self, lane: Lane | None, record: Record) -> None:
        """A record is not to be sent any more."""
        self.spool.done(record)
        if lane is None:
            return
        if lane.barriers and lane.barriers[0].seq == record.seq:
            del lane.barriers[0]
            self._count(lane)
        elif record.tries < PATIENCE:
            self._ahead(lane, record)

    def _ahead(self, lane: Lane, record: Record) -> None:
        """The first barrier does not wait for it any more."""
        if lane.barriers and record.seq < lane.barriers[0].seq:
            lane.ahead -= 1

    def _count(self, lane: Lane) -> None:
        if lane.barriers:
            lane.ahead = self.spool.count_before(lane.realms, lane.barriers[0].seq, PATIENCE)
