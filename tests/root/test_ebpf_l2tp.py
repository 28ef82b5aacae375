"""Back end ebpf and L2TP: packets of real kernels through its sessions, in network namespaces of our own."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from npppy.l2tp.encap import L2tpEncap, Sequence
from npppy.pipex.base import Counters
from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.maps import PipexMaps
from npppy.pipex.ebpf.plumbing import ethtool, teardown
from npppy.ppp.link import IN, OUT
from tests.root.ebpf_l2tp import (
    HERE,
    PORT,
    THEIR_PORT,
    TUNNEL,
    Data,
    L2tpLab,
    Peer,
    datagram,
    l2tp_lab,
    message,
    read,
    session,
    unpack,
)
from tests.root.ebpf_lab import GATEWAY, IP, IP6, OURS, PEER, THEIRS, links, packet_socket, sh, sysfs, until, xdp
from tests.root.ebpf_lab import frame as pppoe_frame
from tests.unit.ippackets import tcp_sum, udp, words

pytestmark = pytest.mark.root

LCP = b"\xc0\x21"
ECHO = LCP + b"\x09\x07\x00\x0c\x0a\x0b\x0c\x0d" + b"data"


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def lab(request: pytest.FixtureRequest) -> Iterator[L2tpLab]:
    with l2tp_lab(request.param) as made:
        yield made


@pytest.fixture
def lab4() -> Iterator[L2tpLab]:
    with l2tp_lab(4) as made:
        yield made


@pytest.fixture
def here(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A host of our own, that subscribers speak with."""
    lab: L2tpLab = request.getfixturevalue("lab4" if "lab4" in request.fixturenames else "lab")
    made = lab.home.socket(socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
    made.bind((GATEWAY, 4000))
    made.settimeout(60)
    yield made
    made.close()


def counts(lab: L2tpLab) -> Callable[[str], int]:
    """Packets so far, by the name of the counter."""
    assert lab.backend is not None
    totals = lab.backend.maps.totals()
    return lambda name: totals[name][0]


async def received(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    data: tuple[bytes, tuple[str, int]] = await asyncio.to_thread(sock.recvfrom, 65536)
    return data


class TestCarried:
    @pytest.mark.parametrize("sequenced", [False, True], ids=["", "sequenced"])
    @pytest.mark.parametrize("checksum", [False, True], ids=["", "checksum"])
    async def test_both_ways(self, lab: L2tpLab, here: socket.socket, sequenced: bool, checksum: bool) -> None:
        """By the kernel alone, and right to the octet."""
        await lab.open()
        sequence = Sequence(0xFFFE, 7) if sequenced else None
        flow = lab.call(ingress_filter=True, sequence=sequence, checksum=checksum)
        assert flow.carried
        sizes = (0, 1, 2, 19, 512, 1371, 1372)
        for number, size in enumerate(sizes):
            lab.up(IP + udp(PEER, GATEWAY, bytes([number]) * size, ports=(1, 4000)), 7 + number if sequenced else None)
            assert await received(here) == (bytes([number]) * size, (PEER, 1))
        for number, size in enumerate(sizes):
            here.sendto(bytes([number]) * size, (PEER, 1))
            outer = read(await lab.frame())
            assert outer.ends == (lab.local, PORT, lab.peer, THEIR_PORT)
            assert outer.checksum is (checksum or lab.version == 6)
            data = unpack(outer.data)
            assert data[:2] == (session(1)[1], 0xFFFE + number & 0xFFFF if sequenced else None)
            packet = data.ppp[2:]
            assert data.ppp[:2] == IP
            assert packet[12:20] == ip_address(GATEWAY).packed + ip_address(PEER).packed
            assert packet[28:] == bytes([number]) * size
            assert words(packet[:20]) == 0xFFFF
            # To the peer's own socket too: its kernel has looked at all of it.
            assert unpack((await received(lab.client))[0]) == data
        octets = sum(28 + size for size in sizes)
        assert flow.counters() == Counters(octets, len(sizes), 0, octets, len(sizes), 0)
        assert (lab.seen(), lab.taken, lab.messages) == (0, 0, [])
        flow.close()
        if sequence is not None:
            assert (sequence.ns, sequence.expected, sequence.keeper) == (5, 14, None)

    @pytest.mark.parametrize(
        "ppp",
        [b"\xff\3\0\x21", b"\xff\3\x21", b"\0\x21", b"\x21"],
        ids=["whole", "PFC", "ACFC", "both"],
    )
    async def test_headers(self, lab: L2tpLab, here: socket.socket, ppp: bytes) -> None:
        """What may be there or not, whatever we send ourselves."""
        await lab.open()
        flow = lab.call()
        number = 0
        for length in (True, False):
            for ns in (None, 5):
                for offset in (None, 0, 3, 16):
                    frame = ppp + udp(PEER, GATEWAY, number.to_bytes(2, "big"), ports=(1, 4000))
                    data = message(TUNNEL, session(1)[0], frame, ns, length=length, offset=offset)
                    lab.client.sendto(data, (lab.local, PORT))
                    assert (await received(here))[0] == number.to_bytes(2, "big")
                    number += 1
        assert flow.counters()[:3] == (30 * number, number, 0)
        assert (lab.taken, lab.messages) == (0, [])

    async def test_ipv6_payload(self, lab: L2tpLab) -> None:
        await lab.open()
        network = IPv6Network("2001:db8:99::/64")
        flow = lab.call(networks6=((network.network_address.packed, 64),), ingress_filter=True)
        assert lab.npx is not None
        lab._switch_on_ipv6(lo="2001:db8:1::1")
        sh(f"ip route add {network} dev {lab.npx.npx0.name}")
        here = lab.udp(lab.home, "2001:db8:1::1", 4000)
        here.settimeout(60)
        ends = ip_address("2001:db8:99::7").packed + ip_address("2001:db8:1::1").packed
        inner = struct.pack(">HHHH", 1, 4000, 10, 0) + b"up"
        check = 0xFFFF ^ words(ends + struct.pack(">HH", 17, 10) + inner)
        packet = struct.pack(">IHBB", 6 << 28, 10, 17, 64) + ends + inner[:6] + struct.pack(">H", check) + b"up"
        lab.up(IP6 + packet)
        assert (await received(here))[0] == b"up"
        here.sendto(b"down", ("2001:db8:99::7", 1))
        data = await lab.data()
        assert (data.ppp[:2], data.ppp[-4:]) == (IP6, b"down")
        assert flow.counters()[1:5:3] == (1, 1)
        here.close()

    @pytest.mark.parametrize("fast", [False, True], ids=["stack", "fast"])
    @pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
    async def test_tcp(self, lab: L2tpLab, up: bool, fast: bool) -> None:
        """In bulk, with sequence numbers: nothing is lost but what a full ring drops, and all is in order."""
        with lab.world:
            # Else checksums that it leaves to its NIC keep packets from the fast way.
            ethtool("core1", 0x17, 0)
        await lab.open(fast=fast)
        sequence = Sequence()
        flow = lab.call(ingress_filter=True, mss_adjust=True, fast=fast, sequence=sequence, mtu=1360, mru=1360)
        peer = Peer(lab, 1500, sequenced=True)
        lab.pump = peer  # type: ignore[assignment]
        size = await lab.transfer(up=up)
        assert all(words(packet[:20]) == tcp_sum(packet) == 0xFFFF for packet in peer.received)
        count = counts(lab)
        assert (count("FAST_UP") > count("STACK_UP")) is fast
        assert (count("FAST_DOWN") > count("STACK_DOWN")) is fast
        counters = flow.counters()
        assert (counters.in_packets if up else counters.out_packets) > size / 1320
        assert (lab.seen(), lab.taken, count("TX_FAIL")) == (0, 0, 0)
        # What is sent more than once has another number.
        assert len(set(peer.numbers)) == len(peer.numbers)

    async def test_several_on_one_tunnel(self, lab: L2tpLab, here: socket.socket) -> None:
        await lab.open()
        flows = [lab.call(number, f"10.0.0.1{number}") for number in (1, 2, 3)]
        for number in (3, 1, 2):
            lab.up(IP + udp(f"10.0.0.1{number}", GATEWAY, b"up", ports=(1, 4000)), number=number)
            assert await received(here) == (b"up", (f"10.0.0.1{number}", 1))
            here.sendto(b"down", (f"10.0.0.1{number}", 1))
            assert (await lab.data()).session == session(number)[1]
        assert [flow.counters()[1:5:3] for flow in flows] == [(1, 1)] * 3
        flows[1].close()
        lab.up(IP + udp("10.0.0.12", GATEWAY, b"up", ports=(1, 4000)), number=2)
        await until(lambda: lab.taken == 1)

    @pytest.mark.parametrize("kind", ["native", "no GRO", "bridge", "subscribers"])
    async def test_interfaces(self, lab4: L2tpLab, here: socket.socket, kind: str) -> None:
        """Where frames come in: whatever the driver can, and beside PPPoE."""
        modes = {"native": ("acc0", "native"), "bridge": ("br0", "generic"), "subscribers": ("acc0", "native")}
        name, mode = modes.get(kind, ("acc0", "native"))
        if kind == "no GRO":
            lab4.gro = False
            with lab4.subscriber:
                ethtool("sub0", 0x2C, 0)
        elif kind == "bridge":
            sh("ip address flush dev acc0")
            sh("ip link set acc0 address 02:00:00:00:00:99")
            sh(f"ip link add br0 address {OURS.hex(':')} type bridge")
            sh("ip link set acc0 master br0")
            sh("ip link set br0 up")
            sh(f"ip address add {HERE[4]}/24 dev br0")
            sh(f"ip neighbour add {lab4.peer} dev br0 lladdr {THEIRS.hex(':')} nud permanent")
        backend = await lab4.open()
        if kind == "subscribers":
            backend.attach_access("acc0", lab4.ifindex)
            assert xdp("acc0") == "pipex_access"
            pppoe = lab4.add(9, "10.0.0.9")
        found = {each.name: (each.role, each.mode) for each in backend.state().interfaces}
        assert found[name] == ("access, tunnel" if kind == "subscribers" else "tunnel", mode)
        flow = lab4.call()
        lab4.up(IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000)))
        assert await received(here) == (b"up", (PEER, 1))
        here.sendto(b"down", (PEER, 1))
        assert (await lab4.data()).ppp[-4:] == b"down"
        assert flow.counters()[1:5:3] == (1, 1)
        assert (lab4.taken, lab4.seen()) == (0, 0)
        if kind == "subscribers":
            lab4.raw.send(pppoe_frame(9, IP + udp("10.0.0.9", GATEWAY, b"other", ports=(1, 4000))))
            assert await received(here) == (b"other", ("10.0.0.9", 1))
            assert pppoe.counters()[1] == 1

    async def test_mark(self, lab: L2tpLab, here: socket.socket) -> None:
        """What leaves has it, and routing goes by it; without there is no way."""
        await lab.open()
        flag = "-6 " if lab.version == 6 else ""
        lab.call(1, mark=0x77)
        lab.call(2, "10.0.0.3", mark=0x78)
        sh(f"ip {flag}rule add fwmark 0x78 iif npx1 unreachable")
        for address in ("10.0.0.3", PEER, "10.0.0.3", PEER):
            here.sendto(address.encode(), (address, 1))
        for _ in range(2):
            assert (await lab.data()).ppp[-8:] == PEER.encode()

    async def test_echo(self, lab: L2tpLab, here: socket.socket) -> None:
        """LCP's is answered by the kernel, in its place among the data."""
        await lab.open()
        sequence = Sequence(3)
        flow = lab.call(echo=True, magic=0x01020304, peer_magic=0x0A0B0C0D, sequence=sequence)
        for number in range(3, 9, 2):
            here.sendto(b"data", (PEER, 1))
            assert (await lab.data()).ns == number
            lab.up(ECHO, number)
            assert await lab.data() == Data(session(1)[1], number + 1, LCP + b"\x0a\x07\x00\x0c\x01\x02\x03\x04data")
            # Their rate is bounded, and the clock is a real one.
            at = flow.slot * layout.STATS.size + layout.STATS.offsets["echo_ns"]
            flow._maps._stats[at : at + 8] = bytes(8)
        assert lab.messages == []
        assert flow.counters()[1:5:3] == (0, 3)


