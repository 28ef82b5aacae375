"""What Prometheus is told: the counters of the daemon, and those of its sessions, in its text format 0.0.4.

No I/O: :mod:`npppy.exporter` serves the pages.  A page is an iterator over pieces of text, and each piece is work of a
millisecond or two, however many sessions there are.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from . import __version__
from .pipex.user import UserFlow
from .ppp.station import Phase

if TYPE_CHECKING:
    from .aaa.radius.accounting import Accountant
    from .aaa.radius.client import Client
    from .aaa.radius.dae_server import DaeServer
    from .admission import Admission
    from .control.server import ControlServer
    from .l2tp.server import L2tpServer
    from .pipex.datapath import DataPath
    from .pool import Pool
    from .ppp.cause import Cause
    from .ppp.engine import Engine
    from .ppp.session import Session
    from .pppoe.server import PppoeServer
    from .pptp.server import PptpServer
    from .wheel import Wheel

#: Of version 0.0.4.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: Sessions in a piece: those of which counters are read, those that are looked at or made lines of, and those that are
#: described.
READ: Final = 200
LINES: Final = 500
DESCRIBE: Final = 100

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def escape(text: str) -> str:
    """*text* as the value of a label.  An octet that is not UTF-8 is a question mark."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text.translate(_ESCAPES)


class Family:
    """A metric, and its samples by their labels."""

    __slots__ = ("_head", "_name", "_samples")

    def __init__(self, name: str, kind: str, about: str) -> None:
        """*name* begins with ``npppy_`` unless it is one that all processes have; *about* is of one line."""
        self._name = name
        self._head = f"# HELP {name} {about}\n# TYPE {name} {kind}\n"
        self._samples: dict[str, float] = {}

    def add(self, value: float, **labels: object) -> Family:
        """Add to the sample with these labels: no two may have the same."""
        key = _labels(labels)
        self._samples[key] = self._samples.get(key, 0) + value
        return self

    def add_all(self, label: str, counts: Mapping[Any, float], **labels: object) -> Family:
        """A sample for each of *counts*, whose key is the value of *label*."""
        for name, count in counts.items():
            self.add(count, **labels, **{label: name})
        return self

    def __str__(self) -> str:
        """Nothing where there is no sample."""
        lines = [f"{self._name}{labels} {_number(value)}\n" for labels, value in self._samples.items()]
        return self._head + "".join(lines) if lines else ""


def _labels(labels: Mapping[str, object]) -> str:
    return "{" + ",".join(f'{name}="{escape(str(value))}"' for name, value in labels.items()) + "}" if labels else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(round(value, 6))


class Histogram:
    """How long something took, in seconds."""

    BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(self.BOUNDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self.BOUNDS, seconds)] += 1
        self._sum += seconds

    def text(self, name: str, about: str) -> str:
        lines = [f"# HELP {name} {about}\n# TYPE {name} histogram\n"]
        bounds = (*map(str, self.BOUNDS), "+Inf")
        sums = list(accumulate(self._counts))
        lines += [f'{name}_bucket{{le="{le}"}} {count}\n' for le, count in zip(bounds, sums, strict=True)]
        return "".join([*lines, f"{name}_sum {_number(self._sum)}\n{name}_count {sums[-1]}\n"])


class Of(NamedTuple):
    """What sessions are counted by."""

    tunnel: str
    #: Its word in npppd.conf.
    protocol: str
    realm: str


class Tally:
    """Sessions that have come up and gone since the start, by what they were of."""

    __slots__ = ("ended", "started")

    def __init__(self, engine: Engine) -> None:
        self.started: Counter[Of] = Counter()
        self.ended: Counter[tuple[Of, Cause]] = Counter()
        engine.listeners.append(self._hear)

    def _hear(self, event: str, session: Session, now: float) -> None:
        if event == "change":
            return
        tunnel, realm = session.tunnel, session.realm
        of = Of(tunnel.name, tunnel.protocol.value, realm.name if realm is not None else "")
        if event == "start":
            self.started[of] += 1
        else:
            self.ended[of, session.cause] += 1

    def up(self) -> Counter[Of]:
        """Those that are up now; 0 for those of which there were some."""
        up = self.started.copy()
        for (of, _), count in self.ended.items():
            up[of] -= count
        return up


