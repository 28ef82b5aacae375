"""One end of a PPP link: where frames go, echoes, rejects, and what LCP has agreed.

The concentrator's sessions and the simulator's subscribers are stations.  The control protocols' automata exist while
something is negotiated; what they have agreed stays here.
"""

from __future__ import annotations

import enum
import logging
from abc import abstractmethod
from typing import ClassVar

from ..config.model import AuthMethod
from ..cursor import Cursor, Malformed
from ..pipex.base import Flow
from ..wheel import Timed, Wheel
from . import proto
from .fsm import State
from .ipcp import Ipcp
from .lcp import Lcp
from .link import Call
from .login import Client, Server
from .mppe import Mppe
from .privacy import Privacy

_PROTOCOLS = {
    AuthMethod.PAP: proto.PAP,
    AuthMethod.CHAP: proto.CHAP,
    AuthMethod.MSCHAPV2: proto.CHAP,
    AuthMethod.EAP: proto.EAP,
}


class Phase(enum.IntEnum):
    """RFC 1661 section 3.2, with Network split by whether data may pass."""

    ESTABLISH = 0
    AUTHENTICATE = 1
    NETWORK = 2
    UP = 3
    TERMINATE = 4
    DEAD = 5


class Station(Timed):
    __slots__ = (
        "_identifier",
        "auth",
        "auth_client",
        "auth_server",
        "call",
        "flow",
        "ipcp",
        "lcp",
        "magic",
        "mppe",
        "mru",
        "peer_auth",
        "peer_magic",
        "peer_mru",
        "phase",
        "privacy",
    )

    #: What the log lines of this station begin with.
    logger: ClassVar[logging.Logger] = logging.getLogger("npppy.ppp")

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.phase = Phase.ESTABLISH
        # The automata, while something is negotiated.
        self.lcp: Lcp | None = None
        self.ipcp: Ipcp | None = None
        self.auth_server: Server | None = None
        self.auth_client: Client | None = None
        # What LCP has agreed (npppy.ppp.lcp.LcpHost).
        self.mru = proto.DEFAULT_MRU
        self.peer_mru = proto.DEFAULT_MRU
        self.magic = 0
        self.peer_magic = 0
        self.auth: AuthMethod | None = None
        self.peer_auth: AuthMethod | None = None
        self.flow: Flow | None = None
        #: How data is encrypted; None: not, as far as it may pass.
        self.mppe: Mppe | None = None
        #: What sees to that; None: data goes in the clear.
        self.privacy: Privacy | None = None
        # Of Echo-Request and Protocol-Reject.
        self._identifier = 0

    # What a station supplies.

    @property
    @abstractmethod
    def wheel(self) -> Wheel:
        """Where its timers run."""

    @abstractmethod
    def random(self, count: int) -> bytes:
        """Random octets."""

    @abstractmethod
    def log(self, level: int, text: str) -> None:
        """A log line of this station; *text* begins with the layer."""

    def remark(self, text: str, now: float) -> None:
        """A log line that the peer can bring about at will."""
        self.log(logging.INFO, text)

    @abstractmethod
    def malformed(self, reason: str) -> None:
        """A frame was dropped because it breaks its format."""

    @abstractmethod
    def resume_lcp(self) -> Lcp:
        """LCP's automaton in Opened, rebuilt from what is agreed."""

    @abstractmethod
    def resume_ipcp(self) -> Ipcp:
        """IPCP's automaton in Opened, rebuilt from what is agreed."""

    def echo_reply(self, identifier: int, magic: int, now: float) -> None:
        """An Echo-Reply that carries the peer's magic number, as it should."""

    @abstractmethod
    def looped_back(self, now: float) -> None:
        """We hear ourselves."""

    def settle(self) -> None:
        """Drop the automata if there is nothing left for them to do."""

    # Frames.

    @property
    def lcp_open(self) -> bool:
        lcp = self.lcp
        if lcp is None:
            # Dropped while the session was at rest; IPCP may negotiate anew without it.
            return self.phase in (Phase.NETWORK, Phase.UP)
        return lcp.state is State.OPENED

    def send(self, protocol: int, payload: bytes) -> None:
        self.call.send(protocol.to_bytes(2, "big") + payload)

    def receive(self, frame: bytes, now: float) -> None:
        """A frame of the peer, from its Protocol field on."""
        flow = self.flow
        if flow is not None and self.mppe is None and frame[:2] == b"\x00\x21":
            flow.input(frame[2:], now)
            return
        try:
            self._dispatch(frame, now)
        except Malformed as error:
            self.malformed(str(error))
            # It may have been an automaton's, made for it alone.
            self.settle()

    def _dispatch(self, frame: bytes, now: float) -> None:
        cursor = Cursor(frame)
        protocol = cursor.u8()
        # Protocol-Field-Compression (RFC 1661 section 6.5): the least octet is odd, all before it are even.
        if not protocol & 1:
            protocol = protocol << 8 | cursor.u8()
        elif proto.OPT_PFC in self.call.link.unwanted:
            raise Malformed("compressed-protocol")
        payload = cursor.rest()
        if protocol == proto.LCP:
            self._lcp_input(payload, now)
        elif protocol == proto.COMPRESSED:
            self._decrypt(payload, now)
        elif protocol in (proto.IP, proto.IPV6) and self.mppe is not None:
            # What anybody may have sent.
            self.malformed("clear-text")
        elif protocol == proto.IP:
            if self.flow is not None:
                self.flow.input(payload, now)
        elif not self.lcp_open or self.phase is Phase.TERMINATE:
            # RFC 1661 section 3.4: LCP alone is heard before it is open.
            return
        elif protocol in (proto.PAP, proto.CHAP, proto.EAP):
            self._auth_input(protocol, payload, now)
        elif self.phase < Phase.NETWORK:
            # RFC 1661 section 3.5: what comes before authentication is done is discarded.
            return
        elif protocol == proto.IPCP:
            ipcp = self.ipcp
            if ipcp is None:
                ipcp = self.ipcp = self.resume_ipcp()
            ipcp.receive(payload, now)
            self.settle()
        elif protocol == proto.CCP and self.privacy is not None:
            self.privacy.receive(payload, now)
        else:
            self._protocol_reject(protocol, payload)

    # Data that is encrypted.

    def negotiate_anew(self, now: float) -> None:
        """Begin with LCP."""
        lcp = self.lcp = self.lcp or self.resume_lcp()
        lcp.down(now)
        lcp.up(now)

    def send_encrypted(self, frame: bytes) -> None:
        """Send a frame of data, given in the clear; it is lost where nothing is agreed any more."""
        if self.mppe is not None:
            send = self.mppe.send
            if send.inject is not None:
                send.inject(frame)
            else:
                self.call.send(send.encrypt(frame))

    def _decrypt(self, packet: bytes, now: float) -> None:
        flow, mppe = self.flow, self.mppe
        if flow is None or mppe is None:
            # While CCP negotiates, what comes is of before.
            self.malformed("encrypted-too-early")
            return
        frame = mppe.receive.decrypt(packet, now)
        if frame is None:
            self.malformed("undecryptable")
            if self.privacy is not None:
                self.privacy.undecrypted(mppe, now)
        else:
            self.decrypted(frame, flow, now)

    def decrypted(self, frame: bytes, flow: Flow, now: float) -> None:
        """Take in a frame of data, from its Protocol field of two octets on."""
        if frame[1] == proto.IP:
            flow.input(frame[2:], now)
        else:
            flow.input6(frame[2:], now)

    def _lcp_input(self, packet: bytes, now: float) -> None:
        if packet[:1] in (b"\x09", b"\x0a") and self.lcp_open:
            self._echo(packet, now)
            return
        lcp = self.lcp
        if lcp is None:
            lcp = self.lcp = self.resume_lcp()
        lcp.receive(packet, now)
        self.settle()

    def _auth_input(self, protocol: int, packet: bytes, now: float) -> None:
        # Each side knows its codes apart, so a packet that is not for one may be given to both.
        if self.auth_server is not None and self._speaks(self.auth, protocol):
            self.auth_server.receive(packet, now)
        if self.auth_client is not None and self._speaks(self.peer_auth, protocol):
            self.auth_client.receive(packet, now)

    @staticmethod
    def _speaks(method: AuthMethod | None, protocol: int) -> bool:
        return method is not None and protocol == _PROTOCOLS[method]

    def _echo(self, packet: bytes, now: float) -> None:
        """Echo-Request and Echo-Reply (RFC 1661 section 5.8)."""
        cursor = Cursor(packet)
        code, identifier, length = cursor.u8(), cursor.u8(), cursor.u16()
        body = cursor.sub(length - 4)
        magic = body.u32()
        if code == proto.ECHO_REPLY:
            if magic == self.peer_magic:
                self.echo_reply(identifier, magic, now)
        elif magic and magic == self.magic:
            # Only a request shows a loop: some peers wrongly reply with our number.
            self.looped_back(now)
        else:
            data = self.magic.to_bytes(4, "big") + body.rest()
            self._lcp_packet(proto.ECHO_REPLY, identifier, data)

    def send_echo(self) -> int:
        """Send an Echo-Request; returns its identifier."""
        self._identifier = (self._identifier + 1) & 0xFF
        self._lcp_packet(proto.ECHO_REQUEST, self._identifier, self.magic.to_bytes(4, "big"))
        return self._identifier

    def _protocol_reject(self, protocol: int, payload: bytes) -> None:
        self._identifier = (self._identifier + 1) & 0xFF
        self._lcp_packet(proto.PROTOCOL_REJECT, self._identifier, protocol.to_bytes(2, "big") + payload)

    def _lcp_packet(self, code: int, identifier: int, data: bytes) -> None:
        # What we quote of the peer must fit what it takes (RFC 1661 section 5.7).
        data = data[: self.peer_mru - 4]
        self.send(proto.LCP, bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big") + data)
