"""The socket shell of L2TP in a network namespace of its own, with peers that are plain UDP sockets."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop

from npppy.admission import Admission
from npppy.config.model import Tunnel
from npppy.journal import Journal
from npppy.l2tp import codec
from npppy.l2tp.codec import Attr, Control, Message, Type, u16, u32
from npppy.l2tp.server import BATCH, L2tpServer, ListenError
from npppy.l2tp.tunnel import State
from npppy.l2tp.tunnel import Tunnel as Connection
from npppy.ppp.cause import Cause
from npppy.wheel import Wheel
from tests.root.gatekeeper import Gatekeeper
from tests.unit.l2tp_net import block
from tests.unit.pppoe_fake import IP_PACKET, LCP_REQUEST, FakePpp

pytestmark = pytest.mark.root

PATIENCE = 60.0
#: The peer's end of the link, and ours: two addresses of each version, besides those of the link.
PEER4, PEER6, PEER_LINK = "10.9.0.9", "2001:db8::9", "fe80::9%cpe"
OURS4, OURS6, OUR_LINK = ("10.9.0.1", "10.9.0.2"), ("2001:db8::1", "2001:db8::2"), "fe80::1%cpe"
#: SO_RCVMARK, from Linux 5.19 on.
_SO_RCVMARK = 75


def sh(*words: str, text: str | None = None) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, input=text).stdout


def listening(*places: tuple[str, int], name: str = "L2TP", **options: object) -> Tunnel:
    return block(name, listen=tuple((ip_address(address), port) for address, port in places), **options)


def make_link() -> None:
    """All on one machine: "acc" is ours and "cpe" the peer's, but what is not for a link goes by lo."""
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "link", "add", "acc", "type", "veth", "peer", "cpe")
    for device, addresses in {
        "acc": (*OURS4, *OURS6, "fe80::1"),
        "cpe": (PEER4, PEER6, "fe80::9"),
    }.items():
        sh("ip", "link", "set", device, "addrgenmode", "none")
        for address in addresses:
            six = ":" in address
            sh("ip", "address", "add", f"{address}/{64 if six else 24}", "dev", device, *(["nodad"] if six else []))
        sh("ip", "link", "set", device, "up")


class Peer:
    """A LAC of a few lines."""

    def __init__(self, address: str, to: str, port: int = 1701, mine: int = 0) -> None:
        six = ":" in address
        self.sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        kind = (socket.AF_INET6 if six else socket.AF_INET), socket.SOCK_DGRAM
        self.sock.bind(socket.getaddrinfo(address, mine, *kind)[0][4])
        self.sock.setblocking(False)
        self.to = socket.getaddrinfo(to, port, *kind)[0][4]
        self.ns = self.nr = 0
        self.tunnel_id = self.session_id = 0

    @property
    def port(self) -> int:
        port: int = self.sock.getsockname()[1]
        return port

    def put(self, datagram: bytes) -> None:
        self.sock.sendto(datagram, self.to)

    def say(self, kind: Type, *avps: tuple[Attr, bytes], session_id: int = 0) -> None:
        body = codec.encode_message(kind, avps)
        self.put(codec.control(self.tunnel_id, session_id, self.ns, self.nr, body))
        self.ns += 1

    async def datagram(self) -> bytes:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                datagram, source = self.sock.recvfrom(65535)
            except BlockingIOError:
                # Let the server, which lives in the same loop, have its turn.
                await asyncio.sleep(0.001)
                continue
            assert source == self.to, "an answer from elsewhere"
            return datagram
        raise AssertionError("nothing heard")

    async def packet(self) -> Control:
        while True:
            datagram = await self.datagram()
            if datagram[0] >= 0x80:
                return codec.decode_control(datagram)

    async def hear(self, kind: Type) -> Message:
        """The next message that is none of those had before, which must be of that kind; it is acknowledged."""
        while True:
            packet = await self.packet()
            if packet.body and packet.ns == self.nr:
                self.nr += 1
                message = codec.decode_message(packet.body, b"")
                assert message.type == kind, message.name
                self.tunnel_id = self.tunnel_id or message.u16(Attr.ASSIGNED_TUNNEL_ID, 0)
                self.put(codec.control(self.tunnel_id, 0, self.ns, self.nr, b""))
                return message

    def ask(self) -> None:
        self.say(Type.SCCRQ, (Attr.HOST_NAME, b"lac"), (Attr.ASSIGNED_TUNNEL_ID, u16(77)))

    async def dial(self) -> None:
        self.ask()
        await self.hear(Type.SCCRP)
        self.say(Type.SCCCN)

    async def call(self) -> None:
        self.say(Type.ICRQ, (Attr.ASSIGNED_SESSION_ID, u16(88)), (Attr.CALL_SERIAL_NUMBER, u32(1)))
        self.session_id = (await self.hear(Type.ICRP)).u16(Attr.ASSIGNED_SESSION_ID, 0)
        self.say(Type.ICCN, (Attr.TX_CONNECT_SPEED, u32(1)), (Attr.FRAMING_TYPE, u32(1)), session_id=self.session_id)

    def send(self, frame: bytes) -> None:
        """A data message."""
        header = codec.data_header(self.tunnel_id, self.session_id, False)
        self.put(header[:2] + u16(len(header) + len(frame)) + header[4:] + frame)


