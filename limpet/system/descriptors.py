"""The descriptors of a process: how many it may have, which numbers are never free, and what its programs inherit.

This file owns the soft limit of descriptors, which a process may raise to its hard limit by itself.

Service managers and shells set the soft limit to 1024 for programs that use select(). select() cannot watch descriptors
above 1023, and in C it may write beyond its array. A program that does not use select() raises the limit itself.

1. The supervisor raises its limit, and every process that it starts inherits that, except workers.
2. A worker has the limit that the server was started with, because the application, or a program that it starts, may
   use select(). To give workers more, raise the limit before the start: `ulimit -n`, or LimitNOFILE.
3. Descriptors 0, 1 and 2 are open in each process before it opens anything else. The kernel gives out the lowest free
   number. With `2>&-` the scoreboard would be descriptor 2, and messages of C libraries would be written into it.
4. A child inherits descriptors across an exec, so they are inheritable at first. The child makes them close-on-exec
   before it imports the application. Otherwise a program that the application starts would keep the port long after
   the end of the server.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import resource
import socket
import sys
from collections.abc import Iterable
from typing import Final

_RIGHTS: Final = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # in the order of their descriptors


def take_all() -> int:
    """Raise the limit of descriptors, which children inherit, to the hard limit. Return the former limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _set(hard, hard)
    return soft


def be_content_with(number: int) -> None:
    """Limit this process to *number* descriptors, or to the hard limit if that is lower. 0 changes nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if number:
        _set(min(number, hard) if hard != resource.RLIM_INFINITY else number, hard)


def have_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that was closed at the start. Runs before anything is opened."""
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets this number, the lowest free one
        if getattr(sys, name) is None:  # Python sets None for a stream that was closed
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for the process's whole life


def above_standard_streams(fd: int) -> int:
    """Return *fd* if it is above 2; otherwise close it and return a copy above 2. For programs that call limpet."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def received(ancillary: Iterable[tuple[int, int, bytes]]) -> array.array[int]:
    """Return the descriptors in *ancillary*, which `recvmsg` has returned. Owns: the caller closes them."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == _RIGHTS:
            fds.frombytes(data[: len(data) // fds.itemsize * fds.itemsize])
    return fds


def keep_from_programs(fds: Iterable[int]) -> None:
    """Make the inherited descriptors *fds* close-on-exec, so that programs that this process starts do not get them."""
    for fd in fds:
        os.set_inheritable(fd, False)


def _set(soft: int, hard: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # fs.nr_open may now be below the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
