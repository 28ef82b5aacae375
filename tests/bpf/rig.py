"""The programs over maps that a test fills: frames in, verdict and frame out."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import U32, Record
from npppy.pipex.ebpf.libbpf import Map, Object, Run

from .frames import IP, IP6, PPP_IP, PPP_IP6, SESSION, Tags, ethernet, padded, ppp, pppoe

SIZES: Final = {
    **dict.fromkeys(("sessions", "hosts4", "nets4", "nets6", "slots", "stats", "seqs"), 16),
    **dict.fromkeys(("buckets", "mppe"), 32),
}

ABORTED, DROP, PASS, TX, REDIRECT = range(5)

#: Frames come in on lo, where none is named.
LO: Final = 1

OURS, PEER = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
NPX0, NPX1 = b"\x02\0\0\0\1\0", b"\x02\0\0\0\1\1"
SESSION_ID: Final = 0x1234
SLOT: Final = 3
GENERATION: Final = 9
PPP_ID: Final = 78
ADDRESS, NETWORK6, ADDRESS6 = "10.0.0.2", "2001:db8:1:100::/56", "2001:db8:1:123::2"
REMOTE, REMOTE6 = "198.51.100.1", "2001:db8:ffff::1"
MTU, MRU = 1480, 1492
OUR_MAGIC, PEER_MAGIC = 0x11223344, 0x55667788
TUN: Final = 77

ALL: Final = layout.FILTER | layout.MSS | layout.COUNT | layout.IDLE | layout.ECHO | layout.IP4 | layout.IP6


def pack(record: Record, **values: Any) -> bytes:
    """A record with what is not named 0."""
    blank = zip(record.offsets, record.unpack(bytes(record.size)), strict=True)
    packed = record.pack(*(values.pop(name, nothing) for name, nothing in blank))
    assert not values, values
    return packed


def tags(*identifiers: int) -> tuple[Tags, ...]:
    """VLAN tags as they usually are: 802.1ad's outside, where there are two."""
    tpids = {0: (), 1: (0x8100,), 2: (0x88A8, 0x8100)}[len(identifiers)]
    return tuple(zip(identifiers, tpids, strict=True))


