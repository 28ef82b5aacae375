"""Debian's xl2tpd with pppd dials: authentication, what it is told, and how it is refused."""

from __future__ import annotations

import json
import re

import pytest

from tests.peers.l2tp_lab import LAC, LNS, L2tpLab
from tests.peers.lab import OURS, QUICK, WORLD, until

pytestmark = pytest.mark.guest

LAB = L2tpLab

METHODS = {"pap": "PAP", "chap": "CHAP-MD5", "mschapv2": "MS-CHAP-V2"}


@pytest.mark.parametrize("method", METHODS)
def test_dial(lab: L2tpLab, method: str) -> None:
    lab.start(f"authentication-method {method}")
    xl2tpd = lab.dial_l2tp_up()
    session = lab.session()
    assert (session["username"], session["realm"], session["interface"]) == ("alice", "LOCAL", "tun0")
    assert (session["address"], session["mru"], session["protocol"]) == (xl2tpd.address, 1360, "L2TP")
    assert session["tunnel_from"] == f"{LAC}:1701"
    lab.daemon.says(rf'TUNNELSTART user="alice" .* auth={METHODS[method]} ip={xl2tpd.address} iface=tun0')
    assert f"{'PAP' if method == 'pap' else 'CHAP'} authentication succeeded" in xl2tpd.ppp_log
    lab.ping(lab.sub, OURS)
    lab.ping(lab.sub, WORLD, count=3)
    lab.ping(lab.net, xl2tpd.address)
    session = lab.session()
    assert (session["in_packets"], session["out_packets"]) == (5, 5)
    assert (session["in_bytes"], session["out_bytes"]) == (5 * 84, 5 * 84)
    assert session["in_errors"] == session["out_errors"] == 0
    assert lab.drops == {}


def test_wrong_logins(lab: L2tpLab) -> None:
    lab.start(QUICK)
    for user, reason in (("alice", "wrong password"), ("mallory", "unknown user")):
        xl2tpd = lab.dial_l2tp(user=user, password="guess")
        xl2tpd.ppp_says("CHAP authentication failed")
        lab.daemon.says(rf'TUNNELDENY user="{user}" layer2=L2TP layer2from={LAC}:1701 reason="{reason}"')
        assert "E=691 R=0 " in xl2tpd.ppp_log
        lab.empties()
    assert lab.status()["refused"] == 2
    lab.dial_l2tp_up()
    lab.ping(lab.sub, WORLD)


def test_npppyctl(lab: L2tpLab) -> None:
    lab.start("l2tp-hostname lns.example\nl2tp-vendor-name acme")
    xl2tpd = lab.dial_l2tp_up()
    assert "peer reports hostname 'lns.example'" in xl2tpd.log
    assert "peer reports vendor 'acme'" in xl2tpd.log
    match = xl2tpd.says(r"Local: (\d+), Remote: (\d+) \(")
    theirs, ours = match[1], match[2]
    assert lab.ctl("session", "brief").splitlines()[-1].split() == ["0", xl2tpd.address, "alice", "L2TP", f"{LAC}:1701"]
    assert re.search(rf"Tunnel Id +: {ours}, peer's {theirs}\n", lab.ctl("session", "all", "username", "alice"))
    row = json.loads(lab.ctl("-j", "tunnel", "all", "id", ours))
    assert (row["peer_tunnel_id"], row["peer"], row["local"]) == (int(theirs), f"{LAC}:1701", f"{LNS}:1701")
    assert (row["state"], row["sessions"], row["queued"], row["retransmissions"]) == ("established", 1, 0, 0)
    brief = lab.ctl("tunnel", "brief", "peer", LAC).splitlines()[-1].split()
    assert brief[:5] == [ours, theirs, "L2TP", "established", "1"]
    assert lab.ctl("clear", "tunnel", "id", ours) == "Successfully disconnected 1 tunnel with 1 session.\n"
    assert lab.ended("Admin-Reset") == "an operator cleared it"
    xl2tpd.says("Stop-Control-Connection-Notification")
    xl2tpd.says(rf"Connection closed to {LNS}, port 1701 \(an operator cleared it\)")
    xl2tpd.ppp_says("Terminating on signal 15|Hangup")
    lab.empties()


def test_several_from_one_address(lab: L2tpLab) -> None:
    """Behind other ports each, as hosts behind one NAT are."""
    lab.start()
    ports = (1701, 40001, 40002)
    xl2tpds = [lab.dial_l2tp(port=port) for port in ports]
    addresses = {xl2tpd.up().address for xl2tpd in xl2tpds}
    assert len(addresses) == 3
    sessions = lab.sessions()
    assert {session["tunnel_from"] for session in sessions} == {f"{LAC}:{port}" for port in ports}
    assert {session["address"] for session in sessions} == addresses
    for xl2tpd in xl2tpds:
        lab.ping(lab.sub, WORLD, "-I", xl2tpd.interface, count=2)
    assert [(session["in_packets"], session["out_packets"]) for session in lab.sessions()] == [(2, 2)] * 3
    # The end of one is no concern of the others.
    xl2tpds[1].stop()
    until(lambda: len(lab.sessions()) == 2, "two sessions")
    for index in (0, 2):
        lab.ping(lab.sub, WORLD, "-I", xl2tpds[index].interface)


def test_two_tunnels_of_one_port(lab: L2tpLab) -> None:
    lab.start()
    first = lab.dial_l2tp(lac=f"[lac again]\nlns = {LNS}\npppoptfile = {lab.where}/again\nautodial = no")
    (lab.where / "again").write_text("user bob\npassword builder\nnoauth\nnodefaultroute\nnoipdefault\n")
    first.up()
    first.tell("c again")
    sessions = until(lambda: (rows := lab.sessions())[1:] and rows, "another session")
    assert [session["username"] for session in sessions] == ["alice", "bob"]
    assert len(lab.tunnels(state="established")) == 2
    for number in range(2):
        lab.ping(lab.sub, WORLD, "-I", f"ppp{number}", count=2)
    assert [(session["in_packets"], session["out_packets"]) for session in lab.sessions()] == [(2, 2)] * 2
    first.tell("d again")
    until(lambda: len(lab.sessions()) == 1, "one session")
    lab.ping(lab.sub, WORLD, "-I", first.interface)
