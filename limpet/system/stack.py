"""Where a worker is in its code: `limpet stack SLOT`, which works even while the worker's event loop is blocked.

This file owns both sides. The supervisor makes a memory file for each worker and keeps a descriptor of it. The worker
registers a signal at which the interpreter itself writes the stacks of all threads into that file, whatever the threads
do. The supervisor sends the signal and reads the file by its own descriptor.

1. The signal ends a process that has not registered it. So it is sent only to a worker that has said READY.
2. The supervisor takes no number and no path from the worker, because the supervisor may be root while the worker is
   not.
3. The worker can write anything into the file, of any length. So the supervisor reads a bounded part of it, and never
   through a mapping, which a shorter file would make fatal.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
from typing import Final

from limpet.system import memfile

_SIGNAL: Final = signal.SIGRTMIN + 7  # a real-time signal: applications rarely use those
_MOST_BYTES: Final = 1 << 18  # read of the file: enough for hundreds of threads


def create() -> int:
    """Return a descriptor of an empty file for one worker. Owns: the caller closes it. Runs in the supervisor."""
    fd = memfile.create("limpet-stack")
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)  # so that stacks begin at 0 again after `ask` has emptied the file
    return fd


def offer(fd: int) -> None:
    """From now on write the stacks into *fd* at each signal. Runs in a worker."""
    faulthandler.register(_SIGNAL, file=fd, all_threads=True)


def ask(pid: int, fd: int) -> None:
    """Empty *fd*, and ask process *pid* to write its stacks into it. Raises OSError."""
    os.ftruncate(fd, 0)
    os.kill(pid, _SIGNAL)


def read(fd: int) -> str:
    """Return what the worker has written into *fd* since it was asked: maybe nothing, or a part. Raises OSError."""
    return os.pread(fd, _MOST_BYTES, 0).decode(errors="replace")
