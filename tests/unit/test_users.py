from __future__ import annotations

import os
import random
import tracemalloc
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npppy.config.model import Diagnostic
from npppy.config.users import User, UsersFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "npppd-users"


def read(path: Path, data: bytes) -> tuple[UsersFile, list[str]]:
    path.write_bytes(data)
    users = UsersFile(path)
    return users, short(users.refresh())


def short(diagnostics: list[Diagnostic]) -> list[str]:
    return [f"{where.line}:{where.column}: {message}" for where, message in diagnostics]


NO_NAME = (
    '1: a line of capabilities without a name: the line before it does not end with "\\"; the line is left out'
)
NO_HOST = "3: framed-ip-address: expected an address that a host can have, found "
NO_MASK = "3: framed-ip-netmask: expected a mask like 255.255.255.0, found "


def user(path: Path, data: bytes, name: str = "u") -> User:
    users, said = read(path, data)
    assert said == []
    found = users.get(name)
    assert found is not None
    return found


def ip(text: str) -> int:
    return int(IPv4Address(text))


def test_a_file_of_openbsd(path: Path) -> None:
    users, said = read(
        path,
        rb"""# comment
taro:\
    :password=taro's password:\
    :framed-ip-address=192.168.0.101:

hana:\
	:password=hana\072\c\\\^^:\
	:framed-ip-address=192.168.0.102:\
	:framed-ip-netmask=255.255.255.248:\
	:calling-number=0123456789:
#jiro:\
	:password=commented out with the line before:

# no end of line
saburo:password=x""",
    )
    assert said == [
        # The circumflex at the end of hana's password is not a whole escape.
        '7:3: an escape stands before the ":" and is dropped; a ":" in a value is written "\\072"'
    ]
    assert len(users) == 3
    assert users.get("taro") == User(name="taro", password=b"taro's password", address=ip("192.168.0.101"))
    assert users.get("hana") == User(
        name="hana",
        password=b"hana::\\^",
        address=ip("192.168.0.102"),
        prefixlen=29,
        calling_number="0123456789",
    )
    assert users.get("saburo") == User(name="saburo", password=b"x")
    assert users.get("jiro") is None
    assert "password" not in repr(users.get("taro"))


@pytest.mark.parametrize(
    ("value", "password"),
    [
        (rb"plain", b"plain"),
        (rb"", b""),
        (rb"with = and # and ' and \"", b"with = and # and ' and \""),
        (rb"\E\e\n\N\r\R\t\T\b\B\f\F\c\C", b"\x1b\x1b\n\n\r\r\t\t\b\b\f\f::"),
        (rb"\0\00\000\1\12\123\1234\377\400\0718\8", b"\0\0\0\x01\n\x53\x534\xff\x00988"),
        (rb"\\\^\a\ \|", b"\\^a |"),
        (b"^A^a^@^[^?^\\\\\\", b"\x01\x01\0\x1b\x7f\x1c\\"),
        (rb"\100home", b"@home"),
        (rb"\@home", b"@home"),
        (b"\xff\xfe\xc3\xa9", b"\xff\xfe\xc3\xa9"),
        (b"over\\\n lines", b"over lines"),
        (b"over\\\n\\\nlines", b"overlines"),
    ],
)
def test_escapes(path: Path, value: bytes, password: bytes) -> None:
    # Those of cgetstr(3).
    assert user(path, b"u:password=" + value + b":calling-number=1:\n").password == password


