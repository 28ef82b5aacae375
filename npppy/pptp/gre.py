"""Enhanced GRE (RFC 2637 section 4.1): its header, and the numbers of a call that carries data by it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..cursor import Cursor, Malformed
from ..ppp.proto import PAP
from ..reorder import Reorder
from ..text import dump
from .encap import Sequence

#: PPP as GRE's payload.
PROTOCOL = 0x880B
#: The first 16 bits: key (it is always there), sequence number, acknowledgment number, version 1.
KEY, SEQUENCE, ACKNOWLEDGMENT = 0x2000, 0x1000, 0x0080
VERSION = 1
# All others are to be 0: C, R, s, Recur, Flags, and the rest of Ver.
_WRONG = 0xFFFF & ~(KEY | SEQUENCE | ACKNOWLEDGMENT | VERSION)

#: Of data that came late, so many numbers behind still pass, if a control protocol does not mind (as in npppd).
LATE = 64
#: The receive window that we advertise, in packets.
WINDOW = 64
#: What has come is acknowledged at once when it is so many packets, or when nothing was for so many seconds.
ACK_PACKETS = 16
ACK_INTERVAL = 0.25
#: Seconds without an acknowledgment of the peer after which what it owes one for counts as lost.
LOST = 1.0

_MASK = 0xFFFFFFFF
_HALF = 1 << 31
_ADDRESS_CONTROL = b"\xff\x03"

# Flags, protocol, payload length, call id, and what there is of sequence number and acknowledgment number; PPP.
_BARE = struct.Struct("!HHHHI")
_FIRST = struct.Struct("!HHHHI2s")
_DATA = struct.Struct("!HHHHII2s")
_DATA_FLAGS = KEY | SEQUENCE | ACKNOWLEDGMENT | VERSION
_FIRST_FLAGS = KEY | SEQUENCE | VERSION
_BARE_FLAGS = KEY | ACKNOWLEDGMENT | VERSION


class Packet(NamedTuple):
    """A packet's header; the payload is ``packet[start:end]``."""

    call_id: int
    #: 32 bits each; -1: not there.
    sequence: int
    acknowledgment: int
    start: int
    end: int


def decode(packet: bytes) -> Packet:
    """Read a header; raises :class:`Malformed`.  What follows the payload is not looked at."""
    cursor = Cursor(packet)
    flags = cursor.u16()
    if flags & _WRONG or not flags & VERSION or not flags & KEY:
        raise Malformed("flags")
    if cursor.u16() != PROTOCOL:
        raise Malformed("protocol")
    length, call_id = cursor.u16(), cursor.u16()
    sequence = cursor.u32() if flags & SEQUENCE else -1
    acknowledgment = cursor.u32() if flags & ACKNOWLEDGMENT else -1
    start = cursor.pos
    payload = cursor.sub(length)
    if length and sequence < 0:
        raise Malformed("no sequence number")
    return Packet(call_id, sequence, acknowledgment, start, payload.end)


def encode(call_id: int, sequence: int, acknowledgment: int, frame: bytes) -> bytes:
    """A packet with a PPP frame, from its Protocol field on; an *acknowledgment* of -1 is left out."""
    length = len(frame) + 2
    if acknowledgment < 0:
        header = _FIRST.pack(_FIRST_FLAGS, PROTOCOL, length, call_id, sequence, _ADDRESS_CONTROL)
    else:
        header = _DATA.pack(_DATA_FLAGS, PROTOCOL, length, call_id, sequence, acknowledgment, _ADDRESS_CONTROL)
    return header + frame


def acknowledgment(call_id: int, number: int) -> bytes:
    """A packet that only acknowledges."""
    return _BARE.pack(_BARE_FLAGS, PROTOCOL, 0, call_id, number)


def frame(packet: bytes, header: Packet) -> bytes:
    """The PPP frame of a packet, from its Protocol field on, which may have one octet; empty: there is none."""
    start = header.start
    if packet[start : start + 2] == _ADDRESS_CONTROL:
        start += 2
    return packet[start : header.end]


