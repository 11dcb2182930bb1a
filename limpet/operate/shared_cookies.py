"""Servers of this machine whose affinity cookie has one name: a browser has one cookie for all of them.

Browsers ignore the port of a cookie, and its name is a digest of the server's name and secret. Two projects that both
call their application `main:app` and keep the secret where limpet puts it share both. Owns a file for each such name in
the runtime directory, in which each server notes at its start what it serves, and from where. Called once per start,
by supervisor/bootstrap.py.

1. It only warns. Servers of one application may share the cookie, and mean to: a client then has one slot in all.
2. What cannot be read or written is no reason not to start. Only files of this user are believed.
3. A note counts while its process lives: its number and the moment of its start are those of the note.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from limpet.config.settings import Settings
from limpet.operate.control_socket import make_private, runtime_dir
from limpet.routing.affinity_cookie import Jar
from limpet.system import proc

_MOST: Final = 256  # notes that are kept; the oldest go
_LONGEST: Final = 1 << 20  # bytes of a file that are read


@dataclass(frozen=True, slots=True)
class Note:
    """A server that sets the cookie."""

    pid: int
    started: int  # in ticks since the machine was started, so that another process of that number is not taken for it
    apps: str
    directory: str
    path: str  # attributes of the cookie
    domain: str


def note_of(settings: Settings, directory: str) -> Note:
    """Return the note of this server, which was started in *directory*."""
    apps = ",".join(sorted({each.app for each in settings.served}))
    where = ",".join(os.path.join(directory, each) for each in settings.app_dir) or directory
    cookie = settings.cookie_attributes
    return Note(os.getpid(), proc.start_ticks(os.getpid()), apps, where, cookie.path, cookie.domain)


def strangers(own: Note, others: Iterable[Note]) -> Iterator[Note]:
    """Yield those of *others* that serve something else, and whose cookie comes to where *own*'s does."""
    for other in others:
        is_other_application = (other.apps, other.directory) != (own.apps, own.directory)
        if is_other_application and other.domain == own.domain and _meet(own.path, other.path):
            yield other


def _meet(path: str, other: str) -> bool:
    """Return whether a browser sends cookies of both paths with some request: one path lies in the other."""
    shorter, longer = sorted((path.rstrip("/") + "/", other.rstrip("/") + "/"), key=len)
    return longer.startswith(shorter)


def warning(cookie: str, other: Note) -> tuple[str, str]:
    """Return message and hint about a server that sets the same *cookie*."""
    return (
        f"the affinity cookie `{cookie}` is also set by `{other.apps}` in {other.directory} (pid {other.pid}): a "
        "browser has one cookie for both servers, so each goes by what the other has set",
        "`--name NAME` gives this server a cookie of its own; if both serve the same application, leave it as it is",
    )


def announce(settings: Settings, jar: Jar) -> list[tuple[str, str]]:
    """Note that this server sets the cookies of *jar*; return message and hint about each other one that does.

    Blocks while another server does the same.
    """
    own = note_of(settings, proc.working_directory())
    try:
        others = _exchanged(runtime_dir() / f"{jar.name}.servers", own)
    except (OSError, ValueError, TypeError):  # rule 2
        return []
    return [warning(jar.name, other) for other in strangers(own, others)]


def _exchanged(path: Path, own: Note) -> list[Note]:
    """Return the notes of living servers in *path*, to which *own* is added."""
    make_private(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    with open(fd, "r+b") as file:
        if os.fstat(fd).st_uid != os.geteuid():
            raise PermissionError(1, f"{path} belongs to somebody else")
        fcntl.flock(fd, fcntl.LOCK_EX)
        living = [note for note in _read(file.read(_LONGEST)) if proc.start_ticks(note.pid) == note.started]
        others = [note for note in living if note.pid != own.pid]
        file.seek(0)
        file.truncate()
        for note in [*others, own][-_MOST:]:
            file.write(json.dumps(dataclasses.asdict(note)).encode() + b"\n")
    return others


def _read(text: bytes) -> Iterator[Note]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError):  # of another version
            yield Note(**json.loads(line))
