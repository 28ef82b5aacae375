"""L2TP's control connection with Debian's xl2tpd: its secret, what it hides, its addresses, its log."""

from __future__ import annotations

import re
import signal

import pytest

from tests.peers.l2tp_lab import LAC, LNS, L2tpLab
from tests.peers.lab import MODES, QUICK, WORLD, until

pytestmark = pytest.mark.guest

LAB = L2tpLab

#: It is the same whoever carries data.
ONE_MODE = pytest.mark.parametrize("lab", ["user"], indirect=True)

#: Another address of ours.
OTHER = "198.51.100.3"
SECRETS = "* * s3cret\n"


def octets(text: str) -> str:
    """As a dump has them."""
    return text.encode().hex(" ")


def dumped(lab: L2tpLab) -> str:
    """The dumps in npppyd's log, each on one line."""
    return re.sub(r"\n[0-9a-f]{4}  ", " ", lab.daemon.log)


@ONE_MODE
@pytest.mark.parametrize("both", [True, False])
def test_authentication(lab: L2tpLab, both: bool) -> None:
    lab.start("l2tp-secret s3cret")
    xl2tpd = lab.dial_l2tp_up(secrets=SECRETS, lac="challenge = yes" if both else "")
    assert "challenge avp found" in xl2tpd.log
    assert ("Challenge reply found" in xl2tpd.log) == both
    lab.ping(lab.sub, WORLD)
    assert lab.drops == {}


@ONE_MODE
def test_the_secret_of_an_address(lab: L2tpLab) -> None:
    lab.start(f"l2tp-secret other\nl2tp-secret s3cret from {LAC}")
    lab.dial_l2tp_up(secrets=SECRETS, lac="challenge = yes")
    lab.ping(lab.sub, WORLD)


@ONE_MODE
@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        # xl2tpd has no answer to our challenge, or a wrong one; or it finds that ours is wrong.
        ("s3cret", "", r'Closed state=wait-ctl-conn .*reason="'),
        ("s3cret", "wrong", r'Closed state=wait-ctl-conn .*reason="tunnel authentication failed"'),
        ("", "s3cret", r'Closed .*reason="the peer wants tunnel authentication: no l2tp-secret"'),
    ],
    ids=["theirs is missing", "theirs is wrong", "ours is missing"],
)
def test_another_secret(lab: L2tpLab, ours: str, theirs: str, says: str) -> None:
    lab.start(f"l2tp-secret {ours}" if ours else "")
    challenge = "challenge = yes" if not ours else ""
    xl2tpd = lab.dial_l2tp(secrets=f"* * {theirs}\n" if theirs else "", lac=challenge)
    lab.daemon.says(says)
    assert not lab.sessions(state="any")
    assert not xl2tpd.ppp_log
    assert "s3cret" not in lab.daemon.log
    lab.empties()


@ONE_MODE
@pytest.mark.parametrize("hidden", [True, False])
def test_hidden_avps(lab: L2tpLab, hidden: bool) -> None:
    """xl2tpd reveals what we hide.  Debian's can hide nothing itself: with the option it sends a Random Vector only."""
    lab.start(f"{QUICK}\nl2tp-secret s3cret\nl2tp-hidden-avps {'yes' if hidden else 'no'}\nl2tp-ctrl-out-pktdump yes")
    xl2tpd = lab.dial_l2tp_up(secrets=SECRETS, lac="hidden bit = yes")
    lab.ping(lab.sub, WORLD)
    # By the Session ID that it has revealed.
    xl2tpd.says(rf"assigned_call_avp: using peer's call {lab.session()['session_id']}\n")
    # Its Attribute Type and, of the flags and length before it, the H bit.
    assert bool(re.search(r" [4-7c-f]\w \w\w 00 00 00 0e ", dumped(lab))) == hidden
    assert lab.drops == {}
    lab.clear(ppp_id=0)
    xl2tpd.says(rf"Connection closed to {LNS}, serial 1")
    lab.empties()


@pytest.mark.parametrize("places", [f"{LNS},{OTHER},{OTHER} port 1702", "0.0.0.0,0.0.0.0 port 1702"])
def test_answers_come_from_where_the_peer_speaks_to(lab: L2tpLab, places: str) -> None:
    lab.ip(lab.bng, f"address add {OTHER}/24 dev eth1")
    lab.places = places
    lab.start()
    spoken_to = (LNS, OTHER, f"{OTHER}:1702")
    xl2tpds = [lab.dial_l2tp(lns=place, port=40000 + number) for number, place in enumerate(spoken_to)]
    for xl2tpd in xl2tpds:
        xl2tpd.up()
    local = {row["peer"]: row["local"] for row in lab.tunnels(state="established")}
    assert local == {
        f"{LAC}:40000": f"{LNS}:1701",
        f"{LAC}:40001": f"{OTHER}:1701",
        f"{LAC}:40002": f"{OTHER}:1702",
    }
    for xl2tpd in xl2tpds:
        lab.ping(lab.sub, WORLD, "-I", xl2tpd.interface, count=2)
    assert [(session["in_packets"], session["out_packets"]) for session in lab.sessions()] == [(2, 2)] * 3
    assert lab.drops == {}


