"""python -m tests.suites suite[:shares] ...: run suites side by side, and print what each wrote when it has ended.

Much of their time is waiting: for timers of real peers, for what must not come.  So one suite, too, may be shared out
among several processes, and guests.  Logs and results are below build/test.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path("build/test")
MARKS = {"plain": "not root and not guest", "root": "root and not guest", "guest": "guest"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description="run suites side by side")
    parser.add_argument("--guest-timeout", type=float, default=900, metavar="S", help="of a guest (%(default)s)")
    parser.add_argument("suites", nargs="+", type=_shared, metavar="suite[:shares]", help=", ".join(MARKS))
    options = parser.parse_args()
    # Asked to end, end them all: sys.exit runs what stands in finally.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    RESULTS.mkdir(parents=True, exist_ok=True)
    for old in RESULTS.iterdir():
        old.unlink()
    running: list[Suite] = []
    failed = []
    try:
        for name, shares in options.suites:
            for share in range(1, shares + 1):
                suite = Suite(name, share, shares, options.guest_timeout)
                running.append(suite)
                print(f"{suite.name}: {suite.log}", flush=True)
        while running:
            time.sleep(0.2)
            for suite in [suite for suite in running if suite.process.poll() is not None]:
                running.remove(suite)
                suite.tell()
                if suite.process.returncode:
                    failed.append(suite.name)
    finally:
        # make, which is told to end too, says it once more.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for suite in running:
            # Of this, unlike of SIGTERM, pytest makes an end in order: what a test has made is removed.
            suite.process.send_signal(signal.SIGINT)
        for suite in running:
            suite.process.wait()
            suite.tell()
    if failed:
        print(f"failed: {' '.join(sorted(failed))}")
    return bool(failed)


def _shared(text: str) -> tuple[str, int]:
    """(suite, in how many shares)"""
    suite, _, shares = text.partition(":")
    if suite not in MARKS:
        raise argparse.ArgumentTypeError(f"there is no suite {suite!r}")
    return suite, int(shares or "1")


class Suite:
    """A share of a suite that runs; shares count from 1."""

    def __init__(self, suite: str, share: int, shares: int, guest_timeout: float) -> None:
        self.name = f"{suite}-{share}"
        self.log = RESULTS / f"{self.name}.log"
        argv = [sys.executable, "-m", "pytest", "-m", MARKS[suite], f"--junitxml={RESULTS / self.name}.xml"]
        argv += ["-p", "no:cacheprovider"]
        if suite == "guest":
            timeout = ["--timeout", str(guest_timeout)]
            argv = [sys.executable, "-m", "tests.guest.run", *timeout, "--share", str(RESULTS), "--", *argv]
        if suite == "plain":
            # No timer of a peer runs while it waits: the others go first.
            argv = ["nice", *argv]
        environment = {**os.environ, "NPPPY_SUITE": suite, "NPPPY_SHARE": f"{share}/{shares}"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # A group of its own: what ends all of ours reaches it through us, once.
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )  # fmt: skip

    def tell(self) -> None:
        print(f"\n== {self.name}\n{self.log.read_text(errors='replace')}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
