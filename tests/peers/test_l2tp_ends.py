"""How L2TP calls and tunnels end: by whom, for what cause, and what both sides make of it."""

from __future__ import annotations

import signal

import pytest

from npppy.l2tp.orphans import PROBES
from tests.peers.l2tp_lab import LNS, L2tpLab
from tests.peers.lab import OFFICE, QUICK, WORLD, until

pytestmark = pytest.mark.guest

LAB = L2tpLab

HELLO = f"{QUICK}\nl2tp-hello-interval 1\nl2tp-hello-timeout 1"


def test_pppd_is_told_to_end(lab: L2tpLab) -> None:
    lab.start(QUICK)
    xl2tpd = lab.dial_l2tp_up()
    lab.ping(lab.sub, WORLD)
    xl2tpd.hang_up()
    assert lab.ended("User-Request") == "the peer terminated LCP"
    xl2tpd.ppp_says(r"rcvd \[LCP TermAck")
    assert "data_in=84bytes,1packets data_out=84bytes,1packets" in lab.daemon.log
    lab.daemon.says("RecvCDN")
    lab.empties()


def test_another_call_of_a_tunnel(lab: L2tpLab) -> None:
    lab.start(QUICK)
    xl2tpd = lab.dial_l2tp_up(lac="redial = yes\nredial timeout = 1")
    tunnel = lab.tunnel()["tunnel_id"]
    lab.clear(ppp_id=0)
    assert lab.ended("Admin-Reset") == "an operator cleared it"
    xl2tpd.ppp_says("LCP terminated by peer")
    xl2tpd.says(rf"Connection closed to {LNS}, serial 1 ")
    name = xl2tpd.ppp_says(r"Using interface (\S+)", 2)[1]
    xl2tpd.ppp_says("remote IP address", 2)
    assert lab.session()["ppp_id"] == 1
    assert lab.tunnel()["tunnel_id"] == tunnel
    lab.ip(lab.sub, f"route replace default dev {name}")
    lab.ping(lab.sub, WORLD)


@pytest.mark.parametrize("lab", ["user"], indirect=True)
def test_a_killed_pppd(lab: L2tpLab) -> None:
    """It says nothing, but xl2tpd does."""
    lab.start(QUICK)
    xl2tpd = lab.dial_l2tp_up()
    xl2tpd.hang_up(signal.SIGKILL)
    assert lab.ended("Lost-Carrier") == "CDN received: loss of carrier"
    lab.empties()


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_xl2tpd_disconnects(lab: L2tpLab) -> None:
    lab.start(QUICK)
    xl2tpd = lab.dial_l2tp_up()
    xl2tpd.tell("d lns")
    assert lab.ended("Lost-Carrier") == "StopCCN received: cleared (Goodbye!)"
    lab.empties()


def test_xl2tpd_is_told_to_end(lab: L2tpLab) -> None:
    lab.start(QUICK)
    lab.dial_l2tp_up().stop()
    assert lab.ended("Lost-Carrier") == "StopCCN received: cleared (Server closing)"
    lab.empties()


def test_a_killed_xl2tpd(lab: L2tpLab) -> None:
    """It says nothing, and its pppd cannot: only a HELLO finds out."""
    lab.start(HELLO)
    lab.dial_l2tp_up().stop(signal.SIGKILL)
    assert lab.ended("Lost-Carrier") == "the peer does not answer"
    lab.daemon.says(r"Timeout state=established")
    lab.empties()
    assert not lab.tunnels()


def test_a_killed_xl2tpd_that_comes_again(lab: L2tpLab) -> None:
    """Before the old tunnel is given up: the new login takes its place."""
    lab.start(QUICK, top="set duplicate-session replace")
    lab.dial_l2tp(user="bob", password="builder").up().stop(signal.SIGKILL)
    new = lab.dial_l2tp_up(user="bob", password="builder")
    assert new.address == "10.65.0.7"
    lab.ended("Port-Preempted")
    lab.ping(lab.sub, WORLD)
    lab.ping(lab.net, new.address)
    # The old tunnel has no call, and the peer knows nothing of it.
    new.tell("d lns")
    lab.hung_up()


