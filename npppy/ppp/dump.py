"""npppd's ``debug-dump-pktin`` and ``debug-dump-pktout``: packets of a session in the log, by protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..config.model import Tunnel
from ..pipex.base import Flow
from . import proto
from .station import Station

#: The types of EAP that have a password in them: One-Time Password and Generic Token Card, and what may stand for them
#: (RFC 3748 sections 5.5 to 5.7).
_PASSWORD_TYPES = (b"\x05", b"\x06", b"\xfe")


class Dumped(Station):
    """A station whose packets are logged as its tunnel says."""

    __slots__ = ("tunnel",)

    #: Its options.
    tunnel: Tunnel

    def send(self, protocol: int, payload: bytes) -> None:
        if self.tunnel.dump_out:
            self._dump("output", self.tunnel.dump_out, protocol, payload)
        super().send(protocol, payload)

    def receive(self, frame: bytes, now: float) -> None:
        if self.tunnel.dump_in and len(frame) > 1:
            # An odd first octet is the whole Protocol field, compressed.
            size = 2 - (frame[0] & 1)
            self._dump("input", self.tunnel.dump_in, int.from_bytes(frame[:size], "big"), frame[size:])
        super().receive(frame, now)

    def decrypted(self, frame: bytes, flow: Flow, now: float) -> None:
        if self.tunnel.dump_in:
            self._dump("input", self.tunnel.dump_in, frame[1], frame[2:])
        super().decrypted(frame, flow, now)

    def sender(self) -> Callable[[bytes], None]:
        """What sends data."""
        send: Callable[[bytes], None] = self.call if self.mppe is None else self.send_encrypted
        if "ip" not in self.tunnel.dump_out:
            return send

        def dump(frame: bytes) -> None:
            self._dump("output", self.tunnel.dump_out, proto.IP, frame[2:])
            send(frame)

        return dump

    def _dump(self, way: str, wanted: frozenset[str], protocol: int, payload: bytes) -> None:
        name = proto.NAMES.get(protocol, "")
        if name in wanted or (protocol == proto.CCP and "mppe" in wanted):
            secret = protocol == proto.PAP or (protocol == proto.EAP and payload[4:5] in _PASSWORD_TYPES)
            shown = "(contents withheld)" if secret else payload.hex(" ", 2)
            self.log(logging.INFO, f"layer=base logtype=PktDump {way} proto={name} {len(payload)} octets: {shown}")
