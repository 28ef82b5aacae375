"""A daemon's parts for npppy.metrics: a real engine, the rest as it is told; and a reader of pages."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from npppy.aaa.radius.accounting import AccountingState
from npppy.aaa.radius.dae import ClientState
from npppy.aaa.radius.server import ServerState
from npppy.metrics import Metrics
from npppy.pipex.base import Count, Counters, Memory, PipexState
from npppy.port import Port
from npppy.ppp.engine import Engine
from npppy.wheel import Wheel

#: Seconds since the Epoch.
WALL = 1_700_000_000.0


def server(kind: str = "auth", address: str = "192.0.2.1", **fields: Any) -> ServerState:
    known: dict[str, Any] = {
        "kind": kind,
        "address": ip_address(address),
        "port": 1812,
        "state": "up",
        "since": 0.0,
        "rtt_ms": 0.0,
        "last_rtt_ms": 0.0,
        "bad": {},
    }
    counts = [item.name for item in dataclasses.fields(ServerState) if item.type == "int" and item.name != "port"]
    return ServerState(**(dict.fromkeys(counts, 0) | known | fields))


def accounts(**fields: Any) -> AccountingState:
    known: dict[str, Any] = {
        "spool": None,
        "lanes": (),
        "waiting": {},
        "orphaned": (),
        "oldest": 0,
        "delivered": 0,
        "failures": 0,
        "replaced": 0,
        "trouble": "",
    }
    return AccountingState(**(known | fields))


def client(**fields: Any) -> ClientState:
    known: dict[str, Any] = {"address": "192.0.2.10", "errors": {}, "discarded": {}}
    counts = [item.name for item in dataclasses.fields(ClientState) if item.type == "int"]
    return ClientState(**(dict.fromkeys(counts, 0) | known | fields))


def service(name: str, **fields: Any) -> Any:
    return SimpleNamespace(tunnel=SimpleNamespace(name=name), drops=Counter(), sessions=0, **fields)


@dataclass
class Parts:
    """See :class:`npppy.metrics.Parts`."""

    engine: Engine
    servers: list[ServerState] = field(default_factory=list)
    accounts: AccountingState = field(default_factory=accounts)
    clients: list[ClientState] = field(default_factory=list)
    state: PipexState = field(default_factory=lambda: PipexState(backend="user", reason="so"))
    pools: dict[str, Any] = field(default_factory=dict)
    strangers: int = 0

    def __post_init__(self) -> None:
        self.wheel = Wheel(0.0)
        self.admission: Any = SimpleNamespace(closed=False, closures=0, waiting=0)
        self.pppoe: Any = SimpleNamespace(engine=SimpleNamespace(drops={}))
        self.l2tp: Any = SimpleNamespace(engine=SimpleNamespace(services={}))
        self.pptp: Any = SimpleNamespace(engine=SimpleNamespace(services={}, drops=Counter()))
        self.data: Any = SimpleNamespace(backend=SimpleNamespace(state=lambda: self.state))
        self.client: Any = SimpleNamespace(state=lambda: self.servers)
        self.accountant: Any = SimpleNamespace(state=lambda: self.accounts)
        self.dae: Any = SimpleNamespace(state=lambda: self.clients, dae=self)
        self.control: Any = SimpleNamespace(clients=2)

    def metrics(self) -> Metrics:
        return Metrics(self, lambda: 1000.0, lambda: WALL)

    def fill(self) -> Parts:
        """Something of everything."""
        self.servers = [
            server(requests=10, answers=9, accepts=6, rejects=3, timeouts=1, rtt_ms=2.5, bad={"id": 4}),
            # Of another realm, with another secret.
            server(requests=5, answers=5, accepts=5, state="dead", rtt_ms=1.0),
            server("acct", "2001:db8::1", port=1813, state="probing", queued=7, outstanding=3),
        ]
        self.accounts = accounts(waiting={"R": 12}, oldest=int(WALL) - 90, delivered=7, failures=2, trouble="full")
        self.clients = [client(disconnects=5, disconnect_acks=4, change_naks=1, changes=1, discarded={"code": 2})]
        self.strangers = 3
        self.admission = SimpleNamespace(closed=True, closures=6, waiting=11)
        self.pools = {"POOL": SimpleNamespace(size=254, used=17)}
        self.pppoe.engine.drops = {Port("eth1", 7): Counter({"cookie": 3}), Port("eth2"): Counter()}
        self.l2tp.engine.services = {"LAC": service("LAC", tunnels=4)}
        self.l2tp.engine.services["LAC"].drops["malformed"] = 8
        self.pptp.engine.services = {"VPN": service("VPN", connections=5)}
        self.pptp.engine.drops["session"] = 9
        self.state = PipexState(
            backend="ebpf",
            capacity=1024,
            paths={"STACK_UP": Count(100, 6400), "FAST_DOWN": Count(3, 300)},
            reasons={
                "DROP_FILTER": Count(1, 60),
                "PUNT_CONTROL": Count(2, 120),
                "USER_UP": Count(5, 300),
                "TX_FAIL": Count(4, 240),
            },
            maps={"sessions": Memory(octets=4096, entries=10)},
            closed=Counters(in_bytes=50, in_packets=5, out_bytes=70, out_packets=7),
        )
        return self


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(pieces: Iterator[str] | str) -> Samples:
    """The samples of a page; no two have the same name and labels, and all of a metric are together."""
    text = "".join(pieces)
    assert text.endswith("\n")
    samples: Samples = {}
    seen = []
    for family in text_string_to_metric_families(text):
        assert family.name not in seen
        assert family.type != "unknown"
        assert family.documentation
        seen.append(family.name)
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]
