"""The subscriber's side of PPPoE discovery, packet by packet (RFC 2516, RFC 4638, TR-101)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.ppp.cause import Cause
from npppy.ppp.link import Call
from npppy.pppoe import codec
from npppy.pppoe.codec import BROADCAST, AccessLine, Code, Discovery, Tag, decode_discovery
from npppy.sim.pppoe import PADI_TRIES, PADR_TRIES, Host, Segment, Wishes
from npppy.wheel import Wheel

from .pppoe_fake import FakeUpper
from .sim_world import tunnel

AC = bytes.fromhex("02ac00000001")
OTHER_AC = bytes.fromhex("02ac00000002")
HOST = bytes.fromhex("024e50000001")
UNIQ = b"uniq"


class Owner:
    def __init__(self) -> None:
        self.upper: FakeUpper | None = None
        self.reasons: list[str] = []

    def connected(self, call: Call, now: float) -> FakeUpper:
        assert self.upper is None
        call.send(b"\xc0\x21first")
        self.upper = FakeUpper(call)
        return self.upper

    def failed(self, reason: str, now: float) -> None:
        self.reasons.append(reason)


class Bench:
    """A segment with one host that has begun to dial."""

    def __init__(self, *, uniq: bytes | None = UNIQ, line: AccessLine = AccessLine(), **wishes: Any) -> None:  # noqa: B008
        self.now = 100.0
        self.wheel = Wheel(self.now)
        self.wire: list[bytes] = []
        self.segment = Segment(Wishes(tunnel=tunnel(), **wishes), self.wire.append, self.wheel)
        self.owner = Owner()
        self.host: Host = self.segment.host(HOST, uniq, line, self.owner)
        self.host.dial(self.now)

    def sent(self) -> list[Discovery]:
        frames, self.wire[:] = self.wire[:], []
        return [decode_discovery(frame) for frame in frames]

    def one(self, code: Code) -> Discovery:
        (packet,) = self.sent()
        assert packet.code == code
        return packet

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.wheel.next()) is not None and due <= end:
            self.now = due
            self.wheel.advance(due)
        self.now = end

    def tell(
        self, code: Code, *tags: tuple[int, bytes], session: int = 0, source: bytes = AC, to: bytes = HOST
    ) -> None:
        self.segment.receive(Discovery(to, source, code, session, tags).encode(), self.now)

    def pado(self, *tags: tuple[int, bytes], source: bytes = AC, name: bytes = b"") -> None:
        named = ((Tag.SERVICE_NAME, name), (Tag.AC_NAME, b"bng"), (Tag.HOST_UNIQ, UNIQ))
        self.tell(Code.PADO, *named, *tags, source=source)

    def pads(self, *tags: tuple[int, bytes], session: int = 7, source: bytes = AC) -> None:
        self.tell(Code.PADS, (Tag.SERVICE_NAME, b""), (Tag.HOST_UNIQ, UNIQ), *tags, session=session, source=source)

    def connect(self) -> FakeUpper:
        self.pado()
        self.pads()
        assert self.owner.upper is not None
        self.wire.clear()
        return self.owner.upper

    def session(self, ppp: bytes, *, session: int = 7, source: bytes = AC, to: bytes = HOST) -> None:
        self.segment.receive(codec.session_frame(to, source, session, ppp), self.now)


def test_padi() -> None:
    packet = Bench(service_name="gold").one(Code.PADI)
    assert (packet.destination, packet.source, packet.session_id) == (BROADCAST, HOST, 0)
    assert packet.tags == ((Tag.SERVICE_NAME, b"gold"), (Tag.HOST_UNIQ, UNIQ))


def test_padr_repeats_what_must_be_repeated() -> None:
    bench = Bench(service_name="gold")
    bench.sent()
    told = ((Tag.AC_COOKIE, b"crumbs"), (Tag.RELAY_SESSION_ID, b"relay"), (Tag.VENDOR_SPECIFIC, b"\0\0\0\1x"))
    bench.pado(*told, name=b"gold")
    packet = bench.one(Code.PADR)
    assert packet.destination == AC
    assert packet.tags == (
        (Tag.SERVICE_NAME, b"gold"),
        (Tag.HOST_UNIQ, UNIQ),
        (Tag.AC_COOKIE, b"crumbs"),
        (Tag.RELAY_SESSION_ID, b"relay"),
    )


def test_the_access_line_is_in_both_requests() -> None:
    line = AccessLine(b"eth 0/1", b"customer")
    bench = Bench(line=line)
    padi = bench.one(Code.PADI)
    bench.pado()
    padr = bench.one(Code.PADR)
    for packet in (padi, padr):
        assert codec.access_line(packet.all(Tag.VENDOR_SPECIFIC)) == line


def test_a_session_begins_with_the_pads() -> None:
    bench = Bench()
    bench.pado()
    bench.wire.clear()
    bench.pads()
    upper = bench.owner.upper
    assert upper is not None
    assert bench.wire == [codec.session_frame(AC, HOST, 7, b"\xc0\x21first")]
    assert upper.call.link.max_mru == 1492
    assert bench.host.session_id == 7
    assert len(bench.wheel) == 0
    bench.session(b"\xc0\x21hello")
    # Padding to the minimum of Ethernet is no part of the frame.
    bench.segment.receive(codec.session_frame(HOST, AC, 7, b"\xc0\x21short") + bytes(30), bench.now)
    assert upper.frames == [b"\xc0\x21hello", b"\xc0\x21short"]


@pytest.mark.parametrize(
    ("asked", "granted", "mru"),
    [(1500, 1500, 1500), (1500, None, 1492), (1500, 1498, 1498), (1500, 9000, 1500), (0, 1500, 1492), (1500, 40, 1492)],
)
def test_max_payload(asked: int, granted: int | None, mru: int) -> None:
    bench = Bench(max_payload=asked)
    padi = bench.one(Code.PADI)
    assert codec.max_payload(padi.first(Tag.PPP_MAX_PAYLOAD)) == asked
    bench.pado()
    bench.pads(*([(Tag.PPP_MAX_PAYLOAD, granted.to_bytes(2, "big"))] if granted is not None else []))
    assert bench.owner.upper is not None
    assert bench.owner.upper.call.link.max_mru == mru


# Time.


def test_padi_is_repeated_with_doubled_waits_and_given_up() -> None:
    bench = Bench()
    times = []
    while not bench.owner.reasons:
        if bench.sent():
            times.append(bench.now)
        bench.wait(0.125)
    assert len(times) == PADI_TRIES
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(1.8 < later / earlier < 2.2 for earlier, later in itertools.pairwise(waits))
    assert bench.owner.reasons == ["no PADO"]
    assert not bench.segment.hosts
    assert len(bench.wheel) == 0


def test_padr_is_repeated_and_then_it_begins_anew() -> None:
    bench = Bench()
    bench.sent()
    bench.pado()
    bench.wait(8)
    codes = [packet.code for packet in bench.sent()]
    assert codes == [Code.PADR] * PADR_TRIES + [Code.PADI]
    # Another concentrator may serve it now, and the one from before has nothing more to say.
    bench.pado(source=OTHER_AC)
    assert bench.one(Code.PADR).destination == OTHER_AC
    bench.pads(source=AC)
    assert bench.owner.upper is None
    bench.pads(source=OTHER_AC)
    assert bench.owner.upper is not None


def test_a_concentrator_that_never_confirms_is_given_up() -> None:
    bench = Bench()
    for _ in range(1000):
        if any(packet.code == Code.PADI for packet in bench.sent()):
            bench.pado()
        bench.wait(0.5)
    assert bench.owner.reasons == ["no PADS"]
    assert len(bench.wheel) == 0


# Choice and errors.


def test_the_first_offer_is_taken_and_later_ones_are_not() -> None:
    bench = Bench()
    bench.sent()
    bench.pado()
    bench.pado(source=OTHER_AC)
    assert bench.one(Code.PADR).destination == AC


def test_only_the_concentrator_asked_for() -> None:
    bench = Bench(ac_name="bng2")
    bench.sent()
    bench.pado()
    assert not bench.sent()
    bench.tell(Code.PADO, (Tag.SERVICE_NAME, b""), (Tag.AC_NAME, b"bng2"), (Tag.HOST_UNIQ, UNIQ), source=OTHER_AC)
    assert bench.one(Code.PADR).destination == OTHER_AC


def test_only_the_service_asked_for() -> None:
    bench = Bench(service_name="gold")
    bench.sent()
    bench.pado(name=b"silver")
    assert not bench.sent()
    bench.pado((Tag.SERVICE_NAME, b"gold"), name=b"silver")
    bench.one(Code.PADR)


@pytest.mark.parametrize("tag", [Tag.SERVICE_NAME_ERROR, Tag.AC_SYSTEM_ERROR, Tag.GENERIC_ERROR])
def test_errors_in_the_pads_end_it(tag: Tag) -> None:
    bench = Bench()
    bench.pado()
    bench.pads((tag, b"go\naway"), session=0)
    (reason,) = bench.owner.reasons
    assert "Error: go\\x0aaway" in reason
    assert len(bench.wheel) == 0
    assert not bench.segment.hosts


def test_an_error_in_a_pado_leaves_room_for_another() -> None:
    bench = Bench()
    bench.sent()
    bench.pado((Tag.AC_SYSTEM_ERROR, b"full"))
    assert not bench.sent()
    bench.pado(source=OTHER_AC)
    bench.one(Code.PADR)


def test_an_error_in_the_pado_is_the_reason_in_the_end() -> None:
    bench = Bench()
    bench.pado((Tag.SERVICE_NAME_ERROR, b""))
    bench.wait(100)
    assert bench.owner.reasons == ["Service-Name-Error: "]


def test_a_pads_without_a_session_is_none() -> None:
    bench = Bench()
    bench.pado()
    bench.pads(session=0)
    assert bench.owner.reasons == ["PADS without a session"]


# What is for somebody else.


def test_answers_for_others_are_dropped() -> None:
    bench = Bench()
    bench.sent()
    bench.tell(Code.PADO, (Tag.SERVICE_NAME, b""), (Tag.HOST_UNIQ, b"other"))
    bench.tell(Code.PADO, (Tag.SERVICE_NAME, b""))
    bench.tell(Code.PADO, (Tag.SERVICE_NAME, b""), (Tag.HOST_UNIQ, UNIQ), to=OTHER_AC)
    bench.tell(Code.PADI, (Tag.SERVICE_NAME, b""), to=BROADCAST)
    assert not bench.sent()
    assert bench.segment.drops == {"discovery": 4}


def test_without_host_uniq_the_address_alone_tells() -> None:
    bench = Bench(uniq=None)
    assert bench.one(Code.PADI).first(Tag.HOST_UNIQ) is None
    bench.tell(Code.PADO, (Tag.SERVICE_NAME, b""))
    bench.one(Code.PADR)


def test_frames_of_other_sessions_are_dropped() -> None:
    bench = Bench()
    upper = bench.connect()
    bench.session(b"x", session=8)
    bench.session(b"x", source=OTHER_AC)
    bench.session(b"x", to=OTHER_AC)
    assert upper.frames == []
    assert bench.segment.drops == {"session": 3}


def test_offers_and_confirmations_that_come_again_change_nothing() -> None:
    bench = Bench()
    upper = bench.connect()
    bench.pado(source=OTHER_AC)
    bench.pads()
    bench.pads(session=9)
    assert not bench.wire
    bench.session(b"x")
    assert upper.frames == [b"x"]


# The end.


def test_close_sends_a_padt() -> None:
    bench = Bench()
    upper = bench.connect()
    upper.call.close(Cause.USER_REQUEST)
    packet = bench.one(Code.PADT)
    assert (packet.destination, packet.source, packet.session_id) == (AC, HOST, 7)
    assert not bench.segment.hosts
    assert not bench.segment.sessions
    bench.session(b"x")
    assert upper.frames == []
    assert upper.ended == []


def test_a_padt_ends_it() -> None:
    bench = Bench()
    upper = bench.connect()
    bench.tell(Code.PADT, session=8)
    bench.tell(Code.PADT, session=7, source=OTHER_AC)
    assert upper.ended == []
    bench.tell(Code.PADT, session=7)
    assert upper.ended == [(Cause.LOST_CARRIER, "PADT received")]
    assert not bench.segment.sessions
    bench.tell(Code.PADT, session=7)
    assert len(upper.ended) == 1


@pytest.mark.parametrize("stage", ["padi", "padr", "session"])
def test_forget_says_nothing_and_leaves_nothing(stage: str) -> None:
    bench = Bench()
    if stage == "padr":
        bench.pado()
    elif stage == "session":
        bench.connect()
    bench.wire.clear()
    bench.host.forget()
    bench.wait(100)
    assert not bench.wire
    assert not bench.segment.hosts
    assert not bench.segment.sessions
    assert len(bench.wheel) == 0


# Whatever comes.


@given(st.binary(max_size=80), st.sampled_from([codec.DISCOVERY, codec.SESSION]), st.booleans())
def test_any_frame_is_survived(rest: bytes, ethertype: int, connected: bool) -> None:
    bench = Bench()
    if connected:
        bench.connect()
    bench.segment.receive(HOST + AC + ethertype.to_bytes(2, "big") + rest, bench.now)
    bench.segment.receive(rest, bench.now)


def test_damaged_packets_are_survived() -> None:
    """Valid packets with octets changed, cut and added: nothing raises, and the host still gets its session."""
    chance = random.Random(2516)
    named = ((Tag.SERVICE_NAME, b""), (Tag.AC_NAME, b"bng"), (Tag.HOST_UNIQ, UNIQ), (Tag.AC_COOKIE, b"c" * 16))
    for _ in range(3000):
        bench = Bench()
        for code, session in ((Code.PADO, 0), (Code.PADS, 7), (Code.PADT, 7)):
            frame = bytearray(Discovery(HOST, AC, code, session, named).encode())
            # The source stays: a session with another concentrator would be a good one, too.
            frame[chance.randrange(14, len(frame))] = chance.randrange(256)
            del frame[chance.randrange(14, len(frame) + 30) :]
            bench.segment.receive(bytes(frame), bench.now)
        if bench.owner.upper is None and not bench.owner.reasons:
            bench.pado()
            bench.pads()
            assert bench.owner.upper is not None
