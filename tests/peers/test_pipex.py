"""Whoever carries a session's packets, the kernel's stack, its programs or Python: hosts see the same."""

from __future__ import annotations

import pytest

from npppy.pppoe.codec import SESSION
from tests.peers.lab import EVERY_MODE, HOME, HOST, OURS, PATIENCE, UPLINK, WORLD, Lab, until
from tests.peers.probes import (
    FRAGMENTATION_NEEDED,
    HOST_UNREACHABLE,
    NO_ROUTE,
    PORT_UNREACHABLE,
    PROHIBITED,
    Answer,
    Receiver,
    addresses,
    probe,
    send,
    traceroute,
)
from tests.peers.test_data import MEGABYTE, transfer

pytestmark = [pytest.mark.guest, EVERY_MODE]


def start(lab: Lab, tunnel: str = "", *options: str) -> str:
    """A session; returns the peer's address."""
    lab.start(tunnel)
    address = lab.dial_up(*options).address
    # In fast mode the first packet goes through the stack.
    lab.ping(lab.sub, WORLD, count=2)
    return address


@pytest.mark.tcg
def test_who_carries(lab: Lab) -> None:
    """For the other tests: that each mode is what it is called."""
    peer = start(lab)
    before = lab.paths()
    lab.ping(lab.sub, WORLD, count=4)
    lab.ping(lab.net, peer, count=4)
    taken = lab.paths() - before
    expected = {} if lab.mode == "user" else {f"{lab.way}_UP": 8, f"{lab.way}_DOWN": 8}
    assert {name: count for name, count in taken.items() if "_UP" in name or "_DOWN" in name} == expected
    told = lab.ask("pipex")[1]
    assert told["backend"] == ("user" if lab.mode == "user" else "ebpf")
    path = "python" if lab.mode == "user" else lab.way.lower()
    assert told["paths"][path]["up"]["packets"] >= 8


@pytest.mark.tcg
def test_traceroute(lab: Lab) -> None:
    lab.start()
    peer = lab.dial_home().address
    assert traceroute(lab, lab.sub, WORLD) == [OURS, WORLD]
    assert traceroute(lab, lab.lan, WORLD) == [HOME, OURS, WORLD]
    assert traceroute(lab, lab.net, peer) == [UPLINK, peer]
    assert traceroute(lab, lab.net, HOST) == [UPLINK, peer, HOST]
    assert traceroute(lab, lab.bng, HOST) == [peer, HOST]


def test_ttl_and_dscp(lab: Lab) -> None:
    """One hop is one hop, and what is marked stays so."""
    peer = start(lab)
    for namespace, address, receiver in (
        (lab.sub, WORLD, Receiver(lab, lab.net)),
        (lab.net, peer, Receiver(lab, lab.sub)),
    ):
        for ttl, tos in ((255, 0), (64, 0xB8), (2, 0x02)):
            send(lab, namespace, (address, receiver.port), ttl=ttl, tos=tos)
            datagram = receiver.take()
            assert (datagram.ttl, datagram.tos) == (ttl - 1, tos)


def test_options(lab: Lab) -> None:
    """Record Route and Timestamp: every hop writes itself down."""
    peer = start(lab)
    before = lab.paths()
    up = lab.ping(lab.sub, WORLD, "-R"), lab.ping(lab.sub, WORLD, "-T", "tsandaddr")
    down = lab.ping(lab.net, peer, "-R"), lab.ping(lab.net, peer, "-T", "tsandaddr")
    here = lab.ping(lab.sub, OURS, "-R")
    assert addresses(up[0], "RR:") == [peer, UPLINK, WORLD, WORLD, OURS, peer]
    assert addresses(up[1], "TS:") == [peer, OURS, WORLD, WORLD]
    assert addresses(down[0], "RR:") == [WORLD, OURS, peer, peer, UPLINK, WORLD]
    assert addresses(down[1], "TS:") == [WORLD, UPLINK, peer, peer]
    assert addresses(here, "RR:") == [peer, OURS, OURS, peer]
    assert "Unrecorded hops: 2" in up[1]
    assert "Unrecorded hops: 2" in down[1]
    taken = lab.paths() - before
    assert taken["FAST_UP"] == taken["FAST_DOWN"] == 0


def test_fragments(lab: Lab) -> None:
    """Those of the hosts, and those of routers: of ours at the access, and at the uplink."""
    peer = start(lab)
    for namespace, address in ((lab.sub, WORLD), (lab.net, peer)):
        for size in (4000, 60000):
            lab.ping(namespace, address, "-s", str(size), "-M", "dont")
        answer = lab.try_ping(namespace, address, "-s", "4000", "-M", "do")
        assert "message too long" in answer
    # Whole at their sender, not at ours.
    lab.ping(lab.net, peer, "-s", "1472", "-M", "dont")
    lab.ip(lab.bng, "link set up0 mtu 1000")
    lab.ip(lab.net, "link set host0 mtu 1000")
    lab.ping(lab.sub, WORLD, "-s", "1464", "-M", "dont")
    # Pieces that are cut once more.
    lab.ping(lab.sub, WORLD, "-s", "4000", "-M", "dont")
    session = lab.session()
    assert session["in_errors"] == session["out_errors"] == 0


