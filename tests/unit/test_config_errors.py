from __future__ import annotations

from pathlib import Path

import pytest

from npppy.config.loader import ConfigError, load
from npppy.config.model import Mppe

from .config_file import BASE, BIND, TUNNEL, ConfigFile


@pytest.fixture
def conf(tmp_path: Path) -> ConfigFile:
    return ConfigFile(tmp_path)


def test_all_errors_at_once_and_no_others(conf: ConfigFile) -> None:
    text = """\
set max-sesion 5
tunel A protocol pppoe {
  listen on interface eth0
  mru 20000
  lcp-timeou 3
  authentication-method pap mschap
  mru = 1400
  mppe required
  l2tp-hostname x
  timeout 5
}
ipcp P {
  pool-address 10.0.0.1/24
  pool-address 10.0.1.9-10.0.1.1
  dns-servers 1.2.3.4.5
  pool-address 10.2.0.0/16
}
ipcp Q {
  pool-address 10.2.3.4
}
interface tun0 address 10.0.0.1 ipcp R
authentication L type local {
  users-file "a
}
bind tunnel from A authenticated by M to tun0
bind tunnel form A authenticated by M to tun0
foo bar
"""
    assert [error.removeprefix("npppd.conf:") for error in conf.errors(text)] == [
        '1:5: expected "max-session", "user-max-session" or "duplicate-session", found "max-sesion"; '
        'did you mean "max-session"?',
        # The block is looked into, and A is defined.
        '2:1: expected a statement, found "tunel"; did you mean "tunnel"?',
        '4:7: expected a number from 500 to 9000, found "20000"',
        '5:3: expected an option of a pppoe tunnel, found "lcp-timeou"; did you mean "lcp-timeout"?',
        '6:29: expected "pap", "chap", "mschapv2" or "eap", found "mschap"; did you mean "mschapv2"?',
        '7:7: unexpected "="',
        '9:3: expected an option of a pppoe tunnel, found "l2tp-hostname", which belongs in an l2tp tunnel',
        '10:3: expected an option of a pppoe tunnel, found "timeout", which belongs in an authentication-server block',
        "13:16: 10.0.0.1/24 is not the address of a network; its network is 10.0.0.0/24",
        "14:16: the range 10.0.1.9-10.0.1.1 ends before it begins",
        '15:15: expected an IPv4 address, found "1.2.3.4.5"',
        "19:16: 10.2.3.4 is in another ipcp at npppd.conf:16:16: two sessions would get one address",
        '21:38: expected the name of an ipcp, found "R"; defined so far: "P", "Q"',
        '23:14: the string has no closing " on its line',
        '25:37: expected the name of an authentication, found "M"; defined so far: "L"',
        '26:13: expected "from", found "form"',
        '27:1: expected a statement, found "foo"; valid are "set", "tunnel", "radius", "authentication", "ipcp", '
        '"interface", "bind", "metrics-listen" or "include"',
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("mru", "10:4: expected a number from 500 to 9000, found the end of the line"),
        ("mru 499", '10:5: expected a number from 500 to 9000, found "499"'),
        ("mru -1", '10:5: expected a number from 500 to 9000, found "-1"'),
        ("mru 1400x", '10:5: expected a number from 500 to 9000, found "1400x"'),
        ('mru "1400"', '10:5: expected a number from 500 to 9000, found the string "1400"; numbers have no quotes'),
        ("mru " + "9" * 5000, '10:5: expected a number from 500 to 9000, found "' + "9" * 60 + '..."'),
        ("mru 1400 1500", '10:10: expected the end of the line, found "1500"'),
        ("mru 1400 lcp-keepalive no", '10:10: expected the end of the line, found "lcp-keepalive"'),
        ("mru 1400 {\nmru 5\n}", '10:10: expected the end of the line: "mru" has no block'),
        ('"mru" 1400', '10:1: expected an option of a pppoe tunnel, found the string "mru"; keywords have no quotes'),
        ("lcp-keepalive on", '10:15: expected "yes" or "no", found "on"'),
        ("lcp-keepalive 1", '10:15: expected "yes" or "no", found "1"'),
        ('lcp-keepalive "yes"', '10:15: expected "yes" or "no", found the string "yes"; keywords have no quotes'),
        ("lcp-keepalive-retry-interval 0", '10:30: expected a number from 1 to 86400, found "0"'),
        ("negotiation-timeout 3601", '10:21: expected a number from 1 to 3600, found "3601"'),
        ("authentication-method", '10:22: expected "pap", "chap", "mschapv2" or "eap", found the end of the line'),
        ("mppe-key-length 64", '10:17: expected "128", "56" or "40", found "64"'),
        ("pipex maybe", '10:7: expected "yes", "no", "ebpf" or "user", found "maybe"'),
        ("chap-name", "10:10: expected a string, found the end of the line"),
        ("chap-name " + "x" * 256, "10:11: a string of 256 octets is too long: expected at most 255"),
        ("listen eth2", '10:8: expected "on", found "eth2"'),
        (
            "listen on 10.0.0.1",
            '10:11: expected "interface" and its name: a pppoe tunnel listens on interfaces, found "10.0.0.1"',
        ),
        (
            "listen on interface eth0/1",
            '10:21: expected the name of an interface, 1 to 15 octets without blank, "/" and ":", found "eth0/1"',
        ),
        (
            "listen on interface abcdefghijklmnop",
            '10:21: expected the name of an interface, 1 to 15 octets without blank, "/" and ":", '
            'found "abcdefghijklmnop"',
        ),
        ("pppoe-pado-delay soon", '10:18: expected a number from 0 to 10000 (milliseconds) or "drop", found "soon"'),
        ("pppoe-pado-delay 5 at 9", '10:20: expected the end of the line, found "at"'),
        ("pppoe-pado-delay 5 from 9\npppoe-pado-delay 9 from 9",
         "11:18: expected a delay from more than 9 sessions, found 9"),
        ("pppoe-pado-delay 5\npppoe-pado-delay drop", "11:18: expected a delay from more than 0 sessions, found 0"),
        ("foo", '10:1: expected an option of a pppoe tunnel, found "foo"; npppd.conf(5) lists them'),
        ("max-session 5", '10:1: expected an option of a pppoe tunnel, found "max-session", '
                          "which belongs in an ipcp block or a set statement"),
    ],
)  # fmt: skip
def test_options(conf: ConfigFile, options: str, expected: str) -> None:
    assert conf.tunnel_errors(options) == ["npppd.conf:" + expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tunnel A protocol sstp", '1:19: expected "pppoe", "l2tp" or "pptp", found "sstp"'),
        ("tunnel A protocol ppoe {\nmru 5\n}", [
            '1:19: expected "pppoe", "l2tp" or "pptp", found "ppoe"; did you mean "pppoe"?',
            '2:5: expected a number from 500 to 9000, found "5"',
        ]),
        ("tunnel A", '1:9: expected "protocol", found the end of the line'),
        ("tunnel", "1:7: expected the name of a tunnel, found the end of the line"),
        ("tunnel {\n}", '1:8: expected the name of a tunnel, found the end of the line'),
        ('tunnel "" protocol pppoe', "1:8: expected the name of a tunnel, found an empty string"),
        ("tunnel protocol pppoe {\nmru 5\n}", [
            '1:8: expected the name of a tunnel, found "protocol"',
            '2:5: expected a number from 500 to 9000, found "5"',
        ]),
        ("tunnel A protocol l2tp {\nlisten on interface em0\n}",
         '2:11: expected an address: an l2tp tunnel listens on addresses, found "interface"'),
        ("tunnel A protocol l2tp {\nlisten on example.net\n}",
         '2:11: expected an IPv4 or IPv6 address, found "example.net"'),
        ("tunnel A protocol l2tp {\nlisten on :: port 65536\n}",
         '2:19: expected a number from 0 to 65535, found "65536"'),
        ("tunnel A protocol l2tp {\nl2tp-data-reorder 65\n}", '2:19: expected a number from 0 to 64, found "65"'),
        ("tunnel A protocol l2tp {\nl2tp-half-open-limit 0\n}", '2:22: expected a number from 1 to 65535, found "0"'),
        ("tunnel A protocol l2tp {\nl2tp-half-open-peer-limit 65536\n}",
         '2:27: expected a number from 1 to 65535, found "65536"'),
        ("tunnel A protocol l2tp {\nl2tp-session-limit 65536\n}",
         '2:20: expected a number from 0 to 65535, found "65536"'),
        ("tunnel A protocol l2tp {\nl2tp-sccrq-limit many\n}",
         '2:18: expected a number from 0 to 1000000, found "many"'),
        ("tunnel A protocol l2tp {\nl2tp-peer-rebind yes\n}",
         '2:18: expected "no", "port" or "address", found "yes"'),
        ("tunnel A protocol l2tp {\nl2tp-udp-checksum 1\n}", '2:19: expected "yes" or "no", found "1"'),
        ("tunnel A protocol l2tp {\nl2tp-secret\n}", "2:12: expected a secret, found the end of the line"),
        ('tunnel A protocol l2tp {\nl2tp-secret ""\n}', "2:13: expected a secret, found an empty string"),
        ("tunnel A protocol l2tp {\nl2tp-secret x form 10.0.0.1\n}",
         "2:15: expected the end of the line, found more text"),
        ("tunnel A protocol l2tp {\nl2tp-secret x from\n}",
         "2:19: expected an address or a network (10.0.0.0/24), found the end of the line"),
        *((f"tunnel A protocol l2tp {{\nl2tp-secret x from {text}\n}}",
           "2:20: expected an address or a network (10.0.0.0/24), found more text")
          for text in ("lac.example", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "::/129", "::/-1", "::/", "fe80::1%eth0")),
        ("tunnel A protocol l2tp {\nl2tp-secret x from 2001:db8::1/64\n}",
         "2:20: this is not the address of a network: it has bits beyond the length of its prefix"),
        ("tunnel A protocol pppoe {\nl2tp-secret x\n}", "2:1: expected an option of a pppoe tunnel, "
         'found "l2tp-secret", which belongs in an l2tp tunnel'),
        ("tunnel A protocol l2tp\ntunnel B protocol l2tp {\n}\ntunnel C protocol l2tp {\nlisten on ::\n}",
         '2:8: tunnel "A" listens on 0.0.0.0 port 1701 already, at npppd.conf:1:8'),
        ("tunnel A protocol l2tp {\nlisten on ::1\nlisten on 10.0.0.1\n}\n"
         "tunnel B protocol l2tp {\nlisten on 10.0.0.1 port 1702\nlisten on 10.0.0.1 port 0\nlisten on ::1\n}", [
            '7:11: tunnel "A" listens on 10.0.0.1 port 1701 already, at npppd.conf:3:11',
            '8:11: tunnel "A" listens on ::1 port 1701 already, at npppd.conf:2:11',
        ]),
        ("tunnel A protocol pptp {\nlisten on 10.0.0.1\nlisten on 10.0.0.2\n}\n"
         "tunnel B protocol pptp {\nlisten on 10.0.0.2 port 1723\nlisten on 10.0.0.1 port 1724\n}\n"
         # A port of UDP is another.
         "tunnel C protocol l2tp {\nlisten on 10.0.0.1 port 1723\n}",
         '6:11: tunnel "A" listens on 10.0.0.2 port 1723 already, at npppd.conf:3:11'),
        ("tunnel A protocol pptp\ntunnel B protocol pptp",
         '2:8: tunnel "A" listens on 0.0.0.0 port 1723 already, at npppd.conf:1:8'),
        *((f"tunnel A protocol pptp {{\n{option} {value}\n}}",
           f'2:{len(option) + 2}: expected a number from {numbers}, found "{value}"')
          for option, value, numbers in (
              ("pptp-session-limit", 65536, "0 to 65535"),
              ("pptp-half-open-limit", 0, "1 to 65535"),
              ("pptp-peer-limit", -1, "0 to 65535"),
              ("pptp-data-reorder", 65, "0 to 64"),
          )),
        ("tunnel A protocol pptp {\npptp-send-window 64\n}", '2:18: expected "yes" or "no", found "64"'),
        ("tunnel A protocol l2tp {\npptp-peer-limit 1\n}", "2:1: expected an option of an l2tp tunnel, "
         'found "pptp-peer-limit", which belongs in a pptp tunnel'),
        ("tunnel A protocol pptp {\nlisten on ::1\n}", "2:11: expected an IPv4 address for a pptp tunnel, found ::1"),
        ("set", '1:4: expected "max-session", "user-max-session" or "duplicate-session", found the end of the line'),
        ("set max-session many", '1:17: expected a number from 0 to 10000000, found "many"'),
        ("set duplicate-session yes", '1:23: expected "deny" or "replace", found "yes"'),
        ("set max-session 1 {\n}", '1:19: expected the end of the line: "max-session" has no block'),
        ("ipcp P", '1:7: expected "{", found the end of the line'),
        ("ipcp", "1:5: expected the name of an ipcp, found the end of the line"),
        ("ipcp P extra {\n}", '1:8: expected the end of the line, found "extra"'),
        ("ipcp P {\npool-adress 10.0.0.1\n}",
         '2:1: expected an option of an ipcp block, found "pool-adress"; did you mean "pool-address"?'),
        ("ipcp P {\nbogus\n}", '2:1: expected an option of an ipcp block, found "bogus"; valid are "pool-address", '
         '"dns-servers", "nbns-servers", "allow-user-selected-address" or "max-session"'),
        ("ipcp P {\npool-address 10.0.0.0/24 for fun\n}", '2:30: expected "dynamic" or "static", found "fun"'),
        ("interface tun0", '1:15: expected "address", found the end of the line'),
        ("interface address 10.0.0.1 ipcp P", '1:11: expected the name of an interface, found "address"'),
        ("interface tun0 address ::1 ipcp P", '1:24: expected an IPv4 address, found "::1"'),
        ("authentication L type file {\n}", '1:23: expected "local" or "radius", found "file"'),
        ("authentication L type local", '1:28: expected "{", found the end of the line'),
        ("authentication L type local {\nauthentication-server {\naddress 10.0.0.1 secret x\n}\n}",
         "2:1: authentication-server is for realms of type radius, and this one is local"),
        ("authentication L type radius {\nauthentication-servr {\naddress x secret x\n}\n}", [
            '2:1: expected an option of an authentication block, found "authentication-servr"; '
            'did you mean "authentication-server"?',
            '3:9: expected an IPv4 or IPv6 address, found "x"',
        ]),
        ("authentication L type radius {\nauthentication-server 10.0.0.1 {\n}\n}",
         '2:23: expected the end of the line, found "10.0.0.1"'),
        ("authentication L type radius {\naccounting-server\n}", '2:18: expected "{", found the end of the line'),
        ("authentication L type radius {\ntimeout 5\n}", '2:1: expected an option of an authentication block, '
         'found "timeout", which belongs in an authentication-server block'),
        ("radius", '1:7: expected "nas-id", "nas-address", "nas-port-id", "spool", "spool-limit" or "dae", '
         "found the end of the line"),
        ("radius dae listen 10.0.0.1", '1:19: expected "on", found "10.0.0.1"'),
        ("radius nas-id \"\"", "1:15: expected a string, found an empty string"),
        ("mru 1400", '1:1: expected a statement, found "mru", which belongs in a tunnel'),
        ('"set" max-session 5', '1:1: expected a statement, found the string "set"; keywords have no quotes'),
        ("bind tunnel from authenticated by B to C", '1:18: expected the name of a tunnel, found "authenticated"'),
    ],
)  # fmt: skip
def test_statements(conf: ConfigFile, text: str, expected: str | list[str]) -> None:
    expected = [expected] if isinstance(expected, str) else expected
    assert conf.errors(text) == ["npppd.conf:" + error for error in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/33", "expected a range (10.0.0.2-10.0.0.254), a network (10.0.0.0/24) or an address"),
        ("10.0.0.0/0.0.0.255", "expected a range"),
        ("10.0.0.0:0.0.0.255", "expected a range"),
        ("10.0.0.0:24", "expected a range"),
        ("10.0.0.1-10.0.0.2-10.0.0.3", "expected a range"),
        ("10.0.0", "expected a range"),
        ("010.0.0.1", "expected a range"),
        ("10.0.0.1:255.255.0.0", "10.0.0.1:255.255.0.0 is not the address of a network; its network is 10.0.0.0/16"),
        ("0.0.0.0/0", "0.0.0.0/0 holds addresses that a host cannot have"),
        ("126.0.0.0-128.0.0.0", "126.0.0.0-128.0.0.0 holds addresses that a host cannot have"),
        ("127.0.0.1", "127.0.0.1 holds addresses that a host cannot have"),
        ("223.255.255.255-224.0.0.0", "223.255.255.255-224.0.0.0 holds addresses that a host cannot have"),
        ("10.0.0.0-11.0.0.0", "10.0.0.0-11.0.0.0 holds more than 16777216 addresses"),
    ],
)
def test_pool_addresses(conf: ConfigFile, text: str, expected: str) -> None:
    (error,) = conf.errors(f"ipcp P {{\npool-address {text}\n}}\n")
    assert error.startswith("npppd.conf:2:14: " + expected)


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
def test_address_of_an_interface(conf: ConfigFile, address: str) -> None:
    assert conf.errors(f"ipcp P {{\n}}\ninterface tun0 address {address} ipcp P\n") == [
        f"npppd.conf:3:24: expected an address that a host can have, found {address}"
    ]


