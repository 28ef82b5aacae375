"""The interface of pipex's back ends.

A back end takes over the data of a session once its IPCP is open (:meth:`Backend.add`) and gives it back when the
session ends or negotiates anew (:meth:`Flow.close`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from ..ppp.mppe import Mppe

#: An IPv4 network: an address in it, and its prefix length; and an IPv6 network, whose address is 16 octets.
Network4 = tuple[int, int]
Network6 = tuple[bytes, int]


#: The largest packet that the kernel encrypts, in octets.
MPPE_MTU: Final = 2045


class Counters(NamedTuple):
    """What went through a session; *in* is from the peer.  Octets are those of the IP packets."""

    in_bytes: int = 0
    in_packets: int = 0
    in_errors: int = 0
    out_bytes: int = 0
    out_packets: int = 0
    out_errors: int = 0

    def plus(self, other: Counters) -> Counters:
        return Counters(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Counters) -> Counters:
        return Counters(*(a - b for a, b in zip(self, other, strict=True)))


_NOTHING: Final = Counters()


class Leftovers(NamedTuple):
    """What sessions of an earlier npppyd had counted in the kernel when it was killed, by ppp id modulo 2^32.

    Of each it is what its last flow had: see :meth:`Flow.close`.
    """

    #: Those whose flow was open.
    open: dict[int, Counters]
    #: Of others as many as there are traces of: whether what they had counted was yet noted anywhere, who noted knows.
    closed: dict[int, Counters]


class Police(NamedTuple):
    """A token bucket for one way of a session."""

    #: Octets of IP packets a second, more than 0.
    rate: int
    #: Octets that may pass at once, no fewer than a packet has.
    burst: int


class Wish(NamedTuple):
    """How an operator wants a session's data to be carried, for as long as it lives."""

    #: By Python, whatever the kernel can.
    user: bool = False
    police_up: Police | None = None
    police_down: Police | None = None
    #: Every frame that the kernel handles is to be copied, for a capture.
    mirror: bool = False


NO_WISH: Final = Wish()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSpec:
    """A session as its data path sees it."""

    session: int
    #: The routing domain; today there is one, number 0.
    domain: int
    #: The name of the shared interface.
    interface: str
    #: The peer's IPv4 address; 0: it has IPv6 only.
    address: int
    #: Prefix length of the network behind the peer; 32: the peer alone.
    prefixlen: int = 32
    #: Further networks behind it, where it has an address.  Its own may be among them.
    networks: tuple[IPv4Network, ...] = ()
    #: Its framed and delegated prefixes, none of them twice; without any it has no IPv6.
    networks6: tuple[Network6, ...] = ()
    #: The largest IP packet that the peer takes (its MRU), and that we take from it (ours).
    mtu: int
    mru: int
    ingress_filter: bool = False
    mss_adjust: bool = False
    #: Sends a frame, from its PPP Protocol field on, to the peer.
    send: Callable[[bytes], None]
    #: How the carrier encapsulates, for back ends that do it themselves.
    encap: Any = None
    #: Whether the kernel may carry it, as far as the back end can.
    offload: bool = True
    #: From NIC to NIC, past the kernel's stack, where it can.
    fast: bool = False
    #: Whether the back end may answer LCP's Echo-Request, and the two magic numbers that it needs then.
    echo: bool = False
    magic: int = 0
    peer_magic: int = 0
    #: Limits of its rate, whoever carries it.
    police_up: Police | None = None
    police_down: Police | None = None
    #: Whether the kernel copies every frame that it handles, for a capture.
    mirror: bool = False
    #: Its packets are encrypted both ways, and clear ones from the peer are no good; None: they are in the clear.
    mppe: Mppe | None = None

    def networks4(self) -> tuple[Network4, ...]:
        """All IPv4 networks behind the peer, each once and without further bits; without what is the peer alone."""
        if not self.address or (self.prefixlen == 32 and not self.networks):
            return ()
        own = IPv4Network((self.address, self.prefixlen), strict=False)
        found = dict.fromkeys((own, *self.networks))
        found.pop(IPv4Network(self.address), None)
        return tuple((int(network.network_address), network.prefixlen) for network in found)


