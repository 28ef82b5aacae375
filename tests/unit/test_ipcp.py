"""IPCP: RFC 1332 and RFC 1877, and where addresses come from."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from npppy.aaa.base import Accept
from npppy.ppp import options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.station import Phase

from .ppp_rig import Line, Rig

DNS = (IPv4Address("192.0.2.53"), IPv4Address("192.0.2.54"))


def ip(text: str) -> int:
    return int(IPv4Address(text))


def network(rig: Rig, user: str = "alice") -> Line:
    """A line that has logged in, its IPCP request out of the way."""
    line = rig.line()
    line.open_lcp()
    line.pap(user)
    return line


def ask(line: Line, *wishes: tuple[int, int | bytes]) -> tuple[int, dict[int, str | bytes]]:
    data = options.encode((k, v if isinstance(v, bytes) else v.to_bytes(4, "big")) for k, v in wishes)
    line.take(proto.IPCP)
    line.give(proto.IPCP, proto.CONFIGURE_REQUEST, 9, data)
    (answer,) = [p for p in line.take(proto.IPCP) if p[0] in (2, 3, 4)]
    opts = options.decode(answer[4:])
    return answer[0], {k: str(IPv4Address(v)) if len(v) == 4 else v for k, v in opts}


def test_we_ask_with_the_interfaces_address() -> None:
    line = network(Rig())
    assert options.decode(line.find(proto.IPCP, 1)[1]) == [(3, IPv4Address("10.0.0.1").packed)]


def test_a_request_of_0_0_0_0_is_naked_with_an_address() -> None:
    line = network(Rig())
    assert ask(line, (3, 0)) == (3, {3: "10.0.0.2"})
    assert ask(line, (3, ip("10.0.0.2"))) == (2, {3: "10.0.0.2"})


def test_a_request_without_an_address_is_naked_with_one_not_acked() -> None:
    line = network(Rig(ipcp={"dns": DNS}))
    assert ask(line) == (3, {3: "10.0.0.2"})
    # And appended where another option is Naked (npppd.md, section 8, row 21).
    assert ask(line, (129, 0)) == (3, {129: "192.0.2.53", 3: "10.0.0.2"})


def test_name_servers_are_told_and_unknown_ones_rejected() -> None:
    line = network(Rig(ipcp={"dns": DNS[:1]}))
    assert ask(line, (3, ip("10.0.0.2")), (129, 0), (131, 0), (130, 0)) == (4, {131: "0.0.0.0", 130: "0.0.0.0"})
    assert ask(line, (3, ip("10.0.0.2")), (129, ip("8.8.8.8"))) == (3, {129: "192.0.2.53"})
    assert ask(line, (3, ip("10.0.0.2")), (129, ip("192.0.2.53")))[0] == 2


def test_dns_0_0_0_0_is_never_acked() -> None:
    line = network(Rig())
    assert ask(line, (129, 0)) == (4, {129: "0.0.0.0"})


def test_nbns() -> None:
    line = network(Rig(ipcp={"nbns": DNS}))
    assert ask(line, (3, ip("10.0.0.2")), (130, 0), (132, 0)) == (3, {130: "192.0.2.53", 132: "192.0.2.54"})


def test_a_realm_supplies_name_servers_where_the_block_is_silent() -> None:
    rig = Rig()
    rig.aaa.accept["alice"] = Accept(dns=(ip("198.51.100.1"),))
    assert ask(network(rig), (3, ip("10.0.0.2")), (129, 0)) == (3, {129: "198.51.100.1"})


@pytest.mark.parametrize("option", [(1, bytes(8)), (2, b"\x00\x2d\x0f\x01"), (144, bytes(4))])
def test_ip_addresses_compression_and_unknown_options_are_rejected(option: tuple[int, bytes]) -> None:
    code, opts = ask(network(Rig()), (3, ip("10.0.0.2")), option)
    assert code == 4
    assert list(opts) == [option[0]]


@pytest.mark.parametrize("value", [b"", b"\x0a", bytes(3), bytes(5), bytes(16)])
def test_addresses_of_a_wrong_length_are_naked(value: bytes) -> None:
    assert ask(network(Rig()), (3, value)) == (3, {3: "10.0.0.2"})


def test_our_address_is_not_the_peers_to_choose() -> None:
    line = network(Rig())
    for _ in range(3):
        identifier, data = line.find(proto.IPCP, 1)
        assert data == b"\x03\x06" + IPv4Address("10.0.0.1").packed
        line.give(proto.IPCP, 3, identifier, b"\x03\x06" + IPv4Address("203.0.113.9").packed)
    identifier, _ = line.find(proto.IPCP, 1)
    line.give(proto.IPCP, 4, identifier, b"\x03\x06" + IPv4Address("10.0.0.1").packed)
    assert line.find(proto.IPCP, 1)[1] == b""


def test_the_peers_wish_only_where_both_realm_and_pool_allow_it() -> None:
    for allowed, by_peer, expected in [(True, True, "10.0.0.4"), (True, False, "10.0.0.2"), (False, True, "10.0.0.2")]:
        rig = Rig(ipcp={"allow_user_selected_address": allowed})
        rig.aaa.accept["alice"] = Accept(address_by_peer=by_peer)
        line = network(rig)
        code, opts = ask(line, (3, ip("10.0.0.4")))
        assert (code, opts[3]) == (2 if expected == "10.0.0.4" else 3, expected)


@pytest.mark.parametrize("wish", ["10.0.0.1", "10.0.0.9", "127.0.0.1", "255.255.255.255"])
def test_a_wish_outside_the_pool_or_for_our_own_address_gets_one_of_the_pool(wish: str) -> None:
    rig = Rig()
    rig.aaa.accept["alice"] = Accept(address_by_peer=True)
    assert ask(network(rig), (3, ip(wish))) == (3, {3: "10.0.0.2"})


def test_a_fixed_address_of_the_pool_is_nobody_elses() -> None:
    rig = Rig()
    rig.aaa.accept["alice"] = Accept(address=ip("10.0.0.2"))
    assert network(rig).open_ipcp() == ip("10.0.0.2")
    assert network(rig, "bob").open_ipcp() == ip("10.0.0.3")
    assert rig.routes.networks == []


def test_a_fixed_address_outside_the_pools_has_a_route_of_its_own() -> None:
    rig = Rig()
    rig.aaa.accept["alice"] = Accept(address=ip("203.0.113.7"))
    line = rig.up()
    assert line.session.ip == "203.0.113.7"
    assert rig.routes.networks == [IPv4Network("203.0.113.7/32")]
    line.session.end(line.session.cause, "test", rig.now)
    assert rig.routes.networks == []


def test_a_network_behind_the_peer_is_routed() -> None:
    rig = Rig()
    rig.aaa.accept["alice"] = Accept(address=ip("203.0.113.9"), prefixlen=29)
    rig.up()
    assert rig.routes.networks == [IPv4Network("203.0.113.8/29")]


@pytest.mark.parametrize("address", ["10.0.0.1", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
def test_a_fixed_address_that_cannot_be_refuses_the_login(address: str) -> None:
    rig = Rig()
    rig.aaa.accept["alice"] = Accept(address=ip(address))
    line = rig.line()
    line.open_lcp()
    assert line.pap()[0] == 3
    rig.wait(10)
    rig.nothing_left()


def test_an_exhausted_pool_refuses_the_login_with_a_reason() -> None:
    rig = Rig()
    for _ in range(3):
        rig.up()
    line = rig.line()
    line.open_lcp()
    assert line.pap("bob")[0] == 3
    assert line.session.reason == "the pool of ipcp POOL is exhausted"
    assert line.session.cause is Cause.SERVICE_UNAVAILABLE


def test_terminating_ipcp_ends_the_session() -> None:
    rig = Rig()
    line = rig.up()
    line.give(proto.IPCP, proto.TERMINATE_REQUEST, 7)
    assert line.take(proto.IPCP)[0][:2] == b"\x06\x07"
    rig.wait(12)
    assert line.closed is not None
    rig.nothing_left()


def test_a_peer_that_never_speaks_ipcp_is_ended() -> None:
    rig = Rig()
    network(rig)
    rig.wait(60)
    rig.nothing_left()


def test_renegotiation_of_ipcp_keeps_the_address() -> None:
    rig = Rig()
    line = rig.up()
    address = line.session.address
    assert ask(line, (3, address))[0] == 2
    assert line.session.phase is Phase.NETWORK
    rig.wait(3.3)
    line.ack(proto.IPCP)
    # Our own request was acknowledged, but the peer's must be acknowledged again.
    line.give(proto.IPCP, 1, 10, b"\x03\x06" + address.to_bytes(4, "big"))
    assert line.session.address == address
