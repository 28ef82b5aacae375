"""npppyctl's commands: the words of each, what they ask of npppyd, and how the answer is shown.

A new command is one entry in :data:`COMMANDS` here, and one handler registered with the server.
"""

from __future__ import annotations

import socket

from . import format, watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TextIO

    from .client import Answer
    from .protocol import Message

    Show = Callable[[Answer, TextIO], None]


class WordError(Exception):
    """The words make no command; *valid* are those that would have."""

    def __init__(self, message: str, valid: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.valid = tuple(valid)


class Command:
    """*parse* takes its words off the list and returns the request's fields; *show* prints the answer as text.

    *name* is what npppyd knows it by, unless the fields have another ``command``.
    *endless*: it runs until either side closes the connection.  *into*: a field of the request is not for npppyd, but
    names the file that the answer goes to; what it makes of the name shows the answer then, in text and JSON alike.
    *columns*: what *show* needs of a row; the rest is not even asked for.
    """

    def __init__(
        self,
        name: str,
        parse: Callable[[list[str]], Message],
        show: Show,
        *,
        endless: bool = False,
        into: tuple[str, Callable[[str], Show]] | None = None,
        columns: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.parse = parse
        self.show = show
        self.endless = endless
        self._into = into
        self._columns = columns

    def take_show(self, request: Message, json: bool) -> Show:
        """What shows the answer to *request*, which loses what is not for npppyd."""
        if self._into is not None and (file := request.pop(self._into[0], None)) is not None:
            return self._into[1](file)
        if json:
            return format.json_lines
        if self._columns:
            request["fields"] = self._columns
        return self.show


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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(low: int, high: int) -> Callable[[str], int]:
    def convert(word: str) -> int:
        if not (_is_number(word) and len(word) <= 10 and low <= int(word) <= high):
            raise ValueError
        return int(word)

    return convert


def _address(word: str) -> str:
    try:
        socket.inet_pton(socket.AF_INET, word)
    except OSError:
        raise ValueError from None
    return word


def _any_address(word: str) -> str:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in word else socket.AF_INET, word)
    except OSError:
        raise ValueError from None
    return word


def _protocol(*known: str) -> tuple[str, Callable[[str], str]]:
    def convert(word: str) -> str:
        if word.lower() not in known:
            raise ValueError
        return word.lower()

    return f"[ {' | '.join(known)} ]", convert


class Filters:
    """What may be asked for."""

    def __init__(self, values: Mapping[str, tuple[str, Callable[[str], Any]]], states: tuple[str, ...] = ()) -> None:
        """*values*: what a filter's value looks like, and what makes it of a word, with ValueError where that cannot
        be; *states* are those that the filter ``state`` has, if there is one."""
        self.values = values
        self.states = states
        self.names = (*values, "state") if states else tuple(values)


_PPP_ID = ("<ppp-id>", _number(0, 2**32 - 1))
#: A session that comes or goes has no state to ask for.
EVENTS = Filters(
    {
        "ppp-id": _PPP_ID,
        "address": ("<address>", _address),
        "interface": ("<interface>", str),
        "protocol": _protocol("pppoe", "l2tp", "pptp"),
        "realm": ("<realm>", str),
        "username": ("<username>", str),
    }
)
SESSIONS = Filters(EVENTS.values, ("up", "half-open", "any"))
TUNNELS = Filters(
    {
        "id": ("<tunnel-id>", _number(0, 2**32 - 1)),
        "peer": ("<address>", _any_address),
        "name": ("<tunnel>", str),
        "protocol": _protocol("l2tp", "pptp"),
    },
    ("established", "half-open", "closing"),
)


def filters(words: list[str], known: Filters = SESSIONS) -> Message:
    """``[filter ...]``"""
    chosen: dict[str, Any] = {}
    while words:
        name = pick(words, known.names, end=True)
        if name in chosen:
            raise WordError(f"repeated argument: {name}")
        if name == "state":
            chosen[name] = pick(words, known.states)
        else:
            chosen[name] = _value(words, *known.values[name])
    return {"filters": {name.replace("-", "_"): value for name, value in chosen.items()}}


def all_or_filters(words: list[str], known: Filters = SESSIONS) -> Message:
    """``all | filter ...``"""
    if pick(words[:1], ("all", *known.names)) == "all":
        del words[0]
        return {"filters": {}}
    return filters(words, known)


def tunnel_filters(words: list[str]) -> Message:
    """``[filter ...]``"""
    return filters(words, TUNNELS)


def clear(words: list[str]) -> Message:
    """``[tunnel] all | filter ...``"""
    if pick(words[:1], ("all", *SESSIONS.names, "tunnel")) != "tunnel":
        return all_or_filters(words)
    del words[0]
    return {"command": "clear-tunnel", **all_or_filters(words, TUNNELS)}


def _value(words: list[str], shown: str, convert: Callable[[str], Any]) -> Any:
    if not words:
        raise WordError("missing argument:", (shown,))
    word = words.pop(0)
    try:
        return convert(word)
    except ValueError:
        raise WordError(f"unknown argument: {word}", (shown,)) from None


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def _amount(word: str) -> int:
    """``512k``, ``2.5M``, ``1G``: powers of ten."""
    number, unit = (word[:-1], word[-1].lower()) if word[-1:].isalpha() else (word, "")
    whole, point, part = number.partition(".")
    if unit not in _UNITS or len(number) > 12 or not all(map(_is_number, (whole, part) if point else (whole,))):
        raise ValueError
    size: int = 10 ** len(part)
    amount, rest = divmod(int(whole + part) * _UNITS[unit], size)
    if rest:
        raise ValueError
    return amount


def _pair(word: str) -> tuple[int, int]:
    """``down/up``, or one for both."""
    down, slash, up = word.partition("/")
    return _amount(down), _amount(up if slash else down)


def pipex(words: list[str]) -> Message:
    """``[ppp-id id police off | down[/up] [burst down[/up]] | user | ebpf]``"""
    if not words:
        return {}
    pick(words, ("ppp-id",), end=True)
    request: Message = {"ppp_id": _value(words, *_PPP_ID)}
    change = pick(words, ("police", "user", "ebpf"))
    if change != "police":
        return {**request, "carry": change}
    if words[:1] == ["off"]:
        del words[0]
        return {**request, "police": None}
    down, up = _value(words, "[ off | <down>[/<up>] ]", _pair)
    police = {"down": down, "up": up}
    if words:
        pick(words, ("burst",), end=True)
        police["burst_down"], police["burst_up"] = _value(words, "<octets down>[/<octets up>]", _pair)
    return {**request, "police": police}


#: What follows an option, by the field of the request.
_CAPTURE: Mapping[str, tuple[str, str, Callable[[str], Any]]] = {
    "-c": ("count", "<frames>", _number(1, 2**32 - 1)),
    "-s": ("snaplen", "<octets>", _number(1, 2**16 - 1)),
    "-w": ("file", "<file>", str),
}


def capture(words: list[str]) -> Message:
    """``ppp-id id [-w file] [-c frames] [-s octets]``"""
    pick(words, ("ppp-id",))
    request: Message = {"ppp_id": _value(words, *_PPP_ID)}
    while words:
        option = pick(words, _CAPTURE, end=True)
        name, shown, convert = _CAPTURE[option]
        if name in request:
            raise WordError(f"repeated argument: {option}")
        request[name] = _value(words, shown, convert)
    return request


COMMANDS: Mapping[str, Command | Mapping[str, Command]] = {
    "session": {
        "brief": Command("session", filters, format.brief, columns=format.BRIEF_COLUMNS),
        "packets": Command("session", filters, format.packets, columns=format.PACKETS_COLUMNS),
        "all": Command("session", filters, format.details),
    },
    "clear": Command("clear", clear, format.cleared),
    "daemon": Command("daemon", lambda words: {}, format.daemon),
    "monitor": Command("monitor", lambda words: all_or_filters(words, EVENTS), format.events, endless=True),
    "pipex": Command("pipex", pipex, format.pipex),
    "radius": Command("radius", lambda words: {}, format.radius),
    "capture": Command("capture", capture, watch.lines, endless=True, into=("file", watch.PcapFile)),
    "tunnel": {
        "brief": Command("tunnel", tunnel_filters, format.tunnel_brief),
        "all": Command("tunnel", tunnel_filters, format.tunnel_details),
    },
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
