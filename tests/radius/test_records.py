"""Accounts that lose nothing: servers that are away for hours, and a daemon that is killed meanwhile."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import pytest

from tests.peers.lab import OURS, until
from tests.radius import fake
from tests.radius.fake import ACCT_SESSION_ID, NAS_IDENTIFIER, accept, silent
from tests.radius.lab import ACCT, RadiusLab, Sim, server

pytestmark = pytest.mark.root

AUTH = 1812
#: Octets of an echo request of PINGS, and how many each session sends.
SIZE, PINGS = 400, 4
HASTY = "timeout 1\nmax-tries 1\ndead-time 1"


def dial(lab: RadiusLab, carrier: str, first: int, count: int) -> Sim:
    """Subscribers whose pings are counted; waits until all have been answered."""
    sim = lab.simulate(
        carrier, "--sessions", str(count), "--first", str(first), "--user", "user{n}", "--hold", "inf",
        "--ping", OURS, "--ping-count", str(PINGS), "--ping-interval", "0.05", "--ping-size", str(SIZE - 28),
        auth="pap",
    )  # fmt: skip
    sim.up(count)
    names = {f"user{number}" for number in range(first, first + count)}

    def counted() -> bool:
        rows = [row for row in lab.sessions() if row["username"] in names]
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


@pytest.mark.parametrize("carrier", ["pppoe", "l2tp", "pptp"])
def test_a_server_that_was_away_all_the_time(lab: RadiusLab, carrier: str) -> None:
    """Sessions end, the daemon is killed with others up, and starts again, and all that while nobody takes a record."""
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT, more=HASTY))
    one = dial(lab, carrier, 1, 5)
    one.stop()
    until(lambda: not lab.sessions(), "the first ones have gone")
    other = dial(lab, carrier, 11, 5)
    lab.daemon.stop(signal.SIGKILL)
    lab.start_again()
    other.stop()
    third = dial(lab, carrier, 21, 5)
    third.stop()
    until(lambda: not lab.sessions(), "the third ones have gone")
    fourth = dial(lab, carrier, 31, 5)
    # Killed once more, and once at once after its start.
    lab.daemon.stop(signal.SIGKILL)
    lab.start_again()
    fourth.stop()
    lab.daemon.stop(signal.SIGKILL)
    lab.start_again()
    radius = lab.freeradius()
    names = {f"user{first + number}" for first in (1, 11, 21, 31) for number in range(5)}
    until(lambda: len(radius.accounts()) - len(radius.open_accounts()) >= len(names), "all accounts are closed")
    until(lambda: spooled(lab) == 0, "the spool is empty")
    rows = radius.accounts()
    check(rows, names)
    causes = {row["username"]: row["acctterminatecause"] for row in rows}
    for first, cause in ((1, "User-Request"), (21, "User-Request")):
        assert {causes[f"user{first + number}"] for number in range(5)} == {cause}
    # What the daemon did not see is its own end, and no user's.
    assert not {causes[f"user{first + number}"] for first in (11, 31) for number in range(5)} & {"User-Request", ""}
    lab.empties()


def test_a_server_that_is_gone_for_a_while(lab: RadiusLab) -> None:
    """One that is killed, and comes back with its database: rows are closed that were open then, and none is double."""
    radius = lab.freeradius()
    radius.users([(f"user{number}", "") for number in range(1, 30)])
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT, more=HASTY))
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
    """The same Acct-Session-Id and Event-Timestamp; bit for bit the same, or another identifier; order is kept."""
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)
    acct = lab.fake(silent, port=ACCT)
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT, more="timeout 1\nmax-tries 2\ndead-time 1"))
    sim = dial(lab, "pppoe", 1, 3)
    until(lambda: acct.records(), "a record was sent")
    sim.stop()
    until(lambda: not lab.sessions(), "they have gone")
    until(lambda: len(acct.records()) >= 4, "records were sent again")
    acct.manner = accept()
    until(lambda: spooled(lab) == 0, "the spool is empty")
    assert all(record.is_signed for record in acct.records())
    # What a server that takes the first of each for the record makes of it.
    seen: dict[tuple[str, int], int] = {}
    requests: dict[tuple[Any, int], bytes] = {}
    for record in acct.records():
        kind = record.integer(fake.ACCT_STATUS_TYPE)
        when = record.integer(fake.EVENT_TIMESTAMP)
        assert seen.setdefault((record.text(ACCT_SESSION_ID), kind), when) == when
        # An identifier of a source is another request's only if nothing but the octets tells them apart.
        requests.setdefault((record.source, record.identifier), record.data)
        assert requests[record.source, record.identifier] == record.data
    names = {name for name, kind in seen if kind == fake.START}
    assert len(names) == 3
    for name in names:
        records = [record for record in acct.records() if record.text(ACCT_SESSION_ID) == name]
        kinds = [record.integer(fake.ACCT_STATUS_TYPE) for record in records]
        assert kinds == sorted(kinds)
        assert set(kinds) == {fake.START, fake.STOP}


def test_logins_are_not_held_up_by_what_is_caught_up(lab: RadiusLab) -> None:
    """Thousands of records wait for a server that takes its time; who logs in meanwhile does not."""
    lab.fake(fake.addresses("10.66.0.1"), port=AUTH)
    lab.serve(
        auth=server(port=AUTH), acct=server(port=ACCT, more=HASTY), ipcp="pool-address 10.66.0.0/18 for static"
    )
    sim = lab.simulate("pppoe", "--sessions", "1000", "--user", "user{n}", "--hold", "inf", auth="pap")
    sim.up(1000)
    sim.stop()
    until(lambda: not lab.sessions(), "they have gone")
    assert spooled(lab) >= 2000
    acct = lab.fake(fake.slowly(0.2, accept()), port=ACCT)
    until(lambda: acct.records(), "it is asked")
    again = lab.simulate("pppoe", "--sessions", "20", "--first", "2000", "--user", "user{n}", auth="pap")
    assert again.summary["up"] == 20
    until(lambda: spooled(lab) == 0, "the spool is empty")
    starts = Counter(record.text(ACCT_SESSION_ID) for record in acct.records(fake.START))
    stops = Counter(record.text(ACCT_SESSION_ID) for record in acct.records(fake.STOP))
    assert starts.keys() == stops.keys()
    assert len(starts) == 1020


def test_on_and_off(lab: RadiusLab) -> None:
    """A server hears when the concentrator comes and goes, and before which records."""
    lab.fake(fake.addresses("10.65.1.1"), port=AUTH)
    acct = lab.fake(accept(), port=ACCT)
    lab.serve(auth=server(port=AUTH), acct=server(port=ACCT))
    sim = dial(lab, "pppoe", 1, 2)
    assert lab.daemon.stop() == 0
    sim.stop()
    kinds = [record.integer(fake.ACCT_STATUS_TYPE) for record in acct.records()]
    assert kinds == [fake.ON, fake.START, fake.START, fake.STOP, fake.STOP, fake.OFF]
    on, first, *_, off = acct.records()
    # The first eight digits tell one start of the daemon from another (conf/freeradius/sql.conf).
    assert on.text(ACCT_SESSION_ID)[:8] == first.text(ACCT_SESSION_ID)[:8] == off.text(ACCT_SESSION_ID)[:8]
    assert all(record.text(NAS_IDENTIFIER) == "bng" for record in acct.records())
    lab.start_again()
    until(lambda: len(acct.records(fake.ON)) == 2, "it says that it is there again")
    assert acct.records(fake.ON)[1].text(ACCT_SESSION_ID)[:8] != on.text(ACCT_SESSION_ID)[:8]
