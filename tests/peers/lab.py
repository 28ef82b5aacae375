"""Real peers around npppyd: a subscriber's site, the concentrator and what lies beyond, a network namespace each.

    lan ---- sub ==== bng ---- net
     lan0 home0  sub0 eth1  up0 host0

pppd dials from `sub`, `lan` is behind it; npppyd serves on eth1 of `bng`; `net` is the world.  All waiting is polling
with a deadline.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from npppy.control.client import Connection
from npppy.pipex.ebpf.layout import COUNT_RECORD, COUNTERS, U32
from npppy.pipex.ebpf.maps import default_pins
from npppy.pipex.ebpf.pins import editions
from npppy.pipex.ebpf.plumbing import ethtool
from tests.peers.namespace import inside
from tests.peers.starter import Started

#: Seconds that anything may take, with all suites side by side; an emulated guest is 10 to 20 times slower.
PATIENCE = 300.0 if os.environ.get("NPPPY_GUEST") == "tcg" else 100.0

#: A session that LCP ends is gone a second after the peer's last word, and not after three.
QUICK = "lcp-timeout 1"

#: The concentrator's address on its shared interface, and both ends of the link to the world.
OURS, UPLINK, WORLD = "10.64.0.1", "192.0.2.1", "192.0.2.2"
#: The network behind the user "office", the subscriber's end of it, and a host there.
OFFICE, HOME, HOST = "10.65.0.64/28", "10.65.0.65", "10.65.0.66"

USERS = r"""
alice:\
	:password=wonderland:
bob:\
	:password=builder:\
	:framed-ip-address=10.65.0.7:
chooser:\
	:password=mine:\
	:framed-ip-address=255.255.255.255:
office:\
	:password=red\072brick:\
	:framed-ip-address=10.65.0.64:\
	:framed-ip-netmask=255.255.255.240:
