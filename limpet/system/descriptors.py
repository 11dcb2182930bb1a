"""What a process does about its descriptors: how many it may have, which are never free, and which no program gets.

Owns the soft limit, which a process may raise by itself to the hard one, and the making of memory files.

Service managers and shells set the soft limit to 1024 for the sake of programs that use select(), which cannot see
descriptors above 1023 and in C may write beyond its array; who knows that he does not use it raises the limit himself.

1. The supervisor does, and so do all that it starts, but for workers.
2. A worker has what the server was started with: its application may use select(), and so may what that starts. Who
   wants more for it says so before the start, by `ulimit -n` or LimitNOFILE.
3. Descriptors 0, 1 and 2 are open in every process before it opens anything else. The kernel gives out the lowest free
   number: with `2>&-` the scoreboard would be descriptor 2, and whatever a C library says would be written into it.
4. A child inherits descriptors by an exec, so they are inheritable at first. It makes them close-on-exec before it
   imports the application: a program that the application starts would keep the port, long after the server's end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import sys
from collections.abc import Iterable
from typing import Final

from limpet.errors import LimpetError, reason

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # by their numbers


def take_all() -> int:
    """Let this process, and what it starts, have as many as it may; return how many it might have until now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _set(hard, hard)
    return soft


def be_content_with(number: int) -> None:
    """Let this process have *number* at most; 0 leaves it as it is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if number:
        _set(min(number, hard) if hard != resource.RLIM_INFINITY else number, hard)


def have_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that this process was started without. Runs first of all."""
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free is this one
        if getattr(sys, name) is None:  # so Python marks one that was closed
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for the process's whole life


def above_standard_streams(fd: int) -> int:
    """Return *fd*, or in place of a number below 3, which is closed, a new one. For programs that call limpet."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def keep_from_programs(fds: Iterable[int]) -> None:
    """Keep *fds*, which this process has inherited, from the programs that it starts."""
    for fd in fds:
        os.set_inheritable(fd, False)


def _set(soft: int, hard: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # the kernel's own bound, fs.nr_open, may be lower meanwhile
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory_file(name: str) -> int:
    """Return a descriptor of an empty memory file that may be sealed. Raises LimpetError where there are none.

    The first call of a start finds out whether the system has memory files: later ones may just call `memfd_create`.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise LimpetError(
            f"cannot make a memory file: {reason(error)}",
            hint="allow `memfd_create` in the seccomp profile: limpet tells its processes their settings by such files",
        ) from None
