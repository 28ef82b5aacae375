"""Back end ebpf on all kinds of interfaces: native and generic XDP, drivers that take no frames, VLANs, core NICs."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import struct
from collections.abc import Callable

import pytest

from npppy.pipex.ebpf import nics
from npppy.pipex.ebpf.attach import ForeignError
from npppy.pipex.ebpf.layout import NIC, U32
from npppy.pipex.ebpf.libbpf import BpfError
from npppy.pipex.ebpf.nics import core_candidates
from npppy.pipex.ebpf.plumbing import NATIVE_MTU, ethtool
from npppy.port import Port
from npppy.tun.netlink import Netlink, XdpFeatures
from tests.root.ebpf_lab import (
    CORE,
    GATEWAY,
    IP,
    OURS,
    PEER,
    SESSION,
    Lab,
    Subscriber,
    attach_foreign,
    foreign_program,
    frame,
    gro,
    packet_socket,
    sh,
    until,
    xdp,
)
from tests.unit.ippackets import tcp_sum, udp, words

pytestmark = pytest.mark.root


def native(lab: Lab) -> None:
    """acc0 as it is."""


def no_gro(lab: Lab) -> None:
    """What is redirected to acc0 would be lost: nobody fetches it at the other end."""
    lab.gro = False
    with lab.subscriber:
        ethtool("sub0", 0x2C, 0)
    with lab.world:
        ethtool("core1", 0x2C, 0)


def bridge(lab: Lab) -> None:
    """A bridge, of which acc0 is a port."""
    sh("ip link set acc0 address 02:00:00:00:00:99")
    sh(f"ip link add br0 address {OURS.hex(':')} type bridge")
    sh("ip link set acc0 master br0")
    sh("ip link set br0 up")
    lab.serve("br0")


def bridge_gro(lab: Lab) -> None:
    """The same, where packets may be merged before any program sees them."""
    bridge(lab)
    gro("acc0")


def macvlan(lab: Lab) -> None:
    sh("ip link set acc0 address 02:00:00:00:00:99")
    sh(f"ip link add mac0 link acc0 address {OURS.hex(':')} type macvlan")
    sh("ip link set mac0 up")
    lab.serve("mac0")


def devs(lab: Lab) -> set[str]:
    """The interfaces that frames may be redirected to."""
    assert lab.backend is not None
    return {socket.if_indextoname(U32.unpack(key)[0]) for key, _ in lab.backend.maps.devs.items()}


def counts(lab: Lab) -> Callable[[str], int]:
    """Packets so far, by the name of the counter."""
    assert lab.backend is not None
    totals = lab.backend.maps.totals()
    return lambda name: totals[name][0]


class TestDrivers:
    @pytest.mark.parametrize("mode", ["stack", "fast", "complete"])
    @pytest.mark.parametrize("kind", [native, no_gro, bridge, bridge_gro, macvlan])
    @pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
    async def test_tcp(self, lab: Lab, kind: Callable[[Lab], None], up: bool, mode: str) -> None:
        """Drivers without XDP, and those that take no frames from it: the kernel carries all, and nothing is lost.

        The world leaves checksums to its NIC, which has no wire and does nothing about them, or completes them.
        """
        kind(lab)
        fast = mode != "stack"
        if mode == "complete":
            with lab.world:
                ethtool("core1", 0x17, 0)
        backend = await lab.open()
        backend.follow_core(fast)
        flow = lab.add(1, ingress_filter=True, mss_adjust=True, fast=fast)
        assert flow.carried
        taking = {"npx0", "npx1"} | ({"acc0"} if kind is native else set()) | ({"core0"} if fast else set())
        assert devs(lab) == ({"npx0", "npx1"} if kind is no_gro else taking)
        lab.pump = Subscriber(lab.subscriber, 1, 1500)
        size = await lab.transfer(up=up)
        counters = flow.counters()
        assert (counters.in_packets if up else counters.out_packets) > size / 1452
        assert lab.seen() == 0
        count = counts(lab)
        assert count("TX_FAIL") == 0
        # Now and then one goes through the stack, and all that acc0 would not take.
        assert (count("FAST_UP") > count("STACK_UP")) is (fast and kind is not no_gro)
        assert (count("FAST_DOWN") > count("STACK_DOWN")) is (mode == "complete" and kind is native)
        # The newest kernels merge what they receive of PPPoE, and give it unfinished checksums.
        for packet in [packet for packet in lab.pump.received if len(packet) <= 1492]:
            assert words(packet[:20]) == tcp_sum(packet) == 0xFFFF

    async def test_tap(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """A tap device has native XDP, and takes frames as long as somebody holds it."""
        caplog.set_level(logging.INFO)
        tap = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
        sh(f"ip link set tap0 up address {OURS.hex(':')}")
        lab.serve("tap0")
        await lab.open()
        assert "iface=tap0 pipex: XDP native" in caplog.messages
        flow = lab.add(1)
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        here.settimeout(60)
        os.write(tap, frame(1, IP + udp(PEER, GATEWAY, b"up", ports=(1, 4000))))
        assert here.recvfrom(100) == (b"up", (PEER, 1))
        here.sendto(b"down", (PEER, 1))
        assert select.select([tap], [], [], 10)[0]
        assert b"down" in os.read(tap, 2000)
        here.close()
        assert flow.counters()[1:5:3] == (1, 1)
        assert counts(lab)("STACK_DOWN") == 1
        os.close(tap)

    async def test_follows_the_driver(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """The peer of a veth device has GRO or not, at any time."""
        caplog.set_level(logging.INFO)
        features = XdpFeatures()
        known = features.transmits(lab.ifindex) is not None
        features.close()
        if not known:
            pytest.skip("this kernel does not tell what drivers can do")
        await lab.open()
        assert devs(lab) == {"npx0", "npx1", "acc0"}
        with lab.subscriber:
            ethtool("sub0", 0x2C, 0)
        await until(lambda: devs(lab) == {"npx0", "npx1"})
        assert caplog.messages[-1] == (
            "iface=acc0 pipex: takes no frames from XDP, but may with 'ethtool -K PEER gro on' at the other end: they "
            "leave by its queue, which is slower"
        )
        with lab.subscriber:
            gro("sub0")
        await until(lambda: devs(lab) == {"npx0", "npx1", "acc0"})
        assert caplog.messages[-1] == "iface=acc0 pipex: takes frames from XDP now"

    async def test_jumbo(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """Native XDP of veth devices ends where a page does."""
        caplog.set_level(logging.INFO)
        sh("ip link set acc0 mtu 9000")
        with lab.subscriber:
            sh("ip link set sub0 mtu 9000")
        await lab.open()
        npx = lab.npx
        assert npx is not None
        assert "iface=acc0 pipex: XDP generic" in caplog.messages
        assert "iface=tun0 pipex on npx0, XDP native on npx1" in caplog.messages
        npx.set_mtu(8000)
        assert caplog.messages[-1] == (
            "iface=tun0 pipex on npx0, XDP generic on npx1, which is slower: the MTU of 8000 is more than 3474"
        )
        await until(lambda: "mtu 8000" in sh("ip route"))
        flow = lab.add(1, mtu=8000, mru=8000)
        lab.pump = Subscriber(lab.subscriber, 1, 8000)
        code, text = await lab.subscriber.run(f"ping -c 2 -i 0.01 -W 5 -s 7972 -M do {GATEWAY}")
        assert code == 0, text
        assert flow.counters()[1:5:3] == (2, 2)
        for up in (True, False):
            await lab.transfer(up=up, world=False)
        assert max(len(packet) for packet in lab.pump.received) > NATIVE_MTU
        assert (lab.seen(), counts(lab)("TX_FAIL")) == (0, 0)
        npx.set_mtu(NATIVE_MTU)
        assert caplog.messages[-1] == "iface=tun0 pipex on npx0, XDP native on npx1"
        assert not [record for record in caplog.records if record.levelno > logging.INFO]


class TestLinks:
    async def test_news_change_nothing(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """Down and up, and the same again: the program stays, and nothing is said."""
        backend = await lab.open()
        before = sh("ip -d link show acc0").partition("prog/xdp")[2]
        caplog.set_level(logging.INFO)
        caplog.clear()
        for state in ("down", "up"):
            sh(f"ip link set acc0 {state}")
            backend.attach_access("acc0", lab.ifindex)
        assert caplog.messages == []
        assert sh("ip -d link show acc0").partition("prog/xdp")[2] == before != ""
        lab.add(1)
        lab.pump = Subscriber(lab.subscriber, 1, 1492)
        code, text = await lab.subscriber.run(f"ping -c 2 -i 0.01 -W 5 {GATEWAY}")
        assert code == 0, text
        assert lab.seen() == 0

    async def test_again_is_no_news(self, lab: Lab) -> None:
        """To attach what is attached would be news, upon which it is attached again."""
        backend = await lab.open()
        backend.follow_core(True)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as news:
            news.bind((0, 1))
            backend.attach_access("acc0", lab.ifindex)
            backend.follow_core(True)
            with pytest.raises(BlockingIOError):
                news.recv(1 << 16, socket.MSG_DONTWAIT)

    async def test_detached_by_somebody(self, lab: Lab) -> None:
        """With the next news it is there again."""
        backend = await lab.open()
        sh("ip link set acc0 xdp off")
        backend.attach_access("acc0", lab.ifindex)
        assert xdp("acc0") == "pipex_access"

    async def test_foreign_program_goes(self, lab: Lab) -> None:
        """So does one that somebody has put in place of ours."""
        program = foreign_program()
        backend = await lab.open()
        sh("ip link set acc0 xdp off")
        attach_foreign("acc0", program)
        with pytest.raises(ForeignError, match=f"acc0 has .* that is not ours: 'somebodys', id {program.id}"):
            backend.attach_access("acc0", lab.ifindex)
        assert xdp("acc0") == "somebodys"
        assert not lab.add(1).carried
        assert devs(lab) == {"npx0", "npx1"}
        sh("ip link set acc0 xdp off")
        backend.attach_access("acc0", lab.ifindex)
        assert xdp("acc0") == "pipex_access"
        assert lab.add(2, "10.0.0.3").carried
        program.close()

    async def test_renamed(self, lab: Lab) -> None:
        """Its sessions have ended; nothing of ours stays on it."""
        backend = await lab.open()
        flags = ethtool("acc0", 0x25, 0)
        sh("ip link set acc0 down")
        sh("ip link set acc0 name other")
        backend.detach_access("acc0")
        assert xdp("other") == ""
        assert ethtool("other", 0x25, 0) != flags
        assert devs(lab) == {"npx0", "npx1"}

    async def test_gone(self, lab: Lab) -> None:
        backend = await lab.open()
        with pytest.raises(BpfError, match="cannot carry sessions of none: No such device"):
            backend.attach_access("none", 999)


class TestVlans:
    async def test_share_a_device(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first VLAN brings the program, the last takes it away; sessions have the tags of their VLAN's devices."""
        places = {
            "acc0": (),
            "acc0.7": ((0x8100, 7),),
            "acc0.5.7": ((0x88A8, 5), (0x8100, 7)),
        }
        monkeypatch.setattr(
            nics, "find_place", lambda netlink, name, ifindex: nics.Place("acc0", lab.ifindex, places[name])
        )
        backend = await lab.open()
        here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        here.settimeout(60)
        with lab.subscriber:
            wire = packet_socket("sub0")
        wire.settimeout(60)
        wire.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
        for number, (name, place) in enumerate(places.items()):
            if place:
                backend.attach_access(name, 1000 + number)
            address = f"10.0.0.{2 + number}"
            # The same peer and number everywhere.
            flow = lab.add(1, address, port=Port(name))
            assert flow.carried
            tags = b"".join(struct.pack(">HH", *tag) for tag in place)
            wire.send(frame(1, IP + udp(address, GATEWAY, b"up", ports=(1, 4000)), tags=tags))
            assert here.recvfrom(100) == (b"up", (address, 1))
            here.sendto(b"down", (address, 1))
            data, more, _, _ = wire.recvmsg(2000, 100)
            assert b"down" in data
            # The kernel takes the outer tag out of the frame before it shows it.
            auxiliary = struct.unpack("IIIHHHH", more[0][2])
            assert auxiliary[5:] == (place[0][1], place[0][0]) if place else auxiliary[5] == 0
            assert data[12 : 12 + len(tags[4:]) + 2] == tags[4:] + SESSION[:2]
            assert flow.counters()[1:5:3] == (1, 1)
        wire.close()
        here.close()
        for name in ("acc0", "acc0.5.7", "acc0.7"):
            assert (xdp("acc0"), devs(lab)) == ("pipex_access", {"npx0", "npx1", "acc0"})
            backend.detach_access(name)
        assert (xdp("acc0"), devs(lab)) == ("", {"npx0", "npx1"})


