"""npppysim against the concentrator, by Ethernet, by L2TP or by PPTP, on a virtual clock."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from npppy.config.model import (
    AddressRange,
    AuthMethod,
    L2tpOptions,
    Mppe,
    PppoeOptions,
    PptpOptions,
    Protocol,
    Tunnel,
)
from npppy.l2tp import engine as l2tp
from npppy.l2tp.service import Endpoint
from npppy.l2tp.tunnel import CYCLE
from npppy.pipex.base import Counters, FlowSpec, Police
from npppy.pipex.ip import checksum
from npppy.port import Port
from npppy.pppoe.codec import AccessLine
from npppy.pppoe.engine import Engine
from npppy.pptp import engine as pptp
from npppy.pptp.connection import STOP, Connection
from npppy.pptp.service import Endpoint as Place
from npppy.sim.l2tp import Lac, LacCall
from npppy.sim.l2tp import Wishes as LacWishes
from npppy.sim.load import Dial, Ending, Line, Load, Plan, Stage
from npppy.sim.pppoe import Host, Segment, Wishes
from npppy.sim.pptp import Pns, PnsCall, Trunk
from npppy.sim.pptp import Wishes as PnsWishes
from npppy.sim.report import Report
from npppy.sim.stream import Data, Pacer
from npppy.sim.subscriber import Credentials, Subscriber
from npppy.sim.tally import Tally
from npppy.sim.traffic import Pinger, Traffic

from .ppp_pair import KEEPALIVE, Channel, Quality
from .ppp_rig import HERE, USERS, Rig
from .pppoe_fake import FakeJournal

AC = bytes.fromhex("02ac00000001")
PORT = Port("eth1")
#: Who answers pings.
TARGET = int(IPv4Address("192.0.2.1"))
#: What subscribers of the simulator can log in by.
METHODS = (AuthMethod.PAP, AuthMethod.CHAP, AuthMethod.MSCHAPV2)

LARGE_POOL = {"ranges": (AddressRange(first=IPv4Address("10.1.0.1"), last=IPv4Address("10.1.255.254")),)}


def tunnel(**options: Any) -> Tunnel:
    """What subscribers are like."""
    settings: dict[str, Any] = {
        "name": "npppysim",
        "protocol": Protocol.PPPOE,
        "where": HERE,
        "carrier": PppoeOptions(),
        "mru": 1492,
        "mppe": Mppe.NO,
        "authentication_methods": METHODS,
    }
    return Tunnel(**(settings | KEEPALIVE | options))


def echo_reply(packet: bytes) -> bytes:
    """What a host answers to an ICMP echo request."""
    message = b"\0\0\0\0" + packet[24:]
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    head = packet[:10] + b"\0\0" + packet[16:20] + packet[12:16]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + message


def earliest(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)


class Mirror:
    """A back end that answers every packet as TARGET would; *twist* may change what is answered, and to whom."""

    def __init__(self) -> None:
        self.flows: dict[int, MirrorFlow] = {}
        self.twist: Callable[[bytes], bytes | None] = lambda packet: packet

    def add(self, spec: FlowSpec, now: float) -> MirrorFlow:
        flow = self.flows[spec.address] = MirrorFlow(self, spec)
        return flow


class MirrorFlow:
    def __init__(self, mirror: Mirror, spec: FlowSpec) -> None:
        self.mirror = mirror
        self.spec = spec
        self.packets: list[bytes] = []

    def input(self, packet: bytes, now: float) -> None:
        self.packets.append(packet)
        answer = self.mirror.twist(echo_reply(packet))
        if answer is not None:
            self.spec.send(b"\x00\x21" + answer)

    def counters(self) -> Counters:
        return Counters(in_packets=len(self.packets))

    def heard(self) -> float:
        return 0.0

    def last_active(self) -> float:
        return 0.0

    def by_python(self) -> Counters:
        return self.counters()

    def late(self) -> Counters:
        return Counters()

    def police(self, up: Police | None, down: Police | None) -> None:
        """It limits nothing."""

    def close(self) -> Counters:
        del self.mirror.flows[self.spec.address]
        return self.counters()


class Bed(ABC):
    """A load of subscribers, and the concentrator's PPP; how they reach it is a carrier's matter."""

    def __init__(
        self,
        plan: Plan,
        *,
        seed: int = 1,
        quality: Quality | None = None,
        rig: dict[str, Any] | None = None,
        user: str = "alice",
        password: bytes | None = None,
        pings: int = 0,
        data: Data | None = None,
    ) -> None:
        """*rig* is for the concentrator."""
        settings = {"authentication_methods": METHODS, "ipcp": LARGE_POOL} | KEEPALIVE
        self.rig = Rig(**(settings | (rig or {})))
        self.mirror = Mirror()
        self.rig.site.backend = self.mirror
        self.journal = FakeJournal()
        self.rng = random.Random(f"world {seed}").randbytes
        self.rig.engine.random = self.rng
        self.channel = Channel(self.rig, seed, quality or Quality(), self._after)
        self.run = self.channel.run
        self.report = Report(plan.sessions)
        self.events: list[tuple[str, int]] = []
        self.lines: dict[int, Line] = {}
        self.pings = pings
        self.pacer: Pacer | None = None
        if data is not None:
            self.report.traffic = Tally()
            self.pacer = Pacer(data, self.report.traffic, lambda: self.rig.now)
        credentials = Credentials(user.encode(), USERS.get(user, b"") if password is None else password)
        self.load = Load(
            plan, lambda number: credentials, self, self.report, self.rig.wheel, self.rng, self._event
        )

    def _after(self) -> float | None:
        due = self.load.poll(self.rig.now)
        return due if self.pacer is None else earliest(due, self._send(self.pacer))

    def _send(self, pacer: Pacer) -> float | None:
        if self.load.stage >= Stage.SETTLING:
            pacer.stop(self.rig.now)
        return pacer.poll(self.rig.now)

    def _event(self, event: str, line: Line) -> None:
        self.events.append((event, line.number))
        self.lines[line.number] = line

    # Makers

    @abstractmethod
    def dial(self, line: Line) -> Dial: ...

    def traffic(self, subscriber: Subscriber) -> Traffic:
        if self.pacer is not None:
            return self.pacer.stream(subscriber)
        if not self.pings:
            return Traffic()
        return Pinger(subscriber, TARGET, self.rig.wheel, self.report, count=self.pings)

    @abstractmethod
    def cut(self, now: float) -> None: ...

    def gathered(self, now: float) -> float | None:
        return now

    def settled(self, now: float) -> bool:
        if self.pacer is not None:
            self._send(self.pacer)
        return self.pacer is None or self.pacer.done

    # What became of it

    @property
    def done(self) -> bool:
        return self.load.stage is Stage.DONE

    def finished(self, seconds: float = 300.0) -> None:
        assert self.run(seconds, until=lambda: self.done), self.load.stage

    def nothing_left(self) -> None:
        assert self.done
        assert not self.load.lines
        assert not self.journal.records
        assert not self.mirror.flows
        self.rig.nothing_left()


class World(Bed):
    """A PPPoE segment, and the concentrator at its other end."""

    def __init__(
        self,
        plan: Plan,
        *,
        wishes: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        rig: dict[str, Any] | None = None,
        one_mac: bool = False,
        **rest: Any,
    ) -> None:
        """*wishes* and *options* are those of the subscribers."""
        rig = dict(rig or {})
        rig["carrier"] = PppoeOptions(interfaces=("eth1",), **rig.pop("carrier", {}))
        super().__init__(plan, rig=rig, **rest)
        #: Everything that was put on the wire, by the subscribers and by the concentrator.
        self.up_frames: list[bytes] = []
        self.down_frames: list[bytes] = []
        self.ac = Engine((self.rig.tunnel,), self.rig.engine.open, self.rng, self.rig.wheel, self.journal)
        self.port = self.ac.port_up(PORT, AC, 1508, self._down, self.rig.now)
        self.segment = Segment(Wishes(tunnel=tunnel(**(options or {})), **(wishes or {})), self._up, self.rig.wheel)
        self.one_mac = one_mac

    def _up(self, frame: bytes) -> None:
        self.up_frames.append(frame)
        self.channel.carry(lambda: self.ac.receive(PORT, frame, self.rig.now))

    def _down(self, frame: bytes) -> None:
        self.down_frames.append(frame)
        self.channel.carry(lambda: self.segment.receive(frame, self.rig.now))

    def dial(self, line: Line) -> Host:
        mac = (0x024E50000000 + (0 if self.one_mac else line.number)).to_bytes(6, "big")
        access_line = AccessLine(b"circuit %d" % line.number, b"remote %d" % line.number)
        return self.segment.host(mac, line.number.to_bytes(4, "big"), access_line, line)

    def cut(self, now: float) -> None:
        """Hosts have nothing in common."""

    def nothing_left(self) -> None:
        super().nothing_left()
        assert not self.segment.hosts
        assert not self.segment.sessions
        assert not self.port.calls
        assert not self.port.requests


LNS, LAC = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 7))


class L2tpWorld(Bed):
    """A LAC, and the LNS."""

    def __init__(
        self,
        plan: Plan,
        *,
        tunnels: int = 1,
        ports: int = 1,
        wishes: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        lac: dict[str, Any] | None = None,
        rig: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        """*wishes* and *options* are those of the subscribers, *lac* the L2TP options of the LAC."""
        rig = {"protocol": Protocol.L2TP, "mru": 1360, **(rig or {})}
        rig["carrier"] = L2tpOptions(**({"half_open_peer_limit": 1024} | rig.pop("carrier", {})))
        super().__init__(plan, rig=rig, **rest)
        #: Everything that was sent, by the LAC and by the LNS, with the port of the LAC.
        self.up_datagrams: list[tuple[int, bytes]] = []
        self.down_datagrams: list[tuple[int, bytes]] = []
        self.lns = l2tp.Engine(
            (self.rig.tunnel,), self.rig.engine.open, self.rng, self.rig.wheel, self.journal, "lns.example"
        )
        settings = {"protocol": Protocol.L2TP, "carrier": L2tpOptions(**(lac or {})), "mru": 1360}
        chosen = LacWishes(tunnel=tunnel(**(settings | (options or {}))), **(wishes or {}))
        ways = [(Endpoint(LAC, 50000 + number, LNS, 1701), self._up) for number in range(ports)]
        self.lac = Lac(chosen, ways, tunnels, self.rng, self.rig.wheel, "lac.example")
        #: Whether the LAC has taken leave.
        self.left = False

    def _up(self, endpoint: Endpoint, datagram: bytes) -> None:
        self.up_datagrams.append((endpoint.local_port, datagram))
        there = Endpoint(LNS, 1701, LAC, endpoint.local_port)

        def deliver() -> None:
            (service,) = self.lns.services.values()
            self.lns.receive(service, there, datagram, self._down, self.rig.now)
            self.lns.flush(self.rig.now)

        self.channel.carry(deliver)

    def _down(self, endpoint: Endpoint, datagram: bytes) -> None:
        self.down_datagrams.append((endpoint.peer_port, datagram))
        there = Endpoint(LAC, endpoint.peer_port, LNS, 1701)

        def deliver() -> None:
            self.lac.receive(self.lac.service, there, datagram, self._up, self.rig.now)
            self.lac.flush(self.rig.now)

        self.channel.carry(deliver)

    def _after(self) -> float | None:
        due = super()._after()
        if self.done and not self.left and self.load.how is not Ending.NONE:
            self.left = True
            self.lac.shut(self.rig.now)
        return due

    def dial(self, line: Line) -> LacCall:
        return self.lac.call(line.number, f"line {line.number}", f"0800-{line.number}", line)

    def cut(self, now: float) -> None:
        self.lac.cut(now)

    def nothing_left(self) -> None:
        # A tunnel that has ended acknowledges for a while.
        self.run(CYCLE + 1)
        super().nothing_left()
        assert not self.lns.tunnels
        assert not self.lac.tunnels
        assert not self.lac._held


SERVER, CLIENT = LNS, LAC


class Pipe:
    """One end of a TCP connection: what is sent comes out of the other end, in pieces of any size."""

    def __init__(self, world: PptpWorld) -> None:
        self.world = world
        self.other: Pipe
        self.connection: Connection | None = None
        self.open = True
        self.hushed = False
        self.sent = b""

    def send(self, octets: bytes) -> None:
        self.sent += octets
        cut = self.world.chance.randrange(len(octets) + 1)
        for piece in (octets[:cut], octets[cut:]):
            if piece and self.open:
                self.world.channel.deliver(lambda piece=piece: self.other._take(piece))  # type: ignore[misc]

    def finish(self) -> None:
        self.world.channel.deliver(self.other._end)

    def close(self) -> None:
        if self.open:
            self.open = False
            if not self.hushed:
                self.world.channel.deliver(self.other._end)

    def _take(self, octets: bytes) -> None:
        if self.open and self.connection is not None:
            self.connection.receive(octets, self.world.rig.now)

    def _end(self) -> None:
        if self.open and self.connection is not None:
            self.connection.lost("the other end has closed the connection", self.world.rig.now)


class PptpWorld(Bed):
    """Clients, and the server."""

    def __init__(
        self,
        plan: Plan,
        *,
        tunnels: int | None = None,
        wishes: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        clients: dict[str, Any] | None = None,
        rig: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        """*options* are those of the subscribers, *clients* the PPTP options of theirs; a tunnel for each, unless."""
        rig = {"protocol": Protocol.PPTP, "mru": 1400, **(rig or {})}
        rig["carrier"] = PptpOptions(**rig.pop("carrier", {}))
        super().__init__(plan, rig=rig, **rest)
        self.chance = random.Random(f"pieces {rest.get('seed', 1)}")
        #: All GRE packets, by the clients and by the server.
        self.up_packets: list[bytes] = []
        self.down_packets: list[bytes] = []
        #: The clients' ends of all TCP connections.
        self.pipes: list[Pipe] = []
        #: Why TCP cannot be set up, if it cannot.
        self.unreachable = ""
        self.server = pptp.Engine(
            (self.rig.tunnel,), self.rig.engine.open, self.rng, self.rig.wheel, "pac.example", self._down
        )
        settings = {"protocol": Protocol.PPTP, "carrier": PptpOptions(**(clients or {})), "mru": 1400}
        chosen = PnsWishes(tunnel=tunnel(**(settings | (options or {}))), **(wishes or {}))
        count = plan.sessions if tunnels is None else tunnels
        self.pns = Pns(
            chosen,
            self._connect,
            self._hush,
            self._up,
            count,
            self.rng,
            self.rig.wheel,
            "pns.example",
            plan.sessions,
        )
        #: Whether the clients have taken leave.
        self.left = False

    def _connect(self, trunk: Trunk) -> None:
        if self.unreachable:
            self.channel.deliver(lambda: self.pns.unreachable(trunk, self.unreachable, self.rig.now))
            return
        near, far = Pipe(self), Pipe(self)
        near.other, far.other = far, near
        port = 40000 + len(self.pipes)
        self.pipes.append(near)

        def accept() -> None:
            (service,) = self.server.services.values()
            far.connection = self.server.accept(service, Place(SERVER, 1723, CLIENT, port), far, self.rig.now)
            if far.connection is None:
                far.close()

        def connected() -> None:
            near.connection = self.pns.connected(trunk, Place(CLIENT, port, SERVER, 1723), near, self.rig.now)
            if near.connection is None:
                near.close()

        self.channel.deliver(accept)
        self.channel.deliver(connected)

    def _up(self, endpoint: Place, packet: bytes) -> None:
        self.up_packets.append(packet)
        self.channel.carry(lambda: self.server.receive(SERVER, CLIENT, packet, self.rig.now))

    def _down(self, endpoint: Place, packet: bytes) -> None:
        self.down_packets.append(packet)
        self.channel.carry(lambda: self.pns.receive(CLIENT, SERVER, packet, self.rig.now))

    def _after(self) -> float | None:
        due = super()._after()
        if self.done and not self.left and self.load.how is not Ending.NONE:
            self.left = True
            self.pns.shut(self.rig.now)
        return due

    def dial(self, line: Line) -> PnsCall:
        return self.pns.call(line.number, f"0800-{line.number}", line)

    def cut(self, now: float) -> None:
        self.pns.cut(now)

    def _hush(self, endpoint: Place) -> None:
        self.pipes[endpoint.local_port - 40000].hushed = True

    def nothing_left(self) -> None:
        # A connection that has ended waits for its peer to close.
        self.run(STOP + 2)
        super().nothing_left()
        for engine in (self.server, self.pns):
            assert not engine.connections
            assert not engine.calls
        assert not any(pipe.open for pipe in self.pipes)
