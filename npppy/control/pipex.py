"""The commands about the data path: ``pipex`` and ``capture``."""

from __future__ import annotations

import asyncio
import binascii
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..pipex.base import NO_WISH, Attached, Backend, Count, Counters, Police
from ..pipex.capture import CaptureError, Captures, Frame
from ..pipex.ebpf.libbpf import BpfError
from ..pipex.police import LEAST_RATE, MOST_BURST, MOST_RATE, default_burst
from ..pipex.user import UserFlow
from ..ppp import proto
from ..ppp.carriage import why_python
from ..ppp.engine import Engine
from ..ppp.link import IN
from ..ppp.session import Session
from .protocol import Message, RequestError
from .sessions import SLICE, limits, slices
from .subject import carrier

if TYPE_CHECKING:
    from .server import ControlServer, Reply

log = logging.getLogger("npppy.control")

#: What counters are of, by the first word of their names.
_KINDS: Final = {"drop": "drops", "punt": "punts", "user": "punts"}


class PipexCommands:
    """The handlers, which :meth:`register` hands over."""

    def __init__(self, engine: Engine, backend: Callable[[], Backend], clock: Callable[[], float]) -> None:
        """*backend* tells what carries the data at this moment."""
        self._engine = engine
        self._backend = backend
        self._clock = clock
        self.captures = Captures(engine, backend)

    def register(self, control: ControlServer) -> None:
        control.register("pipex", self.pipex)
        control.register("capture", self.capture)

    # pipex

    async def pipex(self, request: Message, reply: Reply) -> Message:
        """Show what carries the data, or change how it carries that of one session."""
        if "ppp_id" not in request:
            return await self._show()
        session = self._session(request)
        flow = session.flow
        if flow is None:
            raise RequestError(f"ppp id {session.id} is not up")
        if not isinstance(flow, UserFlow):
            raise RequestError(f"back end {self._backend().state().backend} carries nothing")
        if "police" in request:
            self._police(session, request["police"])
        elif request.get("carry") == "user":
            self._engine.wish(session.id, user=True)
            flow.to_user()
        elif request.get("carry") == "ebpf":
            self._to_ebpf(session, flow)
        else:
            raise RequestError("nothing to change: neither police nor carry")
        done = {"ppp_id": session.id, "pipex": carrier(session.flow), **self._limits(session)}
        log.info("%s command=pipex %s", reply, " ".join(f"{name}={value}" for name, value in done.items()))
        return done

    def _session(self, request: Message) -> Session:
        ppp_id = request.get("ppp_id")
        if type(ppp_id) is not int:
            raise RequestError("ppp_id: not a number")
        session = self._engine.sessions.get(ppp_id)
        if session is None:
            raise RequestError(f"there is no session with ppp id {ppp_id}")
        return session

    def _limits(self, session: Session) -> Message:
        up, down = session.limits
        return limits(down, up)

    def _police(self, session: Session, police: object) -> None:
        if police is None:
            police = {"down": 0, "up": 0}
        if not isinstance(police, dict):
            raise RequestError("police: not an object")
        link, tunnel = session.call.link, session.tunnel
        # It must let the largest packet pass, also after LCP has agreed anew, or on nothing.
        packet = min(link.max_mru, max(tunnel.mru, proto.DEFAULT_MRU))
        down = _bucket(police.get("down"), police.get("burst_down"), packet)
        up = _bucket(police.get("up"), police.get("burst_up"), packet)
        before = self._engine.wishes.get(session.id, NO_WISH)
        # Without a wish, what its realm says holds.
        self._engine.wish(session.id, police_down=down, police_up=up)
        try:
            session.limit()
        except BpfError as error:
            self._engine.wish(session.id, police_down=before.police_down, police_up=before.police_up)
            raise RequestError(str(error)) from None

    def _to_ebpf(self, session: Session, flow: UserFlow) -> None:
        self._engine.wish(session.id, user=False)
        if flow.to_ebpf():
            return
        site = session.site
        assert site is not None
        why = why_python(session) or site.backend.why_not(site.conf.name, session.call.link.encap)
        if why:
            raise RequestError(f"the kernel cannot carry ppp id {session.id}: {why}")
        # Python has it, and goes on with what comes while the kernel takes it.
        session.open_flow(self._clock())
        if carrier(session.flow) != "ebpf":
            raise RequestError(f"the kernel has not taken ppp id {session.id}; npppyd's log says why")

    async def _show(self) -> Message:
        state = self._backend().state()
        sessions = {"ebpf": 0, "user": 0}
        python = state.closed
        used: Counter[str] = Counter()
        async for part in slices(list(self._engine.sessions), SLICE):
            for ppp_id in part:
                session = self._engine.sessions.get(ppp_id)
                if session is None or session.flow is None:
                    continue
                sessions[carrier(session.flow)] += 1
                if isinstance(session.flow, UserFlow):
                    python = python.plus(session.flow.by_python())
                    used.update(session.flow.entries())
        config = self._engine.config
        return {
            "backend": state.backend,
            "reason": state.reason,
            "capacity": state.capacity,
            "sessions": sessions,
            "tunnels": {
                tunnel.name: {"pipex": tunnel.pipex.value, "forward": "fast" if tunnel.pipex_fast else "stack"}
                for tunnel in (config.tunnels if config is not None else ())
            },
            "interfaces": [_interface(interface) for interface in state.interfaces],
            "paths": _paths(state.paths, python),
            **_reasons(state.reasons),
            "maps": {
                name: {"used": used.get(name, item.used), "entries": item.entries, "octets": item.octets}
                for name, item in state.maps.items()
            },
            "memory": sum(item.octets for item in state.maps.values()),
        }

    # capture

    async def capture(self, request: Message, reply: Reply) -> Message:
        """Runs until the client goes away or stops it, the session ends, or it has as many frames as it wants."""
        session = self._session(request)
        try:
            snaplen = _whole(request, "snaplen", 65535)
            count = _whole(request, "count", 0)
            capture = self.captures.open(session.id, snaplen=snaplen or 65535, count=count or None)
        except (CaptureError, BpfError) as error:
            raise RequestError(str(error)) from None
        log.info("%s command=capture ppp id=%d begins", reply, session.id)
        # The Epoch's nanoseconds at the beginning of the monotonic clock; the same for all, so that none overtakes.
        epoch = time.time_ns() - time.monotonic_ns()
        frames = lost = 0
        reply.stop = lambda: capture.end("interrupted")
        try:
            await reply.rows([{"event": "begin", "ppp_id": session.id}])
            while True:
                ended = capture.ended
                while part := capture.take(SLICE):
                    frames += len(part)
                    await reply.rows([_frame(frame, epoch) for frame in part])
                    await asyncio.sleep(0)
                gaps = [gap for gap in zip(("npppyctl", "npppyd"), capture.take_lost(), strict=True) if gap[1]]
                lost += sum(gap for _, gap in gaps)
                await reply.rows([{"event": "lost", "slow": who, "count": gap} for who, gap in gaps])
                if ended:
                    return {"frames": frames, "lost": lost, "ended": ended}
                await capture.wait()
        finally:
            capture.close()
            log.info("%s command=capture ppp id=%d ended frames=%d lost=%d", reply, session.id, frames, lost)


