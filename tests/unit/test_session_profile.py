"""What a realm says of a session: limits of time and rate, routes, pools, names, and logging in again."""

from __future__ import annotations

from dataclasses import replace
from hashlib import md5
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from npppy.aaa.base import Accept, Challenge, Eap, Failed, Profile, Reject
from npppy.config.model import AddressRange, AuthMethod, Ipcp, Mppe
from npppy.pipex.base import Police
from npppy.pipex.null import NullFlow
from npppy.pool import Pool
from npppy.ppp import options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.mppe import Keys
from npppy.ppp.session import Session
from npppy.ppp.station import Phase

from .mppe_rig import Duo
from .ppp_rig import HERE, USERS, Line, Rig

NETWORK = IPv4Network("192.0.2.0/28")
HOST = IPv4Network("192.0.2.7/32")
AGAIN = Profile(session_timeout=600, reauthenticate=True)


def rig_with(accept: Accept, method: AuthMethod = AuthMethod.PAP, **settings: Any) -> Rig:
    rig = Rig(authentication_methods=(method,), lcp_keepalive=False, **settings)
    rig.aaa.accept["alice"] = accept
    return rig


def respond(line: Line, user: str = "alice", password: bytes | None = None) -> None:
    identifier, data = line.find(proto.CHAP, 1)
    value = data[1:17]
    secret = USERS[user] if password is None else password
    digest = md5(bytes((identifier,)) + secret + value).digest()
    line.give(proto.CHAP, 2, identifier, b"\x10" + digest + user.encode())


def chap_up(rig: Rig) -> Line:
    line = rig.line()
    line.open_lcp()
    respond(line)
    line.open_ipcp()
    assert line.session.phase is Phase.UP
    line.take()
    return line


# Time.


def test_session_timeout_ends_the_session() -> None:
    rig = rig_with(Accept(profile=Profile(session_timeout=600)))
    session = rig.up().session
    rig.wait(599)
    assert session.phase is Phase.UP
    rig.wait(2)
    assert (session.phase, session.cause) == (Phase.TERMINATE, Cause.SESSION_TIMEOUT)


def test_session_timeout_counts_from_the_time_that_data_may_pass() -> None:
    rig = rig_with(Accept(profile=Profile(session_timeout=10)))
    line = rig.line()
    line.open_lcp()
    line.pap()
    rig.wait(8)
    line.open_ipcp()
    rig.wait(9)
    assert line.session.phase is Phase.UP
    rig.wait(2)
    assert line.session.cause is Cause.SESSION_TIMEOUT


@pytest.mark.parametrize(("own", "lasts"), [(None, 100), (50, 50), (0, 0)])
def test_the_realms_idle_timeout_replaces_the_tunnels(own: int | None, lasts: int) -> None:
    rig = rig_with(Accept(profile=Profile(idle_timeout=own)), idle_timeout=100)
    session = rig.up().session
    rig.wait((lasts or 1000) - 1)
    assert session.phase is Phase.UP
    rig.wait(2)
    assert session.phase is (Phase.TERMINATE if lasts else Phase.UP)
    assert not lasts or session.cause is Cause.IDLE_TIMEOUT


def test_the_peer_logs_in_again_where_its_realm_wants_it() -> None:
    again = Profile(session_timeout=600, reauthenticate=True, state=b"token")
    rig = rig_with(Accept(profile=again), AuthMethod.CHAP)
    line = chap_up(rig)
    flow, address = line.session.flow, line.session.address
    rig.wait(601)
    rig.aaa.accept["alice"] = Accept(profile=Profile(session_timeout=300, classes=(b"new",)))
    line.give(proto.LCP, proto.ECHO_REQUEST, 1, bytes(4))
    respond(line)
    assert [packet[0] for packet in line.take(proto.CHAP)] == [3]
    request = rig.aaa.requests[-1]
    assert (request.state, request.address) == (b"token", address)
    assert line.session.phase is Phase.UP
    # Nothing of its data has been touched.
    assert line.session.flow is flow
    assert line.session.profile.classes == (b"new",)
    rig.wait(299)
    assert line.session.phase is Phase.UP
    rig.wait(2)
    assert line.session.cause is Cause.SESSION_TIMEOUT
    line.give(proto.LCP, proto.TERMINATE_ACK, line.find(proto.LCP, proto.TERMINATE_REQUEST)[0])
    rig.nothing_left()