class TestLeftToPython:
    async def test_control(self, lab: L2tpLab) -> None:
        """Control messages, control protocols and what is of no session reach npppyd's socket as they are."""
        await lab.open()
        flow = lab.call()
        ours = session(1)[0]
        messages = [
            struct.pack(">HHHHHH", 0xC802, 12, TUNNEL, 0, 1, 1),
            message(TUNNEL, ours, b"\xff\3" + LCP + b"\x01\x01\x00\x04"),
            message(TUNNEL, ours, b"\xff\3\x80\x21\x01\x01\x00\x04", 9),
            message(TUNNEL, ours + 50, b"\xff\3" + IP + udp(PEER, GATEWAY)),
            message(TUNNEL + 1, ours, b"\xff\3" + LCP + b"\x01\x01\x00\x04"),
            b"\x00\x03" + bytes(20),
        ]
        for data in messages:
            lab.client.sendto(data, (lab.local, PORT))
        await until(lambda: len(lab.messages) == len(messages))
        assert lab.messages == [(data, (lab.peer, THEIR_PORT)) for data in messages]
        assert flow.counters() == Counters()

    async def test_fragments(self, lab: L2tpLab, here: socket.socket) -> None:
        """Outer ones, as they are usual from Windows: the stack puts them together, and Python carries what is in."""
        await lab.open()
        flow = lab.call(ingress_filter=True)
        with lab.subscriber:
            sh("ip link set sub0 mtu 1300")
        lab.up(IP + udp(PEER, GATEWAY, b"x" * 1372, ports=(1, 4000)))
        assert await received(here) == (b"x" * 1372, (PEER, 1))
        assert (lab.taken, flow.by_python()[1], flow.counters()[1]) == (1, 1, 1)

    @pytest.mark.parametrize("what", ["address", "port", "our port", "our address"])
    async def test_forged(self, lab: L2tpLab, what: str) -> None:
        """The ids alone are not enough."""
        await lab.open()
        flow = lab.call()
        other = "192.0.2.77" if lab.version == 4 else "2001:db8:2::77"
        ends: list[Any] = [lab.peer, THEIR_PORT, lab.local, PORT]
        wrong = {"address": (0, other), "port": (1, 9), "our port": (3, 9), "our address": (2, other)}[what]
        ends[wrong[0]] = wrong[1]
        lab.raw.send(datagram(*ends, message(TUNNEL, session(1)[0], b"\xff\3" + IP + udp(PEER, GATEWAY))))
        await until(lambda: counts(lab)("DROP_FILTER") == 1)
        assert (flow.counters(), lab.messages) == (Counters(0, 0, 1), [])

    async def test_too_big(self, lab: L2tpLab) -> None:
        """RFC 1191; and what may be cut has numbers like all else."""
        await lab.open()
        sequence = Sequence(100)
        flow = lab.call(mtu=1390, sequence=sequence)
        code, text = await lab.world.run(f"ping -c 1 -W 5 -s 1372 -M do {PEER}")
        assert code == 1
        assert "mtu = 1390" in text or "mtu=1390" in text, text
        # No longer than the MTU of our device, so that we cut it.
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        here.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        here.sendto(bytes(1464), (PEER, 1))
        found = [await lab.data() for _ in range(2)]
        assert [data.ns for data in found] == [100, 101]
        assert [len(data.ppp) - 2 for data in found] == [1388, 124]
        assert (flow.by_python()[4], flow.counters()[4:]) == (2, (2, 1))
        here.close()


