"""Back end ebpf: sessions by the thousand that come and go under traffic, and packets by the hundred thousand."""

from __future__ import annotations

import asyncio
import gc
import operator
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque

import pytest

from npppy.pipex.base import Counters, FlowSpec, Police
from npppy.pipex.ebpf.flow import EbpfFlow
from npppy.pipex.ebpf.maps import PipexMaps
from npppy.port import Port
from npppy.pppoe.call import PppoeEncap
from tests.effort import THOROUGH
from tests.root.ebpf_lab import CORE, IP, OURS, PEER, SESSION, THEIRS, Lab, frame, until
from tests.root.ebpf_traffic import FAR, Sender, Sink, dropped, from_world, hop, to_world
from tests.unit.ippackets import udp

pytestmark = pytest.mark.root

#: The long run (make test-full) does so many times more.
MORE = 10 if THOROUGH else 1


@pytest.fixture(autouse=True)
def hosts_beyond(lab: Lab) -> None:
    """There is a network behind the next hop."""
    lab.far()


async def opened(lab: Lab, mode: str, capacity: int) -> None:
    backend = await lab.open(capacity)
    if mode == "fast":
        backend.attach_core("core0", socket.if_nametoindex("core0"), CORE)


def generation(maps: PipexMaps, flow: EbpfFlow) -> bytes:
    """Of the session that the slot of a flow has."""
    return maps.session(flow.slot)[:4]


#: Sessions that there are at a time.  Each second address is one's, from 10.0.1.0 on.
SESSIONS = 20000
FIRST = 0x100
#: Octets of a packet: it carries the number of who holds its address, that address, and whether its session has ended.
SIZE = 64
#: Where these are, and the low 16 bits of the address, in a frame to the world, and in one of a session.
UP, UP_ADDRESS = 14 + 28, 14 + 14
DOWN, DOWN_ADDRESS = 22 + 28, 22 + 18


class Tenant:
    """An address, and whoever holds it: one session after the other, each of another MAC address and SESSION_ID."""

    __slots__ = ("address", "at", "flow", "low", "number")

    def __init__(self, address: int, at: int) -> None:
        self.address = address
        #: The low 16 bits of the address that packets have; of some sessions it belongs to the network behind the peer.
        self.low = address & 0xFFFF | (address % 6 == 0)
        #: Its frames among those that are sent.
        self.at = at
        #: Of the session, or of the next one.
        self.number = 0
        self.flow: EbpfFlow | None = None

    def mac(self) -> bytes:
        return b"\x02\0\1" + struct.pack(">BH", self.number, self.low)

    def session(self) -> int:
        return self.number << 8 | self.low & 0xFF

    def key(self) -> tuple[int, int, int]:
        return self.number, self.low >> 8, self.low & 0xFF


