"""What loads and is said all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from npppy.config.loader import load

from .config_file import BASE, BIND, TUNNEL, ConfigFile

DATA = Path(__file__).parent / "data"


@pytest.fixture
def conf(tmp_path: Path) -> ConfigFile:
    return ConfigFile(tmp_path)


def without_files(warnings: list[str]) -> list[str]:
    """Without those on the modes of files, which a checkout of the tests decides."""
    return [w for w in warnings if "cannot read" not in w and "everybody may read" not in w]


def test_every_keyword_of_npppd_is_built() -> None:
    config = load(DATA / "every.conf")
    found = without_files([f"{where.line}:{where.column}: {message}" for where, message in config.warnings])
    assert found == ["114:1: callnum-check refuses all logins by this bind: its realm has no users-file"]


def test_an_interface_a_session() -> None:
    config = load(DATA / "roadwarrior.conf")
    messages = without_files([str(warning) for warning in config.warnings])
    (message,) = messages
    assert message.endswith("one a session, as OpenBSD's pppx is, is not built yet")


@pytest.mark.parametrize(
    "options",
    ["mppe no", "mppe yes", "mppe required", "ccp-timeout 5", "pipex no", "pipex ebpf", "pipex-forward fast", ""],
)
def test_what_is_built_draws_none(conf: ConfigFile, options: str) -> None:
    assert conf.tunnel_warnings(options) == []


def test_tunnels_that_are_not_served(conf: ConfigFile) -> None:
    assert conf.warnings("tunnel A protocol pppoe\n" + BASE + TUNNEL % "") == [
        'npppd.conf:1:8: no bind names tunnel "A": it is not served',
        'npppd.conf:1:8: tunnel "A" listens on no interface: it is not served',
        'npppd.conf:9:8: no bind names tunnel "ACCESS": it is not served',
    ]


def test_realms_without_what_they_need(conf: ConfigFile) -> None:
    text = "authentication L type local {\n}\nauthentication R type radius {\n}\n"
    assert conf.warnings(text) == [
        "npppd.conf:1:16: a local realm without users-file: logins by it fail",
        "npppd.conf:3:16: a radius realm without a server in authentication-server: logins by it fail",
    ]


def test_a_pool_without_addresses(conf: ConfigFile) -> None:
    assert conf.warnings("ipcp P {\n}\n") == [
        'npppd.conf:1:6: ipcp "P" has no pool-address: its sessions get no address'
    ]


def test_missing_users_file(conf: ConfigFile) -> None:
    assert conf.warnings("authentication L type local {\n  users-file none\n}\n") == [
        'npppd.conf:2:3: cannot read "none": No such file or directory; logins fail meanwhile'
    ]


def test_users_file_that_everybody_may_read(conf: ConfigFile) -> None:
    conf.write("users", "").chmod(0o644)
    assert conf.warnings(BASE) == ['npppd.conf:6:5: "users" holds passwords and everybody may read it']
    conf.write("users", "").chmod(0o640)
    assert conf.warnings(BASE) == []


def test_secrets_that_everybody_may_read(conf: ConfigFile) -> None:
    conf.write("dae.conf", "radius dae client 10.0.0.1 secret x\nradius dae client 10.0.0.2 secret x\n").chmod(0o644)
    path = conf.write("npppd.conf", "include dae.conf\nradius dae client 10.0.0.3 secret x\n")
    expected = "dae.conf:1:35: the file holds a secret and everybody may read it"

    def about_files() -> list[str]:
        return [text for text in conf.short(load(path).warnings) if "everybody" in text]

    assert about_files() == [expected]
    path.chmod(0o604)
    assert about_files() == ["npppd.conf:2:35" + expected[13:], expected]


def test_a_file_without_secrets_may_be_read(conf: ConfigFile) -> None:
    path = conf.write("npppd.conf", BASE)
    path.chmod(0o644)
    assert load(path).warnings == ()


def test_options_given_twice(conf: ConfigFile) -> None:
    text = "set max-session 1\nset max-session 2\nradius nas-id a\nradius nas-id b\n"
    config = conf.load(text)
    assert (config.max_session, config.radius.nas_id) == (2, "b")
    assert [w for w in conf.short(config.warnings) if "again" in w] == [
        "npppd.conf:2:5: max-session is given again: npppd.conf:1:5 has no effect",
        "npppd.conf:4:8: nas-id is given again: npppd.conf:3:8 has no effect",
    ]
    assert conf.tunnel_warnings("mru 1400\nmru 1300") == [
        "npppd.conf:11:1: mru is given again: npppd.conf:10:1 has no effect"
    ]
    assert conf.warnings("ipcp P {\npool-address 10.0.0.0/24\ndns-servers resolver\ndns-servers 10.0.0.1\n}\n") == [
        "npppd.conf:4:1: dns-servers is given again: npppd.conf:3:1 has no effect"
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("listen on interface eth1", 'npppd.conf:10:21: "eth1" is given twice'),
        ("pppoe-service-name a b a", 'npppd.conf:10:24: "a" is given twice'),
        ("debug-dump-pktin lcp lcp", 'npppd.conf:10:22: "lcp" is given twice'),
    ],
)
def test_values_given_twice(conf: ConfigFile, options: str, expected: str) -> None:
    assert conf.tunnel_warnings(options) == [expected]


L2TP = "tunnel ACCESS protocol l2tp {\n%s\n}\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("listen on ::1\nlisten on 10.0.0.1\nlisten on 0:0::1 port 1701", ["11:11: ::1 port 1701 is given twice"]),
        ("l2tp-hidden-avps yes", [
            "9:1: l2tp-hidden-avps has no effect: AVPs are hidden by an l2tp-secret, and there is none"
        ]),
        ("l2tp-hidden-avps no", []),
        ("l2tp-hidden-avps yes\nl2tp-secret x", []),
        ("l2tp-secret one\nl2tp-secret two from 10.0.0.0/8\nl2tp-secret three", [
            "11:13: l2tp-secret is given again: npppd.conf:9:13 has no effect"
        ]),
        ("l2tp-secret one from 10.0.0.1\nl2tp-secret two from 10.0.0.1/32\nl2tp-secret three from 10.0.0.1", [
            "10:13: l2tp-secret from 10.0.0.1/32 is given again: npppd.conf:9:13 has no effect",
            "11:13: l2tp-secret from 10.0.0.1/32 is given again: npppd.conf:10:13 has no effect",
        ]),
    ],
)  # fmt: skip
def test_l2tp(conf: ConfigFile, options: str, expected: list[str]) -> None:
    warnings = conf.warnings(BASE + L2TP % options + BIND)
    assert warnings == ["npppd.conf:" + warning for warning in expected]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("listen on 10.0.0.1\nlisten on 10.0.0.2\nlisten on 10.0.0.1 port 1723", [
            "11:11: 10.0.0.1 port 1723 is given twice"
        ]),
        ("authentication-method mschapv2 chap", []),
        ("mppe no\nauthentication-method chap", []),
        ("authentication-method chap\nmppe yes", [
            "10:1: mppe yes has no effect: keys are what mschapv2 and eap give, and authentication-method has neither"
        ]),
        ("mppe-key-length 40 128 40", ['9:24: "40" is given twice']),
        ("mppe-key-state stateful stateful", ['9:25: "stateful" is given twice']),
    ],
)  # fmt: skip
def test_pptp(conf: ConfigFile, options: str, expected: list[str]) -> None:
    warnings = conf.warnings(BASE + L2TP.replace("l2tp", "pptp") % options + BIND)
    assert warnings == ["npppd.conf:" + warning for warning in expected]


@pytest.mark.parametrize("protocol", ["pppoe", "l2tp"])
def test_without_keys_the_default_is_not_held_against_anybody(conf: ConfigFile, protocol: str) -> None:
    text = TUNNEL if protocol == "pppoe" else L2TP
    assert conf.warnings(BASE + text % "authentication-method chap pap" + BIND) == []


def test_l2tp_secrets_that_everybody_may_read(conf: ConfigFile) -> None:
    path = conf.write("npppd.conf", BASE + L2TP % "l2tp-secret x" + BIND)
    path.chmod(0o644)
    assert conf.short(load(path).warnings) == ["npppd.conf:9:13: the file holds a secret and everybody may read it"]


def test_binds_without_effect(conf: ConfigFile) -> None:
    text = BASE + TUNNEL % "" + 'authentication B type local {\nusers-file "users"\n}\n'
    text += BIND + BIND.replace("LOCAL", "B")
    assert conf.warnings(text) == [
        "npppd.conf:16:1: this bind has no effect: that at npppd.conf:15:1 has the same tunnel and username-suffix"
    ]


def test_binds_with_suffixes(conf: ConfigFile) -> None:
    text = BASE + TUNNEL % "" + 'authentication B type local {\nusers-file "users"\nusername-suffix "@b"\n}\n'
    assert conf.warnings(text + BIND + BIND.replace("LOCAL", "B")) == []


def test_addresses_given_twice_in_one_block(conf: ConfigFile) -> None:
    text = "ipcp P {\npool-address 10.0.0.0/24\npool-address 10.0.0.9-10.0.1.9 for static\n}\n"
    assert conf.warnings(text) == ["npppd.conf:3:14: 10.0.0.9-10.0.0.255 is given at npppd.conf:2:14 already"]


def test_the_address_of_an_interface_in_its_pool(conf: ConfigFile) -> None:
    assert conf.warnings("ipcp P {\npool-address 10.0.0.0/24\n}\ninterface tun0 address 10.0.0.1 ipcp P\n") == []


def test_a_string_over_lines(conf: ConfigFile) -> None:
    assert conf.tunnel_warnings('chap-name "a\nb"') == [
        "npppd.conf:10:11: the string goes on over the end of its line, and the newline is dropped"
    ]


def test_warnings_of_a_file_included_twice_come_once(conf: ConfigFile) -> None:
    conf.write("mppe.inc", "mppe yes\n")
    one = TUNNEL % "authentication-method chap\ninclude mppe.inc"
    two = one.replace("ACCESS", "B").replace("eth1", "eth2")
    (warning,) = conf.warnings(BASE + one + two + BIND + BIND.replace("ACCESS", "B"))
    assert warning == (
        "mppe.inc:1:1: mppe yes has no effect: "
        "keys are what mschapv2 and eap give, and authentication-method has neither"
    )