def queues(name: str) -> list[int]:
    """Packets so far by receive queue of a veth device whose XDP program is native."""
    request = bytearray(1 << 16)
    address = ctypes.addressof(ctypes.c_char.from_buffer(request))
    with socket.socket() as any_socket:

        def ask(*head: int) -> int:
            request[:12] = struct.pack("=III", *head)
            fcntl.ioctl(any_socket, 0x8946, struct.pack("16sP16x", name.encode(), address))  # SIOCETHTOOL
            return int.from_bytes(request[4:8], sys.byteorder)

        ask(0x1B, 1, 0)  # ETHTOOL_GSTRINGS, ETH_SS_STATS
        count = int.from_bytes(request[8:12], sys.byteorder)
        names = [bytes(request[12 + 32 * at : 44 + 32 * at]).rstrip(b"\0").decode() for at in range(count)]
        ask(0x1D, count, 0)  # ETHTOOL_GSTATS
        values = dict(zip(names, struct.unpack_from(f"={count}Q", request, 8), strict=True))
    return [values[f"rx_queue_{number}_xdp_packets"] for number in range(os.cpu_count() or 1)]


@pytest.fixture
def own_queues(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Each processor sends by a queue of its own."""
    request.getfixturevalue("lab4" if "lab4" in request.fixturenames else "lab")
    with sysfs(tmp_path):
        yield


class TestOrder:
    """Python's frames and the kernel's have numbers of one row, and leave in their order."""

    async def _flood(
        self, lab: L2tpLab, here: socket.socket, seconds: float, act: Callable[[int], object]
    ) -> list[Data]:
        """What the peer gets while our kernel sends on each processor, and *act* is called again and again.

        Each call sends a frame.  All of it: there is never more on its way than there is room for everywhere.
        """
        found: list[Data] = []
        # Without, sub0 does not use NAPI, and each processor would take in what it has sent.
        ethtool("acc0", 0x17, 0)
        processors = sorted(os.sched_getaffinity(0))
        acted, sent = 0, [0] * len(processors)
        stop = threading.Event()

        def room() -> bool:
            return acted + sum(sent) - len(found) < 100

        def take() -> None:
            last = False
            while not last or len(found) < acted + sum(sent):
                data = unpack(lab.client.recv(65536))
                found.append(data)
                last = last or data.ppp == LCP

        def send(number: int) -> None:
            # Of this thread.
            os.sched_setaffinity(0, {processors[number]})
            while not stop.is_set():
                if room():
                    sent[number] += 1
                    here.sendto(b"data", (PEER, 1))
                else:
                    time.sleep(0)

        taking = threading.Thread(target=take)
        sending = [threading.Thread(target=send, args=(number,)) for number in range(len(processors))]
        for thread in (taking, *sending):
            thread.start()
        end = time.monotonic() + seconds
        while acted < 200 or time.monotonic() < end:
            if room():
                acted += 1
                act(acted - 1)
            await asyncio.sleep(0)
        stop.set()
        for thread in sending:
            await asyncio.to_thread(thread.join)
        acted += 1
        lab.send(LCP)
        await asyncio.to_thread(taking.join)
        assert len(found) == acted + sum(sent)
        return found

    @pytest.mark.usefixtures("own_queues")
    @pytest.mark.parametrize(("processors", "mode"), [(1, "native"), (2, "native"), (2, "generic")])
    async def test_control_amid_data(self, lab: L2tpLab, here: socket.socket, processors: int, mode: str) -> None:
        """No number is there twice, none is missing, and all are in order, whichever processors send."""
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, set(sorted(mine)[:processors]))
        try:
            await lab.open()
            assert lab.npx is not None
            if mode == "generic":
                lab.npx.set_mtu(4000)
            assert lab.npx.mode == mode
            sequence = Sequence(65000)
            flow = lab.call(sequence=sequence)
            assert sequence.keeper is not None

            def act(number: int) -> None:
                lab.send(LCP + b"\x0b\x01\x00\x08" + number.to_bytes(4, "big"))

            found = await self._flood(lab, here, 1.0, act)
        finally:
            os.sched_setaffinity(0, mine)
        control = [int.from_bytes(data.ppp[6:10], "big") for data in found if data.ppp[:3] == LCP + b"\x0b"]
        assert control == list(range(len(control)))
        assert len(control) > 100
        assert len(found) - len(control) > 1000
        numbers = [data.ns for data in found]
        expected = [65000 + number & 0xFFFF for number in range(len(found))]
        assert numbers == expected
        flow.close()
        assert sequence.ns == expected[-1] + 1 & 0xFFFF
        # Data is counted, and nothing else.
        assert flow.counters().out_packets == sum(data.ppp[:2] == IP for data in found)

    @pytest.mark.usefixtures("own_queues")
    async def test_echo_amid_data(self, lab: L2tpLab, here: socket.socket) -> None:
        """What pipex_access answers, on whichever processor, has its place too."""
        await lab.open()
        flow = lab.call(sequence=Sequence(), echo=True, magic=0x01020304, peer_magic=0x0A0B0C0D)
        config = flow._maps.config
        entry = bytearray(config.get(layout.U32.pack(0)) or b"")
        layout.U32.pack_into(entry, layout.CONFIG.offsets["echo_interval_ns"], 0)
        config.put(layout.U32.pack(0), bytes(entry))
        found = await self._flood(lab, here, 1.0, lambda number: lab.up(ECHO, number & 0xFFFF))
        numbers = [data.ns for data in found]
        expected = [number & 0xFFFF for number in range(len(found))]
        assert numbers == expected
        assert sum(data.ppp[:3] == LCP + b"\x0a" for data in found) > 100
        assert lab.messages == []

    @pytest.mark.usefixtures("own_queues")
    async def test_queues(self, lab4: L2tpLab, here: socket.socket) -> None:
        """Each processor has its own, but for sessions with numbers, which have one each."""
        await lab4.open()
        assert lab4.npx is not None
        mine = os.sched_getaffinity(0)

        def used(address: str) -> list[tuple[int, ...]]:
            """By which queues packets to a peer go that each processor sends."""
            found = []
            for processor in sorted(mine):
                os.sched_setaffinity(0, {processor})
                before = queues("npx1")
                here.sendto(b"data", (address, 1))
                while (after := queues("npx1")) == before:
                    pass
                found.append(tuple(number for number, was in enumerate(before) if after[number] != was))
            os.sched_setaffinity(0, mine)
            return found

        own = [(processor,) for processor in sorted(mine)]
        lab4.call(1, "10.0.0.11")
        assert used("10.0.0.11") == own
        numbered = {f"10.0.0.{12 + number}" for number in range(16)}
        for number, address in enumerate(sorted(numbered)):
            lab4.call(2 + number, address, sequence=Sequence())
        assert used("10.0.0.11") == used("10.0.0.99") == own
        found = [set(used(address)) for address in numbered]
        assert all(len(each) == 1 for each in found)
        assert set().union(*found) == set(own)

    @pytest.mark.usefixtures("own_queues")
    async def test_moves_under_traffic(self, lab: L2tpLab, here: socket.socket) -> None:
        """Whoever carries it."""
        await lab.open()
        sequence = Sequence()
        flow = lab.call(sequence=sequence)

        def act(number: int) -> None:
            if number % 20 == 0:
                assert (flow.to_user if number % 40 == 0 else flow.to_ebpf)()
            lab.send(LCP + b"\x0b\x01\x00\x08" + number.to_bytes(4, "big"))

        found = await self._flood(lab, here, 1.0, act)
        assert lab.npx is not None
        assert lab.npx.lost == 0
        assert [data.ns for data in found] == [number & 0xFFFF for number in range(len(found))]
        assert flow.by_python().out_packets > 0
        assert flow.counters().out_packets > flow.by_python().out_packets
        assert flow.counters().out_packets == sum(data.ppp[:2] == IP for data in found)

    async def test_peer_moves(self, lab: L2tpLab, here: socket.socket) -> None:
        """A NAT gives it another port: its numbers go on, and nobody is heard at the old one."""
        await lab.open()
        sequence = Sequence(8, 3)
        lab.call(sequence=sequence)
        here.sendto(b"data", (PEER, 1))
        assert (await lab.data()).ns == 8
        old, lab.client = lab.client, lab.udp(lab.subscriber, lab.peer, THEIR_PORT + 1)
        lab.flows[1].close()
        flow = lab.call(sequence=sequence, port=THEIR_PORT + 1)
        here.sendto(b"data", (PEER, 1))
        outer = read(await lab.frame())
        assert (outer.ends[3], unpack(outer.data).ns) == (THEIR_PORT + 1, 9)
        lab.up(IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000)), 3)
        assert (await received(here))[0] == b"up"
        lab.client.close()
        lab.client = old
        lab.up(IP + udp(PEER, GATEWAY, b"old", ports=(1, 4000)), 4)
        await until(lambda: counts(lab)("DROP_FILTER") == 1)
        assert flow.counters()[1:3] == (1, 1)

    async def test_large_by_python(self, lab: L2tpLab, here: socket.socket) -> None:
        """As large as a session's packets may be, and as our device takes."""
        await lab.open()
        sequence = Sequence(9)
        flow = lab.call(sequence=sequence, mtu=1492, mru=1492)
        assert flow.to_user()
        for device in ("acc0", "sub0"):
            with lab.home if device == "acc0" else lab.subscriber:
                sh(f"ip link set {device} mtu 1600")
        here.sendto(bytes(1464), (PEER, 1))
        data = unpack((await received(lab.client))[0])
        assert (data.ns, len(data.ppp)) == (9, 1494)
        assert flow.by_python()[3:] == (1492, 1, 0)

    @pytest.mark.parametrize("size", [1440, 1441])
    async def test_too_large_for_ipv6(self, size: int) -> None:
        """On the wire, with no more than usual; nobody but their source may cut outer packets, which Python does."""
        with l2tp_lab(6) as lab:
            await lab.open()
            flow = lab.call(mtu=1480, mru=1480)
            here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
            here.sendto(bytes(size - 28), (PEER, 1))
            data = unpack((await received(lab.client))[0])
            assert len(data.ppp) == 2 + size
            assert flow.by_python()[4] == (size > 1440)
            here.close()

    async def test_late_frames(self, lab4: L2tpLab, here: socket.socket) -> None:
        """A little late passes, as IP does not mind; very late is dropped."""
        await lab4.open()
        sequence = Sequence(0, 100)
        flow = lab4.call(sequence=sequence)
        for ns in (100, 110, 105, 50, 40, 111):
            lab4.up(IP + udp(PEER, GATEWAY, bytes([ns]), ports=(1, 4000)), ns)
        assert [(await received(here))[0][0] for _ in range(5)] == [100, 110, 105, 50, 111]
        await until(lambda: counts(lab4)("DROP_LATE") == 1)
        flow.close()
        assert sequence.expected == 112


class TestStack:
    """What must be so for packets to leave by it."""

    async def test_strict_filter(self, lab4: L2tpLab, here: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
        """Then Python carries L2TP, and says what to do; the loose one does no harm."""
        backend = await lab4.open()
        every = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
        every.write_text("2")
        first = lab4.call(1)
        assert first.carried
        here.sendto(b"loose", (PEER, 1))
        assert unpack((await received(lab4.client))[0]).ppp[-5:] == b"loose"
        every.write_text("1")
        backend._shared["tun0"].outward.clear()
        backend.follow_core(False, True)
        why = "net.ipv4.conf.all.rp_filter is 1: set it to 2 or 0"
        assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
            f"iface=tun0 pipex: Python carries tunnels over IPv4: {why}"
        ]
        second = lab4.call(2, "10.0.0.3")
        assert not second.carried
        assert backend.why_not("tun0", L2tpEncap(bytes(4), 1, bytes(4), 2, 3, 4, 5, 6)) == why
        here.sendto(b"python", ("10.0.0.3", 1))
        assert unpack((await received(lab4.client))[0]).ppp[-6:] == b"python"
        every.write_text("0")
        backend._shared["tun0"].outward.clear()
        assert lab4.call(3, "10.0.0.4").carried

    async def test_no_ipv6_forwarding(self) -> None:
        """Newer kernels do it for one device; else Python carries what comes over IPv6."""
        with l2tp_lab(6) as lab:
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("0")
            backend = await lab.open()
            able = Path("/proc/sys/net/ipv6/conf/npx1/force_forwarding").exists()
            flow = lab.call()
            assert flow.carried is able
            here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
            here.sendto(b"down", (PEER, 1))
            assert unpack((await received(lab.client))[0]).ppp[-4:] == b"down"
            here.close()
            encap = L2tpEncap(bytes(16), 1, bytes(16), 2, 3, 4, 5, 6)
            assert backend.why_not("tun0", encap) == ("" if able else "net.ipv6.conf.all.forwarding is 0: set it to 1")

    async def test_link_local(self, lab4: L2tpLab) -> None:
        backend = await lab4.open()
        local = ip_address("fe80::1").packed
        why = backend.why_not("tun0", L2tpEncap(local, 1701, local, 1701, 1, 2, 3, 4))
        assert why == "the stack forwards nothing between addresses of a link"

    async def test_conflicts_leave_nothing(self, lab4: L2tpLab, here: socket.socket) -> None:
        """One more call of the same ids: Python has it, and its sequence numbers."""
        backend = await lab4.open()
        lab4.call(1)
        sequence = Sequence(5)
        other = lab4.call(1, "10.0.0.3", sequence=sequence)
        assert (other.carried, sequence.keeper, sequence.ns) == (False, None, 5)
        assert backend.maps.used == 1


class TestIpsec:
    """This kernel has none: a rule by addresses stands for the one that looks for what was decrypted."""

    RULES = (
        "add table ip npppy",
        "add chain ip npppy in { type filter hook prerouting priority raw; }",
        f"add rule ip npppy in ip daddr {HERE[4]} udp dport {PORT} @th,64,16 & 0x800f == 2 "
        "dup to 192.0.0.9 device npx0 drop",
    )

    async def test_only_what_was_decrypted(self, lab4: L2tpLab, here: socket.socket) -> None:
        await lab4.open()
        flow = lab4.call(ipsec=True, ingress_filter=True, mtu=1492, mru=1492)
        assert flow.carried
        # In the clear: the stack's policies are asked, and would drop it.
        packet = IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000))
        lab4.up(packet)
        assert (await received(here))[0] == b"up"
        assert (lab4.taken, flow.by_python()[1]) == (1, 1)
        for rule in self.RULES:
            sh_nft(rule)
        seen: list[bytes] = []
        assert lab4.backend is not None
        lab4.backend.interfaces["tun0"].outer = lambda packet, now: not seen.append(packet)  # type: ignore[func-returns-value]
        lab4.up(packet)
        assert (await received(here))[0] == b"up"
        assert (flow.counters()[1], flow.by_python()[1], seen) == (2, 1, [])
        # As large as it may be: longer than IP packets on npx0.
        large = udp(PEER, GATEWAY, b"x" * 1464, ports=(1, 4000))
        with lab4.subscriber:
            sh("ip link set sub0 mtu 1600")
        sh("ip link set acc0 mtu 1600")
        lab4.up(IP + large)
        assert len((await received(here))[0]) == 1464
        assert (flow.counters()[1], flow.by_python()[1], seen) == (3, 1, [])
        # What the programs leave is an outer packet.
        data = message(TUNNEL, session(1)[0], b"\xff\3" + LCP + b"\1\1\0\4")
        lab4.client.sendto(data, (lab4.local, PORT))
        await until(lambda: len(seen) == 1)
        assert seen[0][12:20] == ip_address(lab4.peer).packed + ip_address(lab4.local).packed
        assert seen[0][28:] == data
        assert flow.to_user()
        lab4.up(packet)
        await until(lambda: len(seen) == 2)
        # Control messages were let alone.
        control = struct.pack(">HHHHHH", 0xC802, 12, TUNNEL, 0, 1, 1)
        lab4.client.sendto(control, (lab4.local, PORT))
        await until(lambda: lab4.messages == [(control, (lab4.peer, THEIR_PORT))])
        # Down as ever, never past the stack.
        assert flow.to_ebpf()
        here.sendto(b"down", (PEER, 1))
        assert (await lab4.data()).ppp[-4:] == b"down"
        # Here, where there is an event loop.
        flow.close()


