"""The options of npppd.conf about realms and RADIUS: their words, ranges and what they set."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ..text import printable
from .lexer import Token
from .model import Address, RadiusServer, Where
from .options import DAY, SESSIONS, Option, table
from .reader import YESNO, Args, Bad, Choice, Number, Text, either

#: What ``radius nas-port-id`` may name in braces.
PORT_ID_NAMES = (
    "tunnel", "protocol", "interface", "svlan", "cvlan", "mac", "peer", "calling", "called", "service", "circuit",
    "remote", "id",
)  # fmt: skip

DAE_PORT = 3799


def _file(args: Args) -> str:
    return args.text("the name of a file", 4095)


def _realm(args: Args) -> Token:
    return args.name("the name of an authentication")


def _interim(args: Args) -> int:
    where = args.where
    if args.take("0"):
        return 0
    # RFC 2869 section 5.16: it must not be less than 60, and should not be less than 600.
    seconds = args.number(60, DAY, otherwise=", or 0")
    if seconds < 600:
        args.warning(where, f"records each {seconds} seconds are many: RFC 2869 advises 600 at least")
    return seconds


def _possible(address: Address, where: Where) -> Address:
    """It is one that packets may come from."""
    if address.is_unspecified or address.is_multicast or address == IPv4Address("255.255.255.255"):
        raise Bad(where, f"expected an address that a host can have, found {address}")
    return address


def _unscoped(args: Args) -> Address:
    """An address that means the same on every interface."""
    where = args.where
    address = args.address()
    if isinstance(address, IPv6Address) and address.scope_id:
        raise Bad(where, f"expected an address without the name of an interface, found {printable(str(address)[:60])}")
    return address


def _nas_address(args: Args) -> list[tuple[Address, Where]]:
    where = args.where
    return [(_possible(_unscoped(args), where), where)]


def _source_address(args: Args) -> list[tuple[Address, Where]]:
    where = args.where
    return [(_possible(args.address(), where), where)]


def _nas_id(args: Args) -> str:
    # RFC 2865 section 5: an attribute holds 253 octets.
    return args.text("a string", 253)


def _nas_port_id(args: Args) -> str:
    where = args.where
    text = args.text("a string", 253)
    for piece in re.findall(r"[^{}]+|\{[^{}]*\}|[{}]", text):
        if piece in ("{", "}"):
            raise Bad(where, f'"{piece}" without its other half: names stand in braces, "{{tunnel}}"')
        if piece[0] == "{" and piece[1:-1] not in PORT_ID_NAMES:
            raise Bad(where, f"{printable(piece[:60])} names nothing; valid are {either(PORT_ID_NAMES)}")
    return text


#: What may follow the secret of a server.
_EXTRAS = table(
    [
        Option("priority", "priority", Number(0, 255)),
        Option(
            "message-authenticator",
            "require_message_authenticator",
            Choice({"required": True, "optional": False}),
        ),
        Option("status-server", "status_server", YESNO),
    ]
)


def _address(port: int, access: bool) -> Callable[[Args], list[tuple[RadiusServer, Where]]]:
    def read(args: Args) -> list[tuple[RadiusServer, Where]]:
        where = args.where
        address, number = args.address_port(port)
        secret = args.secret("secret")
        fields: dict[str, Any] = {}
        while args.more:
            place = args.where
            word = args.keyword(*_EXTRAS)
            option = _EXTRAS[word]
            if option.field in fields:
                args.warning(place, f"{word} is given twice, and the last one counts")
            fields[option.field] = option.read(args)
            if word == "message-authenticator" and not access:
                args.warning(place, f"{word} has no effect: it is about what authentication servers answer")
        return [(RadiusServer(address=address, port=number, secret=secret, **fields), where)]

    return read


def _servers(port: int, *, access: bool) -> dict[str, Option]:
    """What a block of servers may hold; *port* is their default, *access* says that they know who may log in."""
    return table(
        [
            Option("address", "servers", _address(port, access), repeat=True),
            Option("timeout", "timeout", Number(0, 300, 9)),
            Option("max-tries", "max_tries", Number(0, 100, 3)),
            Option("max-failovers", "max_failovers", Number(0, 100, 1)),
            Option("server-selection", "balance", Choice({"priority": False, "balance": True})),
            Option("dead-time", "dead_time", Number(1, DAY)),
            Option("max-outstanding", "max_outstanding", Number(1, 65535)),
            Option("source-address", "source", _source_address, repeat=True),
        ]
    )


#: Blocks of options within an authentication block.
SERVERS = {
    "authentication-server": _servers(1812, access=True),
    "accounting-server": _servers(1813, access=False),
}

AUTHENTICATION = table(
    [
        Option("username-suffix", "username_suffix", Text(255, "")),
        Option("user-max-session", "user_max_session", SESSIONS),
        Option("strip-nt-domain", "strip_nt_domain", YESNO),
        Option("strip-atmark-realm", "strip_atmark_realm", YESNO),
        Option("eap-capable", "eap_capable", YESNO),
        Option("users-file", "users_file", _file),
        Option("login-timeout", "login_timeout", Number(1, 600)),
        Option("accounting-interim", "accounting_interim", _interim),
        Option("fallback-realm", "fallback", _realm),
    ]
)

#: Those of them that mean nothing without a server.
RADIUS_ONLY = ("login-timeout", "accounting-interim", "fallback-realm")

#: What ``radius`` sets.
RADIUS = table(
    [
        Option("nas-id", "nas_id", _nas_id),
        Option("nas-address", "nas_addresses", _nas_address, repeat=True),
        Option("nas-port-id", "nas_port_id", _nas_port_id),
        Option("spool", "spool", _file),
        Option("spool-limit", "spool_limit", Number(1000, 100_000_000)),
    ]
)


def _dae_listen(args: Args) -> list[tuple[tuple[Address, int], Where]]:
    args.keyword("on")
    where = args.where
    return [(args.address_port(DAE_PORT), where)]


def _dae_client(args: Args) -> list[tuple[tuple[Address, str], Where]]:
    where = args.where
    return [((_unscoped(args), args.secret("secret")), where)]


#: What ``radius dae`` sets.
DAE = table(
    [
        Option("listen", "listen", _dae_listen, repeat=True),
        Option("client", "clients", _dae_client, repeat=True),
        Option("window", "window", Number(1, DAY)),
        Option("require-event-timestamp", "require_event_timestamp", YESNO),
    ]
)
