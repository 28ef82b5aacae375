"""PPTP with pppd's own MPPE: what is agreed to, what is refused, and that nothing of users is in the clear."""

from __future__ import annotations

import pytest

from npppy.ppp import options, proto
from tests.peers.encrypted import BACK_ENDS, CONTROL, FAST, KINDS, LONG, SIZE, USER, Tap, encrypted_only
from tests.peers.lab import EVERY_MODE, MODES, OURS, QUICK, WORLD, until
from tests.peers.pptp_lab import Forger, PptpLab
from tests.peers.probes import Stream
from tests.peers.test_data import transfer

pytestmark = pytest.mark.guest

LAB = PptpLab


def carries(lab: PptpLab, peer: str, kind: str) -> None:
    """Small and large packets pass, on the way that they should."""
    lab.ping(lab.sub, WORLD, count=2)
    before = lab.paths()
    lab.ping(lab.sub, WORLD, count=3)
    lab.ping(lab.net, peer, "-s", "1368", "-M", "do", count=3)
    lab.ping(lab.sub, WORLD, "-s", "1368", "-M", "do", count=3)
    taken = lab.paths() - before
    if lab.mode == "user" or kind.endswith("stateful"):
        assert not any(taken[f"{way}_{end}"] for way in ("STACK", "FAST") for end in ("UP", "DOWN"))
    else:
        # One whose acknowledgment may not wait for the reply goes by the stack, which sends it.
        with_ack = taken["STACK_UP"] if lab.way == "FAST" else 0
        assert taken[f"{lab.way}_UP"] + with_ack == taken[f"{lab.way}_DOWN"] == 9
        assert taken[f"{lab.way}_UP"] > with_ack
        assert taken["USER_UP"] == taken["USER_DOWN"] == 0
    # The MRU is ours to fill; what pppd answers has to leave room for MPPE.
    lab.ping(lab.net, peer, "-s", "1372", "-M", "do")
    session = lab.session()
    assert session["in_errors"] == session["out_errors"] == 0


_AGREED = [("user", "128"), ("ebpf", "128"), ("fast", "40"), ("user", "128-stateful"), ("fast", "40-stateful")]


@pytest.mark.parametrize(
    ("lab", "kind"), [(mode, kind) for mode in MODES for kind in KINDS] if LONG else _AGREED, indirect=["lab"]
)
def test_agreed(lab: PptpLab, kind: str) -> None:
    demand, tunnel, title = KINDS[kind]
    lab.start(tunnel)
    pppd = lab.dial_pptp_up(*demand.split())
    assert f"MPPE {title} compression enabled" in pppd.log
    carries(lab, pppd.address, kind)


@USER
def test_the_strongest(lab: PptpLab) -> None:
    """Of all that both can: 128 bits, stateless, though the other is allowed, too."""
    lab.start("mppe yes\nmppe-key-length 40 56 128\nmppe-key-state stateful stateless")
    pppd = lab.dial_pptp_up("require-mppe", "mppe-stateful")
    assert "MPPE 128-bit stateless compression enabled" in pppd.log
    lab.ping(lab.sub, WORLD)


@FAST
def test_a_peer_that_does_none(lab: PptpLab) -> None:
    """In the clear where `mppe yes` lets it, whether pppd knows CCP or not."""
    lab.start(f"{QUICK}\nmppe yes")
    for option in ("nomppe", "noccp"):
        pppd = lab.dial_pptp_up(option)
        lab.ping(lab.sub, WORLD, count=3)
        lab.ping(lab.net, pppd.address, count=3)
        assert "MPPE" not in pppd.log
        assert lab.paths()[f"{lab.way}_UP"] > 0 or lab.mode == "user"
        pppd.stop()
        lab.empties()


@USER
@pytest.mark.parametrize("option", ["nomppe", "noccp"])
def test_a_peer_that_does_none_and_must(lab: PptpLab, option: str) -> None:
    tap = Tap(lab)
    lab.start(f"{QUICK}\nmppe required")
    pppd = lab.dial_pptp(option)
    lab.daemon.says('logtype=Terminated cause=User-Error reason="its packets must be encrypted')
    pppd.exits()
    assert "LCP terminated by peer" in pppd.log
    lab.empties()
    assert "TUNNELSTART" not in lab.daemon.log
    assert {frame.protocol for frame in tap.stop()} <= CONTROL


_DEMANDS = [
    ("mppe no", "require-mppe"),
    ("mppe-key-length 40", "require-mppe-128"),
    ("mppe-key-state stateful", "require-mppe"),
    ("mppe-key-length 56", "require-mppe"),
]


@USER
@pytest.mark.parametrize(("tunnel", "demand"), _DEMANDS if LONG else _DEMANDS[:2])
def test_a_peer_that_demands_what_there_is_not(lab: PptpLab, tunnel: str, demand: str) -> None:
    """It ends, cleanly on both sides, and nothing of users has passed."""
    tap = Tap(lab)
    lab.start(f"{QUICK}\n{tunnel}")
    pppd = lab.dial_pptp(demand)
    pppd.exits()
    assert "MPPE required" in pppd.log
    lab.daemon.says("logtype=Terminated|TUNNELUSAGE")
    lab.empties()
    assert {frame.protocol for frame in tap.stop()} <= CONTROL
    until(lambda: not lab.pptps(lab.sub), "the end of pptp-linux")


@USER
def test_a_login_that_gives_no_keys(lab: PptpLab) -> None:
    """`mppe required`: a peer that refuses MS-CHAPv2 cannot be encrypted, and gets no session."""
    lab.start(f"{QUICK}\nauthentication-method mschapv2 chap pap")
    pppd = lab.dial_pptp("refuse-mschap-v2", "nomppe")
    pppd.exits()
    assert "remote IP address" not in pppd.log
    lab.empties()


