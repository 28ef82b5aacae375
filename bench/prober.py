"""How long npppyd lets a host wait: a PADI every 2 ms, and how long after it the PADO has come.

``python -m bench.prober INTERFACE`` asks until it is told to end by a signal, and prints what it has seen as JSON.  It
goes before all others of its core: a reply is read when it is there, whatever else there is to do.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

#: Seconds between two questions: what holds npppyd for longer is seen.
INTERVAL = 0.002
#: Seconds that the last answers are waited for.
GRACE = 1.0

_DISCOVERY = 0x8863
_PADI, _PADO = 0x09, 0x07
_SERVICE_NAME, _HOST_UNIQ = 0x0101, 0x0103
#: What tells our answers from those of others who ask.
_MARK = b"npppy-lag"


def _tag(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def padi(mac: bytes, number: int) -> bytes:
    """For all, and for any service."""
    tags = _tag(_SERVICE_NAME, b"") + _tag(_HOST_UNIQ, _MARK + number.to_bytes(4, "big"))
    header = b"\x11" + bytes((_PADI,)) + bytes(2) + len(tags).to_bytes(2, "big")
    return b"\xff" * 6 + mac + _DISCOVERY.to_bytes(2, "big") + header + tags


def answered(frame: bytes) -> int | None:
    """The number of the PADI that this PADO answers; None: it is none of ours."""
    at = frame.find(_MARK)
    if len(frame) < 20 or frame[15] != _PADO or at < 0:
        return None
    at += len(_MARK)
    return int.from_bytes(frame[at : at + 4], "big")


class Prober:
    """Asks on an interface until :meth:`stop`."""

    def __init__(self, interface: str) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._sock.bind((interface, _DISCOVERY))
        self._mac: bytes = self._sock.getsockname()[4]
        self._asked: dict[int, float] = {}
        self._sent = 0
        self._delays: list[float] = []
        self._until = float("inf")

    def stop(self, number: int, frame: object) -> None:
        """A handler of signals: ask no more; who waits for answers waits a moment longer."""
        self._until = time.monotonic()

    def run(self) -> None:
        due = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= self._until:
                due = self._until + GRACE
                if not self._asked or now >= due:
                    return
            elif now >= due:
                # Those that could not be sent in time are not made up for.
                due = max(due + INTERVAL, now)
                self._asked[self._sent] = now
                self._sock.send(padi(self._mac, self._sent))
                self._sent += 1
            select.select((self._sock,), (), (), max(0.0, due - now))
            self._receive()

    def _receive(self) -> None:
        while True:
            try:
                frame = self._sock.recv(2048)
            except BlockingIOError:
                return
            now = time.monotonic()
            number = answered(frame)
            began = None if number is None else self._asked.pop(number, None)
            if began is not None:
                self._delays.append(now - began)

    def found(self) -> dict[str, Any]:
        """Times are in seconds."""
        return {
            "sent": self._sent,
            "unanswered": len(self._asked),
            "worst": max(self._delays, default=None),
        }


def main() -> None:
    prober = Prober(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, prober.stop)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    # Who has started us waits for that.
    print("asking", file=sys.stderr, flush=True)
    prober.run()
    print(json.dumps(prober.found()))


if __name__ == "__main__":
    main()
