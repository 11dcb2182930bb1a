"""What the kernel tells of a process: CPU time, memory, whether it is stopped.

Owns the reading of /proc. A process that is no more has used nothing; no function here raises or blocks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def cpu_ticks(pid: int) -> int:
    """Return the CPU time that process *pid* has used, in ticks; 0 when it is no more."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Return whether a signal, or a debugger, has stopped process *pid*."""
    return _stat(pid)[:1] in (["T"], ["t"])


def _stat(pid: int) -> list[str]:
    """Return what the kernel says of process *pid* from its state on; nothing when it is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def memory(pid: int) -> int:
    """Return how many bytes of memory process *pid* has resident; 0 when it is no more."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def memory_kills() -> int:
    """Return how many processes the kernel of this machine has killed since it ran out of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def working_directory() -> str:
    """Return the current directory by the name that it was entered by, with the links in it.

    The kernel knows it without them; shells and service managers leave the name in `PWD`. With the name, a link such
    as `current/` is followed anew at each start of a worker.
    """
    name = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(name) and os.path.samefile(name, "."):
            return name
    return os.getcwd()
