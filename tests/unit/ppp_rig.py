"""A PPP session on a bench: every frame that the engine sends is kept, every frame that it gets is written by hand."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import md5
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from npppy.aaa.base import Accept, Answer, Challenge, Eap, Failed, MsChapV2, Proof, Reject, Request
from npppy.aaa.local import verify
from npppy.config.model import (
    AddressRange,
    AuthMethod,
    Bind,
    Config,
    Interface,
    Ipcp,
    Mppe,
    PppoeOptions,
    Protocol,
    Realm,
    Tunnel,
    Where,
)
from npppy.pipex.null import NullBackend
from npppy.pool import AddressSpace, Pool
from npppy.ppp import mschap, options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.engine import Engine, Site, name_server_options
from npppy.ppp.link import Caller, Link, Proxy
from npppy.ppp.mppe import keys_from_mschap
from npppy.ppp.session import Session
from npppy.wheel import Wheel

HERE = Where("test.conf", 1, 1)
USERS = {"alice": b"wonderland", "bob": b"builder"}
UNWANTED = frozenset({proto.OPT_ACCM, proto.OPT_PFC, proto.OPT_ACFC, 9})


class _Failures(logging.Handler):
    """The wheel logs what a timer raises and goes on; a test must not."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[BaseException | None] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.exc_info[1] if record.exc_info else None)


class Waiting:
    """A login that waits for its answer."""

    def __init__(self, users: Users, done: Callable[[Answer, float], None], answer: Answer) -> None:
        self._users = users
        self._done = done
        self._answer = answer

    def __call__(self, now: float) -> None:
        self._done(self._answer, now)

    def cancel(self) -> None:
        self._users.cancelled += 1
        self._users.waiting.remove(self)


class Users:
    """An authenticator over a dict, which may be told to wait."""

    def __init__(self) -> None:
        self.accept: dict[str, Accept] = {}
        self.waiting: list[Waiting] = []
        self.hold = False
        self.fail = False
        self.requests: list[Request] = []
        self.cancelled = 0

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        if self.fail:
            return Failed(reason="no server")
        password = USERS.get(request.account)
        if isinstance(request.proof, Eap):
            return self._eap(request, request.proof.packet, password or b"")
        response = verify(request.proof, request.username, password or b"nobody")
        if password is None or response is None or request.realm is None:
            return Reject(reason="wrong")
        keys = None
        if request.keys and isinstance(request.proof, MsChapV2):
            keys = keys_from_mschap(mschap.nt_password_hash(password), request.proof.nt_response, server=True)
        return replace(self.accept.get(request.account, Accept()), authenticator_response=response, keys=keys)

    def _eap(self, request: Request, packet: bytes, password: bytes) -> Answer:
        """The server's side of MD5-Challenge (RFC 3748 section 5.4)."""
        identifier, kind, data = packet[1], packet[4], packet[5:]
        if kind == 1:
            challenge = b"\x10" + bytes(range(16))
            following = (identifier + 1) & 0xFF
            return Challenge(eap=bytes((1, following, 0, 22, 4)) + challenge, state=bytes((following,)) + challenge[1:])
        if password and data[1:17] == md5(request.state[:1] + password + request.state[1:]).digest():
            return replace(self.accept.get(request.account, Accept()), eap=bytes((3, identifier, 0, 4)))
        return Reject(reason="wrong", eap=bytes((4, identifier, 0, 4)))

    def authenticate(self, request: Request, done: Callable[[Answer, float], None], now: float) -> Waiting | None:
        answer = self.answer(request)
        if not self.hold:
            done(answer, now)
            return None
        waiting = Waiting(self, done, answer)
        self.waiting.append(waiting)
        return waiting


def request_for(proof: Proof, caller: Caller | None = None, **fields: Any) -> Request:
    """A login as a session makes it."""
    rig = Rig()
    link = Link(tunnel=rig.tunnel, caller=caller or Caller(text="02:00:00:00:00:01"), max_mru=1492)
    named = {"username": "alice"} | fields
    settings = {
        "session": 1,
        "acct_session_id": "0000000000000001",
        "realm": rig.realm,
        "account": named["username"],
        "user": named["username"],
    }
    return Request(proof=proof, link=link, **(settings | named))


