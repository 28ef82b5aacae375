"""Back end ``user``: the data path in Python, over one tun device for each configured interface.

There is no I/O here: :class:`SharedInterface` is handed what writes a packet to the device, and is given the packets
read from it (see :mod:`npppy.tun.device`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .base import Counters, FlowSpec
from .icmp import FRAGMENTATION_NEEDED, HOST_UNREACHABLE, RateLimit, unreachable
from .ip import CLASS_D, DF, HEADER, MIN_MTU, TCP, clamp_mss, fragment, idle
from .lookup import Table, mask

#: ICMP errors a second and interface, for each of the two reasons, so that a scan of the pool does not stop path MTU
#: discovery; and how many at once.
ICMP_RATE: Final = 1000
ICMP_BURST: Final = 100

#: PPP's Protocol field for IPv4.
_PPP_IP: Final = b"\x00\x21"
#: The headers of IPv4 and TCP without options (RFC 6691).
_TCPIP: Final = 40

#: Raises OSError where the packet could not be sent.
Send = Callable[[bytes], object]


class SharedInterface:
    """The device that sessions share, as their data path sees it."""

    __slots__ = (
        "_big_limit",
        "_table",
        "_unknown_limit",
        "address",
        "emit",
        "icmp_errors",
        "ignored",
        "name",
        "unknown",
        "write",
    )

    def __init__(self, name: str, address: int, write: Send, emit: Send, table: Table[UserFlow]) -> None:
        """*write* takes packets from peers to the IP stack, *emit* packets of our own (whose source is *address*)."""
        self.name = name
        self.address = address
        self.write = write
        self.emit = emit
        #: Packets for an address without a session.
        self.unknown = 0
        #: Packets from the stack that are not for one peer: IPv6, multicast, or malformed.
        self.ignored = 0
        #: ICMP errors sent.
        self.icmp_errors = 0
        self._table = table
        self._unknown_limit = RateLimit(ICMP_RATE, ICMP_BURST)
        self._big_limit = RateLimit(ICMP_RATE, ICMP_BURST)

    def deliver(self, packet: bytes, now: float) -> None:
        """A packet from the device, for one of the peers.  Whatever it holds, this does not raise."""
        size = len(packet)
        if size < 20 or HEADER[packet[0]] > size or packet[2] << 8 | packet[3] != size:
            self.ignored += 1
            return
        destination = int.from_bytes(packet[16:20], "big")
        flow = self._table.hosts.get(destination)
        if flow is None:
            if destination >= CLASS_D:
                self.ignored += 1
                return
            flow = self._table.network(destination)
            if flow is None:
                self.unknown += 1
                self._refuse(packet, HOST_UNREACHABLE, 0, self._unknown_limit, now)
                return
        flow.output(packet, self, now)

    def too_big(self, packet: bytes, mtu: int, now: float) -> None:
        """Tell the sender of *packet* that packets to here must not have more than *mtu* octets."""
        self._refuse(packet, FRAGMENTATION_NEEDED, mtu, self._big_limit, now)

    def _refuse(self, packet: bytes, code: int, mtu: int, limit: RateLimit, now: float) -> None:
        error = unreachable(packet, self.address, code, mtu)
        if error is None or not limit.take(now):
            return
        try:
            self.emit(error)
        except OSError:
            # The sender may have no route any more; an ICMP error is a courtesy, and only those sent are counted.
            return
        self.icmp_errors += 1


class UserFlow:
    """The data of one session."""

    __slots__ = (
        "_active",
        "_address",
        "_filter",
        "_in_bytes",
        "_in_errors",
        "_in_mss",
        "_in_packets",
        "_interface",
        "_mtu",
        "_network",
        "_out_bytes",
        "_out_errors",
        "_out_mss",
        "_out_packets",
        "_prefixlen",
        "_send",
        "_table",
    )

    def __init__(self, spec: FlowSpec, interface: SharedInterface, table: Table[UserFlow], now: float) -> None:
        self._interface = interface
        # None once the flow is closed.
        self._table: Table[UserFlow] | None = table
        self._send = spec.send
        self._address = spec.address
        self._prefixlen = spec.prefixlen
        # A mask of 0 lets everything pass.
        self._filter = mask(spec.prefixlen) if spec.ingress_filter else 0
        self._network = spec.address & self._filter
        self._mtu = max(spec.mtu, MIN_MTU)
        # What the peer announces is what it takes, and the other way about.  0: leave it.
        self._in_mss = self._mtu - _TCPIP if spec.mss_adjust else 0
        self._out_mss = max(spec.mru, MIN_MTU) - _TCPIP if spec.mss_adjust else 0
        self._active = now
        self._in_bytes = self._in_packets = self._in_errors = 0
        self._out_bytes = self._out_packets = self._out_errors = 0

    def input(self, packet: bytes, now: float) -> None:
        """An IPv4 packet from the peer, perhaps with padding behind it.  Whatever it holds, this does not raise."""
        size = len(packet)
        if size < 20 or self._table is None:
            self._in_errors += 1
            return
        header = HEADER[packet[0]]
        total = packet[2] << 8 | packet[3]
        if not header <= total <= size:
            self._in_errors += 1
            return
        if self._filter and int.from_bytes(packet[12:16], "big") & self._filter != self._network:
            self._in_errors += 1
            return
        if total != size:
            packet = packet[:total]
        if self._in_mss and packet[9] == TCP:
            packet = clamp_mss(packet, header, self._in_mss)
        try:
            self._interface.write(packet)
        except OSError:
            self._in_errors += 1
            return
        self._in_packets += 1
        self._in_bytes += total
        if not idle(packet, header):
            self._active = now

    def output(self, packet: bytes, interface: SharedInterface, now: float) -> None:
        """A sound packet for the peer, from *interface*."""
        header = HEADER[packet[0]]
        if self._out_mss and packet[9] == TCP:
            packet = clamp_mss(packet, header, self._out_mss)
        size = len(packet)
        if size <= self._mtu:
            self._out_packets += 1
            self._out_bytes += size
            self._send(_PPP_IP + packet)
        elif packet[6] & DF >> 8:
            self._out_errors += 1
            interface.too_big(packet, self._mtu, now)
            return
        else:
            pieces = fragment(packet, self._mtu)
            if not pieces:
                self._out_errors += 1
                return
            for piece in pieces:
                self._out_packets += 1
                self._out_bytes += len(piece)
                self._send(_PPP_IP + piece)
        if not idle(packet, header):
            self._active = now

    def counters(self) -> Counters:
        return Counters(
            self._in_bytes,
            self._in_packets,
            self._in_errors,
            self._out_bytes,
            self._out_packets,
            self._out_errors,
        )

    def last_active(self) -> float:
        return self._active

    def close(self) -> Counters:
        """Further packets from the peer are errors.  Closing again does nothing."""
        if self._table is not None:
            self._table.remove(self._address, self._prefixlen)
            self._table = None
        return self.counters()


class UserBackend:
    """The flows of one routing domain."""

    def __init__(self) -> None:
        self.interfaces: dict[str, SharedInterface] = {}
        self._table: Table[UserFlow] = Table()

    def attach(self, name: str, address: int, write: Send, emit: Send) -> SharedInterface:
        """The interface *name*, with its own *address*, is there: see :class:`SharedInterface`."""
        interface = SharedInterface(name, address, write, emit, self._table)
        self.interfaces[name] = interface
        return interface

    def detach(self, name: str) -> None:
        """The interface has gone.  What its flows still send to it is up to what writes to the device."""
        del self.interfaces[name]

    def add(self, spec: FlowSpec, now: float) -> UserFlow:
        """Carry the data of a session, on an interface that is attached.

        Raises :class:`ConflictError` if its address or network is taken by another flow.
        """
        flow = UserFlow(spec, self.interfaces[spec.interface], self._table, now)
        self._table.add(spec.address, spec.prefixlen, flow)
        return flow
