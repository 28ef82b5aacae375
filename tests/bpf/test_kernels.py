"""All tests of the programs again, on the kernel of the guest: Debian's own with an older verifier, or the newest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.guest
@pytest.mark.tcg
def test_on_this_kernel() -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider"]
    all_of_them = {**os.environ, "NPPPY_SUITE": "root", "NPPPY_SHARE": "1/1"}
    done = subprocess.run(
        [*pytest_, "-m", "root", str(Path(__file__).parent)], env=all_of_them, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
