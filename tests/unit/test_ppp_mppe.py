"""MPPE's keys and packets: RFC 3079's samples, loss, disorder, replay, and forgery."""

from __future__ import annotations

import random

import pytest
from Crypto.Cipher import ARC4

from npppy.pipex.icmp import RateLimit
from npppy.pipex.ip import checksum
from npppy.ppp import mschap
from npppy.ppp.mppe import STRENGTHS, Keys, Mode, Mppe, Place, Receiver, Sender, first_key, keys_from_mschap, next_key
from tests.effort import some

# RFC 3079 section 3.5.
PASSWORD = b"clientPass"
CHALLENGE = bytes.fromhex("5B5D7C7D7B3F2F3E3C2C602132262628")
PEER_CHALLENGE = bytes.fromhex("21402324255E262A28295F2B3A337C7E")
NT_RESPONSE = bytes.fromhex("82309ECD8D708B5EA08FAA3981CD83544233114A3D85D6DF")
START = bytes.fromhex("8B7CDC149B993A1BA118CB153F56DCCB")

MASTERS = Keys(bytes(range(16)), bytes(range(16, 32)))


def packet(number: int, size: int = 64) -> bytes:
    """A frame with IPv4."""
    header = bytearray(20)
    header[0], header[8] = 0x45, 64
    header[2:4] = size.to_bytes(2, "big")
    header[12:20] = number.to_bytes(4, "big") + b"\x0a\0\0\1"
    header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return b"\0\x21" + bytes(header) + bytes(number * i & 0xFF for i in range(size - 20))


def packet6(number: int, size: int = 24) -> bytes:
    return b"\0\x57" + b"\x60\0\0\0" + size.to_bytes(2, "big") + b"\x3b\x40" + number.to_bytes(32, "big") + bytes(size)


def pair(bits: int = 128, *, stateful: bool = False) -> tuple[Sender, Receiver]:
    strength = STRENGTHS[bits]
    return Sender(strength, MASTERS.send, stateful=stateful), Receiver(strength, MASTERS.send, stateful=stateful)


def sent(sender: Sender, number: int) -> bytes:
    """A packet behind its Protocol field."""
    frame = sender.encrypt(packet(number))
    assert frame[:2] == b"\0\xfd"
    return frame[2:]


def test_start_keys_of_rfc_3079() -> None:
    password_hash = mschap.nt_password_hash(PASSWORD)
    assert mschap.nt_response(CHALLENGE, PEER_CHALLENGE, b"User", PASSWORD) == NT_RESPONSE
    keys = keys_from_mschap(password_hash, NT_RESPONSE, server=True)
    assert keys.send == START
    assert keys_from_mschap(password_hash, NT_RESPONSE, server=False) == Keys(keys.receive, keys.send)
    assert keys.receive != keys.send


@pytest.mark.parametrize(
    ("bits", "key", "message"),
    [
        (40, "D1269EC49FA62E3E", "929137917E5803D668D75898"),
        # The last octet is 58 in print; but 128 and 40 bits come out, and this is a stream.
        (56, "D15C00C49FA62E3E", "3F106833FA448DA842BC57B8"),
        (128, "405CB2247A7956E6E211007AE27B22D4", "81848317DF68846272FB5ABE"),
    ],
)
def test_session_keys_of_rfc_3079(bits: int, key: str, message: str) -> None:
    strength = STRENGTHS[bits]
    first = first_key(strength, START[: strength.size])
    assert first == bytes.fromhex(key)
    assert ARC4.new(first).encrypt(b"test message") == bytes.fromhex(message)


@pytest.mark.parametrize("bits", [40, 56, 128])
def test_each_packet_has_its_key(bits: int) -> None:
    strength = STRENGTHS[bits]
    sender, receiver = pair(bits)
    key, start = first_key(strength, MASTERS.send[: strength.size]), MASTERS.send[: strength.size]
    for number in range(5000):
        data = sent(sender, number)
        # RFC 3078 section 3.1: flushed, encrypted, and the count.
        assert data[:2] == (0x9000 | number % 4096).to_bytes(2, "big")
        if number < 3:
            key = next_key(strength, start, key)
            assert key.startswith(strength.salt)
            assert ARC4.new(key).decrypt(data[2:]) == packet(number)
        assert receiver.decrypt(data) == packet(number)


