"""From NIC to NIC: up by the kernel's routes and neighbours, down by pipex_nic."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.layout import U32
from npppy.pipex.ebpf.libbpf import Object
from tests.unit.ippackets import ip, tcp, tcp_sum, udp, words

from .frames import ARP, IP, IP6, TCP, UDP, ethernet, ip6, padded, udp6
from .rig import (
    ADDRESS,
    ADDRESS6,
    ALL,
    DROP,
    LO,
    MRU,
    MTU,
    PASS,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SLOT,
    Rig,
    data,
    tags,
    to_peer,
    to_stack,
)

pytestmark = pytest.mark.root

FAST = ALL | layout.FAST
HOP, HOP6, NEXT = "192.0.2.2", "2001:db8:c::2", b"\x02\0\0\0\x0c\x02"
CORE = b"\x02\0\0\0\x0c\x01"
#: Nobody has answered for it; another interface, a network that goes nowhere.
SILENT, ELSEWHERE, NOWHERE = "203.0.113.1", "203.0.114.1", "203.0.115.1"
SILENT6, ELSEWHERE6, NOWHERE6 = "2001:db8:d1::1", "2001:db8:d2::1", "2001:db8:d3::1"
PACKET = udp(ADDRESS, REMOTE, b"data")
PACKET6 = udp6(ADDRESS6, REMOTE6, b"data")
TCP_PACKET = tcp(ADDRESS, REMOTE)
TO_443, FROM_443 = tcp(ADDRESS, REMOTE, ports=(40000, 443)), tcp(ADDRESS, REMOTE, ports=(443, 40000))
PORTS = struct.pack(">HH", 40000, 40001)
BACK = udp(REMOTE, ADDRESS, b"data")
BACK6 = udp6(REMOTE6, ADDRESS6, b"data")


def low_delay(packet: bytes) -> bytes:
    """An IPv4 packet with another type of service."""
    head = packet[:1] + b"\x10" + packet[2:10] + b"\0\0" + packet[12:20]
    return head[:10] + (0xFFFF ^ words(head)).to_bytes(2, "big") + head[12:] + packet[20:]


ROUTES = f"""
link add npx0 type veth peer name npx1
link add core0 address {CORE.hex(":")} type veth peer name core1
link add side0 type veth peer name side1
link set lo up
link set npx0 up
link set npx1 up
link set core0 up
link set core1 up
link set side0 up
link set side1 up
address add 10.0.0.1/32 dev npx0
address add 192.0.2.1/24 dev core0
address add 192.0.3.1/24 dev side0
address add 2001:db8:c::1/64 dev core0 nodad
address add 2001:db8:e::1/64 dev side0 nodad
neighbour add {HOP} lladdr {NEXT.hex(":")} dev core0 nud permanent
neighbour add {HOP6} lladdr {NEXT.hex(":")} dev core0 nud permanent
neighbour add 192.0.3.2 lladdr {NEXT.hex(":")} dev side0 nud permanent
neighbour add 2001:db8:e::2 lladdr {NEXT.hex(":")} dev side0 nud permanent
route add default via {HOP}
route add default via {HOP6}
route add {SILENT}/32 via 192.0.2.3
route add {ELSEWHERE}/32 via 192.0.3.2
route add blackhole {NOWHERE}/32
route add {SILENT6}/128 via 2001:db8:c::3
route add {ELSEWHERE6}/128 via 2001:db8:e::2
route add blackhole {NOWHERE6}/128
"""


def run(command: str) -> None:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"


@pytest.fixture(scope="module")
def world(loaded: Object) -> None:
    for line in ROUTES.strip().splitlines():
        run(line)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")


@pytest.fixture
def fast(rig: Rig, world: None) -> Iterator[Rig]:
    """A session that has used the stack just now, and devices to forward to."""
    rig.config(npx0=socket.if_nametoindex("npx0"))
    rig.redirect_to(LO, socket.if_nametoindex("core0"))
    rig.session(FAST)
    used(rig)
    return rig


def used(rig: Rig, seconds_ago: int = 0) -> None:
    """The session's last packet went through the stack so long ago, even if the machine was not up yet."""
    stamp = bytearray(layout.STATS.size)
    at = layout.STATS.offsets["stack_ns"]
    stamp[at : at + 8] = struct.pack("=q", time.monotonic_ns() - seconds_ago * 10**9)
    rig.maps["stats"].put(U32.pack(SLOT), bytes(stamp))


