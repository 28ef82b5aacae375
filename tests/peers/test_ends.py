"""How sessions end: by whom, for what cause, and what both sides make of it."""

from __future__ import annotations

import signal

import pytest

from tests.peers.lab import QUICK, WORLD, Exit, Lab

pytestmark = pytest.mark.guest

#: A silent peer is given up within three seconds.
KEEPALIVE = f"{QUICK}\nlcp-keepalive-interval 1\nlcp-keepalive-retry-interval 1\nlcp-keepalive-max-retries 2"


def test_pppd_is_told_to_end(lab: Lab) -> None:
    lab.start(QUICK)
    pppd = lab.dial_up()
    lab.ping(lab.sub, WORLD)
    assert pppd.stop() == Exit.SIGNALLED
    assert lab.ended("User-Request") == "the peer terminated LCP"
    assert "rcvd [LCP TermAck" in pppd.log
    assert "data_in=84bytes,1packets data_out=84bytes,1packets" in lab.daemon.log
    lab.empties()


@pytest.mark.parametrize(("option", "status"), [("idle", Exit.IDLE), ("maxconnect", Exit.CONNECT_TIME)])
def test_pppd_has_enough(lab: Lab, option: str, status: Exit) -> None:
    lab.start(QUICK)
    pppd = lab.dial_up(option, "1")
    assert pppd.exits() == status
    assert lab.ended("User-Request") == "the peer terminated LCP"
    lab.empties()


def test_a_killed_pppd(lab: Lab) -> None:
    """It says nothing: only the keepalive finds out."""
    lab.start(KEEPALIVE)
    lab.dial_up().kill()
    assert lab.ended("Lost-Carrier") == "no answer to 2 LCP echoes"
    lab.empties()


def test_a_pppd_that_hangs(lab: Lab) -> None:
    lab.start(KEEPALIVE)
    pppd = lab.dial_up()
    pppd.send(signal.SIGSTOP)
    lab.ended("Lost-Carrier")
    lab.empties()
    pppd.send(signal.SIGCONT)
    # By then it has our Terminate-Request and our PADT.
    assert pppd.exits() == Exit.HANGUP


def test_the_subscribers_link_goes_down(lab: Lab) -> None:
    lab.start(KEEPALIVE)
    pppd = lab.dial_up()
    lab.ip(lab.sub, "link set sub0 down")
    assert pppd.exits() == Exit.HANGUP
    lab.ended("Lost-Carrier")
    lab.empties()


def test_our_link_goes_down(lab: Lab) -> None:
    """Neither side hears the other any more, and both find out."""
    lab.start(KEEPALIVE)
    pppd = lab.dial_up("lcp-echo-interval", "1", "lcp-echo-failure", "2")
    lab.ip(lab.bng, "link set eth1 down")
    pppd.exits()
    assert "No response to 2 echo-requests" in pppd.log
    lab.ended("Lost-Carrier")
    lab.empties()
    lab.ip(lab.bng, "link set eth1 up")
    lab.dial_up()
    lab.ping(lab.sub, WORLD)


def test_our_interface_vanishes(lab: Lab) -> None:
    lab.start(QUICK)
    first = lab.dial_up()
    lab.ip(lab.bng, "link delete eth1")
    assert first.exits() == Exit.HANGUP
    assert lab.ended("Lost-Carrier") == "interface vanished"
    lab.empties()
    # A new one by the same name serves as the old one did.
    lab.plug("eth1", lab.sub, "sub0")
    lab.daemon.says(r"interface=eth1 Listening", 2)
    lab.dial_up()
    lab.ping(lab.sub, WORLD)


def test_our_address_changes(lab: Lab) -> None:
    lab.start(QUICK)
    first = lab.dial_up()
    lab.ip(lab.bng, "link set eth1 address 02:00:5e:00:00:01")
    # Its PADT comes from the address that pppd knows.
    assert first.exits() == Exit.HANGUP
    assert lab.ended("Lost-Carrier") == "MAC address changed"
    lab.empties()
    second = lab.dial_up()
    second.says(r"Connected to 02:00:5e:00:00:01 ")
    lab.ping(lab.sub, WORLD)


def test_clear(lab: Lab) -> None:
    lab.start(QUICK)
    pppd = lab.dial_up()
    assert lab.ctl("clear", "ppp-id", "0") == "Successfully disconnected 1 session.\n"
    assert lab.ended("Admin-Reset") == "an operator cleared it"
    pppd.exits()
    assert "LCP terminated by peer" in pppd.log
    lab.empties()
    assert lab.ctl("clear", "ppp-id", "0", status=1) == "Failed to disconnect 1 session.\n"


def test_idle_timeout(lab: Lab) -> None:
    lab.start(f"{QUICK}\nidle-timeout 2")
    pppd = lab.dial_up()
    lab.ping(lab.sub, WORLD)
    assert lab.ended("Idle-Timeout") == "idle for 2 s"
    pppd.exits()
    assert "LCP terminated by peer" in pppd.log
    lab.empties()


def test_npppyd_is_told_to_end(lab: Lab) -> None:
    lab.start()
    pppds = [lab.dial().up() for _ in range(3)]
    assert lab.daemon.stop() == 0
    for pppd in pppds:
        pppd.exits()
        assert "LCP terminated by peer" in pppd.log
    assert lab.ended("Admin-Reboot", 3) == "npppyd is shutting down"
    assert "npppyd stopped" in lab.daemon.log
    assert not lab.socket.exists()
    assert not lab.has_link(lab.bng, "tun0")


def test_npppyd_is_told_to_end_and_a_peer_hangs(lab: Lab) -> None:
    lab.start(QUICK)
    pppd = lab.dial_up()
    pppd.send(signal.SIGSTOP)
    assert lab.daemon.stop() == 0
    lab.ended("Admin-Reboot")
    pppd.send(signal.SIGCONT)
    assert pppd.exits() == Exit.HANGUP
