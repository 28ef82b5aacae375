"""The logins of realms of type radius."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from ...config.model import Radius, Realm
from ...config.users import User
from ...ppp.link import Link
from ...text import printable
from ..base import Accept, Answer, Challenge, Chap, Failed, MsChapV1, Pap, Pending, Reject, Request
from . import answer
from .client import Client, Exchange
from .packet import MAX_PASSWORD, MAX_VALUE, Code, Pair, Received
from .rates import filter_id
from .request import access_pairs, told_name
from .server import Server

#: Seconds after which a peer that was asked by EAP will not come back, and how many are remembered.
ABANDONED: Final = 300.0
MAX_ASKED: Final = 16384
#: Names of filters that are logged, each once.
MAX_FILTERS: Final = 100

log = logging.getLogger("npppy.radius")


class RadiusLogins:
    """An :class:`npppy.aaa.base.Authenticator` for the realms of type radius, over one client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._radius = Radius()
        self._user: Callable[[Realm, str], User | None] = _nobody
        # Who has asked last, by EAP, for a session and a realm; the oldest first.  The others know nothing of it.
        self._asked: OrderedDict[tuple[int, str], tuple[Server, float]] = OrderedDict()
        # Filter-Ids that say nothing to us, as has been logged.
        self._filters: set[str] = set()

    def configure(self, radius: Radius, user: Callable[[Realm, str], User | None]) -> None:
        """Take a configuration; *user* tells what a realm's users-file, which supplements its servers, has."""
        self._radius = radius
        self._user = user

    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> Pending | None:
        realm = request.realm
        assert realm is not None
        why = _unspeakable(request)
        if why:
            done(Reject(reason=why), now)
            return None
        server, _ = self._asked.get((request.session, realm.name), (None, 0.0))
        login = _Login(self, request, realm, done, now + realm.login_timeout, server if request.state else None)
        self._client.request(realm.authentication, "auth", login, now)
        return login

    def pairs(self, request: Request) -> list[Pair]:
        """For a login."""
        return access_pairs(request, self._radius)

    def read(self, reply: Received, server: Server, request: Request, realm: Realm, now: float) -> Answer:
        """What a reply says.  Raises :class:`npppy.cursor.Malformed`."""
        key = request.session, realm.name
        read: Answer
        if reply.code == Code.ACCESS_CHALLENGE:
            read = answer.challenge(reply, request)
        elif reply.code == Code.ACCESS_ACCEPT:
            user = self._user(realm, request.account)
            if request.check_calling_number and not _calls_from(user, request):
                read = Reject(reason="wrong calling number")
            else:
                read = answer.accept(reply, request, user)
        else:
            read = answer.reject(reply, request)
        if isinstance(read, Accept) and read.profile.filter_id:
            self._look_at(read.profile.filter_id, realm)
        self._asked.pop(key, None)
        if isinstance(read, Challenge):
            self._asked[key] = server, now
            while len(self._asked) > MAX_ASKED or next(iter(self._asked.values()))[1] < now - ABANDONED:
                self._asked.popitem(last=False)
        return read

    def _look_at(self, name: str, realm: Realm) -> None:
        """Who relies on a filter should hear that there is none."""
        if name not in self._filters and len(self._filters) < MAX_FILTERS and not filter_id(name):
            self._filters.add(name)
            log.warning(
                'realm %s: Filter-Id "%s" is no rate, and there are no filters: sessions go without',
                *(realm.name, printable(name[:100])),
            )


class _Login(Exchange):
    __slots__ = ("_done", "_logins", "_realm", "_request")

    def __init__(
        self,
        logins: RadiusLogins,
        request: Request,
        realm: Realm,
        done: Callable[[Answer, float], None],
        deadline: float,
        pin: Server | None,
    ) -> None:
        super().__init__(_flow(request.link), deadline, pin)
        self._logins = logins
        self._request = request
        self._realm = realm
        self._done = done

    def pairs(self, now: float) -> list[Pair]:
        return self._logins.pairs(self._request)

    def answered(self, reply: Received, server: Server, now: float) -> None:
        self._done(self._logins.read(reply, server, self._request, self._realm, now), now)

    def failed(self, reason: str, now: float) -> None:
        self._done(Failed(reason=f"realm {self._realm.name}: {reason}", unanswered=True), now)


def _flow(link: Link) -> Hashable:
    """The logins of one access port, or of one peer of a tunnel, wait for each other and not for those of others."""
    if link.caller.port is not None:
        return link.caller.port
    ends = link.ends
    return link.tunnel.name, link.caller.text if ends is None else ends.client


def _unspeakable(request: Request) -> str:
    """Why RADIUS cannot tell a login; "": it can."""
    name, proof = told_name(request), request.proof
    if not name or len(name.encode("utf-8", "surrogateescape")) > MAX_VALUE:
        return "its name is empty, or longer than RADIUS can tell"
    if isinstance(proof, Pap) and len(proof.password) > MAX_PASSWORD:
        # npppd cuts it, so that many passwords would do.
        return "its password is longer than RADIUS can tell"
    # What a peer answers may have any length, and what a LAC has asked.
    if isinstance(proof, Chap) and (len(proof.response) != 16 or not 1 <= len(proof.challenge) <= MAX_VALUE):
        return "its response is none of CHAP"
    if isinstance(proof, MsChapV1) and (len(proof.nt_response) != 24 or len(proof.challenge) != 8):
        return "its response is none of MS-CHAP"
    return ""


def _calls_from(user: User | None, request: Request) -> bool:
    """``callnum-check``, as npppd: without a users-file, or without an entry there, nobody is let in."""
    return user is not None and (user.calling_number or "") == request.caller.calling_number


def _nobody(realm: Realm, account: str) -> User | None:
    return None