def is_data(ppp: bytes) -> bool:
    """Is a frame of a network protocol, whole, compressed or encrypted, and not of a control protocol?

    Those begin at 0x8000, and are not compressed to one octet (RFC 1661 sections 2 and 6.5).
    """
    return ppp[0] & 1 == 1 or ppp[0] < 0x40


class Window(Sequence):
    """The numbers of a call, and what follows from them while they are kept here."""

    __slots__ = ("_acked_at", "_heard_at", "heard", "limit", "reorder")

    def __init__(self, limit: int = 0, reorder: int = 0) -> None:
        """*limit* is the peer's receive window, 0 for one that is not looked at; *reorder* packets may be held."""
        super().__init__()
        self.limit = limit
        self.reorder = Reorder(reorder, _MASK) if reorder else None
        #: Has anything come that has a number?
        self.heard = False
        # When we acknowledged last, and when the peer did or owed nothing.
        self._acked_at = 0.0
        self._heard_at = 0.0

    # To the peer.

    def wrap(self, call_id: int, ppp: bytes, now: float) -> bytes | None:
        """The packet for a frame; None: the peer's window is full."""
        if self.out == self.peer_acked:
            self._heard_at = now
        elif self.limit and is_data(ppp) and (self.out - self.peer_acked) & _MASK >= self.limit:
            if now < self._heard_at + LOST:
                return None
            self.peer_acked = self.out
            self._heard_at = now
        number = self.out
        self.out = (number + 1) & _MASK
        return encode(call_id, number, self._acknowledge(now) if self.heard else -1, ppp)

    def acknowledgment(self, call_id: int, now: float) -> bytes:
        """A packet that acknowledges all that has come, alone."""
        return acknowledgment(call_id, self._acknowledge(now))

    def _acknowledge(self, now: float) -> int:
        self.acked = self.expected
        self._acked_at = now
        return (self.expected - 1) & _MASK

    # From the peer.

    def acknowledged(self, number: int, now: float) -> None:
        """The peer has acknowledged what we sent, up to *number*; one that makes no sense is passed over."""
        count = (number + 1 - self.peer_acked) & _MASK
        if 0 < count <= (self.out - self.peer_acked) & _MASK:
            self.peer_acked = (number + 1) & _MASK
            self._heard_at = now

    def receive(self, number: int, ppp: bytes) -> list[bytes] | None:
        """The frames whose turn it is; None: this one came too late.

        RFC 2637 section 4.3: nothing is delivered out of order, but what may be, and what is put in order.
        """
        ahead = (number - self.expected) & _MASK
        self.heard = True
        if ahead < _HALF:
            if self.reorder is not None:
                return self.reorder.receive(self, number, ppp)
            self.expected = (number + 1) & _MASK
            return [ppp]
        if ahead > _MASK - LATE:
            # IP does not mind; a control protocol would take it for something new.
            return [ppp] if is_data(ppp) else None
        # It may be the first of a peer that counts anew, and those after it are not to be late.
        self.expected = (number + 1) & _MASK
        return None

    def passed_on(self, number: int) -> bool:
        """The kernel counts, and has passed a packet on.  Is what has come to be acknowledged now?

        It acknowledges in time what it carries, and not what it passes on; nor does it see what comes in fragments, or
        by an interface without a program.
        """
        assert self.keeper is not None
        expected, acked = self.keeper.look()
        if (number - expected) & _MASK < _HALF:
            expected = (number + 1) & _MASK
            self.keeper.note(expected)
        return (expected - acked) & _MASK >= ACK_PACKETS

    @property
    def owes(self) -> bool:
        """Is there something to acknowledge?"""
        return self.acked != self.expected

    def must_acknowledge(self, now: float) -> bool:
        """Is that to be done now?"""
        return self.owes and (
            now >= self._acked_at + ACK_INTERVAL or (self.expected - self.acked) & _MASK >= ACK_PACKETS
        )


def shown(packet: bytes) -> str:
    """A dump of a packet, without the password that may be in it."""
    try:
        header = decode(packet)
    except Malformed:
        return dump(packet, [(0, len(packet))])
    ppp = frame(packet, header)
    secret = [(header.end - len(ppp) + 2, header.end)] if ppp[:2] == PAP.to_bytes(2, "big") else []
    return dump(packet, secret)
