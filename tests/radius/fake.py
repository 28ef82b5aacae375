"""A RADIUS server that does what a test says, to the point of being broken.

Its codec is written anew from the RFCs, so that what npppd makes of a packet has somebody else to agree with.  It runs
in a thread of its own, answers as many requests as come, and keeps what it was asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import hmac
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from tests.peers.lab import SO_RCVBUFFORCE, inside

SECRET = b"radius secret"

ACCESS_REQUEST, ACCESS_ACCEPT, ACCESS_REJECT, ACCOUNTING_REQUEST, ACCOUNTING_RESPONSE = 1, 2, 3, 4, 5
ACCESS_CHALLENGE, STATUS_SERVER = 11, 12

USER_NAME, USER_PASSWORD, CHAP_PASSWORD, NAS_IP_ADDRESS, NAS_PORT = 1, 2, 3, 4, 5
FRAMED_IP_ADDRESS, REPLY_MESSAGE, STATE, CLASS, VENDOR_SPECIFIC, SESSION_TIMEOUT = 8, 18, 24, 25, 26, 27
NAS_IDENTIFIER = 32
ACCT_STATUS_TYPE, ACCT_DELAY_TIME, ACCT_SESSION_ID, EVENT_TIMESTAMP, MESSAGE_AUTHENTICATOR = 40, 41, 44, 55, 80
START, STOP, INTERIM, ON, OFF = 1, 2, 3, 7, 8

Attributes = Sequence[tuple[int, bytes]]


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    code: int
    identifier: int
    authenticator: bytes
    attributes: Attributes
    data: bytes
    source: Any
    when: float
    secret: bytes

    def get(self, kind: int) -> bytes | None:
        """The first attribute of a type."""
        return next((value for number, value in self.attributes if number == kind), None)

    def text(self, kind: int) -> str:
        return (self.get(kind) or b"").decode()

    def integer(self, kind: int) -> int:
        """0 if there is none."""
        return int.from_bytes(self.get(kind) or b"", "big")

    @property
    def user(self) -> str:
        return self.text(USER_NAME)

    @property
    def password(self) -> bytes:
        """What PAP said, deciphered (RFC 2865 section 5.2)."""
        hidden, before, plain = self.get(USER_PASSWORD) or b"", self.authenticator, b""
        for at in range(0, len(hidden), 16):
            pad = hashlib.md5(self.secret + before).digest()
            before = hidden[at : at + 16]
            plain += bytes(one ^ other for one, other in zip(before, pad, strict=True))
        return plain.rstrip(b"\0")

    @property
    def is_signed(self) -> bool:
        """Whether its Message-Authenticator is the first attribute and right, or its authenticator is."""
        if self.code == ACCOUNTING_REQUEST:
            blank = self.data[:4] + bytes(16) + self.data[20:]
            return hashlib.md5(blank + self.secret).digest() == self.authenticator
        if not self.attributes or self.attributes[0][0] != MESSAGE_AUTHENTICATOR:
            return False
        blank = self.data[:22] + bytes(16) + self.data[38:]
        return hmac.digest(self.secret, blank, "md5") == self.attributes[0][1]

    def reply(
        self,
        code: int,
        attributes: Attributes = (),
        *,
        secret: bytes | None = None,
        signed: bool = True,
        authenticator: bytes | None = None,
        identifier: int | None = None,
    ) -> bytes:
        """An answer: with a Message-Authenticator (*signed*), by a *secret* and for a request that may be others."""
        return reply(
            code,
            self.identifier if identifier is None else identifier,
            self.authenticator if authenticator is None else authenticator,
            encode(attributes),
            secret or self.secret,
            signed=signed and code != ACCOUNTING_RESPONSE,
        )


def encode(attributes: Attributes) -> bytes:
    return b"".join(struct.pack("!BB", kind, len(value) + 2) + value for kind, value in attributes)


def vendor(number: int, kind: int, value: bytes) -> tuple[int, bytes]:
    """A vendor's attribute (RFC 2865 section 5.26)."""
    return VENDOR_SPECIFIC, struct.pack("!IBB", number, kind, len(value) + 2) + value


def reply(code: int, identifier: int, authenticator: bytes, raw: bytes, secret: bytes, *, signed: bool = True) -> bytes:
    """A packet that answers; *raw* are its attributes as they stand there, whatever they are."""
    length = 20 + len(raw) + 18 * signed
    head = struct.pack("!BBH", code, identifier, length)
    if signed:
        blank = struct.pack("!BB", MESSAGE_AUTHENTICATOR, 18) + bytes(16) + raw
        raw = blank[:2] + hmac.digest(secret, head + authenticator + blank, "md5") + raw
    return head + hashlib.md5(head + authenticator + raw + secret).digest() + raw


def request(code: int, identifier: int, attributes: Attributes, secret: bytes) -> bytes:
    """A packet that asks: signed as its code wants it (RFC 2865, 2866, 5176, 5997)."""
    raw = encode(attributes)
    if code in (ACCESS_REQUEST, STATUS_SERVER):
        head = struct.pack("!BBH", code, identifier, 38 + len(raw)) + os.urandom(16)
        blank = struct.pack("!BB", MESSAGE_AUTHENTICATOR, 18) + bytes(16) + raw
        return head + blank[:2] + hmac.digest(secret, head + blank, "md5") + raw
    head = struct.pack("!BBH", code, identifier, 20 + len(raw))
    return head + hashlib.md5(head + bytes(16) + raw + secret).digest() + raw


