"""An access port with a fake PPP above and a wire that can be read below, on a virtual clock."""

from __future__ import annotations

import random

from npppy.config.model import Mppe, PppoeOptions, Protocol, Tunnel, Where
from npppy.port import Port
from npppy.ppp.cause import Cause
from npppy.ppp.link import Call, Link
from npppy.pppoe.access import AccessPort
from npppy.pppoe.codec import BROADCAST, Code, Discovery, Tag, decode_discovery, session_frame
from npppy.pppoe.engine import Engine
from npppy.wheel import Wheel

AC = bytes.fromhex("02ac00000001")
HOST = bytes.fromhex("020000000101")
PORT = Port("eth0")
LCP_REQUEST = bytes.fromhex("c021" "01010004")
IP_PACKET = bytes.fromhex("0021" "4500")


def tunnel(
    name: str = "PPPOE", *, interfaces: tuple[str, ...] = ("eth0",), mru: int = 1492, **options: object
) -> Tunnel:
    return Tunnel(
        name=name,
        protocol=Protocol.PPPOE,
        where=Where("npppd.conf", 1, 1),
        carrier=PppoeOptions(interfaces=interfaces, **options),  # type: ignore[arg-type]
        mru=mru,
        lcp_keepalive=True,
        mppe=Mppe.NO,
    )


class FakeUpper:
    """A PPP session that only listens."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.frames: list[bytes] = []
        self.ended: list[tuple[Cause, str]] = []
        self.links: list[Link] = []

    def receive(self, frame: bytes, now: float) -> None:
        self.frames.append(frame)

    def gone(self, cause: Cause, reason: str, now: float) -> None:
        self.ended.append((cause, reason))

    def changed(self, link: Link, now: float, *, moved: bool = False) -> None:
        self.links.append(link)


class FakePpp:
    """PPP's engine: takes calls, or refuses them; may send, or close, before it returns."""

    def __init__(self) -> None:
        self.sessions: list[FakeUpper] = []
        self.refuse = False
        self.send_first: bytes | None = None
        self.close_first = False

    def open(self, call: Call, now: float) -> FakeUpper | None:
        if self.send_first is not None:
            call.send(self.send_first)
        if self.close_first:
            call.close(Cause.NAS_ERROR)
        if self.refuse:
            return None
        self.sessions.append(FakeUpper(call))
        return self.sessions[-1]


class FakeJournal:
    def __init__(self) -> None:
        self.records: dict[int, tuple[str, bytes]] = {}
        self._next = 0

    def add(self, kind: Protocol, interface: str, frame: bytes) -> int:
        self._next += 1
        self.records[self._next] = interface, frame
        return self._next

    def remove(self, slot: int) -> None:
        self.records.pop(slot, None)


class Bench:
    """An engine with one port up, and the host of one MAC address on it."""

    def __init__(self, *tunnels: Tunnel, mtu: int = 1500) -> None:
        self.now = 1000.0
        self.ppp = FakePpp()
        self.journal = FakeJournal()
        self.wheel = Wheel(self.now)
        self.rng = random.Random(2516).randbytes
        self.engine = Engine(tunnels or (tunnel(),), self.ppp.open, self.rng, self.wheel, self.journal)
        self.wire: list[bytes] = []
        self.port = self.up(PORT, mtu=mtu)

    def up(self, port: Port, *, mac: bytes = AC, mtu: int = 1500) -> AccessPort:
        return self.engine.port_up(port, mac, mtu, self.wire.append, self.now)

    @property
    def drops(self) -> dict[str, int]:
        return dict(self.engine.drops[PORT])

    def feed(self, frame: bytes) -> list[bytes]:
        """Give the port a frame; returns what it sent in answer."""
        del self.wire[:]
        self.engine.receive(PORT, frame, self.now)
        return self.wire[:]

    def sent(self) -> list[Discovery]:
        """The discovery frames on the wire, which is cleared."""
        frames, self.wire[:] = self.wire[:], []
        return [decode_discovery(frame) for frame in frames]

    def ask(
        self, code: Code, *tags: tuple[int, bytes], mac: bytes = HOST, to: bytes | None = None, sid: int = 0
    ) -> Discovery | None:
        """Send a discovery packet; returns the answer, None without one."""
        destination = to if to is not None else BROADCAST if code is Code.PADI else AC
        answers = self.feed(Discovery(destination, mac, code, sid, tags).encode())
        assert len(answers) <= 1
        return decode_discovery(answers[0]) if answers else None

    def padi(self, service: bytes = b"", *tags: tuple[int, bytes], mac: bytes = HOST) -> Discovery | None:
        return self.ask(Code.PADI, (Tag.SERVICE_NAME, service), *tags, mac=mac)

    def cookie(self, mac: bytes = HOST) -> bytes:
        return self.port._world.cookies.make(mac, self.port._cookie_name, self.now)

    def padr(self, service: bytes = b"", *tags: tuple[int, bytes], mac: bytes = HOST) -> Discovery | None:
        """A PADR with a good cookie."""
        return self.ask(Code.PADR, (Tag.SERVICE_NAME, service), (Tag.AC_COOKIE, self.cookie(mac)), *tags, mac=mac)

    def dial(self, host_uniq: bytes = b"1", *, mac: bytes = HOST, service: bytes = b"") -> tuple[int, FakeUpper]:
        """A session of its own for each *host_uniq*; returns its SESSION_ID and what is above."""
        pads = self.padr(service, (Tag.HOST_UNIQ, host_uniq), mac=mac)
        assert pads is not None
        assert pads.session_id
        return pads.session_id, self.ppp.sessions[-1]

    def use_up(self, *, but: int) -> None:
        """Leave the port that many identifiers that have not been used."""
        for _ in range(65534 - but):
            self.port._ids.take()

    def is_clean(self) -> bool:
        """Is nothing kept of any session?"""
        port = self.port
        services = port._services.values()
        return not (
            port.calls
            or port.requests
            or port.offers
            or self.journal.records
            or any(service.macs or service.sessions for service in services)
        )

    def talk(self, session_id: int, ppp: bytes, *, mac: bytes = HOST, to: bytes = AC) -> list[bytes]:
        return self.feed(session_frame(to, mac, session_id, ppp))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.wheel.advance(self.now)
