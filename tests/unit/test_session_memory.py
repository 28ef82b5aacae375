"""What a session costs at rest, and that it leaves nothing: counted, not timed."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from ipaddress import IPv4Address

from npppy.aaa.base import Accept, Answer, Request
from npppy.config.model import AddressRange
from npppy.ppp import options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.link import Link
from npppy.ppp.session import Session
from npppy.ppp.station import Phase

from .ppp_rig import Rig

#: Octets that a session may take at rest in the engine, the null back end and the rig's call, whose link is shared.
#: Measured: 1,210 with Python 3.11, the name of its user, its limits' entries and its timer among them; docs/memory.md
#: says what they are.
BOUND = 1350

_REQUEST = options.encode([(proto.OPT_MAGIC, b"peer")])


class Anybody:
    """Everybody is accepted."""

    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> None:
        done(Accept(), now)


class Peer:
    """A call and the peer on it, which grants everything and keeps nothing."""

    __slots__ = ("link", "rig", "session")

    def __init__(self, rig: Rig, link: Link) -> None:
        self.rig = rig
        self.link = link
        session = rig.engine.open(self, rig.now)
        assert session is not None
        self.session: Session | None = session

    def send(self, frame: bytes) -> None:
        protocol = frame[:2]
        code, data = frame[2], frame[6:]
        if code == proto.CONFIGURE_REQUEST and protocol in (b"\xc0\x21", b"\x80\x21"):
            self.give(protocol, proto.CONFIGURE_ACK, frame[3], data)
        elif code == proto.CONFIGURE_NAK:
            self.give(protocol, proto.CONFIGURE_REQUEST, 2, data)
        elif code == proto.TERMINATE_REQUEST:
            self.give(protocol, proto.TERMINATE_ACK, frame[3])

    __call__ = send

    def give(self, protocol: bytes, code: int, identifier: int, data: bytes = b"") -> None:
        assert self.session is not None
        header = bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big")
        self.session.receive(protocol + header + data, self.rig.now)

    def close(self, cause: Cause) -> None:
        self.session = None

    def lost(self, reason: str) -> None:
        """The call goes from under the session."""
        session, self.session = self.session, None
        assert session is not None
        session.gone(Cause.LOST_CARRIER, reason, self.rig.now)

    def ending(self) -> None: ...

    def rest(self) -> None: ...

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None: ...

    def up(self, user: bytes) -> None:
        self.give(b"\xc0\x21", proto.CONFIGURE_REQUEST, 1, _REQUEST)
        self.give(b"\xc0\x23", 1, 1, bytes((len(user),)) + user + b"\x06secret")
        self.give(b"\x80\x21", proto.CONFIGURE_REQUEST, 1, b"\x03\x06\0\0\0\0")
        assert self.session is not None
        assert self.session.phase is Phase.UP
        assert self.session.lcp is self.session.ipcp is None


def bench(last: str) -> Rig:
    pool = (AddressRange(first=IPv4Address("10.0.0.0"), last=IPv4Address(last)),)
    rig = Rig(ipcp={"ranges": pool})
    rig.engine.aaa = Anybody()
    return rig


def test_a_session_at_rest_is_small() -> None:
    count = 2000
    rig = bench("10.0.255.255")
    link = rig.line().link
    next(iter(rig.engine.sessions.values())).gone(Cause.LOST_CARRIER, "only its link was wanted", rig.now)
    peers: list[Peer | None] = [None] * count
    # What is made once for all.
    Peer(rig, link).up(b"first")
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(count):
            peer = peers[number] = Peer(rig, link)
            peer.up(b"subscriber%06d@isp.example" % number)
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert rig.engine.bound == count + 1
    assert each < BOUND, f"{each:.0f} octets a session"
    print(f"{each:.0f} octets a session")


def test_sessions_that_come_and_go_leave_nothing() -> None:
    # Few addresses, so that all have been in use: the pool remembers in which order they were released.
    rig = bench("10.0.0.63")
    link = rig.line().link

    def cycle(number: int) -> None:
        peer = Peer(rig, link)
        peer.up(b"subscriber%06d" % number)
        session = peer.session
        assert session is not None
        end = number % 4
        if end == 0:
            peer.lost("PADT")
        elif end == 1:
            rig.engine.disconnect(session.id, rig.now)
        elif end == 2:
            peer.give(b"\xc0\x21", proto.TERMINATE_REQUEST, 9)
            # It waits for one restart timer, and ends while others are up.
        else:
            peer.give(b"\xc0\x21", proto.CONFIGURE_REQUEST, 9)
            peer.lost("while it negotiates anew")
        rig.now += 0.25
        rig.advance()

    def settle() -> tuple[int, int]:
        rig.wait(40)
        rig.nothing_left()
        gc.collect()
        return sys.getallocatedblocks(), len(gc.get_objects())

    for number in range(1000):
        cycle(number)
    before = settle()
    # npppy.garbage relies on it: no session needs the collector of cycles.
    gc.disable()
    try:
        for number in range(20_000):
            cycle(number)
        rig.wait(40)
        assert gc.collect() == 0
    finally:
        gc.enable()
    after = settle()
    # A block a thousand sessions would be 20.
    assert after[0] - before[0] < 20 + 64 * 20, "allocated blocks"
    assert after[1] - before[1] < 20, "objects"
