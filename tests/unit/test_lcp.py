"""LCP by the sections of RFC 1661 (and RFC 2516 section 7)."""

from __future__ import annotations

import pytest

from npppy.config.model import AuthMethod, FsmLimits
from npppy.ppp import options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.fsm import TABLE, State
from npppy.ppp.station import Phase

from .ppp_rig import Line, Rig

PAP = (proto.OPT_AUTH, b"\xc0\x23")
CHAP_MD5 = (proto.OPT_AUTH, b"\xc2\x23\x05")
MSCHAPV2 = (proto.OPT_AUTH, b"\xc2\x23\x81")


def wanted(line: Line) -> dict[int, bytes]:
    return dict(options.decode(line.find(proto.LCP, proto.CONFIGURE_REQUEST)[1]))


def request(line: Line, *wishes: tuple[int, bytes]) -> tuple[int, list[tuple[int, bytes]]]:
    """Send a Configure-Request; returns code and options of the answer."""
    line.take()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 77, options.encode(wishes))
    answers = [p for p in line.take(proto.LCP) if p[0] in (2, 3, 4)]
    assert len(answers) == 1
    assert answers[0][1] == 77
    return answers[0][0], options.decode(answers[0][4:])


def test_table_of_section_4_1_is_whole() -> None:
    assert len(TABLE) == 16
    assert {len(row) for row in TABLE.values()} == {10}
    assert TABLE["RCR+"][State.ACK_RCVD] == (("sca", "tlu"), State.OPENED)
    assert TABLE["RCA"][State.ACK_SENT] == (("irc", "tlu"), State.OPENED)
    assert TABLE["RTR"][State.OPENED] == (("tld", "zrc", "sta"), State.STOPPING)
    assert TABLE["Close"][State.OPENED] == (("tld", "irc", "str"), State.CLOSING)
    assert TABLE["RXR"][State.OPENED] == (("ser",), State.OPENED)
    assert TABLE["TO+"][State.OPENED] is None


def test_silent_until_the_peer_speaks_and_then_without_delay() -> None:
    rig = Rig()
    line = rig.line()
    rig.wait(1)
    assert line.sent == []
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    assert [p[0] for p in line.take(proto.LCP)] == [proto.CONFIGURE_REQUEST, proto.CONFIGURE_ACK]


def test_a_silent_peer_is_asked_after_one_restart_timer() -> None:
    rig = Rig()
    line = rig.line()
    rig.wait(3.3)
    assert len(line.take(proto.LCP)) == 1
    rig.wait(3.3)
    assert len(line.take(proto.LCP)) == 1


def test_max_configure_requests_then_it_ends() -> None:
    rig = Rig(lcp=FsmLimits(timeout=1, max_configure=4))
    line = rig.line()
    rig.wait(20)
    assert [p[0] for p in line.take(proto.LCP)] == [proto.CONFIGURE_REQUEST] * 4
    assert line.closed is Cause.LOST_CARRIER
    rig.nothing_left()


def test_what_we_ask_for_on_pppoe() -> None:
    rig = Rig(authentication_methods=(AuthMethod.MSCHAPV2,))
    line = rig.line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    asked = wanted(line)
    assert set(asked) == {proto.OPT_MRU, proto.OPT_AUTH, proto.OPT_MAGIC}
    assert asked[proto.OPT_MRU] == (1492).to_bytes(2, "big")
    assert asked[proto.OPT_AUTH] == MSCHAPV2[1]
    assert asked[proto.OPT_MAGIC] != bytes(4)


def test_pfc_and_acfc_are_asked_where_the_carrier_allows_them() -> None:
    line = Rig().line(unwanted=frozenset())
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    assert {proto.OPT_PFC, proto.OPT_ACFC} <= set(wanted(line))
    assert request(line, (proto.OPT_PFC, b""), (proto.OPT_ACFC, b""), (proto.OPT_ACCM, bytes(4)))[0] == 2


@pytest.mark.parametrize("option", [(2, bytes(4)), (7, b""), (8, b""), (9, b"\x01")])
def test_rfc2516_section_7_options_are_rejected(option: tuple[int, bytes]) -> None:
    assert request(Rig().line(), (proto.OPT_MRU, b"\x05\xd4"), option) == (4, [option])


@pytest.mark.parametrize(
    "option", [PAP, (4, b"\xc0\x25"), (13, b"\x06"), (17, b"\x05\xdc"), (19, b"\x00"), (200, b"x")]
)
def test_unknown_options_and_authentication_of_ours_are_rejected(option: tuple[int, bytes]) -> None:
    assert request(Rig().line(), option) == (4, [option])


@pytest.mark.parametrize(("mru", "code"), [(499, 3), (500, 2), (1492, 2), (1493, 3), (9000, 3)])
def test_mru_bounds(mru: int, code: int) -> None:
    answer, opts = request(Rig().line(), (proto.OPT_MRU, mru.to_bytes(2, "big")))
    assert answer == code
    if code == 3:
        assert opts == [(proto.OPT_MRU, (1492).to_bytes(2, "big"))]


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ((proto.OPT_MRU, b"\x05"), (proto.OPT_MRU, (1492).to_bytes(2, "big"))),
        ((proto.OPT_MRU, b"\0\0\x05\xd4"), (proto.OPT_MRU, (1492).to_bytes(2, "big"))),
        ((proto.OPT_MAGIC, b""), None),
        ((proto.OPT_MAGIC, bytes(4)), None),
    ],
)
def test_wrong_lengths_and_a_zero_magic_are_naked(option: tuple[int, bytes], hint: tuple[int, bytes] | None) -> None:
    code, opts = request(Rig().line(), option)
    assert code == 3
    assert opts[0][0] == option[0]
    if hint:
        assert opts == [hint]
    else:
        assert len(opts[0][1]) == 4
        assert opts[0][1] != bytes(4)


def test_section_6_1_mru_default_is_1500_as_far_as_the_path_goes() -> None:
    line = Rig(mru=1500).line(max_mru=1500)
    line.open_lcp([])
    assert line.session.peer_mru == 1500
    line = Rig().line()
    line.open_lcp([])
    assert line.session.peer_mru == 1492


def test_section_6_1_our_mru_rejected_means_1500() -> None:
    line = Rig(mru=1400).line(max_mru=1500)
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    identifier, _ = line.find(proto.LCP, 1)
    line.give(proto.LCP, 4, identifier, options.encode([(proto.OPT_MRU, (1400).to_bytes(2, "big"))]))
    assert proto.OPT_MRU not in dict(line.ack(proto.LCP))
    assert line.session.mru == 1500


def test_the_tunnels_mru_is_the_ceiling_for_the_peer() -> None:
    line = Rig(mru=1400).line()
    line.open_lcp([(proto.OPT_MRU, (1492).to_bytes(2, "big"))])
    assert line.session.peer_mru == 1400


def test_authentication_falls_back_in_the_configured_order_by_nak() -> None:
    rig = Rig(authentication_methods=(AuthMethod.MSCHAPV2, AuthMethod.CHAP, AuthMethod.PAP))
    line = rig.line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    seen = []
    for _ in range(3):
        identifier, data = line.find(proto.LCP, 1)
        method = dict(options.decode(data))[proto.OPT_AUTH]
        seen.append(method)
        # A hint that is not allowed is no hint.
        line.give(proto.LCP, 3, identifier, options.encode([(proto.OPT_AUTH, b"\xc2\x27")]))
    assert seen == [MSCHAPV2[1], CHAP_MD5[1], PAP[1]]
    assert line.session.phase is Phase.TERMINATE
    rig.wait(10)
    assert line.closed is Cause.USER_ERROR
    rig.nothing_left()


def test_a_hint_that_is_allowed_is_taken_at_once() -> None:
    line = Rig(authentication_methods=(AuthMethod.MSCHAPV2, AuthMethod.CHAP, AuthMethod.PAP)).line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    identifier, _ = line.find(proto.LCP, 1)
    line.give(proto.LCP, 3, identifier, options.encode([PAP]))
    identifier, data = line.find(proto.LCP, 1)
    assert dict(options.decode(data))[proto.OPT_AUTH] == PAP[1]
    # And if it was not meant: the ones passed over are still there.
    line.give(proto.LCP, 3, identifier, options.encode([CHAP_MD5]))
    assert wanted(line)[proto.OPT_AUTH] == CHAP_MD5[1]


def test_pap_is_not_granted_unless_it_is_configured() -> None:
    rig = Rig(authentication_methods=(AuthMethod.CHAP,))
    line = rig.line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    identifier, _ = line.find(proto.LCP, 1)
    line.give(proto.LCP, 3, identifier, options.encode([PAP]))
    assert line.session.reason == "no authentication method in common"


def test_section_4_6_max_failure_turns_naks_into_rejects() -> None:
    line = Rig(lcp=FsmLimits(max_nak_loop=3)).line()
    bad = (proto.OPT_MRU, b"\x00\x01")
    assert [request(line, bad)[0] for _ in range(5)] == [3, 3, 3, 4, 4]
    assert request(line)[0] == 2


def test_endless_naks_of_the_peer_end() -> None:
    rig = Rig(lcp=FsmLimits(max_nak_loop=2))
    line = rig.line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    for _ in range(4):
        packets = [p for p in line.take(proto.LCP) if p[0] == 1]
        line.give(proto.LCP, 3, packets[-1][1], options.encode([(proto.OPT_MRU, (576).to_bytes(2, "big"))]))
    # Taken for a reject in the end: it is not asked for any more.
    assert proto.OPT_MRU not in wanted(line)


def test_section_5_1_answers_with_another_identifier_are_discarded() -> None:
    line = Rig().line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    identifier, data = line.find(proto.LCP, 1)
    line.give(proto.LCP, 2, identifier ^ 1, data)
    assert not line.session.lcp_open
    line.give(proto.LCP, 2, identifier, data)
    assert line.session.lcp_open


def test_section_5_2_an_ack_of_something_else_is_discarded() -> None:
    rig = Rig()
    line = rig.line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    identifier, data = line.find(proto.LCP, 1)
    line.give(proto.LCP, 2, identifier, data[:-1] + b"\x00")
    assert not line.session.lcp_open
    assert rig.engine.malformed["lcp-ack"] == 1


def test_a_doubled_ack_does_not_restart_the_negotiation() -> None:
    line = Rig().line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    identifier, data = line.find(proto.LCP, 1)
    for _ in range(2):
        line.give(proto.LCP, 2, identifier, data)
    assert line.session.lcp_open


def test_section_6_4_our_own_magic_number_is_naked_and_in_the_end_a_loop() -> None:
    rig = Rig()
    line = rig.line()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    for _ in range(20):
        # A looped-back line: all that we send comes back.
        frames, line.sent = line.sent, []
        for protocol, payload in frames:
            line.give_raw(protocol.to_bytes(2, "big") + payload)
    assert line.session.reason == "looped back"
    assert line.session.cause is Cause.PORT_ERROR


def test_section_5_8_echo() -> None:
    rig = Rig()
    line = rig.up()
    line.give(proto.LCP, proto.ECHO_REQUEST, 9, b"peer" + b"data")
    assert line.take(proto.LCP) == [b"\x0a\x09\0\x0c" + line.session.magic.to_bytes(4, "big") + b"data"]
    assert line.session.lcp is None, "an echo does not wake the automaton"


def test_section_5_8_echo_only_in_opened() -> None:
    line = Rig().line()
    line.give(proto.LCP, proto.ECHO_REQUEST, 9, b"peer")
    assert line.take(proto.LCP) == []


