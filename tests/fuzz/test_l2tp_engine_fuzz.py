"""Whatever comes to an LNS, it survives, counts it, and nothing of it stays."""

from __future__ import annotations

import random

import pytest

from npppy.l2tp import codec
from npppy.l2tp.codec import RULES, Attr, Type, u16, u32
from npppy.l2tp.engine import Engine
from npppy.l2tp.service import Endpoint
from npppy.l2tp.tunnel import CYCLE, State, Tunnel
from tests.effort import some
from tests.unit.l2tp_net import LAC, LNS, LacCall, Net, PlainLac
from tests.unit.pppoe_fake import FakePpp

#: What each message needs to be taken for a sound one.
SOUND: dict[Type, list[tuple[Attr, bytes]]] = {
    Type.SCCRQ: [(Attr.HOST_NAME, b"h"), (Attr.ASSIGNED_TUNNEL_ID, u16(9))],
    Type.SCCRP: [(Attr.HOST_NAME, b"h"), (Attr.ASSIGNED_TUNNEL_ID, u16(9))],
    Type.SCCCN: [],
    Type.STOP_CCN: [(Attr.ASSIGNED_TUNNEL_ID, u16(9)), (Attr.RESULT_CODE, u16(1))],
    Type.HELLO: [],
    Type.OCRQ: [(Attr.ASSIGNED_SESSION_ID, u16(8)), (Attr.CALL_SERIAL_NUMBER, u32(1)), (Attr.CALLED_NUMBER, b"1")],
    Type.OCRP: [(Attr.ASSIGNED_SESSION_ID, u16(8))],
    Type.OCCN: [(Attr.TX_CONNECT_SPEED, u32(1)), (Attr.FRAMING_TYPE, u32(1))],
    Type.ICRQ: [(Attr.ASSIGNED_SESSION_ID, u16(8)), (Attr.CALL_SERIAL_NUMBER, u32(1))],
    Type.ICRP: [(Attr.ASSIGNED_SESSION_ID, u16(8))],
    Type.ICCN: [(Attr.TX_CONNECT_SPEED, u32(1)), (Attr.FRAMING_TYPE, u32(1))],
    Type.CDN: [(Attr.ASSIGNED_SESSION_ID, u16(8)), (Attr.RESULT_CODE, u16(1))],
    Type.WEN: [(Attr.CALL_ERRORS, bytes(26))],
    Type.SLI: [(Attr.ACCM, bytes(10))],
}


class Target:
    """An LNS with an established tunnel and a call in it, and what is sent there."""

    def __init__(self, seed: int = 1) -> None:
        self.net = Net(seed)
        self.ppp = FakePpp()
        self.lns: Engine = self.net.lns(self.ppp, accept_dialin=True)
        self.lac: PlainLac = self.net.lac()
        self.tunnel: Tunnel = self.lac.ask()
        self.net.run(1)
        self.call: LacCall = self.lac.call(self.tunnel)
        self.net.run(1)
        assert self.call.connected

    def hit(self, datagram: bytes, port: int = 1701) -> None:
        service = self.lns.services["L2TP"]
        endpoint = Endpoint(LNS, 1701, LAC, port)
        self.lns.receive(service, endpoint, datagram, self.net.transmit, self.net.now)
        self.lns.flush(self.net.now)

    def tell(self, body: bytes, session_id: int) -> None:
        """As the LAC's next message of the tunnel."""
        channel = self.tunnel.channel
        self.hit(codec.control(self.tunnel.peer_id, session_id, channel.next_ns, channel.next_nr, body))

    def ends(self) -> None:
        """All goes, and leaves nothing."""
        self.net.nodes.clear()
        self.lns.shut(self.net.now)
        self.net.run(3 * CYCLE)
        assert not self.lns.tunnels
        assert not self.lns._half_open
        assert not self.lns._established
        service = self.lns.services["L2TP"]
        assert (service.half_open, service.sessions, service.tunnels) == (0, 0, 0)
        assert not service.pending
        for session in self.ppp.sessions:
            assert len(session.ended) <= 1


