"""Dynamic authorization (RFC 5176): those who run the RADIUS servers end sessions and change them while they live.

They are the clients here and we are their server.  What is not authentic is discarded without a word; what is gets an
answer, and its retransmissions the same one.  A request whose keys have an index is served at once.  One whose keys
have none goes through all sessions, in slices: :meth:`Dae.work` does one, and is to be called while :attr:`Dae.busy`.

Each refusal has its Error-Cause (section 3.5):

401 Unsupported-Attribute: it may not be in such a request, or cannot change while a session lives.
402 Missing-Attribute: nothing says which session, or nothing is to be changed.
403 NAS-Identification-Mismatch: another NAS is meant.
404 Invalid-Request: an attribute has not the length of its type, or is there twice.
405 Unsupported-Service: a Service-Type other than Framed, so Authorize-Only, too.
407 Invalid-Attribute-Value: a value that cannot be.
503 Session-Context-Not-Found: no session has all the keys.
504 Session-Context-Not-Removable, 506 Resources-Unavailable: we have failed, at a Disconnect or at a change; 506 also
    where too many requests of the client wait.

The rest has no use here: 406 is for who does not know these requests at all, 501 for sessions that are none of the
client's, while all of ours are, 502 and 505 for proxies, 507 for who does Authorize-Only, and 508 for who cannot do
several sessions at once.
"""

from __future__ import annotations

import enum
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from ...config.model import Address, Radius
from ...config.model import Dae as DaeConfig
from ...cursor import Malformed
from ...pipex.icmp import RateLimit
from ...ppp.cause import Cause
from ...text import printable
from ..base import NO_PROFILE, Profile
from .answer import CHANGEABLE, Unusable, profile_changes
from .packet import Code, Pair, Received, encode_reply, parse, verify_request
from .rates import cisco
from .request import FRAMED, called_station_id, calling_station_id, nas_port_id

if TYPE_CHECKING:
    from ...ppp.engine import Engine
    from ...ppp.session import Session

log = logging.getLogger("npppy.radius")

#: Requests of one client that may wait for their sessions to be found and changed.
MAX_WAITING: Final = 64
#: Sessions that are looked at in one go, and that are ended or changed: that is more work by far.
SLICE: Final = 256
ACT_SLICE: Final = 10
#: Answers of one client that are kept, and for how many seconds at least: a client gives up within them.
MAX_ANSWERS: Final = 4096
ANSWER_TIME: Final = 30.0
#: Octets of State and Proxy-State that an answer has room for, next to all else that may be in it.
MAX_ECHO: Final = 4000
#: Log lines a second, and at once, about what is discarded.
REMARKS: Final = (1, 10)

#: Default and RADIUS-Request (RFC 2865 section 5.29).
_ACTIONS: Final = (0, 1)
#: Changes that a request may name more than once.
_SEVERAL: Final = ("Class", "Filter-Id", "Cisco-AVPair")

_NAS: Final = frozenset(("NAS-IP-Address", "NAS-IPv6-Address", "NAS-Identifier"))
#: What no session of ours has: links are not bundled, and there is no IPv6 and no Chargeable-User-Identity.
_NOBODYS: Final = frozenset(
    (
        "Acct-Multi-Session-Id",
        "Chargeable-User-Identity",
        "Delegated-IPv6-Prefix",
        "Framed-IPv6-Address",
        "Framed-IPv6-Prefix",
        "Framed-Interface-Id",
    )
)
_KEYS: Final = _NOBODYS | {
    "User-Name",
    "NAS-Port",
    "NAS-Port-Id",
    "Framed-IP-Address",
    "Called-Station-Id",
    "Calling-Station-Id",
    "Acct-Session-Id",
}
_ECHOED: Final = ("State", "Proxy-State")
#: In either request.  PPP has no way to show a Reply-Message to the user, and RFC 2865 section 5.18 asks for none.
_COMMON: Final = (
    _NAS | _KEYS | {*_ECHOED, "Service-Type", "Event-Timestamp", "Message-Authenticator", "Reply-Message"}
)

#: Sends an answer to who has asked, now or never; it neither raises nor calls back.
Send = Callable[[bytes], None]