class Routes:
    def __init__(self) -> None:
        self.networks: list[IPv4Network] = []

    def add_route(self, network: IPv4Network) -> None:
        self.networks.append(network)

    def remove_route(self, network: IPv4Network) -> None:
        self.networks.remove(network)


class Line:
    """A call: what PPP sends on it, and how it was closed."""

    def __init__(self, rig: Rig, link: Link) -> None:
        self.rig = rig
        self.link = link
        self.sent: list[tuple[int, bytes]] = []
        self.closed: Cause | None = None
        session = rig.engine.open(self, rig.now)
        assert session is not None
        self.session: Session = session

    # Call

    def send(self, frame: bytes) -> None:
        assert self.closed is None
        self.sent.append((int.from_bytes(frame[:2], "big"), frame[2:]))

    def close(self, cause: Cause) -> None:
        assert self.closed is None
        self.closed = cause

    def __call__(self, frame: bytes) -> None:
        self.send(frame)

    def rest(self) -> None:
        pass

    def ending(self) -> None:
        pass

    def lcp_opened(self, *, send_accm: int, receive_accm: int, pfc: bool, acfc: bool) -> None:
        pass

    # The peer

    def take(self, protocol: int | None = None) -> list[bytes]:
        """What was sent since the last look, of one protocol."""
        taken = [payload for number, payload in self.sent if protocol in (None, number)]
        self.sent = [frame for frame in self.sent if protocol not in (None, frame[0])]
        return taken

    def give(self, protocol: int, code: int, identifier: int, data: bytes = b"") -> None:
        packet = bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big") + data
        self.give_raw(protocol.to_bytes(2, "big") + packet)

    def give_raw(self, frame: bytes) -> None:
        self.session.receive(frame, self.rig.now)

    def find(self, protocol: int, code: int) -> tuple[int, bytes]:
        """Identifier and data of the last packet sent with this code; all of the protocol are taken."""
        found = [packet for packet in self.take(protocol) if packet[0] == code]
        assert found, f"no packet of code {code}"
        return found[-1][1], found[-1][4:]

    def ack(self, protocol: int) -> list[tuple[int, bytes]]:
        """Acknowledge the last Configure-Request; returns its options."""
        identifier, data = self.find(protocol, proto.CONFIGURE_REQUEST)
        self.give(protocol, proto.CONFIGURE_ACK, identifier, data)
        return options.decode(data)

    def open_lcp(self, wishes: list[tuple[int, bytes]] | None = None) -> None:
        """Bring LCP up, granting all that is asked."""
        data = options.encode([(proto.OPT_MAGIC, b"peer")] if wishes is None else wishes)
        self.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, data)
        self.ack(proto.LCP)
        assert self.session.lcp_open

    def pap(self, user: str = "alice", password: bytes | None = None) -> bytes:
        """Log in by PAP; returns the answer."""
        secret = USERS.get(user, b"") if password is None else password
        data = bytes((len(user),)) + user.encode() + bytes((len(secret),)) + secret
        self.give(proto.PAP, 1, 1, data)
        answers = self.take(proto.PAP)
        return answers[-1] if answers else b""

    def eap(self, user: str = "alice", password: bytes | None = None) -> bytes:
        """Log in by EAP; returns the answer."""
        secret = USERS.get(user, b"") if password is None else password
        identifier, _ = self.find(proto.EAP, 1)
        self.give(proto.EAP, 2, identifier, b"\x01" + user.encode())
        identifier, data = self.find(proto.EAP, 1)
        value = md5(bytes((identifier,)) + secret + data[2:18]).digest()
        self.give(proto.EAP, 2, identifier, b"\x04\x10" + value + user.encode())
        return self.take(proto.EAP)[-1]

    def open_ipcp(self, wish: int = 0) -> int:
        """Bring IPCP up; returns the address that we were given."""
        self.give(proto.IPCP, proto.CONFIGURE_REQUEST, 1, options.encode([(3, wish.to_bytes(4, "big"))]))
        packets = self.take(proto.IPCP)
        for packet in packets:
            if packet[0] == proto.CONFIGURE_REQUEST:
                self.give(proto.IPCP, proto.CONFIGURE_ACK, packet[1], packet[4:])
        naks = [packet for packet in packets if packet[0] == proto.CONFIGURE_NAK]
        if naks:
            self.give(proto.IPCP, proto.CONFIGURE_REQUEST, 2, naks[-1][4:])
            self.take(proto.IPCP)
            return int.from_bytes(naks[-1][6:10], "big")
        return wish

    def up(self, user: str = "alice", wish: int = 0) -> int:
        """From nothing to data, by PAP."""
        self.open_lcp()
        self.pap(user)
        return self.open_ipcp(wish)


