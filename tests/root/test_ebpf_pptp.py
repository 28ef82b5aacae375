"""Back end ebpf and PPTP: packets of real kernels through its sessions, in network namespaces of our own."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.base import Counters
from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.maps import PipexMaps
from npppy.pipex.ebpf.plumbing import ethtool, teardown
from npppy.ppp.link import IN, OUT
from npppy.pptp.encap import PptpEncap, Sequence
from tests.root.ebpf_lab import GATEWAY, IP, IP6, OURS, PEER, THEIRS, links, packet_socket, sh, sysfs, until, xdp
from tests.root.ebpf_lab import frame as pppoe_frame
from tests.root.ebpf_pptp import (
    GRE,
    HDLC,
    HERE,
    THERE,
    Outgoing,
    Peer,
    PptpLab,
    calls,
    gre,
    packet,
    pptp_lab,
    read,
    unpack,
)
from tests.unit.ippackets import tcp_sum, udp, words

pytestmark = pytest.mark.root

LCP = b"\xc0\x21"
ECHO = LCP + b"\x09\x07\x00\x0c\x0a\x0b\x0c\x0d" + b"data"


@pytest.fixture
def lab() -> Iterator[PptpLab]:
    with pptp_lab() as made:
        yield made


@pytest.fixture
def here(lab: PptpLab) -> Iterator[socket.socket]:
    """A host of our own, that subscribers speak with."""
    made = lab.home.socket(socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
    made.bind((GATEWAY, 4000))
    made.settimeout(60)
    yield made
    made.close()


def counts(lab: PptpLab) -> Callable[[str], int]:
    """Packets so far, by the name of the counter."""
    assert lab.backend is not None
    totals = lab.backend.maps.totals()
    return lambda name: totals[name][0]


def counting(out: int = 0, expected: int = 0, acked: int | None = None, peer_acked: int | None = None) -> Sequence:
    made = Sequence()
    made.out, made.expected = out, expected
    made.acked = expected if acked is None else acked
    made.peer_acked = out if peer_acked is None else peer_acked
    return made


def data(octets: bytes, address: str = PEER) -> bytes:
    """A frame with a packet to our host."""
    return IP + udp(address, GATEWAY, octets, ports=(1, 4000))


async def received(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    found: tuple[bytes, tuple[str, int]] = await asyncio.to_thread(sock.recvfrom, 65536)
    return found


@pytest.fixture
def own_queues(lab: PptpLab, tmp_path: Path) -> Iterator[None]:
    """Each processor sends by a queue of its own."""
    with sysfs(tmp_path):
        yield


class TestCarried:
    async def test_both_ways(self, lab: PptpLab, here: socket.socket) -> None:
        """By the kernel alone, and right to the octet."""
        await lab.open()
        sequence = counting(0xFFFFFFFE, 0xFFFFFFFD)
        flow = lab.call(ingress_filter=True, sequence=sequence)
        assert flow.carried
        sizes = (0, 1, 2, 19, 512, 1371, 1372)
        for number, size in enumerate(sizes):
            lab.up(data(bytes([number]) * size), 0xFFFFFFFD + number)
            assert await received(here) == (bytes([number]) * size, (PEER, 1))
        for number, size in enumerate(sizes):
            here.sendto(bytes([number]) * size, (PEER, 1))
            found = await lab.data()
            assert found[:3] == (calls(1)[1], 0xFFFFFFFE + number & 0xFFFFFFFF, 3)
            packet = found.ppp[2:]
            assert found.ppp[:2] == IP
            assert packet[12:20] == ip_address(GATEWAY).packed + ip_address(PEER).packed
            assert packet[28:] == bytes([number]) * size
            assert words(packet[:20]) == 0xFFFF
        octets = sum(28 + size for size in sizes)
        assert flow.counters() == Counters(octets, len(sizes), 0, octets, len(sizes), 0)
        assert (lab.seen(), lab.taken, lab.packets) == (0, 0, [])
        assert sequence.keeper is not None
        assert sequence.keeper.look() == (4, 4)
        flow.close()
        assert (sequence.out, sequence.expected, sequence.acked, sequence.peer_acked) == (5, 4, 4, 0xFFFFFFFE)
        assert sequence.keeper is None

    @pytest.mark.parametrize(
        "ppp",
        [HDLC + b"\0\x21", HDLC + b"\x21", b"\0\x21", b"\x21"],
        ids=["whole", "PFC", "ACFC", "both"],
    )
    async def test_headers(self, lab: PptpLab, here: socket.socket, ppp: bytes) -> None:
        """What may be there or not."""
        await lab.open()
        flow = lab.call()
        for number, ack in enumerate((None, 0, 0xFFFFFFFF)):
            payload = ppp + udp(PEER, GATEWAY, bytes([number]), ports=(1, 4000))
            lab.client.sendto(gre(calls(1)[0], number, ack, payload), (HERE, 0))
            assert (await received(here))[0] == bytes([number])
        assert flow.counters()[:3] == (29 * 3, 3, 0)
        assert (lab.taken, lab.packets) == (0, [])

    async def test_ipv6_payload(self, lab: PptpLab) -> None:
        await lab.open()
        for name in ("all", "default", "lo", "npx0"):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")
        network = IPv6Network("2001:db8:99::/64")
        flow = lab.call(networks6=((network.network_address.packed, 64),), ingress_filter=True)
        sh("ip -6 address add 2001:db8:1::1/64 dev lo nodad")
        sh(f"ip route add {network} dev npx0")
        with lab.home:
            here = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            here.bind(("2001:db8:1::1", 4000))
        here.settimeout(60)
        ends = ip_address("2001:db8:99::7").packed + ip_address("2001:db8:1::1").packed
        inner = struct.pack(">HHHH", 1, 4000, 10, 0) + b"up"
        check = 0xFFFF ^ words(ends + struct.pack(">HH", 17, 10) + inner)
        packet = struct.pack(">IHBB", 6 << 28, 10, 17, 64) + ends + inner[:6] + struct.pack(">H", check) + b"up"
        lab.up(IP6 + packet, 0)
        assert (await received(here))[0] == b"up"
        here.sendto(b"down", ("2001:db8:99::7", 1))
        found = await lab.data()
        assert (found.ppp[:2], found.ppp[-4:]) == (IP6, b"down")
        assert flow.counters()[1:5:3] == (1, 1)
        here.close()

    @pytest.mark.parametrize("fast", [False, True], ids=["stack", "fast"])
    @pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
    async def test_tcp(self, lab: PptpLab, up: bool, fast: bool) -> None:
        """In bulk: nothing is lost but what a full ring drops, all is in order, and what comes is acknowledged."""
        with lab.world:
            # Else checksums that it leaves to its NIC keep packets from the fast way.
            ethtool("core1", 0x17, 0)
        await lab.open(fast=fast)
        sequence = counting()
        flow = lab.call(ingress_filter=True, mss_adjust=True, fast=fast, sequence=sequence, mtu=1360, mru=1360)
        peer = Peer(lab, 1500)
        lab.pump = peer  # type: ignore[assignment]
        size = await lab.transfer(up=up)
        assert all(words(packet[:20]) == tcp_sum(packet) == 0xFFFF for packet in peer.received)
        count = counts(lab)
        assert (count("FAST_UP") > count("STACK_UP")) is fast
        assert (count("FAST_DOWN") > count("STACK_DOWN")) is fast
        counters = flow.counters()
        assert (counters.in_packets if up else counters.out_packets) > size / 1320
        assert (lab.seen(), lab.taken, lab.packets, count("TX_FAIL")) == (0, 0, [], 0)
        # What is sent more than once has another number.
        assert len(set(peer.numbers)) == len(peer.numbers)
        flow.close()
        # No more than so many are ever without an acknowledgment.
        assert 0 <= sequence.expected - sequence.acked <= 16
        assert sequence.expected <= peer.sent

    async def test_clients_behind_one_address(self, lab: PptpLab, here: socket.socket) -> None:
        """They are told apart by our call ids; theirs may be the same."""
        await lab.open()
        flows = [lab.call(number, f"10.0.0.1{number}") for number in (1, 2, 3)]
        for number in (3, 1, 2):
            lab.up(data(b"up", f"10.0.0.1{number}"), 0, number)
            assert await received(here) == (b"up", (f"10.0.0.1{number}", 1))
            here.sendto(b"down", (f"10.0.0.1{number}", 1))
            assert (await lab.data()).call_id == calls(number)[1]
        assert [flow.counters()[1:5:3] for flow in flows] == [(1, 1)] * 3
        flows[1].close()
        lab.up(data(b"up", "10.0.0.12"), 1, 2)
        await until(lambda: lab.taken == 1)

    @pytest.mark.parametrize("kind", ["native", "no GRO", "subscribers"])
    async def test_interfaces(self, lab: PptpLab, here: socket.socket, kind: str) -> None:
        """Where frames come in: whatever the driver can, and beside PPPoE."""
        if kind == "no GRO":
            lab.gro = False
            with lab.subscriber:
                ethtool("sub0", 0x2C, 0)
        backend = await lab.open()
        if kind == "subscribers":
            backend.attach_access("acc0", lab.ifindex)
            assert xdp("acc0") == "pipex_access"
            pppoe = lab.add(9, "10.0.0.9")
        found = {each.name: (each.role, each.mode) for each in backend.state().interfaces}
        assert found["acc0"] == ("access, tunnel" if kind == "subscribers" else "tunnel", "native")
        flow = lab.call()
        lab.up(data(b"up"), 0)
        assert await received(here) == (b"up", (PEER, 1))
        here.sendto(b"down", (PEER, 1))
        assert (await lab.data()).ppp[-4:] == b"down"
        assert flow.counters()[1:5:3] == (1, 1)
        assert (lab.taken, lab.seen()) == (0, 0)
        if kind == "subscribers":
            wire = None
            with lab.subscriber:
                wire = packet_socket("sub0")
            wire.send(pppoe_frame(9, data(b"other", "10.0.0.9")))
            assert await received(here) == (b"other", ("10.0.0.9", 1))
            assert pppoe.counters()[1] == 1
            wire.close()

    async def test_echo(self, lab: PptpLab, here: socket.socket) -> None:
        """LCP's is answered by the kernel, in its place among the data."""
        await lab.open()
        flow = lab.call(echo=True, magic=0x01020304, peer_magic=0x0A0B0C0D, sequence=counting(3))
        for number in range(3):
            here.sendto(b"data", (PEER, 1))
            assert (await lab.data()).sequence == 3 + 2 * number
            lab.up(ECHO, number)
            reply = LCP + b"\x0a\x07\x00\x0c\x01\x02\x03\x04data"
            assert await lab.data() == Outgoing(calls(1)[1], 4 + 2 * number, number, reply)
            # Their rate is bounded, and the clock is a real one.
            at = flow.slot * layout.STATS.size + layout.STATS.offsets["echo_ns"]
            flow._maps._stats[at : at + 8] = bytes(8)
        assert lab.packets == []
        assert flow.counters()[1:5:3] == (0, 3)


