"""Debian's pptp-linux with pppd dials: authentication, what it is told, how it is refused, several of one address."""

from __future__ import annotations

import json
import re

import pytest

from tests.peers.encrypted import BACK_ENDS, FAST
from tests.peers.lab import OURS, QUICK, WORLD, Exit, run, until
from tests.peers.pptp_lab import PAC, PNS, PptpLab

pytestmark = pytest.mark.guest

LAB = PptpLab

METHODS = {"pap": "PAP", "chap": "CHAP-MD5", "mschapv2": "MS-CHAP-V2"}


@pytest.mark.parametrize(
    ("lab", "method"), [("user", "pap"), ("ebpf", "chap"), ("fast", "mschapv2")], indirect=["lab"]
)
def test_dial(lab: PptpLab, method: str) -> None:
    lab.start(f"mppe no\nauthentication-method {method}")
    pppd = lab.dial_pptp_up()
    session = lab.session()
    assert (session["username"], session["realm"], session["interface"]) == ("alice", "LOCAL", "tun0")
    assert (session["address"], session["protocol"]) == (pppd.address, "PPTP")
    assert session["tunnel_from"].partition(":")[0] == PAC
    lab.daemon.says(rf'TUNNELSTART user="alice" .* auth={METHODS[method]} ip={pppd.address} iface=tun0')
    assert f"{'PAP' if method == 'pap' else 'CHAP'} authentication succeeded" in pppd.log
    lab.ping(lab.sub, OURS)
    lab.ping(lab.sub, WORLD, count=3)
    lab.ping(lab.net, pppd.address)
    session = lab.session()
    assert (session["in_packets"], session["out_packets"]) == (5, 5)
    assert (session["in_bytes"], session["out_bytes"]) == (5 * 84, 5 * 84)
    assert session["in_errors"] == session["out_errors"] == 0
    assert lab.drops == {}


@pytest.mark.parametrize("lab", ["user"], indirect=True)
def test_wrong_logins(lab: PptpLab) -> None:
    lab.start(QUICK)
    for user, reason in (("alice", "wrong password"), ("mallory", "unknown user")):
        pppd = lab.dial_pptp("require-mppe", user=user, password="guess")
        # The call may be gone before pppd has made out why.
        assert pppd.exits() in (Exit.AUTHENTICATION_FAILED, Exit.HANGUP)
        assert "CHAP authentication failed" in pppd.log
        lab.daemon.says(rf'TUNNELDENY user="{user}" layer2=PPTP layer2from={PAC}:\d+ reason="{reason}"')
        assert "E=691 R=0 " in pppd.log
        lab.empties()
    assert lab.status()["refused"] == 2
    lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)


@pytest.mark.parametrize("lab", ["ebpf"], indirect=True)
def test_npppyctl(lab: PptpLab) -> None:
    lab.start("pptp-hostname pns.example\npptp-vendor-name acme")
    pppd = lab.dial_pptp_up("require-mppe")
    ours, theirs = lab.call_ids()
    words = lab.ctl("session", "brief").splitlines()[-1].split()
    assert words[:4] == ["0", pppd.address, "alice", "PPTP"]
    assert words[4].startswith(f"{PAC}:")
    row = json.loads(lab.ctl("-j", "session", "all", "username", "alice"))
    assert (row["session_id"], row["peer_session_id"]) == (ours, theirs)
    assert re.search(r"Protocol +: PPTP\n", lab.ctl("session", "all", "username", "alice"))
    assert "disconnected" in lab.ctl("clear", "username", "alice").lower()
    assert lab.ended("Admin-Reset") == "an operator cleared it"
    assert pppd.exits() == Exit.HANGUP
    lab.empties()


@FAST
def test_two_calls_of_one_control_connection(lab: PptpLab) -> None:
    """What pptp-linux makes of two dials to one address, told apart by call ids alone."""
    lab.start()
    first = lab.dial_pptp_up("require-mppe")
    second = lab.dial_pptp("require-mppe", user="bob", password="builder").up()
    assert len(lab.pptps(lab.sub, "pptpcm")) == 1
    assert second.address == "10.65.0.7"
    sessions = lab.sessions()
    assert [session["username"] for session in sessions] == ["alice", "bob"]
    assert len({session["tunnel_from"] for session in sessions}) == 1
    for pppd in (first, second):
        lab.ping(lab.sub, WORLD, "-I", pppd.interface, count=2)
    lab.ip(lab.sub, f"route replace {WORLD} dev {second.interface}")
    lab.ping(lab.net, second.address)
    assert [(row["in_packets"], row["out_packets"]) for row in lab.sessions()] == [(2, 2), (3, 3)]
    # The end of one is no concern of the other.
    first.stop()
    until(lambda: len(lab.sessions()) == 1, "one session")
    lab.ping(lab.sub, WORLD, "-I", second.interface)
    assert lab.sessions()[0]["username"] == "bob"


INSIDE = ("192.168.1.2", "192.168.1.3")
GATEWAY = "192.168.1.1"

# pptp-linux and others may have the same call ids: the kernel's helper changes the one of the second.
_NAT = """
table ip nat {
    ct helper pptp {
        type "pptp" protocol tcp
    }
    chain prerouting {
        type filter hook prerouting priority 0
        tcp dport 1723 ct helper set "pptp"
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "sub0" masquerade
    }
}
"""


@BACK_ENDS
def test_two_behind_one_address(lab: PptpLab) -> None:
    """A control connection each, and one address for both, behind a NAT."""
    lab.ip(lab.sub, f"address add {GATEWAY}/24 dev home0")
    lab.ip(
        lab.lan,
        *(f"address add {address}/24 dev lan0" for address in INSIDE),
        f"route add {PNS} via {GATEWAY}",
    )
    run("ip", "netns", "exec", lab.sub, "nft", "-f", "-", input=_NAT)
    lab.start()
    pppds = [
        lab.dial_pptp("require-mppe", pptp=("--localbind", address), namespace=lab.lan, user=user, password=password)
        for address, user, password in zip(INSIDE, ("alice", "bob"), ("wonderland", "builder"), strict=True)
    ]
    for pppd in pppds:
        pppd.up()
    assert len(lab.pptps(lab.lan, "pptpcm")) == 2
    sessions = lab.sessions()
    places = {session["tunnel_from"] for session in sessions}
    assert len(places) == 2
    assert {place.partition(":")[0] for place in places} == {PAC}
    for pppd in pppds:
        lab.ping(lab.lan, WORLD, "-I", pppd.interface, count=2)
    assert [(row["in_packets"], row["out_packets"]) for row in lab.sessions()] == [(2, 2)] * 2
    pppds[0].stop()
    until(lambda: len(lab.sessions()) == 1, "one session")
    lab.ping(lab.lan, WORLD, "-I", pppds[1].interface)