class Lab(Gatekeeper):
    """A server, and its wheel turned by hand."""

    def __init__(self, *tunnels: Tunnel, journal: Journal | None = None) -> None:
        self.ppp = FakePpp()
        self.wheel = Wheel(time.monotonic())
        self.admission = Admission(asyncio.get_running_loop().call_soon, time.monotonic)
        self.server = L2tpServer(
            tunnels,
            self.ppp.open,
            random.Random(2661).randbytes,
            self.wheel,
            time.monotonic,
            journal or Journal(None),
            "lns.example",
            self.admission,
        )

    @property
    def only(self) -> Connection:
        (tunnel,) = self.server.engine.tunnels.values()
        return tunnel

    def drops(self, name: str = "L2TP") -> dict[str, int]:
        return self.server.engine.services[name].drops

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            self.wheel.advance(time.monotonic())
            await asyncio.sleep(0.001)

    async def up(self, peer: Peer) -> None:
        """A tunnel with a call."""
        before = len(self.ppp.sessions)
        await peer.dial()
        await peer.call()
        await self.until(lambda: len(self.ppp.sessions) > before)


WILD = (("0.0.0.0", 1701), ("::", 1701))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(
    ("mine", "ours"),
    [*((PEER4, address) for address in OURS4), *((PEER6, address) for address in OURS6), (PEER_LINK, OUR_LINK)],
)
def test_answers_come_from_where_the_peer_speaks_to(
    netns: None, loop: Callable[[], asyncio.AbstractEventLoop], mine: str, ours: str
) -> None:
    """A socket on all addresses has to say so; a link-local one needs its link as well."""

    async def story() -> None:
        make_link()
        lab, peer = Lab(listening(*WILD)), Peer(mine, ours)
        await lab.up(peer)
        endpoint = lab.only.endpoint
        assert endpoint.local == ip_address(ours.partition("%")[0]).packed
        assert endpoint.peer == ip_address(mine.partition("%")[0]).packed
        assert (endpoint.local_port, endpoint.peer_port) == (1701, peer.port)
        assert bool(endpoint.scope) is (mine == PEER_LINK)
        (session,) = lab.ppp.sessions
        peer.send(LCP_REQUEST)
        await lab.until(lambda: session.frames)
        assert session.frames == [LCP_REQUEST]
        session.call.send(IP_PACKET)
        while (datagram := await peer.datagram())[0] >= 0x80:
            pass
        data = codec.decode_data(datagram)
        assert (data.tunnel_id, data.session_id, data.ns) == (77, 88, 0)
        assert datagram[data.start : data.end] == b"\xff\x03" + IP_PACKET
        assert not lab.drops()
        # No answer but to the acknowledged: what is sent by itself has the right address, too.
        lab.server.shut()
        await peer.hear(Type.STOP_CCN)
        await lab.until(lambda: not lab.server.engine.busy)
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_two_ports_and_two_tunnels(netns: None) -> None:
    make_link()
    lab = Lab(
        listening((OURS4[0], 1701), (OURS4[0], 11701)),
        listening((OURS4[1], 1701), name="OTHER", hostname="other"),
    )
    names = {}
    for to, port in ((OURS4[0], 1701), (OURS4[0], 11701), (OURS4[1], 1701)):
        peer = Peer(PEER4, to, port)
        peer.ask()
        names[to, port] = (await peer.hear(Type.SCCRP)).text(Attr.HOST_NAME, "")
    assert list(names.values()) == ["lns.example", "lns.example", "other"]
    services = lab.server.engine.services
    assert {name: service.tunnels for name, service in services.items()} == {"L2TP": 2, "OTHER": 1}
    # Peers behind one NAT: the port tells them apart.
    assert len({tunnel.endpoint for tunnel in lab.server.engine.tunnels.values()}) == 3
    lab.server.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_burst_is_taken_whole(netns: None, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def story() -> None:
        make_link()
        lab, peer = Lab(listening(*WILD)), Peer(PEER4, OURS4[0])
        await lab.up(peer)
        (session,) = lab.ppp.sessions
        count = 5 * BATCH
        for number in range(count):
            peer.send(IP_PACKET + u16(number))
        await lab.until(lambda: len(session.frames) == count)
        assert session.frames == [IP_PACKET + u16(number) for number in range(count)]
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_the_largest_datagrams_and_those_that_are_larger(netns: None) -> None:
    make_link()
    lab, peer = Lab(listening(*WILD)), Peer(PEER4, OURS4[0])
    await lab.up(peer)
    (session,) = lab.ppp.sessions
    largest = bytes(65507 - 8)
    peer.send(largest)
    await lab.until(lambda: session.frames)
    assert session.frames == [largest]
    session.call.send(bytes(65507 - 12 - 2))
    while (datagram := await peer.datagram())[0] >= 0x80:
        pass
    assert len(datagram) == 65507
    session.call.send(bytes(65507 - 12 - 1))
    assert lab.drops() == {"send-EMSGSIZE": 1}
    lab.server.close()


async def test_what_is_no_l2tp_is_counted(netns: None) -> None:
    make_link()
    lab, peer = Lab(listening(*WILD)), Peer(PEER4, OURS4[0])
    for datagram in (b"", b"\x80", b"\xc8\x02", bytes(100), b"\xc8\x03" + bytes(10)):
        peer.put(datagram)
    await lab.until(lambda: lab.drops().get("malformed") == 5)
    lab.server.close()


async def test_an_address_that_goes_and_comes_back(netns: None) -> None:
    make_link()
    lab, peer = Lab(listening(*WILD)), Peer(PEER4, OURS4[1])
    await lab.up(peer)
    (session,) = lab.ppp.sessions
    sh("ip", "address", "del", f"{OURS4[1]}/24", "dev", "acc")
    session.call.send(IP_PACKET)
    # EINVAL or ENETUNREACH, as the kernel likes it.
    assert [(name[:6], count) for name, count in lab.drops().items()] == [("send-E", 1)]
    sh("ip", "address", "add", f"{OURS4[1]}/24", "dev", "acc")
    peer.send(IP_PACKET)
    await lab.until(lambda: session.frames)
    lab.server.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_error_of_the_socket_does_not_deafen_it(
    netns: None, loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    """What reports errors here is that the test connects the server's socket: the peer's port is closed at first."""

    async def story() -> None:
        make_link()
        lab = Lab(listening((OURS4[0], 1701)))
        (listener,) = lab.server._listeners.values()
        listener._sock.connect((PEER4, 4711))
        listener._sock.send(b"x")
        with caplog.at_level("INFO"):
            await lab.until(lambda: "Receive failed: Connection refused" in caplog.text)
        peer = Peer(PEER4, OURS4[0], mine=4711)
        await lab.up(peer)
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


# Marks.


def marks(rules: str) -> None:
    sh("nft", "-f", "-", text=f"table inet marks {{ counter out {{ }}\n{rules}\n}}")


def receives_marks() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
        except OSError:
            return False
        return True


@pytest.mark.parametrize(("mine", "ours"), [(PEER4, OURS4[0]), (PEER6, OURS6[1])])
async def test_marks_tell_peers_apart_and_go_back(netns: None, mine: str, ours: str) -> None:
    """Two peers with one address and port, as behind one NAT and under IPsec, where the kernel marks what comes."""
    if not receives_marks():
        pytest.skip("this kernel tells no marks")
    make_link()
    marks(
        """chain prerouting { type filter hook prerouting priority 0; udp dport 1701 meta mark set 0x42; }
        chain output { type filter hook output priority 0; udp sport 1701 meta mark 0x42 counter name out
        }"""
    )
    lab, peer = Lab(listening(*WILD)), Peer(mine, ours, mine=4711)
    await lab.up(peer)
    assert lab.only.endpoint.mark == 0x42
    (session,) = lab.ppp.sessions
    for _ in range(10):
        session.call.send(IP_PACKET)
    shown = json.loads(sh("nft", "-j", "list", "counters"))
    (packets,) = [item["counter"]["packets"] for item in shown["nftables"] if "counter" in item]
    assert packets >= 12
    # The same of another association is of another peer: neither its data nor its goodbye counts.
    sh("nft", "replace", "rule", "inet", "marks", "prerouting", "handle", handle(), "udp dport 1701 meta mark set 0x43")
    peer.send(IP_PACKET)
    peer.say(Type.STOP_CCN, (Attr.ASSIGNED_TUNNEL_ID, u16(77)), (Attr.RESULT_CODE, u16(1)))
    await lab.until(lambda: lab.drops().get("endpoint") == 2)
    assert not session.frames
    assert lab.only.state is State.ESTABLISHED
    other = Peer.__new__(Peer)
    other.__dict__.update(peer.__dict__, ns=0, nr=0, tunnel_id=0)
    await lab.up(other)
    assert {tunnel.endpoint.mark for tunnel in lab.server.engine.tunnels.values()} == {0x42, 0x43}
    lab.server.close()


def handle() -> str:
    shown = json.loads(sh("nft", "-j", "-a", "list", "chain", "inet", "marks", "prerouting"))
    return str(next(item["rule"]["handle"] for item in shown["nftables"] if "rule" in item))


# Configuration.


async def test_an_address_that_is_not_there(netns: None) -> None:
    make_link()
    tunnel = listening((OURS4[0], 1701), ("192.0.2.99", 1701))
    with pytest.raises(ListenError, match=r"npppd.conf:1:1: cannot listen on 192.0.2.99 port 1701: Cannot assign"):
        Lab(tunnel)
    # What was open has been closed.
    lab = Lab(listening((OURS4[0], 1701)))
    with pytest.raises(ListenError, match="Address already in use"):
        Lab(listening(*WILD[:1]), listening((OURS4[0], 1701), name="OTHER"))
    lab.server.close()
    Lab(listening(*WILD)).server.close()


async def test_reload_opens_and_closes(netns: None, caplog: pytest.LogCaptureFixture) -> None:
    make_link()
    first, second = (OURS4[0], 1701), (OURS4[1], 1701)
    lab = Lab(listening(first))
    peer, other = Peer(PEER4, *first), Peer(PEER4, *second)
    await lab.up(peer)
    lab.server.reconfigure([listening(first, second, ("192.0.2.99", 1701))])
    assert "cannot listen on 192.0.2.99 port 1701: Cannot assign requested address" in caplog.text
    await lab.up(other)
    # The first goes, and its tunnel; the second does not mind.
    one, two = lab.ppp.sessions
    lab.server.reconfigure([listening(second, session_limit=1)])
    assert one.ended == [(Cause.ADMIN_RESET, "address no longer listened on")]
    assert (await peer.hear(Type.STOP_CCN)).avps[Attr.RESULT_CODE][:2] == u16(1)
    assert not two.ended
    assert lab.server.engine.services["L2TP"].options.session_limit == 1
    # Its name goes, and its address is another's.
    lab.server.reconfigure([listening(second, name="OTHER", hostname="other")])
    assert two.ended == [(Cause.ADMIN_RESET, "tunnel no longer offered")]
    await other.hear(Type.STOP_CCN)
    again = Peer(PEER4, *second)
    again.ask()
    assert (await again.hear(Type.SCCRP)).text(Attr.HOST_NAME, "") == "other"
    assert list(lab.server.engine.services) == ["OTHER"]
    lab.server.reconfigure([])
    assert not lab.server.engine.services
    assert not lab.server._listeners
    lab.server.close()


async def test_reload_moves_an_address_to_another_tunnel(netns: None) -> None:
    make_link()
    lab = Lab(listening((OURS4[0], 1701)), listening((OURS4[1], 1701), name="OTHER"))
    peer = Peer(PEER4, OURS4[0])
    await lab.up(peer)
    lab.server.reconfigure([listening((OURS4[1], 1701)), listening((OURS4[0], 1701), name="OTHER")])
    await peer.hear(Type.STOP_CCN)
    for address, name in ((OURS4[0], "OTHER"), (OURS4[1], "L2TP")):
        again = Peer(PEER4, address)
        await again.dial()
        await lab.until(lambda: any(t.endpoint.peer_port == again.port for t in lab.server.engine.tunnels.values()))  # noqa: B023
        (tunnel,) = [t for t in lab.server.engine.tunnels.values() if t.endpoint.peer_port == again.port]
        assert tunnel.service.tunnel.name == name
    lab.server.close()


# What a killed daemon has left.


@pytest.mark.parametrize(("mine", "ours"), [(PEER4, OURS4[1]), (PEER6, OURS6[0]), (PEER_LINK, OUR_LINK)])
async def test_the_successor_of_a_killed_daemon_ends_its_tunnels(
    netns: None, tmp_path: Path, mine: str, ours: str
) -> None:
    make_link()
    path = tmp_path / "journal"
    journal = Journal(path)
    tunnel = listening(*WILD)
    lab = Lab(tunnel, journal=journal)
    peer, silent = Peer(mine, ours), Peer(mine, ours)
    await lab.up(peer)
    await silent.dial()
    await lab.until(lambda: len(journal) == 2)
    # A kill: no more is done but what the kernel does.
    lab.server._close_sockets()
    journal.close()

    journal = Journal(path)
    assert len(journal) == 2
    successor = Lab(tunnel, journal=journal)
    assert len(successor.server.engine._ghosts) == 2  # type: ignore[arg-type]
    # It asks with a number that the peer has had before, so that it must be acknowledged, and with it what comes next.
    while True:
        packet = await peer.packet()
        if packet.body and codec.decode_message(packet.body, b"").type == Type.HELLO:
            break
    assert (packet.tunnel_id, packet.ns) == (77, 0)
    peer.put(codec.control(peer.tunnel_id, 0, peer.ns, peer.nr, b""))
    await peer.hear(Type.STOP_CCN)
    await successor.until(lambda: len(journal) == 1)
    # Meanwhile new tunnels come.  The dice are the same, so that they would get the same numbers.
    for _ in range(2):
        again = Peer(mine, ours)
        await again.dial()
        assert again.tunnel_id != silent.tunnel_id
    # The other speaks only later: to a tunnel that there is not.
    silent.say(Type.HELLO)
    await silent.hear(Type.STOP_CCN)
    await successor.until(lambda: len(successor.server.engine._ghosts) == 0)  # type: ignore[arg-type]
    successor.server.close()
    assert len(journal) == 0
    journal.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(("mine", "ours"), [(PEER4, OURS4[0]), (PEER6, OURS6[0])])
def test_hosts_wait_while_others_are_served(
    netns: None,
    loop: Callable[[], asyncio.AbstractEventLoop],
    mine: str,
    ours: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a tunnel nor a call begins; what has begun goes on.  What there is no room for meanwhile is counted."""

    monkeypatch.setattr("npppy.entrance.FIRST", 300)

    async def story() -> None:
        make_link()
        lab, peer, late = Lab(listening(*WILD, half_open_peer_limit=5000)), Peer(mine, ours), Peer(mine, ours)
        await lab.up(peer)
        (session,) = lab.ppp.sessions
        lab.shut()
        await lab.until(lambda: lab.admission.closed)
        # A call waits, and is acknowledged.
        peer.say(Type.ICRQ, (Attr.ASSIGNED_SESSION_ID, u16(99)), (Attr.CALL_SERIAL_NUMBER, u32(2)))
        while (packet := await peer.packet()).nr != peer.ns:
            pass
        assert not packet.body
        assert lab.admission.waiting == 1
        count = 1000
        for number in range(count):
            late.ns = 0
            late.say(Type.SCCRQ, (Attr.HOST_NAME, b"lac"), (Attr.ASSIGNED_TUNNEL_ID, u16(1 + number)))
        peer.send(LCP_REQUEST)
        await lab.until(lambda: session.frames)
        peer.say(Type.HELLO)
        while (packet := await peer.packet()).nr != peer.ns:
            pass
        assert len(lab.server.engine.tunnels) == 1
        lab.open()
        assert (await peer.hear(Type.ICRP)).u16(Attr.ASSIGNED_SESSION_ID, 0)
        # Those that did not fit are known from the next one on that comes.
        await lab.until(lambda: len(lab.server.engine.tunnels) + lab.drops()["busy"] == 1 + count)
        assert lab.drops()["busy"] > 100
        assert len(lab.server.engine.tunnels) > 100
        assert not lab.admission.closed
        lab.server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_what_is_lost_while_we_have_no_time_is_counted(netns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though gates are never shut."""
    monkeypatch.setattr("npppy.entrance.FIRST", 300)
    make_link()
    lab, peer = Lab(listening((OURS4[0], 1701), half_open_peer_limit=5000)), Peer(PEER4, OURS4[0])
    count = 1000
    for number in range(count):
        peer.ns = 0
        peer.say(Type.SCCRQ, (Attr.HOST_NAME, b"lac"), (Attr.ASSIGNED_TUNNEL_ID, u16(1 + number)))
    await lab.until(lambda: len(lab.server.engine.tunnels) + lab.drops()["busy"] == count)
    assert lab.drops()["busy"] > 100
    assert not lab.admission.closures
    lab.server.close()


async def test_nobody_else_shares_the_place(netns: None) -> None:
    make_link()
    lab = Lab(listening((OURS4[0], 1701)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
        other.bind((OURS4[0], 1701))
    with pytest.raises(ListenError, match="in use"):
        Lab(listening((OURS4[0], 1701)))
    # All that is not SCCRQ has found its way past the second socket, and goes on doing so.
    peer = Peer(PEER4, OURS4[0])
    await lab.up(peer)
    lab.server.close()
