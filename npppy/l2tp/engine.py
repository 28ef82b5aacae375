"""All tunnels of all L2TP tunnel blocks.  No I/O: a shell feeds it datagrams and sends for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ..admission import Admission, Queue
from ..config import model
from ..config.model import L2tpOptions, Rebind
from ..cursor import Malformed
from ..ids import SessionIds
from ..pipex.icmp import RateLimit
from ..ppp.cause import Cause
from ..ppp.link import Call, Tap, Upper
from ..wheel import TICK, Wheel
from . import causes, codec
from .call import LnsCall
from .codec import Attr, Control, Message, Type
from .frame import ethernet
from .orphans import Ghosts, record
from .service import Endpoint, Service, Transmit
from .tunnel import CYCLE, State, Tunnel

log = logging.getLogger("npppy.l2tp")

#: Log lines a second, and at once, about what peers do that have shown no secret.
STRANGERS = (100, 1000)
#: Calls that are not connected yet: what a peer that asks and asks may make us keep.
MAX_WAITING = 8192

_KIND = model.Protocol.L2TP


class Journal(Protocol):
    """Where tunnels are recorded that a killed daemon's successor is to end."""

    def add(self, kind: model.Protocol, interface: str, frame: bytes) -> int: ...

    def remove(self, slot: int) -> None: ...


