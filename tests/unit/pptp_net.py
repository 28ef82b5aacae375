"""PPTP engines and the network between them, on a virtual clock."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from npppy.config.model import Mppe, PptpOptions, Protocol, Tunnel, Where
from npppy.ppp.cause import Cause
from npppy.ppp.link import Call, Upper
from npppy.pptp import codec, gre
from npppy.pptp.codec import Message, Type
from npppy.pptp.connection import Connection, Leg, State
from npppy.pptp.engine import Engine
from npppy.pptp.gre import Window
from npppy.pptp.service import Endpoint
from npppy.wheel import Wheel
from tests.unit.pppoe_fake import FakePpp

PAC = bytes((192, 0, 2, 1))
PNS = bytes((198, 51, 100, 7))
PORT = 1723


def block(name: str = "PPTP", **options: object) -> Tunnel:
    return Tunnel(
        name=name,
        protocol=Protocol.PPTP,
        where=Where("npppd.conf", 1, 1),
        carrier=PptpOptions(**options),  # type: ignore[arg-type]
        mru=1400,
        lcp_keepalive=False,
        mppe=Mppe.NO,
    )


class End:
    """One end of a TCP connection, whose octets arrive in pieces if the net says so."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.connection: Connection | None = None
        self.other: End
        #: All that was sent, and how it ended.
        self.sent = b""
        self.finished = self.closed = False

    def send(self, octets: bytes) -> None:
        assert not self.finished
        if self.closed:
            return
        self.sent += octets
        net, other = self.net, self.other
        while octets:
            size = net.dice.randrange(1, len(octets) + 1) if net.chop else len(octets)
            piece, octets = octets[:size], octets[size:]
            net.later(lambda piece=piece: other.receive(piece))  # type: ignore[misc]

    def finish(self) -> None:
        if not self.closed and not self.finished:
            self.finished = True
            self.net.later(self.other.end)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if not self.finished:
                self.net.later(self.other.end)

    def receive(self, octets: bytes) -> None:
        if not self.closed and self.connection is not None:
            self.connection.receive(octets, self.net.now)

    def end(self) -> None:
        if not self.closed and self.connection is not None:
            self.connection.lost("closed by the peer", self.net.now)


class Raw(End):
    """A peer that the test itself is."""

    def __init__(self, net: Net) -> None:
        super().__init__(net)
        self.heard = b""
        self.ended = False

    def receive(self, octets: bytes) -> None:
        self.heard += octets

    def end(self) -> None:
        self.ended = True

    def say(self, kind: Type, **values: int | bytes) -> None:
        self.send(codec.encode(kind, **values))
        self.net.run(0.1)

    def messages(self) -> list[Message]:
        """What has come since the last time."""
        messages = []
        at = 0
        while end := codec.split(self.heard, at):
            message = codec.decode(self.heard[at:end])
            assert message is not None
            messages.append(message)
            at = end
        assert at == len(self.heard)
        self.heard = b""
        return messages

    def hears(self, kind: Type) -> Message:
        """The one message that has come."""
        (message,) = self.messages()
        assert message.type is kind
        return message


