"""Debian's own kernel for a QEMU guest: downloaded and unpacked into a cache directory, never installed.

`python -m tests.guest.kernel` fetches it, if it is not there, and prints where it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

# The general flavour: Debian's cloud flavour has no PPP.
META_PACKAGE = "linux-image-amd64"
# What the initramfs needs to reach the host's file tree and to lay a tmpfs over it.
BOOT_MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]


class KernelError(Exception):
    """The kernel could not be fetched or unpacked; the text says what was attempted."""


@dataclass(frozen=True, slots=True)
class Kernel:
    image: Path
    initramfs: Path
    modules: Path
    """The directory that goes to /lib/modules."""


def cache() -> Path:
    """NPPPY_CACHE, or npppy below the user's cache directory."""
    if given := os.environ.get("NPPPY_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npppy"


def fetch() -> Kernel:
    """The newest kernel that apt knows of, from the cache if it is there. Raises KernelError."""
    package = _image_package()
    version = package.removeprefix("linux-image-")
    home = cache() / package
    if not (home / "initramfs").exists():
        _build(package, version, home)
    return Kernel(home / "vmlinuz", home / "initramfs", home / "lib/modules")


def _image_package() -> str:
    """The package of the kernel itself, on which the meta package depends."""
    depends = subprocess.run(["apt-cache", "depends", META_PACKAGE], capture_output=True, text=True).stdout
    if found := re.search(r"Depends: (linux-image-[0-9]\S*)", depends):
        return found[1]
    if kept := sorted(cache().glob("linux-image-*/initramfs")):
        return kept[-1].parent.name
    raise KernelError(f"apt knows no {META_PACKAGE}: run apt-get update (and Debian 12 on amd64 is needed)")


def _build(package: str, version: str, home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="new-") as name:
        work = Path(name)
        print(f"downloading {package} into {home}", file=sys.stderr, flush=True)
        # As root apt would hand the download to a user who cannot write here.
        download = ["apt-get", "-q", "-o", "APT::Sandbox::User=", "download", package]
        try:
            _do(download, work)
        except KernelError:
            if os.geteuid():
                raise
            _do(["apt-get", "-q", "update"], work)  # the lists were out of date
            _do(download, work)
        (deb,) = work.glob("*.deb")
        _do(["dpkg-deb", "-x", str(deb), "tree"], work)
        new = work / "new"
        (new / "lib").mkdir(parents=True)
        (work / "tree/lib/modules").rename(new / "lib/modules")
        (work / f"tree/boot/vmlinuz-{version}").rename(new / "vmlinuz")
        _do(["depmod", "-b", str(new), version], work)
        _initramfs(new, version, work / "initramfs")
        shutil.rmtree(home, ignore_errors=True)
        new.rename(home)


def _initramfs(new: Path, version: str, root: Path) -> None:
    """A static busybox and BOOT_MODULES, in the order in which they load."""
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    shutil.copy(HERE / "initramfs.sh", root / "init")
    (root / "init").chmod(0o755)
    paths: list[str] = []
    for module in BOOT_MODULES:
        shown = _do(["modprobe", "-d", str(new), "-S", version, "--show-depends", module], root)
        paths += [line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")]
    for number, path in enumerate(dict.fromkeys(paths)):
        shutil.copy(path, root / "modules" / f"{number:02}-{Path(path).name}")
    _do(["sh", "-c", 'find . | cpio -o -H newc -R 0:0 --quiet >"$1"', "sh", str(new / "initramfs")], root)


def _do(argv: list[str], where: Path) -> str:
    done = subprocess.run(argv, cwd=where, capture_output=True, text=True)
    if done.returncode:
        raise KernelError(f"{' '.join(argv)} failed:\n{(done.stdout + done.stderr).strip()}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(fetch().image.parent)
    except KernelError as error:
        sys.exit(f"guest kernel: {error}")
