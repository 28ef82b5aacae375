"""What npppd.conf says, typed.

Everything here is immutable and made by the loader.  A session keeps the :class:`Tunnel` that it came in by, so a
reload changes what the next session gets and nothing under a live one.  Times are in seconds unless a name says
otherwise; addresses are :mod:`ipaddress` objects; 0 stands for "no limit" wherever a limit is meant.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Where(NamedTuple):
    """A place in a configuration file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Diagnostic(NamedTuple):
    """An error or a warning about a place in a file."""

    where: Where
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class Protocol(enum.Enum):
    """The protocol of a tunnel, by its word in npppd.conf."""

    PPPOE = "pppoe"
    L2TP = "l2tp"
    PPTP = "pptp"

    @property
    def title(self) -> str:
        """The name as npppctl prints it."""
        return _TITLES[self]


_TITLES = {Protocol.PPPOE: "PPPoE", Protocol.L2TP: "L2TP", Protocol.PPTP: "PPTP"}


class AuthMethod(enum.Enum):
    """An authentication method, by its word in npppd.conf."""

    PAP = "pap"
    CHAP = "chap"
    MSCHAPV2 = "mschapv2"
    EAP = "eap"

    @property
    def gives_keys(self) -> bool:
        """MPPE can encrypt the sessions of those that log in by it; EAP if its method gives keys."""
        return self in (AuthMethod.MSCHAPV2, AuthMethod.EAP)


class Mppe(enum.Enum):
    """Whether sessions are encrypted."""

    NO = "no"
    #: If authentication gives keys and the peer does it, too.
    YES = "yes"
    #: In any case: no packet of a user goes in the clear.
    REQUIRED = "required"


class Rebind(enum.Enum):
    """Where an L2TP tunnel may move to after its peer, once a valid control message has come from there."""

    #: Nowhere.
    NO = "no"
    #: Another port of its address.
    PORT = "port"
    #: Another address, too.
    ADDRESS = "address"


