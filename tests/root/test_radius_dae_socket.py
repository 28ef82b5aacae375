"""Dynamic authorization over real sockets, with FreeRADIUS's radclient as the client."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address

import pytest
import uvloop

from npppy.aaa.radius.dae import ACT_SLICE
from npppy.aaa.radius.dae_server import DaeServer, ListenError, is_local
from npppy.aaa.radius.packet import Code, parse, verify_reply
from npppy.config.model import Dae, Radius
from tests.unit.dae_rig import POOL, SECRET, signed
from tests.unit.ppp_rig import Rig

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("radclient") is None, reason="radclient is not installed"),
]

PATIENCE = 60.0
#: Ours are two of each family, on a link to the client.
OURS4, OURS6 = ("10.9.0.1", "10.9.0.2"), ("2001:db8::1", "2001:db8::2")
CLIENT4, CLIENT6 = "10.9.0.9", "2001:db8::9"
LINK, CLIENT_LINK = "fe80::1", "fe80::9"
ALICE = 'User-Name = "alice"'

Test = Callable[["Lab"], Coroutine[None, None, None]]


def sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


class Lab:
    """A server on some addresses, and some sessions."""

    def __init__(self, *places: tuple[str, int]) -> None:
        self.rig = Rig(ipcp=POOL)
        self.server = DaeServer(self.radius(*places), self.rig.engine, time.monotonic, time.time)

    @staticmethod
    def radius(*places: tuple[str, int], **settings: object) -> Radius:
        clients = (CLIENT4, CLIENT6, CLIENT_LINK)
        return Radius(
            dae=Dae(
                listen=tuple((ip_address(address), port) for address, port in places),
                clients=tuple((ip_address(client), SECRET.decode()) for client in clients),
                **settings,  # type: ignore[arg-type]
            )
        )

    async def ask(
        self, command: str, to: str, *attributes: str, source: str = "", secret: bytes = SECRET, wait: float = 3
    ) -> Reply:
        """radclient's answer; it tries twice."""
        words = ["radclient", "-x", "-t", str(wait), "-r", "2"]
        lines = [*attributes]
        if source:
            six = ":" in source
            lines.append(f"Packet-Src-{'IPv6' if six else 'IP'}-Address = {source}")
        process = await asyncio.create_subprocess_exec(
            *words,
            to,
            command,
            secret.decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate("\n".join(lines).encode()), PATIENCE)
        return Reply(output.decode(), process.returncode == 0)


class Reply:
    """What radclient has printed."""

    def __init__(self, output: str, well: bool) -> None:
        self.output = output
        self.well = well
        found = re.findall(r"^Received (\S+) Id \d+ from (\S+) to", output, re.MULTILINE)
        self.code, self.source = found[-1] if found else ("", "")

    @property
    def error(self) -> str:
        found = re.search(r"Error-Cause = (\S+)", self.output)
        return found[1] if found else ""


def run(netns_test: Test, *places: tuple[str, int]) -> None:
    async def main() -> None:
        lab = Lab(*places)
        try:
            await netns_test(lab)
        finally:
            lab.server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.fixture
def link(netns: None) -> None:
    """All on one machine; what is for an address of it goes by lo."""
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "link", "add", "acc", "type", "veth", "peer", "cpe")
    for device, addresses in {"acc": (*OURS4, *OURS6, LINK), "cpe": (CLIENT4, CLIENT6, CLIENT_LINK)}.items():
        sh("ip", "link", "set", device, "addrgenmode", "none")
        for address in addresses:
            six = ":" in address
            sh("ip", "address", "add", f"{address}/{64 if six else 24}", "dev", device, *(["nodad"] if six else []))
        sh("ip", "link", "set", device, "up")


