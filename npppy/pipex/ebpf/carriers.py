"""How the frames of a session look, by its carrier."""

from __future__ import annotations

from typing import NamedTuple

from ...l2tp.encap import L2tpEncap
from ...l2tp.encap import Sequence as L2tpSequence
from ...pppoe.call import PppoeEncap
from ...pptp.encap import Keeper, PptpEncap
from ...pptp.encap import Sequence as PptpSequence
from . import layout
from .nics import Place

#: EtherType of the VLAN tags that an access port has of its own (IEEE 802.1Q).
_VLAN = 0x8100


#: An IPv6 packet that leaves by the stack is cut by nobody, though we are its source; and this is what may be large.
_MTU6 = 1500
#: Octets of the headers of Ethernet, and of PPP.
_ETHERNET, _PROTOCOL = 14, 2

Sequence = L2tpSequence | PptpSequence


class Wire(NamedTuple):
    """What the programs must know to find a session's frames and to make them."""

    #: enum pipex_kind
    kind: int
    #: All of a frame before PPP's Protocol field, and where its length is to be filled in.
    header: bytes
    length_at: int
    #: Where the outer IP header is, and where the sequence numbers are; 0: there is none.
    outer_at: int = 0
    seq_at: int = 0
    #: What frames of the peer are known by, and is not in the header: our tunnel id, and session id or call id.
    tunnel_id: int = 0
    session_id: int = 0
    #: Where frames leave; 0: by the stack, with a mark.
    ifindex: int = 0
    mark: int = 0
    flags: int = 0
    #: The largest IP packet that may be in a frame.
    mtu: int = 0xFFFF
    #: What is to be done with the session's packets, beside what is done with all.
    blocks: int = 0
    sequence: Sequence | None = None
    #: Packets that may be on their way to the peer; 0: any.
    window: int = 0


def tags(place: Place, encap: PppoeEncap) -> tuple[tuple[int, int], ...]:
    """EtherType and number of all VLAN tags of a session's frames, the outermost first."""
    return place.tags + tuple((_VLAN, number) for number in (encap.port.outer, encap.port.inner) if number)


def pppoe(place: Place, encap: PppoeEncap) -> Wire:
    """Of a session whose frames have two tags at most."""
    found = tags(place, encap)
    outer, inner = (*(number for _, number in found), None, None)[:2]
    header, length_at = layout.pppoe_encapsulation(
        outer, inner, encap.mac, encap.peer, encap.session_id, [protocol for protocol, _ in found]
    )
    return Wire(layout.PPPOE, header, length_at, ifindex=place.ifindex)


def l2tp(encap: L2tpEncap, npx0: bytes, npx1: bytes) -> Wire:
    """Of a call, and the MAC addresses of the shared interface's devices: its frames leave by npx1 and the stack."""
    header, length_at, outer_at, seq_at, flags = layout.l2tp_encapsulation(
        npx1,
        npx0,
        encap.local,
        encap.local_port,
        encap.peer,
        encap.peer_port,
        encap.peer_tunnel_id,
        encap.peer_session_id,
        sequenced=encap.sequence is not None,
        checksum=encap.checksum,
    )
    return Wire(
        layout.L2TP,
        header,
        length_at,
        outer_at,
        seq_at,
        encap.tunnel_id,
        encap.session_id,
        mark=encap.mark,
        flags=flags,
        mtu=_MTU6 + _ETHERNET - _PROTOCOL - len(header) if len(encap.local) == 16 else 0xFFFF,
        blocks=layout.IPSEC if encap.ipsec else 0,
        sequence=encap.sequence,
    )


def pptp(encap: PptpEncap, npx0: bytes, npx1: bytes) -> Wire:
    """The same of PPTP."""
    header, length_at, outer_at, seq_at, flags = layout.pptp_encapsulation(
        npx1, npx0, encap.local, encap.peer, encap.peer_call_id
    )
    return Wire(
        layout.PPTP,
        header,
        length_at,
        outer_at,
        seq_at,
        session_id=encap.call_id,
        flags=flags,
        sequence=encap.sequence,
        window=encap.window,
    )


def numbers(sequence: Sequence) -> tuple[int, ...]:
    """For struct pipex_seq."""
    if isinstance(sequence, L2tpSequence):
        return sequence.ns, sequence.expected, 0, 0
    return sequence.out, sequence.expected, sequence.acked, sequence.peer_acked


def lend(sequence: Sequence, keeper: Keeper) -> None:
    """The numbers are the kernel's from now on."""
    sequence.keeper = keeper


def take_back(sequence: Sequence, numbers: tuple[int, ...]) -> None:
    """They are Python's again, as the kernel left them."""
    if isinstance(sequence, L2tpSequence):
        sequence.ns, sequence.expected = (number & 0xFFFF for number in numbers[:2])
    else:
        sequence.out, sequence.expected, sequence.acked, sequence.peer_acked = numbers
    sequence.keeper = None
