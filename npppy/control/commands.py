"""npppyctl's commands: the words of each, what they ask of npppyd, and how the answer is shown.

A new command is one entry in :data:`COMMANDS` here, and one handler registered with the server.
"""

from __future__ import annotations

import socket

from . import format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TextIO

    from .client import Answer
    from .protocol import Message


class WordError(Exception):
    """The words make no command; *valid* are those that would have."""

    def __init__(self, message: str, valid: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.valid = tuple(valid)


class Command:
    """*parse* takes its words off the list and returns the request's fields; *show* prints the answer as text.

    *endless*: it runs until either side closes the connection.
    """

    def __init__(
        self,
        name: str,
        parse: Callable[[list[str]], Message],
        show: Callable[[Answer, TextIO], None],
        *,
        endless: bool = False,
    ) -> None:
        self.name = name
        self.parse = parse
        self.show = show
        self.endless = endless


def pick(words: list[str], valid: Iterable[str], *, end: bool = False) -> str:
    """Takes a word, which may be shortened, off the list and returns the one of *valid* that it stands for.

    *end*: there might have been no more words, which a list of the valid ones shows first.
    """
    shown = (*(("<cr>",) if end else ()), *valid)
    if not words:
        raise WordError("missing argument:", shown)
    word = words.pop(0)
    found = [choice for choice in valid if choice.startswith(word)]
    if word in found:
        return word
    if len(found) != 1:
        raise WordError(f"{'ambiguous' if found else 'unknown'} argument: {word}", shown)
    return found[0]


def _ppp_id(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 10 and int(word) < 2**32):
        raise ValueError
    return int(word)


def _address(word: str) -> str:
    try:
        socket.inet_pton(socket.AF_INET, word)
    except OSError:
        raise ValueError from None
    return word


def _protocol(word: str) -> str:
    if word.lower() not in ("pppoe", "l2tp", "pptp"):
        raise ValueError
    return word.lower()


#: What a filter's value looks like, and what makes it of a word, with ValueError where that cannot be.
VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ppp-id": ("<ppp-id>", _ppp_id),
    "address": ("<address>", _address),
    "interface": ("<interface>", str),
    "protocol": ("[ pppoe | l2tp | pptp ]", _protocol),
    "realm": ("<realm>", str),
    "username": ("<username>", str),
}
#: A session that comes or goes has no state to ask for.
EVENT_FILTERS = tuple(VALUES)
FILTERS = (*EVENT_FILTERS, "state")
STATES = ("up", "half-open", "any")


def filters(words: list[str], names: tuple[str, ...] = FILTERS) -> Message:
    """``[filter ...]``"""
    chosen: dict[str, Any] = {}
    while words:
        name = pick(words, names, end=True)
        if name in chosen:
            raise WordError(f"repeated argument: {name}")
        if name == "state":
            chosen[name] = pick(words, STATES)
        else:
            chosen[name] = _value(words, *VALUES[name])
    return {"filters": {name.replace("-", "_"): value for name, value in chosen.items()}}


def all_or_filters(words: list[str], names: tuple[str, ...] = FILTERS) -> Message:
    """``all | filter ...``"""
    if pick(words[:1], ("all", *names)) == "all":
        del words[0]
        return {"filters": {}}
    return filters(words, names)


def _value(words: list[str], shown: str, convert: Callable[[str], Any]) -> Any:
    if not words:
        raise WordError("missing argument:", (shown,))
    word = words.pop(0)
    try:
        return convert(word)
    except ValueError:
        raise WordError(f"unknown argument: {word}", (shown,)) from None


COMMANDS: Mapping[str, Command | Mapping[str, Command]] = {
    "session": {
        "brief": Command("session", filters, format.brief),
        "packets": Command("session", filters, format.packets),
        "all": Command("session", filters, format.details),
    },
    "clear": Command("clear", all_or_filters, format.cleared),
    "daemon": Command("daemon", lambda words: {}, format.daemon),
    "monitor": Command("monitor", lambda words: all_or_filters(words, EVENT_FILTERS), format.events, endless=True),
}


def parse(words: Iterable[str]) -> tuple[Command, Message]:
    """The command that *words* name, and the request to send.  Raises :class:`WordError`."""
    left = list(words)
    entry = COMMANDS[pick(left, COMMANDS)]
    if not isinstance(entry, Command):
        entry = entry[pick(left, entry)]
    request = {"command": entry.name, **entry.parse(left)}
    if left:
        raise WordError(f"superfluous argument: {left[0]}")
    return entry, request
