"""How PPTP calls and control connections end: by whom, for what cause, and what both sides make of it.

pppd that is told to end kills pptp-linux first: its LCP has no way to say so, and the call manager clears the call.
"""

from __future__ import annotations

import signal

import pytest

from tests.peers.encrypted import BACK_ENDS, FAST, USER
from tests.peers.lab import QUICK, WORLD, Exit, until
from tests.peers.pptp_lab import PptpLab

pytestmark = pytest.mark.guest

LAB = PptpLab

#: A silent peer is given up within three seconds.
KEEPALIVE = f"{QUICK}\nlcp-keepalive-interval 1\nlcp-keepalive-retry-interval 1\nlcp-keepalive-max-retries 2"
ECHO = "pptp-echo-interval 1\npptp-echo-timeout 1"
#: What finds out that npppyd is gone, which pptp-linux does not tell pppd.
ALERT = ("lcp-echo-interval", "1", "lcp-echo-failure", "2", "lcp-restart", "1")


@FAST
def test_pppd_is_told_to_end(lab: PptpLab) -> None:
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    assert pppd.stop() == Exit.HANGUP
    lab.ended("User-Request")
    assert "data_in=84bytes,1packets data_out=84bytes,1packets" in lab.daemon.log
    lab.empties()
    until(lambda: not lab.pptps(lab.sub), "the end of pptp-linux")


@FAST
def test_pppd_has_enough(lab: PptpLab) -> None:
    """It ends LCP first."""
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe", "maxconnect", "1")
    assert pppd.exits() == Exit.CONNECT_TIME
    assert lab.ended("User-Request") == "the peer terminated LCP"
    lab.empties()


@USER
def test_the_gateway_is_killed(lab: PptpLab) -> None:
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe")
    lab.gateway(signal.SIGKILL)
    assert pppd.exits() == Exit.HANGUP
    lab.daemon.says("TUNNELUSAGE")
    lab.empties()


@pytest.mark.parametrize(
    ("lab", "number"), [("user", signal.SIGTERM), ("fast", signal.SIGKILL)], indirect=["lab"]
)
def test_the_call_manager_is_killed(lab: PptpLab, number: int) -> None:
    """With it goes the control connection, which it closes, or the kernel does; pppd may hear of it by LCP alone."""
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe", *ALERT)
    lab.manager(number)
    lab.ended("Lost-Carrier|User-Request")
    pppd.exits()
    lab.empties()
    # Whatever was left in between is no hindrance.
    lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)


@FAST
def test_a_call_manager_that_hangs(lab: PptpLab) -> None:
    """Data would still pass, but nobody answers the Echo-Requests of the control connection."""
    lab.start(f"{QUICK}\n{ECHO}")
    pppd = lab.dial_pptp_up("require-mppe", *ALERT)
    lab.manager(signal.SIGSTOP)
    lab.ping(lab.sub, WORLD)
    lab.ended("Lost-Carrier")
    pppd.exits()
    lab.empties()


@BACK_ENDS
def test_an_operator_clears_it(lab: PptpLab) -> None:
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    lab.clear(ppp_id=0)
    assert lab.ended("Admin-Reset") == "an operator cleared it"
    assert pppd.exits() == Exit.HANGUP
    assert "LCP terminated by peer" in pppd.log
    lab.empties()


@FAST
def test_the_way_to_the_peer_is_cut(lab: PptpLab) -> None:
    """Neither side hears the other any more, and both find out."""
    lab.start(f"{KEEPALIVE}\n{ECHO}")
    pppd = lab.dial_pptp_up("require-mppe", *ALERT)
    lab.ip(lab.sub, "link set sub0 down")
    pppd.exits()
    assert "No response to 2 echo-requests" in pppd.log
    lab.ended("Lost-Carrier")
    lab.empties()
    lab.manager(signal.SIGKILL)
    lab.ip(lab.sub, "link set sub0 up")
    lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)


@USER
def test_npppyd_is_told_to_end(lab: PptpLab) -> None:
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    assert lab.daemon.stop() == 0
    assert pppd.exits() == Exit.HANGUP
    assert "LCP terminated by peer" in pppd.log
    until(lambda: not lab.pptps(lab.sub), "the end of pptp-linux")


@BACK_ENDS
def test_npppyd_is_killed(lab: PptpLab) -> None:
    """pppd finds out, and dials a successor, in which nothing is left of the old session."""
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe", *ALERT)
    lab.ping(lab.sub, WORLD)
    lab.mute()
    lab.daemon.stop(signal.SIGKILL)
    if lab.mode != "user":
        # Until then the kernel carries and encrypts it.
        lab.ping(lab.sub, WORLD, count=3)
        lab.ping(lab.net, pppd.address, count=3)
    lab.start_again()
    pppd.exits()
    until(lab.is_empty, "nothing is left")
    lab.mute(False)
    lab.manager(signal.SIGKILL)
    lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD, count=2)