def one_hop_less(packet: bytes) -> bytes:
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
    head = packet[:8] + bytes((packet[8] - 1,)) + packet[9:10] + b"\0\0" + packet[12:20]
    return head[:10] + (0xFFFF ^ words(head)).to_bytes(2, "big") + head[12:] + packet[20:]


def next_hop(packet: bytes) -> bytes:
    """The frame that forwards a packet to the next hop, with one hop less to live."""
    return padded(ethernet(NEXT, CORE, IP if packet[0] >> 4 == 4 else IP6, one_hop_less(packet)))


class TestUp:
    @pytest.mark.parametrize("packet", [PACKET, PACKET6])
    @pytest.mark.parametrize("identifiers", [(), (7,), (7, 8)])
    def test_forwarded(self, fast: Rig, identifiers: tuple[int, ...], packet: bytes) -> None:
        fast.session(FAST, vlans=identifiers)
        done = fast.up(data(packet, vlans=tags(*identifiers)))
        assert (done.verdict, done.data) == (REDIRECT, next_hop(packet))
        assert fast.counted() == {"FAST_UP": (1, len(packet))}
        stats = fast.stats()
        assert (stats["in_packets"], stats["in_bytes"]) == (1, len(packet))
        assert "active_ns" in stats

    def test_type_of_service(self, fast: Rig) -> None:
        """Stays what it is, and matters to no one here."""
        for packet in (low_delay(PACKET), b"\x61" + PACKET6[1:]):
            assert fast.up(data(packet)).data == next_hop(packet)

    @pytest.mark.parametrize("ttl", [2, 3, 64, 128, 255])
    def test_hop(self, fast: Rig, ttl: int) -> None:
        """The checksum stays right whatever it was."""
        first = int.from_bytes(ip(ADDRESS, REMOTE, b"x", ttl=ttl, identification=0)[10:12], "big")
        for checksum in (*range(0, 0xFFFF, 257), 0xFEFE, 0xFEFF, 0xFF00, 0xFFFE):
            packet = ip(ADDRESS, REMOTE, b"x", ttl=ttl, identification=(first - checksum) % 0xFFFF)
            assert packet[10:12] == checksum.to_bytes(2, "big")
            assert fast.up(data(packet)).data == next_hop(packet)
        packet = ip6(ADDRESS6, REMOTE6, b"x", limit=ttl)
        assert fast.up(data(packet)).data == next_hop(packet)

    @pytest.mark.parametrize(
        "packet",
        [
            ip(ADDRESS, REMOTE, b"x", ttl=1),
            ip(ADDRESS, REMOTE, b"x", ttl=0),
            ip(ADDRESS, REMOTE, b"x", options=b"\1\1\1\0"),
            PACKET[:10] + b"\xde\xad" + PACKET[12:],
            ip6(ADDRESS6, REMOTE6, b"x", limit=1),
            ip6(ADDRESS6, REMOTE6, b"x", limit=0),
            *(ip6(ADDRESS6, REMOTE6, b"\x3b\0\5\2\0\0\1\0", following=kind) for kind in (0, 43, 44, 60)),
            # Its own addresses, and those of other kinds.
            *(
                udp(ADDRESS, address)
                for address in ("10.0.0.1", "192.0.2.1", "192.0.2.255", "224.0.0.1", "255.255.255.255")
            ),
            *(udp(ADDRESS, address) for address in ("127.0.0.1", "0.0.0.0", "0.1.2.3", "240.0.0.1")),
            *(udp6(ADDRESS6, address) for address in ("2001:db8:c::1", "::1", "::", "::ffff:198.51.100.1")),
            # A next hop without a neighbour, an interface that is none of ours, no way at all.
            *(udp(ADDRESS, address) for address in (SILENT, ELSEWHERE, NOWHERE)),
            *(udp6(ADDRESS6, address) for address in (SILENT6, ELSEWHERE6, NOWHERE6)),
            # Another session's: by the stack to npx0 and back.
            udp(ADDRESS, "10.0.0.3"),
        ],
    )
    def test_by_the_stack(self, fast: Rig, packet: bytes) -> None:
        """Untouched, and counted as what it is."""
        if packet[16:20] == b"\x0a\0\0\3":
            run("route replace 10.0.0.3/32 dev npx0")
        done = fast.up(data(packet))
        assert (done.verdict, done.data) == (REDIRECT, to_stack(packet))
        assert fast.counted() == {"STACK_UP": (1, len(packet))}
        assert fast.stats()["in_packets"] == 1

    @pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.1.1.1", "255.255.255.255"])
    def test_source_of_no_host(self, fast: Rig, source: str) -> None:
        fast.session(FAST & ~layout.FILTER)
        assert fast.up(data(udp("203.0.113.77", REMOTE))).data == next_hop(udp("203.0.113.77", REMOTE))
        assert fast.up(data(udp(source, REMOTE))).data == to_stack(udp(source, REMOTE))

    @pytest.mark.parametrize("source", ["::", "::1", "::ffff:10.0.0.2", "ff02::1"])
    def test_source_of_no_host6(self, fast: Rig, source: str) -> None:
        fast.session(FAST & ~layout.FILTER)
        for passing in ("64:ff9b::1", "fd00::1"):
            assert fast.up(data(udp6(passing, REMOTE6))).data == next_hop(udp6(passing, REMOTE6))
        assert fast.up(data(udp6(source, REMOTE6))).data == to_stack(udp6(source, REMOTE6))

    @pytest.mark.parametrize("flags", [0x0000, 0x4000])
    def test_too_big_for_the_next_hop(self, fast: Rig, flags: int) -> None:
        run("link set core0 mtu 1400")
        try:
            for size, forwarded in ((1400, True), (1401, False)):
                packet = ip(ADDRESS, REMOTE, bytes(size - 20), flags=flags)
                assert fast.up(data(packet)).data == (next_hop(packet) if forwarded else to_stack(packet))
                packet = ip6(ADDRESS6, REMOTE6, bytes(size - 40))
                assert fast.up(data(packet)).data == (next_hop(packet) if forwarded else to_stack(packet))
        finally:
            run("link set core0 mtu 1500")

    @pytest.mark.parametrize("flags", [0x2000, 0x20B9, 0x00B9])
    def test_fragments_that_fit(self, fast: Rig, flags: int) -> None:
        packet = ip(ADDRESS, REMOTE, bytes(64), flags=flags)
        assert fast.up(data(packet)).data == next_hop(packet)

    def test_neighbour_that_changes(self, fast: Rig) -> None:
        other = "02:00:00:00:0c:99"
        run(f"neighbour replace {HOP} lladdr {other} dev core0 nud permanent")
        try:
            assert fast.up(data(PACKET)).data == bytes.fromhex(other.replace(":", "")) + next_hop(PACKET)[6:]
        finally:
            run(f"neighbour replace {HOP} lladdr {NEXT.hex(':')} dev core0 nud permanent")

    def test_through_the_stack_now_and_then(self, fast: Rig) -> None:
        """So that the kernel looks after the neighbour; a session's first packet, then one each 10 s."""
        for seconds_ago in (1_000_000, 11):
            used(fast, seconds_ago)
            assert fast.up(data(PACKET)).data == to_stack(PACKET)
            for _ in range(3):
                assert fast.up(data(PACKET)).data == next_hop(PACKET)
        used(fast, 8)
        assert fast.up(data(PACKET)).data == next_hop(PACKET)

    @pytest.mark.parametrize(
        ("rule", "caught", "others"),
        [
            ("iif npx0", [PACKET], []),
            ("iif core0", [], [PACKET]),
            (f"from {ADDRESS}", [PACKET], [udp("203.0.113.9", REMOTE)]),
            (f"to {REMOTE}", [PACKET], [udp(ADDRESS, "198.51.100.2")]),
            ("tos 0x10", [low_delay(PACKET)], [PACKET]),
            ("ipproto 6 dport 443", [TO_443], [TCP_PACKET, FROM_443, udp(ADDRESS, REMOTE, ports=(40000, 443))]),
            ("ipproto 6 sport 443", [FROM_443], [TCP_PACKET, TO_443]),
            ("ipproto 17", [PACKET, ip(ADDRESS, REMOTE, bytes(3))], [TCP_PACKET]),
            ("dport 40001", [PACKET, TCP_PACKET, ip(ADDRESS, REMOTE, PORTS)], [ip(ADDRESS, REMOTE, PORTS[:3] + b"x")]),
            ("dport 40001", [PACKET], [ip(ADDRESS, REMOTE, PORTS, protocol=47), ip(ADDRESS, REMOTE, PORTS[:3])]),
            ("dport 40001", [PACKET], [ip(ADDRESS, REMOTE, PORTS, flags=flags) for flags in (0x0001, 0x2000)]),
            (f"from {ADDRESS6}", [PACKET6], [udp6("fd00::1", REMOTE6)]),
            (f"to {REMOTE6}", [PACKET6], [udp6(ADDRESS6, "2001:db8:ffff::2")]),
            ("tos 0x10", [b"\x61" + PACKET6[1:]], [PACKET6, ip6(ADDRESS6, REMOTE6, flow=0xFFFFF)]),
            ("ipproto 17 dport 443", [udp6(ADDRESS6, REMOTE6, ports=(1, 443))], [PACKET6]),
        ],
    )
    def test_rules(self, fast: Rig, rule: str, caught: list[bytes], others: list[bytes]) -> None:
        """The kernel's routing rules see of a packet what they would see in the stack."""
        fast.session(FAST & ~layout.FILTER)
        family = f"-{(caught + others)[0][0] >> 4}"
        run(f"{family} rule add {rule} blackhole pref 100")
        try:
            for packet in caught:
                assert fast.up(data(packet)).data[:14] == to_stack(packet)[:14]
            for packet in others:
                assert fast.up(data(packet)).data == next_hop(packet)
        finally:
            run(f"{family} rule del pref 100")

    def test_not_forwarding(self, fast: Rig) -> None:
        path = Path("/proc/sys/net/ipv4/conf/npx0/forwarding")
        path.write_text("0")
        try:
            assert fast.up(data(PACKET)).data == to_stack(PACKET)
        finally:
            path.write_text("1")

    @pytest.mark.parametrize("padding", [1, 6, 600])
    def test_padding(self, fast: Rig, padding: int) -> None:
        """What the peer puts behind its packet is not forwarded, but for what a short frame must have."""
        for frame in (data(PACKET) + b"p" * padding, data(PACKET + b"p" * padding)):
            done = fast.up(frame)
            assert done.verdict == REDIRECT
            bare = next_hop(PACKET)[: 14 + len(PACKET)]
            assert done.data == padded((bare + b"p" * padding)[:60])
        packet = udp(ADDRESS, REMOTE, bytes(100))
        assert fast.up(data(packet) + b"p" * padding).data == next_hop(packet)

    def test_blocks(self, fast: Rig) -> None:
        assert fast.up(data(udp("10.0.0.9", REMOTE))).verdict == DROP
        done = fast.up(data(tcp(ADDRESS, REMOTE, options=b"\2\4\xff\xff")))
        assert done.data[14 + 42 : 14 + 44] == (MTU - 40).to_bytes(2, "big")
        assert tcp_sum(done.data[14:58]) == 0xFFFF
        fast.session(FAST | layout.POLICE_UP)
        fast.bucket(0, rate=1, burst=100)
        assert fast.up(data(udp(ADDRESS, REMOTE, bytes(73)))).verdict == DROP

    def test_off(self, fast: Rig) -> None:
        fast.session(ALL)
        assert fast.up(data(PACKET)).data == to_stack(PACKET)


