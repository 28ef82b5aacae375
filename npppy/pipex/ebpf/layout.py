"""What the programs and npppyd share: pipex.h, in Python.

Octets that are on the wire as they stand here are bytes (``4s`` and the like); all else is in host order.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

#: Of all layouts here.  A change of one raises it, and needs an entry in migrate.OLDER.
VERSION: Final = 4

#: The programs, compiled from pipex/bpf by ``make bpf``.
OBJECT: Final = str(Path(__file__).parents[1] / "bpf" / "pipex.o")

# enum pipex_kind
PPPOE: Final = 1
L2TP: Final = 2
PPTP: Final = 3

# enum pipex_payload
PAYLOAD_PPP: Final = 0
PAYLOAD_IP: Final = 1
PAYLOAD_ETHERNET: Final = 2

# Blocks: what is done with the packets of a session.
FILTER: Final = 1 << 0
MSS: Final = 1 << 1
COUNT: Final = 1 << 2
IDLE: Final = 1 << 3
ECHO: Final = 1 << 4
POLICE_UP: Final = 1 << 5
POLICE_DOWN: Final = 1 << 6
MIRROR: Final = 1 << 7
IP4: Final = 1 << 8
IP6: Final = 1 << 9
FAST: Final = 1 << 10
USER: Final = 1 << 11
IPSEC: Final = 1 << 12
MPPE: Final = 1 << 13

#: Of SESSION.flags: the outer UDP header has a checksum.
CHECKSUM: Final = 1 << 0

#: enum pipex_counter, without PIPEX_C_; its place in the map ``counts`` is that in here.
COUNTERS: Final = (
    "STACK_UP",
    "STACK_DOWN",
    "FAST_UP",
    "FAST_DOWN",
    "USER_UP",
    "USER_DOWN",
    "ECHO",
    "DROP_FILTER",
    "DROP_POLICE",
    "DROP_MALFORMED",
    "DROP_PROTOCOL",
    "PUNT_CONTROL",
    "PUNT_UNKNOWN",
    "PUNT_TOOBIG",
    "PUNT_STALE",
    "TX_FAIL",
    "MIRROR_LOST",
    "DROP_LATE",
    "DROP_CLEAR",
    "DROP_WINDOW",
    "ACK_UP",
    "ACK_DOWN",
)

# enum pipex_way
UP: Final = 0
DOWN: Final = 1

# enum pipex_event_kind
EVENT_MIRROR: Final = 1

#: Of NIC.flags, a note for npppyd alone: that it has had VLAN tags kept in received frames, which the driver took out.
STRIPPED: Final = 1 << 0

#: Shared interfaces that there may be.
SHARED_MAX: Final = 16

#: Octets that an encapsulation may have.
ENCAP_MAX: Final = 96

#: EtherType of frames that hold FRAME and what it says, for a program to encapsulate; one for experiments (IEEE 802).
FRAME_TYPE: Final = 0x88B5


class Record(struct.Struct):
    """A struct of pipex.h: ``name:format`` for each of its members, padding being a member too."""

    def __init__(self, text: str) -> None:
        fields = [field.split(":") for field in text.split()]
        super().__init__("=" + "".join(code for _, code in fields))
        #: Where each member begins.
        self.offsets: dict[str, int] = {}
        at = 0
        for name, code in fields:
            self.offsets[name] = at
            at += struct.calcsize("=" + code)


KEY: Final = Record("kind:B zero:B id:2s port:I outer:H inner:H peer:6s zero2:H")
REF: Final = Record("slot:I generation:I")
HOST4: Final = Record("domain:I address:4s")
NET4: Final = Record("prefixlen:I domain:I address:4s")
NET6: Final = Record("prefixlen:I domain:I address:16s")
SESSION: Final = Record(
    "generation:I blocks:I address4:4s ifindex:I mtu:H mru:H shared:H encap_len:H length_at:H flags:H kind:B payload:B "
    "prefixlen4:B zero:B encap:96s ppp_id:I domain:I magic:4s peer_magic:4s mark:I next:8s outer_at:H seq_at:H "
    "key_port:I key_id:2s window:H spare:24s"
)
STATS: Final = Record(
    "in_bytes:Q in_packets:Q out_bytes:Q out_packets:Q active_ns:Q heard_ns:Q stack_ns:Q echo_ns:Q in_errors:Q "
    "out_errors:Q looped:Q outer_ns:Q ack_ns:Q window_ns:Q fail_ns:Q decrypted_ns:Q"
)
SEQ: Final = Record("out:I in:I acked:I peer_acked:I")
MPPE_KEYS: Final = Record(
    "lock:I generation:I count:H late:H end:H size:B salt:B start:16s key:16s late_key:16s"
)
BUCKET: Final = Record("rate:Q burst:Q tokens:Q stamp_ns:Q lock:I zero:I")
COUNT_RECORD: Final = Record("packets:Q bytes:Q")
CONFIG: Final = Record("version:I npx0:I npx1:I tun:I npx0_mac:6s npx1_mac:6s echo_interval_ns:I spare:28s")
NIC: Final = Record("mac:6s flags:H")
FRAME: Final = Record("ref:8s length:2s again:H")
EVENT: Final = Record("kind:I ppp_id:I generation:I way:H length:H ns:Q")

U32: Final = struct.Struct("=I")
_U16: Final = struct.Struct("=H")
#: Of STATS, from active_ns on: active_ns and heard_ns.
TIMES: Final = struct.Struct("=QQ")

_ETHERTYPE: Final = b"\x88\x64"
_VLAN: Final = 0x8100
#: IEEE 802.1ad: the outer of two tags.
_SERVICE_VLAN: Final = 0x88A8
_TAG: Final = struct.Struct(">HH")


#: TTL or Hop Limit of what leaves by the stack, which takes one.
_HOPS: Final = 64 + 1
_UDP: Final = 17
#: L2TP data with a Length, and with Ns and Nr too (RFC 2661 section 3.1).
_L2TP: Final = 0x4002
_SEQUENCED: Final = 0x0800
_GRE: Final = 47
#: Enhanced GRE with Key, Sequence Number and Acknowledgment Number (RFC 2637 section 4.1), of PPP.
_ENHANCED: Final = 0x3081
_PPP: Final = 0x880B
#: Of PPP in HDLC-like framing (RFC 1662): Address and Control.
_HDLC: Final = b"\xff\x03"
_ETHERNET: Final = 14


class Encapsulation(NamedTuple):
    """All of a frame before PPP's Protocol field, and where its length is to be filled in."""

    octets: bytes
    length_at: int


