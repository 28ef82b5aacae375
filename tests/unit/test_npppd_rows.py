"""What npppd and other peers are known to get wrong, and the test of each.

The differences, dead options and suspected bugs of npppd, by their numbers (npppd.md, section 8).  Those of this file
are below.

 1  mppe required is not honoured on PPPoE
        unit/test_config_errors.py::test_mppe_required_without_keys
 2  allow-user-selected-address: manual yes
        unit/test_config_load.py::test_defaults_of_pppoe
        unit/test_ipcp.py::test_the_peers_wish_only_where_both_realm_and_pool_allow_it
 3  authentication-method: no PAP by default
        unit/test_config_load.py::test_defaults_of_pppoe
        unit/test_lcp.py::test_pap_is_not_granted_unless_it_is_configured
 5  pktdump options that are never read
        unit/test_pppoe_session.py::test_each_pktdump_option_does_something
 6  dns-servers resolver is dead
        unit/test_npppd_rows.py::test_row_6_name_servers_of_the_resolver
    eap-capable is dead
        unit/test_realms.py::test_eap_is_for_servers_alone
    callnum-check has one mode, and it is strict
        unit/test_npppd_rows.py::test_row_6_the_calling_number_is_compared
        unit/test_npppd_rows.py::test_row_6_callnum_check_reaches_the_realm
 8  DAE listens on IPv4 only
        root/test_radius_dae_socket.py::test_disconnect_by_radclient
    and never finds a Framed-IP-Address
        unit/test_radius_dae.py::test_each_key
 9  PPPoE cookie is not verified
        unit/test_pppoe_discovery.py::test_section_9_no_session_without_a_good_cookie
    and not bound to the host
        unit/test_pppoe_cookie.py::test_bound_to_host_and_port
    a short tag is read beyond its end
        unit/test_pppoe_cookie.py::test_anything_else_is_not_valid
    a failed PADR leaks
        unit/test_pppoe_discovery.py::test_a_bad_cookie_costs_nothing
        unit/test_pppoe_discovery.py::test_ppp_refuses
        unit/test_pppoe_discovery.py::test_a_malformed_vendor_tag_takes_no_identifier
10  a session without LCP lives for ever
        unit/test_session.py::test_a_peer_that_goes_quiet_half_way_is_ended
15  PPP_STOP with interface -1
        unit/test_npppd_rows.py::test_row_15_a_session_that_never_was_up_makes_no_event
    the count of DISCONNECT is believed
        unit/test_control_sessions.py::test_bad_filters_do_nothing
        unit/test_control_server.py::test_what_is_malformed_is_answered_counted_and_logged
    a list costs the square of the sessions
        unit/test_control_sessions.py::test_a_listing_lets_others_run_and_walks_once
    clear ppp-id ignores the other filters
        unit/test_control_sessions.py::test_clear
    "Ppd Id"
        unit/test_ctl_output.py::test_output
16  control frames count as input errors
        unit/test_npppd_rows.py::test_row_16_control_frames_are_no_input_errors
    networks behind a peer miss the fast path
        unit/test_pipex_user.py::TestDown::test_each_to_its_own
        unit/test_pipex_lookup.py::test_longest_prefix
    multicast is copied by a wrong iterator
        unit/test_pipex_user.py::TestDown::test_ignored
    MSS is clamped one way only
        unit/test_pipex_user.py::TestUp::test_mss
        unit/test_pipex_user.py::TestDown::test_mss
17  the number of ipcp blocks is not enforced
        unit/test_npppd_rows.py::test_row_17_any_number_of_blocks_counts
    no number has a range
        unit/test_config_errors.py::test_options
        unit/test_config_shipped.py::test_ranges_and_defaults_are_in_the_manual
18  a dead keepalive is called Idle-Timeout
        unit/test_session.py::test_keepalive_gives_up
19  a reply without Message-Authenticator counts
        unit/test_radius_packet.py::test_a_reply_without_message_authenticator
    an Access-Reject is believed before it is checked
        unit/test_radius_server.py::test_a_reply_that_is_wrong_is_waited_past
    each transmission has one more Message-Authenticator
        unit/test_radius_server.py::test_a_transmission_is_repeated_as_it_was
    Reply-Message is never logged
        unit/test_radius_answer.py::test_reject
    a login never goes to another server
        unit/test_radius_client.py::test_a_login_goes_on_to_the_next_server
20  success is sent before what follows it
        unit/test_npppd_rows.py::test_row_20_nobody_is_told_of_success_and_then_refused
21  IPCP without an address is Acked
        unit/test_ipcp.py::test_a_request_without_an_address_is_naked_with_one_not_acked
    DNS 0.0.0.0 is Acked
        unit/test_ipcp.py::test_dns_0_0_0_0_is_never_acked
22  idle-timeout of 16 bits
        unit/test_npppd_rows.py::test_row_22_an_idle_timeout_of_more_than_16_bits
23  a server's secret may be left out, says the manual
        unit/test_config_radius.py::test_errors_of_servers
24  always the first interface's address
        unit/test_npppd_rows.py::test_row_24_each_interface_has_its_own_address
25  the MSS clamp walks into the payload
        unit/test_pipex_ip.py::TestClamp::test_payload_is_not_options

Of other slices: 4, 13 (PPTP), 7, 11, 12 (L2TP).  Without a counterpart: 14 (npppy has no privileged half).

How peers broke (peers.md), as far as it concerns PPPoE, PPP, RADIUS and npppyctl.

sppp(4): a prefix of the password will do
        unit/test_auth.py::test_the_whole_password_counts
pppd CVE-2020-8597: EAP name beyond its buffer
        unit/test_npppd_rows.py::test_pppd_cve_2020_8597_names_as_long_as_a_frame
        unit/test_eap.py::test_pppd_cve_2020_8597_a_name_longer_than_its_place
mpd5: crafted PPPoE discovery request
        unit/test_pppoe_discovery.py::test_crafted_discovery_request
        fuzz/test_pppoe_fuzz.py::test_receive_never_raises
accel-ppp 2025: PPPoE tag header cut short
        unit/test_pppoe_discovery.py::test_tag_header_cut_short
        unit/test_pppoe_codec.py::test_section_5_tag_cut_short
accel-ppp CVE-2020-28194: a vendor's attribute of less than two octets
        unit/test_radius_packet.py::test_malformed_attributes
accel-ppp CVE-2022-24704, -24705: an attribute longer than its type
        unit/test_radius_packet.py::test_fixed_types_of_another_length
accel-ppp 2026: MS-CHAP2-Success of the wrong size
        unit/test_radius_answer.py::test_mschap_success_wrong
accel-ppp: a reply is matched by its identifier alone
        unit/test_radius_server.py::test_a_wrong_secret
        unit/test_radius_server.py::test_an_answer_to_who_had_the_identifier_before
accel-ppp #324, #328: sockets leak
        unit/test_radius_client.py::test_a_storm_of_logins_that_go_away
        unit/test_radius_server.py::test_cancelled_requests_give_their_identifiers_back
accel-ppp 2026: a late answer to a login
        unit/test_auth.py::test_a_login_in_flight_is_cancelled_when_the_call_goes
        unit/test_auth.py::test_a_login_in_flight_is_cancelled_by_renegotiation
accel-ppp CVE-2022-0982: a control line
        unit/test_ctl_output.py::test_a_command_that_is_too_long
        unit/test_control_protocol.py::test_frames_are_bounded_both_ways
accel-ppp CVE-2021-42054: a finished object
        unit/test_pppoe_session.py::test_section_5_5_nothing_is_sent_after_a_padt
        unit/test_session.py::test_the_call_goes_while_lcp_terminates
accel-ppp #353: CCP after a Terminate-Ack
        unit/test_lcp.py::test_control_packets_in_flight_after_terminate_are_harmless
accel-ppp #205: an echo larger than the MRU
        unit/test_lcp.py::test_an_echo_larger_than_the_peers_mru_is_cut
accel-ppp #57: refused IPV6CP ends IPv4
        unit/test_engine_review.py::test_a_protocol_that_we_do_not_speak_may_be_rejected
xebd #15, #191: addresses that are never used
        unit/test_pool.py::TestAllocate::test_every_address
"""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from npppy import daemon
from npppy.aaa.base import Accept, Pap, Reject
from npppy.aaa.local import LocalUsers
from npppy.config.loader import load
from npppy.config.model import AddressRange, AuthMethod, Bind, Ipcp
from npppy.config.users import UsersFile
from npppy.pool import Pool
from npppy.ppp import proto
from npppy.ppp.cause import Cause
from npppy.ppp.engine import DNS
from npppy.ppp.link import Caller
from npppy.ppp.station import Phase

