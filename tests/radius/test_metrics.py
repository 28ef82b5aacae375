"""What Prometheus is told of RADIUS, with a real FreeRADIUS: logins, accounts, dynamic authorization, a server down."""

from __future__ import annotations

import http.client

import pytest

from tests.peers.lab import UPLINK, WORLD, inside, until
from tests.radius.lab import ACCT, AUTH, SECRET, RadiusLab
from tests.unit.metrics_rig import Samples, read, value

pytestmark = pytest.mark.root

WORD = "wonderland"
PORT = 19701
OF = {"tunnel": "LNS", "protocol": "l2tp", "realm": "RADIUS"}
ACCESS = {"server": f"{WORLD}:{AUTH}", "kind": "auth"}
ACCOUNTS = {"server": f"{WORLD}:{ACCT}", "kind": "acct"}


def page(lab: RadiusLab, path: str) -> str:
    connection = http.client.HTTPConnection(UPLINK, PORT, timeout=60)
    try:
        with inside(lab.net):
            connection.connect()
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def totals(lab: RadiusLab) -> Samples:
    return read(page(lab, "/metrics"))


def test_radius(lab: RadiusLab) -> None:
    radius = lab.freeradius()
    radius.users([(f"user{number}", WORD) for number in (1, 2)])
    lab.serve(top=f"metrics-listen {UPLINK}:{PORT}")
    sims = [lab.user("l2tp", f"user{number}", WORD, "--first", str(number)) for number in (1, 2)]
    for sim in sims:
        sim.up()
    lab.simulate("l2tp", "--first", "3", "--user", "user1", "--password", "wrong", auth="pap").refused()
    until(lambda: value(totals(lab), "npppy_accounting_delivered_total") >= 2, "both Starts are delivered")
    samples = totals(lab)
    assert value(samples, "npppy_sessions", **OF) == 2
    assert value(samples, "npppy_sessions", **{**OF, "tunnel": "PNS", "protocol": "pptp"}) == 0
    assert value(samples, "npppy_logins_refused_total", realm="RADIUS") == 1
    assert value(samples, "npppy_tunnels", tunnel="LNS", protocol="l2tp") >= 2
    for server in (ACCESS, ACCOUNTS):
        assert value(samples, "npppy_radius_up", **server) == 1
        assert 0 < value(samples, "npppy_radius_rtt_seconds", **server) < 10
    assert value(samples, "npppy_radius_requests_total", **ACCESS) == 3
    assert value(samples, "npppy_radius_logins_total", **ACCESS, answer="accept") == 2
    assert value(samples, "npppy_radius_logins_total", **ACCESS, answer="reject") == 1
    sessions = read(page(lab, "/sessions"))
    shown = {dict(labels)["user"]: dict(labels) for name, labels in sessions if name == "npppy_session_info"}
    assert {user: facts["address"] for user, facts in shown.items()} == {
        row["username"]: row["address"] for row in lab.sessions()
    }
    for text in (page(lab, "/metrics"), page(lab, "/sessions")):
        assert WORD not in text
        assert SECRET not in text

    assert lab.dae("disconnect", "User-Name = user1")[0] == 0
    until(lambda: value(totals(lab), "npppy_sessions", **OF) == 1, "one has gone")
    samples = totals(lab)
    asked = {"client": WORLD, "request": "disconnect"}
    assert value(samples, "npppy_radius_dae_requests_total", **asked) == 1
    assert value(samples, "npppy_radius_dae_answers_total", **asked, answer="ack") == 1
    assert value(samples, "npppy_sessions_ended_total", **OF, cause="Admin-Reset") == 1

    # Its record is delivered; the next one finds nobody.
    until(lambda: len(radius.open_accounts()) == 1, "it has its Stop")
    radius.stop()
    sims[1].stop()
    until(lambda: value(totals(lab), "npppy_accounting_records", realm="RADIUS") == 1, "a Stop waits")
    assert value(totals(lab), "npppy_accounting_oldest_seconds") >= 0
    gone = {**ACCOUNTS, "reason": "unreachable-ECONNREFUSED"}
    until(lambda: ("npppy_radius_errors_total", tuple(sorted(gone.items()))) in totals(lab), "nobody is there")
    radius.start()
    until(lambda: ("npppy_accounting_records", (("realm", "RADIUS"),)) not in totals(lab), "it is delivered")
