"""What npppyctl prints of the data path, and the files and lines that it makes of captures."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from npppy import ctl
from npppy.control import format
from npppy.control.pipex import PipexCommands
from npppy.control.server import ControlServer
from npppy.control.subject import EngineSubject
from npppy.pipex.null import NullBackend
from tests.unit.control_fake import until
from tests.unit.ippackets import udp
from tests.unit.pipex_fake import IP, FakeKernel, World


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "npppyd.sock"


@pytest_asyncio.fixture
async def commands(world: World, path: Path) -> AsyncIterator[PipexCommands]:
    def clock() -> float:
        return world.rig.now

    server = ControlServer(EngineSubject(world.rig.engine, clock), path)
    commands = PipexCommands(world.rig.engine, lambda: world.backend, clock)
    commands.register(server)
    await server.start()
    yield commands
    await server.close()


async def npppyctl(path: Path, line: str) -> int:
    async with asyncio.timeout(60):
        return await asyncio.to_thread(ctl.run, ["-s", str(path), *line.split()])


SHOWN = """\
Back end: ebpf
Sessions: 1 carried by the kernel, room for 100, 0 by Python
Tunnel PPPOE: pipex yes, forward stack

Interface  Use     XDP
eth1       access  native
eth2       access  -       eth2 has an XDP program that is not ours: 'x', id 3
tun0       shared  native  npx0, npx1

Path    Up pkts  Up octets  Down pkts  Down octets
stack         1        100          2          200
python        0          0          0            0

Left to Python  Packets  Octets
control               4     400
user-up               5     500

Dropped  Packets  Octets
filter         3     300

Other        Packets  Octets
mirror-lost        6     600

