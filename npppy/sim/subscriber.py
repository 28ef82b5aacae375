"""The subscriber's end of a PPP session: it authenticates itself, and takes the address that it is given."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ..config.model import AuthMethod
from ..ppp import proto
from ..ppp.cause import Cause
from ..ppp.chap import ChapClient
from ..ppp.fsm import State
from ..ppp.ipcp import Ipcp, IpcpClient
from ..ppp.lcp import AUTH_METHODS, DEFAULT_ACCM, Lcp, LcpPolicy
from ..ppp.link import Call, Link, Proxy
from ..ppp.mppe import Keys
from ..ppp.options import decode
from ..ppp.pap import PapClient
from ..ppp.privacy import Privacy, required, wanted
from ..ppp.station import Phase, Station
from ..wheel import Wheel

_IP = proto.IP.to_bytes(2, "big")


class Credentials(NamedTuple):
    """At most 255 octets each."""

    name: bytes
    password: bytes


class Watch(Protocol):
    """Who is told how a subscriber fares."""

    def up(self, now: float) -> None:
        """IPCP is open, for the first time or again: the subscriber has an address, and wants its ``flow``."""

    def ended(self, reason: str, now: float) -> None:
        """It is all over; *reason* says why in a few words, the same ones for the same cause."""

    def malformed(self, reason: str) -> None:
        """The concentrator has sent a frame that breaks its format."""


class Subscriber(Station):
    """Dials by the PPP options of its link's tunnel: MRU, methods (those it knows), MPPE, limits, times, keepalive."""

    __slots__ = (
        "_credentials",
        "_echoes",
        "_rng",
        "_sworn",
        "_watch",
        "_wheel",
        "address",
        "concentrator",
        "dns",
        "number",
        "reason",
    )

    logger = logging.getLogger("npppy.sim")

    def __init__(
        self,
        number: int,
        call: Call,
        credentials: Credentials,
        watch: Watch,
        wheel: Wheel,
        rng: Callable[[int], bytes],
        now: float,
    ) -> None:
        super().__init__(call)
        self.number = number
        #: What the concentrator gave: 0 and () before it has.
        self.address = 0
        self.dns: tuple[int, ...] = ()
        #: The address that the concentrator has itself; 0: it has told none.
        self.concentrator = 0
        #: Why it ends; "" until then.
        self.reason = ""
        self._credentials = credentials
        self._watch = watch
        self._wheel = wheel
        self._rng = rng
        self._echoes = 0
        # What has once been encrypted never goes in the clear again.
        self._sworn = required(call.link.tunnel)
        self._bound(now)
        if call.link.proxy is not None:
            self._begin(call.link.proxy, now)
            return
        lcp = self.lcp = self._make_lcp(State.INITIAL)
        lcp.open(now)
        lcp.up(now)

    def _bound(self, now: float) -> None:
        self.wheel.arm(self, now + self.call.link.tunnel.negotiation_timeout)

    @property
    def wheel(self) -> Wheel:
        return self._wheel

    def random(self, count: int) -> bytes:
        return self._rng(count)

    def log(self, level: int, text: str) -> None:
        self.logger.log(level, "subscriber=%d %s", self.number, text)

    def malformed(self, reason: str) -> None:
        self._watch.malformed(reason)
        self.log(logging.DEBUG, f"layer=base logtype=Malformed reason={reason}")

    def send_ip(self, packet: bytes) -> None:
        """Send an IPv4 packet, of at most ``peer_mru`` octets; for a subscriber that is up."""
        (self.call.send if self.mppe is None else self.send_encrypted)(_IP + packet)

    # LCP.

    def _make_lcp(self, state: State) -> Lcp:
        link, tunnel = self.call.link, self.call.link.tunnel
        policy = LcpPolicy(
            mru=min(tunnel.mru, link.max_mru),
            max_mru=link.max_mru,
            offer=tunnel.authentication_methods,
            unwanted=link.unwanted,
        )
        return Lcp(self, tunnel.lcp, policy, state)

    def resume_lcp(self) -> Lcp:
        return self._make_lcp(State.OPENED)

    def lcp_up(self, now: float) -> None:
        assert self.lcp is not None
        self.call.lcp_opened(
            send_accm=self.lcp.accm, receive_accm=DEFAULT_ACCM, pfc=self.lcp.pfc, acfc=self.lcp.acfc
        )
        if self.peer_auth is None:
            self._network(None, now)
        else:
            self._authenticate(self.peer_auth, now)

    def _begin(self, proxy: Proxy, now: float) -> None:
        """Begin with LCP open: a LAC has negotiated it with us, and asks us to authenticate ourselves."""
        ours, theirs = dict(decode(proxy.last_received)), dict(decode(proxy.last_sent))
        self.mru, self.peer_mru = (int.from_bytes(side[proto.OPT_MRU], "big") for side in (ours, theirs))
        self.magic, self.peer_magic = (int.from_bytes(side[proto.OPT_MAGIC], "big") for side in (ours, theirs))
        self.peer_auth = AUTH_METHODS[theirs[proto.OPT_AUTH]]
        self.lcp = self._make_lcp(State.OPENED)
        self._authenticate(self.peer_auth, now)

    def _authenticate(self, method: AuthMethod, now: float) -> None:
        self.phase = Phase.AUTHENTICATE
        self.auth_client = PapClient(self) if method is AuthMethod.PAP else ChapClient(self, method)
        self.auth_client.start(now)

    def lcp_down(self, now: float) -> None:
        """LCP leaves Opened: it negotiates anew, or it ends."""
        lcp = self.lcp
        assert lcp is not None
        was_up = self.phase is Phase.UP
        self._stop_upper()
        if self.phase is Phase.TERMINATE:
            return
        if lcp.state in (State.STOPPING, State.CLOSING):
            self._ending("terminated by the concentrator")
            return
        self.phase = Phase.ESTABLISH
        if was_up:
            self._bound(now)

    def lcp_failed(self, reason: str, now: float) -> None:
        self.end(reason, now)

    def lcp_finished(self, now: float) -> None:
        self.abandon("no answer to LCP", now)

    def looped_back(self, now: float) -> None:
        self.end("looped back", now)

    def protocol_rejected(self, protocol: int, now: float) -> None:
        if protocol == proto.CCP:
            if self.privacy is not None:
                self.privacy.rejected(now)
            return
        self.end(f"the concentrator rejects {proto.NAMES.get(protocol, f'protocol 0x{protocol:04x}')}", now)

    # Authentication.

    def credentials(self) -> tuple[bytes, bytes]:
        return self._credentials

    def authenticated(self, success: bool, message: str, now: float) -> None:
        if not success:
            self.log(logging.INFO, f"layer=auth logtype=Failure {message!r}")
            self.end("no answer to authentication" if message == "no answer" else "authentication failed", now)
        elif self.phase is Phase.AUTHENTICATE:
            client = self.auth_client
            self._network(client.keys if isinstance(client, ChapClient) else None, now)

    # Encryption.

    def data_may_pass(self, now: float) -> None:
        self._sworn |= self.mppe is not None
        self._network_up(now)

    def data_must_stop(self, now: float) -> None:
        self._network_down(now)

    def unprotected(self, reason: str, now: float) -> None:
        self.end(f"no encryption: {reason}", now)

    def out_of_step(self, reason: str, now: float) -> None:
        self.end(reason, now)

    # IPCP.

    def _network(self, keys: Keys | None, now: float) -> None:
        """There is a link, which authentication has given *keys* or none."""
        self.phase = Phase.NETWORK
        tunnel = self.call.link.tunnel
        if self._sworn and keys is None:
            self.end("no encryption: authentication gives no keys", now)
            return
        if keys is not None and wanted(tunnel):
            self.privacy = Privacy(self, tunnel, keys, must=self._sworn)
        # After renegotiation the address of before is asked for: some concentrators let one keep it.
        ipcp = self.ipcp = IpcpClient(self, tunnel.ipcp, self.address, dns=(0, 0))
        ipcp.open(now)
        ipcp.up(now)
        if self.privacy is not None:
            self.privacy.start(now)

    def resume_ipcp(self) -> Ipcp:
        return IpcpClient(self, self.call.link.tunnel.ipcp, self.address, self.dns, State.OPENED)

    def choose_address(self, wish: int, now: float) -> int:
        """The concentrator's address is its own affair."""
        self.concentrator = wish
        return wish

    def ipcp_up(self, now: float) -> None:
        ipcp = self.ipcp
        assert ipcp is not None
        self.address = ipcp.wants.get(proto.OPT_ADDRESS, 0)
        self.dns = tuple(ipcp.wants[kind] for kind in (proto.OPT_DNS1, proto.OPT_DNS2) if kind in ipcp.wants)
        if not self.address:
            self.end("no address", now)
            return
        self._network_up(now)

    def _network_up(self, now: float) -> None:
        """IPCP or CCP has come to an end: data may pass when both have."""
        if self.phase not in (Phase.NETWORK, Phase.UP) or (self.privacy is not None and self.privacy.pending):
            return
        if self.ipcp is not None and self.ipcp.state is not State.OPENED:
            return
        self.phase = Phase.UP
        self._rest(now)
        self._watch.up(now)

    def ipcp_down(self, now: float) -> None:
        self._network_down(now)

    def _network_down(self, now: float) -> None:
        self._close_flow()
        if self.phase is Phase.UP:
            self.phase = Phase.NETWORK
            self._bound(now)

    def ipcp_finished(self, now: float) -> None:
        self.end("IPCP came to no agreement", now)

    # At rest, and the end.

    def settle(self) -> None:
        lcp, ipcp, privacy = self.lcp, self.ipcp, self.privacy
        if (
            self.phase is Phase.UP
            and (lcp is None or lcp.state is State.OPENED)
            and (ipcp is None or ipcp.state is State.OPENED)
            and (privacy is None or privacy.settle())
        ):
            # Who authenticates us may challenge us again at any time (RFC 1994 section 2): auth_client stays.
            self.lcp = self.ipcp = None
            if self.mppe is None:
                self.privacy = None

    def _rest(self, now: float) -> None:
        """The concentrator is there: it need not be asked for a while."""
        self._echoes = 0
        tunnel = self.call.link.tunnel
        if tunnel.lcp_keepalive:
            self.wheel.arm(self, now + tunnel.lcp_keepalive_interval)
        else:
            self.wheel.disarm(self)

    def expire(self, now: float) -> None:
        tunnel = self.call.link.tunnel
        if self.phase is not Phase.UP:
            self.end(f"not up in time, in phase {self.phase.name.lower()}", now)
        elif self._echoes >= tunnel.lcp_keepalive_max_retries:
            self.end("no answer to LCP echoes", now)
        else:
            self._echoes += 1
            self.wheel.arm(self, now + tunnel.lcp_keepalive_retry_interval)
            self.send_echo()

    def echo_reply(self, identifier: int, magic: int, now: float) -> None:
        if self.phase is Phase.UP:
            self._rest(now)

    def end(self, reason: str, now: float) -> None:
        """End the session: LCP by Terminate-Request, then the call."""
        if self.phase >= Phase.TERMINATE:
            return
        lcp = self.lcp
        if lcp is None:
            lcp = self.lcp = self.resume_lcp()
        self._ending(reason)
        # It was brought up at once, so there is always a peer to tell.
        lcp.close(now)

    def abandon(self, reason: str, now: float) -> None:
        """End the session by ending the call, without a word of LCP."""
        if self.phase is not Phase.DEAD:
            self.call.close(Cause.USER_REQUEST)
            self._dead(reason, now)

    def gone(self, cause: Cause, reason: str, now: float) -> None:
        if self.phase is not Phase.DEAD:
            self._dead(reason, now)

    def changed(self, link: Link, now: float, *, moved: bool = False) -> None:
        """The path has changed: negotiate anew."""
        if self.phase is Phase.UP:
            self.negotiate_anew(now)

    def _ending(self, reason: str) -> None:
        self.reason = reason
        self._stop_upper()
        self.phase = Phase.TERMINATE
        self.wheel.disarm(self)

    def _stop_upper(self) -> None:
        if self.auth_client is not None:
            self.auth_client.stop()
            self.auth_client = None
        if self.ipcp is not None:
            self.wheel.disarm(self.ipcp)
            self.ipcp = None
        self._close_flow()
        if self.privacy is not None:
            self.privacy.stop()
            self.privacy = self.mppe = None

    def _close_flow(self) -> None:
        if self.flow is not None:
            self.flow.close()
            self.flow = None

    def _dead(self, reason: str, now: float) -> None:
        if self.phase is not Phase.TERMINATE:
            self._ending(reason)
        self.phase = Phase.DEAD
        if self.lcp is not None:
            self.wheel.disarm(self.lcp)
            self.lcp = None
        self._watch.ended(self.reason, now)
