"""PPPoE on all its access ports.  No I/O: a shell feeds it frames and sends for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ..config.model import PppoeOptions, Tunnel
from ..port import Port
from ..ppp.cause import Cause
from ..ppp.link import Call, Upper
from ..wheel import Wheel
from .access import AccessPort, Journal, World
from .call import Transmit
from .cookie import CookieJar


class Engine:
    """The access ports, and the tunnels that they offer."""

    __slots__ = ("_tunnels", "_world", "drops", "ports", "unknown_port")

    def __init__(
        self,
        tunnels: Sequence[Tunnel],
        open_session: Callable[[Call, float], Upper | None],
        rng: Callable[[int], bytes],
        wheel: Wheel,
        journal: Journal,
    ) -> None:
        self._world = World(open_session, rng, wheel, journal, CookieJar(rng))
        self._tunnels = _by_interface(tunnels)
        self.ports: dict[Port, AccessPort] = {}
        #: Packets dropped and requests refused, by port and reason; kept while a port is down.
        self.drops: dict[Port, Counter[str]] = {}
        #: Frames from ports that are not up.
        self.unknown_port = 0

    def interfaces(self) -> frozenset[str]:
        """The interfaces that tunnels listen on."""
        return frozenset(self._tunnels)

    def port_up(self, port: Port, mac: bytes, mtu: int, transmit: Transmit, now: float) -> AccessPort:
        """Listen on a port.

        *mac* is the interface's, *mtu* its MTU in octets; *transmit* sends a frame without VLAN tags, and neither
        raises nor calls back.  A port that is up with another MAC address must go down first.
        """
        access = AccessPort(self._world, port, mac, mtu, transmit, self.drops.setdefault(port, Counter()))
        access.configure(self._tunnels.get(port.interface, ()), now)
        self.ports[port] = access
        return access

    def port_down(
        self, port: Port, reason: str, now: float, *, cause: Cause = Cause.LOST_CARRIER, padt: bool = False
    ) -> None:
        """End a port and its sessions, with a PADT each if the interface can still send."""
        access = self.ports.pop(port, None)
        if access is not None:
            access.close(cause, reason, now, padt=padt)

    def receive(self, port: Port, frame: bytes, now: float) -> None:
        """An Ethernet frame without VLAN tags.  Whatever it holds, this does not raise."""
        access = self.ports.get(port)
        if access is None:
            self.unknown_port += 1
        else:
            access.receive(frame, now)

    def reconfigure(self, tunnels: Sequence[Tunnel], now: float) -> None:
        """Take over a new configuration: new sessions get it, sessions of what is no longer offered end."""
        self._tunnels = _by_interface(tunnels)
        for port, access in list(self.ports.items()):
            offered = self._tunnels.get(port.interface)
            if offered is None:
                self.port_down(port, "interface no longer listened on", now, cause=Cause.ADMIN_RESET, padt=True)
            else:
                access.configure(offered, now)
        for port in [port for port in self.drops if port.interface not in self._tunnels]:
            del self.drops[port]


def _by_interface(tunnels: Sequence[Tunnel]) -> dict[str, list[tuple[Tunnel, PppoeOptions]]]:
    found: dict[str, list[tuple[Tunnel, PppoeOptions]]] = {}
    for tunnel in tunnels:
        if isinstance(tunnel.carrier, PppoeOptions):
            for interface in tunnel.carrier.interfaces:
                found.setdefault(interface, []).append((tunnel, tunnel.carrier))
    return found
