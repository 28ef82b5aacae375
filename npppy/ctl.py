"""npppyctl: asks npppyd about its sessions, ends them, and watches them come and go."""

from __future__ import annotations

import getopt
import io
import os
import signal
import sys

from .control import client, commands
from .control.protocol import SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "usage: npppyctl [-jn] [-s socket] command [argument ...]"


def run(arguments: Sequence[str]) -> int:
    """Carries out the command line, without the program's name; returns the exit status."""
    try:
        options, words = getopt.getopt(list(arguments), "jns:")
    except getopt.GetoptError as error:
        return _fail(f"{error}\n{USAGE}")
    # -n is npppctl's: show addresses and not names.  No name is ever looked up here.
    given = dict(options)
    try:
        command, request = commands.parse(words)
    except commands.WordError as error:
        print(error, file=sys.stderr)
        if error.valid:
            print("valid commands/args:", *(f"  {word}" for word in error.valid), sep="\n", file=sys.stderr)
        return 1
    try:
        connection = client.Connection(given.get("-s", SOCKET))
        try:
            show = command.take_show(request, json="-j" in given)
            answer = connection.ask(request, endless=command.endless)
            show(answer, sys.stdout)
            sys.stdout.flush()
        finally:
            connection.close()
    except client.ControlError as error:
        return _fail(str(error))
    except OSError as error:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _fail(f"cannot write: {error.strerror}")
    return 1 if answer.done.get("failed") else 0


def _fail(message: str) -> int:
    print(f"npppyctl: {message}", file=sys.stderr)
    return 1


def main() -> int:
    # As every C program does: end without a word at Ctrl-C, and when the reader of a pipe goes away.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A locale that lacks a character of a user's name must not end the listing.
        sys.stdout.reconfigure(errors="backslashreplace")
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
