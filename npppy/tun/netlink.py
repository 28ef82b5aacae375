"""Netlink: links, addresses, routes, the news of links, and what drivers can do with XDP.

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
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address
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
_SET: Final = 0x500  # create, or take its place
_ONE_MORE: Final = 0xC00  # create, beside others of the same destination
_DUMP: Final = 0x300
_DONE: Final = 3
_CAPPED_WITH_TLVS: Final = 0x300
_ERROR: Final = 2
_NETLINK_GENERIC: Final = 16
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_ERROR_TEXT: Final = 1

# linux/rtnetlink.h
_NEWLINK: Final = 16
_DELLINK: Final = 17
_GETLINK: Final = 18
_NEWADDR: Final = 20
_GETADDR: Final = 22
_NEWROUTE: Final = 24
_NEWNEIGH: Final = 28
_DELROUTE: Final = 25
_GROUP_LINK: Final = 0x1
_GROUP_ADDRESS4: Final = 0x10
_GROUP_ADDRESS6: Final = 0x100
_TABLE_MAIN: Final = 254
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
SCOPE_HOST: Final = 254
_SCOPE_NOWHERE: Final = 255
_UNICAST: Final = 1
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_METRICS: Final = 8
_RTAX_MTU: Final = 2
_ONLINK: Final = 4
#: The largest that a route may say.
_MTU_MAX: Final = 65520

# linux/if_link.h, linux/if_addr.h, linux/if.h
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_AF_SPEC: Final = 26
_IFLA_NUM_TX_QUEUES: Final = 31
_IFLA_NUM_RX_QUEUES: Final = 32
_IFLA_EXT_MASK: Final = 29
_IFLA_LINK_NETNSID: Final = 37
_IFLA_XDP: Final = 43
_XDP_ATTACHED: Final = 2
_SKIP_STATS: Final = 8
_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_VETH_INFO_PEER: Final = 1
_VLAN_ID: Final = 1
_VLAN_PROTOCOL: Final = 5
_INET6_ADDR_GEN_MODE: Final = 8
_ADDR_GEN_NONE: Final = b"\1"
_INET_CONF: Final = 1
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFF_UP: Final = 1
_IFF_NOARP: Final = 0x80
_ARPHRD_ETHER: Final = 1
_SCOPE_GLOBAL: Final = 0

# linux/neighbour.h
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NUD_PERMANENT: Final = 0x80

# enum of linux/ip.h: switches of an interface, by which net.ipv4.conf has them
FORWARDING: Final = 1
RP_FILTER: Final = 8
ACCEPT_LOCAL: Final = 23

# linux/genetlink.h, linux/netdev.h
_GENERIC_CONTROL: Final = 16
_GET_FAMILY: Final = 3
_FAMILY_ID: Final = 1
_FAMILY_NAME: Final = 2
_FAMILY_GROUPS: Final = 7
_GROUP_NAME: Final = 1
_GROUP_ID: Final = 2
_DEV_GET: Final = 1
_DEV_IFINDEX: Final = 1
_DEV_XDP_FEATURES: Final = 3
_XDP_XMIT: Final = 1 << 2

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_LINK: Final = struct.Struct("=BxHiII")  # family, device type, index, flags, mask of flags
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_NEIGHBOUR: Final = struct.Struct("=BxHiHBB")  # family, nothing, index, state, flags, type
_GENERIC: Final = struct.Struct("=BBxx")  # command, version
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family, two prefix lengths, tos, table, protocol, scope, type, flags
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")


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


class LinkInfo(NamedTuple):
    """What an interface is."""

    name: str
    ifindex: int
    #: Hardware address; empty where it has none.
    mac: bytes
    ethernet: bool
    up: bool
    #: What ip(8) calls its type: vlan, bridge, veth; empty for hardware and for some others.
    kind: str = ""
    #: The interface below it, and the bridge or bond that it is part of; 0: none.
    lower: int = 0
    master: int = 0
    #: The interface below is in another network namespace, and its index says nothing here.
    elsewhere: bool = False
    #: Of a VLAN: its number, and the EtherType of its tags.
    vlan: int = 0
    protocol: int = 0
    #: What somebody has written about it.
    alias: str = ""
    mtu: int = 0
    #: How an XDP program is attached (IFLA_XDP_ATTACHED); 0: none is.
    xdp: int = 0


class _Request(NamedTuple):
    #: For error messages: what follows "cannot".
    what: str
    type: int
    flags: int
    body: bytes


class Netlink:
    """Requests to the kernel.  All of them raise :class:`NetlinkError`, and none waits for anything but the kernel."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = _open(protocol=protocol)
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

    def info(self, ifindex: int) -> LinkInfo | None:
        """What the interface with an index is; None if there is none."""
        body = _LINK.pack(0, 0, ifindex, 0, 0) + _attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATS))
        try:
            return link_info(self._call(_Request(f"look interface {ifindex} up", _GETLINK, 0, body))[0])
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
            return None

    def infos(self) -> list[LinkInfo]:
        """What all interfaces are."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATS))
        return [link_info(reply) for reply in self._call(_Request("list interfaces", _GETLINK, _DUMP, body))]

    def addressed(self) -> set[int]:
        """The indexes of the interfaces with an address of global scope, IPv4 or IPv6."""
        replies = self._call(_Request("list addresses", _GETADDR, _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)))
        found = (_ADDRESS.unpack_from(reply) for reply in replies)
        return {index for _, _, _, scope, index in found if scope == _SCOPE_GLOBAL}

    def addresses(self) -> frozenset[bytes]:
        """This host's own addresses, IPv4 and IPv6, of 4 or 16 octets."""
        replies = self._call(_Request("list addresses", _GETADDR, _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)))
        found = (dict(_attributes(reply, _ADDRESS.size)) for reply in replies)
        # On a link between two, the other one is the peer's.
        return frozenset(each.get(_IFA_LOCAL) or each.get(_IFA_ADDRESS, b"") for each in found)

    def alias(self, name: str) -> str:
        """What somebody has written about an interface (ip link set alias); empty if it is not there."""
        attributes = dict(_attributes(self._look(name) or b"", _LINK.size))
        return _text(attributes.get(_IFLA_IFALIAS, b""))

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

    def switch4(self, name: str, ifindex: int, switches: Mapping[int, int]) -> None:
        """Set switches of an interface, such as :data:`FORWARDING`, which net.ipv4.conf shows."""
        values = b"".join(_attribute(switch, _U32.pack(value)) for switch, value in switches.items())
        conf = _attribute(socket.AF_INET, _attribute(_INET_CONF, values))
        body = _LINK.pack(0, 0, ifindex, 0, 0) + _attribute(_IFLA_AF_SPEC, conf)
        self._call(_Request(f"set what net.ipv4.conf.{name} shows", _NEWLINK, 0, body))

    def add_address(self, name: str, ifindex: int, address: IPv4Address, scope: int = _SCOPE_GLOBAL) -> None:
        """Give an interface an address of its own, without a network."""
        body = _ADDRESS.pack(socket.AF_INET, 32, 0, scope, ifindex)
        body += _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
        self._call(_Request(f"give {name} the address {address}", _NEWADDR, _NEW, body))

    def add_route(
        self, name: str, ifindex: int, network: IPv4Network, gateway: IPv4Address | None = None, mtu: int = 0
    ) -> None:
        """Route *network* to an interface, in the main table, with our protocol number.

        A *gateway* is one that is behind the interface, whatever its address.  Packets have *mtu* octets at most; 0: as
        the interface says.
        """
        self._call(_add_route(name, ifindex, network, gateway, mtu))

    def add_neighbour(self, name: str, ifindex: int, address: IPv4Address | IPv6Address, mac: bytes) -> None:
        """Let an address be on the link of an interface for good, with a MAC address, and without a limit of its MTU.

        Other interfaces may have the same.
        """
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        body = _ROUTE.pack(family, address.max_prefixlen, 0, 0, _TABLE_MAIN, RTPROT_NPPPY, _SCOPE_LINK, _UNICAST, 0)
        body += _attribute(_RTA_DST, address.packed) + _attribute(_RTA_OIF, _U32.pack(ifindex))
        body += _mtu(_MTU_MAX)
        self._call(_Request(f"add the route {address} to {name}", _NEWROUTE, _ONE_MORE, body))
        body = _NEIGHBOUR.pack(family, 0, ifindex, _NUD_PERMANENT, 0, 0)
        body += _attribute(_NDA_DST, address.packed) + _attribute(_NDA_LLADDR, mac)
        self._call(_Request(f"make {address} a neighbour on {name}", _NEWNEIGH, _SET, body))

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
            # Errors are answered always; success need be told of the last one only, which is served last.  A dump
            # has an end of its own.
            flags |= _REQUEST | (_ACK if sequence == self._sequence and flags & _DUMP != _DUMP else 0)
            messages.append(_HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body)
        self._socket.send(b"".join(messages))
        replies: list[bytes] = []
        errors = []
        while True:
            for kind, flags, sequence, payload in _messages(self._socket.recv(1 << 16)):
                if not first <= sequence <= self._sequence:
                    continue
                if kind not in (_ERROR, _DONE):
                    replies.append(payload)
                    continue
                (code,) = struct.unpack_from("=i", payload)
                if code:
                    text = _error_text(payload) if flags & _CAPPED_WITH_TLVS == _CAPPED_WITH_TLVS else ""
                    errors.append(NetlinkError(requests[sequence - first].what, -code, text))
                if sequence == self._sequence:
                    return replies, errors


