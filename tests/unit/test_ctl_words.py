"""npppyctl's words: abbreviations, and what it says to wrong ones."""

from __future__ import annotations

import pytest

from npppy import ctl
from npppy.control.commands import COMMANDS, Command, WordError, parse

#: Each word in its place: the words before it, the shortest form that is not ambiguous, and the words to add.
PLACES = [
    ("", "session", "s", "brief"),
    ("", "clear", "c", "all"),
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


FILTERS = "  ppp-id\n  address\n  interface\n  protocol\n  realm\n  username\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "missing argument:\nvalid commands/args:\n  session\n  clear\n  daemon\n  monitor\n"),
        ("foo", "unknown argument: foo\nvalid commands/args:\n  session\n  clear\n  daemon\n  monitor\n"),
        (
            "sessions brief",
            "unknown argument: sessions\nvalid commands/args:\n  session\n  clear\n  daemon\n  monitor\n",
        ),
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
        ("clear", f"missing argument:\nvalid commands/args:\n  all\n{FILTERS}  state\n"),
        ("clear a", f"ambiguous argument: a\nvalid commands/args:\n  all\n{FILTERS}  state\n"),
        ("clear all all", "superfluous argument: all\n"),
        ("clear all realm LOCAL", "superfluous argument: realm\n"),
        ("monitor", f"missing argument:\nvalid commands/args:\n  all\n{FILTERS}"),
        ("monitor state up", f"unknown argument: state\nvalid commands/args:\n  all\n{FILTERS}"),
        ("-x", "npppyctl: option -x not recognized\nusage: npppyctl [-jn] [-s socket] command [argument ...]\n"),
        ("-s", "npppyctl: option -s requires argument\nusage: npppyctl [-jn] [-s socket] command [argument ...]\n"),
    ],
)
def test_wrong_words(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(line.split()) == 1
    assert capsys.readouterr() == ("", said)