"""

_CONFIG = """
{top}
tunnel ACCESS protocol pppoe {{
    listen on interface {listen}
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
bind tunnel from ACCESS authenticated by LOCAL to tun0
"""

_ETH_P_ALL = 3
# asm-generic/socket.h
SO_RCVBUFFORCE = 33
#: <linux/ethtool.h>
ETHTOOL_STXCSUM = 0x17
ETHTOOL_SGRO = 0x2C

#: How data may be carried, by the name of a test's parameter, and what the tunnel says then.  "user" does it in Python
#: with the kernel's own forwarding, and so as it is without pipex.
MODES = {
    "user": "pipex user",
    "ebpf": "pipex ebpf",
    "fast": "pipex ebpf\n    pipex-forward fast",
}
#: For tests of more than those that the fixture has by itself, or of fewer.
EVERY_MODE = pytest.mark.parametrize("lab", MODES, indirect=True)
KERNEL_MODES = pytest.mark.parametrize("lab", ["ebpf", "fast"], indirect=True)

#: Whether the kernel tells what drivers can do with XDP: since Linux 6.3.  Before, npppyd sends nothing by XDP into
#: virtual wires, since it cannot know whether they take it.
TELLS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 3)

_indexes = itertools.count(1000)

T = TypeVar("T")


def until(condition: Callable[[], T], what: str) -> T:
    """Wait until *condition* is true, and return what it says."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.02)
    return result


def written(log: Path) -> str:
    """The whole lines of a file to which something writes; none while it does not exist.

    A write that crosses a page is seen up to there before its end is.
    """
    text = log.read_text(errors="replace") if log.exists() else ""
    return text[: text.rfind("\n") + 1]


class Process(Protocol):
    """What a test needs of subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


#: Starts a program with these arguments in a namespace; it writes to the file.
Start = Callable[[str, Sequence[str], Path], Process]


def popen(namespace: str, argv: Sequence[str], log: Path) -> Process:
    with log.open("wb") as out:
        # nsenter becomes the program: its process is the one that is ended.  `ip netns exec` would give it a file
        # system of pins of its own, too.
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{namespace}", *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


class Program:
    """A process, and the log file that it writes."""

    def __init__(
        self,
        name: str,
        namespace: str,
        argv: Sequence[str],
        log: Path,
        start: Start = popen,
    ) -> None:
        self.name = name
        self._log = log
        self.process = start(namespace, argv, log)

    @property
    def log(self) -> str:
        return written(self._log) if self.running else self._log.read_text(errors="replace")

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What it wrote as JSON, an object a line."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def says(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until the log has *pattern*, so many times; returns the last of them."""
        return self.writes(lambda: self.log, pattern, times, f"the log of {self.name}")

    def writes(self, read: Callable[[], str], pattern: str, times: int, what: str) -> re.Match[str]:
        """The same of anything that it writes."""

        def found() -> re.Match[str] | None:
            running = self.running
            matches = list(re.finditer(pattern, read()))
            if len(matches) >= times:
                return matches[-1]
            assert running, f"{self.name} has exited with {self.process.returncode}, and {what} lacks {pattern!r}"
            return None

        match = until(found, f"{pattern!r} in {what}")
        assert match is not None
        return match

    def exits(self) -> int:
        """Wait for the end of the process; returns its status."""
        until(lambda: not self.running, f"the end of {self.name}")
        return self.process.wait()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process by a signal; returns its status."""
        self.send(number)
        return self.exits()

    def kill(self) -> None:
        if self.running:
            self.process.kill()
        self.process.wait()


class Exit(enum.IntEnum):
    """pppd(8), EXIT STATUS."""

    SIGNALLED = 5
    IDLE = 12
    CONNECT_TIME = 13
    #: By a PADT, or because the interface went away.
    HANGUP = 16
    AUTHENTICATION_FAILED = 19


class Pppd(Program):
    """pppd, which dials."""

    #: Waits until npppyd says that the session with an address is there.
    starts: Callable[[str], object]

    def up(self) -> Pppd:
        """Wait until it has an address, and npppyd takes its packets: CCP may take longer than IPCP."""
        self.says(r"remote IP address")
        self.starts(self.address)
        return self

    @property
    def interface(self) -> str:
        return self.says(r"Using interface (\S+)")[1]

    @property
    def address(self) -> str:
        return self.says(r"local  IP address (\S+)")[1]

    @property
    def session_id(self) -> int:
        return int(self.says(r"PPP session is (\d+)")[1])


class Npppyd(Program):
    def is_sound(self) -> None:
        """Whatever it saw, it has made no mistake of its own."""
        assert "Traceback" not in self.log
        assert " ERROR " not in self.log


class Lab:
    """The namespaces, npppyd and the pppds of one test."""

    def __init__(self, where: Path, number: int, mode: str) -> None:
        self.where = where
        #: One of MODES.
        self.mode = mode
        self.sub, self.bng, self.net, self.lan = (f"{name}{number}" for name in ("sub", "bng", "net", "lan"))
        self.programs: list[Program] = []
        self.socket = where / "npppyd.sock"
        self.daemon: Npppyd
        self._sockets = contextlib.ExitStack()
        self._conf = where / "npppd.conf"

    def build(self) -> None:
        for namespace in (self.sub, self.bng, self.net, self.lan):
            run("ip", "netns", "add", namespace)
        self.plug("eth1", self.sub, "sub0")
        self.plug("up0", self.net, "host0")
        self.ip(
            self.bng,
            "link set lo up",
            f"address add {UPLINK}/24 dev up0",
        )
        self.ip(
            self.sub,
            veth("home0", "lan0", self.lan),
            "link set lo up",
            "link set home0 up",
        )
        self.ip(self.lan, "link set lo up", "link set lan0 up")
        self.ip(
            self.net,
            "link set lo up",
            f"address add {WORLD}/24 dev host0",
            f"route add default via {UPLINK}",
        )
        for namespace in (self.sub, self.bng):
            self.sysctl(namespace, "net/ipv4/ip_forward", 1)
        for namespace in (self.sub, self.bng, self.net, self.lan):
            # Every ICMP error is to be seen.
            self.sysctl(namespace, "net/ipv4/icmp_ratelimit", 0)
        for name in ("all", "default"):
            # Two subscribers, whom it would refer to each other, are on one interface, but not on one wire.
            self.sysctl(self.bng, f"net/ipv4/conf/{name}/send_redirects", 0)
        if self.mode == "fast":
            # A virtual wire carries checksums that are yet to be completed, which nothing on the way of such packets
            # does.  Those of a network card are complete.
            with inside(self.net):
                ethtool("host0", ETHTOOL_STXCSUM, 0)

    def plug(self, name: str, namespace: str, other: str) -> None:
        """Join npppyd's interface *name* to *other*, and switch both on."""
        self.ip(self.bng, veth(name, other, namespace), f"link set {name} up")
        self.ip(namespace, f"link set {other} up")
        # A virtual Ethernet device takes frames that XDP redirects to it only if its other end has NAPI, which comes
        # with GRO.  Network cards have it.
        with inside(namespace):
            ethtool(other, ETHTOOL_SGRO, 1)

    def close(self) -> None:
        for program in reversed(self.programs):
            program.kill()
        self._sockets.close()
        for namespace in (self.sub, self.bng, self.net, self.lan):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
        # Nobody told npppyd to end.
        shutil.rmtree(self.pins, ignore_errors=True)

    #: Names of what real peers may send, and would seem to be broken.
    tolerated: frozenset[str] = frozenset()

    def is_sound(self) -> None:
        """No npppyd of this test has made a mistake, and real peers have sent nothing that breaks its format."""
        daemons = [program for program in self.programs if isinstance(program, Npppyd)]
        for daemon in daemons:
            daemon.is_sound()
        if daemons and daemons[-1].running:
            assert self.status()["malformed"].keys() <= self.tolerated

    def logs(self) -> Iterator[tuple[str, str]]:
        """(program, what it wrote) of all that ran."""
        for program in self.programs:
            yield program.name, program.log

    # npppyd.

    def start(self, tunnel: str = "", *, ipcp: str = "", top: str = "", users: str = USERS) -> None:
        """Start npppyd with these lines in the configuration, and wait until it serves."""
        self.rewrite(tunnel, ipcp=ipcp, top=top)
        path = self.where / "npppd-users"
        path.write_text(users)
        path.chmod(0o600)
        self.start_again()

    def rewrite(self, tunnel: str = "", *, ipcp: str = "", top: str = "", listen: str = "eth1") -> None:
        """Write the configuration."""
        lines = "\n    ".join(line.strip() for line in tunnel.strip().splitlines())
        self._conf.write_text(_CONFIG.format(top=top, tunnel=lines, ipcp=ipcp, listen=listen, pipex=MODES[self.mode]))

    def start_again(self) -> None:
        """Start npppyd with the configuration as it is."""
        number = sum(isinstance(program, Npppyd) for program in self.programs)
        name = f"npppyd-{number}"
        arguments = ["-d", "-v", "-f", str(self._conf), "-s", str(self.socket)]
        self.daemon = Npppyd(name, self.bng, arguments, self.where / f"{name}.log", Started)
        self.programs.append(self.daemon)
        self.daemon.says(r"npppyd \S+ started")

    def ask(self, command: str, **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows and the result of a command on the control socket; npppyctl's own start costs half a second."""
        connection = Connection(str(self.socket))
        try:
            answer = connection.ask({"command": command, **fields})
            rows = [row for part in answer for row in part]
            return rows, answer.done
        finally:
            connection.close()

    def sessions(self, **filters: Any) -> list[dict[str, Any]]:
        """The sessions that are up, or those of a filter."""
        return self.ask("session", filters=filters)[0]

    def clear(self, **filters: Any) -> None:
        self.ask("clear", filters=filters)

    def status(self) -> dict[str, Any]:
        return self.ask("daemon")[1]

    def session(self) -> dict[str, Any]:
        """The one session that is up; waits for it."""
        rows = until(self.sessions, "a session")
        assert len(rows) == 1
        return rows[0]

    @property
    def way(self) -> str:
        """How the programs count what they carry: see :meth:`paths`."""
        if self.mode == "fast" and not TELLS:
            return "STACK"
        return {"user": "USER", "ebpf": "STACK", "fast": "FAST"}[self.mode]

    @property
    def pins(self) -> Path:
        """Where npppyd pins its maps."""
        return default_pins(str(self.socket))

    def paths(self) -> Counter[str]:
        """What the programs have counted, in packets, by the names of enum pipex_counter; npppyd has no part in it."""
        found: Counter[str] = Counter()
        if self.mode != "user":
            with contextlib.closing(editions(self.pins)[-1].map("counts")) as counts:
                for index, name in enumerate(COUNTERS):
                    pairs = COUNT_RECORD.iter_unpack(counts.get(U32.pack(index)) or b"")
                    found[name] = sum(packets for packets, _ in pairs)
        return found

    def entries(self) -> dict[str, int]:
        """How many sessions, and addresses and networks of sessions, the pinned maps hold."""
        with contextlib.ExitStack() as stack:
            maps = {
                name: stack.enter_context(contextlib.closing(editions(self.pins)[-1].map(name)))
                for name in ("sessions", "hosts4", "nets4", "nets6", "slots")
            }
            # An array has all its elements; those in use have a generation.
            return {
                name: sum(name != "slots" or any(value[:4]) for _, value in item.items()) for name, item in maps.items()
            }

    def is_empty(self) -> bool:
        """Nothing is left of any session: no half-open one, address, timer or record, and no entry in the kernel."""
        status = self.status()
        held = [status[what] for what in ("sessions", "half_open", "bound", "timers", "addresses", "journal")]
        return not any(held) and (self.mode == "user" or not any(self.entries().values()))

    def empties(self) -> None:
        try:
            until(self.is_empty, "nothing is left of the sessions")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.status()}, {self.sessions(state='any')}") from None

    def ctl(self, *words: str, status: int = 0) -> str:
        """npppyctl itself."""
        argv = [sys.executable, "-m", "npppy.ctl", "-s", str(self.socket), *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == status, done.stderr
        return done.stdout

    def program(self, name: str, namespace: str, *argv: str) -> Program:
        """Any other program, which runs until it is stopped."""
        program = Program(name, namespace, argv, self.where / f"{name}.log")
        self.programs.append(program)
        return program

    def ended(self, cause: str, times: int = 1) -> str:
        """Wait for the TUNNELUSAGE line of a session that ended for *cause*; returns its reason."""
        return self.daemon.says(rf'TUNNELUSAGE .* cause={cause} reason="(.*)"', times)[1]

    # The subscriber.

    def dial(
        self,
        *options: str,
        user: str = "alice",
        password: str = "wonderland",
        link: Sequence[str] = ("plugin", "rp-pppoe.so", "sub0"),
        namespace: str = "",
    ) -> Pppd:
        """Start pppd, which goes on by itself."""
        number = sum(isinstance(program, Pppd) for program in self.programs)
        argv = ["pppd", *link, "user", user, "password", password, "noauth", "nodetach", "debug", "nodefaultroute"]
        # It is not to look up the machine's name, nor are the machine's scripts to write its resolv.conf.
        argv += ["noipdefault", "ip-up-script", "/bin/true", "ip-down-script", "/bin/true", *options]
        starts = self.starting()
        pppd = Pppd(f"pppd-{number}", namespace or self.sub, argv, self.where / f"pppd-{number}.log")
        pppd.starts = starts
        self.programs.append(pppd)
        return pppd

    def starting(self) -> Callable[[str], object]:
        """For who is about to dial: what waits until the session with an address is there."""
        before = self.daemon, len(self.daemon.log)

        def starts(address: str) -> object:
            daemon, begin = before if before[0] is self.daemon else (self.daemon, 0)
            line = re.compile(rf"TUNNELSTART .* ip={re.escape(address)} ")
            return until(lambda: line.search(daemon.log, begin), f"npppyd has a session with {address}")

        return starts

    def dial_up(self, *options: str, user: str = "alice", password: str = "wonderland") -> Pppd:
        """Dial, and reach the world through the session."""
        pppd = self.dial(*options, user=user, password=password).up()
        self.ip(self.sub, f"route replace default dev {pppd.interface}")
        return pppd

    def dial_home(self, *options: str) -> Pppd:
        """Dial as "office", and give `lan` a host of the network behind."""
        pppd = self.dial_up(*options, user="office", password="red:brick")
        self.ip(self.sub, f"address add {HOME}/28 dev home0")
        self.ip(self.lan, f"address add {HOST}/28 dev lan0", f"route add default via {HOME}")
        return pppd

    # Namespaces.

    def ip(self, namespace: str, *lines: str) -> None:
        """Commands of iproute2, without the "ip"."""
        run("ip", "-n", namespace, "-batch", "-", input="\n".join(lines) + "\n")

    def ping(self, namespace: str, address: str, *options: str, count: int = 1) -> str:
        """So many pings, each answered before the next is sent.  Returns what the last says."""
        # Not one ping -c: with -w it sends another for an answer that takes longer than the interval, and tests count
        # what arrives; without, it waits for the last answer for no longer than the interval.
        for _ in range(count):
            done = self.try_ping(namespace, address, "-W", "20", *options)
            assert " 1 received" in done, done
        return done

    def try_ping(self, namespace: str, address: str, *options: str, count: int = 1) -> str:
        argv = ["ip", "netns", "exec", namespace, "ping", "-n", "-c", str(count), "-i", "0.1", "-W", "5"]
        argv += [*options, address]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)
        return done.stdout + done.stderr

    def sysctl(self, namespace: str, name: str, value: int) -> None:
        with inside(namespace):
            Path("/proc/sys", name).write_text(str(value))

    def has_route(self, namespace: str, network: str) -> bool:
        return any(line.split()[:1] == [network] for line in run("ip", "-n", namespace, "route").splitlines())

    def has_link(self, namespace: str, name: str) -> bool:
        return any(link["ifname"] == name for link in json.loads(run("ip", "-n", namespace, "-j", "link", "show")))

    def mac(self, namespace: str, name: str) -> bytes:
        (link,) = json.loads(run("ip", "-n", namespace, "-j", "link", "show", "dev", name))
        return bytes.fromhex(link["address"].replace(":", ""))

    def listen(self, namespace: str, address: str = "0.0.0.0") -> socket.socket:
        """A TCP server that keeps the SYN of its connections."""
        with inside(namespace):
            listener = socket.create_server((address, 0))
        self._sockets.enter_context(listener)
        listener.settimeout(PATIENCE)
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN, 1)
        return listener

    def connect(
        self, namespace: str, address: str, listener: socket.socket, first: bytes = b""
    ) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection from *namespace*: the caller's, the listener's.

        The listener may only see it with the *first* octets that the caller sends.
        """
        with inside(namespace):
            caller = self._sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        caller.settimeout(PATIENCE)
        caller.connect((address, listener.getsockname()[1]))
        caller.sendall(first)
        called = self._sockets.enter_context(listener.accept()[0])
        called.settimeout(PATIENCE)
        if first:
            assert called.recv(len(first), socket.MSG_WAITALL) == first
        return caller, called

    def finally_(self, callback: Callable[[], None]) -> None:
        """To be called at the end of the test, before what exists by now is closed."""
        self._sockets.callback(callback)

    def datagrams(self, namespace: str) -> socket.socket:
        """An UDP socket of a namespace."""
        with inside(namespace):
            sock = self._sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(PATIENCE)
        return sock

    def wire(self, namespace: str, name: str, ethertype: int = _ETH_P_ALL) -> socket.socket:
        """A packet socket on an interface, for all that passes, or all of a kind that arrives."""
        with inside(namespace):
            sock = self._sockets.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
            sock.bind((name, ethertype))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        sock.settimeout(PATIENCE)
        return sock


# linux/tcp.h
_TCP_SAVE_SYN = 27
_TCP_SAVED_SYN = 28


def announced_mss(called: socket.socket) -> int:
    """The MSS in the SYN that a connection of :meth:`Lab.listen` came from."""
    packet = called.getsockopt(socket.IPPROTO_TCP, _TCP_SAVED_SYN, 256)
    options = packet[(packet[0] & 15) * 4 + 20 :]
    # Linux has it first.
    kind, length, mss = struct.unpack_from("!BBH", options)
    assert (kind, length) == (2, 4)
    return int(mss)


def veth(name: str, peer: str, namespace: str) -> str:
    """The command that makes a wire to another namespace.

    The kernel sees at once that a link is up only where it has another index than its peer; else it takes a second, in
    which all is lost.
    """
    ours = next(_indexes)
    return f"link add {name} index {ours} type veth peer name {peer} index {next(_indexes)} netns {namespace}"


def run(*argv: str, input: str | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, input=input, timeout=PATIENCE)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout
