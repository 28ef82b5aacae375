"""The back end that a configuration asks for, and the interfaces that it serves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from ..config.model import Config, Interface, Ipcp, L2tpOptions, PipexChoice, PppoeOptions, PptpOptions, Tunnel
from ..tun.device import TunInterface
from ..tun.netlink import LinkState, Netlink, NetlinkError
from .base import Leftovers
from .ebpf.libbpf import BpfError
from .ebpf.plumbing import end_leftovers
from .ebpf.probe import choose
from .ip import MF, OFFSET, UDP
from .user import UserBackend

log = logging.getLogger("npppy.pipex")

#: Sessions that the maps have room for where the configuration sets no limit: as many as its pools have addresses,
#: within these bounds.
LEAST_SESSIONS = 1024
MOST_SESSIONS = 65536
#: Whatever limit it sets.
UTMOST_SESSIONS = 1 << 20

UNASKED = "no tunnel asks for another"

_KERNEL = (PipexChoice.YES, PipexChoice.EBPF)


class DataPathError(Exception):
    """What the configuration asks for cannot be had; the message says where it asks, and why not."""


class DataPath:
    """What carries the data of all sessions."""

    def __init__(self, config: Config, pins: Path) -> None:
        """Choose the back end, and end what an earlier process has left of it.

        Raises :class:`DataPathError` if a tunnel insists on a back end that does not work here.
        """
        #: What sessions of an earlier process had counted, of which there may be many: to be cleared by who needs it.
        self.leftovers = Leftovers({}, {})
        self.tuns: dict[str, TunInterface] = {}
        self._access: frozenset[str] = frozenset()
        self._fast = False
        self._tunnelled = False
        #: Is given the outer packets of L2TP, IPv4 or IPv6 and UDP, which the programs could not take the session's out
        #: of after they had been decrypted.
        self.outer: Callable[[bytes, float], None] | None = None
        # Our own addresses, as far as anything of L2TP or PPTP is left to the kernel.
        self._own: frozenset[bytes] = frozenset()
        if not _wanting(config.tunnels):
            self.backend = UserBackend(UNASKED)
            log.info("pipex: back end user, Python carries all packets: %s", UNASKED)
            end_leftovers(pins, self.leftovers)
            return
        self.backend = choose(capacity(config), pins, self.leftovers)
        try:
            self.configure(config)
        except DataPathError:
            self.backend.close()
            raise

    def outgrown(self, config: Config) -> bool:
        """Whether *config* wants a better back end than was chosen, which might be had."""
        return self.backend.reason == UNASKED and bool(_wanting(config.tunnels))

    def configure(self, config: Config) -> None:
        """Take another configuration: which links are attached from their next news on.

        Raises :class:`DataPathError`, and then nothing has changed.
        """
        wanting = _wanting(config.tunnels)
        if self.backend.reason:
            for tunnel in wanting:
                if tunnel.pipex is PipexChoice.EBPF:
                    raise DataPathError(f"{tunnel.where}: pipex ebpf cannot be had: {self.backend.reason}")
        served = frozenset(name for tunnel in config.tunnels for name in interfaces(tunnel))
        for name in self._access - served:
            self.backend.detach_access(name)
        # Where the kernel is no longer wanted, it still has sessions from before.
        self._access = self._access & served | frozenset(name for tunnel in wanting for name in interfaces(tunnel))
        self._fast = any(tunnel.pipex_fast for tunnel in wanting)
        self._tunnelled = any(_is_tunnelled(tunnel) for tunnel in wanting) or (
            self._tunnelled and any(_is_tunnelled(tunnel) for tunnel in config.tunnels)
        )

    def close(self) -> None:
        """Leave nothing; all flows are closed before."""
        for name in list(self.tuns):
            self.close_interface(name)
        self.backend.close()

    # Shared interfaces.

    def open_interface(self, interface: Interface, mtu: int) -> None:
        """Make a shared interface.  Raises :class:`~npppy.tun.device.TunError`."""
        tun = self.tuns[interface.name] = self.backend.open_interface(interface, mtu, ())
        shared = self.backend.attach(tun.name, int(tun.address), tun.write, tun.emit)
        shared.outer = self._take_outer
        tun.start(shared.deliver)

    def close_interface(self, name: str) -> None:
        """Remove it; its sessions have ended, and its routes go with it."""
        self.backend.detach(name)
        self.tuns.pop(name).close()

    # Links.

    def link(self, link: LinkState) -> None:
        """An access interface is as said.  To be called before the carrier hears of it, unless it has gone."""
        if not link.present:
            self.backend.detach_access(link.name)
        elif link.name in self._access:
            try:
                self.backend.attach_access(link.name, link.ifindex)
            except BpfError as error:
                log.error("iface=%s pipex: Python carries the sessions that come there: %s", link.name, error)

    def follow(self) -> None:
        """Look which interfaces packets may leave and come by; something is new of some interface or address."""
        self.backend.follow_core(self._fast, self._tunnelled)
        self._own = _addresses() if self._tunnelled else frozenset()

    def _take_outer(self, packet: bytes, now: float) -> bool:
        """A packet that is for no subscriber; whether it has been taken."""
        four = packet[0] >> 4 == 4
        # Nobody but the programs can bring us what is for ourselves: the kernel would not route it to a shared
        # interface.
        if self.outer is None or (packet[16:20] if four else packet[24:40]) not in self._own:
            return False
        if packet[9 if four else 6] != UDP or (four and int.from_bytes(packet[6:8], "big") & (MF | OFFSET)):
            return False
        self.outer(packet, now)
        return True


def interfaces(tunnel: Tunnel) -> Iterable[str]:
    """The access interfaces of a tunnel."""
    return tunnel.carrier.interfaces if isinstance(tunnel.carrier, PppoeOptions) else ()


def capacity(config: Config) -> int:
    """How many sessions the maps are to have room for."""
    if config.max_session:
        return min(config.max_session, UTMOST_SESSIONS)
    pools: dict[str, Ipcp] = {interface.ipcp.name: interface.ipcp for interface in config.interfaces}
    addresses = sum(
        int(piece.last) - int(piece.first) + 1 for ipcp in pools.values() for piece in ipcp.ranges
    )
    return min(max(addresses, LEAST_SESSIONS), MOST_SESSIONS)


def _wanting(tunnels: Iterable[Tunnel]) -> list[Tunnel]:
    """The tunnels whose data the kernel is to carry."""
    return [
        tunnel
        for tunnel in tunnels
        if tunnel.pipex in _KERNEL and isinstance(tunnel.carrier, PppoeOptions | L2tpOptions | PptpOptions)
    ]


def _is_tunnelled(tunnel: Tunnel) -> bool:
    return isinstance(tunnel.carrier, L2tpOptions | PptpOptions)


def _addresses() -> frozenset[bytes]:
    try:
        netlink = Netlink()
        try:
            return netlink.addresses()
        finally:
            netlink.close()
    except (NetlinkError, OSError) as error:
        log.error("pipex: %s", error)
        return frozenset()
