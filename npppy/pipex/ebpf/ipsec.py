"""L2TP under IPsec: what the kernel has decrypted is diverted to where the programs see it.

Neither XDP nor tc ingress sees a packet that ESP in transport mode has brought; netfilter does.  A rule sends data of
the sessions that the programs carry out of npx0, with a next hop that pipex_core knows.  It goes by the mark of the
security association too: neither peers behind the same NAT nor any other with an association of its own can send into
a session by its ids alone.  All other data, and all control messages, come to npppyd's socket as without the rule.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import struct
import time
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ...tun.netlink import NetlinkError
from ...tun.nft import FAMILIES, Elements, NftError, TableMonitor, exists, remove, replace, run

log = logging.getLogger("npppy.pipex")

_MAP: Final = "sessions"
#: Seconds after which it is tried again to make the tables.
_RETRY: Final = 60.0
#: Seconds in which changes gather, since each time costs half a millisecond, however many; meanwhile Python carries.
_SOON: Final = 0.01

# Before connection tracking, to which all peers behind one NAT are one flow; after the reassembly of fragments.
#
# The T bit clear, and version 2 (RFC 2661 section 3.1); then the ids, behind the Length field where there is one.
_TABLE: Final = """\
    map {map} {{
        typeof {ip} daddr . udp dport . @th,96,32 . meta mark : meta iif
    }}
    chain decrypted {{
        type filter hook prerouting priority raw - 10
        meta ipsec missing accept
        meta l4proto udp @th,64,16 & 0xc00f == 0x4002 \\
            dup to {hop} device {ip} daddr . udp dport . @th,96,32 . meta mark map @{map} drop
        meta l4proto udp @th,64,16 & 0xc00f == 0x0002 \\
            dup to {hop} device {ip} daddr . udp dport . @th,80,32 . meta mark map @{map} drop
    }}
"""

#: A port, padded as each part of a key is, and two ids.
_KEY: Final = struct.Struct(">HxxHH")
_U32: Final = struct.Struct("=I")


class Diversion:
    """The sessions whose decrypted data is diverted; the tables are made for the first of them."""

    def __init__(self, table: str, hop4: IPv4Address, hop6: IPv6Address) -> None:
        """*table* is the name of the tables, the others are next hops that are on every npx0."""
        self._table = table
        self._hops = {4: hop4, 6: hop6}
        # By version of IP: key, and the index of npx0.
        self._sessions: dict[int, dict[bytes, bytes]] = {4: {}, 6: {}}
        # What the kernel has not been told yet, in order: version, key, and the index, or None for one that goes.
        self._news: list[tuple[int, bytes, bytes | None]] = []
        self._elements: Elements | None = None
        self._monitor: TableMonitor | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._why = ""
        self._until = 0.0

    def why_not(self) -> str:
        """Make the tables if they are not there; returns why they cannot be, or ""."""
        now = time.monotonic()
        if self._elements is None and now >= self._until:
            self._why = self._make()
            self._until = now + _RETRY
            if self._why:
                log.error("pipex: Python carries L2TP under IPsec: %s", self._why)
        return self._why

    def add(self, local: bytes, port: int, tunnel_id: int, session_id: int, mark: int, npx0: int) -> None:
        """Divert what comes with a mark, to an address and port of ours, for a session; soon.

        *local* has 4 octets or 16; *npx0* is the index of the device that it is to leave by.
        """
        version, key = _key(local, port, tunnel_id, session_id, mark)
        value = self._sessions[version][key] = _U32.pack(npx0)
        self._put(version, key, value)

    def remove(self, local: bytes, port: int, tunnel_id: int, session_id: int, mark: int) -> None:
        """Do so no more, soon."""
        version, key = _key(local, port, tunnel_id, session_id, mark)
        if self._sessions[version].pop(key, None) is not None:
            self._put(version, key, None)

    def close(self) -> None:
        """Remove the tables."""
        if self._handle is not None:
            self._handle.cancel()
        if self._elements is not None:
            self._forget()
            try:
                run("".join(remove(family, self._table) for family in FAMILIES.values()))
            except NftError as error:
                log.error("pipex: the tables %s stay: %s", self._table, error)

    def _put(self, version: int, key: bytes, value: bytes | None) -> None:
        # Without tables there is nobody to tell; they are made with all that there are.
        if self._elements is None:
            return
        self._news.append((version, key, value))
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(_SOON, self._tell)

    def _tell(self) -> None:
        """Tell the kernel what is new."""
        self._handle = None
        news, self._news = self._news, []
        elements = self._elements
        if elements is None:
            return
        try:
            for (version, going), some in itertools.groupby(news, lambda one: (one[0], one[2] is None)):
                if going:
                    elements.remove(version, [key for _, key, _ in some])
                else:
                    elements.add(version, [(key, value) for _, key, value in some if value is not None])
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                # The news that the tables are gone is still to come.
                self._again()
            else:
                log.error("pipex: Python carries some sessions under IPsec: %s", error)

    def _again(self) -> None:
        """Make the tables anew: somebody has removed them, with "flush ruleset" perhaps."""
        log.info("pipex: the tables %s are gone, and made again", self._table)
        self._forget()
        self._until = 0.0
        self.why_not()

    def _make(self) -> str:
        try:
            run(
                "".join(
                    replace(family, self._table, _TABLE.format(ip=family, map=_MAP, hop=self._hops[version]))
                    for version, family in FAMILIES.items()
                )
            )
            self._elements = Elements(self._table, _MAP)
            self._monitor = TableMonitor(self._table, self._again)
            for version, sessions in self._sessions.items():
                self._elements.add(version, sessions.items())
        except (NetlinkError, OSError) as error:
            self._forget()
            return str(error)
        return ""

    def _forget(self) -> None:
        self._news.clear()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._elements is not None:
            self._elements.close()
            self._elements = None


def teardown(table: str) -> list[str]:
    """Remove the tables of this name, if there are any; says so, a line each.

    Raises :class:`NetlinkError` or :class:`OSError`.
    """
    found = [family for family in FAMILIES.values() if exists(family, table)]
    if found:
        run("".join(remove(family, table) for family in found))
    return [f"nftables table {family} {table} removed" for family in found]


def _key(local: bytes, port: int, tunnel_id: int, session_id: int, mark: int) -> tuple[int, bytes]:
    """The version of IP, and the key in its map."""
    return 4 if len(local) == 4 else 6, local + _KEY.pack(port, tunnel_id, session_id) + _U32.pack(mark)
