"""l2tpns as Debian ships it: an LNS in C, one process with one tun device.

What it has to be told is in startup-config(5).  What cannot be told:

- Its address pool, ``/etc/l2tpns/ip_pool``, has its place compiled in: it runs in a mount namespace where that
  directory is ours.
- It is a cluster of one, and needs an interface with an address for that; it serves 3.1 s after its start at the
  earliest, when no other node has been heard.
- 59,999 sessions and 498 tunnels are compiled in (MAXSESSION, MAXTUNNEL), and so is what it reserves for them.
- It offers no receive window: four control messages may be under way.
- Two tunnels that one address and port open at the same time are one to it.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from ..lab import Namespace, Program, until
from . import radius

#: Sessions and tunnels at the most.
SESSIONS, TUNNELS = 59_999, 498
#: Its own address on the tun device, and the pool; l2tpns gives out no address that ends in 0 or 255.
GATEWAY, POOL = "10.64.0.1", "10.64.0.0/16"
TUN = "tun0"

_CONFIG = """
set debug {debug}
set log_file "{log}"
set hostname "l2tpns"
set l2tp_secret "{secret}"
set primary_radius {radius}
set primary_radius_port {port}
set radius_secret "{radius_secret}"
set radius_authtypes "{method}"
set bind_address {address}
set iftun_address {gateway}
set peer_address {gateway}
set cli_bind_address 127.0.0.1
set send_garp no
set cluster_interface "lo"
set cluster_hb_timeout 31
set allow_duplicate_users yes
set echo_timeout {keepalive}
set idle_echo_timeout {patience}
set disable_sending_hello {quiet}
"""

#: What is behind it finds our files in l2tpns's directory.
_OWN_ETC = 'mount --bind "$0" /etc/l2tpns && exec "$@"'

_PROMPT = b"l2tpns> "
_PAGE_FAULTED = re.compile(r"^Rss: +([0-9]+) kB", re.M)


class L2tpns(Program):
    """An LNS at *address*, which asks FreeRADIUS; it, and FreeRADIUS, in *namespace*.

    *method*: pap or chap; *secret*: for tunnels; *keepalive*: seconds between LCP echoes to a silent subscriber, 0 for
    none, and no hellos then; *enter*: a command that runs the one behind it; *more*: lines for the configuration.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        address: str,
        *,
        method: str,
        secret: str,
        keepalive: int = 0,
        debug: int = 0,
        enter: Sequence[str] = (),
        more: str = "",
    ) -> None:
        directory.mkdir()
        self._namespace = namespace
        #: What it has logged.
        self.log = directory / "log"
        # It has no "never": a day then.
        patience = keepalive * 4 or 86_400
        config = _CONFIG.format(
            debug=debug,
            log=self.log,
            secret=secret,
            radius=radius.ADDRESS,
            port=radius.PORT,
            radius_secret=radius.SECRET,
            method=method,
            address=address,
            gateway=GATEWAY,
            keepalive=keepalive or 86_400,
            patience=patience,
            quiet="no" if keepalive else "yes",
        )
        (directory / "startup-config").write_text(config + more)
        (directory / "ip_pool").write_text(f"{POOL}\n")
        (directory / "users").touch()
        own_etc = ("unshare", "--mount", "sh", "-c", _OWN_ETC, str(directory))
        with namespace:
            super().__init__("l2tpns", [*enter, *own_etc, "l2tpns"])

    def wait_ready(self) -> None:
        def ready() -> bool:
            self.check()
            return self.log.exists() and "declaring myself the master" in self.log.read_text()

        until(ready, "l2tpns serves")

    def cpu(self) -> float:
        """Seconds of processor that it has used, of user and system, to the nanosecond."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def tables(self) -> tuple[int, int]:
        """Octets of its tables, and the sessions that they are made for.

        They are shared memory; what has not been touched yet is not counted, and the kernel has no page of it.
        """
        octets = 0
        for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{self.process.pid}/smaps").read_text()):
            if "/dev/zero" in part and (found := _PAGE_FAULTED.search(part)):
                octets += int(found[1]) * 1024
        return octets, SESSIONS

    def show(self, command: str) -> str:
        """What its command line answers; it forks for each that asks."""
        with self._namespace:
            line = socket.create_connection(("127.0.0.1", 23), timeout=5)
        with line:
            answer = b""
            for word in (command, None):
                while not answer.endswith(_PROMPT):
                    if not (more := line.recv(1 << 16)):
                        raise self.error("closes its command line")
                    answer += more
                if word is not None:
                    answer = b""
                    line.sendall(word.encode() + b"\r\n")
        return answer.removesuffix(_PROMPT).decode(errors="replace").replace("\r", "")

    def sessions(self) -> int:
        """How many there are, in all its tunnels."""
        rows = [row.split() for row in self.show("show tunnels").splitlines()]
        return sum(int(row[4]) for row in rows if len(row) > 4 and row[0].isdigit() and row[3] == "Open")
