"""Where things are measured: subscribers, npppyd and a host beyond it, a network namespace each.

    sub ====== bng ------ net           PPPoE: hosts on sub0; else a LAC or clients there: one address, as eth1 has one
       sub0  eth1  up0  host0           With more links, there are sub1 and eth2, and so on.

Generic receive offload is on at all four ends, as NICs have it: only so do veths take frames that XDP redirects.

The namespaces have no names: they end with what uses them.  npppyd has one core to itself, the rest of us another.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Self

from npppy.control.client import Connection, ControlError
from npppy.pipex.ebpf.maps import default_pins
from npppy.pipex.ebpf.plumbing import ethtool, teardown

from .carriers import LAC, LNS, PPPOE, Carrier, Macs, Session
from .figures import ROOT, BenchError

#: Seconds that anything may take, in an emulated guest ten times as long, and so much longer for each session that is
#: to come up.
PATIENCE = 300.0 if os.environ.get("NPPPY_GUEST") == "tcg" else 30.0
PATIENCE_SESSION = 0.02
#: Seconds that npppyd is watched whether it is idle; it looks at its timers less often than that.
_GLANCE = 0.02
#: Octets that a program may write to standard error before it is read: about 6,000 lines of a log.
_PIPE = 1 << 20

#: The core of npppyd, and that of all others; the same one if there is no other.
CORES = sorted(os.sched_getaffinity(0))
OURS, THEIRS = CORES[0], CORES[-1]

#: Both ends of the link beyond npppyd, and a host behind it that does not answer.
UPLINK, GATEWAY, BEYOND = "192.0.2.1", "192.0.2.2", "198.51.100.1"
#: Behind eth1, without PPP: a router that does not answer ARP, and a network of hosts.
PLAIN_GATEWAY, PLAIN = "192.0.2.129", IPv4Network("198.18.0.0/16")

# linux/ethtool.h
SET_GRO = 0x2C

_TUNNEL = """
tunnel {name} protocol {protocol} {{
    {options}
    authentication-method {method}
    ingress-filter yes
    tcp-mss-adjust yes
    pipex {pipex}
    pipex-forward {forward}
    {keepalive}
}}
"""
_REST = """
ipcp POOL {{
    pool-address 10.64.0.0/12
    dns-servers 9.9.9.9 149.112.112.112
}}
interface tun0 address 10.64.0.1 ipcp POOL
authentication USERS type {realm}
"""
_BIND = "bind tunnel from {name} authenticated by USERS to tun0\n"
#: The realm of those in a file.
LOCAL = """local {
    users-file "users"
}"""

#: What is behind it sees the devices of its network namespace in /sys, as on a machine of its own.
_OWN_SYS = """
mount --bind /sys/fs/bpf "$0" && mount -t sysfs sysfs /sys && mount --move "$0" /sys/fs/bpf && exec "$@"
"""

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_OWN_NETWORK = "/proc/thread-self/ns/net"


def _setns(fd: int) -> None:
    if _LIBC.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """A network namespace.  Within a ``with``, this thread and what it starts are in it."""

    def __init__(self) -> None:
        self._home = os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
        if _LIBC.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        self._fd = os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
        _setns(self._home)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def __enter__(self) -> Namespace:
        _setns(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        _setns(self._home)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._home)

    def ip(self, *lines: str) -> None:
        """Commands of iproute2, without the "ip"."""
        with self:
            done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"ip: {done.stderr.strip()}")

    def mac(self, interface: str) -> bytes:
        with self, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((interface, 0))
            address: bytes = sock.getsockname()[4]
            return address


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started here runs on that core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {patience:.0f} s: {what}")
        time.sleep(0.02)


class Program:
    """A process, and what it writes to standard error."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.name = name
        self._tail: deque[bytes] = deque(maxlen=20)
        self._rest = b""
        #: What it writes to standard output.
        self.out = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            # It does not outlive us, however we end.
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            # A group of its own: an interrupt from the terminal is for us, who end it in order.
            process_group=0,
        )
        assert self.process.stderr is not None
        # Read now and then only: waking a reader up for each line would be work of the writer.
        fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, _PIPE)
        os.set_blocking(self.process.stderr.fileno(), False)

    def read(self) -> None:
        """Take what it has written since."""
        assert self.process.stderr is not None
        while part := self.process.stderr.read(_PIPE):
            *lines, self._rest = (self._rest + part).split(b"\n")
            self._tail.extend(lines)
            for line in lines:
                self.heard(line)

    def heard(self, line: bytes) -> None:
        """It has written *line*."""

    def check(self) -> None:
        """Raises :class:`BenchError` if it has ended."""
        self.read()
        if self.process.poll() is not None:
            raise self.error(f"has ended with status {self.process.returncode}")

    def error(self, what: str) -> BenchError:
        self.read()
        return BenchError(f"{self.name} {what}\n" + b"\n".join(self._tail).decode(errors="replace"))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.out.close()
        assert self.process.stderr is not None
        self.process.stderr.close()


