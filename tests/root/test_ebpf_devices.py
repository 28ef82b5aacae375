"""Back end ebpf: what is attached where, what is left behind, what is taken over, and what is left alone."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.ebpf import probe
from npppy.pipex.ebpf.attach import ForeignError, attach_xdp, detach_xdp
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.layout import OBJECT, U32, VERSION
from npppy.pipex.ebpf.libbpf import BpfError, Map
from npppy.pipex.ebpf.maps import PipexMaps, remove_pins
from npppy.pipex.ebpf.plumbing import ethtool, keep_vlan_tags, teardown
from npppy.pipex.user import UserBackend
from npppy.tun.device import TunError
from npppy.tun.netlink import Netlink, NetlinkError
from tests.root.ebpf_lab import (
    GATEWAY,
    LIBC,
    POOL,
    WORLD,
    Lab,
    Subscriber,
    attach_foreign,
    foreign_program,
    interface,
    sh,
    until,
)

pytestmark = pytest.mark.root

GTXCSUM, GGRO = 0x16, 0x2B


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A directory on a BPF file system of our own."""
    assert LIBC.mount(b"bpf", os.fsencode(tmp_path), b"bpf", 0, None) == 0, os.strerror(ctypes.get_errno())
    try:
        yield tmp_path / "npppy"
    finally:
        assert LIBC.umount(os.fsencode(tmp_path)) == 0


def xdp(name: str) -> str:
    """The name of the XDP program of an interface."""
    link = json.loads(sh(f"ip -j -d link show {name}"))[0]
    return link.get("xdp", {}).get("prog", {}).get("name", "")


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


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
        for name in ("npx0", "npx1"):
            assert {"NOARP", "UP"} <= set(shown[name]["flags"])
            assert shown[name]["mtu"] == 1492
            assert shown[name]["inet6_addr_gen_mode"] == "none"
            assert shown[name]["num_tx_queues"] == shown[name]["num_rx_queues"] == os.cpu_count()
        addresses = {link["ifname"]: link["addr_info"] for link in json.loads(sh("ip -j address show"))}
        assert [address["local"] for address in addresses["npx0"]] == [GATEWAY]
        assert addresses["tun0"] == addresses["npx1"] == []
        assert (ethtool("npx0", GTXCSUM, 0), ethtool("npx0", GGRO, 0)) == (0, 1)
        assert (xdp("npx1"), xdp("acc0"), xdp("npx0")) == ("pipex_core", "pipex_access", "")
        assert "pipex_miss" in sh("tc filter show dev npx1 ingress")
        npx.set_mtu(1400)
        assert {json.loads(sh(f"ip -j link show {name}"))[0]["mtu"] for name in ("npx0", "npx1", "tun0")} == {1400}

    async def test_routes(self, lab: Lab) -> None:
        await lab.open()
        npx = lab.npx
        assert npx is not None
        more = IPv4Network("10.7.0.0/24")
        npx.add_route(more)
        await until(lambda: "10.7.0.0/24 dev npx0" in sh("ip route"))
        npx.remove_route(more)
        await until(lambda: "10.7.0.0/24" not in sh("ip route"))
        assert f"{POOL} dev npx0" in sh("ip route")

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
        sh("ip link add acc1 type veth peer name acc2")
        first = socket.if_nametoindex("acc1")
        backend.attach_access("acc1", first)
        sh("ip link delete acc1")
        sh("ip link add acc1 index 77 type veth peer name acc2")
        assert socket.if_nametoindex("acc1") != first
        backend.attach_access("acc1", 77)
        assert xdp("acc1") == "pipex_access"
        assert 77 in indexes(backend.maps.devs)
        assert first not in indexes(backend.maps.devs)
        sh("ip link delete acc1")
        backend.detach_access("acc1")
        assert 77 not in indexes(backend.maps.devs)

    async def test_core(self, lab: Lab) -> None:
        backend = await lab.open(fast=True)
        ifindex = socket.if_nametoindex("core0")
        backend.attach_core("core0", ifindex, b"\x02\0\0\0\0\x09")
        assert xdp("core0") == "pipex_nic"
        with pytest.raises(BpfError, match="it is both access and core"):
            backend.attach_core("acc0", lab.ifindex, bytes(6))
        assert xdp("acc0") == "pipex_access"
        assert indexes(backend.maps.nics) == [ifindex]
        backend.detach_core("core0")
        assert xdp("core0") == ""
        assert backend.maps.nics.items() == []

    async def test_vlan_tags_are_kept(self, lab: Lab) -> None:
        """As long as we are there."""
        sh("ip link add v0 type veth peer name v1")
        if not keep_vlan_tags("v0", keep=False) and not keep_vlan_tags("v0", keep=True):
            pytest.skip("veth here cannot strip tags")
        keep_vlan_tags("v0", keep=False)
        backend = await lab.open()
        backend.attach_access("v0", socket.if_nametoindex("v0"))
        assert not keep_vlan_tags("v0", keep=True)
        backend.detach_access("v0")
        assert not keep_vlan_tags("v0", keep=False)


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


