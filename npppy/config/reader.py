"""The words of one line, read one after the other as what they should be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Any

from ..text import printable
from .lexer import Kind, Report, Token
from .model import Address, Network, Where
from .parser import Line


class Bad(Exception):
    """A line cannot be read.  *guess* is the keyword that was probably meant."""

    def __init__(self, where: Where, message: str, guess: str | None = None) -> None:
        super().__init__(message)
        self.where = where
        self.message = message
        self.guess = guess


def guess(word: str, words: Iterable[str]) -> str | None:
    """The one of *words* that *word* is a misspelling of."""
    close = difflib.get_close_matches(word, words, 1) if len(word) <= 40 else []
    return close[0] if close else None


def either(words: Iterable[str]) -> str:
    """``"a", "b" or "c"``"""
    quoted = [f'"{word}"' for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


class Args:
    """Reads the tokens of *line* from number *start* on; what does not fit raises :class:`Bad`."""

    def __init__(self, line: Line, start: int, warning: Report) -> None:
        self._tokens = line.tokens
        self._end = line.end
        self._pos = start
        self.warning = warning
        #: Where the first secret is.  Behind it, errors do not show what they found.
        self.secret_at: Where | None = None

    @property
    def more(self) -> bool:
        return self._pos < len(self._tokens)

    @property
    def where(self) -> Where:
        """The place of the next token."""
        return self._tokens[self._pos].where if self.more else self._end

    def found(self) -> str:
        """The next token, for a message."""
        if not self.more:
            return "the end of the line"
        if self.secret_at is not None:
            return "more text"
        token = self._tokens[self._pos]
        text = printable(token.text[:60]) + ("..." if len(token.text) > 60 else "")
        return f'the string "{text}"' if token.kind is Kind.STRING else f'"{text}"'

    def expected(self, what: str, guess: str | None = None) -> Bad:
        message = f"expected {what}, found {self.found()}"
        if guess is not None:
            message += f'; did you mean "{guess}"?'
        return Bad(self.where, message, guess)

    def is_next(self, word: str) -> bool:
        """The next token is this keyword."""
        if not self.more:
            return False
        token = self._tokens[self._pos]
        return token.kind is Kind.WORD and token.text == word

    def take(self, word: str) -> bool:
        """Read this keyword, if it is the next token."""
        if self.is_next(word):
            self._pos += 1
            return True
        return False

    def keyword(self, *words: str) -> str:
        """Read one of *words*."""
        for word in words:
            if self.take(word):
                return word
        meant = None
        if self.more:
            token = self._tokens[self._pos]
            if token.kind is Kind.STRING and token.text in words:
                raise Bad(self.where, f"expected {either(words)}, found {self.found()}; keywords have no quotes")
            if len(words) > 1 and token.kind is Kind.WORD:
                meant = guess(token.text, words)
        raise self.expected(either(words), meant)

    def token(self, what: str) -> Token:
        """Read a bare word or a string."""
        if not self.more:
            raise self.expected(what)
        self._pos += 1
        return self._tokens[self._pos - 1]

    def text(self, what: str, limit: int, *, empty: bool = False) -> str:
        """Read a string of at most *limit* octets."""
        where = self.where
        text = self.token(what).text
        if not text and not empty:
            raise Bad(where, f"expected {what}, found an empty string")
        size = len(text.encode("utf-8", "surrogateescape"))
        if size > limit:
            raise Bad(where, f"{what} of {size} octets is too long: expected at most {limit}")
        return text

    def name(self, what: str, before: str = "") -> Token:
        """Read a name, which the keyword *before* may follow."""
        following = self._tokens[self._pos + 1 : self._pos + 2]
        if self.is_next(before) and not (following and following[0].text == before):
            raise self.expected(what)
        token = self.token(what)
        if not token.text:
            raise Bad(token.where, f"expected {what}, found an empty string")
        return token

    def interface(self, before: str = "") -> Token:
        """Read the name of a network interface, which the keyword *before* may follow."""
        token = self.name("the name of an interface", before)
        name = token.text
        # What Linux takes for one: dev_valid_name() in net/core/dev.c.
        if len(name.encode("utf-8", "surrogateescape")) > 15 or name in (".", "..") or re.search(r"[\s/:]", name):
            what = 'the name of an interface, 1 to 15 octets without blank, "/" and ":"'
            raise Bad(token.where, f'expected {what}, found "{printable(name[:60])}"')
        return token

    def number(self, low: int, high: int, *, otherwise: str = "") -> int:
        """Read a number from *low* to *high*.  *otherwise* names what else may stand here."""
        what = f"a number from {low} to {high}{otherwise}"
        if not self.more:
            raise self.expected(what)
        token = self._tokens[self._pos]
        if token.kind is Kind.STRING and token.text.isdecimal():
            raise Bad(token.where, f"expected {what}, found {self.found()}; numbers have no quotes")
        # Python refuses to convert thousands of digits.
        if not re.fullmatch("-?[0-9]{1,20}", token.text) or not low <= int(token.text) <= high:
            raise self.expected(what)
        self._pos += 1
        return int(token.text)

    def address(self) -> Address:
        """Read an IPv4 or IPv6 address."""
        what = "an IPv4 or IPv6 address"
        try:
            address = ip_address(self._peek(what))
        except ValueError:
            raise self.expected(what) from None
        self._pos += 1
        return address

    def address4(self, what: str = "an IPv4 address") -> IPv4Address:
        try:
            address = IPv4Address(self._peek(what))
        except ValueError:
            raise self.expected(what) from None
        self._pos += 1
        return address

    def network(self) -> Network:
        """Read a network, or an address, which is one of its own."""
        what = "an address or a network (10.0.0.0/24)"
        where = self.where
        text = self._peek(what)
        try:
            # It takes a mask for a length, too.
            if not re.fullmatch(r"[^/%]+(/[0-9]{1,3})?", text):
                raise ValueError
            interface = ip_interface(text)
        except ValueError:
            raise self.expected(what) from None
        network = interface.network
        if network.network_address != interface.ip:
            raise Bad(where, "this is not the address of a network: it has bits beyond the length of its prefix")
        self._pos += 1
        return network

    def _peek(self, what: str) -> str:
        if not self.more:
            raise self.expected(what)
        return self._tokens[self._pos].text

    def address_port(self, port: int) -> tuple[Address, int]:
        """Read an address and perhaps a port; *port* is the default."""
        address = self.address()
        return address, (self.number(0, 65535) or port) if self.take("port") else port

    def place(self, port: int) -> tuple[Address, int]:
        """Read ``ADDRESS[:PORT]``, an IPv6 address in brackets; *port* is the default."""
        what = "an address and perhaps a port (192.0.2.1:80, [2001:db8::1]:80)"
        match = re.fullmatch(r"(?:\[([^\[\]%]+)\]|([0-9.]+))(?::([0-9]{1,5}))?", self._peek(what))
        try:
            if match is None:
                raise ValueError
            address = IPv6Address(match[1]) if match[1] else IPv4Address(match[2])
            number = int(match[3] or port)
            if not 0 < number < 65536:
                raise ValueError
        except ValueError:
            raise self.expected(what) from None
        self._pos += 1
        return address, number

    def secret(self, keyword: str = "") -> str:
        """Read *keyword*, if there is one, and a secret."""
        if keyword and not self.take(keyword):
            # What stands here may be the secret itself.
            raise Bad(self.where, f'expected the keyword "{keyword}" and a secret')
        self.secret_at = self.where
        return self.text("a secret", 65535)

    def end(self) -> None:
        """Nothing may follow."""
        if self.more:
            raise self.expected("the end of the line")


#: Reads the value of an option.
Value = Callable[[Args], Any]


@dataclass(frozen=True, slots=True)
class Number:
    low: int
    high: int
    #: What 0 stands for, where it is not a value of its own.
    zero: int = 0

    def __call__(self, args: Args) -> int:
        return args.number(self.low, self.high) or self.zero


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some keywords."""

    words: Mapping[str, Any]

    def __call__(self, args: Args) -> Any:
        return self.words[args.keyword(*self.words)]


@dataclass(frozen=True, slots=True)
class Several:
    """One or more of some keywords, in the order given."""

    words: Mapping[str, Any]

    def __call__(self, args: Args) -> tuple[Any, ...]:
        values: list[Any] = []
        while not values or args.more:
            where = args.where
            word = args.keyword(*self.words)
            if self.words[word] in values:
                args.warning(where, f'"{word}" is given twice')
            else:
                values.append(self.words[word])
        return tuple(values)


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most *limit* octets; an empty one is read as *empty*."""

    limit: int
    empty: str | None = None

    def __call__(self, args: Args) -> str | None:
        return args.text("a string", self.limit, empty=True) or self.empty


YESNO = Choice({"yes": True, "no": False})
