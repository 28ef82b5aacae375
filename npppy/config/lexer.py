"""The words of npppd.conf.

The lexical rules are those of npppd's parse.y, with three freedoms: a bare word may hold "/" and begin with any of its
characters, so that networks and paths need no quotes; a number is a bare word of digits; and lines may end with CR LF.
What cannot be read becomes a BAD token and one error; the parser says no more about its line.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import NamedTuple

from ..text import printable
from .model import Where

Report = Callable[[Where, str], None]


class Kind(enum.Enum):
    WORD = "word"
    #: In quotes; never a keyword.
    STRING = "string"
    OPEN = "{"
    CLOSE = "}"
    NEWLINE = "the end of the line"
    BAD = "bad"


class Token(NamedTuple):
    kind: Kind
    text: str
    where: Where


_WORD = r"[A-Za-z0-9\"'$%&*+\-./:;?@\[\]^_`|~]"

def _body(quote: str, stop: str) -> str:
    # A backslash in quotes takes away the meaning of the same quote, a blank and a newline; before anything else it is
    # itself.  The alternatives exclude each other, so that matching takes linear time.
    return rf"(?:\\[{quote} \t\n]|[^{quote}\\{stop}]|\\(?![{quote} \t\n]))*"


def _pattern(stop: str) -> re.Pattern[str]:
    """The tokens of a file; *stop* is a newline if a string may not go on behind one."""
    double, single = _body('"', stop), _body("'", stop)
    return re.compile(
        # A backslash at its end continues a line, and a comment.
        r"(?P<blank>(?:[ \t]|\\\n)+)|(?P<comment>\#(?:\\[\s\S]|[^\\\n])*\\?)|(?P<newline>\n)"
        rf"|\"(?P<double>{double})(?P<closed2>\")?|'(?P<single>{single})(?P<closed1>')?"
        rf"|(?P<word>(?![\"']){_WORD}(?:{_WORD}|\\\n)*)|(?P<open>\{{)|(?P<close>\}})"
        r"|(?P<octets>[\udc80-\udcff]+)|(?P<foreign>[^\x00-\x7f\udc80-\udcff]+)|(?P<other>[\s\S])"
    )


_ACROSS_LINES = _pattern("")
_WITHIN_LINE = _pattern(r"\n")

_ESCAPED = re.compile(r"\\([\"' \t\n])|\n")
_RAW_NEWLINE = re.compile(r"(?<!\\)\n")
_WORD_AFTER = re.compile(_WORD)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OCTET = re.compile(r"[\udc80-\udcff]")


def tokenize(data: bytes, file: str, error: Report, warning: Report) -> list[Token]:
    """The tokens of a file; the last one is always a NEWLINE."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    found: list[tuple[Report, Where, str]] = []
    tokens = _scan(text, file, _ACROSS_LINES, lambda *at: found.append((error, *at)), warning)
    if tokens is None:
        # A quote is missing.  npppd lets a string go on over newlines, so that every string behind the place is inside
        # out; ending strings at their line finds it.
        found.clear()
        tokens = _scan(text, file, _WITHIN_LINE, lambda *at: found.append((error, *at)), warning) or []
    for report, where, message in found:
        report(where, message)
    return tokens


def _scan(text: str, file: str, pattern: re.Pattern[str], error: Report, warning: Report) -> list[Token] | None:
    """None: a string is not closed, or closes where the next one opens, and *pattern* lets strings go on over lines."""
    tokens: list[Token] = []
    warnings: list[Where] = []
    line, line_start = 1, 0

    def add(kind: Kind, value: str) -> None:
        tokens.append(Token(kind, value, where))

    def bad(message: str) -> None:
        error(where, message)
        add(Kind.BAD, "")

    for match in pattern.finditer(text):
        where = Where(file, line, match.start() - line_start + 1)
        found = match.group()
        kind = match.lastgroup
        if kind == "word":
            add(Kind.WORD, found.replace("\\\n", ""))
        elif kind == "newline":
            add(Kind.NEWLINE, "")
        elif kind == "open":
            add(Kind.OPEN, found)
        elif kind == "close":
            add(Kind.CLOSE, found)
        elif kind in ("double", "single", "closed2", "closed1"):
            quote = found[0]
            body = match["double"] if quote == '"' else match["single"]
            if kind in ("double", "single"):
                if pattern is _ACROSS_LINES:
                    return None
                bad(f"the string has no closing {quote} on its line")
            elif _RAW_NEWLINE.search(body):
                if _WORD_AFTER.match(text, match.end()):
                    return None
                warnings.append(where)
            value = _unescape(body, quote)
            if _CONTROL.search(value):
                bad("a control character in a string")
                value = _CONTROL.sub("?", value)
            if octet := _OCTET.search(value):
                bad(f"octet 0x{ord(octet.group()) - 0xDC00:02x} in a string: the file is not UTF-8")
            add(Kind.STRING, value)
        elif kind == "octets":
            bad(f"octet 0x{ord(found[0]) - 0xDC00:02x}: the file is not UTF-8")
        elif kind == "foreign":
            bad(f'unexpected "{printable(found[:20])}"; text other than ASCII stands in double quotes')
        elif kind == "other":
            if found == "\\":
                bad('a "\\" continues a line and must be its last character; a word that holds one stands in quotes')
            else:
                bad(f'unexpected "{printable(found)}"')
        newlines = found.count("\n")
        if newlines:
            line += newlines
            line_start = match.start() + found.rindex("\n") + 1
    where = Where(file, line, len(text) - line_start + 1)
    add(Kind.NEWLINE, "")
    for place in warnings:
        warning(place, "the string goes on over the end of its line, and the newline is dropped")
    return tokens


def _unescape(body: str, quote: str) -> str:
    def replace(match: re.Match[str]) -> str:
        char = match[1]
        if char is None or char == "\n":
            return ""
        return match[0] if char in "\"'" and char != quote else char

    return _ESCAPED.sub(replace, body)
