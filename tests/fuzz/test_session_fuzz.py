"""Sessions of some users under everything that can happen to them, in any order: the books balance after each step."""

from __future__ import annotations

import random
from dataclasses import replace
from hashlib import md5
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from npppy.aaa.base import Accept, Profile
from npppy.config.model import AddressRange, AuthMethod, FsmLimits
from npppy.ppp import engine as engine_module
from npppy.ppp import mschap, options, proto
from npppy.ppp.cause import Cause
from npppy.ppp.fsm import State
from npppy.ppp.link import Proxy
from npppy.ppp.session import Session
from npppy.ppp.station import Phase
from tests.unit.ppp_rig import USERS, Line, Rig

NETWORK = 0xC0000200
AGAIN = Profile(session_timeout=1, reauthenticate=True, username="customer-7")
ACCEPTS = (
    Accept(),
    Accept(address_by_peer=True),
    Accept(address=0x0A000002),
    Accept(address=NETWORK, prefixlen=29),
    Accept(address=NETWORK + 1, prefixlen=29),
    Accept(profile=AGAIN),
    Accept(profile=AGAIN, port_limit=1, address=NETWORK + 1),
    Accept(routes=(IPv4Network((NETWORK + 1, 32)), IPv4Network("10.0.0.3/32"), IPv4Network((NETWORK, 29)))),
)
METHODS = (
    (AuthMethod.PAP,),
    (AuthMethod.CHAP,),
    (AuthMethod.EAP,),
    (AuthMethod.MSCHAPV2, AuthMethod.EAP, AuthMethod.CHAP, AuthMethod.PAP),
)
LCP_WISHES: tuple[list[tuple[int, bytes]], ...] = (
    [],
    [(proto.OPT_MAGIC, b"peer")],
    [(proto.OPT_MRU, b"\x05\xd4"), (proto.OPT_MAGIC, b"next")],
    [(proto.OPT_MRU, b"\0\1")],
    [(proto.OPT_ACCM, bytes(4))],
)
IPCP_WISHES: tuple[list[tuple[int, bytes]], ...] = (
    [],
    [(3, bytes(4))],
    [(3, IPv4Address("10.0.0.3").packed)],
    [(129, bytes(4))],
    [(2, b"x")],
)
PROXIES = [
    Proxy(last_sent=sent, auth_type=kind, name=user, challenge=b"x", response=response, renegotiable=renegotiable)
    for renegotiable in (True, False)
    for sent, kind in ((b"\x01\x04\x05\x78\x03\x04\xc0\x23", 3), (b"\x01\x04\x05\x78\x03\x05\xc2\x23\5", 2), (b"", 4))
    for user, secret in ((b"alice", USERS["alice"]), (b"bob", USERS["bob"]), (b"mallory", b""))
    for response in (secret, md5(b"\0" + secret + b"x").digest())
]
STRANGE = (b"", b"\x80\x21\1\1\0\4", b"\x01", b"\x0c", b"\xc0\x23\0", b"\x00\x21", b"\x80\x57")


def address(session: Session) -> bytes:
    return b"\x03\x06" + session.address.to_bytes(4, "big")


