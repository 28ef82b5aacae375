"""Back end ebpf: the sessions of an earlier process are taken over, of an older version too, while packets flow."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from npppy.pipex.ebpf import layout, migrate
from npppy.pipex.ebpf.attach import attach_tc, attach_xdp
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.layout import SESSION, STATS, U32, VERSION, Record
from npppy.pipex.ebpf.libbpf import XDP, BpfError, Map, Object, Program, library
from npppy.pipex.ebpf.maps import PipexMaps
from npppy.pipex.ebpf.migrate import OLDER, Legacy
from npppy.pipex.ebpf.pins import editions, publish
from npppy.pipex.ebpf.plumbing import NpxInterface, teardown
from tests.bpf.test_object import members
from tests.effort import THOROUGH
from tests.root.ebpf_lab import (
    GATEWAY,
    IP,
    OURS,
    POOL,
    THEIRS,
    Lab,
    frame,
    interface,
    links,
    sh,
    until,
    xdp,
)
from tests.root.ebpf_process import (
    BOMB,
    CAPABILITIES,
    CHANGES,
    FILES,
    NOBODY,
    PROLOGUE,
    alive,
    pinned,
)
from tests.unit.ippackets import udp

pytestmark = pytest.mark.root

DATA = Path(__file__).parent / "data"
SO_RCVBUFFORCE = 33
#: Sessions 1 to so many, with the addresses 10.0.0.2 and on.
COUNT = 5
#: How often a program runs, and what it does: r1 = 1; lock *(r8 + in_packets) += r1; return XDP_PASS
REPEAT = 1_000_000
INCREMENT = struct.pack("<BBhiBBhiBBhiBBhi", 0xB7, 1, 0, 1, 0xDB, 0x18, 8, 0, 0xB7, 0, 0, 2, 0x95, 0, 0, 0)
PPPOE = b"\x88\x64\x11\x00"
BLOCKS = layout.FILTER | layout.MSS | layout.COUNT | layout.IDLE | layout.IP4


def address(session: int) -> str:
    return f"10.0.0.{session + 1}"


def key(ifindex: int, session: int) -> bytes:
    return layout.KEY.pack(layout.PPPOE, 0, session.to_bytes(2, "big"), ifindex, 0, 0, THEIRS, 0)


def filled(record: Record, **values: object) -> bytes:
    """A record with what is not named 0."""
    blank = zip(record.offsets, record.unpack(bytes(record.size)), strict=True)
    return record.pack(*(values.get(name, nothing) for name, nothing in blank))


def known(record: Record, value: bytes | None) -> dict[str, object]:
    """The members of a record that are not 0."""
    assert value is not None
    members = layout.fields(record, value).items()
    return {name: member for name, member in members if (any(member) if isinstance(member, bytes) else member)}


class Npppyd:
    """What an npppyd of some version has left when it was killed: devices, programs, pins and sessions."""

    def __init__(self, lab: Lab, pins: Path, version: int, capacity: int = 100) -> None:
        self._lab = lab
        self._pins = pins
        self._own: dict[int, Program] = {}
        # Another process's, in fact; it stays open so that the test need not look for it.
        self.npx = NpxInterface.open(interface(), 1492, [POOL])
        self.install(version, capacity)

    def install(self, version: int, capacity: int = 100) -> None:
        """Begin anew, with sessions that have counted nothing."""
        if self.npx.npx0.name not in links() or self._pins.exists():
            self.close()
            self.npx = NpxInterface.open(interface(), 1492, [POOL])
        records = {"slots": SESSION, "config": layout.CONFIG} | OLDER[version]
        sizes = dict.fromkeys(("sessions", "hosts4", "nets4", "nets6"), capacity)
        sizes |= {"slots": capacity + 256, "stats": capacity + 256, "buckets": 2 * (capacity + 256)}
        if version >= 3:
            sizes["seqs"] = capacity + 256
        if version >= 4:
            sizes["mppe"] = 2 * capacity
        path = layout.OBJECT if version == VERSION else str(DATA / f"pipex-v{version}.o")
        with Object(path, sizes=sizes) as loaded:
            maps, programs = loaded.maps, loaded.programs
            npx0, npx1 = self.npx.npx0, self.npx.npx1
            entry = filled(
                records["config"],
                version=version,
                npx0=npx0.ifindex,
                npx1=npx1.ifindex,
                tun=self.npx.ifindex,
                npx0_mac=npx0.mac,
                npx1_mac=npx1.mac,
            )
            maps["config"].put(U32.pack(0), entry)
            for ifindex in (npx1.ifindex, self._lab.ifindex):
                maps["devs"].put(U32.pack(ifindex), U32.pack(ifindex))
            maps["nics"].put(U32.pack(77), layout.NIC.pack(b"\2\0\0\0\0\7", 0))
            for session in range(1, COUNT + 1):
                self._session(maps, records["slots"], session)
            publish(self._pins, maps, programs)
            if version != VERSION:
                # As it was called then.
                editions(self._pins)[-1].path.rename(self._pins / ("v1" if version == 1 else f"v{version}_1"))
            attach_xdp("acc0", self._lab.ifindex, programs["pipex_access"], {})
            attach_xdp(npx1.name, npx1.ifindex, programs["pipex_core"], {})
            attach_tc(npx1.name, npx1.ifindex, programs["pipex_miss"])

    def _session(self, maps: dict[str, Map], record: Record, session: int) -> None:
        slot, generation = 3 * session, 1000 + session
        header = THEIRS + OURS + PPPOE + session.to_bytes(2, "big") + b"\0\0"
        value = filled(
            record,
            generation=generation,
            blocks=BLOCKS,
            ppp_id=session,
            kind=layout.PPPOE,
            prefixlen4=32,
            address4=IPv4Address(address(session)).packed,
            mtu=1492,
            mru=1492,
            ifindex=self._lab.ifindex,
            encap_len=len(header),
            length_at=len(header) - 2,
            encap=header,
        )
        maps["slots"].put(U32.pack(slot), value)
        maps["buckets"].put(U32.pack(2 * slot), layout.BUCKET.pack(1000, 2000 + session, 0, 0, 0, 0))
        ref = layout.REF.pack(slot, generation)
        number = IPv4Address(address(session))
        maps["sessions"].put(key(self._lab.ifindex, session), ref)
        maps["hosts4"].put(layout.HOST4.pack(0, number.packed), ref)
        maps["nets4"].put(layout.NET4.pack(64, 0, (number + 256).packed), ref)
        maps["nets6"].put(layout.NET6.pack(160, 0, bytes(15) + bytes([session])), ref)

    def close(self) -> None:
        teardown(self._pins)
        self.npx.close()


class Traffic:
    """Packets of all sessions both ways, numbered, until the end of a ``with`` block; each must arrive, and once."""

    def __init__(self, lab: Lab) -> None:
        self.sent = 0
        self._lab = lab
        self._here = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        for receiver in (self._here, lab.raw):
            # Room for all: a thread may be kept waiting.
            receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._up: list[tuple[int, int]] = []
        self._down: list[tuple[int, int]] = []
        self._stop, self._end = threading.Event(), threading.Event()
        targets = (self._send, self._receive_up, self._receive_down)
        self._threads = [threading.Thread(target=target) for target in targets]

    def __enter__(self) -> Traffic:
        self._here.settimeout(0.05)
        self._lab.raw.settimeout(0.05)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        sender, *receivers = self._threads
        self._stop.set()
        sender.join()
        deadline = time.monotonic() + 60
        while min(len(self._up), len(self._down)) < COUNT * self.sent and time.monotonic() < deadline:
            time.sleep(0.001)
        # What comes twice comes at once.
        self._end.set()
        for thread in receivers:
            thread.join()
        self._here.close()
        if error is None:
            expected = [(session, number) for session in range(1, COUNT + 1) for number in range(self.sent)]
            assert sorted(self._up) == expected
            assert sorted(self._down) == expected

    def counters(self) -> dict[str, int]:
        """What each session's must be."""
        sizes = sum(28 + len(self._payload(1, number)) for number in range(self.sent))
        return {"in_bytes": sizes, "in_packets": self.sent, "out_bytes": sizes, "out_packets": self.sent}

    def _payload(self, session: int, number: int) -> bytes:
        return b"%d %d" % (session, number)

    def _send(self) -> None:
        while not self._stop.is_set():
            for session in range(1, COUNT + 1):
                data = self._payload(session, self.sent)
                self._lab.raw.send(frame(session, IP + udp(address(session), GATEWAY, data, ports=(9, 4000))))
                self._here.sendto(data, (address(session), 9))
            self.sent += 1
            time.sleep(0.0005)

    def _receive_up(self) -> None:
        while True:
            try:
                data, source = self._here.recvfrom(2000)
            except TimeoutError:
                if self._end.is_set():
                    return
                continue
            session, number = data.split()
            assert source == (address(int(session)), 9)
            self._up.append((int(session), int(number)))

    def _receive_down(self) -> None:
        while True:
            try:
                data = self._lab.raw.recv(2000)
            except TimeoutError:
                if self._end.is_set():
                    return
                continue
            packet = data[22 : 20 + int.from_bytes(data[18:20], "big")]
            session, number = map(int, packet[28:].split())
            assert data[:18] == THEIRS + OURS + PPPOE + session.to_bytes(2, "big")
            assert packet[16:20] == IPv4Address(address(session)).packed
            self._down.append((session, number))


