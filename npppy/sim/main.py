"""npppysim: the command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import uvloop

from .. import __version__
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
from ..ppp import proto
from ..pppoe.access import MAX_MRU
from ..pppoe.codec import MAX_LINE_ID
from ..pptp.gre import WINDOW
from . import l2tp, pppoe, pptp
from .access import Access, Clients, Ethernet, Tunnels, fill
from .load import Ending, Plan
from .report import Report
from .run import Pings, Run, Setup
from .subscriber import Credentials
from .traffic import MIN_PING
from .udp import Place

#: How subscribers log in.
_METHODS = {method.value: method for method in (AuthMethod.PAP, AuthMethod.CHAP, AuthMethod.MSCHAPV2)}
#: 02: locally administered.
MAC_BASE = "02:4e:50:00:00:00"
L2TP_PORT = 1701
PPTP_PORT = 1723
#: Octets of a host name and of a telephone number that RADIUS can pass on (RFC 2865 section 5).
MAX_TEXT = 253
#: Octets of a host name and of a telephone number that PPTP has room for, with the 0 behind them.
MAX_PPTP_TEXT = 63


class UsageError(Exception):
    """The arguments make no run."""


def _number(least: int, most: int) -> Callable[[str], int]:
    def convert(word: str) -> int:
        value = int(word)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"not within {least} to {most}")
        return value

    return convert


def _seconds(word: str) -> float:
    value = float(word)
    if not value >= 0:
        raise argparse.ArgumentTypeError("not a time")
    return value


def _methods(word: str) -> tuple[AuthMethod, ...]:
    try:
        return tuple(_METHODS[name] for name in word.split(","))
    except KeyError:
        raise argparse.ArgumentTypeError(f"not of {', '.join(_METHODS)}") from None


def _some(*words: str) -> Callable[[str], tuple[str, ...]]:
    """Some of *words*, in their order here."""

    def convert(word: str) -> tuple[str, ...]:
        given = word.split(",")
        if not set(given) <= set(words):
            raise argparse.ArgumentTypeError(f"not of {', '.join(words)}")
        return tuple(word for word in words if word in given)

    return convert


def _mac(word: str) -> int:
    octets = bytes.fromhex(word.replace(":", ""))
    if len(octets) != 6 or octets[0] & 1:
        raise argparse.ArgumentTypeError("not the MAC address of a host")
    return int.from_bytes(octets, "big")


def _place(port: int) -> Callable[[str], Place]:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT; without one, *port*."""

    def convert(word: str) -> Place:
        host, colon, number = word.rpartition(":")
        if not colon or (":" in host and not host.endswith("]")):
            host, number = word, str(port)
        if not 0 <= int(number) <= 65535:
            raise argparse.ArgumentTypeError("not a port")
        return ip_address(host.removeprefix("[").removesuffix("]")), int(number)

    return convert


def _ending(call: str) -> Callable[[str], Ending]:
    """*call* is the carrier's own way."""

    def convert(word: str) -> Ending:
        found = {"lcp": Ending.LCP, call: Ending.CALL, "none": Ending.NONE}.get(word)
        if found is None:
            raise argparse.ArgumentTypeError(f"not of lcp, {call}, none")
        return found

    return convert


def _host_uniq(word: str) -> bytes | None:
    if word == "number":
        return None
    return b"" if word == "none" else bytes.fromhex(word)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="npppysim", description="Simulated PPP subscribers; see npppysim(1).")
    top.add_argument("--version", action="version", version=f"npppysim {__version__}")
    carriers = top.add_subparsers(dest="carrier", required=True, metavar="carrier")
    ethernet = carriers.add_parser("pppoe", help="subscribers on an Ethernet interface")
    _options(ethernet, "PPPoE", _pppoe_options, "padt")
    lac = carriers.add_parser("l2tp", help="subscribers of a LAC, in tunnels to an LNS")
    _options(lac, "L2TP", _l2tp_options, "cdn")
    clients = carriers.add_parser("pptp", help="clients of a PPTP server")
    _options(clients, "PPTP", _pptp_options, "clear")
    # What such servers want, ours included.
    clients.set_defaults(auth=(AuthMethod.MSCHAPV2,), mppe="yes")
    return top