@pytest.mark.parametrize("lab", ["user"], indirect=True)
def test_the_way_to_the_peer_is_cut(lab: L2tpLab) -> None:
    lab.start(HELLO)
    lab.dial_l2tp_up()
    lab.ip(lab.sub, "link set sub0 down")
    assert lab.ended("Lost-Carrier") == "the peer does not answer"
    lab.hung_up()


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_a_way_that_was_cut_for_a_moment(lab: L2tpLab) -> None:
    lab.start("l2tp-hello-interval 1\nl2tp-hello-timeout 20")
    lab.dial_l2tp_up()
    lab.ip(lab.bng, "link set eth1 down")
    until(lambda: lab.tunnel()["retransmissions"] >= 2, "retransmissions")
    lab.ip(lab.bng, "link set eth1 up")
    until(lambda: " 1 received" in lab.try_ping(lab.sub, WORLD, "-W", "0.2"), "an answer")
    until(lambda: lab.tunnel()["queued"] == 0, "an answer to HELLO")
    assert lab.session()["ppp_id"] == 0


def test_idle_timeout(lab: L2tpLab) -> None:
    lab.start(f"{QUICK}\nidle-timeout 2")
    xl2tpd = lab.dial_l2tp_up()
    lab.ping(lab.sub, WORLD)
    assert lab.ended("Idle-Timeout") == "idle for 2 s"
    xl2tpd.ppp_says("LCP terminated by peer")
    lab.empties()


def test_npppyd_is_told_to_end(lab: L2tpLab) -> None:
    lab.start()
    xl2tpds = [lab.dial_l2tp(port=port).up() for port in (40001, 40002)]
    assert lab.daemon.stop() == 0
    assert lab.ended("Admin-Reboot", 2) == "npppyd is shutting down"
    for xl2tpd in xl2tpds:
        xl2tpd.ppp_says("LCP terminated by peer")
        xl2tpd.says(rf"Connection closed to {LNS}, port 1701 \(shutting down\)")


def test_npppyd_is_killed_and_started_again(lab: L2tpLab) -> None:
    """The tunnels of the old one are ended at the peers, which dial again."""
    lab.start()
    old = lab.dial_l2tp(user="office", password="red:brick").up()
    other = lab.dial_l2tp(port=40001).up()
    until(lambda: lab.has_route(lab.bng, OFFICE), "the route")
    address = old.address
    lab.daemon.stop(signal.SIGKILL)
    assert not lab.has_link(lab.bng, "tun0")
    lab.start_again()
    lab.daemon.says(r"l2tp Ending old tunnels=2")
    for xl2tpd in (old, other):
        xl2tpd.says(rf"Connection closed to {LNS}, port 1701 \(restarted\)")
    until(lab.is_empty, "nothing is left")
    assert not lab.has_route(lab.bng, OFFICE)
    # Debian's crashes when it is to redial by itself after a StopCCN.
    old.tell("c lns")
    session = lab.session()
    assert (session["username"], session["address"]) == ("office", address)
    until(lambda: lab.has_route(lab.bng, OFFICE), "the route")
    name = old.ppp_says(r"Using interface (\S+)", 2)[1]
    old.ppp_says("remote IP address", 2)
    lab.ip(lab.sub, f"route replace default dev {name}")
    lab.ping(lab.net, address)
    assert lab.status()["journal"] == 1


@pytest.mark.parametrize("lab", ["user"], indirect=True)
def test_a_peer_that_was_not_there_when_npppyd_started_again(lab: L2tpLab) -> None:
    """What it says later is of a tunnel that is remembered."""
    lab.start()
    xl2tpd = lab.dial_l2tp_up()
    lab.daemon.stop(signal.SIGKILL)
    lab.ip(lab.bng, "link set eth1 down")
    lab.start_again()
    lab.daemon.says(r"l2tp Ending old tunnels=1")
    assert xl2tpd.running

    def failed() -> int:
        return sum(count for reason, count in lab.drops.items() if reason.startswith("send-"))

    # All that is sent to the peer by itself has been, and has not left.
    until(lambda: failed() >= PROBES, "nothing more is sent")
    lab.ip(lab.bng, "link set eth1 up")
    xl2tpd.hang_up(signal.SIGKILL)
    xl2tpd.says(rf"Connection closed to {LNS}, port 1701 \(restarted\)")
    until(lab.is_empty, "nothing is left")
