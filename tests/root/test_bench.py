"""``make bench``: that it measures, and what it keeps.  How fast anything is, is not asked here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0

KEYS = {"name", "value", "unit", "target", "better", "baseline", "machine", "commit"}


def bench(path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The quick measurements, with temporary files below *path*."""
    command = [sys.executable, "-m", "bench", "--quick", "--results", str(path / "results.jsonl"), *arguments]
    (path / "t").mkdir()
    env = {**os.environ, "TMPDIR": str(path / "t"), **environment}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def nothing_left(path: Path) -> bool:
    return list((path / "t").iterdir()) == []


def test_figures_are_printed_and_kept(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text('{"name": "of.an.earlier.run"}\n')
    process = bench(tmp_path, "--sessions", "20", "setup")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    earlier, *figures = [json.loads(line) for line in results.read_text().splitlines()]
    assert earlier == {"name": "of.an.earlier.run"}
    assert [figure["name"] for figure in figures] == [
        f"setup.pppoe.{method}{wall}" for method in ("pap", "chap", "mschapv2") for wall in ("", ".wall")
    ]
    for figure in figures:
        assert figure.keys() == KEYS
        assert figure["value"] > 0
        assert figure["target"] == (None if figure["name"].endswith(".wall") else 2000)
        assert figure["better"] == "higher"
        assert "Linux" in figure["machine"]
        (line,) = (line for line in out.splitlines() if line.startswith(f"{figure['name']} "))
        assert figure["target"] is None or line.rstrip().endswith(("met", "missed"))
    assert nothing_left(tmp_path)


def test_what_cannot_be_measured_is_a_failure(tmp_path: Path) -> None:
    # Without ip(8) there is no network to measure in.
    process = bench(tmp_path, "--sessions", "1", "setup", PATH="/nonexistent")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "setup failed" in err
    assert "setup.pppoe" not in out
    assert not (tmp_path / "results.jsonl").exists()
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: int) -> None:
    process = bench(tmp_path, "setup")
    deadline = time.monotonic() + PATIENCE
    while not (daemon := npppyd_of(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert not Path(f"/proc/{daemon}").exists()
    assert nothing_left(tmp_path)


def npppyd_of(pid: int) -> int | None:
    """The npppyd that *pid* has started."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        # What is ending has no command line any more.
        with contextlib.suppress(FileNotFoundError):
            if b"npppy.daemon" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return None
