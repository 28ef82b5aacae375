"""All sessions, and what they share: indexes, limits, addresses, and what is heard of them."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Protocol

from ..aaa.base import Accept, Authenticator, names
from ..admission import UnderWay
from ..config import model
from ..config.model import Bind, Config, Interface, Realm, Tunnel
from ..pipex.base import NO_WISH, Backend, Wish
from ..pipex.icmp import RateLimit
from ..pool import Pool, PoolExhausted
from ..text import printable
from ..wheel import Wheel
from . import proto
from .cause import Cause
from .link import Call
from .session import Notify, Session
from .station import Phase

logger = logging.getLogger("npppy.ppp")

#: Sessions that are not up yet: what a flood of forged callers may make us keep.
MAX_HALF_OPEN = 8192

#: Log lines a second, and at once, for the ends of sessions on which nobody has named himself.
STRANGERS = (100, 1000)


#: Changes of keys a second, and at once: each takes some 15 us.  One packet may ask for 12,288 after a long silence.
CATCHING_UP = (4096, 16384)


class Routes(Protocol):
    """The kernel's routes to a shared interface."""

    def add_route(self, network: IPv4Network) -> None: ...

    def remove_route(self, network: IPv4Network) -> None: ...


@dataclass(slots=True)
class Site:
    """A shared interface as sessions use it."""

    conf: Interface
    pool: Pool
    backend: Backend
    routes: Routes
    #: The routing domain; today there is one.
    domain: int = 0
    #: The name servers of the ipcp block by IPCP option; what is absent here a realm may supply, unless it is blocked.
    servers: Mapping[int, int] = field(default_factory=dict)
    blocked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Login:
    """An account of a realm, and where its sessions go."""

    bind: Bind
    #: What the realm looks up.
    account: str
    #: What limits count: the name less what the strip options take off, with its suffix.
    user: str

    @property
    def realm(self) -> Realm:
        return self.bind.realm

    @property
    def interface(self) -> str:
        return self.bind.interface.name

    def of_realm(self, other: Login | None) -> bool:
        """Is it of the same realm?"""
        return other is not None and self.realm.name == other.realm.name

    def same(self, other: Login | None) -> bool:
        """Is it the same user of the same realm?"""
        return other is not None and (self.realm.name, self.user) == (other.realm.name, other.user)


DNS = (proto.OPT_DNS1, proto.OPT_DNS2)
NBNS = (proto.OPT_NBNS1, proto.OPT_NBNS2)


def name_server_options(
    dns: Iterable[IPv4Address | int] | None, nbns: Iterable[IPv4Address | int] | None
) -> dict[int, int]:
    """Name servers by their IPCP options; 0.0.0.0 stands for none."""
    servers = {}
    for kinds, addresses in ((DNS, dns), (NBNS, nbns)):
        for kind, address in zip(kinds, addresses or (), strict=False):
            if int(address):
                servers[kind] = int(address)
    return servers


def _host(network: IPv4Network) -> int | None:
    """The address that a network is, if it is one only."""
    return int(network.network_address) if network.prefixlen == 32 else None


def _place(domain: int, address: int) -> int:
    """One number for both; in the first domain the address itself, and no other object."""
    return domain << 32 | address if domain else address


