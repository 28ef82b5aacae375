"""What a LAC has negotiated in our place: LCP, and authentication up to the answer (RFC 2661 section 4.4.5)."""

from __future__ import annotations

from typing import NamedTuple

from ..aaa.base import Accept, Answer, Failed, MsChapV1, Pap, Proof
from ..config.model import AuthMethod
from ..cursor import Malformed
from . import options, proto
from .chap import ChapServer
from .lcp import AUTH_OPTIONS, DEFAULT_ACCM, LcpPolicy
from .link import Proxy
from .login import LoginHost, Server
from .pap import PapServer

# Proxy Authen Type, section 4.4.5.
TEXT, CHAP, PAP, MSCHAPV1 = 1, 2, 3, 5

#: MS-CHAPv1 in an Authentication-Protocol option (RFC 2433 section 3).  We never ask for it.
MSCHAPV1_OPTION = b"\xc2\x23\x80"


class Kind(NamedTuple):
    """A way of authentication that a LAC may begin for us."""

    #: The value of LCP's Authentication-Protocol option with it; empty: none was negotiated.
    option: bytes
    #: The tunnel allows this one if it does that.
    method: AuthMethod
    #: For the log.
    title: str


#: By Proxy Authen Type.
KINDS = {
    TEXT: Kind(b"", AuthMethod.PAP, "TEXT"),
    CHAP: Kind(AUTH_OPTIONS[AuthMethod.CHAP], AuthMethod.CHAP, "CHAP-MD5"),
    PAP: Kind(AUTH_OPTIONS[AuthMethod.PAP], AuthMethod.PAP, "PAP"),
    MSCHAPV1: Kind(MSCHAPV1_OPTION, AuthMethod.MSCHAPV2, "MS-CHAP"),
}

#: The octets of each LCP option that may have been agreed; -1: looked at elsewhere.
_LENGTHS = {
    proto.OPT_MRU: 2,
    proto.OPT_ACCM: 4,
    proto.OPT_AUTH: -1,
    proto.OPT_MAGIC: 4,
    proto.OPT_PFC: 0,
    proto.OPT_ACFC: 0,
}


class UnacceptableError(Exception):
    """We would not have agreed to this; the text says to what."""


class Agreed(NamedTuple):
    """What LCP has agreed."""

    kind: Kind
    mru: int
    peer_mru: int
    #: 0: none was agreed.
    magic: int
    peer_magic: int
    send_accm: int
    receive_accm: int
    pfc: bool
    acfc: bool


def accept(proxy: Proxy, policy: LcpPolicy) -> Agreed:
    """Read what a LAC says, for a session that has not negotiated yet.  Raises :class:`UnacceptableError`."""
    if not (proxy.last_sent or proxy.last_received):
        raise UnacceptableError("no LCP")
    # The LAC asked for us and granted for us.
    ours, peers = _read(proxy.last_sent, policy), _read(proxy.last_received, policy)
    mru = _number(ours, proto.OPT_MRU, proto.DEFAULT_MRU)
    peer_mru = _number(peers, proto.OPT_MRU, proto.DEFAULT_MRU)
    if not proto.MIN_MRU <= mru <= policy.mru:
        raise UnacceptableError(f"our MRU of {mru}")
    if peer_mru < proto.MIN_MRU:
        raise UnacceptableError(f"the peer's MRU of {peer_mru}")
    magic, peer_magic = (_number(options, proto.OPT_MAGIC, 0) for options in (ours, peers))
    if magic == peer_magic != 0:
        raise UnacceptableError("looped back")
    if proto.OPT_AUTH in peers:
        raise UnacceptableError("the peer wants us to authenticate ourselves")
    return Agreed(
        kind=_kind(proxy, ours.get(proto.OPT_AUTH, b""), policy),
        mru=mru,
        # It may take more than the path does, which is no reason to negotiate.
        peer_mru=min(peer_mru, policy.max_mru),
        magic=magic,
        peer_magic=peer_magic,
        send_accm=_number(peers, proto.OPT_ACCM, DEFAULT_ACCM),
        receive_accm=_number(ours, proto.OPT_ACCM, DEFAULT_ACCM),
        pfc=proto.OPT_PFC in ours,
        acfc=proto.OPT_ACFC in ours,
    )


