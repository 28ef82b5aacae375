"""Netlink: links, addresses, routes, and the news of links.

The kernel serves a NETLINK_ROUTE request within the system call that sends it, whatever the socket's mode; so requests
are plain calls here, of 5 to 20 microseconds each, and only routes, which may come by the thousand, are queued.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple

log = logging.getLogger("npppy.netlink")

#: The protocol number of the routes that are ours (rtnetlink(7), rtm_protocol).  Nobody has claimed it: see
#: /etc/iproute2/rt_protos, to which "112 npppy" may be added.
RTPROT_NPPPY: Final = 112

#: Route changes made in one go, between which the event loop serves others.
BATCH: Final = 64

# linux/netlink.h
_REQUEST: Final = 0x1
_ACK: Final = 0x4
_NEW: Final = 0x600  # create, and fail if it is there
_CAPPED_WITH_TLVS: Final = 0x300
_ERROR: Final = 2
_SOL_NETLINK: Final = 270
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_ERROR_TEXT: Final = 1

# linux/rtnetlink.h
_NEWLINK: Final = 16
_DELLINK: Final = 17
_GETLINK: Final = 18
_NEWADDR: Final = 20
_NEWROUTE: Final = 24
_DELROUTE: Final = 25
_GROUP_LINK: Final = 1
_TABLE_MAIN: Final = 254
_SCOPE_LINK: Final = 253
_SCOPE_NOWHERE: Final = 255
_UNICAST: Final = 1
_RTA_DST: Final = 1
_RTA_OIF: Final = 4

# linux/if_link.h, linux/if_addr.h, linux/if.h
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_AF_SPEC: Final = 26
_IFLA_NUM_TX_QUEUES: Final = 31
_IFLA_NUM_RX_QUEUES: Final = 32
_IFLA_EXT_MASK: Final = 29
_SKIP_STATS: Final = 8
_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_VETH_INFO_PEER: Final = 1
_INET6_ADDR_GEN_MODE: Final = 8
_ADDR_GEN_NONE: Final = b"\1"
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFF_UP: Final = 1
_IFF_NOARP: Final = 0x80

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_LINK: Final = struct.Struct("=BxHiII")  # family, device type, index, flags, mask of flags
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family, two prefix lengths, tos, table, protocol, scope, type, flags
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_U32: Final = struct.Struct("=I")


class NetlinkError(Exception):
    """The kernel refused a request; the message says which, and why."""

    def __init__(self, what: str, code: int, text: str) -> None:
        super().__init__(f"cannot {what}: {os.strerror(code)}" + (f" ({text})" if text else ""))
        self.code = code


class LinkState(NamedTuple):
    """A network interface."""

    name: str
    #: 0 where there is none of this name.
    ifindex: int = 0
    #: Empty where there is none.
    mac: bytes = b""
    mtu: int = 0
    #: Switched on; whether it has a carrier is not looked at.
    up: bool = False

    @property
    def present(self) -> bool:
        return self.ifindex != 0


class _Request(NamedTuple):
    #: For error messages: what follows "cannot".
    what: str
    type: int
    flags: int
    body: bytes


class Netlink:
    """Requests to the kernel.  All of them raise :class:`NetlinkError`, and none waits for anything but the kernel."""

    def __init__(self) -> None:
        self._socket = _open()
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        # The answer is there when send() returns: this only keeps a broken kernel from hanging the daemon.
        self._socket.settimeout(10)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def link(self, name: str) -> LinkState:
        """The state of the interface *name*, which may not be there."""
        payload = self._look(name)
        if payload is None:
            return LinkState(name)
        _, _, index, flags, _ = _LINK.unpack_from(payload)
        attributes = dict(_attributes(payload, _LINK.size))
        (mtu,) = _U32.unpack(attributes[_IFLA_MTU])
        return LinkState(name, index, attributes.get(_IFLA_ADDRESS, b""), mtu, bool(flags & _IFF_UP))

    def alias(self, name: str) -> str:
        """What somebody has written about an interface (ip link set alias); empty if it is not there."""
        attributes = dict(_attributes(self._look(name) or b"", _LINK.size))
        return attributes.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")

    def set_up(self, name: str, ifindex: int, mtu: int, *, arp: bool = True) -> None:
        """Give an interface its MTU and switch it on; without *arp* it looks for no neighbours."""
        flags = _IFF_UP if arp else _IFF_UP | _IFF_NOARP
        body = _LINK.pack(0, 0, ifindex, flags, flags) + _attribute(_IFLA_MTU, _U32.pack(mtu))
        self._call(_Request(f"switch {name} on with MTU {mtu}", _NEWLINK, 0, body))

    def add_veth(self, name: str, mac: bytes, peer: str, peer_mac: bytes, queues: int) -> None:
        """Make a pair of virtual Ethernet devices, with as many queues each way."""
        queue = _attribute(_IFLA_NUM_TX_QUEUES, _U32.pack(queues)) + _attribute(_IFLA_NUM_RX_QUEUES, _U32.pack(queues))
        ends = [
            _LINK.pack(0, 0, 0, 0, 0)
            + _attribute(_IFLA_IFNAME, os.fsencode(end) + b"\0")
            + _attribute(_IFLA_ADDRESS, address)
            + queue
            for end, address in ((name, mac), (peer, peer_mac))
        ]
        data = _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, ends[1]))
        body = ends[0] + _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, b"veth\0") + data)
        self._call(_Request(f"make the veth devices {name} and {peer}", _NEWLINK, _NEW, body))

    def set_alias(self, name: str, ifindex: int, alias: str) -> None:
        """Write something about an interface, up to 255 octets."""
        body = _LINK.pack(0, 0, ifindex, 0, 0) + _attribute(_IFLA_IFALIAS, alias.encode())
        self._call(_Request(f"give {name} the alias {alias!r}", _NEWLINK, 0, body))

    def no_link_local(self, name: str, ifindex: int) -> None:
        """Keep the kernel from giving an interface an IPv6 address of its own, and from talking there because of it."""
        mode = _attribute(socket.AF_INET6, _attribute(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE))
        body = _LINK.pack(0, 0, ifindex, 0, 0) + _attribute(_IFLA_AF_SPEC, mode)
        try:
            self._call(_Request(f"keep {name} free of link-local addresses", _NEWLINK, 0, body))
        except NetlinkError as error:
            # A kernel without IPv6 has nothing to keep it from.
            if error.code != errno.EAFNOSUPPORT:
                raise

    def delete_link(self, name: str, ifindex: int) -> None:
        """Remove a virtual interface; of a veth pair, both."""
        self._call(_Request(f"remove {name}", _DELLINK, 0, _LINK.pack(0, 0, ifindex, 0, 0)))

    def add_address(self, name: str, ifindex: int, address: IPv4Address) -> None:
        """Give an interface an address of its own, without a network."""
        body = _ADDRESS.pack(socket.AF_INET, 32, 0, 0, ifindex)
        body += _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
        self._call(_Request(f"give {name} the address {address}", _NEWADDR, _NEW, body))

    def add_route(self, name: str, ifindex: int, network: IPv4Network) -> None:
        """Route *network* to an interface, in the main table, with our protocol number."""
        self._call(_add_route(name, ifindex, network))

    def change_routes(self, changes: Iterable[_Request]) -> list[NetlinkError]:
        """Make changes (:class:`RouteQueue` has them) in one go; what fails does not stop the rest."""
        return self._transact(list(changes))[1]

    def _look(self, name: str) -> bytes | None:
        """The kernel's message about an interface, None if there is none of this name."""
        body = _LINK.pack(0, 0, 0, 0, 0)
        body += _attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0") + _attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATS))
        try:
            return self._call(_Request(f"look interface {name} up", _GETLINK, 0, body))[0]
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
            return None

    def _call(self, request: _Request) -> list[bytes]:
        replies, errors = self._transact([request])
        for error in errors:
            raise error
        return replies

    def _transact(self, requests: list[_Request]) -> tuple[list[bytes], list[NetlinkError]]:
        """Send *requests* in one system call and read what comes back: replies, and errors in order."""
        first = self._sequence + 1
        self._sequence += len(requests)
        messages = []
        for sequence, (_, kind, flags, body) in enumerate(requests, first):
            # Errors are answered always; success need be told of the last one only, which is served last.
            flags |= _REQUEST | (_ACK if sequence == self._sequence else 0)
            messages.append(_HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body)
        self._socket.send(b"".join(messages))
        replies: list[bytes] = []
        errors = []
        while True:
            for kind, flags, sequence, payload in _messages(self._socket.recv(1 << 16)):
                if not first <= sequence <= self._sequence:
                    continue
                if kind != _ERROR:
                    replies.append(payload)
                    continue
                (code,) = struct.unpack_from("=i", payload)
                if code:
                    text = _error_text(payload) if flags & _CAPPED_WITH_TLVS == _CAPPED_WITH_TLVS else ""
                    errors.append(NetlinkError(requests[sequence - first].what, -code, text))
                if sequence == self._sequence:
                    return replies, errors


