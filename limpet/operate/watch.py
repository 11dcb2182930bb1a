"""Watching files for `--reload`: when one changes, the supervisor starts a rolling reload. For development.

Owns both sides: a child process that watches (`python -m limpet.operate.watch`, using the library watchfiles) and
reports changes, and the supervisor's end of the line to it. The supervisor does the reload.

1. A Python file that does not compile starts no reload: the old version keeps serving, and the log has the error. An
   error that shows only during import ends the reload in the same way, because a worker takes over only when ready.
2. Watching never harms the server. If the child ends, files are no longer watched, and the log says so.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NoReturn

from limpet.errors import SettingsError
from limpet.ipc.control_link import Link, LinkClosedError
from limpet.system import descriptors, signals

_MOST_NAMED: Final = 3  # files named in a log line
log = logging.getLogger("limpet")


def check(folders: Sequence[str]) -> None:
    """Raise SettingsError if the Python files in *folders* cannot be watched."""
    if importlib.util.find_spec("watchfiles") is None:
        raise SettingsError("`--reload` needs watchfiles", hint="`pip install 'limpet[reload]'`")
    for folder in folders:
        if not os.path.isdir(folder):
            raise SettingsError(f"the directory of `--reload-dir {folder}` does not exist")


class Watcher:
    """The child that watches, as the supervisor sees it."""

    def __init__(
        self, folders: Sequence[str] | None, selector: selectors.BaseSelector, changed: Callable[[], object]
    ) -> None:
        """Watch *folders* while this is a context. An empty list means the current directory; None watches nothing.

        *changed* is called when files have changed.
        """
        self._folders = folders
        self._selector = selector
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watcher:
        if self._folders is None:
            return self
        self._line, theirs = Link.pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "limpet.operate.watch", str(theirs.fileno()), *(self._folders or ["."])],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,
            )
        self._selector.register(self._line, selectors.EVENT_READ, lambda _: self._hear())
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._hang_up()
            self._process.kill()
            self._process.wait()

    @property
    def pids(self) -> set[int]:
        """The process that this waits for, until it has ended."""
        return {self._process.pid} if self._process is not None and self._process.poll() is None else set()

    def _hang_up(self) -> None:
        if not self._line.closed:
            self._selector.unregister(self._line)
            self._line.close()

    def _hear(self) -> None:
        try:
            news = self._line.receive()
        except LinkClosedError:
            log.warning(
                "files are no longer watched: the watching process has ended", extra={"event": "watching_ended"}
            )
            self._hang_up()
            return
        for message in news:
            if message["fault"]:
                log.error(
                    "not reloaded, the old version keeps serving: %s", message["fault"], extra={"event": "not_reloaded"}
                )
            else:
                files = message["files"]
                more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
                log.info("changed: %s%s", ", ".join(files[:_MOST_NAMED]), more, extra={"event": "files_changed"})
                self._changed()


def fault(paths: Iterable[str]) -> str | None:
    """Return what is wrong with the first Python file of *paths* that does not compile, or None if all compile."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                compile(file.read(), path, "exec", dont_inherit=True)
        except FileNotFoundError:  # it was removed, or is being replaced
            continue
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            return f"{path}{line}: {type(error).__name__}: {getattr(error, 'msg', error)}"
        except OSError as error:
            return f"{path}: {error.strerror}"
    return None


def _end_with(line: Link) -> NoReturn:
    """End this process when the supervisor has ended. It sends nothing on *line*."""
    select.select([line], [], [])
    os._exit(0)


def main() -> int:
    """Watch until the supervisor has ended."""
    import watchfiles

    descriptors.have_standard_streams()
    signals.leave_to_the_supervisor()
    fd, *folders = sys.argv[1:]
    descriptors.keep_from_programs([int(fd)])
    line = Link(socket.socket(fileno=int(fd)))
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    for changes in watchfiles.watch(*folders, watch_filter=watchfiles.PythonFilter(), raise_interrupt=False):
        paths = sorted({os.path.relpath(path) for _, path in changes})
        line.send({"files": paths, "fault": fault(paths)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
