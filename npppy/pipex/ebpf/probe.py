"""Whether back end ``ebpf`` works here, and if not, why."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ...tun.netlink import Netlink, NetlinkError
from ..base import Leftovers
from ..user import UserBackend
from .attach import attach_tc, attach_xdp
from .backend import EbpfBackend
from .layout import OBJECT
from .libbpf import BpfError, library
from .maps import PINS, PipexMaps
from .plumbing import end_leftovers

log = logging.getLogger("npppy.pipex")

_NAMES = ("npxprobe0", "npxprobe1")
_MACS = (b"\x02npx\1\0", b"\x02npx\1\1")


def why_not(path: str = OBJECT) -> str:
    """Why back end ebpf cannot be used here, in one line; empty if it can.

    Loads the programs and attaches them to devices of their own, which are removed again.
    """
    try:
        library()
        if not os.path.exists(path):
            return f"{path} is not there"
        maps = PipexMaps(1, path=path)
    except (BpfError, KeyError) as error:
        # The verifier's log is for who asks for it.
        log.debug("%s", error)
        return str(error).splitlines()[0]
    try:
        return _try(maps)
    finally:
        maps.close()


def _try(maps: PipexMaps) -> str:
    try:
        netlink = Netlink()
    except OSError as error:
        return f"cannot open netlink: {error.strerror}"
    try:
        netlink.add_veth(_NAMES[0], _MACS[0], _NAMES[1], _MACS[1], 1)
        try:
            ifindex = netlink.link(_NAMES[1]).ifindex
            attach_xdp(_NAMES[1], ifindex, maps.programs["pipex_core"], {})
            attach_tc(_NAMES[1], ifindex, maps.programs["pipex_miss"])
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
            reason = str(error).splitlines()[0]
        else:
            log.info("pipex: back end ebpf, up to %d sessions", capacity)
            return backend
    log.warning("pipex: back end user, Python carries all packets: %s", reason)
    end_leftovers(pins, leftovers)
    return UserBackend(reason)
