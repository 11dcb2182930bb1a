"""Sending a message with descriptors, long ones by a memory file, and ending a connection for all who have it.

Owns these system calls and what counts as no room. What the messages mean is moving/mover.py's business.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from typing import Final

FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.EPIPE})


def send(channel: socket.socket | None, message: bytes) -> bool:
    """Send one *message* without descriptors; return False when there is no room for it now."""
    if channel is None:
        return False
    try:
        channel.send(message, socket.MSG_NOSIGNAL)
    except OSError as error:
        if error.errno in FULL:
            return False
        raise
    return True


def send_with(channel: socket.socket | None, head: bytes, leftover: bytes, *fds: int) -> bool:
    """Send one message with descriptors; return False when there is no room for it now."""
    if channel is None:
        return False
    rights = ((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)),)
    try:
        channel.sendmsg((head, leftover), rights, socket.MSG_NOSIGNAL)
    except OSError as error:
        if error.errno in FULL:
            return False
        raise
    return True


def shut_down(fd: int, last: bytes = b"") -> None:
    """Send *last* and FIN, and let nobody read or write any more, whatever other descriptors are open."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        with contextlib.suppress(OSError):  # a client that does not read needs no answer
            connection.send(last, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        connection.shutdown(socket.SHUT_RDWR)


def write_file(data: bytes) -> int:
    fd = os.memfd_create("limpet-leftover", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def read_file(fd: int) -> bytes:
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()
