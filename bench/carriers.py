"""What carries sessions, and all that differs between them: npppd.conf, npppysim's arguments, frames."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from npppy.pipex.ip import checksum
from npppy.pppoe.codec import session_frame

#: Of npppyd, and of the LAC, or PPTP's clients, which are on ``sub0``.
LNS, LAC = "10.99.0.1", "10.99.0.2"
L2TP_PORT = 1701
SECRET = "tunnel-secret"
#: Tunnels of sessions that have none of their own.
FEW = 4

_IP = b"\x00\x21"
_ETHERNET, _IPV4, _UDP = 14, 20, 8
#: Of IP.
_UDP_NUMBER, _GRE_NUMBER = 17, 47
#: What Ethernet has room for with numbers in data.
_MRU = 1500 - _IPV4 - _UDP - 16
#: The same with GRE, and MPPE in it.
_PPTP_MRU = 1500 - _IPV4 - 16 - 8


class Macs(NamedTuple):
    """Of the two ends of the link to the subscribers."""

    sub0: bytes
    eth1: bytes


class Session(Protocol):
    """What packets of a session look like."""

    @property
    def address(self) -> str:
        """The subscriber's."""

    def up(self, macs: Macs, packet: bytes) -> bytes:
        """A frame with an IPv4 packet from the subscriber."""

    def down(self, macs: Macs, packet: bytes) -> bytes:
        """One for the subscriber, as npppyd sends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    #: In the names of figures.
    name: str
    #: The head of its block in npppd.conf, and what stands in there.
    protocol: str
    options: str
    #: Arguments of npppysim.
    dial: tuple[str, ...]
    #: A session, as npppysim's event tells of it.
    session: Callable[[dict[str, Any]], Session]
    #: How many interfaces npppyd gives programs to, by what carries the data.
    programs: dict[str, int]
    #: Octets of a frame down that may be anything.
    loose: tuple[slice, ...] = ()
    #: Where a frame up has a number that counts, of so many octets; 0: it has none.
    count_at: int = 0
    count_size: int = 2
    #: As that of a stream up: acknowledgments, with their padding, are made of the frames that bring them with them.
    anew: bool = False
    #: Whether sessions stay when npppysim has gone; else it has to be there.
    lasting: bool = True
    #: Behind the names of figures.
    variant: str = ""

    def figure(self, what: str) -> str:
        """The name of a figure of pipex: those of PPPoE do not say what they are of."""
        return f"pipex.{what}" if self is PPPOE else f"pipex.{self.name}.{what}"

    def tunnels(self, count: int) -> tuple[str, ...]:
        """Arguments of npppysim for sessions in so many tunnels; PPPoE has none."""
        return () if self.name == PPPOE.name else ("--tunnels", str(count))


class PppoeSession(NamedTuple):
    address: str
    session_id: int
    #: Of the subscriber.
    mac: bytes

    def up(self, macs: Macs, packet: bytes) -> bytes:
        return session_frame(macs.eth1, self.mac, self.session_id, _IP + packet)

    def down(self, macs: Macs, packet: bytes) -> bytes:
        return session_frame(self.mac, macs.eth1, self.session_id, _IP + packet)


def _pppoe(told: dict[str, Any]) -> PppoeSession:
    return PppoeSession(told["address"], told["session_id"], bytes.fromhex(told["mac"].replace(":", "")))


PPPOE = Carrier(
    name="pppoe",
    protocol="pppoe",
    options="""listen on interface eth1
    mppe no""",
    dial=("pppoe", "--interface", "sub0"),
    session=_pppoe,
    programs={"user": 0, "stack": 1, "fast": 2},
)


class L2tpSession(NamedTuple):
    address: str
    #: Of npppyd, in what it is sent.
    tunnel_id: int
    session_id: int
    #: Of the LAC, in what it is sent.
    lac_tunnel_id: int
    lac_session_id: int
    lac_port: int
    #: Whether data has sequence numbers, here all 0; whether that of npppyd has a Length, and a UDP checksum.
    sequence: bool = False
    length: bool = True
    checksum: bool = False

    def up(self, macs: Macs, packet: bytes) -> bytes:
        data = _data(self.tunnel_id, self.session_id, packet, self.sequence, True)
        return _frame(macs.eth1, macs.sub0, (LAC, self.lac_port), (LNS, L2TP_PORT), data, False)

    def down(self, macs: Macs, packet: bytes) -> bytes:
        data = _data(self.lac_tunnel_id, self.lac_session_id, packet, self.sequence, self.length)
        return _frame(macs.sub0, macs.eth1, (LNS, L2TP_PORT), (LAC, self.lac_port), data, self.checksum)


def _l2tp(told: dict[str, Any]) -> L2tpSession:
    return L2tpSession(
        told["address"],
        told["peer_tunnel_id"],
        told["peer_session_id"],
        told["tunnel_id"],
        told["session_id"],
        told["local_port"],
    )


def _data(tunnel_id: int, session_id: int, packet: bytes, sequence: bool, length: bool) -> bytes:
    """RFC 2661 section 3.1, without an Offset; Address, Control and Protocol of PPP."""
    flags = 0x4000 * length | 0x0800 * sequence | 2
    rest = tunnel_id.to_bytes(2, "big") + session_id.to_bytes(2, "big") + bytes(4) * sequence
    rest += b"\xff\x03" + _IP + packet
    return flags.to_bytes(2, "big") + (4 + len(rest)).to_bytes(2, "big") * length + rest


def _frame(
    destination: bytes, source: bytes, sender: tuple[str, int], receiver: tuple[str, int], data: bytes, check: bool
) -> bytes:
    """*check*: with a UDP checksum."""
    addresses = socket.inet_aton(sender[0]) + socket.inet_aton(receiver[0])
    size = (_UDP + len(data)).to_bytes(2, "big")
    udp = b"".join(port.to_bytes(2, "big") for _, port in (sender, receiver)) + size
    summed = checksum(addresses + b"\0\x11" + size + udp + b"\0\0" + data) or 0xFFFF if check else 0
    udp += summed.to_bytes(2, "big") + data
    return destination + source + b"\x08\0" + _ip(sender[0], receiver[0], _UDP_NUMBER, udp)


def _ip(sender: str, receiver: str, protocol: int, data: bytes) -> bytes:
    # What npppyd's kernel does not fragment has no identification that anybody could foresee.
    ip = b"\x45\0" + (_IPV4 + len(data)).to_bytes(2, "big") + bytes(4) + bytes((64, protocol))
    addresses = socket.inet_aton(sender) + socket.inet_aton(receiver)
    return ip + checksum(ip + b"\0\0" + addresses).to_bytes(2, "big") + addresses + data


_UDP_AT = _ETHERNET + _IPV4
_NS_AT = _UDP_AT + _UDP + 8
#: Identification and flags, and checksum, of an outer IPv4 header.
_IPV4_LOOSE = slice(_ETHERNET + 4, _ETHERNET + 8), slice(_ETHERNET + 10, _ETHERNET + 12)
_CHECKSUM = slice(_UDP_AT + 6, _UDP_AT + 8)

#: Sessions of one LAC, which is on one port, without numbers in data.  Nobody asks the LAC whether it is there: it has
#: gone when packets flow.
L2TP = Carrier(
    name="l2tp",
    protocol="l2tp",
    options=f"""
    listen on {LNS}
    mppe no
    mru {_MRU}
    l2tp-secret "{SECRET}"
    l2tp-half-open-peer-limit 1024
    l2tp-data-use-seq no
    l2tp-hello-interval 86400""",
    dial=("l2tp", "--server", LNS, "--secret", SECRET, "--mru", str(_MRU)),
    session=_l2tp,
    programs={"user": 0, "stack": 2, "fast": 2},
    # In Python's data the checksum is the device's to fill in.
    loose=(*_IPV4_LOOSE, _CHECKSUM),
)
#: The same with numbers.
SEQUENCE = replace(
    L2TP,
    name="l2tp.sequence",
    options=L2TP.options.replace("use-seq no", "use-seq yes"),
    session=lambda told: _l2tp(told)._replace(sequence=True),
    loose=(*L2TP.loose, slice(_NS_AT, _NS_AT + 2)),
    count_at=_NS_AT,
)
#: The same with UDP checksums in what the kernel sends.
CHECKSUM = replace(
    L2TP,
    name="l2tp.checksum",
    options=L2TP.options + "\n    l2tp-udp-checksum yes",
    session=lambda told: _l2tp(told)._replace(checksum=True),
    loose=_IPV4_LOOSE,
)


class PptpSession(NamedTuple):
    address: str
    #: Of npppyd, in what it is sent, and of the client, in what that is.
    call_id: int
    client_call_id: int

    def up(self, macs: Macs, packet: bytes) -> bytes:
        return self.send(macs, 0, _IP + packet)

    def send(self, macs: Macs, number: int, ppp: bytes) -> bytes:
        """A frame from the client, from PPP's Protocol field on, with this sequence number; nothing is acknowledged."""
        data = _enhanced(0x3001, self.call_id, number.to_bytes(4, "big"), ppp)
        return macs.eth1 + macs.sub0 + b"\x08\0" + _ip(LAC, LNS, _GRE_NUMBER, data)

    def down(self, macs: Macs, packet: bytes) -> bytes:
        return self.receive(macs, _IP + packet)

    def receive(self, macs: Macs, ppp: bytes) -> bytes:
        """The same from npppyd, whose sequence and acknowledgment numbers are 0 here."""
        data = _enhanced(0x3081, self.client_call_id, bytes(8), ppp)
        return macs.sub0 + macs.eth1 + b"\x08\0" + _ip(LNS, LAC, _GRE_NUMBER, data)


