"""Back end ebpf: what must not be forwarded plainly comes to the same end as without pipex, in either mode."""

from __future__ import annotations

import contextlib
import operator
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.root.ebpf_lab import (
    CORE,
    GATEWAY,
    IP,
    NEXT,
    OURS,
    PEER,
    SESSION,
    THEIRS,
    WORLD,
    Lab,
    frame,
    packet_socket,
    sh,
    until,
)
from tests.root.ebpf_traffic import FAR, from_world
from tests.unit.ippackets import ip, udp, words

pytestmark = pytest.mark.root

#: Peers: a second one, and one whose MTU is smaller.
OTHER, SMALL = "10.0.0.3", "10.0.0.5"
PEERS = (PEER, OTHER, SMALL)
SMALL_MTU = 1000
#: Addresses of our own, and a neighbour that is not there.
UPLINK, SILENT = "198.51.100.1", "198.51.100.9"
SIDE = b"\x02\0\0\0\x0d\x01"

DF, MF = 0x4000, 0x2000
MARK = b"marker"
MARKER_UP, MARKER_DOWN = udp(PEER, FAR, MARK), udp(FAR, PEER, MARK)
NOTHING, TO_PEER, TO_WORLD = (0, 0), (1, 0), (0, 1)


class Case(NamedTuple):
    #: What a peer, or the world, sends.
    packet: bytes
    #: How many packets come to peers, and to the world.
    come: tuple[int, int]
    #: What is changed before, and put back.
    commands: str = ""
    undo: str = ""
    #: To which station the world sends it.
    to: bytes = CORE
    #: How many come in fast mode, where that is not the same: see fast.h.
    fast: tuple[int, int] | None = None
    #: Python answers, which the packet has reached one hop later.
    by_python: bool = False


def options(*octets: int, ttl: int = 64, up: bool = True) -> bytes:
    return ip(*((PEER, FAR) if up else (FAR, PEER)), b"data", options=bytes(octets), ttl=ttl)


def big(flags: int, source: str = PEER, destination: str = FAR, size: int = 1200) -> bytes:
    return ip(source, destination, (bytes(range(250)) * 6)[: size - 20], flags=flags)


def icmp_echo(source: str, destination: str) -> bytes:
    message = b"\x08\0\0\0\0\1\0\1data"
    return ip(source, destination, message[:2] + (0xFFFF ^ words(message)).to_bytes(2, "big") + message[4:], protocol=1)


def spoiled(packet: bytes) -> bytes:
    return packet[:10] + bytes((packet[10] ^ 1,)) + packet[11:]


