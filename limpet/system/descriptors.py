"""How many descriptors a process may have, and those of memory files.

Owns the soft limit, which it may raise by itself to the hard one.

Service managers and shells set the soft limit to 1024 for the sake of programs that use select(), which cannot see
descriptors above 1023 and in C may write beyond its array; who knows that he does not use it raises the limit himself.

1. The supervisor does, and so do all that it starts, but for workers.
2. A worker has what the server was started with: its application may use select(), and so may what that starts. Who
   wants more for it says so before the start, by `ulimit -n` or LimitNOFILE.
"""

from __future__ import annotations

import contextlib
import os
import resource

from limpet.errors import LimpetError, reason


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