class RouteQueue:
    """Routes to one interface, for many sessions: made soon, in order, and a bounded number at a time."""

    def __init__(self, netlink: Netlink, name: str, ifindex: int) -> None:
        self._netlink = netlink
        self._name = name
        self._ifindex = ifindex
        self._waiting: deque[_Request] = deque()
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle | None = None

    def add(self, network: IPv4Network) -> None:
        """Route *network* to the interface.  That it could not be is logged."""
        self._put(_add_route(self._name, self._ifindex, network))

    def remove(self, network: IPv4Network) -> None:
        """Do so no more.  That it could not be removed is logged."""
        body = _ROUTE.pack(
            socket.AF_INET, network.prefixlen, 0, 0, _TABLE_MAIN, RTPROT_NPPPY, _SCOPE_NOWHERE, _UNICAST, 0
        )
        body += _route_attributes(self._ifindex, network)
        self._put(_Request(f"remove the route {network}", _DELROUTE, 0, body))

    def close(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()

    def _put(self, request: _Request) -> None:
        self._waiting.append(request)
        if self._handle is None:
            self._handle = self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._handle = None
        if self._waiting:
            self._some()
        if self._waiting:
            self._handle = self._loop.call_soon(self._run)

    def _some(self) -> None:
        waiting = self._waiting
        batch = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
        try:
            for error in self._netlink.change_routes(batch):
                log.error("iface=%s %s", self._name, error)
        except OSError as error:
            log.error("iface=%s cannot %s, and %d more: %s", self._name, batch[0].what, len(batch) - 1, error)


class LinkMonitor:
    """Tells of the interfaces that are watched: how they are, and each time that this changes.

    News from the kernel say only which interface to look at again.  So news that come late, or are lost because too
    many came at once, do no harm.
    """

    def __init__(self, report: Callable[[LinkState], None]) -> None:
        """Calls *report* from the running event loop."""
        self._report = report
        self._states: dict[str, LinkState] = {}
        # By index, of those that are there.
        self._names: dict[int, str] = {}
        self._netlink = Netlink()
        self._news = _open(_GROUP_LINK)
        self._news.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._news.fileno(), self._readable)

    def watch(self, name: str) -> None:
        """Report how the interface *name* is, now and whenever it changes.  It need not be there yet."""
        state = self._netlink.link(name)
        self._keep(state)
        self._report(state)

    def unwatch(self, name: str) -> None:
        """Raises :class:`KeyError` if *name* is not watched."""
        self._forget_index(self._states.pop(name))

    def close(self) -> None:
        self._states.clear()
        self._loop.remove_reader(self._news.fileno())
        self._news.close()
        self._netlink.close()

    def _readable(self) -> None:
        names: set[str] = set()
        try:
            # What is left is read when the event loop comes round again.
            for _ in range(64):
                names |= self._concerned(self._news.recv(1 << 16))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.info("news of interfaces were lost, looking at all of them again")
            names |= self._states.keys()
            # libuv takes the error as the end of the socket and waits for it no more.
            self._loop.remove_reader(self._news.fileno())
            self._loop.add_reader(self._news.fileno(), self._readable)
        for name in sorted(names):
            # The report of another one may have ended the watch.
            if name in self._states:
                self._look(name)

    def _concerned(self, news: bytes) -> set[str]:
        """The watched interfaces that *news* speak of, by the name they have now or had before."""
        names = set()
        for kind, _, _, payload in _messages(news):
            if kind in (_NEWLINK, _DELLINK):
                now = dict(_attributes(payload, _LINK.size)).get(_IFLA_IFNAME, b"")
                names.add(os.fsdecode(now.rstrip(b"\0")))
                names.add(self._names.get(_LINK.unpack_from(payload)[2], ""))
        return names & self._states.keys()

    def _look(self, name: str) -> None:
        try:
            state = self._netlink.link(name)
        except (NetlinkError, OSError) as error:
            log.error("iface=%s %s", name, error)
            return
        before = self._states[name]
        if state != before:
            self._forget_index(before)
            self._keep(state)
            self._report(state)

    def _keep(self, state: LinkState) -> None:
        self._states[state.name] = state
        if state.present:
            self._names[state.ifindex] = state.name

    def _forget_index(self, state: LinkState) -> None:
        # Where two have changed names, it is the other's already.
        if self._names.get(state.ifindex) == state.name:
            del self._names[state.ifindex]


def forwarding(name: str) -> bool:
    """Whether the kernel routes the IPv4 packets that come from an interface."""
    with open(f"/proc/sys/net/ipv4/conf/{name}/forwarding") as file:
        return file.read().strip() != "0"


def _open(groups: int = 0) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.bind((0, groups))
    return opened


def _add_route(name: str, ifindex: int, network: IPv4Network) -> _Request:
    body = _ROUTE.pack(socket.AF_INET, network.prefixlen, 0, 0, _TABLE_MAIN, RTPROT_NPPPY, _SCOPE_LINK, _UNICAST, 0)
    body += _route_attributes(ifindex, network)
    return _Request(f"add the route {network} to {name}", _NEWROUTE, _NEW, body)


def _route_attributes(ifindex: int, network: IPv4Network) -> bytes:
    return _attribute(_RTA_DST, network.network_address.packed) + _attribute(_RTA_OIF, _U32.pack(ifindex))


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The netlink messages in *data*: type, flags, sequence number, payload."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _error_text(payload: bytes) -> str:
    """The kernel's own words about an error, behind the code and the header of the request."""
    text = dict(_attributes(payload, 4 + _HEADER.size)).get(_ERROR_TEXT, b"")
    return text.rstrip(b"\0").decode(errors="replace")
