"""conf/freeradius itself: what it answers to requests that are made by hand, and what it writes down."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from npppy.ppp import mschap
from tests.peers.lab import inside, run
from tests.radius import fake
from tests.radius.fake import vendor
from tests.radius.lab import ACCT, AUTH, SECRET, FreeRadius, netns, radclient

pytestmark = pytest.mark.root

ALICE = "wonderland"
MICROSOFT = 311
#: Of Microsoft's (RFC 2548).
MS_CHAP_ERROR, MS_CHAP_CHALLENGE, MS_MPPE_SEND_KEY, MS_MPPE_RECV_KEY, MS_CHAP2_RESPONSE, MS_CHAP2_SUCCESS = (
    2, 11, 16, 17, 25, 26,
)  # fmt: skip
EAP_MESSAGE = 79
BOOT = "5eed0001"
LOCAL = "127.0.0.1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreeRadius]:
    namespace = f"radius{os.getpid()}"
    netns(namespace)
    made = FreeRadius(tmp_path_factory.mktemp("radius"), namespace)
    try:
        yield made.start()
    finally:
        made.close()
        run("ip", "netns", "delete", namespace)


class Reply:
    """An answer that is signed as npppyd demands it."""

    def __init__(self, data: bytes, asked: bytes) -> None:
        self.code = data[0]
        self.attributes = fake.decode(data)
        assert data[1] == asked[1]
        assert hashlib.md5(data[:4] + asked[4:20] + data[20:] + fake.SECRET).digest() == data[4:20]
        if self.code != fake.ACCOUNTING_RESPONSE:
            at = 20
            for kind, value in self.attributes:
                if kind == fake.MESSAGE_AUTHENTICATOR:
                    break
                at += len(value) + 2
            else:
                raise AssertionError("no Message-Authenticator")
            blank = data[:4] + asked[4:20] + data[20 : at + 2] + bytes(16) + data[at + 18 :]
            assert hmac.digest(fake.SECRET, blank, "md5") == data[at + 2 : at + 18]

    def get(self, kind: int) -> bytes | None:
        return next((value for number, value in self.attributes if number == kind), None)

    def vendor(self, number: int, kind: int) -> bytes | None:
        head = struct.pack("!IB", number, kind)
        found = [value for code, value in self.attributes if code == fake.VENDOR_SPECIFIC and value.startswith(head)]
        return found[0][6:] if found else None

    @property
    def address(self) -> str:
        return socket.inet_ntoa(self.get(fake.FRAMED_IP_ADDRESS) or b"")


def exchange(server: FreeRadius, data: bytes, place: str = LOCAL, port: int = AUTH) -> Reply:
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    with inside(server.namespace):
        sock = socket.socket(family, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(60)
        sock.connect((place, port))
        sock.send(data)
        return Reply(sock.recv(4096), data)


def nas(session: int, *, host: int = 1, boot: str = BOOT) -> list[tuple[int, bytes]]:
    return [
        (fake.NAS_IP_ADDRESS, bytes((192, 0, 2, host))),
        (fake.ACCT_SESSION_ID, f"{boot}{session:08x}".encode()),
    ]


def hide(password: bytes, authenticator: bytes) -> bytes:
    """RFC 2865 section 5.2, for up to 16 octets."""
    pad = hashlib.md5(fake.SECRET + authenticator).digest()
    return bytes(one ^ other for one, other in zip(password.ljust(16, b"\0"), pad, strict=True))


def signed(attributes: fake.Attributes, authenticator: bytes) -> bytes:
    """An Access-Request with an authenticator of one's own."""
    raw = fake.encode(attributes)
    head = struct.pack("!BBH", fake.ACCESS_REQUEST, 7, 38 + len(raw)) + authenticator
    blank = struct.pack("!BB", fake.MESSAGE_AUTHENTICATOR, 18) + bytes(16) + raw
    return head + blank[:2] + hmac.digest(fake.SECRET, head + blank, "md5") + raw


def pap_request(user: str, password: str, session: int = 1, host: int = 1) -> bytes:
    authenticator = os.urandom(16)
    attributes = [
        (fake.USER_NAME, user.encode()),
        (fake.USER_PASSWORD, hide(password.encode(), authenticator)),
        *nas(session, host=host),
    ]
    return signed(attributes, authenticator)


def pap(server: FreeRadius, user: str, password: str, session: int = 1, *, host: int = 1, place: str = LOCAL) -> Reply:
    return exchange(server, pap_request(user, password, session, host), place)


