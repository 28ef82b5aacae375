"""Enhanced GRE: headers, and what follows from the numbers in them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.cursor import Malformed
from npppy.pptp import gre
from npppy.pptp.gre import ACK_INTERVAL, ACK_PACKETS, LATE, LOST, Packet, Window

IP = bytes.fromhex("0021 4500")
LCP = bytes.fromhex("c021 01010004")
TOP = 0xFFFFFFFF


def packet(
    flags: int = 0x3081, protocol: int = 0x880B, payload: bytes = b"\xff\x03" + IP, length: int | None = None
) -> bytes:
    octets = struct.pack("!HHHH", flags, protocol, len(payload) if length is None else length, 9)
    if flags & 0x1000:
        octets += struct.pack("!I", 0x01020304)
    if flags & 0x0080:
        octets += struct.pack("!I", 0x05060708)
    return octets + payload


def test_with_everything() -> None:
    octets = packet()
    assert gre.decode(octets) == Packet(9, 0x01020304, 0x05060708, 16, 22)
    assert gre.frame(octets, gre.decode(octets)) == IP


def test_without_acknowledgment() -> None:
    assert gre.decode(packet(0x3001)) == Packet(9, 0x01020304, -1, 12, 18)


def test_an_acknowledgment_alone() -> None:
    octets = packet(0x2081, payload=b"")
    assert gre.decode(octets) == Packet(9, -1, 0x05060708, 12, 12)
    assert gre.frame(octets, gre.decode(octets)) == b""


def test_neither() -> None:
    assert gre.decode(packet(0x2001, payload=b"")) == Packet(9, -1, -1, 8, 8)


def test_a_payload_without_address_and_control() -> None:
    octets = packet(payload=b"\x21\x45")
    assert gre.frame(octets, gre.decode(octets)) == b"\x21\x45"


def test_what_follows_the_payload_is_none_of_it() -> None:
    octets = packet(length=6) + b"padding"
    assert gre.frame(octets, gre.decode(octets)) == IP


def test_every_other_flag_is_wrong() -> None:
    """C, R, s, Recur, Flags, Ver; and K must be there."""
    for flags in range(0x10000):
        octets = packet(flags)
        if flags & ~0x0080 == 0x3001:
            gre.decode(octets)
        else:
            with pytest.raises(Malformed):
                gre.decode(octets)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        packet(protocol=0x0800),
        packet(protocol=0x6558),
        packet(0x2081),
        packet(0x2001),
        packet(length=7),
        packet(length=0xFFFF),
        *(packet()[:size] for size in range(22)),
    ],
)
def test_malformed(octets: bytes) -> None:
    with pytest.raises(Malformed):
        gre.decode(octets)


def test_ours() -> None:
    assert gre.encode(9, 5, 0x10, IP).hex() == "3081880b" "00060009" "00000005" "00000010" "ff030021" "4500"
    assert gre.encode(9, 5, -1, IP).hex() == "3001880b" "00060009" "00000005" "ff030021" "4500"
    assert gre.acknowledgment(9, 0x10).hex() == "2081880b" "00000009" "00000010"


@given(st.integers(0, 0xFFFF), st.integers(0, TOP), st.integers(-1, TOP), st.binary(min_size=1, max_size=100))
def test_round_trip(call_id: int, sequence: int, acknowledgment: int, ppp: bytes) -> None:
    octets = gre.encode(call_id, sequence, acknowledgment, ppp)
    header = gre.decode(octets)
    assert header[:3] == (call_id, sequence, acknowledgment)
    assert gre.frame(octets, header) == ppp
    header = gre.decode(gre.acknowledgment(call_id, sequence))
    assert header[:3] == (call_id, -1, sequence)


@pytest.mark.parametrize(
    ("ppp", "data"),
    [
        (b"\x00\x21", True),
        (b"\x21\x45", True),
        (b"\x00\x57", True),
        (b"\x57\x60", True),
        (b"\x00\xfd", True),
        (b"\xfd\x90", True),
        (b"\x80\x21", False),
        (b"\x80\xfd", False),
        (b"\xc0\x21", False),
        (b"\xc2\x23", False),
    ],
)
def test_data_or_control(ppp: bytes, data: bool) -> None:
    assert gre.is_data(ppp) is data


# What comes.


def test_in_order() -> None:
    window = Window()
    assert [window.receive(number, IP) for number in range(3)] == [[IP]] * 3
    assert window.expected == 3
    assert window.receive(1000, LCP) == [LCP]
    assert window.expected == 1001


def test_numbers_come_round() -> None:
    window = Window()
    window.receive(TOP, IP)
    assert window.expected == 0
    assert window.receive(0, LCP) == [LCP]
    assert window.receive(TOP, LCP) is None
    assert window.receive(TOP, IP) == [IP]
    assert window.expected == 1


@pytest.mark.parametrize(("ppp", "passes"), [(IP, True), (b"\x21\x45", True), (b"\x00\xfd\x90", True), (LCP, False)])
def test_late(ppp: bytes, passes: bool) -> None:
    """RFC 2637 section 4.3; IP does not mind the order."""
    for behind in range(1, LATE + 1):
        window = Window()
        window.receive(1000, IP)
        assert window.receive(1001 - behind, ppp) == ([ppp] if passes else None)
        assert window.expected == 1001


def test_later_than_that_never_makes_deaf() -> None:
    window = Window()
    window.receive(1000, IP)
    assert window.receive(1000 - LATE, IP) is None
    assert window.receive(1001 - LATE, LCP) == [LCP]
    # A forged number, however far off, either.
    real = 1002 - LATE
    for forged in (0, 1 << 31, TOP, 12345, real - LATE - 1):
        window.receive(forged, IP)
        window.receive(real, IP)
        assert window.receive(real + 1, LCP) == [LCP]
        real += 2


def test_reordering() -> None:
    window = Window(reorder=3)
    assert window.receive(0, b"\xc0\x21a") == [b"\xc0\x21a"]
    assert window.receive(2, b"\xc0\x21c") == []
    assert window.receive(3, b"\xc0\x21d") == []
    assert window.receive(1, b"\xc0\x21b") == [b"\xc0\x21b", b"\xc0\x21c", b"\xc0\x21d"]
    assert window.expected == 4
    # One more than may be held: what is missing is given up.
    assert window.receive(6, b"\xc0\x21g") == []
    assert window.receive(7, b"\xc0\x21h") == []
    assert window.receive(9, b"\xc0\x21j") == []
    assert window.receive(10, b"\xc0\x21k") == [b"\xc0\x21g", b"\xc0\x21h"]
    assert window.reorder is not None
    assert window.reorder.release(window) == [b"\xc0\x21j", b"\xc0\x21k"]
    assert window.expected == 11


# Acknowledgments.


def test_acknowledgments_ride() -> None:
    window = Window()
    octets = window.wrap(9, IP, 10.0)
    assert octets is not None
    # Nothing has come that could be acknowledged.
    assert gre.decode(octets)[:3] == (9, 0, -1)
    assert not window.owes
    window.receive(0, IP)
    assert window.owes
    octets = window.wrap(9, IP, 10.0)
    assert octets is not None
    assert gre.decode(octets)[:3] == (9, 1, 0)
    assert not window.owes
    octets = window.wrap(9, IP, 10.0)
    assert octets is not None
    assert gre.decode(octets)[:3] == (9, 2, 0)


def test_acknowledgments_alone() -> None:
    window = Window()
    window.receive(0, IP)
    assert window.must_acknowledge(10.0)
    assert gre.decode(window.acknowledgment(9, 10.0))[:3] == (9, -1, 0)
    assert not window.must_acknowledge(99.0)
    for number in range(1, ACK_PACKETS):
        window.receive(number, IP)
        assert not window.must_acknowledge(10.0)
    assert window.must_acknowledge(10.0 + ACK_INTERVAL)
    window.receive(ACK_PACKETS, IP)
    assert window.must_acknowledge(10.0)


def test_the_peers_acknowledgments() -> None:
    window = Window()
    for _ in range(5):
        window.wrap(9, IP, 1.0)
    window.acknowledged(2, 1.0)
    assert window.peer_acked == 3
    # Old ones, and those of what was never sent.
    for number in (1, 2, 5, 1000, TOP):
        window.acknowledged(number, 1.0)
        assert window.peer_acked == 3
    window.acknowledged(4, 1.0)
    assert window.peer_acked == 5


# The peer's window.


def test_a_full_window() -> None:
    window = Window(limit=4)
    assert all(window.wrap(9, IP, 10.0) for _ in range(4))
    assert window.wrap(9, IP, 10.5) is None
    # Control protocols pass.
    assert window.wrap(9, LCP, 10.5)
    window.acknowledged(1, 10.6)
    assert window.out - window.peer_acked == 3
    assert window.wrap(9, IP, 10.6)
    assert window.wrap(9, IP, 10.6) is None


def test_what_is_lost_opens_it() -> None:
    window = Window(limit=2)
    # Idle time before does not count.
    assert all(window.wrap(9, IP, 100.0) for _ in range(2))
    assert window.wrap(9, IP, 100.0 + LOST - 0.1) is None
    assert window.wrap(9, IP, 100.0 + LOST)
    assert window.wrap(9, IP, 100.0 + LOST)
    assert window.wrap(9, IP, 100.0 + LOST) is None


def test_the_same_acknowledgment_again_shows_nothing() -> None:
    window = Window(limit=2)
    assert all(window.wrap(9, IP, 100.0) for _ in range(2))
    window.acknowledged(0, 100.5)
    window.acknowledged(0, 101.0)
    assert window.wrap(9, IP, 101.4)
    assert window.wrap(9, IP, 101.4) is None
    assert window.wrap(9, IP, 101.5)


def test_no_window() -> None:
    window = Window()
    assert all(window.wrap(9, IP, 1.0) for _ in range(1000))


def test_the_window_comes_round() -> None:
    window = Window(limit=4)
    window.out = window.peer_acked = TOP - 1
    assert all(window.wrap(9, IP, 10.0) for _ in range(4))
    assert window.wrap(9, IP, 10.0) is None
    assert window.out == 2
    window.acknowledged(1, 10.0)
    assert window.peer_acked == 2


def test_passwords_are_not_shown() -> None:
    pap = bytes.fromhex("c023") + b"\x01\x01\x00\x0d\x02me\x06secret"
    shown = gre.shown(gre.encode(9, 1, -1, pap))
    assert "30 01 88 0b" in shown
    assert b"secret".hex(" ") not in shown
    assert "**" in shown
    assert b"\x45\x00".hex(" ") in gre.shown(gre.encode(9, 1, -1, IP))
    assert "ff" not in gre.shown(b"\xff\xff")