class XdpFeatures:
    """What drivers say they can do with frames of XDP, which Linux tells from 6.3 on."""

    def __init__(self) -> None:
        self._netlink = netlink = Netlink(_NETLINK_GENERIC)
        body = _GENERIC.pack(_GET_FAMILY, 1) + _attribute(_FAMILY_NAME, b"netdev\0")
        try:
            (reply,) = netlink._call(_Request('look the netlink family "netdev" up', _GENERIC_CONTROL, 0, body))
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise
            self._family, self._group = 0, 0
        else:
            self._family, self._group = netdev_family(reply)
        self._news: socket.socket | None = None

    def transmits(self, ifindex: int) -> bool | None:
        """Whether an interface takes frames that programs of others redirect to it; None where nobody can say.

        A veth device does as long as its peer has a program or GRO.  Raises :class:`NetlinkError`.
        """
        if not self._family:
            return None
        body = _GENERIC.pack(_DEV_GET, 1) + _attribute(_DEV_IFINDEX, _U32.pack(ifindex))
        request = _Request(f"ask for the XDP features of interface {ifindex}", self._family, 0, body)
        attributes = dict(_attributes(self._netlink._call(request)[0], _GENERIC.size))
        return bool(_U64.unpack(attributes[_DEV_XDP_FEATURES])[0] & _XDP_XMIT)

    def follow(self, report: Callable[[int], None]) -> None:
        """Call *report*, from the running event loop, with the index of an interface whose features have changed.

        0 stands for all of them: news were lost.
        """
        if not self._group:
            return
        self._report = report
        self._news = _open(protocol=_NETLINK_GENERIC)
        self._news.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, self._group)
        self._news.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._news.fileno(), self._readable)

    def close(self) -> None:
        if self._news is not None:
            self._loop.remove_reader(self._news.fileno())
            self._news.close()
            self._news = None
        self._netlink.close()

    def _readable(self) -> None:
        assert self._news is not None
        try:
            news = self._news.recv(1 << 16)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            # libuv takes the error as the end of the socket and waits for it no more.
            self._loop.remove_reader(self._news.fileno())
            self._loop.add_reader(self._news.fileno(), self._readable)
            self._report(0)
            return
        for _, _, _, payload in _messages(news):
            ifindex = dict(_attributes(payload, _GENERIC.size)).get(_DEV_IFINDEX)
            if ifindex is not None:
                self._report(int.from_bytes(ifindex, sys.byteorder))


