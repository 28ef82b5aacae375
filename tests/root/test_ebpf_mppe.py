"""Back end ebpf and MPPE, on all carriers: the kernel encrypts and decrypts, and Python only what it cannot.

The peer's side is that of npppy.ppp.mppe.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sized
from ipaddress import IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from npppy.l2tp.encap import Sequence as L2tpSequence
from npppy.pipex.base import ConflictError, Counters, Police
from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.flow import EbpfFlow
from npppy.pipex.ebpf.keys import SKIPPED
from npppy.pipex.ebpf.libbpf import BpfError, Map
from npppy.pipex.ebpf.plumbing import ethtool
from npppy.ppp.mppe import Keys, Mode, Mppe, next_key
from npppy.pptp.encap import Sequence as PptpSequence
from tests.root import ebpf_l2tp, ebpf_pptp
from tests.root.ebpf_l2tp import L2tpLab
from tests.root.ebpf_lab import (
    GATEWAY,
    IP,
    IP6,
    MPPE,
    OURS,
    PEER,
    SESSION,
    THEIRS,
    Lab,
    Subscriber,
    frame,
    sh,
    sysfs,
    until,
)
from tests.root.ebpf_pptp import PptpLab
from tests.unit.ippackets import tcp_sum, udp, words

pytestmark = pytest.mark.root

LCP = b"\xc0\x21"
CCP = b"\x80\xfd"
ONE, OTHER = bytes(range(16)), bytes(range(100, 116))


def keys(bits: int = 128) -> tuple[Mppe, Mppe]:
    """Our side and the peer's."""
    mode = Mode(bits, False)
    return Mppe.begin(Keys(ONE, OTHER), mode, mode), Mppe.begin(Keys(OTHER, ONE), mode, mode)


def data(octets: bytes) -> bytes:
    """A frame with a packet to our host."""
    return IP + udp(PEER, GATEWAY, octets, ports=(1, 4000))


class Pppoe:
    """A session, number 1, and its peer."""

    def __init__(self) -> None:
        self.lab = self.make()

    def make(self) -> Lab:
        return Lab()

    async def open(self, *, fast: bool = False, **more: Any) -> None:
        backend = await self.lab.open(**more)
        if fast:
            backend.follow_core(True)

    def session(self, mppe: Mppe, **more: Any) -> EbpfFlow:
        return self.lab.add(1, mppe=mppe, **more)

    def up(self, ppp: bytes) -> None:
        """The peer sends a frame."""
        self.lab.raw.send(frame(1, ppp))

    def take(self) -> bytes:
        """The next frame of data, or CCP, for the peer."""
        while True:
            found = self.lab.raw.recv(65536)
            if found[:18] == THEIRS + OURS + SESSION + b"\0\1":
                return found[20 : 20 + int.from_bytes(found[18:20], "big")]

    def control(self) -> Sized:
        """What npppyd has got that is no data."""
        return self.lab.control

    def pump(self, mppe: Mppe) -> Any:
        return Subscriber(self.lab.subscriber, 1, 1400, mppe)


class L2tp(Pppoe):
    lab: L2tpLab

    def make(self) -> Lab:
        self.numbers = L2tpSequence()
        self.sent = 0
        return L2tpLab()

    async def open(self, **more: Any) -> None:
        await self.lab.open(**more)

    def session(self, mppe: Mppe, **more: Any) -> EbpfFlow:
        return self.lab.call(mppe=mppe, sequence=self.numbers, **more)

    def up(self, ppp: bytes) -> None:
        self.lab.up(ppp, self.sent & 0xFFFF)
        self.sent += 1

    def take(self) -> bytes:
        return ebpf_l2tp.unpack(self.lab.client.recv(65536)).ppp

    def control(self) -> Sized:
        return self.lab.messages

    def pump(self, mppe: Mppe) -> Any:
        with self.lab.subscriber:
            # No router solicitations, which are Python's.
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        return ebpf_l2tp.Peer(self.lab, 1400, sequenced=True, mppe=mppe)


