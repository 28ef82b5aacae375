"""npppyctl's words: abbreviations, and what it says to wrong ones."""

from __future__ import annotations

import pytest

from npppy import ctl
from npppy.control import format
from npppy.control.commands import COMMANDS, Command, WordError, parse

#: Each word in its place: the words before it, the shortest form that is not ambiguous, and the words to add.
PLACES = [
    ("", "session", "s", "brief"),
    ("", "clear", "cl", "all"),
    ("", "capture", "ca", "ppp-id 1"),
    ("", "monitor", "m", "all"),
    ("session", "brief", "b", ""),
    ("session", "packets", "p", ""),
    ("session", "all", "a", ""),
    ("session brief", "ppp-id", "pp", "1"),
    ("session packets", "protocol", "pr", "l2tp"),
    ("session all", "address", "a", "10.0.0.1"),
    ("session all", "interface", "i", "npx0"),
    ("session all", "realm", "r", "LOCAL"),
    ("session all", "username", "u", "alice"),
    ("session all", "state", "s", "any"),
    ("session all state", "up", "u", ""),
    ("session all state", "half-open", "h", ""),
    ("session all state", "any", "a", ""),
    ("clear", "all", "al", ""),
    ("clear", "address", "ad", "10.0.0.1"),
    ("clear", "ppp-id", "pp", "1"),
    ("clear", "protocol", "pr", "pptp"),
    ("clear realm LOCAL", "address", "a", "10.0.0.1"),
    ("monitor", "all", "al", ""),
    ("monitor", "address", "ad", "10.0.0.1"),
    ("monitor", "username", "u", "alice"),
    ("pipex ppp-id 1", "police", "p", "off"),
    ("pipex ppp-id 1", "user", "u", ""),
    ("pipex ppp-id 1", "ebpf", "e", ""),
    ("", "radius", "r", ""),
    ("", "tunnel", "t", "all"),
    ("tunnel", "brief", "b", ""),
    ("tunnel", "all", "a", ""),
    ("tunnel all", "id", "i", "7"),
    ("tunnel all", "peer", "pe", "2001:db8::1"),
    ("tunnel all", "protocol", "pr", "pptp"),
    ("tunnel all", "name", "n", "L2TP"),
    ("tunnel all", "state", "s", "closing"),
    ("tunnel all state", "established", "e", ""),
    ("clear", "tunnel", "t", "all"),
    ("clear tunnel", "all", "a", ""),
    ("clear tunnel", "peer", "pe", "192.0.2.1"),
    ("clear tunnel", "protocol", "pr", "l2tp"),
]


@pytest.mark.parametrize(("before", "word", "shortest", "after"), PLACES)
def test_a_word_may_be_shortened_until_it_is_ambiguous(before: str, word: str, shortest: str, after: str) -> None:
    whole = parse([*before.split(), word, *after.split()])
    for length in range(len(shortest), len(word)):
        assert parse([*before.split(), word[:length], *after.split()]) == whole
    for length in range(len(shortest)):
        with pytest.raises(WordError, match="ambiguous"):
            parse([*before.split(), word[:length], *after.split()])


@pytest.mark.parametrize(
    ("line", "filters"),
    [
        ("", {}),
        ("ppp-id 0", {"ppp_id": 0}),
        ("ppp-id 4294967295", {"ppp_id": 4294967295}),
        ("address 10.0.0.1", {"address": "10.0.0.1"}),
        ("protocol PPPoE", {"protocol": "pppoe"}),
        (
            "u alice realm LOCAL interface npx0 pro L2TP state any",
            {"username": "alice", "realm": "LOCAL", "interface": "npx0", "protocol": "l2tp", "state": "any"},
        ),
    ],
)
@pytest.mark.parametrize("view", ["brief", "packets", "all"])
def test_every_view_takes_filters(view: str, line: str, filters: dict[str, object]) -> None:
    command, request = parse(["session", view, *line.split()])
    assert request == {"command": "session", "filters": filters}
    sessions = COMMANDS["session"]
    assert not isinstance(sessions, Command)
    assert command is sessions[view]


