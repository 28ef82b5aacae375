"""A server that cannot follow: who would only wait for it does not begin."""

from __future__ import annotations

import pytest

from tests.peers.lab import until
from tests.radius.fake import accept, silent
from tests.radius.lab import RadiusLab, server

pytestmark = pytest.mark.root

AUTH, ACCT = 1812, 1813
#: 80 logins a second.
SLOW = "max-outstanding 8\ntimeout 20"


def test_a_slow_server(lab: RadiusLab) -> None:
    """Set-ups begin no faster than it answers, and all come up; else most of them would wait for it at once."""
    lab.fake(accept(after=0.1), port=AUTH)
    lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH, more=SLOW), acct=server(port=ACCT), ipcp="pool-address 10.66.0.0/22")
    count = 600
    options = ("--sessions", str(count), "--rate", "300", "--user", "user{n}", "--password", "x", "--hold", "inf")
    sim = lab.simulate("pppoe", *options, auth="pap")
    queued = []

    def up() -> bool:
        queued.append(lab.server(AUTH)["queued"])
        return len(sim.ups) == count

    until(lambda: lab.status()["busy"], "beginnings have to wait")
    until(up, f"{count} sessions")
    # All at once were 440.
    assert max(queued) < count / 2
    until(lambda: not lab.status()["busy"], "they do not have to any more")
    assert lab.server(AUTH)["timeouts"] == 0


def test_a_silent_server_holds_nobody_up(lab: RadiusLab) -> None:
    lab.fake(silent, port=AUTH)
    lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH, more="max-outstanding 4\ntimeout 300\nmax-tries 1"), acct=server(port=ACCT))
    lab.simulate("pppoe", "--sessions", "40", "--user", "user{n}", "--password", "x", "--hold", "inf", auth="pap")
    until(lambda: lab.server(AUTH)["queued"] == 36, "they wait")
    late = lab.simulate("pppoe", "--sessions", "1", "--first", "99", "--user", "late", "--password", "x", auth="pap")
    until(lambda: lab.server(AUTH)["queued"] == 37, "another one has come as far")
    assert not lab.status()["busy"]
    late.kill()
