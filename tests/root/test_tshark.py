"""Every kind of frame that npppyd sends, as tshark reads it: nothing malformed, no warning, and none missing.

npppyd runs on one end of a wire, and the test is two hosts on the other end: it speaks by frames made by hand, and
writes down all that comes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import md5
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import pytest

from npppy.pipex.ebpf.maps import default_pins
from npppy.ppp import mschap, options, proto
from npppy.ppp.options import Option
from npppy.pppoe.codec import BROADCAST, DISCOVERY, SESSION, Code, Discovery, Tag, decode_discovery, session_frame
from tests.unit.ippackets import ip, tcp, words

pytestmark = pytest.mark.root

PATIENCE = 60.0
ACCESS = bytes.fromhex("02ac00000001")
HOST = bytes.fromhex("020000000101")
_ETH_P_ALL = 3

CONFIG = """
tunnel PAP protocol pppoe {
    listen on interface acc
    pppoe-ac-name "npppy"
    pppoe-service-name "pap"
    pppoe-accept-any-service no
    authentication-method pap
    lcp-timeout 1
    ipcp-timeout 1
    lcp-keepalive-interval 1
    lcp-keepalive-retry-interval 5
    tcp-mss-adjust yes
}
tunnel MD5 protocol pppoe {
    listen on interface acc
    pppoe-service-name "md5"
    pppoe-accept-any-service no
    pppoe-session-limit 1
    authentication-method chap
    lcp-timeout 1
}
tunnel MS protocol pppoe {
    listen on interface acc
    pppoe-service-name "ms"
    pppoe-accept-any-service no
    authentication-method mschapv2
    mppe no
    mru 1500
    lcp-timeout 1
}
ipcp POOL {
    pool-address 10.64.0.2-10.64.0.254
    dns-servers 9.9.9.9 149.112.112.112
    nbns-servers 10.64.1.1
}
interface tun0 address 10.64.0.1 ipcp POOL
authentication LOCAL type local {
    users-file "npppd-users"
}
bind tunnel from PAP authenticated by LOCAL to tun0
bind tunnel from MD5 authenticated by LOCAL to tun0
bind tunnel from MS authenticated by LOCAL to tun0
"""

LCP, PAP, CHAP, IPCP, IPV6CP = proto.LCP, proto.PAP, proto.CHAP, proto.IPCP, proto.IPV6CP
#: A Protocol field that nobody has.
UNKNOWN = 0x80EF
(REQUEST, ACK, NAK, REJECT, TERMINATE, TERMINATED, CODE_REJECT, PROTOCOL_REJECT, ECHO, ECHOED) = range(1, 11)
#: By the names of the services that ask for them.
METHODS = ("pap", "md5", "ms")

#: PPP packets by protocol and code, for each method where that matters; the rest below by its name.
KINDS = {
    "PADO",
    "PADO with PPP-Max-Payload",
    "PADS",
    "PADS with PPP-Max-Payload",
    "PADS with Service-Name-Error",
    "PADS with AC-System-Error",
    "PADS with Generic-Error",
    "PADT",
    *(f"LCP {code}" for code in range(REQUEST, ECHOED + 1)),
    *(f"IPCP {code}" for code in range(REQUEST, CODE_REJECT + 1)),
    "PAP 2",
    "PAP 3",
    *(f"CHAP {code} {service}" for code in (1, 3, 4) for service in ("md5", "ms")),
    "UDP",
    "TCP SYN",
    "first fragment",
    "last fragment",
    "ICMP host unreachable",
    "ICMP fragmentation needed",
}


@pytest.fixture
def wire(netns: None, tmp_path: Path) -> Iterator[Wire]:
    """npppyd serves on acc; the test is at the other end."""
    for command in (
        f"link add acc address {ACCESS.hex(':')} mtu 1508 type veth peer cpe address {HOST.hex(':')} mtu 1508",
        "link set lo up",
        "link set acc up",
        "link set cpe up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    # Both peers are behind one device, of which the kernel would tell them.
    for which in ("all", "default"):
        Path(f"/proc/sys/net/ipv4/conf/{which}/send_redirects").write_text("0")
    (tmp_path / "npppd.conf").write_text(CONFIG)
    users = tmp_path / "npppd-users"
    users.write_text("alice:password=wonderland:\n")
    users.chmod(0o600)
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "npppy.daemon", "-d", "-v", "-f", "npppd.conf", "-s", "npppyd.sock"]
    with log.open("wb") as out:
        daemon = subprocess.Popen(argv, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    wire = Wire()
    try:
        deadline = time.monotonic() + PATIENCE
        while "started" not in log.read_text():
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield wire
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE) == 0
        assert "Traceback" not in log.read_text()
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        shutil.rmtree(default_pins(str(tmp_path / "npppyd.sock")), ignore_errors=True)
        wire.socket.close()
        print(log.read_text())


class Wire:
    """The subscribers' end of the wire, and all that npppyd has sent on it."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.bind(("cpe", _ETH_P_ALL))
        self.frames: list[bytes] = []
        #: The method of each session, by SESSION_ID.
        self.methods: dict[int, str] = {}
        self._unread: list[bytes] = []

    def hear(self, wanted: Callable[[bytes], bool], what: str) -> bytes:
        """The next frame that is *wanted*; those before it can still be heard."""
        for frame in self._unread:
            if wanted(frame):
                self._unread.remove(frame)
                return frame
        deadline = time.monotonic() + PATIENCE
        while True:
            left = deadline - time.monotonic()
            assert left > 0, f"not heard: {what}"
            self.socket.settimeout(left)
            try:
                frame = self.socket.recv(4096)
            except TimeoutError:
                continue
            if frame[6:12] == ACCESS and int.from_bytes(frame[12:14], "big") in (DISCOVERY, SESSION):
                self.frames.append(frame)
                if wanted(frame):
                    return frame
                self._unread.append(frame)

    def discover(self, code: Code, *tags: tuple[int, bytes]) -> Discovery:
        """Send a request, and hear the answer."""
        destination = BROADCAST if code == Code.PADI else ACCESS
        self.socket.send(Discovery(destination, HOST, code, 0, tags).encode())
        answer = {Code.PADI: Code.PADO, Code.PADR: Code.PADS}[code]

        def is_answer(frame: bytes) -> bool:
            return int.from_bytes(frame[12:14], "big") == DISCOVERY and decode_discovery(frame).code == answer

        return decode_discovery(self.hear(is_answer, answer.name))

    def offer(self, method: str, *tags: tuple[int, bytes]) -> tuple[int, bytes]:
        """Have a service offered; returns the cookie to ask for it with."""
        cookie = self.discover(Code.PADI, (Tag.SERVICE_NAME, method.encode()), *tags).first(Tag.AC_COOKIE)
        assert cookie is not None
        return Tag.AC_COOKIE, cookie


