"""What answers say of a session, made into what PPP obeys.

An attribute whose length is wrong makes a reply :class:`~npppy.cursor.Malformed`: it is discarded, and the right one
is waited for.  One whose value cannot be obeyed makes an Accept a Reject (RFC 2865 section 1.1): a session that is not
what its server wants it to be is none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from ...config.model import Mppe
from ...config.options import usable
from ...config.users import BY_NAS, BY_PEER, User
from ...ppp.mppe import Keys
from ...text import printable
from ..base import NO_PROFILE, Accept, Challenge, Eap, Failed, MsChapV2, Profile, Reject, Request
from .packet import Received
from .rates import Unusable as Unusable
from .rates import limits
from .request import FRAMED, PPP, told_name

#: Attributes of IPv6 that a Profile keeps.
_IP6: Final = frozenset(
    (
        "Framed-Interface-Id",
        "Framed-IPv6-Prefix",
        "Framed-IPv6-Route",
        "Framed-IPv6-Pool",
        "Delegated-IPv6-Prefix",
        "Framed-IPv6-Address",
        "DNS-Server-IPv6-Address",
        "Route-IPv6-Information",
        "Delegated-IPv6-Prefix-Pool",
        "Stateful-IPv6-Address-Pool",
    )
)
_RATES: Final = frozenset(
    (
        "Mikrotik-Rate-Limit",
        "Cisco-AVPair",
        "RP-Downstream-Speed-Limit",
        "RP-Upstream-Speed-Limit",
        "PPPD-Downstream-Speed-Limit",
        "PPPD-Upstream-Speed-Limit",
        "WISPr-Bandwidth-Max-Down",
        "WISPr-Bandwidth-Max-Up",
    )
)
#: The attributes that :func:`profile_changes` obeys.
CHANGEABLE: Final = _RATES | {
    "Filter-Id",
    "Class",
    "Session-Timeout",
    "Termination-Action",
    "Idle-Timeout",
    "Acct-Interim-Interval",
}

#: Termination-Action: RADIUS-Request.
_RADIUS_REQUEST: Final = 1
#: RFC 2869 section 5.16: it must not be less.
_LEAST_INTERIM: Final = 60
#: RFC 2865 section 5.12.
_LEAST_MTU, _MOST_MTU = 64, 65535
#: Octets of all Class, beside which the rest of a record has room in a packet of 4,096.
_MOST_CLASS: Final = 2048
#: MS-MPPE-Encryption-Policy: required.
_REQUIRED: Final = 2
#: MS-MPPE-Encryption-Types, by the length of their keys in bits.
_TYPES: Final = {40: 0x02, 128: 0x04, 56: 0x08}
_SUCCESS: Final = re.compile(rb"S=[0-9A-Fa-f]{40}")
_ERROR: Final = re.compile(r"E=\d{1,10}(?: .*)?", re.ASCII)
_RETRY: Final = re.compile(r"\bR=1\b")


def accept(reply: Received, request: Request, user: User | None = None) -> Accept | Reject | Failed:
    """An Access-Accept; *user* has the address where the server names none.  Raises :class:`Malformed`."""
    try:
        return _accept(reply, request, user)
    except Unusable as error:
        return Reject(reason=f"what the server wants cannot be: {error}")


def reject(reply: Received, request: Request) -> Reject:
    """An Access-Reject."""
    message = _message(reply)
    reason = f'rejected by the server: "{printable(message[:100])}"' if message else "rejected by the server"
    error = ""
    if isinstance(request.proof, MsChapV2):
        # RFC 2548 section 2.1.5: an identifier comes first.  We take no second try.
        error = (reply.octets("MS-CHAP-Error") or b"")[1:].decode("utf-8", "replace")
        error = _RETRY.sub("R=0", error) if error.isprintable() and _ERROR.fullmatch(error) else ""
    return Reject(reason=reason, message=message, mschap_error=error, eap=_eap(reply, request))


def challenge(reply: Received, request: Request) -> Challenge | Reject:
    """An Access-Challenge.  Raises :class:`Malformed`."""
    eap = _eap(reply, request)
    if eap:
        return Challenge(eap=eap, state=reply.octets("State") or b"", timeout=reply.integer("Session-Timeout") or 0)
    # RFC 2865 section 4.4: one who cannot show it to the user takes it for a Reject.
    return Reject(reason="the server wants to ask for more")


def profile_changes(received: Received, old: Profile) -> Profile:
    """*old*, but for what a packet names of it.

    Raises :class:`Malformed`, and :class:`Unusable` for a value that cannot be.
    """
    changes: dict[str, Any] = {}
    if "Class" in received:
        classes = tuple(filter(None, received.all_octets("Class")))
        if sum(map(len, classes)) > _MOST_CLASS:
            raise Unusable("Class", "more than an accounting record holds")
        changes["classes"] = classes
    for name, field in (("Session-Timeout", "session_timeout"), ("Idle-Timeout", "idle_timeout")):
        seconds = received.integer(name)
        if seconds is not None:
            changes[field] = seconds
    action = received.integer("Termination-Action")
    if action is not None:
        changes["reauthenticate"] = action == _RADIUS_REQUEST
        changes["state"] = (received.octets("State") or b"") if action == _RADIUS_REQUEST else b""
    interim = received.integer("Acct-Interim-Interval")
    if interim is not None:
        changes["interim"] = max(interim, _LEAST_INTERIM) if interim else 0
    filter_id = received.text("Filter-Id")
    if filter_id is not None:
        changes["filter_id"] = filter_id
    changes |= limits(received)
    return replace(old, **changes) if changes else old


def _accept(reply: Received, request: Request, user: User | None) -> Accept | Failed:
    """Raises :class:`Malformed` and :class:`Unusable`."""
    proof = request.proof
    response = ""
    if isinstance(proof, MsChapV2):
        success = reply.octets("MS-CHAP2-Success")
        # RFC 2548 section 2.3.3.  Without it the peer could not know us, and would leave (RFC 2759 section 5).
        if success is None:
            return Failed(reason="the server's Accept has no MS-CHAP2-Success")
        if success[:1] != bytes((proof.identifier,)) or _SUCCESS.fullmatch(success, 1) is None:
            return Failed(reason="the MS-CHAP2-Success of the server's Accept cannot be read")
        response = success[1:].decode("ascii")
    # RFC 2865 sections 5.6 and 5.7: what we do not have is as good as a Reject.
    _only(reply, "Service-Type", FRAMED)
    _only(reply, "Framed-Protocol", PPP)
    address, prefixlen = _address(reply)
    pool = reply.text("Framed-Pool") or ""
    # As npppd: a server that says nothing of an address leaves it to the peer.
    by_peer = address is None and reply.integer("Framed-IP-Address") != BY_NAS
    if user is not None and not pool and "Framed-IP-Address" not in reply:
        address, prefixlen = user.address, user.prefixlen
        by_peer = address is None
    routes = _routes(reply)
    if address is not None:
        routes.pop(IPv4Network((address, prefixlen), strict=False), None)
    mppe, lengths = _mppe(reply)
    wanted = request.keys and isinstance(proof, MsChapV2 | Eap)
    return Accept(
        address=address,
        address_by_peer=by_peer,
        prefixlen=prefixlen,
        dns=_servers(reply, "MS-Primary-DNS-Server", "MS-Secondary-DNS-Server"),
        nbns=_servers(reply, "MS-Primary-NBNS-Server", "MS-Secondary-NBNS-Server"),
        authenticator_response=response,
        keys=_keys(reply, isinstance(proof, Eap)) if wanted else None,
        mppe=mppe,
        mppe_key_lengths=lengths,
        pool=pool,
        routes=tuple(routes),
        port_limit=reply.integer("Port-Limit") or 0,
        message=_message(reply),
        eap=_eap(reply, request),
        profile=_profile(reply, request),
        authentic=1,
    )


def _profile(reply: Received, request: Request) -> Profile:
    changes: dict[str, Any] = {}
    # Accounting has the name that the server gives, or else the one that it was told.
    name = reply.text("User-Name") or told_name(request)
    if name != request.user:
        changes["username"] = name
    mtu = reply.integer("Framed-MTU")
    if mtu is not None:
        if not _LEAST_MTU <= mtu <= _MOST_MTU:
            raise Unusable("Framed-MTU", str(mtu))
        changes["mtu"] = mtu
    ip6 = tuple(pair for pair in reply.pairs() if pair[0] in _IP6)
    if ip6:
        changes["ip6"] = ip6
    profile = profile_changes(reply, NO_PROFILE)
    return replace(profile, **changes) if changes else profile


def _only(reply: Received, name: str, value: int) -> None:
    found = reply.integer(name)
    if found is not None and found != value:
        raise Unusable(name, str(found))


def _address(reply: Received) -> tuple[int | None, int]:
    """Framed-IP-Address, if it is one, and the length of the prefix behind it."""
    address = reply.integer("Framed-IP-Address")
    netmask = reply.integer("Framed-IP-Netmask")
    if address is None or address in (BY_PEER, BY_NAS):
        return None, 32
    if not usable(address, address):
        raise Unusable("Framed-IP-Address", str(IPv4Address(address)))
    if netmask is None:
        return address, 32
    host = netmask ^ 0xFFFFFFFF
    if not netmask or host & (host + 1):
        raise Unusable("Framed-IP-Netmask", str(IPv4Address(netmask)))
    return address, 32 - host.bit_length()


def _routes(reply: Received) -> dict[IPv4Network, None]:
    """Framed-Route: a network; the router and the metrics behind it say nothing to us, there is one way to the peer."""
    routes: dict[IPv4Network, None] = {}
    if "Framed-Route" in reply:
        for text in reply.all_texts("Framed-Route"):
            routes[_route(text)] = None
    return routes


def _route(text: str) -> IPv4Network:
    word = text.split(None, 1)[0] if text.strip() else ""
    host, slash, length = word.partition("/")
    try:
        address = int(IPv4Address(host))
        # RFC 2865 section 5.22: without a length it is that of the address's class.
        prefixlen = _number(length) if slash else 8 if address < 1 << 31 else 16 if address < 3 << 30 else 24
        if not 1 <= prefixlen <= 32 or not usable(address, address):
            raise ValueError
    except ValueError:
        raise Unusable("Framed-Route", f'"{printable(text[:100])}"') from None
    return IPv4Network((address, prefixlen), strict=False)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError
    return int(text)


def _servers(reply: Received, *names: str) -> tuple[int, ...] | None:
    """Name servers; None: nothing is said of them."""
    found = [address for address in map(reply.integer, names) if address is not None]
    return tuple(address for address in found if address) if found else None


def _keys(reply: Received, eap: bool) -> Keys | None:
    """Those of MPPE, as the NAS uses them (RFC 2548 section 2.4)."""
    keys = []
    for name in ("MS-MPPE-Send-Key", "MS-MPPE-Recv-Key"):
        key = reply.salted(name) or b""
        # A method of EAP gives 32 octets (RFC 5216 section 2.3), of which MPPE takes the first 16 (RFC 3079 section 4).
        if len(key) != 16 and not (eap and len(key) == 32):
            return None
        keys.append(key[:16])
    return Keys(*keys)


def _mppe(reply: Received) -> tuple[Mppe | None, frozenset[int] | None]:
    """RFC 2548 sections 2.4.4 and 2.4.5; 56 bits came later."""
    policy = reply.integer("MS-MPPE-Encryption-Policy")
    types = reply.integer("MS-MPPE-Encryption-Types")
    lengths = None if types is None else frozenset(length for length, bit in _TYPES.items() if types & bit)
    must = policy == _REQUIRED
    if lengths is not None and not lengths:
        if must:
            raise Unusable("MS-MPPE-Encryption-Types", "none, where encryption is required")
        return Mppe.NO, None
    return Mppe.REQUIRED if must else None if policy is None else Mppe.YES, lengths


def _message(reply: Received) -> str:
    """Reply-Message, all there are, as text that can be written again."""
    if "Reply-Message" not in reply:
        return ""
    return " ".join(octets.decode("utf-8", "replace") for octets in reply.all_octets("Reply-Message"))


def _eap(reply: Received, request: Request) -> bytes:
    """What the server has for the peer; it is not ours to look into (RFC 3579 section 2.6.3)."""
    return reply.joined("EAP-Message") if isinstance(request.proof, Eap) else b""
