"""One RADIUS server: its health, its sockets and identifiers, and who waits for them."""

from __future__ import annotations

import errno
import logging
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ...config.model import Address
from ...cursor import Malformed
from ...wheel import Timed, Wheel
from .packet import Code, Pair, Received, encode_request, parse, verify_reply

log = logging.getLogger("npppy.radius")

Kind = Literal["auth", "acct"]

#: Identifiers that a socket has.
IDENTIFIERS: Final = 256
#: Seconds after which a socket that is not used is closed.
IDLE: Final = 60.0
#: Seconds between two questions to a dead server, more or less (RFC 5997 section 4.2).
PROBE_INTERVAL: Final = 10.0
#: Seconds after which a server that has answered nothing may as well have gone.
SILENT: Final = 1.0
#: Seconds between two lines of the log on replies that do not count.
QUIET: Final = 10.0

# The datagram is lost, as it might be on any path; the server may be well.
_PASSING = frozenset((errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM))
_NEVER = float("-inf")
# What a round trip weighs in the average, as TCP has it (RFC 6298 section 2).
_WEIGHT = 1 / 8
_REPLIES = {
    Code.ACCESS_REQUEST: frozenset((Code.ACCESS_ACCEPT, Code.ACCESS_REJECT, Code.ACCESS_CHALLENGE)),
    Code.ACCOUNTING_REQUEST: frozenset((Code.ACCOUNTING_RESPONSE,)),
    # RFC 5997 section 2.1: what the port answers to.
    Code.STATUS_SERVER: frozenset((Code.ACCESS_ACCEPT, Code.ACCESS_REJECT, Code.ACCOUNTING_RESPONSE)),
}


class Receiver(Protocol):
    """What a socket calls."""

    def received(self, data: bytes, now: float) -> None:
        """A datagram from the server.  Whatever it holds, this does not raise."""

    def unreachable(self, error: int, now: float) -> None:
        """Something that was sent did not get there; *error* is an errno."""


class Socket(Protocol):
    """A socket connected to a server."""

    #: Where requests come from.
    local: Address

    def send(self, data: bytes) -> int:
        """Returns 0 or the error's number, which may be of a datagram before."""

    def close(self) -> None:
        """The receiver is not called any more."""


#: (address, port, source, receiver).  Raises :class:`OSError`.
OpenSocket = Callable[[Address, int, Address | None, Receiver], Socket]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """A server, for who looks on."""

    kind: Kind
    address: Address
    port: int
    #: "up", "dead", or "probing": dead, and asked if it is there again.
    state: str
    #: Of the epoch, when that began; 0: nothing is known of the server yet.
    since: float
    #: Milliseconds of a round trip, on average and of the last one; 0: there was none.
    rtt_ms: float
    last_rtt_ms: float
    requests: int
    retransmissions: int
    answers: int
    accepts: int
    rejects: int
    challenges: int
    #: Requests that none of their transmissions had an answer.
    timeouts: int
    #: Replies that did not count, and transmissions that failed, by reason.
    bad: dict[str, int]
    #: Requests under way, those that wait for their turn, and sockets.
    outstanding: int
    queued: int
    sockets: int


@dataclass(frozen=True, slots=True)
class Context:
    """What all servers share.  *wall* is the time of day, in seconds of the epoch."""

    wheel: Wheel
    random: Callable[[int], bytes]
    open_socket: OpenSocket
    wall: Callable[[], float]
    #: The attributes that name this NAS, in the packets of a socket with such an address.
    nas: Callable[[Address], list[Pair]]
    #: A server that nothing holds any more.
    idle: Callable[[Server], None]


