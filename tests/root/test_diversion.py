"""The tables of nftables by which what IPsec has decrypted comes to npx0, without any IPsec."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from npppy.pipex.ebpf.ipsec import Diversion, teardown
from npppy.tun import nft

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

TABLE = "npppy-test"
HERE, HERE6 = ip_address("192.0.2.1").packed, ip_address("fd00::1").packed


@pytest.fixture
def npx0(netns: None) -> int:
    subprocess.run(["ip", "link", "add", "npx0", "type", "veth", "peer", "name", "npx1"], check=True)
    return socket.if_nametoindex("npx0")


@pytest.fixture
def diversion() -> Diversion:
    return Diversion(TABLE, IPv4Address("192.0.0.9"), IPv6Address("100::9"))


def tables() -> list[tuple[str, str]]:
    return [(one["table"]["family"], one["table"]["name"]) for one in ruleset() if "table" in one]


def ruleset() -> list[dict[str, Any]]:
    done = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return found


def sessions(family: str = "ip") -> set[tuple[Any, ...]]:
    """(address, port, both ids, mark) of what is diverted to npx0."""
    maps = [one["map"] for one in ruleset() if one.get("map", {}).get("family") == family]
    found = set()
    for key, device in (pair for one in maps for pair in one.get("elem", [])):
        assert device == "npx0"
        found.add(tuple(key["concat"]))
    return found


async def settled(family: str, expected: set[tuple[Any, ...]]) -> None:
    deadline = time.monotonic() + 60
    while (found := sessions(family)) != expected:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


async def test_sessions_come_and_go(npx0: int, diversion: Diversion) -> None:
    assert diversion.why_not() == ""
    assert sorted(tables()) == [("ip", TABLE), ("ip6", TABLE)]
    diversion.add(HERE, 1701, 0x1234, 0x5678, 7, npx0)
    diversion.add(HERE6, 1702, 1, 2, 0xFFFFFFFF, npx0)
    # Gone before anybody was told of it.
    diversion.add(HERE, 1701, 3, 4, 0, npx0)
    diversion.remove(HERE, 1701, 3, 4, 0)
    await settled("ip", {("192.0.2.1", 1701, 0x12345678, 7)})
    await settled("ip6", {("fd00::1", 1702, 0x10002, 0xFFFFFFFF)})
    # Gone and back.
    diversion.remove(HERE, 1701, 0x1234, 0x5678, 7)
    diversion.add(HERE, 1701, 0x1234, 0x5678, 7, npx0)
    diversion.remove(HERE6, 1702, 1, 2, 0xFFFFFFFF)
    await settled("ip6", set())
    assert sessions() == {("192.0.2.1", 1701, 0x12345678, 7)}
    diversion.close()
    assert tables() == []


async def test_many(npx0: int, diversion: Diversion) -> None:
    """More than one message has room for."""
    assert diversion.why_not() == ""
    many = {("192.0.2.1", 1701, 1 << 16 | number, 5) for number in range(3000)}
    for number in range(3000):
        diversion.add(HERE, 1701, 1, number, 5, npx0)
    await settled("ip", many)
    for number in range(2999):
        diversion.remove(HERE, 1701, 1, number, 5)
    await settled("ip", {("192.0.2.1", 1701, 1 << 16 | 2999, 5)})
    diversion.close()


@pytest.mark.parametrize("what", ["flush ruleset", f"delete table ip {TABLE}"])
async def test_removed_by_others(npx0: int, diversion: Diversion, what: str) -> None:
    nft.run("table inet others {}\n")
    assert diversion.why_not() == ""
    diversion.add(HERE, 1701, 1, 2, 3, npx0)
    await settled("ip", {("192.0.2.1", 1701, 0x10002, 3)})
    nft.run(what)
    diversion.add(HERE, 1701, 4, 5, 6, npx0)
    await settled("ip", {("192.0.2.1", 1701, 0x10002, 3), ("192.0.2.1", 1701, 0x40005, 6)})
    # Of others' tables there is nothing to say.
    nft.run("table inet another {}\ndelete table inet another\n")
    nft.run(what)
    await settled("ip", {("192.0.2.1", 1701, 0x10002, 3), ("192.0.2.1", 1701, 0x40005, 6)})
    diversion.close()


async def test_an_earlier_process(npx0: int, diversion: Diversion) -> None:
    """Its tables are replaced, or removed by who wants none."""
    nft.run(f"table ip {TABLE} {{ chain old {{ }}; }}\ntable ip others {{}}\n")
    assert diversion.why_not() == ""
    assert not any("old" in one.get("chain", {}).values() for one in ruleset())
    assert teardown(TABLE) == [f"nftables table {family} {TABLE} removed" for family in ("ip", "ip6")]
    assert teardown(TABLE) == []
    assert tables() == [("ip", "others")]
    diversion.close()


async def test_without_nft(
    npx0: int, diversion: Diversion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.which", lambda *args, **rest: None)
    assert diversion.why_not() == diversion.why_not() == "nft(8) is not installed"
    assert [record.message for record in caplog.records] == [
        "pipex: Python carries L2TP under IPsec: nft(8) is not installed"
    ]
    diversion.add(HERE, 1701, 1, 2, 3, npx0)
    diversion.remove(HERE, 1701, 1, 2, 3)
    diversion.close()


def test_what_nft_says() -> None:
    with pytest.raises(nft.NftError, match=r"nft\(8\): /dev/stdin:1:7-8: Error: syntax error"):
        nft.run("tabel ip x")
