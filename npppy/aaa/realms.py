"""The realms of a configuration: each login goes to the one that answers for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ..config.model import Config
from ..config.users import UsersFile
from .base import Answer, Failed, Pending, Request
from .local import LocalUsers

logger = logging.getLogger("npppy.aaa")


class Realms:
    """An :class:`npppy.aaa.base.Authenticator` over all ``authentication`` blocks."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        # Names without a realm, and realms without a users-file.
        self._nobody = LocalUsers(None, random)
        self._local: dict[str, LocalUsers] = {}
        self._files: dict[Path, UsersFile] = {}

    def configure(self, config: Config) -> None:
        """Take the realms of a configuration, and read their users."""
        wanted = {realm.users_file for realm in config.realms if realm.type == "local" and realm.users_file}
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

    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> Pending | None:
        answer: Answer
        if request.realm is not None and request.realm.type != "local":
            answer = Failed(reason=f"realm {request.realm.name}: RADIUS is not built into this version")
        else:
            local = self._local.get(request.realm.name) if request.realm else None
            answer = (local or self._nobody).check(request)
        done(answer, now)
        return None
