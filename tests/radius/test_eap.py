"""EAP from Debian's pppd to FreeRADIUS, through npppyd, which looks into none of it."""

from __future__ import annotations

import pytest

from tests.peers.lab import OURS, until
from tests.radius.lab import ACCT, RadiusLab, authority, server

pytestmark = pytest.mark.guest

WORD = "wonderland"
EAP = "authentication-method eap"


@pytest.mark.tcg
@pytest.mark.parametrize("method", ["MD5", "MSCHAPv2"])
def test_a_password(lab: RadiusLab, method: str) -> None:
    radius = lab.freeradius()
    radius.pool("main", "10.65.1.1", 2)
    radius.user("alice", WORD, check={"Pool-Name": "main", "EAP-Type": method})
    lab.serve(tunnel=EAP)
    refused = lab.dial(password="wrong")
    refused.says("EAP: (peer reports )?authentication fail|EAP authentication failed")
    refused.exits()
    pppd = lab.dial().up()
    assert pppd.address == "10.65.1.1"
    lab.ping(lab.sub, OURS, "-I", pppd.interface)
    until(radius.open_accounts, "an account is open")
    pppd.stop()
    until(lambda: radius.accounts() and not radius.open_accounts(), "the account is closed")
    lab.empties()


def test_certificates(lab: RadiusLab) -> None:
    """EAP-TLS takes a dozen packets, and more than one of them for a certificate."""
    files = authority(lab.where)
    radius = lab.freeradius(tls_key=files["server.key"], tls_certificate=files["server.pem"], tls_ca=files["ca.pem"])
    radius.user("alice", WORD, check={"EAP-Type": "TLS"}, reply=[("Framed-IP-Address", "10.65.0.7")])
    lab.serve(tunnel=EAP)
    known = ("ca", str(files["ca.pem"]), "cert", str(files["alice.pem"]), "key", str(files["alice.key"]))
    pppd = lab.dial(*known, "remotename", "server").up()
    assert pppd.address == "10.65.0.7"
    lab.ping(lab.sub, OURS, "-I", pppd.interface)
    pppd.stop()
    # One whom another authority has signed.
    other = lab.where / "other"
    other.mkdir()
    theirs = authority(other)
    forged = ("ca", str(files["ca.pem"]), "cert", str(theirs["alice.pem"]), "key", str(theirs["alice.key"]))
    refused = lab.dial(*forged, "remotename", "server")
    refused.exits()
    assert "local  IP address" not in refused.log
    lab.empties()


@pytest.mark.parametrize("method", ["MSCHAPv2", "TLS"])
def test_keys(lab: RadiusLab, method: str) -> None:
    """MPPE encrypts by the keys that the method has given to both ends."""
    files = authority(lab.where)
    radius = lab.freeradius(tls_key=files["server.key"], tls_certificate=files["server.pem"], tls_ca=files["ca.pem"])
    radius.user("alice", WORD, check={"EAP-Type": method}, reply=[("Framed-IP-Address", "10.65.0.7")])
    lab.serve(tunnel=f"{EAP}\nmppe required")
    known = ("ca", str(files["ca.pem"]), "cert", str(files["alice.pem"]), "key", str(files["alice.key"]))
    options = (*known, "remotename", "server") if method == "TLS" else ()
    pppd = lab.dial(*options, "require-mppe-128").up()
    lab.ping(lab.sub, OURS, "-I", pppd.interface)
    assert lab.session()["mppe_in"].startswith("128bits")


def test_a_server_that_dies_between_two_packets(lab: RadiusLab) -> None:
    """The State of a Challenge is that server's: the login fails, and the next one is another server's."""
    files = authority(lab.where)
    radius = lab.freeradius(tls_key=files["server.key"], tls_certificate=files["server.pem"], tls_ca=files["ca.pem"])
    radius.user("alice", WORD, check={"EAP-Type": "MD5"})
    lab.serve(tunnel=EAP, auth=server(more="timeout 1\nmax-tries 1\ndead-time 1"), acct=server(port=ACCT))
    radius.stop()
    lost = lab.dial()
    lost.exits()
    assert "local  IP address" not in lost.log
    radius.start()
    lab.dial().up()
