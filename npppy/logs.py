"""Where log lines go: standard error, the journal, or syslog."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import time

SYSLOG = "/dev/log"

#: syslog(3) severities, which the journal reads from the front of a line (sd-daemon(3)).
_SEVERITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class _StampedFormatter(logging.Formatter):
    """Date, time and level before each line; the second is made text once, not for each line of it."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._stamp = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._stamp},{record.msecs:03.0f} {record.levelname} {super().format(record)}"


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"<{_SEVERITY.get(record.levelno, 6)}>" + super().format(record).replace("\n", " ")


def setup(*, foreground: bool, debug: bool) -> None:
    """Send log lines to standard error in the foreground, to syslog otherwise."""
    handler: logging.Handler
    if foreground:
        handler = logging.StreamHandler(sys.stderr)
        if "JOURNAL_STREAM" in os.environ:
            handler.setFormatter(_JournalFormatter("%(message)s"))
        else:
            handler.setFormatter(_StampedFormatter())
    else:
        handler = logging.handlers.SysLogHandler(SYSLOG, facility="daemon")
        handler.ident = f"npppyd[{os.getpid()}]: "
    # asyncio tells of exceptions that nobody caught.
    for name in ("npppy", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG if debug and name == "npppy" else logging.INFO)
        logger.propagate = False
    # Nobody asks for them, and finding them out costs at every line; _srcfile is how the manual of logging says not to
    # look for the caller.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
