"""Whatever a file holds, loading it gives a configuration or errors, each with a place inside the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npppy.config.loader import ConfigError, load
from npppy.config.model import Config
from npppy.config.options import IPCP, SET, TUNNEL
from npppy.config.options_radius import AUTHENTICATION, DAE, PORT_ID_NAMES, RADIUS, SERVERS

from . import config_file

ROOT = Path(__file__).parent.parent.parent
SEEDS = [
    *(path.read_bytes() for path in sorted((ROOT / "tests/unit/data").glob("*.conf"))),
    (ROOT / "conf/npppd.conf").read_bytes(),
    (ROOT / "conf/npppd.conf").read_bytes() + (ROOT / "conf/radius.conf").read_bytes().replace(b"#radius", b"radius"),
    (config_file.BASE + config_file.TUNNEL % "pppoe-pado-delay drop from 5" + config_file.BIND).encode(),
]
OTHER_WORDS = """
tunnel ipcp interface authentication bind radius set include protocol type pppoe l2tp pptp local from to by { } on port
secret for static drop yes no required optional priority message-authenticator status-server balance dae
0 -1 99999999999999999999999 1492 ::1 10.0.0.0/24 10.0.0.1-10.0.0.9 .. * ? [
" ' # = \\
"""
WORDS = sorted(
    {
        *(word for table in (*TUNNEL.values(), IPCP, AUTHENTICATION, SET, RADIUS, DAE) for word in table),
        *(word for table in (SERVERS, *SERVERS.values()) for word in table),
        *(f'"{{{name}}}"' for name in PORT_ID_NAMES),
        *OTHER_WORDS.split(),
        *("\n", "{\n", "}\n", "\\\n", '"\n', "\xa0", "\0", '"\0"', "x" * 5000),
    }
)


def check(path: Path, data: bytes) -> Config | None:
    path.write_bytes(data)
    result = None
    try:
        result = load(path)
        errors, warnings = [], list(result.warnings)
    except ConfigError as error:
        errors, warnings = error.diagnostics, error.warnings
    assert (result is None) == bool(errors)
    lines = data.decode("utf-8", "replace").split("\n")
    for where, message in errors + warnings:
        assert where.file == str(path)
        assert 1 <= where.line <= len(lines)
        # One character behind the end is the place of the newline; an octet that is not UTF-8 is one character.
        assert 1 <= where.column <= max(len(data.split(b"\n")[where.line - 1]), 0) + 1
        assert message.isprintable()
    return result


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=8) | st.sampled_from(["\n", " { ", " }\n"]), max_size=60))
def test_random_words(tmp_path: Path, words: list[str]) -> None:
    check(tmp_path / "f", " ".join(words).encode("utf-8", "surrogatepass"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_random_octets(tmp_path: Path, data: bytes) -> None:
    check(tmp_path / "f", data)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few words, lines or octets removed, doubled, swapped or replaced."""
    for _ in range(rng.randint(1, 4)):
        kind = rng.randrange(5)
        if kind < 2:
            lines = data.split(b"\n")
            at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[at : at + rng.randrange(3)] = [lines[other]] * kind
            data = b"\n".join(lines)
        elif kind == 2:
            words = data.split(b" ")
            words[rng.randrange(len(words))] = rng.choice(WORDS).encode()
            data = b" ".join(words)
        else:
            at = rng.randrange(len(data) + 1)
            new = rng.choice([b"", bytes((rng.randrange(256),)), *(bytes((c,)) for c in b"\xff\0\"'{}\\\n#=")])
            data = data[:at] + new + data[at + (kind == 4) :]
    return data


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_mutated_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    assert check(tmp_path / "f", SEEDS[seed]) is not None
    loaded = 0
    for _ in range(150):
        loaded += check(tmp_path / "f", mutate(SEEDS[seed], rng)) is not None
    # Both happen: otherwise the mutations are too coarse or too fine to test anything.
    assert 0 < loaded < 150
