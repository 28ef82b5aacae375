"""PPTP calls on bad paths: packets that are lost by the hundred and the thousand, late, forged, played back."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from npppy.ppp.proto import COMPRESSED
from tests.peers.encrypted import BACK_ENDS, FAST, LONG, SIZE, USER, answers, hole, impaired, lose, recovers
from tests.peers.lab import QUICK, WORLD, until
from tests.peers.pptp_lab import Forger, PptpLab, numbers
from tests.peers.probes import Receiver, Stream, send
from tests.peers.test_data import transfer

pytestmark = pytest.mark.guest

LAB = PptpLab

#: pptp-linux waits for a packet that is missing, and all others with it.
PATIENT = ("--timeout", "0.05")


@pytest.mark.parametrize(
    ("lab", "demand"), [("user", "require-mppe"), ("fast", "require-mppe"), ("ebpf", "nomppe")], indirect=["lab"]
)
def test_a_path_that_loses_and_reorders(lab: PptpLab, demand: str) -> None:
    """1 % of each, and files arrive unaltered.

    Not while CCP negotiates: where its Configure-Ack is lost, we ask again, and pppd ends over it ("MPPE disabled").
    """
    lab.start("mppe yes\ntcp-mss-adjust yes")
    peer = lab.dial_pptp_up(demand, pptp=PATIENT).address
    impaired(lab, "loss", "1%", "delay", "3ms", "reorder", "1%")
    # pptp-linux makes a down stream slow.
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), SIZE)
    transfer(*lab.connect(lab.net, peer, lab.listen(lab.sub)), SIZE if LONG else SIZE // 4)
    assert lab.session()["ppp_id"] == 0


@USER
def test_stateful_on_a_path_that_loses(lab: PptpLab) -> None:
    """Resets, either way, and files arrive unaltered."""
    lab.start("mppe-key-state stateful")
    pppd = lab.dial_pptp_up("require-mppe", "mppe-stateful", pptp=PATIENT)
    impaired(lab, "loss", "1%", "delay", "3ms", "reorder", "1%")

    def both_have_asked() -> bool:
        transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), SIZE // 32)
        transfer(*lab.connect(lab.net, pppd.address, lab.listen(lab.sub)), SIZE // 32)
        return all(f"{way} [CCP ResetReq" in pppd.log for way in ("sent", "rcvd"))

    until(both_have_asked, "resets both ways")


@pytest.mark.parametrize(("lab", "count"), [("user", 5000), ("fast", 300), ("fast", 5000)], indirect=["lab"])
def test_a_gap_from_the_peer(lab: PptpLab, count: int) -> None:
    """5000: the coherency count has gone round meanwhile, and says 904."""
    lab.start()
    pppd = lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    lose(lab, pppd, count, up=True)
    recovers(lab, pppd)


@USER
@pytest.mark.parametrize("count", [300, 5000] if LONG else [5000])
def test_a_gap_from_a_stateful_peer(lab: PptpLab, count: int) -> None:
    lab.start("mppe-key-state stateful")
    pppd = lab.dial_pptp_up("require-mppe", "mppe-stateful")
    lab.ping(lab.sub, WORLD)
    lose(lab, pppd, count, up=True)
    recovers(lab, pppd)


@pytest.mark.parametrize(
    ("lab", "demand", "count"),
    [("user", "require-mppe", 300), ("fast", "require-mppe", 300), ("fast", "nomppe", 5000)],
    indirect=["lab"],
)
def test_a_gap_to_the_peer(lab: PptpLab, demand: str, count: int) -> None:
    lab.start("mppe yes")
    pppd = lab.dial_pptp_up(demand, pptp=PATIENT)
    lab.ping(lab.sub, WORLD)
    lose(lab, pppd, count, up=False)
    recovers(lab, pppd)


@FAST
def test_a_gap_that_is_too_much_for_pppd(lab: PptpLab) -> None:
    """5000 that were encrypted: see test_mppe.py."""
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe", pptp=PATIENT)
    lab.ping(lab.sub, WORLD)
    lose(lab, pppd, 5000, up=False)
    with lab.datagrams(lab.net) as sock:

        def over() -> bool:
            for _ in range(20):
                with contextlib.suppress(OSError):
                    sock.sendto(b"read by the wrong key", (pppd.address, 9))
            return not lab.sessions()

        until(over, "the end of the session")
    assert lab.ended("Lost-Service") == "the peer decrypts by another key"
    pppd.exits()
    lab.empties()
    lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)


@FAST
def test_the_window_of_the_peer(lab: PptpLab) -> None:
    """Looked at, it allows three a second to a pptp-linux that acknowledges none."""
    lab.start("pptp-send-window yes")
    pppd = lab.dial_pptp_up("require-mppe", pptp=PATIENT)
    lab.ping(lab.sub, WORLD)
    with lab.datagrams(lab.net) as sock, hole(lab, up=False) as lossy:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for _ in range(10):
                sock.sendto(b"too much", (pppd.address, 9))
            time.sleep(0.02)
        assert 3 <= lossy.lost < 20
    recovers(lab, pppd)


@BACK_ENDS
def test_forged(lab: PptpLab) -> None:
    """Packets with the right addresses and call id, of anybody who has seen them: none harms for long."""
    lab.start()
    pppd = lab.dial_pptp_up("require-mppe")
    forger = Forger(lab)
    lab.ping(lab.sub, WORLD, count=2)
    rng = random.Random(1)
    # Of what cannot be decrypted, all counts, with random octets behind; in line, far ahead, and far behind.
    for jump in (1, 2, 100, 255, 300, 1000, 2047, 2048, 4000):
        count = (forger.count() + jump) % 4096
        for flags in (0x9000, 0x1000, 0x8000, 0xF000):
            forger.forge(b"\x00\xfd" + (flags | count).to_bytes(2, "big") + rng.randbytes(rng.randrange(80)))
        until(lambda: answers(lab, pppd), "an answer, both ways")
    # Numbers of GRE from all over, with an acknowledgment of what was never sent, too.
    for number in (0, 1, 1000, 1 << 20, 1 << 31, (1 << 32) - 1):
        forger.forge(b"\x00\xfd\x90\x00" + rng.randbytes(60), number)
        forger.forge(b"", None, acknowledgment=number)
        forger.forge(b"\xc0\x21\x09\x01\x00\x08" + bytes(4), number, acknowledgment=number)
        until(lambda: answers(lab, pppd), "an answer, both ways")
    # Of nobody we know.
    lab.ip(lab.sub, "address add 198.51.100.9/24 dev sub0")
    forger.forge(b"\x00\xfd\x90\x00" + rng.randbytes(60), source="198.51.100.9")
    forger.forge(b"\x00\xfd\x90\x00" + rng.randbytes(60), call=lab.call_ids()[0] ^ 1)
    recovers(lab, pppd)
    assert lab.session()["in_errors"] + lab.status()["malformed"]["undecryptable"] > 30


@BACK_ENDS
def test_played_back(lab: PptpLab) -> None:
    """No packet of a user's passes twice, whatever number of GRE it comes with."""
    lab.start()
    pppd = lab.dial_pptp_up("require-mppe")
    forger = Forger(lab)
    receiver = Receiver(lab, lab.net)
    for number in range(20):
        send(lab, lab.sub, (WORLD, receiver.port), bytes([number]))
        assert receiver.take().data == bytes([number])
    played = until(lambda: (seen := forger.genuine(COMPRESSED))[19:] and seen, "all that was sent")
    newest = forger.number()
    for number, frame in enumerate(played, 1):
        # As it was, of which the number has been there, too; and with a new one.
        forger.play(frame.ethernet[34:])
        forger.forge(frame.ppp, newest + number)
    send(lab, lab.sub, (WORLD, receiver.port), b"new")
    assert receiver.take().data == b"new"
    recovers(lab, pppd)