def _pptp(told: dict[str, Any]) -> PptpSession:
    return PptpSession(told["address"], told["peer_call_id"], told["call_id"])


def _enhanced(flags: int, call_id: int, numbers: bytes, ppp: bytes) -> bytes:
    """RFC 2637 section 4.1; Address, Control of PPP."""
    payload = b"\xff\x03" + ppp
    words = (flags, 0x880B, len(payload), call_id)
    return b"".join(word.to_bytes(2, "big") for word in words) + numbers + payload


#: Where GRE has its numbers: those up have no acknowledgment.
GRE_NUMBERS_AT = _ETHERNET + _IPV4 + 8

#: Sessions of clients behind one address, each connection with many calls of theirs.  npppysim, which says nothing when
#: packets flow, holds the connections.
PPTP = Carrier(
    name="pptp",
    protocol="pptp",
    options=f"""
    listen on {LNS}
    mppe no
    mru {_PPTP_MRU}
    pptp-peer-limit 0
    pptp-echo-interval 86400""",
    dial=("pptp", "--server", LNS, "--mru", str(_PPTP_MRU), "--mppe", "no"),
    session=_pptp,
    programs={"user": 0, "stack": 2, "fast": 2},
    loose=(*_IPV4_LOOSE, slice(GRE_NUMBERS_AT, GRE_NUMBERS_AT + 8)),
    count_at=GRE_NUMBERS_AT,
    count_size=4,
    anew=True,
    lasting=False,
)
#: The same, encrypted where npppysim is not told otherwise.
MPPE = replace(
    PPTP,
    options=PPTP.options.replace("mppe no", "mppe yes\n    mppe-key-length 128\n    mppe-key-state stateless"),
    dial=(*PPTP.dial, "--mppe", "required"),
    variant=".mppe",
)

CARRIERS = {carrier.name: carrier for carrier in (PPPOE, L2TP, PPTP)}

