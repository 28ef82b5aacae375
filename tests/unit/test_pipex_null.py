from __future__ import annotations

import pytest

from npppy.pipex.base import Backend, ConflictError, Counters, Flow, FlowSpec
from npppy.pipex.null import NullBackend

from .ippackets import number


def spec(address: str = "10.0.0.2") -> FlowSpec:
    return FlowSpec(
        session=1, domain=0, interface="tun0", address=number(address), mtu=1400, mru=1400, send=lambda frame: None
    )


def test_counts():
    null = NullBackend()
    backend: Backend = null
    flow: Flow = backend.add(spec(), 5.0)
    assert flow.last_active() == 5.0
    assert flow.counters() == Counters()
    flow.input(b"whatever", 6.0)
    assert flow.last_active() == 6.0
    assert flow.counters() == Counters(in_bytes=8, in_packets=1)
    assert len(null) == 1
    assert flow.close() == Counters(in_bytes=8, in_packets=1)
    assert flow.close() == Counters(in_bytes=8, in_packets=1)
    assert len(null) == 0


def test_conflict():
    backend = NullBackend()
    flow = backend.add(spec(), 0.0)
    with pytest.raises(ConflictError):
        backend.add(spec(), 0.0)
    flow.close()
    backend.add(spec(), 0.0)
