"""npppyd started without its imports, which take a second in a guest: one process has them, and forks for each.

What has changed in the environment since the first start none of them sees.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from npppy.daemon import main
from tests.peers.namespace import inside

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class Started:
    """An npppyd with these arguments in a namespace, which writes to *log*; as far as needed like subprocess.Popen."""

    def __init__(self, namespace: str, argv: Sequence[str], log: Path) -> None:
        log.touch()
        self._process = _CONTEXT.Process(target=_main, args=(namespace, argv, log))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        # What has ended, and whose number may be another's, gets none.
        if self._process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        self._process.join()
        assert self.returncode is not None
        return self.returncode


def _main(namespace: str, argv: Sequence[str], log: Path) -> None:
    # What all have in common npppyd's own collections need not touch, or the kernel would copy it for each.
    gc.freeze()
    with inside(namespace), open(os.devnull) as nothing, log.open("wb") as out:
        for number, file in enumerate((nothing, out, out)):
            os.dup2(file.fileno(), number)
        sys.exit(main(list(argv)))
