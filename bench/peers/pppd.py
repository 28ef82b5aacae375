"""Servers with a pppd for each session, as Debian ships them: rp-pppoe's pppoe-server, and xl2tpd.

Of each there are two kinds, by what carries the data:

- pppoe-server runs ``pppd pty pppoe``: two processes a session with a pseudo-terminal between them.  Debian's is built
  without -k, by which the kernel does it; but it runs any program in pppd's place, and ours runs pppd as -k would.
- xl2tpd runs pppd with the kernel's L2TP where there is such a thing; told to ``force userspace``, it carries all data
  itself, with a pseudo-terminal a session.

They run in a mount namespace where pppd's directory, /etc/ppp, is ours.  pppd is told no more than npppyd is.  It looks
a user up line by line, in a file of as many users as there are sessions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..carriers import L2TP_PORT, LNS, SECRET
from ..lab import Namespace, Program, until

#: Their own address on all links, and the pool.
GATEWAY, FIRST, LAST = "10.64.0.1", "10.64.0.2", "10.64.255.254"

_OPTIONS = """
auth
require-{method}
noccp
novj
noaccomp
nopcomp
noipv6
nodefaultroute
ms-dns 9.9.9.9
ms-dns 149.112.112.112
"""

#: In place of: pppd pty "/usr/sbin/pppoe -n -I eth1 -e 7:02:00:00:00:00:07 -S ''" OPTION...
_WRAPPER = """#!/bin/sh
session=${2#* -e }
shift 2
exec /usr/sbin/pppd plugin rp-pppoe.so nic-eth1 rp_pppoe_sess "${session%% *}" "$@"
"""

_XL2TPD = f"""
[global]
listen-addr = {LNS}
port = {L2TP_PORT}
auth file = /etc/ppp/tunnel-secrets
force userspace = {{userspace}}
[lns default]
ip range = {FIRST} - {LAST}
local ip = {GATEWAY}
challenge = yes
length bit = yes
require authentication = yes
require {{method}} = yes
pppoptfile = /etc/ppp/session
"""

#: What is behind it has process ids of its own: when it is killed, so is all that it has started.
_OWN_PROCESSES = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
#: What is behind it finds our files in /etc/ppp.
_OWN_ETC = 'mount --bind "$0" /etc/ppp && exec "$@"'


class PppdServer(Program):
    """One of them, in *namespace*.

    *directory* is made, and is its /etc/ppp; *users*: names and passwords, of as many sessions as there will be;
    *method*: pap or chap; *kernel*: whether the kernel carries the data; *enter*: a command that runs the one behind.
    """

    #: Tables in /proc/net, and what a line there has: of the socket that it serves with; of a session that the kernel
    #: carries.
    serving: tuple[str, str]
    carried: tuple[str, str]

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        users: Sequence[tuple[str, str]],
        *,
        method: str,
        kernel: bool,
        enter: Sequence[str] = (),
    ) -> None:
        self._namespace = namespace
        directory.mkdir()
        secrets = "".join(f"{name} * {password} *\n" for name, password in users)
        for name, text in {
            "options": "",
            "session": _OPTIONS.format(method=method),
            "pap-secrets": secrets,
            "chap-secrets": secrets,
            "tunnel-secrets": f"* * {SECRET}\n",
            "kernel-pppd": _WRAPPER,
            "xl2tpd.conf": _XL2TPD.format(userspace="no" if kernel else "yes", method=method),
        }.items():
            file = directory / name
            file.write_text(text)
            file.chmod(0o700)
        argv = self.argv(len(users), kernel)
        with namespace:
            super().__init__(argv[0], [*enter, *_OWN_PROCESSES, "sh", "-c", _OWN_ETC, str(directory), *argv])

    @staticmethod
    def argv(sessions: int, kernel: bool) -> Sequence[str]:
        """Its command, for so many sessions."""
        raise NotImplementedError

    def wait_ready(self) -> None:
        def ready() -> bool:
            self.check()
            return self._count(*self.serving) > 0

        until(ready, f"{self.name} serves")

    def sessions(self) -> int:
        """How many have a network device, up or not."""
        return self._count("dev", r"(?m)^ *ppp[0-9]+:")

    def in_kernel(self) -> int:
        """Of how many the kernel carries the data."""
        return self._count(*self.carried)

    def _count(self, table: str, line: str) -> int:
        with self._namespace:
            return len(re.findall(line, Path("/proc/thread-self/net", table).read_text()))


class PppoeServer(PppdServer):
    """rp-pppoe's, on eth1."""

    serving = "packet", " 8863 "
    carried = "pppoe", r"(?m)^[0-9A-F]{8} "

    @staticmethod
    def argv(sessions: int, kernel: bool) -> Sequence[str]:
        argv = ["pppoe-server", "-F", "-I", "eth1", "-L", GATEWAY, "-R", FIRST, "-N", str(2 * sessions)]
        argv += ["-O", "/etc/ppp/session"]
        return [*argv, "-q", "/etc/ppp/kernel-pppd"] if kernel else argv


class Xl2tpd(PppdServer):
    """An LNS."""

    serving = "udp", f":{L2TP_PORT:04X} "
    carried = "pppol2tp", "(?m)^  SESSION '"

    @staticmethod
    def argv(sessions: int, kernel: bool) -> Sequence[str]:
        # What it runs as is in its configuration.
        return ["xl2tpd", "-D", "-c", "/etc/ppp/xl2tpd.conf", "-p", "/etc/ppp/pid", "-C", "/etc/ppp/control"]