def _options(
    carrier: argparse.ArgumentParser, title: str, own: Callable[[argparse._ArgumentGroup], None], ending: str
) -> None:
    _load_options(carrier.add_argument_group("load"), ending)
    _ppp_options(carrier.add_argument_group("PPP"))
    own(carrier.add_argument_group(title))
    _traffic_options(carrier.add_argument_group("traffic"))
    _output_options(carrier.add_argument_group("output"))


def _load_options(group: argparse._ArgumentGroup, ending: str) -> None:
    add = group.add_argument
    add("--sessions", type=_number(1, 1 << 24), default=1, metavar="N", help="how many subscribers (1)")
    add("--rate", type=_seconds, default=0.0, metavar="R", help="set-ups begun a second; 0: as they are answered (0)")
    add("--window", type=_number(1, 1 << 20), default=256, metavar="N", help="set-ups under way without a rate (256)")
    add("--hold", type=_seconds, default=0.0, metavar="SECONDS", help="how long all stay up, or inf (0)")
    add("--terminate", type=_ending(ending), default=Ending.LCP, metavar="HOW", help=f"lcp, {ending} or none")
    add("--first", type=_number(0, 1 << 24), default=1, metavar="N", help="the number of the first subscriber (1)")


def _ppp_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--auth", type=_methods, default=(AuthMethod.CHAP,), metavar="HOW", help="pap, chap, mschapv2; or several: a,b")
    add("--mppe", choices=[mppe.value for mppe in Mppe], default="no", help="whether packets are encrypted")
    lengths, states = _some("128", "56", "40"), _some("stateless", "stateful")
    add("--mppe-key-length", type=lengths, default=lengths("128,56,40"), metavar="BITS", help="of 128,56,40 (all)")
    add("--mppe-key-state", type=states, default=states("stateless,stateful"), metavar="STATE", help="of both (both)")
    add("--user", default="user%d", metavar="NAME", help="%%d and {n} stand for the subscriber's number (user%%d)")
    add("--password", default="", metavar="PASSWORD")
    add("--credentials", type=Path, metavar="FILE", help="lines of name:password, used in turn, instead of those two")
    add("--mru", type=_number(proto.MIN_MRU, 65535), metavar="N", help="asked for (what the carrier allows)")
    add("--timeout", type=_number(1, 3600), default=30, metavar="SECONDS", help="for LCP, login and IPCP (30)")
    add("--echo-interval", type=_number(0, 86400), default=0, metavar="SECONDS", help="between LCP echoes; 0: none (0)")


def _pppoe_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--interface", required=True, metavar="IF")
    add("--service-name", default="", metavar="NAME")
    add("--ac-name", default="", metavar="NAME", help="take no other concentrator")
    add("--macs", choices=("distinct", "one"), default="distinct", help="an address each, or the interface's for all")
    add("--mac-base", type=_mac, default=_mac(MAC_BASE), metavar="MAC", help=f"the number is added ({MAC_BASE})")
    add("--host-uniq", type=_host_uniq, metavar="HOW", help="number, none, or the same hexadecimal octets for all")
    add("--max-payload", type=_number(MAX_MRU, 65535), default=0, metavar="N", help="RFC 4638")
    add("--circuit-id", default="", metavar="TEXT", help="of the access line (TR-101), with %%d or {n}")
    add("--remote-id", default="", metavar="TEXT", help="of the access line (TR-101), with %%d or {n}")


