"""The files of conf/: the example loads, and the manual knows what the program does."""

from __future__ import annotations

import re
from dataclasses import fields
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from npppy.config.loader import load
from npppy.config.model import (
    Config,
    Dae,
    FsmLimits,
    Ipcp,
    L2tpOptions,
    Mppe,
    PppoeOptions,
    PptpOptions,
    Radius,
    RadiusServer,
    RadiusServers,
    Realm,
    Tunnel,
)
from npppy.config.options import IPCP, SET, TUNNEL, TUNNEL_DEFAULTS, UNBUILT, Option
from npppy.config.options_radius import AUTHENTICATION, DAE, PORT_ID_NAMES, RADIUS, SERVERS
from npppy.config.reader import Number
from npppy.config.users import UsersFile

CONF = Path(__file__).parent.parent.parent / "conf"
MANUAL = (CONF / "npppd.conf.5").read_text()

OPTIONS = [
    *{option.keyword: option for table in TUNNEL.values() for option in table.values()}.values(),
    *IPCP.values(),
    *AUTHENTICATION.values(),
    *SERVERS["authentication-server"].values(),
]


def test_the_example_with_l2tp(tmp_path: Path) -> None:
    text = (CONF / "npppd.conf").read_text()
    assert text.count('#include "l2tp.conf"') == 1
    (tmp_path / "npppd.conf").write_text(text.replace('#include "l2tp.conf"', 'include "l2tp.conf"'))
    for name in ("l2tp.conf", "npppd-users"):
        (tmp_path / name).write_bytes((CONF / name).read_bytes())
        (tmp_path / name).chmod(0o600)
    loaded = load(tmp_path / "npppd.conf")
    assert loaded.warnings == ()
    carrier = loaded.binds[1].tunnel.carrier
    assert isinstance(carrier, L2tpOptions)
    assert [(str(address), port) for address, port in carrier.listen] == [("0.0.0.0", 1701), ("::", 1701)]


def test_the_example_with_pptp(tmp_path: Path) -> None:
    text = (CONF / "npppd.conf").read_text()
    assert text.count('#include "pptp.conf"') == 1
    (tmp_path / "npppd.conf").write_text(text.replace('#include "pptp.conf"', 'include "pptp.conf"'))
    for name in ("pptp.conf", "npppd-users"):
        (tmp_path / name).write_bytes((CONF / name).read_bytes())
        (tmp_path / name).chmod(0o600)
    loaded = load(tmp_path / "npppd.conf")
    assert loaded.warnings == ()
    tunnel = loaded.binds[1].tunnel
    assert isinstance(tunnel.carrier, PptpOptions)
    assert [(str(address), port) for address, port in tunnel.carrier.listen] == [("0.0.0.0", 1723)]
    assert tunnel.mppe is Mppe.REQUIRED


def radius_example(tmp_path: Path, text: str) -> Config:
    example = (CONF / "npppd.conf").read_text()
    (bind,) = re.findall("^bind .*\n", example, re.MULTILINE)
    # As it says itself.
    (tmp_path / "npppd.conf").write_text(example.replace(bind, 'include "radius.conf"\n'))
    (tmp_path / "npppd-users").write_bytes((CONF / "npppd-users").read_bytes())
    (tmp_path / "radius.conf").write_text(text)
    for file in tmp_path.iterdir():
        file.chmod(0o600)
    return load(tmp_path / "npppd.conf")


def test_the_example_with_radius(tmp_path: Path) -> None:
    loaded = radius_example(tmp_path, (CONF / "radius.conf").read_text())
    assert loaded.warnings == ()
    (bind,) = loaded.binds
    assert (bind.tunnel.name, bind.realm.type, bind.interface.name) == ("ACCESS", "radius", "tun0")
    (access,), (accounting,) = bind.realm.authentication.servers, bind.realm.accounting.servers
    assert (str(access.address), access.port, accounting.port) == ("127.0.0.1", 1812, 1813)
    # Those of the example for FreeRADIUS.
    assert f'secret = "{access.secret}"' in (CONF / "freeradius" / "clients.conf").read_text()
    assert access.secret == accounting.secret


def test_all_that_the_example_with_radius_offers(tmp_path: Path) -> None:
    text = re.sub(r"^( *)#(?=[a-z])", r"\1", (CONF / "radius.conf").read_text(), flags=re.MULTILINE)
    loaded = radius_example(tmp_path, text)
    assert loaded.warnings == ()
    realm = loaded.binds[0].realm
    assert (len(realm.authentication.servers), realm.fallback) == (2, "LOCAL")
    assert (len(loaded.radius.dae.listen), len(loaded.radius.dae.clients)) == (1, 1)


