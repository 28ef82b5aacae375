"""Where XDP sees the frames of an access interface."""

from __future__ import annotations

import errno
from typing import cast

import pytest

from npppy.pipex.ebpf.libbpf import BpfError
from npppy.pipex.ebpf.nics import Place, find_place
from npppy.tun.netlink import LinkInfo, Netlink, NetlinkError

MAC = b"\2\0\0\0\0\1"
ETH = LinkInfo("eth1", 2, MAC, True, True)
BOND = LinkInfo("bond0", 3, MAC, True, True, "bond")


def vlan(ifindex: int, lower: int, number: int, protocol: int = 0x8100, *, elsewhere: bool = False) -> LinkInfo:
    return LinkInfo(f"v{ifindex}", ifindex, MAC, True, True, "vlan", lower, 0, elsewhere, number, protocol)


class Links:
    """A netlink of these interfaces."""

    def __init__(self, *infos: LinkInfo) -> None:
        self._infos = {info.ifindex: info for info in infos}

    def info(self, ifindex: int) -> LinkInfo | None:
        if ifindex == 99:
            raise NetlinkError("look interface 99 up", errno.EPERM, "")
        return self._infos.get(ifindex)


LINKS = Links(
    ETH,
    BOND,
    vlan(10, 2, 7),
    vlan(11, 2, 100, 0x88A8),
    vlan(12, 11, 7),
    vlan(13, 12, 8),
    vlan(14, 3, 4094),
    vlan(15, 2, 9, elsewhere=True),
    vlan(16, 15, 7),
    vlan(17, 98, 7),
    vlan(18, 99, 7),
)


def find(ifindex: int) -> Place:
    return find_place(cast(Netlink, LINKS), "name", ifindex)


@pytest.mark.parametrize(
    ("ifindex", "place"),
    [
        (2, Place("eth1", 2)),
        (3, Place("bond0", 3)),
        (10, Place("eth1", 2, ((0x8100, 7),))),
        (11, Place("eth1", 2, ((0x88A8, 100),))),
        (12, Place("eth1", 2, ((0x88A8, 100), (0x8100, 7)))),
        (14, Place("bond0", 3, ((0x8100, 4094),))),
    ],
)
def test_found(ifindex: int, place: Place) -> None:
    assert find(ifindex) == place


@pytest.mark.parametrize(
    ("ifindex", "why"),
    [
        (13, "Operation not supported: its frames have more than 2 VLAN tags"),
        (15, "Operation not supported: the device below v15 is in another network namespace"),
        (16, "Operation not supported: the device below v15 is in another network namespace"),
        (17, "No such device"),
        (18, "Input/output error: cannot look interface 99 up: Operation not permitted"),
        (98, "No such device"),
    ],
)
def test_nowhere(ifindex: int, why: str) -> None:
    with pytest.raises(BpfError) as caught:
        find(ifindex)
    assert str(caught.value) == f"cannot carry sessions of name: {why}"
