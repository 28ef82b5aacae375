"""The computations of MS-CHAPv2, RFC 2759 section 8, of which MS-CHAPv1 has some (RFC 2433 appendix A)."""

from __future__ import annotations

from hashlib import sha1

from Crypto.Cipher import DES
from Crypto.Hash import MD4

_MAGIC1 = b"Magic server to client signing constant"
_MAGIC2 = b"Pad to make it do more than one iteration"


def nt_password_hash(password: bytes) -> bytes:
    """Section 8.3.  *password* is UTF-8; what is not is widened octet by octet, as clients do that know no Unicode."""
    try:
        text = password.decode()
    except UnicodeDecodeError:
        text = password.decode("latin-1")
    return MD4.new(text.encode("utf-16-le")).digest()


def challenge_hash(peer_challenge: bytes, challenge: bytes, username: bytes) -> bytes:
    """Section 8.2.  *username* comes without its domain."""
    return sha1(peer_challenge + challenge + username).digest()[:8]


def challenge_response(challenge: bytes, password_hash: bytes) -> bytes:
    """Section 8.5: 24 octets from 8 and 16; with the Challenge itself, the NT response of MS-CHAPv1."""
    key = password_hash + bytes(5)
    return b"".join(DES.new(_des_key(key[i : i + 7]), DES.MODE_ECB).encrypt(challenge) for i in (0, 7, 14))


def _des_key(seven: bytes) -> bytes:
    """56 bits spread over eight octets; the parity bits are nobody's concern (section 8.6)."""
    bits = int.from_bytes(seven, "big")
    return bytes((bits >> shift & 0x7F) << 1 for shift in (49, 42, 35, 28, 21, 14, 7, 0))


def nt_response(challenge: bytes, peer_challenge: bytes, username: bytes, password: bytes) -> bytes:
    """Section 8.1: what a peer with this password answers."""
    return challenge_response(challenge_hash(peer_challenge, challenge, username), nt_password_hash(password))


def authenticator_response(
    password: bytes, response: bytes, peer_challenge: bytes, challenge: bytes, username: bytes
) -> str:
    """Section 8.7: what proves to the peer that the authenticator knows the password, "S=" and 40 hex digits."""
    hash_hash = MD4.new(nt_password_hash(password)).digest()
    digest = sha1(hash_hash + response + _MAGIC1).digest()
    return "S=" + sha1(digest + challenge_hash(peer_challenge, challenge, username) + _MAGIC2).hexdigest().upper()


def without_domain(username: bytes) -> bytes:
    """The name that the hashes are over: ``DOMAIN\\user`` counts as ``user``."""
    return username.rpartition(b"\\")[2]
