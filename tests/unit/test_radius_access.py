"""Logins of realms of type radius: what is asked, of whom, and what is made of the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npppy.aaa.base import Accept, Answer, Challenge, Chap, Eap, Failed, MsChapV1, MsChapV2, Pap, Pending, Reject
from npppy.aaa.radius import access
from npppy.aaa.radius.access import ABANDONED, RadiusLogins
from npppy.aaa.radius.packet import Code, Pair
from npppy.config.model import Radius
from npppy.config.users import User
from npppy.l2tp.codec import u32
from npppy.port import Port
from npppy.ppp.link import TunnelEnds
from npppy.wheel import TICK

from . import l2tp_net, pptp_net
from .pppoe_fake import AC, Bench, FakePpp
from .radius_attr import REALM, Way, ethernet, request, tunnelled, users_file
from .radius_net import Host, Net, block, entry

ONE, OTHER = entry("192.0.2.10"), entry("192.0.2.11")
EAP = Eap(b"\2\5\0\6\4x")
ASKS: tuple[Pair, ...] = (("EAP-Message", b"\1\6\0\6\4x"), ("State", b"handle"))


class Rig:
    """Two servers, and a realm that has them."""

    def __init__(self, **options: object) -> None:
        servers = block(ONE, OTHER, max_tries=1, max_failovers=1, **options)
        self.net = Net(servers)
        self.one, self.other = self.net.host(ONE), self.net.host(OTHER)
        self.realm = replace(REALM, authentication=servers)
        self.logins = RadiusLogins(self.net.client)
        self.user: User | None = None
        self.logins.configure(Radius(nas_id="bras-1"), lambda realm, account: self.user)
        self.answers: list[Answer] = []

    def begin(self, **facts: Any) -> Pending | None:
        asked = request(**{"realm": self.realm, **facts})
        return self.logins.authenticate(asked, lambda answer, now: self.answers.append(answer), self.net.now)

    def login(self, **facts: Any) -> Answer:
        """The answer to a login."""
        self.answers.clear()
        self.begin(**facts)
        self.net.run(10)
        (answer,) = self.answers
        return answer


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_accept(rig: Rig) -> None:
    rig.one.reply = [("Framed-IP-Address", 0x0A000001), ("Class", b"x")]
    answer = rig.login()
    assert isinstance(answer, Accept)
    assert (answer.address, answer.profile.classes, answer.authentic) == (0x0A000001, (b"x",), 1)
    (asked,) = rig.one.requests
    assert asked.code == Code.ACCESS_REQUEST
    assert asked.text("User-Name") == "alice@isp"
    assert asked.text("NAS-Identifier") == "bras-1"
    assert asked.integer("NAS-IP-Address") == 0xC0000201


def test_a_filter_that_is_not_there_is_told_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("guests\x1b", "2000/1000", "guests\x1b"):
        rig.one.reply = [("Filter-Id", name)]
        answer = rig.login()
        assert isinstance(answer, Accept)
        assert answer.profile.filter_id == name
    (line,) = (record.getMessage() for record in caplog.records if "Filter-Id" in record.getMessage())
    assert line.startswith('realm ISP: Filter-Id "guests\\x1b" is no rate')


def test_reject(rig: Rig) -> None:
    rig.one.code, rig.one.reply = Code.ACCESS_REJECT, [("Reply-Message", "no")]
    assert rig.login() == Reject(reason='rejected by the server: "no"', message="no")


def test_unanswered(rig: Rig) -> None:
    """Another realm may be asked; not so where a server has said something of no use."""
    rig.one.silent = rig.other.silent = True
    answer = rig.login()
    assert isinstance(answer, Failed)
    assert answer.unanswered
    assert answer.reason.startswith("realm ISP: ")
    rig.one.silent = rig.other.silent = False
    answer = rig.login(proof=MsChapV2(7, b"c" * 16, b"p" * 16, b"r" * 24))
    assert isinstance(answer, Failed)
    assert not answer.unanswered


def test_no_server() -> None:
    rig = Rig()
    rig.realm = replace(REALM)
    assert rig.login() == Failed(reason="realm ISP: no server", unanswered=True)


def test_failover(rig: Rig) -> None:
    rig.one.silent = True
    assert isinstance(rig.login(), Accept)
    assert (len(rig.one.requests), len(rig.other.requests)) == (1, 1)


def test_deadline() -> None:
    """A realm's login-timeout ends a login over all tries and servers."""
    rig = Rig()
    rig.realm = replace(rig.realm, login_timeout=1, authentication=replace(rig.realm.authentication, timeout=9))
    rig.one.silent = rig.other.silent = True
    rig.begin()
    rig.net.run(1 - TICK)
    assert not rig.answers
    rig.net.run(3 * TICK)
    assert isinstance(rig.answers[0], Failed)


