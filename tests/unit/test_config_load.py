from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from npppy.config.loader import load
from npppy.config.model import (
    AddressRange,
    AuthMethod,
    FsmLimits,
    L2tpOptions,
    Mppe,
    PadoDelay,
    PipexChoice,
    PppoeOptions,
    PptpOptions,
    Protocol,
    RadiusServer,
    RadiusServers,
    Rebind,
    Tunnel,
    Where,
)

from .config_file import BASE, BIND, TUNNEL, ConfigFile

DATA = Path(__file__).parent / "data"

#: All keywords of OpenBSD's npppd, parse.y 1.31.
KEYWORDS = """
accounting-server address allow-user-selected-address authenticated authentication authentication-method
authentication-server bind by callnum-check ccp ccp-max-configure ccp-max-nak-loop ccp-max-terminate ccp-timeout
chap chap-name client dae debug-dump-pktin debug-dump-pktout dns-servers dynamic eap eap-capable for from
idle-timeout ingress-filter interface ip ipcp ipcp-max-configure ipcp-max-nak-loop ipcp-max-terminate
ipcp-timeout l2tp l2tp-accept-dialin l2tp-ctrl-in-pktdump l2tp-ctrl-out-pktdump l2tp-data-in-pktdump
l2tp-data-out-pktdump l2tp-data-use-seq l2tp-force-lcp-renegotiation l2tp-hello-interval l2tp-hello-timeout
l2tp-hostname l2tp-lcp-renegotiation l2tp-require-ipsec l2tp-vendor-name lcp lcp-keepalive
lcp-keepalive-interval lcp-keepalive-max-retries lcp-keepalive-retry-interval lcp-max-configure
lcp-max-nak-loop lcp-max-terminate lcp-timeout listen local max-failovers max-session max-tries mppe
mppe-key-length mppe-key-state mru mschapv2 nas-id nbns-servers no on pap pipex pool-address port pppoe
pppoe-ac-name pppoe-accept-any-service pppoe-desc-in-pktdump pppoe-desc-out-pktdump pppoe-service-name
pppoe-session-in-pktdump pppoe-session-out-pktdump pptp pptp-ctrl-in-pktdump pptp-ctrl-out-pktdump
pptp-data-in-pktdump pptp-data-out-pktdump pptp-echo-interval pptp-echo-timeout pptp-hostname
pptp-vendor-name protocol radius required resolver secret set stateful stateless static strip-atmark-realm
strip-nt-domain tcp-mss-adjust timeout to tunnel type user-max-session username-suffix users-file yes
"""


@pytest.fixture
def conf(tmp_path: Path) -> ConfigFile:
    return ConfigFile(tmp_path)


def ip(text: str) -> IPv4Address:
    return IPv4Address(text)


def test_the_files_of_openbsd_hold_every_keyword() -> None:
    text = "".join(path.read_text() for path in DATA.glob("*.conf"))
    words = set(re.findall(r"[a-z0-9-]+", re.sub(r'#.*|"[^"\n]*"', "", text)))
    assert [word for word in KEYWORDS.split() if word not in words] == []


