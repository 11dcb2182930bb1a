"""The control socket: how commands such as `limpet status` talk to a running server.

Owns both ends of the conversation and the place of the socket. Each side sends one JSON object on a line, over a unix
socket that only its owner may use (0600 in a 0700 directory). supervisor/commands.py gives the commands their meaning.

The kernel reports who calls, whatever the permissions of the file. Allowed are root, the user of the supervisor, and
the user of its children, who owns the file.

1. The supervisor's side never waits for a caller's line. A caller that sends half a line or nothing is dropped after
   _PATIENCE_S.
2. A caller that asked to stop gets an answer when the stop has begun. Its connection closes when the server has ended.
3. A command whose caller has gone is not carried out, because no one would learn the result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import selectors
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from limpet.config.privileges import Identity
from limpet.errors import ControlError, ListenError
from limpet.logs import escaped
from limpet.net.listener import give, inode_of, is_open

Message = dict[str, Any]
Answer = Callable[[Message], Message]
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid
_PATIENCE_S: Final = 5.0
_CONNECT_S: Final = 5.0
_LONGEST_LINE: Final = 1 << 20  # bytes; `limpet where` may send many keys
_LONGEST_ANSWER: Final = 64 << 20  # bytes; `limpet where` may ask for a million keys
_MOST_CALLERS: Final = 64
_ACCEPT_PAUSE_S: Final = 0.5  # after accepting failed, for example without free descriptors
log = logging.getLogger("limpet")


def runtime_dir() -> Path:
    """Return the directory in which servers of this user put their control sockets."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base, "limpet") if base else Path(os.environ.get("TMPDIR", "/tmp"), f"limpet-{os.getuid()}")


@dataclass(slots=True)
class _Caller:
    deadline: float
    unread: bytes = b""