class TestAcknowledgment:
    async def test_of_an_answer(self, lab: PptpLab, here: socket.socket) -> None:
        """Of the peer to our Echo-Request, just after which it came: by the kernel, and npppyd has nothing to sweep."""
        await lab.open()
        sequence = counting(3)
        lab.call(echo=True, magic=0x01020304, peer_magic=0x0A0B0C0D, sequence=sequence)
        assert sequence.keeper is not None
        for number in range(3):
            sequence.keeper.inject(LCP + b"\x09\x07\x00\x08\x01\x02\x03\x04")
            assert (await lab.data()).sequence == 3 + number
            lab.up(LCP + b"\x0a\x07\x00\x08\x0a\x0b\x0c\x0d", number)
            assert (await lab.outgoing())[:3] == (calls(1)[1], None, number)
        assert lab.packets == []

    @pytest.mark.parametrize("fast", [False, True], ids=["stack", "fast"])
    async def test_alone(self, lab: PptpLab, here: socket.socket, fast: bool) -> None:
        """Of a peer that only sends, by the kernel; what has no number of its own takes none."""
        await lab.open(fast=fast)
        sequence = counting(7)
        flow = lab.call(sequence=sequence, fast=fast)
        for number in range(100):
            lab.up(data(bytes([number])), number)
            assert (await received(here))[0] == bytes([number])
        assert sequence.keeper is not None
        expected, acked = sequence.keeper.look()
        assert expected == 100
        assert expected - acked < 16
        sequence.keeper.inject(b"")
        acks = []
        while not acks or acks[-1] < 99:
            found = await lab.outgoing()
            assert found[:2] == (calls(1)[1], None)
            acks.append(found.ack)
        # The first at once.
        assert acks[0] == 0
        assert acks == sorted(set(acks))
        assert max(after - before for before, after in itertools.pairwise(acks)) <= 16
        assert sequence.keeper.look() == (100, 100)
        assert (lab.seen(), lab.taken, lab.packets) == (0, 0, [])
        here.sendto(b"down", (PEER, 1))
        assert (await lab.data())[1:3] == (7, 99)
        # Data is counted, and nothing else.
        assert flow.counters().out_packets == 1

    async def test_rides(self, lab: PptpLab, here: socket.socket) -> None:
        """None goes alone where something goes back anyway."""
        await lab.open()
        lab.call()
        for number in range(100):
            lab.up(data(b"up"), number)
            await received(here)
            here.sendto(b"down", (PEER, 1))
            while (found := await lab.outgoing()).sequence is None:
                # But of the first, which nothing was sent before.
                assert (number, found.ack) == (0, 0)
            assert found[1:3] == (number, number)

    async def test_bare_from_the_peer(self, lab: PptpLab) -> None:
        """It is the kernel's to note, and nobody's else."""
        await lab.open()
        flow = lab.call(sequence=counting(50, 0, 0, 40))
        lab.client.sendto(gre(calls(1)[0], None, 44), (HERE, 0))
        await until(lambda: flow._maps.sequence(flow.slot)[3] == 45)
        # What cannot be.
        lab.client.sendto(gre(calls(1)[0], None, 77), (HERE, 0))
        lab.client.sendto(gre(calls(1)[0], None, 20), (HERE, 0))
        lab.client.sendto(gre(calls(1)[0], None, 46), (HERE, 0))
        await until(lambda: flow._maps.sequence(flow.slot)[3] == 47)
        assert lab.packets == []
        assert flow.counters() == Counters()


