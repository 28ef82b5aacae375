"""Whether the parts of a configuration fit together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from ..text import printable
from .blocks import Settings
from .lexer import Report
from .model import (
    Address,
    AuthMethod,
    Bind,
    Dae,
    Ipcp,
    L2tpOptions,
    Mppe,
    PppoeOptions,
    Protocol,
    RadiusServers,
    Realm,
    Tunnel,
    Where,
)


class _Range(NamedTuple):
    first: IPv4Address
    last: IPv4Address
    #: Its place among all.
    number: int
    where: Where
    owner: str


def check_services(tunnels: Sequence[tuple[Tunnel, Settings]], error: Report) -> None:
    """Two tunnels on one interface must not answer for the same service."""
    owners: dict[tuple[str, str], tuple[Tunnel, Where]] = {}
    for tunnel, settings in tunnels:
        options = tunnel.carrier
        if not isinstance(options, PppoeOptions):
            continue
        services = set(options.service_names or ("",))
        if options.accept_any_service:
            services.add("")
        for interface, where in dict(settings.items.get("carrier.interfaces", ())).items():
            shared = {}
            for service in sorted(services):
                other, place = owners.setdefault((interface, service), (tunnel, where))
                if other is not tunnel:
                    shared[other.name] = (service, place)
            for name, (service, place) in shared.items():
                if service:
                    what = f'service "{printable(service)}"'
                else:
                    what = "requests for any service (pppoe-accept-any-service no keeps them off)"
                error(where, f'tunnel "{printable(name)}" answers {what} on {interface} already, at {place}')


def check_listeners(tunnels: Sequence[tuple[Tunnel, Settings]], error: Report) -> None:
    """Two tunnels must not listen on the same address and port."""
    owners: dict[tuple[Protocol, Address, int], tuple[Tunnel, Where]] = {}
    for tunnel, settings in tunnels:
        options = tunnel.carrier
        if isinstance(options, PppoeOptions):
            continue
        places = dict(settings.items.get("carrier.listen", ()))
        for address, port in options.listen:
            where = places.get((address, port), tunnel.where)
            other, place = owners.setdefault((tunnel.protocol, address, port), (tunnel, where))
            if other is not tunnel:
                error(where, f'tunnel "{printable(other.name)}" listens on {address} port {port} already, at {place}')


def check_secrets(options: L2tpOptions, settings: Settings, warning: Report) -> None:
    """Secrets that others hide, and what has no effect without any."""
    places: dict[object, Where] = {}
    for (network, _), where in settings.items.get("carrier.secrets", ()):
        if network in places:
            what = "l2tp-secret" if network is None else f"l2tp-secret from {network}"
            warning(where, f"{what} is given again: {places[network]} has no effect")
        places[network] = where
    if options.hidden_avps and not options.secrets:
        where = settings.places["carrier.hidden_avps"]
        warning(where, "l2tp-hidden-avps has no effect: AVPs are hidden by an l2tp-secret, and there is none")


def check_keys(tunnel: Tunnel, settings: Settings, error: Report, warning: Report) -> None:
    """Encryption needs keys, which are what some ways to log in give."""
    if any(method.gives_keys for method in tunnel.authentication_methods):
        return
    # There is no such default, so the list has been given; whether MPPE was is another matter.
    methods = settings.places["authentication_methods"]
    why = "keys are what mschapv2 and eap give, and authentication-method has neither"
    if tunnel.mppe is Mppe.REQUIRED:
        default = "" if "mppe" in settings.places else f" (the default of a {tunnel.protocol.value} tunnel)"
        error(settings.places.get("mppe", methods), f"mppe required{default} cannot be met: {why}")
    elif tunnel.mppe is Mppe.YES and "mppe" in settings.places:
        warning(settings.places["mppe"], f"mppe yes has no effect: {why}")


def check_pools(pools: Sequence[tuple[Ipcp, Settings]], error: Report, warning: Report) -> None:
    """No address may be in two ipcp blocks: two sessions would have it."""
    found: list[_Range] = []
    for ipcp, settings in pools:
        ranges = settings.items.get("ranges", [])
        if not ranges:
            warning(ipcp.where, f'ipcp "{printable(ipcp.name)}" has no pool-address: its sessions get no address')
        for piece, where in ranges:
            found.append(_Range(piece.first, piece.last, len(found), where, ipcp.name))
    # The range that reaches farthest so far, and the farthest one of all other blocks than its own.
    far: list[_Range] = []
    for mine in sorted(found):
        for other in sorted(far, key=lambda other: other.owner == mine.owner):
            if other.last < mine.first:
                continue
            last = min(mine.last, other.last)
            shared = f"{mine.first}-{last}" if mine.first < last else str(last)
            first, second = sorted((mine, other), key=lambda piece: piece.number)
            if first.owner != second.owner:
                error(second.where, f"{shared} is in another ipcp at {first.where}: two sessions would get one address")
            else:
                warning(second.where, f"{shared} is given at {first.where} already")
            break
        far = sorted([*far, mine], key=lambda piece: piece.last, reverse=True)
        far = far[:1] + [piece for piece in far if piece.owner != far[0].owner][:1]


def check_binds(binds: Sequence[tuple[Bind, Where]], warning: Report) -> None:
    """The first bind of a tunnel with a realm's suffix is the one that counts; and what its users need."""
    seen: dict[tuple[str, str], Where] = {}
    for bind, where in binds:
        key = bind.tunnel.name, bind.realm.username_suffix
        first = seen.setdefault(key, where)
        if first != where:
            warning(where, f"this bind has no effect: that at {first} has the same tunnel and username-suffix")
        elif bind.tunnel.callnum_check and bind.realm.type == "radius" and bind.realm.users_file is None:
            warning(where, "callnum-check refuses all logins by this bind: its realm has no users-file")