class Processes:
    """Each takes over what there is, and then dies; or before."""

    def __init__(self, pins: Path) -> None:
        script = f"{PROLOGUE}{BOMB}{SERVER}serve(Path({str(pins)!r}))"
        self._server = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def run(self, capacity: int = 100, steps: int = -1) -> bool:
        """False: it was killed at that step.  Any other failure is that of the test."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{capacity} {steps}\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        assert code in (0, -9)
        return code == 0

    def close(self) -> None:
        self._server.communicate()


SERVER = f"""
def take(capacity, pins):
    backend = EbpfBackend.open(capacity, pins, keep=True)
    assert backend.maps.used == {COUNT} and backend.maps.capacity == capacity

def serve(pins):
    logging.basicConfig()
    for line in sys.stdin:
        capacity, steps = map(int, line.split())
        child = os.fork()
        if not child:
            try:
                bomb(lambda: take(capacity, pins), steps)
            except BaseException:
                logging.exception("failed")
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def processes(lab: Lab, pins: Path) -> Iterator[Processes]:
    made = Processes(pins)
    try:
        yield made
    finally:
        made.close()


def only_edition(pins: Path) -> Path:
    """What there is in the end: one edition of ours."""
    (path,) = pins.iterdir()
    assert path.name.startswith(f"v{VERSION}_")
    return path


