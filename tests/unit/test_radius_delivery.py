"""How records get from the spool to servers: a client that does as it is told, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from npppy.aaa.radius import delivery as module
from npppy.aaa.radius.delivery import BARRIER_PATIENCE, FRESH, PATIENCE, PAUSE, WINDOW, Delivery, Flight, Lane
from npppy.aaa.radius.packet import ENCODED
from npppy.aaa.radius.spool import ACCOUNTING_OFF, ACCOUNTING_ON, INTERIM_UPDATE, START, STOP, Record, Spool
from npppy.config.model import RadiusServer, RadiusServers

EPOCH = 1_700_000_000


def servers(*ports: int) -> RadiusServers:
    return RadiusServers(
        servers=tuple(RadiusServer(address=ip_address("192.0.2.1"), port=port, secret="s") for port in ports)
    )


@dataclass
class State:
    kind: str
    address: object
    port: int
    state: str


class Course:
    def __init__(self, client: FakeClient, flight: Flight) -> None:
        self.client = client
        self.flight = flight

    def cancel(self) -> None:
        self.client.flying.remove(self.flight)


class FakeClient:
    def __init__(self) -> None:
        self.flying: list[Flight] = []
        self.sent: list[bytes] = []
        self.states: list[State] = []

    def request(self, conf: RadiusServers, kind: str, flight: Flight, now: float) -> None:
        assert kind == "acct"
        assert flight.deadline > now + conf.timeout * conf.max_tries
        self.flying.append(flight)
        self.sent.append(flight.record.attributes)
        flight._course = cast(Any, Course(self, flight))

    def state(self) -> list[State]:
        return self.states


class Bench:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0.0
        self.skew = 0
        self.todo: list[Callable[[], None]] = []
        self.client = FakeClient()
        self.spools: list[Spool] = []
        self.start()

    def start(self, *names: str) -> None:
        """A daemon begins, after whatever was before."""
        self.client.flying.clear()
        self.spool = Spool(self.path, EPOCH + self.now)
        self.spools.append(self.spool)
        self.delivery = Delivery(
            self.spool,
            cast(Any, self.client),
            lambda: EPOCH + self.now + self.skew,
            lambda: self.now,
            self.todo.append,
        )
        self.spool.renewed = self.delivery.renewed
        self.delivery.configure({"isp": servers(1)})
        self.run()

    def kill(self) -> None:
        """What was not written is lost."""
        self.todo.clear()
        assert not self.spool.dirty
        self.spool.close()

    def run(self) -> None:
        """The rest of this turn of the loop, and those that it asks for."""
        for _ in range(100):
            if not self.todo:
                return
            todo, self.todo[:] = list(self.todo), []
            for act in todo:
                act()
        raise AssertionError("it never comes to an end")

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self.delivery.tick(self.now)
            self.run()

    def add(self, text: str, kind: int | None = None, realm: str = "isp", hold: bool = False) -> Record:
        """A record: "7 start" is the Start of session 7."""
        session, word = text.split()
        kinds = {"start": START, "stop": STOP, "interim": INTERIM_UPDATE, "on": ACCOUNTING_ON, "off": ACCOUNTING_OFF}
        return self.delivery.add(
            realm, int(session), kinds[word], EPOCH + int(self.now), text.encode(), flow=f"f{session}", hold=hold
        )

    def put(self, *texts: str, realm: str = "isp") -> None:
        for text in texts:
            self.add(text, realm=realm)
        self.run()

    @property
    def up(self) -> list[str]:
        """What is under way."""
        return [flight.record.attributes.decode() for flight in self.client.flying]

    def flight(self, text: str) -> Flight:
        (flight,) = [flight for flight in self.client.flying if flight.record.attributes == text.encode()]
        return flight

    def answer(self, *texts: str) -> None:
        for text in texts:
            flight = self.flight(text)
            self.client.flying.remove(flight)
            flight.answered(cast(Any, None), cast(Any, None), self.now)
        self.run()

    def fail(self, *texts: str) -> None:
        for text in texts:
            flight = self.flight(text)
            self.client.flying.remove(flight)
            flight.failed("no answer", self.now)
        self.run()

    def fail_all(self) -> None:
        self.fail(*self.up)

    def answer_all(self, seconds: int = 0) -> list[str]:
        """Answer whatever is sent; returns it in order."""
        seen = []
        for _ in range(seconds + 1):
            while self.client.flying:
                assert len(seen) < 20_000
                seen += self.up
                self.answer(*self.up)
            self.wait(1)
        return seen

    @property
    def lane(self) -> Lane:
        return self.delivery.lanes[0]

    def empty(self) -> None:
        assert self.spool.depth.total() == 0
        assert self.client.flying == []
        assert (self.lane.flying, self.lane.fresh, self.lane.retrying, self.delivery._catching) == ({}, 0, 0, 0)
        assert self.lane.barriers == []
        assert not self.delivery.busy
        self.spool.flush(self.now)
        assert self.spool.scan(("isp", "other"), 0, 10)[0] == []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path / "spool")
    yield bench
    for spool in bench.spools:
        spool.close()


def test_a_new_record_goes_at_once_and_once_it_is_written(bench: Bench) -> None:
    bench.add("7 start")
    # Not before it is written: a server would know a session that a killed daemon does not.
    assert bench.up == []
    bench.run()
    assert bench.up == ["7 start"]
    assert not bench.spool.dirty
    assert bench.flight("7 start").flow == "f7"
    bench.answer("7 start")
    bench.empty()
    assert bench.delivery.delivered == 1


def test_the_delay_is_told_anew_and_all_else_stays(bench: Bench) -> None:
    bench.put("7 start")
    flight = bench.flight("7 start")
    assert flight.pairs(bench.now) == [(ENCODED, b"7 start"), ("Acct-Delay-Time", 0)]
    bench.now += 33.4
    assert flight.pairs(bench.now) == [(ENCODED, b"7 start"), ("Acct-Delay-Time", 33)]
    bench.now -= 99
    assert flight.pairs(bench.now)[1] == ("Acct-Delay-Time", 0)


def test_records_of_a_session_go_one_after_the_other(bench: Bench) -> None:
    bench.put("7 start")
    bench.put("8 start", "7 interim")
    bench.put("7 stop")
    assert bench.up == ["7 start", "8 start"]
    bench.answer("8 start")
    assert bench.up == ["7 start"]
    bench.answer("7 start")
    assert bench.up == ["7 interim"]
    bench.put("8 stop")
    bench.answer("7 interim")
    assert bench.up == ["8 stop", "7 stop"]
    bench.answer("7 stop", "8 stop")
    bench.empty()


def test_a_silent_server_is_tried_with_one_record_at_a_time(bench: Bench) -> None:
    bench.put("1 start", "2 start", "3 start")
    bench.fail("1 start")
    assert bench.lane.down
    assert not bench.delivery.busy
    bench.fail("2 start", "3 start")
    bench.put("4 start", "1 stop", "5 start")
    assert bench.up == []
    bench.wait(1)
    assert bench.up == ["4 start"]
    bench.wait(4)
    # One that was never sent, and one that was.
    assert sorted(bench.up) == ["1 start", "4 start"]
    bench.put("6 start")
    bench.wait(60)
    assert len(bench.up) == 2
    tried = set(bench.up)
    for _ in range(12):
        bench.fail_all()
        bench.wait(11)
        assert 1 <= len(bench.up) <= 2
        tried |= set(bench.up)
    assert len(tried) >= 5
    first = bench.up[0]
    bench.answer(first)
    # At once, and in order.
    rest = set(bench.up)
    assert {"1 start", "2 start", "3 start", "4 start", "5 start", "6 start"} <= rest | {first}
    assert "1 stop" not in rest
    bench.answer(*[text for text in bench.up if text == "1 start"])
    assert "1 stop" in bench.answer_all(2)
    bench.empty()


def test_the_pause_between_attempts_grows(bench: Bench) -> None:
    bench.put("1 start")
    at = []
    bench.fail("1 start")
    for _ in range(400):
        bench.wait(1)
        if bench.up:
            at.append(bench.now)
            bench.fail_all()
    gaps = [int(b - a) for a, b in pairwise(at)]
    assert gaps == sorted(gaps)
    assert gaps[-1] <= PAUSE[1]
    # Nothing was its fault.
    assert bench.spool.resting(("isp",), EPOCH + 1000, 1)[0].tries == 0


def test_status_server_tells_that_it_is_there_again(bench: Bench) -> None:
    bench.put(*[f"{n} start" for n in range(1, 30)])
    bench.fail_all()
    here = ip_address("192.0.2.1")
    bench.client.states = [State("auth", here, 1, "up"), State("acct", here, 1, "probing")]
    bench.wait(1)
    bench.fail_all()
    bench.wait(1)
    assert bench.lane.down
    bench.client.states[1].state = "up"
    bench.wait(1)
    assert not bench.lane.down
    assert sorted(bench.answer_all(2)) == sorted(f"{n} start" for n in range(1, 30))
    bench.empty()


def test_a_record_that_is_never_answered_holds_up_nobody_else(bench: Bench) -> None:
    bench.put("1 start", "1 interim", "1 stop")
    for n in range(2, 200):
        if "1 start" in bench.up:
            # Another is answered meanwhile.
            bench.put(f"{n} start")
            bench.answer(*[text for text in bench.up if text != "1 start"])
            bench.fail("1 start")
        assert not bench.lane.down
        bench.answer(*[text for text in bench.up if text != "1 start"])
        bench.wait(5)
        if bench.spool.depth.total() == 1:
            break
    # Its session has gone on without it.
    assert bench.client.sent.count(b"1 start") >= PATIENCE
    assert bench.client.sent.count(b"1 stop") == 1
    assert bench.client.sent.index(b"1 interim") < bench.client.sent.index(b"1 stop")
    before = bench.client.sent.count(b"1 start")
    # It is tried on.
    for _ in range(4):
        bench.fail_all()
        bench.wait(61)
    assert bench.client.sent.count(b"1 start") > before


def test_many_that_are_never_answered_hold_up_nobody_else(bench: Bench) -> None:
    poison = [f"{n} start" for n in range(1, 200)]
    bench.put(*poison)
    bench.fail_all()
    assert bench.lane.down
    bench.put("1000 start")
    for n in range(2000, 2400):
        bench.put(f"{n} start", f"{n} stop")
        for text in [text for text in bench.up if text not in poison]:
            bench.answer(text)
        if n % 10 == 0:
            bench.fail(*[text for text in bench.up if text in poison])
        bench.wait(3)
    good = {text for text in bench.client.sent if text.decode() not in poison}
    assert b"1000 start" in good
    assert len(good) > 700
    assert bench.spool.depth.total() < 199 + 40


def test_the_backlog_is_sent_a_window_at_a_time_while_new_ones_pass(bench: Bench) -> None:
    for n in range(1, 3001):
        bench.add(f"{n} start")
        bench.add(f"{n} stop")
    bench.run()
    # What is new goes at once, up to a bound; the rest is backlog.
    assert len(bench.up) == FRESH + WINDOW
    bench.kill()
    bench.start()
    assert bench.up == [f"{n} start" for n in range(1, WINDOW + 1)]
    bench.answer("1 start", "3 start")
    # Whose Start is through has its Stop next.
    assert set(bench.up) >= {"1 stop", "3 stop"}
    assert len(bench.up) == WINDOW
    bench.put("9000 start")
    assert bench.up[-1] == "9000 start"
    seen = ["1 start", "3 start", *bench.answer_all(2)]
    assert len(seen) == 6001
    for n in range(1, 3001):
        assert seen.index(f"{n} start") < seen.index(f"{n} stop")
    bench.empty()


def test_a_killed_daemon_sends_again_what_was_not_answered(bench: Bench) -> None:
    bench.put("1 start", "2 start", "1 stop")
    bench.answer("2 start")
    bench.kill()
    bench.start()
    assert bench.up == ["1 start"]
    bench.fail("1 start")
    bench.kill()
    bench.start()
    bench.wait(5)
    assert bench.answer_all(3) == ["1 start", "1 stop"]
    bench.empty()


def test_a_record_that_was_held_goes_when_it_is_let_go(bench: Bench) -> None:
    held = bench.add("1 stop", hold=True)
    bench.run()
    assert bench.up == []
    assert bench.delivery.busy
    bench.put("2 start")
    assert bench.up == ["2 start"]
    bench.delivery.let_go(held, b"1 stop-with-all-counters", "f1")
    bench.run()
    assert bench.up == ["2 start", "1 stop-with-all-counters"]
    bench.answer(*bench.up)
    bench.empty()


def test_a_record_that_was_held_in_a_backlog(bench: Bench) -> None:
    bench.put("3 start")
    bench.fail("3 start")
    held = bench.add("1 stop", hold=True)
    bench.put("2 start")
    bench.wait(3)
    assert sorted(bench.up) == ["2 start"]
    bench.delivery.let_go(held, held.attributes, "f1")
    bench.run()
    assert bench.up == ["2 start"]
    bench.fail("2 start")
    bench.wait(11)
    assert "1 stop" in bench.up
    assert sorted(bench.answer_all(2)) == ["1 stop", "2 start", "3 start"]
    bench.empty()


def test_what_was_held_when_the_daemon_died_is_sent_as_it_is(bench: Bench) -> None:
    bench.add("1 stop", hold=True)
    bench.run()
    bench.kill()
    bench.start()
    assert bench.up == ["1 stop"]


def test_on_waits_for_what_is_older_and_all_else_for_it(bench: Bench) -> None:
    bench.put("1 start", "1 stop")
    bench.kill()
    bench.start()
    bench.put("0 on", "2 start", "3 start")
    assert bench.up == ["1 start"]
    bench.answer("1 start")
    assert bench.up == ["1 stop"]
    bench.answer("1 stop")
    assert bench.up == ["0 on"]
    bench.wait(100)
    assert bench.up == ["0 on"]
    bench.answer("0 on")
    assert bench.up == ["2 start", "3 start"]
    bench.put("0 off")
    bench.answer("3 start")
    bench.put("2 stop")
    assert bench.up == ["2 start"]
    bench.answer("2 start")
    assert bench.up == ["0 off"]
    bench.answer("0 off")
    assert bench.up == ["2 stop"]
    bench.answer("2 stop")
    bench.empty()


def test_barriers_are_found_by_the_next_run(bench: Bench) -> None:
    bench.put("1 start", "0 off", "0 on", "2 start")
    bench.kill()
    bench.start()
    assert bench.answer_all(2) == ["1 start", "0 off", "0 on", "2 start"]
    bench.empty()


def test_on_through_an_outage(bench: Bench) -> None:
    bench.put("0 on")
    bench.put(*[f"{n} start" for n in range(1, 100)])
    sent = 0
    for _ in range(50):
        bench.wait(7)
        sent += bench.up.count("0 on")
        bench.fail_all()
    assert sent > 5
    # The first that is answered is a herald, or it.
    bench.wait(61)
    bench.answer(*bench.up)
    seen = bench.answer_all(70)
    assert bench.client.sent.count(b"0 on") == sent + 1 + seen.count("0 on")
    # Whatever was answered before it has been sent again.
    last = max(at for at, text in enumerate(bench.client.sent) if text == b"0 on")
    assert set(bench.client.sent[last + 1 :]) == {b"%d start" % n for n in range(1, 100)}
    bench.empty()


def test_on_that_is_never_answered_is_given_up(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.put("0 on", "1 start", "2 start", "1 stop")
    for _ in range(300):
        bench.wait(1)
        bench.answer(*[text for text in bench.up if text != "0 on"])
        if bench.now % 5 == 0:
            bench.fail(*[text for text in bench.up if text == "0 on"])
    assert "given up" in caplog.text
    assert bench.client.sent.count(b"0 on") >= BARRIER_PATIENCE
    last = max(at for at, text in enumerate(bench.client.sent) if text == b"0 on")
    assert bench.client.sent[last + 2 :] == [b"1 start", b"2 start", b"1 stop"]
    bench.empty()


def test_a_record_before_on_that_is_never_answered_does_not_keep_it(bench: Bench) -> None:
    bench.put("1 start", "2 start")
    bench.kill()
    bench.start()
    bench.put("0 on", "3 start")
    bench.answer("2 start")
    bench.fail("1 start")
    for _ in range(600):
        bench.wait(1)
        if bench.now % 7 == 0:
            bench.fail(*[text for text in bench.up if text == "1 start"])
        # Status-Server.
        bench.client.states = [State("acct", ip_address("192.0.2.1"), 1, "up")]
        bench.answer(*[text for text in bench.up if text != "1 start"])
    # Heralds before it, and the thing itself after it.
    assert bench.client.sent.count(b"0 on") == 1
    assert bench.client.sent[-1] == b"1 start"
    assert b"3 start" in bench.client.sent[bench.client.sent.index(b"0 on") :]
    assert bench.spool.depth["isp"] == 1


def test_realms_that_share_a_server_share_a_lane(bench: Bench) -> None:
    conf = {"a": servers(1), "b": servers(2, 3), "c": servers(3, 4), "d": servers(5), "e": servers(4, 9)}
    bench.delivery.configure(conf)
    assert sorted(sorted(lane.realms) for lane in bench.delivery.lanes) == [["a"], ["b", "c", "e"], ["d"]]
    bench.put("0 on", realm="b")
    bench.put("1 start", realm="c")
    bench.put("2 start", realm="d")
    assert bench.up == ["0 on", "2 start"]
    bench.answer("0 on")
    assert bench.up == ["2 start", "1 start"]


def test_a_clock_that_is_set_back_delays_nothing(bench: Bench) -> None:
    bench.put("1 start", "2 start")
    bench.wait(1)
    bench.answer("2 start")
    bench.fail("1 start")
    bench.skew = -86400
    bench.wait(3)
    assert bench.up == ["1 start"]


def test_the_backlog_keeps_to_its_rate(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE", 100)
    bench.put(*[f"{n} start" for n in range(1, 400)])
    bench.kill()
    bench.start()
    bench.wait(1)
    seen = 0
    for _ in range(10):
        while bench.up:
            seen += len(bench.up)
            bench.answer(*bench.up)
        bench.put(f"{1000 + seen} start")
        assert bench.up == [f"{1000 + seen} start"]
        bench.answer(*bench.up)
        bench.wait(1)
        assert seen <= 100 * (bench.now + 1)
    assert seen == 399
    assert bench.now <= 12
    bench.empty()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_each_record_is_delivered_and_in_order(bench: Bench, seed: int) -> None:
    """Servers that answer, are silent or dislike a record; a daemon that is killed now and then."""
    rng = Random(seed)
    made: list[bytes] = []
    acked: list[bytes] = []
    state: dict[int, int] = {}
    alive, serial, boots = True, 0, 0

    def act(text: str, session: int) -> None:
        made.append(text.encode())
        bench.add(text)

    for _ in range(600):
        roll = rng.random()
        if roll < 0.25:
            serial += 1
            state[serial] = 0
            act(f"{serial} start", serial)
        elif roll < 0.4 and state:
            session = rng.choice(list(state))
            state[session] += 1
            bench.delivery.add("isp", session, INTERIM_UPDATE, 0, b"%d interim%d" % (session, state[session]))
            made.append(b"%d interim%d" % (session, state[session]))
        elif roll < 0.5 and state:
            session = rng.choice(list(state))
            del state[session]
            act(f"{session} stop", session)
        elif roll < 0.53:
            alive = not alive
        elif roll < 0.54:
            bench.run()
            bench.kill()
            boots += 1
            bench.start()
            state.clear()
            serial += 1000
            made.append(b"%d on" % boots)
            bench.delivery.add("isp", 0, ACCOUNTING_ON, 0, b"%d on" % boots)
        if rng.random() < 0.5:
            bench.run()
        if rng.random() < 0.3:
            bench.wait(1)
        for flight in list(bench.client.flying):
            if rng.random() < 0.5:
                bench.client.flying.remove(flight)
                if alive and rng.random() < 0.9:
                    acked.append(flight.record.attributes)
                    flight.answered(cast(Any, None), cast(Any, None), bench.now)
                else:
                    flight.failed("no answer", bench.now)
    for _ in range(200):
        for flight in list(bench.client.flying):
            bench.client.flying.remove(flight)
            acked.append(flight.record.attributes)
            flight.answered(cast(Any, None), cast(Any, None), bench.now)
        bench.wait(1)
        if not bench.spool.depth.total():
            break
    bench.empty()
    # A barrier may have been given up.
    assert {text for text in made if not text.endswith(b"on")} <= set(acked)
    assert len(acked) < 1.5 * len(made)
    last = {text: at for at, text in enumerate(acked)}
    order: dict[bytes, list[bytes]] = {}
    for text in made:
        order.setdefault(text.split()[0], []).append(text)
    for texts in order.values():
        if not texts[0].endswith(b"on"):
            places = [last[text] for text in texts]
            assert places == sorted(places)
    barriers = [text for text in made if text.endswith(b"on") and text in last]
    for barrier in barriers:
        at = made.index(barrier)
        assert all(last[text] < last[barrier] for text in made[:at] if text in last)
        assert all(last[text] > last[barrier] for text in made[at + 1 :] if text in last)


def test_a_realm_that_goes_leaves_its_records_until_it_is_back(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.put("1 start", "2 start", "1 stop")
    bench.answer("2 start")
    bench.delivery.configure({"other": servers(1)})
    bench.run()
    assert bench.up == []
    assert "records=2 wait" in caplog.text
    bench.put("3 start", realm="isp")
    bench.put("3 start", realm="other")
    assert bench.up == ["3 start"]
    bench.answer("3 start")
    bench.delivery.configure({"other": servers(1), "isp": servers(2)})
    bench.run()
    assert sorted(bench.up) == ["1 start", "3 start"]
    assert sorted(bench.answer_all(1)) == ["1 start", "1 stop", "3 start"]
    bench.empty()


def test_a_reload_that_joins_lanes_sends_each_record_once(bench: Bench) -> None:
    bench.put("1 start", "2 start", "2 stop")
    bench.add("3 start")
    flight = bench.flight("2 start")
    bench.client.flying.remove(flight)
    flight.answered(cast(Any, None), cast(Any, None), bench.now)
    # Before the turn is over.
    bench.delivery.configure({"isp": servers(1), "other": servers(1)})
    bench.run()
    assert sorted(bench.up) == ["1 start", "2 stop", "3 start"]
    bench.answer(*bench.up)
    bench.empty()


def test_a_reload_that_brings_another_server_wakes_what_waits(bench: Bench) -> None:
    bench.put("1 start", "2 start")
    bench.fail_all()
    bench.delivery.configure({"isp": servers(2)})
    bench.run()
    assert bench.up == ["1 start", "2 start"]


def test_a_reload_that_changes_servers_leaves_what_is_under_way(bench: Bench) -> None:
    bench.put("1 start", "2 start")
    bench.delivery.configure({"isp": servers(1, 2)})
    bench.run()
    assert bench.up == ["1 start", "2 start"]
    bench.answer("1 start", "2 start")
    bench.empty()


def test_beyond_the_limit_an_interim_takes_the_place_of_others(bench: Bench) -> None:
    bench.delivery.limit = 4
    bench.put("1 start", "1 interim", "1 interim", "2 start")
    assert bench.spool.depth["isp"] == 4
    bench.add("1 interim")
    bench.add("2 interim")
    bench.add("1 stop")
    bench.run()
    # Starts and Stops stay.
    assert bench.spool.depth["isp"] == 5
    assert bench.delivery.replaced == 2
    assert bench.answer_all(1) == ["1 start", "2 start", "1 interim", "2 interim", "1 stop"]
    bench.empty()


def test_an_interim_that_is_under_way_is_not_replaced(bench: Bench) -> None:
    bench.delivery.limit = 1
    bench.put("1 interim")
    bench.put("1 interim")
    bench.put("1 interim")
    assert bench.up == ["1 interim"]
    assert bench.spool.depth["isp"] == 2
    assert bench.answer_all(1) == ["1 interim", "1 interim"]
    bench.empty()


def test_a_disk_that_takes_nothing_keeps_no_record_from_its_server(bench: Bench) -> None:
    bench.put("1 start")
    bench.answer("1 start")
    db = bench.spool._db
    assert db is not None
    db.execute("PRAGMA query_only = ON")
    bench.put("2 start", "2 stop", "3 start")
    assert bench.spool.trouble
    assert bench.up == ["2 start", "3 start"]
    bench.answer("2 start")
    assert bench.up == ["3 start", "2 stop"]
    bench.fail("3 start", "2 stop")
    bench.put("4 start")
    bench.wait(3)
    assert "4 start" in bench.up
    bench.answer("4 start")
    bench.wait(1)
    assert sorted(bench.up) == ["2 stop", "3 start"]
    db.execute("PRAGMA query_only = OFF")
    bench.wait(2)
    assert not bench.spool.trouble
    bench.answer(*bench.up)
    bench.wait(2)
    bench.empty()


def test_a_spool_that_breaks_keeps_what_is_under_way(bench: Bench) -> None:
    bench.put("1 start", "2 start", "0 on", "3 start")
    bench.spool._put_aside(bench.path, "test")
    bench.spool._close()
    bench.spool._open(bench.path)
    bench.delivery.renewed()
    bench.run()
    assert bench.spool.depth["isp"] == 3
    bench.kill()
    bench.start()
    assert bench.answer_all(1) == ["1 start", "2 start", "0 on"]
    bench.empty()
