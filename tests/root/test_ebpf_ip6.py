"""IPv6 through sessions, as real kernels speak it: by the programs, by Python, and from NIC to NIC."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.base import Counters
from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.flow import EbpfFlow
from tests.bpf.frames import udp6
from tests.root.ebpf_lab import IP, IP6, Lab, Namespace, Subscriber, frame, sh, until
from tests.unit.ippackets import udp

pytestmark = pytest.mark.root

PREFIX, PEER, GATEWAY, WORLD = "2001:db8:1::/56", "2001:db8:1:7::2", "2001:db8:c::1", "2001:db8:c::2"
ROUTED = "2001:db8::/40"
TCP_MAXSEG = 2


def ip6(namespace: Namespace, forwarding: bool = False) -> None:
    """Have IPv6 there, at once."""
    with namespace:
        for conf in Path("/proc/sys/net/ipv6/conf").iterdir():
            (conf / "accept_dad").write_text("0")
            (conf / "router_solicitations").write_text("0")
            (conf / "forwarding").write_text(str(int(forwarding)))
            (conf / "disable_ipv6").write_text("0")


def mac(name: str) -> str:
    address: str = json.loads(sh(f"ip -j link show {name}"))[0]["address"]
    return address


async def settled(*addresses: str) -> None:
    """The kernel makes a new address its own when it has time."""
    await until(lambda: all(f"local {address} " in sh("ip -6 route show table local") for address in addresses))


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        for namespace in (made.home, made.subscriber, made.world):
            ip6(namespace, namespace is made.home)
        sh(f"ip address add {GATEWAY}/64 dev core0 nodad")
        near = mac("core0")
        with made.world:
            sh(f"ip address add {WORLD}/64 dev core1 nodad")
            sh(f"ip route add default via {GATEWAY}")
            # Just when the device has come up the first solicitation may be lost, and the next is a second later.
            sh(f"ip neighbour add {GATEWAY} dev core1 lladdr {near}")
            far = mac("core1")
        sh(f"ip neighbour add {WORLD} dev core0 lladdr {far}")
        yield made
    finally:
        made.close()


def networks(*texts: str) -> dict[str, Any]:
    prefixes = [IPv6Network(text) for text in texts]
    return {"networks6": tuple((prefix.network_address.packed, prefix.prefixlen) for prefix in prefixes)}


async def session(lab: Lab, mtu: int = 1492, **more: Any) -> EbpfFlow:
    """A session of IPv6 only, and the subscriber's kernel behind it."""
    await settled(GATEWAY)
    with lab.world:
        await settled(WORLD)
    await lab.open()
    assert lab.npx is not None
    sh(f"ip route add {ROUTED} dev {lab.npx.npx0.name}")
    values = {"address": "0.0.0.0", "ingress_filter": True, "mtu": mtu} | networks(PREFIX, "fd00:1::/64") | more
    flow = lab.add(1, **values)
    lab.pump = Subscriber(lab.subscriber, 1, 1492)
    with lab.subscriber:
        sh(f"ip address add {PEER}/128 dev ppp0 nodad")
        sh("ip address add fd00:1::9/128 dev ppp0 nodad")
        sh("ip -6 route add default dev ppp0")
        await settled(PEER, "fd00:1::9")
    return flow


def ppp_frames(lab: Lab, number: bytes) -> list[bytes]:
    return [packet for packet in lab.pump.received if packet[6:7] == number] if lab.pump else []


