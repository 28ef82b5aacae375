"""npppysim's socket filters, run by an interpreter of classic BPF."""

from __future__ import annotations

import random

import pytest

from npppy.sim.filter import Instruction, calls, hosts
from npppy.sim.pptp import CALL_IDS, call_id


def passes(program: list[Instruction], packet: bytes) -> bool:
    """What the kernel would do; a load beyond the packet's end drops it."""
    accumulator = index = at = 0
    for _ in program:
        code, yes, no, k = program[at]
        assert 0 <= yes <= 255
        assert 0 <= no <= 255
        assert 0 <= k < 1 << 32
        at += 1
        match code:
            case 0x20 | 0x28 | 0x48:
                size, start = (4 if code == 0x20 else 2), k + (index if code == 0x48 else 0)
                if start + size > len(packet):
                    return False
                accumulator = int.from_bytes(packet[start : start + size], "big")
            case 0xB1:
                index = (packet[k] & 15) * 4
            case 0x04:
                accumulator = (accumulator + k) & 0xFFFFFFFF
            case 0x94:
                accumulator %= k
            case 0x15 | 0x25 | 0x35:
                met = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[code]
                at += yes if met else no
            case 0x06:
                return k > 0
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")
    raise AssertionError("it does not end")


def frame(mac: int) -> bytes:
    return mac.to_bytes(6, "big") + bytes(60)


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0x024E50000001, 0x024E50000001),
        (0x024E50000001, 0x024E50000100),
        (0x024E5000FFFE, 0x024E50010003),
        (0x024E5000FFF0, 0x024E5003000F),
        (0x024EFFFFFFF0, 0x024F00000010),
        (0x024E50010000, 0x024E5001FFFF),
    ],
)
def test_hosts(first: int, last: int) -> None:
    program = hosts(first, last)
    chance = random.Random(first)
    near = {edge + step for edge in (first, last) for step in (-65536, -256, -2, -1, 0, 1, 2, 256, 65536)}
    wide = {chance.randrange(first - 200_000, last + 200_000) for _ in range(500)}
    for mac in near | wide | {0xFFFFFFFFFFFF, 0}:
        assert passes(program, frame(mac)) == (first <= mac <= last), hex(mac)
    assert not passes(program, b"\x02\x4e\x50")


def gre(number: int, options: int = 0) -> bytes:
    head = bytes((0x45 + options // 4,)) + bytes(19 + options)
    return head + b"\x30\x01\x88\x0b\0\x10" + number.to_bytes(2, "big") + bytes(20)


@pytest.mark.parametrize(
    ("whole", "numbers"),
    [
        (range(1, 2), range(1, 2)),
        (range(1, 101), range(1, 51)),
        (range(1, 101), range(51, 101)),
        (range(65500, 65600), range(65530, 65560)),
        (range(70000, 70300), range(70100, 70200)),
        (range(1, 40001), range(20001, 40001)),
        (range(1, 65536), range(1, 20000)),
    ],
)
def test_calls(whole: range, numbers: range) -> None:
    program = calls(numbers, whole)
    generations = CALL_IDS // len(whole)
    chance = random.Random(len(whole))
    for _ in range(300):
        number, generation = chance.choice(whole), chance.randrange(2 * generations)
        packet = gre(call_id(number, generation, len(whole)), chance.choice((0, 4, 40)))
        assert passes(program, packet) == (number in numbers), (number, generation)
    assert not passes(program, gre(5)[:26])


@pytest.mark.parametrize("whole", [1, 7, 100, 32767, 32768, 65535])
def test_generations_of_call_ids(whole: int) -> None:
    """All that are there at a time are different, and the first ones are the subscribers' numbers."""
    count = min(CALL_IDS // whole, 5)
    numbers = range(1, whole + 1, max(1, whole // 50))
    found = [call_id(number, generation, whole) for generation in range(count) for number in numbers]
    assert len(set(found)) == len(found)
    assert all(1 <= each <= CALL_IDS for each in found)
    assert [call_id(number, 0, whole) for number in numbers] == list(numbers)
