"""Rates, in all the forms that servers have them in."""

from __future__ import annotations

import pytest

from npppy.aaa.radius.packet import Code, Pair
from npppy.aaa.radius.rates import Unusable, limits
from npppy.cursor import Malformed
from npppy.pipex.base import Police
from npppy.pipex.police import LEAST_BURST, MOST_BURST, nearest

from .radius_attr import reply

M = 1_000_000


def kbit(rate: int) -> Police | None:
    """The limit of a rate in kbit/s."""
    return nearest(rate * 1000)


def of(*pairs: Pair) -> tuple[object, object]:
    """The limits down and up; a way that nothing is said of is "-"."""
    found = limits(reply(Code.ACCESS_ACCEPT, *pairs))
    return found.get("police_down", "-"), found.get("police_up", "-")


def test_bucket() -> None:
    assert nearest(0) is None
    assert nearest(0, 5000) is None
    assert nearest(80 * M) == Police(10 * M, M)
    assert nearest(M) == Police(125_000, LEAST_BURST)
    assert nearest(M, 20_000) == Police(125_000, 20_000)
    # It must let whole packets pass, and no rate of it is nothing.
    assert nearest(M, 1) == Police(125_000, LEAST_BURST)
    assert nearest(1) == Police(1000, LEAST_BURST)
    assert nearest(1 << 60, 1 << 60) == Police(125 * 10**9, MOST_BURST)


@pytest.mark.parametrize(
    ("text", "down", "up"),
    [
        ("2000/1000", kbit(2000), kbit(1000)),
        ("2000\\1000", kbit(2000), kbit(1000)),
        ("2000:1000", kbit(2000), kbit(1000)),
        ("2000/1000 burst", kbit(2000), kbit(1000)),
        ("2000", kbit(2000), kbit(2000)),
        ("10M/512K", kbit(10_000), kbit(512)),
        ("10m/5", kbit(10_000), kbit(5)),
        # accel-ppp takes it for ten times as much.
        ("1G", kbit(1_000_000), kbit(1_000_000)),
        ("64000B/0", kbit(64), None),
        ("0", None, None),
        ("0/1000", None, kbit(1000)),
        ("rate-limit output 2000000 80000 80000 conform-action transmit", nearest(2 * M, 80_000), "-"),
        # Names of filters, and rates for some hours of the day.
        ("std.ppp", "-", "-"),
        ("1,2000/1000", "-", "-"),
        ("2000 plan", "-", "-"),
        ("2000/", "-", "-"),
        ("2000/1000/500", "-", "-"),
        ("-1", "-", "-"),
        ("\u0662000", "-", "-"),
        ("", "-", "-"),
    ],
)
def test_filter_id(text: str, down: object, up: object) -> None:
    assert of(("Filter-Id", text)) == (down, up)


@pytest.mark.parametrize(
    ("text", "down", "up"),
    [
        # From the NAS's view: the first is from the peer.
        ("1M/2M", kbit(2000), kbit(1000)),
        ("128k", kbit(128), kbit(128)),
        ("64000/0", None, kbit(64)),
        ("1G/1g", kbit(M), kbit(M)),
        # Twice the rate for 8 * 3/4 / 2 = 3 seconds holds 3 seconds of the rate more.
        ("1M/2M 2M/4M 750k/1500k 8/8", nearest(2 * M, 750_000), nearest(M, 375_000)),
        ("1M/2M 2M/4M 750k/1500k 8s/8s 8 500k/1M", nearest(2 * M, 750_000), nearest(M, 375_000)),
        # Thresholds are the rates, and times a second, where they are not given.
        ("1M/2M 2M/4M", nearest(2 * M, 125_000), nearest(M, 62_500)),
        ("1M 2M 1M 4", nearest(M, 250_000), nearest(M, 250_000)),
        # No burst above the rate is none.
        ("10M 1M", nearest(10 * M), nearest(10 * M)),
        ("10M 20M 0 4", nearest(10 * M), nearest(10 * M)),
        ("", None, None),
    ],
)
def test_mikrotik(text: str, down: object, up: object) -> None:
    assert of(("Mikrotik-Rate-Limit", text)) == (down, up)