def pppoe_key(ifindex: int, outer: int | None, inner: int | None, peer: bytes, session_id: int) -> bytes:
    """The key of a PPPoE session; tags are VLAN identifiers, of whatever EtherType, of which 0 is none.

    A frame that has a priority only in its tag (identifier 0) is of no VLAN, and answered without a tag.
    """
    return KEY.pack(PPPOE, 0, session_id.to_bytes(2, "big"), ifindex, outer or 0, inner or 0, peer, 0)


def pppoe_encapsulation(
    outer: int | None,
    inner: int | None,
    mac: bytes,
    peer: bytes,
    session_id: int,
    protocols: Sequence[int] = (),
) -> Encapsulation:
    """The frame header of a PPPoE session, from *mac*, ours, to *peer* (RFC 2516 section 4).

    *protocols* are the EtherTypes of the tags, the outermost first; without them they are as is usual.
    """
    numbers = [number for number in (outer, inner) if number]
    protocols = protocols or ((_SERVICE_VLAN, _VLAN) if len(numbers) == 2 else (_VLAN,))
    tags = b"".join(_TAG.pack(*tag) for tag in zip(protocols, numbers, strict=False))
    octets = peer + mac + tags + _ETHERTYPE + b"\x11\x00" + session_id.to_bytes(2, "big") + b"\0\0"
    return Encapsulation(octets, len(octets) - 2)


class OuterEncapsulation(NamedTuple):
    """All of a frame before PPP's Protocol field, where what varies is to be filled in, and SESSION.flags."""

    octets: bytes
    length_at: int
    outer_at: int
    seq_at: int
    flags: int


def l2tp_key(tunnel_id: int, session_id: int) -> bytes:
    """The key of an L2TP session, of the ids that we gave out."""
    return KEY.pack(L2TP, 0, session_id.to_bytes(2, "big"), tunnel_id, 0, 0, bytes(6), 0)


