"""MPPE: what packets of somebody else, or such as come again, may cost."""

from __future__ import annotations

import random

import pytest

from npppy.pipex.icmp import RateLimit
from npppy.ppp.engine import CATCHING_UP
from npppy.ppp.mppe import STRENGTHS, Place, Receiver, Sender
from tests.unit.ippackets import udp

MASTER = bytes(range(16))
PACKET = b"\0\x21" + udp("10.0.0.2", "10.0.0.1", bytes(1370))


class Budget:
    """Of changes of keys."""

    def __init__(self, changes: float) -> None:
        self.left = changes

    def take(self, now: float, changes: float) -> bool:
        if changes > self.left:
            return False
        self.left -= changes
        return True


class Kernel:
    """Where the receiver is, while the kernel decrypts as well."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def read(self) -> Place:
        return self.place

    def write(self, place: Place, before: Place) -> None:
        self.place = place


def pair(budget: Budget | RateLimit, *, stateful: bool) -> tuple[Sender, Receiver]:
    receiver = Receiver(STRENGTHS[128], MASTER, stateful=stateful, budget=budget)  # type: ignore[arg-type]
    return Sender(STRENGTHS[128], MASTER, stateful=stateful), receiver


@pytest.mark.parametrize("carried", [False, True])
def test_again(carried: bool) -> None:
    """One that comes again is not worked on while others come, whoever keeps the keys."""
    budget = Budget(100_000)
    sender, receiver = pair(budget, stateful=False)
    if carried:
        receiver.shared = Kernel(receiver.place)
    now = 10.0
    for _ in range(100):
        packet = sender.encrypt(PACKET)[2:]
        assert receiver.decrypt(packet, now) == PACKET
        assert receiver.decrypt(packet, now + 0.01) is None
        now += 0.02
    assert budget.left == 100_000


def test_forged_in_the_middle_of_a_stream() -> None:
    """In stateful mode it takes the stream anew to go back behind such a packet: that, too, has a bound."""
    dice = random.Random(5)
    budget = Budget(1000)
    sender, receiver = pair(budget, stateful=True)
    for _ in range(200):
        assert receiver.decrypt(sender.encrypt(PACKET)[2:]) == PACKET
    for _ in range(10):
        forged = (0x1000 | receiver.count).to_bytes(2, "big") + dice.randbytes(60)
        assert receiver.decrypt(forged) is None
        assert receiver.wants_reset
    assert 0 < budget.left < 500
    # As long as it is affordable nothing is lost.
    assert receiver.decrypt(sender.encrypt(PACKET)[2:]) == PACKET
    for _ in range(10):
        receiver.decrypt((0x1000 | receiver.count).to_bytes(2, "big") + dice.randbytes(60))
    left = budget.left
    assert left < 100
    for _ in range(100):
        assert receiver.decrypt((0x1000 | receiver.count).to_bytes(2, "big") + dice.randbytes(60)) is None
    assert budget.left == left
    # Then a reset helps.
    assert receiver.decrypt(sender.encrypt(PACKET)[2:]) is None
    assert receiver.wants_reset
    sender.reset()
    assert receiver.decrypt(sender.encrypt(PACKET)[2:]) == PACKET
    assert receiver.decrypt(sender.encrypt(PACKET)[2:]) == PACKET


def test_one_that_always_needs_much_leaves_some_to_others() -> None:
    """A subscriber may well leave out packets on purpose."""
    budget = RateLimit(*CATCHING_UP)
    greedy, used = pair(budget, stateful=False)
    other, receiver = pair(budget, stateful=False)
    now, caught_up = 10.0, 0
    small = b"\0\x21" + udp("10.0.0.2", "10.0.0.1", b"")
    for _ in range(500):
        place = greedy.key, greedy.count
        for _ in range(300):
            greedy.skip()
        if used.decrypt(greedy.encrypt(small)[2:], now) is None:
            greedy.key, greedy.count = place
        else:
            caught_up += 1
        now += 0.01
    # It was affordable for a while.
    assert caught_up > 50
    for _ in range(1500):
        other.skip()
    for _ in range(100):
        if receiver.decrypt(other.encrypt(small)[2:], now) is not None:
            return
        for _ in range(300):
            greedy.skip()
        used.decrypt(greedy.encrypt(small)[2:], now)
        now += 0.01
    pytest.fail("it remains deaf")
