"""Loads npppd.conf: what its statements mean, and whether they fit together.

All errors of a file are found in one go: an error spoils its own line and what depends on it, no more.
"""

from __future__ import annotations

import stat
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from ..text import printable
from .blocks import Blocks, Settings, a
from .checks import (
    check_binds,
    check_dae,
    check_eap,
    check_keys,
    check_listeners,
    check_pools,
    check_radius_realm,
    check_secrets,
    check_services,
    last,
)
from .lexer import Token
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
    Radius,
    RadiusServers,
    Realm,
    Tunnel,
    Where,
)
from .options import CARRIER, IPCP, METRICS_LISTEN, PORTS, SET, TUNNEL, TUNNEL_DEFAULTS, Option, usable
from .options_radius import AUTHENTICATION, DAE, RADIUS, RADIUS_ONLY, SERVERS
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
        self._dae = Settings()
        self._tunnels: list[tuple[Tunnel, Settings]] = []
        self._pools: list[tuple[Ipcp, Settings]] = []
        self._binds: list[tuple[Bind, Where]] = []
        #: The names of tunnels that some bind names.
        self._bound: set[str] = set()
        self.statements = {
            "set": self._set,
            "tunnel": self._tunnel,
            "radius": self._radius_statement,
            "authentication": self._authentication,
            "ipcp": self._ipcp,
            "interface": self._interface,
            "bind": self._bind,
            "metrics-listen": self._metrics_listen,
        }

    def load(self, path: Path) -> Config:
        self.file(str(path), Where(str(path), 1, 1), self.lines)
        for tunnel, settings in self._tunnels:
            self._check_tunnel(tunnel, settings)
        check_services(self._tunnels, self.error)
        check_listeners(self._tunnels, self.error)
        check_pools(self._pools, self.error, self.warning)
        check_binds(self._binds, self.warning)
        if "bind" not in self.lost:
            check_eap(self._tunnels, [bind for bind, _ in self._binds], self.warning)
        radius = self._radius_config()
        self.finish()
        if self.errors:
            raise ConfigError(self.errors, self.warnings)
        return Config(
            file=path,
            **self._global.fields,
            metrics_listen=last(
                self._global, "metrics_listen", lambda at: at, "{0[0]} port {0[1]}", self.warning
            ),
            radius=radius,
            tunnels=tuple(self.defined("tunnel")),
            ipcps=tuple(self.defined("ipcp")),
            interfaces=tuple(self.defined("interface")),
            realms=tuple(self.defined("authentication")),
            binds=tuple(bind for bind, _ in self._binds),
            warnings=tuple(self.warnings),
        )

    def _set(self, line: Line, args: Args) -> None:
        self._flat(line, 1, SET[args.keyword(*SET)], self._global)

    def _metrics_listen(self, line: Line, args: Args) -> None:
        self._flat(line, 0, METRICS_LISTEN, self._global)

    def _radius_statement(self, line: Line, args: Args) -> None:
        word = args.keyword(*RADIUS, "dae")
        if word == "dae":
            self._flat(line, 2, DAE[args.keyword(*DAE)], self._dae)
        else:
            self._flat(line, 1, RADIUS[word], self._radius)

    def _flat(self, line: Line, words: int, option: Option, settings: Settings) -> None:
        """A statement that is an option of the whole configuration; *words* come before the option's."""
        rest = Line(line.tokens[words:], line.end, line.damaged)
        rest.brace = line.brace
        self.option(rest, option, settings, line.tokens[0].text)

    def _radius_config(self) -> Radius:
        fields = self._radius.fields
        spool = self._absolute(self._radius, "spool")
        fields.pop("spool", None)
        addresses = last(self._radius, "nas_addresses", lambda a: a.version, "nas-address of IPv{}", self.warning)
        dae = Dae(
            listen=last(self._dae, "listen", lambda at: at, "{0[0]} port {0[1]}", self.warning),
            clients=last(self._dae, "clients", lambda client: client[0], "client {}", self.warning),
            **self._dae.fields,
        )
        check_dae(dae, self._dae, self.warning)
        return Radius(nas_addresses=addresses, spool=spool, dae=dae, **fields)

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
        servers = {keyword: Settings() for keyword in SERVERS}

        def server_block(keyword: str, line: Line, args: Args) -> None:
            if word != "radius":
                raise Bad(line.tokens[0].where, f"{keyword} is for realms of type radius, and this one is {word}")
            args.end()
            if line.block is None:
                raise args.expected('"{"')
            self.options(line.block, f"an {keyword} block", SERVERS[keyword], servers[keyword])

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
        fallback = self._fallback(token, settings)
        for field in ("users_file", "fallback"):
            settings.fields.pop(field, None)
        authentication, accounting = (self._servers(servers[keyword]) for keyword in SERVERS)
        realm = Realm(
            name=token.text,
            where=token.where,
            type=word,
            users_file=users_file,
            authentication=authentication,
            accounting=accounting,
            fallback=fallback,
            **settings.fields,
        )
        self.become("authentication", token, realm)
        if word == "radius":
            check_radius_realm(realm, settings, servers, self.warning)
            return
        if users_file is None:
            self.warning(token.where, "a local realm without users-file: logins by it fail")
        if realm.eap_capable and "eap_capable" in settings.places:
            what = "eap-capable yes has no effect: logins by EAP need a realm of type radius"
            self.warning(settings.places["eap_capable"], what)
        for keyword in RADIUS_ONLY:
            where = settings.places.get(AUTHENTICATION[keyword].field)
            if where is not None:
                self.error(where, f"{keyword} is for realms of type radius, and this one is {word}")

    def _servers(self, settings: Settings) -> RadiusServers:
        return RadiusServers(
            servers=last(settings, "servers", lambda s: (s.address, s.port), "{0[0]} port {0[1]}", self.warning),
            source=last(settings, "source", lambda a: a.version, "source-address of IPv{}", self.warning),
            **settings.fields,
        )

    def _fallback(self, token: Token, settings: Settings) -> str:
        """The name of the realm that stands in for the one that *token* names."""
        name: Token | None = settings.fields.get("fallback")
        if name is None:
            return ""
        if name.text == token.text:
            self.error(name.where, "a realm cannot be its own fallback-realm")
            return ""
        realm: Realm | None = self.find("authentication", name)
        if realm is None:
            return ""
        if realm.fallback:
            what = f'"{printable(realm.name)}" has a fallback-realm itself ("{printable(realm.fallback)}")'
            self.error(name.where, f"{what}: a login goes on to one realm only")
        return realm.name

    def _users_file(self, settings: Settings) -> Path | None:
        path = self._absolute(settings, "users_file")
        if path is None:
            return None
        where = settings.places["users_file"]
        try:
            if path.stat().st_mode & stat.S_IROTH:
                self.warning(where, f'"{printable(str(path))}" holds passwords and everybody may read it')
        except OSError as failure:
            self.warning(where, f'cannot read "{printable(str(path))}": {failure.strerror}; logins fail meanwhile')
        return path

    def _absolute(self, settings: Settings, field: str) -> Path | None:
        """The file that a field names, against the directory of the file that it is in."""
        if field not in settings.fields:
            return None
        return Path(settings.places[field].file).parent.absolute() / str(settings.fields[field])

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