class Npppyd(Program):
    def __init__(self, argv: Sequence[str], socket_path: Path) -> None:
        self.serving = False
        #: Sessions that have come up.
        self.started = 0
        self.socket = socket_path
        super().__init__("npppyd", argv)

    def heard(self, line: bytes) -> None:
        if b"logtype=TUNNELSTART" in line:
            self.started += 1
        elif b" started, pid " in line:
            self.serving = True

    def state(self) -> dict[str, Any]:
        """What it says of itself on its control socket."""
        try:
            connection = Connection(str(self.socket))
            try:
                answer = connection.ask({"command": "daemon"})
                for _ in answer:
                    pass
                return answer.done
            finally:
                connection.close()
        except ControlError as error:
            raise self.error(f"does not answer: {error}") from error

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def wait_idle(self) -> None:
        """Until it has nothing to do, and is not just waiting for its core."""

        def idle() -> bool:
            before = self.cpu()
            time.sleep(_GLANCE)
            # proc(5): the state is the third field, and the second may hold anything.
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state == "S" and self.cpu() == before

        until(idle, "npppyd is idle")

    def cpu(self) -> float:
        """Seconds of processor that it has used, of user and system, to the nanosecond."""
        # The clock of another process: clock_getcpuclockid(3), which the time module does not have.
        return time.clock_gettime(~self.process.pid << 3 | 2)


class Subscribers(Program):
    """npppysim with *count* sessions, which stay up once they are."""

    def __init__(self, argv: Sequence[str], count: int, server: Program, carrier: Carrier) -> None:
        self._count = count
        self._server = server
        self._carrier = carrier
        self._before = server.started if isinstance(server, Npppyd) else 0
        super().__init__("npppysim", argv)

    def _up(self) -> int:
        """Sessions that have come up, with those that there were before."""
        assert isinstance(self._server, Npppyd)
        return self._server.started

    def wait_up(self) -> None:
        def up() -> bool:
            self._server.check()
            self.check()
            return self._up() >= self._before + self._count

        until(up, f"{self._count} sessions are up", PATIENCE + PATIENCE_SESSION * self._count)

    def end(self, *, strict: bool = True) -> list[dict[str, Any]]:
        """End them all; returns npppysim's events, if it was told to print them, and behind them its summary.

        *strict*: raises :class:`BenchError` if not all came up and stayed.
        """
        self.process.send_signal(signal.SIGINT)

        def ended() -> bool:
            # npppyd tells of each session that ends, and waits where nobody reads that.
            self._server.check()
            self.read()
            return self.process.poll() is not None

        until(ended, "npppysim ends", PATIENCE + PATIENCE_SESSION * self._count)
        status = self.process.returncode
        self.out.seek(0)
        out = self.out.read()
        if status and (strict or not out):
            raise self.error(f"did not get all its sessions: {out.decode(errors='replace')}")
        told = [json.loads(line) for line in out.splitlines()]
        if strict and told[-1]["lost"]:
            raise BenchError(f"sessions were lost: {told[-1]['lost']}")
        return told

    def leave(self) -> list[Session]:
        """End npppysim, to which nobody listens: the sessions stay.  It must have been told to print its events.

        Where they would not stay, it is stopped, and ends with the lab.
        """
        told = self.end() if self._carrier.lasting else self._stop()
        return [self._carrier.session(event) for event in told if event.get("event") == "up"]

    def _stop(self) -> list[dict[str, Any]]:
        """It does nothing any more; returns its events, all of which must be sessions that have come up."""
        told: list[dict[str, Any]] = []

        def complete() -> bool:
            self.check()
            # Its own place in the file is that of its next event.
            out = os.pread(self.out.fileno(), os.fstat(self.out.fileno()).st_size, 0)
            whole = out[: out.rfind(b"\n") + 1]
            told[:] = [json.loads(line) for line in whole.splitlines()]
            return len(told) >= self._count

        until(complete, "npppysim has told of its sessions")
        if any(event["event"] != "up" for event in told):
            raise BenchError("sessions were lost")
        self.process.send_signal(signal.SIGSTOP)
        return told