class Peer:
    """A subscriber: a session made by hand, up to LCP."""

    def __init__(self, wire: Wire, method: str, *more: tuple[int, bytes], mru: int = 1492) -> None:
        self._wire = wire
        self._identifier = 0
        self._magic = os.urandom(4)
        tags = [(Tag.SERVICE_NAME, method.encode()), (Tag.HOST_UNIQ, os.urandom(8)), (Tag.RELAY_SESSION_ID, b"relay")]
        pads = wire.discover(Code.PADR, *tags, wire.offer(method, *tags[1:], *more), *more)
        self._session_id = pads.session_id
        assert self._session_id
        wire.methods[self._session_id] = method
        self._method = method
        self.ask(LCP, [(proto.OPT_MRU, b"\x05\xdc"), (proto.OPT_ACCM, bytes(4)), (proto.OPT_PFC, b"")], REJECT)
        self.ask(LCP, [(proto.OPT_MRU, b"\x23\x28"), (proto.OPT_MAGIC, bytes(4))], NAK)
        self.ask(LCP, [(proto.OPT_MRU, mru.to_bytes(2, "big")), (proto.OPT_MAGIC, self._magic)], ACK)
        self.grant(LCP)

    def send(self, protocol: int, payload: bytes) -> None:
        ppp = protocol.to_bytes(2, "big") + payload
        self._wire.socket.send(session_frame(ACCESS, HOST, self._session_id, ppp))

    def say(self, protocol: int, code: int, data: bytes = b"", identifier: int | None = None) -> None:
        """Send a packet of a control protocol."""
        if identifier is None:
            self._identifier += 1
            identifier = self._identifier
        self.send(protocol, bytes((code, identifier)) + (4 + len(data)).to_bytes(2, "big") + data)

    def hear(self, protocol: int, code: int) -> tuple[int, bytes]:
        """Identifier and data of the next packet of its kind."""
        packet = self._hear(protocol, lambda packet: packet[0] == code, f"0x{protocol:04x} {code}")
        return packet[1], packet[4 : packet[2] << 8 | packet[3]]

    def hear_ip(self, wanted: Callable[[bytes], bool], what: str) -> bytes:
        return self._hear(proto.IP, wanted, what)

    def _hear(self, protocol: int, wanted: Callable[[bytes], bool], what: str) -> bytes:
        head = struct.pack("!HBBH", SESSION, 0x11, 0, self._session_id)

        def is_it(frame: bytes) -> bool:
            return frame[12:18] == head and frame[20:22] == protocol.to_bytes(2, "big") and wanted(frame[22:])

        return self._wire.hear(is_it, what)[22:]

    def ask(self, protocol: int, wishes: list[Option], expected: int) -> list[Option]:
        """Send a Configure-Request; returns what the answer says."""
        self.say(protocol, REQUEST, options.encode(wishes))
        return options.decode(self.hear(protocol, expected)[1])

    def grant(self, protocol: int) -> None:
        identifier, data = self.hear(protocol, REQUEST)
        self.say(protocol, ACK, data, identifier)

    def log_in(self, password: bytes = b"wonderland") -> None:
        """Authenticate as "alice", and hear how it went."""
        good = password == b"wonderland"
        name = b"alice"
        if self._method == "pap":
            self.say(PAP, 1, bytes((len(name),)) + name + bytes((len(password),)) + password)
            self.hear(PAP, 2 if good else 3)
            return
        identifier, data = self.hear(CHAP, 1)
        challenge = data[1:17]
        if self._method == "md5":
            value = md5(bytes((identifier,)) + password + challenge).digest()
        else:
            ours = os.urandom(16)
            value = ours + bytes(8) + mschap.nt_response(challenge, ours, name, password) + b"\0"
        self.say(CHAP, 2, bytes((len(value),)) + value + name, identifier)
        self.hear(CHAP, 3 if good else 4)

    def come_up(self) -> str:
        """Log in and open IPCP; returns the address."""
        self.log_in()
        kinds = (proto.OPT_ADDRESS, proto.OPT_DNS1, proto.OPT_DNS2, proto.OPT_NBNS1)
        self.ask(IPCP, [(proto.OPT_ADDRESS, bytes(4)), (2, b"\x00\x2d\x0f\x01")], REJECT)
        given = self.ask(IPCP, [(kind, bytes(4)) for kind in kinds], NAK)
        self.ask(IPCP, given, ACK)
        self.grant(IPCP)
        return str(IPv4Address(dict(given)[proto.OPT_ADDRESS]))

    def ends(self) -> None:
        """Agree to the end, and hear of it."""
        identifier, _ = self.hear(LCP, TERMINATE)
        self.say(LCP, TERMINATED, b"", identifier)
        self.gone()

    def gone(self) -> None:
        padt = Discovery(HOST, ACCESS, Code.PADT, self._session_id).encode()
        self._wire.hear(lambda frame: frame == padt, "PADT")

    def echo(self) -> None:
        """Ask, and be asked."""
        self.say(LCP, ECHO, self._magic + b"still there?")
        self.hear(LCP, ECHOED)
        identifier, _ = self.hear(LCP, ECHO)
        self.say(LCP, ECHOED, self._magic, identifier)


