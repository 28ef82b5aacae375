"""Servers that are slow, silent, gone, or not who they should be; and logins in flight when something changes."""

from __future__ import annotations

import signal
import struct
from collections.abc import Callable

import pytest

from tests.effort import some
from tests.peers.lab import until
from tests.radius import fake
from tests.radius.fake import (
    ACCESS_ACCEPT,
    ACCESS_REQUEST,
    ACCOUNTING_REQUEST,
    ACCT_SESSION_ID,
    FRAMED_IP_ADDRESS,
    STATUS_SERVER,
    Answer,
    Asked,
    FakeServer,
    accept,
    reject,
    silent,
    slowly,
    vendor,
)
from tests.radius.lab import ALL_METHODS, HASTY, RadiusLab, Sim, server

pytestmark = pytest.mark.root

AUTH, OTHER, ACCT = 1812, 1912, 1813
#: Longer than a test has patience: who comes up has not waited for it.
FOR_EVER = "timeout 300\nmax-tries 1\ndead-time 1"
LONG = "login-timeout 600"

RIGHT, WRONG = bytes((10, 65, 1, 1)), bytes((10, 65, 9, 9))


def dial(lab: RadiusLab, user: str = "alice", *options: str, auth: str = "pap") -> Sim:
    return lab.user("pppoe", user, "wonderland", *options, auth=auth)


def two(more: str, **extra: str) -> str:
    """Both servers, the first one preferred."""
    first = server(port=AUTH, more="", extra=extra.get("first", ""))
    return f"{first}\n{server(port=OTHER, more=more, extra='priority 1')}"


# A server that does not answer.


def test_a_silent_server(lab: RadiusLab) -> None:
    """The login goes on to the next one; those after it do not wait for the silent one any more."""
    one, other = lab.fake(silent, port=AUTH), lab.fake(accept((FRAMED_IP_ADDRESS, RIGHT)), port=OTHER)
    lab.fake(accept(), port=ACCT)
    lab.serve(auth=two("timeout 1\nmax-tries 2\ndead-time 600"), acct=server(port=ACCT))
    assert dial(lab).up()[0]["address"] == "10.65.1.1"
    asked = one.of(ACCESS_REQUEST)
    # Sent twice, bit for bit the same.
    assert len(asked) == 2
    assert len({request.data for request in asked}) == 1
    assert len(other.of(ACCESS_REQUEST)) == 1
    assert all(request.is_signed for request in asked + other.of(ACCESS_REQUEST))
    assert lab.server(AUTH)["state"] != "up"
    other.manner = accept((FRAMED_IP_ADDRESS, bytes((10, 65, 1, 2))))
    assert dial(lab, "bob", "--first", "2").up()[0]["address"] == "10.65.1.2"
    assert len(one.of(ACCESS_REQUEST)) == 2
    assert len(other.of(ACCESS_REQUEST)) == 2


def test_servers_that_are_all_silent(lab: RadiusLab) -> None:
    """The login fails in its time, and no sooner than all were asked; nothing is left of it."""
    one, other = lab.fake(silent, port=AUTH), lab.fake(silent, port=OTHER)
    lab.fake(accept(), port=ACCT)
    lab.serve(auth=two("timeout 1\nmax-tries 1"), acct=server(port=ACCT))
    assert dial(lab).refused()
    assert one.of(ACCESS_REQUEST)
    assert other.of(ACCESS_REQUEST)
    lab.empties()


def test_a_slow_server(lab: RadiusLab) -> None:
    """An answer to the first transmission counts while the second one waits, and the server is as good as before."""
    one = lab.fake(slowly(1.4, accept((FRAMED_IP_ADDRESS, RIGHT))), port=AUTH)
    lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH, more="timeout 1\nmax-tries 3"), acct=server(port=ACCT))
    assert dial(lab).up()[0]["address"] == "10.65.1.1"
    assert len(one.of(ACCESS_REQUEST)) == 2
    assert len({request.data for request in one.asked}) == 1
    assert lab.server(AUTH)["state"] == "up"


def test_a_server_that_refuses(lab: RadiusLab) -> None:
    """ICMP says at once that nobody is there: no time-out is waited for."""
    lab.fake(accept((FRAMED_IP_ADDRESS, RIGHT)), port=OTHER)
    lab.fake(accept(), port=ACCT)
    lab.serve(auth=two(FOR_EVER), acct=server(port=ACCT), realm=LONG)
    assert dial(lab).up()[0]["address"] == "10.65.1.1"


