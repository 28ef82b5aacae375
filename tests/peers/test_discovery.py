"""rp-pppoe's own tools, services, relays and VLANs, and many pppds at once."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest

from tests.peers.lab import PATIENCE, QUICK, WORLD, Exit, Lab, Pppd, until, veth

pytestmark = pytest.mark.guest


def tool(lab: Lab, *argv: str, status: int = 0) -> str:
    """What a tool of the subscriber prints."""
    argv = ("ip", "netns", "exec", lab.sub, *argv)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == status, done
    return done.stdout + done.stderr


def test_pppoe_discovery(lab: Lab) -> None:
    lab.start('pppoe-ac-name "npppy at home"\npppoe-service-name "internet" "business"')
    mac = lab.mac(lab.bng, "eth1").hex(":")
    for service in ((), ("-S", "business"), ("-U",)):
        shown = tool(lab, "pppoe-discovery", "-I", "sub0", "-t", "1", "-a", "3", *service)
        assert "Access-Concentrator: npppy at home" in shown
        assert re.findall(r"Service-Name: (.*)", shown).count("internet") == 1
        assert re.findall(r"Service-Name: (.*)", shown).count("business") == 1
        assert f"AC-Ethernet-Address: {mac}" in shown
    assert "Access-Concentrator" not in tool(
        lab, "pppoe-discovery", "-I", "sub0", "-t", "1", "-a", "1", "-S", "other", status=1
    )
    assert lab.is_empty()


def test_pppoe_opens_and_kills_a_session(lab: Lab) -> None:
    lab.start()
    shown = tool(lab, "pppoe", "-I", "sub0", "-d", "-U")
    found = re.search(r"(\d+:[0-9a-fA-F:]{17})", shown)
    assert found, shown
    assert lab.status()["half_open"] == 1
    tool(lab, "pppoe", "-I", "sub0", "-k", "-e", found[1])
    lab.daemon.says(r'logtype=Terminated cause=User-Request reason="PADT received"')
    lab.empties()


def test_the_client_in_user_space(lab: Lab) -> None:
    """Two of them on one MAC address, each with its own Host-Uniq; pppd believes in a serial line."""
    lab.start()
    link = ("pty", "pppoe -I sub0 -U -m 1412")
    first, second = (lab.dial("mtu", "1492", "mru", "1492", link=link) for _ in range(2))
    for pppd in (first, second):
        pppd.up()
        lab.ip(lab.sub, f"route replace default dev {pppd.interface}")
        lab.ping(lab.sub, WORLD)
    assert first.address != second.address
    assert len(lab.sessions()) == 2
    # What is of no use on Ethernet (RFC 2516 section 7).
    assert re.search(r"rcvd \[LCP ConfRej .*<asyncmap 0x0> <pcomp> <accomp>", first.log)
    first.stop()
    lab.ended("User-Request")
    lab.ping(lab.sub, WORLD)


def test_a_relay(lab: Lab) -> None:
    """Between two hosts and us, on an interface of its own; we see its MAC address, and its Relay-Session-Id."""
    lab.start("listen on interface eth2")
    lab.plug("eth2", lab.lan, "r1")
    lab.ip(lab.sub, veth("sub1", "r0", lab.lan), "link set sub1 up")
    lab.ip(lab.lan, "link set r0 up")
    lab.daemon.says(r"port=eth2 Link up=yes|interface=eth2 Listening .* up=yes")
    relay = lab.program("relay", lab.lan, "pppoe-relay", "-F", "-C", "r0", "-S", "r1")
    first, second = (lab.dial(link=("plugin", "rp-pppoe.so", "sub1")).up() for _ in range(2))
    for pppd in (first, second):
        lab.ip(lab.sub, f"route replace default dev {pppd.interface}")
        lab.ping(lab.sub, WORLD)
    assert {session["tunnel_from"] for session in lab.sessions()} == {lab.mac(lab.lan, "r1").hex(":")}
    # A host that is not behind the relay.
    lab.dial_up()
    lab.ping(lab.sub, WORLD)
    lab.clear(ppp_id=0)
    first.exits()
    assert second.stop() == Exit.SIGNALLED
    lab.ended("User-Request")
    assert relay.running


def test_a_vlan(lab: Lab) -> None:
    lab.start("listen on interface eth1.7")
    lab.ip(lab.bng, "link add link eth1 name eth1.7 type vlan id 7", "link set eth1.7 up")
    for tag in (7, 8):
        lab.ip(lab.sub, f"link add link sub0 name sub0.{tag} type vlan id {tag}", f"link set sub0.{tag} up")
    lab.daemon.says(r"port=eth1\.7 Link up=yes|interface=eth1\.7 Listening .* up=yes")
    lab.dial(link=("plugin", "rp-pppoe.so", "sub0.7")).up()
    lab.dial().up()
    unheard = lab.dial(link=("plugin", "rp-pppoe.so", "sub0.8"))
    unheard.says("PADI")
    for number in (0, 1):
        lab.ip(lab.sub, f"route replace default dev ppp{number}")
        lab.ping(lab.sub, WORLD)
    assert "PADO" not in unheard.log
    # The one came by the tagged interface, the other did not.
    assert lab.status()["drops"] == {"eth1": {}, "eth1.7": {}}
    lab.daemon.says(r"port=eth1\.7 session=\d+ .* Opened")
    lab.daemon.says(r"port=eth1 session=\d+ .* Opened")


def test_services(lab: Lab) -> None:
    lab.start('pppoe-service-name "internet" "business"\npppoe-accept-any-service no')
    lab.dial("rp_pppoe_service", "business").up()
    lab.dial("rp_pppoe_service", "internet").up()
    lab.dial("pty", "pppoe -I sub0 -S internet", link=()).up()
    unheard = [lab.dial(), lab.dial("rp_pppoe_service", "other")]
    until(lambda: lab.status()["drops"]["eth1"].get("service", 0) >= 2, "two PADIs that are not answered")
    for pppd in unheard:
        pppd.says("PADI")
        assert "PADO" not in pppd.log
    assert len(lab.sessions()) == 3


def test_a_limit_of_sessions_a_host(lab: Lab) -> None:
    lab.start(f"{QUICK}\npppoe-session-limit 1")
    first = lab.dial_up()
    second = lab.dial()
    assert second.exits() != 0
    assert "too many sessions of this host" in second.log
    lab.ping(lab.sub, WORLD)
    first.stop()
    lab.empties()
    lab.dial_up()
    lab.ping(lab.sub, WORLD)
    assert lab.status()["drops"]["eth1"].keys() == {"session-limit"}


def test_twenty_at_once(lab: Lab) -> None:
    lab.start(f"{QUICK}\npppoe-session-limit 20\nlcp-keepalive-interval 1")
    pppds: list[Pppd] = [lab.dial() for _ in range(20)]
    for pppd in pppds:
        pppd.up()
    assert len({pppd.address for pppd in pppds}) == 20
    until(lambda: len(lab.sessions()) == 20, "20 sessions")
    status = lab.status()
    assert (status["sessions"], status["half_open"], status["addresses"], status["journal"]) == (20, 0, 20, 20)
    for number, pppd in enumerate(pppds):
        lab.ip(lab.sub, f"route add default dev {pppd.interface} metric {number}")
        lab.ping(lab.sub, WORLD, "-I", pppd.interface)
    assert {(row["in_packets"], row["out_packets"]) for row in lab.sessions()} == {(1, 1)}
    for pppd in pppds:
        pppd.send(signal.SIGTERM)
    for pppd in pppds:
        pppd.exits()
    lab.ended("User-Request", 20)
    lab.empties()
    assert lab.status()["drops"]["eth1"] == {}
