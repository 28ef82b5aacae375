"""The lab for PPTP: Debian's pptp-linux with pppd dials over IP between `sub` and `bng` (see lab.py).

pptp-linux is three processes: the gateway between pppd's pty and GRE (pptpgw), which is pppd's child; and the call
manager (pptpcm), which keeps the control connection for all the calls between a pair of addresses, and belongs to
nobody.  What it does that a test must know of:

- It offers a receive window of 3, and acknowledges a single packet half a second later.
- It waits 0.3 s for a packet that is missing, and all others with it; what comes later than that is lost.
- The call manager is looked for a second after it has been started.
- A call manager whose control connection ends takes the gateways with it; one that is killed tells nobody.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from npppy.ppp.proto import COMPRESSED
from tests.peers.encrypted import UNREADABLE, Frame, Tap, raw
from tests.peers.lab import MODES, Lab, Pppd, run, until, written

#: The concentrator's address on eth1, and the subscriber's.
PNS, PAC = "198.51.100.1", "198.51.100.2"

_CONFIG = """
{top}
tunnel {name} protocol pptp {{
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

_SYSLOG = Path("/dev/log")


class PptpLab(Lab):
    """Dials by PPTP."""

    #: What stands behind "listen on", a comma between one and the next.
    places = PNS
    #: The end of the configuration.
    more = ""
    tolerated = UNREADABLE

    def build(self) -> None:
        super().build()
        self.ip(self.bng, f"address add {PNS}/24 dev eth1")
        self.ip(self.sub, f"address add {PAC}/24 dev sub0")
        self._collect()

    def _collect(self) -> None:
        """Read what pptp-linux writes, which knows nothing but syslog."""
        _SYSLOG.unlink(missing_ok=True)
        sock = self._sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        sock.bind(str(_SYSLOG))
        path = self._syslog

        def read() -> None:
            with path.open("wb") as out:
                while line := sock.recv(65536):
                    # pppd says all that in its own log, too.
                    if b" pptp[" in line:
                        out.write(line.rstrip(b"\0\n") + b"\n")
                        out.flush()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()

        def end() -> None:
            _SYSLOG.unlink()
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()

        self.finally_(end)

    @property
    def _syslog(self) -> Path:
        return self.where / "syslog"

    @property
    def syslog(self) -> str:
        return written(self._syslog)

    def logs(self) -> Iterator[tuple[str, str]]:
        yield from super().logs()
        yield "syslog", self.syslog

    def close(self) -> None:
        for namespace in (self.sub, self.bng, self.net, self.lan):
            for pid in self.pptps(namespace):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        super().close()

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

    def is_empty(self) -> bool:
        """As of PPPoE; but a control connection may outlive its calls until it is found to be dead."""
        status = self.status()
        held = [status[what] for what in ("sessions", "half_open", "bound", "addresses", "journal")]
        return (
            not any(held)
            and status["timers"] == len(self.ask("tunnel")[0])
            and (self.mode == "user" or not any(self.entries().values()))
        )

    def mute(self, deaf: bool = True) -> None:
        """The subscriber's side hears nothing more of the control connection, or does again."""
        rule = "type filter hook ingress device sub0 priority 0\ntcp sport 1723 drop"
        rules = f"table netdev mute {{\nchain in {{\n{rule}\n}}\n}}\n" if deaf else "delete table netdev mute\n"
        run("ip", "netns", "exec", self.sub, "nft", "-f", "-", input=rules)

    def dial_pptp(
        self, *options: str, pptp: Sequence[str] = (), pns: str = PNS, namespace: str = "", **rest: Any
    ) -> Pppd:
        """Start pppd with pptp-linux, which goes on by itself.  *options* are pppd's words, *pptp* the other's."""
        words = " ".join(("exec pptp", pns, "--nolaunchpppd", "--nohostroute", *pptp))
        return self.dial(*options, link=("pty", words), namespace=namespace, **rest)

    def dial_pptp_up(self, *options: str, **rest: Any) -> Pppd:
        """Dial, and reach the world through the session."""
        pppd = self.dial_pptp(*options, **rest).up()
        self.ip(self.sub, f"route replace default dev {pppd.interface}")
        return pppd

    def pptps(self, namespace: str, name: str = "pptp") -> list[int]:
        """The processes of pptp-linux in a namespace: pptpgw, pptpcm, or those whose name begins so."""
        found = []
        for word in run("ip", "netns", "pids", namespace).split():
            with contextlib.suppress(OSError):
                if Path("/proc", word, "comm").read_text().startswith(name):
                    found.append(int(word))
        return found

    @property
    def drops(self) -> dict[str, int]:
        """What npppyd has refused and dropped, by reason."""
        return dict(self.status()["drops"]["tunnel ACCESS"])

    def call_ids(self) -> tuple[int, int]:
        """Of the newest call: npppyd's and the peer's, as pptp-linux tells them."""
        found = until(
            lambda: re.findall(r"call established \(call ID (\d+), peer's call ID (\d+)\)", self.syslog), "a call"
        )
        return int(found[-1][1]), int(found[-1][0])

    def gateway(self, number: int, namespace: str = "") -> None:
        """Send all gateways a signal."""
        for pid in self.pptps(namespace or self.sub, "pptpgw"):
            os.kill(pid, number)

    def manager(self, number: int, namespace: str = "") -> None:
        """Send all call managers a signal."""
        for pid in self.pptps(namespace or self.sub, "pptpcm"):
            os.kill(pid, number)


class Forger(Tap):
    """Somebody who sees all that the peer sends, and sends more in its name."""

    lab: PptpLab

    def __init__(self, lab: PptpLab) -> None:
        self._forged: set[bytes] = set()
        self.lab = lab
        super().__init__(lab)

    def genuine(self, protocol: int = 0) -> list[Frame]:
        """What the peer itself has sent."""
        return [
            frame
            for frame in self.frames
            if frame.up and (not protocol or frame.protocol == protocol) and frame.ethernet[34:] not in self._forged
        ]

    def number(self) -> int:
        """The newest of the peer's sequence numbers."""
        return int.from_bytes(self.genuine()[-1].ethernet[42:46], "big")

    def count(self) -> int:
        """The newest of the peer's coherency counts."""
        return int.from_bytes(self.genuine(COMPRESSED)[-1].ppp[2:4], "big") & 0xFFF

    def forge(
        self,
        frame: bytes,
        number: int | None = -1,
        *,
        acknowledgment: int | None = None,
        call: int = -1,
        source: str = PAC,
    ) -> None:
        """Send npppyd a frame; by default its number is the next; None: it has none."""
        if number == -1:
            number = (self.number() + 1) & 0xFFFFFFFF
        flags = 0x2001 | (0 if number is None else 0x1000) | (0 if acknowledgment is None else 0x80)
        packet = struct.pack("!HHHH", flags, 0x880B, len(frame), self.lab.call_ids()[0] if call == -1 else call)
        packet += b"".join(value.to_bytes(4, "big") for value in (number, acknowledgment) if value is not None)
        self.play(packet + frame, source)

    def play(self, packet: bytes, source: str = PAC) -> None:
        """Send npppyd a packet of GRE."""
        self._forged.add(packet)
        with raw(self.lab.sub, source, PNS) as sock:
            sock.send(packet)


def numbers(wire: socket.socket) -> tuple[int, int, int]:
    """Of what a packet socket has seen: the peer's highest number, our highest acknowledgment, and how many were alone.

    Numbers that go round are of no concern.
    """
    sent = acknowledged = alone = 0
    ours = bytes(map(int, PNS.split(".")))
    wire.settimeout(0.2)
    while True:
        try:
            frame = wire.recv(65535)
        except TimeoutError:
            return sent, acknowledged, alone
        if frame[12:14] != b"\x08\x00" or frame[23] != 47:
            continue
        flags = int.from_bytes(frame[34:36], "big")
        values = [int.from_bytes(frame[at : at + 4], "big") for at in (42, 46)]
        if frame[26:30] != ours:
            sent = max(sent, values[0] if flags & 0x1000 else 0)
        elif flags & 0x80:
            alone += not flags & 0x1000
            acknowledged = max(acknowledged, values[1] if flags & 0x1000 else values[0])