def _whole(request: Message, name: str, default: int) -> int:
    value = request.get(name, default)
    if type(value) is not int or not 0 <= value < 2**32:
        raise RequestError(f"{name}: not a number")
    return value


def _bucket(rate: object, burst: object, packet: int) -> Police | None:
    """A token bucket of a rate in bits a second and a burst in octets, both as they come from a client."""
    if type(rate) is not int or (burst is not None and type(burst) is not int):
        raise RequestError("a rate or a burst is not a number")
    if not rate:
        return None
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise RequestError(f"a rate of {rate} bit/s: it may be {LEAST_RATE} to {MOST_RATE}, or 0 for no limit")
    octets = rate // 8
    if burst is None:
        burst = default_burst(octets)
    assert isinstance(burst, int)
    if not packet <= burst <= MOST_BURST:
        raise RequestError(
            f"a burst of {burst} octets: it may be {packet}, which is the largest packet, to {MOST_BURST}"
        )
    return Police(octets, burst)


def _frame(frame: Frame, epoch: int) -> Message:
    return {
        "ns": epoch + frame.ns,
        "way": "in" if frame.way == IN else "out",
        "length": frame.length,
        "data": binascii.b2a_base64(frame.data, newline=False).decode(),
    }


def _interface(interface: Attached) -> Message:
    return {"name": interface.name, "use": interface.role, "xdp": interface.mode, "note": interface.note}


def _count(packets: int, octets: int) -> dict[str, int]:
    return {"packets": packets, "octets": octets}


def _paths(counted: Mapping[str, Count], python: Counters) -> dict[str, Any]:
    """What went which way; nothing is said of ways that the back end does not have."""
    paths: dict[str, Any] = {}
    for name, count in counted.items():
        path, _, way = name.lower().rpartition("_")
        paths.setdefault(path, {})[way] = _count(*count)
    paths["python"] = {
        "up": _count(python.in_packets, python.in_bytes),
        "down": _count(python.out_packets, python.out_bytes),
    }
    return paths


def _reasons(counted: Mapping[str, Count]) -> dict[str, dict[str, Any]]:
    """Counters by their names: those of drops, of what is left to Python, and the rest."""
    found: dict[str, dict[str, Any]] = {"punts": {}, "drops": {}, "other": {}}
    for name, count in counted.items():
        words = name.lower().split("_")
        kind = _KINDS.get(words[0], "other")
        # Of sessions that an operator has taken back all is left to Python, and the word tells.
        shown = words[1:] if words[0] in ("drop", "punt") else words
        found[kind]["-".join(shown)] = _count(*count)
    return found
