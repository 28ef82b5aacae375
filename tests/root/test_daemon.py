"""npppyd as a process: start, refusal to start, reload, stop, background."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from npppy.pipex.ebpf.maps import default_pins

pytestmark = pytest.mark.root

PATIENCE = 60.0

CONFIG = """
tunnel ACCESS protocol pppoe {
    listen on interface acc
    authentication-method mschapv2 chap pap
}
ipcp POOL {
    pool-address 10.64.0.0/24
}
interface tun0 address 10.64.0.1 ipcp POOL
authentication LOCAL type local {
    users-file "users"
}
bind tunnel from ACCESS authenticated by LOCAL to tun0
"""


def wait_for(condition: Callable[[], object], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


def ip(words: str) -> str:
    return subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def links(netns: None) -> None:
    """acc is the daemon's interface, cpe the other end of its wire."""
    ip("link add acc type veth peer cpe")
    for name in ("lo", "acc", "cpe"):
        ip(f"link set {name} up")


class Npppyd:
    """A daemon in the foreground, on a configuration of its own."""

    def __init__(self, path: Path, pipex: str = "user") -> None:
        self.path = path
        #: The back end.
        self.pipex = pipex
        self.file = path / "npppd.conf"
        self.socket = path / "npppyd.sock"
        self.log = path / "log"
        self.write(CONFIG)
        if not (path / "users").exists():
            (path / "users").touch(0o600)
            (path / "users").write_text("alice:password=wonderland:\n")
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, config: str) -> None:
        self.file.write_text(config.replace("protocol pppoe {", f"protocol pppoe {{ pipex {self.pipex}", 1))

    def device(self, interface: str) -> str:
        """The device that has the address and the routes of an ``interface`` line."""
        if self.pipex == "user":
            return interface
        links = json.loads(ip("-j link show"))
        return next(link["ifname"] for link in links if link.get("ifalias") == f"npppy {interface}")

    def route(self, interface: str) -> str:
        """What the routes of an ``interface`` line end with."""
        return f"{'' if self.pipex == 'user' else 'via 192.0.0.8 '}dev {self.device(interface)}"

    def start(self, *enter: str) -> Npppyd:
        """*enter*: a command that runs the one behind it."""
        with self.log.open("ab") as log:
            command = [*enter, sys.executable, "-m", "npppy.daemon", "-d", "-f", str(self.file), "-s", str(self.socket)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: self.process and (self.process.poll() is not None or self.answers()), "npppyd answers")
        return self

    def answers(self) -> bool:
        return self.socket.exists() and self.ctl("daemon").returncode == 0

    def ctl(self, words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "npppy.ctl", "-s", str(self.socket), *words.split()]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def state(self) -> dict[str, Any]:
        return json.loads(self.ctl("-j daemon").stdout)

    def logged(self, text: str) -> bool:
        return text in self.log.read_text()

    def reload(self, config: str) -> None:
        assert self.process
        before = self.log.read_text().count("reload")
        self.write(config)
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.log.read_text().count("reload") > before, "reloaded")

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture(params=["user", "ebpf"])
def npppyd(links: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Npppyd]:
    daemon = Npppyd(tmp_path, request.param)
    yield daemon
    if daemon.process and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()
    shutil.rmtree(default_pins(str(daemon.socket)), ignore_errors=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_start_and_stop_leave_nothing(npppyd: Npppyd, number: int) -> None:
    npppyd.start()
    assert "10.64.0.0/24" in ip("route show proto 112")
    assert "10.64.0.1" in ip(f"addr show dev {npppyd.device('tun0')}")
    assert npppyd.state()["pools"] == {"POOL": {"size": 255, "used": 0}}
    links = ip("link show")
    assert npppyd.stop(number) == 0
    assert [name for name in ("tun0", "npx0", "npx1") if name in links] == (
        ["tun0"] if npppyd.pipex == "user" else ["tun0", "npx0", "npx1"]
    )
    assert not any(word in ip("link show") for word in ("tun0", "npx", "xdp"))
    assert ip("route show proto 112") == ""
    assert not npppyd.socket.exists()
    assert npppyd.logged("npppyd stopped")


def test_a_second_daemon_is_refused_and_harms_nothing(npppyd: Npppyd, tmp_path: Path) -> None:
    npppyd.start()
    second = Npppyd(tmp_path, npppyd.pipex)
    second.log = tmp_path / "second.log"
    second.start()
    assert second.process
    assert second.process.wait(PATIENCE) == 1
    assert second.logged("held by another daemon")
    assert npppyd.answers()
    assert "10.64.0.0/24" in ip("route show proto 112")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda: ip("tuntap add dev tun0 mode tun"), "tun0: an interface of this name exists already"),
        (lambda: ip("link add tun0 type bridge"), "tun0: an interface of this name exists already"),
    ],
)
def test_a_start_that_fails_says_why_and_cleans_up(npppyd: Npppyd, break_it: Callable[[], object], said: str) -> None:
    break_it()
    npppyd.start()
    assert npppyd.stop() == 1
    assert npppyd.logged(said)
    assert ip("route show proto 112") == ""