def decode(data: bytes) -> list[tuple[int, bytes]]:
    """The attributes of a packet that is in order."""
    found, at = [], 20
    (end,) = struct.unpack_from("!H", data, 2)
    assert end == len(data), "the length of the packet"
    while at < end:
        kind, length = data[at], data[at + 1]
        assert 2 <= length <= end - at, "the length of an attribute"
        found.append((kind, data[at + 2 : at + length]))
        at += length
    return found


#: What a server sends back, seconds later each.
Answer = Iterable[tuple[float, bytes]]
Manner = Callable[[Asked], Answer]


def silent(asked: Asked) -> Answer:
    return ()


def accept(*attributes: tuple[int, bytes], after: float = 0, **how: Any) -> Manner:
    """Says yes to all; *how*: see :meth:`Asked.reply`."""

    def answer(asked: Asked) -> Answer:
        code = ACCOUNTING_RESPONSE if asked.code == ACCOUNTING_REQUEST else ACCESS_ACCEPT
        return [(after, asked.reply(code, attributes if asked.code == ACCESS_REQUEST else (), **how))]

    return answer


def reject(*attributes: tuple[int, bytes], after: float = 0) -> Manner:
    def answer(asked: Asked) -> Answer:
        return [(after, asked.reply(ACCESS_REJECT, attributes))]

    return answer


def addresses(first: str) -> Manner:
    """Says yes to all, and gives each Acct-Session-Id an address of its own."""
    numbers = itertools.count(int(IPv4Address(first)))
    given: dict[str, bytes] = {}

    def answer(asked: Asked) -> Answer:
        if asked.code != ACCESS_REQUEST:
            return accept()(asked)
        name = asked.text(ACCT_SESSION_ID)
        if name not in given:
            given[name] = next(numbers).to_bytes(4, "big")
        return [(0, asked.reply(ACCESS_ACCEPT, [(FRAMED_IP_ADDRESS, given[name])]))]

    return answer


def slowly(after: float, manner: Manner) -> Manner:
    """The same, later."""

    def answer(asked: Asked) -> Answer:
        return [(later + after, data) for later, data in manner(asked)]

    return answer


class FakeServer:
    """A server at an address of a namespace ("": that of the caller), until it is closed."""

    def __init__(
        self, manner: Manner, *, namespace: str = "", address: str = "127.0.0.1", port: int = 0, secret: bytes = SECRET
    ) -> None:
        #: How it answers; may be changed at any time.
        self.manner = manner
        self.address = address
        self.secret = secret
        #: All that came, retransmissions included.
        self.asked: list[Asked] = []
        #: What could not be read.
        self.broken: list[bytes] = []
        self.port = port
        self._namespace = namespace
        self._sock: socket.socket
        self._thread: threading.Thread
        self.open()

    def open(self) -> None:
        """Be there, again."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        with inside(self._namespace) if self._namespace else contextlib.nullcontext():
            self._sock = socket.socket(family, socket.SOCK_DGRAM)
        # Thousands may ask at once.
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self._sock.bind((self.address, self.port))
        self.port = self._sock.getsockname()[1]
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Be gone: the kernel refuses what comes from now on.  Answers that are due later are lost."""
        if self._thread.is_alive():
            self._ours.close()
            self._thread.join()
            self._theirs.close()
            self._sock.close()

    def answer(self, asked: Asked) -> None:
        """To what was not answered when it came, now."""
        for _, data in self.manner(asked):
            self._sock.sendto(data, asked.source)

    def asked_for(self, user: str, code: int = ACCESS_REQUEST) -> list[Asked]:
        return [asked for asked in self.asked if asked.user == user and asked.code == code]

    def of(self, code: int) -> list[Asked]:
        return [asked for asked in self.asked if asked.code == code]

    def records(self, kind: int | None = None) -> list[Asked]:
        """The accounting records that came, of one Acct-Status-Type."""
        found = self.of(ACCOUNTING_REQUEST)
        return [asked for asked in found if kind is None or asked.integer(ACCT_STATUS_TYPE) == kind]

    def _serve(self) -> None:
        due: list[tuple[float, int, Any, bytes]] = []
        numbers = itertools.count()
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        poller.register(self._theirs, select.POLLIN | select.POLLHUP)
        while True:
            now = time.monotonic()
            while due and due[0][0] <= now:
                _, _, source, data = heapq.heappop(due)
                # Who is gone hears nothing.
                with contextlib.suppress(OSError):
                    self._sock.sendto(data, source)
            wait = max(0.0, due[0][0] - now) * 1000 + 0.5 if due else None
            ready = {fd for fd, _ in poller.poll(wait)}
            if self._theirs.fileno() in ready:
                return
            if self._sock.fileno() not in ready:
                continue
            for _ in range(256):
                try:
                    data, source = self._sock.recvfrom(65536, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except ConnectionRefusedError:
                    continue
                try:
                    attributes = decode(data)
                except (AssertionError, IndexError, struct.error):
                    self.broken.append(data)
                    continue
                asked = Asked(
                    data[0], data[1], data[4:20], attributes, data, source, time.monotonic(), self.secret
                )
                self.asked.append(asked)
                for later, answer in self.manner(asked):
                    heapq.heappush(due, (asked.when + later, next(numbers), source, answer))