def test_every_keyword_is_in_the_model(conf: ConfigFile) -> None:
    config = load(DATA / "every.conf")
    assert (config.max_session, config.user_max_session, config.radius.nas_id) == (100, 2, "nas")
    assert config.radius.dae.listen == ((ip("127.0.0.1"), 3799),)
    assert config.radius.dae.clients == ((ip("127.0.0.1"), "dae"),)

    l2tp, pptp, pppoe = config.tunnels
    assert [tunnel.name for tunnel in config.tunnels] == ["l2tp", "pptp", "pppoe"]
    assert (l2tp.protocol, l2tp.mru, l2tp.lcp_keepalive, l2tp.mppe) == (Protocol.L2TP, 1360, False, Mppe.YES)
    assert l2tp.ccp.timeout == 4
    assert l2tp.carrier == L2tpOptions(
        listen=((ip("0.0.0.0"), 1701), (IPv6Address("::"), 1701)),
        hostname="lns",
        vendor_name="vendor",
        hello_interval=30,
        hello_timeout=10,
        accept_dialin=True,
        lcp_renegotiation=False,
        force_lcp_renegotiation=True,
        data_use_seq=False,
        require_ipsec=True,
        ctrl_in_pktdump=True,
        ctrl_out_pktdump=True,
        data_in_pktdump=True,
        data_out_pktdump=True,
    )
    assert (pptp.protocol, pptp.mru, pptp.lcp_keepalive, pptp.mppe) == (Protocol.PPTP, 1400, True, Mppe.REQUIRED)
    assert pptp.carrier == PptpOptions(
        listen=((ip("127.0.0.1"), 1724),),
        hostname="pac",
        vendor_name="v",
        echo_interval=10,
        echo_timeout=20,
        ctrl_in_pktdump=True,
        ctrl_out_pktdump=True,
        data_in_pktdump=True,
        data_out_pktdump=True,
    )
    assert pppoe.carrier == PppoeOptions(
        interfaces=("em0",),
        service_names=("service",),
        accept_any_service=False,
        ac_name='ac "1"',
        desc_in_pktdump=True,
        desc_out_pktdump=True,
        session_in_pktdump=True,
        session_out_pktdump=True,
    )
    assert (pppoe.mru, pppoe.lcp_keepalive, pppoe.lcp_keepalive_interval) == (1400, False, 20)
    assert (pppoe.lcp_keepalive_retry_interval, pppoe.lcp_keepalive_max_retries) == (5, 4)
    assert pppoe.lcp == FsmLimits(timeout=5, max_configure=6, max_terminate=7, max_nak_loop=8)
    assert pppoe.ipcp == FsmLimits(timeout=9, max_configure=11, max_terminate=12, max_nak_loop=13)
    assert pppoe.ccp == FsmLimits(timeout=3, max_configure=15, max_terminate=16, max_nak_loop=17)
    assert pppoe.authentication_methods == (AuthMethod.MSCHAPV2, AuthMethod.CHAP, AuthMethod.PAP)
    assert (pppoe.chap_name, pppoe.mppe, pppoe.mppe_key_lengths) == ("nas", Mppe.YES, (128, 40))
    assert (pppoe.mppe_key_states, pppoe.idle_timeout) == (("stateless", "stateful"), 600)
    assert (pppoe.tcp_mss_adjust, pppoe.ingress_filter, pppoe.callnum_check) == (True, True, True)
    assert pppoe.pipex is PipexChoice.YES
    assert pppoe.dump_in == {"ip", "lcp", "pap", "chap", "eap", "mppe", "ccp", "ipcp"}
    assert pppoe.dump_out == {"lcp"}

    (ipcp,) = config.ipcps
    assert ipcp.ranges == (
        AddressRange(first=ip("10.0.0.2"), last=ip("10.0.0.10")),
        AddressRange(first=ip("10.0.1.0"), last=ip("10.0.1.255"), dynamic=False),
    )
    assert (ipcp.name, ipcp.dns, ipcp.dns_from_resolver, ipcp.nbns) == ("ipcp", None, True, (ip("10.0.0.1"),))
    assert (ipcp.allow_user_selected_address, ipcp.max_session) == (False, 50)

    (interface,) = config.interfaces
    assert (interface.name, interface.address, interface.ipcp) == ("tun0", ip("10.0.0.1"), ipcp)

    local, radius = config.realms
    assert (local.name, local.type, local.username_suffix, local.user_max_session) == ("local", "local", "@local", 3)
    assert (local.eap_capable, local.strip_nt_domain, local.strip_atmark_realm) == (False, False, True)
    assert local.users_file == Path("/etc/npppd/npppd-users")
    assert (radius.name, radius.type, radius.users_file) == ("radius", "radius", None)
    server = RadiusServer(address=ip("10.0.0.5"), port=1812, secret="authenticated")
    assert radius.authentication == RadiusServers(servers=(server,), timeout=1, max_tries=2, max_failovers=1)
    server = RadiusServer(address=ip("10.0.0.5"), port=1646, secret="by")
    assert radius.accounting == RadiusServers(servers=(server,))

    assert [(bind.tunnel, bind.realm) for bind in config.binds] == [
        (pppoe, local), (pppoe, radius), (l2tp, local), (pptp, local)
    ]  # fmt: skip
    assert all(bind.interface is interface for bind in config.binds)