def test_too_big_upstream(lab: Lab) -> None:
    start(lab)
    lab.ip(lab.bng, "link set up0 mtu 1300")
    assert probe(lab, lab.sub, WORLD, size=1301, df=True) == Answer(OURS, FRAGMENTATION_NEEDED, 1300)
    assert probe(lab, lab.sub, WORLD, size=1492, df=True) == Answer(OURS, FRAGMENTATION_NEEDED, 1300)
    assert probe(lab, lab.sub, WORLD, size=1300, df=True) == Answer(WORLD, PORT_UNREACHABLE)
    assert probe(lab, lab.sub, WORLD, size=1492) == Answer(WORLD, PORT_UNREACHABLE)
    # What it has learnt holds.
    assert "message too long, mtu=1300" in lab.try_ping(lab.sub, WORLD, "-s", "1400", "-M", "do")


@pytest.mark.parametrize(("mru", "who"), [(1492, UPLINK), (1400, OURS)])
def test_too_big_downstream(lab: Lab, mru: int, who: str) -> None:
    """For the link, which the kernel refuses, and for the session, which npppyd does."""
    peer = start(lab, "", "mru", str(mru))
    assert probe(lab, lab.net, peer, size=mru + 1, df=True) == Answer(who, FRAGMENTATION_NEEDED, mru)
    assert probe(lab, lab.net, peer, size=1500, df=True) == Answer(UPLINK, FRAGMENTATION_NEEDED, 1492)
    assert probe(lab, lab.net, peer, size=mru, df=True) == Answer(peer, PORT_UNREACHABLE)
    # Interfaces speak IPv6 of their own.
    wire = lab.wire(lab.sub, "sub0", SESSION)
    assert probe(lab, lab.net, peer, size=1500) == Answer(peer, PORT_UNREACHABLE)
    # PPPoE's LENGTH has PPP's Protocol field too.
    sizes = [int.from_bytes(wire.recv(2048)[18:20], "big") - 2 for _ in range(2)]
    assert sum(sizes) == 1520
    assert mru - 8 < sizes[0] <= mru


def test_local_destinations(lab: Lab) -> None:
    """The concentrator is a host, too."""
    peer = start(lab)
    for address in (OURS, UPLINK):
        before = lab.paths()
        lab.ping(lab.sub, address, "-s", "4000")
        assert probe(lab, lab.sub, address) == Answer(address, PORT_UNREACHABLE)
        # A packet whose last hop is here is no packet that dies here.
        assert probe(lab, lab.sub, address, ttl=1) == Answer(address, PORT_UNREACHABLE)
        caller, called = lab.connect(lab.sub, address, lab.listen(lab.bng))
        transfer(caller, called, MEGABYTE)
        back = lab.connect(lab.sub, address, lab.listen(lab.bng))
        transfer(back[1], back[0], MEGABYTE)
        assert lab.paths()["FAST_UP"] == before["FAST_UP"]
    lab.ping(lab.bng, peer, "-s", "4000")
    caller, called = lab.connect(lab.bng, peer, lab.listen(lab.sub))
    transfer(caller, called, MEGABYTE)


def test_nobody_there(lab: Lab) -> None:
    start(lab)
    # In a pool, but of no session.
    for namespace in (lab.net, lab.sub):
        assert probe(lab, namespace, "10.64.0.99") == Answer(OURS, HOST_UNREACHABLE)
    # No route, a prohibited one, one to nowhere.
    lab.ip(lab.bng, "route add prohibit 198.51.100.0/25", "route add blackhole 198.51.100.128/25")
    assert probe(lab, lab.sub, "203.0.113.1") == Answer(OURS, NO_ROUTE)
    assert probe(lab, lab.sub, "198.51.100.1") == Answer(OURS, PROHIBITED)
    assert " 0 received" in lab.try_ping(lab.sub, "198.51.100.129", "-W", "0.2")
    # On the wire, but of no host: the kernel asks for it in vain.
    lab.sysctl(lab.bng, "net/ipv4/neigh/up0/retrans_time_ms", 50)
    assert probe(lab, lab.sub, "192.0.2.77") == Answer(OURS, HOST_UNREACHABLE)


def test_a_first_packet(lab: Lab) -> None:
    """The next hop is not known yet: it is found, and the packet arrives."""
    lab.start()
    lab.dial_up()
    lab.ip(lab.net, "address add 192.0.2.3/24 dev host0")
    lab.ip(lab.bng, "neighbour flush dev up0")
    receiver = Receiver(lab, lab.net)
    for number, address in enumerate((WORLD, "192.0.2.3")):
        send(lab, lab.sub, (address, receiver.port), bytes([number]))
        assert receiver.take().data == bytes([number])