def test_clear_and_monitor_take_all_or_filters() -> None:
    assert parse(["clear", "all"])[1] == {"command": "clear", "filters": {}}
    assert parse(["clear", "ppp-id", "5", "username", "x"])[1] == {
        "command": "clear",
        "filters": {"ppp_id": 5, "username": "x"},
    }
    command, request = parse(["monitor", "realm", "all"])
    assert request == {"command": "monitor", "filters": {"realm": "all"}}
    assert command.endless


def test_tunnels() -> None:
    for view in ("brief", "all"):
        assert parse(["tunnel", view])[1] == {"command": "tunnel", "filters": {}}
    filters = {"id": 65536, "peer": "2001:db8::1", "name": "L2TP", "protocol": "pptp", "state": "half-open"}
    words = ["id", "65536", "peer", "2001:db8::1", "name", "L2TP", "protocol", "PPTP", "state", "half-open"]
    assert parse(["tunnel", "all", *words])[1] == {"command": "tunnel", "filters": filters}
    assert parse(["clear", "tunnel", *words])[1] == {"command": "clear-tunnel", "filters": filters}
    assert parse(["clear", "tunnel", "all"])[1] == {"command": "clear-tunnel", "filters": {}}


def test_pipex_shows_or_changes() -> None:
    assert parse(["pipex"])[1] == {"command": "pipex"}
    assert parse(["pipex", "ppp-id", "7", "user"])[1] == {"command": "pipex", "ppp_id": 7, "carry": "user"}
    assert parse(["pipex", "ppp-id", "7", "ebpf"])[1] == {"command": "pipex", "ppp_id": 7, "carry": "ebpf"}
    assert parse(["pipex", "ppp-id", "7", "police", "off"])[1] == {"command": "pipex", "ppp_id": 7, "police": None}


@pytest.mark.parametrize(
    ("line", "police"),
    [
        ("10M/2M", {"down": 10_000_000, "up": 2_000_000}),
        ("10M", {"down": 10_000_000, "up": 10_000_000}),
        ("512k/64k", {"down": 512_000, "up": 64_000}),
        ("1g/1G", {"down": 10**9, "up": 10**9}),
        ("1.5m/0.064M", {"down": 1_500_000, "up": 64_000}),
        ("9600/0", {"down": 9600, "up": 0}),
        ("0.001k", {"down": 1, "up": 1}),
        (
            "10M/2M burst 100k",
            {"down": 10_000_000, "up": 2_000_000, "burst_down": 100_000, "burst_up": 100_000},
        ),
        (
            "10M/2M bu 100k/3000",
            {"down": 10_000_000, "up": 2_000_000, "burst_down": 100_000, "burst_up": 3000},
        ),
    ],
)
def test_rates(line: str, police: dict[str, int]) -> None:
    """As subscribers are told: what they receive first."""
    request = parse(["pipex", "ppp-id", "7", "police", *line.split()])[1]
    assert request == {"command": "pipex", "ppp_id": 7, "police": police}


def test_capture() -> None:
    command, request = parse(["capture", "ppp-id", "7", "-w", "x.pcap", "-c", "10", "-s", "96"])
    assert request == {"command": "capture", "ppp_id": 7, "file": "x.pcap", "count": 10, "snaplen": 96}
    assert command.endless
    command.take_show(request, json=False)
    assert request == {"command": "capture", "ppp_id": 7, "count": 10, "snaplen": 96}, "the file is npppyctl's own"


@pytest.mark.parametrize(
    ("line", "fields"),
    [("session brief", format.BRIEF_COLUMNS), ("session packets", format.PACKETS_COLUMNS), ("session all", None)],
)
def test_only_what_is_shown_is_asked_for(line: str, fields: tuple[str, ...] | None) -> None:
    command, request = parse(line.split())
    command.take_show(request, json=True)
    assert "fields" not in request
    command.take_show(request, json=False)
    assert request.get("fields") == fields


