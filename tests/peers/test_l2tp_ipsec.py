"""L2TP under IPsec: xl2tpd over strongSwan, two clients behind one NAT, and nothing in the clear."""

from __future__ import annotations

import json
import signal
import struct
import sys

import pytest

from tests.peers.ipsec import IpsecLab, forge, send
from tests.peers.l2tp_lab import LAC, LAC6, LNS6
from tests.peers.lab import EVERY_MODE, WORLD, run, until
from tests.peers.test_data import MEGABYTE, transfer

pytestmark = pytest.mark.guest

LAB = IpsecLab

REQUIRED = "l2tp-require-ipsec yes"


def nft(lab: IpsecLab, *words: str) -> str:
    return run("ip", "netns", "exec", lab.bng, "nft", *words)


def diverted(lab: IpsecLab, family: str = "ip") -> int:
    """How many sessions the kernel's own map has."""
    found = json.loads(nft(lab, "-j", "list", "ruleset", family))["nftables"]
    return sum(len(one["map"].get("elem", ())) for one in found if one.get("map", {}).get("table") == lab.pins.name)


def awaits_diversion(lab: IpsecLab, count: int, family: str = "ip") -> None:
    """Changes of the map gather for some milliseconds."""
    if lab.mode != "user":
        until(lambda: diverted(lab, family) == count, f"{count} sessions in the map of nftables")


def data(tunnel: int, session: int, packet: bytes) -> bytes:
    """A data message with an IP packet."""
    return struct.pack("!HHHH", 0x4002, 12 + len(packet), tunnel, session) + b"\xff\x03\x00\x21" + packet


def echo_request(source: str, destination: str) -> bytes:
    """A ping of IPv4."""
    import socket

    body = bytes([8, 0, 0, 0]) + bytes(20)
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + body


@EVERY_MODE
def test_a_client(lab: IpsecLab) -> None:
    lab.serve()
    lab.start(REQUIRED)
    wire = lab.look_on()
    lab.secure(lab.lan)
    xl2tpd = lab.dial_secured(lab.lan)
    awaits_diversion(lab, 1)
    before, then = lab.paths(), lab.session()
    lab.ping(lab.lan, WORLD, count=3)
    lab.ping(lab.net, xl2tpd.address, "-s", "1300", count=2)
    transfer(*lab.connect(lab.lan, WORLD, lab.listen(lab.net)), MEGABYTE)
    transfer(*lab.connect(lab.net, xl2tpd.address, lab.listen(lab.lan)), MEGABYTE)
    session = lab.session()
    assert session["in_errors"] == session["out_errors"] == 0
    if lab.mode != "user":
        # All by the kernel; and what is to be encrypted cannot go past the stack.
        taken = lab.paths() - before
        assert taken["STACK_UP"] + taken["FAST_UP"] == session["in_packets"] - then["in_packets"] > MEGABYTE // 1460
        assert taken["STACK_DOWN"] == session["out_packets"] - then["out_packets"] > MEGABYTE // 1460
    assert lab.tunnel()["mark"] == 1
    assert wire.clear() == []
    assert lab.drops == {}
    xl2tpd.stop()
    lab.empties()
    awaits_diversion(lab, 0)


