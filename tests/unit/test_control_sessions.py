"""The commands about sessions, as npppyd carries them out."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from npppy.control import format
from npppy.control.server import ControlServer
from npppy.control.sessions import CLEAR_SLICE, MONITOR_QUEUE, SLICE, some
from npppy.control.sessions import row as whole_row
from tests.unit.control_fake import ALICE, BOB, CAROL, DAVE, Client, FakeSubject, ask, many, until


@pytest.fixture
def subject() -> FakeSubject:
    return FakeSubject(ALICE, BOB, CAROL, DAVE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "npppyd.sock"


@pytest_asyncio.fixture(autouse=True)
async def server(subject: FakeSubject, path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(subject, path)
    await server.start()
    yield server
    await server.close()


def session(**filters: Any) -> dict[str, Any]:
    return {"command": "session", "filters": filters}


def clear(**filters: Any) -> dict[str, Any]:
    return {"command": "clear", "filters": filters}


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, {7, 4294967295}),
        ({"state": "up"}, {7, 4294967295}),
        ({"state": "half-open"}, {9}),
        ({"state": "any"}, {7, 4294967295, 9, 10}),
        ({"ppp_id": 7}, {7}),
        ({"ppp_id": 9}, {9}),
        ({"ppp_id": 9, "state": "up"}, set()),
        ({"ppp_id": 8}, set()),
        ({"ppp_id": -1}, set()),
        ({"address": "10.0.0.7"}, {7}),
        ({"address": "10.0.0.8"}, set()),
        ({"interface": "npx1"}, {4294967295}),
        ({"interface": "npx"}, set()),
        ({"protocol": "PPPOE", "state": "any"}, {7, 9, 10}),
        ({"protocol": "l2tp"}, {4294967295}),
        ({"protocol": "sstp"}, set()),
        ({"realm": "LOCAL"}, {7}),
        ({"realm": "local"}, set()),
        ({"username": "alice"}, {7}),
        ({"username": "ALICE"}, set()),
        ({"username": BOB.username}, {4294967295}),
        ({"username": "dave"}, set()),
        ({"username": "dave", "state": "any"}, {10}),
        ({"username": "alice", "address": "10.0.0.7", "ppp_id": 7, "realm": "LOCAL", "interface": "npx0"}, {7}),
        ({"username": "alice", "address": "192.168.100.200"}, set()),
        ({"username": "alice", "ppp_id": 4294967295}, set()),
    ],
)
@pytest.mark.parametrize("index", [True, False])
async def test_all_filters_must_match(
    subject: FakeSubject, path: Path, filters: dict[str, Any], ids: set[int], index: bool
) -> None:
    subject.index = index
    rows, last = await ask(path, session(**filters))
    assert {row["ppp_id"] for row in rows} == ids
    assert last == {"done": {}}


@pytest.mark.parametrize("filters", [{"ppp_id": 7}, {"username": "alice"}, {"address": "10.0.0.7"}])
async def test_an_index_is_used_where_there_is_one(subject: FakeSubject, path: Path, filters: dict[str, Any]) -> None:
    await ask(path, session(**filters))
    assert (subject.walks, subject.looked) == (0, [7])


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ([], "the filters are not an object"),
        (None, "the filters are not an object"),
        ({"color": "red"}, "unknown filter 'color'"),
        ({"ppp_id": None}, "filter ppp_id: not a number"),
        ({"state": None}, "filter state: not one of up, half-open, any"),
        ({"ppp_id": "7"}, "filter ppp_id: not a number"),
        ({"ppp_id": True}, "filter ppp_id: not a number"),
        ({"ppp_id": 7.0}, "filter ppp_id: not a number"),
        ({"username": 7}, "filter username: not a string"),
        ({"username": None}, "filter username: not a string"),
        ({"address": "10.0.0"}, "filter address: not an IPv4 address"),
        ({"address": "::1"}, "filter address: not an IPv4 address"),
        ({"address": ["10.0.0.7"]}, "filter address: not a string"),
        ({"state": "down"}, "filter state: not one of up, half-open, any"),
        ({"state": ["up"]}, "filter state: not one of up, half-open, any"),
    ],
)
@pytest.mark.parametrize("command", ["session", "clear", "monitor"])
async def test_bad_filters_do_nothing(subject: FakeSubject, path: Path, command: str, filters: Any, said: str) -> None:
    if command == "monitor" and "state" in said:
        said = "unknown filter 'state'"
    assert await ask(path, {"command": command, "filters": filters}) == ([], {"error": said})
    assert subject.disconnected == []
    assert subject.listeners == []


# Fields


@pytest.mark.parametrize("fields", [[], ["ppp_id"], ["out_errors", "username", "in_bytes"], format.BRIEF_COLUMNS])
async def test_rows_have_what_is_asked_for(path: Path, fields: list[str]) -> None:
    whole, _ = await ask(path, session(state="any"))
    rows, done = await ask(path, {**session(state="any"), "fields": fields})
    assert rows == [{name: row[name] for name in fields} for row in whole]
    assert done == {"done": {}}


def test_the_listings_can_be_asked_for() -> None:
    for columns in (format.BRIEF_COLUMNS, format.PACKETS_COLUMNS):
        assert some(list(columns))(BOB) == {name: whole_row(BOB)[name] for name in columns}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("ppp_id", "the fields are not a list of names"),
        ({"ppp_id": 1}, "the fields are not a list of names"),
        ([["ppp_id"]], "the fields are not a list of names"),
        (["ppp_id", "counters"], "unknown field 'counters'"),
        (["__class__"], "unknown field '__class__'"),
    ],
)
async def test_bad_fields(subject: FakeSubject, path: Path, fields: Any, said: str) -> None:
    assert await ask(path, {**session(), "fields": fields}) == ([], {"error": said})
    assert subject.looked == []


# Ten thousand sessions


class Turns:
    """Counts turns of the event loop, and what the server did in each."""

    def __init__(self, subject: FakeSubject) -> None:
        self.count = 0
        self.looks: Counter[int] = Counter()
        subject.on_look = self._look
        self._task = asyncio.create_task(self._run())

    def _look(self, ppp_id: int) -> None:
        self.looks[self.count] += 1

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    async def __aenter__(self) -> Turns:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._task.cancel()


@pytest.mark.parametrize("filters", [{}, {"username": "user10000"}, {"interface": "nowhere"}])
async def test_a_listing_lets_others_run_and_walks_once(
    subject: FakeSubject, path: Path, filters: dict[str, Any]
) -> None:
    subject.index = False
    subject.sessions = {info.ppp_id: info for info in many(10000)}
    async with Turns(subject) as turns:
        rows, last = await ask(path, session(**filters))
    assert last == {"done": {}}
    assert [row["ppp_id"] for row in rows] == {
        0: list(range(1, 10001)),
        1: [10000] if "username" in filters else [],
    }[len(filters)]
    assert subject.walks == 1
    assert subject.looked == list(range(1, 10001))
    # Never more than a slice between two turns of the others.
    assert max(turns.looks.values()) <= SLICE
    assert len(turns.looks) >= 10000 // SLICE


async def test_clearing_lets_others_run(subject: FakeSubject, path: Path) -> None:
    subject.sessions = {info.ppp_id: info for info in many(10000)}
    async with Turns(subject) as turns:
        rows, last = await ask(path, clear())
    assert (rows, last) == ([], {"done": {"disconnected": 10000, "failed": 0}})
    assert subject.disconnected == list(range(1, 10001))
    # Each is looked at and ended.
    assert max(turns.looks.values()) <= 2 * CLEAR_SLICE


async def test_sessions_that_go_meanwhile_are_skipped(subject: FakeSubject, path: Path) -> None:
    subject.sessions = {info.ppp_id: info for info in many(1000)}

    def look(ppp_id: int) -> None:
        if ppp_id == 150:
            for gone in range(200, 300):
                del subject.sessions[gone]
            subject.sessions[2000] = ALICE

    subject.on_look = look
    rows, last = await ask(path, session())
    assert [row["ppp_id"] for row in rows] == [*range(1, 200), *range(300, 1001)]
    assert last == {"done": {}}


async def test_rows_share_frames_of_bounded_size(subject: FakeSubject, path: Path) -> None:
    # 100 rows of 20 kB in one slice: frames do not grow to 2 MB.
    subject.sessions = {info.ppp_id: replace(info, realm="\x01" * 3300) for info in many(150)}
    client = await Client.ask(path, session())
    sizes = []
    rows = 0
    while True:
        length = int.from_bytes(await client.reader.readexactly(4), "big")
        frame = await client.reader.readexactly(length)
        if frame.startswith(b'{"done"'):
            break
        sizes.append(length)
        rows += frame.count(b'"ppp_id"')
    client.close()
    assert rows == 150
    assert max(sizes) <= 64 * 1024 + 16
    # Three rows a frame, in slices of 100 and of 50 sessions.
    assert len(sizes) == 34 + 17


async def test_a_listing_waits_for_a_client_that_does_not_read(subject: FakeSubject, path: Path) -> None:
    subject.sessions = {info.ppp_id: replace(info, realm="\x01" * 3300) for info in many(2000)}
    client = await Client.ask(path, session())
    await until(lambda: subject.looked)
    looked = -1
    while looked != len(subject.looked):
        looked = len(subject.looked)
        for _ in range(100):
            await asyncio.sleep(0)
    assert looked < 2000
    frames = await client.rest()
    client.close()
    assert sum(len(frame["rows"]) for frame in frames[:-1]) == 2000


async def test_a_listing_ends_with_its_client(server: ControlServer, subject: FakeSubject, path: Path) -> None:
    subject.sessions = {info.ppp_id: replace(info, realm="\x01" * 3300) for info in many(2000)}
    client = await Client.ask(path, session())
    await until(lambda: subject.looked)
    client.close()
    await until(lambda: not server.clients)
    assert len(subject.looked) < 2000


# clear


@pytest.mark.parametrize(
    ("filters", "ids", "failed"),
    [
        ({}, [7, 4294967295], 0),
        ({"state": "any"}, [7, 4294967295, 9, 10], 0),
        ({"ppp_id": 7}, [7], 0),
        ({"ppp_id": 9}, [9], 0),
        ({"ppp_id": 8}, [], 1),
        ({"ppp_id": 7, "username": "bob"}, [], 0),
        ({"ppp_id": 7, "username": "alice", "realm": "LOCAL"}, [7], 0),
        ({"username": "nobody"}, [], 0),
    ],
)
async def test_clear(
    subject: FakeSubject, path: Path, filters: dict[str, Any], ids: list[int], failed: int
) -> None:
    assert await ask(path, clear(**filters)) == ([], {"done": {"disconnected": len(ids), "failed": failed}})
    assert subject.disconnected == ids


async def test_clear_must_be_told_what(subject: FakeSubject, path: Path) -> None:
    assert await ask(path, {"command": "clear"}) == ([], {"error": "the filters are not an object"})
    assert subject.disconnected == []


async def test_clear_is_logged(subject: FakeSubject, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "npppy.control")
    await ask(path, clear(username="a\nb\x1b"))
    (line,) = caplog.messages
    assert line.startswith("control pid=")
    assert line.endswith(r'command=clear filters={"username":"a\nb\u001b"} disconnected=0 failed=0')


# monitor


async def monitor(subject: FakeSubject, path: Path, **filters: Any) -> Client:
    client = await Client.ask(path, {"command": "monitor", "filters": filters})
    await until(lambda: subject.listeners)
    return client


async def test_monitor_streams_matching_events_in_order(subject: FakeSubject, path: Path) -> None:
    client = await monitor(subject, path, protocol="pppoe")
    subject.tell("start", ALICE)
    subject.tell("start", BOB)
    subject.tell("stop", replace(ALICE, state="terminate", ppp_id=8))
    message = await client.receive()
    assert message is not None
    assert [(row["event"], row["ppp_id"], row["state"]) for row in message["rows"]] == [
        ("start", 7, "up"),
        ("stop", 8, "terminate"),
    ]
    client.close()
    await until(lambda: not subject.listeners)


async def test_monitors_do_not_disturb_each_other(subject: FakeSubject, path: Path) -> None:
    first = await monitor(subject, path)
    second = await Client.ask(path, {"command": "monitor"})
    await until(lambda: len(subject.listeners) == 2)
    first.close()
    await until(lambda: len(subject.listeners) == 1)
    subject.tell("start", ALICE)
    message = await second.receive()
    assert message is not None
    assert message["rows"][0]["ppp_id"] == 7
    second.close()


async def follow(client: Client, last: int) -> int:
    """Reads the events of sessions 1, 2, ... to *last*; returns how many of them were lost, each gap where it is."""
    expected = 1
    lost = 0
    while expected <= last:
        message = await client.receive()
        assert message is not None
        for row in message["rows"]:
            if row["event"] == "lost":
                lost += row["count"]
                expected += row["count"]
            else:
                assert row["ppp_id"] == expected
                expected += 1
    return lost


async def test_a_burst_beyond_the_queue_is_told_as_lost(subject: FakeSubject, path: Path) -> None:
    client = await monitor(subject, path)
    for info in many(MONITOR_QUEUE + 5):
        subject.tell("start", info)
    assert await follow(client, MONITOR_QUEUE + 5) == 5
    # And it goes on.
    subject.tell("stop", ALICE)
    message = await client.receive()
    assert message is not None
    assert message["rows"][0]["event"] == "stop"
    client.close()


async def test_a_gap_is_told_before_what_follows_it(subject: FakeSubject, path: Path) -> None:
    client = await monitor(subject, path)
    *burst, last = many(MONITOR_QUEUE + 6)
    for info in burst:
        subject.tell("start", info)
    # The queue has room again, but the five that were lost come first.
    for _ in range(4):
        await asyncio.sleep(0)
    subject.tell("start", last)
    assert await follow(client, MONITOR_QUEUE + 6) == 6
    client.close()


async def test_a_slow_client_costs_bounded_memory_and_learns_of_every_gap(subject: FakeSubject, path: Path) -> None:
    client = await monitor(subject, path)
    for count, info in enumerate(many(30000)):
        subject.tell("start", info)
        if count % 50 == 0:
            await asyncio.sleep(0)
    # Socket buffers hold some, the queue a thousand: most are lost.
    assert await follow(client, 30000) > 15000
    client.close()