@given(st.binary(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_password_can_be_written(tmp_path: Path, password: bytes) -> None:
    escaped = b"".join(b"\\%03o" % octet for octet in password)
    assert user(tmp_path / "f", b"u:password=" + escaped + b":").password == password


def test_any_name_can_be_found(path: Path) -> None:
    # But for what ends it.  As PPP hands names on: octets that are not UTF-8 are kept by surrogateescape.
    for octets in (b"a b", b"DOM\\alice", b"caf\xe9", "café".encode(), b"x=y@z", b'"'):
        name = octets.decode("utf-8", "surrogateescape")
        assert user(path, octets + b":password=1:", name).name == name


def test_carriage_returns(path: Path) -> None:
    assert user(path, b"u:\\\r\n\t:password=x\r\n").password == b"x"


def test_names(path: Path) -> None:
    users, said = read(path, b"alice|al|Alice Liddell:password=x:\n")
    assert said == []
    assert users.get("alice") == users.get("al") == users.get("Alice Liddell") == User(name="alice", password=b"x")
    assert users.get("lice") is None
    assert users.get("") is None
    assert users.get("alice|al") is None


def test_a_record_may_have_no_password(path: Path) -> None:
    assert user(path, b"u:framed-ip-address=10.0.0.1:").password is None


def test_the_first_record_counts(path: Path) -> None:
    users, said = read(path, b"a|b:password=1:\nc:password=2:\nb|d:password=3:\na:password=4:\n")
    assert said == [
        '3:1: user "b" is there already; the first record counts',
        '4:1: user "a" is there already; the first record counts',
    ]
    assert [getattr(users.get(name), "password", None) for name in "abcd"] == [b"1", b"1", b"2", b"3"]


def test_a_bad_record_keeps_its_name(path: Path) -> None:
    # Another user must not get in by a name that was given to someone.
    users, said = read(path, b"a:framed-ip-address=x:\na:password=1:\nb:password=2:\n")
    assert [text[:4] for text in said] == ["1:3:", "2:1:"]
    assert users.get("a") is None
    assert users.get("b") is not None


def test_the_first_capability_counts(path: Path) -> None:
    assert user(path, b"u:password=1:password=2:").password == b"1"


@pytest.mark.parametrize(
    ("text", "address", "by_peer"),
    [
        ("10.0.0.1", ip("10.0.0.1"), False),
        ("255.255.255.254", None, False),
        ("255.255.255.255", None, True),
    ],
)
def test_addresses(path: Path, text: str, address: int | None, by_peer: bool) -> None:
    found = user(path, f"u:framed-ip-address={text}:".encode())
    assert (found.address, found.address_by_peer) == (address, by_peer)


@pytest.mark.parametrize(("mask", "prefixlen"), [("255.255.255.255", 32), ("255.255.255.254", 31), ("128.0.0.0", 1)])
def test_netmasks(path: Path, mask: str, prefixlen: int) -> None:
    assert user(path, f"u:framed-ip-address=10.0.0.1:framed-ip-netmask={mask}:".encode()).prefixlen == prefixlen


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("u:framed-ip-address=10.0.0.256:", '3: framed-ip-address: expected an IPv4 address, found "10.0.0.256"'),
        ("u:framed-ip-address=::1:", '3: framed-ip-address: expected an IPv4 address, found ""'),
        ("u:framed-ip-address=a\tb:", '3: framed-ip-address: expected an IPv4 address, found "a\\x09b"'),
        ("u:framed-ip-address=é:", '3: framed-ip-address: expected an IPv4 address, found "é"'),
        ("u:framed-ip-address=\\000:", '3: framed-ip-address: expected an IPv4 address, found "\\x00"'),
        ("u:framed-ip-address=224.0.0.1:", NO_HOST + "224.0.0.1"),
        ("u:framed-ip-address=0.0.0.0:", NO_HOST + "0.0.0.0"),
        ("u:framed-ip-netmask=255.0.255.0:", NO_MASK + "255.0.255.0"),
        ("u:framed-ip-netmask=0.0.0.255:", NO_MASK + "0.0.0.255"),
        ("u:framed-ip-netmask=0.0.0.0:", NO_MASK + "0.0.0.0"),
        ("u:framed-ip-netmask=24:", '3: framed-ip-netmask: expected an IPv4 address, found "24"'),
        ("u:calling-number=\\E:", '3: calling-number: expected at most 64 characters of ASCII, found "\\x1b"'),
        ("u:tc=none:", '3: tc= names a record "none" that does not exist'),
        ("u:tc=u:", '3: tc= leads back to "u"'),
    ],
)  # fmt: skip
def test_bad_records(path: Path, record: str, expected: str) -> None:
    users, said = read(path, f"a:password=1:\n{record}\nb:password=2:\n".encode())
    assert said == [f"2:{expected}; the record is left out"]
    assert users.get("u") is None
    assert users.get("a") is not None
    assert users.get("b") is not None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("u", '1: expected a name and ":"; the line is left out'),
        (":password=1:", NO_NAME),
        (" u:password=1:", NO_NAME),
        ("u|:password=1:", "1: an empty name; the line is left out"),
    ],
)  # fmt: skip
def test_bad_lines(path: Path, record: str, expected: str) -> None:
    users, said = read(path, f"a:password=1:\n{record}\nb:password=2:\n".encode())
    assert said == [f"2:{expected}"]
    assert len(users) == 2


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("u:pasword=secret:", '3: unknown capability "pasword"; did you mean "password"?'),
        ("u: password=secret:", '3: unknown capability " password"; did you mean "password"?'),
        ("u:framed-ip-network=10.0.0.0:",
         '3: unknown capability "framed-ip-network"; did you mean "framed-ip-netmask"?'),
        ("u:comment:", '3: unknown capability "comment"; it has no effect'),
        ("u:password#5:", '3: unknown capability "password#5"; did you mean "password"?'),
        ("u:password=a\\:b=c:",
         '3: an escape stands before the ":" and is dropped; a ":" in a value is written "\\072"'),
        ("u:password=@home:", '3: password begins with "@" and so counts as not given; write "\\100" for it'),
        ("u:framed-ip-netmask=255.255.255.0:", "3: framed-ip-netmask has no effect without a fixed framed-ip-address"),
        ("u:framed-ip-address=255.255.255.255:framed-ip-netmask=255.255.255.0:",
         "37: framed-ip-netmask has no effect without a fixed framed-ip-address"),
    ],
)  # fmt: skip
def test_strange_records_are_used(path: Path, record: str, expected: str) -> None:
    users, said = read(path, f"# users\n{record}\n".encode())
    assert said[0] == f"2:{expected}"
    found = users.get("u")
    assert found is not None
    assert found.prefixlen == 32
    for text in said:
        assert "secret" not in text
        assert "home" not in text


