"""The accountant: sessions of a real engine, a real client, servers of cardboard, on one virtual clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network, ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from npppy.aaa.base import Accept, Profile
from npppy.aaa.radius import records
from npppy.aaa.radius.accounting import CHECK, Accountant
from npppy.aaa.radius.packet import Code, Received, encode_request, parse
from npppy.aaa.radius.rounds import Rounds
from npppy.aaa.radius.spool import INTERIM_UPDATE, STOP, Spool
from npppy.config.model import Config, Radius
from npppy.pipex.base import Counters, Leftovers
from npppy.ppp.cause import Cause
from npppy.ppp.link import Caller, Link
from npppy.wheel import TICK
from tests.unit.ppp_rig import Line, Rig
from tests.unit.radius_net import Host, Net, block, entry

EPOCH = 1e9
NOTHING = Leftovers({}, {})
ACCT = block(entry("192.0.2.20", 1813), max_tries=2, max_failovers=0)


class Meter:
    """The data path of a session, with counters as one likes."""

    def __init__(self, line: Line) -> None:
        flow = line.session.flow
        assert flow is not None
        self.flow = flow
        self.now = Counters()
        self.afterwards = Counters()
        line.session.flow = cast(Any, self)

    def counters(self) -> Counters:
        return self.now

    def by_python(self) -> Counters:
        return Counters()

    def late(self) -> Counters:
        return self.afterwards

    def close(self) -> Counters:
        self.flow.close()
        return self.now

    def __getattr__(self, name: str) -> object:
        return getattr(self.flow, name)


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.net = Net()
        self.net.accounting = True
        self.host = self.net.hosts[ip_address("192.0.2.20"), 1813] = Host(self.net)
        self.todo: list[Callable[[], None]] = []
        self.seed = 0
        self.spools: list[Spool] = []
        self.start()

    def start(self, leftovers: Leftovers = NOTHING, radius: Radius | None = None, **realm: object) -> None:
        """The daemon begins."""
        self.rig = Rig(lcp_keepalive=False, realm={"name": "isp", "type": "radius", "accounting": ACCT, **realm})
        self.rig.now = self.net.now
        self.rig.wheel.tick = int(self.net.now / TICK)
        self.config = replace(self.rig.config, radius=radius or Radius())
        self.net.client.configure(self.config, self.net.now)
        self.spool = Spool(self.path, self.wall())
        self.spools.append(self.spool)
        self.seed += 1
        self.rig.engine.boot = self.spool.new_boot(lambda count: self.seed.to_bytes(count, "big"), self.wall())
        self.accountant = Accountant(
            engine=self.rig.engine,
            client=self.net.client,
            spool=self.spool,
            wheel=self.rig.wheel,
            wall=self.wall,
            clock=lambda: self.net.now,
            random=self.net.rng.randbytes,
            later=self.todo.append,
        )
        self.accountant.recover(leftovers)
        self.accountant.configure(self.config)
        self.turn()

    def reload(self, config: Config) -> None:
        self.net.client.configure(config, self.net.now)
        self.accountant.configure(config)
        self.turn()

    def kill(self) -> None:
        """What is not written is lost, and nobody says goodbye."""
        self.todo.clear()
        self.spool._added.clear()
        self.spool._opened.clear()
        self.spool._used.clear()
        self.spool._alive = 0.0
        self.accountant.delivery.close()
        self.spool.close()
        self.net.run(1)

    def wall(self) -> float:
        return EPOCH + self.net.now

    def turn(self) -> None:
        while self.todo:
            todo, self.todo[:] = list(self.todo), []
            for act in todo:
                act()

    def run(self, seconds: float = 0.5) -> None:
        for _ in range(int(seconds / TICK)):
            self.net.run(TICK)
            self.rig.now = self.net.now
            self.rig.advance()
            self.turn()

    def up(self, user: str = "alice", accept: Accept | None = None) -> Line:
        self.rig.aaa.accept[user] = replace(accept or Accept(), authentic=1)
        return self.rig.up(user)

    @property
    def records(self) -> list[Received]:
        """What the server has got, without retransmissions."""
        found: dict[bytes, Received] = {}
        for request in self.host.of(Code.ACCOUNTING_REQUEST):
            found.setdefault(request.data, request)
        return list(found.values())

    def kinds(self) -> list[int | None]:
        return [record.integer("Acct-Status-Type") for record in self.records]

    def last(self) -> Received:
        return self.records[-1]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "spool")
    yield world
    for spool in world.spools:
        spool.close()


def test_on_start_stop_off(world: World) -> None:
    world.run()
    on = world.last()
    assert world.kinds() == [7]
    assert on.text("Acct-Session-Id") == "00000001"
    assert on.text("NAS-Identifier") == "npppd"
    assert on.integer("NAS-IP-Address") == int(ip_address("192.0.2.1"))
    line = world.up()
    world.run()
    start = world.last()
    assert start.integer("Acct-Status-Type") == 1
    assert start.text("User-Name") == "alice"
    assert start.text("Acct-Session-Id") == "0000000100000000"
    assert start.integer("Acct-Authentic") == 1
    assert start.integer("Framed-IP-Address") == line.session.address
    assert start.integer("Framed-IP-Netmask") == 0xFFFFFFFF
    assert start.text("Calling-Station-Id") is not None
    assert start.integer("Acct-Delay-Time") == 0
    assert start.integer("Event-Timestamp") == int(EPOCH + 1000.5)
    assert "Acct-Session-Time" not in start
    assert "Acct-Terminate-Cause" not in start
    assert "Acct-Link-Count" not in start
    meter = Meter(line)
    world.run(75)
    meter.now = Counters(
        in_bytes=(3 << 32) + 7, in_packets=(1 << 32) + 5, out_bytes=(1 << 32) - 1, out_packets=4, out_errors=99
    )
    line.session.end(Cause.IDLE_TIMEOUT, "idle", world.net.now)
    world.turn()
    world.run()
    stop = world.last()
    assert world.kinds() == [7, 1, 2]
    assert stop.text("Acct-Session-Id") == "0000000100000000"
    assert stop.integer("Acct-Terminate-Cause") == 4
    assert stop.integer("Acct-Session-Time") == 75
    assert stop.integer("Event-Timestamp") == int(EPOCH + 1076)
    values = [
        stop.integer(f"Acct-{name}")
        for name in (
            "Input-Octets",
            "Input-Gigawords",
            "Input-Packets",
            "Output-Octets",
            "Output-Gigawords",
            "Output-Packets",
        )
    ]
    assert values == [7, 3, 5, 0xFFFFFFFF, 0, 4]
    assert stop.integer("Framed-IP-Address") == start.integer("Framed-IP-Address")
    world.accountant.shut()
    assert world.accountant.busy
    world.turn()
    world.run()
    assert world.kinds() == [7, 1, 2, 8]
    assert world.last().text("Acct-Session-Id") == "00000001"
    assert not world.accountant.busy
    assert world.accountant.state().waiting == {}
    assert world.accountant.state().delivered == 4
    assert world.net.idle()


def test_packets_that_are_counted_late_are_in_the_stop(world: World) -> None:
    line = world.up()
    meter = Meter(line)
    meter.now = Counters(in_bytes=1000, in_packets=10)
    line.session.end(Cause.USER_REQUEST, "", world.net.now)
    world.turn()
    meter.afterwards = Counters(in_bytes=60, in_packets=1)
    # It is on the disk already, should we die now.
    assert [record.kind for record in world.spool.of_session("isp", 1 << 32)] == [1, STOP]
    world.run()
    assert (world.last().integer("Acct-Input-Octets"), world.last().integer("Acct-Input-Packets")) == (1060, 11)


def test_what_the_servers_have_given_goes_back(world: World) -> None:
    accept = Accept(
        address=int(ip_address("10.0.0.3")),
        prefixlen=30,
        routes=(IPv4Network("10.9.0.0/24"), IPv4Network("10.8.0.0/16")),
        profile=Profile(classes=(b"gold", b"\0\xff", b"gold"), username="alice@billing", filter_id="slow"),
    )
    world.up(accept=accept)
    world.run()
    start = world.last()
    assert start.all_octets("Class") == [b"gold", b"\0\xff", b"gold"]
    assert start.text("User-Name") == "alice@billing"
    assert start.text("Filter-Id") == "slow"
    assert start.integer("Framed-IP-Netmask") == 0xFFFFFFFC
    assert start.all_texts("Framed-Route") == ["10.9.0.0/24 0.0.0.0 1", "10.8.0.0/16 0.0.0.0 1"]


def test_more_classes_than_a_packet_has_room_for(world: World) -> None:
    world.up(accept=Accept(profile=Profile(classes=(b"x" * 253,) * 15, username="y" * 253)))
    world.run()
    assert len(world.last().all_octets("Class")) == 13
    assert len(world.last().data) <= 4096


def test_a_peer_cannot_say_so_much_that_there_is_no_record(world: World) -> None:
    long = b"\xff" * 255
    caller = Caller(text="x" * 300, calling_number="1" * 300, circuit_id=long, remote_id=long, service="s" * 300)
    line = Line(world.rig, Link(tunnel=world.rig.tunnel, caller=caller, max_mru=1492))
    line.up("alice")
    world.run()
    start = world.last()
    assert start.integer("Acct-Status-Type") == 1
    assert start.octets("ADSL-Agent-Circuit-Id") == long[:247]


def test_interims_are_spread_and_keep_their_pace(world: World) -> None:
    world.kill()
    world.start(accounting_interim=100)
    for _ in range(3):
        world.up("alice")
    start = world.net.now
    world.run(1000)
    at: dict[str | None, list[int]] = {}
    for record in world.records:
        if record.integer("Acct-Status-Type") == INTERIM_UPDATE:
            seen = record.integer("Event-Timestamp")
            assert seen is not None
            assert record.integer("Acct-Session-Time") == int(seen - EPOCH - start)
            assert "Acct-Terminate-Cause" not in record
            at.setdefault(record.text("Acct-Session-Id"), []).append(seen)
    assert len(at) == 3
    assert len({times[0] for times in at.values()}) == 3
    for times in at.values():
        assert 9 <= len(times) <= 10
        # Whatever each of them is late, the next one is not.
        assert {b - a for a, b in pairwise(times)} <= {99, 100, 101}
        assert 98 * len(times) <= times[-1] - times[0] + 100 <= 102 * len(times)


def test_a_profile_has_its_own_pace_and_coa_changes_it(world: World) -> None:
    world.kill()
    world.start(accounting_interim=100)
    line = world.up(accept=Accept(profile=Profile(interim=10)))
    other = world.up("bob", accept=Accept(profile=Profile(interim=0)))
    world.run(100)
    assert 9 <= Counter(world.kinds())[3] <= 10
    world.host.requests.clear()
    line.session.apply(replace(line.session.profile, interim=50, classes=(b"new",)), world.net.now)
    other.session.apply(replace(other.session.profile, interim=20), world.net.now)
    other.session.apply(replace(other.session.profile, interim=0), world.net.now)
    other.session.apply(replace(other.session.profile, interim=20), world.net.now)
    world.turn()
    world.run(100)
    mine = [record for record in world.records if record.integer("Acct-Status-Type") == 3]
    names = Counter(record.text("User-Name") for record in mine)
    assert names == {"alice": 2, "bob": 5}
    assert all(record.octets("Class") == b"new" for record in mine if record.text("User-Name") == "alice")
    line.session.apply(replace(line.session.profile, interim=0), world.net.now)
    other.session.end(Cause.USER_REQUEST, "", world.net.now)
    world.host.requests.clear()
    world.run(300)
    assert world.kinds() == [2]
    assert world.accountant._interims._moved.keys() == {line.session.id}


def test_a_change_that_is_none_of_ours_leaves_the_pace(world: World) -> None:
    world.kill()
    world.start(accounting_interim=100)
    line = world.up()
    world.run(50)
    for _ in range(5):
        line.session.apply(replace(line.session.profile, filter_id=f"{world.net.now}"), world.net.now)
        world.run(30)
    assert Counter(world.kinds())[3] == 2
    assert world.accountant._interims._moved == {}


def test_a_local_realm_and_one_without_servers_have_no_accounts(world: World) -> None:
    world.run()
    world.host.requests.clear()
    for realm in ({"type": "local"}, {"accounting": block()}):
        world.kill()
        world.start(**realm)
        line = world.up()
        world.run(100)
        line.session.end(Cause.USER_REQUEST, "", world.net.now)
        world.run()
        assert world.spool.depth.total() == 0
    assert world.kinds() == []


def test_what_is_sent_again_is_the_same_and_a_new_attempt_is_not(world: World) -> None:
    world.run()
    world.host.silent = True
    world.up()
    world.run(60)
    datagrams = [(socket, data) for socket, data in world.host.datagrams if data[0] == Code.ACCOUNTING_REQUEST][1:]
    series = Counter(datagrams)
    # Each twice; the last series may be under way.
    assert set(list(series.values())[:-1]) == {2}
    assert len(series) >= 3
    packets = [parse(data) for _, data in series]
    # A new identifier, or a new port.
    assert len({(socket, data[1]) for socket, data in series}) == len(series)
    delays = [packet.integer("Acct-Delay-Time") for packet in packets]
    assert delays == sorted(set(delays))
    assert delays[0] == 0
    assert len({packet.integer("Event-Timestamp") for packet in packets}) == 1
    assert len({packet.text("Acct-Session-Id") for packet in packets}) == 1


def test_a_server_away_for_the_whole_run_and_a_daemon_killed_in_between(world: World) -> None:
    """One Start and one Stop a session, the counters right."""
    world.host.silent = True
    world.run(3)
    lines = [world.up("alice") for _ in range(3)]
    meters = [Meter(line) for line in lines]
    world.run(2)
    meters[0].now = Counters(in_bytes=100)
    lines[0].session.end(Cause.USER_REQUEST, "", world.net.now)
    world.run(CHECK)
    for meter in meters[1:]:
        meter.now = Counters(in_bytes=5000, out_bytes=1 << 33, out_packets=70)
    world.run(CHECK + 2)
    for meter in meters[1:]:
        meter.now = Counters(in_bytes=5999, out_bytes=1 << 33, out_packets=70)
    died = world.net.now
    world.kill()
    world.net.run(1000)
    world.host.silent = False
    # Of the third there is nothing in the kernel.
    world.start(Leftovers({lines[1].session.id: Counters(in_bytes=6001, out_bytes=1 << 33, out_packets=71)}, {}))
    world.run(120)
    world.up("bob")
    world.run(5)
    by_session: dict[str, list[Received]] = {}
    acked: dict[bytes, Received] = {}
    for record in world.records:
        if not world.host.silent and record.integer("Acct-Status-Type") in (1, 2, 3):
            acked[record.data] = record
    for record in acked.values():
        by_session.setdefault(record.text("Acct-Session-Id") or "", []).append(record)
    stops = {}
    for name, found in by_session.items():
        if name.startswith("00000001"):
            kinds = [record.integer("Acct-Status-Type") for record in found]
            assert kinds == sorted(kinds)
            assert kinds[-1] == 2
            stops[name] = found[-1]
    one, two, three = (stops[f"00000001{n:08x}"] for n in range(3))
    assert one.integer("Acct-Terminate-Cause") == Cause.USER_REQUEST
    assert one.integer("Acct-Input-Octets") == 100
    assert two.integer("Acct-Terminate-Cause") == Cause.NAS_REBOOT
    assert (two.integer("Acct-Input-Octets"), two.integer("Acct-Output-Gigawords")) == (6001, 2)
    assert two.integer("Acct-Output-Packets") == 71
    # The kernel has carried it until now.
    assert two.integer("Acct-Session-Time") == int(died) + 1001 - 1003
    assert (three.integer("Acct-Input-Octets"), three.integer("Acct-Output-Packets")) == (5000, 70)
    lasted = three.integer("Acct-Session-Time") or 0
    assert abs(lasted - (died - 1003)) <= 2
    assert three.integer("Event-Timestamp") == int(1003 + EPOCH) + lasted
    assert (three.integer("Acct-Delay-Time") or 0) >= 1000
    order = [(r.integer("Acct-Status-Type"), (r.text("Acct-Session-Id") or "")[:8]) for r in acked.values()]
    assert order[-1] == (1, "00000002")
    assert world.spool.depth.total() == 0
    assert world.kinds().count(7) >= 1


@pytest.mark.parametrize(
    ("flowing", "left", "octets"),
    [
        # The data path was open when it was last looked at; the kernel knows of it, open still or just closed.
        (True, Leftovers({0: Counters(in_bytes=500)}, {}), 700),
        (True, Leftovers({}, {0: Counters(in_bytes=500)}), 700),
        (True, Leftovers({}, {}), 600),
        # It had been closed: what it had counted is known.
        (False, Leftovers({}, {0: Counters(in_bytes=200)}), 200),
        # Numbers that went back are not believed.
        (True, Leftovers({0: Counters(in_bytes=10)}, {}), 600),
    ],
)
def test_counters_of_a_session_that_had_other_data_paths(
    world: World, flowing: bool, left: Leftovers, octets: int
) -> None:
    line = world.up()
    Meter(line).now = Counters(in_bytes=200)
    line.session._close_flow()
    if flowing:
        assert line.session.open_flow(world.net.now)
        Meter(line).now = Counters(in_bytes=400)
    world.accountant._check(line.session, world.net.now)
    world.accountant.delivery.soon()
    world.turn()
    world.kill()
    world.start(left)
    world.run(3)
    (stop,) = [record for record in world.records if record.integer("Acct-Status-Type") == 2]
    assert stop.integer("Acct-Input-Octets") == octets


def test_a_clean_end_leaves_nothing_to_recover(world: World) -> None:
    line = world.up()
    world.run(2)
    line.session.end(Cause.ADMIN_REBOOT, "", world.net.now)
    world.accountant.shut()
    world.accountant.close()
    world.net.client.close()
    assert line.session not in world.rig.engine.listeners
    world.start()
    world.run(3)
    assert world.kinds() == [7, 1, 2, 8, 7]
    assert world.spool.depth.total() == 0


def test_a_session_that_is_ended_by_its_renegotiation_has_one_start_and_one_stop(world: World) -> None:
    line = world.up()
    line.session._network_down(world.net.now)
    assert line.session.open_flow(world.net.now)
    world.rig.engine.notify("change", line.session, world.net.now)
    world.run(2)
    line.session.gone(Cause.LOST_CARRIER, "", world.net.now)
    world.run(2)
    assert world.kinds() == [7, 1, 2]


def test_a_reload_takes_the_realm_away_and_gives_it_back(world: World) -> None:
    line = world.up()
    world.run()
    other = replace(world.config, realms=(replace(world.config.realms[0], name="other", accounting=block()),))
    world.reload(other)
    line.session.end(Cause.USER_REQUEST, "", world.net.now)
    world.run(5)
    assert world.kinds() == [7, 1]
    state = world.accountant.state()
    assert (state.waiting, state.orphaned) == ({"isp": 1}, ("isp",))
    assert state.oldest
    world.reload(world.config)
    world.run(2)
    # On is told anew only to servers that have not been told; these lost us meanwhile.
    assert world.kinds()[:3] == [7, 1, 2]
    assert world.spool.depth.total() == 0


def test_a_spool_that_breaks_gets_the_open_sessions_again(world: World) -> None:
    line = world.up()
    world.run()
    world.spool._close()
    world.spool._put_aside(world.path, "test")
    world.spool._open(world.path)
    world.accountant._renewed()
    world.turn()
    assert world.spool.session(world.accountant._key(line.session)) is not None
    world.kill()
    world.start()
    world.run(3)
    assert [kind for kind in world.kinds() if kind == 2] == [2]


def test_checks_write_down_what_sessions_use(world: World) -> None:
    line = world.up()
    meter = Meter(line)
    meter.now = Counters(in_bytes=12345)
    world.run(CHECK + 1)
    world.spool.flush(world.net.now)
    rows = world.spool._query("SELECT at, seconds, flowing FROM used")
    assert len(rows) == 1
    assert rows[0][1] >= 1
    ((alive,),) = world.spool._query("SELECT alive FROM boot")
    assert world.wall() - alive <= 1.5


def test_rounds_give_each_its_turn_and_no_more() -> None:
    rounds = Rounds()
    for n in range(10):
        rounds.add(n, 100 + n % 2)
    assert list(rounds.due(99.9)) == []
    first = []
    for found in rounds.due(101):
        first.append(found[0])
        if len(first) == 3:
            break
    rounds.move(1, 0)
    rounds.move(3, 200)
    rounds.move(3, 300)
    assert sorted(first + [n for n, _ in rounds.due(150)]) == [0, 2, 4, 5, 6, 7, 8, 9]
    assert list(rounds.due(250)) == []
    assert list(rounds.due(301)) == [(3, 300)]
    assert list(rounds.due(10_000)) == []
    assert rounds._slots == {}


def test_no_record_is_longer_than_a_packet() -> None:
    counters = Counters(1 << 65, 1 << 40)
    usage = records.usage(STOP, 1 << 33, bytes((33, 255)) + bytes(253), 1 << 40, counters, Cause.NAS_ERROR)
    packet = parse(encode_request(Code.ACCOUNTING_REQUEST, 1, bytes(16), [("", usage)], b"s"))
    assert packet.integer("Acct-Session-Time") == 0xFFFFFFFF
    assert packet.integer("Acct-Terminate-Cause") == 9
