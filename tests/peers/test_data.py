"""What sessions carry: files both ways, the MSS, packets that are too big."""

from __future__ import annotations

import random
import re
import socket
import threading
from hashlib import sha256

import pytest

from tests.peers.lab import EVERY_MODE, HOST, OURS, WORLD, Lab, announced_mss
from tests.peers.probes import tcp_timeouts

pytestmark = [pytest.mark.guest, EVERY_MODE]

MEGABYTE = 1 << 20


def transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """Send so many octets and see that they arrive unaltered."""
    data = random.Random(size).randbytes(size)

    def send() -> None:
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    digest = sha256()
    received = 0
    while part := receiver.recv(1 << 18):
        digest.update(part)
        received += len(part)
    sending.join()
    assert received == size
    assert digest.digest() == sha256(data).digest()


def test_files_both_ways(lab: Lab) -> None:
    lab.start("tcp-mss-adjust yes\ningress-filter yes")
    peer = lab.dial_up().address
    lab.ping(lab.sub, WORLD)
    before = lab.paths()
    size = 20 * MEGABYTE
    transfer(*lab.connect(lab.sub, WORLD, lab.listen(lab.net)), size)
    transfer(*lab.connect(lab.net, peer, lab.listen(lab.sub)), size)
    session = lab.session()
    assert session["in_bytes"] > size
    assert session["out_bytes"] > size
    assert session["in_errors"] == session["out_errors"] == 0
    # Nothing waited for a timer; a machine that is busy with something else may bring one or two about.
    assert tcp_timeouts(lab.sub) + tcp_timeouts(lab.net) < 5
    taken = lab.paths() - before
    if lab.mode != "user":
        assert min(taken[f"{lab.way}_UP"], taken[f"{lab.way}_DOWN"]) > size // 1460


@pytest.mark.parametrize("adjust", [True, False])
def test_mss(lab: Lab, adjust: bool) -> None:
    """Hosts on 1500 octets at both ends, who cannot know of the link between them."""
    lab.start(f"tcp-mss-adjust {'yes' if adjust else 'no'}")
    lab.dial_home("mru", "1480")
    home, world = lab.connect(lab.lan, WORLD, lab.listen(lab.net))
    # Up and down: what the subscriber's side is told of what we take, and the other way about.
    assert announced_mss(world) == (1440 if adjust else 1460)
    world2, home2 = lab.connect(lab.net, HOST, lab.listen(lab.lan))
    assert announced_mss(home2) == (1452 if adjust else 1460)
    transfer(home, world, MEGABYTE)
    # Without the option, Path MTU Discovery has to do, by our ICMP errors.
    transfer(world2, home2, MEGABYTE)
    assert (lab.session()["out_errors"] > 0) == (not adjust)


def test_too_big_for_the_peer(lab: Lab) -> None:
    """Its MRU is smaller than what our shared interface takes: it is npppyd that refuses, or cuts."""
    lab.start()
    pppd = lab.dial_up("mru", "1400")
    address = pppd.address
    assert lab.session()["mru"] == 1400
    lab.ping(lab.net, address, "-M", "dont", "-s", "1450")
    assert lab.session()["out_packets"] == 2
    lab.ping(lab.net, address, "-M", "dont", "-s", "3000")
    lab.ping(lab.sub, WORLD, "-M", "dont", "-s", "4000")
    before = lab.session()["out_packets"]
    answer = lab.try_ping(lab.net, address, "-M", "do", "-s", "1373")
    assert f"From {OURS} " in answer
    assert "Frag needed and DF set (mtu = 1400)" in answer
    session = lab.session()
    assert (session["out_packets"], session["out_errors"]) == (before, 1)
    lab.ping(lab.net, address, "-M", "do", "-s", "1372")


def test_a_peer_that_asks_for_too_little(lab: Lab) -> None:
    lab.start()
    pppd = lab.dial_up("mru", "400")
    assert "rcvd [LCP ConfNak id=0x1 <mru 1492>]" in pppd.log
    assert lab.session()["mru"] == 1492
    lab.ping(lab.net, pppd.address, "-M", "do", "-s", "1464")


def test_too_big_for_the_link(lab: Lab) -> None:
    """Larger than any session could have: the kernel tells."""
    lab.start()
    address = lab.dial_up().address
    assert "Frag needed and DF set (mtu = 1492)" in lab.try_ping(lab.net, address, "-M", "do", "-s", "1472")
    lab.ping(lab.net, address, "-M", "do", "-s", "1464")
    lab.ping(lab.sub, WORLD, "-M", "do", "-s", "1464")


def jumbo(lab: Lab, sub: int, bng: int) -> None:
    """The MTUs of the access link."""
    lab.ip(lab.sub, f"link set sub0 mtu {sub}")
    lab.ip(lab.bng, f"link set eth1 mtu {bng}")


class TestRfc4638:
    FULL = ("mru", "1500", "mtu", "1500")

    def test_1500(self, lab: Lab) -> None:
        jumbo(lab, 1508, 1508)
        lab.start("mru 1500")
        pppd = lab.dial_up(*self.FULL)
        assert re.search(r"PADS.*\n.*\n.*PPP-max-payload  05 dc", pppd.log)
        assert lab.session()["mru"] == 1500
        lab.ping(lab.sub, WORLD, "-M", "do", "-s", "1472")
        lab.ping(lab.net, pppd.address, "-M", "do", "-s", "1472")
        session = lab.session()
        assert (session["in_packets"], session["out_packets"]) == (2, 2)

    def test_we_could_do_more(self, lab: Lab) -> None:
        """But this pppd asks for no more than 1500."""
        jumbo(lab, 2008, 2008)
        lab.start("mru 2000")
        pppd = lab.dial_up("mru", "2000", "mtu", "2000")
        assert lab.session()["mru"] == 1500
        lab.ping(lab.bng, pppd.address, "-M", "do", "-s", "1472")
        assert "mtu = 1500" in lab.try_ping(lab.bng, pppd.address, "-M", "do", "-s", "1473")

    def test_our_interface_is_too_small(self, lab: Lab) -> None:
        jumbo(lab, 1508, 1500)
        lab.start("mru 1500")
        pppd = lab.dial_up(*self.FULL)
        assert not re.search(r"PADS.*\n.*\n.*PPP-max-payload", pppd.log)
        assert lab.session()["mru"] == 1492
        assert f"From {OURS} " in (answer := lab.try_ping(lab.net, pppd.address, "-M", "do", "-s", "1472"))
        assert "mtu = 1492" in answer
        lab.ping(lab.net, pppd.address, "-M", "do", "-s", "1464")

    def test_the_peer_does_not_ask(self, lab: Lab) -> None:
        jumbo(lab, 1508, 1508)
        lab.start("mru 1500")
        pppd = lab.dial_up("mru", "1492", "mtu", "1492")
        assert "PPP-max-payload" not in pppd.log
        assert lab.session()["mru"] == 1492

    def test_the_configuration_does_not_allow_it(self, lab: Lab) -> None:
        jumbo(lab, 1508, 1508)
        lab.start("mru 1492")
        pppd = lab.dial_up(*self.FULL)
        assert lab.session()["mru"] == 1492
        lab.ping(lab.net, pppd.address, "-M", "do", "-s", "1464")