def counters(pins: Path) -> dict[int, dict[str, int]]:
    """Of each session, as the newest edition has them."""
    stats = editions(pins)[-1].map("stats")
    found = {}
    for session in range(1, COUNT + 1):
        value = layout.fields(STATS, stats.get(U32.pack(3 * session)) or b"")
        assert value["active_ns"] <= time.monotonic_ns()
        found[session] = {name: number for name, number in value.items() if number and not name.endswith("_ns")}
    stats.close()
    return found


def attached(npx: NpxInterface) -> set[int]:
    """The kernel's numbers of the programs at their hooks."""
    found = [json.loads(sh(f"ip -j -d link show {name}"))[0]["xdp"]["prog"]["id"] for name in ("acc0", npx.npx1.name)]
    (match,) = (word for word in json.loads(sh(f"tc -j filter show dev {npx.npx1.name} ingress")) if "options" in word)
    return {*found, match["options"]["prog"]["id"]}


def test_layout_of_the_old_objects() -> None:
    """What we think that their maps hold, they do."""
    structs = {"slots": "pipex_session", "stats": "pipex_stats", "config": "pipex_config"}
    assert OLDER.keys() == set(range(1, VERSION + 1))
    for version, records in OLDER.items():
        if version == VERSION:
            assert not records
            continue
        known = members(str(DATA / f"pipex-v{version}.o"))
        ours = members()
        for name, kind in structs.items():
            record = records.get(name)
            size, offsets = known[kind]
            if record is None:
                # Shared: ours may have more where it has nothing.
                assert size == ours[kind][0]
                had = {member: at for member, at in offsets.items() if not member.startswith("spare")}
                assert had.items() <= ours[kind][1].items()
                continue
            assert record.size == size
            assert record.offsets == offsets
        for kind in ("pipex_key", "pipex_ref", "pipex_host4", "pipex_net4", "pipex_net6", "pipex_bucket"):
            assert known[kind] == ours[kind]
        assert known["pipex_nic"][0] == ours["pipex_nic"][0]


