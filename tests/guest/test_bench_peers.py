"""``make bench-peers`` in the guest: its servers do what is compared.  How fast any of them is, is not asked here."""

from __future__ import annotations

from typing import Any

import pytest

from bench.carriers import Carrier
from bench.figures import BenchError
from bench.lab import credentials
from bench.peers import guest
from bench.peers.guest import SERVERS, Server, measure
from bench.peers.pppd import Xl2tpd

pytestmark = pytest.mark.guest


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "SETTLED", 0.5)


@pytest.mark.parametrize(
    ("carrier", "server"),
    [
        pytest.param(carrier, server, id=f"{carrier.name}-{server.name}")
        for carrier, servers in SERVERS
        for server in servers
    ],
)
def test_sessions_come_up_as_they_should(carrier: Carrier, server: Server) -> None:
    # Those of npppyd are to be seen by the guest's clock, which counts in steps.
    found = measure(carrier, server, 3 if server.kind else 200)
    assert found.rate > 0
    # A process is some hundred KiB.
    assert found.memory > (100_000 if server.kind else 0)


@pytest.mark.parametrize(("carrier", "server"), [(carrier, servers[1]) for carrier, servers in SERVERS])
def test_passwords_are_checked(carrier: Carrier, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def others(first: int, count: int) -> list[tuple[str, str]]:
        return [(name, "no " + password) for name, password in credentials(first, count)]

    monkeypatch.setattr(guest, "credentials", others)
    with pytest.raises(BenchError, match="npppysim has ended with status 1"):
        measure(carrier, server, 1)


def test_data_that_goes_another_way_is_seen() -> None:
    class ByKernel(Xl2tpd):
        def __init__(self, *given: Any, kernel: bool, **more: Any) -> None:
            super().__init__(*given, kernel=True, **more)

    carrier, _ = SERVERS[1]
    with pytest.raises(BenchError, match="of 1 sessions the kernel carries 1"):
        measure(carrier, Server("xl2tpd", ByKernel, kernel=False), 1)