class TestKernels:
    @pytest.mark.parametrize("offload", [True, False], ids=["ebpf", "user"])
    async def test_ping(self, lab: Lab, offload: bool) -> None:
        """The same from outside, whoever carries it; from any address that is the peer's."""
        flow = await session(lab, offload=offload)
        for namespace, target in (
            (lab.subscriber, GATEWAY),
            (lab.subscriber, WORLD),
            (lab.world, PEER),
            (lab.world, "fd00:1::9"),
        ):
            if target.startswith("fd"):
                sh(f"ip route add fd00:1::/64 dev {lab.npx.npx0.name}")
            code, text = await namespace.run(f"ping -6 -c 3 -i 0.01 -W 5 -s 1444 -M do {target}")
            assert code == 0, text
        assert flow.carried is offload
        found = flow.counters()
        assert (found.out_bytes, found.out_packets, found.out_errors) == (12 * 1492, 12, 0)
        assert (found.in_bytes, found.in_packets) == (12 * 1492, 12)
        assert flow.by_python() == (Counters() if offload else found)

    async def test_moves_between_kernel_and_python(self, lab: Lab) -> None:
        flow = await session(lab)
        for move in (flow.to_user, flow.to_ebpf):
            assert move()
            code, text = await lab.world.run(f"ping -6 -c 2 -i 0.01 -W 5 {PEER}")
            assert code == 0, text
        assert flow.by_python()[1::3] == (2, 2)
        assert flow.counters().out_packets == 4

    @pytest.mark.parametrize("offload", [True, False], ids=["ebpf", "user"])
    async def test_tcp(self, lab: Lab, offload: bool) -> None:
        """Only the clamped MSS saves a subscriber whose MTU is larger than its session's."""
        flow = await session(lab, mtu=1400, mru=1380, mss_adjust=True, offload=offload)
        with lab.world:
            server = socket.create_server((WORLD, 5000), family=socket.AF_INET6)
        with lab.subscriber:
            client = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        client.settimeout(60)
        await asyncio.to_thread(client.connect, (WORLD, 5000))
        accepted, _ = await asyncio.to_thread(server.accept)
        accepted.settimeout(60)
        for one, other, largest in ((client, accepted, 1320), (accepted, client, 1340)):
            # Less the time stamps that each segment has.
            assert one.getsockopt(socket.IPPROTO_TCP, TCP_MAXSEG) == largest - 12
            sending = asyncio.create_task(asyncio.to_thread(one.sendall, bytes(50_000)))
            left = 50_000
            while left:
                left -= len(await asyncio.to_thread(other.recv, left))
            await sending
        for made in (server, client, accepted):
            made.close()
        assert flow.counters().in_bytes > 50_000 < flow.counters().out_bytes

    @pytest.mark.parametrize("fast", [False, True], ids=["stack", "fast"])
    async def test_traceroute(self, lab: Lab, fast: bool) -> None:
        """The concentrator is a hop, both ways, and the only one."""
        flow = await session(lab, fast=fast)
        if fast:
            assert lab.backend is not None
            address = bytes.fromhex(mac("core0").replace(":", ""))
            lab.backend.attach_core("core0", socket.if_nametoindex("core0"), address)
        for namespace, target in ((lab.subscriber, WORLD), (lab.world, PEER)):
            for hops, expected in ((1, "Time exceeded: Hop limit"), (2, "1 received")):
                for _ in range(2):
                    _, text = await namespace.run(f"ping -6 -c 1 -W 5 -t {hops} {target}")
                    assert expected in text
                    assert hops == 2 or f"From {GATEWAY}" in text
        assert flow.carried
        assert (lab.backend.state().paths["FAST_DOWN"].packets > 0) is fast
        assert (lab.backend.state().paths["FAST_UP"].packets > 0) is fast


