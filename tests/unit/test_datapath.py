"""How many sessions the maps are made for, what the kernel is to carry, and which packets are not a subscriber's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from npppy.config.model import Config, Interface
from npppy.pipex import datapath
from npppy.pipex.base import FlowSpec
from npppy.pipex.datapath import DataPath, capacity
from npppy.pipex.user import UserBackend

from .config_file import BASE, ConfigFile
from .ippackets import ip, udp

CONF = """
{top}
tunnel ACCESS protocol pppoe {{
    listen on interface eth1
}}
{pools}
authentication LOCAL type local {{
    users-file "users"
}}
"""


def pool(name: str, addresses: str) -> str:
    return f"ipcp {name} {{\n pool-address {addresses}\n}}\ninterface tun{name} address 192.0.2.{name} ipcp {name}\n"


@pytest.mark.parametrize(
    ("top", "pools", "number"),
    [
        ("", pool("1", "10.0.0.0/24"), 1024),
        ("", pool("1", "10.0.0.0/19") + pool("2", "10.1.0.0/20"), 8192 + 4096),
        ("", pool("1", "10.0.0.0/19") + "interface tun9 address 192.0.2.9 ipcp 1\n", 8192),
        ("", pool("1", "10.0.0.0/12"), 65536),
        ("set max-session 20", pool("1", "10.0.0.0/12"), 20),
        ("set max-session 100000", pool("1", "10.0.0.0/24"), 100_000),
        ("set max-session 10000000", pool("1", "10.0.0.0/24"), 1 << 20),
    ],
)
def test_capacity(tmp_path: Path, top: str, pools: str, number: int) -> None:
    assert capacity(ConfigFile(tmp_path).load(CONF.format(top=top, pools=pools))) == number


L2TP = """
tunnel L2TP protocol l2tp {
    listen on 192.0.2.1
    %s
}
"""
PPTP = """
tunnel PPTP protocol pptp {
    listen on 192.0.2.1
    %s
}
"""
PPPOE = """
tunnel PPPOE protocol pppoe {
    listen on interface eth1
    %s
}
"""


class Kernel(UserBackend):
    """A back end that notes which interfaces it is to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.followed: list[tuple[bool, bool]] = []

    def open_interface(self, interface: Interface, *_: object) -> Tun:  # type: ignore[override]
        return Tun(interface.name)

    def follow_core(self, wanted: bool, l2tp: bool = False) -> None:
        self.followed.append((wanted, l2tp))


class Tun:
    def __init__(self, name: str) -> None:
        self.name = name
        self.address = IPv4Address("10.64.0.1")
        self.emitted: list[bytes] = []
        self.write = self.emit = self.emitted.append

    def start(self, deliver: Callable[[bytes, float], None]) -> None:
        self.deliver = deliver

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(datapath, "choose", lambda *_: made)
    monkeypatch.setattr(datapath, "end_leftovers", lambda *_: None)
    own = frozenset(ip_address(text).packed for text in ("192.0.2.1", "2001:db8::1"))
    monkeypatch.setattr(datapath, "_addresses", lambda: own)
    return made


def load(folder: Path, *tunnels: str) -> Config:
    return ConfigFile(folder).load(BASE + "".join(tunnels))


@pytest.mark.parametrize(
    ("tunnels", "followed"),
    [
        ([L2TP % ""], [(False, True)]),
        ([L2TP % "pipex-forward fast"], [(True, True)]),
        ([L2TP % "pipex no", PPPOE % ""], [(False, False)]),
        ([L2TP % "", PPPOE % "pipex-forward fast"], [(True, True)]),
        ([L2TP % "pipex no"], []),
        ([PPTP % ""], [(False, True)]),
        ([PPTP % "", PPPOE % "pipex-forward fast"], [(True, True)]),
        ([PPTP % "pipex no", PPPOE % ""], [(False, False)]),
    ],
)
def test_follows_for_tunnels(
    kernel: Kernel, tmp_path: Path, tunnels: list[str], followed: list[tuple[bool, bool]]
) -> None:
    data = DataPath(load(tmp_path, *tunnels), tmp_path)
    data.follow()
    assert kernel.followed == followed


@pytest.mark.parametrize("carrier", [L2TP, PPTP], ids=["L2TP", "PPTP"])
def test_sessions_from_before(kernel: Kernel, tmp_path: Path, carrier: str) -> None:
    """Where no more are wanted there are some yet, as long as there is the tunnel."""
    data = DataPath(load(tmp_path, PPPOE % ""), tmp_path)
    for more in (carrier % "", carrier % "pipex no", "", carrier % "pipex no"):
        data.configure(load(tmp_path, PPPOE % "", more))
        data.follow()
    assert [tunnelled for _, tunnelled in kernel.followed] == [True, True, False, False]


def udp6(source: str, destination: str, data: bytes) -> bytes:
    datagram = struct.pack(">HHHH", 40000, 1701, 8 + len(data), 0) + data
    head = struct.pack(">IHBB", 6 << 28, len(datagram), 17, 64)
    return head + ip_address(source).packed + ip_address(destination).packed + datagram


FAR, FAR6 = "203.0.113.9", "2001:db8:f::9"


@pytest.mark.parametrize(
    ("packet", "outer"),
    [
        (udp(FAR, "192.0.2.1", b"data"), True),
        (udp6(FAR6, "2001:db8::1", b"data"), True),
        # Of no subscriber, but not ours either.
        (udp(FAR, "10.64.0.9", b"data"), False),
        (udp6(FAR6, "2001:db8::2", b"data"), False),
        (ip(FAR, "192.0.2.1", b"data", protocol=1), False),
        (ip(FAR, "192.0.2.1", bytes(8), flags=0x2000), False),
        (ip(FAR, "192.0.2.1", bytes(8), flags=0x00FF), False),
        (ip(FAR, "192.0.2.1", bytes(8), flags=0x4000), True),
    ],
)
def test_outer_packets(kernel: Kernel, tmp_path: Path, packet: bytes, outer: bool) -> None:
    config = load(tmp_path, L2TP % "")
    data = DataPath(config, tmp_path)
    found: list[tuple[bytes, float]] = []
    data.open_interface(config.interfaces[0], 1400)
    tun = data.tuns["tun0"]
    assert isinstance(tun, Tun)
    tun.deliver(packet, 1.0)
    data.follow()
    tun.deliver(packet, 2.0)
    assert found == []
    data.outer = lambda packet, now: found.append((packet, now))
    tun.deliver(packet, 3.0)
    assert found == ([(packet, 3.0)] if outer else [])
    assert kernel.interfaces["tun0"].unknown == (2 if outer else 3)


def test_a_subscribers_address_is_a_subscribers(kernel: Kernel, tmp_path: Path) -> None:
    config = load(tmp_path, L2TP % "")
    data = DataPath(config, tmp_path)
    data.open_interface(config.interfaces[0], 1400)
    data.follow()
    found: list[bytes] = []
    data.outer = lambda packet, now: found.append(packet)
    sent: list[bytes] = []
    address = int(IPv4Address("192.0.2.1"))
    spec = FlowSpec(session=1, domain=0, interface="tun0", address=address, mtu=1400, mru=1400, send=sent.append)
    kernel.add(spec, 1.0)
    tun = data.tuns["tun0"]
    assert isinstance(tun, Tun)
    tun.deliver(udp(FAR, "192.0.2.1"), 1.0)
    assert (len(sent), found) == (1, [])
