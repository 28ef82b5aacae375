"""The commands about sessions, in npppyd: ``session``, ``clear`` and ``monitor``.

What matches is decided here, so that nothing else travels, and an index is used where there is one.  However many
sessions there are, the event loop gets its turn every few of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from ..config.model import Protocol
from ..pipex.base import Counters, Police
from .info import SessionInfo, Subject
from .protocol import Message, RequestError, encode

if TYPE_CHECKING:
    from .server import Reply

log = logging.getLogger("npppy.control")

#: Sessions looked at between two turns of the event loop, and sessions ended: that is more work by far.
SLICE = 100
CLEAR_SLICE = 10

#: Events that wait for a client that monitors; those beyond are counted and lost.
MONITOR_QUEUE = 1000

_PROTOCOLS = {protocol.title.lower(): protocol.title for protocol in Protocol}


class Filter:
    """Which sessions a request means: those that match all of its filters.  Raises :class:`RequestError`."""

    __slots__ = ("address", "exact", "half_open", "ppp_id", "username")

    def __init__(self, filters: object, *, events: bool = False) -> None:
        """*events*: for sessions that come and go, which have no state to ask for."""
        if not isinstance(filters, dict):
            raise RequestError("the filters are not an object")
        given = dict(filters)
        self.ppp_id: int | None = None
        if "ppp_id" in given:
            self.ppp_id = given.pop("ppp_id")
            if type(self.ppp_id) is not int:
                raise RequestError("filter ppp_id: not a number")
        state = "any" if events or self.ppp_id is not None else "up"
        if not events:
            state = given.pop("state", state)
        if state not in ("up", "half-open", "any"):
            raise RequestError("filter state: not one of up, half-open, any")
        self.half_open = state == "half-open"
        #: (attribute, value) that a session must have.
        self.exact: list[tuple[str, Any]] = [("state", "up")] if state == "up" else []
        for name, value in given.items():
            if name not in ("address", "interface", "protocol", "realm", "username"):
                raise RequestError(f"unknown filter {name[:40]!r}")
            if not isinstance(value, str):
                raise RequestError(f"filter {name}: not a string")
            if name == "protocol":
                # Any case will do; one that we do not know matches nothing.
                value = _PROTOCOLS.get(value.lower(), value)
            elif name == "address":
                try:
                    IPv4Address(value)
                except ValueError:
                    raise RequestError("filter address: not an IPv4 address") from None
            self.exact.append((name, value))
        self.address: str | None = given.get("address")
        self.username: str | None = given.get("username")

    def matches(self, info: SessionInfo) -> bool:
        if self.ppp_id is not None and info.ppp_id != self.ppp_id:
            return False
        for name, value in self.exact:
            if getattr(info, name) != value:
                return False
        return not self.half_open or info.state not in ("up", "terminate")

    def candidates(self, subject: Subject) -> Sequence[int]:
        """The sessions of this moment that may match."""
        if self.ppp_id is not None:
            return (self.ppp_id,)
        found: Sequence[int] | None = None
        if self.address is not None:
            found = subject.find(address=self.address)
        if found is None and self.username is not None:
            found = subject.find(username=self.username)
        # A copy: the daemon goes on while we look at them.
        return tuple(subject.session_ids() if found is None else found)


def row(info: SessionInfo) -> Message:
    """A session as it travels, and as ``npppyctl -j`` prints it; the names are documented and stay."""
    counters = info.counters
    return {
        "ppp_id": info.ppp_id,
        "state": info.state,
        "username": info.username,
        "realm": info.realm,
        "interface": info.interface,
        "address": info.address,
        "mru": info.mru,
        "protocol": info.protocol,
        "tunnel": info.tunnel,
        "tunnel_from": info.tunnel_from,
        "start": round(info.start, 3),
        "duration": round(info.duration, 3),
        "in_bytes": counters.in_bytes,
        "in_packets": counters.in_packets,
        "in_errors": counters.in_errors,
        "out_bytes": counters.out_bytes,
        "out_packets": counters.out_packets,
        "out_errors": counters.out_errors,
        "pipex": info.pipex,
        **limits(info.police_down, info.police_up),
        **_extras(info),
    }


#: What rows may be asked to have and nothing else: of the session, and of its counters.
_FIELDS = frozenset((
    "ppp_id", "state", "username", "realm", "interface", "address", "mru", "protocol", "tunnel", "tunnel_from", "pipex"
))  # fmt: skip
_COUNTED = frozenset(Counters._fields)


def some(fields: object) -> Callable[[SessionInfo], Message]:
    """What makes rows with these fields of :func:`row`; all of them where there is nothing said of them.

    Without most of them a listing takes a third less of our time, and of npppyctl's more.  Raises
    :class:`RequestError`.
    """
    if fields is None:
        return row
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise RequestError("the fields are not a list of names")
    if unknown := set(fields) - _FIELDS - _COUNTED:
        raise RequestError(f"unknown field {min(unknown)[:40]!r}")
    plain = [name for name in fields if name in _FIELDS]
    counted = [name for name in fields if name in _COUNTED]

    def make(info: SessionInfo) -> Message:
        made: Message = {name: getattr(info, name) for name in plain}
        for name in counted:
            made[name] = getattr(info.counters, name)
        return made

    return make


def _extras(info: SessionInfo) -> Message:
    """What most sessions do not have, and then do not show."""
    fields: Message = {}
    if info.tunnel_id:
        fields["tunnel_id"] = info.tunnel_id
        if info.peer_tunnel_id:
            fields["peer_tunnel_id"] = info.peer_tunnel_id
        fields["session_id"] = info.session_id
        fields["peer_session_id"] = info.peer_session_id
    if info.calling_number:
        fields["calling_number"] = info.calling_number
    if info.called_number:
        fields["called_number"] = info.called_number
    if info.mppe_in:
        fields["mppe_in"] = info.mppe_in
        fields["mppe_out"] = info.mppe_out
    for name in ("acct_session_id", "routes", "filter_id", "session_timeout", "idle_timeout"):
        if value := getattr(info, name):
            fields[name] = value
    return fields


def limits(down: Police | None, up: Police | None) -> Message:
    """Rates in bits a second and bursts in octets; 0: no limit."""
    return {
        "rate_down": down.rate * 8 if down else 0,
        "burst_down": down.burst if down else 0,
        "rate_up": up.rate * 8 if up else 0,
        "burst_up": up.burst if up else 0,
    }


async def slices(ids: Sequence[int], size: int) -> AsyncIterator[Sequence[int]]:
    """*ids* in parts of at most *size*, with a turn of the event loop after each."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
        await asyncio.sleep(0)