def test_an_isp(conf: ConfigFile) -> None:
    config = conf.load((DATA / "isp.conf").read_bytes())
    assert [tunnel.carrier.interfaces for tunnel in config.tunnels] == [("vlan101",), ("vlan102",)]
    assert config.radius.dae.listen == ((ip("192.0.2.1"), 3799), (ip_address("2001:db8::53"), 3800))
    assert config.radius.dae.clients[0] == (ip("192.0.2.10"), "dae 'secret'")
    one, two = config.ipcps
    assert [(str(r.first), str(r.last), r.dynamic) for r in one.ranges + two.ranges] == [
        ("10.1.0.0", "10.1.15.255", True),
        ("10.1.16.0", "10.1.19.255", True),
        ("10.2.0.9", "10.2.0.9", True),
        ("10.2.1.0", "10.2.1.255", False),
    ]
    assert (one.dns, one.nbns) == ((ip("192.0.2.53"), ip("192.0.2.54")), (ip("192.0.2.60"),))
    # Both interfaces have one address, as in an example of OpenBSD's manual.
    assert [interface.address for interface in config.interfaces] == [ip("10.1.0.1")] * 2
    assert [server.port for server in config.realms[0].authentication.servers] == [1812, 11812]
    assert [(bind.tunnel.name, bind.realm.name, bind.interface.name) for bind in config.binds] == [
        ("ACCESS1", "RADIUS", "tun0"),
        ("ACCESS1", "LOCAL", "tun1"),
        ("ACCESS2", "LOCAL", "tun1"),
    ]
    assert "shared" not in repr(config)
    assert "another-secret" not in repr(config)


def test_a_tunnel_without_options(conf: ConfigFile) -> None:
    config = load(DATA / "roadwarrior.conf")
    listens = [tunnel.carrier.listen for tunnel in config.tunnels]
    assert listens == [
        ((ip("203.0.113.100"), 1701),),
        ((IPv6Address("::"), 1701), (IPv6Address("2001:db8::1"), 1702)),
        ((ip("0.0.0.0"), 1723),),
    ]


def test_defaults_of_pppoe(conf: ConfigFile) -> None:
    tunnel = conf.tunnel("")
    assert (tunnel.mru, tunnel.lcp_keepalive, tunnel.mppe) == (1492, True, Mppe.YES)
    # As npppd does, and not as its manual says: no PAP unless it is asked for.
    assert tunnel.authentication_methods == (AuthMethod.MSCHAPV2, AuthMethod.CHAP)
    assert tunnel.carrier == PppoeOptions(interfaces=("eth1",))
    config = conf.load(BASE)
    # As the manual says, and not as npppd does.
    assert config.ipcps[0].allow_user_selected_address


def test_our_own_options(conf: ConfigFile) -> None:
    tunnel = conf.tunnel(
        """
        negotiation-timeout 45
        pppoe-service-name "a" b
        pppoe-service-name c
        pppoe-session-limit 4
        pppoe-padi-limit 100
        pppoe-pado-delay 100
        pppoe-pado-delay 500 from 1000
        pppoe-pado-delay drop from 2000
        listen on interface eth2
        pipex user
        """
    )
    assert (tunnel.negotiation_timeout, tunnel.pipex) == (45, PipexChoice.USER)
    assert tunnel.carrier == PppoeOptions(
        interfaces=("eth1", "eth2"),
        service_names=("a", "b", "c"),
        session_limit=4,
        padi_limit=100,
        pado_delay=(
            PadoDelay(sessions=0, delay=100),
            PadoDelay(sessions=1000, delay=500),
            PadoDelay(sessions=2000, delay=None),
        ),
    )
    assert not conf.load(BASE).duplicate_replace
    assert conf.load(BASE + "set duplicate-session replace\n").duplicate_replace
    assert not conf.load(BASE + "set duplicate-session deny\n").duplicate_replace


