"""Discovery, by the sections of RFC 2516; and npppd.md section 8 row 9."""

from __future__ import annotations

import pytest

from npppy.config.model import PadoDelay
from npppy.cursor import Malformed
from npppy.port import Port
from npppy.ppp.cause import Cause
from npppy.pppoe.access import MAX_OFFERS
from npppy.pppoe.codec import BROADCAST, AccessLine, Code, Discovery, Tag, decode_discovery, encode_access_line
from tests.unit.pppoe_fake import AC, HOST, IP_PACKET, LCP_REQUEST, PORT, Bench, tunnel

OTHER_HOST = bytes.fromhex("020000000102")
RELAY = (Tag.RELAY_SESSION_ID, bytes(range(12)))
UNIQ = (Tag.HOST_UNIQ, b"\x00\xff\x01\xc0binary")


@pytest.fixture
def bench() -> Bench:
    return Bench()


# 5.1 and 5.2: PADI, PADO.


def test_section_5_2_pado(bench: Bench) -> None:
    pado = bench.padi(b"", UNIQ, RELAY)
    assert pado is not None
    assert (pado.destination, pado.source, pado.code, pado.session_id) == (HOST, AC, Code.PADO, 0)
    assert pado.all(Tag.SERVICE_NAME) == [b""]
    assert pado.all(Tag.AC_NAME) == [b"02:ac:00:00:00:01"]
    assert pado.all(Tag.AC_COOKIE) == [bench.cookie()]
    # Appendix A: unmodified.
    assert pado.all(Tag.HOST_UNIQ) == [UNIQ[1]]
    assert pado.all(Tag.RELAY_SESSION_ID) == [RELAY[1]]


def test_tags_that_were_not_there_are_not_echoed(bench: Bench) -> None:
    pado = bench.padi()
    assert pado is not None
    assert pado.first(Tag.HOST_UNIQ) is None
    assert pado.first(Tag.RELAY_SESSION_ID) is None
    # An empty one is one.
    pado = bench.padi(b"", (Tag.HOST_UNIQ, b""))
    assert pado is not None
    assert pado.first(Tag.HOST_UNIQ) == b""


def test_tag_order_does_not_matter_and_unknown_tags_are_ignored(bench: Bench) -> None:
    pado = bench.ask(Code.PADI, (0x7FFF, b"?"), UNIQ, (Tag.VENDOR_SPECIFIC, b"\0\0\0\x09?"), (Tag.SERVICE_NAME, b""))
    assert pado is not None
    assert pado.first(Tag.HOST_UNIQ) == UNIQ[1]


def test_section_5_2_lists_the_services() -> None:
    bench = Bench(tunnel(service_names=("gold", "silver"), ac_name="bras-1"))
    pado = bench.padi(b"silver")
    assert pado is not None
    # Identical to the one in the PADI, and the others.
    assert pado.all(Tag.SERVICE_NAME) == [b"silver", b"gold"]
    assert pado.first(Tag.AC_NAME) == b"bras-1"
    pado = bench.padi(b"")
    assert pado is not None
    assert pado.all(Tag.SERVICE_NAME) == [b"", b"gold", b"silver"]


def test_a_service_name_is_compared_whole() -> None:
    bench = Bench(tunnel(service_names=("gold",), accept_any_service=False))
    for name in (b"", b"gol", b"golden", b"gold\0", b"Gold", b"\xff"):
        assert bench.padi(name) is None
    assert bench.drops == {"service": 6}
    assert bench.padi(b"gold") is not None


def test_without_names_only_the_empty_one_is_served() -> None:
    bench = Bench(tunnel(accept_any_service=False))
    assert bench.padi(b"gold") is None
    assert bench.padi(b"") is not None


def test_names_beyond_ascii() -> None:
    bench = Bench(tunnel(service_names=("größer",)))
    assert bench.padi("größer".encode()) is not None


