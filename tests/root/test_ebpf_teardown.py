"""Back end ebpf: what is pinned, what a killed npppyd leaves, and that a teardown, or the next start, removes all."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from pathlib import Path

import pytest

from npppy.control.protocol import SOCKET
from npppy.pipex.ebpf import attach, probe
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.layout import NIC, U32, VERSION
from npppy.pipex.ebpf.libbpf import BpfError, Map, Program
from npppy.pipex.ebpf.maps import PINS, PipexMaps, default_pins
from npppy.pipex.ebpf.plumbing import end_leftovers, ethtool, teardown
from npppy.pipex.user import UserBackend
from tests.effort import THOROUGH
from tests.root.ebpf_lab import (
    WORLD,
    Lab,
    Subscriber,
    attach_foreign,
    foreign_program,
    interface,
    links,
    sh,
    until,
    xdp,
)
from tests.root.ebpf_process import BOMB, CAPABILITIES, NOBODY, PROLOGUE, alive, pinned, process

pytestmark = pytest.mark.root

GFLAGS, SFLAGS, RXVLAN = 0x25, 0x26, 1 << 8
#: What is said where nothing can be pinned.
LOST = "so when npppyd is killed, no later one can go on with its sessions, and only root can end them"


def editions(pins: Path) -> list[str]:
    return sorted(path.name for path in pins.iterdir())


def killed(pins: Path | None, more: str = "pass") -> None:
    """Another process sets a session up and dies."""
    where = f"Path({str(pins)!r})" if pins else "None"
    done = process(f"{more}; await lab.open(10, {where}); assert lab.add(1).carried; os.kill(os.getpid(), 9)")
    assert done.returncode == -9, done.stderr


def no_library() -> None:
    raise BpfError("use it", errno.ENOENT)


class TestTeardown:
    async def test_close(self, lab: Lab, pins: Path) -> None:
        """An orderly end leaves nothing."""
        flags = ethtool("acc0", GFLAGS, 0)
        backend = await lab.open(pins=pins)
        edition = pins / f"v{VERSION}_1"
        assert {"sessions", "prog_pipex_access"} <= {path.name for path in edition.iterdir()}
        assert pins.stat().st_mode & 0o777 == 0o700
        lab.add(1).close()
        assert lab.npx is not None
        lab.close_interface(lab.npx)
        backend.close()
        lab.backend = None
        assert xdp("acc0") == ""
        assert not {"npx0", "npx1", "tun0"} & links()
        assert not pins.exists()
        assert "npx" not in sh("ip route")
        assert ethtool("acc0", GFLAGS, 0) == flags

    @pytest.mark.parametrize("by", ["teardown", "start"])
    async def test_kill_under_traffic(self, lab: Lab, pins: Path, by: str, caplog: pytest.LogCaptureFixture) -> None:
        """Sessions go on when the process has gone, until the next one, or a teardown, ends them: nothing is left."""
        caplog.set_level(logging.INFO)
        flags = ethtool("acc0", GFLAGS, 0)
        assert flags & RXVLAN
        killed(pins)
        assert ethtool("acc0", GFLAGS, 0) == flags & ~RXVLAN
        lab.pump = Subscriber(lab.subscriber, 1, 1492)
        code, text = await lab.subscriber.run(f"ping -c 3 -i 0.01 -W 5 {WORLD}")
        assert code == 0, text
        flood = await lab.subscriber.start(["ping", "-f", "-w", "20", WORLD], stdout=asyncio.subprocess.DEVNULL)
        program = foreign_program()
        attach_foreign("core0", program)
        programs, maps = pinned(pins)
        assert (len(programs), len(maps)) == (6, 15)
        lines = [
            "XDP program detached from acc0",
            "XDP program detached from npx1",
            "device npx0 removed",
            "1 sessions ended",
            "VLAN offload of acc0 switched on again",
            f"21 pins removed from {pins}",
        ]
        if by == "teardown":
            assert teardown(pins) == lines
            assert teardown(pins) == []
        else:
            backend = EbpfBackend.open(10, pins)
            assert [line for line in caplog.messages if "left by" in line] == [
                f"pipex: left by an earlier npppyd: {line}" for line in lines
            ]
            assert backend.maps.used == 0
            assert backend.maps.sessions.items() == backend.maps.devs.items() == []
            assert not any(any(value) for _, value in backend.maps.config.items())
            backend.close()
        flood.kill()
        await flood.wait()
        assert not pins.exists()
        assert (xdp("acc0"), xdp("core0")) == ("", "somebodys")
        assert not {"npx0", "npx1", "tun0"} & links()
        assert "npx" not in sh("ip route") + sh("ip address") + sh("tc qdisc show")
        assert ethtool("acc0", GFLAGS, 0) == flags
        await until(lambda: not any(alive("prog", number) for number in programs))
        await until(lambda: not any(alive("map", number) for number in maps))
        program.close()

    async def test_without_pins(self, lab: Lab) -> None:
        """Then our programs are known by their names, to root."""
        killed(None)
        assert (xdp("acc0"), xdp("npx1")) == ("pipex_access", "pipex_core")
        assert teardown(None) == [
            "XDP program detached from acc0",
            "XDP program detached from npx1",
            "device npx0 removed",
        ]
        assert xdp("acc0") == ""

    async def test_interrupted(self, lab: Lab, pins: Path) -> None:
        """Killed at whichever step, it is done when called again."""
        script = PROLOGUE + BOMB + f"bomb(lambda: teardown(Path({str(pins)!r})), int(sys.argv[1]))"
        steps = 0
        for steps in range(0, 100, 1 if THOROUGH else 4):
            flags = ethtool("acc0", GFLAGS, 0)
            killed(pins)
            process = await lab.home.start([sys.executable, "-c", script, str(steps)])
            code = await process.wait()
            teardown(pins)
            assert not pins.exists()
            assert (xdp("acc0"), links() & {"npx0", "npx1"}) == ("", set())
            assert ethtool("acc0", GFLAGS, 0) == flags
            if code == 0:
                break
            assert code == -9
        assert steps > 15

    async def test_other_daemons(self, lab: Lab, pins: Path) -> None:
        """What another one has pinned is not ours, in the same network namespace either."""
        other = pins.with_name("npppy-other")
        await lab.open(10, pins)
        assert lab.add(1).carried
        sh("ip link add acc1 type veth peer name acc2")
        backend = EbpfBackend.open(10, other)
        assert (xdp("acc0"), xdp("npx1")) == ("pipex_access", "pipex_core")
        backend.attach_access("acc1", socket.if_nametoindex("acc1"))
        npx = backend.open_interface(interface("tun1", "10.1.0.1"), 1492, [])
        assert npx.npx0.name == "npx2"
        # It was killed: only what is its own goes.
        assert teardown(other) == [
            "XDP program detached from acc1",
            "XDP program detached from npx3",
            "device npx2 removed",
            "VLAN offload of acc1 switched on again",
            f"21 pins removed from {other}",
        ]
        assert (xdp("acc0"), xdp("npx1")) == ("pipex_access", "pipex_core")
        npx.close()
        backend.nics.close()
        backend.maps.close()
        lab.pump = Subscriber(lab.subscriber, 1, 1492)
        code, text = await lab.subscriber.run(f"ping -c 3 -i 0.01 -W 5 {WORLD}")
        assert code == 0, text

    async def test_another_back_end(
        self, lab: Lab, pins: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where this npppyd cannot use eBPF, what the one before has left ends all the same."""
        killed(pins)
        monkeypatch.setattr(probe, "why_not", lambda: "it is Friday")
        backend = probe.choose(10, pins)
        assert type(backend) is UserBackend
        assert (xdp("acc0"), pins.exists(), links() & {"npx0", "npx1"}) == ("", False, set())
        caplog.set_level(logging.DEBUG)
        for level, there in ((logging.DEBUG, False), (logging.ERROR, True)):
            if there:
                PipexMaps(10, pins).close()
            with monkeypatch.context() as patch:
                patch.setattr(attach, "library", no_library)
                end_leftovers(pins)
            assert caplog.record_tuples[-1] == (
                "npppy.pipex",
                level,
                "pipex: what an earlier npppyd may have left stays: cannot use it: No such file or directory",
            )

    def test_interface_that_has_gone(self, lab: Lab, pins: Path) -> None:
        """What was changed at others is taken back all the same."""
        maps = PipexMaps(10, pins)
        flags = ethtool("acc0", GFLAGS, 0)
        assert flags & RXVLAN
        ethtool("acc0", SFLAGS, flags & ~RXVLAN)
        for ifindex in (7777, lab.ifindex, 7778):
            maps.nics.put(U32.pack(ifindex), NIC.pack(bytes(6), 1))
        maps.close()
        assert "VLAN offload of acc0 switched on again" in teardown(pins)
        assert ethtool("acc0", GFLAGS, 0) == flags


