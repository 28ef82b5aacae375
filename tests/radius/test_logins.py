"""Logins, addresses, accounts and dynamic authorization with a real FreeRADIUS, by every carrier."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.peers.lab import OURS, UPLINK, until
from tests.radius.lab import ACCT, AFAR, DAE, PORT_TYPES, UPLINK6, WORLD6, FreeRadius, RadiusLab, server

pytestmark = pytest.mark.root

METHODS = ("pap", "chap", "mschapv2")
EVERY_CARRIER = pytest.mark.parametrize("carrier", ["pppoe", "l2tp", "pptp"])

WORD = "wonderland"
POOLED = {"Pool-Name": "main"}


def row_of(lab: RadiusLab, user: str) -> dict[str, Any]:
    """The session of a user, once it is up."""

    def found() -> list[dict[str, Any]]:
        return [row for row in lab.sessions(username=user) if row["state"] == "up"]

    (row,) = until(found, f"a session of {user}")
    return row


def closed(radius: FreeRadius, user: str) -> dict[str, Any]:
    """The one account of a user, once it is closed."""

    def found() -> dict[str, Any] | None:
        rows = [row for row in radius.accounts(username=user) if row["acctstoptime"] is not None]
        return rows[0] if rows else None

    until(found, f"the account of {user} is closed")
    return radius.account(username=user)


def usage(lab: RadiusLab, user: str) -> tuple[int, int]:
    """What the daemon's last line on a session says that went through it: octets from the user, and to it."""
    match = lab.daemon.says(rf'TUNNELUSAGE user="{user}" .*? data_in=(\d+)bytes,\d+packets data_out=(\d+)bytes')
    return int(match[1]), int(match[2])


@EVERY_CARRIER
def test_methods_and_the_servers_pool(lab: RadiusLab, carrier: str) -> None:
    radius = lab.freeradius()
    radius.pool("main", "10.65.1.1", 3)
    radius.users([(name, WORD) for name in METHODS], check=POOLED)
    lab.serve()
    sims = [
        lab.user(carrier, name, WORD, "--first", str(number), "--ping", OURS, auth=name)
        for number, name in enumerate(METHODS, 1)
    ]
    addresses = {name: sim.up()[0]["address"] for name, sim in zip(METHODS, sims, strict=True)}
    assert set(addresses.values()) == {"10.65.1.1", "10.65.1.2", "10.65.1.3"}
    assert radius.leases() == {row["address"]: row["acct_session_id"] for row in lab.sessions()}
    for name in METHODS:
        until(lambda name=name: row_of(lab, name)["out_packets"], "its ping is answered")
    if carrier == "pptp":
        # With keys from the server, and only there.
        assert row_of(lab, "mschapv2")["mppe_in"].startswith("128bits")
        assert "mppe_in" not in row_of(lab, "chap")
    # A wrong password, in each way to say it; and the pool has no more for anybody.
    wrong = lab.where / "wrong"
    wrong.write_text("".join(f"{name}:Wonderland\n{name}:{WORD}\n" for name in METHODS))
    for name in METHODS:
        assert row_of(lab, name)["address"] == addresses[name]
    refused = [
        # No two of them have a number in common, by which PPTP knows their calls.
        lab.simulate(carrier, "--first", str(first), "--sessions", "6", "--credentials", str(wrong), auth=name)
        for name, first in zip(METHODS, (10, 20, 30), strict=True)
    ]
    for other in refused:
        assert sum(other.refused().values()) == 6
    until(lambda: len(radius.open_accounts()) == 3, "three accounts are open")
    for sim in sims:
        sim.stop()
        assert sim.summary["pings"]["answered"] == 1
    for name in METHODS:
        row = closed(radius, name)
        assert row["framedipaddress"] == addresses[name]
        assert row["acctauthentic"] == "RADIUS"
    until(lambda: not radius.leases(), "all addresses are free")
    assert "10.65." not in lab.ctl("session", "brief")