@pytest.mark.parametrize("tags", [(), ((Tag.SERVICE_NAME, b""), (Tag.SERVICE_NAME, b"")), (UNIQ,)])
def test_section_5_1_exactly_one_service_name(bench: Bench, tags: tuple[tuple[int, bytes], ...]) -> None:
    assert bench.ask(Code.PADI, *tags) is None
    assert bench.drops == {"malformed": 1}


def test_section_5_1_session_id_is_zero(bench: Bench) -> None:
    assert bench.ask(Code.PADI, (Tag.SERVICE_NAME, b""), sid=1) is None
    assert bench.drops == {"malformed": 1}


def test_section_5_1_to_all_or_to_us(bench: Bench) -> None:
    assert bench.ask(Code.PADI, (Tag.SERVICE_NAME, b""), to=AC) is not None
    assert bench.ask(Code.PADI, (Tag.SERVICE_NAME, b""), to=OTHER_HOST) is None
    assert bench.ask(Code.PADI, (Tag.SERVICE_NAME, b""), to=bytes.fromhex("01005e000001")) is None
    assert bench.drops == {"destination": 2}


@pytest.mark.parametrize("source", ["ffffffffffff", "01005e000001", "000000000000", AC.hex()])
def test_sources_that_no_host_has(bench: Bench, source: str) -> None:
    assert bench.padi(mac=bytes.fromhex(source)) is None
    assert bench.drops == {"source": 1}


def test_section_5_1_a_full_padi_leaves_room_for_the_answer(bench: Bench) -> None:
    # 1484 octets with the header, and a relay's tag on top.
    pado = bench.padi(b"", (Tag.HOST_UNIQ, bytes(1484 - 6 - 4 - 4 - 16 - 64)), RELAY)
    assert pado is not None
    assert len(pado.encode()) - 14 <= 1500


def test_an_answer_that_would_not_fit_is_not_sent(bench: Bench) -> None:
    assert bench.padi(b"", (Tag.HOST_UNIQ, bytes(1480))) is None
    assert bench.drops == {"size": 1}
    # Nor one that would not fit into the interface.
    small = Bench(mtu=576)
    assert small.padi(b"", (Tag.HOST_UNIQ, bytes(400))) is not None
    assert small.padi(b"", (Tag.HOST_UNIQ, bytes(540))) is None
    assert small.drops == {"size": 1}


def test_as_many_service_names_as_there_is_room_for() -> None:
    bench = Bench(tunnel(service_names=tuple(f"service-{number:03}" for number in range(200))))
    bench.feed(Discovery(BROADCAST, HOST, Code.PADI, 0, ((Tag.SERVICE_NAME, b""), UNIQ)).encode())
    (frame,) = bench.wire
    assert 1480 < len(frame) - 14 <= 1500
    assert decode_discovery(frame).first(Tag.HOST_UNIQ) == UNIQ[1]


def test_padi_leaves_nothing_behind(bench: Bench) -> None:
    for number in range(1000):
        assert bench.padi(mac=b"\x02" + number.to_bytes(5, "big")) is not None
    assert bench.is_clean()
    assert not bench.ppp.sessions
    assert not len(bench.wheel)


# Several tunnels on one interface.


def test_the_service_name_chooses_the_tunnel() -> None:
    home = tunnel("HOME", service_names=("home",), accept_any_service=False)
    office = tunnel("OFFICE", service_names=("office", "shop"))
    bench = Bench(home, office)
    for service, name in ((b"home", "HOME"), (b"shop", "OFFICE"), (b"", "OFFICE")):
        _, upper = bench.dial(service or b"-", service=service)
        assert upper.call.link.tunnel.name == name
        assert upper.call.link.caller.service == service.decode()
    pado = bench.padi(b"")
    assert pado is not None
    assert pado.all(Tag.SERVICE_NAME) == [b"", b"home", b"office", b"shop"]