class TestWindow:
    async def test_full(self, lab: PptpLab, here: socket.socket) -> None:
        """Data is dropped, and control passes; an acknowledgment opens it."""
        await lab.open()
        flow = lab.call(window=3, sequence=counting(10))
        at = flow.slot * layout.STATS.size + layout.STATS.offsets["window_ns"]

        def hold() -> None:
            """It was a moment ago that the peer acknowledged something."""
            struct.pack_into("=Q", flow._maps._stats, at, time.monotonic_ns() + 10**9)

        for number in range(3):
            hold()
            here.sendto(b"data", (PEER, 1))
            assert (await lab.data()).sequence == 10 + number
        hold()
        here.sendto(b"dropped", (PEER, 1))
        await until(lambda: counts(lab)("DROP_WINDOW") == 1)
        lab.send(LCP + b"\x05\x01\x00\x04")
        found = await lab.data()
        assert (found.sequence, found.ppp[:2]) == (13, LCP)
        assert flow.counters()[4:] == (3, 1)
        lab.client.sendto(gre(calls(1)[0], None, 13), (HERE, 0))
        await until(lambda: flow._maps.sequence(flow.slot)[3] == 14)
        here.sendto(b"again", (PEER, 1))
        found = await lab.data()
        assert (found.sequence, found.ppp[-5:]) == (14, b"again")

    async def test_lost(self, lab: PptpLab, here: socket.socket) -> None:
        """What nobody acknowledges for a second is lost, and the window opens."""
        await lab.open()
        flow = lab.call(window=2, sequence=counting(10, 0, 0, 8))
        here.sendto(b"data", (PEER, 1))
        assert (await lab.data()).sequence == 10
        assert flow._maps.sequence(flow.slot)[3] == 10


