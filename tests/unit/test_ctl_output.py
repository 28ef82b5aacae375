"""What npppyctl prints, through a real socket: npppctl's text to the column, and JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from npppy import ctl
from npppy.control import format, protocol
from npppy.control.server import ControlServer
from tests.unit.control_fake import ALICE, BOB, CAROL, DAVE, HELLO, FakeSubject, ask, framed, many, until


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def subject() -> FakeSubject:
    return FakeSubject(ALICE, CAROL, BOB, DAVE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "npppyd.sock"


@pytest_asyncio.fixture
async def server(subject: FakeSubject, path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(subject, path)
    await server.start()
    yield server
    await server.close()


async def npppyctl(path: Path, line: str) -> int:
    return await asyncio.to_thread(ctl.run, ["-s", str(path), *line.split()])


ALICE_BLOCK = """\
Ppp Id = 7
          Ppp Id                  : 7
          Username                : alice
          Realm Name              : LOCAL
          Concentrated Interface  : npx0
          Assigned IPv4 Address   : 10.0.0.7
          MRU                     : 1492
          Tunnel Protocol         : PPPoE
          Tunnel From             : 02:00:00:00:00:07
          Start Time              : 2023/11/14 22:13:20
          Elapsed Time            : 42 sec\x20
          Input Bytes             : 999
          Input Packets           : 10
          Input Errors            : 0 (0.0%)
          Output Bytes            : 1536 (1.5 KB)
          Output Packets          : 12
          Output Errors           : 1 (7.7%)
          Carried By              : the kernel
          Rate Limit Down         : 10 Mbit/s, burst 125000
"""
BOB_BLOCK = """\
Ppp Id = 4294967295
          Ppp Id                  : 4294967295
          Username                : bob\\x1b]0;\\x0a\\xff@a.very.long.realm
          Realm Name              : RADIUS
          Concentrated Interface  : npx1
          Assigned IPv4 Address   : 192.168.100.200
          MRU                     : 1360
          Tunnel Protocol         : L2TP
          Tunnel From             : 203.0.113.250:1701
          Start Time              : 2023/11/14 22:13:20
          Elapsed Time            : 93784 sec (26 hours and 3 minutes)
          Input Bytes             : 2000000 (1.9 MB)
          Input Packets           : 1234567
          Input Errors            : 65432 (5.0%)
          Output Bytes            : 3221225472 (3.0 GB)
          Output Packets          : 7654321
          Output Errors           : 0 (0.0%)
          Carried By              : Python
"""
CAROL_BLOCK = """\
Ppp Id = 9
          Ppp Id                  : 9
          Username                :\x20
          Realm Name              :\x20
          Concentrated Interface  :\x20
          Assigned IPv4 Address   : 0.0.0.0
          MRU                     : 1492
          Tunnel Protocol         : PPPoE
          Tunnel From             : 02:00:00:00:00:07
          Start Time              : 2023/11/14 22:13:20
          Elapsed Time            : 42 sec\x20
          Input Bytes             : 0
          Input Packets           : 0
          Input Errors            : 0 (0.0%)
          Output Bytes            : 0
          Output Packets          : 0
          Output Errors           : 0 (0.0%)
          State                   : authenticate
