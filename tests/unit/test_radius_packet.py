"""Packets of RADIUS: against pyrad, both ways, and each way in which others broke."""

from __future__ import annotations

import struct
from hashlib import md5

import pytest
from pyrad import packet as oracle

from npppy.aaa.radius.packet import (
    DICTIONARY,
    MAX_PACKET,
    Code,
    Pair,
    encode_reply,
    encode_request,
    parse,
    verify_reply,
    verify_request,
)
from npppy.cursor import Malformed

SECRET = b"opensesame"
RANDOM = bytes(range(16))

PAIRS: list[Pair] = [
    ("User-Name", "b\udcf6b@isp"),
    ("NAS-IP-Address", 0xC0000201),
    ("NAS-Port", 77),
    ("Service-Type", 2),
    ("State", b"\0\1\2"),
    ("Event-Timestamp", 1_700_000_000),
    ("Tunnel-Type", 3),
    ("Tunnel-Client-Endpoint", "198.51.100.7"),
    ("NAS-IPv6-Address", bytes(range(16))),
    ("ADSL-Agent-Circuit-Id", b"eth 1/2"),
    ("MS-CHAP-Challenge", bytes(16)),
]


def request(*pairs: Pair, code: Code = Code.ACCESS_REQUEST, secret: bytes = SECRET, **options: bool) -> bytes:
    return encode_request(code, 7, RANDOM, pairs, secret, **options)


def raw(*attributes: bytes, code: int = 2) -> bytes:
    body = b"".join(attributes)
    return struct.pack("!BBH", code, 7, 20 + len(body)) + RANDOM + body


def test_pyrad_reads_an_access_request() -> None:
    data = request(("User-Password", b"sesame, please open"), *PAIRS)
    read = oracle.AuthPacket(packet=data, secret=SECRET, dict=DICTIONARY)
    assert read.verify_message_authenticator()
    assert read.code == 1
    assert read.id == 7
    assert read.authenticator == RANDOM
    assert next(iter(read)) == 80
    assert read.PwDecrypt(read[2][0]) == "sesame, please open"
    assert read[1] == [b"b\xf6b@isp"]
    assert read["NAS-IP-Address"] == ["192.0.2.1"]
    assert read["NAS-Port"] == [77]
    assert read["Service-Type"] == ["Framed-User"]
    assert read["Event-Timestamp"] == [1_700_000_000]
    assert read["Tunnel-Type"] == ["L2TP"]
    assert read["Tunnel-Client-Endpoint"] == ["198.51.100.7"]
    assert read["NAS-IPv6-Address"] == ["1:203:405:607:809:a0b:c0d:e0f"]
    assert read["ADSL-Agent-Circuit-Id"] == [b"eth 1/2"]
    assert read["MS-CHAP-Challenge"] == [bytes(16)]