def test_errors_of_the_configuration_are_printed_and_nothing_starts(npppyd: Npppyd) -> None:
    npppyd.write(CONFIG.replace("listen on", "lisen on").replace("POOL {", "POOL {\n    max-session x"))
    npppyd.start()
    assert npppyd.stop() == 1
    text = npppyd.log.read_text()
    assert f"{npppyd.file}:3:5: " in text
    assert f"{npppyd.file}:7:17: " in text
    assert "listen" in text


def test_the_interface_may_come_later_and_go(npppyd: Npppyd) -> None:
    ip("link del acc")
    npppyd.start()
    assert not npppyd.logged("Listening")
    ip("link add acc type veth peer cpe")
    wait_for(lambda: npppyd.logged("pppoe interface=acc Listening"), "it listens")
    ip("link del acc")
    wait_for(lambda: npppyd.logged("pppoe interface=acc Closed"), "it has closed")


def test_reload_with_errors_changes_nothing(npppyd: Npppyd) -> None:
    npppyd.start()
    npppyd.reload("tunnel {\n")
    assert npppyd.logged("reload failed: the old configuration stays")
    assert "10.64.0.0/24" in ip("route show proto 112")


def test_reload_moves_pools_interfaces_and_listeners(npppyd: Npppyd) -> None:
    npppyd.start()
    ip("link add acc2 type veth peer cpe2")
    new = CONFIG.replace("10.64.0.0/24", "10.65.0.0/25").replace("interface acc", "interface acc2")
    npppyd.reload(new.replace("tun0", "tun5").replace("10.64.0.1", "10.65.0.1"))
    wait_for(lambda: npppyd.logged("pppoe interface=acc2 Listening"), "it listens")
    assert npppyd.logged("pppoe interface=acc Closed")
    route = f"10.65.0.0/25 {npppyd.route('tun5')} "
    # Routes are made once the loop comes round.
    wait_for(lambda: ip("route show proto 112").startswith(route), "the new route alone")
    # But for the next hop of what IPsec has decrypted.
    assert [line.split()[0] for line in ip("route show proto 112").splitlines()[1:]] in ([], ["192.0.0.9"])
    assert "tun0" not in ip("link show")
    assert npppyd.state()["pools"] == {"POOL": {"size": 127, "used": 0}}
    npppyd.reload(CONFIG.replace("10.64.0.0/24", "10.64.0.0/24\n    pool-address 192.0.2.0/28"))
    device = npppyd.device("tun0")
    route = f"192.0.2.0/28 {npppyd.route('tun0')}"
    wait_for(lambda: route in ip("route show proto 112"), "the route of the second pool")

    def has_mtu(mtu: int) -> bool:
        # npx0 itself has room for some octets more, which its routes do not give away.
        return f"mtu {mtu} " in ip(f"link show dev {device}" if npppyd.pipex == "user" else "route show 192.0.2.0/28")

    assert has_mtu(1492)
    npppyd.reload(CONFIG.replace("listen on interface acc", "listen on interface acc\n    mru 1400"))
    if npppyd.pipex == "user":
        assert has_mtu(1400)
    else:
        wait_for(lambda: "mtu 1414" in ip(f"link show dev {device}"), "the new MTU")
    assert npppyd.stop() == 0
    assert "Traceback" not in npppyd.log.read_text()


def test_reload_with_an_interface_that_cannot_be_had_keeps_the_rest(npppyd: Npppyd) -> None:
    npppyd.start()
    ip("link add tun9 type bridge")
    extra = "interface tun9 address 10.70.0.1 ipcp OTHER\n"
    other = "ipcp OTHER {\n    pool-address 10.70.0.0/24\n}\n"
    npppyd.reload(CONFIG + other + extra)
    assert npppyd.logged("tun9: an interface of this name exists already")
    assert f"10.64.0.0/24 {npppyd.route('tun0')}" in ip("route show proto 112")
    assert "10.70" not in ip("route show proto 112")
    assert npppyd.stop() == 0


def test_background(npppyd: Npppyd, tmp_path: Path) -> None:
    """The parent comes back when the daemon serves; kept apart from the host's /run and syslog by a mount namespace."""
    command = f"""
import os, socket, subprocess, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
try: os.unlink("/dev/log")
except FileNotFoundError: pass
log.bind("/dev/log")
done = subprocess.run([sys.executable, "-m", "npppy.daemon", "-f", {str(npppyd.file)!r}, "-s", {str(npppyd.socket)!r}])
assert done.returncode == 0, done
pid = int(open("/var/run/npppyd.pid").read())
assert os.path.exists({str(npppyd.socket)!r})
os.kill(pid, 15)
assert os.waitpid(pid, 0)[1] == 0, "as process 1 we are its parent now"
assert not os.path.exists("/var/run/npppyd.pid")
log.settimeout(60)
text = b""
while b"npppyd stopped" not in text:
    text += log.recv(4096)
assert b"started, pid" in text, text
"""
    mounts = "mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && mkdir -p /dev/net && mknod /dev/net/tun c 10 200"
    own_run = f"mkdir -p {tmp_path}/run && mount --bind {tmp_path}/run /run"
    shell = f'{own_run} && {mounts} && exec {sys.executable} -c "$CODE"'
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", shell],
        env=os.environ | {"CODE": command},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
