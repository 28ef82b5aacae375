"""``pipex.user``: packets a second through npppyd's data path in Python."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

from npppy.pppoe.codec import session_frame

from .figures import BenchError, Figure
from .lab import BEYOND, GATEWAY, PLAIN, Lab, Npppyd
from .wire import Generator, Sink, ethernet, udp

#: Octets of an IPv4 packet.
SIZES = (64, 1400)
#: Seconds of traffic before it counts.
WARM_UP = 0.2

_IP = b"\x00\x21"


class Stream:
    """One kind of frame from one end to the other, by way of npppyd or of the kernel alone."""

    def __init__(self, generator: Generator, sink: Sink) -> None:
        self._generator = generator
        self._sink = sink

    def run(self, seconds: float, daemon: Npppyd) -> tuple[float, float]:
        """Packets a second that arrive, while more are sent than that: by the wall, and of npppyd's processor time."""
        self._generator.run(WARM_UP)
        self._sink.verify()
        self._sink.count()
        began, before = time.perf_counter(), daemon.cpu()
        sent = self._generator.run(seconds)
        arrived = self._sink.count()
        elapsed, spent = time.perf_counter() - began, daemon.cpu() - before
        # What waits in queues is for nobody's figure.
        time.sleep(0.05)
        while self._sink.count():
            time.sleep(0.05)
        if not 0 < arrived <= sent * 1.1:
            raise BenchError(f"{sent} packets were sent, {arrived} arrived")
        return arrived / elapsed, arrived / spent


class Path:
    """The frames of one session, and of plain forwarding beside it."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack, address: str, session_id: int) -> None:
        self._lab = lab
        self._stack = stack
        self._address = address
        self._session_id = session_id
        self._sub, self._eth1 = lab.sub.mac("sub0"), lab.bng.mac("eth1")
        self._up0, self._host = lab.bng.mac("up0"), lab.net.mac("host0")
        lab.bng.ip(
            f"neighbour replace {GATEWAY} dev up0 lladdr {self._host.hex(':')} nud permanent",
            f"route add {PLAIN} dev eth1",
            f"neighbour replace {PLAIN} dev eth1 lladdr {self._sub.hex(':')} nud permanent",
        )

    def up(self, size: int) -> tuple[Stream, Stream]:
        """From the subscriber: through npppyd, and without it."""

        def frames(source: str, wrap: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
            # The kernel takes one from the TTL when it forwards.
            before, after = (udp(source, BEYOND, size, ttl) for ttl in (64, 63))
            return wrap(before), ethernet(self._host, self._up0, after)

        return (
            self._stream("up", *frames(self._address, lambda ip: self._session(self._eth1, self._sub, ip))),
            self._stream("up", *frames(PLAIN, lambda ip: ethernet(self._eth1, self._sub, ip))),
        )

    def down(self, size: int) -> tuple[Stream, Stream]:
        """To the subscriber: through npppyd, and without it."""

        def frames(destination: str, wrap: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
            before, after = (udp(BEYOND, destination, size, ttl) for ttl in (64, 63))
            return ethernet(self._up0, self._host, before), wrap(after)

        return (
            self._stream("down", *frames(self._address, lambda ip: self._session(self._sub, self._eth1, ip))),
            self._stream("down", *frames(PLAIN, lambda ip: ethernet(self._sub, self._eth1, ip))),
        )

    def _session(self, destination: bytes, source: bytes, packet: bytes) -> bytes:
        return session_frame(destination, source, self._session_id, _IP + packet)

    def _stream(self, way: str, sent: bytes, arriving: bytes) -> Stream:
        subscriber, host = (self._lab.sub, "sub0"), (self._lab.net, "host0")
        here, there = (subscriber, host) if way == "up" else (host, subscriber)
        generator, sink = Generator(*here, sent), Sink(*there, arriving)
        self._stack.callback(generator.close)
        self._stack.callback(sink.close)
        return Stream(generator, sink)


def measure(pairs: int, seconds: float) -> Iterator[Figure]:
    """Runs through npppyd and runs of plain forwarding in turn, *pairs* of them, of so many seconds each."""
    with Lab() as lab, contextlib.ExitStack() as stack:
        daemon = lab.npppyd(users=1, method="chap")
        path = Path(lab, stack, *_session(lab, daemon))
        for way, streams in (("up", path.up), ("down", path.down)):
            for size in SIZES:
                user, plain = streams(size)
                runs = [(*user.run(seconds, daemon), *plain.run(seconds, daemon)) for _ in range(pairs)]
                daemon.check()
                rate, core_rate, baseline, _ = map(statistics.median, zip(*runs, strict=True))
                name = f"pipex.user.{way}.{size}"
                yield Figure(name=name, value=rate, unit="packets/s", better="higher", baseline=baseline)
                yield Figure(name=f"{name}.core", value=core_rate, unit="packets/s of a core", better="higher")


def _session(lab: Lab, daemon: Npppyd) -> tuple[str, int]:
    """A session that no program listens to any more; returns its address and its SESSION_ID."""
    subscribers = lab.dial(daemon, 1, "chap", "--macs", "one", "--events")
    subscribers.wait_up()
    up, *_ = subscribers.end()
    return up["address"], up["session_id"]
