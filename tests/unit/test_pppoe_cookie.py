"""AC-Cookies (RFC 2516 section 9; npppd.md section 8 row 9: the cookie was neither bound nor verified)."""

from __future__ import annotations

import pytest

from npppy.pppoe.cookie import COOKIE_LEN, PERIOD, CookieJar

MAC = bytes.fromhex("020000000101")
PORT = b"eth0"


@pytest.fixture
def jar() -> CookieJar:
    return CookieJar(lambda count: bytes(range(count)))


def test_good_for_one_to_two_periods(jar: CookieJar) -> None:
    made = 10 * PERIOD + 1.0
    cookie = jar.make(MAC, PORT, made)
    assert len(cookie) == COOKIE_LEN
    for later in (0, 1, PERIOD - 1, PERIOD, 2 * PERIOD - 2):
        assert jar.valid(cookie, MAC, PORT, made + later)
    assert not jar.valid(cookie, MAC, PORT, made + 2 * PERIOD)
    assert not jar.valid(cookie, MAC, PORT, made - 2 * PERIOD)


def test_good_in_the_first_period_of_a_clock_that_begins_at_zero(jar: CookieJar) -> None:
    assert jar.valid(jar.make(MAC, PORT, 0.0), MAC, PORT, 0.0)


def test_bound_to_host_and_port(jar: CookieJar) -> None:
    cookie = jar.make(MAC, PORT, 0.0)
    assert not jar.valid(cookie, bytes.fromhex("020000000102"), PORT, 0.0)
    assert not jar.valid(cookie, MAC, b"eth1", 0.0)


def test_bound_to_the_key(jar: CookieJar) -> None:
    assert not CookieJar(bytes).valid(jar.make(MAC, PORT, 0.0), MAC, PORT, 0.0)


def test_anything_else_is_not_valid(jar: CookieJar) -> None:
    cookie = jar.make(MAC, PORT, 0.0)
    flipped = [cookie[:at] + bytes([cookie[at] ^ 1]) + cookie[at + 1 :] for at in range(COOKIE_LEN)]
    for wrong in (b"", cookie[:-1], cookie[:4], cookie + b"\0", bytes(COOKIE_LEN), *flipped):
        assert not jar.valid(wrong, MAC, PORT, 0.0)
