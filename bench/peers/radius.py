"""FreeRADIUS as Debian ships it, with no more than it takes to check names and passwords by PAP and CHAP."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..lab import Program, until

#: Where it listens, in its network namespace, and the secret of those who ask.
ADDRESS, PORT, SECRET = "127.0.0.1", 1812, "radius-secret"

_CONFIG = f"""
prefix = /usr
libdir = /usr/lib/freeradius
logdir = "%(place)s"
raddbdir = "%(place)s"
run_dir = "%(place)s"
# Who asks has some thousands of requests under way.
max_requests = 65536
cleanup_delay = 1
log {{
    destination = files
    file = "%(place)s/log"
    auth = no
}}
security {{
    reject_delay = 0
    status_server = no
}}
client all {{
    ipaddr = {ADDRESS}
    secret = {SECRET}
    require_message_authenticator = no
}}
modules {{
    pap {{
    }}
    chap {{
    }}
    files {{
        filename = "%(place)s/users"
    }}
}}
server default {{
    listen {{
        type = auth
        ipaddr = {ADDRESS}
        port = {PORT}
    }}
    authorize {{
        chap
        files
        pap
    }}
    authenticate {{
        Auth-Type PAP {{
            pap
        }}
        Auth-Type CHAP {{
            chap
        }}
    }}
}}
"""


class FreeRadius(Program):
    """A server that knows *users*, name and password each; in the network namespace that this thread is in.

    *replies*: by name, what else stands in an Access-Accept, as in users(5).
    """

    def __init__(
        self, directory: Path, users: Iterable[tuple[str, str]], replies: dict[str, str] | None = None
    ) -> None:
        directory.mkdir()
        self._log = directory / "log"
        (directory / "radiusd.conf").write_text(_CONFIG % {"place": directory})
        (directory / "dictionary").write_text("$INCLUDE /usr/share/freeradius/dictionary\n")
        more = replies or {}
        with (directory / "users").open("w") as file:
            for name, word in users:
                file.write(f'{name} Cleartext-Password := "{word}"\n\t{more.get(name, "")}\n')
        # In the foreground, one thread.
        super().__init__("freeradius", ["freeradius", "-f", "-s", "-d", str(directory)])

    def wait_ready(self) -> None:
        def ready() -> bool:
            self.check()
            return self._log.exists() and "Ready to process requests" in self._log.read_text()

        until(ready, "FreeRADIUS serves")
