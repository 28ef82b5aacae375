"""pppd dials: authentication, what it is told, and how it is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.peers.lab import OURS, QUICK, WORLD, Exit, Lab, until

pytestmark = pytest.mark.guest

RESOLV_CONF = Path("/etc/ppp/resolv.conf")

METHODS = {"pap": "PAP", "chap": "CHAP-MD5", "mschapv2": "MS-CHAP-V2"}
#: How pppd writes the method in the Configure-Request.
ASKED = {"pap": "auth pap", "chap": "auth chap MD5", "mschapv2": "auth chap MS-v2"}


@pytest.mark.tcg
@pytest.mark.parametrize("method", METHODS)
def test_dial(lab: Lab, method: str) -> None:
    lab.start(f"authentication-method {method}", ipcp="dns-servers 9.9.9.9 149.112.112.112")
    RESOLV_CONF.unlink(missing_ok=True)
    pppd = lab.dial_up("usepeerdns")
    session = lab.session()
    assert (session["username"], session["realm"], session["interface"]) == ("alice", "LOCAL", "tun0")
    assert (session["address"], session["mru"], session["protocol"]) == (pppd.address, 1492, "PPPoE")
    assert session["tunnel_from"] == lab.mac(lab.sub, "sub0").hex(":")
    lab.daemon.says(rf'TUNNELSTART user="alice" .* auth={METHODS[method]} ip={pppd.address} iface=tun0')
    assert ASKED[method] in pppd.log
    assert f"{'PAP' if method == 'pap' else 'CHAP'} authentication succeeded" in pppd.log
    pppd.says(f"remote IP address {OURS}")
    assert RESOLV_CONF.read_text() == "nameserver 9.9.9.9\nnameserver 149.112.112.112\n"

    lab.ping(lab.sub, OURS)
    lab.ping(lab.sub, WORLD, count=3)
    lab.ping(lab.net, pppd.address)
    session = lab.session()
    assert (session["in_packets"], session["out_packets"]) == (5, 5)
    assert (session["in_bytes"], session["out_bytes"]) == (5 * 84, 5 * 84)
    assert session["in_errors"] == session["out_errors"] == 0


def test_npppyctl(lab: Lab) -> None:
    lab.start()
    pppd = lab.dial_up()
    line = lab.ctl("session", "brief").splitlines()[-1]
    assert line.split() == ["0", pppd.address, "alice", "PPPoE", lab.mac(lab.sub, "sub0").hex(":")]
    assert f"Assigned IPv4 Address   : {pppd.address}" in lab.ctl("session", "all", "username", "alice")
    assert json.loads(lab.ctl("-j", "daemon"))["sessions"] == 1


def test_monitor(lab: Lab) -> None:
    lab.start()
    argv = (sys.executable, "-m", "npppy.ctl", "-s", str(lab.socket), "monitor", "all")
    monitor = lab.program("npppyctl", lab.bng, *argv)

    def heard() -> bool:
        lab.dial().up().stop()
        return "PPP Started" in monitor.log

    # It says nothing until there is something to say.
    until(heard, "an event")
    monitor.says(r"PPP Stopped\n(.*\n)* +Username +: alice\n(.*\n)* +Assigned IPv4 Address +: 10\.64\.0\.\d+\n")


def test_no_name_servers(lab: Lab) -> None:
    lab.start()
    pppd = lab.dial_up("usepeerdns")
    assert "rcvd [IPCP ConfRej" in pppd.log
    assert "DNS address" not in pppd.log
    lab.ping(lab.sub, WORLD)


@pytest.mark.parametrize(
    ("refused", "agreed"),
    [("mschap-v2", "chap"), ("mschap-v2 chap", "pap"), ("chap", "mschapv2"), ("mschap-v2 pap", "chap")],
)
def test_the_next_method(lab: Lab, refused: str, agreed: str) -> None:
    lab.start("authentication-method mschapv2 chap pap")
    pppd = lab.dial_up(*(f"refuse-{method}" for method in refused.split()))
    lab.daemon.says(rf"TUNNELSTART .* auth={METHODS[agreed]} ")
    # In the order of the configuration, and no more often than it takes.
    asked = re.findall(r"rcvd \[LCP ConfReq .*<(auth [^>]+)>", pppd.log)
    order = [ASKED[method] for method in ("mschapv2", "chap", "pap")]
    assert asked == order[: order.index(ASKED[agreed]) + 1]
    lab.ping(lab.sub, WORLD)


def test_the_order_of_the_configuration(lab: Lab) -> None:
    lab.start("authentication-method chap mschapv2")
    lab.dial_up()
    lab.daemon.says(r"TUNNELSTART .* auth=CHAP-MD5 ")


def test_no_method_in_common(lab: Lab) -> None:
    lab.start("authentication-method mschapv2 chap pap")
    pppd = lab.dial("refuse-mschap-v2", "refuse-chap", "refuse-pap")
    lab.daemon.says(r'logtype=Terminated cause=User-Error reason="no authentication method in common"')
    assert pppd.exits() == Exit.HANGUP
    assert "rcvd [LCP TermReq" in pppd.log
    assert "local  IP address" not in pppd.log
    lab.empties()


@pytest.mark.parametrize("method", METHODS)
def test_wrong_logins(lab: Lab, method: str) -> None:
    """A wrong password and an unknown user: our log tells them apart, the peer cannot."""
    lab.start(f"{QUICK}\nauthentication-method {method}")
    heard = []
    for user, reason in (("alice", "wrong password"), ("mallory", "unknown user")):
        pppd = lab.dial(user=user, password="guess")
        assert pppd.exits() == Exit.AUTHENTICATION_FAILED
        mac = lab.mac(lab.sub, "sub0").hex(":")
        lab.daemon.says(rf'TUNNELDENY user="{user}" layer2=PPPoE layer2from={mac} reason="{reason}"')
        lab.daemon.says(rf'logtype=Terminated cause=User-Error reason="{reason}"')
        # What pppd was told, less what is random.
        told = re.findall(r"rcvd \[(?:PAP|CHAP (?!Challenge)).*\]|.*authentication failed.*", pppd.log)
        heard.append([re.sub(r"id=0x\w+|C=[0-9A-F]{32}", "", line) for line in told])
        lab.empties()
    assert heard[0] == heard[1]
    message = {"pap": "Unknown username or password", "chap": "FAILED", "mschapv2": "E=691 R=0 "}[method]
    assert message in heard[0][0]
    assert lab.status()["refused"] == 2
    # Nor did it cost anybody else anything.
    lab.dial_up()
    lab.ping(lab.sub, WORLD)
