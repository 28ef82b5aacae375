"""The engine against a subscriber: whatever the link does, both ends come to an end that both know of."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import pytest

from npppy.aaa.base import Accept
from npppy.config.model import AuthMethod
from npppy.ppp import proto
from npppy.ppp.cause import Cause
from npppy.ppp.fsm import State
from npppy.ppp.station import Phase, Station
from tests.effort import THOROUGH

from .ppp_pair import Pair, Quality
from .ppp_rig import USERS

PAP, CHAP, MSCHAPV2 = AuthMethod.PAP, AuthMethod.CHAP, AuthMethod.MSCHAPV2
METHODS = (PAP, CHAP, MSCHAPV2)
#: Blocks of 30 seeds; the long run has more.
BLOCKS = 200 if THOROUGH else 10
#: Long enough for whatever is under way to be given up.
LONG = 150.0


def bad_quality(chance: random.Random) -> Quality:
    """Up to 30 % loss, up to 30 % doubled, and frames that overtake each other by up to two seconds."""
    slowest = chance.choice((0.001, 0.05, 0.5, 2.0))
    return Quality(loss=chance.uniform(0, 0.3), double=chance.choice((0, chance.uniform(0, 0.3))), slowest=slowest)


def finish(pair: Pair, chance: random.Random) -> None:
    """End what is up, from either side; nothing may remain."""
    way = chance.randrange(4)
    if not pair.both_dead:
        if way == 0:
            pair.session.end(Cause.ADMIN_RESET, "test", pair.rig.now)
        elif way == 1:
            pair.subscriber.end("test", pair.rig.now)
        elif way == 2:
            pair.subscriber.abandon("test", pair.rig.now)
        else:
            pair.subscriber.end("test", pair.rig.now)
            pair.session.end(Cause.ADMIN_RESET, "test", pair.rig.now)
    assert pair.run(LONG, until=lambda: pair.both_dead)
    # What is still on its way must not bring anything back.
    pair.run(LONG)
    pair.nothing_left()


# Clean links.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(10))
def test_clean_link_comes_up(method: AuthMethod, seed: int) -> None:
    pair = Pair(seed=seed, demand=(method,), rig={"ipcp": {"dns": (IPv4Address("9.9.9.9"), IPv4Address("1.1.1.1"))}})
    assert pair.run(2, until=lambda: pair.both_up)
    pair.check_up()
    assert pair.subscriber.dns == (0x09090909, 0x01010101)
    assert pair.session.auth is method
    assert pair.ups == 1
    assert not pair.rig.engine.malformed
    finish(pair, random.Random(seed))


@pytest.mark.parametrize("offer", METHODS)
def test_methods_in_common_are_found(offer: AuthMethod) -> None:
    pair = Pair(demand=(MSCHAPV2, CHAP, PAP), offer=(offer,))
    assert pair.run(2, until=lambda: pair.both_up)
    assert pair.session.auth is offer
    pair.check_up()


def test_no_method_in_common() -> None:
    pair = Pair(demand=(CHAP,), offer=(PAP,))
    assert pair.run(LONG, until=lambda: pair.both_dead)
    assert pair.ups == 0
    pair.run(LONG)
    pair.nothing_left()


@pytest.mark.parametrize("dns", [(), (IPv4Address("9.9.9.9"),)])
def test_name_servers_that_there_are_not(dns: tuple[IPv4Address, ...]) -> None:
    pair = Pair(rig={"ipcp": {"dns": dns}})
    assert pair.run(2, until=lambda: pair.both_up)
    pair.check_up()
    assert len(pair.subscriber.dns) == len(dns)


@pytest.mark.parametrize(("path", "ours", "theirs"), [(1492, 1492, 1400), (1484, 1492, 1492), (1500, 1400, 1500)])
def test_mru(path: int, ours: int, theirs: int) -> None:
    """Each side receives no more than it asked for, and is sent no more than the path and the tunnel allow."""
    pair = Pair(max_mru=path, rig={"mru": ours}, theirs={"mru": theirs})
    assert pair.run(2, until=lambda: pair.both_up)
    assert pair.session.mru == min(ours, path)
    assert pair.subscriber.mru == min(theirs, path)
    assert pair.session.peer_mru == min(theirs, path, ours)
    assert pair.subscriber.peer_mru == pair.session.mru


def test_keepalive_finds_a_silent_peer() -> None:
    for silent in ("session", "subscriber"):
        pair = Pair()
        assert pair.run(2, until=lambda pair=pair: pair.both_up)  # type: ignore[misc]
        pair.channel.quality = Quality(loss=1.0)
        assert pair.run(LONG, until=lambda pair=pair: pair.both_dead), silent  # type: ignore[misc]
        pair.run(LONG)
        pair.nothing_left()
        assert pair.session.cause is Cause.LOST_CARRIER
        assert pair.reasons == ["no answer to LCP echoes"]


def test_an_idle_session_stays_up_for_a_day() -> None:
    pair = Pair()
    assert pair.run(2, until=lambda: pair.both_up)
    pair.run(24 * 3600)
    assert pair.both_up or pair.run(1, until=lambda: pair.both_up)
    assert pair.ups == 1
    pair.check_up()


# Bad links.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_bad_link_ends_up_or_down(method: AuthMethod, block: int) -> None:
    """30 links a block: up, or ended, within the negotiation's bound (Pair._look), and both ends alike."""
    came_up = 0
    for seed in range(block * 30, block * 30 + 30):
        chance = random.Random(seed)
        pair = Pair(seed=seed, demand=(method,), quality=bad_quality(chance))
        pair.run(60)
        came_up += pair.ups > 0
        pair.channel.quality = Quality()
        assert pair.run(LONG, until=lambda pair=pair: pair.decided), f"seed {seed}"  # type: ignore[misc]
        if pair.both_up:
            pair.check_up()
        pair.channel.quality = bad_quality(chance)
        finish(pair, chance)
    # Most of them do: a bad link costs time, rarely the session.
    assert came_up > 15