class Transaction(Timed):
    """A request at one server, from its turn in the queue to its end there."""

    __slots__ = (
        "authenticator",
        "channel",
        "code",
        "data",
        "first_sent",
        "flow",
        "identifier",
        "last_sent",
        "sent",
        "server",
        "timeout",
    )

    def __init__(self, code: Code, flow: Hashable, timeout: float) -> None:
        super().__init__()
        self.code = code
        self.flow = flow
        #: Seconds that a transmission waits for its answer.
        self.timeout = timeout
        #: None: it is at none.
        self.server: Server | None = None
        #: None: it waits for its turn.
        self.channel: Channel | None = None
        self.identifier = 0
        self.data = self.authenticator = b""
        self.sent = 0
        self.first_sent = self.last_sent = 0.0

    #: Whether a reply needs a Message-Authenticator.
    require: bool
    #: Seconds that the server is left alone if it is silent.
    dead_time: float
    #: When it ends, wherever it is.
    deadline: float

    @abstractmethod
    def pairs(self, now: float) -> list[Pair]:
        """What is sent."""

    @abstractmethod
    def answered(self, reply: Received, now: float) -> None:
        """A reply that counts.  Raises :class:`Malformed` for one that does not after all."""

    @abstractmethod
    def lost(self, reason: str, now: float) -> None:
        """Nothing can be had from the server; the transaction has left it."""

    @abstractmethod
    def moved(self, server: Server, now: float) -> None:
        """*server* died before this was sent; it has left it."""

    @abstractmethod
    def unfit(self, reason: str, now: float) -> None:
        """No packet can be made of it; the transaction has left the server."""


class _Prober(Transaction):
    """Status-Server, as long as a server is dead (RFC 5997)."""

    __slots__ = ("active", "enabled", "heard", "of")

    dead_time = 0.0
    deadline = float("inf")
    # FreeRADIUS 3.2.1 signs no answer to it; who forges one makes us try a server in vain.
    require = False

    def __init__(self, of: Server) -> None:
        super().__init__(Code.STATUS_SERVER, None, PROBE_INTERVAL)
        self.of = of
        #: Whether the configuration wants it.
        self.enabled = False
        self.active = False
        #: Whether the server has ever answered.  Many do not know it, and are tried by requests instead.
        self.heard = False

    def configure(self, enabled: bool, now: float) -> None:
        """Take over whether it is wanted."""
        self.enabled = enabled
        if not enabled:
            self.stop()
            self.heard = False
        elif self.of.dead and not self.active:
            self.start(now)

    def start(self, now: float) -> None:
        """The server has died."""
        if self.enabled:
            self.active = True
            self._later(now)

    def stop(self) -> None:
        """The server is alive, or of no interest any more."""
        self.active = False
        self.of.unprobe()

    def _later(self, now: float) -> None:
        # All that have lost the same server do not come at once (RFC 5080 section 2.2.1).
        self.timeout = PROBE_INTERVAL * (0.75 + self.of.context.random(1)[0] / 512)
        self.of.context.wheel.arm(self, now + self.timeout)

    def expire(self, now: float) -> None:
        self.of.unprobe()
        self._later(now)
        self.of.probe(now)

    def pairs(self, now: float) -> list[Pair]:
        return []

    def answered(self, reply: Received, now: float) -> None:
        self.heard = True

    def lost(self, reason: str, now: float) -> None:
        self._later(now)

    def moved(self, server: Server, now: float) -> None:
        """It never waits for a turn."""

    def unfit(self, reason: str, now: float) -> None:
        self._later(now)


class Channel:
    """A socket and its identifiers."""

    __slots__ = ("cooling", "free", "pending", "retired", "server", "socket", "used")

    def __init__(self, server: Server, source: Address | None, now: float) -> None:
        """Raises :class:`OSError`."""
        self.server = server
        self.pending: dict[int, Transaction] = {}
        # Longest free first.
        self.free = deque(range(IDENTIFIERS))
        # Those that an answer may still come for, and until when.
        self.cooling: deque[tuple[float, int]] = deque()
        #: Nothing new is sent by it.
        self.retired = False
        self.used = now
        self.socket = server.context.open_socket(server.address, server.port, source, self)

    def received(self, data: bytes, now: float) -> None:
        self.server.received(self, data, now)

    def unreachable(self, error: int, now: float) -> None:
        self.server.unreachable(self, error, now)

    def thaw(self, now: float) -> None:
        """Free the identifiers that no answer can come for any more."""
        cooling = self.cooling
        while cooling and cooling[0][0] <= now:
            self.free.append(cooling.popleft()[1])


