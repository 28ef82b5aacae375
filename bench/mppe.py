"""``pipex.mppe``: packets that are encrypted with 128 bits, of a session of PPTP, beside the same ones in the clear."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from npppy.pipex.ebpf import layout
from npppy.pipex.ebpf.libbpf import LOCKED
from npppy.pipex.ebpf.maps import default_pins
from npppy.pipex.ebpf.pins import editions
from npppy.ppp.mppe import OVERHEAD, STRENGTHS, Place, Receiver, Sender

from .carriers import MPPE, PptpSession, Session
from .figures import BenchError, Figure
from .kernel import check_untimed
from .lab import Lab
from .packets import SIZES, WAYS, Bed, Effort, dial, tell_pairs
from .wire import Stream

#: Packets a second of a core, from NIC to NIC.
TARGET = 300_000
#: MiB for frames that have been encrypted before.
_REEL = 128
#: Frames that tell how long one takes.
_WARM_UP = 5_000
#: Of frames down one of so many is decrypted; the next must come before the coherency count has gone half round.
_EVERY = 200
#: Small frames that are sent at once while it is counted what reaches Python.
_AT_ONCE = 250_000
#: The sequence number of GRE that frames of the client begin with: before them it has sent fewer.
_NUMBER = 1_000

_STRENGTH = STRENGTHS[128]
_IP = b"\x00\x21"
#: PPP's Protocol field, and a packet whose flags and coherency count are 0.
_PROTOCOL = b"\x00\xfd"
_NO_COUNT = bytes(OVERHEAD - len(_PROTOCOL))


class _Keys:
    """Where a session is in its rows of keys, as the kernel knows it."""

    def __init__(self, lab: Lab, session: Session, stack: contextlib.ExitStack) -> None:
        edition = editions(default_pins(str(lab.socket)))[-1]
        with contextlib.closing(edition.map("hosts4")) as hosts:
            found = hosts.get(layout.host4(0, int(IPv4Address(session.address))))
        assert found is not None
        self._slot = layout.REF.unpack(found)[0]
        self._map = edition.map("mppe")
        stack.callback(self._map.close)

    def read(self, way: int) -> dict[str, Any]:
        found = self._map.get(layout.U32.pack(2 * self._slot + way), LOCKED)
        if found is None:
            raise BenchError("the session is not encrypted")
        keys = layout.fields(layout.MPPE_KEYS, found)
        if keys["size"] != _STRENGTH.size or keys["salt"] != len(_STRENGTH.salt):
            raise BenchError("the session has keys of another length")
        return keys


class _Up:
    """Frames of the client: each is encrypted once, and in the order in which they are to be sent."""

    def __init__(self, lab: Lab, session: PptpSession, keys: _Keys) -> None:
        self._macs = lab.macs
        self._session = session
        place = keys.read(layout.UP)
        self._sender = Sender(_STRENGTH, place["start"], stateful=False)
        self._sender.key, self._sender.count = place["key"], place["count"]
        self._number = _NUMBER

    def stream(self, clear: Stream) -> Stream:
        """What becomes of a packet that is sent in the clear becomes of it here, too."""
        return replace(clear, sent=[bytes(len(clear.sent[0]) + OVERHEAD)], count_at=0)

    def frames(self, packet: bytes, count: int) -> Iterator[bytes]:
        """*packet* so often."""
        plain = _IP + packet
        begin = self._session.send(self._macs, 0, bytes(OVERHEAD + len(plain)))
        # Sequence number; Address, Control of PPP.
        at = len(begin) - OVERHEAD - len(plain) - 6
        head, middle = begin[:at], begin[at + 4 : at + 6]
        encrypt = self._sender.encrypt
        for number in range(self._number, self._number + count):
            yield head + number.to_bytes(4, "big") + middle + encrypt(plain)
        self._number += count


class _Down:
    """Frames for the client: by their headers they are compared in the kernel, and some in the clear here."""

    def __init__(self, lab: Lab, session: PptpSession, keys: _Keys) -> None:
        self._macs = lab.macs
        self._session = session
        self._keys = keys

    def stream(self, clear: Stream, packet: bytes) -> Stream:
        """For the frames that are sent from now on; *packet* is what they have in the clear."""
        expected = self._session.receive(self._macs, _PROTOCOL + _NO_COUNT + _IP + packet)
        at = len(expected) - len(packet) - len(_IP)
        loose = (*MPPE.loose, slice(at - len(_NO_COUNT), len(expected)))
        place = self._keys.read(layout.DOWN)
        receiver = Receiver(_STRENGTH, place["start"], stateful=False)
        receiver.place = Place(place["key"], place["count"])

        def inspect(frame: bytes) -> None:
            if receiver.decrypt(frame[at - len(_NO_COUNT) :]) != _IP + packet:
                raise BenchError("what comes out cannot be decrypted to what went in")

        return replace(clear, arriving=[expected], number_at=0, loose=loose, every=_EVERY, inspect=inspect)


class _Runs:
    """Of a session that is encrypted, and of one that is not, in turn."""

    def __init__(self, lab: Lab, bed: Bed, session: PptpSession, clear: Session, stack: contextlib.ExitStack) -> None:
        self._bed = bed
        self._session = session
        self._clear = clear
        keys = _Keys(lab, session, stack)
        self._up = _Up(lab, session, keys)
        self._down = _Down(lab, session, keys)

    def measure(self, way: str, size: int, effort: Effort) -> Iterator[Figure]:
        bed = self._bed
        _, clear = bed.frames.one(way, size, self._clear)
        bed.reached.count()
        runs = []
        for _ in range(effort.pairs):
            # How long that takes says how many there are to be.
            count = self._send(way, size, _WARM_UP) * effort.kernel_time
            ours = self._send(way, size, max(_WARM_UP, int(count)))
            bed.wire.load(clear)
            runs.append((ours, bed.wire.rate(clear, effort.kernel_time)))
        if bed.reached.count() > effort.pairs:
            raise bed.daemon.error("does not leave the packets to the kernel")
        name = "pipex.mppe." + "stack." * (bed.kind == "stack") + f"{way}.{size}"
        tell_pairs(name, [ours for ours, _ in runs])
        value, baseline = map(statistics.median, zip(*runs, strict=True))
        target = TARGET if bed.kind == "fast" else None
        unit = "packets/s of a core"
        yield Figure(name=name, value=value, unit=unit, target=target, better="higher", baseline=baseline)
        bits = size * 8e-9
        yield Figure(
            name=f"{name}.gbps", value=value * bits, unit="Gb/s of a core", better="higher", baseline=baseline * bits
        )

    def _send(self, way: str, size: int, count: int) -> float:
        """Up no more than there is room for; returns how many arrive in a second of the generator's core."""
        wire = self._bed.wire
        packet, clear = self._bed.frames.one(way, size, self._session)
        if way == "up":
            stream = self._up.stream(clear)
            wire.load(stream)
            return wire.play(stream, self._up.frames(packet, min(count, wire.room(len(stream.sent[0])))))
        stream = self._down.stream(clear, packet)
        wire.load(stream)
        return wire.repeat(stream, count)

    def count_reached(self, count: int) -> int:
        """Packets that reach Python while *count* are delivered each way."""
        self._bed.reached.count()
        for way in WAYS:
            for done in range(0, count, _AT_ONCE):
                self._send(way, SIZES[0], min(_AT_ONCE, count - done))
        return self._bed.reached.count()


def measure(effort: Effort, kinds: Sequence[str]) -> Iterator[Figure]:
    """*kinds* of ``fast`` and ``stack``."""
    check_untimed()
    for kind in kinds:
        with Lab(MPPE) as lab, contextlib.ExitStack() as stack:
            daemon = lab.npppyd(users=2, method="mschapv2", pipex="ebpf", forward=kind)
            (session,) = dial(lab, daemon, 1, "mschapv2")
            (clear,) = dial(lab, daemon, 1, "mschapv2", "--mppe", "no")
            assert isinstance(session, PptpSession)
            runs = _Runs(lab, Bed(lab, daemon, kind, stack, reel=_REEL), session, clear, stack)
            for way in WAYS:
                for size in SIZES:
                    yield from runs.measure(way, size, effort)
                    daemon.check()
            if kind == "fast":
                reached = runs.count_reached(effort.encrypted)
                yield Figure(name="pipex.mppe.python_packets", value=reached, unit="packets", target=0, better="lower")