# Braces: one that is missing or too many is one error.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ipcp P {\npool-address 10.0.0.0/24\n", ['1:8: the "{" is never closed']),
        ("}", ['1:1: "}" without a "{" before it']),
        ("ipcp P {\n}\n}\n", ['3:1: "}" without a "{" before it']),
        ("{\n}\n", ['1:1: "{" without a statement before it']),
        ("ipcp P\n{\npool-address x\n}\n", [
            '2:1: "{" belongs at the end of the line before',
            '3:14: expected a range (10.0.0.2-10.0.0.254), a network (10.0.0.0/24) or an address, found "x"',
        ]),
        ("ipcp P {\n} ipcp Q {\n}\n", ['2:3: expected the end of the line after "}"']),
        # The statement that follows is read as one, not as an option.
        ("ipcp P {\npool-address 10.0.0.0/24\nipcp Q {\npool-address 10.0.1.0/24\n}\nbogus\n", [
            '1:8: the "{" is not closed before "ipcp" in line 3',
            '6:1: expected a statement, found "bogus"; valid are "set", "tunnel", "radius", "authentication", "ipcp", '
            '"interface", "bind", "metrics-listen" or "include"',
        ]),
        ("tunnel A protocol l2tp {\nmru 1400\ntunnel B protocol pptp\nset max-session 5\n",
         ['1:24: the "{" is not closed before "tunnel" in line 3']),
        ("authentication R type radius {\nauthentication-server {\naddress 10.0.0.1 secret x\naccounting-server {\n"
         "address 10.0.0.1 secret x\n}\n}\n", ['2:23: the "{" is not closed before "accounting-server" in line 4']),
        ("authentication R type radius {\nauthentication-server {\naddress 10.0.0.1 secret x\n}\nset max-session 1\n",
         ['1:30: the "{" is not closed before "set" in line 5']),
        # A "{" that is missing, and a "}" too many.
        ("ipcp P\npool-address 10.0.0.0/24\ndns-servers 9.9.9.9\n}\ninterface tun0 address 10.0.0.1 ipcp P\n",
         ['1:7: expected "{", found the end of the line']),
        ("authentication P\nusers-file x\n}\n", ['1:17: expected "type", found the end of the line']),
        ("tunnel A protocol l2tp\nmru 1400\nlcp-timeout 3\n}\n",
         ['2:1: expected a statement, found "mru", which belongs in a tunnel']),
        ("tunnel A protocol l2tp {\nmru 1400\n}\nlcp-timeout 3\nmppe no\n}\n",
         ['4:1: expected a statement, found "lcp-timeout", which belongs in a tunnel']),
        ("pool-address 10.0.0.0/24\n}\ninterface tun0 address 10.0.0.1 ipcp P\n",
         ['1:1: expected a statement, found "pool-address", which belongs in an ipcp block']),
        # A misplaced statement may look like it; the brace that follows is then not one too many.
        ("tunnel A protocol l2tp {\nset max-session 5\n}\n", ['1:24: the "{" is not closed before "set" in line 2']),
    ],
)  # fmt: skip
def test_braces(conf: ConfigFile, text: str, expected: list[str]) -> None:
    assert conf.errors(text) == ["npppd.conf:" + error for error in expected]


