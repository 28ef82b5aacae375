"""The realms of a configuration: each login goes to the one that answers for it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from ..config.model import Config, Realm
from ..config.users import User, UsersFile
from ..text import printable
from .base import Answer, Authenticator, Eap, Failed, Pending, Reject, Request, names
from .local import LocalUsers

logger = logging.getLogger("npppy.aaa")


class Realms:
    """An :class:`npppy.aaa.base.Authenticator` over all ``authentication`` blocks."""

    def __init__(self, random: Callable[[int], bytes], servers: Authenticator | None = None) -> None:
        """*servers* answers for realms of type radius."""
        self._random = random
        self._servers = servers
        # Names without a realm, and realms without a users-file.
        self._nobody = LocalUsers(None, random)
        self._realms: Mapping[str, Realm] = {}
        self._local: dict[str, LocalUsers] = {}
        self._files: dict[Path, UsersFile] = {}

    def configure(self, config: Config) -> None:
        """Take the realms of a configuration, and read their users."""
        self._realms = {realm.name: realm for realm in config.realms}
        wanted = {realm.users_file for realm in config.realms if realm.users_file}
        self._files = {path: self._files.get(path) or UsersFile(path) for path in wanted}
        self.refresh()
        self._local = {
            realm.name: LocalUsers(self._files[realm.users_file], self._random)
            for realm in config.realms
            if realm.type == "local" and realm.users_file
        }

    def refresh(self) -> None:
        """Read the users files that have changed; called now and then, never for a login."""
        for users in self._files.values():
            for diagnostic in users.refresh():
                logger.warning("realm %s", diagnostic)

    def user(self, realm: Realm, account: str) -> User | None:
        """What a realm's users-file says of an account, whoever checks its password."""
        users = self._files.get(realm.users_file) if realm.users_file else None
        return users.get(account) if users is not None else None

    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> Pending | None:
        realm = request.realm
        if realm is None or realm.type == "local" or self._servers is None:
            local = self._local.get(realm.name) if realm else None
            done((local or self._nobody).check(request), now)
            return None
        if isinstance(request.proof, Eap) and not realm.eap_capable:
            done(Reject(reason=f"realm {realm.name} says eap-capable no"), now)
            return None
        fallback = self._realms.get(realm.fallback)
        # A dialogue of EAP cannot go on elsewhere.
        if fallback is None or isinstance(request.proof, Eap):
            return self._servers.authenticate(request, done, now)
        return _Fallback(self, self._servers, request, fallback, done).start(now)


class _Fallback:
    """A login whose realm has another one behind it."""

    __slots__ = ("_done", "_over", "_pending", "_realm", "_realms", "_request", "_servers")

    def __init__(
        self,
        realms: Realms,
        servers: Authenticator,
        request: Request,
        realm: Realm,
        done: Callable[[Answer, float], None],
    ) -> None:
        self._realms = realms
        self._servers = servers
        self._request = request
        self._realm = realm
        self._done = done
        self._pending: Pending | None = None
        self._over = False

    def start(self, now: float) -> Pending | None:
        pending = self._servers.authenticate(self._request, self._answered, now)
        # It may have gone on to the other realm already.
        self._pending = self._pending or pending
        return None if self._over else self

    def cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()

    def _answered(self, answer: Answer, now: float) -> None:
        if not (isinstance(answer, Failed) and answer.unanswered):
            self._end(answer, now)
            return
        logger.warning(
            'user="%s" %s: realm %s answers in its place',
            *(printable(self._request.username), answer.reason, self._realm.name),
        )
        user, account = names(self._realm, self._request.username)
        request = dataclasses.replace(self._request, realm=self._realm, user=user, account=account, state=b"")
        self._pending = self._realms.authenticate(request, self._end, now)

    def _end(self, answer: Answer, now: float) -> None:
        self._over = True
        self._done(answer, now)
