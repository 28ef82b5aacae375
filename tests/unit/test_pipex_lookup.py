from __future__ import annotations

import random
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import pytest

from npppy.pipex.base import ConflictError
from npppy.pipex.lookup import Table, mask

from .ippackets import number


def find(table: Table[str], address: str) -> str | None:
    value = number(address)
    return table.hosts.get(value) or table.network(value)


def net4(*texts: str) -> tuple[tuple[int, int], ...]:
    networks = map(IPv4Network, texts)
    return tuple((int(network.network_address), network.prefixlen) for network in networks)


def net6(text: str) -> tuple[bytes, int]:
    network = IPv6Network(text)
    return network.network_address.packed, network.prefixlen


@pytest.mark.parametrize("length", range(33))
def test_mask(length):
    assert mask(length) == int(IPv4Network((0, length)).netmask)
    assert mask(length * 4, 128) == int(IPv6Network((0, length * 4)).netmask)


def test_longest_prefix():
    table: Table[str] = Table()
    table.add(number("10.0.0.1"), net4("10.0.0.0/8"), "eight")
    table.add(number("10.1.0.1"), net4("10.1.0.0/16"), "sixteen")
    table.add(number("10.1.1.1"), net4("10.1.1.0/24"), "twenty-four")
    table.add(number("10.1.1.7"), (), "host")
    table.add(number("192.0.2.1"), net4("0.0.0.0/0"), "all")
    assert find(table, "10.1.1.7") == "host"
    assert find(table, "10.1.1.8") == "twenty-four"
    assert find(table, "10.1.2.1") == "sixteen"
    assert find(table, "10.2.0.1") == "eight"
    assert find(table, "11.0.0.1") == "all"
    table.remove(number("10.1.1.1"), net4("10.1.1.0/24"))
    assert find(table, "10.1.1.8") == "sixteen"
    table.remove(number("192.0.2.1"), net4("0.0.0.0/0"))
    assert find(table, "11.0.0.1") is None


def test_conflicts_name_what_is_taken():
    table: Table[str] = Table()
    table.add(number("10.1.1.1"), net4("10.1.1.0/24"), "a")
    with pytest.raises(ConflictError, match=r"address 10\.1\.1\.1 is taken"):
        table.add(number("10.1.1.1"), (), "b")
    with pytest.raises(ConflictError, match=r"address 10\.1\.1\.1 is taken"):
        table.add(number("10.1.1.1"), net4("10.1.0.0/16"), "b")
    with pytest.raises(ConflictError, match=r"network 10\.1\.1\.0/24 is taken"):
        table.add(number("10.1.1.200"), net4("10.1.1.0/24"), "b")
    # What was refused has left nothing behind.
    assert find(table, "10.1.1.200") == "a"
    assert find(table, "10.1.2.1") is None
    table.add(number("10.1.1.200"), net4("10.1.1.128/25"), "c")
    assert find(table, "10.1.1.129") == "c"


def test_several_networks():
    """All are the flow's or none; one of a single address is as good as an address."""
    table: Table[str] = Table()
    table.add(number("10.0.0.1"), net4("10.0.0.0/24", "192.0.2.0/28", "203.0.113.9/32"), "a")
    for address, expected in (("192.0.2.15", "a"), ("192.0.2.16", None), ("203.0.113.9", "a"), ("203.0.113.8", None)):
        assert find(table, address) == expected
        assert table.leads_to("a", number(address)) == (expected == "a")
    for networks, taken in (
        (net4("198.51.100.0/24", "192.0.2.0/28"), r"192\.0\.2\.0/28"),
        (net4("198.51.100.7/32", "203.0.113.9/32"), r"203\.0\.113\.9/32"),
        (net4("198.51.100.7/32", "10.0.0.1/32"), r"10\.0\.0\.1/32"),
    ):
        with pytest.raises(ConflictError, match=f"network {taken} is taken"):
            table.add(number("10.0.0.2"), networks, "b")
    with pytest.raises(ConflictError, match=r"address 203\.0\.113\.9 is taken"):
        table.add(number("203.0.113.9"), (), "b")
    # What was refused has left nothing behind.
    table.add(number("10.0.0.2"), net4("198.51.100.0/24", "198.51.100.7/32"), "b")
    # Another's address or longer network in one's own is not one's own.
    table.add(number("192.0.2.3"), net4("192.0.2.8/30"), "c")
    for address, expected in (("192.0.2.2", "a"), ("192.0.2.3", "c"), ("192.0.2.9", "c")):
        assert [name for name in ("a", "b", "c") if table.leads_to(name, number(address))] == [expected]
    table.remove(number("10.0.0.1"), net4("10.0.0.0/24", "192.0.2.0/28", "203.0.113.9/32"))
    assert find(table, "192.0.2.2") is find(table, "203.0.113.9") is None
    table.add(number("203.0.113.9"), (), "d")