def test_an_empty_service_name_is_none(conf: ConfigFile) -> None:
    assert conf.tunnel('pppoe-service-name ""').carrier == PppoeOptions(interfaces=("eth1",))


def test_an_empty_name_is_the_default(conf: ConfigFile) -> None:
    tunnel = conf.tunnel('chap-name ""\npppoe-ac-name ""')
    assert tunnel.chap_name is None
    assert tunnel.carrier == PppoeOptions(interfaces=("eth1",))


def test_no_interval_no_keepalive(conf: ConfigFile) -> None:
    tunnel = conf.tunnel("lcp-keepalive yes\nlcp-keepalive-interval 0")
    assert (tunnel.lcp_keepalive, tunnel.lcp_keepalive_interval) == (False, 300)


def test_zero_is_the_default_of_limits(conf: ConfigFile) -> None:
    assert conf.tunnel("lcp-timeout 0\nlcp-max-configure 0\nipcp-max-terminate 0").lcp == FsmLimits()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pap", ["pap"]),
        ("chap mschapv2", ["chap", "mschapv2"]),
        ("mschapv2 chap pap", ["mschapv2", "chap", "pap"]),
    ],
)
def test_methods_in_the_order_given(conf: ConfigFile, text: str, expected: list[str]) -> None:
    methods = conf.tunnel(f"authentication-method {text}").authentication_methods
    assert [method.value for method in methods] == expected


def test_pap_goes_last(conf: ConfigFile) -> None:
    text = BASE + TUNNEL % "    authentication-method pap mschapv2 mschapv2" + BIND
    config = conf.load(text)
    assert config.tunnels[0].authentication_methods == (AuthMethod.MSCHAPV2, AuthMethod.PAP)
    assert conf.short(config.warnings) == [
        "npppd.conf:10:27: pap is offered last, whatever its place in the list",
        'npppd.conf:10:40: "mschapv2" is given twice',
    ]


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10.0.0.2-10.0.0.254", "10.0.0.2", "10.0.0.254"),
        ("10.0.0.0/24", "10.0.0.0", "10.0.0.255"),
        ('"10.0.0.0/8"', "10.0.0.0", "10.255.255.255"),
        ("10.0.0.4/30", "10.0.0.4", "10.0.0.7"),
        ("10.0.0.0:255.255.254.0", "10.0.0.0", "10.0.1.255"),
        ("10.0.0.7", "10.0.0.7", "10.0.0.7"),
        ("10.0.0.7/32", "10.0.0.7", "10.0.0.7"),
        ("10.0.0.7-10.0.0.7", "10.0.0.7", "10.0.0.7"),
    ],
)
def test_pool_addresses(conf: ConfigFile, text: str, first: str, last: str) -> None:
    config = conf.load(f"ipcp P {{\npool-address {text}\n}}\n")
    assert config.ipcps[0].ranges == (AddressRange(first=ip(first), last=ip(last)),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ["192.0.2.1"]),
        ("192.0.2.1 192.0.2.2", ["192.0.2.1", "192.0.2.2"]),
        # 0.0.0.0 alone keeps a realm from naming any.
        ("0.0.0.0", ["0.0.0.0"]),
        ("0.0.0.0 0.0.0.0", ["0.0.0.0"]),
        ("192.0.2.1 0.0.0.0", ["192.0.2.1"]),
    ],
)
def test_name_servers(conf: ConfigFile, text: str, expected: list[str]) -> None:
    (ipcp,) = conf.load(f"ipcp P {{\npool-address 10.0.0.0/24\ndns-servers {text}\nnbns-servers {text}\n}}\n").ipcps
    assert ipcp.dns == ipcp.nbns == tuple(map(IPv4Address, expected))
    assert not ipcp.dns_from_resolver