class ControlServer:
    """The supervisor's side. Owns the socket and its file; `close` removes the file."""

    def __init__(
        self,
        path: Path,
        listener: socket.socket,
        answer: Answer,
        selector: selectors.BaseSelector,
        owner: Identity | None = None,
    ) -> None:
        """Answer callers at *listener*, the socket at *path*: root, this user, and *owner*.

        Each key that it registers with *selector* has as its data a function, to be called with the monotonic time when
        the key is readable.
        """
        self.path = path
        self._answer = answer
        self._selector = selector
        self._callers: dict[socket.socket, _Caller] = {}
        self._listener = listener
        self._listen_again_at = 0.0
        self._inode = inode_of(str(path))
        self._allowed = {0, os.geteuid(), *(owner or ())[:1]}
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def pack(self) -> dict[str, Any]:
        """Return what `adopt` needs in another program in this process.

        Callers in the middle of a request are included.
        """
        asking = [(caller, state.unread) for caller, state in self._callers.items() if state.deadline != float("inf")]
        callers = [{"fd": caller.fileno(), "unread": unread.hex()} for caller, unread in asking]
        return {"path": str(self.path), "fd": self._listener.fileno(), "callers": callers}

    @classmethod
    def adopt(
        cls,
        packed: dict[str, Any],
        answer: Answer,
        selector: selectors.BaseSelector,
        now: float,
        owner: Identity | None = None,
    ) -> ControlServer:
        """Return the server that `pack` was called on."""
        server = cls(Path(packed["path"]), socket.socket(fileno=packed["fd"]), answer, selector, owner)
        for each in packed["callers"]:
            server._await(socket.socket(fileno=each["fd"]), now, bytes.fromhex(each["unread"]))
        return server

    def expire(self, now: float) -> None:
        """Drop the callers whose time is over. Accept again after a pause because of missing descriptors."""
        if 0 < self._listen_again_at <= now:
            self._listen_again_at = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        for caller in [caller for caller, state in self._callers.items() if state.deadline <= now]:
            self._drop(caller)

    def close(self) -> None:
        """End all conversations and remove the socket's file."""
        for caller in list(self._callers):
            self._drop(caller)
        if not self._listen_again_at:
            self._selector.unregister(self._listener)
        # While the socket is open, no other file can have its inode. So a file that has replaced it is kept.
        if inode_of(str(self.path)) == self._inode:
            self.path.unlink(missing_ok=True)
        self._listener.close()

    def _accept(self, now: float) -> None:
        try:
            caller, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # for example no free descriptor: the caller stays in the backlog and keeps waking the loop
            self._selector.unregister(self._listener)
            self._listen_again_at = now + _ACCEPT_PAUSE_S
            return
        credentials = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid not in self._allowed:
            log.warning("user %d (pid %d) may not use the control socket", uid, pid, extra={"event": "control_refused"})
            caller.close()
            return
        caller.setblocking(False)
        if len(self._callers) >= _MOST_CALLERS:
            self._drop(next(iter(self._callers)))
        self._await(caller, now)

    def _await(self, caller: socket.socket, now: float, unread: bytes = b"") -> None:
        self._callers[caller] = _Caller(now + _PATIENCE_S, unread)
        self._selector.register(caller, selectors.EVENT_READ, lambda _: self._read(caller))

    def _drop(self, caller: socket.socket) -> None:
        del self._callers[caller]
        self._selector.unregister(caller)
        caller.close()

    def _read(self, caller: socket.socket) -> None:
        state = self._callers[caller]
        try:
            data = caller.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        line, newline, _ = (state.unread + data).partition(b"\n")
        if not data or len(line) > _LONGEST_LINE:
            self._drop(caller)
        elif not newline:
            state.unread = line
        else:
            if _has_gone(caller):
                self._drop(caller)
                return
            state.deadline = float("inf")  # rule 2: it stays until the caller closes, or this server ends
            with contextlib.suppress(OSError):  # the answer fits into the socket's buffer, or the caller reads it
                caller.settimeout(_PATIENCE_S)
                caller.sendall(json.dumps(self._respond(line)).encode() + b"\n")
                caller.setblocking(False)

    def _respond(self, line: bytes) -> Message:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):  # RecursionError: thousands of brackets
            return {"error": "not a JSON object"}
        return self._answer(request) if isinstance(request, dict) else {"error": "not a JSON object"}


def _has_gone(caller: socket.socket) -> bool:
    """Return whether *caller* has closed its socket, and has not only shut down its sending side."""
    poll = select.poll()
    poll.register(caller, 0)
    return bool(poll.poll(0))  # POLLHUP on a unix socket means that both directions are closed


def listen(path: str | None, name: str, owner: Identity | None = None) -> tuple[Path, socket.socket]:
    """Return a socket that listens on *path*, by default a new file in the runtime directory. Raises ListenError.

    The file belongs to *owner*, by default to this user.
    """
    where = Path(path) if path else runtime_dir() / f"{name}-{os.getpid()}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path is None:
            make_private(where.parent)
        _remove_dead(where, owner)
        mask = os.umask(0o177)
        try:
            listener.bind(str(where))
        finally:
            os.umask(mask)
        if owner is not None:
            give(str(where), owner)
            if path is None:
                where.parent.chmod(0o711)  # the owner must be able to reach the file by its name
        listener.listen(_MOST_CALLERS)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        hint = "`--control PATH` puts the control socket somewhere else"
        raise ListenError(f"cannot open the control socket `{where}`: {reason}", hint=hint) from None
    listener.setblocking(False)
    return where, listener