class Error(enum.IntEnum):
    """Error-Cause."""

    UNSUPPORTED_ATTRIBUTE = 401
    MISSING_ATTRIBUTE = 402
    NAS_IDENTIFICATION_MISMATCH = 403
    INVALID_REQUEST = 404
    UNSUPPORTED_SERVICE = 405
    INVALID_ATTRIBUTE_VALUE = 407
    SESSION_CONTEXT_NOT_FOUND = 503
    SESSION_CONTEXT_NOT_REMOVABLE = 504
    RESOURCES_UNAVAILABLE = 506


class _Refused(Exception):
    def __init__(self, error: Error, why: str) -> None:
        super().__init__(why)
        self.error = error


@dataclass(frozen=True, slots=True)
class ClientState:
    """A client as ``npppyctl radius`` shows it; all counts are since it was configured."""

    address: str
    disconnects: int
    disconnect_acks: int
    disconnect_naks: int
    changes: int
    change_acks: int
    change_naks: int
    duplicates: int
    #: Requests that wait at this moment.
    waiting: int
    #: Refusals by Error-Cause, and what was discarded, by reason.
    errors: dict[int, int]
    discarded: dict[str, int]


#: The names of the counters, by the code that is counted.
_COUNTERS: Final = {
    Code.DISCONNECT_REQUEST: "disconnects",
    Code.DISCONNECT_ACK: "disconnect_acks",
    Code.DISCONNECT_NAK: "disconnect_naks",
    Code.COA_REQUEST: "changes",
    Code.COA_ACK: "change_acks",
    Code.COA_NAK: "change_naks",
}


class _Answer:
    """What a request has been answered with; nothing yet while it waits."""

    __slots__ = ("packet", "until")

    def __init__(self, until: float) -> None:
        self.packet = b""
        #: When it is too old to be the answer to the same octets.
        self.until = until


class _Client:
    __slots__ = ("address", "answers", "codes", "discarded", "duplicates", "errors", "secret", "waiting")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.secret = b""
        self.waiting = 0
        self.duplicates = 0
        self.codes: Counter[Code] = Counter()
        self.errors: Counter[int] = Counter()
        self.discarded: Counter[str] = Counter()
        #: By what makes a request the same, the oldest first.
        self.answers: OrderedDict[tuple[bytes, int, int], _Answer] = OrderedDict()

    def keep(self, key: tuple[bytes, int, int], answer: _Answer, now: float) -> None:
        answers = self.answers
        answers.pop(key, None)
        answers[key] = answer
        while len(answers) > MAX_ANSWERS or next(iter(answers.values())).until <= now:
            answers.popitem(last=False)

    def state(self) -> ClientState:
        return ClientState(
            address=str(self.address),
            **{name: self.codes[code] for code, name in _COUNTERS.items()},
            duplicates=self.duplicates,
            waiting=self.waiting,
            errors=dict(self.errors),
            discarded=dict(self.discarded),
        )


class _Job:
    """A request that is being served."""

    __slots__ = ("answer", "client", "received", "secret", "send", "steps")

    def __init__(
        self, client: _Client, received: Received, answer: _Answer, send: Send, steps: Generator[None, None, int]
    ) -> None:
        self.client = client
        # It is answered as it was asked, whatever a reload says.
        self.secret = client.secret
        self.received = received
        self.answer = answer
        self.send = send
        #: What is left to do; it returns how many sessions it was for.
        self.steps = steps