def test_protocols_that_are_compressed_come_out_whole() -> None:
    sender, receiver = pair()
    assert receiver.decrypt(sender.encrypt(packet(1)[1:])[2:]) == packet(1)
    assert receiver.decrypt(sender.encrypt(packet6(2)[1:])[2:]) == packet6(2)
    assert receiver.decrypt(sender.encrypt(packet6(3))[2:]) == packet6(3)


def test_no_packet_counts_twice() -> None:
    sender, receiver = pair()
    recorded = [sent(sender, number) for number in range(20)]
    for number, data in enumerate(recorded):
        assert receiver.decrypt(data) == packet(number)
    for data in recorded:
        assert receiver.decrypt(data) is None


def test_loss_and_lateness() -> None:
    sender, receiver = pair()
    data = [sent(sender, number) for number in range(40)]
    assert receiver.decrypt(data[0]) is not None
    assert receiver.decrypt(data[10]) == packet(10)
    # Of those between, which come late, each is taken once, and those before it no more.
    assert receiver.decrypt(data[3]) == packet(3)
    assert receiver.decrypt(data[3]) is None
    assert receiver.decrypt(data[2]) is None
    assert receiver.decrypt(data[11]) == packet(11)
    assert receiver.decrypt(data[9]) == packet(9)
    assert receiver.decrypt(data[9]) is None
    assert receiver.decrypt(data[10]) is None
    # Another gap, and the one before is forgotten.
    assert receiver.decrypt(data[20]) == packet(20)
    assert receiver.decrypt(data[12]) == packet(12)
    assert receiver.decrypt(data[8]) is None


@pytest.mark.parametrize("gap", [1, 300, 2046, 4095, 4096, 5000, 12000])
def test_gaps(gap: int) -> None:
    sender, receiver = pair(40)
    assert receiver.decrypt(sent(sender, 0)) is not None
    for number in range(gap):
        sent(sender, number)
    wanted = sent(sender, 1)
    if (gap % 4096) < 2048:
        assert receiver.decrypt(wanted) == packet(1)
    else:
        # It looks like one from behind; the first that does not is taken.
        assert receiver.decrypt(wanted) is None
        for _ in range(4096 - gap % 4096):
            wanted = sent(sender, 1)
        assert receiver.decrypt(wanted) == packet(1)
    assert receiver.decrypt(sent(sender, 2)) == packet(2)


@pytest.mark.parametrize("gap", [2047, 2048, 3000, 4095])
def test_a_gap_that_looks_like_none(gap: int) -> None:
    """What seems to be behind is from ahead where nothing else comes; what is behind is not taken even then."""
    sender, receiver = pair(40)
    old = [sent(sender, number) for number in range(5)]
    for data in old:
        assert receiver.decrypt(data, 10.0) is not None
    for number in range(gap):
        sent(sender, number)
    assert receiver.decrypt(sent(sender, 1), 10.9) == (packet(1) if gap < 2048 else None)
    for data in old:
        assert receiver.decrypt(data, 11.1) is None
    assert receiver.decrypt(sent(sender, 2), 11.1) == packet(2)
    assert receiver.decrypt(sent(sender, 3), 11.1) == packet(3)


def test_forgery_moves_nothing() -> None:
    sender, receiver = pair()
    receiver.decrypt(sent(sender, 0))
    dice = random.Random(1)
    before = receiver.place
    for _ in range(some(50, 5)):
        forged = (0x9000 | dice.randrange(200)).to_bytes(2, "big") + dice.randbytes(60)
        assert receiver.decrypt(forged) is None
    for head in (0x0001, 0x1001, 0x8001):
        data = sent(Sender(sender.strength, MASTERS.send, stateful=False), 1)[2:]
        assert receiver.decrypt(head.to_bytes(2, "big") + data) is None
    assert receiver.decrypt(b"\x90") is None
    assert receiver.place == before
    assert receiver.decrypt(sent(sender, 1)) == packet(1)


