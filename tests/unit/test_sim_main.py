"""npppysim's command line, and what it prints."""

from __future__ import annotations

import asyncio
import json
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from npppy.config.model import AuthMethod, L2tpOptions, Mppe, PptpOptions, Rebind
from npppy.l2tp.service import Endpoint
from npppy.sim.access import Clients, Ethernet, Tunnels, fill
from npppy.sim.load import Ending
from npppy.sim.main import UsageError, main, read_credentials, setup
from npppy.sim.options import parser
from npppy.sim.report import Report, milliseconds
from npppy.sim.run import Setup
from npppy.sim.udp import Sockets


def given(*words: str) -> Setup:
    return setup(parser().parse_args(["pppoe", "--interface", "eth0", *words]))


def ethernet(chosen: Setup) -> Ethernet:
    assert isinstance(chosen.access, Ethernet)
    return chosen.access


def lac(*words: str) -> Tunnels:
    chosen = setup(parser().parse_args(["l2tp", "--server", "192.0.2.1", *words]))
    assert isinstance(chosen.access, Tunnels)
    return chosen.access


def clients(*words: str) -> Clients:
    chosen = setup(parser().parse_args(["pptp", "--server", "192.0.2.1", *words]))
    assert isinstance(chosen.access, Clients)
    return chosen.access


def test_defaults() -> None:
    chosen = given()
    assert (chosen.plan.sessions, chosen.plan.rate, chosen.plan.window, chosen.plan.hold) == (1, 0, 256, 0)
    assert chosen.plan.ending is Ending.LCP
    assert ethernet(chosen).wishes.tunnel.authentication_methods == (AuthMethod.CHAP,)
    assert ethernet(chosen).wishes.tunnel.mru == 1492
    assert not ethernet(chosen).wishes.tunnel.lcp_keepalive
    assert ethernet(chosen).wishes.tunnel.mppe is Mppe.NO
    assert ethernet(chosen).mac_base == 0x024E50000000
    assert chosen.pings is None
    assert not chosen.tun


def test_all_options() -> None:
    chosen = given(
        *("--sessions", "500", "--rate", "20.5", "--window", "9", "--hold", "inf", "--terminate", "padt"),
        *("--first", "7", "--auth", "mschapv2,pap", "--user", "u%d@{n}", "--password", "p%d"),
        *("--timeout", "5", "--echo-interval", "20"),
        *("--service-name", "gold", "--ac-name", "bng", "--mac-base", "02:00:00:00:01:00", "--host-uniq", "c0ffee"),
        *("--max-payload", "1500", "--circuit-id", "c{n}", "--remote-id", "r%d"),
        *("--ping", "192.0.2.1", "--ping-count", "3", "--ping-interval", "0.5", "--ping-size", "1400"),
    )
    plan, tunnel = chosen.plan, ethernet(chosen).wishes.tunnel
    assert (plan.sessions, plan.rate, plan.window, plan.hold) == (500, 20.5, 9, float("inf"))
    assert (plan.ending, plan.first) == (Ending.CALL, 7)
    assert tunnel.authentication_methods == (AuthMethod.MSCHAPV2, AuthMethod.PAP)
    # Only the name is a template: a password may have any characters.
    assert chosen.credentials(12) == (b"u12@12", b"p%d")
    assert (tunnel.negotiation_timeout, tunnel.lcp_keepalive, tunnel.lcp_keepalive_interval) == (5, True, 20)
    assert tunnel.mru == ethernet(chosen).wishes.max_payload == 1500
    assert (ethernet(chosen).wishes.service_name, ethernet(chosen).wishes.ac_name) == ("gold", "bng")
    assert (ethernet(chosen).mac_base, ethernet(chosen).host_uniq) == (0x020000000100, b"\xc0\xff\xee")
    assert (ethernet(chosen).circuit_id, ethernet(chosen).remote_id) == ("c{n}", "r%d")
    assert chosen.pings is not None
    assert chosen.pings.target == IPv4Address("192.0.2.1")
    assert (chosen.pings.count, chosen.pings.interval, chosen.pings.size) == (3, 0.5, 1400)


@pytest.mark.parametrize(
    "words",
    [
        ["--sessions", "0"],
        ["--rate", "-1"],
        ["--rate", "nan"],
        ["--auth", "eap"],
        ["--mru", "100"],
        ["--mac-base", "01:00:00:00:00:00"],
        ["--mac-base", "02:00"],
        ["--terminate", "nicely"],
        ["--host-uniq", "xyz"],
        ["--ping", "host"],
        ["--ping", "192.0.2.1", "--tun"],
        ["--ping-size", "3"],
    ],
)
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        given(*words)
    assert exit.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--macs", "one", "--sessions", "2", "--host-uniq", "none"],
        ["--macs", "one", "--sessions", "2", "--host-uniq", "01"],
        ["--mac-base", "02:ff:ff:ff:ff:fd", "--sessions", "3"],
        ["--circuit-id", "x" * 64],
        ["--user", "x" * 256],
        ["--credentials", "/does/not/exist"],
    ],
)
def test_words_that_do_not_go_together(words: list[str]) -> None:
    with pytest.raises(UsageError):
        given(*words)


