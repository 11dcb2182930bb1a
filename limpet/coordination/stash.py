"""`limpet.stash`: a mapping that all workers share and that outlives each of them.

Owns the entries, each a file of the directory `stash`, and the bound on what they take. It knows nothing of sessions
or carts.

How it works: the name of an entry's file is a hash of its key. A value is written into a new file, which is then
renamed to that name. The kernel does that at once: a reader has the old value or the new one, whatever is killed. No
reader ever waits. A writer first locks the key (a byte of the memory file, coordination/place.py), so that two of them
agree on what the file has replaced; nobody else waits for a writer, not even one that is stopped.

1. A value is acknowledged when the rename is done. It survives the death of processes; with `--stash` also a restart.
   It may be lost with the power: a file that is not whole then fails its checksum, and counts as missing.
2. An expired entry is missing for each reader. Its file goes when somebody writes: each write looks at two files.
3. Room is reserved before it is taken, so all processes together keep the bound. A process that is killed in between
   leaves a reservation behind. So nothing is refused before the files were counted.
4. A worker has the user's rights, and so has who could change the files. What is read is data, never code.

If you change this, also change: for the form of a file, `_HEAD`, whose first bytes are its version.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Final

from limpet.coordination import place
from limpet.coordination.counters import Counter
from limpet.routing.digests import blake2b

Value = Any
"""bytes, str, or what JSON can say."""
_HEAD: Final = struct.Struct("<4sBxHIq")  # version, kind, bytes of the key, checksum, end in ns since the epoch
_VERSION: Final = b"lst1"
_BYTES, _TEXT, _JSON = range(3)
_UNIT: Final = 4096  # bytes that a file takes at least, and in steps of
_FILE: Final = 1024  # bytes that the system needs for each file besides, about
_READ: Final = 16_384  # bytes at once: most entries are smaller
_POLL_S: Final = 0.001
_LEFT_S: Final = 10.0  # after which a file that is not renamed yet is one of a process that was killed
_COUNT_S: Final = 1.0  # between two counts of all files by one process, if the stash is full
MOST_KEY: Final = 1024  # bytes
DEADLINE_S: Final = 0.5
"""How long a write waits for another one of the same key: a write takes some 0.02 ms, unless its process is stopped."""


class StashFull(Exception):
    """The stash has no room for this entry: `--stash-size` is the bound. What has not expired is never dropped."""


class StashBusy(TimeoutError):
    """Another process was stopped while it wrote this key. Other keys can be written, and this one can be read."""


class Stash(MutableMapping[str, Value]):
    """The mapping. All workers of a server have the same one."""

    def __init__(self) -> None:
        self._folder = ""
        self._most = 0
        self._forget()

    def _forget(self) -> None:
        """Begin anew in a forked child: a thread of the parent may have held the lock."""
        self._guard = threading.Lock()
        self._numbers = itertools.count()
        self._swept: Iterator[str] = iter(())
        self._counted_at = float("-inf")
        self._has_begun = False
        self._writing = -1  # the byte that this process has locked
        self._added = Counter("limpet.stash added bytes")
        self._removed = Counter("limpet.stash removed bytes")
        self._in_flight = Counter("limpet.stash bytes in flight")

    __eq__ = object.__eq__  # a mapping would read everything to compare
    __hash__ = object.__hash__

    # --- reading

    def __getitem__(self, key: str) -> Value:
        found = self._read(os.path.join(self._there(), _name(key)))
        if found is None or found[0] != key:
            raise KeyError(key)
        return found[1]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key, _ABSENT) is not _ABSENT

    def __iter__(self) -> Iterator[str]:
        """Yield the keys, in no order. Reads all entries."""
        folder = self._there()
        for name in os.listdir(folder):
            found = self._read(os.path.join(folder, name))
            if found is not None:
                yield found[0]

    def __len__(self) -> int:
        """Return how many entries there are, expired ones that are still to be removed included."""
        return len(os.listdir(self._there()))

    # --- writing

    def __setitem__(self, key: str, value: Value) -> None:
        self.set(key, value)

    def set(self, key: str, value: Value, *, ttl: float | None = None) -> None:
        """Set *key* to *value*, for *ttl* seconds or for ever: bytes, text, or anything that JSON can say.

        Raises StashFull, and StashBusy if another process was stopped while it wrote this key. Blocks at most
        DEADLINE_S, and only for that process.
        """
        self._wait(key, lambda: self._replace(key, value, ttl))

    async def aset(self, key: str, value: Value, *, ttl: float | None = None) -> None:
        """Do what `set` does. The event loop goes on while this waits for another process."""
        await self._await(key, lambda: self._replace(key, value, ttl))

    def add(self, key: str, value: Value, *, ttl: float | None = None) -> bool:
        """Set *key* only if it is missing, and return whether it was. Of several workers, one gets True.

        Raises what `set` raises.
        """
        added = False

        def attempt() -> None:
            nonlocal added
            added = key not in self
            if added:
                self._replace(key, value, ttl)

        self._wait(key, attempt)
        return added

    def __delitem__(self, key: str) -> None:
        """Remove *key*. Raises KeyError, StashBusy."""
        if key not in self:
            raise KeyError(key)
        self._wait(key, lambda: self._remove(os.path.join(self._there(), _name(key))))

    async def adelete(self, key: str) -> None:
        """Do what `del` does. The event loop goes on while this waits for another process."""
        if key not in self:
            raise KeyError(key)
        await self._await(key, lambda: self._remove(os.path.join(self._there(), _name(key))))

    def clear(self) -> None:
        """Remove all entries."""
        for key in list(self):
            self.pop(key, None)

    # --- files

    def _there(self) -> str:
        """Return the folder of the entries, which exists then. Raises RuntimeError."""
        if not self._folder:
            here = place.here()
            folder = here.stash or (here.directory and os.path.join(here.directory, "stash"))
            if not folder:
                raise RuntimeError("the stash found no place for its files: name a directory with `--stash PATH`")
            for each in ("entries", "new"):
                os.makedirs(os.path.join(folder, each), 0o700, exist_ok=True)
            self._most = here.stash_bytes
            self._new = os.path.join(folder, "new")
            self._folder = os.path.join(folder, "entries")
            self._count()
        return self._folder

    @staticmethod
    def _read(path: str) -> tuple[str, Value] | None:
        """Return key and value of an entry, or None if it is missing, expired or not whole."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            data = os.read(fd, _READ)
            while len(data) % _READ == 0 and (more := os.read(fd, max(_READ, len(data)))):
                data += more
        finally:
            os.close(fd)
        return _parsed(data)

    def _replace(self, key: str, value: Value, ttl: float | None) -> None:
        """Write an entry. Its key is locked."""
        until_ns = 0 if ttl is None else time.time_ns() + max(1, int(ttl * 1e9))
        data = _formed(key, value, until_ns)
        path, cost = os.path.join(self._there(), _name(key)), _cost(len(data))
        self._sweep()
        if not self._has_begun:  # the seat may be that of a process that was killed while it wrote
            self._has_begun = True
            self._in_flight.restart()
        self._in_flight.add(cost)
        try:
            self._reserve(cost)
            new = os.path.join(self._new, f"{os.getpid()}-{next(self._numbers)}")
            try:
                self._write(new, data, until_ns)
                before = _size(path)
                os.rename(new, path)
            except OSError as error:
                self._removed.add(cost)
                with contextlib.suppress(OSError):
                    os.unlink(new)
                raise StashFull(f"the file of an entry cannot be written: {error.strerror}") from error
            if before is not None:
                self._removed.add(_cost(before))
        finally:
            self._in_flight.add(-cost)

    @staticmethod
    def _write(path: str, data: bytes, until_ns: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.utime(fd, ns=(until_ns, until_ns))  # for `_sweep`, which need not read the file then
        finally:
            os.close(fd)

    def _remove(self, path: str) -> None:
        """Remove an entry. Its key is locked."""
        size = _size(path)
        if size is not None:
            os.unlink(path)
            self._removed.add(_cost(size))

    # --- room

    def _reserve(self, cost: int) -> None:
        """Take *cost* bytes of the room. Raises StashFull."""
        self._added.add(cost)
        if self._used() > self._most and time.monotonic() - self._counted_at > _COUNT_S:
            self._counted_at = time.monotonic()
            self._sweep(all_of_them=True)
            self._count()
        if self._used() > self._most:
            self._removed.add(cost)
            raise StashFull(
                f"the stash has {self._most} bytes, and this entry takes {cost}: `--stash-size` is the bound"
            )

    def _used(self) -> int:
        removed = self._removed.value
        return self._added.value - removed

    def _count(self) -> None:
        """Let the figures say what is there: after a restart, and after processes that were killed while they wrote.

        Others may write meanwhile. In this order what they do is counted too high or right, never too low: what is in
        flight was added before it is in a file, and what is removed in between was not seen.
        """
        if not place.here().try_lock(place.COUNT_LOCK):
            return
        try:
            self._in_flight.drop_dead()
            added, in_flight = self._added.value, self._in_flight.value
            for name in os.listdir(self._new):
                path = os.path.join(self._new, name)
                with contextlib.suppress(OSError):  # another process was faster
                    if time.time() - os.stat(path).st_ctime > _LEFT_S:  # its process was killed, or is stopped
                        os.unlink(path)
            paths = [os.path.join(self._folder, name) for name in os.listdir(self._folder)]
            sizes = [size for path in paths if (size := _size(path)) is not None]
            missing = sum(map(_cost, sizes)) + in_flight - (added - self._removed.value)
            (self._added if missing > 0 else self._removed).add(abs(missing))
        finally:
            place.here().unlock(place.COUNT_LOCK)

    def _sweep(self, *, all_of_them: bool = False) -> None:
        """Remove what has expired among the next two entries, or among all of them."""
        if all_of_them:
            self._swept = iter(os.listdir(self._folder))
        for _ in itertools.repeat(None) if all_of_them else range(2):
            name = next(self._swept, None)
            if name is None:
                self._swept = iter(os.listdir(self._folder))
                return
            path = os.path.join(self._folder, name)
            until_ns, byte = _until_ns(path), _byte(name)
            if byte == self._writing or not until_ns or until_ns > time.time_ns():
                continue
            if place.here().try_lock(byte):
                try:
                    if _until_ns(path) == until_ns:
                        self._remove(path)
                finally:
                    place.here().unlock(byte)

    # --- the lock of a key

    def _attempt(self, byte: int, change: Callable[[], object]) -> bool:
        """Do *change* if no other process writes the key; return whether it was done."""
        with self._guard:
            if not place.here().try_lock(byte):
                return False
            self._writing = byte
            try:
                change()
            finally:
                self._writing = -1
                place.here().unlock(byte)
            return True

    def _attempts(self, key: str, change: Callable[[], object]) -> Iterator[None]:
        """Do *change*, with a pause of the caller's before each further attempt. Raises StashBusy."""
        byte, until = _byte(_name(key)), time.monotonic() + DEADLINE_S
        while not self._attempt(byte, change):
            if time.monotonic() > until:
                raise StashBusy(f"another process has been writing `{key}` for {DEADLINE_S} s")
            yield

    def _wait(self, key: str, change: Callable[[], object]) -> None:
        for _ in self._attempts(key, change):
            time.sleep(_POLL_S)

    async def _await(self, key: str, change: Callable[[], object]) -> None:
        for _ in self._attempts(key, change):
            await asyncio.sleep(_POLL_S)


_ABSENT: Final = object()


def _name(key: str) -> str:
    return blake2b(key.encode(), digest_size=16).hexdigest()


def _byte(name: str) -> int:
    return place.STASH_LOCKS + int(name[:16], 16) % place.RANGE


def _cost(size: int) -> int:
    return _FILE + -(-size // _UNIT) * _UNIT


def _size(path: str) -> int | None:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return None


def _until_ns(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:
        return 0


def _formed(key: str, value: Value, until_ns: int) -> bytes:
    """Return the content of a file. Raises TypeError, ValueError."""
    name = key.encode()
    if len(name) > MOST_KEY:
        raise ValueError(f"a key has at most {MOST_KEY} bytes, and this one has {len(name)}")
    if isinstance(value, bytes | bytearray | memoryview):
        kind, body = _BYTES, bytes(value)
    elif isinstance(value, str):
        kind, body = _TEXT, value.encode()
    else:
        kind, body = _JSON, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    said = _HEAD.pack(_VERSION, kind, len(name), 0, until_ns) + name + body
    return _HEAD.pack(_VERSION, kind, len(name), zlib.crc32(said), until_ns) + name + body


def _parsed(data: bytes) -> tuple[str, Value] | None:
    """Return key and value in the content of a file, or None if it has expired or is not whole."""
    if len(data) < _HEAD.size:
        return None
    version, kind, length, checksum, until_ns = _HEAD.unpack_from(data)
    rest = data[_HEAD.size :]
    if version != _VERSION or zlib.crc32(_HEAD.pack(version, kind, length, 0, until_ns) + rest) != checksum:
        return None
    if until_ns and until_ns <= time.time_ns():
        return None
    key, body = rest[:length].decode(), rest[length:]
    return key, body if kind == _BYTES else body.decode() if kind == _TEXT else json.loads(body)


stash: Final = Stash()
os.register_at_fork(after_in_child=stash._forget)