def test_who_serves_the_empty_name_itself_comes_before_who_takes_any() -> None:
    bench = Bench(tunnel("ANY", service_names=("gold",)), tunnel("EMPTY"))
    _, upper = bench.dial()
    assert upper.call.link.tunnel.name == "EMPTY"


# 5.3 and 5.4: PADR, PADS.


def test_section_5_4_pads(bench: Bench) -> None:
    pads = bench.padr(b"", UNIQ, RELAY)
    assert pads is not None
    assert (pads.destination, pads.source, pads.code) == (HOST, AC, Code.PADS)
    assert pads.session_id not in (0, 0xFFFF)
    assert pads.tags == ((Tag.SERVICE_NAME, b""), UNIQ, RELAY)
    assert bench.port.calls.keys() == {AC + HOST + b"\x88\x64\x11\0" + pads.session_id.to_bytes(2, "big")}


def test_a_pado_leads_to_a_session(bench: Bench) -> None:
    pado = bench.padi()
    assert pado is not None
    cookie = (Tag.AC_COOKIE, pado.first(Tag.AC_COOKIE) or b"")
    pads = bench.ask(Code.PADR, cookie, (Tag.SERVICE_NAME, b""))
    assert pads is not None
    assert pads.session_id


@pytest.mark.parametrize("cookie", [None, b"", b"\0", b"abc", bytes(4), bytes(16), bytes(17)])
def test_section_9_no_session_without_a_good_cookie(bench: Bench, cookie: bytes | None) -> None:
    """npppd took any cookie or none, and read four octets of a shorter one."""
    tags = [(Tag.SERVICE_NAME, b"")] + ([] if cookie is None else [(Tag.AC_COOKIE, cookie)])
    assert bench.ask(Code.PADR, *tags) is None
    assert not bench.ppp.sessions
    assert bench.drops == {"cookie": 1}


def test_section_9_a_cookie_is_good_for_its_host_and_port_and_time_only(bench: Bench) -> None:
    cookie = (Tag.AC_COOKIE, bench.cookie(OTHER_HOST))
    assert bench.ask(Code.PADR, (Tag.SERVICE_NAME, b""), cookie) is None
    cookie = (Tag.AC_COOKIE, bench.cookie())
    other = bench.up(Port("eth1"))
    other.receive(Discovery(AC, HOST, Code.PADR, 0, ((Tag.SERVICE_NAME, b""), cookie)).encode(), bench.now)
    assert not bench.wire
    bench.pass_time(3600)
    assert bench.ask(Code.PADR, (Tag.SERVICE_NAME, b""), cookie) is None
    assert not bench.ppp.sessions


def test_a_bad_cookie_costs_nothing(bench: Bench) -> None:
    for number in range(1000):
        tags = ((Tag.SERVICE_NAME, b""), (Tag.AC_COOKIE, number.to_bytes(16, "big")))
        assert bench.ask(Code.PADR, *tags) is None
    assert bench.is_clean()


def test_section_5_3_to_us_only(bench: Bench) -> None:
    tags = ((Tag.SERVICE_NAME, b""), (Tag.AC_COOKIE, bench.cookie()))
    assert bench.ask(Code.PADR, *tags, to=BROADCAST) is None
    assert bench.ask(Code.PADR, *tags, to=OTHER_HOST) is None
    assert bench.drops == {"destination": 2}
    assert bench.ask(Code.PADR, *tags, sid=7) is None
    assert bench.drops["malformed"] == 1
    assert not bench.ppp.sessions


def test_a_repeated_padr_gets_the_same_pads(bench: Bench) -> None:
    """npppd compared the addresses of cookies, so that each PADR made a session."""
    first = bench.padr(b"", UNIQ, RELAY)
    assert first is not None
    again = bench.padr(b"", UNIQ, RELAY)
    assert again == first
    assert len(bench.ppp.sessions) == 1


