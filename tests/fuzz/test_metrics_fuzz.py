"""Random and mutated requests for metrics: each is answered by the rules or closed, and the next one served."""

from __future__ import annotations

import asyncio
import random

from hypothesis import example, given
from hypothesis import strategies as st

from npppy.exporter import MAX_HEAD, HttpError, Request, parse
from tests.unit.exporter_client import GET, Served, answer

CASES = 400

PIECES = [
    b"GET ", b"HEAD ", b"POST ", b"/metrics", b"/many", b"http://", b"bng:11701", b"*", b"?", b"%00", b" HTTP/1.1",
    b" HTTP/1.0", b" HTTP/9.9", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"Host: a\r\n", b"Host:", b"Connection: x\r\n",
    b"Content-Length: 18446744073709551616\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n",
    b"\x00", b"\xff\xfe", b" ", b"\t", b"x" * 5000, GET, GET[:-2],
]  # fmt: skip
REFUSED = {400, 405, 505}
STATUS = {200, 404, 408, 431, 503} | REFUSED


def check(head: bytes) -> None:
    """A request, or an error that there is an answer to."""
    found: Request | HttpError
    try:
        found = parse(head)
    except HttpError as error:
        found = error
    if isinstance(found, HttpError):
        assert found.status in REFUSED
        assert str(found).isprintable()
    else:
        assert found.method in ("GET", "HEAD")
        assert found.path.isascii()
        assert found.path.isprintable()


@given(st.binary(max_size=300))
def test_octets(head: bytes) -> None:
    check(head)


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
@example(b"GET " + b"/" * MAX_HEAD + b" HTTP/1.1\r\nHost: a")
@example(b"G" * MAX_HEAD)
@example(b"GET / HTTP/1.1" + b"\r\nA:" * (MAX_HEAD // 4))
def test_pieces_of_requests(head: bytes) -> None:
    check(head)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Octets changed, cut out, or put in."""
    octets = bytearray(data)
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(octets) + 1)
        match rng.randrange(3):
            case 0:
                octets[at : at + 1] = rng.randbytes(1)
            case 1:
                del octets[at : at + rng.randint(1, 8)]
            case 2:
                octets[at:at] = rng.choice(PIECES)
    return bytes(octets)


async def test_connections() -> None:
    served = Served()
    rng = random.Random(7)
    seen = set()

    async def attempt(octets: bytes) -> None:
        # Its end is said, or the time of those that never ask would be waited for.
        got = await served.say(octets, end=True)
        if got.startswith(b"HTTP/1.1 200 ") and (octets.startswith(b"HEAD") or b"chunked" not in got[:200]):
            seen.add(200)
        elif got and not octets.startswith(b"HEAD"):
            seen.add(answer(got).status)

    for _ in range(CASES // 8):
        cases = []
        for _ in range(8):
            whole = rng.random() < 0.5
            cases.append(mutate(rng, GET) if whole else b"".join(rng.choices(PIECES, k=rng.randint(0, 8))))
        await asyncio.gather(*map(attempt, cases))
        assert (await served.ask()).status == 200
    assert seen <= STATUS
    assert {200, 400, 404, 405, 431} <= seen
    assert not served.exporter._making.total()
    # What strangers ask for makes no labels.
    assert {path for path, _ in served.answers} <= {"/metrics", "/many", ""}
    served.exporter.close()