class Churn:
    """Sessions that come and go, senders on two processors, and a sink for each way."""

    def __init__(self, lab: Lab, fast: bool) -> None:
        assert lab.backend is not None
        self.backend = lab.backend
        self._lab = lab
        self._fast = fast
        self._rng = random.Random(7)
        order = list(range(SESSIONS))
        self._rng.shuffle(order)
        self.tenants = [Tenant(0x0A000000 + FIRST + 2 * number, at) for number, at in enumerate(order)]
        ups, downs = [b""] * SESSIONS, [b""] * SESSIONS
        for tenant in self.tenants:
            address = f"10.0.{tenant.low >> 8}.{tenant.low & 0xFF}"
            data = struct.pack(">BH", 0, tenant.low).ljust(SIZE - 28, b"\0")
            ups[tenant.at] = frame(tenant.session(), IP + udp(address, FAR, data), source=tenant.mac())
            downs[tenant.at] = from_world(udp(FAR, address, data))
        self._up, self._down = Sender(lab.subscriber, "sub0", ups), Sender(lab.world, "core1", downs)
        self.up = Sink(lab.world, "core1", 0x0800, self._down.size, udp=True)
        self.down = Sink(lab.subscriber, "sub0", 0x8864, self._up.size)
        #: Frames that were sent, up and down.
        self.sent = [0, 0]
        #: Those that came, by Tenant.key().
        self.got: tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]] = (Counter(), Counter())
        #: What sessions had counted when they had ended, in packets.
        self.ended: dict[tuple[int, ...], tuple[int, int]] = {}
        #: Of that, what Python has carried, and what a program had counted a little later.
        self.python = self.late = 0
        self.wrong: list[str] = []
        #: Sessions that have ended, and what they had counted.
        self._resting: deque[tuple[tuple[int, ...], EbpfFlow, Counters]] = deque()
        self._stop = False
        self._lock = threading.Lock()

    def close(self) -> None:
        for end in (self._up, self._down, self.up, self.down):
            end.close()

    def forget(self) -> None:
        """All that has grown."""
        self.got = (Counter(), Counter())
        self.ended = {}

    # Sessions.

    def begin(self, tenant: Tenant) -> None:
        header = tenant.mac() + OURS + SESSION + struct.pack(">HH", tenant.session(), SIZE + 2)
        send, some = self._lab.access.send, tenant.address % 6
        prefix6 = b"\x20\x01\x0d\xb8" + struct.pack(">H10x", tenant.low)
        spec = FlowSpec(
            session=tenant.number << 16 | tenant.low,
            domain=0,
            interface="tun0",
            address=tenant.address,
            prefixlen=31 if some == 0 else 32,
            networks6=((prefix6, 48),) if some == 2 else (),
            mtu=1492,
            mru=1492,
            ingress_filter=True,
            mss_adjust=True,
            send=lambda ppp: send(header + ppp),
            encap=PppoeEncap(Port("acc0"), OURS, tenant.mac(), tenant.session()),
            fast=self._fast,
        )
        flow = tenant.flow = self.backend.add(spec, time.monotonic())
        assert flow.carried
        octets, at = self._up.octets, tenant.at * self._up.size
        # First what it says, and then whose it is: it may be sent at any moment.
        octets[at + DOWN] = tenant.number
        octets[at + DOWN + 3] = 0
        octets[at + 6 : at + 12] = tenant.mac()
        octets[at + 16 : at + 18] = tenant.session().to_bytes(2, "big")

    def end(self, tenant: Tenant) -> None:
        flow, tenant.flow = tenant.flow, None
        assert flow is not None
        total = flow.close()
        # What is sent from here on must not pass for that session, nor come to its peer.
        self._up.octets[tenant.at * self._up.size + DOWN + 3] = 1
        self._down.octets[tenant.at * self._down.size + UP] = tenant.number + 1
        self.python += flow.by_python().out_packets
        self._resting.append((tenant.key(), flow, total))
        if len(self._resting) > 100:
            self._look_again()
        tenant.number += 1

    def _look_again(self) -> None:
        """At what has ended: a program that ran meanwhile has counted its packet after that."""
        key, flow, counted = self._resting.popleft()
        late = flow.late()
        assert min(late) >= 0
        total = counted.plus(late)
        self.late += late.in_packets + late.out_packets
        into, out = self.ended[key] = total.in_packets, total.out_packets
        if total != Counters(into * SIZE, into, 0, out * SIZE, out, 0):
            self.wrong.append(f"counters: {total}")

    def end_all(self) -> None:
        for tenant in self.tenants:
            if tenant.flow is not None:
                self.end(tenant)
        while self._resting:
            self._look_again()

    # Traffic.

    def _send(self, processor: int) -> None:
        """All frames, half of them at a time, up and down by turns."""
        os.sched_setaffinity(0, {processor})
        half, count = processor, SESSIONS // 2
        while not self._stop:
            for way, sender in enumerate((self._up, self._down)):
                while self.up.full() or self.down.full():
                    time.sleep(0.001)
                sender.send((half & 1) * count, count)
                with self._lock:
                    self.sent[way] += count
            half += 1

    def _receive(self, done: threading.Event) -> None:
        while select.select([self.up.sock, self.down.sock], [], [], 0.05)[0] or not done.is_set():
            if self.up.read():
                self._check_up(self.up)
            if self.down.read():
                self._check_down(self.down)

    def _check_up(self, up: Sink) -> None:
        number, high, low, ended = up.columns(UP, 4)
        if [high, low] != up.columns(UP_ADDRESS, 2) or any(ended):
            self.wrong.append(f"up: {up.octets.hex()}")
        self.got[0].update(zip(number, high, low, strict=True))

    def _check_down(self, down: Sink) -> None:
        """Who gets it is who holds the address, or has since it was sent."""
        number, high, low = down.columns(3, 3)
        sent, *address = down.columns(DOWN, 3)
        if (
            not [high, low] == address == down.columns(DOWN_ADDRESS, 2)
            or [number, low] != down.columns(16, 2)
            or any(map(operator.lt, number, sent))
        ):
            self.wrong.append(f"down: {down.octets.hex()}")
        self.got[1].update(zip(number, high, low, strict=True))

    async def run(self, changes: int) -> None:
        """End sessions and begin others, at random, while traffic passes."""
        done = threading.Event()
        receiver = asyncio.create_task(asyncio.to_thread(self._receive, done))
        processors = sorted(os.sched_getaffinity(0))[:2]
        senders = [asyncio.create_task(asyncio.to_thread(self._send, number)) for number in processors]
        living, vacant = list(self.tenants), list[Tenant]()
        for number in range(changes):
            more = len(vacant) < 50 or (len(vacant) < 400 and self._rng.random() < 0.5)
            source, target = (living, vacant) if more else (vacant, living)
            at = self._rng.randrange(len(source))
            source[at], source[-1] = source[-1], source[at]
            tenant = source.pop()
            target.append(tenant)
            (self.end if more else self.begin)(tenant)
            if number % 32 == 0:
                await asyncio.sleep(0)
        self._stop = True
        await asyncio.gather(*senders)
        await until(self._seen)
        await until(self._by_python)
        await until(lambda: sum(map(Counter.total, self.got)) + dropped("npx1", "core0", "acc0") == self._counted())
        done.set()
        await receiver

    def carried(self) -> tuple[int, int]:
        """Packets up and down, as the programs counted them."""
        totals = self.backend.maps.totals()
        return totals["STACK_UP"][0] + totals["FAST_UP"][0], totals["STACK_DOWN"][0] + totals["FAST_DOWN"][0]

    def _seen(self) -> bool:
        """Whether the programs have seen all that was sent, and what the stack had no room for."""
        return sum(count for count, _ in self.backend.maps.totals().values()) + dropped("npx0") == sum(self.sent)

    def _by_python(self) -> bool:
        """Whether Python has seen all that the tun has: packets for those who were not there."""
        told = self.backend.interfaces["tun0"].unknown
        return told + self.python + self._living() == self._lab.seen() - dropped("tun0")

    def _living(self) -> int:
        return sum(tenant.flow.by_python().out_packets for tenant in self.tenants if tenant.flow)

    def _counted(self) -> int:
        return sum(self.carried()) + self.python + self._living()