@pytest.mark.parametrize("asks", ["yes", "no"])
def test_a_server_that_is_gone_and_back(lab: RadiusLab, asks: str) -> None:
    """It is found to be back by Status-Server, or by a login once its dead time is over."""
    one = lab.fake(accept((FRAMED_IP_ADDRESS, RIGHT)), port=AUTH)
    lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH, more=HASTY, extra=f"status-server {asks}"), acct=server(port=ACCT))
    dial(lab).up()
    one.close()
    assert dial(lab, "bob", "--first", "2").refused()
    until(lambda: lab.server(AUTH)["state"] != "up", "it is known to be gone")
    one.open()
    if asks == "yes":
        until(lambda: lab.server(AUTH)["state"] == "up", "it is known to be back")
        assert one.of(STATUS_SERVER)
        assert all(request.is_signed for request in one.of(STATUS_SERVER))
    one.manner = accept((FRAMED_IP_ADDRESS, bytes((10, 65, 1, 2))))
    assert dial(lab, "carol", "--first", "3").up()[0]["address"] == "10.65.1.2"
    assert bool(one.of(STATUS_SERVER)) == (asks == "yes")


def test_another_realm_while_no_server_answers(lab: RadiusLab) -> None:
    """A fallback has its own users; it is not asked about one whom a server has refused."""
    users = lab.where / "npppd-users"
    users.write_text("alice:password=wonderland:framed-ip-address=10.65.3.3:\n")
    users.chmod(0o600)
    local = 'authentication LOCAL type local {\n    users-file "npppd-users"\n}'
    one = lab.fake(reject(), port=AUTH)
    lab.fake(accept(), port=ACCT)
    lab.serve(
        auth=server(port=AUTH, more="timeout 1\nmax-tries 1"),
        acct=server(port=ACCT),
        realm="fallback-realm LOCAL",
        more=local,
    )
    assert dial(lab).refused()
    one.manner = silent
    other = dial(lab, "bob", "--first", "2")
    assert dial(lab).up()[0]["address"] == "10.65.3.3"
    assert other.refused()


# Answers that do not count.


@pytest.fixture(scope="module")
def faulty(shared: RadiusLab) -> tuple[RadiusLab, FakeServer]:
    """npppyd, and a server whose manner the test chooses."""
    one = shared.fake(silent, port=AUTH)
    shared.fake(accept(), port=ACCT)
    shared.serve(auth=server(port=AUTH, more="timeout 30\nmax-tries 1"), acct=server(port=ACCT))
    return shared, one


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!BB", kind, len(value) + 2) + value


GOOD_WRONG = fake.encode([(FRAMED_IP_ADDRESS, WRONG)])

#: By its name, the attributes of an Accept that is signed well and must not count for all that.
MALFORMED = {
    "an attribute without a length": bytes((FRAMED_IP_ADDRESS, 0)) + WRONG,
    "an attribute of length 1": bytes((FRAMED_IP_ADDRESS, 1)) + WRONG,
    "an attribute beyond the end": bytes((FRAMED_IP_ADDRESS, 60)) + WRONG,
    "an attribute's type alone": GOOD_WRONG + b"\x19",
    "an address that is too long": _attribute(FRAMED_IP_ADDRESS, WRONG * 62),
    "an address that is too short": _attribute(FRAMED_IP_ADDRESS, WRONG[:3]),
    "an integer that is too long": GOOD_WRONG + _attribute(fake.SESSION_TIMEOUT, bytes(5)),
    "an empty integer": GOOD_WRONG + _attribute(fake.SESSION_TIMEOUT, b""),
    "a vendor's attribute of length 0": GOOD_WRONG + _attribute(26, b"\0\0\1\x37\7\0abcd"),
    "a vendor's attribute of length 1": GOOD_WRONG + _attribute(26, b"\0\0\1\x37\7\1abcd"),
    "a vendor's attribute beyond the end": GOOD_WRONG + _attribute(26, b"\0\0\1\x37\7\x63"),
    "a vendor's name cut short": GOOD_WRONG + _attribute(26, b"\0\0\1"),
    "a vendor's integer that is too long": fake.encode([(FRAMED_IP_ADDRESS, WRONG), vendor(14122, 8, bytes(9))]),
}


