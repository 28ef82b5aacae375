"""``blocks``: what each block of pipex costs a packet, and what a session costs in the kernel's maps."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

from npppy.config.model import Interface, Ipcp, Where
from npppy.pipex.base import FlowSpec
from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.libbpf import LOCKED, Map
from npppy.pipex.ebpf.maps import default_pins
from npppy.pipex.ebpf.pins import editions
from npppy.port import Port
from npppy.pppoe.call import PppoeEncap

from .figures import Figure
from .kernel import check_untimed, map_memory
from .lab import OURS, Lab
from .packets import SIZES, WAYS, Bed, Effort, Frames, dial, tell_pairs
from .wire import tcp

#: Those that may be done without, and the ways in which they do anything.
_BLOCKS = {
    "filter": (layout.FILTER, ("up",)),
    "mss": (layout.MSS, WAYS),
    "count": (layout.COUNT, WAYS),
    "idle": (layout.IDLE, WAYS),
    "police": (layout.POLICE_UP | layout.POLICE_DOWN, WAYS),
    "mirror": (layout.MIRROR, WAYS),
}
#: Octets a second that nothing exceeds, and at once.
_UNLIMITED = 10**11, 10**9

_PAGE = mmap.PAGESIZE
_POSITION = struct.Struct("=Q")


def measure(effort: Effort) -> Iterator[Figure]:
    """A packet from NIC to NIC with a block and without it, in turn; then the maps."""
    check_untimed()
    with Lab() as lab, contextlib.ExitStack() as stack:
        daemon = lab.npppyd(users=effort.many, method="pap", pipex="ebpf", forward="fast")
        sessions = dial(lab, daemon, 1)
        bed = Bed(lab, daemon, "fast", stack)
        maps = _Maps(lab, stack)
        frames = Frames(lab, tcp, 40)
        for way in WAYS:
            stream = frames.sessions(way, SIZES[0], sessions)
            bed.wire.load(stream)
            for name, (block, ways) in _BLOCKS.items():
                if way not in ways:
                    continue
                costs = []
                for _ in range(effort.pairs):
                    without, with_it = (1e9 / bed.wire.rate(stream, effort.kernel_time) for _ in maps.each(block))
                    costs.append(with_it - without)
                figure = f"pipex.block.{name}.{way}"
                tell_pairs(figure, costs)
                yield Figure(name=figure, value=statistics.median(costs), unit="ns a packet", better="lower")
        before, capacity = map_memory(daemon.process.pid)
        more = len(dial(lab, daemon, effort.many - 1))
        grown = map_memory(daemon.process.pid)[0] - before
        each = before / capacity + grown / more
        yield Figure(name="pipex.session.memory", value=each, unit="octets of maps", better="lower")
    yield from asyncio.run(_entries(effort.many, effort.pairs))


class _Maps:
    """The maps of npppyd, in which the first session is changed behind its back."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        edition = editions(default_pins(str(lab.socket)))[-1]

        def pinned(name: str) -> Map:
            found = edition.map(name)
            stack.callback(found.close)
            return found

        self._slots = pinned("slots")
        self._events = pinned("events")
        buckets = pinned("buckets")
        for way in (0, 1):
            buckets.put(layout.U32.pack(way), layout.BUCKET.pack(*_UNLIMITED, 0, 0, 0, 0), LOCKED)

    def each(self, block: int) -> Iterator[None]:
        """Once without these blocks, once with them, with all others as they were."""
        key, at = layout.U32.pack(0), layout.SESSION.offsets["blocks"]
        before = self._slots.get(key)
        assert before is not None
        blocks = layout.U32.unpack_from(before, at)[0]
        for changed in (blocks & ~block, blocks | block):
            session = bytearray(before)
            layout.U32.pack_into(session, at, changed)
            self._slots.put(key, bytes(session))
            with _emptied(self._events) if changed & layout.MIRROR else contextlib.nullcontext():
                yield
        self._slots.put(key, before)


@contextlib.contextmanager
def _emptied(ring: Map) -> Iterator[None]:
    """A ring buffer never fills: a thread on another core says again and again that it has read all."""
    done = threading.Event()

    def read() -> None:
        os.sched_setaffinity(0, {OURS})
        while not done.is_set():
            consumer[: _POSITION.size] = producer[: _POSITION.size]

    thread = threading.Thread(target=read)
    with (
        mmap.mmap(ring.fd, _PAGE) as consumer,
        mmap.mmap(ring.fd, _PAGE, prot=mmap.PROT_READ, offset=_PAGE) as producer,
    ):
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


async def _entries(sessions: int, runs: int) -> list[Figure]:
    """Sessions entered into the maps and taken out, by the back end alone: what an event loop is needed for."""
    with Lab() as lab, lab.bng, contextlib.ExitStack() as stack:
        backend = EbpfBackend.open(sessions, None)
        stack.callback(backend.close)
        where = Where("npppd.conf", 1, 1)
        ipcp = Ipcp(name="POOL", where=where)
        line = Interface(name="tun0", where=where, address=IPv4Address("10.64.0.1"), ipcp=ipcp)
        npx = backend.open_interface(line, 1492, ())
        stack.callback(npx.close)
        backend.attach(npx.name, int(npx.address), npx.write, npx.emit)
        stack.callback(backend.detach, npx.name)
        backend.attach_access("eth1", socket.if_nametoindex("eth1"))
        specs = [_spec(number) for number in range(sessions)]
        added, removed = [], []
        for _ in range(runs):
            began = time.thread_time()
            flows = [backend.add(spec, 0.0) for spec in specs]
            between = time.thread_time()
            assert all(flow.carried for flow in flows)
            ended = time.thread_time()
            for flow in flows:
                flow.close()
            added.append(between - began)
            removed.append(time.thread_time() - ended)
    return [
        Figure(name=f"pipex.session.{name}", value=statistics.median(times) / sessions * 1e6, unit="us", better="lower")
        for name, times in (("add", added), ("remove", removed))
    ]


def _spec(number: int) -> FlowSpec:
    return FlowSpec(
        session=number,
        domain=0,
        interface="tun0",
        address=int(IPv4Address("10.64.1.0")) + number,
        mtu=1492,
        mru=1492,
        ingress_filter=True,
        mss_adjust=True,
        send=lambda frame: None,
        encap=PppoeEncap(Port("eth1"), b"\x02\0\0\0\0\1", b"\x02\0" + number.to_bytes(4, "big"), number + 1),
    )
