"""Programs at their hooks: XDP and tc.

They are attached by netlink, not by links, and so stay when npppyd is killed.  A program that is not ours is never
replaced.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from .libbpf import BpfError, Program, library

log = logging.getLogger("npppy.bpf")

#: Our programs of XDP are known by name.
XDP_PROGRAMS: Final = frozenset(("pipex_access", "pipex_core", "pipex_nic"))

# linux/if_link.h
_UPDATE_IF_NOEXIST: Final = 1 << 0
_REPLACE: Final = 1 << 4
#: By the kernel's generic code, and by the driver.
GENERIC: Final = 1 << 1
NATIVE: Final = 1 << 2
#: enum of IFLA_XDP_ATTACHED, and the flag that means it; hardware offload is never ours.
_MODES: Final = {1: NATIVE, 2: GENERIC}
_NAMES: Final = {NATIVE: "native", GENERIC: "generic"}

#: enum bpf_tc_attach_point
INGRESS: Final = 1
EGRESS: Final = 2
_TC_NAMES: Final = {INGRESS: "ingress", EGRESS: "egress"}
_REPLACE_FILTER: Final = 1
#: Of our filter; any number would do, but one that is known can be replaced.
_HANDLE: Final = 1
_PRIORITY: Final = 1


class _XdpAttach(ctypes.Structure):
    """struct bpf_xdp_attach_opts"""

    _fields_ = [("sz", ctypes.c_size_t), ("old_prog_fd", ctypes.c_int)]


class _XdpQuery(ctypes.Structure):
    """struct bpf_xdp_query_opts, as of libbpf 1.0"""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_id", ctypes.c_uint32),
        ("drv_prog_id", ctypes.c_uint32),
        ("hw_prog_id", ctypes.c_uint32),
        ("skb_prog_id", ctypes.c_uint32),
        ("attach_mode", ctypes.c_uint8),
    ]


class _TcHook(ctypes.Structure):
    """struct bpf_tc_hook"""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    ]


class _TcOpts(ctypes.Structure):
    """struct bpf_tc_opts"""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


class ForeignError(BpfError):
    """There is a program of somebody else; the message names it."""


#: Programs that are ours, by the kernel's number: of this process, and pinned by an earlier one.
Own = Mapping[int, Program]


def attach_xdp(
    name: str, ifindex: int, program: Program, own: Own, modes: Sequence[int] = (NATIVE, GENERIC)
) -> str:
    """Attach *program* to an interface, in place of an older one of ours; returns ``native`` or ``generic``.

    The *modes* are tried in their order.  Where it is attached already, nothing is done.  Raises
    :class:`ForeignError` or :class:`BpfError`.
    """
    lib = library()
    what = f"attach {program} to {name}"
    with _ours(name, ifindex, what, own) as (old, mode):
        if old is not None:
            if old.id == program.id:
                return _NAMES[mode]
            opts = _XdpAttach(sz=ctypes.sizeof(_XdpAttach), old_prog_fd=old.fd)
            code = lib.bpf_xdp_attach(ifindex, program.fd, mode | _REPLACE, ctypes.byref(opts))
            if code:
                raise BpfError(what, -code)
            return _NAMES[mode]
    for flag in modes:
        code = lib.bpf_xdp_attach(ifindex, program.fd, flag | _UPDATE_IF_NOEXIST, None)
        if not code:
            return _NAMES[flag]
        log.debug("iface=%s cannot attach %s as %s XDP: %s", name, program, _NAMES[flag], os.strerror(-code))
    raise BpfError(what, -code)


def xdp_program(name: str, ifindex: int) -> int:
    """The kernel's number of an interface's XDP program, 0 if there is none.  Raises :class:`BpfError`."""
    return _query(name, ifindex)[0]


def replace_xdp(name: str, ifindex: int, programs: Mapping[str, Program], own: Own) -> str:
    """Put that of *programs* with the same name in the place of the program of *own* that an interface has.

    At once: no packet goes without.  Returns the name; empty if there is none of *own*.  Raises :class:`BpfError`.
    """
    program = own.get(xdp_program(name, ifindex))
    if program is None:
        return ""
    attach_xdp(name, ifindex, programs[program.name], own)
    return program.name


def detach_xdp(name: str, ifindex: int, own: Own) -> bool:
    """Remove our program from an interface; whether there was one.  Another's stays where it is."""
    try:
        with _ours(name, ifindex, "look for ours", own) as (old, mode):
            if old is None:
                return False
            opts = _XdpAttach(sz=ctypes.sizeof(_XdpAttach), old_prog_fd=old.fd)
            code = library().bpf_xdp_attach(ifindex, -1, mode | _REPLACE, ctypes.byref(opts))
            if code:
                raise BpfError(f"detach {old} from {name}", -code)
            return True
    except ForeignError:
        return False


def open_tc(name: str, ifindex: int, point: int = INGRESS) -> _TcHook:
    """Make the place for programs that :func:`attach_tc` gives.  What the interface sends meanwhile is lost."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=point)
    code = library().bpf_tc_hook_create(ctypes.byref(hook))
    if code not in (0, -errno.EEXIST):
        raise BpfError(f"make the clsact qdisc of {name}", -code)
    return hook


def attach_tc(name: str, ifindex: int, program: Program, point: int = INGRESS) -> None:
    """Run *program* on what arrives at an interface of ours, or leaves, in place of an older one."""
    hook = open_tc(name, ifindex, point)
    opts = _TcOpts(
        sz=ctypes.sizeof(_TcOpts), prog_fd=program.fd, flags=_REPLACE_FILTER, handle=_HANDLE, priority=_PRIORITY
    )
    code = library().bpf_tc_attach(ctypes.byref(hook), ctypes.byref(opts))
    if code:
        raise BpfError(f"attach {program} to tc {_TC_NAMES[point]} of {name}", -code)


@contextmanager
def _ours(name: str, ifindex: int, what: str, own: Own) -> Iterator[tuple[Program | None, int]]:
    """The program of ours at an interface, None if there is none at all, and the flag of its mode.

    Raises :class:`ForeignError` if it is not ours.
    """
    number, attached = _query(name, ifindex)
    if not number:
        yield None, 0
        return
    there = f"{name} has an XDP program that is not ours"
    known = own.get(number)
    if known is not None:
        program = known
    else:
        try:
            program = Program.by_id(number)
        except BpfError as error:
            # Only CAP_SYS_ADMIN may look at programs by number.
            raise ForeignError(what, errno.EBUSY, f"{there}: id {number} ({error})") from None
    try:
        mode = _MODES.get(attached, 0)
        if program.name not in XDP_PROGRAMS or not mode:
            raise ForeignError(what, errno.EBUSY, f"{there}: {program.name!r}, id {number}")
        yield program, mode
    finally:
        if known is None:
            program.close()


def _query(name: str, ifindex: int) -> tuple[int, int]:
    """The kernel's number of an interface's XDP program, 0 if there is none, and its IFLA_XDP_ATTACHED."""
    query = _XdpQuery(sz=ctypes.sizeof(_XdpQuery))
    code = library().bpf_xdp_query(ifindex, 0, ctypes.byref(query))
    if code:
        raise BpfError(f"ask for the XDP program of {name}", -code)
    return query.drv_prog_id or query.skb_prog_id or query.hw_prog_id, query.attach_mode
