"""The socket shell of PPTP in a network namespace of its own, with peers that are plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
import uvloop

from npppy.admission import Admission
from npppy.config.model import Tunnel
from npppy.ppp.cause import Cause
from npppy.pptp import codec, gre
from npppy.pptp.codec import Message, Type
from npppy.pptp.connection import State
from npppy.pptp.engine import REST
from npppy.pptp.server import BATCH, PAUSE, READ, UNREAD, UNREAD_CALL, ListenError, PptpServer
from npppy.wheel import Wheel
from tests.root.gatekeeper import Gatekeeper
from tests.unit.ippackets import words
from tests.unit.pppoe_fake import IP_PACKET, LCP_REQUEST, FakePpp
from tests.unit.pptp_net import block

pytestmark = pytest.mark.root

PATIENCE = 60.0
#: The peer's end of the link, and ours.
PEER, OURS = "10.9.0.9", ("10.9.0.1", "10.9.0.2")
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
WILD = ("0.0.0.0", 1723)
_IP_HDRINCL = 3

Loop = Callable[[], asyncio.AbstractEventLoop]


def sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def listening(*places: tuple[str, int], name: str = "PPTP", **options: object) -> Tunnel:
    return block(name, listen=tuple((ip_address(address), port) for address, port in places), **options)


@pytest.fixture(autouse=True)
def link(netns: None) -> None:
    """All on one machine: "acc" is ours and "cpe" the peer's, but what is not for a link goes by lo."""
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "link", "add", "acc", "type", "veth", "peer", "cpe")
    for device, addresses in (("acc", OURS), ("cpe", (PEER,))):
        for address in addresses:
            sh("ip", "address", "add", f"{address}/24", "dev", device)
        sh("ip", "link", "set", device, "up")