def _forged(asked: Asked) -> bytes:
    """Signed by who has the secret, but for its Message-Authenticator."""
    raw = fake.reply(ACCESS_ACCEPT, asked.identifier, asked.authenticator, GOOD_WRONG, b"another")[20:]
    return fake.reply(ACCESS_ACCEPT, asked.identifier, asked.authenticator, raw, asked.secret, signed=False)


_ADDRESS = [(FRAMED_IP_ADDRESS, WRONG)]

#: By its name, an Accept that must not count.
BAD: dict[str, Callable[[Asked], bytes]] = {
    "another secret": lambda asked: asked.reply(ACCESS_ACCEPT, _ADDRESS, secret=b"another"),
    "another secret, for the Message-Authenticator alone": _forged,
    "a stale authenticator": lambda asked: asked.reply(ACCESS_ACCEPT, _ADDRESS, authenticator=bytes(16)),
    "no authenticator": lambda asked: _blank(asked.reply(ACCESS_ACCEPT, _ADDRESS)),
    "no Message-Authenticator": lambda asked: asked.reply(ACCESS_ACCEPT, _ADDRESS, signed=False),
    "another code": lambda asked: asked.reply(fake.ACCOUNTING_RESPONSE, _ADDRESS),
    "cut short": lambda asked: asked.reply(ACCESS_ACCEPT, _ADDRESS)[:-3],
    "no packet": lambda asked: asked.reply(ACCESS_ACCEPT, _ADDRESS)[:7],
    "nothing": lambda asked: b"",
}


def _blank(data: bytes) -> bytes:
    return data[:4] + bytes(16) + data[20:]


def _bad(asked: Asked, name: str) -> bytes:
    if name in BAD:
        return BAD[name](asked)
    return fake.reply(ACCESS_ACCEPT, asked.identifier, asked.authenticator, MALFORMED[name], asked.secret)


NAMES = [*BAD, *MALFORMED]