class TestTeardown:
    async def test_close(self, lab: Lab, pins: Path) -> None:
        """An orderly end leaves nothing."""
        backend = await lab.open(pins=pins)
        assert (pins / f"v{VERSION}" / "sessions").exists()
        assert (pins / f"v{VERSION}" / "prog_pipex_access").exists()
        lab.add(1).close()
        assert lab.npx is not None
        lab.close_interface(lab.npx)
        backend.close()
        lab.backend = None
        assert xdp("acc0") == ""
        assert not {"npx0", "npx1", "tun0"} & links()
        assert not pins.exists()
        assert "npx" not in sh("ip route")

    async def test_kill(self, lab: Lab, pins: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Sessions go on when the process has gone, until the next one, or a teardown, ends them."""
        caplog.set_level(logging.INFO)
        for clean in (False, True):
            self.killed(lab, pins)
            if lab.pump is None:
                lab.pump = Subscriber(lab.subscriber, 1, 1492)
            code, text = await lab.subscriber.run(f"ping -c 3 -i 0.01 -W 5 {WORLD}")
            assert code == 0, text
            if clean:
                assert teardown(pins) == [
                    "XDP program detached from acc0",
                    "XDP program detached from npx1",
                    "device npx0 removed",
                    "16 pins removed from " + str(pins),
                ]
                assert teardown(pins) == []
            else:
                backend = EbpfBackend.open(10, pins)
                assert backend.maps.adopted
                assert backend.maps.used == 0
                assert backend.maps.sessions.items() == backend.maps.devs.items() == []
                assert not any(any(value) for _, value in backend.maps.config.items())
                backend.close()
                assert "pipex: left by an earlier npppyd: 1 sessions removed" in caplog.messages
            assert xdp("acc0") == ""
            assert "npx0" not in links()
            assert not pins.exists()

    def killed(self, lab: Lab, pins: Path) -> None:
        """Another process sets a session up and dies."""
        done = process(f"await lab.open(10, Path({str(pins)!r})); assert lab.add(1).carried; os.kill(os.getpid(), 9)")
        assert done.returncode == -9, done.stderr

    async def test_capabilities(self, lab: Lab, pins: Path) -> None:
        """CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON are enough, from the start to the end."""
        done = process(
            f"""
    capabilities(12, 13, 38, 39)
    assert why_not() == ""
    await lab.open(10, Path({str(pins)!r}))
    assert lab.backend.maps.capacity == 10 and Path({str(pins)!r}).exists()
    flow = lab.add(1)
    assert flow.carried
    flow.close()
    lab.close_interface(lab.npx)
    lab.backend.close()
    assert not Path({str(pins)!r}).exists()"""
        )
        assert done.returncode == 0, done.stderr
        assert xdp("acc0") == ""
        assert "npx0" not in links()

    async def test_capabilities_after_a_kill(self, lab: Lab, pins: Path) -> None:
        """Only root may look at programs by number; pins tell which are ours."""
        self.killed(lab, pins)
        done = process(f"capabilities(12, 13, 38, 39); await lab.open(10, Path({str(pins)!r})); lab.backend.close()")
        assert done.returncode == 0, done.stderr
        assert xdp("acc0") == ""


def process(body: str) -> subprocess.CompletedProcess[str]:
    """Run the body of a coroutine in another process, with a lab of its own in the devices that are there."""
    script = f"""
import asyncio, ctypes, logging, os, struct
from pathlib import Path
from npppy.pipex.ebpf.probe import choose, why_not
from tests.root.ebpf_lab import *

def capabilities(*numbers):
    mask = sum(1 << number for number in numbers)
    data = struct.pack("<6I", mask & 0xFFFFFFFF, mask & 0xFFFFFFFF, 0, mask >> 32, mask >> 32, 0)
    assert ctypes.CDLL(None).capset(struct.pack("<Ii", 0x20080522, 0), data) == 0

async def main():
    lab = Lab.__new__(Lab)
    lab.flows, lab.pump, lab.ifindex = {{}}, None, socket.if_nametoindex("acc0")
    lab.access = packet_socket("acc0", 0x8864)
    {body}
asyncio.run(main())
"""
    root = Path(OBJECT).parents[3]
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)


class TestPins:
    def test_adopted(self, pins: Path) -> None:
        """Maps of this version and size come with their entries; slots in use stay so, and generations go on."""
        first = PipexMaps(10, pins)
        taken = [first.take() for _ in range(3)]
        for slot, generation in taken:
            first.fill(slot, U32.pack(generation).ljust(176, b"\1"), 5)
        first.free(taken[1][0])
        first.sessions.put(bytes(20), bytes(8))
        first.close()
        second = PipexMaps(10, pins)
        assert second.adopted
        assert second.sessions.items() == [(bytes(20), bytes(8))]
        assert second.used == 2
        assert second.stats(0)[6] == 5
        slot, generation = second.take()
        assert slot not in (taken[0][0], taken[2][0])
        assert generation == 4
        assert second.clear() == 3
        assert second.sessions.items() == []
        second.close()

    @pytest.mark.parametrize("what", ["size", "missing", "version", "foreign"])
    def test_not_adopted(self, pins: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
        """What does not fit is removed."""
        PipexMaps(10, pins).close()
        directory = pins / f"v{VERSION}"
        capacity = 10
        if what == "size":
            capacity = 11
        elif what == "missing":
            (directory / "slots").unlink()
        elif what == "version":
            directory.rename(pins / "v0")
        else:
            (directory / "sessions").unlink()
            (directory / "hosts4").rename(directory / "sessions")
            wrong = Map.pinned(str(directory / "sessions"))
            wrong.pin(str(directory / "hosts4"))
            wrong.close()
        maps = PipexMaps(capacity, pins)
        assert not maps.adopted
        assert [path.name for path in pins.iterdir()] == [directory.name]
        again = Map.pinned(str(directory / "sessions"))
        assert again.id == maps.sessions.id
        again.close()
        maps.close()
        assert remove_pins(pins) == 16
        assert not pins.exists()

    def test_no_file_system(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Without pins all works but what pins are for."""
        maps = PipexMaps(10, tmp_path / "npppy")
        assert not maps.adopted
        assert "no npppyd that is started later can take the maps over" in caplog.text
        maps.close()
        backend = EbpfBackend.open(10, tmp_path / "npppy")
        backend.close()


class TestProbe:
    def test_works(self, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        before = links()
        assert probe.why_not() == ""
        assert links() == before
        backend = probe.choose(10, None)
        assert isinstance(backend, EbpfBackend)
        assert caplog.messages[-1] == "pipex: back end ebpf, forward stack, up to 10 sessions"
        backend.close()

    def test_why_not(self, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert probe.why_not(str(tmp_path / "none.o")) == f"{tmp_path}/none.o is not there"
        (tmp_path / "bad.o").write_bytes(b"not an object")
        assert probe.why_not(str(tmp_path / "bad.o")).startswith(f"cannot open the BPF object {tmp_path}/bad.o: ")
        before = links()

        def fail(*_: Any) -> None:
            raise BpfError("attach program pipex_core to npxprobe1", errno.EOPNOTSUPP)

        monkeypatch.setattr(probe, "attach_xdp", fail)
        assert probe.why_not() == "cannot attach program pipex_core to npxprobe1: Operation not supported"
        assert links() == before

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
