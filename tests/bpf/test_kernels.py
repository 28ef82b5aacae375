"""All tests of the programs again, on the kernel of the guest: Debian's own with an older verifier, or the newest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.guest
@pytest.mark.tcg
def test_on_this_kernel() -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider"]
    done = subprocess.run([*pytest_, "-m", "root", str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
