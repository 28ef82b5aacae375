"""``pipex``: packets a second through npppyd's data paths, against plain forwarding by the kernel."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from .carriers import CHECKSUM, FEW, PPPOE, SEQUENCE, Carrier, Session
from .figures import BenchError, Figure
from .kernel import Attached, Reached, check_untimed
from .lab import BEYOND, PLAIN, Lab, Npppyd
from .wire import Stream, Wire, ethernet, udp

#: Octets of an IPv4 packet.
SIZES = (64, 1400)
WAYS = ("up", "down")
#: Packets a second that are sent through Python, which takes fewer.
OFFERED = 500_000

#: What is to be reached with one session of PPPoE, as a ratio to plain forwarding.
TARGETS = {"stack": 0.90, "fast": 2.5}
#: What carries the data.
KINDS = ("user", *TARGETS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured: pairs of runs, and seconds that each of them takes."""

    #: Sessions that are hit at random, beside one alone.
    many: int
    pairs: int
    kernel_time: float
    user_time: float
    #: Packets that are delivered each way while it is counted what reaches Python; and of an encrypted session, where
    #: Python has to encrypt those up before.
    delivered: int
    encrypted: int


class Frames:
    """The frames of sessions, and of plain forwarding beside them."""

    def __init__(self, lab: Lab, packet: Callable[[str, str, int, int, int], bytes] = udp, header: int = 28) -> None:
        """*packet* makes packets whose data follow so many octets of headers."""
        self._lab = lab
        self._packet = packet
        self._header = header
        self._macs = lab.macs
        self._up0, self._host = lab.bng.mac("up0"), lab.net.mac("host0")

    def sessions(self, way: str, size: int, sessions: Sequence[Session]) -> Stream:
        """A packet for each of them, through npppyd; *way* is ``up`` from the subscriber, or ``down``."""
        made = [self._through(way, session.address, size, number) for number, session in enumerate(sessions)]
        carrier, macs = self._lab.carrier, self._macs
        if way == "up":
            wrapped = [session.up(macs, before) for session, (before, _) in zip(sessions, made, strict=True)]
            stream = self._up(wrapped, [ethernet(self._host, self._up0, after) for _, after in made], size)
            return replace(stream, count_at=carrier.count_at, count_size=carrier.count_size, anew=carrier.anew)
        wrapped = [session.down(macs, after) for session, (_, after) in zip(sessions, made, strict=True)]
        stream = self._down([ethernet(self._up0, self._host, before) for before, _ in made], wrapped, size)
        return replace(stream, loose=carrier.loose)

    def plain(self, way: str, size: int, count: int) -> Stream:
        """The same packets of as many hosts that have no PPP."""
        made = [self._through(way, str(PLAIN[2 + number]), size, number) for number in range(count)]
        sub0, eth1 = self._macs
        if way == "up":
            return self._up(
                [ethernet(eth1, sub0, before) for before, _ in made],
                [ethernet(self._host, self._up0, after) for _, after in made],
                size,
            )
        return self._down(
            [ethernet(self._up0, self._host, before) for before, _ in made],
            [ethernet(sub0, eth1, after) for _, after in made],
            size,
        )

    def one(self, way: str, size: int, session: Session) -> tuple[bytes, Stream]:
        """The packet of a session as PPP carries it, and its stream."""
        before, after = self._through(way, session.address, size, 0)
        return before if way == "up" else after, self.sessions(way, size, [session])

    def _through(self, way: str, address: str, size: int, number: int) -> tuple[bytes, bytes]:
        """A packet before and after forwarding, which takes one from its TTL."""
        ends = (address, BEYOND) if way == "up" else (BEYOND, address)
        return self._packet(*ends, size, 64, number), self._packet(*ends, size, 63, number)

    def _up(self, sent: list[bytes], arriving: list[bytes], size: int) -> Stream:
        ends = (self._lab.sub, "sub0"), (self._lab.net, "host0")
        return Stream(ends[0], sent, ends[1], arriving, self._number_at(arriving, size))

    def _down(self, sent: list[bytes], arriving: list[bytes], size: int) -> Stream:
        ends = (self._lab.net, "host0"), (self._lab.sub, "sub0")
        return Stream(ends[0], sent, ends[1], arriving, self._number_at(arriving, size))

    def _number_at(self, arriving: list[bytes], size: int) -> int:
        """Behind the headers of the packet, which are behind those of the frame."""
        return len(arriving[0]) - size + self._header


def measure(
    carrier: Carrier, effort: Effort, kinds: Iterable[str] = KINDS, sizes: Sequence[int] = SIZES, *, one: bool = True
) -> Iterator[Figure]:
    """Python, and the kernel both ways, each against plain forwarding in turn.

    *sizes*: with many sessions; *one*: with one session, too, and packets of all sizes.
    """
    check_untimed()
    reached = 0
    for kind in kinds:
        with Lab(carrier) as lab, contextlib.ExitStack() as stack:
            pipex, forward = ("user", "stack") if kind == "user" else ("ebpf", kind)
            daemon = lab.npppyd(users=effort.many, method="pap", pipex=pipex, forward=forward)
            sessions = dial(lab, daemon, 1)
            bed = Bed(lab, daemon, kind, stack)
            if one:
                yield from _rows(bed, sessions, effort)
            sessions += dial(lab, daemon, effort.many - 1)
            yield from _rows(bed, sessions, effort, sizes=sizes)
            if kind != "user":
                reached += _count_reached(bed, sessions, effort.delivered)
    name = carrier.figure("python_packets")
    yield Figure(name=name, value=reached, unit="packets", target=0, better="lower")