def test_two_clients_on_one_address_get_a_session_each(bench: Bench) -> None:
    one, _ = bench.dial(b"1")
    two, _ = bench.dial(b"2")
    assert one != two
    without = bench.padr()
    assert without is not None
    relayed = bench.padr(b"", (Tag.HOST_UNIQ, b"1"), RELAY)
    assert relayed is not None
    assert len({one, two, without.session_id, relayed.session_id}) == 4


def test_a_host_that_started_anew_gets_a_new_session(bench: Bench) -> None:
    one, upper = bench.dial()
    # Data before LCP means nothing yet.
    bench.talk(one, IP_PACKET)
    assert bench.dial()[0] == one
    bench.talk(one, LCP_REQUEST)
    assert not bench.port.requests
    two, _ = bench.dial()
    assert two != one
    # The old session ends by itself, or when PPP finds out.
    assert not upper.ended


def test_a_closed_session_leaves_no_answer_behind(bench: Bench) -> None:
    one, upper = bench.dial()
    upper.call.close(Cause.USER_ERROR)
    assert not bench.port.requests
    two, _ = bench.dial()
    assert two != one


# 5.4: refusals.


def refused(pads: Discovery | None, tag: Tag) -> bytes:
    assert pads is not None
    assert (pads.code, pads.session_id) == (Code.PADS, 0)
    (text,) = pads.all(tag)
    assert text.isascii()
    return text


def test_section_5_4_service_name_error() -> None:
    bench = Bench(tunnel(service_names=("gold",)))
    pads = bench.padr(b"lead", UNIQ, RELAY)
    refused(pads, Tag.SERVICE_NAME_ERROR)
    assert pads is not None
    assert pads.all(Tag.SERVICE_NAME) == [b"lead"]
    assert pads.all(Tag.HOST_UNIQ) == [UNIQ[1]]
    assert pads.all(Tag.RELAY_SESSION_ID) == [RELAY[1]]
    assert bench.drops == {"service": 1}


def test_section_5_3_not_exactly_one_service_name_is_a_generic_error(bench: Bench) -> None:
    """npppd logged a buffer that it had not filled."""
    cookie = (Tag.AC_COOKIE, bench.cookie())
    refused(bench.ask(Code.PADR, cookie), Tag.GENERIC_ERROR)
    refused(bench.ask(Code.PADR, cookie, (Tag.SERVICE_NAME, b""), (Tag.SERVICE_NAME, b"")), Tag.GENERIC_ERROR)
    assert not bench.ppp.sessions


def test_ppp_refuses(bench: Bench) -> None:
    """npppd lost memory and a SESSION_ID with each PADR that failed."""
    bench.use_up(but=3)
    bench.ppp.refuse = True
    for number in range(100):
        refused(bench.padr(b"", (Tag.HOST_UNIQ, number.to_bytes(4, "big"))), Tag.AC_SYSTEM_ERROR)
    assert bench.drops == {"refused": 100}
    assert bench.is_clean()
    bench.ppp.refuse = False
    assert bench.dial()[0]


@pytest.mark.parametrize("refuse", [False, True])
def test_ppp_closes_at_once(bench: Bench, refuse: bool) -> None:
    bench.ppp.refuse = refuse
    bench.ppp.close_first = True
    bench.ppp.send_first = LCP_REQUEST
    # The host never had a session: it hears of the refusal, not of frames or a PADT.
    refused(bench.padr(), Tag.AC_SYSTEM_ERROR)
    assert bench.is_clean()


def test_nothing_is_seen_before_the_pads(bench: Bench) -> None:
    bench.ppp.send_first = LCP_REQUEST
    padr = Discovery(AC, HOST, Code.PADR, 0, ((Tag.SERVICE_NAME, b""), (Tag.AC_COOKIE, bench.cookie())))
    frames = bench.feed(padr.encode())
    assert [frame[12:16].hex() for frame in frames] == ["88631165", "88641100"]
    assert frames[1][20:] == LCP_REQUEST


