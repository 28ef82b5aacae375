"""Accounts that lose nothing: servers that are away for hours, and a daemon that is killed meanwhile."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.peers.lab import OURS, until
from tests.radius import fake
from tests.radius.fake import ACCT_SESSION_ID, ACCT_STATUS_TYPE, NAS_IDENTIFIER, Asked, accept
from tests.radius.lab import ACCT, RadiusLab, Sim, server

pytestmark = pytest.mark.root

AUTH = 1812
#: Octets of an echo request of PINGS, and how many each session sends.
SIZE, PINGS = 400, 4
#: The records' server, which is tried again without being asked whether it is there.
ACCOUNTING = server(port=ACCT, more="timeout 1\nmax-tries 1\ndead-time 1", extra="status-server no")


def dial(lab: RadiusLab, carrier: str, first: int, count: int) -> Sim:
    """Subscribers who send pings, which are answered, once they are up; waits until all have been counted."""
    sim = lab.simulate(
        carrier, "--sessions", str(count), "--first", str(first), "--user", "user{n}", "--hold", "inf", "--tun",
        auth="pap",
    )  # fmt: skip
    addresses = [line["address"] for line in sim.up(count)]
    options = ("-I", "{}", "-s", str(SIZE - 28))
    with ThreadPoolExecutor(count) as pool:
        pings = [
            pool.submit(lab.ping, lab.sub, OURS, *(word.format(address) for word in options), count=PINGS)
            for address in addresses
        ]
        for ping in pings:
            ping.result()

    def counted() -> bool:
        rows = [row for row in lab.sessions() if row["address"] in addresses]
        return len(rows) == count and all(row["in_packets"] == row["out_packets"] == PINGS for row in rows)

    until(counted, "all pings are counted")
    return sim


def spooled(lab: RadiusLab) -> int:
    """Records that wait."""
    return int(lab.ask("radius")[1]["records"])


def check(rows: list[dict[str, Any]], names: set[str]) -> None:
    """A row a session, with its start, its stop and all that went through it."""
    assert Counter(row["username"] for row in rows) == Counter(names)
    assert len({row["acctsessionid"] for row in rows}) == len(rows)
    for row in rows:
        assert row["acctstarttime"] is not None
        assert row["acctstoptime"] is not None
        assert row["acctstarttime"] <= row["acctstoptime"]
        assert row["acctsessiontime"] == pytest.approx(row["acctstoptime"] - row["acctstarttime"], abs=1)
        assert (row["acctinputoctets"], row["acctoutputoctets"]) == (SIZE * PINGS, SIZE * PINGS), row


CARRIERS = ("pppoe", "l2tp", "pptp")


def dial_all(lab: RadiusLab, first: int) -> tuple[list[Sim], set[str]]:
    """Three subscribers of each carrier, and their names."""
    with ThreadPoolExecutor(len(CARRIERS)) as pool:
        sims = pool.map(lambda n: dial(lab, CARRIERS[n], first + 3 * n, 3), range(len(CARRIERS)))
        return list(sims), {f"user{number}" for number in range(first, first + 3 * len(CARRIERS))}


def gone(lab: RadiusLab, sims: list[Sim]) -> None:
    """They hang up."""
    for sim in sims:
        sim.stop()
    until(lambda: not lab.sessions(), "they have gone")


def test_a_server_that_was_away_all_the_time(lab: RadiusLab) -> None:
    """Sessions end, the daemon is killed with others up, and starts again, and all that while nobody takes a record."""
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)
    lab.serve(auth=server(port=AUTH), acct=ACCOUNTING)
    one, ended = dial_all(lab, 1)
    gone(lab, one)
    other, killed = dial_all(lab, 11)
    lab.daemon.stop(signal.SIGKILL)
    lab.start_again()
    gone(lab, other)
    third, more = dial_all(lab, 21)
    gone(lab, third)
    ended |= more
    fourth, more = dial_all(lab, 31)
    killed |= more
    # Killed once more, and once at once after its start.
    lab.daemon.stop(signal.SIGKILL)
    lab.start_again()
    lab.daemon.stop(signal.SIGKILL)
    lab.start_again()
    gone(lab, fourth)
    radius = lab.freeradius()
    names = ended | killed
    until(lambda: len(radius.accounts()) - len(radius.open_accounts()) >= len(names), "all accounts are closed")
    until(lambda: spooled(lab) == 0, "the spool is empty")
    rows = radius.accounts()
    check(rows, names)
    assert {row["acctterminatecause"] for row in rows if row["username"] in ended} == {"User-Request"}
    # Its own end, and no user's.
    assert {row["acctterminatecause"] for row in rows if row["username"] in killed} == {"NAS-Reboot"}
    assert not lab.status()["addresses"]


@pytest.mark.parametrize("lab", ["user"], indirect=True)
def test_a_daemon_that_is_killed_while_it_carries_all_itself(lab: RadiusLab) -> None:
    """What it has noted is in the books, and it notes it soon."""
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)
    lab.serve(auth=server(port=AUTH), acct=ACCOUNTING)
    sim = dial(lab, "pppoe", 1, 3)

    def noted() -> bool:
        with contextlib.closing(sqlite3.connect(f"file:{lab.where}/spool.db?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT counters FROM used").fetchall()
        return [int.from_bytes(row[:8], "big") for (row,) in rows] == [SIZE * PINGS] * 3

    until(noted, "all that has passed is noted")
    lab.daemon.stop(signal.SIGKILL)
    lab.start_again()
    gone(lab, [sim])
    radius = lab.freeradius()
    until(lambda: len(radius.accounts()) - len(radius.open_accounts()) >= 3, "all accounts are closed")
    check(radius.accounts(), {"user1", "user2", "user3"})


def test_a_daemon_that_is_killed_at_work(lab: RadiusLab) -> None:
    """Whoever was up is in the books, and out of them again; nobody is there twice."""
    lab.fake(fake.addresses("10.66.0.1"), port=AUTH)
    radius = lab.freeradius()
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT), ipcp="pool-address 10.66.0.0/18 for static")
    sims = [
        lab.simulate(
            "pppoe", "--sessions", "1000", "--first", first, "--user", "user{n}", "--hold", hold, "--timeout", "3",
            auth="pap",
        )
        for first, hold in (("1", "0"), ("2001", "inf"))
    ]  # fmt: skip
    until(lambda: len(lab.sessions()) > 200, "many are up, and more are coming")
    up = {row["acct_session_id"] for row in lab.sessions() if row["state"] == "up"}
    lab.daemon.stop(signal.SIGKILL)
    for sim in sims:
        sim.kill()
    lab.start_again()
    until(lambda: spooled(lab) == 0 and not radius.open_accounts(), "all that is to be told has been")
    rows = radius.accounts()
    assert up
    assert up <= {row["acctsessionid"] for row in rows}
    assert len({row["acctsessionid"] for row in rows}) == len(rows)


def test_a_server_that_is_gone_for_a_while(lab: RadiusLab) -> None:
    """One that is killed, and comes back with its database: rows are closed that were open then, and none is double."""
    radius = lab.freeradius()
    radius.users([(f"user{number}", "") for number in range(1, 30)])
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)
    lab.serve(auth=server(port=AUTH), acct=ACCOUNTING)
    one = dial(lab, "pppoe", 1, 5)
    until(lambda: len(radius.open_accounts()) == 5, "five accounts are open")
    radius.stop(signal.SIGKILL)
    one.stop()
    other = dial(lab, "pppoe", 11, 5)
    assert lab.daemon.stop() == 0
    other.stop()
    lab.start_again()
    radius.start()
    names = {f"user{first + number}" for first in (1, 11) for number in range(5)}
    until(lambda: len(radius.accounts()) - len(radius.open_accounts()) >= len(names), "all accounts are closed")
    until(lambda: spooled(lab) == 0, "the spool is empty")
    check(radius.accounts(), names)


def test_what_is_sent_again_can_be_counted_once(lab: RadiusLab) -> None:
    """The same Acct-Session-Id and Event-Timestamp; bit for bit the same, or another request; order is kept."""
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)

    def answer(asked: Asked) -> fake.Answer:
        """Answers a Start when it is sent for the third time."""
        starts = [one for one in acct.records(fake.START) if one.get(ACCT_SESSION_ID) == asked.get(ACCT_SESSION_ID)]
        first = asked.code == fake.ACCOUNTING_REQUEST and asked.integer(ACCT_STATUS_TYPE) == fake.START
        return () if first and len(starts) < 3 else accept()(asked)

    acct = lab.fake(answer, port=ACCT)
    # Twice in a row, and later once more.
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT, more="timeout 1\nmax-tries 2", extra="status-server no"))
    sim = dial(lab, "pppoe", 1, 3)
    gone(lab, [sim])
    until(lambda: spooled(lab) == 0, "the spool is empty")
    assert all(record.is_signed for record in acct.records())
    # What a server that takes the first of each for the record makes of it.
    times: dict[tuple[str, int], int] = {}
    requests: dict[tuple[Any, int], bytes] = {}
    for record in acct.records():
        key = record.text(ACCT_SESSION_ID), record.integer(ACCT_STATUS_TYPE)
        when = record.integer(fake.EVENT_TIMESTAMP)
        assert times.setdefault(key, when) == when
        # What has the identifier of another request is that request.
        assert requests.setdefault((record.source, record.identifier), record.data) == record.data
    names = {name for name, kind in times if kind == fake.START}
    assert len(names) == 3
    for name in names:
        records = [record for record in acct.records() if record.text(ACCT_SESSION_ID) == name]
        assert [record.integer(ACCT_STATUS_TYPE) for record in records] == [fake.START] * 3 + [fake.STOP]
        assert len({record.data for record in records[:2]}) == 1
        # RFC 2866 section 5.2: what has waited says so, and so is another request.
        assert records[2].integer(fake.ACCT_DELAY_TIME) > records[0].integer(fake.ACCT_DELAY_TIME)


def test_logins_are_not_held_up_by_what_is_caught_up(lab: RadiusLab) -> None:
    """Hundreds of records wait for a server that takes its time; who logs in meanwhile does not."""
    lab.fake(fake.addresses("10.66.0.1"), port=AUTH)
    lab.serve(
        auth=server(port=AUTH), acct=ACCOUNTING, ipcp="pool-address 10.66.0.0/18 for static"
    )
    sim = lab.simulate("pppoe", "--sessions", "400", "--user", "user{n}", "--hold", "inf", auth="pap")
    sim.up(400)
    sim.stop()
    until(lambda: not lab.sessions(), "they have gone")
    assert spooled(lab) >= 800
    acct = lab.fake(fake.slowly(0.1, accept()), port=ACCT)
    until(lambda: acct.records(), "it is asked")
    again = lab.simulate("pppoe", "--sessions", "20", "--first", "2000", "--user", "user{n}", auth="pap")
    assert again.summary["up"] == 20
    until(lambda: spooled(lab) == 0, "the spool is empty")
    starts = Counter(record.text(ACCT_SESSION_ID) for record in acct.records(fake.START))
    stops = Counter(record.text(ACCT_SESSION_ID) for record in acct.records(fake.STOP))
    assert starts.keys() == stops.keys()
    assert len(starts) == 420


def test_on_and_off(lab: RadiusLab) -> None:
    """A server hears when the concentrator comes and goes, and before which records."""
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)
    acct = lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT))
    sim = dial(lab, "pppoe", 1, 2)
    assert lab.daemon.stop() == 0
    sim.stop()
    kinds = [record.integer(ACCT_STATUS_TYPE) for record in acct.records()]
    assert kinds == [fake.ON, fake.START, fake.START, fake.STOP, fake.STOP, fake.OFF]
    on, first, *_, off = acct.records()
    # The first eight digits tell one start of the daemon from another (conf/freeradius/sql.conf).
    assert on.text(ACCT_SESSION_ID)[:8] == first.text(ACCT_SESSION_ID)[:8] == off.text(ACCT_SESSION_ID)[:8]
    assert all(record.text(NAS_IDENTIFIER) == "bng" for record in acct.records())
    lab.start_again()
    until(lambda: len(acct.records(fake.ON)) == 2, "it says that it is there again")
    assert acct.records(fake.ON)[1].text(ACCT_SESSION_ID)[:8] != on.text(ACCT_SESSION_ID)[:8]
