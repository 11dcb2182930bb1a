"""How log lines look and where they go: one event a line, to stderr or a file, the same from every process of a server.

Owns the format, the log file, and how seldom a warning is repeated. Called once by each process at its start. Python
loggers `limpet.*` and `uvicorn.*` end here; an application's own logging set-up is left alone.

1. A line is one write that appends: lines of several processes do not mix.
2. Each line looks first whether its file is still the one of that name: after a rotation no process writes a line to
   the old one. SIGUSR1 makes the supervisor look at once, so that the new file is there.
3. A file that cannot be written, on a full disk for one, costs nothing but the file: its lines go to stderr meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shlex
import stat
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Final

from limpet.errors import LimpetError, SettingsError, reason

_HOUR_S: Final = 3600.0
_PIECE: Final = 4096  # bytes, PIPE_BUF
_SUBJECT: Final = re.compile(r"(worker|dispatcher) (\d+)(?: \(pid (\d+)\))?")
_FILLED_IN: Final = re.compile(r"%[-+ 0#]*\d*(?:\.\d+)?[a-z]")


def configure(level: str, path: str | None, form: str) -> None:
    """Send the records of limpet and its server from *level* on to the file at *path*, or to stderr.

    *form* is a value of `--log-format`.
    """
    handler = LogFile(path) if path else logging.StreamHandler(sys.stderr)
    human = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt=stamp(path))
    handler.setFormatter(_Json() if form == "json" else human)
    for name in ("limpet", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("limpet").setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):  # the latter's own level: with none it would trace every connection
        logging.getLogger(name).setLevel("DEBUG" if level.upper() == "DEBUG" else "WARNING")


def stamp(path: str | None) -> str:
    """Return how lines for people begin: whoever looks at a terminal knows the day."""
    return "%Y-%m-%d %H:%M:%S" if path else "%H:%M:%S"


class _Json(logging.Formatter):
    """Makes each record a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields(record))


def write(lines: str) -> None:
    """Write *lines*, each of which ends in a newline, where records go. Never raises."""
    handler = logging.getLogger("limpet").handlers[0]
    if isinstance(handler, LogFile):
        handler.write(lines)
        return
    begin = 0
    while begin < len(lines):  # in pieces of no more than a pipe takes at once, lest lines of several processes mix
        end = len(lines)
        if end - begin > _PIECE:
            end = (lines.rfind("\n", begin, begin + _PIECE) + 1) or (lines.index("\n", begin) + 1)
        with contextlib.suppress(OSError):
            sys.stderr.write(lines[begin:end])
            sys.stderr.flush()
        begin = end


def failure(error: LimpetError) -> None:
    """Log *error*, which ends this process."""
    hint = f" (hint: {error.hint})" if error.hint else ""
    logging.getLogger("limpet").error("%s%s", error.message, hint, exc_info=error.__cause__, extra={"event": "failed"})


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return *record* as values with stable names: timestamp, level, event, message, and what the message names."""
    message, _, hint = record.getMessage().removesuffix(")").partition(" (hint: ")
    message = message if hint else record.getMessage()
    found: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": getattr(record, "event", None) or _event(str(record.msg)) or "other",
        "message": message,
    }
    if hint:
        found["hint"] = hint
    if subject := _SUBJECT.match(message):
        found["slot" if subject[1] == "worker" else "dispatcher"] = int(subject[2])
        if subject[3]:
            found["pid"] = int(subject[3])
    if record.exc_info:
        found["traceback"] = logging.Formatter().formatException(record.exc_info)
    return found


@lru_cache(maxsize=1024)
def _event(template: str) -> str:
    """Return a name for the log lines made from *template*: its words, without what is filled in."""
    words = _FILLED_IN.sub(" ", template.partition(" (hint: ")[0])
    return "_".join(re.findall(r"[a-z]+", words.lower()))


class LogFile(logging.Handler):
    """Appends to the file of a name, whichever that is now."""

    owner: ClassVar[tuple[int, int] | None] = None  # user and group that write it, too, while this process is root

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = os.path.abspath(path)
        self._fd = -1
        self._hourly = Hourly()

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*; never raises."""
        self.write(self.format(record) + "\n")

    def write(self, line: str) -> None:
        """Write one line, or several; never raises."""
        try:
            self.follow()
            os.write(self._fd, line.encode(errors="backslashreplace"))
        except OSError as error:
            if self._hourly.allows("log file", time.monotonic()):
                line = f"cannot write the log file `{self._path}`, so this is its place: {reason(error)}\n{line}"
            with contextlib.suppress(OSError):
                sys.stderr.write(line)
                sys.stderr.flush()

    def follow(self) -> None:
        """Open the file of that name if it is not the one that is open. Raises OSError."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                return
        fd = _opened(self._path, self.owner)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Close the file; a record that comes later opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()


def _opened(path: str, owner: tuple[int, int] | None) -> int:
    """Return a descriptor of the log file at *path*, which is made if it does not exist. Raises OSError.

    With an *owner* this process is root, and the directory may be one that the owner can write: what is there may be a
    symlink or a hard link to a file of root's. So only a file that this call has made is given to the owner, and one
    that exists has to be a regular file of the owner's with no other name.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    if owner is None:
        return os.open(path, flags | os.O_CREAT, 0o640)
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK  # the latter for a FIFO that nobody reads
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
    except FileExistsError:
        fd = os.open(path, flags)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == owner[0] and found.st_nlink == 1:
            return fd
        os.close(fd)
        raise PermissionError(errno.EPERM, f"it is not a regular file of user {owner[0]} with one name") from None
    os.fchown(fd, *owner)
    return fd


def reopen() -> bool:
    """Open the log file anew if its name means another one now; return whether there is a log file."""
    files = [handler for handler in logging.getLogger("limpet").handlers if isinstance(handler, LogFile)]
    for file in files:
        with contextlib.suppress(OSError):  # the next line says so
            file.follow()
    return bool(files)


def check(path: str) -> None:
    """Raise SettingsError if there can be no log file at *path*."""
    try:
        with contextlib.closing(LogFile(path)) as file:
            file.follow()
    except OSError as error:
        hint = f"`mkdir -p {shlex.quote(os.path.dirname(path) or '.')}`, and the user of the server may write there"
        raise SettingsError(f"cannot open the log file `{path}`: {reason(error)}", hint=hint) from None


def take_over(*names: str) -> None:
    """Let the loggers *names* write as limpet's do. Runs after the server whose they are has set them up."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers[:] = logging.getLogger("limpet").handlers
        logger.propagate = False


def warn_hourly(cause: str, text: str, *args: object) -> None:
    """Warn of *cause*, unless this process has done so within the last hour. Runs in workers."""
    if _HOURLY.allows(cause, time.monotonic()):
        logging.getLogger("limpet.worker").warning(text, *args)


class Hourly:
    """Lets a warning through once an hour for each cause: what goes on for long must not fill the log."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def allows(self, cause: str, now: float) -> bool:
        """Return whether to warn of *cause*, and if so count that as done. *now* is monotonic, in seconds."""
        if now < self._next.get(cause, now):
            return False
        self._next[cause] = now + _HOUR_S
        return True


_HOURLY: Final = Hourly()
