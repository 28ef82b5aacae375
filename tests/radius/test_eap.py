"""What a server gives to those who log in by EAP; how that goes is in tests/peers/test_eap.py."""

from __future__ import annotations

import pytest

from tests.peers.lab import until
from tests.radius.lab import RadiusLab, authority

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("method", ["MD5", "TLS"])
def test_addresses_and_attributes(lab: RadiusLab, method: str) -> None:
    """They come with the Accept, which is the answer to the last of many requests of one login."""
    files = authority(lab.where)
    radius = lab.freeradius(tls_key=files["server.key"], tls_certificate=files["server.pem"], tls_ca=files["ca.pem"])
    radius.pool("main", "10.65.1.1", 3)
    given = [("Session-Timeout", 60), ("Filter-Id", "gold")]
    radius.user("alice", "wonderland", check={"Pool-Name": "main", "EAP-Type": method}, reply=given)
    lab.serve(tunnel="authentication-method eap")
    known = ("ca", str(files["ca.pem"]), "cert", str(files["alice.pem"]), "key", str(files["alice.key"]))
    pppd = lab.dial(*known, "remotename", "server").up()
    assert pppd.address == "10.65.1.1"
    session = lab.session()
    assert (session["session_timeout"], session["filter_id"]) == (60, "gold")
    # One login has one address.
    assert radius.leases() == {"10.65.1.1": session["acct_session_id"]}
    until(radius.open_accounts, "an account is open")
    pppd.stop()
    until(lambda: not radius.open_accounts(), "the account is closed")
    assert not radius.leases()
    lab.empties()