Map       Used      of  Octets
sessions     1     100    1000
nets4        0     100      10
events       -  262144    2000
all                       3010
"""


async def test_pipex(world: World, commands: PipexCommands, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.up()
    assert await npppyctl(path, "pipex") == 0
    assert capsys.readouterr() == (SHOWN, "")
    assert await npppyctl(path, "-j pipex") == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "ebpf"


async def test_pipex_of_null(
    world: World, commands: PipexCommands, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.backend = NullBackend()  # type: ignore[assignment]
    assert await npppyctl(path, "pipex") == 0
    assert capsys.readouterr().out == (
        "Back end: null: what peers send is counted and dropped\n"
        "Sessions: 0 carried by the kernel, 0 by Python\n"
        "Tunnel PPPOE: pipex yes, forward stack\n\n"
        "Path    Up pkts  Up octets  Down pkts  Down octets\n"
        "python        0          0          0            0\n"
    )


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("police 10M/2M", "carried by the kernel; down 10 Mbit/s, burst 125000; up 2 Mbit/s, burst 25000"),
        ("police 1G", "carried by the kernel; down 1 Gbit/s, burst 12500000; up 1 Gbit/s, burst 12500000"),
        ("police 64k/0 burst 2k", "carried by the kernel; down 64 kbit/s, burst 2000; up no limit"),
        ("police 0/9999", "carried by the kernel; down no limit; up 9.992 kbit/s, burst 15000"),
        ("police off", "carried by the kernel; down no limit; up no limit"),
        ("user", "carried by Python; down no limit; up no limit"),
        ("ebpf", "carried by the kernel; down no limit; up no limit"),
    ],
)
async def test_change(
    world: World,
    commands: PipexCommands,
    path: Path,
    words: str,
    printed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = world.up()
    assert await npppyctl(path, f"pipex ppp-id {session.id} {words}") == 0
    assert capsys.readouterr() == (f"ppp id {session.id}: {printed}\n", "")


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (8000, "8 kbit/s"),
        (999, "999 bit/s"),
        (1_500_000, "1.5 Mbit/s"),
        (10_000, "10 kbit/s"),
        (1_234_567, "1234.567 kbit/s"),
        (1_234_568_000, "1234.568 Mbit/s"),
        (10**12, "1000 Gbit/s"),
    ],
)
def test_rates(rate: int, text: str) -> None:
    """To the last digit."""
    assert format.limit(rate, 1) == f"{text}, burst 1"


async def test_refused(
    world: World, commands: PipexCommands, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await npppyctl(path, "pipex ppp-id 9 user") == 1
    assert capsys.readouterr() == ("", "npppyctl: there is no session with ppp id 9\n")


# capture


async def captured(world: World, commands: PipexCommands, path: Path, options: str) -> int:
    """npppyctl capture of a session that sends, receives and ends; returns its status."""
    session = world.up()
    running = asyncio.create_task(npppyctl(path, f"{options} capture ppp-id {session.id}"))
    await until(lambda: len(commands.captures) or running.done())
    talk(world)
    return await running


def talk(world: World) -> None:
    del world.wire[:]
    world.send(IP + udp("10.0.0.2", "192.0.2.1", b"up", ports=(1024, 53)))
    world.arrives(udp("192.0.2.1", "10.0.0.2", bytes(100), ports=(53, 1024)))
    world.rig.engine.disconnect(world.session.id, world.rig.now)
    world.settle()


LINES = [
    " in  IP        52 10.0.0.2:1024 > 192.0.2.1:53 UDP, 2 octets",
    " out IP       150 192.0.2.1:53 > 10.0.0.2:1024 UDP, 100 octets",
    " out LCP       26 TermReq id=",
    " in  LCP       26 TermAck id=",
    " out PADT      20 session ",
]
ENDED = "npppyctl: 5 frames captured: the session has ended\n"


async def test_lines(
    world: World, commands: PipexCommands, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await captured(world, commands, path, "") == 0
    out, err = capsys.readouterr()
    assert err == ENDED
    lines = out.splitlines()
    assert len(lines) == len(LINES)
    for line, expected in zip(lines, LINES, strict=True):
        assert line[15:].startswith(expected), line
        time.strptime(line[:8], "%H:%M:%S")
        assert line[8] == "."
        assert line[9:15].isdigit()


async def test_json_lines(
    world: World, commands: PipexCommands, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await captured(world, commands, path, "-j") == 0
    first, *frames, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["event"] == "begin"
    assert [base64.b64decode(frame["data"]) for frame in frames] == [frame for _, frame in world.wire]
    assert last == {"frames": 5, "lost": 0, "ended": "the session has ended"}


def pcap(data: bytes) -> list[tuple[int, int, bytes]]:
    """Time, length and frame of each record."""
    assert struct.unpack_from("=IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 65535, 1)
    at = 24
    found = []
    while at < len(data):
        seconds, ns, here, length = struct.unpack_from("=IIII", data, at)
        assert ns < 10**9
        found.append((seconds * 10**9 + ns, length, data[at + 16 : at + 16 + here]))
        assert len(found[-1][2]) == here
        at += 16 + here
    return found


async def test_pcap(
    world: World, commands: PipexCommands, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames.pcap"
    session = world.up()
    before = time.time_ns()
    running = asyncio.create_task(npppyctl(path, f"-j capture ppp-id {session.id} -w {file} -s 60"))
    await until(lambda: len(commands.captures))
    talk(world)
    assert await running == 0
    assert capsys.readouterr() == ("", ENDED)
    records = pcap(file.read_bytes())
    assert [data for *_, data in records] == [frame[:60] for _, frame in world.wire]
    assert [length for _, length, _ in records] == [len(frame) for _, frame in world.wire]
    assert before <= records[0][0] <= records[-1][0] <= time.time_ns()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "passwords may be in it"


async def test_a_file_is_replaced(world: World, commands: PipexCommands, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "frames.pcap"
    file.write_bytes(b"x" * 100_000)
    session = world.up()
    running = asyncio.create_task(npppyctl(path, f"capture ppp-id {session.id} -w {file}"))
    await until(lambda: len(commands.captures))
    talk(world)
    assert await running == 0
    assert len(pcap(file.read_bytes())) == 5


async def test_no_file_for_a_session_that_there_is_not(
    world: World, commands: PipexCommands, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await npppyctl(path, f"capture ppp-id 9 -w {tmp_path / 'file'}") == 1
    assert not (tmp_path / "file").exists()
    assert capsys.readouterr().err == "npppyctl: there is no session with ppp id 9\n"


async def test_a_file_that_cannot_be_written(
    world: World, commands: PipexCommands, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = world.up()
    file = tmp_path / "no" / "file"
    assert await npppyctl(path, f"capture ppp-id {session.id} -w {file}") == 1
    assert capsys.readouterr().err == f"npppyctl: cannot write {file}: No such file or directory\n"
    assert await npppyctl(path, f"capture ppp-id {session.id} -c 1 -w /dev/full") == 1
    assert capsys.readouterr().err == "npppyctl: cannot write /dev/full: No space left on device\n"
    await until(lambda: len(commands.captures) == 0)


class Process:
    """npppyctl as a process, since it is about its signals and its standard output."""

    def __init__(self, path: Path, *words: str) -> None:
        self.running = subprocess.Popen(
            [sys.executable, "-m", "npppy.ctl", "-s", str(path), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(ctl.__file__).parents[1]), "PYTHONUNBUFFERED": ""},
        )
        # What it does not write, nobody waits for without end.
        self._patience = threading.Timer(30, self.running.kill)
        self._patience.start()

    async def end(self) -> tuple[int, bytes, str]:
        out, err = await asyncio.to_thread(self.running.communicate)
        self._patience.cancel()
        return self.running.returncode, out, err.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("file", ["-", ""])
async def test_interrupted(
    world: World, commands: PipexCommands, path: Path, number: signal.Signals, file: str
) -> None:
    """What has come is there, whole, and how much it was is told."""
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    session = world.up()
    kernel.lost = 1
    npppyctl = Process(path, "capture", "ppp-id", str(session.id), *(["-w", file] if file else []))
    await until(lambda: len(commands.captures))
    kernel.lost = 3
    assert npppyctl.running.stdout is not None
    # Behind the header of a file; each frame is there at once.
    first = await asyncio.to_thread(npppyctl.running.stdout.read, 24) if file else b""
    world.arrives(udp("192.0.2.1", "10.0.0.2", bytes(100)))
    first += await asyncio.to_thread(npppyctl.running.stdout.read1, 10000)  # type: ignore[attr-defined]
    for _ in range(499):
        world.arrives(udp("192.0.2.1", "10.0.0.2", bytes(100)))
    npppyctl.running.send_signal(number)
    status, rest, err = await npppyctl.end()
    assert status == 0
    assert len(pcap(first + rest) if file else (first + rest).splitlines()) == 500
    assert err == "npppyctl: 500 frames captured, 2 lost since npppyd was too slow: interrupted\n"
    await until(lambda: len(commands.captures) == 0)


async def test_standard_output(world: World, commands: PipexCommands, path: Path) -> None:
    session = world.up()
    npppyctl = Process(path, "capture", "ppp-id", str(session.id), "-w", "-")
    await until(lambda: len(commands.captures))
    # A reader has the header at once.
    assert npppyctl.running.stdout is not None
    first = await asyncio.to_thread(npppyctl.running.stdout.read, 24)
    kernel = world.backend
    assert isinstance(kernel, FakeKernel)
    kernel.lost = 2
    talk(world)
    status, rest, err = await npppyctl.end()
    assert status == 0
    assert [data for *_, data in pcap(first + rest)] == [frame for _, frame in world.wire]
    assert err == "npppyctl: 5 frames captured, 2 lost since npppyd was too slow: the session has ended\n"


async def test_npppyd_ends(
    world: World, commands: PipexCommands, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = world.up()
    running = asyncio.create_task(npppyctl(path, f"capture ppp-id {session.id}"))
    await until(lambda: len(commands.captures))
    for task in asyncio.all_tasks():
        if task not in (running, asyncio.current_task()) and "ControlServer" in repr(task):
            task.cancel()
    assert await running == 0
    assert capsys.readouterr().err == "npppyctl: 0 frames captured\n"


def test_it_loads_no_more_than_it_needs() -> None:
    """npppyctl starts fast: what reads frames is loaded only to show them."""
    code = "import npppy.ctl, sys; print([name for name in sys.modules if name.startswith('npppy.')])"
    loaded: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "npppy.control.watch" in loaded
    assert "dissect" not in loaded
    assert "npppy.pppoe" not in loaded
    assert "npppy.pipex" not in loaded
