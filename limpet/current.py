"""Which worker this process is, and the listener for `--server script`: what an application may ask of limpet.

This file owns these facts, one set for each process. It does not know how they came about: entry/child.py,
entry/worker.py and worker/listener_bridge.py set them, and applications read them. It imports nothing of limpet at run
time, because applications import it at their start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class WorkerInfo(NamedTuple):
    """This worker: its slot, its process id, and its generation, which counts the workers that the slot has had."""

    slot: int
    pid: int
    generation: int

    def close_cluster(self, wait_for_connections: bool = False) -> None:
        """Ask the supervisor to stop the whole server, as `limpet stop` does. Returns at once.

        With *wait_for_connections* the server waits for the open connections of all workers, without a limit. Without
        it they have the graceful timeout. Asking again changes nothing. Any thread may call this.
        """
        assert _ask_to_stop is not None, "a worker has a line to its supervisor"
        _ask_to_stop(bool(wait_for_connections))


_current: WorkerInfo | None = None
_leavers: list[Callable[[], object]] = []
_ask_to_stop: Callable[[bool], None] | None = None
_role: str | None = None


def current_worker() -> WorkerInfo:
    """Return the worker that this process is.

    Raises RuntimeError in a process that is not a limpet worker. Such a process has no `LIMPET_SLOT` in its
    environment.
    """
    if _current is None:
        raise RuntimeError("this process is not a limpet worker: start the application with `limpet run`")
    return _current


def become(info: WorkerInfo, ask_to_stop: Callable[[bool], None]) -> None:
    """Make `current_worker` return *info*. *ask_to_stop* asks the supervisor to stop the server.

    Runs in a worker, before the application is imported.
    """
    global _current, _ask_to_stop
    _current, _ask_to_stop = info, ask_to_stop


def on_leave(callback: Callable[[], object]) -> None:
    """Call *callback* when this worker begins to drain: what must run in one worker only has to end here then."""
    _leavers.append(callback)


def leave() -> None:
    """Call what was registered by `on_leave`. Runs in a worker that begins to drain, in any thread."""
    for callback in _leavers:
        callback()


def be_child(role: str) -> None:
    """Note that this process is a child of a supervisor with this *role*, and so must not start a server."""
    global _role
    _role = role


def child_role() -> str | None:
    """Return the role of this process as a child of a supervisor, such as "worker"; None for any other process."""
    return _role


class _Door(Protocol):
    """The object that provides the socket for `limpet.listener`: see worker/listener_bridge.py."""

    def listener(self) -> socket.socket: ...


_door: _Door | None = None


def listener() -> socket.socket:
    """Return a listening socket for a server of your own, with `--server script`. Its `accept` returns the clients.

    Call this last, when everything else is prepared: the worker counts as ready once your server accepts. On the kernel
    backend it is a real listener, which native code can use too after a call of its `listen`. On the dispatcher backend
    only its `accept` works. Raises RuntimeError in a process without such a socket.
    """
    return _opened().listener()


def open_door(door: _Door) -> None:
    """Make *door* provide the socket for `listener`. Runs in a worker whose server accepts by itself."""
    global _door
    _door = door


def _opened() -> _Door:
    if _door is None:
        raise RuntimeError("this process has no listener: start the program with `limpet run --server script`")
    return _door