@pytest.mark.parametrize(("mode", "changes"), [("stack", 15000), ("fast", 6000)])
async def test_churn(lab: Lab, mode: str, changes: int) -> None:
    """20,000 sessions, and others that take their places, with traffic both ways on two processors."""
    await opened(lab, mode, SESSIONS)
    assert lab.backend is not None
    maps = lab.backend.maps
    # Frames of sessions that are not there are nobody's.
    asyncio.get_running_loop().remove_reader(lab.access)
    lab.raw.close()
    memory = maps.memory()
    churn = Churn(lab, mode == "fast")
    for turn in range(2):
        for tenant in churn.tenants:
            churn.begin(tenant)
        assert maps.used == SESSIONS
        if turn:
            await churn.run(changes * MORE)
        churn.end_all()
        if not turn:
            churn.forget()
            gc.collect()
            blocks, files = sys.getallocatedblocks(), os.listdir("/proc/self/fd")
    # Each packet to and for the right one.
    assert churn.wrong == []
    # The totals are what was sent.
    totals = {name: count for name, (count, _) in maps.totals().items() if count}
    up, down = churn.carried()
    assert totals.keys() <= {"STACK_UP", "STACK_DOWN", "FAST_UP", "FAST_DOWN", "PUNT_UNKNOWN", "PUNT_STALE"}
    assert ("FAST_UP" in totals, "FAST_DOWN" in totals) == (mode == "fast", mode == "fast")
    assert sum(totals.values()) == sum(churn.sent) - dropped("npx0")
    assert lab.seen() == churn.sent[1] - dropped("npx0") - down
    # Those of sessions add up to the totals, but for what Python sent on.
    into, out = map(sum, zip(*churn.ended.values(), strict=True))
    assert (into, out) == (up, down + churn.python)
    assert churn.late <= changes * MORE // 1000
    # Each session has counted what has come, unless a link had no room for it.
    assert churn.got[0].keys() | churn.got[1].keys() <= churn.ended.keys()
    missing = [
        [counts[way] - churn.got[way][key] for key, counts in churn.ended.items()] for way in (0, 1)
    ]
    assert min(map(min, missing)) == 0
    assert list(map(sum, missing)) == [dropped("npx1", "core0"), dropped("acc0")]
    assert churn.up.lost() == churn.down.lost() == 0
    assert min(map(Counter.total, churn.got)) > 5 * changes
    # Nothing is left.
    assert maps.used == 0
    for item in (maps.sessions, maps.hosts4, maps.nets4, maps.nets6):
        assert item.items() == []
    assert not any(any(value[:4]) for _, value in maps.slots.items())
    assert maps.memory() == memory
    churn.forget()
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, EbpfFlow)]
    assert sys.getallocatedblocks() - blocks < SESSIONS // 10
    assert os.listdir("/proc/self/fd") == files
    churn.close()


