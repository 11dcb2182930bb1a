"""Logging: the format of log lines and where they go. All processes of a server write alike, one event on each line.

This file owns the format, the log file, writing to stderr, and how often a warning is repeated. It does not know what
the events mean. Each process calls `configure` once, at its start. The loggers `limpet.*` and `uvicorn.*` end here; an
application's own logging set-up is left alone.

1. A line is one write that appends, so the lines of several processes do not mix.
2. Before each line the process checks whether its open file is still the one of that name. So after a rotation no
   process writes to the old file. SIGUSR1 makes the supervisor check at once, so that the new file exists.
3. If the file cannot be written, for example on a full disk, its lines go to stderr until it can.
4. No line has control characters: clients choose parts of lines, and a terminal would obey them.
5. No process waits for the reader of its stderr. Lines that find no room wait in memory, up to a bound. Lines beyond
   the bound are lost and counted (`log_lines_lost`), and a line says so when there is room again.

Why it is done in this way: write(2) blocks on a pipe, a socket or a terminal that is not read. O_NONBLOCK would prevent
that, but it is a flag of the open file description, which the shell, other programs and the application's `print`
share. So a pipe or a terminal is opened a second time, through /proc/self/fd/2, which gives a description of our own. A
socket cannot be opened in that way, but MSG_DONTWAIT applies to one call only. Asking poll(2) first is not enough,
because several processes may see the same last room; it is used only for a pipe that this user may not open. The
alternative was a thread. But gevent turns threads into greenlets, a fork of the application loses them, and a line
would not yet be written when the call returns.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import select
import shlex
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from limpet.errors import LimpetError, SettingsError, reason

_HOUR_S: Final = 3600.0
_PIECE: Final = 4096  # bytes, PIPE_BUF: a pipe takes that many as a whole or not at all
_MOST_WAITING: Final = 1 << 18  # bytes of lines that wait for room in each process: some seconds of an access log
_LAST_S: Final = 0.5  # the longest wait for room at the end of a process
_ABOUT: Final = ("slot", "dispatcher", "terminator", "pid")  # what `extra` of a log call may name beside its event
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def configure(level: str, path: str | None, form: str, own_fd: int = -1) -> None:
    """Send the records of limpet and of its server, from *level* on, to the file at *path*, or to stderr.

    *form* is a value of `--log-format`. *own_fd* is an open file description of stderr that the supervisor has opened.
    """
    stderr = Stderr(own_fd)
    handler = LogFile(path, stderr) if path else stderr
    human = _Human("%(asctime)s %(levelname)-7s %(message)s", datefmt=stamp(path))
    for each in (handler, stderr):
        each.setFormatter(_Json() if form == "json" else human)
    logging.lastResort = _LastResort(stderr)  # for loggers without handlers, such as asyncio's
    for name in ("limpet", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("limpet").setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):  # uvicorn.error too: without a level it would trace every connection
        logging.getLogger(name).setLevel("DEBUG" if level.upper() == "DEBUG" else "WARNING")


def stamp(path: str | None) -> str:
    """Return the time format of human-readable lines: with the date only in a file, not on a terminal."""
    return "%Y-%m-%d %H:%M:%S" if path else "%H:%M:%S"


def escaped(text: str) -> str:
    """Return *text* with its control characters escaped, but for tabs and the ends of lines."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Human(logging.Formatter):
    """Makes each record a line for people."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class _Json(logging.Formatter):
    """Formats each record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields(record))


def write(lines: str) -> None:
    """Write *lines*, each of which ends in a newline, to where records go. Never raises."""
    handler = logging.getLogger("limpet").handlers[0]
    if isinstance(handler, LogFile | Stderr):
        handler.write(lines)


def pieces(lines: bytes) -> Iterator[bytes]:
    """Yield *lines* in pieces of whole lines. A pipe takes a piece at once, so lines of several processes do not mix.

    A piece is larger only if a single line is.
    """
    begin = 0
    while begin < len(lines):
        end = len(lines)
        if end - begin > _PIECE:
            end = (lines.rfind(b"\n", begin, begin + _PIECE) + 1) or (lines.index(b"\n", begin) + 1)
        yield lines[begin:end]
        begin = end


def catch_up() -> None:
    """Write the lines that wait for room on stderr, as far as there is room. Blocks never."""
    if stderr := _stderr():
        stderr.catch_up()


def give_up() -> None:
    """Count the lines that still wait as lost. Runs in a supervisor that is about to execute another version."""
    if stderr := _stderr():
        stderr.give_up()


def count_lost(count: Callable[[int], object]) -> None:
    """From now on call *count* with the number of lost lines, each time that lines are lost."""
    if stderr := _stderr():
        stderr.count = count


