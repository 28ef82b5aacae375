"""pppd logs in by EAP; its other end is FreeRADIUS, and npppyd between them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.peers.encrypted import UNREADABLE, Tap, encrypted_only
from tests.peers.lab import MODES, QUICK, WORLD, Exit, until
from tests.radius.lab import ACCT, FreeRadius, RadiusLab, server

#: It is the same whoever carries the data.
pytestmark = [pytest.mark.guest, pytest.mark.parametrize("lab", ["ebpf"], indirect=True)]

EAP = "authentication-method eap"
ENCRYPTED = f"{EAP}\nmppe required"


_CONFIG = """
radius spool "{where}/spool.db"
tunnel ACCESS protocol pppoe {{
    listen on interface eth1
    {pipex}
    {tunnel}
}}
ipcp POOL {{
    pool-address 10.64.0.2-10.64.0.254
    pool-address 10.65.0.0/24 for static
}}
interface tun0 address 10.64.0.1 ipcp POOL
authentication RADIUS type radius {{
    authentication-server {{
        {auth}
    }}
    accounting-server {{
        {acct}
    }}
    {realm}
}}
bind tunnel from ACCESS authenticated by RADIUS to tun0
"""


class EapLab(RadiusLab):
    tolerated = UNREADABLE

    def serve(self, tunnel: str = EAP, realm: str = "", **rest: Any) -> None:
        self._conf.write_text(
            _CONFIG.format(
                where=self.where,
                pipex=MODES[self.mode],
                tunnel=tunnel,
                auth=server(),
                acct=server(port=ACCT),
                realm=realm,
            )
        )
        self.start_again()

    def begins_with(self, method: str, **settings: object) -> FreeRadius:
        """A server that asks for this method first: "md5", "mschapv2" or "tls"."""
        where = self.where / "radius"
        where.mkdir()
        made = FreeRadius(where, self.net, **settings)
        self._closing.append(made)
        modules = where / "raddb" / "modules.conf"
        modules.write_text(modules.read_text().replace("default_eap_type = md5", f"default_eap_type = {method}"))
        return made.start()

    def is_empty(self) -> bool:
        """As of PPPoE, but for the timers of RADIUS."""
        status = self.status()
        held = [status[what] for what in ("sessions", "half_open", "bound", "addresses", "journal")]
        return not any(held) and not any(self.entries().values())


LAB = EapLab


class Authority:
    """Who signs certificates, with openssl(1)."""

    def __init__(self, where: Path, name: str = "ca") -> None:
        self.where = where
        self.certificate = where / f"{name}.pem"
        self._name = name
        where.mkdir(exist_ok=True)
        self._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name} authority"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )

    def sign(self, name: str, use: str) -> tuple[Path, Path]:
        """A key and a certificate, for "serverAuth" or "clientAuth"."""
        request = ("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}")
        self._openssl(*request, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self.where / "extensions").write_text(f"extendedKeyUsage = {use}\nsubjectAltName = DNS:{name}\n")
        signer = ("-CA", f"{self._name}.pem", "-CAkey", f"{self._name}.key", "-CAcreateserial", "-days", "2")
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-extfile", "extensions", "-out", f"{name}.pem")
        return self.where / f"{name}.key", self.where / f"{name}.pem"

    def _openssl(self, *argv: str) -> None:
        done = subprocess.run(["openssl", *argv], cwd=self.where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def client(authority: Authority, key: Path, certificate: Path) -> list[str]:
    """pppd's options for EAP-TLS."""
    return ["ca", str(authority.certificate), "cert", str(certificate), "key", str(key)]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def tls_server(lab: EapLab, authority: Authority) -> FreeRadius:
    key, certificate = authority.sign("radius.example.net", "serverAuth")
    return lab.begins_with("tls", tls_key=key, tls_certificate=certificate, tls_ca=authority.certificate)


def is_up(lab: EapLab, radius: FreeRadius, user: str = "alice") -> None:
    """Data passes, and the server has an account of it."""
    lab.daemon.says(rf'TUNNELSTART user="{re.escape(user)}" .* auth=EAP ')
    lab.ping(lab.sub, WORLD, count=3)
    (row,) = until(radius.open_accounts, "the account")
    assert row["username"] == user
    assert row["framedipaddress"] == lab.session()["address"]


def test_md5(lab: EapLab) -> None:
    radius = lab.freeradius()
    radius.user("alice", "wonderland", reply=[("Framed-IP-Address", "10.65.0.9")])
    lab.serve()
    pppd = lab.dial_up()
    assert "auth eap" in pppd.log
    assert pppd.address == "10.65.0.9"
    is_up(lab, radius)
    pppd.stop()
    until(lambda: not radius.open_accounts(), "the Stop")
    lab.empties()


