"""An exporter on the loopback interface, and a plain client of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from npppy.exporter import Exporter, Page, Place

LOOPBACK: Place = (ip_address("127.0.0.1"), 0)
GET = b"GET /metrics HTTP/1.1\r\nHost: bng\r\n\r\n"


def lines(count: int) -> Page:
    """A page of so many lines, each a piece."""

    def page() -> Iterator[str]:
        for number in range(count):
            yield f"line {number}\n"
            yield ""

    return page


class Served:
    """An exporter, and what it has counted."""

    def __init__(self, pages: Mapping[str, Page] | None = None) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.full = 0
        pages = {"/metrics": lines(3), "/many": lines(5000)} if pages is None else pages
        self.exporter = Exporter(pages, self._count, self._full)
        self.exporter.listen([LOOPBACK])

    def _count(self, path: str, status: int) -> None:
        self.answers[path, status] += 1

    def _full(self) -> None:
        self.full += 1

    @property
    def port(self) -> int:
        return self.exporter.listening()[0][1]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def say(self, octets: bytes, *, end: bool = False) -> bytes:
        """All that comes back for it, up to the end of the connection."""
        reader, writer = await self.connect()
        try:
            writer.write(octets)
            if end:
                writer.write_eof()
            return await reader.read(-1)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def ask(self, octets: bytes = GET) -> Answer:
        return answer(await self.say(octets))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


def answer(octets: bytes) -> Answer:
    """A whole answer; raises ValueError for anything else."""
    head, _, body = octets.partition(b"\r\n\r\n")
    first, *fields = head.decode("ascii").split("\r\n")
    version, status, _ = first.split(" ", 2)
    if version != "HTTP/1.1":
        raise ValueError(version)
    headers = dict(field.split(": ", 1) for field in fields)
    if headers.get("Transfer-Encoding") == "chunked":
        body = _unchunked(body)
    elif int(headers.get("Content-Length", len(body))) != len(body):
        raise ValueError("Content-Length")
    return Answer(int(status), headers, body.decode())


def _unchunked(body: bytes) -> bytes:
    parts = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        if body[length : length + 2] != b"\r\n":
            raise ValueError("a chunk is not whole")
        if not length:
            if body != b"\r\n":
                raise ValueError("something follows the last chunk")
            return b"".join(parts)
        parts.append(body[:length])
        body = body[length + 2 :]