def test_a_wrong_password_the_second_time_ends_the_session() -> None:
    rig = rig_with(Accept(profile=Profile(session_timeout=600, reauthenticate=True)), AuthMethod.CHAP)
    line = chap_up(rig)
    rig.wait(601)
    respond(line, password=b"wrong")
    assert (line.session.phase, line.session.cause) == (Phase.TERMINATE, Cause.USER_ERROR)


def test_silence_the_second_time_ends_the_session() -> None:
    rig = rig_with(Accept(profile=Profile(session_timeout=600, reauthenticate=True)), AuthMethod.CHAP)
    line = chap_up(rig)
    rig.wait(601 + 40)
    assert line.session.phase >= Phase.TERMINATE
    assert line.session.reason == "no CHAP response"


def test_a_session_that_logs_in_again_may_negotiate_anew() -> None:
    rig = rig_with(Accept(profile=Profile(session_timeout=600, reauthenticate=True)), AuthMethod.CHAP)
    line = chap_up(rig)
    rig.aaa.hold = True
    rig.wait(601)
    respond(line)
    line.open_lcp()
    assert rig.aaa.cancelled == 1
    rig.aaa.hold = False
    respond(line)
    line.open_ipcp(line.session.address)
    assert line.session.phase is Phase.UP


def test_ipcp_that_negotiates_anew_goes_on_while_the_peer_logs_in_again() -> None:
    rig = rig_with(Accept(profile=AGAIN), AuthMethod.CHAP)
    line = chap_up(rig)
    session = line.session
    rig.wait(601)
    line.give(proto.IPCP, proto.CONFIGURE_REQUEST, 9, options.encode([(3, session.address.to_bytes(4, "big"))]))
    ipcp = session.ipcp
    assert session.phase is Phase.NETWORK
    respond(line)
    assert session.ipcp is ipcp
    line.ack(proto.IPCP)
    assert session.phase is Phase.UP
    # It is asked once more when its time is over again.
    rig.wait(599)
    assert not line.take(proto.CHAP)[1:]
    rig.wait(2)
    respond(line)
    session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()


def test_keys_stay_when_the_peer_logs_in_again() -> None:
    duo = Duo(Mppe.REQUIRED)
    users = duo.rig.aaa
    users.accept.update((name, Accept(profile=AGAIN)) for name in USERS)
    assert duo.run(5, until=lambda: duo.both_up)
    mppe, logins = duo.session.mppe, len(users.requests)
    duo.run(610)
    assert len(users.requests) == logins + 1
    assert duo.both_up
    assert duo.session.mppe is mppe
    duo.check_data()


def test_data_that_is_in_the_clear_cannot_be_wanted_encrypted() -> None:
    rig = rig_with(Accept(profile=AGAIN), AuthMethod.CHAP)
    line = chap_up(rig)
    rig.wait(601)
    must = Accept(mppe=Mppe.REQUIRED, keys=Keys(bytes(16), bytes(16)))
    rig.aaa.answer = lambda request: must  # type: ignore[method-assign]
    respond(line)
    assert line.session.reason == "its packets must be encrypted from now on"


def test_the_peer_logs_in_again_by_eap_and_its_carrier_goes_meanwhile() -> None:
    rig = rig_with(Accept(profile=replace(AGAIN, state=b"token")), AuthMethod.EAP)
    line = rig.line()
    line.open_lcp()
    line.eap()
    line.open_ipcp()
    rig.wait(601)
    asked = len(rig.aaa.requests)
    line.eap()
    assert rig.aaa.requests[asked].state == b"token"
    assert line.session.auth_server is None
    rig.wait(601)
    rig.aaa.hold = True
    line.give(proto.EAP, 2, line.find(proto.EAP, 1)[0], b"\x01alice")
    line.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    assert rig.aaa.cancelled == 1
    rig.nothing_left()


def test_pap_cannot_be_asked_again() -> None:
    rig = rig_with(Accept(profile=Profile(session_timeout=600, reauthenticate=True)))
    session = rig.up().session
    rig.wait(601)
    assert session.cause is Cause.SESSION_TIMEOUT


# Changes while it is up.


def test_a_change_holds_at_once() -> None:
    rig = rig_with(Accept(profile=Profile(session_timeout=600)))
    session = rig.up().session
    events: list[tuple[str, Session]] = []
    rig.engine.listeners.append(lambda event, session, now: events.append((event, session)))
    rig.wait(100)
    session.apply(Profile(session_timeout=150), rig.now)
    assert events == [("change", session)]
    session.apply(Profile(session_timeout=150), rig.now)
    assert len(events) == 1
    rig.wait(51)
    assert session.cause is Cause.SESSION_TIMEOUT