def test_keywords_as_names(conf: ConfigFile) -> None:
    # npppd needs quotes for those of its words; files of its that have a word of ours as a name load too.
    config = conf.load(
        """
        tunnel replace protocol pppoe {
            listen on interface drop
            pppoe-service-name include user ebpf
            chap-name 1234
        }
        tunnel protocol protocol pppoe {
            listen on interface from
            chap-name set
        }
        ipcp address { pool-address 10.0.0.0/24 }
        interface interface address 10.1.0.1 ipcp address
        authentication include type local { users-file users }
        bind tunnel from replace authenticated by include to interface
        bind tunnel from protocol authenticated by include to interface
        """
    )
    assert [(tunnel.name, tunnel.chap_name) for tunnel in config.tunnels] == [("replace", "1234"), ("protocol", "set")]
    assert [bind.interface.name for bind in config.binds] == ["interface", "interface"]


def test_names_are_not_cut(conf: ConfigFile) -> None:
    name = "A" * 200
    assert conf.load(f"tunnel {name} protocol pppoe\n").tunnels[0].name == name


def test_places(conf: ConfigFile) -> None:
    config = conf.load(BASE + TUNNEL % "" + BIND)
    places = [config.ipcps[0].where, config.interfaces[0].where, config.realms[0].where, config.tunnels[0].where]
    file = str(conf.path)
    assert places == [Where(file, 1, 6), Where(file, 4, 11), Where(file, 5, 16), Where(file, 8, 8)]


def test_empty_file(conf: ConfigFile) -> None:
    config = conf.load("")
    assert (config.tunnels, config.warnings, config.radius.nas_id) == ((), (), "npppd")


# include


def test_include(conf: ConfigFile) -> None:
    conf.write("parts/pool.conf", "ipcp POOL {\n    pool-address 10.64.0.2-10.64.0.254\n}\n")
    conf.write("parts/realm.conf", 'authentication LOCAL type local {\n    users-file "../users"\n}\n')
    conf.write("ppp.inc", "mru 1480\nchap-name included")
    config = conf.load(
        """
        include "parts/pool.conf"
        include parts/realm.conf
        interface tun0 address 10.64.0.1 ipcp POOL
        tunnel ACCESS protocol pppoe {
            listen on interface eth1
            include "ppp.inc"
            mppe no
        }
        """
        + BIND
    )
    assert conf.short(config.warnings) == []
    # Relative to the file that names it.
    assert config.realms[0].users_file == conf.folder / "parts" / ".." / "users"
    assert config.ipcps[0].where == Where(str(conf.folder / "parts/pool.conf"), 1, 6)
    assert (config.tunnels[0].mru, config.tunnels[0].chap_name, config.tunnels[0].mppe) == (1480, "included", Mppe.NO)


def test_include_of_a_pattern_in_the_order_of_names(conf: ConfigFile) -> None:
    for name in ("20-b", "10-z", "30-a"):
        conf.write(f"conf.d/{name}.conf", f"tunnel {name} protocol pppoe\n")
    conf.write("conf.d/README", "not for us")
    config = conf.load('include "conf.d/*.conf"\ninclude "none.d/*.conf"\n')
    assert [tunnel.name for tunnel in config.tunnels] == ["10-z", "20-b", "30-a"]


def test_include_from_an_included_file(conf: ConfigFile) -> None:
    conf.write("a/b/inner.conf", "tunnel INNER protocol l2tp\n")
    conf.write("a/outer.conf", 'include "b/*.conf"\n')
    assert [tunnel.name for tunnel in conf.load("include a/outer.conf\n").tunnels] == ["INNER"]


def test_include_twice_is_no_loop(conf: ConfigFile) -> None:
    conf.write("ppp.inc", "lcp-timeout 7\n")
    text = "".join(f"tunnel {name} protocol pppoe {{\ninclude ppp.inc\n}}\n" for name in "AB")
    assert [tunnel.lcp.timeout for tunnel in conf.load(text).tunnels] == [7, 7]