def test_all_identifiers_can_be_used_and_no_more(bench: Bench) -> None:
    bench.use_up(but=2)
    one, upper = bench.dial(b"1")
    two, _ = bench.dial(b"2")
    refused(bench.padr(), Tag.AC_SYSTEM_ERROR)
    assert bench.drops == {"session-ids": 1}
    assert len(bench.port.calls) == 2
    # The first one that ends makes room.
    upper.call.close(Cause.USER_REQUEST)
    assert bench.dial(b"3")[0] == one != two


def test_a_malformed_vendor_tag_takes_no_identifier(bench: Bench) -> None:
    for _ in range(3):
        assert bench.padr(b"", (Tag.VENDOR_SPECIFIC, bytes.fromhex("00000de9") + b"\x01\x20short")) is None
    assert bench.drops == {"malformed": 3}
    assert bench.is_clean()


def test_a_host_that_reports_an_error_gets_no_session(bench: Bench) -> None:
    assert bench.padr(b"", (Tag.GENERIC_ERROR, b"no memory")) is None
    assert bench.drops == {"error-tag": 1}


def test_a_refusal_that_would_not_fit_is_not_sent(bench: Bench) -> None:
    big = (Tag.HOST_UNIQ, bytes(1500 - 6 - 4 - 20 - 4))
    assert bench.padr(b"", big) is not None
    bench.ppp.refuse = True
    assert bench.padr(b"", (Tag.HOST_UNIQ, big[1][1:])) is None
    assert bench.drops == {"refused": 1, "size": 1}


# What the session is told.


def test_the_link(bench: Bench) -> None:
    line = encode_access_line(AccessLine(b"dslam1 atm 1/1:8.35", b"line 7"))
    pads = bench.padr(b"", (Tag.VENDOR_SPECIFIC, line))
    assert pads is not None
    link = bench.ppp.sessions[0].call.link
    assert link.tunnel.name == "PPPOE"
    assert link.max_mru == 1492
    # Section 7: ACCM, PFC, ACFC, FCS-Alternatives.
    assert link.unwanted == {2, 7, 8, 9}
    assert link.encap == (PORT, AC, HOST, pads.session_id)
    caller = link.caller
    assert (caller.text, caller.mac, caller.port, caller.service) == ("02:00:00:00:01:01", HOST, PORT, "")
    assert (caller.circuit_id, caller.remote_id) == (b"dslam1 atm 1/1:8.35", b"line 7")


@pytest.mark.parametrize(
    ("mtu", "mru", "asked", "granted"),
    [
        (1500, 1492, None, None),
        (1508, 1500, 1500, 1500),
        (1508, 1500, None, None),
        (1508, 1492, 1500, None),
        (1500, 1500, 1500, None),
        (1504, 1500, 1500, 1496),
        (9000, 1600, 4000, 1600),
        (9000, 1600, 1550, 1550),
        (9000, 1600, 1492, None),
        (9000, 1600, 0, None),
    ],
)
def test_rfc4638_section_4(mtu: int, mru: int, asked: int | None, granted: int | None) -> None:
    bench = Bench(tunnel(mru=mru), mtu=mtu)
    tags = [] if asked is None else [(Tag.PPP_MAX_PAYLOAD, asked.to_bytes(2, "big"))]
    answer = [] if granted is None else [granted.to_bytes(2, "big")]
    for packet in (bench.padi(b"", *tags), bench.padr(b"", *tags)):
        assert packet is not None
        assert packet.all(Tag.PPP_MAX_PAYLOAD) == answer
    assert bench.ppp.sessions[0].call.link.max_mru == (granted or 1492)


def test_rfc4638_a_tag_of_the_wrong_size_is_none() -> None:
    bench = Bench(tunnel(mru=1500), mtu=1508)
    pads = bench.padr(b"", (Tag.PPP_MAX_PAYLOAD, b"\x00\x05\xdc"))
    assert pads is not None
    assert pads.first(Tag.PPP_MAX_PAYLOAD) is None