def test_a_change_is_told_while_lcp_negotiates_anew() -> None:
    """The record of the end has it, should it come to nothing."""
    rig = rig_with(Accept())
    line = rig.up()
    events: list[str] = []
    rig.engine.listeners.append(lambda event, session, now: events.append(event))
    line.open_lcp()
    line.session.apply(Profile(classes=(b"x",)), rig.now)
    assert events == ["change"]


def test_a_data_path_that_is_opened_anew_is_told() -> None:
    """What the one before had counted is in no map any more."""
    rig = Rig()
    line = rig.up()
    events: list[str] = []
    rig.engine.listeners.append(lambda event, session, now: events.append(event))
    line.link = replace(line.link, encap="elsewhere")
    line.session.changed(line.link, rig.now, moved=True)
    assert events == ["change"]


def test_rates_reach_the_data_path_and_an_operators_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[Police | None, Police | None]] = []
    monkeypatch.setattr(NullFlow, "police", lambda flow, up, down: limits.append((up, down)))
    slow, fast, own = Police(1000, 15000), Police(9000, 15000), Police(500, 15000)
    rig = rig_with(Accept(profile=Profile(police_up=slow, police_down=fast)))
    session = rig.up().session
    assert session.limits == (slow, fast)
    session.apply(Profile(police_up=fast, police_down=fast), rig.now)
    assert limits == [(fast, fast)]
    session.apply(Profile(police_up=fast, police_down=fast, filter_id="x"), rig.now)
    assert len(limits) == 1
    rig.engine.wish(session.id, police_up=own)
    session.limit()
    assert limits[-1] == (own, fast)
    rig.engine.wish(session.id, police_up=None)
    session.limit()
    assert limits[-1] == (fast, fast)


# Names.


def test_a_user_has_the_name_that_its_realm_gives() -> None:
    rig = rig_with(Accept(profile=Profile(username="customer-7")))
    session = rig.up().session
    assert session.name == "customer-7"
    assert rig.engine.by_user("customer-7") == [session]
    assert rig.engine.by_user("alice") == []
    session.apply(Profile(username="customer-8"), rig.now)
    assert (rig.engine.by_user("customer-7"), rig.engine.by_user("customer-8")) == ([], [session])
    session.end(Cause.ADMIN_RESET, "test", rig.now)
    assert rig.engine.by_user("customer-8") == []
    assert rig.engine._renamed == {}


def test_limits_go_by_the_name_that_its_realm_gives() -> None:
    """With EAP, all may call themselves alike, or one by many names."""
    rig = Rig()
    for name in ("alice", "bob"):
        rig.aaa.accept[name] = Accept(port_limit=1, profile=Profile(username="customer-7"))
    line = rig.up("alice")
    other = rig.line()
    other.open_lcp()
    other.pap("bob")
    assert other.session.reason == "user-max-session"
    rig.aaa.accept["alice"] = Accept(port_limit=1, profile=Profile(username="customer-8"))
    assert rig.up("alice").session.phase is Phase.UP
    assert line.session.phase is Phase.UP


def test_look_ups_by_the_session_id_of_accounting() -> None:
    rig = Rig()
    session = rig.up().session
    rig.engine.boot = 0xDEADBEEF
    assert session.acct_session_id == f"deadbeef{session.id:08x}"
    assert rig.engine.by_session_id(session.acct_session_id) is session
    assert rig.engine.by_session_id(session.acct_session_id.upper()) is session
    other = "00000000" + session.acct_session_id[8:]
    for text in ("", other, "deadbeefffffffff", "x" * 16, "deadbeef0000_000", "²" * 16):
        assert rig.engine.by_session_id(text) is None


# Addresses.


