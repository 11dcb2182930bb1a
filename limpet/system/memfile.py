"""Memory files: how limpet passes settings, secrets and state to another process without a path or an argument.

This file owns how such a file is made, filled and read. It does not know what is in it. Each caller names its file
`limpet-...`, which /proc/PID/fd shows.

1. A new file is close-on-exec. The caller makes it inheritable, or passes it on with `pass_fds`.
2. The position in a new file is 0, so a reader need not seek.
3. A file may be sealed only if that is asked for. A process that was taken over could otherwise seal a file that the
   supervisor must still write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from limpet.errors import LimpetError, reason

_FORBIDDEN: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})


def create(name: str, data: bytes = b"", *, may_be_sealed: bool = False) -> int:
    """Return a descriptor of a new memory file that holds *data*. Owns: the caller closes it.

    Raises LimpetError if the system forbids memory files, and OSError if it has no room for one.
    """
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if may_be_sealed else 0))
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
        raise LimpetError(
            f"cannot make a memory file: {reason(error)}",
            hint="allow `memfd_create` in the seccomp profile: limpet passes settings to its processes in memory files",
        ) from None
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_shared(name: str, size: int) -> int:
    """Return a descriptor of a new memory file of *size* zeros, for processes that map it. Owns: the caller.

    No process can shorten it, which would end every process that has mapped it by SIGBUS. None can add seals, which
    could stop later processes from mapping it. Raises what `create` raises.
    """
    fd = create(name, may_be_sealed=True)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


@contextlib.contextmanager
def lent(name: str, data: bytes) -> Iterator[int]:
    """Yield a descriptor of a new memory file that holds *data*, and close it afterwards. Raises what `create` raises.

    A process that was started meanwhile has its own copy.
    """
    fd = create(name, data)
    try:
        yield fd
    finally:
        os.close(fd)


def read(fd: int) -> bytes:
    """Return what is in the memory file *fd*, from its beginning. Owns: closes *fd*."""
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()