class TestCore:
    async def test_candidates(self, lab: Lab) -> None:
        sh("ip link add br0 type bridge")
        for name, more in (
            ("bridged", "master br0"),
            ("off", ""),
            ("bare", ""),
            ("local", ""),
            ("good", ""),
            ("good6", ""),
        ):
            sh(f"ip link add {name} {more} type veth peer name x{name}")
            if name != "off":
                sh(f"ip link set {name} up")
        sh("ip link set good address 02:00:00:00:00:78")
        for name in ("bridged", "off", "good", "br0", "lo"):
            sh(f"ip address add 203.0.113.1/24 dev {name}")
        sh("ip address add 203.0.113.1/24 scope link dev local")
        sh("ip tuntap add tun9 mode tun")
        sh("ip address add 203.0.113.1/24 dev tun9")
        sh("ip link set tun9 up")
        with open("/proc/sys/net/ipv6/conf/good6/disable_ipv6", "w") as file:
            file.write("0")
        sh("ip address add 2001:db8::1/64 dev good6 nodad")
        await lab.open()
        sh("ip link set br0 up")
        netlink = Netlink()
        found = {info.name: info for info in core_candidates(netlink)}
        assert found.keys() == {"core0", "br0", "good", "good6"}
        assert found["good"].mac == b"\2\0\0\0\0\x78"
        ours = {found["br0"].ifindex}
        assert {info.name for info in core_candidates(netlink, ours)} == {"core0", "good", "good6"}
        netlink.close()

    async def test_follows(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """What comes, goes, or has another address; what cannot be is said once."""
        caplog.set_level(logging.INFO)
        backend = await lab.open()
        maps = backend.maps
        sh("ip link add br0 type bridge")
        sh("ip link set br0 up")
        sh("ip address add 203.0.113.1/24 dev br0")
        # A router on a stick.
        sh("ip address add 192.0.2.1/24 dev acc0")
        caplog.clear()
        backend.follow_core(True)
        assert [xdp(name) for name in ("core0", "br0", "acc0", "npx0")] == ["pipex_nic", "", "pipex_access", ""]
        assert sorted(caplog.messages) == [
            "iface=acc0 pipex: what comes in here goes through the stack: cannot use acc0 as a core interface: Device "
            "or resource busy: subscribers are there",
            "iface=br0 pipex: what comes in here goes through the stack: cannot attach program pipex_nic to br0: "
            "Operation not supported",
            "iface=core0 pipex: XDP native",
        ]
        caplog.clear()
        backend.follow_core(True)
        assert caplog.messages == []
        index = U32.pack(socket.if_nametoindex("core0"))
        sh("ip link set core0 address 02:00:00:00:00:77")
        backend.follow_core(True)
        assert maps.nics.get(index) == NIC.pack(b"\2\0\0\0\0\x77", 0)
        sh("ip link set core0 down")
        backend.follow_core(True)
        assert (xdp("core0"), maps.nics.get(index)) == ("", None)
        sh("ip link set core0 up")
        backend.follow_core(True)
        assert xdp("core0") == "pipex_nic"
        backend.follow_core(False)
        assert (xdp("core0"), maps.nics.get(index)) == ("", None)
        assert devs(lab) == {"npx0", "npx1", "acc0"}

    async def test_gets_subscribers(self, lab: Lab) -> None:
        """Then it is an access interface, and a core one again when they have gone."""
        backend = await lab.open()
        backend.follow_core(True)
        ifindex = socket.if_nametoindex("core0")
        backend.attach_access("core0", ifindex)
        assert xdp("core0") == "pipex_access"
        for fast in (True, False):
            backend.follow_core(fast)
            assert xdp("core0") == "pipex_access"
        assert "core0" in devs(lab)
        backend.detach_access("core0")
        backend.follow_core(True)
        assert xdp("core0") == "pipex_nic"

    async def test_foreign_program(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        program = foreign_program()
        attach_foreign("core0", program)
        backend = await lab.open()
        backend.follow_core(True)
        assert f"core0 has an XDP program that is not ours: 'somebodys', id {program.id}" in caplog.messages[-1]
        assert xdp("core0") == "somebodys"
        program.close()


class TestL2tp:
    """It may come by any interface that has an address."""

    async def test_follows(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """Whatever the driver can; and as core interfaces only those that may be that."""
        caplog.set_level(logging.INFO)
        backend = await lab.open()
        sh("ip link add br0 type bridge")
        sh("ip link set br0 up")
        sh("ip address add 203.0.113.1/24 dev br0")
        sh("ip address add 192.0.2.1/24 dev acc0")

        def roles() -> dict[str, tuple[str, str]]:
            return {each.name: (each.role, each.mode) for each in backend.state().interfaces if each.role != "shared"}

        backend.follow_core(False, True)
        names = ("core0", "br0", "acc0", "npx0", "npx1")
        programs = ["pipex_nic", "pipex_nic", "pipex_access", "", "pipex_core"]
        assert [xdp(name) for name in names] == programs
        assert roles() == {
            "acc0": ("access, tunnel", "native"),
            "br0": ("tunnel", "generic"),
            "core0": ("tunnel", "native"),
        }
        # No frame leaves that fast, but goes as all do.
        index = U32.pack(socket.if_nametoindex("core0"))
        assert backend.maps.nics.get(index) is None
        assert devs(lab) == {"npx0", "npx1", "acc0", "core0"}
        for _ in range(2):
            caplog.clear()
            backend.follow_core(True, True)
            assert roles()["core0"] == ("core, tunnel", "native")
            assert backend.maps.nics.get(index) == NIC.pack(CORE, 0)
            assert roles()["br0"] == ("tunnel", "generic")
            assert [xdp(name) for name in names] == programs
        assert caplog.messages == []
        # The subscribers go, and come again.
        backend.detach_access("acc0")
        assert xdp("acc0") == "pipex_nic"
        backend.attach_access("acc0", lab.ifindex)
        assert xdp("acc0") == "pipex_access"
        backend.follow_core(True, False)
        assert [xdp(name) for name in names] == ["pipex_nic", "", "pipex_access", "", "pipex_core"]
        assert roles() == {"acc0": ("access", "native"), "core0": ("core", "native")}
        backend.follow_core(False, True)
        assert (roles()["core0"], backend.maps.nics.get(index)) == (("tunnel", "native"), None)
        sh("ip link set core0 down")
        backend.follow_core(False, True)
        assert xdp("core0") == ""
        backend.follow_core(False, False)
        # What is refused in one use and has a program in another is refused once.
        backend.follow_core(True, True)
        caplog.clear()
        backend.follow_core(True, True)
        assert (xdp("br0"), caplog.messages) == ("pipex_nic", [])
        backend.follow_core(False, False)
        assert devs(lab) == {"npx0", "npx1", "acc0"}

    async def test_generic_is_no_core(self, lab: Lab) -> None:
        """Also if the program is there already."""
        backend = await lab.open()
        sh("ip link add br0 type bridge")
        sh("ip link set br0 up")
        sh("ip address add 203.0.113.1/24 dev br0")
        backend.follow_core(False, True)
        with pytest.raises(BpfError, match="cannot attach program pipex_nic to br0: Operation not supported"):
            backend.attach_core("br0", socket.if_nametoindex("br0"), CORE)
        assert xdp("br0") == "pipex_nic"
        assert backend.maps.nics.get(U32.pack(socket.if_nametoindex("br0"))) is None

    async def test_foreign_program(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """It stays, and that is said once; with the next news of the interface it may have gone."""
        caplog.set_level(logging.INFO)
        program = foreign_program()
        attach_foreign("core0", program)
        backend = await lab.open()
        for _ in range(2):
            backend.follow_core(False, True)
        why = f"core0 has an XDP program that is not ours: 'somebodys', id {program.id}"
        assert [why in text for text in caplog.messages].count(True) == 1
        assert xdp("core0") == "somebodys"
        (core,) = [each for each in backend.state().interfaces if each.name == "core0"]
        assert (core.role, core.mode) == ("tunnel", "")
        assert why in core.note
        sh("ip link set core0 xdp off")
        backend.follow_core(False, True)
        assert xdp("core0") == "pipex_nic"
        program.close()

    async def test_vlan(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """The device below has the program, whether it has an address or not; and keeps tags in frames."""
        backend = await lab.open()
        sh("ip link add wire0 type veth peer name wire1")
        sh("ip link add vlan0 type veth peer name vlan1")
        for name in ("wire0", "vlan0"):
            sh(f"ip link set {name} up")
        sh("ip address add 203.0.113.1/24 dev vlan0")
        below = nics.Place("wire0", socket.if_nametoindex("wire0"), ((0x8100, 7),))
        find = nics.find_place
        monkeypatch.setattr(
            nics, "find_place", lambda netlink, name, index: below if name == "vlan0" else find(netlink, name, index)
        )
        flags = ethtool("wire0", 0x25, 0)
        backend.follow_core(False, True)
        assert (xdp("vlan0"), xdp("wire0")) == ("", "pipex_nic")
        (found,) = [each for each in backend.state().interfaces if each.name == "vlan0"]
        assert (found.role, found.mode, found.note) == ("tunnel", "native", "on wire0, VLAN 7")
        assert ethtool("wire0", 0x25, 0) == flags & ~(1 << 8)
        # A core interface too: what is noted of one thing does not go with the other.
        index = U32.pack(below.ifindex)
        backend.attach_core("wire0", below.ifindex, CORE)
        assert backend.maps.nics.get(index) == NIC.pack(CORE, 1)
        backend.detach_core("wire0")
        assert backend.maps.nics.get(index) == NIC.pack(bytes(6), 1)
        sh("ip link set vlan0 down")
        backend.follow_core(False, True)
        assert (xdp("wire0"), backend.maps.nics.get(index)) == ("", None)
        assert ethtool("wire0", 0x25, 0) == flags