@pytest.mark.parametrize("method", METHODS)
def test_loss_of_any_one_frame_is_made_good(method: AuthMethod) -> None:
    """Each frame of a set-up in turn is lost, either way; the session comes up, with one restart timer's delay."""
    whole = Pair(demand=(method,))
    assert whole.run(2, until=lambda: whole.both_up)
    frames = len(whole.near.sent) + len(whole.far.sent)
    assert frames >= 12
    for lost in range(1, frames + 1):
        pair = Pair(demand=(method,), lose=lost)
        assert pair.run(8, until=lambda pair=pair: pair.both_up), f"frame {lost}"  # type: ignore[misc]
        pair.check_up()
        finish(pair, random.Random(lost))


# Negotiating anew.


def again_lcp(station: Station, now: float) -> None:
    lcp = station.lcp = station.lcp or station.resume_lcp()
    lcp.down(now)
    lcp.up(now)


def again_ipcp(station: Station, now: float) -> None:
    ipcp = station.ipcp = station.ipcp or station.resume_ipcp()
    ipcp.down(now)
    ipcp.up(now)


@pytest.mark.parametrize("again", [again_lcp, again_ipcp])
@pytest.mark.parametrize("side", ["session", "subscriber", "both"])
@pytest.mark.parametrize("method", METHODS)
def test_renegotiation_on_a_clean_link(again, side: str, method: AuthMethod) -> None:  # type: ignore[no-untyped-def]
    pair = Pair(demand=(method,))
    assert pair.run(2, until=lambda: pair.both_up)
    address, up_since = pair.session.address, pair.session.up_since
    for turn in range(2, 5):
        sides = [pair.session, pair.subscriber] if side == "both" else [getattr(pair, side)]
        for station in sides:
            again(station, pair.rig.now)
        assert pair.run(10, until=lambda turn=turn: pair.both_up and pair.ups >= turn)  # type: ignore[misc]
        pair.check_up()
    assert pair.session.address == address
    assert pair.session.up_since == up_since
    finish(pair, random.Random(1))


@pytest.mark.parametrize("again", [again_lcp, again_ipcp])
@pytest.mark.parametrize("side", ["session", "subscriber", "both"])
def test_renegotiation_on_a_bad_link(again, side: str) -> None:  # type: ignore[no-untyped-def]
    stayed = 0
    for seed in range(60):
        chance = random.Random(seed)
        pair = Pair(seed=seed, demand=(chance.choice(METHODS),))
        assert pair.run(2, until=lambda pair=pair: pair.both_up)  # type: ignore[misc]
        address = pair.session.address
        pair.channel.quality = bad_quality(chance)
        sides = [pair.session, pair.subscriber] if side == "both" else [getattr(pair, side)]
        for station in sides:
            again(station, pair.rig.now)
            pair.run(chance.choice((0, 0.1, 3)))
        pair.run(60)
        pair.channel.quality = Quality()
        assert pair.run(LONG, until=lambda pair=pair: pair.decided), f"seed {seed}"  # type: ignore[misc]
        if pair.both_up:
            stayed += 1
            assert pair.session.address == address
            pair.check_up()
        pair.channel.quality = bad_quality(chance)
        finish(pair, chance)
    assert stayed >= 40


