"""What requests say of a session: the facts that logins and accounting share, and the proof of a login."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from ...config.model import Radius
from ...ppp.link import Link
from ..base import Chap, Eap, MsChapV1, MsChapV2, Pap, Request
from .packet import MAX_VALUE, Pair

#: Service-Type and Framed-Protocol.
FRAMED: Final = 2
PPP: Final = 1

#: NAS-Port-Type: a session of a tunnel is on no port; PPPoE by how many VLAN tags there are (RFC 4603 section 2).
_VIRTUAL: Final = 5
_PPPOE: Final = (32, 33, 34)
#: Tunnel-Medium-Type (RFC 2868 section 3.2).
_IPV4, _IPV6 = 1, 2
#: What a peer is sure to take in one piece, so that a server need not know its MRU (RFC 1661 section 6.1).
_MTU: Final = 1500
#: The header of a fragment of EAP-TLS (RFC 5216 section 3.1), for which FreeRADIUS leaves no room in Framed-MTU.
_TLS_HEADER: Final = 10
#: Octets of the value of a vendor's attribute.
_MAX_VENDOR_VALUE = MAX_VALUE - 6


def _cut(text: str, size: int = MAX_VALUE) -> str:
    """So much of a text as an attribute holds."""
    if 4 * len(text) <= size:
        return text
    octets = text.encode("utf-8", "surrogateescape")
    return text if len(octets) <= size else octets[:size].decode("utf-8", "surrogateescape")


def _octets(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def calling_station_id(link: Link) -> str:
    """The caller: its number, else its MAC address, else its IP address."""
    caller = link.caller
    if caller.calling_number:
        return _cut(caller.calling_number)
    if caller.mac:
        return caller.mac.hex(":")
    ends = link.ends
    return "" if ends is None else ends.client


def called_station_id(link: Link) -> str:
    """Where it has called: the number, else our MAC address, else our IP address."""
    caller = link.caller
    if caller.called_number or caller.nas:
        return _cut(caller.called_number or caller.nas)
    ends = link.ends
    return "" if ends is None else ends.server


def _tag(link: Link, index: int) -> str:
    port = link.caller.port
    tag = None if port is None else port[index]
    return "" if tag is None else str(tag)


def _peer(link: Link) -> str:
    ends = link.ends
    return link.caller.text if ends is None else ends.client


#: What the names of ``radius nas-port-id`` stand for.
_NAMES: Final[dict[str, Callable[[Link], str]]] = {
    "tunnel": lambda link: link.tunnel.name,
    "protocol": lambda link: link.tunnel.protocol.value,
    "interface": lambda link: "" if link.caller.port is None else link.caller.port.interface,
    "svlan": lambda link: _tag(link, 1),
    "cvlan": lambda link: _tag(link, 2),
    "mac": lambda link: link.caller.mac.hex(":"),
    "peer": _peer,
    "calling": calling_station_id,
    "called": called_station_id,
    "service": lambda link: link.caller.service,
    "circuit": lambda link: _octets(link.caller.circuit_id),
    "remote": lambda link: _octets(link.caller.remote_id),
}


@lru_cache(maxsize=4)
def _pieces(template: str) -> list[str]:
    """Texts, and every other time a name."""
    return re.split(r"\{([a-z]+)\}", template)


def nas_port_id(link: Link, ppp_id: int, template: str) -> str:
    """NAS-Port-Id by ``radius nas-port-id``; without one a port's name, or the tunnel's and its peer's."""
    if not template:
        port = link.caller.port
        return _cut(str(port) if port is not None else f"{link.tunnel.name}:{_peer(link)}")
    pieces = list(_pieces(template))
    for at in range(1, len(pieces), 2):
        name = pieces[at]
        pieces[at] = str(ppp_id) if name == "id" else _NAMES[name](link)
    return _cut("".join(pieces))