@pytest.mark.parametrize("version", OLDER)
async def test_under_traffic(lab: Lab, pins: Path, processes: Processes, version: int) -> None:
    """Again and again, with room for more and for fewer: nothing is lost, and each packet is counted once."""
    old = Npppyd(lab, pins, version)
    before: dict[int, dict[str, int]] = {}
    gone: tuple[set[int], set[int]] = set(), set()
    with Traffic(lab) as traffic:
        for capacity in (100, 100, 50, 300, COUNT, 100):
            programs, maps = pinned(pins)
            assert processes.run(capacity)
            gone = gone[0] | programs, gone[1] | maps
            now = counters(pins)
            for session, values in before.items():
                assert all(now[session][name] >= value for name, value in values.items())
            before = now
    assert counters(pins) == dict.fromkeys(range(1, COUNT + 1), traffic.counters())
    assert only_edition(pins).name == f"v{VERSION}_{6 if version == 1 else 7}"
    programs, maps = pinned(pins)
    assert attached(old.npx) < programs
    assert not programs & gone[0]
    for kind, numbers in (("prog", gone[0]), ("map", gone[1] - maps)):
        deadline = time.monotonic() + 60
        while any(alive(kind, number) for number in numbers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    old.close()


@pytest.mark.parametrize("version", OLDER)
async def test_killed(lab: Lab, pins: Path, processes: Processes, version: int) -> None:
    """At whichever step, while packets flow: the next one goes on from there."""
    old = Npppyd(lab, pins, version)
    steps = 0
    # In the long run all of them once, and of other versions some. An odd stride, so that the capacity changes, too.
    for steps in range(0, 200, (1 if THOROUGH else 5) * (1 if version == VERSION else 3)):
        if version != VERSION and steps:
            old.install(version)
        before = counters(pins) if version == VERSION else {}
        with Traffic(lab) as traffic:
            whole = processes.run(101 + steps % 2, steps)
            assert processes.run(103)
        for session, values in counters(pins).items():
            expected = traffic.counters()
            assert values == {name: before.get(session, {}).get(name, 0) + number for name, number in expected.items()}
        assert attached(old.npx) < pinned(pins)[0]
        only_edition(pins)
        if whole:
            break
    assert steps > 50
    old.close()


async def test_an_ordinary_user(lab: Lab, nobodys_pins: Path) -> None:
    """With CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON, and a directory of its own."""
    pins = nobodys_pins
    old = Npppyd(lab, pins, 1)
    for path in (pins, *pins.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    script = f"""{PROLOGUE}{BOMB}{SERVER}
capabilities({CAPABILITIES}, user={NOBODY})
take(200, Path({str(pins)!r}))
"""
    with Traffic(lab) as traffic:
        taken = await lab.home.start([sys.executable, "-c", script], stderr=subprocess.PIPE)
        _, said = await taken.communicate()
        assert (taken.returncode, said) == (0, b"")
    assert counters(pins) == dict.fromkeys(range(1, COUNT + 1), traffic.counters())
    assert attached(old.npx) < pinned(pins)[0]
    old.close()


@pytest.mark.parametrize("capacity", [100, pytest.param(40, marks=pytest.mark.long)])
@pytest.mark.parametrize("version", OLDER)
async def test_entries(lab: Lab, pins: Path, version: int, capacity: int) -> None:
    """All that the maps held; slots keep their number and generation, and are given to nobody else."""
    old = Npppyd(lab, pins, version)
    maps = PipexMaps.take_over(capacity, pins)
    assert maps is not None
    npx0, npx1 = old.npx.npx0, old.npx.npx1
    assert known(layout.CONFIG, maps.config.get(U32.pack(0))) == {
        "version": VERSION,
        "npx0": npx0.ifindex,
        "npx1": npx1.ifindex,
        "tun": old.npx.ifindex,
        "npx0_mac": npx0.mac,
        "npx1_mac": npx1.mac,
    }
    assert not any(any(value) for _, value in maps.config.items()[1:])
    assert maps.devs.items() == sorted((U32.pack(index), U32.pack(index)) for index in (npx1.ifindex, lab.ifindex))
    assert maps.nics.items() == [(U32.pack(77), layout.NIC.pack(b"\2\0\0\0\0\7", 0))]
    for session in range(1, COUNT + 1):
        slot, generation = 3 * session, 1000 + session
        number = IPv4Address(address(session))
        for item, entry in (
            (maps.sessions, key(lab.ifindex, session)),
            (maps.hosts4, layout.HOST4.pack(0, number.packed)),
            (maps.nets4, layout.NET4.pack(64, 0, (number + 256).packed)),
            (maps.nets6, layout.NET6.pack(160, 0, bytes(15) + bytes([session]))),
        ):
            assert item.get(entry) == layout.REF.pack(slot, generation)
            assert len(item.items()) == COUNT
        assert known(SESSION, maps.session(slot)) == {
            "generation": generation,
            "blocks": BLOCKS,
            "ppp_id": session,
            "kind": layout.PPPOE,
            "prefixlen4": 32,
            "address4": number.packed,
            "mtu": 1492,
            "mru": 1492,
            "ifindex": lab.ifindex,
            "encap_len": 20,
            "length_at": 18,
            "encap": (THEIRS + OURS + PPPOE + session.to_bytes(2, "big")).ljust(layout.ENCAP_MAX, b"\0"),
        }
        bucket = maps.buckets.get(U32.pack(2 * slot)) or b""
        assert layout.BUCKET.unpack(bucket) == (1000, 2000 + session, 0, 0, 0, 0)
    assert maps.used == COUNT
    taken = [maps.take() for _ in range(capacity - COUNT)]
    assert len({slot for slot, _ in taken} | {3 * session for session in range(1, COUNT + 1)}) == capacity
    assert [generation for _, generation in taken] == list(range(1001 + COUNT, 1001 + capacity))
    assert maps.take() == (-1, 0)
    maps.close()
    old.close()


async def test_times_and_captures(lab: Lab, pins: Path) -> None:
    """The later time stays, whichever program saw it; nobody captures any more."""
    old = Npppyd(lab, pins, VERSION)
    edition = editions(pins)[0]
    slots, stats = edition.map("slots"), edition.map("stats")
    value = bytearray(slots.get(U32.pack(3)) or b"")
    U32.pack_into(value, SESSION.offsets["blocks"], BLOCKS | layout.MIRROR)
    slots.put(U32.pack(3), bytes(value))
    seen = {"active_ns": 5, "heard_ns": 1 << 62, "looped": 7, "in_errors": 1}
    stats.put(U32.pack(3), filled(STATS, **seen))
    # Of a session that is gone.
    stats.put(U32.pack(4), filled(STATS, **seen))
    slots.close()
    stats.close()
    for capacity in (20, 20, 30):
        maps = PipexMaps.take_over(capacity, pins)
        assert maps is not None
        assert U32.unpack_from(maps.session(3), SESSION.offsets["blocks"]) == (BLOCKS,)
        assert {name: number for name, number in zip(STATS.offsets, maps.stats(3), strict=True) if number} == seen
        assert not any(maps.stats(4))
        maps.close()
    old.close()


async def test_sequence_numbers(lab: Lab, pins: Path) -> None:
    """They go on; where old programs have a map of their own, some are left out, since those use them yet."""
    old = Npppyd(lab, pins, VERSION)
    seqs = editions(pins)[0].map("seqs")
    seqs.put(U32.pack(3), layout.SEQ.pack(0xFFFFFFFE, 77, 0, 0))
    # Of a session that is gone.
    seqs.put(U32.pack(4), layout.SEQ.pack(5, 6, 0, 0))
    seqs.close()
    out = 0xFFFFFFFE
    for capacity in (100, 40, 100, 100):
        before = editions(pins)[-1].map("seqs")
        maps = PipexMaps.take_over(capacity, pins)
        assert maps is not None
        now = editions(pins)[-1].map("seqs")
        if now.id != before.id:
            # More than a processor sends until all programs have been replaced.
            out += 4096
            assert not any(now.get(U32.pack(4)) or b"")
        assert now.max_entries == capacity + 256
        assert maps.sequence(3) == (out & 0xFFFFFFFF, 77, 0, 0)
        assert layout.SEQ.unpack(now.get(U32.pack(6)) or b"")[0] in (0, out - 0xFFFFFFFE)
        for item in (before, now, maps):
            item.close()
    assert out == 0xFFFFFFFE + 2 * 4096
    old.close()


def keys(session: int, count: int) -> bytes:
    values = {"generation": 1000 + session, "count": count, "size": 16, "start": bytes(16), "key": bytes([count]) * 16}
    return filled(layout.MPPE_KEYS, **values)


def wait_no_more(*_: object) -> None:
    raise BpfError("wait", errno.EINTR)


async def test_keys_of_mppe(lab: Lab, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go on where the old programs left them, but for sessions that are gone."""
    old = Npppyd(lab, pins, VERSION)
    item = editions(pins)[0].map("mppe")
    ways = {U32.pack(2 * 3 + way): keys(1, 7 + way) for way in (layout.UP, layout.DOWN)}
    for key, value in (*ways.items(), (U32.pack(2 * 6), keys(1, 9)), (U32.pack(2 * 4), keys(1, 9))):
        item.put(key, value)

    def wait() -> None:
        """As long as an old program may run, it alone changes them."""
        if editions(pins)[-1].number == 2:
            item.put(U32.pack(2 * 3), ways[U32.pack(2 * 3)])
            monkeypatch.undo()
            # Here it dies.
            wait_no_more()

    monkeypatch.setattr(migrate, "wait_for_programs", wait)
    ways[U32.pack(2 * 3)] = keys(1, 99)
    with pytest.raises(BpfError):
        PipexMaps.take_over(40, pins)
    with monkeypatch.context() as patch:
        # The next one later.
        patch.setattr(Legacy, "move_counters", wait_no_more)
        with pytest.raises(BpfError):
            PipexMaps.take_over(40, pins)
    newer = editions(pins)[-1].map("mppe")
    assert dict(newer.items()) == ways
    # Its programs went on with them.
    ways[U32.pack(2 * 3)] = keys(1, 100)
    newer.put(U32.pack(2 * 3), ways[U32.pack(2 * 3)])
    newer.close()
    for capacity in (50, 50, 100):
        maps = PipexMaps.take_over(capacity, pins)
        assert maps is not None
        assert maps.mppe.max_entries == 2 * capacity
        assert dict(maps.mppe.items()) == ways
        maps.close()
    item.close()
    old.close()


async def test_order(lab: Lab, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters are moved when no old program can count any more, and not before."""
    old = Npppyd(lab, pins, 1)
    stats = editions(pins)[0].map("stats")
    programs, _ = pinned(pins)
    with Traffic(lab) as traffic:
        while traffic.sent < 10:
            time.sleep(0.001)
    waited = 0

    def wait() -> None:
        nonlocal waited
        waited += 1
        assert not attached(old.npx) & programs
        assert any(stats.get(U32.pack(3)) or b"")

    monkeypatch.setattr(migrate, "wait_for_programs", wait)
    maps = PipexMaps.take_over(100, pins)
    assert maps is not None
    assert waited == 1
    assert not any((stats.get(U32.pack(3)) or b"")[:48])
    maps.close()
    stats.close()
    old.close()


def test_counters_are_moved_at_once() -> None:
    """Not one is lost while another processor counts on; of times the later one stays."""
    with Object(layout.OBJECT) as one, Object(layout.OBJECT) as other:
        maps = [one.maps["stats"], other.maps["stats"]]
        count = Program.load(XDP, "count", b"".join(migrate._finder(*maps)) + INCREMENT)
        for item, times in zip(maps, ((5, 9), (7, 8)), strict=True):
            item.put(U32.pack(0), filled(STATS, active_ns=times[0], heard_ns=times[1]))
        runs = 0
        enough = threading.Event()

        def run() -> None:
            nonlocal runs
            os.sched_setaffinity(0, {max(processors)})
            while not enough.is_set():
                count.run(bytes(14), repeat=REPEAT)
                runs += 1

        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(processors)})
        counting = threading.Thread(target=run)
        counting.start()
        movers = [Program.load(XDP, "move", migrate._mover(old, STATS, new)) for old, new in (maps, maps[::-1])]
        # Until they have surely met.
        while runs < 5:
            for mover in movers * 1000:
                mover.run(bytes(14))
        enough.set()
        counting.join()
        os.sched_setaffinity(0, processors)
        for program in (count, *movers):
            program.close()
        values = [known(STATS, item.get(U32.pack(0))) for item in maps]
        assert sum(int(str(value.get("in_packets", 0))) for value in values) == runs * REPEAT
        assert [(value["active_ns"], value["heard_ns"]) for value in values] == [(7, 9), (7, 9)]


def test_nothing_there(pins: Path) -> None:
    assert PipexMaps.take_over(10, pins) is None
    backend = EbpfBackend.open(10, pins, keep=True)
    assert backend.maps.used == 0
    backend.close()
    assert not pins.exists()


async def test_whatever_fails(lab: Lab, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sessions have been taken over, or have ended, and we start anyway; nothing stays open or attached."""
    lib = library()
    steps, left = 0, -1

    def failing(function: Any, error: Callable[[], int]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            return error() if left == -1 else function(*arguments, **more)

        return call

    def fail() -> int:
        raise OSError(errno.ENOMEM, "failed")

    for name in CHANGES:
        monkeypatch.setattr(lib, name, failing(getattr(lib, name), lambda: -errno.ENOMEM))
    monkeypatch.setattr(lib, "bpf_obj_get", failing(lib.bpf_obj_get, lambda: -errno.ENOMEM))
    for name in FILES:
        monkeypatch.setattr(os, name, failing(getattr(os, name), fail))
    old = Npppyd(lab, pins, VERSION)
    ends: set[str] = set()
    # A step that is no multiple of anything in there.
    for steps in range(0, 400, 7 if THOROUGH else 17):
        old.install(VERSION)
        programs, _ = pinned(pins)
        files = len(os.listdir("/proc/self/fd"))
        left = steps
        backend = EbpfBackend.open(101, pins, keep=True)
        done, left = left >= 0, -1
        ends.add("kept" if backend.maps.used else "ended")
        backend.close()
        del backend
        teardown(pins)
        assert len(os.listdir("/proc/self/fd")) == files
        assert xdp("acc0") == ""
        assert not pins.exists()
        await gone(programs)
        if done:
            break
    assert steps > 70
    assert ends == {"kept", "ended"}
    old.close()


async def gone(programs: set[int]) -> None:
    await until(lambda: not any(alive("prog", number) for number in programs))


def damage(pins: Path, what: str) -> str:
    """Returns what is said of it."""
    edition = editions(pins)[-1].path
    if what == "unknown version":
        edition.rename(pins / "v99")
        return f"cannot take {pins}/v99 over: Protocol not supported: its layout is not known"
    if what == "unknown older edition":
        (pins / "v98_0").mkdir()
        return f"cannot take {pins}/v98_0 over: Protocol not supported: its layout is not known"
    if what == "map missing":
        (edition / "hosts4").unlink()
        return f"cannot get what is pinned at {edition}/hosts4: No such file or directory"
    if what == "program missing":
        (edition / "prog_pipex_core").unlink()
        return f"cannot take {edition} over: No such file or directory: pipex_core"
    if what == "no map":
        (edition / "sessions").unlink()
        (edition / "prog_pipex_nic").rename(edition / "sessions")
        return f"cannot get what is pinned at {edition}/sessions: Invalid argument: it is no bpf-map"
    if what == "another map":
        (edition / "sessions").unlink()
        (edition / "hosts4").rename(edition / "sessions")
        hosts4 = Map.pinned(str(edition / "sessions"))
        hosts4.pin(str(edition / "hosts4"))
        hosts4.close()
        return "cannot reuse map sessions: Invalid argument: key_size is 8, not 20"
    assert what == "too many sessions"
    return "cannot write to map sessions: Argument list too long"


@pytest.mark.parametrize(
    "what",
    [
        "unknown version",
        "unknown older edition",
        "map missing",
        "program missing",
        "no map",
        "another map",
        "too many sessions",
    ],
)
async def test_not_taken_over(lab: Lab, pins: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be kept is ended as ever, with all that is attached; one line says why."""
    old = Npppyd(lab, pins, VERSION)
    programs, _ = pinned(pins)
    said = damage(pins, what)
    backend = EbpfBackend.open(COUNT - 1 if what == "too many sessions" else 100, pins, keep=True)
    assert backend.maps.used == 0
    assert [line for line in caplog.messages if "sessions" in line][:1] == [
        f"pipex: the sessions of an earlier npppyd end: {said}"
    ]
    assert only_edition(pins).name == f"v{VERSION}_1"
    assert xdp("acc0") == ""
    assert old.npx.npx1.name not in sh("ip link")
    await gone(programs)
    backend.close()
    assert not pins.exists()
    old.npx.close()
