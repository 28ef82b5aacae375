"""Sessions of PPTP, and packets of enhanced GRE in all the forms there are, made without what is tested."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any, Final

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import REF, U32
from tests.unit.ippackets import ip, words

from .frames import IP
from .rig import ALL, GENERATION, LO, NPX0, NPX1, PEER, SESSION_ID, SLOT, Rig, pack
from .tunnel import HDLC, framed, outer

PAC, PNS = "192.0.2.1", "203.0.113.5"
#: The peer's call id; ours is SESSION_ID.
PEER_CALL: Final = 0x0304
GRE: Final = 47
PPP: Final = 0x880B

KEY, SEQUENCE, ACKNOWLEDGMENT = 0x2001, 0x1000, 0x0080
#: Of data as it usually is.
DATA: Final = KEY | SEQUENCE

#: Where messages come in: on a NIC with subscribers of PPPoE, on another.
NICS: Final = ("pipex_access", "pipex_nic")


def call(
    rig: Rig,
    blocks: int = ALL,
    *,
    slot: int = SLOT,
    session_id: int = SESSION_ID,
    out: int = 0,
    expected: int = 0,
    acked: int | None = None,
    peer_acked: int = 0,
    peer: str = PNS,
    **changes: Any,
) -> None:
    """A session in a slot, found by its key and its addresses; all that came has been acknowledged, if not said."""
    octets, length_at, outer_at, seq_at, flags = layout.pptp_encapsulation(
        NPX1, NPX0, ip_address(PAC).packed, ip_address(peer).packed, PEER_CALL
    )
    values = {
        "kind": layout.PPTP,
        "ifindex": 0,
        "encap": octets,
        "encap_len": len(octets),
        "length_at": length_at,
        "outer_at": outer_at,
        "seq_at": seq_at,
        "flags": flags,
    }
    rig.session(blocks, slot=slot, session_id=session_id, **(values | changes))
    rig.maps["sessions"].delete(layout.pppoe_key(LO, None, None, PEER, session_id))
    rig.maps["sessions"].put(layout.pptp_key(session_id), REF.pack(slot, GENERATION))
    counted = {"out": out, "in": expected, "acked": expected if acked is None else acked, "peer_acked": peer_acked}
    rig.maps["seqs"].put(U32.pack(slot), pack(layout.SEQ, **counted))


def numbers(rig: Rig, slot: int = SLOT) -> tuple[int, int, int, int]:
    """Of the next packet out, and of the next one in; behind the last that we have acknowledged, and the peer has."""
    value = rig.maps["seqs"].get(U32.pack(slot))
    assert value is not None
    out, expected, acked, peer_acked = layout.SEQ.unpack(value)
    return out, expected, acked, peer_acked


def stamp(rig: Rig, slot: int = SLOT, **seconds: int) -> None:
    """Set times in the statistics, to that many nanoseconds; all else there becomes 0."""
    rig.maps["stats"].put(U32.pack(slot), pack(layout.STATS, **seconds))


def gre(
    payload: bytes,
    flags: int = DATA,
    *,
    number: int = 0,
    ack: int = 0,
    call_id: int = SESSION_ID,
    protocol: int = PPP,
    length: int | None = None,
    source: str = PNS,
    destination: str = PAC,
    **header: Any,
) -> bytes:
    """An IP packet from the peer; *length* is Payload Length, where it is to be wrong."""
    body = struct.pack(">HHHH", flags, protocol, len(payload) if length is None else length, call_id)
    body += struct.pack(">I", number) if flags & SEQUENCE else b""
    body += struct.pack(">I", ack) if flags & ACKNOWLEDGMENT else b""
    return ip(source, destination, body + payload, protocol=GRE, **header)


def data(packet: bytes, number: int = 0, ack: int | None = None, **form: Any) -> bytes:
    """A frame of the peer's with an IP packet."""
    flags = DATA if ack is None else DATA | ACKNOWLEDGMENT
    return outer(gre(framed(packet), flags, number=number, ack=ack or 0, **form))


def checked(frame: bytes, *, hops: int = 65, padding: int = 0) -> tuple[int, int, bytes]:
    """What we have sent, all of it looked at but the Ethernet addresses and Identification.

    Sequence Number, -1 where there is none, Acknowledgment Number, and the PPP packet.
    """
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    head, total, _, fragment, limit, protocol, _ = struct.unpack_from(">HHHHBBH", packet)
    assert (kind, head, fragment, limit, protocol) == (IP, 0x4500, 0, hops, GRE)
    assert packet[12:20] == ip_address(PAC).packed + ip_address(PNS).packed
    assert words(packet[:20]) == 0xFFFF
    # What is too short for Ethernet has been padded.
    assert len(frame) == max(14 + total + padding, 60)
    flags, carried, length, call_id = struct.unpack_from(">HHHH", packet, 20)
    assert (carried, call_id) == (PPP, PEER_CALL)
    if flags == KEY | ACKNOWLEDGMENT:
        assert (length, total) == (0, 32)
        assert not any(packet[32:])
        return -1, int.from_bytes(packet[28:32], "big"), b""
    assert flags == DATA | ACKNOWLEDGMENT
    assert (length, packet[36:38]) == (total - 36, HDLC)
    number, ack = struct.unpack_from(">II", packet, 28)
    return number, ack, packet[38:total]
