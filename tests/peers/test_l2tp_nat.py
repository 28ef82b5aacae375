"""Peers behind a NAT, which may change its mind about their port."""

from __future__ import annotations

import socket

import pytest

from npppy.l2tp.codec import Type, control, encode_message
from tests.peers.l2tp_lab import LAC, LNS, L2tpLab, Xl2tpd
from tests.peers.lab import EVERY_MODE, WORLD, run, until

pytestmark = pytest.mark.guest

INSIDE, GATEWAY = "192.168.1.2", "192.168.1.1"


class NatLab(L2tpLab):
    """xl2tpd is in `lan`, behind `sub`, which is its NAT."""

    def build(self) -> None:
        super().build()
        self.ip(self.sub, f"address add {GATEWAY}/24 dev home0")
        self.ip(self.lan, f"address add {INSIDE}/24 dev lan0", f"route add {LNS} via {GATEWAY}")
        self.masquerade(20000)

    def masquerade(self, port: int, to: str = LAC) -> None:
        """From now on, packets leave from this port and those above it; known ones, too."""
        rule = f"udp dport 1701 snat to {to}:{port}-{port + 9}"
        run("ip", "netns", "exec", self.sub, "nft", _TABLE.format(rule=rule))
        run("ip", "netns", "exec", self.sub, "conntrack", "-F")

    def dial_inside(self, **rest: int) -> Xl2tpd:
        xl2tpd = self.dial_l2tp(namespace=self.lan, **rest).up()
        self.ip(self.lan, f"route replace default dev {xl2tpd.interface}")
        return xl2tpd

    def hello(self) -> None:
        """In xl2tpd's name, which says it once a minute.  Its port is free for all: it has several sockets there."""
        tunnel = self.tunnel()
        body = encode_message(Type.HELLO, [])
        with self.datagrams(self.lan) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((INSIDE, 1701))
            sock.sendto(control(tunnel["tunnel_id"], 0, tunnel["next_nr"], tunnel["next_ns"], body), (LNS, 1701))


_TABLE = """
table ip nat
delete table ip nat
table ip nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname "sub0" {rule}
    }}
}}
"""

LAB = NatLab


def test_two_behind_one(lab: NatLab) -> None:
    lab.start()
    xl2tpds = [lab.dial_inside(port=port) for port in (1701, 1702)]
    sessions = lab.sessions()
    assert {session["tunnel_from"].partition(":")[0] for session in sessions} == {LAC}
    assert {session["tunnel_from"] for session in sessions} <= {f"{LAC}:{20000 + number}" for number in range(10)}
    for xl2tpd in xl2tpds:
        lab.ping(lab.lan, WORLD, "-I", xl2tpd.interface, count=2)
    assert [(session["in_packets"], session["out_packets"]) for session in lab.sessions()] == [(2, 2)] * 2
    assert lab.drops == {}


@EVERY_MODE
@pytest.mark.parametrize("rebind", ["port", "no"])
def test_another_port(lab: NatLab, rebind: str) -> None:
    lab.start(f"l2tp-peer-rebind {rebind}")
    xl2tpd = lab.dial_inside()
    lab.ping(lab.lan, WORLD, count=2)
    before = lab.session()
    lab.masquerade(30000)
    # Data moves nothing.
    assert " 0 received" in lab.try_ping(lab.lan, WORLD, "-W", "0.3", count=2)
    after = lab.session()
    assert (after["in_packets"], after["tunnel_from"]) == (before["in_packets"], before["tunnel_from"])
    lab.hello()
    if rebind == "no":
        until(lambda: lab.drops.get("endpoint"), "a message from elsewhere")
        assert lab.tunnel()["peer"] == before["tunnel_from"]
        return
    new = lab.daemon.says(rf"Moved to=({LAC}:3000\d)\n")[1]
    assert lab.tunnel()["peer"] == new
    lab.ping(lab.lan, WORLD, count=2)
    lab.ping(lab.net, xl2tpd.address)
    session = lab.session()
    assert session["tunnel_from"] == new
    assert (session["ppp_id"], session["in_packets"]) == (0, before["in_packets"] + 3)


@pytest.mark.parametrize("rebind", ["address", "port"])
def test_another_address(lab: NatLab, rebind: str) -> None:
    lab.start(f"l2tp-peer-rebind {rebind}")
    xl2tpd = lab.dial_inside()
    lab.ping(lab.lan, WORLD, count=2)
    other = "198.51.100.9"
    lab.ip(lab.sub, f"address add {other}/24 dev sub0")
    lab.masquerade(30000, other)
    lab.hello()
    if rebind == "port":
        until(lambda: lab.drops.get("endpoint"), "a message from elsewhere")
        assert lab.tunnel()["peer"].startswith(f"{LAC}:")
        return
    new = lab.daemon.says(rf"Moved to=({other}:3000\d)\n")[1]
    lab.ping(lab.lan, WORLD, count=2)
    lab.ping(lab.net, xl2tpd.address)
    assert lab.session()["tunnel_from"] == new