def own_fd() -> int:
    """Return the descriptor of this process's own open file description of stderr, for children; -1 if it has none."""
    stderr = _stderr()
    return stderr.own_fd if stderr else -1


def _stderr() -> Stderr | None:
    for handler in logging.getLogger("limpet").handlers:
        if isinstance(handler, LogFile | Stderr):
            return handler.stderr if isinstance(handler, LogFile) else handler
    return None


def failure(error: LimpetError) -> None:
    """Log *error*, which ends this process."""
    hint = f" (hint: {error.hint})" if error.hint else ""
    logging.getLogger("limpet").error("%s%s", error.message, hint, exc_info=error.__cause__, extra={"event": "failed"})


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return *record* as values with stable names: timestamp, level, event, message, and those found in the message."""
    message, _, hint = record.getMessage().removesuffix(")").partition(" (hint: ")
    message = message if hint else record.getMessage()
    found: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": getattr(record, "event", "other"),
        "message": message,
    }
    if hint:
        found["hint"] = hint
    found |= {name: getattr(record, name) for name in _ABOUT if hasattr(record, name)}
    if record.exc_info:
        found["traceback"] = logging.Formatter().formatException(record.exc_info)
    return found


class Stderr(logging.Handler):
    """Writes to stderr, of whatever kind it is, without ever waiting for its reader."""

    def __init__(self, own_fd: int = -1) -> None:
        """*own_fd* is an inherited, non-blocking open file description of stderr, or -1. Owns: this object."""
        super().__init__()
        self.own_fd = -1
        self._send: Callable[[bytes], int] = self._write
        try:
            kind = os.fstat(2).st_mode
        except OSError:  # stderr is closed, and all lines are lost
            kind = 0
        if stat.S_ISSOCK(kind):
            self._socket = socket.socket(fileno=os.dup(2))
            self._send = self._send_by_socket
        elif stat.S_ISFIFO(kind) or os.isatty(2):
            self.own_fd = own_fd if own_fd >= 0 else _opened_again()
            if self.own_fd < 0:
                self._send = self._write_if_ready
        self.count: Callable[[int], object] = lambda lines: None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._unsaid = 0  # lines lost since the last line that said so

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*. Never raises. Blocks never."""
        self.write(self.format(record) + "\n")

    def write(self, lines: str) -> None:
        """Write *lines*, each of which ends in a newline, or keep them for later. Never raises. Blocks never."""
        assert self.lock is not None
        with self.lock:
            self.catch_up()
            for piece in pieces(lines.encode(errors="backslashreplace")):
                if self._waiting_bytes + len(piece) > _MOST_WAITING:
                    self._lose(piece)
                else:
                    self._wait(piece)
                    self.catch_up()

    def catch_up(self) -> None:
        """Write the lines that wait, as far as there is room, and then say how many were lost. Blocks never."""
        assert self.lock is not None
        with self.lock:
            while self._waiting:
                piece = self._waiting[0]
                try:
                    sent = self._send(piece)
                except BlockingIOError:
                    return
                except OSError:  # the disk is full, or the reader is gone
                    self._waiting.popleft()
                    self._waiting_bytes -= len(piece)
                    self._lose(piece)
                    continue
                self._waiting.popleft()
                self._waiting_bytes -= sent
                if sent < len(piece):
                    self._waiting.appendleft(piece[sent:])
                elif self._unsaid and not self._waiting:
                    self._say()

    def _wait(self, piece: bytes) -> None:
        self._waiting.append(piece)
        self._waiting_bytes += len(piece)

    def _lose(self, piece: bytes) -> None:
        lines = piece.count(b"\n")
        self._unsaid += lines
        self.count(lines)

    def _say(self) -> None:
        """Add a line that says how many lines were lost, where they are missing."""
        text = "%d log lines of process %d were lost: stderr could not be written"
        record = logging.LogRecord("limpet", logging.WARNING, "", 0, text, (self._unsaid, os.getpid()), None)
        record.event = "log_lines_lost"
        self._unsaid = 0
        self._wait((self.format(record) + "\n").encode(errors="backslashreplace"))

    def give_up(self) -> None:
        """Write what there is room for, and count the rest as lost."""
        self.catch_up()
        for piece in self._waiting:
            self._lose(piece)
        self._waiting.clear()
        self._waiting_bytes = 0

    def flush(self) -> None:
        """Write the lines that wait. Blocks at most half a second. Runs at the end of the process."""
        until = time.monotonic() + _LAST_S
        self.catch_up()
        while self._waiting and (left_s := until - time.monotonic()) > 0:
            _is_ready(self.own_fd if self.own_fd >= 0 else 2, left_s)
            self.catch_up()

    def _write(self, piece: bytes) -> int:
        return os.write(self.own_fd if self.own_fd >= 0 else 2, piece)

    def _write_if_ready(self, piece: bytes) -> int:
        if not _is_ready(2, 0.0):
            raise BlockingIOError
        return os.write(2, piece[:_PIECE])

    def _send_by_socket(self, piece: bytes) -> int:
        return self._socket.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class _LastResort(logging.Handler):
    """Writes warnings of loggers without handlers to stderr, as Python does, but without waiting for the reader."""

    def __init__(self, stderr: Stderr) -> None:
        super().__init__(logging.WARNING)
        self._stderr = stderr

    def emit(self, record: logging.LogRecord) -> None:
        self._stderr.write(self.format(record) + "\n")


