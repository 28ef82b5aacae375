"""Every PPTP message and every form of GRE, as tshark reads it: nothing malformed, and each value as meant.

It needs no privileges, only tshark.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from npppy.ppp.link import IN
from npppy.pptp import codec, gre
from npppy.pptp.codec import LAYOUTS, Type
from npppy.pptp.frame import ethernet
from npppy.pptp.service import Endpoint
from tests.unit.ippackets import tcp

pytestmark = pytest.mark.root

PNS, PAC = "192.0.2.1", "192.0.2.2"
LCP = b"\xc0\x21\x09\x07\x00\x08\x12\x34\x56\x78"

#: How tshark calls a field of ours, in a message or else in all.
FIELDS: dict[str, str] = {
    "version": "protocol_version",
    "framing": "framing_capabilities",
    "bearer": "bearer_capabilities",
    "max_channels": "maximum_channels",
    "firmware": "firmware_revision",
    "serial": "call_serial_number",
    "window": "packet_receive_window_size",
    "delay": "packet_processing_delay",
    "speed": "connect_speed",
    "channel": "physical_channel_id",
    "statistics": "call_Statistics",
    "crc": "crc_errors",
    "hardware": "hardware_overruns",
    "buffer": "buffer_overruns",
    "timeout": "timeout_errors",
    "alignment": "alignment_errors",
}
SPECIAL: dict[tuple[Type, str], str] = {
    (Type.START_REPLY, "result"): "control_result",
    (Type.STOP_REPLY, "result"): "stop_result",
    (Type.ECHO_REPLY, "result"): "echo_result",
    (Type.OUTGOING_CALL_REQUEST, "framing"): "framing_type",
    (Type.OUTGOING_CALL_REQUEST, "bearer"): "bearer_type",
    (Type.OUTGOING_CALL_REPLY, "result"): "out_result",
    (Type.INCOMING_CALL_REQUEST, "bearer"): "bearer_type",
    (Type.INCOMING_CALL_REPLY, "result"): "in_result",
    (Type.INCOMING_CALL_CONNECTED, "framing"): "framing_type",
    (Type.CALL_DISCONNECT_NOTIFY, "result"): "disc_result",
    (Type.WAN_ERROR_NOTIFY, "framing"): "framing_errors",
}
WRONG = ("_ws.malformed", "_ws.expert.message", "pptp.magic_cookie.incorrect")
HEADER = ("pptp.length", "pptp.type", "pptp.magic_cookie", "pptp.control_message_type")
GRE = (
    "gre.flags_and_version",
    "gre.proto",
    "gre.key.payload_length",
    "gre.key.call_id",
    "gre.sequence_number",
    "gre.ack_number",
    "ppp.protocol",
    "ppp.code",
)


def called(kind: Type, name: str) -> str:
    return "pptp." + SPECIAL.get((kind, name), FIELDS.get(name, name))


def value(kind: Type, name: str, size: int) -> int | bytes:
    """A value that no other field of its size is likely to have."""
    if name in ("framing", "bearer") and kind != Type.WAN_ERROR_NOTIFY:
        return 3
    mark = sum(name.encode()) % 199 + 1
    return f"{name}-{mark}".encode() if size > 4 else int.from_bytes(bytes((mark,)) * size, "big")


def tshark(frames: Iterable[bytes], fields: Iterable[str], path: Path) -> list[dict[str, str]]:
    """What tshark makes of frames: the fields that are there, numbers in decimal."""
    fields = list(fields)
    with path.open("wb") as file:
        # Version 2.4, frames of any length, of Ethernet.
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, frame in enumerate(frames):
            file.write(struct.pack("=IIII", number, 0, len(frame), len(frame)) + frame)
    argv = ["tshark", "-r", str(path), "-n", "-T", "fields", "-E", "occurrence=a", "-E", "separator=/t"]
    # Of the stream, nothing is of interest.
    argv += ["-o", "tcp.analyze_sequence_numbers:FALSE", "-o", "tcp.check_checksum:FALSE"]
    for field in fields:
        argv += ["-e", field]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C.UTF-8"}, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [dict(zip(fields, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]
    return [{field: _plain(shown) for field, shown in row.items() if shown} for row in rows]


def _plain(shown: str) -> str:
    return str(int(shown, 16)) if shown.startswith("0x") and "," not in shown else shown


@pytest.fixture
def found_tshark() -> None:
    if not shutil.which("tshark"):
        pytest.skip("needs tshark")


def test_every_message(found_tshark: None, tmp_path: Path) -> None:
    frames, wanted = [], []
    for kind, layout in LAYOUTS.items():
        values = {name: value(kind, name, size) for name, size in layout if name}
        octets = codec.encode(kind, **values)
        ports = (1723, 40000) if "REPLY" in kind.name else (40000, 1723)
        frames.append(bytes(12) + b"\x08\x00" + tcp(PNS, PAC, tcp_flags=0x18, ports=ports, data=octets))
        shown = {called(kind, name): found for name, found in values.items()}
        wanted.append(
            {
                "pptp.length": str(len(octets)),
                "pptp.type": "1",
                "pptp.magic_cookie": str(codec.MAGIC),
                "pptp.control_message_type": str(int(kind)),
                **{name: found.decode() if isinstance(found, bytes) else str(found) for name, found in shown.items()},
            }
        )
    fields = {*HEADER, *WRONG, *(called(kind, name) for kind in Type for name, _ in LAYOUTS[kind] if name)}
    seen = tshark(frames, sorted(fields), tmp_path / "pptp.pcap")
    assert len(seen) == 15
    assert seen == wanted


def test_every_form_of_gre(found_tshark: None, tmp_path: Path) -> None:
    endpoint = Endpoint(bytes((192, 0, 2, 2)), 1723, bytes((192, 0, 2, 1)), 40000)
    rows = {
        gre.encode(0x1234, 7, 0x01020304, LCP): {
            "gre.flags_and_version": str(0x3081),
            "gre.sequence_number": "7",
            "gre.ack_number": str(0x01020304),
        },
        gre.encode(0x1234, 0xFFFFFFFF, -1, LCP): {
            "gre.flags_and_version": str(0x3001),
            "gre.sequence_number": str(0xFFFFFFFF),
        },
        gre.acknowledgment(0x1234, 8): {"gre.flags_and_version": str(0x2081), "gre.ack_number": "8"},
    }
    seen = tshark(
        [ethernet(endpoint, IN, packet) for packet in rows], [*GRE, "ip.src", "ip.proto", *WRONG], tmp_path / "gre.pcap"
    )
    for (packet, shown), row in zip(rows.items(), seen, strict=True):
        payload = {"ppp.protocol": str(0xC021), "ppp.code": "9"} if "gre.sequence_number" in shown else {}
        assert row == {
            "ip.src": "192.0.2.1",
            "ip.proto": "47",
            "gre.proto": str(0x880B),
            "gre.key.payload_length": str(len(LCP) + 2 if payload else 0),
            "gre.key.call_id": str(0x1234),
            **shown,
            **payload,
        }, packet.hex()
