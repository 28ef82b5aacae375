"""What requests say of a session."""

from __future__ import annotations

from typing import Any

import pytest

from npppy.aaa.base import Chap, Eap, MsChapV1, MsChapV2, Pap
from npppy.aaa.radius.packet import Code, encode_request, parse
from npppy.aaa.radius.request import access_pairs, called_station_id, calling_station_id, nas_port_id, session_pairs
from npppy.config.model import Radius
from npppy.config.options_radius import PORT_ID_NAMES
from npppy.port import Port
from npppy.ppp.link import Caller, Link, TunnelEnds

from .radius_attr import L2TP, MAC, PPTP, SECRET, Way, ethernet, request, tunnelled

RADIUS = Radius(nas_id="bras-1")


def said(*args: Any, **facts: Any) -> dict[str, Any]:
    """The attributes of a login's request, each of which is there once."""
    pairs = access_pairs(request(*args, **facts), RADIUS)
    # It can be written.
    parse(encode_request(Code.ACCESS_REQUEST, 1, bytes(16), pairs, SECRET))
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_pppoe() -> None:
    link = ethernet(service="gold", circuit_id=b"olt1/1/2", remote_id=b"\xff\x01", tx_speed=100_000, rx_speed=20_000)
    assert said(link=link) == {
        "User-Name": "alice@isp",
        "User-Password": b"wonderland",
        "Service-Type": 2,
        "Framed-Protocol": 1,
        "NAS-Identifier": "bras-1",
        "NAS-Port": 5,
        "NAS-Port-Id": "eth0.100.7",
        "NAS-Port-Type": 34,
        "Acct-Session-Id": "0123456700000005",
        "Calling-Station-Id": "02:00:00:00:00:01",
        "Called-Station-Id": "02:ff:ff:ff:ff:ff",
        "Connect-Info": "100000/20000",
        "ADSL-Agent-Circuit-Id": b"olt1/1/2",
        "ADSL-Agent-Remote-Id": b"\xff\x01",
    }


@pytest.mark.parametrize(("port", "kind"), [(Port("eth0"), 32), (Port("eth0", 5), 33), (Port("eth0", 5, 6), 34)])
def test_port_type(port: Port, kind: int) -> None:
    assert said(link=ethernet(port))["NAS-Port-Type"] == kind


def test_l2tp() -> None:
    found = said(link=tunnelled(calling_number="5551", called_number="5559", tx_speed=64_000, rx_speed=64_000))
    expected = {
        "NAS-Port-Id": "LNS:192.0.2.1",
        "NAS-Port-Type": 5,
        "Calling-Station-Id": "5551",
        "Called-Station-Id": "5559",
        "Connect-Info": "64000",
        "Tunnel-Type": 3,
        "Tunnel-Medium-Type": 1,
        "Tunnel-Client-Endpoint": "192.0.2.1",
        "Tunnel-Server-Endpoint": "198.51.100.1",
        "Tunnel-Client-Auth-Id": "lac",
        "Tunnel-Server-Auth-Id": "lns",
        "Tunnel-Assignment-Id": "L2TP-CALL-9",
    }
    assert expected.items() <= found.items()
    # RFC 2867 section 5: for accounting.
    assert "Acct-Tunnel-Connection" not in found
    pairs = dict(session_pairs(tunnelled(), 5, "0123456700000005", "alice", RADIUS))
    assert pairs["Acct-Tunnel-Connection"] == "L2TP-CTRL-7"
    assert pairs["User-Name"] == "alice"
    assert "Acct-Tunnel-Connection" not in dict(session_pairs(ethernet(), 5, "1", "alice", RADIUS))


def test_pptp_and_ipv6() -> None:
    way = Way(TunnelEnds(1, "192.0.2.1", "198.51.100.1", name="PPTP-CTRL-3"))
    link = Link(tunnel=PPTP, caller=Caller(text="192.0.2.1:1723"), max_mru=65000, over=way, call_id=4)
    found = said(link=link)
    # Nobody has a number, nor a name.
    assert found["Calling-Station-Id"] == "192.0.2.1"
    assert found["Called-Station-Id"] == "198.51.100.1"
    assert found["Tunnel-Type"] == 1
    assert found["Tunnel-Assignment-Id"] == "PPTP-CALL-4"
    assert "Tunnel-Client-Auth-Id" not in found
    assert "Connect-Info" not in found
    six = said(link=tunnelled(Way(TunnelEnds(3, "2001:db8::1", "2001:db8::2"))))
    assert six["Tunnel-Medium-Type"] == 2
    assert six["NAS-Port-Id"] == "LNS:2001:db8::1"


