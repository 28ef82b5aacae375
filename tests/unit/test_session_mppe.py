"""Sessions whose data is encrypted: who gets one, what ends it, and that nothing of it ever goes in the clear."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from npppy.aaa.base import Accept, Answer, Request
from npppy.config.model import AuthMethod
from npppy.config.model import Mppe as Choice
from npppy.ppp import options, privacy, proto
from npppy.ppp.carriage import why_python
from npppy.ppp.cause import Cause
from npppy.ppp.fsm import State
from npppy.ppp.mppe import Mode, Mppe
from npppy.ppp.station import Phase

from .mppe_rig import BEST, CHAP, MPPE, MSCHAPV2, NO, PAP, REQUIRED, STATEFUL, YES, Duo, Hand
from .ppp_pair import Quality
from .test_ppp_mppe import packet, packet6


def ccp(frame: bytes) -> bool:
    return frame[:2] == b"\x80\xfd"


# Who gets one.


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        (NO, NO, "clear"),
        (NO, YES, "clear"),
        (NO, REQUIRED, "ended"),
        (YES, NO, "clear"),
        (YES, YES, "encrypted"),
        (YES, REQUIRED, "encrypted"),
        (REQUIRED, NO, "ended"),
        (REQUIRED, YES, "encrypted"),
        (REQUIRED, REQUIRED, "encrypted"),
    ],
)
def test_who_wants_what(ours: Choice, theirs: Choice, outcome: str) -> None:
    duo = Duo(ours, theirs)
    if outcome == "ended":
        assert duo.run(40, until=lambda: duo.both_dead)
        duo.run(150)
        duo.nothing_left()
        assert duo.recorder.specs == []
        if ours is REQUIRED:
            assert duo.session.cause is Cause.USER_ERROR
            assert duo.session.reason.startswith("its packets must be encrypted: ")
        return
    assert duo.run(2, until=lambda: duo.both_up)
    encrypted = outcome == "encrypted"
    assert (duo.session.mppe is not None) is (duo.subscriber.mppe is not None) is encrypted
    assert duo.recorder.specs[-1].mppe is duo.session.mppe
    duo.check_data()
    assert bool(duo.clear(duo.near)) is bool(duo.clear(duo.far)) is not encrypted
    if encrypted:
        assert duo.session.mppe is not None
        assert duo.session.mppe.modes == (BEST, BEST)
        assert sum(frame[:2] == b"\x00\xfd" for frame in duo.near.sent + duo.far.sent) == 2
    assert not duo.rig.engine.malformed
    duo.session.end(Cause.ADMIN_RESET, "test", duo.rig.now)
    duo.run(150)
    duo.nothing_left()


@pytest.mark.parametrize("ours", [YES, REQUIRED])
def test_a_peer_that_never_speaks_ccp(ours: Choice) -> None:
    duo = Duo(ours, NO)
    duo.drop(ccp, duo.near, duo.far)
    if ours is REQUIRED:
        assert not duo.run(25, until=lambda: duo.session.phase is Phase.UP)
        assert duo.run(30, until=lambda: duo.both_dead)
        assert duo.recorder.specs == []
        return
    # It waits for one restart timer, not until CCP has given up.
    assert not duo.run(2, until=lambda: duo.session.phase is Phase.UP)
    assert duo.run(2, until=lambda: duo.session.phase is Phase.UP)
    assert duo.session.mppe is None
    duo.run(60)
    assert duo.both_up
    assert duo.session.privacy is None
    duo.check_data()


def test_a_peer_that_speaks_ccp_late() -> None:
    """Until then data goes in the clear, and from then on it does not."""
    duo = Duo(YES, YES)
    deaf = True
    duo.drop(lambda frame: deaf and ccp(frame), duo.near, duo.far)
    assert duo.run(4, until=lambda: duo.session.phase is Phase.UP and duo.subscriber.phase is Phase.UP)
    sent = duo.up_again()
    duo.down()
    duo.run(0.1)
    assert duo.recorder.packets == [sent]
    deaf = False
    assert duo.run(10, until=lambda: duo.both_up)
    assert duo.session.mppe is not None
    ours, theirs = len(duo.clear(duo.near)), len(duo.clear(duo.far))
    assert ours == theirs == 1
    duo.check_data()
    assert (len(duo.clear(duo.near)), len(duo.clear(duo.far))) == (1, 1)


@pytest.mark.parametrize("ours", [NO, YES, REQUIRED])
@pytest.mark.parametrize("method", [PAP, CHAP])
def test_methods_that_give_no_keys(ours: Choice, method: AuthMethod) -> None:
    duo = Duo(ours, NO, demand=(PAP, MSCHAPV2, CHAP), offer=(method,))
    if ours is not REQUIRED:
        assert duo.run(2, until=lambda: duo.both_up)
        assert duo.session.auth is method
        assert duo.session.mppe is duo.session.privacy is None
        assert not any(map(ccp, duo.near.sent))
        duo.check_data()
        return
    # It is not even offered.
    assert duo.run(60, until=lambda: duo.both_dead)
    asked = [options.decode(frame[6:]) for frame in duo.near.sent if frame[:3] == b"\xc0\x21\x01"]
    assert {dict(wishes)[proto.OPT_AUTH] for wishes in asked} == {b"\xc2\x23\x81"}
    assert not any(frame[:2] in (b"\xc0\x23", b"\xc2\x23") for frame in duo.near.sent + duo.far.sent)
    assert duo.recorder.specs == []


@pytest.mark.parametrize("ours", [YES, REQUIRED])
def test_a_realm_that_gives_no_keys(ours: Choice, caplog: pytest.LogCaptureFixture) -> None:
    duo = Duo(ours, YES)
    duo.rig.aaa.answer = _without_keys(duo.rig.aaa.answer)  # type: ignore[method-assign]
    caplog.set_level(logging.INFO)
    if ours is YES:
        # The subscriber asks for CCP, and is told that nobody speaks it.
        assert duo.run(10, until=lambda: duo.both_up)
        duo.check_data()
        return
    assert duo.run(60, until=lambda: duo.both_dead)
    assert duo.session.cause is Cause.SERVICE_UNAVAILABLE
    assert "TUNNELDENY" in caplog.text
    assert "gives no keys" in caplog.text
    # It has not come to be admitted, and is told that it has failed.
    assert duo.reasons == ["authentication failed"]
    duo.run(60)
    duo.nothing_left()


def _without_keys(answer: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
    def without(request: Request) -> Answer:
        found = answer(request)
        return replace(found, keys=None) if isinstance(found, Accept) else found

    return without


def test_keys_are_asked_for_where_they_are_of_use() -> None:
    for ours in Choice:
        duo = Duo(ours, NO)
        duo.run(1)
        assert [request.keys for request in duo.rig.aaa.requests] == [ours is not NO]


@pytest.mark.parametrize("lengths", [(128, 56, 40), (128,), (56, 40), (40,)])
@pytest.mark.parametrize("states", [("stateless", "stateful"), ("stateful",)])
def test_modes(lengths: tuple[int, ...], states: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    duo = Duo(YES, REQUIRED, far={"mppe_key_lengths": lengths, "mppe_key_states": states})
    assert duo.run(2, until=lambda: duo.both_up)
    mode = Mode(lengths[0], "stateless" not in states)
    assert duo.session.mppe is not None
    assert duo.session.mppe.modes == (mode, mode)
    for _ in range(300):
        duo.check_data()
    spec = duo.recorder.specs[-1]
    assert spec.offload is not mode.stateful
    assert why_python(duo.session) == ("MPPE is stateful" if mode.stateful else "")
    duo.session.end(Cause.ADMIN_RESET, "test", duo.rig.now)
    usage = next(record.message for record in caplog.records if "TUNNELUSAGE" in record.message)
    assert f" mppe=yes mppe_in={mode} mppe_out={mode} " in usage
    assert " data_in=19200bytes,300packets " in usage
    assert any(f"layer=ccp logtype=Opened mppe=yes mppe_in={mode}" in record.message for record in caplog.records)


@pytest.mark.parametrize("most", [1492, 1491])
def test_packets_too_large_for_the_kernel(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npppy.ppp.carriage.MPPE_MTU", most)
    duo = Duo(YES, REQUIRED)
    assert duo.run(2, until=lambda: duo.both_up)
    assert duo.session.mru == duo.session.peer_mru == 1492
    assert duo.recorder.specs[-1].offload is (most == 1492)
    reason = f"the kernel encrypts no packets of more than {most} octets"
    assert why_python(duo.session) == ("" if most == 1492 else reason)


def test_no_mode_in_common() -> None:
    for ours, theirs in (((128,), (40,)), ((40,), (56,))):
        near, far = {"mppe_key_lengths": ours}, {"mppe_key_lengths": theirs}
        duo = Duo(YES, YES, near=near, far=far)
        assert duo.run(2, until=lambda duo=duo: duo.both_up)  # type: ignore[misc]
        assert duo.session.mppe is duo.session.privacy is None
        duo.check_data()
        duo = Duo(REQUIRED, YES, near=near, far=far)
        assert duo.run(10, until=lambda duo=duo: duo.both_dead)  # type: ignore[misc]
        assert duo.recorder.specs == []


# A peer written by hand.


def test_both_protocols_pass() -> None:
    hand = Hand().up()
    frames = [packet(1), packet6(2), packet(3, 1400)]
    for frame in frames:
        hand.give(frame)
        hand.recorder.specs[-1].send(frame)
    assert hand.recorder.packets == [frame[2:] for frame in frames]
    assert hand.take() == frames
    hand.nothing_clear()
    assert hand.rig.engine.malformed["clear-text"] == 2


def test_nothing_passes_until_both_are_open() -> None:
    for first in ("ipcp", "ccp"):
        hand = Hand()
        hand.nothing_clear()
        hand.log_in()
        hand.nothing_clear()
        if first == "ipcp":
            hand.line.open_ipcp()
        else:
            hand.ccp()
        assert hand.session.phase is Phase.NETWORK
        assert hand.recorder.specs == []
        hand.nothing_clear()
        if first == "ipcp":
            hand.ccp()
        else:
            hand.line.open_ipcp()
        assert hand.session.phase is Phase.UP
        hand.nothing_clear()
        hand.give(packet(1))
        assert hand.recorder.packets == [packet(1)[2:]]


@pytest.mark.parametrize("ours", [YES, REQUIRED])
def test_nothing_passes_in_the_clear_while_ccp_negotiates_anew(ours: Choice) -> None:
    hand = Hand(ours).up()
    for turn in range(3):
        old = hand.mppe
        hand.line.take()
        hand.line.give(proto.CCP, 1, 10, MPPE)
        assert hand.session.phase is Phase.NETWORK
        assert hand.session.mppe is None
        assert len(hand.recorder) == 0
        hand.nothing_clear()
        # Nor what is encrypted as before.
        assert old is not None
        before = len(hand.recorder.packets)
        hand.line.give_raw(old.send.encrypt(packet(7)))
        assert len(hand.recorder.packets) == before
        assert hand.line.take(proto.COMPRESSED) == []
        identifier, wish = hand.line.find(proto.CCP, proto.CONFIGURE_REQUEST)
        hand.line.give(proto.CCP, 3, identifier, MPPE)
        hand.nothing_clear()
        identifier, wish = hand.line.find(proto.CCP, proto.CONFIGURE_REQUEST)
        assert wish == MPPE
        hand.line.give(proto.CCP, 2, identifier, wish)
        assert hand.session.phase is Phase.UP
        hand.mppe = Mppe.begin(hand.keys, BEST, BEST)
        hand.line.take()
        hand.recorder.specs[-1].send(packet(turn))
        assert hand.take() == [packet(turn)]
        hand.nothing_clear()


@pytest.mark.parametrize("ours", [YES, REQUIRED])
def test_no_row_of_keys_begins_twice(ours: Choice) -> None:
    """Once the peer has encrypted, CCP that negotiates anew takes another login."""
    hand = Hand(ours).up()
    hand.give(packet(1))
    hand.line.take()
    assert hand.session.privacy is not None
    # One that is late asks for what is agreed.
    hand.line.give(proto.CCP, 1, hand.session.privacy._asked[0], MPPE)
    assert hand.session.phase is Phase.UP
    assert hand.line.take() == []
    hand.give(packet(2))
    hand.line.give(proto.CCP, 1, hand.session.privacy._asked[0] ^ 1, MPPE)
    assert hand.session.phase is Phase.ESTABLISH
    assert hand.session.privacy is hand.session.mppe is None
    assert len(hand.recorder) == 0
    hand.line.find(proto.LCP, proto.CONFIGURE_REQUEST)
    assert hand.line.take(proto.CCP) == []
    hand.nothing_clear()


@pytest.mark.parametrize("ours", [YES, REQUIRED])
def test_ipcp_negotiates_anew(ours: Choice) -> None:
    hand = Hand(ours).up()
    hand.give(packet(1))
    hand.line.give(proto.IPCP, 1, 50, b"")
    assert hand.session.phase is Phase.NETWORK
    hand.nothing_clear()
    hand.line.open_ipcp()
    assert hand.session.phase is Phase.UP
    # The keys go on.
    hand.give(packet(2))
    assert hand.recorder.packets == [packet(1)[2:], packet(2)[2:]]
    hand.nothing_clear()


END = {
    "terminated": lambda hand: hand.line.give(proto.CCP, proto.TERMINATE_REQUEST, 1),
    "code-reject": lambda hand: hand.line.give(proto.CCP, proto.CODE_REJECT, 1, b"\1\1\0\4"),
    "protocol-reject": lambda hand: hand.line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, b"\x80\xfd\1\1\0\4"),
}


@pytest.mark.parametrize("how", END)
@pytest.mark.parametrize("ours", [YES, REQUIRED])
def test_ccp_ends(ours: Choice, how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hand = Hand(ours).up()
    END[how](hand)
    hand.nothing_clear()
    hand.rig.wait(10)
    hand.nothing_clear()
    assert hand.session.phase >= Phase.TERMINATE
    assert hand.session.cause is Cause.USER_ERROR
    assert hand.session.reason == "its packets must be encrypted: CCP came to no agreement"
    hand.rig.wait(10)
    hand.rig.nothing_left()


@pytest.mark.parametrize("how", END)
@pytest.mark.parametrize("ours", [YES, REQUIRED])
def test_ccp_does_not_begin(ours: Choice, how: str) -> None:
    hand = Hand(ours)
    hand.log_in()
    hand.line.open_ipcp()
    END[how](hand)
    if how == "terminated":
        # There was nothing to terminate yet: that alone is no refusal.
        assert hand.session.phase is Phase.NETWORK
        hand.rig.wait(4)
        assert hand.session.phase is (Phase.NETWORK if ours is REQUIRED else Phase.UP)
    elif ours is YES:
        assert hand.session.phase is Phase.UP
        assert hand.session.privacy is None
        hand.line.give_raw(packet(1))
        assert hand.recorder.packets == [packet(1)[2:]]
        # It is not heard any more.
        hand.line.take()
        hand.line.give(proto.CCP, 1, 1, MPPE)
        assert [found[0] for found in hand.line.take(proto.LCP)] == [proto.PROTOCOL_REJECT]
    else:
        assert hand.session.phase is Phase.TERMINATE
        hand.nothing_clear()


@pytest.mark.parametrize("ours", [YES, REQUIRED])
@pytest.mark.parametrize("way", ["ours", "theirs", "both"])
def test_the_option_is_rejected(ours: Choice, way: str) -> None:
    """One way alone is not enough."""
    hand = Hand(ours)
    hand.log_in()
    hand.line.open_ipcp()
    identifier, wish = hand.line.find(proto.CCP, proto.CONFIGURE_REQUEST)
    if way == "theirs":
        hand.line.give(proto.CCP, 2, identifier, wish)
    else:
        hand.line.give(proto.CCP, 4, identifier, wish)
        identifier, wish = hand.line.find(proto.CCP, proto.CONFIGURE_REQUEST)
        assert wish == b""
        hand.line.give(proto.CCP, 2, identifier, b"")
    for identifier in range(7):
        hand.line.give(proto.CCP, 1, identifier, MPPE if way == "ours" else b"")
        if hand.session.phase is not Phase.NETWORK:
            break
    assert hand.session.phase is (Phase.UP if ours is YES else Phase.TERMINATE)
    assert hand.session.mppe is hand.session.privacy is None


@pytest.mark.parametrize("again", ["same", "pap", "during", "no-ccp"])
def test_lcp_negotiates_anew(again: str) -> None:
    """There are new keys; and what was encrypted once is never sent in the clear, whatever the peer does now."""
    hand = Hand(YES, (MSCHAPV2, PAP)).up()
    old = hand.keys
    if again == "during":
        # While CCP negotiates there is nothing that encrypts.
        hand.line.give(proto.CCP, 1, 10, MPPE)
        assert hand.session.mppe is None
    hand.line.give(proto.LCP, 1, 1, b"\5\6next")
    hand.nothing_clear()
    if again in ("pap", "during"):
        identifier, _ = hand.line.find(proto.LCP, proto.CONFIGURE_REQUEST)
        hand.line.give(proto.LCP, 3, identifier, b"\3\4\xc0\x23")
        hand.line.ack(proto.LCP)
        if hand.session.auth is PAP:
            hand.line.pap()
            assert hand.session.phase is Phase.TERMINATE
            assert hand.session.reason.endswith("its authentication gives no keys for that")
            hand.nothing_clear()
        else:
            assert hand.session.auth is MSCHAPV2
        return
    hand.log_in()
    assert hand.keys != old
    hand.line.open_ipcp()
    hand.nothing_clear()
    if again == "no-ccp":
        hand.line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, b"\x80\xfd\1\1\0\4")
        assert hand.session.phase is Phase.TERMINATE
        hand.nothing_clear()
        return
    hand.ccp()
    hand.line.take()
    assert hand.session.phase is Phase.UP
    hand.give(packet(1))
    assert hand.recorder.packets == [packet(1)[2:]]
    hand.nothing_clear()


def test_automata_are_dropped_at_rest_and_made_again() -> None:
    hand = Hand().up()
    session = hand.session
    assert session.privacy is not None
    assert session.lcp is session.ipcp is session.privacy.ccp is None
    assert len(hand.rig.wheel) == 1
    for code in (proto.RESET_REQUEST, proto.RESET_ACK, proto.CODE_REJECT, 77):
        hand.line.give(proto.CCP, code, 1, b"\x0f\1\0\4")
        assert session.privacy.ccp is None
        assert session.phase is Phase.UP
    # Nor does what is no packet leave one behind.
    for protocol in (proto.CCP, proto.IPCP, proto.LCP):
        for broken in (b"", b"\1\1\0\3", b"\1\1\0\6\x12\1", b"\1\1\0\5"):
            hand.line.give_raw(protocol.to_bytes(2, "big") + broken)
        assert session.lcp is session.ipcp is session.privacy.ccp is None
    assert len(hand.rig.wheel) == 1
    hand.line.give(proto.CCP, 1, 10, MPPE)
    assert session.privacy.ccp is not None
    assert session.privacy.ccp.state is State.ACK_SENT


# Out of step.

def test_a_peer_that_is_out_of_step_for_long() -> None:
    hand = Hand().up()
    hand.give(packet(1))
    for second in range(privacy.DEAF):
        hand.line.give_raw(b"\x00\xfd\x90\x01" + random.Random(second).randbytes(60))
        assert hand.session.phase is Phase.UP
        hand.rig.wait(1)
    hand.line.give_raw(b"\x00\xfd\x90\x01" + bytes(60))
    assert hand.session.phase is Phase.TERMINATE
    assert hand.session.cause is Cause.LOST_SERVICE
    assert hand.rig.engine.malformed["undecryptable"] == privacy.DEAF + 1


def test_a_few_packets_are_not_enough() -> None:
    hand = Hand(lcp_keepalive=False).up()
    for _ in range(privacy.DEAF_PACKETS - 1):
        hand.line.give_raw(b"\x00\xfd\x90\x01" + bytes(60))
        hand.rig.wait(100)
    assert hand.session.phase is Phase.UP
    hand.line.give_raw(b"\x00\xfd\x90\x01" + bytes(60))
    assert hand.session.phase is Phase.TERMINATE


def test_new_keys_have_as_long_as_the_old_ones_had() -> None:
    hand = Hand(lcp_keepalive=False).up()
    for _ in range(privacy.DEAF_PACKETS - 1):
        hand.line.give_raw(b"\x00\xfd\x90\x01" + bytes(60))
        hand.rig.wait(10)
    hand.ccp()
    hand.line.give_raw(b"\x00\xfd\x90\x01" + bytes(60))
    assert hand.session.phase is Phase.UP


@pytest.mark.parametrize("mode", [BEST, STATEFUL])
def test_forged_packets_do_not_end_a_session_that_is_used(mode: Mode) -> None:
    hand = Hand(lcp_keepalive=False).up(mode, mode)
    dice = random.Random(3)
    for number in range(20):
        for _ in range(5):
            head = 0x1000 | dice.choice((0, 0x8000)) | dice.choice((number, dice.randrange(4096)))
            hand.line.give_raw(b"\x00\xfd" + head.to_bytes(2, "big") + dice.randbytes(dice.choice((1, 40, 90))))
            hand.rig.wait(1)
        if mode.stateful and hand.line.take(proto.CCP):
            # What the forged packets have brought about.
            assert hand.mppe is not None
            hand.mppe.send.reset()
        hand.give(packet(number))
        assert hand.session.phase is Phase.UP
    assert len(hand.recorder.packets) == 20


def test_an_unanswered_reset_ends_it() -> None:
    hand = Hand(lcp_keepalive=False).up(STATEFUL, STATEFUL)
    hand.give(packet(1))
    assert hand.mppe is not None
    hand.mppe.send.encrypt(packet(2))
    asked = 0
    for number in range(400):
        frame = hand.mppe.send.encrypt(packet(number))
        if not frame[2] & 0x80:
            hand.line.give_raw(frame)
        hand.rig.wait(0.1)
        asked += len(hand.line.take(proto.CCP))
        if hand.session.phase is not Phase.UP:
            break
    assert hand.session.cause is Cause.LOST_SERVICE
    # One in half a second.
    assert 50 <= asked <= 62


def test_a_peer_that_decrypts_by_another_key() -> None:
    """Linux does after a long gap: it takes what comes out for protocols, and rejects them."""
    hand = Hand(lcp_keepalive=False).up()

    def reject(protocol: int) -> None:
        hand.line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, protocol.to_bytes(2, "big") + b"noise")

    for turn in range(3):
        for number in range(privacy.STRANGE - 1):
            reject(0x1235 + 2 * number)
        assert hand.session.phase is Phase.UP, turn
        hand.rig.wait(privacy.STRANGE_INTERVAL)
    for number in range(privacy.STRANGE):
        assert hand.session.phase is Phase.UP
        reject(0x3111 + 2 * number)
    assert hand.session.phase is Phase.TERMINATE
    assert hand.session.cause is Cause.LOST_SERVICE
    # One that is not encrypted may reject what it likes.
    hand = Hand(lcp_keepalive=False)
    hand.log_in()
    hand.line.open_ipcp()
    hand.line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, b"\x80\xfd\1\1\0\4")
    for number in range(2 * privacy.STRANGE):
        reject(0x3111 + 2 * number)
    assert hand.session.phase is Phase.UP


def test_a_packet_and_what_it_grows_by_fit_the_path() -> None:
    hand = Hand().up()
    assert (hand.recorder.specs[-1].mtu, hand.recorder.specs[-1].mru) == (1488, 1488)
    assert (hand.session.mru, hand.session.peer_mru) == (1492, 1492)


def test_stateful_resets_through_two_sessions() -> None:
    """A tenth is lost, and some comes late; both ways recover, and what comes through is what was sent."""
    stateful = {"mppe_key_states": ("stateful",)}
    duo = Duo(YES, REQUIRED, near=stateful, far=stateful)
    assert duo.run(2, until=lambda: duo.both_up)
    data = duo.recorder.packets
    sink = duo.subscriber.flow
    ups, downs = [], []
    duo.channel.quality = Quality(loss=0.1, fastest=0.01, slowest=0.02)
    for _ in range(3000):
        ups.append(duo.up_again())
        downs.append(duo.down())
        duo.run(0.05)
        assert duo.session.phase is duo.subscriber.phase is Phase.UP
    duo.channel.quality = Quality()
    duo.run(2)
    for _ in range(20):
        ups.append(duo.up_again())
        downs.append(duo.down())
        duo.run(0.6)
    for sent, got in ((ups, data), (downs, sink.packets)):  # type: ignore[union-attr]
        # In order, nothing twice, nothing made up; and most of it, for half a second of each reset is lost.
        rest = iter(sent)
        assert all(found in rest for found in got)
        assert len(got) > 300
        assert got[-10:] == sent[-10:]
    assert duo.both_up
    assert duo.ups == 1


@pytest.mark.parametrize("gap", [300, 5000])
def test_gaps_between_two_sessions(gap: int) -> None:
    for states in (("stateless",), ("stateful",)):
        duo = Duo(YES, REQUIRED, far={"mppe_key_states": states})
        assert duo.run(2, until=lambda duo=duo: duo.both_up)  # type: ignore[misc]
        duo.check_data()
        duo.channel.quality = Quality(loss=1.0)
        for _ in range(gap):
            duo.up_again()
            duo.down()
        duo.channel.quality = Quality()
        for _ in range(10):
            sent = duo.up_again()
            got = duo.down()
            duo.run(1)
        assert duo.recorder.packets[-1] == sent
        assert duo.subscriber.flow.packets[-1] == got  # type: ignore[union-attr]


def test_a_session_with_a_dump_of_packets_shows_them_decrypted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hand = Hand(dump_in=frozenset({"ip"}), dump_out=frozenset({"ip"})).up()
    hand.give(packet(0x112233))
    hand.recorder.specs[-1].send(packet(0x445566))
    shown = [record.message for record in caplog.records if "PktDump" in record.message]
    assert "0011 2233" in shown[0]
    assert "0044 5566" in shown[1]
    assert hand.take() == [packet(0x445566)]
    assert why_python(hand.session) == "tunnel PPPOE has the packets dumped"