"""
BRIEF_TITLE = """\
Ppp Id     Assigned IPv4   Username             Proto Tunnel From
---------- --------------- -------------------- ----- -------------------------
"""
BRIEF_ALICE = "         7 10.0.0.7        alice                PPPoE 02:00:00:00:00:07\n"
BRIEF_BOB = "4294967295 192.168.100.200 bob\\x1b]0;\\x0a\\xff@a.very.long.realm L2TP  203.0.113.250:1701\n"
BRIEF_CAROL = "         9 0.0.0.0         -                    PPPoE 02:00:00:00:00:07\n"
BRIEF_DAVE = "        10 0.0.0.0         dave                 PPPoE 02:00:00:00:00:07\n"
PACKETS_TITLE = """\
Ppp Id     Username             In(Kbytes/pkts/errs)    Out(Kbytes/pkts/errs)
---------- -------------------- ----------------------- -----------------------
"""
PACKETS_ALICE = "         7 alice                      1.0      10     0       1.5      12     1\n"
PACKETS_BOB = (
    "4294967295 bob\\x1b]0;\\x0a\\xff@a.very.long.realm    1953.1 1234567 65432 3145728.0 7654321     0\n"
)


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("session brief", BRIEF_TITLE + BRIEF_ALICE + BRIEF_BOB),
        ("session brief state up", BRIEF_TITLE + BRIEF_ALICE + BRIEF_BOB),
        ("session brief state half-open", BRIEF_TITLE + BRIEF_CAROL),
        ("session brief state any", BRIEF_TITLE + BRIEF_ALICE + BRIEF_CAROL + BRIEF_BOB + BRIEF_DAVE),
        ("session brief ppp-id 9", BRIEF_TITLE + BRIEF_CAROL),
        ("session brief ppp-id 9 state up", ""),
        ("session brief protocol l2tp realm RADIUS", BRIEF_TITLE + BRIEF_BOB),
        ("session brief protocol l2tp realm LOCAL", ""),
        ("-n s b address 10.0.0.7", BRIEF_TITLE + BRIEF_ALICE),
        ("session packets", PACKETS_TITLE + PACKETS_ALICE + PACKETS_BOB),
        ("session packets interface npx0", PACKETS_TITLE + PACKETS_ALICE),
        ("session packets username nobody", ""),
        ("session all", f"{ALICE_BLOCK}\n{BOB_BLOCK}"),
        ("session all ppp-id 4294967295", BOB_BLOCK),
        ("session all state half-open", CAROL_BLOCK),
        ("session all username nobody", ""),
        ("-j session all username nobody", ""),
        ("clear username nobody", "No session to disconnect.\n"),
        ("clear ppp-id 7", "Successfully disconnected 1 session.\n"),
        ("clear ppp-id 7 username alice", "Successfully disconnected 1 session.\n"),
        ("clear ppp-id 7 username bob", "No session to disconnect.\n"),
        ("clear ppp-id 9", "Successfully disconnected 1 session.\n"),
        ("clear all", "Successfully disconnected 2 sessions.\n"),
        ("clear state any", "Successfully disconnected 4 sessions.\n"),
        ("-j clear all", '{"disconnected": 2, "failed": 0}\n'),
    ],
)
async def test_output(
    server: ControlServer, path: Path, line: str, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await npppyctl(path, line) == 0
    assert capsys.readouterr() == (printed, "")


async def test_no_session_no_output(
    server: ControlServer, subject: FakeSubject, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject.sessions.clear()
    for view in ("brief", "packets", "all"):
        assert await npppyctl(path, f"session {view}") == 0
    assert capsys.readouterr() == ("", "")
    assert await npppyctl(path, "clear all") == 0
    assert capsys.readouterr() == ("No session to disconnect.\n", "")


@pytest.mark.parametrize(
    ("stubborn", "line", "printed"),
    [
        ({7}, "clear all", "Successfully disconnected 1 session.\nFailed to disconnect 1 session.\n"),
        ({7, 4294967295}, "clear all", "Failed to disconnect 2 sessions.\n"),
        (set(), "clear ppp-id 8", "Failed to disconnect 1 session.\n"),
        (set(), "-j clear ppp-id 8", '{"disconnected": 0, "failed": 1}\n'),
    ],
)
async def test_clear_that_fails(
    server: ControlServer,
    subject: FakeSubject,
    path: Path,
    stubborn: set[int],
    line: str,
    printed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    subject.stubborn = stubborn
    assert await npppyctl(path, line) == 1
    assert capsys.readouterr() == (printed, "")


ALICE_JSON = {
    "ppp_id": 7,
    "state": "up",
    "username": "alice",
    "realm": "LOCAL",
    "interface": "npx0",
    "address": "10.0.0.7",
    "mru": 1492,
    "protocol": "PPPoE",
    "tunnel": "ACCESS",
    "tunnel_from": "02:00:00:00:00:07",
    "start": 1700000000.0,
    "duration": 42.9,
    "in_bytes": 999,
    "in_packets": 10,
    "in_errors": 0,
    "out_bytes": 1536,
    "out_packets": 12,
    "out_errors": 1,
    "pipex": "ebpf",
    "rate_down": 10_000_000,
    "burst_down": 125_000,
    "rate_up": 0,
    "burst_up": 0,
}


async def test_json_is_an_object_a_line(
    server: ControlServer, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for view in ("brief", "packets", "all"):
        assert await npppyctl(path, f"-j session {view}") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    alice, bob = map(json.loads, printed[0].splitlines())
    assert alice == ALICE_JSON
    # Escaped as JSON escapes; an octet that is not UTF-8 leaves no lone surrogate behind.
    assert bob["username"] == "bob\x1b]0;\n?@a.very.long.realm"
    assert printed[0].isascii()


def test_json_keeps_characters_beyond_the_first_plane() -> None:
    assert json.loads(format.json_line({"username": "\U0001f600"})) == {"username": "\U0001f600"}
    assert json.loads(format.json_line({"username": "\U0001f600\udc80"})) == {"username": "\U0001f600?"}


PIPEX = """
          backend reason capacity sessions tunnels interfaces paths punts drops other maps memory
          ns way length data slow frames lost ended
