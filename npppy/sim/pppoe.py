"""PPPoE from the subscriber's side (RFC 2516): discovery, and the calls that come of it.  No I/O."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..config.model import Tunnel
from ..cursor import Malformed
from ..ppp.cause import Cause
from ..ppp.link import NOBODY, Caller, Link, Tap, Upper
from ..pppoe import codec
from ..pppoe.access import MAX_MRU
from ..pppoe.call import UNWANTED
from ..pppoe.codec import AccessLine, Code, Discovery, Tag
from ..text import printable
from ..wheel import Timed, Wheel
from .load import Owner

#: Seconds until the first PADI is repeated; the wait doubles each time (RFC 2516 section 8).
WAIT = 1.0
#: PADIs sent before a host gives up, and PADRs before it goes back to a PADI.
PADI_TRIES = 5
PADR_TRIES = 3

_SESSION_START = b"\x88\x64\x11\x00"
_ERRORS = {
    Tag.SERVICE_NAME_ERROR: "Service-Name-Error",
    Tag.AC_SYSTEM_ERROR: "AC-System-Error",
    Tag.GENERIC_ERROR: "Generic-Error",
}
_length = struct.Struct("!H").pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What all hosts of a segment ask for."""

    #: The PPP options of the subscribers.
    tunnel: Tunnel
    service_name: str = ""
    #: The one concentrator to take; "": the first that answers.
    ac_name: str = ""
    #: PPP-Max-Payload (RFC 4638); 0: not asked for.
    max_payload: int = 0


class Segment:
    """An Ethernet segment with hosts on it.  *transmit* sends a frame; it neither raises nor calls back."""

    def __init__(self, wishes: Wishes, transmit: Callable[[bytes], None], wheel: Wheel) -> None:
        self.wishes = wishes
        self.transmit = transmit
        self.wheel = wheel
        #: By MAC address and Host-Uniq.
        self.hosts: dict[bytes, Host] = {}
        #: By destination, source and SESSION_ID, as they stand in a frame for us.
        self.sessions: dict[bytes, Host] = {}
        #: Frames dropped, by reason: malformed, discovery (for none of our hosts), session (there is none).
        self.drops: Counter[str] = Counter()

    def host(self, mac: bytes, uniq: bytes | None, line: AccessLine, owner: Owner) -> Host:
        """A new host; no other may have the same MAC address and Host-Uniq.  *uniq* None: it sends no such tag."""
        host = self.hosts[mac + (uniq or b"")] = Host(self, mac, uniq, line, owner)
        return host

    def receive(self, frame: bytes, now: float) -> None:
        """A frame, without VLAN tags.  Whatever it holds, this does not raise."""
        if frame[12:16] == _SESSION_START and len(frame) >= 20:
            host = self.sessions.get(frame[:12] + frame[16:18])
            end = 20 + (frame[18] << 8 | frame[19])
            if host is None:
                self.drops["session"] += 1
            elif end > len(frame):
                self.drops["malformed"] += 1
            else:
                host.upper.receive(frame[20:end], now)
            return
        try:
            packet = codec.decode_discovery(frame)
        except Malformed:
            self.drops["malformed"] += 1
            return
        if packet.code == Code.PADT:
            host = self.sessions.get(frame[:12] + frame[16:18])
            if host is not None:
                host.lost(now)
                return
        elif packet.code in (Code.PADO, Code.PADS):
            host = self.hosts.get(packet.destination + (packet.first(Tag.HOST_UNIQ) or b""))
            if host is not None:
                host.receive(packet, now)
                return
        self.drops["discovery"] += 1


