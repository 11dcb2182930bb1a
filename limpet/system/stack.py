"""Where a worker is in its code, on demand: `limpet stack SLOT`, also when its event loop is blocked.

Owns both sides. The supervisor makes a memory file for each worker and keeps a descriptor of it. The worker registers a
signal at which the interpreter itself writes the stacks of all threads into that file, whatever the threads do. The
supervisor sends the signal and reads its own descriptor.

1. The signal ends a process that has not asked for it: only a worker that has said READY is sent it.
2. The supervisor takes no number and no path from the worker: it is root where the worker may not be.
3. The worker can write anything into the file, of any length: a bounded part is read, and never through a mapping.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
from typing import Final

_SIGNAL: Final = signal.SIGRTMIN + 7  # of the real-time signals, which applications rarely use
_MOST_BYTES: Final = 1 << 18  # of the file that are shown: hundreds of threads


def create() -> int:
    """Return a descriptor of an empty file for one worker, which the caller closes. Runs in the supervisor."""
    fd = os.memfd_create("limpet-stack", os.MFD_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)  # so that the stacks begin at 0 again after `ask` has emptied it
    return fd


def offer(fd: int) -> None:
    """Let the stacks be written into *fd* at the signal. Runs in a worker."""
    faulthandler.register(_SIGNAL, file=fd, all_threads=True)


def ask(pid: int, fd: int) -> None:
    """Have process *pid*, which writes into *fd*, write its stacks. Raises OSError."""
    os.ftruncate(fd, 0)
    os.kill(pid, _SIGNAL)


def read(fd: int) -> str:
    """Return what the worker has written into *fd* since it was asked: nothing yet, or a part. Raises OSError."""
    return os.pread(fd, _MOST_BYTES, 0).decode(errors="replace")