def test_networks_behind_the_peer_are_routed_and_given_back() -> None:
    rig = rig_with(Accept(routes=(NETWORK, IPv4Network("198.51.100.8/32"))))
    line = rig.up()
    assert rig.routes.networks == [NETWORK, IPv4Network("198.51.100.8/32")]
    rig.aaa.accept["bob"] = Accept(routes=(NETWORK,))
    other = rig.line()
    other.open_lcp()
    other.pap("bob")
    assert other.session.reason == "network 192.0.2.0/28 cannot be had: it is in use"
    line.session.end(Cause.ADMIN_RESET, "test", rig.now)
    assert rig.routes.networks == []
    assert rig.engine._by_network == {}
    assert rig.up("bob").session.phase is Phase.UP


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_an_address_is_had_once_whether_it_is_the_peers_or_behind_it(swapped: bool, replaced: bool) -> None:
    rig = Rig(config={"duplicate_replace": replaced})
    own, behind = Accept(address=int(HOST.network_address)), Accept(routes=(HOST,))
    first, second = (behind, own) if swapped else (own, behind)
    rig.aaa.accept["alice"] = first
    line = rig.up()
    rig.aaa.accept["bob"] = second
    other = rig.line()
    other.open_lcp()
    other.pap("bob")
    assert other.session.reason.endswith(" cannot be had: it is in use")
    assert rig.routes.networks == [HOST]
    rig.aaa.accept["alice"] = second
    again = rig.line()
    again.open_lcp()
    again.pap()
    assert (again.session.phase is Phase.NETWORK) is (line.session.phase is Phase.TERMINATE) is replaced
    assert rig.routes.networks == [HOST]
    for each in (line, again):
        each.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    other.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()


def test_no_pool_gives_an_address_that_is_behind_another() -> None:
    rig = rig_with(Accept(routes=(IPv4Network("10.0.0.2/32"), IPv4Network("10.0.0.4/32"))))
    rig.aaa.accept["bob"] = Accept()
    lines = [rig.up(), rig.line()]
    assert lines[0].session.ip == "10.0.0.3"
    lines[1].open_lcp()
    lines[1].pap("bob")
    assert lines[1].session.reason == "the pool of ipcp POOL is exhausted"
    for line in lines:
        line.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()


def test_nothing_is_left_of_a_login_that_is_refused_half_way() -> None:
    """The second network is an address of ours."""
    routes = (HOST, IPv4Network("10.0.0.1/32"))
    rig = rig_with(Accept(address=int(IPv4Address("192.0.2.9")), prefixlen=29, routes=routes))
    line = rig.line()
    line.open_lcp()
    line.pap()
    assert line.session.reason == "network 10.0.0.1/32 cannot be had: it is reserved"
    line.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()


def test_another_address_cannot_be_had_while_the_session_lives() -> None:
    """Who has given it takes the old one for free."""
    rig = rig_with(Accept(address=int(IPv4Address("192.0.2.8"))))
    line = rig.up()
    line.open_lcp()
    line.pap()
    assert line.session.phase is Phase.NETWORK
    rig.aaa.accept["alice"] = Accept(address=int(IPv4Address("192.0.2.9")))
    line.open_lcp()
    line.pap()
    assert line.session.reason == "it has another address now, 192.0.2.9"


def test_another_realm_cannot_be_had_while_the_session_lives() -> None:
    rig = rig_with(Accept())
    line = rig.up()
    other = replace(rig.realm, name="OTHER")
    config = replace(rig.config, realms=(other,), binds=(replace(rig.config.binds[0], realm=other),))
    rig.engine.configure(config, {"tun0": rig.site}, rig.now)
    line.open_lcp()
    line.pap()
    assert (line.session.cause, line.session.reason) == (Cause.NAS_REQUEST, "its realm is OTHER now")


def test_a_network_that_a_pool_has_keeps_the_pools_route() -> None:
    pool = (AddressRange(first=IPv4Address("10.0.0.0"), last=IPv4Address("10.0.0.3")),)
    rig = rig_with(Accept(routes=(IPv4Network("10.0.0.0/30"),)), ipcp={"ranges": pool})
    line = rig.up()
    assert rig.routes.networks == []
    line.session.end(Cause.ADMIN_RESET, "test", rig.now)
    assert rig.routes.networks == []


def test_a_realm_names_the_pool() -> None:
    rig = rig_with(Accept(pool="OTHER"))
    block = Ipcp(
        name="OTHER", where=HERE, ranges=(AddressRange(first=IPv4Address("10.9.0.1"), last=IPv4Address("10.9.0.1")),)
    )
    pools = {"POOL": rig.site.pool, "OTHER": Pool(block, rig.space)}
    rig.engine.configure(rig.config, {"tun0": rig.site}, rig.now, pools)
    line = rig.up()
    assert line.session.ip == "10.9.0.1"
    # No pool of the interface has it.
    assert rig.routes.networks == [IPv4Network("10.9.0.1/32")]
    second = rig.line()
    second.open_lcp()
    second.pap()
    assert second.session.reason == "the pool of ipcp OTHER is exhausted"
    line.session.end(Cause.ADMIN_RESET, "test", rig.now)
    assert len(rig.space) == 0