def account(
    server: FreeRadius,
    kind: int,
    user: str,
    session: int,
    *,
    address: str = "0.0.0.0",
    host: int = 1,
    boot: str = BOOT,
    when: int = 0,
    more: fake.Attributes = (),
    place: str = LOCAL,
) -> None:
    attributes = [
        (fake.ACCT_STATUS_TYPE, struct.pack("!I", kind)),
        *nas(session, host=host, boot=boot),
        (fake.EVENT_TIMESTAMP, struct.pack("!I", when or int(time.time()))),
        *more,
    ]
    if kind not in (fake.ON, fake.OFF):
        attributes += [(fake.USER_NAME, user.encode()), (fake.FRAMED_IP_ADDRESS, socket.inet_aton(address))]
    data = fake.request(fake.ACCOUNTING_REQUEST, 3, attributes, fake.SECRET)
    assert exchange(server, data, place, ACCT).code == fake.ACCOUNTING_RESPONSE


@pytest.mark.parametrize("place", [LOCAL, "::1"])
def test_status_server(server: FreeRadius, place: str) -> None:
    data = fake.request(fake.STATUS_SERVER, 9, (), fake.SECRET)
    assert exchange(server, data, place).code == fake.ACCESS_ACCEPT
    assert exchange(server, data, place, ACCT).code == fake.ACCOUNTING_RESPONSE


def test_a_request_without_a_message_authenticator_is_not_answered(server: FreeRadius) -> None:
    status, shown = radclient(
        server.namespace, f"{LOCAL}:{AUTH}", "auth", 'User-Name = "nobody", User-Password = "x"', patience=0.5
    )
    assert status != 0
    assert "No reply from server" in shown


@pytest.mark.parametrize("place", [LOCAL, "::1"])
def test_pap(server: FreeRadius, place: str) -> None:
    name = f"pap{len(place)}"
    server.user(name, ALICE, reply=[("Reply-Message", "welcome"), ("Class", "0x6f6e65"), ("Class", "0x74776f")])
    reply = pap(server, name, ALICE, place=place)
    assert reply.code == fake.ACCESS_ACCEPT
    assert reply.get(fake.REPLY_MESSAGE) == b"welcome"
    assert [value for kind, value in reply.attributes if kind == fake.CLASS] == [b"one", b"two"]
    assert pap(server, name, "Wonderland", place=place).code == fake.ACCESS_REJECT
    assert pap(server, "nobody", ALICE, place=place).code == fake.ACCESS_REJECT


def test_chap(server: FreeRadius) -> None:
    server.user("chap", ALICE)
    challenge = os.urandom(24)
    for password, code in ((ALICE, fake.ACCESS_ACCEPT), ("other", fake.ACCESS_REJECT)):
        response = b"\5" + hashlib.md5(b"\5" + password.encode() + challenge).digest()
        attributes = [(fake.USER_NAME, b"chap"), (fake.CHAP_PASSWORD, response), (60, challenge), *nas(2)]
        assert exchange(server, signed(attributes, os.urandom(16))).code == code


def test_mschapv2(server: FreeRadius) -> None:
    server.user("ms", ALICE)
    ours, theirs = os.urandom(16), os.urandom(16)
    response = mschap.nt_response(ours, theirs, b"ms", ALICE.encode())
    for data, code in ((response, fake.ACCESS_ACCEPT), (bytes(24), fake.ACCESS_REJECT)):
        attributes = [
            (fake.USER_NAME, b"ms"),
            vendor(MICROSOFT, MS_CHAP_CHALLENGE, ours),
            vendor(MICROSOFT, MS_CHAP2_RESPONSE, b"\x09\0" + theirs + bytes(8) + data),
            *nas(3),
        ]
        reply = exchange(server, signed(attributes, os.urandom(16)))
        assert reply.code == code
        success = reply.vendor(MICROSOFT, MS_CHAP2_SUCCESS)
        assert (reply.vendor(MICROSOFT, MS_MPPE_SEND_KEY) is not None) == (code == fake.ACCESS_ACCEPT)
        assert (reply.vendor(MICROSOFT, MS_MPPE_RECV_KEY) is not None) == (code == fake.ACCESS_ACCEPT)
        if code == fake.ACCESS_ACCEPT:
            assert success is not None
            assert success[:3] == b"\x09S="
            assert len(success) == 43
        else:
            assert (reply.vendor(MICROSOFT, MS_CHAP_ERROR) or b"").startswith(b"\x09E=691 ")


