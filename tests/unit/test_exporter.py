"""HTTP for Prometheus: what is answered, what is refused, and what clients can take of us."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from npppy import exporter
from npppy.exporter import MAX_CLIENTS, MAX_HEAD, MAX_PAGES, Exporter, HttpError, ListenError, Request, parse
from tests.unit.exporter_client import GET, LOOPBACK, Answer, Served, answer, lines

BODY = "line 0\nline 1\nline 2\n"


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    yield served
    served.exporter.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


# Requests.


@pytest.mark.parametrize(
    ("head", "request_"),
    [
        (b"GET / HTTP/1.1\r\nHost: x", ("GET", "/", 1)),
        (b"GET /metrics?a=b HTTP/1.1\r\nhOST:", ("GET", "/metrics", 1)),
        (b"HEAD /metrics HTTP/1.0", ("HEAD", "/metrics", 0)),
        (b"GET http://bng:11701/metrics?x HTTP/1.1\r\nHost: bng", ("GET", "/metrics", 1)),
        (b"GET HTTP://bng HTTP/1.1\r\nHost: bng", ("GET", "/", 1)),
        (b"GET /metrics HTTP/1.9\r\nHost: \xff\r\nAccept:\ttext/plain ; q=0.5", ("GET", "/metrics", 9)),
    ],
)
def test_requests(head: bytes, request_: tuple[str, str, int]) -> None:
    assert parse(head) == Request(*request_)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /metrics", 400),
        (b"GET  /metrics HTTP/1.1", 400),
        (b"GET /metrics HTTP/1.1 ", 400),
        (b"GET /metrics HTTP/11", 400),
        (b"GET /met\x00rics HTTP/1.1", 400),
        (b"GET /m\xc3\xa9 HTTP/1.1", 400),
        (b"G(T / HTTP/1.1\r\nHost: x", 400),
        (b"GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nHost : a", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a", 505),
        (b"GET / HTTP/0.9\r\nHost: a", 505),
        (b"POST / HTTP/1.1\r\nHost: a", 405),
        (b"get / HTTP/1.1\r\nHost: a", 405),
        (b"CONNECT bng:80 HTTP/1.1\r\nHost: a", 405),
    ],
)
def test_what_is_no_request_of_ours(head: bytes, status: int) -> None:
    with pytest.raises(HttpError) as raised:
        parse(head)
    assert raised.value.status == status


# Answers.


async def test_a_page(served: Served) -> None:
    got = await served.ask()
    assert (got.status, got.body) == (200, BODY)
    assert got.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert got.headers["Transfer-Encoding"] == "chunked"
    assert got.headers["Connection"] == "close"
    assert served.answers == {("/metrics", 200): 1}


async def test_a_page_of_many_chunks(served: Served) -> None:
    octets = await served.say(b"GET /many HTTP/1.1\r\nHost: a\r\n\r\n")
    assert len(re.findall(rb"\r\n4[0-9a-f]{3}\r\nline", octets)) == 2
    assert answer(octets).body == "".join(f"line {number}\n" for number in range(5000))


async def test_a_page_for_http_1_0(served: Served) -> None:
    octets = await served.say(b"GET /many HTTP/1.0\r\n\r\n")
    assert b"chunked" not in octets
    assert answer(octets).body == "".join(f"line {number}\n" for number in range(5000))


async def test_an_empty_page() -> None:
    served = Served({"/metrics": lines(0)})
    octets = await served.say(GET)
    assert octets.endswith(b"\r\n\r\n0\r\n\r\n")
    served.exporter.close()


async def test_head_has_no_body(served: Served) -> None:
    for path, status in (("/metrics", 200), ("/none", 404)):
        octets = await served.say(f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert octets.endswith(b"\r\n\r\n")
        assert octets.count(b"\r\n\r\n") == 1
        assert octets.startswith(b"HTTP/1.1 %d " % status)


async def test_other_paths(served: Served) -> None:
    for path in ("/", "/metrics/", "/Metrics", "/../metrics", "//metrics", "/%6detrics", "*"):
        got = await served.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (got.status, got.body) == (404, "there are /metrics, /many\n")
    # What a client asks for is no label of ours.
    assert served.answers == {("", 404): 7}


async def test_other_methods(served: Served) -> None:
    got = await served.ask(b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    assert (got.status, got.headers["Allow"]) == (405, "GET, HEAD")


async def test_a_request_in_pieces(served: Served) -> None:
    reader, writer = await served.connect()
    for octet in GET:
        writer.write(bytes((octet,)))
        await writer.drain()
        await asyncio.sleep(0)
    assert answer(await reader.read()).body == BODY
    writer.close()


async def test_only_the_first_request_is_answered(served: Served) -> None:
    assert answer(await served.say(GET + GET)).body == BODY
    assert served.answers.total() == 1


@pytest.mark.parametrize(
    ("octets", "status"),
    [(b"GET /metrics HTTP/1.1\r\nHost: a\r\n", 400), (b"x" * 100, 400), (b"", 0)],
)
async def test_the_client_ends_before_its_request_does(served: Served, octets: bytes, status: int) -> None:
    got = await served.say(octets, end=True)
    assert got.startswith(b"HTTP/1.1 400 ") if status else got == b""


async def test_a_head_that_is_too_large(served: Served) -> None:
    field = b"X: " + b"x" * (MAX_HEAD - len(GET) - 5) + b"\r\n\r\n"
    assert (await served.ask(GET[:-2] + field)).status == 200
    for more in (field[:-4] + b"y\r\n\r\n", b"X: " + b"y" * 1_000_000):
        # It is told why, though it still talks.
        assert (await served.ask(GET[:-2] + more)).status == 431


# What clients can take.


async def test_one_who_says_nothing_is_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "REQUEST_TIMEOUT", 0.01)
    assert (await served.ask(GET[:-2])).status == 408


async def test_one_who_does_not_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded, and so is the time."""
    made = 0

    def endless() -> Iterator[str]:
        nonlocal made
        while True:
            made += 1
            yield "x" * 1000

    monkeypatch.setattr(exporter, "PAGE_TIMEOUT", 0.3)
    slow = Served({"/metrics": endless})
    reader, writer = await slow.connect()
    writer.write(GET)
    before = -1
    while made != before or not made:
        before = made
        await asyncio.sleep(0.05)
    # The buffers of two sockets.
    assert made < 20_000
    await until(lambda: not slow.exporter._clients)
    with pytest.raises(ValueError, match="chunk"):
        answer(await reader.read())
    writer.close()
    slow.exporter.close()


async def test_one_who_goes_in_the_middle(served: Served) -> None:
    ended = []

    def endless() -> Iterator[str]:
        try:
            while True:
                yield "x" * 1000
        finally:
            ended.append(True)

    other = Served({"/metrics": endless})
    reader, writer = await other.connect()
    writer.write(GET)
    await reader.readexactly(5000)
    writer.transport.abort()
    await until(lambda: ended)
    await until(lambda: not other.exporter._clients)
    other.exporter.close()


async def test_silent_clients_do_not_keep_others_out(served: Served) -> None:
    silent = [await served.connect() for _ in range(MAX_CLIENTS)]
    await until(lambda: len(served.exporter._clients) == MAX_CLIENTS)
    assert (await served.ask()).body == BODY
    assert served.full == 1
    # The oldest had the most time.
    assert await silent[0][0].read() == b""
    silent[1][1].write(GET)
    assert answer(await silent[1][0].read()).status == 200
    for _, writer in silent:
        writer.close()


class Gate:
    """Pages that wait until they are let go."""

    def __init__(self) -> None:
        self.open = False
        self.began = 0

    def page(self) -> Iterator[str]:
        self.began += 1
        while not self.open:
            yield ""
        yield "done\n"


async def test_no_more_pages_than_may_be_made() -> None:
    gate = Gate()
    served = Served({"/metrics": gate.page, "/other": lines(1)})
    asked = [asyncio.ensure_future(served.ask()) for _ in range(MAX_PAGES)]
    await until(lambda: gate.began == MAX_PAGES)
    assert (await served.ask()).status == 503
    assert (await served.ask(b"GET /other HTTP/1.0\r\n\r\n")).status == 200
    gate.open = True
    assert [got.body for got in await asyncio.gather(*asked)] == ["done\n"] * MAX_PAGES
    assert (await served.ask()).body == "done\n"
    served.exporter.close()


async def test_there_is_no_room_while_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "MAX_CLIENTS", 2)
    gate = Gate()
    served = Served({"/metrics": gate.page})
    asked = [asyncio.ensure_future(served.ask()) for _ in range(2)]
    await until(lambda: gate.began == 2)
    assert await served.say(GET) == b""
    assert served.full == 1
    gate.open = True
    await asyncio.gather(*asked)
    served.exporter.close()