class Flow(Protocol):
    """The data of one session, in the hands of a back end."""

    def input(self, packet: bytes, now: float) -> None:
        """An IPv4 packet from the peer that reached Python."""

    def input6(self, packet: bytes, now: float) -> None:
        """The same of IPv6, but for what is between the peer and us: link-local addresses, multicast."""

    def counters(self) -> Counters:
        """Never goes backwards."""

    def last_active(self) -> float:
        """When the last packet passed that counts as activity (npppd's idle-timeout), on the monotonic clock."""

    def heard(self) -> float:
        """When the back end last saw a frame of the peer of its own accord, so that nobody else had to; 0: never."""

    def by_python(self) -> Counters:
        """What Python has carried of it: all but what stands in the kernel's maps."""

    def police(self, up: Police | None, down: Police | None) -> None:
        """Limit the rate from the peer and that to it, or lift a limit; nothing is lost over it.

        A new limit begins with its burst, one that is as it was stays as it is.  Raises
        :class:`~npppy.pipex.ebpf.libbpf.BpfError` for a rate or burst that cannot be; then nothing has changed.
        """

    def close(self) -> Counters:
        """Stop, and remove what belongs to the session; returns the last counters."""

    def late(self) -> Counters:
        """What has been counted since it was closed, by who was just at work.

        That is over in some milliseconds, and may be asked for until some hundred others have been added; then it is
        nothing.
        """


class Backend(Protocol):
    def add(self, spec: FlowSpec, now: float) -> Flow:
        """Carry the data of a session.

        Raises :class:`ConflictError` if its address or a network is taken by another flow.
        """

    def why_not(self, interface: str, encap: object) -> str:
        """Why the kernel would not carry a session on a shared interface and a carrier; "" if it would."""

    def state(self) -> PipexState:
        """What there is to see of it."""

    def mirror(self) -> Mirror | None:
        """The copies that the kernel makes, to be closed by the caller; None where it makes none."""

    def tags(self, encap: object) -> bytes:
        """The VLAN tags that a session's frames have on the wire and its carrier does not know of."""


class Mirror(Protocol):
    """Copies of the frames of sessions that have the wish ``mirror``, as the kernel saw them."""

    def fileno(self) -> int:
        """Readable when there are some."""

    def read(self, until: int, take: Callable[[int, int, int, int, bytes], object]) -> None:
        """Hand *take* those made until then, in nanoseconds on the monotonic clock; perhaps one more.

        It gets the session's id, the way (:data:`npppy.ppp.link.IN` or OUT), the time, the length on the wire, and as
        much of the frame as there is.
        """

    def lost(self) -> int:
        """How many there was no room for, since it was opened."""

    def close(self) -> None:
        """To be called once."""


class Count(NamedTuple):
    packets: int
    octets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """An interface as pipex uses it."""

    name: str
    #: access, core, tunnel or shared; or two of them, with a comma between.
    role: str
    #: How programs are attached: native or generic; "": they are not.
    mode: str = ""
    #: Why they are not, or what devices belong to it.
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A map in the kernel."""

    octets: int
    #: Entries that it has room for, and that it has; None: nobody counts them.
    entries: int
    used: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipexState:
    """What a back end is, and what the kernel knows of its work.  It costs no more than its size."""

    backend: str
    #: Why it is not a better one.
    reason: str = ""
    #: Sessions that the kernel has room for.
    capacity: int = 0
    interfaces: tuple[Attached, ...] = ()
    #: What the kernel has counted, over all sessions there ever were: by path, and by the reason why something was
    #: dropped or left to Python.
    paths: Mapping[str, Count] = field(default_factory=dict)
    reasons: Mapping[str, Count] = field(default_factory=dict)
    maps: Mapping[str, Memory] = field(default_factory=dict)
    #: What Python has carried of sessions that it carries no more.
    closed: Counters = _NOTHING


class ConflictError(Exception):
    """Two sessions with one address or network; the message names it."""