class Lab:
    """The namespaces and the files of one measurement; a context manager, which ends all that was started."""

    def __init__(self, carrier: Carrier = PPPOE, *others: Carrier, links: int = 1) -> None:
        """npppyd serves all these carriers; what is asked for nothing else is by the first."""
        self.carrier = carrier
        self._carriers = (carrier, *others)
        self._links = links
        self._stack = contextlib.ExitStack()
        self._first = 1

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix="npppy-bench-"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            #: Of npppyd.
            self.socket = self.directory / "sock"
            self.sub, self.bng, self.net = (self._namespace(stack) for _ in range(3))
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _namespace(stack: contextlib.ExitStack) -> Namespace:
        namespace = Namespace()
        stack.callback(namespace.close)
        return namespace

    def _build(self) -> None:
        ours, theirs = [f"eth{1 + n}" for n in range(self._links)], [f"sub{n}" for n in range(self._links)]
        self.bng.ip(
            *(
                f"link add {our} type veth peer name {their} netns {self.sub.path}"
                for our, their in zip(ours, theirs, strict=True)
            ),
            f"link add up0 type veth peer name host0 netns {self.net.path}",
            *(f"link set {name} up" for name in ("lo", "up0", *ours)),
            f"address add {UPLINK}/24 dev up0",
            f"route add {BEYOND} via {GATEWAY}",
        )
        self.sub.ip(*(f"link set {name} up" for name in theirs))
        self.net.ip("link set host0 up", f"address add {GATEWAY}/24 dev host0")
        with self.bng:
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        for namespace, names in ((self.sub, theirs), (self.bng, [*ours, "up0"]), (self.net, ["host0"])):
            with namespace:
                for name in names:
                    ethtool(name, SET_GRO, 1)
        sub0, host0 = self.sub.mac("sub0"), self.net.mac("host0")
        self.bng.ip(
            f"neighbour replace {GATEWAY} dev up0 lladdr {host0.hex(':')} nud permanent",
            f"route add {PLAIN} via {PLAIN_GATEWAY} dev eth1 onlink",
            f"neighbour replace {PLAIN_GATEWAY} dev eth1 lladdr {sub0.hex(':')} nud permanent",
        )
        if any(carrier.name != PPPOE.name for carrier in self._carriers):
            self.bng.ip(
                f"address add {LNS}/24 dev eth1",
                f"neighbour replace {LAC} dev eth1 lladdr {sub0.hex(':')} nud permanent",
            )
            self.sub.ip(f"address add {LAC}/24 dev sub0", "link set lo up")

    @property
    def macs(self) -> Macs:
        return Macs(self.sub.mac("sub0"), self.bng.mac("eth1"))

    def _tear_down(self, pins: Path) -> None:
        with self.bng:
            teardown(pins)

    def _start(self, program: Program) -> None:
        self._stack.callback(program.close)

    def npppyd(
        self,
        *,
        users: int,
        method: str,
        keepalive: int = 0,
        retry: int = 0,
        pipex: str = "yes",
        forward: str = "stack",
        realm: str = LOCAL,
        settings: str = "",
        enter: Sequence[str] = (),
    ) -> Npppyd:
        """Start npppyd, and wait until it serves.

        *users*: how many there are in the file; *keepalive*: seconds between LCP echoes, 0 for none; *retry*: the same
        while there is no answer, 0 for as many; *pipex*, *forward* and *realm*: what carries the data, and who knows
        the users, as in npppd.conf; *settings*: lines of npppd.conf beside those of sessions; *enter*: a command that
        runs the one behind it.
        """
        # Of L2TP there are none unless they are asked for; the next one is not sent before the retry interval is over.
        lines = "lcp-keepalive no"
        if keepalive:
            lines = f"lcp-keepalive yes\n    lcp-keepalive-interval {keepalive}"
            lines += f"\n    lcp-keepalive-retry-interval {retry or keepalive}"
        config, users_file = self.directory / "npppd.conf", self.directory / "users"
        tunnels = [
            _TUNNEL.format(
                name=carrier.name,
                protocol=carrier.protocol,
                options=carrier.options,
                method=method,
                pipex=pipex,
                forward=forward,
                keepalive=lines,
            )
            for carrier in self._carriers
        ]
        binds = [_BIND.format(name=carrier.name) for carrier in self._carriers]
        config.write_text("".join((settings, *tunnels, _REST.format(realm=realm), *binds)))
        users_file.touch(0o600)
        users_file.write_text("".join(f"{name}:password={word}:\n" for name, word in credentials(1, users)))
        daemon_argv = [sys.executable, "-m", "npppy.daemon", "-d", "-f", str(config), "-s", str(self.socket)]
        # When it is killed, its programs and maps stay.
        self._stack.callback(self._tear_down, default_pins(str(self.socket)))
        if not Path("/sys/fs/bpf").is_mount():
            subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True)
        spot = self.directory / "bpf"
        spot.mkdir(exist_ok=True)
        own_sys = ("unshare", "--mount", "sh", "-c", _OWN_SYS, str(spot))
        with self.bng, pinned(OURS):
            daemon = Npppyd([*enter, *own_sys, *daemon_argv], self.socket)
        self._start(daemon)

        def serves() -> bool:
            daemon.check()
            return daemon.serving

        until(serves, "npppyd serves")
        return daemon

    def dial(
        self,
        server: Program,
        count: int,
        method: str,
        *options: str,
        carrier: Carrier | None = None,
        first: int | None = None,
        kind: type[Subscribers] = Subscribers,
    ) -> Subscribers:
        """Dial so many more subscribers, who stay until they are ended, and go without a word then.

        *carrier*: one of the lab's, which may have other arguments for npppysim; by default the first.  *first*: their
        numbers begin there; by default behind those that there were.
        """
        carrier = carrier or self.carrier
        if first is None:
            first = self._first
            self._first += count
        listed = self.directory / f"credentials-{first}"
        listed.write_text("".join(f"{name}:{word}\n" for name, word in credentials(first, count)))
        argv = [sys.executable, "-m", "npppy.sim.main", *carrier.dial, "--report", "json", "--hold", "inf"]
        argv += ["--sessions", str(count), "--first", str(first), "--credentials", str(listed)]
        argv += ["--auth", method, "--terminate", "none", *options]
        with self.sub, pinned(THEIRS):
            subscribers = kind(argv, count, server, carrier)
        self._start(subscribers)
        return subscribers


def credentials(first: int, count: int) -> Iterator[tuple[str, str]]:
    """Names and passwords of users."""
    for number in range(first, first + count):
        yield f"user{number}", f"password-{number}"
