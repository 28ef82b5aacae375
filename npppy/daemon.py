"""npppyd: argument parsing and wiring."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import grp
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path

import uvloop

from . import __version__, logs
from .aaa.radius.access import RadiusLogins
from .aaa.radius.accounting import Accountant
from .aaa.radius.client import Client
from .aaa.radius.dae_server import DaeServer
from .aaa.radius.dae_server import ListenError as DaeListenError
from .aaa.radius.socket import opener
from .aaa.radius.spool import Spool
from .aaa.radius.spool_file import HeldError
from .aaa.realms import Realms
from .admission import Admission
from .config.loader import ConfigError, load
from .config.model import Config, Interface, Ipcp
from .control.pipex import PipexCommands
from .control.protocol import SOCKET, Message
from .control.radius import RadiusCommands
from .control.server import ControlServer, Reply
from .control.subject import EngineSubject
from .control.tunnels import TunnelCommands
from .exporter import Exporter
from .exporter import ListenError as MetricsListenError
from .garbage import Garbage
from .journal import Journal, JournalError
from .l2tp import ipsec
from .l2tp.server import L2tpServer, ListenError
from .metrics import Metrics
from .pipex.datapath import DataPath, DataPathError
from .pipex.ebpf.libbpf import BpfError
from .pipex.ebpf.maps import default_pins
from .pipex.ebpf.plumbing import teardown
from .pool import AddressSpace, Pool
from .ppp.cause import Cause
from .ppp.engine import DNS, NBNS, Engine, Site, name_server_options
from .pppoe.server import PppoeServer, end_orphans
from .pptp.server import ListenError as PptpListenError
from .pptp.server import PptpServer
from .tun.device import TunError
from .tun.netlink import LinkMonitor, LinkState, NetlinkError
from .wheel import TICK, Wheel

log = logging.getLogger("npppy.daemon")

CONFIG = "/etc/npppy/npppd.conf"
PIDFILE = Path("/var/run/npppyd.pid")
SPOOL = Path("/var/lib/npppy/npppyd.spool")
RESOLVER = Path("/etc/resolv.conf")

#: Seconds between looks at the users files.
REFRESH = 2.0
#: Seconds that sessions may take to end when the daemon stops, as npppd.
SHUTDOWN = 5.0
#: Sessions ended in one go, between which the loop does its other work.
SLICE = 100


class StartError(Exception):
    """The daemon cannot start; the message says why."""


def resolver() -> tuple[IPv4Address, ...]:
    """The IPv4 name servers of resolv.conf(5)."""
    servers = []
    with contextlib.suppress(FileNotFoundError), RESOLVER.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(AddressValueError):
                    servers.append(IPv4Address(words[1]))
    return tuple(servers)


class Daemon:
    """All parts of npppyd, and how they are joined."""

    def __init__(self, config: Config, control: str, group: int | None) -> None:
        self.config = config
        self.clock = time.monotonic
        self.loop = asyncio.get_running_loop()
        self.wheel = Wheel(self.clock())
        self.admission = Admission(self.loop.call_soon, self.clock)
        self.client = Client(self.wheel, secrets.token_bytes, opener(self.clock), time.time)
        self.logins = RadiusLogins(self.client)
        self.realms = Realms(secrets.token_bytes, self.logins)
        self.engine = Engine(
            wheel=self.wheel, random=secrets.token_bytes, aaa=self.realms, hostname=socket.gethostname()
        )
        self.space = AddressSpace()
        self.sites: dict[str, Site] = {}
        #: The pools of all ipcp blocks, those without an interface among them: a realm may name them.
        self.pools: dict[str, Pool] = {}
        #: The routes of the pools, and the interface of each.
        self.routed: dict[IPv4Network, str] = {}
        self.subject = EngineSubject(self.engine, self.clock)
        self.control = ControlServer(self.subject, control, group=group)
        self.control.register("daemon", self._state)
        PipexCommands(self.engine, lambda: self.data.backend, self.clock).register(self.control)
        TunnelCommands(lambda: self.l2tp.engine, lambda: self.pptp.engine, self.clock).register(self.control)
        RadiusCommands(lambda: self.client, lambda: self.accountant, lambda: self.dae).register(self.control)
        self.metrics = Metrics(self, self.clock)
        pages = {"/metrics": self.metrics.totals, "/sessions": self.metrics.sessions}
        self.exporter = Exporter(pages, self.metrics.answered, self.metrics.full)
        self.control_path = control
        self.journal_path = _journal(control)
        self.stopping = asyncio.Event()
        self.pins = default_pins(control)
        self.data: DataPath
        self.pppoe: PppoeServer
        self.l2tp: L2tpServer
        self.pptp: PptpServer
        self.spool: Spool
        self.accountant: Accountant
        self.dae: DaeServer
        self.links: LinkMonitor
        self.journal: Journal

    async def run(self, serving: Callable[[], None]) -> None:
        """Serve until told to stop; *serving* is called when all is ready.  Raises :class:`StartError`."""
        with contextlib.ExitStack() as stack:
            self._start(stack)
            try:
                await self.control.start()
            except OSError as error:
                raise StartError(str(error)) from None
            try:
                serving()
                log.info("npppyd %s started, pid %d", __version__, os.getpid())
                await self.stopping.wait()
                await self._end_sessions()
            finally:
                await self.control.close()
        log.info("npppyd stopped")

    def _start(self, stack: contextlib.ExitStack) -> None:
        try:
            self.journal = Journal(self.journal_path)
        except JournalError as error:
            raise StartError(str(error)) from None
        stack.callback(self.journal.close)
        # Design, rule 7: what an earlier run has left is ended before anything is given to anyone else.
        end_orphans(self.journal)
        self._configure_realms(self.config)
        stack.callback(self.client.close)
        try:
            self.spool = Spool(self.config.radius.spool or _spool(self.control_path), time.time())
        except HeldError as error:
            raise StartError(str(error)) from None
        self.engine.boot = self.spool.new_boot(secrets.token_bytes, time.time())
        self.accountant = Accountant(
            engine=self.engine,
            client=self.client,
            spool=self.spool,
            wheel=self.wheel,
            wall=time.time,
            clock=self.clock,
            random=secrets.token_bytes,
            later=self.loop.call_soon,
        )
        stack.callback(self.accountant.close)
        try:
            self.data = DataPath(self.config, self.pins)
        except DataPathError as error:
            raise StartError(str(error)) from None
        stack.callback(lambda: self.data.close())
        self.accountant.recover(self.data.leftovers)
        self.accountant.configure(self.config)
        for interface in self.config.interfaces:
            self._open_tun(interface)
        self._make_sites(self.config)
        self.engine.configure(self.config, self.sites, self.clock(), self.pools)
        self.pppoe = PppoeServer(
            self.config.tunnels,
            self.engine.open,
            secrets.token_bytes,
            self.wheel,
            self.clock,
            self.journal,
            self.admission,
        )
        stack.callback(self.pppoe.close)
        try:
            # Before anything can come, or leave.
            ipsec.require(self.config.tunnels, self.control_path, self.pins.name)
            stack.callback(self._release)
            self.l2tp = L2tpServer(
                self.config.tunnels,
                self.engine.open,
                secrets.token_bytes,
                self.wheel,
                self.clock,
                self.journal,
                self.engine.hostname,
                self.admission,
            )
        except (ipsec.IpsecError, ListenError) as error:
            raise StartError(str(error)) from None
        stack.callback(self.l2tp.close)
        self.data.outer = self.l2tp.outer
        try:
            self.pptp = PptpServer(
                self.config.tunnels,
                self.engine.open,
                secrets.token_bytes,
                self.wheel,
                self.clock,
                self.engine.hostname,
                self.admission,
            )
        except PptpListenError as error:
            raise StartError(str(error)) from None
        stack.callback(self.pptp.close)
        try:
            self.dae = DaeServer(self.config.radius, self.engine, self.clock, time.time)
        except DaeListenError as error:
            raise StartError(str(error)) from None
        stack.callback(self.dae.close)
        try:
            stack.callback(self.exporter.close)
            self.exporter.listen(self.config.metrics_listen)
        except MetricsListenError as error:
            raise StartError(str(error)) from None
        self.links = LinkMonitor(self._link, news=self._follow)
        stack.callback(self.links.close)
        for name in sorted(self.pppoe.interfaces()):
            self.links.watch(name)
        #: From here on, what is there is there to stay.
        self.garbage = Garbage()
        self._due = self.clock()
        self._tick()
        self._follow()
        refreshing = self.loop.create_task(self._refresh_users())
        stack.callback(refreshing.cancel)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.stopping.set)
        self.loop.add_signal_handler(signal.SIGHUP, self.reload)

    # Shared interfaces.

    def _open_tun(self, interface: Interface) -> None:
        try:
            self.data.open_interface(interface, self._mtu(interface.name))
        except TunError as error:
            raise StartError(f"{interface.where}: {error}") from None

    def _mtu(self, name: str) -> int:
        """Of a shared interface: that of the sessions with the largest."""
        return max((bind.tunnel.mru for bind in self.config.binds if bind.interface.name == name), default=1500)

    def _close_tun(self, data: DataPath, name: str) -> None:
        data.close_interface(name)
        # Its routes have gone with it.
        self.routed = {network: owner for network, owner in self.routed.items() if owner != name}

    def _make_sites(self, config: Config) -> None:
        """Pools of a configuration, and their routes; those of the one before go."""
        old, self.sites = self.sites, {}
        own = [interface.address for interface in config.interfaces]
        routed: dict[IPv4Network, str] = {}
        for interface in config.interfaces:
            ipcp = interface.ipcp
            servers, blocked = _name_servers(ipcp)
            site = self.sites[interface.name] = Site(
                conf=interface,
                pool=Pool(ipcp, self.space, own),
                backend=self.data.backend,
                routes=self.data.tuns[interface.name],
                servers=servers,
                blocked=blocked,
            )
            for network in site.pool.aggregates():
                # Two interfaces may share a pool.  One of them has its route; the data path knows the sessions of both.
                routed.setdefault(network, interface.name)
        before = [site.pool for site in old.values()]
        before += [pool for pool in self.pools.values() if pool not in before]
        self.pools = {site.conf.ipcp.name: site.pool for site in self.sites.values()}
        for ipcp in config.ipcps:
            if ipcp.name not in self.pools:
                self.pools[ipcp.name] = Pool(ipcp, self.space, own)
        for pool in before:
            pool.close()
        for network, name in self.routed.items() - routed.items():
            if name in self.data.tuns:
                self.data.tuns[name].remove_route(network)
        for network, name in routed.items() - self.routed.items():
            self.data.tuns[name].add_route(network)
        self.routed = routed

    # What happens.

    def _configure_realms(self, config: Config) -> None:
        self.client.configure(config, self.clock())
        self.realms.configure(config)
        self.logins.configure(config.radius, self.realms.user)

    def _link(self, link: LinkState) -> None:
        if link.present:
            # Before there can be a session.
            self.data.link(link)
        self.pppoe.link_event(link.name, link.ifindex, link.mac, link.mtu, link.up, link.present)
        if not link.present:
            self.data.link(link)

    def _tick(self) -> None:
        now = self.clock()
        self.metrics.lag.observe(max(0.0, now - self._due))
        # What the wheel does now makes the next one late, too.
        self._due = now + TICK
        self.wheel.advance(now)
        self.admission.tick(self.client.lag(now), self.engine.under_way.room(now))
        self.garbage.look(self.engine.opened)
        self.loop.call_later(TICK, self._tick)

    def _follow(self) -> None:
        self.data.follow()

    async def _refresh_users(self) -> None:
        """Follow the users files, in a thread: reading a large one takes a second."""
        while True:
            await asyncio.sleep(REFRESH)
            await asyncio.to_thread(self.realms.refresh)

    def reload(self) -> None:
        """SIGHUP: read the configuration again; one with errors changes nothing."""
        try:
            config = load(self.config.file)
        except ConfigError as error:
            for diagnostic in error.diagnostics:
                log.error("%s", diagnostic)
            log.error("reload failed: the old configuration stays")
            return
        for diagnostic in config.warnings:
            log.warning("%s", diagnostic)
        kept = {interface.name: interface.address for interface in config.interfaces}
        old = self.data
        try:
            # What is not to pass any more does not; what may pass then, at the end.
            ipsec.require((*self.config.tunnels, *config.tunnels), self.control_path, self.pins.name)
            if old.outgrown(config):
                log.warning("reload: another back end carries data from now on, so all sessions end")
                self.data = DataPath(config, self.pins)
                self.data.outer = self.l2tp.outer
            else:
                old.configure(config)
        except (DataPathError, ipsec.IpsecError) as error:
            log.error("%s", error)
            log.error("reload failed: the old configuration stays")
            return
        gone = [name for name, tun in old.tuns.items() if old is not self.data or kept.get(name) != tun.address]
        now = self.clock()
        # Sessions of an interface that goes, or changes its address, end first.
        self.engine.configure(config, {n: site for n, site in self.sites.items() if n not in gone}, now)
        self.config = config
        for name in gone:
            pool = self.sites.pop(name).pool
            self.pools = {owner: other for owner, other in self.pools.items() if other is not pool}
            pool.close()
            self._close_tun(old, name)
        if old is not self.data:
            old.close()
        for interface in config.interfaces:
            if interface.name in self.data.tuns:
                self.data.tuns[interface.name].set_mtu(self._mtu(interface.name))
                continue
            try:
                self._open_tun(interface)
            except StartError as error:
                log.error("%s", error)
        usable = [interface for interface in config.interfaces if interface.name in self.data.tuns]
        self._make_sites(config if len(usable) == len(kept) else _without(config, set(kept) - self.data.tuns.keys()))
        self._configure_realms(config)
        if config.radius.spool not in (None, self.spool.path):
            log.warning("reload: radius spool holds from the next start on, this one has %s", self.spool.path)
        self.accountant.configure(config)
        self.dae.reconfigure(config.radius)
        try:
            self.exporter.listen(config.metrics_listen)
        except MetricsListenError as error:
            log.error("%s", error)
        self.engine.configure(config, self.sites, now, self.pools)
        before = self.pppoe.interfaces()
        self.pppoe.reconfigure(config.tunnels)
        after = self.pppoe.interfaces()
        for name in before:
            self.links.unwatch(name)
        # Also those from before: their sessions may be for another back end now.
        for name in sorted(after):
            self.links.watch(name)
        self.l2tp.reconfigure(config.tunnels)
        self.pptp.reconfigure(config.tunnels)
        try:
            ipsec.require(config.tunnels, self.control_path, self.pins.name)
        except ipsec.IpsecError as error:
            log.error("%s", error)
        self.data.follow()
        log.info("reloaded %s", config.file)

    def _release(self) -> None:
        """Nothing is served any more: clear traffic is nobody's."""
        try:
            ipsec.release(self.control_path, self.pins.name)
        except NetlinkError as error:
            log.error("l2tp-require-ipsec: %s", error)

    async def _end_sessions(self) -> None:
        """End all sessions, and give their peers some seconds to agree."""
        engine = self.engine
        engine.closing = True
        ids = list(engine.sessions)
        for start in range(0, len(ids), SLICE):
            now = self.clock()
            for ppp_id in ids[start : start + SLICE]:
                session = engine.sessions.get(ppp_id)
                if session is not None:
                    session.end(Cause.ADMIN_REBOOT, "npppyd is shutting down", now)
            await asyncio.sleep(0)
        deadline = self.clock() + SHUTDOWN
        while engine.sessions and self.clock() < deadline:
            await asyncio.sleep(TICK)
        # A tunnel ends when its peer has said that it knows.
        self.l2tp.shut()
        self.pptp.shut()
        self.accountant.shut()
        while self._busy() and self.clock() < deadline:
            await asyncio.sleep(TICK)

    def _busy(self) -> bool:
        return self.l2tp.engine.busy or self.pptp.engine.busy or self.accountant.busy

    async def _state(self, request: Message, reply: Reply) -> Message:
        """What the daemon holds, and what it has refused and dropped since its start."""
        engine = self.engine
        return {
            "version": __version__,
            "sessions": len(engine.sessions),
            "half_open": engine.half_open,
            "bound": engine.bound,
            "refused": engine.refused.total(),
            "timers": len(self.wheel),
            "addresses": len(self.space),
            "journal": len(self.journal),
            # Whether what begins has to wait, how often it had to, and calls that were read and wait.
            "busy": self.admission.closed,
            "closures": self.admission.closures,
            "waiting": self.admission.waiting,
            "malformed": dict(engine.malformed),
            "drops": {
                **{str(port): dict(drops) for port, drops in self.pppoe.engine.drops.items()},
                **{
                    f"tunnel {name}": dict(service.drops)
                    for engine in (self.l2tp.engine, self.pptp.engine)
                    for name, service in engine.services.items()
                },
                **({"pptp": dict(self.pptp.engine.drops)} if self.pptp.engine.drops else {}),
            },
            "pools": {name: {"size": pool.size, "used": pool.used} for name, pool in self.pools.items()},
        }


