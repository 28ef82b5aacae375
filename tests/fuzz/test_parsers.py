"""Every parser of what comes from outside takes random and mutated inputs, and raises only its own error.

The data path's parsers have the same in tests/unit/test_pipex_user.py, PPPoE's access port as a whole in
test_pppoe_fuzz.py, sessions as a whole in test_session_fuzz.py.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from npppy.config.loader import ConfigError, load
from npppy.config.model import AuthMethod
from npppy.config.users import _Database
from npppy.control import protocol
from npppy.cursor import Malformed
from npppy.ppp import login, options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.station import Phase
from npppy.pppoe import codec
from tests.effort import some
from tests.unit.ppp_rig import Line, Rig

ROUNDS = some(100_000, 10)

PADI = bytes.fromhex("ffffffffffff0200000000018863110900000014010100000103000412345678010500040de90101")
SESSION = bytes.fromhex("020000000002020000000001886411000007001ac02101010018010405d4") + bytes(20)
ACCESS_LINE = bytes.fromhex("00000de90103616263020464656667")
REQUESTS = [
    b"\x01\x01\x00\x0e\x01\x04\x05\xd4\x05\x06abcd",
    b"\x01\x02\x00\x12\x01\x04\x05\xd4\x03\x05\xc2\x23\x05\x05\x06abcd\x07\x02",
    b"\x05\x03\x00\x08bye!",
    b"\x08\x04\x00\x0a\x80\xfd\x01\x01\x00\x04",
    b"\x09\x05\x00\x0cpeerdata",
    b"\x01\x06\x00\x10\x03\x06\0\0\0\0\x81\x06\0\0\0\0",
]
PAP = b"\x01\x01\x00\x14\x05alice\x0awonderland"
CHAP = b"\x02\x01\x00\x1a\x10" + bytes(16) + b"alice"
MSCHAP = b"\x02\x01\x00\x3b\x31" + bytes(49) + b"alice"
EAP = [bytes((2, identifier)) + b"\x00\x0a\x01alice" for identifier in range(256)]
USERS = b"alice|al:\\\n\t:password=won\\072der^Aland:framed-ip-address=10.0.0.9:\nbob:tc=alice:# no\nbob:password=\\\n"
CONFIG = [
    b"set max-session 5 # x\n",
    b"tunnel A protocol pppoe {\n listen on interface e1\n mru 1492\n}\n",
    b'ipcp P {\n pool-address "10.0.0.0/8"\n}\n',
]
#: What the peer is asked by in a stage; PAP where nothing is said.
METHODS = {"chap": (AuthMethod.CHAP,), "eap": (AuthMethod.EAP,)}


def mutated(seed: bytes, source: random.Random) -> bytes:
    """Octets replaced, removed, added, or the end cut off."""
    data = bytearray(seed)
    for _ in range(source.choice((1, 1, 2, 3, 6))):
        at = source.randrange(len(data) + 1)
        match source.randrange(5):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + source.randrange(1, 5)]
            case 2:
                data[at:at] = source.randbytes(source.randrange(1, 5))
            case _:
                if at < len(data):
                    data[at] = source.choice((0, 1, 2, 4, 0x7F, 0x80, 0xFF, data[at] ^ 1, source.randrange(256)))
    return bytes(data)


def inputs(name: str, seeds: Sequence[bytes]) -> list[bytes]:
    """One in five is random from its first octet to its last."""
    source = random.Random(name)
    return [
        source.randbytes(source.randrange(48)) if n % 5 == 0 else mutated(seeds[n % len(seeds)], source)
        for n in range(ROUNDS)
    ]


def take_login(data: bytes) -> None:
    _, _, cursor = login.parse(data)
    cursor.take(cursor.u8())
    cursor.take(cursor.u8())


PARSERS: dict[str, tuple[Callable[[bytes], object], Sequence[bytes], type[Exception]]] = {
    "configuration options": (options.decode, [packet[4:] for packet in REQUESTS], Malformed),
    "authentication": (take_login, [PAP, CHAP], Malformed),
    "discovery": (codec.decode_discovery, [PADI], Malformed),
    "session frame": (codec.decode_session, [SESSION], Malformed),
    "access line": (lambda data: codec.access_line([data]), [ACCESS_LINE], Malformed),
    "PPP-Max-Payload": (codec.max_payload, [b"\x05\xdc"], Malformed),
    "control request": (
        protocol.decode,
        [b'{"command": "session", "filters": {"ppp_id": 7}}', b'{"hello": "npppyctl", "version": 1}'],
        protocol.ProtocolError,
    ),
    "control frame header": (
        lambda data: protocol.payload_length(data[:4].ljust(4, b"\0"), 65536),
        [b"\0\0\0\x20"],
        protocol.ProtocolError,
    ),
    "npppd-users": (lambda data: _Database("npppd-users", data), [USERS], ZeroDivisionError),
}


@pytest.mark.parametrize("name", PARSERS)
def test_parser(name: str) -> None:
    parse, seeds, error = PARSERS[name]
    refused = 0
    for data in inputs(name, seeds):
        try:
            parse(data)
        except error:
            refused += 1
    # Mutations that are all refused, or none, would test little.  A users file has no error: it has diagnostics.
    assert refused < ROUNDS
    assert refused or name in ("npppd-users", "PPP-Max-Payload")


def test_npppd_conf(tmp_path: Path) -> None:
    file = tmp_path / "npppd.conf"
    refused = 0
    # A load takes a millisecond.
    for data in itertools.islice(inputs("npppd.conf", CONFIG), ROUNDS // 3):
        # Written over, ext4 would have it on the disk each time.
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        try:
            load(file)
        except ConfigError:
            refused += 1
    assert 0 < refused < ROUNDS // 3


STAGES: dict[str, tuple[int, Callable[[Line], object], Sequence[bytes]]] = {
    "lcp-establish": (proto.LCP, lambda line: None, REQUESTS),
    "lcp-up": (proto.LCP, lambda line: line.up(), REQUESTS),
    "pap": (proto.PAP, lambda line: line.open_lcp(), [PAP]),
    "ipcp-network": (proto.IPCP, lambda line: (line.open_lcp(), line.pap()), REQUESTS),
    "ipcp-up": (proto.IPCP, lambda line: line.up(), REQUESTS),
    "chap": (proto.CHAP, lambda line: line.open_lcp(), [CHAP, MSCHAP]),
    # Packets of servers that go with them are in test_eap_fuzz.py.
    "eap": (proto.EAP, lambda line: line.open_lcp(), EAP),
}


@pytest.mark.parametrize("name", STAGES)
def test_session(name: str) -> None:
    """A session of its own whenever one has ended, in the stage where the packets mean something."""
    number, prepare, seeds = STAGES[name]
    rig = Rig(**({"authentication_methods": METHODS[name]} if name in METHODS else {}))
    line: Line | None = None
    for data in inputs(name, seeds):
        if line is None or line.session.phase >= Phase.TERMINATE:
            if line is not None and line.session.phase is not Phase.DEAD:
                line.session.gone(Cause.LOST_CARRIER, "test", rig.now)
            line = rig.line()
            prepare(line)
        line.give_raw(number.to_bytes(2, "big") + data)
        line.sent.clear()
    assert line is not None
    if line.session.phase is not Phase.DEAD:
        line.session.gone(Cause.LOST_CARRIER, "test", rig.now)
    rig.nothing_left()
