"""The IP Control Protocol (RFC 1332) with name servers (RFC 1877), as the concentrator and as a subscriber."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..config.model import FsmLimits
from . import proto
from .fsm import Fsm, Host, State
from .options import Option, encode

#: Options whose value is one IPv4 address.
ADDRESSES = (proto.OPT_ADDRESS, proto.OPT_DNS1, proto.OPT_NBNS1, proto.OPT_DNS2, proto.OPT_NBNS2)


class IpcpHost(Host, Protocol):
    """The session, which chooses addresses and hears of the layer."""

    def choose_address(self, wish: int, now: float) -> int:
        """The peer's address, given the one that it asks for (0: none); 0 if it cannot have any."""

    def ipcp_up(self, now: float) -> None: ...

    def ipcp_down(self, now: float) -> None: ...

    def ipcp_finished(self, now: float) -> None: ...


class Ipcp(Fsm):
    """The concentrator's side: it has an address, and tells the peer everything else."""

    __slots__ = ("servers", "wants")

    protocol = proto.IPCP
    host: IpcpHost

    def __init__(
        self,
        host: IpcpHost,
        limits: FsmLimits,
        address: int,
        servers: Mapping[int, int],
        state: State = State.INITIAL,
    ) -> None:
        super().__init__(host, limits, state)
        #: What we ask for: option type and address.
        self.wants = {proto.OPT_ADDRESS: address}
        #: What we tell the peer, by option type; what is missing is rejected.
        self.servers = servers

    def wanted(self) -> bytes:
        return encode((kind, value.to_bytes(4, "big")) for kind, value in self.wants.items())

    def naked(self, hints: list[Option], now: float) -> None:
        """Our address is not the peer's to choose: ask again, up to the limits."""

    def rejected(self, refused: list[Option], now: float) -> None:
        for kind, _ in refused:
            self.wants.pop(kind, None)

    def judge(self, wishes: list[Option], now: float) -> tuple[list[Option], list[Option]]:
        nak: list[Option] = []
        reject: list[Option] = []
        asked = False
        for kind, value in wishes:
            wish = int.from_bytes(value, "big") if len(value) == 4 else 0
            if kind == proto.OPT_ADDRESS:
                asked = True
                ours = self.host.choose_address(wish, now)
                if not ours:
                    reject.append((kind, value))
                    continue
            elif kind in self.servers:
                ours = self.servers[kind]
            else:
                reject.append((kind, value))
                continue
            if wish != ours:
                nak.append((kind, ours.to_bytes(4, "big")))
        if not asked:
            # RFC 1332 section 3.3: the peer must be told to ask for its address; a bare Ack would leave it with none.
            ours = self.host.choose_address(0, now)
            if ours:
                nak.append((proto.OPT_ADDRESS, ours.to_bytes(4, "big")))
        return nak, reject

    def layer_up(self, now: float) -> None:
        self.host.ipcp_up(now)

    def layer_down(self, now: float) -> None:
        self.host.ipcp_down(now)

    def layer_finished(self, now: float) -> None:
        self.host.ipcp_finished(now)


class IpcpClient(Ipcp):
    """A subscriber's side: it asks for its address and its name servers, and takes what it is told."""

    __slots__ = ()

    def __init__(
        self,
        host: IpcpHost,
        limits: FsmLimits,
        address: int = 0,
        dns: tuple[int, ...] = (),
        state: State = State.INITIAL,
    ) -> None:
        """*dns*: the name servers to ask for, 0 for any; at most two."""
        super().__init__(host, limits, address, {}, state)
        self.wants.update(zip((proto.OPT_DNS1, proto.OPT_DNS2), dns, strict=False))

    def naked(self, hints: list[Option], now: float) -> None:
        for kind, value in hints:
            if kind in ADDRESSES and len(value) == 4 and (kind in self.wants or kind == proto.OPT_ADDRESS):
                self.wants[kind] = int.from_bytes(value, "big")

    def judge(self, wishes: list[Option], now: float) -> tuple[list[Option], list[Option]]:
        refused = []
        for kind, value in wishes:
            if kind == proto.OPT_ADDRESS and len(value) == 4:
                self.host.choose_address(int.from_bytes(value, "big"), now)
            else:
                refused.append((kind, value))
        return [], refused