class PipexChoice(enum.Enum):
    """Who carries the data of established sessions."""

    YES = "yes"
    NO = "no"
    EBPF = "ebpf"
    USER = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class FsmLimits:
    """The timer and the counters of one control protocol (RFC 1661 section 4.6)."""

    #: The restart timer.
    timeout: int = 3
    max_configure: int = 10
    max_terminate: int = 2
    #: Configure-Naks sent without converging before Configure-Reject is sent instead.
    max_nak_loop: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PadoDelay:
    """PADO is sent *delay* later once *sessions* sessions are up on the port's tunnel."""

    sessions: int
    #: Milliseconds; None: no PADO at all.
    delay: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PppoeOptions:
    #: ``listen on interface``, in the order given.
    interfaces: tuple[str, ...] = ()
    #: Names that a PADI may ask for; the first one is the default.  Empty: the empty name only.
    service_names: tuple[str, ...] = ()
    accept_any_service: bool = True
    #: None: the interface's MAC address as text.
    ac_name: str | None = None
    #: Sessions per MAC address.
    session_limit: int = 0
    #: PADI answered a second and port.
    padi_limit: int = 0
    #: In rising order of sessions.
    pado_delay: tuple[PadoDelay, ...] = ()
    desc_in_pktdump: bool = False
    desc_out_pktdump: bool = False
    session_in_pktdump: bool = False
    session_out_pktdump: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class L2tpOptions:
    #: (address, port)
    listen: tuple[tuple[Address, int], ...] = ()
    hostname: str | None = None
    vendor_name: str = ""
    hello_interval: int = 60
    hello_timeout: int = 30
    accept_dialin: bool = False
    lcp_renegotiation: bool = True
    force_lcp_renegotiation: bool = False
    data_use_seq: bool = True
    #: Frames of a session that are held for one that is missing; 0: none is waited for.
    data_reorder: int = 0
    require_ipsec: bool = False
    #: Of packets over IPv4 that the kernel sends.
    udp_checksum: bool = False
    #: (network, secret); None: for all that no network is for.  No network is there twice.
    secrets: tuple[tuple[Network | None, str], ...] = field(default=(), repr=False)
    hidden_avps: bool = False
    #: Sessions of one tunnel.
    session_limit: int = 0
    #: Tunnels that are not established yet, in all, beyond which the oldest is given up, and of one address.
    half_open_limit: int = 4096
    half_open_peer_limit: int = 128
    #: New tunnels a second.
    sccrq_limit: int = 0
    peer_rebind: Rebind = Rebind.PORT
    ctrl_in_pktdump: bool = False
    ctrl_out_pktdump: bool = False
    data_in_pktdump: bool = False
    data_out_pktdump: bool = False

    def secret_for(self, host: str) -> str | None:
        """The secret that we share with a peer, by its address: that of the longest prefix; None: none."""
        address = ip_address(host)
        best, length = None, -2
        for network, secret in self.secrets:
            mine = -1 if network is None else network.prefixlen
            if mine > length and (network is None or address in network):
                best, length = secret, mine
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class PptpOptions:
    #: (address, port)
    listen: tuple[tuple[Address, int], ...] = ()
    hostname: str = ""
    vendor_name: str = ""
    echo_interval: int = 60
    echo_timeout: int = 60
    #: Sessions of one control connection.
    session_limit: int = 0
    #: Control connections that have no call yet, in all, beyond which the oldest is given up.
    half_open_limit: int = 4096
    #: Control connections of one address, with calls or without.  Behind a NAT each client has one.
    peer_limit: int = 1024
    #: Packets of a session that are held for one that is missing; 0: none is waited for.
    data_reorder: int = 0
    #: The peer's receive window limits what it is sent.
    send_window: bool = False
    ctrl_in_pktdump: bool = False
    ctrl_out_pktdump: bool = False
    data_in_pktdump: bool = False
    data_out_pktdump: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """A ``tunnel`` block: the carrier's options, and the PPP options of the sessions that come in by it."""

    name: str
    protocol: Protocol
    where: Where
    #: The options of this protocol.
    carrier: PppoeOptions | L2tpOptions | PptpOptions

    #: Our own MRU, and the ceiling for the peer's.
    mru: int
    lcp_keepalive: bool
    lcp_keepalive_interval: int = 300
    lcp_keepalive_retry_interval: int = 60
    lcp_keepalive_max_retries: int = 3
    lcp: FsmLimits = FsmLimits()
    ipcp: FsmLimits = FsmLimits()
    ccp: FsmLimits = FsmLimits()
    #: In the order in which they are offered.
    authentication_methods: tuple[AuthMethod, ...] = (AuthMethod.MSCHAPV2, AuthMethod.CHAP)
    #: The name in a CHAP Challenge; None: the host name.
    chap_name: str | None = None
    #: From the first frame to an open IPCP; it stands still while a server is asked.
    negotiation_timeout: int = 30
    mppe: Mppe
    #: Bits, the most first.
    mppe_key_lengths: tuple[int, ...] = (128, 56, 40)
    #: Stateless first.
    mppe_key_states: tuple[str, ...] = ("stateless", "stateful")
    idle_timeout: int = 0
    tcp_mss_adjust: bool = False
    ingress_filter: bool = False
    callnum_check: bool = False
    pipex: PipexChoice = PipexChoice.YES
    #: ``pipex-forward fast``: past the kernel's stack where that can be.
    pipex_fast: bool = False
    #: Words of npppd.conf: ip lcp pap chap eap mppe ccp ipcp.
    dump_in: frozenset[str] = frozenset()
    dump_out: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRange:
    """Addresses *first* to *last*, both of them included."""

    first: IPv4Address
    last: IPv4Address
    #: Given out by the pool, not only to users that have it as their fixed address.
    dynamic: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipcp:
    """An ``ipcp`` block: the pool and what IPCP tells the peer."""

    name: str
    where: Where
    ranges: tuple[AddressRange, ...] = ()
    #: None: not set, so that a realm may supply them; 0.0.0.0 forbids that.
    dns: tuple[IPv4Address, ...] | None = None
    nbns: tuple[IPv4Address, ...] | None = None
    #: ``dns-servers resolver``: those of /etc/resolv.conf.
    dns_from_resolver: bool = False
    allow_user_selected_address: bool = True
    max_session: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An ``interface`` line: the device that a session's packets leave and enter by."""

    name: str
    where: Where
    address: IPv4Address
    ipcp: Ipcp