class TestLeftToPython:
    async def test_control(self, lab: PptpLab) -> None:
        """Control protocols and what is of no session reach npppyd's socket as they are."""
        await lab.open()
        flow = lab.call()
        ours = calls(1)[0]
        packets = [
            gre(ours, 0, None, HDLC + LCP + b"\x01\x01\x00\x04"),
            gre(ours, 1, 0, HDLC + b"\x80\x21\x01\x01\x00\x04"),
            gre(ours + 50, 0, None, HDLC + IP + udp(PEER, GATEWAY)),
            # Version 0.
            struct.pack(">HHHH", 0x2000, 0x0800, 0, ours) + bytes(20),
        ]
        for each in packets:
            lab.client.sendto(each, (HERE, 0))
        await until(lambda: len(lab.packets) == len(packets))
        assert lab.packets == packets
        assert flow.counters() == Counters()

    async def test_fragments(self, lab: PptpLab, here: socket.socket) -> None:
        """Outer ones: the stack puts them together, and Python carries what is in."""
        await lab.open()
        flow = lab.call(ingress_filter=True)
        with lab.subscriber:
            sh("ip link set sub0 mtu 1300")
        lab.up(data(b"x" * 1372), 0)
        assert await received(here) == (b"x" * 1372, (PEER, 1))
        assert (lab.taken, flow.by_python()[1], flow.counters()[1]) == (1, 1, 1)

    async def test_noted(self, lab: PptpLab, here: socket.socket) -> None:
        """Of numbers that the programs have not seen they are told."""
        await lab.open()
        sequence = counting(0)
        lab.call(sequence=sequence)
        assert sequence.keeper is not None
        sequence.keeper.note(70)
        assert sequence.keeper.look() == (70, 0)
        # What is far behind that is late.
        lab.up(data(b"late"), 2)
        lab.up(data(b"after"), 3)
        assert (await received(here))[0] == b"after"
        assert sequence.keeper.look()[0] == 4

    @pytest.mark.parametrize("what", ["address", "our address"])
    async def test_forged(self, lab: PptpLab, what: str) -> None:
        """The call id alone is not enough, and its number counts nothing."""
        await lab.open()
        sequence = counting()
        flow = lab.call(sequence=sequence)
        other = "192.0.2.77"
        ends = {"address": (other, HERE), "our address": (THERE, other)}[what]
        lab.raw.send(packet(*ends, gre(calls(1)[0], 40, None, HDLC + data(b"forged"))))
        await until(lambda: counts(lab)("DROP_FILTER") == 1)
        assert (flow.counters(), lab.packets) == (Counters(0, 0, 1), [])
        flow.close()
        assert sequence.expected == 0

    async def test_too_big(self, lab: PptpLab) -> None:
        """RFC 1191; and what may be cut has numbers like all else."""
        await lab.open()
        flow = lab.call(mtu=1390, sequence=counting(100))
        code, text = await lab.world.run(f"ping -c 1 -W 5 -s 1372 -M do {PEER}")
        assert code == 1
        assert "mtu = 1390" in text or "mtu=1390" in text, text
        # No longer than the MTU of our device, so that we cut it.
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        here.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        here.sendto(bytes(1464), (PEER, 1))
        found = [await lab.data() for _ in range(2)]
        assert [each.sequence for each in found] == [100, 101]
        assert [len(each.ppp) - 2 for each in found] == [1388, 124]
        assert (flow.by_python()[4], flow.counters()[4:]) == (2, (2, 1))
        here.close()