@pytest.mark.parametrize(
    ("place", "to", "source"),
    [
        (OURS4[0], OURS4[0], CLIENT4),
        (OURS6[0], f"[{OURS6[0]}]", CLIENT6),
        ("0.0.0.0", OURS4[1], CLIENT4),
        ("::", f"[{OURS6[1]}]", CLIENT6),
    ],
)
def test_disconnect_by_radclient(link: None, place: str, to: str, source: str) -> None:
    """It takes an answer from nowhere else than where it has sent its request to."""

    async def test(lab: Lab) -> None:
        line = lab.rig.up()
        reply = await lab.ask("disconnect", f"{to}:3799", ALICE, 'Proxy-State = "x"', source=source)
        assert (reply.code, reply.well) == ("Disconnect-ACK", True), reply.output
        assert reply.source == f"{to}:3799"
        assert "Acct-Terminate-Cause = Admin-Reset" in reply.output
        assert "Proxy-State = 0x78" in reply.output
        assert line.session.cause.title == "Admin-Reset"
        reply = await lab.ask("disconnect", f"{to}:3799", ALICE, source=source)
        assert (reply.code, reply.well, reply.error) == ("Disconnect-NAK", False, "Session-Context-Not-Found")

    run(test, (place, 3799))


def test_change_by_radclient(link: None) -> None:
    async def test(lab: Lab) -> None:
        line = lab.rig.up()
        session = line.session
        reply = await lab.ask(
            "coa",
            f"{OURS4[0]}:3799",
            f'Acct-Session-Id = "{session.acct_session_id}"',
            f"Framed-IP-Address = {session.ip}",
            f"NAS-IP-Address = {OURS4[1]}",
            f"Event-Timestamp = {time.time():.0f}",
            "Session-Timeout = 3600",
            'Mikrotik-Rate-Limit = "2M/20M"',
            "Message-Authenticator = 0x00",
            source=CLIENT4,
        )
        assert reply.code == "CoA-ACK", reply.output
        assert "Message-Authenticator" in reply.output
        assert "Event-Timestamp" in reply.output
        assert session.profile.session_timeout == 3600
        assert session.profile.police_down is not None
        assert session.profile.police_down.rate == 20_000_000 // 8
        for attributes, error in {
            ("Session-Timeout = 60", "NAS-IP-Address = 192.0.2.1"): "NAS-Identification-Mismatch",
            ("Session-Timeout = 60", "Framed-Pool = x"): "Unsupported-Attribute",
            (): "Missing-Attribute",
            ("Service-Type = Authorize-Only", "State = 0x31"): "Unsupported-Service",
        }.items():
            reply = await lab.ask("coa", f"{OURS4[0]}:3799", ALICE, *attributes, source=CLIENT4)
            assert (reply.code, reply.error) == ("CoA-NAK", error), reply.output
        assert session.profile.session_timeout == 3600

    run(test, (OURS4[0], 3799))


def test_who_is_not_heard(link: None) -> None:
    async def test(lab: Lab) -> None:
        line = lab.rig.up()
        # From an address that is no client's, and with another secret.
        for source, secret in ((OURS4[1], SECRET), (CLIENT4, b"another")):
            reply = await lab.ask("disconnect", f"{OURS4[0]}:3799", ALICE, source=source, secret=secret, wait=0.3)
            assert (reply.code, reply.well) == ("", False), reply.output
        assert line.session.phase.name == "UP"
        assert lab.server.dae.strangers == 2, "radclient has tried it twice"
        assert lab.server.state()[0].discarded == {"unauthentic": 2}

    run(test, (OURS4[0], 3799))


