"""Where a worker is in its code, on demand: `limpet stack SLOT`, also when its event loop is blocked.

Owns both sides: the worker leaves a memory file and a signal at which the interpreter itself writes all threads' stacks
into it, whatever the threads do; the supervisor sends the signal and reads the file through /proc.

1. The signal ends a process that has not asked for it: only one that has said so, with READY, is sent it.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
from typing import Final

_SIGNAL: Final = signal.SIGRTMIN + 7  # of the real-time signals, which applications rarely use


def offer() -> int:
    """Let the stacks be written at the signal; return the number of the file's descriptor. Runs in a worker."""
    fd = os.memfd_create("limpet-stack", os.MFD_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)  # so that it begins anew after `ask` has emptied it
    faulthandler.register(_SIGNAL, file=fd, all_threads=True)
    return fd


def ask(pid: int, fd: int) -> None:
    """Have process *pid*, which offered *fd*, write its stacks. Raises OSError."""
    os.truncate(f"/proc/{pid}/fd/{fd}", 0)
    os.kill(pid, _SIGNAL)


def read(pid: int, fd: int) -> str:
    """Return what process *pid* has written since it was asked: nothing yet, or a part. Raises OSError."""
    with open(f"/proc/{pid}/fd/{fd}") as file:
        return file.read()
