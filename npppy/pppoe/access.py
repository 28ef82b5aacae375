"""An access port: discovery (RFC 2516 section 5) and the sessions that came of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..config import model
from ..cursor import Malformed
from ..ids import FORBIDDEN, SessionIds
from ..port import Port
from ..ppp.cause import Cause
from ..ppp.link import IN, OUT, Call, Tap, Upper
from ..wheel import Timed, Wheel
from . import codec
from .call import PppoeCall, Request, Transmit
from .codec import Code, Discovery, Tag
from .cookie import CookieJar
from .service import Bucket, Service

log = logging.getLogger("npppy.pppoe")

#: The largest MRU without RFC 4638 (RFC 2516 section 7).
MAX_MRU = 1492
#: Octets of PPPoE and PPP headers in an Ethernet payload.
OVERHEAD = 8

#: PADOs that wait for their time, a port.
MAX_OFFERS = 1000
#: PADTs a second and port for frames of sessions that there are not.
ORPHAN_RATE = 100

_KIND = model.Protocol.PPPOE
#: What stands between the addresses and SESSION_ID in a frame of a session.
_SESSION_START = b"\x88\x64\x11\x00"
_LCP = b"\xc0\x21"
_PAP = b"\xc0\x23"
#: What a dump shows of a frame of PAP: all but names and passwords.
_PAP_SHOWN = 26
_NO_MAC = bytes(6)


class Journal(Protocol):
    """What must be told of a session so that it does not outlive us: :class:`npppy.journal.Journal`."""

    def add(self, kind: model.Protocol, interface: str, frame: bytes) -> int: ...

    def remove(self, slot: int) -> None: ...


@dataclass(frozen=True, slots=True)
class World:
    """What the ports of an engine share."""

    #: Opens a PPP session on a call; None: refused.
    open_session: Callable[[Call, float], Upper | None]
    rng: Callable[[int], bytes]
    wheel: Wheel
    journal: Journal
    cookies: CookieJar


class Offer(Timed):
    """A PADO that waits for its time."""

    __slots__ = ("_frame", "_port")

    def __init__(self, port: AccessPort, frame: bytes) -> None:
        super().__init__()
        self._port = port
        self._frame = frame

    def expire(self, now: float) -> None:
        del self._port.offers[self]
        self._port.send_discovery(self._frame)


class AccessPort:
    """A port that is up.  *transmit* sends a frame without VLAN tags; it neither raises nor calls back."""

    __slots__ = (
        "_by_name",
        "_cookie_name",
        "_dump_in",
        "_dump_out",
        "_ids",
        "_offered",
        "_orphans",
        "_services",
        "_world",
        "calls",
        "drops",
        "mac",
        "mtu",
        "nas",
        "offers",
        "port",
        "requests",
        "taps",
        "transmit",
    )

    def __init__(self, world: World, port: Port, mac: bytes, mtu: int, transmit: Transmit, drops: Counter[str]) -> None:
        self.port = port
        self.mac = mac
        self.mtu = mtu
        self.transmit = transmit
        #: Packets dropped and requests refused, by reason: source, destination (wrong addresses), malformed, size (no
        #: room for an answer), code (nothing for a server), session (there is none), service, padi-limit, pado-delay,
        #: cookie, error-tag, session-limit, session-ids (none left), refused (by PPP), busy (PADI that nobody had
        #: time for).
        self.drops = drops
        #: Sessions by what stands before LENGTH in a frame of theirs: our MAC address, the peer's, type, SESSION_ID.
        self.calls: dict[bytes, PppoeCall] = {}
        #: The PADS of sessions that LCP has not been heard of on.
        self.requests: dict[Request, bytes] = {}
        self.offers: dict[Offer, None] = {}
        #: Who looks on at sessions, by the same key; most of the time nobody.
        self.taps: dict[bytes, Tap] = {}
        self._world = world
        self._ids = SessionIds(world.rng)
        self._orphans = Bucket(ORPHAN_RATE)
        self._cookie_name = repr(port).encode()
        #: The MAC address as text: kept, since all sessions of the port have it.
        self.nas = mac.hex(":")
        self._services: dict[str, Service] = {}
        self._by_name: dict[bytes, tuple[Service, str]] = {}
        self._offered: list[bytes] = []
        self._dump_in = self._dump_out = False

    def configure(self, tunnels: Sequence[tuple[model.Tunnel, model.PppoeOptions]], now: float) -> None:
        """Offer these tunnels from now on; sessions of others end."""
        old = self._services
        self._services = services = {}
        for tunnel, options in tunnels:
            service = old.pop(tunnel.name, None)
            if service is None:
                service = Service(tunnel, options, self.mac)
            else:
                service.configure(tunnel, options, self.mac)
                service.recount(call.mac for call in self.calls.values() if call.service is service and call.counted)
            services[tunnel.name] = service
        by_name: dict[bytes, tuple[Service, str]] = {}
        self._by_name = by_name
        for service in services.values():
            for name in service.names:
                by_name.setdefault(name.encode(), (service, name))
        self._offered = [codec.encode_tags(((Tag.SERVICE_NAME, name),)) for name in by_name if name]
        # Behind the names, so that a tunnel that serves the empty name itself comes before one that takes any.
        for service in services.values():
            if service.options.accept_any_service:
                by_name.setdefault(b"", (service, ""))
        self._dump_in = any(service.options.desc_in_pktdump for service in services.values())
        self._dump_out = any(service.options.desc_out_pktdump for service in services.values())
        removed = set(old.values())
        if removed:
            calls = [call for call in self.calls.values() if call.service in removed]
            self._end(calls, Cause.ADMIN_RESET, "tunnel no longer offered", now, padt=True)

    def set_mtu(self, mtu: int, now: float) -> None:
        """The interface has another MTU, in octets of Ethernet payload.  A session is told when it became too small."""
        self.mtu = mtu
        for call in list(self.calls.values()):
            call.restrict(mtu - OVERHEAD, now)

    def close(self, cause: Cause, reason: str, now: float, *, padt: bool) -> None:
        """The port goes down, and all its sessions with it."""
        for offer in self.offers:
            self._world.wheel.disarm(offer)
        self.offers.clear()
        self._end(list(self.calls.values()), cause, reason, now, padt=padt)

    def _end(self, calls: list[PppoeCall], cause: Cause, reason: str, now: float, *, padt: bool) -> None:
        for call in calls:
            # The end of one may have been the end of another.
            if self.calls.get(call.key) is call:
                call.end(cause, reason, now, padt=padt)

    def remove(self, call: PppoeCall) -> None:
        """Forget a call and all that belongs to it."""
        del self.calls[call.key]
        if call.request is not None:
            del self.requests[call.request]
        self._ids.release(call.session_id)
        call.discount()
        self._world.journal.remove(call.slot)
        tap = self.taps.pop(call.key, None)
        if tap is not None:
            tap.gone()

    # Frames in.

    def receive(self, frame: bytes, now: float) -> None:
        """An Ethernet frame from the port, without VLAN tags.  Whatever it holds, this does not raise."""
        call = self.calls.get(frame[:18])
        if call is not None and len(frame) >= 20:
            if self.taps:
                self.tapped(IN, call.key, frame)
            # What lies behind LENGTH is padding.
            end = 20 + (frame[18] << 8 | frame[19])
            if end <= len(frame):
                if call.request is not None and frame[20:22] == _LCP:
                    # The peer has its PADS: from now on its PADR would be that of a host that started anew.
                    del self.requests[call.request]
                    call.request = None
                if call.service.dump_in:
                    self.dump("RecvSession", frame)
                call.upper.receive(frame[20:end], now)
                return
        try:
            self._receive_other(frame, now)
        except Malformed as error:
            self.drops["malformed"] += 1
            log.debug("pppoe port=%s Malformed reason=%s", self.port, error)

    def _receive_other(self, frame: bytes, now: float) -> None:
        """All but the frames of known sessions."""
        source = frame[6:12]
        if len(frame) < codec.ETHERNET_LEN + codec.PPPOE_LEN:
            raise Malformed("short")
        if source[0] & 1 or source in (_NO_MAC, self.mac):
            self.drops["source"] += 1
        elif int.from_bytes(frame[12:14], "big") == codec.SESSION:
            self._stray(codec.decode_session(frame), now)
        else:
            if self._dump_in:
                self.dump("RecvDiscovery", frame)
            if self.taps:
                # A PADT.
                self.tapped(IN, self._key(source, frame[16:18]), frame)
            self._discovery(codec.decode_discovery(frame), now)

    def _stray(self, session: codec.Session, now: float) -> None:
        """A session frame that belongs to no session: its peer believes in one that an earlier process had."""
        if session.destination != self.mac:
            self.drops["destination"] += 1
            return
        self.drops["session"] += 1
        if session.session_id not in FORBIDDEN and self._orphans.take(now):
            self.send_discovery(codec.discovery_frame(session.source, self.mac, Code.PADT, session.session_id, b""))

    def _discovery(self, packet: Discovery, now: float) -> None:
        code = packet.code
        if packet.destination != self.mac and (code != Code.PADI or packet.destination != codec.BROADCAST):
            self.drops["destination"] += 1
        elif code == Code.PADI:
            self._padi(packet, now)
        elif code == Code.PADR:
            self._padr(packet, now)
        elif code == Code.PADT:
            self._padt(packet, now)
        else:
            self.drops["code"] += 1

    def _padi(self, packet: Discovery, now: float) -> None:
        """RFC 2516 sections 5.1 and 5.2."""
        names = packet.all(Tag.SERVICE_NAME)
        if packet.session_id != 0 or len(names) != 1:
            raise Malformed("PADI")
        found = self._by_name.get(names[0])
        if found is None:
            self.drops["service"] += 1
            return
        service, _ = found
        delay = service.pado_delay()
        if delay is None or (delay and len(self.offers) >= MAX_OFFERS):
            self.drops["pado-delay"] += 1
            return
        if not service.may_answer(now):
            self.drops["padi-limit"] += 1
            return
        cookie = self._world.cookies.make(packet.source, self._cookie_name, now)
        tags = [(Tag.SERVICE_NAME, names[0]), (Tag.AC_NAME, service.ac_name), (Tag.AC_COOKIE, cookie)]
        tags += self._echoes(packet, self._max_mru(service.tunnel, packet))
        payload = codec.encode_tags(tags)
        room = self._room - len(payload)
        if room < 0:
            self.drops["size"] += 1
            return
        # The other services, as many as there is room for.
        asked = codec.encode_tags(tags[:1])
        for name in self._offered:
            if len(name) <= room and name != asked:
                payload += name
                room -= len(name)
        pado = codec.discovery_frame(packet.source, self.mac, Code.PADO, 0, payload)
        if delay:
            offer = Offer(self, pado)
            self.offers[offer] = None
            self._world.wheel.arm(offer, now + delay / 1000)
        else:
            self.send_discovery(pado)

    def _padr(self, packet: Discovery, now: float) -> None:
        """RFC 2516 sections 5.3 and 5.4.  Before the cookie has been found good, nothing is sent or kept."""
        if packet.session_id != 0:
            raise Malformed("PADR")
        mac = packet.source
        cookie = packet.first(Tag.AC_COOKIE)
        if cookie is None or not self._world.cookies.valid(cookie, mac, self._cookie_name, now):
            self.drops["cookie"] += 1
            return
        if packet.first(Tag.GENERIC_ERROR) is not None:
            # The host itself says that it cannot go on.
            self.drops["error-tag"] += 1
            return
        request = (mac, cookie, packet.first(Tag.HOST_UNIQ), packet.first(Tag.RELAY_SESSION_ID))
        pads = self.requests.get(request)
        if pads is not None:
            # Ours was lost, or is under way.
            self.send_discovery(pads)
            return
        names = packet.all(Tag.SERVICE_NAME)
        if len(names) != 1:
            self._refuse(packet, Tag.GENERIC_ERROR, "one Service-Name is required", "malformed")
            return
        found = self._by_name.get(names[0])
        if found is None:
            self._refuse(packet, Tag.SERVICE_NAME_ERROR, "service not offered", "service")
            return
        service, name = found
        if service.is_full_for(mac):
            self._refuse(packet, Tag.AC_SYSTEM_ERROR, "too many sessions of this host", "session-limit")
            return
        self._open(packet, request, service, name, now)

    def _open(self, packet: Discovery, request: Request, service: Service, name: str, now: float) -> None:
        """Begin the session that a PADR asks for, in the service *name*."""
        # First all that can fail before anything is taken.
        line = codec.access_line(packet.all(Tag.VENDOR_SPECIFIC))
        max_mru = self._max_mru(service.tunnel, packet)
        payload = codec.encode_tags([(Tag.SERVICE_NAME, name.encode()), *self._echoes(packet, max_mru)])
        if len(payload) > self._room:
            self.drops["size"] += 1
            return
        session_id = self._ids.take()
        if session_id == 0:
            self._refuse(packet, Tag.AC_SYSTEM_ERROR, "no session left", "session-ids")
            return
        pads = codec.discovery_frame(packet.source, self.mac, Code.PADS, session_id, payload)
        # PPP may send at once, but nothing may be seen before the PADS.
        held: list[bytes] = []
        call = PppoeCall(self, service, service.terms(name, max_mru), line, request, session_id, held.append)
        self.calls[call.key] = call
        self.requests[request] = pads
        upper = self._world.open_session(call, now)
        taken = self.calls.get(call.key) is call
        if upper is None or not taken:
            if taken:
                call.forget()
            self._refuse(packet, Tag.AC_SYSTEM_ERROR, "no session possible now", "refused")
            return
        call.opened(upper, self.transmit, self._world.journal.add(_KIND, self.port.interface, call.padt()))
        log.debug("%s Opened tunnel=%s", call, service.tunnel.name)
        self.send_discovery(pads)
        for frame in held:
            self.transmit(frame)

    def _padt(self, packet: Discovery, now: float) -> None:
        """RFC 2516 section 5.5."""
        call = self.calls.get(self._key(packet.source, packet.session_id.to_bytes(2, "big")))
        if call is None:
            self.drops["session"] += 1
        else:
            call.end(Cause.USER_REQUEST, "PADT received", now, padt=False)

    def _key(self, mac: bytes, session_id: bytes) -> bytes:
        """See :attr:`calls`."""
        return self.mac + mac + _SESSION_START + session_id

    # Frames out.

    @property
    def _room(self) -> int:
        """Octets for the tags of a packet of ours."""
        return min(codec.MAX_PAYLOAD, self.mtu) - codec.PPPOE_LEN

    def _max_mru(self, tunnel: model.Tunnel, packet: Discovery) -> int:
        """The largest MRU for the sender: more than 1492 only if it, the configuration and the interface agree."""
        asked = codec.max_payload(packet.first(Tag.PPP_MAX_PAYLOAD))
        ceiling = min(self.mtu - OVERHEAD, tunnel.mru)
        if asked > MAX_MRU and ceiling > MAX_MRU:
            return min(asked, ceiling)
        return min(MAX_MRU, self.mtu - OVERHEAD)

    @staticmethod
    def _echoes(packet: Discovery, max_mru: int) -> list[tuple[Tag, bytes]]:
        """The tags of a request that its answer repeats; PPP-Max-Payload with what we agree to (RFC 4638)."""
        tags = []
        for tag in (Tag.HOST_UNIQ, Tag.RELAY_SESSION_ID):
            value = packet.first(tag)
            if value is not None:
                tags.append((tag, value))
        if max_mru > MAX_MRU:
            tags.append((Tag.PPP_MAX_PAYLOAD, max_mru.to_bytes(2, "big")))
        return tags

    def _refuse(self, packet: Discovery, error: Tag, text: str, reason: str) -> None:
        """Answer a PADR whose cookie was good with a PADS that gives no session."""
        self.drops[reason] += 1
        log.debug("pppoe port=%s mac=%s Refused reason=%s", self.port, packet.source.hex(":"), reason)
        tags = [(Tag.SERVICE_NAME, name) for name in packet.all(Tag.SERVICE_NAME)[:1]]
        payload = codec.encode_tags([*tags, (error, text.encode()), *self._echoes(packet, 0)])
        if len(payload) <= self._room:
            self.send_discovery(codec.discovery_frame(packet.source, self.mac, Code.PADS, 0, payload))
        else:
            self.drops["size"] += 1

    def send_discovery(self, frame: bytes) -> None:
        """Send a discovery frame."""
        if self._dump_out:
            self.dump("SendDiscovery", frame)
        if self.taps:
            # A PADS, if it was lost, or a PADT; other packets tell no session.
            self.tapped(OUT, self._key(frame[:6], frame[16:18]), frame)
        self.transmit(frame)

    def tapped(self, way: int, key: bytes, frame: bytes) -> None:
        """Show a frame of the session *key*, if there is one, to whoever looks on at it."""
        tap = self.taps.get(key)
        if tap is not None:
            tap.frame(way, frame)

    def dump(self, what: str, frame: bytes) -> None:
        """``pktdump``: the whole frame in hexadecimal, but for passwords."""
        shown = frame[:_PAP_SHOWN] if frame[12:14] == b"\x88\x64" and frame[20:22] == _PAP else frame
        log.debug("pppoe port=%s %s len=%d\n%s", self.port, what, len(frame), shown.hex(" "))
