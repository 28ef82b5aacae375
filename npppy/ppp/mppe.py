"""MPPE: its keys (RFC 3079 section 3) and what it does to packets (RFC 3078)."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from typing import NamedTuple, Protocol

from Crypto.Cipher import ARC4
from Crypto.Hash import MD4

from ..pipex.icmp import RateLimit
from ..pipex.ip import checksum

_PAD1 = bytes(40)
_PAD2 = b"\xf2" * 40
_MASTER = b"This is the MPPE Master Key"
_CLIENT_SENDS = b"On the client side, this is the send key; on the server side, it is the receive key."
_SERVER_SENDS = b"On the client side, this is the receive key; on the server side, it is the send key."

#: Flags of a packet (RFC 3078 section 3.1): the tables are new, and it is encrypted.
_FLUSHED = 0x8000
_ENCRYPTED = 0x1000
#: The coherency count has 12 bits.
_COUNTS = 0x1000
#: Counts that lie so far ahead are behind.
_BEHIND = _COUNTS // 2
#: In stateful mode the key changes with packets whose count has this as its low octet (section 7.2).
_FLAG = 0xFF
#: Seconds without a packet that could be decrypted, after which one that seems to be behind is tried as one ahead.
_QUIET = 1.0
#: How often the count may have gone round while nothing came.
_ROUNDS = 3
#: How many packets may have been lost that came after a Reset-Request.
_RESETS = 8
#: So many changes of keys are nothing that has to be paid for.
_NEAR = 8
#: Of the budget of all, a receiver's share a second, and of how many seconds it may have it at once.
_SHARE = 1024
_CREDIT = 16.0
#: Octets of key stream that cost as much as one.
_CHANGE = 4096

_PROTOCOL = b"\x00\xfd"
#: Octets that a packet grows by.
OVERHEAD = 4


class Keys(NamedTuple):
    """What authentication has given: the master session keys of 128 bits, of which shorter ones are the begin."""

    #: 16 octets each.
    send: bytes
    receive: bytes


def keys_from_mschap(password_hash: bytes, nt_response: bytes, *, server: bool) -> Keys:
    """Of MS-CHAPv2, by the NT hash of the password, 16 octets, and the response, 24 (RFC 3079 section 3.3)."""
    master = sha1(MD4.new(password_hash).digest() + nt_response + _MASTER).digest()[:16]
    up, down = (sha1(master + _PAD1 + way + _PAD2).digest()[:16] for way in (_CLIENT_SENDS, _SERVER_SENDS))
    return Keys(down, up) if server else Keys(up, down)


class Strength(NamedTuple):
    """How long keys are, and how much of them is known."""

    #: 40, 56 or 128.
    bits: int
    #: Octets of a key.
    size: int
    #: What the first of them are (RFC 3078 section 7.3).
    salt: bytes


STRENGTHS = {
    128: Strength(128, 16, b""),
    56: Strength(56, 8, b"\xd1"),
    40: Strength(40, 8, b"\xd1\x26\x9e"),
}


def first_key(strength: Strength, start: bytes) -> bytes:
    """The initial session key, from a master session key (RFC 3079 section 3)."""
    return _salted(strength, _digest(start, start))


def next_key(strength: Strength, start: bytes, key: bytes) -> bytes:
    """The session key after *key* (RFC 3078 section 7.3)."""
    interim = _digest(start, key)
    return _salted(strength, ARC4.new(interim).encrypt(interim))


def _digest(start: bytes, key: bytes) -> bytes:
    return sha1(start + _PAD1 + key + _PAD2).digest()[: len(start)]


def _salted(strength: Strength, key: bytes) -> bytes:
    return strength.salt + key[len(strength.salt) :]


class Place(NamedTuple):
    """Where a receiver is in the row of keys of stateless mode."""

    #: The key before that of the next packet, and that packet's coherency count.
    key: bytes
    number: int
    #: Packets that were skipped and may still come: counts from *late* on, before *end*; both the same: none.  And the
    #: key before that of the first of them.
    late_key: bytes = b""
    late: int = 0
    end: int = 0


class Shared(Protocol):
    """A receiver's place while the kernel moves it, too."""

    def read(self) -> Place: ...

    def write(self, place: Place, before: Place) -> None:
        """Go on from *place*, which has been worked out from the one *before*."""


class _Stream:
    """The key stream of a session key, in stateful mode."""

    __slots__ = ("_cipher", "key", "used")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.used = 0
        self._cipher = ARC4.new(key)

    def apply(self, data: bytes) -> bytes:
        self.used += len(data)
        return self._cipher.encrypt(data)

    def rewind(self, octets: int) -> None:
        """Take back what has been used last."""
        self.used -= octets
        self._cipher = ARC4.new(self.key)
        self._cipher.encrypt(bytes(self.used))