@pytest.mark.parametrize("again", [again_lcp, again_ipcp])
@pytest.mark.parametrize("side", ["session", "subscriber"])
@pytest.mark.parametrize("method", METHODS)
def test_loss_of_any_one_frame_of_a_renegotiation(again, side: str, method: AuthMethod) -> None:  # type: ignore[no-untyped-def]
    """An automaton that was rebuilt from a session at rest retransmits like any other."""
    lost = 0
    while True:
        lost += 1
        pair = Pair(demand=(method,))
        assert pair.run(2, until=lambda pair=pair: pair.both_up)  # type: ignore[misc]
        before = pair.channel.carried
        pair.channel.lose = before + lost
        again(getattr(pair, side), pair.rig.now)
        assert pair.run(10, until=lambda pair=pair: pair.both_up and pair.ups > 1), f"frame {lost}"  # type: ignore[misc]
        carried, pair.channel.lose = pair.channel.carried - before, 0
        pair.check_up()
        if carried < lost:
            break
    assert lost > 4


def test_renegotiation_as_another_user_is_refused() -> None:
    pair = Pair(user="alice")
    assert pair.run(2, until=lambda: pair.both_up)
    pair.subscriber._credentials = pair.subscriber._credentials._replace(name=b"bob", password=USERS["bob"])
    again_lcp(pair.subscriber, pair.rig.now)
    assert pair.run(LONG, until=lambda: pair.both_dead)
    pair.run(LONG)
    pair.nothing_left()


# Refusals.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_wrong_password_and_unknown_user_are_refused_alike(method: AuthMethod, seed: int) -> None:
    """What the concentrator sends is the same to the octet, in number, order and time."""
    told = []
    for user, password in (("alice", b"wrong"), ("mallory", b"wonderland")):
        pair = Pair(seed=seed, demand=(method,), user=user, password=password)
        began = pair.rig.now
        assert pair.run(LONG, until=lambda pair=pair: pair.both_dead)  # type: ignore[misc]
        assert pair.ups == 0
        assert pair.reasons == ["authentication failed"]
        assert pair.rig.engine.refused == {"LOCAL": 1}
        told.append((pair.near.sent, pair.rig.now - began))
        pair.run(LONG)
        pair.nothing_left()
    assert told[0] == told[1]


@pytest.mark.parametrize("method", METHODS)
def test_refusal_on_a_bad_link(method: AuthMethod) -> None:
    for seed in range(60):
        chance = random.Random(seed)
        pair = Pair(seed=seed, demand=(method,), password=b"wrong", quality=bad_quality(chance))
        pair.run(60)
        pair.channel.quality = Quality()
        assert pair.run(LONG, until=lambda pair=pair: pair.both_dead), f"seed {seed}"  # type: ignore[misc]
        assert pair.ups == 0
        pair.run(LONG)
        pair.nothing_left()


@pytest.mark.parametrize("method", METHODS)
def test_a_subscriber_checks_the_concentrator_too(method: AuthMethod) -> None:
    """Only MS-CHAPv2 lets it: one that accepts any password without knowing it is not believed."""
    pair = Pair(demand=(method,))
    pair.rig.aaa.answer = lambda request: Accept(authenticator_response="S=" + "0" * 40)  # type: ignore[method-assign]
    pair.run(60, until=lambda: pair.both_up or pair.both_dead)
    assert pair.both_dead is (method is MSCHAPV2)


@pytest.mark.parametrize("code", [proto.LCP, proto.IPCP, proto.CHAP, proto.PAP, 0x80FD, 0x0021])
def test_noise_from_the_peer_does_no_harm(code: int) -> None:
    """Random octets in every protocol, at every stage: nothing raises, and what remains is removed."""
    for seed in range(60):
        chance = random.Random(seed)
        pair = Pair(seed=seed, demand=(chance.choice(METHODS),))
        for _ in range(40):
            pair.run(chance.choice((0, 0.001, 0.002, 1.0)))
            payload = bytearray(chance.randbytes(chance.choice((0, 1, 3, 4, 8, 20))))
            if len(payload) >= 4 and chance.random() < 0.7:
                # A plausible header: what follows is looked at.
                payload[0] = chance.randrange(1, 12)
                payload[2:4] = len(payload).to_bytes(2, "big")
            frame = code.to_bytes(2, "big") + bytes(payload)
            if pair.near.open:
                pair.session.receive(frame, pair.rig.now)
        pair.run(60)
        finish(pair, chance)


def test_closing_while_it_is_set_up() -> None:
    """Either side ends at any moment of a set-up, by any way; the other follows."""
    for seed in range(200):
        chance = random.Random(seed)
        pair = Pair(seed=seed, demand=(chance.choice(METHODS),), quality=Quality(fastest=0.01, slowest=0.1))
        pair.run(chance.uniform(0, 1.2))
        finish(pair, chance)


def test_lcp_states_are_dropped_at_rest() -> None:
    pair = Pair()
    assert pair.run(2, until=lambda: pair.both_up)
    assert pair.session.auth_server is None
    again_ipcp(pair.subscriber, pair.rig.now)
    assert pair.subscriber.ipcp is not None
    assert pair.subscriber.ipcp.state is State.REQ_SENT
    assert pair.subscriber.phase is Phase.NETWORK