def test_the_example(tmp_path: Path) -> None:
    config = tmp_path / "npppd.conf"
    text = (CONF / "npppd.conf").read_text()
    # The demo puts its own interface here.
    assert len(re.findall(r"^\s+listen on interface eth1\s+# change$", text, re.MULTILINE)) == 1
    config.write_text(text)
    (tmp_path / "npppd-users").write_bytes((CONF / "npppd-users").read_bytes())
    (tmp_path / "npppd-users").chmod(0o600)
    loaded = load(config)
    assert loaded.warnings == ()
    (bind,) = loaded.binds
    assert bind.tunnel.carrier == PppoeOptions(interfaces=("eth1",))
    assert bind.interface.name == "tun0"
    assert bind.interface.address == IPv4Address("10.64.0.1")
    dynamic, static = bind.interface.ipcp.ranges
    assert (str(dynamic.first), str(dynamic.last)) == ("10.64.0.2", "10.64.255.254")

    assert bind.realm.users_file is not None
    users = UsersFile(bind.realm.users_file)
    assert users.refresh() == []
    alice, bob, office = users.get("alice"), users.get("bob"), users.get("office")
    assert alice is not None
    assert bob is not None
    assert office is not None
    assert (alice.password, alice.address, alice.prefixlen) == (b"wonderland", None, 32)
    assert (bob.password, bob.prefixlen, office.password, office.prefixlen) == (b"builder", 32, b"red:brick", 28)
    for user in (bob, office):
        assert user.address is not None
        assert static.first <= IPv4Address(user.address) <= static.last


def item(keyword: str) -> str:
    """What the manual says of an option, on one line."""
    items = re.split(r"^\.(?=It |Sh |Ss |El)", MANUAL, flags=re.MULTILINE)
    for number, text in enumerate(items):
        head, _, body = text.partition("\n")
        if head.startswith("It") and keyword in re.split(r"[ ,]+", head):
            # Items without a text share that of the next one.
            while not body.strip():
                number += 1
                body = items[number].partition("\n")[2]
            return body.replace("\n", " ")
    raise AssertionError(f"the manual has no {keyword}")


@pytest.mark.parametrize("keyword", sorted({option.keyword for option in OPTIONS} - {"pppoe-pado-delay"} | {*SERVERS}))
def test_every_option_is_in_the_manual(keyword: str) -> None:
    assert item(keyword)


def test_the_other_keywords_are_in_the_manual() -> None:
    for words in ("set " + word for word in SET):
        assert f".It Ic {words} " in MANUAL
    for words in ("radius " + word for word in RADIUS):
        assert f".It Ic {words} " in MANUAL
    for words in ("radius dae " + word for word in DAE):
        assert f".It Ic {words} " in MANUAL
    for name in PORT_ID_NAMES:
        assert re.search(rf"^\.It Li {name}$", MANUAL, re.MULTILINE)
    assert ".Ic pppoe-pado-delay Ar milliseconds | Ic drop\n.Op Ic from Ar sessions\n" in MANUAL
    assert ".It Ic include Ar file" in MANUAL


def defaults(*models: type) -> dict[str, object]:
    return {field.name: field.default for model in models for field in fields(model)}


LIMITS = defaults(FsmLimits)
DEFAULTS = defaults(Tunnel, PppoeOptions, L2tpOptions, PptpOptions, Ipcp, Realm, RadiusServers)
NUMBERS = [option for option in OPTIONS if isinstance(option.read, Number)]


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: option.keyword)
def test_ranges_and_defaults_are_in_the_manual(option: Option) -> None:
    assert isinstance(option.read, Number)
    text = item(option.keyword)
    assert f" {option.read.low} to {option.read.high}" in " " + text
    group, _, name = option.field.rpartition(".")
    if name == "mru":
        for values in TUNNEL_DEFAULTS.values():
            assert str(values["mru"]) in text
        return
    default = (LIMITS if group in ("lcp", "ipcp", "ccp") else DEFAULTS)[name]
    assert f"default {default}" in text
    # Where 0 is not a value of its own, it is the default.
    assert option.read.zero in (0, default)


@pytest.mark.parametrize("option", [*RADIUS.values(), *DAE.values()], ids=lambda option: option.keyword)
def test_ranges_and_defaults_of_radius_are_in_the_manual(option: Option) -> None:
    statement = "radius dae" if option in DAE.values() else "radius"
    head = f".It Ic {statement} {option.keyword} "
    text = MANUAL[MANUAL.index(head) + len(head) :]
    text = text[: text.index("\n.It Ic radius")] if "\n.It Ic radius" in text else text[: text.index("\n.El")]
    if isinstance(option.read, Number):
        assert f"{option.read.low} to {option.read.high}, default {defaults(Radius, Dae)[option.field]}" in text


def test_the_rest_of_radius_is_in_the_manual() -> None:
    assert "60 to 86400, or 0, the default" in item("accounting-interim")
    assert "0 to 255, default 0" in item("priority")
    assert ".It Ic message-authenticator required | optional\n" in MANUAL
    assert "which is the default" in item("message-authenticator")
    assert "default is .Ic yes" in item("status-server")
    found = defaults(RadiusServer)
    assert (found["priority"], found["require_message_authenticator"], found["status_server"]) == (0, True, True)


def test_what_is_not_built_is_in_the_manual() -> None:
    bugs = MANUAL[MANUAL.index(".Sh BUGS") :]
    assert [row.keyword for row in UNBUILT] == ["name"]
    assert "pppx" in bugs
    for word in ("ccp", "mppe", "pptp", "radius", "eap"):
        assert word not in bugs
