"""Tunnels that a killed process has left at their peers, and how they are ended.

A peer takes a StopCCN only with the sequence number that it waits for, which nobody knows any more.  But it must
acknowledge a message that it has had before (RFC 2661 section 5.8), and the acknowledgement has that number.  So it is
sent a HELLO with the number 0, which our SCCRP had or our SCCRQ; and whatever of the old tunnel it sends is answered by
a StopCCN that fits.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable

from ..wheel import Timed, Wheel
from . import causes, codec
from .codec import Attr, Control, Type, u16
from .service import Endpoint, Transmit

log = logging.getLogger("npppy.l2tp")

#: Seconds that an old tunnel is remembered: a peer that was not there may ask for it by then.
MEMORY = 180.0
#: HELLOs sent, a second apart.
PROBES = 3

_PORTS = struct.Struct("!HHHH")


def record(endpoint: Endpoint, tunnel_id: int, peer_id: int) -> tuple[str, bytes]:
    """What the journal keeps of a tunnel: mark and scope, and all else in 16 or in 40 octets."""
    ports = _PORTS.pack(endpoint.local_port, endpoint.peer_port, tunnel_id, peer_id)
    scope = f".{endpoint.scope & 0xFFFFFF:x}" if endpoint.scope else ""
    return f"{endpoint.mark:x}{scope}", endpoint.local + endpoint.peer + ports


def read_record(name: str, octets: bytes) -> tuple[Endpoint, int, int]:
    """The other way.  Raises :class:`ValueError` or :class:`struct.error` for what is none."""
    addresses = octets[: -_PORTS.size]
    half = len(addresses) // 2
    if half not in (4, 16):
        raise ValueError(f"{len(octets)} octets")
    local_port, peer_port, tunnel_id, peer_id = _PORTS.unpack(octets[-_PORTS.size :])
    mark, _, scope = name.partition(".")
    ours = addresses[:half], local_port
    return Endpoint(*ours, addresses[half:], peer_port, int(mark, 16), int(scope or "0", 16)), tunnel_id, peer_id


class _Ghost(Timed):
    """A tunnel of an earlier process."""

    __slots__ = ("_ghosts", "endpoint", "id", "left", "peer_id", "probes", "slot", "stopped")

    def __init__(self, ghosts: Ghosts, slot: int, endpoint: Endpoint, tunnel_id: int, peer_id: int) -> None:
        super().__init__()
        self._ghosts = ghosts
        self.slot = slot
        self.endpoint = endpoint
        self.id = tunnel_id
        self.peer_id = peer_id
        self.probes = PROBES
        #: Ns of our StopCCN; -1: none was sent.
        self.stopped = -1

    def expire(self, now: float) -> None:
        self._ghosts.probe(self, now)


class Ghosts:
    """All of them, by our tunnel id.  *removed* is told the place in the journal of each that is done with."""

    def __init__(self, wheel: Wheel, removed: Callable[[int], None]) -> None:
        self._wheel = wheel
        self._removed = removed
        self._ghosts: dict[int, _Ghost] = {}
        self._transmit: Transmit | None = None

    def __contains__(self, tunnel_id: int) -> bool:
        return tunnel_id in self._ghosts

    def __len__(self) -> int:
        return len(self._ghosts)

    def add(self, slot: int, name: str, octets: bytes) -> None:
        """A record of the journal."""
        try:
            endpoint, tunnel_id, peer_id = read_record(name, octets)
        except (ValueError, struct.error) as error:
            log.warning("l2tp journal slot=%d Not a tunnel: %s", slot, error)
            self._removed(slot)
            return
        old = self._ghosts.get(tunnel_id)
        if old is not None:
            self._removed(old.slot)
        self._ghosts[tunnel_id] = _Ghost(self, slot, endpoint, tunnel_id, peer_id)

    def start(self, transmit: Transmit, now: float) -> None:
        """Begin to end them; *transmit* sends from any address of ours."""
        self._transmit = transmit
        for ghost in list(self._ghosts.values()):
            self.probe(ghost, now)

    def probe(self, ghost: _Ghost, now: float) -> None:
        """Have the peer say which number it waits for."""
        if not ghost.probes:
            self._forget(ghost)
            return
        assert self._transmit is not None
        ghost.probes -= 1
        if ghost.stopped < 0:
            self._transmit(ghost.endpoint, codec.control(ghost.peer_id, 0, 0, 0, codec.encode_message(Type.HELLO, [])))
        self._wheel.arm(ghost, now + (1.0 if ghost.probes else MEMORY))

    def haunt(self, endpoint: Endpoint, packet: Control, transmit: Transmit, now: float) -> None:
        """A control message for a tunnel that there is not."""
        ghost = self._ghosts.get(packet.tunnel_id)
        if ghost is None or (ghost.endpoint.local, ghost.endpoint.peer) != (endpoint.local, endpoint.peer):
            return
        if not packet.body and packet.nr == (ghost.stopped + 1) & 0xFFFF and ghost.stopped >= 0:
            self._forget(ghost)
            return
        ghost.stopped = packet.nr
        avps = [
            (Attr.ASSIGNED_TUNNEL_ID, u16(ghost.id)),
            (Attr.RESULT_CODE, codec.result_code(causes.STOP_CLEAR, 0, "restarted")),
        ]
        body = codec.encode_message(Type.STOP_CCN, avps)
        nr = (packet.ns + (1 if packet.body else 0)) & 0xFFFF
        transmit(endpoint, codec.control(ghost.peer_id, 0, packet.nr, nr, body))

    def _forget(self, ghost: _Ghost) -> None:
        self._wheel.disarm(ghost)
        del self._ghosts[ghost.id]
        self._removed(ghost.slot)
