#!/usr/bin/env python3
"""npppy at work on this machine: subscribers, the concentrator and a host beyond it, a network namespace each.

    sub ====== bng ------ net
       eth0  eth1  up0  eth0

Subscribers come by PPPoE on the wire between sub and bng, and by L2TP and PPTP over IP there.
Every step prints what it runs and fails if it did not truly work.  What it makes has the process id in its name and is
removed at the end, whatever happens; no process that it has not started is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import queue
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

#: Both ends of the link from the concentrator to the host beyond.
UPLINK, BEYOND = "192.0.2.1", "192.0.2.2"
#: Where L2TP and PPTP are served, and where they come from.
LNS, AFAR = "203.0.113.1", "203.0.113.2"
#: Octets sent each way through each session.
AMOUNT = 4_000_000
#: Seconds that any one thing may take.
PATIENCE = 20.0

_CLONE_NEWNET = 0x40000000


class Failed(Exception):
    """A step did not work."""


class Interrupt:
    """Whether a signal has come that ends all, and whether it waits."""

    came = waits = False


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """An interrupt waits till the end of this: of a process that is being started nobody would know yet."""
    Interrupt.waits = True
    try:
        yield
    finally:
        Interrupt.waits = False
    if Interrupt.came:
        raise KeyboardInterrupt


def step(title: str) -> None:
    print(f"\n=== {title}", flush=True)


def say(text: str) -> None:
    for line in text.rstrip().splitlines():
        print(f"    {line}", flush=True)


def check(holds: object, what: str) -> None:
    if not holds:
        raise Failed(what)
    say(f"ok: {what}")


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.02)
    return result


def shown(argv: list[str]) -> str:
    """A command as one would type it."""
    return shlex.join(Path(word).name if word.startswith(f"{BIN}/") else word for word in argv)


def run(*argv: str, status: int = 0, quiet: bool = False) -> str:
    """Run a command, print it and what it says, and return that."""
    if not quiet:
        print(f"  $ {shown(list(argv))}", flush=True)
    with whole():
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)
    if not quiet:
        say(done.stdout + done.stderr)
    if done.returncode != status:
        raise Failed(f"{shown(list(argv))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Program:
    """A process in a namespace, in the background; its standard output by lines, the rest in a log file."""

    def __init__(self, namespace: str, argv: list[str], log: Path) -> None:
        self.log = log
        command = ["ip", "netns", "exec", namespace, *argv]
        print(f"  $ {shown(command)} &", flush=True)
        with log.open("wb") as errors:
            # Signals are for it, not for a shell between: "ip netns exec" becomes the program.  A group of its own, so
            # that an interrupt from the terminal reaches this script alone, which ends all in order.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def event(self, name: str) -> dict[str, Any]:
        """The next JSON object on standard output that is this event."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise Failed(f"no event {name!r}\n{self.log.read_text()}") from None
            facts: dict[str, Any] = json.loads(line)
            if facts.get("event") == name:
                return facts

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; returns its exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.process.args} does not end") from None

    def kill(self) -> None:
        """For the end of all: gently if that helps."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


class Demo:
    """The namespaces, the files, and the programs."""

    def __init__(self) -> None:
        self.sub, self.bng, self.net = (f"npppy-demo-{name}-{os.getpid()}" for name in ("sub", "bng", "net"))
        self.directory = Path(tempfile.mkdtemp(prefix="npppy-demo-"))
        self.socket = self.directory / "npppyd.sock"
        self.programs: list[Program] = []

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # A second interrupt would leave half of it behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for program in reversed(self.programs):
            program.kill()
        for namespace in (self.sub, self.bng, self.net):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)
        if isinstance(error, Failed):
            for program in self.programs:
                print(f"\n--- {program.log.name}\n{program.log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, name: str, namespace: str, *argv: str) -> Program:
        with whole():
            program = Program(namespace, list(argv), self.directory / f"{name}.log")
            self.programs.append(program)
        return program

    # The network.

    def build(self) -> None:
        for namespace in (self.sub, self.bng, self.net):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up", quiet=True)
        self.wire(self.sub, "eth0", self.bng, "eth1")
        self.wire(self.bng, "up0", self.net, "eth0")
        run("ip", "-n", self.bng, "address", "add", f"{UPLINK}/24", "dev", "up0")
        run("ip", "-n", self.bng, "address", "add", f"{LNS}/24", "dev", "eth1")
        run("ip", "-n", self.sub, "address", "add", f"{AFAR}/24", "dev", "eth0")
        run("ip", "-n", self.net, "address", "add", f"{BEYOND}/24", "dev", "eth0")
        run("ip", "-n", self.net, "route", "add", "default", "via", UPLINK)
        with inside(self.bng):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def wire(self, one: str, mine: str, other: str, theirs: str) -> None:
        run("ip", "-n", one, "link", "add", mine, "type", "veth", "peer", "name", theirs, "netns", other)
        for namespace, name in ((one, mine), (other, theirs)):
            run("ip", "-n", namespace, "link", "set", name, "up", quiet=True)

    def routes(self) -> set[str]:
        """Those that npppyd has made."""
        return set(run("ip", "-n", self.bng, "route", "show", "proto", "112", quiet=True).splitlines())

    # The concentrator.

    def serve(self) -> Program:
        for name in ("npppd.conf", "l2tp.conf", "pptp.conf", "npppd-users"):
            shutil.copy(ROOT / "conf" / name, self.directory)
        (self.directory / "npppd-users").chmod(0o600)
        for name, there, line in (
            # What is commented out.
            ("npppd.conf", '#include "l2tp.conf"', 'include "l2tp.conf"'),
            ("npppd.conf", '#include "pptp.conf"', 'include "pptp.conf"'),
            ("l2tp.conf", "#l2tp-accept-dialin yes", "l2tp-accept-dialin yes"),
            # For one who comes in the clear.
            ("pptp.conf", "mppe required", "mppe yes"),
        ):
            path = self.directory / name
            text = path.read_text()
            check(text.count(f"\n{there}\n") + text.count(f" {there}\n") == 1, f"{name}: {line}")
            path.write_text(text.replace(there, line))
        daemon = self.start(
            "npppyd", self.bng, f"{BIN}/npppyd", "-d", "-f", f"{self.directory}/npppd.conf", "-s", str(self.socket)
        )

        def serves() -> bool:
            if daemon.process.poll() is not None:
                raise Failed("npppyd does not start")
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(self.socket)) == 0

        until(serves, "npppyd serves")
        return daemon

    def ctl(self, *words: str, quiet: bool = False) -> str:
        return run(f"{BIN}/npppyctl", "-s", str(self.socket), *words, quiet=quiet)

    def sessions(self) -> dict[str, dict[str, Any]]:
        """What npppyctl knows of the sessions, by user name."""
        lines = self.ctl("-j", "session", "brief", quiet=True).splitlines()
        return {row["username"]: row for row in map(json.loads, lines) if "username" in row}

    # The subscribers.

    def dial(self, number: int, user: str, password: str, auth: str, *by: str) -> tuple[Program, str]:
        """A subscriber that stays; returns it and its address.  Without a word how it comes, it is by PPPoE."""
        program = self.start(
            f"npppysim-{user}",
            self.sub,
            *(f"{BIN}/npppysim", *(by or ("pppoe", "--interface", "eth0")), "--first", str(number)),
            *("--user", user, "--password", password, "--auth", auth, "--tun", "--hold", "inf"),
            *("--events", "--report", "json"),
        )
        facts = program.event("up")
        say(f"{user} is up in {facts['ms']} ms: address {facts['address']}, name servers {' '.join(facts['dns'])}")
        return program, facts["address"]

    def refused(self, user: str, password: str, auth: str) -> str:
        """A subscriber that must not come up; returns why, as it sees it."""
        told = run(
            *("ip", "netns", "exec", self.sub, f"{BIN}/npppysim", "pppoe", "--interface", "eth0", "--report", "json"),
            *("--user", user, "--password", password, "--auth", auth),
            status=1,
        )
        (reason,) = json.loads(told)["failed"]
        return str(reason)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in a namespace: sockets that are opened here belong to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            if libc.setns(home.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def receive(sock: socket.socket) -> str:
    """The hash of all that comes."""
    found = hashlib.sha256()
    while data := sock.recv(65536):
        found.update(data)
    return found.hexdigest()


def transfer(demo: Demo, addresses: dict[str, str]) -> None:
    """AMOUNT octets up and as many down through every session at the same time, compared by their hash."""
    with contextlib.ExitStack() as stack:
        with inside(demo.net):
            server = stack.enter_context(socket.create_server((BEYOND, 0)))
        server.settimeout(PATIENCE)
        say(f"{AMOUNT} octets each way through each session, to {BEYOND}:{server.getsockname()[1]}")
        hashes: dict[tuple[str, str], str] = {}
        threads = []
        for user, address in addresses.items():
            with inside(demo.sub):
                client = socket.create_connection(server.getsockname(), PATIENCE, (address, 0))
            accepted, (source, _) = server.accept()
            accepted.settimeout(PATIENCE)
            for sock in (client, accepted):
                stack.enter_context(sock)
            check(source == address, f"the host beyond sees {user} as {address}")

            def send(sock: socket.socket, way: str, user: str = user) -> None:
                data = random.Random(f"{user} {way}").randbytes(AMOUNT)
                hashes[user, f"{way} sent"] = hashlib.sha256(data).hexdigest()
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            def hear(sock: socket.socket, way: str, user: str = user) -> None:
                hashes[user, f"{way} received"] = receive(sock)

            for way, sender, receiver in (("up", client, accepted), ("down", accepted, client)):
                threads.append(threading.Thread(target=send, args=(sender, way), daemon=True))
                threads.append(threading.Thread(target=hear, args=(receiver, way), daemon=True))
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        seconds = time.monotonic() - began
        for user in addresses:
            for way in ("up", "down"):
                sent = hashes.get((user, f"{way} sent"))
                check(
                    sent and sent == hashes.get((user, f"{way} received")),
                    f"{user}: {AMOUNT} octets {way}, sha256 {(sent or 'none')[:16]}... at both ends",
                )
        say(f"{len(addresses) * 2 * AMOUNT * 8 / seconds / 1e6:.0f} Mbit/s in all")


def show(demo: Demo) -> None:
    step("Subscribers, a concentrator and a host beyond: three network namespaces")
    demo.build()

    step("npppyd on conf/npppd.conf and conf/npppd-users as they are shipped")
    daemon = demo.serve()
    check(not demo.sessions(), "npppyd answers, and has no session")
    before = demo.routes()
    check(any(line.startswith("10.65.0.0/24 ") for line in before), f"{len(before)} routes cover the pools")

    step("Subscribers dial")
    subscribers: dict[str, Program] = {}
    addresses: dict[str, str] = {}
    for number, (user, password, auth) in enumerate(
        (("alice", "wonderland", "mschapv2"), ("bob", "builder", "chap"), ("office", "red:brick", "mschapv2,chap")), 1
    ):
        subscribers[user], addresses[user] = demo.dial(number, user, password, auth)
    check(addresses["alice"].startswith("10.64."), "alice has an address of the pool")
    check(addresses["bob"] == "10.65.0.7", "bob has the address that npppd-users says")
    (added,) = demo.routes() - before
    check(added.startswith("10.65.0.64/28 "), f"the network behind office is routed to it: {added}")

    step("Two more come by L2TP: one by itself, and one by a LAC that has begun its login already")
    l2tp = ("l2tp", "--server", LNS, "--bind")
    for user, password, by in (
        ("mobile", "jabberwock", (*l2tp, f"{AFAR}:4711")),
        ("branch", "bandersnatch", (*l2tp, f"{AFAR}:4712", "--proxy", "chap", "--calling-number", "4312345")),
    ):
        subscribers[user], addresses[user] = demo.dial(len(subscribers) + 1, user, password, "mschapv2,chap", *by)
    demo.ctl("tunnel", "brief")
    tunnels = [json.loads(line) for line in demo.ctl("-j", "tunnel", "brief", quiet=True).splitlines()]
    check(len(tunnels) == 2, "there is a tunnel for each")

    step("Two more come by PPTP from one address: one in the clear, and one whose packets are encrypted")
    pptp = ("pptp", "--server", LNS, "--bind", AFAR)
    for user, password, mppe in (("depot", "tulgey:wood", "no"), ("roamer", "vorpal", "required")):
        by = (*pptp, "--mppe", mppe)
        subscribers[user], addresses[user] = demo.dial(len(subscribers) + 1, user, password, "mschapv2", *by)
    demo.ctl("session", "all", "username", "roamer")
    encrypted = {user: row.get("mppe_in") for user, row in demo.sessions().items() if "mppe_in" in row}
    check(encrypted == {"roamer": "128bits,stateless"}, "roamer's packets are encrypted, and nobody else's")

    step("A wrong password, and a method that the concentrator does not offer")
    check(demo.refused("alice", "rabbit", "chap") == "authentication failed", "the wrong password is refused")
    reason = demo.refused("alice", "wonderland", "pap")
    check(reason != "authentication failed", f"there was no login by PAP, the session ended before: {reason}")

    step(f"Each subscriber pings the host beyond, {BEYOND}")
    for user, address in addresses.items():
        # With -w it waits for all answers, and not for the last one just as long as it waits between two.
        told = run(
            *("ip", "netns", "exec", demo.sub, "ping", "-n", "-q", "-c", "3", "-i", "0.05", "-w", "5"),
            *("-I", address, BEYOND),
        )
        check("3 received" in told, f"{user} reaches {BEYOND}")

    step("TCP through every session at once")
    transfer(demo, addresses)

    step("What npppyctl shows")
    brief = demo.ctl("session", "brief")
    for user, address in addresses.items():
        check(any({user, address} <= set(line.split()) for line in brief.splitlines()), f"{user} has {address}")
    demo.ctl("session", "packets")
    sessions = demo.sessions()
    check(sessions.keys() == addresses.keys(), "there is no other session")
    check(
        all(min(row["in_bytes"], row["out_bytes"]) > AMOUNT for row in sessions.values()),
        "the counters have all that went through",
    )

    step("Who has carried the data")
    demo.ctl("pipex")
    pipex = json.loads(demo.ctl("-j", "pipex", quiet=True))
    if pipex["backend"] == "ebpf":
        python = pipex["paths"]["python"]
        check(not any(python[way]["packets"] for way in ("up", "down")), "the kernel: no packet of data reached Python")
    else:
        say(f"Python, since the kernel cannot: {pipex['reason']}")

    step("One session is cleared")
    demo.ctl("clear", "ppp-id", str(sessions["alice"]["ppp_id"]))
    gone = subscribers["alice"].event("down")
    check(gone["reason"] in ("terminated by the concentrator", "PADT received"), f"alice was told: {gone['reason']}")
    subscribers.pop("alice").process.wait(PATIENCE)
    check(demo.sessions().keys() == addresses.keys() - {"alice"}, "the others stay")

    step("One tunnel is cleared")
    (tunnel,) = [row for row in tunnels if row["peer"].endswith(":4711")]
    demo.ctl("clear", "tunnel", "id", str(tunnel["tunnel_id"]))
    gone = subscribers["mobile"].event("down")
    check("cleared" in gone["reason"], f"mobile was told: {gone['reason']}")
    subscribers.pop("mobile").process.wait(PATIENCE)
    check(demo.sessions().keys() == addresses.keys() - {"alice", "mobile"}, "the others stay")

    step("The others hang up")
    for user, program in subscribers.items():
        status = program.stop(signal.SIGINT)
        check(status == 0, f"{user} has ended in order")

    def empty() -> bool:
        return not demo.sessions() and not any(
            json.loads(demo.ctl("-j", "daemon", quiet=True))[what] for what in ("sessions", "addresses", "journal")
        )

    until(empty, "nothing is left of the sessions")
    demo.ctl("session", "brief")
    say("ok: no session, address or record of one is left")
    check(demo.routes() == before, "the routes are those from before")

    step("npppyd ends")
    check(daemon.stop() == 0, "npppyd has ended in order")
    links = run("ip", "-n", demo.bng, "-br", "link")
    check("tun0" not in links and "npx" not in links, "its devices have gone with it")


def interrupted(number: int, frame: object) -> None:
    Interrupt.came = True
    if not Interrupt.waits:
        raise KeyboardInterrupt


def main() -> int:
    if os.geteuid():
        print("demo: needs root", file=sys.stderr)
        return 1
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        with Demo() as demo:
            show(demo)
    except Failed as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"\nAll of it worked, in {time.monotonic() - began:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
