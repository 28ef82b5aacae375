"""python -m tests.guest.run [options] -- command ...: run a command in a guest that has PPP (see harness.py)."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.guest import harness


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guest.run", description="run a command in a guest with PPP")
    parser.add_argument("--kind", choices=["uml", "kvm", "tcg"], help="the kind of guest (the best that works here)")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds for all of it (%(default)s)")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="of the guest (%(default)s)")
    parser.add_argument("--share", type=Path, action="append", default=[], metavar="DIR", help="the guest may write it")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    for path in options.share:
        if not path.is_dir():
            parser.error(f"--share {path}: no such directory")
    # Asked to end, end the guest too: sys.exit runs what stands in finally.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return harness.run(
        options.command,
        kind=options.kind,
        timeout=options.timeout,
        memory=options.memory,
        share=options.share,
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