def variants(effort: Effort) -> Iterator[Figure]:
    """What sequence numbers, and UDP checksums, cost the fast path of L2TP."""
    check_untimed()
    for carrier, ways, sizes in ((SEQUENCE, WAYS, SIZES[:1]), (CHECKSUM, ("down",), SIZES)):
        with Lab(carrier) as lab, contextlib.ExitStack() as stack:
            daemon = lab.npppyd(users=effort.many, method="pap", pipex="ebpf", forward="fast")
            sessions = dial(lab, daemon, effort.many)
            yield from _rows(Bed(lab, daemon, "fast", stack), sessions, effort, ways, sizes)


def dial(lab: Lab, daemon: Npppyd, count: int, method: str = "pap", *options: str) -> list[Session]:
    """Sessions that no program listens to any more."""
    subscribers = lab.dial(daemon, count, method, "--events", *lab.carrier.tunnels(FEW), *options)
    subscribers.wait_up()
    return subscribers.leave()


class Bed:
    """A lab with npppyd and sessions, and all that is needed to measure there."""

    def __init__(
        self,
        lab: Lab,
        daemon: Npppyd,
        kind: str,
        stack: contextlib.ExitStack,
        *,
        sinks: bool = True,
        reel: int = 1,
    ) -> None:
        """*kind* is what carries the data: ``user``, ``stack`` or ``fast``; without *sinks*, nothing takes packets.

        *reel*: as that of :class:`Wire`.
        """
        self.daemon = daemon
        self.carrier = lab.carrier
        self.kind = kind
        self.frames = Frames(lab)
        self.reached = Reached(lab.bng, daemon.process.pid, "tun0")
        stack.callback(self.reached.close)
        self.attached = Attached(lab.bng, ("eth1", "up0"))
        stack.callback(self.attached.close)
        if len(self.attached) != lab.carrier.programs[kind]:
            raise daemon.error(f"has given programs to {len(self.attached)} interfaces")
        self.wire = stack.enter_context(Wire([(lab.sub, "sub0"), (lab.net, "host0")] if sinks else [], reel))


def _rows(
    bed: Bed,
    sessions: Sequence[Session],
    effort: Effort,
    ways: Sequence[str] = WAYS,
    sizes: Sequence[int] = SIZES,
) -> Iterator[Figure]:
    """Runs through npppyd and runs of plain forwarding in turn."""
    many = f".{len(sessions)}" if len(sessions) > 1 else ""
    for way in ways:
        for size in sizes:
            ours, plain = bed.frames.sessions(way, size, sessions), bed.frames.plain(way, size, len(sessions))
            bed.wire.load(ours, plain)
            bed.reached.count()
            name = bed.carrier.figure(f"{bed.kind}.{way}.{size}{many}")
            target = TARGETS.get(bed.kind) if bed.carrier is PPPOE and not many else None
            yield from (
                _user(bed, name, ours, plain, effort)
                if bed.kind == "user"
                else _kernel(bed, name, ours, plain, effort, target)
            )
            bed.daemon.check()


def _user(bed: Bed, name: str, ours: Stream, plain: Stream, effort: Effort) -> Iterator[Figure]:
    runs = []
    for _ in range(effort.pairs):
        rate, core_rate = bed.wire.sustained(ours, effort.user_time, OFFERED, bed.daemon.cpu)
        # What waits in queues is for nobody's figure.
        bed.daemon.wait_idle()
        # What is to be 0 where the kernel carries all must not be that here.
        if bed.reached.count() < rate * effort.user_time:
            raise BenchError("more packets went through npppyd than reached it")
        runs.append((rate, core_rate, bed.wire.rate(plain, effort.kernel_time)))
    rate, core_rate, baseline = map(statistics.median, zip(*runs, strict=True))
    yield Figure(name=name, value=rate, unit="packets/s", better="higher", baseline=baseline)
    yield Figure(name=f"{name}.core", value=core_rate, unit="packets/s of a core", better="higher")


def _kernel(
    bed: Bed, name: str, ours: Stream, plain: Stream, effort: Effort, target: float | None
) -> Iterator[Figure]:
    runs = []
    for _ in range(effort.pairs):
        rate = bed.wire.rate(ours, effort.kernel_time)
        # npppyd would attach them again.
        with bed.daemon.stopped(), bed.attached.without():
            runs.append((rate, bed.wire.rate(plain, effort.kernel_time)))
    if bed.reached.count() > effort.pairs:
        raise bed.daemon.error("does not leave the packets to the kernel")
    rate, baseline = map(statistics.median, zip(*runs, strict=True))
    ratios = [ours / plain for ours, plain in runs]
    tell_pairs(name, ratios)
    ratio = statistics.median(ratios)
    yield Figure(name=name, value=ratio, unit="of plain", target=target, better="higher")
    yield Figure(name=f"{name}.rate", value=rate, unit="packets/s of a core", better="higher", baseline=baseline)


def tell_pairs(name: str, values: Sequence[float]) -> None:
    """What each pair of runs gave, of which a figure is the median."""
    print(f"    {name}: {' '.join(f'{value:.3g}' for value in values)}", file=sys.stderr, flush=True)


def _count_reached(bed: Bed, sessions: Sequence[Session], delivered: int) -> int:
    """Packets that reach Python while so many are delivered each way."""
    bed.reached.count()
    for way in WAYS:
        stream = bed.frames.sessions(way, SIZES[0], sessions)
        bed.wire.load(stream)
        bed.wire.deliver(stream, delivered)
    return bed.reached.count()
