"""npppyd is killed and started again: what it has left is ended by its successor."""

from __future__ import annotations

import signal

import pytest

from tests.peers.lab import OFFICE, WORLD, Exit, Lab, until

pytestmark = pytest.mark.guest


@pytest.mark.tcg
def test_killed_and_started_again(lab: Lab) -> None:
    lab.start()
    old = lab.dial(user="office", password="red:brick").up()
    until(lambda: lab.has_route(lab.bng, OFFICE), "the route")
    others = [lab.dial().up() for _ in range(2)]
    lab.daemon.stop(signal.SIGKILL)
    # It could say nothing; the kernel has taken the shared interface away.
    assert not lab.has_link(lab.bng, "tun0")
    assert old.running
    lab.start_again()
    lab.daemon.says(r"interface=eth1 Ended old sessions=3")
    for pppd in (old, *others):
        assert pppd.exits() == Exit.HANGUP
        assert not lab.has_link(lab.sub, pppd.interface)
    assert lab.is_empty()
    assert not lab.has_route(lab.bng, OFFICE)
    new = lab.dial_up(user="office", password="red:brick")
    assert new.address == old.address
    until(lambda: lab.has_route(lab.bng, OFFICE), "the route")
    lab.ping(lab.sub, WORLD)
    assert lab.status()["journal"] == 1


def test_a_peer_that_missed_its_padt(lab: Lab) -> None:
    """Our link is down while the successor starts; what the peer says later is from nobody's session."""
    lab.start()
    pppd = lab.dial_up()
    lab.daemon.stop(signal.SIGKILL)
    lab.ip(lab.bng, "link set eth1 down")
    lab.start_again()
    lab.daemon.says(r"interface=eth1 Cannot end 1 old sessions")
    assert pppd.running
    lab.ip(lab.bng, "link set eth1 up")
    lab.daemon.says(r"port=eth1 Link up=yes")
    assert pppd.running
    # The kernel takes up to a second to see that the carrier is back.
    until(lambda: lab.try_ping(lab.sub, WORLD, "-W", "0.2") and not pppd.running, "the end of the session")
    assert pppd.exits() == Exit.HANGUP
    assert lab.status()["drops"]["eth1"]["session"] >= 1
    lab.dial_up()
    lab.ping(lab.sub, WORLD)
