"""A subscriber's session: authentication, admission, addresses, data, keepalive, and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from ..aaa.base import NO_PROFILE, Accept, Answer, Challenge, Failed, Pending, Profile, Proof, Reject, Request
from ..config.model import AuthMethod, Bind, Mppe, Realm
from ..pipex.base import NO_WISH, ConflictError, Counters, Flow, Police
from ..text import printable
from ..wheel import Wheel
from . import carriage, proto
from .cause import Cause
from .chap import ChapServer
from .dump import Dumped
from .eap import EapServer
from .fsm import State
from .ipcp import Ipcp
from .lcp import DEFAULT_ACCM, Lcp, LcpPolicy
from .link import Call, Link, Proxy
from .login import Asking
from .pap import PapServer
from .privacy import Privacy, required, title, wanted
from .proxy import UnacceptableError, accept, server
from .station import Phase

if TYPE_CHECKING:
    from .engine import Engine, Login, Site


#: Lines that a peer can make us log at once, and the seconds to the next one after those.
REMARK_BURST = 20
REMARK_INTERVAL = 3

#: Seconds that the clock which a back end hears peers by may be behind ours.
CLOCK_TICK = 0.02

#: The counters of a session that has not closed a flow yet: one for all, since most never close any before they end.
_NOTHING = Counters()


class Session(Dumped):
    """One per call.  At rest it is this record and its entry in the data path (design, rule 4)."""

    __slots__ = (
        "_asking",
        "_chatter",
        "_closed",
        "_counters",
        "_deadline",
        "_dialin",
        "_echo_at",
        "_echoes",
        "_limited",
        "_sworn",
        "address",
        "authentic",
        "bind",
        "cause",
        "engine",
        "id",
        "prefixlen",
        "profile",
        "reason",
        "routed",
        "routes",
        "servers",
        "site",
        "started",
        "up_since",
        "username",
    )

    def __init__(self, engine: Engine, ppp_id: int, call: Call, now: float) -> None:
        super().__init__(call)
        self.tunnel = call.link.tunnel
        self.engine = engine
        #: npppd's ppp id: counted through the whole life of the process.
        self.id = ppp_id
        #: As the peer sent it.
        self.username = ""
        #: The realm that has let it in, and where its sessions go, once admitted.
        self.bind: Bind | None = None
        #: Where its packets go, once admitted.
        self.site: Site | None = None
        #: The name servers to tell the peer, by IPCP option; shared by all that are told the same.
        self.servers: Mapping[int, int] = {}
        #: The peer's IPv4 address; 0: none yet.
        self.address = 0
        #: Of the network behind the peer; 32: the peer alone.
        self.prefixlen = 32
        #: More networks behind the peer.
        self.routes: tuple[IPv4Network, ...] = ()
        #: The routes of its own, for what no pool's route covers.
        self.routed: tuple[IPv4Network, ...] = ()
        #: What its realm says of it.
        self.profile: Profile = NO_PROFILE
        #: Who has let it in; see :attr:`npppy.aaa.base.Accept.authentic`.
        self.authentic = 0
        #: On the monotonic clock.
        self.started = now
        #: When IPCP first opened, on the monotonic clock; None: not yet.
        self.up_since: float | None = None
        self.cause = Cause.NAS_ERROR
        self.reason = ""
        # Whether data was encrypted once, and so is never to pass in the clear any more.
        self._sworn = False
        # While the peer is asked who it is.
        self._asking: Asking | None = None
        # Since when its realm's session-timeout runs.
        self._limited = now
        # How a LAC has authenticated the peer; "": LCP was negotiated here.
        self._dialin = ""
        # Of the flows that are closed already, and the last of them, as long as it may count a packet yet.
        self._counters = _NOTHING
        self._closed: Flow | None = None
        # When all that the peer has made us log is paid off.
        self._chatter = now
        self._echo_at = 0.0
        self._echoes = 0
        self._deadline = now + self.tunnel.negotiation_timeout
        lcp = self.lcp = self._make_lcp(State.INITIAL)
        lcp.open(now)
        lcp.up_passive(now)
        self.wheel.arm(self, self._deadline)

    @property
    def login_of(self) -> Login | None:
        """The account that the session counts for, once admitted."""
        return None if self.bind is None else self.engine.login(self.bind, self.username)

    @property
    def realm(self) -> Realm | None:
        """The same account's realm, which costs less to ask for."""
        return None if self.bind is None else self.bind.realm

    @property
    def wheel(self) -> Wheel:
        return self.engine.wheel

    @property
    def acct_session_id(self) -> str:
        """See :attr:`npppy.aaa.base.Request.acct_session_id`."""
        return self.engine.acct_session_id(self.id)

    @property
    def name(self) -> str:
        """The user's name as servers know it."""
        login = self.login_of
        return self.profile.username or (self.username if login is None else login.user)

    def random(self, count: int) -> bytes:
        return self.engine.random(count)

    def log(self, level: int, text: str) -> None:
        self.logger.log(level, "ppp id=%d %s", self.id, text)

    def remark(self, text: str, now: float) -> None:
        paid = max(self._chatter, now)
        if paid < now + REMARK_BURST * REMARK_INTERVAL:
            self._chatter = paid + REMARK_INTERVAL
            self.log(logging.INFO, text)

    def malformed(self, reason: str) -> None:
        self.engine.malformed[reason] += 1
        self.log(logging.DEBUG, f"layer=base logtype=Malformed reason={reason}")

    # LCP.

    def _make_lcp(self, state: State) -> Lcp:
        link, tunnel = self.call.link, self.tunnel
        policy = LcpPolicy(
            mru=min(tunnel.mru, link.max_mru),
            max_mru=link.max_mru,
            demand=self._methods,
            unwanted=link.unwanted,
        )
        return Lcp(self, tunnel.lcp, policy, state)

    @property
    def _methods(self) -> tuple[AuthMethod, ...]:
        """How the peer may authenticate itself: where data must be encrypted, so that there are keys."""
        methods = self.tunnel.authentication_methods
        if required(self.tunnel):
            return tuple(method for method in methods if method.gives_keys)
        return methods

    def resume_lcp(self) -> Lcp:
        return self._make_lcp(State.OPENED)

    def begin(self, proxy: Proxy, now: float) -> None:
        """Take over what a LAC has negotiated, or do that anew; once, and before anything has come from the peer."""
        lcp = self.lcp
        assert lcp is not None
        try:
            agreed = accept(proxy, lcp.policy)
        except UnacceptableError as error:
            if proxy.renegotiable:
                self.remark(f'layer=lcp logtype=ProxyRefused reason="{error}"', now)
                # The peer has done its part and waits.
                lcp.speak(now)
            else:
                self.abandon(Cause.USER_ERROR, f"what the LAC has negotiated cannot be accepted: {error}", now)
            return
        lcp.stop()
        self.lcp = self.resume_lcp()
        self.mru, self.peer_mru = agreed.mru, agreed.peer_mru
        self.magic, self.peer_magic = agreed.magic, agreed.peer_magic
        self.auth, self._dialin = agreed.kind.method, agreed.kind.title
        self._lcp_opened(agreed.send_accm, agreed.receive_accm, agreed.pfc, agreed.acfc, now)
        self.auth_server, proof = server(self, proxy)
        self.login(proxy.name, proof, now)

    def lcp_up(self, now: float) -> None:
        lcp = self.lcp
        assert lcp is not None
        assert self.auth is not None
        self._dialin = ""
        self._lcp_opened(lcp.accm, DEFAULT_ACCM, lcp.pfc, lcp.acfc, now)
        self._authenticate(now)

    def _lcp_opened(self, send_accm: int, receive_accm: int, pfc: bool, acfc: bool, now: float) -> None:
        assert self.auth is not None
        # What the tunnel allows is the ceiling of what we send, whatever the peer would take.
        self.peer_mru = min(self.peer_mru, max(self.tunnel.mru, proto.MIN_MRU))
        self.remark(
            f"layer=lcp logtype=Opened mru={self.mru}/{self.peer_mru} auth={self._dialin or self.auth.value} "
            f"magic={self.magic:08x}/{self.peer_magic:08x}{self._by_proxy}",
            now,
        )
        self.call.lcp_opened(send_accm=send_accm, receive_accm=receive_accm, pfc=pfc, acfc=acfc)
        self.phase = Phase.AUTHENTICATE

    def lcp_down(self, now: float) -> None:
        """LCP leaves Opened: it negotiates anew, or it ends."""
        lcp = self.lcp
        assert lcp is not None
        was_up = self.phase is Phase.UP
        self._stop_upper(now)
        if self.phase is Phase.TERMINATE:
            return
        if lcp.state in (State.STOPPING, State.CLOSING):
            self._ending(Cause.USER_REQUEST, "the peer terminated LCP", now)
            return
        self.phase = Phase.ESTABLISH
        self._negotiate_again(was_up, now)

    def _negotiate_again(self, was_up: bool, now: float) -> None:
        """The bound begins anew only for a session that was up: renegotiating without end is not a way around it."""
        if was_up:
            self._deadline = now + self.tunnel.negotiation_timeout
            self.wheel.arm(self, self._deadline)

    def lcp_failed(self, reason: str, now: float) -> None:
        self.end(Cause.PORT_ERROR if reason == "looped back" else Cause.USER_ERROR, reason, now)

    def lcp_finished(self, now: float) -> None:
        self.abandon(Cause.LOST_CARRIER, "the peer does not answer LCP", now)

    def looped_back(self, now: float) -> None:
        self.end(Cause.PORT_ERROR, "looped back", now)

    def protocol_rejected(self, protocol: int, now: float) -> None:
        name = proto.NAMES.get(protocol, "unknown")
        self.remark(f"layer=lcp logtype=ProtocolReject proto={name}(0x{protocol:04x})", now)
        if protocol == proto.IPCP:
            ipcp = self.ipcp or (self.resume_ipcp() if self.phase is Phase.UP else None)
            if ipcp is not None:
                self.ipcp = ipcp
                ipcp.protocol_rejected(now)
        elif protocol == proto.CCP:
            if self.privacy is not None:
                self.privacy.rejected(now)
        elif protocol in (proto.LCP, proto.IP, proto.COMPRESSED) or self._speaks(self.auth, protocol):
            # Nothing is left of the session without it (RFC 1661 section 4.3, RXJ-).
            self.end(Cause.USER_ERROR, f"the peer rejects {name}", now)
        elif protocol not in proto.NAMES and self.privacy is not None and self.mppe is not None:
            self.privacy.misread(now)

    # Authentication.

    def _authenticate(self, now: float, *, again: bool = False) -> None:
        """Ask the peer who it is; *again*: it has said so before, and is up."""
        assert self.auth is not None
        if self.auth is AuthMethod.PAP:
            self.auth_server = PapServer(self)
        elif self.auth is AuthMethod.EAP:
            self.auth_server = EapServer(self)
        else:
            self.auth_server = ChapServer(self, self.auth)
        self._asking = Asking(self.profile.state, again=again)
        self.auth_server.start(now)

    def chap_name(self) -> bytes:
        return (self.tunnel.chap_name or self.engine.hostname).encode()

    def login(self, username: bytes, proof: Proof, now: float) -> None:
        name = username.decode("utf-8", "surrogateescape")
        if self.bind is not None and name != self.username:
            self.end(Cause.USER_ERROR, "another user after renegotiation", now)
            return
        self.username = name
        login = self.engine.find_login(self.tunnel, name)
        if self.login_of is not None and login is not None and not login.of_realm(self.login_of):
            # Since a reload: its limits, its address and its accounts are those of the old one.
            self.end(Cause.NAS_REQUEST, f"its realm is {login.realm.name} now", now)
            return
        asking = self._asking = self._asking or Asking()
        request = Request(
            session=self.id,
            acct_session_id=self.acct_session_id,
            realm=login.realm if login else None,
            username=name,
            account=login.account if login else name,
            user=login.user if login else name,
            proof=proof,
            link=self.call.link,
            check_calling_number=self.tunnel.callnum_check,
            keys=wanted(self.tunnel),
            state=asking.state,
            address=self.address,
            mtu=self.peer_mru,
        )
        # The bound on the negotiation is the peer's; it stands still while we are asked.
        self.wheel.disarm(self)
        asking.since = now

        def done(answer: Answer, at: float) -> None:
            self._resume_clock(asking, at)
            self._answered(login, answer, at)

        asking.pending = self.engine.aaa.authenticate(request, done, now)

    @property
    def _pending(self) -> Pending | None:
        """What a server is asked."""
        return None if self._asking is None else self._asking.pending

    @property
    def _again(self) -> bool:
        return self._asking is not None and self._asking.again

    def _resume_clock(self, asking: Asking, now: float) -> None:
        asking.pending = None
        self._deadline += now - asking.since
        if self.phase is Phase.UP:
            self._arm_rest(now)
        else:
            self.wheel.arm(self, self._deadline)

    def _answered(self, login: Login | None, answer: Answer, now: float) -> None:
        server = self.auth_server
        assert server is not None
        if isinstance(answer, Challenge):
            if self._asking is not None:
                self._asking.state = answer.state
            if self.phase is Phase.AUTHENTICATE:
                # The server may give the peer more time than we would: a token card has to be found.
                self._deadline = max(self._deadline, now + answer.timeout)
                self.wheel.arm(self, self._deadline)
            server.answer(answer, now)
            return
        refusal = ""
        if not isinstance(answer, Accept):
            refusal = answer.reason
        elif not self._can_encrypt(answer) and (self._must_encrypt or answer.mppe is Mppe.REQUIRED):
            refusal = "its packets must be encrypted, and its authentication gives no keys for that"
        elif self._again and answer.mppe is Mppe.REQUIRED and not self._must_encrypt:
            # Its data has long passed in the clear.
            refusal = "its packets must be encrypted from now on"
        elif self.bind is not None and answer.address not in (None, self.address):
            # Whoever gives out addresses takes the old one for free.
            refusal = f"it has another address now, {IPv4Address(answer.address)}"
        elif login is not None and self.bind is None:
            # Limits and addresses come before the peer hears of success.
            refusal = self.engine.admit(self, login, answer, now)
        if refusal or not isinstance(answer, Accept):
            self.engine.refused[login.realm.name if login is not None else ""] += 1
            self.log(
                logging.WARNING,
                f'layer=base logtype=TUNNELDENY user="{printable(self.username)}" '
                f'layer2={self.tunnel.protocol.title} layer2from={self.call.link.caller.text} reason="{refusal}"',
            )
            server.answer(Reject(reason=refusal) if isinstance(answer, Accept) else answer, now)
            # A user that we cannot serve has made no mistake.
            cause = Cause.SERVICE_UNAVAILABLE if isinstance(answer, Accept | Failed) else Cause.USER_ERROR
            self.end(cause, refusal, now)
            return
        self.authentic = answer.authentic
        self._limited = now
        self.apply(answer.profile, now)
        server.answer(answer, now)
        self.remark(f'layer={self._layer} logtype=Success username="{printable(self.username)}"', now)
        if self._again:
            # It has only said again who it is.  The keys stay: they change with CCP alone; and IPCP or CCP, if they
            # negotiate anew meanwhile, go on.
            self._asking = None
            if self.phase is Phase.UP:
                self._arm_rest(now)
                self.settle()
            return
        self.phase = Phase.NETWORK
        self._sworn |= answer.mppe is Mppe.REQUIRED
        if answer.keys is not None and self._can_encrypt(answer):
            # Before IPCP can be open: data waits for it.
            self.privacy = Privacy(
                self,
                self.tunnel,
                answer.keys,
                must=self._must_encrypt,
                lengths=answer.mppe_key_lengths,
                budget=self.engine.catching_up,
            )
        ipcp = self.ipcp = self._make_ipcp(State.INITIAL)
        ipcp.open(now)
        ipcp.up(now)
        if self.privacy is not None:
            self.privacy.start(now)

    @property
    def _layer(self) -> str:
        return {AuthMethod.PAP: "pap", AuthMethod.EAP: "eap"}.get(self.auth, "chap") if self.auth else "chap"

    def login_failed(self, reason: str, now: float) -> None:
        self.end(Cause.USER_ERROR, reason, now)

    # What its realm says of it.

    def apply(self, profile: Profile, now: float) -> None:
        """Go on by another profile.  What passes meanwhile passes."""
        old, self.profile = self.profile, profile
        if profile == old:
            return
        if profile.username != old.username:
            self.engine.rename(self, old.username, profile.username)
        if self.flow is not None and (profile.police_up, profile.police_down) != (old.police_up, old.police_down):
            self.limit()
        if self.phase is Phase.UP and self._pending is None:
            self._arm_rest(now)
        if self.up_since is not None:
            self.engine.notify("change", self, now)

    @property
    def limits(self) -> tuple[Police | None, Police | None]:
        """Of its rate, from the peer and to it: what an operator wants goes before what its realm says."""
        wish, profile = self.engine.wishes.get(self.id, NO_WISH), self.profile
        return wish.police_up or profile.police_up, wish.police_down or profile.police_down

    def limit(self) -> None:
        """Have the data path keep to them, without a packet lost over it."""
        if self.flow is not None:
            self.flow.police(*self.limits)

    @property
    def _idle_timeout(self) -> int:
        own = self.profile.idle_timeout
        return self.tunnel.idle_timeout if own is None else own

    def _timed_out(self, now: float) -> None:
        """Its realm's session-timeout has passed."""
        timeout = self.profile.session_timeout
        if not self.profile.reauthenticate or self._dialin or self.auth in (None, AuthMethod.PAP):
            # PAP cannot be asked again, and what a LAC has asked by may not be ours.
            self.end(Cause.SESSION_TIMEOUT, f"it has lasted {timeout} s", now)
        else:
            self._authenticate(now, again=True)
            self._arm_rest(now)

    # Encryption.

    @property
    def _must_encrypt(self) -> bool:
        return self._sworn or required(self.tunnel)

    def _can_encrypt(self, answer: Accept) -> bool:
        """Whether its login gives what encryption needs, and allows it."""
        lengths = answer.mppe_key_lengths
        common = lengths is None or not lengths.isdisjoint(self.tunnel.mppe_key_lengths)
        return answer.keys is not None and answer.mppe is not Mppe.NO and common

    def data_may_pass(self, now: float) -> None:
        self._sworn |= self.mppe is not None
        if self.mppe is not None and self.ipcp is not None:
            # pppd that demands MPPE has no IPCP before, and would hear of ours after a restart timer.
            self.ipcp.ask_again(now)
        self._network_up(now)

    def data_must_stop(self, now: float) -> None:
        self._network_down(now)

    def unprotected(self, reason: str, now: float) -> None:
        self.end(Cause.USER_ERROR, f"its packets must be encrypted: {reason}", now)

    def out_of_step(self, reason: str, now: float) -> None:
        self.end(Cause.LOST_SERVICE, reason, now)

    # IPCP.

    def _make_ipcp(self, state: State) -> Ipcp:
        assert self.site is not None
        return Ipcp(self, self.tunnel.ipcp, int(self.site.conf.address), self.servers, state)

    def resume_ipcp(self) -> Ipcp:
        return self._make_ipcp(State.OPENED)

    def choose_address(self, wish: int, now: float) -> int:
        if not self.address:
            refusal = self.engine.assign(self, wish, now)
            if refusal:
                self.end(Cause.SERVICE_UNAVAILABLE, refusal, now)
        return self.address

    def open_flow(self, now: float) -> bool:
        """Hand the data to the back end, anew if it has it; False: the session has ended over it."""
        assert self.site is not None
        self._close_flow()
        try:
            self.flow = self.site.backend.add(carriage.spec(self), now)
        except ConflictError as error:
            self.end(Cause.NAS_ERROR, str(error), now)
            return False
        if self.up_since is not None:
            self.engine.notify("change", self, now)
        return True

    def ipcp_up(self, now: float) -> None:
        self.remark(f"layer=ipcp logtype=Opened ip={self.ip}", now)
        self._network_up(now)

    def _network_up(self, now: float) -> None:
        """IPCP or CCP have come to an end: data may pass when both have."""
        if self.phase not in (Phase.NETWORK, Phase.UP) or (self.privacy is not None and self.privacy.pending):
            return
        if self.ipcp is not None and self.ipcp.state is not State.OPENED:
            return
        if not self.open_flow(now):
            return
        site, tunnel = self.site, self.tunnel
        assert site is not None
        self.phase = Phase.UP
        # Of no use until it negotiates anew, and then it is another: no number of its own need rest here.
        self._deadline = 0.0
        self._echoes = 0
        self._echo_at = now + tunnel.lcp_keepalive_interval
        if self.up_since is None:
            self.up_since = self._limited = now
            self.log(
                logging.INFO,
                f'layer=base logtype=TUNNELSTART user="{printable(self.username)}" '
                f"duration={now - self.started:.0f}sec {self._layer2} auth={self._auth_title} ip={self.ip} "
                f"iface={site.conf.name}{self._by_proxy}",
            )
            self.engine.notify("start", self, now)
        self._arm_rest(now)

    def ipcp_down(self, now: float) -> None:
        """IPCP leaves Opened: it negotiates anew, or it ends."""
        self._network_down(now)

    def _network_down(self, now: float) -> None:
        was_up = self.phase is Phase.UP
        self._close_flow()
        if was_up:
            self.phase = Phase.NETWORK
            self._negotiate_again(was_up, now)

    def ipcp_finished(self, now: float) -> None:
        # There is no other network protocol: without IPCP the session is of no use.
        if self.up_since is None:
            self.end(Cause.USER_ERROR, "IPCP came to no agreement", now)
        else:
            self.end(Cause.USER_REQUEST, "the peer terminated IPCP", now)

    @property
    def ip(self) -> str:
        """The peer's address as text; "" without one."""
        return str(IPv4Address(self.address)) if self.address else ""

    # At rest.

    def settle(self) -> None:
        lcp, ipcp, privacy = self.lcp, self.ipcp, self.privacy
        if (
            self.phase is Phase.UP
            and not self._again
            and (lcp is None or lcp.state is State.OPENED)
            and (ipcp is None or ipcp.state is State.OPENED)
            and (privacy is None or privacy.settle())
        ):
            self.lcp = self.ipcp = self.auth_server = self._asking = None
            if self.mppe is None:
                # CCP has been refused, and will not be heard again.
                self.privacy = None
            self.call.rest()

    def expire(self, now: float) -> None:
        if self.phase is not Phase.UP:
            self.end(Cause.LOST_CARRIER, f"no session within {self.tunnel.negotiation_timeout} s", now)
            return
        tunnel, idle, limit = self.tunnel, self._idle_timeout, self.profile.session_timeout
        assert self.flow is not None
        if self._closed is not None:
            self.final_counters()
        if idle and now >= self.flow.last_active() + idle:
            self.end(Cause.IDLE_TIMEOUT, f"idle for {idle} s", now)
            return
        if limit and not self._again and now >= self._limited + limit:
            self._timed_out(now)
            return
        if tunnel.lcp_keepalive and now >= self._echo_at:
            self._listen(self.flow.heard())
        if tunnel.lcp_keepalive and now >= self._echo_at:
            if self._echoes >= tunnel.lcp_keepalive_max_retries:
                self.end(Cause.LOST_CARRIER, f"no answer to {self._echoes} LCP echoes", now)
                return
            self._echoes += 1
            self._echo_at = now + tunnel.lcp_keepalive_retry_interval
            self.send_echo()
        self._arm_rest(now)

    def _listen(self, heard: float) -> None:
        """The data path has heard the peer, in answer to our last question or since its last sign of life."""
        tunnel = self.tunnel
        wait = tunnel.lcp_keepalive_retry_interval if self._echoes else tunnel.lcp_keepalive_interval
        if heard and heard + CLOCK_TICK >= self._echo_at - wait:
            self._echoes = 0
            self._echo_at = heard + tunnel.lcp_keepalive_interval

    def _arm_rest(self, now: float) -> None:
        """One deadline for keepalive and idle time, whichever comes first."""
        tunnel, idle, limit = self.tunnel, self._idle_timeout, self.profile.session_timeout
        due = []
        if tunnel.lcp_keepalive:
            # The answer, if it comes, makes it the interval again, which may be less than what a repetition waits.
            due.append(min(self._echo_at, now + tunnel.lcp_keepalive_interval))
        if idle and self.flow is not None:
            due.append(self.flow.last_active() + idle)
        if limit and not self._again:
            due.append(self._limited + limit)
        if due:
            self.wheel.arm(self, min(due))
        else:
            self.wheel.disarm(self)

    def echo_reply(self, identifier: int, magic: int, now: float) -> None:
        # The deadline stays where it is, and is set right when it comes.
        self._echoes = 0
        self._echo_at = now + self.tunnel.lcp_keepalive_interval

    def counters(self) -> Counters:
        """Of the whole session; they never go backwards."""
        return self._counters if self.flow is None else self._counters.plus(self.flow.counters())

    def final_counters(self) -> Counters:
        """The same, when its data has stopped some milliseconds ago: no packet is missing any more."""
        if self._closed is not None:
            self._counters = self._counters.plus(self._closed.late())
            self._closed = None
        return self.counters()

    def closed_counters(self) -> Counters:
        """What of them this process alone knows: all but what stands in the kernel's maps now."""
        return self._counters if self.flow is None else self._counters.plus(self.flow.by_python())

    # The end.

    def end(self, cause: Cause, reason: str, now: float) -> None:
        """End the session: its address and its data at once, LCP by Terminate-Request, then the call."""
        if self.phase >= Phase.TERMINATE:
            return
        lcp = self.lcp
        if lcp is None:
            lcp = self.lcp = self.resume_lcp()
        self._ending(cause, reason, now)
        lcp.close(now)
        if self.phase is Phase.TERMINATE and lcp.state < State.CLOSING:
            # Nothing was open: there is nobody to wait for.
            self.lcp_finished(now)

    def abandon(self, cause: Cause, reason: str, now: float) -> None:
        """End the session by ending the call, without a word of LCP; one that is ending keeps its cause."""
        if self.phase < Phase.TERMINATE:
            self._ending(cause, reason, now)
        self._forget()
        self.call.close(self.cause)

    def gone(self, cause: Cause, reason: str, now: float) -> None:
        """The call has gone from under us."""
        if self.phase < Phase.TERMINATE:
            self._ending(cause, reason, now)
        if self.phase is not Phase.DEAD:
            self._forget()

    def changed(self, link: Link, now: float, *, moved: bool = False) -> None:
        """The path has changed: what no longer fits is negotiated anew, and the data path told where the peer is."""
        if self.phase >= Phase.TERMINATE:
            return
        if link.max_mru < max(self.mru, self.peer_mru):
            lcp = self.lcp
            if lcp is None:
                lcp = self.lcp = self.resume_lcp()
            lcp.down(now)
            # The old one would go on with the old limits.
            lcp = self.lcp = self._make_lcp(State.INITIAL)
            lcp.open(now)
            lcp.up(now)
        elif moved and self.flow is not None:
            self.open_flow(now)

    def _ending(self, cause: Cause, reason: str, now: float) -> None:
        self.cause, self.reason = cause, reason
        mppe = title(self.mppe)
        self._stop_upper(now)
        self.phase = Phase.TERMINATE
        self.call.ending()
        self.wheel.disarm(self)
        if self.up_since is not None:
            counters = self.counters()
            assert self.site is not None
            self.log(
                logging.INFO,
                f'layer=base logtype=TUNNELUSAGE user="{printable(self.username)}" '
                f"duration={now - self.up_since:.0f}sec {self._layer2} auth={self._auth_title} "
                f"data_in={counters.in_bytes}bytes,{counters.in_packets}packets "
                f"data_out={counters.out_bytes}bytes,{counters.out_packets}packets "
                f"error_in={counters.in_errors} error_out={counters.out_errors} {mppe} "
                f'iface={self.site.conf.name} cause={cause.title} reason="{reason}"',
            )
            self.engine.notify("stop", self, now)
        else:
            self.engine.failed[self.tunnel.name, self.tunnel.protocol, cause] += 1
            if self.username or self.engine.strangers.take(now):
                self.log(logging.INFO, f'layer=base logtype=Terminated cause={cause.title} reason="{reason}"')
        self.engine.release(self)

    def _stop_upper(self, now: float) -> None:
        """Stop authentication and data."""
        asking, self._asking = self._asking, None
        if asking is not None and asking.pending is not None:
            asking.pending.cancel()
            self._resume_clock(asking, now)
        if self.auth_server is not None:
            self.auth_server.stop()
            self.auth_server = None
        if self.ipcp is not None:
            self.ipcp.stop()
            self.ipcp = None
        self._close_flow()
        if self.privacy is not None:
            self.privacy.stop()
            self.privacy = self.mppe = None

    def _close_flow(self) -> None:
        if self.flow is not None:
            if self._closed is not None:
                self.final_counters()
            self._counters = self._counters.plus(self.flow.close())
            self._closed, self.flow = self.flow, None

    def _forget(self) -> None:
        self.phase = Phase.DEAD
        self.wheel.disarm(self)
        if self.lcp is not None:
            self.lcp.stop()
            self.lcp = None
        self.engine.forget(self)

    @property
    def _layer2(self) -> str:
        return f"layer2={self.tunnel.protocol.title} layer2from={self.call.link.caller.text}"

    @property
    def _auth_title(self) -> str:
        titles = {AuthMethod.PAP: "PAP", AuthMethod.CHAP: "CHAP-MD5", AuthMethod.MSCHAPV2: "MS-CHAP-V2"}
        return self._dialin or (titles.get(self.auth, self.auth.value.upper()) if self.auth else "none")

    @property
    def _by_proxy(self) -> str:
        return " dialin_proxy=yes" if self._dialin else ""


Notify = Callable[[str, Session, float], None]