def test_a_small_interface_has_small_sessions() -> None:
    bench = Bench(mtu=1400)
    bench.dial()
    assert bench.ppp.sessions[0].call.link.max_mru == 1392


# Limits.


def test_session_limit_per_host() -> None:
    bench = Bench(tunnel(session_limit=2))
    bench.dial(b"1")
    bench.dial(b"2")
    refused(bench.padr(b"", (Tag.HOST_UNIQ, b"3")), Tag.AC_SYSTEM_ERROR)
    assert bench.drops == {"session-limit": 1}
    # A lost PADS is no further session, and another host has its own count.
    assert bench.dial(b"2")[0]
    assert bench.dial(b"1", mac=OTHER_HOST)[0]
    bench.ppp.sessions[0].call.close(Cause.USER_REQUEST)
    assert bench.dial(b"3")[0]


def test_a_session_that_is_ending_leaves_its_place_to_the_next() -> None:
    """A host whose LCP has ended in order may dial again before its old session is forgotten."""
    bench = Bench(tunnel(session_limit=1))
    _, first = bench.dial(b"1")
    first.call.ending()
    first.call.ending()
    _, second = bench.dial(b"2")
    refused(bench.padr(b"", (Tag.HOST_UNIQ, b"3")), Tag.AC_SYSTEM_ERROR)
    first.call.close(Cause.USER_REQUEST)
    refused(bench.padr(b"", (Tag.HOST_UNIQ, b"3")), Tag.AC_SYSTEM_ERROR)
    second.call.close(Cause.USER_REQUEST)
    assert bench.dial(b"3")[0]


def test_padi_limit_per_second() -> None:
    bench = Bench(tunnel(padi_limit=5))
    assert sum(bench.padi() is not None for _ in range(20)) == 5
    assert bench.drops == {"padi-limit": 15}
    bench.pass_time(0.5)
    assert sum(bench.padi() is not None for _ in range(20)) == 2
    bench.pass_time(60)
    assert sum(bench.padi() is not None for _ in range(20)) == 5


DELAYS = (PadoDelay(sessions=1, delay=500), PadoDelay(sessions=2, delay=2000), PadoDelay(sessions=3, delay=None))


def test_pado_delay_rises_with_the_sessions() -> None:
    bench = Bench(tunnel(pado_delay=DELAYS))
    assert bench.padi() is not None
    bench.dial(b"1")
    bench.feed(Discovery(BROADCAST, HOST, Code.PADI, 0, ((Tag.SERVICE_NAME, b""), UNIQ)).encode())
    assert not bench.wire
    bench.pass_time(0.4)
    assert not bench.wire
    bench.pass_time(0.3)
    (pado,) = bench.sent()
    assert (pado.code, pado.first(Tag.HOST_UNIQ)) == (Code.PADO, UNIQ[1])
    assert not bench.port.offers

    bench.dial(b"2")
    assert bench.padi() is None
    bench.pass_time(1.9)
    assert not bench.wire
    bench.pass_time(0.3)
    assert len(bench.sent()) == 1

    bench.dial(b"3")
    assert bench.padi() is None
    bench.pass_time(60)
    assert not bench.wire
    assert bench.drops == {"pado-delay": 1}
    bench.ppp.sessions[0].call.close(Cause.USER_REQUEST)
    assert bench.padi() is None
    assert len(bench.port.offers) == 1


def test_delayed_offers_are_bounded() -> None:
    bench = Bench(tunnel(pado_delay=(PadoDelay(sessions=0, delay=1000),)))
    for _ in range(MAX_OFFERS + 10):
        bench.padi()
    assert len(bench.port.offers) == len(bench.wheel) == MAX_OFFERS
    assert bench.drops == {"pado-delay": 10}
    bench.pass_time(2)
    assert len(bench.wire) == MAX_OFFERS
    assert bench.padi() is None
    assert len(bench.port.offers) == 1


