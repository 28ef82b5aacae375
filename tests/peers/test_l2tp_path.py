"""The kernel's way of L2TP data, through what befalls it: routes, links, a killed npppyd, other sessions."""

from __future__ import annotations

import itertools
import signal
import socket

import pytest

from npppy.l2tp.codec import data_header
from npppy.pipex.ebpf.plumbing import ethtool
from npppy.ppp import options, proto
from tests.peers.l2tp_lab import LAC, LNS, L2tpLab, Xl2tpd
from tests.peers.lab import EVERY_MODE, KERNEL_MODES, MODES, OURS, QUICK, TELLS, WORLD, inside, run, until
from tests.peers.probes import Stream, traceroute
from tests.peers.test_data import MEGABYTE, transfer
from tests.peers.test_l2tp_data import discards, numbered
from tests.peers.test_pipex_killed import links, teardown
from tests.peers.test_vlan import GFLAGS, SFLAGS, TXVLAN

pytestmark = pytest.mark.guest

LAB = L2tpLab

#: An address of the subscriber's that is behind its others.
BEHIND = "203.0.113.2"


def streams(lab: L2tpLab, xl2tpd: Xl2tpd) -> list[Stream]:
    """One each way, which flow."""
    both = [Stream(lab, lab.sub, lab.net, WORLD), Stream(lab, lab.net, lab.sub, xl2tpd.address)]
    for stream in both:
        stream.flows()
    return both


def carried(lab: L2tpLab, count: int = 3) -> bool:
    """Whether so many packets each way go the usual way of this mode."""
    before = lab.paths()
    lab.ping(lab.sub, WORLD, count=count)
    taken = lab.paths() - before
    return lab.mode == "user" or taken[f"{lab.way}_UP"] == taken[f"{lab.way}_DOWN"] == count


@EVERY_MODE
def test_who_carries(lab: L2tpLab) -> None:
    """No data reaches Python where the kernel carries it."""
    lab.start()
    xl2tpd = lab.dial_l2tp_up()
    lab.ping(lab.sub, WORLD, count=2)
    before = lab.paths()
    assert carried(lab, 5)
    lab.ping(lab.net, xl2tpd.address, count=5)
    taken = lab.paths() - before
    expected = {} if lab.mode == "user" else {f"{lab.way}_UP": 10, f"{lab.way}_DOWN": 10}
    assert {name: count for name, count in taken.items() if "_UP" in name or "_DOWN" in name} == expected
    assert traceroute(lab, lab.sub, WORLD) == [OURS, WORLD]
    lab.ping(lab.bng, xl2tpd.address, "-s", "4000")
    caller, called = lab.connect(lab.sub, OURS, lab.listen(lab.bng))
    transfer(caller, called, MEGABYTE)
    transfer(called, caller, MEGABYTE)


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_echoes(lab: L2tpLab) -> None:
    """pppd has its answers from the kernel, in the order of the numbers; Python sees none of it."""
    lab.start("lcp-keepalive-interval 3")
    xl2tpd = lab.dial_l2tp_up("debug", "lcp-echo-interval 1", "lcp-echo-failure 2")
    down = Stream(lab, lab.net, lab.sub, xl2tpd.address)
    down.flows()
    before = lab.paths()
    xl2tpd.ppp_says(r"sent \[LCP EchoReq .*\]\nrcvd \[LCP EchoRep", 4)
    assert not down.stop()
    taken = lab.paths() - before
    if TELLS:
        assert taken["ECHO"] >= 2
        assert taken["PUNT_CONTROL"] == 0
    assert numbered(lab)
    assert discards(lab) == 0


def dial_from_behind(lab: L2tpLab, tunnel: str = "") -> Xl2tpd:
    """xl2tpd speaks from an address that is not the next hop."""
    lab.ip(lab.sub, f"address add {BEHIND}/32 dev lo")
    lab.ip(lab.bng, f"route add {BEHIND} via {LAC}")
    lab.start(tunnel)
    return lab.dial_l2tp_up(globals=f"listen-addr = {BEHIND}")


