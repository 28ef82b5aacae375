"""The socket shell of PPPoE on a veth pair in a network namespace of its own."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from npppy.admission import Admission
from npppy.config.model import Protocol, Tunnel
from npppy.journal import Journal
from npppy.ppp.cause import Cause
from npppy.pppoe.codec import BROADCAST, Code, Discovery, Tag, decode_discovery, decode_session, session_frame
from npppy.pppoe.server import BATCH, PppoeServer, end_orphans
from npppy.wheel import Wheel
from tests.root.gatekeeper import Gatekeeper
from tests.unit.pppoe_fake import IP_PACKET, LCP_REQUEST, FakePpp, tunnel

pytestmark = pytest.mark.root

_ETH_P_ALL = 3

ACCESS = bytes.fromhex("02ac00000001")
HOST = bytes.fromhex("020000000101")
PATIENCE = 60.0


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def make_link() -> None:
    """acc is ours, cpe the subscriber's end."""
    ip("link", "add", "acc", "address", ACCESS.hex(":"), "type", "veth", "peer", "cpe", "address", HOST.hex(":"))
    ip("link", "set", "acc", "up")
    ip("link", "set", "cpe", "up")


class Lab(Gatekeeper):
    """A server on acc, and a plain packet socket on cpe."""

    def __init__(self, *tunnels: Tunnel, journal: Journal | None = None) -> None:
        make_link()
        self.ppp = FakePpp()
        self.admission = Admission(asyncio.get_running_loop().call_soon, time.monotonic)
        self.server = PppoeServer(
            tunnels or (tunnel(interfaces=("acc",)),),
            self.ppp.open,
            random.Random(2516).randbytes,
            Wheel(time.monotonic()),
            time.monotonic,
            journal or Journal(None),
            self.admission,
        )
        self.tell()
        self.cpe = self.plug_in()

    @staticmethod
    def plug_in() -> socket.socket:
        cpe = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        cpe.bind(("cpe", _ETH_P_ALL))
        cpe.setblocking(False)
        return cpe

    def tell(self) -> None:
        """Report the link as it is."""
        (link,) = json.loads(ip("-j", "link", "show", "acc"))
        mac = bytes.fromhex(link["address"].replace(":", ""))
        self.server.link_event("acc", link["ifindex"], mac, link["mtu"], "UP" in link["flags"], True)

    def tell_gone(self) -> None:
        self.server.link_event("acc", 0, b"", 0, False, False)

    async def hear(self) -> bytes:
        """The next PPPoE frame at the subscriber's end, tagged ones included."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            frame = self.heard()
            if frame is not None:
                return frame
            # Let the server, which lives in the same loop, have its turn.
            await asyncio.sleep(0.001)
        raise AssertionError("nothing heard")

    def heard(self) -> bytes | None:
        """The next one that is there already."""
        while True:
            try:
                frame = self.cpe.recv(4096)
            except BlockingIOError:
                return None
            # What the interfaces say of themselves, in IPv6, is of no interest.
            if frame[6:12] != HOST and frame[12:14] in (b"\x88\x63", b"\x88\x64", b"\x81\x00"):
                return frame

    async def hear_discovery(self) -> Discovery:
        return decode_discovery(await self.hear())

    def padi(self, uniq: bytes) -> bytes:
        return Discovery(BROADCAST, HOST, Code.PADI, 0, ((Tag.SERVICE_NAME, b""), (Tag.HOST_UNIQ, uniq))).encode()

    async def dial(self, uniq: bytes = b"1") -> tuple[int, Discovery]:
        self.cpe.send(self.padi(uniq))
        pado = await self.hear_discovery()
        assert pado.code == Code.PADO
        cookie = pado.first(Tag.AC_COOKIE)
        assert cookie is not None
        tags = ((Tag.SERVICE_NAME, b""), (Tag.HOST_UNIQ, uniq), (Tag.AC_COOKIE, cookie))
        self.cpe.send(Discovery(pado.source, HOST, Code.PADR, 0, tags).encode())
        pads = await self.hear_discovery()
        assert pads.code == Code.PADS
        assert pads.first(Tag.HOST_UNIQ) == uniq
        assert pads.session_id
        return pads.session_id, pads

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    def close(self) -> None:
        self.server.close()
        self.cpe.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_session_from_padi_to_padt(netns: None, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def story() -> None:
        lab = Lab()
        sid, pads = await lab.dial()
        assert pads.source == ACCESS
        upper = lab.ppp.sessions[0]
        lab.cpe.send(session_frame(ACCESS, HOST, sid, LCP_REQUEST))
        await lab.until(lambda: upper.frames)
        assert upper.frames == [LCP_REQUEST]
        upper.call.send(IP_PACKET)
        assert decode_session(await lab.hear()) == (HOST, ACCESS, sid, IP_PACKET)
        lab.cpe.send(Discovery(ACCESS, HOST, Code.PADT, sid).encode())
        await lab.until(lambda: upper.ended)
        assert upper.ended == [(Cause.USER_REQUEST, "PADT received")]
        lab.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


@pytest.mark.parametrize("tag", ["8100 0007", "8100 e007", "88a8 0007", "88a8 0007 8100 0008", "8100 0007 8100 0008"])
async def test_a_vlan_tagged_padi_is_not_answered_untagged(netns: None, tag: str) -> None:
    """The kernel takes the tag off before the frame reaches the socket."""
    lab = Lab()
    tagged, plain = lab.padi(b"tagged"), lab.padi(b"plain")
    lab.cpe.send(tagged[:12] + bytes.fromhex(tag) + tagged[12:])
    lab.cpe.send(plain)
    pado = await lab.hear_discovery()
    assert pado.first(Tag.HOST_UNIQ) == b"plain"
    # Nor did a session frame get through, which would be answered by a PADT.
    frame = session_frame(ACCESS, HOST, 7, LCP_REQUEST)
    lab.cpe.send(frame[:12] + bytes.fromhex(tag) + frame[12:])
    lab.cpe.send(plain)
    assert (await lab.hear_discovery()).code == Code.PADO
    lab.close()


async def test_frames_to_others_do_not_reach_us(netns: None) -> None:
    lab = Lab()
    ip("link", "set", "acc", "promisc", "on")
    padi = lab.padi(b"other")
    lab.cpe.send(bytes.fromhex("020000000999") + padi[6:])
    lab.cpe.send(bytes.fromhex("01005e000001") + padi[6:])
    lab.cpe.send(lab.padi(b"plain"))
    assert (await lab.hear_discovery()).first(Tag.HOST_UNIQ) == b"plain"
    # They were not even given to the engine, which would have counted them.
    assert [dict(drops) for drops in lab.server.engine.drops.values()] == [{}]
    lab.close()


async def test_frames_to_devices_on_ours_do_not_reach_us(netns: None) -> None:
    """A MACVLAN here; what comes by a VLAN device is given to us in the same way, our own address on it."""
    lab = Lab()
    other = "02ac00000007"
    ip("link", "add", "link", "acc", "name", "other", "address", bytes.fromhex(other).hex(":"), "type", "macvlan")
    ip("link", "set", "other", "up")
    frame = bytes.fromhex(other) + session_frame(ACCESS, HOST, 7, LCP_REQUEST)[6:]
    lab.cpe.send(frame)
    lab.cpe.send(lab.padi(b"plain"))
    assert (await lab.hear_discovery()).first(Tag.HOST_UNIQ) == b"plain"
    assert [dict(drops) for drops in lab.server.engine.drops.values()] == [{}]
    lab.close()


async def test_a_burst_is_answered_whole(netns: None) -> None:
    lab = Lab()
    count = 5 * BATCH
    for number in range(count):
        lab.cpe.send(lab.padi(number.to_bytes(2, "big")))
    heard = [(await lab.hear_discovery()).first(Tag.HOST_UNIQ) for _ in range(count)]
    assert heard == [number.to_bytes(2, "big") for number in range(count)]
    lab.close()


async def test_an_interface_that_vanishes_and_comes_back(netns: None) -> None:
    lab = Lab()
    await lab.dial()
    (upper,) = lab.ppp.sessions
    lab.cpe.close()
    ip("link", "del", "acc")
    # The news may come late: what is sent until then is lost, and counted.
    upper.call.send(LCP_REQUEST)
    lab.tell_gone()
    assert upper.ended == [(Cause.LOST_CARRIER, "interface vanished")]
    (drops,) = lab.server.engine.drops.values()
    assert drops["send-ENXIO"] == 1
    lab.tell_gone()
    make_link()
    lab.cpe = lab.plug_in()
    lab.tell()
    await lab.dial()
    # Deleted and made again so fast that only the new one was seen.
    lab.cpe.close()
    ip("link", "del", "acc")
    make_link()
    lab.cpe = lab.plug_in()
    lab.tell()
    assert lab.ppp.sessions[1].ended == [(Cause.LOST_CARRIER, "interface vanished")]
    await lab.dial()
    lab.close()


async def test_an_interface_that_appears_late(netns: None) -> None:
    lab = Lab(tunnel(interfaces=("late", "acc")))
    assert lab.server.interfaces() == {"late", "acc"}
    lab.server.link_event("late", 99, ACCESS, 1500, True, True)
    lab.server.link_event("elsewhere", 98, ACCESS, 1500, True, True)
    # Neither is there; the one that is goes on.
    await lab.dial()
    lab.close()


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_link_that_flaps_keeps_its_sessions(
    netns: None, loop: Callable[[], asyncio.AbstractEventLoop], taken: bool
) -> None:
    async def story() -> None:
        lab = Lab()
        sid, _ = await lab.dial()
        (upper,) = lab.ppp.sessions
        # What keeps the loop from hearing of the error before a frame that is sent meets it, or not.
        wait = 0.0 if taken else 0.05
        ip("link", "set", "acc", "down")
        lab.tell()
        await asyncio.sleep(wait)
        upper.call.send(LCP_REQUEST)
        (drops,) = lab.server.engine.drops.values()
        assert drops["send-ENETDOWN"] == 1
        await asyncio.sleep(0.05)
        ip("link", "set", "acc", "up")
        lab.tell()

        def frames_come() -> bool:
            # The kernel takes up to a second to see that the carrier is back.
            lab.cpe.send(session_frame(ACCESS, HOST, sid, LCP_REQUEST))
            return bool(upper.frames)

        await lab.until(frames_come)
        assert not upper.ended
        upper.call.send(IP_PACKET)
        assert decode_session(await lab.hear()).ppp == IP_PACKET
        # Discovery has not gone deaf either.
        await lab.dial(b"2")
        lab.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_a_new_mac_address(netns: None) -> None:
    lab = Lab()
    sid, _ = await lab.dial()
    new = bytes.fromhex("02ac00000002")
    ip("link", "set", "acc", "address", new.hex(":"))
    lab.tell()
    assert await lab.hear_discovery() == Discovery(HOST, ACCESS, Code.PADT, sid)
    assert lab.ppp.sessions[0].ended == [(Cause.LOST_CARRIER, "MAC address changed")]
    _, pads = await lab.dial()
    assert pads.source == new
    lab.close()


async def test_a_new_mtu(netns: None) -> None:
    lab = Lab()
    await lab.dial()
    ip("link", "set", "acc", "mtu", "1400")
    lab.tell()
    assert lab.ppp.sessions[0].links[0].max_mru == 1392
    lab.ppp.sessions[0].call.send(bytes(1500))
    (drops,) = lab.server.engine.drops.values()
    assert drops["send-EMSGSIZE"] == 1
    lab.close()


async def test_reload_closes_what_is_not_listened_on(netns: None) -> None:
    lab = Lab()
    sid, _ = await lab.dial()
    lab.server.reconfigure([tunnel(interfaces=("other",))])
    assert (await lab.hear_discovery()) == Discovery(HOST, ACCESS, Code.PADT, sid)
    assert lab.ppp.sessions[0].ended
    lab.tell()
    lab.cpe.send(lab.padi(b"unheard"))
    lab.server.reconfigure([tunnel(interfaces=("acc",), ac_name="new")])
    lab.tell()
    lab.cpe.send(lab.padi(b"heard"))
    pado = await lab.hear_discovery()
    assert (pado.first(Tag.HOST_UNIQ), pado.first(Tag.AC_NAME)) == (b"heard", b"new")
    lab.close()


async def test_close_says_goodbye(netns: None) -> None:
    lab = Lab()
    sid, _ = await lab.dial()
    lab.server.close()
    assert (await lab.hear_discovery()) == Discovery(HOST, ACCESS, Code.PADT, sid)
    assert lab.ppp.sessions[0].ended == [(Cause.ADMIN_REBOOT, "shutting down")]
    lab.cpe.close()


async def test_the_successor_of_a_killed_daemon_ends_its_sessions(netns: None, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lab = Lab(journal=Journal(path))
    sids = [(await lab.dial(bytes([number])))[0] for number in range(3)]
    lab.ppp.sessions[1].call.close(Cause.IDLE_TIMEOUT)
    assert (await lab.hear_discovery()).session_id == sids[1]
    # What a kill would leave behind now.
    left = path.read_bytes()
    lab.close()
    path = tmp_path / "left"
    path.write_bytes(left)
    journal = Journal(path)
    journal.add(Protocol.PPPOE, "gone0", Discovery(HOST, ACCESS, Code.PADT, 1).encode())
    journal.close()
    journal = Journal(path)
    lab.cpe = lab.plug_in()
    assert end_orphans(journal) == 3
    assert len(journal) == 0
    heard = [await lab.hear_discovery() for _ in range(2)]
    assert heard == [Discovery(HOST, ACCESS, Code.PADT, sid) for sid in (sids[0], sids[2])]
    assert end_orphans(journal) == 0
    journal.close()
    lab.cpe.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_hosts_wait_while_others_are_served(
    netns: None, loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PADI is not read; all else is.  What the kernel has no room for meanwhile is counted."""
    monkeypatch.setattr("npppy.entrance.FIRST", 300)

    async def story() -> None:
        lab = Lab()
        sid, _ = await lab.dial()
        (upper,) = lab.ppp.sessions
        lab.cpe.send(lab.padi(b"early"))
        cookie = (await lab.hear_discovery()).first(Tag.AC_COOKIE)
        assert cookie is not None
        lab.shut()
        await lab.until(lambda: lab.admission.closed)
        count = 1000
        for number in range(count):
            lab.cpe.send(lab.padi(number.to_bytes(2, "big")))
        tags = ((Tag.SERVICE_NAME, b""), (Tag.HOST_UNIQ, b"early"), (Tag.AC_COOKIE, cookie))
        lab.cpe.send(Discovery(ACCESS, HOST, Code.PADR, 0, tags).encode())
        assert (await lab.hear_discovery()).code == Code.PADS
        lab.cpe.send(session_frame(ACCESS, HOST, sid, LCP_REQUEST))
        await lab.until(lambda: upper.frames)
        lab.cpe.send(Discovery(ACCESS, HOST, Code.PADT, sid).encode())
        await lab.until(lambda: upper.ended)
        assert lab.heard() is None
        lab.open()
        (drops,) = lab.server.engine.drops.values()
        # The first of them are there, in order.
        for number in range(100):
            pado = await lab.hear_discovery()
            assert (pado.code, pado.first(Tag.HOST_UNIQ)) == (Code.PADO, number.to_bytes(2, "big"))
        heard = 100
        while heard + drops["busy"] < count:
            await lab.hear_discovery()
            heard += 1
        assert drops["busy"] > 100
        assert not lab.admission.closed
        lab.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_what_is_lost_while_we_have_no_time_is_counted(netns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though gates are never shut."""
    monkeypatch.setattr("npppy.entrance.FIRST", 300)
    lab = Lab()
    count = 1000
    for number in range(count):
        lab.cpe.send(lab.padi(number.to_bytes(2, "big")))
    (drops,) = lab.server.engine.drops.values()
    heard = 0
    while heard + drops["busy"] < count:
        assert (await lab.hear_discovery()).code == Code.PADO
        heard += 1
    assert drops["busy"] > 100
    assert not lab.admission.closures
    lab.close()


async def test_short_frames_are_counted_though_they_have_no_code(netns: None) -> None:
    lab = Lab()
    lab.cpe.send(ACCESS + HOST + b"\x88\x63\x11")
    (drops,) = lab.server.engine.drops.values()
    await lab.until(lambda: drops["malformed"])
    lab.close()