@pytest.mark.parametrize(
    "text",
    ["fast", "1M/", "1M/2M 3x", "1M 2M 1M 4x", "1M 2M 1M 4 9", "1M 2M 1M 4 8 x", "1M 2M 1M 4 8 1M 1M", "-1M", "1.5M"],
)
def test_mikrotik_wrong(text: str) -> None:
    with pytest.raises(Unusable) as caught:
        of(("Mikrotik-Rate-Limit", text))
    assert caught.value.name == "Mikrotik-Rate-Limit"


@pytest.mark.parametrize(
    ("text", "down", "up"),
    [
        ("lcp:interface-config#1=rate-limit input 2000000 8000 8000 conform-action x", "-", nearest(2 * M, 8000)),
        ("lcp:interface-config#2=rate-limit output 2000000 80000 80000 x", nearest(2 * M, 80_000), "-"),
        ("lcp:interface-config=rate-limit output 2000000", nearest(2 * M), "-"),
        ("ip:qos-policy-out=add-class(sub,(class-default),police(512000,96000,0,drop))", nearest(512_000, 96_000), "-"),
        ("ip:qos-policy-in=add-class(sub,(class-default),police(512000))", "-", nearest(512_000)),
        ("ip:sub-qos-policy-in=512000", "-", nearest(512_000)),
        ("subscriber:sub-qos-policy-out=512000", nearest(512_000), "-"),
        # Policies of the NAS, what is for some packets, and what is of something else.
        ("subscriber:sub-qos-policy-in=PM_SPEED_1000", "-", "-"),
        ("lcp:interface-config=rate-limit output access-group 101 2000000 8000 8000", "-", "-"),
        ("ip:addr-pool=pool4", "-", "-"),
        ("rate-limit output fast", "-", "-"),
    ],
)
def test_cisco(text: str, down: object, up: object) -> None:
    assert of(("Cisco-AVPair", text)) == (down, up)


def test_cisco_both() -> None:
    both: tuple[Pair, Pair] = (
        ("Cisco-AVPair", "lcp:interface-config#1=rate-limit input 1000000 20000 20000 x"),
        ("Cisco-AVPair", "lcp:interface-config#1=rate-limit output 2000000 30000 30000 x"),
    )
    assert of(*both) == (nearest(2 * M, 30_000), nearest(M, 20_000))


def test_numbers() -> None:
    assert of(("WISPr-Bandwidth-Max-Down", 2 * M), ("WISPr-Bandwidth-Max-Up", M)) == (kbit(2000), kbit(1000))
    assert of(("RP-Downstream-Speed-Limit", 2000), ("RP-Upstream-Speed-Limit", 1000)) == (kbit(2000), kbit(1000))
    assert of(("PPPD-Downstream-Speed-Limit", 64), ("PPPD-Upstream-Speed-Limit", 0)) == (kbit(64), None)
    assert of(("WISPr-Bandwidth-Max-Down", M)) == (kbit(1000), "-")
    with pytest.raises(Malformed):
        of(("WISPr-Bandwidth-Max-Down", b"\1"))


def test_precedence() -> None:
    """As the module says it, for each way by itself."""
    pairs: list[Pair] = [
        ("Mikrotik-Rate-Limit", "6M"),
        ("Cisco-AVPair", "ip:sub-qos-policy-out=5000000"),
        ("Filter-Id", "4000"),
        ("RP-Downstream-Speed-Limit", 3000),
        ("PPPD-Downstream-Speed-Limit", 2000),
        ("WISPr-Bandwidth-Max-Down", M),
    ]
    while pairs:
        expected = kbit(1000 * len(pairs))
        assert of(*pairs)[0] == of(*reversed(pairs))[0] == expected
        del pairs[0]
    assert of(("WISPr-Bandwidth-Max-Up", M), ("RP-Downstream-Speed-Limit", 2000)) == (kbit(2000), kbit(1000))


def test_shared() -> None:
    """All sessions of one plan have one limit."""
    one, other = (limits(reply(Code.ACCESS_ACCEPT, ("Filter-Id", "2000/1000")))["police_up"] for _ in range(2))
    assert one is other
