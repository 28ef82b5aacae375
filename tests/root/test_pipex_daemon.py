"""npppyd and its data path: which back end it chooses and says, reloads, and what it leaves when it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from npppy.pipex.ebpf.maps import default_pins
from tests.root.ebpf_lab import attach_foreign, foreign_program
from tests.root.test_daemon import CONFIG, Npppyd, ip, links, wait_for

pytestmark = pytest.mark.root

__all__ = ["links"]


@pytest.fixture
def npppyd(links: None, tmp_path: Path) -> Iterator[Npppyd]:
    daemon = Npppyd(tmp_path, "yes")
    try:
        yield daemon
    finally:
        if daemon.process and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
        assert teardown(daemon).returncode == 0


def teardown(daemon: Npppyd) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "npppy.daemon", "--teardown", "-s", str(daemon.socket)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def programs(name: str) -> list[str]:
    """The names of the XDP programs of an interface."""
    (link,) = json.loads(ip(f"-j -d link show dev {name}"))
    return [link["xdp"]["prog"]["name"]] if "xdp" in link else []


def npx() -> list[str]:
    return [link["ifname"] for link in json.loads(ip("-j link show")) if link["ifname"].startswith("npx")]


def test_the_kernel_where_it_can(npppyd: Npppyd) -> None:
    npppyd.start()
    wait_for(lambda: npppyd.logged("interface=acc Listening"), "it listens")
    assert npppyd.logged("pipex: back end ebpf")
    assert programs("acc") == ["pipex_access"]
    assert sorted(npx()) == ["npx0", "npx1"]
    assert default_pins(str(npppyd.socket)).is_dir()
    assert npppyd.stop() == 0
    assert programs("acc") == npx() == []
    assert not default_pins(str(npppyd.socket)).exists()


def without_bpf(npppyd: Npppyd) -> Npppyd:
    """Start it, where it may not load programs."""
    return npppyd.start("setpriv", "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin")


def test_python_where_the_kernel_cannot(npppyd: Npppyd) -> None:
    without_bpf(npppyd)
    assert npppyd.answers()
    assert npppyd.logged("pipex: back end user, Python carries all packets: ")
    assert npx() == []


def test_ebpf_or_nothing(npppyd: Npppyd) -> None:
    npppyd.pipex = "ebpf"
    npppyd.write(CONFIG)
    without_bpf(npppyd)
    assert npppyd.stop() == 1
    assert npppyd.logged(f"npppyd: {npppyd.file}:2:8: pipex ebpf cannot be had: ")
    assert "tun0" not in ip("link show")


def test_reload_finds_the_kernel(npppyd: Npppyd) -> None:
    """From a configuration that does not want it to one that does, and back."""
    npppyd.pipex = "user"
    npppyd.write(CONFIG)
    npppyd.start()
    assert npppyd.logged("pipex: back end user, Python carries all packets: no tunnel asks for another")
    assert programs("acc") == npx() == []
    npppyd.pipex = "ebpf"
    npppyd.reload(CONFIG)
    wait_for(lambda: programs("acc") == ["pipex_access"], "the program is attached")
    route = f"10.64.0.0/24 {npppyd.route('tun0')}"
    wait_for(lambda: route in ip("route show proto 112"), "the route is there")
    npppyd.pipex = "no"
    npppyd.reload(CONFIG)
    # There may be sessions from before.
    assert programs("acc") == ["pipex_access"]
    assert npppyd.stop() == 0
    assert "Traceback" not in npppyd.log.read_text()


def test_reload_follows_the_interfaces(npppyd: Npppyd) -> None:
    npppyd.start()
    wait_for(lambda: programs("acc"), "the program is attached")
    ip("link add acc2 type veth peer cpe2")
    npppyd.reload(CONFIG.replace("interface acc", "interface acc2"))
    wait_for(lambda: programs("acc2") == ["pipex_access"], "the program is attached")
    assert programs("acc") == []


def test_the_interface_goes_and_comes(npppyd: Npppyd) -> None:
    npppyd.start()
    wait_for(lambda: programs("acc"), "the program is attached")
    ip("link delete acc")
    wait_for(lambda: npppyd.logged("interface=acc Closed"), "it is gone")
    ip("link add acc type veth peer cpe")
    wait_for(lambda: programs("acc") == ["pipex_access"], "the program is attached")
    assert not npppyd.logged("ERROR")


def test_fast(npppyd: Npppyd) -> None:
    """Interfaces with addresses are core, as these come and go."""
    for name in ("up0", "up1"):
        ip(f"link add {name} type veth peer peer-{name}")
        ip(f"link set {name} up")
    ip("address add 192.0.2.1/24 dev up0")
    fast = CONFIG.replace("listen on", "pipex-forward fast\n    listen on")
    npppyd.write(fast)
    npppyd.start()
    assert (programs("up0"), programs("up1"), programs("acc")) == (["pipex_nic"], [], ["pipex_access"])
    ip("address add 198.51.100.1/24 dev up1")
    wait_for(lambda: programs("up1") == ["pipex_nic"], "its program is attached")
    ip("address del 192.0.2.1/24 dev up0")
    wait_for(lambda: programs("up0") == [], "its program is detached")
    npppyd.reload(CONFIG)
    assert programs("up1") == []
    npppyd.reload(fast)
    assert programs("up1") == ["pipex_nic"]
    assert npppyd.stop() == 0
    assert programs("up1") == []


def test_the_program_of_another_stays(npppyd: Npppyd) -> None:
    program = foreign_program()
    attach_foreign("acc", program)
    npppyd.start()
    wait_for(lambda: npppyd.logged("interface=acc Listening"), "it listens")
    assert npppyd.logged("acc has an XDP program that is not ours: 'somebodys', id ")
    assert programs("acc") == ["somebodys"]
    assert npppyd.stop() == 0
    assert programs("acc") == ["somebodys"]
    program.close()


def test_what_a_killed_one_has_left(npppyd: Npppyd) -> None:
    npppyd.start()
    wait_for(lambda: programs("acc"), "the program is attached")
    refused = teardown(npppyd)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "held by another daemon" in refused.stderr
    assert npppyd.answers()
    npppyd.stop(signal.SIGKILL)
    assert programs("acc") == ["pipex_access"]
    assert sorted(npx()) == ["npx0", "npx1"]
    done = teardown(npppyd)
    assert done.returncode == 0
    assert "acc" in done.stdout
    assert programs("acc") == npx() == []
    assert not default_pins(str(npppyd.socket)).exists()
    assert (teardown(npppyd).returncode, teardown(npppyd).stdout) == (0, "")


def test_a_new_one_after_a_kill(npppyd: Npppyd) -> None:
    npppyd.start()
    wait_for(lambda: programs("acc"), "the program is attached")
    npppyd.stop(signal.SIGKILL)
    npppyd.start()
    assert npppyd.answers()
    assert programs("acc") == ["pipex_access"]
    assert sorted(npx()) == ["npx0", "npx1"]
    assert not npppyd.logged("ERROR")
    assert npppyd.stop() == 0
    assert programs("acc") == npx() == []