def test_defaults_of_a_lac() -> None:
    chosen = lac()
    assert (chosen.server, chosen.bind) == ((ip_address("192.0.2.1"), 1701), ())
    assert (chosen.tunnels, chosen.ports, chosen.calling, chosen.called) == (1, False, "", "")
    wishes = chosen.wishes
    assert (wishes.sequencing, wishes.proxy) == (False, None)
    assert (wishes.tunnel.mru, wishes.tunnel.authentication_methods) == (1360, (AuthMethod.CHAP,))
    assert wishes.tunnel.carrier == L2tpOptions(peer_rebind=Rebind.NO)


def test_all_options_of_a_lac() -> None:
    chosen = lac(
        *("--sessions", "9", "--first", "7", "--terminate", "cdn", "--mru", "1400", "--auth", "mschapv2"),
        *("--server", "[2001:db8::1]:17010", "--bind", "2001:db8::2", "--bind", "[2001:db8::3]:1701"),
        *("--tunnels", "500", "--hostname", "lac-7", "--secret", "hush", "--hidden-avps"),
        *("--hello-interval", "5", "--calling-number", "c%d", "--called-number", "{n}", "--sequencing"),
        *("--proxy", "pap"),
    )
    assert chosen.server == (ip_address("2001:db8::1"), 17010)
    assert chosen.bind == ((ip_address("2001:db8::2"), 0), (ip_address("2001:db8::3"), 1701))
    assert (chosen.tunnels, chosen.ports, chosen.calling, chosen.called) == (500, False, "c%d", "{n}")
    wishes = chosen.wishes
    assert (wishes.sequencing, wishes.proxy) == (True, AuthMethod.PAP)
    # Should the LNS negotiate anew, the same subscribers are there.
    assert (wishes.tunnel.mru, wishes.tunnel.authentication_methods) == (1400, (AuthMethod.MSCHAPV2, AuthMethod.PAP))
    options = wishes.tunnel.carrier
    assert isinstance(options, L2tpOptions)
    assert (options.hostname, options.secrets, options.hidden_avps) == ("lac-7", ((None, "hush"),), True)
    assert options.hello_interval == 5
    assert lac("--ports", "distinct").ports


@pytest.mark.parametrize(
    "words",
    [
        ["--server", "lns.example"],
        ["--server", "192.0.2.1:port"],
        ["--server", "192.0.2.1:65536"],
        ["--bind", "[::1]:-1"],
        ["--tunnels", "0"],
        ["--tunnels", "65535"],
        ["--terminate", "padt"],
        ["--proxy", "mschapv2"],
    ],
)
def test_wrong_words_of_a_lac(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        lac(*words)
    assert exit.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--hidden-avps"],
        ["--bind", "2001:db8::2"],
        ["--ports", "distinct", "--bind", "192.0.2.2:1701"],
        ["--calling-number", "x" * 254],
        ["--called-number", "x" * 252 + "%d", "--sessions", "10"],
        ["--hostname", "x" * 254],
    ],
)
def test_words_of_a_lac_that_do_not_go_together(words: list[str]) -> None:
    with pytest.raises(UsageError):
        lac(*words)


def test_defaults_of_pptp_clients() -> None:
    chosen = clients("--sessions", "7")
    assert (chosen.server, chosen.bind) == ((ip_address("192.0.2.1"), 1723), ())
    # A connection for each.
    assert (chosen.tunnels, chosen.called) == (7, "")
    tunnel = chosen.wishes.tunnel
    assert chosen.wishes.window == 64
    assert (tunnel.mru, tunnel.authentication_methods, tunnel.mppe) == (1400, (AuthMethod.MSCHAPV2,), Mppe.YES)
    assert (tunnel.mppe_key_lengths, tunnel.mppe_key_states) == ((128, 56, 40), ("stateless", "stateful"))
    assert tunnel.carrier == PptpOptions()


def test_all_options_of_pptp_clients() -> None:
    chosen = clients(
        *("--sessions", "9", "--first", "7", "--terminate", "clear", "--mru", "1300", "--auth", "mschapv2"),
        *("--server", "192.0.2.9:1724", "--bind", "192.0.2.2", "--bind", "192.0.2.3", "--tunnels", "3"),
        *("--hostname", "pns-7", "--hello-interval", "5", "--called-number", "{n}", "--receive-window", "3"),
        *("--mppe", "required", "--mppe-key-length", "40,128", "--mppe-key-state", "stateful"),
    )
    assert chosen.server == (ip_address("192.0.2.9"), 1724)
    assert chosen.bind == (ip_address("192.0.2.2"), ip_address("192.0.2.3"))
    assert (chosen.tunnels, chosen.called, chosen.wishes.window) == (3, "{n}", 3)
    tunnel = chosen.wishes.tunnel
    assert (tunnel.mru, tunnel.mppe) == (1300, Mppe.REQUIRED)
    assert (tunnel.mppe_key_lengths, tunnel.mppe_key_states) == ((128, 40), ("stateful",))
    assert tunnel.carrier == PptpOptions(hostname="pns-7", echo_interval=5)