class Sender:
    """Encrypts what goes to the peer."""

    __slots__ = ("_flush", "_stream", "count", "inject", "key", "start", "stateful", "strength")

    def __init__(self, strength: Strength, master: bytes, *, stateful: bool) -> None:
        """*master*: as in :class:`Keys`."""
        self.strength = strength
        self.stateful = stateful
        self.start = master[: strength.size]
        #: The key of the packet before the next, and that one's count.
        self.key = first_key(strength, self.start)
        self.count = 0
        #: Set while the kernel encrypts, and the two above do not hold: is given frames in the clear, from the PPP
        #: Protocol field on, to be sent encrypted.
        self.inject: Callable[[bytes], None] | None = None
        self._stream = _Stream(self.key) if stateful else None
        self._flush = False

    def encrypt(self, frame: bytes) -> bytes:
        """The frame to be sent for one in the clear, both from the PPP Protocol field on."""
        count, stream = self.count, self._stream
        if stream is None:
            # RFC 3078 section 7.1.
            self.skip()
            return _head(_FLUSHED | count) + ARC4.new(self.key).encrypt(frame)
        flags = 0
        if self._flush:
            # After a Reset-Request tables are made anew of the key that is (section 8.2).  Linux changes the key then,
            # and expects that of us.  With a packet that the key changes for anyway, both are the same.
            count |= _FLAG
        if count & _FLAG == _FLAG:
            self.key = next_key(self.strength, self.start, self.key)
            stream = self._stream = _Stream(self.key)
            # The receiving Linux changes the key by this bit alone.
            flags = _FLUSHED
            self._flush = False
        self.count = (count + 1) % _COUNTS
        return _head(flags | count) + stream.apply(frame)

    def skip(self) -> None:
        """Pass over the key of a packet, in stateless mode."""
        self.key = next_key(self.strength, self.start, self.key)
        self.count = (self.count + 1) % _COUNTS

    def reset(self) -> None:
        """The peer has sent a Reset-Request."""
        self._flush = True