def from_core(packet: bytes, destination: bytes = CORE) -> bytes:
    return ethernet(destination, NEXT, IP if packet[0] >> 4 == 4 else IP6, packet)


@pytest.fixture
def nic(rig: Rig) -> Rig:
    """A fast session, and a core NIC: lo."""
    rig.maps["nics"].put(U32.pack(LO), CORE + b"\0\0")
    rig.session(FAST)
    return rig


class TestDown:
    @pytest.mark.parametrize("packet", [BACK, BACK6])
    @pytest.mark.parametrize("identifiers", [(), (7,), (7, 8)])
    def test_forwarded(self, nic: Rig, identifiers: tuple[int, ...], packet: bytes) -> None:
        nic.session(FAST, vlans=identifiers)
        done = self.run(nic, from_core(packet))
        assert (done.verdict, done.data) == (REDIRECT, to_peer(one_hop_less(packet), tags(*identifiers)))
        assert nic.counted() == {"FAST_DOWN": (1, len(packet))}
        stats = nic.stats()
        assert stats.keys() == {"out_packets", "out_bytes", "active_ns"}
        assert (stats["out_packets"], stats["out_bytes"]) == (1, len(packet))

    def run(self, rig: Rig, frame: bytes):
        return rig.programs["pipex_nic"].run(frame)

    def passes(self, rig: Rig, frame: bytes) -> None:
        """To the stack, as it is, and counted only when it has come to npx1."""
        done = self.run(rig, frame)
        assert (done.verdict, done.data) == (PASS, frame)
        assert not rig.counted()
        assert not rig.stats()

    @pytest.mark.parametrize(
        "frame",
        [
            bytes(14),
            ethernet(CORE, NEXT, ARP, bytes(46)),
            ethernet(CORE, NEXT, 0x8864, bytes(46)),
            ethernet(CORE, NEXT, IP, BACK, tags(7)),
            ethernet(CORE, NEXT, IP, BACK[:19]),
            ethernet(CORE, NEXT, IP6, BACK6[:39]),
            from_core(udp(REMOTE, "192.0.2.1")),
            from_core(udp6(REMOTE6, "2001:db8:c::1")),
            # Of another station, of all.
            from_core(BACK, CORE[:5] + b"\x02"),
            from_core(BACK6, b"\xff" * 6),
            # Malformed.
            from_core(BACK[:-1]),
            from_core(b"\x4f" + BACK[1:]),
            from_core(BACK6[:-1]),
            # What must not be forwarded plainly.
            from_core(ip(REMOTE, ADDRESS, b"x", ttl=1)),
            from_core(ip(REMOTE, ADDRESS, b"x", ttl=0)),
            from_core(ip(REMOTE, ADDRESS, b"x", options=b"\1\1\1\0")),
            from_core(BACK[:10] + b"\xde\xad" + BACK[12:]),
            from_core(udp("127.0.0.1", ADDRESS)),
            from_core(udp("0.0.0.0", ADDRESS)),
            from_core(udp("239.1.1.1", ADDRESS)),
            from_core(udp("255.255.255.255", ADDRESS)),
            from_core(ip6(REMOTE6, ADDRESS6, b"x", limit=1)),
            *(from_core(ip6(REMOTE6, ADDRESS6, b"\x3b\0\5\2\0\0\1\0", following=kind)) for kind in (0, 43, 44, 60)),
            from_core(udp6("::1", ADDRESS6)),
            from_core(udp6("fe80::1", ADDRESS6)),
            from_core(udp6("ff02::1", ADDRESS6)),
            # Too big.
            from_core(udp(REMOTE, ADDRESS, bytes(MTU - 27))),
            from_core(udp6(REMOTE6, ADDRESS6, bytes(MTU - 47))),
        ],
    )
    def test_to_the_stack(self, nic: Rig, frame: bytes) -> None:
        self.passes(nic, frame)

    @pytest.mark.parametrize("blocks", [ALL, FAST | layout.USER])
    @pytest.mark.parametrize("packet", [BACK, BACK6])
    def test_session_that_is_not_fast(self, nic: Rig, packet: bytes, blocks: int) -> None:
        nic.session(blocks)
        self.passes(nic, from_core(packet))

    @pytest.mark.parametrize(("packet", "block"), [(BACK, layout.IP4), (BACK6, layout.IP6)])
    def test_of_a_protocol_that_is_not_open(self, nic: Rig, packet: bytes, block: int) -> None:
        nic.session(FAST & ~block)
        self.passes(nic, from_core(packet))

    def test_reused_slot(self, nic: Rig) -> None:
        nic.session(FAST, generation=1)
        self.passes(nic, from_core(BACK))

    @pytest.mark.parametrize("data", [b"", b"odd", bytes(1300)])
    @pytest.mark.parametrize("protocol", [TCP, UDP])
    @pytest.mark.parametrize("source", [REMOTE, REMOTE6, "223.255.255.255", "feff:" + "ffff:" * 6 + "ffff"])
    def test_checksum_left_to_a_nic(self, nic: Rig, source: str, protocol: int, data: bytes) -> None:
        """It covers the pseudo header; any other one is left to the peer, right or not."""
        packet, at = self.unfinished(source, protocol, data)
        self.passes(nic, from_core(packet))
        for other in (1, 0x100, 0xFFFF):
            check = (int.from_bytes(packet[at : at + 2], "big") ^ other).to_bytes(2, "big")
            changed = packet[:at] + check + packet[at + 2 :]
            assert self.run(nic, from_core(changed)).data == to_peer(one_hop_less(changed))

    @pytest.mark.parametrize("protocol", [TCP, UDP])
    def test_checksum_of_a_fragment(self, nic: Rig, protocol: int) -> None:
        """A sender finishes it before it cuts a packet into pieces; and other protocols have none there."""
        packet, _ = self.unfinished(REMOTE, protocol, b"data")
        for other in (
            ip(REMOTE, ADDRESS, packet[20:], protocol=protocol, flags=0x2000),
            ip(REMOTE, ADDRESS, packet[20:], protocol=47),
        ):
            expected = to_peer(one_hop_less(other))
            assert self.run(nic, from_core(other)).data[: len(expected)] == expected

    def unfinished(self, source: str, protocol: int, data: bytes) -> tuple[bytes, int]:
        """A packet as a kernel gives it to a NIC that computes checksums, and where the checksum stands."""
        header = bytes(range(20 if protocol == TCP else 8))
        at = 16 if protocol == TCP else 6
        size = len(header) + len(data)
        if ":" in source:
            packet = ip6(source, ADDRESS6, header + data, following=protocol)
            pseudo = packet[8:40] + struct.pack(">II", size, protocol)
        else:
            packet = ip(source, ADDRESS, header + data, protocol=protocol)
            pseudo = packet[12:20] + struct.pack(">HH", protocol, size)
        at += len(packet) - size
        return packet[:at] + words(pseudo).to_bytes(2, "big") + packet[at + 2 :], at

    @pytest.mark.parametrize("packet", [BACK, BACK6])
    def test_driver_that_takes_none(self, nic: Rig, packet: bytes) -> None:
        nic.redirect_to()
        self.passes(nic, from_core(packet))

    def test_nic_that_is_not_ours(self, nic: Rig) -> None:
        nic.maps["nics"].delete(U32.pack(LO))
        self.passes(nic, from_core(BACK))

    @pytest.mark.parametrize("padding", [1, 14, 500])
    def test_padding(self, nic: Rig, padding: int) -> None:
        for packet in (BACK, udp(REMOTE, ADDRESS, bytes(100))):
            done = self.run(nic, from_core(packet) + b"p" * padding)
            assert done.data == to_peer(one_hop_less(packet))

    def test_just_fits(self, nic: Rig) -> None:
        packet = udp(REMOTE, ADDRESS, bytes(MTU - 28))
        assert self.run(nic, from_core(packet)).data == to_peer(one_hop_less(packet))

    def test_blocks(self, nic: Rig) -> None:
        done = self.run(nic, from_core(tcp(REMOTE, ADDRESS, options=b"\2\4\xff\xff")))
        assert done.data[22 + 42 : 22 + 44] == (MRU - 40).to_bytes(2, "big")
        nic.session(FAST | layout.POLICE_DOWN)
        nic.bucket(1, rate=1, burst=100)
        assert self.run(nic, from_core(udp(REMOTE, ADDRESS, bytes(73)))).verdict == DROP
        assert nic.stats()["out_errors"] == 1