@pytest.fixture
def limits() -> Iterator[None]:
    """The server raises them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Lab(Gatekeeper):
    """A server, and its wheel turned by hand."""

    def __init__(self, *tunnels: Tunnel) -> None:
        self.ppp = FakePpp()
        self.wheel = Wheel(time.monotonic())
        rng = random.Random(2637).randbytes
        self.admission = Admission(asyncio.get_running_loop().call_soon, time.monotonic)
        self.server = PptpServer(
            tunnels, self.ppp.open, rng, self.wheel, time.monotonic, "pac.example", self.admission
        )
        self.engine = self.server.engine

    def drops(self, name: str = "PPTP") -> dict[str, int]:
        return dict(self.engine.services[name].drops)

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            self.wheel.advance(time.monotonic())
            await asyncio.sleep(0.001)


class Peer:
    """A PNS of a few lines."""

    def __init__(self, lab: Lab, to: str = OURS[0], port: int = 1723, *, small: bool = False) -> None:
        self.lab = lab
        self.to = to
        self.tcp = socket.socket()
        if small:
            # Else the kernel keeps megabytes for it.
            self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self.tcp.bind((PEER, 0))
        self.tcp.connect((to, port))
        self.tcp.setblocking(False)
        self.gre = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_GRE)
        self.gre.bind((PEER, 0))
        self.gre.connect((to, 0))
        self.heard = b""
        self.over = False
        self.call_id = 0

    def say(self, kind: Type, **values: int | bytes) -> None:
        self.tcp.send(codec.encode(kind, **values))

    def _read(self) -> bool:
        try:
            octets = self.tcp.recv(4096)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            octets = b""
        self.heard += octets
        self.over = not octets
        return True

    async def hear(self, kind: Type) -> Message:
        await self.lab.until(lambda: codec.split(self.heard, 0) or (self._read() and False))
        end = codec.split(self.heard, 0)
        message = codec.decode(self.heard[:end])
        self.heard = self.heard[end:]
        assert message is not None
        assert message.type is kind
        return message

    async def end(self) -> None:
        await self.lab.until(lambda: self._read() and self.over)

    async def start(self) -> None:
        self.say(Type.START_REQUEST, version=0x0100)
        await self.hear(Type.START_REPLY)

    async def call(self, call_id: int) -> None:
        self.say(Type.OUTGOING_CALL_REQUEST, call_id=call_id, window=3)
        self.call_id = (await self.hear(Type.OUTGOING_CALL_REPLY)).numbers["call_id"]

    async def packet(self) -> bytes:
        """The next GRE packet, with its IP header."""
        found: list[bytes] = []

        def read() -> bool:
            try:
                found.append(self.gre.recv(65535))
            except BlockingIOError:
                return False
            return True

        await self.lab.until(read)
        return found[0]

    def close(self) -> None:
        self.tcp.close()
        self.gre.close()


@LOOPS
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("wild", [True, False])
def test_a_call(loop: Loop, ours: str, wild: bool, limits: None) -> None:
    """Data goes both ways, from the address that the peer speaks to, and may be fragmented."""

    async def story() -> None:
        lab = Lab(listening(*([WILD] if wild else [(address, 1723) for address in OURS])))
        peer = Peer(lab, ours)
        await peer.start()
        await peer.call(77)
        (session,) = lab.ppp.sessions
        assert session.call.link.encap.local == ip_address(ours).packed
        assert session.call.link.caller.text == f"{PEER}:{peer.tcp.getsockname()[1]}"
        peer.gre.send(gre.encode(peer.call_id, 0, -1, LCP_REQUEST))
        await lab.until(lambda: session.frames)
        assert session.frames == [LCP_REQUEST]
        acknowledgment = await peer.packet()
        session.call.send(IP_PACKET)
        data = await peer.packet()
        for packet, flags in ((acknowledgment, 0x2081), (data, 0x3081)):
            assert words(packet[:20]) == 0xFFFF
            assert (packet[0], packet[8], packet[9]) == (0x45, 64, 47)
            # Don't Fragment is not set.
            assert packet[6] & 0x40 == 0
            assert (packet[12:16], packet[16:20]) == (ip_address(ours).packed, ip_address(PEER).packed)
            assert struct.unpack("!H", packet[20:22]) == (flags,)
            assert gre.decode(packet[20:]).call_id == 77
        assert gre.frame(data[20:], gre.decode(data[20:])) == IP_PACKET
        # Larger than the link allows, both ways.
        large = IP_PACKET + bytes(3000)
        session.call.send(large)
        assert (await peer.packet())[-3000:] == bytes(3000)
        peer.gre.send(gre.encode(peer.call_id, 1, -1, large))
        await lab.until(lambda: len(session.frames) == 2)
        assert session.frames[1] == large
        peer.close()
        await lab.until(lambda: session.ended)
        assert session.ended == [(Cause.LOST_CARRIER, "closed by the peer")]
        assert not lab.engine.connections
        assert not lab.drops()
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


@LOOPS
def test_octet_by_octet(loop: Loop, limits: None) -> None:
    async def story() -> None:
        lab = Lab(listening(WILD))
        peer = Peer(lab)
        for octet in codec.encode(Type.START_REQUEST, version=0x0100) + codec.encode(Type.ECHO_REQUEST, identifier=9):
            peer.tcp.send(bytes((octet,)))
            await asyncio.sleep(0)
        await peer.hear(Type.START_REPLY)
        assert (await peer.hear(Type.ECHO_REPLY)).numbers["identifier"] == 9
        # The last words are heard, even if more is under way to us.
        peer.tcp.send(codec.encode(Type.STOP_REQUEST, reason=1) + codec.encode(Type.ECHO_REQUEST) * 200)
        await peer.hear(Type.STOP_REPLY)
        await peer.end()
        assert not peer.heard
        peer.close()
        await lab.until(lambda: not lab.engine.connections)
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_other_gre_does_not_come_in(limits: None) -> None:
    lab = Lab(listening(WILD))
    peer = Peer(lab)
    await peer.start()
    await peer.call(77)
    ours = gre.encode(peer.call_id, 0, -1, LCP_REQUEST)
    for other in (
        b"\x00\x00\x08\x00" + bytes(20),
        b"\x20\x00\x88\x0b" + ours[4:],
        b"\x30\x01\x65\x58" + ours[4:],
        b"\x30\x02\x88\x0b" + ours[4:],
        b"\x30",
    ):
        peer.gre.send(other)
    # With options in the IP header, it still is what it is.
    peer.gre.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x00")
    peer.gre.send(ours)
    (session,) = lab.ppp.sessions
    await lab.until(lambda: session.frames)
    assert session.frames == [LCP_REQUEST]
    assert "malformed" not in lab.engine.drops
    lab.server.close()


async def test_a_burst_is_taken_whole(limits: None) -> None:
    lab = Lab(listening(WILD))
    peer = Peer(lab)
    await peer.start()
    await peer.call(77)
    (session,) = lab.ppp.sessions
    count = 3 * BATCH
    for number in range(count):
        peer.gre.send(gre.encode(peer.call_id, number, -1, IP_PACKET + struct.pack("!H", number)))
    await lab.until(lambda: len(session.frames) == count)
    assert session.frames == [IP_PACKET + struct.pack("!H", number) for number in range(count)]
    lab.server.close()


@LOOPS
def test_one_who_does_not_read(loop: Loop, limits: None) -> None:
    """What waits for it is bounded, and then it has lost its connection."""

    async def story() -> None:
        lab = Lab(listening(WILD))
        peer = Peer(lab, small=True)
        await peer.start()
        (connection,) = lab.engine.connections.values()
        stream = next(iter(lab.server._streams.streams.values()))
        most = 0

        def flood() -> bool:
            nonlocal most
            # The kernel may tell the peer that it is over before it tells us.
            with contextlib.suppress(BlockingIOError, ConnectionError):
                peer.tcp.send(codec.encode(Type.OUTGOING_CALL_REQUEST, call_id=1) * 20)
            most = max(most, len(stream._unsent))
            return connection.state is State.GONE

        await lab.until(flood)
        assert 0 < most <= UNREAD + UNREAD_CALL
        assert lab.drops()["unread"] >= 1
        assert not lab.server._streams.streams
        assert not lab.engine.calls
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


@LOOPS
def test_one_who_reads_late(loop: Loop, limits: None) -> None:
    """What did not fit is sent when there is room, in order."""

    async def story() -> None:
        lab = Lab(listening(WILD))
        peer = Peer(lab, small=True)
        await peer.start()
        stream = next(iter(lab.server._streams.streams.values()))
        count = 0
        while not stream._unsent:
            count += 1
            peer.tcp.send(codec.encode(Type.ECHO_REQUEST, identifier=count))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for number in range(1, count + 1):
            # Some are under way to the server still.
            assert (await peer.hear(Type.ECHO_REPLY)).numbers["identifier"] == number
        assert not stream._unsent
        peer.say(Type.ECHO_REQUEST, identifier=0)
        await peer.hear(Type.ECHO_REPLY)
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_one_with_many_calls_may_read_late(limits: None) -> None:
    """All of them may end at once: what there is to say of that is no reason to end those that do not."""
    lab = Lab(listening(WILD))
    peer, count = Peer(lab, small=True), 600
    await peer.start()
    for number in range(count):
        await peer.call(number)
    for number in range(count - 1):
        peer.say(Type.CALL_CLEAR_REQUEST, call_id=number)
        await asyncio.sleep(0)
    await lab.until(lambda: len(lab.engine.calls) == 1)
    stream = next(iter(lab.server._streams.streams.values()))
    assert len(stream._unsent) > UNREAD
    for _ in range(count - 1):
        await peer.hear(Type.CALL_DISCONNECT_NOTIFY)
    assert not stream._unsent
    assert not lab.drops()
    lab.server.close()


@LOOPS
def test_no_descriptors_left(loop: Loop, limits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes then waits, nothing spins, and the others are served."""
    monkeypatch.setattr("npppy.pptp.server.PAUSE", 0.05)
    assert PAUSE >= 1

    async def story() -> None:
        lab = Lab(listening(WILD))
        peer = Peer(lab)
        await peer.start()
        waiting = [Peer(lab) for _ in range(5)]
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        await lab.until(lambda: lab.engine.drops["accept-EMFILE"] >= 2)
        peer.say(Type.ECHO_REQUEST, identifier=1)
        await peer.hear(Type.ECHO_REPLY)
        assert len(lab.engine.connections) == 1
        assert lab.engine.drops["accept-EMFILE"] < 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for other in waiting:
            await other.start()
        assert len(lab.engine.connections) == 6
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_many_and_one_descriptor_for_the_loop(limits: None) -> None:
    lab = Lab(listening(WILD))
    peers = [Peer(lab) for _ in range(200)]
    for peer in peers:
        peer.say(Type.START_REQUEST, version=0x0100)
    for number, peer in enumerate(peers):
        await peer.hear(Type.START_REPLY)
        await peer.call(number)
    assert len(lab.engine.connections) == len(lab.engine.calls) == 200
    # Behind one address, told apart by call ids.
    for number, peer in enumerate(peers):
        peer.gre.send(gre.encode(peer.call_id, 0, -1, IP_PACKET + bytes((number,))))
    await lab.until(lambda: all(session.frames for session in lab.ppp.sessions))
    assert [session.frames for session in lab.ppp.sessions] == [[IP_PACKET + bytes((number,))] for number in range(200)]
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    # The loop's own, the streams', that of those who listen, which is not read under pressure, and GRE's.
    await lab.until(lambda: len(selector.get_map()) == 4)
    for peer in peers:
        peer.close()
    await lab.until(lambda: not lab.engine.connections)
    lab.server.close()