class World:
    def __init__(self, source: random.Random) -> None:
        self.source = source
        some = source.choice
        last = int(IPv4Address("10.0.0.1")) + some((1, 2, 5))
        limits = FsmLimits(
            timeout=some((1, 3)), max_configure=some((1, 10)), max_terminate=some((1, 2)), max_nak_loop=some((1, 5))
        )
        tunnel: dict[str, Any] = {"idle_timeout": some((0, 20)), "lcp_keepalive": some((True, False))}
        self.rig = Rig(
            ipcp={
                "ranges": (AddressRange(first=IPv4Address("10.0.0.1"), last=IPv4Address(last)),),
                "max_session": some((0, 2)),
            },
            config={
                "user_max_session": some((0, 1, 2)),
                "max_session": some((0, 3)),
                "duplicate_replace": some((True, False)),
            },
            realm={"user_max_session": some((0, 1))},
            authentication_methods=some(METHODS),
            lcp=limits,
            lcp_keepalive_interval=5,
            lcp_keepalive_retry_interval=2,
            **tunnel,
        )
        for user in USERS:
            self.rig.aaa.accept[user] = some(ACCEPTS)
        self.lines: list[Line] = []

    def dial(self) -> None:
        proxy = self.source.choice(PROXIES) if self.source.random() < 0.3 else None
        line = self.rig.line(unwanted=self.source.choice((frozenset(), frozenset({2, 7, 8, 9}))), proxy=proxy)
        self.lines.append(line)
        if proxy is None and self.source.random() < 0.9:
            line.give(proto.LCP, proto.CONFIGURE_REQUEST, 1, options.encode(self.source.choice(LCP_WISHES[:2])))

    def log_in(self, line: Line) -> None:
        session, user = line.session, self.source.choice(("alice", "alice", "bob", "bob", "mallory"))
        if session.auth is AuthMethod.PAP:
            secret = USERS.get(user, b"x")
            data = bytes((len(user),)) + user.encode() + bytes((len(secret),)) + secret
            line.give(proto.PAP, 1, self.source.randrange(256), data)

    def respond(self, line: Line, identifier: int, challenge: bytes) -> None:
        user = self.source.choice(("alice", "alice", "bob", "bob", "mallory"))
        secret = USERS.get(user, b"x")
        if line.session.auth is AuthMethod.CHAP:
            value = md5(bytes((identifier,)) + secret + challenge).digest()
        else:
            value = bytes(24) + mschap.nt_response(challenge, bytes(16), user.encode(), secret) + b"\0"
        line.give(proto.CHAP, 2, identifier, bytes((len(value),)) + value + user.encode())

    def respond_eap(self, line: Line, identifier: int, request: bytes) -> None:
        user = self.source.choice(("alice", "alice", "bob", "bob", "mallory"))
        if request[:1] == b"\x01":
            data = b"\x01" + user.encode()
        else:
            user = line.session.username
            value = md5(bytes((identifier,)) + USERS.get(user, b"x") + request[2:18]).digest()
            data = self.source.choice((b"\x04\x10" + value, b"\x04\x10" + value, b"\x03\x1a", b"\x04\x00", b""))
        line.give(proto.EAP, 2, identifier, data)

    def answer(self, line: Line) -> None:
        """What a peer does, for some of what it got, most of the time as it should."""
        source, session = self.source, line.session
        frames, line.sent = line.sent, []
        if session.phase is Phase.AUTHENTICATE:
            self.log_in(line)
        ipcp = session.ipcp
        if session.phase is Phase.NETWORK and ipcp is not None and ipcp.state < State.ACK_SENT:
            wish = source.choice((address(session), address(session), b""))
            line.give(proto.IPCP, proto.CONFIGURE_REQUEST, source.randrange(256), wish)
        for protocol, packet in frames:
            code, identifier, data = packet[0], packet[1], packet[4:]
            if session.phase is Phase.DEAD:
                return
            if source.random() < 0.15:
                continue
            if protocol == proto.CHAP and code == 1:
                self.respond(line, identifier, data[1:17])
            elif protocol == proto.EAP and code == 1:
                self.respond_eap(line, identifier, data)
            elif protocol not in (proto.LCP, proto.IPCP):
                continue
            elif code == proto.CONFIGURE_REQUEST:
                asked = options.decode(data)
                kind = source.choice((2, 2, 2, 2, 2, 2, 3, 4))
                if kind != 2 and asked:
                    option, value = source.choice(asked)
                    hint = source.choice((value, b"\xc0\x23", source.randbytes(len(value))))
                    data = options.encode([(option, hint if kind == 3 else value)])
                line.give(protocol, kind, identifier, data)
            elif code == proto.CONFIGURE_NAK:
                line.give(protocol, proto.CONFIGURE_REQUEST, source.randrange(256), data)
            elif code == proto.TERMINATE_REQUEST:
                line.give(protocol, proto.TERMINATE_ACK, identifier)

    def step(self) -> None:
        source, rig = self.source, self.rig
        if not self.lines or source.random() < 0.05:
            self.dial()
        line = source.choice(self.lines)
        session = line.session
        if session.phase is Phase.DEAD:
            self.lines.remove(line)
            return
        rig.aaa.hold = source.random() < 0.2
        rig.aaa.fail = source.random() < 0.05
        if source.random() < 0.05:
            rig.aaa.accept[source.choice(tuple(USERS))] = source.choice(ACCEPTS)
        what = source.random()
        if what < 0.5:
            for _ in range(source.choice((1, 1, 2, 8))):
                self.answer(line)
                if session.phase is Phase.DEAD:
                    break
        elif what < 0.65:
            wishes = source.choice((*LCP_WISHES, [(proto.OPT_MAGIC, session.magic.to_bytes(4, "big"))]))
            line.give(proto.LCP, proto.CONFIGURE_REQUEST, source.randrange(256), options.encode(wishes))
        elif what < 0.75:
            wish = source.choice((*map(options.encode, IPCP_WISHES), address(session)))
            line.give(proto.IPCP, proto.CONFIGURE_REQUEST, source.randrange(256), wish)
        elif what < 0.78:
            self.log_in(line)
        elif what < 0.84:
            protocol, code = source.choice((proto.LCP, proto.IPCP)), source.choice((5, 6, 7, 8, 9, 10, 11, 12, 13, 99))
            line.give(protocol, code, source.randrange(256), source.choice(STRANGE))
        elif what < 0.88 and rig.aaa.waiting:
            rig.aaa.waiting.pop(source.randrange(len(rig.aaa.waiting)))(rig.now)
        elif what < 0.90:
            session.end(Cause.ADMIN_RESET, "test", rig.now)
        elif what < 0.92:
            session.gone(Cause.LOST_CARRIER, "test", rig.now)
        elif what < 0.94:
            line.link = replace(line.link, max_mru=source.choice((1400, 600, 300)), encap=source.randrange(2))
            session.changed(line.link, rig.now, moved=source.random() < 0.5)
        elif what < 0.96:
            if source.random() < 0.3:
                rig.engine.configure(rig.config, {}, rig.now)
            rig.engine.configure(rig.config, {"tun0": rig.site}, rig.now)
        else:
            rig.wait(source.random() * 8)

    def balance(self) -> None:
        rig, engine = self.rig, self.rig.engine
        sessions = engine.sessions.values()
        # Networks of one address count as addresses.
        hosts = {session: [net for net in session.routes if net.prefixlen == 32] for session in sessions}
        assert len(engine._by_address) == sum(bool(session.address) for session in sessions)
        assert len(rig.space) == len(engine._by_address) + sum(map(len, hosts.values()))
        assert engine.bound == sum(len(held) if isinstance(held, list) else 1 for held in engine._by_user.values())
        assert engine.bound == sum(session.login_of is not None for session in sessions)
        assert len(rig.backend) == sum(1 + len(hosts[session]) for session in sessions if session.phase is Phase.UP)
        routed = [network for session in sessions for network in session.routed]
        assert sorted(rig.routes.networks) == sorted(routed)
        assert len(set(routed)) == len(routed)
        for session in sessions:
            assert (session.flow is not None) is (session.phase is Phase.UP)
            if session.phase >= Phase.TERMINATE:
                assert (session.site, session.login_of, session.address, session.routed) == (None, None, 0, ())
            elif session.phase is Phase.UP:
                assert session.address
                assert session.lcp is session.ipcp is None or session._again
            else:
                # The bound runs, unless a server is asked; of one that was up, it may begin while that is.
                assert session.due or session._pending is not None
                assert session._pending is None or not session.due or session._again
                assert session.phase < Phase.NETWORK or session.login_of is not None


@pytest.mark.parametrize("seed", range(150))
def test_the_books_balance(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(seed)
    monkeypatch.setattr(engine_module, "MAX_HALF_OPEN", source.choice((2, 4, 8192)))
    world = World(source)
    for _ in range(source.randrange(20, 200)):
        world.step()
        world.balance()
    rig = world.rig
    while rig.aaa.waiting:
        rig.aaa.waiting.pop()(rig.now)
    for session in list(rig.engine.sessions.values()):
        if session.phase is Phase.UP:
            session.end(Cause.ADMIN_RESET, "test", rig.now)
    # The rest has a bound.
    rig.wait(60)
    rig.nothing_left()
