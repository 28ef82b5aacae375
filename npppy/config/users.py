"""npppd-users: a capability database as cgetent(3) and cgetstr(3) read it, with one record a user."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from socket import AF_INET, inet_pton

from ..text import printable
from .model import Diagnostic, Where
from .options import usable
from .reader import guess

#: Values of framed-ip-address with a meaning of their own (RFC 2865 section 5.8).
BY_PEER = 0xFFFFFFFF
BY_NAS = 0xFFFFFFFE

#: How deep records may include each other by tc=, as in cgetent(3), and how many capabilities a record may come to.
_MAX_DEPTH = 32
_MAX_FIELDS = 1000
#: Diagnostics of one reading; a file of another kind has as many as lines.
_MAX_DIAGNOSTICS = 50

_CAPABILITIES = ("password", "framed-ip-address", "framed-ip-netmask", "calling-number", "tc")


@dataclass(frozen=True, slots=True)
class User:
    """A record.  Addresses are integers."""

    #: The first name of the record.
    name: str
    password: bytes | None = field(default=None, repr=False)
    #: A fixed address; None: the NAS chooses, or the peer.
    address: int | None = None
    #: The peer may choose its address.
    address_by_peer: bool = False
    #: Prefix length of the network behind the peer; 32: the peer alone.
    prefixlen: int = 32
    calling_number: str | None = None

    @property
    def has_password_only(self) -> bool:
        return (
            self.password is not None
            and self.address is None
            and not self.address_by_peer
            and self.prefixlen == 32
            and self.calling_number is None
        )


class UsersFile:
    """The users of a file, as they were when it was last read."""

    __slots__ = ("_failure", "_users", "_version", "path")

    def __init__(self, path: str | Path) -> None:
        """Nobody is known before the first :meth:`refresh`."""
        self.path = Path(path)
        self._users: dict[str, User | bytes] = {}
        self._version: tuple[int, int, int] | None = None
        self._failure: str | None = None

    def get(self, name: str) -> User | None:
        """The user of that name; octets that are not UTF-8 are those of "surrogateescape"."""
        user = self._users.get(name)
        return User(name, user) if isinstance(user, bytes) else user

    def __len__(self) -> int:
        """How many names are known."""
        return len(self._users)

    def refresh(self) -> list[Diagnostic]:
        """Read the file if it has changed; returns what is wrong with it.

        A record in error is left out.  A file that cannot be read leaves the users as they are, and is reported once.
        """
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                return self._fail("not a regular file")
            with open(self.path, "rb") as stream:
                status = os.fstat(stream.fileno())
                version = (status.st_mtime_ns, status.st_size, status.st_ino)
                data = stream.read() if version != self._version else None
        except OSError as failure:
            return self._fail(failure.strerror or type(failure).__name__)
        self._failure = None
        if data is None:
            return []
        self._version = version
        database = _Database(str(self.path), data)
        self._users = database.users
        return database.diagnostics

    def _fail(self, reason: str) -> list[Diagnostic]:
        if reason == self._failure:
            return []
        self._failure = reason
        return [Diagnostic(Where(str(self.path), 1, 1), f"cannot be read: {reason}; its users stay as they were")]


class _BadRecord(Exception):
    """A record cannot be used; *near* are octets of the file that show where."""

    def __init__(self, message: str, near: bytes) -> None:
        super().__init__(message)
        self.message = message
        self.near = near


class _Record:
    __slots__ = ("body", "end", "names", "start")

    def __init__(self, names: list[bytes], body: bytes, start: int, end: int) -> None:
        self.names = names
        #: What follows the first ":".
        self.body = body
        #: Where in the file it is.
        self.start = start
        self.end = end


class _Database:
    def __init__(self, file: str, data: bytes) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._file = file
        self._data = data = data.replace(b"\r\n", b"\n")
        self._dropped = 0
        self._index: dict[bytes, _Record] = {}
        if b"tc=" in data:
            # A record may include one that comes later.
            for record in self._records(lambda *_: None):
                for octets in record.names:
                    self._index.setdefault(octets, record)
        # A bad record keeps its names.  Of most users there is a password and nothing else: that alone is kept, which
        # halves their memory.
        found: dict[str, User | bytes | None] = {}
        for record in self._records(self._report):
            user: User | bytes | None
            try:
                user = self._user(record)
                if user.has_password_only and len(record.names) == 1:
                    user = user.password
            except _BadRecord as bad:
                self._report(record, f"{bad.message}; the record is left out", bad.near)
                user = None
            for octets in record.names:
                name = octets.decode("utf-8", "surrogateescape")
                if name in found:
                    self._report(record, f'user "{printable(name)}" is there already; the first record counts', octets)
                else:
                    found[name] = user
        self.users = {name: user for name, user in found.items() if user is not None}
        if self._dropped:
            last = Where(file, data.count(b"\n") + 1, 1)
            self.diagnostics.append(Diagnostic(last, f"and {self._dropped} more reports like these"))

    def _report(self, record: _Record, message: str, near: bytes) -> None:
        if len(self.diagnostics) >= _MAX_DIAGNOSTICS:
            self._dropped += 1
            return
        place = max(self._data.find(near, record.start, record.end), record.start)
        line = self._data.count(b"\n", 0, place) + 1
        column = place - (self._data.rfind(b"\n", 0, place) + 1) + 1
        self.diagnostics.append(Diagnostic(Where(self._file, line, column), message))

    def _records(self, report: Callable[[_Record, str, bytes], None]) -> Iterator[_Record]:
        for match in _LINE.finditer(self._data):
            text = match.group()
            if text[:1] == b"#":
                continue
            text = text.replace(b"\\\n", b"").removesuffix(b"\\")
            if not text or text.isspace():
                continue
            head, colon, body = text.partition(b":")
            record = _Record(head.split(b"|"), body, match.start(), match.end())
            if text[:1].isspace() or not head:
                message = 'a line of capabilities without a name: the line before it does not end with "\\"'
            elif not colon:
                message = 'expected a name and ":"'
            elif b"" in record.names:
                message = "an empty name"
            else:
                yield record
                continue
            report(record, f"{message}; the line is left out", text[:1])

    def _user(self, record: _Record) -> User:
        fields: Sequence[bytes] = record.body.split(b":")
        if b"tc=" in record.body:
            fields = []
            self._expand(record, [record], fields)
        password: bytes | None = None
        address = netmask = number = None
        seen = set()
        for text in fields:
            if not text or text.isspace():
                continue
            name, equals, value = text.partition(b"=")
            if not equals and name[-1:] == b"@":
                # "name@" takes away what a record included later says.
                seen.add(name[:-1])
                continue
            # The first one counts.
            if name in seen:
                continue
            seen.add(name)
            if value[:1] == b"@":
                if len(value) > 1:
                    message = f'{printable(name)} begins with "@" and so counts as not given; write "\\100" for it'
                    self._report(record, message, text)
                continue
            value = self._decode(record, text, value)
            if not equals:
                self._unknown(record, text)
            elif name == b"password":
                password = value
            elif name == b"framed-ip-address":
                address = _address(text, value)
            elif name == b"framed-ip-netmask":
                netmask = _address(text, value)
            elif name == b"calling-number":
                number = _number(text, value)
            else:
                self._unknown(record, name)
        fixed = None if address in (None, BY_NAS, BY_PEER) else address
        if fixed is not None and not usable(fixed, fixed):
            message = f"framed-ip-address: expected an address that a host can have, found {IPv4Address(fixed)}"
            raise _BadRecord(message, b"framed-ip-address")
        prefixlen = 32 if netmask is None else _prefixlen(netmask)
        if prefixlen < 32 and fixed is None:
            message = "framed-ip-netmask has no effect without a fixed framed-ip-address"
            self._report(record, message, b"framed-ip-netmask")
            prefixlen = 32
        return User(
            name=record.names[0].decode("utf-8", "surrogateescape"),
            password=password,
            address=fixed,
            address_by_peer=address == BY_PEER,
            prefixlen=prefixlen,
            calling_number=number,
        )

    def _expand(self, record: _Record, path: list[_Record], into: list[bytes]) -> None:
        """Append the capabilities of the last record of *path*, with those that it includes by tc=."""
        for text in path[-1].body.split(b":"):
            if not text.startswith(b"tc="):
                into.append(text)
                continue
            name = text[3:]
            included = self._index.get(name)
            shown = printable(name)
            if included is None:
                raise _BadRecord(f'tc= names a record "{shown}" that does not exist', text)
            if included in path:
                raise _BadRecord(f'tc= leads back to "{shown}"', b"tc=")
            if len(path) >= _MAX_DEPTH or len(into) > _MAX_FIELDS:
                raise _BadRecord("tc= includes too much", b"tc=")
            path.append(included)
            self._expand(record, path, into)
            path.pop()

    def _decode(self, record: _Record, text: bytes, value: bytes) -> bytes:
        if b"\\" not in value and b"^" not in value:
            return value
        if _UNFINISHED.search(value):
            message = 'an escape stands before the ":" and is dropped; a ":" in a value is written "\\072"'
            self._report(record, message, text)
        return _ESCAPE.sub(_unescape, value)

    def _unknown(self, record: _Record, name: bytes) -> None:
        shown = printable(name[:60])
        meant = guess(shown, _CAPABILITIES)
        hint = f'did you mean "{meant}"?' if meant is not None else "it has no effect"
        self._report(record, f'unknown capability "{shown}"; {hint}', name)


# A backslash at its end continues a line, and a comment.
_LINE = re.compile(rb"[^\n]+(?:(?<=\\)\n[^\n]*)*")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)|\^(.)|[\\^]\Z", re.DOTALL)
_UNFINISHED = re.compile(rb"\A(?:[^\\^]|[\\^].)*[\\^]\Z", re.DOTALL)
_LETTERS = {b"b": b"\b", b"t": b"\t", b"n": b"\n", b"f": b"\f", b"r": b"\r", b"e": b"\x1b", b"c": b":"}


def _unescape(match: re.Match[bytes]) -> bytes:
    after: bytes | None = match[1]
    if after is not None:
        if after[:1].isdigit() and after[:1] < b"8":
            return bytes((int(after, 8) & 0xFF,))
        return _LETTERS.get(after.lower(), after)
    control: bytes | None = match[2]
    if control is None:
        return b""
    return b"\x7f" if control == b"?" else bytes((control[0] & 0x1F,))


def _address(text: bytes, value: bytes) -> int:
    try:
        return int.from_bytes(inet_pton(AF_INET, value.decode("ascii")), "big")
    except (OSError, ValueError):
        name = text.partition(b"=")[0].decode()
        raise _BadRecord(f'{name}: expected an IPv4 address, found "{printable(value[:60])}"', text) from None


def _prefixlen(netmask: int) -> int:
    host = netmask ^ 0xFFFFFFFF
    if netmask == 0 or host & (host + 1):
        message = f"framed-ip-netmask: expected a mask like 255.255.255.0, found {IPv4Address(netmask)}"
        raise _BadRecord(message, b"framed-ip-netmask")
    return 32 - host.bit_length()


def _number(text: bytes, value: bytes) -> str:
    if len(value) > 64 or not all(0x20 <= octet < 0x7F for octet in value):
        message = f'calling-number: expected at most 64 characters of ASCII, found "{printable(value[:80])}"'
        raise _BadRecord(message, text)
    return value.decode()
