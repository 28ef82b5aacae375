"""npppyctl's end of ``capture``: lines, or a pcap file."""

from __future__ import annotations

import binascii
import contextlib
import itertools
import os
import signal
import struct
import sys
import threading
import time

from .client import ControlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO, TextIO

    from .client import Answer
    from .protocol import Message

#: The file header: nanoseconds, version 2.4, frames of at most so many octets, Ethernet.
_HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)
#: A frame's: seconds and nanoseconds since the Epoch, octets that follow, octets on the wire.
_RECORD = struct.Struct("=IIII")

_WAYS = {"in": "in ", "out": "out"}


class PcapFile:
    """Writes frames to a file as they come, ``-`` being standard output."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, answer: Answer, out: TextIO) -> None:
        with _stoppable(answer):
            parts = iter(answer)
            # With the first of them npppyd says that it captures: before that there is nothing to write.
            first = next(parts, [])
            tally = _Tally()
            try:
                with self._open(out) as file:
                    file.write(_HEADER)
                    for rows in itertools.chain((first,), parts):
                        file.write(b"".join(_record(row) for row in tally.frames(rows)))
                        file.flush()
            except OSError as error:
                raise ControlError(f"cannot write {self._path}: {error.strerror}") from None
        tally.tell(answer)

    def _open(self, out: TextIO) -> contextlib.AbstractContextManager[BinaryIO]:
        if self._path == "-":
            return contextlib.nullcontext(out.buffer)
        # Passwords may be in it.
        return os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def lines(answer: Answer, out: TextIO) -> None:
    """A line a frame: time, way, protocol, octets on the wire, and what it says."""
    from .dissect import summary

    with _stoppable(answer):
        tally = _Tally()
        for rows in answer:
            for row in tally.frames(rows):
                seconds, ns = divmod(row["ns"], 10**9)
                at = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{ns // 1000:06d}"
                protocol, text = summary(binascii.a2b_base64(row["data"]), row["length"])
                out.write(f"{at} {_WAYS[row['way']]} {protocol:<6} {row['length']:5d} {text}".rstrip() + "\n")
            out.flush()
    tally.tell(answer)


class _Tally:
    """How many frames there were."""

    def __init__(self) -> None:
        self._frames = 0
        self._lost = {"npppyctl": 0, "npppyd": 0}

    def frames(self, rows: Iterable[Message]) -> Iterator[Message]:
        """Those rows that are frames."""
        for row in rows:
            if "data" in row:
                self._frames += 1
                yield row
            elif row["event"] == "lost":
                self._lost[row["slow"]] += row["count"]

    def tell(self, answer: Answer) -> None:
        """Say how it went on standard error, since frames may be on standard output."""
        words = [f"{self._frames} frame{'' if self._frames == 1 else 's'} captured"]
        words += [f"{count} lost since {who} was too slow" for who, count in self._lost.items() if count]
        why = f": {answer.done['ended']}" if "ended" in answer.done else ""
        print(f"npppyctl: {', '.join(words)}{why}", file=sys.stderr)


@contextlib.contextmanager
def _stoppable(answer: Answer) -> Iterator[None]:
    """Ctrl-C and SIGTERM bring *answer* to its end, so that all is told, and the next ones end the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        answer.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record(row: Message) -> bytes:
    data = binascii.a2b_base64(row["data"])
    seconds, ns = divmod(row["ns"], 10**9)
    return _RECORD.pack(seconds, ns, len(data), row["length"]) + data