def test_depth_of_braces_has_no_limit(conf: ConfigFile) -> None:
    assert len(conf.errors("a {\n" * 20_000)) == 20_001
    assert len(conf.errors("a {" * 20_000 + "}" * 20_000)) == 1


# Names


def test_names_that_are_taken(conf: ConfigFile) -> None:
    text = BASE + TUNNEL % "" + BIND
    # The second of each is read, but no cross-check is disturbed by it.
    assert conf.errors(text + text.replace("bind", "# bind").replace("eth1", "eth2")) == [
        'npppd.conf:13:6: the name "POOL" of this ipcp is taken at npppd.conf:1:6',
        'npppd.conf:16:11: the name "tun0" of this interface is taken at npppd.conf:4:11',
        'npppd.conf:17:16: the name "LOCAL" of this authentication is taken at npppd.conf:5:16',
        'npppd.conf:20:8: the name "ACCESS" of this tunnel is taken at npppd.conf:8:8',
    ]


def test_names_are_defined_before_they_are_used(conf: ConfigFile) -> None:
    assert conf.errors(BIND + "interface tun0 address 10.64.0.1 ipcp POOL\n" + BASE.replace("tun0", "tun1")) == [
        'npppd.conf:1:18: expected the name of a tunnel, found "ACCESS"',
        'npppd.conf:1:42: authentication "LOCAL" is defined only at npppd.conf:7:16; it must come before its use',
        'npppd.conf:1:51: interface "tun0" is defined only at npppd.conf:2:11; it must come before its use',
        'npppd.conf:2:39: ipcp "POOL" is defined only at npppd.conf:3:6; it must come before its use',
    ]


