"""Loads a configuration that a test has as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from npppy.config.loader import ConfigError, load
from npppy.config.model import Config, Diagnostic, Tunnel

#: A configuration without anything to complain about; tests put their part into a tunnel or behind it.
BASE = """\
ipcp POOL {
    pool-address 10.64.0.2-10.64.0.254
}
interface tun0 address 10.64.0.1 ipcp POOL
authentication LOCAL type local {
    users-file "users"
}
"""
TUNNEL = """\
tunnel ACCESS protocol pppoe {
    listen on interface eth1
%s
}
"""
BIND = "bind tunnel from ACCESS authenticated by LOCAL to tun0\n"


class ConfigFile:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "npppd.conf"
        self.write("users", "")

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o600)
        return path

    def load(self, text: str | bytes) -> Config:
        return load(self.write("npppd.conf", text))

    def tunnel(self, options: str, more: str = "") -> Tunnel:
        """The tunnel with these options, in a configuration that draws no warnings."""
        config = self.load(BASE + TUNNEL % options + BIND + more)
        assert self.short(config.warnings) == []
        return config.tunnels[0]

    def short(self, diagnostics: tuple[Diagnostic, ...] | list[Diagnostic]) -> list[str]:
        """Diagnostics without the directory."""
        return [str(diagnostic).replace(f"{self.folder}/", "") for diagnostic in diagnostics]

    def warnings(self, text: str | bytes) -> list[str]:
        return self.short(self.load(text).warnings)

    def errors(self, text: str | bytes) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            self.load(text)
        return self.short(raised.value.diagnostics)

    def tunnel_warnings(self, options: str) -> list[str]:
        """Those of a tunnel's first option; its line is 10."""
        return self.warnings(BASE + TUNNEL % options + BIND)

    def tunnel_errors(self, options: str) -> list[str]:
        return self.errors(BASE + TUNNEL % options + BIND)