class Pptp(Pppoe):
    lab: PptpLab

    def make(self) -> Lab:
        self.numbers = PptpSequence()
        self.sent = 0
        return PptpLab()

    async def open(self, **more: Any) -> None:
        await self.lab.open(**more)

    def session(self, mppe: Mppe, **more: Any) -> EbpfFlow:
        return self.lab.call(mppe=mppe, sequence=self.numbers, **more)

    def up(self, ppp: bytes) -> None:
        self.lab.up(ppp, self.sent)
        self.sent += 1

    def take(self) -> bytes:
        while True:
            found = ebpf_pptp.unpack(self.lab.client.recv(65536)[20:])
            if found.sequence is not None:
                return found.ppp

    def control(self) -> Sized:
        return self.lab.packets

    def pump(self, mppe: Mppe) -> Any:
        return ebpf_pptp.Peer(self.lab, 1400, mppe)


@pytest.fixture(params=[Pppoe, L2tp, Pptp], ids=["PPPoE", "L2TP", "PPTP"])
def carrier(request: pytest.FixtureRequest) -> Iterator[Pppoe]:
    made: Pppoe = request.param()
    made.lab.raw.settimeout(60)
    yield made
    made.lab.close()


@pytest.fixture
def pptp() -> Iterator[Pptp]:
    """Where what does not depend on the carrier is tested."""
    made = Pptp()
    yield made
    made.lab.close()


