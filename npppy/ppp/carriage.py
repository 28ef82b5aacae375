"""What the data path is told of a session that is up, and whether the kernel may carry its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.model import PipexChoice
from ..pipex.base import MPPE_MTU, NO_WISH, FlowSpec
from .mppe import OVERHEAD as MPPE_LEN

if TYPE_CHECKING:
    from .session import Session

#: Who carries the data, if it is not Python.
OFFLOAD = (PipexChoice.YES, PipexChoice.EBPF)


def spec(session: Session) -> FlowSpec:
    """Of a session that has been admitted, as it is now."""
    site, tunnel, link = session.site, session.tunnel, session.call.link
    assert site is not None
    # What MPPE adds is no part of the MRU, but the path must carry it, too.
    room = link.max_mru - (0 if session.mppe is None else MPPE_LEN)
    up, down = session.limits
    return FlowSpec(
        session=session.id,
        domain=site.domain,
        interface=site.conf.name,
        address=session.address,
        prefixlen=session.prefixlen,
        networks=session.routes,
        mtu=min(session.peer_mru, room, session.profile.mtu or room),
        mru=min(session.mru, room),
        ingress_filter=tunnel.ingress_filter,
        mss_adjust=tunnel.tcp_mss_adjust,
        send=session.sender(),
        encap=link.encap,
        offload=not why_python(session),
        fast=tunnel.pipex_fast,
        echo="lcp" not in tunnel.dump_in | tunnel.dump_out,
        magic=session.magic,
        peer_magic=session.peer_magic,
        police_up=up,
        police_down=down,
        mirror=session.engine.wishes.get(session.id, NO_WISH).mirror,
        mppe=session.mppe,
    )


def why_python(session: Session) -> str:
    """Why Python must carry its data, whatever the kernel can; "" if it need not."""
    tunnel, mppe = session.tunnel, session.mppe
    if tunnel.pipex not in OFFLOAD:
        return f"tunnel {tunnel.name} says pipex {tunnel.pipex.value}"
    if {"ip", "mppe"} & (tunnel.dump_in | tunnel.dump_out):
        return f"tunnel {tunnel.name} has the packets dumped"
    if mppe is not None:
        if mppe.stateful:
            return "MPPE is stateful"
        if max(session.mru, session.peer_mru) > MPPE_MTU:
            return f"the kernel encrypts no packets of more than {MPPE_MTU} octets"
    return "an operator wants it so" if session.engine.wishes.get(session.id, NO_WISH).user else ""