@pytest.mark.parametrize(
    ("lab", "carrier"), [("ebpf", "pppoe"), ("ebpf", "l2tp"), ("ebpf", "pptp"), ("user", "pppoe")], indirect=["lab"]
)
def test_accounts(lab: RadiusLab, carrier: str) -> None:
    """A row says who it was, by which way, and what has passed."""
    radius = lab.freeradius()
    radius.pool("main", "10.65.1.1", 3)
    radius.user("alice", WORD, check=POOLED, reply=[("Class", "0x676f6c64"), ("Class", "0x0001ff")])
    lab.serve(tunnel="authentication-method chap")
    before = int(time.time())
    sim = lab.user(
        carrier, "alice", WORD, "--ping", OURS, "--ping-count", "5", "--ping-interval", "0.1", "--ping-size", "372",
        auth="chap",
    )  # fmt: skip
    (up,) = sim.up()
    session = row_of(lab, "alice")
    until(lambda: row_of(lab, "alice")["in_packets"] >= 5, "five pings have passed")
    until(lambda: radius.accounts(username="alice"), "an account")
    account = radius.account(username="alice")
    assert account["acctsessionid"] == session["acct_session_id"]
    assert re.fullmatch(r"[0-9a-f]{16}", account["acctsessionid"])
    assert account["nasipaddress"] == UPLINK
    assert account["nasporttype"] == PORT_TYPES[carrier]
    assert account["framedipaddress"] == up["address"] == session["address"]
    assert (account["servicetype"], account["framedprotocol"]) == ("Framed-User", "PPP")
    assert account["acctauthentic"] == "RADIUS"
    assert account["acctstoptime"] is None
    assert account["class"] == "0x676f6c64"
    if carrier == "pppoe":
        assert account["callingstationid"].lower().replace("-", ":") == up["mac"]
        assert account["nasportid"] == "eth1"
    elif carrier == "l2tp":
        assert (account["callingstationid"], account["calledstationid"]) == ("55501", "5559")
        assert account["nasportid"] == f"LNS:{AFAR}"
    else:
        assert account["callingstationid"] == AFAR
        assert account["nasportid"] == f"PNS:{AFAR}"
    sim.stop()
    account = closed(radius, "alice")
    after = int(time.time())
    assert before <= account["acctstarttime"] <= account["acctstoptime"] <= after
    assert account["acctsessiontime"] == pytest.approx(account["acctstoptime"] - account["acctstarttime"], abs=1)
    # Five echo requests of 400 octets, and their replies, and nothing else.
    assert (account["acctinputoctets"], account["acctoutputoctets"]) == usage(lab, "alice") == (2000, 2000)
    assert account["acctterminatecause"] == "User-Request"
    lab.empties()


def test_what_a_server_says_of_a_session(lab: RadiusLab) -> None:
    """Addresses, networks, limits and time-outs are there before the user is told that it is in."""
    radius = lab.freeradius()
    radius.user(
        "office",
        WORD,
        reply=[
            ("Framed-IP-Address", "10.65.0.65"),
            ("Framed-Route", "10.65.0.64/28 0.0.0.0 1"),
            ("Framed-Route", "10.65.0.128/28"),
            ("Mikrotik-Rate-Limit", "2M/20M"),
            ("Filter-Id", "gold"),
            ("MS-Primary-DNS-Server", "192.0.2.53"),
            ("MS-Secondary-DNS-Server", "192.0.2.54"),
            ("Session-Timeout", "3600"),
            ("Idle-Timeout", "600"),
        ],
    )
    # A pool of the concentrator's own, which the server names; and the name that the server knows the user by.
    radius.user("named", WORD, reply=[("Framed-Pool", "OTHER"), ("User-Name", "named@example.net")])
    lab.serve(more="ipcp OTHER {\n    pool-address 10.67.0.9\n}")
    named = lab.user("l2tp", "named", WORD)
    (up,) = lab.user("pppoe", "office", WORD).up()
    assert up["address"] == "10.65.0.65"
    assert up["dns"] == ["192.0.2.53", "192.0.2.54"]
    session = row_of(lab, "office")
    assert (session["rate_up"], session["rate_down"]) == (2_000_000, 20_000_000)
    assert (session["session_timeout"], session["idle_timeout"], session["filter_id"]) == (3600, 600, "gold")
    for network in ("10.65.0.64/28", "10.65.0.128/28"):
        assert lab.has_route(lab.bng, network)
    assert named.up()[0]["address"] == "10.67.0.9"
    until(lambda: radius.accounts(username="named@example.net"), "an account by that name")