class TestOrder:
    """Python's frames and the kernel's have numbers of one row, and leave in their order."""

    async def _flood(
        self, lab: PptpLab, here: socket.socket, seconds: float, act: Callable[[int], object]
    ) -> list[Outgoing]:
        """What the peer gets while our kernel sends on each processor, and *act* is called again and again.

        Each call sends a frame.  All of it: there is never more on its way than there is room for everywhere.
        """
        found: list[Outgoing] = []
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
                each = unpack(lab.client.recv(65536)[20:])
                found.append(each)
                last = last or each.ppp == LCP

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
    async def test_control_amid_data(self, lab: PptpLab, here: socket.socket) -> None:
        """No number is there twice, none is missing, and all are in order, whoever carries the session."""
        await lab.open()
        sequence = counting(0xFFFFFF00)
        flow = lab.call(sequence=sequence)

        def act(number: int) -> None:
            if number % 20 == 0:
                assert (flow.to_user if number % 40 == 0 else flow.to_ebpf)()
            lab.send(LCP + b"\x0b\x01\x00\x08" + number.to_bytes(4, "big"))

        found = await self._flood(lab, here, 1.0, act)
        assert lab.npx is not None
        assert lab.npx.lost == 0
        control = [int.from_bytes(each.ppp[6:10], "big") for each in found if each.ppp[:3] == LCP + b"\x0b"]
        assert control == list(range(len(control)))
        numbers = [each.sequence for each in found]
        expected = [0xFFFFFF00 + number & 0xFFFFFFFF for number in range(len(found))]
        assert numbers == expected
        assert flow.by_python().out_packets > 0
        assert flow.counters().out_packets > flow.by_python().out_packets
        flow.close()
        assert sequence.out == expected[-1] + 1 & 0xFFFFFFFF
        assert flow.counters().out_packets == sum(each.ppp[:2] == IP for each in found)

    async def test_reopened(self, lab: PptpLab, here: socket.socket) -> None:
        """The session negotiates anew: its numbers go on, Python's and the kernel's."""
        await lab.open()
        sequence = counting(8, 3)
        flow = lab.call(sequence=sequence)
        here.sendto(b"data", (PEER, 1))
        assert (await lab.data()).sequence == 8
        lab.up(data(b"up"), 3)
        assert (await received(here))[0] == b"up"
        while (found := await lab.outgoing()).ack != 3:
            pass
        assert found.sequence is None
        flow.close()
        lab.send(LCP + b"\x01\x01\x00\x04")
        assert (await lab.data())[:3] == (calls(1)[1], 9, 3)
        flow = lab.call(sequence=sequence)
        here.sendto(b"data", (PEER, 1))
        assert (await lab.data())[:3] == (calls(1)[1], 10, 3)
        lab.up(data(b"again"), 4)
        assert (await received(here))[0] == b"again"
        assert flow.counters()[1:5:3] == (1, 1)

    async def test_late_frames(self, lab: PptpLab, here: socket.socket) -> None:
        """A little late passes, as IP does not mind; very late is dropped, and a control protocol is at all."""
        await lab.open()
        sequence = counting(0, 100)
        flow = lab.call(sequence=sequence)
        for number in (100, 110, 105, 50, 40, 111):
            lab.up(data(bytes([number])), number)
        assert [(await received(here))[0][0] for _ in range(5)] == [100, 110, 105, 50, 111]
        lab.up(LCP + b"\x01\x01\x00\x04", 90)
        await until(lambda: counts(lab)("DROP_LATE") == 2)
        assert lab.packets == []
        flow.close()
        assert sequence.expected == 112


