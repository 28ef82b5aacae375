"""MPPE's keys, as a realm of local users gives them, against those of who logs in."""

from __future__ import annotations

import random
from hashlib import md5
from pathlib import Path

import pytest

from npppy.aaa.base import Accept, Answer, Chap, MsChapV1, MsChapV2, Pap, Proof, Reject, Request
from npppy.aaa.local import LocalUsers
from npppy.config.model import AuthMethod, Mppe
from npppy.config.users import UsersFile
from npppy.ppp import mschap
from npppy.ppp.chap import ChapClient, ChapServer
from npppy.ppp.mppe import Keys
from npppy.ppp.mppe import Mppe as Packets
from npppy.wheel import Wheel

from .mppe_rig import BEST, REQUIRED, Duo
from .ppp_rig import request_for
from .test_ppp_mppe import packet

# RFC 2759 section 9.2 and RFC 3079 section 3.5.3: the same login.
CHALLENGE = bytes.fromhex("5B5D7C7D7B3F2F3E3C2C602132262628")
PEER_CHALLENGE = bytes.fromhex("21402324255E262A28295F2B3A337C7E")
RESPONSE = bytes.fromhex("82309ECD8D708B5EA08FAA3981CD83544233114A3D85D6DF")
START = bytes.fromhex("8B7CDC149B993A1BA118CB153F56DCCB")
LOGIN = MsChapV2(1, CHALLENGE, PEER_CHALLENGE, RESPONSE)

PASSWORDS = (b"clientPass", b"", b"x" * 255, "pässwört€".encode(), b"p\xe4ss", bytes(range(1, 32)))


def users(tmp_path: Path, name: bytes = b"User", password: bytes = b"clientPass") -> LocalUsers:
    file = tmp_path / "npppd-users"
    file.write_bytes(name + b":password=" + b"".join(b"\\%03o" % octet for octet in password) + b":\n")
    found = UsersFile(file)
    assert found.refresh() == []
    return LocalUsers(found, random.Random(1).randbytes)


def ask(realm: LocalUsers, proof: Proof, name: str = "User", account: str = "User", *, keys: bool = True) -> Answer:
    return realm.check(request_for(proof, username=name, account=account, keys=keys))


def test_the_keys_of_the_rfc(tmp_path: Path) -> None:
    answer = ask(users(tmp_path), LOGIN)
    assert isinstance(answer, Accept)
    assert answer.keys is not None
    assert answer.keys.send == START
    assert answer.authenticator_response == "S=407A5589115FD0D6209F510FE9C04566932CDA56"
    # They are secrets.
    assert START.hex() not in repr(answer)
    assert "keys" not in repr(answer)


def test_who_gets_none(tmp_path: Path) -> None:
    realm = users(tmp_path)
    hashed = mschap.nt_password_hash(b"clientPass")
    proofs = (
        Pap(b"clientPass"),
        Chap(1, b"x", md5(b"\1clientPassx").digest()),
        # MPPE has other keys for this one (RFC 3079 section 2), of which there is no use.
        MsChapV1(1, bytes(8), mschap.challenge_response(bytes(8), hashed)),
    )
    for proof in proofs:
        answer = ask(realm, proof)
        assert isinstance(answer, Accept)
        assert answer.keys is None
    answer = ask(realm, LOGIN, keys=False)
    assert isinstance(answer, Accept)
    assert answer.keys is None
    assert isinstance(ask(realm, MsChapV2(1, CHALLENGE, PEER_CHALLENGE, bytes(24))), Reject)
    assert isinstance(ask(realm, LOGIN, account="nobody"), Reject)


class Side:
    """A host of either side of CHAP."""

    peer_mru = 1500

    def __init__(self, seed: int, name: bytes, password: bytes) -> None:
        self.rng = random.Random(seed)
        self.wheel = Wheel(1000.0)
        self.sent: list[bytes] = []
        self.secret = name, password
        self.logins: list[tuple[bytes, Proof]] = []
        self.outcome: bool | None = None

    def random(self, count: int) -> bytes:
        return self.rng.randbytes(count)

    def send(self, protocol: int, payload: bytes) -> None:
        self.sent.append(payload)

    def log(self, level: int, text: str) -> None:
        """Nobody reads it."""

    def remark(self, text: str, now: float) -> None:
        """Nobody reads it."""

    def credentials(self) -> tuple[bytes, bytes]:
        return self.secret

    def authenticated(self, success: bool, message: str, now: float) -> None:
        self.outcome = success

    def chap_name(self) -> bytes:
        return b"bng"

    def login(self, username: bytes, proof: Proof, now: float) -> None:
        self.logins.append((username, proof))

    def login_failed(self, reason: str, now: float) -> None:
        raise AssertionError(reason)


def log_in(realm: LocalUsers, seed: int, name: bytes, password: bytes) -> tuple[Keys | None, Keys | None]:
    """The keys of the server, and of the client."""
    near, far = Side(seed, name, password), Side(-seed - 1, name, password)
    server, client = ChapServer(near, AuthMethod.MSCHAPV2), ChapClient(far, AuthMethod.MSCHAPV2)
    server.start(1000.0)
    client.receive(near.sent[-1], 1000.0)
    # The Challenge and the Response come twice: that changes nothing.
    keys = client.keys
    client.receive(near.sent[-1], 1000.0)
    assert client.keys is keys
    server.receive(far.sent[0], 1000.0)
    ((username, proof),) = near.logins
    answer = ask(realm, proof, username.decode(), username.decode().rpartition("\\")[2])
    assert isinstance(answer, Accept)
    server.answer(answer, 1000.0)
    client.receive(near.sent[-1], 1000.0)
    assert far.outcome is True
    return answer.keys, client.keys


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("name", [b"User", b"DOMAIN\\User"])
def test_both_sides_have_the_same(tmp_path: Path, name: bytes, password: bytes) -> None:
    realm = users(tmp_path, password=password)
    seen = set()
    for seed in range(5):
        ours, theirs = log_in(realm, seed, name, password)
        assert ours is not None
        assert theirs is not None
        assert (ours.send, ours.receive) == (theirs.receive, theirs.send)
        assert ours.send != ours.receive
        seen |= set(ours)
        here, there = Packets.begin(ours, BEST, BEST), Packets.begin(theirs, BEST, BEST)
        assert there.receive.decrypt(here.send.encrypt(packet(1))[2:]) == packet(1)
        assert here.receive.decrypt(there.send.encrypt(packet(2))[2:]) == packet(2)
    # Each login has its own.
    assert len(seen) == 10


def test_a_session_of_a_local_user(tmp_path: Path) -> None:
    realm = users(tmp_path, b"alice", b"secret")
    duo = Duo(REQUIRED, Mppe.YES, password=b"secret")

    def answer(request: Request) -> Answer:
        assert request.keys
        return realm.check(request)

    duo.rig.aaa.answer = answer  # type: ignore[method-assign]
    assert duo.run(2, until=lambda: duo.both_up)
    duo.check_data()
    assert not duo.clear(duo.near)
    assert not duo.clear(duo.far)
