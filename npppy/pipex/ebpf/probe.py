"""Whether back end ``ebpf`` works here, and if not, why."""

from __future__ import annotations

import contextlib
import logging
import struct
from pathlib import Path

from ...tun.netlink import Netlink, NetlinkError
from ..base import Leftovers
from ..user import UserBackend
from .attach import attach_tc, attach_xdp
from .backend import EbpfBackend
from .libbpf import SCHED_CLS, XDP, BpfError, Program
from .maps import PINS
from .plumbing import end_leftovers

log = logging.getLogger("npppy.pipex")

_NAMES = ("npxprobe0", "npxprobe1")
_MACS = (b"\x02npx\1\0", b"\x02npx\1\1")
#: r0 = 2; exit.  No packet comes to it.
_NOTHING = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)


def why_not() -> str:
    """Why back end ebpf cannot be used here, in one line; empty if it can, as far as is known without its programs.

    Programs that do nothing are attached to devices of their own, which are removed again: to verify ours twice would
    make half of a start.
    """
    try:
        with contextlib.ExitStack() as stack:
            programs = []
            for kind in (XDP, SCHED_CLS):
                program = Program.load(kind, "pipex_probe", _NOTHING)
                stack.callback(program.close)
                programs.append(program)
            return _try(*programs)
    except BpfError as error:
        return str(error).splitlines()[0]


def _try(xdp: Program, tc: Program) -> str:
    try:
        netlink = Netlink()
    except OSError as error:
        return f"cannot open netlink: {error.strerror}"
    try:
        netlink.add_veth(_NAMES[0], _MACS[0], _NAMES[1], _MACS[1], 1)
        try:
            ifindex = netlink.link(_NAMES[1]).ifindex
            attach_xdp(_NAMES[1], ifindex, xdp, {})
            attach_tc(_NAMES[1], ifindex, tc)
        finally:
            netlink.delete_link(_NAMES[0], netlink.link(_NAMES[0]).ifindex)
    except (BpfError, NetlinkError, OSError) as error:
        return str(error).splitlines()[0]
    finally:
        netlink.close()
    return ""


def choose(capacity: int, pins: Path | None = PINS, leftovers: Leftovers | None = None) -> UserBackend:
    """The best back end that works here: ``ebpf`` for *capacity* sessions, else ``user``; one line says which.

    Either way what an earlier process has left is ended, and *leftovers* is given what its sessions had counted.
    """
    reason = why_not()
    if not reason:
        try:
            backend = EbpfBackend.open(capacity, pins, leftovers=leftovers)
        except (BpfError, NetlinkError, OSError) as error:
            # The verifier's log is for who asks for it.
            log.debug("%s", error)
            reason = str(error).splitlines()[0]
        else:
            log.info("pipex: back end ebpf, up to %d sessions", capacity)
            return backend
    log.warning("pipex: back end user, Python carries all packets: %s", reason)
    end_leftovers(pins, leftovers)
    return UserBackend(reason)
