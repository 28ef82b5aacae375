"""What tests with real peers read of the logs of running programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.peers.lab import Program, written


class Fake:
    """A process that runs until it is told that it has ended."""

    pid = 1
    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int:
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int, /) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError


class Log:
    def __init__(self, where: Path) -> None:
        self.path = where / "log"
        self.path.touch()
        self.process = Fake()
        self.program = Program("fake", "", [], self.path, self._start)

    def _start(self, namespace: str, argv: Sequence[str], log: Path) -> Fake:
        return self.process

    def writes(self, text: str) -> None:
        with self.path.open("a") as log:
            log.write(text)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def test_a_line_that_is_being_written_is_not_seen(log: Log) -> None:
    log.writes("local  IP address 10.0.0.12\nlocal  IP addr")
    assert log.program.log == "local  IP address 10.0.0.12\n"
    log.writes("ess 10.0.0.13")
    assert log.program.says(r"address (\S+)")[1] == "10.0.0.12"
    log.writes("4\n")
    assert log.program.says(r"address (\S+)", 2)[1] == "10.0.0.134"


def test_the_last_words_of_a_program_are_seen(log: Log) -> None:
    log.writes("first\nwithout an end")
    log.process.returncode = 1
    assert log.program.log == "first\nwithout an end"


def test_objects_in_a_log(log: Log) -> None:
    log.writes('npppysim: a word\n{"event": "up"}\n{"event": "down", "rea')
    assert log.program.objects == [{"event": "up"}]
    log.writes('son": "x"}\n')
    assert log.program.objects == [{"event": "up"}, {"event": "down", "reason": "x"}]


def test_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    assert written(tmp_path / "nonesuch") == ""
