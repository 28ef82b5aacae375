"""make demo's script: it works, and it leaves nothing behind, even when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"


def start(directory: Path, *python: str) -> subprocess.Popen[str]:
    """In a session of its own, which all that it starts stays in, with its files below *directory*."""
    return subprocess.Popen(
        [sys.executable, *(python or (str(DEMO),))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(directory)},
        start_new_session=True,
    )


def left_by(demo: subprocess.Popen[str], directory: Path) -> list[str]:
    """The namespaces, the files and the processes of a demo that has ended."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    left = [name for name in names if name.startswith("npppy-demo-") and name.endswith(f"-{demo.pid}")]
    left += map(str, directory.glob("npppy-demo-*"))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # Behind the name, which may hold anything: state, parent, process group, session.
            state, _, _, session = process.joinpath("stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == demo.pid and state != "Z":
                left.append(process.joinpath("cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return left


def test_it_works(tmp_path: Path) -> None:
    demo = start(tmp_path)
    told, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, told
    assert "All of it worked" in told
    assert left_by(demo, tmp_path) == []


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "npppyd answers"),
        (signal.SIGTERM, "bob is up"),
    ],
)
def test_it_can_be_interrupted(number: int, line: str, tmp_path: Path) -> None:
    demo = start(tmp_path)
    assert demo.stdout is not None
    for text in demo.stdout:
        if line in text:
            break
    demo.send_signal(number)
    told, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, told
    assert left_by(demo, tmp_path) == []


#: The demo, interrupted where it starts what has a word in its command line: the child is there, and nobody knows it.
HURT = """
import os, signal, subprocess, sys
import demo

class Popen(subprocess.Popen):
    def __init__(self, argv, **rest):
        super().__init__(argv, **rest)
        if sys.argv[1] in argv:
            os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Popen
sys.exit(demo.main())
"""


@pytest.mark.parametrize("word", ["add", "-d"])
def test_what_is_being_started_ends_with_it(word: str, tmp_path: Path) -> None:
    script = tmp_path / "hurt.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(DEMO.parent)!r})\n{HURT}")
    demo = start(tmp_path, str(script), word)
    told, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, told
    assert told.endswith("\ninterrupted\n")
    assert left_by(demo, tmp_path) == []
