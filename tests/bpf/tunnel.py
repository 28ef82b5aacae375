"""Sessions of L2TP, and messages in all the forms there are, made without what is tested."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any, Final

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import REF, U32
from tests.unit.ippackets import ip, words

from .frames import IP, IP6, PPP_IP, PPP_IP6, UDP, Tags, ethernet, ip6
from .rig import ALL, GENERATION, LO, NPX0, NPX1, OURS, PEER, SESSION_ID, SLOT, Rig, pack

LOCAL, LAC = "192.0.2.1", "203.0.113.5"
LOCAL6, LAC6 = "2001:db8:c::1", "2001:db8:c:1::5"
PORT, LAC_PORT = 1701, 40001
#: Our tunnel id; the session's is SESSION_ID.  And the peer's.
TUNNEL, PEER_TUNNEL, PEER_SESSION = 0xFEDC, 0x0102, 0x0304
#: Where the stack sends what it has decrypted.
OUTER: Final = b"\x02npx\0\2"

LENGTH, SEQUENCE, OFFSET, PRIORITY = 0x4000, 0x0800, 0x0200, 0x0100
HDLC: Final = b"\xff\x03"


def tunnel(
    rig: Rig,
    blocks: int = ALL,
    *,
    six: bool = False,
    sequenced: bool = False,
    checksum: bool = False,
    out: int = 0,
    expected: int = 0,
    slot: int = SLOT,
    session_id: int = SESSION_ID,
    **changes: Any,
) -> None:
    """A session in a slot, found by its key and its addresses."""
    local, peer = (ip_address(text).packed for text in ((LOCAL6, LAC6) if six else (LOCAL, LAC)))
    octets, length_at, outer_at, seq_at, flags = layout.l2tp_encapsulation(
        NPX1, NPX0, local, PORT, peer, LAC_PORT, PEER_TUNNEL, PEER_SESSION, sequenced, checksum
    )
    values = {
        "kind": layout.L2TP,
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
    rig.maps["sessions"].put(layout.l2tp_key(TUNNEL, session_id), REF.pack(slot, GENERATION))
    rig.maps["seqs"].put(U32.pack(slot), pack(layout.SEQ, **{"out": out, "in": expected}))


def numbers(rig: Rig, slot: int = SLOT) -> tuple[int, int]:
    """Of the next message out, and of the next one in."""
    value = rig.maps["seqs"].get(U32.pack(slot))
    assert value is not None
    out, expected, acked, peer_acked = layout.SEQ.unpack(value)
    assert acked == peer_acked == 0
    return out, expected


def message(
    payload: bytes,
    flags: int = 2,
    *,
    ids: tuple[int, int] = (TUNNEL, SESSION_ID),
    length: int | None = None,
    ns: int = 0,
    offset: bytes | None = None,
    skip: int | None = None,
) -> bytes:
    """A data message that holds *payload*; *length* and *skip*, the Offset Size, where they are to be wrong."""
    fields = struct.pack(">HH", *ids)
    if flags & SEQUENCE:
        fields += struct.pack(">HH", ns, 0x5555)
    if flags & OFFSET:
        pad = offset or b""
        fields += struct.pack(">H", len(pad) if skip is None else skip) + pad
    body = fields + payload
    if flags & LENGTH:
        body = struct.pack(">H", 4 + len(body) if length is None else length) + body
    return struct.pack(">H", flags) + body


def datagram(
    data: bytes,
    *,
    six: bool = False,
    source: str = "",
    destination: str = "",
    ports: tuple[int, int] = (LAC_PORT, PORT),
    length: int | None = None,
    **header: Any,
) -> bytes:
    """An IP packet from the peer; *length* is that of UDP, where it is to be wrong."""
    udp = struct.pack(">HHHH", *ports, 8 + len(data) if length is None else length, 0) + data
    if six:
        return ip6(source or LAC6, destination or LOCAL6, udp, **header)
    return ip(source or LAC, destination or LOCAL, udp, **header)


def outer(packet: bytes, vlans: tuple[Tags, ...] = (), destination: bytes = OURS) -> bytes:
    return ethernet(destination, PEER, IP if packet[0] >> 4 == 4 else IP6, packet, vlans)


def framed(packet: bytes, payload_protocol: int | None = None) -> bytes:
    """PPP as it usually is: Address and Control, and a Protocol field of two octets."""
    number = payload_protocol or (PPP_IP if packet[0] >> 4 == 4 else PPP_IP6)
    return HDLC + number.to_bytes(2, "big") + packet


def data(packet: bytes, six: bool = False) -> bytes:
    """An IP packet from the peer."""
    return outer(datagram(message(framed(packet), LENGTH | 2), six=six))


def checked(
    frame: bytes, *, six: bool, checksum: bool, sequenced: bool, hops: int = 65, padding: int = 0
) -> tuple[int, bytes]:
    """What we have sent, all of it looked at but the Ethernet addresses and Identification: Ns and the PPP packet.

    Ns is -1 where there is none.  *padding* octets follow.
    """
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    local, peer = (ip_address(text).packed for text in ((LOCAL6, LAC6) if six else (LOCAL, LAC)))
    if six:
        first, size, following, limit = struct.unpack_from(">IHBB", packet)
        assert (kind, first, following, limit) == (IP6, 6 << 28, UDP, hops)
        assert packet[8:40] == local + peer
        assert len(frame) == 14 + 40 + size + padding
        udp = packet[40 : 40 + size]
    else:
        head, total, _, fragment, limit, protocol, _ = struct.unpack_from(">HHHHBBH", packet)
        assert (kind, head, fragment, limit, protocol) == (IP, 0x4500, 0, hops, UDP)
        assert packet[12:20] == local + peer
        assert words(packet[:20]) == 0xFFFF
        # What is too short for Ethernet has been padded.
        assert len(frame) == max(14 + total + padding, 60)
        udp = packet[20:total]
    assert struct.unpack_from(">HHH", udp) == (PORT, LAC_PORT, len(udp))
    if checksum:
        assert udp[6:8] != b"\0\0"
        assert words(local + peer + struct.pack(">HH", UDP, len(udp)) + udp) == 0xFFFF
    else:
        assert udp[6:8] == b"\0\0"
    l2tp = udp[8:]
    flags, length, tunnel_id, session_id = struct.unpack_from(">HHHH", l2tp)
    assert (flags, length) == (0x4802 if sequenced else 0x4002, len(l2tp))
    assert (tunnel_id, session_id) == (PEER_TUNNEL, PEER_SESSION)
    ns, at = -1, 8
    if sequenced:
        ns, nr = struct.unpack_from(">HH", l2tp, 8)
        at = 12
        assert nr == 0
    assert l2tp[at : at + 2] == HDLC
    return ns, l2tp[at + 2 :]


