"""Two npppyd, in two namespaces, that know of each other by one server alone."""

from __future__ import annotations

import itertools

import pytest

from tests.peers.lab import until, veth
from tests.radius.lab import ACCT, FreeRadius, RadiusLab, Sim, server

pytestmark = pytest.mark.root

WORD = "wonderland"
#: The server and the second concentrator, on a wire of their own.
SERVER, NAS = "192.0.3.2", "192.0.3.1"


@pytest.fixture
def radius(lab: RadiusLab, second: RadiusLab) -> FreeRadius:
    """The server of both, which are up."""
    second.name = "other"
    second.ip(second.bng, veth("rad0", "rad0", lab.net), f"address add {NAS}/24 dev rad0", "link set rad0 up")
    lab.ip(lab.net, f"address add {SERVER}/24 dev rad0", "link set rad0 up")
    made = lab.freeradius()
    lab.serve()
    second.serve(auth=server(SERVER), acct=server(SERVER, ACCT))
    return made


def dial(lab: RadiusLab, first: int, count: int) -> Sim:
    """Subscribers *first* and on, all at once."""
    credentials = lab.where / f"credentials-{first}-{len(lab.programs)}"
    credentials.write_text("".join(f"user{number}:{WORD}\n" for number in range(first, first + count)))
    return lab.simulate(
        "pppoe", "--sessions", str(count), "--window", str(count), "--first", str(first), "--hold", "inf",
        "--credentials", str(credentials),
    )  # fmt: skip


def test_no_address_is_given_twice(lab: RadiusLab, second: RadiusLab, radius: FreeRadius) -> None:
    """A pool of 40 is asked by 60; then sessions come and go on both sides, and what they have left is used again."""
    labs = (lab, second)
    radius.pool("main", "10.65.1.1", 40)
    radius.users([(f"user{number}", WORD) for number in range(1, 201)], check={"Pool-Name": "main"})
    sims = [dial(one, 1 + 30 * index, 30) for index, one in enumerate(labs)]

    def settled() -> bool:
        """All have had their answer, not just those that were the first to dial."""
        answered = all(len({line["number"] for line in sim.objects if "number" in line}) == 30 for sim in sims)
        half_open = any(one.status()["half_open"] for one in labs)
        return answered and not half_open and sum(len(one.sessions()) for one in labs) == 40

    def taken() -> list[str]:
        """The addresses of all sessions; none is there twice, and the server knows whose each is."""
        rows = [row for one in labs for row in one.sessions()]
        found = [row["address"] for row in rows]
        assert len(set(found)) == len(found)
        assert radius.leases() == {row["address"]: row["acct_session_id"] for row in rows}
        return found

    until(settled, "forty of sixty are up")
    assert set(taken()) == {f"10.65.1.{host}" for host in range(1, 41)}
    until(lambda: len(radius.open_accounts()) == 40, "forty accounts are open")
    # Half of them go, on either side; as many others come.
    gone = 0
    for one in labs:
        for row in one.sessions()[::2]:
            one.clear(ppp_id=row["ppp_id"])
            gone += 1
    until(lambda: len(radius.leases()) == len(radius.open_accounts()) == 40 - gone, "their addresses are free")
    sims += [dial(one, 101 + 30 * index, 30) for index, one in enumerate(labs)]
    until(settled, "forty are up again")
    taken()
    for sim in sims:
        sim.stop()
    until(lambda: not radius.leases(), "all addresses are free")
    accounts = radius.accounts()
    assert len(accounts) == 40 + gone
    assert all(row["acctstoptime"] for row in accounts)
    assert {row["nasipaddress"] for row in accounts} == {"192.0.2.1", NAS}


def test_a_user_has_one_session_on_both(lab: RadiusLab, second: RadiusLab, radius: FreeRadius) -> None:
    radius.user("alice", WORD, check={"Simultaneous-Use": 1})
    for here, there in itertools.permutations((lab, second)):
        sim = here.user("pppoe", "alice", WORD)
        sim.up()
        until(lambda: radius.open_accounts(), "an account is open")
        for one in (here, there):
            one.simulate("pppoe", "--first", "2", "--user", "alice", "--password", WORD, auth="pap").refused()
        sim.stop()
        until(lambda: not radius.open_accounts(), "the account is closed")
    rows = radius.accounts()
    assert [row["nasipaddress"] for row in rows] == ["192.0.2.1", NAS]