NARROW = "ip link set core0 mtu 1000", "ip link set core0 mtu 1500"
NARROW_WAY = f"192.0.2.0/24 via {WORLD}"
RECORD_ROUTE = (7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
AGAIN = f"ip neighbour replace {WORLD} lladdr {NEXT.hex(':')} dev core0 nud permanent"
UP_AGAIN = f"ip link set core0 up; ip route replace 203.0.113.0/24 via {WORLD}; {AGAIN}"


def way(route: str) -> tuple[str, str]:
    """Commands that make a route, and remove it."""
    return f"ip route add {route}", f"ip route del {route}"


UP = {
    "forwarded": Case(udp(PEER, FAR, b"data"), TO_WORLD),
    "TTL 2": Case(ip(PEER, FAR, b"data", ttl=2), TO_WORLD),
    "TTL 1": Case(ip(PEER, FAR, b"data", ttl=1), TO_PEER),
    "TTL 0": Case(ip(PEER, FAR, b"data", ttl=0), TO_PEER),
    "no operation": Case(options(1, 1, 1, 0), TO_WORLD),
    # The checksum would be right without it; the kernel makes zeros of what is behind its end.
    "options that add up to 0": Case(options(1, 0, 0xFE, 0xFF), TO_WORLD),
    "record route": Case(options(*RECORD_ROUTE), TO_WORLD),
    "record route, TTL 1": Case(options(*RECORD_ROUTE, ttl=1), TO_PEER),
    "router alert": Case(options(148, 4, 0, 0), TO_WORLD),
    "source route": Case(options(131, 7, 4, 203, 0, 113, 9, 0), NOTHING),
    "bad option": Case(options(7, 40, 4, 0), TO_PEER),
    "bad checksum": Case(spoiled(udp(PEER, FAR)), NOTHING),
    "first fragment": Case(ip(PEER, FAR, bytes(64), flags=MF), TO_WORLD),
    "last fragment": Case(ip(PEER, FAR, bytes(64), flags=185), TO_WORLD),
    "too big, DF": Case(big(DF), TO_PEER, *NARROW),
    "too big": Case(big(0), (0, 2), *NARROW),
    "too big a fragment": Case(big(MF | 100), (0, 2), *NARROW),
    "to us": Case(udp(PEER, GATEWAY), TO_PEER),
    "to our uplink": Case(udp(PEER, UPLINK), TO_PEER),
    "echo request": Case(icmp_echo(PEER, UPLINK), TO_PEER),
    "directed broadcast": Case(udp(PEER, "198.51.100.255"), NOTHING),
    "broadcast": Case(udp(PEER, "255.255.255.255"), NOTHING),
    "multicast": Case(udp(PEER, "239.1.1.1"), NOTHING),
    "to 240.0.0.1": Case(udp(PEER, "240.0.0.1"), TO_WORLD, *way(f"240.0.0.0/8 via {WORLD}")),
    "to 127.0.0.1": Case(udp(PEER, "127.0.0.1"), NOTHING),
    "to 0.0.0.0": Case(udp(PEER, "0.0.0.0"), NOTHING),
    "from 127.0.0.1": Case(udp("127.0.0.1", FAR), NOTHING),
    "from 0.0.0.0": Case(udp("0.0.0.0", FAR), NOTHING),
    "from 224.0.0.1": Case(udp("224.0.0.1", FAR), NOTHING),
    "from 255.255.255.255": Case(udp("255.255.255.255", FAR), NOTHING),
    "from our address": Case(udp(GATEWAY, FAR), NOTHING, fast=TO_WORLD),
    "from our uplink": Case(udp(UPLINK, FAR), NOTHING, fast=TO_WORLD),
    "from elsewhere": Case(udp("192.0.2.77", FAR), TO_WORLD),
    "from another network of ours": Case(udp("198.18.0.2", FAR), TO_WORLD),
    "no route": Case(udp(PEER, "192.0.2.1"), TO_PEER),
    "blackhole": Case(udp(PEER, "192.0.2.1"), NOTHING, *way("blackhole 192.0.2.0/24")),
    "unreachable": Case(udp(PEER, "192.0.2.1"), TO_PEER, *way("unreachable 192.0.2.0/24")),
    "prohibited": Case(udp(PEER, "192.0.2.1"), TO_PEER, *way("prohibit 192.0.2.0/24")),
    "neighbour unknown": Case(udp(PEER, FAR), TO_WORLD, f"ip neighbour del {WORLD} dev core0", AGAIN),
    "neighbour silent": Case(udp(PEER, SILENT), TO_PEER, undo=f"ip neighbour flush dev core0 {SILENT}"),
    "neighbour with another address": Case(
        udp(PEER, FAR), TO_WORLD, AGAIN.replace(NEXT.hex(":"), "02:00:00:00:0c:99"), AGAIN
    ),
    "another device": Case(udp(PEER, "192.0.2.1"), TO_WORLD, *way("192.0.2.0/24 via 198.18.0.2")),
    "MTU of a route, DF": Case(big(DF, destination="192.0.2.1"), TO_PEER, *way(f"{NARROW_WAY} mtu lock 1000")),
    "MTU of a route": Case(big(0, destination="192.0.2.1"), (0, 2), *way(f"{NARROW_WAY} mtu lock 1000")),
    # The kernel's look-up for programs leaves it out.
    "MTU without lock": Case(big(0, destination="192.0.2.1"), (0, 2), *way(f"{NARROW_WAY} mtu 1000"), fast=TO_WORLD),
    "device down": Case(udp(PEER, FAR), TO_PEER, "ip link set core0 down", UP_AGAIN),
    # At the end: if the kernel makes a redirect of it, it is silent for a while.
    "to a peer": Case(udp(PEER, OTHER), TO_PEER),
    "to its own address": Case(udp(PEER, PEER), TO_PEER),
}

DOWN = {
    "forwarded": Case(udp(FAR, PEER, b"data"), TO_PEER),
    "TTL 2": Case(ip(FAR, PEER, b"data", ttl=2), TO_PEER),
    "TTL 1": Case(ip(FAR, PEER, b"data", ttl=1), TO_WORLD),
    "TTL 0": Case(ip(FAR, PEER, b"data", ttl=0), TO_WORLD),
    "no operation": Case(options(1, 1, 1, 0, up=False), TO_PEER),
    "options that add up to 0": Case(options(1, 0, 0xFE, 0xFF, up=False), TO_PEER),
    "record route": Case(options(*RECORD_ROUTE, up=False), TO_PEER),
    "router alert": Case(options(148, 4, 0, 0, up=False), TO_PEER),
    "bad option": Case(options(7, 40, 4, 0, up=False), TO_WORLD),
    "bad checksum": Case(spoiled(udp(FAR, PEER)), NOTHING),
    "first fragment": Case(ip(FAR, PEER, bytes(64), flags=MF), TO_PEER),
    "last fragment": Case(ip(FAR, PEER, bytes(64), flags=185), TO_PEER),
    "just fits": Case(big(DF, FAR, PEER, 1492), TO_PEER),
    "too big, DF": Case(big(DF, FAR, PEER, 1493), TO_WORLD),
    "too big": Case(big(0, FAR, PEER, 1493), (2, 0)),
    "fits the small one": Case(big(DF, FAR, SMALL, SMALL_MTU), TO_PEER),
    "too big for the small one, DF": Case(big(DF, FAR, SMALL), TO_WORLD, by_python=True),
    "too big for the small one": Case(big(0, FAR, SMALL), (2, 0)),
    "to us": Case(udp(FAR, UPLINK), TO_WORLD),
    "from 127.0.0.1": Case(udp("127.0.0.1", PEER), NOTHING),
    "from 0.0.0.0": Case(udp("0.0.0.0", PEER), NOTHING),
    "from 224.0.0.1": Case(udp("224.0.0.1", PEER), NOTHING),
    "from 255.255.255.255": Case(udp("255.255.255.255", PEER), NOTHING),
    "from our address": Case(udp(GATEWAY, PEER), NOTHING, fast=TO_PEER),
    "from our uplink": Case(udp(UPLINK, PEER), NOTHING, fast=TO_PEER),
    "to another station": Case(udp(FAR, PEER), NOTHING, to=NEXT),
    "to all stations": Case(udp(FAR, PEER), NOTHING, to=b"\xff" * 6),
    "from another device's network": Case(udp("198.18.0.2", PEER), TO_PEER),
}


class Ends:
    """What comes to peers, and to the world, of a lab with pipex or without."""

    def __init__(self, lab: Lab, mode: str) -> None:
        self._lab = lab
        self._plain, self._fast = mode == "plain", mode == "fast"
        with lab.subscriber:
            self._near = packet_socket("sub0", 0x0800 if self._plain else 0x8864)
        with lab.world:
            # On all devices.
            self._far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self._far.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
        lab.raw.close()
        self.came: tuple[list[bytes], list[bytes]] = ([], [])

    async def open(self) -> None:
        lab = self._lab
        lab.far()
        # An interface that fast packets never use.
        sh("ip link add side0 type veth peer name side1")
        lab._move("side1", lab.world)
        sh(f"ip link set side0 address {SIDE.hex(':')} up")
        sh("ip address add 198.18.0.1/24 dev side0")
        sh(f"ip neighbour add 198.18.0.2 lladdr {NEXT.hex(':')} dev side0 nud permanent")
        with lab.world:
            sh("ip link set side1 up")
        for name, value in (
            ("icmp_ratemask", 0),
            ("neigh/core0/mcast_solicit", 1),
            ("neigh/core0/retrans_time_ms", 10),
        ):
            Path(f"/proc/sys/net/ipv4/{name}").write_text(str(value))
        if self._plain:
            sh("ip link set acc0 mtu 1492")
            # Peers are not on one link.
            for name in ("all", "acc0"):
                Path(f"/proc/sys/net/ipv4/conf/{name}/send_redirects").write_text("0")
            sh(f"ip address add {GATEWAY}/32 dev acc0")
            for peer in PEERS:
                sh(f"ip route add {peer}/32 dev acc0" + (f" mtu {SMALL_MTU}" if peer == SMALL else ""))
                sh(f"ip neighbour add {peer} lladdr {THEIRS.hex(':')} dev acc0 nud permanent")
            return
        backend = await lab.open()
        if self._fast:
            backend.attach_core("core0", socket.if_nametoindex("core0"), CORE)
        for number, peer in enumerate(PEERS, 1):
            lab.add(number, peer, mtu=SMALL_MTU if peer == SMALL else 1492, fast=self._fast)

    def close(self) -> None:
        self._near.close()
        self._far.close()

    def send(self, case: Case, up: bool) -> None:
        if not up:
            with self._lab.world:
                wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                wire.bind(("core1", 0))
            wire.send(case.to + from_world(case.packet)[6:])
            wire.close()
        elif self._plain:
            self._near.send(OURS + THEIRS + b"\x08\0" + case.packet)
        else:
            self._near.send(frame(1, IP + case.packet))

    def take(self) -> tuple[int, int]:
        """What has come by now; to the world with the Ethernet header, to a peer from the IP header on."""
        for sock, came in zip((self._near, self._far), self.came, strict=True):
            try:
                while True:
                    data = sock.recv(65536, socket.MSG_DONTWAIT)
                    if sock is self._far:
                        came.append(data[:14] + told(data[14:]))
                    elif self._plain:
                        came.append(told(data[14:]))
                    else:
                        session, length = struct.unpack(">HH", data[16:20])
                        packet = data[22 : 20 + length]
                        assert data[:16] == THEIRS + OURS + SESSION
                        assert socket.inet_ntoa(packet[16:20]) == PEERS[session - 1]
                        came.append(told(packet))
            except BlockingIOError:
                pass
        return len(self.came[0]), len(self.came[1])

    def _linked(self) -> bool:
        """Whether the link to the world is up, as both ends see it: the kernel takes its time."""
        here = sh("ip link show core0")
        with self._lab.world:
            return "state UP" in here and "state UP" in sh("ip link show core1")

    async def outcome(self, case: Case, up: bool) -> tuple[list[bytes], list[bytes]]:
        """What comes to peers, and to the world."""
        self.came = ([], [])
        come = case.fast if self._fast and case.fast else case.come
        for command in filter(None, case.commands.split(";")):
            sh(command)
        try:
            self.send(case, up)
            await until(lambda: all(map(operator.ge, self.take(), come)))
        finally:
            for command in filter(None, case.undo.split(";")):
                sh(command)
        if "link set" in case.undo:
            await until(self._linked)
        # Behind these there is nothing more.
        for marker, upward in ((MARKER_UP, True), (MARKER_DOWN, False)):
            self.send(Case(marker, NOTHING), upward)
            await until(lambda at=int(upward): self.take() and self.came[at] and self.came[at][-1].endswith(MARK))
        near, far = ([packet for packet in came if not packet.endswith(MARK)] for came in self.came)
        assert (len(near), len(far)) == come
        return sorted(near), sorted(far)


def told(packet: bytes) -> bytes:
    """An IPv4 packet; of ICMP, without what is different each time."""
    packet = packet[: int.from_bytes(packet[2:4], "big")]
    assert words(packet[: (packet[0] & 15) * 4]) == 0xFFFF
    if packet[9] != 1:
        return packet
    return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]


