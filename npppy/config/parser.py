"""The shape of npppd.conf: lines of words, some of which carry a block of lines in braces.

What the words mean is the loader's business, so an error in one line is no error in the next.
"""

from __future__ import annotations

from .lexer import Kind, Report, Token
from .model import Where

#: What opens a statement of the top level: the word, and where which other word must follow.  It tells a missing "}"
#: from a misplaced word.
_STATEMENTS = {
    "tunnel": (2, ("protocol",)),
    "authentication": (2, ("type",)),
    "interface": (2, ("address",)),
    "bind": (1, ("tunnel",)),
    "set": (1, ("max-session", "user-max-session", "duplicate-session")),
    "radius": (1, ("nas-id", "nas-address", "nas-port-id", "spool", "spool-limit", "dae")),
}
#: The same for blocks within a block.
_INNER_BLOCKS = ("authentication-server", "accounting-server")


class Line:
    """A statement or an option."""

    __slots__ = ("block", "brace", "damaged", "end", "tokens")

    def __init__(self, tokens: list[Token], end: Where, damaged: bool) -> None:
        #: Words and strings, at least one but in a damaged line; or a "}" that closes nothing.
        self.tokens = tokens
        #: Where the tokens end: at a newline or a brace.
        self.end = end
        #: An error in it has been reported, and there is no more to say about its words.
        self.damaged = damaged
        self.block: list[Line] | None = None
        #: The "{" of the block.
        self.brace: Where | None = None


class _Parser:
    def __init__(self, error: Report) -> None:
        self._error = error
        self.lines: list[Line] = []
        #: The block being read, and around it the blocks that are open: their "{" and what is outside.
        self._block = self.lines
        self._open: list[tuple[Where, list[Line]]] = []
        self._tokens: list[Token] = []
        self._damaged = False
        #: Blocks closed for want of a "}", whose "}" may still come.
        self._unclosed = 0

    def parse(self, tokens: list[Token]) -> None:
        closed = False
        for token in tokens:
            if token.kind in (Kind.WORD, Kind.STRING):
                if closed and not self._tokens:
                    self._error(token.where, 'expected the end of the line after "}"')
                    self._damaged = True
                self._tokens.append(token)
            elif token.kind is Kind.BAD:
                self._damaged = True
            elif token.kind is Kind.NEWLINE:
                self._end_line(token.where, opens=False)
            elif token.kind is Kind.OPEN:
                self._open_block(token.where)
            else:
                self._end_line(token.where, opens=False)
                self._close_block(token)
            closed = token.kind is Kind.CLOSE
        for where, _ in reversed(self._open):
            self._error(where, 'the "{" is never closed')

    def _end_line(self, end: Where, *, opens: bool) -> Line | None:
        tokens, self._tokens = self._tokens, []
        damaged, self._damaged = self._damaged, False
        if not tokens:
            return None
        self._close_before(tokens, opens)
        line = Line(tokens, end, damaged)
        self._block.append(line)
        return line

    def _open_block(self, where: Where) -> None:
        line = self._end_line(where, opens=True)
        if line is None:
            line = self._block[-1] if self._block else None
            if line is not None and line.block is None:
                self._error(where, '"{" belongs at the end of the line before')
            else:
                self._error(where, '"{" without a statement before it')
                line = Line([], where, True)
        line.block = []
        line.brace = where
        self._open.append((where, self._block))
        self._block = line.block

    def _close_block(self, token: Token) -> None:
        if self._open:
            _, self._block = self._open.pop()
        elif self._unclosed:
            self._unclosed -= 1
        else:
            self._block.append(Line([token], token.where, False))

    def _close_before(self, tokens: list[Token], opens: bool) -> None:
        """Close the blocks that *tokens* cannot be in."""
        depth = len(self._open)
        word = tokens[0].text if tokens[0].kind is Kind.WORD else ""
        if word in _STATEMENTS:
            index, following = _STATEMENTS[word]
            if len(tokens) > index and tokens[index].text in following:
                depth = 0
        elif word == "metrics-listen" or (word == "ipcp" and len(tokens) == 2 and opens):
            depth = 0
        elif word in _INNER_BLOCKS and opens:
            depth = min(depth, 1)
        while len(self._open) > depth:
            where, self._block = self._open.pop()
            self._unclosed += 1
            self._error(where, f'the "{{" is not closed before "{word}" in line {tokens[0].where.line}')


def parse(tokens: list[Token], error: Report) -> list[Line]:
    """The lines of a file."""
    parser = _Parser(error)
    parser.parse(tokens)
    return parser.lines

