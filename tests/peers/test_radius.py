"""pppd, npppyd and FreeRADIUS: the methods besides EAP, and the keys that a server gives for MPPE."""

from __future__ import annotations

import pytest

from tests.peers.encrypted import Tap, encrypted_only
from tests.peers.lab import QUICK, WORLD, Exit, until
from tests.peers.test_eap import EapLab

pytestmark = [pytest.mark.guest, pytest.mark.parametrize("lab", ["ebpf"], indirect=True)]

LAB = EapLab


@pytest.mark.parametrize(("method", "title"), [("pap", "PAP"), ("chap", "CHAP-MD5"), ("mschapv2", "MS-CHAP-V2")])
def test_methods(lab: EapLab, method: str, title: str) -> None:
    radius = lab.begins_with("md5")
    radius.user("alice", "wonderland", reply=[("Reply-Message", "Hello, alice")])
    lab.serve(f"{QUICK}\nauthentication-method {method}\nmppe no")
    pppd = lab.dial_up()
    lab.daemon.says(rf'TUNNELSTART user="alice" .* auth={title} ')
    assert "Hello, alice" in pppd.log
    lab.ping(lab.sub, WORLD, count=3)
    (row,) = until(radius.open_accounts, "the account")
    assert (row["username"], row["framedipaddress"]) == ("alice", lab.session()["address"])
    pppd.stop()
    until(lambda: not radius.open_accounts(), "the account is closed")
    refused = lab.dial(password="builder")
    assert refused.exits() == Exit.AUTHENTICATION_FAILED
    lab.daemon.says(r'TUNNELDENY user="alice" .* reason="rejected by the server')
    lab.empties()


def test_mschapv2_gives_keys(lab: EapLab) -> None:
    radius = lab.begins_with("md5")
    radius.user("alice", "wonderland")
    lab.serve("authentication-method mschapv2\nmppe required")
    tap = Tap(lab)
    pppd = lab.dial_up("require-mppe-128")
    assert "MPPE 128-bit stateless compression enabled" in pppd.log
    lab.daemon.says(r'TUNNELSTART user="alice" .* auth=MS-CHAP-V2 ')
    lab.ping(lab.sub, WORLD, count=3)
    assert min(encrypted_only(tap.stop()).values()) >= 3
