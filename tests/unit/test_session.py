"""Sessions as a whole: limits, keepalive, idle time, bounds, and their end."""

from __future__ import annotations

import logging
from typing import ClassVar

import pytest

from npppy.aaa.base import Accept
from npppy.pipex.null import NullFlow
from npppy.ppp import engine as engine_module
from npppy.ppp import proto
from npppy.ppp.cause import Cause
from npppy.ppp.station import Phase

from .ppp_rig import USERS, Line, Rig


def refused(rig: Rig, user: str = "alice") -> str:
    """Log in and be refused; returns the reason."""
    line = rig.line()
    line.open_lcp()
    assert line.pap(user, USERS.get(user.rpartition("\\")[2], b""))[0] == 3, "the login was accepted"
    return line.session.reason


def test_up_and_at_rest() -> None:
    rig = Rig()
    line = rig.up()
    session = line.session
    assert session.phase is Phase.UP
    assert (session.lcp, session.ipcp, session.auth_server) == (None, None, None)
    assert (rig.engine.bound, rig.engine.half_open) == (1, 0)
    assert len(rig.wheel) == 1
    assert rig.engine.by_address(session.address) is session


def test_max_session_of_the_daemon() -> None:
    rig = Rig(config={"max_session": 2})
    rig.up()
    line = rig.up("bob")
    assert refused(rig) == "max-session"
    line.session.end(Cause.ADMIN_RESET, "test", rig.now)
    assert rig.up().session.phase is Phase.UP, "what ends makes room at once"


def test_max_session_of_an_ipcp_block() -> None:
    rig = Rig(ipcp={"max_session": 1})
    rig.up()
    assert refused(rig, "bob") == "max-session of ipcp POOL"


@pytest.mark.parametrize("where", [{"config": {"user_max_session": 1}}, {"realm": {"user_max_session": 1}}])
def test_user_max_session(where: dict[str, dict[str, int]]) -> None:
    rig = Rig(**where)  # type: ignore[arg-type]
    rig.up()
    assert refused(rig) == "user-max-session"
    assert rig.up("bob").session.phase is Phase.UP


def test_the_smaller_limit_of_a_user_counts() -> None:
    rig = Rig(config={"user_max_session": 2}, realm={"user_max_session": 1})
    rig.up()
    assert refused(rig) == "user-max-session"


def test_a_domain_in_front_of_the_name_is_not_a_way_around_the_limit() -> None:
    rig = Rig(config={"user_max_session": 1})
    rig.up()
    assert refused(rig, "OTHER\\alice") == "user-max-session"


def test_parallel_logins_do_not_race_past_the_limit() -> None:
    rig = Rig(config={"user_max_session": 1})
    rig.aaa.hold = True
    lines = [rig.line() for _ in range(5)]
    for line in lines:
        line.open_lcp()
        line.pap()
    for finish in list(rig.aaa.waiting):
        finish(rig.now)
    assert [line.session.phase for line in lines].count(Phase.NETWORK) == 1
    assert rig.engine.bound == 1


def test_duplicate_session_replace_ends_the_oldest() -> None:
    rig = Rig(config={"user_max_session": 2, "duplicate_replace": True})
    first, second = rig.up(), rig.up()
    third = rig.up()
    assert (first.session.cause, first.session.phase) == (Cause.PORT_PREEMPTED, Phase.TERMINATE)
    assert second.session.phase is Phase.UP
    assert third.session.phase is Phase.UP


def test_duplicate_session_replace_frees_a_fixed_address() -> None:
    rig = Rig(config={"duplicate_replace": True})
    rig.aaa.accept["alice"] = Accept(address=0x0A000003)
    first = rig.up()
    second = rig.up()
    assert first.session.phase is Phase.TERMINATE
    assert second.session.ip == "10.0.0.3"


