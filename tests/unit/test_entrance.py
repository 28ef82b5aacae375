"""How many beginnings may wait in a socket's buffer."""

from __future__ import annotations

import socket

import pytest

from npppy.admission import Admission
from npppy.entrance import FIRST, LEAST, MOST, PATIENCE, SIZE, Room


class Sock:
    """Says how large its buffer was made."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert level == socket.SOL_SOCKET
        self.counts.append(value // SIZE)


class Busy:
    """A socket with its room, and the seconds that pass."""

    def __init__(self) -> None:
        self.admission = Admission(lambda call: None, lambda: 0.0)
        self.sock = Sock()
        self.now = 100.0
        self.room = Room(self.sock, self.admission, self.now)  # type: ignore[arg-type]

    def second(self, rate: int, *, closures: int = 1) -> None:
        for part in range(10):
            self.now += 0.1
            if part < closures:
                self.admission.closures += 1
            self.room.took(rate // 10, self.now)


@pytest.fixture
def busy() -> Busy:
    return Busy()


def test_as_many_may_wait_as_have_their_turn_in_time(busy: Busy) -> None:
    assert busy.sock.counts == [FIRST]
    for _ in range(5):
        busy.second(500)
    # Not at once: a second may have been short of beginnings.
    assert busy.sock.counts[:2] == [FIRST, FIRST // 2]
    assert busy.sock.counts[-1] == pytest.approx(500 * PATIENCE, rel=0.1)
    for _ in range(10):
        busy.second(20_000)
    assert busy.sock.counts[-1] == MOST
    for _ in range(20):
        busy.second(10)
    assert busy.sock.counts[-1] == LEAST


def test_a_time_without_pressure_says_nothing(busy: Busy) -> None:
    for _ in range(5):
        busy.second(50, closures=0)
    # Nor does one in which nothing came for long.
    for _ in range(5):
        busy.now += 10
        busy.admission.closures += 1
        busy.room.took(1, busy.now)
    assert busy.sock.counts == [FIRST]


def test_without_the_right_to_more_it_takes_what_it_gets() -> None:
    busy = Busy()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        Room(sock, busy.admission, 0.0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 0