@pytest.mark.parametrize("method", ["md5", "mschapv2"])
def test_a_wrong_password(lab: EapLab, method: str) -> None:
    radius = lab.begins_with(method)
    radius.user("alice", "wonderland")
    lab.serve(f"{QUICK}\n{EAP}")
    for user in ("alice", "mallory"):
        pppd = lab.dial(user=user, password="guess")
        assert pppd.exits() == Exit.AUTHENTICATION_FAILED
        lab.daemon.says(rf'TUNNELDENY user="{user}" .* reason="rejected by the server')
    assert "local  IP address" not in pppd.log
    assert radius.accounts() == []
    lab.empties()


def test_a_name_that_the_realm_would_strip(lab: EapLab) -> None:
    """FreeRADIUS believes no User-Name that is not the identity."""
    radius = lab.freeradius()
    radius.user("alice@example.net", "wonderland")
    lab.serve(realm="strip-atmark-realm yes")
    lab.dial_up(user="alice@example.net")
    is_up(lab, radius, "alice@example.net")


def test_mschapv2(lab: EapLab) -> None:
    radius = lab.begins_with("mschapv2")
    radius.user("alice", "wonderland")
    lab.serve()
    lab.dial_up()
    is_up(lab, radius)


def test_mschapv2_gives_keys(lab: EapLab) -> None:
    radius = lab.begins_with("mschapv2")
    radius.user("alice", "wonderland")
    lab.serve(ENCRYPTED)
    tap = Tap(lab)
    pppd = lab.dial_up("require-mppe-128")
    assert "MPPE 128-bit stateless compression enabled" in pppd.log
    is_up(lab, radius)
    assert min(encrypted_only(tap.stop()).values()) >= 3


def test_tls(lab: EapLab, authority: Authority) -> None:
    radius = tls_server(lab, authority)
    lab.serve()
    pppd = lab.dial_up(*client(authority, *authority.sign("alice", "clientAuth")))
    is_up(lab, radius)
    assert "wonderland" not in pppd.log


def test_tls_gives_keys(lab: EapLab, authority: Authority) -> None:
    radius = tls_server(lab, authority)
    lab.serve(ENCRYPTED)
    options = client(authority, *authority.sign("alice", "clientAuth"))
    tap = Tap(lab)
    pppd = lab.dial_up("require-mppe-128", *options)
    assert "MPPE 128-bit stateless compression enabled" in pppd.log
    is_up(lab, radius)
    assert min(encrypted_only(tap.stop()).values()) >= 3


def test_tls_within_a_small_mru(lab: EapLab, authority: Authority) -> None:
    """FreeRADIUS hears by Framed-MTU how long its fragments may be."""
    radius = tls_server(lab, authority)
    lab.serve()
    options = client(authority, *authority.sign("alice", "clientAuth"))
    pppd = lab.dial_up("mru", "600", "mtu", "600", "eap-max-rreq", "60", *options)
    assert lab.session()["mru"] == 600
    is_up(lab, radius)
    assert pppd.log.count("rcvd [EAP Request") > 6


def test_a_certificate_of_somebody_else(lab: EapLab, authority: Authority, tmp_path: Path) -> None:
    tls_server(lab, authority)
    lab.serve(f"{QUICK}\n{EAP}")
    other = Authority(tmp_path / "other", "other")
    pppd = lab.dial(*client(authority, *other.sign("alice", "clientAuth")))
    assert pppd.exits() == Exit.AUTHENTICATION_FAILED
    lab.daemon.says(r'TUNNELDENY user="alice" .* reason="rejected by the server')
    assert "local  IP address" not in pppd.log
    lab.empties()


def test_a_peer_that_wants_another_method(lab: EapLab, authority: Authority) -> None:
    """pppd without a certificate asks for MD5 where the server begins with TLS."""
    radius = tls_server(lab, authority)
    radius.user("alice", "wonderland")
    lab.serve()
    pppd = lab.dial_up()
    assert "sent [EAP Response" in pppd.log
    assert "Nak" in pppd.log
    is_up(lab, radius)


def test_no_server(lab: EapLab) -> None:
    lab.serve(f"{QUICK}\n{EAP}", realm="login-timeout 4")
    pppd = lab.dial()
    assert pppd.exits() == Exit.AUTHENTICATION_FAILED
    lab.daemon.says(r'TUNNELDENY user="alice" .* reason="realm RADIUS: ')
    lab.empties()


def test_another_method_for_who_has_no_eap(lab: EapLab) -> None:
    radius = lab.freeradius()
    radius.user("alice", "wonderland")
    lab.serve("authentication-method eap chap")
    lab.dial_up("refuse-eap")
    lab.daemon.says(r'TUNNELSTART user="alice" .* auth=CHAP-MD5 ')


def test_who_must_say_again_who_it_is(lab: EapLab) -> None:
    """Session-Timeout with Termination-Action RADIUS-Request: the session stays."""
    radius = lab.freeradius()
    radius.user("alice", "wonderland", reply=[("Session-Timeout", 3), ("Termination-Action", "RADIUS-Request")])
    lab.serve()
    pppd = lab.dial_up()
    pppd.says(r"rcvd \[EAP Success", times=3)
    is_up(lab, radius)
    assert lab.daemon.log.count("TUNNELSTART") == 1