@pytest.fixture(scope="module")
def outcomes(faulty: tuple[RadiusLab, FakeServer]) -> dict[str, str]:
    """The addresses of those whose server has said something else before it said what is right, by what it was."""
    lab, one = faulty

    def answer(asked: Asked) -> Answer:
        if asked.code != ACCESS_REQUEST:
            return accept()(asked)
        number = int(asked.user.removeprefix("user"))
        right = [(FRAMED_IP_ADDRESS, bytes((10, 65, 1, number)))]
        return [(0, _bad(asked, NAMES[number - 1])), (0.2, asked.reply(ACCESS_ACCEPT, right))]

    one.manner = answer
    sim = lab.simulate("pppoe", "--sessions", str(len(NAMES)), "--user", "user{n}", "--hold", "inf", auth="pap")
    until(lambda: sum(line.get("event") in ("up", "down") for line in sim.objects) == len(NAMES), "all have an answer")
    found = {NAMES[line["number"] - 1]: line["address"] for line in sim.ups}
    sim.stop()
    until(lambda: not lab.sessions(), "all have gone")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_does_not_count_is_waited_past(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == f"10.65.1.{NAMES.index(name) + 1}"


def test_answers_that_do_not_count_are_counted(
    faulty: tuple[RadiusLab, FakeServer], outcomes: dict[str, str]
) -> None:
    lab, _ = faulty
    row = lab.server(AUTH)
    assert sum(row["bad"].values()) == len(NAMES)
    assert row["answers"] == len(NAMES)
    assert row["state"] == "up"


def test_an_answer_to_another_request(faulty: tuple[RadiusLab, FakeServer]) -> None:
    lab, one = faulty

    def answer(asked: Asked) -> Answer:
        wrong = asked.reply(ACCESS_ACCEPT, _ADDRESS, identifier=asked.identifier ^ 1)
        return [(0, wrong), (0.2, asked.reply(ACCESS_ACCEPT, [(FRAMED_IP_ADDRESS, RIGHT)]))]

    one.manner = answer
    sim = dial(lab)
    assert sim.up()[0]["address"] == "10.65.1.1"
    sim.stop()
    lab.empties()


def test_a_server_that_is_too_old_for_a_message_authenticator(lab: RadiusLab) -> None:
    """Its answers count where the configuration says so; one that has a wrong one never does."""
    one = lab.fake(accept((FRAMED_IP_ADDRESS, RIGHT), signed=False), port=AUTH)
    lab.fake(accept(), port=ACCT)
    auth = server(port=AUTH, more="timeout 30\nmax-tries 1", extra="message-authenticator optional")
    lab.serve(auth=auth, acct=server(port=ACCT))
    assert dial(lab).up()[0]["address"] == "10.65.1.1"

    def answer(asked: Asked) -> Answer:
        return [(0, _forged(asked)), (0.05, asked.reply(ACCESS_ACCEPT, [(FRAMED_IP_ADDRESS, bytes((10, 65, 1, 2)))]))]

    one.manner = answer
    assert dial(lab, "bob", "--first", "2").up()[0]["address"] == "10.65.1.2"


#: Of the answers to MS-CHAPv2, what must be 43 octets (RFC 2548 section 2.3.3).
SUCCESSES = (None, b"", b"\1S=" + b"0" * 39, b"\1S=" + b"0" * 200, b"\1" + bytes(42))


def test_an_mschapv2_success_of_the_wrong_size(faulty: tuple[RadiusLab, FakeServer]) -> None:
    lab, one = faulty

    def answer(asked: Asked) -> Answer:
        success = SUCCESSES[int(asked.user.removeprefix("user")) - 1]
        return [(0, asked.reply(ACCESS_ACCEPT, [] if success is None else [vendor(311, 26, success)]))]

    one.manner = answer
    sim = lab.simulate("pppoe", "--sessions", str(len(SUCCESSES)), "--user", "user{n}", auth="mschapv2")
    assert sum(sim.refused().values()) == len(SUCCESSES)
    lab.empties()


def test_keys_of_the_wrong_size(faulty: tuple[RadiusLab, FakeServer]) -> None:
    """Keys are looked at where they are wanted; a session that wants none has none."""
    lab, one = faulty
    one.manner = accept((FRAMED_IP_ADDRESS, RIGHT), vendor(311, 16, b"\x80\0" + bytes(7)), vendor(311, 17, b""))
    sim = dial(lab)
    assert sim.up()[0]["address"] == "10.65.1.1"
    sim.stop()
    lab.empties()


# Logins in flight.


def _daemon_reads(lab: RadiusLab) -> None:
    """Wait until it has taken a new configuration."""
    lab.daemon.send(signal.SIGHUP)
    lab.daemon.says(r" reloaded ")


@pytest.mark.parametrize("change", ["none", "other options", "another server"])
def test_the_daemon_reloads_while_a_login_waits(lab: RadiusLab, change: str) -> None:
    one = lab.fake(slowly(1.0, accept((FRAMED_IP_ADDRESS, RIGHT))), port=AUTH)
    other = lab.fake(accept((FRAMED_IP_ADDRESS, RIGHT)), port=OTHER)
    acct = lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT))
    sim = dial(lab)
    until(lambda: one.of(ACCESS_REQUEST), "the server is asked")
    if change == "other options":
        lab.configure(auth=server(port=AUTH, more="timeout 2\nmax-tries 9"), acct=server(port=ACCT), realm=LONG)
    elif change == "another server":
        lab.configure(auth=server(port=OTHER), acct=server(port=ACCT))
    _daemon_reads(lab)
    assert sim.up()[0]["address"] == "10.65.1.1"
    assert len(one.of(ACCESS_REQUEST)) == 1
    assert not other.of(ACCESS_REQUEST)
    until(lambda: acct.records(fake.START), "a Start")
    assert dial(lab, "bob", "--first", "2", "--timeout", "20").running
    asked = other if change == "another server" else one
    until(lambda: asked.asked_for("bob"), "the next login asks the server that is configured now")


def test_the_session_dies_while_its_login_waits(lab: RadiusLab) -> None:
    """The late answer is for nobody; no account is opened, and nothing is held."""
    one = lab.fake(slowly(3.0, accept((FRAMED_IP_ADDRESS, RIGHT))), port=AUTH)
    acct = lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT))
    for carrier in ("pppoe", "l2tp", "pptp"):
        sim = lab.user(carrier, carrier, "wonderland")
        until(lambda carrier=carrier: one.asked_for(carrier), "the server is asked")
        sim.stop()
    until(lambda: lab.status()["sessions"] == 0, "no session is left")
    one.manner = accept((FRAMED_IP_ADDRESS, RIGHT))
    # The answers come while this one logs in and out.
    sim = dial(lab, "alice")
    sim.up()
    until(lambda: acct.records(fake.START), "a Start")
    until(lambda: not any(row["outstanding"] for row in lab.servers()), "nobody waits")
    assert [record.user for record in acct.records(fake.START)] == ["alice"]


