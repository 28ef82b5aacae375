"""npppysim: what its command line asks for, and the run of it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

from ..config.model import (
    AuthMethod,
    L2tpOptions,
    Mppe,
    PppoeOptions,
    PptpOptions,
    Protocol,
    Rebind,
    Tunnel,
    Where,
)
from ..config.options import TUNNEL_DEFAULTS
from ..pppoe.access import MAX_MRU
from ..pppoe.codec import MAX_LINE_ID
from . import l2tp, pppoe, pptp, tcp, workers
from .access import Access, Clients, Ethernet, Tunnels, fill
from .load import Ending, Plan
from .options import parser
from .report import Report
from .run import Pings, Run, Setup
from .stream import Data
from .subscriber import Credentials
from .workers import WorkerError

#: Octets of a host name and of a telephone number that RADIUS can pass on (RFC 2865 section 5).
MAX_TEXT = 253
#: Octets of a host name and of a telephone number that PPTP has room for, with the 0 behind them.
MAX_PPTP_TEXT = 63
#: Seconds that all stay when something is to happen meanwhile.
HOLD = 10.0


class UsageError(Exception):
    """The arguments make no run."""


def read_credentials(path: Path) -> list[Credentials]:
    """Lines of ``name:password``; empty ones and those that begin with # are skipped.  Raises :class:`UsageError`."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line or line.startswith(b"#"):
            continue
        name, colon, password = line.partition(b":")
        if not colon:
            raise UsageError(f"{path}:{number}: no colon")
        found.append(_credentials(name, password))
    if not found:
        raise UsageError(f"{path}: no credentials")
    return found


def _credentials(name: bytes, password: bytes) -> Credentials:
    if max(len(name), len(password)) > 255:
        raise UsageError("a name and a password have at most 255 octets")
    return Credentials(name, password)


def _who(given: argparse.Namespace) -> Callable[[int], Credentials]:
    if given.credentials is not None:
        listed = read_credentials(given.credentials)
        return lambda number: listed[(number - given.first) % len(listed)]
    last = given.first + given.sessions - 1
    _credentials(fill(given.user, last).encode(), given.password.encode())
    return lambda number: Credentials(fill(given.user, number).encode(), given.password.encode())


def _pings(given: argparse.Namespace) -> Pings | None:
    chosen = {
        name: value
        for name in ("count", "interval", "size")
        if (value := getattr(given, f"ping_{name}")) is not None
    }
    if given.ping is not None:
        return Pings(target=given.ping, **chosen)
    if chosen:
        raise UsageError(f"--ping-{next(iter(chosen))} is for --ping")
    return None


def _data(given: argparse.Namespace) -> Data | None:
    if given.traffic is None:
        if given.traffic_to is not None:
            raise UsageError("--traffic-to is for --traffic")
        return None
    size, rate = given.traffic
    return Data(size=size, rate=rate, target=given.traffic_to, run=secrets.randbits(32))


def setup(given: argparse.Namespace) -> Setup:
    """Raises :class:`UsageError`."""
    hold = given.hold if given.hold is not None else HOLD if given.traffic or given.churn else 0.0
    if given.reconnect and hold == math.inf:
        raise UsageError("there is no reconnecting after all have been held forever")
    if given.redial == math.inf:
        raise UsageError("who never dials again needs no --redial")
    if given.churn and not hold:
        raise UsageError("--churn is while all hold: --hold 0 leaves it no time")
    if given.churn_by is not None and not given.churn:
        raise UsageError("--churn-by is for --churn")
    return Setup(
        plan=Plan(
            sessions=given.sessions,
            rate=given.rate,
            window=given.window,
            hold=hold,
            ending=given.terminate,
            first=given.first,
            churn=given.churn,
            churn_by=given.churn_by or (Ending.LCP,),
            reconnects=given.reconnect,
            redial=given.redial,
        ),
        access={"pppoe": _ethernet, "l2tp": _tunnels, "pptp": _clients}[given.carrier](given),
        credentials=_who(given),
        pings=_pings(given),
        data=_data(given),
        tun=given.tun,
        events=given.events,
    )


def divisible(given: argparse.Namespace) -> None:
    """Raises :class:`UsageError` for what several processes cannot share."""
    count = given.workers
    if count == 1:
        return
    if given.tun:
        raise UsageError("--tun is for one process")
    tunnels = given.tunnels if given.carrier != "pppoe" else None
    for title, number in (("sessions", given.sessions), ("window", given.window), ("tunnels", tunnels)):
        if number is not None and number < count:
            raise UsageError(f"--{title} {number} cannot be divided between {count} workers")
    if given.carrier == "pppoe" and given.macs == "one":
        raise UsageError("workers tell their frames apart by MAC addresses: --macs one is for one process")
    if given.carrier == "l2tp" and any(port for _, port in given.bind):
        raise UsageError("workers have a port each: --bind with a port is for one process")


def _tunnel(
    given: argparse.Namespace,
    protocol: Protocol,
    carrier: PppoeOptions | L2tpOptions | PptpOptions,
    mru: int,
    methods: tuple[AuthMethod, ...],
) -> Tunnel:
    mppe = Mppe(given.mppe)
    if mppe is Mppe.REQUIRED and not all(method.gives_keys for method in methods):
        raise UsageError("with --mppe required, authentication is by mschapv2 alone: nothing else gives keys")
    return Tunnel(
        name="npppysim",
        protocol=protocol,
        where=Where("npppysim", 1, 1),
        carrier=carrier,
        mru=mru,
        lcp_keepalive=given.echo_interval > 0,
        lcp_keepalive_interval=given.echo_interval,
        lcp_keepalive_retry_interval=given.echo_interval,
        authentication_methods=methods,
        negotiation_timeout=given.timeout,
        mppe=mppe,
        mppe_key_lengths=tuple(map(int, given.mppe_key_length)),
        mppe_key_states=given.mppe_key_state,
    )