def test_eap_md5(server: FreeRadius) -> None:
    server.user("eap", ALICE, reply=[("Session-Timeout", 99), ("Framed-IP-Address", "10.9.9.1")])
    hello = struct.pack("!BBHB", 2, 1, 8, 1) + b"eap"
    reply = exchange(server, signed([(fake.USER_NAME, b"eap"), (EAP_MESSAGE, hello), *nas(4)], os.urandom(16)))
    assert reply.code == fake.ACCESS_CHALLENGE
    # What the user is given comes with the Accept.
    assert {kind for kind, _ in reply.attributes} == {EAP_MESSAGE, fake.STATE, fake.MESSAGE_AUTHENTICATOR}
    packet, state = reply.get(EAP_MESSAGE), reply.get(fake.STATE)
    assert packet is not None
    assert state is not None
    code, number, _, kind, size = struct.unpack_from("!BBHBB", packet)
    assert (code, kind, size) == (1, 4, 16)
    value = hashlib.md5(bytes([number]) + ALICE.encode() + packet[6:22]).digest()
    answer = struct.pack("!BBHBB", 2, number, 22, 4, 16) + value
    attributes = [(fake.USER_NAME, b"eap"), (EAP_MESSAGE, answer), (fake.STATE, state), *nas(4)]
    reply = exchange(server, signed(attributes, os.urandom(16)))
    assert reply.code == fake.ACCESS_ACCEPT
    assert (reply.get(EAP_MESSAGE) or b"")[0] == 3
    assert reply.get(fake.SESSION_TIMEOUT) == bytes((0, 0, 0, 99))
    assert reply.address == "10.9.9.1"


def test_a_pool(server: FreeRadius) -> None:
    """An address belongs to the session that it was given to, whatever is asked again and whoever else has ended."""
    server.pool("small", "10.1.0.1", 2)
    server.user("pool", ALICE, check={"Pool-Name": "small"})
    first = pap(server, "pool", ALICE, 0x10).address
    assert pap(server, "pool", ALICE, 0x10).address == first
    second = pap(server, "pool", ALICE, 0x11).address
    assert {first, second} == {"10.1.0.1", "10.1.0.2"}
    full = pap(server, "pool", ALICE, 0x12)
    assert full.code == fake.ACCESS_REJECT
    assert pap(server, "pool", "wrong", 0x12).code == fake.ACCESS_REJECT
    account(server, fake.START, "pool", 0x10, address=first)
    # A Stop of a session that had the address before takes it from nobody.
    account(server, fake.STOP, "pool", 0xF, address=first)
    assert pap(server, "pool", ALICE, 0x12).code == fake.ACCESS_REJECT
    account(server, fake.STOP, "pool", 0x10, address=first)
    assert pap(server, "pool", ALICE, 0x12).address == first
    assert first in server.leases()
    account(server, fake.STOP, "pool", 0x11, address=second)
    account(server, fake.STOP, "pool", 0x12, address=first)
    assert not set(server.leases()) & {first, second}


def test_a_session_that_logs_in_again_keeps_its_lease(server: FreeRadius) -> None:
    server.pool("again", "10.4.0.1", 1)
    server.user("again", ALICE, check={"Pool-Name": "again"})
    address = pap(server, "again", ALICE, 0x40).address
    short = server.lease_end(address)
    account(server, fake.START, "again", 0x40, address=address)
    end = server.lease_end(address)
    assert end > short
    assert pap(server, "again", ALICE, 0x40).address == address
    assert server.lease_end(address) >= end


def test_a_pool_and_a_start_of_the_concentrator(server: FreeRadius) -> None:
    """Accounting-On frees what its sessions had before, and nothing that it, or another one, has been given since."""
    server.pool("on", "10.2.0.1", 3)
    server.user("on", ALICE, check={"Pool-Name": "on"})
    old = pap(server, "on", ALICE, 0x20, host=2).address
    other = pap(server, "on", ALICE, 0x21, host=3).address
    account(server, fake.ON, "", 0, host=2, boot="5eed0000")
    assert set(server.leases()) >= {other}
    assert old not in server.leases()
    new = pap(server, "on", ALICE, 0x22, host=2).address
    account(server, fake.ON, "", 0, host=2)
    assert set(server.leases()) >= {other, new}


def test_a_pool_asked_by_many_at_once(server: FreeRadius) -> None:
    server.pool("many", "10.3.0.1", 200)
    server.user("many", ALICE, check={"Pool-Name": "many"})

    def ask(number: int) -> str:
        return pap(server, "many", ALICE, 0x1000 + number, host=1 + number % 5).address

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(200)))
    assert len(set(found)) == 200
    assert pap(server, "many", ALICE, 0x2000).code == fake.ACCESS_REJECT