from .ppp_rig import HERE, Rig, request_for

TESTS = Path(__file__).parents[1]


# The table itself.


def named_tests() -> list[tuple[str, str]]:
    return re.findall(r"(\w+/\w+\.py)::([\w:]+)", __doc__ or "")


def names_in(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return found


@pytest.mark.parametrize(("file", "name"), named_tests())
def test_what_the_table_names_is_there(file: str, name: str) -> None:
    assert name in names_in(TESTS / file)


def test_the_table_has_every_row_and_every_test_of_this_file() -> None:
    text = __doc__ or ""
    table, rest = text[: text.index("Of other slices")], text[text.index("Of other slices") :]
    rows = {int(number) for number in re.findall(r"^ ?(\d+)  ", table, re.MULTILINE)}
    elsewhere = {int(number) for number in re.findall(r"\b\d+\b", rest[: rest.index("How peers broke")])}
    assert rows | elsewhere == set(range(1, 26))
    assert not rows & elsewhere
    here = {name for name in names_in(Path(__file__)) if name.startswith(("test_row", "test_pppd"))}
    assert here == {name for file, name in named_tests() if file == "unit/test_npppd_rows.py"}


# Row 6.


def test_row_6_name_servers_of_the_resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "RESOLVER", tmp_path / "resolv.conf")
    block = Ipcp(name="P", where=HERE, dns_from_resolver=True)
    assert daemon._name_servers(block)[0] == {}, "no file, no servers"
    daemon.RESOLVER.write_text(
        "# nameserver 192.0.2.9\nsearch example.net\nnameserver 2001:db8::1\nnameserver 192.0.2.1\n"
        "nameserver\nnameserver 192.0.2.2 # second\nnameserver 192.0.2.3\n"
    )
    servers = daemon._name_servers(block)[0]
    assert [servers[kind] for kind in DNS] == [int(IPv4Address("192.0.2.1")), int(IPv4Address("192.0.2.2"))]