@FAST
def test_late(lab: PptpLab) -> None:
    """Every tenth packet overtakes some, both ways: those are late, and pass."""
    lab.start()
    pppd = lab.dial_pptp_up("require-mppe", pptp=PATIENT)
    impaired(lab, "delay", "20ms", "reorder", "100%", "gap", "10")
    streams = [Stream(lab, lab.sub, lab.net, WORLD), Stream(lab, lab.net, lab.sub, pppd.address)]
    for stream in streams:
        stream.flows(100)
        assert not stream.stop()
    assert streams[0].got != sorted(streams[0].got)
    # pptp-linux puts them in order.
    assert streams[1].got == sorted(streams[1].got)


@USER
def test_put_in_order(lab: PptpLab) -> None:
    lab.start("pptp-data-reorder 16")
    lab.dial_pptp_up("require-mppe")
    impaired(lab, "delay", "20ms", "reorder", "75%")
    stream = Stream(lab, lab.sub, lab.net, WORLD)
    stream.flows(100)
    assert not stream.stop()
    assert stream.got == sorted(stream.got)


@BACK_ENDS
def test_acknowledgments(lab: PptpLab) -> None:
    """A subscriber that only sends is told in time what has arrived."""
    lab.start()
    lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    wire = lab.wire(lab.sub, "sub0")
    stream = Stream(lab, lab.sub, lab.net, WORLD)
    stream.flows(200)
    assert not stream.stop()
    sent, acknowledged, alone = numbers(wire)
    assert alone > 5
    assert sent - acknowledged < 64