@KERNEL_MODES
def test_another_next_hop(lab: L2tpLab) -> None:
    """The way to the peer follows the routes."""
    xl2tpd = dial_from_behind(lab)
    assert lab.session()["tunnel_from"] == f"{BEHIND}:1701"
    both = streams(lab, xl2tpd)
    other = "198.51.100.9"
    lab.ip(lab.sub, f"address add {other}/24 dev sub0")
    lab.ip(lab.bng, f"route replace {BEHIND} via {other}")
    for stream in both:
        stream.flows(30)
    # A new MAC address, which the next hop tells.
    with inside(lab.sub):
        run("sysctl", "-qw", "net.ipv4.conf.sub0.arp_notify=1")
    lab.ip(lab.sub, "link set sub0 address 02:00:5e:00:00:77")
    for stream in both:
        stream.flows(30)
        stream.stop()
    until(lambda: carried(lab), "packets on the usual way")
    lab.ip(lab.bng, f"route replace blackhole {BEHIND}")
    assert " 0 received" in lab.try_ping(lab.sub, WORLD, "-W", "0.2")
    lab.ip(lab.bng, f"route replace {BEHIND} via {other}")
    # Where numbers are missing, Linux drops the next five, too (l2tp_core.c, l2tp_recv_data_seq).
    pings = [lab.try_ping(lab.sub, WORLD, "-W", "0.2") for _ in range(7)]
    assert ["1 received" in answer for answer in pings] == [False] * 5 + [True] * 2


@EVERY_MODE
def test_our_link_goes_and_comes(lab: L2tpLab) -> None:
    """A tunnel outlives the interface that it came by."""
    lab.start()
    lab.dial_l2tp_up()
    lab.ping(lab.sub, WORLD)
    lab.ip(lab.bng, "link delete eth1")
    lab.plug("eth1", lab.sub, "sub0")
    lab.ip(lab.bng, f"address add {LNS}/24 dev eth1")
    lab.ip(lab.sub, f"address add {LAC}/24 dev sub0")
    until(lambda: " 1 received" in lab.try_ping(lab.sub, WORLD, "-W", "0.2"), "an answer")
    until(lambda: carried(lab), "packets on the usual way")
    assert lab.session()["ppp_id"] == 0


@EVERY_MODE
def test_another_interface(lab: L2tpLab) -> None:
    """One that comes after npppyd's start, with our address on it, and a VLAN device at that."""
    with inside(lab.sub):
        ethtool("sub0", SFLAGS, ethtool("sub0", GFLAGS, 0) & ~TXVLAN)
    lab.places = "0.0.0.0"
    lab.start()
    for namespace, name, address in ((lab.bng, "eth1", "203.0.113.1"), (lab.sub, "sub0", BEHIND)):
        lab.ip(
            namespace,
            f"link add link {name} name {name}.7 type vlan id 7",
            f"link set {name}.7 up",
            f"address add {address}/24 dev {name}.7",
        )
    xl2tpd = lab.dial_l2tp_up(lns="203.0.113.1")
    assert lab.session()["tunnel_from"] == f"{BEHIND}:1701"
    lab.ping(lab.sub, WORLD)
    lab.ping(lab.net, xl2tpd.address, "-s", "1332", count=3)
    transfer(*lab.connect(lab.net, xl2tpd.address, lab.listen(lab.sub)), MEGABYTE)
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), MEGABYTE)
    session = lab.session()
    assert session["in_errors"] == session["out_errors"] == 0
    if lab.mode != "user":
        taken = lab.paths()
        packets = MEGABYTE // 1360
        assert taken["STACK_UP"] + taken["FAST_UP"] > packets
        assert taken["STACK_DOWN"] + taken["FAST_DOWN"] > packets


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_npppyd_is_killed(lab: L2tpLab) -> None:
    """Data goes on, with its numbers, until a successor ends it."""
    clean = links(lab)
    lab.start()
    xl2tpd = lab.dial_l2tp_up()
    lab.ping(lab.sub, WORLD)
    both = streams(lab, xl2tpd)
    lab.daemon.stop(signal.SIGKILL)
    for stream in both:
        stream.flows(50)
        assert not stream.stop()
    assert discards(lab) == 0
    lab.ping(lab.net, xl2tpd.address)
    lab.start_again()
    lab.daemon.says(r"l2tp Ending old tunnels=1")
    lab.daemon.says(r"pipex: left by an earlier npppyd: 1 sessions ended")
    xl2tpd.says(rf"Connection closed to {LNS}, port 1701 \(restarted\)")
    until(lab.is_empty, "nothing is left")
    assert " 0 received" in lab.try_ping(lab.net, xl2tpd.address, "-W", "0.2")
    xl2tpd.tell("c lns")
    name = xl2tpd.ppp_says(r"Using interface (\S+)", 2)[1]
    xl2tpd.ppp_says("remote IP address", 2)
    lab.ip(lab.sub, f"route replace default dev {name}")
    lab.ping(lab.sub, WORLD, count=2)
    lab.daemon.stop(signal.SIGKILL)
    assert "1 sessions ended" in teardown(lab)
    assert links(lab) == clean
    assert " 0 received" in lab.try_ping(lab.sub, WORLD, "-W", "0.2")


