"""The options of npppd.conf: their words, ranges and what they set; and what is not built yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from .model import (
    Address,
    AddressRange,
    AuthMethod,
    FsmLimits,
    L2tpOptions,
    Mppe,
    Network,
    PadoDelay,
    PipexChoice,
    PppoeOptions,
    PptpOptions,
    Protocol,
    Rebind,
    Where,
)
from .reader import YESNO, Args, Bad, Choice, Number, Several, Text, Value

DAY = 86400
#: Sessions, where a limit of them is meant.
SESSIONS = Number(0, 10_000_000)


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a block."""

    keyword: str
    #: The field that it sets; "carrier.x" is x of the carrier's options.
    field: str
    read: Value
    #: It may be given again and then adds to what is there; *read* returns a list of (value, its place).
    repeat: bool = False


class Unbuilt(NamedTuple):
    """What the language has and the program has not yet."""

    #: The word of the statement.
    statement: str
    keyword: str
    #: For which values.
    when: Callable[[Any], bool]
    message: str


#: Delete a row when its feature is built.
UNBUILT = (
    Unbuilt(
        "interface",
        "name",
        lambda v: str(v).startswith("pppx"),
        "all sessions share this interface: one a session, as OpenBSD's pppx is, is not built yet",
    ),
)


# Readers of what is more than one word.


#: Where tunnels listen.
PORTS = {Protocol.L2TP: 1701, Protocol.PPTP: 1723}


#: Where Prometheus asks: of the ports that nobody has registered, and below those that Linux gives to clients.
METRICS_PORT = 11701


def _metrics_listen(args: Args) -> list[tuple[tuple[Address, int], Where]]:
    where = args.where
    return [(args.place(METRICS_PORT), where)]


def _listen(protocol: Protocol) -> Value:
    port = PORTS.get(protocol, 0)

    def on_interface(args: Args) -> list[tuple[str, Where]]:
        args.keyword("on")
        if not args.take("interface"):
            raise args.expected('"interface" and its name: a pppoe tunnel listens on interfaces')
        where = args.where
        return [(args.interface().text, where)]

    def on_address(args: Args) -> list[tuple[Any, Where]]:
        args.keyword("on")
        where = args.where
        if args.is_next("interface"):
            raise args.expected(f"an address: an {protocol.value} tunnel listens on addresses")
        listen = args.address_port(port)
        if protocol is Protocol.PPTP and listen[0].version == 6:
            raise Bad(where, f"expected an IPv4 address for a pptp tunnel, found {listen[0]}")
        return [(listen, where)]

    return on_address if port else on_interface


def _service_names(args: Args) -> list[tuple[str, Where]]:
    names: list[tuple[str, Where]] = []
    while not names or args.more:
        where = args.where
        names.append((args.text("the name of a service", 255, empty=True), where))
    return names


def _pado_delay(args: Args) -> list[tuple[PadoDelay, Where]]:
    where = args.where
    delay = None if args.take("drop") else args.number(0, 10_000, otherwise=' (milliseconds) or "drop"')
    sessions = SESSIONS(args) if args.take("from") else 0
    return [(PadoDelay(sessions=sessions, delay=delay), where)]


def _l2tp_secret(args: Args) -> list[tuple[tuple[Network | None, str], Where]]:
    where = args.where
    secret = args.secret()
    return [((args.network() if args.take("from") else None, secret), where)]


def _authentication_methods(args: Args) -> tuple[AuthMethod, ...]:
    where = args.where
    methods: tuple[AuthMethod, ...] = Several({method.value: method for method in AuthMethod})(args)
    pap = AuthMethod.PAP
    if pap in methods[:-1]:
        args.warning(where, "pap is offered last, whatever its place in the list")
        methods = (*(method for method in methods if method is not pap), pap)
    return methods


# CCP settles on the first of them that the peer has, too.  Stateful comes last: a lost packet takes others along, and
# the daemon carries the data.


def _key_lengths(args: Args) -> tuple[int, ...]:
    return tuple(sorted(Several({"128": 128, "56": 56, "40": 40})(args), reverse=True))


def _key_states(args: Args) -> tuple[str, ...]:
    states = ("stateless", "stateful")
    return tuple(sorted(Several({word: word for word in states})(args), key=states.index))


_DUMPS = Several({word: word for word in ("ip", "lcp", "pap", "chap", "eap", "mppe", "ccp", "ipcp")})


def _dump(args: Args) -> frozenset[str]:
    return frozenset(_DUMPS(args))


def _pool_address(args: Args) -> list[tuple[AddressRange, Where]]:
    where = args.where
    first, last = _range(args)
    dynamic = args.keyword("dynamic", "static") == "dynamic" if args.take("for") else True
    return [(AddressRange(first=first, last=last, dynamic=dynamic), where)]


