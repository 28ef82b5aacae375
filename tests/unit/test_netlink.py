"""What the kernel says of interfaces and of its netlink families, as it was seen to say it (Linux 7.3, x86)."""

from __future__ import annotations

import sys

import pytest

from npppy.tun.netlink import LinkInfo, link_info, netdev_family

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="netlink is in host order")

MAC = bytes.fromhex("c602d441b3fc")

#: ip link add link eth1 name v0.100 type vlan id 100 proto 802.1ad
SERVICE = """
    0000 0100 0f000000 02100000 00000000
    0b00 0300 76302e313030 00 00
    0800 0d00 e8030000
    0600 4400 0400 0000
    0a00 0100 c602d441b3fc 0000
    3000 1200
      0900 0100 766c616e00 000000
      2000 0200  0600 0500 88a8 0000  0600 0100 6400 0000  0c00 0200 01000000ffffffff
    0800 0500 0e000000
"""
#: A VLAN whose device is in another network namespace.
ELSEWHERE = """
    0000 0100 12000000 03100000 00000000
    0800 0300 782e3900
    0a00 0100 c602d441b3fc 0000
    3000 1200
      0900 0100 766c616e00 000000
      2000 0200  0600 0500 8100 0000  0600 0100 0900 0000  0c00 0200 01000000ffffffff
    0800 2500 00000000
    0800 0500 0d000000
"""
#: A port of a bridge, with an alias and a program; hardware.
PORT = """
    0000 0100 03000000 43100100 00000000
    0900 0300 6574683100 000000
    0800 0a00 07000000
    0f00 1400 6e707070792074756e3000 00
    0800 0400 dc050000
    1c00 2b00  0500 0200 01000000  0800 0400 25000000  0800 0500 25000000
    0a00 0100 c602d441b3fc 0000
"""
TUNNEL = """
    0000 0003 05000000 80000000 00000000
    0a00 0300 74756e6c3000 0000
    0800 0100 00000000
    0c00 1200  0800 0100 69706970
"""

#: The reply to the look-up of "netdev", with one of its commands.
FAMILY = """
    01020000
    0b00 0200 6e657464657600 00
    0600 0100 1300 0000
    0800 0300 01000000
    1800 0600  1400 0100  0800 0100 01000000  0800 0200 0e000000
    3800 0700
      1800 0100  0800 0200 02000000  0900 0100 6d676d7400 000000
      1c00 0200  0800 0200 03000000  0e00 0100 706167652d706f6f6c00 0000
"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SERVICE, LinkInfo("v0.100", 15, MAC, True, False, "vlan", 14, 0, False, 100, 0x88A8)),
        (ELSEWHERE, LinkInfo("x.9", 18, MAC, True, True, "vlan", 13, 0, True, 9, 0x8100)),
        (PORT, LinkInfo("eth1", 3, MAC, True, True, master=7, alias="npppy tun0", mtu=1500, xdp=1)),
        (TUNNEL, LinkInfo("tunl0", 5, bytes(4), False, False, "ipip")),
    ],
    ids=["VLAN", "elsewhere", "port", "tunnel"],
)
def test_link(message: str, expected: LinkInfo) -> None:
    assert link_info(bytes.fromhex(message)) == expected


def test_family() -> None:
    assert netdev_family(bytes.fromhex(FAMILY)) == (19, 2)


def test_family_without_groups() -> None:
    assert netdev_family(bytes.fromhex(FAMILY)[:28]) == (19, 0)
