"""Where the workers of one server keep what they share: a memory file, and a directory of their own.

Owns the memory file's parts, the directory, and how long both last. The supervisor makes them and keeps them for life
(fleet/resources.py); a worker inherits them and calls `become`. Outside limpet, the first use makes both for this
process and the processes that it forks, so the same calls work there. The other files of this package use `here`.

1. All locks are POSIX record locks of single bytes of the memory file, far behind its end or in it. The kernel releases
   them when their process dies. A forked child does not hold them; `flock` would be held by each child. A process has
   exactly one descriptor of the file, because closing any other one would release the locks.
2. A record lock does not keep the threads of one process apart: each user of `try_lock` also has a lock for these.
3. No process can shorten the file: that would end all others by SIGBUS.
4. The outer directory belongs to the supervisor's user, and its lock (`flock` of the directory) says that its server
   lives. Each start removes outer directories of its user without a living server. The inner directory belongs to the
   user of the workers.

If you change this, also change: for the parts of the memory, `LAYOUT`, so that an upgrade in place is refused.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from limpet.errors import SettingsError, reason
from limpet.system import memfile

PAGE: Final = 4096
SEATS: Final = 2048  # processes that count at a time: 1024 workers, and processes that they have forked
SHARDS: Final = 256
SHARD_BYTES: Final = 1 << 18
LAYOUT: Final = [1, PAGE, SEATS, SHARDS, SHARD_BYTES]
"""The parts of the memory: a page with the salt, a page for each seat, and the shards of limits."""
_BYTES: Final = PAGE + SEATS * PAGE + SHARDS * SHARD_BYTES  # of addresses; pages that nobody uses take no memory
SEAT_LOCKS: Final = 0
COUNT_LOCK: Final = 1 << 19
SHARD_LOCKS: Final = 1 << 20
STASH_LOCKS: Final = 1 << 61
ONCE_LOCKS: Final = 1 << 62
RANGE: Final = 1 << 60
"""How many names the locks of the stash and of `once` tell apart."""
STASH_BYTES: Final = 64 << 20  # that the stash may take outside limpet
_SALT_BYTES: Final = 16
_PREFIX: Final = "limpet-shared-"
_MEMORY: Final = "/dev/shm"


class Place:
    """The memory file and the directory of one server, in one of its processes. Owns nothing that `close` must free."""

    def __init__(self, fd: int, directory: str, stash: str = "", stash_bytes: int = STASH_BYTES) -> None:
        """*directory* is "" if the system has no room for one; *stash* is the directory of `--stash`, or ""."""
        self.fd = fd
        self.directory = directory
        self.stash = stash
        self.stash_bytes = stash_bytes
        self._map = mmap.mmap(fd, _BYTES)
        self.memory = memoryview(self._map)
        self.salt = bytes(self.memory[:_SALT_BYTES])

    def seat(self, number: int) -> memoryview[int]:
        """Return the page of seat *number*, as signed cells of 8 bytes."""
        return self.memory[PAGE * (1 + number) :][:PAGE].cast("q")

    def seats_with(self, name: bytes) -> Iterator[tuple[int, int]]:
        """Yield each seat whose page has the 8 bytes *name* at an aligned position, and the number of that cell."""
        for seat in range(SEATS):
            start = PAGE * (1 + seat)
            if not self.memory[start]:  # this seat and those behind it were never taken
                return
            at = self._map.find(name, start, start + PAGE)
            while at >= 0 and at % 8:
                at = self._map.find(name, at + 1, start + PAGE)
            if at >= 0:
                yield seat, (at - start) // 8

    def shard(self, number: int) -> memoryview[int]:
        """Return the cells of one shard of the limits."""
        start = PAGE * (1 + SEATS) + number * SHARD_BYTES
        return self.memory[start : start + SHARD_BYTES].cast("Q")

    def try_lock(self, byte: int) -> bool:
        """Lock *byte* for this process, and return whether that succeeded. Blocks never."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(self, byte: int) -> None:
        """Release the lock of *byte*."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, byte)


class Kept:
    """The supervisor's side: what outlives the workers."""

    def __init__(self, fd: int, outer: str, outer_fd: int, stash: str = "") -> None:
        """*stash* is the directory of `--stash`, absolute, or ""."""
        self.fd = fd
        self.stash = stash
        self._outer = outer
        self._outer_fd = outer_fd

    @classmethod
    def create(cls, owner: tuple[int, int] | None = None, stash: str | None = None) -> Kept:
        """Make both, and the directory *stash* of `--stash`.

        *owner* are user and group of the workers if they are not this process's. Raises LimpetError.
        """
        stash = _folder(stash, owner) if stash is not None else ""
        fd = memfile.create_shared("limpet-shared", _BYTES)
        os.pwrite(fd, os.urandom(_SALT_BYTES), 0)
        base = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else tempfile.gettempdir()
        _remove_left(base)
        try:
            outer, outer_fd = _made(base)
        except OSError:  # a system without a place to write: calls that need the directory say so
            return cls(fd, "", -1, stash)
        inner = os.path.join(outer, "kept")
        os.mkdir(inner, 0o700)
        if owner is not None:
            os.chown(inner, *owner)
            os.chmod(outer, 0o711)
        return cls(fd, outer, outer_fd, stash)

    @property
    def directory(self) -> str:
        """The directory of the workers, or ""."""
        return os.path.join(self._outer, "kept") if self._outer else ""

    def pack(self) -> dict[str, object]:
        """Return what the next supervisor in this process must know."""
        return {"fd": self.fd, "outer": self._outer, "outer_fd": self._outer_fd, "stash": self.stash, "layout": LAYOUT}

    @classmethod
    def adopt(cls, packed: dict[str, object]) -> Kept:
        """Return what `pack` was called on."""
        return cls(*(packed[name] for name in ("fd", "outer", "outer_fd", "stash")))  # type: ignore[arg-type]

    def close(self) -> None:
        """Remove the directory, at the end of the server."""
        if self._outer:
            shutil.rmtree(self._outer, ignore_errors=True)
            os.close(self._outer_fd)
        os.close(self.fd)


