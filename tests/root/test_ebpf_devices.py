"""Back end ebpf: what is attached where, what is left behind, what is taken over, and what is left alone."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.ebpf import maps, probe
from npppy.pipex.ebpf.attach import ForeignError, attach_xdp, detach_xdp
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.layout import U32
from npppy.pipex.ebpf.libbpf import BpfError, Map
from npppy.pipex.ebpf.maps import PipexMaps
from npppy.pipex.ebpf.plumbing import ethtool, teardown
from npppy.pipex.user import UserBackend
from npppy.tun.device import TunError
from npppy.tun.netlink import Netlink, NetlinkError
from tests.root.ebpf_lab import (
    GATEWAY,
    POOL,
    Lab,
    attach_foreign,
    foreign_program,
    gro,
    interface,
    links,
    sh,
    until,
    xdp,
)
from tests.root.ebpf_process import process

pytestmark = pytest.mark.root

GTXCSUM, GGRO, GFLAGS, SFLAGS = 0x16, 0x2B, 0x25, 0x26
RXVLAN = 1 << 8


def conf(name: str, switch: str, version: int = 4) -> Path:
    return Path(f"/proc/sys/net/ipv{version}/conf/{name}/{switch}")


def indexes(item: Map) -> list[int]:
    """The interfaces that a map has."""
    return [U32.unpack(key)[0] for key, _ in item.items()]


class TestDevices:
    async def test_configured(self, lab: Lab) -> None:
        await lab.open()
        npx = lab.npx
        assert npx is not None
        assert (npx.npx0.name, npx.npx1.name) == ("npx0", "npx1")
        shown = {link["ifname"]: link for link in json.loads(sh("ip -j -d link show"))}
        # For frames of npppyd that the programs are to send; and npx1 takes packets that L2TP comes in.
        assert {name: shown[name]["mtu"] for name in ("npx0", "npx1", "tun0")} == {
            "npx0": 1492 + 14,
            "npx1": 1492 + 100,
            "tun0": 1492,
        }
        for name in ("npx0", "npx1"):
            assert {"NOARP", "UP"} <= set(shown[name]["flags"])
            assert shown[name]["inet6_addr_gen_mode"] == "none"
            assert shown[name]["num_tx_queues"] == shown[name]["num_rx_queues"] == os.cpu_count()
        addresses = {link["ifname"]: link["addr_info"] for link in json.loads(sh("ip -j address show"))}
        assert [address["local"] for address in addresses["npx0"]] == [GATEWAY]
        assert addresses["tun0"] == []
        assert [(address["local"], address["scope"]) for address in addresses["npx1"]] == [("127.110.112.120", "host")]
        assert (ethtool("npx0", GTXCSUM, 0), ethtool("npx0", GGRO, 0)) == (0, 1)
        assert (xdp("npx1"), xdp("acc0"), xdp("npx0")) == ("pipex_core", "pipex_access", "")
        assert "pipex_miss" in sh("tc filter show dev npx1 ingress")
        # Nothing is there yet but the place, which nobody can make without losing packets.
        assert "clsact" in sh("tc qdisc show dev npx0")
        assert not sh("tc filter show dev npx0 ingress") + sh("tc filter show dev npx0 egress")
        for mtu, expected in ((1400, 1400), (576, 1280)):
            npx.set_mtu(mtu)
            found = {name: json.loads(sh(f"ip -j link show {name}"))[0]["mtu"] for name in ("npx0", "npx1", "tun0")}
            assert found == {"npx0": expected + 14, "npx1": expected + 100, "tun0": expected}
            assert conf("npx0", "mtu", 6).read_text() == f"{expected}\n"

    async def test_for_l2tp(self, lab: Lab) -> None:
        """The stack forwards what the programs pass at npx1; and what was decrypted can be sent to them."""
        for switch, value in (("forwarding", 0), ("rp_filter", 1)):
            conf("default", switch).write_text(str(value))
        await lab.open()
        lab.add_interface(interface("tun1", "10.1.0.1"), ())
        assert [conf("npx1", name).read_text() for name in ("forwarding", "accept_local", "rp_filter")] == [
            "1\n",
            "1\n",
            "0\n",
        ]
        for name in ("npx0", "npx2"):
            (neighbour,) = json.loads(sh(f"ip -j neighbour show dev {name}"))
            assert (neighbour["dst"], neighbour["lladdr"], neighbour["state"]) == (
                "192.0.0.9",
                "02:6e:70:78:00:02",
                ["PERMANENT"],
            )
            assert "192.0.0.9 " in sh(f"ip route show dev {name}")

    async def test_own_addresses(self, lab: Lab) -> None:
        conf("core0", "disable_ipv6", 6).write_text("0")
        sh("ip -6 address add 2001:db8::1/64 dev core0 nodad")
        sh("ip address add 192.0.2.1 peer 192.0.2.2 dev core0")
        netlink = Netlink()
        found = netlink.addresses()
        netlink.close()
        for address in ("198.51.100.1", "192.0.2.1", "2001:db8::1", "127.0.0.1"):
            assert ip_address(address).packed in found
        assert ip_address("192.0.2.2").packed not in found

    async def test_what_keeps_l2tp_from_leaving(self, lab: Lab) -> None:
        """What others have changed at our own device is put right; for the rest there is a reason."""
        await lab.open()
        npx = lab.npx
        assert npx is not None
        for switch, wrong, right in (("forwarding", 0, 1), ("accept_local", 0, 1), ("rp_filter", 1, 0)):
            conf("npx1", switch).write_text(str(wrong))
            assert npx.why_not_outward(4) == ""
            assert conf("npx1", switch).read_text() == f"{right}\n"
        for value, why in ((1, "net.ipv4.conf.all.rp_filter is 1: set it to 2 or 0"), (2, ""), (0, "")):
            conf("all", "rp_filter").write_text(str(value))
            assert npx.why_not_outward(4) == why
        assert npx.why_not_outward(6) == "net.ipv6.conf.npx1.disable_ipv6 is 1"
        conf("npx1", "disable_ipv6", 6).write_text("0")
        forced = conf("npx1", "force_forwarding", 6).exists()
        assert npx.why_not_outward(6) == ("" if forced else "net.ipv6.conf.all.forwarding is 0: set it to 1")
        conf("all", "forwarding", 6).write_text("1")
        assert npx.why_not_outward(6) == ""

    async def test_routes(self, lab: Lab) -> None:
        await lab.open()
        npx = lab.npx
        assert npx is not None
        more = IPv4Network("10.7.0.0/24")
        npx.add_route(more)
        route = "10.7.0.0/24 via 192.0.0.8 dev npx0 proto 112 onlink mtu"
        await until(lambda: f"{route} 1492" in sh("ip route"))
        for mtu in (1500, 1400):
            npx.set_mtu(mtu)
            await until(lambda mtu=mtu: f"{route} {mtu}" in sh("ip route"))
        assert sh("ip route").count("10.7.0.0/24") == 1
        npx.remove_route(more)
        await until(lambda: "10.7.0.0/24" not in sh("ip route"))
        assert f"{POOL} via 192.0.0.8 dev npx0" in sh("ip route")

    async def test_names_that_others_have(self, lab: Lab) -> None:
        for name in ("npx0", "npx1"):
            sh(f"ip tuntap add {name} mode tun")
            sh(f"ip link set {name} alias npppish")
        await lab.open()
        assert lab.npx is not None
        assert (lab.npx.npx0.name, lab.npx.npx1.name) == ("npx2", "npx3")
        lab.close_interface(lab.npx)
        assert {"npx0", "npx1"} <= links()
        assert "npx2" not in links()

    async def test_failure_leaves_nothing(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """At whichever step."""
        backend = EbpfBackend.open(10, None)
        lab.backend = backend
        before = links()
        with pytest.raises(TunError, match=r"tun0: cannot add the route 10.0.0.0/16 to npx0: File exists"):
            backend.open_interface(interface(), 1492, [POOL, POOL])
        assert links() == before
        for method in ("add_veth", "set_alias", "no_link_local", "set_up", "add_address"):

            def fail(*_: object, method: str = method, **__: object) -> None:
                raise NetlinkError(method, errno.EPERM, "")

            with monkeypatch.context() as patch:
                patch.setattr(Netlink, method, fail)
                with pytest.raises(TunError, match=f"tun0: cannot {method}"):
                    backend.open_interface(interface(), 1492, [])
            assert links() == before
        wrong = backend.maps.programs["pipex_miss"]
        monkeypatch.setitem(backend.maps.programs, "pipex_core", wrong)
        with pytest.raises(TunError, match="cannot attach program pipex_miss to npx1"):
            backend.open_interface(interface(), 1492, [])
        assert links() == before

    async def test_generic(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        """Where the driver has no XDP."""
        caplog.set_level(logging.INFO)
        backend = await lab.open()
        backend.attach_access("lo", 1)
        assert xdp("lo") == "pipex_access"
        assert "iface=lo pipex: XDP generic" in caplog.messages
        assert "iface=acc0 pipex: XDP native" in caplog.messages
        backend.detach_access("lo")
        assert xdp("lo") == ""
        backend.detach_access("lo")
        backend.detach_core("lo")

    async def test_interface_goes_and_comes(self, lab: Lab) -> None:
        backend = await lab.open()

        def come(more: str = "") -> int:
            sh(f"ip link add acc1 {more} type veth peer name acc2")
            gro("acc2")
            sh("ip link set acc2 up")
            sh("ip link set acc1 up")
            return socket.if_nametoindex("acc1")

        first = come()
        backend.attach_access("acc1", first)
        assert first in indexes(backend.maps.devs)
        sh("ip link delete acc1")
        assert come("index 77") == 77 != first
        backend.attach_access("acc1", 77)
        assert xdp("acc1") == "pipex_access"
        assert 77 in indexes(backend.maps.devs)
        assert first not in indexes(backend.maps.devs)
        sh("ip link delete acc1")
        backend.detach_access("acc1")
        assert 77 not in indexes(backend.maps.devs)

    async def test_core(self, lab: Lab) -> None:
        backend = await lab.open()
        ifindex = socket.if_nametoindex("core0")
        backend.attach_core("core0", ifindex, b"\x02\0\0\0\0\x09")
        assert xdp("core0") == "pipex_nic"
        with pytest.raises(BpfError, match=r"cannot use acc0 as a core interface: .*: subscribers are there"):
            backend.attach_core("acc0", lab.ifindex, bytes(6))
        assert xdp("acc0") == "pipex_access"
        # That of an access interface is a note that it took VLAN tags off.
        assert set(indexes(backend.maps.nics)) - {lab.ifindex} == {ifindex}
        backend.detach_core("core0")
        assert xdp("core0") == ""
        assert ifindex not in indexes(backend.maps.nics)

    async def test_vlan_tags_are_kept(self, lab: Lab) -> None:
        """As long as we are there, where the driver took them out of frames; one that did not is left alone."""
        sh("ip link add v0 type veth peer name v1")
        flags = ethtool("v0", GFLAGS, 0) & ~RXVLAN
        backend = await lab.open()
        for before in (flags, flags | RXVLAN):
            ethtool("v0", SFLAGS, before)
            assert ethtool("v0", GFLAGS, 0) == before
            backend.attach_access("v0", socket.if_nametoindex("v0"))
            assert ethtool("v0", GFLAGS, 0) == flags
            backend.detach_access("v0")
            assert ethtool("v0", GFLAGS, 0) == before
        assert lab.ifindex in indexes(backend.maps.nics)
        assert socket.if_nametoindex("v0") not in indexes(backend.maps.nics)


class TestForeign:
    async def test_access(self, lab: Lab) -> None:
        """It stays, the error names it, and Python carries what comes there."""
        sh("ip link add other0 type veth peer name other1")
        program = foreign_program()
        attach_foreign("other0", program)
        backend = await lab.open()
        with pytest.raises(ForeignError) as caught:
            backend.attach_access("other0", socket.if_nametoindex("other0"))
        assert str(caught.value) == (
            "cannot attach program pipex_access to other0: Device or resource busy: other0 has an XDP program that is "
            f"not ours: 'somebodys', id {program.id}"
        )
        assert xdp("other0") == "somebodys"
        ifindex = socket.if_nametoindex("other0")
        assert ifindex not in indexes(backend.maps.devs)
        assert not detach_xdp("other0", ifindex, {})
        teardown(None)
        assert xdp("other0") == "somebodys"
        program.close()

    async def test_ours_is_replaced(self, lab: Lab) -> None:
        """At once, in its mode; nothing is lost."""
        await lab.open()
        other = PipexMaps(1)
        before = sh("ip -d link show acc0")
        assert attach_xdp("acc0", lab.ifindex, other.programs["pipex_access"], {}) == "native"
        assert f"id {other.programs['pipex_access'].id} " in sh("ip -d link show acc0") != before
        other.close()


class TestProbe:
    def test_works(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        before = links()
        assert probe.why_not() == ""
        assert links() == before
        backend = probe.choose(10, None)
        assert isinstance(backend, EbpfBackend)
        assert caplog.messages[-1] == "pipex: back end ebpf, up to 10 sessions"
        backend.close()

    def test_why_not(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        before, files = links(), os.listdir("/proc/self/fd")

        def fail(*_: Any) -> None:
            raise BpfError("attach program pipex_probe to npxprobe1", errno.EOPNOTSUPP)

        monkeypatch.setattr(probe, "attach_xdp", fail)
        assert probe.why_not() == "cannot attach program pipex_probe to npxprobe1: Operation not supported"
        assert (links(), os.listdir("/proc/self/fd")) == (before, files)

    @pytest.mark.parametrize(("content", "why"), [(None, "No such file or directory"), (b"not an object", "")])
    def test_no_object(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        content: bytes | None,
        why: str,
    ) -> None:
        path = tmp_path / "some.o"
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setattr(maps, "OBJECT", str(path))
        assert type(probe.choose(10, None)) is UserBackend
        (line,) = caplog.messages
        assert f"Python carries all packets: cannot open the BPF object {path}: {why}" in line

    def test_not_permitted(self, lab: Lab) -> None:
        """Without capabilities one line says what is missing, and Python carries all."""
        done = process(
            """
    capabilities()
    logging.basicConfig(format="%(message)s")
    print(type(choose(10)).__name__)"""
        )
        assert done.stdout.strip() == UserBackend.__name__, done.stderr
        assert done.stderr.count("\n") == 1
        assert "Operation not permitted (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)" in done.stderr
