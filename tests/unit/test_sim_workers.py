"""How npppysim's load is divided between processes, and what they show while it goes on."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from npppy.sim.access import Clients, Ethernet, Tunnels
from npppy.sim.load import Ending, Stage
from npppy.sim.main import UsageError, divisible, setup
from npppy.sim.options import parser
from npppy.sim.progress import Progress, Snapshot, together
from npppy.sim.run import Setup
from npppy.sim.workers import shares

CARRIERS = {
    "pppoe": ["pppoe", "--interface", "eth0"],
    "l2tp": ["l2tp", "--server", "192.0.2.1"],
    "pptp": ["pptp", "--server", "192.0.2.1"],
}


def chosen(carrier: str, *words: str) -> Setup:
    given = parser().parse_args([*CARRIERS[carrier], *words])
    divisible(given)
    return setup(given)


@pytest.mark.parametrize(("sessions", "workers"), [(100, 2), (100, 3), (7, 7), (100_000, 8)])
def test_shares(sessions: int, workers: int) -> None:
    more = ("--rate", "30", "--window", "10", "--churn", "6/s", "--traffic", "100@3000", "--first", "41")
    whole = chosen("pppoe", "--sessions", str(sessions), *more, "--reconnect", "2", "--redial", "3")
    parts = shares(whole, workers)
    assert len(parts) == workers
    numbers = [
        number for part in parts for number in range(part.plan.first, part.plan.first + part.plan.sessions)
    ]
    assert numbers == list(range(41, 41 + sessions))
    sizes = [part.plan.sessions for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sum(part.plan.rate for part in parts) == pytest.approx(30)
    assert sum(part.plan.window for part in parts) == 10
    assert min(part.plan.window for part in parts) >= 1
    assert sum(part.plan.churn for part in parts) == pytest.approx(6)
    assert sum(part.data.rate for part in parts if part.data is not None) == pytest.approx(3000)
    for part in parts:
        assert (part.plan.hold, part.plan.reconnects, part.plan.redial) == (10, 2, 3)
        # Credentials are those of the whole.
        assert part.credentials(part.plan.first).name == b"user%d" % part.plan.first


@pytest.mark.parametrize("carrier", ["l2tp", "pptp"])
def test_shares_of_tunnels(carrier: str) -> None:
    bind = [word for last in range(3) for word in ("--bind", f"198.51.100.{last}")]
    parts = shares(chosen(carrier, "--sessions", "100", "--tunnels", "5", *bind, "--workers", "2"), 2)
    found = []
    for part in parts:
        assert isinstance(part.access, Tunnels | Clients)
        found.append((part.access.tunnels, [str(place)[-3:] for place in part.access.bind]))
    # The second one goes on with the addresses where the first one ends.
    (two, addresses), (three, others) = found
    assert (two, three) == (2, 3)
    assert addresses == others[1:] + others[:1]


def test_shares_of_clients_with_a_connection_each() -> None:
    parts = shares(chosen("pptp", "--sessions", "100", "--first", "11"), 3)
    for part in parts:
        assert isinstance(part.access, Clients)
        assert part.access.tunnels == part.plan.sessions
        assert part.access.numbers == range(11, 111)


@pytest.mark.parametrize(
    ("carrier", "words"),
    [
        ("pppoe", ["--sessions", "3"]),
        ("pppoe", ["--macs", "one"]),
        ("pppoe", ["--tun"]),
        ("pppoe", ["--window", "3"]),
        ("l2tp", ["--tunnels", "3"]),
        ("l2tp", []),
        ("l2tp", ["--tunnels", "4", "--bind", "198.51.100.1:1701"]),
        ("pptp", ["--tunnels", "2"]),
    ],
)
def test_what_cannot_be_shared(carrier: str, words: list[str]) -> None:
    words = words if "--sessions" in words else ["--sessions", "100", *words]
    assert chosen(carrier, *words)
    with pytest.raises(UsageError, match=r".+"):
        chosen(carrier, *words, "--workers", "4")


def test_what_can() -> None:
    assert isinstance(chosen("pppoe", "--sessions", "4", "--workers", "4").access, Ethernet)
    bind = ("--bind", "198.51.100.1", "--bind", "198.51.100.2")
    assert chosen("l2tp", "--sessions", "4", "--tunnels", "4", "--workers", "4", *bind)
    assert chosen("pptp", "--sessions", "4", "--workers", "4", *bind)


# Options.


def test_the_shape_of_a_load() -> None:
    plain = chosen("pppoe").plan
    assert (plain.hold, plain.churn, plain.churn_by, plain.reconnects, plain.redial) == (0, 0, (Ending.LCP,), 0, 0)
    assert chosen("pppoe", "--churn", "5/s").plan.hold == 10
    assert chosen("pppoe", "--traffic", "64@10").plan.hold == 10
    assert chosen("pppoe", "--churn", "5", "--hold", "3").plan.hold == 3
    assert chosen("pppoe", "--churn", "0.5").plan.churn == 0.5
    ways = {"pppoe": "padt", "l2tp": "cdn", "pptp": "clear"}
    for carrier, call in ways.items():
        plan = chosen(carrier, "--churn", "5/s", "--churn-by", f"none,{call},lcp").plan
        assert plan.churn_by == (Ending.NONE, Ending.CALL, Ending.LCP)
    plan = chosen("pppoe", "--reconnect", "3", "--redial", "2.5").plan
    assert (plan.reconnects, plan.redial, plan.hold) == (3, 2.5, 0)


@pytest.mark.parametrize(
    "words",
    [
        ["--churn", "0"],
        ["--churn", "inf"],
        ["--churn", "nan"],
        ["--churn", "5/m"],
        ["--churn-by", "lcp,cdn"],
        ["--churn-by", ""],
        ["--reconnect", "-1"],
        ["--redial", "soon"],
        ["--workers", "0"],
        ["--report", "xml"],
    ],
)
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        chosen("pppoe", *words)
    assert exit.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("carrier", "words"),
    [
        ("pppoe", ["--reconnect", "1", "--hold", "inf"]),
        ("pppoe", ["--redial", "inf"]),
        ("pppoe", ["--churn", "5/s", "--hold", "0"]),
        ("pppoe", ["--churn-by", "none"]),
        ("pppoe", ["--ping-count", "2"]),
        ("pppoe", ["--ping-interval", "2"]),
        ("pppoe", ["--ping-size", "100"]),
        ("pptp", ["--sessions", "9", "--tunnels", "3", "--churn", "1", "--churn-by", "lcp,none"]),
    ],
)
def test_words_that_do_not_go_together(carrier: str, words: list[str]) -> None:
    with pytest.raises(UsageError):
        chosen(carrier, *words)


def test_a_power_cut_of_pptp_needs_a_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npppy.sim.tcp.can_hush", lambda: False)
    cut = ["--reconnect", "1"], ["--churn", "1", "--churn-by", "none"]
    for words in cut:
        with pytest.raises(UsageError, match="CAP_NET_ADMIN"):
            chosen("pptp", *words)
        assert chosen("l2tp", *words)
    assert chosen("pptp", "--churn", "1")


# Progress.


def found(**more: int) -> Snapshot:
    zero = {"sessions": 100, "round": 1}
    names = ("came", "set-ups", "up", "dialling", "failed", "lost", "churned", "pinged", "answered")
    return {"stage": Stage.HOLDING} | dict.fromkeys(names, 0) | zero | more


def test_what_several_show_is_put_together() -> None:
    whole = together(
        [found(stage=Stage.HOLDING, up=10, lost=1, round=2), found(stage=Stage.DIALLING, up=5, lost=2, round=2)]
    )
    assert whole["stage"] == Stage.DIALLING
    assert (whole["up"], whole["lost"], whole["sessions"], whole["round"]) == (15, 3, 200, 2)
    one = found(sent=5, received=4, gone=1)
    assert together([one, one])["sent"] == 10
    # They are looked at again.
    assert one["sent"] == 5


def test_progress_tells_what_happens_now() -> None:
    progress = Progress()
    line = progress.line(found(stage=Stage.DIALLING, came=0), 10.0)
    assert line == "dialling: 0 of 100 came up, 0 up (0/s), 0 dialling"
    now: Snapshot = {}
    for step in range(1, 21):
        now = found(stage=Stage.DIALLING, came=5 * step, up=5 * step, dialling=7, **{"set-ups": 5 * step})
        line = progress.line(now, 10 + step / 4)
    assert line == "dialling: 100 of 100 came up, 100 up (20/s), 7 dialling"
    # A while later nothing happens any more, whatever did before.
    for step in range(1, 21):
        line = progress.line(now | {"stage": Stage.HOLDING, "lost": 3 if step > 15 else 0}, 15 + step / 4)
    assert line == "holding: 100 up (0/s), 7 dialling, 3 lost (2/s)"


def test_progress_of_data_and_of_rounds() -> None:
    progress = Progress()
    progress.line(found(sent=0, received=0, gone=0), 1.0)
    line = progress.line(found(sent=1000, received=900, gone=4, round=3, stage=Stage.DIALLING, came=9), 2.0)
    assert line.startswith("dialling 2: 9 of 100 came up, ")
    assert line.endswith("1000/s packets sent, 900/s received, 4 lost")
    assert "1 of 2 pings answered" in progress.line(found(pinged=2, answered=1, sent=0, received=0, gone=0), 3.0)


def test_addresses() -> None:
    access = chosen("pptp", "--bind", "192.0.2.7", "--sessions", "4", "--workers", "2").access
    assert isinstance(access, Clients)
    assert access.share(1, 2).bind == (IPv4Address("192.0.2.7"),)  # type: ignore[attr-defined]
