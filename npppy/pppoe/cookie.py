"""AC-Cookies that need no memory (RFC 2516 section 9)."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import blake2s

#: Seconds that a key period lasts: a cookie is good for one to two of them.
PERIOD = 30

COOKIE_LEN = 16


class CookieJar:
    """Makes and checks cookies: a keyed hash over the host's MAC address, the access port and coarse time."""

    __slots__ = ("_key",)

    def __init__(self, rng: Callable[[int], bytes]) -> None:
        self._key = rng(32)

    def make(self, mac: bytes, port: bytes, now: float) -> bytes:
        """The cookie for a host, 16 octets; *port* is what names the access port."""
        return self._cookie(mac, port, int(now // PERIOD))

    def valid(self, cookie: bytes, mac: bytes, port: bytes, now: float) -> bool:
        """Was *cookie* made for this host on this port in this period or the one before?"""
        period = int(now // PERIOD)
        # Both are computed and compared whatever the first says.
        fresh = hmac.compare_digest(cookie, self._cookie(mac, port, period))
        recent = hmac.compare_digest(cookie, self._cookie(mac, port, period - 1))
        return fresh or recent

    def _cookie(self, mac: bytes, port: bytes, period: int) -> bytes:
        # All but the last have a fixed length, so no two inputs run into one.
        data = mac + period.to_bytes(8, "big", signed=True) + port
        return blake2s(data, key=self._key, digest_size=COOKIE_LEN).digest()