def essence(error: bytes) -> tuple[bytes, ...]:
    """Of a frame to the world with an ICMP error: to whom, what, the MTU, the addresses of the packet, its data."""
    return error[:14], error[30:36], error[38:42], error[54:62], error[62:]


@pytest.fixture
def labs() -> Iterator[tuple[Lab, Lab]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(2):
            made.append(Lab())
            stack.callback(made[-1].close)
        yield made[0], made[1]


@pytest.mark.parametrize("mode", ["stack", "fast"])
async def test_as_without_pipex(labs: tuple[Lab, Lab], mode: str) -> None:
    """A kernel that forwards between Ethernets, and one that has pipex at one end."""
    outcomes = []
    for lab, how in zip(labs, ("plain", mode), strict=True):
        with lab.home:
            ends = Ends(lab, how)
            await ends.open()
            found = {}
            for cases, up in ((UP, True), (DOWN, False)):
                for name, case in cases.items():
                    try:
                        near, far = await ends.outcome(case, up)
                    except (TimeoutError, AssertionError) as error:
                        pytest.fail(f"{how}, {'up' if up else 'down'}, {name}: {error!r}: {ends.came}")
                    if mode != "fast" or case.fast is None:
                        found[name, up] = near, list(map(essence, far)) if case.by_python else far
            ends.close()
        outcomes.append(found)
    plain, pipex = outcomes
    assert {name: outcome for name, outcome in pipex.items() if outcome != plain[name]} == {}
    assert labs[1].backend is not None
    totals = labs[1].backend.maps.totals()
    assert (totals["FAST_UP"][0] > 0, totals["FAST_DOWN"][0] > 0) == (mode == "fast", mode == "fast")