def test_simultaneous_use(server: FreeRadius) -> None:
    server.user("one", ALICE, check={"Simultaneous-Use": 1})
    assert pap(server, "one", ALICE, 0x30).code == fake.ACCESS_ACCEPT
    account(server, fake.START, "one", 0x30)
    # A session that logs in again is not one more.
    assert pap(server, "one", ALICE, 0x30).code == fake.ACCESS_ACCEPT
    refused = pap(server, "one", ALICE, 0x31, host=2)
    assert refused.code == fake.ACCESS_REJECT
    assert b"already logged in" in (refused.get(fake.REPLY_MESSAGE) or b"")
    account(server, fake.STOP, "one", 0x30)
    assert pap(server, "one", ALICE, 0x31, host=2).code == fake.ACCESS_ACCEPT


@pytest.mark.parametrize("place", [LOCAL, "::1"])
def test_accounts(server: FreeRadius, place: str) -> None:
    """A row a session, however often each record comes."""
    name = f"bill{len(place)}"
    counters = [
        (42, struct.pack("!I", 11)),
        (52, struct.pack("!I", 1)),
        (43, struct.pack("!I", 22)),
        (53, struct.pack("!I", 2)),
        (46, struct.pack("!I", 33)),
        (49, struct.pack("!I", 1)),
    ]
    began = int(time.time()) - 33
    more = [(fake.CLASS, b"gold")]
    for _ in range(2):
        account(server, fake.START, name, 0x40, address="10.9.9.9", when=began, more=more, place=place)
    row = server.account(username=name)
    assert (row["acctstarttime"], row["acctstoptime"], row["framedipaddress"]) == (began, None, "10.9.9.9")
    assert row["class"] == "0x" + b"gold".hex()
    account(server, fake.INTERIM, name, 0x40, address="10.9.9.9", more=counters[:2] + more, place=place)
    assert server.account(username=name)["acctinputoctets"] == (1 << 32) + 11
    for _ in range(2):
        account(
            server, fake.STOP, name, 0x40, address="10.9.9.9", when=began + 33, more=counters + more, place=place
        )
    row = server.account(username=name)
    assert (row["acctstarttime"], row["acctstoptime"], row["acctsessiontime"]) == (began, began + 33, 33)
    assert (row["acctinputoctets"], row["acctoutputoctets"]) == ((1 << 32) + 11, (2 << 32) + 22)
    assert row["acctterminatecause"] == "User-Request"


def test_the_example_of_users(server: FreeRadius) -> None:
    with server._open() as db:
        db.executescript((Path(__file__).parents[2] / "conf/freeradius/example.sql").read_text())
    alice = pap(server, "alice", ALICE, 0x50)
    assert alice.address.startswith("10.64.0.")
    assert alice.vendor(14988, 8) == b"10M/100M"
    assert pap(server, "bob", "builder", 0x51).address == "10.65.0.7"
    office = pap(server, "office", "red:brick", 0x52)
    assert office.get(22) == b"10.65.0.64/28 0.0.0.0 1"
    assert struct.unpack("!I", office.get(85) or b"") == (600,)
    account(server, fake.START, "alice", 0x50, address=alice.address)
    assert pap(server, "alice", ALICE, 0x53).code == fake.ACCESS_REJECT


def test_a_database_that_is_away_refuses_nobody(server: FreeRadius) -> None:
    server.user("away", ALICE)
    assert pap(server, "away", ALICE).code == fake.ACCESS_ACCEPT
    with server._open() as db:
        db.execute("ALTER TABLE radcheck RENAME TO gone")
    try:
        # SQLite finds out by the first who asks that what it has remembered of its tables is old.
        pap(server, "away", ALICE)
        data = pap_request("away", ALICE)
        with inside(server.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.3)
            sock.connect((LOCAL, AUTH))
            sock.send(data)
            with pytest.raises(TimeoutError):
                sock.recv(4096)
    finally:
        with server._open() as db:
            db.execute("ALTER TABLE gone RENAME TO radcheck")
    assert pap(server, "away", ALICE).code == fake.ACCESS_ACCEPT


def test_no_line_is_without_effect(server: FreeRadius) -> None:
    """The server complains of none, but of one that it need not."""
    complaints = [line for line in server.log.splitlines() if "Warning" in line]
    assert all("simul_verify_query is empty" in line for line in complaints), complaints
    assert SECRET not in server.log
