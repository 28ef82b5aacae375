"""Users of a file: PAP, CHAP, MS-CHAPv1 and MS-CHAPv2 checked here."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import md5, sha256

from ..config.users import User, UsersFile
from ..ppp import mschap
from ..ppp.mppe import Keys, keys_from_mschap
from .base import Accept, Answer, Chap, Eap, MsChapV1, MsChapV2, Pap, Proof, Reject, Request


def _same(ours: bytes, theirs: bytes) -> bool:
    """Compare the whole of two secrets, in a time that tells neither where they differ nor how long ours is."""
    return hmac.compare_digest(sha256(ours).digest(), sha256(theirs).digest())


def verify(proof: Proof, username: str, password: bytes) -> str | None:
    """Check a proof; returns the authenticator's response ("" where the method has none), or None.

    EAP is for servers: none of it is right here.
    """
    if isinstance(proof, Eap):
        return None
    if isinstance(proof, Pap):
        return "" if _same(password, proof.password) else None
    if isinstance(proof, Chap):
        # RFC 1994 section 4.1
        expected = md5(bytes((proof.identifier,)) + password + proof.challenge).digest()
        return "" if _same(expected, proof.response) else None
    if isinstance(proof, MsChapV1):
        expected = mschap.challenge_response(proof.challenge, mschap.nt_password_hash(password))
        return "" if _same(expected, proof.nt_response) else None
    name = mschap.without_domain(username.encode("utf-8", "surrogateescape"))
    expected = mschap.nt_response(proof.challenge, proof.peer_challenge, name, password)
    if not _same(expected, proof.nt_response):
        return None
    return mschap.authenticator_response(password, expected, proof.peer_challenge, proof.challenge, name)


class LocalUsers:
    """Answers at once, from a file that is in memory."""

    def __init__(self, users: UsersFile | None, random: Callable[[int], bytes]) -> None:
        self.users = users
        # Stands in for a user that is not there, so that it takes the same time and fails the same way: as text, as
        # most passwords are, which MS-CHAPv2 treats otherwise than octets.
        self._nobody = random(16).hex().encode()

    def check(self, request: Request) -> Answer:
        if isinstance(request.proof, Eap):
            return Reject(reason="a local realm does not do EAP")
        user = self.users.get(request.account) if self.users is not None else None
        password = user.password if user is not None else None
        response = verify(request.proof, request.username, self._nobody if password is None else password)
        if user is None:
            return Reject(reason="unknown user")
        if password is None:
            return Reject(reason="the user has no password")
        if response is None:
            return Reject(reason="wrong password")
        if request.check_calling_number and (user.calling_number or "") != request.caller.calling_number:
            return Reject(reason="wrong calling number")
        keys = None
        if request.keys and isinstance(request.proof, MsChapV2) and password is not None:
            keys = keys_from_mschap(mschap.nt_password_hash(password), request.proof.nt_response, server=True)
        return _accept(user, response, keys)


#: Most users have nothing of their own: they share one answer.
_PLAIN = Accept()


def _accept(user: User, response: str, keys: Keys | None) -> Accept:
    if not response and user.address is None and not user.address_by_peer:
        return _PLAIN
    return Accept(
        address=user.address,
        address_by_peer=user.address_by_peer,
        prefixlen=user.prefixlen,
        authenticator_response=response,
        keys=keys,
    )
