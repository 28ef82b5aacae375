"""L2TP engines and the network between them, on a virtual clock."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from npppy.config.model import L2tpOptions, Mppe, Protocol, Tunnel, Where
from npppy.l2tp.codec import Attr, Data, Message, Type, u16, u32
from npppy.l2tp.engine import Engine
from npppy.l2tp.service import Endpoint, Service
from npppy.l2tp.tunnel import Leg
from npppy.l2tp.tunnel import Tunnel as Connection
from npppy.ppp.cause import Cause
from npppy.wheel import Wheel
from tests.unit.pppoe_fake import FakeJournal, FakePpp

LNS = bytes((192, 0, 2, 1))
LAC = bytes((198, 51, 100, 7))


def block(name: str = "L2TP", **options: object) -> Tunnel:
    return Tunnel(
        name=name,
        protocol=Protocol.L2TP,
        where=Where("npppd.conf", 1, 1),
        carrier=L2tpOptions(**options),  # type: ignore[arg-type]
        mru=1360,
        lcp_keepalive=False,
        mppe=Mppe.NO,
    )


class Net:
    """Carries datagrams between engines; loses, doubles and delays as it is told, by the dice of its seed."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 1000.0
        self.wheel = Wheel(self.now)
        self.dice = random.Random(seed)
        self.loss = self.double = 0.0
        self.delay = (0.01, 0.01)
        self.nodes: dict[tuple[bytes, int], tuple[Engine, Service, tuple[bytes, int]]] = {}
        #: All that was sent: where from, where to, what.
        self.sent: list[tuple[tuple[bytes, int], tuple[bytes, int], bytes]] = []
        #: Changes the source of what passes, as a NAT; or says None, for what it does not let through.
        self.nat: Callable[[tuple[bytes, int], tuple[bytes, int]], tuple[bytes, int] | None] | None = None
        self._order = itertools.count()
        self._wire: list[tuple[float, int, tuple[bytes, int], tuple[bytes, int], bytes]] = []

    def rng(self, count: int) -> bytes:
        return self.dice.randbytes(count)

    def join(self, engine: Engine, service: Service, address: bytes, port: int = 1701) -> None:
        self.nodes[address, port] = (engine, service, (address, port))

    def transmit(self, endpoint: Endpoint, datagram: bytes) -> None:
        source, destination = (endpoint.local, endpoint.local_port), (endpoint.peer, endpoint.peer_port)
        self.sent.append((source, destination, datagram))
        self.put(source, destination, datagram)

    def put(self, source: tuple[bytes, int], destination: tuple[bytes, int], datagram: bytes) -> None:
        for _ in range(2 if self.dice.random() < self.double else 1):
            if self.dice.random() >= self.loss:
                at = self.now + self.dice.uniform(*self.delay)
                heapq.heappush(self._wire, (at, next(self._order), source, destination, datagram))

    def run(self, seconds: float) -> None:
        """Let time pass, with all that happens in it."""
        end = self.now + seconds
        while True:
            timer = self.wheel.next()
            arrival = self._wire[0][0] if self._wire else None
            due = min((when for when in (timer, arrival) if when is not None), default=None)
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.wheel.advance(self.now)
            while self._wire and self._wire[0][0] <= self.now:
                _, _, source, destination, datagram = heapq.heappop(self._wire)
                if self.nat is not None:
                    changed = self.nat(source, destination)
                    if changed is None:
                        continue
                    source = changed
                node = self.nodes.get(destination)
                if node is not None:
                    engine, service, local = node
                    engine.receive(service, Endpoint(*local, *source), datagram, self.transmit, self.now)
                    engine.flush(self.now)
        self.now = end
        self.wheel.advance(end)

    def lns(self, ppp: FakePpp | None = None, **options: object) -> Engine:
        """An LNS at 192.0.2.1."""
        ppp = ppp or FakePpp()
        engine = Engine([block(**options)], ppp.open, self.rng, self.wheel, FakeJournal(), "lns.example")
        self.join(engine, engine.services["L2TP"], LNS)
        return engine

    def lac(self, address: bytes = LAC, port: int = 1701, **options: object) -> PlainLac:
        """A LAC at 198.51.100.7."""
        engine = PlainLac(self, **options)
        self.join(engine, engine.services["L2TP"], address, port)
        engine.at = Endpoint(address, port, LNS, 1701)
        return engine


class PlainLac(Engine):
    """Asks for tunnels, and for calls in them once they are there; takes none."""

    at: Endpoint

    def __init__(self, net: Net, **options: object) -> None:
        super().__init__([block(**options)], lambda call, now: None, net.rng, net.wheel, FakeJournal(), "lac.example")
        self.net = net
        self.closed_for: list[tuple[Connection, str]] = []

    def ask(self) -> Connection:
        tunnel = self.dial(self.services["L2TP"], self.at, self.net.transmit, self.net.now)
        assert tunnel is not None
        return tunnel

    def closed(self, tunnel: Connection, reason: str, now: float) -> None:
        self.closed_for.append((tunnel, reason))
        super().closed(tunnel, reason, now)

    def call(self, tunnel: Connection, **avps: bytes) -> LacCall:
        call = LacCall(self, tunnel)
        call.connected_avps = {Attr[name.upper()]: value for name, value in avps.items()}
        call.ring(self.net.now)
        return call


class LacCall(Leg):
    """A LAC's incoming call: what came of it, and what came by it."""

    def __init__(self, lac: PlainLac, tunnel: Connection) -> None:
        super().__init__(tunnel, tunnel.new_id())
        self.lac = lac
        self.connected = False
        self.connected_avps: dict[Attr, bytes] = {}
        self.why: tuple[Cause, str] | None = None
        self.messages: list[Message] = []
        self.frames: list[tuple[int, bytes]] = []
        tunnel.add(self)

    def ring(self, now: float) -> None:
        avps = [
            (Attr.ASSIGNED_SESSION_ID, u16(self.id)),
            (Attr.CALL_SERIAL_NUMBER, u32(self.id)),
            (Attr.CALLING_NUMBER, b"4711"),
            (Attr.CALLED_NUMBER, b"0800"),
        ]
        self.tunnel.send(0, Type.ICRQ, avps, now)

    def control(self, message: Message, now: float) -> None:
        self.messages.append(message)
        if message.type == Type.ICRP:
            self.peer_id = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
            self.connected = True
            avps = {Attr.TX_CONNECT_SPEED: u32(10_000_000), Attr.FRAMING_TYPE: u32(1), **self.connected_avps}
            self.tunnel.send(self.peer_id, Type.ICCN, list(avps.items()), now)

    def expire(self, now: float) -> None:
        raise AssertionError("it has no deadline")

    def data(self, datagram: bytes, data: Data, now: float) -> None:
        self.frames.append((data.ns, datagram[data.start : data.end]))

    def ended(self, cause: Cause, reason: str, now: float) -> None:
        self.why = cause, reason