def test_delayed_offers_die_with_the_port() -> None:
    bench = Bench(tunnel(pado_delay=(PadoDelay(sessions=0, delay=1000),)))
    bench.padi()
    bench.engine.port_down(PORT, "test", bench.now)
    bench.pass_time(2)
    assert not bench.wire
    assert not len(bench.wheel)


# Hostile and odd packets.


def test_other_codes_are_none_of_ours(bench: Bench) -> None:
    for code in (Code.PADO, Code.PADS, 0x00, 0xFF):
        bench.feed(Discovery(AC, HOST, code, 0, ((Tag.SERVICE_NAME, b""),)).encode())
        assert not bench.wire
    assert bench.drops == {"code": 4}


@pytest.mark.parametrize("code", list(Code))
def test_tag_header_cut_short(bench: Bench, code: Code) -> None:
    """accel-ppp 2025: the last tag has less than its header."""
    for tail in (b"\x01", b"\x01\x03", b"\x01\x03\x00", b"\x01\x03\x00\x01"):
        payload = bytes.fromhex("01010000") + tail
        destination = BROADCAST if code is Code.PADI else AC
        frame = destination + HOST + bytes((0x88, 0x63, 0x11, code, 0, 0, 0, len(payload))) + payload
        assert not bench.feed(frame)
    assert bench.drops == {"malformed": 4}


def test_crafted_discovery_request(bench: Bench) -> None:
    """mpd5: lengths that contradict each other ended the daemon."""
    contradictions = ((0xFFFF, "01010000"), (4, "0101ffff"), (8, "01010000"), (0, "01010000"), (6, "010100020000"))
    for length, payload in contradictions:
        data = bytes.fromhex(payload)
        for code in (Code.PADI, Code.PADR):
            destination = BROADCAST if code is Code.PADI else AC
            bench.feed(destination + HOST + bytes((0x88, 0x63, 0x11, code, 0, 0)) + length.to_bytes(2, "big") + data)
            assert not bench.wire
    assert bench.padi() is not None


def test_short_frames(bench: Bench) -> None:
    padi = Discovery(BROADCAST, HOST, Code.PADI, 0, ((Tag.SERVICE_NAME, b""),)).encode()
    for end in range(len(padi)):
        assert not bench.feed(padi[:end])
    assert bench.drops == {"malformed": len(padi)}


def test_other_versions(bench: Bench) -> None:
    padi = bytearray(Discovery(BROADCAST, HOST, Code.PADI, 0, ((Tag.SERVICE_NAME, b""),)).encode())
    for version in (0x00, 0x01, 0x10, 0x12, 0x21, 0xFF):
        padi[14] = version
        assert not bench.feed(bytes(padi))
    assert bench.drops == {"malformed": 6}


def test_other_ethertypes(bench: Bench) -> None:
    padi = Discovery(BROADCAST, HOST, Code.PADI, 0, ((Tag.SERVICE_NAME, b""),)).encode()
    for ethertype in ("0800", "8100", "88a8", "8865"):
        assert not bench.feed(padi[:12] + bytes.fromhex(ethertype) + padi[14:])
    assert bench.drops == {"malformed": 4}


def test_a_port_that_is_not_up(bench: Bench) -> None:
    padi = Discovery(BROADCAST, HOST, Code.PADI, 0, ((Tag.SERVICE_NAME, b""),)).encode()
    for port in (Port("eth1"), Port("eth0", 7), Port("eth0", 7, 8)):
        bench.engine.receive(port, padi, bench.now)
    assert not bench.wire
    assert bench.engine.unknown_port == 3


def test_malformed_is_not_let_out(bench: Bench) -> None:
    with pytest.raises(Malformed):
        decode_discovery(b"")
    bench.engine.receive(PORT, b"", bench.now)
    assert bench.drops == {"malformed": 1}
