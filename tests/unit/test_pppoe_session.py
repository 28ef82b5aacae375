"""The session stage, what ends it, and ports that change under it (RFC 2516 sections 5.5, 6 and 7)."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest

from npppy.port import Port
from npppy.ppp.cause import Cause
from npppy.pppoe.access import ORPHAN_RATE
from npppy.pppoe.codec import BROADCAST, Code, Discovery, Tag, decode_session, session_frame
from tests.unit.pppoe_fake import AC, HOST, IP_PACKET, LCP_REQUEST, PORT, Bench, FakeUpper, tunnel

OTHER_HOST = bytes.fromhex("020000000102")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_section_6_frames_up(bench: Bench) -> None:
    sid, upper = bench.dial()
    assert not bench.talk(sid, LCP_REQUEST)
    # Ethernet pads to 60 octets; PPP must not see that.
    bench.feed(session_frame(AC, HOST, sid, IP_PACKET) + bytes(40))
    bench.talk(sid, b"")
    assert upper.frames == [LCP_REQUEST, IP_PACKET, b""]


def test_section_6_frames_down(bench: Bench) -> None:
    sid, upper = bench.dial()
    del bench.wire[:]
    upper.call.send(LCP_REQUEST)
    (frame,) = bench.wire
    assert decode_session(frame) == (HOST, AC, sid, LCP_REQUEST)


def test_sessions_are_told_apart_by_address_and_identifier(bench: Bench) -> None:
    one, first = bench.dial(b"1")
    two, second = bench.dial(b"1", mac=OTHER_HOST)
    bench.talk(one, b"\xc0\x21one")
    bench.talk(two, b"\xc0\x21two", mac=OTHER_HOST)
    # Not with the other's address: an npppd session must have its source MAC.
    bench.talk(one, b"\xc0\x21bad", mac=OTHER_HOST)
    bench.talk(two, b"\xc0\x21bad")
    assert (first.frames, second.frames) == ([b"\xc0\x21one"], [b"\xc0\x21two"])


def test_ports_are_told_apart(bench: Bench) -> None:
    sid, upper = bench.dial()
    other = bench.up(Port("eth0", 7))
    other.receive(session_frame(AC, HOST, sid, LCP_REQUEST), bench.now)
    other.receive(Discovery(AC, HOST, Code.PADT, sid).encode(), bench.now)
    assert not upper.frames
    assert not upper.ended


def test_frames_that_are_not_for_us(bench: Bench) -> None:
    sid, upper = bench.dial()
    assert not bench.talk(sid, LCP_REQUEST, to=BROADCAST)
    assert not bench.talk(sid, LCP_REQUEST, to=OTHER_HOST)
    assert not upper.frames
    assert bench.drops == {"destination": 2}


def test_malformed_session_frames(bench: Bench) -> None:
    sid, upper = bench.dial()
    frame = session_frame(AC, HOST, sid, LCP_REQUEST)
    for end in range(len(frame)):
        assert not bench.feed(frame[:end])
    for at, value in ((14, 0x12), (14, 0x21), (15, 0x01), (15, 0xA7), (18, 0xFF)):
        broken = bytearray(frame)
        broken[at] = value
        assert not bench.feed(bytes(broken))
    assert not upper.frames
    assert bench.drops == {"malformed": len(frame) + 5}


# 5.5: PADT.


def test_section_5_5_padt_from_the_host(bench: Bench) -> None:
    sid, upper = bench.dial()
    bench.talk(sid, LCP_REQUEST)
    assert bench.ask(Code.PADT, (Tag.HOST_UNIQ, b"1"), (Tag.END_OF_LIST, b""), sid=sid) is None
    assert upper.ended == [(Cause.USER_REQUEST, "PADT received")]
    assert bench.is_clean()


def test_section_5_5_padt_must_fit(bench: Bench) -> None:
    sid, upper = bench.dial()
    bench.ask(Code.PADT, sid=sid ^ 1)
    bench.ask(Code.PADT, sid=sid, mac=OTHER_HOST)
    bench.ask(Code.PADT, sid=sid, to=BROADCAST)
    bench.ask(Code.PADT, sid=sid, to=OTHER_HOST)
    bench.ask(Code.PADT, sid=0)
    assert not upper.ended
    assert bench.drops == {"session": 3, "destination": 2}


def test_section_5_5_nothing_is_sent_after_a_padt(bench: Bench) -> None:
    """Even normal PPP termination packets must not be."""
    sid, upper = bench.dial()
    bench.ask(Code.PADT, sid=sid)
    upper.call.send(bytes.fromhex("c0210502000405"))
    upper.call.close(Cause.USER_REQUEST)
    sid, upper = bench.dial(b"2")
    del bench.wire[:]
    upper.call.close(Cause.IDLE_TIMEOUT)
    upper.call.send(bytes.fromhex("c0210502000405"))
    upper.call.close(Cause.IDLE_TIMEOUT)
    (padt,) = bench.sent()
    assert padt == Discovery(HOST, AC, Code.PADT, sid)
    # PPP ended it: it is not told.
    assert not upper.ended


def test_a_padt_while_opening_is_not_for_the_host(bench: Bench) -> None:
    bench.ppp.close_first = True
    pads = bench.padr()
    assert pads is not None
    assert pads.code == Code.PADS


def test_stale_close_does_not_end_a_later_session(bench: Bench) -> None:
    bench.use_up(but=1)
    sid, upper = bench.dial()
    upper.call.close(Cause.USER_REQUEST)
    # The identifier has come round again for the same host.
    again, second = bench.dial()
    assert again == sid
    upper.call.close(Cause.USER_REQUEST)
    assert len(bench.port.calls) == 1
    bench.talk(sid, LCP_REQUEST)
    assert second.frames == [LCP_REQUEST]


def test_an_ended_session_is_garbage_at_once(bench: Bench) -> None:
    _, upper = bench.dial()
    upper.call.close(Cause.USER_REQUEST)
    bench.ppp.sessions.clear()
    gone = weakref.ref(upper)
    gc.disable()
    try:
        del upper
        assert gone() is None
    finally:
        gc.enable()


# Frames of sessions that there are not.


def test_a_session_of_an_earlier_process_is_ended(bench: Bench) -> None:
    del bench.wire[:]
    bench.talk(0x1234, LCP_REQUEST)
    assert bench.sent() == [Discovery(HOST, AC, Code.PADT, 0x1234)]
    assert bench.drops == {"session": 1}


def test_but_at_a_bounded_rate(bench: Bench) -> None:
    frames = [session_frame(AC, b"\x02" + number.to_bytes(5, "big"), 1, IP_PACKET) for number in range(1000)]
    sent = sum(len(bench.feed(frame)) for frame in frames)
    assert sent == ORPHAN_RATE
    assert bench.drops == {"session": 1000}
    bench.pass_time(0.5)
    assert sum(len(bench.feed(frame)) for frame in frames) == ORPHAN_RATE // 2


def test_what_is_no_session_gets_no_padt(bench: Bench) -> None:
    for sid in (0, 0xFFFF):
        assert not bench.talk(sid, LCP_REQUEST)
    assert not bench.talk(7, LCP_REQUEST, mac=bytes.fromhex("01005e000001"))
    assert not bench.talk(7, LCP_REQUEST, mac=AC)
    assert bench.ask(Code.PADT, sid=7) is None


# The journal.


def test_the_journal_knows_what_ends_each_session(bench: Bench) -> None:
    sid, upper = bench.dial()
    assert list(bench.journal.records.values()) == [("eth0", Discovery(HOST, AC, Code.PADT, sid).encode())]
    bench.dial(b"2", mac=OTHER_HOST)
    upper.call.close(Cause.USER_REQUEST)
    assert len(bench.journal.records) == 1


# Interfaces.


def test_port_down(bench: Bench) -> None:
    _, one = bench.dial(b"1")
    _, two = bench.dial(b"2")
    del bench.wire[:]
    bench.engine.port_down(PORT, "interface vanished", bench.now)
    assert one.ended == two.ended == [(Cause.LOST_CARRIER, "interface vanished")]
    assert not bench.wire
    assert not bench.journal.records
    # Drops are remembered, and a down port can go down.
    bench.padi()
    assert bench.engine.unknown_port == 1
    bench.engine.port_down(PORT, "again", bench.now)
    bench.up(PORT)
    assert bench.padi() is not None


def test_mac_change_says_goodbye_from_the_old_address(bench: Bench) -> None:
    sid, upper = bench.dial()
    del bench.wire[:]
    bench.engine.port_down(PORT, "MAC address changed", bench.now, padt=True)
    assert bench.sent() == [Discovery(HOST, AC, Code.PADT, sid)]
    assert upper.ended == [(Cause.LOST_CARRIER, "MAC address changed")]
    bench.up(PORT, mac=OTHER_HOST)
    pado = bench.padi()
    assert pado is not None
    assert pado.source == OTHER_HOST
    assert pado.first(Tag.AC_NAME) == b"02:00:00:00:01:02"


def test_a_session_that_ends_another_while_it_ends(bench: Bench) -> None:
    _, one = bench.dial(b"1")
    _, two = bench.dial(b"2")

    class Replacing(FakeUpper):
        def gone(self, cause: Cause, reason: str, now: float) -> None:
            two.call.close(Cause.ADMIN_RESET)

    bench.port.calls[next(iter(bench.port.calls))].upper = Replacing(one.call)
    bench.engine.port_down(PORT, "interface vanished", bench.now)
    assert not two.ended
    assert not bench.port.calls


def test_a_smaller_mtu_reaches_the_sessions_that_are_too_big_for_it() -> None:
    bench = Bench(tunnel(mru=1500), mtu=1508)
    bench.dial(b"small")
    bench.padr(b"", (Tag.PPP_MAX_PAYLOAD, (1500).to_bytes(2, "big")))
    small, big = bench.ppp.sessions
    bench.port.set_mtu(1500, bench.now)
    assert [link.max_mru for link in big.links] == [1492]
    assert big.call.link == big.links[0]
    assert not small.links
    bench.port.set_mtu(1400, bench.now)
    assert [link.max_mru for link in small.links] == [1392]
    bench.dial(b"new")
    assert bench.ppp.sessions[-1].call.link.max_mru == 1392


# Reload.


def test_reload_changes_what_new_sessions_get() -> None:
    bench = Bench(tunnel(service_names=("gold",), session_limit=0))
    _, old = bench.dial(b"1")
    changed = tunnel(service_names=("gold", "silver"), session_limit=1, ac_name="new")
    bench.engine.reconfigure([changed], bench.now)
    assert not old.ended
    assert old.call.link.tunnel is not changed
    pado = bench.padi(b"silver")
    assert pado is not None
    assert pado.first(Tag.AC_NAME) == b"new"
    # The limit counts the session that was there before.
    pads = bench.padr(b"", (Tag.HOST_UNIQ, b"2"))
    assert pads is not None
    assert pads.session_id == 0
    _, new = bench.dial(b"1", mac=OTHER_HOST)
    assert new.call.link.tunnel is changed


def test_reload_without_the_interface_ends_its_sessions() -> None:
    bench = Bench(tunnel(interfaces=("eth0", "eth1")))
    bench.up(Port("eth1"))
    sid, upper = bench.dial()
    del bench.wire[:]
    bench.engine.reconfigure([tunnel(interfaces=("eth1",))], bench.now)
    assert bench.sent() == [Discovery(HOST, AC, Code.PADT, sid)]
    assert upper.ended == [(Cause.ADMIN_RESET, "interface no longer listened on")]
    assert bench.engine.interfaces() == {"eth1"}
    assert bench.engine.ports.keys() == bench.engine.drops.keys() == {Port("eth1")}


def test_reload_without_a_tunnel_ends_its_sessions_only() -> None:
    home, office = tunnel("HOME", service_names=("home",)), tunnel("OFFICE", service_names=("office",))
    bench = Bench(home, office)
    _, stays = bench.dial(b"1", service=b"home")
    _, ends = bench.dial(b"2", service=b"office")
    bench.engine.reconfigure([home], bench.now)
    assert not stays.ended
    assert ends.ended == [(Cause.ADMIN_RESET, "tunnel no longer offered")]
    assert bench.padi(b"office") is None


# Packet dumps.


def dumped(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message.split()[2] for record in caplog.records if "\n" in record.message]


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        ("desc_in_pktdump", ["RecvDiscovery"] * 3),
        ("desc_out_pktdump", ["SendDiscovery"] * 2),
        ("session_in_pktdump", ["RecvSession"]),
        ("session_out_pktdump", ["SendSession"]),
    ],
)
def test_each_pktdump_option_does_something(option: str, seen: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """npppd reads them and forgets them."""
    bench = Bench(tunnel(**{option: True}))  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG, "npppy.pppoe"):
        bench.padi()
        sid, upper = bench.dial()
        bench.talk(sid, LCP_REQUEST)
        upper.call.send(LCP_REQUEST)
        bench.ask(Code.PADT, sid=sid)
    assert dumped(caplog) == seen


def test_no_dump_unless_asked_for(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "npppy.pppoe"):
        bench.padi()
        bench.dial()
    assert not dumped(caplog)


def test_a_dump_of_pap_shows_no_password(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tunnel(session_in_pktdump=True))
    with caplog.at_level(logging.DEBUG, "npppy.pppoe"):
        sid, _ = bench.dial()
        bench.talk(sid, b"\xc0\x23\x01\x01\x00\x14\x05alice\x09wonderful")
    assert dumped(caplog) == ["RecvSession"]
    assert b"wonderful".hex(" ") not in caplog.text
    assert b"alice".hex(" ") not in caplog.text
