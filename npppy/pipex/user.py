"""Back end ``user``: the data path in Python, over one tun device for each configured interface.

There is no I/O here: :class:`SharedInterface` is handed what writes a packet to the device, and is given the packets
read from it (see :mod:`npppy.tun.device`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network
from typing import Final

from ..config.model import Interface
from ..tun.device import TunInterface
from .base import Attached, Counters, FlowSpec, Mirror, PipexState, Police
from .icmp import FRAGMENTATION_NEEDED, HOST_UNREACHABLE, RateLimit, redirects, too_big6, unreachable, unreachable6
from .ip import (
    CLASS_D,
    DF,
    HEADER,
    HEADER6,
    ICMP,
    MIN_MTU,
    TCP,
    clamp_mss,
    clamp_mss6,
    fragment,
    idle,
    idle6,
    link_scope6,
)
from .lookup import Table, mask

#: ICMP errors a second and interface, for each of the two reasons, so that a scan of the pool does not stop path MTU
#: discovery; and how many at once.
ICMP_RATE: Final = 1000
ICMP_BURST: Final = 100

#: Plans of flows that are remembered, an interface: peers may ask for any MTU.
MAX_PLANS: Final = 1024

#: PPP's Protocol field.
_PPP_IP: Final = b"\x00\x21"
_PPP_IPV6: Final = b"\x00\x57"
#: The headers of IPv4 and TCP without options (RFC 6691), and what that of IPv6 has more.
_TCPIP: Final = 40
_MORE6: Final = 20

#: Of a plan: domain, filter, filter6, MTU, and the two MSS.
_Facts = tuple[int, int, bool, int, int, int]

_NOTHING: Final = Counters()

#: Raises OSError where the packet could not be sent.
Send = Callable[[bytes], object]


class SharedInterface:
    """The device that sessions share, as their data path sees it."""

    __slots__ = (
        "_big_limit",
        "_plans",
        "_table",
        "_unknown_limit",
        "address",
        "emit",
        "icmp_errors",
        "ignored",
        "name",
        "outer",
        "unknown",
        "write",
    )

    def __init__(self, name: str, address: int, write: Send, emit: Send, table: Table[UserFlow]) -> None:
        """*write* takes packets from peers to the IP stack, *emit* packets of our own.

        Those have the source *address*; or of IPv6 none yet, nor a checksum: they are given what is right for their
        destination.
        """
        self.name = name
        self.address = address
        self.write = write
        self.emit = emit
        #: Packets for an address without a session.
        self.unknown = 0
        #: Packets from the stack that are not for one peer: multicast, link-local, redirects, or malformed.
        self.ignored = 0
        #: ICMP errors sent.
        self.icmp_errors = 0
        #: Takes a packet for none of the peers if it is one that carries a session, and says whether it did.
        self.outer: Callable[[bytes, float], bool] | None = None
        self._table = table
        self._unknown_limit = RateLimit(ICMP_RATE, ICMP_BURST)
        self._big_limit = RateLimit(ICMP_RATE, ICMP_BURST)
        self._plans: dict[_Facts, _Plan] = {}

    def plan(self, spec: FlowSpec) -> _Plan:
        """What a flow on this interface has in common with others."""
        mtu = max(spec.mtu, MIN_MTU)
        facts = (
            spec.domain,
            # Of IPv4, without an address, nothing passes.
            mask(spec.prefixlen) if spec.ingress_filter or not spec.address else 0,
            spec.ingress_filter,
            mtu,
            # What the peer announces is what it takes, and the other way about.
            mtu - _TCPIP if spec.mss_adjust else 0,
            max(spec.mru, MIN_MTU) - _TCPIP if spec.mss_adjust else 0,
        )
        found = self._plans.get(facts)
        if found is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            found = self._plans[facts] = _Plan(self, facts)
        return found

    def deliver(self, packet: bytes, now: float) -> None:
        """A packet from the device, for one of the peers.  Whatever it holds, this does not raise."""
        size = len(packet)
        if size < 20 or HEADER[packet[0]] > size or packet[2] << 8 | packet[3] != size:
            if size >= HEADER6 and packet[0] >> 4 == 6 and packet[4] << 8 | packet[5] == size - HEADER6:
                self._deliver6(packet, now)
            else:
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
                if self.outer is not None and self.outer(packet, now):
                    return
                self.unknown += 1
                self._report(unreachable(packet, self.address, HOST_UNREACHABLE), self._unknown_limit, now)
                return
        flow.output(packet, self, now)

    def _deliver6(self, packet: bytes, now: float) -> None:
        if link_scope6(packet):
            self.ignored += 1
            return
        flow = self._table.network6(int.from_bytes(packet[24:40], "big"))
        if flow is None:
            if self.outer is not None and self.outer(packet, now):
                return
            self.unknown += 1
            self._report(unreachable6(packet), self._unknown_limit, now)
        else:
            flow.output6(packet, self, now)

    def too_big(self, packet: bytes, mtu: int, now: float) -> None:
        """Tell the sender of *packet* that packets to here must not have more than *mtu* octets."""
        six = packet[0] >> 4 == 6
        error = too_big6(packet, mtu) if six else unreachable(packet, self.address, FRAGMENTATION_NEEDED, mtu)
        self._report(error, self._big_limit, now)

    def _report(self, error: bytes | None, limit: RateLimit, now: float) -> None:
        if error is None or not limit.take(now):
            return
        try:
            self.emit(error)
        except OSError:
            # The sender may have no route any more; an ICMP error is a courtesy, and only those sent are counted.
            return
        self.icmp_errors += 1


def _nowhere(frame: bytes) -> None:
    """The session has ended."""


class _Plan:
    """What of a session's data path it has in common with others: one for all that have the same."""

    __slots__ = ("domain", "filter", "filter6", "in_mss", "interface", "mtu", "out_mss")

    def __init__(self, interface: SharedInterface, facts: _Facts) -> None:
        self.interface = interface
        #: The netmask that a source is looked at by; 0: any may pass.
        self.filter: int
        #: To and from the peer; 0: left as it is.
        self.in_mss: int
        self.out_mss: int
        self.domain, self.filter, self.filter6, self.mtu, self.in_mss, self.out_mss = facts


