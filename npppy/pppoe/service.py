"""A tunnel block as one access port offers it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..config.model import PppoeOptions, Tunnel

#: Of what sessions have in common, so many are remembered, a service: hosts may ask for any MRU.
MAX_TERMS = 1024


class Bucket:
    """A token bucket: *rate* events a second, and as many at once."""

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._left = float(rate)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """May one more happen at *now*?"""
        left = min(float(self.rate), self._left + (now - self._at) * self.rate)
        self._at = now
        if left < 1.0:
            self._left = left
            return False
        self._left = left - 1.0
        return True


class Terms(NamedTuple):
    """What sessions have in common: one for all that have asked for the same."""

    tunnel: Tunnel
    #: The service that was asked for.
    name: str
    max_mru: int


class Service:
    """A tunnel on a port: its options, its limits and what they count.  A reload changes it under its sessions."""

    __slots__ = ("_padi", "_terms", "ac_name", "dump_in", "dump_out", "macs", "options", "sessions", "tunnel")

    def __init__(self, tunnel: Tunnel, options: PppoeOptions, mac: bytes) -> None:
        self.sessions = 0
        #: Sessions by MAC address, while there is a limit of these.
        self.macs: dict[bytes, int] = {}
        self.configure(tunnel, options, mac)

    def configure(self, tunnel: Tunnel, options: PppoeOptions, mac: bytes) -> None:
        """Take over new options; *mac* is the port's."""
        self.tunnel = tunnel
        self.options = options
        self._terms: dict[tuple[str, int], Terms] = {}
        self.ac_name = (mac.hex(":") if options.ac_name is None else options.ac_name).encode()
        self.dump_in = options.session_in_pktdump
        self.dump_out = options.session_out_pktdump
        self._padi = Bucket(options.padi_limit) if options.padi_limit else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that may be asked for, but for the empty one that any service answers to."""
        return self.options.service_names or ("",)

    def may_answer(self, now: float) -> bool:
        """Does ``pppoe-padi-limit`` leave room for one more PADI?"""
        return self._padi is None or self._padi.take(now)

    def pado_delay(self) -> int | None:
        """Milliseconds that a PADO is held back now; None: it is not sent."""
        delay: int | None = 0
        for step in self.options.pado_delay:
            if step.sessions > self.sessions:
                break
            delay = step.delay
        return delay

    def is_full_for(self, mac: bytes) -> bool:
        """Has a host as many sessions as ``pppoe-session-limit`` allows?"""
        limit = self.options.session_limit
        return limit != 0 and self.macs.get(mac, 0) >= limit

    def terms(self, name: str, max_mru: int) -> Terms:
        """Of a session that begins now."""
        key = name, max_mru
        found = self._terms.get(key)
        if found is None:
            if len(self._terms) >= MAX_TERMS:
                self._terms.clear()
            found = self._terms[key] = Terms(self.tunnel, name, max_mru)
        return found

    def count(self, mac: bytes) -> None:
        """A session has begun."""
        self.sessions += 1
        if self.options.session_limit:
            self.macs[mac] = self.macs.get(mac, 0) + 1

    def discount(self, mac: bytes) -> None:
        """A session has ended."""
        self.sessions -= 1
        if self.options.session_limit:
            left = self.macs[mac] - 1
            if left:
                self.macs[mac] = left
            else:
                del self.macs[mac]

    def recount(self, macs: Iterable[bytes]) -> None:
        """These are the hosts of all sessions that count; there may be a limit now where there was none."""
        self.macs = dict(Counter(macs)) if self.options.session_limit else {}