class Peer:
    """A client of a few lines, which keeps its port."""

    def __init__(self, address: str, to: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind(socket.getaddrinfo(address, 0, family, socket.SOCK_DGRAM)[0][4])
        self.to = socket.getaddrinfo(to, 3799, family, socket.SOCK_DGRAM)[0][4]

    def put(self, packet: bytes) -> None:
        self.sock.sendto(packet, self.to)

    async def answer(self, request: bytes) -> Code:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                packet, source = self.sock.recvfrom(4096)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            assert source == self.to, "an answer from elsewhere"
            received = parse(packet)
            assert verify_reply(received, request[4:20], SECRET, require=True) == ""
            return received.code
        raise AssertionError("no answer")


def test_link_local(link: None) -> None:
    async def test(lab: Lab) -> None:
        line = lab.rig.up()
        peer = Peer(f"{CLIENT_LINK}%cpe", f"{LINK}%cpe")
        request = signed(Code.DISCONNECT_REQUEST, [("User-Name", "alice")])
        peer.put(request)
        assert await peer.answer(request) is Code.DISCONNECT_ACK
        assert line.session.cause.title == "Admin-Reset"

    run(test, ("::", 3799))


def test_in_slices_between_turns_of_the_loop(link: None) -> None:
    async def test(lab: Lab) -> None:
        count = 20 * ACT_SLICE
        for _ in range(count):
            lab.rig.up()
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_soon(turn)

        peer = Peer(CLIENT4, OURS4[0])
        request = signed(Code.DISCONNECT_REQUEST, [("User-Name", "alice")])
        peer.put(request)
        turn()
        assert await peer.answer(request) is Code.DISCONNECT_ACK
        assert turns >= count // ACT_SLICE - 1
        assert lab.rig.engine.bound == 0
        peer.put(request)
        assert await peer.answer(request) is Code.DISCONNECT_ACK
        assert lab.server.state()[0].duplicates == 1

    run(test, ("0.0.0.0", 3799))


def test_reload(link: None, caplog: pytest.LogCaptureFixture) -> None:
    async def test(lab: Lab) -> None:
        request = signed(Code.DISCONNECT_REQUEST, [("User-Name", "alice")])
        first, second = Peer(CLIENT4, OURS4[0]), Peer(CLIENT4, OURS4[1])
        first.put(request)
        assert await first.answer(request) is Code.DISCONNECT_NAK
        # The whole place of one that is open makes room for it.
        lab.server.reconfigure(lab.radius((OURS4[1], 3799), ("192.0.2.77", 3799)))
        assert "192.0.2.77" in caplog.text, "what cannot be had is logged"
        second.put(request)
        assert await second.answer(request) is Code.DISCONNECT_NAK
        lab.server.reconfigure(lab.radius(("0.0.0.0", 3799)))
        for peer in (first, second):
            peer.put(request[:1] + b"\x07" + request[2:])
            again = signed(Code.DISCONNECT_REQUEST, [("User-Name", "alice")], identifier=8)
            peer.put(again)
            assert await peer.answer(again) is Code.DISCONNECT_NAK
        state = lab.server.state()[0]
        assert (state.disconnect_naks, state.discarded) == (4, {"unauthentic": 2})
        lab.server.reconfigure(lab.radius())
        lab.rig.up()
        first.put(signed(Code.DISCONNECT_REQUEST, [("User-Name", "alice")], identifier=9))
        await asyncio.sleep(0.05)
        assert lab.rig.engine.bound == 1, "nobody listens"

    run(test, (OURS4[0], 3799))


def test_a_reload_while_a_request_waits(link: None) -> None:
    async def test(lab: Lab) -> None:
        for _ in range(5 * ACT_SLICE):
            lab.rig.up()
        peer = Peer(CLIENT4, OURS4[0])
        peer.put(signed(Code.DISCONNECT_REQUEST, [("User-Name", "alice")]))
        deadline = time.monotonic() + PATIENCE
        while not lab.server.dae.busy and time.monotonic() < deadline:
            await asyncio.sleep(0)
        lab.server.reconfigure(lab.radius())
        while lab.server.dae.busy and time.monotonic() < deadline:
            await asyncio.sleep(0)
        assert lab.rig.engine.bound == 0
        assert lab.server.lost == {"EBADF": 1}

    run(test, (OURS4[0], 3799))


def test_an_address_that_is_taken(link: None) -> None:
    async def test(lab: Lab) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ListenError, match=r"^radius dae: cannot listen on 10\.9\.0\.1 port 3799: Address already"):
            DaeServer(lab.radius((OURS4[1], 3799), (OURS4[0], 3799)), lab.rig.engine, time.monotonic, time.time)
        assert len(os.listdir("/proc/self/fd")) == before

    run(test, (OURS4[0], 3799))


def test_what_is_ours(link: None) -> None:
    ours = [address for address in (*OURS4, *OURS6, "127.0.0.1", "::1") if is_local(ip_address(address))]
    assert ours == [*OURS4, *OURS6, "127.0.0.1", "::1"]
    for address in ("10.9.0.77", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "2001:db8::77"):
        assert not is_local(ip_address(address))