def _l2tp_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--server", type=_place(L2TP_PORT), required=True, metavar="ADDRESS[:PORT]", help="of the LNS")
    add("--bind", type=_place(0), action="append", default=[], metavar="ADDRESS[:PORT]", help="ours; may be repeated")
    add("--tunnels", type=_number(1, 65534), default=1, metavar="N", help="over which the calls are spread (1)")
    add("--ports", choices=("shared", "distinct"), default="shared", help="one for each address, or for each tunnel")
    add("--hostname", metavar="NAME", help="in SCCRQ (this machine's)")
    add("--secret", metavar="SECRET", help="of the tunnels")
    add("--hidden-avps", action="store_true", help="hide what may be hidden")
    add("--hello-interval", type=_number(1, 86400), default=60, metavar="SECONDS", help="before a silent LNS is asked")
    add("--calling-number", default="", metavar="TEXT", help="with %%d or {n}")
    add("--called-number", default="", metavar="TEXT", help="with %%d or {n}")
    add("--sequencing", action="store_true", help="require sequence numbers on data")
    add("--proxy", choices=("none", "chap", "pap"), default="none", help="what the LAC has begun with subscribers")


def _pptp_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--server", type=_place(PPTP_PORT), required=True, metavar="ADDRESS[:PORT]", help="of the PAC")
    add("--bind", type=IPv4Address, action="append", default=[], metavar="ADDRESS", help="ours; may be repeated")
    add("--tunnels", type=_number(1, 1 << 16), metavar="N", help="control connections for all calls (one for each)")
    add("--hostname", default="", metavar="NAME", help="in Start-Control-Connection-Request (this machine's)")
    add("--hello-interval", type=_number(1, 86400), default=60, metavar="SECONDS", help="before a silent PAC is asked")
    add("--called-number", default="", metavar="TEXT", help="with %%d or {n}")
    add("--receive-window", type=_number(1, 65535), default=WINDOW, metavar="N", help=f"the PAC is told ({WINDOW})")


def _traffic_options(group: argparse._ArgumentGroup) -> None:
    either = group.add_mutually_exclusive_group()
    either.add_argument("--ping", type=IPv4Address, metavar="ADDRESS", help="from each session, and check the replies")
    either.add_argument("--tun", action="store_true", help="a device sim<number> with its address each")
    add = group.add_argument
    add("--ping-count", type=_number(1, 65535), default=1, metavar="N", help="pings a session (1)")
    add("--ping-interval", type=_seconds, default=1.0, metavar="SECONDS", help="between them, and for a reply (1)")
    add("--ping-size", type=_number(MIN_PING, 65507), default=56, metavar="N", help="octets of payload (56)")


def _output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--json", action="store_true", help="the summary as a JSON object")
    group.add_argument("--events", action="store_true", help="a JSON object for each session that comes up or goes")
    group.add_argument("-v", dest="verbose", action="count", default=0, help="log more; twice: all")


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


def setup(given: argparse.Namespace) -> Setup:
    """Raises :class:`UsageError`."""
    pings = None
    if given.ping is not None:
        pings = Pings(
            target=given.ping, count=given.ping_count, interval=given.ping_interval, size=given.ping_size
        )
    return Setup(
        plan=Plan(
            sessions=given.sessions,
            rate=given.rate,
            window=given.window,
            hold=given.hold,
            ending=given.terminate,
            first=given.first,
        ),
        access={"pppoe": _ethernet, "l2tp": _tunnels, "pptp": _clients}[given.carrier](given),
        credentials=_who(given),
        pings=pings,
        tun=given.tun,
        events=given.events,
    )


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
    options = PptpOptions(hostname=given.hostname, echo_interval=given.hello_interval)
    mru = given.mru or TUNNEL_DEFAULTS[Protocol.PPTP]["mru"]
    return Clients(
        wishes=pptp.Wishes(
            tunnel=_tunnel(given, Protocol.PPTP, options, mru, given.auth), window=given.receive_window
        ),
        server=given.server,
        bind=tuple(given.bind),
        tunnels=given.tunnels or given.sessions,
        called=given.called_number,
    )


async def _run(chosen: Setup) -> Report:
    return await Run(chosen).run()


def main(argv: Sequence[str] | None = None) -> int:
    """0: all came up, and all pings were answered; 1: not so; 2: nothing could be tried."""
    given = parser().parse_args(argv)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(given.verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        chosen = setup(given)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(_run(chosen))
    except (UsageError, OSError) as error:
        print(f"npppysim: {error}", file=sys.stderr)
        return 2
    print(report.as_json() if given.json else report.as_text())
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