def test_an_echo_larger_than_the_peers_mru_is_cut() -> None:
    line = Rig().line()
    line.open_lcp([(proto.OPT_MRU, (600).to_bytes(2, "big"))])
    line.give(proto.LCP, proto.ECHO_REQUEST, 9, b"peer" + bytes(1400))
    (reply,) = line.take(proto.LCP)
    assert len(reply) == 600
    assert int.from_bytes(reply[2:4], "big") == 600


def test_an_echo_that_is_ours_means_a_loop() -> None:
    rig = Rig()
    line = rig.up()
    line.give(proto.LCP, proto.ECHO_REQUEST, 9, line.session.magic.to_bytes(4, "big"))
    assert line.session.reason == "looped back"


def test_section_5_6_unknown_code_is_rejected() -> None:
    line = Rig().line()
    line.open_lcp()
    line.take()
    line.give(proto.LCP, 99, 5, b"strange")
    (packet,) = line.take(proto.LCP)
    assert packet[0] == proto.CODE_REJECT
    assert packet[4:] == b"\x63\x05\0\x0bstrange"


@pytest.mark.parametrize("code", [proto.DISCARD_REQUEST, proto.IDENTIFICATION, proto.TIME_REMAINING])
def test_discard_identification_and_time_remaining_are_taken(code: int) -> None:
    rig = Rig()
    line = rig.up()
    line.give(proto.LCP, code, 5, b"peer" + b"pppd 2.4.9")
    assert line.take() == []
    assert line.session.phase is Phase.UP
    assert line.session.lcp is None


def test_section_5_7_unknown_protocol_is_rejected_once_lcp_is_open() -> None:
    line = Rig().line()
    line.give_raw(b"\x80\x57\x01\x01\x00\x04")
    line.open_lcp()
    # Before authentication is done it is discarded (section 3.5).
    line.give_raw(b"\x80\x57\x01\x01\x00\x04")
    assert [p for p in line.take(proto.LCP) if p[0] == proto.PROTOCOL_REJECT] == []
    line.pap()
    for protocol in (b"\x80\x57", b"\x80\xfd", b"\x00\x57"):
        line.give_raw(protocol + b"\x01\x01\x00\x04")
        (packet,) = line.take(proto.LCP)
        assert (packet[0], packet[4:]) == (proto.PROTOCOL_REJECT, protocol + b"\x01\x01\x00\x04")


def test_a_protocol_reject_fits_the_peers_mru() -> None:
    line = Rig().line()
    line.open_lcp([(proto.OPT_MRU, (600).to_bytes(2, "big"))])
    line.pap()
    line.give_raw(b"\x80\x57" + bytes(1400))
    assert len(line.take(proto.LCP)[0]) == 600


def test_section_5_7_our_ipcp_rejected_ends_the_session() -> None:
    rig = Rig()
    line = rig.line()
    line.open_lcp()
    line.pap()
    line.give(proto.LCP, proto.PROTOCOL_REJECT, 1, b"\x80\x21\x01\x01\x00\x04")
    assert line.session.phase is Phase.TERMINATE
    rig.wait(10)
    rig.nothing_left()


def test_code_reject_of_what_is_indispensable_ends_lcp() -> None:
    rig = Rig()
    line = rig.line()
    line.open_lcp()
    line.give(proto.LCP, proto.CODE_REJECT, 1, b"\x0c\x01\x00\x04")
    assert line.session.phase is Phase.AUTHENTICATE
    line.give(proto.LCP, proto.CODE_REJECT, 1, b"\x01\x01\x00\x04")
    assert line.session.phase is Phase.TERMINATE


def test_section_5_5_terminate_of_the_peer() -> None:
    rig = Rig()
    line = rig.up()
    line.take()
    line.give(proto.LCP, proto.TERMINATE_REQUEST, 3, b"bye")
    assert line.take(proto.LCP) == [b"\x06\x03\0\x07bye"]
    assert (line.session.cause, line.closed) == (Cause.USER_REQUEST, None)
    assert rig.engine.bound == 0, "what it held is free at once"
    rig.wait(3.5)
    assert line.closed is Cause.USER_REQUEST
    rig.nothing_left()