@pytest.fixture
def here(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A host of our own, that subscribers speak with."""
    carrier: Pppoe = request.getfixturevalue("pptp" if "pptp" in request.fixturenames else "carrier")
    made = carrier.lab.home.socket(socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
    made.bind((GATEWAY, 4000))
    made.settimeout(60)
    yield made
    made.close()


@pytest.fixture
def own_queues(carrier: Pppoe, tmp_path: Path) -> Iterator[None]:
    """Each processor sends by a queue of its own."""
    with sysfs(tmp_path):
        yield


async def received(sock: socket.socket) -> bytes:
    return await asyncio.to_thread(sock.recv, 65536)


async def down(carrier: Pppoe, mppe: Mppe) -> bytes:
    """The next frame for the peer, that must be encrypted, in the clear."""
    ppp = await asyncio.to_thread(carrier.take)
    assert ppp[:2] == MPPE
    plain = mppe.receive.decrypt(ppp[2:])
    assert plain is not None
    return plain


def counts(lab: Lab) -> Callable[[str], int]:
    """Packets so far, by the name of the counter."""
    assert lab.backend is not None
    totals = lab.backend.maps.totals()
    return lambda name: totals[name][0]


def calm(flow: EbpfFlow) -> None:
    """It was long ago that something could not be decrypted, or could."""
    for name in ("fail_ns", "decrypted_ns"):
        at = flow.slot * layout.STATS.size + layout.STATS.offsets[name]
        flow._maps._stats[at : at + 8] = bytes(8)


def same(ours: Mppe, theirs: Mppe) -> bool:
    """Whether both sides are at one place of the row of keys, both ways, after the kernel has given them back."""
    return here_sends(ours, theirs) and ours.receive.place[:2] == (theirs.send.key, theirs.send.count)


def here_sends(ours: Mppe, theirs: Mppe) -> bool:
    """The same of the way down, on which some are left out."""
    key, number = theirs.receive.place[:2]
    for _ in range(SKIPPED):
        key = next_key(ours.send.strength, ours.send.start, key)
    return (ours.send.key, ours.send.count) == (key, number + SKIPPED & 0xFFF)


def one_queue(name: str) -> None:
    """What is sent to an interface it takes in by one queue, and so in its order."""
    channels = bytearray(36)
    address = ctypes.addressof(ctypes.c_char.from_buffer(channels))
    with socket.socket() as any_socket:
        for command in (0x3C, 0x3D):  # ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS
            struct.pack_into("=I", channels, 0, command)
            fcntl.ioctl(any_socket, 0x8946, struct.pack("16sP16x", name.encode(), address))  # SIOCETHTOOL
            struct.pack_into("=I", channels, 20, 1)


class TestCarried:
    @pytest.mark.parametrize("bits", [128, 56, 40])
    async def test_both_ways(self, carrier: Pppoe, here: socket.socket, bits: int) -> None:
        """By the kernel alone; in the end the keys are where they must be."""
        await carrier.open()
        ours, theirs = keys(bits)
        flow = carrier.session(ours, ingress_filter=True)
        assert flow.carried
        assert ours.send.inject is not None
        sizes = (0, 1, 2, 19, 35, 36, 512, 1371, 1372)
        for number, size in enumerate(sizes):
            carrier.up(theirs.send.encrypt(data(bytes([number]) * size)))
            assert await received(here) == bytes([number]) * size
        for number, size in enumerate(sizes):
            here.sendto(bytes([number]) * size, (PEER, 1))
            plain = await down(carrier, theirs)
            assert (plain[:2], plain[30:]) == (IP, bytes([number]) * size)
            assert plain[14:22] == ip_address(GATEWAY).packed + ip_address(PEER).packed
            assert words(plain[2:22]) == 0xFFFF
        octets = sum(28 + size for size in sizes)
        assert flow.counters() == (octets, len(sizes), 0, octets, len(sizes), 0)
        assert (carrier.lab.seen(), carrier.lab.decrypted, carrier.lab.undecrypted) == (0, 0, 0)
        flow.close()
        assert (ours.send.count, ours.receive.place.number) == (len(sizes) + SKIPPED, len(sizes))
        assert same(ours, theirs)
        assert (ours.send.inject, ours.receive.shared) == (None, None)

    async def test_two_strengths(self, pptp: Pptp, here: socket.socket) -> None:
        """Each way has its own."""
        await pptp.open()
        ours = Mppe.begin(Keys(ONE, OTHER), Mode(128, False), Mode(40, False))
        theirs = Mppe.begin(Keys(OTHER, ONE), Mode(40, False), Mode(128, False))
        flow = pptp.session(ours)
        for _ in range(3):
            pptp.up(theirs.send.encrypt(data(b"up")))
            assert await received(here) == b"up"
            here.sendto(b"down", (PEER, 1))
            assert (await down(pptp, theirs))[-4:] == b"down"
        flow.close()
        assert same(ours, theirs)

    async def test_header(self, pptp: Pptp, here: socket.socket) -> None:
        """Each packet is flushed and encrypted, and its count goes round."""
        await pptp.open()
        ours, theirs = keys()
        for _ in range(4094):
            ours.send.encrypt(data(b""))
            theirs.send.encrypt(data(b""))
        ours.receive.place = ours.receive.place._replace(key=theirs.send.key, number=4094)
        flow = pptp.session(ours)
        found = []
        for number in range(4):
            here.sendto(b"down", (PEER, 1))
            found.append(await asyncio.to_thread(pptp.take))
            pptp.up(theirs.send.encrypt(data(bytes([number]))))
            assert await received(here) == bytes([number])
        assert [each[:4].hex() for each in found] == ["00fd9ffe", "00fd9fff", "00fd9000", "00fd9001"]
        flow.close()
        assert (ours.send.count, ours.receive.place.number) == (2 + SKIPPED, 2)

    async def test_ipv6(self, carrier: Pppoe) -> None:
        await carrier.open()
        lab = carrier.lab
        for name in ("all", "default", "lo", "npx0"):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")
        network = IPv6Network("2001:db8:99::/64")
        ours, theirs = keys()
        flow = carrier.session(ours, networks6=((network.network_address.packed, 64),), ingress_filter=True)
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
        carrier.up(theirs.send.encrypt(IP6 + packet))
        assert await received(here) == b"up"
        here.sendto(b"down", ("2001:db8:99::7", 1))
        plain = await down(carrier, theirs)
        assert (plain[:2], plain[-4:]) == (IP6, b"down")
        assert flow.counters()[1:5:3] == (1, 1)
        here.close()

    @pytest.mark.parametrize("fast", [False, True], ids=["stack", "fast"])
    @pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
    async def test_tcp(self, carrier: Pppoe, up: bool, fast: bool) -> None:
        """In bulk: all of it arrives, encrypted with every key in its turn, and Python sees none of it."""
        lab = carrier.lab
        with lab.world:
            # Else checksums that it leaves to its NIC keep packets from the fast way.
            ethtool("core1", 0x17, 0)
        await carrier.open(fast=fast)
        ours, theirs = keys()
        flow = carrier.session(ours, ingress_filter=True, mss_adjust=True, fast=fast, mtu=1360, mru=1360)
        peer = lab.pump = carrier.pump(theirs)
        size = await lab.transfer(up=up)
        assert all(words(packet[:20]) == tcp_sum(packet) == 0xFFFF for packet in peer.received)
        count = counts(lab)
        assert (count("FAST_UP") > count("STACK_UP")) is fast
        assert (count("FAST_DOWN") > count("STACK_DOWN")) is fast
        counters = flow.counters()
        assert (counters.in_packets if up else counters.out_packets) > size / 1320
        assert (lab.seen(), lab.decrypted, lab.undecrypted, count("TX_FAIL")) == (0, 0, 0, 0)


class TestOutOfStep:
    async def test_small_gap(self, pptp: Pptp, here: socket.socket) -> None:
        """The kernel catches up, takes what comes late once, and nothing twice."""
        await pptp.open()
        ours, theirs = keys()
        flow = pptp.session(ours)
        packets = [theirs.send.encrypt(data(number.to_bytes(2, "big"))) for number in range(202)]
        for number in (0, 200, 120, 150, 201):
            pptp.up(packets[number])
            assert int.from_bytes(await received(here), "big") == number
        for number in (120, 150, 130, 201, 0):
            pptp.up(packets[number])
        await until(lambda: counts(pptp.lab)("DROP_LATE") == 5)
        assert flow.counters()[1:3] == (5, 5)
        assert (pptp.lab.taken, pptp.lab.decrypted) == (0, 0)
        flow.close()
        place = ours.receive.place
        assert place[:2] == (theirs.send.key, 202)
        # The rest of those that were skipped.
        assert place[3:] == (151, 200)

    @pytest.mark.parametrize("gap", [256, 300, 2000, 2100, 4000, 5000])
    async def test_large_gap(self, pptp: Pptp, here: socket.socket, gap: int) -> None:
        """It is Python's to catch up, and the kernel goes on from there."""
        await pptp.open()
        ours, theirs = keys()
        flow = pptp.session(ours)
        pptp.up(theirs.send.encrypt(data(b"first")))
        assert await received(here) == b"first"
        for _ in range(gap):
            theirs.send.encrypt(data(b"lost"))
        # It takes some time to lose so many.
        calm(flow)
        pptp.up(theirs.send.encrypt(data(b"after")))
        assert await received(here) == b"after"
        assert (pptp.lab.taken, pptp.lab.decrypted) == (1, 1)
        for number in range(5):
            pptp.up(theirs.send.encrypt(data(bytes([number]))))
            assert await received(here) == bytes([number])
        assert (pptp.lab.taken, pptp.lab.decrypted, pptp.lab.undecrypted) == (1, 1, 0)
        assert (flow.by_python().in_packets, flow.counters().in_packets) == (1, 7)
        flow.close()
        assert ours.receive.place[:2] == (theirs.send.key, theirs.send.count)

    async def test_forged(self, carrier: Pppoe, here: socket.socket) -> None:
        """What is no packet in the clear moves no key, however far ahead it says to be."""
        await carrier.open()
        ours, theirs = keys()
        flow = carrier.session(ours)
        for ahead in (0, 1, 7, 100, 255, 2047):
            calm(flow)
            carrier.up(MPPE + (0x9000 | (theirs.send.count + ahead & 0xFFF)).to_bytes(2, "big") + bytes(range(60)))
            calm(flow)
            carrier.up(theirs.send.encrypt(data(bytes([ahead & 0xFF]))))
            assert await received(here) == bytes([ahead & 0xFF])
        assert carrier.lab.decrypted == 0
        assert flow.counters().in_packets == 6
        flow.close()
        assert ours.receive.place[:2] == (theirs.send.key, 6)

    async def test_flags(self, carrier: Pppoe) -> None:
        """Without both there is no such packet in stateless mode: PPP may say what to do."""
        await carrier.open()
        ours, _ = keys()
        flow = carrier.session(ours)
        for number, flags in enumerate((0x1000, 0x8000, 0x0000), 1):
            calm(flow)
            carrier.up(MPPE + flags.to_bytes(2, "big") + bytes(60))
            await until(lambda number=number: carrier.lab.undecrypted == number)

    async def test_few_reach_python(self, pptp: Pptp, here: socket.socket) -> None:
        """Whatever somebody sends who is not the peer."""
        await pptp.open()
        ours, theirs = keys()
        flow = pptp.session(ours)
        began = time.monotonic()
        for number in range(200):
            pptp.up(MPPE + (0x9000 | 1000 + number).to_bytes(2, "big") + bytes(60))
        pptp.up(theirs.send.encrypt(data(b"good")))
        assert await received(here) == b"good"
        took = time.monotonic() - began
        await until(lambda: pptp.lab.undecrypted + flow.counters().in_errors == 200)
        assert 1 <= pptp.lab.undecrypted <= 2 + took / 0.01

    async def test_clear(self, carrier: Pppoe, here: socket.socket) -> None:
        """Nothing passes in the clear, with a Protocol field of two octets or one; control does."""
        await carrier.open()
        ours, theirs = keys()
        flow = carrier.session(ours)
        carrier.up(data(b"clear"))
        # PPPoE has no other (RFC 2516 section 7).
        carrier.up(data(b"clear")[isinstance(carrier, L2tp | Pptp) :])
        carrier.up(CCP + b"\x0e\x01\x00\x04")
        carrier.up(theirs.send.encrypt(data(b"good")))
        assert await received(here) == b"good"
        assert counts(carrier.lab)("DROP_CLEAR") == 2
        assert flow.counters()[1:3] == (1, 2)
        await until(lambda: len(carrier.control()) == 1)
        assert carrier.lab.decrypted == 0


class TestPolice:
    @pytest.mark.parametrize("by", ["kernel", "python", "nobody else"])
    async def test_while_up(self, carrier: Pppoe, here: socket.socket, by: str) -> None:
        """What is charged is the packet that is encrypted, whoever encrypts it."""
        await carrier.open()
        ours, theirs = keys()
        flow = carrier.session(ours, offload=by != "nobody else")
        if by == "python":
            assert flow.to_user()
        # So much as two packets have, and one.
        for count, limits in enumerate(((None, None), (Police(1, 2060),) * 2, (None, Police(1, 1030))), 1):
            flow.police(*limits)
            for _ in range(2):
                carrier.up(theirs.send.encrypt(data(bytes(1000))))
                here.sendto(bytes(1000), (PEER, 1))
            await until(lambda n=2 * count: flow.counters().in_packets == n == sum(flow.counters()[4:]))
        assert flow.counters() == Counters(6 * 1028, 6, 0, 5 * 1028, 5, 1)


class TestMoves:
    async def test_to_user_and_back(self, carrier: Pppoe, here: socket.socket) -> None:
        """The keys stay in the kernel: Python decrypts with those, and what it sends the kernel encrypts."""
        await carrier.open()
        ours, theirs = keys()
        flow = carrier.session(ours)
        for number in range(6):
            assert (flow.to_user if number % 2 else flow.to_ebpf)()
            for each in range(3):
                carrier.up(theirs.send.encrypt(data(bytes([number, each]))))
                assert await received(here) == bytes([number, each])
                here.sendto(bytes([number, each]), (PEER, 1))
                assert (await down(carrier, theirs))[-2:] == bytes([number, each])
        assert (carrier.lab.decrypted, carrier.lab.undecrypted) == (9, 0)
        assert flow.by_python()[1:5:3] == (9, 9)
        assert flow.counters()[1:5:3] == (18, 18)
        flow.close()
        assert same(ours, theirs)

    async def test_reopened(self, carrier: Pppoe, here: socket.socket) -> None:
        """Python goes on where the kernel stopped, and the kernel where Python did."""
        await carrier.open()
        ours, theirs = keys()
        lost = theirs.send.encrypt(data(b"late"))
        for number in range(3):
            flow = carrier.session(ours)
            carrier.up(theirs.send.encrypt(data(b"kernel")))
            assert await received(here) == b"kernel"
            here.sendto(b"kernel", (PEER, 1))
            assert (await down(carrier, theirs))[-6:] == b"kernel"
            flow.close()
            assert same(ours, theirs)
            flow = carrier.session(ours, offload=False)
            assert not flow.carried
            carrier.up(theirs.send.encrypt(data(b"python")))
            assert await received(here) == b"python"
            here.sendto(b"python", (PEER, 1))
            assert (await down(carrier, theirs))[-6:] == b"python"
            flow.close()
            assert carrier.lab.decrypted == number + 1
        # What was skipped at first is remembered all the time.
        carrier.session(ours)
        carrier.up(lost)
        assert await received(here) == b"late"
        assert carrier.lab.decrypted == 3

    @pytest.mark.usefixtures("own_queues")
    async def test_under_traffic(self, carrier: Pppoe, here: socket.socket) -> None:
        """Down, by all processors and Python: every count in its order, and none twice."""
        await carrier.open()
        ours, theirs = keys()
        flow = carrier.session(ours)
        # Without, sub0 does not use NAPI, and each processor would take in what it has sent.
        ethtool("acc0", 0x17, 0)
        with carrier.lab.subscriber:
            one_queue("sub0")
        found: list[bytes] = []
        processors = sorted(os.sched_getaffinity(0))
        sent = [0] * len(processors)
        stop = threading.Event()

        def take() -> None:
            while True:
                ppp = carrier.take()
                plain = theirs.receive.decrypt(ppp[2:])
                assert plain is not None
                if plain[30:] == b"last":
                    return
                found.append(ppp)

        def send(number: int) -> None:
            # Of this thread.
            os.sched_setaffinity(0, {processors[number]})
            while not stop.is_set():
                if sum(sent) - len(found) < 100:
                    sent[number] += 1
                    here.sendto(b"data", (PEER, 1))
                else:
                    time.sleep(0)

        taking = threading.Thread(target=take)
        sending = [threading.Thread(target=send, args=(number,)) for number in range(len(processors))]
        for thread in (taking, *sending):
            thread.start()
        end = time.monotonic() + 1.0
        turns = 0
        while turns < 100 or time.monotonic() < end:
            # As many as Python carries in between.
            until_sent = sum(sent) + 5
            assert (flow.to_ebpf if turns % 2 else flow.to_user)()
            # No limit that takes anything.
            flow.police(None, (None, Police(10**9 + turns, 10**8), Police(10**9, 10**8))[turns % 3])
            turns += 1
            await until(lambda until_sent=until_sent: sum(sent) > until_sent)
        stop.set()
        for thread in sending:
            await asyncio.to_thread(thread.join)
        await until(lambda: len(found) == sum(sent))
        here.sendto(b"last", (PEER, 1))
        await asyncio.to_thread(taking.join)
        assert [int.from_bytes(ppp[2:4], "big") for ppp in found] == [0x9000 | at & 0xFFF for at in range(len(found))]
        assert flow.by_python().out_packets > 0
        assert flow.counters().out_packets == len(found) + 1
        flow.close()
        assert here_sends(ours, theirs)


class TestEnd:
    async def test_leaves_nothing(self, carrier: Pppoe) -> None:
        await carrier.open()
        backend = carrier.lab.backend
        assert backend is not None
        ours, _ = keys()
        flow = carrier.session(ours)
        assert flow.entries().count("mppe") == len(list(backend.maps.mppe.keys())) == 2
        flow.close()
        assert flow.entries() == ()
        assert list(backend.maps.mppe.keys()) == []

    async def test_conflict(self, pptp: Pptp) -> None:
        """One more call of the same id: Python has it, with its keys, and the other one keeps its own."""
        await pptp.open()
        backend = pptp.lab.backend
        assert backend is not None
        ours, _ = keys()
        pptp.session(ours)
        other, _ = keys(40)
        second = pptp.lab.call(1, "10.0.0.3", mppe=other)
        assert (second.carried, other.send.inject, other.receive.shared) == (False, None, None)
        assert len(list(backend.maps.mppe.keys())) == 2
        with pytest.raises(ConflictError):
            pptp.session(keys()[0])

    async def test_given_up_half_way(
        self, carrier: Pppoe, here: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was not entered whole may have been found: no key that has been used is used again."""
        await carrier.open()
        backend = carrier.lab.backend
        assert backend is not None
        sessions, put = backend.maps.sessions, Map.put
        used: list[bytes] = []

        def fail(self: Map, key: bytes, value: bytes, flags: int = 0) -> None:
            if self.fd != sessions.fd:
                put(self, key, value, flags)
                return
            for _ in range(3):
                here.sendto(b"kernel", (PEER, 1))
                used.append(carrier.take())
            raise BpfError("add an entry", errno.ENOMEM)

        ours, theirs = keys()
        with monkeypatch.context() as patch:
            patch.setattr(Map, "put", fail)
            flow = carrier.session(ours)
        assert not flow.carried
        assert list(backend.maps.mppe.keys()) == []
        for ppp in used:
            assert theirs.receive.decrypt(ppp[2:]) is not None
        here.sendto(b"python", (PEER, 1))
        assert (await down(carrier, theirs))[-6:] == b"python"

    async def test_written_by_nobody_behind(self, pptp: Pptp) -> None:
        """Python was slow with a packet, and the kernel has gone on: its place stays."""
        await pptp.open()
        ours, theirs = keys()
        flow = pptp.session(ours)
        shared = ours.receive.shared
        assert shared is not None
        behind = shared.read()
        for number in range(3):
            pptp.up(theirs.send.encrypt(data(b"up")))
            await until(lambda number=number: flow.counters().in_packets == number + 1)
        shared.write(behind._replace(number=1), behind)
        assert shared.read().number == 3
        pptp.up(theirs.send.encrypt(data(b"up")))
        await until(lambda: flow.counters().in_packets == 4)
        assert pptp.lab.taken == 0