def test_catching_up_has_a_bound() -> None:
    sender, receiver = pair()
    receiver.budget = RateLimit(100, 500)
    receiver.decrypt(sent(sender, 0), 1.0)
    forged = (0x9000 | 450).to_bytes(2, "big") + bytes(60)
    assert receiver.decrypt(forged, 1.0) is None
    assert receiver.budget.tokens < 60
    for number in range(1, 200):
        data = sent(sender, number)
    # It would have to wait; and what is not far needs none of it.
    assert receiver.decrypt(data, 1.0) is None
    assert receiver.decrypt(data, 3.0) == packet(199)
    assert receiver.decrypt(sent(sender, 200), 3.0) == packet(200)


def test_a_shared_place_is_used_and_moved() -> None:
    class Store:
        def __init__(self, place: Place) -> None:
            self.place = place

        def read(self) -> Place:
            return self.place

        def write(self, place: Place, before: Place) -> None:
            self.place = place

    sender, receiver = pair()
    store = receiver.shared = Store(receiver.place)
    own = receiver.place
    for number in range(3):
        assert receiver.decrypt(sent(sender, number)) == packet(number)
    assert store.place.number == 3
    assert receiver.place is own


@pytest.mark.parametrize("bits", [40, 56, 128])
def test_stateful(bits: int) -> None:
    sender, receiver = pair(bits, stateful=True)
    keys = set()
    for number in range(1000):
        data = sent(sender, number)
        flushed = number % 256 == 255
        assert data[:2] == ((0x9000 if flushed else 0x1000) | number).to_bytes(2, "big")
        keys.add(sender.key)
        assert receiver.decrypt(data) == packet(number)
    assert len(keys) == 4
    assert not receiver.wants_reset


@pytest.mark.parametrize("lost", [1, 200, 300, 700, 5000, 14000])
def test_stateful_loss_needs_a_reset(lost: int) -> None:
    sender, receiver = pair(stateful=True)
    for number in range(100):
        receiver.decrypt(sent(sender, number))
    for number in range(lost):
        sent(sender, number)
    for number in range(3):
        data = sent(sender, number)
        if data[0] & 0x80:
            break
        assert receiver.decrypt(data) is None
        assert receiver.wants_reset
    sender.reset()
    for number in range(600):
        assert receiver.decrypt(sent(sender, number)) == packet(number)
    assert not receiver.wants_reset


class Linux:
    """A sender that changes its key with every flushed packet, as Linux does."""

    def __init__(self) -> None:
        self.sender = Sender(STRENGTHS[128], MASTERS.send, stateful=True)
        self.key = self.sender.key
        self.cipher = ARC4.new(self.key)
        self.count = 0
        self.flush = False

    def sent(self, number: int) -> bytes:
        flags = 0x1000
        if self.flush or self.count % 256 == 255:
            self.key = next_key(self.sender.strength, self.sender.start, self.key)
            self.cipher = ARC4.new(self.key)
            self.flush = False
            flags |= 0x8000
        data = (flags | self.count).to_bytes(2, "big") + self.cipher.encrypt(packet(number))
        self.count = (self.count + 1) % 4096
        return data


class LinuxReceiver:
    """One that changes its key by the flushed bit alone, once for each block that was missed and once for the bit."""

    def __init__(self) -> None:
        self.receiver = Receiver(STRENGTHS[128], MASTERS.send, stateful=True)
        self.key = first_key(STRENGTHS[128], MASTERS.send)
        self.cipher = ARC4.new(self.key)
        self.count = 4095
        self.discard = False

    def change(self) -> None:
        self.key = next_key(STRENGTHS[128], MASTERS.send, self.key)
        self.cipher = ARC4.new(self.key)

    def decrypt(self, data: bytes) -> bytes | None:
        count, flushed = (data[0] << 8 | data[1]) & 0xFFF, data[0] & 0x80
        if not self.discard:
            self.count = (self.count + 1) % 4096
            if self.count != count:
                self.discard = True
                return None
        else:
            if not flushed:
                return None
            while count & ~0xFF != self.count & ~0xFF:
                self.change()
                self.count = (self.count + 256) % 4096
            self.discard, self.count = False, count
        if flushed:
            self.change()
        return self.cipher.decrypt(data[2:])