class RouteQueue:
    """Routes to one interface, for many sessions: made soon, in order, and a bounded number at a time."""

    def __init__(
        self,
        netlink: Netlink,
        name: str,
        ifindex: int,
        gateway: IPv4Address | None = None,
        mtu: int = 0,
        networks: Iterable[IPv4Network] = (),
    ) -> None:
        """*gateway* and *mtu* as for :meth:`Netlink.add_route`; some *networks* are routed already."""
        self._netlink = netlink
        self._name = name
        self._ifindex = ifindex
        self._gateway = gateway
        self._mtu = mtu
        self._networks = set(networks)
        self._waiting: deque[_Request] = deque()
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle | None = None

    def add(self, network: IPv4Network) -> None:
        """Route *network* to the interface.  That it could not be is logged."""
        self._networks.add(network)
        self._put(_add_route(self._name, self._ifindex, network, self._gateway, self._mtu))

    def set_mtu(self, mtu: int) -> None:
        """Let the routes have another one, soon."""
        self._mtu = mtu
        for network in self._networks:
            self._put(_add_route(self._name, self._ifindex, network, self._gateway, mtu)._replace(flags=_SET))

    def remove(self, network: IPv4Network) -> None:
        """Do so no more.  That it could not be removed is logged."""
        self._networks.discard(network)
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

    def __init__(self, report: Callable[[LinkState], None], news: Callable[[], None] | None = None) -> None:
        """Calls *report* from the running event loop, and *news* when anything was new of any interface or address."""
        self._report = report
        self._any = news
        self._states: dict[str, LinkState] = {}
        # By index, of those that are there.
        self._names: dict[int, str] = {}
        self._netlink = Netlink()
        self._news = _open(_GROUP_LINK | (_GROUP_ADDRESS4 | _GROUP_ADDRESS6 if news else 0))
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
        if self._any is not None:
            self._any()

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


