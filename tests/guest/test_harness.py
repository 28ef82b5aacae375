"""The harness: what it says on the host, and that its guest can do what the other suites expect of it."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import harness


class TestOnTheHost:
    def test_script_keeps_every_argument(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NPPPY_ODD", "a 'b' $c\n")
        script = harness._script("uml", ["printf", "%s|", "", "x'y", "$HOME", "NPPPY_ODD"])
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        assert done.stdout == "|x'y|$HOME|NPPPY_ODD|"
        script = harness._script("uml", ["printenv", "NPPPY_ODD", "NPPPY_GUEST"])
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        assert done.stdout == "a 'b' $c\n\numl\n"

    def test_missing_packages_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name, path: None if name in ("cpio", "modprobe") else name)
        with pytest.raises(harness.GuestError, match="apt-get install --no-install-recommends cpio kmod"):
            harness._require("tcg")

    def test_a_wrong_path_of_the_user_mode_kernel(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NPPPY_UML", "/nonexistent/linux")
        assert harness.run(["true"]) == harness.NOT_RUN
        assert "NPPPY_UML names no program" in capfd.readouterr().err

    def test_a_guest_that_does_not_start(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NPPPY_UML", "/bin/false")
        assert harness.run(["true"]) == harness.NOT_RUN
        assert "guest (uml): died with status 1" in capfd.readouterr().err

    @pytest.mark.root
    def test_output_status_and_shared_directory(self, tmp_path: Path) -> None:
        output = io.BytesIO()
        lost = tmp_path / "lost"
        shared = tmp_path / "with space, and comma"
        shared.mkdir()
        script = 'echo "$1"; echo error >&2; echo kept >"$2/file"; echo lost >"$3"; exit 3'
        argv = ["sh", "-c", script, "sh", "two  words", str(shared), str(lost)]
        assert harness.run(argv, share=[shared], output=output) == 3
        assert output.getvalue() == b"two  words\nerror\n"
        assert (shared / "file").read_text() == "kept\n"
        assert not lost.exists()

    @pytest.mark.root
    def test_a_guest_that_takes_too_long_is_ended(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        # Other guests come and go beside this one.
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert harness.run(["sleep", "1000"], timeout=2, output=io.BytesIO()) == harness.TIMED_OUT
        assert "ended after 2 s" in capfd.readouterr().err
        assert not list(tmp_path.iterdir())


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[None]:
    """Debian's pppoe-server on sv0 in namespace `server`, the other end of the wire is cl0 in `client`."""
    for name in ("client", "server"):
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
    _ip("link", "add", "cl0", "netns", "client", "type", "veth", "peer", "name", "sv0", "netns", "server")
    _ip("-n", "client", "link", "set", "cl0", "up")
    _ip("-n", "server", "link", "set", "sv0", "up")
    options = tmp_path / "server-options"
    options.write_text("noauth\n")
    words = f"pppoe-server -F -I sv0 -L 10.1.0.1 -R 10.1.0.10 -O {options}"
    process = subprocess.Popen(["ip", "netns", "exec", "server", *words.split()])
    yield
    process.terminate()
    process.wait()
    for name in ("client", "server"):
        _ip("netns", "delete", name)


@pytest.mark.guest
@pytest.mark.tcg
class TestInTheGuest:
    def test_root_and_init(self) -> None:
        assert os.geteuid() == 0
        assert Path("/proc/1/comm").read_text().strip() == "init.sh"

    def test_devices(self) -> None:
        assert Path("/dev/ppp").is_char_device()
        assert Path("/dev/net/tun").is_char_device()

    def test_pppd_to_pppoe_server(self, server: None, tmp_path: Path) -> None:
        log = tmp_path / "log"
        # updetach waits for the first network protocol only: let that be IPCP.
        options = f"plugin rp-pppoe.so cl0 noauth noipdefault noipv6 updetach debug logfile {log} maxfail 3"
        connected = subprocess.run(["ip", "netns", "exec", "client", "timeout", "60", "pppd", *options.split()])
        assert connected.returncode == 0, log.read_text()
        try:
            assert "10.1.0.10 peer 10.1.0.1/32" in _ip("-n", "client", "address", "show", "dev", "ppp0")
            ping = ["ip", "netns", "exec", "client", "ping", "-c", "3", "-i", "0.2", "-w", "20", "10.1.0.1"]
            subprocess.run(ping, check=True)
        finally:
            os.kill(int(Path("/run/ppp0.pid").read_text()), signal.SIGTERM)
