"""IPsec policies by netlink: what must not pass in the clear does not, whether npppyd runs or not.

An IKE daemon's policies say what is encrypted, and go with its security associations; what matches none passes in the
clear.  Ours stand behind all of them, and let nothing pass.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import zlib
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from .netlink import _DUMP, Netlink, NetlinkError, _Request

#: An address of ours and a UDP port; the wildcard stands for all of its version.
Place = tuple[IPv4Address | IPv6Address, int]

_NETLINK_XFRM: Final = 6

# linux/xfrm.h
_DELPOLICY: Final = 0x14
_GETPOLICY: Final = 0x15
_UPDPOLICY: Final = 0x19
_IN: Final = 0
_OUT: Final = 1
_ALLOW: Final = 0
_BLOCK: Final = 1
#: Also for ICMP errors: those about what it blocks.
_ICMP: Final = 2
_INFINITE: Final = (1 << 64) - 1

#: Destination, source, destination port and mask, source port and mask, family, prefix lengths, protocol, interface,
#: user.  The ports are as on the wire.
_SELECTOR: Final = struct.Struct("=16s16s2s2s2s2sHBBBxxxiI")
_LIMITS: Final = struct.Struct("=12Q")
#: Priority, index, direction, action, flags, sharing.
_POLICY: Final = struct.Struct("=IIBBBBxxxx")
_POLICY_AT: Final = _SELECTOR.size + _LIMITS.size
_POLICY_ID: Final = struct.Struct(f"={_SELECTOR.size}sIBxxx")


class _Policy(NamedTuple):
    selector: bytes
    direction: int
    action: int


class Blocks:
    """UDP that may neither come to some places of ours nor leave from there in the clear.

    The policies stay when the process dies.  Each has *owner* in it, by which :meth:`set`, also of a later process,
    knows its own.  All methods raise :class:`NetlinkError`.
    """

    def __init__(self, owner: str) -> None:
        """Raises :class:`NetlinkError` where the kernel has no IPsec policies."""
        try:
            self._netlink = Netlink(_NETLINK_XFRM)
        except OSError as error:
            text = "the kernel has no XFRM" if error.errno == errno.EPROTONOSUPPORT else ""
            raise NetlinkError("set IPsec policies", error.errno or 0, text) from error
        self._owner = zlib.crc32(os.fsencode(owner)) & 0xFFFF

    def close(self) -> None:
        """The policies stay."""
        self._netlink.close()

    def set(self, places: Collection[Place], clear: Collection[Place] = ()) -> int:
        """Block *places*, and no others any more; returns how many policies were removed.

        *clear* are those that may have clear traffic although a wildcard among *places* covers them.
        """
        wanted = {policy for place in places for policy in _policies(*place, _BLOCK)}
        # Before the others, so that nothing is blocked meanwhile.
        wildcards = {(address.version, port) for address, port in places if not int(address)}
        allowed = {
            policy
            for address, port in clear
            if (address.version, port) in wildcards and (address, port) not in places
            for policy in _policies(address, port, _ALLOW)
        }
        there = dict(self._ours())
        for policy in (*allowed - there.keys(), *wanted - there.keys()):
            self._put(policy)
        gone = there.keys() - wanted - allowed
        for policy in gone:
            body = _POLICY_ID.pack(bytes(_SELECTOR.size), there[policy], policy.direction)
            self._netlink._call(_Request("remove an IPsec policy", _DELPOLICY, 0, body))
        return len(gone)

    def _put(self, policy: _Policy) -> None:
        limits = _LIMITS.pack(*(_INFINITE,) * 4, *(0,) * 8)
        about = _POLICY.pack(self._priority(policy.action), 0, policy.direction, policy.action, _ICMP, 0)
        body = policy.selector + limits + about
        self._netlink._call(_Request("add an IPsec policy", _UPDPOLICY, 0, body))

    def _priority(self, action: int) -> int:
        """The higher, the later is a policy looked at; nobody else has such high ones."""
        return (0xFFFF0000 if action == _BLOCK else 0xFFFE0000) | self._owner

    def _ours(self) -> Iterator[tuple[_Policy, int]]:
        """Our policies, and the kernel's numbers of them."""
        body = _POLICY_ID.pack(bytes(_SELECTOR.size), 0, 0)
        for reply in self._netlink._call(_Request("list IPsec policies", _GETPOLICY, _DUMP, body)):
            priority, index, direction, action, _, _ = _POLICY.unpack_from(reply, _POLICY_AT)
            if priority == self._priority(action):
                yield _Policy(reply[: _SELECTOR.size], direction, action), index


def _policies(address: IPv4Address | IPv6Address, port: int, action: int) -> Iterator[_Policy]:
    """What comes in for a place, and what goes out from there.

    None is for what is forwarded: what pipex sends passes there too, from our address, before it is encrypted; it is
    the policy for what goes out that the kernel looks for then.
    """
    own, length = (address.packed.ljust(16, b"\0"), address.max_prefixlen) if int(address) else (bytes(16), 0)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    any_address, any_port = bytes(16), bytes(2)
    here = port.to_bytes(2, "big"), b"\xff\xff"
    rest = socket.IPPROTO_UDP, 0, 0
    yield _Policy(
        _SELECTOR.pack(own, any_address, *here, any_port, any_port, family, length, 0, *rest), _IN, action
    )
    yield _Policy(
        _SELECTOR.pack(any_address, own, any_port, any_port, *here, family, 0, length, *rest), _OUT, action
    )
