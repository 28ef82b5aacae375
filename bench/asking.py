"""``ctl`` and ``metrics``: what npppyd is asked about its sessions, and how long others wait meanwhile."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from npppy.config.options import METRICS_PORT

from .figures import ROOT, BenchError, Figure
from .lab import PATIENCE, THEIRS, Lab, Npppyd, Program, pinned, until
from .sessions import METHOD

#: How often each question is asked.
TIMES = 5
#: Sessions of which the answer has a target: seconds, and milliseconds that others may wait.
LARGE = 50_000
ANSWER, LAG = 2.0, 20.0

#: By the second word of ``npppyctl session``, what there is one of for each session.
_LISTINGS = {"brief": re.compile(rb"^ *\d+ .* PPPoE ", re.MULTILINE), "all": re.compile(rb"^Ppp Id = ", re.MULTILINE)}
#: Pages, and where each session is in them, or how many there are.
_PAGES = {
    "scrape": ("/metrics", re.compile(rb"^npppy_sessions\{.*\} (\d+)", re.MULTILINE)),
    "sessions": ("/sessions", re.compile(rb"^npppy_session_uptime_seconds\{", re.MULTILINE)),
}
_LOCALHOST = "127.0.0.1"


class Prober(Program):
    """Hosts who ask on ``sub0`` all the time: :mod:`bench.prober`."""

    def __init__(self) -> None:
        self.asking = False
        super().__init__("prober", [sys.executable, "-m", "bench.prober", "sub0"])

    def heard(self, line: bytes) -> None:
        self.asking = self.asking or line == b"asking"

    def wait_asking(self) -> None:
        def asks() -> bool:
            self.check()
            return self.asking

        until(asks, "the prober asks")

    def end(self) -> float:
        """The longest that a PADO took, in seconds.  Raises :class:`BenchError` if a PADI was not answered."""
        self.process.terminate()
        if self.process.wait():
            raise self.error(f"has ended with status {self.process.returncode}")
        self.out.seek(0)
        found = json.loads(self.out.read())
        if found["unanswered"] or not found["sent"]:
            raise BenchError(f"of {found['sent']} PADI {found['unanswered']} were not answered")
        return float(found["worst"])


def lag(lab: Lab, during: Callable[[], object]) -> float:
    """The longest, in seconds, that a host waits while this is done, which must be another process's work."""
    with lab.sub, pinned(THEIRS):
        prober = Prober()
    with contextlib.closing(prober):
        prober.wait_asking()
        during()
        return prober.end()


def measure(counts: Sequence[int]) -> Iterator[Figure]:
    """How long ``npppyctl`` takes with so many sessions, rising numbers of them."""
    with Lab() as lab:
        # Nobody asks the subscribers, so nobody notices that they have gone, and their work slows nothing down.
        daemon = lab.npppyd(users=counts[-1], method=METHOD, settings=f"metrics-listen {_LOCALHOST}\n")
        for count in counts:
            subscribers = lab.dial(daemon, count - daemon.started, METHOD)
            subscribers.wait_up()
            subscribers.end()
            for what in _LISTINGS:
                ask = functools.partial(_list, daemon, what, count)
                yield from _asked(lab, daemon, f"ctl.{what}.{count}", ask)
            for what in _PAGES:
                ask = functools.partial(_scrape, lab, what, count)
                yield from _asked(lab, daemon, f"metrics.{what}.{count}", ask)


def _asked(lab: Lab, daemon: Npppyd, name: str, ask: Callable[[], float]) -> Iterator[Figure]:
    """*ask* returns how many seconds the answer took.

    How long others wait is asked apart, and beside as long without the question.
    """
    large = name.endswith(f".{LARGE}")
    took = statistics.median(ask() for _ in range(TIMES))
    yield Figure(name=name, value=took, unit="s", target=ANSWER if large else None, better="lower")
    daemon.wait_idle()
    waited = lag(lab, lambda: [ask() for _ in range(TIMES)])
    quiet = lag(lab, lambda: time.sleep(took * TIMES))
    yield Figure(
        name=f"{name}.lag",
        value=waited * 1000,
        unit="ms",
        target=LAG if large else None,
        better="lower",
        baseline=quiet * 1000,
    )


def _list(daemon: Npppyd, what: str, count: int) -> float:
    """How long ``npppyctl session`` takes; it must show so many sessions."""
    command = [sys.executable, "-m", "npppy.ctl", "-s", str(daemon.socket), "session", what]
    with pinned(THEIRS):
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, cwd=ROOT)
        took = time.monotonic() - began
    found = len(_LISTINGS[what].findall(done.stdout))
    if done.returncode or found != count:
        error = done.stderr.decode(errors="replace")
        raise BenchError(f"npppyctl session {what} shows {found} sessions of {count}: {error}")
    return took


def _scrape(lab: Lab, what: str, count: int) -> float:
    """How long a page takes; it must know of so many sessions."""
    path, mark = _PAGES[what]
    connection = http.client.HTTPConnection(_LOCALHOST, METRICS_PORT, timeout=PATIENCE)
    with contextlib.closing(connection):
        began = time.monotonic()
        with lab.bng:
            connection.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        page = answer.read()
        took = time.monotonic() - began
    # A value for each session, or one for all of a kind.
    found = sum(int(value) for value in mark.findall(page)) if mark.groups else len(mark.findall(page))
    if answer.status != http.HTTPStatus.OK or found != count:
        raise BenchError(f"{path} knows of {found} sessions of {count}: {answer.status} {answer.reason}")
    return took
