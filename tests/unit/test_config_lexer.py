from __future__ import annotations

import pytest

from npppy.config.lexer import Kind, tokenize
from npppy.config.model import Where

QUOTE = "; text other than ASCII stands in double quotes"
BACKSLASH = 'a "\\" continues a line and must be its last character; a word that holds one stands in quotes'


def lex(data: bytes) -> tuple[list[str | Kind], list[str]]:
    """Words, strings as ``"x``, other tokens as their kind; and errors and warnings with their places."""
    said: list[str] = []

    def say(where: Where, message: str) -> None:
        said.append(f"{where.line}:{where.column} {message}")

    tokens = tokenize(data, "f", say, say)
    assert tokens[-1].kind is Kind.NEWLINE
    shown = {Kind.WORD: "", Kind.STRING: '"'}
    return [shown[t.kind] + t.text if t.kind in shown else t.kind for t in tokens[:-1]], said


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"tunnel A protocol l2tp{mru 5}", ["tunnel", "A", "protocol", "l2tp", Kind.OPEN, "mru", "5", Kind.CLOSE]),
        (b"a \t b\nc\r\nd", ["a", "b", Kind.NEWLINE, "c", Kind.NEWLINE, "d"]),
        (b"\xef\xbb\xbfa", ["a"]),
        # Comments, which a backslash continues; an escaped one does not.
        (b"a#b\nc", ["a", Kind.NEWLINE, "c"]),
        (b"# a \\\n b\nc", [Kind.NEWLINE, "c"]),
        (b"# a \\\\\nb", [Kind.NEWLINE, "b"]),
        (b"# \xff\x00 any octets\nb", [Kind.NEWLINE, "b"]),
        # A backslash continues a line, and a word that goes on at once.
        (b"a \\\n b", ["a", "b"]),
        (b"fo\\\no \\\n\\\n b\\\n", ["foo", "b"]),
        # What npppd takes as a bare word, and what only npppyd does.
        (b"10.0.0.2-10.0.0.254 ::1 _x *y a@b:c", ["10.0.0.2-10.0.0.254", "::1", "_x", "*y", "a@b:c"]),
        (b"don't \"x\"y", ["don't", '"x', "y"]),
        (b"10.0.0.0/24 /etc/x ../y ~z -1 @realm", ["10.0.0.0/24", "/etc/x", "../y", "~z", "-1", "@realm"]),
        # In quotes a backslash counts before the same quote, blanks and newlines only.
        (rb'''"a\"b" 'c\'d' "e\'f" 'g\"h' "i\\j" "k\ l"''', ['"a"b', '"c\'d', "\"e\\'f", '"g\\"h', '"i\\\\j', '"k l']),
        (b'"a\\\nb"', ['"ab']),
        (b'"" \'\'', ['"', '"']),
        ('"grüße"'.encode(), ['"grüße']),
    ],
)
def test_tokens(data: bytes, expected: list[str | Kind]) -> None:
    assert lex(data) == (expected, [])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a = b", ['1:3 unexpected "="']),
        (b"\n  a, b", ['2:4 unexpected ","']),
        ("a “b”".encode(), ['1:3 unexpected "“"' + QUOTE, '1:5 unexpected "”"' + QUOTE]),
        (b"a \xff\xfe b", ["1:3 octet 0xff: the file is not UTF-8"]),
        (b'a "b\xe9c"', ["1:3 octet 0xe9 in a string: the file is not UTF-8"]),
        (b"a \x01", [r'1:3 unexpected "\x01"']),
        (b'a "\x00"', ["1:3 a control character in a string"]),
        (b"a \\ \nb", ["1:3 " + BACKSLASH]),
        (b"a \\\n  \\\n  = b", ['3:3 unexpected "="']),
    ],
)
def test_errors(data: bytes, said: list[str]) -> None:
    assert lex(data)[1] == said


def test_string_over_lines() -> None:
    # npppd drops the newline; whoever wants that is told how it looks.
    warning = "1:3 the string goes on over the end of its line, and the newline is dropped"
    assert lex(b'a "b\nc" d') == (["a", '"bc', "d"], [warning])


@pytest.mark.parametrize(
    ("rest", "tokens"),
    [
        (b'c "d"\n', ["c", '"d', Kind.NEWLINE]),
        # As npppd reads it, the string ends before "d.
        (b'c "@d" e\n', ["c", '"@d', "e", Kind.NEWLINE]),
        (b"c\n", ["c", Kind.NEWLINE]),
        (b"", []),
    ],
)
def test_missing_quote_is_found_where_it_is(rest: bytes, tokens: list[str | Kind]) -> None:
    found, said = lex(b'a "b\n' + rest)
    assert said == ['1:3 the string has no closing " on its line']
    assert found == ["a", Kind.BAD, '"b', Kind.NEWLINE, *tokens]


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        (b'"' + b"\\" * 300_000, 2),
        (b'"' + b'a"' * 150_001, 2),
        (b"#" + b"\\" * 300_001, 0),
        (b"a\\\n" * 100_000, 1),
        (b"'\\" * 100_000, 2),
    ],
)
def test_hostile_input_ends(data: bytes, tokens: int) -> None:
    # In quadratic time it would not, or not soon.
    assert len(lex(data)[0]) == tokens
