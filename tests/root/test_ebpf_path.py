"""Back end ebpf: packets of real kernels through sessions, both ways, in network namespaces of our own."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from npppy.pipex.base import Counters, Police
from npppy.pipex.ebpf import layout
from npppy.port import Port
from tests.root.ebpf_lab import (
    GATEWAY,
    IP,
    PEER,
    SESSION,
    WORLD,
    Lab,
    Subscriber,
    frame,
    interface,
    packet_socket,
    sh,
    until,
)
from tests.unit.ippackets import ip, udp, words

pytestmark = pytest.mark.root


def payloads(frames: list[bytes]) -> list[bytes]:
    """The IP packets in session frames."""
    return [data[22 : 20 + int.from_bytes(data[18:20], "big")] for data in frames if data[20:22] == IP]


def drain(sock: socket.socket) -> list[bytes]:
    """What has come."""
    found = []
    while True:
        try:
            found.append(sock.recv(65536, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return found


class TestKernels:
    """The subscriber has a kernel too, whose ppp0 is the session."""

    @pytest.mark.parametrize("more", [{}, {"offload": False}], ids=["ebpf", "user"])
    async def test_ping(self, lab: Lab, more: dict[str, bool]) -> None:
        """The same from outside, whoever carries it."""
        await lab.open()
        flow = lab.add(1, ingress_filter=True, mss_adjust=True, **more)
        lab.pump = Subscriber(lab.subscriber, 1, 1492)
        for namespace, target in ((lab.subscriber, GATEWAY), (lab.subscriber, WORLD), (lab.world, PEER)):
            code, text = await namespace.run(f"ping -c 3 -i 0.01 -W 5 -s 1464 -M do {target}")
            assert code == 0, text
        assert flow.counters() == Counters(9 * 1492, 9, 0, 9 * 1492, 9, 0)
        assert (lab.seen(), len(lab.control)) == (9 if more else 0, 0)
        assert flow.carried is not bool(more)

    async def test_udp(self, lab: Lab) -> None:
        """All sizes, both ways, and every packet is counted once and by the kernel."""
        await lab.open()
        flow = lab.add(1, ingress_filter=True)
        lab.pump = Subscriber(lab.subscriber, 1, 1492)
        near = lab.subscriber.socket(socket.SOCK_DGRAM, (PEER, 4000))
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        far = lab.world.socket(socket.SOCK_DGRAM, (WORLD, 4000))
        sizes = [0, 1, 17, 18, 19, 512, 1463, 1464]
        for other, address in ((here, GATEWAY), (far, WORLD)):
            for number, size in enumerate(sizes):
                data = bytes([number]) * size
                for sender, receiver, to in ((near, other, address), (other, near, PEER)):
                    receiver.settimeout(60)
                    sender.sendto(data, (to, 4000))
                    assert await asyncio.to_thread(receiver.recv, 2000) == data
        for made in (near, here, far):
            made.close()
        octets = 2 * sum(28 + size for size in sizes)
        assert flow.counters() == Counters(octets, 16, 0, octets, 16, 0)
        assert lab.seen() == 0

    @pytest.mark.parametrize("far", ["world", "home"])
    @pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
    async def test_tcp(self, lab: Lab, up: bool, far: str) -> None:
        """In bulk, with GSO and GRO as the kernel has them; nothing stalls or is altered, the MSS is clamped."""
        backend = await lab.open()
        flow = lab.add(1, ingress_filter=True, mss_adjust=True)
        # A subscriber whose MTU is larger than its session's: only the clamping saves it.
        lab.pump = Subscriber(lab.subscriber, 1, 1500)
        size = await lab.transfer(up=up, world=far == "world")
        assert all(len(packet) <= 1492 for packet in lab.pump.received)
        for packet in lab.pump.received:
            pseudo = packet[12:20] + b"\0\6" + (len(packet) - 20).to_bytes(2, "big")
            assert words(packet[:20]) == 0xFFFF
            assert words(pseudo + packet[20:]) == 0xFFFF
        # What a full ring of a veth device drops, TCP sends again.
        await until(lambda: flow.counters().in_packets <= len(lab.pump.sent))
        await until(lambda: flow.counters().out_packets >= len(lab.pump.received))
        # The last segments may be on their way yet.
        await until(lambda: flow.counters()[1::-1] == backend.state().paths["STACK_UP"])
        await until(lambda: flow.counters()[4:2:-1] == backend.state().paths["STACK_DOWN"])
        counters = flow.counters()
        assert (counters.in_packets if up else counters.out_packets) > size / 1452
        assert lab.seen() == 0


class TestLeftToPython:
    async def test_too_big(self, lab: Lab) -> None:
        """RFC 1191: the sender hears of it; without DF it is cut in pieces."""
        await lab.open()
        flow = lab.add(1, mtu=1000)
        lab.pump = Subscriber(lab.subscriber, 1, 1492)
        code, text = await lab.world.run(f"ping -c 1 -W 5 -s 1300 -M do {PEER}")
        assert code == 1
        assert "mtu = 1000" in text or "mtu=1000" in text, text
        assert GATEWAY in text
        # The answer is as large, and the peer may send that.
        code, text = await lab.world.run(f"ping -c 1 -W 5 -s 1300 -M dont {PEER}")
        assert code == 0, text
        assert [len(packet) for packet in lab.pump.received] == [996, 352]
        assert flow.counters() == Counters(1328, 1, 0, 996 + 352, 2, 1)

    @pytest.mark.parametrize("offload", [True, False], ids=["ebpf", "user"])
    async def test_peer_to_peer(self, lab: Lab, offload: bool) -> None:
        """Through the stack, which takes both for neighbours; neither hears of that."""
        await lab.open()
        one = lab.add(1, offload=offload)
        two = lab.add(2, "10.0.0.3", mac=b"\x02\0\0\0\0\x03", offload=offload)
        for number in range(1, 4):
            lab.raw.send(frame(1, IP + udp(PEER, "10.0.0.3", b"hello")))
            await same(lambda: two.counters().out_packets, number)
        # What the kernel has sent before an answer is there before it.
        lab.raw.send(frame(1, IP + ip(PEER, GATEWAY, b"\x08\0\xf7\xff\0\0\0\0", protocol=1)))
        await same(lambda: one.counters().out_packets, 1)
        seen = [packet for packet in payloads(drain(lab.raw)) if packet[9] == 1]
        assert [packet[20] for packet in seen] == [0]
        assert one.counters().out_errors == 0

    async def test_peer_to_peer_of_fast_sessions(self, lab: Lab) -> None:
        """They too, though npx0 takes frames: what leaves by it is the stack's to send."""
        backend = await lab.open()
        lab.add(1, fast=True)
        two = lab.add(2, "10.0.0.3", mac=b"\x02\0\0\0\0\x03", fast=True)
        for number in range(1, 5):
            lab.raw.send(frame(1, IP + udp(PEER, "10.0.0.3", b"hello")))
            await same(lambda: two.counters().out_packets, number)
        paths = backend.state().paths
        assert (paths["FAST_UP"].packets, paths["STACK_UP"].packets) == (0, 4)

    async def test_unknown_destination(self, lab: Lab) -> None:
        await lab.open()
        code, text = await lab.world.run("ping -c 1 -W 5 10.0.9.9")
        assert code == 1
        assert "Destination Host Unreachable" in text
        assert lab.seen() == 1

    async def test_quiet(self, lab: Lab) -> None:
        """The kernel sends nothing of its own to our devices, IPv6 or not."""
        for which in ("default", "all"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("0")
        backend = await lab.open()
        npx = lab.npx
        assert npx is not None
        sent = packet_socket(npx.npx1.name)
        await asyncio.sleep(1)
        assert drain(sent) == []
        sent.close()
        assert lab.seen() == 0
        assert set(backend.state().reasons.values()) == {(0, 0)}

    async def test_control(self, lab: Lab) -> None:
        """LCP and what is unknown reach the packet socket, once; a malformed frame of a session is counted."""
        backend = await lab.open()
        flow = lab.add(1)
        lcp = frame(1, b"\xc0\x21\x01\x01\x00\x04")
        unknown = frame(2, b"\xc0\x21\x01\x02\x00\x04")
        for data in (lcp, unknown, frame(1, b"\x00\x21\x45\x00")):
            lab.raw.send(data.ljust(60, b"\0"))
        await until(lambda: len(lab.control) == 2 and flow.counters().in_errors == 1)
        assert [data[: len(lcp)] for data in lab.control] == [lcp, unknown]
        reasons = backend.state().reasons
        assert [reasons[name][0] for name in ("PUNT_CONTROL", "PUNT_UNKNOWN", "DROP_MALFORMED")] == [1, 1, 1]


class TestSessions:
    """The subscriber is raw frames."""

    async def test_echo(self, lab: Lab) -> None:
        """Answered with our magic number, and the peer is heard."""
        await lab.open()
        flow = lab.add(1, echo=True, magic=0x01020304, peer_magic=0x0A0B0C0D)
        start = flow.heard()
        assert 0 < time.monotonic() - start < 60
        lab.raw.settimeout(60)
        lab.raw.send(frame(1, b"\xc0\x21\x09\x07\x00\x0c\x0a\x0b\x0c\x0d" + b"data").ljust(60, b"\0"))
        answer = await asyncio.to_thread(lab.raw.recv, 2000)
        assert answer[20:34] == b"\xc0\x21\x0a\x07\x00\x0c\x01\x02\x03\x04data"
        lab.raw.send(frame(1, b"\xc0\x21\x09\x07\x00\x08\x01\x02\x03\x04").ljust(60, b"\0"))
        await until(lambda: len(lab.control) == 1)
        assert (flow.looped(), flow.counters()) == (1, Counters())
        reply = frame(1, b"\xc0\x21\x0a\x07\x00\x08\x0a\x0b\x0c\x0d").ljust(60, b"\0")
        # The clock that frames are heard by ticks some hundred times a second.
        await until(lambda: lab.raw.send(reply) and flow.heard() > start)

    @pytest.mark.parametrize(
        ("port", "tags"),
        [
            (Port("acc0", 7), b"\x81\x00\x00\x07"),
            (Port("acc0", 7, 9), b"\x88\xa8\x00\x07\x81\x00\x00\x09"),
        ],
        ids=["VLAN", "QinQ"],
    )
    async def test_tags(self, lab: Lab, port: Port, tags: bytes) -> None:
        """The same session number of the same peer without tags is another session."""
        await lab.open()
        tagged, plain = lab.add(1, port=port), lab.add(1, "10.0.0.3")
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        here.settimeout(60)
        with lab.subscriber:
            wire = packet_socket("sub0")
        wire.send(frame(1, IP + udp(PEER, GATEWAY, b"tagged", ports=(1, 4000)), tags=tags))
        assert here.recvfrom(100) == (b"tagged", (PEER, 1))
        assert (tagged.counters().in_packets, plain.counters().in_packets) == (1, 0)
        here.sendto(b"back", (PEER, 1))
        wire.settimeout(60)
        back = await asyncio.to_thread(wire.recvmsg, 2000, 100)
        wire.close()
        here.close()
        # The kernel takes the outer tag out of the frame before it shows it.
        assert b"back" in back[0]
        assert tags[4:] + SESSION in back[0]
        assert tagged.counters().out_packets == 1
        tagged.close()

    async def test_network_behind_a_peer(self, lab: Lab) -> None:
        await lab.open()
        flow = lab.add(1, "10.0.4.1", prefixlen=24, ingress_filter=True)
        inner = lab.add(2, "10.0.4.129", prefixlen=25, mac=b"\x02\0\0\0\0\x03")
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        for address, expected in (("10.0.4.1", (1, 0)), ("10.0.4.77", (2, 0)), ("10.0.4.200", (2, 1))):
            here.sendto(b"x", (address, 9))
            await same(lambda: (flow.counters().out_packets, inner.counters().out_packets), expected)
        for source, errors in (("10.0.4.200", 0), ("10.0.5.1", 1)):
            lab.raw.send(frame(1, IP + udp(source, GATEWAY, b"up", ports=(1, 4000))))
            await same(lambda: flow.counters()[1:3], (1, errors))
        here.close()

    @pytest.mark.parametrize("offload", [True, False], ids=["ebpf", "user"])
    async def test_police(self, lab: Lab, offload: bool) -> None:
        """A burst passes and no more, until the limit is lifted."""
        await lab.open()
        flow = lab.add(1, police_up=Police(rate=1, burst=1500), offload=offload)
        # Otherwise the kernel answers that nobody listens.
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        packet = frame(1, IP + udp(PEER, GATEWAY, bytes(972), ports=(1, 4000)))
        for expected in ((1, 0), (1, 1), (1, 2)):
            lab.raw.send(packet)
            await same(lambda: flow.counters()[1:3], expected)
        flow.police(None, Police(rate=1, burst=1500))
        for expected in ((2, 2), (3, 2)):
            lab.raw.send(packet)
            await same(lambda: flow.counters()[1:3], expected)
        for expected in ((1, 0), (1, 1)):
            here.sendto(bytes(972), (PEER, 1))
            await same(lambda: flow.counters()[4:], expected)
        here.close()
        assert flow.blocks & (layout.POLICE_UP | layout.POLICE_DOWN) == (layout.POLICE_DOWN if offload else 0)

    @pytest.mark.parametrize("way", ["up", "down"])
    async def test_police_holds_over_moves(self, lab: Lab, way: str) -> None:
        """The burst is there once, however often Python and the kernel take the session over from each other."""
        await lab.open()
        limit = Police(rate=1, burst=1500)
        flow = lab.add(1, police_up=limit, police_down=limit)
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        packet = frame(1, IP + udp(PEER, GATEWAY, bytes(472), ports=(1, 4000)))
        at = 1 if way == "up" else 4
        for number, move in enumerate("kuukkukuuk", 1):
            assert flow.to_user() if move == "u" else flow.to_ebpf()
            if way == "up":
                lab.raw.send(packet)
            else:
                here.sendto(bytes(472), (PEER, 1))
            passed = min(number, 3)
            await same(lambda: flow.counters()[at : at + 2], (passed, number - passed))
        # A new limit has a new burst, where the session is and where it goes; the same one has not.
        for new, expected in ((limit, (3, 8)), (Police(rate=1, burst=1501), (4, 8))):
            assert flow.to_user()
            flow.police(new, new)
            assert flow.to_ebpf()
            lab.raw.send(packet)
            here.sendto(bytes(472), (PEER, 1))
            await same(lambda: flow.counters()[at : at + 2], expected)
        here.close()

    @pytest.mark.parametrize("how", ["entered", "moved", "told"])
    async def test_police_of_what_python_cuts(self, lab: Lab, how: str) -> None:
        """The kernel has charged for it when Python gets it."""
        backend = await lab.open()
        limit = Police(rate=1, burst=3000)
        flow = lab.add(1, mtu=1000, police_down=limit)
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        if how == "moved":
            assert flow.to_user()
            assert flow.to_ebpf()
        elif how == "told":
            flow.police(None, limit)
        # The kernel does not cut it itself, nor hear that it is too big.
        here.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        for expected in ((2, 0), (4, 0), (4, 1), (6, 1), (8, 1)):
            if expected == (6, 1):
                backend.maps.limit(flow.slot, 1, 1, 3000)
            here.sendto(bytes(1372), (PEER, 1))
            await same(lambda: flow.counters()[4:], expected)
        here.close()

    async def test_idle(self, lab: Lab) -> None:
        """A packet that counts as activity moves last_active; an ICMP echo reply, as npppd has it, does not."""
        await lab.open()
        flow = lab.add(1)
        before = flow.last_active()
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        await asyncio.sleep(0.05)
        lab.raw.send(frame(1, IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000))))
        await until(lambda: flow.counters().in_packets == 1)
        assert before < flow.last_active() <= time.monotonic()
        here.close()

    async def test_several_shared_interfaces(self, lab: Lab) -> None:
        """Each has devices of its own, and sessions come in on theirs."""
        await lab.open()
        other = lab.add_interface(interface("tun1", "10.1.0.1"), (IPv4Network("10.1.0.0/16"),))
        flow = lab.add(1, "10.1.0.2", interface="tun1")
        seen = packet_socket(other.npx0.name)
        here = lab.home.socket(socket.SOCK_DGRAM, ("10.1.0.1", 4000))
        here.settimeout(60)
        lab.raw.send(frame(1, IP + udp("10.1.0.2", "10.1.0.1", b"up", ports=(1, 4000))))
        assert here.recvfrom(100) == (b"up", ("10.1.0.2", 1))
        assert len(drain(seen)) == 1
        here.sendto(b"down", ("10.1.0.2", 1))
        await until(lambda: flow.counters().out_packets == 1)
        assert b"down" in drain(lab.raw)[-1]
        # What is left to Python goes to the tun of its own.
        here.sendto(b"nobody", ("10.1.0.3", 1))
        await until(lambda: other_seen(lab) == (0, 1))
        seen.close()
        here.close()
        flow.close()
        lab.close_interface(other)
        assert "npx2" not in sh("ip -br link")

    async def test_mirror(self, lab: Lab) -> None:
        """The copy has the head that layout knows."""
        backend = await lab.open()
        flow = lab.add(1)
        assert flow.set_blocks(layout.MIRROR)
        # Otherwise the kernel answers that nobody listens.
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        packet = frame(1, IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000))).ljust(60, b"\0")
        copies: list[tuple[int, int, int, int, bytes]] = []
        mirror = backend.mirror()
        before = time.monotonic_ns()
        lab.raw.send(packet)
        await until(lambda: mirror.read(time.monotonic_ns(), lambda *copy: copies.append(copy)) or copies)
        mirror.close()
        here.close()
        ((session, way, at, length, data),) = copies
        assert (session, way, length, data) == (1, layout.UP, 60, packet)
        assert before <= at <= time.monotonic_ns()


