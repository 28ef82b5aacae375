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


def net6(text: str) -> tuple[bytes, int]:
    network = IPv6Network(text)
    return network.network_address.packed, network.prefixlen


@pytest.mark.parametrize("length", range(33))
def test_mask(length):
    assert mask(length) == int(IPv4Network((0, length)).netmask)
    assert mask(length * 4, 128) == int(IPv6Network((0, length * 4)).netmask)


def test_longest_prefix():
    table: Table[str] = Table()
    table.add(number("10.0.0.1"), 8, "eight")
    table.add(number("10.1.0.1"), 16, "sixteen")
    table.add(number("10.1.1.1"), 24, "twenty-four")
    table.add(number("10.1.1.7"), 32, "host")
    table.add(number("192.0.2.1"), 0, "all")
    assert find(table, "10.1.1.7") == "host"
    assert find(table, "10.1.1.8") == "twenty-four"
    assert find(table, "10.1.2.1") == "sixteen"
    assert find(table, "10.2.0.1") == "eight"
    assert find(table, "11.0.0.1") == "all"
    table.remove(number("10.1.1.1"), 24)
    assert find(table, "10.1.1.8") == "sixteen"
    table.remove(number("192.0.2.1"), 0)
    assert find(table, "11.0.0.1") is None


def test_conflicts_name_what_is_taken():
    table: Table[str] = Table()
    table.add(number("10.1.1.1"), 24, "a")
    with pytest.raises(ConflictError, match=r"address 10\.1\.1\.1 is taken"):
        table.add(number("10.1.1.1"), 32, "b")
    with pytest.raises(ConflictError, match=r"address 10\.1\.1\.1 is taken"):
        table.add(number("10.1.1.1"), 16, "b")
    with pytest.raises(ConflictError, match=r"network 10\.1\.1\.0/24 is taken"):
        table.add(number("10.1.1.200"), 24, "b")
    # What was refused has left nothing behind.
    assert find(table, "10.1.1.200") == "a"
    assert find(table, "10.1.2.1") is None
    table.add(number("10.1.1.200"), 25, "c")
    assert find(table, "10.1.1.129") == "c"


def test_longest_prefix6():
    table: Table[str] = Table()
    table.add(0, 32, "both", (net6("2001:db8::/32"), net6("fd00::/64")))
    table.add(0, 32, "longer", (net6("2001:db8:1::/48"),))
    table.add(0, 32, "host", (net6("2001:db8:1::7/128"),))
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
    table.remove(0, 32, (net6("2001:db8:1::/48"),))
    assert table.network6(int(IPv6Address("2001:db8:1::1"))) == "both"
    table.add(0, 32, "all", (net6("::/0"),))
    assert table.network6(0) == "all"


def test_conflicts6():
    table: Table[str] = Table()
    table.add(number("10.0.0.1"), 24, "a", (net6("2001:db8::/56"),))
    for networks in ([net6("2001:db8:1::/56"), net6("2001:db8::/56")], [net6("fd00::/8"), net6("fd00::/8")]):
        with pytest.raises(ConflictError, match=r"network (2001:db8::/56|fd00::/8) is taken"):
            table.add(number("10.0.1.1"), 24, "b", networks)
    with pytest.raises(ConflictError, match=r"network 10\.0\.0\.0/24 is taken"):
        table.add(number("10.0.0.2"), 24, "b", [net6("2001:db8:1::/56")])
    # What was refused has left nothing behind, and what was not is there yet.
    for address in ("2001:db8:1::1", "fd00::1"):
        assert table.network6(int(IPv6Address(address))) is None
    assert find(table, "10.0.1.1") is None
    assert table.network6(int(IPv6Address("2001:db8::1"))) == "a"
    # Bits beyond the prefix don't count.
    with pytest.raises(ConflictError):
        table.add(0, 32, "b", [(IPv6Address("2001:db8::ff").packed, 56)])
    table.remove(number("10.0.0.1"), 24, (net6("2001:db8::/56"),))
    table.add(number("10.0.0.1"), 24, "b", (net6("2001:db8::/56"),))


def test_against_a_model():
    rng = random.Random(7)
    table: Table[int] = Table()
    entries: dict[int, IPv4Network] = {}
    for step in range(3000):
        if entries and rng.random() < 0.4:
            address = rng.choice(list(entries))
            table.remove(address, entries.pop(address).prefixlen)
        else:
            # Few addresses, so that there are conflicts and nesting.
            address = 0x0A000000 + rng.randrange(256)
            network = IPv4Network((address, rng.choice((24, 26, 28, 30, 31, 32, 32))), strict=False)
            taken = address in entries or (network.prefixlen < 32 and network in entries.values())
            if taken:
                with pytest.raises(ConflictError):
                    table.add(address, network.prefixlen, address)
            else:
                table.add(address, network.prefixlen, address)
                entries[address] = network
        probe = 0x0A000000 + rng.randrange(260)
        expected = max(
            (address for address, network in entries.items() if address == probe or probe in range_of(network)),
            key=lambda address: 33 if address == probe else entries[address].prefixlen,
            default=None,
        )
        found = table.hosts.get(probe)
        assert (table.network(probe) if found is None else found) == expected, step


def range_of(network: IPv4Network) -> range:
    first = int(network.network_address)
    return range(first, first + network.num_addresses)
