"""TCP of real kernels through sessions, and what the firewall of ours sees of it."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from npppy.pipex.ebpf.plumbing import ethtool
from tests.peers.lab import ETHTOOL_SGRO, ETHTOOL_STXCSUM, EVERY_MODE, HOST, UPLINK, WORLD, Lab, inside, run, until
from tests.peers.probes import Receiver, send
from tests.peers.test_data import MEGABYTE, transfer
from tests.root.ebpf_lab import attach_foreign, foreign_program

pytestmark = [pytest.mark.guest, EVERY_MODE]

#: What tshark says of a checksum.
GOOD = "1"
LAST = b"the last of all"


@contextmanager
def captured(lab: Lab, namespace: str, interface: str, file: Path) -> Iterator[None]:
    """Write what passes an interface into a file, until two packets have said that they are the last."""
    program = lab.program(
        f"tcpdump-{interface}",
        namespace,
        *("tcpdump", "-n", "-i", interface, "-B", "65536", "-s", "2048", "--immediate-mode", "-U", "-w", str(file)),
    )
    program.says("listening on")
    yield
    until(lambda: file.read_bytes().count(LAST) == 2, "the last packets in the capture")
    program.stop(signal.SIGINT)
    assert "\n0 packets dropped by kernel" in program.log


def checksums(file: Path, wanted: str) -> tuple[Counter[str], list[str]]:
    """How many packets have right checksums, by what they carry; and those that have not."""
    argv = ["tshark", "-n", "-r", str(file), "-Y", wanted, "-T", "fields", "-E", "separator=,", "-E", "occurrence=f"]
    for protocol in ("ip", "tcp", "udp"):
        argv += ["-o", f"{protocol}.check_checksum:TRUE", "-e", f"{protocol}.checksum.status"]
    for name in ("frame.number", "ip.src", "ip.len", "tcp.flags", "tcp.len", "tcp.checksum"):
        argv += ["-e", name]
    right: Counter[str] = Counter()
    wrong = []
    for line in run(*argv).splitlines():
        ip, tcp, udp, *_, checksum = line.split(",")
        # Of the two zeros of ones' complement a kernel writes the one, and tshark wants the other.
        if ip == GOOD and (tcp + udp == GOOD or checksum == "0xffff"):
            right["tcp" if tcp else "udp"] += 1
        else:
            wrong.append(line)
    return right, wrong


def test_checksums(lab: Lab, tmp_path: Path) -> None:
    """Of all that a host gets, and of all that is on the wire to the subscriber."""
    lab.start("tcp-mss-adjust yes")
    lab.dial_home("mru", "1480")
    program = foreign_program()
    for namespace, name in ((lab.sub, "sub0"), (lab.net, "host0")):
        with inside(namespace):
            # Show frames as they come, not as GRO joins them.  With a program of its own the device needs no GRO.
            attach_foreign(name, program)
            ethtool(name, ETHTOOL_SGRO, 0)
    with inside(lab.bng):
        # Send complete packets into the virtual wire, as a card does into a real one.
        ethtool("up0", ETHTOOL_STXCSUM, 0)
    lab.ping(lab.sub, WORLD)
    access, world = tmp_path / "access.pcap", tmp_path / "world.pcap"
    receivers = [(lab.lan, WORLD, Receiver(lab, lab.net)), (lab.net, HOST, Receiver(lab, lab.lan))]
    with captured(lab, lab.sub, "sub0", access), captured(lab, lab.net, "host0", world):
        for caller, called in (
            lab.connect(lab.lan, WORLD, lab.listen(lab.net)),
            lab.connect(lab.net, HOST, lab.listen(lab.lan)),
        ):
            transfer(caller, called, MEGABYTE)
            transfer(called, caller, MEGABYTE)
        for namespace, address, receiver in receivers:
            for data in (*(bytes([size & 255]) * size for size in range(0, 1400, 100)), LAST):
                send(lab, namespace, (address, receiver.port), data)
                assert receiver.take().data == data
    for file, wanted in ((access, "pppoes"), (world, f"ip.src == {HOST}")):
        right, wrong = checksums(file, f"{wanted} and (tcp or udp) and not icmp")
        assert not wrong
        assert right["tcp"] > 1000
        assert right["udp"] >= 15
    program.close()


def nft(lab: Lab, rules: str) -> None:
    """Load rules into the concentrator's firewall."""
    with inside(lab.bng):
        run("nft", "-f", "-", input=rules)


def matched(lab: Lab) -> dict[str, int]:
    """The packets that rules have counted, by their comments."""
    with inside(lab.bng):
        listing = run("nft", "-j", "list", "ruleset")
    rules = [entry["rule"] for entry in json.loads(listing)["nftables"] if "rule" in entry]
    return {
        rule["comment"]: part["counter"]["packets"] for rule in rules for part in rule["expr"] if "counter" in part
    }


RULES = """
table ip t {
    chain f { type filter hook forward priority 0
        ct state new counter comment "new"
        ct state established counter comment "established"
        udp dport 9 counter drop comment "forbidden"
    }
    chain p { type nat hook postrouting priority 100
        ip saddr 10.64.0.0/24 oifname "up0" masquerade
    }
}
"""


def test_nat(lab: Lab) -> None:
    """Through the stack subscribers have the concentrator's address outside, and its firewall holds."""
    lab.start("tcp-mss-adjust yes")
    peer = lab.dial_up().address
    lab.ping(lab.sub, WORLD)
    nft(lab, RULES)
    receiver = Receiver(lab, lab.net)
    send(lab, lab.sub, (WORLD, receiver.port))
    assert receiver.take().sender == (peer if lab.way == "FAST" else UPLINK)
    if lab.way == "FAST":
        # As the manual says.
        assert matched(lab) == {"new": 0, "established": 0, "forbidden": 0}
        return
    caller, called = lab.connect(lab.sub, WORLD, lab.listen(lab.net))
    assert called.getpeername()[0] == UPLINK
    transfer(caller, called, MEGABYTE)
    transfer(called, caller, MEGABYTE)
    send(lab, lab.sub, (WORLD, 9))
    lab.ping(lab.sub, WORLD)
    found = matched(lab)
    assert found["new"] == 4
    assert found["established"] > 20
    assert found["forbidden"] == 1