class Engine:
    """The tunnels.  As an LNS it takes calls; by :meth:`dial` it asks for tunnels, too.

    *admission* says when a call may begin; None: at any time.  Until then its ICRQ waits for its answer, acknowledged:
    what has begun comes by the same window.
    """

    def __init__(
        self,
        tunnels: Sequence[model.Tunnel],
        open_session: Callable[[Call, float], Upper | None],
        rng: Callable[[int], bytes],
        wheel: Wheel,
        journal: Journal,
        hostname: str,
        ghosts: Ghosts | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.open_session = open_session
        self.rng = rng
        self.wheel = wheel
        self.hostname = hostname
        self._journal = journal
        self._ghosts = ghosts
        #: By name of their block.
        self.services: dict[str, Service] = {}
        #: By our tunnel id.
        self.tunnels: dict[int, Tunnel] = {}
        # By the peer's endpoint and its tunnel id: those that are set up by the peer, and those that are established.
        self._half_open: dict[tuple[Endpoint, int], Tunnel] = {}
        self._established: dict[tuple[Endpoint, int], Tunnel] = {}
        # Those that we ask for and that are not there yet, by endpoint.
        self._dialled: dict[Endpoint, list[Tunnel]] = {}
        #: Who looks on at calls.
        self.taps: dict[Call, Tap] = {}
        #: Calls that are not connected yet, the oldest first.
        self.waiting: dict[LnsCall, None] = {}
        #: Calls that may not begin yet.
        self.asking = Queue(admission, self._begin) if admission is not None else None
        self.strangers = RateLimit(*STRANGERS)
        # Answers to requests of which nothing is kept.
        self._refusals = RateLimit(*STRANGERS)
        self._ids = SessionIds(rng)
        self._owing: dict[Tunnel, None] = {}
        self._closing = False
        self.configure(tunnels)

    def configure(self, tunnels: Sequence[model.Tunnel]) -> None:
        """Take over tunnel blocks; those that are gone are for :meth:`drop_service`."""
        for tunnel in tunnels:
            if isinstance(tunnel.carrier, L2tpOptions):
                service = self.services.get(tunnel.name)
                if service is None:
                    self.services[tunnel.name] = Service(tunnel, tunnel.carrier)
                else:
                    service.configure(tunnel, tunnel.carrier)

    @property
    def now(self) -> float:
        """The time, as far as the wheel has come."""
        return self.wheel.tick * TICK

    # Datagrams.

    def receive(self, service: Service, endpoint: Endpoint, datagram: bytes, transmit: Transmit, now: float) -> None:
        """A datagram for *service*.  Whatever it holds, this does not raise; *transmit* answers.

        To be followed by :meth:`flush`, after several of them.
        """
        try:
            if datagram[:1] >= b"\x80":
                if service.options.ctrl_in_pktdump:
                    log.debug("l2tp peer=%s RecvCtrl len=%d\n%s", endpoint, len(datagram), codec.shown(datagram))
                self._control(service, endpoint, codec.decode_control(datagram), transmit, now)
            else:
                self._data(service, endpoint, datagram, now)
        except Malformed as error:
            service.drops["malformed"] += 1
            log.debug("l2tp peer=%s Malformed reason=%s", endpoint, error)

    def flush(self, now: float) -> None:
        """Acknowledge what no message has acknowledged."""
        if self._owing:
            owing, self._owing = self._owing, {}
            for tunnel in owing:
                tunnel.channel.flush(now)

    def decrypted(self, service: Service, endpoint: Endpoint, datagram: bytes, now: float) -> None:
        """A data message that the kernel has found to have come by its tunnel's security association.

        Whatever it holds, this does not raise.  The endpoint has no mark.
        """
        try:
            self._data(service, endpoint, datagram, now, True)
        except Malformed:
            service.drops["malformed"] += 1

    def _data(
        self, service: Service, endpoint: Endpoint, datagram: bytes, now: float, decrypted: bool = False
    ) -> None:
        data = codec.decode_data(datagram)
        tunnel = self.tunnels.get(data.tunnel_id)
        call = tunnel.calls.get(data.session_id) if tunnel is not None else None
        if tunnel is None or call is None:
            service.drops["session"] += 1
        elif tunnel.endpoint != (endpoint._replace(mark=tunnel.endpoint.mark) if decrypted else endpoint):
            service.drops["endpoint"] += 1
        else:
            if service.options.data_in_pktdump:
                tunnel.dump("RecvData", datagram)
            tunnel.heard(now)
            call.data(datagram, data, now)

    def _control(self, service: Service, endpoint: Endpoint, packet: Control, transmit: Transmit, now: float) -> None:
        tunnel = self.tunnels.get(packet.tunnel_id)
        if not packet.tunnel_id:
            self._unaddressed(service, endpoint, packet, transmit, now)
        elif tunnel is None:
            service.drops["tunnel"] += 1
            if self._ghosts is not None:
                self._ghosts.haunt(endpoint, packet, transmit, now)
        elif tunnel.endpoint == endpoint or self._may_move(tunnel, endpoint, packet, now):
            tunnel.receive(packet, now)
        else:
            service.drops["endpoint"] += 1

    def _may_move(self, tunnel: Tunnel, endpoint: Endpoint, packet: Control, now: float) -> bool:
        """A message of a tunnel from elsewhere: a NAT may have given the peer another port.

        Only one whose numbers are the next ones counts: of whoever does not see the tunnel, that is as much as can be
        asked, beside our tunnel id, which cannot be guessed at once.
        """
        old, rebind = tunnel.endpoint, tunnel.service.options.peer_rebind
        if (
            rebind is Rebind.NO
            or tunnel.state is not State.ESTABLISHED
            or (endpoint.local, endpoint.local_port, endpoint.mark) != (old.local, old.local_port, old.mark)
            or (rebind is Rebind.PORT and endpoint.peer != old.peer)
            or not tunnel.channel.is_next(packet.ns, packet.nr, packet.body)
        ):
            return False
        self._established.pop((old, tunnel.peer_id), None)
        self._established[endpoint, tunnel.peer_id] = tunnel
        tunnel.move(endpoint, now)
        self._record(tunnel)
        return True

    # Setting up.

    def _unaddressed(
        self, service: Service, endpoint: Endpoint, packet: Control, transmit: Transmit, now: float
    ) -> None:
        """A message without a tunnel id: its sender does not know ours."""
        message = codec.decode_message(packet.body, service.secret_for(endpoint))
        theirs = message.u16(Attr.ASSIGNED_TUNNEL_ID, 0)
        tunnel = self._half_open.get((endpoint, theirs))
        if message.type == Type.STOP_CCN:
            if tunnel is not None:
                tunnel.receive(packet, now)
            else:
                service.drops["tunnel"] += 1
        elif message.type != Type.SCCRQ or packet.ns or not theirs:
            service.drops["tunnel"] += 1
        elif tunnel is not None:
            # Our SCCRP was lost, or is under way.
            tunnel.receive(packet, now)
            tunnel.channel.resend(now)
        else:
            self._asked(service, endpoint, packet, message, transmit, now)

    def _asked(
        self, service: Service, endpoint: Endpoint, packet: Control, message: Message, transmit: Transmit, now: float
    ) -> None:
        """SCCRQ."""
        old = self._established.get((endpoint, message.u16(Attr.ASSIGNED_TUNNEL_ID, 0)))
        if old is not None and now < old.began + CYCLE:
            # The one that made it, come again late.
            old.receive(packet, now)
            return
        refusal = "closing" if self._closing else service.refuses(endpoint.peer, now)
        if refusal or self._loses(endpoint, message, now):
            service.drops[refusal or "tie"] += 1
            return
        if message.fault is not None:
            # Without a word to remember it by: whoever sends such things makes us keep nothing.
            service.drops["fault"] += 1
            if not self._refusals.take(now):
                return
            error = (causes.STOP_ERROR, message.fault.error, message.fault.text)
            avps = [(Attr.ASSIGNED_TUNNEL_ID, codec.u16(0)), (Attr.RESULT_CODE, codec.result_code(*error))]
            body = codec.encode_message(Type.STOP_CCN, avps)
            transmit(endpoint, codec.control(message.u16(Attr.ASSIGNED_TUNNEL_ID, 0), 0, 0, 1, body))
            return
        if service.is_full:
            # Of forged ones nothing more comes, and they get older than others.  To refuse the new one instead would
            # let anybody keep all others out.
            service.drops["half-open-limit"] += 1
            oldest = next(tunnel for tunnel in self._half_open.values() if tunnel.service is service)
            oldest.discard("too many half-open tunnels", now)
        tunnel = self._open(service, endpoint, transmit, now)
        if tunnel is None:
            service.drops["tunnel-ids"] += 1
            return
        self._half_open[endpoint, message.u16(Attr.ASSIGNED_TUNNEL_ID, 0)] = tunnel
        service.begun(endpoint.peer)
        tunnel.accept(packet, message, now)

    def _loses(self, endpoint: Endpoint, message: Message, now: float) -> bool:
        """Of two SCCRQs under way at once between two hosts, is the peer's the one that does not count?

        RFC 2661 section 4.4.3, Tie Breaker: one that is lower, or that is there at all, wins.
        """
        theirs = message.avps.get(Attr.TIE_BREAKER)
        for tunnel in [tunnel for tunnel in self._dialled.get(endpoint, ()) if tunnel.state is State.WAIT_REPLY]:
            if theirs is None or tunnel.tie_breaker < theirs:
                return True
            tunnel.discard("another tunnel of the same two hosts", now)
            if tunnel.tie_breaker == theirs:
                return True
        return False

    def dial(self, service: Service, endpoint: Endpoint, transmit: Transmit, now: float) -> Tunnel | None:
        """Ask a peer for a tunnel; None: there is no tunnel id left."""
        tunnel = self._open(service, endpoint, transmit, now)
        if tunnel is not None:
            self._dialled.setdefault(endpoint, []).append(tunnel)
            tunnel.dial(now)
        return tunnel

    def _open(self, service: Service, endpoint: Endpoint, transmit: Transmit, now: float) -> Tunnel | None:
        haunted = []
        number = self._ids.take()
        while number and self._ghosts is not None and number in self._ghosts:
            haunted.append(number)
            number = self._ids.take()
        for other in haunted:
            # They are not taken again before all others.
            self._ids.release(other)
        if not number:
            return None
        tunnel = self.tunnels[number] = Tunnel(self, service, endpoint, transmit, number, now)
        service.tunnels += 1
        return tunnel

    # What tunnels tell.

    def established(self, tunnel: Tunnel, now: float) -> None:
        self._settle(tunnel)
        self._undial(tunnel)
        key = tunnel.endpoint, tunnel.peer_id
        old = self._established.pop(key, None)
        if old is not None:
            # The peer gives no number to two, so it knows nothing of that one any more.
            old.replaced(now)
        self._established[key] = tunnel
        self._record(tunnel)

    def closed(self, tunnel: Tunnel, reason: str, now: float) -> None:
        if self.asking is not None:
            self.asking.forget(tunnel)
        key = tunnel.endpoint, tunnel.peer_id
        if self._established.get(key) is tunnel:
            del self._established[key]
        self._journal.remove(tunnel.slot)
        tunnel.slot = -1
        self._undial(tunnel)

    def forget(self, tunnel: Tunnel) -> None:
        # Only now is a tunnel that was never established no longer half open: it has taken room all the time.
        self._settle(tunnel)
        self._owing.pop(tunnel, None)
        if self.tunnels.pop(tunnel.id, None) is not None:
            self._ids.release(tunnel.id)
            tunnel.service.tunnels -= 1

    def owes(self, tunnel: Tunnel) -> None:
        self._owing[tunnel] = None

    def incoming(self, tunnel: Tunnel, message: Message, now: float) -> None:
        service, asking = tunnel.service, self.asking
        theirs = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
        if message.type == Type.OCRQ:
            # It is LACs that have lines to dial out by.
            service.drops["outgoing"] += 1
            tunnel.refuse(theirs, (causes.CDN_PERMANENT, 0), "no outgoing calls here", now)
        elif asking is None or asking.passes():
            self._begin(tunnel, message, now)
        elif _has_all(tunnel, asking.waits(tunnel)):
            self._too_many(tunnel, theirs, now)
        elif not asking.put(tunnel, theirs, message.part(LnsCall.ASKED)):
            service.drops["busy"] += 1
            tunnel.refuse(theirs, (causes.CDN_TEMPORARY, 0), "too many calls at once", now)

    def given_up(self, tunnel: Tunnel, theirs: int) -> None:
        if self.asking is not None:
            self.asking.withdraw(tunnel, theirs)

    def waits(self, tunnel: Tunnel) -> bool:
        return self.asking is not None and self.asking.waits(tunnel) > 0

    def _begin(self, tunnel: Tunnel, message: Message, now: float) -> None:
        """Answer an ICRQ."""
        service = tunnel.service
        theirs = message.u16(Attr.ASSIGNED_SESSION_ID, 0)
        if self._closing:
            service.drops["closing"] += 1
            tunnel.refuse(theirs, (causes.CDN_TEMPORARY, 0), "shutting down", now)
        elif _has_all(tunnel):
            self._too_many(tunnel, theirs, now)
        elif not (number := tunnel.new_id()):
            service.drops["session-ids"] += 1
            tunnel.refuse(theirs, (causes.CDN_TEMPORARY, 0), "too many sessions", now)
        else:
            if len(self.waiting) >= MAX_WAITING:
                oldest = next(iter(self.waiting))
                reason = "too many calls that are not connected"
                oldest.give_up("waiting-limit", reason, (causes.CDN_TEMPORARY, 0), now)
            call = LnsCall(self, tunnel, number, message)
            tunnel.add(call)
            self.waiting[call] = None
            service.sessions += 1
            call.answer(now)

    def _too_many(self, tunnel: Tunnel, theirs: int, now: float) -> None:
        tunnel.service.drops["session-limit"] += 1
        tunnel.refuse(theirs, (causes.CDN_TEMPORARY, 0), "too many sessions", now)

    def _settle(self, tunnel: Tunnel) -> None:
        key = tunnel.endpoint, tunnel.peer_id
        if self._half_open.get(key) is tunnel:
            del self._half_open[key]
            tunnel.service.settled(tunnel.endpoint.peer)

    def _undial(self, tunnel: Tunnel) -> None:
        others = self._dialled.get(tunnel.endpoint)
        if others is not None and tunnel in others:
            others.remove(tunnel)
            if not others:
                del self._dialled[tunnel.endpoint]

    def _record(self, tunnel: Tunnel) -> None:
        """Let the journal know the tunnel as it is now."""
        self._journal.remove(tunnel.slot)
        tunnel.slot = self._journal.add(_KIND, *record(tunnel.endpoint, tunnel.id, tunnel.peer_id))

    def tapped(self, call: LnsCall, way: int, datagram: bytes) -> None:
        """Show a data message of a call, if somebody looks on at it."""
        tap = self.taps.get(call)
        if tap is not None:
            tap.frame(way, ethernet(call.tunnel.endpoint, way, datagram))

    # The end.

    def stop(self, tunnels: Iterable[Tunnel], reason: str, cause: Cause, now: float) -> None:
        """End tunnels, and their calls."""
        result = causes.STOP_SHUTDOWN if cause is Cause.ADMIN_REBOOT else causes.STOP_CLEAR
        for tunnel in list(tunnels):
            tunnel.stop(result, 0, reason, now, cause)

    def drop_service(self, name: str, now: float) -> None:
        """A tunnel block is gone from the configuration."""
        service = self.services.pop(name)
        mine = [tunnel for tunnel in self.tunnels.values() if tunnel.service is service]
        self.stop(mine, "tunnel no longer offered", Cause.ADMIN_RESET, now)

    def shut(self, now: float) -> None:
        """Take nothing new any more, and end all tunnels."""
        self._closing = True
        self.stop(self.tunnels.values(), "shutting down", Cause.ADMIN_REBOOT, now)

    @property
    def busy(self) -> bool:
        """Whether a StopCCN is not acknowledged yet."""
        return any(not tunnel.channel.idle for tunnel in self.tunnels.values())


def _has_all(tunnel: Tunnel, more: int = 0) -> bool:
    """Has the tunnel, with *more*, as many sessions as ``l2tp-session-limit`` allows?

    Those that are ending do not count.
    """
    limit = tunnel.service.options.session_limit
    if not limit or len(tunnel.calls) + more < limit:
        return False
    return more + sum(isinstance(call, LnsCall) and call.counted for call in tunnel.calls.values()) >= limit
