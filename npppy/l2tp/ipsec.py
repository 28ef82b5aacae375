"""``l2tp-require-ipsec``: what is not under IPsec neither comes to these tunnels nor leaves from them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence

from ..config.model import L2tpOptions, Tunnel
from ..tun import nft
from ..tun.netlink import NetlinkError
from ..tun.xfrm import Blocks

log = logging.getLogger("npppy.l2tp")

# Where nobody listens, because npppyd was killed, the kernel answers what it has decrypted with an ICMP error, and
# quotes it there, in the clear: policies do not hold for that.  In ICMP the quoted IP header comes after 8 octets; that
# of IPv4 has 20 octets without options, that of IPv6 40.
_ERRORS = """\
    chain errors {{
        type filter hook output priority filter
        icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} \\
            @th,136,8 17 @th,240,16 {{ {ports} }} drop
        icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} \\
            @th,112,8 17 @th,400,16 {{ {ports} }} drop
    }}
"""


class IpsecError(Exception):
    """A tunnel requires what this kernel does not have; the message says where, and why not."""


def require(tunnels: Sequence[Tunnel], owner: str, table: str) -> None:
    """Have the kernel block what these tunnels must not have in the clear, and nothing else of this *owner* any more.

    The blocks stay when the process dies.  *table* is the name of a table of nftables.  Raises :class:`IpsecError`.
    """
    demanding = [tunnel for tunnel in tunnels if _options(tunnel).require_ipsec]
    try:
        blocks = Blocks(owner)
    except NetlinkError as error:
        if demanding:
            raise IpsecError(f"{demanding[0].where}: l2tp-require-ipsec cannot be met: {error}") from error
        # Without IPsec in the kernel there is nothing to lift.
        return
    try:
        removed = blocks.set(
            [place for tunnel in demanding for place in _options(tunnel).listen],
            [place for tunnel in tunnels if tunnel not in demanding for place in _options(tunnel).listen],
        )
    except NetlinkError as error:
        where = f"{demanding[0].where}: " if demanding else ""
        raise IpsecError(f"{where}l2tp-require-ipsec: {error}") from error
    finally:
        blocks.close()
    _mute({port for tunnel in demanding for _, port in _options(tunnel).listen}, table)
    if removed:
        log.info("l2tp Clear traffic passes again policies=%d", removed)


def release(owner: str, table: str) -> int:
    """Block nothing of this *owner* any more; returns how many policies there were.

    Raises :class:`~npppy.tun.netlink.NetlinkError`.
    """
    _mute(set(), table)
    try:
        blocks = Blocks(owner)
    except NetlinkError as error:
        if error.code == errno.EPROTONOSUPPORT:
            return 0
        raise
    try:
        return blocks.set([])
    finally:
        blocks.close()


def _mute(ports: set[int], table: str) -> None:
    """Have the kernel send no ICMP errors about packets to these ports, and again about all others."""
    try:
        if ports:
            nft.run(nft.replace("inet", table, _ERRORS.format(ports=", ".join(map(str, sorted(ports))))))
        elif nft.exists("inet", table):
            nft.run(nft.remove("inet", table))
    except (NetlinkError, OSError) as error:
        if ports:
            log.warning("l2tp Without npppyd, ICMP errors can quote decrypted packets in the clear: %s", error)


def _options(tunnel: Tunnel) -> L2tpOptions:
    """Those of a tunnel that is not of L2TP require nothing, and listen nowhere."""
    return tunnel.carrier if isinstance(tunnel.carrier, L2tpOptions) else L2tpOptions()