class Numbered:
    """Frames one way that carry numbers, a few at a time: each must come, once, and as it should be."""

    COUNT = 64

    def __init__(self, sender: Sender, at: int, sink: Sink, expected: bytes, sink_at: int) -> None:
        """*at*: where the number is, of 4 octets; what comes is *expected*, and the number there at *sink_at*."""
        self._sender, self._at = sender, at
        self._sink, self._sink_at = sink, sink_at
        self._expected = bytearray((expected + b"\0") * self.COUNT)
        self.sent = 0

    def send(self) -> None:
        for number, octet in enumerate(self.sent.to_bytes(4, "big")[:3]):
            self._sender.octets[self._at + number :: self._sender.size] = bytes((octet,)) * self.COUNT
        low = self.sent & 0xFF
        self._sender.octets[self._at + 3 :: self._sender.size] = bytes(range(low, low + self.COUNT))
        self._sender.send()

    def receive(self) -> None:
        sink, at, stride = self._sink, self._sink_at, len(self._expected) // self.COUNT
        numbers: list[int] = []
        while len(numbers) < self.COUNT:
            assert select.select([sink.sock], [], [], 10)[0], f"{self.COUNT - len(numbers)} of {self.sent} are lost"
            count = sink.read()
            numbers += [int.from_bytes(number, "big") for number in zip(*sink.columns(at, 4), strict=True)]
            for octet in range(4):
                sink.octets[at + octet : count * stride : stride] = bytes(count)
            assert sink.octets[: count * stride] == self._expected[: count * stride]
        # Some may have overtaken others, which went another way.
        assert sorted(numbers) == list(range(self.sent, self.sent + self.COUNT))
        self.sent += self.COUNT


class BothWays:
    def __init__(self, lab: Lab, size: int) -> None:
        up, down = udp(PEER, FAR, bytes(size - 28)), udp(FAR, PEER, bytes(size - 28))
        self._ends = (
            Sender(lab.subscriber, "sub0", [frame(1, IP + up)] * Numbered.COUNT),
            Sink(lab.world, "core1", 0x0800, size + 14, udp=True),
            Sender(lab.world, "core1", [from_world(down)] * Numbered.COUNT),
            Sink(lab.subscriber, "sub0", 0x8864, size + 22),
        )
        sent_up, got_up, sent_down, got_down = self._ends
        answer = frame(1, IP + hop(down), source=OURS, to=THEIRS)
        self._ways = (
            Numbered(sent_up, 50, got_up, to_world(hop(up)), 42),
            Numbered(sent_down, 42, got_down, answer, 50),
        )

    def run(self, count: int) -> None:
        while self._ways[0].sent < count:
            for way in self._ways:
                way.send()
            for way in self._ways:
                way.receive()

    def close(self) -> None:
        """And nothing more has come."""
        for end in self._ends:
            if isinstance(end, Sink):
                assert end.read() == end.lost() == 0
            end.close()