def test_the_place_in_a_long_record(path: Path) -> None:
    assert read(path, b"# x\n\nu:\\\n\t:password=1:\\\n\t:framed-ip-address=x:\\\n\t:calling-number=1:\n")[1] == [
        '5:3: framed-ip-address: expected an IPv4 address, found "x"; the record is left out'
    ]


def test_tc(path: Path) -> None:
    users, said = read(
        path,
        b"late:password=4:tc=mask:\n"
        b"a:password=1:tc=mask:calling-number=9:\n"
        b"b:tc=mask:password=2:calling-number=9:\n"
        b"c:password=@:tc=late:framed-ip-address=10.0.0.3:\n"
        b"d:framed-ip-netmask@:tc=mask:framed-ip-address=10.0.0.4:password=5:\n"
        b"mask|template:framed-ip-netmask=255.255.255.0:framed-ip-address=10.0.0.1:calling-number=1:password=3\n",
    )
    assert said == []

    def get(name: str) -> tuple[bytes | None, int | None, int, str | None]:
        found = users.get(name)
        assert found is not None
        return found.password, found.address, found.prefixlen, found.calling_number

    one = ip("10.0.0.1")
    assert get("late") == (b"4", one, 24, "1")
    # In its place: what stands before it counts first, what stands behind it last.
    assert get("a") == (b"1", one, 24, "1")
    assert get("b") == (b"3", one, 24, "1")
    assert get("c") == (None, one, 24, "1")
    assert get("d") == (b"3", one, 32, "1")


@pytest.mark.parametrize(
    "data",
    [
        b"u:tc=v:\nv:tc=w:\nw:tc=u:\n",
        b"u:tc=v:\nv:tc=v:\n",
        b"u:tc=1:\n" + b"".join(b"%d:tc=%d:\n" % (i, i + 1) for i in range(1, 99)) + b"99:password=1:\n",
        # Each includes the next one twice.
        b"u:tc=1:\n" + b"".join(b"%d:tc=%d:tc=%d:\n" % (i, i + 1, i + 1) for i in range(1, 30)) + b"30:password=1:\n",
    ],
)
def test_tc_without_end(path: Path, data: bytes) -> None:
    users, said = read(path, data)
    assert said[0].startswith("1:3: tc= ")
    assert users.get("u") is None