def _read(data: bytes, policy: LcpPolicy) -> dict[int, bytes]:
    try:
        found = options.decode(data)
    except Malformed as error:
        raise UnacceptableError(f"malformed LCP options: {error}") from None
    values = dict(found)
    if len(values) < len(found):
        raise UnacceptableError("an LCP option twice")
    for kind, value in values.items():
        length = _LENGTHS.get(kind)
        if length is None or kind in policy.unwanted:
            raise UnacceptableError(f"LCP option {kind}")
        if length not in (-1, len(value)) or (kind == proto.OPT_MAGIC and not any(value)):
            raise UnacceptableError(f"LCP option {kind} with a wrong value")
    return values


def _number(values: dict[int, bytes], kind: int, default: int) -> int:
    return int.from_bytes(values[kind], "big") if kind in values else default


def _kind(proxy: Proxy, option: bytes, policy: LcpPolicy) -> Kind:
    kind = KINDS.get(proxy.auth_type)
    if kind is None:
        raise UnacceptableError(f"Proxy Authen Type {proxy.auth_type}")
    if option != kind.option:
        raise UnacceptableError(f"{kind.title}, which is not what LCP has agreed")
    if kind.method not in policy.demand:
        raise UnacceptableError(f"{kind.title}, which this tunnel does not offer")
    response = proxy.response
    if proxy.auth_type == CHAP:
        whole = bool(proxy.challenge and response)
    elif proxy.auth_type == MSCHAPV1:
        # RFC 2433 sections 5 and 6; the last octet says that the NT response counts, and not the LAN Manager's.
        whole = len(proxy.challenge) == 8 and len(response) == 49 and response[48] == 1
    else:
        whole = True
    if not whole:
        raise UnacceptableError(f"{kind.title} without a challenge or a response of use")
    return kind


class MsChapV1Server(ChapServer):
    """MS-CHAPv1 (RFC 2433), for a Response that a LAC has: it is never asked for."""

    __slots__ = ()

    def _proof(self, value: bytes) -> Proof:
        return MsChapV1(self._identifier, self._challenge, value[24:48])

    def _message(self, answer: Answer) -> bytes:
        if isinstance(answer, Accept):
            return b"Welcome"
        # Section 8: no retry; and version 2 of Change-Password, which is not taken.
        return f"E={930 if isinstance(answer, Failed) else 691} R=0 V=2".encode()


class TextServer:
    """A dialogue of the LAC's own, before PPP: the peer expects no answer of us."""

    __slots__ = ()

    def start(self, now: float) -> None:
        """It is over."""

    def stop(self) -> None:
        """It is over."""

    def receive(self, packet: bytes, now: float) -> None:
        """No authentication protocol was agreed on: nothing that comes means anything."""

    def answer(self, answer: Answer, now: float) -> None:
        """That LCP stays or ends is the answer."""


def server(host: LoginHost, proxy: Proxy) -> tuple[Server, Proof]:
    """Go on where the LAC stopped: who answers the peer, and what its login must be checked by."""
    if proxy.auth_type == TEXT:
        return TextServer(), Pap(proxy.response)
    if proxy.auth_type == PAP:
        pap = PapServer(host)
        return pap, pap.resume(proxy.identifier, proxy.response)
    kind = MsChapV1Server if proxy.auth_type == MSCHAPV1 else ChapServer
    chap = kind(host, KINDS[proxy.auth_type].method)
    return chap, chap.resume(proxy.identifier, proxy.challenge, proxy.response)
