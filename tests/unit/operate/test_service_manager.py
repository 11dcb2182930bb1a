"""What the service manager is told, and when: its own unit file relies on each word."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from limpet.fleet.changes import RELOAD
from limpet.operate.service_manager import Manager
from tests.unit.stage import Stage


class Told:
    """A manager's end of the socket, and the limpet side that tells it."""

    def __init__(self, path: Path, **environ: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self.manager = Manager({"NOTIFY_SOCKET": str(path), **environ})

    def by(self, stage: Stage) -> list[str]:
        """Return the lines that a look at *stage* now sends."""
        self.manager.look(stage.fleet, stage.clock.now)
        lines: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines += self._socket.recv(65536).decode().splitlines()
        return lines

    def close(self) -> None:
        """Close both ends."""
        self._socket.close()
        if self.manager._socket is not None:
            self.manager._socket.close()


@contextlib.contextmanager
def told(path: Path, **environ: str) -> Iterator[Told]:
    """Yield a manager at *path* with these variables."""
    found = Told(path, **environ)
    yield found
    found.close()


def test_reload_is_told_with_its_time_and_ready_follows(tmp_path: Path) -> None:
    """`systemctl reload` waits for READY after RELOADING, and takes the time to match them."""
    with Stage(workers=1, dispatchers=0).start() as stage, told(tmp_path / "notify") as manager:
        assert "READY=1" in manager.by(stage)
        stage.rolling.request(RELOAD, [0], 1)
        stage.rolling.go_on()
        said = manager.by(stage)
        assert "RELOADING=1" in said
        assert [line for line in said if line.startswith("MONOTONIC_USEC=")]
        stage.ready(stage.fleet.slots[0])
        stage.rolling.go_on()
        assert "READY=1" in manager.by(stage)


def test_ready_comes_only_when_clients_can_connect(tmp_path: Path) -> None:
    """Units that are ordered after this one start then."""
    with Stage(workers=1) as stage, told(tmp_path / "notify") as manager:
        assert not [line for line in manager.by(stage) if line.startswith("READY")]
        stage.start()
        assert "READY=1" in manager.by(stage)
        stage.shutdown.begin(wait_for_connections=False)
        assert "STOPPING=1" in manager.by(stage)


def test_watchdog_is_fed_only_while_a_worker_lives_or_comes_at_the_first_try(tmp_path: Path) -> None:
    """A server that cannot start any worker is as good as one that hangs."""
    with Stage(workers=1, dispatchers=0).start() as stage, told(tmp_path / "n", WATCHDOG_USEC="2000000") as manager:
        assert "WATCHDOG=1" in manager.by(stage)
        [slot] = stage.fleet.slots
        assert slot.child is not None
        stage.die(slot, slot.child)
        stage.clock.now += 5
        assert "WATCHDOG=1" in manager.by(stage)
        assert slot.child is not None
        stage.die(slot, slot.child, code=1)
        stage.clock.now += 5
        assert "WATCHDOG=1" not in manager.by(stage)