def _ethernet(given: argparse.Namespace) -> Access:
    last = given.first + given.sessions - 1
    one = given.macs == "one"
    if one and given.sessions > 1 and given.host_uniq is not None:
        raise UsageError("with one MAC address only the number as Host-Uniq tells subscribers apart")
    if not one and given.mac_base + last >> 40 != given.mac_base >> 40:
        # One more in the first octet is the address of a group.
        raise UsageError("there are not so many MAC addresses behind that one")
    for template in (given.circuit_id, given.remote_id):
        if len(fill(template, last).encode()) > MAX_LINE_ID:
            raise UsageError(f"a circuit or remote identifier has at most {MAX_LINE_ID} octets")
    mru = given.mru or given.max_payload or MAX_MRU
    return Ethernet(
        wishes=pppoe.Wishes(
            tunnel=_tunnel(given, Protocol.PPPOE, PppoeOptions(), mru, given.auth),
            service_name=given.service_name,
            ac_name=given.ac_name,
            max_payload=given.max_payload,
        ),
        interface=given.interface,
        mac_base=None if one else given.mac_base,
        host_uniq=given.host_uniq,
        circuit_id=given.circuit_id,
        remote_id=given.remote_id,
    )


def _tunnels(given: argparse.Namespace) -> Access:
    last = given.first + given.sessions - 1
    for text in (given.hostname or "", fill(given.calling_number, last), fill(given.called_number, last)):
        if len(text.encode()) > MAX_TEXT:
            raise UsageError(f"a host name or a number has at most {MAX_TEXT} octets")
    if given.hidden_avps and not given.secret:
        raise UsageError("nothing can be hidden without a secret")
    if any(address.version != given.server[0].version for address, _ in given.bind):
        raise UsageError("the addresses of both ends are not of one kind")
    if given.ports == "distinct" and any(port for _, port in given.bind):
        raise UsageError("tunnels with a port each choose it themselves")
    options = L2tpOptions(
        hostname=given.hostname,
        secrets=((None, given.secret),) if given.secret else (),
        hidden_avps=given.hidden_avps,
        hello_interval=given.hello_interval,
        peer_rebind=Rebind.NO,
    )
    proxy = None if given.proxy == "none" else AuthMethod(given.proxy)
    # Who has begun so does it again when the LNS negotiates anew.
    methods = given.auth if proxy is None or proxy in given.auth else (*given.auth, proxy)
    mru = given.mru or TUNNEL_DEFAULTS[Protocol.L2TP]["mru"]
    return Tunnels(
        wishes=l2tp.Wishes(
            tunnel=_tunnel(given, Protocol.L2TP, options, mru, methods),
            sequencing=given.sequencing,
            proxy=proxy,
        ),
        server=given.server,
        bind=tuple(given.bind),
        tunnels=given.tunnels,
        ports=given.ports == "distinct",
        calling=given.calling_number,
        called=given.called_number,
    )


def _clients(given: argparse.Namespace) -> Access:
    last = given.first + given.sessions - 1
    for text in (given.hostname, fill(given.called_number, last)):
        if len(text.encode()) > MAX_PPTP_TEXT:
            raise UsageError(f"a host name or a number has at most {MAX_PPTP_TEXT} octets")
    if given.server[0].version != 4:
        raise UsageError("PPTP is for IPv4 only")
    if given.sessions > pptp.CALL_IDS:
        raise UsageError(f"there are {pptp.CALL_IDS} call ids")
    silently = given.churn and Ending.NONE in (given.churn_by or ())
    if silently and (given.tunnels or given.sessions) < given.sessions:
        # The server would still have a call of this number in the connection.
        raise UsageError("who goes without a word needs a control connection of its own")
    if (silently or given.reconnect) and not tcp.can_hush():
        raise UsageError("for the kernel not to close their TCP connections, a power cut needs CAP_NET_ADMIN")
    options = PptpOptions(hostname=given.hostname, echo_interval=given.hello_interval)
    mru = given.mru or TUNNEL_DEFAULTS[Protocol.PPTP]["mru"]
    return Clients(
        wishes=pptp.Wishes(
            tunnel=_tunnel(given, Protocol.PPTP, options, mru, given.auth), window=given.receive_window
        ),
        server=given.server,
        numbers=range(given.first, last + 1),
        bind=tuple(given.bind),
        tunnels=given.tunnels or given.sessions,
        called=given.called_number,
    )


async def _run(chosen: Setup) -> Report:
    return await Run(chosen).run()


def _report(chosen: Setup, count: int) -> Report:
    if count > 1:
        return workers.run(chosen, count)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """0: all came up, and all pings were answered; 1: not so; 2: nothing could be tried."""
    given = parser().parse_args(argv)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(given.verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        chosen = setup(given)
        divisible(given)
        report = _report(chosen, given.workers)
    except (UsageError, WorkerError, OSError) as error:
        print(f"npppysim: {error}", file=sys.stderr)
        return 2
    print(report.as_json() if given.report == "json" else report.as_text())
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