@pytest.mark.parametrize("mode", ["stack", "fast"])
async def test_none_reaches_python(lab: Lab, mode: str) -> None:
    """Of hundreds of thousands; in the long run of a million each way."""
    await opened(lab, mode, 100)
    loop = asyncio.get_running_loop()
    assert lab.backend is not None
    loop.remove_reader(lab.access)
    lab.raw.close()
    flow = lab.add(1, ingress_filter=True, mss_adjust=True, fast=mode == "fast")
    traffic = BothWays(lab, SIZE)
    count = 100032 * MORE
    await asyncio.to_thread(traffic.run, count)
    traffic.close()
    assert flow.counters() == Counters(count * SIZE, count, 0, count * SIZE, count, 0)
    assert lab.seen() == 0
    # What the daemon's socket would have had, if anybody had fetched it.
    assert lab.access.getsockopt(263, 6, 8) == bytes(8)  # SOL_PACKET, PACKET_STATISTICS


@pytest.mark.parametrize("mode", ["stack", "fast"])
async def test_moves(lab: Lab, mode: str) -> None:
    """From the kernel to Python and back, to another slot, with limits that come and go: no packet notices."""
    await opened(lab, mode, 100)
    assert lab.backend is not None
    maps = lab.backend.maps
    lab.raw.close()
    flow = lab.add(1, ingress_filter=True, mss_adjust=True, fast=mode == "fast")
    traffic = BothWays(lab, SIZE)
    count = 30016 * MORE
    running = asyncio.create_task(asyncio.to_thread(traffic.run, count))
    rng = random.Random(5)
    before, last, moves = Counters(), Counters(), Counter[str]()
    # Those that have ended, of which a program may count something yet.
    resting: deque[EbpfFlow] = deque()
    late = Counters()
    by_python = 0

    def look_again(rest: int) -> None:
        nonlocal late
        while len(resting) > rest:
            late = late.plus(resting.popleft().late())

    def check() -> None:
        nonlocal last
        now = before.plus(flow.counters())
        assert all(new >= old for new, old in zip(now, last, strict=True))
        last = now

    while not running.done():
        move = rng.choice(("user", "ebpf", "ebpf", "police", "again", "mirror"))
        moves[move] += 1
        if move == "user":
            assert flow.to_user()
        elif move == "ebpf":
            assert flow.to_ebpf()
        elif move == "police":
            limits = [rng.choice((None, Police(rng.randrange(10**9, 10**10), 10**8))) for _ in range(2)]
            flow.police(*limits)
        elif move == "mirror":
            flow.mirror(rng.random() < 0.5)
        else:
            check()
            place = flow.slot, generation(maps, flow)
            ended = flow.close()
            check()
            python = flow.by_python()
            resting.append(flow)
            # Nobody else gets its slot before 256 others have come.
            look_again(100)
            before = before.plus(ended)
            flow = lab.add(1, ingress_filter=True, mss_adjust=True, fast=mode == "fast")
            assert flow.carried
            assert place != (flow.slot, generation(maps, flow))
            by_python += python.in_packets + python.out_packets
        for _ in range(rng.randrange(4)):
            check()
            await asyncio.sleep(0)
    await running
    traffic.close()
    look_again(0)
    total = before.plus(flow.counters()).plus(late)
    assert total == Counters(count * SIZE, count, 0, count * SIZE, count, 0)
    assert late.in_packets + late.out_packets <= moves["again"] // 10
    assert min(moves.values()) > 10
    # Some went either way.
    assert 0 < by_python < 2 * count