def test_a_peer_that_goes_on_asking_while_its_login_waits(lab: RadiusLab) -> None:
    """PAP's Authenticate-Requests that are repeated meanwhile are one login: the server is asked once."""
    one = lab.fake(slowly(4.0, accept((FRAMED_IP_ADDRESS, RIGHT))), port=AUTH)
    lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH, more="timeout 30\nmax-tries 1"), acct=server(port=ACCT))
    assert dial(lab).up()[0]["address"] == "10.65.1.1"
    assert len(one.of(ACCESS_REQUEST)) == 1


@pytest.mark.parametrize("again", ["accept", "reject"])
def test_a_login_anew(lab: RadiusLab, again: str) -> None:
    """Termination-Action: when its time is over a session is not ended, but asked who it is, and so is the server."""
    more = (fake.SESSION_TIMEOUT, b"\0\0\0\1"), (29, b"\0\0\0\1"), (fake.STATE, b"again")
    first, then = accept((FRAMED_IP_ADDRESS, RIGHT), *more), accept() if again == "accept" else reject()
    one = lab.fake(lambda asked: (then if asked.get(fake.STATE) == b"again" else first)(asked), port=AUTH)
    acct = lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT))
    sim = dial(lab, auth="chap")
    sim.up()
    session = lab.session()
    until(lambda: len(one.of(ACCESS_REQUEST)) == 2, "the server is asked again")
    assert {asked.text(ACCT_SESSION_ID) for asked in one.of(ACCESS_REQUEST)} == {session["acct_session_id"]}
    if again == "accept":
        assert lab.session()["ppp_id"] == session["ppp_id"]
        sim.stop()
    until(lambda: acct.records(fake.STOP), "a Stop")
    assert len(acct.records(fake.START)) == len(acct.records(fake.STOP)) == 1
    assert acct.records(fake.STOP)[0].integer(49) == (1 if again == "accept" else 17)


def test_thousands_of_logins_at_once(lab: RadiusLab) -> None:
    """A server is asked about as many as it may be, and the others wait; all come up, with a Start and a Stop each."""
    count, bound = some(5000, 5), some(2000, 4)
    one = lab.fake(fake.silent, port=AUTH)
    acct = lab.fake(slowly(0.05, accept()), port=ACCT)
    lab.serve(
        auth=server(port=AUTH, more=f"timeout 30\nmax-tries 2\nmax-outstanding {bound}"),
        acct=server(port=ACCT),
        ipcp="pool-address 10.66.0.0/18 for static",
        # One process is all of them, and answers when it can: who is offered nothing for too long asks again.
        tunnel=f"{ALL_METHODS}\nlcp-timeout 20",
    )
    sim = lab.simulate(
        "pppoe", "--sessions", str(count), "--window", str(count), "--user", "user{n}", "--hold", "inf",
        "--timeout", "120", "--redial", "1", auth="pap",
    )  # fmt: skip

    def is_full() -> bool:
        (row,) = (row for row in lab.servers() if row["port"] == AUTH)
        assert row["outstanding"] <= bound
        return row["outstanding"] == bound and row["queued"] > 0

    until(is_full, "the server is asked about as many as it may be, and others wait")
    until(lambda: len(one.of(ACCESS_REQUEST)) == bound, "all of them have come")
    asked = one.of(ACCESS_REQUEST)
    # More identifiers than a source port has.
    assert len({request.source for request in asked}) > 1
    one.manner = fake.addresses("10.66.0.1")
    for request in asked:
        one.answer(request)
    up = sim.up(count)
    assert len({line["address"] for line in up}) == count
    # Nobody was asked about twice: none was lost, and none was waited for in vain.
    asked = one.of(ACCESS_REQUEST)
    assert len({request.text(ACCT_SESSION_ID) for request in asked}) == len(asked) == count
    until(lambda: len({record.text(ACCT_SESSION_ID) for record in acct.records(fake.START)}) == count, "all Starts")
    sim.stop()
    until(lambda: len({record.text(ACCT_SESSION_ID) for record in acct.records(fake.STOP)}) == count, "all Stops")
    assert len({request.data for request in acct.of(ACCOUNTING_REQUEST)}) == 2 * count + 1
    lab.empties()