async def test_others_have_their_turn_after_each_piece() -> None:
    turns = []

    def page() -> Iterator[str]:
        loop = asyncio.get_running_loop()
        for number in range(50):
            loop.call_soon(turns.append, number)
            yield "x\n"
            assert turns[-1] == number

    served = Served({"/metrics": page})
    assert (await served.ask()).body == "x\n" * 50
    served.exporter.close()


@pytest.mark.parametrize("mistake", [LookupError("a mistake"), OSError(errno.EMFILE, "Too many open files")])
async def test_a_mistake_of_ours_ends_one_answer(caplog: pytest.LogCaptureFixture, mistake: Exception) -> None:
    def broken() -> Iterator[str]:
        yield "x\n"
        raise mistake

    served = Served({"/metrics": broken, "/good": lines(1)})
    # It cannot be taken for a whole page.
    with pytest.raises(ValueError, match="chunk"):
        answer(await served.say(GET))
    assert (await served.ask(b"GET /good HTTP/1.0\r\n\r\n")).body == "line 0\n"
    assert "metrics: an answer failed" in caplog.text
    served.exporter.close()


async def test_no_descriptors_are_left(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is served when there are some again."""
    monkeypatch.setattr(exporter, "PAUSE", 0.01)
    (listener,) = served.exporter._listeners.values()
    real, failures = listener._sock, 3

    class Failing:
        fileno = real.fileno
        close = real.close

        def accept(self) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return real.accept()

    listener._sock = Failing()  # type: ignore[assignment]
    assert (await served.ask()).body == BODY
    assert failures == 0


# Where it listens.


async def test_addresses_come_and_go(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "npppy.metrics")
    first = served.port
    six = ip_address("::1"), 0
    served.exporter.listen([LOOPBACK, six])
    ports = dict(served.exporter.listening())
    assert ports[LOOPBACK[0]] == first
    reader, writer = await asyncio.open_connection("::1", ports[six[0]])
    writer.write(GET)
    assert answer(await reader.read()).body == BODY
    writer.close()
    kept = await served.connect()
    served.exporter.listen([six])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", first)
    # An answer that is under way comes to its end.
    kept[1].write(GET)
    assert answer(await kept[0].read()).body == BODY
    kept[1].close()
    assert [record.getMessage() for record in caplog.records] == [
        "metrics listen=[::1]:0 Listening",
        "metrics listen=127.0.0.1:0 Closed",
    ]


async def test_an_address_that_cannot_be_had(served: Served) -> None:
    taken = LOOPBACK[0], served.port
    other = Exporter({}, lambda path, status: None, lambda: None)
    with pytest.raises(ListenError, match=rf"metrics-listen: cannot listen on 127\.0\.0\.1:{taken[1]}: .*in use"):
        other.listen([taken, LOOPBACK])
    # The others are listened on all the same.
    assert len(other.listening()) == 1
    other.close()
    assert (await served.ask()).body == BODY


async def test_closing_breaks_answers_off() -> None:
    gate = Gate()
    served = Served({"/metrics": gate.page})
    asked = asyncio.ensure_future(served.say(GET))
    await until(lambda: gate.began)
    served.exporter.close()
    assert not (await asked).endswith(b"0\r\n\r\n")
    await until(lambda: not served.exporter._clients)


def test_it_runs_on_uvloop() -> None:
    """As the daemon has it: in a thread of its own, so that a client that blocks may ask."""
    ports: list[int] = []
    ready, end = threading.Event(), threading.Event()

    async def main() -> None:
        served = Served()
        ports.append(served.port)
        ready.set()
        while not end.is_set():
            await asyncio.sleep(0.001)
        served.exporter.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    def ask(octets: bytes, *, hasty: bool = False) -> Answer | None:
        with socket.create_connection(("127.0.0.1", ports[0])) as sock:
            sock.sendall(octets)
            if hasty:
                return None
            parts = []
            while part := sock.recv(65536):
                parts.append(part)
            return answer(b"".join(parts))

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    try:
        for _ in range(MAX_CLIENTS + 4):
            ask(GET[:-2], hasty=True)
            ask(b"GET /many HTTP/1.1\r\nHost: a\r\n\r\n", hasty=True)
        for request, size in ((GET, len(BODY)), (b"GET /many HTTP/1.1\r\nHost: a\r\n\r\n", 5000 * 6)):
            got = None
            # The pages of those that have gone are made until somebody notices.
            while got is None or got.status == 503:
                got = ask(request)
            assert got.status == 200
            assert len(got.body) >= size
        got = ask(GET[:-2] + b"X: " + b"x" * 100_000)
        assert got is not None
        assert got.status == 431
    finally:
        end.set()
        thread.join()
