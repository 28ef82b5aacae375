"""Tables of nftables: whole ones by nft(8), and the elements of their maps by netlink.

A table takes nft(8) some milliseconds, an element takes netlink some microseconds.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from .netlink import (
    _ERROR,
    _HEADER,
    _REQUEST,
    Netlink,
    NetlinkError,
    _attribute,
    _attributes,
    _messages,
    _open,
    _Request,
)

#: Where nft(8) is, beside PATH.
_PATH: Final = "/usr/sbin:/sbin"
#: Seconds that nft(8) may take.
_PATIENCE: Final = 30

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17
_GETTABLE: Final = _SUBSYSTEM << 8 | 1
_DELTABLE: Final = _SUBSYSTEM << 8 | 2
_NEWSETELEM: Final = _SUBSYSTEM << 8 | 12
_DELSETELEM: Final = _SUBSYSTEM << 8 | 14
_CREATE: Final = 0x400
_NESTED: Final = 0x8000
_GROUP_NFTABLES: Final = 7
_TABLE_NAME: Final = 1
_LIST_TABLE: Final = 1
_LIST_SET: Final = 2
_LIST_ELEMENTS: Final = 3
_LIST_ELEMENT: Final = 1
_KEY: Final = 1
_DATA: Final = 2
_VALUE: Final = 1

#: Family, version, subsystem in network order.
_GENERAL: Final = struct.Struct(">BBH")
#: Elements in one message.
_CHUNK: Final = 256

#: The families of nftables, by version of IP, and their numbers.
FAMILIES: Final = {4: "ip", 6: "ip6"}
_NUMBERS: Final = {"ip": 2, "inet": 1, "ip6": 10}


class NftError(OSError):
    """nft(8) is not there, or has refused a script; the message says why."""


def run(script: str) -> None:
    """Have nft(8) carry out a script, all of it or nothing.  Raises :class:`NftError`."""
    program = shutil.which("nft", path=f"{os.environ.get('PATH', os.defpath)}:{_PATH}")
    if program is None:
        raise NftError("nft(8) is not installed")
    try:
        done = subprocess.run(
            [program, "-f", "-"], input=script, capture_output=True, text=True, errors="replace", timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NftError(f"nft(8): {error}") from error
    if done.returncode:
        # What follows the first line shows where in the script.
        raise NftError(f"nft(8): {(done.stderr.splitlines() or [f'status {done.returncode}'])[0]}")


def replace(family: str, table: str, body: str) -> str:
    """The script that makes a table, in the place of one that may be there."""
    return f"{remove(family, table)}table {family} {table} {{\n{body}}}\n"


def remove(family: str, table: str) -> str:
    """The script that removes a table, which need not be there."""
    # It is made first, since only one that is there can be removed.
    return f"table {family} {table}\ndelete table {family} {table}\n"


def exists(family: str, table: str) -> bool:
    """Whether there is a table.  Raises :class:`OSError` or :class:`NetlinkError`."""
    body = _GENERAL.pack(_NUMBERS[family], 0, 0) + _attribute(_TABLE_NAME, table.encode() + b"\0")
    netlink = Netlink(_NETLINK_NETFILTER)
    try:
        netlink._call(_Request("look a table of nftables up", _GETTABLE, 0, body))
    except NetlinkError as error:
        # Without any nftables in the kernel, EINVAL.
        if error.code not in (errno.ENOENT, errno.EINVAL):
            raise
        return False
    finally:
        netlink.close()
    return True


class TableMonitor:
    """Tells when a table, of whatever family, is removed by somebody else."""

    def __init__(self, table: str, report: Callable[[], None]) -> None:
        """Calls *report* from the running event loop.  Raises :class:`OSError`."""
        self._table = table
        self._name = table.encode() + b"\0"
        self._report = report
        self._socket = _open(1 << _GROUP_NFTABLES - 1, _NETLINK_NETFILTER)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        try:
            news = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            # libuv takes the error as the end of the socket and waits for it no more.  Which news were lost, nobody
            # knows.
            self._loop.remove_reader(self._socket.fileno())
            self._loop.add_reader(self._socket.fileno(), self._readable)
            gone = not all(exists(family, self._table) for family in FAMILIES.values())
        else:
            gone = any(
                kind == _DELTABLE and dict(_attributes(payload, _GENERAL.size)).get(_TABLE_NAME) == self._name
                for kind, _, _, payload in _messages(news)
            )
        if gone:
            self._report()


class Elements:
    """Elements of the maps called *name* in the tables of a name, for IPv4 and IPv6."""

    def __init__(self, table: str, name: str) -> None:
        """Raises :class:`OSError` where the kernel has no nftables."""
        self._netlink = _Batches()
        self._head = _attribute(_LIST_TABLE, table.encode() + b"\0") + _attribute(_LIST_SET, name.encode() + b"\0")

    def close(self) -> None:
        """The elements stay."""
        self._netlink.close()

    def add(self, version: int, elements: Iterable[tuple[bytes, bytes]]) -> None:
        """Add (key, value) to the map of a version of IP; what is there already stays.

        Raises :class:`NetlinkError`, and then some may have been added.
        """
        packed = [_element(_attribute(_KEY | _NESTED, _value(key)), value) for key, value in elements]
        self._change(version, _NEWSETELEM, _CREATE, packed)

    def remove(self, version: int, keys: Iterable[bytes]) -> None:
        """Remove elements that are there.  Raises :class:`NetlinkError`, and then some may have been removed."""
        self._change(version, _DELSETELEM, 0, [_element(_attribute(_KEY | _NESTED, _value(key))) for key in keys])

    def _change(self, version: int, kind: int, flags: int, elements: Sequence[bytes]) -> None:
        for start in range(0, len(elements), _CHUNK):
            body = _GENERAL.pack(_NUMBERS[FAMILIES[version]], 0, 0) + self._head
            body += _attribute(_LIST_ELEMENTS | _NESTED, b"".join(elements[start : start + _CHUNK]))
            what = "remove elements of" if kind == _DELSETELEM else "add elements to"
            self._netlink.commit(f"{what} a map of nftables", kind, flags, body)


class _Batches(Netlink):
    def __init__(self) -> None:
        super().__init__(_NETLINK_NETFILTER)
        self._socket.setblocking(False)

    def commit(self, what: str, kind: int, flags: int, body: bytes) -> None:
        """Make one change.  Raises :class:`NetlinkError`."""
        frame = _GENERAL.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
        messages = []
        for number, how, payload in ((_BATCH_BEGIN, 0, frame), (kind, flags, body), (_BATCH_END, 0, frame)):
            self._sequence += 1
            header = _HEADER.pack(_HEADER.size + len(payload), number, _REQUEST | how, self._sequence, 0)
            messages.append(header + payload)
        self._socket.send(b"".join(messages))
        # All has been done, and said, when send() returns; and before Linux 6.10 there is no word for the end.
        error = 0
        while True:
            try:
                news = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            for answer, _, _, payload in _messages(news):
                if answer == _ERROR and not error:
                    error = -struct.unpack_from("=i", payload)[0]
        if error:
            raise NetlinkError(what, error, "")


def _value(value: bytes) -> bytes:
    return _attribute(_VALUE, value)


def _element(key: bytes, value: bytes | None = None) -> bytes:
    data = b"" if value is None else _attribute(_DATA | _NESTED, _value(value))
    return _attribute(_LIST_ELEMENT | _NESTED, key + data)
