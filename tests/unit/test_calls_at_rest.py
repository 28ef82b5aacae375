"""What calls let go of at rest, and make anew when it is asked for."""

from __future__ import annotations

from dataclasses import replace

from npppy.l2tp.codec import u32
from npppy.ppp.link import Call, Link
from npppy.pppoe.codec import AccessLine, Tag, encode_access_line
from npppy.pppoe.service import MAX_TERMS
from tests.unit.pppoe_fake import Bench, FakePpp, tunnel
from tests.unit.pptp_net import Net, call
from tests.unit.test_l2tp_call import Rig


def rests(one: Call) -> Link:
    """A call at rest has the same link as before, and keeps none."""
    before = one.link
    assert one.link is before
    one.rest()
    assert one.link == before
    assert one.link is not one.link
    return before


def test_pppoe() -> None:
    bench = Bench(tunnel(mru=1500, service_names=("gold", "")), mtu=1508)
    line = AccessLine(b"eth 1/2", b"Ada")
    vendor = (Tag.VENDOR_SPECIFIC, encode_access_line(line))
    bench.padr(b"gold", (Tag.HOST_UNIQ, b"1"), (Tag.PPP_MAX_PAYLOAD, (1500).to_bytes(2, "big")), vendor)
    link = rests(bench.ppp.sessions[0].call)
    caller = link.caller
    assert (caller.service, caller.circuit_id, caller.remote_id, link.max_mru) == ("gold", *line, 1500)
    bench.dial(b"2")
    assert rests(bench.ppp.sessions[1].call).max_mru == 1492


def test_pppoe_after_a_reload_and_on_a_smaller_path() -> None:
    """A session keeps the options that it came in with; what is new of the path it has at rest, too."""
    bench = Bench(tunnel(mru=1400))
    bench.dial()
    (session,) = bench.ppp.sessions
    link = rests(session.call)
    bench.engine.reconfigure([tunnel(mru=1300)], bench.now)
    assert session.call.link == link
    bench.port.set_mtu(1308, bench.now)
    assert session.links == [replace(link, max_mru=1300)]
    assert session.call.link == session.links[0]
    # It has been told of this one.
    bench.port.set_mtu(1500, bench.now)
    bench.port.set_mtu(1400, bench.now)
    assert len(session.links) == 1


def test_what_pppoe_remembers_for_hosts_is_bounded() -> None:
    bench = Bench(tunnel(mru=9000), mtu=9100)
    (service,) = bench.port._services.values()
    for mru in range(1493, 1493 + MAX_TERMS + 10):
        assert service.terms("", mru).max_mru == mru
    assert len(service._terms) <= MAX_TERMS
    assert service.terms("", 1500) is service.terms("", 1500)


def test_l2tp() -> None:
    rig = Rig()
    _, session = rig.up(tx_connect_speed=u32(2_000_000), rx_connect_speed=u32(64_000))
    link = rests(session.call)
    caller = link.caller
    assert link.over is rig.ours
    assert (caller.calling_number, caller.called_number) == ("4711", "0800")
    assert (caller.tx_speed, caller.rx_speed) == (2_000_000, 64_000)


def test_l2tp_after_a_reload() -> None:
    rig = Rig(udp_checksum=True)
    _, session = rig.up()
    link = rests(session.call)
    service = rig.lns.services["L2TP"]
    service.configure(service.tunnel, replace(service.options, udp_checksum=False))
    assert session.call.link == link
    assert session.call.link.encap.checksum


def test_pptp() -> None:
    net, ppp = Net(), FakePpp()
    pac = net.pac(ppp, send_window=True)
    raw, connection = net.started(pac)
    call(raw, connection, 7,  phone_number_length=3, phone_number=b"081")
    link = rests(ppp.sessions[0].call)
    assert (link.caller.called_number, link.encap.window) == ("081", 64)
    service = pac.services["PPTP"]
    service.configure(replace(service.tunnel, name="OTHER"), service.options)
    assert ppp.sessions[0].call.link == link