def test_misspelt_name(conf: ConfigFile) -> None:
    assert conf.errors(BASE + TUNNEL % "" + BIND.replace("LOCAL", "LOCLA")) == [
        'npppd.conf:12:42: expected the name of an authentication, found "LOCLA"; did you mean "LOCAL"?'
    ]


def test_a_name_lost_in_an_error_is_not_missed(conf: ConfigFile) -> None:
    text = BASE.replace("ipcp POOL {", "ipcp {") + TUNNEL % "" + BIND
    assert conf.errors(text) == ["npppd.conf:1:6: expected the name of an ipcp, found the end of the line"]
    text = BASE.replace("address 10.64.0.1", "adress 10.64.0.1") + TUNNEL % "" + BIND
    assert conf.errors(text) == ['npppd.conf:4:16: expected "address", found "adress"']
    text = BASE + (TUNNEL % "").replace("pppoe", "ether") + BIND
    assert conf.errors(text) == ['npppd.conf:8:24: expected "pppoe", "l2tp" or "pptp", found "ether"']
    assert conf.errors("include none\n" + BIND) == ['npppd.conf:1:9: cannot read "none": No such file or directory']


# What does not fit together


def second(options: str, interface: str = "eth1") -> str:
    return f"tunnel B protocol pppoe {{\nlisten on interface {interface}\n{options}\n}}\n" + BIND.replace("ACCESS", "B")


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        ("", "", "any"),
        ("pppoe-service-name a", "pppoe-service-name b", "any"),
        ("pppoe-service-name a b\npppoe-accept-any-service no", "pppoe-service-name b", "b"),
        ("pppoe-service-name a\npppoe-accept-any-service no", "pppoe-service-name b", ""),
        # Without a name, a tunnel is for the empty name, whatever it accepts else.
        ("pppoe-accept-any-service no", "", "any"),
        ("pppoe-accept-any-service no", "pppoe-service-name b\npppoe-accept-any-service no", ""),
    ],
)
def test_services_on_one_interface(conf: ConfigFile, one: str, two: str, shared: str) -> None:
    text = BASE + TUNNEL % one + BIND + second(two)
    if not shared:
        assert conf.warnings(text) == []
        return
    (error,) = conf.errors(text)
    what = {"any": "requests for any service (pppoe-accept-any-service no keeps them off)", "b": 'service "b"'}[shared]
    line = text.count("\n", 0, text.index("tunnel B")) + 2
    assert error == f'npppd.conf:{line}:21: tunnel "ACCESS" answers {what} on eth1 already, at npppd.conf:9:25'


