"""Back end ebpf: what sessions have counted in the end is exact: after they were closed, and after a kill."""

from __future__ import annotations

import errno
import logging
import socket
import struct
from pathlib import Path

import pytest

from npppy.pipex.base import Counters, Leftovers
from npppy.pipex.ebpf import leftovers as reader
from npppy.pipex.ebpf import probe
from npppy.pipex.ebpf.backend import EbpfBackend
from npppy.pipex.ebpf.layout import STATS, VERSION
from npppy.pipex.ebpf.libbpf import BpfError
from npppy.pipex.ebpf.migrate import OLDER, Legacy
from npppy.pipex.ebpf.pins import editions
from npppy.pipex.ebpf.plumbing import end_leftovers
from tests.root.ebpf_lab import GATEWAY, IP, Lab, frame, until, xdp
from tests.root.ebpf_process import process
from tests.root.test_ebpf_migration import COUNT, Npppyd, Traffic
from tests.unit.ippackets import udp

pytestmark = pytest.mark.root

LATE = Counters(100, 1, 2, 50, 3, 4)


def count_late(lab: Lab, slot: int) -> None:
    """A program that had found the session in a slot counts."""
    assert lab.backend is not None
    for name, number in zip(Counters._fields, LATE, strict=True):
        at = slot * STATS.size + STATS.offsets[name]
        stats = lab.backend.maps._stats
        struct.pack_into("=Q", stats, at, struct.unpack_from("=Q", stats, at)[0] + number)


class TestLate:
    async def test_while_the_slot_rests(self, lab: Lab) -> None:
        backend = await lab.open(2)
        receiver = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        flow = lab.add(1)
        assert flow.late() == Counters()
        lab.raw.send(frame(1, IP + udp("10.0.0.2", GATEWAY, b"up", ports=(1, 4000))))
        await until(lambda: flow.counters().in_packets == 1)
        slot, closed = flow.slot, flow.close()
        assert (closed, flow.late()) == (Counters(30, 1), Counters())
        count_late(lab, slot)
        assert flow.late() == flow.late() == LATE
        assert flow.counters() == flow.close() == closed
        # Its slot is the one that is given out last: after all others that there are, and those that were used since.
        slots = set()
        for _ in range(backend.maps._slots - 1):
            assert flow.late() == LATE
            other = lab.add(2, "10.0.0.3")
            slots.add(other.slot)
            other.close()
        assert slot not in slots
        other = lab.add(2, "10.0.0.3")
        assert other.slot == slot
        assert flow.late() == other.counters() == Counters()
        other.close()
        # It rests again, of another session.
        count_late(lab, slot)
        assert (flow.late(), other.late()) == (Counters(), LATE)
        receiver.close()

    async def test_what_never_was_in_the_kernel(self, lab: Lab) -> None:
        await lab.open()
        flow = lab.add(1, offload=False)
        flow.close()
        assert flow.late() == Counters()

    async def test_after_the_end(self, lab: Lab) -> None:
        backend = await lab.open()
        flow = lab.add(1)
        flow.close()
        assert lab.npx is not None
        lab.close_interface(lab.npx)
        backend.close()
        lab.backend = None
        assert flow.late() == Counters()


