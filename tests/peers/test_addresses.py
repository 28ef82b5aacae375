"""Addresses of users, networks behind them, and users who log in twice."""

from __future__ import annotations

import pytest

from tests.peers.lab import HOME, HOST, OFFICE, QUICK, WORLD, Exit, Lab, until

pytestmark = pytest.mark.guest


def test_fixed_address(lab: Lab) -> None:
    lab.start(QUICK)
    for _ in range(2):
        pppd = lab.dial_up(user="bob", password="builder")
        assert pppd.address == "10.65.0.7"
        lab.ping(lab.net, "10.65.0.7")
        pppd.stop()
        lab.empties()


def test_fixed_address_is_in_use(lab: Lab) -> None:
    lab.start()
    lab.dial_up(user="bob", password="builder")
    second = lab.dial(user="bob", password="builder")
    assert second.exits() == Exit.AUTHENTICATION_FAILED
    lab.daemon.says(r'TUNNELDENY user="bob" .* reason="address 10\.65\.0\.7 cannot be had')
    assert len(lab.sessions()) == 1
    lab.ping(lab.net, "10.65.0.7")


def test_network_behind_the_peer(lab: Lab) -> None:
    lab.start(f"{QUICK}\ningress-filter yes")
    pppd = lab.dial_home()
    assert pppd.address == "10.65.0.64"
    until(lambda: lab.has_route(lab.bng, OFFICE), "the route")
    lab.ping(lab.net, "10.65.0.64")
    lab.ping(lab.net, HOME)
    lab.ping(lab.net, HOST)
    lab.ping(lab.lan, WORLD)
    # What is not the network's does not pass.
    lab.ip(lab.lan, "address add 10.66.0.1/32 dev lan0")
    before = lab.session()["in_errors"]
    assert " 0 received" in lab.try_ping(lab.lan, WORLD, "-I", "10.66.0.1", "-W", "0.2")
    assert lab.session()["in_errors"] == before + 1
    pppd.stop()
    until(lambda: not lab.has_route(lab.bng, OFFICE), "the end of the route")
    lab.empties()


def test_the_peer_chooses(lab: Lab) -> None:
    lab.start()
    pppd = lab.dial_up("10.64.0.77:", user="chooser", password="mine")
    assert pppd.address == "10.64.0.77"
    lab.ping(lab.net, "10.64.0.77")
    # Another, who may not, is told of another address, whatever it asks for.
    assert lab.dial("10.64.0.78:", "ipcp-accept-local").up().address == "10.64.0.2"
    # One that is taken is not given again.
    second = lab.dial("10.64.0.77:", "ipcp-accept-local", user="chooser", password="mine").up()
    assert second.address == "10.64.0.3"


def test_too_many_sessions_of_a_user(lab: Lab) -> None:
    lab.start(top="set user-max-session 1")
    first = lab.dial_up()
    assert lab.dial().exits() == Exit.AUTHENTICATION_FAILED
    lab.daemon.says(r'TUNNELDENY user="alice" .* reason="user-max-session"')
    lab.dial(user="bob", password="builder").up()
    lab.ping(lab.sub, WORLD)
    first.stop()
    lab.dial().up()


@pytest.mark.parametrize(("user", "password"), [("alice", "wonderland"), ("bob", "builder")])
def test_a_newer_login_replaces_an_older_one(lab: Lab, user: str, password: str) -> None:
    lab.start(top="set user-max-session 1\nset duplicate-session replace")
    first = lab.dial(user=user, password=password).up()
    second = lab.dial_up(user=user, password=password)
    assert lab.ended("Port-Preempted") == "a newer login of the same user, ppp id=1"
    first.exits()
    assert "LCP terminated by peer" in first.log
    (session,) = lab.sessions()
    assert (session["ppp_id"], session["address"]) == (1, second.address)
    if user == "bob":
        assert second.address == "10.65.0.7"
    lab.ping(lab.sub, WORLD)
    lab.ping(lab.net, second.address)


def test_the_pool_is_exhausted(lab: Lab) -> None:
    users = "".join(f"user{number}:password=x:framed-ip-address=10.64.0.{number}:\n" for number in (2, 3))
    lab.start(ipcp="max-session 2", users=users + "alice:password=wonderland:\n")
    for number in (2, 3):
        lab.dial(user=f"user{number}", password="x").up()
    assert lab.dial().exits() == Exit.AUTHENTICATION_FAILED
    lab.daemon.says(r'TUNNELDENY user="alice" .* reason="max-session of ipcp POOL"')
