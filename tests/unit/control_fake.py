"""A daemon to ask over the control socket, and a plain client of the protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npppy.control.info import Listener, SessionInfo
from npppy.control.protocol import VERSION
from npppy.pipex.base import Counters, Police

START = 1_700_000_000.0

ALICE = SessionInfo(
    ppp_id=7,
    state="up",
    username="alice",
    realm="LOCAL",
    interface="npx0",
    address="10.0.0.7",
    mru=1492,
    protocol="PPPoE",
    tunnel="ACCESS",
    tunnel_from="02:00:00:00:00:07",
    start=START,
    duration=42.9,
    counters=Counters(999, 10, 0, 1536, 12, 1),
    pipex="ebpf",
    police_down=Police(1_250_000, 125_000),
)
#: A name of 24 characters is not cut, and what could harm a terminal or a column is escaped.
BOB = replace(
    ALICE,
    ppp_id=4294967295,
    username="bob\x1b]0;\n\udcff@a.very.long.realm",
    realm="RADIUS",
    interface="npx1",
    address="192.168.100.200",
    mru=1360,
    protocol="L2TP",
    tunnel="LAC",
    tunnel_from="203.0.113.250:1701",
    duration=93784.0,
    counters=Counters(2_000_000, 1234567, 65432, 3 * 1024**3, 7654321, 0),
    pipex="user",
    police_down=None,
)
#: Still to say who it is.
CAROL = replace(
    ALICE,
    ppp_id=9,
    state="authenticate",
    username="",
    realm="",
    interface="",
    address="",
    counters=Counters(),
    pipex="",
    police_down=None,
)
DAVE = replace(CAROL, ppp_id=10, state="terminate", username="dave")


class FakeSubject:
    """Sessions by id; counts what it is asked."""

    def __init__(self, *sessions: SessionInfo, index: bool = True) -> None:
        self.sessions = {info.ppp_id: info for info in sessions}
        self.index = index
        self.listeners: list[Listener] = []
        self.disconnected: list[int] = []
        #: Sessions that will not end.
        self.stubborn: set[int] = set()
        self.walks = 0
        self.looked: list[int] = []
        self.on_look: Callable[[int], None] = lambda ppp_id: None

    def session_ids(self) -> Sequence[int]:
        self.walks += 1
        return list(self.sessions)

    def session(self, ppp_id: int) -> SessionInfo | None:
        self.looked.append(ppp_id)
        self.on_look(ppp_id)
        return self.sessions.get(ppp_id)

    def find(self, *, address: str | None = None, username: str | None = None) -> Sequence[int] | None:
        assert (address is None) != (username is None)
        if not self.index:
            return None
        return [
            info.ppp_id
            for info in self.sessions.values()
            if (address is None or info.address == address) and (username is None or info.username == username)
        ]

    def disconnect(self, ppp_id: int) -> bool:
        self.on_look(ppp_id)
        if ppp_id in self.stubborn or self.sessions.pop(ppp_id, None) is None:
            return False
        self.disconnected.append(ppp_id)
        return True

    def listen(self, listener: Listener) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def tell(self, event: str, info: SessionInfo) -> None:
        for listener in tuple(self.listeners):
            listener(event, info)


def many(count: int) -> list[SessionInfo]:
    return [
        replace(ALICE, ppp_id=n, username=f"user{n}", address=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
        for n in range(1, count + 1)
    ]


HELLO = {"hello": "test", "version": VERSION}


def framed(message: Any) -> bytes:
    payload = json.dumps(message).encode()
    return len(payload).to_bytes(4, "big") + payload


class Client:
    """A connection, frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, path: Path) -> Client:
        return cls(*await asyncio.open_unix_connection(path))

    @classmethod
    async def ask(cls, path: Path, request: dict[str, Any]) -> Client:
        """A client whose greetings are exchanged and whose request has been sent."""
        client = await cls.connect(path)
        greeting = await client.receive()
        assert greeting is not None
        assert greeting["hello"] == "npppyd"
        client.writer.write(framed(HELLO) + framed(request))
        return client

    async def receive(self) -> dict[str, Any] | None:
        """The next frame; None at the end."""
        header = await self.reader.read(4)
        if not header:
            return None
        while len(header) < 4:
            header += await self.reader.readexactly(4 - len(header))
        message = json.loads(await self.reader.readexactly(int.from_bytes(header, "big")))
        assert isinstance(message, dict)
        return message

    async def rest(self) -> list[dict[str, Any]]:
        """All frames to the end of the stream."""
        frames = []
        while (message := await self.receive()) is not None:
            frames.append(message)
        return frames

    def close(self) -> None:
        self.writer.close()


async def ask(path: Path, request: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the answer, and its last frame."""
    client = await Client.ask(path, request)
    frames = await client.rest()
    client.close()
    assert all(list(frame) == ["rows"] for frame in frames[:-1])
    return [row for frame in frames[:-1] for row in frame["rows"]], frames[-1]


async def until(condition: Callable[[], object]) -> None:
    """Turns of the event loop until *condition* holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)