@pytest.mark.parametrize(
    ("user", "caller", "accepted"),
    [
        ("fixed", "0123456", True),
        ("fixed", "012345", False),
        ("fixed", "01234567", False),
        ("fixed", "", False),
        # An entry without a number is for callers that send none.
        ("free", "", True),
        ("free", "0123456", False),
    ],
)
def test_row_6_the_calling_number_is_compared(tmp_path: Path, user: str, caller: str, accepted: bool) -> None:
    path = tmp_path / "users"
    path.write_text("fixed:password=secret:calling-number=0123456:\nfree:password=secret:\n")
    users = UsersFile(path)
    assert users.refresh() == []
    request = request_for(
        Pap(b"secret"), Caller(text="x", calling_number=caller), username=user, account=user, check_calling_number=True
    )
    realm = LocalUsers(users, bytes)
    assert isinstance(realm.check(request), Accept) is accepted
    assert isinstance(realm.check(replace(request, check_calling_number=False)), Accept)
    # A realm without a users file refuses everybody.
    assert isinstance(LocalUsers(None, bytes).check(request), Reject)


@pytest.mark.parametrize("check", [True, False])
def test_row_6_callnum_check_reaches_the_realm(check: bool) -> None:
    rig = Rig(callnum_check=check)
    rig.up()
    assert rig.aaa.requests[0].check_calling_number is check


# Row 15.


def test_row_15_a_session_that_never_was_up_makes_no_event() -> None:
    rig = Rig()
    heard: list[str] = []
    rig.engine.listeners.append(lambda event, session, now: heard.append(event))
    for stage in range(4):
        line = rig.line()
        if stage > 0:
            line.open_lcp()
        if stage > 1:
            line.pap("alice", b"wrong" if stage == 2 else None)
        line.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    assert heard == []
    rig.up().session.gone(Cause.LOST_CARRIER, "test", rig.now)
    assert heard == ["start", "stop"]
    rig.nothing_left()


# Row 16.


def test_row_16_control_frames_are_no_input_errors() -> None:
    rig = Rig()
    line = rig.up()
    line.give(proto.LCP, proto.ECHO_REQUEST, 1, b"peer")
    line.give(proto.LCP, proto.IDENTIFICATION, 1, b"peerpppd")
    line.give(proto.CCP, 1, 1)
    counters = line.session.counters()
    assert (counters.in_errors, counters.in_packets, counters.in_bytes) == (0, 0, 0)


# Row 17.


def test_row_17_any_number_of_blocks_counts(tmp_path: Path) -> None:
    lines = ['authentication LOCAL type local {\n users-file "users"\n}']
    for number in range(1, 41):
        ranges = "".join(f" pool-address 10.{number}.{part}.0/24\n" for part in range(1, 21))
        lines.append(f"ipcp POOL{number} {{\n{ranges}}}")
        lines.append(f"interface tun{number} address 10.{number}.0.1 ipcp POOL{number}")
        lines.append(f"tunnel T{number} protocol pppoe {{\n listen on interface eth{number}\n}}")
        lines.append(f"bind tunnel from T{number} authenticated by LOCAL to tun{number}")
    (tmp_path / "users").touch(0o600)
    (tmp_path / "conf").write_text("\n".join(lines) + "\n")
    config = load(tmp_path / "conf")
    assert len(config.ipcps) == len(config.interfaces) == len(config.binds) == 40
    assert {len(ipcp.ranges) for ipcp in config.ipcps} == {20}
    assert "POOL" not in "".join(diagnostic.message for diagnostic in config.warnings)