def ask(path: str | None, request: Message, *, timeout_s: float = 10.0, until_end: float | None = None) -> Message:
    """Return a running server's answer to *request*. Raises ControlError. Blocks until the answer, at most *timeout_s*.

    *path* is the server's control socket, by default the only one in the runtime directory. With *until_end*, also
    waits up to that many seconds until the server has ended.
    """
    if path:
        connection = _trusted(Path(path), _connect(Path(path), min(timeout_s, _CONNECT_S)), is_named=True)
    else:
        connection = _connect_to_only()
    with connection:
        try:
            connection.settimeout(timeout_s)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = _read_line(connection)
            if until_end is not None:
                connection.settimeout(until_end)
                while connection.recv(65536):
                    pass
        except TimeoutError:
            raise ControlError(
                "the server did not finish in time", hint="`limpet status` shows what it is doing"
            ) from None
        except OSError as error:
            raise ControlError(f"the connection to the server was lost: {error.strerror}") from None
    if "error" in answer:
        raise ControlError(answer["error"], hint=answer.get("hint"))
    return answer


def _read_line(connection: socket.socket) -> Message:
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            raise ControlError("the server ended before it answered")
        data += part
        if len(data) > _LONGEST_ANSWER:
            raise ControlError("the answer of the server is too long")
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ControlError("the server did not answer with a JSON object")
    return cast(Message, _printable(answer))


def _printable(value: Any) -> Any:
    """Return *value* with the control characters in all its strings escaped, because a terminal would obey them."""
    match value:
        case str():
            return escaped(value)
        case list():
            return [_printable(each) for each in value]
        case dict():
            return {_printable(name): _printable(each) for name, each in value.items()}
    return value


def _connect(path: Path, timeout_s: float = _CONNECT_S) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)  # the backlog of a stopped server may be full
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        is_full = isinstance(error, TimeoutError | BlockingIOError)
        why = "it does not accept connections" if is_full else (error.strerror or str(error)).lower()
        raise ControlError(
            f"no server answers on `{path}`: {why}",
            hint="`limpet run APP` starts one; `--control PATH` names another",
        ) from None
    return connection


def _connect_to_only() -> socket.socket:
    """Return a connection to the only running server of this user. Raises ControlError if none runs, or several."""
    directory = runtime_dir()
    if directory.exists() and (why := _not_private(directory)):
        raise ControlError(f"`{directory}` {why}", hint="`--control PATH` names the control socket of the server")
    alive: list[tuple[Path, socket.socket]] = []
    for path in sorted(directory.glob("*.sock")):
        with contextlib.suppress(ControlError):
            alive.append((path, _trusted(path, _connect(path), is_named=False)))
    if len(alive) == 1:
        return alive[0][1]
    for _, connection in alive:
        connection.close()
    if alive:
        names = ", ".join(f"`{path}`" for path, _ in alive)
        raise ControlError(
            f"{len(alive)} servers are running: {names}", hint=f"`--control {alive[0][0]}` chooses the first"
        )
    raise ControlError(f"no server is running: `{directory}` has no control socket", hint="`limpet run APP` starts one")


def make_private(directory: Path) -> None:
    """Make *directory* if it does not exist. Raises PermissionError if other users could write into it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if why := _not_private(directory):
        raise PermissionError(1, f"{directory} {why}")


def _not_private(directory: Path) -> str | None:
    """Return why other users could have put something into *directory*, or None if only this user can."""
    found = directory.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        return "is not a directory that only this user can write to"
    return None


def _trusted(path: Path, connection: socket.socket, *, is_named: bool) -> socket.socket:
    """Return *connection* if the server at its other end may read keys. Otherwise close it and raise ControlError.

    The kernel reports the user of the process that began to listen. It must be root or this user. Root may name the
    socket of any user's server.
    """
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid in (0, os.geteuid()) or (is_named and os.geteuid() == 0):
        return connection
    connection.close()
    raise ControlError(f"the server on `{path}` belongs to user {uid}", hint=f"`ls -ln {path}` shows whose file it is")


def _remove_dead(path: Path, owner: Identity | None) -> None:
    """Remove the socket file of a server that was killed.

    A file of another user, or one in use, stays; `bind` then fails.
    """
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        ours = {os.geteuid(), *(owner or ())[:1]}
        if stat.S_ISSOCK(found.st_mode) and found.st_uid in ours and not is_open(str(path)):
            path.unlink()
