"""What the kernel says of processes and interfaces, and programs given to interfaces."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from npppy.pipex.ebpf.layout import REF
from npppy.pipex.ebpf.libbpf import Program, library

from .figures import BenchError
from .lab import Namespace

# The socket module does not have them: linux/if_packet.h
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PIDFD_GETFD = 438

_NATIVE = 1 << 2  # XDP_FLAGS_DRV_MODE
_ONLY_NEW = 1 << 0  # XDP_FLAGS_UPDATE_IF_NOEXIST

_HASH = "1"  # BPF_MAP_TYPE_HASH

_SNMP = Path("/proc/thread-self/net/snmp")
_TIMED = Path("/proc/sys/kernel/bpf_stats_enabled")

_LIBC = ctypes.CDLL(None, use_errno=True)


def show(namespace: Namespace, interface: str) -> dict[str, Any]:
    """What ip(8) shows of an interface."""
    with namespace:
        done = subprocess.run(
            ["ip", "-json", "-details", "-statistics", "link", "show", interface], capture_output=True, text=True
        )
    if done.returncode:
        raise BenchError(f"ip: {done.stderr.strip()}")
    shown: dict[str, Any] = json.loads(done.stdout)[0]
    return shown


# Programs.


def attach(namespace: Namespace, interface: str, program: Program | None) -> None:
    """Give an interface that has none a native XDP program, or take its program away."""
    fd, flags = (program.fd, _NATIVE | _ONLY_NEW) if program else (-1, _NATIVE)
    with namespace:
        code = library().bpf_xdp_attach(socket.if_nametoindex(interface), fd, flags, None)
    if code:
        raise BenchError(f"cannot attach {program or 'nothing'} to {interface}: {os.strerror(-code)}")


class Attached:
    """The XDP programs that somebody has given to interfaces, which can be done without for a while."""

    def __init__(self, namespace: Namespace, interfaces: Iterable[str]) -> None:
        self._namespace = namespace
        self._programs: dict[str, Program] = {}
        for name in interfaces:
            if number := show(namespace, name).get("xdp", {}).get("prog", {}).get("id"):
                self._programs[name] = Program.by_id(number)

    @contextlib.contextmanager
    def without(self) -> Iterator[None]:
        for name in self._programs:
            attach(self._namespace, name, None)
        yield
        for name, program in self._programs.items():
            attach(self._namespace, name, program)

    def __len__(self) -> int:
        return len(self._programs)

    def close(self) -> None:
        for program in self._programs.values():
            program.close()


def check_untimed() -> None:
    """Raises :class:`BenchError` if the kernel takes the time of BPF programs, which makes them slow."""
    if _TIMED.exists() and _TIMED.read_text().strip() != "0":
        raise BenchError(f"BPF programs are timed, which takes longer than they do: write 0 to {_TIMED}")


# Processor time.


@functools.cache
def _ksoftirqd(core: int) -> Path:
    name = f"ksoftirqd/{core}\n"
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text() == name:
                return path.parent / "schedstat"
    raise BenchError(f"there is no ksoftirqd/{core}")


def ksoftirqd(core: int) -> float:
    """Seconds of a core that the kernel's thread for soft interrupts has had: what is put off, it does."""
    return int(_ksoftirqd(core).read_text().split()[0]) * 1e-9


# What reaches a process.


class Reached:
    """Packets that the kernel has given to a process: on a tun device, on its packet sockets, and by UDP and GRE.

    Of these two it is all that comes in the network namespace, where nobody else listens.
    """

    def __init__(self, namespace: Namespace, pid: int, tun: str) -> None:
        self._namespace = namespace
        self._tun = tun
        self._last = 0
        self._sockets = list(_packet_sockets(pid))
        self.count()

    def count(self) -> int:
        """Since the last call: read from the tun, or dropped there; for all sockets, read or not."""
        sent = show(self._namespace, self._tun)["stats64"]["tx"]
        total = sent["packets"] + sent["dropped"] + self._ip()
        fresh, self._last = total - self._last, total
        for sock in self._sockets:
            # Reading it begins it at 0.
            fresh += struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[0]
        return int(fresh)

    def _ip(self) -> int:
        """Packets that were for this host, but for those of control connections, and for ICMP."""
        with self._namespace:
            lines = _SNMP.read_text().splitlines()
        counted: dict[str, int] = {}
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            protocol, *names_of = names.split()
            counted |= {protocol + name: int(value) for name, value in zip(names_of, values.split()[1:], strict=True)}
        return counted["Ip:InDelivers"] - counted["Tcp:InSegs"] - counted["Icmp:InMsgs"]

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def _packet_sockets(pid: int) -> Iterator[socket.socket]:
    """Descriptors of our own of the packet sockets of a process."""
    process = os.pidfd_open(pid)
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if not os.readlink(path).startswith("socket:"):
                    continue
            except FileNotFoundError:
                continue
            fd = _LIBC.syscall(_PIDFD_GETFD, process, int(path.name), 0)
            if fd < 0:
                raise BenchError(f"cannot look at the sockets of process {pid}: {os.strerror(ctypes.get_errno())}")
            sock = socket.socket(fileno=fd)
            if sock.family == socket.AF_PACKET:
                yield sock
            else:
                sock.close()
    finally:
        os.close(process)


# Maps.


def map_memory(pid: int) -> tuple[int, int]:
    """Octets of the BPF maps of a process, and for how many sessions they are made; 0, 0 where there are none."""
    octets: dict[str, int] = {}
    sessions = 0
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            fields = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
            if "map_type" in fields:
                octets[fields["map_id"]] = int(fields["memlock"])
                # In the hashes that lead to sessions each has an entry; in that of MPPE's keys it has two.
                if fields["map_type"] == _HASH and int(fields["value_size"]) == REF.size:
                    sessions = max(sessions, int(fields["max_entries"]))
    return sum(octets.values()), sessions