"""


@pytest.mark.parametrize("name", [*ALICE_JSON, "event", "count", "disconnected", "failed", *PIPEX.split()])
def test_the_manual_has_every_json_field(name: str) -> None:
    assert f"\n.It Cm {name}\n" in (Path(ctl.__file__).parents[1] / "conf" / "npppyctl.8").read_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 sec "),
        (59, "59 sec "),
        (60, "60 sec (1 minute)"),
        (119, "119 sec (1 minute)"),
        (120, "120 sec (2 minutes)"),
        (3600, "3600 sec (1 hour)"),
        (3660, "3660 sec (1 hour and 1 minute)"),
        (7200, "7200 sec (2 hours)"),
        (7320, "7320 sec (2 hours and 2 minutes)"),
        (360000, "360000 sec (100 hours)"),
    ],
)
def test_elapsed(seconds: int, text: str) -> None:
    assert format.elapsed(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1000 (1.0 KB)"),
        (1023999, "1023999 (1000.0 KB)"),
        (1024000, "1024000 (1.0 MB)"),
        (1048575999, "1048575999 (1000.0 MB)"),
        (1048576000, "1048576000 (1.0 GB)"),
        (5 * 1024**4, "5497558138880 (5120.0 GB)"),
    ],
)
def test_octets(count: int, text: str) -> None:
    assert format.octets(count) == text


@pytest.mark.parametrize(
    ("errors", "packets", "text"), [(0, 0, "0 (0.0%)"), (1, 0, "1 (100.0%)"), (1, 2, "1 (33.3%)"), (0, 9, "0 (0.0%)")]
)
def test_errors(errors: int, packets: int, text: str) -> None:
    assert format.errors(errors, packets) == text


# monitor


async def monitored(server: ControlServer, subject: FakeSubject, path: Path, line: str) -> int:
    """npppyctl monitor while alice comes, bob goes, and the daemon ends."""
    running = asyncio.create_task(npppyctl(path, line))
    await until(lambda: subject.listeners)
    subject.tell("start", ALICE)
    subject.tell("stop", replace(BOB, state="terminate"))
    # Both have been sent once a request that was made later is answered.
    await ask(path, {"command": "session"})
    await server.close()
    return await running


BAR = "-" * 72 + "\n"


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        (
            "monitor all",
            f"PPP Started\n{BAR}{ALICE_BLOCK}{BAR}PPP Stopped\n{BAR}{BOB_BLOCK}{BAR}",
        ),
        ("monitor protocol l2tp", f"PPP Stopped\n{BAR}{BOB_BLOCK}{BAR}"),
        ("monitor username alice realm LOCAL", f"PPP Started\n{BAR}{ALICE_BLOCK}{BAR}"),
        ("monitor ppp-id 7 protocol l2tp", ""),
        ("-j monitor ppp-id 7", json.dumps({"event": "start", **ALICE_JSON}) + "\n"),
    ],
)
async def test_monitor(
    server: ControlServer,
    subject: FakeSubject,
    path: Path,
    line: str,
    printed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await monitored(server, subject, path, line) == 0
    assert capsys.readouterr() == (printed, "")
    assert not subject.listeners


class Answered:
    """An answer of one list of rows."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = list(rows)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        yield self.rows


