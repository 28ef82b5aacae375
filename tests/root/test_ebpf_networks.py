"""IPv4 networks behind a peer, as real kernels see them: by the programs, by Python, and from NIC to NIC."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network

import pytest

from npppy.pipex.base import ConflictError, Counters
from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.flow import EbpfFlow
from tests.root.ebpf_lab import CORE, GATEWAY, IP, WORLD, Lab, Subscriber, frame, sh, until
from tests.unit.ippackets import udp

pytestmark = pytest.mark.root

NETWORKS = ("192.0.2.0/25", "198.18.0.0/15", "203.0.113.9/32")
#: One in each of them, and the peer itself.
BEHIND = ("192.0.2.5", "198.19.255.255", "203.0.113.9", "10.0.0.2")


def networks(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(map(IPv4Network, texts))


async def session(lab: Lab, mode: str) -> EbpfFlow:
    """And the subscriber's kernel behind it, which has an address of each network."""
    backend = await lab.open()
    assert lab.npx is not None
    if mode == "fast":
        backend.attach_core("core0", socket.if_nametoindex("core0"), CORE)
    for network in NETWORKS:
        sh(f"ip route add {network} dev {lab.npx.npx0.name}")
    flow = lab.add(1, networks=networks(*NETWORKS), ingress_filter=True, offload=mode != "user", fast=mode == "fast")
    lab.pump = Subscriber(lab.subscriber, 1, 1492)
    with lab.subscriber:
        for address in BEHIND[:-1]:
            sh(f"ip address add {address}/32 dev ppp0")
    return flow


@pytest.mark.parametrize("mode", ["stack", "fast", "user"])
async def test_both_ways(lab: Lab, mode: str) -> None:
    flow = await session(lab, mode)
    assert flow.carried is (mode != "user")
    for address in BEHIND:
        code, text = await lab.world.run(f"ping -c 3 -i 0.01 -W 5 -s 100 {address}")
        assert code == 0, text
        code, text = await lab.subscriber.run(f"ping -c 3 -i 0.01 -W 5 -s 100 -I {address} {WORLD}")
        assert code == 0, text
    count = 6 * len(BEHIND)
    assert flow.counters() == Counters(count * 128, count, 0, count * 128, count, 0)
    assert flow.by_python() == (flow.counters() if mode == "user" else Counters())
    assert lab.backend is not None
    if mode != "user":
        paths = lab.backend.state().paths
        # One packet of each session goes by the stack now and then.
        expected = (count - 1, count) if mode == "fast" else (0, 0)
        assert (paths["FAST_UP"].packets, paths["FAST_DOWN"].packets) == expected


@pytest.mark.parametrize("offload", [True, False], ids=["ebpf", "user"])
async def test_filter(lab: Lab, offload: bool) -> None:
    """Each network of its own passes, but no neighbour of it, nor what is another's in it."""
    await lab.open()
    flow = lab.add(1, networks=networks(*NETWORKS), ingress_filter=True, offload=offload)
    other = lab.add(2, "192.0.2.7", networks=networks("198.18.4.0/24"), mac=b"\x02\0\0\0\0\x03", offload=offload)
    passed = dropped = 0
    own = (*BEHIND, "192.0.2.127")
    for source in (*own, "192.0.2.128", "192.0.2.7", "198.18.4.9", "203.0.113.8", "203.0.113.10", "0.0.0.0"):
        good = source in own
        passed, dropped = passed + good, dropped + (not good)
        lab.raw.send(frame(1, IP + udp(source, GATEWAY, b"up")))
        await until(lambda p=passed, d=dropped: flow.counters()[1:3] == (p, d))
    assert other.counters() == Counters()
    # It is lifted with the filter.
    free = lab.add(3, "10.0.0.9", networks=networks("192.0.3.0/24"), offload=offload)
    lab.raw.send(frame(3, IP + udp("192.0.2.128", GATEWAY, b"up")))
    await until(lambda: free.counters().in_packets == 1)


async def test_nothing_is_left(lab: Lab) -> None:
    backend = await lab.open()
    maps = backend.maps
    # Its own network is no further one, nor is it itself.
    flow = lab.add(1, "10.0.4.1", prefixlen=29, networks=networks("10.0.4.0/29", "10.0.4.1/32", *NETWORKS))
    assert flow.entries() == ("nets4", "nets4", "nets4", "nets4", "hosts4", "sessions")
    assert {layout.NET4.unpack(key)[::2] for key, _ in maps.nets4.items()} == {
        (32 + network.prefixlen, network.network_address.packed) for network in networks("10.0.4.0/29", *NETWORKS)
    }
    for taken in ("192.0.2.0/25", "203.0.113.9/32", "10.0.4.0/29", "10.0.4.1/32"):
        with pytest.raises(ConflictError, match=f"network {taken} is taken"):
            lab.add(2, "10.0.0.3", networks=networks("192.0.3.0/24", taken))
    with pytest.raises(ConflictError, match=r"address 203\.0\.113\.9 is taken"):
        lab.add(2, "203.0.113.9")
    assert (len(maps.nets4.items()), len(maps.hosts4.items())) == (4, 1)
    # The map has a network of it already, as if of a back end for another domain: not even a part of it stays.
    key = layout.net4(0, int(IPv4Address("192.0.4.0")), 24)
    maps.nets4.put(key, layout.REF.pack(9, 9))
    other = lab.add(2, "10.0.0.3", networks=networks("192.0.3.0/24", "192.0.4.0/24"))
    assert not other.carried
    assert other.entries() == ()
    assert len(maps.nets4.items()) == 5
    maps.nets4.delete(key)
    other.close()
    flow.close()
    assert maps.nets4.items() == maps.hosts4.items() == maps.sessions.items() == []


async def test_more_than_there_is_room_for(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Then Python carries the session."""
    backend = await lab.open(2)
    room = backend.maps.nets4.max_entries
    behind = tuple(IPv4Network((0xC0000000 + number, 32)) for number in range(room + 1))
    flow = lab.add(1, networks=behind)
    assert not flow.carried
    assert "write to map nets4" in caplog.text
    assert backend.maps.nets4.items() == backend.maps.hosts4.items() == []
    flow.close()
    flow = lab.add(1, networks=behind[:-1])
    assert flow.carried
    flow.close()