def test_longest_prefix6():
    table: Table[str] = Table()
    table.add(0, (), "both", (net6("2001:db8::/32"), net6("fd00::/64")))
    table.add(0, (), "longer", (net6("2001:db8:1::/48"),))
    table.add(0, (), "host", (net6("2001:db8:1::7/128"),))
    for address, expected in (
        ("2001:db8:2::1", "both"),
        ("fd00::1", "both"),
        ("fd00:0:0:1::", None),
        ("2001:db8:1::1", "longer"),
        ("2001:db8:1::7", "host"),
        ("2001:db9::", None),
    ):
        assert table.network6(int(IPv6Address(address))) == expected, address
    # None of them has an IPv4 address.
    assert table.hosts == {}
    table.remove(0, (), (net6("2001:db8:1::/48"),))
    assert table.network6(int(IPv6Address("2001:db8:1::1"))) == "both"
    table.add(0, (), "all", (net6("::/0"),))
    assert table.network6(0) == "all"


def test_conflicts6():
    table: Table[str] = Table()
    table.add(number("10.0.0.1"), net4("10.0.0.0/24"), "a", (net6("2001:db8::/56"),))
    for networks in ([net6("2001:db8:1::/56"), net6("2001:db8::/56")], [net6("fd00::/8"), net6("fd00::/8")]):
        with pytest.raises(ConflictError, match=r"network (2001:db8::/56|fd00::/8) is taken"):
            table.add(number("10.0.1.1"), net4("10.0.1.0/24"), "b", networks)
    with pytest.raises(ConflictError, match=r"network 10\.0\.0\.0/24 is taken"):
        table.add(number("10.0.0.2"), net4("10.0.0.0/24"), "b", [net6("2001:db8:1::/56")])
    # What was refused has left nothing behind, and what was not is there yet.
    for address in ("2001:db8:1::1", "fd00::1"):
        assert table.network6(int(IPv6Address(address))) is None
    assert find(table, "10.0.1.1") is None
    assert table.network6(int(IPv6Address("2001:db8::1"))) == "a"
    # Bits beyond the prefix don't count.
    with pytest.raises(ConflictError):
        table.add(0, (), "b", [(IPv6Address("2001:db8::ff").packed, 56)])
    table.remove(number("10.0.0.1"), net4("10.0.0.0/24"), (net6("2001:db8::/56"),))
    table.add(number("10.0.0.1"), net4("10.0.0.0/24"), "b", (net6("2001:db8::/56"),))


def test_against_a_model():
    rng = random.Random(7)
    table: Table[int] = Table()
    entries: dict[int, IPv4Network] = {}
    for step in range(3000):
        if entries and rng.random() < 0.4:
            address = rng.choice(list(entries))
            table.remove(address, behind(entries.pop(address)))
        else:
            # Few addresses, so that there are conflicts and nesting.
            address = 0x0A000000 + rng.randrange(256)
            network = IPv4Network((address, rng.choice((24, 26, 28, 30, 31, 32, 32))), strict=False)
            taken = address in entries or (network.prefixlen < 32 and network in entries.values())
            if taken:
                with pytest.raises(ConflictError):
                    table.add(address, behind(network), address)
            else:
                table.add(address, behind(network), address)
                entries[address] = network
        probe = 0x0A000000 + rng.randrange(260)
        expected = max(
            (address for address, network in entries.items() if address == probe or probe in range_of(network)),
            key=lambda address: 33 if address == probe else entries[address].prefixlen,
            default=None,
        )
        found = table.hosts.get(probe)
        assert (table.network(probe) if found is None else found) == expected, step


def behind(network: IPv4Network) -> tuple[tuple[int, int], ...]:
    return net4(str(network)) if network.prefixlen < 32 else ()


def range_of(network: IPv4Network) -> range:
    first = int(network.network_address)
    return range(first, first + network.num_addresses)
