"""How many sessions the maps are made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from npppy.pipex.datapath import capacity

from .config_file import ConfigFile

CONF = """
{top}
tunnel ACCESS protocol pppoe {{
    listen on interface eth1
}}
{pools}
authentication LOCAL type local {{
    users-file "users"
}}
"""


def pool(name: str, addresses: str) -> str:
    return f"ipcp {name} {{\n pool-address {addresses}\n}}\ninterface tun{name} address 192.0.2.{name} ipcp {name}\n"


@pytest.mark.parametrize(
    ("top", "pools", "number"),
    [
        ("", pool("1", "10.0.0.0/24"), 1024),
        ("", pool("1", "10.0.0.0/19") + pool("2", "10.1.0.0/20"), 8192 + 4096),
        ("", pool("1", "10.0.0.0/19") + "interface tun9 address 192.0.2.9 ipcp 1\n", 8192),
        ("", pool("1", "10.0.0.0/12"), 65536),
        ("set max-session 20", pool("1", "10.0.0.0/12"), 20),
        ("set max-session 100000", pool("1", "10.0.0.0/24"), 100_000),
        ("set max-session 10000000", pool("1", "10.0.0.0/24"), 1 << 20),
    ],
)
def test_capacity(tmp_path: Path, top: str, pools: str, number: int) -> None:
    assert capacity(ConfigFile(tmp_path).load(CONF.format(top=top, pools=pools))) == number
