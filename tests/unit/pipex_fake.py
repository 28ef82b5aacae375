"""A back end whose kernel is a few lines of Python, and a concentrator over it: PPPoE, PPP and a host that dials.

What the kernel does with a frame is what the programs do: it copies it where the session has the block for that, it
takes what is IP, and passes on the rest.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from npppy.pipex.base import Attached, Count, FlowSpec, Memory, PipexState, Police
from npppy.pipex.user import UserBackend, UserFlow
from npppy.ppp import options, proto
from npppy.ppp.link import IN, OUT
from npppy.ppp.session import Session
from npppy.pppoe.codec import Code, Discovery, Tag, decode_discovery, session_frame
from npppy.pppoe.engine import Engine
from tests.unit.ppp_rig import Rig
from tests.unit.pppoe_fake import AC, HOST, PORT, FakeJournal

IP = b"\x00\x21"
Copy = tuple[int, int, int, int, bytes]


class KernelFlow(UserFlow):
    def __init__(self, spec: FlowSpec, kernel: FakeKernel, now: float) -> None:
        super().__init__(spec, kernel.interfaces[spec.interface], kernel._table, now)
        self.session = spec.session
        self.inside = False
        self.user = False
        self.mirrored = spec.mirror
        self.limits: tuple[Police | None, Police | None] = (spec.police_up, spec.police_down)
        self._kernel = kernel

    @property
    def carried(self) -> bool:
        return self.inside and not self.user

    def entries(self) -> tuple[str, ...]:
        return ("sessions", "hosts4") if self.inside else ()

    def to_user(self) -> bool:
        self.user = True
        return self.inside

    def to_ebpf(self) -> bool:
        self.user = False
        return self.inside

    def police(self, up: Police | None, down: Police | None) -> None:
        self.limits = up, down

    def mirror(self, on: bool) -> None:
        self.mirrored = on and self.inside

    def close(self) -> Any:
        self._kernel.flows.pop(self.session, None)
        return super().close()


class FakeMirror:
    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._before = kernel.lost
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        kernel.mirrors.append(self)

    def fileno(self) -> int:
        return self.fd

    def read(self, until: int, take: Callable[[int, int, int, int, bytes], object]) -> None:
        copies = self._kernel.copies
        while copies:
            copy = copies.popleft()
            take(*copy)
            if copy[2] >= until:
                return
        if self._kernel.notified:
            os.eventfd_read(self.fd)
            self._kernel.notified = False

    def lost(self) -> int:
        return self._kernel.lost - self._before

    def close(self) -> None:
        os.close(self.fd)
        self._kernel.mirrors.remove(self)


class FakeKernel(UserBackend):
    """A back end that carries *capacity* sessions in a kernel."""

    def __init__(self, capacity: int = 100) -> None:
        super().__init__()
        self.capacity = capacity
        #: Those that are in the maps.
        self.flows: dict[int, KernelFlow] = {}
        self.copies: deque[Copy] = deque()
        self.mirrors: list[FakeMirror] = []
        self.notified = False
        self.lost = 0
        #: Why it takes no session.
        self.refusal = ""
        self.vlan = b""
        self.written: list[bytes] = []
        self.attach("tun0", 0x0A000001, self.written.append, self.written.append)

    def add(self, spec: FlowSpec, now: float) -> KernelFlow:
        flow = KernelFlow(spec, self, now)
        self._table.add(spec.address, spec.networks4(), flow, spec.networks6)
        if spec.offload and not self.refusal and len(self.flows) < self.capacity:
            self.flows[spec.session] = flow
            flow.inside = True
        return flow

    def why_not(self, interface: str, encap: object) -> str:
        if not self.refusal and len(self.flows) >= self.capacity:
            return "the maps are full"
        return self.refusal

    def tags(self, encap: object) -> bytes:
        return self.vlan

    def mirror(self) -> FakeMirror:
        return FakeMirror(self)

    def state(self) -> PipexState:
        return PipexState(
            backend="ebpf",
            capacity=self.capacity,
            interfaces=(
                Attached(name="eth1", role="access", mode="native"),
                Attached(name="eth2", role="access", note="eth2 has an XDP program that is not ours: 'x', id 3"),
                Attached(name="tun0", role="shared", mode="native", note="npx0, npx1"),
            ),
            paths={name: Count(number, 100 * number) for number, name in enumerate(("STACK_UP", "STACK_DOWN"), 1)},
            reasons={
                "DROP_FILTER": Count(3, 300),
                "DROP_POLICE": Count(0, 0),
                "PUNT_CONTROL": Count(4, 400),
                "USER_UP": Count(5, 500),
                "MIRROR_LOST": Count(6, 600),
            },
            maps={
                "sessions": Memory(octets=1000, entries=100, used=0),
                "nets4": Memory(octets=10, entries=100, used=0),
                "events": Memory(octets=2000, entries=262144),
            },
            closed=self._table.closed,
        )

    # The kernel.

    def receive(self, ppp_id: int, frame: bytes, control: bool) -> bool:
        """A frame of the peer; whether it goes on to Python."""
        flow = self.flows.get(ppp_id)
        if flow is None:
            return True
        self._copy(flow, IN, frame)
        return control or flow.user

    def send(self, ppp_id: int, frame: bytes) -> bool:
        """A packet for the peer; False: it goes to Python, which encapsulates it."""
        flow = self.flows.get(ppp_id)
        if flow is None or flow.user:
            return False
        self._copy(flow, OUT, frame)
        return True

    def _copy(self, flow: KernelFlow, way: int, frame: bytes) -> None:
        if not flow.mirrored:
            return
        tagged = frame[:12] + self.vlan + frame[12:]
        self.copies.append((flow.session, way, time.monotonic_ns(), len(tagged), tagged[:2016]))
        if self.mirrors and not self.notified:
            os.eventfd_write(self.mirrors[-1].fd, 1)
            self.notified = True


class World:
    """One host at one concentrator."""

    def __init__(self, backend: UserBackend | None = None, **tunnel: Any) -> None:
        self.rig = Rig(**tunnel)
        self.backend = backend or FakeKernel()
        if not isinstance(self.backend, FakeKernel):
            self.backend.attach("tun0", 0x0A000001, lambda packet: None, lambda packet: None)
        self.rig.site.backend = self.backend
        self.pppoe = Engine(
            (self.rig.tunnel,), self.rig.engine.open, random.Random(2516).randbytes, self.rig.wheel, FakeJournal()
        )
        #: All frames, in the order that they are on the wire.
        self.wire: list[tuple[int, bytes]] = []
        #: What the host has not looked at yet, and what npppyd has not yet read from its socket.
        self.inbox: deque[bytes] = deque()
        self.socket: deque[bytes] = deque()
        self.port = self.pppoe.port_up(self.rig_port(), AC, 1500, self._transmit, self.rig.now)
        self.session: Session
        self.sid = 0

    @staticmethod
    def rig_port() -> Any:
        return PORT._replace(interface="eth1")

    def dial(self) -> Session:
        """A session that knows nothing of its peer yet."""
        cookie = self.port._world.cookies.make(HOST, self.port._cookie_name, self.rig.now)
        padr = Discovery(AC, HOST, Code.PADR, 0, ((Tag.SERVICE_NAME, b""), (Tag.AC_COOKIE, cookie)))
        self.port.receive(padr.encode(), self.rig.now)
        self.sid = decode_discovery(self.wire[-1][1]).session_id
        assert self.sid
        self.inbox.clear()
        self.session = next(reversed(self.rig.engine.sessions.values()))
        return self.session

    def up(self) -> Session:
        session = self.dial()
        self.negotiate()
        return session

    def negotiate(self) -> None:
        self.control(proto.LCP, proto.CONFIGURE_REQUEST, 1, options.encode([(proto.OPT_MAGIC, b"peer")]))
        self.settle()

    def _transmit(self, frame: bytes) -> None:
        self.wire.append((OUT, frame))
        self.inbox.append(frame)

    # What the host does.

    def control(self, protocol: int, code: int, identifier: int, data: bytes = b"") -> None:
        packet = bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big") + data
        self.send(protocol.to_bytes(2, "big") + packet)

    def send(self, ppp: bytes, padding: bytes = b"") -> None:
        """A frame to npppyd, which has it from its socket when it reads."""
        frame = session_frame(AC, HOST, self.sid, ppp) + padding
        self.wire.append((IN, frame))
        backend = self.backend
        if not isinstance(backend, FakeKernel) or backend.receive(self.session.id, frame, ppp[:2] != IP):
            self.socket.append(frame)

    def arrives(self, packet: bytes) -> None:
        """A packet for the host, from the stack."""
        frame = session_frame(HOST, AC, self.sid, IP + packet)
        if isinstance(self.backend, FakeKernel) and self.backend.send(self.session.id, frame):
            self.wire.append((OUT, frame))
        else:
            self.backend.interfaces["tun0"].deliver(packet, self.rig.now)

    def read(self) -> None:
        """npppyd reads one frame."""
        self.port.receive(self.socket.popleft(), self.rig.now)

    def answer(self) -> None:
        """The host looks at one frame: it grants everything."""
        frame = self.inbox.popleft()
        if frame[12:14] != b"\x88\x64" or frame[20:22] == IP:
            return
        protocol, code, identifier = int.from_bytes(frame[20:22], "big"), frame[22], frame[23]
        data = frame[26 : 20 + int.from_bytes(frame[18:20], "big")]
        if code == proto.CONFIGURE_REQUEST:
            self.control(protocol, proto.CONFIGURE_ACK, identifier, data)
            if protocol == proto.LCP:
                self.control(proto.PAP, 1, 1, b"\x05alice\x0awonderland")
        elif protocol == proto.PAP:
            self.control(proto.IPCP, proto.CONFIGURE_REQUEST, 1, b"\x03\x06\0\0\0\0")
        elif code == proto.CONFIGURE_NAK:
            self.control(protocol, proto.CONFIGURE_REQUEST, 2, data)
        elif code == proto.TERMINATE_REQUEST:
            self.control(protocol, proto.TERMINATE_ACK, identifier)

    def settle(self) -> None:
        """Until nobody has anything more to say."""
        while self.inbox or self.socket:
            if self.socket:
                self.read()
            else:
                self.answer()
