"""How subscribers reach their concentrator: on an Ethernet by PPPoE, through a LAC's tunnels, or by PPTP."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Protocol, TypeVar

from ..l2tp.service import Endpoint, Transmit
from ..pppoe.codec import AccessLine
from ..wheel import Wheel
from . import filter, l2tp, pppoe, pptp, tcp
from .load import Dial, Line
from .udp import Place, Sockets
from .wire import Wire

Item = TypeVar("Item")


def fill(template: str, number: int) -> str:
    """*template* for one subscriber: ``%d`` and ``{n}`` stand for its number."""
    return template.replace("%d", str(number)).replace("{n}", str(number))


def part(whole: int, number: int, count: int) -> range:
    """What the *number*-th of *count* processes has of *whole* things in a row: as many as the others, or one less."""
    return range(whole * number // count, whole * (number + 1) // count)


def rotate(places: tuple[Item, ...], by: int) -> tuple[Item, ...]:
    """The same in turn, with that first which comes after *by* others."""
    by %= len(places) or 1
    return places[by:] + places[:by]


class Carrier(Protocol):
    """The sockets of a load, and the protocol on them."""

    def start(self, clock: Callable[[], float], after: Callable[[], None]) -> None:
        """Take what comes, with *clock*'s time, and call *after* behind it."""

    def dial(self, line: Line) -> Dial:
        """How a line reaches the concentrator."""

    def shut(self, now: float) -> None:
        """There are no calls any more: take leave."""

    @property
    def busy(self) -> bool:
        """Whether what was said is not acknowledged yet."""

    def close(self) -> None:
        """Close the sockets."""

    def cut(self, now: float) -> None:
        """There are no calls any more, because the power has been cut: forget what they had in common."""

    @property
    def drops(self) -> Counter[str]:
        """What was dropped, by reason."""


