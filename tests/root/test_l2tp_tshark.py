"""Every L2TP message with every AVP that it may have, as tshark reads it: nothing malformed, and each value as meant.

It needs no privileges, only tshark.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from npppy.l2tp import codec, secret
from npppy.l2tp.codec import RULES, Attr, Hiding, Type, u16, u32
from tests.unit.ippackets import udp

pytestmark = pytest.mark.root

SECRET = b"between us"
VECTOR = bytes(range(0xA0, 0xB0))
LAC, LNS = "192.0.2.1", "192.0.2.2"
#: LCP: MRU 1492, and a Magic-Number.
CONFREQ = bytes.fromhex("010405d4 0506 12345678")
LCP = b"\xff\x03\xc0\x21\x09\x07\x00\x08\x12\x34\x56\x78"

#: A value of each AVP of RFC 2661 and RFC 3145, and what tshark is to show of it.
VALUES: dict[Attr, tuple[bytes, dict[str, str]]] = {
    Attr.RESULT_CODE: (
        codec.result_code(2, 6, "no more"),
        {"l2tp.result_code": "2", "l2tp.avp.error_code": "6", "l2tp.avp.error_message": "no more"},
    ),
    Attr.PROTOCOL_VERSION: (b"\x01\x00", {"l2tp.avp.protocol_version": "1", "l2tp.avp.protocol_revision": "0"}),
    Attr.FRAMING_CAPABILITIES: (
        u32(1),
        {"l2tp.avp.async_framing_supported": "0", "l2tp.avp.sync_framing_supported": "1"},
    ),
    Attr.BEARER_CAPABILITIES: (
        u32(2),
        {"l2tp.avp.analog_access_supported": "1", "l2tp.avp.digital_access_supported": "0"},
    ),
    Attr.TIE_BREAKER: (b"\x01\x02\x03\x04\x05\x06\x07\x08", {"l2tp.tie_breaker": "0x0102030405060708"}),
    Attr.FIRMWARE_REVISION: (u16(0x0203), {"l2tp.avp.firmware_revision": "515"}),
    Attr.HOST_NAME: (b"lac.example", {"l2tp.avp.host_name": "lac.example"}),
    Attr.VENDOR_NAME: (b"npppy", {"l2tp.avp.vendor_name": "npppy"}),
    Attr.ASSIGNED_TUNNEL_ID: (u16(4711), {"l2tp.avp.assigned_tunnel_id": "4711"}),
    Attr.RECEIVE_WINDOW_SIZE: (u16(16), {"l2tp.avp.receive_window_size": "16"}),
    Attr.CHALLENGE: (bytes(range(16)), {"l2tp.avp.chap_challenge": bytes(range(16)).hex()}),
    Attr.Q931_CAUSE_CODE: (
        b"\x00\x10\x45cleared",
        {"l2tp.avp.cause_code": "16", "l2tp.avp.cause_msg": "69", "l2tp.avp.advisory_msg": "cleared"},
    ),
    Attr.CHALLENGE_RESPONSE: (
        bytes(range(16, 32)),
        {"l2tp.avp.chap_challenge_response": bytes(range(16, 32)).hex()},
    ),
    Attr.ASSIGNED_SESSION_ID: (u16(815), {"l2tp.avp.assigned_session_id": "815"}),
    Attr.CALL_SERIAL_NUMBER: (u32(70001), {"l2tp.avp.call_serial_number": "70001"}),
    Attr.MINIMUM_BPS: (u32(64000), {"l2tp.avp.minimum_bps": "64000"}),
    Attr.MAXIMUM_BPS: (u32(10**9), {"l2tp.avp.maximum_bps": "1000000000"}),
    Attr.BEARER_TYPE: (u32(1), {"l2tp.avp.analog_bearer_type": "0", "l2tp.avp.digital_bearer_type": "1"}),
    Attr.FRAMING_TYPE: (u32(2), {"l2tp.avp.async_framing_type": "1", "l2tp.avp.sync_framing_type": "0"}),
    Attr.CALLED_NUMBER: (b"5550100", {"l2tp.avp.called_number": "5550100"}),
    Attr.CALLING_NUMBER: (b"5550101", {"l2tp.avp.calling_number": "5550101"}),
    Attr.SUB_ADDRESS: (b"42", {"l2tp.avp.sub_address": "42"}),
    Attr.TX_CONNECT_SPEED: (u32(10**8), {"l2tp.avp.connect_speed": "100000000"}),
    Attr.PHYSICAL_CHANNEL_ID: (u32(17), {"l2tp.avp.physical_channel": "17"}),
    Attr.INITIAL_RECEIVED_LCP_CONFREQ: (CONFREQ, {"l2tp.avp.initial_received_lcp_confreq": CONFREQ.hex()}),
    Attr.LAST_SENT_LCP_CONFREQ: (CONFREQ, {"l2tp.avp.last_sent_lcp_confreq": CONFREQ.hex()}),
    Attr.LAST_RECEIVED_LCP_CONFREQ: (CONFREQ, {"l2tp.avp.last_received_lcp_confreq": CONFREQ.hex()}),
    Attr.PROXY_AUTHEN_TYPE: (u16(2), {"l2tp.avp.proxy_authen_type": "2"}),
    Attr.PROXY_AUTHEN_NAME: (b"alice", {"l2tp.avp.proxy_authen_name": "alice"}),
    Attr.PROXY_AUTHEN_CHALLENGE: (b"\x01\x02\x03", {"l2tp.avp.proxy_authen_challenge": "010203"}),
    Attr.PROXY_AUTHEN_ID: (u16(7), {"l2tp.avp.proxy_authen_id": "7"}),
    Attr.PROXY_AUTHEN_RESPONSE: (b"\x04\x05\x06", {"l2tp.avp.proxy_authen_response": "040506"}),
    Attr.CALL_ERRORS: (
        u16(0) + b"".join(map(u32, range(1, 7))),
        {
            "l2tp.avp.crc_errors": "1",
            "l2tp.avp.framing_errors": "2",
            "l2tp.avp.hardware_overruns": "3",
            "l2tp.avp.buffer_overruns": "4",
            "l2tp.avp.time_out_errors": "5",
            "l2tp.avp.alignment_errors": "6",
        },
    ),
    Attr.ACCM: (
        u16(0) + u32(0xA0000) + u32(0xFFFFFFFF),
        {"l2tp.avp.send_accm": "655360", "l2tp.avp.receive_accm": "4294967295"},
    ),
    Attr.RANDOM_VECTOR: (VECTOR, {"l2tp.avp.random_vector": VECTOR.hex()}),
    Attr.PRIVATE_GROUP_ID: (b"blue", {"l2tp.avp.private_group_id": b"blue".hex()}),
    Attr.RX_CONNECT_SPEED: (u32(10**7), {"l2tp.avp.rx_connect_speed": "10000000"}),
    Attr.SEQUENCING_REQUIRED: (b"", {}),
    Attr.PPP_DISCONNECT_CAUSE: (
        b"\x00\x03\xc0\x21\x01ended",
        {
            "l2tp.avp.disconnect_code": "3",
            "l2tp.avp.control_protocol_number": str(0xC021),
            "l2tp.avp.cause_code_direction": "1",
            "l2tp.avp.cause_code_message": "ended",
        },
    ),
}

_SCCRQ = (
    Attr.PROTOCOL_VERSION,
    Attr.HOST_NAME,
    Attr.FRAMING_CAPABILITIES,
    Attr.ASSIGNED_TUNNEL_ID,
    Attr.BEARER_CAPABILITIES,
    Attr.RECEIVE_WINDOW_SIZE,
    Attr.CHALLENGE,
    Attr.FIRMWARE_REVISION,
    Attr.VENDOR_NAME,
)
_SPEED = (Attr.TX_CONNECT_SPEED, Attr.FRAMING_TYPE, Attr.RX_CONNECT_SPEED, Attr.SEQUENCING_REQUIRED)
#: Section 6: what must and may be in each message; any may have a Random Vector.
MESSAGES: dict[Type, tuple[Attr, ...]] = {
    Type.SCCRQ: (*_SCCRQ, Attr.TIE_BREAKER),
    Type.SCCRP: (*_SCCRQ, Attr.CHALLENGE_RESPONSE),
    Type.SCCCN: (Attr.CHALLENGE_RESPONSE,),
    Type.STOP_CCN: (Attr.ASSIGNED_TUNNEL_ID, Attr.RESULT_CODE),
    Type.HELLO: (Attr.RANDOM_VECTOR,),
    Type.OCRQ: (
        Attr.ASSIGNED_SESSION_ID,
        Attr.CALL_SERIAL_NUMBER,
        Attr.MINIMUM_BPS,
        Attr.MAXIMUM_BPS,
        Attr.BEARER_TYPE,
        Attr.FRAMING_TYPE,
        Attr.CALLED_NUMBER,
        Attr.SUB_ADDRESS,
    ),
    Type.OCRP: (Attr.ASSIGNED_SESSION_ID, Attr.PHYSICAL_CHANNEL_ID),
    Type.OCCN: _SPEED,
    Type.ICRQ: (
        Attr.ASSIGNED_SESSION_ID,
        Attr.CALL_SERIAL_NUMBER,
        Attr.BEARER_TYPE,
        Attr.PHYSICAL_CHANNEL_ID,
        Attr.CALLING_NUMBER,
        Attr.CALLED_NUMBER,
        Attr.SUB_ADDRESS,
    ),
    Type.ICRP: (Attr.ASSIGNED_SESSION_ID,),
    Type.ICCN: (
        *_SPEED,
        Attr.INITIAL_RECEIVED_LCP_CONFREQ,
        Attr.LAST_SENT_LCP_CONFREQ,
        Attr.LAST_RECEIVED_LCP_CONFREQ,
        Attr.PROXY_AUTHEN_TYPE,
        Attr.PROXY_AUTHEN_NAME,
        Attr.PROXY_AUTHEN_CHALLENGE,
        Attr.PROXY_AUTHEN_ID,
        Attr.PROXY_AUTHEN_RESPONSE,
        Attr.PRIVATE_GROUP_ID,
    ),
    Type.CDN: (Attr.RESULT_CODE, Attr.ASSIGNED_SESSION_ID, Attr.Q931_CAUSE_CODE, Attr.PPP_DISCONNECT_CAUSE),
    Type.WEN: (Attr.CALL_ERRORS,),
    Type.SLI: (Attr.ACCM,),
}

HEADER = ("l2tp.tunnel", "l2tp.session", "l2tp.Ns", "l2tp.Nr", "l2tp.length", "l2tp.offset", "l2tp.version")
AVPS = ("l2tp.avp.type", "l2tp.avp.mandatory", "l2tp.avp.hidden", "l2tp.avp.length", "l2tp.avp.vendor_id")
WRONG = ("_ws.malformed", "_ws.expert.message")
PPP = ("ppp.protocol", "ppp.code", "ppp.magic_number", "l2tp.avp.message_type", "l2tp.priority")
FIELDS = (*HEADER, *AVPS, *WRONG, *PPP, *(field for _, shown in VALUES.values() for field in shown))


class Row(NamedTuple):
    """A datagram, and what tshark is to show of it; it is to show nothing else of FIELDS, but those of LOOSE."""

    datagram: bytes
    shown: dict[str, str]


#: Shown or not as tshark likes.
LOOSE = {"l2tp.version", "l2tp.priority", "ppp.magic_number"}


def tshark(datagrams: Iterable[bytes], path: Path) -> list[dict[str, str]]:
    """What tshark makes of datagrams: FIELDS that are there, with commas between the values of one."""
    frames = [bytes(12) + b"\x08\x00" + udp(LAC, LNS, datagram, ports=(1701, 1701)) for datagram in datagrams]
    with path.open("wb") as file:
        # Version 2.4, frames of any length, of Ethernet.
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, frame in enumerate(frames):
            file.write(struct.pack("=IIII", number, 0, len(frame), len(frame)) + frame)
    argv = ["tshark", "-r", str(path), "-n", "-T", "fields", "-E", "occurrence=a", "-E", "separator=/t"]
    for field in FIELDS:
        argv += ["-e", field]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C.UTF-8"}, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(frames)
    # Newer ones write True and False.
    plain = [line.replace("True", "1").replace("False", "0").split("\t") for line in lines]
    return [{field: value for field, value in zip(FIELDS, line, strict=True) if value} for line in plain]


def control(kind: Type, avps: list[tuple[Attr, bytes]], hiding: Hiding | None = None) -> Row:
    """A control message, and how tshark is to show its header and its AVPs, but for what is in them."""
    body = codec.encode_message(kind, avps, hiding)
    shown = {
        "l2tp.tunnel": "258",
        "l2tp.session": "772",
        "l2tp.Ns": "65535",
        "l2tp.Nr": "9",
        "l2tp.length": str(12 + len(body)),
        "l2tp.avp.message_type": str(int(kind)),
    }
    types, mandatory, hidden, lengths = [0], [True], [False], [8]
    announced = False
    for attribute, value in avps:
        hide = hiding is not None and RULES[attribute].hideable
        if hide and not announced:
            announced = True
            types.append(Attr.RANDOM_VECTOR)
            mandatory.append(True)
            hidden.append(False)
            lengths.append(6 + len(VECTOR))
        types.append(attribute)
        mandatory.append(RULES[attribute].mandatory)
        hidden.append(hide)
        lengths.append(6 + len(value) + (2 + PADDING if hide else 0))
    # tshark goes no further than the length of what is hidden.
    types = [attribute for attribute, hide in zip(types, hidden, strict=True) if not hide]
    columns: tuple[list[int], ...] = (types, [*map(int, mandatory)], [*map(int, hidden)], lengths, [0] * len(types))
    for field, column in zip(AVPS, columns, strict=True):
        shown[field] = ",".join(str(int(cell)) for cell in column)
    return Row(codec.control(258, 772, 65535, 9, body), shown)


PADDING = 5


def hide(attribute: int, value: bytes, vector: bytes) -> bytes:
    return secret.hide(attribute, value, SECRET, vector, bytes(PADDING))


def in_clear() -> list[Row]:
    rows = []
    for kind, attributes in MESSAGES.items():
        row = control(kind, [(attribute, VALUES[attribute][0]) for attribute in attributes])
        for attribute in attributes:
            row.shown.update(VALUES[attribute][1])
        rows.append(row)
    return rows


def hidden() -> list[Row]:
    rows = []
    for kind, attributes in MESSAGES.items():
        row = control(kind, [(attribute, VALUES[attribute][0]) for attribute in attributes], Hiding(VECTOR, hide))
        for attribute in attributes:
            if not RULES[attribute].hideable:
                row.shown.update(VALUES[attribute][1])
            else:
                row.shown.update(VALUES[Attr.RANDOM_VECTOR][1])
        rows.append(row)
    return rows


def data() -> list[Row]:
    """Data messages with headers of all forms, among them those of data_header."""
    rows = []
    for flags in range(16):
        length, sequence, offset, priority = (bool(flags & 1 << bit) for bit in range(4))
        bits = 2 | length << 14 | sequence << 11 | offset << 9 | priority << 8
        pad = b"pad" if offset else b""
        parts = [u16(258), u16(772)]
        shown = {"l2tp.tunnel": "258", "l2tp.session": "772", "ppp.protocol": "0xc021", "ppp.code": "9"}
        if sequence:
            parts += [u16(515), u16(0)]
            shown |= {"l2tp.Ns": "515", "l2tp.Nr": "0"}
        if offset:
            parts += [u16(len(pad)), pad]
            shown["l2tp.offset"] = str(len(pad))
        rest = b"".join(parts) + LCP
        if length:
            rest = u16(4 + len(rest)) + rest
            shown["l2tp.length"] = str(2 + len(rest))
        datagram = u16(bits) + rest
        found = codec.decode_data(datagram)
        assert (found.tunnel_id, found.session_id, found.ns) == (258, 772, 515 if sequence else -1)
        assert datagram[found.start : found.end] == LCP
        rows.append(Row(datagram, shown))
    for sequenced in (False, True):
        header = bytearray(codec.data_header(258, 772, sequenced))
        struct.pack_into("!H", header, 2, len(header) + len(LCP))
        shown = {
            "l2tp.tunnel": "258",
            "l2tp.session": "772",
            "l2tp.length": str(len(header) + len(LCP)),
            "ppp.protocol": "0xc021",
            "ppp.code": "9",
        }
        if sequenced:
            struct.pack_into("!H", header, 8, 513)
            shown |= {"l2tp.Ns": "513", "l2tp.Nr": "0"}
        rows.append(Row(bytes(header) + LCP, shown))
    return rows


@pytest.fixture
def found_tshark() -> None:
    if not shutil.which("tshark"):
        pytest.skip("needs tshark")


def check(rows: list[Row], path: Path) -> None:
    for row, seen in zip(rows, tshark([row.datagram for row in rows], path), strict=True):
        assert seen.pop("l2tp.version") == "2"
        assert {field: value for field, value in seen.items() if field not in LOOSE} == row.shown


def test_all_avps_are_there() -> None:
    """All that npppyd may send; tshark knows of those that are noted only (RFC 3301 and others) nothing but numbers."""
    sent = {Attr.MESSAGE_TYPE, *(attribute for attributes in MESSAGES.values() for attribute in attributes)}
    assert sent == set(VALUES) | {Attr.MESSAGE_TYPE}
    assert {attribute for attribute in Attr if attribute < 40 or attribute == 46} == sent
    assert set(MESSAGES) == set(Type)


def test_control_messages(found_tshark: None, tmp_path: Path) -> None:
    zlb = Row(
        codec.control(258, 0, 1, 2, b""),
        {"l2tp.tunnel": "258", "l2tp.session": "0", "l2tp.Ns": "1", "l2tp.Nr": "2", "l2tp.length": "12"},
    )
    check([*in_clear(), zlb], tmp_path / "clear.pcap")


def test_hidden_avps(found_tshark: None, tmp_path: Path) -> None:
    check(hidden(), tmp_path / "hidden.pcap")


def test_data_messages(found_tshark: None, tmp_path: Path) -> None:
    check(data(), tmp_path / "data.pcap")


def test_tshark_sees_what_is_wrong(found_tshark: None, tmp_path: Path) -> None:
    """What the others rely on."""
    good = codec.encode_message(Type.ICRQ, [(Attr.ASSIGNED_SESSION_ID, u16(9)), (Attr.CALLING_NUMBER, b"12")])
    short = good[:9] + b"\x05" + good[10:]
    long = good[:-8] + b"\x80\x40" + good[-6:]
    undecoded = good + struct.pack("!HHH", 8, 0, 200) + u16(1)
    lcp = codec.encode_message(Type.ICCN, [(Attr.LAST_SENT_LCP_CONFREQ, b"\x01\x02")])
    datagrams = [codec.control(1, 2, 3, 4, body) for body in (good, short, long, undecoded, lcp)]
    seen = tshark(datagrams, tmp_path / "wrong.pcap")
    assert [any(field in row for field in WRONG) for row in seen] == [False, True, True, True, True]