def test_a_fixed_address_in_use_is_refused_without_replace() -> None:
    rig = Rig()
    rig.aaa.accept["alice"] = Accept(address=0x0A000003)
    first = rig.up()
    assert refused(rig).startswith("address 10.0.0.3 cannot be had")
    assert first.session.phase is Phase.UP


def test_replace_does_not_end_another_users_session() -> None:
    rig = Rig(config={"duplicate_replace": True})
    rig.aaa.accept["alice"] = rig.aaa.accept["bob"] = Accept(address=0x0A000003)
    first = rig.up("alice")
    assert refused(rig, "bob").startswith("address")
    assert first.session.phase is Phase.UP


def test_replace_ends_nobody_when_the_login_is_refused_anyway() -> None:
    rig = Rig(config={"max_session": 2, "user_max_session": 1, "duplicate_replace": True}, ipcp={"max_session": 2})
    first, other = rig.up("alice"), rig.up("bob")
    assert rig.up("alice").session.phase is Phase.UP
    assert first.session.phase is Phase.TERMINATE
    assert other.session.phase is Phase.UP


@pytest.mark.parametrize("stage", ["silent", "lcp", "auth", "ipcp"])
def test_a_peer_that_goes_quiet_half_way_is_ended(stage: str) -> None:
    rig = Rig(negotiation_timeout=20)
    line = rig.line()
    if stage != "silent":
        line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
    if stage in ("auth", "ipcp"):
        line.ack(proto.LCP)
    if stage == "ipcp":
        line.pap()
        line.give(proto.IPCP, 1, 1, b"")
    rig.wait(19)
    assert line.closed is None
    rig.wait(1.5 + 7)
    assert line.closed is Cause.LOST_CARRIER
    rig.nothing_left()


def test_half_open_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_HALF_OPEN", 3)
    rig = Rig()
    lines = [rig.line() for _ in range(5)]
    assert rig.engine.half_open == len(rig.engine.sessions) == 3
    assert [line.closed is None for line in lines] == [False, False, True, True, True]
    lines[2].up()
    assert rig.line().closed is lines[3].closed is None


def answer_echo(line: Line) -> bool:
    for packet in line.take(proto.LCP):
        if packet[0] == proto.ECHO_REQUEST:
            line.give(proto.LCP, proto.ECHO_REPLY, packet[1], line.session.peer_magic.to_bytes(4, "big"))
            return True
    return False


def test_keepalive_asks_and_is_content_with_answers() -> None:
    rig = Rig(lcp_keepalive_interval=30, lcp_keepalive_retry_interval=5, lcp_keepalive_max_retries=2)
    line = rig.up()
    line.take()
    asked = 0
    for _ in range(100):
        rig.wait(3)
        asked += answer_echo(line)
    assert line.session.phase is Phase.UP
    assert asked in (9, 10)


def test_a_question_may_wait_longer_than_the_interval() -> None:
    rig = Rig(lcp_keepalive_interval=30, lcp_keepalive_retry_interval=60, lcp_keepalive_max_retries=2)
    line = rig.up()
    line.take()
    asked = 0
    for _ in range(100):
        rig.wait(3)
        asked += answer_echo(line)
    assert asked in (9, 10)
    # Without answers the interval of repetitions holds.
    line.take()
    rig.wait(30 + 60 + 60 - 5)
    assert line.session.phase is Phase.UP
    rig.wait(40)
    assert line.session.cause is Cause.LOST_CARRIER


def test_keepalive_gives_up() -> None:
    rig = Rig(lcp_keepalive_interval=30, lcp_keepalive_retry_interval=5, lcp_keepalive_max_retries=3)
    line = rig.up()
    line.take()
    rig.wait(30 + 3 * 5 - 1)
    assert line.session.phase is Phase.UP
    assert [p[0] for p in line.take(proto.LCP)] == [proto.ECHO_REQUEST] * 3
    rig.wait(2)
    # Not the idle timeout that npppd reports (npppd.md, section 8, row 18).
    assert line.session.cause is Cause.LOST_CARRIER
    rig.wait(10)
    rig.nothing_left()