class Access(Protocol):
    """What to make a carrier of."""

    def open(self, numbers: range, wheel: Wheel, rng: Callable[[int], bytes]) -> Carrier:
        """A carrier for the subscribers of these numbers.  Raises :class:`OSError`."""

    def share(self, number: int, count: int) -> Access:
        """What one of *count* processes, between which the subscribers are divided, has of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ethernet:
    """A PPPoE segment, and how its hosts differ."""

    wishes: pppoe.Wishes
    interface: str
    #: A subscriber's MAC address is this and its number; None: all have the interface's own.
    mac_base: int | None
    #: None: each has its number; empty: none is sent.
    host_uniq: bytes | None = None
    #: Templates.
    circuit_id: str = ""
    remote_id: str = ""

    def open(self, numbers: range, wheel: Wheel, rng: Callable[[int], bytes]) -> Carrier:
        return _Hosts(self, numbers, wheel)

    def share(self, number: int, count: int) -> Access:
        return self


class _Hosts:
    def __init__(self, ethernet: Ethernet, numbers: range, wheel: Wheel) -> None:
        self._ethernet = ethernet
        base = ethernet.mac_base
        self._wire = Wire(ethernet.interface, None if base is None else (base + numbers[0], base + numbers[-1]))
        self._segment = pppoe.Segment(ethernet.wishes, self._wire.transmit, wheel)

    def start(self, clock: Callable[[], float], after: Callable[[], None]) -> None:
        self._wire.start(self._segment.receive, clock, after)

    def dial(self, line: Line) -> Dial:
        ethernet, number = self._ethernet, line.number
        base = ethernet.mac_base
        mac = self._wire.mac if base is None else (base + number).to_bytes(6, "big")
        uniq = number.to_bytes(4, "big") if ethernet.host_uniq is None else ethernet.host_uniq or None
        access_line = AccessLine(fill(ethernet.circuit_id, number).encode(), fill(ethernet.remote_id, number).encode())
        return self._segment.host(mac, uniq, access_line, line)

    def shut(self, now: float) -> None:
        """Hosts have nothing in common that would end."""

    cut = shut

    @property
    def busy(self) -> bool:
        return False

    def close(self) -> None:
        self._wire.close()

    @property
    def drops(self) -> Counter[str]:
        return self._wire.drops + self._segment.drops


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnels:
    """The tunnels of a LAC, and how their calls differ."""

    wishes: l2tp.Wishes
    server: Place
    #: Places of this host's to speak from, in turn; port 0 is any.
    bind: tuple[Place, ...] = ()
    tunnels: int = 1
    #: Each tunnel has a port of its own.
    ports: bool = False
    #: Templates.
    calling: str = ""
    called: str = ""

    def open(self, numbers: range, wheel: Wheel, rng: Callable[[int], bytes]) -> Carrier:
        return _Calls(self, wheel, rng)

    def share(self, number: int, count: int) -> Access:
        mine = part(self.tunnels, number, count)
        return replace(self, tunnels=len(mine), bind=rotate(self.bind, mine.start))


class _Calls:
    def __init__(self, chosen: Tunnels, wheel: Wheel, rng: Callable[[int], bytes]) -> None:
        self._chosen = chosen
        count = chosen.tunnels if chosen.ports else min(len(chosen.bind) or 1, chosen.tunnels)
        self._sockets = Sockets(chosen.server, chosen.bind, count)
        hostname = socket.gethostname()
        self._lac = l2tp.Lac(chosen.wishes, self._sockets.ways, chosen.tunnels, rng, wheel, hostname)

    def start(self, clock: Callable[[], float], after: Callable[[], None]) -> None:
        lac = self._lac

        def receive(endpoint: Endpoint, datagram: bytes, transmit: Transmit, now: float) -> None:
            lac.receive(lac.service, endpoint, datagram, transmit, now)

        def flush() -> None:
            lac.flush(clock())
            after()

        self._sockets.start(receive, clock, flush)

    def dial(self, line: Line) -> Dial:
        chosen, number = self._chosen, line.number
        return self._lac.call(number, fill(chosen.calling, number), fill(chosen.called, number), line)

    def shut(self, now: float) -> None:
        self._lac.shut(now)

    def cut(self, now: float) -> None:
        self._lac.cut(now)

    @property
    def busy(self) -> bool:
        return self._lac.busy

    def close(self) -> None:
        self._sockets.close()

    @property
    def drops(self) -> Counter[str]:
        return self._sockets.drops + self._lac.service.drops


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """PPTP clients, and how their calls differ."""

    wishes: pptp.Wishes
    server: tcp.Place
    #: Of all subscribers, in whichever process.
    numbers: range
    #: Addresses of this host's to speak from, in turn.
    bind: tuple[IPv4Address, ...] = ()
    #: Control connections.
    tunnels: int = 1
    #: Template.
    called: str = ""

    def open(self, numbers: range, wheel: Wheel, rng: Callable[[int], bytes]) -> Carrier:
        return _Dialups(self, numbers, wheel, rng)

    def share(self, number: int, count: int) -> Access:
        mine = part(self.tunnels, number, count)
        return replace(self, tunnels=len(mine), bind=rotate(self.bind, mine.start))


class _Dialups:
    def __init__(self, chosen: Clients, numbers: range, wheel: Wheel, rng: Callable[[int], bytes]) -> None:
        self._chosen = chosen
        heard = filter.calls(numbers, chosen.numbers)
        sockets = tcp.Sockets(chosen.server, chosen.bind, chosen.wishes.tunnel.negotiation_timeout, heard)
        self._sockets = sockets
        self._pns = pptp.Pns(
            chosen.wishes,
            sockets.connect,
            sockets.hush,
            sockets.transmit,
            chosen.tunnels,
            rng,
            wheel,
            socket.gethostname(),
            len(chosen.numbers),
        )

    def start(self, clock: Callable[[], float], after: Callable[[], None]) -> None:
        self._sockets.start(self._pns, clock, after)

    def dial(self, line: Line) -> Dial:
        return self._pns.call(line.number, fill(self._chosen.called, line.number), line)

    def shut(self, now: float) -> None:
        self._pns.shut(now)

    def cut(self, now: float) -> None:
        self._pns.cut(now)

    @property
    def busy(self) -> bool:
        return self._pns.busy

    def close(self) -> None:
        self._sockets.close()

    @property
    def drops(self) -> Counter[str]:
        return self._sockets.drops + self._pns.drops + self._pns.service.drops