def forge(lab: L2tpLab, frame: bytes) -> None:
    """A data message in xl2tpd's name, without numbers.  Its port is free for all: it has several sockets there."""
    tunnel, session = lab.tunnel(), lab.sessions(state="any")[0]
    header = bytearray(data_header(tunnel["tunnel_id"], session["session_id"], False))
    header[2:4] = (len(header) + len(frame)).to_bytes(2, "big")
    with lab.datagrams(lab.sub) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LAC, 1701))
        sock.sendto(bytes(header) + frame, (LNS, 1701))


@EVERY_MODE
@pytest.mark.parametrize("sequence", ["yes", "no"])
def test_renegotiation_under_traffic(lab: L2tpLab, sequence: str) -> None:
    """All of it, from LCP to IPCP: the session goes on as it was, and so do its numbers."""
    lab.start(f"l2tp-data-use-seq {sequence}")
    xl2tpd = lab.dial_l2tp_up()
    both = streams(lab, xl2tpd)
    wishes = options.encode([(proto.OPT_MRU, (1360).to_bytes(2, "big")), (proto.OPT_MAGIC, b"npp!")])
    forge(lab, b"\xff\x03\xc0\x21\x01\x77" + (len(wishes) + 4).to_bytes(2, "big") + wishes)
    address = xl2tpd.ppp_says(r"local  IP address (\S+)", 2)[1]
    lab.ip(lab.sub, f"route replace default dev {xl2tpd.interface}")
    before = lab.paths()
    for stream in both:
        stream.flows(30)
    taken = lab.paths() - before
    if lab.mode != "user":
        assert min(taken[f"{lab.way}_UP"], taken[f"{lab.way}_DOWN"]) >= 25
    for stream in both:
        lost = stream.stop()
        assert not lost & {*stream.sent[:10], *stream.sent[-20:]}
    session = lab.session()
    assert (session["ppp_id"], session["address"]) == (0, address)
    assert discards(lab) == 0


@EVERY_MODE
def test_between_subscribers(lab: L2tpLab) -> None:
    """From one tunnel into another, and into a session of PPPoE: one hop, as between any two interfaces."""
    lab.more = (
        f"tunnel PPPOE protocol pppoe {{\nlisten on interface eth2\n{MODES[lab.mode]}\n}}\n"
        "bind tunnel from PPPOE authenticated by LOCAL to tun0\n"
    )
    lab.start()
    lab.plug("eth2", lab.lan, "r1")
    lab.daemon.says(r"port=eth2 Link up=yes|interface=eth2 Listening .* up=yes")
    first = lab.dial_l2tp_up().address
    second = lab.dial(link=("plugin", "rp-pppoe.so", "r1"), namespace=lab.lan).up()
    lab.ip(lab.lan, f"route add default dev {second.interface}")
    assert traceroute(lab, lab.sub, second.address) == [OURS, second.address]
    assert traceroute(lab, lab.lan, first) == [OURS, first]
    lab.ping(lab.sub, second.address, "-s", "1332", count=3)
    lab.ping(lab.lan, first, "-s", "4000", count=3)
    caller, called = lab.connect(lab.sub, second.address, lab.listen(lab.lan))
    transfer(caller, called, MEGABYTE)
    transfer(called, caller, MEGABYTE)
    # And the other tunnel.
    lab.ip(lab.net, f"route add {LNS}/32 via 192.0.2.1")
    third = lab.dial_l2tp(namespace=lab.net).up()
    lab.ip(lab.net, f"route add {first} dev {third.interface}")
    lab.ping(lab.net, first, "-s", "1332", count=3)
    lab.ping(lab.net, first, "-s", "4000")
    assert {session["protocol"] for session in lab.sessions()} == {"L2TP", "PPPoE"}


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_many_times(lab: L2tpLab) -> None:
    """Calls and tunnels that come and go in every way leave nothing."""
    lab.start(f"{QUICK}\nl2tp-hello-interval 1\nl2tp-hello-timeout 1")
    ports = itertools.count(40000)
    for _ in range(2):
        cleared, hung, killed, stopped = [lab.dial_l2tp(port=next(ports)) for _ in range(4)]
        for xl2tpd in (cleared, hung, killed, stopped):
            xl2tpd.up()
            lab.ping(lab.sub, WORLD, "-I", xl2tpd.interface)
        assert lab.entries() == {"sessions": 4, "hosts4": 4, "nets4": 0, "nets6": 0, "slots": 4}
        lab.clear(address=cleared.address)
        hung.hang_up()
        killed.stop(signal.SIGKILL)
        stopped.stop()
        lab.empties()
    maps = lab.ask("pipex")[1]["maps"]
    assert not any(maps[name]["used"] for name in ("sessions", "hosts4", "nets4", "nets6", "slots", "stats", "buckets"))
    taken = lab.paths()
    assert taken["PUNT_STALE"] == taken["TX_FAIL"] == taken["DROP_MALFORMED"] == 0