@ONE_MODE
def test_dumps_in_the_log(lab: L2tpLab) -> None:
    dumps = "\n".join(f"l2tp-{what}-{way}-pktdump yes" for what in ("ctrl", "data") for way in ("in", "out"))
    lab.start(f"{dumps}\nauthentication-method pap\nl2tp-secret s3cret")
    lab.dial_l2tp_up(secrets=SECRETS)
    lab.ping(lab.sub, WORLD)
    for what in ("RecvCtrl", "SendCtrl", "RecvData", "SendData"):
        lab.daemon.says(rf"{what} len=\d+\n0000  ")
    log = dumped(lab)
    assert octets("npppy-") in log
    for secret in ("wonderland", "s3cret"):
        assert secret not in log
        assert octets(secret) not in log


def test_a_reload_keeps_tunnels(lab: L2tpLab) -> None:
    lab.start()
    lab.dial_l2tp_up()
    before = lab.tunnel()["tunnel_id"]
    lab.rewrite("authentication-method pap\nl2tp-hello-interval 1")
    lab.daemon.send(signal.SIGHUP)
    lab.daemon.says(r"reloaded ")
    lab.ping(lab.sub, WORLD)
    second = lab.dial_l2tp(port=40001).up()
    second.ppp_says("PAP authentication succeeded")
    assert [session["ppp_id"] for session in lab.sessions()] == [0, 1]
    assert before in [row["tunnel_id"] for row in lab.tunnels()]
    lab.ping(lab.sub, WORLD)


@pytest.mark.parametrize("how", ["address", "block"])
def test_a_reload_without_it(lab: L2tpLab, how: str) -> None:
    lab.ip(lab.bng, f"address add {OTHER}/24 dev eth1")
    lab.start()
    xl2tpd = lab.dial_l2tp().up()
    if how == "address":
        lab.rewrite(listen=OTHER)
    else:
        lab.rewrite(listen=OTHER, name="OTHER")
    lab.daemon.send(signal.SIGHUP)
    lab.ended("Admin-Reset")
    why = "address no longer listened on" if how == "address" else "tunnel no longer offered"
    xl2tpd.says(rf"Connection closed to {LNS}, port 1701 \({why}\)")
    lab.empties()
    lab.dial_l2tp(lns=OTHER).up()


@ONE_MODE
def test_hello(lab: L2tpLab) -> None:
    """A tunnel whose peer answers stays.  In user mode data spares it, so none is sent here."""
    lab.start("l2tp-hello-interval 1\nl2tp-hello-timeout 1\nlcp-keepalive no")
    xl2tpd = lab.dial_l2tp_up()
    xl2tpd.says(r"message type is Hello\(6\)", 2)
    lab.ping(lab.sub, WORLD)
    until(lambda: lab.tunnel()["queued"] == 0, "an answer")


def test_two_blocks(lab: L2tpLab) -> None:
    """Each with its own options."""
    lab.ip(lab.bng, f"address add {OTHER}/24 dev eth1")
    lab.more = (
        f"tunnel OTHER protocol l2tp {{\nlisten on {OTHER}\nl2tp-secret s3cret\nauthentication-method pap\n"
        f"{MODES[lab.mode]}\n}}\nbind tunnel from OTHER authenticated by LOCAL to tun0\n"
    )
    lab.start()
    first = lab.dial_l2tp().up()
    second = lab.dial_l2tp(lns=OTHER, port=40001, secrets=SECRETS).up()
    assert "CHAP authentication succeeded" in first.ppp_log
    assert "PAP authentication succeeded" in second.ppp_log
    assert [(session["tunnel"]) for session in lab.sessions()] == ["ACCESS", "OTHER"]
    assert [row["peer"] for row in lab.tunnels(name="OTHER")] == [f"{LAC}:40001"]
    for xl2tpd in (first, second):
        lab.ping(lab.sub, WORLD, "-I", xl2tpd.interface, count=2)
    # The end of one block is no concern of the other.
    lab.more = ""
    lab.rewrite()
    lab.daemon.send(signal.SIGHUP)
    lab.ended("Admin-Reset")
    second.says(rf"Connection closed to {OTHER}, port 1701 \(tunnel no longer offered\)")
    lab.ping(lab.sub, WORLD, "-I", first.interface, count=2)