async def test_shut(limits: None) -> None:
    lab = Lab(listening(WILD))
    peer = Peer(lab)
    await peer.start()
    await peer.call(5)
    lab.server.shut()
    assert (await peer.hear(Type.STOP_REQUEST)).numbers["reason"] == 3
    assert lab.engine.busy
    peer.say(Type.STOP_REPLY, result=1)
    await lab.until(lambda: not lab.engine.busy)
    await peer.end()
    late = Peer(lab)
    await late.end()
    lab.server.close()


async def test_close_without_patience(limits: None) -> None:
    lab = Lab(listening(WILD))
    peer = Peer(lab)
    await peer.start()
    lab.server.close()
    await peer.hear(Type.STOP_REQUEST)
    await peer.end()
    # What is armed still, does no harm.
    lab.wheel.advance(time.monotonic() + 100)


async def test_reconfigure(limits: None) -> None:
    first, second = listening((OURS[0], 1723)), listening((OURS[1], 1723), (OURS[1], 11723))
    lab = Lab(first, listening((OURS[1], 1723), name="OTHER"))
    stays, goes = Peer(lab), Peer(lab, OURS[1])
    for peer in (stays, goes):
        await peer.start()
    lab.server.reconfigure([first])
    await goes.hear(Type.STOP_REQUEST)
    goes.say(Type.STOP_REPLY, result=1)
    await goes.end()
    with pytest.raises(ConnectionRefusedError):
        Peer(lab, OURS[1])
    stays.say(Type.ECHO_REQUEST, identifier=1)
    await stays.hear(Type.ECHO_REPLY)
    lab.server.reconfigure([second])
    await stays.hear(Type.STOP_REQUEST)
    await Peer(lab, OURS[1]).start()
    await Peer(lab, OURS[1], 11723).start()
    lab.server.reconfigure([])
    assert not lab.engine.services
    assert lab.server._gre is None
    lab.server.reconfigure([first])
    peer = Peer(lab)
    await peer.start()
    await peer.call(3)
    lab.server.close()


