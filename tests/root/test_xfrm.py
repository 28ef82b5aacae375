"""What must not pass in the clear does not: IPsec policies, without any IPsec."""

from __future__ import annotations

import re
import socket
import subprocess
from ipaddress import ip_address

import pytest

from npppy.tun.xfrm import Blocks, Place

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

OWNER = "/run/npppyd.sock"


def place(address: str, port: int = 1701) -> Place:
    return ip_address(address), port


def set_blocks(places: list[Place], clear: list[Place] | None = None, owner: str = OWNER) -> int:
    """As a new process does."""
    blocks = Blocks(owner)
    try:
        return blocks.set(places, clear or [])
    finally:
        blocks.close()


def policies() -> dict[str, str]:
    """Selector and direction of each policy, and what it does."""
    text = subprocess.run(["ip", "xfrm", "policy"], capture_output=True, text=True, check=True).stdout
    # A small Debian has no names of protocols.
    text = text.replace("proto 17 ", "proto udp ")
    found = re.findall(r"(src .*?) \n\tdir (\w+) (action block )?priority (\d+)", text)
    assert len({(selector, way) for selector, way, _, _ in found}) == text.count("dir ")
    # Behind all that an IKE daemon has.
    assert all(int(priority) > 1 << 31 for _, _, _, priority in found)
    return {f"{way} {selector}": "block" if action else "allow" for selector, way, action, _ in found}


def wire(ours: str, peer: str) -> None:
    """A wire, whose other end has no address; both ends are here, where nothing of the loopback is in between."""
    for line in (
        "link add one type veth peer name two",
        f"address add {ours} dev one nodad",
        "link set one up",
        "link set two up",
        f"neighbour add {peer} lladdr 02:00:00:00:00:02 dev one nud permanent",
    ):
        subprocess.run(["ip", *line.split()], check=True)


def udp(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


@pytest.mark.parametrize(("ours", "peer", "size"), [("192.0.2.1", "192.0.2.2", 24), ("fd00::1", "fd00::2", 64)])
@pytest.mark.parametrize("wildcard", [False, True])
def test_what_leaves(ours: str, peer: str, size: int, wildcard: bool) -> None:
    wire(f"{ours}/{size}", peer)
    blocked = ("::" if ":" in ours else "0.0.0.0") if wildcard else ours
    with udp(ours, 1701) as sock, udp(ours, 1702) as other:
        sock.sendto(b"", (peer, 9))
        set_blocks([place(blocked)])
        for mark in (0, 7):
            sock.setsockopt(socket.SOL_SOCKET, 36, mark)
            with pytest.raises(PermissionError):
                sock.sendto(b"", (peer, 9))
        other.sendto(b"", (peer, 9))
        assert set_blocks([]) == 2
        sock.sendto(b"", (peer, 9))


def test_what_comes() -> None:
    wire("192.0.2.1/24", "192.0.2.2")
    mac = bytes.fromhex(_mac("one"))
    packet = bytes.fromhex("45000020000000004011 0000c0000202c0000201 06a5 06a5 000c 0000 c8020000".replace(" ", ""))
    head = packet[:10] + _checksum(packet[:20]) + packet[12:]
    with (
        udp("192.0.2.1", 1701) as sock,
        udp("192.0.2.1", 1702) as other,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw,
    ):
        raw.bind(("two", 0))
        for each in (sock, other):
            each.settimeout(60)

        def send(port: int) -> None:
            raw.send(mac + b"\2\0\0\0\0\2\x08\0" + head[:22] + port.to_bytes(2, "big") + head[24:])

        send(1701)
        assert sock.recv(64) == b"\xc8\x02\0\0"
        set_blocks([place("0.0.0.0")])
        send(1701)
        # In order: had the other one come, it would be there by now.
        send(1702)
        assert other.recv(64) == b"\xc8\x02\0\0"
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv(64)


def test_each_has_its_own() -> None:
    """Setting again changes nothing; what others have set stays."""
    set_blocks([place("10.0.0.9")], owner="/run/other.sock")
    others = policies()
    assert set_blocks([place("10.0.0.1"), place("::", 1702)]) == 0
    assert policies() == others | {
        "in src 0.0.0.0/0 dst 10.0.0.1/32 proto udp dport 1701": "block",
        "out src 10.0.0.1/32 dst 0.0.0.0/0 proto udp sport 1701": "block",
        "in src ::/0 dst ::/0 proto udp dport 1702": "block",
        "out src ::/0 dst ::/0 proto udp sport 1702": "block",
    }
    assert set_blocks([place("10.0.0.1"), place("::", 1702)]) == 0
    assert set_blocks([place("10.0.0.2")]) == 4
    assert set_blocks([]) == 2
    assert policies() == others
    assert set_blocks([]) == 0


def test_a_clear_place_under_a_wildcard() -> None:
    set_blocks([place("0.0.0.0")], [place("10.0.0.1"), place("10.0.0.1", 1702), place("::")])
    assert policies() == {
        "in src 0.0.0.0/0 dst 0.0.0.0/0 proto udp dport 1701": "block",
        "out src 0.0.0.0/0 dst 0.0.0.0/0 proto udp sport 1701": "block",
        "in src 0.0.0.0/0 dst 10.0.0.1/32 proto udp dport 1701": "allow",
        "out src 10.0.0.1/32 dst 0.0.0.0/0 proto udp sport 1701": "allow",
    }
    # What is asked for twice is blocked.
    assert set_blocks([place("0.0.0.0")], [place("0.0.0.0")]) == 2
    assert set(policies().values()) == {"block"}


def _mac(name: str) -> str:
    line = subprocess.run(["ip", "-o", "link", "show", name], capture_output=True, text=True, check=True).stdout
    match = re.search(r"link/ether (\S+)", line)
    assert match
    return match[1].replace(":", "")


def _checksum(header: bytes) -> bytes:
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