@pytest.mark.parametrize("version", [1, 2])
def test_two_behind_one_nat(lab: IpsecLab, version: int) -> None:
    server = lab.serve()
    lab.start(REQUIRED)
    wire = lab.look_on()
    clients = [lab.secure(namespace, version=version) for namespace in (lab.lan, lab.lan2)]
    peers = [lab.dial_secured(namespace) for namespace in (lab.lan, lab.lan2)]
    tunnels = lab.tunnels(state="established")
    # To the server they are at the same address and port.
    assert [tunnel["peer"] for tunnel in tunnels] == [f"{LAC}:1701"] * 2
    assert sorted(tunnel["mark"] for tunnel in tunnels) == [1, 2]
    awaits_diversion(lab, 2)
    for namespace, xl2tpd in zip((lab.lan, lab.lan2), peers, strict=True):
        before = dict(lab.associations())
        lab.ping(namespace, WORLD, count=2)
        lab.ping(lab.net, xl2tpd.address, count=2)
        after = dict(lab.associations())
        # By its own, and none by the other's, but a Hello perhaps.
        assert sorted(after[mark] - before[mark] >= 4 for mark in (1, 2)) == [False, True]
    for client in clients:
        # New keys, old marks; and then a new IKE SA.
        client.swanctl("--rekey", "--child", "l2tp")
        client.swanctl("--rekey", "--ike", "l2tp")
    server.says(r"CHILD_SA l2tp-psk\{\d+\} established", 4)
    server.says(r"IKE_SA l2tp-psk\[\d+\] (?:established|rekeyed) between", 4)
    assert {mark for mark, _ in lab.associations()} == {1, 2}
    for namespace, xl2tpd in zip((lab.lan, lab.lan2), peers, strict=True):
        lab.ping(namespace, WORLD, count=2)
        lab.ping(lab.net, xl2tpd.address, count=2)
    assert [(session["in_packets"], session["out_packets"]) for session in lab.sessions()] == [(8, 8)] * 2
    assert lab.drops == {}
    assert wire.clear() == []


@pytest.mark.parametrize("version", [1, 2])
def test_certificates(lab: IpsecLab, version: int) -> None:
    """A client with one and a client with the secret, at one server."""
    lab.certify(lab.bng, "lns", "lns.example.net")
    lab.certify(lab.lan, "client", "client.example")
    server = lab.serve()
    lab.start(REQUIRED)
    certified = "auth = pubkey\n            certs = client.pem"
    lab.secure(lab.lan, version=version, local=certified, remote="auth = pubkey\n            id = lns.example.net")
    lab.secure(lab.lan2, version=version)
    for namespace in (lab.lan, lab.lan2):
        lab.dial_secured(namespace)
        lab.ping(namespace, WORLD)
    assert {"l2tp-cert", "l2tp-psk"} <= set(server.swanctl("--list-sas").replace(":", "").split())


def test_forged_data(lab: IpsecLab) -> None:
    """Neither who is on the wire nor who has an association of its own gets data into the session of another."""
    lab.serve()
    lab.start(REQUIRED)
    for namespace in (lab.lan, lab.lan2):
        lab.secure(namespace)
    first = lab.dial_secured(lab.lan)
    awaits_diversion(lab, 1)
    lab.ping(lab.lan, WORLD, count=2)
    (row,) = lab.sessions()
    seen = lab.wire(lab.net, "host0")
    forged = data(row["tunnel_id"], row["session_id"], echo_request(first.address, WORLD))
    # The NAT itself, in the clear, from the very address and port.
    forge(lab, lab.sub, LAC, [forged] * 5)
    assert lab.session()["in_packets"] == row["in_packets"]
    # The other client, under IPsec: to the server, it has the same address and port.
    send(lab, lab.lan2, [forged] * 5)
    until(lambda: lab.drops.get("endpoint", 0) == 5, "the forged data, which is dropped")
    # And it was no bad forgery.
    lab.ping(lab.lan, WORLD)
    send(lab, lab.lan, [forged])
    until(lambda: lab.session()["in_packets"] == row["in_packets"] + 2, "the same data from the client itself")
    assert lab.session()["in_errors"] == 0
    seen.settimeout(0)
    pings = 0
    try:
        while True:
            frame = seen.recv(2048)
            pings += frame[23:24] == b"\1" and frame[34:35] == b"\x08"
    except BlockingIOError:
        pass
    assert pings == 2