def test_an_echo_reply_with_a_wrong_magic_number_does_not_count() -> None:
    rig = Rig(lcp_keepalive_interval=30, lcp_keepalive_retry_interval=5, lcp_keepalive_max_retries=2)
    line = rig.up()
    for _ in range(20):
        rig.wait(2.5)
        if line.session.phase is Phase.UP:
            line.give(proto.LCP, proto.ECHO_REPLY, 1, b"evil")
    assert line.session.cause is Cause.LOST_CARRIER


class TestHeardByPipex:
    """What the data path hears of a peer is as good as an answer."""

    OPTIONS: ClassVar = {
        "lcp_keepalive_interval": 30,
        "lcp_keepalive_retry_interval": 5,
        "lcp_keepalive_max_retries": 2,
    }

    @pytest.fixture
    def heard(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The last item is when."""
        heard = [0.0]
        monkeypatch.setattr(NullFlow, "heard", lambda flow: heard[-1])
        return heard

    def test_is_not_asked(self, heard: list[float]) -> None:
        rig = Rig(**self.OPTIONS)
        line = rig.up()
        line.take()
        for _ in range(50):
            rig.wait(29)
            heard.append(rig.now)
        rig.wait(29)
        assert line.take(proto.LCP) == []
        assert line.session.phase is Phase.UP

    def test_is_asked_once_it_is_silent(self, heard: list[float]) -> None:
        rig = Rig(**self.OPTIONS)
        line = rig.up()
        rig.wait(20)
        heard.append(rig.now)
        line.take()
        rig.wait(29)
        assert line.take(proto.LCP) == []
        rig.wait(2)
        assert [packet[0] for packet in line.take(proto.LCP)] == [proto.ECHO_REQUEST]
        rig.wait(10)
        assert line.session.cause is Cause.LOST_CARRIER

    def test_answers(self, heard: list[float]) -> None:
        """pipex keeps the Echo-Replies to itself, and its clock is a little behind."""
        rig = Rig(**self.OPTIONS)
        line = rig.up()
        line.take()
        for _ in range(600):
            rig.wait(0.5)
            if any(packet[0] == proto.ECHO_REQUEST for packet in line.take(proto.LCP)):
                asked = line.session._echo_at - 5
                heard.append(asked - 0.01)
        assert line.session.phase is Phase.UP
        assert len(heard) in (10, 11)

    def test_nothing_of_before_the_question(self, heard: list[float]) -> None:
        rig = Rig(**self.OPTIONS)
        line = rig.up()
        heard.append(rig.now + 10)
        rig.wait(39)
        assert line.session.phase is Phase.UP
        heard.append(rig.now)
        rig.wait(31 + 10)
        assert line.session.cause is Cause.LOST_CARRIER


def test_without_keepalive_there_is_no_timer() -> None:
    rig = Rig(lcp_keepalive=False)
    rig.up()
    assert len(rig.wheel) == 0


def test_idle_timeout_counts_from_the_last_packet() -> None:
    rig = Rig(lcp_keepalive=False, idle_timeout=60)
    line = rig.up()
    rig.wait(50)
    line.give_raw(b"\x00\x21" + bytes(20))
    rig.wait(55)
    assert line.session.phase is Phase.UP
    rig.wait(6)
    assert line.session.cause is Cause.IDLE_TIMEOUT


def test_the_call_goes_at_every_stage() -> None:
    rig = Rig()
    for steps in range(5):
        line = rig.line()
        if steps > 0:
            line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, b"")
        if steps > 1:
            line.ack(proto.LCP)
        if steps > 2:
            line.pap()
        if steps > 3:
            line.open_ipcp()
        line.session.gone(Cause.USER_REQUEST, "PADT", rig.now)
        assert line.closed is None
        rig.nothing_left()


def test_the_call_goes_while_lcp_terminates() -> None:
    rig = Rig()
    line = rig.up()
    rig.engine.disconnect(line.session.id, rig.now)
    line.session.gone(Cause.USER_REQUEST, "PADT", rig.now)
    assert line.session.cause is Cause.ADMIN_RESET
    rig.nothing_left()


def test_a_smaller_path_is_negotiated_anew() -> None:
    rig = Rig()
    line = rig.up()
    line.link = type(line.link)(tunnel=rig.tunnel, caller=line.link.caller, max_mru=1400, unwanted=line.link.unwanted)
    line.take()
    line.session.changed(line.link, rig.now)
    asked = dict(line.ack(proto.LCP))
    assert asked[proto.OPT_MRU] == (1400).to_bytes(2, "big")


def test_events_and_log_lines_as_npppds(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("npppy").propagate = True
    rig = Rig()
    heard: list[tuple[str, int]] = []
    rig.engine.listeners.append(lambda event, session, now: heard.append((event, session.id)))
    with caplog.at_level(logging.INFO, logger="npppy"):
        line = rig.up()
        rig.wait(90)
        rig.engine.disconnect(line.session.id, rig.now)
        refused(rig, "mallory")
    assert heard == [("start", 0), ("stop", 0)]
    lines = [record.getMessage() for record in caplog.records]
    start = next(text for text in lines if "TUNNELSTART" in text)
    assert start == (
        'ppp id=0 layer=base logtype=TUNNELSTART user="alice" duration=0sec layer2=PPPoE '
        "layer2from=02:00:00:00:00:01 auth=PAP ip=10.0.0.2 iface=tun0"
    )
    usage = next(text for text in lines if "TUNNELUSAGE" in text)
    assert usage.startswith(
        'ppp id=0 layer=base logtype=TUNNELUSAGE user="alice" duration=90sec layer2=PPPoE '
        "layer2from=02:00:00:00:00:01 auth=PAP data_in=0bytes,0packets data_out=0bytes,0packets error_in=0 "
        "error_out=0 mppe=no iface=tun0"
    )
    assert "cause=Admin-Reset" in usage
    deny = next(text for text in lines if "TUNNELDENY" in text)
    assert 'user="mallory"' in deny
    assert 'reason="wrong"' in deny


def test_reconfiguration_ends_sessions_of_an_interface_that_went() -> None:
    rig = Rig()
    line = rig.up()
    rig.engine.configure(rig.config, {}, rig.now)
    assert line.session.cause is Cause.NAS_REQUEST
    rig.wait(10)
    rig.nothing_left()


def test_random_frames_never_raise() -> None:
    import random

    source = random.Random(11)
    rig = Rig()
    protocols = [proto.LCP, proto.PAP, proto.CHAP, proto.IPCP, proto.IP, proto.CCP, 0x8057, 0x0057, 0xC025]
    for _ in range(400):
        line = rig.line()
        stage = source.randrange(4)
        if stage > 0:
            line.open_lcp()
        if stage > 1:
            line.pap()
        if stage > 2:
            line.open_ipcp()
        for _ in range(250):
            if line.session.phase >= Phase.TERMINATE:
                break
            body = bytearray(source.randbytes(source.randrange(24)))
            if len(body) >= 4 and source.random() < 0.8:
                body[0] = source.randrange(1, 14)
                body[2:4] = (len(body) + source.choice((0, 0, 0, -1, 1))).to_bytes(2, "big")
                if len(body) >= 6 and source.random() < 0.7:
                    body[4] = source.choice((1, 2, 3, 5, 7, 8, 129, 131))
                    body[5] = source.choice((2, 4, 6, len(body) - 4, 255)) & 0xFF
            line.give_raw(source.choice(protocols).to_bytes(2, "big") + bytes(body))
            rig.now += source.random() * 0.05
            rig.advance()
        if line.session.phase is not Phase.DEAD:
            line.session.gone(Cause.LOST_CARRIER, "end of test", rig.now)
    rig.wait(100)
    rig.nothing_left()