@pytest.mark.parametrize("told", [True, False])
def test_a_next_hop_with_another_mac_address(lab: Lab, told: bool) -> None:
    """Whether it says so or not.  The kernel finds out by itself, from the packets that it sees."""
    for name, value in (
        ("base_reachable_time_ms", 100),
        ("delay_first_probe_time", 0),
        ("retrans_time_ms", 50),
        ("locktime", 0),
    ):
        lab.sysctl(lab.bng, f"net/ipv4/neigh/up0/{name}", value)
    start(lab)
    lab.sysctl(lab.net, "net/ipv4/conf/host0/arp_notify", int(told))
    receiver = Receiver(lab, lab.net)
    # The world only listens, for its own questions would tell.
    send(lab, lab.sub, (WORLD, receiver.port))
    receiver.take()
    lab.ip(lab.net, "link set host0 address 02:00:5e:00:00:99")
    # None may be lost where it is told.
    receiver.socket.settimeout(PATIENCE if told else 0.05)
    lost = 0

    def arrives() -> bool:
        nonlocal lost
        send(lab, lab.sub, (WORLD, receiver.port))
        try:
            receiver.take()
        except TimeoutError:
            lost += 1
            return False
        return True

    until(arrives, "a packet for the new address")
    if told:
        assert lost == 0
    receiver.socket.settimeout(None)
    before = lab.paths()
    for _ in range(20):
        send(lab, lab.sub, (WORLD, receiver.port))
        receiver.take()
    taken = lab.paths() - before
    if lab.mode != "user":
        assert taken[f"{lab.way}_UP"] >= 19


def test_another_next_hop(lab: Lab) -> None:
    """A route that changes holds from the next packet on."""
    start(lab)
    lab.ip(lab.net, "address add 198.51.100.1/32 dev lo", "address add 192.0.2.3/24 dev host0")
    lab.ip(lab.bng, f"route add 198.51.100.1 via {WORLD}")
    lab.ping(lab.sub, "198.51.100.1", count=3)
    lab.ip(lab.bng, "route replace 198.51.100.1 via 192.0.2.3")
    lab.ping(lab.sub, "198.51.100.1", count=3)
    lab.ip(lab.bng, "route replace blackhole 198.51.100.1")
    assert " 0 received" in lab.try_ping(lab.sub, "198.51.100.1", "-W", "0.2")


def test_another_uplink(lab: Lab) -> None:
    """The interface goes while sessions are up, and comes again."""
    peer = start(lab)
    lab.ip(lab.bng, "link delete up0")
    assert probe(lab, lab.sub, WORLD) == Answer(OURS, NO_ROUTE)
    lab.plug("up0", lab.net, "host0")
    lab.ip(lab.bng, f"address add {UPLINK}/24 dev up0")
    lab.ip(lab.net, f"address add {WORLD}/24 dev host0", f"route add default via {UPLINK}")
    lab.ping(lab.sub, WORLD)

    def carried() -> bool:
        before = lab.paths()
        lab.ping(lab.sub, WORLD)
        lab.ping(lab.net, peer)
        taken = lab.paths() - before
        return lab.mode == "user" or taken[f"{lab.way}_UP"] == taken[f"{lab.way}_DOWN"] == 2

    # npppyd hears of it a little later than the kernel.
    until(carried, "packets on the usual way")


def test_forged_sources(lab: Lab) -> None:
    """What the peer sends from an address that is not its own does not pass, and is counted."""
    lab.start("ingress-filter yes")
    lab.dial_home()
    lab.ping(lab.lan, WORLD, count=2)
    receiver = Receiver(lab, lab.net)
    lab.ip(lab.lan, "address add 10.66.0.1/32 dev lan0")
    before = lab.session()["in_errors"]
    for _ in range(5):
        send(lab, lab.lan, (WORLD, receiver.port), b"forged", source="10.66.0.1")
    send(lab, lab.lan, (WORLD, receiver.port), b"right")
    assert receiver.take().data == b"right"
    assert lab.session()["in_errors"] == before + 5


def test_between_subscribers(lab: Lab) -> None:
    """From one session into another: one hop, as between any two interfaces."""
    lab.start("listen on interface eth2")
    lab.plug("eth2", lab.lan, "r1")
    lab.daemon.says(r"port=eth2 Link up=yes|interface=eth2 Listening .* up=yes")
    first = lab.dial_up().address
    second = lab.dial(link=("plugin", "rp-pppoe.so", "r1"), namespace=lab.lan).up()
    lab.ip(lab.lan, f"route add default dev {second.interface}")
    assert traceroute(lab, lab.sub, second.address) == [OURS, second.address]
    assert traceroute(lab, lab.lan, first) == [OURS, first]
    lab.ping(lab.sub, second.address, "-s", "4000", count=3)
    caller, called = lab.connect(lab.sub, second.address, lab.listen(lab.lan))
    transfer(caller, called, MEGABYTE)
    transfer(called, caller, MEGABYTE)
