"""Back end ebpf: whatever fails, and when, nothing stays in the kernel once all is closed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.base import FlowSpec, Police
from npppy.pipex.ebpf import libbpf, plumbing
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.libbpf import BpfError, Map, Program, library
from npppy.port import Port
from npppy.pppoe.call import PppoeEncap
from npppy.tun.device import TunError
from npppy.tun.netlink import Netlink, NetlinkError
from tests.effort import THOROUGH
from tests.root.ebpf_lab import OURS, POOL, THEIRS, Lab, interface, links, until, xdp

pytestmark = pytest.mark.root

#: Of libbpf, what asks the kernel for something.
CALLS = (
    "bpf_object__open_file",
    "bpf_object__load",
    "bpf_map__set_max_entries",
    "bpf_map_update_elem",
    "bpf_map_lookup_elem",
    "bpf_map_delete_elem",
    "bpf_map_get_next_key",
    "bpf_obj_pin",
    "bpf_obj_get_info_by_fd",
    "bpf_xdp_attach",
    "bpf_xdp_query",
    "bpf_tc_hook_create",
    "bpf_tc_attach",
)


#: Of these, only the first and the last one fails, and of others each third, but for the long run.
MANY = frozenset(("bpf_map__set_max_entries", "bpf_obj_get_info_by_fd", "bpf_obj_pin"))


class Faults:
    """Has one request to the kernel fail, and notes what maps and programs there are."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        #: Which one; -1: none.
        self.fail = -1
        #: Those that were made, until there is no more to fail.
        self.requests: list[str] | None = None
        #: (kind, the kernel's number)
        self.made: set[tuple[str, int]] = set()
        lib = library()
        for name in CALLS:
            patch.setattr(lib, name, self._libbpf(name, getattr(lib, name)))
        patch.setattr(Netlink, "_call", self._netlink(Netlink._call))
        patch.setattr(plumbing, "ethtool", self._ethtool(plumbing.ethtool))
        for kind, item in (("map", Map), ("prog", Program)):
            patch.setattr(item, "__init__", self._noting(kind, item.__init__))

    def fails(self, what: str) -> bool:
        if self.requests is None:
            return False
        self.requests.append(what)
        return len(self.requests) == self.fail + 1

    def _libbpf(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if not self.fails(name):
                return function(*arguments)
            if name == "bpf_object__open_file":
                ctypes.set_errno(errno.EIO)
                return None
            return -errno.EIO

        return call

    def _netlink(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(netlink: Netlink, request: Any) -> Any:
            if self.fails(request.what):
                raise NetlinkError(request.what, errno.EIO, "")
            return function(netlink, request)

        return call

    def _ethtool(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: str, command: int, value: int) -> Any:
            if self.fails(f"ethtool {name}"):
                raise OSError(errno.EIO, "ethtool")
            return function(name, command, value)

        return call

    def _noting(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def init(item: Any, *arguments: Any) -> None:
            function(item, *arguments)
            self.made.add((kind, item.id))

        return init


def alive(kind: str, number: int) -> bool:
    """Whether the kernel still has it."""
    fd: int = getattr(ctypes.CDLL(libbpf._LIBRARY), f"bpf_{kind}_get_fd_by_id")(ctypes.c_uint32(number))
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def session(number: int) -> FlowSpec:
    limit = Police(10000, 3000)
    return FlowSpec(
        session=number,
        domain=0,
        interface="tun0",
        address=int(IPv4Address("10.0.4.0")) + 8 * number,
        prefixlen=29,
        networks6=((b"\x20\x01\x0d\xb8".ljust(15, b"\0") + bytes((number,)), 128),),
        mtu=1492,
        mru=1492,
        send=len,
        encap=PppoeEncap(Port("acc0"), OURS, THEIRS, number),
        police_up=limit,
        police_down=limit,
        fast=True,
    )


async def use(lab: Lab, pins: Path, faults: Faults, fail: int) -> list[str]:
    """All that a daemon does with it, which is closed in the end; one request fails.  Returns all that there were."""
    faults.fail = fail
    requests = faults.requests = []
    backend = EbpfBackend.open(10, pins)
    try:
        npx = backend.open_interface(interface(), 1492, [POOL])
        try:
            npx.start(backend.attach(npx.name, int(npx.address), npx.write, npx.emit).deliver)
            try:
                backend.attach_access("acc0", lab.ifindex)
                backend.follow_core(True)
            except BpfError:
                # Python carries what comes there.
                pass
            flows = [backend.add(session(number), 0.0) for number in (1, 2)]
            for flow in flows:
                try:
                    flow.police(None, Police(20000, 3000))
                    flow.to_user()
                    flow.to_ebpf()
                    flow.mirror(True)
                except BpfError:
                    # An operator hears of it.
                    pass
            faults.requests = None
            for flow in flows:
                flow.close()
            backend.detach(npx.name)
        finally:
            faults.requests = None
            npx.close()
    finally:
        faults.requests = None
        backend.close()
    return requests


def left(faults: Faults) -> set[tuple[str, int]]:
    """Of the maps and programs that were made, those that are still there."""
    faults.made = {item for item in faults.made if alive(*item)}
    return faults.made


async def test_whatever_fails(
    lab: Lab, pins: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request to the kernel in turn."""
    caplog.set_level(logging.CRITICAL, "npppy")
    faults = Faults(monkeypatch)
    requests = await use(lab, pins, faults, -1)
    gc.collect()
    files, before = len(os.listdir("/proc/self/fd")), links()
    last = {what: number for number, what in enumerate(requests)}
    for number, what in enumerate(requests):
        if not THOROUGH and number not in (requests.index(what), last[what]) and (what in MANY or number % 3):
            continue
        with contextlib.suppress(BpfError, NetlinkError, TunError, OSError):
            await use(lab, pins, faults, number)
        which = f"request {number}: {what}"
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == files, which
        assert "bpf-map" not in Path("/proc/self/maps").read_text(), which
        assert (links(), xdp("acc0"), xdp("core0"), pins.exists()) == (before, "", "", False), which
        # The kernel lets go of a filter's program a little later.
        await until(lambda: not left(faults))