def l2tp_encapsulation(
    npx1: bytes,
    npx0: bytes,
    local: bytes,
    local_port: int,
    peer: bytes,
    peer_port: int,
    tunnel_id: int,
    session_id: int,
    sequenced: bool = False,
    checksum: bool = False,
) -> OuterEncapsulation:
    """The frame header of an L2TP session, from *local* to *peer*, addresses of 4 or of 16 octets.

    The ids are the peer's.  The stack takes the frame in at npx1, as if npx0 had sent it; these are their MAC
    addresses.  UDP over IPv6 always has a checksum (RFC 8200 section 8.1).
    """
    checksum = checksum or len(peer) == 16
    # What is left out here is counted later.
    check = _words(local + peer) + _UDP if checksum else 0
    udp = struct.pack(">HHHH", local_port, peer_port, 0, _folded(check))
    l2tp = struct.pack(">HHHH", _L2TP | _SEQUENCED * sequenced, 0, tunnel_id, session_id) + bytes(4 * sequenced)
    if len(peer) == 16:
        kind = b"\x86\xdd"
        ip = struct.pack(">IHBB", 6 << 28, 0, _UDP, _HOPS) + local + peer
    else:
        kind = b"\x08\x00"
        ip = _ip4(_UDP, local, peer)
    at = _ETHERNET + len(ip) + len(udp)
    octets = npx1 + npx0 + kind + ip + udp + l2tp + _HDLC
    return OuterEncapsulation(octets, at + 2, _ETHERNET, at + 8 if sequenced else 0, CHECKSUM if checksum else 0)


def pptp_key(call_id: int) -> bytes:
    """The key of a PPTP session, of the call id that we gave out."""
    return KEY.pack(PPTP, 0, call_id.to_bytes(2, "big"), 0, 0, 0, bytes(6), 0)


def pptp_encapsulation(npx1: bytes, npx0: bytes, local: bytes, peer: bytes, call_id: int) -> OuterEncapsulation:
    """The frame header of a PPTP session, from *local* to *peer*, addresses of 4 octets; likewise.

    *call_id* is the peer's.
    """
    ip = _ip4(_GRE, local, peer)
    gre = struct.pack(">HHHH", _ENHANCED, _PPP, 0, call_id) + bytes(8)
    at = _ETHERNET + len(ip)
    return OuterEncapsulation(npx1 + npx0 + b"\x08\x00" + ip + gre + _HDLC, at + 4, _ETHERNET, at + 8, 0)


def inject(slot: int, generation: int, frame: bytes) -> bytes:
    """What follows the EtherType FRAME_TYPE, for a program to send *frame*, from PPP's Protocol field on, to a peer.

    An empty one is an acknowledgment alone, of PPTP.
    """
    return FRAME.pack(REF.pack(slot, generation), len(frame).to_bytes(2, "big"), 0) + frame


def key_of(session: bytes) -> bytes:
    """The key that leads to a session's frames, of what its slot says."""
    kind = session[SESSION.offsets["kind"]]
    if kind in (L2TP, PPTP):
        at = SESSION.offsets["key_id"]
        number = int.from_bytes(session[at : at + 2], "big")
        if kind == PPTP:
            return pptp_key(number)
        return l2tp_key(U32.unpack_from(session, SESSION.offsets["key_port"])[0], number)
    ifindex = U32.unpack_from(session, SESSION.offsets["ifindex"])[0]
    (length,) = _U16.unpack_from(session, SESSION.offsets["encap_len"])
    at = SESSION.offsets["encap"]
    header = session[at : at + length]
    # Between the addresses, and EtherType, version, code, SESSION_ID and LENGTH.
    tags = [number for _, number in _TAG.iter_unpack(header[12:-8])]
    outer, inner = (*tags, 0, 0)[:2]
    return pppoe_key(ifindex, outer, inner, header[:6], int.from_bytes(header[-4:-2], "big"))


def host4(domain: int, address: int) -> bytes:
    return HOST4.pack(domain, address.to_bytes(4, "big"))


def net4(domain: int, address: int, prefixlen: int) -> bytes:
    """*address* may have bits beyond its prefix, which don't count."""
    network = address >> 32 - prefixlen << 32 - prefixlen
    return NET4.pack(32 + prefixlen, domain, network.to_bytes(4, "big"))


def net6(domain: int, network: bytes, prefixlen: int) -> bytes:
    """*network* has 16 octets; bits beyond its prefix don't count."""
    beyond = 128 - prefixlen
    return NET6.pack(32 + prefixlen, domain, (int.from_bytes(network, "big") >> beyond << beyond).to_bytes(16, "big"))


def _ip4(protocol: int, local: bytes, peer: bytes) -> bytes:
    """An IPv4 header whose checksum is the sum of what does not vary."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, _HOPS, protocol, 0, local, peer)
    return ip[:10] + _folded(_words(ip)).to_bytes(2, "big") + ip[12:]


def _words(octets: bytes) -> int:
    """The sum of 16-bit words."""
    return sum(struct.unpack(f">{len(octets) // 2}H", octets))


def _folded(total: int) -> int:
    """A ones' complement sum, in 16 bits."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def fields(record: Record, data: bytes) -> dict[str, Any]:
    """The members of a record, by name."""
    return dict(zip(record.offsets, record.unpack(data), strict=True))