class _Tally:
    """What Python has carried of a session, or refused."""

    __slots__ = ("in_bytes", "in_errors", "in_packets", "out_bytes", "out_errors", "out_packets")

    def __init__(self) -> None:
        self.in_bytes = self.in_packets = self.in_errors = 0
        self.out_bytes = self.out_packets = self.out_errors = 0


class UserFlow:
    """The data of one session."""

    __slots__ = (
        "_active",
        "_address",
        "_networks",
        "_networks6",
        "_plan",
        "_police_down",
        "_police_up",
        "_send",
        "_table",
        "_tally",
    )

    def __init__(self, spec: FlowSpec, interface: SharedInterface, table: Table[UserFlow], now: float) -> None:
        self._plan = interface.plan(spec)
        # None once the flow is closed.
        self._table: Table[UserFlow] | None = table
        self._send = spec.send
        self._address = spec.address
        self._networks = spec.networks4()
        self._networks6 = spec.networks6
        self._police_up = RateLimit(*spec.police_up) if spec.police_up else None
        self._police_down = RateLimit(*spec.police_down) if spec.police_down else None
        self._active = now
        # None: Python has carried nothing of it yet, nor refused it, as of most that the kernel carries.
        self._tally: _Tally | None = None

    def _counted(self) -> _Tally:
        tally = self._tally
        if tally is None:
            tally = self._tally = _Tally()
        return tally

    def input(self, packet: bytes, now: float) -> None:
        """An IPv4 packet from the peer, perhaps with padding behind it.  Whatever it holds, this does not raise."""
        size = len(packet)
        if size < 20 or self._table is None:
            self._counted().in_errors += 1
            return
        header = HEADER[packet[0]]
        total = packet[2] << 8 | packet[3]
        if not header <= total <= size:
            self._counted().in_errors += 1
            return
        plan = self._plan
        if (
            plan.filter
            and (((source := int.from_bytes(packet[12:16], "big")) ^ self._address) & plan.filter or not self._address)
            and not (self._networks and self._table.leads_to(self, source))
        ):
            self._counted().in_errors += 1
            return
        if self._police_up is not None and not self._police_up.take(now, total):
            self._counted().in_errors += 1
            return
        if total != size:
            packet = packet[:total]
        if plan.in_mss and packet[9] == TCP:
            packet = clamp_mss(packet, header, plan.in_mss)
        try:
            plan.interface.write(packet)
        except OSError:
            self._counted().in_errors += 1
            return
        tally = self._tally or self._counted()
        tally.in_packets += 1
        tally.in_bytes += total
        if not idle(packet, header):
            self._active = now

    def input6(self, packet: bytes, now: float) -> None:
        """The same of IPv6.  What is of the link is nobody's here."""
        size = len(packet)
        if size < HEADER6 or packet[0] >> 4 != 6 or self._table is None or not self._networks6 or link_scope6(packet):
            self._counted().in_errors += 1
            return
        total = HEADER6 + (packet[4] << 8 | packet[5])
        if total > size:
            self._counted().in_errors += 1
            return
        plan = self._plan
        if plan.filter6 and self._table.network6(int.from_bytes(packet[8:24], "big")) is not self:
            self._counted().in_errors += 1
            return
        if self._police_up is not None and not self._police_up.take(now, total):
            self._counted().in_errors += 1
            return
        if total != size:
            packet = packet[:total]
        if plan.in_mss and packet[6] == TCP:
            packet = clamp_mss6(packet, plan.in_mss - _MORE6)
        try:
            plan.interface.write(packet)
        except OSError:
            self._counted().in_errors += 1
            return
        tally = self._tally or self._counted()
        tally.in_packets += 1
        tally.in_bytes += total
        if not idle6(packet):
            self._active = now

    def output(self, packet: bytes, interface: SharedInterface, now: float) -> None:
        """A sound packet for the peer, from *interface*."""
        plan = self._plan
        mtu = plan.mtu
        header = HEADER[packet[0]]
        size = len(packet)
        if packet[9] == ICMP and redirects(packet, header):
            interface.ignored += 1
            return
        if size > mtu and packet[6] & DF >> 8:
            self._counted().out_errors += 1
            interface.too_big(packet, mtu, now)
            return
        if self._police_down is not None and not self._police_down.take(now, size):
            self._counted().out_errors += 1
            return
        if plan.out_mss and packet[9] == TCP:
            packet = clamp_mss(packet, header, plan.out_mss)
        tally = self._tally or self._counted()
        if size <= mtu:
            tally.out_packets += 1
            tally.out_bytes += size
            self._send(_PPP_IP + packet)
        else:
            pieces = fragment(packet, mtu)
            if not pieces:
                tally.out_errors += 1
                return
            for piece in pieces:
                tally.out_packets += 1
                tally.out_bytes += len(piece)
                self._send(_PPP_IP + piece)
        if not idle(packet, header):
            self._active = now

    def output6(self, packet: bytes, interface: SharedInterface, now: float) -> None:
        """The same of IPv6."""
        plan = self._plan
        size = len(packet)
        if size > plan.mtu:
            self._counted().out_errors += 1
            interface.too_big(packet, plan.mtu, now)
            return
        if self._police_down is not None and not self._police_down.take(now, size):
            self._counted().out_errors += 1
            return
        if plan.out_mss and packet[6] == TCP:
            packet = clamp_mss6(packet, plan.out_mss - _MORE6)
        tally = self._tally or self._counted()
        tally.out_packets += 1
        tally.out_bytes += size
        self._send(_PPP_IPV6 + packet)
        if not idle6(packet):
            self._active = now

    def counters(self) -> Counters:
        return self.by_python()

    def last_active(self) -> float:
        return self._active

    def heard(self) -> float:
        return 0.0

    # What operators ask, and ask for.

    @property
    def carried(self) -> bool:
        """Whether the kernel carries it now."""
        return False

    def by_python(self) -> Counters:
        """What Python has carried."""
        tally = self._tally
        if tally is None:
            return _NOTHING
        return Counters(
            tally.in_bytes,
            tally.in_packets,
            tally.in_errors,
            tally.out_bytes,
            tally.out_packets,
            tally.out_errors,
        )

    def entries(self) -> tuple[str, ...]:
        """The maps of the kernel in which it has entries, a name for each entry."""
        return ()

    def to_user(self) -> bool:
        """Have Python carry it from the next packet on.  False: nothing has changed."""
        return False

    def to_ebpf(self) -> bool:
        """Have the kernel carry it again.  False: it has no part in the session."""
        return False

    def police(self, up: Police | None, down: Police | None) -> None:
        """Limit the rate from the peer and that to it, or lift a limit.  A new limit begins with its burst."""
        if self._police_up is None or not self._police_up.is_of(up):
            self._police_up = RateLimit(*up) if up else None
        if self._police_down is None or not self._police_down.is_of(down):
            self._police_down = RateLimit(*down) if down else None

    def mirror(self, on: bool) -> None:
        """Have the kernel copy the frames that it sees, or no more (:meth:`UserBackend.mirror`)."""

    def close(self) -> Counters:
        """Further packets from the peer are errors.  Closing again does nothing."""
        if self._table is not None:
            self._table.closed = self._table.closed.plus(self.by_python())
            self._table.remove(self._address, self._networks, self._networks6)
            self._table = None
            # Of an encrypted session it is that session's own, which keeps the flow for its last counters: part, so
            # that both go at once.
            self._send = _nowhere
        return self.counters()

    def late(self) -> Counters:
        """Nobody is at work but Python."""
        return Counters()