def test_services_on_different_interfaces(conf: ConfigFile) -> None:
    assert conf.warnings(BASE + TUNNEL % "" + BIND + second("", "eth2")) == []


def test_a_tunnel_with_an_error_is_not_compared(conf: ConfigFile) -> None:
    (error,) = conf.errors(BASE + TUNNEL % "" + BIND + second("pppoe-acept-any-service no"))
    assert 'did you mean "pppoe-accept-any-service"?' in error


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        ("10.0.0.0/24", "10.0.0.0/24", "10.0.0.0-10.0.0.255"),
        ("10.0.0.0/16", "10.0.7.0/24 for static", "10.0.7.0-10.0.7.255"),
        ("10.0.0.9-10.0.0.19", "10.0.0.1-10.0.0.9", "10.0.0.9"),
        ("10.0.0.9-10.0.0.19", "10.0.0.1-10.0.0.8", ""),
    ],
)
def test_addresses_in_two_blocks(conf: ConfigFile, one: str, two: str, shared: str) -> None:
    text = f"ipcp A {{\npool-address {one}\n}}\nipcp B {{\npool-address {two}\n}}\n"
    if not shared:
        assert conf.warnings(text) == []
        return
    assert conf.errors(text) == [
        f"npppd.conf:5:14: {shared} is in another ipcp at npppd.conf:2:14: two sessions would get one address"
    ]


