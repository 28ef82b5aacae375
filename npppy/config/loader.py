"""Loads npppd.conf: what its statements mean, and whether they fit together.

All errors of a file are found in one go: an error spoils its own line and what depends on it, no more.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from ..text import printable
from .blocks import Blocks, Settings, a
from .checks import check_binds, check_keys, check_listeners, check_pools, check_secrets, check_services
from .model import (
    Bind,
    Config,
    Dae,
    Diagnostic,
    FsmLimits,
    Interface,
    Ipcp,
    L2tpOptions,
    PppoeOptions,
    Protocol,
    RadiusServer,
    RadiusServers,
    Realm,
    Tunnel,
    Where,
)
from .options import (
    AUTHENTICATION,
    CARRIER,
    IPCP,
    PORTS,
    RADIUS,
    SERVERS,
    SET,
    TUNNEL,
    TUNNEL_DEFAULTS,
    Option,
    server,
    usable,
)
from .parser import Line
from .reader import Args, Bad


class ConfigError(Exception):
    """A configuration that cannot be used: all errors, and the warnings beside them, in the order of the files."""

    def __init__(self, diagnostics: list[Diagnostic], warnings: list[Diagnostic]) -> None:
        super().__init__("\n".join(map(str, diagnostics)))
        self.diagnostics = diagnostics
        self.warnings = warnings


def load(path: str | Path) -> Config:
    """Read a configuration file and those that it includes.

    Raises :class:`ConfigError` with all errors.  Warnings are in :attr:`Config.warnings`.
    """
    return _Loader().load(Path(path))


class _Loader(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self._global = Settings()
        self._radius = Settings()
        self._tunnels: list[tuple[Tunnel, Settings]] = []
        self._pools: list[tuple[Ipcp, Settings]] = []
        self._binds: list[tuple[Bind, Where]] = []
        #: The names of tunnels that some bind names.
        self._bound: set[str] = set()
        self.statements = {
            "set": partial(self._flat, SET, self._global),
            "tunnel": self._tunnel,
            "radius": partial(self._flat, RADIUS, self._radius),
            "authentication": self._authentication,
            "ipcp": self._ipcp,
            "interface": self._interface,
            "bind": self._bind,
        }

    def load(self, path: Path) -> Config:
        self.file(str(path), Where(str(path), 1, 1), self.lines)
        for tunnel, settings in self._tunnels:
            self._check_tunnel(tunnel, settings)
        check_services(self._tunnels, self.error)
        check_listeners(self._tunnels, self.error)
        check_pools(self._pools, self.error, self.warning)
        check_binds(self._binds, self.warning)
        self.finish()
        if self.errors:
            raise ConfigError(self.errors, self.warnings)
        return Config(
            file=path,
            **self._global.fields,
            **self._radius.fields,
            dae=Dae(
                listen=tuple(value for word, value in self._radius.values("dae") if word == "listen"),
                clients=tuple(value for word, value in self._radius.values("dae") if word == "client"),
            ),
            tunnels=tuple(self.defined("tunnel")),
            ipcps=tuple(self.defined("ipcp")),
            interfaces=tuple(self.defined("interface")),
            realms=tuple(self.defined("authentication")),
            binds=tuple(bind for bind, _ in self._binds),
            warnings=tuple(self.warnings),
        )

    def _flat(self, table: Mapping[str, Option], settings: Settings, line: Line, args: Args) -> None:
        """A statement that is an option of the whole configuration."""
        option = table[args.keyword(*table)]
        rest = Line(line.tokens[1:], line.end, line.damaged)
        rest.brace = line.brace
        self.option(rest, option, settings, line.tokens[0].text)

    def _tunnel(self, line: Line, args: Args) -> None:
        token, word = self.header(line, args, "tunnel", "protocol", [protocol.value for protocol in Protocol])
        if not word:
            return
        protocol = Protocol(word)
        faults = self.faults
        settings = Settings()
        self.options(line.block or (), f"{a(word)} tunnel", TUNNEL[protocol], settings)
        if token is None:
            return
        carrier = settings.group("carrier")
        for field in ("interfaces", "listen", "service_names", "pado_delay", "secrets"):
            if "carrier." + field in settings.items:
                carrier[field] = settings.values("carrier." + field)
        if carrier.get("service_names") == ("",):
            del carrier["service_names"]
        # Of two for one network the last one counts.
        if "secrets" in carrier:
            carrier["secrets"] = tuple(dict(carrier["secrets"]).items())
        if protocol is not Protocol.PPPOE:
            carrier.setdefault("listen", ((IPv4Address(0), PORTS[protocol]),))
        fields = TUNNEL_DEFAULTS[protocol] | {k: v for k, v in settings.fields.items() if "." not in k}
        # npppd has no keepalive without an interval.
        if fields.get("lcp_keepalive_interval") == 0:
            fields["lcp_keepalive"] = False
            del fields["lcp_keepalive_interval"]
        tunnel = Tunnel(
            name=token.text,
            protocol=protocol,
            where=token.where,
            carrier=CARRIER[protocol](**carrier),
            lcp=FsmLimits(**settings.group("lcp")),
            ipcp=FsmLimits(**settings.group("ipcp")),
            ccp=FsmLimits(**settings.group("ccp")),
            **fields,
        )
        self.become("tunnel", token, tunnel)
        # What an unread line might have said is not held against the others.
        if faults == self.faults:
            self._tunnels.append((tunnel, settings))

    def _check_tunnel(self, tunnel: Tunnel, settings: Settings) -> None:
        """What can be said of a tunnel whose lines have all been read."""
        name = printable(tunnel.name)
        if tunnel.name not in self._bound and "bind" not in self.lost:
            self.warning(tunnel.where, f'no bind names tunnel "{name}": it is not served')
        if isinstance(tunnel.carrier, PppoeOptions) and not tunnel.carrier.interfaces:
            self.warning(tunnel.where, f'tunnel "{name}" listens on no interface: it is not served')
        if isinstance(tunnel.carrier, L2tpOptions):
            check_secrets(tunnel.carrier, settings, self.warning)
        check_keys(tunnel, settings, self.error, self.warning)
        for field in ("carrier.interfaces", "carrier.service_names", "carrier.listen"):
            seen = set()
            for value, where in settings.items.get(field, ()):
                if value in seen:
                    text = f'"{printable(value)}"' if isinstance(value, str) else "{} port {}".format(*value)
                    self.warning(where, f"{text} is given twice")
                seen.add(value)
        sessions = -1
        for delay, where in settings.items.get("carrier.pado_delay", ()):
            if delay.sessions <= sessions:
                self.error(where, f"expected a delay from more than {sessions} sessions, found {delay.sessions}")
            sessions = max(sessions, delay.sessions)

    def _ipcp(self, line: Line, args: Args) -> None:
        token, _ = self.header(line, args, "ipcp", "", ())
        settings = Settings()
        if token is not None:
            self.needs_block(line, args)
        self.options(line.block or (), "an ipcp block", IPCP, settings)
        if token is None:
            return
        fields = settings.fields
        if "dns" in fields and fields["dns"] is None:
            fields["dns_from_resolver"] = True
        ipcp = Ipcp(name=token.text, where=token.where, ranges=settings.values("ranges"), **fields)
        self.become("ipcp", token, ipcp)
        self._pools.append((ipcp, settings))

    def _interface(self, line: Line, args: Args) -> None:
        try:
            token = args.interface("address")
        except Bad:
            self.lost.add("interface")
            raise
        fresh = self.define("interface", token)
        args.keyword("address")
        where = args.where
        address = args.address4()
        if not usable(int(address), int(address)):
            raise Bad(where, f"expected an address that a host can have, found {address}")
        args.keyword("ipcp")
        ipcp = self.find("ipcp", args.token("the name of an ipcp"))
        args.end()
        self.no_block(line)
        self.unbuilt("interface", "name", token.text, token.where)
        if fresh and ipcp is not None:
            interface = Interface(name=token.text, where=token.where, address=address, ipcp=ipcp)
            self.become("interface", token, interface)

    def _authentication(self, line: Line, args: Args) -> None:
        token, word = self.header(line, args, "authentication", "type", ["local", "radius"])
        if not word:
            return
        if token is not None:
            self.needs_block(line, args)
        where = token.where if token is not None else line.tokens[0].where
        self.unbuilt("authentication", "type", word, where)
        servers = {keyword: Settings() for keyword in SERVERS}

        def server_block(keyword: str, line: Line, args: Args) -> None:
            if word != "radius":
                raise Bad(line.tokens[0].where, f"{keyword} is for realms of type radius, and this one is {word}")
            args.end()
            if line.block is None:
                raise args.expected('"{"')
            self.options(line.block, f"an {keyword} block", server(SERVERS[keyword]), servers[keyword])

        settings = Settings()
        self.options(
            line.block or (),
            "an authentication block",
            AUTHENTICATION,
            settings,
            "authentication",
            {keyword: partial(server_block, keyword) for keyword in SERVERS},
        )
        if token is None:
            return
        users_file = self._users_file(settings)
        if users_file is None and word == "local":
            self.warning(token.where, "a local realm without users-file: logins by it fail")
        if word == "radius" and "servers" not in servers["authentication-server"].items:
            self.warning(token.where, "a radius realm without a server in authentication-server: logins by it fail")
        settings.fields.pop("users_file", None)
        authentication, accounting = (
            RadiusServers(
                servers=tuple(
                    RadiusServer(address=address, port=port, secret=secret)
                    for address, port, secret in servers[keyword].values("servers")
                ),
                **servers[keyword].fields,
            )
            for keyword in SERVERS
        )
        realm = Realm(
            name=token.text,
            where=token.where,
            type=word,
            users_file=users_file,
            authentication=authentication,
            accounting=accounting,
            **settings.fields,
        )
        self.become("authentication", token, realm)

    def _users_file(self, settings: Settings) -> Path | None:
        if "users_file" not in settings.fields:
            return None
        where = settings.places["users_file"]
        path = Path(where.file).parent.absolute() / str(settings.fields["users_file"])
        try:
            if path.stat().st_mode & stat.S_IROTH:
                self.warning(where, f'"{printable(str(path))}" holds passwords and everybody may read it')
        except OSError as failure:
            self.warning(where, f'cannot read "{printable(str(path))}": {failure.strerror}; logins fail meanwhile')
        return path

    def _bind(self, line: Line, args: Args) -> None:
        try:
            args.keyword("tunnel")
            args.keyword("from")
            names = [args.name("the name of a tunnel", "authenticated")]
            args.keyword("authenticated")
            args.keyword("by")
            names.append(args.name("the name of an authentication", "to"))
            args.keyword("to")
            names.append(args.token("the name of an interface"))
            args.end()
            self.no_block(line)
        except Bad:
            self.lost.add("bind")
            raise
        self._bound.add(names[0].text)
        kinds = ("tunnel", "authentication", "interface")
        tunnel, realm, interface = (self.find(kind, name) for kind, name in zip(kinds, names, strict=True))
        if tunnel is not None and realm is not None and interface is not None:
            bind = Bind(tunnel=tunnel, realm=realm, interface=interface)
            self._binds.append((bind, line.tokens[0].where))
