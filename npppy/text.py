"""Text from outside, made fit for a log line."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str | bytes) -> str:
    """What a peer or a file said, on one line of plain text that cannot be taken for anything else of ours.

    Control characters, line and paragraph separators, marks that turn the direction of text, octets that are not
    UTF-8, double quotes and backslashes are written as escapes, so the result may stand between double quotes.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(map(_escape, text))


def dump(octets: bytes, hidden: Iterable[tuple[int, int]] = ()) -> str:
    """Octets in hexadecimal, 16 a line; those in *hidden*, from and to, are not shown."""
    shown = [f"{octet:02x}" for octet in octets]
    for start, end in hidden:
        shown[start:end] = ["**"] * (end - start)
    return "\n".join(f"{at:04x}  {' '.join(shown[at : at + 16])}" for at in range(0, len(shown), 16))


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    # surrogateescape keeps an octet that is not UTF-8 as U+DC80 to U+DCFF.
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