def test_many_overlaps(conf: ConfigFile) -> None:
    # A long range hides behind short ones, of its own block and of another.
    text = "".join(
        f"ipcp {name} {{\n" + "".join(f"pool-address {text}\n" for text in ranges) + "}\n"
        for name, ranges in {
            "A": ["10.0.0.0/16", "10.0.1.0/24", "10.0.3.1"],
            "B": ["10.0.2.0/24"],
            "C": ["10.1.0.0/24"],
        }.items()
    )
    assert conf.errors(text) == [
        "npppd.conf:7:14: 10.0.2.0-10.0.2.255 is in another ipcp at npppd.conf:2:14: two sessions would get one address"
    ]


NO_KEYS = "cannot be met: keys are what mschapv2 and eap give, and authentication-method has neither"


@pytest.mark.parametrize("protocol", ["pppoe", "l2tp", "pptp"])
@pytest.mark.parametrize("methods", ["chap", "pap", "chap pap"])
def test_mppe_required_without_keys(conf: ConfigFile, protocol: str, methods: str) -> None:
    text = f"tunnel A protocol {protocol} {{\nauthentication-method {methods}\nmppe required\n}}\n"
    assert conf.errors(text) == [f"npppd.conf:3:1: mppe required {NO_KEYS}"]
    assert conf.load(text.replace("required", "no")).tunnels[0].mppe is Mppe.NO
    assert conf.load(text.replace("chap", "chap mschapv2").replace("pap\n", "pap mschapv2\n"))


