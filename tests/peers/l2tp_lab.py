"""The lab for L2TP: Debian's xl2tpd with pppd dials over IP between `sub` and `bng` (see lab.py)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.peers.lab import MODES, Lab, Program, until, written

#: The concentrator's addresses on eth1, and the subscriber's.
LNS, LAC = "198.51.100.1", "198.51.100.2"
LNS6, LAC6 = "2001:db8::1", "2001:db8::2"

_CONFIG = """
{top}
tunnel {name} protocol l2tp {{
    {listen}
    {pipex}
    {tunnel}
}}
ipcp POOL {{
    pool-address 10.64.0.2-10.64.0.254
    pool-address 10.65.0.0/24 for static
    {ipcp}
}}
interface tun0 address 10.64.0.1 ipcp POOL
authentication LOCAL type local {{
    users-file "npppd-users"
}}
bind tunnel from {name} authenticated by LOCAL to tun0
{more}
"""

_XL2TPD = """
[global]
port = {port}
auth file = {secrets}
debug avp = yes
debug network = yes
debug state = yes
debug tunnel = yes
{globals}
[lac lns]
lns = {lns}
ppp debug = yes
pppoptfile = {options}
autodial = yes
require authentication = no
{lac}
"""


class Xl2tpd(Program):
    """xl2tpd, which dials, and the pppd that it starts."""

    def __init__(self, name: str, namespace: str, where: Path, argv: Sequence[str]) -> None:
        super().__init__(name, namespace, argv, where / "log")
        #: Its files are here.
        self.where = where
        # The pppds that it had when it was sent a signal, which it may not survive.
        self._left: list[int] = []

    @property
    def ppp_log(self) -> str:
        return written(self.where / "ppp.log")

    def ppp_says(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until pppd's log has *pattern*, so many times; returns the last of them."""
        return self.writes(lambda: self.ppp_log, pattern, times, f"the log of {self.name}'s pppd")

    #: As pppd's.
    starts: Callable[[str], object]

    def up(self) -> Xl2tpd:
        """Wait until there is an address, and npppyd takes packets."""
        self.ppp_says(r"remote IP address")
        self.starts(self.address)
        return self

    @property
    def interface(self) -> str:
        return self.ppp_says(r"Using interface (\S+)")[1]

    @property
    def address(self) -> str:
        return self.ppp_says(r"local  IP address (\S+)")[1]

    @property
    def pppds(self) -> list[int]:
        """The processes of its calls."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def hang_up(self, number: int = signal.SIGTERM) -> None:
        """Tell its newest pppd to end."""
        os.kill(max(self.pppds), number)

    def send(self, number: int) -> None:
        self._left += self.pppds
        super().send(number)

    def tell(self, command: str) -> None:
        """Write to its control pipe: "c lns" connects, "d lns" disconnects."""
        (self.where / "control").write_text(command + "\n")

    def kill(self) -> None:
        pppds = self.pppds + self._left
        super().kill()
        for pid in pppds:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class L2tpLab(Lab):
    """Dials by L2TP."""

    #: What stands behind "listen on", a comma between one and the next.
    places = LNS
    #: The end of the configuration.
    more = ""

    def build(self) -> None:
        super().build()
        self.ip(self.bng, f"address add {LNS}/24 dev eth1", f"address add {LNS6}/64 dev eth1 nodad")
        self.ip(self.sub, f"address add {LAC}/24 dev sub0", f"address add {LAC6}/64 dev sub0 nodad")

    def rewrite(
        self, tunnel: str = "", *, ipcp: str = "", top: str = "", listen: str = "", name: str = "ACCESS"
    ) -> None:
        lines = "\n    ".join(line.strip() for line in tunnel.strip().splitlines())
        places = "\n    ".join(f"listen on {place}" for place in (listen or self.places).split(","))
        self._conf.write_text(
            _CONFIG.format(
                top=top,
                tunnel=lines,
                ipcp=ipcp,
                listen=places,
                pipex=MODES[self.mode],
                name=name,
                more=self.more,
            )
        )

    def logs(self) -> Iterator[tuple[str, str]]:
        yield from super().logs()
        for program in self.programs:
            if isinstance(program, Xl2tpd):
                yield f"pppd of {program.name}", program.ppp_log

    def tunnels(self, **filters: Any) -> list[dict[str, Any]]:
        """npppyd's tunnels, those that have ended and are still acknowledged among them."""
        return self.ask("tunnel", filters=filters)[0]

    def tunnel(self) -> dict[str, Any]:
        """The one tunnel that is up; waits for it."""
        rows = until(lambda: self.tunnels(state="established"), "a tunnel")
        assert len(rows) == 1
        return rows[0]

    @property
    def drops(self) -> dict[str, int]:
        """What npppyd has refused and dropped, by reason."""
        return dict(self.status()["drops"]["tunnel ACCESS"])

    def hung_up(self) -> None:
        """Wait until nothing is left of any call; tunnels may be there still."""

        def gone() -> bool:
            status = self.status()
            held = [status[what] for what in ("sessions", "half_open", "bound", "addresses")]
            return not any(held) and not any(row["sessions"] for row in self.tunnels())

        until(gone, "the end of all calls")

    def empties(self) -> None:
        """Nothing is left of any call; nor of tunnels, when the peers close them."""
        self.hung_up()
        for program in self.programs:
            if isinstance(program, Xl2tpd) and program.running:
                program.stop()
        super().empties()

    def is_empty(self) -> bool:
        """As of PPPoE; but tunnels that have ended are there for a while, with a timer each."""
        tunnels = self.tunnels()
        status = self.status()
        held = [status[what] for what in ("sessions", "half_open", "bound", "addresses", "journal")]
        timers = len(tunnels) + sum(row["queued"] > 0 for row in tunnels)
        return (
            not any(held)
            and all(row["state"] == "closing" and not row["sessions"] for row in tunnels)
            and status["timers"] == timers
            and (self.mode == "user" or not any(self.entries().values()))
        )

    def dial_l2tp(
        self,
        *options: str,
        user: str = "alice",
        password: str = "wonderland",
        lns: str = LNS,
        port: int = 1701,
        globals: str = "",
        lac: str = "",
        secrets: str = "",
        namespace: str = "",
    ) -> Xl2tpd:
        """Start xl2tpd, which goes on by itself.  *options* are pppd's, a line each."""
        number = sum(isinstance(program, Xl2tpd) for program in self.programs)
        name = f"xl2tpd-{number}"
        where = self.where / name
        where.mkdir()
        log = where / "ppp.log"
        lines = [
            f"user {user}",
            f"password {password}",
            "noauth",
            "debug",
            "nodefaultroute",
            "noipdefault",
            f"logfile {log}",
            "ip-up-script /bin/true",
            "ip-down-script /bin/true",
            *options,
        ]
        (where / "options").write_text("\n".join(lines) + "\n")
        (where / "secrets").write_text(secrets)
        (where / "xl2tpd.conf").write_text(
            _XL2TPD.format(
                port=port,
                secrets=where / "secrets",
                options=where / "options",
                lns=lns,
                globals=globals,
                lac=lac,
            )
        )
        argv: list[Any] = ["xl2tpd", "-D", "-c", where / "xl2tpd.conf", "-s", where / "secrets"]
        argv += ["-p", where / "pid", "-C", where / "control"]
        starts = self.starting()
        xl2tpd = Xl2tpd(name, namespace or self.sub, where, [str(word) for word in argv])
        xl2tpd.starts = starts
        self.programs.append(xl2tpd)
        return xl2tpd

    def dial_l2tp_up(self, *options: str, **rest: Any) -> Xl2tpd:
        """Dial, and reach the world through the session."""
        xl2tpd = self.dial_l2tp(*options, **rest).up()
        argv = ["ip", "-n", self.sub, "route", "replace", "default", "dev", xl2tpd.interface]
        # pppd's interface goes down for a moment if its Configure-Ack was lost, and it is asked again (RFC 1661, 4.1).
        until(lambda: not subprocess.run(argv, capture_output=True, check=False).returncode, "a route through it")
        return xl2tpd