async def same(measure: Callable[[], object], expected: object) -> None:
    await until(lambda: measure() == expected)


def other_seen(lab: Lab) -> tuple[int, int]:
    return lab.seen(), lab.seen("tun1")


class TestBookkeeping:
    async def test_random(self, lab: Lab) -> None:
        """10,000 sessions come and go at random: nothing is left, and each begins with counters of 0."""
        backend = await lab.open(capacity=300)
        maps = backend.maps
        rng = random.Random(3)
        flows = []
        number = 0
        for _ in range(20000):
            if len(flows) < 300 and (rng.random() < 0.5 or not flows) and number < 10000:
                number += 1
                prefixlen = rng.choice((32, 32, 29))
                address = f"10.0.{number >> 5 & 0xFF}.{(number & 0x1F) << 3 | 1}"
                flow = lab.add(number % 65535 + 1, address, prefixlen=prefixlen, ingress_filter=True)
                assert flow.carried
                assert flow.counters() == Counters()
                flows.append(flow)
            elif flows:
                flow = flows.pop(rng.randrange(len(flows)))
                assert flow.close() == flow.close() == Counters()
        assert number == 10000
        while flows:
            flows.pop().close()
        for item in (maps.sessions, maps.hosts4, maps.nets4):
            assert item.items() == []
        assert maps.used == 0
        assert not any(any(value[:4]) for _, value in maps.slots.items())

    async def test_more_sessions_than_slots(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """Python carries the rest, and one line says so."""
        await lab.open(capacity=2)
        flows = [lab.add(number, f"10.0.0.{number + 1}") for number in range(1, 5)]
        assert [flow.carried for flow in flows] == [True, True, False, False]
        assert [line for line in caplog.messages if "carry more than 2 sessions" in line] == [caplog.messages[-1]]
        flows[0].close()
        assert lab.add(9, "10.0.0.9").carried
        assert not flows[3].to_ebpf()

    async def test_what_the_maps_have_already(self, lab: Lab) -> None:
        """A second session of the same peer and number is not let in, and takes nothing of the first away."""
        backend = await lab.open()
        first = lab.add(1, "10.0.0.2")
        second = lab.add(1, "10.0.0.3")
        assert (first.carried, second.carried) == (True, False)
        second.close()
        assert [len(item.items()) for item in (backend.maps.sessions, backend.maps.hosts4)] == [1, 1]
        first.close()

    async def test_a_bad_limit(self, lab: Lab) -> None:
        backend = await lab.open()
        flow = lab.add(1, police_up=Police(rate=0, burst=1500))
        assert not flow.carried
        assert backend.maps.used == 0
        assert backend.maps.hosts4.items() == []

    async def test_final_counters(self, lab: Lab) -> None:
        """What the kernel counted stays when the session has left it, and is not seen by who has the slot next."""
        backend = await lab.open()
        flow = lab.add(1)
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        lab.raw.send(frame(1, IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000))))
        await until(lambda: flow.counters().in_packets == 1)
        here.close()
        active = flow.last_active()
        slot, session = flow.slot, backend.maps.session(flow.slot)
        assert flow.close() == Counters(30, 1, 0, 0, 0, 0) == flow.counters()
        # Whoever has found it reads it to the end, but nobody finds it any more.
        assert backend.maps.session(slot) == bytes(4) + session[4:]
        assert flow.last_active() == active
        assert flow.heard() == 0
        assert backend.maps.memory()["slots"] > 0