class Host(Timed):
    """One subscriber's PPPoE: first the discovery, then the call."""

    __slots__ = (
        "_ac",
        "_echoes",
        "_header",
        "_key",
        "_owner",
        "_padis",
        "_padrs",
        "_segment",
        "_tags",
        "_trouble",
        "_wait",
        "link",
        "mac",
        "upper",
    )

    link: Link

    def __init__(self, segment: Segment, mac: bytes, uniq: bytes | None, line: AccessLine, owner: Owner) -> None:
        super().__init__()
        self.upper: Upper = NOBODY
        self._segment = segment
        self.mac = mac
        self._owner = owner
        self._key = mac + (uniq or b"")
        # What every packet of ours carries behind the Service-Name.
        self._tags: list[tuple[Tag, bytes]] = [] if uniq is None else [(Tag.HOST_UNIQ, uniq)]
        if segment.wishes.max_payload:
            self._tags.append((Tag.PPP_MAX_PAYLOAD, segment.wishes.max_payload.to_bytes(2, "big")))
        if line != AccessLine():
            self._tags.append((Tag.VENDOR_SPECIFIC, codec.encode_access_line(line)))
        # The concentrator that was chosen, and what of its PADO the PADR repeats.
        self._ac = b""
        self._echoes: list[tuple[Tag, bytes]] = []
        # How many may still be sent.
        self._padis = PADI_TRIES
        self._padrs = 0
        self._wait = WAIT
        # The latest error that we were told of.
        self._trouble = ""
        # All of a session frame before LENGTH; empty before there is a session.
        self._header = b""

    @property
    def session_id(self) -> int:
        """0: there is no session."""
        return int.from_bytes(self._header[16:18], "big")

    # Discovery.

    def dial(self, now: float) -> None:
        """Send the first PADI."""
        self._padi(now)

    def expire(self, now: float) -> None:
        if self._ac and self._padrs:
            self._padr(now)
            return
        if self._ac:
            # RFC 2516 section 8: this concentrator does not answer any more; perhaps another one does.
            self._ac = b""
            self._trouble = "no PADS"
            self._wait = WAIT
        if self._padis:
            self._padi(now)
        else:
            self._fail(self._trouble or "no PADO", now)

    def _padi(self, now: float) -> None:
        self._padis -= 1
        self._send(codec.BROADCAST, Code.PADI, [], now)

    def _padr(self, now: float) -> None:
        self._padrs -= 1
        self._send(self._ac, Code.PADR, self._echoes, now)

    def _send(self, destination: bytes, code: Code, echoes: list[tuple[Tag, bytes]], now: float) -> None:
        self._segment.wheel.arm(self, now + self._wait)
        self._wait *= 2
        name = self._segment.wishes.service_name.encode()
        payload = codec.encode_tags([(Tag.SERVICE_NAME, name), *self._tags, *echoes])
        self._segment.transmit(codec.discovery_frame(destination, self.mac, code, 0, payload))

    def receive(self, packet: Discovery, now: float) -> None:
        """A PADO or a PADS for this host."""
        if packet.code == Code.PADO:
            if not self._ac and not self._header:
                self._pado(packet, now)
        elif packet.source == self._ac and not self._header:
            self._pads(packet, now)

    def _pado(self, packet: Discovery, now: float) -> None:
        wishes = self._segment.wishes
        error = _error(packet)
        if error:
            self._trouble = error
            return
        if wishes.ac_name and packet.first(Tag.AC_NAME) != wishes.ac_name.encode():
            self._trouble = self._trouble or "no PADO of the concentrator asked for"
            return
        if wishes.service_name.encode() not in packet.all(Tag.SERVICE_NAME):
            self._trouble = self._trouble or "no PADO with the service asked for"
            return
        self._ac = packet.source
        self._echoes = [
            (tag, value)
            for tag in (Tag.AC_COOKIE, Tag.RELAY_SESSION_ID)
            if (value := packet.first(tag)) is not None
        ]
        self._padrs = PADR_TRIES
        self._wait = WAIT
        self._padr(now)

    def _pads(self, packet: Discovery, now: float) -> None:
        error = _error(packet)
        if error or not packet.session_id:
            self._fail(error or "PADS without a session", now)
            return
        segment = self._segment
        segment.wheel.disarm(self)
        # RFC 4638 section 5.2: without the tag in the PADS, the concentrator does not know it.
        granted = codec.max_payload(packet.first(Tag.PPP_MAX_PAYLOAD))
        self.link = Link(
            tunnel=segment.wishes.tunnel,
            caller=Caller(text=packet.source.hex(":"), mac=packet.source, service=segment.wishes.service_name),
            max_mru=max(MAX_MRU, min(granted, segment.wishes.max_payload)),
            unwanted=UNWANTED,
        )
        self._header = codec.session_header(packet.source, self.mac, packet.session_id)
        segment.sessions[self._session_key] = self
        self.upper = self._owner.connected(self, now)

    def _fail(self, reason: str, now: float) -> None:
        self.forget()
        self._owner.failed(reason, now)

    # The call.

    def facts(self) -> dict[str, object]:
        return {"mac": self.mac.hex(":"), "session_id": self.session_id, "concentrator": self.link.caller.text}

    @property
    def _session_key(self) -> bytes:
        header = self._header
        return header[6:12] + header[:6] + header[16:18]

    def send(self, frame: bytes) -> None:
        self._segment.transmit(b"".join((self._header, _length(len(frame)), frame)))

    __call__ = send

    def close(self, cause: Cause) -> None:
        self._segment.transmit(codec.discovery_frame(self._ac, self.mac, Code.PADT, self.session_id, b""))
        self.forget()

    def ending(self) -> None:
        """Nothing is counted here."""

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        """RFC 2516 section 7 forbids what the options are about."""

    def rest(self) -> None:
        """It is kept as it is."""

    def tap(self, tap: Tap | None) -> None:
        """Subscribers are watched on the wire."""

    def lost(self, now: float) -> None:
        """A PADT has come."""
        upper = self.upper
        self.forget()
        upper.gone(Cause.LOST_CARRIER, "PADT received", now)

    def forget(self) -> None:
        """Leave the segment without a word, whatever there was: discovery, a session, or nothing any more."""
        segment = self._segment
        segment.wheel.disarm(self)
        segment.hosts.pop(self._key, None)
        if self._header:
            segment.sessions.pop(self._session_key, None)
        self.upper = NOBODY

    # It has nothing else that could fall silent.
    vanish = forget


def _error(packet: Discovery) -> str:
    for tag, name in _ERRORS.items():
        text = packet.first(tag)
        if text is not None:
            return f"{name}: {printable(text)}"
    return ""