def test_a_request_is_read_as_it_was_written() -> None:
    data = request(*PAIRS)
    read = parse(data)
    assert verify_request(read, SECRET) == ""
    assert verify_request(read, b"other") == "message-authenticator"
    assert read.names() == ["Message-Authenticator", *(name for name, _ in PAIRS)]
    assert read.text("User-Name") == "b\udcf6b@isp"
    assert read.integer("NAS-IP-Address") == 0xC0000201
    assert read.integer("Tunnel-Type") == 3
    assert read.text("Tunnel-Client-Endpoint") == "198.51.100.7"
    assert dict(read.pairs())["Tunnel-Client-Endpoint"] == b"\x00198.51.100.7"
    assert read.octets("State") == b"\0\1\2"
    assert "State" in read
    assert "Class" not in read
    assert read.integer("Session-Timeout") is None
    assert read.text("Class") is None
    assert read.octets("Class") is None
    assert read.all_texts("Class") == []


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 127, 128])
def test_pyrad_recovers_passwords(size: int) -> None:
    password = b"p" * size
    data = request(("User-Password", password))
    read = oracle.AuthPacket(packet=data, secret=SECRET, dict=DICTIONARY)
    assert len(read[2][0]) == max(16, -(-size // 16) * 16)
    assert read.PwDecrypt(read[2][0]).encode() == password


def test_a_status_server_request_is_signed() -> None:
    read = oracle.Packet(packet=request(code=Code.STATUS_SERVER), secret=SECRET, dict=DICTIONARY)
    assert read.code == 12
    assert read.verify_message_authenticator()


def test_pyrad_verifies_an_accounting_request() -> None:
    data = request(("Acct-Status-Type", 1), ("Acct-Session-Id", "a"), code=Code.ACCOUNTING_REQUEST)
    read = oracle.AcctPacket(packet=data, secret=SECRET, dict=DICTIONARY)
    assert read.VerifyAcctRequest()
    assert 80 not in read.keys()  # noqa: SIM118
    assert verify_request(parse(data), SECRET) == ""
    assert verify_request(parse(data), b"other") == "authenticator"


@pytest.mark.parametrize("code", [Code.COA_REQUEST, Code.DISCONNECT_REQUEST])
def test_a_change_that_pyrad_sends_is_verified(code: Code) -> None:
    sent = oracle.CoAPacket(code=code, secret=SECRET, dict=DICTIONARY, **{"Acct-Session-Id": "a"})
    sent.add_message_authenticator()
    data = sent.RequestPacket()
    assert verify_request(parse(data), SECRET) == ""
    assert verify_request(parse(data), b"other") == "authenticator"
    # The one right, the other not.
    ours = bytearray(request(("Acct-Session-Id", "a"), code=code, message_authenticator=True))
    assert verify_request(parse(bytes(ours)), SECRET) == ""
    plain = oracle.CoAPacket(packet=bytes(ours), secret=SECRET, dict=DICTIONARY)
    assert plain.VerifyCoARequest()
    assert plain.verify_message_authenticator()
    ours[25] ^= 1
    assert verify_request(parse(_authentic(bytes(ours))), SECRET) == "message-authenticator"


def _authentic(data: bytes, authenticator: bytes = bytes(16)) -> bytes:
    """*data* with the authenticator that goes with it."""
    return data[:4] + md5(data[:4] + authenticator + data[20:] + SECRET).digest() + data[20:]


def asked() -> oracle.AuthPacket:
    return oracle.AuthPacket(packet=request(("User-Name", "bob")), secret=SECRET, dict=DICTIONARY)


def test_a_reply_of_pyrad_counts() -> None:
    answer = asked().CreateReply(**{"Framed-IP-Address": "192.0.2.9", "Reply-Message": "héllo"})
    answer.add_message_authenticator()
    reply = parse(answer.ReplyPacket())
    assert verify_reply(reply, RANDOM, SECRET, require=True) == ""
    assert reply.integer("Framed-IP-Address") == 0xC0000209
    assert reply.text("Reply-Message") == "héllo"
    assert verify_reply(reply, RANDOM, b"other", require=True) == "authenticator"
    assert verify_reply(reply, bytes(16), SECRET, require=True) == "authenticator"


def test_pyrad_accepts_our_reply() -> None:
    ask = asked()
    received = parse(request(("User-Name", "bob")))
    data = encode_reply(received, Code.ACCESS_ACCEPT, [("Class", b"gold"), ("Class", b"extra")], SECRET)
    assert ask.VerifyReply(oracle.Packet(packet=data, secret=SECRET, dict=DICTIONARY), enforce_ma=True)
    assert parse(data).all_octets("Class") == [b"gold", b"extra"]
    acct = oracle.AcctPacket(packet=request(code=Code.ACCOUNTING_REQUEST), secret=SECRET, dict=DICTIONARY)
    answer = encode_reply(parse(acct.raw_packet), Code.ACCOUNTING_RESPONSE, (), SECRET)
    assert acct.VerifyReply(oracle.Packet(packet=answer, secret=SECRET, dict=DICTIONARY))
    assert len(answer) == 20


def test_a_reply_without_message_authenticator() -> None:
    received = parse(request(("User-Name", "bob")))
    plain = parse(encode_reply(received, Code.ACCESS_REJECT, (), SECRET, message_authenticator=False))
    assert verify_reply(plain, RANDOM, SECRET, require=True) == "no-message-authenticator"
    assert verify_reply(plain, RANDOM, SECRET, require=False) == ""
    eap: list[Pair] = [("EAP-Message", b"\3\1\0\4")]
    plain = parse(encode_reply(received, Code.ACCESS_ACCEPT, eap, SECRET, message_authenticator=False))
    assert verify_reply(plain, RANDOM, SECRET, require=False) == "no-message-authenticator"
    proxy: list[Pair] = [("Proxy-State", bytes(48))]
    forged = parse(encode_reply(received, Code.ACCESS_ACCEPT, proxy, SECRET, message_authenticator=False))
    assert verify_reply(forged, RANDOM, SECRET, require=False) == "proxy-state"
    signed = parse(encode_reply(received, Code.ACCESS_ACCEPT, proxy, SECRET))
    assert verify_reply(signed, RANDOM, SECRET, require=False) == ""


def test_a_wrong_message_authenticator_never_counts() -> None:
    received = parse(request(("User-Name", "bob")))
    data = bytearray(encode_reply(received, Code.ACCESS_ACCEPT, (), SECRET))
    data[25] ^= 1
    wrong = parse(_authentic(bytes(data), RANDOM))
    assert verify_reply(wrong, RANDOM, SECRET, require=False) == "message-authenticator"


@pytest.mark.parametrize("status", [False, True])
def test_both_forms_of_a_signed_accounting_response(status: bool) -> None:
    if status:
        ask = oracle.Packet(packet=request(code=Code.STATUS_SERVER), secret=SECRET, dict=DICTIONARY)
        answer = ask.CreateReply(code=5)
    else:
        ask = oracle.AcctPacket(packet=request(code=Code.ACCOUNTING_REQUEST), secret=SECRET, dict=DICTIONARY)
        answer = ask.CreateReply()
    answer.add_message_authenticator()
    reply = parse(answer.ReplyPacket())
    assert "Message-Authenticator" in reply
    assert verify_reply(reply, ask.authenticator, SECRET, require=True) == ""


@pytest.mark.parametrize("size", [1, 15, 16, 31, 32])
def test_salted_keys(size: int) -> None:
    key = bytes(range(size))
    ask = asked()
    answer = ask.CreateReply()
    answer.request_authenticator = RANDOM
    answer["MS-MPPE-Send-Key"] = [key]
    answer.add_message_authenticator()
    reply = parse(answer.ReplyPacket())
    assert verify_reply(reply, RANDOM, SECRET, require=True) == ""
    assert reply.salted("MS-MPPE-Send-Key") == key
    assert reply.salted("MS-MPPE-Recv-Key") is None


@pytest.mark.parametrize("size", [0, 1, 2, 16, 17, 19, 33])
def test_salted_keys_of_a_wrong_size(size: int) -> None:
    received = parse(request(("User-Name", "bob")))
    reply = parse(encode_reply(received, Code.ACCESS_ACCEPT, [("MS-MPPE-Recv-Key", bytes(size))], SECRET))
    assert verify_reply(reply, RANDOM, SECRET, require=True) == ""
    with pytest.raises(Malformed):
        reply.salted("MS-MPPE-Recv-Key")


def test_a_salted_key_longer_than_its_attribute() -> None:
    """The length inside the key, once deciphered, points past its end."""
    salt = b"\x80\x01"
    pad = md5(SECRET + RANDOM + salt).digest()
    value = salt + bytes((pad[0] ^ 16,)) + bytes(15)
    received = parse(request(("User-Name", "bob")))
    reply = parse(encode_reply(received, Code.ACCESS_ACCEPT, [("MS-MPPE-Recv-Key", value)], SECRET))
    assert verify_reply(reply, RANDOM, SECRET, require=True) == ""
    with pytest.raises(Malformed):
        reply.salted("MS-MPPE-Recv-Key")


def test_long_eap_is_several_attributes() -> None:
    packet = bytes(range(256)) * 3
    read = parse(request(("EAP-Message", packet)))
    assert [len(value) for value in read.all_octets("EAP-Message")] == [253, 253, 253, 9]
    assert read.joined("EAP-Message") == packet


@pytest.mark.parametrize(
    "pair",
    [
        ("User-Name", "x" * 254),
        ("User-Name", 1),
        ("NAS-Port", "1"),
        ("NAS-Port", -1),
        ("NAS-Port", 1 << 32),
        ("Tunnel-Type", 1 << 24),
        ("Tunnel-Client-Endpoint", "x" * 253),
        ("ADSL-Agent-Circuit-Id", bytes(248)),
        ("User-Password", bytes(129)),
        ("User-Password", "plain"),
        ("Message-Authenticator", bytes(16)),
        ("No-Such-Thing", 1),
    ],
)
def test_what_does_not_fit_is_an_error(pair: Pair) -> None:
    with pytest.raises(ValueError, match=pair[0]):
        request(pair)


def test_a_packet_is_never_too_long() -> None:
    assert len(request(*[("Class", bytes(253))] * 15)) <= MAX_PACKET
    with pytest.raises(ValueError, match="packet"):
        request(*[("Class", bytes(253))] * 16)


def test_a_value_as_long_as_it_may_be() -> None:
    read = parse(request(("User-Name", "x" * 253), ("ADSL-Agent-Circuit-Id", bytes(247))))
    assert read.text("User-Name") == "x" * 253
    assert read.octets("ADSL-Agent-Circuit-Id") == bytes(247)


# accel-ppp CVE-2020-28194 and its like.
@pytest.mark.parametrize(
    "attribute",
    [
        b"\x1a",
        b"\x1a\0",
        b"\x1a\x01",
        b"\x01\0",
        b"\x01\x01",
        b"\x01\x03",
        b"\x01\xff" + bytes(252),
        b"\x1a\x02",
        b"\x1a\x05\0\0\x01",
        b"\x1a\x08\0\0\x01\x37\x0a\x00",
        b"\x1a\x08\0\0\x01\x37\x0a\x01",
        b"\x1a\x07\0\0\x01\x37\x0a",
        b"\x1a\x09\0\0\x01\x37\x0a\x04\x01",
        b"\x1a\x0b\0\0\x01\x37\x0a\x03\x01\x0b\x00",
        b"\x50\x11" + bytes(15),
        b"\x50\x13" + bytes(17),
        (b"\x50\x12" + bytes(16)) * 2,
    ],
    ids=bytes.hex,
)
def test_malformed_attributes(attribute: bytes) -> None:
    with pytest.raises(Malformed):
        parse(raw(attribute))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\2\7\0\x14",
        raw()[:19],
        b"\2\7\0\x13" + RANDOM,
        b"\2\7\0\x15" + RANDOM,
        b"\2\7\x10\x01" + RANDOM + b"\x01\xfd" * 2050,
        b"\x63\7\0\x14" + RANDOM,
    ],
)
def test_malformed_packets(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(data)


def test_padding_is_cut_off() -> None:
    received = parse(request(("User-Name", "bob")))
    data = encode_reply(received, Code.ACCESS_ACCEPT, [("Class", b"x")], SECRET)
    reply = parse(data + b"\x01\x00 whatever")
    assert reply.data == data
    assert verify_reply(reply, RANDOM, SECRET, require=True) == ""


# accel-ppp CVE-2022-24704 and -24705: attributes longer than their type, or shorter.
@pytest.mark.parametrize("size", [0, 1, 3, 5, 250])
@pytest.mark.parametrize("name", ["Framed-IP-Address", "Session-Timeout", "Tunnel-Type", "MS-Primary-DNS-Server"])
def test_fixed_types_of_another_length(name: str, size: int) -> None:
    data = request((name, bytes(min(size, 247))))
    read = parse(data)
    assert name in read
    with pytest.raises(Malformed, match=name):
        read.integer(name)


def test_unknown_attributes_are_kept() -> None:
    read = parse(raw(b"\xf1\x04ab", b"\x1a\x09\0\0\x01\x37\xfe\x03z", b"\x1a\x09\0\0\x00\x63\x0a\x03z"))
    assert read.pairs() == [("Attr-241", b"ab"), ("Attr-26.311.254", b"z"), ("Attr-26.99.10", b"z")]
    assert read.octets("Attr-241") == b"ab"


def test_a_vendor_with_a_format_of_its_own() -> None:
    """RFC 2865 section 5.26: SHOULD be of the usual format."""
    read = parse(raw(b"\x1a\x0a\0\0\x00\x63\x0a\x09ab"))
    assert read.pairs() == [("Attr-26.99", b"\x0a\x09ab")]


def test_several_attributes_in_one_of_a_vendor() -> None:
    read = parse(raw(b"\x1a\x12\0\0\x01\x37\x07\x06\0\0\0\1\x08\x06\0\0\0\6"))
    assert read.integer("MS-MPPE-Encryption-Policy") == 1
    assert read.integer("MS-MPPE-Encryption-Types") == 6


def test_tags() -> None:
    read = parse(request(("Tunnel-Type", b"\x1f\0\0\x01"), ("Tunnel-Server-Auth-Id", b"\x02lns")))
    assert read.integer("Tunnel-Type") == 1
    assert read.text("Tunnel-Server-Auth-Id") == "lns"
    # Beyond 0x1F it is text.
    assert parse(request(("Tunnel-Server-Auth-Id", b"lns"))).text("Tunnel-Server-Auth-Id") == "lns"
