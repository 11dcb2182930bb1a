"""What the kernel says about a process: CPU time, memory, whether it is stopped. Also this process's own directory.

This file owns the reading of /proc for figures and for the watchdog. It does not judge what it reads: supervisor/ and
operate/ do.

1. For a process that has ended every function returns 0, or False. No function blocks, and only `working_directory`
   can raise: OSError if the directory is gone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def cpu_ticks(pid: int) -> int:
    """Return the CPU time that process *pid* has used, in ticks; 0 if it has ended."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def start_ticks(pid: int) -> int:
    """Return when process *pid* began, in ticks since the machine did; 0 when it is no more."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Return whether a signal or a debugger has stopped process *pid*."""
    return _stat(pid)[:1] in (["T"], ["t"])


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; an empty list if process *pid* has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def memory(pid: int) -> int:
    """Return the resident memory of process *pid*, in bytes; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def memory_kills() -> int:
    """Return how many processes the kernel of this machine has killed for lack of memory since it booted."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def working_directory() -> str:
    """Return the current directory under the name by which it was entered, with its symbolic links.

    The kernel knows only the name without links. Shells and service managers put the other name into `PWD`. With that
    name a link such as `current/` is followed again at each start of a worker.
    """
    name = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(name) and os.path.samefile(name, "."):
            return name
    return os.getcwd()