def _range(args: Args) -> tuple[IPv4Address, IPv4Address]:
    """``a-b``, ``a/length``, ``a:mask`` or an address."""
    what = "a range (10.0.0.2-10.0.0.254), a network (10.0.0.0/24) or an address"
    mistake = args.expected(what)
    where = args.where
    text = args.token(what).text
    try:
        if "-" in text:
            first, last = (IPv4Address(part) for part in text.split("-"))
        elif "/" in text or ":" in text:
            address, _, mask = text.replace(":", "/").partition("/")
            network = IPv4Network((address, int(mask) if "/" in text else mask), strict=False)
            first, last = network[0], network[-1]
            # IPv4Network takes an inverted mask, too.
            if ":" in text and str(network.netmask) != mask:
                raise mistake
            if str(first) != address:
                raise Bad(where, f"{text} is not the address of a network; its network is {network}")
        else:
            first = last = IPv4Address(text)
    except ValueError:
        raise mistake from None
    if first > last:
        raise Bad(where, f"the range {text} ends before it begins")
    if not usable(int(first), int(last)):
        raise Bad(where, f"{text} holds addresses that a host cannot have")
    if int(last) - int(first) >= 1 << 24:
        raise Bad(where, f"{text} holds more than 16777216 addresses")
    return first, last


def usable(first: int, last: int) -> bool:
    """All addresses *first* to *last* may be a host's: they are outside 0.0.0.0/8, 127.0.0.0/8 and 224.0.0.0/3."""
    low, high = first >> 24, last >> 24
    return low > 0 and high < 224 and not low <= 127 <= high


def _servers(args: Args) -> tuple[IPv4Address, ...]:
    addresses = [args.address4()]
    if args.more:
        addresses.append(args.address4())
    # 0.0.0.0 stands for no second server, as in npppd; a first one of 0.0.0.0 keeps a realm from naming any.
    if addresses[-1] == IPv4Address(0):
        del addresses[1:]
    return tuple(addresses)


def _dns_servers(args: Args) -> tuple[IPv4Address, ...] | None:
    """None: those of the resolver."""
    if args.take("resolver"):
        return None
    return _servers(args)


# The tables.


def table(options: Iterable[Option]) -> dict[str, Option]:
    """The options by their keywords."""
    return {option.keyword: option for option in options}


def _fsm(name: str) -> list[Option]:
    default = FsmLimits()
    return [
        Option(f"{name}-timeout", f"{name}.timeout", Number(0, 300, default.timeout)),
        Option(f"{name}-max-configure", f"{name}.max_configure", Number(0, 255, default.max_configure)),
        Option(f"{name}-max-terminate", f"{name}.max_terminate", Number(0, 255, default.max_terminate)),
        Option(f"{name}-max-nak-loop", f"{name}.max_nak_loop", Number(0, 255, default.max_nak_loop)),
    ]


def _carrier(prefix: str, values: dict[str, Value]) -> list[Option]:
    return [Option(f"{prefix}-{word}", "carrier." + word.replace("-", "_"), read) for word, read in values.items()]


_PPP = [
    Option("mru", "mru", Number(500, 9000)),
    Option("lcp-keepalive", "lcp_keepalive", YESNO),
    # No interval, no keepalive, as in npppd.
    Option("lcp-keepalive-interval", "lcp_keepalive_interval", Number(0, DAY)),
    Option("lcp-keepalive-retry-interval", "lcp_keepalive_retry_interval", Number(1, DAY)),
    Option("lcp-keepalive-max-retries", "lcp_keepalive_max_retries", Number(1, 255)),
    *_fsm("lcp"),
    *_fsm("ipcp"),
    *_fsm("ccp"),
    Option("authentication-method", "authentication_methods", _authentication_methods),
    Option("chap-name", "chap_name", Text(255)),
    Option("negotiation-timeout", "negotiation_timeout", Number(1, 3600)),
    Option("mppe", "mppe", Choice({mppe.value: mppe for mppe in Mppe})),
    Option("mppe-key-length", "mppe_key_lengths", _key_lengths),
    Option("mppe-key-state", "mppe_key_states", _key_states),
    Option("idle-timeout", "idle_timeout", Number(0, 365 * DAY)),
    Option("tcp-mss-adjust", "tcp_mss_adjust", YESNO),
    Option("ingress-filter", "ingress_filter", YESNO),
    Option("callnum-check", "callnum_check", YESNO),
    Option("pipex", "pipex", Choice({pipex.value: pipex for pipex in PipexChoice})),
    Option("pipex-forward", "pipex_fast", Choice({"stack": False, "fast": True})),
    Option("debug-dump-pktin", "dump_in", _dump),
    Option("debug-dump-pktout", "dump_out", _dump),
]