def _facts(link: Link, ppp_id: int, acct_session_id: str, username: str, radius: Radius) -> list[Pair]:
    caller, ends = link.caller, link.ends
    port = caller.port
    pairs: list[Pair] = [
        ("User-Name", username),
        ("Service-Type", FRAMED),
        ("Framed-Protocol", PPP),
        ("NAS-Identifier", radius.nas_id),
        ("NAS-Port", ppp_id & 0xFFFFFFFF),
        ("NAS-Port-Id", nas_port_id(link, ppp_id, radius.nas_port_id)),
        ("NAS-Port-Type", _VIRTUAL if port is None else _PPPOE[(port.outer is not None) + (port.inner is not None)]),
        ("Acct-Session-Id", acct_session_id),
    ]
    calling, called = calling_station_id(link), called_station_id(link)
    if calling:
        pairs.append(("Calling-Station-Id", calling))
    if called:
        pairs.append(("Called-Station-Id", called))
    if caller.tx_speed:
        # RFC 2869 section 5.11; to the peer first.
        both = caller.rx_speed and caller.rx_speed != caller.tx_speed
        pairs.append(("Connect-Info", f"{caller.tx_speed}/{caller.rx_speed}" if both else str(caller.tx_speed)))
    if caller.circuit_id:
        pairs.append(("ADSL-Agent-Circuit-Id", caller.circuit_id[:_MAX_VENDOR_VALUE]))
    if caller.remote_id:
        pairs.append(("ADSL-Agent-Remote-Id", caller.remote_id[:_MAX_VENDOR_VALUE]))
    if ends is not None:
        pairs += (
            ("Tunnel-Type", ends.type),
            ("Tunnel-Medium-Type", _IPV6 if ":" in ends.client else _IPV4),
            ("Tunnel-Client-Endpoint", ends.client),
            ("Tunnel-Server-Endpoint", ends.server),
            # As npppd: the call's name, though RFC 2868 section 3.6 means the tunnel's.
            ("Tunnel-Assignment-Id", link.call_name),
        )
        # An octet is the tag's.
        if ends.client_name:
            pairs.append(("Tunnel-Client-Auth-Id", _cut(ends.client_name, MAX_VALUE - 1)))
        if ends.server_name:
            pairs.append(("Tunnel-Server-Auth-Id", _cut(ends.server_name, MAX_VALUE - 1)))
    return pairs


def session_pairs(link: Link, ppp_id: int, acct_session_id: str, username: str, radius: Radius) -> list[Pair]:
    """What every accounting record of a session says, but for what changes and what the client adds.

    *username* is the name to account, of at most 253 octets.
    """
    pairs = _facts(link, ppp_id, acct_session_id, username, radius)
    ends = link.ends
    if ends is not None:
        # Not in an Access-Request (RFC 2867 section 5); as npppd: the tunnel's name.
        pairs.append(("Acct-Tunnel-Connection", ends.name))
    return pairs


def access_pairs(request: Request, radius: Radius) -> list[Pair]:
    """An Access-Request, but for what the client adds."""
    link, proof = request.link, request.proof
    pairs = _facts(link, request.session, request.acct_session_id, told_name(request), radius)
    if isinstance(proof, Pap):
        pairs.append(("User-Password", proof.password))
    elif isinstance(proof, Chap):
        # RFC 2865 section 5.3.  A challenge of any length stands in an attribute of its own.
        pairs.append(("CHAP-Password", bytes((proof.identifier,)) + proof.response))
        pairs.append(("CHAP-Challenge", proof.challenge))
    elif isinstance(proof, MsChapV2):
        # RFC 2548 section 2.3.2: flags before, and eight reserved octets between.
        response = bytes((proof.identifier, 0)) + proof.peer_challenge + bytes(8) + proof.nt_response
        pairs.append(("MS-CHAP-Challenge", proof.challenge))
        pairs.append(("MS-CHAP2-Response", response))
    elif isinstance(proof, MsChapV1):
        # RFC 2548 section 2.1.3: the flag says that the NT response is the one to look at.
        pairs.append(("MS-CHAP-Challenge", proof.challenge))
        pairs.append(("MS-CHAP-Response", bytes((proof.identifier, 1)) + bytes(24) + proof.nt_response))
    else:
        # RFC 3579 section 2.4: how long a packet of EAP may be on the link.
        mtu = min(request.mtu or _MTU, link.max_mru, link.tunnel.mru, _MTU)
        pairs.append(("Framed-MTU", mtu - _TLS_HEADER))
        pairs.append(("EAP-Message", proof.packet))
    if request.state:
        pairs.append(("State", request.state))
    if request.address:
        # What it has already; a server that gives out addresses is to give the same one.
        pairs.append(("Framed-IP-Address", request.address))
    return pairs


def told_name(request: Request) -> str:
    """User-Name: with EAP it is the Identity as the peer sent it, which servers insist on (RFC 3579 section 2.1)."""
    return request.username if isinstance(request.proof, Eap) else request.user