class Engine:
    """The PPP engine.  Carriers open sessions on it; it does no I/O."""

    def __init__(
        self,
        *,
        wheel: Wheel,
        random: Callable[[int], bytes],
        aaa: Authenticator,
        hostname: str,
        boot: int = 0,
    ) -> None:
        """*boot*: what no other life of this daemon has, of 32 bits; accounting tells sessions apart by it."""
        self.wheel = wheel
        self.random = random
        self.aaa = aaa
        self.boot = boot
        #: The name in a CHAP Challenge unless the tunnel has its own.
        self.hostname = hostname
        self.config: Config | None = None
        self.sites: dict[str, Site] = {}
        self._binds: dict[str, list[Bind]] = {}
        self.sessions: dict[int, Session] = {}
        #: What operators want of the data path of sessions, by id.
        self.wishes: dict[int, Wish] = {}
        # Most users have one session.
        self._by_user: dict[str, Session | list[Session]] = {}
        #: Those that a realm has given another name, by that.
        self._renamed: dict[str, list[Session]] = {}
        #: The pools of all ipcp blocks, by name.
        self.pools: dict[str, Pool] = {}
        #: By domain and address: see :func:`_place`.
        self._by_address: dict[int, Session] = {}
        #: By domain and network, those with one behind them.
        self._by_network: dict[tuple[int, IPv4Network], Session] = {}
        self._by_ipcp: Counter[str] = Counter()
        self._next_id = 0
        # Those that have never been up, the oldest first.
        self._half_open: OrderedDict[Session, None] = OrderedDict()
        self.under_way = UnderWay()
        #: Admitted sessions, up or about to be.
        self.bound = 0
        #: Since the start: logins refused, by realm; sessions that have ended without coming up, by the name and the
        #: protocol of their tunnel; and frames dropped, by reason.
        self.refused: Counter[str] = Counter()
        self.failed: Counter[tuple[str, model.Protocol, Cause]] = Counter()
        self.malformed: Counter[str] = Counter()
        self.listeners: list[Notify] = []
        #: May the end of a stranger's session be logged?
        self.strangers = RateLimit(*STRANGERS)
        #: Changes of MPPE's keys that catching up may take: the packet that asks for them may be anybody's.
        self.catching_up = RateLimit(*CATCHING_UP)
        self.closing = False

    def configure(
        self, config: Config, sites: Mapping[str, Site], now: float, pools: Mapping[str, Pool] | None = None
    ) -> None:
        """Take a configuration, the first or a new one.

        Sessions keep the tunnel options that they came in with; one whose interface is gone is ended.  *pools* are
        those that a realm may name, by their ipcp blocks; None: those of the interfaces.
        """
        self.config = config
        self.sites = dict(sites)
        self.pools = dict(pools) if pools is not None else {s.conf.ipcp.name: s.pool for s in sites.values()}
        self._binds = {}
        for bind in config.binds:
            self._binds.setdefault(bind.tunnel.name, []).append(bind)
        for session in list(self.sessions.values()):
            if session.site is not None and session.site.conf.name not in self.sites:
                session.end(Cause.NAS_REQUEST, "its interface is no longer configured", now)
        self._by_ipcp.clear()
        for session in self.sessions.values():
            if session.site is not None:
                site = session.site = self.sites[session.site.conf.name]
                self._by_ipcp[site.conf.ipcp.name] += 1
                self._reroute(session, site)

    # Carriers.

    def open(self, call: Call, now: float) -> Session | None:
        """A session on a new call; None: refused, we are going down.

        With a proxy in its link, frames go to the call at once, and it may be closed before this returns.
        """
        if self.closing:
            return None
        if len(self._half_open) >= MAX_HALF_OPEN:
            # The oldest has had the most time.  To refuse the new one instead would let anybody keep all others out, by
            # opening sessions and leaving them to the bound on negotiation.
            next(iter(self._half_open)).abandon(Cause.SERVICE_UNAVAILABLE, "too many half-open sessions", now)
        ppp_id = self._next_id
        self._next_id += 1
        session = self.sessions[ppp_id] = Session(self, ppp_id, call, now)
        self._half_open[session] = None
        self.under_way.begin(now)
        proxy = call.link.proxy
        if proxy is not None:
            session.begin(proxy, now)
        return session

    @property
    def opened(self) -> int:
        """How many sessions there have ever been."""
        return self._next_id

    @property
    def half_open(self) -> int:
        """How many sessions have never been up."""
        return len(self._half_open)

    def forget(self, session: Session) -> None:
        """The session is dead."""
        if session in self._half_open:
            del self._half_open[session]
            self.under_way.end(session.started)
        self.wishes.pop(session.id, None)
        del self.sessions[session.id]

    def notify(self, event: str, session: Session, now: float) -> None:
        """Tell listeners of "start" and "stop", and of "change": of its profile, or of what carries its data."""
        if event == "start":
            del self._half_open[session]
            self.under_way.end(session.started, now)
        for listener in self.listeners:
            listener(event, session, now)

    # Logins.

    def find_login(self, tunnel: Tunnel, username: str) -> Login | None:
        """The realm for a name: the longest suffix that the name ends with; the first bind among equals.

        The suffix must be shorter than the name (npppd.conf, username-suffix).
        """
        best: Bind | None = None
        length = -1
        for bind in self._binds.get(tunnel.name, ()):
            suffix = bind.realm.username_suffix
            if length < len(suffix) < max(len(username), 1) and username.endswith(suffix):
                best, length = bind, len(suffix)
        if best is None:
            return None
        return self.login(best, username)

    @staticmethod
    def login(bind: Bind, username: str) -> Login:
        """The account of a name in the realm that is for it."""
        user, account = names(bind.realm, username)
        return Login(bind, account, user)

    def admit(self, session: Session, login: Login, accept: Accept, now: float) -> str:
        """Count an authenticated session against the limits and give it an address; returns why not, or ""."""
        config, site = self.config, self.sites.get(login.interface)
        if config is None or site is None:
            return f"interface {login.interface} is not there"
        ipcp = site.conf.ipcp
        pool = self.pools.get(accept.pool) if accept.pool and accept.address is None else site.pool
        if pool is None:
            return f"there is no ipcp {printable(accept.pool)}, whose pool its realm wants"
        victims = self._surplus(login, config, accept)
        if victims and not config.duplicate_replace:
            return "user-max-session"
        for what, holder in self._holders(site, accept):
            if holder in victims:
                continue
            if not (config.duplicate_replace and login.same(holder.login_of)):
                return f"{what} cannot be had: it is in use"
            victims.append(holder)
        room = len(victims)
        here = sum(victim.site is not None and victim.site.conf.ipcp is ipcp for victim in victims)
        if config.max_session and self.bound - room >= config.max_session:
            return "max-session"
        if ipcp.max_session and self._by_ipcp[ipcp.name] - here >= ipcp.max_session:
            return f"max-session of ipcp {ipcp.name}"
        for victim in victims:
            victim.end(Cause.PORT_PREEMPTED, f"a newer login of the same user, ppp id={session.id}", now)
        session.site = site
        session.servers = self._name_servers(site, accept)
        refusal = self._give(session, site, pool, accept, now)
        if refusal:
            self.release(session)
            return refusal
        session.bind = login.bind
        others = self._by_user.get(login.user)
        if others is None:
            self._by_user[login.user] = session
        elif isinstance(others, list):
            others.append(session)
        else:
            self._by_user[login.user] = [others, session]
        self._by_ipcp[ipcp.name] += 1
        self.bound += 1
        return ""

    def _surplus(self, login: Login, config: Config, accept: Accept) -> list[Session]:
        """The oldest sessions of a user: as many as its limits leave no room for.

        The user is who the realm says: with EAP, many may call themselves anonymous.
        """
        limit = min(filter(None, (login.realm.user_max_session, accept.port_limit)), default=0)
        if not (limit or config.user_max_session):
            return []
        mine = self.by_user(accept.profile.username or login.user)
        surplus: list[Session] = []
        if limit:
            here = [session for session in mine if login.of_realm(session.login_of)]
            surplus = here[: max(0, len(here) + 1 - limit)]
        if config.user_max_session:
            left = [session for session in mine if session not in surplus]
            surplus += left[: max(0, len(left) + 1 - config.user_max_session)]
        return surplus

    def _holders(self, site: Site, accept: Accept) -> list[tuple[str, Session]]:
        """The sessions that have what a user is to have, and what that is."""
        holders = []
        networks = list(accept.routes)
        if accept.address is not None:
            holder = self._holder(site, IPv4Network(accept.address))
            if holder is not None:
                holders.append((f"address {IPv4Address(accept.address)}", holder))
            if accept.prefixlen < 32:
                networks.append(IPv4Network((accept.address, accept.prefixlen), strict=False))
        for network in networks:
            holder = self._holder(site, network)
            if holder is not None:
                holders.append((f"network {network}", holder))
        return holders

    def _holder(self, site: Site, network: IPv4Network) -> Session | None:
        """Who has a network; one of a single address may be had as an address, too."""
        holder = self._by_network.get((site.domain, network))
        if holder is None and network.prefixlen == 32:
            holder = self._by_address.get(_place(site.domain, int(network.network_address)))
        return holder

    def _give(self, session: Session, site: Site, pool: Pool, accept: Accept, now: float) -> str:
        """Give an authenticated session what its realm says; returns why not, or "".  Some of it is given then."""
        if accept.address is not None:
            if not site.pool.claim(accept.address, fixed=True):
                return f"address {IPv4Address(accept.address)} cannot be had: it is reserved"
            self._take(session, accept.address, accept.prefixlen)
        for network in accept.routes:
            # What is an address of its own no pool may give to another.
            host = _host(network)
            if host not in (None, accept.address) and not site.pool.claim(host, fixed=True):
                return f"network {network} cannot be had: it is reserved"
            session.routes += (network,)
            self._by_network[site.domain, network] = session
        if accept.address is None and (
            accept.pool or not (accept.address_by_peer and site.conf.ipcp.allow_user_selected_address)
        ):
            refusal = self.assign(session, 0, now, pool)
            if refusal:
                return refusal
        self._reroute(session, site)
        return ""

    def assign(self, session: Session, wish: int, now: float, pool: Pool | None = None) -> str:
        """Give an admitted session the address that it wishes, or one of a pool; returns why not, or "".

        The pool is that of its interface unless another is given.
        """
        site = session.site
        assert site is not None
        pool = pool or site.pool
        if wish and pool.claim(wish, fixed=False):
            self._take(session, wish, 32)
            return ""
        try:
            self._take(session, pool.allocate(), 32)
        except PoolExhausted:
            return f"the pool of ipcp {pool.name} is exhausted"
        return ""

    def _take(self, session: Session, address: int, prefixlen: int) -> None:
        site = session.site
        assert site is not None
        session.address = address
        session.prefixlen = prefixlen
        self._by_address[_place(site.domain, address)] = session
        if prefixlen < 32:
            self._by_network[site.domain, IPv4Network((address, prefixlen), strict=False)] = session
        self._reroute(session, site)

    def _reroute(self, session: Session, site: Site) -> None:
        """Routes of its own for what a session has and the pool's routes do not cover."""
        pool, address, prefixlen, old = site.pool, session.address, session.prefixlen, session.routed
        wanted = session.routes
        if address and (prefixlen < 32 or not pool.covers(address)):
            wanted = (IPv4Network((address, prefixlen), strict=False), *wanted)
        if not (wanted or old):
            return
        pools = pool.aggregates()
        new = session.routed = tuple(dict.fromkeys(network for network in wanted if network not in pools))
        for network in new:
            if network not in old:
                site.routes.add_route(network)
        for network in old:
            if network not in new and network not in pools:
                site.routes.remove_route(network)

    def _name_servers(self, site: Site, accept: Accept) -> Mapping[int, int]:
        given = name_server_options(accept.dns, accept.nbns)
        for kind in site.blocked:
            given.pop(kind, None)
        return {**given, **site.servers} if given else site.servers

    def release(self, session: Session) -> None:
        """The session is ending: what it held is free at once."""
        site, login = session.site, session.login_of
        if site is None:
            return
        for network in session.routes:
            del self._by_network[site.domain, network]
            host = _host(network)
            if host not in (None, session.address):
                site.pool.release(host)
        session.routes = ()
        if session.address:
            site.pool.release(session.address)
            del self._by_address[_place(site.domain, session.address)]
            if session.prefixlen < 32:
                del self._by_network[site.domain, IPv4Network((session.address, session.prefixlen), strict=False)]
            session.address, session.prefixlen = 0, 32
        self._reroute(session, site)
        if login is not None:
            self.bound -= 1
            self._by_ipcp[site.conf.ipcp.name] -= 1
            mine = self._by_user[login.user]
            if isinstance(mine, list):
                mine.remove(session)
            if mine is session or mine == []:
                del self._by_user[login.user]
            self.rename(session, session.profile.username, "")
            session.bind = None
        session.site = None

    # Look-ups.

    def acct_session_id(self, ppp_id: int) -> str:
        """As npppd makes it: which life of the daemon, and which session."""
        return f"{self.boot:08x}{ppp_id & 0xFFFFFFFF:08x}"

    def by_session_id(self, text: str) -> Session | None:
        """By Acct-Session-Id."""
        if len(text) != 16 or not text.isascii() or not text.isalnum():
            return None
        try:
            boot, ppp_id = int(text[:8], 16), int(text[8:], 16)
        except ValueError:
            return None
        return self.sessions.get(ppp_id) if boot == self.boot else None

    def by_user(self, name: str) -> list[Session]:
        """The sessions that are admitted for a user, by the name that servers know it by."""
        mine = self._by_user.get(name, [])
        found = [session for session in (mine if isinstance(mine, list) else [mine]) if session.name == name]
        return found + self._renamed.get(name, [])

    def rename(self, session: Session, old: str, new: str) -> None:
        """The realm of an admitted session calls its user by another name; "": by none of its own."""
        mine = self._renamed.get(old, [])
        if session in mine:
            mine.remove(session)
            if not mine:
                del self._renamed[old]
        login = session.login_of
        if new and login is not None and new != login.user:
            self._renamed.setdefault(new, []).append(session)

    def by_address(self, address: int, domain: int = 0) -> Session | None:
        return self._by_address.get(_place(domain, address))

    # Commands.

    def wish(self, ppp_id: int, **changes: Any) -> None:
        """Change some of what an operator wants of a session's data path, the fields of :class:`Wish`.

        It holds from the next time that the data path is opened; who calls sees to that of now.
        """
        wish = self.wishes.get(ppp_id, NO_WISH)._replace(**changes)
        if wish == NO_WISH:
            self.wishes.pop(ppp_id, None)
        elif ppp_id in self.sessions:
            self.wishes[ppp_id] = wish

    def disconnect(self, ppp_id: int, now: float) -> bool:
        session = self.sessions.get(ppp_id)
        if session is None or session.phase >= Phase.TERMINATE:
            return False
        session.end(Cause.ADMIN_RESET, "an operator cleared it", now)
        return True