_PPPOE = [
    Option("listen", "carrier.interfaces", _listen(Protocol.PPPOE), repeat=True),
    Option("pppoe-service-name", "carrier.service_names", _service_names, repeat=True),
    Option("pppoe-pado-delay", "carrier.pado_delay", _pado_delay, repeat=True),
    *_carrier(
        "pppoe",
        {
            "accept-any-service": YESNO,
            "ac-name": Text(255),
            "session-limit": Number(0, 65535),
            "padi-limit": Number(0, 1_000_000),
            "desc-in-pktdump": YESNO,
            "desc-out-pktdump": YESNO,
            "session-in-pktdump": YESNO,
            "session-out-pktdump": YESNO,
        },
    ),
]

_DUMP_OPTIONS = {f"{what}-pktdump": YESNO for what in ("ctrl-in", "ctrl-out", "data-in", "data-out")}

_L2TP = [
    Option("listen", "carrier.listen", _listen(Protocol.L2TP), repeat=True),
    Option("l2tp-secret", "carrier.secrets", _l2tp_secret, repeat=True),
    *_carrier(
        "l2tp",
        {
            "hostname": Text(255),
            "vendor-name": Text(255, ""),
            "hello-interval": Number(0, DAY, L2tpOptions().hello_interval),
            "hello-timeout": Number(0, DAY, L2tpOptions().hello_timeout),
            "accept-dialin": YESNO,
            "lcp-renegotiation": YESNO,
            "force-lcp-renegotiation": YESNO,
            "data-use-seq": YESNO,
            "data-reorder": Number(0, 64),
            "require-ipsec": YESNO,
            "udp-checksum": YESNO,
            "hidden-avps": YESNO,
            "session-limit": Number(0, 65535),
            "half-open-limit": Number(1, 65535),
            "half-open-peer-limit": Number(1, 65535),
            "sccrq-limit": Number(0, 1_000_000),
            "peer-rebind": Choice({rebind.value: rebind for rebind in Rebind}),
            **_DUMP_OPTIONS,
        },
    ),
]

_PPTP = [
    Option("listen", "carrier.listen", _listen(Protocol.PPTP), repeat=True),
    *_carrier(
        "pptp",
        {
            # RFC 2637 section 2.1: 64 octets.
            "hostname": Text(64, ""),
            "vendor-name": Text(64, ""),
            "echo-interval": Number(0, DAY, PptpOptions().echo_interval),
            "echo-timeout": Number(0, DAY, PptpOptions().echo_timeout),
            "session-limit": Number(0, 65535),
            "half-open-limit": Number(1, 65535),
            "peer-limit": Number(0, 65535),
            "data-reorder": Number(0, 64),
            "send-window": YESNO,
            **_DUMP_OPTIONS,
        },
    ),
]

#: What a tunnel block may hold.
TUNNEL = {
    Protocol.PPPOE: table([*_PPPOE, *_PPP]),
    Protocol.L2TP: table([*_L2TP, *_PPP]),
    Protocol.PPTP: table([*_PPTP, *_PPP]),
}

#: Defaults that the protocol decides.
TUNNEL_DEFAULTS: dict[Protocol, dict[str, Any]] = {
    Protocol.PPPOE: {"mru": 1492, "lcp_keepalive": True, "mppe": Mppe.YES},
    Protocol.L2TP: {"mru": 1360, "lcp_keepalive": False, "mppe": Mppe.YES},
    Protocol.PPTP: {"mru": 1400, "lcp_keepalive": True, "mppe": Mppe.REQUIRED},
}

CARRIER: dict[Protocol, Callable[..., PppoeOptions | L2tpOptions | PptpOptions]] = {
    Protocol.PPPOE: PppoeOptions,
    Protocol.L2TP: L2tpOptions,
    Protocol.PPTP: PptpOptions,
}

IPCP = table(
    [
        Option("pool-address", "ranges", _pool_address, repeat=True),
        Option("dns-servers", "dns", _dns_servers),
        Option("nbns-servers", "nbns", _servers),
        Option("allow-user-selected-address", "allow_user_selected_address", YESNO),
        Option("max-session", "max_session", SESSIONS),
    ]
)

METRICS_LISTEN = Option("metrics-listen", "metrics_listen", _metrics_listen, repeat=True)

#: What ``set`` sets.
SET = table(
    [
        Option("max-session", "max_session", SESSIONS),
        Option("user-max-session", "user_max_session", SESSIONS),
        Option("duplicate-session", "duplicate_replace", Choice({"deny": False, "replace": True})),
    ]
)
