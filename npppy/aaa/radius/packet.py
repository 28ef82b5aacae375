"""Packets of RADIUS (RFC 2865 section 3), written and read from either side.

pyrad reads the dictionary; the attributes are put together here, by one function for each, made once: pyrad's own
packets look everything up anew, which is most of what a login costs.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from hashlib import md5
from hmac import compare_digest
from hmac import digest as hmac_digest
from importlib.resources import as_file, files
from typing import Final

from pyrad.dictionary import Attribute, Dictionary

from ...cursor import Cursor, Malformed

#: Octets that a packet may have (RFC 2865 section 3).
MAX_PACKET: Final = 4096
#: Octets that the value of an attribute may have.
MAX_VALUE: Final = 253
#: Octets that a password may have (RFC 2865 section 5.2).
MAX_PASSWORD: Final = 128

_HEADER = 20
_USER_PASSWORD = 2
_VENDOR_SPECIFIC = 26
_MESSAGE_AUTHENTICATOR = 80
_NOTHING = bytes(16)
_SIGNATURE = bytes((_MESSAGE_AUTHENTICATOR, 18)) + _NOTHING
# RFC 2868 section 3.1: higher octets are no tags, where text follows.
_MAX_TAG = 0x1F


class Code(enum.IntEnum):
    ACCESS_REQUEST = 1
    ACCESS_ACCEPT = 2
    ACCESS_REJECT = 3
    ACCOUNTING_REQUEST = 4
    ACCOUNTING_RESPONSE = 5
    ACCESS_CHALLENGE = 11
    STATUS_SERVER = 12
    DISCONNECT_REQUEST = 40
    DISCONNECT_ACK = 41
    DISCONNECT_NAK = 42
    COA_REQUEST = 43
    COA_ACK = 44
    COA_NAK = 45


#: What an attribute is given: an integer where it is a number, a date or an IPv4 address; text; or octets, which are
#: its value as they are, whatever its type, with its tag if it has one.
Value = int | str | bytes
#: An attribute by its name in the dictionary.
Pair = tuple[str, Value]
#: Stands for attributes that :func:`encode_attributes` has encoded, any number of them.
ENCODED: Final = ""

# Their authenticator is random and tells nothing of the packet.
_RANDOM = frozenset((Code.ACCESS_REQUEST, Code.STATUS_SERVER))
_ACCESS_REPLIES = frozenset((Code.ACCESS_ACCEPT, Code.ACCESS_REJECT, Code.ACCESS_CHALLENGE))
_CODES = {int(code): code for code in Code}
# Octets of what an integer is written into.
_SIZES = {"integer": 4, "ipaddr": 4, "date": 4, "short": 2, "byte": 1, "integer64": 8}
#: Values longer than an attribute are several of these (RFC 3579 section 3.1).
_LONG = "EAP-Message"

with as_file(files(__package__).joinpath("dictionary")) as _path:
    #: The attributes that have names.
    DICTIONARY: Final = Dictionary(str(_path))


class _Kind:
    """What the dictionary says of an attribute."""

    __slots__ = ("name", "size", "tagged")

    def __init__(self, attribute: Attribute) -> None:
        self.name: str = attribute.name
        #: Of an integer; 0: it is none.
        self.size: int = _SIZES.get(attribute.type, 0)
        self.tagged: bool = attribute.has_tag


def _encoder(attribute: Attribute) -> Callable[[Value], bytes]:
    """The function that writes an attribute."""
    name, size, tagged = attribute.name, _SIZES.get(attribute.type, 0), attribute.has_tag
    head, extra = b"", 2
    if attribute.vendor:
        vendor: int = DICTIONARY.vendors.GetForward(attribute.vendor)
        head, extra = vendor.to_bytes(4, "big"), 8
    code: int = attribute.code
    longest = MAX_VALUE + 2 - extra
    # An integer's tag takes the place of its highest octet (RFC 2868 section 3.1): as 0, it is there already.
    limit = 1 << 24 if tagged else 1 << 8 * size

    def start(length: int) -> bytes:
        if head:
            return bytes((_VENDOR_SPECIFIC, length + 8)) + head + bytes((code, length + 2))
        return bytes((code, length + 2))

    number = start(size)

    def encode(value: Value) -> bytes:
        if isinstance(value, int):
            if not size or not 0 <= value < limit:
                raise ValueError(f"{name} cannot be a number" if not size else f"{name} out of range")
            return number + value.to_bytes(size, "big")
        if isinstance(value, str):
            if size:
                raise ValueError(f"{name} cannot be text")
            value = value.encode("utf-8", "surrogateescape")
            if tagged:
                value = b"\0" + value
        if len(value) > longest:
            raise ValueError(f"{name} too long")
        return start(len(value)) + value

    return encode


_ENCODERS: Final[dict[str, Callable[[Value], bytes]]] = {}
_KINDS: Final[dict[str, _Kind]] = {}
# By code, and by vendor and code.
_NAMES: Final[dict[int | tuple[int, int], str]] = {}
for _attribute in DICTIONARY.attributes.values():
    _ENCODERS[_attribute.name] = _encoder(_attribute)
    _KINDS[_attribute.name] = _Kind(_attribute)
    _NAMES[DICTIONARY.attrindex.GetForward(_attribute.name)] = _attribute.name
_ENCODERS[ENCODED] = lambda value: value if isinstance(value, bytes) else b""
# Only :func:`_finish` makes it.
del _ENCODERS["Message-Authenticator"]
_VENDORS: Final = frozenset(DICTIONARY.vendors.backward) - {0}


def _encode(pairs: Iterable[Pair]) -> list[bytes]:
    """The attributes.  Raises :class:`ValueError`."""
    parts = []
    encoders = _ENCODERS
    for name, value in pairs:
        encode = encoders.get(name)
        if encode is None:
            raise ValueError(f"{name} cannot be sent")
        if name == _LONG and isinstance(value, bytes) and len(value) > MAX_VALUE:
            parts += [encode(value[at : at + MAX_VALUE]) for at in range(0, len(value), MAX_VALUE)]
        else:
            parts.append(encode(value))
    return parts


def encode_attributes(pairs: Iterable[Pair]) -> bytes:
    """Attributes as they are in a packet.  Raises :class:`ValueError` for what does not fit."""
    return b"".join(_encode(pairs))


def _hide(password: Value, secret: bytes, authenticator: bytes) -> bytes:
    """RFC 2865 section 5.2."""
    if not isinstance(password, bytes):
        raise ValueError("User-Password must be octets")
    if len(password) > MAX_PASSWORD:
        raise ValueError("User-Password too long")
    padded = password + bytes(-len(password) % 16 or (0 if password else 16))
    hidden, last = b"", authenticator
    for at in range(0, len(padded), 16):
        last = _xor(padded[at : at + 16], md5(secret + last).digest())
        hidden += last
    return hidden


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(16, "big")


def _finish(code: int, identifier: int, vector: bytes, body: bytes, secret: bytes, sign: bool) -> tuple[bytes, bytes]:
    """The first four octets and the attributes, with a Message-Authenticator before them where *sign* says so.

    *vector* stands for the authenticator while it is computed (RFC 3579 section 3.2).
    """
    size = _HEADER + len(body) + (len(_SIGNATURE) if sign else 0)
    if size > MAX_PACKET:
        raise ValueError("packet too long")
    head = bytes((code, identifier, size >> 8, size & 255))
    if sign:
        signature = hmac_digest(secret, head + vector + _SIGNATURE + body, "md5")
        body = _SIGNATURE[:2] + signature + body
    return head, body


def encode_request(
    code: Code,
    identifier: int,
    authenticator: bytes,
    pairs: Iterable[Pair],
    secret: bytes,
    *,
    message_authenticator: bool | None = None,
) -> bytes:
    """A request.

    Those whose authenticator is random are given it, 16 octets; that of all others is computed (RFC 2866 section 3).
    ``User-Password`` is hidden here, in an Access-Request.  A Message-Authenticator is the first of the attributes; by
    itself, where the authenticator is random.  Raises :class:`ValueError` for what does not fit.
    """
    random = code in _RANDOM
    if random:
        pairs = [
            (name, _hide(value, secret, authenticator)) if name == "User-Password" else (name, value)
            for name, value in pairs
        ]
    vector = authenticator if random else _NOTHING
    sign = random if message_authenticator is None else message_authenticator
    head, body = _finish(code, identifier, vector, b"".join(_encode(pairs)), secret, sign)
    if not random:
        authenticator = md5(head + _NOTHING + body + secret).digest()
    return head + authenticator + body


def encode_reply(
    request: Received, code: Code, pairs: Iterable[Pair], secret: bytes, *, message_authenticator: bool = True
) -> bytes:
    """The answer to *request* (RFC 2865 section 3, RFC 5176 section 2.3).

    A Message-Authenticator is the first of the attributes, but for an Accounting-Response.  Raises :class:`ValueError`
    for what does not fit.
    """
    sign = message_authenticator and code != Code.ACCOUNTING_RESPONSE
    head, body = _finish(code, request.identifier, request.authenticator, b"".join(_encode(pairs)), secret, sign)
    return head + md5(head + request.authenticator + body + secret).digest() + body


class Received:
    """A packet that has come.  Attributes that are in no dictionary are called Attr-241, Attr-26.311.99."""

    __slots__ = (
        "_pairs",
        "_request",
        "_secret",
        "_signature",
        "_values",
        "authenticator",
        "code",
        "data",
        "identifier",
    )

    def __init__(self, data: bytes) -> None:
        """Raises :class:`Malformed`."""
        head = Cursor(data)
        code = _CODES.get(head.u8())
        self.identifier = head.u8()
        size = head.u16()
        self.authenticator = head.take(16)
        if size > MAX_PACKET:
            raise Malformed("long")
        if not _HEADER <= size <= len(data):
            raise Malformed("length")
        if code is None:
            raise Malformed("code")
        self.code = code
        #: Without padding.
        self.data = data if size == len(data) else data[:size]
        # Where the value of the Message-Authenticator is; 0: there is none.
        self._signature = 0
        self._pairs: list[tuple[str, bytes]] = []
        # Of the request that this answers, once it is known to.
        self._request = self._secret = b""
        self._walk(Cursor(self.data, _HEADER))
        values: dict[str, list[bytes]] = {}
        for name, value in self._pairs:
            if name in values:
                values[name].append(value)
            else:
                values[name] = [value]
        self._values = values

    def _walk(self, cursor: Cursor) -> None:
        pairs, names = self._pairs, _NAMES
        u8, take = cursor.u8, cursor.take
        while cursor.pos < cursor.end:
            code, length = u8(), u8()
            if length < 2:
                raise Malformed("attribute length")
            if code == _VENDOR_SPECIFIC:
                self._vendor(cursor.sub(length - 2))
                continue
            if code == _MESSAGE_AUTHENTICATOR:
                if self._signature or length != len(_SIGNATURE):
                    raise Malformed("Message-Authenticator")
                self._signature = cursor.pos
            pairs.append((names.get(code) or f"Attr-{code}", take(length - 2)))

    def _vendor(self, cursor: Cursor) -> None:
        """RFC 2865 section 5.26."""
        vendor, start = cursor.u32(), cursor.pos
        found = []
        try:
            while cursor.pos < cursor.end:
                code, length = cursor.u8(), cursor.u8()
                if length < 2:
                    raise Malformed("vendor attribute length")
                found.append((_NAMES.get((vendor, code)) or f"Attr-26.{vendor}.{code}", cursor.take(length - 2)))
        except Malformed:
            # Those that we know keep to the usual format; others need not.
            if vendor in _VENDORS:
                raise
            found = [(f"Attr-26.{vendor}", cursor.data[start : cursor.end])]
        self._pairs += found

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> list[str]:
        """In the order of the packet."""
        return [name for name, _ in self._pairs]

    def pairs(self) -> list[tuple[str, bytes]]:
        """All there is, in the order of the packet, with tags."""
        return list(self._pairs)

    def octets(self, name: str) -> bytes | None:
        """The first value, without its tag."""
        values = self._values.get(name)
        return _untagged(name, values[0]) if values else None

    def all_octets(self, name: str) -> list[bytes]:
        return [_untagged(name, value) for value in self._values.get(name, ())]

    def joined(self, name: str) -> bytes:
        """All values, one after the other (RFC 3579 section 3.1)."""
        return b"".join(self._values.get(name, ()))

    def text(self, name: str) -> str | None:
        """The first value; octets that are not UTF-8 are kept as surrogates."""
        value = self.octets(name)
        return None if value is None else value.decode("utf-8", "surrogateescape")

    def all_texts(self, name: str) -> list[str]:
        return [value.decode("utf-8", "surrogateescape") for value in self.all_octets(name)]

    def integer(self, name: str) -> int | None:
        """The first value of a number, a date or an IPv4 address.  Raises :class:`Malformed` if its length is wrong."""
        values = self._values.get(name)
        if not values:
            return None
        value, kind = values[0], _KINDS[name]
        if len(value) != kind.size:
            raise Malformed(name)
        return int.from_bytes(value[1:] if kind.tagged else value, "big")

    def salted(self, name: str) -> bytes | None:
        """A key, deciphered (RFC 2548 section 2.4.2); only of a reply that :func:`verify_reply` has accepted.

        Raises :class:`Malformed`.
        """
        values = self._values.get(name)
        if not values:
            return None
        value = values[0]
        if len(value) < 18 or len(value) % 16 != 2:
            raise Malformed(name)
        plain, last = b"", self._request + value[:2]
        for at in range(2, len(value), 16):
            block = value[at : at + 16]
            plain += _xor(block, md5(self._secret + last).digest())
            last = block
        if plain[0] >= len(plain):
            raise Malformed(name)
        return plain[1 : 1 + plain[0]]

    def _signed(self, vector: bytes, secret: bytes) -> bool:
        """Whether the Message-Authenticator, which is there, is right."""
        data, at = self.data, self._signature
        signature = hmac_digest(secret, data[:4] + vector + data[20:at] + _NOTHING + data[at + 16 :], "md5")
        return compare_digest(signature, data[at : at + 16])


def _untagged(name: str, value: bytes) -> bytes:
    kind = _KINDS.get(name)
    if kind is not None and kind.tagged and value and value[0] <= _MAX_TAG:
        return value[1:]
    return value


def parse(data: bytes) -> Received:
    """Read a packet.  Octets beyond its length are padding.

    Raises :class:`Malformed` for whatever is wrong in its structure; the lengths of single values are looked at when
    they are asked for.
    """
    return Received(data)


def verify_reply(reply: Received, request_authenticator: bytes, secret: bytes, *, require: bool) -> str:
    """Whether *reply* counts as the answer to the request that had *request_authenticator*: "", or why it does not.

    With *require*, only with a Message-Authenticator.  One that is there must be right in any case.
    """
    data = reply.data
    expected = md5(data[:4] + request_authenticator + data[20:] + secret).digest()
    if not compare_digest(expected, reply.authenticator):
        return "authenticator"
    if reply._signature:
        # With Status-Server's (RFC 5997 section 3), an Accounting-Response has either form.
        plain = reply.code == Code.ACCOUNTING_RESPONSE and reply._signed(_NOTHING, secret)
        if not plain and not reply._signed(request_authenticator, secret):
            return "message-authenticator"
    elif require or _LONG in reply:
        # RFC 3579 section 3.2: EAP never goes without.
        return "no-message-authenticator"
    elif "Proxy-State" in reply and reply.code in _ACCESS_REPLIES:
        # We send none.  MD5's collisions need it (CVE-2024-3596).
        return "proxy-state"
    reply._request, reply._secret = request_authenticator, secret
    return ""


def verify_request(request: Received, secret: bytes) -> str:
    """Whether *request* is from one who knows *secret*: "", or why it does not count.

    Where the authenticator is random, only a Message-Authenticator can tell.
    """
    random = request.code in _RANDOM
    data = request.data
    if not random:
        expected = md5(data[:4] + _NOTHING + data[20:] + secret).digest()
        if not compare_digest(expected, request.authenticator):
            return "authenticator"
    if request._signature:
        if not request._signed(request.authenticator if random else _NOTHING, secret):
            return "message-authenticator"
    elif random:
        return "no-message-authenticator"
    return ""