def udp(source: str, destination: str, size: int, flags: int = 0) -> bytes:
    """An IP packet of *size* octets, with a right UDP checksum."""
    head = struct.pack("!HHHH", 40000, 40001, size - 20, 0)
    pseudo = IPv4Address(source).packed + IPv4Address(destination).packed + struct.pack("!HH", 17, size - 20)
    segment = head + bytes(size - 28)
    check = (0xFFFF ^ words(pseudo + segment)).to_bytes(2, "big")
    return ip(source, destination, segment[:6] + check + segment[8:], flags=flags)


def refuse(wire: Wire) -> None:
    """Requests that get no session, and logins that fail."""
    cookie = wire.offer("pap")
    for names, error in (
        ((b"other",), Tag.SERVICE_NAME_ERROR),
        ((b"pap", b"ms"), Tag.GENERIC_ERROR),
    ):
        pads = wire.discover(Code.PADR, cookie, *((Tag.SERVICE_NAME, name) for name in names))
        assert pads.session_id == 0
        assert pads.first(error)
    for method in METHODS:
        peer = Peer(wire, method)
        peer.log_in(b"guess")
        peer.ends()


def carry(near: Peer, far: Peer, source: str, destination: str) -> None:
    """Packets from one peer to the other, which takes no more than 1400 octets."""
    near.send(proto.IP, udp(source, destination, 100))
    far.hear_ip(lambda packet: packet[9] == 17, "UDP")
    near.send(proto.IP, tcp(source, destination, options=b"\x02\x04\x05\xb4"))
    far.hear_ip(lambda packet: packet[9] == 6, "TCP")
    near.send(proto.IP, udp(source, destination, 1480))
    far.hear_ip(lambda packet: packet[6:8] == b"\x20\x00", "the first fragment")
    far.hear_ip(lambda packet: packet[6] == 0 and packet[7] != 0, "the last fragment")
    near.send(proto.IP, udp(source, destination, 1480, flags=0x4000))
    near.hear_ip(lambda packet: packet[9] == 1 and packet[21] == 4, "ICMP fragmentation needed")
    near.send(proto.IP, udp(source, "10.64.0.250", 100))
    near.hear_ip(lambda packet: packet[9] == 1 and packet[21] == 1, "ICMP host unreachable")


