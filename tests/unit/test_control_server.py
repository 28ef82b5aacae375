"""Who may connect to the control socket, and how it is held."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from npppy import __version__
from npppy.control import server as module
from npppy.control.protocol import MAX_REQUEST, VERSION, Message, RequestError
from npppy.control.server import ControlServer, Peer, Reply, peer_of, permitted
from tests.unit.control_fake import ALICE, HELLO, Client, FakeSubject, ask, framed, many, until


@pytest.fixture
def subject() -> FakeSubject:
    return FakeSubject(ALICE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "npppyd.sock"


@pytest_asyncio.fixture
async def server(subject: FakeSubject, path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(subject, path)
    await server.start()
    yield server
    await server.close()


LIST = {"command": "session"}


async def works(path: Path) -> bool:
    rows, last = await ask(path, LIST)
    return [row["ppp_id"] for row in rows] == [7] and last == {"done": {}}


# Peers


@pytest.mark.parametrize(
    ("peer", "group", "allowed"),
    [
        (Peer(1, 0, 0, frozenset()), None, True),
        (Peer(1, 100, 5, frozenset()), None, True),
        (Peer(1, 101, 0, frozenset({0, 5})), None, False),
        (Peer(1, 101, 5, frozenset()), 5, True),
        (Peer(1, 101, 6, frozenset({4, 5})), 5, True),
        (Peer(1, 101, 6, frozenset({4})), 5, False),
        (Peer(1, 101, 0, frozenset()), 5, False),
        # Group 0 is not "no group".
        (Peer(1, 101, 0, frozenset()), 0, True),
        (Peer(1, 101, 6, frozenset()), 0, False),
    ],
)
def test_permitted(peer: Peer, group: int | None, allowed: bool) -> None:
    assert permitted(peer, 100, group) is allowed


def test_the_kernel_says_who_the_peer_is() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    assert peer == (os.getpid(), os.getuid(), os.getgid(), frozenset(os.getgroups()))


async def test_a_stranger_is_refused(
    server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "peer_of", lambda sock: Peer(123, 65534, 65534, frozenset()))
    client = await Client.connect(path)
    assert await client.rest() == [{"error": "permission denied"}]
    client.close()
    assert server.refused == 1
    assert caplog.messages == ["control pid=123 uid=65534 refused reason='permission denied'"]
    monkeypatch.undo()
    assert await works(path)


@pytest.mark.root
@pytest.mark.parametrize(
    ("gid", "groups", "allowed"), [(4321, [], True), (65534, [7, 4321], True), (65534, [7], False), (65534, [], False)]
)
async def test_other_users(subject: FakeSubject, gid: int, groups: list[int], allowed: bool) -> None:
    own = os.getgroups()
    # The path and the mode of the file would let anyone in.
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        path = Path(name) / "npppyd.sock"
        server = ControlServer(subject, path, group=4321, mode=0o666)
        await server.start()
        assert path.stat().st_gid == 4321
        sock = socket.socket(socket.AF_UNIX)
        try:
            os.setgroups(groups)
            os.setegid(gid)
            os.seteuid(65534)
            sock.connect(str(path))
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(own)
        client = Client(*await asyncio.open_unix_connection(sock=sock))
        first = await client.receive()
        assert first is not None
        assert list(first) == (["hello", "version", "npppy"] if allowed else ["error"])
        client.close()
        await server.close()


# The socket's file


async def test_mode_and_group(subject: FakeSubject, path: Path) -> None:
    for mode in (0o660, 0o600):
        server = ControlServer(subject, path, group=os.getgid(), mode=mode)
        await server.start()
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, os.getgid())
        await server.close()
        assert not path.exists()


async def test_the_default_mode_is_0660(server: ControlServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


async def test_a_stale_socket_is_replaced(subject: FakeSubject, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(subject, path)
    await server.start()
    assert await works(path)
    await server.close()
    assert not path.exists()


async def test_a_live_daemon_keeps_its_socket(server: ControlServer, subject: FakeSubject, path: Path) -> None:
    second = ControlServer(subject, path)
    with pytest.raises(OSError, match=f"^\\[Errno 98\\] control socket {path}: another npppyd answers on it$"):
        await second.start()
    await second.close()
    assert await works(path)
    # To be probed so is no malformed client.
    assert (server.malformed, server.refused) == (0, 0)


async def test_a_busy_daemon_keeps_its_socket(subject: FakeSubject, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(OSError, match="another npppyd answers"):
            await ControlServer(subject, path).start()
    assert path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(subject: FakeSubject, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(OSError, match="a file that is not a socket"):
        await ControlServer(subject, path).start()
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/npppyd.sock", "x" * 120])
async def test_a_socket_that_cannot_be_is_named(subject: FakeSubject, tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=f"control socket {tmp_path / name}: "):
        await ControlServer(subject, tmp_path / name).start()


async def test_the_file_of_another_is_not_removed(subject: FakeSubject, path: Path) -> None:
    first = ControlServer(subject, path)
    await first.start()
    path.unlink()
    second = ControlServer(subject, path)
    await second.start()
    await first.close()
    assert await works(path)
    await second.close()


# Greetings and requests


async def test_hello(server: ControlServer, path: Path) -> None:
    client = await Client.connect(path)
    assert await client.receive() == {"hello": "npppyd", "version": VERSION, "npppy": __version__}
    client.close()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (
            framed({"hello": "x", "version": 2}),
            "npppyd speaks version 1 of the control protocol, the other side version 2",
        ),
        (framed(LIST), "no hello"),
        (framed([]), "not a JSON object"),
        (b"\x00\x00\x00\x00", "not JSON"),
        (b"\x00\x01\x00\x01", f"a frame of {MAX_REQUEST + 1} octets, the limit is {MAX_REQUEST}"),
        (b"GET / HTTP/1.1\r\n\r\n", f"a frame of 1195725856 octets, the limit is {MAX_REQUEST}"),
        (framed(HELLO) + b"\x00\x00\x00\x02{]", "not JSON"),
        (framed(HELLO) + b"\x00\x00\x00\x05" + b"\xff" * 5, "not JSON"),
        (framed(HELLO) + b"\xff\xff\xff\xff", f"a frame of 4294967295 octets, the limit is {MAX_REQUEST}"),
    ],
)
async def test_what_is_malformed_is_answered_counted_and_logged(
    server: ControlServer, path: Path, sent: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await Client.connect(path)
    await client.receive()
    client.writer.write(sent)
    assert await client.rest() == [{"error": said}]
    client.close()
    assert server.malformed == 1
    assert caplog.messages == [f"control pid={os.getpid()} uid={os.getuid()} malformed reason={said!r}"]
    assert await works(path)


@pytest.mark.parametrize("sent", [b"\x00", b"\x00\x00\x00\x09", b"\x00\x00\x00\x09{", framed(HELLO) + b"\x00\x00"])
async def test_a_frame_cut_short(server: ControlServer, path: Path, sent: bytes) -> None:
    client = await Client.connect(path)
    await client.receive()
    client.writer.write(sent)
    client.writer.write_eof()
    assert await client.rest() == [{"error": "the connection ended within a frame"}]
    client.close()
    assert server.malformed == 1


@pytest.mark.parametrize("sent", [b"", framed(HELLO)])
async def test_a_client_may_leave_without_a_request(server: ControlServer, path: Path, sent: bytes) -> None:
    client = await Client.connect(path)
    await client.receive()
    client.writer.write(sent)
    client.writer.write_eof()
    assert await client.rest() == []
    client.close()
    assert (server.malformed, server.refused) == (0, 0)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, 'npppyd knows no command "None"'),
        ({"command": "reboot"}, 'npppyd knows no command "reboot"'),
        ({"command": ["session"]}, "npppyd knows no command \"['session']\""),
        ({"command": "\x1b" * 99}, f'npppyd knows no command "{chr(92)}{(chr(92)).join(["x1b"] * 40)}"'),
    ],
)
async def test_unknown_commands(server: ControlServer, path: Path, request_: dict[str, Any], said: str) -> None:
    assert await ask(path, request_) == ([], {"error": said})
    assert server.malformed == 0


async def test_a_silent_client_is_sent_away(
    server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT", 0)
    client = await Client.connect(path)
    assert (await client.rest())[1:] == [{"error": "no command in 0 seconds"}]
    client.close()
    assert server.refused == 1


async def test_clients_are_bounded(
    server: ControlServer, subject: FakeSubject, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 3)
    clients = [await Client.ask(path, {"command": "monitor"}) for _ in range(3)]
    await until(lambda: len(subject.listeners) == 3)
    one_more = await Client.connect(path)
    assert await one_more.rest() == [{"error": "npppyd has 3 control connections already"}]
    one_more.close()
    assert server.refused == 1
    clients[0].close()
    await until(lambda: len(subject.listeners) == 2)
    await until(lambda: server.clients == 2)
    assert await works(path)
    for client in clients[1:]:
        client.close()


async def test_many_clients_at_once(server: ControlServer, subject: FakeSubject, path: Path) -> None:
    subject.sessions = {info.ppp_id: info for info in many(500)}
    answers = await asyncio.gather(*(ask(path, LIST) for _ in range(module.MAX_CLIENTS)))
    assert all(len(rows) == 500 and last == {"done": {}} for rows, last in answers)
    assert server.refused == 0


# Further commands


async def test_a_command_is_one_entry(server: ControlServer, path: Path) -> None:
    async def pools(request: Message, reply: Reply) -> Message:
        await reply.rows([{"pool": request["name"]}])
        await reply.rows([])
        return {"pools": 1}

    server.register("pool", pools)
    assert await ask(path, {"command": "pool", "name": "a"}) == ([{"pool": "a"}], {"done": {"pools": 1}})
    with pytest.raises(ValueError, match="'pool' is registered twice"):
        server.register("pool", pools)


async def test_a_mistake_in_a_handler_ends_the_command_only(
    server: ControlServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: Message, reply: Reply) -> Message:
        await reply.rows([{"n": 1}])
        raise KeyError("oops")

    async def too_long(request: Message, reply: Reply) -> Message:
        await reply.rows([{"n": "x" * 2_000_000}])
        return {}

    async def wrong(request: Message, reply: Reply) -> Message:
        return {"n": object()}

    async def refuses(request: Message, reply: Reply) -> Message:
        raise RequestError("not today")

    server.register("broken", broken)
    server.register("long", too_long)
    server.register("wrong", wrong)
    server.register("refuses", refuses)
    internal = {"error": "internal error; npppyd's log has the details"}
    assert await ask(path, {"command": "broken"}) == ([{"n": 1}], internal)
    assert await ask(path, {"command": "long"}) == ([], internal)
    assert await ask(path, {"command": "wrong"}) == ([], internal)
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3
    assert await ask(path, {"command": "refuses"}) == ([], {"error": "not today"})
    assert len(caplog.records) == 3
    assert await works(path)


async def test_the_end_of_an_answer_waits_for_a_client_that_does_not_read(server: ControlServer, path: Path) -> None:
    sent = 0

    async def fill(request: Message, reply: Reply) -> Message:
        nonlocal sent
        # Until the kernel takes no more, and the rest is ours to keep.
        while not reply._writer.transport.get_write_buffer_size():
            await reply.rows([{"n": "x" * 1000}])
            sent += 1
        return {"sent": sent}

    server.register("fill", fill)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(path))
        await loop.sock_sendall(sock, framed(HELLO) + framed({"command": "fill"}))
        await until(lambda: sent)
        for _ in range(10):
            await asyncio.sleep(0)
        received = b""
        while part := await loop.sock_recv(sock, 65536):
            received += part
    assert received.count(b'{"rows"') == sent
    assert received.endswith(framed({"done": {"sent": sent}}).replace(b" ", b"")[4:])


@pytest.mark.parametrize("leave", ["close", "eof", "more"])
async def test_a_handler_is_cancelled_when_its_client_leaves_or_says_more(
    server: ControlServer, path: Path, leave: str
) -> None:
    started = asyncio.Event()
    cancelled = asyncio.Event()

    async def endless(request: Message, reply: Reply) -> Message:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return {}

    server.register("endless", endless)
    client = await Client.ask(path, {"command": "endless"})
    await started.wait()
    if leave == "close":
        client.close()
    elif leave == "eof":
        client.writer.write_eof()
    else:
        client.writer.write(framed(LIST))
    await cancelled.wait()
    await until(lambda: not server.clients)
    client.close()


async def test_close_breaks_off_what_is_under_way(subject: FakeSubject, path: Path) -> None:
    server = ControlServer(subject, path)
    await server.start()
    subject.sessions = {info.ppp_id: info for info in many(20000)}
    monitor = await Client.ask(path, {"command": "monitor"})
    # Its buffers full, the listing waits.
    listing = await Client.ask(path, LIST)
    silent = await Client.connect(path)
    await until(lambda: subject.listeners and subject.looked and server.clients == 3)
    await server.close()
    assert (server.clients, subject.listeners) == (0, [])
    assert await monitor.rest() == []
    frames = await listing.rest()
    assert all("rows" in frame for frame in frames)
    assert len(await silent.rest()) == 1
    for client in (monitor, listing, silent):
        client.close()
    with pytest.raises(FileNotFoundError):
        await Client.connect(path)
    await server.close()


def test_it_runs_on_uvloop(path: Path) -> None:
    async def main() -> None:
        subject = FakeSubject(*many(3000))
        server = ControlServer(subject, path)
        await server.start()
        rows, last = await ask(path, LIST)
        assert (len(rows), last) == (3000, {"done": {}})
        assert await ask(path, {"command": "x"}) == ([], {"error": 'npppyd knows no command "x"'})
        client = await Client.ask(path, {"command": "monitor"})
        await until(lambda: subject.listeners)
        await server.close()
        assert await client.rest() == []
        client.close()
        assert not path.exists()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