class UserBackend:
    """The flows of one routing domain."""

    def __init__(self, reason: str = "") -> None:
        #: Why it is not a better back end.
        self.reason = reason
        self.interfaces: dict[str, SharedInterface] = {}
        self._table: Table[UserFlow] = Table()

    def open_interface(self, interface: Interface, mtu: int, aggregates: Iterable[IPv4Network]) -> TunInterface:
        """Make the devices of an ``interface`` line; then :meth:`attach` it.

        *mtu* is the largest of any session.  To be called on the event loop.  Raises
        :class:`~npppy.tun.device.TunError`.
        """
        return TunInterface.open(interface, mtu, aggregates)

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

        Raises :class:`ConflictError` if its address or a network is taken by another flow.
        """
        flow = UserFlow(spec, self.interfaces[spec.interface], self._table, now)
        self._table.add(spec.address, spec.networks4(), flow, spec.networks6)
        return flow

    def why_not(self, interface: str, encap: object) -> str:
        return f"back end user: {self.reason}"

    def state(self) -> PipexState:
        interfaces = tuple(Attached(name=name, role="shared") for name in self.interfaces)
        return PipexState(backend="user", reason=self.reason, interfaces=interfaces, closed=self._table.closed)

    def mirror(self) -> Mirror | None:
        return None

    def tags(self, encap: object) -> bytes:
        return b""

    def attach_access(self, name: str, ifindex: int) -> None:
        """There are subscribers on the interface *name*: nothing to do, what they send comes by the carrier."""

    def detach_access(self, name: str) -> None:
        """There are none any more."""

    def follow_core(self, wanted: bool, tunnelled: bool = False) -> None:
        """Fast packets may pass by other interfaces too, and L2TP and PPTP come in there: there are none."""

    def close(self) -> None:
        """Flows and interfaces are closed already."""
