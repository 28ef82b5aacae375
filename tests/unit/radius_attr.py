"""Logins by RADIUS, and what servers answer to them."""

from __future__ import annotations

from hashlib import md5
from pathlib import Path
from typing import Any

from npppy.aaa.base import Pap, Proof, Request
from npppy.aaa.radius.packet import Code, Pair, Received, encode_reply, encode_request, parse, verify_reply
from npppy.config.model import L2tpOptions, Mppe, PppoeOptions, PptpOptions, Protocol, Realm, Tunnel, Where
from npppy.config.users import UsersFile
from npppy.port import Port
from npppy.ppp.link import Caller, Link, TunnelEnds

HERE = Where("npppd.conf", 1, 1)
SECRET = b"tell nobody"


def _tunnel(name: str, protocol: Protocol, carrier: PppoeOptions | L2tpOptions | PptpOptions, mru: int) -> Tunnel:
    return Tunnel(
        name=name, protocol=protocol, where=HERE, carrier=carrier, mru=mru, lcp_keepalive=False, mppe=Mppe.YES
    )


PPPOE = _tunnel("ETHER", Protocol.PPPOE, PppoeOptions(), 1492)
L2TP = _tunnel("LNS", Protocol.L2TP, L2tpOptions(), 1360)
PPTP = _tunnel("VPN", Protocol.PPTP, PptpOptions(), 1400)
REALM = Realm(name="ISP", where=HERE, type="radius")
MAC = bytes.fromhex("020000000001")
PORT = Port("eth0", 100, 7)


class Way:
    """A tunnel."""

    def __init__(self, ends: TunnelEnds) -> None:
        self.ends = ends


LAC = Way(TunnelEnds(3, "192.0.2.1", "198.51.100.1", "lac", "lns", "L2TP-CTRL-7"))


def ethernet(port: Port = PORT, **facts: Any) -> Link:
    caller = Caller(text=MAC.hex(":"), mac=MAC, port=port, nas="02:ff:ff:ff:ff:ff", **facts)
    return Link(tunnel=PPPOE, caller=caller, max_mru=1492)


def tunnelled(way: Way = LAC, **facts: Any) -> Link:
    return Link(tunnel=L2TP, caller=Caller(text="192.0.2.1:1701", **facts), max_mru=65000, over=way, call_id=9)


def request(proof: Proof | None = None, link: Link | None = None, **facts: Any) -> Request:
    return Request(
        **{
            "session": 5,
            "acct_session_id": "0123456700000005",
            "realm": REALM,
            "username": "DOM\\alice@isp",
            "account": "alice",
            "user": "alice@isp",
            "proof": proof or Pap(b"wonderland"),
            "link": link or ethernet(),
            **facts,
        }
    )


def reply(code: Code, *pairs: Pair) -> Received:
    """An answer that has been found good; keys are ciphered by :func:`salted`."""
    asked = parse(encode_request(Code.ACCESS_REQUEST, 1, bytes(range(16)), [], SECRET))
    answer = parse(encode_reply(asked, code, pairs, SECRET))
    assert verify_reply(answer, asked.authenticator, SECRET, require=True) == ""
    return answer


def salted(key: bytes) -> bytes:
    """RFC 2548 section 2.4.2."""
    salt = b"\x80\x01"
    plain = bytes((len(key),)) + key
    plain += bytes(-len(plain) % 16)
    value, last = salt, bytes(range(16)) + salt
    for at in range(0, len(plain), 16):
        pad = md5(SECRET + last).digest()
        last = bytes(a ^ b for a, b in zip(plain[at : at + 16], pad, strict=True))
        value += last
    return value


def users_file(path: Path, text: str) -> UsersFile:
    path.write_text(text)
    users = UsersFile(path)
    assert users.refresh() == []
    return users