class Rig:
    """An engine with one interface, one realm and one tunnel.

    Keywords go to the tunnel; *ipcp*, *realm* and *config* are dicts for the other blocks.
    """

    def __init__(
        self,
        *,
        ipcp: dict[str, Any] | None = None,
        realm: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        **tunnel: Any,
    ) -> None:
        self.now = 1000.0
        self.wheel = Wheel(self.now)
        self.aaa = Users()
        self.routes = Routes()
        self.backend = NullBackend()
        source = random.Random(5)
        self.engine = Engine(wheel=self.wheel, random=source.randbytes, aaa=self.aaa, hostname="bng")
        settings: dict[str, Any] = {
            "name": "PPPOE",
            "protocol": Protocol.PPPOE,
            "where": HERE,
            "carrier": PppoeOptions(interfaces=("eth1",)),
            "mru": 1492,
            "lcp_keepalive": True,
            "mppe": Mppe.NO,
            "authentication_methods": (AuthMethod.PAP,),
        }
        self.tunnel = Tunnel(**(settings | tunnel))
        pool = (AddressRange(first=IPv4Address("10.0.0.1"), last=IPv4Address("10.0.0.4")),)
        block = Ipcp(**({"name": "POOL", "where": HERE, "ranges": pool} | (ipcp or {})))
        interface = Interface(name="tun0", where=HERE, address=IPv4Address("10.0.0.1"), ipcp=block)
        self.realm = Realm(**({"name": "LOCAL", "where": HERE, "type": "local"} | (realm or {})))
        self.config = Config(
            file=Path("test.conf"),
            tunnels=(self.tunnel,),
            ipcps=(block,),
            interfaces=(interface,),
            realms=(self.realm,),
            binds=(Bind(tunnel=self.tunnel, realm=self.realm, interface=interface),),
            **(config or {}),
        )
        self.space = AddressSpace()
        self.site = Site(
            conf=interface,
            pool=Pool(block, self.space, [interface.address]),
            backend=self.backend,
            routes=self.routes,
            servers=name_server_options(block.dns, block.nbns),
            blocked=frozenset(),
        )
        self.engine.configure(self.config, {"tun0": self.site}, self.now)

    def line(
        self, max_mru: int = 1492, unwanted: frozenset[int] = UNWANTED, proxy: Proxy | None = None
    ) -> Line:
        caller = Caller(text="02:00:00:00:00:01", mac=b"\x02\0\0\0\0\x01")
        return Line(self, Link(tunnel=self.tunnel, caller=caller, max_mru=max_mru, unwanted=unwanted, proxy=proxy))

    def up(self, user: str = "alice") -> Line:
        line = self.line()
        line.up(user)
        return line

    def wait(self, seconds: float) -> None:
        """Let time pass, tick by tick of the wheel."""
        end = self.now + seconds
        while True:
            due = self.wheel.next()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.advance()
        self.now = end
        self.advance()

    def advance(self) -> None:
        """What is due expires; what that raises is raised."""
        failures = _Failures()
        logger = logging.getLogger("npppy.wheel")
        logger.addHandler(failures)
        try:
            self.wheel.advance(self.now)
        finally:
            logger.removeHandler(failures)
        for error in failures.seen:
            raise error or AssertionError("the wheel has logged an error")

    def nothing_left(self) -> None:
        """No session, timer, address, route or count remains."""
        engine = self.engine
        assert engine.sessions == {}
        assert len(self.wheel) == 0
        assert len(self.space) == 0
        assert self.routes.networks == []
        assert (engine.half_open, engine.bound) == (0, 0)
        assert engine._by_user == {}
        assert engine._by_address == {}
        assert engine._by_network == {}
        assert set(engine._by_ipcp.values()) <= {0}
