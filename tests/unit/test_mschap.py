"""RFC 2759 section 9.2: the examples."""

from __future__ import annotations

import pytest

from npppy.ppp import mschap

CHALLENGE = bytes.fromhex("5B5D7C7D7B3F2F3E3C2C602132262628")
PEER_CHALLENGE = bytes.fromhex("21402324255E262A28295F2B3A337C7E")
USER, PASSWORD = b"User", b"clientPass"
RESPONSE = bytes.fromhex("82309ECD8D708B5EA08FAA3981CD83544233114A3D85D6DF")


def test_examples_of_section_9_2() -> None:
    assert mschap.challenge_hash(PEER_CHALLENGE, CHALLENGE, USER).hex() == "d02e4386bce91226"
    assert mschap.nt_password_hash(PASSWORD).hex() == "44ebba8d5312b8d611474411f56989ae"
    assert mschap.nt_response(CHALLENGE, PEER_CHALLENGE, USER, PASSWORD) == RESPONSE
    assert (
        mschap.authenticator_response(PASSWORD, RESPONSE, PEER_CHALLENGE, CHALLENGE, USER)
        == "S=407A5589115FD0D6209F510FE9C04566932CDA56"
    )


@pytest.mark.parametrize(
    ("name", "bare"), [(b"user", b"user"), (b"DOMAIN\\user", b"user"), (b"A\\B\\user", b"user"), (b"\\", b"")]
)
def test_domain_is_not_hashed(name: bytes, bare: bytes) -> None:
    assert mschap.without_domain(name) == bare


def test_password_in_unicode_and_in_octets() -> None:
    assert mschap.nt_password_hash("pässwort".encode()) != mschap.nt_password_hash("pässwort".encode("latin-1") + b"x")
    # What is no UTF-8 is widened octet by octet.
    assert mschap.nt_password_hash(b"p\xe4ss") == mschap.nt_password_hash("päss".encode())