class Server(Timed):
    """A server of one kind, "auth" or "acct".

    Its timer looks after its sockets.  Transactions are started in turns of their flows; each of them ends in exactly
    one of its calls, or in :meth:`withdraw`.
    """

    __slots__ = (
        "_channels",
        "_flows",
        "_heard",
        "_noted",
        "_pumping",
        "_quiet",
        "_retired",
        "_rtt",
        "_rtt_last",
        "_since",
        "_trial",
        "address",
        "bad",
        "closed",
        "context",
        "counts",
        "dead",
        "dead_until",
        "died",
        "key",
        "kind",
        "limit",
        "outstanding",
        "port",
        "prober",
        "queued",
        "secret",
        "source",
        "wanted",
    )

    def __init__(
        self,
        context: Context,
        key: Hashable,
        kind: Kind,
        address: Address,
        port: int,
        secret: bytes,
        source: Address | None,
    ) -> None:
        super().__init__()
        self.context = context
        self.key = key
        self.kind: Kind = kind
        self.address = address
        self.port = port
        self.secret = secret
        self.source = source
        #: Transactions at once.
        self.limit = 1
        #: Whether the configuration names it.
        self.wanted = False
        #: Whether :meth:`close` has been called, and nothing since.
        self.closed = False
        #: Whether it has been silent; :attr:`died` says since when.
        self.dead = False
        self.died = self.dead_until = 0.0
        self.prober = _Prober(self)
        self.outstanding = self.queued = 0
        self.counts: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self._channels: list[Channel] = []
        self._retired: set[Channel] = set()
        # Who waits, by flow; a flow goes to the end of the row when it has had its turn.
        self._flows: dict[Hashable, dict[Transaction, None]] = {}
        self._pumping = False
        # The request that looks whether a dead server is there again.
        self._trial: Transaction | None = None
        self._heard = _NEVER
        self._since = self._rtt = self._rtt_last = 0.0
        self._quiet = _NEVER
        self._noted = 0

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    # Transactions

    def submit(self, transaction: Transaction, now: float) -> None:
        """Send it, or let it wait for its turn."""
        transaction.server = self
        transaction.channel = None
        transaction.sent = 0
        if self.dead and self._trial is None:
            self._trial = transaction
        self._flows.setdefault(transaction.flow, {})[transaction] = None
        self.queued += 1
        self.context.wheel.arm(transaction, transaction.deadline)
        self._pump(now)

    def withdraw(self, transaction: Transaction) -> None:
        """It is of no interest any more; an answer may still come."""
        self._leave(transaction, cool=True)
        # The time is not known here.
        self.context.wheel.arm(self, 0.0)

    def time_out(self, transaction: Transaction, now: float, *, tries: int) -> str:
        """The time of a transmission, or of the whole of it, is over: send it again, or let it leave.

        Returns "" or why it has left.
        """
        late = now >= transaction.deadline
        if transaction.channel is None:
            self._leave(transaction)
            return f"no turn at {self}"
        if not late and transaction.sent < tries:
            self.counts["retransmissions"] += 1
            self._transmit(transaction, now)
            self._pump(now)
            return ""
        self.counts["timeouts"] += 1
        self._leave(transaction, cool=late)
        # One transmission, cut short, proves nothing.
        if self._heard < transaction.first_sent and (not late or transaction.sent > 1):
            self._die("no answer", transaction.dead_time, now)
        self._pump(now)
        return f"no answer from {self}"

    def _pump(self, now: float) -> None:
        """Start those that may be, one of each flow in turn."""
        # What starting one brings about must not start others within: there may be thousands.
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._flows and self.outstanding < self.limit:
                flow = next(iter(self._flows))
                waiting = self._flows.pop(flow)
                transaction = next(iter(waiting))
                del waiting[transaction]
                if waiting:
                    self._flows[flow] = waiting
                self.queued -= 1
                self._start(transaction, now)
        finally:
            self._pumping = False

    def _start(self, transaction: Transaction, now: float) -> None:
        try:
            channel = self._channel(now)
        except OSError as error:
            self._fail(transaction, error.errno or -1, now)
            return
        self.outstanding += 1
        self.counts["requests"] += 1
        self._begin(transaction, channel, now)

    def _begin(self, transaction: Transaction, channel: Channel, now: float) -> None:
        """Give it an identifier of *channel*, and send it."""
        context = self.context
        transaction.server, transaction.channel = self, channel
        identifier = transaction.identifier = channel.free.popleft()
        channel.pending[identifier] = transaction
        channel.used = now
        reason = "attributes failed"
        data = b""
        try:
            pairs = transaction.pairs(now) + context.nas(channel.socket.local)
            data = encode_request(transaction.code, identifier, context.random(16), pairs, self.secret)
        except ValueError as error:
            reason = str(error)
        except Exception:
            # A mistake in one login must not stop the others.
            log.exception("radius server=%s Request of %s failed", self, type(transaction).__name__)
        if not data:
            self._leave(transaction)
            transaction.unfit(reason, now)
            return
        transaction.data = data
        # Also where it was computed (RFC 2866 section 3).
        transaction.authenticator = data[4:20]
        transaction.sent = 0
        transaction.first_sent = now
        self._transmit(transaction, now)

    def _transmit(self, transaction: Transaction, now: float) -> None:
        channel = transaction.channel
        assert channel is not None
        transaction.sent += 1
        transaction.last_sent = now
        self.context.wheel.arm(transaction, min(now + transaction.timeout, transaction.deadline))
        error = channel.socket.send(transaction.data)
        if error:
            name = errno.errorcode.get(error, "error")
            self.bad[f"send-{name}"] += 1
            if error == errno.ECONNREFUSED:
                # What ICMP has said of a datagram before.
                self._abandon(channel, error, now)
            elif error not in _PASSING:
                self._retire(channel)
                self._fail(transaction, error, now)

    def _leave(self, transaction: Transaction, *, cool: bool = False) -> None:
        """Let go of its identifier, or of its place in the queue; its timer stops.

        With *cool* the identifier is not used again while an answer may come.
        """
        self.context.wheel.disarm(transaction)
        if self._trial is transaction:
            self._trial = None
        channel, transaction.server, transaction.channel = transaction.channel, None, None
        if channel is None:
            waiting = self._flows.get(transaction.flow, {})
            if transaction in waiting:
                del waiting[transaction]
                self.queued -= 1
                if not waiting:
                    del self._flows[transaction.flow]
            return
        identifier = transaction.identifier
        del channel.pending[identifier]
        if transaction is not self.prober:
            self.outstanding -= 1
        if channel.retired:
            if not channel.pending:
                self._close(channel)
        elif cool:
            channel.cooling.append((transaction.last_sent + transaction.timeout, identifier))
        else:
            channel.free.append(identifier)

    def _fail(self, transaction: Transaction, error: int, now: float) -> None:
        """Nothing that is sent now gets there."""
        began = transaction.first_sent if transaction.sent else now
        reason = errno.errorcode.get(error, "error")
        self._leave(transaction)
        if self._heard < began:
            self._die(reason, transaction.dead_time, now)
        transaction.lost(f"{reason} at {self}", now)

    # Sockets

    def _channel(self, now: float) -> Channel:
        """One with a free identifier.  Raises :class:`OSError`."""
        channels = self._channels
        for channel in channels:
            if channel.free:
                return channel
            channel.thaw(now)
            if channel.free:
                return channel
        # With twice as many identifiers as there may be transactions, one that is not used is always found.
        room = len(channels) < 2 * -(-self.limit // IDENTIFIERS)
        if room:
            try:
                return self._open(now)
            except OSError:
                if not any(channel.cooling for channel in channels):
                    raise
        # A late answer to who had it before does not pass for ours: its authenticator is another.
        channel = min((channel for channel in channels if channel.cooling), key=lambda channel: channel.cooling[0])
        channel.free.append(channel.cooling.popleft()[1])
        return channel

    def probe(self, now: float) -> None:
        """Ask if it is there again, by a new socket: what is wrong may be the old one's address or port."""
        self._retire_all()
        try:
            channel = self._open(now)
        except OSError as error:
            self.prober.lost(errno.errorcode.get(error.errno or -1, "error"), now)
            return
        self._begin(self.prober, channel, now)

    def unprobe(self) -> None:
        """Give up what was asked."""
        self._leave(self.prober)

    def _open(self, now: float) -> Channel:
        """One more socket.  Raises :class:`OSError`."""
        channel = Channel(self, self.source, now)
        self._channels.append(channel)
        if not self.due:
            self.context.wheel.arm(self, now + IDLE)
        return channel

    def _retire_all(self) -> None:
        """Send nothing by the sockets that there are: an address, a route, a state of a firewall may have gone."""
        for channel in list(self._channels):
            self._retire(channel)

    def _retire(self, channel: Channel) -> None:
        if not channel.retired:
            channel.retired = True
            self._channels.remove(channel)
            if channel.pending:
                self._retired.add(channel)
            else:
                channel.socket.close()

    def _close(self, channel: Channel) -> None:
        self._retired.discard(channel)
        channel.socket.close()

    def received(self, channel: Channel, data: bytes, now: float) -> None:
        """A datagram has come."""
        try:
            reply = parse(data)
        except Malformed as error:
            self._discard("malformed", str(error), now)
            return
        transaction = channel.pending.get(reply.identifier)
        if transaction is None:
            self._discard("unexpected", "", now)
            return
        if reply.code not in _REPLIES[transaction.code]:
            self._discard("code", reply.code.name, now)
            return
        why = verify_reply(reply, transaction.authenticator, self.secret, require=transaction.require)
        if why:
            self._discard(why, "", now)
            return
        self._heard = now
        self._revive()
        accepted = False
        try:
            transaction.answered(reply, now)
            accepted = True
        except Malformed as error:
            self._discard("attribute", str(error), now)
        except Exception:
            # A mistake in one login must not stop the others; its identifier is free again.
            log.exception("radius server=%s Answer to %s failed", self, type(transaction).__name__)
            accepted = True
        if accepted:
            if transaction is not self.prober:
                self._count(reply, transaction, now)
            # Within the call it may have been withdrawn.
            if channel.pending.get(transaction.identifier) is transaction:
                self._leave(transaction, cool=transaction.sent > 1)
            self._pump(now)
            self.rest()

    def _count(self, reply: Received, transaction: Transaction, now: float) -> None:
        counts = self.counts
        counts["answers"] += 1
        counts[reply.code.name] += 1
        # Which of several transmissions has been answered, nobody knows.
        if transaction.sent == 1:
            rtt = self._rtt_last = now - transaction.last_sent
            self._rtt = rtt if not self._rtt else self._rtt + (rtt - self._rtt) * _WEIGHT

    def _discard(self, why: str, what: str, now: float) -> None:
        self.bad[why] += 1
        self._noted += 1
        if now >= self._quiet:
            self._quiet = now + QUIET
            detail = f" what={what}" if what else ""
            log.info("radius server=%s Reply discarded reason=%s%s replies=%d", self, why, detail, self._noted)
            self._noted = 0

    def unreachable(self, channel: Channel, error: int, now: float) -> None:
        """Something that went out by *channel* did not get there: so it is with all that did."""
        self.bad["unreachable-" + errno.errorcode.get(error, "error")] += 1
        self._abandon(channel, error, now)
        self._pump(now)
        self.rest()

    def _abandon(self, channel: Channel, error: int, now: float) -> None:
        pending = list(channel.pending.values())
        self._retire(channel)
        for transaction in pending:
            # What happens to one may have ended another.
            if transaction.channel is channel:
                self._fail(transaction, error, now)

    # Health

    def usable(self, now: float) -> bool:
        """Whether a request may go to it: it is not dead, or dead for long, and nobody looks if it still is."""
        return not self.dead or (now >= self.dead_until and self._trial is None and not self.prober.heard)

    def lag(self, now: float) -> float:
        """Seconds that the last of those in the queue will wait for its turn.

        0 if the server is silent: that is not for want of time, and nobody knows how long it will take.
        """
        return self.queued * self._rtt / self.limit if now < self._heard + SILENT else 0.0

    def _die(self, reason: str, dead_time: float, now: float) -> None:
        self.dead_until = max(self.dead_until, now + dead_time)
        if self.dead:
            return
        self.dead, self.died, self._since = True, now, self.context.wall()
        log.warning('radius server=%s kind=%s Dead reason="%s"', self, self.kind, reason)
        self._retire_all()
        self.prober.start(now)
        waiting = [transaction for flow in self._flows.values() for transaction in flow]
        for transaction in waiting:
            self._leave(transaction)
        for transaction in waiting:
            transaction.moved(self, now)

    def _revive(self) -> None:
        if not self._since:
            self._since = self.context.wall()
        if self.dead:
            self.dead, self._since = False, self.context.wall()
            log.warning("radius server=%s kind=%s Alive", self, self.kind)
            self.prober.stop()

    # Its own time

    def expire(self, now: float) -> None:
        """Close sockets that are of no use, and start what could not be before."""
        for channel in list(self._channels):
            channel.thaw(now)
            if not channel.pending and now >= channel.used + IDLE:
                self._retire(channel)
        self._pump(now)
        if self._channels and not self.due:
            self.context.wheel.arm(self, now + IDLE / 2)
        self.rest()

    def rest(self) -> None:
        """It has done something; perhaps that was the last of it."""
        if not self.wanted and not self.outstanding and not self.queued:
            self.context.idle(self)

    def close(self) -> None:
        """Forget all; nothing is called any more."""
        wheel = self.context.wheel
        self.closed = True
        self.prober.stop()
        wheel.disarm(self)
        for flow in self._flows.values():
            for transaction in flow:
                wheel.disarm(transaction)
                transaction.server = None
        self._flows.clear()
        for channel in [*self._channels, *self._retired]:
            for transaction in channel.pending.values():
                wheel.disarm(transaction)
                transaction.server = transaction.channel = None
            channel.pending.clear()
            channel.socket.close()
        self._channels.clear()
        self._retired.clear()
        self.outstanding = self.queued = 0

    def state(self) -> ServerState:
        """For who looks on."""
        counts = self.counts
        return ServerState(
            kind=self.kind,
            address=self.address,
            port=self.port,
            state="up" if not self.dead else "probing" if self.prober.active else "dead",
            since=self._since,
            rtt_ms=round(self._rtt * 1000, 3),
            last_rtt_ms=round(self._rtt_last * 1000, 3),
            requests=counts["requests"],
            retransmissions=counts["retransmissions"],
            answers=counts["answers"],
            accepts=counts["ACCESS_ACCEPT"],
            rejects=counts["ACCESS_REJECT"],
            challenges=counts["ACCESS_CHALLENGE"],
            timeouts=counts["timeouts"],
            bad=dict(self.bad),
            outstanding=self.outstanding,
            queued=self.queued,
            sockets=len(self._channels) + len(self._retired),
        )