@dataclass(frozen=True, slots=True, kw_only=True)
class RadiusServer:
    address: Address
    port: int
    secret: str = field(repr=False)
    #: Of several servers, those with the lowest number are asked first.
    priority: int = 0
    #: Replies to an Access-Request count only with a Message-Authenticator.
    require_message_authenticator: bool = True
    #: Whether a server that is silent is asked by Status-Server if it is there again (RFC 5997).
    status_server: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RadiusServers:
    servers: tuple[RadiusServer, ...] = ()
    #: Seconds that a transmission waits for its answer.
    timeout: int = 9
    #: Transmissions to one server.
    max_tries: int = 3
    #: How often a request may go on to another server.
    max_failovers: int = 1
    #: Servers of the same priority take turns; else the first that answers has them all.
    balance: bool = False
    #: Seconds that a silent server is left alone, as long as there is another.
    dead_time: int = 60
    #: Requests that a server has at once; those beyond wait here.
    max_outstanding: int = 1024
    #: Where packets come from, at most one address of each family; without one the kernel chooses.
    source: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Realm:
    """An ``authentication`` block."""

    name: str
    where: Where
    #: "local" or "radius"
    type: str
    username_suffix: str = ""
    user_max_session: int = 0
    strip_nt_domain: bool = True
    strip_atmark_realm: bool = False
    eap_capable: bool = True
    #: Made absolute against the directory of the file that names it.
    users_file: Path | None = None
    authentication: RadiusServers = RadiusServers()
    accounting: RadiusServers = RadiusServers()
    #: Seconds that a login may take, over all transmissions and servers.
    login_timeout: int = 60
    #: Seconds between interim records, where a server says nothing of it; 0: none.
    accounting_interim: int = 0
    #: The name of the realm that is asked when no server answers; "": none.
    fallback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    tunnel: Tunnel
    realm: Realm
    interface: Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Dae:
    """``radius dae``: who may disconnect and change sessions, and where we listen."""

    #: (address, port)
    listen: tuple[tuple[Address, int], ...] = ()
    #: (address, secret)
    clients: tuple[tuple[Address, str], ...] = field(default=(), repr=False)
    #: Seconds that an Event-Timestamp may differ from our clock.
    window: int = 300
    #: Requests without one are discarded.
    require_event_timestamp: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Radius:
    """``radius``: what all requests of the daemon have in common."""

    #: NAS-Identifier.
    nas_id: str = "npppd"
    #: NAS-IP-Address and NAS-IPv6-Address, at most one of each; without any, where a request comes from.
    nas_addresses: tuple[Address, ...] = ()
    #: NAS-Port-Id, with the names of facts in braces; "": what the carrier is known by.
    nas_port_id: str = ""
    #: Where accounting records wait for a server; None: where the daemon has its own.
    spool: Path | None = None
    #: Records that wait, beyond which an interim record replaces those of its session before it.
    spool_limit: int = 1_000_000
    dae: Dae = Dae()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    file: Path
    max_session: int = 0
    user_max_session: int = 0
    #: A login beyond a user's limit: False refuses it, True ends the user's oldest session for it.
    duplicate_replace: bool = False
    #: (address, port): where Prometheus asks.
    metrics_listen: tuple[tuple[Address, int], ...] = ()
    radius: Radius = Radius()
    tunnels: tuple[Tunnel, ...] = ()
    ipcps: tuple[Ipcp, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    realms: tuple[Realm, ...] = ()
    #: In the order of the file.
    binds: tuple[Bind, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
