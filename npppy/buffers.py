"""Kernel buffers of sockets, in octets; without CAP_NET_ADMIN, as much of them as net.core allows."""

from __future__ import annotations

import socket

# <asm-generic/socket.h>; the socket module does not have them.
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33


def set_buffers(sock: socket.socket, octets: int) -> None:
    """Room for what comes, and for what goes."""
    set_receive(sock, octets)
    _set(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, octets)


def set_receive(sock: socket.socket, octets: int) -> None:
    """Room for what comes."""
    _set(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, octets)


def _set(sock: socket.socket, forced: int, plain: int, octets: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, octets)