def live(wire: Wire) -> None:
    """Sessions that come up, carry data, and end in all ways."""
    far = Peer(wire, "pap", mru=1400)
    near = Peer(wire, "ms", (Tag.PPP_MAX_PAYLOAD, b"\x05\xdc"), mru=1500)
    third = Peer(wire, "md5")
    pads = wire.discover(Code.PADR, wire.offer("md5"), (Tag.SERVICE_NAME, b"md5"))
    assert pads.first(Tag.AC_SYSTEM_ERROR)
    destination, source = far.come_up(), near.come_up()
    third.come_up()
    carry(near, far, source, destination)
    far.echo()
    # What npppyd quotes is cut where it would not fit.
    for size in (20, 1480):
        far.say(LCP, 200, bytes(size))
        far.hear(LCP, CODE_REJECT)
        far.say(IPCP, 200, bytes(size))
        far.hear(IPCP, CODE_REJECT)
        far.say(UNKNOWN, REQUEST, bytes(size))
        far.hear(LCP, PROTOCOL_REJECT)
    far.say(IPV6CP, REQUEST, options.encode([(1, b"12345678")]))
    far.hear(LCP, PROTOCOL_REJECT)

    far.say(IPCP, TERMINATE)
    far.hear(IPCP, TERMINATED)
    far.ends()
    near.say(LCP, PROTOCOL_REJECT, IPCP.to_bytes(2, "big") + b"\x01\x01\x00\x04")
    identifier, _ = near.hear(IPCP, TERMINATE)
    near.say(IPCP, TERMINATED, b"", identifier)
    near.ends()
    third.say(LCP, TERMINATE)
    third.hear(LCP, TERMINATED)
    third.gone()


# tshark.


class Seen(NamedTuple):
    """A frame as tshark shows it: the values of FIELDS, with commas between those of one.

    What an ICMP error quotes comes after what the frame itself has.
    """

    number: str
    malformed: str
    severity: str
    message: str
    pppoe_code: str
    session_id: str
    service_name_error: str
    ac_system_error: str
    generic_error: str
    max_payload: str
    protocol: str
    code: str
    pap: str
    chap: str
    fragment: str
    offset: str
    ip_check: str
    tcp_flags: str
    tcp_check: str
    udp_check: str
    icmp: str
    icmp_code: str
    icmp_check: str


FIELDS = (
    "frame.number",
    "_ws.malformed",
    "_ws.expert.severity",
    "_ws.expert.message",
    "pppoe.code",
    "pppoe.session_id",
    "pppoed.tags.service_name_error",
    "pppoed.tags.ac_system_error",
    "pppoed.tags.generic_error",
    "pppoed.tags.max_payload",
    "ppp.protocol",
    "ppp.code",
    "pap.code",
    "chap.code",
    "ip.flags.mf",
    "ip.frag_offset",
    "ip.checksum.status",
    "tcp.flags",
    "tcp.checksum.status",
    "udp.checksum.status",
    "icmp.type",
    "icmp.code",
    "icmp.checksum.status",
)

#: Values of _ws.expert.severity and of the checksum fields.
WARNING = 0x00600000
GOOD, NOT_CHECKED = "1", "2"


