from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npppy.control import client
from npppy.control.protocol import (
    MAX_REPLY,
    MAX_REQUEST,
    VERSION,
    ProtocolError,
    check_hello,
    decode,
    encode,
    frame,
    payload_length,
)
from tests.unit.control_fake import framed


def test_frame_is_length_and_json() -> None:
    assert frame(encode({"command": "session"}), MAX_REQUEST) == b'\x00\x00\x00\x15{"command":"session"}'


def test_frames_are_bounded_both_ways() -> None:
    assert len(frame(bytes(MAX_REPLY), MAX_REPLY)) == MAX_REPLY + 4
    with pytest.raises(ValueError, match="the limit is"):
        frame(bytes(MAX_REPLY + 1), MAX_REPLY)
    assert payload_length(b"\x00\x01\x00\x00", MAX_REQUEST) == MAX_REQUEST
    with pytest.raises(ProtocolError, match="65537"):
        payload_length(b"\x00\x01\x00\x01", MAX_REQUEST)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"\x80",
        b'{"a":' + b"[" * 60000,
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":1}{"b":2}',
    ],
)
def test_what_is_no_object_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(payload)


@given(st.binary(max_size=200))
def test_decode_raises_nothing_else(payload: bytes) -> None:
    try:
        assert isinstance(decode(payload), dict)
    except ProtocolError:
        pass


@given(st.text(st.characters()))
def test_any_text_comes_through(text: str) -> None:
    assert decode(encode({"username": text})) == {"username": text}


def test_an_octet_that_is_not_utf8_comes_through() -> None:
    name = b"bob\xff".decode("utf-8", "surrogateescape")
    assert encode({"username": name}).isascii()
    assert decode(encode({"username": name}))["username"] == name


@pytest.mark.parametrize("version", [0, VERSION + 1, True, "1", None, [], {}])
def test_another_version_is_named(version: Any) -> None:
    with pytest.raises(ProtocolError, match=f"npppyd speaks version {VERSION} of the control protocol"):
        check_hello({"hello": "npppyctl", "version": version}, "npppyd")


@pytest.mark.parametrize("message", [{}, {"hello": 1, "version": VERSION}, {"version": VERSION}])
def test_a_greeting_says_hello(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="no hello"):
        check_hello(message, "npppyd")


# npppyctl's end


def received(data: bytes) -> dict[str, Any] | None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        return client.receive(ours)


def test_client_reads_a_frame_and_the_end() -> None:
    assert received(framed({"rows": []})) == {"rows": []}
    assert received(b"") is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00", "within a frame"),
        (b"\x00\x00\x00\x05{", "within a frame"),
        (b"\x00\x00\x00\x05", "within a frame"),
        (b"HTTP/1.1 400 Bad Request", "does not speak the control protocol"),
        (b"\x00\x00\x00\x02[]", "does not speak the control protocol: not a JSON object"),
        (framed({"error": "permission denied"}), "^permission denied$"),
    ],
)
def test_client_says_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(client.ControlError, match=message):
        received(data)


@given(st.binary(max_size=64))
def test_client_survives_any_octets(data: bytes) -> None:
    try:
        message = received(data)
        assert message is None or json.dumps(message)
    except client.ControlError:
        pass