def test_malformed_is_waited_past(rig: Rig) -> None:
    """A reply that is authentic and makes no sense is as good as none."""
    rig.one.reply = [("Framed-IP-Address", b"\1\2\3")]
    answer = rig.login()
    assert isinstance(answer, Accept)
    assert len(rig.other.requests) == 1
    assert rig.net.state().bad["attribute"] == 1
    assert rig.net.idle()


def test_cancel(rig: Rig) -> None:
    """The session has gone; nobody is called, and nothing is left."""
    rig.one.delay = 0.5
    pending = rig.begin()
    assert pending is not None
    pending.cancel()
    rig.net.run(5)
    assert not rig.answers
    assert rig.net.idle()


@pytest.mark.parametrize(
    "facts",
    [
        {"user": ""},
        {"user": "é" * 127},
        {"proof": Pap(b"x" * 129)},
        {"proof": Chap(1, b"c" * 16, b"r" * 15)},
        {"proof": Chap(1, b"c" * 254, b"r" * 16)},
        {"proof": Chap(1, b"", b"r" * 16)},
        {"proof": MsChapV1(1, b"c" * 8, b"r" * 23)},
        {"proof": MsChapV1(1, b"c" * 9, b"r" * 24)},
        {"proof": EAP, "username": "x" * 254},
    ],
)
def test_unspeakable(rig: Rig, facts: dict[str, Any]) -> None:
    """What no packet holds is wrong, and costs no server anything."""
    assert isinstance(rig.login(**facts), Reject)
    assert not rig.one.requests


@pytest.mark.parametrize(
    "facts",
    [
        {"user": "é" * 126},
        {"user": "al\udcffice"},
        {"proof": Pap(b"x" * 128)},
        {"proof": Pap(b"")},
        {"proof": Chap(1, b"c" * 253, b"r" * 16)},
        {"proof": MsChapV1(1, b"c" * 8, b"r" * 24)},
        {"proof": Eap(b"\2\5\x05\xdc\r" + bytes(1495))},
    ],
)
def test_speakable(rig: Rig, facts: dict[str, Any]) -> None:
    assert isinstance(rig.login(**facts), Accept)


# Users files


def test_users_file(rig: Rig, tmp_path: Path) -> None:
    """It says what the server does not (npppd)."""
    users = users_file(tmp_path / "users", "alice:framed-ip-address=10.1.0.1:framed-ip-netmask=255.255.255.0:\n")
    rig.user = users.get("alice")
    answer = rig.login()
    assert isinstance(answer, Accept)
    assert (answer.address, answer.prefixlen) == (0x0A010001, 24)


@pytest.mark.parametrize(
    ("user", "number", "let_in"),
    [
        (User(name="alice", calling_number="555"), "555", True),
        (User(name="alice", calling_number="555"), "556", False),
        (User(name="alice", calling_number="555"), "", False),
        (User(name="alice"), "", True),
        (User(name="alice"), "555", False),
        (None, "555", False),
        (None, "", False),
    ],
)
def test_callnum_check(rig: Rig, user: User | None, number: str, let_in: bool) -> None:
    """As npppd (npppd.md section 4.3): strict, and nobody without an entry."""
    rig.user = user
    link = tunnelled(calling_number=number)
    assert isinstance(rig.login(link=link, check_calling_number=True), Accept if let_in else Reject)
    assert isinstance(rig.login(link=link), Accept)


# EAP


def test_eap(rig: Rig) -> None:
    """From the Identity to the end, all at the server that has begun it."""
    rig = Rig(balance=True)
    for host in (rig.one, rig.other):
        host.code, host.reply = Code.ACCESS_CHALLENGE, ASKS
    assert rig.login(proof=EAP) == Challenge(eap=b"\1\6\0\6\4x", state=b"handle")
    first: Host = rig.one if rig.one.requests else rig.other
    for _ in range(4):
        assert isinstance(rig.login(proof=EAP, state=b"handle"), Challenge)
    first.code, first.reply = Code.ACCESS_ACCEPT, [("EAP-Message", b"\3\6\0\4")]
    answer = rig.login(proof=EAP, state=b"handle")
    assert isinstance(answer, Accept)
    assert answer.eap == b"\3\6\0\4"
    assert len(first.requests) == 6
    assert [asked.octets("State") for asked in first.requests] == [None] + [b"handle"] * 5
    assert all(asked.joined("EAP-Message") == EAP.packet for asked in first.requests)
    # It is over: the next one goes wherever it is its turn.
    assert not rig.logins._asked