class _Wanted:
    """The sessions that a request means: those that have all of its keys."""

    __slots__ = ("_engine", "_template", "found", "tests")

    def __init__(self, engine: Engine, template: str) -> None:
        self._engine = engine
        self._template = template
        self.tests: list[Callable[[Session], bool]] = []
        #: Those that an index has for one of the keys; None: there is none for any.
        self.found: list[Session] | None = None

    def add(self, name: str, value: bytes) -> None:
        """Raises :class:`Malformed`."""
        engine = self._engine
        # As PPP reads a name.
        text = value.decode("utf-8", "surrogateescape")
        if name in _NOBODYS or not value:
            # Without a value it must not mean all that lack the attribute.
            self.found = []
        elif name == "User-Name":
            self._narrow(engine.by_user(text))
            self.tests.append(lambda session: session.name == text)
        elif name == "Acct-Session-Id":
            self._only(engine.by_session_id(text))
        elif name == "NAS-Port":
            self._only(engine.sessions.get(_u32(value)))
        elif name == "Framed-IP-Address":
            self._only(engine.by_address(_u32(value)))
        elif name == "Calling-Station-Id":
            self.tests.append(lambda session: calling_station_id(session.call.link) == text)
        elif name == "Called-Station-Id":
            self.tests.append(lambda session: called_station_id(session.call.link) == text)
        else:
            template = self._template
            self.tests.append(lambda session: nas_port_id(session.call.link, session.id, template) == text)

    def _only(self, session: Session | None) -> None:
        self._narrow([] if session is None else [session])
        self.tests.append(lambda other: other is session)

    def _narrow(self, sessions: list[Session]) -> None:
        if self.found is None or len(sessions) < len(self.found):
            self.found = sessions

    def matches(self, session: Session) -> bool:
        # One that is not admitted, or not any more, is nobody's.
        return session.bind is not None and all(test(session) for test in self.tests)


def _u32(value: bytes) -> int:
    if len(value) != 4:
        raise Malformed("not four octets")
    return int.from_bytes(value, "big")


def _check(received: Received) -> None:
    """Whether all can be changed that a request names, or nothing is: that does not depend on the session.

    Raises :class:`_Refused`, :class:`Malformed` and :class:`Unusable`.
    """
    changes = [name for name in received.names() if name in CHANGEABLE]
    if not changes:
        raise _Refused(Error.MISSING_ATTRIBUTE, "nothing is to be changed")
    for name in changes:
        if name not in _SEVERAL and changes.count(name) > 1:
            raise _Refused(Error.INVALID_REQUEST, f"several {name}")
    # What may be passed over in an Accept may not be here.
    for text in received.all_texts("Cisco-AVPair"):
        if not cisco(text):
            raise Unusable("Cisco-AVPair", f'"{text}"')
    action = received.integer("Termination-Action")
    if action is not None and action not in _ACTIONS:
        raise Unusable("Termination-Action", str(action))
    profile_changes(received, NO_PROFILE)