class Net:
    """Carries streams and GRE; loses and delays GRE as it is told, by the dice of its seed."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 1000.0
        self.wheel = Wheel(self.now)
        self.dice = random.Random(seed)
        #: Of GRE packets.
        self.loss = 0.0
        self.delay = (0.01, 0.01)
        self.chop = False
        #: By address: several behind one NAT have the same.
        self.nodes: dict[bytes, list[Engine]] = {}
        #: All GRE packets that were sent: where from, where to, what.
        self.sent: list[tuple[bytes, bytes, bytes]] = []
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def rng(self, count: int) -> bytes:
        return self.dice.randbytes(count)

    def later(self, what: Callable[[], None], delay: float = 0.01) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), what))

    def transmit(self, endpoint: Endpoint, packet: bytes) -> None:
        self.sent.append((endpoint.local, endpoint.peer, packet))
        if self.dice.random() >= self.loss:
            source, destination = endpoint.local, endpoint.peer
            self.later(lambda: self.deliver(source, destination, packet), self.dice.uniform(*self.delay))

    def deliver(self, source: bytes, destination: bytes, packet: bytes) -> None:
        for engine in self.nodes.get(destination, ()):
            engine.receive(destination, source, packet, self.now)

    def run(self, seconds: float) -> None:
        """Let time pass, with all that happens in it."""
        end = self.now + seconds
        while True:
            timer = self.wheel.next()
            event = self._events[0][0] if self._events else None
            due = min((when for when in (timer, event) if when is not None), default=None)
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.wheel.advance(self.now)
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
        self.now = end
        self.wheel.advance(end)

    def pac(self, ppp: FakePpp | None = None, **options: object) -> Engine:
        """A PAC at 192.0.2.1."""
        ppp = ppp or FakePpp()
        engine = Engine([block(**options)], ppp.open, self.rng, self.wheel, "pac.example", self.transmit)
        return self.node(PAC, engine)

    def pns(self, address: bytes = PNS, **options: object) -> Pns:
        """A PNS at 198.51.100.7."""
        pns = Pns(self, address, **options)
        self.node(address, pns)
        return pns

    def node(self, address: bytes, engine: Engine) -> Engine:
        self.nodes.setdefault(address, []).append(engine)
        return engine

    def join(self, ours: End, theirs: End) -> None:
        ours.other, theirs.other = theirs, ours

    def raw(self, pac: Engine, address: bytes = PNS, port: int = 40000) -> tuple[Raw, Connection | None]:
        """A TCP connection to *pac*, by hand."""
        raw, end = Raw(self), End(self)
        self.join(raw, end)
        endpoint = Endpoint(PAC, PORT, address, port)
        end.connection = pac.accept(pac.services["PPTP"], endpoint, end, self.now)
        if end.connection is None:
            end.close()
        return raw, end.connection

    def started(self, pac: Engine, address: bytes = PNS, port: int = 40000) -> tuple[Raw, Connection]:
        """The same, and established."""
        raw, connection = self.raw(pac, address, port)
        assert connection is not None
        raw.say(Type.START_REQUEST, version=0x0100, host_name=b"pns")
        assert raw.hears(Type.START_REPLY).numbers["result"] == 1
        return raw, connection

    def called(self, pac: Engine, call_id: int = 7, **values: int | bytes) -> tuple[Raw, Connection, Leg]:
        """The same, with a call."""
        raw, connection = self.started(pac)
        return raw, connection, call(raw, connection, call_id, **values)


def call(raw: Raw, connection: Connection, call_id: int, **values: int | bytes) -> Leg:
    """Ask for a call by hand."""
    raw.say(Type.OUTGOING_CALL_REQUEST, call_id=call_id, window=64, **values)
    reply = raw.hears(Type.OUTGOING_CALL_REPLY).numbers
    assert (reply["result"], reply["error"], reply["peer_call_id"]) == (1, 0, call_id)
    leg = connection.calls[call_id]
    assert leg.id == reply["call_id"]
    return leg


class Pns(Engine):
    """Asks for connections, and for calls in them once they are there; takes none."""

    def __init__(self, net: Net, address: bytes, **options: object) -> None:
        super().__init__([block(**options)], _nothing, net.rng, net.wheel, "pns.example", net.transmit)
        self.net = net
        self.address = address
        self._port = 40000

    def connect(self, pac: Engine) -> Connection:
        net = self.net
        self._port += 1
        mine, theirs = End(net), End(net)
        net.join(mine, theirs)
        there = Endpoint(PAC, PORT, self.address, self._port)
        theirs.connection = pac.accept(pac.services["PPTP"], there, theirs, net.now)
        if theirs.connection is None:
            theirs.close()
        endpoint = Endpoint(self.address, self._port, PAC, PORT)
        connection = mine.connection = self.dial(self.services["PPTP"], endpoint, mine, net.now)
        return connection

    def call(self, connection: Connection, window: int = 64) -> PnsCall:
        return PnsCall(self, connection, window)

    def up(self, pac: Engine, window: int = 64) -> PnsCall:
        """A connection, and a call in it."""
        connection = self.connect(pac)
        self.net.run(1)
        assert connection.state is State.ESTABLISHED
        made = self.call(connection, window)
        self.net.run(1)
        assert made.connected
        return made


def _nothing(call: Call, now: float) -> Upper | None:
    return None


class PnsCall(Leg):
    """What came of a call, and what came by it."""

    def __init__(self, pns: Pns, connection: Connection, window: int) -> None:
        super().__init__(connection, pns.new_id(), Window())
        pns.calls[self.id] = self
        connection.add(self)
        self.replies: list[Message] = []
        self.why: tuple[Cause, str] | None = None
        self.frames: list[bytes] = []
        connection.send(Type.OUTGOING_CALL_REQUEST, call_id=self.id, window=window, framing=3, bearer=3)

    @property
    def connected(self) -> bool:
        return bool(self.peer_id)

    def control(self, message: Message, now: float) -> None:
        self.replies.append(message)
        if message.type is Type.OUTGOING_CALL_REPLY and message.numbers["result"] == 1:
            self.peer_id = message.numbers["call_id"]

    def receive(self, ppp: bytes, now: float) -> None:
        self.frames.append(ppp)

    def ended(self, cause: Cause, reason: str, now: float) -> None:
        self.why = cause, reason


def numbers(packets: list[tuple[bytes, bytes, bytes]]) -> list[tuple[int, int]]:
    """Sequence and acknowledgment number of each."""
    headers = [gre.decode(packet) for _, _, packet in packets]
    return [(header.sequence, header.acknowledgment) for header in headers]


class Kernel:
    """Carries a call: counts what comes, and sends what it is given."""

    def __init__(self, leg: Leg) -> None:
        self.injected: list[bytes] = []
        self.expected = self.acked = 0
        leg.window.keeper = self

    def look(self) -> tuple[int, int]:
        return self.expected, self.acked

    def note(self, number: int) -> None:
        self.expected = number

    def inject(self, frame: bytes) -> None:
        self.injected.append(frame)
        self.acked = self.expected
