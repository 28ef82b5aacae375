"""How subscribers reach their concentrator: on an Ethernet by PPPoE, through a LAC's tunnels, or by PPTP."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from ..l2tp.service import Endpoint, Transmit
from ..pppoe.codec import AccessLine
from ..wheel import Wheel
from . import l2tp, pppoe, pptp, tcp
from .load import Dial, Line
from .udp import Place, Sockets
from .wire import Wire


def fill(template: str, number: int) -> str:
    """*template* for one subscriber: ``%d`` and ``{n}`` stand for its number."""
    return template.replace("%d", str(number)).replace("{n}", str(number))


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

    @property
    def drops(self) -> Counter[str]:
        """What was dropped, by reason."""


class Access(Protocol):
    """What to make a carrier of."""

    def open(self, wheel: Wheel, rng: Callable[[int], bytes]) -> Carrier:
        """Raises :class:`OSError`."""


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

    def open(self, wheel: Wheel, rng: Callable[[int], bytes]) -> Carrier:
        return _Hosts(self, wheel)


class _Hosts:
    def __init__(self, ethernet: Ethernet, wheel: Wheel) -> None:
        self._ethernet = ethernet
        self._wire = Wire(ethernet.interface, promiscuous=ethernet.mac_base is not None)
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

    def open(self, wheel: Wheel, rng: Callable[[int], bytes]) -> Carrier:
        return _Calls(self, wheel, rng)


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
        return self._lac.call(fill(chosen.calling, number), fill(chosen.called, number), line)

    def shut(self, now: float) -> None:
        self._lac.shut(now)

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
    #: Addresses of this host's to speak from, in turn.
    bind: tuple[IPv4Address, ...] = ()
    #: Control connections.
    tunnels: int = 1
    #: Template.
    called: str = ""

    def open(self, wheel: Wheel, rng: Callable[[int], bytes]) -> Carrier:
        return _Dialups(self, wheel, rng)


class _Dialups:
    def __init__(self, chosen: Clients, wheel: Wheel, rng: Callable[[int], bytes]) -> None:
        self._chosen = chosen
        sockets = tcp.Sockets(chosen.server, chosen.bind, chosen.wishes.tunnel.negotiation_timeout)
        self._sockets = sockets
        hostname = socket.gethostname()
        self._pns = pptp.Pns(
            chosen.wishes, sockets.connect, sockets.transmit, chosen.tunnels, rng, wheel, hostname
        )

    def start(self, clock: Callable[[], float], after: Callable[[], None]) -> None:
        self._sockets.start(self._pns, clock, after)

    def dial(self, line: Line) -> Dial:
        return self._pns.call(line.number, fill(self._chosen.called, line.number), line)

    def shut(self, now: float) -> None:
        self._pns.shut(now)

    @property
    def busy(self) -> bool:
        return self._pns.busy

    def close(self) -> None:
        self._sockets.close()

    @property
    def drops(self) -> Counter[str]:
        return self._sockets.drops + self._pns.drops + self._pns.service.drops
