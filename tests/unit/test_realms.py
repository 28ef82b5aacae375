"""Which realm answers a login: users of a file, servers, and another realm where no server answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npppy.aaa.base import Accept, Answer, Eap, Failed, Pap, Reject, Request
from npppy.aaa.realms import Realms
from npppy.config.model import Config, Realm

from .ppp_rig import HERE, request_for

PASSWORD = Pap(b"secret")
SILENCE = Failed(reason="no server answers", unanswered=True)


class Login:
    """A login that servers are asked about."""

    def __init__(self, request: Request, done: Callable[[Answer, float], None]) -> None:
        self.request = request
        self.done = done
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Servers:
    def __init__(self) -> None:
        self.logins: list[Login] = []
        #: What is answered at once; None: it is waited for.
        self.answer: Answer | None = None

    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> Login | None:
        login = Login(request, done)
        self.logins.append(login)
        if self.answer is None:
            return login
        done(self.answer, now)
        return None


class World:
    def __init__(self, tmp_path: Path, **radius: Any) -> None:
        users = tmp_path / "users"
        users.write_text("alice:password=secret:framed-ip-address=192.0.2.7:\n")
        users.chmod(0o600)
        self.local = Realm(name="LOCAL", where=HERE, type="local", users_file=users, strip_atmark_realm=True)
        self.radius = Realm(name="RADIUS", where=HERE, type="radius", **({"fallback": "LOCAL"} | radius))
        self.servers = Servers()
        self.realms = Realms(bytes, self.servers)
        self.realms.configure(Config(file=Path("test.conf"), realms=(self.local, self.radius)))
        self.answers: list[tuple[Answer, float]] = []

    def ask(self, realm: Realm | None, username: str = "alice", **fields: Any) -> Any:
        request = replace(request_for(PASSWORD, realm=realm, username=username), **fields)
        return self.realms.authenticate(request, lambda answer, now: self.answers.append((answer, now)), 5.0)


def test_a_local_realm_answers_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.ask(world.local) is None
    assert [type(answer) for answer, _ in world.answers] == [Accept]
    assert world.servers.logins == []


def test_servers_answer_for_a_radius_realm(tmp_path: Path) -> None:
    world = World(tmp_path, fallback="")
    pending = world.ask(world.radius)
    (login,) = world.servers.logins
    assert pending is login
    login.done(SILENCE, 9.0)
    assert world.answers == [(SILENCE, 9.0)]


@pytest.mark.parametrize("answer", [Accept(address=1), Reject(reason="no"), Failed(reason="a wrong answer")])
def test_what_a_server_says_is_final(tmp_path: Path, answer: Answer) -> None:
    world = World(tmp_path)
    world.ask(world.radius)
    world.servers.logins[0].done(answer, 9.0)
    assert world.answers == [(answer, 9.0)]


def test_the_fallback_answers_where_no_server_does(tmp_path: Path) -> None:
    world = World(tmp_path)
    # By the strip options of the realm that answers.
    assert world.ask(world.radius, "alice@isp") is not None
    world.servers.logins[0].done(SILENCE, 9.0)
    ((answer, at),) = world.answers
    assert isinstance(answer, Accept)
    assert (answer.address, answer.authentic, at) == (0xC0000207, 2, 9.0)


def test_the_fallback_answers_also_when_silence_is_known_already(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.servers.answer = SILENCE
    assert world.ask(world.radius) is None
    assert [type(answer) for answer, _ in world.answers] == [Accept]


def test_a_session_that_goes_is_not_looked_for_in_either(tmp_path: Path) -> None:
    world = World(tmp_path, fallback="SECOND")
    second = Realm(name="SECOND", where=HERE, type="radius")
    world.realms.configure(Config(file=Path("test.conf"), realms=(second, world.radius)))
    pending = world.ask(world.radius)
    world.servers.logins[0].done(SILENCE, 9.0)
    assert [login.request.realm for login in world.servers.logins] == [world.radius, second]
    pending.cancel()
    assert [login.cancelled for login in world.servers.logins] == [False, True]
    assert world.answers == []


def test_silence_known_for_the_first_realm_waits_for_the_second(tmp_path: Path) -> None:
    world = World(tmp_path, fallback="SECOND")
    second = Realm(name="SECOND", where=HERE, type="radius")
    world.realms.configure(Config(file=Path("test.conf"), realms=(second, world.radius)))
    world.servers.answer = SILENCE
    original = world.servers.authenticate

    def authenticate(request: Request, done: Callable[[Answer, float], None], now: float) -> Login | None:
        world.servers.answer = SILENCE if request.realm is world.radius else None
        return original(request, done, now)

    world.servers.authenticate = authenticate  # type: ignore[method-assign]
    pending = world.ask(world.radius)
    assert pending is not None
    pending.cancel()
    assert [login.cancelled for login in world.servers.logins] == [False, True]


def test_eap_is_for_servers_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ask(world.local, proof=Eap(b"\x02\x01\x00\x05\x01"))
    assert world.answers[-1][0] == Reject(reason="a local realm does not do EAP")
    world.ask(world.radius, proof=Eap(b"\x02\x01\x00\x05\x01"))
    world.servers.logins[-1].done(SILENCE, 9.0)
    assert world.answers[-1][0] == SILENCE
    world.ask(replace(world.radius, eap_capable=False), proof=Eap(b"\x02\x01\x00\x05\x01"))
    assert world.answers[-1][0] == Reject(reason="realm RADIUS says eap-capable no")
    assert len(world.servers.logins) == 1


def test_what_the_users_file_of_a_radius_realm_says(tmp_path: Path) -> None:
    world = World(tmp_path)
    realm = replace(world.radius, users_file=world.local.users_file)
    user = world.realms.user(realm, "alice")
    assert user is not None
    assert user.address == 0xC0000207
    assert world.realms.user(realm, "bob") is None
    assert world.realms.user(world.radius, "alice") is None