class Rig:
    def __init__(self, loaded: Object) -> None:
        self.maps = loaded.maps
        self.programs = loaded.programs
        for name in ("sessions", "hosts4", "nets4", "nets6", "devs", "nics", "mppe"):
            self._empty(self.maps[name])
        for name in ("slots", "stats", "seqs", "buckets", "config", "counts"):
            table = self.maps[name]
            for index in range(table.max_entries):
                table.put(U32.pack(index), bytes(table.octets))
        self.config()
        self.redirect_to(LO)

    def config(self, shared: int = 0, **changes: Any) -> None:
        values = {"npx0": LO, "npx1": LO, "tun": TUN, "npx0_mac": NPX0, "npx1_mac": NPX1} | changes
        self.maps["config"].put(U32.pack(shared), pack(layout.CONFIG, version=layout.VERSION, **values))

    def redirect_to(self, *interfaces: int) -> None:
        """All that there is in the devmap."""
        self._empty(self.maps["devs"])
        for ifindex in interfaces:
            self.maps["devs"].put(U32.pack(ifindex), U32.pack(ifindex))

    def session(
        self,
        blocks: int = ALL,
        *,
        vlans: tuple[int, ...] = (),
        port: int = LO,
        slot: int = SLOT,
        session_id: int = SESSION_ID,
        address: str = ADDRESS,
        network6: str = NETWORK6,
        **changes: Any,
    ) -> None:
        """A session in a slot, found by its key and its addresses; *changes* are to its record."""
        outer, inner = (*vlans, 0, 0)[:2]
        encap = layout.pppoe_encapsulation(outer, inner, OURS, PEER, session_id)
        values = {
            "generation": GENERATION,
            "blocks": blocks,
            "ppp_id": PPP_ID,
            "kind": layout.PPPOE,
            "address4": IPv4Address(address).packed,
            "prefixlen4": 32,
            "mtu": MTU,
            "mru": MRU,
            "magic": OUR_MAGIC.to_bytes(4, "big"),
            "peer_magic": PEER_MAGIC.to_bytes(4, "big"),
            "ifindex": LO,
            "encap_len": len(encap.octets),
            "length_at": encap.length_at,
            "encap": encap.octets,
        } | changes
        self.maps["slots"].put(U32.pack(slot), pack(layout.SESSION, **values))
        ref = layout.REF.pack(slot, GENERATION)
        self.maps["sessions"].put(layout.pppoe_key(port, outer, inner, PEER, session_id), ref)
        self.maps["hosts4"].put(layout.HOST4.pack(0, IPv4Address(address).packed), ref)
        self.route6(network6, slot)

    def route4(self, network: str, slot: int = SLOT, generation: int = GENERATION) -> None:
        address, _, length = network.partition("/")
        key = layout.NET4.pack(32 + int(length), 0, IPv4Address(address).packed)
        self.maps["nets4"].put(key, layout.REF.pack(slot, generation))

    def route6(self, network: str, slot: int = SLOT, generation: int = GENERATION) -> None:
        address, _, length = network.partition("/")
        key = layout.NET6.pack(32 + int(length), 0, IPv6Address(address).packed)
        self.maps["nets6"].put(key, layout.REF.pack(slot, generation))

    def bucket(self, way: int, slot: int = SLOT, **values: int) -> None:
        self.maps["buckets"].put(U32.pack(2 * slot + way), pack(layout.BUCKET, **values))

    def stats(self, slot: int = SLOT) -> dict[str, int]:
        """What is not 0."""
        value = self.maps["stats"].get(U32.pack(slot))
        assert value is not None
        return {name: number for name, number in layout.fields(layout.STATS, value).items() if number}

    def counted(self) -> dict[str, tuple[int, int]]:
        """Packets and octets by the counter's name, where they are not 0."""
        found = {}
        for index, name in enumerate(layout.COUNTERS):
            value = self.maps["counts"].get(U32.pack(index))
            assert value is not None
            columns = list(zip(*struct.iter_unpack("=QQ", value), strict=True))
            if any(columns[0]):
                found[name] = (sum(columns[0]), sum(columns[1]))
        return found

    def reasons(self) -> dict[str, int]:
        """Packets by the counter's name."""
        return {name: packets for name, (packets, _) in self.counted().items()}

    def up(self, frame: bytes) -> Run:
        """On an access NIC."""
        return self.programs["pipex_access"].run(frame)

    def down(self, frame: bytes) -> Run:
        """On npx1."""
        return self.programs["pipex_core"].run(frame)

    def _empty(self, table: Map) -> None:
        for key in list(table.keys()):
            table.delete(key)


def session_frame(
    payload: bytes,
    *,
    vlans: tuple[Tags, ...] = (),
    session_id: int = SESSION_ID,
    source: bytes = PEER,
    destination: bytes = OURS,
    **header: Any,
) -> bytes:
    """From the peer; *payload* begins with PPP's Protocol field."""
    return ethernet(destination, source, SESSION, pppoe(session_id, payload, **header), vlans)


def data(packet: bytes, **rest: Any) -> bytes:
    """An IP packet from the peer."""
    return session_frame(ppp(PPP_IP if packet[0] >> 4 == 4 else PPP_IP6, packet), **rest)


def to_stack(packet: bytes) -> bytes:
    """A packet of the peer as it reaches npx0."""
    return ethernet(NPX0, NPX1, IP if packet[0] >> 4 == 4 else IP6, packet)


def from_stack(packet: bytes) -> bytes:
    """A packet for the peer as it comes out of npx0, whose neighbours all have its own address."""
    return ethernet(NPX0, NPX0, IP if packet[0] >> 4 == 4 else IP6, packet)


def to_peer(packet: bytes, vlans: tuple[Tags, ...] = ()) -> bytes:
    return padded(data(packet, vlans=vlans, source=OURS, destination=PEER))
