"""make demo's script: it works, and it leaves nothing behind, even when it is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"


def start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(DEMO)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def left_by(demo: subprocess.Popen[str]) -> list[str]:
    """The namespaces that a demo has not removed."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if name.startswith("npppy-demo-") and name.endswith(f"-{demo.pid}")]


def children(pid: int) -> set[tuple[int, str]]:
    """The processes that *pid* has started, with the time of their start, which tells them from later ones."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # Behind the name, which may hold anything: state, parent, ..., the 20th is the start.
            fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add((int(process.name), fields[19]))
    return found


def alive(processes: set[tuple[int, str]]) -> list[int]:
    """Those of them that still run."""
    found = []
    for pid, began in processes:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == began and fields[0] != "Z":
            found.append(pid)
    return found


def test_it_works() -> None:
    before = set(Path(tempfile.gettempdir()).glob("npppy-demo-*"))
    demo = start()
    told, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, told
    assert "All of it worked" in told
    assert left_by(demo) == []
    assert set(Path(tempfile.gettempdir()).glob("npppy-demo-*")) <= before


@pytest.mark.parametrize(("number", "line"), [(signal.SIGINT, "npppyd answers"), (signal.SIGTERM, "bob is up")])
def test_it_can_be_interrupted(number: int, line: str) -> None:
    demo = start()
    assert demo.stdout is not None
    for text in demo.stdout:
        if line in text:
            break
    running = children(demo.pid)
    assert running
    demo.send_signal(number)
    told, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, told
    assert left_by(demo) == []
    assert alive(running) == []