def test_our_terminate_is_repeated_and_bounded() -> None:
    rig = Rig(lcp=FsmLimits(timeout=2, max_terminate=3))
    line = rig.up()
    line.take()
    assert rig.engine.disconnect(line.session.id, rig.now)
    assert not rig.engine.disconnect(line.session.id, rig.now)
    rig.wait(20)
    assert [p[0] for p in line.take(proto.LCP)] == [proto.TERMINATE_REQUEST] * 3
    assert line.closed is Cause.ADMIN_RESET
    rig.nothing_left()


def test_terminate_ack_ends_it_at_once() -> None:
    rig = Rig()
    line = rig.up()
    rig.engine.disconnect(line.session.id, rig.now)
    identifier, _ = line.find(proto.LCP, proto.TERMINATE_REQUEST)
    line.give(proto.LCP, proto.TERMINATE_ACK, identifier)
    assert line.closed is Cause.ADMIN_RESET
    rig.nothing_left()


def test_control_packets_in_flight_after_terminate_are_harmless() -> None:
    rig = Rig()
    line = rig.up()
    line.give(proto.LCP, proto.TERMINATE_REQUEST, 3)
    line.take()
    for protocol in (0x80FD, proto.IPCP, proto.CHAP, proto.IP):
        line.give(protocol, 1, 1)
    assert line.take() == []
    rig.wait(10)
    rig.nothing_left()


def test_renegotiation_from_opened_keeps_address_and_counters() -> None:
    rig = Rig()
    line = rig.up()
    session, address = line.session, line.session.address
    line.give_raw(b"\x00\x21" + bytes(20))
    assert session.counters().in_packets == 1
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 9, options.encode([(proto.OPT_MAGIC, b"next")]))
    assert session.phase is Phase.ESTABLISH
    assert session.flow is None, "no data while LCP is not open"
    line.ack(proto.LCP)
    line.pap()
    assert line.open_ipcp(address) == address
    assert session.phase is Phase.UP
    assert session.peer_magic == int.from_bytes(b"next", "big")
    assert session.counters().in_packets == 1
    assert (rig.engine.bound, rig.engine.half_open) == (1, 0)


def test_renegotiation_as_another_user_ends_the_session() -> None:
    rig = Rig()
    line = rig.up()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 9, b"")
    line.ack(proto.LCP)
    line.pap("bob")
    assert line.session.phase is Phase.TERMINATE


def test_a_renegotiation_that_stops_half_way_is_bounded() -> None:
    rig = Rig(lcp_keepalive=False)
    line = rig.up()
    line.give(proto.LCP, proto.CONFIGURE_REQUEST, 9, b"")
    line.ack(proto.LCP)
    rig.wait(29)
    assert line.closed is None
    rig.wait(10)
    assert line.closed is Cause.LOST_CARRIER
    rig.nothing_left()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc0",
        b"\xc0\x21",
        b"\xc0\x21\x01",
        b"\xc0\x21\x01\x01\x00",
        b"\xc0\x21\x01\x01\x00\x03",
        b"\xc0\x21\x01\x01\x00\x05",
        b"\xc0\x21\x01\x01\x00\x06\x01\x01",
        b"\xc0\x21\x01\x01\x00\x06\x01\x05",
        b"\x21\x45",
    ],
)
def test_malformed_frames_are_counted_and_dropped(frame: bytes) -> None:
    rig = Rig()
    line = rig.line()
    line.open_lcp()
    line.take()
    line.give_raw(frame)
    assert line.take() == []
    assert sum(rig.engine.malformed.values()) == 1


def test_padding_behind_the_length_is_ignored() -> None:
    line = Rig().line()
    line.give_raw(b"\xc0\x21\x01\x01\x00\x04" + bytes(30))
    assert line.find(proto.LCP, proto.CONFIGURE_ACK) == (1, b"")