def test_a_session_timeout(lab: RadiusLab) -> None:
    radius = lab.freeradius()
    radius.user("short", WORD, reply=[("Session-Timeout", 1)])
    lab.serve()
    sim = lab.user("pppoe", "short", WORD)
    sim.up()
    account = closed(radius, "short")
    assert account["acctterminatecause"] == "Session-Timeout"
    assert account["acctsessiontime"] >= 1


@EVERY_CARRIER
def test_dynamic_authorization(lab: RadiusLab, carrier: str) -> None:
    """radclient changes a session while it lives, and ends it."""
    radius = lab.freeradius()
    radius.user("alice", WORD, reply=[("Framed-IP-Address", "10.65.0.7"), ("Class", "0x6f6c64")])
    lab.serve()
    sim = lab.user(carrier, "alice", WORD)
    sim.up()
    session = row_of(lab, "alice")
    until(lambda: radius.accounts(username="alice"), "an account")
    keys = (
        "User-Name = alice",
        "Framed-IP-Address = 10.65.0.7",
        f"Acct-Session-Id = {session['acct_session_id']}",
        f"NAS-Port = {session['ppp_id']}",
        f"User-Name = alice, NAS-IP-Address = {UPLINK}, NAS-Identifier = bng",
    )
    for number, key in enumerate(keys, 1):
        status, shown = lab.dae("coa", f'{key}, Mikrotik-Rate-Limit = "{number}M/{number}0M"')
        assert (status, "CoA-ACK" in shown) == (0, True), shown
        row = row_of(lab, "alice")
        assert (row["rate_up"], row["rate_down"]) == (number * 1_000_000, number * 10_000_000)
    status, shown = lab.dae(
        "coa", "User-Name = alice, Session-Timeout = 7200, Idle-Timeout = 300, Filter-Id = tin, Class = 0x6e6577"
    )
    assert status == 0, shown
    row = row_of(lab, "alice")
    assert (row["session_timeout"], row["idle_timeout"], row["filter_id"]) == (7200, 300, "tin")
    # Nothing was lost by that, and nobody was told anything else.
    assert (row["ppp_id"], sim.running, len(sim.ups)) == (session["ppp_id"], True, 1)
    for code, words, error in (
        ("coa", "User-Name = nobody, Session-Timeout = 1", "Session-Context-Not-Found"),
        ("disconnect", "User-Name = nobody", "Session-Context-Not-Found"),
        ("disconnect", "User-Name = alice, Framed-IP-Address = 10.65.0.8", "Session-Context-Not-Found"),
        ("disconnect", "Reply-Message = none", "Missing-Attribute"),
        ("disconnect", "User-Name = alice, NAS-Identifier = other", "NAS-Identification-Mismatch"),
        ("coa", "User-Name = alice, Framed-Protocol = PPP", "Unsupported-Attribute"),
    ):
        status, shown = lab.dae(code, words)
        assert status != 0
        assert "-NAK" in shown
        assert f"Error-Cause = {error}" in shown
    assert lab.dae("disconnect", f"User-Name = alice, Event-Timestamp = {int(time.time())}, State = 0x7a")[0] == 0
    account = closed(radius, "alice")
    assert account["acctterminatecause"] == "Admin-Reset"
    assert account["acctsessionid"] == session["acct_session_id"]
    until(lambda: any(line.get("event") == "down" for line in sim.objects), "the user is told")