def _opened_again() -> int:
    """Return a new open file description of the pipe or terminal that stderr is; -1 if this user may not open it."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open("/proc/self/fd/2", flags)
    except OSError:
        return -1


def _is_ready(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))


class LogFile(logging.Handler):
    """Appends to the file at a path, also after a rotation."""

    # The user and group that also write the file, while this process is root.
    owner: ClassVar[tuple[int, int] | None] = None

    def __init__(self, path: str, stderr: Stderr | None = None) -> None:
        """*stderr* gets the lines that cannot be written to the file."""
        super().__init__()
        self.stderr = stderr
        self._path = os.path.abspath(path)
        self._fd = -1
        self._hourly = Hourly()

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*. Never raises."""
        self.write(self.format(record) + "\n")

    def write(self, line: str) -> None:
        """Write *line*, which may be several lines. Never raises."""
        try:
            self.follow()
            os.write(self._fd, line.encode(errors="backslashreplace"))
        except OSError as error:
            if self._hourly.allows("log file", time.monotonic()):
                line = f"cannot write the log file `{self._path}`, logging to stderr: {reason(error)}\n{line}"
            if self.stderr is not None:
                self.stderr.write(line)

    def follow(self) -> None:
        """Open the file at the path, unless it is the one that is open. Raises OSError."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                return
        fd = _opened(self._path, self.owner)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Close the file. A later record opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()


def _opened(path: str, owner: tuple[int, int] | None) -> int:
    """Return a descriptor of the log file at *path*, and make the file if there is none. Raises OSError.

    With an *owner* this process is root, and the owner may be allowed to write the directory. So the path may be a
    symlink, or a hard link, to a file of root's. Therefore only a file that this call makes is given to the owner, and
    an existing file must be a regular file of the owner's without another name.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # so that no call waits for the reader of a FIFO
    if owner is None:
        return os.open(path, flags | os.O_CREAT, 0o640)
    flags |= os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
    except FileExistsError:
        fd = os.open(path, flags)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == owner[0] and found.st_nlink == 1:
            return fd
        os.close(fd)
        raise PermissionError(errno.EPERM, f"it is not a regular file of user {owner[0]} with one link") from None
    os.fchown(fd, *owner)
    return fd


def reopen() -> bool:
    """Open the log file again if its path names another file now; return whether there is a log file."""
    files = [handler for handler in logging.getLogger("limpet").handlers if isinstance(handler, LogFile)]
    for file in files:
        with contextlib.suppress(OSError):  # the next log line reports the error
            file.follow()
    return bool(files)


def check(path: str) -> None:
    """Raise SettingsError unless a log file can be opened at *path*."""
    try:
        with contextlib.closing(LogFile(path)) as file:
            file.follow()
    except OSError as error:
        hint = f"`mkdir -p {shlex.quote(os.path.dirname(path) or '.')}`; the server's user must be able to write there"
        raise SettingsError(f"cannot open the log file `{path}`: {reason(error)}", hint=hint) from None


def take_over(*names: str) -> None:
    """Make the loggers *names* write as limpet's do. Call it after the server that owns them has set them up."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers[:] = logging.getLogger("limpet").handlers
        logger.propagate = False


def warn_hourly(event: str, text: str, *args: object) -> None:
    """Log a warning, unless this process has logged one of this *event* within the last hour. Runs in workers."""
    if _HOURLY.allows(event, time.monotonic()):
        logging.getLogger("limpet.worker").warning(text, *args, extra={"event": event})


class Hourly:
    """Lets a warning pass once an hour for each cause, so that a lasting fault does not fill the log."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def allows(self, cause: str, now: float) -> bool:
        """Return whether to warn of *cause* now. If so, its next hour begins. *now* is monotonic, in seconds."""
        if now < self._next.get(cause, now):
            return False
        self._next[cause] = now + _HOUR_S
        return True


_HOURLY: Final = Hourly()
