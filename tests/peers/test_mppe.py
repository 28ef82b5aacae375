"""MPPE on the other carriers, where no numbers but its own tell what is missing: PPPoE, and L2TP without numbers."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.peers.encrypted import BACK_ENDS, FAST, KINDS, UNREADABLE, Tap, encrypted_only, impaired, lose, recovers
from tests.peers.l2tp_lab import L2tpLab
from tests.peers.lab import QUICK, WORLD, Lab, until
from tests.peers.test_data import MEGABYTE, transfer

pytestmark = pytest.mark.guest


class EitherLab(L2tpLab):
    """Dials by PPPoE or by L2TP."""

    tolerated = UNREADABLE

    def rewrite(self, tunnel: str = "", **rest: str) -> None:
        if tunnel.startswith("l2tp"):
            super().rewrite(tunnel, **rest)
        else:
            Lab.rewrite(self, tunnel, **rest)


LAB = EitherLab


@pytest.mark.parametrize(
    ("lab", "kind"), [("user", "128"), ("fast", "128"), ("fast", "40-stateful")], indirect=["lab"]
)
def test_pppoe(lab: EitherLab, kind: str) -> None:
    demand, tunnel, title = KINDS[kind]
    tap = Tap(lab)
    lab.start(f"{QUICK}\nmppe required\n{tunnel}")
    pppd = lab.dial_up(*demand.split())
    assert f"MPPE {title} compression enabled" in pppd.log
    lab.ping(lab.sub, WORLD)
    before = lab.paths()
    lab.ping(lab.sub, WORLD, "-s", "1460", "-M", "do", count=5)
    lab.ping(lab.net, pppd.address, "-s", "1460", "-M", "do", count=5)
    taken = lab.paths() - before
    if lab.mode != "user" and not kind.endswith("stateful"):
        assert taken[f"{lab.way}_UP"] == taken[f"{lab.way}_DOWN"] == 10
    # What MPPE adds must fit the link, too.
    assert "Frag needed and DF set (mtu = 1488)" in lab.try_ping(lab.net, pppd.address, "-s", "1461", "-M", "do")
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), MEGABYTE)
    transfer(*lab.connect(lab.net, pppd.address, lab.listen(lab.sub)), MEGABYTE)
    session = lab.session()
    assert (session["in_errors"], session["out_errors"]) == (0, 1)
    pppd.stop()
    assert lab.ended("User-Request") == "the peer terminated LCP"
    lab.empties()
    assert min(encrypted_only(tap.stop()).values()) > 500


@BACK_ENDS
def test_l2tp(lab: EitherLab) -> None:
    lab.start("l2tp-data-use-seq no\nmppe required")
    xl2tpd = lab.dial_l2tp_up("require-mppe")
    assert "MPPE 128-bit stateless compression enabled" in xl2tpd.ppp_log
    tap = Tap(lab)
    lab.ping(lab.sub, WORLD, "-s", "1328", "-M", "do", count=3)
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), MEGABYTE)
    transfer(*lab.connect(lab.net, xl2tpd.address, lab.listen(lab.sub)), MEGABYTE)
    session = lab.session()
    assert session["in_errors"] == session["out_errors"] == 0
    assert min(encrypted_only(tap.stop()).values()) > 500


@FAST
def test_pppoe_on_a_path_that_loses_and_reorders(lab: EitherLab) -> None:
    lab.start("mppe required\ntcp-mss-adjust yes")
    peer = lab.dial_up("require-mppe").address
    impaired(lab, "loss", "1%", "delay", "2ms", "reorder", "1%")
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), MEGABYTE // 2)
    transfer(*lab.connect(lab.net, peer, lab.listen(lab.sub)), MEGABYTE // 2)
    assert lab.session()["ppp_id"] == 0


@FAST
@pytest.mark.parametrize(("count", "up"), [(300, True), (300, False), (5000, True)])
def test_a_gap(lab: EitherLab, count: int, up: bool) -> None:
    """5000: the coherency count has gone round."""
    lab.start("mppe required")
    pppd = lab.dial_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    lose(lab, pppd, count, up=up)
    recovers(lab, pppd)


@pytest.mark.parametrize("lab", ["user"], indirect=True)
def test_a_gap_that_seems_to_be_a_step_back(lab: EitherLab) -> None:
    """3000 are more than half of the counts: what follows is late, until the count has gone round."""
    lab.start("mppe required")
    pppd = lab.dial_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    lose(lab, pppd, 3000, up=True)
    with lab.datagrams(lab.sub) as sock:
        for number in range(1200):
            sock.sendto(b"late", (WORLD, 9))
            if not number % 50:
                time.sleep(0.01)
    recovers(lab, pppd)


@pytest.mark.parametrize(("lab", "count"), [("user", 5000), ("fast", 3000)], indirect=["lab"])
def test_a_gap_that_pppd_does_not_see(lab: EitherLab, count: int) -> None:
    """Its coherency count has gone round.  Linux goes on with the wrong key, and rejects whatever comes of that."""
    lab.start(f"{QUICK}\nmppe required")
    pppd = lab.dial_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    lose(lab, pppd, count, up=False)
    with lab.datagrams(lab.net) as sock:

        def over() -> bool:
            for _ in range(20):
                with contextlib.suppress(OSError):
                    sock.sendto(b"read by the wrong key", (pppd.address, 9))
            return not lab.sessions()

        until(over, "the end of the session")
    assert lab.ended("Lost-Service") == "the peer decrypts by another key"
    pppd.exits()
    lab.empties()