def link_info(message: bytes) -> LinkInfo:
    """What the kernel's message about an interface says, behind its netlink header."""
    _, device, index, flags, _ = _LINK.unpack_from(message)
    attributes = dict(_attributes(message, _LINK.size))
    about = dict(_attributes(attributes.get(_IFLA_LINKINFO, b""), 0))
    kind = _text(about.get(_INFO_KIND, b""))
    vlan = dict(_attributes(about.get(_INFO_DATA, b""), 0)) if kind == "vlan" else {}
    return LinkInfo(
        name=os.fsdecode(attributes[_IFLA_IFNAME].rstrip(b"\0")),
        ifindex=index,
        mac=attributes.get(_IFLA_ADDRESS, b""),
        ethernet=device == _ARPHRD_ETHER,
        up=bool(flags & _IFF_UP),
        kind=kind,
        lower=_number(attributes, _IFLA_LINK),
        master=_number(attributes, _IFLA_MASTER),
        elsewhere=_IFLA_LINK_NETNSID in attributes,
        vlan=int.from_bytes(vlan.get(_VLAN_ID, b""), sys.byteorder),
        # As it is on the wire.
        protocol=int.from_bytes(vlan.get(_VLAN_PROTOCOL, b""), "big"),
        alias=_text(attributes.get(_IFLA_IFALIAS, b"")),
        mtu=_number(attributes, _IFLA_MTU),
        xdp=_number(dict(_attributes(attributes.get(_IFLA_XDP, b""), 0)), _XDP_ATTACHED),
    )


def netdev_family(message: bytes) -> tuple[int, int]:
    """The number of a generic netlink family, and that of its group "mgmt", from the kernel's message about it."""
    attributes = dict(_attributes(message, _GENERIC.size))
    groups = (dict(_attributes(group, 0)) for _, group in _attributes(attributes.get(_FAMILY_GROUPS, b""), 0))
    numbers = [_number(group, _GROUP_ID) for group in groups if _text(group.get(_GROUP_NAME, b"")) == "mgmt"]
    return _number(attributes, _FAMILY_ID), numbers[0] if numbers else 0


def _number(attributes: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, b""), sys.byteorder)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _open(groups: int = 0, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    opened.bind((0, groups))
    return opened


def _add_route(name: str, ifindex: int, network: IPv4Network, gateway: IPv4Address | None, mtu: int) -> _Request:
    scope, flags = (_SCOPE_LINK, 0) if gateway is None else (_SCOPE_UNIVERSE, _ONLINK)
    body = _ROUTE.pack(socket.AF_INET, network.prefixlen, 0, 0, _TABLE_MAIN, RTPROT_NPPPY, scope, _UNICAST, flags)
    body += _route_attributes(ifindex, network)
    if gateway is not None:
        body += _attribute(_RTA_GATEWAY, gateway.packed)
    if mtu:
        body += _mtu(mtu)
    return _Request(f"add the route {network} to {name}", _NEWROUTE, _NEW, body)


def _route_attributes(ifindex: int, network: IPv4Network) -> bytes:
    return _attribute(_RTA_DST, network.network_address.packed) + _attribute(_RTA_OIF, _U32.pack(ifindex))


def _mtu(mtu: int) -> bytes:
    return _attribute(_RTA_METRICS, _attribute(_RTAX_MTU, _U32.pack(mtu)))


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
    return _text(dict(_attributes(payload, 4 + _HEADER.size)).get(_ERROR_TEXT, b""))
