"""A whole life of a tunnel with Debian's xl2tpd, as tshark reads it on the wire: nothing malformed."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from npppy.l2tp.codec import Type
from tests.peers.l2tp_lab import LNS, L2tpLab
from tests.peers.lab import QUICK, WORLD, run, until

pytestmark = [pytest.mark.guest, pytest.mark.parametrize("lab", ["user", "fast"], indirect=True)]

LAB = L2tpLab

FIELDS = (
    "ip.src",
    "l2tp.avp.message_type",
    "l2tp.avp.hidden",
    "l2tp.length",
    "udp.length",
    "ppp.protocol",
    "_ws.malformed",
    "_ws.expert.message",
    "ip.checksum.status",
    "udp.checksum.status",
)
_PCAP = struct.Struct("=IHHiIII")
_RECORD = struct.Struct("=IIII")
_ETHERNET = 1


def dump(wire: socket.socket, path: Path) -> None:
    """What a packet socket has seen, as a pcap file."""
    wire.settimeout(0.3)
    with path.open("wb") as out:
        out.write(_PCAP.pack(0xA1B2C3D4, 2, 4, 0, 0, 65535, _ETHERNET))
        try:
            while frame := wire.recv(65535):
                out.write(_RECORD.pack(0, 0, len(frame), len(frame)) + frame)
        except TimeoutError:
            return


def test_everything_on_the_wire(lab: L2tpLab, tmp_path: Path) -> None:
    wire = lab.wire(lab.sub, "sub0")
    lab.start(
        f"{QUICK}\nl2tp-secret s3cret\nl2tp-hidden-avps yes\nl2tp-hello-interval 1\nl2tp-udp-checksum yes\n"
        "l2tp-vendor-name npppy\nmru 1500"
    )
    options = ("mru 1500", "mtu 1500")
    lac = "hidden bit = yes\nchallenge = yes\nredial = yes\nredial timeout = 1"
    xl2tpd = lab.dial_l2tp_up(*options, secrets="* * s3cret\n", lac=lac)
    lab.ping(lab.sub, WORLD, count=3)
    lab.ping(lab.net, xl2tpd.address, count=3)
    lab.ping(lab.net, xl2tpd.address, "-s", "1472", "-M", "do")
    xl2tpd.says(r"message type is Hello\(6\)")
    # A CDN of ours, another call, a CDN of the peer's; and StopCCN.
    lab.clear(ppp_id=0)
    xl2tpd.ppp_says("remote IP address", 2)
    xl2tpd.hang_up()
    lab.hung_up()
    lab.ask("clear-tunnel", filters={"state": "established"})
    xl2tpd.says(rf"Connection closed to {LNS}, port 1701 \(an operator cleared it\)")
    until(lambda: all(not row["queued"] for row in lab.tunnels()), "the acknowledgement")
    path = tmp_path / "wire.pcap"
    dump(wire, path)
    argv = ["tshark", "-n", "-r", str(path), "-Y", "udp.port == 1701", "-T", "fields", "-E", "separator=/t"]
    for name in ("ip.check_checksum", "udp.check_checksum"):
        argv += ["-o", f"{name}:TRUE"]
    for field in FIELDS:
        argv += ["-e", field]
    rows = [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in run(*argv).splitlines()]
    ours = [row for row in rows if row["ip.src"].split(",")[0] == LNS]
    for row in rows:
        assert not row["_ws.malformed"], row
        assert "Malformed" not in row["_ws.expert.message"], row
        if lab.mode != "user" and row in ours and row["ppp.protocol"] == "0x0021":
            # What the kernel's programs send has a whole checksum; of all else, the network card completes it.
            assert row["udp.checksum.status"].split(",")[0] == "1", row
    for row in ours:
        assert row["ip.checksum.status"].split(",")[0] == "1", row
        assert row["l2tp.length"] == str(int(row["udp.length"].split(",")[0]) - 8), row
    sent = {int(row["l2tp.avp.message_type"]) for row in ours if row["l2tp.avp.message_type"]}
    assert sent == {Type.SCCRP, Type.ICRP, Type.HELLO, Type.CDN, Type.STOP_CCN}
    came = {int(row["l2tp.avp.message_type"]) for row in rows if row not in ours and row["l2tp.avp.message_type"]}
    assert came == {Type.SCCRQ, Type.SCCCN, Type.ICRQ, Type.ICCN, Type.CDN}
    hidden = {int(row["l2tp.avp.message_type"]) for row in ours if "1" in row["l2tp.avp.hidden"]}
    assert hidden == {Type.ICRP, Type.CDN, Type.STOP_CCN}
    # LCP, CHAP, IPCP and IP of both.
    for protocol in ("0xc021", "0xc223", "0x8021", "0x0021"):
        assert {row["ip.src"].split(",")[0] == LNS for row in rows if protocol in row["ppp.protocol"]} == {True, False}
