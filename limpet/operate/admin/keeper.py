"""The supervisor's side of the admin process: its address, its start, and another one when it has ended or hangs.

Owns the listener for life and the line to the process, by whose end each learns of the other's.

1. The process sends heartbeats on its line (serving.py). None for `--hang-timeout` means that it hangs or is stopped.
   Whatever else it says is not read further: a bounded amount is taken, and thrown away.
2. Silence is added up from look to look, and one look adds a bounded time: while this process could not run nobody
   heard the heartbeats.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Final

from limpet.config import privileges, secret
from limpet.config.bind import Bind
from limpet.config.settings import Settings
from limpet.coordination.place import Kept
from limpet.errors import reason
from limpet.ipc.control_link import Link, LinkClosedError
from limpet.net import listener
from limpet.net.listener import Listener
from limpet.system import memfile
from limpet.system.proc import is_stopped

_BACKLOG: Final = 64
_FIRST_PAUSE_S: Final = 0.5  # before the next process; doubled while they end soon
_LONGEST_PAUSE_S: Final = 30.0
_LASTED_S: Final = 60.0  # a process that has lived for so long was no failed start
_LONGEST_TURN_S: Final = 0.5  # between two looks: twice the supervisor's usual; more is a pause
_MOST_BYTES: Final = 1 << 16  # that the process may say in a second; its heartbeats have 12
_OWNER_ONLY: Final = 0o177
log = logging.getLogger("limpet")


class Keeper:
    """The admin process of one supervisor, none without `--admin`."""

    def __init__(
        self,
        settings: Settings,
        control: Path,
        selector: selectors.BaseSelector,
        kept: Listener | None,
        shared: Kept,
    ) -> None:
        """*kept* is the listener that another supervisor has left; *shared* is where the workers' metrics are.

        Raises ListenError, SettingsError.
        """
        self._shared = shared
        self._settings = settings
        self._token = secret.token(settings.admin_token) if settings.admin_token else None
        self._control = control.absolute()
        self._selector = selector
        self.listener = kept or (_open(settings.admin) if settings.admin else None)
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Link | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._started_at = 0.0
        self._start_at = float("inf")
        self._looked_at = 0.0
        self._silent_s = 0.0  # for how long the process has said nothing
        self._is_up = False  # it has said something
        self._heard = 0, 0  # in which second, and how many bytes of it

    @property
    def url(self) -> str | None:
        """Where it answers."""
        return self.listener.url if self.listener else None

    @property
    def pids(self) -> set[int]:
        """The process that this waits for, as long as it has not ended."""
        return {self._process.pid} if self._process is not None and self._process.poll() is None else set()

    def start(self, now: float) -> None:
        """Let who wants to know something connect, and start the process. *now* is monotonic."""
        if self.listener is not None:
            self.listener.listen()
            log.info("admin at %s", self.listener.url, extra={"event": "admin_serving"})
            self._spawn(now)

    def _spawn(self, now: float) -> None:
        assert self.listener is not None
        self._start_at, self._started_at = float("inf"), now
        line, theirs = Link.pair()
        told = {
            "settings": self._settings.to_json(),
            "control": str(self._control),
            "token": self._token,
            "line": theirs.fileno(),
            "listener": self.listener.sock.fileno(),
            "shared": self._shared.fd,
            "directory": self._shared.directory,
        }
        identity = privileges.wanted(self._settings)
        try:
            with theirs, memfile.lent("limpet-admin", json.dumps(told).encode()) as fd:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "limpet.operate.admin", str(fd)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(fd, theirs.fileno(), self.listener.sock.fileno(), self._shared.fd),
                    process_group=0,
                    **(identity.as_arguments() if identity is not None else {}),
                )
        except OSError as error:
            line.close()
            self._put_off(now, f"cannot start the admin process: {reason(error)}")
            return
        self._line, self._is_up, self._silent_s, self._looked_at = line, False, 0.0, now
        self._selector.register(line, selectors.EVENT_READ, lambda now: self._hear(now))

    def _hear(self, now: float) -> None:
        """Take in what the process has said: that it lives, and no more than that."""
        assert self._line is not None
        try:
            said = sum(len(line) + 1 for line in self._line.receive_lines(_MOST_BYTES)) + len(self._line.unread)
        except LinkClosedError:
            self._end(now, "the admin process has ended")  # the line may have ended before it has
            return
        self._line.unread = b""
        second, before = self._heard
        self._heard = int(now), said + (before if second == int(now) else 0)
        if self._heard[1] > _MOST_BYTES:
            self._end(now, f"the admin process has said more than {_MOST_BYTES} bytes in a second")
        elif said:
            self._is_up, self._silent_s = True, 0.0

    def _end(self, now: float, why: str) -> None:
        """Kill the process, if it lives, and have another one a little later."""
        self._hang_up()
        if self._process is not None:
            self._process.kill()
        self._put_off(now, why)

    def _put_off(self, now: float, why: str) -> None:
        self._pause_s = _FIRST_PAUSE_S if now - self._started_at > _LASTED_S else self._pause_s
        self._start_at = now + self._pause_s
        log.warning("%s; the next one starts in %.1f s", why, self._pause_s, extra={"event": "admin_ended"})
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def look(self, now: float) -> None:
        """End the process if it hangs; start another one if that is due. *now* is monotonic."""
        self._silent_s += min(now - self._looked_at, _LONGEST_TURN_S)
        self._looked_at = now
        limit_s = self._settings.hang_timeout_s
        limit_s = limit_s if self._is_up else max(limit_s, self._settings.start_timeout_s)
        if self._line is not None and self._silent_s > limit_s:
            self._hear(now)  # its heartbeats may wait here, unheard
            if self._line is not None and self._silent_s > limit_s:
                how = "was stopped" if self._process and is_stopped(self._process.pid) else "had no heartbeat"
                self._end(now, f"the admin process {how} for {limit_s:g} s")
        if now >= self._start_at and not self.pids:
            self._spawn(now)

    def _hang_up(self) -> None:
        if self._line is not None:
            self._selector.unregister(self._line)
            self._line.close()
            self._line = None

    def close(self) -> None:
        """End the process and give the address up."""
        self._hang_up()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self.listener is not None:
            self.listener.close()


def _open(text: str) -> Listener:
    """Return a listener at the address *text*; the file of a unix socket is for this user alone. Raises ListenError."""
    mask = os.umask(_OWNER_ONLY)
    try:
        return listener.open(Bind.parse(text), _BACKLOG)
    finally:
        os.umask(mask)
