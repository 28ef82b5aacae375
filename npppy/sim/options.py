"""npppysim: the words of its command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from .. import __version__
from ..config.model import AuthMethod, Mppe
from ..ppp import proto
from ..pppoe.access import MAX_MRU
from ..pptp.gre import WINDOW
from .load import Ending
from .stream import MIN_SIZE
from .traffic import MIN_PING
from .udp import Place

#: How subscribers log in.
_METHODS = {method.value: method for method in (AuthMethod.PAP, AuthMethod.CHAP, AuthMethod.MSCHAPV2)}
#: 02: locally administered.
MAC_BASE = "02:4e:50:00:00:00"
L2TP_PORT = 1701
PPTP_PORT = 1723


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


def _traffic(word: str) -> tuple[int, float]:
    """SIZE@PPS"""
    size, _, rate = word.partition("@")
    octets, packets = int(size), float(rate)
    if not MIN_SIZE <= octets <= 65535:
        raise argparse.ArgumentTypeError(f"packets of {octets} octets are not within {MIN_SIZE} to 65535")
    if not 0 < packets < float("inf"):
        raise argparse.ArgumentTypeError("not a number of packets a second")
    return octets, packets


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


def _churn(word: str) -> float:
    """N or N/s"""
    value = float(word.removesuffix("/s"))
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("not a number of sessions a second")
    return value


def _ending(call: str) -> Callable[[str], Ending]:
    """*call* is the carrier's own way."""

    def convert(word: str) -> Ending:
        found = {"lcp": Ending.LCP, call: Ending.CALL, "none": Ending.NONE}.get(word)
        if found is None:
            raise argparse.ArgumentTypeError(f"not of lcp, {call}, none")
        return found

    return convert


def _endings(call: str) -> Callable[[str], tuple[Ending, ...]]:
    convert = _ending(call)
    return lambda word: tuple(map(convert, word.split(",")))


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
    add("--hold", type=_seconds, metavar="SECONDS", help="how long all stay up, or inf (0; with traffic or churn 10)")
    add("--terminate", type=_ending(ending), default=Ending.LCP, metavar="HOW", help=f"lcp, {ending} or none")
    add("--churn", type=_churn, default=0.0, metavar="N/s", help="sessions a second that end and dial again meanwhile")
    words = f"lcp,{ending},none"
    add("--churn-by", type=_endings(ending), metavar="HOW", help=f"some of {words}, at random (lcp)")
    add("--reconnect", type=_number(0, 1 << 16), default=0, metavar="N", help="so often all have their power cut (0)")
    add("--redial", type=_seconds, default=0.0, metavar="SECONDS", help="until who failed or was lost dials again")
    add("--workers", type=_number(1, 1024), default=1, metavar="N", help="processes that share all this (1)")
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
    either.add_argument("--traffic", type=_traffic, metavar="SIZE@PPS", help="octets of an IP packet, packets a second")
    either.add_argument("--tun", action="store_true", help="a device sim<number> with its address each")
    add = group.add_argument
    add("--traffic-to", type=IPv4Address, metavar="ADDRESS", help="who answers --traffic (the concentrator)")
    add("--ping-count", type=_number(1, 65535), metavar="N", help="pings a session (1)")
    add("--ping-interval", type=_seconds, metavar="SECONDS", help="between them, and for a reply (1)")
    add("--ping-size", type=_number(MIN_PING, 65507), metavar="N", help="octets of payload (56)")


def _output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--report", choices=("text", "json"), default="text", help="the summary's form (text)")
    group.add_argument("--events", action="store_true", help="a JSON object for each session that comes up or goes")
    group.add_argument("-v", dest="verbose", action="count", default=0, help="log more; twice: all")
