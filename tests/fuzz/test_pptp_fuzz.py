"""Whatever comes to a PAC, by its streams or by GRE, it survives, counts it, and nothing of it stays."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npppy.cursor import Malformed
from npppy.pptp import codec, gre
from npppy.pptp.codec import LENGTHS, MAGIC, Type
from npppy.pptp.connection import SETUP, State
from npppy.pptp.engine import Engine
from tests.unit.pppoe_fake import IP_PACKET, LCP_REQUEST, FakePpp
from tests.unit.pptp_net import PAC, PNS, Net, Raw
from tests.unit.test_pptp_connection import is_clean


@given(st.binary(max_size=400))
@settings(max_examples=500)
def test_any_octets(octets: bytes) -> None:
    with contextlib.suppress(Malformed):
        end = codec.split(octets, 0)
        assert end == 0 or 8 <= end <= len(octets)
        if end:
            codec.decode(octets[:end])
    with contextlib.suppress(Malformed):
        header = gre.decode(octets)
        assert 8 <= header.start <= header.end <= len(octets)
        gre.frame(octets, header)
    gre.shown(octets)


@given(st.sampled_from(list(Type)), st.binary(max_size=300))
def test_any_body(kind: Type, body: bytes) -> None:
    """A body of the right length is read, and one of another is not."""
    octets = struct.pack("!HHIHH", 12 + len(body), 1, MAGIC, kind, 0) + body
    try:
        assert codec.split(octets, 0) == len(octets)
    except Malformed:
        assert len(octets) != LENGTHS[kind]
    else:
        assert len(octets) == LENGTHS[kind]
        message = codec.decode(octets)
        assert message is not None
        assert message.type is kind


@given(st.integers(0, 0xFFFF), st.binary(max_size=64))
def test_any_packet(flags: int, rest: bytes) -> None:
    octets = struct.pack("!HH", flags, gre.PROTOCOL) + rest
    with contextlib.suppress(Malformed):
        header = gre.decode(octets)
        assert header.end <= len(octets)
        assert header.sequence >= 0 or header.start == header.end


class Target:
    """A PAC with one connection that has a call, and what is sent there."""

    def __init__(self, seed: int, **options: object) -> None:
        self.net = Net(seed)
        self.ppp = FakePpp()
        self.pac: Engine = self.net.pac(self.ppp, **options)
        self.raw, self.connection, self.call = self.net.called(self.pac)

    def ends(self) -> None:
        """All goes, and leaves nothing."""
        self.pac.shut(self.net.now)
        self.net.run(2 * SETUP)
        assert is_clean(self.pac)
        assert all(len(session.ended) <= 1 for session in self.ppp.sessions)
        assert not self.pac._sweeper._owing
        assert len(self.net.wheel) == 0


@pytest.mark.parametrize("kind", list(Type))
@pytest.mark.parametrize("started", [True, False])
def test_every_message_with_every_wrong_length(kind: Type, started: bool) -> None:
    """The connection ends, at once, whatever comes behind it."""
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    wrong = [length for length in range(260) if length != LENGTHS[kind]]
    for length in [*wrong, 0x3FF, 0x400, 0x401, 0xFFFF]:
        if started:
            raw, connection, _ = net.called(pac)
        else:
            raw, found = net.raw(pac)
            assert found is not None
            connection = found
        raw.send(struct.pack("!HHIHH", length, 1, MAGIC, kind, 0) + bytes(300) + codec.encode(Type.ECHO_REQUEST))
        net.run(0.1)
        assert connection.state is State.GONE
        assert raw.ended
        assert not raw.heard
        assert is_clean(pac)
    assert all(len(session.ended) == 1 for session in ppp.sessions)


def message(dice: random.Random, target: Target) -> bytes:
    """A sound message about something that there is, or was, or never was."""
    kind = dice.choice(list(Type))
    ids = [7, 0, 8, dice.randrange(65536), target.call.id, *target.pac.calls]
    values: dict[str, int | bytes] = {}
    for name, size in codec.LAYOUTS[kind]:
        if name in ("call_id", "peer_call_id"):
            values[name] = dice.choice(ids)
        elif name == "version":
            values[name] = dice.choice([0x0100, 0x0100, 0x0100, 0, 0xFFFF])
        elif name and dice.random() < 0.5:
            values[name] = dice.randbytes(size - 1) if size > 4 else dice.choice([0, 1, 2, (1 << 8 * size) - 1])
    return codec.encode(kind, **values)


def damaged(dice: random.Random, octets: bytes) -> bytes:
    mutable = bytearray(octets)
    for _ in range(dice.choice([1, 1, 3])):
        mutable[dice.randrange(len(mutable))] = dice.randrange(256)
    return bytes(mutable[: dice.choice([len(mutable), dice.randrange(len(mutable) + 1)])])


def packet(dice: random.Random, target: Target) -> bytes:
    call_id = dice.choice([target.call.id, *target.pac.calls, dice.randrange(65536)])
    number = dice.choice([0, 1, 2, 5, 1 << 31, 0xFFFFFFFF, dice.randrange(1 << 32)])
    ppp = dice.choice([LCP_REQUEST, IP_PACKET, b"\x21", b"\xff", b"\xff\x03\xff\x03\x21", dice.randbytes(9)])
    octets = gre.encode(call_id, number, dice.choice([-1, 0, number]), ppp)
    if dice.random() < 0.2:
        octets = gre.acknowledgment(call_id, number)
    return damaged(dice, octets) if dice.random() < 0.3 else octets


@pytest.mark.parametrize("seed", range(60))
def test_by_dice(seed: int) -> None:
    """Messages in any order and state, some of them damaged, in pieces of any size, from several peers; and data."""
    options: dict[str, object] = {"data_reorder": 4, "send_window": True} if seed % 2 else {}
    target = Target(seed, session_limit=seed % 4, half_open_limit=5, echo_interval=seed % 3 * 7, **options)
    net = target.net
    dice = net.dice
    net.chop = True
    raws: list[Raw] = [target.raw]
    for _ in range(150):
        if dice.random() < 0.1 or not raws:
            raw, connection = net.raw(target.pac, port=dice.randrange(1024, 65536))
            if connection is not None:
                raws.append(raw)
                if dice.random() < 0.8:
                    raw.send(codec.encode(Type.START_REQUEST, version=0x0100))
        raw = dice.choice(raws)
        octets = message(dice, target)
        if dice.random() < 0.05:
            octets = damaged(dice, octets)
        raw.send(octets)
        for _ in range(dice.randrange(4)):
            net.deliver(dice.choice([PNS, PNS, PAC]), PAC, packet(dice, target))
        for call in list(target.pac.calls.values()):
            if dice.random() < 0.2:
                call.transmit(dice.choice([LCP_REQUEST, IP_PACKET]), net.now)
        if dice.random() < 0.05:
            raw.close()
        raws = [raw for raw in raws if not raw.closed and not raw.ended]
        net.run(dice.choice([0.0, 0.005, 0.1, 2.0]))
    target.ends()


@pytest.mark.parametrize("seed", range(20))
def test_noise(seed: int) -> None:
    target = Target(seed)
    dice = random.Random(seed)
    for _ in range(500):
        octets = dice.randbytes(dice.randrange(64))
        if octets and dice.random() < 0.7:
            octets = bytes((dice.choice((0x30, 0x20)), dice.choice((0x01, 0x81)), 0x88, 0x0B)) + octets
        net = target.net
        net.deliver(PNS, PAC, octets)
        _, connection = net.raw(target.pac, port=dice.randrange(1024, 65536))
        assert connection is not None
        connection.receive(dice.randbytes(dice.randrange(2, 64)), net.now)
    assert target.connection.state is State.ESTABLISHED
    assert target.pac.services["PPTP"].drops["malformed"] >= 400
    target.ends()
