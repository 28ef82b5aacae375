from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest

from npppy.pipex.base import Backend, ConflictError, Counters, Flow, FlowSpec
from npppy.pipex.null import NullBackend

from .ippackets import number


def spec(address: str = "10.0.0.2", **more: Any) -> FlowSpec:
    values = {"session": 1, "domain": 0, "interface": "tun0", "mtu": 1400, "mru": 1400, "send": lambda frame: None}
    return FlowSpec(address=number(address), **values | more)


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


def test_conflict_of_networks():
    backend = NullBackend()
    networks = (IPv4Network("192.0.2.0/24"),)
    flow = backend.add(spec(networks=networks), 0.0)
    with pytest.raises(ConflictError, match=r"network 192\.0\.2\.0/24 is taken"):
        backend.add(spec("10.0.0.3", networks=networks), 0.0)
    flow.close()
    flow = backend.add(spec("10.0.0.3", networks=networks), 0.0)
    flow.police(None, None)
    flow.close()
    assert flow.late() == Counters()