class TestLeftToPython:
    @pytest.mark.parametrize("fast", [False, True], ids=["stack", "fast"])
    async def test_too_big(self, lab: Lab, fast: bool) -> None:
        """RFC 4443 section 3.2: the sender hears of it, from an address that the kernel finds right."""
        flow = await session(lab, mtu=1300, fast=fast)
        code, text = await lab.world.run(f"ping -6 -c 1 -W 5 -s 1400 -M do {PEER}")
        assert code == 1
        assert f"From {GATEWAY} icmp_seq=1 Packet too big: mtu=1300" in text
        # From then on it makes fragments, of which no router makes smaller ones.
        code, text = await lab.world.run(f"ping -6 -c 1 -W 5 -s 1400 {PEER}")
        assert code == 0, text
        assert flow.counters().out_errors == 1
        assert [len(packet) for packet in ppp_frames(lab, b"\x2c")] == [1296, 208]

    async def test_from_here(self, lab: Lab) -> None:
        """The concentrator's own kernel hears of it as well."""
        await session(lab, mtu=1300)
        _, text = await lab.home.run(f"ping -6 -c 1 -W 5 -s 1400 -M do {PEER}")
        assert "mtu" in text.lower()
        code, text = await lab.home.run(f"ping -6 -c 1 -W 5 -s 1400 {PEER}")
        assert code == 0, text
        # What it is told by is a socket that would be shown all that.
        assert lab.npx is not None
        with pytest.raises(BlockingIOError):
            lab.npx._emitter6.recv(2000)

    async def test_unknown_destination(self, lab: Lab) -> None:
        await session(lab)
        code, text = await lab.world.run("ping -6 -c 1 -W 5 2001:db8:2::1")
        assert code == 1
        assert f"From {GATEWAY} icmp_seq=1 Destination unreachable: Address unreachable" in text

    async def test_of_the_link(self, lab: Lab) -> None:
        """What IPv6CP's side of npppyd is to answer reaches it, and nothing of it goes on."""
        flow = await session(lab)
        before = flow.counters()
        lab.raw.send(frame(1, IP6 + udp6("fe80::1", "ff02::2", b"solicit")))
        await until(lambda: flow.counters().in_errors == before.in_errors + 1)
        assert flow.counters().in_packets == before.in_packets


class TestSessions:
    async def test_filter(self, lab: Lab) -> None:
        """Each prefix of its own passes, but what is another's of it does not; nor does IPv4, of which it has none."""
        flow = await session(lab)
        inner = lab.add(2, "10.0.0.9", mac=b"\x02\0\0\0\0\x03", **networks("2001:db8:1:8::/64"))
        here = lab.home.socket(socket.SOCK_DGRAM)
        before = flow.counters()
        for source, passed, dropped in (
            ("2001:db8:1:7::77", 1, 0),
            ("fd00:1::5", 2, 0),
            ("2001:db8:1:8::1", 2, 1),
            ("2001:db8:2::1", 2, 2),
        ):
            lab.raw.send(frame(1, IP6 + udp6(source, GATEWAY, b"up")))
            await until(
                lambda p=passed, d=dropped: (
                    flow.counters().in_packets - before.in_packets == p
                    and flow.counters().in_errors - before.in_errors == d
                )
            )
        lab.raw.send(frame(1, IP + udp("0.0.0.0", "10.0.0.1", b"up")))
        await until(lambda: flow.counters().in_errors - before.in_errors == 3)
        here.close()
        assert inner.counters() == Counters()
        assert not flow.blocks & layout.IP4
        assert inner.blocks & (layout.IP4 | layout.IP6) == layout.IP4 | layout.IP6

    async def test_nothing_is_left(self, lab: Lab) -> None:
        backend = await lab.open()
        flow = lab.add(1, **networks(PREFIX, "fd00:1::/64"))
        maps = backend.maps
        assert flow.entries() == ("nets6", "nets6", "hosts4", "sessions")
        assert len(maps.nets6.items()) == 2
        # The maps have a prefix of it already, as if of a back end for another domain: not even a part of it stays.
        taken = layout.net6(0, IPv6Network("fd00:2::/64").network_address.packed, 64)
        maps.nets6.put(taken, layout.REF.pack(9, 9))
        other = lab.add(2, "10.0.0.3", **networks("fd00:3::/64", "fd00:2::/64"))
        assert not other.carried
        assert len(maps.nets6.items()) == 3
        maps.nets6.delete(taken)
        flow.close()
        assert maps.nets6.items() == maps.hosts4.items() == maps.sessions.items() == []