SECRET = b"npppy says this in the clear. "


@pytest.mark.parametrize(
    ("lab", "kind"), [("user", "128"), ("fast", "128"), ("fast", "40-stateful")], indirect=["lab"]
)
def test_capture(lab: PptpLab, kind: str) -> None:
    """A whole life of a session: users' packets are in 0x00fd alone, and nothing that they say can be read."""
    demand, tunnel, _ = KINDS[kind]
    tap = Tap(lab)
    lab.start(f"{QUICK}\n{tunnel}")
    pppd = lab.dial_pptp_up(*demand.split())
    up, down = lab.connect(lab.sub, WORLD, lab.listen(lab.net))
    for sender, receiver in ((up, down), (down, up)):
        text = SECRET * 2000
        sender.sendall(text)
        while text:
            text = text[len(receiver.recv(len(text))) :]
    lab.ping(lab.net, pppd.address, "-p", SECRET[:16].hex(), count=3)
    lab.ping(lab.sub, WORLD, "-p", SECRET[:16].hex(), "-s", "4000", count=3)
    lab.clear(ppp_id=0)
    pppd.exits()
    lab.empties()
    frames = tap.stop()
    addresses = [bytes(map(int, address.split("."))) for address in (pppd.address, WORLD)]
    counts = encrypted_only(frames, SECRET[:8], addresses[0] + addresses[1], addresses[1] + addresses[0])
    assert min(counts.values()) > 50


@EVERY_MODE
def test_files_both_ways(lab: PptpLab) -> None:
    lab.start("tcp-mss-adjust yes\ningress-filter yes")
    peer = lab.dial_pptp_up("require-mppe").address
    lab.ping(lab.sub, WORLD)
    before = lab.paths()
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), SIZE)
    transfer(*lab.connect(lab.net, peer, lab.listen(lab.sub)), SIZE)
    session = lab.session()
    assert session["in_bytes"] > SIZE
    assert session["out_bytes"] > SIZE
    assert session["in_errors"] == session["out_errors"] == 0
    taken = lab.paths() - before
    if lab.mode != "user":
        assert min(taken[f"{lab.way}_UP"], taken[f"{lab.way}_DOWN"]) > SIZE // 1400
        assert taken["USER_UP"] == taken["USER_DOWN"] == 0
    assert lab.drops == {}


@FAST
def test_between_the_kernel_and_python(lab: PptpLab) -> None:
    """Keys and counts go with the data: no packet is lost over it, and none comes twice."""
    lab.start()
    pppd = lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD)
    streams = [Stream(lab, lab.sub, lab.net, WORLD), Stream(lab, lab.net, lab.sub, pppd.address)]
    for _ in range(3):
        for carry, path in (("user", "USER"), ("ebpf", lab.way)):
            assert lab.ask("pipex", ppp_id=0, carry=carry)[1]["pipex"] == carry
            before = lab.paths()
            for stream in streams:
                stream.flows(5)
            taken = lab.paths() - before
            assert min(taken[f"{path}_UP"], taken[f"{path}_DOWN"]) >= 4
    for stream in streams:
        assert not stream.stop()
    assert "CCP ResetReq" not in pppd.log
    assert lab.status()["malformed"] == {}


@FAST
def test_negotiated_again(lab: PptpLab) -> None:
    """CCP begins once more, by a request that pppd has not sent: it has to log in anew, and gets other keys.

    Until then we send nothing; pppd may send a packet or two in the clear, before it takes its interface down.
    """
    forger = Forger(lab)
    lab.start(QUICK)
    pppd = lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD, count=2)
    wish = options.encode([(proto.OPT_MPPE, bytes.fromhex("01000040"))])
    with lab.datagrams(lab.net) as down, lab.datagrams(lab.sub) as up:
        forger.forge(b"\xff\x03\x80\xfd\x01\x77" + (len(wish) + 4).to_bytes(2, "big") + wish)
        for _ in range(200):
            for sock, address in ((down, pppd.address), (up, WORLD)):
                try:
                    sock.sendto(SECRET, (address, 9))
                except OSError:
                    break
    pppd.says("CHAP authentication succeeded", 2)
    pppd.says("MPPE 128-bit stateless compression enabled", 2)
    pppd.says("remote IP address", 2)
    lab.ip(lab.sub, f"route replace default dev {pppd.interface}")
    lab.ping(lab.sub, WORLD, count=2)
    assert encrypted_only((frame for frame in forger.stop() if not frame.up), SECRET[:8])


@BACK_ENDS
def test_packets_in_the_clear(lab: PptpLab) -> None:
    """Neither way: what somebody slips in is dropped."""
    forger = Forger(lab)
    lab.start()
    lab.dial_pptp_up("require-mppe")
    lab.ping(lab.sub, WORLD, count=2)
    before = lab.session()
    # An ICMP Echo of the subscriber's, which would be answered.
    for frame in (b"\xff\x03\x00\x21", b"\x21", b"\x00\x57"):
        forger.forge(frame + bytes.fromhex("4500001c000100004001") + bytes(2) + bytes(16))
    lab.ping(lab.sub, OURS, count=2)
    after = lab.session()
    assert after["in_packets"] == before["in_packets"] + 2
    refused = lab.status()["malformed"].get("clear-text", 0)
    assert refused == 3 if lab.mode == "user" else after["in_errors"] - before["in_errors"] + refused >= 3