async def test_addresses_that_are_not_ours(limits: None, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ListenError, match=r"npppd.conf:1:1: cannot listen on 10.9.0.77 port 1723: "):
        Lab(listening((OURS[0], 1723)), listening(("10.9.0.77", 1723), name="OTHER"))
    taken = socket.create_server((OURS[0], 1723))
    with pytest.raises(ListenError, match="in use"):
        Lab(listening((OURS[0], 1723)))
    lab = Lab()
    assert lab.server._gre is None
    lab.server.reconfigure([listening((OURS[0], 1723))])
    assert "cannot listen on 10.9.0.1 port 1723" in caplog.text
    taken.close()
    lab.server.reconfigure([listening((OURS[0], 1723))])
    await Peer(lab).start()
    lab.server.close()


@LOOPS
def test_clients_wait_while_others_are_served(loop: Loop, limits: None) -> None:
    """Neither a connection nor a call begins; what has begun goes on."""

    async def story() -> None:
        lab = Lab(listening(WILD))
        peer = Peer(lab)
        await peer.start()
        await peer.call(77)
        (session,) = lab.ppp.sessions
        lab.shut()
        await lab.until(lambda: lab.admission.closed)
        late = Peer(lab)
        late.say(Type.START_REQUEST, version=0x0100)
        for number in (78, 79):
            peer.say(Type.OUTGOING_CALL_REQUEST, call_id=number, window=3)
        peer.say(Type.CALL_CLEAR_REQUEST, call_id=78)
        peer.say(Type.ECHO_REQUEST, identifier=5)
        assert (await peer.hear(Type.ECHO_REPLY)).numbers["identifier"] == 5
        peer.gre.send(gre.encode(peer.call_id, 0, -1, LCP_REQUEST))
        await lab.until(lambda: session.frames)
        assert (len(lab.engine.connections), len(lab.engine.calls), lab.admission.waiting) == (1, 1, 1)
        lab.open()
        assert (await peer.hear(Type.OUTGOING_CALL_REPLY)).numbers["peer_call_id"] == 79
        await late.hear(Type.START_REPLY)
        assert not lab.drops()
        peer.close()
        late.close()
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_from_who_asks_for_many_calls_no_more_is_read_than_may_begin(limits: None) -> None:
    lab = Lab(listening(WILD))
    peer, count = Peer(lab), 500
    await peer.start()
    lab.shut()
    await lab.until(lambda: lab.admission.closed)
    for number in range(count):
        peer.say(Type.OUTGOING_CALL_REQUEST, call_id=number, window=3)
    await lab.until(lambda: lab.admission.waiting >= REST)
    # The loop is idle.
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert lab.admission.waiting < REST + READ // 168 + 1
    lab.open()
    answered = [(await peer.hear(Type.OUTGOING_CALL_REPLY)).numbers["peer_call_id"] for _ in range(count)]
    assert answered == list(range(count))
    # Another one goes away while it is not read, and what it has asked for with it.
    lab.shut()
    await lab.until(lambda: lab.admission.closed)
    for number in range(REST):
        peer.say(Type.OUTGOING_CALL_REQUEST, call_id=1000 + number, window=3)
    await lab.until(lambda: lab.admission.waiting == REST)
    peer.close()
    await lab.until(lambda: not lab.engine.connections)
    assert not lab.admission.waiting
    lab.server.close()