def test_a_pool_that_is_not_there_refuses_the_login() -> None:
    rig = rig_with(Accept(pool="NOWHERE"))
    line = rig.line()
    line.open_lcp()
    assert line.pap()[0] == 3
    assert line.session.reason == "there is no ipcp NOWHERE, whose pool its realm wants"


@pytest.mark.parametrize(("given", "mtu"), [(0, 1492), (1400, 1400), (9000, 1492)])
def test_framed_mtu_is_the_largest_packet_to_the_peer(given: int, mtu: int) -> None:
    rig = rig_with(Accept(profile=Profile(mtu=given)))
    flow = rig.up().session.flow
    assert isinstance(flow, NullFlow)
    assert flow._spec.mtu == mtu


@pytest.mark.parametrize(("realm", "own", "most"), [(0, 0, 9), (0, 2, 2), (3, 2, 2), (1, 2, 1)])
def test_port_limit_is_a_limit_of_the_user(realm: int, own: int, most: int) -> None:
    rig = rig_with(Accept(port_limit=own), realm={"user_max_session": realm}, ipcp={"ranges": _many()})
    lines = [rig.line() for _ in range(9)]
    for line in lines:
        line.open_lcp()
        line.pap()
    assert [line.session.phase for line in lines].count(Phase.NETWORK) == most


def _many() -> tuple[AddressRange, ...]:
    return (AddressRange(first=IPv4Address("10.0.0.0"), last=IPv4Address("10.0.0.255")),)


# What the peer reads.


def test_the_servers_words_reach_the_peer() -> None:
    rig = rig_with(Accept(message="Hello"))
    line = rig.line()
    line.open_lcp()
    assert line.pap()[5:] == b"Hello"
    rig.aaa.answer = lambda request: Reject(reason="no", message="Pay your bill")  # type: ignore[method-assign]
    line = rig.line()
    line.open_lcp()
    assert line.pap()[5:] == b"Pay your bill"


def test_a_challenge_and_its_answer_go_to_the_server_with_its_state() -> None:
    rig = Rig(authentication_methods=(AuthMethod.EAP,))
    request = b"\x01\x07\x00\x16\x04\x10" + bytes(16)
    answers = [
        Challenge(eap=request, state=b"one"),
        Challenge(eap=b"\x01\x08" + request[2:], state=b"two"),
        Accept(eap=b"\x03\x08\x00\x04"),
    ]
    rig.aaa.answer = lambda wanted: (rig.aaa.requests.append(wanted), answers.pop(0))[1]  # type: ignore[method-assign]
    line = rig.line()
    line.open_lcp()
    identifier, data = line.find(proto.EAP, 1)
    assert data == b"\x01"
    line.give(proto.EAP, 2, identifier, b"\x01alice")
    for number in (7, 8):
        assert line.find(proto.EAP, 1)[0] == number
        line.give(proto.EAP, 2, number, b"\x04\x10" + bytes(16) + b"alice")
    assert line.find(proto.EAP, 3)[0] == 8
    assert [wanted.state for wanted in rig.aaa.requests] == [b"", b"one", b"two"]
    assert [type(wanted.proof) for wanted in rig.aaa.requests] == [Eap] * 3
    assert {wanted.username for wanted in rig.aaa.requests} == {"alice"}
    line.open_ipcp()
    assert line.session.phase is Phase.UP


def test_the_negotiations_bound_stands_still_while_a_server_is_asked_and_runs_while_the_peer_is() -> None:
    rig = Rig(authentication_methods=(AuthMethod.EAP,), negotiation_timeout=20)
    rig.aaa.hold = True
    request = b"\x01\x07\x00\x16\x04\x10" + bytes(16)
    rig.aaa.answer = lambda wanted: Challenge(eap=request, state=b"one")  # type: ignore[method-assign]
    line = rig.line()
    line.open_lcp()
    line.give(proto.EAP, 2, line.find(proto.EAP, 1)[0], b"\x01alice")
    rig.wait(500)
    assert line.session.phase is Phase.AUTHENTICATE
    rig.aaa.waiting.pop()(rig.now)
    rig.wait(19)
    assert line.session.phase is Phase.AUTHENTICATE
    rig.wait(2)
    assert line.session.reason == "no session within 20 s"


def test_no_answer_is_no_mistake_of_the_user() -> None:
    rig = Rig()
    rig.aaa.answer = lambda request: Failed(reason="no server", unanswered=True)  # type: ignore[method-assign]
    line = rig.line()
    line.open_lcp()
    assert line.pap()[0] == 3
    assert line.session.cause is Cause.SERVICE_UNAVAILABLE
