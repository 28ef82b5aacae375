"""``make bench``: that it measures, and what it keeps.  How fast anything is, is not asked here."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import mppe, radius
from bench.carriers import L2TP, MPPE, PPPOE, PPTP
from bench.figures import BenchError
from bench.kernel import Reached
from bench.lab import BEYOND, THEIRS, Lab, until
from bench.packets import Effort, Frames, measure, variants
from bench.radius import MEMORY
from bench.sessions import rest
from bench.wire import HEAD, SHORT, Wire

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 400.0

WAYS = ("up", "down")
#: Ways of forwarding, and what is to be reached with one session.
MODES = {"stack": 0.90, "fast": 2.5}
#: Carriers of which there are figures: of one, and in the long run of all.
ALL = pytest.param("pppoe l2tp pptp", marks=pytest.mark.long, id="all")
BLOCKS = ("filter", "mss", "count", "idle", "police", "mirror")

KEYS = {"name", "value", "unit", "target", "better", "baseline", "machine", "commit"}


def bench(path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The quick measurements, with temporary files below *path*."""
    command = [sys.executable, "-m", "bench", "--quick", "--results", str(path / "results.jsonl"), *arguments]
    (path / "t").mkdir()
    env = {**os.environ, "TMPDIR": str(path / "t"), **environment}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def nothing_left(path: Path) -> bool:
    return list((path / "t").iterdir()) == []


@pytest.mark.parametrize("carriers", ["pptp", ALL])
def test_figures_are_printed_and_kept(tmp_path: Path, carriers: str) -> None:
    only = [] if " " in carriers else ["--carrier", carriers]
    results = tmp_path / "results.jsonl"
    results.write_text('{"name": "of.an.earlier.run"}\n')
    process = bench(tmp_path, "--sessions", "20", *only, "setup")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    earlier, *figures = [json.loads(line) for line in results.read_text().splitlines()]
    assert earlier == {"name": "of.an.earlier.run"}
    ways = [f"{carrier}.{method}" for carrier in carriers.split() for method in ("pap", "chap", "mschapv2")]
    more = "l2tp.mschapv2.tunnels", "pptp.mschapv2.tunnels", "pptp.mschapv2.mppe"
    ways += [way for way in more if way.partition(".")[0] in carriers]
    names = [f"setup.{way}{wall}" for way in ways for wall in ("", ".wall")]
    assert [figure["name"] for figure in figures] == names
    for figure in figures:
        assert figure.keys() == KEYS
        assert figure["value"] > 0
        assert figure["target"] == (None if figure["name"].endswith((".wall", ".tunnels", ".mppe")) else 2000)
        assert figure["better"] == "higher"
        assert "Linux" in figure["machine"]
        (line,) = (line for line in out.splitlines() if line.startswith(f"{figure['name']} "))
        assert figure["target"] is None or line.rstrip().endswith(("met", "missed"))
    assert nothing_left(tmp_path)


