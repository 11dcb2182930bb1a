"""A server that runs beside the program that started it, and the program's handle of it.

Owns the supervisor's process on the program's side: starting it as a fresh interpreter, telling it to stop, and waiting
for its end. It knows nothing about settings or how the server works. supervisor/program_link.py is the other side;
operate/control_socket.py carries questions to the server.

How it works: the supervisor is a child process with one line to this program (supervisor/program_link.py has the
messages). On it the supervisor says that it serves, or why it does not. When the supervisor closes its end, the server
has ended; when this program's end closes, the server stops. One thread reads the line. Another calls the program's
callbacks, so that a callback may even close the server.

1. The program may be in any state: with threads, other children, an event loop. Nothing here forks, handles a signal or
   changes the global state of the process.
2. However the program ends, the kernel closes the line and the server stops gracefully. A process that the program
   forks closes its copy of the line at once, because it would keep the server alive. In it, a handle closes nothing.
3. All methods may be called from any thread, and repeatedly: doing a finished thing again does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self

from limpet.config.bind import Served
from limpet.config.settings import Settings
from limpet.errors import AppError, ControlError, LimpetError, failure_of
from limpet.ipc.control_link import Link, LinkClosedError
from limpet.ipc.news import Failed
from limpet.operate import control_socket
from limpet.operate.control_socket import Message
from limpet.supervisor import program_link
from limpet.supervisor.program_link import NEWS, ORDERS, News, Serving, Stop
from limpet.system import activation

Callback = Callable[["Handle"], object]
_POLL_S: Final = 0.1  # between two questions whether a change is over
_END_S: Final = 5.0  # how long a supervisor that was told to end at once may take
log = logging.getLogger("limpet")


class _State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    CLOSED = "closed"


class Handle:
    """A running server, as `limpet.listen` and `Cluster.start` return it.

    As a context manager (`with` or `async with`) it waits until the server serves, and closes it at the end.
    """

    def __init__(
        self, settings: Settings, *, on_ready: Callback | None = None, on_closed: Callback | None = None
    ) -> None:
        self._changed = threading.Condition()
        self._state = _State.STARTING
        self._addresses: list[str] = []
        self._control = ""
        self._failure: LimpetError | None = None
        self._callbacks = on_ready, on_closed
        self._line, theirs = Link.pair()
        with theirs:
            self._process = _start(settings, theirs)
        self._is_ours = True
        _handles.add(self)
        threading.Thread(target=self._follow, name="limpet-handle", daemon=True).start()
        if on_ready or on_closed:
            threading.Thread(target=self._call_back, name="limpet-callbacks", daemon=True).start()

    def __repr__(self) -> str:
        return f"<limpet.Handle of pid {self._process.pid}, {self._state}>"

    @property
    def address(self) -> str:
        """The URL of the first listener; for port 0, with the port that was chosen. Waits until the server serves."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """The URLs of all listeners, in the order of the binds. Waits until the server serves."""
        self.wait_ready()
        return list(self._addresses)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until clients can connect.

        Raises TimeoutError after *timeout* seconds. If the server ends instead, raises the LimpetError that `limpet
        run` would have shown.
        """
        if not self._wait_for(lambda: self._state is not _State.STARTING, timeout):
            raise TimeoutError(f"the server is not ready after {timeout:g} s")
        if not self._addresses:
            raise self._failure or LimpetError("the server was closed before it was ready")

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the server has ended, for whatever reason.

        Raises LimpetError if it failed to start or crashed, TimeoutError after *timeout* seconds.
        """
        if not self._wait_for(lambda: self._state is _State.CLOSED, timeout):
            raise TimeoutError(f"the server is still running after {timeout:g} s")
        if self._failure is not None:
            raise self._failure

    def status(self) -> dict[str, Any]:
        """Return what `limpet status --json` prints. Waits until the server serves. Raises ControlError."""
        return self._ask({"command": "status"})

    def where(self, *keys: str) -> list[dict[str, Any]]:
        """Return, for each of *keys* in the form `[ELEMENT=]KEY`, what `limpet where --json` prints."""
        answer: list[dict[str, Any]] = self._ask({"command": "where", "keys": list(keys)})["keys"]
        return answer

    def reload(self) -> None:
        """Give each slot a new worker, one after another, and return when all new workers are in charge.

        Raises AppError if a new worker does not become ready; the old ones then keep serving.
        """
        self._change({"command": "reload"})

    def scale(self, workers: int) -> None:
        """Change the number of workers to *workers*, and return when that is done.

        Raises AppError if a new one does not start.
        """
        self._change({"command": "scale", "slots": workers})

    def close(self, wait_for_connections: bool = False, timeout: float | None = None) -> None:
        """Stop the server, and return when its last process has ended.

        Connections and requests in progress get the graceful timeout to finish; with *wait_for_connections*, as long as
        they need. After *timeout* seconds, everything that is left is ended at once.

        Closing a server that has ended, or that another thread is closing, is not an error: this call waits for the
        same end, and its *timeout* counts. In a process that the program forked it does nothing.
        """
        if not self._is_ours:
            return
        self._line.send(ORDERS.pack(Stop(wait_for_connections)))
        if self._wait_for(lambda: self._state is _State.CLOSED, timeout):
            return
        self._line.send(ORDERS.pack(Stop(wait_for_connections=False, at_once=True)))
        if not self._wait_for(lambda: self._state is _State.CLOSED, _END_S):
            self._process.kill()
            self._wait_for(lambda: self._state is _State.CLOSED, None)

    def signal(self, number: int) -> None:
        """Send the supervisor a signal, if it still runs. The signal means the same as for `limpet run`."""
        self._process.send_signal(number)

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.wait_ready)
        except BaseException:
            await asyncio.to_thread(self.close)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _ask(self, request: Message, **waiting: Any) -> Message:
        self.wait_ready()
        if self._state is _State.CLOSED:
            raise ControlError("the server has ended")
        return control_socket.ask(self._control, request, **waiting)

    def _change(self, request: Message) -> None:
        """Ask for a change and wait until it is over. Raises AppError if it fails."""
        change = self._ask(request)
        while change["state"] in ("waiting", "running"):
            self._wait_for(lambda: self._state is _State.CLOSED, _POLL_S)
            change = self._ask({"command": "change", "number": change["change"]})
        if change["state"] == "failed":
            raise AppError(f"{change['why']} failed: {change['message']}")

    def _wait_for(self, state: Callable[[], bool], timeout: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(state, timeout)

    def _follow(self) -> None:
        """Receive what the supervisor says until it has ended. Runs in its own thread."""
        readable = select.poll()
        readable.register(self._line, select.POLLIN)
        with contextlib.suppress(LinkClosedError):
            while True:
                readable.poll()
                for news in map(NEWS.unpack, self._line.receive()):
                    self._hear(news)
        code = self._process.wait()
        with self._changed:
            if code and self._failure is None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                self._failure = LimpetError(f"the supervisor (pid {self._process.pid}) {how}")
            self._state = _State.CLOSED
            self._changed.notify_all()
        self._line.close()

    def _hear(self, news: News | None) -> None:
        with self._changed:
            match news:
                case Serving(urls, control):
                    self._addresses, self._control = urls, control
                    self._state = _State.READY
                    self._changed.notify_all()
                case Failed(message, hint, code):
                    self._failure = failure_of(message, hint, code)

    def _call_back(self) -> None:
        """Call the program's callbacks. Runs in its own thread, so that a callback may close the server."""
        on_ready, on_closed = self._callbacks
        for state, callback in ((_State.READY, on_ready), (_State.CLOSED, on_closed)):
            self._wait_for(lambda state=state: self._state in (state, _State.CLOSED), None)  # type: ignore[misc]
            if callback is None or (state is _State.READY and not self._addresses):
                continue
            try:
                callback(self)
            except Exception:
                log.exception("a callback of %r failed", self, extra={"event": "callback_failed"})

    def _leave_to_parent(self) -> None:
        self._is_ours = False
        self._changed = threading.Condition()  # the old one may be held by a thread that does not exist here
        self._line.close()


def _start(settings: Settings, line: socket.socket) -> subprocess.Popen[bytes]:
    """Start the supervisor with its end of the *line*, and with the sockets that it must listen on."""
    boot_fd = program_link.write(settings, line.fileno())
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "limpet.entry.hosted", str(boot_fd)],
            stdin=subprocess.DEVNULL,
            pass_fds=(boot_fd, line.fileno(), *_given_sockets(settings.bind)),
            env={
                name: value for name, value in os.environ.items() if name not in activation.VARIABLES
            },  # these were meant for the program
            process_group=0,  # Ctrl-C must reach only the program
        )
    finally:
        os.close(boot_fd)


def _given_sockets(binds: Sequence[str]) -> list[int]:
    return [
        int(number)
        for kind, _, number in (Served.parse(text).address.partition(":") for text in binds)
        if kind == "fd" and number.isdecimal()
    ]


_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


def _after_fork() -> None:
    for handle in list(_handles):
        handle._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