def test_mppe_required_by_default_without_keys(conf: ConfigFile) -> None:
    text = "tunnel A protocol pptp {\n  authentication-method chap\n}\n"
    assert conf.errors(text) == [f"npppd.conf:2:3: mppe required (the default of a pptp tunnel) {NO_KEYS}"]
    assert conf.errors(text.replace("pptp", "l2tp").replace("chap", "chap\nmppe required")) == [
        f"npppd.conf:3:1: mppe required {NO_KEYS}"
    ]


def test_mppe_required_of_another_file(conf: ConfigFile) -> None:
    conf.write("ppp.inc", "authentication-method chap\nmppe required\n")
    assert conf.errors(TUNNEL % "include ppp.inc") == [f"ppp.inc:2:1: mppe required {NO_KEYS}"]


def test_what_could_not_be_read_may_have_been_mschapv2(conf: ConfigFile) -> None:
    assert conf.tunnel_errors("mppe required\nauthentication-method chap mschap2") == [
        'npppd.conf:11:28: expected "pap", "chap", "mschapv2" or "eap", found "mschap2"; did you mean "mschapv2"?'
    ]


# Files


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.conf:1:1: cannot read .*: No such file or directory"):
        load(tmp_path / "none.conf")


def test_errors_of_all_files_in_their_order(conf: ConfigFile) -> None:
    conf.write("b", "two\n")
    conf.write("a", "three\n")
    errors = conf.errors("one\ninclude b\ninclude a\nfour\n")
    assert [error.split(":")[0] for error in errors] == ["npppd.conf", "npppd.conf", "b", "a"]


