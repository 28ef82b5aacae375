"""A load divided between several processes, each of which has its own subscribers and sockets.

The parent starts them, has them begin and hold at the same time, passes signals on, and puts their reports together.
Messages are JSON, one each way in a packet of a socket pair; a report is left in a file that has no name.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace

import uvloop

from .access import part
from .progress import INTERVAL, Progress, Snapshot, together
from .report import Report
from .run import Run, Setup

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
#: Octets of the longest message.
_MESSAGE = 65536
#: Exit status of a worker that could not have what it needs, and says why.
_REFUSED = 2


class WorkerError(Exception):
    """A worker could not begin, or did not live to its end; says which, and why."""


def shares(setup: Setup, count: int) -> list[Setup]:
    """What each of *count* processes has to do."""
    plan, found = setup.plan, []
    for number in range(count):
        numbers = part(plan.sessions, number, count)
        fraction = len(numbers) / plan.sessions
        mine = replace(
            plan,
            first=plan.first + numbers.start,
            sessions=len(numbers),
            rate=plan.rate * fraction,
            window=len(part(plan.window, number, count)),
            churn=plan.churn * fraction,
        )
        data = setup.data
        if data is not None:
            data = replace(data, rate=data.rate * fraction)
        found.append(replace(setup, plan=mine, access=setup.access.share(number, count), data=data))
    return found


def run(setup: Setup, count: int) -> Report:
    """Run *setup* in *count* processes, none of which is left behind.  Raises :class:`WorkerError`, and OSError."""
    # What is in the buffers would be written by each of them.
    sys.stdout.flush()
    sys.stderr.flush()
    workers: list[_Worker] = []
    try:
        for number, mine in enumerate(shares(setup, count), 1):
            workers.append(_Worker(number, mine, workers))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_lead(workers))
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """A process, as its parent sees it."""

    def __init__(self, number: int, setup: Setup, others: Sequence[_Worker]) -> None:
        plan = setup.plan
        self._name = f"worker {number} (subscribers {plan.first} to {plan.first + plan.sessions - 1})"
        self.found: Snapshot = {}
        #: It is as far as the others are to be, or has come to its end.
        self.ready = False
        self.report: Report | None = None
        self._result = os.memfd_create("npppysim")
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            # Nothing of the parent's may go on here, whatever happens.
            status = 1
            try:
                for other in (*others, self):
                    other.sock.close()
                status = _work(setup, theirs, self._result, parent)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        theirs.close()
        self.sock.setblocking(False)

    def tell(self, message: dict[str, float]) -> None:
        try:
            self.sock.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            # It has ended, of which we are about to hear.
            pass

    def ended(self) -> None:
        """It has closed its end: see what has become of it.  Raises :class:`WorkerError`."""
        pid, self.pid = self.pid, 0
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.sock.close()
        with open(self._result, "rb") as file:
            file.seek(0)
            result = file.read()
        if status == 0:
            self.report = pickle.loads(result)
            self.ready = True
        elif status == _REFUSED:
            raise WorkerError(pickle.loads(result))
        elif status < 0:
            raise WorkerError(f"{self._name} was killed by {signal.Signals(-status).name}")
        else:
            raise WorkerError(f"{self._name} ended with status {status}")

    def kill(self) -> None:
        """Whatever it does, it does so no longer."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
            self.sock.close()
            os.close(self._result)


async def _lead(workers: Sequence[_Worker]) -> Report:
    return await _Parent(workers).run()


class _Parent:
    """The one that leads them."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> Report:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._interrupt)
        for worker in self._workers:
            self._loop.add_reader(worker.sock.fileno(), self._readable, worker)
        progress = self._loop.create_task(self._progress()) if sys.stderr.isatty() else None
        try:
            await self._done
        finally:
            if progress is not None:
                progress.cancel()
        report = Report(0)
        # Each has as many rounds as the others, or has come to its end before.
        for worker in self._workers:
            assert worker.report is not None
            report.merge(worker.report)
        return report

    def _interrupt(self) -> None:
        for worker in self._workers:
            if worker.pid:
                worker.tell({"stop": 1})

    def _readable(self, worker: _Worker) -> None:
        try:
            message = worker.sock.recv(_MESSAGE)
        except ConnectionResetError:
            # It has ended without having read all.
            message = b""
        if message:
            found = json.loads(message)
            if found:
                worker.found = found
            else:
                worker.ready = True
        else:
            self._loop.remove_reader(worker.sock.fileno())
            try:
                worker.ended()
            except WorkerError as error:
                if not self._done.done():
                    self._done.set_exception(error)
                return
            if not any(each.pid for each in self._workers) and not self._done.done():
                self._done.set_result(None)
        if all(each.ready for each in self._workers):
            now = time.monotonic()
            for each in self._workers:
                if each.pid:
                    each.ready = False
                    each.tell({"since": now})

    async def _progress(self) -> None:
        progress = Progress()
        try:
            while True:
                found = [worker.found for worker in self._workers]
                if all(found):
                    progress.show(together(found), time.monotonic())
                await asyncio.sleep(INTERVAL)
        finally:
            progress.clear()


class _Led:
    """The parent, as a worker sees it (:class:`.run.Leader`)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    def lead(self, run: Run) -> None:
        self._run = run
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def ready(self) -> None:
        self._sock.send(b"{}")

    def tell(self, found: Snapshot) -> None:
        try:
            self._sock.send(json.dumps(found).encode())
        except BlockingIOError:
            # The parent has been stopped; it hears the next one.
            pass

    def _readable(self) -> None:
        message = json.loads(self._sock.recv(_MESSAGE) or b'{"stop": 1}')
        if "since" in message:
            self._run.met(message["since"])
        else:
            self._run.interrupt()


def _work(setup: Setup, sock: socket.socket, result: int, parent: int) -> int:
    """A worker's life; returns its exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It went before it could take us along.
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal sends them to all of us; the parent says what is to be done.
        signal.signal(number, signal.SIG_IGN)
    told: Report | str
    status = 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            told = runner.run(_run(setup, sock))
    except OSError as error:
        told, status = str(error), _REFUSED
    with open(result, "wb") as file:
        pickle.dump(told, file)
    return status


async def _run(setup: Setup, sock: socket.socket) -> Report:
    return await Run(setup, _Led(sock)).run()
