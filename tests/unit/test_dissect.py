"""Frames of a session on one line, as npppyctl capture prints them."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.control.dissect import summary
from npppy.pppoe.codec import Code, discovery_frame, session_frame
from npppy.pptp import gre
from tests.unit.ippackets import ip, tcp, udp
from tests.unit.pipex_fake import AC, HOST, IP

SID = 0x1234


def frame(ppp: bytes, padding: bytes = b"") -> bytes:
    return session_frame(HOST, AC, SID, ppp) + padding


def control(protocol: int, code: int, data: bytes = b"") -> bytes:
    return frame(struct.pack(">HBBH", protocol, code, 7, 4 + len(data)) + data)


def ip6(following: int, data: bytes) -> bytes:
    addresses = bytes.fromhex("20010db800000000000000000000000120010db8000000000000000000000002")
    return frame(b"\x00\x57" + struct.pack(">IHBB", 6 << 28, len(data), following, 64) + addresses + data)


def l2tp(header: str, data: bytes = b"", *, version: int = 4) -> bytes:
    """*header* is in hexadecimal digits."""
    message = bytes.fromhex(header) + data
    datagram = struct.pack(">HHHH", 1701, 40001, 8 + len(message), 0) + message
    if version == 4:
        return bytes(12) + b"\x08\x00" + ip("192.0.2.1", "192.0.2.2", datagram)
    return bytes(12) + b"\x86\xdd" + ip6(17, datagram)[22:]


def pptp(packet: bytes) -> bytes:
    return bytes(12) + b"\x08\x00" + ip("192.0.2.1", "192.0.2.2", packet, protocol=47)


LCP, PAP, CHAP, EAP, IPCP, CCP = 0xC021, 0xC023, 0xC223, 0xC227, 0x8021, 0x80FD
FLOW = "10.0.0.2", "9.9.9.9"
ENDS = "10.0.0.2 > 9.9.9.9"
PORTS = "10.0.0.2:40000 > 9.9.9.9:40001"
ENDS6 = "2001:db8::1 > 2001:db8::2"
MPPE = "MPPE", "flags=AD count=7, 1000 octets seq=7 ack=6"
FIRST = bytearray(udp(*FLOW, bytes(8)))
FIRST[6] = 0x20

FRAMES = [
    (
        control(LCP, 1, b"\1\4\5\xd4\3\4\xc0\x23\5\6\x12\x34\x56\x78"),
        "LCP",
        "ConfReq id=7 mru=1492 auth=pap magic=0x12345678",
    ),
    (control(LCP, 2, b"\3\5\xc2\x23\5"), "LCP", "ConfAck id=7 auth=chap-md5"),
    (control(LCP, 3, b"\3\5\xc2\x23\x81\2\6\0\0\0\0"), "LCP", "ConfNak id=7 auth=mschapv2 accm=0x00000000"),
    (control(LCP, 4, b"\7\2\x0d\3\6"), "LCP", "ConfRej id=7 option7 option13=0x06"),
    (control(LCP, 1, b"\3\4\xc2\x27"), "LCP", "ConfReq id=7 auth=eap"),
    (control(LCP, 1, b"\3\4\xc0\x27"), "LCP", "ConfReq id=7 auth=c027"),
    (control(EAP, 1, b"\1"), "EAP", "Request id=7 identity"),
    (control(EAP, 2, b"\1al\nice"), "EAP", 'Response id=7 identity "al\\x0aice"'),
    (control(EAP, 1, b"\2patience"), "EAP", 'Request id=7 notification "patience"'),
    (control(EAP, 2, b"\6secret"), "EAP", "Response id=7 gtc, 6 octets"),
    (control(EAP, 2, b"\xfe"), "EAP", "Response id=7 type 254"),
    (control(EAP, 2), "EAP", "malformed"),
    (control(EAP, 3), "EAP", "Success id=7"),
    (control(EAP, 4), "EAP", "Failure id=7"),
    (control(EAP, 9), "EAP", "code 9 id=7"),
    (control(LCP, 5, b"bye\x1b"), "LCP", 'TermReq id=7 "bye\\x1b"'),
    (control(LCP, 5), "LCP", "TermReq id=7"),
    (control(LCP, 6), "LCP", "TermAck id=7"),
    (control(LCP, 8, b"\x80\x57\1\1\0\4"), "LCP", "ProtRej id=7 protocol=0x8057"),
    (control(LCP, 9, b"\xde\xad\xbe\xef"), "LCP", "EchoReq id=7 magic=0xdeadbeef"),
    (control(LCP, 10, b"\0\0\0\0more"), "LCP", "EchoRep id=7 magic=0x00000000"),
    (control(LCP, 77), "LCP", "code 77 id=7"),
    (
        control(IPCP, 1, b"\3\6\x0a\0\0\2\x81\6\x09\x09\x09\x09\x83\6\0\0\0\0"),
        "IPCP",
        "ConfReq id=7 address=10.0.0.2 dns1=9.9.9.9 dns2=0.0.0.0",
    ),
    (control(IPCP, 4, b"\2\6\0\x2d\x0f\1"), "IPCP", "ConfRej id=7 option2=0x002d0f01"),
    (control(IPCP, 9), "IPCP", "code 9 id=7"),
    (control(0x8057, 1, b"\1\x0a\0\0\0\0\0\0\0\1"), "IPV6CP", "ConfReq id=7 option1=0x0000000000000001"),
    (control(CCP, 1, b"\x12\6\1\0\0\x40"), "CCP", "ConfReq id=7 mppe=0x01000040"),
    (control(CCP, 14), "CCP", "ResetReq id=7"),
    (control(CCP, 15), "CCP", "ResetAck id=7"),
    (control(CCP, 9), "CCP", "code 9 id=7"),
    (control(IPCP, 14), "IPCP", "code 14 id=7"),
    (frame(b"\x00\xfd\x9a\xbc" + bytes(30)), "MPPE", "flags=AD count=2748, 30 octets"),
    (frame(b"\xfd\x10\x01" + bytes(30)), "MPPE", "flags=D count=1, 30 octets"),
    (frame(b"\x00\xfd\x0f\xff" + bytes(30)), "MPPE", "flags=none count=4095, 30 octets"),
    (control(PAP, 1, b"\5alice\x0awonderland"), "PAP", 'AuthReq id=7 user="alice"'),
    (control(PAP, 2, b"\2ok"), "PAP", 'AuthAck id=7 "ok"'),
    (control(PAP, 3, b"\0"), "PAP", 'AuthNak id=7 ""'),
    (control(CHAP, 1, b"\4\1\2\3\4bng"), "CHAP", 'Challenge id=7 name="bng"'),
    (control(CHAP, 2, b'\4\1\2\3\4al"ice'), "CHAP", 'Response id=7 name="al\\"ice"'),
    (control(CHAP, 4, b"E=691 R=0"), "CHAP", 'Failure id=7 "E=691 R=0"'),
    (control(CHAP, 5), "CHAP", 'code 5 id=7 ""'),
    (frame(IP + udp(*FLOW, b"abc", ports=(1024, 53))), "IP", "10.0.0.2:1024 > 9.9.9.9:53 UDP, 3 octets"),
    (frame(b"\x21" + udp(*FLOW)), "IP", f"{PORTS} UDP, 0 octets"),
    (frame(IP + ip(*FLOW, bytes(8), protocol=1)), "IP", f"{ENDS} ICMP echo reply, 8 octets"),
    (frame(IP + ip(*FLOW, b"\3\4" + bytes(6), protocol=1)), "IP", f"{ENDS} ICMP unreachable code 4, 8 octets"),
    (frame(IP + ip(*FLOW, b"\x63\0", protocol=1)), "IP", f"{ENDS} ICMP type 99, 2 octets"),
    (frame(IP + ip(*FLOW, bytes(9), protocol=47)), "IP", f"{ENDS} protocol 47, 9 octets"),
    (frame(IP + ip(*FLOW, bytes(8), protocol=47, options=bytes(4))), "IP", f"{ENDS} protocol 47, 8 octets"),
    (frame(IP + ip(*FLOW, bytes(8), flags=0x2002)), "IP", f"{ENDS} protocol 17, fragment at 16"),
    (frame(IP + FIRST), "IP", f"{PORTS} UDP, 8 octets, first fragment"),
    (
        ip6(17, struct.pack(">HHHH", 546, 547, 12, 0) + bytes(4)),
        "IPV6",
        "2001:db8::1.546 > 2001:db8::2.547 UDP, 4 octets",
    ),
    (ip6(58, b"\x80\0" + bytes(6)), "IPV6", f"{ENDS6} ICMP echo request, 8 octets"),
    (ip6(58, b"\1\3" + bytes(6)), "IPV6", f"{ENDS6} ICMP unreachable code 3, 8 octets"),
    (ip6(59, b""), "IPV6", f"{ENDS6} protocol 59, 0 octets"),
    (frame(b"\x80\xef\1\1\0\4"), "0x80ef", ""),
    (discovery_frame(HOST, AC, Code.PADT, SID, b""), "PADT", "session 4660"),
    (discovery_frame(HOST, AC, 0x42, SID, b""), "0x42", "session 4660"),
    (HOST + AC + b"\x08\6" + bytes(40), "0x0806", ""),
    (l2tp("0002 0001 0002", b"\xff\3\xc0\x21\x09\7\0\x08abcd"), "LCP", "EchoReq id=7 magic=0x61626364"),
    (l2tp("0002 0001 0002", b"\x21" + udp(*FLOW)), "IP", f"{PORTS} UDP, 0 octets"),
    (
        l2tp("4802 002f 0001 0002 fffe 0000", b"\xff\3" + IP + udp(*FLOW, b"abc") + bytes(9)),
        "IP",
        f"{PORTS} UDP, 3 octets ns=65534",
    ),
    (
        l2tp("4a02 0034 0001 0002 0007 0000 0003 000000", b"\xff\3" + IP + udp(*FLOW, b"abc"), version=6),
        "IP",
        f"{PORTS} UDP, 3 octets ns=7",
    ),
    (l2tp("c802 0014 0001 0002 0003 0004 8008 0000 0000 000e"), "L2TP", "tunnel 1 session 2 ns=3 nr=4"),
    (l2tp("0002 0001 0002", b"\xff\3\0\xfd\x90\7" + bytes(9)), "MPPE", "flags=AD count=7, 9 octets"),
    (l2tp("0003 0001 0002"), "UDP", "6 octets"),
    (pptp(gre.encode(9, 0, -1, b"\xc0\x21\x09\7\0\x08abcd")), "LCP", "EchoReq id=7 magic=0x61626364 seq=0"),
    (pptp(gre.encode(9, 7, 0xFFFFFFFF, IP + udp(*FLOW, b"abc"))), "IP", f"{PORTS} UDP, 3 octets seq=7 ack=4294967295"),
    (pptp(gre.encode(9, 7, 6, b"\0\xfd\x90\7" + bytes(9))), "MPPE", "flags=AD count=7, 9 octets seq=7 ack=6"),
    (pptp(bytes.fromhex("3001 880b 001d 0009 00000007 21") + udp(*FLOW)), "IP", f"{PORTS} UDP, 0 octets seq=7"),
    (pptp(gre.encode(9, 7, 6, IP + udp(*FLOW)) + bytes(9)), "IP", f"{PORTS} UDP, 0 octets seq=7 ack=6"),
    (pptp(gre.acknowledgment(9, 6)), "GRE", "call 9 ack=6"),
    (pptp(bytes.fromhex("2001 880b 0000 0009")), "GRE", "call 9"),
    (pptp(bytes.fromhex("0000 0800") + bytes(20)), "GRE", "protocol 0x0800"),
    (pptp(bytes.fromhex("2000 880b 0004 0009 ff03c021")), "GRE", "protocol 0x880b"),
    (pptp(bytes.fromhex("3001 6558") + bytes(20)), "GRE", "protocol 0x6558"),
    (bytes(12) + b"\x08\x00" + ip(*FLOW, bytes(8), protocol=50), "IP", "protocol 50"),
    (bytes(12) + b"\x08\x00" + ip(*FLOW, bytes(8), flags=0x2002), "IP", "protocol 17, fragment at 16"),
]


@pytest.mark.parametrize(("data", "protocol", "text"), FRAMES)
def test_frames(data: bytes, protocol: str, text: str) -> None:
    assert summary(data, len(data)) == (protocol, text)
    tagged = data[:12] + bytes.fromhex("88a8006481000007") + data[12:]
    assert summary(tagged, len(tagged)) == (protocol, text)
    if data[12:14] == b"\x88\x64":
        assert summary(data + bytes(20), len(data) + 20) == (protocol, text), "padding is no part of it"


@pytest.mark.parametrize(("flags", "shown"), [(0x02, "S"), (0x12, "SA"), (0x11, "FA"), (0x04, "R"), (0, "none")])
def test_tcp(flags: int, shown: str) -> None:
    packet = bytearray(tcp(*FLOW, options=b"\2\4\5\xb4"))
    packet[33] = flags
    data = frame(IP + bytes(packet) + b"")
    ports = struct.unpack_from(">HH", packet, 20)
    expected = f"10.0.0.2:{ports[0]} > 9.9.9.9:{ports[1]} TCP {shown}, "
    assert summary(data, len(data))[1].startswith(expected)


def test_no_password() -> None:
    data = control(PAP, 1, b"\5alice\x0awonderland")
    assert "wonderland" not in repr(summary(data, len(data)))


@pytest.mark.parametrize(
    ("data", "length", "said"),
    [
        (b"", 0, ("?", "malformed")),
        (b"", 60, ("?", "truncated")),
        (frame(b"")[:19], 19, ("?", "malformed")),
        (frame(b"")[:19], 60, ("?", "truncated")),
        (frame(b""), 20, ("?", "malformed")),
        (control(LCP, 1, b"\1\4\5\xd4")[:-1], 30, ("LCP", "truncated")),
        (control(LCP, 1, b"\1\4\5\xd4")[:-1], 29, ("LCP", "malformed")),
        (control(LCP, 1, b"\1\x09\5\xd4"), 30, ("LCP", "malformed")),
        (control(LCP, 1, b"\1\1"), 28, ("LCP", "malformed")),
        (frame(b"\xc0\x21\1"), 23, ("LCP", "malformed")),
        # The rest of a long packet is not needed.
        (frame(IP + udp(*FLOW, bytes(1000)))[:60], 1050, ("IP", f"{PORTS} UDP, 1000 octets")),
        (frame(IP + udp(*FLOW, bytes(1000)))[:44], 1050, ("IP", "truncated")),
        (frame(IP + b"\x41" + bytes(40)), 64, ("IP", "malformed")),
        (l2tp("0002 0001 0002", b"\xff\3\xc0\x21\1\7\0\x08")[:-2], 58, ("LCP", "truncated")),
        (l2tp("0002 0001 0002", b"\xff\3\xc0\x21\1\7\0\x08"), 56, ("LCP", "malformed")),
        (l2tp("4002 0004 0001 0002", b"\xff\3\xc0\x21"), 54, ("?", "malformed")),
        (l2tp("0202 0001 0002 0009"), 50, ("?", "malformed")),
        (l2tp("0002 0001"), 46, ("?", "malformed")),
        (pptp(gre.encode(9, 7, 6, b"\xc0\x21\1\7\0\x08abcd"))[:-2], 64, ("LCP", "truncated seq=7 ack=6")),
        (pptp(gre.encode(9, 7, 6, b"\xc0\x21\1\7\0\x08")), 60, ("LCP", "malformed seq=7 ack=6")),
        (pptp(gre.encode(9, 7, 6, b"\0\xfd\x90\7" + bytes(1000)))[:60], 1054, MPPE),
        (pptp(gre.encode(9, 7, 6, b"\0\xfd\x90\7" + bytes(1000)))[:55], 1054, ("MPPE", "truncated seq=7 ack=6")),
        (pptp(gre.encode(9, 7, 6, b"\0\xfd\x90")), 55, ("MPPE", "malformed seq=7 ack=6")),
        (pptp(bytes.fromhex("3081 880b 0000 0009")), 42, ("?", "malformed")),
    ],
)
def test_what_is_broken_or_cut(data: bytes, length: int, said: tuple[str, str]) -> None:
    assert summary(data, length) == said


def check(data: bytes, length: int) -> None:
    protocol, text = summary(data, length)
    assert protocol.isprintable()
    assert text.isprintable()


@given(st.binary(max_size=100))
def test_whatever_a_frame_holds(rest: bytes) -> None:
    check(rest, len(rest))
    check(frame(rest), 20 + len(rest))
    for protocol in (LCP, PAP, CHAP, IPCP, CCP, 0x0021, 0x0057, 0x00FD):
        data = frame(protocol.to_bytes(2, "big") + rest)
        check(data, len(data) + 1)


def test_frames_with_an_octet_changed_or_cut_off() -> None:
    rng = random.Random(7)
    for data, *_ in FRAMES:
        for _ in range(300):
            changed = bytearray(data)
            changed[rng.randrange(len(data))] = rng.randrange(256)
            check(bytes(changed[: rng.randrange(len(data) + 1)]), rng.choice((len(data), 9999)))