def test_warnings_come_with_errors(conf: ConfigFile) -> None:
    with pytest.raises(ConfigError) as raised:
        conf.load("mru 5\nset max-session 1\nset max-session 2\n")
    assert conf.short(raised.value.warnings) == [
        "npppd.conf:3:5: max-session is given again: npppd.conf:2:5 has no effect"
    ]
    assert str(raised.value) == str(raised.value.diagnostics[0])


@pytest.mark.parametrize(
    "text",
    [
        "radius dae client 10.0.0.1 secret hunter2 hunter2",
        "radius dae client 10.0.0.1 hunter2",
        'radius dae client 10.0.0.1 "hunter2"',
        'radius dae client 10.0.0.1 secret "a" "hunter2"',
        'authentication R type radius {\nauthentication-server {\naddress 10.0.0.1 port 5 "hunter2"\n}\n}',
        'authentication R type radius {\nauthentication-server {\naddress 10.0.0.1 secret "hunter2\n}\n}',
        'authentication R type radius {\nauthentication-server {\naddress 10.0.0.1 secret "hunter2"\n} hunter2\n}',
        'authentication R type radius {\nauthentication-server {\nadress 10.0.0.1 secret "hunter2"\n}\n}',
        'radius dae client 10.0.0.1 secret "hunter2\x01"',
        "tunnel A protocol l2tp {\nl2tp-secret hunter2 hunter2\n}",
        "tunnel A protocol l2tp {\nl2tp-secret x from hunter2\n}",
        'tunnel A protocol l2tp {\nl2tp-secret "hunter2\n}',
        "tunnel A protocol l2tp {\nl2tp-secert hunter2\n}",
        "tunnel A protocol l2tp {\nl2tp-secret from 10.0.0.1 hunter2\n}",
    ],
)
def test_secrets_are_not_shown(conf: ConfigFile, text: str) -> None:
    for error in conf.errors(text):
        assert "hunter2" not in error


def test_empty_secret(conf: ConfigFile) -> None:
    # RFC 2865 section 3: it must not be empty.
    assert conf.errors('radius dae client 10.0.0.1 secret ""') == [
        "npppd.conf:1:35: expected a secret, found an empty string"
    ]