def _folder(path: str, owner: tuple[int, int] | None) -> str:
    """Return the absolute *path*, a directory that *owner* may write; make it if needed. Raises SettingsError."""
    path = os.path.abspath(path)
    try:
        if not os.path.isdir(path):
            os.makedirs(path, 0o700)
            if owner is not None:
                os.chown(path, *owner)
        found = os.stat(path)
    except OSError as error:
        raise SettingsError(f"`--stash`: cannot make the directory `{path}`: {reason(error)}") from None
    uid = owner[0] if owner is not None else os.geteuid()
    if uid not in (0, found.st_uid):
        hint = f"`chown {uid} {path}`, or `--stash` another directory"
        raise SettingsError(f"`--stash`: the directory `{path}` belongs to user {found.st_uid}, not {uid}", hint=hint)
    return path


def _made(base: str) -> tuple[str, int]:
    """Return a new directory in *base*, and a descriptor that has its lock. Raises OSError."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=base)
        with contextlib.suppress(FileNotFoundError):  # another start took it for one that was left behind
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return path, fd
            os.close(fd)


def _remove_left(base: str) -> None:
    """Remove the directories of servers of this user that were killed."""
    for path in Path(base).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)


_here: Place | None = None
_guard = threading.Lock()
_is_worker = False


def become(fd: int, directory: str, stash: str, stash_bytes: int) -> None:
    """Use the place of this worker's server. Runs in a worker, before the application is imported."""
    global _here, _is_worker
    _is_worker = True
    _here = Place(fd, directory, stash, stash_bytes) if fd >= 0 else None


def here() -> Place:
    """Return the place of this process. The first call outside limpet makes one. Raises RuntimeError."""
    return _here or _make()


def _make() -> Place:
    global _here
    with _guard:
        if _here is None:
            if _is_worker:  # each worker alone would break the promise to all
                raise RuntimeError("the supervisor is of a version without shared state: upgrade it with SIGUSR2")
            kept, pid = Kept.create(), os.getpid()
            atexit.register(lambda: kept.close() if os.getpid() == pid else None)
            _here = Place(kept.fd, kept.directory)
        return _here
