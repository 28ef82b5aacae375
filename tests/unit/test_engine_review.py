"""Mistakes that a second look at the engine has found, each with what goes wrong without its cure."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from npppy.aaa.base import Accept
from npppy.aaa.local import LocalUsers
from npppy.config.model import AddressRange, AuthMethod, Bind, Realm
from npppy.pool import Pool
from npppy.ppp import engine as engine_module
from npppy.ppp import options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.station import Phase
from npppy.wheel import TICK, Timed, Wheel

from .ppp_rig import HERE, Line, Rig
from .test_auth import respond_md5


def ip(text: str) -> int:
    return int(IPv4Address(text))


def login(rig: Rig, user: str = "alice") -> Line:
    line = rig.line()
    line.open_lcp()
    line.pap(user)
    return line


# The automaton.


@pytest.mark.parametrize(
    ("code", "data"), [(proto.TERMINATE_REQUEST, b""), (proto.TERMINATE_ACK, b""), (99, b"x"), (7, b"\x0c\x01\0\x04")]
)
def test_what_comes_before_the_first_request_does_not_stop_the_silent_timer(code: int, data: bytes) -> None:
    line = Rig().line()
    line.give(proto.LCP, code, 1, data)
    line.take()
    line.rig.wait(3.3)
    assert [packet[0] for packet in line.take(proto.LCP)] == [proto.CONFIGURE_REQUEST]


def test_a_code_reject_of_ours_does_not_spoil_the_request_that_is_out() -> None:
    line = Rig().line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    identifier, data = line.find(proto.LCP, proto.CONFIGURE_REQUEST)
    seen = set()
    for _ in range(3):
        line.give(proto.LCP, 99, 5)
        # Section 5.6: another identifier for each.
        seen.add(line.find(proto.LCP, proto.CODE_REJECT)[0])
    assert len(seen) == 3
    line.give(proto.LCP, proto.CONFIGURE_ACK, identifier, data)
    assert line.session.lcp_open


def test_a_request_of_very_many_options_costs_little_and_is_not_answered() -> None:
    rig = Rig()
    line = login(rig)
    asked = 0

    def source(count: int) -> bytes:
        nonlocal asked
        asked += 1
        return bytes(count)

    rig.engine.random = source
    for protocol in (proto.LCP, proto.IPCP):
        line.take()
        # Each Naked by one three times its size: the answer would be no frame any more.
        line.give(protocol, proto.CONFIGURE_REQUEST, 9, b"\x05\x02" * 740)
        assert line.take() == []
    assert rig.engine.malformed["too-many-options"] == 2
    assert asked < 5


def test_a_session_that_ends_while_ipcp_looks_for_an_address_stays_ended() -> None:
    pool = (AddressRange(first=IPv4Address("10.0.0.1"), last=IPv4Address("10.0.0.2")),)
    rig = Rig(ipcp={"ranges": pool})
    rig.aaa.accept["alice"] = Accept(address_by_peer=True)
    other = rig.up("bob")
    line = login(rig)
    line.ack(proto.IPCP)
    line.take()
    # All is granted but there is no address to Nak with: the request must not open IPCP of a session that ended.
    line.give(proto.IPCP, proto.CONFIGURE_REQUEST, 1)
    assert (line.session.phase, line.session.cause) == (Phase.TERMINATE, Cause.SERVICE_UNAVAILABLE)
    assert [packet[0] for packet in line.take()] == [proto.TERMINATE_REQUEST], "and nothing of IPCP"
    rig.wait(10)
    other.session.end(Cause.ADMIN_RESET, "test", rig.now)
    rig.wait(10)
    rig.nothing_left()


def test_an_accm_that_was_not_granted_does_not_count() -> None:
    rig = Rig()
    line = rig.line(unwanted=frozenset())
    seen: list[int] = []
    line.lcp_opened = lambda *, send_accm, receive_accm, pfc, acfc: seen.append(send_accm)  # type: ignore[method-assign]
    line.give(proto.LCP, 1, 1, options.encode([(proto.OPT_ACCM, bytes(4)), (200, b"x")]))
    line.open_lcp([])
    assert seen == [0xFFFFFFFF]


# LCP and the session.


def test_a_protocol_that_we_do_not_speak_may_be_rejected() -> None:
    rig = Rig(authentication_methods=(AuthMethod.CHAP,))
    line = rig.line()
    line.open_lcp()
    for protocol in (b"\x80\xfd", b"\x80\x57", b"\xc0\x23", b"\x00\x57"):
        line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, protocol + b"\x01\x01\x00\x04")
    assert line.session.phase is Phase.AUTHENTICATE
    line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, b"\xc2\x23\x01\x01\x00\x04")
    assert line.session.reason == "the peer rejects chap"


@pytest.mark.parametrize("stage", ["silent", "lcp", "auth", "ipcp", "up"])
def test_a_path_that_becomes_smaller_counts_at_every_stage(stage: str) -> None:
    rig = Rig(lcp_keepalive=False)
    line = rig.line()
    if stage != "silent":
        line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    if stage in ("auth", "ipcp", "up"):
        line.ack(proto.LCP)
    if stage in ("ipcp", "up"):
        line.pap()
    if stage == "up":
        line.open_ipcp()
    line.take()
    line.link = replace(line.link, max_mru=1400)
    line.session.changed(line.link, rig.now)
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 2, options.encode([(proto.OPT_MRU, (1492).to_bytes(2, "big"))]))
    packets = line.take(proto.LCP)
    asked = [options.decode(packet[4:]) for packet in packets if packet[0] == proto.CONFIGURE_REQUEST][-1]
    assert dict(asked)[proto.OPT_MRU] == (1400).to_bytes(2, "big")
    assert [packet[4:] for packet in packets if packet[0] == proto.CONFIGURE_NAK] == [b"\x01\x04\x05\x78"]
    rig.wait(60)
    rig.nothing_left()


def info_lines(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelno >= logging.INFO for record in caplog.records)


@pytest.mark.parametrize("how", ["identification", "code-reject", "protocol-reject", "lcp", "ipcp"])
def test_a_peer_cannot_flood_the_log(how: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("npppy").propagate = True
    rig = Rig()
    line = rig.up() if how == "ipcp" else rig.line()
    if how not in ("ipcp", "lcp"):
        line.open_lcp()
    with caplog.at_level(logging.INFO, logger="npppy"):
        for number in range(500):
            if how == "identification":
                line.give(proto.LCP, proto.IDENTIFICATION, 1, b"\0\0\0\0windows")
            elif how == "code-reject":
                line.give(proto.LCP, proto.CODE_REJECT, 1, b"\x0c\x01\0\x04")
            elif how == "protocol-reject":
                line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, b"\x80\x57\x01\x01\x00\x04")
            elif how == "lcp":
                line.give(proto.LCP, proto.CONFIGURE_REQUEST, number & 0xFF, b"")
                line.ack(proto.LCP)
            else:
                line.give(proto.IPCP, proto.CONFIGURE_REQUEST, 1, b"\x03\x06" + line.session.address.to_bytes(4, "big"))
                line.ack(proto.IPCP)
    assert 1 <= info_lines(caplog) <= 30
    caplog.clear()
    # The one who does so now and then is heard.
    with caplog.at_level(logging.INFO, logger="npppy"):
        line.session.end(Cause.ADMIN_RESET, "test", rig.now)
    assert info_lines(caplog) == 1


def test_what_a_peer_says_of_itself_is_logged_in_few_words(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("npppy").propagate = True
    rig = Rig()
    line = rig.line()
    with caplog.at_level(logging.INFO, logger="npppy"):
        line.give(proto.LCP, proto.IDENTIFICATION, 1, bytes(4) + b"\xff" * 1400)
    (record,) = caplog.records
    assert len(record.getMessage()) < 600


def test_a_peer_that_copies_our_magic_number_into_its_replies_is_no_loop() -> None:
    """Some do; pppd passes over such a reply.  A line that is looped back shows us our own requests."""
    rig = Rig(lcp_keepalive_interval=30, lcp_keepalive_retry_interval=5, lcp_keepalive_max_retries=3)
    line = rig.up()
    line.take()
    rig.wait(30.2)
    identifier, data = line.find(proto.LCP, proto.ECHO_REQUEST)
    line.give(proto.LCP, proto.ECHO_REPLY, identifier, data)
    assert line.session.phase is Phase.UP
    rig.wait(20)
    assert line.session.cause is Cause.LOST_CARRIER, "nor is it an answer"


# Limits, addresses and routes.


def two_realms(rig: Rig, **limits: Any) -> None:
    """Another tunnel, whose users are in a realm of their own."""
    other = Realm(name="OTHER", where=HERE, type="local", **limits)
    tunnel = replace(rig.tunnel, name="SECOND")
    binds = (*rig.config.binds, Bind(tunnel=tunnel, realm=other, interface=rig.site.conf))
    rig.config = replace(rig.config, tunnels=(rig.tunnel, tunnel), realms=(rig.realm, other), binds=binds)
    rig.engine.configure(rig.config, {"tun0": rig.site}, rig.now)


def on_second_tunnel(rig: Rig, user: str = "alice") -> Line:
    first, rig.tunnel = rig.tunnel, rig.config.tunnels[1]
    try:
        line = rig.line()
    finally:
        rig.tunnel = first
    line.open_lcp()
    line.pap(user)
    return line


def test_the_daemons_limit_of_a_user_counts_over_all_realms() -> None:
    rig = Rig(config={"user_max_session": 1})
    two_realms(rig)
    rig.up("alice")
    assert on_second_tunnel(rig).session.reason == "user-max-session"
    assert on_second_tunnel(rig, "bob").session.phase is Phase.NETWORK


def test_the_limit_of_a_realm_counts_in_this_realm_only() -> None:
    rig = Rig(realm={"user_max_session": 1})
    two_realms(rig, user_max_session=1)
    rig.up("alice")
    assert on_second_tunnel(rig).session.phase is Phase.NETWORK
    assert on_second_tunnel(rig).session.reason == "user-max-session"


def test_names_that_end_differently_are_different_users() -> None:
    rig = Rig(config={"user_max_session": 1})
    login_of = rig.engine.find_login
    assert login_of(rig.tunnel, "alice@a").user != login_of(rig.tunnel, "alice@b").user  # type: ignore[union-attr]
    assert login_of(rig.tunnel, "CORP\\alice").user == "alice"  # type: ignore[union-attr]


def test_two_users_of_one_network_do_not_take_each_others_route_away() -> None:
    rig = Rig()
    rig.aaa.accept["alice"] = Accept(address=ip("203.0.113.9"), prefixlen=29)
    rig.aaa.accept["bob"] = Accept(address=ip("203.0.113.10"), prefixlen=29)
    rig.up("alice")
    second = login(rig, "bob")
    assert second.session.reason == "network 203.0.113.8/29 cannot be had: it is in use"
    assert rig.routes.networks == [IPv4Network("203.0.113.8/29")]
    rig.wait(10)
    for session in list(rig.engine.sessions.values()):
        session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()
    # Free again.
    assert rig.up("bob").session.ip == "203.0.113.10"


def test_the_route_of_a_pool_does_not_go_with_a_session() -> None:
    pool = (AddressRange(first=IPv4Address("203.0.113.0"), last=IPv4Address("203.0.113.7")),)
    rig = Rig(ipcp={"ranges": pool})
    rig.aaa.accept["alice"] = Accept(address=ip("203.0.113.2"), prefixlen=29)
    assert rig.site.pool.aggregates() == [IPv4Network("203.0.113.0/29")]
    line = rig.up("alice")
    assert rig.routes.networks == [], "there is one already"
    line.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()


def test_a_session_keeps_its_route_when_a_reload_takes_its_pool_away() -> None:
    rig = Rig()
    line, fixed = rig.up("alice"), Accept(address=ip("192.0.2.2"))
    rig.aaa.accept["bob"] = fixed
    rig.up("bob")
    assert rig.routes.networks == [IPv4Network("192.0.2.2/32")]
    moved = replace(
        rig.site.conf.ipcp, ranges=(AddressRange(first=IPv4Address("192.0.2.0"), last=IPv4Address("192.0.2.255")),)
    )
    interface = replace(rig.site.conf, ipcp=moved)
    site = replace(rig.site, conf=interface, pool=Pool(moved, rig.space, [interface.address]))
    rig.site.pool.close()
    config = replace(rig.config, interfaces=(interface,), ipcps=(moved,))
    rig.engine.configure(config, {"tun0": site}, rig.now)
    # alice's address is in no pool any more; bob's now is.
    assert rig.routes.networks == [IPv4Network((line.session.address, 32))]
    rig.engine.configure(config, {"tun0": site}, rig.now)
    assert rig.routes.networks == [IPv4Network((line.session.address, 32))]
    for session in list(rig.engine.sessions.values()):
        session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()


def test_replace_ends_nobody_for_an_address_that_another_user_has() -> None:
    rig = Rig(config={"user_max_session": 1, "duplicate_replace": True})
    first = rig.up("alice")
    rig.aaa.accept["bob"] = Accept(address=ip("10.0.0.4"))
    rig.up("bob")
    rig.aaa.accept["alice"] = Accept(address=ip("10.0.0.4"))
    assert login(rig, "alice").session.reason.startswith("address 10.0.0.4 cannot be had")
    assert first.session.phase is Phase.UP


def test_a_flood_of_half_open_sessions_does_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_HALF_OPEN", 3)
    rig = Rig()
    up = rig.up("bob")
    lines = [rig.line() for _ in range(3)]
    lines[1].open_lcp()
    newest = rig.line()
    # Those that came first have had the most time.
    assert [line.closed for line in lines] == [Cause.SERVICE_UNAVAILABLE, None, None]
    assert rig.engine.half_open == 3
    rig.line()
    assert lines[1].closed is Cause.SERVICE_UNAVAILABLE
    assert newest.up()
    assert up.session.phase is Phase.UP
    for session in list(rig.engine.sessions.values()):
        session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()


def test_sessions_of_strangers_cannot_flood_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("npppy").propagate = True
    monkeypatch.setattr(engine_module, "MAX_HALF_OPEN", 3)
    rig = Rig()
    with caplog.at_level(logging.INFO, logger="npppy"):
        for _ in range(3000):
            rig.line()
        assert 1 <= info_lines(caplog) <= 1000
        caplog.clear()
        rig.wait(10)
        rig.line()
        assert info_lines(caplog) >= 1, "it is heard again later"
        caplog.clear()
        # Whoever has named itself has a line in any case.
        for _ in range(2000):
            rig.line()
        caplog.clear()
        assert login(rig, "mallory").session.phase is Phase.TERMINATE
        assert info_lines(caplog) == 3, "LCP is open, TUNNELDENY, and its end"


# Authentication.


def test_who_stands_in_for_an_unknown_user_costs_what_a_user_costs() -> None:
    # A password that is no UTF-8 takes a longer way through MS-CHAPv2 than those of most users.
    for number in range(50):
        users = LocalUsers(None, lambda count, number=number: bytes((200 + number,)) * count)  # type: ignore[misc]
        assert users._nobody.isascii()
        assert len(users._nobody) >= 16


def test_a_second_response_cannot_better_the_first() -> None:
    rig = Rig(authentication_methods=(AuthMethod.CHAP,))
    line = rig.line()
    line.open_lcp()
    rig.aaa.hold = True
    assert respond_md5(line, "alice", b"wrong") == b""
    line.give(proto.CHAP, 2, 0, b"\x10" + bytes(16) + b"alice")
    rig.aaa.waiting.pop()(rig.now)
    assert line.session.phase is Phase.TERMINATE
    assert len(rig.aaa.requests) == 1


# Timers.


class Alarm(Timed):
    def expire(self, now: float) -> None: ...


def test_deadlines_that_are_disarmed_long_before_their_time_leave_nothing() -> None:
    wheel = Wheel(0.0)
    kept = [Alarm() for _ in range(100)]
    for number, alarm in enumerate(kept):
        wheel.arm(alarm, 1e6 + number)
    for number in range(50_000):
        alarm = Alarm()
        wheel.arm(alarm, 86400 + number * TICK)
        wheel.disarm(alarm)
    assert len(wheel) == 100
    assert len(wheel._buckets) < 10_000
    assert len(wheel._ticks) < 10_000
    wheel.advance(2e6)
    assert len(wheel) == 0
