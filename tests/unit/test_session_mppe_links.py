"""Sessions whose data is encrypted, on bad links and in any order of events: nothing of it ever goes in the clear."""

from __future__ import annotations

import random

import pytest

from npppy.config.model import Mppe as Choice
from npppy.ppp.cause import Cause
from npppy.ppp.fsm import State
from npppy.ppp.station import Phase

from .mppe_rig import CHAP, MPPE, MSCHAPV2, NO, PAP, REQUIRED, YES, Duo, is_clear
from .ppp_pair import Quality
from .test_ppp_mppe import packet, packet6


class Chaos(Duo):
    """Any order of events; the wire and both ends are watched."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        some = dice.choice
        limits = {"mppe_key_states": some((("stateless",), ("stateful",), ("stateless", "stateful")))}
        super().__init__(
            some((YES, REQUIRED)),
            some((YES, YES, REQUIRED, NO)),
            seed=seed,
            demand=(MSCHAPV2, CHAP, PAP),
            offer=some(((MSCHAPV2,), (MSCHAPV2, CHAP, PAP))),
            far=limits,
        )
        #: It has been encrypted once.
        self.sworn = self.near.link.tunnel.mppe is REQUIRED
        self.forged = 0
        send, near = self.near.send, self.near

        def watched(frame: bytes) -> None:
            self.look()
            assert not (self.sworn and is_clear(frame)), "it has left in the clear"
            send(frame)

        near.send = watched  # type: ignore[method-assign]

    def malformed(self, reason: str) -> None:
        # What is said to a forged request, the subscriber takes for the answer to its own.
        if reason != "ccp-ack":
            super().malformed(reason)

    def look(self) -> None:
        self.sworn |= self.session.mppe is not None
        flow = self.session.flow
        if flow is not None and self.sworn:
            assert self.session.mppe is not None
            assert self.recorder.specs[-1].mppe is self.session.mppe

    def forge(self) -> None:
        """A packet in the clear, which says so."""
        before = len(self.recorder.packets)
        frame = self.dice.choice((packet(0xEEEEEE), packet(0xEEEEEE)[1:], packet6(0xEEEEEE), packet6(0xEEEEEE)[1:]))
        if self.near.open:
            self.session.receive(frame, self.rig.now)
        assert not self.sworn or len(self.recorder.packets) == before, "it has come in in the clear"

    def step(self) -> None:
        dice, now = self.dice, self.rig.now
        what = dice.random()
        session, subscriber = self.session, self.subscriber
        if what < 0.25:
            self.forge()
        elif what < 0.5:
            for spec in self.recorder.specs[-2:]:
                # What encrypts may also be told by one that has not heard yet that it is over.
                current = spec is self.recorder.specs[-1] and session.flow is not None
                if self.near.open and (current or spec.mppe is not None):
                    spec.send(packet(1))
            if subscriber.phase is Phase.UP:
                subscriber.send_ip(packet(2)[2:])
        elif what < 0.55 and subscriber.privacy is not None and subscriber.privacy.ccp is None:
            ccp = subscriber.privacy.ccp = subscriber.privacy._make_ccp(State.OPENED)
            ccp.down(now)
            ccp.up(now)
        elif what < 0.58 and session.privacy is not None and session.privacy.ccp is None and session.mppe is not None:
            ccp = session.privacy.ccp = session.privacy._make_ccp(State.OPENED)
            ccp.down(now)
            ccp.up(now)
        elif what < 0.61 and subscriber.phase is Phase.UP:
            lcp = subscriber.lcp = subscriber.lcp or subscriber.resume_lcp()
            lcp.down(now)
            lcp.up(now)
        elif what < 0.64 and subscriber.phase is Phase.UP:
            ipcp = subscriber.ipcp = subscriber.ipcp or subscriber.resume_ipcp()
            ipcp.down(now)
            ipcp.up(now)
        elif what < 0.67 and self.near.open:
            frame = dice.choice((
                b"\x80\xfd\1\x09\0\x0a" + MPPE,
                b"\x80\xfd\1\x09\0\4",
                b"\x80\xfd\5\x09\0\4",
                b"\x80\xfd\x0e\x09\0\4",
                b"\x80\xfd\7\x09\0\x08\1\1\0\4",
                b"\xc0\x21\x08\x09\0\x06\x80\xfd",
                b"\x00\xfd\x90\0" + dice.randbytes(40),
            ))
            session.receive(frame, now)
        elif what < 0.69:
            self.channel.quality = dice.choice((Quality(), Quality(loss=0.3, double=0.2, slowest=0.5)))
        else:
            self.run(dice.choice((0, 0.001, 0.002, 0.01, 0.5, 3.0)))
        self.look()


@pytest.mark.parametrize("block", range(10))
def test_what_was_encrypted_once_never_goes_in_the_clear(block: int) -> None:
    sworn = 0
    for seed in range(block * 20, block * 20 + 20):
        chaos = Chaos(seed)
        for _ in range(120):
            chaos.step()
        sworn += chaos.sworn
        chaos.channel.quality = Quality()
        assert chaos.run(150, until=lambda chaos=chaos: chaos.decided), f"seed {seed}"  # type: ignore[misc]
        if chaos.both_up:
            assert (chaos.session.mppe is None) is (chaos.subscriber.mppe is None)
            chaos.check_data()
        chaos.session.end(Cause.ADMIN_RESET, "test", chaos.rig.now)
        chaos.run(200)
        chaos.nothing_left()
    assert sworn > 10


@pytest.mark.parametrize("theirs", [YES, REQUIRED])
def test_loss_of_any_one_frame_is_made_good(theirs: Choice) -> None:
    whole = Duo(REQUIRED, theirs)
    assert whole.run(2, until=lambda: whole.both_up)
    frames = len(whole.near.sent) + len(whole.far.sent)
    for lost in range(1, frames + 1):
        duo = Duo(REQUIRED, theirs, lose=lost)
        assert duo.run(12, until=lambda duo=duo: duo.both_up), f"frame {lost}"  # type: ignore[misc]
        duo.check_data()
        assert not duo.clear(duo.near) + duo.clear(duo.far)


@pytest.mark.parametrize("again", ["session", "subscriber"])
def test_loss_of_any_one_frame_of_a_renegotiation_of_ccp_is_made_good(again: str) -> None:
    for lost in range(12):
        duo = Duo(YES, YES)
        assert duo.run(2, until=lambda duo=duo: duo.both_up)  # type: ignore[misc]
        duo.check_data()
        sworn = getattr(duo, again).privacy
        ccp = sworn.ccp = sworn._make_ccp(State.OPENED)
        duo.channel.lose = duo.channel.carried + lost
        ccp.down(duo.rig.now)
        ccp.up(duo.rig.now)
        assert duo.run(12, until=lambda duo=duo: duo.both_up), f"frame {lost}"  # type: ignore[misc]
        duo.channel.lose = 0
        duo.check_data()
        assert not duo.clear(duo.near) + duo.clear(duo.far)


@pytest.mark.parametrize("block", range(4))
def test_bad_links_end_encrypted_or_not_at_all(block: int) -> None:
    came_up = 0
    for seed in range(block * 15, block * 15 + 15):
        quality = Quality(loss=0.2, double=0.2, slowest=random.Random(seed).choice((0.01, 0.5, 2.0)))
        duo = Duo(REQUIRED, YES, seed=seed, quality=quality)
        duo.run(60)
        duo.channel.quality = Quality()
        assert duo.run(150, until=lambda duo=duo: duo.decided), f"seed {seed}"  # type: ignore[misc]
        if duo.both_up:
            came_up += 1
            duo.check_data()
        assert not duo.clear(duo.near) + duo.clear(duo.far)
    assert came_up > 5
