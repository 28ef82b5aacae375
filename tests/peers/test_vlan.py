"""Access interfaces that are VLAN devices: the programs are on the device below, and know the tags."""

from __future__ import annotations

import pytest

from npppy.pipex.ebpf.plumbing import ethtool
from tests.peers.lab import KERNEL_MODES, WORLD, Lab, inside

pytestmark = pytest.mark.guest

# <linux/ethtool.h>
GFLAGS, SFLAGS, TXVLAN = 0x25, 0x26, 1 << 7

#: Of the subscriber and of ours, by the ends of their names.
DEVICES = (
    "link add link {0} name {0}.7 type vlan id 7",
    "link add link {0} name {0}.100 type vlan id 100",
    "link add link {0}.100 name {0}.100.9 type vlan id 9",
    "link set {0}.100 up",
    "link set {0}.7 up",
    "link set {0}.100.9 up",
)


def carried(lab: Lab) -> tuple[int, int]:
    """Packets that the programs have carried, up and down."""
    paths = lab.paths()
    return paths["STACK_UP"] + paths["FAST_UP"], paths["STACK_DOWN"] + paths["FAST_DOWN"]


@KERNEL_MODES
def test_sessions_in_vlans(lab: Lab) -> None:
    # A virtual wire would carry tags beside the frame, where XDP does not see them.
    with inside(lab.sub):
        ethtool("sub0", SFLAGS, ethtool("sub0", GFLAGS, 0) & ~TXVLAN)
    for namespace, name in ((lab.bng, "eth1"), (lab.sub, "sub0")):
        lab.ip(namespace, *(line.format(name) for line in DEVICES))
    lab.start("listen on interface eth1.7\nlisten on interface eth1.100.9")
    lab.daemon.says(r"iface=eth1\.7 pipex: carried on eth1, VLAN 7")
    lab.daemon.says(r"iface=eth1\.100\.9 pipex: carried on eth1, VLAN 100\.9")
    for end in ("", ".7", ".100.9"):
        pppd = lab.dial(link=("plugin", "rp-pppoe.so", f"sub0{end}")).up()
        lab.ip(lab.sub, f"route replace default dev {pppd.interface}")
        up, down = carried(lab)
        lab.ping(lab.sub, WORLD, count=5)
        assert carried(lab) == (up + 5, down + 5)
    # With one of them the others stay.
    lab.ip(lab.bng, "link delete eth1.100.9")
    lab.ended("Lost-Carrier")
    for name in ("ppp1", "ppp0"):
        lab.ip(lab.sub, f"route replace default dev {name}")
        up, down = carried(lab)
        lab.ping(lab.sub, WORLD, count=5)
        assert carried(lab) == (up + 5, down + 5)


@KERNEL_MODES
def test_tags_that_xdp_does_not_see(lab: Lab) -> None:
    """Then Python carries what the peer sends, and the programs what it is sent."""
    lab.start("listen on interface eth1.7")
    for namespace, name in ((lab.bng, "eth1"), (lab.sub, "sub0")):
        lab.ip(namespace, f"link add link {name} name {name}.7 type vlan id 7", f"link set {name}.7 up")
    lab.daemon.says(r"iface=eth1\.7 pipex: carried on eth1, VLAN 7")
    pppd = lab.dial(link=("plugin", "rp-pppoe.so", "sub0.7")).up()
    lab.ip(lab.sub, f"route replace default dev {pppd.interface}")
    lab.ping(lab.sub, WORLD, count=5)
    assert carried(lab) == (0, 5)
    assert lab.paths()["PUNT_UNKNOWN"] >= 5
