"""Random and mutated frames to the control socket: npppyd answers or closes, and serves the next client."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from npppy.control.server import ControlServer
from tests.unit.control_fake import ALICE, BOB, CAROL, HELLO, Client, FakeSubject, ask, framed

CASES = 1500

REQUESTS: list[dict[str, Any]] = [
    {"command": "session"},
    {"command": "session", "filters": {"ppp_id": 7, "state": "any"}},
    {"command": "session", "fields": ["ppp_id", "username", "in_bytes"]},
    {"command": "session", "filters": {"address": "10.0.0.7", "username": "alice", "realm": "LOCAL"}},
    {"command": "clear", "filters": {"protocol": "pptp", "interface": "npx0"}},
    {"command": "monitor", "filters": {"username": "alice"}},
]
VALUES: list[Any] = [None, True, 0, -1, 1.5, 2**70, "", "up", "\x00", "\udcff", "10.0.0.7", [], [[]], {}, {"a": None}]
NAMES = ["command", "filters", "fields", "hello", "version", "ppp_id", "address", "protocol", "state", "username", ""]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Octets changed, cut out, put in twice, or cut off."""
    octets = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(octets) + 1)
        match rng.randrange(5):
            case 0:
                octets[at : at + 1] = rng.randbytes(1)
            case 1:
                del octets[at : at + rng.randint(1, 8)]
            case 2:
                octets[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                octets[at:at] = octets[at : at + rng.randint(1, 40)]
            case 4:
                del octets[at:]
    return bytes(octets)


def twist(rng: random.Random, value: Any) -> Any:
    """JSON of about the right form: values and names changed for wrong ones."""
    if isinstance(value, dict):
        changed = {key: twist(rng, inner) for key, inner in value.items()}
        if rng.random() < 0.3:
            changed[rng.choice(NAMES)] = rng.choice(VALUES)
        return changed
    return rng.choice(VALUES) if rng.random() < 0.3 else value


def attempt(rng: random.Random) -> bytes:
    """What one client sends."""
    request = rng.choice(REQUESTS)
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.randint(0, 200))
        case 1:
            # A true length, and anything in the frame.
            payload = rng.randbytes(rng.randint(0, 200))
            return framed(HELLO) + len(payload).to_bytes(4, "big") + payload
        case 2:
            return mutate(rng, framed(HELLO) + framed(request))
        case 3:
            # True frames around JSON that is not.
            payload = mutate(rng, json.dumps(request).encode())
            return framed(HELLO) + len(payload).to_bytes(4, "big") + payload
        case _:
            return framed(twist(rng, HELLO) if rng.random() < 0.2 else HELLO) + framed(twist(rng, request))


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_a_client_sends_harms_the_server(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
    subject = FakeSubject(ALICE, BOB, CAROL)
    path = tmp_path / "npppyd.sock"
    server = ControlServer(subject, path)
    await server.start()

    async def once() -> list[dict[str, Any]]:
        client = await Client.connect(path)
        try:
            client.writer.write(attempt(rng))
            # A monitor, or a server that waits for the rest of a frame, ends with this.
            client.writer.write_eof()
            return await client.rest()
        except ConnectionError:
            return []
        finally:
            client.close()

    errors = 0
    for case in range(CASES // 4):
        frames = await once()
        errors += any("error" in frame for frame in frames)
        for frame in frames:
            assert list(frame) in (["hello", "version", "npppy"], ["rows"], ["done"], ["error"])
            assert "internal error" not in frame.get("error", "")
        if case % 25 == 0:
            subject.sessions = {info.ppp_id: info for info in (ALICE, BOB, CAROL)}
            rows, last = await ask(path, {"command": "session"})
            assert [row["ppp_id"] for row in rows] == [ALICE.ppp_id, BOB.ppp_id]
            assert last == {"done": {}}
    # Most of it was wrong enough to be told so, and all of that was counted.
    assert errors > CASES // 16
    assert server.malformed > CASES // 16
    await server.close()
    assert (unhandled, subject.listeners) == ([], [])
    assert not [record for record in caplog.records if record.exc_info]
