"""Socket filters (classic BPF): of what all on a wire are sent, the kernel hands a load only what is for its own."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

from .pptp import CALL_IDS

# <asm-generic/socket.h>; the socket module does not have it.
_SO_ATTACH_FILTER = 26
# <linux/filter.h>
_LOAD, _LOAD_HALF, _LOAD_HEADER_LENGTH, _LOAD_HALF_BEHIND = 0x20, 0x28, 0xB1, 0x48
_ADD, _MODULO = 0x04, 0x94
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_NOT_LESS, _RETURN = 0x15, 0x25, 0x35, 0x06
_ALL = 0xFFFF_FFFF

#: What it does; how many instructions to skip if a condition is met, and if it is not; an operand.
Instruction = tuple[int, int, int, int]


def hosts(first: int, last: int) -> list[Instruction]:
    """Ethernet frames to the MAC addresses from *first* to *last*, which are numbers."""
    (low, low_rest), (high, high_rest) = divmod(first, 1 << 16), divmod(last, 1 << 16)
    return [
        (_LOAD, 0, 0, 0),
        (_JUMP_NOT_LESS, 0, 9, low),
        (_JUMP_GREATER, 8, 0, high),
        (_JUMP_EQUAL, 0, 3, low),
        (_LOAD_HALF, 0, 0, 4),
        (_JUMP_NOT_LESS, 0, 5, low_rest),
        (_LOAD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 2, high),
        (_LOAD_HALF, 0, 0, 4),
        (_JUMP_GREATER, 1, 0, high_rest),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, 0),
    ]


def calls(numbers: range, whole: range) -> list[Instruction]:
    """IP packets with GRE (RFC 2637) for the call ids of the subscribers *numbers*, which are some of the *whole*.

    These are as :func:`.pptp.call_id` has it, in any generation.
    """
    return [
        (_LOAD_HEADER_LENGTH, 0, 0, 0),
        (_LOAD_HALF_BEHIND, 0, 0, 6),
        # How far behind the first of the whole.
        (_ADD, 0, 0, CALL_IDS - (whole.start - 1) % CALL_IDS - 1),
        (_MODULO, 0, 0, CALL_IDS),
        (_MODULO, 0, 0, len(whole)),
        (_JUMP_NOT_LESS, 0, 2, numbers.start - whole.start),
        (_JUMP_NOT_LESS, 1, 0, numbers.stop - whole.start),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, 0),
    ]


def attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """From now on, *sock* gets only what *program* lets pass.  Raises :class:`OSError`."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