class Parts(Protocol):
    """The daemon, as far as it is told of here."""

    @property
    def engine(self) -> Engine: ...
    @property
    def admission(self) -> Admission: ...
    @property
    def wheel(self) -> Wheel: ...
    @property
    def pppoe(self) -> PppoeServer: ...
    @property
    def l2tp(self) -> L2tpServer: ...
    @property
    def pptp(self) -> PptpServer: ...
    @property
    def data(self) -> DataPath: ...
    @property
    def pools(self) -> Mapping[str, Pool]: ...
    @property
    def client(self) -> Client: ...
    @property
    def accountant(self) -> Accountant: ...
    @property
    def dae(self) -> DaeServer: ...
    @property
    def control(self) -> ControlServer: ...


class Metrics:
    """The pages.  It is made before there is a session."""

    def __init__(
        self, parts: Parts, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        """*clock* is that of the engine, *wall* tells the seconds since the Epoch."""
        self._parts = parts
        self._clock = clock
        self._wall = wall
        self._tally = Tally(parts.engine)
        #: How late the event loop comes to its timers.
        self.lag = Histogram()
        # Answers by the path of their page and their status, and connections that there was no room for.
        self._answers: Counter[tuple[str, int]] = Counter()
        self._refused = 0
        # What Python has carried, as far as it was told: a session that ends while all are looked at may be missed.
        self._python = [0, 0, 0, 0]
        self._page_size = resource.getpagesize()
        self._started = _start_time()

    def answered(self, path: str, status: int) -> None:
        """A request was answered; *path* is that of a page, or ""."""
        self._answers[path, status] += 1

    def full(self) -> None:
        """There was no room for a connection."""
        self._refused += 1

    # The daemon.

    def totals(self) -> Iterator[str]:
        """The page ``/metrics``."""
        yield from self._sessions()
        yield self._carriers()
        yield self._addresses()
        yield self._radius()
        yield from self._pipex()
        yield self._process()

    def _sessions(self) -> Iterator[str]:
        engine, tally = self._parts.engine, self._tally
        up = Family("npppy_sessions", "gauge", "Sessions that are up.")
        started = Family("npppy_sessions_started_total", "counter", "Sessions that have come up.")
        ended = Family("npppy_sessions_ended_total", "counter", "Sessions that were up and have ended, by cause.")
        failed = Family("npppy_sessions_failed_total", "counter", "Sessions that ended before they were up, by cause.")
        # What there is none of yet is there from the start, so that the first one is seen to come.
        for bind in engine.config.binds if engine.config is not None else ():
            labels = Of(bind.tunnel.name, bind.tunnel.protocol.value, bind.realm.name)._asdict()
            up.add(0, **labels)
            started.add(0, **labels)
        for of, count in tally.up().items():
            up.add(count, **of._asdict())
        for of, count in tally.started.items():
            started.add(count, **of._asdict())
        for (of, cause), count in tally.ended.items():
            ended.add(count, **of._asdict(), cause=cause.title)
        for (tunnel, protocol, cause), count in engine.failed.items():
            failed.add(count, tunnel=tunnel, protocol=protocol.value, cause=cause.title)
        yield "".join(map(str, (up, started, ended, failed)))
        half_open = Family("npppy_sessions_half_open", "gauge", "Sessions that have not come up yet.")
        refused = Family("npppy_logins_refused_total", "counter", "Logins refused, by realm; none: no realm is theirs.")
        malformed = Family("npppy_ppp_malformed_total", "counter", "PPP frames dropped, by what was wrong with them.")
        shut = Family("npppy_admission_closed", "gauge", "1 while what begins has to wait for what has begun.")
        often = Family("npppy_admission_closures_total", "counter", "How often it had to.")
        waiting = Family("npppy_admission_waiting", "gauge", "Calls that have been read, and wait.")
        admission = self._parts.admission
        yield str(half_open.add(engine.half_open))
        yield f"{shut.add(int(admission.closed))}{often.add(admission.closures)}{waiting.add(admission.waiting)}"
        yield str(refused.add_all("realm", engine.refused)) + str(malformed.add_all("reason", engine.malformed))

    def _carriers(self) -> str:
        parts = self._parts
        tunnels = Family("npppy_tunnels", "gauge", "Control connections of L2TP and PPTP.")
        calls = Family("npppy_tunnel_calls", "gauge", "Calls in control connections, those without a session included.")
        drops = Family("npppy_drops_total", "counter", "Packets dropped and requests refused, by port or tunnel.")
        for service in parts.l2tp.engine.services.values():
            labels = {"tunnel": service.tunnel.name, "protocol": "l2tp"}
            tunnels.add(service.tunnels, **labels)
            calls.add(service.sessions, **labels)
            drops.add_all("reason", service.drops, **labels)
        for pptp in parts.pptp.engine.services.values():
            labels = {"tunnel": pptp.tunnel.name, "protocol": "pptp"}
            tunnels.add(pptp.connections, **labels)
            calls.add(pptp.sessions, **labels)
            drops.add_all("reason", pptp.drops, **labels)
        drops.add_all("reason", parts.pptp.engine.drops, protocol="pptp")
        for port, counts in parts.pppoe.engine.drops.items():
            drops.add_all("reason", counts, port=port, protocol="pppoe")
        return f"{tunnels}{calls}{drops}"

    def _addresses(self) -> str:
        size = Family("npppy_pool_addresses", "gauge", "Addresses that a pool gives out.")
        used = Family("npppy_pool_addresses_used", "gauge", "Those of them that are in use.")
        for name, pool in self._parts.pools.items():
            size.add(pool.size, pool=name)
            used.add(pool.used, pool=name)
        return f"{size}{used}"

    def _radius(self) -> str:
        # No two realms' servers are told apart where they are the same for the network.
        families = {name: Family(f"npppy_radius_{name}", kind, about) for name, kind, about in _RADIUS}
        rtts: dict[tuple[str, str], float] = {}
        alive: dict[tuple[str, str], bool] = {}
        for state in self._parts.client.state():
            host = f"[{state.address}]" if state.address.version == 6 else str(state.address)
            at = f"{host}:{state.port}", state.kind
            labels = {"server": at[0], "kind": at[1]}
            alive[at] = alive.get(at, False) or state.state == "up"
            rtts[at] = max(rtts.get(at, 0.0), state.rtt_ms / 1000)
            for name in ("requests", "retransmissions", "timeouts", "answers"):
                families[f"{name}_total"].add(getattr(state, name), **labels)
            if state.kind == "auth":
                for word in ("accept", "reject", "challenge"):
                    families["logins_total"].add(getattr(state, f"{word}s"), **labels, answer=word)
            families["errors_total"].add_all("reason", state.bad, **labels)
            families["outstanding"].add(state.outstanding, **labels)
            families["queued"].add(state.queued, **labels)
        for (server, kind), up in alive.items():
            families["up"].add(int(up), server=server, kind=kind)
            families["rtt_seconds"].add(rtts[server, kind], server=server, kind=kind)
        return "".join(map(str, families.values())) + self._accounting() + self._dynamic()

    def _accounting(self) -> str:
        state = self._parts.accountant.state()
        age = max(0.0, self._wall() - state.oldest) if state.oldest else 0.0
        waiting = Family("npppy_accounting_records", "gauge", "Accounting records that wait for a server, by realm.")
        oldest = Family("npppy_accounting_oldest_seconds", "gauge", "For how long the oldest of them waits.")
        done = Family("npppy_accounting_delivered_total", "counter", "Accounting records that a server has taken.")
        vain = Family("npppy_accounting_failures_total", "counter", "Attempts to deliver one, in vain.")
        lost = Family("npppy_accounting_replaced_total", "counter", "Interim records that gave way to later ones.")
        spool = Family("npppy_accounting_spool_writable", "gauge", "1 if the spool can be written, or is in memory.")
        waiting.add_all("realm", state.waiting)
        oldest.add(age)
        done.add(state.delivered)
        vain.add(state.failures)
        lost.add(state.replaced)
        spool.add(int(not state.trouble))
        return f"{waiting}{oldest}{done}{vain}{lost}{spool}"

    def _dynamic(self) -> str:
        dae = self._parts.dae
        asked = Family("npppy_radius_dae_requests_total", "counter", "Requests to end or to change sessions.")
        again = Family("npppy_radius_dae_duplicates_total", "counter", "Those of them that had come before.")
        answers = Family("npppy_radius_dae_answers_total", "counter", "Answers to them.")
        discarded = Family("npppy_radius_dae_discarded_total", "counter", "Packets without an answer, by reason.")
        for client in dae.state():
            for request, words in (("disconnect", "disconnects"), ("coa", "changes")):
                asked.add(getattr(client, words), client=client.address, request=request)
                for answer in ("ack", "nak"):
                    count = getattr(client, f"{words[:-1]}_{answer}s")
                    answers.add(count, client=client.address, request=request, answer=answer)
            again.add(client.duplicates, client=client.address)
            discarded.add_all("reason", client.discarded, client=client.address)
        if dae.dae.strangers:
            discarded.add(dae.dae.strangers, client="", reason="stranger")
        return f"{asked}{again}{answers}{discarded}"

    def _pipex(self) -> Iterator[str]:
        state = self._parts.data.backend.state()
        info = Family("npppy_pipex_info", "gauge", "What carries data, and why it is nothing better.")
        yield str(info.add(1, backend=state.backend, reason=state.reason))
        # Before the sessions, so that one that ends meanwhile is not in both.
        closed = state.closed
        python = [closed.in_packets, closed.in_bytes, closed.out_packets, closed.out_bytes]
        kernel = user = 0
        for part in _parts(list(self._parts.engine.sessions.values()), LINES):
            for session in part:
                flow = session.flow
                if not isinstance(flow, UserFlow):
                    continue
                if flow.carried:
                    kernel += 1
                else:
                    user += 1
                counted = flow.by_python()
                if counted.in_packets or counted.out_packets:
                    python[0] += counted.in_packets
                    python[1] += counted.in_bytes
                    python[2] += counted.out_packets
                    python[3] += counted.out_bytes
            yield ""
        # A counter that went back would look like one that began anew.
        python = self._python = list(map(max, self._python, python))
        sessions = Family("npppy_pipex_sessions", "gauge", "Sessions by who carries their data.")
        sessions.add(kernel, carrier="kernel").add(user, carrier="python")
        packets = Family("npppy_pipex_packets_total", "counter", "Packets of sessions; up is from the peer.")
        octets = Family("npppy_pipex_bytes_total", "counter", "Octets of them.")
        for name, count in state.paths.items():
            path, _, direction = name.lower().rpartition("_")
            packets.add(count.packets, path=path, direction=direction)
            octets.add(count.octets, path=path, direction=direction)
        for at, direction in enumerate(("up", "down")):
            packets.add(python[2 * at], path="python", direction=direction)
            octets.add(python[2 * at + 1], path="python", direction=direction)
        drops = Family("npppy_pipex_drops_total", "counter", "Packets that the kernel has dropped, by reason.")
        punts = Family("npppy_pipex_punts_total", "counter", "Packets that the kernel has left to Python, by reason.")
        other = Family("npppy_pipex_events_total", "counter", "What else the kernel has counted.")
        for name, count in state.reasons.items():
            kind, _, reason = name.lower().partition("_")
            if kind == "drop":
                drops.add(count.packets, reason=reason)
            elif kind in ("punt", "user"):
                # Of sessions that an operator has taken back all is left to Python, each way.
                punts.add(count.packets, reason=reason if kind == "punt" else name.lower())
            else:
                other.add(count.packets, event=name.lower())
        room = Family("npppy_pipex_sessions_max", "gauge", "Sessions that the kernel has room for.")
        maps = Family("npppy_pipex_map_bytes", "gauge", "Memory of the BPF maps.")
        yield "".join(map(str, (sessions, room.add(state.capacity), packets, octets, drops, punts, other)))
        yield str(maps.add_all("map", {name: item.octets for name, item in state.maps.items()}))

    def _process(self) -> str:
        parts = self._parts
        version = Family("npppy_build_info", "gauge", "npppyd itself.")
        timers = Family("npppy_timers", "gauge", "Timers that run.")
        clients = Family("npppy_control_connections", "gauge", "Connections of npppyctl.")
        asked = Family("npppy_scrapes_total", "counter", "Pages asked for here, by the status of the answer.")
        refused = Family("npppy_scrape_connections_refused_total", "counter", "Connections that there was no room for.")
        for (path, status), count in self._answers.items():
            asked.add(count, path=path, status=status)
        families = [
            version.add(1, version=__version__, python=platform.python_version()),
            timers.add(len(parts.wheel)),
            clients.add(parts.control.clients),
            asked,
            refused.add(self._refused),
            *_own_process(self._page_size, self._started),
        ]
        lag = self.lag.text("npppy_loop_lag_seconds", "How late the event loop came to its timer; 8 a second.")
        return "".join(map(str, families)) + lag

    # Sessions.

    def sessions(self) -> Iterator[str]:
        """The page ``/sessions``: those that are up when it begins."""
        found: list[Session] = []
        counted = array("Q")
        # The format wants all samples of a metric in one place, so what is read of sessions at first is kept.
        for part in _parts(list(self._parts.engine.sessions.values()), READ):
            for session in part:
                if session.phase < Phase.TERMINATE and session.up_since is not None:
                    found.append(session)
                    counted.extend(session.counters())
            yield ""
        name = "npppy_session_info"
        yield f"# HELP {name} A session, its user, and where it comes from.\n# TYPE {name} gauge\n"
        for part in _parts(found, DESCRIBE):
            yield "".join(map(_described, part))
        width = len(_COUNTERS)
        for column, (name, about) in enumerate(_COUNTERS):
            head = f"# HELP {name} {about}\n# TYPE {name} counter\n"
            for start, part in zip(range(0, len(found), LINES), _parts(found, LINES), strict=True):
                values = counted[start * width + column : (start + LINES) * width : width]
                lines = [f'{name}{{id="{session.id}"}} {value}\n' for session, value in zip(part, values, strict=True)]
                yield head + "".join(lines)
                head = ""
        name = "npppy_session_uptime_seconds"
        head = f"# HELP {name} For how long the session has been up.\n# TYPE {name} gauge\n"
        now = self._clock()
        for part in _parts(found, LINES):
            yield head + "".join(
                [f'{name}{{id="{session.id}"}} {now - (session.up_since or now):.3f}\n' for session in part]
            )
            head = ""


#: In the order of :class:`npppy.pipex.base.Counters`.
_COUNTERS: Final = (
    ("npppy_session_in_bytes_total", "Octets from the peer."),
    ("npppy_session_in_packets_total", "Packets from the peer."),
    ("npppy_session_in_errors_total", "Packets from the peer that were dropped."),
    ("npppy_session_out_bytes_total", "Octets to the peer."),
    ("npppy_session_out_packets_total", "Packets to the peer."),
    ("npppy_session_out_errors_total", "Packets to the peer that were dropped."),
)

_RADIUS: Final = (
    ("up", "gauge", "1 if the server answers, as far as is known."),
    ("rtt_seconds", "gauge", "A round trip, on average; 0: there was none yet."),
    ("requests_total", "counter", "Requests to a server."),
    ("retransmissions_total", "counter", "Requests that were sent again."),
    ("timeouts_total", "counter", "Requests that had no answer."),
    ("answers_total", "counter", "Answers that counted."),
    ("logins_total", "counter", "Answers to logins."),
    ("errors_total", "counter", "Answers that did not count, and transmissions that failed, by reason."),
    ("outstanding", "gauge", "Requests under way."),
    ("queued", "gauge", "Requests that wait for their turn."),
)


def _described(session: Session) -> str:
    realm, caller = session.realm, session.call.link.caller
    return (
        f'npppy_session_info{{id="{session.id}",user="{escape(session.profile.username or session.username)}",'
        f'realm="{escape(realm.name) if realm is not None else ""}",tunnel="{escape(session.tunnel.name)}",'
        f'protocol="{session.tunnel.protocol.value}",address="{session.ip}",from="{escape(caller.text)}"}} 1\n'
    )


def _parts(sessions: list[Session], size: int) -> Iterable[list[Session]]:
    return (sessions[start : start + size] for start in range(0, len(sessions), size))


def _start_time() -> float:
    """Of the process, in seconds since the Epoch."""
    # proc(5): the name of the program may hold anything; the state behind it is field 3, and the start field 22.
    own = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return int(booted.split()[1]) + int(own[19]) / os.sysconf("SC_CLK_TCK")


def _own_process(page_size: int, started: float) -> Iterator[Family]:
    """What all processes tell of themselves, by the names that they all have for it."""
    size, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
    yield Family("process_cpu_seconds_total", "counter", "Processor time, of user and system.").add(time.process_time())
    yield Family("process_resident_memory_bytes", "gauge", "Memory in use.").add(resident * page_size)
    yield Family("process_virtual_memory_bytes", "gauge", "Memory that is mapped.").add(size * page_size)
    yield Family("process_start_time_seconds", "gauge", "When it started, since the Epoch.").add(started)
    # Before Linux 6.2 it is 0, and to count tens of thousands of descriptors one by one would take too long.
    if count := os.stat("/proc/self/fd").st_size:
        yield Family("process_open_fds", "gauge", "Open descriptors.").add(count)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Family("process_max_fds", "gauge", "How many there may be.").add(limit)