class SessionCommands:
    """The handlers, to be registered with a :class:`~npppy.control.server.ControlServer`."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    async def session(self, request: Message, reply: Reply) -> Message:
        """A row for each; *fields* may say what of it."""
        make = some(request.get("fields"))
        wanted = Filter(request.get("filters", {}))
        subject = self._subject
        async for part in slices(wanted.candidates(subject), SLICE):
            await reply.rows(
                [
                    make(info)
                    for ppp_id in part
                    if (info := subject.session(ppp_id)) is not None and wanted.matches(info)
                ]
            )
        return {}

    async def clear(self, request: Message, reply: Reply) -> Message:
        """Ends what matches; a session that is asked for by its id and does not exist counts as failed (npppd)."""
        # Nothing said is not "all".
        wanted = Filter(request.get("filters"))
        subject = self._subject
        count = {True: 0, False: 0}
        try:
            async for part in slices(wanted.candidates(subject), CLEAR_SLICE):
                for ppp_id in part:
                    info = subject.session(ppp_id)
                    if info is None:
                        count[False] += wanted.ppp_id is not None
                    elif wanted.matches(info):
                        count[subject.disconnect(ppp_id)] += 1
        finally:
            # Also for one that was broken off half-way.
            log.info(
                "%s command=clear filters=%s disconnected=%d failed=%d",
                reply,
                encode(request["filters"]).decode(),
                count[True],
                count[False],
            )
        return {"disconnected": count[True], "failed": count[False]}

    async def monitor(self, request: Message, reply: Reply) -> Message:
        """Runs until the client goes away."""
        wanted = Filter(request.get("filters", {}), events=True)
        queue: deque[tuple[str, SessionInfo]] = deque()
        wake = asyncio.Event()
        lost = 0

        def hear(event: str, info: SessionInfo) -> None:
            nonlocal lost
            if not wanted.matches(info):
                return
            # Once one is lost all are, until the queue is empty: so the gap is told where it is.
            if lost or len(queue) >= MONITOR_QUEUE:
                lost += 1
            else:
                queue.append((event, info))
            wake.set()

        stop = self._subject.listen(hear)
        try:
            while True:
                await wake.wait()
                wake.clear()
                while queue:
                    part = [queue.popleft() for _ in range(min(SLICE, len(queue)))]
                    await reply.rows([{"event": event, **row(info)} for event, info in part])
                    await asyncio.sleep(0)
                if lost:
                    gap, lost = lost, 0
                    await reply.rows([{"event": "lost", "count": gap}])
        finally:
            stop()