FILTERS = "  ppp-id\n  address\n  interface\n  protocol\n  realm\n  username\n"


TOP = "  session\n  clear\n  daemon\n  monitor\n  pipex\n  radius\n  capture\n  tunnel\n"
TUNNEL = "  id\n  peer\n  name\n  protocol\n  state\n"
RATES = "[ off | <down>[/<up>] ]"
OPTIONS = "  -c\n  -s\n  -w\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", f"missing argument:\nvalid commands/args:\n{TOP}"),
        ("foo", f"unknown argument: foo\nvalid commands/args:\n{TOP}"),
        ("sessions brief", f"unknown argument: sessions\nvalid commands/args:\n{TOP}"),
        ("session", "missing argument:\nvalid commands/args:\n  brief\n  packets\n  all\n"),
        ("session x", "unknown argument: x\nvalid commands/args:\n  brief\n  packets\n  all\n"),
        ("session all p 1", f"ambiguous argument: p\nvalid commands/args:\n  <cr>\n{FILTERS}  state\n"),
        ("session all x", f"unknown argument: x\nvalid commands/args:\n  <cr>\n{FILTERS}  state\n"),
        ("session all state", "missing argument:\nvalid commands/args:\n  up\n  half-open\n  any\n"),
        ("session all state x", "unknown argument: x\nvalid commands/args:\n  up\n  half-open\n  any\n"),
        ("session all realm a realm b", "repeated argument: realm\n"),
        ("session all ppp-id", "missing argument:\nvalid commands/args:\n  <ppp-id>\n"),
        ("session all ppp-id -1", "unknown argument: -1\nvalid commands/args:\n  <ppp-id>\n"),
        ("session all ppp-id 4294967296", "unknown argument: 4294967296\nvalid commands/args:\n  <ppp-id>\n"),
        ("session all ppp-id ٣", "unknown argument: ٣\nvalid commands/args:\n  <ppp-id>\n"),
        ("session all address", "missing argument:\nvalid commands/args:\n  <address>\n"),
        ("session all address 10.1", "unknown argument: 10.1\nvalid commands/args:\n  <address>\n"),
        ("session all address ::1", "unknown argument: ::1\nvalid commands/args:\n  <address>\n"),
        ("session all interface", "missing argument:\nvalid commands/args:\n  <interface>\n"),
        ("session all realm", "missing argument:\nvalid commands/args:\n  <realm>\n"),
        ("session all username", "missing argument:\nvalid commands/args:\n  <username>\n"),
        ("session all protocol", "missing argument:\nvalid commands/args:\n  [ pppoe | l2tp | pptp ]\n"),
        ("session all protocol ppp", "unknown argument: ppp\nvalid commands/args:\n  [ pppoe | l2tp | pptp ]\n"),
        ("clear", f"missing argument:\nvalid commands/args:\n  all\n{FILTERS}  state\n  tunnel\n"),
        ("clear a", f"ambiguous argument: a\nvalid commands/args:\n  all\n{FILTERS}  state\n  tunnel\n"),
        ("clear realm a tunnel", f"unknown argument: tunnel\nvalid commands/args:\n  <cr>\n{FILTERS}  state\n"),
        ("clear tunnel", f"missing argument:\nvalid commands/args:\n  all\n{TUNNEL}"),
        ("clear tunnel 7", f"unknown argument: 7\nvalid commands/args:\n  all\n{TUNNEL}"),
        ("clear tunnel all id 7", "superfluous argument: id\n"),
        ("tunnel", "missing argument:\nvalid commands/args:\n  brief\n  all\n"),
        ("tunnel packets", "unknown argument: packets\nvalid commands/args:\n  brief\n  all\n"),
        ("tunnel all ppp-id 7", f"unknown argument: ppp-id\nvalid commands/args:\n  <cr>\n{TUNNEL}"),
        ("tunnel all id", "missing argument:\nvalid commands/args:\n  <tunnel-id>\n"),
        ("tunnel all id 4294967296", "unknown argument: 4294967296\nvalid commands/args:\n  <tunnel-id>\n"),
        ("tunnel all peer 10.1", "unknown argument: 10.1\nvalid commands/args:\n  <address>\n"),
        ("tunnel all peer 1::2::3", "unknown argument: 1::2::3\nvalid commands/args:\n  <address>\n"),
        ("tunnel all protocol pppoe", "unknown argument: pppoe\nvalid commands/args:\n  [ l2tp | pptp ]\n"),
        ("tunnel all name", "missing argument:\nvalid commands/args:\n  <tunnel>\n"),
        ("tunnel all state up", "unknown argument: up\nvalid commands/args:\n  established\n  half-open\n  closing\n"),
        ("clear all all", "superfluous argument: all\n"),
        ("clear all realm LOCAL", "superfluous argument: realm\n"),
        ("monitor", f"missing argument:\nvalid commands/args:\n  all\n{FILTERS}"),
        ("monitor state up", f"unknown argument: state\nvalid commands/args:\n  all\n{FILTERS}"),
        ("pipex x", "unknown argument: x\nvalid commands/args:\n  <cr>\n  ppp-id\n"),
        ("pipex ppp-id", "missing argument:\nvalid commands/args:\n  <ppp-id>\n"),
        ("pipex ppp-id x", "unknown argument: x\nvalid commands/args:\n  <ppp-id>\n"),
        ("pipex ppp-id 1", "missing argument:\nvalid commands/args:\n  police\n  user\n  ebpf\n"),
        ("pipex ppp-id 1 user now", "superfluous argument: now\n"),
        ("pipex ppp-id 1 police", f"missing argument:\nvalid commands/args:\n  {RATES}\n"),
        *(
            (f"pipex ppp-id 1 police {word}", f"unknown argument: {word}\nvalid commands/args:\n  {RATES}\n")
            for word in (
                *("of", "10x", "M", "1MM", "-1", "1.", ".5M", "1.2.3", "1e6", "1/", "/1", "1/2/3", "0.0001k", "٣"),
                "1" * 13,
            )
        ),
        ("pipex ppp-id 1 police off x", "superfluous argument: x\n"),
        ("pipex ppp-id 1 police 1M x", "unknown argument: x\nvalid commands/args:\n  <cr>\n  burst\n"),
        ("pipex ppp-id 1 police 1M burst", "missing argument:\nvalid commands/args:\n  <octets down>[/<octets up>]\n"),
        ("pipex ppp-id 1 police 1M burst 1 x", "superfluous argument: x\n"),
        ("capture", "missing argument:\nvalid commands/args:\n  ppp-id\n"),
        ("capture all", "unknown argument: all\nvalid commands/args:\n  ppp-id\n"),
        ("capture ppp-id 1 x", f"unknown argument: x\nvalid commands/args:\n  <cr>\n{OPTIONS}"),
        ("capture ppp-id 1 -", f"ambiguous argument: -\nvalid commands/args:\n  <cr>\n{OPTIONS}"),
        ("capture ppp-id 1 -w", "missing argument:\nvalid commands/args:\n  <file>\n"),
        ("capture ppp-id 1 -w a -w b", "repeated argument: -w\n"),
        ("capture ppp-id 1 -c 0", "unknown argument: 0\nvalid commands/args:\n  <frames>\n"),
        ("capture ppp-id 1 -s 65536", "unknown argument: 65536\nvalid commands/args:\n  <octets>\n"),
        ("-x", "npppyctl: option -x not recognized\nusage: npppyctl [-jn] [-s socket] command [argument ...]\n"),
        ("-s", "npppyctl: option -s requires argument\nusage: npppyctl [-jn] [-s socket] command [argument ...]\n"),
    ],
)
def test_wrong_words(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(line.split()) == 1
    assert capsys.readouterr() == ("", said)
