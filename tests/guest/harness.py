"""Run a command in a throw-away Linux guest that has PPP.

The guest sees this machine's file tree, read-only below a tmpfs: it may write anywhere, and all of it is lost at its
end, but for what goes into directories shared on purpose. The command runs as root in the current directory; its
output appears as it is written, and its exit status comes back. There is no network to the outside: tests make their
own namespaces inside.

Three kinds of guest:
  uml  a user-mode kernel, given by NPPPY_UML=/path/to/linux; one processor, boots in a fraction of a second
  kvm  QEMU with KVM on Debian's packaged kernel
  tcg  the same, emulated: works everywhere, 10 to 20 times slower
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from tests.guest import kernel

HERE = Path(__file__).resolve().parent

TIMED_OUT = 124
NOT_RUN = 125

# Seconds until the guest must have reached its init.
BOOT_LIMIT = {"uml": 30, "kvm": 30, "tcg": 120}
# What the QEMU guest loads before the command; the user-mode kernel has all of it built in.
MODULES = (
    "ppp_generic ppp_async ppp_synctty ppp_mppe ppp_deflate bsd_comp pppoe pptp l2tp_ppp l2tp_netlink l2tp_eth l2tp_ip "
    "tun veth dummy bridge 8021q sch_ingress cls_bpf act_bpf"
)
# The caller's environment that the command sees, with all of NPPPY_* and PY* (Python's and pytest's).
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "HYPOTHESIS_PROFILE")

NEEDS = {
    "uml": {"ip": "iproute2", "setpriv": "util-linux", "taskset": "util-linux"},
    "qemu": {
        "ip": "iproute2",
        "setpriv": "util-linux",
        "qemu-system-x86_64": "qemu-system-x86",
        "modprobe": "kmod",
        "cpio": "cpio",
        "busybox": "busybox-static",
    },
}


class GuestError(Exception):
    """The guest could not be started, or died; the text says why."""


def kinds() -> list[str]:
    """The kinds of guest to try on this machine, best first."""
    if os.environ.get("NPPPY_UML"):
        return ["uml"]
    return ["kvm", "tcg"] if _kvm_may_work() else ["tcg"]


def _kvm_may_work() -> bool:
    """Whether KVM can be tried: /dev/kvm alone says too little.

    A paravirtual KVM (PVM) makes machines and processors like any other, but cannot run a stock kernel.
    """
    modules = Path("/sys/module")
    hardware = (modules / "kvm_intel").exists() or (modules / "kvm_amd").exists()
    return hardware and not (modules / "kvm_pvm").exists() and os.access("/dev/kvm", os.R_OK | os.W_OK)


def run(
    argv: Sequence[str],
    *,
    kind: str | None = None,
    timeout: float = 900,
    memory: int = 1024,
    share: Sequence[Path] = (),
    output: BinaryIO | None = None,
) -> int:
    """Run `argv` in a guest and return its exit status, TIMED_OUT or NOT_RUN.

    kind: uml, kvm or tcg; None takes the best that works here.
    timeout: seconds for the whole of it; memory: MiB.
    share: directories of the host that the guest may write.
    output: where the command's output goes (its stdout and stderr together); None is this process's stdout.
    What is to be said about the guest itself goes to stderr.
    """
    output = output or sys.stdout.buffer
    attempts = [kind] if kind else kinds()
    for number, attempt in enumerate(attempts, 1):
        try:
            with tempfile.TemporaryDirectory(prefix="npppy-guest-") as name:
                guest = Guest(Path(name), attempt, argv, memory, [path.resolve() for path in share])
                return guest.run(timeout, output)
        except NotStarted as error:
            print(f"guest ({attempt}): {error}", file=sys.stderr, flush=True)
            if number < len(attempts):
                print(f"trying {attempts[number]}", file=sys.stderr, flush=True)
        except (GuestError, kernel.KernelError) as error:
            print(f"guest ({attempt}): {error}", file=sys.stderr, flush=True)
            break
    return NOT_RUN


class NotStarted(GuestError):
    """The guest never reached its init: another kind may."""


class Guest:
    """One guest, from its run directory to its end."""

    def __init__(self, home: Path, kind: str, argv: Sequence[str], memory: int, share: Sequence[Path]) -> None:
        self._home = home
        self._kind = kind
        self._share = {"run": home, **{f"rw{number}": path for number, path in enumerate(share)}}
        self._console = home / "console"
        _require(kind)
        if kind == "uml":
            modules = ""
            self._command = self._uml(memory)
        else:
            image = kernel.fetch()
            modules = str(image.modules)
            self._command = self._qemu(image, memory)
        conf = [f"kind={kind}", f"modules={shlex.quote(modules)}", f"load={shlex.quote(MODULES)}"]
        conf += [f"share {tag} {shlex.quote(str(path))}" for tag, path in self._share.items()]
        (home / "conf").write_text("\n".join(conf) + "\n")
        (home / "command").write_text(_script(kind, argv))
        (home / "out").touch()
        shutil.copy(HERE / "init.sh", home / "init.sh")
        (home / "init.sh").chmod(0o755)
        if any(character.isspace() for character in str(home)):
            raise GuestError(f"the run directory {home} has a space in its name: set TMPDIR")

    def _uml(self, memory: int) -> list[str]:
        # On one processor the user-mode kernel and its processes hand over to each other in a sixth of the time.
        # Shares of a suite take different ones.
        processors = sorted(os.sched_getaffinity(0))
        share = os.environ.get("NPPPY_SHARE", "").partition("/")[0] or random.randrange(len(processors))
        processor = processors[int(share) % len(processors)]
        return [
            *("taskset", "-c", str(processor)),
            *(os.path.abspath(os.environ["NPPPY_UML"]), f"mem={memory}M", f"uml_dir={self._home}/", "umid=guest"),
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=-1"),
            # Processes under seccomp, where the kernel knows how, cost a fraction of those under ptrace.
            *("seccomp=auto", "con=null", "con0=null,fd:1", "ssl=null"),
            *(f"init={self._home}/init.sh", f"npppy_run={self._home}"),
        ]

    def _qemu(self, image: kernel.Kernel, memory: int) -> list[str]:
        accel, cpu = ("kvm", "host") if self._kind == "kvm" else ("tcg", "max")
        append = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on net.ifnames=0"
        command = [
            # One processor: with two, one emulated start in twenty hangs.
            *("qemu-system-x86_64", "-accel", accel, "-cpu", cpu, "-m", str(memory), "-smp", "1"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{self._console}", "-kernel", str(image.image), "-initrd", str(image.initramfs)),
            *("-append", f"{append} npppy_run={self._home}"),
            *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
        ]
        for tag, path in self._share.items():
            escaped = str(path).replace(",", ",,")
            command += ["-virtfs", f"local,path={escaped},mount_tag={tag},security_model=none,multidevs=remap"]
        return command

    def run(self, timeout: float, output: BinaryIO) -> int:
        """The command's exit status, or TIMED_OUT. Raises GuestError."""
        with self._console.open("ab") as console:
            process = subprocess.Popen(
                # The guest ends with this process, even if that is killed.
                ["setpriv", "--pdeathsig", "KILL", *self._command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd=self._home,
                start_new_session=True,
            )
        start = time.monotonic()
        timed_out = False
        try:
            with (self._home / "out").open("rb") as written:
                while process.poll() is None:
                    _copy(written, output)
                    age = time.monotonic() - start
                    if age > BOOT_LIMIT[self._kind] and not self._is_up():
                        raise NotStarted(f"not up after {BOOT_LIMIT[self._kind]} s\n{self._console_tail()}")
                    if age > timeout:
                        timed_out = True
                        break
                    time.sleep(0.05)
                _copy(written, output)
        finally:
            _end(process)
        status = self._home / "status"
        if status.exists() and (text := status.read_text().strip()):
            if text != "0":
                print(self._console_tail(), file=sys.stderr, flush=True)
            return int(text)
        if timed_out:
            print(f"guest ({self._kind}): ended after {timeout:g} s\n{self._console_tail()}", file=sys.stderr)
            return TIMED_OUT
        error = GuestError if self._is_up() else NotStarted
        raise error(f"died with status {process.returncode}\n{self._console_tail()}")

    def _is_up(self) -> bool:
        return (self._home / "up").exists()

    def _console_tail(self) -> str:
        lines = self._console.read_text(errors="replace").splitlines()[-50:]
        return "\n".join(["the guest's console ends:", *(f"  {line}" for line in lines)])


def _require(kind: str) -> None:
    if kind == "uml" and not os.access(os.environ.get("NPPPY_UML", ""), os.X_OK):
        raise GuestError("NPPPY_UML names no program: it must be the path of a user-mode kernel")
    needs = NEEDS["uml" if kind == "uml" else "qemu"]
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for program, package in needs.items() if not shutil.which(program, path=path)})
    if missing:
        raise GuestError(f"packages are missing: apt-get install --no-install-recommends {' '.join(missing)}")


def _script(kind: str, argv: Sequence[str]) -> str:
    """The shell script that the guest runs: environment, directory, command."""
    lines = [
        f"export {name}={shlex.quote(value)}"
        for name, value in os.environ.items()
        if name in ENVIRONMENT or (name.startswith(("NPPPY_", "PY")) and name.isidentifier())
    ]
    lines += [f"export NPPPY_GUEST={kind}", f"cd {shlex.quote(os.getcwd())} || exit 126", f"exec {shlex.join(argv)}"]
    return "\n".join(lines) + "\n"


def _copy(written: BinaryIO, output: BinaryIO) -> None:
    if data := written.read():
        output.write(data)
        output.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the guest and what it started on the host: the session that it was given, nothing else."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
