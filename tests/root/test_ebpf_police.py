"""Back end ebpf: limits of a rate, on two processors, by the kernel and by Python."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Sequence

import pytest

from npppy.pipex.base import Police
from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.libbpf import BpfError
from tests.root.ebpf_lab import GATEWAY, IP, PEER, Lab, frame, until
from tests.root.ebpf_traffic import FAR, Sender, Sink, dropped, from_world
from tests.unit.ippackets import udp

pytestmark = pytest.mark.root

#: Seconds of traffic, and how often frames are sent in one.
SECONDS = 10
TIMES = 80
#: Octets of a packet.
SIZE = 1000
#: A bucket has what comes in so many seconds, for which senders may sleep.
BURST = 1.0
#: Of each session: its limit in bit/s, who carries it, and how many frames are sent at a time, more than may pass.
LIMITS = (
    (100_000, "kernel", 1),
    (10_000_000, "kernel", 12),
    (200_000_000, "kernel", 220),
    (100_000, "python", 1),
    (10_000_000, "python", 12),
    # Every second in other hands.
    (10_000_000, "both", 12),
)


@pytest.fixture(autouse=True)
def hosts_beyond(lab: Lab) -> None:
    """There is a network behind the next hop."""
    lab.far()


class Passed:
    """What has passed of a session one way, by the clock of the packets."""

    def __init__(self) -> None:
        self.octets = 0
        self.first = self.last = 0.0

    def take(self, at: float) -> None:
        self.first = self.first or at
        self.last = at
        self.octets += SIZE


def receive(sink: Sink, at: int, passed: list[Passed], done: threading.Event) -> None:
    """The session's number is in the octet at *at*."""
    while select.select([sink.sock], [], [], 0.2)[0] or not done.is_set():
        if sink.read():
            for number, stamp in zip(*sink.columns(at, 1), sink.stamps(), strict=True):
                passed[number].take(stamp)


def send(processor: int, senders: tuple[Sender, ...], count: int) -> list[float]:
    """So often, and as often as is missing where this thread has slept too long.  Returns when it was."""
    os.sched_setaffinity(0, {processor})
    start = time.monotonic()
    times = []
    for number in range(count):
        time.sleep(max(0.0, start + number / TIMES - time.monotonic()))
        times.append(time.monotonic())
        for sender in senders:
            sender.send()
    return times


def passing(limit: Police, times: Sequence[float], count: int) -> int:
    """How many octets of so many packets at each of these times pass."""
    passed, left, last = 0, float(limit.burst), times[0]
    for at in times:
        left = min(limit.burst, left + limit.rate * (at - last))
        more = min(count, int(left // SIZE)) * SIZE
        passed, left, last = passed + more, left - more, at
    return passed


def police(rate: int) -> Police:
    return Police(rate // 8, max(int(rate / 8 * BURST), 2 * SIZE))


async def test_rate(lab: Lab) -> None:
    """Rate x time + burst, within 5 %: up and down at once."""
    await lab.open()
    lab.raw.close()
    ups, downs, flows = [], [], []
    for number, (rate, carrier, count) in enumerate(LIMITS):
        limit, address = police(rate), f"10.0.0.{number + 2}"
        flow = lab.add(number + 1, address, police_up=limit, police_down=limit, offload=carrier != "python")
        assert flow.carried == (carrier != "python")
        flows.append(flow)
        data = bytes((number,)) * (SIZE - 28)
        ups += [frame(number + 1, IP + udp(address, FAR, data))] * count
        downs += [from_world(udp(FAR, address, data))] * count
    senders = (Sender(lab.subscriber, "sub0", ups), Sender(lab.world, "core1", downs))
    sinks = (
        Sink(lab.world, "core1", 0x0800, SIZE + 14, udp=True, stamps=True),
        Sink(lab.subscriber, "sub0", 0x8864, SIZE + 22, stamps=True),
    )
    passed = [[Passed() for _ in LIMITS] for _ in sinks]
    done = threading.Event()
    receiving = [
        asyncio.create_task(asyncio.to_thread(receive, sink, at, way, done))
        for sink, at, way in zip(sinks, (42, 50), passed, strict=True)
    ]
    count = SECONDS * TIMES
    sending = [
        asyncio.create_task(asyncio.to_thread(send, processor, senders, count))
        for processor in sorted(os.sched_getaffinity(0))[:2]
    ]
    while (await asyncio.wait(sending, timeout=1))[1]:
        moving = flows[-1]
        assert moving.to_user() if moving.carried else moving.to_ebpf()
    times = sorted(itertools.chain(*await asyncio.gather(*sending)))
    done.set()
    await asyncio.gather(*receiving)
    for way, name in zip(passed, ("up", "down"), strict=True):
        for (rate, carrier, count), got in zip(LIMITS, way, strict=True):
            limit, what = police(rate), f"{rate} bit/s {name}, {carrier}"
            assert got.octets <= 1.05 * (limit.rate * (got.last - got.first) + limit.burst), what
            # A machine that has no time for it sends less than may pass.
            assert got.octets >= 0.95 * passing(limit, times, count), what
    counted = [flow.counters() for flow in flows]
    for errors, way in (
        ([counters.in_errors for counters in counted], passed[0]),
        ([counters.out_errors for counters in counted], passed[1]),
    ):
        for (_, _, count), wrong, got in zip(LIMITS, errors, way, strict=True):
            assert wrong or got.octets == len(times) * count * SIZE
    # Two processors count the packets of one session, and what they count is there, if a link has had room for it.
    for counts, way, links in zip(
        ([counters.in_packets for counters in counted], [counters.out_packets for counters in counted]),
        passed,
        (("npx1", "core0"), ("acc0",)),
        strict=True,
    ):
        missing = [count - got.octets // SIZE for count, got in zip(counts, way, strict=True)]
        assert min(missing) >= 0
        assert sum(missing) <= dropped(*links)
    for end in (*senders, *sinks):
        assert not isinstance(end, Sink) or end.lost() == 0
        end.close()


@pytest.mark.parametrize("user", [False, True], ids=["kernel", "python"])
async def test_change(lab: Lab, user: bool) -> None:
    """What is as it was goes on with its tokens, and what cannot be changes nothing."""
    backend = await lab.open()
    one, other = Police(1, 3000), Police(2, 5000)
    flow = lab.add(1, police_up=one, police_down=one)
    maps, slot = backend.maps, flow.slot

    def buckets() -> list[tuple[int, ...]]:
        """Rate, burst, tokens and stamp."""
        if not user:
            return [maps.bucket(slot, way)[:4] for way in (0, 1)]
        return [(b.rate, b.burst, b.tokens, b.last) if b else () for b in (flow._police_up, flow._police_down)]

    receiver = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
    if user:
        assert flow.to_user()
    lab.raw.send(frame(1, IP + udp(PEER, GATEWAY, bytes(1000), ports=(1, 4000))))
    await until(lambda: flow.counters().in_packets == 1)
    before, blocks = buckets(), flow.blocks
    flow.police(one, one)
    with pytest.raises(BpfError):
        flow.police(other, Police(0, 1500))
    assert (buckets(), flow.blocks) == (before, blocks)
    flow.police(one, other)
    assert buckets()[0] == before[0]
    assert buckets()[1][:2] == other
    flow.police(None, other)
    assert flow.blocks == blocks & ~layout.POLICE_UP
    receiver.close()