class TestStack:
    """What must be so for packets to leave by it."""

    async def test_strict_filter(self, lab: PptpLab, here: socket.socket) -> None:
        """Then Python carries PPTP."""
        backend = await lab.open()
        every = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
        every.write_text("1")
        backend._shared["tun0"].outward.clear()
        flow = lab.call()
        assert not flow.carried
        why = "net.ipv4.conf.all.rp_filter is 1: set it to 2 or 0"
        assert backend.why_not("tun0", PptpEncap(bytes(4), bytes(4), 1, 2, 0, Sequence())) == why
        here.sendto(b"python", (PEER, 1))
        assert (await lab.data()).ppp[-6:] == b"python"
        every.write_text("0")

    async def test_conflicts_leave_nothing(self, lab: PptpLab) -> None:
        """One more call of the same id: Python has it, and its sequence numbers."""
        backend = await lab.open()
        lab.call(1)
        sequence = counting(5)
        other = lab.call(1, "10.0.0.3", sequence=sequence)
        assert (other.carried, sequence.keeper, sequence.out) == (False, None, 5)
        assert backend.maps.used == 1


class TestTags:
    async def test_up(self, lab: PptpLab, here: socket.socket) -> None:
        """Of VLAN devices, whose lower device has the program: one tag and two."""
        await lab.open()
        flow = lab.call()
        with lab.subscriber:
            wire = packet_socket("sub0")
        for number, tags in enumerate((b"\x81\0\0\7", b"\x88\xa8\0\5\x81\0\0\7")):
            each = packet(THERE, HERE, gre(calls(1)[0], number, None, HDLC + data(b"up")))
            wire.send(each[:12] + tags + each[12:])
            assert (await received(here))[0] == b"up"
        wire.close()
        assert flow.counters()[1] == 2


class TestSeen:
    async def test_mirror(self, lab: PptpLab, here: socket.socket) -> None:
        """All that the programs see and send, Python's frames too, as it is on the wire."""
        backend = await lab.open()
        lab.call(7, sequence=counting(1, 1), mirror=True)
        mirror = backend.mirror()
        frames: list[tuple[int, int, bytes]] = []
        lab.up(data(b"up"), 1, number=7)
        await received(here)
        here.sendto(b"down", (PEER, 1))
        await lab.data()
        lab.send(LCP + b"\x05\x01\x00\x04")
        await lab.data()
        mirror.read(time.monotonic_ns(), lambda ppp_id, way, ns, length, data: frames.append((ppp_id, way, data)))
        mirror.close()
        assert {ppp_id for ppp_id, _, _ in frames} == {7}
        up, *down = [(way, frame) for _, way, frame in frames]
        assert (up[0], up[1][:12]) == (IN, OURS + THEIRS)
        assert up[1][34:].startswith(gre(calls(7)[0], 1, None, HDLC + data(b"up")))
        assert {way for way, _ in down} == {OUT}
        found = [unpack(frame[34 : 14 + int.from_bytes(frame[16:18], "big")]) for _, frame in down]
        assert [each.sequence for each in found if each.sequence is not None] == [1, 2]

    async def test_state(self, lab: PptpLab) -> None:
        backend = await lab.open()
        lab.call()
        state = backend.state()
        roles = {each.name: each.role for each in state.interfaces}
        assert roles == {"acc0": "tunnel", "core0": "tunnel", "tun0": "shared"}
        assert state.maps["seqs"].used == 1
        assert state.maps["mppe"].entries == 200
        assert {"ACK_UP", "ACK_DOWN", "DROP_WINDOW", "DROP_CLEAR"} <= set(state.reasons)