@pytest.mark.parametrize(
    "words",
    [
        ["--bind", "::1"],
        ["--tunnels", "0"],
        ["--terminate", "cdn"],
        ["--mppe", "maybe"],
        ["--mppe-key-length", "64"],
        ["--mppe-key-state", ""],
        ["--receive-window", "65536"],
    ],
)
def test_wrong_words_of_pptp_clients(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        clients(*words)
    assert exit.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--server", "[2001:db8::1]"],
        ["--sessions", "65536"],
        ["--hostname", "x" * 64],
        ["--called-number", "x" * 62 + "%d", "--sessions", "10"],
        ["--mppe", "required", "--auth", "chap"],
        ["--mppe", "required", "--auth", "mschapv2,pap"],
    ],
)
def test_words_of_pptp_clients_that_do_not_go_together(words: list[str]) -> None:
    with pytest.raises(UsageError):
        clients(*words)


def test_mppe_of_a_lac() -> None:
    words = ("--mppe", "required", "--auth", "mschapv2")
    assert lac(*words).wishes.tunnel.mppe is Mppe.REQUIRED
    with pytest.raises(UsageError):
        lac(*words, "--proxy", "chap")


@pytest.mark.parametrize("server", ["127.0.0.1", "[::1]:17010"])
def test_sockets_speak_from_where_they_are_told(server: str) -> None:
    chosen = lac("--server", server, "--ports", "distinct", "--tunnels", "3")

    async def look() -> list[Endpoint]:
        sockets = Sockets(chosen.server, ((chosen.server[0], 0),), 3)
        try:
            return [endpoint for endpoint, _ in sockets.ways]
        finally:
            sockets.close()

    endpoints = asyncio.run(look())
    packed = chosen.server[0].packed
    assert {(it.local, it.peer, it.peer_port) for it in endpoints} == {(packed, packed, chosen.server[1])}
    assert len({it.local_port for it in endpoints}) == 3
    assert all(it.local_port for it in endpoints)


def test_an_lns_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    # Not an address of this machine.
    assert main(["l2tp", "--server", "127.0.0.1", "--bind", "192.0.2.77"]) == 2
    assert capsys.readouterr().err.startswith("npppysim: ")


def test_credentials_are_used_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_bytes(b"# name:password\n\nalice:wonder:land\nb\xff:\n")
    listed = [(b"alice", b"wonder:land"), (b"b\xff", b"")]
    assert read_credentials(file) == listed
    chosen = given("--credentials", str(file), "--sessions", "5", "--first", "10")
    assert [chosen.credentials(number) for number in range(10, 14)] == listed * 2


@pytest.mark.parametrize("text", ["", "# nobody\n", "alice\n", "a:" + "x" * 256])
def test_credentials_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    file = tmp_path / "credentials"
    file.write_text(text)
    with pytest.raises(UsageError):
        read_credentials(file)


def test_templates() -> None:
    assert fill("a%d-{n}%%", 12) == "a12-12%%"
    assert fill("plain", 12) == "plain"


def test_an_interface_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    # Without root the socket is refused already; either way it is said in a line, and the status is 2.
    assert main(["pppoe", "--interface", "nonesuch0"]) == 2
    assert capsys.readouterr().err.startswith("npppysim: ")


# The summary.


def test_percentiles() -> None:
    assert milliseconds([]) == {}
    assert milliseconds([0.002]) == {"p50": 2.0, "p90": 2.0, "p99": 2.0, "max": 2.0}
    hundred = [number / 1000 for number in range(100, 0, -1)]
    assert milliseconds(hundred) == {"p50": 51.0, "p90": 91.0, "p99": 100.0, "max": 100.0}


def test_summary() -> None:
    report = Report(3)
    report.dialled(10.0)
    report.dialled(10.5)
    report.came_up(10.0, 11.0)
    report.came_up(10.5, 12.0)
    report.failed["no PADO"] += 1
    report.pings_sent = 2
    report.ping_answered(0.003)
    facts = json.loads(report.as_json())
    assert (facts["sessions"], facts["up"], facts["failed"], facts["rate"]) == (3, 2, {"no PADO": 1}, 1.0)
    assert facts["setup_ms"]["max"] == 1500.0
    assert facts["pings"]["answered"] == 1
    assert not report.good
    text = report.as_text()
    assert "sessions   2 of 3 up" in text
    assert "failed     1 no PADO" in text
    assert "1.0 sessions/s in 2.000 s" in text
    assert "2 sent, 1 answered, 0 wrong" in text


def test_what_is_good() -> None:
    report = Report(1)
    assert not report.good
    report.dialled(1.0)
    report.came_up(1.0, 2.0)
    assert report.good
    report.lost["PADT received"] += 1
    assert report.good
    report.pings_sent = 1
    assert not report.good
    report.ping_answered(0.1)
    assert report.good
    report.pings_wrong = 1
    assert not report.good