@pytest.mark.parametrize("after", [0, 1, 100, 254, 255, 256, 4000])
@pytest.mark.parametrize("lost", [1, 2, 254, 255, 256, 300])
def test_stateful_with_linux(after: int, lost: int) -> None:
    linux, receiver = Linux(), Receiver(STRENGTHS[128], MASTERS.send, stateful=True)
    sender, reader = Sender(STRENGTHS[128], MASTERS.send, stateful=True), LinuxReceiver()
    for number in range(after):
        assert receiver.decrypt(linux.sent(number)) == packet(number)
        assert reader.decrypt(sent(sender, number)) == packet(number)
    for number in range(lost):
        linux.sent(number)
        sent(sender, number)
    for number in range(3):
        receiver.decrypt(linux.sent(number))
        reader.decrypt(sent(sender, number))
    if receiver.wants_reset:
        linux.flush = True
    if reader.discard:
        sender.reset()
    for number in range(600):
        assert receiver.decrypt(linux.sent(number)) == packet(number)
        assert reader.decrypt(sent(sender, number)) == packet(number)


def test_stateful_forgery() -> None:
    sender, receiver = pair(stateful=True)
    dice = random.Random(2)
    for number in range(300):
        expected = number % 4096
        assert receiver.decrypt((0x1000 | expected).to_bytes(2, "big") + dice.randbytes(60)) is None
        assert receiver.decrypt((0x9000 | dice.randrange(4096)).to_bytes(2, "big") + dice.randbytes(60)) is None
        assert receiver.decrypt(sent(sender, number)) == packet(number)


def test_both_ways() -> None:
    ways = Mode(56, False), Mode(128, True)
    here = Mppe.begin(MASTERS, *ways)
    there = Mppe.begin(Keys(MASTERS.receive, MASTERS.send), *ways[::-1])
    assert there.receive.decrypt(here.send.encrypt(packet(1))[2:]) == packet(1)
    assert here.receive.decrypt(there.send.encrypt(packet(2))[2:]) == packet(2)
    assert here.modes == ways
    assert [str(mode) for mode in ways] == ["56bits,stateless", "128bits,stateful"]
    assert here.stateful


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_stateful_with_linux_whose_resets_are_lost(lost: int) -> None:
    """Each packet that answers a Reset-Request changes its key, also those that are lost."""
    linux, receiver = Linux(), Receiver(STRENGTHS[128], MASTERS.send, stateful=True)
    for number in range(10):
        assert receiver.decrypt(linux.sent(number)) == packet(number)
    for _ in range(lost):
        linux.flush = True
        linux.sent(1)
        assert receiver.decrypt(linux.sent(2)) is None
        assert receiver.wants_reset
    linux.flush = True
    for number in range(600):
        assert receiver.decrypt(linux.sent(number)) == packet(number)
    assert not receiver.wants_reset


def test_linux_reads_what_a_reset_brings_after_one_that_was_lost() -> None:
    sender, reader = Sender(STRENGTHS[128], MASTERS.send, stateful=True), LinuxReceiver()
    for number in range(10):
        assert reader.decrypt(sent(sender, number)) == packet(number)
    for _ in range(3):
        sender.reset()
        sent(sender, 1)
        assert reader.decrypt(sent(sender, 2)) is None
    sender.reset()
    for number in range(600):
        assert reader.decrypt(sent(sender, number)) == packet(number)


def test_the_key_changes_by_the_count_alone() -> None:
    """RFC 3078 section 7.2 does not have the bit set for it."""
    sender, receiver = pair(stateful=True)
    for number in range(600):
        data = sent(sender, number)
        assert receiver.decrypt(bytes((data[0] & 0x7F,)) + data[1:]) == packet(number)
    assert not receiver.wants_reset


def test_what_is_near_needs_no_budget() -> None:
    """Or one session, with packets that nobody can decrypt, would make all others deaf that lose some."""
    sender, receiver = pair()
    receiver.budget = RateLimit(1, 0)
    for number in range(200):
        data = sent(sender, number)
        if number % 6 in (0, 4):
            assert receiver.decrypt(data) == packet(number)
