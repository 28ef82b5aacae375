"""The lab for L2TP under IPsec: clients behind a NAT, each with Debian's strongSwan, as the server has.

    lan  --\\
            sub ==== bng ---- net
    lan2 --/ NAT

Each charon has its files, its control socket among them, in a directory of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.peers.l2tp_lab import LNS, L2tpLab, Xl2tpd
from tests.peers.lab import PATIENCE, Program, inside, run, until, veth, written

CONF = Path(__file__).parent.parent.parent / "conf" / "ipsec"

SECRET = "correct horse battery staple"

#: What clients are behind, and they themselves.
GATEWAY = "192.168.7.1"
INSIDE = {"lan": "192.168.7.11", "lan2": "192.168.7.12"}

#: All that there is to configure of the daemon itself.
_STRONGSWAN = """
{include}
charon-systemd {{
    install_routes = no
    plugins {{
        vici {{
            socket = unix://{where}/vici
        }}
    }}
    filelog {{
        log {{
            path = {where}/charon.log
            default = 1
            flush_line = yes
            knl = 2
        }}
    }}
}}
"""

#: As xl2tpd's own documents have it.
_CLIENT = """
connections {{
    l2tp {{
        version = {version}
        remote_addrs = {lns}
        proposals = aes256-sha1-modp2048
        local {{
            {local}
        }}
        remote {{
            {remote}
        }}
        children {{
            l2tp {{
                mode = transport
                local_ts = dynamic[17/1701]
                remote_ts = dynamic[17/1701]
                esp_proposals = {esp}
            }}
        }}
    }}
}}
secrets {{
    ike-lns {{
        secret = "{secret}"
    }}
}}
"""

_NAT = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "sub0" masquerade
    }
}
"""


class Charon(Program):
    """strongSwan's daemon, and swanctl for it."""

    def __init__(self, name: str, namespace: str, where: Path, include: str) -> None:
        (where / "strongswan.conf").write_text(_STRONGSWAN.format(where=where, include=include))
        self.where = where
        self._environment = {**os.environ, "STRONGSWAN_CONF": str(where / "strongswan.conf"), "SWANCTL_DIR": str(where)}
        argv = ["env", *(f"{key}={self._environment[key]}" for key in ("STRONGSWAN_CONF", "SWANCTL_DIR"))]
        super().__init__(name, namespace, [*argv, "charon-systemd"], where / "log")
        until((where / "vici").exists, f"the control socket of {name}")

    @property
    def log(self) -> str:
        return super().log + written(self.where / "charon.log")

    def swanctl(self, *words: str) -> str:
        argv = ["swanctl", *words, "--uri", f"unix://{self.where}/vici"]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def load(self, text: str) -> None:
        """Have it take a swanctl.conf."""
        (self.where / "swanctl.conf").write_text(text)
        self.swanctl("--load-all", "--file", str(self.where / "swanctl.conf"))

    def initiate(self) -> None:
        """Have a client make its security association."""
        self.swanctl("--initiate", "--child", "l2tp", "--timeout", str(int(PATIENCE)))


