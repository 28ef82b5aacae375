"""The tun device, routes and the news of links, in network namespaces of our own."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
import uvloop

from npppy.config.model import Interface, Ipcp, Where
from npppy.pipex.base import FlowSpec
from npppy.pipex.user import UserBackend, UserFlow
from npppy.tun import device
from npppy.tun.device import TunError, TunInterface
from npppy.tun.netlink import BATCH, RTPROT_NPPPY, LinkMonitor, LinkState, Netlink, NetlinkError

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

IP_RECVERR = 11
POOL = IPv4Network("10.0.0.0/24")
WHERE = Where("npppd.conf", 1, 1)

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


def sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    # Of what succeeds ip(8) may have a warning, as that a namespace is just gone.
    return done.stdout if check else done.stdout + done.stderr


def interface(name: str = "tun0") -> Interface:
    return Interface(name=name, where=WHERE, address=IPv4Address("10.0.0.1"), ipcp=Ipcp(name="POOL", where=WHERE))


def routes() -> set[str]:
    """Our routes, as iproute2 sees them."""
    return {f"{route['dst']} {route['dev']}" for route in json.loads(sh(f"ip -j route show proto {RTPROT_NPPPY}"))}


def forward(value: int) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text(str(value))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


def checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    return (0xFFFF ^ (total % 0xFFFF or 0xFFFF)).to_bytes(2, "big")


class Peer:
    """Answers pings: the far end of a session, without PPP."""

    def __init__(self) -> None:
        self.flow: UserFlow | None = None
        self.parts: dict[int, bytes] = {}
        self.sizes: list[int] = []

    def frame(self, frame: bytes) -> None:
        assert frame[:2] == b"\x00\x21"
        packet = frame[2:]
        self.sizes.append(len(packet))
        field = int.from_bytes(packet[6:8], "big")
        self.parts[field & 0x1FFF] = packet[20:]
        if field & 0x2000:
            return
        data = b"".join(self.parts[at] for at in sorted(self.parts))
        self.parts.clear()
        if data[0] != 8:
            return
        reply = b"\0\0\0\0" + data[4:]
        reply = reply[:2] + checksum(reply) + reply[4:]
        head = b"\x45\0" + (20 + len(reply)).to_bytes(2, "big") + bytes(4) + b"\x40\x01\0\0"
        head += packet[16:20] + packet[12:16]
        assert self.flow is not None
        self.flow.input(head[:10] + checksum(head) + head[12:] + reply, time.monotonic())


class Net:
    """This namespace forwards between the sessions on tun0 and a host, 198.51.100.2, in another."""

    def __init__(self) -> None:
        self._host = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        sh("ip link set lo up")
        sh("ip link add veth0 type veth peer name veth1")
        # unshare has not got its namespace yet, perhaps.
        while os.readlink(f"/proc/{self._host.pid}/ns/net") == os.readlink("/proc/thread-self/ns/net"):
            os.sched_yield()
        sh(f"ip link set veth1 netns {self._host.pid}")
        sh("ip address add 198.51.100.1/24 dev veth0")
        sh("ip link set veth0 up")
        forward(1)
        self.host("ip address add 198.51.100.2/24 dev veth1")
        self.host("ip link set veth1 up")
        self.host("ip route add default via 198.51.100.1")
        self.backend = UserBackend()
        self.peer = Peer()

    async def open(self, mtu: int = 1400) -> TunInterface:
        """tun0 with one session, 10.0.0.2."""
        tun = TunInterface.open(interface(), 1500, [POOL])
        self.shared = self.backend.attach(tun.name, int(tun.address), tun.write, tun.emit)
        tun.start(self.shared.deliver)
        self.peer.flow = self.flow = self.backend.add(
            FlowSpec(
                session=1,
                domain=0,
                interface="tun0",
                address=int(IPv4Address("10.0.0.2")),
                mtu=mtu,
                mru=1400,
                send=self.peer.frame,
            ),
            0.0,
        )
        return tun

    def host(self, command: str) -> str:
        return sh(f"nsenter --net=/proc/{self._host.pid}/ns/net {command}")

    async def ping(self, options: str) -> str:
        """A ping by the host."""
        command = f"nsenter --net=/proc/{self._host.pid}/ns/net ping -n -c 1 -W 5 {options}"
        process = await asyncio.create_subprocess_exec(*command.split(), stdout=subprocess.PIPE)
        return (await process.communicate())[0].decode()

    def close(self) -> None:
        self._host.kill()
        self._host.wait()


@pytest.fixture
def net(netns: None) -> Iterator[Net]:
    made = Net()
    try:
        yield made
    finally:
        made.close()


class TestTraffic:
    def test_ping(self, net: Net, run: Run) -> None:
        async def main() -> None:
            tun = await net.open()
            started = time.monotonic()
            assert "1 received" in await net.ping("10.0.0.2")
            counters = net.flow.counters()
            assert counters == (84, 1, 0, 84, 1, 0)
            assert started <= net.flow.last_active() <= time.monotonic()
            tun.close()

        run(main())

    def test_fragmentation_needed(self, net: Net, run: Run) -> None:
        """The error reaches the sender, though its source is an address of ours."""

        async def main() -> None:
            tun = await net.open(mtu=1000)
            said = await net.ping("-M do -s 1200 10.0.0.2")
            assert "From 10.0.0.1" in said
            assert "mtu = 1000" in said
            assert net.peer.sizes == []
            # The host knows the path's MTU now.
            assert "mtu 1000" in net.host("ip route get 10.0.0.2")
            assert "1 received" in await net.ping("-M dont -s 1200 10.0.0.2")
            assert net.peer.sizes == [996, 252]
            tun.close()

        run(main())

    def test_unknown_address(self, net: Net, run: Run) -> None:
        async def main() -> None:
            tun = await net.open()
            said = await net.ping("10.0.0.77")
            assert "From 10.0.0.1" in said
            assert "Destination Host Unreachable" in said
            assert net.shared.unknown == 1
            tun.close()

        run(main())

    def test_to_ourselves(self, net: Net, run: Run) -> None:
        """Errors about what this host sends arrive as well."""

        async def main() -> None:
            tun = await net.open(mtu=1000)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
                sender.connect(("10.0.0.77", 9))
                sender.setblocking(False)
                sender.send(b"hello")
                await until(lambda: sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH)
            tun.close()

        run(main())

    def test_device_switched_off(self, net: Net, run: Run) -> None:
        async def main() -> None:
            tun = await net.open()
            sh("ip link set tun0 down")
            net.flow.input(b"\x45\0\0\x14" + bytes(12) + bytes(4), 1.0)
            assert net.flow.counters().in_errors == 1
            tun.close()

        run(main())

    def test_more_than_one_wake_up(self, net: Net, run: Run) -> None:
        async def main() -> None:
            tun = await net.open()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(200):
                    sender.sendto(b"hello", ("10.0.0.2", 9))
                await until(lambda: net.flow.counters().out_packets == 200)
            tun.close()

        run(main())

    def test_close_while_reading(self, net: Net, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            tun = TunInterface.open(interface(), 1500, [POOL])
            got: list[bytes] = []
            tun.start(lambda packet, now: (got.append(packet), tun.close())[0])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"hello", ("10.0.0.2", 9))
                sender.sendto(b"hello", ("10.0.0.2", 9))
                await until(lambda: got)
            await asyncio.sleep(0)
            assert len(got) == 1

        run(main())
        assert not caplog.records


class TestDevice:
    def test_configured(self, run: Run) -> None:
        async def main() -> None:
            tun = TunInterface.open(interface(), 1492, [POOL, IPv4Network("192.0.2.0/28")])
            (found,) = json.loads(sh("ip -j address show dev tun0"))
            assert found["mtu"] == 1492
            assert {"UP", "POINTOPOINT", "NOARP"} <= set(found["flags"])
            (address,) = (each for each in found["addr_info"] if each["family"] == "inet")
            assert (address["local"], address["prefixlen"]) == ("10.0.0.1", 32)
            assert routes() == {"10.0.0.0/24 tun0", "192.0.2.0/28 tun0"}
            # Leaves by the device with its address.
            assert "src 10.0.0.1" in sh("ip route get 10.0.0.2")
            tun.close()
            tun.close()
            assert routes() == set()
            assert "does not exist" in sh("ip link show dev tun0", check=False)
            with pytest.raises(OSError, match="Bad file descriptor"):
                tun.write(b"\x45" + bytes(19))
            # What sessions still ask for on their way out does no harm.
            tun.add_route(POOL)
            tun.remove_route(POOL)
            again = TunInterface.open(interface(), 1492, [POOL])
            again.close()

        run(main())

    def test_name_is_taken(self, run: Run) -> None:
        sh("ip tuntap add dev tun0 mode tun")

        async def main() -> None:
            with pytest.raises(TunError, match="tun0: an interface of this name exists already"):
                TunInterface.open(interface(), 1400, [])

        run(main())

    @pytest.mark.parametrize("name", ["", "a" * 16, "tun%d", "tun/0"])
    def test_impossible_name(self, name: str) -> None:
        async def main() -> None:
            with pytest.raises(TunError):
                TunInterface.open(interface(name), 1400, [])

        asyncio.run(main())
        assert len(socket.if_nameindex()) == 1

    def test_no_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device, "_DEVICE", "/dev/net/none")

        async def main() -> None:
            with pytest.raises(TunError, match=r"cannot open /dev/net/none: No such file .*is the tun module there"):
                TunInterface.open(interface(), 1400, [])

        asyncio.run(main())

    def test_not_permitted(self) -> None:
        async def main() -> None:
            with pytest.raises(TunError, match=r"tun0: cannot .*not permitted"):
                TunInterface.open(interface(), 1400, [])

        os.seteuid(65534)
        try:
            asyncio.run(main())
        finally:
            os.seteuid(0)

    def test_refused_settings_leave_nothing(self, run: Run) -> None:
        before = os.listdir("/proc/self/fd")

        async def main() -> None:
            with pytest.raises(TunError, match=r"tun0: cannot switch tun0 on with MTU 10: .+"):
                TunInterface.open(interface(), 10, [])
            sh("ip link add veth0 type veth peer name veth1")
            sh("ip link set veth0 up")
            sh("ip route add 10.0.0.0/24 dev veth0")
            with pytest.raises(TunError, match=r"tun0: cannot add the route 10\.0\.0\.0/24 to tun0: File exists"):
                TunInterface.open(interface(), 1400, [POOL])
            assert "tun0" not in {name for _, name in socket.if_nameindex()}

        run(main())
        assert len(os.listdir("/proc/self/fd")) == len(before)

    @pytest.mark.parametrize("value", [0, 1])
    def test_forwarding(self, caplog: pytest.LogCaptureFixture, value: int) -> None:
        forward(value)

        async def main() -> None:
            TunInterface.open(interface(), 1400, []).close()

        asyncio.run(main())
        assert ("iface=tun0 net.ipv4.ip_forward is 0" in caplog.text) == (value == 0)

    def test_forwarding_hidden(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        def hidden(name: str) -> bool:
            raise FileNotFoundError(errno.ENOENT, "hidden", name)

        caplog.set_level(logging.INFO)
        monkeypatch.setattr(device, "forwarding", hidden)

        async def main() -> None:
            TunInterface.open(interface(), 1400, []).close()

        asyncio.run(main())
        assert "iface=tun0 cannot tell whether" in caplog.text

    def test_removed_by_others(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            tun = TunInterface.open(interface(), 1400, [POOL])
            tun.start(lambda packet, now: None)
            sh("ip link del dev tun0")
            await until(lambda: "iface=tun0 cannot read from the device" in caplog.text)
            with pytest.raises(OSError, match="bad state"):
                tun.write(b"\x45" + bytes(19))
            tun.close()

        run(main())


class TestRoutes:
    def test_soon_and_in_order(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            tun = TunInterface.open(interface(), 1400, [POOL])
            caplog.clear()
            many = [IPv4Network((0x0B000000 + n, 32)) for n in range(5 * BATCH)]
            for network in many:
                tun.add_route(network)
            for network in many[1:]:
                tun.remove_route(network)
            tun.add_route(many[1])
            # Not all of them at once: others have their turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert 1 < len(routes()) < len(many)
            await until(lambda: routes() == {"10.0.0.0/24 tun0", "11.0.0.0 tun0", "11.0.0.1 tun0"})
            assert not caplog.records
            tun.close()

        run(main())

    def test_errors_say_what_was_attempted(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            tun = TunInterface.open(interface(), 1400, [POOL])
            caplog.clear()
            tun.add_route(POOL)
            tun.remove_route(IPv4Network("192.0.2.0/24"))
            tun.add_route(IPv4Network("203.0.113.7/32"))
            await until(lambda: "203.0.113.7 tun0" in routes())
            assert [record.getMessage() for record in caplog.records] == [
                "iface=tun0 cannot add the route 10.0.0.0/24 to tun0: File exists",
                "iface=tun0 cannot remove the route 192.0.2.0/24: No such process",
            ]
            # Only routes of ours are removed.
            sh("ip route add 192.0.2.0/24 dev tun0 proto static")
            tun.remove_route(IPv4Network("192.0.2.0/24"))
            await until(lambda: len(caplog.records) == 3)
            assert "192.0.2.0/24" in sh("ip route show proto static")
            tun.close()

        run(main())

    def test_the_kernels_own_words(self) -> None:
        netlink = Netlink()
        with pytest.raises(NetlinkError, match=r"add the route 10\.0\.0\.0/24 to lo: Network is down \(.+\)") as caught:
            netlink.add_route("lo", 1, POOL)
        assert caught.value.code == errno.ENETDOWN
        netlink.close()


class TestLinkMonitor:
    def test_any_news(self, run: Run) -> None:
        """Of links and addresses, watched or not; of routes there are none."""

        async def main() -> None:
            told = 0

            def tell() -> None:
                nonlocal told
                told += 1

            monitor = LinkMonitor(lambda state: None, tell)
            # An address of lo is news of no link.
            sh("ip address add 192.0.2.1/24 dev lo")
            await until(lambda: told)
            told = 0
            sh("ip link add veth0 type veth peer name veth1")
            await until(lambda: told)
            monitor.close()

        run(main())

    def test_changes(self, run: Run) -> None:
        reports: list[LinkState] = []

        async def step(command: str) -> LinkState:
            """The last of the reports that *command* leads to."""
            sh(command)
            reports.clear()
            await until(lambda: reports)
            await asyncio.sleep(0.01)
            return reports[-1]

        async def main() -> None:
            monitor = LinkMonitor(reports.append)
            monitor.watch("veth0")
            assert reports == [LinkState("veth0")]
            assert not reports[0].present

            state = await step("ip link add veth0 address 02:00:00:00:00:01 type veth peer name veth1")
            index = socket.if_nametoindex("veth0")
            assert state == LinkState("veth0", index, bytes.fromhex("020000000001"), 1500, False)
            assert state.present
            assert await step("ip link set veth0 up") == state._replace(up=True)
            state = await step("ip link set veth0 mtu 1508")
            assert state.mtu == 1508
            state = await step("ip link set veth0 address 02:00:00:00:00:02")
            assert state.mac == bytes.fromhex("020000000002")
            state = await step("ip link set veth0 down")
            assert not state.up
            # Others do not matter, and a rename is a loss.
            sh("ip link set veth1 mtu 1400")
            assert await step("ip link set veth0 name other") == LinkState("veth0")
            state = await step("ip link set other name veth0")
            assert state.ifindex == index
            assert await step("ip link del veth0") == LinkState("veth0")

            # Two changes at once are seen as one.
            state = await step("ip link add veth0 type veth peer name veth1")
            sh("ip link del veth0")
            state = await step("ip link add veth0 type veth peer name veth1")
            assert state.ifindex == socket.if_nametoindex("veth0") != index

            monitor.watch("veth1")
            assert reports[-1].name == "veth1"
            monitor.unwatch("veth1")
            with pytest.raises(KeyError):
                monitor.unwatch("veth1")
            reports.clear()
            sh("ip link set veth1 mtu 1300")
            sh("ip link set veth0 mtu 1300")
            await until(lambda: reports)
            assert {report.name for report in reports} == {"veth0"}
            monitor.close()

        run(main())

    def test_names_change_places(self, run: Run) -> None:
        sh("ip link add veth0 type veth peer name veth1")
        first, second = (socket.if_nametoindex(name) for name in ("veth0", "veth1"))
        latest: dict[str, int] = {}

        async def main() -> None:
            monitor = LinkMonitor(lambda state: latest.update({state.name: state.ifindex}))
            monitor.watch("veth0")
            monitor.watch("veth1")
            for pair in ("veth0 name veth2", "veth1 name veth0", "veth2 name veth1"):
                sh(f"ip link set {pair}")
            await until(lambda: latest == {"veth0": second, "veth1": first})
            # Both are still known by their indexes, which is all that a rename has in common with what was.
            sh("ip link set veth0 name other0")
            await until(lambda: latest == {"veth0": 0, "veth1": first})
            sh("ip link set veth1 name other1")
            await until(lambda: latest == {"veth0": 0, "veth1": 0})
            monitor.close()

        run(main())

    def test_news_lost(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        """More changes than the socket holds: all interfaces are looked at again."""
        caplog.set_level(logging.INFO)
        sh("ip link add veth0 type veth peer name veth1")
        reports: list[LinkState] = []

        async def main() -> None:
            monitor = LinkMonitor(reports.append)
            monitor._news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            monitor.watch("veth0")
            for mtu in range(1300, 1330):
                sh(f"ip link set veth0 mtu {mtu}")
            sh("ip link set veth0 mtu 1400")
            await until(lambda: reports[-1].mtu == 1400)
            assert "news of interfaces were lost" in caplog.text
            sh("ip link del veth0")
            await until(lambda: not reports[-1].present)
            monitor.close()

        run(main())

    def test_unwatched_while_reporting(self, run: Run) -> None:
        """The report about one interface may end the watch of another."""
        sh("ip link add veth0 type veth peer name veth1")
        reports: list[LinkState] = []

        async def main() -> None:
            def report(state: LinkState) -> None:
                reports.append(state)
                if not state.present:
                    monitor.unwatch("veth1")

            monitor = LinkMonitor(report)
            monitor.watch("veth0")
            monitor.watch("veth1")
            sh("ip link del veth0")
            await until(lambda: not reports[-1].present)
            await asyncio.sleep(0.01)
            assert [state.name for state in reports] == ["veth0", "veth1", "veth0"]
            monitor.close()

        run(main())

    def test_impossible_name(self) -> None:
        async def main() -> None:
            monitor = LinkMonitor(lambda state: None)
            with pytest.raises(NetlinkError, match="cannot look interface"):
                monitor.watch("x" * 200)
            monitor.close()

        asyncio.run(main())