def test_a_file_of_another_kind(path: Path) -> None:
    _, said = read(path, b"\n".join(b"line %d" % number for number in range(1000)))
    assert len(said) == 51
    assert said[-1] == "1000:1: and 950 more reports like these"


# Reading again


def test_nobody_before_the_first_reading(path: Path) -> None:
    path.write_bytes(b"u:password=1:\n")
    users = UsersFile(path)
    assert users.get("u") is None
    assert users.refresh() == []
    assert users.get("u") is not None


def test_reads_only_what_has_changed(path: Path) -> None:
    users, _ = read(path, b"a:password=1:framed-ip-address=10.0.0.1:\nbad\n")
    first = users.get("a")
    # What is wrong is said once.
    assert users.refresh() == []
    assert users.get("a") is first
    status = path.stat()
    path.write_bytes(b"b:password=1:\nbad\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert len(users.refresh()) == 1
    assert users.get("a") is None
    assert users.get("b") is not None


def test_sees_a_file_that_replaces_it(path: Path) -> None:
    users, _ = read(path, b"a:password=1:\n")
    status = path.stat()
    other = path.with_name("new")
    other.write_bytes(b"a:password=2:\n")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    users.refresh()
    assert getattr(users.get("a"), "password", None) == b"2"


def test_keeps_its_users_while_the_file_cannot_be_read(path: Path) -> None:
    users, _ = read(path, b"a:password=1:\n")
    path.rename(path.with_name("gone"))
    gone = ["1:1: cannot be read: No such file or directory; its users stay as they were"]
    assert short(users.refresh()) == gone
    assert users.get("a") is not None
    # Once.
    assert users.refresh() == []
    path.mkdir()
    assert short(users.refresh()) == ["1:1: cannot be read: not a regular file; its users stay as they were"]
    path.rmdir()
    assert short(users.refresh()) == gone
    path.with_name("gone").rename(path)
    assert users.refresh() == []
    path.rename(path.with_name("gone"))
    assert short(users.refresh()) == gone


def test_many_users(path: Path) -> None:
    count = 20_000
    users, said = read(path, b"".join(b"user%d@example.net:password=secret%d:\n" % (i, i) for i in range(count)))
    assert said == []
    assert len(users) == count
    for i in (0, 777, count - 1):
        assert users.get(f"user{i}@example.net") == User(name=f"user{i}@example.net", password=b"secret%d" % i)


# Anything at all


PIECES = [b":", b"|", b"\\", b"\n", b"\\\n", b"#", b"=", b"^", b"@", b"tc=", b"a", b"b", b"u:", b"password=", b"\t"]
PIECES += [b"framed-ip-address=", b"framed-ip-netmask=", b"10.0.0.1", b"255.255.255.0", b"calling-number=", b"\xff"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=60))
def test_any_file(tmp_path: Path, pieces: list[bytes]) -> None:
    check(tmp_path / "f", b"".join(pieces))


def test_mutated_file(path: Path) -> None:
    rng = random.Random(1)
    seed = (Path(__file__).parent.parent.parent / "conf/npppd-users").read_bytes()
    for _ in range(300):
        data = bytearray(seed)
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.choice(PIECES)
        check(path, bytes(data))


def check(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    lines = data.split(b"\n")
    for where, message in UsersFile(path).refresh():
        assert where.file == str(path)
        assert 1 <= where.line <= len(lines)
        assert 1 <= where.column <= len(lines[where.line - 1]) + 1
        assert message.isprintable()


def test_many_users_cost_little(path: Path) -> None:
    """A name, a password and their place in the table: measured, 146 octets."""
    count = 5000
    users, _ = read(path, b"".join(b"subscriber%06d@isp.example:password=password-%06d:\n" % (i, i) for i in range(10)))
    path.write_bytes(b"".join(b"subscriber%06d@isp.example:password=password-%06d:\n" % (i, i) for i in range(count)))
    tracemalloc.start()
    try:
        users.refresh()
        each = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert len(users) == count
    assert each < 240, f"{each:.0f} octets a user"
    print(f"{each:.0f} octets a user")