def last(
    settings: Settings, field: str, key: Callable[[Any], Hashable], name: str, warning: Report
) -> tuple[Any, ...]:
    """The values of an option that may be given again, the last one of each *key*; *name* says what that is."""
    values: dict[Hashable, tuple[Any, Where]] = {}
    for value, where in settings.items.get(field, ()):
        mark = key(value)
        if mark in values:
            warning(where, f"{name.format(mark)} is given again: {values[mark][1]} has no effect")
        values[mark] = value, where
    return tuple(value for value, _ in values.values())


def check_eap(tunnels: Sequence[tuple[Tunnel, Settings]], binds: Sequence[Bind], warning: Report) -> None:
    """EAP is between the peer and a RADIUS server."""
    for tunnel, settings in tunnels:
        realms = [bind.realm for bind in binds if bind.tunnel is tunnel]
        if AuthMethod.EAP not in tunnel.authentication_methods or not realms:
            continue
        if not any(realm.type == "radius" and realm.eap_capable for realm in realms):
            message = "logins by eap fail: no bind has a realm of type radius that is eap-capable"
            warning(settings.places["authentication_methods"], message)


def check_radius_realm(realm: Realm, settings: Settings, blocks: Mapping[str, Settings], warning: Report) -> None:
    """A realm of type radius and its servers; *blocks* are what they were read from."""
    access = realm.authentication
    if not access.servers:
        logins = f'go to "{printable(realm.fallback)}"' if realm.fallback else "fail"
        warning(realm.where, f"a radius realm without a server in authentication-server: logins by it {logins}")
    if realm.accounting_interim and not realm.accounting.servers:
        where = settings.places["accounting_interim"]
        warning(where, "accounting-interim has no effect: the realm has no server in accounting-server")
    if len(access.servers) > 1 and access.timeout * access.max_tries >= realm.login_timeout:
        spent = f"timeout {access.timeout} times max-tries {access.max_tries}"
        where = settings.places.get("login_timeout", realm.where)
        warning(where, f"login-timeout {realm.login_timeout} leaves no time for a second server: {spent} come first")
    for servers, block in zip((access, realm.accounting), blocks.values(), strict=True):
        _check_source(servers, block, warning)


def _check_source(servers: RadiusServers, settings: Settings, warning: Report) -> None:
    versions = {server.address.version for server in servers.servers}
    for address, where in settings.items.get("source", ()):
        if address.version not in versions:
            warning(where, f"source-address {address} has no effect: the block has no server of IPv{address.version}")


def check_dae(dae: Dae, settings: Settings, warning: Report) -> None:
    """Those who may ask, and where they find us."""
    items = settings.items
    if dae.listen and not dae.clients:
        warning(items["listen"][0][1], "radius dae listen has no effect: there is no radius dae client")
    if dae.clients and not dae.listen:
        warning(items["clients"][0][1], "radius dae client has no effect: there is no radius dae listen")