def test_lost_events_are_told_apart_from_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    answer: Any = Answered({"event": "lost", "count": 1}, {"event": "lost", "count": 12})
    format.events(answer, sys.stdout)
    assert capsys.readouterr() == (
        "",
        "npppyctl: too slow: 1 event lost\nnpppyctl: too slow: 12 events lost\n",
    )


# What goes wrong


def test_npppyd_is_not_running(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["-s", str(path), "session", "brief"]) == 1
    assert capsys.readouterr() == (
        "",
        f"npppyctl: cannot connect to {path}: No such file or directory; is npppyd running?\n",
    )
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert ctl.run(["-s", str(path), "session", "brief"]) == 1
    assert capsys.readouterr().err == f"npppyctl: cannot connect to {path}: Connection refused; is npppyd running?\n"


def test_the_default_socket() -> None:
    assert protocol.SOCKET == "/var/run/npppyd.sock"
    assert ctl.SOCKET is protocol.SOCKET


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (
            [{"hello": "npppyd", "version": 99}],
            "npppyctl speaks version 1 of the control protocol, the other side version 99",
        ),
        ([{"error": "permission denied"}], "permission denied"),
        ([], "npppyd closed the connection"),
        ([HELLO], "npppyd closed the connection before the end"),
        ([HELLO, {"rows": []}], "npppyd closed the connection before the end"),
        ([HELLO, {"error": "internal error"}], "internal error"),
    ],
)
async def test_what_a_daemon_may_answer(
    path: Path, frames: list[dict[str, Any]], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(map(framed, frames)))
        if HELLO in frames:
            # npppyctl's hello and request.
            for _ in range(2):
                await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        assert await npppyctl(path, "session brief") == 1
    assert capsys.readouterr() == ("", f"npppyctl: {said}\n")


async def test_a_command_that_is_too_long(
    server: ControlServer, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await npppyctl(path, "session all username " + "x" * 70000) == 1
    assert capsys.readouterr() == ("", "npppyctl: the command is too long\n")


async def test_a_full_disk(server: ControlServer, path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = await program(path, "session all", stdout=full)
        _, said = await process.communicate()
    assert (process.returncode, said) == (1, b"npppyctl: cannot write: No space left on device\n")


# The program itself


async def program(path: Path, line: str, stdout: Any = subprocess.PIPE) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "npppy.ctl", "-s", path, *line.split()),
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )


async def test_a_reader_that_has_enough_ends_it_quietly(
    server: ControlServer, subject: FakeSubject, path: Path
) -> None:
    subject.sessions = {info.ppp_id: info for info in many(5000)}
    script = '"$0" -m npppy.ctl -s "$1" session all | head -n 1; echo "${PIPESTATUS[0]}"'
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, sys.executable, path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    printed, said = await process.communicate()
    assert (printed.decode(), said) == (f"Ppp Id = 1\n{128 + signal.SIGPIPE}\n", b"")
    await until(lambda: not server.clients)


async def test_interrupted_it_ends_quietly(server: ControlServer, subject: FakeSubject, path: Path) -> None:
    process = await program(path, "monitor all")
    await until(lambda: subject.listeners)
    subject.tell("start", ALICE)
    assert process.stdout is not None
    # Nothing waits in a buffer: each event is seen when it happens.
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"PPP Started\n"
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    assert (process.returncode, said) == (-signal.SIGINT, b"")
    await until(lambda: not subject.listeners)


def test_it_imports_little() -> None:
    heavy = ["asyncio", "argparse", "dataclasses", "inspect", "logging", "typing", "ssl", "uvloop", "pyroute2"]
    ours = ["npppy.control.server", "npppy.control.info", "npppy.config", "npppy.pipex"]
    code = f"import npppy.ctl, sys; print([name for name in {heavy + ours} if name in sys.modules])"
    # -S: what the environment's site hooks import is not ours.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=Path(ctl.__file__).parents[1]
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