# Row 20.


@pytest.mark.parametrize("method", list(AuthMethod))
@pytest.mark.parametrize("why", ["max-session", "user-max-session", "pool", "address", "interface"])
def test_row_20_nobody_is_told_of_success_and_then_refused(why: str, method: AuthMethod) -> None:
    from .test_auth import respond_md5, respond_ms

    pool = (AddressRange(first=IPv4Address("10.0.0.1"), last=IPv4Address("10.0.0.2")),)
    limits = {why.replace("-", "_"): 1} if why.endswith("session") else {}
    rig = Rig(config=limits, ipcp={"ranges": pool})
    rig.up("alice")
    if why == "address":
        rig.aaa.accept["alice"] = Accept(address=int(IPv4Address("127.0.0.1")))
    elif why == "interface":
        rig.engine.sites = {}
    rig.tunnel = replace(rig.tunnel, authentication_methods=(method,))
    line = rig.line()
    line.open_lcp()
    if method is AuthMethod.PAP:
        answer, failure = line.pap("alice"), 3
    elif method is AuthMethod.CHAP:
        answer, failure = respond_md5(line, "alice", b"wonderland"), 4
    elif method is AuthMethod.EAP:
        answer, failure = line.eap("alice"), 4
    else:
        answer, failure = respond_ms(line, "alice", b"wonderland")[0], 4
        assert b"E=691 R=0" in answer
    assert answer[0] == failure
    assert line.session.phase is Phase.TERMINATE
    assert rig.engine.bound == 1


# Row 22.


def test_row_22_an_idle_timeout_of_more_than_16_bits() -> None:
    rig = Rig(lcp_keepalive=False, idle_timeout=100_000)
    line = rig.up()
    # What is left of 100,000 in 16 bits.
    rig.wait(100_000 - 65_536 + 1)
    rig.wait(65_534)
    assert line.session.phase is Phase.UP
    rig.wait(2)
    assert line.session.cause is Cause.IDLE_TIMEOUT


# Row 24.


def test_row_24_each_interface_has_its_own_address() -> None:
    rig = Rig(realm={"username_suffix": "@first"})
    block = Ipcp(
        name="SECOND",
        where=HERE,
        ranges=(AddressRange(first=IPv4Address("10.9.0.2"), last=IPv4Address("10.9.0.9")),),
    )
    interface = replace(rig.site.conf, name="tun1", address=IPv4Address("10.9.0.1"), ipcp=block)
    site = replace(rig.site, conf=interface, pool=Pool(block, rig.space, [interface.address]))
    realm = replace(rig.realm, name="OTHER", username_suffix="")
    binds = (*rig.config.binds, Bind(tunnel=rig.tunnel, realm=realm, interface=interface))
    config = replace(rig.config, binds=binds, interfaces=(rig.site.conf, interface))
    rig.engine.configure(config, {"tun0": rig.site, "tun1": site}, rig.now)
    for user, ours, theirs in (("alice@first", "10.0.0.1", "10.0.0.2"), ("alice", "10.9.0.1", "10.9.0.2")):
        line = rig.line()
        line.open_lcp()
        line.pap(user, b"wonderland")
        assert line.ack(proto.IPCP) == [(3, IPv4Address(ours).packed)]
        line.give(proto.IPCP, 1, 1, b"\x03\x06" + bytes(4))
        assert line.session.ip == theirs


# Peers.


@pytest.mark.parametrize("method", [AuthMethod.CHAP, AuthMethod.MSCHAPV2])
def test_pppd_cve_2020_8597_names_as_long_as_a_frame(method: AuthMethod) -> None:
    rig = Rig(authentication_methods=(method,))
    line = rig.line()
    line.open_lcp()
    identifier = line.find(proto.CHAP, 1)[0]
    size = 16 if method is AuthMethod.CHAP else 49
    line.give(proto.CHAP, 2, identifier, bytes((size,)) + bytes(size) + b"\xff" * (1492 - size - 5))
    assert line.take(proto.CHAP)[-1][0] == 4
    assert line.session.cause is Cause.USER_ERROR
    rig.wait(10)
    rig.nothing_left()