def _without(config: Config, names: set[str]) -> Config:
    """*config* without the interfaces that could not be opened."""
    return dataclasses.replace(
        config, interfaces=tuple(interface for interface in config.interfaces if interface.name not in names)
    )


def _name_servers(ipcp: Ipcp) -> tuple[Mapping[int, int], frozenset[int]]:
    """What the block tells peers, and what a realm may not tell them."""
    dns = resolver()[:2] if ipcp.dns_from_resolver else ipcp.dns
    blocked = frozenset(DNS if ipcp.dns is not None else ()) | frozenset(NBNS if ipcp.nbns is not None else ())
    return name_server_options(dns, ipcp.nbns), blocked


def _detach() -> int:
    """Go to the background; returns the descriptor to close once the daemon serves.

    The parent waits for that, and exits with 0 if it has come, with 1 if the child has ended instead.
    """
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os._exit(0 if os.read(told, 1) else 1)
    os.close(told)
    os.setsid()
    os.chdir("/")
    return tell


def _serving_in_background(tell: int) -> None:
    """The daemon serves: let the parent go, and the terminal."""
    PIDFILE.write_text(f"{os.getpid()}\n")
    os.write(tell, b"1")
    os.close(tell)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def _remove_pidfile() -> None:
    """Ours: a start that has failed since another npppyd runs leaves that one's."""
    with contextlib.suppress(FileNotFoundError):
        if PIDFILE.read_text() == f"{os.getpid()}\n":
            PIDFILE.unlink()


