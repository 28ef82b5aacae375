from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.text import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("alice@example.net", "alice@example.net"),
        ("Grüße, 世界", "Grüße, 世界"),
        ('a" user="root', 'a\\" user=\\"root'),
        ("DOMAIN\\alice", "DOMAIN\\\\alice"),
        ("a\nppp id=1 layer=base", "a\\x0appp id=1 layer=base"),
        ("\x00\x1b[2J\x7f", "\\x00\\x1b[2J\\x7f"),
        # Another end of line, another direction, and no character at all.
        ("\x85\u2028\u202e\U000e0001", "\\u0085\\u2028\\u202e\\U000e0001"),
        (b"caf\xc3\xa9", "café"),
        (b"caf\xe9\xff", "caf\\xe9\\xff"),
        ("caf\udce9", "caf\\xe9"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str | bytes, expected: str) -> None:
    assert printable(text) == expected


@given(st.text() | st.binary())
def test_stays_within_its_quotes(text: str | bytes) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    # Without what a backslash takes the meaning from, there is no quote.
    assert '"' not in shown.replace("\\\\", "").replace('\\"', "")