def test_dynamic_authorization_is_for_those_who_may(lab: RadiusLab) -> None:
    radius = lab.freeradius()
    radius.user("alice", WORD)
    lab.serve()
    lab.user("pppoe", "alice", WORD).up()
    old = int(time.time()) - 3600
    with ThreadPoolExecutor(4) as pool:
        tries = [
            pool.submit(lab.dae_is_silent, "User-Name = alice", secret="another"),
            pool.submit(lab.dae_is_silent, f"User-Name = alice, Event-Timestamp = {old}"),
            # From an address that is nobody's.
            pool.submit(lab.dae_is_silent, "User-Name = alice", namespace=lab.bng),
        ]
        for one in tries:
            one.result()
    assert row_of(lab, "alice")
    assert lab.dae("disconnect", "User-Name = alice", place=f"[{UPLINK6}]:{DAE}")[0] == 0
    assert closed(radius, "alice")["acctterminatecause"] == "Admin-Reset"


def test_servers_by_ipv6(lab: RadiusLab) -> None:
    radius = lab.freeradius()
    radius.pool("main", "10.65.1.1", 3)
    radius.user("alice", WORD, check=POOLED)
    lab.serve(auth=server(WORLD6), acct=server(WORLD6, ACCT))
    sim = lab.user("pppoe", "alice", WORD, auth="chap")
    (up,) = sim.up()
    until(lambda: radius.accounts(username="alice"), "an account")
    assert set(radius.leases()) == {up["address"]} == {"10.65.1.1"}
    sim.stop()
    closed(radius, "alice")
    until(lambda: not radius.leases(), "the address is free")


def test_interim_records(lab: RadiusLab) -> None:
    """They are spread over their interval: of forty sessions, some have theirs within seconds of a minute."""
    radius = lab.freeradius()
    radius.users([(f"user{number}", WORD) for number in range(1, 41)])
    lab.serve(realm="accounting-interim 60")
    sim = lab.simulate(
        "pppoe", "--sessions", "40", "--user", "user{n}", "--password", WORD, "--hold", "inf",
        "--ping", OURS, "--ping-size", "372",
    )  # fmt: skip
    sim.up(40)

    def told() -> list[dict[str, Any]]:
        return [row for row in radius.accounts() if row["acctupdatetime"] > row["acctstarttime"]]

    until(lambda: len(told()) >= 2, "two interim records")
    for row in told():
        assert (row["acctinputoctets"], row["acctoutputoctets"]) == (400, 400)
        assert row["acctstoptime"] is None
        assert row["acctsessiontime"] == pytest.approx(row["acctupdatetime"] - row["acctstarttime"], abs=1)


def test_simultaneous_use(lab: RadiusLab) -> None:
    radius = lab.freeradius()
    radius.user("alice", WORD, check={"Simultaneous-Use": 1})
    lab.serve()
    sim = lab.user("pppoe", "alice", WORD)
    sim.up()
    until(lambda: radius.accounts(username="alice"), "an account")
    again = ("--user", "alice", "--password", WORD)
    lab.simulate("l2tp", *again, auth="pap").refused()
    sim.stop()
    closed(radius, "alice")
    assert lab.simulate("l2tp", *again, auth="pap").summary["up"] == 1


def test_an_orderly_end_of_the_daemon(lab: RadiusLab) -> None:
    """Every session has its Stop, and the server knows before npppyd is gone."""
    radius = lab.freeradius()
    radius.users([(f"user{number}", WORD) for number in range(1, 21)])
    lab.serve()
    sim = lab.simulate("pppoe", "--sessions", "20", "--user", "user{n}", "--password", WORD, "--hold", "inf")
    sim.up(20)
    until(lambda: len(radius.open_accounts()) == 20, "twenty accounts are open")
    assert lab.daemon.stop() == 0
    rows = radius.accounts()
    assert len(rows) == 20
    assert {row["acctterminatecause"] for row in rows} == {"Admin-Reboot"}
    assert all(row["acctstoptime"] for row in rows)