class TestRights:
    """CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON are enough, from the start to the end."""

    async def test_root_without_others(self, lab: Lab, pins: Path) -> None:
        done = process(
            f"""
    capabilities({CAPABILITIES})
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

    @pytest.mark.parametrize("next_one", ["EbpfBackend.open(10, pins).close()", "teardown(pins)"])
    async def test_an_ordinary_user(self, lab: Lab, nobodys_pins: Path, next_one: str) -> None:
        """After a kill; pins tell which programs are ours, at which only root may look by number."""
        pins = nobodys_pins
        become = f"capabilities({CAPABILITIES}, user={NOBODY})"
        killed(pins, become)
        assert pins.stat().st_uid == NOBODY
        done = process(f"{become}; pins = Path({str(pins)!r}); {next_one}")
        assert (done.returncode, done.stderr) == (0, "")
        assert (xdp("acc0"), xdp("npx1") if "npx1" in links() else "") == ("", "")
        assert "npx0" not in links()
        assert not pins.exists()

    def test_without_a_directory(self, lab: Lab, pins: Path) -> None:
        """One line says what is lost, and all else works."""
        pins.parent.chmod(0o755)
        done = process(
            f"""
    capabilities({CAPABILITIES}, user={NOBODY})
    logging.basicConfig(format="%(message)s")
    await lab.open(10, Path({str(pins)!r}))
    assert lab.add(1).carried"""
        )
        assert done.returncode == 0
        assert done.stderr.splitlines() == [
            f"pipex: cannot pin maps at {pins}: Permission denied; {LOST}"
        ]
        assert teardown(pins)


class TestPins:
    def test_editions(self, pins: Path) -> None:
        """A new process begins anew; what was there goes, finished or not."""
        first = PipexMaps(10, pins)
        (pins / "new").mkdir()
        first.sessions.pin(str(pins / "new/sessions"))
        second = PipexMaps(11, pins)
        assert editions(pins) == [f"v{VERSION}_1"]
        again = Map.pinned(str(pins / f"v{VERSION}_1/sessions"))
        assert again.id == second.sessions.id != first.sessions.id
        for item in (again, first, second):
            item.close()
        assert teardown(pins) == [f"21 pins removed from {pins}"]
        assert not pins.exists()

    def test_order(self, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The newest goes last, so that an older one is never taken for it."""
        names = ["new", "v1", "v2_1", "v1_2", "v2_9", "v3_10"]
        for name in names[::-1]:
            (pins / name).mkdir(parents=True)
        gone: list[str] = []
        real = os.rmdir
        monkeypatch.setattr(os, "rmdir", lambda path, **more: gone.append(Path(path).name) or real(path, **more))
        assert teardown(pins) == []
        assert gone == [*names, "npppy"]

    def test_what_others_keep_there_stays(self, pins: Path) -> None:
        maps = PipexMaps(10, pins)
        (pins / "theirs").mkdir()
        maps.close()
        assert teardown(pins) == [f"21 pins removed from {pins}"]
        assert editions(pins) == ["theirs"]

    def test_deep(self, pins: Path) -> None:
        """Any directory will do."""
        deep = pins / "a" / "b"
        PipexMaps(10, deep).close()
        assert editions(deep) == [f"v{VERSION}_1"]
        teardown(deep)
        assert not deep.exists()

    def test_no_bpf_file_system(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Without pins all works but what pins are for, and one line says so; no directories are left about."""
        pins = tmp_path / "npppy"
        PipexMaps(10, pins).close()
        assert caplog.messages == [
            f"pipex: cannot pin maps at {pins}: Operation not supported: that is no BPF file system; {LOST}"
        ]
        assert list(pins.iterdir()) == []
        EbpfBackend.open(10, pins).close()
        assert not pins.exists()

    @pytest.mark.parametrize("root", [True, False])
    def test_mounted(self, lab: Lab, root: bool) -> None:
        """At its usual place root has the file system mounted, if it is not; in a mount namespace of our own here."""
        done = process(
            f"""
    libc = ctypes.CDLL(None)
    assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
    while libc.umount2(b"/sys/fs/bpf", 0) == 0:
        pass
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if not {root}:
        capabilities({CAPABILITIES})
    pins = Path("/sys/fs/bpf/npppy")
    assert not pins.parent.is_mount()
    EbpfBackend.open(10, pins).maps.close()
    if {root}:
        assert teardown(pins) == [f"21 pins removed from {{pins}}"]
    assert pins.parent.is_mount() is {root}"""
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines() == (
            ["pipex: BPF file system mounted at /sys/fs/bpf"]
            if root
            else [
                "pipex: cannot pin maps at /sys/fs/bpf/npppy: Operation not permitted (CAP_BPF, CAP_NET_ADMIN and "
                f"CAP_PERFMON are needed); {LOST}"
            ]
        )

    def test_for_each_daemon(self) -> None:
        """By its control socket; as bpffs wants names, without dots."""
        assert default_pins(SOCKET) == PINS
        assert default_pins("/run/../" + SOCKET) == PINS
        others = [default_pins(path) for path in ("/run/a.sock", "/run/b.sock", "/run/a/sock", "/run/a_", "/é" * 200)]
        assert len(set(others)) == len(others)
        assert others[0].name.startswith("npppy-run_a-")
        for path in others:
            assert path.parent == PINS.parent
            assert path.name.startswith("npppy-")
            assert "." not in path.name
            assert len(os.fsencode(path.name)) < 255

    def test_what_is_no_program(self, pins: Path) -> None:
        PipexMaps(10, pins).close()
        edition = pins / f"v{VERSION}_1"
        with pytest.raises(BpfError, match="it is no bpf-prog"):
            Program.pinned(str(edition / "sessions"))
        with pytest.raises(BpfError, match="it is no bpf-map"):
            Map.pinned(str(edition / "prog_pipex_core"))