@pytest.mark.parametrize(
    ("includes", "expected"),
    [
        ({"npppd.conf": "include npppd.conf"}, 'npppd.conf:1:9: "npppd.conf" includes itself'),
        ({"npppd.conf": "include a", "a": "# a\n include b", "b": "include a"}, 'b:1:9: "a" includes itself'),
        ({"npppd.conf": "include a", "a": "include ./x/../npppd.conf"}, 'a:1:9: "./x/../npppd.conf" includes itself'),
        ({"npppd.conf": "include none"}, 'npppd.conf:1:9: cannot read "none": No such file or directory'),
        ({"npppd.conf": "include ."}, 'npppd.conf:1:9: cannot read ".": Is a directory'),
        ({"npppd.conf": "include"}, "npppd.conf:1:8: expected the name of a file, found the end of the line"),
        ({"npppd.conf": "include a b"}, 'npppd.conf:1:11: expected the end of the line, found "b"'),
        ({"npppd.conf": "include a", "a": "x y"}, 'a:1:1: expected a statement, found "x"; valid are'),
        ({"npppd.conf": "tunnel A protocol l2tp {\ninclude a\n}", "a": "}"}, 'a:1:1: "}" without a "{" before it'),
        ({"npppd.conf": "include a", "a": "ipcp A {\n"}, 'a:1:8: the "{" is never closed'),
    ],
)
def test_bad_includes(conf: ConfigFile, includes: dict[str, str], expected: str) -> None:
    (conf.folder / "x").mkdir()
    for name, text in includes.items():
        conf.write(name, text)
    (error,) = conf.errors(includes["npppd.conf"])
    assert error.startswith(expected)


def test_include_depth(conf: ConfigFile) -> None:
    for number in range(20):
        conf.write(str(number), f"include {number + 1}\n")
    assert conf.errors("include 0\n") == ["14:1:9: files include each other more than 16 deep"]


# PPTP and MPPE.


def pptp(conf: ConfigFile, options: str) -> Tunnel:
    config = conf.load(BASE + f"tunnel ACCESS protocol pptp {{\n{options}\n}}\n" + BIND)
    assert conf.short(config.warnings) == []
    return config.tunnels[0]


def test_pptp_defaults(conf: ConfigFile) -> None:
    tunnel = pptp(conf, "")
    assert tunnel.carrier == PptpOptions(listen=((ip("0.0.0.0"), 1723),))
    assert (tunnel.mppe, tunnel.mppe_key_lengths, tunnel.mppe_key_states) == (
        Mppe.REQUIRED, (128, 56, 40), ("stateless", "stateful")
    )  # fmt: skip
    assert tunnel.authentication_methods == (AuthMethod.MSCHAPV2, AuthMethod.CHAP)
    assert tunnel.ccp == FsmLimits()


def test_pptp_options(conf: ConfigFile) -> None:
    tunnel = pptp(
        conf,
        """
        listen on 10.0.0.1
        listen on 10.0.0.2 port 1724
        pptp-session-limit 9
        pptp-half-open-limit 1
        pptp-peer-limit 0
        pptp-data-reorder 64
        pptp-send-window yes
        pptp-echo-interval 0
        pptp-echo-timeout 0
        """,
    )
    assert tunnel.carrier == PptpOptions(
        listen=((ip("10.0.0.1"), 1723), (ip("10.0.0.2"), 1724)),
        session_limit=9,
        half_open_limit=1,
        peer_limit=0,
        data_reorder=64,
        send_window=True,
    )


@pytest.mark.parametrize(
    ("lengths", "expected"), [("40 56 128", (128, 56, 40)), ("40 128", (128, 40)), ("56", (56,)), ("56 40", (56, 40))]
)
def test_key_lengths_are_the_strongest_first(conf: ConfigFile, lengths: str, expected: tuple[int, ...]) -> None:
    assert conf.tunnel(f"mppe-key-length {lengths}").mppe_key_lengths == expected


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("stateful stateless", ("stateless", "stateful")),
        ("stateless stateful", ("stateless", "stateful")),
        ("stateful", ("stateful",)),
        ("stateless", ("stateless",)),
    ],
)
def test_stateless_comes_first(conf: ConfigFile, states: str, expected: tuple[str, ...]) -> None:
    assert conf.tunnel(f"mppe-key-state {states}").mppe_key_states == expected


