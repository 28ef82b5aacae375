"""PPTP calls that the kernel carries: what is left to do."""

from __future__ import annotations

import pytest

from npppy.pptp import gre
from npppy.pptp.sweeper import INTERVAL, TURNS
from tests.unit.pppoe_fake import IP_PACKET, LCP_REQUEST, FakePpp
from tests.unit.pptp_net import PAC, PNS, Kernel, Net
from tests.unit.test_pptp_call import made


def test_what_the_kernel_carries() -> None:
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    _, _, one = net.called(pac, 7)
    kernel = Kernel(one)
    made(one).send(LCP_REQUEST)
    # What the kernel passes on has been counted.
    kernel.expected = kernel.acked = 6
    for number in (5, 5, 3):
        net.deliver(PNS, PAC, gre.encode(one.id, number, 99, LCP_REQUEST))
    net.deliver(PNS, PAC, gre.acknowledgment(one.id, 99))
    assert len(ppp.sessions[0].frames) == 3
    assert kernel.injected == [LCP_REQUEST]
    assert not net.sent
    assert (one.window.expected, one.window.peer_acked) == (0, 0)
    net.run(5)
    assert kernel.injected == [LCP_REQUEST]


def test_acknowledgments_for_the_kernel() -> None:
    """Only what nothing has acknowledged for a while, and only the end of a burst."""
    net = Net()
    pac = net.pac()
    _, _, one = net.called(pac, 7)
    kernel = Kernel(one)
    # In a stream of packets the kernel sees to it.
    for _ in range(40):
        kernel.expected += 1
        net.run(0.25)
    assert not kernel.injected
    net.run(2 * TURNS * INTERVAL + 1)
    assert kernel.injected == [b""]
    net.run(60)
    assert kernel.injected == [b""]


@pytest.mark.parametrize("seen", [True, False])
def test_acknowledgments_of_what_the_kernel_does_not_carry(seen: bool) -> None:
    """What it passes on, counted or, as fragments are, not: without data the other way, too."""
    net = Net()
    ppp = FakePpp()
    pac = net.pac(ppp)
    _, _, one = net.called(pac, 7)
    kernel = Kernel(one)
    first = 0xFFFFFFF0
    kernel.expected = kernel.acked = first
    for number in range(first, first + 100):
        if seen:
            kernel.expected = number + 1 & 0xFFFFFFFF
        net.deliver(PNS, PAC, gre.encode(one.id, number & 0xFFFFFFFF, -1, IP_PACKET))
        net.run(0.01)
    assert len(ppp.sessions[0].frames) == 100
    assert kernel.injected == [b""] * (100 // gre.ACK_PACKETS)
    assert kernel.expected == first + 100 & 0xFFFFFFFF
    # One that is late changes nothing.
    net.deliver(PNS, PAC, gre.encode(one.id, first, -1, IP_PACKET))
    assert kernel.expected == first + 100 & 0xFFFFFFFF