def test_eap_server_goes(rig: Rig) -> None:
    """Another one knows nothing of it, and says so."""
    rig.one.code, rig.one.reply = Code.ACCESS_CHALLENGE, ASKS
    rig.login(proof=EAP)
    rig.one.silent = True
    rig.other.code = Code.ACCESS_REJECT
    assert isinstance(rig.login(proof=EAP, state=b"handle"), Reject)


def test_eap_abandoned(rig: Rig) -> None:
    """Peers that do not come back leave nothing."""
    rig.one.code, rig.one.reply = Code.ACCESS_CHALLENGE, ASKS
    for session in range(5):
        rig.login(proof=EAP, session=session)
    assert len(rig.logins._asked) == 5
    rig.net.now += ABANDONED
    rig.login(proof=EAP, session=9)
    assert list(rig.logins._asked) == [(9, "ISP")]


def test_not_all_that_have_been_asked_are_remembered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_ASKED", 3)
    rig.one.code, rig.one.reply = Code.ACCESS_CHALLENGE, ASKS
    for session in range(5):
        rig.login(proof=EAP, session=session)
    assert [session for session, _ in rig.logins._asked] == [2, 3, 4]


def test_two_at_once(rig: Rig) -> None:
    """Of two sessions with the same State each goes on where it began."""
    rig = Rig(balance=True)
    for host in (rig.one, rig.other):
        host.code, host.reply = Code.ACCESS_CHALLENGE, ASKS
    rig.login(proof=EAP, session=1)
    rig.login(proof=EAP, session=2)
    for _ in range(2):
        rig.login(proof=EAP, session=1, state=b"handle")
        rig.login(proof=EAP, session=2, state=b"handle")
    for host in (rig.one, rig.other):
        assert len({asked.integer("NAS-Port") for asked in host.requests}) == 1
        assert len(host.requests) == 3


# Turns


def test_flows() -> None:
    """Logins of one port wait for each other, not for those of another; a tunnel's are its peer's."""
    rig = Rig(max_outstanding=1)
    rig.one.delay = 0.25
    lac = Way(TunnelEnds(3, "192.0.2.77", "198.51.100.1"))
    for session in range(4):
        rig.begin(session=session, link=ethernet(Port("eth0")))
    for session in range(10, 13):
        rig.begin(session=session, link=tunnelled(lac))
    rig.begin(session=20, link=tunnelled(Way(lac.ends)))
    rig.begin(session=30, link=ethernet(Port("eth1")))
    rig.net.run(10)
    assert [asked.integer("NAS-Port") for asked in rig.one.requests] == [0, 1, 10, 30, 2, 11, 3, 12, 20]


# What carriers tell


def test_pppoe_facts() -> None:
    """All sessions of a port have one text of its address."""
    bench = Bench()
    _, one = bench.dial(b"1")
    _, other = bench.dial(b"2")
    assert one.call.link.caller.nas == AC.hex(":")
    assert one.call.link.caller.nas is other.call.link.caller.nas
    assert one.call.link.ends is None
    assert one.call.link.call_name == ""


def test_l2tp_facts() -> None:
    net, ppp = l2tp_net.Net(), FakePpp()
    lns, lac = net.lns(ppp), net.lac(port=1702)
    tunnel = lac.ask()
    net.run(1)
    call = lac.call(tunnel, rx_connect_speed=u32(64_000))
    net.run(1)
    link = ppp.sessions[0].call.link
    (ours,) = lns.tunnels.values()
    assert link.ends == TunnelEnds(
        3, "198.51.100.7", "192.0.2.1", "lac.example", "lns.example", f"L2TP-CTRL-{ours.id}"
    )
    assert link.call_name == f"L2TP-CALL-{call.peer_id}"
    assert (link.caller.tx_speed, link.caller.rx_speed) == (10_000_000, 64_000)
    # As it is now.
    ours.move(ours.endpoint._replace(peer=bytes((198, 51, 100, 8))), net.now)
    assert link.ends.client == "198.51.100.8"


def test_pptp_facts() -> None:
    net, ppp = pptp_net.Net(), FakePpp()
    _, connection, leg = net.called(net.pac(ppp, hostname="pac.example"))
    link = ppp.sessions[0].call.link
    ends = TunnelEnds(1, "198.51.100.7", "192.0.2.1", connection.peer_name, "pac.example", f"PPTP-CTRL-{connection.id}")
    assert link.ends == ends
    assert link.call_name == f"PPTP-CALL-{leg.id}"
