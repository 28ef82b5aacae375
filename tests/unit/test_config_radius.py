"""Realms of type radius, their servers, and the radius statements."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from npppy.aaa.radius import request
from npppy.config.loader import load
from npppy.config.model import (
    AuthMethod,
    Config,
    Dae,
    Mppe,
    Radius,
    RadiusServer,
    RadiusServers,
    Realm,
)
from npppy.config.options_radius import PORT_ID_NAMES

from .config_file import BASE, BIND, TUNNEL, ConfigFile


@pytest.fixture
def conf(tmp_path: Path) -> ConfigFile:
    return ConfigFile(tmp_path)


#: A realm; %s is what its blocks hold beside a server.
REALM = """\
authentication R type radius {
authentication-server {
address 10.0.0.5 secret s
%s
}
accounting-server {
address 10.0.0.5 secret s
%s
}
%s
}
"""


def quiet(conf: ConfigFile, text: str) -> Config:
    config = conf.load(text)
    assert conf.short(config.warnings) == []
    return config


def realm(conf: ConfigFile, options: str = "", access: str = "", accounting: str = "") -> Realm:
    return quiet(conf, REALM % (access, accounting, options)).realms[0]


# What is read.


def test_defaults(conf: ConfigFile) -> None:
    found = realm(conf)
    access = RadiusServer(address=ip_address("10.0.0.5"), port=1812, secret="s")
    assert found.authentication == RadiusServers(servers=(access,))
    assert found.accounting == RadiusServers(
        servers=(RadiusServer(address=ip_address("10.0.0.5"), port=1813, secret="s"),)
    )
    assert (access.priority, access.require_message_authenticator, access.status_server) == (0, True, True)
    servers = found.authentication
    assert (servers.timeout, servers.max_tries, servers.max_failovers) == (9, 3, 1)
    assert (servers.balance, servers.dead_time, servers.max_outstanding, servers.source) == (False, 60, 1024, ())
    assert (found.login_timeout, found.accounting_interim, found.fallback) == (60, 0, "")
    assert (found.eap_capable, found.strip_nt_domain, found.strip_atmark_realm) == (True, True, False)
    assert conf.load("").radius == Radius(
        nas_id="npppd", nas_addresses=(), nas_port_id="", spool=None, spool_limit=1_000_000, dae=Dae()
    )
    assert Dae() == Dae(listen=(), clients=(), window=300, require_event_timestamp=False)


def test_every_option_of_servers(conf: ConfigFile) -> None:
    block = """
    address 10.0.0.6 port 1645 secret t priority 255 message-authenticator optional status-server no
    address 2001:db8::5 secret u status-server yes message-authenticator required priority 1
    address 10.0.0.7 port 0 secret priority priority 3
    timeout 1
    max-tries 59
    max-failovers 100
    server-selection balance
    dead-time 86400
    max-outstanding 65535
    source-address 10.0.0.1
    source-address "fe80::1%eth0"
    """
    found = realm(conf, access=block).authentication
    assert found == RadiusServers(
        servers=(
            RadiusServer(address=ip_address("10.0.0.5"), port=1812, secret="s"),
            RadiusServer(
                address=ip_address("10.0.0.6"),
                port=1645,
                secret="t",
                priority=255,
                require_message_authenticator=False,
                status_server=False,
            ),
            RadiusServer(address=ip_address("2001:db8::5"), port=1812, secret="u", priority=1),
            # In its place the word is the secret.
            RadiusServer(address=ip_address("10.0.0.7"), port=1812, secret="priority", priority=3),
        ),
        timeout=1,
        max_tries=59,
        max_failovers=100,
        balance=True,
        dead_time=86400,
        max_outstanding=65535,
        source=(ip_address("10.0.0.1"), ip_address("fe80::1%eth0")),
    )
    assert realm(conf, access="server-selection priority\ndead-time 1\nmax-outstanding 1").authentication == (
        RadiusServers(servers=found.servers[:1], dead_time=1, max_outstanding=1)
    )


def test_the_blocks_are_apart(conf: ConfigFile) -> None:
    found = realm(conf, access="timeout 4\ndead-time 7", accounting="max-tries 5\nserver-selection balance")
    assert (found.authentication.timeout, found.authentication.max_tries, found.authentication.balance) == (4, 3, False)
    assert (found.accounting.timeout, found.accounting.max_tries, found.accounting.balance) == (9, 5, True)
    assert (found.authentication.dead_time, found.accounting.dead_time) == (7, 60)


def test_zero_is_the_default_of_what_npppd_has(conf: ConfigFile) -> None:
    assert realm(conf, access="timeout 0\nmax-tries 0\nmax-failovers 0").authentication == realm(conf).authentication


def test_every_option_of_a_realm(conf: ConfigFile) -> None:
    text = BASE + REALM % (
        "",
        "",
        """
        username-suffix "@isp"
        user-max-session 3
        strip-nt-domain no
        strip-atmark-realm yes
        eap-capable no
        users-file users
        login-timeout 600
        accounting-interim 86400
        fallback-realm LOCAL
        """,
    )
    found = quiet(conf, text).realms[1]
    assert (found.type, found.username_suffix, found.user_max_session) == ("radius", "@isp", 3)
    assert (found.strip_nt_domain, found.strip_atmark_realm, found.eap_capable) == (False, True, False)
    assert found.users_file == conf.folder / "users"
    assert (found.login_timeout, found.accounting_interim, found.fallback) == (600, 86400, "LOCAL")


@pytest.mark.parametrize(("option", "value"), [("timeout 300", 300), ("timeout 1", 1)])
def test_the_bounds_of_the_timeout(conf: ConfigFile, option: str, value: int) -> None:
    assert realm(conf, access=option).authentication.timeout == value


@pytest.mark.parametrize("seconds", [0, 600, 900])
def test_accounting_interim(conf: ConfigFile, seconds: int) -> None:
    assert realm(conf, f"accounting-interim {seconds}").accounting_interim == seconds


def test_a_realm_of_radius_as_the_fallback(conf: ConfigFile) -> None:
    text = REALM % ("", "", "") + (REALM % ("", "", "fallback-realm R")).replace("authentication R", "authentication Q")
    assert [one.fallback for one in quiet(conf, text).realms] == ["", "R"]


def test_every_radius_statement(conf: ConfigFile) -> None:
    config = quiet(
        conf,
        """
        radius nas-id bras1
        radius nas-address 192.0.2.1
        radius nas-address 2001:db8::1
        radius nas-port-id "{interface}:{svlan}.{cvlan} x"
        radius spool "/var/lib/npppy/spool.db"
        radius spool-limit 1000
        radius dae listen on 192.0.2.1
        radius dae listen on :: port 3800
        radius dae client 192.0.2.10 secret a
        radius dae client 2001:db8::10 secret b
        radius dae window 86400
        radius dae require-event-timestamp yes
        """,
    )
    assert config.radius == Radius(
        nas_id="bras1",
        nas_addresses=(ip_address("192.0.2.1"), ip_address("2001:db8::1")),
        nas_port_id="{interface}:{svlan}.{cvlan} x",
        spool=Path("/var/lib/npppy/spool.db"),
        spool_limit=1000,
        dae=Dae(
            listen=((ip_address("192.0.2.1"), 3799), (ip_address("::"), 3800)),
            clients=((ip_address("192.0.2.10"), "a"), (ip_address("2001:db8::10"), "b")),
            window=86400,
            require_event_timestamp=True,
        ),
    )


def test_the_spool_is_relative_to_its_file(conf: ConfigFile) -> None:
    conf.write("parts/radius.conf", "radius spool spool.db\n")
    assert quiet(conf, "include parts/radius.conf\n").radius.spool == conf.folder / "parts" / "spool.db"


@pytest.mark.parametrize("name", PORT_ID_NAMES)
def test_every_name_of_a_port(conf: ConfigFile, name: str) -> None:
    assert quiet(conf, f'radius nas-port-id "{{{name}}}"\n').radius.nas_port_id == f"{{{name}}}"


def test_the_names_are_those_that_requests_know() -> None:
    assert set(PORT_ID_NAMES) == {*request._NAMES, "id"}


def test_secrets_are_not_in_repr(conf: ConfigFile) -> None:
    text = REALM.replace("secret s", "secret hunter2") % ("", "", "") + "radius dae client 10.0.0.1 secret hunter2\n"
    assert "hunter2" not in repr(conf.load(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eap", ["eap"]),
        ("eap mschapv2", ["eap", "mschapv2"]),
        ("chap eap pap", ["chap", "eap", "pap"]),
    ],
)
def test_eap_among_the_methods(conf: ConfigFile, text: str, expected: list[str]) -> None:
    config = quiet(
        conf,
        BASE + REALM % ("", "", "") + TUNNEL % f"authentication-method {text}" + BIND.replace("LOCAL", "R"),
    )
    assert [method.value for method in config.tunnels[0].authentication_methods] == expected
    assert AuthMethod.EAP not in conf.tunnel("").authentication_methods


def test_eap_may_give_keys(conf: ConfigFile) -> None:
    text = BASE + REALM % ("", "", "") + TUNNEL % "authentication-method eap\nmppe required"
    assert quiet(conf, text + BIND.replace("LOCAL", "R")).tunnels[0].mppe is Mppe.REQUIRED


# What is wrong.


HOST = "expected an address that a host can have, found"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("address 10.0.0.6", '4:17: expected the keyword "secret" and a secret'),
        ("address 10.0.0.6 priority 1 secret x", '4:18: expected the keyword "secret" and a secret'),
        ("address 10.0.0.6 port 65536 secret x", '4:23: expected a number from 0 to 65535, found "65536"'),
        ("address radius.example secret x", '4:9: expected an IPv4 or IPv6 address, found "radius.example"'),
        ("address 10.0.0.6 secret x priority 256", "4:36: expected a number from 0 to 255, found more text"),
        ("address 10.0.0.6 secret x priority", "4:35: expected a number from 0 to 255, found the end of the line"),
        ("address 10.0.0.6 secret x message-authenticator yes",
         '4:49: expected "required" or "optional", found more text'),
        ("address 10.0.0.6 secret x status-server on", '4:41: expected "yes" or "no", found more text'),
        ("address 10.0.0.6 secret x y",
         '4:27: expected "priority", "message-authenticator" or "status-server", found more text'),
        ("timeout 301", '4:9: expected a number from 0 to 300, found "301"'),
        ("max-tries 101", '4:11: expected a number from 0 to 100, found "101"'),
        ("max-failovers -1", '4:15: expected a number from 0 to 100, found "-1"'),
        ("server-selection random", '4:18: expected "priority" or "balance", found "random"'),
        ("server-selection balanced",
         '4:18: expected "priority" or "balance", found "balanced"; did you mean "balance"?'),
        ("dead-time 0", '4:11: expected a number from 1 to 86400, found "0"'),
        ("dead-time 86401", '4:11: expected a number from 1 to 86400, found "86401"'),
        ("max-outstanding 0", '4:17: expected a number from 1 to 65535, found "0"'),
        ("max-outstanding 65536", '4:17: expected a number from 1 to 65535, found "65536"'),
        ("source-address eth0", '4:16: expected an IPv4 or IPv6 address, found "eth0"'),
        ("source-address 0.0.0.0", f"4:16: {HOST} 0.0.0.0"),
        ("source-address ::", f"4:16: {HOST} ::"),
        ("source-address ff02::1", f"4:16: {HOST} ff02::1"),
        ("source-address 10.0.0.1 10.0.0.2", '4:25: expected the end of the line, found "10.0.0.2"'),
        ("priority 1", '4:1: expected an option of an authentication-server block, found "priority"; '
         'valid are "address", "timeout", "max-tries", "max-failovers", "server-selection", "dead-time", '
         '"max-outstanding" or "source-address"'),
        ("login-timeout 5", '4:1: expected an option of an authentication-server block, found "login-timeout", '
         "which belongs in an authentication block"),
    ],
)  # fmt: skip
def test_errors_of_servers(conf: ConfigFile, option: str, expected: str) -> None:
    assert conf.errors(REALM % (option, "", "")) == ["npppd.conf:" + expected]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("login-timeout 0", '10:15: expected a number from 1 to 600, found "0"'),
        ("login-timeout 601", '10:15: expected a number from 1 to 600, found "601"'),
        ("accounting-interim", "10:19: expected a number from 60 to 86400, or 0, found the end of the line"),
        ("accounting-interim 59", '10:20: expected a number from 60 to 86400, or 0, found "59"'),
        ("accounting-interim 86401", '10:20: expected a number from 60 to 86400, or 0, found "86401"'),
        ('accounting-interim "60"', '10:20: expected a number from 60 to 86400, or 0, found the string "60"; '
         "numbers have no quotes"),
        ("fallback-realm", "10:15: expected the name of an authentication, found the end of the line"),
        ('fallback-realm ""', "10:16: expected the name of an authentication, found an empty string"),
        ("fallback-realm R", "10:16: a realm cannot be its own fallback-realm"),
        ("fallback-realm NONE", '10:16: expected the name of an authentication, found "NONE"; defined so far: "R"'),
        ("fallback-realm R Q", '10:18: expected the end of the line, found "Q"'),
        ("dead-time 5", '10:1: expected an option of an authentication block, found "dead-time", '
         "which belongs in an authentication-server block"),
        ("nas-id x", '10:1: expected an option of an authentication block, found "nas-id", '
         "which belongs in a radius statement"),
    ],
)  # fmt: skip
def test_errors_of_a_realm(conf: ConfigFile, option: str, expected: str) -> None:
    assert conf.errors(REALM % ("", "", option)) == ["npppd.conf:" + expected]


def test_a_fallback_is_defined_before(conf: ConfigFile) -> None:
    assert conf.errors(REALM % ("", "", "fallback-realm LOCAL") + BASE) == [
        'npppd.conf:10:16: authentication "LOCAL" is defined only at npppd.conf:16:16; it must come before its use'
    ]


def test_a_fallback_in_error_is_not_missed(conf: ConfigFile) -> None:
    text = "authentication L typo local {\n}\n" + REALM % ("", "", "fallback-realm L")
    assert conf.errors(text) == ['npppd.conf:1:18: expected "type", found "typo"']


def test_a_fallback_of_a_fallback(conf: ConfigFile) -> None:
    text = BASE + REALM % ("", "", "fallback-realm LOCAL")
    text += (REALM % ("", "", "fallback-realm R")).replace("authentication R", "authentication Q")
    assert conf.errors(text) == [
        'npppd.conf:28:16: "R" has a fallback-realm itself ("LOCAL"): a login goes on to one realm only'
    ]


@pytest.mark.parametrize("option", ["login-timeout 5", "accounting-interim 600", "fallback-realm LOCAL"])
def test_what_a_local_realm_has_not(conf: ConfigFile, option: str) -> None:
    keyword = option.split()[0]
    assert conf.errors(BASE + f"authentication B type local {{\nusers-file users\n{option}\n}}\n") == [
        f"npppd.conf:10:1: {keyword} is for realms of type radius, and this one is local"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("radius", '1:7: expected "nas-id", "nas-address", "nas-port-id", "spool", "spool-limit" or "dae", '
         "found the end of the line"),
        ("radius nas-ip 10.0.0.1", '1:8: expected "nas-id", "nas-address", "nas-port-id", "spool", "spool-limit" '
         'or "dae", found "nas-ip"; did you mean "nas-id"?'),
        ("radius nas-id " + "x" * 254, "1:15: a string of 254 octets is too long: expected at most 253"),
        ("radius nas-address nas", '1:20: expected an IPv4 or IPv6 address, found "nas"'),
        ("radius nas-address 255.255.255.255", f"1:20: {HOST} 255.255.255.255"),
        ("radius nas-address 224.0.0.1", f"1:20: {HOST} 224.0.0.1"),
        ('radius nas-port-id ""', "1:20: expected a string, found an empty string"),
        ('radius nas-port-id "' + "x" * 254 + '"', "1:20: a string of 254 octets is too long: expected at most 253"),
        ('radius nas-port-id "a}"', '1:20: "}" without its other half: names stand in braces, "{tunnel}"'),
        ('radius nas-port-id "{{tunnel}}"', '1:20: "{" without its other half: names stand in braces, "{tunnel}"'),
        ('radius nas-port-id "{mac} {vlan}"', '1:20: {vlan} names nothing; valid are "tunnel", "protocol", '
         '"interface", "svlan", "cvlan", "mac", "peer", "calling", "called", "service", "circuit", "remote" or "id"'),
        ('radius nas-port-id "{}"', '1:20: {} names nothing; valid are "tunnel", "protocol", "interface", "svlan", '
         '"cvlan", "mac", "peer", "calling", "called", "service", "circuit", "remote" or "id"'),
        ("radius spool", "1:13: expected the name of a file, found the end of the line"),
        ("radius spool-limit 999", '1:20: expected a number from 1000 to 100000000, found "999"'),
        ("radius dae", '1:11: expected "listen", "client", "window" or "require-event-timestamp", '
         "found the end of the line"),
        ("radius dae listen on 10.0.0.1 port 65536", '1:36: expected a number from 0 to 65535, found "65536"'),
        ("radius dae listen on 10.0.0.1 {\n}", '1:31: expected the end of the line: "listen" has no block'),
        ("radius dae client 10.0.0.0/24 secret x", '1:19: expected an IPv4 or IPv6 address, found "10.0.0.0/24"'),
        *((f"radius {text}fe80::1%eth0 secret x", f"1:{len(text) + 8}: expected an address without the name of an "
           "interface, found fe80::1%eth0") for text in ("dae client ", "nas-address ")),
        ("radius dae client 10.0.0.1", '1:27: expected the keyword "secret" and a secret'),
        ("radius dae window 86401", '1:19: expected a number from 1 to 86400, found "86401"'),
        ("radius dae window 0", '1:19: expected a number from 1 to 86400, found "0"'),
        ("radius dae require-event-timestamp maybe", '1:36: expected "yes" or "no", found "maybe"'),
    ],
)  # fmt: skip
def test_errors_of_radius_statements(conf: ConfigFile, text: str, expected: str) -> None:
    assert conf.errors(text) == ["npppd.conf:" + expected]


@pytest.mark.parametrize(
    "word", ["nas-id x", "nas-address ::1", "nas-port-id x", "spool x", "spool-limit 1000", "dae window 5"]
)
def test_a_statement_behind_a_block_that_is_not_closed(conf: ConfigFile, word: str) -> None:
    assert conf.errors(f"ipcp P {{\nradius {word}\n") == [
        'npppd.conf:1:8: the "{" is not closed before "radius" in line 2'
    ]


@pytest.mark.parametrize(
    "text",
    [
        REALM % ("address 10.0.0.6 secret x hunter2", "", ""),
        REALM % ("address 10.0.0.6 secret x priority hunter2", "", ""),
        REALM % ('address 10.0.0.6 secret x priority "5" "hunter2"', "", ""),
        REALM % ("address 10.0.0.6 secret x status-server hunter2", "", ""),
        REALM % ('address 10.0.0.6 secret x message-authenticator "hunter2"', "", ""),
        REALM % ("address 10.0.0.6 port 5 hunter2", "", ""),
        REALM % ("address 10.0.0.6 secret hunter2\naddress 10.0.0.6 secret hunter2\ntimeout x", "", ""),
    ],
)
def test_secrets_are_not_shown(conf: ConfigFile, text: str) -> None:
    for error in conf.errors(text):
        assert "hunter2" not in error


# What loads and is said all the same.


@pytest.mark.parametrize(
    ("access", "accounting", "options", "expected"),
    [
        ("", "", "accounting-interim 60", [
            "10:20: records each 60 seconds are many: RFC 2869 advises 600 at least"
        ]),
        ("", "", "accounting-interim 599", [
            "10:20: records each 599 seconds are many: RFC 2869 advises 600 at least"
        ]),
        ("", "", "login-timeout 5\nlogin-timeout 6", [
            "11:1: login-timeout is given again: npppd.conf:10:1 has no effect"
        ]),
        ("address 10.0.0.6 secret x\naddress 10.0.0.5 port 1812 secret y", "", "", [
            "5:9: 10.0.0.5 port 1812 is given again: npppd.conf:3:9 has no effect"
        ]),
        ("address 10.0.0.5 port 1813 secret x", "", "", []),
        ("address 10.0.0.6 secret x priority 1 priority 2", "", "", [
            "4:38: priority is given twice, and the last one counts"
        ]),
        ("", "address 10.0.0.6 secret x message-authenticator required", "", [
            "8:27: message-authenticator has no effect: it is about what authentication servers answer"
        ]),
        ("source-address ::1", "", "", [
            "4:16: source-address ::1 has no effect: the block has no server of IPv6"
        ]),
        ("", "address ::1 secret x\nsource-address ::1\nsource-address 10.0.0.1", "", []),
        ("source-address 10.0.0.1\nsource-address 10.0.0.2", "", "", [
            "5:16: source-address of IPv4 is given again: npppd.conf:4:16 has no effect"
        ]),
        ("timeout 20\naddress 10.0.0.6 secret x", "", "", [
            "1:16: login-timeout 60 leaves no time for a second server: timeout 20 times max-tries 3 come first"
        ]),
        ("timeout 5\naddress 10.0.0.6 secret x", "", "login-timeout 15", [
            "11:1: login-timeout 15 leaves no time for a second server: timeout 5 times max-tries 3 come first"
        ]),
        ("timeout 5\naddress 10.0.0.6 secret x", "", "login-timeout 16", []),
        # One server is asked as long as there is time.
        ("", "timeout 30\naddress 10.0.0.6 secret x", "login-timeout 5", []),
    ],
)  # fmt: skip
def test_warnings_of_a_realm(
    conf: ConfigFile, access: str, accounting: str, options: str, expected: list[str]
) -> None:
    assert conf.warnings(REALM % (access, accounting, options)) == ["npppd.conf:" + text for text in expected]


def test_the_last_of_what_is_given_again_counts(conf: ConfigFile) -> None:
    text = REALM % (
        "address 10.0.0.6 secret x\naddress 10.0.0.5 secret y\nsource-address 10.0.0.1\nsource-address 10.0.0.2", "", ""
    )
    found = conf.load(text).realms[0].authentication
    assert [(str(server.address), server.secret) for server in found.servers] == [("10.0.0.5", "y"), ("10.0.0.6", "x")]
    assert [str(address) for address in found.source] == ["10.0.0.2"]
    radius = conf.load(
        "radius nas-address 10.0.0.1\nradius nas-address ::1\nradius nas-address 10.0.0.2\n"
        "radius dae listen on ::1\nradius dae client ::1 secret a\nradius dae client 0::1 secret b\n"
    ).radius
    assert [str(address) for address in radius.nas_addresses] == ["10.0.0.2", "::1"]
    assert radius.dae.clients == ((ip_address("::1"), "b"),)


def test_realms_without_servers(conf: ConfigFile) -> None:
    head = "a radius realm without a server in authentication-server: logins by it"
    assert conf.warnings("authentication R type radius {\naccounting-interim 600\n}\n") == [
        f"npppd.conf:1:16: {head} fail",
        "npppd.conf:2:1: accounting-interim has no effect: the realm has no server in accounting-server",
    ]
    assert conf.warnings("authentication R type radius {\naccounting-interim 0\n}\n") == [
        f"npppd.conf:1:16: {head} fail",
    ]
    assert conf.warnings(BASE + "authentication R type radius {\nfallback-realm LOCAL\n}\n") == [
        f'npppd.conf:8:16: {head} go to "LOCAL"'
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("radius dae listen on ::1\nradius dae listen on 10.0.0.1", [
            "1:22: radius dae listen has no effect: there is no radius dae client"
        ]),
        ("radius dae client ::1 secret a", [
            "1:19: radius dae client has no effect: there is no radius dae listen"
        ]),
        ("radius dae window 5", []),
        ("radius dae window 5\nradius dae window 6", ["2:12: window is given again: npppd.conf:1:12 has no effect"]),
        ("radius dae client ::1 secret a\nradius dae listen on ::1\nradius dae listen on ::1 port 3799", [
            "3:22: ::1 port 3799 is given again: npppd.conf:2:22 has no effect"
        ]),
        ("radius dae client ::1 secret a\nradius dae listen on ::1\nradius dae client ::1 secret b", [
            "3:19: client ::1 is given again: npppd.conf:1:19 has no effect"
        ]),
        ("radius nas-address ::1\nradius nas-address ::2", [
            "2:20: nas-address of IPv6 is given again: npppd.conf:1:20 has no effect"
        ]),
        ("radius spool a\nradius spool b", ["2:8: spool is given again: npppd.conf:1:8 has no effect"]),
    ],
)  # fmt: skip
def test_warnings_of_radius_statements(conf: ConfigFile, text: str, expected: list[str]) -> None:
    assert conf.warnings(text) == ["npppd.conf:" + warning for warning in expected]


EAP = TUNNEL % "authentication-method eap chap"


@pytest.mark.parametrize(
    ("realms", "binds", "warned"),
    [
        ("", ["LOCAL"], True),
        (REALM % ("", "", "eap-capable no"), ["R"], True),
        (REALM % ("", "", "eap-capable yes"), ["R"], False),
        (REALM % ("", "", 'username-suffix "@r"'), ["LOCAL", "R"], False),
        (REALM % ("", "", ""), ["LOCAL"], True),
    ],
)
def test_eap_needs_a_realm(conf: ConfigFile, realms: str, binds: list[str], warned: bool) -> None:
    text = EAP + BASE + realms + "".join(BIND.replace("LOCAL", realm) for realm in binds)
    expected = ["npppd.conf:3:1: logins by eap fail: no bind has a realm of type radius that is eap-capable"]
    assert conf.warnings(text) == (expected if warned else [])


def test_a_tunnel_without_a_bind_is_reported_once(conf: ConfigFile) -> None:
    assert conf.warnings(EAP) == ['npppd.conf:1:8: no bind names tunnel "ACCESS": it is not served']


def test_numbers_are_checked_by_a_users_file(conf: ConfigFile) -> None:
    bind = BIND.replace("LOCAL", "R")
    checking = TUNNEL % "callnum-check yes"
    text = BASE + REALM % ("", "", "") + checking + bind
    assert conf.warnings(text) == [
        "npppd.conf:23:1: callnum-check refuses all logins by this bind: its realm has no users-file"
    ]
    assert conf.warnings(BASE + REALM % ("", "", "users-file users") + checking + bind) == []
    assert conf.warnings(BASE + checking + BIND) == []


def test_a_local_realm_knows_no_eap(conf: ConfigFile) -> None:
    text = "authentication B type local {\nusers-file users\neap-capable %s\n}\n"
    assert conf.warnings(text % "yes") == [
        "npppd.conf:3:1: eap-capable yes has no effect: logins by EAP need a realm of type radius"
    ]
    assert conf.warnings(text % "no") == []


def test_a_file_with_a_secret_that_everybody_may_read(conf: ConfigFile) -> None:
    path = conf.write("npppd.conf", REALM % ("", "", ""))
    path.chmod(0o644)
    assert conf.short(load(path).warnings) == ["npppd.conf:3:25: the file holds a secret and everybody may read it"]