def test_proofs() -> None:
    assert said(Pap(b""))["User-Password"] == b""
    chap = said(Chap(7, b"c" * 20, b"r" * 16))
    assert chap["CHAP-Password"] == b"\7" + b"r" * 16
    assert chap["CHAP-Challenge"] == b"c" * 20
    assert "User-Password" not in chap
    two = said(MsChapV2(7, b"c" * 16, b"p" * 16, b"r" * 24))
    assert two["MS-CHAP-Challenge"] == b"c" * 16
    assert two["MS-CHAP2-Response"] == b"\7\0" + b"p" * 16 + bytes(8) + b"r" * 24
    one = said(MsChapV1(7, b"c" * 8, b"r" * 24))
    assert one["MS-CHAP-Challenge"] == b"c" * 8
    assert one["MS-CHAP-Response"] == b"\7\1" + bytes(24) + b"r" * 24


def test_eap() -> None:
    packet = b"\2\1\0\x0e\1DOM\\alice@" + b"x" * 500
    found = said(Eap(packet), state=b"handle")
    # RFC 3579 section 2.1: the Identity as it is.
    assert found["User-Name"] == "DOM\\alice@isp"
    assert found["EAP-Message"] == packet
    assert found["State"] == b"handle"
    # Less what FreeRADIUS adds.
    assert found["Framed-MTU"] == 1492 - 10
    assert said(Eap(packet), link=tunnelled())["Framed-MTU"] == 1360 - 10
    assert said(Eap(packet), mtu=600)["Framed-MTU"] == 600 - 10
    assert "Framed-MTU" not in said()


def test_again() -> None:
    found = said(state=b"handle", address=0x0A000001)
    assert (found["State"], found["Framed-IP-Address"]) == (b"handle", 0x0A000001)


def test_template() -> None:
    link = ethernet(service="gold", circuit_id=b"olt1", remote_id=b"cpe", calling_number="1", called_number="2")
    assert nas_port_id(link, 5, "{tunnel}|{protocol}|{interface}|{svlan}|{cvlan}|{mac}|{peer}") == (
        "ETHER|pppoe|eth0|100|7|02:00:00:00:00:01|02:00:00:00:00:01"
    )
    assert nas_port_id(link, 5, "{calling}{called} {service}/{circuit}/{remote}#{id}") == "12 gold/olt1/cpe#5"
    # A fact is no template, and those that a carrier has not are nothing.
    assert nas_port_id(ethernet(Port("eth0"), circuit_id=b"{id}"), 5, "{svlan}.{cvlan}.{circuit}") == "..{id}"
    assert nas_port_id(tunnelled(), 5, "{interface}{mac}{svlan}{peer}") == "192.0.2.1"


@pytest.mark.parametrize("name", PORT_ID_NAMES)
def test_template_names(name: str) -> None:
    """All that the configuration takes can be said of all carriers."""
    for link in (ethernet(), tunnelled(), Link(tunnel=L2TP, caller=Caller(text="x"), max_mru=1400)):
        assert "{" not in nas_port_id(link, 5, f"a{{{name}}}b")


def test_long_and_strange() -> None:
    """What peers say of themselves always fits, and is told as they said it."""
    way = Way(TunnelEnds(3, "192.0.2.1", "198.51.100.1", "\udcff" * 300, "é" * 300, "L2TP-CTRL-7"))
    found = said(link=tunnelled(way, calling_number="é" * 200, called_number="\udcfe" * 260))
    assert found["Called-Station-Id"] == "\udcfe" * 253
    assert found["Calling-Station-Id"].encode("utf-8", "surrogateescape") == ("é" * 127).encode()[:253]
    assert found["Tunnel-Client-Auth-Id"] == "\udcff" * 252
    link = ethernet(circuit_id=b"\xff" * 200, remote_id=b"\xfe" * 200)
    assert nas_port_id(link, 5, "{circuit}{remote}") == "\udcff" * 200 + "\udcfe" * 53
    said(link=link)


def test_stations() -> None:
    """Dynamic authorization finds sessions by what requests have said."""
    for link in (ethernet(), tunnelled(), ethernet(calling_number="1", called_number="2")):
        pairs = dict(access_pairs(request(link=link), RADIUS))
        assert pairs["Calling-Station-Id"] == calling_station_id(link)
        assert pairs["Called-Station-Id"] == called_station_id(link)
        assert pairs["NAS-Port-Id"] == nas_port_id(link, 5, "")
    assert calling_station_id(ethernet()) == MAC.hex(":")