def test_figures_of_radius(tmp_path: Path) -> None:
    process = bench(tmp_path, "--sessions", "20", "radius")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    figures = {it["name"]: it for it in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert figures.keys() == {"radius.login.pap", "radius.cpu.pap", "radius.accounting.record"}
    for name, figure in figures.items():
        assert figure.keys() == KEYS
        assert figure["target"] is None
        assert figure["better"] == ("higher" if "login" in name else "lower")
        assert (figure["baseline"] is not None) == ("cpu" in name)
    assert nothing_left(tmp_path)
    assert list(Path(MEMORY).glob(f"npppy-bench-{process.pid}-*")) == []


@pytest.mark.parametrize("carriers", ["pppoe", ALL])
def test_figures_of_packets(tmp_path: Path, carriers: str) -> None:
    whole = " " in carriers
    parts = ["pipex", "blocks", "tcp"] if whole else ["--carrier", carriers, "pipex"]
    process = bench(tmp_path, "--sessions", "20", "--pairs", "1", *parts)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    figures = {it["name"]: it for it in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    ratios = {f"pipex.{mode}.{way}.{size}" for mode in MODES for way in WAYS for size in (64, 1400)}
    them = ("", "l2tp.", "pptp.") if whole else ("",)
    ratios |= {f"pipex.{carrier}{mode}.{way}.64.20" for carrier in them for mode in MODES for way in WAYS}
    compared = {f"{name}.rate" for name in ratios}
    none = {f"pipex.{of}python_packets" for of in (*them, *(["mppe."] if whole else []))}
    others: set[str] = set()
    blocks: set[str] = set()
    if whole:
        blocks = {f"pipex.block.{name}.{way}" for name in BLOCKS for way in WAYS} - {"pipex.block.filter.down"}
        others = {f"pipex.session.{what}" for what in ("memory", "add", "remove")}
        compared |= {f"tcp.{mode}.{way}" for mode in MODES for way in WAYS}
        compared |= {f"pipex.mppe.{way}.{size}{unit}" for way in WAYS for size in (64, 1400) for unit in ("", ".gbps")}
    assert figures.keys() == blocks | ratios | compared | others | none
    for name, figure in figures.items():
        assert figure.keys() == KEYS
        # A block may cost less than can be measured.
        assert name in blocks | none or figure["value"] > 0
        assert (figure["baseline"] is not None) == (name in compared)
        assert figure["target"] == target(name)
    assert all(figures[name]["value"] == 0 for name in none)
    assert nothing_left(tmp_path)


def target(name: str) -> float | None:
    if name.endswith(".python_packets"):
        return 0
    if name.startswith("pipex.mppe."):
        return None if name.endswith(".gbps") else 300_000
    one, mode = name.removesuffix(".64").removesuffix(".1400"), name.split(".")[1]
    return MODES[mode] if mode in MODES and one in {f"pipex.{mode}.{way}" for way in WAYS} else None


@pytest.fixture
def core() -> Iterator[None]:
    """As the bench runs: on the generator's core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {THEIRS})
    yield
    os.sched_setaffinity(0, before)


EFFORT = Effort(many=3, pairs=1, kernel_time=0.05, user_time=0.1, delivered=10_000, encrypted=2000)


@pytest.mark.long
@pytest.mark.usefixtures("core")
def test_all_of_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a quick run leaves out included."""
    for name in ("REQUESTS", "DISK_REQUESTS"):
        monkeypatch.setattr(f"bench.radius.{name}", 20)
    figures = {it.name: it for it in radius.measure(5, 1)}
    logins = {f"radius.login.{method}" for method in ("pap", "chap", "mschapv2", "pap.disk")}
    costs = {f"radius.cpu.{method}" for method in ("pap", "chap", "mschapv2")}
    alone = {f"radius.freeradius.{kind}" for kind in ("auth", "acct", "acct.disk")}
    assert figures.keys() == logins | costs | alone | {"radius.accounting.record"}
    # What is a difference of two runs may come to nothing with so few sessions.
    assert all(figures[name].value > 0 for name in logins)
    assert all((figure.baseline is not None) == (name in costs) for name, figure in figures.items())


@pytest.mark.long
@pytest.mark.usefixtures("core")
def test_all_rows_of_pppoe() -> None:
    figures = {it.name: it for it in measure(PPPOE, EFFORT)}
    ratios, names = (({name.removeprefix("pppoe.") for name in found}) for found in tunnelled("pppoe"))
    assert figures.keys() == {f"pipex.{name}" for name in ratios | names | {f"{name}.rate" for name in ratios}}
    assert figures["pipex.python_packets"].value == 0


@pytest.mark.long
@pytest.mark.usefixtures("core")
def test_all_rows_of_l2tp() -> None:
    """Those included that a quick run leaves out."""
    figures = {it.name: it for it in (*measure(L2TP, EFFORT), *variants(EFFORT))}
    ratios, names = tunnelled("l2tp")
    ratios |= {f"l2tp.sequence.fast.{way}.64.3" for way in WAYS}
    ratios |= {f"l2tp.checksum.fast.down.{size}.3" for size in (64, 1400)}
    names |= ratios | {f"{name}.rate" for name in ratios}
    assert figures.keys() == {f"pipex.{name}" for name in names}
    assert figures["pipex.l2tp.python_packets"].value == 0


def tunnelled(carrier: str) -> tuple[set[str], set[str]]:
    """What is told as a ratio to plain forwarding, without "pipex.", and what is not."""
    rows = [f"{way}.{size}{many}" for way in WAYS for size in (64, 1400) for many in ("", ".3")]
    by_python = {f"{carrier}.user.{row}" for row in rows}
    others = by_python | {f"{name}.core" for name in by_python} | {f"{carrier}.python_packets"}
    return {f"{carrier}.{mode}.{row}" for mode in MODES for row in rows}, others


@pytest.mark.long
@pytest.mark.usefixtures("core")
def test_all_rows_of_pptp() -> None:
    figures = {it.name: it for it in (*measure(PPTP, EFFORT), *mppe.measure(EFFORT, ("fast", "stack")))}
    ratios, names = tunnelled("pptp")
    names |= ratios | {f"{name}.rate" for name in ratios}
    rows = {f"mppe.{stack}{way}.{size}" for stack in ("", "stack.") for way in WAYS for size in (64, 1400)}
    names |= rows | {f"{name}.gbps" for name in rows} | {"mppe.python_packets"}
    assert figures.keys() == {f"pipex.{name}" for name in names}
    assert figures["pipex.pptp.python_packets"].value == figures["pipex.mppe.python_packets"].value == 0
    for row in rows:
        octets = int(row.rpartition(".")[2])
        assert figures[f"pipex.{row}.gbps"].value == pytest.approx(figures[f"pipex.{row}"].value * octets * 8e-9)


@pytest.mark.usefixtures("core")
def test_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.sessions.SETTLED", 1)
    figures = [*rest(L2TP, 2, 0.1, 3, every=1), *rest(L2TP, 0, 0, 3, own=True)]
    assert [it.name for it in figures] == ["idle.l2tp.2", "memory.l2tp.session", "memory.l2tp.tunnel"]
    figures = [*rest(PPTP, 2, 0.1, 3, every=1), *rest(PPTP, 0, 0, 3, own=True), *rest(MPPE, 0, 0, 3)]
    names = ["idle.pptp.2", "memory.pptp.session", "memory.pptp.tunnel", "memory.pptp.session.mppe"]
    assert [it.name for it in figures] == names


@pytest.mark.usefixtures("core")
class TestWire:
    """Plain forwarding, by the kernel alone."""

    def test_all_arrive_as_they_should(self) -> None:
        with Lab() as lab, ends(lab) as wire:
            for way in WAYS:
                stream = Frames(lab).plain(way, 64, 3)
                wire.load(stream)
                assert wire.deliver(stream, 1000) == 1000

    @pytest.mark.parametrize("at", [0, 13 + 9, 42, 50, 77])
    def test_wrong_octets_are_noticed(self, at: int) -> None:
        """Of all that a small packet has; its length and type tell which frames are ours."""
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("up", 64, 1)
            right = bytearray(stream.arriving[0])
            right[at] ^= 1
            wrong = replace(stream, arriving=[bytes(right)])
            wire.load(wrong)
            with pytest.raises(BenchError, match="otherwise than they went in"):
                wire.deliver(wrong, 10)

    @pytest.mark.parametrize("at", [SHORT - 1, SHORT, HEAD - 1])
    def test_wrong_octets_of_a_long_head_are_noticed(self, at: int) -> None:
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("up", 1400, 2)
            # Frames that differ in their last octet that may.
            sent, arriving = (
                [change(it, HEAD - 1, by) for by, it in enumerate(frames)] for frames in (stream.sent, stream.arriving)
            )
            stream = replace(stream, sent=sent, arriving=arriving)
            wire.load(stream)
            assert wire.deliver(stream, 1000) == 1000
            wrong = replace(stream, arriving=[change(it, at, 4) for it in arriving])
            wire.load(wrong)
            with pytest.raises(BenchError, match="otherwise than they went in"):
                wire.deliver(wrong, 10)

    def test_loose_octets_may_be_anything(self) -> None:
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("up", 1400, 2)
            arriving = [change(it, 50, 1) for it in stream.arriving]
            stream = replace(stream, arriving=arriving, loose=(slice(50, 51),))
            wire.load(stream)
            assert wire.deliver(stream, 1000) == 1000

    def test_frames_that_count(self) -> None:
        with Lab() as lab, ends(lab) as wire:
            stream = replace(Frames(lab).plain("up", 1400, 2), count_at=60, loose=(slice(60, 62),))
            wire.load(stream)
            with lab.net, socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as sock:
                sock.bind(("host0", 0x0800))
                assert wire.deliver(stream, 1000) == 1000
                frames = [sock.recv(2000) for _ in range(8)]
        for number in range(2):
            counts = [int.from_bytes(it[60:62], "big") for it in frames if it[42] == number]
            first = int.from_bytes(stream.sent[number][60:62], "big") + 1
            assert counts == list(range(first, first + len(counts)))

    def test_wrong_octets_in_the_middle_are_noticed(self) -> None:
        """The kernel does not look there, but some frames are compared whole."""
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("up", 1400, 1)
            right = bytearray(stream.arriving[0])
            right[700] ^= 1
            wrong = replace(stream, arriving=[bytes(right)])
            wire.load(wrong)
            with pytest.raises(BenchError, match="is not what went in"):
                wire.deliver(wrong, 10)

    def test_what_is_lost_is_noticed(self) -> None:
        with Lab() as lab, ends(lab) as wire:
            lab.bng.ip(f"route delete {BEYOND}")
            stream = Frames(lab).plain("up", 64, 1)
            wire.load(stream)
            with pytest.raises(BenchError, match="of 1000 packets only 0 arrive"):
                wire.deliver(stream, 1000)

    def test_frames_that_differ_too_late(self) -> None:
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("up", 1400, 2)
            with pytest.raises(BenchError, match="differ where they must not"):
                wire.load(replace(stream, sent=[stream.sent[0], stream.sent[1][:-1] + b"?"]))

    @pytest.mark.parametrize("size", [64, 1400])
    def test_frames_that_are_played(self, size: int) -> None:
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("up", size, 3)
            wire.load(stream)
            times, rest = divmod(wire.room(size + 14), 3)
            assert wire.play(stream, stream.sent * times) > 0
            with pytest.raises(BenchError, match="too many frames"):
                wire.play(stream, [*stream.sent * times, *stream.sent[: rest + 1]])
            with pytest.raises(BenchError, match="not as long"):
                wire.play(stream, [*stream.sent, b""])
            with pytest.raises(BenchError, match="otherwise than they went in"):
                wire.play(stream, [*stream.sent, change(stream.sent[0], size + 13, 1)])

    def test_a_frame_that_is_repeated(self) -> None:
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("up", 1400, 1)
            wire.load(stream)
            assert wire.repeat(stream, 1000) > 0
            wrong = replace(stream, sent=[change(stream.sent[0], 700, 1)])
            wire.load(wrong)
            with pytest.raises(BenchError, match="is not what went in"):
                wire.repeat(wrong, 1000)

    def test_what_is_lost_of_them_is_noticed(self) -> None:
        with Lab() as lab, ends(lab) as wire:
            lab.bng.ip(f"route delete {BEYOND}")
            stream = Frames(lab).plain("up", 64, 1)
            wire.load(stream)
            with pytest.raises(BenchError, match="all of 10 packets arrive"):
                wire.repeat(stream, 10)

    def test_frames_whose_end_cannot_be_known(self) -> None:
        """Encrypted ones: neither number nor end is compared, but all that is not loose."""
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("up", 1400, 1)
            seen = []
            loose = (slice(50, 1414),)
            sealed = replace(stream, number_at=0, loose=loose, every=100, inspect=lambda it: seen.append(it))
            wire.load(replace(sealed, arriving=[change(stream.arriving[0], 1413, 1)]))
            (sealed,) = wire._streams
            assert wire.repeat(sealed, 1000) > 0
            assert seen == list(stream.arriving) * 8
            wrong = replace(sealed, arriving=[change(stream.arriving[0], 49, 1)])
            wire.load(wrong)
            with pytest.raises(BenchError, match="otherwise than they went in"):
                wire.repeat(wrong, 10)

    def test_a_steady_stream(self) -> None:
        with Lab() as lab, ends(lab) as wire:
            stream = Frames(lab).plain("down", 64, 1)
            wire.load(stream)
            rate, other = wire.sustained(stream, 0.2, 20_000, time.perf_counter)
        # No more are sent.
        assert rate < 25_000
        assert other == pytest.approx(rate, rel=0.01)


def change(frame: bytes, at: int, by: int) -> bytes:
    changed = bytearray(frame)
    changed[at] ^= by
    return bytes(changed)


def ends(lab: Lab) -> Wire:
    return Wire([(lab.sub, "sub0"), (lab.net, "host0")])


def test_packets_that_reach_a_process_are_counted() -> None:
    """On its packet sockets of whatever kind, read or not, and on its tun."""
    with Lab() as lab, contextlib.ExitStack() as stack:
        with lab.bng:
            fd = os.open("/dev/net/tun", os.O_RDWR)
            stack.callback(os.close, fd)
            fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
            sock = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            sock.bind(("eth1", 0x8864))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        lab.bng.ip("link set tun0 up", "address add 10.0.0.1/24 dev tun0")
        reached = Reached(lab.bng, os.getpid(), "tun0")
        stack.callback(reached.close)
        reached.count()
        with lab.sub, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind(("sub0", 0))
            # No more than the veth holds.
            for _ in range(200):
                sender.send(b"\xff" * 6 + bytes(6) + b"\x88\x64" + bytes(50))
        with lab.bng, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(7):
                sender.sendto(b"", ("10.0.0.2", 9))
                # The kernel counts what is read of a tun, or dropped.
                os.read(fd, 100)
        found = [0]
        until(lambda: found.append(reached.count()) or sum(found) >= 207, "they are counted")
        assert sum(found) == 207


def test_what_cannot_be_measured_is_a_failure(tmp_path: Path) -> None:
    # Without ip(8) there is no network to measure in.
    process = bench(tmp_path, "--sessions", "1", "setup", PATH="/nonexistent")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "setup failed" in err
    assert "setup.pppoe" not in out
    assert not (tmp_path / "results.jsonl").exists()
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: int) -> None:
    process = bench(tmp_path, "setup")
    deadline = time.monotonic() + PATIENCE
    while not (daemon := npppyd_of(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    # Interrupted before it knew the process, it left it to the kernel, which ends it a moment later.
    until(lambda: not Path(f"/proc/{daemon}").exists(), "npppyd has ended")
    assert nothing_left(tmp_path)


def npppyd_of(pid: int) -> int | None:
    """The npppyd that *pid* has started."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        # What is ending has no command line any more.
        with contextlib.suppress(FileNotFoundError):
            if b"npppy.daemon" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return None
