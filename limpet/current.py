"""Which worker this process is: what an application may ask of limpet, and of its server.

Owns the names of that in each process. Imports nothing of limpet at run time, since applications import it at their
start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class WorkerInfo(NamedTuple):
    """Which worker this is: its slot, its process, and how many workers the slot has had with it."""

    slot: int
    pid: int
    generation: int

    def close_cluster(self, wait_for_connections: bool = False) -> None:
        """Ask the supervisor to stop the whole server, as `limpet stop` does; return at once.

        With *wait_for_connections* the open ones, of all workers, may take as long as they like; without it they have
        the graceful timeout. Asking again changes nothing. Any thread may call it.
        """
        assert _ask_to_stop is not None, "a worker has a line to its supervisor"
        _ask_to_stop(bool(wait_for_connections))


_current: WorkerInfo | None = None
_ask_to_stop: Callable[[bool], None] | None = None
_role: str | None = None


def current_worker() -> WorkerInfo:
    """Return which worker this process is.

    Raises RuntimeError in a process that is not a limpet worker: there the environment has no `LIMPET_SLOT` either.
    """
    if _current is None:
        raise RuntimeError("this process is not a limpet worker: start the application with `limpet run`")
    return _current


def become(info: WorkerInfo, ask_to_stop: Callable[[bool], None]) -> None:
    """Make *info* what `current_worker` returns; *ask_to_stop* has the supervisor stop the server.

    Runs in a worker, before the application is imported.
    """
    global _current, _ask_to_stop
    _current, _ask_to_stop = info, ask_to_stop


def be_child(role: str) -> None:
    """Note that this process is a child of a supervisor, in which no server may be started."""
    global _role
    _role = role


def child_role() -> str | None:
    """Return what this process is to a supervisor: "worker", "dispatcher", or None for any other process."""
    return _role


class _Door(Protocol):
    """What `limpet.listener` asks: see worker/listener_bridge.py."""

    def listener(self) -> socket.socket: ...


_door: _Door | None = None


def listener() -> socket.socket:
    """Return a listening socket for a server of your own, under `--server script`: its `accept` returns the clients.

    Call it last, when all else is prepared: the worker counts as ready once the server accepts. On the kernel backend
    it is a real listener, for native code too, after a call of its `listen`; else `accept` is all there is. Raises
    RuntimeError where something else serves.
    """
    return _opened().listener()


def open_door(door: _Door) -> None:
    """Make *door* what `listener` asks. Runs in a worker whose server accepts for itself."""
    global _door
    _door = door


def _opened() -> _Door:
    if _door is None:
        raise RuntimeError("there is no listener here: start the program with `limpet run --server script`")
    return _door
