"""Files, lines, options and names: what all statements of npppd.conf are read with."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..text import printable
from .lexer import Kind, Token, tokenize
from .model import Diagnostic, Where
from .options import IPCP, SET, TUNNEL, UNBUILT, Option
from .options_radius import AUTHENTICATION, RADIUS, SERVERS
from .parser import Line, parse
from .reader import Args, Bad, either, guess

#: How deep files may include each other.
MAX_DEPTH = 16


class Settings:
    """What the options of a block say."""

    __slots__ = ("fields", "items", "places")

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        #: The values of options that may be given again, with their places.
        self.items: dict[str, list[tuple[Any, Where]]] = {}
        #: Where a field was set last.
        self.places: dict[str, Where] = {}

    def values(self, field: str) -> tuple[Any, ...]:
        """The values of an option that may be given again."""
        return tuple(value for value, _ in self.items.get(field, ()))

    def group(self, name: str) -> dict[str, Any]:
        """The fields that belong to *name*: "x" of "name.x"."""
        prefix = name + "."
        return {field.removeprefix(prefix): value for field, value in self.fields.items() if field.startswith(prefix)}


def a(noun: str) -> str:
    """The noun with its article."""
    return ("an " if noun[0] in "ail" else "a ") + noun


Statement = Callable[[Line, Args], None]


class Blocks:
    """Collects errors and warnings, files and names; a subclass brings the statements."""

    def __init__(self) -> None:
        self.errors: list[Diagnostic] = []
        self.warnings: list[Diagnostic] = []
        #: Lines that could not be read.
        self.faults = 0
        #: Kinds of which a name may have been lost in an error.
        self.lost: set[str] = set()
        #: The lines that come may be those of a block whose beginning was lost; they have been reported.
        self.astray = False
        #: By its first word.
        self.statements: dict[str, Statement] = {}
        #: The files read, in order, and their modes.
        self._files: dict[str, int] = {}
        #: The files being read: those that include the current one, and it.
        self._path: list[str] = []
        #: Files that hold a secret, and where.
        self._secrets: dict[str, Where] = {}
        #: By kind and name: what is defined, None if in error, and where.
        self._names: dict[str, dict[str, tuple[Any, Where]]] = {}
        #: Names that were not defined where they were used.
        self._unknown: list[tuple[str, Token]] = []

    def error(self, where: Where, message: str) -> None:
        self.errors.append(Diagnostic(where, message))

    def warning(self, where: Where, message: str) -> None:
        self.warnings.append(Diagnostic(where, message))

    def finish(self) -> None:
        """Say what can be said only at the end, and bring everything in order."""
        for kind, token in self._unknown:
            self._report_unknown(kind, token)
        for file, where in self._secrets.items():
            if self._files[file] & stat.S_IROTH:
                self.warning(where, "the file holds a secret and everybody may read it")
        order = {file: number for number, file in enumerate(self._files)}

        def place(diagnostic: Diagnostic) -> tuple[int, int, int]:
            where = diagnostic.where
            return order.get(where.file, -1), where.line, where.column

        # The same file may have been included twice.
        self.errors = sorted(dict.fromkeys(self.errors), key=place)
        self.warnings = sorted(dict.fromkeys(self.warnings), key=place)

    # Files and lines.

    def file(self, file: str, where: Where, read: Callable[[Sequence[Line]], None]) -> None:
        """Hand the lines of *file* to *read*; *where* says who wants the file."""
        real = os.path.realpath(file)
        if real in self._path:
            self.error(where, f'"{printable(file)}" includes itself')
            return
        if len(self._path) >= MAX_DEPTH:
            self.error(where, f"files include each other more than {MAX_DEPTH} deep")
            return
        try:
            with open(file, "rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                data = stream.read()
        except OSError as failure:
            self.error(where, f'cannot read "{printable(file)}": {failure.strerror}')
            self.lost.update(self.statements)
            return
        self._files.setdefault(file, mode)
        self._path.append(real)
        read(parse(tokenize(data, file, self.error, self.warning), self.error))
        self._path.pop()

    def _include(self, line: Line, args: Args, read: Callable[[Sequence[Line]], None]) -> None:
        where = args.where
        name = args.text("the name of a file", 4095)
        args.end()
        self.no_block(line)
        folder = os.path.dirname(where.file)
        files = sorted(glob.glob(name, root_dir=folder or None)) if set(name) & set("*?[") else [name]
        for file in files:
            self.file(os.path.join(folder, file), where, read)

    def _each(self, lines: Sequence[Line], read: Callable[[Line, Token], None]) -> None:
        """Call *read* with each line and its first word; an error ends the line and not the block."""
        for line in lines:
            if not line.tokens:
                continue
            token = line.tokens[0]
            try:
                if token.kind is not Kind.WORD or token.text != "include":
                    read(line, token)
                elif line.damaged:
                    self.lost.update(self.statements)
                else:
                    self._include(line, self._args(line), lambda lines: self._each(lines, read))
            except Bad as bad:
                self.bad(line, bad)

    def bad(self, line: Line, bad: Bad) -> None:
        """Report that a line cannot be read, unless its words could not be read already."""
        self.faults += 1
        if not line.damaged:
            self.error(bad.where, bad.message)

    def _args(self, line: Line) -> Args:
        return Args(line, 1, self.warning)

    def needs_block(self, line: Line, args: Args) -> None:
        """The line must have a block; *args* are at its end."""
        if line.block is None and not args.more:
            self.bad(line, args.expected('"{"'))
            self.astray = True

    def no_block(self, line: Line) -> None:
        """The line may not have a block."""
        if line.brace is not None:
            raise Bad(line.brace, f'expected the end of the line: "{line.tokens[0].text}" has no block')

    def lines(self, lines: Sequence[Line]) -> None:
        """Read statements."""
        self._each(lines, self._line)

    def _line(self, line: Line, token: Token) -> None:
        astray, self.astray = self.astray, False
        word = token.text
        if token.kind is Kind.WORD and word in self.statements:
            self.statements[word](line, self._args(line))
            return
        if token.kind is Kind.CLOSE and astray:
            # Now the block is over, and whatever it defined is not known.
            self.lost.update(self.statements)
            return
        bad = self._unknown_word(token, "a statement", [*self.statements, "include"])
        if _owners(token):
            self.astray = True
            if astray:
                self.faults += 1
                return
        if bad.guess is None or bad.guess == "include":
            if line.block is not None or bad.guess is not None:
                self.lost.update(self.statements)
            raise bad
        # Most likely a misspelling: what it defines is known from here on, and its block is looked into.
        self.bad(line, bad)
        line.damaged = True
        self.statements[bad.guess](line, self._args(line))

    def options(
        self,
        lines: Sequence[Line],
        what: str,
        table: Mapping[str, Option],
        into: Settings,
        unbuilt: str = "",
        blocks: Mapping[str, Statement] | None = None,
    ) -> None:
        """Read the lines of a block; *what* says in messages what it is.

        *unbuilt* is the statement to look up in the table of what is not built.  *blocks* are options with a block.
        """
        blocks = blocks or {}

        def read(line: Line, token: Token) -> None:
            word = token.text
            known = token.kind is Kind.WORD
            if known and word in table:
                self.option(line, table[word], into, unbuilt)
            elif known and word in blocks:
                blocks[word](line, self._args(line))
            else:
                bad = self._unknown_word(token, f"an option of {what}", [*table, *blocks])
                if bad.guess is None or bad.guess not in blocks:
                    raise bad
                self.bad(line, bad)
                line.damaged = True
                blocks[bad.guess](line, self._args(line))

        self._each(lines, read)

    def option(self, line: Line, option: Option, into: Settings, unbuilt: str) -> None:
        """Read an option, and what it says into *into*."""
        args = self._args(line)
        where = line.tokens[0].where
        try:
            value = option.read(args)
            args.end()
        finally:
            if args.secret_at is not None:
                self._secrets.setdefault(where.file, args.secret_at)
        self.no_block(line)
        self.unbuilt(unbuilt, option.keyword, value, where)
        if option.repeat:
            into.items.setdefault(option.field, []).extend(value)
            return
        if option.field in into.places:
            self.warning(where, f"{option.keyword} is given again: {into.places[option.field]} has no effect")
        into.places[option.field] = where
        into.fields[option.field] = value

    def unbuilt(self, statement: str, keyword: str, value: Any, where: Where) -> None:
        """Say it if this is not built yet."""
        for row in UNBUILT:
            if row.statement == statement and row.keyword == keyword and row.when(value):
                self.warning(where, row.message)

    def _unknown_word(self, token: Token, what: str, words: Sequence[str]) -> Bad:
        text = printable(token.text[:60])
        if token.kind is Kind.STRING:
            return Bad(token.where, f'expected {what}, found the string "{text}"; keywords have no quotes')
        if token.kind is Kind.CLOSE:
            return Bad(token.where, '"}" without a "{" before it')
        message = f'expected {what}, found "{text}"'
        owners = _owners(token)
        if owners:
            return Bad(token.where, f"{message}, which belongs in {' or '.join(owners)}")
        meant = guess(token.text, words)
        if meant is not None:
            return Bad(token.where, f'{message}; did you mean "{meant}"?', meant)
        valid = f"valid are {either(words)}" if len(words) < 12 else "npppd.conf(5) lists them"
        return Bad(token.where, f"{message}; {valid}")

    # Names.

    def define(self, kind: str, token: Token) -> bool:
        """A name is taken, if it was free; what it stands for follows with :meth:`become`."""
        names = self._names.setdefault(kind, {})
        if token.text in names:
            first = names[token.text][1]
            self.error(token.where, f'the name "{printable(token.text)}" of this {kind} is taken at {first}')
            return False
        names[token.text] = (None, token.where)
        return True

    def become(self, kind: str, token: Token, value: Any) -> None:
        self._names[kind][token.text] = (value, token.where)

    def defined(self, kind: str) -> list[Any]:
        """All of a kind, in the order of the files; without errors, none of them is None."""
        return [value for value, _ in self._names.get(kind, {}).values()]

    def find(self, kind: str, token: Token) -> Any:
        """What a name stands for; None if there is an error in it."""
        entry = self._names.get(kind, {}).get(token.text)
        if entry is None:
            self._unknown.append((kind, token))
            return None
        return entry[0]

    def _report_unknown(self, kind: str, token: Token) -> None:
        names = self._names.get(kind, {})
        text = printable(token.text[:60])
        if token.text in names:
            where = names[token.text][1]
            self.error(token.where, f'{kind} "{text}" is defined only at {where}; it must come before its use')
        elif kind not in self.lost:
            message = f'expected the name of {a(kind)}, found "{text}"'
            meant = guess(token.text, names)
            if meant is not None:
                message += f'; did you mean "{printable(meant)}"?'
            elif 0 < len(names) < 12:
                message += "; defined so far: " + ", ".join(f'"{printable(name)}"' for name in names)
            self.error(token.where, message)

    def header(self, line: Line, args: Args, kind: str, before: str, words: Sequence[str]) -> tuple[Token | None, str]:
        """Read ``NAME before WORD`` of a statement with a block, or NAME alone.

        Returns the name, or None if it cannot be used, and the word, "" if it is not clear what was meant.
        """
        token: Token | None = None
        word: str | None = None
        try:
            token = args.name(f"the name of {a(kind)}", before)
        except Bad as bad:
            self.lost.add(kind)
            self.bad(line, bad)
        try:
            if before:
                args.keyword(before)
                word = args.keyword(*words)
            args.end()
        except Bad as bad:
            # Without a name, one error is enough.
            if token is not None:
                self.bad(line, bad)
            if bad.guess in words:
                word = bad.guess
            self.astray = line.block is None
        if token is not None and not self.define(kind, token):
            token = None
        return token, word or ""


_COMMON = set.intersection(*map(set, TUNNEL.values()))

#: Where options belong, for messages about one that stands elsewhere.
_OWNERS: dict[str, Collection[str]] = {
    "a tunnel": _COMMON,
    **{f"{a(protocol.value)} tunnel": set(table) - _COMMON for protocol, table in TUNNEL.items()},
    "an ipcp block": IPCP,
    "an authentication block": {*AUTHENTICATION, *SERVERS},
    "an authentication-server block": SERVERS["authentication-server"],
    "a set statement": SET,
    "a radius statement": RADIUS,
}


def _owners(token: Token) -> list[str]:
    """Where an option belongs."""
    return [owner for owner, table in _OWNERS.items() if token.kind is Kind.WORD and token.text in table]
