"""Starts of npppyd that fail, without the daemon: what they leave behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from npppy import daemon, logs
from npppy.config.loader import load
from npppy.tun.netlink import NetlinkError

from .config_file import BASE, BIND, TUNNEL


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "users").touch(0o600)
    (tmp_path / "npppd.conf").write_text(BASE + TUNNEL % "" + BIND)
    return tmp_path / "npppd.conf"


@pytest.fixture
def background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the background without a fork, and with a pid file of our own."""
    monkeypatch.setattr(daemon, "PIDFILE", tmp_path / "pid")
    monkeypatch.setattr(daemon, "_detach", lambda: -1)
    monkeypatch.setattr(daemon, "_serving_in_background", lambda tell: daemon.PIDFILE.write_text(f"{os.getpid()}\n"))
    monkeypatch.setattr(logs, "setup", lambda **kwargs: None)


def start(conf: Path) -> int:
    return daemon.main(["-f", str(conf), "-s", str(conf.parent / "sock")])


@pytest.mark.parametrize(
    "error",
    [daemon.StartError("held by another daemon"), OSError(13, "no"), NetlinkError("look interface eth1 up", 1, "")],
)
def test_a_start_that_fails_leaves_the_pid_file_of_the_one_that_runs(
    conf: Path,
    background: None,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def serve(*args: object) -> None:
        raise error

    daemon.PIDFILE.write_text("1\n")
    monkeypatch.setattr(daemon, "_serve", serve)
    assert start(conf) == 1
    assert f"npppyd: {error}\n" in capsys.readouterr().err
    assert daemon.PIDFILE.read_text() == "1\n"


def test_the_pid_file_goes_with_its_daemon(conf: Path, background: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(config: object, control: object, group: object, serving: object) -> None:
        assert callable(serving)
        serving()
        assert daemon.PIDFILE.exists()

    monkeypatch.setattr(daemon, "_serve", serve)
    assert start(conf) == 0
    assert not daemon.PIDFILE.exists()


def test_a_pid_file_that_cannot_be_written_leaves_no_socket(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serving() -> None:
        assert (conf.parent / "sock").is_socket()
        raise OSError(30, "read-only")

    async def run() -> None:
        await daemon.Daemon(load(conf), str(conf.parent / "sock"), None).run(serving)

    monkeypatch.setattr(daemon.Daemon, "_start", lambda self, stack: None)
    with pytest.raises(OSError, match="read-only"):
        asyncio.run(run())
    assert not (conf.parent / "sock").exists()