async def _serve(config: Config, control: str, group: int | None, serving: Callable[[], None]) -> None:
    await Daemon(config, control, group).run(serving)


def _group(name: str) -> int:
    """The number of a group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no group {name!r}") from None


def _teardown(control: str) -> int:
    """Remove what npppyd has attached in this network namespace, and its pins."""
    journal = _journal(control)
    try:
        if journal.exists():
            # Held by a npppyd that runs.  The sessions in it are for the next start to end.
            Journal(journal).close()
        pins = default_pins(control)
        for line in teardown(pins):
            print(line)
        if count := ipsec.release(control, pins.name):
            print(f"{count} IPsec policies removed")
    except (JournalError, BpfError, NetlinkError, OSError) as error:
        print(f"npppyd: {error}", file=sys.stderr)
        return 1
    return 0


def _journal(control: str) -> Path:
    """It lies beside the control socket."""
    return Path(control).with_suffix(".journal")


def _spool(control: str) -> Path:
    """What must outlive the machine is not beside the control socket that all have, which does not."""
    return SPOOL if control == SOCKET else Path(control).with_suffix(".spool")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="npppyd", description="PPP concentrator; see npppyd(8).")
    parser.add_argument("-d", dest="foreground", action="store_true", help="stay in the foreground, log to stderr")
    parser.add_argument("-n", dest="check", action="store_true", help="check the configuration and exit")
    parser.add_argument("-f", dest="file", default=CONFIG, metavar="file", help=f"the configuration ({CONFIG})")
    parser.add_argument("-s", dest="socket", default=SOCKET, metavar="socket", help=f"the control socket ({SOCKET})")
    parser.add_argument("-g", dest="group", type=_group, metavar="group", help="who may use the socket, besides root")
    parser.add_argument("-v", dest="debug", action="store_true", help="log more")
    parser.add_argument(
        "--teardown", action="store_true", help="remove what a npppyd that was killed has left in the kernel, and exit"
    )
    parser.add_argument("--version", action="version", version=f"npppyd {__version__}")
    arguments = parser.parse_args(argv)
    # Before the working directory changes.
    file, control = Path(arguments.file).absolute(), os.path.abspath(arguments.socket)
    if arguments.teardown:
        return _teardown(control)
    try:
        config = load(file)
    except ConfigError as error:
        # A string that runs over its line is only a warning, and often the cause.
        for diagnostic in error.warnings:
            print(f"{diagnostic.where}: warning: {diagnostic.message}", file=sys.stderr)
        for diagnostic in error.diagnostics:
            print(diagnostic, file=sys.stderr)
        return 1
    for diagnostic in config.warnings:
        print(f"{diagnostic.where}: warning: {diagnostic.message}", file=sys.stderr)
    if arguments.check:
        print("configuration OK", file=sys.stderr)
        return 0
    tell = -1 if arguments.foreground else _detach()
    serving = (lambda: None) if arguments.foreground else (lambda: _serving_in_background(tell))
    try:
        logs.setup(foreground=arguments.foreground, debug=arguments.debug)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, control, arguments.group, serving))
    except (StartError, NetlinkError, OSError) as error:
        print(f"npppyd: {error}", file=sys.stderr)
        return 1
    finally:
        if not arguments.foreground:
            _remove_pidfile()
    return 0


if __name__ == "__main__":
    sys.exit(main())