@pytest.mark.parametrize("what", ["flushed", "terminated", "killed"])
def test_nothing_in_the_clear(lab: IpsecLab, what: str) -> None:
    """Keys are gone, or npppyd is, and the policies of strongSwan may be: nothing leaves by which they are missed."""
    server = lab.serve()
    lab.start(REQUIRED)
    lab.secure(lab.lan)
    xl2tpd = lab.dial_secured(lab.lan)
    awaits_diversion(lab, 1)
    lab.ping(lab.net, xl2tpd.address)
    wire = lab.look_on()
    if what == "killed":
        lab.daemon.stop(signal.SIGKILL)
    elif what == "flushed":
        run("ip", "-n", lab.bng, "xfrm", "state", "flush")
    else:
        server.swanctl("--terminate", "--ike", "l2tp-psk", "--force")
    # Data to the peer; what the peer sends, for which ICMP errors would quote it; and Hello and StopCCN.
    lab.try_ping(lab.net, xl2tpd.address, "-W", "0.2", count=5)
    lab.try_ping(lab.lan, WORLD, "-W", "0.2", count=5)
    if what == "killed":
        xl2tpd.tell("d lns")
        lab.try_ping(lab.lan, WORLD, "-W", "0.2", count=5)
        assert lab.associations()[0][0] == 1
    else:
        lab.clear()
    assert wire.clear() == []
    if what == "terminated":
        assert "block" in run("ip", "-n", lab.bng, "xfrm", "policy")
        assert lab.associations() == []


def test_only_under_ipsec(lab: IpsecLab) -> None:
    """Clear clients are not heard, while there are places that require IPsec; and all of it is cleaned up."""
    lab.start(REQUIRED)
    lab.dial_l2tp().says("select timeout", 2)
    assert lab.tunnels() == []
    policies = run("ip", "-n", lab.bng, "xfrm", "policy")
    assert policies.count("action block") == 2
    assert "chain errors" in nft(lab, "list", "ruleset")
    lab.rewrite()
    lab.daemon.send(signal.SIGHUP)
    lab.daemon.says(r"reloaded")
    assert "block" not in run("ip", "-n", lab.bng, "xfrm", "policy")
    assert nft(lab, "list", "ruleset") == ""
    lab.dial_l2tp().up()
    lab.rewrite(REQUIRED)
    lab.daemon.send(signal.SIGHUP)
    lab.daemon.says(r"reloaded", 2)
    lab.daemon.stop(signal.SIGKILL)
    assert "block" in run("ip", "-n", lab.bng, "xfrm", "policy")
    argv = [sys.executable, "-m", "npppy.daemon", "-s", str(lab.socket), "--teardown"]
    done = run("ip", "netns", "exec", lab.bng, *argv)
    assert "2 IPsec policies removed" in done
    assert "block" not in run("ip", "-n", lab.bng, "xfrm", "policy")
    assert nft(lab, "list", "ruleset") == ""


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_the_ruleset_flushed(lab: IpsecLab) -> None:
    """As a reload of Debian's nftables.service does: Python carries for a moment, and then the kernel again."""
    lab.serve()
    lab.start(REQUIRED)
    lab.secure(lab.lan)
    lab.dial_secured(lab.lan)
    awaits_diversion(lab, 1)
    nft(lab, "flush", "ruleset")
    lab.daemon.says("made again")
    awaits_diversion(lab, 1)
    before = lab.paths()
    lab.ping(lab.lan, WORLD, count=3)
    assert (lab.paths() - before)["STACK_UP"] == 3


def test_ipv6(lab: IpsecLab) -> None:
    """Without a NAT, by IKEv2, and by npppysim, since xl2tpd has no IPv6."""
    lab.sysctl(lab.bng, "net/ipv6/conf/all/forwarding", 1)
    lab.places = LNS6
    lab.serve()
    lab.start(REQUIRED)
    lab.secure(lab.sub, lns=LNS6, version=2)
    wire = lab.look_on()
    credentials = lab.where / "credentials"
    credentials.write_text("alice:wonderland\n")
    argv = [sys.executable, "-m", "npppy.sim.main", "l2tp", "--server", f"[{LNS6}]:1701", "--bind", f"[{LAC6}]:1701"]
    simulator = lab.program("npppysim", lab.sub, *argv, "--credentials", str(credentials), "--tun", "--hold", "inf")
    awaits_diversion(lab, 1, "ip6")
    session = lab.session()
    before = lab.paths()
    lab.ping(lab.net, session["address"], count=3)
    if lab.mode != "user":
        taken = +(lab.paths() - before)
        # What the kernel multicasts by itself on npx0 may fall in between.
        taken.pop("DROP_PROTOCOL", None)
        assert taken == {"STACK_UP": 3, "STACK_DOWN": 3}
    assert wire.clear() == []
    simulator.stop()
    lab.empties()