class IpsecLab(L2tpLab):
    """Dials by L2TP from behind a NAT, after :meth:`secure`."""

    def __init__(self, where: Path, number: int, mode: str) -> None:
        super().__init__(where, number, mode)
        self.lan2 = f"lan2-{number}"
        self.server: Charon

    def build(self) -> None:
        super().build()
        run("ip", "netns", "add", self.lan2)
        self.ip(self.sub, veth("home1", "lan0", self.lan2), "link set home1 up")
        self.ip(self.lan2, "link set lo up", "link set lan0 up")
        for device, namespace, address in (
            ("home0", self.lan, INSIDE["lan"]),
            ("home1", self.lan2, INSIDE["lan2"]),
        ):
            self.ip(self.sub, f"address add {GATEWAY}/32 dev {device}", f"route add {address} dev {device}")
            self.ip(
                namespace,
                f"address add {address}/32 dev lan0",
                f"route add {GATEWAY} dev lan0",
                f"route add {LNS} via {GATEWAY} dev lan0",
            )
        run("ip", "netns", "exec", self.sub, "nft", _NAT)

    def close(self) -> None:
        super().close()
        subprocess.run(["ip", "netns", "delete", self.lan2], check=False, capture_output=True)

    def logs(self) -> Iterator[tuple[str, str]]:
        yield from super().logs()
        for namespace in (self.bng, self.lan, self.lan2):
            for words in (["state"], ["policy", "list", "nosock"]):
                done = subprocess.run(["ip", "-n", namespace, "xfrm", *words], capture_output=True, text=True)
                yield f"ip xfrm {words[0]} in {namespace}", done.stdout

    def directory(self, namespace: str) -> Path:
        """Where a namespace's strongSwan has its files."""
        where = self.where / f"charon-{namespace}"
        where.mkdir(exist_ok=True)
        return where

    def charon(self, namespace: str, include: str = "") -> Charon:
        """Start strongSwan as Debian configures it."""
        include = f"include /etc/strongswan.conf\n{include}"
        charon = Charon(f"charon-{namespace}", namespace, self.directory(namespace), include)
        self.programs.append(charon)
        return charon

    def certify(self, namespace: str, name: str, host: str) -> None:
        """Give the strongSwan that is to run in a namespace a certificate for *host*, and the authority's."""
        where, authority = self.directory(namespace), self.where / "ca"
        key = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-x509"]
        if not authority.with_suffix(".pem").exists():
            more = ["-keyout", f"{authority}.key", "-out", f"{authority}.pem"]
            run("openssl", "req", *key, "-subj", "/O=npppy/CN=authority", *more)
        for kind in ("x509", "x509ca", "private"):
            (where / kind).mkdir()
        shutil.copy(authority.with_suffix(".pem"), where / "x509ca" / "ca.pem")
        more = ["-keyout", f"{where}/private/{name}.pem", "-out", f"{where}/x509/{name}.pem"]
        more += ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-addext", f"subjectAltName=DNS:{host}"]
        run("openssl", "req", *key, "-subj", f"/O=npppy/CN={host}", "-addext", "basicConstraints=CA:FALSE", *more)

    def serve(self) -> Charon:
        """Start the server's strongSwan, with the files of conf/ipsec."""
        self.server = self.charon(self.bng, f"include {CONF}/strongswan.conf")
        text = (CONF / "swanctl.conf").read_text()
        assert text.count('"change me"') == 1
        # With certificates too, where there are any.
        wanted = re.sub(r"(?m)^    # (?=l2tp-cert|    |})", "    ", text) if (self.where / "ca.pem").exists() else text
        self.server.load(wanted.replace('"change me"', f'"{SECRET}"'))
        return self.server

    def secure(
        self,
        namespace: str,
        *,
        lns: str = LNS,
        version: int = 1,
        esp: str = "aes256-sha1",
        local: str = "auth = psk",
        remote: str = "auth = psk",
    ) -> Charon:
        """Give a client its security association."""
        charon = self.charon(namespace)
        charon.load(
            _CLIENT.format(version=version, lns=lns, secret=SECRET, esp=esp, local=local, remote=remote)
        )
        charon.initiate()
        return charon

    def dial_secured(self, namespace: str, **rest: str) -> Xl2tpd:
        """Dial from a client, and reach the world through the session."""
        xl2tpd = self.dial_l2tp(namespace=namespace, **rest).up()
        self.ip(namespace, f"route replace default dev {xl2tpd.interface}")
        return xl2tpd

    def associations(self) -> list[tuple[int, int]]:
        """(mark, packets) of the server's security associations by which it sends."""
        text = run("ip", "-n", self.bng, "-s", "xfrm", "state")
        found = []
        for one in re.split(r"\n(?=src )", text):
            if match := re.search(r"\n\tmark (0x[0-9a-f]+)/", one):
                packets = re.search(r"lifetime current:\s+\d+\(bytes\), (\d+)\(packets\)", one)
                assert packets, one
                found.append((int(match[1], 16), int(packets[1])))
        return sorted(found)

    def look_on(self) -> Wire:
        """Look on between the server and the world of its clients from now on."""
        return Wire(self)


class Wire:
    """What is on the wire between the server and its clients."""

    def __init__(self, lab: L2tpLab) -> None:
        self._socket = lab.wire(lab.sub, "sub0")
        self._socket.settimeout(0)

    def clear(self) -> list[bytes]:
        """What the server has sent since the last call that others can read: all but ESP, IKE and what links need."""
        found = []
        while True:
            try:
                frame, (_, _, kind, _, _) = self._socket.recvfrom(65535)
            except BlockingIOError:
                return found
            if kind != socket.PACKET_OUTGOING and not _hidden(frame):
                found.append(frame[14:])


def _hidden(frame: bytes) -> bool:
    """Whether a frame is nobody's business, or nobody can read it."""
    if frame[12:14] == b"\x08\x00":
        at, protocol = 14 + (frame[14] & 15) * 4, frame[23]
    elif frame[12:14] == b"\x86\xdd":
        at, protocol = 54, frame[20]
        # Neighbours and multicast listeners.
        if protocol == 0 or (protocol == 58 and frame[at] >= 128):
            return True
    else:
        return True
    if protocol == 17:
        return bool({500, 4500} & set(struct.unpack_from("!HH", frame, at)))
    return protocol == 50


def forge(lab: L2tpLab, namespace: str, source: str, datagrams: list[bytes]) -> None:
    """Send UDP to the server's port 1701, from an address and port 1701 that need not be ours, past all policies."""
    with inside(namespace), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for datagram in datagrams:
            udp = struct.pack("!HHHH", 1701, 1701, 8 + len(datagram), 0) + datagram
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
            raw.sendto(head + socket.inet_aton(source) + socket.inet_aton(LNS) + udp, (LNS, 0))


def send(lab: L2tpLab, namespace: str, datagrams: list[bytes]) -> None:
    """Send UDP to the server's port 1701 as a client's xl2tpd does, which may have the port too."""
    with inside(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", 1701))
        for datagram in datagrams:
            sock.sendto(datagram, (LNS, 1701))