class TestKilled:
    async def test_last_counters(self, lab: Lab, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of what the kernel still carries when nobody is there any more, and of what had just been closed."""
        done = process(
            f"""
    await lab.open(10, Path({str(pins)!r}))
    def add(session, packets):
        encap = PppoeEncap(Port("acc0"), OURS, THEIRS, session)
        flow = lab.add((5 << 32) + session, f"10.0.0.{{session + 1}}", encap=encap)
        assert flow.carried
        for _ in range(packets):
            data = frame(session, IP + udp(f"10.0.0.{{session + 1}}", GATEWAY, b"up"))
            lab.backend.maps.programs["pipex_access"].run(data, lab.ifindex)
        assert flow.counters().in_packets == packets
        return flow
    add(1, 1)
    add(2, 2).close()
    add(3, 9).close()
    add(3, 3)
    add(4, 0)
    add(5, 9).close()
    add(5, 5).close()
    os.kill(os.getpid(), 9)""",
            "from tests.unit.ippackets import udp",
        )
        assert done.returncode == -9, done.stderr
        receiver = lab.home.socket(socket.SOCK_DGRAM, (GATEWAY, 4000))
        receiver.settimeout(60)
        for session in (1, 3, 1):
            lab.raw.send(frame(session, IP + udp(f"10.0.0.{session + 1}", GATEWAY, b"up", ports=(1, 4000))))
            assert receiver.recv(10) == b"up"
        receiver.close()
        steps: list[str] = []
        real = reader.wait_for_programs
        monkeypatch.setattr(reader, "wait_for_programs", lambda: steps.append(xdp("acc0")) or real())
        leftovers = Leftovers({}, {})
        backend = probe.choose(10, pins, leftovers)
        assert leftovers.open == {1: Counters(90, 3), 3: Counters(120, 4), 4: Counters()}
        assert leftovers.closed == {2: Counters(60, 2), 5: Counters(150, 5)}
        # Nothing was attached any more.
        assert steps == [""]
        backend.close()

    @pytest.mark.parametrize("version", OLDER)
    async def test_of_every_version(self, lab: Lab, pins: Path, version: int) -> None:
        old = Npppyd(lab, pins, version)
        with Traffic(lab) as traffic:
            await until(lambda: traffic.sent > 20)
        leftovers = Leftovers({}, {})
        end_leftovers(pins, leftovers)
        expected = Counters(**traffic.counters())
        assert leftovers.open == dict.fromkeys(range(1, COUNT + 1), expected)
        assert leftovers.closed == {}
        assert not pins.exists()
        old.npx.close()

    async def test_while_taking_over(self, lab: Lab, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the programs of two editions have counted, it is their sum."""
        old = Npppyd(lab, pins, VERSION - 1)

        def fail(*_: object) -> None:
            raise BpfError("move on", errno.EIO)

        leftovers = Leftovers({}, {})
        with monkeypatch.context() as patch:
            patch.setattr(Legacy, "move_counters", fail)
            patch.setattr("npppy.pipex.ebpf.backend.teardown", lambda *_: [])
            patch.setattr("npppy.pipex.ebpf.backend.PipexMaps.__init__", fail)
            with Traffic(lab) as traffic:
                await until(lambda: traffic.sent > 20)
                with pytest.raises(BpfError):
                    EbpfBackend.open(50, pins, keep=True, leftovers=leftovers)
                sent = traffic.sent
                await until(lambda: traffic.sent > sent + 20)
        assert len(editions(pins)) == 2
        end_leftovers(pins, leftovers)
        assert leftovers.open == dict.fromkeys(range(1, COUNT + 1), Counters(**traffic.counters()))
        old.npx.close()

    @pytest.mark.parametrize("what", ["unknown version", "map missing", "another map"])
    async def test_unreadable(self, lab: Lab, pins: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
        """One line says so, and all else is ended."""
        old = Npppyd(lab, pins, VERSION)
        edition = editions(pins)[-1].path
        if what == "unknown version":
            edition.rename(pins / "v99")
            said = f"the layout of {pins}/v99 is not known"
        elif what == "map missing":
            (edition / "slots").unlink()
            said = f"cannot get what is pinned at {edition}/slots: No such file or directory"
        else:
            (edition / "stats").unlink()
            (edition / "hosts4").rename(edition / "stats")
            said = "cannot read map stats: Invalid argument: its values have 8 octets, not 128"
        leftovers = Leftovers({}, {})
        end_leftovers(pins, leftovers)
        assert [message for name, level, message in caplog.record_tuples if level >= logging.WARNING] == [
            f"pipex: what the sessions of an earlier npppyd have counted is lost: {said}"
        ]
        assert leftovers == ({}, {})
        assert (pins.exists(), xdp("acc0")) == (False, "")
        old.npx.close()