def sh_nft(rule: str) -> None:
    sh("nft " + rule)


class TestTags:
    async def test_up(self, lab4: L2tpLab, here: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of VLAN devices, whose lower device has the program: one tag and two."""
        await lab4.open()
        flow = lab4.call()
        packet = datagram(
            *(lab4.peer, THEIR_PORT, lab4.local, PORT),
            message(TUNNEL, session(1)[0], b"\xff\3" + IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000))),
        )
        with lab4.subscriber:
            wire = packet_socket("sub0")
        for tags in (b"\x81\0\0\7", b"\x88\xa8\0\5\x81\0\0\7"):
            wire.send(packet[:12] + tags + packet[12:])
            assert (await received(here))[0] == b"up"
        wire.close()
        assert flow.counters()[1] == 2


class TestSeen:
    async def test_mirror(self, lab: L2tpLab, here: socket.socket) -> None:
        """All that the programs see and send, Python's frames too, as it is on the wire."""
        backend = await lab.open()
        sequence = Sequence(1)
        lab.call(7, sequence=sequence, mirror=True)
        mirror = backend.mirror()
        frames: list[tuple[int, int, bytes]] = []
        lab.up(IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000)), 1, number=7)
        await received(here)
        here.sendto(b"down", (PEER, 1))
        await lab.data()
        lab.send(LCP + b"\x05\x01\x00\x04")
        await lab.data()
        mirror.read(time.monotonic_ns(), lambda ppp_id, way, ns, length, data: frames.append((ppp_id, way, data)))
        mirror.close()
        assert [(ppp_id, way) for ppp_id, way, _ in frames] == [(7, IN), (7, OUT), (7, OUT)]
        at = 14 + (20 if lab.version == 4 else 40) + 8
        assert frames[0][2][:12] == OURS + THEIRS
        first = message(TUNNEL, session(7)[0], b"\xff\3" + IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000)), 1)
        assert frames[0][2][at:].startswith(first)
        ends = [at - 8 + int.from_bytes(data[at - 4 : at - 2], "big") for *_, data in frames]
        found = [unpack(data[at:end])[:2] for (*_, data), end in zip(frames[1:], ends[1:], strict=True)]
        assert found == [(session(7)[1], 1), (session(7)[1], 2)]

    async def test_state(self, lab4: L2tpLab) -> None:
        backend = await lab4.open()
        lab4.call(sequence=Sequence())
        state = backend.state()
        roles = {each.name: each.role for each in state.interfaces}
        assert roles == {"acc0": "tunnel", "core0": "tunnel", "tun0": "shared"}
        assert state.maps["seqs"].used == 1


