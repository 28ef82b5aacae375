"""CCP and MPPE on a live session: nothing raises, nothing clear passes, and the peer's own packets still do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.ppp import options, proto
from npppy.ppp.mppe import STRENGTHS, Keys, Mode, Mppe, Place, Receiver
from npppy.ppp.station import Phase
from tests.effort import some
from tests.unit.mppe_rig import BEST, MPPE, STATEFUL, Hand
from tests.unit.test_ppp_mppe import packet

MASTER = bytes(range(16))


def place(receiver: Receiver) -> tuple[Place, int, bytes, int]:
    """Where it is, in whichever mode."""
    stream = receiver._stream
    return receiver.place, receiver.count, stream.key if stream else b"", stream.used if stream else 0


@given(st.binary(max_size=80), st.sampled_from((40, 56, 128)), st.booleans())
def test_no_packet_moves_a_receiver(data: bytes, bits: int, stateful: bool) -> None:
    receiver = Receiver(STRENGTHS[bits], MASTER, stateful=stateful)
    before = place(receiver)
    assert receiver.decrypt(data) is None
    assert place(receiver) == before


@given(st.integers(0, 0xFFFF), st.binary(max_size=80))
def test_no_packet_with_a_sound_header_moves_one(head: int, data: bytes) -> None:
    for stateful in (False, True):
        receiver = Receiver(STRENGTHS[128], MASTER, stateful=stateful)
        mppe = Mppe.begin(Keys(MASTER, MASTER), Mode(128, stateful), Mode(128, stateful))
        for number in range(3):
            assert receiver.decrypt(mppe.send.encrypt(packet(number))[2:]) is not None
        before = place(receiver)
        receiver.decrypt(head.to_bytes(2, "big") + data)
        assert place(receiver) == before


def noise(dice: random.Random, genuine: bytes) -> bytes:
    """What may look like a packet of MPPE: random, or one of the peer's, changed."""
    what = dice.random()
    if what < 0.3:
        return dice.randbytes(dice.choice((0, 1, 2, 3, 4, 20, 60, 1400)))
    if what < 0.6:
        return (0x9000 | dice.randrange(4096)).to_bytes(2, "big") + dice.randbytes(dice.randrange(100))
    changed = bytearray(genuine)
    # What can be checked: not all of the flags, and not what is behind the header.
    changed[dice.randrange(2, 24)] ^= 1 << dice.randrange(8)
    return bytes(changed[: dice.choice((len(changed), dice.randrange(24)))])


@pytest.mark.parametrize("seed", range(some(20, 2)))
def test_noise_of_mppe(seed: int) -> None:
    dice = random.Random(seed)
    hand = Hand().up(STATEFUL if seed % 4 == 3 else BEST)
    session, mppe = hand.session, hand.session.mppe
    assert mppe is not None
    assert hand.mppe is not None
    for number in range(40):
        genuine = hand.mppe.send.encrypt(packet(number))
        before, count = place(mppe.receive), len(hand.recorder.packets)
        for _ in range(dice.randrange(4)):
            hand.line.give_raw(b"\x00\xfd" + noise(dice, genuine[2:]))
        assert place(mppe.receive) == before
        assert len(hand.recorder.packets) == count
        assert session.phase is Phase.UP
        if mppe.receive.wants_reset:
            # One that seems to come after a loss makes a stateful receiver wait.
            hand.mppe.send.reset()
            hand.rig.wait(0.5)
            continue
        hand.line.give_raw(genuine)
        assert hand.recorder.packets[count:] == [packet(number)[2:]]


WISHES = (
    options.encode([]),
    MPPE,
    b"\x12\x06\0\0\0\x40",
    b"\x12\x06\1\0\0\xe1",
    b"\x12\x06\xff\xff\xff\xff",
    b"\x12\x06\0\0\0\0",
    b"\x12\x02",
    b"\x12\x07\1\0\0\x40\0",
    b"\x1a\x04\x78\0",
    b"\x15\x03\x2f",
    b"\x1a\x04\x78\0" + MPPE,
    MPPE + MPPE,
    MPPE + b"\x12\x06\1\0\0\x20",
    b"\x12\0",
    b"\x12\x06\1\0",
    b"\xff",
)


def packet_of_ccp(dice: random.Random, hand: Hand) -> bytes:
    ccp = hand.session.privacy.ccp if hand.session.privacy is not None else None
    identifier = dice.choice((dice.randrange(256), ccp.identifier if ccp is not None else 0))
    data = dice.choice((*WISHES, ccp.request if ccp is not None else b"", dice.randbytes(dice.randrange(12))))
    length = len(data) + 4 if dice.random() < 0.9 else dice.randrange(65536)
    code = dice.choice((*range(1, 8), 14, 15, 1, 2, 3, 4, dice.randrange(256)))
    packet = bytes((code, identifier)) + length.to_bytes(2, "big") + data
    return packet if dice.random() < 0.95 else dice.randbytes(dice.randrange(8))


@pytest.mark.parametrize("block", range(some(10, 5)))
def test_noise_of_ccp(block: int) -> None:
    alive = 0
    for seed in range(block * 20, block * 20 + 20):
        dice = random.Random(seed)
        hand = Hand()
        if seed % 3:
            hand.up()
        else:
            # From the beginning, where nothing is agreed yet.
            hand.log_in()
            hand.line.open_ipcp()
        session = hand.session
        sworn = session.mppe is not None
        for _ in range(dice.choice((5, 60))):
            hand.line.give_raw(b"\x80\xfd" + packet_of_ccp(dice, hand))
            sworn |= session.mppe is not None
            if session.phase >= Phase.TERMINATE:
                break
            assert (session.flow is not None) is (session.phase is Phase.UP)
            assert session.flow is None or session.mppe is not None or not sworn
            if sworn:
                hand.nothing_clear()
            if dice.random() < 0.1:
                hand.rig.wait(dice.choice((1, 4)))
        if session.phase < Phase.TERMINATE and session.privacy is not None:
            # The peer's own negotiation comes through all the same.
            for identifier in range(10):
                hand.line.give(proto.CCP, 1, identifier, MPPE)
                for packet in hand.line.take(proto.CCP):
                    if packet[0] == proto.CONFIGURE_REQUEST:
                        hand.line.give(proto.CCP, 2 if packet[4:] == MPPE else 3, packet[1], MPPE)
                        for following in hand.line.take(proto.CCP):
                            if following[0] == proto.CONFIGURE_REQUEST:
                                hand.line.give(proto.CCP, 2, following[1], following[4:])
                if session.mppe is not None:
                    break
            alive += session.mppe is not None
        hand.rig.wait(60)
        assert session.phase >= Phase.UP
        assert not sworn or session.mppe is not None or session.phase is not Phase.UP
    assert alive > 3