def avp(attribute: int, value: bytes, flags: int) -> bytes:
    return u16(flags | 6 + len(value)) + u16(0) + u16(attribute) + value


def wrong_lengths(attribute: int) -> list[int]:
    rule = RULES[attribute]
    lengths = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 16, 17, 25, 26, 27, 33, 64, 65, 255, 256, 1000, 1017}
    return sorted(length for length in lengths if not rule.least <= length <= rule.most)


@pytest.mark.parametrize("mandatory", [0x8000, 0])
@pytest.mark.parametrize("kind", list(Type))
def test_every_avp_with_every_wrong_length(kind: Type, mandatory: int) -> None:
    """A call that names it with the M bit ends, or its tunnel does; without, it is as if it were not there."""
    for attribute in RULES:
        if attribute == Attr.MESSAGE_TYPE:
            continue
        for length in wrong_lengths(attribute):
            target = Target()
            drops = target.lns.services["L2TP"].drops
            rest = [(known, value) for known, value in SOUND[kind] if known != attribute]
            body = codec.encode_message(kind, rest) + avp(attribute, bytes(length), mandatory)
            if kind is Type.SCCRQ:
                target.hit(codec.control(0, 0, 0, 0, body), port=4711)
            else:
                target.tell(body, target.call.peer_id)
            if mandatory and kind not in (Type.STOP_CCN, Type.CDN):
                # A message that is out of place is so, whatever it holds.
                assert drops.total() == 1, (attribute, length)
            target.net.run(1)
            if not mandatory and kind in (Type.HELLO, Type.WEN, Type.SLI):
                assert target.tunnel.state is State.ESTABLISHED
                assert target.call.why is None
            assert target.lns.services["L2TP"].half_open <= 1


@pytest.mark.parametrize("seed", range(some(60, 5)))
def test_datagrams_by_dice(seed: int) -> None:
    """Sound messages of which some octets are others, that are cut, or that are in any order."""
    target = Target(seed)
    dice = target.net.dice
    for _ in range(150):
        kind = dice.choice(list(Type))
        avps = list(SOUND[kind])
        avps += [(attr, dice.randbytes(dice.randrange(40))) for attr in dice.sample(list(RULES), dice.randrange(4))]  # type: ignore[misc]
        body = codec.encode_message(kind, [(Attr(attr), value) for attr, value in avps if attr != Attr.RANDOM_VECTOR])
        tunnels = [0, dice.randrange(65536), *target.lns.tunnels]
        calls = [call for tunnel in target.lns.tunnels.values() for call in tunnel.calls]
        datagram = codec.control(
            dice.choice(tunnels),
            dice.choice([0, dice.randrange(65536), *calls]),
            dice.choice([0, 1, 2, 3, 4, target.tunnel.channel.next_ns, dice.randrange(65536)]),
            dice.choice([0, 1, 2, target.tunnel.channel.next_nr, dice.randrange(65536)]),
            body,
        )
        if dice.random() < 0.2:
            datagram = codec.data_header(dice.choice(tunnels), dice.choice([0, *calls]), True) + dice.randbytes(20)
        mutable = bytearray(datagram)
        for _ in range(dice.choice([0, 0, 1, 3])):
            mutable[dice.randrange(len(mutable))] = dice.randrange(256)
        datagram = bytes(mutable[: dice.choice([len(mutable), dice.randrange(len(mutable) + 1)])])
        target.hit(datagram, dice.choice([1701, 1701, 1702]))
        target.net.run(dice.choice([0.0, 0.1, 2.0]))
    target.ends()


@pytest.mark.parametrize("seed", range(some(20, 5)))
def test_noise(seed: int) -> None:
    target = Target(seed)
    dice = random.Random(seed)
    for _ in range(500):
        datagram = dice.randbytes(dice.randrange(64))
        if datagram and dice.random() < 0.7:
            datagram = bytes((dice.choice((0xC8, 0x40, 0x02, 0x48)), 0x02)) + datagram
        target.hit(datagram)
    assert target.lns.services["L2TP"].drops.total() >= 400
    assert target.call.why is None
    target.ends()