class TestEnd:
    async def test_leaves_nothing(self, lab: L2tpLab) -> None:
        backend = await lab.open()
        flow = lab.call(sequence=Sequence())
        flow.close()
        assert backend.maps.used == 0
        for item in (backend.maps.sessions, backend.maps.hosts4):
            assert list(item.keys()) == []
        assert lab.npx is not None
        backend.follow_core(False, False)
        backend.detach("tun0")
        # What the kernel removes with the devices.
        assert list(backend.maps.devs.keys()) == []
        lab.npx.close()
        assert [xdp(name) for name in ("acc0", "core0")] == ["", ""]
        assert "192.0.0.9" not in sh("ip neighbour") + sh("ip route")

    async def test_killed(self, lab4: L2tpLab, pins: Path) -> None:
        """Without anybody to close it, and then torn down."""
        await lab4.open(pins=pins)
        lab4.call(sequence=Sequence())
        assert xdp("acc0") == "pipex_nic"
        told = teardown(pins)
        assert "XDP program detached from acc0" in told
        assert "1 sessions ended" in told
        assert not {"npx0", "npx1"} & links()
        assert xdp("acc0") == ""
        lab4.npx = None

    async def test_taken_over(self, lab4: L2tpLab, pins: Path, here: socket.socket) -> None:
        """By the next process, with its numbers; packets go on."""
        backend = await lab4.open(pins=pins)
        sequence = Sequence(77)
        flow = lab4.call(sequence=sequence)
        here.sendto(b"one", (PEER, 1))
        assert (await lab4.data()).ns == 77
        maps = PipexMaps.take_over(100, pins)
        assert maps is not None
        assert maps.sequence(flow.slot)[:2] == (78, 0)
        here.sendto(b"two", (PEER, 1))
        assert (await lab4.data()).ns == 78
        assert maps.sequence(flow.slot)[:2] == (79, 0)
        maps.close()
        assert backend.maps.used == 1