def read(frames: Iterable[bytes], path: Path) -> list[Seen]:
    """What tshark makes of frames."""
    with path.open("wb") as file:
        # Version 2.4, frames of any length, of Ethernet.
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, frame in enumerate(frames):
            file.write(struct.pack("=IIII", number, 0, len(frame), len(frame)) + frame)
    argv = ["tshark", "-r", str(path), "-n", "-T", "fields", "-E", "occurrence=a", "-E", "separator=/t"]
    for protocol in ("ip", "tcp", "udp"):
        argv += ["-o", f"{protocol}.check_checksum:TRUE"]
    # A fragment is shown as what it is, not as the packet that it completes.
    argv += ["-o", "ip.defragment:FALSE"]
    for field in FIELDS:
        argv += ["-e", field]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C.UTF-8"}, timeout=120)
    assert done.returncode == 0, done.stderr
    return [Seen(*line.split("\t")) for line in done.stdout.splitlines()]


def complaints(seen: Seen) -> list[str]:
    """All that tshark finds wrong with a frame."""
    found = []
    if seen.malformed:
        found.append("malformed")
    if any(int(severity) >= WARNING for severity in values(seen.severity)):
        found.append(f"{seen.severity}: {seen.message}")
    checks = [values(field) for field in (seen.ip_check, seen.tcp_check, seen.udp_check, seen.icmp_check)]
    # What is quoted is not checked, and a fragment has only half of what there is to check.
    if any(status not in (GOOD, NOT_CHECKED) for check in checks for status in check) or NOT_CHECKED in checks[0][:1]:
        found.append(f"checksums: {checks}")
    return found


def values(field: str) -> list[str]:
    return field.split(",") if field else []


def kind(seen: Seen, methods: dict[int, str]) -> str:
    """What of KINDS a frame is."""
    code = int(seen.pppoe_code, 0)
    if code:
        name = Code(code).name
        for tag, value in (
            ("Service-Name-Error", seen.service_name_error),
            ("AC-System-Error", seen.ac_system_error),
            ("Generic-Error", seen.generic_error),
            ("PPP-Max-Payload", seen.max_payload),
        ):
            if value:
                name += f" with {tag}"
        return name
    protocol = int(values(seen.protocol)[0], 0)
    if protocol == CHAP:
        return f"CHAP {seen.chap} {methods[int(seen.session_id, 0)]}"
    if protocol in (LCP, IPCP, PAP):
        # A reject quotes a packet, which may have a code of its own.
        return f"{proto.NAMES[protocol].upper()} {values(seen.pap if protocol == PAP else seen.code)[0]}"
    assert protocol == proto.IP
    if seen.icmp:
        assert seen.icmp == "3"
        return {"1": "ICMP host unreachable", "4": "ICMP fragmentation needed"}[seen.icmp_code]
    if seen.fragment == "1":
        return "first fragment"
    if seen.offset != "0":
        return "last fragment"
    return "TCP SYN" if seen.tcp_flags else "UDP"


@pytest.fixture
def tshark() -> None:
    if not shutil.which("tshark"):
        pytest.skip("needs tshark")


def test_every_frame(tshark: None, wire: Wire, tmp_path: Path) -> None:
    refuse(wire)
    live(wire)
    rows = read(wire.frames, tmp_path / "npppyd.pcap")
    assert len(rows) == len(wire.frames)
    wrong = {row.number: (kind(row, wire.methods), found) for row in rows if (found := complaints(row))}
    assert wrong == {}
    assert {kind(row, wire.methods) for row in rows} == KINDS


def test_tshark_sees_what_is_wrong(tshark: None, tmp_path: Path) -> None:
    """What the other test relies on."""

    def lcp(packet: bytes) -> bytes:
        return session_frame(HOST, ACCESS, 7, LCP.to_bytes(2, "big") + packet)

    def data(packet: bytes) -> bytes:
        return session_frame(HOST, ACCESS, 7, proto.IP.to_bytes(2, "big") + packet)

    good = udp("10.64.0.1", "10.64.0.2", 100)
    frames = [
        data(good),
        data(good[:10] + b"\0\0" + good[12:]),
        data(good[:-1] + b"\x55"),
        data(good[:-1]),
        lcp(b"\x01\x01\x00\x08\x01\x04\x05\xdc"),
        lcp(b"\x01\x01\x00\x08\x01\x09\x05\xdc"),
        lcp(b"\x01\x01\x00\x20\x01\x04\x05\xdc"),
        Discovery(HOST, ACCESS, Code.PADT, 7).encode(),
        Discovery(HOST, ACCESS, Code.PADO, 0, ((Tag.AC_NAME, b"npppy"),)).encode()[:-2],
    ]
    found = [bool(complaints(row)) for row in read(frames, tmp_path / "wrong.pcap")]
    assert found == [False, True, True, True, False, True, True, False, True]
