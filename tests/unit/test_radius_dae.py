"""Dynamic authorization (RFC 5176): who is heard, which sessions are meant, what is changed, and what is answered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import md5
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from npppy.aaa.base import Profile
from npppy.aaa.radius import dae as dae_module
from npppy.aaa.radius.dae import ACT_SLICE, ANSWER_TIME, MAX_ANSWERS, MAX_WAITING, REMARKS, SLICE
from npppy.aaa.radius.packet import ENCODED, Code, Pair, encode_request
from npppy.port import Port
from npppy.ppp.cause import Cause
from npppy.ppp.link import Caller, Link
from npppy.ppp.session import Session
from npppy.ppp.station import Phase
from tests.unit.dae_rig import CLIENT, OTHER, SECRET, WALL, Bench, signed
from tests.unit.ppp_rig import UNWANTED, Line

DISCONNECT, COA = Code.DISCONNECT_REQUEST, Code.COA_REQUEST
ALICE: Pair = ("User-Name", "alice")


def is_up(*lines: Line) -> bool:
    states = {line.session.phase is Phase.UP for line in lines}
    assert len(states) == 1, "some are up and some are not"
    return states == {True}


# Who is heard.


def test_a_disconnect() -> None:
    bench = Bench()
    alice, bob = bench.up("alice"), bench.up("bob")
    stops: list[Session] = []
    bench.engine.listeners.append(lambda event, session, now: stops.append(session) if event == "stop" else None)
    assert bench.disconnect(ALICE) == 0
    assert alice.session.cause is Cause.ADMIN_RESET
    assert not is_up(alice)
    assert is_up(bob)
    assert stops == [alice.session]
    assert bench.disconnect(ALICE) == 503, "it is gone, though LCP still says goodbye"


@pytest.mark.parametrize("source", [CLIENT, OTHER])
def test_either_family(source: Any) -> None:
    bench = Bench()
    line = bench.up()
    request = signed(DISCONNECT, [ALICE])
    bench.put(request, source)
    assert bench.answer(request).code is Code.DISCONNECT_ACK
    assert not is_up(line)


def test_without_a_message_authenticator() -> None:
    bench = Bench()
    line = bench.up()
    assert bench.ask(DISCONNECT, ALICE, sign=False).code is Code.DISCONNECT_ACK
    assert not is_up(line)


def forged(place: int) -> Callable[[bytes], bytes]:
    def change(request: bytes) -> bytes:
        at = place % len(request)
        return request[:at] + bytes((request[at] ^ 1,)) + request[at + 1 :]

    return change


def resigned(request: bytes) -> bytes:
    """With a Message-Authenticator that is wrong, under a Request Authenticator that is right."""
    spoilt = encode_request(COA, 1, bytes(16), [(ENCODED, b"\x50\x12" + bytes(16)), ALICE], SECRET)
    assert spoilt[20:] == request[20:22] + bytes(16) + request[38:]
    return spoilt


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (forged(1), "unauthentic"),
        (forged(4), "unauthentic"),
        (forged(25), "unauthentic"),
        (forged(-1), "unauthentic"),
        (forged(3), "malformed"),
        (lambda request: request[:-1], "malformed"),
        (lambda request: request[:19], "malformed"),
        (lambda request: b"", "malformed"),
        (lambda request: signed(DISCONNECT, [ALICE], secret=b"another"), "unauthentic"),
        (lambda request: signed(Code.ACCOUNTING_REQUEST, [ALICE]), "code"),
        (lambda request: signed(Code.COA_ACK, [ALICE]), "code"),
    ],
)
def test_what_is_not_authentic_is_discarded(spoil: Callable[[bytes], bytes], reason: str) -> None:
    bench = Bench()
    line = bench.up()
    bench.put(spoil(signed(DISCONNECT, [ALICE])))
    assert bench.finish() == 0
    assert bench.answers == []
    assert is_up(line)
    assert bench.dae.state()[0].discarded == {reason: 1}


def test_a_message_authenticator_that_is_there_must_be_right() -> None:
    bench = Bench()
    bench.up()
    bench.put(resigned(signed(COA, [ALICE])))
    assert bench.answers == []
    assert bench.dae.state()[0].discarded == {"unauthentic": 1}


def test_strangers_are_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    line = bench.up()
    for _ in range(100):
        bench.put(signed(DISCONNECT, [ALICE]), ip_address("192.0.2.66"))
    assert bench.answers == []
    assert is_up(line)
    assert bench.dae.strangers == 100
    assert len([r for r in caplog.records if "192.0.2.66" in r.getMessage()]) == REMARKS[1]


def test_padding_is_cut_off() -> None:
    bench = Bench()
    bench.up()
    request = signed(DISCONNECT, [ALICE])
    bench.put(request + b"padding")
    assert bench.answer(request).code is Code.DISCONNECT_ACK


@pytest.mark.parametrize(
    ("age", "heard"), [(0, True), (300, True), (-300, True), (301, False), (-301, False), (WALL, False)]
)
def test_the_window_of_event_timestamp(age: float, heard: bool) -> None:
    bench = Bench()
    line = bench.up()
    request = signed(DISCONNECT, [ALICE, ("Event-Timestamp", int(WALL - age))])
    bench.put(request)
    if heard:
        answer = bench.answer(request)
        assert answer.code is Code.DISCONNECT_ACK
        assert answer.integer("Event-Timestamp") == int(WALL), "who tells its time is told ours"
    else:
        assert bench.answers == []
        assert bench.dae.state()[0].discarded == {"timestamp": 1}
        assert is_up(line)


def test_an_event_timestamp_may_be_demanded() -> None:
    bench = Bench(dae={"require_event_timestamp": True, "window": 5})
    bench.up()
    bench.put(signed(DISCONNECT, [ALICE]))
    bench.put(signed(DISCONNECT, [ALICE, ("Event-Timestamp", int(WALL) - 6)]))
    assert bench.answers == []
    assert bench.dae.state()[0].discarded == {"timestamp": 2}
    assert bench.ask(DISCONNECT, ALICE, ("Event-Timestamp", int(WALL) - 5)).code is Code.DISCONNECT_ACK


# Duplicates.


def test_a_retransmission_gets_the_same_answer() -> None:
    bench = Bench()
    bench.up()
    request = signed(DISCONNECT, [ALICE])
    bench.put(request)
    first = bench.answers.pop()
    later = bench.up()
    bench.now += ANSWER_TIME - 1
    bench.put(request)
    assert bench.answers == [first]
    assert is_up(later), "it is not done twice"
    state = bench.dae.state()[0]
    assert (state.disconnects, state.disconnect_acks, state.duplicates) == (1, 1, 1)


@pytest.mark.parametrize("change", ["port", "identifier", "content", "source", "time"])
def test_what_is_no_retransmission(change: str) -> None:
    bench = Bench()
    bench.up()
    bench.put(signed(DISCONNECT, [ALICE]))
    bench.up()
    pairs = [ALICE, ("NAS-Identifier", "npppd")] if change == "content" else [ALICE]
    bench.now += ANSWER_TIME if change == "time" else 1
    bench.put(
        signed(DISCONNECT, pairs, identifier=2 if change == "identifier" else 1),
        OTHER if change == "source" else CLIENT,
        40001 if change == "port" else 40000,
    )
    assert len(bench.answers) == 2
    assert bench.engine.bound == 0, "both were served"


def test_what_has_a_time_is_not_served_twice_while_that_counts() -> None:
    """Whoever has listened sends it again, from elsewhere and later."""
    bench = Bench()
    bench.up()
    request = signed(DISCONNECT, [ALICE, ("Event-Timestamp", int(WALL) + 200)])
    bench.put(request)
    line = bench.up()
    bench.now += 499
    bench.put(request, port=666)
    assert is_up(line)
    assert bench.answers[1] == bench.answers[0]
    bench.now += 2
    bench.put(request, port=666)
    assert is_up(line)
    assert bench.dae.state()[0].discarded == {"timestamp": 1}


def test_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dae_module, "MAX_ANSWERS", 16)
    bench = Bench()
    for port in range(100):
        bench.put(signed(DISCONNECT, [ALICE]), port=40000 + port)
    answers = bench.dae._clients[CLIENT].answers
    assert len(answers) == 16
    assert len(bench.dae._clients[OTHER].answers) == 0
    bench.now += ANSWER_TIME + 1
    bench.put(signed(DISCONNECT, [ALICE]))
    assert len(answers) == 1, "what is too old goes"
    assert MAX_ANSWERS > 256


def test_a_retransmission_while_it_is_served_waits_with_it() -> None:
    bench = Bench()
    bench.users("alice", 3 * ACT_SLICE)
    request = signed(DISCONNECT, [ALICE])
    bench.put(request)
    bench.put(request)
    assert bench.answers == []
    assert bench.dae.state()[0].waiting == 1
    assert bench.answer(request).code is Code.DISCONNECT_ACK
    assert bench.engine.bound == 0


# Which sessions.


def keys(session: Session) -> dict[str, bytes | str | int]:
    return {
        "User-Name": session.name,
        "NAS-Port": session.id,
        "NAS-Port-Id": "eth1.100.7",
        "Framed-IP-Address": session.address,
        "Called-Station-Id": "02:00:00:00:00:fe",
        "Calling-Station-Id": "02:00:00:00:00:07",
        "Acct-Session-Id": session.acct_session_id,
    }


def dialled(bench: Bench) -> Line:
    """A session that has all the keys."""
    caller = Caller(
        text="02:00:00:00:00:07",
        mac=b"\x02\0\0\0\0\x07",
        port=Port("eth1", 100, 7),
        nas="02:00:00:00:00:fe",
    )
    line = Line(bench, Link(tunnel=bench.tunnel, caller=caller, max_mru=1492, unwanted=UNWANTED))
    line.up("bob")
    return line


@pytest.mark.parametrize(
    "key",
    [
        "User-Name",
        "NAS-Port",
        "NAS-Port-Id",
        "Framed-IP-Address",
        "Called-Station-Id",
        "Calling-Station-Id",
        "Acct-Session-Id",
    ],
)
def test_each_key(key: str) -> None:
    bench = Bench()
    alice = bench.up("alice")
    bob = dialled(bench)
    value = keys(bob.session)[key]
    nobody = value + 1000 if isinstance(value, int) else f"{value}x"
    assert bench.disconnect((key, nobody)) == 503
    assert is_up(alice, bob)
    assert bench.disconnect((key, value)) == 0
    assert not is_up(bob)
    assert is_up(alice)


def test_all_keys_must_match() -> None:
    bench = Bench()
    alice = bench.up("alice")
    bob = dialled(bench)
    own = list(keys(bob.session).items())
    for at, (name, _) in enumerate(own):
        theirs = keys(alice.session)[name] if not name.endswith(("-Id", "-Station-Id")) else "x"
        if name == "Acct-Session-Id":
            theirs = alice.session.acct_session_id
        assert bench.disconnect(*own[:at], (name, theirs), *own[at + 1 :]) == 503
        assert bench.disconnect(*own, (name, theirs)) == 503, "every one of several"
    assert is_up(alice, bob)
    assert bench.disconnect(*own) == 0
    assert not is_up(bob)


@pytest.mark.parametrize(
    "pair",
    [
        ("Acct-Multi-Session-Id", "1"),
        ("Chargeable-User-Identity", b"alice"),
        ("Framed-IPv6-Prefix", bytes((0, 64)) + bytes(8)),
        ("Framed-IPv6-Address", bytes(16)),
        ("Framed-Interface-Id", bytes(8)),
        ("Delegated-IPv6-Prefix", bytes((0, 56)) + bytes(7)),
    ],
)
def test_keys_that_nobody_has(pair: Pair) -> None:
    bench = Bench()
    line = bench.up()
    assert bench.disconnect(ALICE, pair) == 503
    assert bench.disconnect(pair) == 503
    assert is_up(line)


@pytest.mark.parametrize("key", ["User-Name", "Called-Station-Id", "Calling-Station-Id", "NAS-Port-Id"])
def test_a_key_without_a_value(key: str) -> None:
    bench = Bench()
    bare = Line(bench, Link(tunnel=bench.tunnel, caller=Caller(text="x"), max_mru=1492, unwanted=UNWANTED))
    bare.up("bob")
    assert bench.disconnect((key, b"")) == 503
    assert is_up(bare)


def test_several_sessions() -> None:
    bench = Bench()
    lines = bench.users("alice", 3)
    bob = bench.up("bob")
    assert bench.disconnect(ALICE) == 0
    assert not is_up(*lines)
    assert is_up(bob)


def test_a_name_that_the_realm_has_given() -> None:
    bench = Bench()
    (line,) = bench.users("alice", 1, Profile(username="customer 17"))
    assert bench.disconnect(ALICE) == 503
    assert bench.disconnect(("User-Name", "customer 17")) == 0
    assert not is_up(line)


def test_a_name_that_is_not_utf8() -> None:
    bench = Bench()
    assert bench.disconnect(("User-Name", b"\xff\xfe")) == 503
    assert bench.disconnect(("Acct-Session-Id", b"\xff" * 16)) == 503


def test_who_has_not_logged_in_yet_is_not_meant() -> None:
    bench = Bench()
    line = bench.line()
    line.open_lcp()
    assert bench.disconnect(("NAS-Port", line.session.id)) == 503
    assert bench.disconnect(("Acct-Session-Id", line.session.acct_session_id)) == 503
    assert bench.disconnect(("Calling-Station-Id", "02:00:00:00:00:01")) == 503
    line.pap()
    assert bench.disconnect(("NAS-Port", line.session.id)) == 0
    assert line.session.phase is Phase.TERMINATE


@pytest.mark.parametrize(
    ("pair", "outcome"),
    [
        (("NAS-Identifier", "npppd"), 0),
        (("NAS-Identifier", "npppd2"), 403),
        (("NAS-IP-Address", int(IPv4Address("192.0.2.1"))), 0),
        (("NAS-IP-Address", int(IPv4Address("192.0.2.2"))), 403),
        (("NAS-IPv6-Address", IPv6Address("2001:db8::1").packed), 0),
        (("NAS-IPv6-Address", IPv6Address("2001:db8::2").packed), 403),
        (("NAS-IP-Address", b"abc"), 404),
        (("NAS-IPv6-Address", b"abcd"), 404),
    ],
)
def test_who_is_meant(pair: Pair, outcome: int) -> None:
    bench = Bench()
    line = bench.up()
    assert bench.disconnect(pair, ALICE) == outcome
    assert is_up(line) == bool(outcome)


def test_what_we_are_told_to_call_ourselves() -> None:
    own = ip_address("198.51.100.1")
    bench = Bench(radius={"nas_id": "bng7", "nas_addresses": (own,)})
    line = bench.up()
    assert bench.disconnect(ALICE, ("NAS-IP-Address", int(IPv4Address("192.0.2.1")))) == 403
    assert bench.disconnect(ALICE, ("NAS-Identifier", "npppd")) == 403
    assert bench.disconnect(ALICE, ("NAS-IP-Address", int(own)), ("NAS-Identifier", "another")) == 403
    assert is_up(line)
    six = ("NAS-IPv6-Address", IPv6Address("2001:db8::1").packed)
    assert bench.disconnect(ALICE, six, ("NAS-IP-Address", int(own)), ("NAS-Identifier", "bng7")) == 0


# What is refused.


@pytest.mark.parametrize(
    ("pairs", "outcome"),
    [
        ([], 402),
        ([("NAS-Identifier", "npppd")], 402),
        ([ALICE, ("Session-Timeout", 60)], 401),
        ([ALICE, ("Framed-Pool", "other")], 401),
        ([ALICE, ("Service-Type", 17)], 405),
        ([ALICE, ("Service-Type", b"\0")], 404),
        ([("NAS-Port", b"\0\0\0")], 404),
        ([("Framed-IP-Address", b"\0\0\0\0\0")], 404),
        ([ALICE, ("Service-Type", 2), ("Reply-Message", "pay!")], 0),
    ],
)
def test_disconnects_that_are_refused(pairs: list[Pair], outcome: int) -> None:
    bench = Bench()
    line = bench.up()
    assert bench.disconnect(*pairs) == outcome
    assert is_up(line) == bool(outcome)
    assert bench.dae.state()[0].errors == ({outcome: 1} if outcome else {})


@pytest.mark.parametrize(
    ("pairs", "outcome"),
    [
        ([ALICE], 402),
        ([("Session-Timeout", 60)], 402),
        ([("User-Name", "carol"), ("Session-Timeout", 60)], 503),
        ([ALICE, ("Session-Timeout", 60), ("Framed-IP-Netmask", 0xFFFFFF00)], 401),
        ([ALICE, ("Session-Timeout", 60), ("Framed-Route", "10.9.0.0/24")], 401),
        ([ALICE, ("Session-Timeout", 60), ("Framed-Pool", "other")], 401),
        ([ALICE, ("Session-Timeout", 60), ("MS-Primary-DNS-Server", 1)], 401),
        ([ALICE, ("Session-Timeout", 60), ("Port-Limit", 1)], 401),
        ([ALICE, ("Service-Type", 17)], 405),
        ([ALICE, ("Session-Timeout", 60), ("Service-Type", 8)], 405),
        ([ALICE, ("Session-Timeout", 60), ("NAS-Identifier", "other")], 403),
        ([ALICE, ("Session-Timeout", b"\0\x01")], 404),
        ([ALICE, ("Session-Timeout", 60), ("Session-Timeout", 61)], 404),
        ([ALICE, ("Session-Timeout", 60), ("Mikrotik-Rate-Limit", "fast")], 407),
        ([ALICE, ("Session-Timeout", 60), ("Termination-Action", 2)], 407),
        ([ALICE, ("Session-Timeout", 60), ("Cisco-AVPair", "subscriber:command=account-logoff")], 407),
    ],
)
def test_changes_that_are_refused_change_nothing(pairs: list[Pair], outcome: int) -> None:
    bench = Bench()
    line = bench.up()
    before = line.session.profile
    assert bench.change(*pairs) == outcome
    assert line.session.profile is before


def test_attributes_that_are_in_no_dictionary() -> None:
    bench = Bench()
    bench.up()
    body = b"\x01\x07alice" + bytes((27, 6, 0, 0, 0, 60)) + bytes((250, 3, 0))
    head = bytes((COA, 9)) + (20 + len(body)).to_bytes(2, "big")
    request = head + md5(head + bytes(16) + body + SECRET).digest() + body
    bench.put(request)
    assert bench.answer(request).integer("Error-Cause") == 401


def test_state_and_proxy_state_come_back_in_order() -> None:
    bench = Bench()
    bench.up()
    echoed: list[Pair] = [("Proxy-State", b"1"), ("State", b"mine"), ("Proxy-State", b""), ("Proxy-State", b"a" * 253)]
    for code in (DISCONNECT, DISCONNECT, COA):
        answer = bench.ask(code, *echoed[:2], ALICE, *echoed[2:])
        assert [pair for pair in answer.pairs() if pair[0] in ("State", "Proxy-State")] == echoed


def test_more_proxy_state_than_an_answer_has_room_for() -> None:
    bench = Bench()
    line = bench.up()
    proxies: list[Pair] = [("Proxy-State", bytes(251))] * 15
    request = signed(DISCONNECT, [ALICE, *proxies, ("Proxy-State", bytes(220))])
    bench.put(request)
    assert bench.answers == []
    assert is_up(line), "what cannot be answered is not done"
    assert bench.dae.state()[0].discarded == {"too-long": 1}
    stamp: Pair = ("Event-Timestamp", int(WALL))
    assert bench.ask(DISCONNECT, ALICE, stamp, *proxies, ("Proxy-State", bytes(190))).code is Code.DISCONNECT_ACK


# What is changed.


def test_a_change() -> None:
    bench = Bench()
    alice, bob = bench.up("alice"), bench.up("bob")
    changes: list[str] = []
    bench.engine.listeners.append(lambda event, session, now: changes.append(event))
    flow = alice.session.flow
    assert (
        bench.change(
            ALICE,
            ("Session-Timeout", 3600),
            ("Idle-Timeout", 600),
            ("Acct-Interim-Interval", 300),
            ("Class", b"gold"),
            ("Class", b"\0\1"),
            ("Mikrotik-Rate-Limit", "1M/10M"),
        )
        == 0
    )
    profile = alice.session.profile
    assert (profile.session_timeout, profile.idle_timeout, profile.interim) == (3600, 600, 300)
    assert profile.classes == (b"gold", b"\0\1")
    assert profile.police_up is not None
    assert profile.police_down is not None
    # What the subscriber sends comes first, as Mikrotik has it.
    assert (profile.police_up.rate * 8, profile.police_down.rate * 8) == (1_000_000, 10_000_000)
    assert alice.session.flow is flow, "its data goes on"
    assert is_up(alice, bob)
    assert bob.session.profile == Profile()
    assert changes == ["change"]


def test_what_a_change_does_not_name_stays() -> None:
    bench = Bench()
    (line,) = bench.users("alice", 1, Profile(session_timeout=100, idle_timeout=7, classes=(b"old",), filter_id="f"))
    assert bench.change(ALICE, ("Session-Timeout", 200)) == 0
    assert line.session.profile == Profile(session_timeout=200, idle_timeout=7, classes=(b"old",), filter_id="f")


def test_a_change_to_what_is_so_already() -> None:
    bench = Bench()
    (line,) = bench.users("alice", 1, Profile(session_timeout=100))
    assert bench.change(ALICE, ("Session-Timeout", 100)) == 0
    assert line.session.profile == Profile(session_timeout=100)


def test_session_timeout_counts_from_the_start() -> None:
    bench = Bench(lcp_keepalive=False)
    line = bench.up()
    bench.wait(50)
    assert bench.change(ALICE, ("Session-Timeout", 60)) == 0
    bench.wait(9)
    assert is_up(line)
    bench.wait(2)
    assert not is_up(line)
    assert line.session.cause is Cause.SESSION_TIMEOUT


def test_a_session_timeout_that_has_passed() -> None:
    bench = Bench(lcp_keepalive=False)
    line = bench.up()
    bench.wait(50)
    assert bench.change(ALICE, ("Session-Timeout", 40)) == 0
    bench.wait(1)
    assert line.session.cause is Cause.SESSION_TIMEOUT


def test_a_change_of_many() -> None:
    bench = Bench()
    lines = bench.users("alice", 3 * ACT_SLICE)
    assert bench.change(ALICE, ("Session-Timeout", 60), ("Mikrotik-Rate-Limit", "slow")) == 407
    assert {line.session.profile.session_timeout for line in lines} == {0}
    assert bench.change(ALICE, ("Session-Timeout", 60), ("Mikrotik-Rate-Limit", "64k")) == 0
    assert {line.session.profile.session_timeout for line in lines} == {60}


def test_termination_action_with_its_state() -> None:
    bench = Bench()
    line = bench.up()
    answer = bench.ask(COA, ALICE, ("Termination-Action", 1), ("State", b"again"))
    assert (answer.code, answer.octets("State")) == (Code.COA_ACK, b"again")
    assert (line.session.profile.reauthenticate, line.session.profile.state) == (True, b"again")


def test_class_of_a_disconnect_is_for_the_last_record() -> None:
    bench = Bench()
    (line,) = bench.users("alice", 1, Profile(classes=(b"old",), session_timeout=9))
    seen: list[tuple[str, Profile]] = []
    bench.engine.listeners.append(lambda event, session, now: seen.append((event, session.profile)))
    assert bench.disconnect(ALICE, ("Class", b"why"), ("Class", b"else")) == 0
    last = Profile(classes=(b"why", b"else"), session_timeout=9)
    # What the records of a session have in common is made when something changes.
    assert seen == [("change", last), ("stop", last)]
    assert not is_up(line)


# Slices, and what waits.


def test_keys_without_an_index_are_looked_for_in_slices() -> None:
    bench = Bench()
    bench.users("alice", 2 * SLICE)
    bob = dialled(bench)
    request = signed(DISCONNECT, [("Calling-Station-Id", "02:00:00:00:00:07")])
    bench.put(request)
    assert bench.answers == []
    assert bench.dae.busy
    assert bench.finish() == 2
    assert bench.answer(request).code is Code.DISCONNECT_ACK
    assert not is_up(bob)
    assert bench.engine.bound == 2 * SLICE


def test_an_index_spares_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.users("alice", 2 * SLICE)
    bob = dialled(bench)
    monkeypatch.setattr(dae_module, "SLICE", 1)
    # Nor is it that of a name that many have.
    port = next(iter(bench.engine.sessions))
    bench.put(signed(DISCONNECT, [ALICE, ("NAS-Port", port)]))
    bench.put(signed(DISCONNECT, [("Calling-Station-Id", "02:00:00:00:00:07"), ("User-Name", "bob")]))
    assert len(bench.answers) == 2
    assert bench.engine.bound == 2 * SLICE - 1
    assert not is_up(bob)


def test_many_are_ended_in_slices() -> None:
    bench = Bench()
    lines = bench.users("alice", 5 * ACT_SLICE)
    bench.put(signed(DISCONNECT, [ALICE]))
    assert bench.engine.bound == 4 * ACT_SLICE
    assert bench.answers == []
    # One of those that are still to be ended ends by itself.
    lines[-1].session.end(Cause.USER_REQUEST, "test", bench.now)
    assert bench.finish() == 4
    assert bench.engine.bound == 0
    assert lines[-1].session.cause is Cause.USER_REQUEST
    assert len(bench.answers) == 1


def test_a_change_in_between_is_not_lost() -> None:
    bench = Bench()
    lines = bench.users("alice", 3 * ACT_SLICE)
    bench.put(signed(COA, [ALICE, ("Session-Timeout", 1000)]))
    assert bench.dae.busy
    last = lines[-1].session
    bench.put(signed(COA, [("NAS-Port", last.id), ("Idle-Timeout", 77)]))
    assert len(bench.answers) == 1, "that of one session waits for nobody"
    bench.finish()
    assert (last.profile.session_timeout, last.profile.idle_timeout) == (1000, 77)


def test_so_many_may_wait() -> None:
    bench = Bench()
    bench.users("alice", SLICE + 1)
    nobody: Pair = ("Calling-Station-Id", "nobody")
    for port in range(MAX_WAITING):
        bench.put(signed(DISCONNECT, [nobody]), port=1000 + port)
    assert bench.answers == []
    one_more = signed(DISCONNECT, [nobody])
    bench.put(one_more)
    assert bench.answer(one_more, finish=False).integer("Error-Cause") == 506
    other = signed(DISCONNECT, [nobody])
    bench.put(other, OTHER)
    assert bench.answers == [], "another client has room of its own"
    assert [state.waiting for state in bench.dae.state()] == [MAX_WAITING, 1]
    bench.finish()
    assert len(bench.answers) == MAX_WAITING + 1
    assert [state.waiting for state in bench.dae.state()] == [0, 0]


def test_requests_take_turns() -> None:
    bench = Bench()
    bench.users("alice", 4 * SLICE)
    bobs = bench.users("bob", ACT_SLICE + 1)
    bench.put(signed(DISCONNECT, [("Calling-Station-Id", "nobody")]))
    bench.put(signed(DISCONNECT, [("User-Name", "bob")]))
    assert bench.answers == []
    bench.dae.work(bench.now)
    bench.dae.work(bench.now)
    assert len(bench.answers) == 1, "the long one lets the short one pass"
    assert not is_up(*bobs)
    assert bench.finish() == 3
    assert len(bench.answers) == 2


@pytest.mark.parametrize(("code", "error"), [(DISCONNECT, 504), (COA, 506)])
def test_a_mistake_of_ours(
    code: Code, error: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    bench.up()

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Session, "end", fail)
    monkeypatch.setattr(Session, "apply", fail)
    answer = bench.ask(code, ALICE, *([("Session-Timeout", 60)] if code is COA else []))
    assert answer.integer("Error-Cause") == error
    assert "broken" in caplog.text


def test_a_change_that_fails_half_way_is_undone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    lines = bench.users("alice", 2 * ACT_SLICE, Profile(session_timeout=9))
    last = lines[-1].session
    real = Session.apply

    def apply(session: Session, profile: Profile, now: float) -> None:
        real(session, profile, now)
        if session is last and profile.session_timeout == 60:
            raise RuntimeError("broken")

    monkeypatch.setattr(Session, "apply", apply)
    assert bench.change(ALICE, ("Session-Timeout", 60)) == 506
    assert {line.session.profile.session_timeout for line in lines} == {9}
    assert bench.change(ALICE, ("Session-Timeout", 61)) == 0
    assert {line.session.profile.session_timeout for line in lines} == {61}
    assert "broken" in caplog.text


# Reloads, and what is counted.


def test_clients_of_a_reload() -> None:
    bench = Bench()
    bench.up()
    assert bench.disconnect(("User-Name", "carol")) == 503
    bench.reconfigure(clients=((CLIENT, "another"),))
    bench.put(signed(DISCONNECT, [ALICE]))
    bench.put(signed(DISCONNECT, [ALICE]), OTHER)
    assert bench.answers == []
    assert bench.dae.strangers == 1
    (state,) = bench.dae.state()
    assert (state.errors, state.discarded) == ({503: 1}, {"unauthentic": 1})
    request = signed(DISCONNECT, [ALICE], secret=b"another")
    bench.put(request)
    assert bench.answer(request, b"another").code is Code.DISCONNECT_ACK


def test_what_waits_is_answered_as_it_was_asked() -> None:
    bench = Bench()
    bench.users("alice", 2 * ACT_SLICE)
    request = signed(DISCONNECT, [ALICE])
    bench.put(request)
    bench.reconfigure(clients=((CLIENT, "another"),))
    assert bench.answer(request).code is Code.DISCONNECT_ACK


def test_what_is_counted() -> None:
    bench = Bench()
    bench.users("alice", 2)
    bench.disconnect(("User-Name", "carol"))
    bench.change(ALICE, ("Session-Timeout", 60))
    bench.change(ALICE)
    bench.disconnect(ALICE)
    state = bench.dae.state()[0]
    assert state.address == "192.0.2.10"
    assert (state.disconnects, state.disconnect_acks, state.disconnect_naks) == (2, 1, 1)
    assert (state.changes, state.change_acks, state.change_naks) == (2, 1, 1)
    assert state.errors == {503: 1, 402: 1}
    assert bench.dae.state()[1].disconnects == 0


def test_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "npppy.radius")
    bench = Bench()
    bench.up()
    bench.disconnect(ALICE)
    bench.disconnect(ALICE, ("NAS-Identifier", "other"))
    lines = [record.getMessage() for record in caplog.records if record.name == "npppy.radius"]
    assert lines == [
        "dae client=192.0.2.10 id=1 code=DISCONNECT_ACK sessions=1",
        'dae client=192.0.2.10 id=2 code=DISCONNECT_NAK error=403 reason="NAS-Identifier"',
    ]
    assert SECRET.decode() not in caplog.text
