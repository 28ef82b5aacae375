"""A session that is up: keepalives both ways, renegotiation, a link that flaps, a reload."""

from __future__ import annotations

import signal

import pytest

from npppy.ppp import options, proto
from npppy.pppoe import codec
from tests.peers.lab import WORLD, Exit, Lab, until

pytestmark = pytest.mark.guest


def test_our_keepalive(lab: Lab) -> None:
    lab.start("lcp-keepalive-interval 1\nlcp-keepalive-retry-interval 1\nlcp-keepalive-max-retries 1")
    # pppd shows echoes with a second "debug" only.
    pppd = lab.dial_up("debug")
    # The interval is longer than what it takes to give up a peer that does not answer.
    pppd.says(r"rcvd \[LCP EchoReq .*\]\nsent \[LCP EchoRep", 4)
    assert lab.session()["duration"] > 3
    lab.ping(lab.sub, WORLD)


def test_the_keepalive_of_pppd(lab: Lab) -> None:
    lab.start("lcp-keepalive no")
    pppd = lab.dial_up("debug", "lcp-echo-interval", "1", "lcp-echo-failure", "1")
    pppd.says(r"sent \[LCP EchoReq .*\]\nrcvd \[LCP EchoRep", 4)
    assert pppd.running
    assert lab.status()["timers"] == 0
    lab.ping(lab.sub, WORLD)


def negotiated_again(lab: Lab, mru: int) -> None:
    """All of it, from LCP to IPCP, and the session goes on as it was."""
    (pppd,) = lab.programs[1:]
    address = pppd.says(r"local  IP address (\S+)", 2)[1]
    pppd.says(r"rcvd \[CHAP Success", 2)
    session = lab.session()
    assert (session["ppp_id"], session["address"], session["mru"]) == (0, address, mru)
    assert lab.daemon.log.count("TUNNELSTART") == 1
    assert "TUNNELUSAGE" not in lab.daemon.log
    lab.ip(lab.sub, "route replace default dev ppp0")
    lab.ping(lab.sub, WORLD)
    lab.ping(lab.net, address, "-M", "do", "-s", str(mru - 28))
    counters = lab.session()
    # Those of before included.
    assert counters["in_packets"] == session["in_packets"] + 2 > 2


def test_renegotiation(lab: Lab) -> None:
    """pppd never begins it, so a Configure-Request in its name does."""
    lab.start()
    pppd = lab.dial_up()
    lab.ping(lab.sub, WORLD)
    wishes = options.encode([(proto.OPT_MRU, (1492).to_bytes(2, "big")), (proto.OPT_MAGIC, b"npp!")])
    request = b"\xc0\x21\x01\x77" + (len(wishes) + 4).to_bytes(2, "big") + wishes
    ours, theirs = lab.mac(lab.bng, "eth1"), lab.mac(lab.sub, "sub0")
    lab.wire(lab.sub, "sub0").send(codec.session_frame(ours, theirs, pppd.session_id, request))
    negotiated_again(lab, 1492)


def test_a_smaller_mtu(lab: Lab) -> None:
    lab.start()
    lab.dial_up()
    lab.ping(lab.sub, WORLD)
    lab.ip(lab.bng, "link set eth1 mtu 1400")
    lab.daemon.says(r"port=eth1 MTU changed old=1500 new=1400")
    negotiated_again(lab, 1392)


def test_a_link_that_flaps(lab: Lab) -> None:
    lab.start()
    lab.dial_up()
    lab.ip(lab.bng, "link set eth1 down")
    lab.daemon.says(r"Link up=no")
    lab.ip(lab.bng, "link set eth1 up")
    lab.daemon.says(r"Link up=yes")
    # The kernel takes up to a second to see that the carrier is back.
    until(lambda: " 1 received" in lab.try_ping(lab.sub, WORLD, "-W", "0.2"), "an answer")
    assert lab.session()["ppp_id"] == 0


def test_a_reload(lab: Lab) -> None:
    """What is new is for new sessions."""
    lab.start(ipcp="dns-servers 9.9.9.9")
    lab.dial_up("usepeerdns")
    lab.rewrite("authentication-method pap", ipcp="dns-servers 149.112.112.112")
    lab.daemon.send(signal.SIGHUP)
    lab.daemon.says(r"reloaded ")
    lab.ping(lab.sub, WORLD)
    second = lab.dial("usepeerdns").up()
    assert "PAP authentication succeeded" in second.log
    second.says(r"primary   DNS address 149\.112\.112\.112")
    assert [session["ppp_id"] for session in lab.sessions()] == [0, 1]
    lab.ping(lab.sub, WORLD)


def test_a_reload_without_the_interface(lab: Lab) -> None:
    lab.start()
    pppd = lab.dial_up()
    lab.rewrite("", listen="eth2")
    lab.daemon.send(signal.SIGHUP)
    # By a PADT.
    assert pppd.exits() == Exit.HANGUP
    lab.ended("Admin-Reset")
    lab.empties()
