"""Sessions whose data may be encrypted: with a subscriber on a watched link, and with a peer written by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from npppy.config.model import AuthMethod
from npppy.config.model import Mppe as Choice
from npppy.pipex.base import FlowSpec
from npppy.pipex.null import NullBackend, NullFlow
from npppy.ppp import mschap, options, proto
from npppy.ppp.mppe import Mode, Mppe, keys_from_mschap
from npppy.ppp.station import Phase

from .ppp_pair import Pair
from .ppp_rig import USERS, Rig
from .test_ppp_mppe import packet, packet6

PAP, CHAP, MSCHAPV2 = AuthMethod.PAP, AuthMethod.CHAP, AuthMethod.MSCHAPV2
NO, YES, REQUIRED = Choice.NO, Choice.YES, Choice.REQUIRED
CLEAR = (b"\x00\x21", b"\x00\x57")
BEST = Mode(128, stateful=False)
STATEFUL = Mode(128, stateful=True)
#: The option that asks for the best.
MPPE = b"\x12\x06\x01\0\0\x40"


class Kept(NullFlow):
    """Keeps what comes."""

    __slots__ = ("packets",)
    packets: list[bytes]

    def input(self, packet: bytes, now: float) -> None:
        self.packets.append(packet)
        super().input(packet, now)

    input6 = input


class Recorder(NullBackend):
    def __init__(self) -> None:
        super().__init__()
        self.specs: list[FlowSpec] = []
        #: What has come from peers.
        self.packets: list[bytes] = []

    def add(self, spec: FlowSpec, now: float) -> Kept:
        flow = Kept(spec, self._table, now)
        flow.packets = self.packets
        self._table.add(spec.address, spec.networks4(), flow, spec.networks6)
        self.specs.append(spec)
        return flow


def recorded(rig: Rig) -> Recorder:
    recorder = rig.backend = rig.site.backend = Recorder()  # type: ignore[assignment]
    return recorder


def is_clear(frame: bytes) -> bool:
    return frame[:2] in CLEAR or frame[:1] in (b"\x21", b"\x57")


class Duo(Pair):
    """A session and a subscriber that log in by MS-CHAPv2, and all that crosses the wire between them."""

    def __init__(self, ours: Choice = YES, theirs: Choice = YES, **more: Any) -> None:
        methods = more.pop("demand", (MSCHAPV2,))
        super().__init__(
            demand=methods,
            rig={"mppe": ours} | more.pop("near", {}),
            theirs={"mppe": theirs} | more.pop("far", {}),
            **more,
        )
        self.recorder = recorded(self.rig)
        self.numbers = count(1)

    def malformed(self, reason: str) -> None:
        """Of what the subscriber gets, these are the link's doing."""
        assert reason in ("undecryptable", "encrypted-too-early", "clear-text"), reason

    def drop(self, wanted: Callable[[bytes], bool], *ends: Any) -> None:
        """Lose the frames to an end for which *wanted* holds."""
        for end in ends:
            receive = end.receive

            def filtered(frame: bytes, receive: Callable[[bytes], None] = receive) -> None:
                if not wanted(frame):
                    receive(frame)

            end.receive = filtered

    def clear(self, way: Any) -> list[bytes]:
        return [frame for frame in way.sent if is_clear(frame)]

    def down(self) -> bytes:
        """A packet to the subscriber, as the data path would send it."""
        frame = packet(next(self.numbers))
        self.recorder.specs[-1].send(frame)
        return frame[2:]

    def up_again(self) -> bytes:
        frame = packet(next(self.numbers))
        self.subscriber.send_ip(frame[2:])
        return frame[2:]

    def check_data(self) -> None:
        flow = self.subscriber.flow
        sent, got = self.up_again(), self.down()
        assert self.run(5, until=lambda: self.channel.idle)
        assert self.recorder.packets[-1] == sent
        assert flow.packets[-1] == got  # type: ignore[union-attr]


class Hand:
    """A line, and the peer's keys."""

    def __init__(self, ours: Choice = YES, methods: tuple[AuthMethod, ...] = (MSCHAPV2,), **tunnel: Any) -> None:
        self.rig = Rig(mppe=ours, authentication_methods=methods, **tunnel)
        self.recorder = recorded(self.rig)
        self.line = self.rig.line()
        self.session = self.line.session
        self.mppe: Mppe | None = None

    def log_in(self) -> None:
        line = self.line
        line.open_lcp()
        identifier, data = line.find(proto.CHAP, 1)
        response = mschap.nt_response(data[1:17], bytes(16), b"alice", USERS["alice"])
        self.keys = keys_from_mschap(mschap.nt_password_hash(USERS["alice"]), response, server=False)
        line.give(proto.CHAP, 2, identifier, b"\x31" + bytes(24) + response + b"\0alice")
        assert line.take(proto.CHAP)[-1][0] == 3

    def ccp(self, send: Mode = BEST, receive: Mode = BEST) -> None:
        """Open it; the modes are the peer's."""
        line = self.line
        asked = options.encode([(18, _bits(receive))])
        for identifier in (1, 2, 3):
            line.give(proto.CCP, 1, identifier, asked)
        packets = line.take(proto.CCP)
        assert packets[-1][0] == proto.CONFIGURE_ACK
        request = [found for found in packets if found[0] == proto.CONFIGURE_REQUEST][-1]
        wanted = options.encode([(18, _bits(send))])
        if request[4:] != wanted:
            line.give(proto.CCP, 3, request[1], wanted)
            request = next(found for found in line.take(proto.CCP) if found[0] == proto.CONFIGURE_REQUEST)
        line.give(proto.CCP, 2, request[1], request[4:])
        self.mppe = Mppe.begin(self.keys, send, receive)

    def up(self, send: Mode = BEST, receive: Mode = BEST) -> Hand:
        self.log_in()
        self.line.open_ipcp()
        self.ccp(send, receive)
        assert self.session.phase is Phase.UP
        self.line.take()
        return self

    def give(self, frame: bytes) -> None:
        """A packet, encrypted."""
        assert self.mppe is not None
        self.line.give_raw(self.mppe.send.encrypt(frame))

    def take(self) -> list[bytes]:
        """The packets that were sent encrypted, decrypted."""
        assert self.mppe is not None
        found = []
        for payload in self.line.take(proto.COMPRESSED):
            plain = self.mppe.receive.decrypt(payload)
            assert plain is not None
            found.append(plain)
        return found

    def nothing_clear(self) -> None:
        """Nothing passes now, whichever way."""
        before = len(self.recorder.packets)
        for frame in (packet(9), packet(9)[1:], packet6(9), packet6(9)[1:]):
            self.line.give_raw(frame)
        assert len(self.recorder.packets) == before
        for spec in self.recorder.specs:
            spec.send(packet(8))
        assert not any(protocol in (proto.IP, proto.IPV6) for protocol, _ in self.line.sent)


def _bits(mode: Mode) -> bytes:
    return bytes((not mode.stateful, 0, 0, {128: 0x40, 56: 0x80, 40: 0x20}[mode.bits]))