class TestEnd:
    async def test_leaves_nothing(self, lab: PptpLab) -> None:
        backend = await lab.open()
        flow = lab.call()
        flow.close()
        assert backend.maps.used == 0
        for item in (backend.maps.sessions, backend.maps.hosts4, backend.maps.mppe):
            assert list(item.keys()) == []
        assert lab.npx is not None
        backend.follow_core(False, False)
        backend.detach("tun0")
        # What the kernel removes with the devices.
        assert list(backend.maps.devs.keys()) == []
        lab.npx.close()
        assert [xdp(name) for name in ("acc0", "core0")] == ["", ""]

    async def test_killed(self, lab: PptpLab, pins: Path) -> None:
        """Without anybody to close it, and then torn down."""
        await lab.open(pins=pins)
        lab.call()
        assert xdp("acc0") == "pipex_nic"
        told = teardown(pins)
        assert "XDP program detached from acc0" in told
        assert "1 sessions ended" in told
        assert not {"npx0", "npx1"} & links()
        assert xdp("acc0") == ""
        lab.npx = None

    async def test_taken_over(self, lab: PptpLab, pins: Path, here: socket.socket) -> None:
        """By the next process, with its numbers; packets go on, and acknowledgments."""
        backend = await lab.open(pins=pins)
        flow = lab.call(sequence=counting(77))
        here.sendto(b"one", (PEER, 1))
        assert (await lab.data()).sequence == 77
        maps = PipexMaps.take_over(100, pins)
        assert maps is not None
        assert maps.sequence(flow.slot) == (78, 0, 0, 77)
        for number in range(20):
            lab.up(data(b"up"), number)
            await received(here)
        while (await lab.outgoing()).ack < 15:
            pass
        here.sendto(b"two", (PEER, 1))
        assert (await lab.data())[1:3] == (78, 19)
        maps.close()
        assert backend.maps.used == 1


async def test_what_goes_out_is_gre(lab: PptpLab, here: socket.socket) -> None:
    """The frame as a whole, once, as RFC 2637 section 4.1 has it."""
    await lab.open()
    lab.call(sequence=counting(0x01020304, 0x0A0B0C0D))
    here.sendto(b"!", (PEER, 1))
    frame = await lab.frame()
    numbers = bytes.fromhex("01020304 0a0b0c0c")
    assert frame[34:54] == bytes.fromhex("3081 880b 0021") + calls(1)[1].to_bytes(2, "big") + numbers + HDLC + IP
    assert (frame[23], read(frame).ppp[-1:]) == (GRE, b"!")


async def test_any(lab: PptpLab, here: socket.socket) -> None:
    """Whatever comes as enhanced GRE of a session, the session goes on after it."""
    await lab.open()
    flow = lab.call()
    ours = calls(1)[0]
    good = HDLC + data(b"x")
    broken: list[Any] = [
        gre(ours, 0, None, good, length=2000),
        gre(ours, 0, None, good, length=1),
        gre(ours, 0, None, HDLC),
        gre(ours, 0, None, b"\xff"),
        gre(ours, 0, 0, b""),
        gre(ours, None, 0, good),
        gre(ours, None, None, b""),
        gre(ours, 0, None, good)[:9],
        gre(ours, 0, None, HDLC + b"\0\x21\x45"),
    ]
    for each in broken:
        lab.client.sendto(each, (HERE, 0))
    lab.up(data(b"fine"), 1)
    assert (await received(here))[0] == b"fine"
    assert flow.counters()[1] == 1