class Dae:
    """The server of dynamic authorization."""

    def __init__(self, engine: Engine, wall: Callable[[], float], is_local: Callable[[Address], bool]) -> None:
        """*wall* tells the seconds since the Epoch, *is_local* whether an address is this machine's."""
        self._engine = engine
        self._wall = wall
        self._is_local = is_local
        self._radius = Radius()
        self._clients: dict[Address, _Client] = {}
        self._jobs: deque[_Job] = deque()
        self._remarks = RateLimit(*REMARKS)
        self._now = 0.0
        #: Packets from those who are no clients.
        self.strangers = 0

    def configure(self, radius: Radius) -> None:
        """Take a configuration.  Clients that stay keep what has been counted, and their answers."""
        old, self._clients = self._clients, {}
        for address, secret in radius.dae.clients:
            client = self._clients[address] = old.get(address) or _Client(address)
            client.secret = secret.encode()
        self._radius = radius

    @property
    def _conf(self) -> DaeConfig:
        return self._radius.dae

    @property
    def busy(self) -> bool:
        """Is there work left?"""
        return bool(self._jobs)

    def state(self) -> list[ClientState]:
        return [client.state() for client in self._clients.values()]

    def receive(self, data: bytes, source: Address, port: int, send: Send, now: float) -> None:
        """A packet has come.  Whatever it holds, this does not raise; the answer goes by *send*, now or later."""
        client = self._clients.get(source)
        if client is None:
            self.strangers += 1
            self._remark(f"{source}", port, "it is no client", now)
            return
        try:
            received = parse(data)
            stamp = received.integer("Event-Timestamp")
        except Malformed as error:
            self._discard(client, port, "malformed", str(error), now)
            return
        if received.code not in (Code.DISCONNECT_REQUEST, Code.COA_REQUEST):
            self._discard(client, port, "code", f"code {int(received.code)}", now)
            return
        why = verify_request(received, client.secret)
        if why:
            self._discard(client, port, "unauthentic", why, now)
            return
        age = None if stamp is None else self._wall() - stamp
        if age is None and self._conf.require_event_timestamp:
            self._discard(client, port, "timestamp", "no Event-Timestamp", now)
            return
        if age is not None and abs(age) > self._conf.window:
            self._discard(client, port, "timestamp", f"its Event-Timestamp is {age:.0f} s old", now)
            return
        if sum(len(value) + 2 for name, value in received.pairs() if name in _ECHOED) > MAX_ECHO:
            self._discard(client, port, "too-long", "too much State and Proxy-State to return", now)
            return
        # The authenticator covers all octets: another request never has the same.  Without a time in it, the client
        # may mean the same once more, by another port or identifier (section 2.3); with one, it has been replayed,
        # and is not served twice for as long as its time counts.
        key, until = (received.authenticator, port, received.identifier), now + ANSWER_TIME
        if age is not None:
            key, until = (received.authenticator, 0, 0), max(until, now + self._conf.window - age + 1)
        answer = client.answers.get(key)
        if answer is not None and answer.until > now:
            client.duplicates += 1
            if answer.packet:
                send(answer.packet)
            return
        answer = _Answer(until)
        client.keep(key, answer, now)
        client.codes[received.code] += 1
        self._now = now
        job = _Job(client, received, answer, send, self._serve(client, received))
        if self._advance(job):
            return
        if client.waiting >= MAX_WAITING:
            job.steps.close()
            refusal = _Refused(Error.RESOURCES_UNAVAILABLE, f"{MAX_WAITING} requests wait already")
            self._answer(job, refusal)
            return
        client.waiting += 1
        self._jobs.append(job)

    def work(self, now: float) -> None:
        """Do one slice of one request; they take turns."""
        if not self._jobs:
            return
        self._now = now
        job = self._jobs.popleft()
        if self._advance(job):
            job.client.waiting -= 1
        else:
            self._jobs.append(job)

    def _advance(self, job: _Job) -> bool:
        """Go on with a request; True: it is answered."""
        try:
            next(job.steps)
        except StopIteration as stop:
            self._answer(job, None, stop.value)
        except _Refused as refusal:
            self._answer(job, refusal)
        except Malformed as error:
            self._answer(job, _Refused(Error.INVALID_REQUEST, str(error)))
        except Unusable as error:
            self._answer(job, _Refused(Error.INVALID_ATTRIBUTE_VALUE, str(error)))
        except Exception:
            # A mistake of ours must not cost the other requests their answers, nor the daemon its life.
            log.exception("dae client=%s %s failed", job.client.address, job.received.code.name)
            ends = job.received.code is Code.DISCONNECT_REQUEST
            cause = Error.SESSION_CONTEXT_NOT_REMOVABLE if ends else Error.RESOURCES_UNAVAILABLE
            self._answer(job, _Refused(cause, "internal error"))
        else:
            return False
        return True

    def _answer(self, job: _Job, refusal: _Refused | None, sessions: int = 0) -> None:
        client, received = job.client, job.received
        ends = received.code is Code.DISCONNECT_REQUEST
        pairs: list[Pair] = []
        if refusal is None:
            code = Code.DISCONNECT_ACK if ends else Code.COA_ACK
            if ends:
                pairs.append(("Acct-Terminate-Cause", int(Cause.ADMIN_RESET)))
            outcome = f"sessions={sessions}"
        else:
            code = Code.DISCONNECT_NAK if ends else Code.COA_NAK
            pairs.append(("Error-Cause", int(refusal.error)))
            client.errors[int(refusal.error)] += 1
            outcome = f'error={int(refusal.error)} reason="{printable(str(refusal))}"'
        if "Event-Timestamp" in received:
            pairs.append(("Event-Timestamp", int(self._wall())))
        pairs += [(name, value) for name, value in received.pairs() if name in _ECHOED]
        job.answer.packet = encode_reply(received, code, pairs, job.secret)
        client.codes[code] += 1
        log.info("dae client=%s id=%d code=%s %s", client.address, received.identifier, code.name, outcome)
        job.send(job.answer.packet)

    # What is asked.

    def _serve(self, client: _Client, received: Received) -> Generator[None, None, int]:
        """Raises :class:`_Refused`, :class:`Malformed` and :class:`Unusable` before anything is changed."""
        ends = received.code is Code.DISCONNECT_REQUEST
        wanted = self._read(received, {"Class"} if ends else CHANGEABLE)
        if not ends:
            _check(received)
        sessions = yield from self._find(wanted)
        if not sessions:
            raise _Refused(Error.SESSION_CONTEXT_NOT_FOUND, "no session matches")
        yield from self._end(client, received, sessions) if ends else self._change(received, sessions)
        return len(sessions)

    def _read(self, received: Received, others: Iterable[str]) -> _Wanted:
        """Check what is in a request and look for its keys; it may have *others*, too."""
        allowed = _COMMON.union(others)
        for name in received.names():
            if name not in allowed:
                raise _Refused(Error.UNSUPPORTED_ATTRIBUTE, name)
        for value in received.all_octets("Service-Type"):
            if _u32(value) != FRAMED:
                raise _Refused(Error.UNSUPPORTED_SERVICE, f"Service-Type {_u32(value)}")
        wanted = _Wanted(self._engine, self._radius.nas_port_id)
        keys = 0
        for name, value in received.pairs():
            if name in _NAS and not self._is_us(name, value):
                raise _Refused(Error.NAS_IDENTIFICATION_MISMATCH, name)
            if name in _KEYS:
                wanted.add(name, value)
                keys += 1
        if not keys:
            raise _Refused(Error.MISSING_ATTRIBUTE, "nothing says which session")
        return wanted

    def _is_us(self, name: str, value: bytes) -> bool:
        radius = self._radius
        if name == "NAS-Identifier":
            return value == radius.nas_id.encode()
        address: Address
        if name == "NAS-IP-Address":
            address = IPv4Address(_u32(value))
        elif len(value) == 16:
            address = IPv6Address(value)
        else:
            raise Malformed("not sixteen octets")
        own = [known for known in radius.nas_addresses if known.version == address.version]
        # Without one we call ourselves by whatever address a request leaves from.
        return address in own if own else self._is_local(address)

    def _find(self, wanted: _Wanted) -> Generator[None, None, list[Session]]:
        candidates = list(self._engine.sessions.values()) if wanted.found is None else wanted.found
        found: list[Session] = []
        for start in range(0, len(candidates), SLICE):
            if start:
                yield
            found += filter(wanted.matches, candidates[start : start + SLICE])
        return found

    def _end(self, client: _Client, received: Received, sessions: list[Session]) -> Generator[None, None, None]:
        # For the record of its end (section 3.6).
        classes = tuple(received.all_octets("Class"))
        for index, session in enumerate(sessions):
            if index and index % ACT_SLICE == 0:
                yield
            # It may have ended since it was found.
            if session.bind is not None:
                if classes:
                    session.apply(replace(session.profile, classes=classes), self._now)
                session.end(Cause.ADMIN_RESET, f"{client.address} disconnects it", self._now)

    def _change(self, received: Received, sessions: list[Session]) -> Generator[None, None, None]:
        """All of it for all of them, or nothing for any (section 2.2)."""
        changed: list[tuple[Session, Profile]] = []
        for index, session in enumerate(sessions):
            if index and index % ACT_SLICE == 0:
                yield
            # It may have ended since it was found.
            if session.bind is not None:
                # Another request may have changed it since.
                old = session.profile
                changed.append((session, old))
                try:
                    session.apply(profile_changes(received, old), self._now)
                except Exception:
                    self._undo(changed)
                    raise

    def _undo(self, changed: list[tuple[Session, Profile]]) -> None:
        for session, old in changed:
            if session.bind is not None:
                try:
                    session.apply(old, self._now)
                except Exception:
                    log.exception("ppp id=%d What it was before cannot be had back", session.id)

    # What is discarded.

    def _discard(self, client: _Client, port: int, reason: str, why: str, now: float) -> None:
        client.discarded[reason] += 1
        self._remark(str(client.address), port, why, now)

    def _remark(self, address: str, port: int, why: str, now: float) -> None:
        if self._remarks.take(now):
            log.warning('dae client=%s port=%d Discarded reason="%s"', address, port, printable(why))
