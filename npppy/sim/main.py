"""npppysim: the command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import uvloop

from .. import __version__
from ..config.model import AuthMethod, Mppe, PppoeOptions, Protocol, Tunnel, Where
from ..ppp import proto
from ..pppoe.access import MAX_MRU
from ..pppoe.codec import MAX_LINE_ID
from .load import Ending, Plan
from .pppoe import Wishes
from .report import Report
from .run import Ethernet, Pings, Run, Setup, fill
from .subscriber import Credentials
from .traffic import MIN_PING

#: 02: locally administered.
MAC_BASE = "02:4e:50:00:00:00"


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
        return tuple(AuthMethod(name) for name in word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError("not of pap, chap, mschapv2") from None


def _mac(word: str) -> int:
    octets = bytes.fromhex(word.replace(":", ""))
    if len(octets) != 6 or octets[0] & 1:
        raise argparse.ArgumentTypeError("not the MAC address of a host")
    return int.from_bytes(octets, "big")


def _host_uniq(word: str) -> bytes | None:
    if word == "number":
        return None
    return b"" if word == "none" else bytes.fromhex(word)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="npppysim", description="Simulated PPP subscribers; see npppysim(1).")
    top.add_argument("--version", action="version", version=f"npppysim {__version__}")
    carriers = top.add_subparsers(dest="carrier", required=True, metavar="carrier")
    pppoe = carriers.add_parser("pppoe", help="subscribers on an Ethernet interface")
    _load_options(pppoe.add_argument_group("load"))
    _ppp_options(pppoe.add_argument_group("PPP"))
    _pppoe_options(pppoe.add_argument_group("PPPoE"))
    _traffic_options(pppoe.add_argument_group("traffic"))
    _output_options(pppoe.add_argument_group("output"))
    return top


def _load_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--sessions", type=_number(1, 1 << 24), default=1, metavar="N", help="how many subscribers (1)")
    add("--rate", type=_seconds, default=0.0, metavar="R", help="set-ups begun a second; 0: as they are answered (0)")
    add("--window", type=_number(1, 1 << 20), default=256, metavar="N", help="set-ups under way without a rate (256)")
    add("--hold", type=_seconds, default=0.0, metavar="SECONDS", help="how long all stay up, or inf (0)")
    add("--terminate", type=Ending, default=Ending.LCP, metavar="HOW", help="lcp, padt or none")
    add("--first", type=_number(0, 1 << 24), default=1, metavar="N", help="the number of the first subscriber (1)")


def _ppp_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--auth", type=_methods, default=(AuthMethod.CHAP,), metavar="HOW", help="pap, chap, mschapv2; or several: a,b")
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
    tunnel = Tunnel(
        name="npppysim",
        protocol=Protocol.PPPOE,
        where=Where("npppysim", 1, 1),
        carrier=PppoeOptions(),
        mru=given.mru or given.max_payload or MAX_MRU,
        lcp_keepalive=given.echo_interval > 0,
        lcp_keepalive_interval=given.echo_interval,
        lcp_keepalive_retry_interval=given.echo_interval,
        authentication_methods=given.auth,
        negotiation_timeout=given.timeout,
        mppe=Mppe.NO,
    )
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
        wishes=Wishes(
            tunnel=tunnel,
            service_name=given.service_name,
            ac_name=given.ac_name,
            max_payload=given.max_payload,
        ),
        ethernet=Ethernet(
            interface=given.interface,
            mac_base=None if one else given.mac_base,
            host_uniq=given.host_uniq,
            circuit_id=given.circuit_id,
            remote_id=given.remote_id,
        ),
        credentials=_who(given),
        pings=pings,
        tun=given.tun,
        events=given.events,
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