def test_mppe_of_every_protocol(conf: ConfigFile) -> None:
    for protocol in ("pppoe", "l2tp", "pptp"):
        for word in ("no", "yes", "required"):
            text = f"tunnel A protocol {protocol} {{\nmppe {word}\n}}\n"
            assert conf.load(text).tunnels[0].mppe is Mppe(word)


# L2TP, beyond what npppd has.


def l2tp(conf: ConfigFile, options: str) -> L2tpOptions:
    config = conf.load(BASE + f"tunnel ACCESS protocol l2tp {{\n{options}\n}}\n" + BIND)
    assert conf.short(config.warnings) == []
    carrier = config.tunnels[0].carrier
    assert isinstance(carrier, L2tpOptions)
    return carrier


def test_l2tp_defaults(conf: ConfigFile) -> None:
    assert l2tp(conf, "") == L2tpOptions(listen=((ip("0.0.0.0"), 1701),))


def test_l2tp_options(conf: ConfigFile) -> None:
    options = l2tp(
        conf,
        """
        l2tp-data-reorder 64
        l2tp-udp-checksum yes
        l2tp-secret "a b"
        l2tp-hidden-avps yes
        l2tp-session-limit 9
        l2tp-half-open-limit 65535
        l2tp-half-open-peer-limit 1
        l2tp-sccrq-limit 100
        l2tp-peer-rebind address
        l2tp-hello-interval 0
        l2tp-hello-timeout 0
        """,
    )
    assert options == L2tpOptions(
        listen=((ip("0.0.0.0"), 1701),),
        data_reorder=64,
        udp_checksum=True,
        secrets=((None, "a b"),),
        hidden_avps=True,
        session_limit=9,
        half_open_limit=65535,
        half_open_peer_limit=1,
        sccrq_limit=100,
        peer_rebind=Rebind.ADDRESS,
    )


def test_tunnels_may_share_an_address_but_no_port(conf: ConfigFile) -> None:
    text = "tunnel A protocol l2tp {\nlisten on 10.0.0.1\nlisten on ::\n}\n"
    text += "tunnel B protocol l2tp {\nlisten on 10.0.0.1 port 1702\nlisten on 0.0.0.0\n}\n"
    assert len(conf.load(text).tunnels) == 2


@pytest.mark.parametrize(
    ("host", "secret"),
    [
        ("10.1.2.3", "host"),
        ("10.1.2.4", "net"),
        ("10.2.0.1", "any"),
        ("2001:db8::1", "six"),
        ("2001:db9::1", "any"),
        ("::ffff:10.1.2.3", "any"),
    ],
)
def test_the_secret_of_the_longest_prefix(conf: ConfigFile, host: str, secret: str) -> None:
    options = l2tp(
        conf,
        "l2tp-secret net from 10.1.0.0/16\nl2tp-secret any\nl2tp-secret host from 10.1.2.3\n"
        "l2tp-secret six from 2001:db8::/32",
    )
    assert options.secret_for(host) == secret
    assert "secret" not in repr(options)
    # Whatever their order.
    assert replace(options, secrets=options.secrets[::-1]).secret_for(host) == secret


def test_a_secret_for_none_but_these(conf: ConfigFile) -> None:
    options = l2tp(conf, "l2tp-secret x from 10.0.0.0/8\nl2tp-secret any6 from ::/0")
    assert options.secret_for("11.0.0.1") is None
    assert options.secret_for("10.255.255.255") == "x"
    assert options.secret_for("::1") == "any6"
    assert L2tpOptions().secret_for("10.0.0.1") is None


def test_of_two_secrets_for_one_network_the_last_one_counts(conf: ConfigFile) -> None:
    text = "tunnel A protocol l2tp {\nl2tp-secret a from ::1\nl2tp-secret b from ::1/128\n}\n"
    carrier = conf.load(text).tunnels[0].carrier
    assert isinstance(carrier, L2tpOptions)
    assert carrier.secret_for("::1") == "b"
