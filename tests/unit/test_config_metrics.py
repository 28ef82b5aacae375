"""metrics-listen."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from npppy.config.options import METRICS_PORT

from .config_file import ConfigFile

MANUAL = Path(__file__).parents[2] / "conf" / "npppd.conf.5"
WHAT = "an address and perhaps a port (192.0.2.1:80, [2001:db8::1]:80)"


@pytest.fixture
def conf(tmp_path: Path) -> ConfigFile:
    return ConfigFile(tmp_path)


def test_by_default_nobody_is_answered(conf: ConfigFile) -> None:
    assert conf.load("").metrics_listen == ()


@pytest.mark.parametrize(
    ("word", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", METRICS_PORT),
        ("192.0.2.1:1", "192.0.2.1", 1),
        ('"192.0.2.1:65535"', "192.0.2.1", 65535),
        ("0.0.0.0", "0.0.0.0", METRICS_PORT),
        ("[::]", "::", METRICS_PORT),
        ("[2001:db8::1]:9100", "2001:db8::1", 9100),
        ("[::ffff:192.0.2.1]", "::ffff:192.0.2.1", METRICS_PORT),
    ],
)
def test_addresses(conf: ConfigFile, word: str, address: str, port: int) -> None:
    config = conf.load(f"metrics-listen {word}\n")
    assert config.metrics_listen == ((ip_address(address), port),)
    assert config.warnings == ()


def test_several(conf: ConfigFile) -> None:
    config = conf.load("metrics-listen 127.0.0.1\nmetrics-listen [::1]\nmetrics-listen 127.0.0.1:80\n")
    assert [str(address) for address, _ in config.metrics_listen] == ["127.0.0.1", "::1", "127.0.0.1"]
    assert conf.warnings("metrics-listen 127.0.0.1\nmetrics-listen 127.0.0.1:11701\n") == [
        "npppd.conf:2:16: 127.0.0.1 port 11701 is given again: npppd.conf:1:16 has no effect"
    ]


@pytest.mark.parametrize(
    "word",
    [
        "::1", "[::1", "::1]", "[127.0.0.1]", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:+1",
        "127.0.0.1:80:80", "localhost", ":80", "[]", "[fe80::1%eth0]", "1.2.3", "1.2.3.400", "127.0.0.1/8", "[::1]80",
    ],
)  # fmt: skip
def test_what_is_no_address(conf: ConfigFile, word: str) -> None:
    assert conf.errors(f"metrics-listen {word}\n") == [f'npppd.conf:1:16: expected {WHAT}, found "{word}"']


def test_the_rest_of_the_line(conf: ConfigFile) -> None:
    assert conf.errors("metrics-listen\n") == [f"npppd.conf:1:15: expected {WHAT}, found the end of the line"]
    assert conf.errors("metrics-listen 127.0.0.1 port 80\n") == [
        'npppd.conf:1:26: expected the end of the line, found "port"'
    ]
    assert conf.errors("metrics-listen 127.0.0.1 {\n}\n") == [
        'npppd.conf:1:26: expected the end of the line: "metrics-listen" has no block'
    ]
    assert conf.errors("metric-listen 127.0.0.1\n")[0].endswith('did you mean "metrics-listen"?')


def test_it_tells_where_a_brace_is_missing(conf: ConfigFile) -> None:
    assert conf.errors("tunnel A protocol l2tp {\nmetrics-listen 127.0.0.1\n") == [
        'npppd.conf:1:24: the "{" is not closed before "metrics-listen" in line 2'
    ]


def test_the_manual() -> None:
    text = MANUAL.read_text()
    assert ".It Ic metrics-listen Ar address Ns Op : Ns Ar port\n" in text
    assert f"is {METRICS_PORT}.\n" in text
