"""A tun device for each subscriber, so that this host's own programs use its session by its address."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from ipaddress import IPv4Address

from ..ppp.station import Phase
from ..tun.device import TunError, open_device
from .subscriber import Subscriber
from .traffic import Traffic

log = logging.getLogger("npppy.sim")

#: A subscriber's routing table, and the priority of the rule for it, is this and its number.
TABLE = 4096
#: Packets read in one go.
BATCH = 64


class TunTraffic(Traffic):
    """The device ``sim`` and the subscriber's number.  What is sent from the subscriber's address goes out by it."""

    __slots__ = ("_address", "_fd", "_name", "_rule", "_subscriber")

    def __init__(self, subscriber: Subscriber) -> None:
        super().__init__()
        self._subscriber = subscriber
        self._name = f"sim{subscriber.number}"
        self._rule = ""
        self._address = 0
        self._fd = -1

    def start(self, now: float) -> None:
        if self._address == self._subscriber.address:
            return
        self.finish()
        try:
            self._fd = open_device(self._name)
            self._configure()
        except (TunError, OSError) as error:
            log.error("subscriber=%d %s", self._subscriber.number, error)
            self.finish()
            return
        self._address = self._subscriber.address
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _configure(self) -> None:
        """Raises :class:`TunError`, or :class:`OSError` without ip(8)."""
        name, table = self._name, TABLE + self._subscriber.number
        address = IPv4Address(self._subscriber.address)
        rule = f"from {address} lookup {table} priority {table}"
        # One that was killed leaves its rule behind.
        subprocess.run(["ip", "rule", "del", *rule.split()], stderr=subprocess.DEVNULL, check=False)
        self._rule = rule
        commands = (
            f"link set {name} up mtu {self._subscriber.peer_mru}",
            f"address add {address}/32 dev {name}",
            f"route add default dev {name} table {table}",
            f"rule add {rule}",
        )
        done = subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True)
        if done.returncode:
            raise TunError(f"{name}: {done.stderr.strip()}")

    def input(self, packet: bytes, now: float) -> None:
        super().input(packet, now)
        try:
            os.write(self._fd, packet)
        except OSError as error:
            # What is no IPv4 packet, or a device that somebody has switched off.
            log.info("subscriber=%d %s: %s", self._subscriber.number, self._name, error.strerror)

    def _readable(self) -> None:
        subscriber = self._subscriber
        try:
            for _ in range(BATCH):
                packet = os.read(self._fd, 65536)
                # The kernel speaks IPv6 on every device.
                if packet[0] >> 4 == 4 and subscriber.phase is Phase.UP:
                    subscriber.send_ip(packet)
        except BlockingIOError:
            pass
        except OSError as error:
            log.error("subscriber=%d cannot read %s: %s", subscriber.number, self._name, error.strerror)
            self.finish()

    def finish(self, *, ours: bool = False) -> None:
        if self._rule:
            subprocess.run(["ip", "rule", "del", *self._rule.split()], stderr=subprocess.DEVNULL, check=False)
            self._rule = ""
        if self._fd >= 0:
            # Address and route go with the device.
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._address = 0