class Receiver:
    """Decrypts what comes from the peer.  Nothing moves before the plaintext has turned out to be some."""

    __slots__ = (
        "_decrypted",
        "_discard",
        "_paid",
        "_stream",
        "budget",
        "count",
        "place",
        "shared",
        "start",
        "stateful",
        "strength",
        "wants_reset",
    )

    def __init__(
        self, strength: Strength, master: bytes, *, stateful: bool, budget: RateLimit | None = None
    ) -> None:
        """*budget*: of changes of keys a second, that catching up may take."""
        self.strength = strength
        self.stateful = stateful
        self.start = master[: strength.size]
        self.budget = budget
        first = first_key(strength, self.start)
        #: Of stateless mode.
        self.place = Place(first, 0)
        #: Set while the kernel decrypts, and :attr:`place` does not hold.
        self.shared: Shared | None = None
        # When a packet last was.
        self._decrypted = 0.0
        # When all changes that were paid for are within the share.
        self._paid = 0.0
        # Of stateful mode.
        self._stream = _Stream(first) if stateful else None
        self.count = 0
        self._discard = False
        #: Whether the peer is to be sent a Reset-Request.
        self.wants_reset = False

    @property
    def position(self) -> int:
        """The coherency count of the next packet; it moves with every one that has been decrypted."""
        if self.stateful:
            return self.count
        return (self.place if self.shared is None else self.shared.read()).number

    def decrypt(self, packet: bytes, now: float = 0.0) -> bytes | None:
        """The frame in the clear, from its PPP Protocol field of two octets on, for what follows 0x00fd.

        None: it cannot be decrypted, or not any more.
        """
        if len(packet) < 4:
            return None
        head = packet[0] << 8 | packet[1]
        if not head & _ENCRYPTED:
            return None
        count = head % _COUNTS
        if self._stream is not None:
            return self._stateful(self._stream, head & _FLUSHED != 0, count, packet[2:], now)
        if not head & _FLUSHED:
            return None
        return self._stateless(count, packet[2:], now)

    # Stateless mode.

    def _stateless(self, count: int, data: bytes, now: float) -> bytes | None:
        shared = self.shared
        place = before = self.place if shared is None else shared.read()
        ahead = (count - place.number) % _COUNTS
        offset = (count - place.late) % _COUNTS
        if ahead >= _BEHIND and offset < (place.end - place.late) % _COUNTS:
            if not self._afford(offset, now):
                return None
            key = self._advance(place.late_key, offset + 1)
            plain = _plain(ARC4.new(key).encrypt(data))
            place = place._replace(late_key=key, late=(count + 1) % _COUNTS)
        elif ahead >= _BEHIND and now < self._decrypted + _QUIET:
            return None
        else:
            # One that seems to come from behind is from ahead if nothing else comes; of what the kernel has decrypted,
            # it knows that by itself.
            plain, key, steps = None, place.key, ahead + 1
            for _ in range(1 if ahead >= _BEHIND else 1 + _ROUNDS):
                if not self._afford(steps - 1, now):
                    return None
                key = self._advance(key, steps)
                plain = _plain(ARC4.new(key).encrypt(data))
                if plain is not None:
                    break
                steps = _COUNTS
            after = (count + 1) % _COUNTS
            if steps > _BEHIND:
                place = Place(key, after)
            elif ahead:
                place = Place(key, after, place.key, place.number, count)
            else:
                place = place._replace(key=key, number=after)
        if plain is None:
            return None
        self._decrypted = now
        if shared is None:
            self.place = place
        else:
            shared.write(place, before)
        return plain

    def _advance(self, key: bytes, steps: int) -> bytes:
        for _ in range(steps):
            key = next_key(self.strength, self.start, key)
        return key

    def _afford(self, changes: int, now: float) -> bool:
        if self.budget is None or changes <= _NEAR:
            return True
        # Or one session, with packets that nobody can decrypt, or by leaving some out, would make those deaf that lose
        # some.
        paid = max(self._paid, now) + changes / _SHARE
        if paid > now + _CREDIT or not self.budget.take(now, changes):
            return False
        self._paid = paid
        return True

    # Stateful mode.

    def _stateful(self, stream: _Stream, flushed: bool, count: int, data: bytes, now: float) -> bytes | None:
        ahead = (count - self.count) % _COUNTS
        if ahead >= _BEHIND and not self._discard:
            # Late; its place in the stream is gone.
            return None
        if not flushed and (ahead or self._discard or count & _FLAG != _FLAG):
            if ahead or self._discard:
                # RFC 3078 section 8.2.
                self._discard = self.wants_reset = True
                return None
            plain = _plain(stream.apply(data))
            if plain is None:
                # Of somebody else; if not, a reset helps.
                if self._afford(stream.used // _CHANGE, now):
                    stream.rewind(len(data))
                else:
                    self._discard = True
                self.wants_reset = True
                return None
        else:
            # All packets that are missing may have been ones that the key changes for.
            key = self._advance(stream.key, (self.count % 256 + ahead) // 256)
            plain = self._begin(key, count, data, 1)
            for turn in range(_ROUNDS + 1):
                if plain is not None or not self._afford(_COUNTS // 256, now):
                    break
                if turn:
                    key = self._advance(key, _COUNTS // 256)
                plain = self._begin(key, count, data, _RESETS)
            if plain is None:
                self.wants_reset = True
                return None
            self._discard = self.wants_reset = False
        self.count = (count + 1) % _COUNTS
        return plain

    def _begin(self, key: bytes, count: int, data: bytes, most: int) -> bytes | None:
        """Make the tables anew for a packet that says so, if the key before it was *key*, or one of the *most* next."""
        # It may be one that the key changes for; where it is not, Linux changes it nevertheless, and has done so for
        # those that it has sent after Reset-Requests and that were lost.
        first = count & _FLAG == _FLAG
        for changes in range(first, most + 1):
            if changes:
                key = next_key(self.strength, self.start, key)
            stream = _Stream(key)
            plain = _plain(stream.apply(data))
            if plain is not None:
                self._stream = stream
                return plain
        return None


class Mode(NamedTuple):
    """How one way is encrypted."""

    #: 40, 56 or 128.
    bits: int
    stateful: bool

    def __str__(self) -> str:
        """As npppd's log lines have it."""
        return f"{self.bits}bits,{'stateful' if self.stateful else 'stateless'}"


class Mppe(NamedTuple):
    """Both ways of a session."""

    send: Sender
    receive: Receiver

    @classmethod
    def begin(cls, keys: Keys, send: Mode, receive: Mode, budget: RateLimit | None = None) -> Mppe:
        """As CCP has agreed."""
        return cls(
            Sender(STRENGTHS[send.bits], keys.send, stateful=send.stateful),
            Receiver(STRENGTHS[receive.bits], keys.receive, stateful=receive.stateful, budget=budget),
        )

    @property
    def modes(self) -> tuple[Mode, Mode]:
        """Of what is sent, and of what is received."""
        send, receive = self
        return Mode(send.strength.bits, send.stateful), Mode(receive.strength.bits, receive.stateful)

    @property
    def stateful(self) -> bool:
        """Whether a way is: then the kernel has no part in the session."""
        return self.send.stateful or self.receive.stateful


def _head(bits: int) -> bytes:
    """What stands before what is encrypted."""
    return _PROTOCOL + (_ENCRYPTED | bits).to_bytes(2, "big")


def _plain(data: bytes) -> bytes | None:
    """*data* with a Protocol field of two octets, if it is an IP packet in PPP; MPPE has no other integrity."""
    if data[:1] in (b"\x21", b"\x57"):
        data = b"\0" + data
    size = len(data) - 2
    if data[:2] == b"\x00\x21" and size >= 20 and data[2] >> 4 == 4:
        header, total = (data[2] & 15) * 4, data[4] << 8 | data[5]
        if 20 <= header <= total <= size and not checksum(data[2 : 2 + header]):
            return data
    elif data[:2] == b"\x00\x57" and size >= 40 and data[2] >> 4 == 6 and (data[6] << 8 | data[7]) == size - 40:
        return data
    return None
